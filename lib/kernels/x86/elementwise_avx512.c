/* SPDX-License-Identifier: Apache-2.0 */
/* elementwise_avx512.c - norms, sums, additions, gates and conversions. Called through the
 * kernel table by most ops; the last vector is masked, so exactly n elements are touched. */
#include <math.h>

#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/vec_avx512.h"

/* The mask of the vector at i of n elements. */
BXN_INLINE __mmask16 mask_at(size_t i, size_t n)
{
    return n - i >= 16 ? (__mmask16)0xFFFF : tail_mask(n - i);
}

void bxn_block_sums_avx512(const float *x, size_t count, float *out)
{
    for (size_t j = 0; j < count; j++)
        out[j] =
            tree_sum(_mm512_add_ps(_mm512_loadu_ps(x + 32 * j), _mm512_loadu_ps(x + 32 * j + 16)));
}

void bxn_rmsnorm_avx512(const float *x, const float *w, size_t n, float eps, float *y)
{
    __m512 sum = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += 16) {
        __m512 v = _mm512_maskz_loadu_ps(mask_at(i, n), x + i);
        sum = _mm512_fmadd_ps(v, v, sum);
    }
    __m512 inverse = _mm512_set1_ps(1.0f / sqrtf(tree_sum(sum) / (float)n + eps));
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 mask = mask_at(i, n);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), inverse);
        _mm512_mask_storeu_ps(y + i, mask, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, w + i)));
    }
}

void bxn_add_avx512(float *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 mask = mask_at(i, n);
        __m512 sum =
            _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y + i), _mm512_maskz_loadu_ps(mask, x + i));
        _mm512_mask_storeu_ps(y + i, mask, sum);
    }
}

void bxn_scale_add_avx512(float *y, const float *x, float s, size_t n)
{
    const __m512 scale = _mm512_set1_ps(s);
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 mask = mask_at(i, n);
        __m512 sum = _mm512_fmadd_ps(scale, _mm512_maskz_loadu_ps(mask, x + i),
                                     _mm512_maskz_loadu_ps(mask, y + i));
        _mm512_mask_storeu_ps(y + i, mask, sum);
    }
}

void bxn_silu_mul_avx512(float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 mask = mask_at(i, n);
        __m512 v = _mm512_maskz_loadu_ps(mask, a + i);
        v = silu(v);
        _mm512_mask_storeu_ps(a + i, mask, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, b + i)));
    }
}

void bxn_to_f16_avx512(const float *x, size_t n, uint16_t *y)
{
    const __m512 limit = _mm512_set1_ps(65504.0f), low = _mm512_set1_ps(-65504.0f);
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 mask = mask_at(i, n);
        /* min and max give the second operand when one is NaN */
        __m512 v = _mm512_min_ps(limit, _mm512_maskz_loadu_ps(mask, x + i));
        v = _mm512_max_ps(low, v);
        _mm256_mask_storeu_epi16(y + i, mask,
                                 _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
}
#endif
