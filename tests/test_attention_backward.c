/* SPDX-License-Identifier: Apache-2.0 */
/* test_attention_backward.c - attention in training and its backward: results and gradients (of the input, of
 * the weights, of adapters) against a forward in double written here and its central differences; equal bits for
 * any number of threads; documents that know nothing of each other, and a past that knows nothing of the
 * future. On every tier of this processor. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <bitaxon/version.h>

#include "ops/train_ops.h"
#include "test_tiers.h"

enum { WEIGHTS = 4, RANK = 3, CANARY = 64, LD_MORE = 16 };
enum mode { FULL, LORA, DORA };

/* Of the size of a gradient plus the root mean square of its tensor's. The largest seen: 0.3 of it. */
#define BOUND 1e-5

typedef struct shape {
    uint32_t heads, dim, count; /* documents */
    uint32_t documents[4];
    uint64_t window;
    float theta;
    enum mode mode;
} shape;

/* A problem in double; the library gets the same numbers, which floats hold exactly. */
typedef struct problem {
    shape s;
    uint32_t width, rows;
    bxn_document documents[4];
    double *n, *dr; /* [rows, width] */
    double *w[WEIGHTS], *a[WEIGHTS], *b[WEIGHTS], *m[WEIGHTS], *norm[WEIGHTS];
} problem;

static uint64_t random_state;

static double uniform(double low, double high) /* a float's value */
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(float)(low + (high - low) * (double)(random_state >> 40) * 0x1p-24);
}

static double *values(size_t count, double low, double high)
{
    double *x = malloc(count * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < count; i++)
        x[i] = uniform(low, high);
    return x;
}

static void make(problem *p, const shape *s, uint64_t seed)
{
    memset(p, 0, sizeof *p);
    p->s = *s;
    p->width = s->heads * s->dim;
    for (uint32_t d = 0; d < s->count; d++) {
        p->documents[d] = (bxn_document){ p->rows, s->documents[d] };
        p->rows += s->documents[d];
    }
    random_state = seed;
    const size_t size = (size_t)p->rows * p->width;
    const double spread = 2 / sqrt(p->width);
    p->n = values(size, -1, 1);
    p->dr = values(size, -1, 1);
    for (int i = 0; i < WEIGHTS; i++) {
        p->w[i] = values((size_t)p->width * p->width, -spread, spread);
        p->a[i] = values((size_t)RANK * p->width, -spread, spread);
        p->b[i] = values((size_t)RANK * p->width, -0.5, 0.5);
        p->m[i] = values(p->width, 0.5, 1.5);
        p->norm[i] = values(p->width, 0.5, 1.5);
    }
}

static void drop(problem *p)
{
    free(p->n);
    free(p->dr);
    for (int i = 0; i < WEIGHTS; i++) {
        free(p->w[i]);
        free(p->a[i]);
        free(p->b[i]);
        free(p->m[i]);
        free(p->norm[i]);
    }
}

/* ---- the forward in double -------------------------------------------------------------------------- */

#define LORA_SCALE 0.75

static void linear(const problem *p, int i, const double *x, double *y)
{
    const uint32_t width = p->width;
    for (uint32_t t = 0; t < p->rows; t++, x += width, y += width) {
        double u[RANK] = { 0 };
        for (int r = 0; r < RANK; r++)
            for (uint32_t c = 0; c < width; c++)
                u[r] += p->a[i][r * width + c] * x[c];
        for (uint32_t o = 0; o < width; o++) {
            double sum = 0;
            for (uint32_t c = 0; c < width; c++)
                sum += p->w[i][o * width + c] * x[c];
            for (int r = 0; r < RANK && p->s.mode != FULL; r++)
                sum += LORA_SCALE * p->b[i][r * width + o] * u[r];
            y[o] = p->s.mode == DORA ? sum * p->m[i][o] / p->norm[i][o] : sum;
        }
    }
}

