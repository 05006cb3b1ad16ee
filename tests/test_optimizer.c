/* SPDX-License-Identifier: Apache-2.0 */
/* test_optimizer.c - the schedule, the norm, AdamW and Muon: against the two steps of AdamW that the
 * original implementation made, against references in double, and against themselves with other
 * numbers of threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>

#include "fixture_tensors.h"
#include "train/bxn_train.h"

enum { PARAMETERS = 4, FLOATS = 64 * 320 + 320 * 64 + 48 + 208 };

typedef struct bench {
    bxn_mem mem;
    bxn_kernels kernels;
    bxn_pool *pool;
    bxn_exec exec;
    bxn_parameter items[PARAMETERS];
    bxn_parameters p;
    bxn_optimizer o;
} bench;

static void bench_start(bench *b, uint32_t threads, bool muon)
{
    static float arrays[4][FLOATS + 64];
    memset(b, 0, sizeof *b);
    memset(arrays, 0, sizeof arrays);
    assert_int_equal(bxn_mem_init(&b->mem, NULL, 0, NULL), BITAXON_OK);
    bxn_kernels_init(&b->kernels, bxn_cpu_detect());
    assert_int_equal(bxn_pool_create(&b->mem, threads, &b->pool, NULL), BITAXON_OK);
    b->exec.kernels = &b->kernels;
    b->exec.pool = b->pool;
    /* A wide and a tall matrix, a vector of 33 with padding to 48, rows of 13 that lie 16 apart. */
    b->items[0] = (bxn_parameter){ "wide", 0, 64, 320, 320, true, true };
    b->items[1] = (bxn_parameter){ "tall", 64 * 320, 320, 64, 64, true, true };
    b->items[2] = (bxn_parameter){ "vector", 2 * 64 * 320, 1, 33, 48, false, false };
    b->items[3] = (bxn_parameter){ "rows", 2 * 64 * 320 + 48, 13, 13, 16, false, true };
    b->p = (bxn_parameters){ b->items, PARAMETERS, FLOATS, arrays[0], arrays[1], arrays[2], arrays[3] };
    b->o = (bxn_optimizer){ .kind = muon ? BXN_MUON : BXN_ADAMW, .learning_rate = 0.01, .warmup = 3, .total = 20,
                            .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .weight_decay = 0.1, .max_norm = 1,
                            .momentum = 0.95, .bias_correction = true };
    size_t bytes = bxn_optimizer_scratch(&b->o, &b->p);
    assert_int_equal(bytes != 0, muon);
    if (muon)
        assert_int_equal(bxn_alloc(&b->mem, bytes, "scratch", &b->o.scratch, NULL), BITAXON_OK);
}

static void bench_end(bench *b)
{
    bxn_free(&b->mem, b->o.scratch, bxn_optimizer_scratch(&b->o, &b->p));
    bxn_pool_free(b->pool);
    assert_int_equal(b->mem.used, 0);
}

/* Values between -1 and 1 where a parameter is; its padding stays zero. */
static void fill(const bench *b, float *array, uint64_t key, double size)
{
    for (uint32_t i = 0; i < PARAMETERS; i++)
        for (uint32_t r = 0; r < b->items[i].rows; r++)
            for (uint32_t c = 0; c < b->items[i].cols; c++) {
                size_t at = b->items[i].offset + r * b->items[i].ld + c;
                array[at] = (float)(size * (2 * bxn_uniform(key, 0, at) - 1));
            }
}

static void check_padding(const bench *b)
{
    const float *const arrays[4] = { b->p.value, b->p.grad, b->p.m, b->p.v };
    for (uint32_t i = 2; i < PARAMETERS; i++)
        for (uint32_t r = 0; r < b->items[i].rows; r++)
            for (size_t c = b->items[i].cols; c < b->items[i].ld; c++)
                for (int a = 0; a < 4; a++)
                    assert_true(arrays[a][b->items[i].offset + r * b->items[i].ld + c] == 0);
}

