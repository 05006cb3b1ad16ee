/* SPDX-License-Identifier: Apache-2.0 */
/* near_256.h - products of quantised matrices with integer activations in 256-bit vectors,
 * compiled by near_avx2.c (BXN_VNNI 0: products are summed by vpmaddwd and vpmaddubsw) and by
 * near_avxvnni.c (1: vpdpwssd and vpdpbusd), whose entries the kernel table holds.
 *
 * Up to FEW tokens: four row groups are walked in lockstep along K, each a sequential stream
 * of memory, and codes go from memory to registers. More tokens: the codes of a row group are
 * decoded once per unit into a panel on the stack that all tokens use. Integer sums are exact
 * and the f32 steps are those of kernels.h in its order, so all paths give the same bits.
 *
 * A row of integers is stored in the order in which codes leave their vectors, for each 128
 * columns in one piece:
 *   NEAR4       int16, of 8 columns k0 k4 k1 k5 k2 k6 k3 k7
 *   NEAR_TABLE  int16, of 8 columns k0 k2 k4 k6 k1 k3 k5 k7
 *   NEAR8       int16, of 4 columns k0 k2 k1 k3
 *   FAST4, FAST_TABLE  int8, of 8 columns k0 k2 k4 k6 k1 k3 k5 k7
 *   FAST8       int8 in order
 * and after the last the int32 sums of each 32 columns. */
#ifndef BXN_NEAR_256_H
#define BXN_NEAR_256_H

#include "kernels/kernels_isa.h"
#include "kernels/x86/quant_256.h"
#include "kernels/x86/vec_avx2.h"

#define STREAMS 4
#define FEW 8     /* tokens that are multiplied from registers */
#define TOKENS 4  /* tokens whose sums are in registers at once, of these */
#define TILE 6    /* the same of many tokens */
#define CHUNK 132 /* tokens that share one decoding of a unit */
#define GROUPS 4  /* row groups that share the preparing of tokens */

enum { NEAR4, NEAR_TABLE, NEAR8, FAST4, FAST_TABLE, FAST8 };

BXN_INLINE int is_fast(int mode)
{
    return mode >= FAST4;
}

BXN_INLINE unsigned bits_of(int mode)
{
    return mode == NEAR8 || mode == FAST8 ? 8 : 4;
}

/* Bytes of the integers of 128 columns. */
BXN_INLINE size_t piece_of(int mode)
{
    return is_fast(mode) ? BXN_UNIT_COLS : 2 * BXN_UNIT_COLS;
}

/* What is taken from a code that is multiplied as an unsigned one: the centre, or the 128 that
 * make a signed byte unsigned. */
BXN_INLINE int offset_of(const bxn_packed *w, int mode)
{
    if (mode == NEAR4 || mode == FAST4)
        return (int)w->center;
    return BXN_VNNI && is_fast(mode) ? 128 : 0;
}

/* ---- vectors ------------------------------------------------------------------------------ */

BXN_INLINE __m256i broadcast4(const uint8_t *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm256_set1_epi32(v);
}

BXN_INLINE __m256i broadcast8(const uint8_t *p)
{
    long long v;
    memcpy(&v, p, sizeof v);
    return _mm256_set1_epi64x(v);
}

/* The value stays in its register: compilers take integer sums for trees and run out of
 * registers over them. */
#define IN_REGISTER(v) __asm__("" : "+x"(v))

/* Each 32-bit lane: sum + a0 * b0 + a1 * b1 of signed 16-bit values. */
BXN_INLINE __m256i dot16(__m256i sum, __m256i a, __m256i b)
{
#if BXN_VNNI
    sum = _mm256_dpwssd_avx_epi32(sum, a, b);
#else
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
#endif
    IN_REGISTER(sum);
    return sum;
}

#if BXN_VNNI
/* Each 32-bit lane: sum + four products of an unsigned and a signed byte. */
BXN_INLINE __m256i dot8(__m256i sum, __m256i u, __m256i s)
{
    sum = _mm256_dpbusd_avx_epi32(sum, u, s);
    IN_REGISTER(sum);
    return sum;
}
#else
/* Each 16-bit lane: sum + two products of an unsigned and a signed byte. */
BXN_INLINE __m256i dot8_16(__m256i sum, __m256i u, __m256i s)
{
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(u, s));
    IN_REGISTER(sum);
    return sum;
}

/* Each 32-bit lane: sum + four products of signed bytes: |c| times s with the sign of c. At
 * most 2 * 128 * 127 in 16 bits, for s is never -128. */
