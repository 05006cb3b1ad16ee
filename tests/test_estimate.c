/* SPDX-License-Identifier: Apache-2.0 */
/* test_estimate.c - what bitaxon_model_estimate promises against what the host's allocator
 * sees: never more, and at least 98 % of it; the ceiling at every size; and no allocation
 * at all per decoded token. */
#include "call_fixture.h"
#include "fault_files.h"
#include "fault_host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *root; /* folder of the models made here */

static int make_models(void **state)
{
    (void)state;
    char tokenizer[512];
    root = make_folder();
    snprintf(tokenizer, sizeof tokenizer, "%s", in_folder(root, "tokenizer"));
    new_model(in_folder(root, "source"), small_config("\"num_layers\": 3"), NULL, NULL);
    pack_model("tests/golden/tiny-q4", in_folder(root, "packed"));
    pack_model("tests/golden/tiny-fp32", in_folder(root, "packed-fp32"));
    assert_int_equal(remove(in_folder(root, "source/config.json")), 0);
    write_tokenizer(in_folder(root, "source"));
    new_model(tokenizer, small_config("\"vocab_size\": 300, \"max_seq_len\": 4096"), NULL, in_folder(root, "source"));
    quantize_model("tests/golden/tiny-fp32", in_folder(root, "nf4"), "nf4");
    new_model(in_folder(root, "wide"),
              small_config("\"vocab_size\": 1000, \"num_layers\": 7, \"hidden_dim\": 96, \"num_heads\": 3, "
                           "\"d_source_model\": 80, \"ssm_d_state\": 5, \"ssm_d_conv\": 3, \"ssm_expand\": 3, "
                           "\"swa_window_size\": 70, \"max_seq_len\": 2000, \"moe_num_experts\": 5, "
                           "\"moe_top_k\": 3, \"moe_intermediate_dim\": 56, \"moe_shared_expert\": false"),
              "f16", NULL);
    new_model(in_folder(root, "untied"),
              small_config("\"vocab_size\": 200, \"num_layers\": 2, \"weight_tying\": false, \"final_norm\": true, "
                           "\"max_seq_len\": 300"),
              "affine4", NULL);
    new_model(in_folder(root, "one-layer"), small_config("\"num_layers\": 1, \"max_seq_len\": 50"), "bf16", NULL);
    return 0;
}

static int remove_models(void **state)
{
    (void)state;
    remove_folder(root);
    return 0;
}

typedef struct trial {
    const char *name; /* a golden folder, or one below root */
    bool golden;
    uint32_t flags, threads;
    int32_t kv_type;
    uint64_t max_tokens;
} trial;

static const trial trials[] = {
    { "tests/golden/tiny-fp32", true, 0, 1, BITAXON_KV_F16, 0 },
    { "tests/golden/tiny-fp32", true, 0, 3, BITAXON_KV_F32, 512 },
    { "tests/golden/tiny-fp32", true, BITAXON_MODEL_NO_MMAP, 2, BITAXON_KV_F16, 4096 },
    { "tests/golden/tiny-q4", true, 0, 1, BITAXON_KV_F16, 0 },
    { "tests/golden/tiny-q4", true, BITAXON_MODEL_NO_MMAP, 4, BITAXON_KV_F32, 1000 },
    { "packed", false, 0, 2, BITAXON_KV_F16, 4096 },
    { "packed", false, BITAXON_MODEL_NO_MMAP, 2, BITAXON_KV_F16, 4096 },
    { "packed-fp32", false, 0, 1, BITAXON_KV_F16, 4096 },
    { "nf4", false, 0, 2, BITAXON_KV_F16, 4096 },
    { "nf4", false, 0, 2, BITAXON_KV_I8, 4096 },
    { "nf4", false, 0, 1, BITAXON_KV_Q4, 4096 },
    { "packed", false, 0, 2, BITAXON_KV_I8, 0 },
    { "packed", false, BITAXON_MODEL_NO_MMAP, 2, BITAXON_KV_Q4, 1000 },
    { "tests/golden/tiny-fp32", true, 0, 2, BITAXON_KV_I8, 4096 },
    { "tests/golden/tiny-fp32", true, 0, 2, BITAXON_KV_Q4, 4096 },
    { "nf4", false, BITAXON_MODEL_NO_MMAP, 2, BITAXON_KV_F16, 4096 },
    { "tokenizer", false, 0, 2, BITAXON_KV_F16, 0 },
    { "tokenizer", false, BITAXON_MODEL_NO_TOKENIZER, 2, BITAXON_KV_F16, 0 },
    { "wide", false, 0, 2, BITAXON_KV_F16, 0 },
    { "wide", false, BITAXON_MODEL_NO_MMAP, 1, BITAXON_KV_F32, 2000 },
    { "untied", false, 0, 2, BITAXON_KV_F16, 0 },
    { "one-layer", false, 0, 1, BITAXON_KV_F16, 0 },
};
enum { TRIALS = sizeof trials / sizeof trials[0] };