static void rotate(const problem *p, double *x)
{
    const uint32_t half = p->s.dim / 2;
    for (uint32_t d = 0; d < p->s.count; d++) {
        for (uint32_t t = 0; t < p->documents[d].count; t++) {
            for (uint32_t h = 0; h < p->s.heads; h++) {
                double *row = x + (size_t)(p->documents[d].first + t) * p->width + h * p->s.dim;
                for (uint32_t i = 0; i < half; i++) {
                    double angle = t * pow((double)p->s.theta, -2.0 * i / p->s.dim);
                    double a = row[i], b = row[i + half];
                    row[i] = a * cos(angle) - b * sin(angle);
                    row[i + half] = b * cos(angle) + a * sin(angle);
                }
            }
        }
    }
}

/* The result to r; returns the loss, the sum of dr * r. */
static double forward(const problem *p, double *r)
{
    const size_t size = (size_t)p->rows * p->width;
    const uint32_t dim = p->s.dim;
    double *q = malloc(4 * size * sizeof *q), *k = q + size, *v = k + size, *o = v + size, loss = 0;
    double *e = malloc(p->rows * sizeof *e);
    linear(p, 0, p->n, q);
    linear(p, 1, p->n, k);
    linear(p, 2, p->n, v);
    if (p->s.theta > 0) {
        rotate(p, q);
        rotate(p, k);
    }
    memset(o, 0, size * sizeof *o);
    for (uint32_t d = 0; d < p->s.count; d++) {
        const uint32_t first = p->documents[d].first, end = first + p->documents[d].count;
        for (uint32_t i = first; i < end; i++) {
            for (uint32_t h = 0; h < p->s.heads; h++) {
                const size_t at = h * dim;
                double sum = 0;
                for (uint32_t j = first; j <= i; j++) {
                    if (i - j >= p->s.window)
                        continue;
                    double dot = 0;
                    for (uint32_t f = 0; f < dim; f++)
                        dot += q[i * p->width + at + f] * k[j * p->width + at + f];
                    sum += e[j] = exp(dot / sqrt(dim));
                }
                for (uint32_t j = first; j <= i; j++)
                    for (uint32_t f = 0; f < dim && i - j < p->s.window; f++)
                        o[i * p->width + at + f] += e[j] / sum * v[j * p->width + at + f];
            }
        }
    }
    linear(p, 3, o, r);
    for (size_t i = 0; i < size; i++)
        loss += p->dr[i] * r[i];
    free(q);
    free(e);
    return loss;
}

/* ---- the library ---------------------------------------------------------------------------------------- */

/* Everything that a forward and a backward give, in one block. */
typedef struct result {
    float *all;
    size_t count, ld, lda;
    float *r, *dn; /* [rows, ld] */
    bxn_weight_grads grads[WEIGHTS];
} result;

static float *piece(result *out, size_t count)
{
    float *at = out->all != NULL ? out->all + out->count : NULL;
    out->count += count;
    return at;
}

static void result_pieces(result *out, const problem *p)
{
    out->count = 0;
    out->lda = bxn_round_up(p->width, 128);
    out->ld = out->lda + LD_MORE;
    out->r = piece(out, p->rows * out->ld);
    out->dn = piece(out, p->rows * out->ld);
    for (int i = 0; i < WEIGHTS; i++) {
        bxn_weight_grads *g = &out->grads[i];
        *g = (bxn_weight_grads){ 0 };
        if (p->s.mode == FULL) {
            g->w = piece(out, (size_t)p->width * p->width);
        } else {
            g->a = piece(out, RANK * out->lda);
            g->b = piece(out, RANK * out->lda);
            if (p->s.mode == DORA)
                g->m = piece(out, p->width);
        }
    }
}

static float *rows_of(const double *x, uint32_t rows, uint32_t cols, size_t ld)
{
    float *y = aligned_alloc(64, bxn_round_up(rows * ld * sizeof *y, 64));
    assert_non_null(y);
    memset(y, 0, rows * ld * sizeof *y);
    for (uint32_t t = 0; t < rows; t++)
        for (uint32_t c = 0; c < cols; c++)
            y[t * ld + c] = (float)x[(size_t)t * cols + c];
    return y;
}