BXN_INLINE __m256i dot_signed8(__m256i sum, __m256i magnitude, __m256i c, __m256i s)
{
    __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(s, c));
    return dot16(sum, pairs, _mm256_set1_epi16(1));
}
#endif

/* ---- codes ---------------------------------------------------------------------------------- */

/* Values of 4-bit codes: low and high bytes (NEAR_TABLE), bytes in `low` (FAST_TABLE). */
typedef struct lookup {
    __m256i low, high;
} lookup;

BXN_INLINE lookup make_lookup(const bxn_packed *w, int mode)
{
    lookup t = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    if (mode != NEAR_TABLE && mode != FAST_TABLE)
        return t;
    const __m256 unit = _mm256_set1_ps(mode == NEAR_TABLE ? 8191.0f : 127.0f);
    __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(w->table), unit));
    __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(w->table + 8), unit));
    __m256i v = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8);
    __m256i bytes = _mm256_packus_epi16(_mm256_and_si256(v, _mm256_set1_epi16(0xFF)),
                                        _mm256_srli_epi16(v, 8));
    t.low = _mm256_permute4x64_epi64(bytes, _MM_SHUFFLE(2, 0, 2, 0));
    t.high = _mm256_permute4x64_epi64(bytes, _MM_SHUFFLE(3, 1, 3, 1));
    return t;
}

/* Columns 0, 2, 4, 6 and 1, 3, 5, 7 of the 8 in each lane. */
BXN_INLINE __m256i even_codes(__m256i codes)
{
    return _mm256_and_si256(codes, _mm256_set1_epi8(15));
}

BXN_INLINE __m256i odd_codes(__m256i codes)
{
    return _mm256_and_si256(_mm256_srli_epi16(codes, 4), _mm256_set1_epi8(15));
}

/* Columns 0, 2 and 1, 3 of the 4 in each lane. */
BXN_INLINE __m256i even_bytes(__m256i codes)
{
    return _mm256_srai_epi16(_mm256_slli_epi16(codes, 8), 8);
}

BXN_INLINE __m256i odd_bytes(__m256i codes)
{
    return _mm256_srai_epi16(codes, 8);
}

/* As bytes that dot8 takes for unsigned: 128 more. */
BXN_INLINE __m256i flip(__m256i bytes)
{
    return _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));
}

/* ---- scales --------------------------------------------------------------------------------- */

/* Half h of the 16 scales of a block. */
BXN_INLINE __m256 scales_at(const uint8_t *values, int f32, uint32_t block, unsigned h)
{
    size_t index = (size_t)block * 16 + h * 8;
    if (f32)
        return _mm256_loadu_ps((const float *)(const void *)(values + index * 4));
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(values + index * 2)));
}

/* Integer blocks of a unit, and the scale block of one. */
BXN_INLINE unsigned integer_blocks(const bxn_packed *w)
{
    return w->blocks == 4 ? 4 : 2;
}

/* Scale and bias' of half h for an integer block. */
BXN_INLINE void block_at(const bxn_packed *w, const uint8_t *unit, unsigned block, unsigned h,
                         __m256 *scale, __m256 *bias)
{
    uint32_t index = w->blocks == 1 ? 0 : block;
    *scale = scales_at(unit, w->scale_f32, index, h);
    *bias = _mm256_setzero_ps();
    if (w->has_bias)
        *bias = _mm256_fmadd_ps(_mm256_set1_ps(w->center), *scale,
                                scales_at(unit, w->scale_f32, index + w->blocks, h));
}

BXN_INLINE void store_rows(const bxn_packed *w, uint32_t group, float *out, const float y[16])
{
    size_t row = (size_t)group * BXN_UNIT_ROWS;
    store_first(out + row, w->rows - row, _mm256_loadu_ps(y));
    if (row + 8 < w->rows)
        store_first(out + row + 8, w->rows - row - 8, _mm256_loadu_ps(y + 8));
}

/* ---- one token and one unit ------------------------------------------------------------------- */

/* A token at one unit; arrays by integer block. */
typedef struct token {
    const uint8_t *q;
    int32_t start[4]; /* - offset * sum of q */
    float xscale[4];
    float total[4]; /* sum of x */
} token;

/* NEAR4 from registers: q = 256 * high + low, and of 8 columns the bytes
 * high 0 2 4 6, high 1 3 5 7, low 0 2 4 6, low 1 3 5 7. */
