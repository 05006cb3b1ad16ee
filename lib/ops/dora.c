/* SPDX-License-Identifier: Apache-2.0 */
/* dora.c - the norms of weight-decomposed adapters (Liu et al. 2024; spec 9.6): row norms of a weight, the
 * gains m / ||W + s (A B)^T|| without that matrix being made, and the gradient through them. Called when an
 * adapter is made or its values have changed, never for a token. */
#include "ops/train_ops.h"

#include <math.h>

#include "quant/quant.h"

/* ---- row norms -------------------------------------------------------------------------------- */

typedef struct norms_context {
    const bxn_weight *w;
    float *norm2;
} norms_context;

static void norms_task(void *context, uint32_t group)
{
    const norms_context *c = context;
    const bxn_weight *w = c->w;
    const size_t size = w->kind == BXN_WEIGHT_PACKED || w->dense.dtype == BXN_F32 ? 4 : 2;
    for (uint32_t row = group * BXN_UNIT_ROWS; row < w->rows && row < (group + 1) * BXN_UNIT_ROWS; row++) {
        double sum = 0;
        for (uint32_t column = 0; column < w->cols; column += BXN_UNIT_COLS) {
            float values[BXN_UNIT_COLS];
            uint32_t count = w->cols - column < BXN_UNIT_COLS ? w->cols - column : BXN_UNIT_COLS;
            if (w->kind == BXN_WEIGHT_PACKED) { /* a matrix of this column of units alone */
                bxn_packed unit = w->packed;
                unit.data += (size_t)(column / BXN_UNIT_COLS) * unit.unit_bytes;
                unit.cols = count;
                bxn_packed_row(&unit, row, values);
            } else {
                bxn_to_f32((const char *)w->dense.data + ((size_t)row * w->cols + column) * size, w->dense.dtype,
                           count, values);
            }
            for (uint32_t k = 0; k < count; k++)
                sum += (double)values[k] * (double)values[k];
        }
        c->norm2[row] = (float)sum;
    }
}

bitaxon_status bxn_weight_norms(const bxn_exec *exec, const bxn_weight *w, float *norm2)
{
    norms_context c = { w, norm2 };
    return bxn_pool_run(exec->pool, (w->rows + BXN_UNIT_ROWS - 1) / BXN_UNIT_ROWS, norms_task, &c, exec->cancel);
}

/* ---- gains -------------------------------------------------------------------------------------- */

enum { COLUMNS = 256 };

typedef struct gains_context {
    const bxn_lora *lora;
    const float *norm2, *wa, *dm;
    float *gain, *db;
    float *gb; /* [rank, ldb]: A^T A B; then, with dm, B with the factor of each row of W */
    uint32_t rows;
} gains_context;

/* Rows COLUMNS * index ... of W. */
static void gains_task(void *context, uint32_t index)
{
    const gains_context *c = context;
    const bxn_lora *lora = c->lora;
    const double s = (double)lora->scale;
    const size_t ld = lora->ldb;
    for (uint32_t o = index * COLUMNS; o < c->rows && o < (index + 1) * COLUMNS; o++) {
        double cross = 0, square = 0;
        for (uint32_t r = 0; r < lora->rank; r++) {
            double b = (double)lora->b[r * ld + o];
            cross += b * (double)c->wa[r * ld + o];
            square += b * (double)c->gb[r * ld + o];
        }
        const double found = (double)c->norm2[o] + 2 * s * cross + s * s * square;
        const double norm2 = found > 1e-12 ? found : 1e-12, m = (double)lora->m[o];
        c->gain[o] = (float)(m / sqrt(norm2));
        if (c->dm == NULL)
            continue;
        const double factor = found > 1e-12 ? -(double)c->dm[o] * m / norm2 : 0;
        for (uint32_t r = 0; r < lora->rank; r++) {
            float *gb = &c->gb[r * ld + o];
            c->db[r * ld + o] += (float)(factor * s * ((double)c->wa[r * ld + o] + s * (double)*gb));
            *gb = (float)(factor * s * (double)lora->b[r * ld + o]);
        }
    }
}

