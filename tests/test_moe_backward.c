/* SPDX-License-Identifier: Apache-2.0 */
/* test_moe_backward.c - experts in training: gradients of everything against central differences of a forward
 * written here in double (spec 5), with 1 to 30 experts, 1 to 3 picks, with and without the shared one, its
 * adapters (LoRA, DoRA, dropout) and load balancing; the forward against the op of inference to the bit; the
 * same bits from 1, 2 and 3 threads; routers that are not finite; a cancelled call. */
#include "fault_files.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/api.h"
#include "kernels/kernels_isa.h"
#include "ops/train_ops.h"
#include "test_tiers.h"

enum { EXPERTS = 30, ARRAYS = 3 * EXPERTS + 20, TOKENS = 150, WEIGHTS = 3 * EXPERTS + 5, FIRST_ROW = 77 };

/* Values as the library has them, and the same in double. Rows ld apart; so are gradients. */
typedef struct array {
    char name[24];
    uint32_t rows, cols;
    size_t ld;
    float *image, *grad;
    double *value;
} array;

typedef struct projection {
    uint32_t rows, cols;
    const array *w, *a, *b, *m; /* a, b: NULL without an adapter; m: NULL but with DoRA */
    double *norm;               /* [rows], held */
    double *mask;               /* [T, cols] of dropout */
} projection;

typedef enum adapter_kind { NO_ADAPTER, LORA, DORA } adapter_kind;

typedef struct shape {
    uint32_t experts, top_k, dim, inner, tokens;
    bool shared;
    adapter_kind adapter;
    float balance, dropout;
    uint32_t samples; /* of an array; 0: every element */
} shape;

typedef struct world {
    shape s;
    bool kept; /* the backward finds what the forward left */
    array arrays[ARRAYS];
    uint32_t count;
    array *n, *result; /* result: its image is r, its grad dr */
    projection router, gate[EXPERTS], up[EXPERTS], down[EXPERTS], shared_gate, shared[3];
    int32_t picked[TOKENS * 3];
    /* of the library */
    bxn_weight weights[WEIGHTS];
    uint32_t weight_count;
    bxn_moe moe;
    bxn_weight_grads grads[WEIGHTS];
    bxn_lora loras[WEIGHTS];
    bxn_adapters adapters;
    bxn_mem mem;
    bxn_pool *pool;
    bxn_kernels kernels;
    bxn_train_pass pass;
    bitaxon_error error;
    void *memory, *left;
} world;

static const uint64_t tiers[] = TEST_TIERS;
static const char *const tier_names[] = TEST_TIER_NAMES;
enum { TIERS = sizeof tiers / sizeof tiers[0] };

static uint64_t counter;
static double random_value(void)
{
    return 2 * bxn_uniform(7, 0, counter++) - 1;
}

static void *take(size_t bytes)
{
    void *p = aligned_alloc(64, bxn_round_up(bytes, 64));
    assert_non_null(p);
    memset(p, 0, bytes);
    return p;
}

static array *add_array(world *w, const char *name, uint32_t rows, uint32_t cols, size_t ld, double size)
{
    assert_true(w->count < ARRAYS);
    array *a = &w->arrays[w->count++];
    snprintf(a->name, sizeof a->name, "%s", name);
    a->rows = rows;
    a->cols = cols;
    a->ld = ld;
    a->image = take(rows * ld * sizeof(float));
    a->grad = take(rows * ld * sizeof(float));
    a->value = take((size_t)rows * cols * sizeof(double));
    for (uint32_t i = 0; i < rows; i++)
        for (uint32_t j = 0; j < cols; j++) {
            a->image[i * ld + j] = (float)(size * random_value());
            a->value[(size_t)i * cols + j] = (double)a->image[i * ld + j];
        }
    return a;
}

