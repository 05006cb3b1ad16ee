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

/* Eight elements from i on of n; those beyond are zeros and give zeros. */
BXN_INLINE __m256 silu_mul_backward8(const float *a, const float *b, float *g, float s, float *db, size_t i, size_t n,
                                     __m256 sum)
{
    if (i >= n)
        return sum;
    const __m256 one = _mm256_set1_ps(1.0f);
    __m256 v = load_first(a + i, n - i), up = load_first(b + i, n - i), dh = load_first(g + i, n - i);
    __m256 e = exp_nonpositive(_mm256_or_ps(v, _mm256_set1_ps(-0.0f)));
    __m256 inverse = _mm256_div_ps(one, _mm256_add_ps(one, e)), far = _mm256_mul_ps(e, inverse);
    __m256 negative = _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_LT_OQ);
    __m256 gate = _mm256_blendv_ps(inverse, far, negative), rest = _mm256_blendv_ps(far, inverse, negative);
    __m256 silu = _mm256_mul_ps(v, gate), scaled = _mm256_mul_ps(_mm256_set1_ps(s), dh);
    sum = _mm256_fmadd_ps(dh, _mm256_mul_ps(silu, up), sum);
    store_first(g + i, n - i, _mm256_mul_ps(_mm256_mul_ps(scaled, up), _mm256_fmadd_ps(silu, rest, gate)));
    store_first(db + i, n - i, _mm256_mul_ps(scaled, silu));
    return sum;
}

float bxn_silu_mul_backward_avx2(const float *a, const float *b, float *g, float s, float *db, size_t n)
{
    __m256 low = _mm256_setzero_ps(), high = low;
    for (size_t i = 0; i < n; i += 16) {
        low = silu_mul_backward8(a, b, g, s, db, i, n, low);
        high = silu_mul_backward8(a, b, g, s, db, i + 8, n, high);
    }
    return tree_sum(low, high);
}

BXN_INLINE __m256 exp_sum8(float *x, __m256 max, size_t i, size_t n, __m256 sum)
{
    if (i >= n)
        return sum;
    __m256 e = exp_nonpositive(_mm256_sub_ps(load_first(x + i, n - i), max));
    e = _mm256_and_ps(e, _mm256_castsi256_ps(tail_mask(n - i)));
    store_first(x + i, n - i, e);
    return _mm256_add_ps(sum, e);
}

float bxn_exp_sum_avx2(float *x, float max, size_t n)
{
    const __m256 most = _mm256_set1_ps(max);
    __m256 low = _mm256_setzero_ps(), high = low;
    for (size_t i = 0; i < n; i += 16) {
        low = exp_sum8(x, most, i, n, low);
        high = exp_sum8(x, most, i + 8, n, high);
    }
    return tree_sum(low, high);
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
