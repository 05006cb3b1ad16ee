/* SPDX-License-Identifier: Apache-2.0 */
/* test_linear_backward.c - gradients of linear layers, of adapters and of norms against central differences of
 * a double-precision forward; norms and gains of DoRA against a dense computation; the same bits for any
 * number of threads. The loss is the sum of y times constants, so that dy is those. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <bitaxon/version.h>

#include "linear_fixture.h"

static uint64_t tiers[3]; /* plain C, AVX2 or what there is, all */
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

/* ---- the layer ---------------------------------------------------------------------------------- */

typedef struct layer_case {
    char kind;
    uint32_t rows, cols, tokens, rank; /* rank 0: no adapter, full gradients */
    bool dora;
    float dropout;
} layer_case;

typedef struct layer {
    layer_case c;
    fixture_weight weight;
    fixture_lora lora;
    bxn_lora loras[3]; /* the weight has id 2 */
    bxn_adapters adapters;
    float *x, *y, *dy, *dx, *keep; /* keep: what dropout makes of ones */
    size_t ldx, ldy;
    bxn_weight_grads grads[3];
    double *w64, *a64, *b64, *m64, *x64, *norm64; /* that the reference reads */
} layer;

static double *widened(const float *values, size_t count)
{
    double *out = malloc(count * sizeof *out);
    for (size_t i = 0; i < count; i++)
        out[i] = (double)values[i];
    return out;
}

enum { FIRST_ROW = 1000 };

static void layer_open(layer *l, const layer_case *c, uint64_t seed)
{
    memset(l, 0, sizeof *l);
    l->c = *c;
    fixture_weight_make(&l->weight, c->kind, c->rows, c->cols, 2, seed);
    l->ldx = bxn_round_up(c->cols, 128);
    l->ldy = bxn_round_up(c->rows, 128);
    l->x = fixture_rows(&seed, c->tokens, c->cols);
    l->dy = fixture_rows(&seed, c->tokens, c->rows);
    l->dx = fixture_rows(&seed, c->tokens, c->cols);
    l->y = fixture_alloc(c->tokens * l->ldy * sizeof(float));
    l->x64 = widened(l->x, c->tokens * l->ldx);
    l->w64 = malloc((size_t)c->rows * c->cols * sizeof(double));
    memcpy(l->w64, l->weight.value, (size_t)c->rows * c->cols * sizeof(double));
    if (c->rank == 0) {
        l->grads[1].w = fixture_alloc((size_t)c->rows * c->cols * sizeof(float));
        return;
    }
    fixture_lora_make(&l->lora, &l->weight, c->rank, 1.5f, c->dora, seed);
    const bxn_lora *lora = &l->lora.lora;
    l->loras[1] = *lora;
    l->adapters = (bxn_adapters){ .count = 1, .loras = { l->loras }, .weights = { 1 }, .dropout = c->dropout,
                                  .dropout_key = 77, .first_row = FIRST_ROW };
    l->grads[1].a = fixture_alloc(c->rank * lora->lda * sizeof(float));
    l->grads[1].b = fixture_alloc(c->rank * lora->ldb * sizeof(float));
    l->a64 = widened(l->lora.a, c->rank * lora->lda);
    l->b64 = widened(l->lora.b, c->rank * lora->ldb);
    if (c->dora) {
        l->grads[1].m = fixture_alloc(c->rows * sizeof(float));
        l->m64 = widened(l->lora.m, c->rows);
        l->norm64 = malloc(c->rows * sizeof(double));
        for (uint32_t n = 0; n < c->rows; n++)
            l->norm64[n] = fixture_norm(&l->weight, lora, l->a64, l->b64, n);
    }
    if (c->dropout > 0) {
        l->keep = fixture_alloc(c->tokens * l->ldx * sizeof(float));
        for (size_t i = 0; i < c->tokens * l->ldx; i++)
            l->keep[i] = 1;
        for (uint32_t t = 0; t < c->tokens; t++)
            bxn_dropout(&l->adapters, 2, FIRST_ROW + t, l->keep + t * l->ldx, c->cols, l->keep + t * l->ldx);
    }
}