BXN_INLINE void split(const uint8_t *q, uint8_t *out)
{
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(1, 9, 3, 11, 5, 13, 7, 15, 0, 8, 2, 10, 4, 12, 6, 14));
    BXN_UNROLL
    for (unsigned i = 0; i < 8; i++) {
        __m256i v = _mm256_add_epi16(load(q + i * 32), _mm256_set1_epi16(128));
        v = _mm256_xor_si256(v, _mm256_set1_epi16(128)); /* low + 128 to low */
        store(out + i * 32, _mm256_shuffle_epi8(v, order));
    }
}

BXN_INLINE void prepare(const bxn_packed *w, const bxn_mm_args *args, uint32_t m, uint32_t u,
                        token *k, int mode)
{
    const size_t row = args->rows != NULL ? (size_t)args->rows[m] : m;
    const uint8_t *xq = (const uint8_t *)args->xq + row * args->ldxq;
    const float *xscale = args->xscale + row * args->ldxscale + (size_t)u * 2;
    const int pairs = w->blocks != 4, offset = offset_of(w, mode);
    k->q = xq + u * piece_of(mode);
    __m128i start = _mm_setzero_si128();
    if (offset != 0) {
        const uint8_t *sums = xq + w->k_units * piece_of(mode) + (size_t)u * 16;
        start = _mm_loadu_si128((const __m128i *)(const void *)sums);
        if (pairs)
            start = _mm_hadd_epi32(start, start);
        start = _mm_mullo_epi32(start, _mm_set1_epi32(-offset));
    }
    _mm_storeu_si128((__m128i *)(void *)k->start, start);
    if (w->has_bias) {
        __m128 total = _mm_loadu_ps(args->xsum + row * args->ldsum + (size_t)u * 4);
        _mm_storeu_ps(k->total, pairs ? _mm_hadd_ps(total, total) : total);
    }
    k->xscale[0] = xscale[0];
    k->xscale[1] = xscale[pairs];
    k->xscale[2] = k->xscale[3] = xscale[1];
}

/* y of 8 rows and one token: one integer block more. */
BXN_INLINE __m256 add_block(const bxn_packed *w, __m256i sum, __m256 scale, __m256 bias,
                            const token *k, unsigned block, __m256 y)
{
    __m256 s = _mm256_mul_ps(scale, _mm256_set1_ps(k->xscale[block]));
    y = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), s, y);
    return w->has_bias ? _mm256_fmadd_ps(bias, _mm256_set1_ps(k->total[block]), y) : y;
}

/* ---- few tokens ----------------------------------------------------------------------------- */

/* Add to sum[half][token] the products of `vectors` vectors of codes 64 bytes apart, for 8 rows
 * or 16, with n tokens. */
