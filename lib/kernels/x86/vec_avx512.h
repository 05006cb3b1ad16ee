/* SPDX-License-Identifier: Apache-2.0 */
/* vec_avx512.h - vector mathematics shared by the AVX-512 files, which compile it
 * themselves. Largest relative errors found: exp2 1.6e-7, exp 0.8e-7, sigmoid 1.8e-7,
 * softplus 2.3e-7. NaN goes through; exponents that are too low give 0; exp(0) is 1 to the
 * bit. The coefficients are minimax fits of the relative error with p(0) = 1 held. */
#ifndef BXN_VEC_AVX512_H
#define BXN_VEC_AVX512_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__clang__)
#define BXN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define BXN_UNROLL _Pragma("GCC unroll 16")
#endif
#define BXN_INLINE static inline __attribute__((always_inline))

/* Lanes below n, for n < 16. */
BXN_INLINE __mmask16 tail_mask(size_t n)
{
    return (__mmask16)((1u << n) - 1);
}

/* Lanes i and i + 8, then + 4, + 2, + 1. */
BXN_INLINE float tree_sum(__m512 v)
{
    __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}

/* 2^t for t <= 0: split at the nearest integer, polynomial of degree 5 with p(0) = 1. */
BXN_INLINE __m512 exp2_nonpositive(__m512 t)
{
    __m512 f = _mm512_reduce_ps(t, 8); /* t - nearest; 0 for an infinity */
    __m512 p = _mm512_set1_ps(0x1.5bda58p-10f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.3ce8aep-7f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.c6b6d8p-5f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.ebf9c2p-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.62e42ap-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, _mm512_sub_ps(t, f));
}

/* e^v for v <= 0: split at the nearest multiple of ln 2, polynomial of degree 6. */
BXN_INLINE __m512 exp_nonpositive(__m512 v)
{
    v = _mm512_max_ps(_mm512_set1_ps(-200.0f), v); /* the second operand when one is NaN */
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(v, _mm512_set1_ps(0x1.715476p+0f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e4p-1f), v);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.7f7d1cp-20f), r);
    __m512 p = _mm512_set1_ps(0x1.6a3d08p-10f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.123856p-7f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.5558bep-5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.555494p-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.fffffcp-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

BXN_INLINE __m512 sigmoid(__m512 v)
{
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 e = exp_nonpositive(_mm512_or_ps(v, _mm512_set1_ps(-0.0f)));
    __mmask16 negative = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_div_ps(_mm512_mask_blend_ps(negative, one, e), _mm512_add_ps(one, e));
}

/* log(1 + e^v) = max(v, 0) + log1p(e^-|v|), log1p(u) = 2 atanh(u / (u + 2)). */
BXN_INLINE __m512 softplus(__m512 v)
{
    __m512 u = exp_nonpositive(_mm512_or_ps(v, _mm512_set1_ps(-0.0f)));
    __m512 s = _mm512_div_ps(u, _mm512_add_ps(u, _mm512_set1_ps(2.0f)));
    __m512 z = _mm512_mul_ps(s, s);
    __m512 p = _mm512_set1_ps(0x1.f090acp-4f);
    p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(0x1.b72ad8p-4f));
    p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(0x1.250514p-3f));
    p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(0x1.9996d8p-3f));
    p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(0x1.555558p-2f));
    s = _mm512_add_ps(s, s);
    __m512 log1p = _mm512_fmadd_ps(s, _mm512_mul_ps(p, z), s);
    return _mm512_add_ps(_mm512_max_ps(_mm512_setzero_ps(), v), log1p);
}

#endif
