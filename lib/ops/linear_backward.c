/* SPDX-License-Identifier: Apache-2.0 */
/* linear_backward.c - linear layers in training: the forward over any number of rows, gradients of inputs by
 * the transposed products, of weights by outer products, of adapters by both; dropout. Called by the backward
 * of every sublayer and by that of the model. Rows are taken in blocks of a fixed size, in order; what threads
 * share out are elements of results, each of which is one sum in one order. */
#include "ops/train_ops.h"

#include <assert.h>
#include <string.h>

enum {
    PLAIN = 512, /* rows of a product with floats: fewer regions than tiles */
    BLOCK = 256, /* rows whose adapter parts are computed together */
    PART = 128,  /* rows of one range of dX */
    WIDE_PART = 256, /* the same of codes, which are decoded for each, of weights with WIDE_COLS, */
    WIDE_COLS = 2048, /* which leave ranges enough for threads */
    PARTS = 32,    /* ranges of dX in one region, where there is no adapter, and of dW beside them */
    LOW_ROWS = 32, /* rows of one task of adapter parts */
    WIDE = 480,    /* columns of c in one range of an outer product */
    SUM_COLUMNS = 64
};

static uint32_t groups_of(uint32_t n, uint32_t size)
{
    return (n + size - 1) / size;
}

/* ---- dropout -------------------------------------------------------------------------------- */

void bxn_dropout(const bxn_adapters *adapters, uint32_t id, uint64_t row, const float *x, uint32_t cols, float *out)
{
    /* Eight columns share a number of the generator, 16 bits each. */
    const uint32_t nearest = (uint32_t)(adapters->dropout * 65536.0f + 0.5f);
    const uint32_t limit = nearest < 65535 ? nearest : 65535; /* one in 65536 stays at least */
    const float keep = 65536.0f / (float)(65536 - limit);
    for (uint32_t first = 0; first < cols; first += 8) {
        uint32_t words[4];
        bxn_philox(adapters->dropout_key, (uint64_t)id << 32 | first / 8, row, words);
        for (uint32_t i = 0; i < 8 && first + i < cols; i++)
            out[first + i] = (words[i / 2] >> (i % 2 * 16) & 0xFFFF) < limit ? 0.0f : x[first + i] * keep;
    }
}

/* ---- forward -------------------------------------------------------------------------------- */

/* Of a workspace for one product of a tile, or of PLAIN rows with floats alone, which takes nothing of it. */
static bxn_workspace take_inputs(bxn_scratch *scratch, const bxn_weight *w, uint32_t rank)
{
    size_t tiled = bxn_tiled_input_bytes(w->cols, BXN_TILE, BXN_TILE / 16);
    size_t rows = BXN_TILE * bxn_input_bytes(w->cols);
    size_t dropped = rank == 0 ? 0 : BXN_TILE * bxn_round_up(w->cols, BXN_UNIT_COLS) * sizeof(float);
    bxn_workspace ws = { .inputs_bytes = tiled > rows ? tiled : rows,
                         .low_bytes = bxn_low_rank_bytes(BXN_TILE, rank) + dropped };
    ws.inputs = bxn_scratch_take(scratch, ws.inputs_bytes);
    ws.low = bxn_scratch_take(scratch, ws.low_bytes);
    return ws;
}

static uint32_t rank_of(const bxn_adapters *adapters, const bxn_weight *w)
{
    uint32_t rank = 0;
    for (uint32_t i = 0; adapters != NULL && i < adapters->count; i++) {
        const bxn_lora *lora = bxn_lora_of(adapters, i, w);
        rank += lora != NULL ? lora->rank : 0;
    }
    return rank;
}

bitaxon_status bxn_train_linear(bxn_train_pass *pass, const bxn_weight *w, const float *x, size_t ldx, uint32_t rows,
                                float *y, size_t ldy)
{
    const size_t used = pass->scratch.used;
    bxn_exec exec = pass->exec;
    bxn_workspace ws = take_inputs(&pass->scratch, w, rank_of(exec.adapters, w));
    bxn_adapters adapters = { 0 };
    exec.ws = &ws;
    if (exec.adapters != NULL) {
        adapters = *exec.adapters;
        exec.adapters = &adapters;
        assert(adapters.dropout <= 0 || adapters.count <= 1);
    }
    bitaxon_status status = BITAXON_OK;
    const uint32_t most = w->kind == BXN_WEIGHT_DENSE && rank_of(exec.adapters, w) == 0 ? PLAIN : BXN_TILE;
    assert(most == BXN_TILE || w->xq == BXN_XQ_NONE);
    for (uint32_t t = 0, count; t < rows && status == BITAXON_OK; t += count) {
        count = rows - t < most ? rows - t : most;
        status = bxn_linear(&exec, w, x + t * ldx, ldx, count, y + t * ldy, ldy);
        adapters.first_row += count;
    }
    pass->scratch.used = used;
    return status;
}

