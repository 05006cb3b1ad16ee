/* SPDX-License-Identifier: Apache-2.0 */
/* attention_body.h - windowed attention of one head over cached pages (and, in kv_body.h, the codes of
 * cached rows), written once over vectors of LANES floats. A tier's attention file defines the names
 * below and includes this, so that every tier has the same order of operations (kernels.h) and
 * compiles it for its own instruction set.
 *
 *   LANES                       4, 8 or 16
 *   SCORE_KEYS                  blocks of 16 keys whose scores for 4 queries fit in registers
 *   MIX_QUERIES                 queries whose 5 output vectors fit in registers: 4 or 2
 *   vec, v_zero, v_set1, v_load, v_store, v_add, v_sub, v_mul, v_fma (a * b + c), v_abs,
 *   v_div, v_max                (the second operand when one is NaN)
 *   v_exp2                      2^t for t <= 0; 0 for -infinity
 *   v_round                     to nearest even
 *   v_greater                   1.0 where a > b, else 0.0
 *   v_load_f16, v_load_i8       LANES values as floats
 *   v_load_q4(words, shift)     BXN_KV_LEVELS of the 4 bits at `shift` of LANES words
 *   v_store_first(y, n, v)      the first n < LANES values
 *   v_tree(const vec *)         sum of 16 lanes: i and i + 8, then + 4, + 2, + 1
 *   v_prefetch(address)
 *
 * Many queries: a page is converted to f32 once and multiplied with four queries at a time;
 * one query: the page is read as it lies. Both do the same operations for each number. */
#ifndef BXN_ATTENTION_BODY_H
#define BXN_ATTENTION_BODY_H

#include "kernels/attention_parts.h"

#define SCORE_QUERIES 4

/* ---- scores ------------------------------------------------------------------------------ */

typedef struct score_job {
    const float *q;
    size_t ldq, dim;
    const uint8_t *codes;
    const float *scales; /* of the keys of the page; NULL: none */
    const uint8_t *next; /* read soon; NULL: nothing */
    float scale;
    float *scores; /* of the first query, at the first key of the page; rows ROW apart */
} score_job;

/* Scores of n blocks from `block` on. */
BXN_INLINE void score(int type, const score_job *j, size_t block, unsigned count, unsigned n)
{
    vec dot[SCORE_QUERIES][4 * PIECES];
    BXN_UNROLL
    for (unsigned i = 0; i < count; i++) {
        BXN_UNROLL
        for (unsigned b = 0; b < n * PIECES; b++)
            dot[i][b] = v_zero();
    }
    const size_t step = bytes_of(type, n * 16);
    for (size_t d = 0; d < j->dim; d++) {
        if (count == 1 && j->next != NULL) {
            BXN_UNROLL
            for (size_t at = 0; at < step; at += 64)
                v_prefetch(j->next + bytes_of(type, block * j->dim * 16) + d * step + at);
        }
        vec keys[4 * PIECES];
        BXN_UNROLL
        for (unsigned b = 0; b < n * PIECES; b++)
            keys[b] = load_keys(type, j->codes, j->dim, block + b / PIECES, d, b % PIECES * LANES);
        BXN_UNROLL
        for (unsigned i = 0; i < count; i++) {
            const vec q = v_set1(j->q[i * j->ldq + d]);
            BXN_UNROLL
            for (unsigned b = 0; b < n * PIECES; b++)
                dot[i][b] = v_fma(q, keys[b], dot[i][b]);
        }
    }
    const vec scale = v_set1(j->scale);
    BXN_UNROLL
    for (unsigned i = 0; i < count; i++) {
        BXN_UNROLL
        for (unsigned b = 0; b < n * PIECES; b++) {
            vec s = v_mul(dot[i][b], scale);
            if (j->scales != NULL)
                s = v_mul(s, v_load(j->scales + block * 16 + b * LANES));
            v_store(j->scores + i * ROW + block * 16 + b * LANES, s);
        }
    }
}

BXN_INLINE void score_blocks(int type, const score_job *j, size_t block, size_t end, unsigned count,
                             unsigned most)
{
    while (block < end) {
        if (most >= 4 && end - block >= 4) {
            score(type, j, block, count, 4);
            block += 4;
        } else if (most >= 2 && end - block >= 2) {
            score(type, j, block, count, 2);
            block += 2;
        } else {
            score(type, j, block, count, 1);
            block += 1;
        }
    }
}

