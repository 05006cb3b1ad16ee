/* SPDX-License-Identifier: Apache-2.0 */
/* ref_elementwise.c - norms, sums, additions, gates and conversions in plain C. Called
 * through the kernel table by most ops; touches exactly n elements. */
#include <math.h>

#include "kernels/kernels_isa.h"
#include "runtime/runtime.h"

static float tree_sum(float lanes[16])
{
    for (size_t half = 8; half >= 1; half /= 2)
        for (size_t i = 0; i < half; i++)
            lanes[i] += lanes[i + half];
    return lanes[0];
}

void bxn_block_sums_ref(const float *x, size_t count, float *out)
{
    for (size_t j = 0; j < count; j++) {
        float lanes[16];
        for (size_t i = 0; i < 16; i++)
            lanes[i] = x[32 * j + i] + x[32 * j + i + 16];
        out[j] = tree_sum(lanes);
    }
}

void bxn_rmsnorm_ref(const float *x, const float *w, size_t n, float eps, float *y)
{
    float lanes[16] = {0};
    for (size_t i = 0; i < n; i++)
        lanes[i % 16] += x[i] * x[i];
    float inverse = 1.0f / sqrtf(tree_sum(lanes) / (float)n + eps);
    for (size_t i = 0; i < n; i++)
        y[i] = x[i] * inverse * w[i];
}

void bxn_add_ref(float *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += x[i];
}

void bxn_scale_add_ref(float *y, const float *x, float s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += s * x[i];
}

void bxn_silu_mul_ref(float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        a[i] = a[i] * (1.0f / (1.0f + expf(-a[i]))) * b[i];
}

float bxn_silu_mul_backward_ref(const float *a, const float *b, float *g, float s, float *db, size_t n)
{
    float lanes[16] = {0};
    for (size_t i = 0; i < n; i++) {
        float e = expf(-fabsf(a[i])), inverse = 1.0f / (1.0f + e);
        float sigmoid = a[i] < 0 ? e * inverse : inverse, rest = a[i] < 0 ? inverse : e * inverse;
        float silu = a[i] * sigmoid, scaled = s * g[i];
        lanes[i % 16] += g[i] * (silu * b[i]);
        g[i] = scaled * b[i] * (sigmoid + silu * rest);
        db[i] = scaled * silu;
    }
    return tree_sum(lanes);
}

float bxn_exp_sum_ref(float *x, float max, size_t n)
{
    float lanes[16] = {0};
    for (size_t i = 0; i < n; i++)
        lanes[i % 16] += x[i] = expf(x[i] - max);
    return tree_sum(lanes);
}

void bxn_to_f16_ref(const float *x, size_t n, uint16_t *y)
{
    for (size_t i = 0; i < n; i++) {
        float value = x[i];
        value = value > 65504.0f ? 65504.0f : value < -65504.0f ? -65504.0f : value;
        y[i] = bxn_f32_f16(value);
    }
}
