/* SPDX-License-Identifier: Apache-2.0 */
/* test_scan_chunked.c - chunked forms of the scan against a recurrence in double precision and
 * against the kernels' recurrence: random and adversarial decays, every chunk length, tokens
 * that are no multiple of it, states carried over calls. Errors are relative to the sum of the
 * magnitudes of the terms of a value; a decay of 2^-k may also be wrong by k roundings of dt. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <bitaxon/version.h>

#include "kernels/kernels.h"
#include "ops/scan_chunked.h"
#include "runtime/runtime.h"

#define TOLERANCE 1e-5
#define DT_ERROR 6e-7 /* relative, of a step in single precision */

static bxn_kernels tiers[3];
static size_t tier_count;

static int set_up(void **state)
{
    (void)state;
    static const uint64_t features[] = {0, BITAXON_CPU_AVX2, BITAXON_CPU_AVX2 | BITAXON_CPU_AVX512};
    uint64_t detected = bxn_cpu_detect();
    for (size_t i = 0; i < 3; i++)
        if ((detected & features[i]) == features[i])
            bxn_kernels_init(&tiers[tier_count++], features[i]);
    return 0;
}

static uint64_t seed = 7;

static float uniform(float low, float high)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return low + (high - low) * ((float)(seed >> 40) * 0x1p-24f);
}

static float *randoms(size_t n, float low, float high)
{
    float *x = aligned_alloc(BXN_ALIGN, bxn_round_up(n * sizeof *x + 1, BXN_ALIGN));
    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = uniform(low, high);
    return x;
}

static float *copied(const float *x, size_t n)
{
    float *y = randoms(n, 0, 0);
    memcpy(y, x, n * sizeof *x);
    return y;
}

/* ---- one decay per channel and state --------------------------------------------------------- */

enum { E = 32, MOST = 160 };

/* How the steps of a case go: v of softplus(v). */
typedef enum steps { ORDINARY, TINY_STEPS, HUGE_STEPS, ALTERNATING, MIXED, STEP_KINDS } steps;

static float step_argument(steps kind, uint32_t t)
{
    switch (kind) {
    case ORDINARY:
        return uniform(-6.0f, 1.0f);
    case TINY_STEPS:
        return -20.0f; /* clipped to 1e-4 */
    case HUGE_STEPS:
        return uniform(90.0f, 300.0f); /* clipped to 100 */
    case ALTERNATING:
        return t % 2 == 0 ? 100.0f : -9.0f;
    default:
        return t % 7 == 3 ? uniform(20.0f, 100.0f) : uniform(-9.2f, -2.0f);
    }
}

typedef struct problem {
    uint32_t states;
    float *x, *z, *bcd, *weight, *bias, *a2, *d, *h;
    bxn_scan_args args;
} problem;

static void problem_open(problem *p, uint32_t states, uint32_t tokens, steps kind, float a_most)
{
    const size_t ldbcd = 2 * (size_t)states + 1;
    *p = (problem){.states = states};
    p->x = randoms(MOST * E, -1, 1);
    p->z = randoms(MOST * E, -3, 3);
    p->bcd = randoms(MOST * ldbcd, -1, 1);
    for (uint32_t t = 0; t < MOST; t++)
        p->bcd[t * ldbcd + 2 * states] = step_argument(kind, t);
    p->weight = randoms(E, 1, 1);
    p->bias = randoms(E, 0, 0.01f);
    p->a2 = randoms(E * states, -a_most, -a_most / 100);
    p->a2[0] = -0.0f;
    p->a2[17] = -1e-30f;
    p->a2[18] = -INFINITY;
    for (uint32_t t = 0; t < MOST; t++)
        p->x[t * E + 7] = 0.0f; /* its state does nothing but decay */
    p->d = randoms(E, -1, 1);
    p->h = randoms(E * states, -1, 1);
    p->args = (bxn_scan_args){.tokens = tokens,
                              .begin = 0,
                              .end = E,
                              .states = states,
                              .x = p->x,
                              .ldx = E,
                              .z = p->z,
                              .ldz = E,
                              .bcd = p->bcd,
                              .ldbcd = ldbcd,
                              .dt_weight = p->weight,
                              .dt_bias = p->bias,
                              .a2 = p->a2,
                              .d = p->d,
                              .h_in = p->h,
                              .ldy = E};
}

