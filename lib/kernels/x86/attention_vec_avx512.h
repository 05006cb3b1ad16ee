/* SPDX-License-Identifier: Apache-2.0 */
/* attention_vec_avx512.h - the vectors of attention_body.h, of 16 lanes. */
#ifndef BXN_ATTENTION_VEC_AVX512_H
#define BXN_ATTENTION_VEC_AVX512_H

#include "kernels/kernels.h"
#include "kernels/x86/transpose_avx512.h"
#include "kernels/x86/vec_avx512.h"

#define LANES 16
#define SCORE_KEYS 4
#define MIX_QUERIES 4
#define MM_VECTORS 5

typedef __m512 vec;

BXN_INLINE vec v_zero(void)
{
    return _mm512_setzero_ps();
}
BXN_INLINE vec v_set1(float x)
{
    return _mm512_set1_ps(x);
}
BXN_INLINE vec v_load(const float *x)
{
    return _mm512_loadu_ps(x);
}
BXN_INLINE void v_store(float *y, vec v)
{
    _mm512_storeu_ps(y, v);
}
BXN_INLINE vec v_add(vec a, vec b)
{
    return _mm512_add_ps(a, b);
}
BXN_INLINE vec v_sub(vec a, vec b)
{
    return _mm512_sub_ps(a, b);
}
BXN_INLINE vec v_mul(vec a, vec b)
{
    return _mm512_mul_ps(a, b);
}
BXN_INLINE vec v_div(vec a, vec b)
{
    return _mm512_div_ps(a, b);
}
BXN_INLINE vec v_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}
BXN_INLINE vec v_max(vec a, vec b)
{
    return _mm512_max_ps(a, b);
}
BXN_INLINE vec v_abs(vec a)
{
    return _mm512_abs_ps(a);
}
BXN_INLINE vec v_round(vec a)
{
    return _mm512_roundscale_ps(a, 8);
}
BXN_INLINE vec v_exp2(vec t)
{
    return exp2_nonpositive(t);
}
BXN_INLINE float v_tree(const vec *v)
{
    return tree_sum(v[0]);
}

BXN_INLINE vec v_greater(vec a, vec b)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), _mm512_set1_ps(1.0f));
}

BXN_INLINE vec v_load_f16(const uint8_t *at)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)at));
}

BXN_INLINE vec v_load_i8(const uint8_t *at)
{
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)at)));
}

BXN_INLINE vec v_load_q4(const uint8_t *at, unsigned shift)
{
    static const float level[8] = BXN_KV_LEVELS;
    const __m256 low = _mm256_loadu_ps(level);
    const __m512 table = _mm512_insertf32x8(_mm512_castps256_ps512(low),
                                            _mm256_xor_ps(low, _mm256_set1_ps(-0.0f)), 1);
    __m512i words = _mm512_loadu_si512(at);
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(words, _mm512_set1_epi32((int)shift)), table);
}

BXN_INLINE void v_store_first(float *y, size_t n, vec v)
{
    _mm512_mask_storeu_ps(y, tail_mask(n), v);
}

BXN_INLINE void v_prefetch(const uint8_t *at)
{
    _mm_prefetch((const char *)at, _MM_HINT_T1);
}

#define TURN_COLUMNS 4
BXN_INLINE void v_turn(const float *in, size_t ld, vec columns[4])
{
    transpose_16x4(in, ld, columns);
}

/* Keeps compilers from making a load an operand of every product that uses it. */
BXN_INLINE vec v_held(vec v)
{
    __asm__("" : "+v"(v));
    return v;
}

#endif
