/* SPDX-License-Identifier: Apache-2.0 */
/* test_loss.c - the head with cross entropy: log-probabilities against a definition in double, gradients of rows
 * and of the head against central differences of it; vocabularies of any width, more rows than a tile, few
 * labels and none, logits far apart, quantised heads; the same bits from any number of threads and neighbours. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "api/api.h"
#include "test_tiers.h"
#include "train/bxn_train.h"

static const uint64_t tiers[] = TEST_TIERS;
static const char *const tier_names[] = TEST_TIER_NAMES;
enum { TIERS = sizeof tiers / sizeof tiers[0] };

typedef struct world {
    uint32_t vocab, dim, rows;
    size_t ld;
    float *w, *h, *dw, *dh, *logp, *coefficient;
    int32_t *labels;
    bxn_model model;
    bxn_weight_grads grads;
    bxn_mem mem;
    bxn_pool *pool;
    bxn_train_pass pass;
    bitaxon_error error;
    void *memory;
} world;

static uint64_t counter;
static float random_value(void)
{
    return (float)(2 * bxn_uniform(11, 0, counter++) - 1);
}

static void *take(size_t bytes)
{
    void *p = aligned_alloc(64, bxn_round_up(bytes, 64));
    assert_non_null(p);
    memset(p, 0, bytes);
    return p;
}

/* About two of three rows have a label, and most of these a coefficient. */
static void world_open(world *w, uint32_t vocab, uint32_t dim, uint32_t rows, uint64_t tier, uint32_t threads)
{
    memset(w, 0, sizeof *w);
    counter = 0;
    w->vocab = vocab;
    w->dim = dim;
    w->rows = rows;
    w->ld = bxn_round_up(dim, 128);
    w->error = (bitaxon_error)BITAXON_ERROR_INIT;
    w->w = take((size_t)vocab * dim * sizeof(float));
    w->dw = take((size_t)vocab * dim * sizeof(float));
    w->h = take(rows * w->ld * sizeof(float));
    w->dh = take(rows * w->ld * sizeof(float));
    memset(w->dh, 0xFF, rows * w->ld * sizeof(float));
    w->logp = take(rows * sizeof(float));
    w->coefficient = take(rows * sizeof(float));
    w->labels = take(rows * sizeof(int32_t));
    for (size_t i = 0; i < (size_t)vocab * dim; i++)
        w->w[i] = 1.5f * random_value();
    for (uint32_t t = 0; t < rows; t++) {
        for (uint32_t j = 0; j < dim; j++)
            w->h[t * w->ld + j] = random_value();
        w->labels[t] = t % 3 == 1 ? -1 : (int32_t)((t * 7919u + 3) % vocab);
        w->coefficient[t] = t % 7 == 5 ? 0 : random_value();
    }
    assert_int_equal(bxn_mem_init(&w->mem, NULL, 0, &w->error), BITAXON_OK);
    assert_int_equal(bxn_pool_create(&w->mem, threads, &w->pool, &w->error), BITAXON_OK);
    bxn_kernels_init(&w->model.kernels, tier == BITAXON_CPU_NONE ? 0 : tier);
    w->model.head = (bxn_weight){ .kind = BXN_WEIGHT_DENSE, .rows = vocab, .cols = dim, .id = 1,
                                  .dense = { w->w, BXN_F32, vocab, dim } };
    w->grads = (bxn_weight_grads){ .w = w->dw };
    size_t bytes = bxn_loss_bytes(&w->model, rows);
    w->memory = take(bytes);
    memset(w->memory, 0xFF, bytes);
    w->pass = (bxn_train_pass){ .exec = { .kernels = &w->model.kernels, .pool = w->pool, .error = &w->error },
                                .rows = rows, .scratch = { .memory = w->memory, .bytes = bytes }, .grads = &w->grads };
}

static void world_close(world *w)
{
    free(w->w), free(w->h), free(w->dw), free(w->dh), free(w->logp), free(w->coefficient), free(w->labels);
    free(w->memory);
    bxn_pool_free(w->pool);
    assert_int_equal(w->mem.used, 0);
}

static void run(world *w, bool logp)
{
    if (bxn_loss_backward(&w->pass, &w->model, w->h, w->ld, w->labels, w->coefficient, w->rows, logp ? w->logp : NULL,
                          w->dh, w->ld) != BITAXON_OK)
        fail_msg("%s", w->error.message);
    assert_int_equal(w->pass.scratch.used, 0);
}

