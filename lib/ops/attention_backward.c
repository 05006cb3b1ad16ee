/* SPDX-License-Identifier: Apache-2.0 */
/* attention_backward.c - sliding-window attention in training, twin of attention.c: the forward over all
 * documents of a micro-step and its backward (Dao et al. 2022, FlashAttention: no matrix of all scores,
 * probabilities are computed again from what each row keeps of its softmax). Called by the backward of the
 * model. Positions count from the first row of a document, and no row sees another document.
 *
 * Heads and stretches of rows are shared out among threads. Of the backward a whole head of a document is the
 * cheapest piece of work; where those are too few, keys and queries are cut into stretches, of which each owns
 * the gradients of its rows. The bits are the same. */
#include "ops/train_ops.h"

#include <math.h>
#include <string.h>

enum {
    TASKS = 16,   /* at most; their scratch is taken beforehand */
    STRETCH = 256 /* rows of a piece of a head: tiles of BXN_QUERIES that begin in it */
};

/* Rows of a pass, [rows, heads * head_dim] ld each, and what the backward needs of softmaxes. */
typedef struct buffers {
    float *q, *k, *v, *o;
    size_t ld;
    float *top, *inverse, *delta; /* [heads, rows] */
    float *scratch;               /* of the tasks */
    size_t scratch_floats;        /* of one */
} buffers;

static uint32_t width(const bxn_attention *p)
{
    return p->heads * p->head_dim;
}

/* home: of what the forward may leave for the backward. */
static buffers take_buffers(bxn_scratch *home, bxn_scratch *scratch, const bxn_attention *p, uint32_t rows)
{
    buffers b = { .ld = bxn_train_ld(width(p)) };
    b.q = bxn_scratch_rows(home, rows, b.ld);
    b.k = bxn_scratch_rows(home, rows, b.ld);
    b.v = bxn_scratch_rows(home, rows, b.ld);
    b.o = bxn_scratch_rows(home, rows, b.ld);
    b.top = bxn_scratch_rows(home, p->heads, rows);
    b.inverse = bxn_scratch_rows(home, p->heads, rows);
    b.delta = bxn_scratch_rows(scratch, p->heads, rows);
    b.scratch_floats = bxn_round_up(bxn_attention_train_scratch(p->head_dim), 16);
    b.scratch = bxn_scratch_rows(scratch, TASKS, b.scratch_floats);
    return b;
}

size_t bxn_attention_train_bytes(const bxn_attention *p, uint32_t rows, uint32_t rank, bool full)
{
    const bxn_weight *const weights[] = { &p->q_proj, &p->k_proj, &p->v_proj, &p->o_proj };
    bxn_scratch count = { 0 };
    size_t most = 0;
    (void)full; /* gradients of weights go straight to their arrays */
    take_buffers(&count, &count, p, rows);
    for (size_t i = 0; i < sizeof weights / sizeof weights[0]; i++) {
        size_t bytes = bxn_train_linear_bytes(weights[i], rank, rows);
        most = bytes > most ? bytes : most;
    }
    return count.most + most;
}

size_t bxn_attention_kept_bytes(const bxn_attention *p, uint32_t rows)
{
    bxn_scratch kept = { 0 }, scratch = { 0 };
    take_buffers(&kept, &scratch, p, rows);
    return kept.most;
}

