/* SPDX-License-Identifier: Apache-2.0 */
/* attention_parts.h - what every form of attention over cached pages shares: which keys a query sees, loads
 * of keys and values by type, the softmax of a part, the merge of parts. Written once over vectors of LANES
 * floats, like attention_body.h, which says what a file must define before it includes this. */
#ifndef BXN_ATTENTION_PARTS_H
#define BXN_ATTENTION_PARTS_H

#include <math.h>
#include <stdbool.h>
#include <string.h>

#define PIECES (16 / LANES) /* vectors of 16 lanes */
#define ROW (BXN_PART + 16) /* floats from one query's scores to the next: no power of two */

/* Keys that a query sees of a part or a page, from its first key. */
typedef struct span {
    uint32_t begin, end;
} span;

static span span_in_part(const bxn_attention_args *args, uint32_t i, uint64_t part)
{
    const uint64_t first = part * BXN_PART, end = args->position + i + 1;
    const uint64_t begin = end > args->window ? end - args->window : 0;
    span s = {0, 0};
    if (begin < first + BXN_PART && end > first) {
        s.begin = begin > first ? (uint32_t)(begin - first) : 0;
        s.end = end - first < BXN_PART ? (uint32_t)(end - first) : BXN_PART;
    }
    return s;
}

static span span_in_page(span s, uint32_t first)
{
    span in = {0, 0};
    if (s.begin < first + BXN_PAGE && s.end > first && s.begin < s.end) {
        in.begin = s.begin > first ? s.begin - first : 0;
        in.end = s.end - first < BXN_PAGE ? s.end - first : BXN_PAGE;
    }
    return in;
}

/* The keys that any of them sees. */
static span span_of_all(const span *s, uint32_t count)
{
    span all = {0, 0};
    for (uint32_t i = 0; i < count; i++) {
        if (s[i].begin >= s[i].end)
            continue;
        if (all.end == 0 || s[i].begin < all.begin)
            all.begin = s[i].begin;
        if (s[i].end > all.end)
            all.end = s[i].end;
    }
    return all;
}

BXN_INLINE bool has_scales(int type)
{
    return type == BXN_KV_I8 || type == BXN_KV_Q4;
}

BXN_INLINE const uint8_t *codes_of(int type, const uint8_t *region)
{
    return has_scales(type) ? region + BXN_PAGE * sizeof(float) : region;
}

/* Bytes of `values` values. */
BXN_INLINE size_t bytes_of(int type, size_t values)
{
    return type == BXN_KV_F32   ? values * 4
           : type == BXN_KV_F16 ? values * 2
           : type == BXN_KV_I8  ? values
                                : values / 2;
}

/* LANES keys from `lane` on of feature d, in a block of 16. */
BXN_INLINE vec load_keys(int type, const uint8_t *codes, size_t dim, size_t block, size_t d,
                         unsigned lane)
{
    const size_t at = (block * dim + d) * 16 + lane;
    if (type == BXN_KV_F32)
        return v_load((const float *)(const void *)codes + at);
    if (type == BXN_KV_F16)
        return v_load_f16(codes + 2 * at);
    if (type == BXN_KV_I8)
        return v_load_i8(codes + at);
    return v_load_q4(codes + 4 * ((block * ((dim + 7) / 8) + d / 8) * 16 + lane),
                     (unsigned)(d % 8) * 4);
}

/* LANES features from f on of the key in a slot. */
BXN_INLINE vec load_values(int type, const uint8_t *codes, size_t stride, size_t slot, size_t f)
{
    const size_t at = slot * stride + f;
    if (type == BXN_KV_F32)
        return v_load((const float *)(const void *)codes + at);
    if (type == BXN_KV_F16)
        return v_load_f16(codes + 2 * at);
    if (type == BXN_KV_I8)
        return v_load_i8(codes + at);
    return v_load_q4(codes + 4 * (slot / 8 * stride + f), (unsigned)(slot % 8) * 4);
}

/* ---- softmax ------------------------------------------------------------------------------- */