/* ---- outer product ---------------------------------------------------------------------------- */

typedef struct outer_context {
    const bxn_kernels *kernels;
    bxn_outer_args args;
    uint32_t p_cols, q_cols;
} outer_context;

/* Rows 16 * begin ... of c, columns WIDE * item ... */
static void outer_task(void *context, uint32_t item, uint32_t begin, uint32_t end)
{
    const outer_context *c = context;
    uint32_t i_end = end * 16 < c->p_cols ? end * 16 : c->p_cols, j = item * WIDE;
    c->kernels->outer_add(&c->args, begin * 16, i_end, j, c->q_cols - j < WIDE ? c->q_cols : j + WIDE);
}

bitaxon_status bxn_outer_add(const bxn_exec *exec, const float *p, size_t ldp, uint32_t p_cols, const float *q,
                             size_t ldq, uint32_t q_cols, uint32_t rows, float *c, size_t ldc)
{
    enum { ITEMS = 64 };
    bitaxon_status status = BITAXON_OK;
    for (uint32_t first = 0; first < q_cols && status == BITAXON_OK; first += ITEMS * WIDE) {
        bxn_item items[ITEMS];
        uint32_t wide = q_cols - first < ITEMS * WIDE ? q_cols - first : ITEMS * WIDE, count = groups_of(wide, WIDE);
        outer_context context = { exec->kernels, { p, ldp, q + first, ldq, rows, c + first, ldc }, p_cols, wide };
        for (uint32_t i = 0; i < count; i++)
            items[i] = (bxn_item){ groups_of(p_cols, 16), (uint64_t)16 * WIDE * rows, 0 };
        status = bxn_ranges_run(exec, items, count, outer_task, &context);
    }
    return status;
}

/* ---- backward --------------------------------------------------------------------------------- */

/* One block of rows. */
typedef struct block_context {
    const bxn_exec *exec;
    const bxn_weight *w;
    const bxn_lora *lora; /* or NULL */
    const bxn_weight_grads *grads;
    uint32_t rows, part; /* part: of one range of dX */
    uint64_t row; /* of the micro-step */
    const float *x, *y, *dy, *dz; /* dz: g o dy, dy itself without gains */
    size_t ldx, ldy, lddy, lddz;
    float *dx;
    size_t lddx;
    bool add;
    uint32_t parts;      /* ranges of dX in a region: all items before those of dW */
    outer_context outer; /* dW, where it is computed beside dX */
    /* scratch */
    float *scaled;  /* dz where there are gains */
    float *dropped; /* [rows, lda]: drop(x); NULL without dropout */
    float *u, *v;   /* [rows, ldr]: s drop(x) A and s dz B^T; NULL where nobody asks */
    size_t ldr;
    float *masked;  /* [rows, lda]: v A^T before elements are dropped; NULL without dropout */
} block_context;

