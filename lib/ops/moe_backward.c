/* SPDX-License-Identifier: Apache-2.0 */
/* moe_backward.c - mixture of experts in training, the twin of moe.c: the forward over all rows of a
 * micro-step, and the backward (spec 5, appendix B). Called by the pass through the whole model.
 *
 * Pairs of a token and one of its experts are grouped by expert. Experts are taken in waves: as many as have
 * no more pairs than there are tokens (an expert never has more), so that a wave's buffers of hidden rows are
 * those of the tokens, and many small experts still share a parallel region. Results of experts are added
 * to a token in the order of its picks, as in moe.c, to the bit; gradients of the input wave by wave.
 *
 * Results of experts are not kept for the backward: with v = W_down^T dr and h = silu(a) * b, the gradient of
 * a pick's probability is v . h and that of h is probability * v. Where W_down trains it gets
 * h scaled by the probability as its input, and dr as it is. What the backward computes again, unless the
 * forward left it (bxn_keep), is the routing, a and b. Routed experts have no adapters. */
#include "ops/moe_route.h"
#include "ops/train_ops.h"

#include <math.h>
#include <string.h>

typedef struct moe_run {
    bxn_train_pass *pass;
    const bxn_moe *p;
    const float *n;
    size_t ldn, ld_d, ld_i, ld_x;
    uint32_t rows, pairs; /* pairs = rows * top_k */
    /* routing */
    float *logits;   /* [rows, X] ld_x; their gradient in the end */
    float *gate;     /* [rows] rows BXN_UNIT_COLS apart: logit of the shared gate, then its gradient */
    float *weight;   /* [rows, top_k] */
    float *of_pair;  /* [pairs] weight of each, or of each row of the shared expert its sigmoid */
    float *dot;      /* [pairs] gradient of the weight */
    int32_t *picked, *pair_of; /* [rows, top_k] */
    int32_t *pair_row;         /* [pairs] */
    int32_t *first;            /* [X + 1] */
    uint32_t wave_begin, wave_end; /* pairs of the wave */
    bool keep;                     /* routing, a and b stay from the forward to the backward */
    /* hidden rows of a wave or of the shared expert */
    bxn_workspace inputs; /* what products of a list read of quantised weights' inputs, nothing else */
    float *x;       /* [rows, D] gathered input */
    float *a, *b;   /* [rows, I] of the wave, in all_a and all_b */
    float *all_a, *all_b; /* [rows, I]; kept: [rows of the shared expert, then all pairs, I] */
    float *h;       /* forward: [rows, I], in the place of a where that is not kept */
    float *e;       /* forward: [pairs, D] results of experts */
    float *da, *db; /* backward: [rows, I] */
    float *dy;      /* backward: [rows, D] gathered gradient of the result, then the gradient of x */
    const float *dr;
    size_t lddr;
    float *r; /* forward: the result; backward: dn */
    size_t ldr;
} moe_run;

/* Experts with at most a tile of rows are small: they share lists, as many as LIST_ROWS rows in 16s have room for. */
enum { LIST = 56, LIST_ROWS = 512 };

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

static size_t packed_input_bytes(const bxn_weight *w, uint32_t rows)
{
    size_t tiled = bxn_tiled_input_bytes(bxn_round_up(w->cols, BXN_UNIT_COLS), rows, (rows + 15) / 16);
    return w->kind == BXN_WEIGHT_PACKED ? larger(tiled, rows * bxn_input_bytes(w->cols)) : 0;
}

static size_t list_bytes(const bxn_weight *w) { return packed_input_bytes(w, LIST_ROWS); }