BXN_INLINE void dots(const lookup *table, const uint8_t *codes, unsigned vectors, size_t ahead,
                     const uint8_t *const q[TOKENS], unsigned n, unsigned halves,
                     __m256i sum[2][TOKENS], int mode)
{
    const size_t step = mode == NEAR4 || mode == NEAR_TABLE ? 16 : mode == FAST8 ? 4 : 8;
    __m256i part[4][2][TOKENS];
    BXN_UNROLL
    for (unsigned h = 0; h < halves; h++) {
        BXN_UNROLL
        for (unsigned t = 0; t < n; t++)
            part[0][h][t] = part[1][h][t] = part[2][h][t] = part[3][h][t] = _mm256_setzero_si256();
    }
    for (unsigned g = 0; g < vectors; g += 4) {
        BXN_UNROLL
        for (unsigned v = 0; v < 4; v++) {
            const uint8_t *at = codes + (size_t)(g + v) * 64;
            const size_t place = (g + v) * step;
            _mm_prefetch((const char *)at + ahead, _MM_HINT_T0);
            BXN_UNROLL
            for (unsigned h = 0; h < halves; h++) {
                const __m256i c = load(at + h * 32);
                if (mode == NEAR4 && BXN_VNNI && n == 1) {
#if BXN_VNNI
                    /* Odd codes stay in the upper half of their bytes: 16 times too large. */
                    __m256i even = even_codes(c), odd = _mm256_andnot_si256(_mm256_set1_epi8(15), c);
                    const uint8_t *p = q[0] + place;
                    part[0][h][0] = dot8(part[0][h][0], even, broadcast4(p));
                    part[1][h][0] = dot8(part[1][h][0], odd, broadcast4(p + 4));
                    part[2][h][0] = dot8(part[2][h][0], even, broadcast4(p + 8));
                    part[3][h][0] = dot8(part[3][h][0], odd, broadcast4(p + 12));
#endif
                } else if (mode == NEAR4) {
                    __m256i even = even_codes(c), odd = odd_codes(c);
                    BXN_UNROLL
                    for (unsigned t = 0; t < n; t++) {
                        const uint8_t *p = q[t] + place;
#if BXN_VNNI
                        part[0][h][t] = dot8(part[0][h][t], even, broadcast4(p));
                        part[0][h][t] = dot8(part[0][h][t], odd, broadcast4(p + 4));
                        part[1][h][t] = dot8(part[1][h][t], even, broadcast4(p + 8));
                        part[1][h][t] = dot8(part[1][h][t], odd, broadcast4(p + 12));
#else
                        part[0][h][t] = dot8_16(part[0][h][t], even, broadcast4(p));
                        part[0][h][t] = dot8_16(part[0][h][t], odd, broadcast4(p + 4));
                        part[1][h][t] = dot8_16(part[1][h][t], even, broadcast4(p + 8));
                        part[1][h][t] = dot8_16(part[1][h][t], odd, broadcast4(p + 12));
#endif
                    }
                } else if (mode == NEAR_TABLE) {
                    BXN_UNROLL
                    for (unsigned i = 0; i < 2; i++) {
                        __m256i index = i == 0 ? even_codes(c) : odd_codes(c);
                        __m256i low = _mm256_shuffle_epi8(table->low, index);
                        __m256i high = _mm256_shuffle_epi8(table->high, index);
                        /* Rows 0, 1, 4, 5 and 2, 3, 6, 7, two lanes each. */
                        __m256i first = _mm256_unpacklo_epi8(low, high);
                        __m256i second = _mm256_unpackhi_epi8(low, high);
                        BXN_UNROLL
                        for (unsigned t = 0; t < n; t++) {
                            __m256i x = broadcast8(q[t] + place + i * 8);
                            part[0][h][t] = dot16(part[0][h][t], first, x);
                            part[1][h][t] = dot16(part[1][h][t], second, x);
                        }
                    }
                } else if (mode == NEAR8) {
                    __m256i even = even_bytes(c), odd = odd_bytes(c);
                    BXN_UNROLL
                    for (unsigned t = 0; t < n; t++) {
                        sum[h][t] = dot16(sum[h][t], even, broadcast4(q[t] + place));
                        part[0][h][t] = dot16(part[0][h][t], odd, broadcast4(q[t] + place + 4));
                    }
                } else if (mode == FAST4) {
#if BXN_VNNI
                    __m256i even = even_codes(c), odd = _mm256_andnot_si256(_mm256_set1_epi8(15), c);
                    BXN_UNROLL
                    for (unsigned t = 0; t < n; t++) {
                        sum[h][t] = dot8(sum[h][t], even, broadcast4(q[t] + place));
                        part[0][h][t] = dot8(part[0][h][t], odd, broadcast4(q[t] + place + 4));
                    }
#else
                    __m256i even = even_codes(c), odd = odd_codes(c);
                    BXN_UNROLL
                    for (unsigned t = 0; t < n; t++) {
                        part[0][h][t] = dot8_16(part[0][h][t], even, broadcast4(q[t] + place));
                        part[0][h][t] = dot8_16(part[0][h][t], odd, broadcast4(q[t] + place + 4));
                    }
#endif
                } else if (mode == FAST_TABLE) {
                    BXN_UNROLL
                    for (unsigned i = 0; i < 2; i++) {
                        __m256i value = _mm256_shuffle_epi8(
                            table->low, i == 0 ? even_codes(c) : odd_codes(c));
#if BXN_VNNI
                        value = flip(value);
#else
                        __m256i magnitude = _mm256_abs_epi8(value);
#endif
                        BXN_UNROLL
                        for (unsigned t = 0; t < n; t++) {
                            __m256i x = broadcast4(q[t] + place + i * 4);
#if BXN_VNNI
                            if (i == 0)
                                sum[h][t] = dot8(sum[h][t], value, x);
                            else
                                part[0][h][t] = dot8(part[0][h][t], value, x);
#else
                            sum[h][t] = dot_signed8(sum[h][t], magnitude, value, x);
#endif
                        }
                    }
                } else {
#if BXN_VNNI
                    __m256i value = flip(c);
#else
                    __m256i magnitude = _mm256_abs_epi8(c);
#endif
                    BXN_UNROLL
                    for (unsigned t = 0; t < n; t++) {
                        __m256i x = broadcast4(q[t] + place);
#if BXN_VNNI
                        if ((v & 1) == 0)
                            sum[h][t] = dot8(sum[h][t], value, x);
                        else
                            part[0][h][t] = dot8(part[0][h][t], value, x);
#else
                        sum[h][t] = dot_signed8(sum[h][t], magnitude, c, x);
#endif
                    }
                }
            }
        }
#if !BXN_VNNI
        /* Eight products of codes to 15 with bytes to 128, two to a lane, are within 16 bits;
         * no more would be. */
        BXN_UNROLL
        for (unsigned i = 0; i < halves * n; i++) {
            __m256i *a = &part[0][i / n][i % n], *b = &part[1][i / n][i % n], *s = &sum[i / n][i % n];
            if (mode == NEAR4) {
                *s = dot16(*s, *a, _mm256_set1_epi16(256));
                *s = dot16(*s, *b, _mm256_set1_epi16(1));
            } else if (mode == FAST4) {
                *s = dot16(*s, *a, _mm256_set1_epi16(1));
            }
            if (mode == NEAR4 || mode == FAST4)
                *a = *b = _mm256_setzero_si256();
        }
#endif
    }
    BXN_UNROLL
    for (unsigned i = 0; i < halves * n; i++) {
        const unsigned h = i / n, t = i % n;
        __m256i more = part[0][h][t];
        if (mode == NEAR4 && !BXN_VNNI)
            continue;
        if (mode == NEAR4 && n == 1) {
            __m256i high = _mm256_add_epi32(more, _mm256_srai_epi32(part[1][h][t], 4));
            more = _mm256_add_epi32(part[2][h][t], _mm256_srai_epi32(part[3][h][t], 4));
            more = _mm256_add_epi32(more, _mm256_slli_epi32(high, 8));
        } else if (mode == NEAR4) {
            more = _mm256_add_epi32(_mm256_slli_epi32(more, 8), part[1][h][t]);
        } else if (mode == NEAR_TABLE) {
            more = _mm256_hadd_epi32(more, part[1][h][t]);
        } else if (mode == FAST4) {
            more = _mm256_srai_epi32(more, 4);
        }
        sum[h][t] = _mm256_add_epi32(sum[h][t], more);
    }
}

