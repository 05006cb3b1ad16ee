/* SPDX-License-Identifier: Apache-2.0 */
/* ref_scan.c - the selective scan of Mamba-1 (Gu & Dao 2023) in plain C, sequential over
 * tokens. Called through the kernel table by the state-space op. Exponents are never
 * positive, so a decay underflows to 0 and nothing overflows. */
#include <math.h>

#include "kernels/kernels_isa.h"

static float softplus(float v)
{
    return (v > 0.0f ? v : v < 0.0f ? 0.0f : v) + log1pf(expf(-fabsf(v)));
}

void bxn_scan_ref(const bxn_scan_args *args)
{
    const uint32_t states = args->states;
    for (uint32_t e = args->begin; e < args->end; e++) {
        size_t base = (size_t)(e / 16) * states * 16 + e % 16;
        for (uint32_t n = 0; n < states; n++)
            args->h_out[base + n * 16] = args->h_in[base + n * 16];
        for (uint32_t t = 0; t < args->tokens; t++) {
            const float *bcd = args->bcd + t * args->ldbcd;
            float x = args->x[t * args->ldx + e], z = args->z[t * args->ldz + e];
            float dt = softplus(bcd[2 * states] * args->dt_weight[e] + args->dt_bias[e]);
            dt = dt < 1e-4f ? 1e-4f : dt > 100.0f ? 100.0f : dt;
            float sum = 0.0f;
            for (uint32_t n = 0; n < states; n++) {
                float h = args->h_out[base + n * 16];
                h = exp2f(dt * args->a2[base + n * 16]) * h + dt * x * bcd[n];
                args->h_out[base + n * 16] = h;
                sum += bcd[states + n] * h;
            }
            float gate = z * (1.0f / (1.0f + expf(-z)));
            args->y[t * args->ldy + e] = (sum + args->d[e] * x) * gate;
        }
    }
}