static void layer_close(layer *l)
{
    void *all[] = { l->x, l->y, l->dy, l->dx, l->keep, l->grads[1].w, l->grads[1].a, l->grads[1].b, l->grads[1].m,
                    l->w64, l->a64, l->b64, l->m64, l->x64, l->norm64 };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    if (l->c.rank != 0)
        fixture_lora_free(&l->lora);
    fixture_weight_free(&l->weight);
}

static double y_at(const layer *l, uint32_t t, uint32_t n, const double *u, double norm)
{
    const uint32_t cols = l->c.cols;
    double z = 0;
    for (uint32_t k = 0; k < cols; k++)
        z += l->w64[(size_t)n * cols + k] * l->x64[t * l->ldx + k];
    for (uint32_t r = 0; r < l->c.rank; r++)
        z += 1.5 * l->b64[r * l->ldy + n] * u[r];
    return l->c.dora ? l->m64[n] / norm * z : z;
}

static void make_u(const layer *l, uint32_t t, double *u)
{
    for (uint32_t r = 0; r < l->c.rank; r++) {
        u[r] = 0;
        for (uint32_t k = 0; k < l->c.cols; k++)
            u[r] += l->a64[r * l->ldx + k] * l->x64[t * l->ldx + k] *
                    (l->keep != NULL ? (double)l->keep[t * l->ldx + k] : 1.0);
    }
}

/* The loss; with `exact` norms follow A and B. `only`: of one row of W, or UINT32_MAX. */
static double loss(const layer *l, bool exact)
{
    double sum = 0, u[64], norms[64];
    for (uint32_t n = 0; n < l->c.rows && l->c.dora; n++)
        norms[n] = exact ? fixture_norm(&l->weight, &l->lora.lora, l->a64, l->b64, n) : l->norm64[n];
    for (uint32_t t = 0; t < l->c.tokens; t++) {
        make_u(l, t, u);
        for (uint32_t n = 0; n < l->c.rows; n++)
            sum += (double)l->dy[t * l->ldy + n] * y_at(l, t, n, u, l->c.dora ? norms[n] : 0);
    }
    return sum;
}

/* The derivative by one number of those that the reference reads. */
static double difference(const layer *l, double *at, bool exact)
{
    const double saved = *at, h = exact ? 1e-5 : 1e-3;
    *at = saved + h;
    double above = loss(l, exact);
    *at = saved - h;
    double below = loss(l, exact);
    *at = saved;
    return (above - below) / (2 * h);
}

enum { SAMPLES = 9 };

/* Some elements of [rows, cols] ld, the corners among them. before: what was there; `size` is that of a
 * gradient's terms. */
static void check_samples(const layer *l, const char *what, const float *got, const float *before, double *values,
                          uint32_t rows, uint32_t cols, size_t ld, bool exact)
{
    double error = 0, size = 0;
    uint64_t seed = 5;
    for (uint32_t i = 0; i < SAMPLES; i++) {
        uint32_t row = i == 0 ? 0 : i == 1 ? rows - 1 : (uint32_t)(fabsf(fixture_normal(&seed)) * 1000) % rows;
        uint32_t col = i == 0 ? 0 : i == 1 ? cols - 1 : (uint32_t)(fabsf(fixture_normal(&seed)) * 1000) % cols;
        double want = difference(l, &values[row * ld + col], exact);
        double have = (double)got[row * ld + col] - (before != NULL ? (double)before[row * ld + col] : 0);
        error = fmax(error, fabs(want - have));
        size = fmax(size, fabs(want));
    }
    if (!(error <= 2e-5 * size))
        fail_msg("%s of %c %ux%u, %u tokens, rank %u%s: error %g of %g", what, l->c.kind, l->c.rows, l->c.cols,
                 l->c.tokens, l->c.rank, l->c.dora ? " dora" : "", error, size);
    for (uint32_t row = 0; row < rows; row++)
        for (size_t col = cols; col < ld; col++)
            assert_true(got[row * ld + col] == 0.0f);
}