/* A weight of the library and its twin here. */
static bxn_weight add_weight(world *w, projection *p, const char *name, uint32_t rows, uint32_t cols, bool adapted)
{
    const shape *s = &w->s;
    uint32_t id = ++w->weight_count;
    bxn_weight_grads *grads = &w->grads[id - 1];
    *p = (projection){ .rows = rows, .cols = cols };
    array *values = add_array(w, name, rows, cols, cols, 1.6 / sqrt(cols));
    p->w = values;
    if (s->adapter == NO_ADAPTER)
        grads->w = values->grad;
    else if (adapted) {
        char part[24];
        uint32_t rank = 3;
        bxn_lora *lora = &w->loras[id - 1];
        size_t lda = bxn_round_up(cols, 128), ldb = bxn_round_up(rows, 128);
        snprintf(part, sizeof part, "%.12s.a", name);
        array *a = add_array(w, part, rank, cols, lda, 0.4);
        snprintf(part, sizeof part, "%.12s.b", name);
        array *b = add_array(w, part, rank, rows, ldb, 0.4);
        *lora = (bxn_lora){ .rank = rank, .scale = 1.5f, .a = a->image, .b = b->image, .lda = lda, .ldb = ldb };
        p->a = a;
        p->b = b;
        grads->a = a->grad;
        grads->b = b->grad;
        if (s->adapter == DORA) {
            snprintf(part, sizeof part, "%.12s.m", name);
            array *m = add_array(w, part, 1, rows, rows, 1.0);
            float *gain = take(rows * sizeof(float));
            p->norm = take(rows * sizeof(double));
            for (uint32_t i = 0; i < rows; i++) {
                m->image[i] += m->image[i] < 0 ? -0.2f : 0.2f;
                m->value[i] = (double)m->image[i];
                p->norm[i] = 1 + 0.3 * random_value();
                gain[i] = (float)(m->value[i] / p->norm[i]);
            }
            lora->m = m->image;
            lora->gain = gain;
            p->m = m;
            grads->m = m->grad;
        }
        p->mask = take((size_t)s->tokens * cols * sizeof(double));
        float *ones = take(cols * sizeof(float)), *kept = take(cols * sizeof(float));
        for (uint32_t j = 0; j < cols; j++)
            ones[j] = 1;
        for (uint32_t t = 0; t < s->tokens; t++) {
            memcpy(kept, ones, cols * sizeof *kept);
            if (s->dropout != 0)
                bxn_dropout(&w->adapters, id, FIRST_ROW + t, ones, cols, kept);
            for (uint32_t j = 0; j < cols; j++)
                p->mask[(size_t)t * cols + j] = (double)kept[j];
        }
        free(ones);
        free(kept);
    }
    bxn_weight weight = { .kind = BXN_WEIGHT_DENSE, .rows = rows, .cols = cols, .id = id };
    weight.dense = (bxn_dense){ values->image, BXN_F32, rows, cols };
    return weight;
}

