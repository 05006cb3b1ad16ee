/* SPDX-License-Identifier: Apache-2.0 */
/* loss.c - head and cross entropy in one: logits of a tile of rows, their log-sum-exp, and in place of them
 * their gradient, so that [rows, V] never exists as a whole. Rows without a label cost nothing: those with one
 * are gathered. Called by the pass through the whole model.
 *
 * Order per row: the maximum; e^(x - max) of all but the label summed in blocks of BLOCK by the kernel, the
 * blocks in double.
 * What a row gets does not depend on its neighbours. */
#include "train/bxn_train.h"

#include <math.h>
#include <string.h>

#define BLOCK 1024
#define TILE_BYTES ((size_t)64 << 20) /* more rows to a tile, fewer passes over the head's gradient */

typedef struct loss_context {
    bxn_train_pass *pass;
    const bxn_model *model;
    const float *h;
    size_t ldh;
    const int32_t *labels;
    const float *coefficient; /* NULL: no gradient */
    float *logp;              /* nullable */
    float *dh;
    size_t lddh;
    uint32_t tile; /* rows of one at most */
    /* of a tile */
    uint32_t count;
    uint32_t *from; /* [count] row of each */
    float *rows;    /* [count, S] of h, then of dh */
    float *dx;      /* [count, S] */
    float *logits;  /* [count, V] */
    size_t ld_s, ld_v;
} loss_context;

static uint32_t tile_rows(const bxn_model *model, uint32_t rows)
{
    size_t ld = bxn_train_ld(model->head.rows);
    uint32_t most = ld * 2 * BXN_TILE * sizeof(float) <= TILE_BYTES ? 2 * BXN_TILE : BXN_TILE;
    return rows < most ? rows : most;
}

static void take(loss_context *c, bxn_scratch *scratch)
{
    c->ld_s = bxn_train_ld(c->model->head.cols);
    c->ld_v = bxn_train_ld(c->model->head.rows);
    c->from = bxn_scratch_take(scratch, c->tile * sizeof *c->from);
    c->rows = bxn_scratch_rows(scratch, c->tile, c->ld_s);
    c->dx = bxn_scratch_rows(scratch, c->tile, c->ld_s);
    c->logits = bxn_scratch_rows(scratch, c->tile, c->ld_v);
}

size_t bxn_loss_bytes(const bxn_model *model, uint32_t rows)
{
    bxn_scratch scratch = { 0 };
    loss_context c = { .model = model, .tile = tile_rows(model, rows) };
    take(&c, &scratch);
    return scratch.most + bxn_round_up(bxn_train_linear_bytes(&model->head, 0, c.tile), BXN_ALIGN);
}

static void gather_task(void *context, uint32_t i)
{
    const loss_context *c = context;
    memcpy(c->rows + i * c->ld_s, c->h + c->from[i] * c->ldh, c->model->head.cols * sizeof(float));
}

/* log p of one row's label; then, where a gradient is wanted, coefficient * (onehot - softmax). */
static void row_task(void *context, uint32_t i)
{
    const loss_context *c = context;
    const bxn_kernels *kernels = c->pass->exec.kernels;
    uint32_t vocab = c->model->head.rows, row = c->from[i];
    float *x = c->logits + i * c->ld_v;
    const float max = kernels->row_max(x, vocab);
    /* The label stands apart, so that 1 - p of a sure one keeps its digits. */
    double others = 0, label = (double)x[c->labels[row]] - (double)max;
    x[c->labels[row]] = -INFINITY;
    for (uint32_t v = 0; v < vocab; v += BLOCK)
        others += (double)kernels->exp_sum(x + v, max, vocab - v < BLOCK ? vocab - v : BLOCK);
    if (c->logp != NULL)
        c->logp[row] = (float)(label - log1p(others + expm1(label)));
    if (c->coefficient == NULL)
        return;
    double by_sum = (double)c->coefficient[row] / (others + exp(label));
    kernels->scale(x, (float)-by_sum, vocab);
    x[c->labels[row]] = (float)(by_sum * others);
}

static void scatter_task(void *context, uint32_t i)
{
    const loss_context *c = context;
    memcpy(c->dh + c->from[i] * c->lddh, c->dx + i * c->ld_s, c->model->head.cols * sizeof(float));
}

static bitaxon_status run_tile(loss_context *c)
{
    bxn_train_pass *pass = c->pass;
    const bxn_weight *head = &c->model->head;
    bitaxon_status status = bxn_rows_run(&pass->exec, c->count, gather_task, c);
    if (status == BITAXON_OK)
        status = bxn_train_linear(pass, head, c->rows, c->ld_s, c->count, c->logits, c->ld_v);
    if (status == BITAXON_OK)
        status = bxn_pool_run(pass->exec.pool, c->count, row_task, c, pass->exec.cancel);
    if (status != BITAXON_OK || c->coefficient == NULL)
        return status;
    bxn_pad_rows(c->logits, c->ld_v, head->rows, c->count);
    status = bxn_linear_backward(pass, head, c->rows, c->ld_s, NULL, 0, c->logits, c->ld_v, c->count, c->dx,
                                 c->ld_s, false);
    return status == BITAXON_OK ? bxn_rows_run(&pass->exec, c->count, scatter_task, c) : status;
}

static bitaxon_status run(loss_context *c, uint32_t rows)
{
    bxn_train_pass *pass = c->pass;
    uint32_t vocab = c->model->head.rows, S = c->model->head.cols;
    for (uint32_t t = 0; t < rows; t++)
        if (c->labels[t] >= 0 && (uint32_t)c->labels[t] >= vocab)
            return bxn_fail(pass->exec.error, BITAXON_INVALID_ARGUMENT,
                            "label %d of row %u is not in the vocabulary of %u tokens", c->labels[t], t, vocab);
    size_t used = pass->scratch.used;
    bitaxon_status status = BITAXON_OK;
    c->tile = tile_rows(c->model, rows);
    take(c, &pass->scratch);
    bxn_pad_rows(c->rows, c->ld_s, S, c->tile);
    if (c->logp != NULL)
        memset(c->logp, 0, rows * sizeof *c->logp);
    for (uint32_t t = 0; t < rows && c->coefficient != NULL; t++)
        memset(c->dh + t * c->lddh, 0, bxn_round_up(S, BXN_UNIT_COLS) * sizeof(float));
    for (uint32_t t = 0; t < rows && status == BITAXON_OK; t++) {
        bool wanted = c->labels[t] >= 0 && (c->logp != NULL || c->coefficient[t] != 0);
        if (wanted)
            c->from[c->count++] = t;
        if (c->count == c->tile || (t + 1 == rows && c->count != 0)) {
            status = run_tile(c);
            c->count = 0;
        }
    }
    pass->scratch.used = used;
    return status;
}

bitaxon_status bxn_loss_logprobs(bxn_train_pass *pass, const bxn_model *model, const float *h, size_t ldh,
                                 const int32_t *labels, uint32_t rows, float *logp)
{
    loss_context c = { .pass = pass, .model = model, .h = h, .ldh = ldh, .labels = labels, .logp = logp };
    return run(&c, rows);
}

bitaxon_status bxn_loss_backward(bxn_train_pass *pass, const bxn_model *model, const float *h, size_t ldh,
                                 const int32_t *labels, const float *coefficient, uint32_t rows, float *logp,
                                 float *dh, size_t lddh)
{
    loss_context c = { .pass = pass, .model = model, .h = h, .ldh = ldh, .labels = labels,
                       .coefficient = coefficient, .logp = logp, .dh = dh, .lddh = lddh };
    return run(&c, rows);
}
