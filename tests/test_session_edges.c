/* SPDX-License-Identifier: Apache-2.0 */
/* test_session_edges.c - where sessions once promised more than they held: a fingerprint that
 * knows the configuration, automatic checkpoints under a ceiling, a rewind with nothing
 * to allocate, a cancel that comes too late, many experts, words to a watching host, accuracies. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <bitaxon/bitaxon.h>

#include "call_fixture.h"

static char scratch[64];
static int32_t text[4096];

static int setup(void **state)
{
    (void)state;
    snprintf(scratch, sizeof scratch, "/tmp/bitaxon-edges-%d", (int)getpid());
    for (int i = 0; i < 4096; i++)
        text[i] = (int32_t)((uint32_t)i * 2654435761u >> 8) % 96;
    char command[80];
    snprintf(command, sizeof command, "mkdir -p %s", scratch);
    return system(command);
}

static int teardown(void **state)
{
    (void)state;
    char command[80];
    snprintf(command, sizeof command, "rm -rf %s", scratch);
    return system(command);
}

/* Counts, and refuses everything while `refuse` is set. */
static int allocations, refuse;

static void *counted_alloc(void *user, size_t size, size_t align)
{
    (void)user;
    allocations++;
    void *ptr = NULL;
    return refuse || posix_memalign(&ptr, align, size) != 0 ? NULL : ptr;
}

static void counted_free(void *user, void *ptr, size_t size, size_t align)
{
    (void)user;
    (void)size;
    (void)align;
    free(ptr);
}

static const bitaxon_host host = { .struct_size = sizeof host, .alloc = counted_alloc, .free = counted_free };

static bitaxon_model *open_model(const char *path, uint64_t max_bytes)
{
    bitaxon_model_params params = {
        .struct_size = sizeof params, .path = path, .host = &host, .threads = 2, .max_bytes = max_bytes
    };
    bitaxon_model *model;
    OK(bitaxon_model_open(&params, &model, &error));
    return model;
}

static void test_fingerprint_knows_the_configuration(void **state)
{
    (void)state;
    char packed[96], other[96], file[96], command[640];
    snprintf(packed, sizeof packed, "%s/packed", scratch);
    snprintf(other, sizeof other, "%s/other", scratch);
    snprintf(file, sizeof file, "%s/cache", scratch);
    bitaxon_convert_params make = { .struct_size = sizeof make, .input = "tests/golden/tiny-q4", .output = packed };
    OK(bitaxon_model_pack(&make, &error));
    snprintf(command, sizeof command,
             "cp -r %s %s && sed -i 's/\"swa_window_size\": *16/\"swa_window_size\": 8/' %s/config.json && grep -q ': "
             "*8,' %s/config.json",
             packed, other, other, other);
    assert_int_equal(system(command), 0);
    const char *paths[3] = { "tests/golden/tiny-q4", packed, other };
    const bitaxon_status expected[3] = { BITAXON_OK, BITAXON_OK, BITAXON_MISMATCH };
    for (int i = 0; i < 3; i++) {
        bitaxon_model *model = open_model(paths[i], 0);
        bitaxon_session *session;
        OK(bitaxon_session_create(model, NULL, &session, &error));
        if (i == 0) {
            OK(bitaxon_session_prefill(session, text, 50, &error));
            OK(bitaxon_cache_save(bitaxon_session_cache(session), file, &error));
        }
        assert_int_equal(bitaxon_cache_load(bitaxon_session_cache(session), file, &error), expected[i]);
        bitaxon_session_free(session);
        bitaxon_model_free(model);
    }
}

/* Whatever room a ceiling leaves for automatic checkpoints, the read itself succeeds. */
static void test_automatic_checkpoints_give_way(void **state)
{
    (void)state;
    bitaxon_cache_params cache = { .struct_size = sizeof cache, .checkpoint_interval = 100, .max_tokens = 4096 };
    bitaxon_session_params sp = { .struct_size = sizeof sp, .cache_params = &cache };
    bitaxon_session *session;
    bitaxon_model *model = open_model("tests/golden/tiny-fp32", 0);
    int64_t used, mapped;
    OK(bitaxon_session_create(model, &sp, &session, &error));
    OK(bitaxon_model_info_int(model, "bytes_used", &used, &error));
    OK(bitaxon_model_info_int(model, "mapped_bytes", &mapped, &error));
    bitaxon_session_free(session);
    bitaxon_model_free(model);
    for (int64_t more = 65536; more < 1 << 20; more += 65536) {
        model = open_model("tests/golden/tiny-fp32", (uint64_t)(used + mapped + more));
        OK(bitaxon_session_create(model, &sp, &session, &error));
        OK(bitaxon_session_prefill(session, text, 4000, &error));
        assert_int_equal(bitaxon_session_position(session), 4000);
        bitaxon_session_free(session);
        bitaxon_model_free(model);
    }
}

