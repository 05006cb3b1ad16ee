/* SPDX-License-Identifier: Apache-2.0 */
/* vec_avx2.h - vector mathematics shared by the AVX2 files, which compile it themselves.
 * Largest relative errors found: exp2 1.6e-7, exp 0.8e-7, sigmoid 1.8e-7, softplus 2.3e-7.
 * NaN goes through; exponents that are too low give 0; exp(0) is 1 to the bit. The
 * coefficients are minimax fits of the relative error with p(0) = 1 held. 16-lane
 * quantities are a low and a high half. */
#ifndef BXN_VEC_AVX2_H
#define BXN_VEC_AVX2_H

#include <immintrin.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__clang__)
#define BXN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define BXN_UNROLL _Pragma("GCC unroll 16")
#endif
#define BXN_INLINE static inline __attribute__((always_inline))

/* Lanes below n (at most 8) as a mask of whole lanes. */
BXN_INLINE __m256i tail_mask(size_t n)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n < 8 ? (int)n : 8), lane);
}

/* The first n of 8 values, zeros after them; not a masked load, which is slow on some
 * processors and where emulated reads all eight. */
BXN_INLINE __m256 load_first(const float *x, size_t n)
{
    if (n >= 8)
        return _mm256_loadu_ps(x);
    float part[8] = {0};
    memcpy(part, x, n * sizeof *x);
    return _mm256_loadu_ps(part);
}

BXN_INLINE void store_first(float *y, size_t n, __m256 v)
{
    if (n >= 8) {
        _mm256_storeu_ps(y, v);
    } else {
        float part[8];
        _mm256_storeu_ps(part, v);
        memcpy(y, part, n * sizeof *y);
    }
}

/* Of 16 lanes i and i + 8, then + 4, + 2, + 1. */
BXN_INLINE float tree_sum(__m256 low, __m256 high)
{
    __m256 s8 = _mm256_add_ps(low, high);
    __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}

/* p * 2^n for whole n >= -127; 2^-127 counts as 0. */
BXN_INLINE __m256 times_power(__m256 p, __m256 n)
{
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

/* 2^t for t <= 0: split at the nearest integer, polynomial of degree 5 with p(0) = 1. */
BXN_INLINE __m256 exp2_nonpositive(__m256 t)
{
    t = _mm256_max_ps(_mm256_set1_ps(-127.0f), t); /* the second operand when one is NaN */
    __m256 n = _mm256_round_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 f = _mm256_sub_ps(t, n);
    __m256 p = _mm256_set1_ps(0x1.5bda58p-10f);
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0x1.3ce8aep-7f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0x1.c6b6d8p-5f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0x1.ebf9c2p-3f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0x1.62e42ap-1f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
    return times_power(p, n);
}

/* 2^(dt * a2): split at the nearest integer n, which the low bits of 1.5 * 2^23 + n show, and a
 * polynomial of degree 5 with p(0) = 1; the product is not rounded. Where no exponent is below
 * -125, n is added to the exponent of p; deep: n stops at -127, which counts as 0. The bits
 * are the same where both are right. */
BXN_INLINE __m256 decay_of(__m256 dt, __m256 a2, bool deep)
{
    const __m256 magic = _mm256_set1_ps(12582912.0f);
    __m256 z = _mm256_fmadd_ps(dt, a2, magic);
    if (deep) /* the second operand when one is NaN */
        z = _mm256_max_ps(_mm256_set1_ps(12582912.0f - 127.0f), z);
    __m256 f = _mm256_fmsub_ps(dt, a2, _mm256_sub_ps(z, magic));
    if (deep)
        f = _mm256_max_ps(_mm256_set1_ps(-0.5f), f);
    __m256 p = _mm256_set1_ps(0x1.5bda58p-10f);
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0x1.3ce8aep-7f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0x1.c6b6d8p-5f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0x1.ebf9c2p-3f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0x1.62e42ap-1f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
    __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(z), 23);
    if (!deep)
        return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
    exponent = _mm256_add_epi32(exponent, _mm256_set1_epi32(127 << 23));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(exponent));
}

/* e^v for v <= 0: split at the nearest multiple of ln 2, polynomial of degree 6. */
BXN_INLINE __m256 exp_nonpositive(__m256 v)
{
    v = _mm256_max_ps(_mm256_set1_ps(-88.0f), v); /* there n is -127 and the result 0 */
    __m256 n = _mm256_round_ps(_mm256_mul_ps(v, _mm256_set1_ps(0x1.715476p+0f)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e4p-1f), v);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
    __m256 p = _mm256_set1_ps(0x1.6a3d08p-10f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.123856p-7f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.5558bep-5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.555494p-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.fffffcp-2f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    return times_power(p, n);
}

BXN_INLINE __m256 sigmoid(__m256 v)
{
    const __m256 one = _mm256_set1_ps(1.0f);
    __m256 e = exp_nonpositive(_mm256_or_ps(v, _mm256_set1_ps(-0.0f)));
    __m256 negative = _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_LT_OQ);
    return _mm256_div_ps(_mm256_blendv_ps(one, e, negative), _mm256_add_ps(one, e));
}

/* log(1 + e^v) = max(v, 0) + log1p(e^-|v|), log1p(u) = 2 atanh(u / (u + 2)). */
BXN_INLINE __m256 softplus(__m256 v)
{
    __m256 u = exp_nonpositive(_mm256_or_ps(v, _mm256_set1_ps(-0.0f)));
    __m256 s = _mm256_div_ps(u, _mm256_add_ps(u, _mm256_set1_ps(2.0f)));
    __m256 z = _mm256_mul_ps(s, s);
    __m256 p = _mm256_set1_ps(0x1.f090acp-4f);
    p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(0x1.b72ad8p-4f));
    p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(0x1.250514p-3f));
    p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(0x1.9996d8p-3f));
    p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(0x1.555558p-2f));
    s = _mm256_add_ps(s, s);
    __m256 log1p = _mm256_fmadd_ps(s, _mm256_mul_ps(p, z), s);
    return _mm256_add_ps(_mm256_max_ps(_mm256_setzero_ps(), v), log1p);
}

#endif