/* LOW_ROWS rows of what adapters need: dz, drop(x), u, v. */
static void low_rank_task(void *context, uint32_t index)
{
    const block_context *c = context;
    const bxn_lora *lora = c->lora;
    const bxn_kernels *kernels = c->exec->kernels;
    const uint32_t first = index * LOW_ROWS, end = c->rows - first < LOW_ROWS ? c->rows : first + LOW_ROWS;
    const uint32_t rows = c->w->rows, cols = c->w->cols;
    for (uint32_t t = first; t < end && c->scaled != NULL; t++) {
        const float *dy = c->dy + t * c->lddy;
        float *out = c->scaled + t * c->lddz;
        for (uint32_t n = 0; n < rows; n++)
            out[n] = lora->gain[n] * dy[n];
        bxn_pad_rows(out, c->lddz, rows, 1);
    }
    for (uint32_t t = first; t < end && c->dropped != NULL; t++) {
        float *out = c->dropped + t * lora->lda;
        bxn_dropout(c->exec->adapters, c->w->id, c->row + t, c->x + t * c->ldx, cols, out);
        bxn_pad_rows(out, lora->lda, cols, 1);
    }
    bxn_mm_args args = { .count = end - first, .ldy = c->ldr };
    if (c->u != NULL) {
        const bxn_dense a = { lora->a, BXN_F32, lora->rank, (uint32_t)lora->lda };
        args.x = c->dropped != NULL ? c->dropped + first * lora->lda : c->x + first * c->ldx;
        args.ldx = c->dropped != NULL ? lora->lda : c->ldx;
        args.y = c->u + first * c->ldr;
        kernels->mm_f32(&a, 0, lora->rank, &args);
    }
    if (c->v != NULL) {
        const bxn_dense b = { lora->b, BXN_F32, lora->rank, (uint32_t)lora->ldb };
        args.x = c->dz + first * c->lddz;
        args.ldx = c->lddz;
        args.y = c->v + first * c->ldr;
        kernels->mm_f32(&b, 0, lora->rank, &args);
    }
    for (uint32_t t = first; t < end; t++) {
        for (uint32_t r = 0; r < lora->rank; r++) {
            if (c->u != NULL)
                c->u[t * c->ldr + r] *= lora->scale;
            if (c->v != NULL)
                c->v[t * c->ldr + r] *= lora->scale;
        }
    }
}

void bxn_product_transposed(const bxn_exec *exec, const bxn_weight *w, uint32_t begin, uint32_t end,
                            const bxn_mm_args *args, bool add)
{
    const bxn_kernels *kernels = exec->kernels;
    if (w->kind == BXN_WEIGHT_PACKED) {
        (w->packed.code_bits == 4 ? kernels->mm_t_packed4 : kernels->mm_t_packed8)(&w->packed, begin, end, args, add);
        return;
    }
    (w->dense.dtype == BXN_F32   ? kernels->mm_t_f32
     : w->dense.dtype == BXN_F16 ? kernels->mm_t_f16
                                 : kernels->mm_t_bf16)(&w->dense, begin, end, args, add);
}

/* dX of a part of the rows, columns 128 * begin ... */
static void input_task(void *context, uint32_t item, uint32_t begin, uint32_t end)
{
    const block_context *c = context;
    const bxn_lora *lora = c->lora;
    const bxn_kernels *kernels = c->exec->kernels;
    const size_t first = (size_t)item * c->part;
    bxn_mm_args args = { .x = c->dz + first * c->lddz, .ldx = c->lddz, .y = c->dx + first * c->lddx, .ldy = c->lddx };
    args.count = c->rows - (uint32_t)first < c->part ? c->rows - (uint32_t)first : c->part;
    bxn_product_transposed(c->exec, c->w, begin, end, &args, c->add);
    if (lora == NULL)
        return;
    const bxn_dense a = { lora->a, BXN_F32, lora->rank, (uint32_t)lora->lda };
    args.x = c->v + first * c->ldr;
    args.ldx = c->ldr;
    if (c->masked == NULL) {
        kernels->mm_t_f32(&a, begin, end, &args, true);
        return;
    }
    args.y = c->masked + first * lora->lda;
    args.ldy = lora->lda;
    kernels->mm_t_f32(&a, begin, end, &args, false);
}

/* dX, or what follows it in the list: dW. */
static void full_task(void *context, uint32_t item, uint32_t begin, uint32_t end)
{
    block_context *c = context;
    if (item < c->parts)
        input_task(c, item, begin, end);
    else
        outer_task(&c->outer, item - c->parts, begin, end);
}