static void test_schedule(void **state)
{
    (void)state;
    bxn_optimizer o = { .learning_rate = 1e-4, .min_learning_rate = 1e-5, .warmup = 4, .total = 12 };
    const double half = 1e-5 + 9e-5 / 2;
    static const double warm[4] = { 2.5e-5, 5e-5, 7.5e-5, 1e-4 };
    for (uint64_t u = 0; u < 4; u++)
        assert_true(fabs(bxn_learning_rate(&o, u) - warm[u]) < 1e-18);
    assert_true(fabs(bxn_learning_rate(&o, 4) - 1e-4) < 1e-18);
    assert_true(fabs(bxn_learning_rate(&o, 6) - (1e-5 + 9e-5 * (1 + sqrt(0.5)) / 2)) < 1e-18);
    assert_true(fabs(bxn_learning_rate(&o, 8) - half) < 1e-18);
    assert_true(fabs(bxn_learning_rate(&o, 12) - 1e-5) < 1e-18);
    assert_true(fabs(bxn_learning_rate(&o, UINT64_MAX) - 1e-5) < 1e-18);
    for (uint64_t u = 4; u < 12; u++)
        assert_true(bxn_learning_rate(&o, u + 1) < bxn_learning_rate(&o, u));
    o.warmup = 0;
    assert_true(bxn_learning_rate(&o, 0) == 1e-4);
    o.warmup = 12; /* nothing is left for the cosine */
    assert_true(bxn_learning_rate(&o, 11) == 1e-4 && bxn_learning_rate(&o, 13) == 1e-5);
    o.total = 0;
    assert_true(bxn_learning_rate(&o, 13) == 1e-5);
}

static void test_golden_adamw(void **state)
{
    (void)state;
    bench b;
    fixture f;
    bench_start(&b, 1, false);
    fixture_open(&f, "tests/golden/expected.safetensors");
    b.items[0] = (bxn_parameter){ "w", 0, 1, 3, 16, false, true };
    b.p.count = 1;
    b.p.floats = 16;
    b.o = (bxn_optimizer){ .kind = BXN_ADAMW, .learning_rate = 0.1, .min_learning_rate = 0.1, .total = 2, .beta1 = 0.9,
                           .beta2 = 0.999, .epsilon = 1e-8, .weight_decay = 0.01 };
    memcpy(b.p.value, fixture_get(&f, "adamw_w0", "F32", NULL), 12);
    for (int step = 0; step < 2; step++) {
        float want[3];
        memcpy(b.p.grad, fixture_get(&f, step == 0 ? "adamw_g1" : "adamw_g2", "F32", NULL), 12);
        assert_int_equal(bxn_optimizer_update(&b.exec, &b.o, &b.p, (uint64_t)step, 1, 0), BITAXON_OK);
        memcpy(want, fixture_get(&f, step == 0 ? "adamw_w1" : "adamw_w2", "F32", NULL), 12);
        for (int i = 0; i < 3; i++) {
            assert_true(fabsf(b.p.value[i] - want[i]) <= 2e-7f * fmaxf(1, fabsf(want[i])));
            assert_true(b.p.grad[i] == 0);
        }
    }
    float m[3], v[3];
    memcpy(m, fixture_get(&f, "adamw_m2", "F32", NULL), 12);
    memcpy(v, fixture_get(&f, "adamw_v2", "F32", NULL), 12);
    for (int i = 0; i < 3; i++) {
        assert_true(fabsf(b.p.m[i] - m[i]) <= 2e-7f * fabsf(m[i]));
        assert_true(fabsf(b.p.v[i] - v[i]) <= 2e-7f * fabsf(v[i]));
    }
    fixture_close(&f);
    bench_end(&b);
}

