/* SPDX-License-Identifier: Apache-2.0 */
/* elementwise_avx2.c - norms, sums, additions, gates and conversions. Called through the
 * kernel table by most ops; the last vector is copied, so exactly n elements are touched. */
#include <math.h>
#include <string.h>

#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/vec_avx2.h"

void bxn_block_sums_avx2(const float *x, size_t count, float *out)
{
    for (size_t j = 0; j < count; j++, x += 32)
        out[j] = tree_sum(_mm256_add_ps(_mm256_loadu_ps(x), _mm256_loadu_ps(x + 16)),
                          _mm256_add_ps(_mm256_loadu_ps(x + 8), _mm256_loadu_ps(x + 24)));
}

void bxn_rmsnorm_avx2(const float *x, const float *w, size_t n, float eps, float *y)
{
    __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
    for (size_t i = 0; i < n; i += 16) {
        __m256 v = load_first(x + i, n - i);
        low = _mm256_fmadd_ps(v, v, low);
        if (i + 8 < n) {
            v = load_first(x + i + 8, n - i - 8);
            high = _mm256_fmadd_ps(v, v, high);
        }
    }
    __m256 inverse = _mm256_set1_ps(1.0f / sqrtf(tree_sum(low, high) / (float)n + eps));
    for (size_t i = 0; i < n; i += 8) {
        __m256 v = _mm256_mul_ps(load_first(x + i, n - i), inverse);
        store_first(y + i, n - i, _mm256_mul_ps(v, load_first(w + i, n - i)));
    }
}

void bxn_add_avx2(float *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i += 8) {
        __m256 sum = _mm256_add_ps(load_first(y + i, n - i), load_first(x + i, n - i));
        store_first(y + i, n - i, sum);
    }
}

void bxn_scale_add_avx2(float *y, const float *x, float s, size_t n)
{
    const __m256 scale = _mm256_set1_ps(s);
    for (size_t i = 0; i < n; i += 8) {
        __m256 sum = _mm256_fmadd_ps(scale, load_first(x + i, n - i), load_first(y + i, n - i));
        store_first(y + i, n - i, sum);
    }
}

void bxn_silu_mul_avx2(float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i += 8) {
        __m256 v = load_first(a + i, n - i);
        v = _mm256_mul_ps(v, sigmoid(v));
        store_first(a + i, n - i, _mm256_mul_ps(v, load_first(b + i, n - i)));
    }
}

void bxn_to_f16_avx2(const float *x, size_t n, uint16_t *y)
{
    const __m256 limit = _mm256_set1_ps(65504.0f), low = _mm256_set1_ps(-65504.0f);
    for (size_t i = 0; i < n; i += 8) {
        /* min and max give the second operand when one is NaN */
        __m256 v = _mm256_min_ps(limit, load_first(x + i, n - i));
        v = _mm256_max_ps(low, v);
        __m128i half = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        if (n - i >= 8)
            _mm_storeu_si128((__m128i *)(void *)(y + i), half);
        else
            memcpy(y + i, &half, (n - i) * sizeof *y);
    }
}
#endif
