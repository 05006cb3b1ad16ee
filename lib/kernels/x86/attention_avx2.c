/* SPDX-License-Identifier: Apache-2.0 */
/* attention_avx2.c - windowed attention over cached pages and the codes of cached rows, for
 * 8 lanes. Called through the kernel table by the attention op. What is computed stands in
 * attention_body.h; here are its vectors. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/transpose_avx2.h"
#include "kernels/x86/vec_avx2.h"

#define LANES 8
#define SCORE_KEYS 1
#define MIX_QUERIES 2
#define MM_VECTORS 2

typedef __m256 vec;

BXN_INLINE vec v_zero(void)
{
    return _mm256_setzero_ps();
}
BXN_INLINE vec v_set1(float x)
{
    return _mm256_set1_ps(x);
}
BXN_INLINE vec v_load(const float *x)
{
    return _mm256_loadu_ps(x);
}
BXN_INLINE void v_store(float *y, vec v)
{
    _mm256_storeu_ps(y, v);
}
BXN_INLINE vec v_add(vec a, vec b)
{
    return _mm256_add_ps(a, b);
}
BXN_INLINE vec v_sub(vec a, vec b)
{
    return _mm256_sub_ps(a, b);
}
BXN_INLINE vec v_mul(vec a, vec b)
{
    return _mm256_mul_ps(a, b);
}
BXN_INLINE vec v_div(vec a, vec b)
{
    return _mm256_div_ps(a, b);
}
BXN_INLINE vec v_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}
BXN_INLINE vec v_max(vec a, vec b)
{
    return _mm256_max_ps(a, b);
}
BXN_INLINE vec v_abs(vec a)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
BXN_INLINE vec v_round(vec a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
BXN_INLINE vec v_exp2(vec t)
{
    return exp2_nonpositive(t);
}
BXN_INLINE float v_tree(const vec *v)
{
    return tree_sum(v[0], v[1]);
}
BXN_INLINE void v_store_first(float *y, size_t n, vec v)
{
    store_first(y, n, v);
}
BXN_INLINE void v_prefetch(const uint8_t *at)
{
    _mm_prefetch((const char *)at, _MM_HINT_T1);
}

BXN_INLINE vec v_greater(vec a, vec b)
{
    return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ), _mm256_set1_ps(1.0f));
}

BXN_INLINE vec v_load_f16(const uint8_t *at)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)at));
}

BXN_INLINE vec v_load_i8(const uint8_t *at)
{
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)at)));
}

/* The look-up takes three bits, the fourth is the sign. */
BXN_INLINE vec v_load_q4(const uint8_t *at, unsigned shift)
{
    static const float level[8] = BXN_KV_LEVELS;
    __m256i words = _mm256_loadu_si256((const __m256i *)(const void *)at);
    __m256i code = _mm256_srlv_epi32(words, _mm256_set1_epi32((int)shift));
    __m256 size = _mm256_permutevar8x32_ps(_mm256_loadu_ps(level), code);
    __m256i sign = _mm256_slli_epi32(_mm256_srli_epi32(code, 3), 31);
    return _mm256_xor_ps(size, _mm256_castsi256_ps(sign));
}

#define TURN_COLUMNS 4
BXN_INLINE void v_turn(const float *in, size_t ld, vec columns[4])
{
    transpose_8x4(in, ld, columns);
}

/* Keeps compilers from making a load an operand of every product that uses it. */
BXN_INLINE vec v_held(vec v)
{
    __asm__("" : "+x"(v));
    return v;
}

#include "kernels/attention_body.h"
#include "kernels/attention_train_body.h"

BXN_ATTENTION_ENTRIES(avx2)
BXN_ATTENTION_TRAIN_ENTRIES(avx2)
#endif