/* log p(label) of one row. */
static double define(const double *h, const float *weights, size_t moved, double by, uint32_t vocab, uint32_t dim,
                     int32_t label)
{
    double *x = malloc(vocab * sizeof *x), max = -INFINITY, sum = 0;
    for (uint32_t v = 0; v < vocab; v++) {
        x[v] = 0;
        for (uint32_t j = 0; j < dim; j++)
            x[v] += ((double)weights[(size_t)v * dim + j] + ((size_t)v * dim + j == moved ? by : 0)) * h[j];
        max = fmax(max, x[v]);
    }
    for (uint32_t v = 0; v < vocab; v++)
        sum += exp(x[v] - max);
    double result = x[label] - max - log(sum);
    free(x);
    return result;
}

static double define_row(const world *w, uint32_t t, uint32_t column, double by)
{
    double h[160];
    for (uint32_t j = 0; j < w->dim; j++)
        h[j] = (double)w->h[t * w->ld + j] + (j == column ? by : 0);
    return define(h, w->w, SIZE_MAX, 0, w->vocab, w->dim, w->labels[t]);
}

/* Sum over rows of coefficient * log p with one element of the head moved. */
static double define_sum(const world *w, size_t moved, double by)
{
    double sum = 0;
    for (uint32_t t = 0; t < w->rows; t++) {
        double h[160];
        for (uint32_t j = 0; j < w->dim; j++)
            h[j] = (double)w->h[t * w->ld + j];
        if (w->labels[t] >= 0 && w->coefficient[t] != 0)
            sum += (double)w->coefficient[t] * define(h, w->w, moved, by, w->vocab, w->dim, w->labels[t]);
    }
    return sum;
}

static void check_shape(uint32_t vocab, uint32_t dim, uint32_t rows, uint32_t samples, uint64_t tier, const char *name)
{
    world w;
    world_open(&w, vocab, dim, rows, tier, 2);
    run(&w, true);
    double worst = 0, worst_h = 0, size_h = 1e-9, worst_w = 0, size_w = 1e-9, h = 1e-5;
    for (uint32_t t = 0; t < rows; t++) {
        double want = w.labels[t] < 0 ? 0 : define_row(&w, t, 0, 0), error = fabs((double)w.logp[t] - want);
        worst = !(error <= worst) ? error : worst;
        for (uint32_t j = 0; j < w.ld; j++)
            if (w.labels[t] < 0 || w.coefficient[t] == 0 || j >= dim)
                assert_true(w.dh[t * w.ld + j] == 0);
    }
    for (size_t i = 0; i < samples; i++) {
        uint32_t t = (uint32_t)(i * 37 % rows), j = (uint32_t)(i * 13 % dim);
        size_t at = i * 101 % ((size_t)vocab * dim);
        double want = 0;
        if (w.labels[t] >= 0)
            want = (double)w.coefficient[t] * (define_row(&w, t, j, h) - define_row(&w, t, j, -h)) / (2 * h);
        double error = fabs((double)w.dh[t * w.ld + j] - want);
        worst_h = !(error <= worst_h) ? error : worst_h;
        size_h = fmax(size_h, fabs(want));
        want = (define_sum(&w, at, h) - define_sum(&w, at, -h)) / (2 * h);
        error = fabs((double)w.dw[at] - want);
        worst_w = !(error <= worst_w) ? error : worst_w;
        size_w = fmax(size_w, fabs(want));
    }
    print_message("V %u, S %u, T %u, tier %s: log p %.2g (bound 5e-6), dh %.2g, dW %.2g (bounds 1e-5 of the largest)\n",
                  vocab, dim, rows, name, worst, worst_h / size_h, worst_w / size_w);
    assert_true(worst <= 5e-6);
    assert_true(worst_h <= 1e-5 * size_h && worst_w <= 1e-5 * size_w);

    /* Without gradients, and gradients without log p: the same bits. dW is added to. */
    float *logp = take(rows * sizeof(float)), *dh = take(rows * w.ld * sizeof(float));
    assert_int_equal(bxn_loss_logprobs(&w.pass, &w.model, w.h, w.ld, w.labels, rows, logp), BITAXON_OK);
    assert_memory_equal(logp, w.logp, rows * sizeof(float));
    memcpy(dh, w.dh, rows * w.ld * sizeof(float));
    float first = w.dw[0];
    run(&w, false);
    assert_memory_equal(dh, w.dh, rows * w.ld * sizeof(float));
    assert_true(fabsf(w.dw[0] - 2 * first) <= 1e-5f * fabsf(first));
    free(logp);
    free(dh);
    world_close(&w);
}

