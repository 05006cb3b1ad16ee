/* SPDX-License-Identifier: Apache-2.0 */
/* test_sampler.c - the choice of a token against a plain second implementation (sort all,
 * filter, normalise): which tokens may come, how often they come, ties, penalties, biases,
 * and that a draw depends on seed and position alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "api/api.h"

enum { VOCAB = 96, DRAWS = 20000 };

typedef struct rig {
    bitaxon_model *model;
    bitaxon_session *session;
    float *logits; /* what the sampler sees */
    bitaxon_error error;
} rig;

static int setup(void **state)
{
    static rig r;
    r.error = (bitaxon_error)BITAXON_ERROR_INIT;
    bitaxon_model_params params = { .struct_size = sizeof params, .path = "tests/golden/tiny-fp32", .threads = 1 };
    assert_int_equal(bitaxon_model_open(&params, &r.model, &r.error), BITAXON_OK);
    assert_int_equal(bitaxon_session_create(r.model, NULL, &r.session, &r.error), BITAXON_OK);
    int32_t tokens[4] = { 5, 9, 5, 40 };
    assert_int_equal(bitaxon_session_prefill(r.session, tokens, 4, &r.error), BITAXON_OK);
    r.logits = r.session->cache->core.state->logits;
    *state = &r;
    return 0;
}

static int teardown(void **state)
{
    rig *r = *state;
    bitaxon_session_free(r->session);
    bitaxon_model_free(r->model);
    return 0;
}

static int32_t draw(rig *r, const bitaxon_sampler_params *p)
{
    int32_t token = -1;
    assert_int_equal(bitaxon_session_set_sampler(r->session, p, &r->error), BITAXON_OK);
    if (bitaxon_session_sample(r->session, &token, &r->error) != BITAXON_OK)
        fail_msg("%s", r->error.message);
    return token;
}

typedef struct entry {
    int id;
    double logit, weight;
} entry;

static int by_logit(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    return x->logit != y->logit ? (x->logit < y->logit ? 1 : -1) : x->id - y->id;
}

/* Probabilities by the book: penalty, bias, temperature, top-k, top-p, min-p. */
static void expected(const rig *r, const bitaxon_sampler_params *p, double probability[VOCAB])
{
    static const int seen[] = { 5, 9, 40 };
    entry e[VOCAB];
    for (int i = 0; i < VOCAB; i++) {
        e[i] = (entry){ i, (double)r->logits[i], 0 };
        for (int j = 0; j < 3 && p->repetition_penalty != 0; j++)
            if (seen[j] == i && !(p->repetition_window == 1 && i != 40))
                e[i].logit = r->logits[i] > 0 ? r->logits[i] / (double)p->repetition_penalty
                                              : r->logits[i] * (double)p->repetition_penalty;
        for (uint32_t j = 0; j < p->bias_count; j++)
            if (p->bias[j].token == i)
                e[i].logit += (double)p->bias[j].bias;
        probability[i] = 0;
    }
    qsort(e, VOCAB, sizeof *e, by_logit);
    int n = p->top_k != 0 && p->top_k < VOCAB ? (int)p->top_k : VOCAB;
    double total = 0, before = 0, kept = 0;
    for (int i = 0; i < n; i++)
        total += e[i].weight = exp((e[i].logit - e[0].logit) / (double)p->temperature);
    for (int i = 0; i < n; i++) {
        if (i > 0 &&
            ((p->top_p > 0 && p->top_p < 1 && before > (double)p->top_p * total) || e[i].weight < (double)p->min_p)) {
            n = i;
            break;
        }
        before += e[i].weight;
    }
    for (int i = 0; i < n; i++)
        kept += e[i].weight;
    for (int i = 0; i < n; i++)
        probability[e[i].id] = e[i].weight / kept;
}

/* Many seeds: nothing impossible comes, and frequencies agree (chi-square, very wide margin). */
static void check_distribution(rig *r, bitaxon_sampler_params p, const char *what)
{
    double probability[VOCAB];
    static uint32_t count[VOCAB];
    memset(count, 0, sizeof count);
    expected(r, &p, probability);
    for (int i = 0; i < DRAWS; i++) {
        p.seed = (uint64_t)i * 2654435761u + 99;
        count[draw(r, &p)]++;
    }
    double chi = 0;
    int cells = 0;
    for (int i = 0; i < VOCAB; i++) {
        if (probability[i] == 0) {
            if (count[i] != 0)
                fail_msg("%s: token %d cannot come, it came %u times", what, i, count[i]);
            continue;
        }
        double mean = probability[i] * DRAWS;
        if (mean < 5)
            continue;
        chi += (count[i] - mean) * (count[i] - mean) / mean;
        cells++;
    }
    print_message("%s: chi-square %.1f over %d cells\n", what, chi, cells);
    assert_true(cells > 0 && chi < cells + 6 * sqrt(2.0 * cells) + 10);
}