static void score_tile(const score_job *job, size_t block, size_t end, uint32_t count)
{
    score_job j = *job;
    if (count == SCORE_QUERIES) {
        score_blocks(BXN_KV_F32, &j, block, end, SCORE_QUERIES, SCORE_KEYS);
        return;
    }
    if (count >= 2) {
        score_blocks(BXN_KV_F32, &j, block, end, 2, SCORE_KEYS);
        j.q += 2 * j.ldq;
        j.scores += 2 * ROW;
        count -= 2;
    }
    if (count == 1)
        score_blocks(BXN_KV_F32, &j, block, end, 1, 4);
}

/* ---- values ---------------------------------------------------------------------------------- */

typedef struct mix_job {
    const uint8_t *codes;
    size_t stride; /* S */
    const uint8_t *next;
    const span *spans;   /* of each query, in the page */
    const float *weight; /* of the first query, at the first key of the page; rows ROW apart */
    float *sums;         /* of the first query; partials apart */
    size_t ldsums;
} mix_job;

/* One key into the sums of the queries; those that do not see it are left alone. */
BXN_INLINE void mix_key(int type, const mix_job *j, uint32_t key, size_t v, unsigned count,
                        unsigned n, bool all, vec (*sums)[5])
{
    vec value[5];
    BXN_UNROLL
    for (unsigned b = 0; b < n; b++)
        value[b] = load_values(type, j->codes, j->stride, key, v + b * LANES);
    BXN_UNROLL
    for (unsigned i = 0; i < count; i++) {
        if (!all && (key < j->spans[i].begin || key >= j->spans[i].end))
            continue;
        const vec e = v_set1(j->weight[i * ROW + key]);
        BXN_UNROLL
        for (unsigned b = 0; b < n; b++)
            sums[i][b] = v_fma(e, value[b], sums[i][b]);
    }
}

/* n vectors of the sums from feature v on, over the keys of a page; whole: every query sees all. */
BXN_INLINE void mix(int type, const mix_job *j, size_t v, unsigned count, unsigned n, bool whole)
{
    vec sums[MIX_QUERIES][5];
    BXN_UNROLL
    for (unsigned i = 0; i < count; i++) {
        BXN_UNROLL
        for (unsigned b = 0; b < n; b++)
            sums[i][b] = v_load(j->sums + i * j->ldsums + v + b * LANES);
    }
    uint32_t key = 0, core_end = BXN_PAGE, end = BXN_PAGE;
    if (!whole) {
        const span any = span_of_all(j->spans, count);
        uint32_t core = any.begin;
        key = any.begin;
        core_end = end = any.end;
        BXN_UNROLL
        for (unsigned i = 0; i < count; i++) {
            core = j->spans[i].begin > core ? j->spans[i].begin : core;
            core_end = j->spans[i].end < core_end ? j->spans[i].end : core_end;
        }
        if (core >= core_end)
            core = core_end = end;
        for (; count > 1 && key < core; key++)
            mix_key(type, j, key, v, count, n, false, sums);
    }
    const size_t step = bytes_of(type, n * LANES);
    for (; key < core_end; key++) {
        if (count == 1 && j->next != NULL) {
            BXN_UNROLL
            for (size_t at = 0; at < step; at += 64)
                v_prefetch(j->next + bytes_of(type, key * j->stride + v) + at);
        }
        mix_key(type, j, key, v, count, n, true, sums);
    }
    for (; count > 1 && !whole && key < end; key++)
        mix_key(type, j, key, v, count, n, false, sums);
    BXN_UNROLL
    for (unsigned i = 0; i < count; i++) {
        BXN_UNROLL
        for (unsigned b = 0; b < n; b++)
            v_store(j->sums + i * j->ldsums + v + b * LANES, sums[i][b]);
    }
}