static void problem_close(problem *p)
{
    float *all[] = {p->x, p->z, p->bcd, p->weight, p->bias, p->a2, p->d, p->h};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
}

/* Values and what they may be wrong by, in double. */
typedef struct expected {
    double y[MOST * E], y_bound[MOST * E], h[E * 64], h_bound[E * 64];
} expected;

static void expect(const problem *p, expected *x)
{
    const bxn_scan_args *a = &p->args;
    for (uint32_t e = 0; e < E; e++) {
        const size_t base = (size_t)(e / 16) * a->states * 16 + e % 16;
        double size[64]; /* of the terms of h, each with its decay */
        for (uint32_t n = 0; n < a->states; n++) {
            x->h[base + n * 16] = (double)a->h_in[base + n * 16];
            size[n] = fabs(x->h[base + n * 16]);
            x->h_bound[base + n * 16] = 0;
        }
        for (uint32_t t = 0; t < a->tokens; t++) {
            const float *row = a->bcd + t * a->ldbcd;
            double v = (double)row[2 * a->states] * (double)a->dt_weight[e] + (double)a->dt_bias[e];
            double dt = (v > 0 ? v : 0) + log1p(exp(-fabs(v)));
            dt = dt < 1e-4 ? 1e-4 : dt > 100 ? 100 : dt;
            double xi = (double)a->x[t * a->ldx + e], zi = (double)a->z[t * a->ldz + e];
            double sum = (double)a->d[e] * xi, bound = TOLERANCE * fabs(sum);
            for (uint32_t n = 0; n < a->states; n++) {
                size_t i = base + n * 16;
                double power = dt * (double)a->a2[i], decay = exp2(power),
                       added = dt * xi * (double)row[n];
                power = power < -5000 ? -5000 : power; /* 0 in any case */
                /* how much a wrong step moves what decays */
                x->h_bound[i] = decay * (x->h_bound[i] + size[n] * DT_ERROR * fabs(power));
                x->h[i] = decay * x->h[i] + added;
                size[n] = decay * size[n] + fabs(added);
                double c = (double)row[a->states + n];
                sum += c * x->h[i];
                bound += fabs(c) * (TOLERANCE * size[n] + x->h_bound[i] + 1e-35);
            }
            double gate = zi / (1 + exp(-zi));
            x->y[t * E + e] = sum * gate;
            x->y_bound[t * E + e] = bound * fabs(gate);
        }
        for (uint32_t n = 0; n < a->states; n++)
            x->h_bound[base + n * 16] += TOLERANCE * size[n] + 1e-35;
    }
}

static void check(const problem *p, const expected *x, const float *y, const float *h)
{
    for (uint32_t i = 0; i < p->args.tokens * E; i++)
        if (!(fabs((double)y[i] - x->y[i]) <= x->y_bound[i]))
            fail_msg("a2 %g: y[%u] = %.9g, expected %.9g +- %.3g", (double)p->a2[5], i,
                     (double)y[i], x->y[i], x->y_bound[i]);
    for (uint32_t i = 0; i < E * p->states; i++)
        if (!(fabs((double)h[i] - x->h[i]) <= x->h_bound[i]))
            fail_msg("h[%u] = %.9g, expected %.9g +- %.3g", i, (double)h[i], x->h[i],
                     x->h_bound[i]);
}

static void run_chunked(const bxn_scan_args *args, uint32_t chunk)
{
    size_t bytes = bxn_scan_chunked_bytes(chunk);
    unsigned char *scratch = aligned_alloc(BXN_ALIGN, bxn_round_up(bytes + 1, BXN_ALIGN));
    assert_non_null(scratch);
    memset(scratch, 0xFF, bytes + 1); /* not a number everywhere */
    bxn_scan_chunked(args, chunk, scratch);
    assert_int_equal(scratch[bytes], 0xFF);
    free(scratch);
}

