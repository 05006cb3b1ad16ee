/* SPDX-License-Identifier: Apache-2.0 */
/* vec_avx512.h - vector mathematics shared by the AVX-512 files, which compile it
 * themselves. Largest relative errors found: exp2 1.7e-7, exp 0.8e-7, SiLU 2.6e-7,
 * softplus 2.6e-7. NaN goes through; exponents that are too low give 0; exp(0) is 1 to the
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

/* Lanes below n, for n <= 16. */
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

/* 2^t for t <= 0: split at the integer below, polynomial of degree 5 on [0, 1] with p(0) = 1 and
 * p(1) = 2 held, so that it is exact at every integer and has no step there. scalef rounds
 * its exponent down itself, and gives 0 far below. */
BXN_INLINE __m512 exp2_nonpositive(__m512 t)
{
    __m512 f = _mm512_reduce_ps(t, 9); /* t - floor(t); 0 for an infinity */
    __m512 p = _mm512_set1_ps(0x1.eca6fp-10f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.269df4p-7f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.c94438p-5f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.ebd8a8p-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.62e4c8p-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, t);
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

/* e^v for v >= -200: the same polynomial; the rounding of the product with log2(e) and the
 * digits that the constant lacks are put back. Overflows to infinity; infinity gives NaN. */
BXN_INLINE __m512 exp_above(__m512 v)
{
    const __m512 log2e = _mm512_set1_ps(0x1.715476p+0f);
    __m512 t = _mm512_mul_ps(v, log2e);
    __m512 rest = _mm512_fmsub_ps(v, log2e, t);
    rest = _mm512_fmadd_ps(v, _mm512_set1_ps(0x1.4ae0cp-26f), rest);
    __m512 f = _mm512_add_ps(_mm512_reduce_ps(t, 9), rest);
    __m512 p = _mm512_set1_ps(0x1.eca6fp-10f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.269df4p-7f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.c94438p-5f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.ebd8a8p-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.62e4c8p-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, t);
}

/* v / (1 + e^-v); NaN for minus infinity, as plain C has it. */
BXN_INLINE __m512 silu(__m512 v)
{
    __m512 limited = _mm512_min_ps(_mm512_set1_ps(200.0f), v); /* second operand when NaN */
    __m512 e = exp_above(_mm512_xor_ps(limited, _mm512_set1_ps(-0.0f)));
    return _mm512_div_ps(v, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

/* log(1 + e^v) = max(v, 0) + log1p(u), u = e^-|v|, log1p(u) = u * polynomial of degree 8. */
BXN_INLINE __m512 softplus(__m512 v)
{
    __m512 low = _mm512_or_ps(v, _mm512_set1_ps(-0.0f));
    __m512 u = exp_above(_mm512_max_ps(_mm512_set1_ps(-200.0f), low));
    __m512 p = _mm512_set1_ps(0x1.5f96d4p-8f);
    p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(-0x1.ec9916p-6f));
    p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(0x1.446bfap-4f));
    p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(-0x1.19ad8ap-3f));
    p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(0x1.88445p-3f));
    p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(-0x1.fd132p-3f));
    p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(0x1.5535dap-2f));
    p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(-0x1.ffff14p-2f));
    p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(1.0f));
    return _mm512_fmadd_ps(p, u, _mm512_max_ps(_mm512_setzero_ps(), v));
}

#endif