/* Scores of a part become e^(score - max); the sum of them and the maximum go to *sum, *max. */
static void softmax(float *row, span s, float *max, float *sum)
{
    const uint32_t first = s.begin & ~15u, last = (s.end + 15u) & ~15u;
    for (uint32_t i = first; i < s.begin; i++)
        row[i] = -INFINITY;
    for (uint32_t i = s.end; i < last; i++)
        row[i] = -INFINITY;
    vec top[PIECES], total[PIECES];
    BXN_UNROLL
    for (unsigned h = 0; h < PIECES; h++) {
        top[h] = v_set1(-INFINITY);
        total[h] = v_zero();
    }
    for (uint32_t i = first; i < last; i += 16) {
        BXN_UNROLL
        for (unsigned h = 0; h < PIECES; h++)
            top[h] = v_max(v_load(row + i + h * LANES), top[h]);
    }
    float lanes[16];
    BXN_UNROLL
    for (unsigned h = 0; h < PIECES; h++)
        v_store(lanes + h * LANES, top[h]);
    float most = lanes[0];
    for (unsigned l = 1; l < 16; l++)
        most = lanes[l] > most ? lanes[l] : most;
    const vec m = v_set1(most);
    for (uint32_t i = first; i < last; i += 16) {
        BXN_UNROLL
        for (unsigned h = 0; h < PIECES; h++) {
            vec e = v_exp2(v_sub(v_load(row + i + h * LANES), m));
            v_store(row + i + h * LANES, e);
            total[h] = v_add(total[h], e);
        }
    }
    *max = most;
    *sum = v_tree(total);
}

/* ---- parts ------------------------------------------------------------------------------- */

BXN_INLINE const uint8_t *page_of(const bxn_attention_args *args, uint64_t page)
{
    return (const uint8_t *)args->pages[page - args->first_page];
}

static float exp2_of(float t)
{
    float lanes[LANES];
    v_store(lanes, v_exp2(v_set1(t)));
    return lanes[0];
}

/* The next part of one query into what the parts before it made. */
static void merge(float *total, const float *part, size_t stride)
{
    const float sum = total[stride + 1], more = part[stride + 1];
    if (more == 0.0f)
        return;
    if (sum == 0.0f) {
        memcpy(total, part, (stride + 2) * sizeof *total);
        return;
    }
    const float max = part[stride] > total[stride] ? part[stride] : total[stride];
    const float a = exp2_of(total[stride] - max), b = exp2_of(part[stride] - max);
    const vec va = v_set1(a), vb = v_set1(b);
    for (size_t f = 0; f < stride; f += LANES)
        v_store(total + f, v_fma(v_load(total + f), va, v_mul(v_load(part + f), vb)));
    total[stride] = max;
    total[stride + 1] = fmaf(sum, a, more * b);
}

static void finish(const float *total, size_t dim, float *out)
{
    const vec sum = v_set1(total[((dim + 15) & ~(size_t)15) + 1]);
    for (size_t f = 0; f < dim; f += LANES) {
        const vec y = v_div(v_load(total + f), sum);
        if (dim - f >= LANES)
            v_store(out + f, y);
        else
            v_store_first(out + f, dim - f, y);
    }
}

/* A tier's attend_part for one type. */
typedef void (*part_fn)(const bxn_attention_args *args, uint64_t part, float *partials);

static void attend(part_fn attend_one, const bxn_attention_args *args)
{
    if (args->part != BXN_ALL_PARTS) {
        attend_one(args, args->part, args->partial);
        return;
    }
    const size_t dim = args->head_dim, stride = (dim + 15) & ~(size_t)15, apart = stride + 16;
    const uint64_t end = args->position + 1, last = (args->position + args->count - 1) / BXN_PART;
    const uint64_t first = (end > args->window ? end - args->window : 0) / BXN_PART;
    float *total = args->scratch + (size_t)BXN_QUERIES * ROW + stride * (BXN_PAGE + BXN_QUERIES);
    float *part = total + BXN_QUERIES * apart;
    attend_one(args, first, total);
    for (uint64_t p = first + 1; p <= last; p++) {
        attend_one(args, p, part);
        for (uint32_t i = 0; i < args->count; i++)
            merge(total + i * apart, part + i * apart, stride);
    }
    for (uint32_t i = 0; i < args->count; i++)
        finish(total + i * apart, dim, args->out + i * args->ldout);
}

#endif
