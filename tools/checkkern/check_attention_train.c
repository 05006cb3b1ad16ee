/* SPDX-License-Identifier: Apache-2.0 */
/* check_attention_train.c - checks of attention in training and its backward, and their bench: every
 * tier against double precision within bounds computed from the data, odd head dimensions, rows
 * and windows, exact writes, and equal bits for any cut into ranges. */
#include "checkkern.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../bench/bandwidth.h"
#include "runtime/runtime.h"

#define LN2 0.6931471805599453

/* A matrix [rows, dim] ld that ends where a guard page begins. */
static float *matrix(run *r, uint32_t rows, uint32_t dim, size_t ld, float size)
{
    float *x = guarded_floats((rows - 1) * ld + dim);
    fill_pattern(x, (rows - 1) * ld + dim);
    for (uint32_t i = 0; size > 0 && i < rows; i++)
        for (uint32_t f = 0; f < dim; f++)
            x[i * ld + f] = size * normal(r);
    return x;
}

static void check_gaps(run *r, const char *what, const float *x, uint32_t rows, uint32_t dim, size_t ld)
{
    for (uint32_t i = 0; i + 1 < rows; i++)
        for (size_t f = dim; f < ld; f++)
            if (!has_pattern(x[i * ld + f]))
                fail(r, "%s: wrote behind row %u", what, i);
}

/* Scores in double and what the f32 scores may be off. */
typedef struct scored {
    uint32_t rows, dim, window;
    double *s, *error; /* [rows, rows] in powers of two */
} scored;

static uint32_t first_key(const scored *c, uint32_t i)
{
    return i + 1 > c->window ? i + 1 - c->window : 0;
}

static void make_scores(scored *c, const bxn_attention_train_args *a)
{
    const double factor = (double)a->scale / LN2;
    c->s = calloc((size_t)c->rows * c->rows, sizeof *c->s);
    c->error = calloc((size_t)c->rows * c->rows, sizeof *c->error);
    for (uint32_t i = 0; i < c->rows; i++) {
        for (uint32_t j = first_key(c, i); j <= i; j++) {
            double dot = 0, size = 0;
            for (uint32_t f = 0; f < c->dim; f++) {
                const double term = (double)a->q[i * a->ld + f] * (double)a->k[j * a->ld + f];
                dot += term;
                size += fabs(term);
            }
            c->s[(size_t)i * c->rows + j] = dot * factor;
            c->error[(size_t)i * c->rows + j] = (c->dim + 5.0) * UNIT_ROUNDOFF * size * factor;
        }
    }
}

/* The whole forward against double. */
static void judge_forward(run *r, const scored *c, const bxn_attention_train_args *a)
{
    for (uint32_t i = 0; i < c->rows; i++) {
        const uint32_t first = first_key(c, i);
        const double *s = c->s + (size_t)i * c->rows, *error = c->error + (size_t)i * c->rows;
        const double steps = i - first + 1 + 4.0 * ((i - first) / 64 + 2);
        double top = -INFINITY, off = 0, sum = 0;
        for (uint32_t j = first; j <= i; j++) {
            top = fmax(top, s[j]);
            off = fmax(off, error[j]);
        }
        for (uint32_t j = first; j <= i; j++) {
            sum += exp2(s[j] - top);
            off = fmax(off, error[j] + UNIT_ROUNDOFF * (top - s[j]));
        }
        const double relative = 2 * LN2 * off + 2 * EXP_ERROR + steps * UNIT_ROUNDOFF;
        compare(r, "log-sum-exp", i, (double)a->top[i] - log2((double)a->inverse[i]),
                top + log2(sum), 3 * off + relative / LN2);
        for (uint32_t f = 0; f < c->dim; f++) {
            double o = 0, size = 0;
            for (uint32_t j = first; j <= i; j++) {
                const double term = exp2(s[j] - top) / sum * (double)a->v[j * a->ld + f];
                o += term;
                size += fabs(term);
            }
            compare(r, "out", (size_t)i * c->dim + f, (double)a->out[i * a->ldout + f], o,
                    relative * size + TINY);
        }
    }
}

