/* SPDX-License-Identifier: Apache-2.0 */
/* attention_tile_body.h - windowed attention of one head with products of bf16 tiles (kernels.h, at
 * attention_tile). The file that includes it has the vectors of AVX-512 with BF16 and defines the tile
 * operations of tile_body.h and TILE_NAME: x86/attention_amx.c for the processor, checkkern for tiles in
 * plain C.
 *
 * 16 queries are the rows of a tile, and tiles multiply rows apart: what a query gets does not depend on
 * its neighbours. Of keys that a query does not see, scores are replaced and weights are zero; values of such
 * keys are multiplied by zero, so none may be NaN or infinite: where one is, zero takes its place, and the
 * queries that see it become NaN. Sums of a part stay in tiles over 128 keys. */
#ifndef BXN_ATTENTION_TILE_BODY_H
#define BXN_ATTENTION_TILE_BODY_H

#include "kernels/attention_parts.h"
#include "kernels/kernels_isa.h"
#include "kernels/x86/tile_decode.h"

#define TILE_BLOCK 16u  /* rows of a tile: queries */
#define TILE_DEEP 32u   /* values of a row: features or keys of a step */
#define TILE_CHUNK 128u /* keys whose values are converted together */
#define TILE_SIZE 512u  /* values of a tile */