/* n tokens at one unit of one row group, which has `blocks` integer blocks; y is [n][16]. */
BXN_INLINE void few_unit(const bxn_packed *w, const lookup *table, const uint8_t *unit,
                         size_t ahead, const token *tokens, unsigned n, float *y, int mode,
                         unsigned blocks)
{
    const unsigned halves = n == 1 ? 2 : 1;
    const unsigned vectors = 4 * bits_of(mode) / blocks;
    const uint8_t *codes = unit + bxn_unit_scale_bytes(w);
    for (unsigned block = 0; block < blocks; block++, codes += (size_t)vectors * 64) {
        const uint8_t *q[TOKENS];
        _mm_prefetch((const char *)unit + block * 64 + ahead, _MM_HINT_T0);
        BXN_UNROLL
        for (unsigned t = 0; t < n; t++)
            q[t] = tokens[t].q + block * (piece_of(mode) / blocks);
        for (unsigned h = 0; h < 2; h += halves) {
            __m256i sum[2][TOKENS];
            BXN_UNROLL
            for (unsigned t = 0; t < n; t++)
                sum[0][t] = sum[1][t] = _mm256_set1_epi32(tokens[t].start[block]);
            dots(table, codes + h * 32, vectors, ahead, q, n, halves, sum, mode);
            BXN_UNROLL
            for (unsigned i = 0; i < halves; i++) {
                __m256 scale, bias;
                block_at(w, unit, block, h + i, &scale, &bias);
                BXN_UNROLL
                for (unsigned t = 0; t < n; t++) {
                    float *out = y + t * 16 + (h + i) * 8;
                    _mm256_storeu_ps(out, add_block(w, sum[i][t], scale, bias, &tokens[t], block,
                                                    _mm256_loadu_ps(out)));
                }
            }
        }
    }
}