/* Without an adapter: dX of a block and its part of dW, whose order of sums is by 128 rows, in one region. */
static bitaxon_status full_block(block_context *c)
{
    const bxn_weight *w = c->w;
    bxn_item items[2 * PARTS];
    const bool trains = c->grads != NULL && c->grads->w != NULL;
    const uint32_t outers = trains ? groups_of(w->cols, WIDE) : 0;
    c->parts = c->dx != NULL ? groups_of(c->rows, c->part) : 0;
    for (uint32_t i = 0; i < c->parts; i++)
        items[i] = (bxn_item){ groups_of(w->cols, BXN_UNIT_COLS), (uint64_t)BXN_UNIT_COLS * w->rows * c->part, 0 };
    if (outers > PARTS) { /* a list of its own */
        bitaxon_status status = bxn_outer_add(c->exec, c->dy, c->lddy, w->rows, c->x, c->ldx, w->cols, c->rows,
                                              c->grads->w, w->cols);
        return status == BITAXON_OK && c->parts != 0 ? bxn_ranges_run(c->exec, items, c->parts, input_task, c) : status;
    }
    for (uint32_t i = 0; i < outers; i++)
        items[c->parts + i] = (bxn_item){ groups_of(w->rows, 16), (uint64_t)16 * WIDE * c->rows, 0 };
    if (trains)
        c->outer = (outer_context){ c->exec->kernels, { c->dy, c->lddy, c->x, c->ldx, c->rows, c->grads->w, w->cols },
                                    w->rows, w->cols };
    return c->parts + outers == 0 ? BITAXON_OK : bxn_ranges_run(c->exec, items, c->parts + outers, full_task, c);
}

/* Of one row: dx += what the adapter gives, without dropped elements. */
static void masked_task(void *context, uint32_t t)
{
    const block_context *c = context;
    float *row = c->masked + t * c->lora->lda;
    bxn_dropout(c->exec->adapters, c->w->id, c->row + t, row, c->w->cols, row);
    c->exec->kernels->add(c->dx + t * c->lddx, row, c->w->cols);
}

/* dm of SUM_COLUMNS columns: a row whose magnitude is 0 gives none. */
static void magnitude_task(void *context, uint32_t index)
{
    const block_context *c = context;
    double sums[SUM_COLUMNS] = { 0 };
    const uint32_t first = index * SUM_COLUMNS;
    const uint32_t count = c->w->rows - first < SUM_COLUMNS ? c->w->rows - first : SUM_COLUMNS;
    for (uint32_t t = 0; t < c->rows; t++) {
        const float *dy = c->dy + t * c->lddy + first, *y = c->y + t * c->ldy + first;
        for (uint32_t n = 0; n < count; n++)
            sums[n] += (double)dy[n] * (double)y[n];
    }
    for (uint32_t n = 0; n < count; n++)
        if (c->lora->m[first + n] != 0)
            c->grads->m[first + n] += (float)(sums[n] / (double)c->lora->m[first + n]);
}

static bitaxon_status adapted_block(block_context *c)
{
    const bxn_exec *exec = c->exec;
    const bxn_weight *w = c->w;
    const bxn_lora *lora = c->lora;
    bitaxon_status status =
        bxn_pool_run(exec->pool, groups_of(c->rows, LOW_ROWS), low_rank_task, c, exec->cancel);
    if (status == BITAXON_OK && c->dx != NULL) {
        bxn_item items[PARTS];
        uint32_t parts = groups_of(c->rows, c->part);
        for (uint32_t i = 0; i < parts; i++)
            items[i] = (bxn_item){ groups_of(w->cols, BXN_UNIT_COLS), (uint64_t)BXN_UNIT_COLS * w->rows * c->part, 0 };
        status = bxn_ranges_run(exec, items, parts, input_task, c);
        if (status == BITAXON_OK && c->masked != NULL)
            status = bxn_rows_run(exec, c->rows, masked_task, c);
    }
    if (c->grads == NULL)
        return status;
    if (status == BITAXON_OK && c->grads->b != NULL)
        status =
            bxn_outer_add(exec, c->u, c->ldr, lora->rank, c->dz, c->lddz, w->rows, c->rows, c->grads->b, lora->ldb);
    if (status == BITAXON_OK && c->grads->a != NULL)
        status = c->dropped != NULL
                     ? bxn_outer_add(exec, c->v, c->ldr, lora->rank, c->dropped, lora->lda, w->cols, c->rows,
                                     c->grads->a, lora->lda)
                     : bxn_outer_add(exec, c->v, c->ldr, lora->rank, c->x, c->ldx, w->cols, c->rows, c->grads->a,
                                     lora->lda);
    if (status == BITAXON_OK && c->grads->m != NULL && lora->m != NULL)
        status = bxn_pool_run(exec->pool, groups_of(w->rows, SUM_COLUMNS), magnitude_task, c, exec->cancel);
    return status;
}