static void test_chunks(void **state)
{
    (void)state;
    static expected want;
    static const float a_sizes[] = {0.1f, 1.5f, 23.1f, 3e4f, 3e38f};
    uint32_t chunk = 1;
    for (steps kind = 0; kind < STEP_KINDS; kind++)
        for (size_t s = 0; s < 5; s++)
            for (uint32_t round = 0; round < 6; round++, chunk = chunk % 64 + 1) {
                uint32_t tokens = round == 0 ? 130 : 1 + (uint32_t)uniform(0, 129);
                uint32_t length = round == 0 ? 64 : chunk;
                problem p;
                problem_open(&p, round % 3 == 2 ? 3 : 16, tokens, kind, a_sizes[s]);
                expect(&p, &want);
                float *y = randoms(MOST * E, 9, 9), *h = randoms(E * p.states, 9, 9);
                p.args.y = y;
                p.args.h_out = h;
                run_chunked(&p.args, length);
                check(&p, &want, y, h);
                for (size_t i = tokens * E; i < MOST * E; i++)
                    assert_true(y[i] == 9.0f);
                for (size_t t = 0; t < tier_count; t++) { /* the recurrence, by the same bounds */
                    tiers[t].scan(&p.args);
                    check(&p, &want, y, h);
                }
                free(y);
                free(h);
                problem_close(&p);
            }
}

/* Every chunk length, in two calls with the state carried in place; a part of the channels. */
static void test_carried(void **state)
{
    (void)state;
    static expected want;
    for (uint32_t chunk = 1; chunk <= 64; chunk++) {
        problem p;
        uint32_t tokens = 67 + chunk, first = 1 + chunk % 40;
        problem_open(&p, 4, tokens, (steps)(chunk % STEP_KINDS), 23.1f);
        expect(&p, &want);
        float *y = randoms(MOST * E, 0, 0), *h = copied(p.h, E * 4);
        for (uint32_t begin = 0; begin < E; begin += 16) {
            bxn_scan_args a = p.args;
            a.begin = begin;
            a.end = begin + 16;
            a.h_in = a.h_out = h;
            a.y = y;
            a.tokens = first;
            run_chunked(&a, chunk);
            a.tokens = tokens - first;
            a.x += first * E;
            a.z += first * E;
            a.bcd += first * a.ldbcd;
            a.y += first * E;
            run_chunked(&a, chunk);
        }
        check(&p, &want, y, h);
        free(y);
        free(h);
        problem_close(&p);
    }
}

static void test_not_numbers(void **state)
{
    (void)state;
    problem p;
    problem_open(&p, 2, 40, ORDINARY, 4.0f);
    p.x[5 * E + 3] = NAN;
    p.x[6 * E + 4] = INFINITY;
    p.bias[20] = NAN;
    float *y = randoms(MOST * E, 0, 0), *h = randoms(E * 2, 0, 0);
    p.args.y = y;
    p.args.h_out = h;
    run_chunked(&p.args, 16);
    for (uint32_t t = 0; t < 40; t++)
        for (uint32_t e = 0; e < E; e++) {
            float v = y[t * E + e];
            if (e == 20 || (e == 3 && t >= 5))
                assert_true(isnan(v));
            else if (e == 4 && t >= 6)
                assert_true(!isfinite(v));
            else
                assert_true(isfinite(v));
        }
    free(y);
    free(h);
    problem_close(&p);
}

/* ---- one decay per head ------------------------------------------------------------------------
 */

enum { HEADS = 4, GROUPS = 2 };

