/* SPDX-License-Identifier: Apache-2.0 */
/* test_ssm_backward.c - the state-space mixer in training against a forward in double precision written from
 * its formulas: results within 1e-5, gradients of the input and of every parameter against central differences
 * within 2e-5 of a value and 1e-5 of the largest of its tensor. Then what must be equal to the bit: documents
 * together and alone, any number of threads. The loss is the sum of results times constants. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <bitaxon/bitaxon.h>

#include "ops/train_ops.h"

enum { DIM = 10, RANK = 3, MOST_DOCUMENTS = 4 };
#define SCALE 1.5

/* ---- what is differentiated ---------------------------------------------------------------- */

enum { IN_W, X_W, OUT_W, CONV_W, CONV_B, DT_W, DT_B, A_LOG, SKIP, INPUT,
       IN_A, IN_B, IN_M, OUT_A, OUT_B, OUT_M, TENSORS };
static const char *const names[TENSORS] = { "in_proj", "x_proj", "out_proj", "conv weight", "conv bias", "dt weight",
                                            "dt bias", "A_log", "D", "input", "in A", "in B", "in m",
                                            "out A", "out B", "out m" };

typedef struct tensor {
    uint32_t rows, cols;
    size_t ld;     /* of f and grad */
    bool lanes;    /* [rows/16][cols][16] */
    double *v;     /* [rows, cols], representable as floats */
    float *f, *grad;
} tensor;

static size_t place(const tensor *t, uint32_t i, uint32_t j)
{
    return t->lanes ? ((size_t)(i / 16) * t->cols + j) * 16 + i % 16 : i * t->ld + j;
}

typedef enum training { FULL, LORA, DORA } training;

typedef struct mixer_case {
    uint32_t channels, states, taps;
    uint32_t documents[MOST_DOCUMENTS]; /* tokens of each */
    training mode;
} mixer_case;

typedef struct mixer {
    mixer_case c;
    bool kept; /* the forward leaves its buffers for the backward */
    tensor t[TENSORS];
    uint32_t rows;
    bxn_document documents[MOST_DOCUMENTS];
    uint32_t document_count;
    bxn_ssm p;
    bxn_lora loras[3]; /* in_proj 1, x_proj 2, out_proj 3 */
    bxn_adapters adapters;
    bxn_weight_grads weight_grads[3];
    bxn_sublayer_grads grads;
    double *norm[2]; /* of DoRA, of in_proj and out_proj: constants */
    double *g;       /* [rows, DIM] gradient of the result */
    float *r, *dr;   /* [rows, 128] */
} mixer;

static uint64_t seed;

static double uniform(double low, double high)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return low + (high - low) * (double)(seed >> 40) * 0x1p-24;
}

static void *cleared(size_t bytes)
{
    void *p = aligned_alloc(BXN_ALIGN, bxn_round_up(bytes, BXN_ALIGN));
    assert_non_null(p);
    memset(p, 0, bxn_round_up(bytes, BXN_ALIGN));
    return p;
}

/* Values low .. high; f with rows `ld` apart, gradients beginning at 0. */
static void make(mixer *m, int id, uint32_t rows, uint32_t cols, size_t ld, double low, double high)
{
    tensor *t = &m->t[id];
    size_t floats = id == A_LOG ? bxn_round_up(rows, 16) * cols : rows * ld;
    *t = (tensor){ rows, cols, ld, id == A_LOG, NULL, NULL, NULL };
    t->v = cleared((size_t)rows * cols * sizeof *t->v);
    t->f = cleared(floats * sizeof *t->f);
    t->grad = cleared(floats * sizeof *t->grad);
    for (uint32_t i = 0; i < rows; i++) {
        for (uint32_t j = 0; j < cols; j++) {
            double v = t->v[(size_t)i * cols + j] = (double)(float)uniform(low, high);
            t->f[place(t, i, j)] = (float)(id == A_LOG ? -exp(v) * 1.4426950408889634 : v);
        }
    }
}

static void set(mixer *m, int id, uint32_t j, float v)
{
    m->t[id].f[j] = v;
    m->t[id].v[j] = (double)v;
}

