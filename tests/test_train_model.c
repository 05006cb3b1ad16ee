/* SPDX-License-Identifier: Apache-2.0 */
/* test_train_model.c - training against a PyTorch twin (tests/oracle/make_train_fixtures.py): gradients of
 * every parameter of whole small models of many configurations, formats, adapters and objectives, and
 * losses and norms of 50 updates from the same start; gradients against differences of the loss; the
 * loss against what a session says of the same tokens. */
#include "test_tiers.h"
#include "train_fixture.h"

static const char *const runs[] = { "full", "lora", "dora_affine4", "dora_exact", "orpo_nf4" };
static const char *const once[] = { "grad_extensions", "grad_odd_sizes", "grad_one_expert", "grad_window_one",
                                    "grad_dora_half" };
enum { RUNS = sizeof runs / sizeof runs[0], ONCE = sizeof once / sizeof once[0] };

/* ---- gradients ---------------------------------------------------------------------------- */

/* The gradient of fixture tensor `name`, in the layout of files; free it. */
static float *gradient(training *t, const char *name, size_t n)
{
    float *out = malloc(n * sizeof *out);
    assert_non_null(out);
    if (t->rank == 0) { /* it lies as values do */
        float *value = t->parameters->value;
        t->parameters->value = t->parameters->grad;
        CHECK(bxn_trainable_read(t->trainable, name, 0, n, out, &error));
        t->parameters->value = value;
        return out;
    }
    for (uint32_t i = 0; i < t->own.count; i++) {
        const bxn_parameter *p = &t->own.items[i];
        if (strcmp(p->name, name) != 0)
            continue;
        assert_int_equal(n, (size_t)p->rows * p->cols);
        for (size_t j = 0; j < n; j++)
            out[j] = t->own.grad[p->offset + own_place(p, j)];
        return out;
    }
    fail_msg("no gradient of %s", name);
    return out;
}

/* Largest error of a tensor's gradient relative to its largest element. */
static double gradient_error(training *t, const char *name)
{
    size_t n;
    float *want = fixture_copy(&t->f, name, "F32", 4, &n), *got = gradient(t, name + strlen("grad."), n);
    double worst = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        size = fmax(size, fabs((double)want[i]));
        double apart = fabs((double)got[i] - (double)want[i]);
        worst = apart <= worst ? worst : isnan(apart) ? INFINITY : apart;
    }
    free(want);
    free(got);
    return worst / (size > 0 ? size : 1);
}

/* Gradients of the first update, in the state that run_update left. */
static void check_gradients(training *t, const char *what)
{
    const double bound = 1e-4;
    double worst = 0;
    uint32_t tensors = 0;
    char worst_name[128] = "";
    const char *key;
    json_t *item;
    json_object_foreach(t->f.header, key, item)
    {
        if (strncmp(key, "grad.", 5) != 0)
            continue;
        double apart = gradient_error(t, key);
        tensors++;
        if (apart > worst)
            snprintf(worst_name, sizeof worst_name, "%s", key + 5);
        worst = fmax(worst, apart);
        if (!(apart <= bound))
            print_message("%s: %s: gradient is off by %.3g of its largest element\n", what, key + 5, apart);
    }
    print_message("%s: gradients of %u tensors, worst %.3g (%s), bound %.3g\n", what, tensors, worst, worst_name,
                  bound);
    assert_true(tensors > 0 && worst <= bound);
    if (t->rank != 0)
        assert_int_equal(tensors, t->own.count);
}

static void check_first(const char *name, uint64_t tier)
{
    training t;
    bxn_losses losses;
    size_t n;
    training_open(&t, name, 2, tier, NULL);
    double *want = fixture_copy(&t.f, "losses64", "F64", 8, &n);
    double weight = run_update(&t, 0, &losses), loss = losses.loss / weight;
    print_message("%s: loss %.7f, expected %.7f\n", name, loss, want[0]);
    assert_true(fabs(loss - want[0]) <= 1e-5 * fmax(1, fabs(want[0])));
    assert_true(t.runner.scratch.most <= t.runner.scratch.bytes);
    check_gradients(&t, name);
    free(want);
    training_close(&t);
}

static void test_gradients(void **state)
{
    (void)state;
    for (int i = 0; i < RUNS; i++)
        check_first(runs[i], 0);
    for (int i = 0; i < ONCE; i++)
        check_first(once[i], 0);
}

static void test_gradients_of_every_tier(void **state)
{
    static const uint64_t tiers[] = TEST_TIERS;
    static const char *const names[] = TEST_TIER_NAMES;
    (void)state;
    for (size_t i = 0; i < sizeof tiers / sizeof tiers[0]; i++) {
        uint64_t needed = tiers[i] & ~BITAXON_CPU_NONE;
        if ((bitaxon_cpu_features() & needed) != needed) {
            print_message("SKIP tier %s: this CPU lacks it\n", names[i]);
            continue;
        }
        print_message("tier %s\n", names[i]);
        check_first("grad_extensions", tiers[i]);
        check_first("dora_affine4", tiers[i]);
    }
}