static void world_open(world *w, const shape *s, uint64_t tier, uint32_t threads, bool kept)
{
    memset(w, 0, sizeof *w);
    w->kept = kept;
    counter = 0;
    w->s = *s;
    w->error = (bitaxon_error)BITAXON_ERROR_INIT;
    w->adapters = (bxn_adapters){ .count = 1, .loras = { w->loras }, .weights = { 1 }, .dropout = s->dropout,
                                  .dropout_key = 99, .first_row = FIRST_ROW };
    bxn_weight *gate = w->weights, *up = w->weights + EXPERTS, *down = w->weights + 2 * EXPERTS;
    w->moe = (bxn_moe){ .experts = s->experts, .top_k = s->top_k, .inner = s->inner, .gate = gate, .up = up,
                        .down = down, .shared = s->shared };
    w->moe.router = add_weight(w, &w->router, "router", s->experts, s->dim, false);
    for (uint32_t e = 0; e < s->experts; e++) {
        char name[24];
        snprintf(name, sizeof name, "gate %u", e);
        gate[e] = add_weight(w, &w->gate[e], name, s->inner, s->dim, false);
        snprintf(name, sizeof name, "up %u", e);
        up[e] = add_weight(w, &w->up[e], name, s->inner, s->dim, false);
        snprintf(name, sizeof name, "down %u", e);
        down[e] = add_weight(w, &w->down[e], name, s->dim, s->inner, false);
    }
    if (s->shared) {
        w->moe.shared_gate = add_weight(w, &w->shared_gate, "shared gate", 1, s->dim, false);
        w->moe.shared_gate_proj = add_weight(w, &w->shared[0], "shared g", s->inner, s->dim, true);
        w->moe.shared_up_proj = add_weight(w, &w->shared[1], "shared u", s->inner, s->dim, true);
        w->moe.shared_down_proj = add_weight(w, &w->shared[2], "shared d", s->dim, s->inner, true);
    }
    size_t ld = bxn_round_up(s->dim, 128);
    w->n = add_array(w, "n", s->tokens, s->dim, ld, 1.5);
    w->result = add_array(w, "r", s->tokens, s->dim, ld, 1);
    memcpy(w->result->grad, w->result->image, s->tokens * ld * sizeof(float));

    assert_int_equal(bxn_mem_init(&w->mem, NULL, 0, &w->error), BITAXON_OK);
    assert_int_equal(bxn_pool_create(&w->mem, threads, &w->pool, &w->error), BITAXON_OK);
    bxn_kernels_init(&w->kernels, tier == BITAXON_CPU_NONE ? 0 : tier);
    const size_t bytes = bxn_moe_train_bytes(&w->moe, s->tokens, 3, kept);
    const size_t left = kept ? bxn_moe_kept_bytes(&w->moe, s->tokens) : 0;
    w->memory = take(bytes);
    w->left = take(left);
    memset(w->memory, 0xFF, bytes); /* NaN: whatever is read was written */
    memset(w->left, 0xFF, left);
    w->pass = (bxn_train_pass){
        .exec = { .kernels = &w->kernels, .pool = w->pool, .phase = BXN_PHASE_PREFILL,
                  .adapters = s->adapter == NO_ADAPTER ? NULL : &w->adapters, .error = &w->error },
        .rows = s->tokens, .documents = &(bxn_document){ 0, s->tokens }, .document_count = 1,
        .scratch = { .memory = w->memory, .bytes = bytes }, .kept = { .memory = w->left, .bytes = left },
        .grads = w->grads, .balance = s->balance,
    };
}

static void world_close(world *w)
{
    for (uint32_t i = 0; i < w->weight_count; i++)
        free((void *)(uintptr_t)w->loras[i].gain);
    for (int i = 0; i < 3; i++) {
        free(w->shared[i].norm);
        free(w->shared[i].mask);
    }
    for (uint32_t i = 0; i < w->count; i++) {
        free(w->arrays[i].image);
        free(w->arrays[i].grad);
        free(w->arrays[i].value);
    }
    bxn_pool_free(w->pool);
    assert_int_equal(w->mem.used, 0);
    free(w->memory);
    free(w->left);
}

/* ---- the reference ----------------------------------------------------------------------------- */

static void project(const projection *p, uint32_t t, const double *x, double *y)
{
    double u[3] = { 0 };
    for (uint32_t q = 0; q < 3 && p->a != NULL; q++)
        for (uint32_t j = 0; j < p->cols; j++)
            u[q] += p->a->value[q * p->cols + j] * p->mask[(size_t)t * p->cols + j] * x[j];
    for (uint32_t i = 0; i < p->rows; i++) {
        y[i] = 0;
        for (uint32_t j = 0; j < p->cols; j++)
            y[i] += p->w->value[(size_t)i * p->cols + j] * x[j];
        for (uint32_t q = 0; q < 3 && p->a != NULL; q++)
            y[i] += 1.5 * p->b->value[q * p->rows + i] * u[q];
        if (p->m != NULL)
            y[i] *= p->m->value[i] / p->norm[i];
    }
}

static void swiglu(const projection *gate, const projection *up, const projection *down, uint32_t t,
                   const double *x, double *y)
{
    double a[160], b[160];
    project(gate, t, x, a);
    project(up, t, x, b);
    for (uint32_t i = 0; i < gate->rows; i++)
        a[i] *= b[i] / (1 + exp(-a[i]));
    project(down, t, a, y);
}