static bxn_weight weight(const tensor *t, uint32_t id)
{
    return (bxn_weight){ .kind = BXN_WEIGHT_DENSE, .rows = t->rows, .cols = t->cols, .id = id,
                         .dense = { t->f, BXN_F32, t->rows, t->cols } };
}

static void make_adapter(mixer *m, int a, uint32_t id, const tensor *w)
{
    const size_t lda = bxn_round_up(w->cols, 128), ldb = bxn_round_up(w->rows, 128);
    double *norm = m->norm[id == 3] = cleared(w->rows * sizeof *norm);
    make(m, a, RANK, w->cols, lda, -0.5, 0.5);
    make(m, a + 1, RANK, w->rows, ldb, -0.5, 0.5);
    make(m, a + 2, 1, w->rows, w->rows, 0.5, 1.5);
    float *gain = cleared(w->rows * sizeof *gain);
    for (uint32_t n = 0; n < w->rows; n++) {
        norm[n] = uniform(0.7, 1.4);
        gain[n] = (float)(m->t[a + 2].v[n] / norm[n]);
    }
    bool dora = m->c.mode == DORA;
    m->loras[id - 1] = (bxn_lora){ RANK, (float)SCALE, m->t[a].f, m->t[a + 1].f, lda, ldb,
                                   dora ? m->t[a + 2].f : NULL, dora ? gain : NULL };
    m->weight_grads[id - 1] =
        (bxn_weight_grads){ .a = m->t[a].grad, .b = m->t[a + 1].grad, .m = dora ? m->t[a + 2].grad : NULL };
    if (!dora)
        free(gain);
}

static void mixer_open(mixer *m, const mixer_case *c, uint64_t from)
{
    memset(m, 0, sizeof *m);
    seed = from;
    m->c = *c;
    for (uint32_t i = 0; i < MOST_DOCUMENTS && c->documents[i] != 0; i++) {
        m->documents[m->document_count++] = (bxn_document){ m->rows, c->documents[i] };
        m->rows += c->documents[i];
    }
    const uint32_t e = c->channels, e16 = (uint32_t)bxn_round_up(e, 16);
    make(m, IN_W, 2 * e, DIM, DIM, -0.6, 0.6);
    make(m, X_W, 2 * c->states + 1, e, e, -0.5, 0.5);
    make(m, OUT_W, DIM, e, e, -0.5, 0.5);
    make(m, CONV_W, c->taps, e, e16, -0.8, 0.8);
    make(m, CONV_B, 1, e, e16, -0.3, 0.3);
    make(m, DT_W, 1, e, e16, -1, 1);
    make(m, DT_B, 1, e, e16, -3, 0.5);
    make(m, A_LOG, e, c->states, 0, -2, 2.8);
    make(m, SKIP, 1, e, e16, -1, 1);
    make(m, INPUT, m->rows, DIM, 128, -1, 1);
    if (e > 2) { /* steps at both clips, far from their borders */
        set(m, DT_B, 1, -14.0f);
        set(m, DT_B, 2, 120.0f);
        set(m, DT_W, 1, 0.5f);
        set(m, DT_W, 2, 0.5f);
    }
    m->p = (bxn_ssm){ .channels = e, .channels16 = e16, .states = c->states, .taps = c->taps,
                      .in_proj = weight(&m->t[IN_W], 1), .x_proj = weight(&m->t[X_W], 2),
                      .out_proj = weight(&m->t[OUT_W], 3), .conv_weight = m->t[CONV_W].f,
                      .conv_bias = m->t[CONV_B].f, .dt_weight = m->t[DT_W].f, .dt_bias = m->t[DT_B].f,
                      .a2 = m->t[A_LOG].f, .d = m->t[SKIP].f };
    if (c->mode == FULL) {
        m->weight_grads[0].w = m->t[IN_W].grad;
        m->weight_grads[1].w = m->t[X_W].grad;
        m->weight_grads[2].w = m->t[OUT_W].grad;
        m->grads = (bxn_sublayer_grads){ .conv_weight = m->t[CONV_W].grad, .conv_bias = m->t[CONV_B].grad,
                                         .dt_weight = m->t[DT_W].grad, .dt_bias = m->t[DT_B].grad,
                                         .a_log = m->t[A_LOG].grad, .d = m->t[SKIP].grad };
    } else {
        make_adapter(m, IN_A, 1, &m->t[IN_W]);
        make_adapter(m, OUT_A, 3, &m->t[OUT_W]);
        m->adapters = (bxn_adapters){ .count = 1, .loras = { m->loras }, .weights = { 1 } };
    }
    m->g = cleared((size_t)m->rows * DIM * sizeof *m->g);
    m->r = cleared((size_t)m->rows * 128 * sizeof *m->r);
    m->dr = cleared((size_t)m->rows * 128 * sizeof *m->dr);
    for (uint32_t t = 0; t < m->rows; t++)
        for (uint32_t o = 0; o < DIM; o++)
            m->dr[t * 128 + o] = (float)(m->g[t * DIM + o] = (double)(float)uniform(-1, 1));
}