static void forward_backward(layer *l, fixture_world *world, bool add)
{
    const bxn_weight *w = &l->weight.w;
    bxn_train_pass *pass = &world->pass;
    pass->exec.adapters = l->c.rank != 0 ? &l->adapters : NULL;
    pass->grads = l->grads;
    assert_int_equal(bxn_train_linear(pass, w, l->x, l->ldx, l->c.tokens, l->y, l->ldy), BITAXON_OK);
    assert_int_equal(bxn_linear_backward(pass, w, l->x, l->ldx, l->c.dora ? l->y : NULL, l->ldy, l->dy, l->ldy,
                                         l->c.tokens, l->dx, l->ldx, add),
                     BITAXON_OK);
    pass->exec.adapters = NULL;
    pass->grads = NULL;
}

static size_t scratch_of(const layer *l)
{
    return bxn_train_linear_bytes(&l->weight.w, l->c.rank, l->c.tokens);
}

static void check_layer(const layer_case *c, uint64_t features, bool add)
{
    static layer l;
    fixture_world world;
    layer_open(&l, c, 11);
    fixture_world_open(&world, features, 2, scratch_of(&l));
    float *before = fixture_alloc(c->tokens * l.ldx * sizeof(float));
    if (add)
        memcpy(before, l.dx, c->tokens * l.ldx * sizeof(float));
    forward_backward(&l, &world, add);
    double u[64];
    for (uint32_t t = 0; t < c->tokens; t++) {
        make_u(&l, t, u);
        for (uint32_t n = 0; n < c->rows; n++) {
            double want = y_at(&l, t, n, u, c->dora ? l.norm64[n] : 0);
            if (fabs(want - (double)l.y[t * l.ldy + n]) > 1e-4 + 1e-6 * fabs(want))
                fail_msg("%c: y[%u][%u] is %g, not %g", c->kind, t, n, (double)l.y[t * l.ldy + n], want);
        }
    }
    check_samples(&l, "dx", l.dx, before, l.x64, c->tokens, c->cols, l.ldx, false);
    if (c->rank == 0) {
        check_samples(&l, "dW", l.grads[1].w, NULL, l.w64, c->rows, c->cols, c->cols, false);
    } else {
        check_samples(&l, "dA", l.grads[1].a, NULL, l.a64, c->rank, c->cols, l.ldx, false);
        check_samples(&l, "dB", l.grads[1].b, NULL, l.b64, c->rank, c->rows, l.ldy, false);
        if (c->dora)
            check_samples(&l, "dm", l.grads[1].m, NULL, l.m64, 1, c->rows, c->rows, false);
    }
    assert_int_equal(world.pass.scratch.used, 0);
    free(before);
    fixture_world_close(&world);
    layer_close(&l);
}

static void test_gradients(void **state)
{
    (void)state;
    static const uint32_t tokens[] = { 1, 7, 300 };
    static const char kinds[] = "fhba8n";
    for (size_t tier = 0; tier < tier_count; tier++) {
        for (size_t i = 0; i < 3; i++) {
            for (const char *kind = kinds; *kind != '\0'; kind++) {
                const bool packed = *kind == 'a' || *kind == '8' || *kind == 'n';
                if (tokens[i] == 300 && *kind != 'f' && *kind != 'a' && tier + 1 != tier_count)
                    continue;
                layer_case c = { *kind, 21, packed ? 192 : 150, tokens[i], 0, false, 0 };
                check_layer(&c, tiers[tier], i == 1);
                c.rank = 5;
                c.dora = *kind == 'f' || *kind == 'n' || *kind == 'h';
                c.dropout = i == 0 ? 0 : 0.25f;
                check_layer(&c, tiers[tier], i == 2);
                c.dora = !c.dora;
                c.dropout = i == 1 ? 0 : 0.25f;
                if (tokens[i] != 300)
                    check_layer(&c, tiers[tier], i == 0);
            }
        }
        layer_case wide = { 'f', 40, 33, 7, 33, true, 0.5f };
        check_layer(&wide, tiers[tier], false);
        layer_case very_wide = { 'f', 9, 15400, 5, 0, false, 0 }; /* gradients of weights in a region of their own */
        check_layer(&very_wide, tiers[tier], false);
    }
}