static void softmax(const world *w, uint32_t t, double *p)
{
    double max = -INFINITY, sum = 0;
    project(&w->router, t, w->n->value + (size_t)t * w->s.dim, p);
    for (uint32_t e = 0; e < w->s.experts; e++)
        max = fmax(max, p[e]);
    for (uint32_t e = 0; e < w->s.experts; e++)
        sum += p[e] = exp(p[e] - max);
    for (uint32_t e = 0; e < w->s.experts; e++)
        p[e] /= sum;
}

/* Picks stay when values move a little. */
static void choose(world *w)
{
    for (uint32_t t = 0; t < w->s.tokens; t++) {
        double p[EXPERTS];
        softmax(w, t, p);
        for (uint32_t i = 0; i < w->s.top_k; i++) {
            uint32_t best = 0;
            for (uint32_t e = 1; e < w->s.experts; e++)
                best = p[e] > p[best] ? e : best;
            w->picked[t * w->s.top_k + i] = (int32_t)best;
            p[best] = -1;
        }
    }
}

static void forward(const world *w, uint32_t t, double *r)
{
    const double *x = w->n->value + (size_t)t * w->s.dim;
    double p[EXPERTS], y[160];
    softmax(w, t, p);
    memset(r, 0, w->s.dim * sizeof *r);
    for (uint32_t i = 0; i < w->s.top_k; i++) {
        int32_t e = w->picked[t * w->s.top_k + i];
        swiglu(&w->gate[e], &w->up[e], &w->down[e], t, x, y);
        for (uint32_t d = 0; d < w->s.dim; d++)
            r[d] += p[e] * y[d];
    }
    if (w->s.shared) {
        double logit;
        project(&w->shared_gate, t, x, &logit);
        swiglu(&w->shared[0], &w->shared[1], &w->shared[2], t, x, y);
        for (uint32_t d = 0; d < w->s.dim; d++)
            r[d] += y[d] / (1 + exp(-logit));
    }
}

/* Fedus et al. 2021, eq. 4, times rows. */
static double balance_loss(const world *w)
{
    double share[EXPERTS] = { 0 }, mean[EXPERTS] = { 0 }, p[EXPERTS], sum = 0;
    for (uint32_t i = 0; i < w->s.tokens * w->s.top_k; i++)
        share[w->picked[i]] += 1.0 / (w->s.tokens * w->s.top_k);
    for (uint32_t t = 0; t < w->s.tokens; t++) {
        softmax(w, t, p);
        for (uint32_t e = 0; e < w->s.experts; e++)
            mean[e] += p[e] / w->s.tokens;
    }
    for (uint32_t e = 0; e < w->s.experts; e++)
        sum += share[e] * mean[e];
    return w->s.experts * sum * w->s.tokens;
}

static double loss(const world *w)
{
    double sum = w->s.balance == 0 ? 0 : (double)w->s.balance * balance_loss(w);
    for (uint32_t t = 0; t < w->s.tokens; t++) {
        double r[160];
        forward(w, t, r);
        for (uint32_t d = 0; d < w->s.dim; d++)
            sum += r[d] * w->result->value[(size_t)t * w->s.dim + d];
    }
    return sum;
}

/* ---- gradients ------------------------------------------------------------------------------------ */

static void check_room(const world *w)
{
    assert_int_equal(w->pass.scratch.used, 0);
    assert_true(w->pass.scratch.most <= w->pass.scratch.bytes);
    assert_true(w->pass.kept.used == 0 && w->pass.kept.most == w->pass.kept.bytes);
}

static void run_forward(world *w, float *r)
{
    w->pass.keep = w->kept ? BXN_KEEP_LEAVE : BXN_KEEP_NOTHING;
    if (bxn_moe_train(&w->pass, &w->moe, 3, w->n->image, w->n->ld, r, w->n->ld) != BITAXON_OK)
        fail_msg("%s", w->error.message);
    check_room(w);
}

