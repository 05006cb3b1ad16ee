/* SPDX-License-Identifier: Apache-2.0 */
/* elementwise_avx512.c - norms, sums, additions, gates and conversions. Called through the
 * kernel table by most ops; the last vector is masked, so exactly n elements are touched. */
#include <math.h>

#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/vec_avx512.h"

/* body(i, mask) for every vector of n elements; the mask of a whole one is a constant. */
#define FOR_VECTORS(body)                                                                          \
    do {                                                                                           \
        size_t i = 0;                                                                              \
        for (; i + 16 <= n; i += 16)                                                               \
            body(i, (__mmask16)0xFFFF);                                                            \
        if (i < n)                                                                                 \
            body(i, tail_mask(n - i));                                                             \
    } while (0)

void bxn_block_sums_avx512(const float *x, size_t count, float *out)
{
    for (size_t j = 0; j < count; j++)
        out[j] =
            tree_sum(_mm512_add_ps(_mm512_loadu_ps(x + 32 * j), _mm512_loadu_ps(x + 32 * j + 16)));
}

void bxn_rmsnorm_avx512(const float *x, const float *w, size_t n, float eps, float *y)
{
    __m512 sum = _mm512_setzero_ps();
#define ADD_SQUARES(i, mask)                                                                       \
    do {                                                                                           \
        __m512 v = _mm512_maskz_loadu_ps(mask, x + (i));                                           \
        sum = _mm512_fmadd_ps(v, v, sum);                                                          \
    } while (0)
    FOR_VECTORS(ADD_SQUARES);
    __m512 inverse = _mm512_set1_ps(1.0f / sqrtf(tree_sum(sum) / (float)n + eps));
#define SCALE(i, mask)                                                                             \
    do {                                                                                           \
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + (i)), inverse);                   \
        v = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, w + (i)));                                \
        _mm512_mask_storeu_ps(y + (i), mask, v);                                                   \
    } while (0)
    FOR_VECTORS(SCALE);
}

void bxn_add_avx512(float *y, const float *x, size_t n)
{
#define ADD(i, mask)                                                                               \
    _mm512_mask_storeu_ps(                                                                         \
        y + (i), mask,                                                                             \
        _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y + (i)), _mm512_maskz_loadu_ps(mask, x + (i))))
    FOR_VECTORS(ADD);
}

void bxn_scale_add_avx512(float *y, const float *x, float s, size_t n)
{
    const __m512 scale = _mm512_set1_ps(s);
#define SCALE_ADD(i, mask)                                                                         \
    _mm512_mask_storeu_ps(y + (i), mask,                                                           \
                          _mm512_fmadd_ps(scale, _mm512_maskz_loadu_ps(mask, x + (i)),             \
                                          _mm512_maskz_loadu_ps(mask, y + (i))))
    FOR_VECTORS(SCALE_ADD);
}

void bxn_silu_mul_avx512(float *a, const float *b, size_t n)
{
#define SILU_MUL(i, mask)                                                                          \
    _mm512_mask_storeu_ps(a + (i), mask,                                                           \
                          _mm512_mul_ps(silu(_mm512_maskz_loadu_ps(mask, a + (i))),                \
                                        _mm512_maskz_loadu_ps(mask, b + (i))))
    FOR_VECTORS(SILU_MUL);
}

float bxn_silu_mul_backward_avx512(const float *a, const float *b, float *g, float s, float *db, size_t n)
{
    const __m512 one = _mm512_set1_ps(1.0f), scale = _mm512_set1_ps(s);
    __m512 sum = _mm512_setzero_ps();
#define SILU_MUL_BACKWARD(i, mask)                                                                 \
    do {                                                                                           \
        __m512 v = _mm512_maskz_loadu_ps(mask, a + (i)), up = _mm512_maskz_loadu_ps(mask, b + (i)); \
        __m512 dh = _mm512_maskz_loadu_ps(mask, g + (i)), scaled = _mm512_mul_ps(scale, dh);       \
        __m512 e = exp_nonpositive(_mm512_or_ps(v, _mm512_set1_ps(-0.0f)));                        \
        __m512 inverse = _mm512_div_ps(one, _mm512_add_ps(one, e)), far = _mm512_mul_ps(e, inverse); \
        __mmask16 negative = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ);               \
        __m512 gate = _mm512_mask_blend_ps(negative, inverse, far);                                \
        __m512 rest = _mm512_mask_blend_ps(negative, far, inverse), silu_v = _mm512_mul_ps(v, gate); \
        sum = _mm512_fmadd_ps(dh, _mm512_mul_ps(silu_v, up), sum);                                 \
        _mm512_mask_storeu_ps(g + (i), mask,                                                       \
                              _mm512_mul_ps(_mm512_mul_ps(scaled, up),                             \
                                            _mm512_fmadd_ps(silu_v, rest, gate)));                 \
        _mm512_mask_storeu_ps(db + (i), mask, _mm512_mul_ps(scaled, silu_v));                      \
    } while (0)
    FOR_VECTORS(SILU_MUL_BACKWARD);
    return tree_sum(sum);
}

float bxn_exp_sum_avx512(float *x, float max, size_t n)
{
    const __m512 most = _mm512_set1_ps(max);
    __m512 sum = _mm512_setzero_ps();
#define EXP_SUM(i, mask)                                                                           \
    do {                                                                                           \
        __m512 e = exp_nonpositive(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + (i)), most));     \
        sum = _mm512_add_ps(sum, _mm512_maskz_mov_ps(mask, e));                                    \
        _mm512_mask_storeu_ps(x + (i), mask, e);                                                   \
    } while (0)
    FOR_VECTORS(EXP_SUM);
    return tree_sum(sum);
}

void bxn_to_f16_avx512(const float *x, size_t n, uint16_t *y)
{
    const __m512 limit = _mm512_set1_ps(65504.0f), low = _mm512_set1_ps(-65504.0f);
    /* min and max give the second operand when one is NaN */
#define TO_F16(i, mask)                                                                            \
    do {                                                                                           \
        __m512 v = _mm512_min_ps(limit, _mm512_maskz_loadu_ps(mask, x + (i)));                     \
        v = _mm512_max_ps(low, v);                                                                 \
        __m256i half = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);          \
        _mm256_mask_storeu_epi16(y + (i), mask, half);                                             \
    } while (0)
    FOR_VECTORS(TO_F16);
}
#endif