static bitaxon_error error = BITAXON_ERROR_INIT;

/* kept: the forward leaves its buffers for the backward. */
static bitaxon_status run_kept(const problem *p, const bxn_kernels *kernels, uint32_t threads, bool kept, result *out,
                               const atomic_int *cancel)
{
    const uint32_t width = p->width, rows = p->rows;
    memset(out, 0, sizeof *out);
    result_pieces(out, p);
    out->all = calloc(out->count, sizeof(float));
    assert_non_null(out->all);
    result_pieces(out, p);
    bxn_mem mem;
    bxn_pool *pool;
    assert_int_equal(bxn_mem_init(&mem, NULL, 0, &error), BITAXON_OK);
    assert_int_equal(bxn_pool_create(&mem, threads, &pool, &error), BITAXON_OK);
    float *w[WEIGHTS], *vectors[WEIGHTS][4];
    bxn_lora loras[WEIGHTS];
    bxn_weight weights[WEIGHTS];
    for (uint32_t i = 0; i < WEIGHTS; i++) {
        double *gain = malloc(width * sizeof *gain);
        for (uint32_t o = 0; o < width; o++)
            gain[o] = p->m[i][o] / p->norm[i][o];
        w[i] = rows_of(p->w[i], width, width, width);
        vectors[i][0] = rows_of(p->a[i], RANK, width, out->lda);
        vectors[i][1] = rows_of(p->b[i], RANK, width, out->lda);
        vectors[i][2] = rows_of(p->m[i], 1, width, out->lda);
        vectors[i][3] = rows_of(gain, 1, width, out->lda);
        free(gain);
        const bool dora = p->s.mode == DORA;
        loras[i] = (bxn_lora){ .rank = RANK, .scale = (float)LORA_SCALE, .a = vectors[i][0], .b = vectors[i][1],
                               .lda = out->lda, .ldb = out->lda, .m = dora ? vectors[i][2] : NULL,
                               .gain = dora ? vectors[i][3] : NULL };
        weights[i] = (bxn_weight){ .kind = BXN_WEIGHT_DENSE, .rows = width, .cols = width, .id = i + 1,
                                   .dense = { w[i], BXN_F32, width, width } };
    }
    const bxn_attention attention = { .heads = p->s.heads, .head_dim = p->s.dim, .window = p->s.window,
                                      .rope_theta = p->s.theta, .q_proj = weights[0], .k_proj = weights[1],
                                      .v_proj = weights[2], .o_proj = weights[3] };
    const bxn_adapters adapters = { .count = 1, .loras = { loras }, .weights = { 1.0f } };
    const size_t bytes = bxn_attention_train_bytes(&attention, rows, p->s.mode == FULL ? 0 : RANK, p->s.mode == FULL);
    bxn_train_pass pass = {
        .exec = { .kernels = kernels, .pool = pool, .cancel = cancel, .phase = BXN_PHASE_PREFILL, .error = &error,
                  .adapters = p->s.mode == FULL ? NULL : &adapters },
        .rows = rows,
        .documents = p->documents,
        .document_count = p->s.count,
        .scratch = { .memory = aligned_alloc(64, bxn_round_up(bytes + CANARY, 64)), .bytes = bytes },
        .grads = out->grads,
    };
    assert_non_null(pass.scratch.memory);
    memset(pass.scratch.memory, 0xA5, bytes + CANARY);
    const size_t kept_bytes = bxn_attention_kept_bytes(&attention, rows);
    if (kept) {
        pass.kept = (bxn_scratch){ .memory = aligned_alloc(64, bxn_round_up(kept_bytes, 64)), .bytes = kept_bytes };
        pass.keep = BXN_KEEP_LEAVE;
        assert_non_null(pass.kept.memory);
    }
    float *n = rows_of(p->n, rows, width, out->ld), *dr = rows_of(p->dr, rows, width, out->ld);
    bitaxon_status status = bxn_attention_train(&pass, &attention, n, out->ld, out->r, out->ld);
    assert_int_equal(pass.scratch.used, 0);
    if (kept) {
        memset(pass.scratch.memory, 0xA5, bytes); /* other ops come between the two */
        pass.keep = BXN_KEEP_FIND;
    }
    if (status == BITAXON_OK || cancel != NULL)
        status = bxn_attention_backward(&pass, &attention, n, out->ld, dr, out->ld, out->dn, out->ld);
    assert_int_equal(pass.scratch.used, 0);
    assert_true(pass.scratch.most <= bytes);
    for (int i = 0; i < CANARY; i++)
        assert_int_equal(pass.scratch.memory[bytes + i], 0xA5);
    for (uint32_t t = 0; t < rows; t++) /* behind a row nothing is written */
        for (size_t c = width; c < out->ld; c++)
            assert_true(out->r[t * out->ld + c] == 0 && out->dn[t * out->ld + c] == 0);
    for (uint32_t i = 0; i < WEIGHTS; i++) {
        free(w[i]);
        for (int v = 0; v < 4; v++)
            free(vectors[i][v]);
    }
    free(n);
    free(dr);
    assert_true(pass.kept.used == 0 && pass.kept.most == (kept ? kept_bytes : 0));
    free(pass.kept.memory);
    free(pass.scratch.memory);
    bxn_pool_free(pool);
    return status;
}

