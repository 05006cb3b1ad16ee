/* SPDX-License-Identifier: Apache-2.0 */
/* test_batch.c - sessions that decode together: each gets the tokens, logits and later states
 * that it gets alone, for any number and mixture of sessions, samplers, windows and threads;
 * and whatever goes wrong, for any of them, none has moved. */
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <bitaxon/bitaxon.h>

#include "call_fixture.h"
#include "fault_host.h"

enum { VOCAB = 96, MOST = BITAXON_BATCH_MAX, STEPS = 70, PROMPT = 200 };

static const char *const paths[] = { "tests/golden/tiny-fp32", "tests/golden/tiny-q4" };
static const uint64_t tiers[] = { BITAXON_CPU_NONE, BITAXON_CPU_AVX2, BITAXON_CPU_AVX2 | BITAXON_CPU_AVX512, 0 };

static bool tier_present(uint64_t tier)
{
    uint64_t needed = tier & ~BITAXON_CPU_NONE;
    return (bitaxon_cpu_features() & needed) == needed;
}

static bitaxon_model *open_model(const char *path, uint64_t tier, uint32_t threads, const bitaxon_host *host)
{
    bitaxon_model_params params = { .struct_size = sizeof params, .path = path, .threads = threads, .cpu_mask = tier,
                                    .host = host };
    bitaxon_model *model;
    OK(bitaxon_model_open(&params, &model, &error));
    return model;
}

/* Session i of a kind: prompts, samplers, KV types and sizes of context differ. */
static bitaxon_session *open_session(bitaxon_model *model, uint32_t i)
{
    static const bitaxon_logit_bias bias[2] = { { 5, -INFINITY }, { 9, 3.0f } };
    const bitaxon_sampler_params samplers[5] = {
        { .struct_size = sizeof *samplers },
        { .struct_size = sizeof *samplers, .temperature = 1.0f, .seed = 11 },
        { .struct_size = sizeof *samplers, .temperature = 0.8f, .top_k = 12, .top_p = 0.9f, .seed = 12 },
        { .struct_size = sizeof *samplers, .repetition_penalty = 1.3f, .repetition_window = 20 },
        { .struct_size = sizeof *samplers,
          .temperature = 2.0f,
          .min_p = 0.05f,
          .bias = bias,
          .bias_count = 2,
          .seed = 13 },
    };
    bitaxon_cache_params cache = { .struct_size = sizeof cache, .kv_type = i % 3 == 2 ? BITAXON_KV_F32 : BITAXON_KV_F16,
                                   .max_tokens = 300 + 10 * i, .checkpoint_interval = i % 4 == 1 ? 30 : 0 };
    bitaxon_session_params params = { .struct_size = sizeof params,
                                      .cache_params = &cache,
                                      .sampler = &samplers[i % 5] };
    int32_t prompt[PROMPT];
    uint32_t count = 1 + (i * 37u) % PROMPT;
    for (uint32_t t = 0; t < count; t++)
        prompt[t] = (int32_t)((i * 7919u + t * 2654435761u + (t >> 3)) % VOCAB);
    bitaxon_session *session;
    OK(bitaxon_session_create(model, &params, &session, &error));
    OK(bitaxon_session_prefill(session, prompt, count, &error));
    return session;
}

static const float *logits_of(const bitaxon_session *session)
{
    const float *logits;
    OK(bitaxon_session_logits(session, &logits, &error));
    return logits;
}

static void same_logits(const bitaxon_session *a, const bitaxon_session *b, uint32_t i, uint32_t step)
{
    if (memcmp(logits_of(a), logits_of(b), VOCAB * sizeof(float)) != 0)
        fail_msg("session %u, step %u: other logits than alone", i, step);
}

