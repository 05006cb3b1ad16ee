/* SPDX-License-Identifier: Apache-2.0 */
/* test_orpo.c - the preference loss of spec 9.7 against its definition in extended precision: values, gradients
 * by differences, clamped averages, pairs with an empty side; log(1 - e^x) against the golden values. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>

#include "fixture_tensors.h"
#include "train/bxn_train.h"

static void test_log1mexp(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "tests/golden/expected.safetensors");
    size_t count;
    float x[32], want[32];
    memcpy(x, fixture_get(&f, "log1mexp_x", "F32", &count), sizeof x[0] * 11);
    assert_int_equal(count, 11);
    memcpy(want, fixture_get(&f, "log1mexp_exact", "F32", NULL), sizeof want[0] * 11);
    for (size_t i = 0; i < count; i++) {
        double error = fabs(bxn_log1mexp((double)x[i]) - (double)want[i]);
        assert_true(error <= 1e-7 * fabs((double)want[i]));
    }
    fixture_close(&f);
    for (double v = 1e-12; v < 700; v *= 1.07) {
        long double exact = v < 0.7 ? logl(-expm1l(-(long double)v)) : log1pl(-expl(-(long double)v));
        double error = (double)fabsl((long double)bxn_log1mexp(-v) - exact);
        assert_true(error <= 4e-16 * (double)fabsl(exact));
    }
    assert_true(bxn_log1mexp(-1000) == 0);
}

/* ---- the definition ------------------------------------------------------------------------------- */

enum { ROWS = 64 };

typedef struct sums {
    long double loss, nll, odds, chosen, rejected;
    uint64_t tokens, pairs, skipped, preferred;
} sums;

static long double clamp(long double a)
{
    return a < -1000 ? -1000 : a > -1e-6L ? -1e-6L : a;
}

static sums define(const bxn_objective_params *params, const bxn_micro_step *step, const long double *logp)
{
    sums s = { 0 };
    for (uint32_t i = 0; i + 1 < step->document_count; i += 2) {
        long double mean[2] = { 0, 0 };
        uint32_t count[2] = { 0, 0 };
        for (int side = 0; side < 2; side++) {
            const bxn_document *d = &step->documents[i + (uint32_t)side];
            for (uint32_t t = d->first; t < d->first + d->count; t++)
                if (step->labels[t] != -1) {
                    mean[side] += logp[t];
                    count[side]++;
                }
        }
        if (count[0] == 0 || count[1] == 0) {
            s.skipped++;
            continue;
        }
        mean[0] /= count[0];
        mean[1] /= count[1];
        /* log of the ratio of odds p / (1 - p), p = e^mean */
        long double c = clamp(mean[0]), r = clamp(mean[1]);
        long double z = (long double)params->beta * ((c - logl(-expm1l(c))) - (r - logl(-expm1l(r))));
        long double odds = z > 0 ? log1pl(expl(-z)) : -z + log1pl(expl(z));
        s.loss += -mean[0] + (long double)params->lambda * odds;
        s.nll -= mean[0];
        s.odds += odds;
        s.chosen += mean[0];
        s.rejected += mean[1];
        s.preferred += mean[0] > mean[1];
        s.tokens += count[0] + count[1];
        s.pairs++;
    }
    return s;
}

static void close_to(double got, long double want, double bound)
{
    double error = (double)fabsl((long double)got - want);
    if (!(error <= bound * (1 + (double)fabsl(want))))
        fail_msg("got %.17g, expected %.17Lg", got, want);
}

static void check(const bxn_objective_params *params, const bxn_micro_step *step, const float *logp)
{
    float coefficient[ROWS];
    long double exact[ROWS];
    bxn_losses losses = { .loss = 3, .pairs = 5 }; /* is added to */
    for (uint32_t t = 0; t < step->rows; t++) {
        coefficient[t] = NAN;
        exact[t] = (long double)logp[t];
    }
    bxn_orpo(params, step, logp, coefficient, &losses);
    sums want = define(params, step, exact);
    close_to(losses.loss - 3, want.loss, 1e-12);
    close_to(losses.nll, want.nll, 1e-12);
    close_to(losses.odds, want.odds, 1e-12);
    close_to(losses.chosen, want.chosen, 1e-12);
    close_to(losses.rejected, want.rejected, 1e-12);
    assert_int_equal(losses.tokens, want.tokens);
    assert_int_equal(losses.pairs - 5, want.pairs);
    assert_int_equal(losses.skipped_pairs, want.skipped);
    assert_int_equal(losses.preferred, want.preferred);
    for (uint32_t t = 0; t < step->rows; t++) {
        long double had = exact[t], h = fmaxl(1e-9L, 1e-3L * fminl(0.1L, fabsl(had)));
        exact[t] = had + h;
        long double above = define(params, step, exact).loss;
        exact[t] = had - h;
        long double below = define(params, step, exact).loss;
        exact[t] = had;
        long double slope = (above - below) / (2 * h);
        double error = (double)fabsl((long double)coefficient[t] - slope);
        if (!(error <= 1e-5 * (double)fabsl(slope) + 1e-6))
            fail_msg("row %u: gradient %.9g, by differences %.9g", t, (double)coefficient[t], (double)slope);
        if (step->labels[t] == -1)
            assert_true(coefficient[t] == 0);
    }
}