static void test_gradients(void **state)
{
    (void)state;
    check_shape(37, 12, 5, 60, bxn_cpu_detect(), "best");
    check_shape(37, 12, 1, 12, bxn_cpu_detect(), "best"); /* one label */
    check_shape(300, 20, 300, 6, bxn_cpu_detect(), "best");
    check_shape(1500, 140, 6, 10, bxn_cpu_detect(), "best"); /* more than a block of exponentials */
    check_shape(1, 12, 4, 12, bxn_cpu_detect(), "best");  /* certain */
    for (int t = 0; t < TIERS; t++)
        if ((bitaxon_cpu_features() & tiers[t] & ~BITAXON_CPU_NONE) == (tiers[t] & ~BITAXON_CPU_NONE))
            check_shape(50, 17, 9, 20, tiers[t], tier_names[t]);
}

static void test_no_label(void **state)
{
    (void)state;
    world w;
    world_open(&w, 37, 12, 20, bxn_cpu_detect(), 2);
    for (uint32_t t = 0; t < w.rows; t++)
        w.labels[t] = -1;
    run(&w, true);
    for (uint32_t t = 0; t < w.rows; t++)
        assert_true(w.logp[t] == 0);
    for (size_t i = 0; i < w.rows * w.ld; i++)
        assert_true(w.dh[i] == 0);
    for (size_t i = 0; i < (size_t)w.vocab * w.dim; i++)
        assert_true(w.dw[i] == 0);
    world_close(&w);
}

/* Logits 1e4 apart: nothing overflows, a lost label has its distance, a certain one keeps a gradient of its own. */
static void test_extremes(void **state)
{
    (void)state;
    for (int t = 0; t < TIERS; t++) {
        if ((bitaxon_cpu_features() & tiers[t] & ~BITAXON_CPU_NONE) != (tiers[t] & ~BITAXON_CPU_NONE))
            continue;
        world w;
        world_open(&w, 20, 3, 4, tiers[t], 2);
        memset(w.w, 0, 20 * 3 * sizeof(float));
        memset(w.h, 0, 4 * w.ld * sizeof(float));
        w.w[5 * 3] = 1e4f, w.w[6 * 3] = -1e4f, w.w[7 * 3 + 1] = 30;
        const int32_t labels[] = { 5, 6, 7, 5 };
        for (uint32_t i = 0; i < 4; i++) {
            w.h[i * w.ld + (i == 2 ? 1 : 0)] = 1;
            w.labels[i] = labels[i];
            w.coefficient[i] = -1;
        }
        run(&w, true);
        assert_true(w.logp[0] == 0 && w.logp[1] == -2e4f && w.logp[3] == 0);
        double others = 19 * exp(-30.0), want = -log1p(others);
        assert_true(fabs((double)w.logp[2] - want) <= 1e-6 * fabs(want));
        /* -dlogp: moves down by the distance of the likely token, up by that of the label */
        assert_true(w.dh[0] == 0 && w.dh[w.ld] == 2e4f);
        double gradient = -30 * others / (1 + others);
        assert_true(fabs((double)w.dh[2 * w.ld + 1] - gradient) <= 1e-5 * fabs(gradient));
        world_close(&w);
    }
}

static void test_bits(void **state)
{
    (void)state;
    static const uint32_t shapes[][3] = { { 300, 140, 530 }, { 66000, 5, 140 } }; /* tiles of 256 rows, and of 128 */
    for (int i = 0; i < 2; i++) {
        world w[3];
        for (uint32_t threads = 1; threads <= 3; threads++) {
            world *at = &w[threads - 1];
            world_open(at, shapes[i][0], shapes[i][1], shapes[i][2], bxn_cpu_detect(), threads);
            run(at, true);
            assert_memory_equal(w[0].logp, at->logp, at->rows * sizeof(float));
            assert_memory_equal(w[0].dh, at->dh, at->rows * at->ld * sizeof(float));
            assert_memory_equal(w[0].dw, at->dw, (size_t)at->vocab * at->dim * sizeof(float));
        }
        /* A row alone has the bits that it has among others. */
        world *at = &w[1];
        float logp, *dh = take(at->ld * sizeof(float));
        for (uint32_t t = 0; t < at->rows; t += 67) {
            assert_int_equal(bxn_loss_backward(&at->pass, &at->model, at->h + t * at->ld, at->ld, at->labels + t,
                                               at->coefficient + t, 1, &logp, dh, at->ld), BITAXON_OK);
            assert_memory_equal(&logp, &at->logp[t], sizeof logp);
            assert_memory_equal(dh, at->dh + t * at->ld, at->ld * sizeof(float));
        }
        free(dh);
        for (int k = 0; k < 3; k++)
            world_close(&w[k]);
    }
}