BXN_INLINE void mix_row(int type, const mix_job *j, unsigned count, bool whole)
{
    for (size_t v = 0; v < j->stride;) {
        const size_t left = (j->stride - v) / LANES;
        if (left % 5 == 0 && left % 4 != 0) {
            mix(type, j, v, count, 5, whole);
            v += 5 * LANES;
        } else if (left >= 4) {
            mix(type, j, v, count, 4, whole);
            v += 4 * LANES;
        } else if (left >= 2) {
            mix(type, j, v, count, 2, whole);
            v += 2 * LANES;
        } else {
            mix(type, j, v, count, 1, whole);
            v += LANES;
        }
    }
}

static void mix_tile(const mix_job *job, uint32_t count)
{
    mix_job j = *job;
    for (; count >= MIX_QUERIES; count -= MIX_QUERIES) {
        bool whole = true;
        for (uint32_t i = 0; i < MIX_QUERIES; i++)
            whole &= j.spans[i].begin == 0 && j.spans[i].end == BXN_PAGE;
        if (whole)
            mix_row(BXN_KV_F32, &j, MIX_QUERIES, true);
        else
            mix_row(BXN_KV_F32, &j, MIX_QUERIES, false);
        j.spans += MIX_QUERIES;
        j.weight += MIX_QUERIES * ROW;
        j.sums += MIX_QUERIES * j.ldsums;
    }
#if MIX_QUERIES > 2
    if (count >= 2) {
        mix_row(BXN_KV_F32, &j, 2, false);
        j.spans += 2;
        j.weight += 2 * ROW;
        j.sums += 2 * j.ldsums;
        count -= 2;
    }
#endif
    if (count == 1)
        mix_row(BXN_KV_F32, &j, 1, false);
}

/* ---- parts ------------------------------------------------------------------------------- */

/* Blocks [block, end) of a page's keys as f32, at the same places. */
BXN_INLINE void convert_keys(int type, const uint8_t *codes, size_t dim, size_t block, size_t end,
                             float *tile)
{
    for (; block < end; block++) {
        for (size_t d = 0; d < dim; d++) {
            BXN_UNROLL
            for (unsigned h = 0; h < PIECES; h++)
                v_store(tile + (block * dim + d) * 16 + h * LANES,
                        load_keys(type, codes, dim, block, d, h * LANES));
        }
    }
}

BXN_INLINE void convert_values(int type, const uint8_t *codes, size_t stride, span keys,
                               float *tile)
{
    for (size_t key = keys.begin; key < keys.end; key++) {
        for (size_t f = 0; f < stride; f += LANES)
            v_store(tile + key * stride + f, load_values(type, codes, stride, key, f));
    }
}

/* Piece i of n of what will be read soon. */
static void fetch(const uint8_t *next, size_t bytes, uint32_t i, uint32_t n)
{
    if (next == NULL)
        return;
    const size_t lines = bytes / 64;
    for (size_t at = lines * i / n; at < lines * (i + 1) / n; at++)
        v_prefetch(next + at * 64);
}

/* What is read some regions after region i of a part: the keys of its pages, their values, the keys
 * of the next part. Regions of few bytes are fetched from further ahead. */
static const uint8_t *region_ahead(int type, const bxn_attention_args *args, uint64_t first,
                                   uint32_t pages, uint32_t i)
{
    i += type == BXN_KV_Q4 ? 4 : type == BXN_KV_I8 ? 2 : 1;
    if (i < 2 * pages)
        return page_of(args, first + i % pages) + (i < pages ? args->k_offset : args->v_offset);
    const uint64_t page = first + i - pages;
    const bool more =
        args->part == BXN_ALL_PARTS && page <= (args->position + args->count - 1) / BXN_PAGE;
    return more ? page_of(args, page) + args->k_offset : NULL;
}