/* Two answers of `count` labels each, whose means are c and r. */
static void check_means(const bxn_objective_params *params, uint32_t count, float c, float r)
{
    int32_t labels[ROWS];
    float logp[ROWS] = { 0 };
    bxn_document documents[2] = { { 0, count + 2 }, { count + 2, count + 2 } };
    for (uint32_t t = 0; t < 2 * (count + 2); t++) {
        labels[t] = t % (count + 2) < 2 ? -1 : 7;
        float mean = t < count + 2 ? c : r;
        logp[t] = labels[t] < 0 ? 0 : mean * (count == 1 ? 1 : t % 2 == 0 ? 1.25f : 0.75f);
    }
    bxn_micro_step step = { .rows = 2 * (count + 2), .labels = labels, .documents = documents, .document_count = 2 };
    check(params, &step, logp);
}

static const bxn_objective_params compat = { .kind = BXN_OBJECTIVE_ORPO, .beta = 0.1f, .lambda = 1.0f };
static const bxn_objective_params paper = { .kind = BXN_OBJECTIVE_ORPO, .beta = 1.0f, .lambda = 0.1f };

static void test_pairs(void **state)
{
    (void)state;
    static const float means[] = { -1e-7f, -3e-6f, -1e-3f, -0.1f, -0.6931f, -0.7f, -2.5f, -30, -120, -900, -1200 };
    enum { MEANS = sizeof means / sizeof means[0] };
    for (int i = 0; i < MEANS; i++)
        for (int j = 0; j < MEANS; j++)
            for (uint32_t count = 1; count <= 4; count += 3) {
                check_means(&compat, count, means[i], means[j]);
                check_means(&paper, count, means[i], means[j]);
            }
    /* Equal answers: the odds term is log 2, whatever they are. */
    for (int i = 0; i < MEANS; i++) {
        int32_t labels[2] = { 1, 2 };
        float logp[2] = { means[i], means[i] }, coefficient[2];
        bxn_document documents[2] = { { 0, 1 }, { 1, 1 } };
        bxn_losses losses = { 0 };
        bxn_orpo(&compat, &(bxn_micro_step){ 2, labels, labels, documents, 2 }, logp, coefficient, &losses);
        assert_true(losses.odds == log(2) || fabs(losses.odds - log(2)) < 1e-15);
        assert_int_equal(losses.preferred, 0);
    }
    /* Certain answers: finite, though e^0 = 1 has no odds. */
    int32_t labels[2] = { 1, 2 };
    bxn_document documents[2] = { { 0, 1 }, { 1, 1 } };
    for (int i = 0; i < 4; i++) {
        float logp[2] = { i & 1 ? 0 : -3, i & 2 ? 0 : -3 }, coefficient[2];
        bxn_losses losses = { 0 };
        bxn_orpo(&paper, &(bxn_micro_step){ 2, labels, labels, documents, 2 }, logp, coefficient, &losses);
        assert_true(isfinite(losses.loss) && isfinite(coefficient[0]) && isfinite(coefficient[1]));
        assert_true(coefficient[0] < 0 && coefficient[1] >= 0);
    }
}

/* Several pairs of different lengths in one micro-step, one with an empty chosen side, one with an empty rejected
 * one, one of two empty sides; a document without a partner at the end. */
static void test_many(void **state)
{
    (void)state;
    static const uint32_t lengths[] = { 3, 5, 2, 4, 4, 1, 6, 2, 2, 2, 3 };
    enum { DOCUMENTS = sizeof lengths / sizeof lengths[0] };
    bxn_document documents[DOCUMENTS];
    int32_t labels[ROWS];
    float logp[ROWS];
    uint32_t rows = 0;
    for (uint32_t i = 0; i < DOCUMENTS; i++) {
        documents[i] = (bxn_document){ rows, lengths[i] };
        for (uint32_t t = 0; t < lengths[i]; t++, rows++) {
            bool empty = i == 2 || i == 5 || i == 8 || i == 9;
            labels[rows] = empty || (t == 0 && lengths[i] > 1) ? -1 : (int32_t)(rows % 50);
            logp[rows] = labels[rows] < 0 ? 0 : -0.05f * (float)(1 + rows * 7 % 40);
        }
    }
    bxn_micro_step step = { .rows = rows, .labels = labels, .documents = documents, .document_count = DOCUMENTS };
    check(&compat, &step, logp);
    check(&paper, &step, logp);
    float coefficient[ROWS];
    bxn_losses losses = { 0 };
    bxn_orpo(&paper, &step, logp, coefficient, &losses);
    assert_int_equal(losses.pairs, 2);
    assert_int_equal(losses.skipped_pairs, 3);
    /* Nothing but empty sides: no loss at all, no NaN. */
    for (uint32_t t = 0; t < rows; t++)
        labels[t] = -1;
    losses = (bxn_losses){ 0 };
    bxn_orpo(&paper, &step, logp, coefficient, &losses);
    assert_true(losses.loss == 0 && losses.pairs == 0 && losses.skipped_pairs == 5);
    for (uint32_t t = 0; t < rows; t++)
        assert_true(coefficient[t] == 0);
}

/* What is not a number is told, never hidden by a clamp. */
static void test_not_finite(void **state)
{
    (void)state;
    for (int side = 0; side < 2; side++) {
        int32_t labels[2] = { 1, 2 };
        float logp[2] = { -1, -1 }, coefficient[2];
        bxn_document documents[2] = { { 0, 1 }, { 1, 1 } };
        bxn_losses losses = { 0 };
        logp[side] = NAN;
        bxn_orpo(&paper, &(bxn_micro_step){ 2, labels, labels, documents, 2 }, logp, coefficient, &losses);
        assert_true(isnan(losses.loss));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_log1mexp), cmocka_unit_test(test_pairs),
        cmocka_unit_test(test_many),     cmocka_unit_test(test_not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