/* Dropout: elements go with the chance asked for, the others grow; what goes depends on the place alone. */
static void test_dropout(void **state)
{
    (void)state;
    enum { COLS = 4099, ROWS = 50 };
    static float x[COLS], out[COLS], part[COLS];
    bxn_adapters adapters = { .count = 1, .dropout = 0.3f, .dropout_key = 5 };
    uint32_t dropped = 0, alike = 0;
    for (uint32_t k = 0; k < COLS; k++)
        x[k] = 1.0f + (float)k;
    for (uint32_t t = 0; t < ROWS; t++) {
        bxn_dropout(&adapters, 3, t, x, COLS, out);
        bxn_dropout(&adapters, 3, t, x, 101, part);
        assert_memory_equal(out, part, 101 * sizeof *out);
        for (uint32_t k = 0; k < COLS; k++) {
            dropped += out[k] == 0.0f;
            /* the chance is one in 65536ths: 19661 */
            assert_true(out[k] == 0.0f || fabsf(out[k] * (65536 - 19661) / 65536 - x[k]) <= 1e-6f * x[k]);
        }
        bxn_dropout(&adapters, 4, t, x, COLS, part);
        for (uint32_t k = 0; k < COLS; k++)
            alike += (out[k] == 0.0f) == (part[k] == 0.0f);
    }
    const double n = (double)COLS * ROWS;
    assert_true(fabs(dropped / n - 0.3) < 5 * sqrt(0.3 * 0.7 / n));
    assert_true(fabs(alike / n - 0.58) < 5 * sqrt(0.58 * 0.42 / n));
    memcpy(part, x, sizeof x);
    bxn_dropout(&adapters, 4, ROWS - 1, part, COLS, part);
    bxn_dropout(&adapters, 4, ROWS - 1, x, COLS, out);
    assert_memory_equal(part, out, sizeof out);

    /* What is kept makes up for what is dropped, also where little is kept. */
    adapters.dropout = 0.999995f;
    double sum = 0;
    for (uint32_t t = 0; t < 400; t++) {
        for (uint32_t k = 0; k < COLS; k++)
            x[k] = 1;
        bxn_dropout(&adapters, 3, t, x, COLS, out);
        for (uint32_t k = 0; k < COLS; k++)
            sum += (double)out[k];
    }
    assert_true(fabs(sum / (400.0 * COLS) - 1) < 5 * sqrt(65536 / (400.0 * COLS)));
}

static void test_threads(void **state)
{
    (void)state;
    static const layer_case cases[] = {
        { 'a', 300, 320, 391, 8, true, 0.1f }, { 'f', 170, 520, 300, 0, false, 0 }, { 'n', 64, 256, 129, 9, false, 0 }
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        static layer first, other;
        for (uint32_t threads = 1; threads <= 3; threads++) {
            layer *l = threads == 1 ? &first : &other;
            fixture_world world;
            /* The reference's arrays are not needed, but the norms of big layers would be. */
            layer_open(l, &cases[i], 3);
            fixture_world_open(&world, bxn_cpu_detect(), threads, scratch_of(l));
            forward_backward(l, &world, true);
            fixture_world_close(&world);
            if (threads == 1)
                continue;
            const size_t x = l->c.tokens * l->ldx * 4, y = l->c.tokens * l->ldy * 4;
            assert_memory_equal(l->y, first.y, y);
            assert_memory_equal(l->dx, first.dx, x);
            if (l->c.rank == 0) {
                assert_memory_equal(l->grads[1].w, first.grads[1].w, (size_t)l->c.rows * l->c.cols * 4);
            } else {
                assert_memory_equal(l->grads[1].a, first.grads[1].a, l->c.rank * l->ldx * 4);
                assert_memory_equal(l->grads[1].b, first.grads[1].b, l->c.rank * l->ldy * 4);
                if (l->c.dora)
                    assert_memory_equal(l->grads[1].m, first.grads[1].m, l->c.rows * 4);
            }
            layer_close(l);
        }
        layer_close(&first);
    }
}

/* ---- DoRA ---------------------------------------------------------------------------------------- */