/* The whole backward against double, from the same top, inverse and delta. */
static void judge_backward(run *r, const scored *c, const bxn_attention_train_args *a)
{
    const size_t values = (size_t)c->rows * c->dim;
    double *want[3], *bound[3];
    for (int g = 0; g < 3; g++) {
        want[g] = calloc(values, sizeof(double));
        bound[g] = calloc(values, sizeof(double));
    }
    for (uint32_t i = 0; i < c->rows; i++) {
        const double top = (double)a->top[i], inverse = (double)a->inverse[i];
        const double delta = (double)a->delta[i], scale = (double)a->scale;
        for (uint32_t j = first_key(c, i); j <= i; j++) {
            const double s = c->s[(size_t)i * c->rows + j], e = exp2(s - top), p = e * inverse;
            const double relative =
                LN2 * (c->error[(size_t)i * c->rows + j] + UNIT_ROUNDOFF * fabs(s - top)) + EXP_ERROR +
                2 * UNIT_ROUNDOFF;
            double dp = 0, size = 0;
            for (uint32_t f = 0; f < c->dim; f++) {
                const double term = (double)a->v[j * a->ld + f] * (double)a->dout[i * a->lddout + f];
                dp += term;
                size += fabs(term);
            }
            const double ds = p * (dp - delta) * scale;
            const double off = p * scale * ((c->dim + 2.0) * UNIT_ROUNDOFF * size +
                                            2 * UNIT_ROUNDOFF * (fabs(dp) + fabs(delta))) +
                               fabs(ds) * (relative + 4 * UNIT_ROUNDOFF) + TINY;
            const double chain = (c->rows + 4.0) * UNIT_ROUNDOFF;
            for (uint32_t f = 0; f < c->dim; f++) {
                const double q = (double)a->q[i * a->ld + f], k = (double)a->k[j * a->ld + f];
                const double dout = (double)a->dout[i * a->lddout + f];
                const size_t query = (size_t)i * c->dim + f, key = (size_t)j * c->dim + f;
                want[0][query] += ds * k;
                bound[0][query] += (off + chain * fabs(ds)) * fabs(k) + TINY;
                want[1][key] += ds * q;
                bound[1][key] += (off + chain * fabs(ds)) * fabs(q) + TINY;
                want[2][key] += p * dout;
                bound[2][key] += (relative + chain) * p * fabs(dout) + TINY;
            }
        }
    }
    static const char *const names[3] = {"dq", "dk", "dv"};
    const float *const got[3] = {a->dq, a->dk, a->dv};
    const size_t ld[3] = {a->lddq, a->lddk, a->lddv};
    for (int g = 0; g < 3; g++) {
        for (size_t i = 0; i < values; i++)
            compare(r, names[g], i, (double)got[g][i / c->dim * ld[g] + i % c->dim], want[g][i],
                    bound[g][i]);
        free(want[g]);
        free(bound[g]);
    }
}

static float *scratch_for(uint32_t dim)
{
    float *scratch = guarded_floats(bxn_attention_train_scratch(dim));
    fill_pattern(scratch, bxn_attention_train_scratch(dim));
    return scratch;
}

static void same_rows(run *r, const char *what, const float *a, const float *b, uint32_t rows,
                      uint32_t dim, size_t ld)
{
    for (uint32_t i = 0; i < rows; i++)
        same_bits(r, what, a + i * ld, b + i * ld, dim);
}

/* From row `begin` some whole tiles on. */
static uint32_t next_cut(run *r, uint32_t begin, uint32_t rows)
{
    const uint32_t end = begin + BXN_QUERIES * (1 + below(r, 2));
    return end < rows ? end : rows;
}