/* How many sessions decode together changes from step to step, and which come first. */
static void compare_with_alone(const char *path, uint64_t tier, uint32_t threads)
{
    bitaxon_model *model = open_model(path, tier, threads, NULL);
    bitaxon_session *together[MOST], *alone[MOST];
    for (uint32_t i = 0; i < MOST; i++) {
        together[i] = open_session(model, i);
        alone[i] = open_session(model, i);
    }
    for (uint32_t step = 0; step < STEPS; step++) {
        uint32_t count = 1 + step * 5 % MOST, first = step * 3 % MOST;
        bitaxon_session *list[MOST];
        int32_t tokens[MOST], token;
        for (uint32_t i = 0; i < count; i++)
            list[i] = together[(first + i) % MOST];
        OK(bitaxon_batch_decode(list, count, tokens, NULL, &error));
        for (uint32_t i = 0; i < count; i++) {
            uint32_t who = (first + i) % MOST;
            OK(bitaxon_session_decode(alone[who], &token, &error));
            if (tokens[i] != token)
                fail_msg("session %u, step %u: token %d, alone %d", who, step, tokens[i], token);
            same_logits(together[who], alone[who], who, step);
        }
    }
    for (uint32_t i = 0; i < MOST; i++) { /* each goes on alone, and back, from what the batch left */
        static const int32_t more[3] = { 4, 90, 17 };
        uint64_t position = bitaxon_session_position(together[i]);
        assert_int_equal(position, bitaxon_session_position(alone[i]));
        OK(bitaxon_session_prefill(together[i], more, 3, &error));
        OK(bitaxon_session_prefill(alone[i], more, 3, &error));
        same_logits(together[i], alone[i], i, STEPS);
        OK(bitaxon_session_rewind(together[i], position - 2, &error));
        OK(bitaxon_session_rewind(alone[i], position - 2, &error));
        same_logits(together[i], alone[i], i, STEPS + 1);
        bitaxon_session_free(together[i]);
        bitaxon_session_free(alone[i]);
    }
    bitaxon_model_free(model);
}

static void test_as_alone(void **state)
{
    (void)state;
    for (size_t which = 0; which < 2; which++)
        for (size_t tier = 0; tier < sizeof tiers / sizeof tiers[0]; tier++)
            if (tier_present(tiers[tier])) {
                compare_with_alone(paths[which], tiers[tier], 1);
                compare_with_alone(paths[which], tiers[tier], 3);
            }
}

/* Clones share pages and state with their origin; in one pass each makes its own. */
static void test_clones(void **state)
{
    (void)state;
    bitaxon_model *model = open_model(paths[1], 0, 2, NULL);
    bitaxon_session *origin = open_session(model, 1), *alone = open_session(model, 1), *list[4] = { origin };
    bitaxon_cache *clones[3];
    for (int i = 0; i < 3; i++) {
        OK(bitaxon_cache_clone(bitaxon_session_cache(origin), &clones[i], &error));
        bitaxon_session_params params = { .struct_size = sizeof params, .cache = clones[i] };
        OK(bitaxon_session_create(model, &params, &list[i + 1], &error));
        bitaxon_sampler_params sampler = { .struct_size = sizeof sampler,
                                           .temperature = 1.5f,
                                           .seed = 100u + (uint32_t)i };
        OK(bitaxon_session_set_sampler(list[i + 1], &sampler, &error));
    }
    int32_t tokens[4], token;
    bool apart = false;
    for (int step = 0; step < STEPS; step++) {
        OK(bitaxon_batch_decode(list, 4, tokens, NULL, &error));
        OK(bitaxon_session_decode(alone, &token, &error));
        assert_int_equal(tokens[0], token);
        same_logits(origin, alone, 0, (uint32_t)step);
        apart |= tokens[1] != tokens[0] && tokens[2] != tokens[1];
    }
    assert_true(apart);
    for (int i = 0; i < 4; i++)
        bitaxon_session_free(list[i]);
    for (int i = 0; i < 3; i++)
        bitaxon_cache_free(clones[i]);
    bitaxon_session_free(alone);
    bitaxon_model_free(model);
}

/* ---- what goes wrong ---------------------------------------------------------------------- */

typedef struct snapshot {
    uint64_t position;
    float logits[VOCAB];
    bitaxon_stats stats;
} snapshot;

static void take(bitaxon_session *const *list, uint32_t count, snapshot *out)
{
    for (uint32_t i = 0; i < count; i++) {
        out[i].position = bitaxon_session_position(list[i]);
        memcpy(out[i].logits, logits_of(list[i]), sizeof out[i].logits);
        out[i].stats = (bitaxon_stats){ .struct_size = sizeof out[i].stats };
        OK(bitaxon_session_stats(list[i], &out[i].stats, &error));
    }
}

static void unmoved(bitaxon_session *const *list, uint32_t count, const snapshot *before)
{
    snapshot now[MOST];
    take(list, count, now);
    if (memcmp(now, before, count * sizeof *now) != 0)
        fail_msg("a call that failed has changed a session");
}