/* home: of what a backward needs too; keep: it stays until then, all of it and not a wave's. */
static void take(moe_run *c, bxn_scratch *home, bxn_scratch *scratch, bool keep, bool backward)
{
    const bxn_moe *p = c->p;
    c->ld_d = bxn_train_ld(p->router.cols);
    c->ld_i = bxn_train_ld(p->inner);
    c->ld_x = bxn_train_ld(p->experts);
    c->pairs = c->rows * p->top_k;
    c->logits = bxn_scratch_rows(home, c->rows, c->ld_x);
    c->gate = bxn_scratch_rows(home, c->rows, BXN_UNIT_COLS);
    c->weight = bxn_scratch_take(home, c->pairs * sizeof(float));
    c->picked = bxn_scratch_take(home, c->pairs * sizeof(int32_t));
    c->pair_of = bxn_scratch_take(home, c->pairs * sizeof(int32_t));
    c->pair_row = bxn_scratch_take(home, c->pairs * sizeof(int32_t));
    c->first = bxn_scratch_take(home, ((size_t)p->experts + 1) * sizeof(int32_t));
    c->keep = keep;
    const size_t hidden = keep ? (size_t)(p->shared ? c->rows : 0) + c->pairs : c->rows;
    c->all_a = bxn_scratch_rows(home, hidden, c->ld_i);
    c->all_b = bxn_scratch_rows(home, hidden, c->ld_i);
    c->of_pair = bxn_scratch_take(scratch, c->pairs * sizeof(float));
    c->dot = bxn_scratch_take(scratch, c->pairs * sizeof(float));
    c->inputs.inputs_bytes = larger(list_bytes(&p->gate[0]), larger(list_bytes(&p->up[0]), list_bytes(&p->down[0])));
    c->inputs.inputs = bxn_scratch_take(scratch, c->inputs.inputs_bytes);
    c->x = bxn_scratch_rows(scratch, c->rows, c->ld_d);
    if (backward) {
        c->da = bxn_scratch_rows(scratch, c->rows, c->ld_i);
        c->db = bxn_scratch_rows(scratch, c->rows, c->ld_i);
        c->dy = bxn_scratch_rows(scratch, c->rows, c->ld_d);
    } else {
        c->h = keep ? bxn_scratch_rows(scratch, c->rows, c->ld_i) : c->all_a;
        c->e = bxn_scratch_rows(scratch, c->pairs, c->ld_d);
    }
}

/* The place of a and b: of the shared expert, or of the pairs from `pair` on. */
static void shared_rows(moe_run *c)
{
    c->a = c->all_a;
    c->b = c->all_b;
}

static void pair_rows(moe_run *c, uint32_t pair)
{
    const size_t at = c->keep ? ((size_t)(c->p->shared ? c->rows : 0) + pair) * c->ld_i : 0;
    c->a = c->all_a + at;
    c->b = c->all_b + at;
}

size_t bxn_moe_train_bytes(const bxn_moe *p, uint32_t rows, uint32_t rank, bool kept)
{
    const bxn_weight *weights[] = { &p->router, &p->gate[0], &p->up[0], &p->down[0], &p->shared_gate,
                                    &p->shared_gate_proj, &p->shared_up_proj, &p->shared_down_proj };
    moe_run c = { .p = p, .rows = rows };
    bxn_scratch forward = { 0 }, backward = { 0 }, home = { 0 };
    take(&c, kept ? &home : &forward, &forward, kept, false);
    take(&c, kept ? &home : &backward, &backward, kept, true);
    size_t products = 0;
    for (uint32_t i = 0; i < (p->shared ? 8 : 4); i++)
        products = larger(products, bxn_train_linear_bytes(weights[i], rank, rows));
    return larger(forward.most, backward.most) + bxn_round_up(products, BXN_ALIGN);
}

size_t bxn_moe_kept_bytes(const bxn_moe *p, uint32_t rows)
{
    moe_run c = { .p = p, .rows = rows };
    bxn_scratch kept = { 0 }, scratch = { 0 };
    take(&c, &kept, &scratch, true, false);
    return kept.most;
}

/* ---- routing ------------------------------------------------------------------------------ */

static uint32_t pairs_of(const moe_run *c, uint32_t expert)
{
    return (uint32_t)(c->first[expert + 1] - c->first[expert]);
}

/* Probabilities of one row of logits, as bxn_route_row has them. */
static double softmax(const moe_run *c, uint32_t row, double *max)
{
    const float *logits = c->logits + row * c->ld_x;
    double sum = 0;
    *max = (double)logits[0];
    for (uint32_t e = 1; e < c->p->experts; e++)
        *max = (double)logits[e] > *max ? (double)logits[e] : *max;
    for (uint32_t e = 0; e < c->p->experts; e++)
        sum += exp((double)logits[e] - *max);
    return sum;
}