/* n row groups `step` apart beginning at `group`, at most FEW tokens. */
BXN_INLINE void few_groups(const bxn_packed *w, const lookup *table, uint32_t group, uint32_t step,
                           unsigned n, const bxn_mm_args *args, int mode, unsigned blocks)
{
    _Alignas(32) float y[STREAMS][FEW * 16];
    _Alignas(32) uint8_t placed[FEW][2 * BXN_UNIT_COLS];
    token tokens[FEW];
    const size_t ahead = 2 * (size_t)w->unit_bytes;
    const uint32_t count = args->count;
    memset(y, 0, sizeof y);
    for (uint32_t u = 0; u < w->k_units; u++) {
        for (uint32_t m = 0; m < count; m++) {
            prepare(w, args, m, u, &tokens[m], mode);
            if (mode == NEAR4) {
                split(tokens[m].q, placed[m]);
                tokens[m].q = placed[m];
            }
        }
        for (unsigned s = 0; s < n; s++) {
            const uint8_t *unit =
                w->data + ((size_t)(group + s * step) * w->k_units + u) * w->unit_bytes;
            for (uint32_t m = 0; m < count; m += TOKENS) {
                const size_t fetch = m == 0 ? ahead : 0;
                const token *k = tokens + m;
                float *out = y[s] + (size_t)m * 16;
                if (count - m == 1)
                    few_unit(w, table, unit, fetch, k, 1, out, mode, blocks);
                else if (count - m == 2)
                    few_unit(w, table, unit, fetch, k, 2, out, mode, blocks);
                else if (count - m == 3)
                    few_unit(w, table, unit, fetch, k, 3, out, mode, blocks);
                else
                    few_unit(w, table, unit, fetch, k, 4, out, mode, blocks);
            }
        }
    }
    for (unsigned s = 0; s < n; s++)
        for (uint32_t m = 0; m < count; m++)
            store_rows(w, group + s * step, args->y + m * args->ldy, y[s] + (size_t)m * 16);
}

/* Four streams, then what is left. */
BXN_INLINE void few_range(const bxn_packed *w, const lookup *table, uint32_t begin, uint32_t end,
                          const bxn_mm_args *args, int mode, unsigned blocks)
{
    const uint32_t quarter = (end - begin) / STREAMS, rest = begin + quarter * STREAMS;
    for (uint32_t i = 0; i <= quarter; i++) {
        const int last = i == quarter;
        const uint32_t n = last ? end - rest : STREAMS;
        if (n > 0)
            few_groups(w, table, last ? rest : begin + i, last ? 1 : quarter, n, args, mode,
                       blocks);
    }
}

/* ---- many tokens ---------------------------------------------------------------------------- */

/* Products of bytes for these, of 16 bits for the others. */
BXN_INLINE int is_byte_panel(int mode)
{
    return BXN_VNNI ? is_fast(mode) : mode == FAST4;
}

/* A decoded unit of a row group: [k pairs or fours][16 rows]. */
typedef struct panel {
    _Alignas(32) uint8_t value[2 * BXN_UNIT_COLS * 16];
    _Alignas(32) float scale[4][16], bias[4][16]; /* by integer block */
} panel;

/* About 54 KiB of stack: the panels, and y of the chunk. */
typedef struct workspace {
    panel panels[GROUPS];
    _Alignas(32) int16_t wide[TILE][BXN_UNIT_COLS];
    _Alignas(32) float y[GROUPS][CHUNK * 16]; /* [token][16] */
} workspace;

/* Pairs of 16-bit values of 8 rows, from their low and high bytes (of 4 columns). */
BXN_INLINE void store_pairs(uint8_t *out, __m256i low, __m256i high)
{
    __m256 a = _mm256_castsi256_ps(_mm256_unpacklo_epi8(low, high));
    __m256 b = _mm256_castsi256_ps(_mm256_unpackhi_epi8(low, high));
    store(out, _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88)));
    store(out + 64, _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xDD)));
}

/* One vector of codes, in the order of the stored integers. */
BXN_INLINE uint8_t *decode(const bxn_packed *w, const lookup *table, __m256i c, uint8_t *out,
                           int mode)
{
    if (mode == NEAR4) {
        const __m256i center = _mm256_set1_epi16((short)w->center), mask = _mm256_set1_epi16(15);
        BXN_UNROLL
        for (int i = 0; i < 4; i++)
            store(out + i * 64, _mm256_sub_epi16(
                                    _mm256_and_si256(_mm256_srli_epi16(c, 4 * i), mask), center));
        return out + 256;
    }
    if (mode == NEAR8) {
        store(out, even_bytes(c));
        store(out + 64, odd_bytes(c));
        return out + 128;
    }
    if (mode == FAST8) {
        if (BXN_VNNI) {
            store(out, flip(c));
            return out + 64;
        }
        store_pairs(out, c, _mm256_cmpgt_epi8(_mm256_setzero_si256(), c));
        return out + 128;
    }
    __m256i even = even_codes(c), odd = odd_codes(c);
    if (mode == FAST_TABLE && BXN_VNNI) {
        even = flip(_mm256_shuffle_epi8(table->low, even));
        odd = flip(_mm256_shuffle_epi8(table->low, odd));
    }
    if (is_byte_panel(mode)) {
        store(out, even);
        store(out + 64, odd);
        return out + 128;
    }
    store_pairs(out, _mm256_shuffle_epi8(table->low, even), _mm256_shuffle_epi8(table->high, even));
    store_pairs(out + 128, _mm256_shuffle_epi8(table->low, odd),
                _mm256_shuffle_epi8(table->high, odd));
    return out + 256;
}

