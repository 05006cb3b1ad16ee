/* SPDX-License-Identifier: Apache-2.0 */
/* test_configs.c - models of many shapes and stored forms against logits that NumPy computed
 * in double precision from the specification (tests/oracle/make_config_fixtures.py), fed
 * in one piece and in random pieces, in every tier. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>

#include <bitaxon/bitaxon.h>

#include "fixture_tensors.h"
#include "runtime/runtime.h"
#include "test_tiers.h"

static const char *const names[] = { "affine_narrow", "affine_wide", "extensions", "half_types", "nf4",
                                     "odd_sizes", "one_expert", "one_tap", "window_one" };
static const uint64_t tiers[] = TEST_TIERS;

static void run(const char *name, uint64_t tier, uint32_t flags)
{
    char path[128], file[160];
    bitaxon_error error = BITAXON_ERROR_INIT;
    snprintf(path, sizeof path, "tests/golden/configs/%s", name);
    snprintf(file, sizeof file, "%s/expected.bin", path);
    fixture f;
    fixture_open(&f, file);
    size_t length, size;
    const void *raw_ids = fixture_get(&f, "ids", "I32", &length), *raw = fixture_get(&f, "logits", "F32", &size);
    int32_t *ids = malloc(length * sizeof *ids);
    float *want = malloc(size * sizeof *want), *got = malloc(size * sizeof *got),
          *pieces = malloc(size * sizeof *pieces);
    memcpy(ids, raw_ids, length * sizeof *ids);
    memcpy(want, raw, size * sizeof *want);
    size_t vocab = size / length;

    bitaxon_model_params params = { .struct_size = sizeof params,
                                    .path = path,
                                    .threads = 2,
                                    .cpu_mask = tier,
                                    .flags = flags,
                                    .accuracy = BITAXON_ACCURACY_EXACT };
    bitaxon_cache_params cache = { .struct_size = sizeof cache, .kv_type = BITAXON_KV_F32 };
    bitaxon_session_params sp = { .struct_size = sizeof sp, .cache_params = &cache };
    bitaxon_model *model;
    bitaxon_session *session;
    if (bitaxon_model_open(&params, &model, &error) != BITAXON_OK ||
        bitaxon_session_create(model, &sp, &session, &error) != BITAXON_OK ||
        bitaxon_session_evaluate(session, ids, length, got, &error) != BITAXON_OK)
        fail_msg("%s: %s", name, error.message);
    double worst = 0, largest = 0;
    for (size_t i = 0; i < size; i++) {
        double e = fabs((double)got[i] - (double)want[i]);
        worst = e <= worst ? worst : isnan(e) ? INFINITY : e;
        largest = fmax(largest, fabs((double)want[i]));
    }
    print_message("%s, features %llx, flags %u: max error %.3g of %.3g\n", name, (unsigned long long)tier, flags, worst,
                  largest);
    assert_true(worst <= 1e-5 * largest);

    bitaxon_cache_reset(bitaxon_session_cache(session));
    for (size_t at = 0, i = 0; at < length; i++) {
        size_t n = 1 + (size_t)(bxn_uniform(3, tier, i) * 9);
        n = n < length - at ? n : length - at;
        assert_int_equal(bitaxon_session_evaluate(session, ids + at, n, pieces + at * vocab, &error), BITAXON_OK);
        at += n;
    }
    assert_memory_equal(got, pieces, size * sizeof *got);
    bitaxon_session_free(session);
    bitaxon_model_free(model);
    fixture_close(&f);
    free(ids);
    free(want);
    free(got);
    free(pieces);
}

static void test_all(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        for (size_t t = 0; t < sizeof tiers / sizeof tiers[0]; t++) {
            uint64_t needed = tiers[t] & ~BITAXON_CPU_NONE;
            if ((bitaxon_cpu_features() & needed) != needed) {
                print_message("SKIP features %llx: this CPU lacks them\n", (unsigned long long)tiers[t]);
                continue;
            }
            run(names[i], tiers[t], 0);
        }
}

/* Read into memory instead of mapped: the same bits are covered by the same bound. */
static void test_without_mapping(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        run(names[i], BITAXON_CPU_NONE, BITAXON_MODEL_NO_MMAP);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_all), cmocka_unit_test(test_without_mapping) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