static bitaxon_status route(moe_run *c, uint32_t layer)
{
    const bxn_moe *p = c->p;
    const bxn_exec *exec = &c->pass->exec;
    bxn_pad_rows(c->logits, c->ld_x, p->experts, c->rows);
    bxn_pad_rows(c->gate, BXN_UNIT_COLS, 1, c->rows);
    bitaxon_status status = bxn_train_linear(c->pass, &p->router, c->n, c->ldn, c->rows, c->logits, c->ld_x);
    if (status == BITAXON_OK && p->shared)
        status = bxn_train_linear(c->pass, &p->shared_gate, c->n, c->ldn, c->rows, c->gate, BXN_UNIT_COLS);
    if (status != BITAXON_OK)
        return status;
    for (uint32_t t = 0; t < c->rows; t++) {
        if (bxn_cancelled(exec->cancel))
            return BITAXON_CANCELLED;
        if (!bxn_route_row(c->logits + t * c->ld_x, p->experts, p->top_k, c->picked + (size_t)t * p->top_k,
                           c->weight + (size_t)t * p->top_k))
            return bxn_route_fail(exec->error, layer, t);
    }
    bxn_route_group(c->picked, c->rows, p->experts, p->top_k, c->first, c->pair_row, c->pair_of);
    return BITAXON_OK;
}

/* X * sum over e of f_e P_e, times rows: f_e the share of picks that e got, P_e its mean probability. */
static double balance_loss(const moe_run *c)
{
    double sum = 0;
    for (uint32_t t = 0; t < c->rows; t++) {
        double max, total = softmax(c, t, &max);
        for (uint32_t e = 0; e < c->p->experts; e++)
            sum += (double)pairs_of(c, e) / (double)c->pairs *
                   exp((double)c->logits[t * c->ld_x + e] - max) / total;
    }
    return (double)c->p->experts * sum;
}

static float gate_of(const moe_run *c, uint32_t row)
{
    return (float)(1.0 / (1.0 + exp(-(double)c->gate[row * (size_t)BXN_UNIT_COLS])));
}

/* ---- waves ---------------------------------------------------------------------------------- */

/* Rows of a, b and h, which products read to a multiple of 128 columns. */
static void pad(moe_run *c)
{
    const uint32_t hidden = c->keep ? (c->p->shared ? c->rows : 0) + c->pairs : c->rows;
    bxn_pad_rows(c->all_a, c->ld_i, c->p->inner, hidden);
    bxn_pad_rows(c->all_b, c->ld_i, c->p->inner, hidden);
    if (c->h != NULL && c->keep)
        bxn_pad_rows(c->h, c->ld_i, c->p->inner, c->rows);
}

/* The next experts from `expert` on that fit together; the first that does not. */
static uint32_t next_wave(moe_run *c, uint32_t expert)
{
    c->wave_begin = c->wave_end = (uint32_t)c->first[expert];
    while (expert < c->p->experts && c->wave_end - c->wave_begin + pairs_of(c, expert) <= c->rows)
        c->wave_end = (uint32_t)c->first[++expert];
    pair_rows(c, c->wave_begin);
    return expert;
}

static void gather_task(void *context, uint32_t i)
{
    const moe_run *c = context;
    size_t row = (size_t)c->pair_row[c->wave_begin + i], width = c->p->router.cols;
    memcpy(c->x + i * c->ld_d, c->n + row * c->ldn, width * sizeof(float));
    if (c->dr != NULL)
        memcpy(c->dy + i * c->ld_d, c->dr + row * c->lddr, width * sizeof(float));
}

/* Products of experts [begin, end) of the wave with their rows of x. What is larger than a tile keeps all
 * threads busy alone. */
