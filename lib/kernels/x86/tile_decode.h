/* SPDX-License-Identifier: Apache-2.0 */
/* tile_decode.h - packed weights and rows of activations to bf16 tiles, with AVX-512 and its
 * BF16 instructions, which round to nearest even and take denormals for zero. For files that
 * include tile_body.h. */
#ifndef BXN_TILE_DECODE_H
#define BXN_TILE_DECODE_H

#include "kernels/kernels.h"
#include "kernels/x86/vec_avx512.h"

BXN_INLINE __m512 tile_scales(const bxn_packed *w, const uint8_t *unit, uint32_t block)
{
    if (w->scale_f32)
        return _mm512_loadu_ps((const float *)(const void *)(unit + (size_t)block * 64));
    return _mm512_cvtph_ps(
        _mm256_loadu_si256((const __m256i *)(const void *)(unit + (size_t)block * 32)));
}

/* Value i of each lane's 32 / bits codes. */
BXN_INLINE __m512 tile_value(__m512i codes, unsigned i, unsigned bits, __m512 table)
{
    if (bits == 4)
        return _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4 * i), table);
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(codes, 24 - 8 * i), 24));
}

/* Words of two vectors of 16 alternately: a0 b0 a1 b1 ... */
BXN_INLINE __m512i tile_interleave(__m512 a, __m512 b, __m512i order)
{
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(b, a));
}

BXN_INLINE __m512i tile_order(void)
{
    static const _Alignas(64) uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                    8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_load_si512(order);
}

BXN_INLINE void decode_part(const bxn_packed *w, const uint8_t *unit, unsigned bits, int has_bias, unsigned part,
                            uint16_t *out)
{
    const __m512 table = _mm512_loadu_ps(w->table);
    const __m512i order = tile_order();
    const uint32_t block = part * w->blocks / 16;
    const __m512 scale = tile_scales(w, unit, block);
    __m512 bias = _mm512_setzero_ps();
    if (has_bias)
        bias = _mm512_fmadd_ps(_mm512_set1_ps(w->center), scale, tile_scales(w, unit, block + w->blocks));
    /* Inputs i and i + 4 are in one lane of 4-bit codes, in two of 8 bits. The unit after the next is
     * fetched: groups are streams. */
    const uint8_t *codes = unit + bxn_unit_scale_bytes(w) + (size_t)part * (bits == 4 ? 64 : 128);
    const __m512i low = _mm512_loadu_si512(codes), high = bits == 8 ? _mm512_loadu_si512(codes + 64) : low;
    const size_t ahead = 2 * (size_t)w->unit_bytes;
    _mm_prefetch((const char *)codes + ahead, _MM_HINT_T0);
    if (bits == 8)
        _mm_prefetch((const char *)codes + 64 + ahead, _MM_HINT_T0);
    if (part < 2)
        _mm_prefetch((const char *)unit + ahead + part * 64, _MM_HINT_T0);
    BXN_UNROLL
    for (unsigned i = 0; i < 4; i++) {
        __m512 a = tile_value(low, i, bits, table);
        __m512 b = tile_value(high, bits == 4 ? i + 4 : i, bits, table);
        if (has_bias) {
            a = _mm512_fmadd_ps(scale, a, bias);
            b = _mm512_fmadd_ps(scale, b, bias);
        } else {
            a = _mm512_mul_ps(scale, a);
            b = _mm512_mul_ps(scale, b);
        }
        _mm512_store_si512(out + (size_t)i * 32, tile_interleave(a, b, order));
    }
}

/* 0 4 1 5 2 6 3 7 of every 8. */
BXN_INLINE void convert_row(const float *x, size_t columns, uint16_t *tiles, uint32_t row)
{
    static const _Alignas(64) uint16_t order[32] = {0,  4,  1,  5,  2,  6,  3,  7,  8,  12, 9,  13, 10, 14, 11, 15,
                                                    16, 20, 17, 21, 18, 22, 19, 23, 24, 28, 25, 29, 26, 30, 27, 31};
    const __m512i pairs = _mm512_load_si512(order);
    for (size_t k = 0; k < columns; k += 32)
        _mm512_store_si512(tiles + k / 32 * 512 + row * (size_t)32,
                           _mm512_permutexvar_epi16(
                               pairs, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + k + 16),
                                                                   _mm512_loadu_ps(x + k))));
}

#endif