static void check_ssd(uint32_t head_dim, uint32_t states, uint32_t tokens, uint32_t chunk,
                      steps kind, float a_most)
{
    const size_t ldx = HEADS * head_dim + 5, ldbc = GROUPS * states + 3,
                 cells = (size_t)head_dim * states;
    float *x = randoms(tokens * ldx, -1, 1), *dt = randoms(tokens * HEADS, 0, 0);
    float *b = randoms(tokens * ldbc, -1, 1), *c = randoms(tokens * ldbc, -1, 1);
    float *a2 = randoms(HEADS, -a_most, -a_most / 50), *d = randoms(HEADS, -1, 1);
    float *h_in = randoms(HEADS * cells, -1, 1);
    for (uint32_t i = 0; i < tokens * HEADS; i++) {
        double v = (double)step_argument(kind, i / HEADS);
        double value = log1p(exp(-fabs(v))) + (v > 0 ? v : 0);
        dt[i] = value < 1e-4 ? 1e-4f : value > 100 ? 100.0f : (float)value;
    }
    for (size_t t = 0; t < tier_count; t++) {
        float *y = randoms(tokens * ldx, 9, 9), *h = randoms(HEADS * cells, 0, 0);
        bxn_ssd_args a = {.tokens = tokens,
                          .head_dim = head_dim,
                          .states = states,
                          .heads_per_group = HEADS / GROUPS,
                          .x = x,
                          .ldx = ldx,
                          .dt = dt,
                          .lddt = HEADS,
                          .b = b,
                          .c = c,
                          .ldbc = ldbc,
                          .a2 = a2,
                          .d = d,
                          .h_in = h_in,
                          .h_out = h,
                          .y = y,
                          .ldy = ldx};
        size_t bytes = bxn_ssd_chunked_bytes(chunk, head_dim, states);
        unsigned char *scratch = aligned_alloc(BXN_ALIGN, bytes + BXN_ALIGN);
        assert_non_null(scratch);
        memset(scratch, 0xFF, bytes + BXN_ALIGN);
        a.end = 1; /* heads in two calls, not at a border of groups */
        bxn_ssd_chunked(&tiers[t], &a, chunk, scratch);
        a.begin = 1;
        a.end = HEADS;
        bxn_ssd_chunked(&tiers[t], &a, chunk, scratch);
        for (size_t i = 0; i < BXN_ALIGN; i++)
            assert_int_equal(scratch[bytes + i], 0xFF);
        free(scratch);
        for (uint32_t head = 0; head < HEADS; head++) {
            size_t group = head / (HEADS / GROUPS) * states;
            for (uint32_t k = 0; k < head_dim; k++) {
                double state[64], size[64];
                const float *from = h_in + head * cells + k * states;
                for (uint32_t n = 0; n < states; n++)
                    size[n] = fabs(state[n] = (double)from[n]);
                for (uint32_t i = 0; i < tokens; i++) {
                    double step = (double)dt[i * HEADS + head],
                           decay = exp2(step * (double)a2[head]);
                    double xi = (double)x[i * ldx + head * head_dim + k],
                           sum = (double)d[head] * xi;
                    double bound = fabs(sum);
                    for (uint32_t n = 0; n < states; n++) {
                        double added = step * xi * (double)b[i * ldbc + group + n];
                        double cn = (double)c[i * ldbc + group + n];
                        state[n] = decay * state[n] + added;
                        size[n] = decay * size[n] + fabs(added);
                        sum += cn * state[n];
                        bound += fabs(cn) * size[n];
                    }
                    double got = (double)y[i * ldx + head * head_dim + k];
                    assert_true(fabs(got - sum) <= TOLERANCE * bound + 1e-35);
                }
                for (uint32_t n = 0; n < states; n++)
                    assert_true(fabs((double)h[head * cells + k * states + n] - state[n]) <=
                                TOLERANCE * size[n] + 1e-35);
            }
        }
        for (uint32_t i = 0; i < tokens; i++)
            for (size_t k = HEADS * head_dim; k < ldx; k++)
                assert_true(y[i * ldx + k] == 9.0f);
        free(y);
        free(h);
    }
    float *all[] = {x, dt, b, c, a2, d, h_in};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
}

static void test_one_decay_per_head(void **state)
{
    (void)state;
    static const float a_sizes[] = {0.1f, 23.1f, 3e38f};
    for (steps kind = 0; kind < STEP_KINDS; kind++)
        for (size_t s = 0; s < 3; s++) {
            check_ssd(20, 33, 100, 64, kind, a_sizes[s]);
            check_ssd(16, 64, 131, 1 + (uint32_t)uniform(0, 63), kind, a_sizes[s]);
            check_ssd(1, 1, 9, 4, kind, a_sizes[s]);
        }
    for (uint32_t chunk = 1; chunk <= 64; chunk += 7)
        check_ssd(7, 19, 65, chunk, MIXED, 8.0f);
    check_ssd(8, 16, 150, 140, ORDINARY, 8.0f); /* more columns than a unit */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_carried),
        cmocka_unit_test(test_not_numbers),
        cmocka_unit_test(test_one_decay_per_head),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
