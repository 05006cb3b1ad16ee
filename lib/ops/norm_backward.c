/* SPDX-License-Identifier: Apache-2.0 */
/* norm_backward.c - the gradient of RMSNorm (spec appendix B): with r = 1 / sqrt(mean(x^2) + eps),
 *   dx = r (w o dy) - x r^3 / D sum(w o dy o x),  dw = sum over rows of dy o x r.
 * Called by the backward of the model. dw is summed over rows in order, so that threads never show. */
#include "ops/train_ops.h"

enum { COLUMNS = 64 };

typedef struct norm_context {
    const bxn_kernels *kernels;
    const float *x, *w, *dy;
    size_t ldx, lddy, lddx;
    float *dx, *dw;
    uint32_t dim, rows;
    float eps;
    float inverse[BXN_TILE]; /* r of each row of a tile */
} norm_context;

static void row_task(void *context, uint32_t t)
{
    norm_context *c = context;
    float inverse = c->kernels->rmsnorm_backward(c->x + t * c->ldx, c->w, c->dy + t * c->lddy, c->dim, c->eps,
                                                 c->dx + t * c->lddx);
    if (c->dw != NULL)
        c->inverse[t] = inverse;
}

/* COLUMNS columns of dw. */
static void weight_task(void *context, uint32_t index)
{
    const norm_context *c = context;
    const uint32_t first = index * COLUMNS, count = c->dim - first < COLUMNS ? c->dim - first : COLUMNS;
    c->kernels->rmsnorm_weight(c->x + first, c->ldx, c->dy + first, c->lddy, c->inverse, c->rows, count,
                               c->dw + first);
}

bitaxon_status bxn_norm_backward(bxn_train_pass *pass, const float *x, size_t ldx, const float *w, uint32_t dim,
                                 float eps, const float *dy, size_t lddy, uint32_t rows, float *dx, size_t lddx,
                                 float *dw)
{
    const bxn_exec *exec = &pass->exec;
    norm_context c = { .kernels = exec->kernels, .w = w, .ldx = ldx, .lddy = lddy, .lddx = lddx, .dw = dw, .dim = dim,
                       .eps = eps };
    const uint32_t tile = dw != NULL ? BXN_TILE : rows;
    bitaxon_status status = BITAXON_OK;
    for (uint32_t t = 0; t < rows && status == BITAXON_OK; t += tile) {
        c.rows = rows - t < tile ? rows - t : tile;
        c.x = x + t * ldx;
        c.dy = dy + t * lddy;
        c.dx = dx + t * lddx;
        status = bxn_rows_run(exec, c.rows, row_task, &c);
        if (status == BITAXON_OK && dw != NULL)
            status = bxn_pool_run(exec->pool, (dim + COLUMNS - 1) / COLUMNS, weight_task, &c, exec->cancel);
    }
    return status;
}