static void run_backward(world *w)
{
    if (w->kept) {
        memset(w->memory, 0xFF, w->pass.scratch.bytes); /* other ops come between the two */
        w->pass.keep = BXN_KEEP_FIND;
    }
    if (bxn_moe_backward(&w->pass, &w->moe, 3, w->n->image, w->n->ld, w->result->grad, w->n->ld, w->n->grad,
                         w->n->ld) != BITAXON_OK)
        fail_msg("%s", w->error.message);
    check_room(w);
}

/* The largest error of any array as a part of the array's largest gradient. */
static double check_gradients(world *w)
{
    double worst_of_all = 0;
    for (uint32_t i = 0; i < w->count; i++) {
        array *a = &w->arrays[i];
        bool counts = a == w->n || (a != w->result && (w->s.adapter == NO_ADAPTER || strchr(a->name, '.') != NULL));
        size_t elements = (size_t)a->rows * a->cols, step = 1;
        if (w->s.samples != 0 && elements > w->s.samples)
            step = elements / w->s.samples;
        double worst = 0, size = 0;
        for (size_t k = 0; k < elements && counts; k += step) {
            double had = a->value[k], h = 1e-5;
            a->value[k] = had + h;
            double above = loss(w);
            a->value[k] = had - h;
            double below = loss(w);
            a->value[k] = had;
            double want = (above - below) / (2 * h), got = (double)a->grad[k / a->cols * a->ld + k % a->cols];
            double error = fabs(got - want);
            worst = !(error <= worst) ? error : worst;
            size = fmax(size, fabs(want));
        }
        if (!counts)
            for (size_t k = 0; k < elements && a != w->result; k++)
                assert_true(a->grad[k] == 0); /* frozen */
        double part = size == 0 ? worst : worst / size;
        if (!(part <= 1e-5))
            print_message("%s: error %.3g of %.3g\n", a->name, worst, size);
        worst_of_all = !(part <= worst_of_all) ? part : worst_of_all;
    }
    return worst_of_all;
}

static void check_way(const shape *s, uint64_t tier, const char *tier_name, bool kept)
{
    static world w;
    world_open(&w, s, tier, 2, kept);
    choose(&w);
    size_t ld = w.n->ld;
    float *r = take(s->tokens * ld * sizeof(float));
    run_forward(&w, r);
    double worst = 0, size = 0, want[160];
    for (uint32_t t = 0; t < s->tokens; t++) {
        forward(&w, t, want);
        for (uint32_t d = 0; d < s->dim; d++) {
            double error = fabs((double)r[t * ld + d] - want[d]);
            worst = !(error <= worst) ? error : worst;
            size = fmax(size, fabs(want[d]));
        }
    }
    assert_true(worst <= 1e-5 * size);
    if (s->balance != 0) {
        double wanted = balance_loss(&w);
        assert_true(fabs(w.pass.balance_loss - wanted) <= 1e-6 * wanted);
    } else {
        assert_true(w.pass.balance_loss == 0);
    }
    run_backward(&w);
    double part = check_gradients(&w);
    print_message("X %u, k %u, D %u, I %u, T %u, shared %d, adapter %d, kept %d, tier %s: result %.2g, gradients %.2g "
                  "(bounds 1e-5, 1e-5)\n", s->experts, s->top_k, s->dim, s->inner, s->tokens, s->shared, s->adapter,
                  kept, tier_name, worst / size, part);
    assert_true(part <= 1e-5);
    /* Gradients are added to, dn is written. */
    if (s->adapter == NO_ADAPTER) {
        float *dn = take(s->tokens * ld * sizeof(float)), *router = take(s->experts * s->dim * sizeof(float));
        memcpy(dn, w.n->grad, s->tokens * ld * sizeof(float));
        memcpy(router, w.router.w->grad, s->experts * s->dim * sizeof(float));
        if (kept)
            run_forward(&w, r); /* what it had left is spent */
        run_backward(&w);
        for (uint32_t t = 0; t < s->tokens; t++)
            assert_memory_equal(dn + t * ld, w.n->grad + t * ld, s->dim * sizeof(float));
        for (uint32_t i = 0; i < s->experts * s->dim; i++)
            assert_true(fabsf(w.router.w->grad[i] - 2 * router[i]) <= 1e-5f * fabsf(router[i]));
        free(dn);
        free(router);
    }
    free(r);
    world_close(&w);
}

