/* SPDX-License-Identifier: Apache-2.0 */
/* test_golden.c - the whole model against tensors that the original implementation computed
 * (tests/golden, spec 15): logits of the float and the 4-bit checkpoint, hidden states
 * layer by layer, the state-space block with its caches, the mixture of experts; in every
 * tier that the machine has. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>

#include "api/api.h"
#include "fixture_tensors.h"
#include "test_tiers.h"

static const uint64_t tiers[] = TEST_TIERS;
static const char *const tier_names[] = TEST_TIER_NAMES;
enum {
    TIERS = sizeof tiers / sizeof tiers[0],
    BATCH = 2,
    LENGTH = 40,
    VOCAB = 96,
    DIM = 64,
    CHANNELS = 128,
    STATES = 4
};

static bool tier_present(int tier)
{
    uint64_t needed = tiers[tier] & ~BITAXON_CPU_NONE;
    if ((bitaxon_cpu_features() & needed) == needed)
        return true;
    print_message("SKIP tier %s: this CPU lacks it\n", tier_names[tier]);
    return false;
}

static bitaxon_model *open_model(const char *path, int tier)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_model_params params = { .struct_size = sizeof params, .path = path, .threads = 2, .cpu_mask = tiers[tier],
                                    .accuracy = BITAXON_ACCURACY_EXACT };
    bitaxon_model *model;
    if (bitaxon_model_open(&params, &model, &error) != BITAXON_OK)
        fail_msg("%s", error.message);
    return model;
}

static bitaxon_session *open_session(bitaxon_model *model)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_cache_params cache = { .struct_size = sizeof cache, .kv_type = BITAXON_KV_F32 };
    bitaxon_session_params params = { .struct_size = sizeof params, .cache_params = &cache };
    bitaxon_session *session;
    if (bitaxon_session_create(model, &params, &session, &error) != BITAXON_OK)
        fail_msg("%s", error.message);
    return session;
}

static double max_error(const float *got, const float *expected, size_t count)
{
    double worst = 0;
    for (size_t i = 0; i < count; i++) {
        double error = fabs((double)got[i] - (double)expected[i]);
        if (!(error <= worst))
            worst = isnan(error) ? INFINITY : error;
    }
    return worst;
}

static void check_logits(const char *path, const char *name, double bound)
{
    fixture f;
    fixture_open(&f, "tests/golden/expected.safetensors");
    const int32_t *ids = fixture_get(&f, "ids", "I32", NULL);
    const float *expected = fixture_get(&f, name, "F32", NULL);
    static float logits[LENGTH * VOCAB];
    for (int tier = 0; tier < TIERS; tier++) {
        if (!tier_present(tier))
            continue;
        bitaxon_model *model = open_model(path, tier);
        double worst = 0;
        for (int b = 0; b < BATCH; b++) {
            bitaxon_error error = BITAXON_ERROR_INIT;
            int32_t row[LENGTH];
            memcpy(row, ids + b * LENGTH, sizeof row); /* the fixture may be unaligned */
            static float want[LENGTH * VOCAB];
            memcpy(want, expected + b * LENGTH * VOCAB, sizeof want);
            bitaxon_session *session = open_session(model);
            if (bitaxon_session_evaluate(session, row, LENGTH, logits, &error) != BITAXON_OK)
                fail_msg("%s", error.message);
            worst = fmax(worst, max_error(logits, want, LENGTH * VOCAB));
            bitaxon_session_free(session);
        }
        print_message("%s, tier %s: max error %.3g (bound %.3g)\n", name, tier_names[tier], worst, bound);
        assert_true(worst <= bound);
        bitaxon_model_free(model);
    }
    fixture_close(&f);
}

static void test_logits_float(void **state)
{
    (void)state;
    check_logits("tests/golden/tiny-fp32", "logits_full", 2e-5);
}

static void test_logits_affine4(void **state)
{
    (void)state;
    check_logits("tests/golden/tiny-q4", "logits_q4", 1e-4);
}

/* An executor over one opened model, with buffers of its own. */
typedef struct bench_ops {
    bitaxon_model *model;
    bxn_workspace ws;
    bxn_exec exec;
    bitaxon_error error;
    float *hidden; /* [layers + 1, LENGTH, DIM] captured */
    int captured;
    uint32_t tokens;
} bench_ops;