static void mixer_close(mixer *m)
{
    for (int i = 0; i < TENSORS; i++) {
        free(m->t[i].v);
        free(m->t[i].f);
        free(m->t[i].grad);
    }
    for (int i = 0; i < 3; i++)
        free((void *)(uintptr_t)m->loras[i].gain);
    free(m->norm[0]);
    free(m->norm[1]);
    free(m->g);
    free(m->r);
    free(m->dr);
}

/* ---- in double precision ------------------------------------------------------------------------ */

/* y = W x with the adapter whose A, B, m begin at `a`, or without (a = 0). */
static void linear64(const mixer *m, int w, int a, const double *x, double *y)
{
    const tensor *t = &m->t[w];
    double u[RANK] = { 0 };
    for (uint32_t i = 0; a != 0 && i < RANK; i++)
        for (uint32_t k = 0; k < t->cols; k++)
            u[i] += m->t[a].v[i * t->cols + k] * x[k];
    for (uint32_t n = 0; n < t->rows; n++) {
        y[n] = 0;
        for (uint32_t k = 0; k < t->cols; k++)
            y[n] += t->v[(size_t)n * t->cols + k] * x[k];
        for (uint32_t i = 0; a != 0 && i < RANK; i++)
            y[n] += SCALE * m->t[a + 1].v[i * t->rows + n] * u[i];
        if (a != 0 && m->c.mode == DORA)
            y[n] *= m->t[a + 2].v[n] / m->norm[a == OUT_A][n];
    }
}

static double silu64(double v)
{
    return v / (1 + exp(-v));
}

/* The loss; r, unless NULL, is [rows, DIM]. */
static double loss64(const mixer *m, double *r)
{
    const uint32_t e = m->c.channels, states = m->c.states, taps = m->c.taps;
    double *xz = malloc((size_t)m->rows * 2 * e * sizeof *xz), *x = malloc(e * sizeof *x), loss = 0;
    double *y = malloc(e * sizeof *y), *h = malloc((size_t)e * states * sizeof *h),
           *bcd = malloc((2 * states + 1) * sizeof *bcd);
    for (uint32_t i = 0; i < m->document_count; i++) {
        const bxn_document *d = &m->documents[i];
        memset(h, 0, (size_t)e * states * sizeof *h);
        for (uint32_t t = d->first; t < d->first + d->count; t++) {
            double out[DIM];
            linear64(m, IN_W, m->c.mode == FULL ? 0 : IN_A, m->t[INPUT].v + (size_t)t * DIM, xz + (size_t)t * 2 * e);
            for (uint32_t c = 0; c < e; c++) {
                x[c] = m->t[CONV_B].v[c];
                for (uint32_t j = 0; j < taps; j++)
                    if (t + j >= d->first + taps - 1)
                        x[c] += m->t[CONV_W].v[j * e + c] * xz[(size_t)(t + j + 1 - taps) * 2 * e + c];
                x[c] = silu64(x[c]);
            }
            linear64(m, X_W, 0, x, bcd);
            for (uint32_t c = 0; c < e; c++) {
                double v = bcd[2 * states] * m->t[DT_W].v[c] + m->t[DT_B].v[c];
                double dt = fmin(fmax(fmax(v, 0) + log1p(exp(-fabs(v))), 1e-4), 100);
                y[c] = m->t[SKIP].v[c] * x[c];
                for (uint32_t n = 0; n < states; n++) {
                    double *s = &h[c * states + n];
                    *s = exp(-dt * exp(m->t[A_LOG].v[c * states + n])) * *s + dt * bcd[n] * x[c];
                    y[c] += bcd[states + n] * *s;
                }
                y[c] *= silu64(xz[(size_t)t * 2 * e + e + c]);
            }
            linear64(m, OUT_W, m->c.mode == FULL ? 0 : OUT_A, y, out);
            for (uint32_t o = 0; o < DIM; o++) {
                loss += out[o] * m->g[t * DIM + o];
                if (r != NULL)
                    r[t * DIM + o] = out[o];
            }
        }
    }
    free(xz);
    free(x);
    free(y);
    free(h);
    free(bcd);
    return loss;
}