static void check_shape(const shape *s, uint64_t tier, const char *tier_name)
{
    check_way(s, tier, tier_name, false);
    check_way(s, tier, tier_name, true);
}

static bool tier_present(int tier)
{
    uint64_t needed = tiers[tier] & ~BITAXON_CPU_NONE;
    return (bitaxon_cpu_features() & needed) == needed;
}

static void test_gradients(void **state)
{
    (void)state;
    static const shape shapes[] = {
        { 1, 1, 12, 10, 5, false, NO_ADAPTER, 0, 0, 0 },   { 1, 1, 12, 10, 1, true, NO_ADAPTER, 0.3f, 0, 0 },
        { 4, 2, 12, 10, 1, true, NO_ADAPTER, 0, 0, 0 },    { 4, 1, 12, 10, 5, false, NO_ADAPTER, 0, 0, 0 },
        { 4, 2, 12, 10, 5, true, NO_ADAPTER, 0.5f, 0, 0 }, { 4, 2, 20, 17, 150, true, NO_ADAPTER, 0.5f, 0, 8 },
        { 9, 3, 12, 10, 5, true, NO_ADAPTER, 0, 0, 40 },   { 9, 3, 12, 10, 150, false, NO_ADAPTER, 2, 0, 6 },
        { 9, 1, 12, 10, 150, true, NO_ADAPTER, 0, 0, 6 },  { 4, 3, 140, 40, 9, true, NO_ADAPTER, 0, 0, 20 },
        { 1, 1, 12, 10, 150, true, NO_ADAPTER, 0, 0, 20 }, { 2, 2, 12, 10, 150, false, NO_ADAPTER, 0, 0, 20 },
        { 30, 1, 12, 10, 90, true, NO_ADAPTER, 0, 0, 6 },
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        check_shape(&shapes[i], bxn_cpu_detect(), "best");
    for (int t = 0; t < TIERS; t++)
        if (tier_present(t))
            check_shape(&(shape){ 4, 2, 20, 18, 7, true, NO_ADAPTER, 0, 0, 20 }, tiers[t], tier_names[t]);
}

static void test_adapters(void **state)
{
    (void)state;
    static const shape shapes[] = {
        { 4, 2, 12, 10, 5, true, LORA, 0, 0, 0 },   { 4, 2, 12, 10, 5, true, LORA, 0, 0.25f, 0 },
        { 4, 2, 12, 10, 5, true, DORA, 0, 0, 0 },   { 4, 2, 12, 10, 5, true, DORA, 0.5f, 0.25f, 0 },
        { 9, 3, 20, 17, 150, true, DORA, 0, 0.1f, 8 }, { 4, 2, 12, 10, 1, true, LORA, 0, 0, 0 },
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        check_shape(&shapes[i], bxn_cpu_detect(), "best");
}

/* ---- the same bits -------------------------------------------------------------------------------- */

static void test_threads(void **state)
{
    (void)state;
    static world w[3];
    static const shape shapes[] = { { 9, 3, 140, 50, 150, true, NO_ADAPTER, 0.5f, 0, 0 },
                                    { 4, 2, 140, 50, 40, true, DORA, 0, 0.1f, 0 } };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        float *r[3];
        for (uint32_t threads = 1; threads <= 3; threads++) {
            world *at = &w[threads - 1];
            world_open(at, &shapes[i], bxn_cpu_detect(), threads, false);
            r[threads - 1] = take(shapes[i].tokens * at->n->ld * sizeof(float));
            run_forward(at, r[threads - 1]);
            run_backward(at);
            assert_memory_equal(r[0], r[threads - 1], shapes[i].tokens * at->n->ld * sizeof(float));
            assert_true(w[0].pass.balance_loss == at->pass.balance_loss);
            for (uint32_t k = 0; k < at->count; k++)
                assert_memory_equal(w[0].arrays[k].grad, at->arrays[k].grad,
                                    at->arrays[k].rows * at->arrays[k].ld * sizeof(float));
        }
        for (int t = 0; t < 3; t++) {
            world_close(&w[t]);
            free(r[t]);
        }
    }
}

/* ---- whole layers of models --------------------------------------------------------------------- */

enum { T = 100, LD = 128, FLOATS = T * LD };
enum { EXACT, NEAR, TILES, MODES };
static const float ends[4] = { 8e-3f, -8e-3f, 16e-3f, -16e-3f }; /* of differences, in lengths of the gradient */

/* Of a mode and a tier: the result is that of bxn_moe_forward to the bit. Where products are exact, the gradient of
 * the input is that of the weights as they are, here by differences of the forward along it. */
static void check_model(const char *path, int mode, int tier)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_model_params params = { .struct_size = sizeof params, .path = path, .threads = 2, .cpu_mask = tiers[tier],
                                    .accuracy = mode == EXACT ? BITAXON_ACCURACY_EXACT : BITAXON_ACCURACY_NEAR };
    bitaxon_model *model;
    if (bitaxon_model_open(&params, &model, &error) != BITAXON_OK)
        fail_msg("%s", error.message);
    const bxn_model *core = &model->core;
    const bxn_moe *moe = &core->sublayers[2].u.moe;
    const uint32_t dim = moe->router.cols;
    bxn_kernels kernels = core->kernels;
    if (mode == TILES) { /* in plain C, as any machine has them */
        kernels.mm_tile4 = bxn_mm_tile4_ref;
        kernels.mm_tile8 = bxn_mm_tile8_ref;
        kernels.quant_bf16 = bxn_quant_bf16_ref;
    }
    bxn_workspace ws;
    assert_int_equal(bxn_workspace_create(&model->mem, &core->config, 256, mode == TILES, 0, &ws, &error), BITAXON_OK);
    size_t bytes = bxn_moe_train_bytes(moe, T, 0, false);
    void *memory = take(bytes);
    bxn_exec exec = { .kernels = &kernels, .pool = core->pool, .ws = &ws, .error = &error };
    bxn_train_pass pass = { .exec = { .kernels = &kernels, .pool = core->pool, .error = &error }, .rows = T,
                            .scratch = { .memory = memory, .bytes = bytes } };
    float *n = take(FLOATS * 4), *r = take(FLOATS * 4), *dr = take(FLOATS * 4), *dn = take(FLOATS * 4);
    counter = 0;
    for (uint32_t t = 0; t < T; t++)
        for (uint32_t d = 0; d < dim; d++) {
            n[t * LD + d] = ws.n[t * ws.ld_d + d] = (float)random_value();
            dr[t * LD + d] = (float)random_value();
        }
    assert_int_equal(bxn_moe_forward(&exec, moe, T, 1), BITAXON_OK);
    assert_int_equal(bxn_moe_train(&pass, moe, 1, n, LD, r, LD), BITAXON_OK);
    for (uint32_t t = 0; t < T; t++)
        assert_memory_equal(r + t * LD, ws.r + t * ws.ld_d, dim * sizeof(float));
    float *kept = take(FLOATS * 4), *moved = take(FLOATS * 4), *at[4];
    memcpy(kept, dr, FLOATS * 4);
    assert_int_equal(bxn_moe_backward(&pass, moe, 1, n, LD, dr, LD, dn, LD), BITAXON_OK);
    for (int i = 0; i < 4; i++) {
        at[i] = take(FLOATS * 4);
        for (uint32_t k = 0; k < FLOATS; k++)
            moved[k] = n[k] + ends[i] * dn[k];
        assert_int_equal(bxn_moe_train(&pass, moe, 1, moved, LD, at[i], LD), BITAXON_OK);
    }
    uint32_t rows = 0; /* a pick that flips spoils its row */
    double worst = 0;
    for (uint32_t t = 0; t < T; t++) {
        double slope = 0, square = 0;
        for (uint32_t d = 0; d < dim; d++) {
            uint32_t k = t * LD + d; /* of two differences, so that what is cubic in the distance cancels */
            double near = (double)at[0][k] - (double)at[1][k], far = (double)at[2][k] - (double)at[3][k];
            slope += (double)kept[k] * (8 * near - far) / (12 * (double)ends[0]);
            square += (double)dn[t * LD + d] * (double)dn[t * LD + d];
        }
        double part = fabs(slope - square) / square;
        rows += part < 5e-4; /* differences in float: digits are few */
        worst = part < 5e-4 ? fmax(worst, part) : worst;
    }
    if (mode == EXACT) {
        print_message("%s, tier %s: along dn %.2g in %u of %d rows\n", path, tier_names[tier], worst, rows, T);
        assert_true(rows >= T - 3);
    }
    free(n), free(r), free(dr), free(dn), free(kept), free(moved), free(memory);
    for (int i = 0; i < 4; i++)
        free(at[i]);
    bxn_workspace_free(&model->mem, &ws);
    bitaxon_model_free(model);
}