static bitaxon_status products(moe_run *c, uint32_t begin, uint32_t end, const bxn_weight *const *weights,
                               uint32_t kinds, const float *x, size_t ldx, float *const *y, size_t ldy)
{
    bxn_exec exec = c->pass->exec;
    bxn_linear_job jobs[LIST];
    uint32_t count = 0;
    size_t bytes = 0;
    bitaxon_status status = BITAXON_OK;
    exec.ws = &c->inputs;
    for (uint32_t at = begin * kinds; at < end * kinds && status == BITAXON_OK; at++) {
        uint32_t e = at / kinds, rows = pairs_of(c, e);
        const bxn_weight *w = &weights[at % kinds][e];
        const float *from = x + ((uint32_t)c->first[e] - c->wave_begin) * ldx;
        float *to = y[at % kinds] + ((uint32_t)c->first[e] - c->wave_begin) * ldy;
        if (rows > BXN_TILE)
            status = bxn_train_linear(c->pass, w, from, ldx, rows, to, ldy);
        if (rows == 0 || rows > BXN_TILE)
            continue;
        size_t need = packed_input_bytes(w, rows);
        if (count == LIST || bytes + need > c->inputs.inputs_bytes) {
            status = bxn_linear_jobs(&exec, jobs, count);
            count = 0;
            bytes = 0;
        }
        jobs[count++] = (bxn_linear_job){ w, { .x = from, .ldx = ldx, .count = rows, .y = to, .ldy = ldy } };
        bytes += need;
    }
    return status == BITAXON_OK && count != 0 ? bxn_linear_jobs(&exec, jobs, count) : status;
}

/* a and b of the shared expert. */
static bitaxon_status shared_hidden(moe_run *c)
{
    const bxn_moe *p = c->p;
    shared_rows(c);
    bitaxon_status status = bxn_train_linear(c->pass, &p->shared_gate_proj, c->n, c->ldn, c->rows, c->a, c->ld_i);
    if (status == BITAXON_OK)
        status = bxn_train_linear(c->pass, &p->shared_up_proj, c->n, c->ldn, c->rows, c->b, c->ld_i);
    return status;
}

/* Those of a wave whose inputs are gathered. */
static bitaxon_status wave_hidden(moe_run *c, uint32_t begin, uint32_t end)
{
    return products(c, begin, end, (const bxn_weight *const[]){ c->p->gate, c->p->up }, 2, c->x, c->ld_d,
                    (float *const[]){ c->a, c->b }, c->ld_i);
}

/* ---- forward -------------------------------------------------------------------------------- */

static void hidden_task(void *context, uint32_t i)
{
    const moe_run *c = context;
    float *h = c->h + i * c->ld_i;
    if (c->keep)
        memcpy(h, c->a + i * c->ld_i, c->p->inner * sizeof *h);
    c->pass->exec.kernels->silu_mul(h, c->b + i * c->ld_i, c->p->inner);
}

static void combine_task(void *context, uint32_t row)
{
    const moe_run *c = context;
    const bxn_moe *p = c->p;
    uint32_t dim = p->router.cols;
    float *r = c->r + row * c->ldr;
    if (p->shared) {
        float gate = gate_of(c, row);
        for (uint32_t i = 0; i < dim; i++)
            r[i] *= gate;
    } else {
        memset(r, 0, dim * sizeof *r);
    }
    for (uint32_t i = 0; i < p->top_k; i++) {
        size_t pick = (size_t)row * p->top_k + i;
        c->pass->exec.kernels->scale_add(r, c->e + (size_t)c->pair_of[pick] * c->ld_d, c->weight[pick], dim);
    }
}

static bitaxon_status forward(moe_run *c)
{
    const bxn_moe *p = c->p;
    bxn_train_pass *pass = c->pass;
    bitaxon_status status = BITAXON_OK;
    if (p->shared) {
        status = shared_hidden(c);
        if (status == BITAXON_OK)
            status = bxn_rows_run(&pass->exec, c->rows, hidden_task, c);
        if (status == BITAXON_OK)
            status = bxn_train_linear(pass, &p->shared_down_proj, c->h, c->ld_i, c->rows, c->r, c->ldr);
    }
    for (uint32_t e = 0, end; e < p->experts && status == BITAXON_OK; e = end) {
        end = next_wave(c, e);
        uint32_t count = c->wave_end - c->wave_begin;
        status = bxn_rows_run(&pass->exec, count, gather_task, c);
        if (status == BITAXON_OK)
            status = wave_hidden(c, e, end);
        if (status == BITAXON_OK)
            status = bxn_rows_run(&pass->exec, count, hidden_task, c);
        if (status == BITAXON_OK)
            status = products(c, e, end, &p->down, 1, c->h, c->ld_i,
                              (float *const[]){ c->e + c->wave_begin * c->ld_d }, c->ld_d);
    }
    return status == BITAXON_OK ? bxn_rows_run(&pass->exec, c->rows, combine_task, c) : status;
}