static bitaxon_status run_cancelled(const problem *p, const bxn_kernels *kernels, uint32_t threads, result *out,
                                    const atomic_int *cancel)
{
    return run_kept(p, kernels, threads, false, out, cancel);
}

static void run(const problem *p, const bxn_kernels *kernels, uint32_t threads, result *out)
{
    assert_int_equal(run_cancelled(p, kernels, threads, out, NULL), BITAXON_OK);
}

static bool same_bits(const float *a, const float *b, size_t count)
{
    return memcmp(a, b, count * sizeof *a) == 0;
}

/* The tables of this processor's tiers, each once. */
static size_t tables(bxn_kernels *out)
{
    static const uint64_t masks[] = TEST_TIERS;
    const uint64_t have = bxn_cpu_detect();
    size_t count = 0;
    for (size_t i = 0; i < sizeof masks / sizeof masks[0]; i++) {
        bxn_kernels_init(&out[count], masks[i]);
        bool known = (masks[i] & ~have) != 0;
        for (size_t j = 0; j < count; j++)
            known |= out[j].attention_backward == out[count].attention_backward;
        count += !known;
    }
    return count;
}

/* ---- gradients ------------------------------------------------------------------------------------------- */

/* Some elements of a gradient against central differences of x, whose elements are the parameters. */
static double check_tensor(const problem *p, const char *name, double *x, uint32_t rows, uint32_t cols,
                           const float *got, size_t ld)
{
    enum { SAMPLES = 24 };
    const double step = 1e-4;
    double want[SAMPLES], squares = 0, worst = 0;
    float found[SAMPLES];
    double *r = malloc((size_t)p->rows * p->width * sizeof *r);
    for (int i = 0; i < SAMPLES; i++) {
        const uint32_t t = (uint32_t)uniform(0, rows) % rows, c = (uint32_t)uniform(0, cols) % cols;
        double *at = x + (size_t)t * cols + c, kept = *at;
        *at = kept + step;
        const double above = forward(p, r);
        *at = kept - step;
        want[i] = (above - forward(p, r)) / (2 * step);
        *at = kept;
        found[i] = got[t * ld + c];
        squares += want[i] * want[i];
    }
    free(r);
    const double size = fmax(sqrt(squares / SAMPLES), 0.1);
    assert_true(squares > 0.01 || p->s.window == 1); /* where scores do not matter */
    for (int i = 0; i < SAMPLES; i++) {
        const double off = fabs((double)found[i] - want[i]) / (fabs(want[i]) + size);
        worst = off > worst ? off : worst;
        if (!(off <= BOUND))
            fail_msg("%s: got %.9g, expected %.9g (%.2g off)", name, (double)found[i], want[i], off);
    }
    return worst;
}