static void test_refusals(void **state)
{
    (void)state;
    bitaxon_model *model = open_model(paths[1], 0, 1, NULL), *other = open_model(paths[1], 0, 1, NULL);
    bitaxon_session *list[MOST + 1], *foreign = open_session(other, 0), *fresh, *full;
    bitaxon_cache_params small = { .struct_size = sizeof small, .max_tokens = 4 };
    bitaxon_session_params params = { .struct_size = sizeof params, .cache_params = &small };
    static const int32_t four[4] = { 1, 2, 3, 4 };
    OK(bitaxon_session_create(model, &params, &fresh, &error));
    OK(bitaxon_session_create(model, &params, &full, &error));
    OK(bitaxon_session_prefill(full, four, 4, &error));
    for (uint32_t i = 0; i <= MOST; i++)
        list[i] = open_session(model, i);
    snapshot before[MOST];
    take(list, MOST, before);
    int32_t tokens[MOST + 1] = { -7, -7, -7, -7 };
    uint32_t failed = 99;

    assert_int_equal(bitaxon_batch_decode(NULL, 1, tokens, &failed, &error), BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_batch_decode(list, 1, NULL, &failed, &error), BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_batch_decode(list, 0, tokens, &failed, &error), BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_batch_decode(list, MOST + 1, tokens, &failed, &error), BITAXON_INVALID_ARGUMENT);
    assert_int_equal(failed, MOST + 1);
    const struct {
        bitaxon_session *session;
        bitaxon_status status;
        const char *word;
    } cases[] = {
        { NULL, BITAXON_INVALID_ARGUMENT, "session 2 is NULL" },
        { list[1], BITAXON_INVALID_ARGUMENT, "session 2 is session 1 again" },
        { foreign, BITAXON_MISMATCH, "session 2 is of another model" },
        { fresh, BITAXON_BAD_STATE, "session 2: nothing is read" },
        { full, BITAXON_LIMIT, "session 2: context: all 4 tokens" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bitaxon_session *mixed[4] = { list[0], list[1], cases[i].session, list[3] };
        failed = 99;
        assert_int_equal(bitaxon_batch_decode(mixed, 4, tokens, &failed, &error), cases[i].status);
        assert_int_equal(failed, 2);
        if (strstr(error.message, cases[i].word) == NULL)
            fail_msg("'%s' lacks '%s'", error.message, cases[i].word);
        unmoved(list, MOST, before);
    }
    /* every token forbidden: the sampler of one refuses */
    bitaxon_logit_bias none[VOCAB];
    for (int32_t i = 0; i < VOCAB; i++)
        none[i] = (bitaxon_logit_bias){ i, -INFINITY };
    bitaxon_sampler_params sampler = { .struct_size = sizeof sampler, .bias = none, .bias_count = VOCAB };
    OK(bitaxon_session_set_sampler(list[3], &sampler, &error));
    assert_int_equal(bitaxon_batch_decode(list, 4, tokens, &failed, &error), BITAXON_INVALID_ARGUMENT);
    assert_int_equal(failed, 3);
    unmoved(list, MOST, before);
    for (int i = 0; i < 4; i++)
        assert_int_equal(tokens[i], -7);

    bitaxon_session_free(foreign);
    bitaxon_session_free(fresh);
    bitaxon_session_free(full);
    for (uint32_t i = 0; i <= MOST; i++)
        bitaxon_session_free(list[i]);
    bitaxon_model_free(other);
    bitaxon_model_free(model);
}

/* Every allocation of steps of sessions fails once. Clones that stay hold on to the pages, so that
 * the sessions run out of their own. */
static void test_out_of_memory(void **state)
{
    (void)state;
    enum { COUNT = 3, HELD = 8 };
    fault_host fault;
    fault_host_init(&fault);
    bitaxon_model *model = open_model(paths[1], 0, 1, &fault.host);
    bitaxon_session *list[COUNT], *alone[COUNT];
    bitaxon_cache *clones[HELD][COUNT];
    uint64_t refusals = 0;
    for (uint32_t i = 0; i < COUNT; i++) {
        list[i] = open_session(model, 3 * i);
        alone[i] = open_session(model, 3 * i);
    }
    for (int step = 0; step < HELD; step++) {
        snapshot before[COUNT];
        int32_t tokens[COUNT], token;
        uint32_t failed;
        for (uint32_t i = 0; i < COUNT; i++)
            OK(bitaxon_cache_clone(bitaxon_session_cache(list[i]), &clones[step][i], &error));
        take(list, COUNT, before);
        for (uint64_t at = 1;; at++) {
            fault_host_arm(&fault, at, false);
            bitaxon_status status = bitaxon_batch_decode(list, COUNT, tokens, &failed, &error);
            fault_host_disarm(&fault);
            if (status == BITAXON_OK)
                break;
            assert_int_equal(status, BITAXON_OUT_OF_MEMORY);
            assert_true(failed < COUNT);
            unmoved(list, COUNT, before);
            refusals++;
            assert_true(at < 1000);
        }
        for (uint32_t i = 0; i < COUNT; i++) {
            OK(bitaxon_session_decode(alone[i], &token, &error));
            assert_int_equal(tokens[i], token);
            same_logits(list[i], alone[i], i, (uint32_t)step);
        }
    }
    assert_true(refusals >= COUNT);
    for (uint32_t i = 0; i < COUNT; i++) {
        for (int step = 0; step < HELD; step++)
            bitaxon_cache_free(clones[step][i]);
        bitaxon_session_free(list[i]);
        bitaxon_session_free(alone[i]);
    }
    bitaxon_model_free(model);
    assert_string_equal(fault_host_balance(&fault), "");
}

/* An executor that cancels a session, or fails, at its Nth call. */
static struct {
    uint64_t calls, cancel_at, fail_at;
    bitaxon_session *victim;
} executor;

static int32_t run_in_order(void *user, uint32_t count, void (*task)(void *context, uint32_t index), void *context)
{
    (void)user;
    executor.calls++;
    if (executor.calls == executor.fail_at)
        return 1;
    if (executor.calls == executor.cancel_at)
        bitaxon_session_cancel(executor.victim);
    for (uint32_t i = 0; i < count; i++)
        task(context, i);
    return 0;
}

static void test_cancel_and_executor(void **state)
{
    (void)state;
    enum { COUNT = 5 };
    bitaxon_host host = { .struct_size = sizeof host, .parallel_for = run_in_order };
    bitaxon_model *model = open_model(paths[1], 0, 1, &host);
    bitaxon_session *list[COUNT];
    int32_t tokens[COUNT];
    uint32_t failed;
    for (uint32_t i = 0; i < COUNT; i++)
        list[i] = open_session(model, i);
    memset(&executor, 0, sizeof executor);
    OK(bitaxon_batch_decode(list, COUNT, tokens, NULL, &error));
    uint64_t calls = executor.calls, late = 0;
    assert_true(calls > 10);
    snapshot before[COUNT];
    take(list, COUNT, before);
    for (uint64_t at = 1; at <= calls; at++) {
        memset(&executor, 0, sizeof executor);
        executor.fail_at = at;
        assert_int_equal(bitaxon_batch_decode(list, COUNT, tokens, &failed, &error), BITAXON_SYSTEM);
        assert_int_equal(failed, COUNT);
        unmoved(list, COUNT, before);
    }
    for (uint64_t at = 1; at <= calls; at++) {
        uint32_t who = (uint32_t)(at % COUNT);
        memset(&executor, 0, sizeof executor);
        executor.cancel_at = at;
        executor.victim = list[who];
        bitaxon_status status = bitaxon_batch_decode(list, COUNT, tokens, &failed, &error);
        if (status == BITAXON_OK) { /* too late for this call; it must not hit the next */
            late++;
            take(list, COUNT, before);
            continue;
        }
        assert_int_equal(status, BITAXON_CANCELLED);
        assert_int_equal(failed, who);
        unmoved(list, COUNT, before);
    }
    assert_true(late < 8);
    memset(&executor, 0, sizeof executor);
    bitaxon_session_cancel(list[4]); /* before the call */
    assert_int_equal(bitaxon_batch_decode(list, COUNT, tokens, &failed, &error), BITAXON_CANCELLED);
    assert_int_equal(failed, 4);
    OK(bitaxon_batch_decode(list, COUNT, tokens, &failed, &error));
    OK(bitaxon_session_decode(list[4], tokens, &error));
    for (uint32_t i = 0; i < COUNT; i++)
        bitaxon_session_free(list[i]);
    bitaxon_model_free(model);
}

static void test_stats(void **state)
{
    (void)state;
    bitaxon_model *model = open_model(paths[0], 0, 2, NULL);
    bitaxon_session *list[2] = { open_session(model, 0), open_session(model, 1) };
    int32_t tokens[2];
    for (int i = 0; i < 9; i++)
        OK(bitaxon_batch_decode(list, 2, tokens, NULL, &error));
    for (int i = 0; i < 2; i++) {
        bitaxon_stats stats = { .struct_size = sizeof stats };
        OK(bitaxon_session_stats(list[i], &stats, &error));
        assert_int_equal(stats.decode_tokens, 9);
        assert_true(stats.decode_ns > 0);
        assert_true(stats.first_token_ns > 0);
        bitaxon_session_free(list[i]);
    }
    bitaxon_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_as_alone),      cmocka_unit_test(test_clones),
        cmocka_unit_test(test_refusals),      cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_cancel_and_executor), cmocka_unit_test(test_stats),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