/* (L(p + h d) - L(p - h d)) / 2 h = <g, d> in the direction d of the gradient. Of models whose rows are far from
 * another choice of experts, where the loss jumps. */
static void check_differences(const char *name, float dropout)
{
    training t;
    bxn_losses losses;
    training_open(&t, name, 2, 0, NULL);
    t.micro = 1;
    t.adapters.dropout = dropout;
    t.adapters.dropout_key = 77;
    run_update(&t, 0, &losses);
    bxn_parameters *p = t.parameters;
    float *start = malloc(p->floats * sizeof *start), *direction = malloc(p->floats * sizeof *direction);
    assert_true(start != NULL && direction != NULL);
    double slope = 0;
    for (size_t i = 0; i < p->floats; i++)
        slope += (double)p->grad[i] * (double)p->grad[i];
    slope = sqrt(slope);
    double h = 3e-4 * losses.loss / slope, side[2];
    memcpy(start, p->value, p->floats * sizeof *start);
    for (size_t i = 0; i < p->floats; i++)
        direction[i] = (float)((double)p->grad[i] / slope);
    for (int s = 0; s < 2; s++) {
        for (size_t i = 0; i < p->floats; i++)
            p->value[i] = start[i] + (s == 0 ? 1.0f : -1.0f) * (float)h * direction[i];
        values_changed(&t);
        memset(&losses, 0, sizeof losses);
        CHECK(run_step(&t, &t.steps[0], t.grads, NULL, &losses)); /* as in training: with dropout */
        double units = (double)(t.objective.kind == BXN_OBJECTIVE_ORPO ? losses.pairs : losses.tokens);
        side[s] = losses.loss + (double)t.objective.balance * losses.balance * units / t.steps[0].rows;
    }
    double found = (side[0] - side[1]) / (2 * h);
    print_message("%s, dropout %.1f: slope %.6g, by differences %.6g\n", name, (double)dropout, slope, found);
    assert_true(fabs(found / slope - 1) <= 3e-3);
    free(start);
    free(direction);
    training_close(&t);
}

static void test_differences(void **state)
{
    (void)state;
    check_differences("grad_extensions", 0);
    check_differences("grad_one_expert", 0);
    check_differences("grad_dora_half", 0);
    check_differences("orpo_nf4", 0);
    check_differences("grad_dora_half", 0.3f);
    check_differences("orpo_nf4", 0.5f);
}

/* With most labels masked, differently in each micro-step, what the balance adds to an update's gradient is that
 * of `balance` times its loss per row, and the loss itself counts per label. */
static void test_balance_of_masked(void **state)
{
    (void)state;
    training t;
    bxn_losses losses;
    training_open(&t, "full", 2, 0, NULL);
    for (uint32_t i = 0; i < t.micro; i++)
        for (uint32_t row = 0; row < t.steps[i].rows; row++)
            if (row % (2 + 2 * i) != 0)
                t.labels[(size_t)(t.steps[i].labels - t.labels) + row] = -1;
    bxn_parameters *p = t.parameters;
    float *plain = malloc(p->floats * sizeof *plain), *start = malloc(p->floats * sizeof *start);
    assert_true(plain != NULL && start != NULL);
    t.objective.balance = 0;
    double weight = run_update(&t, 0, &losses), slope = 0, rows = 0;
    memcpy(plain, p->grad, p->floats * sizeof *plain);
    memcpy(start, p->value, p->floats * sizeof *start);
    assert_true(losses.balance == 0);
    clear_grads(&t);
    t.objective.balance = 2;
    run_update(&t, 0, &losses);
    for (size_t i = 0; i < p->floats; i++) { /* to the mean that an update takes */
        plain[i] = (float)(((double)p->grad[i] - (double)plain[i]) / weight);
        slope += (double)plain[i] * (double)plain[i];
    }
    for (uint32_t i = 0; i < t.micro; i++)
        rows += t.steps[i].rows;
    assert_true(weight < rows / 2);
    slope = sqrt(slope);
    double h = 2e-4, side[2] = { 0, 0 };
    for (int s = 0; s < 2; s++) {
        for (size_t i = 0; i < p->floats; i++)
            p->value[i] = start[i] + (float)((s == 0 ? h : -h) * (double)plain[i] / slope);
        values_changed(&t);
        for (uint32_t i = 0; i < t.micro; i++) {
            memset(&losses, 0, sizeof losses);
            CHECK(run_step(&t, &t.steps[i], t.grads, NULL, &losses));
            side[s] += (double)losses.tokens / weight * 2 * losses.balance / t.steps[i].rows;
        }
    }
    double found = (side[0] - side[1]) / (2 * h);
    print_message("balance, %.0f labels in %.0f rows: slope %.6g, by differences %.6g\n", weight, rows, slope, found);
    assert_true(fabs(found / slope - 1) <= 3e-3);
    free(plain);
    free(start);
    training_close(&t);
}