static void test_distributions(void **state)
{
    rig *r = *state;
    bitaxon_logit_bias bias[2] = { { 7, 2.5f }, { 12, -INFINITY } };
    const bitaxon_sampler_params base = { .struct_size = sizeof base, .temperature = 1 };
    bitaxon_sampler_params p = base;
    check_distribution(r, p, "plain");
    p.temperature = 0.5f;
    check_distribution(r, p, "temperature 0.5");
    p = base, p.top_k = 7;
    check_distribution(r, p, "top-k 7");
    p = base, p.top_p = 0.6f;
    check_distribution(r, p, "top-p 0.6");
    p = base, p.top_k = 20, p.top_p = 0.8f;
    check_distribution(r, p, "top-k 20, top-p 0.8");
    p = base, p.min_p = 0.3f;
    check_distribution(r, p, "min-p 0.3");
    p = base, p.top_k = 30, p.top_p = 0.95f, p.min_p = 0.2f, p.temperature = 1.3f;
    check_distribution(r, p, "all three");
    p = base, p.repetition_penalty = 1.8f;
    check_distribution(r, p, "repetition penalty");
    p.repetition_window = 1;
    check_distribution(r, p, "repetition window");
    p = base, p.bias = bias, p.bias_count = 2, p.top_k = 40;
    check_distribution(r, p, "bias");
}

static void test_ties_and_edges(void **state)
{
    rig *r = *state;
    for (int i = 0; i < VOCAB; i++)
        r->logits[i] = 0; /* all tied */
    bitaxon_sampler_params p = { .struct_size = sizeof p };
    assert_int_equal(draw(r, &p), 0); /* greedy: lowest id */
    p.temperature = 1;
    p.top_k = 3; /* exactly three, the lowest ids */
    int seen[VOCAB] = { 0 };
    for (p.seed = 0; p.seed < 500; p.seed++)
        seen[draw(r, &p)]++;
    for (int i = 0; i < VOCAB; i++)
        assert_true(i < 3 ? seen[i] > 100 : seen[i] == 0);
    p.top_k = 1;
    for (p.seed = 0; p.seed < 50; p.seed++)
        assert_int_equal(draw(r, &p), 0);
    p.top_k = 0;
    p.top_p = 1e-6f; /* the best always survives; nothing else here */
    for (p.seed = 0; p.seed < 50; p.seed++)
        assert_int_equal(draw(r, &p), 0);
    /* nearly zero temperature is nearly greedy, without overflow */
    for (int i = 0; i < VOCAB; i++)
        r->logits[i] = (float)(i == 31 ? 3.0 : sin(i));
    p = (bitaxon_sampler_params){ .struct_size = sizeof p, .temperature = 1e-30f };
    for (p.seed = 0; p.seed < 50; p.seed++)
        assert_int_equal(draw(r, &p), 31);
    p.temperature = 1e30f; /* nearly uniform, still valid */
    for (p.seed = 0; p.seed < 50; p.seed++)
        assert_in_range(draw(r, &p), 0, VOCAB - 1);
}