static void attention_case(run *r, uint32_t rows, uint32_t dim, uint64_t window, float key_size,
                           bool backward)
{
    const size_t ld = dim + below(r, 20);
    bxn_attention_train_args a = {.ld = ld,
                                  .rows = rows,
                                  .head_dim = dim,
                                  .window = window,
                                  .scale = (float)(1 / sqrt((double)dim)),
                                  .end = rows,
                                  .ldout = ld};
    float *q = matrix(r, rows, dim, ld, 1);
    a.q = q;
    a.k = matrix(r, rows, dim, ld, key_size);
    a.v = matrix(r, rows, dim, ld, 1);
    a.out = matrix(r, rows, dim, ld, 0);
    a.top = matrix(r, 1, rows, rows, 0);
    a.inverse = matrix(r, 1, rows, rows, 0);
    a.scratch = scratch_for(dim);
    r->kernels->attention_train(&a);
    scored c = {.rows = rows, .dim = dim, .window = window < rows ? (uint32_t)window : rows};
    make_scores(&c, &a);
    r->cases++;
    if (!backward) {
        judge_forward(r, &c, &a);
        check_gaps(r, "out", a.out, rows, dim, ld);
        bxn_attention_train_args b = a;
        b.out = matrix(r, rows, dim, ld, 0);
        b.top = matrix(r, 1, rows, rows, 0);
        b.inverse = matrix(r, 1, rows, rows, 0);
        for (b.begin = 0; b.begin < rows; b.begin = b.end) {
            b.end = next_cut(r, b.begin, rows);
            r->kernels->attention_train(&b);
        }
        same_rows(r, "out in ranges", a.out, b.out, rows, dim, ld);
        same_bits(r, "top in ranges", a.top, b.top, rows);
        same_bits(r, "inverse in ranges", a.inverse, b.inverse, rows);
    } else {
        float *delta = matrix(r, 1, rows, rows, 0);
        a.lddout = dim + below(r, 20);
        a.dout = matrix(r, rows, dim, a.lddout, 0.5f);
        for (uint32_t i = 0; i < rows; i++) {
            delta[i] = 0;
            for (uint32_t f = 0; f < dim; f++)
                delta[i] += a.dout[i * a.lddout + f] * a.out[i * ld + f];
        }
        a.delta = delta;
        a.lddq = a.lddk = a.lddv = ld;
        a.dq = matrix(r, rows, dim, ld, 0);
        a.dk = matrix(r, rows, dim, ld, 0);
        a.dv = matrix(r, rows, dim, ld, 0);
        r->kernels->attention_backward(&a);
        judge_backward(r, &c, &a);
        check_gaps(r, "dq", a.dq, rows, dim, ld);
        check_gaps(r, "dk", a.dk, rows, dim, ld);
        check_gaps(r, "dv", a.dv, rows, dim, ld);
        bxn_attention_train_args b = a;
        b.dk = matrix(r, rows, dim, ld, 0);
        b.dv = matrix(r, rows, dim, ld, 0);
        b.dq = NULL;
        for (b.begin = 0; b.begin < rows; b.begin = b.end) {
            b.end = next_cut(r, b.begin, rows);
            r->kernels->attention_backward(&b);
        }
        same_rows(r, "dk in ranges", a.dk, b.dk, rows, dim, ld);
        same_rows(r, "dv in ranges", a.dv, b.dv, rows, dim, ld);
        b.dk = b.dv = NULL;
        b.dq = q; /* in its place */
        for (b.begin = 0; b.begin < rows; b.begin = b.end) {
            b.end = next_cut(r, b.begin, rows);
            r->kernels->attention_backward(&b);
        }
        same_rows(r, "dq in ranges", a.dq, b.dq, rows, dim, ld);
    }
    free(c.s);
    free(c.error);
    release_guarded(r, "attention_train");
}