static void test_rewind_needs_no_memory(void **state)
{
    (void)state;
    bitaxon_model *model = open_model("tests/golden/tiny-fp32", 0);
    bitaxon_session *session;
    int32_t token;
    OK(bitaxon_session_create(model, NULL, &session, &error));
    OK(bitaxon_session_prefill(session, text, 80, &error));
    OK(bitaxon_cache_checkpoint(bitaxon_session_cache(session), &error));
    for (int round = 0; round < 20; round++) {
        OK(bitaxon_session_decode(session, &token, &error));
        if (round == 0)
            allocations = 0;
        refuse = 1;
        OK(bitaxon_session_rewind(session, 80, &error));
        refuse = 0;
    }
    assert_int_equal(allocations, 0);
    bitaxon_session_free(session);
    bitaxon_model_free(model);
}

typedef struct lateness {
    bitaxon_session *session;
    int left;
} lateness;

static int32_t cancel_at_last(void *user, const bitaxon_generated *step)
{
    lateness *l = user;
    if (step->token >= 0 && --l->left == 0)
        bitaxon_session_cancel(l->session);
    return 0;
}

static void test_late_cancel_is_spent(void **state)
{
    (void)state;
    bitaxon_model *model = open_model("tests/golden/tiny-fp32", 0);
    bitaxon_session *session;
    OK(bitaxon_session_create(model, NULL, &session, &error));
    OK(bitaxon_session_prefill(session, text, 10, &error));
    lateness l = { session, 5 };
    bitaxon_generate_params p = { .struct_size = sizeof p, .max_tokens = 5, .on_token = cancel_at_last, .user = &l };
    OK(bitaxon_session_generate(session, &p, NULL, &error));
    OK(bitaxon_session_prefill(session, text, 10, &error)); /* another call, not meant */
    bitaxon_session_cancel(session);                          /* none is running: the next one */
    assert_int_equal(bitaxon_session_prefill(session, text, 10, &error), BITAXON_CANCELLED);
    OK(bitaxon_session_prefill(session, text, 10, &error));
    bitaxon_generate_result short_result = { .struct_size = 0 };
    uint64_t before = bitaxon_session_position(session);
    assert_int_equal(bitaxon_session_generate(session, &p, &short_result, &error), BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_session_position(session), before);
    bitaxon_session_free(session);
    bitaxon_model_free(model);
}

/* A clock that cancels a session when it is read for the Nth time. */
static struct {
    bitaxon_session *session;
    uint64_t time;
    int reads_left; /* 0: it does not */
} meddler;

static uint64_t meddling_clock(void *user)
{
    (void)user;
    if (meddler.reads_left > 0 && --meddler.reads_left == 0)
        bitaxon_session_cancel(meddler.session);
    return meddler.time += 1000;
}

/* A decode reads the clock when it begins and when its token is read: at the second it is too late. */
static void test_late_cancel_of_decode_is_spent(void **state)
{
    (void)state;
    bitaxon_host host = { .struct_size = sizeof host, .now_ns = meddling_clock };
    bitaxon_model_params params = { .struct_size = sizeof params, .path = "tests/golden/tiny-fp32", .host = &host };
    bitaxon_model *model;
    int32_t token;
    OK(bitaxon_model_open(&params, &model, &error));
    OK(bitaxon_session_create(model, NULL, &meddler.session, &error));
    OK(bitaxon_session_prefill(meddler.session, text, 10, &error));
    meddler.reads_left = 2;
    OK(bitaxon_session_decode(meddler.session, &token, &error));
    assert_int_equal(meddler.reads_left, 0);
    OK(bitaxon_session_decode(meddler.session, &token, &error));
    bitaxon_session_free(meddler.session);
    bitaxon_model_free(model);
}

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* All of many experts: routing looks at each pick once, not at each pair of picks. */
static void test_many_experts(void **state)
{
    (void)state;
    char path[96];
    snprintf(path, sizeof path, "%s/experts", scratch);
    bitaxon_convert_params make = {
        .struct_size = sizeof make,
        .output = path,
        .format = "f32",
        .config_json =
            "{\"vocab_size\": 8, \"hidden_dim\": 1, \"num_layers\": 1, \"num_heads\": 1, \"d_source_model\": 1,"
            " \"ssm_d_state\": 1, \"ssm_d_conv\": 1, \"ssm_expand\": 1, \"moe_num_experts\": 2048,"
            " \"moe_top_k\": 2048, \"moe_intermediate_dim\": 1, \"max_seq_len\": 64, \"swa_window_size\": 8}"
    };
    OK(bitaxon_model_new(&make, &error));
    bitaxon_model *model = open_model(path, 0);
    bitaxon_session *session;
    OK(bitaxon_session_create(model, NULL, &session, &error));
    int32_t token = 3;
    uint64_t began = now_ms();
    OK(bitaxon_session_prefill(session, &token, 1, &error));
    assert_true(now_ms() - began < 1500); /* k * k * X took several seconds */
    bitaxon_session_free(session);
    bitaxon_model_free(model);
}

