/* SPDX-License-Identifier: Apache-2.0 */
/* optimizer.c - what turns gradients into new values: the schedule of the rate, the global norm, AdamW
 * (Loshchilov & Hutter 2019) and, for matrices, Muon (Jordan et al. 2024). Called by the trainer once
 * per update. Values are worked on element by element, and every sum has one fixed order, so that
 * the bits do not depend on threads. */
#include "train/bxn_train.h"

#include <math.h>
#include <string.h>

#define PIECE 4096     /* floats that a task takes at least */
#define NORM_PARTS 512 /* partial sums of the norm, each over the same part whatever the threads */
#define NORM_LANES 16  /* partial sums of square_sum: parts are whole rounds of them */

double bxn_learning_rate(const bxn_optimizer *o, uint64_t update)
{
    const double pi = 3.14159265358979323846;
    if (update < o->warmup)
        return o->learning_rate * ((double)update + 1) / (double)o->warmup;
    uint64_t past = update - o->warmup, length = o->total > o->warmup ? o->total - o->warmup : 1;
    double at = past < length ? (double)past / (double)length : 1;
    return o->min_learning_rate + (o->learning_rate - o->min_learning_rate) * (1 + cos(pi * at)) / 2;
}

/* ---- norm ------------------------------------------------------------------------------- */

typedef struct norm_context {
    const bxn_kernels *kernels;
    const float *grad;
    size_t floats, part;
    double sums[NORM_PARTS];
} norm_context;

static void norm_task(void *context, uint32_t item, uint32_t begin, uint32_t end)
{
    norm_context *c = context;
    (void)item;
    for (uint32_t i = begin; i < end; i++) {
        size_t from = i * c->part, to = from + c->part < c->floats ? from + c->part : c->floats;
        c->sums[i] = c->kernels->square_sum(c->grad + from, to - from);
    }
}

bitaxon_status bxn_gradient_norm(const bxn_exec *exec, const bxn_parameters *parameters, double scale, double *norm)
{
    norm_context c = { .kernels = exec->kernels, .grad = parameters->grad, .floats = parameters->floats };
    c.part = bxn_round_up(parameters->floats / NORM_PARTS + 1, NORM_LANES);
    uint32_t parts = (uint32_t)((c.floats + c.part - 1) / c.part);
    bxn_item item = { parts, c.part, 0 };
    bitaxon_status status = parts == 0 ? BITAXON_OK : bxn_ranges_run(exec, &item, 1, norm_task, &c);
    if (status != BITAXON_OK)
        return status;
    double sum = 0;
    for (uint32_t i = 0; i < parts; i++)
        sum += c.sums[i];
    *norm = sqrt(sum) * fabs(scale);
    return BITAXON_OK;
}

/* ---- AdamW ------------------------------------------------------------------------------ */

typedef struct update_context {
    const bxn_kernels *kernels;
    const bxn_parameters *parameters;
    bool muon;  /* matrices are not taken */
    bxn_adamw a;
    float keep; /* 1 - rate * decay */
} update_context;

/* Pieces of the flat arrays, with all parameters that lie in them. */
static void adamw_task(void *context, uint32_t item, uint32_t begin, uint32_t end)
{
    const update_context *c = context;
    const bxn_parameters *all = c->parameters;
    size_t from = (size_t)begin * PIECE, to = (size_t)end * PIECE;
    (void)item;
    uint32_t low = 0, high = all->count; /* the first parameter that ends behind `from` */
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const bxn_parameter *p = &all->items[middle];
        if (p->offset + p->rows * p->ld <= from)
            low = middle + 1;
        else
            high = middle;
    }
    for (uint32_t i = low; i < all->count && all->items[i].offset < to; i++) {
        const bxn_parameter *p = &all->items[i];
        if (c->muon && p->matrix)
            continue;
        size_t at = p->offset > from ? p->offset : from, last = p->offset + p->rows * p->ld;
        last = last < to ? last : to;
        float keep = p->decay ? c->keep : 1.0f;
        c->kernels->adamw(&c->a, keep, all->value + at, all->grad + at, all->m + at, all->v + at, last - at);
    }
}

/* ---- Muon ------------------------------------------------------------------------------- */

/* The update of a matrix is the nearest matrix with orthonormal rows (or columns) to its momentum, found by
 * five steps of a Newton-Schulz iteration that brings all singular values near 1:
 *   X = U / ||U||;  X <- a X + (b A + c A A) X,  A = X X^T
 * X lies on its long side: [r, c], r <= c. Rows are padded with zeros for the products. */
typedef struct muon {
    const bxn_exec *exec;
    const bxn_parameter *parameter;
    float *value, *grad, *momentum; /* of the matrix */
    float scale, beta, keep, step;
    bool transposed;
    uint32_t r, c;
    size_t ldx, lda;
    float *x, *y; /* [r, ldx] */
    float *a, *b; /* [r, lda] */
    float inverse; /* 1 / norm */
} muon;