static void ops_open(bench_ops *ops, const char *path, int tier)
{
    memset(ops, 0, sizeof *ops);
    ops->error = (bitaxon_error)BITAXON_ERROR_INIT;
    ops->model = open_model(path, tier);
    assert_int_equal(
        bxn_workspace_create(&ops->model->mem, &ops->model->core.config, 256, false, 0, &ops->ws, &ops->error),
        BITAXON_OK);
    ops->exec = (bxn_exec){
        .kernels = &ops->model->core.kernels, .pool = ops->model->core.pool, .ws = &ops->ws, .error = &ops->error
    };
}

static void ops_close(bench_ops *ops)
{
    bxn_workspace_free(&ops->model->mem, &ops->ws);
    bitaxon_model_free(ops->model);
}

static bitaxon_status capture(void *user)
{
    bench_ops *ops = user;
    for (uint32_t t = 0; t < ops->tokens; t++)
        memcpy(ops->hidden + ((size_t)ops->captured * LENGTH + t) * DIM, ops->ws.x + t * ops->ws.ld_d,
               DIM * sizeof(float));
    ops->captured++;
    return BITAXON_OK;
}

static void test_hidden_states(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "tests/golden/expected.safetensors");
    const int32_t *ids = fixture_get(&f, "ids", "I32", NULL);
    for (int tier = 0; tier < TIERS; tier++) {
        if (!tier_present(tier))
            continue;
        bench_ops ops;
        ops_open(&ops, "tests/golden/tiny-fp32", tier);
        const bxn_model *core = &ops.model->core;
        static float hidden[8 * LENGTH * DIM];
        bitaxon_cache *cache;
        bitaxon_cache_params params = { .struct_size = sizeof params, .kv_type = BITAXON_KV_F32 };
        assert_int_equal(bitaxon_cache_create(ops.model, &params, &cache, NULL), BITAXON_OK);
        assert_int_equal(bxn_cache_prepare(&cache->core, LENGTH, NULL), BITAXON_OK);
        bxn_state *out;
        assert_int_equal(bxn_state_create(&ops.model->mem, core, &out, NULL), BITAXON_OK);
        bxn_kv_view kv = { &cache->core.layout, cache->core.data, cache->core.first_page };
        ops.hidden = hidden;
        ops.tokens = LENGTH;
        ops.exec.tick = capture;
        ops.exec.tick_user = &ops;
        int32_t row[LENGTH];
        memcpy(row, ids, sizeof row);
        bxn_segment segment = { 0, LENGTH, 0, cache->core.state->scan, out->scan, &kv };
        assert_int_equal(bxn_forward(core, &ops.exec, row, LENGTH, &segment, 1), BITAXON_OK);
        /* sublayers: ssm | attention, experts | ssm, experts: layers end after 0, 2 and 4 */
        assert_int_equal(ops.captured, 5);
        const int ends[] = { 0, 2, 4 };
        for (int layer = 1; layer <= 3; layer++) {
            char name[16];
            snprintf(name, sizeof name, "hidden_%d", layer);
            static float want[LENGTH * DIM];
            memcpy(want, fixture_get(&f, name, "F32", NULL), sizeof want);
            double worst = max_error(hidden + (size_t)ends[layer - 1] * LENGTH * DIM, want, LENGTH * DIM);
            print_message("%s, tier %s: max error %.3g\n", name, tier_names[tier], worst);
            assert_true(worst <= 2e-5);
        }
        bxn_state_unref(&ops.model->mem, core, out);
        bitaxon_cache_free(cache);
        ops_close(&ops);
    }
    fixture_close(&f);
}

/* Rows [count, width] of sequence b of a [BATCH, count, width] fixture into ws rows. */
static void put_rows(const fixture *f, const char *name, int b, uint32_t count, size_t width, float *rows, size_t ld)
{
    const float *src = fixture_get(f, name, "F32", NULL);
    for (uint32_t t = 0; t < count; t++)
        memcpy(rows + t * ld, src + ((size_t)b * count + t) * width, width * sizeof *rows);
}

static double rows_error(const fixture *f, const char *name, int b, uint32_t count, size_t width, const float *rows,
                         size_t ld)
{
    const float *src = fixture_get(f, name, "F32", NULL);
    double worst = 0;
    for (uint32_t t = 0; t < count; t++) {
        float want[256];
        memcpy(want, src + ((size_t)b * count + t) * width, width * sizeof *want);
        worst = fmax(worst, max_error(rows + t * ld, want, width));
    }
    return worst;
}