/* ---- 50 updates --------------------------------------------------------------------------- */

static void check_run(const char *name)
{
    training t;
    bxn_losses losses;
    size_t n;
    training_open(&t, name, 2, 0, NULL);
    double *want = fixture_copy(&t.f, "losses", "F64", 8, &n), *norms = fixture_copy(&t.f, "norms", "F64", 8, NULL);
    double *rates = fixture_copy(&t.f, "rates", "F64", 8, NULL);
    double worst = 0, worst_norm = 0, first = 0, last = 0;
    bxn_exec exec = { .kernels = &t.core->kernels, .pool = t.core->pool, .error = &error };
    assert_int_equal(n, t.updates);
    for (uint32_t u = 0; u < t.updates; u++) {
        double weight = run_update(&t, u, &losses), norm = 0, loss = losses.loss / weight;
        assert_true(fabs(bxn_learning_rate(&t.optimizer, u) - rates[u]) <= 1e-12 * rates[0]);
        CHECK(bxn_gradient_norm(&exec, t.parameters, 1 / weight, &norm));
        CHECK(bxn_optimizer_update(&exec, &t.optimizer, t.parameters, u, 1 / weight, norm));
        values_changed(&t);
        worst = fmax(worst, isnan(loss) ? INFINITY : fabs(loss - want[u]));
        worst_norm = fmax(worst_norm, fabs(norm / norms[u] - 1));
        first = u == 0 ? loss : first;
        last = loss;
    }
    print_message("%s: loss %.5f to %.5f in %u updates; at most %.3g from PyTorch, norms %.3g\n", name, first, last,
                  t.updates, worst, worst_norm);
    assert_true(worst <= 1e-4);
    assert_true(worst_norm <= 1e-3);
    assert_true(last < first);
    free(want);
    free(norms);
    free(rates);
    training_close(&t);
}

static void test_fifty_updates_full(void **state) { (void)state; check_run("full"); }
static void test_fifty_updates_lora(void **state) { (void)state; check_run("lora"); }
static void test_fifty_updates_dora_affine4(void **state) { (void)state; check_run("dora_affine4"); }
static void test_fifty_updates_dora_exact(void **state) { (void)state; check_run("dora_exact"); }
static void test_fifty_updates_orpo_nf4(void **state) { (void)state; check_run("orpo_nf4"); }

/* ---- a session's word --------------------------------------------------------------------- */

/* The loss of a document with all its tokens counted is what a session scores it with. */
static void check_session(const char *name)
{
    training t;
    training_open(&t, name, 2, 0, NULL);
    bitaxon_cache_params cache = { .struct_size = sizeof cache, .kv_type = BITAXON_KV_F32 };
    bitaxon_session_params params = { .struct_size = sizeof params, .cache_params = &cache };
    t.objective.kind = BXN_OBJECTIVE_SFT;
    t.rank = 0; /* no adapter */
    double worst = 0;
    for (uint32_t i = 0; i < t.micro; i++) {
        const bxn_micro_step *s = &t.steps[i];
        for (uint32_t d = 0; d < s->document_count; d++) {
            uint32_t count = s->documents[d].count;
            const int32_t *tokens = s->tokens + s->documents[d].first;
            int32_t labels[256];
            assert_true(count <= 256);
            for (uint32_t j = 0; j < count; j++)
                labels[j] = j + 1 < count ? tokens[j + 1] : -1;
            bxn_document one = { 0, count };
            bxn_micro_step alone = { count, tokens, labels, &one, 1 };
            bxn_losses losses = { 0 };
            CHECK(run_step(&t, &alone, NULL, NULL, &losses));
            assert_int_equal(losses.tokens, count - 1);
            bitaxon_session *session;
            double sum = 0;
            CHECK(bitaxon_session_create(t.model, &params, &session, &error));
            CHECK(bitaxon_session_score(session, tokens, count, &sum, NULL, &error));
            bitaxon_session_free(session);
            if (count > 1)
                worst = fmax(worst, fabs(losses.loss + sum) / (count - 1));
        }
    }
    print_message("%s: loss per token at most %.3g from a session's\n", name, worst);
    assert_true(worst <= 1e-5);
    t.rank = (uint32_t)meta_number(&t, "rank", 0);
    training_close(&t);
}

static void test_session(void **state)
{
    (void)state;
    check_session("full");
    check_session("dora_affine4");
    check_session("orpo_nf4");
    check_session("grad_extensions");
    check_session("grad_dora_half");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_gradients_of_every_tier),
        cmocka_unit_test(test_differences),
        cmocka_unit_test(test_balance_of_masked),
        cmocka_unit_test(test_fifty_updates_full),
        cmocka_unit_test(test_fifty_updates_lora),
        cmocka_unit_test(test_fifty_updates_dora_affine4),
        cmocka_unit_test(test_fifty_updates_dora_exact),
        cmocka_unit_test(test_fifty_updates_orpo_nf4),
        cmocka_unit_test(test_session),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