/* The document that a row belongs to. */
static uint32_t document_of(const bxn_train_pass *pass, uint32_t row)
{
    uint32_t low = 0, high = pass->document_count;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (pass->documents[middle].first <= row)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* ---- rotary position ---------------------------------------------------------------------------- */

typedef struct turn_context {
    const bxn_train_pass *pass;
    const bxn_attention *p;
    float *x;
    size_t ld;
    float sign;
} turn_context;

/* All heads of a row as bxn_rope_row does one, or back. */
static void turn_task(void *context, uint32_t row)
{
    const turn_context *c = context;
    const uint32_t dim = c->p->head_dim, half = dim / 2;
    const uint32_t position = row - c->pass->documents[document_of(c->pass, row)].first;
    for (uint32_t i = 0; i < half; i++) {
        const double angle = (double)position * pow((double)c->p->rope_theta, -2.0 * i / dim);
        const float cosine = (float)cos(angle), sine = c->sign * (float)sin(angle);
        float *x = c->x + row * c->ld + i;
        for (uint32_t h = 0; h < c->p->heads; h++, x += dim) {
            const float a = x[0], b = x[half];
            x[0] = a * cosine - b * sine;
            x[half] = b * cosine + a * sine;
        }
    }
}

/* Rows turned by their positions; sign -1: back. */
static bitaxon_status turn(const bxn_train_pass *pass, const bxn_attention *p, float *x, size_t ld, float sign)
{
    turn_context c = { pass, p, x, ld, sign };
    if (p->rope_theta <= 0)
        return BITAXON_OK;
    return bxn_rows_run(&pass->exec, pass->rows, turn_task, &c);
}

/* ---- heads ----------------------------------------------------------------------------------------- */

/* What a parallel region computes: the forward; of the backward all of heads, or dk and dv, or dq. */
typedef enum work_kind { FORWARD, WHOLE, KEYS, QUERIES } work_kind;

typedef struct work {
    const bxn_train_pass *pass;
    const bxn_attention *p;
    const buffers *b;
    work_kind kind;
    uint32_t pieces;
    const float *dout;
    float *dk;
    size_t lddout, lddk;
    atomic_uint next;
} work;

/* Rows [begin, end) of one head of a document. */
static void run_rows(const work *w, uint32_t head, const bxn_document *document, uint32_t begin, uint32_t end,
                     float *scratch)
{
    const buffers *b = w->b;
    const size_t column = (size_t)head * w->p->head_dim, first = document->first;
    const size_t at = first * b->ld + column, row = (size_t)head * w->pass->rows + first;
    bxn_attention_train_args args = {
        .q = b->q + at,
        .k = b->k + at,
        .v = b->v + at,
        .ld = b->ld,
        .rows = document->count,
        .head_dim = w->p->head_dim,
        .window = w->p->window,
        .scale = (float)(1.0 / sqrt((double)w->p->head_dim)),
        .begin = begin,
        .end = end,
        .scratch = scratch,
        .top = b->top + row,
        .inverse = b->inverse + row,
    };
    if (w->kind == FORWARD) {
        args.out = b->o + at;
        args.ldout = b->ld;
        w->pass->exec.kernels->attention_train(&args);
        return;
    }
    args.delta = b->delta + row;
    args.dout = w->dout + first * w->lddout + column;
    args.lddout = w->lddout;
    if (w->kind != KEYS) {
        args.dq = b->q + at;
        args.lddq = b->ld;
    }
    if (w->kind != QUERIES) {
        args.dk = w->dk + first * w->lddk + column;
        args.lddk = w->lddk;
        args.dv = b->o + at;
        args.lddv = b->ld;
    }
    w->pass->exec.kernels->attention_backward(&args);
}

/* Tiles that begin in a stretch of the micro-step's rows, of all documents there. */
static void run_stretch(const work *w, uint32_t head, uint32_t stretch, float *scratch)
{
    const bxn_train_pass *pass = w->pass;
    const uint32_t from = stretch * STRETCH, left = pass->rows - from;
    const uint32_t to = left < STRETCH ? pass->rows : from + STRETCH;
    for (uint32_t d = document_of(pass, from); d < pass->document_count; d++) {
        const bxn_document *document = &pass->documents[d];
        if (document->first >= to)
            break;
        uint32_t begin = document->first < from ? from - document->first : 0, end = to - document->first;
        begin = (uint32_t)bxn_round_up(begin, BXN_QUERIES);
        end = (uint32_t)bxn_round_up(end, BXN_QUERIES);
        end = end < document->count ? end : document->count;
        if (begin < end)
            run_rows(w, head, document, begin, end, scratch);
    }
}

static void work_task(void *context, uint32_t task)
{
    work *w = context;
    const uint32_t heads = w->p->heads;
    float *scratch = w->b->scratch + task * w->b->scratch_floats;
    uint32_t piece;
    while (!bxn_cancelled(w->pass->exec.cancel) &&
           (piece = atomic_fetch_add_explicit(&w->next, 1, memory_order_relaxed)) < w->pieces) {
        if (w->kind == WHOLE) {
            const bxn_document *document = &w->pass->documents[piece / heads];
            run_rows(w, piece % heads, document, 0, document->count, scratch);
        } else {
            run_stretch(w, piece % heads, piece / heads, scratch);
        }
    }
}

static bitaxon_status run_work(work *w, work_kind kind)
{
    const bxn_exec *exec = &w->pass->exec;
    const uint32_t units = kind == WHOLE ? w->pass->document_count : (w->pass->rows + STRETCH - 1) / STRETCH;
    w->kind = kind;
    w->pieces = units * w->p->heads;
    atomic_store_explicit(&w->next, 0, memory_order_relaxed);
    return bxn_pool_run(exec->pool, w->pieces < TASKS ? w->pieces : TASKS, work_task, w, exec->cancel);
}

/* Whether a whole head of the longest document is too large a part of the work to be one piece. */
static bool cut_heads(const bxn_train_pass *pass, const bxn_attention *p)
{
    uint64_t all = 0, most = 0;
    for (uint32_t d = 0; d < pass->document_count; d++) {
        uint64_t n = pass->documents[d].count, seen = p->window < n ? p->window : n;
        uint64_t pairs = seen * (seen + 1) / 2 + (n - seen) * seen;
        all += pairs;
        most = pairs > most ? pairs : most;
    }
    const uint32_t threads = bxn_pool_threads(pass->exec.pool);
    return threads > 1 && most * 2 * threads > all * p->heads;
}

/* ---- forward ---------------------------------------------------------------------------------------- */

static bitaxon_status project(bxn_train_pass *pass, const bxn_attention *p, const bxn_weight *w, const float *n,
                              size_t ldn, float *y, size_t ld, bool turned)
{
    bitaxon_status status = bxn_train_linear(pass, w, n, ldn, pass->rows, y, ld);
    if (status != BITAXON_OK)
        return status;
    bxn_pad_rows(y, ld, width(p), pass->rows);
    return turned ? turn(pass, p, y, ld, 1.0f) : BITAXON_OK;
}

/* q, k, v as they meet, o and what is kept of the softmaxes. */
static bitaxon_status attend(bxn_train_pass *pass, const bxn_attention *p, const float *n, size_t ldn,
                             const buffers *b)
{
    bitaxon_status status = project(pass, p, &p->q_proj, n, ldn, b->q, b->ld, true);
    if (status == BITAXON_OK)
        status = project(pass, p, &p->k_proj, n, ldn, b->k, b->ld, true);
    if (status == BITAXON_OK)
        status = project(pass, p, &p->v_proj, n, ldn, b->v, b->ld, false);
    if (status != BITAXON_OK)
        return status;
    bxn_pad_rows(b->o, b->ld, width(p), pass->rows);
    work w = { .pass = pass, .p = p, .b = b };
    return run_work(&w, FORWARD);
}

bitaxon_status bxn_attention_train(bxn_train_pass *pass, const bxn_attention *p, const float *n, size_t ldn, float *r,
                                   size_t ldr)
{
    const size_t used = pass->scratch.used, kept = pass->kept.used;
    bxn_scratch *home = pass->keep == BXN_KEEP_LEAVE ? &pass->kept : &pass->scratch;
    buffers b = take_buffers(home, &pass->scratch, p, pass->rows);
    bitaxon_status status = attend(pass, p, n, ldn, &b);
    if (status == BITAXON_OK)
        status = bxn_train_linear(pass, &p->o_proj, b.o, b.ld, pass->rows, r, ldr);
    pass->scratch.used = used;
    pass->kept.used = kept;
    return status;
}

/* ---- backward ----------------------------------------------------------------------------------------- */

typedef struct delta_context {
    const bxn_train_pass *pass;
    const bxn_attention *p;
    const buffers *b;
    const float *dout;
    size_t lddout;
} delta_context;

/* Of every head of a row: the sum of dout * o, in eight sums side by side. */
static void delta_task(void *context, uint32_t row)
{
    const delta_context *c = context;
    const uint32_t dim = c->p->head_dim;
    const float *dout = c->dout + row * c->lddout, *o = c->b->o + row * c->b->ld;
    for (uint32_t h = 0; h < c->p->heads; h++, dout += dim, o += dim) {
        float sums[8] = { 0 };
        uint32_t f = 0;
        for (; f + 8 <= dim; f += 8)
            for (uint32_t i = 0; i < 8; i++)
                sums[i] += dout[f + i] * o[f + i];
        for (uint32_t i = 0; f + i < dim; i++)
            sums[i] += dout[f + i] * o[f + i];
        c->b->delta[(size_t)h * c->pass->rows + row] =
            ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
    }
}

/* Whether the backward of a weight reads the result of its forward (a DoRA magnitude trains). */
static bool reads_result(const bxn_train_pass *pass, const bxn_weight *w)
{
    return pass->grads != NULL && w->id != 0 && pass->grads[w->id - 1].m != NULL;
}

/* From dout, in dn: dq in the place of q, dk in that of dr, dv in that of o. */
static bitaxon_status backward_heads(bxn_train_pass *pass, const bxn_attention *p, const buffers *b, float *dr,
                                     size_t lddr, const float *dn, size_t lddn)
{
    delta_context delta = { pass, p, b, dn, lddn };
    work w = { .pass = pass, .p = p, .b = b, .dout = dn, .lddout = lddn, .dk = dr, .lddk = lddr };
    bitaxon_status status = bxn_rows_run(&pass->exec, pass->rows, delta_task, &delta);
    if (status != BITAXON_OK)
        return status;
    if (cut_heads(pass, p)) {
        status = run_work(&w, KEYS);
        if (status == BITAXON_OK)
            status = run_work(&w, QUERIES);
    } else {
        status = run_work(&w, WHOLE);
    }
    if (status == BITAXON_OK)
        status = turn(pass, p, b->q, b->ld, -1.0f);
    if (status == BITAXON_OK)
        status = turn(pass, p, dr, lddr, -1.0f);
    return status;
}

/* Gradients of o_proj, and dout to dn. Its result, if it is read, takes the place of q for a while. */
static bitaxon_status backward_out(bxn_train_pass *pass, const bxn_attention *p, const buffers *b, const float *n,
                                   size_t ldn, const float *dr, size_t lddr, float *dn, size_t lddn)
{
    const bool reads = reads_result(pass, &p->o_proj);
    bitaxon_status status = BITAXON_OK;
    if (reads)
        status = bxn_train_linear(pass, &p->o_proj, b->o, b->ld, pass->rows, b->q, b->ld);
    if (status == BITAXON_OK)
        status = bxn_linear_backward(pass, &p->o_proj, b->o, b->ld, reads ? b->q : NULL, b->ld, dr, lddr, pass->rows,
                                     dn, lddn, false);
    if (status == BITAXON_OK && reads)
        status = project(pass, p, &p->q_proj, n, ldn, b->q, b->ld, true);
    return status;
}

bitaxon_status bxn_attention_backward(bxn_train_pass *pass, const bxn_attention *p, const float *n, size_t ldn,
                                      float *dr, size_t lddr, float *dn, size_t lddn)
{
    const size_t used = pass->scratch.used, kept = pass->kept.used;
    const uint32_t rows = pass->rows;
    const bool found = pass->keep == BXN_KEEP_FIND;
    buffers b = take_buffers(found ? &pass->kept : &pass->scratch, &pass->scratch, p, rows);
    bitaxon_status status = found ? BITAXON_OK : attend(pass, p, n, ldn, &b);
    if (status == BITAXON_OK)
        status = backward_out(pass, p, &b, n, ldn, dr, lddr, dn, lddn);
    if (status == BITAXON_OK)
        status = backward_heads(pass, p, &b, dr, lddr, dn, lddn);
    /* v still holds the result of v_proj; those of k_proj (turned) and q_proj are made again where they are read. */
    if (status == BITAXON_OK)
        status = bxn_linear_backward(pass, &p->v_proj, n, ldn, b.v, b.ld, b.o, b.ld, rows, dn, lddn, false);
    const float *y = b.k;
    if (status == BITAXON_OK && reads_result(pass, &p->k_proj) && p->rope_theta > 0) {
        status = bxn_train_linear(pass, &p->k_proj, n, ldn, rows, b.v, b.ld);
        y = b.v;
    }
    if (status == BITAXON_OK)
        status = bxn_linear_backward(pass, &p->k_proj, n, ldn, y, b.ld, dr, lddr, rows, dn, lddn, true);
    if (status == BITAXON_OK && reads_result(pass, &p->q_proj))
        status = bxn_train_linear(pass, &p->q_proj, n, ldn, rows, b.k, b.ld);
    if (status == BITAXON_OK)
        status = bxn_linear_backward(pass, &p->q_proj, n, ldn, b.k, b.ld, b.q, b.ld, rows, dn, lddn, true);
    pass->scratch.used = used;
    pass->kept.used = kept;
    return status;
}