static void test_gains(void **state)
{
    (void)state;
    static const char kinds[] = "fhba8n";
    for (size_t tier = 0; tier < tier_count; tier++) {
        for (const char *kind = kinds; *kind != '\0'; kind++) {
            static layer l;
            fixture_world world;
            layer_case c = { *kind, 37, 192, 4, *kind == 'f' ? 40 : 6, true, *kind == 'h' ? 0.2f : 0 };
            layer_open(&l, &c, 19);
            fixture_world_open(&world, tiers[tier], 2, scratch_of(&l));
            assert_true(scratch_of(&l) >= bxn_dora_bytes(&l.weight.w, c.rank));
            float norm2[64], gain[64], *wa = fixture_alloc(c.rank * l.ldy * sizeof(float));
            memset(wa, 0x7F, c.rank * l.ldy * sizeof(float));
            assert_int_equal(bxn_weight_norms(&world.pass.exec, &l.weight.w, norm2), BITAXON_OK);
            forward_backward(&l, &world, false);
            const bxn_lora *lora = &l.loras[1];
            assert_int_equal(bxn_dora_gains(&world.pass, &l.weight.w, lora, norm2, gain, wa, l.grads[1].m, l.grads[1].a,
                                            l.grads[1].b),
                             BITAXON_OK);
            for (uint32_t n = 0; n < c.rows; n++) {
                double sum = 0;
                for (uint32_t k = 0; k < c.cols; k++)
                    sum += l.w64[(size_t)n * c.cols + k] * l.w64[(size_t)n * c.cols + k];
                assert_true(fabs(sum - (double)norm2[n]) <= 1e-6 * sum);
                assert_true(fabs(l.m64[n] / l.norm64[n] - (double)gain[n]) <= 2e-6 * fabs((double)gain[n]));
            }
            for (uint32_t r = 0; r < c.rank; r++) {
                double sum = 0;
                for (uint32_t k = 0; k < c.cols; k++)
                    sum += l.w64[36 * c.cols + k] * l.a64[r * l.ldx + k];
                assert_true(fabs(sum - (double)wa[r * l.ldy + 36]) < 1e-5);
                assert_true(wa[r * l.ldy + 37] == 0.0f && wa[r * l.ldy + 127] == 0.0f);
            }
            check_samples(&l, "dA with norms", l.grads[1].a, NULL, l.a64, c.rank, c.cols, l.ldx, true);
            check_samples(&l, "dB with norms", l.grads[1].b, NULL, l.b64, c.rank, c.rows, l.ldy, true);
            float again[64];
            assert_int_equal(bxn_dora_gains(&world.pass, &l.weight.w, lora, norm2, again, wa, NULL, NULL, NULL),
                             BITAXON_OK);
            assert_memory_equal(again, gain, c.rows * sizeof *gain);
            free(wa);
            fixture_world_close(&world);
            layer_close(&l);
        }
    }
}

/* A row of zeros has no norm: the gain is finite, and no gradient goes through it. */
static void test_no_norm(void **state)
{
    (void)state;
    static layer l;
    fixture_world world;
    layer_case c = { 'f', 20, 64, 2, 3, true, 0 };
    layer_open(&l, &c, 4);
    memset((float *)l.weight.data + 5 * 64, 0, 64 * sizeof(float));
    for (uint32_t r = 0; r < 3; r++)
        l.lora.b[r * l.ldy + 5] = 0;
    l.lora.m[5] = 0;
    fixture_world_open(&world, bxn_cpu_detect(), 1, scratch_of(&l));
    float norm2[20], *gain = l.lora.gain, wa[3 * 128];
    assert_int_equal(bxn_weight_norms(&world.pass.exec, &l.weight.w, norm2), BITAXON_OK);
    assert_true(norm2[5] == 0.0f);
    assert_int_equal(bxn_dora_gains(&world.pass, &l.weight.w, &l.loras[1], norm2, gain, wa, NULL, NULL, NULL),
                     BITAXON_OK);
    assert_true(gain[5] == 0.0f);
    forward_backward(&l, &world, false);
    assert_int_equal(bxn_dora_gains(&world.pass, &l.weight.w, &l.loras[1], norm2, gain, wa, l.grads[1].m, l.grads[1].a,
                                    l.grads[1].b),
                     BITAXON_OK);
    assert_true(l.grads[1].m[5] == 0.0f);
    for (uint32_t r = 0; r < 3; r++) {
        assert_true(l.grads[1].b[r * l.ldy + 5] == 0.0f);
        for (uint32_t k = 0; k < 64; k++)
            assert_true(isfinite(l.grads[1].a[r * l.ldx + k]));
    }
    fixture_world_close(&world);
    layer_close(&l);
}