static bitaxon_model_params params_for(const trial *t, fault_host *fault)
{
    return (bitaxon_model_params){ .struct_size = sizeof(bitaxon_model_params),
                                   .flags = t->flags,
                                   .threads = t->threads,
                                   .path = t->golden ? t->name : in_folder(root, t->name),
                                   .host = &fault->host };
}

static int64_t info(const bitaxon_model *model, const char *key)
{
    int64_t value = -1;
    OK(bitaxon_model_info_int(model, key, &value, &error));
    return value;
}

/* promised >= real >= 98 % of promised */
static void within(const trial *t, const char *what, uint64_t promised, uint64_t real)
{
    if (real > promised || (double)real < 0.98 * (double)promised)
        fail_msg("%s (flags %u, %u threads): %s: %llu promised, %llu used", t->name, t->flags, t->threads, what,
                 (unsigned long long)promised, (unsigned long long)real);
}

static void same(const trial *t, const char *what, uint64_t expected, int64_t found)
{
    if (expected != (uint64_t)found)
        fail_msg("%s (flags %u): %s: %llu expected, %lld found", t->name, t->flags, what, (unsigned long long)expected,
                 (long long)found);
}

static void read_tokens(bitaxon_session *session, uint64_t count, uint64_t vocab)
{
    int32_t tokens[97];
    while (count > 0) {
        size_t n = count < 97 ? (size_t)count : 97;
        for (size_t i = 0; i < n; i++)
            tokens[i] = (int32_t)((i * 31 + count) % vocab);
        OK(bitaxon_session_prefill(session, tokens, n, &error));
        count -= n;
    }
}

static void test_promises(void **state)
{
    (void)state;
    for (int i = 0; i < TRIALS; i++) {
        const trial *t = &trials[i];
        fault_host fault;
        fault_host_init(&fault);
        bitaxon_model_params params = params_for(t, &fault);
        bitaxon_cache_params cache = { .struct_size = sizeof cache,
                                       .kv_type = t->kv_type,
                                       .max_tokens = t->max_tokens };
        bitaxon_estimate e = { .struct_size = sizeof e };
        OK(bitaxon_model_estimate(&params, &cache, &e, &error));
        assert_string_equal(fault_host_balance(&fault), "");

        bitaxon_model *model;
        bitaxon_session *session;
        atomic_store(&fault.peak, 0);
        OK(bitaxon_model_open(&params, &model, &error));
        uint64_t peak = (uint64_t)atomic_load(&fault.peak), used = (uint64_t)atomic_load(&fault.bytes);
        within(t, "private bytes of the model", e.model_bytes, used);
        if (peak > e.load_peak_bytes || (uint64_t)info(model, "bytes_peak") > e.load_peak_bytes)
            fail_msg("%s (flags %u): load peak: %llu promised, %llu allocated, %lld accounted", t->name, t->flags,
                     (unsigned long long)e.load_peak_bytes, (unsigned long long)peak,
                     (long long)info(model, "bytes_peak"));
        if ((uint64_t)info(model, "bytes_peak") < e.load_peak_bytes / 2)
            fail_msg("%s: load peak of %llu promised, %lld accounted", t->name, (unsigned long long)e.load_peak_bytes,
                     (long long)info(model, "bytes_peak"));
        same(t, "bytes_used", used, info(model, "bytes_used"));
        same(t, "mapped_bytes", e.mapped_bytes, info(model, "mapped_bytes"));
        same(t, "parameters", e.parameters, info(model, "parameters"));
        same(t, "active_parameters", e.active_parameters, info(model, "active_parameters"));
        if (t->flags & BITAXON_MODEL_NO_MMAP)
            assert_int_equal(e.mapped_bytes, 0);

        bitaxon_session_params sp = { .struct_size = sizeof sp, .cache_params = &cache };
        OK(bitaxon_session_create(model, &sp, &session, &error));
        uint64_t with = (uint64_t)atomic_load(&fault.bytes);
        within(t, "session and cache", e.session_bytes + e.cache_bytes, with - used);

        uint64_t window = (uint64_t)info(model, "swa_window_size"), most = (uint64_t)info(model, "max_seq_len");
        uint64_t vocab = (uint64_t)info(model, "vocab_size");
        if (t->max_tokens != 0)
            most = t->max_tokens;
        uint64_t count = 3 * window + 200 < most ? 3 * window + 200 : most;
        atomic_store(&fault.peak, 0);
        read_tokens(session, count, vocab);
        peak = (uint64_t)atomic_load(&fault.peak);
        if (peak != 0 || (uint64_t)atomic_load(&fault.bytes) != with) /* reading takes nothing */
            fail_msg("%s: %llu before reading, then %lld, at most %llu", t->name, (unsigned long long)with,
                     (long long)atomic_load(&fault.bytes), (unsigned long long)peak);

        /* A checkpoint, gone on from: at most what is said, the window's own pages aside. */
        uint64_t before = (uint64_t)atomic_load(&fault.bytes);
        if (count + 1 < most) {
            OK(bitaxon_cache_checkpoint(bitaxon_session_cache(session), &error));
            read_tokens(session, 1, vocab);
            uint64_t after = (uint64_t)atomic_load(&fault.bytes);
            assert_true(after > before);
            if (after - before > e.checkpoint_bytes + 1024)
                fail_msg("%s: a checkpoint takes %llu, %llu promised", t->name, (unsigned long long)(after - before),
                         (unsigned long long)e.checkpoint_bytes);
        }
        bitaxon_session_free(session);
        bitaxon_model_free(model);
        assert_string_equal(fault_host_balance(&fault), "");
    }
}

