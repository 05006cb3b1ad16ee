/* SPDX-License-Identifier: Apache-2.0 */
/* ref_state_backward.c - gradients of the selective scan (Gu & Dao 2023) and of the convolution before
 * it in plain C. Called through the kernel table by the state-space op in training. States of a
 * chunk are computed again and kept in the scratch; nothing is divided, so that a decay of 0 is no
 * special case. */
#include <math.h>
#include <string.h>

#include "kernels/kernels_isa.h"

#define LN2 0x1.62e43p-1f

static float sigmoid(float v)
{
    return 1.0f / (1.0f + expf(-v));
}

/* What a token of one channel gives without the states. */
typedef struct step {
    float x, dt, slope; /* slope: of dt by its argument, 0 when clipped */
    float p, dz;        /* dz without the sum before the gate */
} step;

static step step_at(const bxn_scan_backward_args *a, uint32_t e, uint32_t t)
{
    float v = a->bcd[t * a->ldbcd + 2 * (size_t)a->states] * a->dt_weight[e] + a->dt_bias[e];
    float z = a->z[t * a->ldz + e], g = a->dy[t * a->lddy + e], s = sigmoid(z);
    float dt = (v > 0.0f ? v : v < 0.0f ? 0.0f : v) + log1pf(expf(-fabsf(v)));
    bool low = dt <= 1e-4f, high = dt >= 100.0f;
    return (step){.x = a->x[t * a->ldx + e],
                  .dt = low ? 1e-4f : high ? 100.0f : dt,
                  .slope = low || high ? 0.0f : sigmoid(v),
                  .p = g * (z * s),
                  .dz = g * (s * (1.0f + z * (1.0f - s)))};
}

static void channel(const bxn_scan_backward_args *a, uint32_t e)
{
    const uint32_t states = a->states;
    const size_t base = (size_t)(e / 16) * states * 16 + e % 16;
    float *h = a->scratch; /* [tokens + 1][N], the first is h_in */
    for (uint32_t n = 0; n < states; n++)
        h[n] = a->h_in[base + n * 16];
    for (uint32_t t = 0; t < a->tokens; t++, h += states) {
        const float *b = a->bcd + t * a->ldbcd;
        step s = step_at(a, e, t);
        for (uint32_t n = 0; n < states; n++)
            h[states + n] = exp2f(s.dt * a->a2[base + n * 16]) * h[n] + s.dt * s.x * b[n];
    }
    for (uint32_t t = a->tokens; t-- > 0;) {
        const float *b = a->bcd + t * a->ldbcd, *c = b + states;
        float *db = a->dbcd + t * a->lddbcd, *dc = db + states;
        step s = step_at(a, e, t);
        float sum = 0.0f, du = 0.0f, r = 0.0f;
        h -= states;
        for (uint32_t n = 0; n < states; n++) {
            float a2 = a->a2[base + n * 16], *carry = &a->carry[base + n * 16];
            float q = c[n] * s.p + *carry;
            sum += c[n] * h[states + n];
            dc[n] += s.p * h[states + n];
            db[n] += q * (s.dt * s.x);
            du += q * b[n];
            *carry = exp2f(s.dt * a2) * q;
            float rn = *carry * h[n] * a2;
            r += rn;
            if (a->da_log != NULL)
                a->da_log[base + n * 16] += rn * (s.dt * LN2);
        }
        float dv = (s.x * du + LN2 * r) * s.slope;
        dv = s.slope == 0.0f ? 0.0f : dv;
        a->dz[t * a->lddz + e] = s.dz * (sum + a->d[e] * s.x);
        a->dx[t * a->lddx + e] = a->d[e] * s.p + s.dt * du;
        db[2 * states] += dv * a->dt_weight[e];
        if (a->dd != NULL)
            a->dd[e] += s.p * s.x;
        if (a->ddt_weight != NULL)
            a->ddt_weight[e] += dv * b[2 * states];
        if (a->ddt_bias != NULL)
            a->ddt_bias[e] += dv;
    }
}

void bxn_scan_backward_ref(const bxn_scan_backward_args *args)
{
    for (uint32_t t = 0; t < args->tokens; t++)
        memset(args->dbcd + t * args->lddbcd, 0, (2 * (size_t)args->states + 1) * sizeof(float));
    for (uint32_t e = args->begin; e < args->end; e++)
        channel(args, e);
}

void bxn_conv_backward_ref(const bxn_conv_backward_args *a)
{
    const size_t before = a->taps - 1;
    for (uint32_t t = a->tokens; t-- > 0;) {
        for (uint32_t e = a->begin; e < a->end; e++) {
            const size_t first = t < before ? before - t : 0; /* taps before lie in the tail */
            const float *x = a->x + e, *w = a->weight + e;
            float c = a->bias[e], dx = 0.0f;
            for (size_t j = first; j < a->taps; j++)
                c += w[j * a->e16] * x[(t + j - before) * a->ldx];
            float s = sigmoid(c), dc = a->dy[t * a->lddy + e] * (s * (1.0f + c * (1.0f - s)));
            a->dy[t * a->lddy + e] = dc;
            if (a->dbias != NULL) {
                a->dbias[e] += dc;
                for (size_t j = first; j < a->taps; j++)
                    a->dweight[j * a->e16 + e] += dc * x[(t + j - before) * a->ldx];
            }
            for (size_t j = 0; j < a->taps; j++)
                if (t + before - j < a->tokens)
                    dx += w[j * a->e16] * a->dy[(t + before - j) * a->lddy + e];
            a->dx[t * a->lddx + e] = dx;
        }
    }
}