/* A head of 4-bit codes, frozen. */
static void test_quantised(void **state)
{
    (void)state;
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_model_params params = { .struct_size = sizeof params, .path = "tests/golden/tiny-q4", .threads = 2,
                                    .accuracy = BITAXON_ACCURACY_EXACT };
    bitaxon_model *model;
    assert_int_equal(bitaxon_model_open(&params, &model, &error), BITAXON_OK);
    const bxn_model *core = &model->core;
    enum { T = 9, LD = 128 };
    uint32_t vocab = core->head.rows, dim = core->head.cols;
    assert_int_equal(core->head.kind, BXN_WEIGHT_PACKED);
    float *w = take((size_t)vocab * dim * sizeof *w), *h = take(T * LD * sizeof *h), *dh = take(T * LD * sizeof *dh);
    float logp[T], coefficient[T];
    int32_t labels[T];
    for (uint32_t v = 0; v < vocab; v++)
        bxn_weight_row(&core->head, v, w + v * dim);
    counter = 0;
    for (int t = 0; t < T; t++) {
        for (uint32_t j = 0; j < dim; j++)
            h[t * LD + (int)j] = 3 * random_value();
        labels[t] = t == 4 ? -1 : (t * 31 + 2) % (int32_t)vocab;
        coefficient[t] = -1;
    }
    size_t bytes = bxn_loss_bytes(core, T);
    void *memory = take(bytes);
    bxn_train_pass pass = { .exec = { .kernels = &core->kernels, .pool = core->pool, .error = &error }, .rows = T,
                            .scratch = { .memory = memory, .bytes = bytes } };
    assert_int_equal(bxn_loss_backward(&pass, core, h, LD, labels, coefficient, T, logp, dh, LD), BITAXON_OK);
    for (int t = 0; t < T; t++) {
        for (uint32_t j = 0; j < dim && labels[t] >= 0; j += 9) {
            double row[2][64], step = 1e-5;
            for (uint32_t k = 0; k < dim; k++)
                row[0][k] = row[1][k] = (double)h[t * LD + (int)k];
            double at = define(row[0], w, SIZE_MAX, 0, vocab, dim, labels[t]);
            row[0][j] += step;
            row[1][j] -= step;
            double want = (define(row[1], w, SIZE_MAX, 0, vocab, dim, labels[t]) -
                           define(row[0], w, SIZE_MAX, 0, vocab, dim, labels[t])) / (2 * step);
            assert_true(fabs((double)logp[t] - at) <= 5e-6 * (1 + fabs(at)));
            assert_true(fabs((double)dh[t * LD + (int)j] - want) <= 1e-5);
        }
    }
    free(w), free(h), free(dh), free(memory);
    bitaxon_model_free(model);
}

static void test_errors(void **state)
{
    (void)state;
    world w;
    world_open(&w, 37, 12, 20, bxn_cpu_detect(), 2);
    w.labels[13] = 37;
    assert_int_equal(bxn_loss_logprobs(&w.pass, &w.model, w.h, w.ld, w.labels, w.rows, w.logp),
                     BITAXON_INVALID_ARGUMENT);
    assert_non_null(strstr(w.error.message, "label 37 of row 13"));
    w.labels[13] = 36;
    atomic_int cancel = 1;
    w.pass.exec.cancel = &cancel;
    assert_int_equal(bxn_loss_logprobs(&w.pass, &w.model, w.h, w.ld, w.labels, w.rows, w.logp), BITAXON_CANCELLED);
    assert_int_equal(w.pass.scratch.used, 0);
    w.pass.exec.cancel = NULL;
    /* What is not finite shows in its own row alone. */
    w.h[3 * w.ld + 2] = NAN;
    w.h[6 * w.ld + 2] = INFINITY;
    run(&w, true);
    for (uint32_t t = 0; t < w.rows; t++)
        assert_int_equal(isfinite(w.logp[t]), t != 3 && t != 6);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients), cmocka_unit_test(test_no_label),  cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_bits),      cmocka_unit_test(test_quantised), cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
