/* SPDX-License-Identifier: Apache-2.0 */
/* quant_256.h - integers from activations in 256-bit vectors, stored in the order that
 * near_256.h describes. Compiled by near_avx2.c and near_avxvnni.c through it. */
#ifndef BXN_QUANT_256_H
#define BXN_QUANT_256_H

#include "kernels/kernels_isa.h"
#include "kernels/x86/vec_avx2.h"

BXN_INLINE __m256i load(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

BXN_INLINE void store(void *p, __m256i v)
{
    _mm256_storeu_si256((__m256i *)p, v);
}

/* In which place of 8 stored columns (16-bit kinds) or 16 (bytes) which column stands; the
 * indices are of bytes. */
BXN_INLINE __m256i storage_order(bxn_xq_kind kind)
{
    __m128i order;
    switch (kind) {
    case BXN_XQ_NEAR4:
        order = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
        break;
    case BXN_XQ_NEAR_TABLE:
        order = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
        break;
    case BXN_XQ_NEAR8:
        order = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
        break;
    case BXN_XQ_FAST8:
        order = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        break;
    default:
        order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
        break;
    }
    return _mm256_broadcastsi128_si256(order);
}

BXN_INLINE int32_t sum_lanes(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_unpackhi_epi64(s, s));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 1)));
}

/* The largest magnitude as bits, which order as the magnitudes do; infinity and NaN above. */
BXN_INLINE uint32_t largest_bits(const float *x)
{
    __m256i most = _mm256_setzero_si256();
    BXN_UNROLL
    for (int i = 0; i < 8; i++)
        most = _mm256_max_epi32(most, _mm256_and_si256(load(x + i * 8),
                                                       _mm256_set1_epi32(0x7FFFFFFF)));
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    m = _mm_max_epi32(m, _mm_unpackhi_epi64(m, m));
    return (uint32_t)_mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 1)));
}

/* 16 columns as int16 in order. */
BXN_INLINE __m256i quantise16(const float *x, __m256 factor, __m256 limit)
{
    const __m256 low = _mm256_sub_ps(_mm256_setzero_ps(), limit);
    __m256i q[2];
    BXN_UNROLL
    for (int i = 0; i < 2; i++) {
        __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i * 8), factor);
        q[i] = _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(v, limit), low));
    }
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(q[0], q[1]), 0xD8);
}

BXN_INLINE void quantise(bxn_xq_kind kind, const float *x, size_t columns, void *xq, float *xscale)
{
    const float limit = kind >= BXN_XQ_FAST4          ? 127.0f
                        : kind == BXN_XQ_NEAR_TABLE ? 4095.0f
                                                      : 32512.0f;
    const float unit = kind == BXN_XQ_NEAR_TABLE   ? 8191.0f
                       : kind == BXN_XQ_FAST_TABLE ? 127.0f
                                                     : 1.0f;
    const int fast = kind >= BXN_XQ_FAST4;
    const __m256i order = storage_order(kind), ones = _mm256_set1_epi16(1);
    uint8_t *out = xq, *sums = out + columns * (fast ? 1 : 2);
    for (size_t k = 0; k < columns; k += BXN_XQ_BLOCK, xscale++) {
        uint32_t bits = largest_bits(x + k);
        float most;
        memcpy(&most, &bits, sizeof most);
        if (bits >= 0x7F800000u || most < 1e-30f) {
            const uint32_t nan = 0x7FC00000u;
            *xscale = 0;
            if (bits >= 0x7F800000u)
                memcpy(xscale, &nan, sizeof nan);
            memset(out, 0, fast ? 64 : 128);
            memset(sums, 0, 8);
            out += fast ? 64 : 128;
            sums += 8;
            continue;
        }
        *xscale = most / limit / unit;
        const __m256 factor = _mm256_set1_ps(limit / most), most_q = _mm256_set1_ps(limit);
        for (size_t i = 0; i < BXN_XQ_BLOCK; i += 32, sums += 4) {
            __m256i a = quantise16(x + k + i, factor, most_q);
            __m256i b = quantise16(x + k + i + 16, factor, most_q);
            __m256i both = _mm256_add_epi32(_mm256_madd_epi16(a, ones), _mm256_madd_epi16(b, ones));
            int32_t sum = sum_lanes(both);
            memcpy(sums, &sum, sizeof sum);
            if (fast) {
                __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(a, b), 0xD8);
                store(out, _mm256_shuffle_epi8(bytes, order));
                out += 32;
            } else {
                store(out, _mm256_shuffle_epi8(a, order));
                store(out + 32, _mm256_shuffle_epi8(b, order));
                out += 64;
            }
        }
    }
}

#endif
