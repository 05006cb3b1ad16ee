/* SPDX-License-Identifier: Apache-2.0 */
/* elementwise_neon.c - norms, sums, additions, gates and conversions. Called through the
 * kernel table by most ops; the last vector is copied, so exactly n elements are touched. */
#include <math.h>

#include "kernels/kernels_isa.h"

#if defined(__aarch64__)
#include "kernels/arm/vec_neon.h"

void bxn_block_sums_neon(const float *x, size_t count, float *out)
{
    for (size_t j = 0; j < count; j++, x += 32) {
        float32x4_t s[4];
        BXN_UNROLL
        for (unsigned q = 0; q < 4; q++)
            s[q] = vaddq_f32(vld1q_f32(x + q * 4), vld1q_f32(x + 16 + q * 4));
        out[j] = tree_sum(s[0], s[1], s[2], s[3]);
    }
}

void bxn_rmsnorm_neon(const float *x, const float *w, size_t n, float eps, float *y)
{
    float32x4_t s[4];
    BXN_UNROLL
    for (unsigned q = 0; q < 4; q++)
        s[q] = vdupq_n_f32(0.0f);
    for (size_t i = 0; i < n; i += 16) {
        BXN_UNROLL
        for (unsigned q = 0; q < 4; q++) {
            if (i + q * 4 < n) {
                float32x4_t v = load_first(x + i + q * 4, n - i - q * 4);
                s[q] = vfmaq_f32(s[q], v, v);
            }
        }
    }
    const float mean = tree_sum(s[0], s[1], s[2], s[3]) / (float)n;
    const float32x4_t inverse = vdupq_n_f32(1.0f / sqrtf(mean + eps));
    for (size_t i = 0; i < n; i += 4) {
        float32x4_t v = vmulq_f32(load_first(x + i, n - i), inverse);
        store_first(y + i, n - i, vmulq_f32(v, load_first(w + i, n - i)));
    }
}

void bxn_add_neon(float *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i += 4) {
        float32x4_t sum = vaddq_f32(load_first(y + i, n - i), load_first(x + i, n - i));
        store_first(y + i, n - i, sum);
    }
}

void bxn_scale_add_neon(float *y, const float *x, float s, size_t n)
{
    const float32x4_t scale = vdupq_n_f32(s);
    for (size_t i = 0; i < n; i += 4) {
        float32x4_t sum = vfmaq_f32(load_first(y + i, n - i), scale, load_first(x + i, n - i));
        store_first(y + i, n - i, sum);
    }
}

void bxn_silu_mul_neon(float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i += 4) {
        float32x4_t v = load_first(a + i, n - i);
        v = vmulq_f32(v, sigmoid(v));
        store_first(a + i, n - i, vmulq_f32(v, load_first(b + i, n - i)));
    }
}

float bxn_silu_mul_backward_neon(const float *a, const float *b, float *g, float s, float *db, size_t n)
{
    const float32x4_t one = vdupq_n_f32(1.0f), zero = vdupq_n_f32(0.0f);
    float32x4_t sums[4] = {zero, zero, zero, zero};
    for (size_t i = 0; i < n; i += 4) {
        float32x4_t v = load_first(a + i, n - i), up = load_first(b + i, n - i), dh = load_first(g + i, n - i);
        float32x4_t e = exp_nonpositive(negative_abs(v)), inverse = vdivq_f32(one, vaddq_f32(one, e));
        float32x4_t far = vmulq_f32(e, inverse), scaled = vmulq_f32(vdupq_n_f32(s), dh);
        uint32x4_t negative = vcltzq_f32(v);
        float32x4_t gate = vbslq_f32(negative, far, inverse), rest = vbslq_f32(negative, inverse, far);
        float32x4_t silu = vmulq_f32(v, gate);
        sums[i / 4 % 4] = vfmaq_f32(sums[i / 4 % 4], dh, vmulq_f32(silu, up));
        store_first(g + i, n - i, vmulq_f32(vmulq_f32(scaled, up), vfmaq_f32(gate, silu, rest)));
        store_first(db + i, n - i, vmulq_f32(scaled, silu));
    }
    return tree_sum(sums[0], sums[1], sums[2], sums[3]);
}

float bxn_exp_sum_neon(float *x, float max, size_t n)
{
    const float32x4_t most = vdupq_n_f32(max), zero = vdupq_n_f32(0.0f);
    const uint32x4_t lane = {0, 1, 2, 3};
    float32x4_t sums[4] = {zero, zero, zero, zero};
    for (size_t i = 0; i < n; i += 4) {
        float32x4_t e = exp_nonpositive(vsubq_f32(load_first(x + i, n - i), most));
        uint32x4_t inside = vcltq_u32(lane, vdupq_n_u32((uint32_t)(n - i < 4 ? n - i : 4)));
        store_first(x + i, n - i, e);
        sums[i / 4 % 4] = vaddq_f32(sums[i / 4 % 4], vbslq_f32(inside, e, zero));
    }
    return tree_sum(sums[0], sums[1], sums[2], sums[3]);
}

void bxn_to_f16_neon(const float *x, size_t n, uint16_t *y)
{
    for (size_t i = 0; i < n; i += 4) {
        float32x4_t v = vminq_f32(vdupq_n_f32(65504.0f), load_first(x + i, n - i));
        v = vmaxq_f32(vdupq_n_f32(-65504.0f), v); /* both return NaN when there is one */
        uint16x4_t half = vreinterpret_u16_f16(vcvt_f16_f32(v));
        if (n - i >= 4)
            vst1_u16(y + i, half);
        else
            memcpy(y + i, &half, (n - i) * sizeof *y);
    }
}
#endif