static double check_gradients(problem *p, const bxn_kernels *kernels)
{
    static const char *const names[WEIGHTS] = { "q_proj", "k_proj", "v_proj", "o_proj" };
    result out;
    run(p, kernels, 1, &out);
    double *r = malloc((size_t)p->rows * p->width * sizeof *r), worst = 0;
    forward(p, r);
    for (uint32_t t = 0; t < p->rows; t++) {
        for (uint32_t c = 0; c < p->width; c++) {
            const double want = r[t * p->width + c], got = (double)out.r[t * out.ld + c];
            if (!(fabs(got - want) <= BOUND * (1 + fabs(want))))
                fail_msg("result [%u, %u]: got %.9g, expected %.9g", t, c, got, want);
        }
    }
    free(r);
    worst = fmax(worst, check_tensor(p, "input", p->n, p->rows, p->width, out.dn, out.ld));
    for (int i = 0; i < WEIGHTS; i++) {
        const bxn_weight_grads *g = &out.grads[i];
        if (g->w != NULL)
            worst = fmax(worst, check_tensor(p, names[i], p->w[i], p->width, p->width, g->w, p->width));
        if (g->a != NULL)
            worst = fmax(worst, check_tensor(p, names[i], p->a[i], RANK, p->width, g->a, out.lda));
        if (g->b != NULL)
            worst = fmax(worst, check_tensor(p, names[i], p->b[i], RANK, p->width, g->b, out.lda));
        if (g->m != NULL)
            worst = fmax(worst, check_tensor(p, names[i], p->m[i], 1, p->width, g->m, p->width));
    }
    free(out.all);
    return worst;
}

static const shape shapes[] = {
    { 2, 6, 3, { 1, 70, 19 }, 5, 0, FULL },       { 2, 6, 3, { 1, 70, 19 }, 1000, 10000, FULL },
    { 1, 5, 2, { 40, 66 }, 64, 0, LORA },         { 3, 4, 2, { 33, 33 }, 7, 500, LORA },
    { 2, 8, 2, { 20, 30 }, 1000, 0, DORA },       { 2, 8, 3, { 5, 68, 2 }, 30, 100, DORA },
    { 1, 20, 1, { 70 }, 1, 0, FULL },             { 1, 18, 1, { 67 }, UINT64_MAX, 10000, DORA },
};

static void test_gradients(void **state)
{
    bxn_kernels kernels[8];
    const size_t tiers = tables(kernels);
    (void)state;
    double worst = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (size_t t = 0; t < tiers; t++) {
            problem p;
            make(&p, &shapes[i], i + 1);
            worst = fmax(worst, check_gradients(&p, &kernels[t]));
            drop(&p);
        }
    }
    print_message("largest error of a gradient: %.2g\n", worst);
}

/* ---- bits --------------------------------------------------------------------------------------------------- */

/* With few heads and a long document, three threads cut heads where one does not. Some of the others find what
 * their forward left. */
static void test_threads(void **state)
{
    static const shape cases[] = { { 1, 20, 2, { 300, 41 }, 100, 0, FULL },
                                   { 2, 6, 1, { 290 }, 1000, 10000, LORA },
                                   { 3, 16, 4, { 64, 65, 63, 130 }, 64, 0, DORA } };
    bxn_kernels kernels[8];
    const size_t tiers = tables(kernels);
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        problem p;
        make(&p, &cases[i], 70 + i);
        for (size_t t = 0; t < tiers; t++) {
            result one, other;
            run(&p, &kernels[t], 1, &one);
            for (uint32_t threads = 1; threads <= 3; threads++) {
                assert_int_equal(run_kept(&p, &kernels[t], threads, threads != 2, &other, NULL), BITAXON_OK);
                assert_true(same_bits(one.all, other.all, one.count));
                free(other.all);
            }
            free(one.all);
        }
        drop(&p);
    }
}