typedef struct watch {
    uint64_t done, calls;
} watch;

static int32_t watching(void *user, const bitaxon_progress *progress)
{
    watch *w = user;
    assert_true(progress->total == 1000 && progress->done <= 1000 && progress->done >= w->done);
    assert_int_equal(progress->stage, BITAXON_STAGE_PREFILL);
    w->done = progress->done;
    w->calls++;
    return 0;
}

/* A watching host changes the tiles, not the bits. */
static void test_watched_read(void **state)
{
    (void)state;
    bitaxon_model *model = open_model("tests/golden/tiny-q4", 0);
    static float logits[2][1000 * 96];
    for (int watched = 0; watched < 2; watched++) {
        watch w = { 0, 0 };
        bitaxon_session_params sp = { .struct_size = sizeof sp,
                                      .progress = watched ? watching : NULL,
                                      .progress_user = &w };
        bitaxon_session *session;
        OK(bitaxon_session_create(model, &sp, &session, &error));
        OK(bitaxon_session_evaluate(session, text, 1000, logits[watched], &error));
        if (watched)
            assert_true(w.done == 1000 && w.calls > 20);
        bitaxon_session_free(session);
    }
    assert_memory_equal(logits[0], logits[1], sizeof logits[0]);
    bitaxon_model_free(model);
}

/* The accuracy asked for is the one in use, is refused when unknown, and matters: products of the
 * 4-bit model differ between the three, within what each promises; those of the float one do not. */
static void test_accuracy(void **state)
{
    (void)state;
    static const char *const names[] = { "", "exact", "near", "fast" };
    static const double bounds[] = { 0, 0, 5e-4, 0.05 };
    static float logits[4][20 * 96];
    bitaxon_model_params params = { .struct_size = sizeof params, .path = "tests/golden/tiny-q4", .threads = 2 };
    bitaxon_cache_params cache = { .struct_size = sizeof cache, .kv_type = BITAXON_KV_F32 };
    bitaxon_session_params session_params = { .struct_size = sizeof session_params, .cache_params = &cache };
    bitaxon_model *model;
    for (int which = 0; which < 2; which++) {
        params.path = which == 0 ? "tests/golden/tiny-q4" : "tests/golden/tiny-fp32";
        for (int32_t accuracy = BITAXON_ACCURACY_DEFAULT; accuracy <= BITAXON_ACCURACY_FAST; accuracy++) {
            bitaxon_session *session;
            char name[16];
            params.accuracy = accuracy;
            OK(bitaxon_model_open(&params, &model, &error));
            OK(bitaxon_model_info_text(model, "accuracy", name, sizeof name, NULL, &error));
            int64_t features;
            OK(bitaxon_model_info_int(model, "cpu_features", &features, &error));
            int32_t used = accuracy != BITAXON_ACCURACY_DEFAULT ? accuracy
                           : features != 0                      ? BITAXON_ACCURACY_NEAR
                                                                : BITAXON_ACCURACY_EXACT;
            assert_string_equal(name, names[used]);
            OK(bitaxon_session_create(model, &session_params, &session, &error));
            OK(bitaxon_session_evaluate(session, text, 20, logits[accuracy], &error));
            bitaxon_session_free(session);
            bitaxon_model_free(model);
        }
        for (int accuracy = BITAXON_ACCURACY_NEAR; accuracy <= BITAXON_ACCURACY_FAST; accuracy++) {
            double worst = 0, largest = 0;
            for (int i = 0; i < 20 * 96; i++) {
                double e = fabs((double)logits[accuracy][i] - (double)logits[BITAXON_ACCURACY_EXACT][i]);
                worst = e > worst ? e : worst;
                largest = fmax(largest, fabs((double)logits[BITAXON_ACCURACY_EXACT][i]));
            }
            print_message("model %d, %s: largest difference %.3g of %.3g\n", which, names[accuracy], worst, largest);
            assert_true(which == 1 ? worst == 0 : worst > 0 && worst <= bounds[accuracy] * largest);
        }
    }
    params.accuracy = 4;
    assert_int_equal(bitaxon_model_open(&params, &model, &error), BITAXON_INVALID_ARGUMENT);
    params.accuracy = -1;
    assert_int_equal(bitaxon_model_open(&params, &model, &error), BITAXON_INVALID_ARGUMENT);
    params.accuracy = 0;
    params.reserved0 = 1;
    assert_int_equal(bitaxon_model_open(&params, &model, &error), BITAXON_UNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fingerprint_knows_the_configuration),
        cmocka_unit_test(test_automatic_checkpoints_give_way),
        cmocka_unit_test(test_rewind_needs_no_memory),
        cmocka_unit_test(test_late_cancel_is_spent),
        cmocka_unit_test(test_late_cancel_of_decode_is_spent),
        cmocka_unit_test(test_many_experts),
        cmocka_unit_test(test_watched_read),
        cmocka_unit_test(test_accuracy),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