/* All queries over the keys of one part, into `partials`. */
BXN_INLINE void attend_part(int type, const bxn_attention_args *args, uint64_t part,
                            float *partials)
{
    const uint32_t count = args->count;
    const size_t dim = args->head_dim, stride = (dim + 15) & ~(size_t)15, apart = stride + 16;
    const uint64_t first_page = part * (BXN_PART / BXN_PAGE);
    float *scores = args->scratch, *tile = scores + (size_t)BXN_QUERIES * ROW;
    const float *q = count > 1 ? tile + BXN_PAGE * stride : args->q; /* see pack_queries */
    const size_t ldq = count > 1 ? stride : args->ldq;
    span spans[BXN_QUERIES];
    for (uint32_t i = 0; i < count; i++) {
        float *sums = partials + i * apart;
        spans[i] = span_in_part(args, i, part);
        memset(sums, 0, apart * sizeof *sums);
    }
    const span all = span_of_all(spans, count);
    if (all.end == 0)
        return;
    const uint32_t begin_page = all.begin / BXN_PAGE, last_page = (all.end - 1) / BXN_PAGE;
    const uint32_t pages = last_page - begin_page + 1;

    for (uint32_t page = begin_page; page <= last_page; page++) {
        const uint8_t *k = page_of(args, first_page + page) + args->k_offset;
        const uint8_t *next =
            region_ahead(type, args, first_page + begin_page, pages, page - begin_page);
        score_job j = {.q = q,
                       .ldq = ldq,
                       .dim = dim,
                       .codes = codes_of(type, k),
                       .scales = has_scales(type) ? (const float *)(const void *)k : NULL,
                       .next = next == NULL ? NULL : codes_of(type, next),
                       .scale = args->scale * 1.44269504f,
                       .scores = scores + page * BXN_PAGE};
        const span keys = span_in_page(all, page * BXN_PAGE);
        if (count == 1) {
            if (has_scales(type))
                fetch(next, BXN_PAGE * sizeof(float), 0, 1);
            score_blocks(type, &j, keys.begin / 16, (keys.end + 15) / 16, 1, 4);
            continue;
        }
        if (type != BXN_KV_F32) {
            convert_keys(type, j.codes, dim, keys.begin / 16, (keys.end + 15) / 16, tile);
            j.codes = (const uint8_t *)tile;
        }
        j.next = NULL;
        for (uint32_t i = 0; i < count; i += SCORE_QUERIES) {
            const uint32_t n = count - i < SCORE_QUERIES ? count - i : SCORE_QUERIES;
            const span s = span_in_page(span_of_all(spans + i, n), page * BXN_PAGE);
            fetch(next, bytes_of(type, BXN_PAGE * dim), i, count);
            j.q = q + i * ldq;
            j.scores = scores + i * ROW + page * BXN_PAGE;
            if (s.end != 0)
                score_tile(&j, s.begin / 16, (s.end + 15) / 16, n);
        }
    }

    for (uint32_t i = 0; i < count; i++) {
        if (spans[i].end == 0)
            continue;
        float *row = scores + i * ROW, *sums = partials + i * apart;
        softmax(row, spans[i], &sums[stride], &sums[stride + 1]);
        for (uint32_t key = spans[i].begin & ~15u; has_scales(type) && key < spans[i].end;
             key += 16) {
            const uint8_t *v = page_of(args, first_page + key / BXN_PAGE) + args->v_offset;
            const float *scales = (const float *)(const void *)v + key % BXN_PAGE;
            BXN_UNROLL
            for (unsigned h = 0; h < PIECES; h++)
                v_store(row + key + h * LANES,
                        v_mul(v_load(row + key + h * LANES), v_load(scales + h * LANES)));
        }
    }

    for (uint32_t page = begin_page; page <= last_page; page++) {
        const uint8_t *v = page_of(args, first_page + page) + args->v_offset;
        const uint8_t *next =
            region_ahead(type, args, first_page + begin_page, pages, pages + page - begin_page);
        mix_job j = {.codes = codes_of(type, v),
                     .stride = stride,
                     .next = next == NULL ? NULL : codes_of(type, next),
                     .ldsums = apart};
        const span keys = span_in_page(all, page * BXN_PAGE);
        if (count == 1) {
            j.spans = &keys;
            j.weight = scores + page * BXN_PAGE;
            j.sums = partials;
            if (has_scales(type))
                fetch(next, BXN_PAGE * sizeof(float), 0, 1);
            mix_row(type, &j, 1, false);
            continue;
        }
        if (type != BXN_KV_F32) {
            convert_values(type, j.codes, stride, keys, tile);
            j.codes = (const uint8_t *)tile;
        }
        j.next = NULL;
        for (uint32_t i = 0; i < count; i += SCORE_QUERIES) {
            const uint32_t n = count - i < SCORE_QUERIES ? count - i : SCORE_QUERIES;
            span in_page[SCORE_QUERIES];
            for (uint32_t g = 0; g < n; g++)
                in_page[g] = span_in_page(spans[i + g], page * BXN_PAGE);
            fetch(next, bytes_of(type, BXN_PAGE * stride), i, count);
            j.spans = in_page;
            j.weight = scores + i * ROW + page * BXN_PAGE;
            j.sums = partials + i * apart;
            if (span_of_all(in_page, n).end != 0)
                mix_tile(&j, n);
        }
    }
}