bitaxon_status bxn_moe_train(bxn_train_pass *pass, const bxn_moe *p, uint32_t layer, const float *n, size_t ldn,
                             float *r, size_t ldr)
{
    moe_run c = { .pass = pass, .p = p, .n = n, .ldn = ldn, .rows = pass->rows, .r = r, .ldr = ldr };
    const size_t used = pass->scratch.used, kept = pass->kept.used;
    const bool leave = pass->keep == BXN_KEEP_LEAVE;
    take(&c, leave ? &pass->kept : &pass->scratch, &pass->scratch, leave, false);
    bxn_pad_rows(c.x, c.ld_d, p->router.cols, c.rows);
    pad(&c);
    bitaxon_status status = route(&c, layer);
    if (status == BITAXON_OK)
        status = forward(&c);
    if (status == BITAXON_OK && pass->balance != 0)
        pass->balance_loss += balance_loss(&c);
    pass->scratch.used = used;
    pass->kept.used = kept;
    return status;
}

/* ---- backward -------------------------------------------------------------------------------- */

static const bxn_weight_grads *grads_of(const moe_run *c, const bxn_weight *w)
{
    static const bxn_weight_grads none;
    return c->pass->grads == NULL ? &none : &c->pass->grads[w->id - 1];
}

static bool trains(const moe_run *c, const bxn_weight *w)
{
    const bxn_weight_grads *grads = grads_of(c, w);
    return grads->w != NULL || grads->a != NULL || grads->b != NULL || grads->m != NULL;
}

/* What a down projection that trains gets as its input, in the place of db: weight * silu(a) * b. */
static void down_input_task(void *context, uint32_t i)
{
    const moe_run *c = context;
    float *h = c->db + i * c->ld_i, weight = c->of_pair[c->wave_begin + i];
    memcpy(h, c->a + i * c->ld_i, c->p->inner * sizeof *h);
    c->pass->exec.kernels->silu_mul(h, c->b + i * c->ld_i, c->p->inner);
    for (uint32_t j = 0; j < c->p->inner; j++)
        h[j] *= weight;
}

/* da holds v: it becomes the gradient of a, and db that of b. */
static void hidden_backward_task(void *context, uint32_t i)
{
    const moe_run *c = context;
    uint32_t pair = c->wave_begin + i;
    c->dot[pair] = c->pass->exec.kernels->silu_mul_backward(c->a + i * c->ld_i, c->b + i * c->ld_i,
                                                            c->da + i * c->ld_i, c->of_pair[pair],
                                                            c->db + i * c->ld_i, c->p->inner);
}

/* Backward of a product whose rows are the tokens: dn is written, or added to. */
static bitaxon_status tokens_backward(moe_run *c, const bxn_weight *w, const float *y, size_t ldy, const float *dy,
                                      size_t lddy, bool add)
{
    return bxn_linear_backward(c->pass, w, c->n, c->ldn, y, ldy, dy, lddy, c->rows, c->r, c->ldr, add);
}

