/* SPDX-License-Identifier: Apache-2.0 */
/* norm_backward.c - the gradient of RMSNorm (spec appendix B): with r = 1 / sqrt(mean(x^2) + eps),
 *   dx = r (w o dy) - x r^3 / D sum(w o dy o x),  dw = sum over rows of dy o x r.
 * Called by the backward of the model. A row's sums are taken in 16 lanes and added by a tree; dw is summed
 * over rows in order, so that threads never show. */
#include "ops/train_ops.h"

#include <math.h>

enum { LANES = 16, COLUMNS = 64 };

typedef struct norm_context {
    const float *x, *w, *dy;
    size_t ldx, lddy, lddx;
    float *dx, *dw;
    uint32_t dim, rows;
    float eps;
    float inverse[BXN_TILE]; /* r of each row of a tile */
} norm_context;

static double tree_sum(double lanes[LANES])
{
    for (size_t half = LANES / 2; half >= 1; half /= 2)
        for (size_t i = 0; i < half; i++)
            lanes[i] += lanes[i + half];
    return lanes[0];
}

static void row_task(void *context, uint32_t t)
{
    norm_context *c = context;
    const float *x = c->x + t * c->ldx, *dy = c->dy + t * c->lddy, *w = c->w;
    float *dx = c->dx + t * c->lddx;
    double squares[LANES] = { 0 }, products[LANES] = { 0 };
    uint32_t i = 0;
    for (; i + LANES <= c->dim; i += LANES) {
        for (uint32_t l = 0; l < LANES; l++) {
            squares[l] += (double)x[i + l] * (double)x[i + l];
            products[l] += (double)(w[i + l] * dy[i + l]) * (double)x[i + l];
        }
    }
    for (uint32_t l = 0; i + l < c->dim; l++) {
        squares[l] += (double)x[i + l] * (double)x[i + l];
        products[l] += (double)(w[i + l] * dy[i + l]) * (double)x[i + l];
    }
    const double r = 1 / sqrt(tree_sum(squares) / c->dim + (double)c->eps);
    const float inverse = (float)r, back = (float)(tree_sum(products) * r * r * r / c->dim);
    for (i = 0; i < c->dim; i++)
        dx[i] += inverse * (w[i] * dy[i]) - back * x[i];
    if (c->dw != NULL)
        c->inverse[t] = inverse;
}

/* COLUMNS columns of dw. */
static void weight_task(void *context, uint32_t index)
{
    const norm_context *c = context;
    const uint32_t first = index * COLUMNS, count = c->dim - first < COLUMNS ? c->dim - first : COLUMNS;
    double sums[COLUMNS] = { 0 };
    for (uint32_t t = 0; t < c->rows; t++) {
        const float *x = c->x + t * c->ldx + first, *dy = c->dy + t * c->lddy + first;
        for (uint32_t i = 0; i < count; i++)
            sums[i] += (double)(dy[i] * x[i]) * (double)c->inverse[t];
    }
    for (uint32_t i = 0; i < count; i++)
        c->dw[first + i] += (float)sums[i];
}

bitaxon_status bxn_norm_backward(bxn_train_pass *pass, const float *x, size_t ldx, const float *w, uint32_t dim,
                                 float eps, const float *dy, size_t lddy, uint32_t rows, float *dx, size_t lddx,
                                 float *dw)
{
    const bxn_exec *exec = &pass->exec;
    norm_context c = { .w = w, .ldx = ldx, .lddy = lddy, .lddx = lddx, .dw = dw, .dim = dim,
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