/* Many queries side by side after the tile: rows of activations lie a power of two apart, or
 * nearly, and drive each other out of the cache. */
static void pack_queries(const bxn_attention_args *args)
{
    const size_t dim = args->head_dim, stride = (dim + 15) & ~(size_t)15;
    float *q = args->scratch + (size_t)BXN_QUERIES * ROW + BXN_PAGE * stride;
    for (uint32_t i = 0; args->count > 1 && i < args->count; i++)
        memcpy(q + i * stride, args->q + i * args->ldq, dim * sizeof *q);
}

static void merge_parts(const float *partials, uint32_t parts, uint32_t dim, float *out)
{
    const size_t stride = ((size_t)dim + 15) & ~(size_t)15, apart = stride + 16;
    vec zero = v_zero();
    for (size_t f = 0; f < dim;
         f += 128) { /* some features at a time: the total has a place here */
        float total[128 + 2];
        const size_t n = stride - f < 128 ? stride - f : 128, left = dim - f < 128 ? dim - f : 128;
        for (size_t i = 0; i < n; i += LANES)
            v_store(total + i, zero);
        total[n] = total[n + 1] = 0.0f;
        for (uint32_t p = 0; p < parts; p++) {
            float part[128 + 2];
            memcpy(part, partials + p * apart + f, n * sizeof *part);
            part[n] = partials[p * apart + stride];
            part[n + 1] = partials[p * apart + stride + 1];
            merge(total, part, n);
        }
        const vec sum = v_set1(total[n + 1]);
        for (size_t i = 0; i < left; i += LANES) {
            const vec y = v_div(v_load(total + i), sum);
            if (left - i >= LANES)
                v_store(out + f + i, y);
            else
                v_store_first(out + f + i, left - i, y);
        }
    }
}

#include "kernels/kv_body.h"

#define BXN_ATTENTION_ENTRY(name, type, tier)                                                      \
    static void part_##name(const bxn_attention_args *args, uint64_t part, float *partials)        \
    {                                                                                              \
        attend_part(type, args, part, partials);                                                   \
    }                                                                                              \
    void bxn_attention_##name##_##tier(const bxn_attention_args *args)                             \
    {                                                                                              \
        pack_queries(args);                                                                        \
        attend(part_##name, args);                                                                 \
    }

/* The functions of a tier. */
#define BXN_ATTENTION_ENTRIES(tier)                                                                \
    BXN_ATTENTION_ENTRY(f16, BXN_KV_F16, tier)                                                     \
    BXN_ATTENTION_ENTRY(f32, BXN_KV_F32, tier)                                                     \
    BXN_ATTENTION_ENTRY(i8, BXN_KV_I8, tier)                                                       \
    BXN_ATTENTION_ENTRY(q4, BXN_KV_Q4, tier)                                                       \
    void bxn_attention_merge_##tier(const float *partials, uint32_t parts, uint32_t head_dim,      \
                                    float *out)                                                    \
    {                                                                                              \
        merge_parts(partials, parts, head_dim, out);                                               \
    }                                                                                              \
    void bxn_quant_i8_##tier(const float *x, uint32_t n, int8_t *codes, float *scale)              \
    {                                                                                              \
        row_i8(x, n, codes, scale);                                                                \
    }                                                                                              \
    void bxn_quant_q4_##tier(const float *x, uint32_t n, uint8_t *codes, float *scale)             \
    {                                                                                              \
        row_q4(x, n, codes, scale);                                                                \
    }                                                                                              \
    void bxn_kv_rotate_##tier(const float *r, uint32_t n, const float *x, size_t ldx,              \
                              uint32_t count, float *y)                                            \
    {                                                                                              \
        rotate_rows(r, n, x, ldx, count, y);                                                       \
    }

#endif