/* Takes the scratch of a block; all that any adapter of this rank may need when counting. */
static void take_block(block_context *c, bxn_scratch *scratch, uint32_t rows, uint32_t rank, bool gains, bool dropout)
{
    const size_t ldn = bxn_round_up(c->w->rows, BXN_UNIT_COLS), lda = bxn_round_up(c->w->cols, BXN_UNIT_COLS);
    c->ldr = bxn_round_up(rank, BXN_UNIT_COLS);
    if (rank == 0)
        return;
    if (gains) {
        c->scaled = bxn_scratch_rows(scratch, rows, ldn);
        c->dz = c->scaled;
        c->lddz = ldn;
    }
    if (dropout) {
        c->dropped = bxn_scratch_rows(scratch, rows, lda);
        c->masked = bxn_scratch_rows(scratch, rows, lda);
    }
    c->u = bxn_scratch_rows(scratch, rows, c->ldr);
    c->v = bxn_scratch_rows(scratch, rows, c->ldr);
    if (c->u != NULL) /* products read rows to the next multiple of 128 */
        for (uint32_t t = 0; t < rows; t++)
            for (size_t r = rank; r < c->ldr; r++)
                c->u[t * c->ldr + r] = c->v[t * c->ldr + r] = 0;
}

bitaxon_status bxn_linear_backward(bxn_train_pass *pass, const bxn_weight *w, const float *x, size_t ldx,
                                   const float *y, size_t ldy, const float *dy, size_t lddy, uint32_t rows,
                                   float *dx, size_t lddx, bool add)
{
    const bxn_exec *exec = &pass->exec;
    const bxn_adapters *adapters = exec->adapters;
    const size_t used = pass->scratch.used;
    const bxn_weight_grads *grads = pass->grads != NULL && w->id != 0 ? &pass->grads[w->id - 1] : NULL;
    const bxn_lora *lora = NULL;
    if (adapters != NULL && adapters->count != 0) {
        assert(adapters->count == 1 && adapters->weights[0] == 1.0f);
        lora = bxn_lora_of(adapters, 0, w);
    }
    block_context c = { .exec = exec, .w = w, .lora = lora, .grads = grads, .ldx = ldx, .ldy = ldy, .lddy = lddy,
                        .lddz = lddy, .lddx = lddx, .add = add,
                        .part = w->kind == BXN_WEIGHT_PACKED && w->cols >= WIDE_COLS ? WIDE_PART : PART };
    if (lora != NULL)
        take_block(&c, &pass->scratch, rows < BLOCK ? rows : BLOCK, lora->rank, lora->gain != NULL,
                   adapters->dropout > 0);
    if (grads == NULL || grads->b == NULL)
        c.u = NULL;
    if (dx == NULL && (grads == NULL || grads->a == NULL))
        c.v = NULL;
    bitaxon_status status = BITAXON_OK;
    if (lora != NULL && dx == NULL &&
        (grads == NULL || (grads->a == NULL && grads->b == NULL && grads->m == NULL)))
        rows = 0;
    assert((dx == NULL || (dx != x && dx != dy)) && (lora == NULL || grads == NULL || grads->w == NULL));
    const uint32_t block = lora != NULL ? BLOCK : PARTS * c.part;
    for (uint32_t t = 0; t < rows && status == BITAXON_OK; t += block) {
        c.rows = rows - t < block ? rows - t : block;
        c.row = (adapters != NULL ? adapters->first_row : 0) + t;
        c.x = x + t * ldx;
        c.y = y != NULL ? y + t * ldy : NULL;
        c.dy = dy + t * lddy;
        c.dz = c.scaled != NULL ? c.scaled : c.dy;
        c.dx = dx != NULL ? dx + t * lddx : NULL;
        status = lora != NULL ? adapted_block(&c) : full_block(&c);
    }
    pass->scratch.used = used;
    return status;
}

size_t bxn_train_linear_bytes(const bxn_weight *w, uint32_t rank, uint32_t rows)
{
    bxn_scratch scratch = { 0 };
    block_context c = { .w = w };
    (void)take_inputs(&scratch, w, rank);
    scratch.used = 0;
    take_block(&c, &scratch, rows < BLOCK ? rows : BLOCK, rank, true, true);
    size_t gains = rank == 0 ? 0 : bxn_dora_bytes(w, rank);
    return scratch.most > gains ? scratch.most : gains;
}