/* Each ceiling below the need refuses with numbers and is never passed; at the need it opens. */
static void test_ceiling(void **state)
{
    (void)state;
    for (int i = 0; i < TRIALS; i++) {
        const trial *t = &trials[i];
        fault_host fault;
        fault_host_init(&fault);
        bitaxon_model_params params = params_for(t, &fault);
        bitaxon_cache_params cache = { .struct_size = sizeof cache,
                                       .kv_type = t->kv_type,
                                       .max_tokens = t->max_tokens };
        bitaxon_estimate e = { .struct_size = sizeof e };
        OK(bitaxon_model_estimate(&params, &cache, &e, &error));
        uint64_t total = e.model_bytes + e.session_bytes + e.cache_bytes;
        uint64_t need = e.mapped_bytes + (total > e.load_peak_bytes ? total : e.load_peak_bytes);
        bool opened_once = false;
        for (int step = 1; step <= 60; step++) {
            bitaxon_model *model = (bitaxon_model *)&fault;
            bitaxon_session *session = NULL;
            params.max_bytes = step == 60 ? need : need / 60 * (uint64_t)step + 1;
            fault.ceiling = (int64_t)params.max_bytes;
            error.message[0] = '\0';
            bitaxon_status status = bitaxon_model_open(&params, &model, &error);
            if (status == BITAXON_OK) {
                bitaxon_session_params sp = { .struct_size = sizeof sp, .cache_params = &cache };
                opened_once = true;
                uint64_t mapped = (uint64_t)info(model, "mapped_bytes");
                fault.ceiling = (int64_t)(params.max_bytes - mapped);
                status = bitaxon_session_create(model, &sp, &session, &error);
                if (status == BITAXON_OK)
                    assert_int_equal(bitaxon_session_position(session), 0);
                else
                    assert_null(session);
            } else {
                assert_null(model);
            }
            if (status == BITAXON_OK) {
                if (step < 60) /* the promise of the load's peak may be a little above it */
                    assert_true(params.max_bytes >= e.mapped_bytes + total * 98 / 100);
            } else {
                assert_int_equal(status, BITAXON_LIMIT);
                assert_true(step < 60);
                char digits[24];
                snprintf(digits, sizeof digits, "%llu", (unsigned long long)params.max_bytes);
                if (strstr(error.message, digits) == NULL)
                    fail_msg("%s: no ceiling %s in: %s", t->name, digits, error.message);
            }
            bitaxon_session_free(session);
            bitaxon_model_free(model);
            assert_int_equal(atomic_load(&fault.above_ceiling), 0);
            assert_string_equal(fault_host_balance(&fault), "");
        }
        assert_true(opened_once);
    }
}