/* The scan state of sequence b, [CHANNELS, STATES], against our [C/16][N][16]. */
static double state_error(const fixture *f, const char *name, int b, const float *h)
{
    const float *src = fixture_get(f, name, "F32", NULL);
    double worst = 0;
    for (uint32_t e = 0; e < CHANNELS; e++)
        for (uint32_t n = 0; n < STATES; n++) {
            float want;
            memcpy(&want, src + ((size_t)b * CHANNELS + e) * STATES + n, sizeof want);
            worst = fmax(worst, fabs((double)h[(e / 16 * STATES + n) * 16 + e % 16] - (double)want));
        }
    return worst;
}

static void test_ssm_block(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "tests/golden/expected.safetensors");
    for (int tier = 0; tier < TIERS; tier++) {
        if (!tier_present(tier))
            continue;
        bench_ops ops;
        ops_open(&ops, "tests/golden/tiny-fp32", tier);
        const bxn_model *core = &ops.model->core;
        const bxn_ssm *ssm = &core->sublayers[0].u.ssm;
        for (int b = 0; b < BATCH; b++) {
            bxn_state *s[3];
            for (int i = 0; i < 3; i++)
                assert_int_equal(bxn_state_create(&ops.model->mem, core, &s[i], NULL), BITAXON_OK);
            put_rows(&f, "ssm_in", b, 20, DIM, ops.ws.n, ops.ws.ld_d);
            assert_int_equal(
                bxn_ssm_forward(&ops.exec, ssm, 20, &(bxn_segment){ 0, 20, 0, s[0]->scan, s[1]->scan, NULL }, 1),
                BITAXON_OK);
            double out = rows_error(&f, "ssm_out", b, 20, DIM, ops.ws.r, ops.ws.ld_d);
            double h = state_error(&f, "ssm_state", b, s[1]->scan);
            double tail = rows_error(&f, "ssm_conv_cache", b, 3, CHANNELS, s[1]->scan + CHANNELS * STATES, CHANNELS);
            /* one more step with the first input again */
            put_rows(&f, "ssm_in", b, 20, DIM, ops.ws.n, ops.ws.ld_d);
            assert_int_equal(
                bxn_ssm_forward(&ops.exec, ssm, 1, &(bxn_segment){ 0, 1, 20, s[1]->scan, s[2]->scan, NULL }, 1),
                BITAXON_OK);
            double step = rows_error(&f, "ssm_step_out", b, 1, DIM, ops.ws.r, ops.ws.ld_d);
            double step_h = state_error(&f, "ssm_step_state", b, s[2]->scan);
            print_message("ssm, tier %s: out %.3g, state %.3g, tail %.3g; step: out %.3g, state %.3g\n",
                          tier_names[tier], out, h, tail, step, step_h);
            assert_true(out <= 2e-5 && h <= 2e-5 && tail <= 2e-5);
            assert_true(step <= 2e-5 && step_h <= 2e-5);
            for (int i = 0; i < 3; i++)
                bxn_state_unref(&ops.model->mem, core, s[i]);
        }
        ops_close(&ops);
    }
    fixture_close(&f);
}

static void test_moe_block(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "tests/golden/expected.safetensors");
    for (int tier = 0; tier < TIERS; tier++) {
        if (!tier_present(tier))
            continue;
        bench_ops ops;
        ops_open(&ops, "tests/golden/tiny-fp32", tier);
        const bxn_model *core = &ops.model->core;
        for (int b = 0; b < BATCH; b++) {
            put_rows(&f, "moe_in", b, 20, DIM, ops.ws.n, ops.ws.ld_d);
            assert_int_equal(bxn_moe_forward(&ops.exec, &core->sublayers[2].u.moe, 20, 1), BITAXON_OK);
            double out = rows_error(&f, "moe_out", b, 20, DIM, ops.ws.r, ops.ws.ld_d);
            print_message("moe, tier %s: max error %.3g\n", tier_names[tier], out);
            assert_true(out <= 2e-5);
        }
        ops_close(&ops);
    }
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits_float), cmocka_unit_test(test_logits_affine4),
        cmocka_unit_test(test_hidden_states), cmocka_unit_test(test_ssm_block),
        cmocka_unit_test(test_moe_block),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