/* The shared expert: its rows are the tokens, its weight is the sigmoid. Writes dn. */
static bitaxon_status shared_backward(moe_run *c)
{
    const bxn_moe *p = c->p;
    bxn_train_pass *pass = c->pass;
    const float *y = NULL;
    bitaxon_status status = BITAXON_OK;
    if (c->keep)
        shared_rows(c);
    else
        status = shared_hidden(c);
    c->wave_begin = 0;
    for (uint32_t t = 0; t < c->rows; t++)
        c->of_pair[t] = gate_of(c, t);
    if (status == BITAXON_OK && trains(c, &p->shared_down_proj))
        status = bxn_rows_run(&pass->exec, c->rows, down_input_task, c);
    if (status == BITAXON_OK && grads_of(c, &p->shared_down_proj)->m != NULL) {
        status = bxn_train_linear(pass, &p->shared_down_proj, c->db, c->ld_i, c->rows, c->x, c->ld_d);
        y = c->x;
    }
    if (status == BITAXON_OK)
        status = bxn_linear_backward(pass, &p->shared_down_proj, c->db, c->ld_i, y, c->ld_d, c->dr, c->lddr,
                                     c->rows, c->da, c->ld_i, false);
    if (status == BITAXON_OK)
        status = bxn_rows_run(&pass->exec, c->rows, hidden_backward_task, c);
    if (status == BITAXON_OK)
        status = tokens_backward(c, &p->shared_gate_proj, c->a, c->ld_i, c->da, c->ld_i, false);
    if (status == BITAXON_OK)
        status = tokens_backward(c, &p->shared_up_proj, c->b, c->ld_i, c->db, c->ld_i, true);
    for (uint32_t t = 0; t < c->rows && status == BITAXON_OK; t++) {
        double e = exp(-fabs((double)c->gate[t * (size_t)BXN_UNIT_COLS])); /* sigmoid' is even */
        c->gate[t * (size_t)BXN_UNIT_COLS] = (float)(e / ((1 + e) * (1 + e)) * (double)c->dot[t]);
    }
    return status == BITAXON_OK ? tokens_backward(c, &p->shared_gate, NULL, 0, c->gate, BXN_UNIT_COLS, true) : status;
}

/* Gradients of x of the wave to the tokens: each in the order of its picks. */
static void scatter_task(void *context, uint32_t row)
{
    const moe_run *c = context;
    for (uint32_t i = 0; i < c->p->top_k; i++) {
        uint32_t pair = (uint32_t)c->pair_of[(size_t)row * c->p->top_k + i];
        if (pair >= c->wave_begin && pair < c->wave_end)
            c->pass->exec.kernels->add(c->r + row * c->ldr, c->dy + (pair - c->wave_begin) * c->ld_d,
                                       c->p->router.cols);
    }
}

/* What small experts have to compute, in one region: `what` of an expert each. */
enum { DOWN_INPUT, DOWN_WEIGHT, HIDDEN_INPUT, GATE_WEIGHT, UP_WEIGHT, WIDE = 480 };

typedef struct small_list {
    const moe_run *c;
    uint32_t count;
    bxn_item items[LIST];
    uint32_t expert[LIST];
    uint8_t what[LIST];
} small_list;

static void small_task(void *context, uint32_t item, uint32_t begin, uint32_t end)
{
    const small_list *list = context;
    const moe_run *c = list->c;
    const bxn_exec *exec = &c->pass->exec;
    const uint32_t e = list->expert[item], rows = pairs_of(c, e), dim = c->p->router.cols, inner = c->p->inner;
    const size_t at = (uint32_t)c->first[e] - c->wave_begin;
    float *x = c->x + at * c->ld_d, *dy = c->dy + at * c->ld_d, *da = c->da + at * c->ld_i, *db = c->db + at * c->ld_i;
    bxn_mm_args product = { .ldx = c->ld_i, .count = rows, .ldy = c->ld_d };
    bxn_outer_args outer = { .rows = rows };
    uint32_t p_cols = inner, q_cols = dim;
    switch (list->what[item]) {
    case DOWN_INPUT:
        product = (bxn_mm_args){ .x = dy, .ldx = c->ld_d, .count = rows, .y = da, .ldy = c->ld_i };
        bxn_product_transposed(exec, &c->p->down[e], begin, end, &product, false);
        return;
    case HIDDEN_INPUT: /* dy is spent */
        product.y = dy;
        product.x = da;
        bxn_product_transposed(exec, &c->p->gate[e], begin, end, &product, false);
        product.x = db;
        bxn_product_transposed(exec, &c->p->up[e], begin, end, &product, true);
        return;
    case DOWN_WEIGHT:
        outer = (bxn_outer_args){ dy, c->ld_d, db, c->ld_i, rows, grads_of(c, &c->p->down[e])->w, inner };
        p_cols = dim;
        q_cols = inner;
        break;
    case GATE_WEIGHT:
        outer = (bxn_outer_args){ da, c->ld_i, x, c->ld_d, rows, grads_of(c, &c->p->gate[e])->w, dim };
        break;
    default:
        outer = (bxn_outer_args){ db, c->ld_i, x, c->ld_d, rows, grads_of(c, &c->p->up[e])->w, dim };
        break;
    }
    p_cols = end * 16 < p_cols ? end * 16 : p_cols;
    for (uint32_t j = 0; j < q_cols; j += WIDE)
        exec->kernels->outer_add(&outer, begin * 16, p_cols, j, q_cols - j < WIDE ? q_cols : j + WIDE);
}

