/* SPDX-License-Identifier: Apache-2.0 */
/* norm.c - RMSNorm of rows, the residual addition, the padding of rows. */
#include "ops/ops.h"

#include <string.h>

typedef struct rows_context {
    const bxn_kernels *kernels;
    const float *x, *w;
    float *y;
    size_t ldx, ldy;
    uint32_t dim;
    float eps;
} rows_context;

static void norm_task(void *context, uint32_t token)
{
    const rows_context *c = context;
    c->kernels->rmsnorm(c->x + token * c->ldx, c->w, c->dim, c->eps, c->y + token * c->ldy);
}

static void add_task(void *context, uint32_t token)
{
    const rows_context *c = context;
    c->kernels->add(c->y + token * c->ldy, c->x + token * c->ldx, c->dim);
}

bitaxon_status bxn_norm(const bxn_exec *exec, const float *x, size_t ldx, const float *w,
                        uint32_t dim, float eps, uint32_t tokens, float *y, size_t ldy)
{
    rows_context c = { exec->kernels, x, w, y, ldx, ldy, dim, eps };
    return bxn_rows_run(exec, tokens, norm_task, &c);
}

bitaxon_status bxn_residual_add(const bxn_exec *exec, float *x, const float *r, size_t ld,
                                uint32_t dim, uint32_t tokens)
{
    rows_context c = { exec->kernels, r, NULL, x, ld, ld, dim, 0 };
    return bxn_rows_run(exec, tokens, add_task, &c);
}

void bxn_pad_rows(float *x, size_t ld, uint32_t cols, uint32_t rows)
{
    size_t pad = bxn_round_up(cols, BXN_UNIT_COLS) - cols;
    for (uint32_t t = 0; t < rows && pad != 0; t++)
        memset(x + t * ld + cols, 0, pad * sizeof *x);
}
