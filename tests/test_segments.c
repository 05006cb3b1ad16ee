/* SPDX-License-Identifier: Apache-2.0 */
/* test_segments.c - several sequences in one pass: whatever their number, lengths and positions,
 * each gets the bits (logits, scan state, keys and values) that it gets alone. Passes are mixed
 * as a server mixes them: some sequences read a piece of a prompt while others decode. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/api.h"
#include "test_tiers.h"

enum { VOCAB = 96, SEQUENCES = 7, ROUNDS = 9 };

static const char *const paths[] = { "tests/golden/tiny-fp32", "tests/golden/tiny-q4" };
static const uint64_t tiers[] = TEST_TIERS;

/* Tokens that each sequence reads in each round: prompts, decoding, none; the sum of a round is at
 * most BXN_TILE, windows (16) and pages (64) are crossed at different times. */
static const uint32_t plan[ROUNDS][SEQUENCES] = {
    { 3, 20, 0, 1, 40, 64, 0 }, { 1, 1, 1, 1, 1, 1, 1 },    { 17, 2, 60, 1, 5, 1, 0 },
    { 0, 0, 1, 1, 0, 1, 0 },    { 1, 1, 1, 1, 20, 1, 70 },  { 1, 1, 1, 1, 1, 1, 1 },
    { 30, 1, 8, 2, 1, 3, 1 },   { 0, 0, 0, 0, 0, 0, 128 },  { 1, 1, 1, 1, 1, 1, 1 },
};

typedef struct sequence {
    bitaxon_cache *cache;
    bxn_state *spare;
    uint32_t read;
} sequence;

typedef struct world {
    bitaxon_model *model;
    bxn_workspace ws;
    bxn_exec exec;
    bitaxon_error error;
    sequence sequences[SEQUENCES];
    float logits[BXN_TILE * VOCAB];
} world;

static int32_t token_of(uint32_t sequence, uint32_t position)
{
    return (int32_t)((sequence * 7919u + position * 2654435761u + (position >> 3)) % VOCAB);
}

static void world_open(world *w, const char *path, uint64_t tier, int32_t accuracy, uint32_t threads, int32_t kv)
{
    memset(w, 0, sizeof *w);
    w->error = (bitaxon_error)BITAXON_ERROR_INIT;
    bitaxon_model_params params = { .struct_size = sizeof params, .path = path, .threads = threads, .cpu_mask = tier,
                                    .accuracy = accuracy };
    assert_int_equal(bitaxon_model_open(&params, &w->model, &w->error), BITAXON_OK);
    bxn_mem *mem = &w->model->mem;
    assert_int_equal(
        bxn_workspace_create(mem, &w->model->core.config, 512, bxn_model_tiles(&w->model->core), 0, &w->ws, &w->error),
        BITAXON_OK);
    w->exec =
        (bxn_exec){ .kernels = &w->model->core.kernels, .pool = w->model->core.pool, .ws = &w->ws, .error = &w->error };
    bitaxon_cache_params cache = { .struct_size = sizeof cache, .kv_type = kv, .max_tokens = 512 };
    for (int i = 0; i < SEQUENCES; i++) {
        assert_int_equal(bitaxon_cache_create(w->model, &cache, &w->sequences[i].cache, &w->error), BITAXON_OK);
        assert_int_equal(bxn_state_create(mem, &w->model->core, &w->sequences[i].spare, &w->error), BITAXON_OK);
    }
}

static void world_close(world *w)
{
    for (int i = 0; i < SEQUENCES; i++) {
        bxn_state_unref(&w->model->mem, &w->model->core, w->sequences[i].spare);
        bitaxon_cache_free(w->sequences[i].cache);
    }
    bxn_workspace_free(&w->model->mem, &w->ws);
    bitaxon_model_free(w->model);
}

/* One pass over the chosen sequences, counts[s] tokens of each; logits in w->logits. */
static void pass(world *w, const uint32_t *counts)
{
    bxn_segment segments[SEQUENCES];
    bxn_kv_view views[SEQUENCES];
    int32_t tokens[BXN_TILE];
    uint32_t n = 0, count = 0;
    for (uint32_t s = 0; s < SEQUENCES; s++) {
        if (counts[s] == 0)
            continue;
        bxn_cache *cache = &w->sequences[s].cache->core;
        assert_int_equal(bxn_cache_prepare(cache, counts[s], &w->error), BITAXON_OK);
        views[n] = (bxn_kv_view){ &cache->layout, cache->data, cache->first_page };
        segments[n] = (bxn_segment){ count, counts[s], cache->length, cache->state->scan,
                                     w->sequences[s].spare->scan, &views[n] };
        for (uint32_t t = 0; t < counts[s]; t++)
            tokens[count + t] = token_of(s, w->sequences[s].read + t);
        count += counts[s];
        n++;
    }
    if (n == 0)
        return;
    assert_int_equal(bxn_forward(&w->model->core, &w->exec, tokens, count, segments, n), BITAXON_OK);
    assert_int_equal(bxn_head(&w->model->core, &w->exec, 0, count, w->logits, VOCAB), BITAXON_OK);
    for (uint32_t s = 0; s < SEQUENCES; s++) {
        if (counts[s] == 0)
            continue;
        sequence *q = &w->sequences[s];
        int32_t mine[BXN_TILE];
        for (uint32_t t = 0; t < counts[s]; t++)
            mine[t] = token_of(s, q->read + t);
        bxn_cache_commit(&q->cache->core, mine, counts[s], BXN_PHASE_PREFILL, &q->spare);
        if (q->spare == NULL)
            assert_int_equal(bxn_state_create(&w->model->mem, &w->model->core, &q->spare, &w->error), BITAXON_OK);
        q->read += counts[s];
    }
}