static bitaxon_status run_list(small_list *list)
{
    bitaxon_status status = BITAXON_OK;
    if (list->count != 0)
        status = bxn_ranges_run(&list->c->pass->exec, list->items, list->count, small_task, list);
    list->count = 0;
    return status;
}

/* Groups are 128 columns of an input's gradient, or 16 rows of a weight's. */
static bitaxon_status append(small_list *list, uint32_t expert, int what, uint32_t groups, uint64_t cost)
{
    bitaxon_status status = list->count == LIST ? run_list(list) : BITAXON_OK;
    list->items[list->count] = (bxn_item){ groups, cost * pairs_of(list->c, expert), 0 };
    list->expert[list->count] = expert;
    list->what[list->count++] = (uint8_t)what;
    return status;
}

/* Of the downs of experts [begin, end): da becomes v; or of gates and ups: dy becomes the gradient of x. */
static bitaxon_status experts_backward(moe_run *c, uint32_t begin, uint32_t end, bool downs)
{
    const bxn_moe *p = c->p;
    const uint32_t inner_units = (p->inner + BXN_UNIT_COLS - 1) / BXN_UNIT_COLS, dim = p->router.cols;
    const uint32_t dim_units = (dim + BXN_UNIT_COLS - 1) / BXN_UNIT_COLS;
    const uint32_t inner_groups = (p->inner + 15) / 16, dim_groups = (dim + 15) / 16;
    small_list list = { .c = c };
    bitaxon_status status = BITAXON_OK;
    for (uint32_t e = begin; e < end && status == BITAXON_OK; e++) {
        const uint32_t rows = pairs_of(c, e);
        const size_t at = (uint32_t)c->first[e] - c->wave_begin;
        float *x = c->x + at * c->ld_d, *dy = c->dy + at * c->ld_d;
        float *da = c->da + at * c->ld_i, *db = c->db + at * c->ld_i;
        if (rows > BXN_TILE && downs) {
            status = bxn_linear_backward(c->pass, &p->down[e], db, c->ld_i, NULL, 0, dy, c->ld_d, rows, da, c->ld_i,
                                         false);
        } else if (rows > BXN_TILE) {
            status = bxn_linear_backward(c->pass, &p->gate[e], x, c->ld_d, NULL, 0, da, c->ld_i, rows, dy, c->ld_d,
                                         false);
            if (status == BITAXON_OK)
                status = bxn_linear_backward(c->pass, &p->up[e], x, c->ld_d, NULL, 0, db, c->ld_i, rows, dy, c->ld_d,
                                             true);
        } else if (rows != 0 && downs) {
            status = append(&list, e, DOWN_INPUT, inner_units, (uint64_t)BXN_UNIT_COLS * dim);
            if (status == BITAXON_OK && grads_of(c, &p->down[e])->w != NULL)
                status = append(&list, e, DOWN_WEIGHT, dim_groups, (uint64_t)16 * p->inner);
        } else if (rows != 0) {
            status = append(&list, e, HIDDEN_INPUT, dim_units, (uint64_t)2 * BXN_UNIT_COLS * p->inner);
            if (status == BITAXON_OK && grads_of(c, &p->gate[e])->w != NULL)
                status = append(&list, e, GATE_WEIGHT, inner_groups, (uint64_t)16 * dim);
            if (status == BITAXON_OK && grads_of(c, &p->up[e])->w != NULL)
                status = append(&list, e, UP_WEIGHT, inner_groups, (uint64_t)16 * dim);
        }
    }
    return status == BITAXON_OK ? run_list(&list) : status;
}