static void test_refusals(void **state)
{
    rig *r = *state;
    int32_t token;
    const bitaxon_sampler_params bad[] = {
        { .struct_size = sizeof bad[0], .temperature = -1 },
        { .struct_size = sizeof bad[0], .temperature = NAN },
        { .struct_size = sizeof bad[0], .temperature = INFINITY },
        { .struct_size = sizeof bad[0], .top_p = 1.5f },
        { .struct_size = sizeof bad[0], .top_p = -0.1f },
        { .struct_size = sizeof bad[0], .min_p = 1 },
        { .struct_size = sizeof bad[0], .repetition_penalty = -2 },
        { .struct_size = sizeof bad[0], .bias_count = 1 },
        { .struct_size = sizeof bad[0], .bias_count = 1, .bias = &(bitaxon_logit_bias){ VOCAB, 0 } },
        { .struct_size = sizeof bad[0], .bias_count = 1, .bias = &(bitaxon_logit_bias){ -1, 0 } },
        { .struct_size = sizeof bad[0], .bias_count = 1, .bias = &(bitaxon_logit_bias){ 1, NAN } },
        { .struct_size = sizeof bad[0], .bias_count = 1, .bias = &(bitaxon_logit_bias){ 1, INFINITY } },
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        if (bitaxon_session_set_sampler(r->session, &bad[i], &r->error) != BITAXON_INVALID_ARGUMENT)
            fail_msg("parameters %zu were taken", i);
    r->logits[17] = NAN;
    assert_int_equal(bitaxon_session_sample(r->session, &token, &r->error), BITAXON_FORMAT);
    assert_non_null(strstr(r->error.message, "17"));
    r->logits[17] = INFINITY;
    assert_int_equal(bitaxon_session_sample(r->session, &token, &r->error), BITAXON_FORMAT);
    r->logits[17] = -INFINITY; /* a forbidden token is fine */
    assert_int_equal(bitaxon_session_sample(r->session, &token, &r->error), BITAXON_OK);
    static bitaxon_logit_bias all[VOCAB];
    for (int i = 0; i < VOCAB; i++)
        all[i] = (bitaxon_logit_bias){ i, -INFINITY };
    bitaxon_sampler_params none = { .struct_size = sizeof none, .bias = all, .bias_count = VOCAB };
    assert_int_equal(bitaxon_session_set_sampler(r->session, &none, &r->error), BITAXON_OK);
    assert_int_equal(bitaxon_session_sample(r->session, &token, &r->error), BITAXON_INVALID_ARGUMENT);
    r->logits[17] = 0;
}

/* The same seed and position: the same draw, whatever was drawn in between; other positions differ. */
static void test_seed_and_position(void **state)
{
    rig *r = *state;
    bitaxon_sampler_params p = { .struct_size = sizeof p, .temperature = 3, .seed = 42 };
    int32_t run[2][40];
    uint64_t start = bitaxon_session_position(r->session);
    for (int pass = 0; pass < 2; pass++) {
        assert_int_equal(bitaxon_session_rewind(r->session, 3, &r->error), BITAXON_OK);
        int32_t again[1] = { 40 };
        assert_int_equal(bitaxon_session_prefill(r->session, again, 1, &r->error), BITAXON_OK);
        assert_int_equal(bitaxon_session_position(r->session), start);
        assert_int_equal(bitaxon_session_set_sampler(r->session, &p, &r->error), BITAXON_OK);
        for (int i = 0; i < 40; i++) {
            int32_t looked;
            assert_int_equal(bitaxon_session_sample(r->session, &looked, &r->error), BITAXON_OK);
            assert_int_equal(bitaxon_session_decode(r->session, &run[pass][i], &r->error), BITAXON_OK);
            assert_int_equal(looked, run[pass][i]);
        }
    }
    assert_memory_equal(run[0], run[1], sizeof run[0]);
    int distinct = 0;
    for (int i = 1; i < 40; i++)
        distinct += run[0][i] != run[0][i - 1];
    assert_true(distinct > 20);
}

static void test_top_logprobs(void **state)
{
    (void)state;
    float logits[VOCAB];
    for (int i = 0; i < VOCAB; i++)
        logits[i] = (float)((i * 37) % 19);
    bitaxon_candidate top[64];
    assert_int_equal(bxn_top_logprobs(logits, VOCAB, 64, top), 64);
    double norm = 0;
    for (int i = 0; i < VOCAB; i++)
        norm += exp((double)logits[i]);
    for (int i = 0; i < 64; i++) {
        assert_true(fabs((double)top[i].logprob - ((double)logits[top[i].token] - log(norm))) < 1e-5);
        if (i > 0)
            assert_true(logits[top[i].token] < logits[top[i - 1].token] ||
                        (logits[top[i].token] == logits[top[i - 1].token] && top[i].token > top[i - 1].token));
    }
}

/* Philox 4x32-10: the known answers of the authors' test suite. */
static void test_philox(void **state)
{
    (void)state;
    uint32_t out[4];
    bxn_philox(0, 0, 0, out);
    assert_int_equal(out[0], 0x6627e8d5u);
    assert_int_equal(out[1], 0xe169c58du);
    assert_int_equal(out[2], 0xbc57ac4cu);
    assert_int_equal(out[3], 0x9b00dbd8u);
    bxn_philox(UINT64_MAX, UINT64_MAX, UINT64_MAX, out);
    assert_int_equal(out[0], 0x408f276du);
    assert_int_equal(out[1], 0x41c83b0eu);
    assert_int_equal(out[2], 0xa20bc7c6u);
    assert_int_equal(out[3], 0x6d5451fdu);
    bxn_philox(0x299f31d0a4093822u, 0x0370734413198a2eu, 0x85a308d3243f6a88u, out);
    assert_int_equal(out[0], 0xd16cfe09u);
    assert_int_equal(out[1], 0x94fdccebu);
    assert_int_equal(out[2], 0x5001e420u);
    assert_int_equal(out[3], 0x24126ea1u);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox),          cmocka_unit_test(test_distributions),
        cmocka_unit_test(test_ties_and_edges),  cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_seed_and_position), cmocka_unit_test(test_top_logprobs),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