BXN_INLINE void decode_unit(const bxn_packed *w, const lookup *table, const uint8_t *unit,
                            panel *work, int mode)
{
    const unsigned vectors = 4 * bits_of(mode);
    const uint8_t *codes = unit + bxn_unit_scale_bytes(w);
    const size_t ahead = w->unit_bytes;
    for (unsigned block = 0; block < integer_blocks(w); block++) {
        _mm_prefetch((const char *)unit + ahead + block * 64, _MM_HINT_T0);
        BXN_UNROLL
        for (unsigned h = 0; h < 2; h++) {
            __m256 scale, bias;
            block_at(w, unit, block, h, &scale, &bias);
            _mm256_store_ps(work->scale[block] + h * 8, scale);
            _mm256_store_ps(work->bias[block] + h * 8, bias);
        }
    }
    uint8_t *out = work->value;
    for (unsigned v = 0; v < vectors; v++, codes += 64) {
        _mm_prefetch((const char *)codes + ahead, _MM_HINT_T0);
        decode(w, table, load(codes), out, mode);
        out = decode(w, table, load(codes + 32), out + 32, mode) - 32;
    }
}

/* n tokens and a panel: y [n][16] gets one unit more. */
BXN_INLINE void tile(const bxn_packed *w, const panel *work, const token *tokens,
                     const uint8_t *const rows[TILE], unsigned n, float *y, int mode)
{
    const unsigned blocks = integer_blocks(w);
    const int bytes = is_byte_panel(mode);
    const unsigned steps = (bytes ? BXN_UNIT_COLS / 4 : BXN_UNIT_COLS / 2) / blocks;
    const uint8_t *q[TILE], *value = work->value;
    BXN_UNROLL
    for (unsigned t = 0; t < n; t++)
        q[t] = rows[t];
    for (unsigned block = 0; block < blocks; block++) {
        __m256i sum[TILE][2];
        BXN_UNROLL
        for (unsigned t = 0; t < n; t++)
            sum[t][0] = sum[t][1] =
                bytes ? _mm256_set1_epi32(tokens[t].start[block]) : _mm256_setzero_si256();
        for (unsigned i = 0; i < steps; i += 8) {
#if !BXN_VNNI
            __m256i part[TILE][2];
            BXN_UNROLL
            for (unsigned t = 0; t < n; t++)
                part[t][0] = part[t][1] = _mm256_setzero_si256();
#endif
            BXN_UNROLL
            for (unsigned k = 0; k < 8; k++, value += 64) {
                __m256i v0 = load(value), v1 = load(value + 32);
                BXN_UNROLL
                for (unsigned t = 0; t < n; t++) {
                    __m256i x = broadcast4(q[t] + k * 4);
                    if (!bytes) {
                        sum[t][0] = dot16(sum[t][0], v0, x);
                        sum[t][1] = dot16(sum[t][1], v1, x);
                    } else {
#if BXN_VNNI
                        sum[t][0] = dot8(sum[t][0], v0, x);
                        sum[t][1] = dot8(sum[t][1], v1, x);
#else
                        part[t][0] = dot8_16(part[t][0], v0, x);
                        part[t][1] = dot8_16(part[t][1], v1, x);
#endif
                    }
                }
            }
            BXN_UNROLL
            for (unsigned t = 0; t < n; t++) {
                q[t] += 32;
#if !BXN_VNNI
                if (bytes) {
                    sum[t][0] = dot16(sum[t][0], part[t][0], _mm256_set1_epi16(1));
                    sum[t][1] = dot16(sum[t][1], part[t][1], _mm256_set1_epi16(1));
                }
#endif
            }
        }
        BXN_UNROLL
        for (unsigned h = 0; h < 2; h++) {
            __m256 scale = _mm256_load_ps(work->scale[block] + h * 8);
            __m256 bias = _mm256_load_ps(work->bias[block] + h * 8);
            BXN_UNROLL
            for (unsigned t = 0; t < n; t++) {
                float *out = y + t * 16 + h * 8;
                _mm256_store_ps(out, add_block(w, sum[t][h], scale, bias, &tokens[t], block,
                                               _mm256_load_ps(out)));
            }
        }
    }
}