/* A matrix of the adapter as a weight: [rank, ld]. */
static bxn_weight factor_weight(const float *values, uint32_t rank, size_t ld)
{
    return (bxn_weight){ .kind = BXN_WEIGHT_DENSE, .rows = rank, .cols = (uint32_t)ld,
                         .dense = { values, BXN_F32, rank, (uint32_t)ld } };
}

/* W as it is, without adapters and exact. */
static bxn_weight plain_weight(const bxn_weight *w)
{
    bxn_weight plain = *w;
    plain.id = 0;
    plain.xq = BXN_XQ_NONE;
    return plain;
}

static bitaxon_status dora_gains(bxn_train_pass *pass, const bxn_weight *w, const bxn_lora *lora, const float *norm2,
                                 float *gain, float *wa, const float *dm, float *da, float *db)
{
    const uint32_t rank = lora->rank;
    const size_t ldr = bxn_round_up(rank, BXN_UNIT_COLS);
    const bxn_weight plain = plain_weight(w), a = factor_weight(lora->a, rank, lora->lda),
                     b = factor_weight(lora->b, rank, lora->ldb);
    float *square = bxn_scratch_rows(&pass->scratch, rank, ldr);
    float *gb = bxn_scratch_rows(&pass->scratch, rank, lora->ldb);
    bitaxon_status status = bxn_train_linear(pass, &plain, lora->a, lora->lda, rank, wa, lora->ldb);
    bxn_pad_rows(wa, lora->ldb, w->rows, rank);
    if (status == BITAXON_OK) /* A^T A */
        status = bxn_train_linear(pass, &a, lora->a, lora->lda, rank, square, ldr);
    bxn_pad_rows(square, ldr, rank, rank);
    if (status == BITAXON_OK)
        status = bxn_linear_backward(pass, &b, NULL, 0, NULL, 0, square, ldr, rank, gb, lora->ldb, false);
    gains_context c = { lora, norm2, wa, dm, gain, db, gb, w->rows };
    if (status == BITAXON_OK)
        status = bxn_pool_run(pass->exec.pool, (w->rows + COLUMNS - 1) / COLUMNS, gains_task, &c, pass->exec.cancel);
    if (status != BITAXON_OK || dm == NULL)
        return status;
    /* By A: W through its rows' factors, and the square of A B by A. */
    bxn_pad_rows(gb, lora->ldb, w->rows, rank);
    status = bxn_linear_backward(pass, &plain, NULL, 0, NULL, 0, gb, lora->ldb, rank, da, lora->lda, true);
    if (status == BITAXON_OK)
        status = bxn_train_linear(pass, &b, gb, lora->ldb, rank, square, ldr);
    for (size_t i = 0; i < rank * ldr; i++)
        square[i] *= lora->scale;
    if (status == BITAXON_OK)
        status = bxn_linear_backward(pass, &a, NULL, 0, NULL, 0, square, ldr, rank, da, lora->lda, true);
    return status;
}

bitaxon_status bxn_dora_gains(bxn_train_pass *pass, const bxn_weight *w, const bxn_lora *lora, const float *norm2,
                              float *gain, float *wa, const float *dm, float *da, float *db)
{
    const size_t used = pass->scratch.used;
    bitaxon_status status = dora_gains(pass, w, lora, norm2, gain, wa, dm, da, db);
    pass->scratch.used = used;
    return status;
}

size_t bxn_dora_bytes(const bxn_weight *w, uint32_t rank)
{
    const size_t ldr = bxn_round_up(rank, BXN_UNIT_COLS), lda = bxn_round_up(w->cols, BXN_UNIT_COLS),
                 ldb = bxn_round_up(w->rows, BXN_UNIT_COLS);
    const bxn_weight a = factor_weight(NULL, rank, lda), b = factor_weight(NULL, rank, ldb);
    size_t of_a = bxn_train_linear_bytes(&a, 0, rank), of_b = bxn_train_linear_bytes(&b, 0, rank);
    bxn_scratch scratch = { 0 };
    bxn_scratch_rows(&scratch, rank, ldr);
    bxn_scratch_rows(&scratch, rank, ldb);
    bxn_scratch_take(&scratch, of_a > of_b ? of_a : of_b); /* that of W is as large as that of A */
    return scratch.most;
}