/* Ten updates with bias correction, clipping and a scale, against the same in double. */
static void test_adamw_double(void **state)
{
    (void)state;
    bench b;
    static double value[FLOATS], m[FLOATS], v[FLOATS];
    bench_start(&b, 2, false);
    fill(&b, b.p.value, 1, 1);
    memset(m, 0, sizeof m);
    memset(v, 0, sizeof v);
    for (size_t i = 0; i < FLOATS; i++)
        value[i] = (double)b.p.value[i];
    for (uint64_t u = 0; u < 10; u++) {
        double sum = 0, norm;
        fill(&b, b.p.grad, 100 + u, u == 4 ? 1e-4 : 30); /* once below the norm that is clipped */
        for (size_t i = 0; i < FLOATS; i++)
            sum += (double)b.p.grad[i] * (double)b.p.grad[i];
        assert_int_equal(bxn_gradient_norm(&b.exec, &b.p, 0.25, &norm), BITAXON_OK);
        assert_true(fabs(norm - 0.25 * sqrt(sum)) <= 1e-12 * norm);
        assert_true((norm > 1) == (u != 4));
        double scale = 0.25 * (norm > 1 ? 1 / (norm + 1e-6) : 1), rate = bxn_learning_rate(&b.o, u);
        for (uint32_t k = 0; k < PARAMETERS; k++)
            for (size_t i = b.items[k].offset; i < b.items[k].offset + b.items[k].rows * b.items[k].ld; i++) {
                double g = (double)b.p.grad[i] * scale;
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                double mean = m[i] / (1 - pow(0.9, (double)u + 1)), square = v[i] / (1 - pow(0.999, (double)u + 1));
                value[i] *= b.items[k].decay ? 1 - rate * 0.1 : 1;
                value[i] -= rate * mean / (sqrt(square) + 1e-8);
            }
        assert_int_equal(bxn_optimizer_update(&b.exec, &b.o, &b.p, u, 0.25, norm), BITAXON_OK);
    }
    double worst = 0;
    for (size_t i = 0; i < FLOATS; i++) {
        worst = fmax(worst, fabs((double)b.p.value[i] - value[i]));
        assert_true(b.p.grad[i] == 0);
    }
    print_message("ten updates of AdamW: %.3g from double\n", worst);
    assert_true(worst < 2e-6);
    check_padding(&b);
    bench_end(&b);
}

static void test_norm_not_finite(void **state)
{
    (void)state;
    bench b;
    double norm;
    bench_start(&b, 2, false);
    assert_int_equal(bxn_gradient_norm(&b.exec, &b.p, 1, &norm), BITAXON_OK);
    assert_true(norm == 0);
    for (size_t at = 0; at < FLOATS; at += 4999) {
        b.p.grad[at] = INFINITY;
        assert_int_equal(bxn_gradient_norm(&b.exec, &b.p, 1, &norm), BITAXON_OK);
        assert_true(isinf(norm));
        b.p.grad[at] = NAN;
        assert_int_equal(bxn_gradient_norm(&b.exec, &b.p, 1, &norm), BITAXON_OK);
        assert_true(isnan(norm));
        b.p.grad[at] = 0;
    }
    b.p.grad[FLOATS - 1] = 3e38f; /* squares do not overflow */
    b.p.grad[0] = 3e38f;
    assert_int_equal(bxn_gradient_norm(&b.exec, &b.p, 1, &norm), BITAXON_OK);
    assert_true(fabs(norm - sqrt(2) * 3e38) < 1e32);
    bench_end(&b);
}