/* ---- the library -------------------------------------------------------------------------------- */

/* Result and gradients of the mixer; scratch is as large as the op says. dn goes to the gradient of INPUT. */
static bitaxon_status run_mixer(mixer *m, uint64_t features, uint32_t threads, bool cancelled)
{
    bxn_mem mem;
    bxn_kernels kernels;
    bxn_pool *pool;
    bitaxon_error error = BITAXON_ERROR_INIT;
    atomic_int cancel;
    atomic_init(&cancel, cancelled);
    assert_int_equal(bxn_mem_init(&mem, NULL, 0, &error), BITAXON_OK);
    assert_int_equal(bxn_pool_create(&mem, threads, &pool, &error), BITAXON_OK);
    bxn_kernels_init(&kernels, features);
    size_t bytes = bxn_ssm_train_bytes(&m->p, m->rows, m->c.mode == FULL ? 0 : RANK, m->c.mode != FULL,
                                       m->c.mode == FULL);
    bxn_train_pass pass = { .exec = { .kernels = &kernels, .pool = pool, .cancel = &cancel, .error = &error,
                                      .adapters = m->c.mode == FULL ? NULL : &m->adapters },
                            .rows = m->rows, .documents = m->documents, .document_count = m->document_count,
                            .scratch = { .memory = cleared(bytes), .bytes = bytes }, .grads = m->weight_grads };
    memset(pass.scratch.memory, 0xFF, bytes); /* NaN: nothing may be taken for zero */
    const size_t kept = bxn_ssm_kept_bytes(&m->p, m->rows);
    if (m->kept)
        pass.kept = (bxn_scratch){ .memory = cleared(kept), .bytes = kept };
    pass.keep = m->kept ? BXN_KEEP_LEAVE : BXN_KEEP_NOTHING;
    tensor *n = &m->t[INPUT];
    bitaxon_status status = bxn_ssm_train(&pass, &m->p, n->f, n->ld, m->r, 128);
    if (m->kept) {
        memset(pass.scratch.memory, 0xFF, bytes); /* other ops come between the two */
        pass.keep = BXN_KEEP_FIND;
    }
    if (status == BITAXON_OK || cancelled)
        status = bxn_ssm_backward(&pass, &m->p, m->c.mode == FULL ? &m->grads : NULL, n->f, n->ld, m->dr, 128,
                                  n->grad, n->ld);
    assert_int_equal(pass.scratch.used, 0);
    assert_true(pass.scratch.most <= bytes);
    assert_true(pass.kept.used == 0 && pass.kept.most == (m->kept ? kept : 0));
    bxn_pool_free(pool);
    free(pass.scratch.memory);
    free(pass.kept.memory);
    return status;
}

/* ---- gradients ------------------------------------------------------------------------------------ */

static void check_result(const mixer *m)
{
    double *r = malloc((size_t)m->rows * DIM * sizeof *r), most = 0;
    loss64(m, r);
    for (size_t i = 0; i < (size_t)m->rows * DIM; i++)
        most = fmax(most, fabs(r[i]));
    for (size_t i = 0; i < (size_t)m->rows * DIM; i++)
        if (!(fabs((double)m->r[i / DIM * 128 + i % DIM] - r[i]) <= 1e-5 * most))
            fail_msg("result %zu: %.9g, expected %.9g", i, (double)m->r[i / DIM * 128 + i % DIM], r[i]);
    free(r);
}