/* An estimate allocates little, however large the model is that it tells about. */
static void test_estimate_is_cheap(void **state)
{
    (void)state;
    for (int i = 0; i < TRIALS; i++) {
        fault_host fault;
        fault_host_init(&fault);
        bitaxon_model_params params = params_for(&trials[i], &fault);
        bitaxon_estimate e = { .struct_size = sizeof e };
        OK(bitaxon_model_estimate(&params, NULL, &e, &error));
        assert_true(atomic_load(&fault.peak) < 1 << 18);
        assert_string_equal(fault_host_balance(&fault), "");
    }
}

/* 200 tokens, across borders of pages and of the window: not one allocation. */
static void test_steady_state(void **state)
{
    (void)state;
    for (int i = 0; i < TRIALS; i++) {
        const trial *t = &trials[i];
        fault_host fault;
        fault_host_init(&fault);
        bitaxon_model_params params = params_for(t, &fault);
        bitaxon_model *model;
        bitaxon_session *session;
        OK(bitaxon_model_open(&params, &model, &error));
        uint64_t vocab = (uint64_t)info(model, "vocab_size"), most = (uint64_t)info(model, "max_seq_len");
        bitaxon_sampler_params sampler = { .struct_size = sizeof sampler,
                                           .temperature = 1.0f,
                                           .top_k = 40,
                                           .top_p = 0.9f,
                                           .repetition_penalty = 1.1f,
                                           .seed = 3 };
        bitaxon_session_params sp = { .struct_size = sizeof sp, .sampler = &sampler };
        OK(bitaxon_session_create(model, &sp, &session, &error));
        read_tokens(session, 3, vocab);
        fault_host_arm(&fault, 0, false);
        for (uint64_t n = 3; n < 203 && n < most; n++) {
            int32_t token;
            OK(bitaxon_session_decode(session, &token, &error));
        }
        assert_int_equal(atomic_load(&fault.allocations), 0);
        bitaxon_session_free(session);
        bitaxon_model_free(model);
    }
}

/* Generating takes memory once per call, not per token. */
static int32_t count_only(void *user, const bitaxon_generated *step)
{
    (void)step;
    (*(int *)user)++;
    return 0;
}

static void test_generate_allocations(void **state)
{
    (void)state;
    fault_host fault;
    fault_host_init(&fault);
    bitaxon_model_params params = { .struct_size = sizeof params, .path = in_folder(root, "tokenizer"), .threads = 1,
                                    .host = &fault.host };
    bitaxon_model *model;
    bitaxon_session *session;
    OK(bitaxon_model_open(&params, &model, &error));
    OK(bitaxon_session_create(model, NULL, &session, &error));
    read_tokens(session, 3, TOKENIZER_IDS);
    uint64_t first = 0;
    for (uint64_t n = 10; n <= 400; n *= 40) {
        const char *stop[] = { "never ever said" };
        int steps = 0;
        bitaxon_generate_params g = { .struct_size = sizeof g, .max_tokens = n, .stop = stop, .stop_count = 1,
                                      .flags = BITAXON_GENERATE_IGNORE_EOS, .top_logprobs = 5, .on_token = count_only,
                                      .user = &steps };
        bitaxon_generate_result r = { .struct_size = sizeof r };
        fault_host_arm(&fault, 0, false);
        OK(bitaxon_session_generate(session, &g, &r, &error));
        assert_int_equal(r.finish, BITAXON_FINISH_LENGTH);
        assert_true(steps >= (int)n);
        if (first == 0)
            first = atomic_load(&fault.allocations);
        assert_int_equal(atomic_load(&fault.allocations), first);
    }
    bitaxon_session_free(session);
    bitaxon_model_free(model);
    assert_string_equal(fault_host_balance(&fault), "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_promises), cmocka_unit_test(test_ceiling), cmocka_unit_test(test_estimate_is_cheap),
        cmocka_unit_test(test_steady_state), cmocka_unit_test(test_generate_allocations),
    };
    return cmocka_run_group_tests(tests, make_models, remove_models);
}