/* A document of several has the bits that it has alone, and no gradient from the others' loss. */
static void test_isolation(void **state)
{
    static const shape together = { 2, 8, 3, { 30, 100, 67 }, 40, 10000, FULL };
    bxn_kernels kernels[8];
    const size_t tiers = tables(kernels);
    (void)state;
    for (size_t t = 0; t < tiers; t++) {
        for (uint32_t d = 0; d < together.count; d++) {
            problem p;
            result all, alone;
            make(&p, &together, 5);
            const bxn_document here = p.documents[d];
            run(&p, &kernels[t], 2, &all);
            problem single = p;
            single.s.count = 1;
            single.documents[0] = (bxn_document){ 0, here.count };
            single.rows = here.count;
            single.n = p.n + (size_t)here.first * p.width;
            single.dr = p.dr + (size_t)here.first * p.width;
            run(&single, &kernels[t], 1, &alone);
            assert_true(same_bits(all.r + here.first * all.ld, alone.r, here.count * all.ld));
            assert_true(same_bits(all.dn + here.first * all.ld, alone.dn, here.count * all.ld));
            free(all.all);
            free(alone.all);
            /* Loss in this document alone. */
            for (uint32_t row = 0; row < p.rows; row++)
                for (uint32_t c = 0; c < p.width && (row < here.first || row >= here.first + here.count); c++)
                    p.dr[row * p.width + c] = 0;
            run(&p, &kernels[t], 2, &all);
            for (uint32_t row = 0; row < p.rows; row++) {
                bool any = false;
                for (uint32_t c = 0; c < p.width; c++)
                    any |= all.dn[row * all.ld + c] != 0;
                assert_int_equal(any, row >= here.first && row < here.first + here.count);
            }
            free(all.all);
            drop(&p);
        }
    }
}

/* Rows change nothing before them nor beyond the window, and get no gradient from there. */
static void test_causality(void **state)
{
    static const shape one = { 1, 12, 1, { 200 }, 70, 0, FULL };
    static const uint32_t rows[] = { 0, 63, 64, 100, 199 };
    bxn_kernels kernels[8];
    const size_t tiers = tables(kernels);
    (void)state;
    for (size_t t = 0; t < tiers; t++) {
        for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
            const uint32_t row = rows[i];
            problem p;
            result before, after;
            make(&p, &one, 9);
            run(&p, &kernels[t], 2, &before);
            for (uint32_t c = 0; c < p.width; c++)
                p.n[row * p.width + c] = 100;
            run(&p, &kernels[t], 2, &after);
            for (uint32_t other = 0; other < p.rows; other++) {
                const bool same = same_bits(before.r + other * before.ld, after.r + other * after.ld, p.width);
                assert_int_equal(same, other < row || other - row >= one.window);
            }
            free(before.all);
            free(after.all);
            drop(&p);
            make(&p, &one, 9);
            for (uint32_t other = 0; other < p.rows; other++)
                for (uint32_t c = 0; c < p.width && other != row; c++)
                    p.dr[other * p.width + c] = 0;
            run(&p, &kernels[t], 2, &after);
            for (uint32_t other = 0; other < p.rows; other++) {
                bool any = false;
                for (uint32_t c = 0; c < p.width; c++)
                    any |= after.dn[other * after.ld + c] != 0;
                assert_int_equal(any, other <= row && row - other < one.window);
            }
            free(after.all);
            drop(&p);
        }
    }
}

static void test_cancel(void **state)
{
    static const shape one = { 2, 8, 1, { 90 }, 20, 0, FULL };
    bxn_kernels kernels;
    atomic_int cancel = 1;
    problem p;
    result out;
    (void)state;
    bxn_kernels_init(&kernels, bxn_cpu_detect());
    make(&p, &one, 3);
    for (uint32_t threads = 1; threads <= 2; threads++) {
        assert_int_equal(run_cancelled(&p, &kernels, threads, &out, &cancel), BITAXON_CANCELLED);
        free(out.all);
    }
    drop(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_gradients), cmocka_unit_test(test_threads),
                                        cmocka_unit_test(test_isolation), cmocka_unit_test(test_causality),
                                        cmocka_unit_test(test_cancel) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