static void test_models(void **state)
{
    (void)state;
    char *root = make_folder(), path[512];
    for (int t = 0; t < TIERS; t++) {
        if (!tier_present(t))
            continue;
        check_model("tests/golden/tiny-fp32", EXACT, t);
        for (int mode = 0; mode < MODES; mode++)
            check_model("tests/golden/tiny-q4", mode, t);
    }
    /* more experts than one list takes, of few rows each */
    snprintf(path, sizeof path, "%s", in_folder(root, "many"));
    new_model(path, small_config("\"moe_num_experts\": 70, \"moe_top_k\": 1"), "nf4", NULL);
    for (int mode = 0; mode < MODES; mode++)
        for (int t = TIERS - 1; t >= 0; t--)
            if (tier_present(t)) {
                check_model(path, mode, t);
                break;
            }
    remove_folder(root);
}

/* ---- errors ---------------------------------------------------------------------------------------- */

static void test_errors(void **state)
{
    (void)state;
    static world w;
    world_open(&w, &(shape){ 4, 2, 12, 10, 9, true, NO_ADAPTER, 0, 0, 0 }, bxn_cpu_detect(), 2, false);
    float *r = take(9 * w.n->ld * sizeof(float));
    w.n->image[7 * w.n->ld + 3] = NAN;
    assert_int_equal(bxn_moe_train(&w.pass, &w.moe, 21, w.n->image, w.n->ld, r, w.n->ld), BITAXON_FORMAT);
    assert_non_null(strstr(w.error.message, "layer 21"));
    assert_non_null(strstr(w.error.message, "token 7"));
    assert_int_equal(bxn_moe_backward(&w.pass, &w.moe, 21, w.n->image, w.n->ld, w.result->grad, w.n->ld, w.n->grad,
                                      w.n->ld), BITAXON_FORMAT);
    assert_int_equal(w.pass.scratch.used, 0);
    w.n->image[7 * w.n->ld + 3] = 0;
    atomic_int cancel = 1;
    w.pass.exec.cancel = &cancel;
    assert_int_equal(bxn_moe_train(&w.pass, &w.moe, 21, w.n->image, w.n->ld, r, w.n->ld), BITAXON_CANCELLED);
    assert_int_equal(bxn_moe_backward(&w.pass, &w.moe, 21, w.n->image, w.n->ld, w.result->grad, w.n->ld, w.n->grad,
                                      w.n->ld), BITAXON_CANCELLED);
    w.pass.exec.cancel = NULL;
    run_forward(&w, r);
    free(r);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients), cmocka_unit_test(test_adapters), cmocka_unit_test(test_threads),
        cmocka_unit_test(test_models),    cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