static void check(const char *path, uint64_t tier, int32_t accuracy, uint32_t threads, int32_t kv)
{
    static world together, alone;
    world_open(&together, path, tier, accuracy, threads, kv);
    world_open(&alone, path, tier, accuracy, 1, kv);
    for (int round = 0; round < ROUNDS; round++) {
        pass(&together, plan[round]);
        uint32_t row = 0;
        for (int s = 0; s < SEQUENCES; s++) {
            uint32_t counts[SEQUENCES] = { 0 };
            counts[s] = plan[round][s];
            if (counts[s] == 0)
                continue;
            pass(&alone, counts);
            if (memcmp(together.logits + (size_t)row * VOCAB, alone.logits, counts[s] * VOCAB * sizeof(float)) != 0)
                fail_msg("%s, tier %llx, accuracy %d, round %d: sequence %d got other logits than alone", path,
                         (unsigned long long)tier, accuracy, round, s);
            row += counts[s];
        }
        for (int s = 0; s < SEQUENCES; s++) {
            const bxn_cache *a = &together.sequences[s].cache->core, *b = &alone.sequences[s].cache->core;
            assert_int_equal(a->length, b->length);
            assert_memory_equal(a->state->scan, b->state->scan, together.model->core.state_floats * sizeof(float));
            assert_int_equal(a->page_count, b->page_count);
            assert_int_equal(a->first_page, b->first_page);
        }
    }
    world_close(&alone);
    world_close(&together);
}

static void test_same_bits_together(void **state)
{
    (void)state;
    for (size_t tier = 0; tier < sizeof tiers / sizeof *tiers; tier++) {
        uint64_t needed = tiers[tier] & ~BITAXON_CPU_NONE;
        if ((bitaxon_cpu_features() & needed) != needed) {
            print_message("SKIP tier %llx: this CPU lacks it\n", (unsigned long long)needed);
            continue;
        }
        for (size_t which = 0; which < 2; which++) {
            check(paths[which], tiers[tier], BITAXON_ACCURACY_EXACT, 2, BITAXON_KV_F16);
            check(paths[which], tiers[tier], BITAXON_ACCURACY_EXACT, 5, BITAXON_KV_F32);
            check(paths[which], tiers[tier], BITAXON_ACCURACY_EXACT, 2, BITAXON_KV_I8);
            check(paths[which], tiers[tier], BITAXON_ACCURACY_EXACT, 5, BITAXON_KV_Q4);
            if (which == 1) {
                check(paths[which], tiers[tier], BITAXON_ACCURACY_NEAR, 2, BITAXON_KV_F16);
                check(paths[which], tiers[tier], BITAXON_ACCURACY_FAST, 3, BITAXON_KV_F16);
            }
        }
    }
}

/* Few tokens with so many picks that one slice of experts does not hold them. */
static void test_many_picks(void **state)
{
    (void)state;
    enum { LENGTH = 29 };
    char path[] = "/tmp/bitaxon-experts-XXXXXX", command[64];
    bitaxon_error error = BITAXON_ERROR_INIT;
    assert_non_null(mkdtemp(path));
    assert_int_equal(rmdir(path), 0); /* the name was wanted */
    bitaxon_convert_params p = { .struct_size = sizeof p, .output = path, .format = "affine4", .seed = 3 };
    p.config_json = "{\"vocab_size\": 96, \"hidden_dim\": 64, \"num_layers\": 3, \"num_heads\": 2, "
                    "\"d_source_model\": 64, \"ssm_d_state\": 3, \"ssm_d_conv\": 3, \"ssm_expand\": 2, "
                    "\"swa_window_size\": 16, \"moe_num_experts\": 64, \"moe_top_k\": 16, "
                    "\"moe_intermediate_dim\": 64, \"rms_norm_eps\": 1e-5}";
    bitaxon_status made = bitaxon_model_new(&p, &error);
    if (made != BITAXON_OK)
        fail_msg("%s", error.message);
    bitaxon_model_params params = { .struct_size = sizeof params, .path = path, .threads = 2 };
    bitaxon_model *model;
    assert_int_equal(bitaxon_model_open(&params, &model, &error), BITAXON_OK);
    int32_t ids[LENGTH];
    for (uint32_t i = 0; i < LENGTH; i++)
        ids[i] = token_of(1, i);
    float want[VOCAB];
    for (uint32_t piece = LENGTH; piece > 0; piece = piece == LENGTH ? 9 : piece - 1) {
        bitaxon_session *session;
        const float *got;
        assert_int_equal(bitaxon_session_create(model, NULL, &session, &error), BITAXON_OK);
        for (uint32_t at = 0; at < LENGTH; at += piece)
            assert_int_equal(
                bitaxon_session_prefill(session, ids + at, LENGTH - at < piece ? LENGTH - at : piece, &error),
                BITAXON_OK);
        assert_int_equal(bitaxon_session_logits(session, &got, &error), BITAXON_OK);
        if (piece == LENGTH)
            memcpy(want, got, sizeof want);
        assert_memory_equal(got, want, sizeof want);
        bitaxon_session_free(session);
    }
    bitaxon_model_free(model);
    snprintf(command, sizeof command, "rm -r '%s'", path);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_same_bits_together), cmocka_unit_test(test_many_picks) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