BXN_INLINE size_t tile_up(size_t value, size_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

/* y[16][16 * columns] += (with `clear`: =) rows of a (lda bytes apart, TILE_DEEP values a step) times tiles of b,
 * `ldb` tiles from step to step. */
BXN_INLINE void rows_product(const uint8_t *a, size_t lda, const uint16_t *b, size_t ldb, size_t steps, float *y,
                             size_t ldy, bool clear, unsigned columns)
{
    const size_t stride = ldy * sizeof *y;
    TILE_FENCE();
    if (clear) {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
    } else {
        TILE_LOAD(0, y, stride);
        if (columns > 1)
            TILE_LOAD(1, y + 16, stride);
        if (columns > 2)
            TILE_LOAD(2, y + 32, stride);
        if (columns > 3)
            TILE_LOAD(3, y + 48, stride);
    }
    for (size_t s = 0; s < steps; s++, a += 2 * TILE_DEEP, b += ldb * TILE_SIZE) {
        TILE_LOAD(4, a, lda);
        TILE_LOAD(5, b, 64);
        TILE_PRODUCT(0, 4, 5);
        if (columns > 1) {
            TILE_LOAD(6, b + TILE_SIZE, 64);
            TILE_PRODUCT(1, 4, 6);
        }
        if (columns > 2) {
            TILE_LOAD(7, b + 2 * TILE_SIZE, 64);
            TILE_PRODUCT(2, 4, 7);
        }
        if (columns > 3) {
            TILE_LOAD(5, b + 3 * TILE_SIZE, 64);
            TILE_PRODUCT(3, 4, 5);
        }
    }
    TILE_STORE(0, y, stride);
    if (columns > 1)
        TILE_STORE(1, y + 16, stride);
    if (columns > 2)
        TILE_STORE(2, y + 32, stride);
    if (columns > 3)
        TILE_STORE(3, y + 48, stride);
    TILE_FENCE();
}

/* Blocks [block, end) of a page's keys as tiles [features / 32][4 blocks]: rows are pairs of features. */
BXN_INLINE void keys_to_tiles(int type, const uint8_t *codes, size_t dim, size_t block, size_t end, uint16_t *out)
{
    const __m512i order = tile_order();
    const size_t padded = tile_up(dim, TILE_DEEP);
    for (; block < end; block++) {
        for (size_t d = 0; d < padded; d += 2) {
            const vec low = d < dim ? load_keys(type, codes, dim, block, d, 0) : v_zero();
            const vec high = d + 1 < dim ? load_keys(type, codes, dim, block, d + 1, 0) : v_zero();
            _mm512_store_si512(out + (d / TILE_DEEP * 4 + block) * TILE_SIZE + d % TILE_DEEP / 2 * 32,
                               tile_interleave(low, high, order));
        }
    }
}

/* Values of a page's keys as tiles [keys / 32][features / 16], zeros outside of `keys` and for what is not finite
 * as bf16: rows are pairs of keys. Returns a bit for each key with such a value. */
BXN_INLINE uint64_t values_to_tiles(int type, const uint8_t *codes, size_t stride, span keys, uint16_t *out)
{
    const __m512i order = tile_order(), exponent = _mm512_set1_epi16(0x7F80);
    const size_t columns = stride / 16;
    uint64_t bad = 0;
    for (uint32_t key = 0; key < BXN_PAGE; key += 2) {
        const bool low = key >= keys.begin && key < keys.end, high = key + 1 >= keys.begin && key + 1 < keys.end;
        uint16_t *row = out + key / TILE_DEEP * columns * TILE_SIZE + key % TILE_DEEP / 2 * 32;
        __mmask32 wrong = 0; /* low, high, low ... */
        for (size_t c = 0; c < columns; c++) {
            const vec a = low ? load_values(type, codes, stride, key, 16 * c) : v_zero();
            const vec b = high ? load_values(type, codes, stride, key + 1, 16 * c) : v_zero();
            __m512i pairs = tile_interleave(a, b, order);
            if (!has_scales(type)) {
                const __mmask32 here = _mm512_cmpeq_epi16_mask(_mm512_and_si512(pairs, exponent), exponent);
                pairs = _mm512_maskz_mov_epi16(~here, pairs);
                wrong |= here;
            }
            _mm512_store_si512(row + c * TILE_SIZE, pairs);
        }
        bad |= (uint64_t)((wrong & 0x55555555u) != 0) << key | (uint64_t)((wrong & 0xAAAAAAAAu) != 0) << (key + 1);
    }
    return bad;
}

/* Row of weights of the keys [low, high), multiples of 32, as bf16 in its own place: zero where the query does
 * not see. */
BXN_INLINE void weights_to_bf16(int type, const bxn_attention_args *args, uint64_t first_page, float *row, span s,
                                uint32_t low, uint32_t high)
{
    for (uint32_t key = low; key < high; key += TILE_DEEP) {
        vec half[2];
        for (uint32_t h = 0; h < 2; h++) {
            const uint32_t at = key + 16 * h;
            const uint32_t from = s.begin > at ? s.begin - at : 0, to = s.end > at ? s.end - at : 0;
            const __mmask16 seen = (__mmask16)(tail_mask(to < 16 ? to : 16) & ~tail_mask(from < 16 ? from : 16));
            half[h] = _mm512_maskz_loadu_ps(seen, row + at);
            if (has_scales(type) && seen != 0) {
                const uint8_t *v = page_of(args, first_page + at / BXN_PAGE) + args->v_offset;
                half[h] = _mm512_maskz_mul_ps(seen, half[h], v_load((const float *)(const void *)v + at % BXN_PAGE));
            }
        }
        _mm512_storeu_si512((uint16_t *)(void *)row + key, (__m512i)_mm512_cvtne2ps_pbh(half[1], half[0]));
    }
}

/* All queries over the keys of one part, into `partials`, which has room for whole blocks. */
BXN_INLINE void attend_part_tile(int type, const bxn_attention_args *args, uint64_t part, float *partials)
{
    const uint32_t count = args->count, blocks = (count + TILE_BLOCK - 1) / TILE_BLOCK;
    const size_t dim = args->head_dim, stride = tile_up(dim, 16), apart = stride + 16;
    const size_t ldq = tile_up(dim, TILE_DEEP) * sizeof(uint16_t), columns = stride / 16;
    const uint64_t first_page = part * (BXN_PART / BXN_PAGE);
    float *scores = args->scratch;
    uint16_t *tiles = (uint16_t *)(void *)(scores + (size_t)BXN_QUERIES * ROW);
    const uint8_t *q = (const uint8_t *)tiles + BXN_PAGE * stride * sizeof(float); /* queries_to_bf16 */
    span spans[BXN_QUERIES];
    for (uint32_t i = 0; i < count; i++)
        spans[i] = span_in_part(args, i, part);
    memset(partials, 0, blocks * TILE_BLOCK * apart * sizeof *partials);
    const span all = span_of_all(spans, count);
    if (all.end == 0)
        return;
    const uint32_t begin_page = all.begin / BXN_PAGE, last_page = (all.end - 1) / BXN_PAGE;

    for (uint32_t page = begin_page; page <= last_page; page++) {
        const uint8_t *k = page_of(args, first_page + page) + args->k_offset;
        const span keys = span_in_page(all, page * BXN_PAGE);
        keys_to_tiles(type, codes_of(type, k), dim, keys.begin / 16, (keys.end + 15) / 16, tiles);
        for (uint32_t b = 0; b < blocks; b++) {
            const uint32_t i = b * TILE_BLOCK, n = count - i < TILE_BLOCK ? count - i : TILE_BLOCK;
            if (span_in_page(span_of_all(spans + i, n), page * BXN_PAGE).end != 0)
                rows_product(q + i * ldq, ldq, tiles, 4, ldq / (2 * TILE_DEEP), scores + i * ROW + page * BXN_PAGE,
                             ROW, true, 4);
        }
    }

    const uint32_t low = all.begin & ~(TILE_DEEP - 1), high = (all.end + TILE_DEEP - 1) & ~(TILE_DEEP - 1);
    for (uint32_t i = 0; i < blocks * TILE_BLOCK; i++) {
        float *row = scores + i * ROW, *sums = partials + i * apart;
        const span s = i < count ? spans[i] : (span){0, 0};
        for (uint32_t key = s.begin & ~15u; has_scales(type) && key < s.end; key += 16) {
            const uint8_t *k = page_of(args, first_page + key / BXN_PAGE) + args->k_offset;
            v_store(row + key, v_mul(v_load(row + key), v_load((const float *)(const void *)k + key % BXN_PAGE)));
        }
        if (s.end != 0)
            softmax(row, s, &sums[stride], &sums[stride + 1]);
        weights_to_bf16(type, args, first_page, row, s, low, high);
    }

    for (uint32_t chunk = all.begin / TILE_CHUNK * TILE_CHUNK; chunk < all.end; chunk += TILE_CHUNK) {
        const uint32_t begin = low > chunk ? low - chunk : 0;
        const uint32_t end = high - chunk < TILE_CHUNK ? high - chunk : TILE_CHUNK;
        for (uint32_t at = 0; at < TILE_CHUNK; at += BXN_PAGE) {
            const span keys = span_in_page(all, chunk + at);
            if (keys.end == 0)
                continue;
            const uint8_t *v = page_of(args, first_page + (chunk + at) / BXN_PAGE) + args->v_offset;
            const uint64_t bad =
                values_to_tiles(type, codes_of(type, v), stride, keys, tiles + at / TILE_DEEP * columns * TILE_SIZE);
            for (uint32_t i = 0; bad != 0 && i < count; i++) {
                const span s = span_in_page(spans[i], chunk + at);
                for (uint32_t key = s.begin; key < s.end; key++)
                    if (bad >> key & 1)
                        partials[i * apart + stride + 1] = NAN;
            }
        }
        for (uint32_t b = 0; b < blocks; b++) {
            const uint32_t i = b * TILE_BLOCK, n = count - i < TILE_BLOCK ? count - i : TILE_BLOCK;
            const span s = span_of_all(spans + i, n);
            if (s.begin >= chunk + TILE_CHUNK || s.end <= chunk)
                continue;
            const uint8_t *weights = (const uint8_t *)(scores + i * ROW) + (chunk + begin) * sizeof(uint16_t);
            const uint16_t *from = tiles + begin / TILE_DEEP * columns * TILE_SIZE;
            const uint32_t steps = (end - begin) / TILE_DEEP;
            float *sums = partials + i * apart;
            size_t c = 0;
            for (; columns - c >= 4; c += 4)
                rows_product(weights, ROW * 4, from + c * TILE_SIZE, columns, steps, sums + 16 * c, apart, false, 4);
            if (columns - c == 3)
                rows_product(weights, ROW * 4, from + c * TILE_SIZE, columns, steps, sums + 16 * c, apart, false, 3);
            else if (columns - c == 2)
                rows_product(weights, ROW * 4, from + c * TILE_SIZE, columns, steps, sums + 16 * c, apart, false, 2);
            else if (columns - c == 1)
                rows_product(weights, ROW * 4, from + c * TILE_SIZE, columns, steps, sums + 16 * c, apart, false, 1);
        }
    }
    /* A sum that is - 0 by underflow is + 0 once weights of 0 are added, which depends on the neighbours. */
    for (uint32_t i = 0; i < count; i++)
        for (size_t f = 0; f < stride; f += 16)
            v_store(partials + i * apart + f, v_add(v_load(partials + i * apart + f), v_zero()));
}

/* Scaled queries as rows of bf16, zeros behind the last feature and the last query. */
static void queries_to_bf16(const bxn_attention_args *args)
{
    const size_t dim = args->head_dim, stride = tile_up(dim, 16), padded = tile_up(dim, TILE_DEEP);
    const vec scale = v_set1(args->scale * 1.44269504f);
    uint16_t *out = (uint16_t *)(void *)(args->scratch + (size_t)BXN_QUERIES * ROW + BXN_PAGE * stride);
    for (uint32_t i = 0; i < (args->count + TILE_BLOCK - 1) / TILE_BLOCK * TILE_BLOCK; i++) {
        for (size_t f = 0; f < padded; f += 16) {
            const size_t n = i >= args->count || f >= dim ? 0 : dim - f < 16 ? dim - f : 16;
            const vec v = _mm512_maskz_loadu_ps(tail_mask(n), n == 0 ? args->q : args->q + i * args->ldq + f);
            _mm256_storeu_si256((__m256i *)(void *)(out + i * padded + f),
                                (__m256i)_mm512_cvtneps_pbh(v_mul(v, scale)));
        }
    }
}

#define TILE_PART(name, type)                                                                      \
    static void tile_part_##name(const bxn_attention_args *args, uint64_t part, float *partials)   \
    {                                                                                              \
        attend_part_tile(type, args, part, partials);                                              \
    }
TILE_PART(f16, BXN_KV_F16)
TILE_PART(f32, BXN_KV_F32)
TILE_PART(i8, BXN_KV_I8)
TILE_PART(q4, BXN_KV_Q4)

void TILE_NAME(attention_tile)(const bxn_attention_args *args, bxn_kv_type type)
{
    const part_fn attend_one = type == BXN_KV_F16   ? tile_part_f16
                               : type == BXN_KV_F32 ? tile_part_f32
                               : type == BXN_KV_I8  ? tile_part_i8
                                                    : tile_part_q4;
    TILE_BEGIN();
    queries_to_bf16(args);
    if (args->part == BXN_ALL_PARTS) {
        attend(attend_one, args);
    } else { /* whole blocks do not fit there */
        const size_t stride = tile_up(args->head_dim, 16);
        float *partials = args->scratch + (size_t)BXN_QUERIES * ROW + stride * (BXN_PAGE + BXN_QUERIES);
        attend_one(args, args->part, partials);
        memcpy(args->partial, partials, args->count * (stride + 16) * sizeof *partials);
    }
    TILE_END();
}

#endif