/* ---- norm ----------------------------------------------------------------------------------------- */

static double norm_loss(const double *x, const double *w, const float *dy, size_t ld, uint32_t dim, uint32_t rows)
{
    double sum = 0;
    for (uint32_t t = 0; t < rows; t++) {
        double squares = 0;
        for (uint32_t i = 0; i < dim; i++)
            squares += x[t * ld + i] * x[t * ld + i];
        const double r = 1 / sqrt(squares / dim + (double)1e-3f);
        for (uint32_t i = 0; i < dim; i++)
            sum += (double)dy[t * ld + i] * w[i] * x[t * ld + i] * r;
    }
    return sum;
}

static void test_norm(void **state)
{
    (void)state;
    static const uint32_t dims[] = { 1, 15, 64, 100 }, counts[] = { 1, 7, 300 };
    for (size_t d = 0; d < 4; d++) {
        for (size_t i = 0; i < 3; i++) {
            const uint32_t dim = dims[d], rows = counts[i];
            const size_t ld = bxn_round_up(dim, 128), bytes = rows * ld * sizeof(float);
            uint64_t seed = 8;
            float *x = fixture_rows(&seed, rows, dim), *dy = fixture_rows(&seed, rows, dim);
            float *w = fixture_rows(&seed, 1, dim), *before = fixture_rows(&seed, rows, dim);
            float *dx = fixture_alloc(bytes), *dw = fixture_alloc(ld * 4), *first = fixture_alloc(bytes + ld * 4);
            double *x64 = widened(x, rows * ld), *w64 = widened(w, ld);
            for (uint32_t threads = 1; threads <= 3; threads++) {
                fixture_world world;
                fixture_world_open(&world, bxn_cpu_detect(), threads, 0);
                memcpy(dx, before, bytes);
                memset(dw, 0, ld * 4);
                assert_int_equal(bxn_norm_backward(&world.pass, x, ld, w, dim, 1e-3f, dy, ld, rows, dx, ld, dw),
                                 BITAXON_OK);
                if (threads == 1) {
                    memcpy(first, dx, bytes);
                    memcpy(first + rows * ld, dw, ld * 4);
                }
                assert_memory_equal(dx, first, bytes);
                assert_memory_equal(dw, first + rows * ld, ld * 4);
                memcpy(dx, before, bytes); /* and without that of w */
                assert_int_equal(bxn_norm_backward(&world.pass, x, ld, w, dim, 1e-3f, dy, ld, rows, dx, ld, NULL),
                                 BITAXON_OK);
                assert_memory_equal(dx, first, bytes);
                fixture_world_close(&world);
            }
            for (uint32_t s = 0; s < 2 * SAMPLES; s++) {
                const bool of_x = s < SAMPLES;
                const size_t row = s % 3 == 0 ? rows - 1 : s % rows, col = s % 2 == 0 ? dim - 1 : s * 7 % dim;
                double *at = of_x ? &x64[row * ld + col] : &w64[col], saved = *at, h = 1e-5;
                *at = saved + h;
                double above = norm_loss(x64, w64, dy, ld, dim, rows);
                *at = saved - h;
                double want = (above - norm_loss(x64, w64, dy, ld, dim, rows)) / (2 * h);
                *at = saved;
                double got = of_x ? (double)dx[row * ld + col] - (double)before[row * ld + col] : (double)dw[col];
                assert_true(fabs(got - want) <= 1e-5 * (1 + fabs(want)) * (of_x ? 1 : sqrt(rows)));
            }
            void *all[] = { x, dy, w, before, dx, dw, first, x64, w64 };
            for (size_t f = 0; f < sizeof all / sizeof *all; f++)
                free(all[f]);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients), cmocka_unit_test(test_dropout), cmocka_unit_test(test_threads),
        cmocka_unit_test(test_gains),     cmocka_unit_test(test_no_norm), cmocka_unit_test(test_norm),
    };
    return cmocka_run_group_tests(tests, find_tiers, NULL);
}