typedef void (*muon_rows)(muon *m, uint32_t begin, uint32_t end);
typedef struct muon_context {
    muon *m;
    muon_rows rows;
} muon_context;

static void muon_task(void *context, uint32_t item, uint32_t begin, uint32_t end)
{
    muon_context *c = context;
    (void)item;
    c->rows(c->m, begin, end);
}

static bitaxon_status over_rows(muon *m, muon_rows rows, uint32_t count, uint64_t cost)
{
    muon_context c = { m, rows };
    bxn_item item = { count, cost, 0 };
    return bxn_ranges_run(m->exec, &item, 1, muon_task, &c);
}

/* Momentum with Nesterov's look ahead, into rows (or columns) of x. */
static void momentum_rows(muon *m, uint32_t begin, uint32_t end)
{
    const bxn_parameter *p = m->parameter;
    float rest = 1.0f - m->beta;
    for (uint32_t i = begin; i < end; i++) {
        float *g = m->grad + i * p->ld, *b = m->momentum + i * p->ld;
        for (uint32_t j = 0; j < p->cols; j++) {
            float gradient = g[j] * m->scale;
            b[j] = m->beta * b[j] + rest * gradient;
            m->x[m->transposed ? j * m->ldx + i : i * m->ldx + j] = m->beta * b[j] + rest * gradient;
            g[j] = 0;
        }
    }
}

static void normalise_rows(muon *m, uint32_t begin, uint32_t end)
{
    for (size_t at = begin * m->ldx; at < end * m->ldx; at++)
        m->x[at] *= m->inverse;
}

/* a = x x^T, 16 rows of the left factor in each group. */
static void gram_rows(muon *m, uint32_t begin, uint32_t end)
{
    bxn_dense w = { m->x, BXN_F32, m->r, (uint32_t)m->ldx };
    bxn_mm_args args = { .x = m->x, .ldx = m->ldx, .count = m->r, .y = m->a, .ldy = m->lda };
    uint32_t last = end * BXN_UNIT_ROWS < m->r ? end * BXN_UNIT_ROWS : m->r;
    m->exec->kernels->mm_f32(&w, begin * BXN_UNIT_ROWS, last, &args);
}

/* b = a a (a is symmetric, to the bit: its elements are the same sums). */
static void square_rows(muon *m, uint32_t begin, uint32_t end)
{
    bxn_dense w = { m->a, BXN_F32, m->r, (uint32_t)m->lda };
    bxn_mm_args args = { .x = m->a, .ldx = m->lda, .count = m->r, .y = m->b, .ldy = m->lda };
    uint32_t last = end * BXN_UNIT_ROWS < m->r ? end * BXN_UNIT_ROWS : m->r;
    m->exec->kernels->mm_f32(&w, begin * BXN_UNIT_ROWS, last, &args);
}

static const float newton[3] = { 3.4445f, -4.7750f, 2.0315f };

static void mix_rows(muon *m, uint32_t begin, uint32_t end)
{
    for (size_t at = begin * m->lda; at < end * m->lda; at++)
        m->b[at] = newton[1] * m->a[at] + newton[2] * m->b[at];
    for (size_t at = begin * m->ldx; at < end * m->ldx; at++)
        m->y[at] = newton[0] * m->x[at];
}

/* y += b x, 128 columns in each group. */
static void turn_columns(muon *m, uint32_t begin, uint32_t end)
{
    bxn_dense w = { m->x, BXN_F32, m->r, (uint32_t)m->ldx };
    bxn_mm_args args = { .x = m->b, .ldx = m->lda, .count = m->r, .y = m->y, .ldy = m->ldx };
    m->exec->kernels->mm_t_f32(&w, begin, end, &args, true);
}

static void value_rows(muon *m, uint32_t begin, uint32_t end)
{
    const bxn_parameter *p = m->parameter;
    for (uint32_t i = begin; i < end; i++)
        for (uint32_t j = 0; j < p->cols; j++) {
            float turn = m->x[m->transposed ? j * m->ldx + i : i * m->ldx + j];
            m->value[i * p->ld + j] = m->value[i * p->ld + j] * m->keep - m->step * turn;
        }
}

static bitaxon_status orthogonalise(muon *m)
{
    uint32_t groups = (m->r + BXN_UNIT_ROWS - 1) / BXN_UNIT_ROWS;
    double sum = 0;
    for (size_t at = 0; at < m->r * m->ldx; at++)
        sum += (double)m->x[at] * (double)m->x[at];
    m->inverse = (float)(1 / (sqrt(sum) + 1e-7));
    bitaxon_status status = over_rows(m, normalise_rows, m->r, m->ldx);
    for (int step = 0; step < 5 && status == BITAXON_OK; step++) {
        status = over_rows(m, gram_rows, groups, (uint64_t)BXN_UNIT_ROWS * m->ldx * m->r);
        if (status == BITAXON_OK)
            status = over_rows(m, square_rows, groups, (uint64_t)BXN_UNIT_ROWS * m->lda * m->r);
        if (status == BITAXON_OK)
            status = over_rows(m, mix_rows, m->r, m->ldx + m->lda);
        if (status == BITAXON_OK)
            status = over_rows(m, turn_columns, (uint32_t)(m->ldx / BXN_UNIT_COLS),
                               (uint64_t)BXN_UNIT_COLS * m->r * m->r);
        float *x = m->x;
        m->x = m->y;
        m->y = x;
    }
    return status;
}