/* n tokens of the chunk from `first` on with the panels of all groups. */
BXN_INLINE void tiles(const bxn_packed *w, const bxn_mm_args *args, workspace *work,
                      unsigned groups, uint32_t u, uint32_t chunk, uint32_t first, unsigned n,
                      int mode)
{
    token tokens[TILE];
    const uint8_t *rows[TILE];
    for (unsigned t = 0; t < n; t++) {
        prepare(w, args, chunk + first + t, u, &tokens[t], mode);
        rows[t] = tokens[t].q;
        if (is_fast(mode) && !is_byte_panel(mode)) {
            BXN_UNROLL
            for (unsigned i = 0; i < 8; i++) {
                const void *q = rows[t] + i * 16;
                store(work->wide[t] + i * 16, _mm256_cvtepi8_epi16(_mm_loadu_si128(q)));
            }
            rows[t] = (const uint8_t *)work->wide[t];
        }
    }
    for (unsigned g = 0; g < groups; g++)
        tile(w, &work->panels[g], tokens, rows, n, work->y[g] + (size_t)first * 16, mode);
}

/* `groups` row groups from `group` on, and `count` tokens from `chunk` on. */
BXN_INLINE void many_groups(const bxn_packed *w, const lookup *table, uint32_t group,
                            unsigned groups, const bxn_mm_args *args, uint32_t chunk,
                            uint32_t count, int mode)
{
    workspace work;
    for (unsigned g = 0; g < groups; g++)
        memset(work.y[g], 0, (size_t)count * 16 * sizeof(float));
    for (uint32_t u = 0; u < w->k_units; u++) {
        for (unsigned g = 0; g < groups; g++)
            decode_unit(w, table,
                        w->data + ((size_t)(group + g) * w->k_units + u) * w->unit_bytes,
                        &work.panels[g], mode);
        uint32_t m = 0;
        for (; m + TILE <= count; m += TILE)
            tiles(w, args, &work, groups, u, chunk, m, TILE, mode);
        for (; m + 2 <= count; m += 2)
            tiles(w, args, &work, groups, u, chunk, m, 2, mode);
        if (m < count)
            tiles(w, args, &work, groups, u, chunk, m, 1, mode);
    }
    for (unsigned g = 0; g < groups; g++)
        for (uint32_t m = 0; m < count; m++)
            store_rows(w, group + g, args->y + (chunk + m) * args->ldy,
                       work.y[g] + (size_t)m * 16);
}

BXN_INLINE void near_product(const bxn_packed *w, uint32_t begin, uint32_t end,
                             const bxn_mm_args *args, int mode)
{
    if (begin >= end || args->count == 0)
        return;
    const lookup table = make_lookup(w, mode);
    if (args->count <= FEW) {
        if (w->blocks == 4)
            few_range(w, &table, begin, end, args, mode, 4);
        else
            few_range(w, &table, begin, end, args, mode, 2);
        return;
    }
    for (uint32_t chunk = 0; chunk < args->count; chunk += CHUNK) {
        uint32_t left = args->count - chunk, count = left < CHUNK ? left : CHUNK;
        for (uint32_t group = begin; group < end; group += GROUPS)
            many_groups(w, &table, group, end - group < GROUPS ? end - group : GROUPS, args, chunk,
                        count, mode);
    }
}

/* ---- the entries ------------------------------------------------------------------------------ */

#define BXN_DEFINE_NEAR(tier)                                                                      \
    void bxn_mm_near4_##tier(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,        \
                             const bxn_mm_args *args)                                              \
    {                                                                                              \
        if (bxn_packed_has_table(w))                                                               \
            near_product(w, group_begin, group_end, args, NEAR_TABLE);                             \
        else                                                                                       \
            near_product(w, group_begin, group_end, args, NEAR4);                                  \
    }                                                                                              \
    void bxn_mm_near8_##tier(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,        \
                             const bxn_mm_args *args)                                              \
    {                                                                                              \
        near_product(w, group_begin, group_end, args, NEAR8);                                      \
    }                                                                                              \
    void bxn_mm_fast4_##tier(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,        \
                             const bxn_mm_args *args)                                              \
    {                                                                                              \
        if (bxn_packed_has_table(w))                                                               \
            near_product(w, group_begin, group_end, args, FAST_TABLE);                             \
        else                                                                                       \
            near_product(w, group_begin, group_end, args, FAST4);                                  \
    }                                                                                              \
    void bxn_mm_fast8_##tier(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,        \
                             const bxn_mm_args *args)                                              \
    {                                                                                              \
        near_product(w, group_begin, group_end, args, FAST8);                                      \
    }                                                                                              \
    void bxn_quant_x_##tier(bxn_xq_kind kind, const float *x, size_t columns, void *xq,            \
                            float *xscale)                                                         \
    {                                                                                              \
        quantise(kind, x, columns, xq, xscale);                                                    \
    }

#endif