/* At most 24 elements of a tensor, spread over it. */
static void check_tensor(mixer *m, int id)
{
    tensor *t = &m->t[id];
    const size_t all = (size_t)t->rows * t->cols, count = all < 24 ? all : 24;
    double want[24], most = 0;
    for (size_t k = 0; k < count; k++) {
        double *v = &t->v[k * (all - 1) / (count > 1 ? count - 1 : 1)], before = *v, up, down;
        const double step = 1e-5;
        *v = before + step;
        up = loss64(m, NULL);
        *v = before - step;
        down = loss64(m, NULL);
        *v = before;
        want[k] = (up - down) / (2 * step);
        most = fmax(most, fabs(want[k]));
    }
    for (size_t k = 0; k < count; k++) {
        size_t at = k * (all - 1) / (count > 1 ? count - 1 : 1);
        double got = (double)t->grad[place(t, (uint32_t)(at / t->cols), (uint32_t)(at % t->cols))];
        if (!(fabs(got - want[k]) <= 2e-5 * fabs(want[k]) + 1e-5 * most))
            fail_msg("%u channels, %u states, %u taps, %u rows: %s [%zu]: %.9g, expected %.9g (largest %.3g)",
                     m->c.channels, m->c.states, m->c.taps, m->rows, names[id], at, got, want[k], most);
    }
}

static void check_gradients(const mixer_case *c, uint64_t features, uint64_t from)
{
    mixer m;
    mixer_open(&m, c, from);
    assert_int_equal(run_mixer(&m, features, 2, false), BITAXON_OK);
    check_result(&m);
    for (int id = 0; id < TENSORS; id++)
        if (c->mode == FULL ? id <= INPUT
                            : (id == INPUT || (id >= IN_A && (c->mode == DORA || (id != IN_M && id != OUT_M)))))
            check_tensor(&m, id);
    mixer_close(&m);
}

static uint64_t tiers[3];
static size_t tier_count;

static int find_tiers(void **state)
{
    (void)state;
    const uint64_t all = bxn_cpu_detect();
    tiers[tier_count++] = 0;
    if ((all & BITAXON_CPU_AVX2) != 0 && all != BITAXON_CPU_AVX2)
        tiers[tier_count++] = BITAXON_CPU_AVX2;
    if (all != 0)
        tiers[tier_count++] = all;
    return 0;
}

