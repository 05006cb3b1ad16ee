/* SPDX-License-Identifier: Apache-2.0 */
/* ref_attention_train.c - attention of one head over one document of a training step and its
 * backward in plain C. Called through the kernel table. kernels.h states what is computed;
 * here every query is taken alone, its scores once for the maximum and once for their use. */
#include <math.h>
#include <string.h>

#include "kernels/kernels_isa.h"

static uint32_t first_key(const bxn_attention_train_args *args, uint32_t i)
{
    return args->window <= i ? i + 1 - (uint32_t)args->window : 0;
}

static float score(const bxn_attention_train_args *args, uint32_t i, uint32_t key)
{
    const float *q = args->q + i * args->ld, *k = args->k + key * args->ld;
    const float factor = args->scale * 0x1.715476p+0f; /* log2(e) */
    float s = 0.0f;
    for (uint32_t f = 0; f < args->head_dim; f++)
        s += k[f] * (q[f] * factor);
    return s;
}

void bxn_attention_train_ref(const bxn_attention_train_args *args)
{
    const uint32_t dim = args->head_dim;
    for (uint32_t i = args->begin; i < args->end; i++) {
        const uint32_t first = first_key(args, i);
        float *out = args->out + i * args->ldout, top = -1e30f, sum = 0.0f;
        for (uint32_t key = first; key <= i; key++) {
            const float s = score(args, i, key);
            top = s > top ? s : top;
        }
        memset(out, 0, dim * sizeof *out);
        for (uint32_t key = first; key <= i; key++) {
            const float e = exp2f(score(args, i, key) - top), *v = args->v + key * args->ld;
            sum += e;
            for (uint32_t f = 0; f < dim; f++)
                out[f] += e * v[f];
        }
        for (uint32_t f = 0; f < dim; f++)
            out[f] /= sum;
        args->top[i] = top;
        args->inverse[i] = 1.0f / sum;
    }
}

/* What a query and a key give to each other: their probability and the gradient of their score. */
static void pair(const bxn_attention_train_args *args, uint32_t i, uint32_t key, float *p, float *ds)
{
    const float *v = args->v + key * args->ld, *dout = args->dout + i * args->lddout;
    const float e = exp2f(score(args, i, key) - args->top[i]);
    float dp = 0.0f;
    for (uint32_t f = 0; f < args->head_dim; f++)
        dp += v[f] * dout[f];
    *p = e * args->inverse[i];
    *ds = e * (dp - args->delta[i]) * (args->inverse[i] * args->scale);
}

static void add_row(float *y, float factor, const float *x, uint32_t dim)
{
    for (uint32_t f = 0; f < dim; f++)
        y[f] += factor * x[f];
}

static void backward_queries(const bxn_attention_train_args *args)
{
    const uint32_t dim = args->head_dim;
    for (uint32_t i = args->begin; i < args->end; i++) {
        float *aside = args->scratch, p, ds; /* dq may be q */
        memset(aside, 0, dim * sizeof *aside);
        for (uint32_t key = first_key(args, i); key <= i; key++) {
            pair(args, i, key, &p, &ds);
            add_row(aside, ds, args->k + key * args->ld, dim);
        }
        memcpy(args->dq + i * args->lddq, aside, dim * sizeof *aside);
    }
}

static void backward_keys(const bxn_attention_train_args *args)
{
    const uint32_t dim = args->head_dim;
    for (uint32_t key = args->begin; key < args->end; key++) {
        float *dk = args->dk + key * args->lddk, *dv = args->dv + key * args->lddv, p, ds;
        memset(dk, 0, dim * sizeof *dk);
        memset(dv, 0, dim * sizeof *dv);
        for (uint32_t i = key; i < args->rows && i - key < args->window; i++) {
            pair(args, i, key, &p, &ds);
            add_row(dv, p, args->dout + i * args->lddout, dim);
            add_row(dk, ds, args->q + i * args->ld, dim);
        }
    }
}

void bxn_attention_backward_ref(const bxn_attention_train_args *args)
{
    if (args->dk != NULL) /* first: dq may take the place of q */
        backward_keys(args);
    if (args->dq != NULL)
        backward_queries(args);
}