/* The iteration in double, on a matrix [r, c], r <= c. */
static void newton_schulz(const double *in, int r, int c, double *x)
{
    static double a[64 * 64], b[64 * 64], y[64 * 320];
    double norm = 0;
    for (int i = 0; i < r * c; i++)
        norm += in[i] * in[i];
    for (int i = 0; i < r * c; i++)
        x[i] = in[i] / (sqrt(norm) + 1e-7);
    for (int step = 0; step < 5; step++) {
        for (int i = 0; i < r; i++)
            for (int j = 0; j < r; j++) {
                a[i * r + j] = 0;
                for (int k = 0; k < c; k++)
                    a[i * r + j] += x[i * c + k] * x[j * c + k];
            }
        for (int i = 0; i < r; i++)
            for (int j = 0; j < r; j++) {
                double sum = 0;
                for (int k = 0; k < r; k++)
                    sum += a[i * r + k] * a[k * r + j];
                b[i * r + j] = -4.7750 * a[i * r + j] + 2.0315 * sum;
            }
        for (int i = 0; i < r; i++)
            for (int j = 0; j < c; j++) {
                y[i * c + j] = 3.4445 * x[i * c + j];
                for (int k = 0; k < r; k++)
                    y[i * c + j] += b[i * r + k] * x[k * c + j];
            }
        memcpy(x, y, sizeof *x * (size_t)(r * c));
    }
}

/* Extreme singular values of x [r, c] by iteration on x x^T: the largest, and through it the smallest. */
static void singular_values(const double *x, int r, int c, double *smallest, double *largest)
{
    static double a[64 * 64];
    double top = 0;
    for (int i = 0; i < r; i++)
        for (int j = 0; j < r; j++) {
            a[i * r + j] = 0;
            for (int k = 0; k < c; k++)
                a[i * r + j] += x[i * c + k] * x[j * c + k];
        }
    for (int round = 0; round < 2; round++) {
        double v[64], w[64], value = 0;
        for (int i = 0; i < r; i++)
            v[i] = 1 + i % 3;
        for (int n = 0; n < 4000; n++) {
            double norm = 0;
            for (int i = 0; i < r; i++) {
                w[i] = round == 0 ? 0 : top * v[i];
                for (int j = 0; j < r; j++)
                    w[i] += (round == 0 ? 1 : -1) * a[i * r + j] * v[j];
                norm += w[i] * w[i];
            }
            value = sqrt(norm);
            for (int i = 0; i < r; i++)
                v[i] = w[i] / value;
        }
        if (round == 0)
            top = value * 1.000001;
        *(round == 0 ? largest : smallest) = sqrt(round == 0 ? value : top - value);
    }
}