static void muon_sizes(const bxn_parameter *p, muon *m)
{
    m->transposed = p->rows > p->cols;
    m->r = m->transposed ? p->cols : p->rows;
    m->c = m->transposed ? p->rows : p->cols;
    m->ldx = bxn_round_up(m->c, BXN_UNIT_COLS);
    m->lda = bxn_round_up(m->r, BXN_UNIT_COLS);
}

size_t bxn_optimizer_scratch(const bxn_optimizer *optimizer, const bxn_parameters *parameters)
{
    size_t most = 0;
    for (uint32_t i = 0; i < parameters->count && optimizer->kind == BXN_MUON; i++) {
        muon m;
        if (!parameters->items[i].matrix)
            continue;
        muon_sizes(&parameters->items[i], &m);
        size_t floats = m.r * (2 * m.ldx + 2 * m.lda);
        most = floats > most ? floats : most;
    }
    return most * sizeof(float);
}

/* x, a and their twins from scratch, padding zero. */
static bitaxon_status muon_update(muon *m, float *scratch)
{
    const bxn_parameter *p = m->parameter;
    muon_sizes(p, m);
    memset(scratch, 0, m->r * (2 * m->ldx + 2 * m->lda) * sizeof(float));
    m->x = scratch;
    m->y = m->x + m->r * m->ldx;
    m->a = m->y + m->r * m->ldx;
    m->b = m->a + m->r * m->lda;
    double shape = p->rows > p->cols ? sqrt((double)p->rows / p->cols) : 1;
    m->step = (float)(m->step * shape);
    bitaxon_status status = over_rows(m, momentum_rows, p->rows, p->cols);
    if (status == BITAXON_OK)
        status = orthogonalise(m);
    return status == BITAXON_OK ? over_rows(m, value_rows, p->rows, p->cols) : status;
}

/* ---- update ------------------------------------------------------------------------------ */

bitaxon_status bxn_optimizer_update(const bxn_exec *exec, const bxn_optimizer *o, bxn_parameters *parameters,
                                    uint64_t update, double scale, double norm)
{
    double rate = bxn_learning_rate(o, update), adamw_rate = rate, count = (double)update + 1;
    double clip = o->max_norm > 0 ? o->max_norm / (norm + 1e-6) : 1;
    bxn_exec own = *exec; /* an update is whole or not begun */
    own.cancel = NULL;
    scale *= clip < 1 ? clip : 1;
    if (o->kind == BXN_MUON && o->other_rate > 0 && o->learning_rate > 0)
        adamw_rate *= o->other_rate / o->learning_rate;
    update_context c = { .kernels = exec->kernels, .parameters = parameters, .muon = o->kind == BXN_MUON };
    c.a.scale = (float)scale;
    c.a.b1 = (float)o->beta1;
    c.a.c1 = (float)(1 - o->beta1);
    c.a.b2 = (float)o->beta2;
    c.a.c2 = (float)(1 - o->beta2);
    c.a.step = (float)(o->bias_correction ? adamw_rate / (1 - pow(o->beta1, count)) : adamw_rate);
    c.a.root = (float)(o->bias_correction ? 1 / sqrt(1 - pow(o->beta2, count)) : 1);
    c.a.epsilon = (float)o->epsilon;
    c.keep = (float)(1 - adamw_rate * o->weight_decay);
    bxn_item pieces = { (uint32_t)((parameters->floats + PIECE - 1) / PIECE), PIECE, 0 };
    bitaxon_status status = pieces.groups == 0 ? BITAXON_OK : bxn_ranges_run(&own, &pieces, 1, adamw_task, &c);
    for (uint32_t i = 0; i < parameters->count && c.muon && status == BITAXON_OK; i++) {
        const bxn_parameter *p = &parameters->items[i];
        if (!p->matrix)
            continue;
        muon m = { .exec = &own, .parameter = p, .value = parameters->value + p->offset,
                   .grad = parameters->grad + p->offset, .momentum = parameters->m + p->offset,
                   .scale = (float)scale, .beta = (float)o->momentum,
                   .keep = p->decay ? (float)(1 - rate * o->weight_decay) : 1.0f, .step = (float)rate };
        status = muon_update(&m, o->scratch);
    }
    return status;
}