static void test_full(void **state)
{
    static const mixer_case cases[] = {
        { 20, 4, 4, { 1 }, FULL },          { 20, 16, 4, { 63 }, FULL },    { 7, 5, 2, { 64 }, FULL },
        { 33, 5, 4, { 65 }, FULL },         { 16, 1, 1, { 130 }, FULL },    { 9, 16, 1, { 15, 1, 17 }, FULL },
        { 40, 4, 4, { 2, 33, 1, 16 }, FULL }, { 1, 1, 4, { 5 }, FULL },
        { 290, 3, 4, { 18, 2 }, FULL }, /* blocks of channels */
    };
    (void)state;
    for (size_t t = 0; t < tier_count; t++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
            check_gradients(&cases[i], tiers[t], 11 + i);
}

static void test_adapters(void **state)
{
    static const mixer_case cases[] = {
        { 20, 4, 4, { 30, 35 }, LORA }, { 20, 16, 4, { 65 }, DORA }, { 70, 5, 2, { 16, 3 }, DORA },
    };
    (void)state;
    for (size_t t = 0; t < tier_count; t++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
            check_gradients(&cases[i], tiers[t], 31 + i);
}

/* ---- equal bits --------------------------------------------------------------------------------- */

static void assert_same_rows(const float *a, const float *b, size_t rows, size_t ld, size_t cols)
{
    for (size_t t = 0; t < rows; t++)
        assert_memory_equal(a + t * ld, b + t * ld, cols * sizeof *a);
}

static void test_documents_alone(void **state)
{
    static const mixer_case c = { 150, 5, 4, { 33, 1, 20, 16 }, FULL };
    (void)state;
    for (size_t tier = 0; tier < tier_count; tier++) {
        mixer together;
        mixer_open(&together, &c, 5);
        assert_int_equal(run_mixer(&together, tiers[tier], 2, false), BITAXON_OK);
        for (uint32_t i = 0; i < together.document_count; i++) {
            const bxn_document d = together.documents[i];
            mixer alone;
            mixer_open(&alone, &c, 5);
            alone.documents[0] = (bxn_document){ 0, d.count };
            alone.document_count = 1;
            alone.rows = d.count;
            memmove(alone.t[INPUT].f, alone.t[INPUT].f + d.first * 128, d.count * 128 * sizeof(float));
            memmove(alone.dr, alone.dr + d.first * 128, d.count * 128 * sizeof(float));
            assert_int_equal(run_mixer(&alone, tiers[tier], 1, false), BITAXON_OK);
            assert_same_rows(alone.r, together.r + d.first * 128, d.count, 128, DIM);
            assert_same_rows(alone.t[INPUT].grad, together.t[INPUT].grad + d.first * 128, d.count, 128, DIM);
            mixer_close(&alone);
        }
        mixer_close(&together);
    }
}

/* Enough channels for several blocks, of which the last is not full. Half of the others find what their
 * forward left. */
static void test_threads(void **state)
{
    static const training modes[] = { FULL, DORA };
    (void)state;
    for (size_t tier = 0; tier < tier_count; tier++) {
        for (size_t mode = 0; mode < 2; mode++) {
            const mixer_case c = { 530, 5, 4, { 20, 30 }, modes[mode] };
            mixer one;
            mixer_open(&one, &c, 6);
            assert_int_equal(run_mixer(&one, tiers[tier], 1, false), BITAXON_OK);
            for (uint32_t threads = 1; threads <= 3; threads++) {
                mixer more;
                mixer_open(&more, &c, 6);
                more.kept = threads != 2;
                assert_int_equal(run_mixer(&more, tiers[tier], threads, false), BITAXON_OK);
                assert_same_rows(one.r, more.r, one.rows, 128, DIM);
                for (int id = 0; id < TENSORS; id++) {
                    const tensor *t = &one.t[id];
                    for (uint32_t i = 0; i < t->rows; i++)
                        for (uint32_t j = 0; j < t->cols; j++)
                            assert_memory_equal(&t->grad[place(t, i, j)], &more.t[id].grad[place(t, i, j)], 4);
                }
                mixer_close(&more);
            }
            mixer_close(&one);
        }
    }
}

/* Gradients are added to what is there, and padding stays zero. */
static void test_added(void **state)
{
    static const mixer_case c = { 21, 5, 4, { 20 }, FULL };
    (void)state;
    mixer m;
    mixer_open(&m, &c, 8);
    assert_int_equal(run_mixer(&m, tiers[tier_count - 1], 1, false), BITAXON_OK);
    float bias = m.t[DT_B].grad[0], rate = m.t[A_LOG].grad[0], conv = m.t[CONV_W].grad[3];
    assert_int_equal(run_mixer(&m, tiers[tier_count - 1], 1, false), BITAXON_OK);
    assert_true(fabsf(m.t[DT_B].grad[0] - 2 * bias) <= 1e-5f * fabsf(bias));
    assert_true(fabsf(m.t[A_LOG].grad[0] - 2 * rate) <= 1e-5f * fabsf(rate));
    assert_true(fabsf(m.t[CONV_W].grad[3] - 2 * conv) <= 1e-5f * fabsf(conv));
    for (int id = CONV_W; id <= SKIP; id++)
        for (uint32_t j = 21; j < 32; j++)
            assert_true(id == A_LOG ? m.t[id].grad[16 * 5 + j - 16] == 0 : m.t[id].grad[j] == 0);
    mixer_close(&m);
}

static void test_cancelled(void **state)
{
    static const mixer_case c = { 40, 4, 4, { 20 }, FULL };
    (void)state;
    mixer m;
    mixer_open(&m, &c, 9);
    assert_int_equal(run_mixer(&m, 0, 2, true), BITAXON_CANCELLED);
    for (size_t i = 0; i < 32; i++)
        assert_true(m.t[SKIP].grad[i] == 0);
    mixer_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full),    cmocka_unit_test(test_adapters), cmocka_unit_test(test_documents_alone),
        cmocka_unit_test(test_threads), cmocka_unit_test(test_added),    cmocka_unit_test(test_cancelled),
    };
    return cmocka_run_group_tests(tests, find_tiers, NULL);
}