/* Two updates: the wide and the tall matrix turn by orthonormal steps, the rest goes AdamW's way. */
static void test_muon(void **state)
{
    (void)state;
    bench b;
    static float before[FLOATS], gradient[2][FLOATS];
    bench_start(&b, 2, true);
    b.o.max_norm = 0;
    b.o.other_rate = 0.001;
    fill(&b, b.p.value, 7, 1);
    memset(gradient, 0, sizeof gradient);
    for (uint64_t u = 0; u < 2; u++) {
        static double turn[64 * 320], want[64 * 320], got[64 * 320];
        memcpy(before, b.p.value, sizeof before);
        fill(&b, gradient[u], 20 + u, 0.5);
        memcpy(b.p.grad, gradient[u], sizeof gradient[u]);
        assert_int_equal(bxn_optimizer_update(&b.exec, &b.o, &b.p, u, 0.5, 1), BITAXON_OK);
        for (int k = 0; k < 2; k++) {
            const bxn_parameter *p = &b.items[k];
            double rate = bxn_learning_rate(&b.o, u), step = rate * (k == 1 ? sqrt(5) : 1), worst = 0;
            for (uint32_t i = 0; i < p->rows; i++)
                for (uint32_t j = 0; j < p->cols; j++) {
                    size_t at = p->offset + i * p->ld + j;
                    double g0 = 0.5 * (double)gradient[0][at], g1 = u == 0 ? 0 : 0.5 * (double)gradient[1][at];
                    double m = 0.05 * g0, g = g0;
                    if (u == 1) {
                        m = 0.95 * m + 0.05 * g1;
                        g = g1;
                    }
                    size_t to = k == 0 ? i * 320 + j : j * 320 + i;
                    turn[to] = 0.95 * m + 0.05 * g;
                    got[to] = ((double)before[at] * (1 - rate * 0.1) - (double)b.p.value[at]) / step;
                }
            newton_schulz(turn, 64, 320, want);
            for (int i = 0; i < 64 * 320; i++)
                worst = fmax(worst, fabs(got[i] - want[i]));
            double small = 0, large = 0;
            singular_values(got, 64, 320, &small, &large);
            print_message("Muon, %s: %.3g from double, singular values %.3f to %.3f\n", p->name, worst, small, large);
            assert_true(worst < 2e-4); /* a value near 1 less a step of 0.003 has 2e-5 of it in its last bit */
            assert_true(small > 0.6 && large < 1.3);
        }
        /* AdamW for the rest, at its own rate: the first step is the rate in every element. */
        for (uint32_t j = 0; j < 33 && u == 0; j++) {
            size_t at = b.items[2].offset + j;
            double moved = fabs((double)b.p.value[at] - (double)before[at]);
            assert_true(fabs(moved - 0.001 / 3) < 1e-6);
        }
    }
    check_padding(&b);
    /* A gradient of zero moves a matrix by decay and momentum alone, and never to NaN. */
    memset(b.p.m, 0, sizeof(float) * FLOATS);
    memcpy(before, b.p.value, sizeof before);
    assert_int_equal(bxn_optimizer_update(&b.exec, &b.o, &b.p, 5, 1, 0), BITAXON_OK);
    float keep = (float)(1 - bxn_learning_rate(&b.o, 5) * 0.1);
    for (size_t i = 0; i < 64 * 320; i++)
        assert_true(b.p.value[i] == before[i] * keep);
    bench_end(&b);
}

static void test_threads(void **state)
{
    (void)state;
    static float results[2][3][FLOATS];
    static double norms[2][3];
    for (int muon = 0; muon < 2; muon++)
        for (int n = 0; n < 3; n++) {
            bench b;
            bench_start(&b, 1u << n, muon != 0);
            fill(&b, b.p.value, 3, 1);
            for (uint64_t u = 0; u < 3; u++) {
                fill(&b, b.p.grad, 50 + u, 2);
                assert_int_equal(bxn_gradient_norm(&b.exec, &b.p, 0.1, &norms[muon][n]), BITAXON_OK);
                assert_int_equal(bxn_optimizer_update(&b.exec, &b.o, &b.p, u, 0.1, norms[muon][n]), BITAXON_OK);
            }
            memcpy(results[muon][n], b.p.value, sizeof results[muon][n]);
            assert_memory_equal(results[muon][n], results[muon][0], sizeof results[muon][n]);
            assert_true(norms[muon][n] == norms[muon][0]);
            bench_end(&b);
        }
}

/* A cancel does not stop an update half way. */
static void test_whole(void **state)
{
    (void)state;
    bench b;
    atomic_int cancel = 1;
    bench_start(&b, 2, false);
    fill(&b, b.p.grad, 3, 1);
    b.exec.cancel = &cancel;
    double norm = -1;
    assert_int_equal(bxn_gradient_norm(&b.exec, &b.p, 1, &norm), BITAXON_CANCELLED);
    assert_true(norm == -1);
    assert_int_equal(bxn_optimizer_update(&b.exec, &b.o, &b.p, 0, 1, 1), BITAXON_OK);
    for (size_t i = 0; i < FLOATS; i++)
        assert_true(b.p.grad[i] == 0 && (b.p.value[i] != 0) == (b.p.m[i] != 0));
    bench_end(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_schedule),  cmocka_unit_test(test_golden_adamw), cmocka_unit_test(test_adamw_double),
        cmocka_unit_test(test_norm_not_finite), cmocka_unit_test(test_muon),   cmocka_unit_test(test_threads),
        cmocka_unit_test(test_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