static bitaxon_status wave_backward(moe_run *c, uint32_t begin, uint32_t end)
{
    const bxn_moe *p = c->p;
    bxn_train_pass *pass = c->pass;
    uint32_t count = c->wave_end - c->wave_begin;
    bitaxon_status status = bxn_rows_run(&pass->exec, count, gather_task, c);
    if (status == BITAXON_OK && !c->keep)
        status = wave_hidden(c, begin, end);
    bool down_trains = false;
    for (uint32_t e = begin; e < end; e++)
        down_trains |= trains(c, &p->down[e]);
    if (status == BITAXON_OK && down_trains)
        status = bxn_rows_run(&pass->exec, count, down_input_task, c);
    if (status == BITAXON_OK)
        status = experts_backward(c, begin, end, true);
    if (status == BITAXON_OK)
        status = bxn_rows_run(&pass->exec, count, hidden_backward_task, c);
    if (status == BITAXON_OK)
        status = experts_backward(c, begin, end, false);
    return status == BITAXON_OK ? bxn_rows_run(&pass->exec, c->rows, scatter_task, c) : status;
}

/* Logits of one row to their gradient: p * (dp - sum p dp), dp of the picks and, with balancing, of all. */
static void logits_task(void *context, uint32_t row)
{
    const moe_run *c = context;
    const bxn_moe *p = c->p;
    float *logits = c->logits + row * c->ld_x;
    double max, total = softmax(c, row, &max), mean = 0;
    double by_share = (double)c->pass->balance * (double)p->experts / (double)c->pairs;
    const int32_t *picked = c->picked + (size_t)row * p->top_k, *pair = c->pair_of + (size_t)row * p->top_k;
    for (uint32_t i = 0; i < p->top_k; i++)
        mean += exp((double)logits[picked[i]] - max) / total * (double)c->dot[pair[i]];
    for (uint32_t e = 0; e < p->experts && by_share != 0; e++)
        mean += exp((double)logits[e] - max) / total * by_share * (double)pairs_of(c, e);
    for (uint32_t e = 0; e < p->experts; e++) {
        double dp = by_share * (double)pairs_of(c, e);
        for (uint32_t i = 0; i < p->top_k; i++)
            dp += picked[i] == (int32_t)e ? (double)c->dot[pair[i]] : 0;
        logits[e] = (float)(exp((double)logits[e] - max) / total * (dp - mean));
    }
}

static bitaxon_status backward(moe_run *c)
{
    const bxn_moe *p = c->p;
    bxn_train_pass *pass = c->pass;
    bitaxon_status status = BITAXON_OK;
    bxn_pad_rows(c->x, c->ld_d, p->router.cols, c->rows);
    bxn_pad_rows(c->da, c->ld_i, p->inner, c->rows);
    bxn_pad_rows(c->db, c->ld_i, p->inner, c->rows);
    bxn_pad_rows(c->dy, c->ld_d, p->router.cols, c->rows);
    if (p->shared)
        status = shared_backward(c);
    else
        for (uint32_t t = 0; t < c->rows; t++)
            memset(c->r + t * c->ldr, 0, p->router.cols * sizeof(float));
    for (uint32_t i = 0; i < c->pairs; i++)
        c->of_pair[c->pair_of[i]] = c->weight[i];
    for (uint32_t e = 0, end; e < p->experts && status == BITAXON_OK; e = end) {
        end = next_wave(c, e);
        status = wave_backward(c, e, end);
    }
    if (status == BITAXON_OK)
        status = bxn_rows_run(&pass->exec, c->rows, logits_task, c);
    return status == BITAXON_OK ? tokens_backward(c, &p->router, NULL, 0, c->logits, c->ld_x, true) : status;
}

bitaxon_status bxn_moe_backward(bxn_train_pass *pass, const bxn_moe *p, uint32_t layer, const float *n, size_t ldn,
                                float *dr, size_t lddr, float *dn, size_t lddn)
{
    moe_run c = { .pass = pass, .p = p, .n = n, .ldn = ldn, .rows = pass->rows, .dr = dr, .lddr = lddr, .r = dn,
                  .ldr = lddn };
    const size_t used = pass->scratch.used, kept = pass->kept.used;
    const bool found = pass->keep == BXN_KEEP_FIND;
    take(&c, found ? &pass->kept : &pass->scratch, &pass->scratch, found, true);
    bitaxon_status status = BITAXON_OK;
    if (!found) {
        pad(&c);
        status = route(&c, layer);
    }
    if (status == BITAXON_OK)
        status = backward(&c);
    pass->scratch.used = used;
    pass->kept.used = kept;
    return status;
}