static void check_cases(run *r, bool backward)
{
    static const uint32_t dims[] = {1, 5, 16, 20, 80}, counts[] = {1, 63, 65, 200};
    static const uint64_t windows[] = {1, 7, 64, UINT64_MAX};
    for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++)
        for (size_t n = 0; n < sizeof counts / sizeof counts[0]; n++)
            for (size_t w = 0; w < sizeof windows / sizeof windows[0]; w++)
                attention_case(r, counts[n], dims[d], windows[w], 1, backward);
    for (int i = 0; i < 12; i++)
        attention_case(r, 1 + below(r, 300), 1 + below(r, 140), 1 + below(r, 200), i & 1 ? 30 : 1,
                       backward);
}

void check_attention_train(run *r)
{
    check_cases(r, false);
}

void check_attention_backward(run *r)
{
    check_cases(r, true);
}

/* ---- bench ------------------------------------------------------------------------------------ */

static float *aligned_floats(size_t count)
{
    float *x = aligned_alloc(64, bxn_round_up(count * sizeof *x, 64));
    if (x == NULL) {
        perror("checkkern");
        exit(2);
    }
    for (size_t i = 0; i < count; i++)
        x[i] = 0.02f * (float)(i * 7 % 101) - 1.0f;
    return x;
}

static double best(void (*kernel)(const bxn_attention_train_args *), const bxn_attention_train_args *a)
{
    double least = INFINITY, end = bench_now() + 0.5;
    do {
        const double begin = bench_now();
        kernel(a);
        const double seconds = bench_now() - begin;
        least = seconds < least ? seconds : least;
    } while (bench_now() < end);
    return least;
}

void bench_attention_train(const bxn_kernels *k, const char *tier, const char *filter, double peak)
{
    enum { ROWS = 2048, DIM = 80, LD = 2576 };
    static const uint64_t windows[] = {4096, 512, 128};
    static const char *const names[] = {"attention_train", "attention_backward", "backward, dq alone",
                                        "backward, dk and dv"};
    if (k->features == 0 || (filter != NULL && strstr("attention_train attention_backward", filter) == NULL))
        return;
    float *x[8];
    for (int i = 0; i < 8; i++)
        x[i] = aligned_floats((size_t)ROWS * LD);
    float *delta = aligned_floats(ROWS), *top = aligned_floats(ROWS), *inverse = aligned_floats(ROWS);
    float *scratch = aligned_floats(bxn_attention_train_scratch(DIM));
    for (size_t w = 0; w < sizeof windows / sizeof windows[0]; w++) {
        const double window = (double)windows[w], n = ROWS;
        const double pairs = window < n ? window * (window + 1) / 2 + (n - window) * window : n * (n + 1) / 2;
        for (int what = 0; what < 4; what++) {
            bxn_attention_train_args a = {
                .q = x[0], .k = x[1], .v = x[2], .ld = LD, .rows = ROWS, .head_dim = DIM,
                .window = windows[w], .scale = 0.1118f, .end = ROWS, .scratch = scratch,
                .top = top, .inverse = inverse, .out = x[3], .ldout = LD, .dout = x[4],
                .lddout = LD, .delta = delta, .lddq = LD, .lddk = LD, .lddv = LD};
            a.dq = what != 3 ? x[5] : NULL;
            a.dk = what != 2 ? x[6] : NULL;
            a.dv = what != 2 ? x[7] : NULL;
            static const double products[] = {2, 5, 3, 4};
            const double speed = 2 * products[what] * DIM * pairs /
                                 best(what == 0 ? k->attention_train : k->attention_backward, &a);
            printf("%-20s %-8s 1 thread  rows=%d head_dim=%d window=%-4.0f %8.2f GFLOP/s %5.1f %% of f32 "
                   "peak\n",
                   names[what], tier, ROWS, DIM, window, speed * 1e-9, 100 * speed / peak);
            fflush(stdout);
        }
    }
    for (int i = 0; i < 8; i++)
        free(x[i]);
    free(delta);
    free(top);
    free(inverse);
    free(scratch);
}
