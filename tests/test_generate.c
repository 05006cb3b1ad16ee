/* SPDX-License-Identifier: Apache-2.0 */
/* test_generate.c - the generation loop on a small random model with the project's own
 * vocabulary: text streams, stop strings across token borders, end tokens, limits,
 * log-probabilities, callbacks, cancel, and the same text again from the same seed. */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <bitaxon/bitaxon.h>

#include "call_fixture.h"

static const char config[] =
    "{\"vocab_size\": 4096, \"hidden_dim\": 64, \"num_layers\": 3, \"num_heads\": 2, \"d_source_model\": 64,"
    " \"ssm_d_state\": 8, \"ssm_d_conv\": 4, \"ssm_expand\": 2, \"swa_window_size\": 32, \"moe_num_experts\": 4,"
    " \"moe_top_k\": 2, \"moe_intermediate_dim\": 64, \"max_seq_len\": 400}";

static char directory[64];
static bitaxon_model *model;

static int setup(void **state)
{
    (void)state;
    snprintf(directory, sizeof directory, "/tmp/bitaxon-generate-%d", (int)getpid());
    bitaxon_convert_params make = { .struct_size = sizeof make,
                                    .config_json = config,
                                    .output = directory,
                                    .format = "f32",
                                    .seed = 11,
                                    .tokenizer = "examples/models/tokenizer" };
    OK(bitaxon_model_new(&make, &error));
    bitaxon_model_params params = { .struct_size = sizeof params, .path = directory, .threads = 2 };
    OK(bitaxon_model_open(&params, &model, &error));
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char command[128];
    bitaxon_model_free(model);
    snprintf(command, sizeof command, "rm -rf %s", directory);
    return system(command);
}

enum { MOST = 300 };

/* What a run handed out. */
typedef struct record {
    char text[16384];
    size_t size;
    int32_t tokens[MOST];
    float logprobs[MOST];
    bitaxon_candidate top[MOST][5];
    uint64_t count;
    uint64_t stop_after; /* callback asks to stop after so many tokens */
    uint64_t cancel_after;
    bitaxon_session *session;
} record;

static bool valid_utf8(const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        unsigned char c = (unsigned char)s[i];
        size_t length = c < 0x80                ? 1
                        : c >= 0xC2 && c < 0xE0 ? 2
                        : c >= 0xE0 && c < 0xF0 ? 3
                        : c >= 0xF0 && c < 0xF5 ? 4
                                                : 0;
        if (length == 0 || i + length > n)
            return false;
        for (size_t j = 1; j < length; j++)
            if (((unsigned char)s[i + j] & 0xC0) != 0x80)
                return false;
        i += length;
    }
    return true;
}

static int32_t on_token(void *user, const bitaxon_generated *step)
{
    record *r = user;
    assert_true(valid_utf8(step->text, step->text_bytes));
    assert_true(r->size + step->text_bytes < sizeof r->text);
    memcpy(r->text + r->size, step->text, step->text_bytes);
    r->size += step->text_bytes;
    if (step->token < 0)
        return 0;
    r->tokens[r->count] = step->token;
    r->logprobs[r->count] = step->logprob;
    for (uint32_t i = 0; i < step->top_count && i < 5; i++)
        r->top[r->count][i] = step->top[i];
    r->count++;
    if (r->cancel_after != 0 && r->count == r->cancel_after)
        bitaxon_session_cancel(r->session);
    return r->stop_after != 0 && r->count == r->stop_after;
}

static bitaxon_session *begin(const char *prompt)
{
    bitaxon_sampler_params sampler = { .struct_size = sizeof sampler, .temperature = 1.0f, .top_k = 200, .seed = 5 };
    bitaxon_session_params params = { .struct_size = sizeof params, .sampler = &sampler };
    bitaxon_session *session;
    int32_t ids[256];
    size_t n;
    OK(bitaxon_session_create(model, &params, &session, &error));
    OK(bitaxon_model_tokenize(model, prompt, strlen(prompt), 0, ids, 256, &n, &error));
    OK(bitaxon_session_prefill(session, ids, n, &error));
    return session;
}

static bitaxon_status run(bitaxon_session *session, bitaxon_generate_params *p, record *r,
                          bitaxon_generate_result *result)
{
    p->struct_size = sizeof *p;
    p->on_token = on_token;
    p->user = r;
    r->session = session;
    *result = (bitaxon_generate_result){ .struct_size = sizeof *result };
    return bitaxon_session_generate(session, p, result, &error);
}

static record base; /* 100 tokens from the prompt: what the other tests compare with */
static const char prompt[] = "It was a bright cold day";

static void test_stream(void **state)
{
    (void)state;
    bitaxon_generate_params p = { .max_tokens = 100, .flags = BITAXON_GENERATE_IGNORE_EOS, .top_logprobs = 5 };
    bitaxon_generate_result result;
    bitaxon_session *session = begin(prompt);
    uint64_t start = bitaxon_session_position(session);
    OK(run(session, &p, &base, &result));
    assert_int_equal(result.finish, BITAXON_FINISH_LENGTH);
    assert_int_equal(result.tokens, 100);
    assert_int_equal(base.count, 100);
    assert_int_equal(bitaxon_session_position(session), start + 100);
    /* the pieces add up to the whole, decoded at once by the stream function with a flush */
    char whole[16384];
    size_t size = 0, need;
    bitaxon_text_stream stream = { .struct_size = sizeof stream };
    for (int i = 0; i <= 100; i++) {
        OK(bitaxon_text_stream_next(model, &stream, i < 100 ? base.tokens[i] : -1, 0, whole + size, sizeof whole - size,
                                    &need, &error));
        size += need;
    }
    assert_int_equal(size, base.size);
    assert_memory_equal(whole, base.text, size);
    assert_true(size > 100);
    /* tokens are in the cache, in order */
    int32_t read[100];
    OK(bitaxon_cache_tokens(bitaxon_session_cache(session), start, 100, read, &error));
    assert_memory_equal(read, base.tokens, sizeof read);
    /* log-probabilities are those of scoring, and stand at the head of the candidates' order */
    double sum;
    float scores[100];
    OK(bitaxon_session_rewind(session, start, &error));
    OK(bitaxon_session_score(session, base.tokens, 100, &sum, scores, &error));
    for (int i = 0; i < 100; i++) {
        assert_true(scores[i] == base.logprobs[i]);
        for (int j = 0; j < 5; j++) {
            if (base.top[i][j].token == base.tokens[i])
                assert_true(base.top[i][j].logprob == scores[i]);
            if (j > 0)
                assert_true(base.top[i][j].logprob <= base.top[i][j - 1].logprob);
        }
        assert_true(base.top[i][0].logprob >= scores[i]);
    }
    bitaxon_session_free(session);
}

static void test_same_again(void **state)
{
    (void)state;
    static record r;
    bitaxon_generate_result result;
    char path[96];
    snprintf(path, sizeof path, "%s/cache", directory);
    bitaxon_session *session = begin(prompt), *other;
    bitaxon_generate_params p = { .max_tokens = 40, .flags = BITAXON_GENERATE_IGNORE_EOS };
    OK(run(session, &p, &r, &result));
    OK(bitaxon_cache_save(bitaxon_session_cache(session), path, &error));
    bitaxon_session_free(session);
    OK(bitaxon_session_create(model, NULL, &other, &error));
    OK(bitaxon_cache_load(bitaxon_session_cache(other), path, &error));
    p.max_tokens = 60;
    OK(run(other, &p, &r, &result)); /* the sampler and its seed came with the cache */
    assert_int_equal(r.count, 100);
    assert_memory_equal(r.tokens, base.tokens, sizeof(int32_t) * 100);
    bitaxon_session_free(other);
    unlink(path);
}

static void test_stop_strings(void **state)
{
    (void)state;
    bitaxon_generate_result result;
    int crossing = 0;
    /* every place of the known text, several lengths: the run ends right before the first occurrence */
    for (size_t at = 3; at + 8 < base.size; at += 7)
        for (size_t n = 1; n <= 6; n += 5) {
            static record r;
            memset(&r, 0, sizeof r);
            char stop[8] = { 0 };
            memcpy(stop, base.text + at, n);
            if (!valid_utf8(stop, n))
                continue;
            const char *list[2] = { "\x7F never \x7F", stop };
            const char *found = NULL;
            for (size_t i = 0; found == NULL && i + n <= base.size; i++)
                if (memcmp(base.text + i, stop, n) == 0)
                    found = base.text + i;
            assert_non_null(found);
            bitaxon_session *session = begin(prompt);
            bitaxon_generate_params p = {
                .max_tokens = 100, .flags = BITAXON_GENERATE_IGNORE_EOS, .stop = list, .stop_count = 2
            };
            OK(run(session, &p, &r, &result));
            assert_int_equal(result.finish, BITAXON_FINISH_STOP);
            assert_int_equal(result.stop_index, 1);
            assert_int_equal(r.size, found - base.text);
            assert_memory_equal(r.text, base.text, r.size);
            crossing += n > 1;
            bitaxon_session_free(session);
        }
    assert_true(crossing > 5);
    /* a beginning that never completes is handed out in the end */
    static record r;
    char almost[16];
    memcpy(almost, base.text + base.size - 5, 5);
    strcpy(almost + 5, "\x7F");
    const char *list[1] = { almost };
    bitaxon_session *session = begin(prompt);
    bitaxon_generate_params p = {
        .max_tokens = 100, .flags = BITAXON_GENERATE_IGNORE_EOS, .stop = list, .stop_count = 1
    };
    OK(run(session, &p, &r, &result));
    assert_int_equal(result.finish, BITAXON_FINISH_LENGTH);
    assert_int_equal(r.size, base.size);
    assert_memory_equal(r.text, base.text, base.size);
    bitaxon_session_free(session);
}

static void test_endings(void **state)
{
    (void)state;
    static record r;
    bitaxon_generate_result result;
    /* an end token: the 31st token of the known run (its first occurrence counts) */
    int32_t eos[2] = { 4095, base.tokens[30] };
    uint64_t first = 0;
    while (base.tokens[first] != eos[1] && base.tokens[first] != eos[0])
        first++;
    bitaxon_session *session = begin(prompt);
    uint64_t start = bitaxon_session_position(session);
    bitaxon_generate_params p = { .max_tokens = 100, .eos = eos, .eos_count = 2 };
    OK(run(session, &p, &r, &result));
    assert_int_equal(result.finish, BITAXON_FINISH_EOS);
    assert_int_equal(result.eos_token, base.tokens[first]);
    assert_int_equal(result.tokens, first);
    assert_int_equal(bitaxon_session_position(session), start + first);
    bitaxon_session_free(session);

    /* the host has seen enough */
    memset(&r, 0, sizeof r);
    r.stop_after = 12;
    session = begin(prompt);
    p = (bitaxon_generate_params){ .flags = BITAXON_GENERATE_IGNORE_EOS };
    OK(run(session, &p, &r, &result));
    assert_int_equal(result.finish, BITAXON_FINISH_CALLBACK);
    assert_int_equal(r.count, 12);
    /* and goes on later as if nothing had been */
    r.stop_after = 0;
    p.max_tokens = 88;
    OK(run(session, &p, &r, &result));
    assert_memory_equal(r.tokens, base.tokens, sizeof(int32_t) * 100);
    bitaxon_session_free(session);

    /* cancelled */
    memset(&r, 0, sizeof r);
    r.cancel_after = 20;
    session = begin(prompt);
    p.max_tokens = 100;
    assert_int_equal(run(session, &p, &r, &result), BITAXON_CANCELLED);
    assert_int_equal(result.finish, BITAXON_FINISH_CANCELLED);
    assert_int_equal(result.tokens, 20);
    assert_int_equal(bitaxon_session_position(session), start + 20);
    r.cancel_after = 0;
    p.max_tokens = 80;
    OK(run(session, &p, &r, &result));
    assert_memory_equal(r.tokens, base.tokens, sizeof(int32_t) * 100);
    bitaxon_session_free(session);

    /* the context ends: an error with its number, and all that fitted */
    memset(&r, 0, sizeof r);
    bitaxon_cache_params cache = { .struct_size = sizeof cache, .max_tokens = 30 };
    bitaxon_session_params sp = { .struct_size = sizeof sp, .cache_params = &cache };
    OK(bitaxon_session_create(model, &sp, &session, &error));
    int32_t one = 65;
    OK(bitaxon_session_prefill(session, &one, 1, &error));
    p.max_tokens = 0;
    assert_int_equal(run(session, &p, &r, &result), BITAXON_LIMIT);
    assert_int_equal(result.finish, BITAXON_FINISH_CONTEXT);
    assert_int_equal(result.tokens, 29);
    assert_non_null(strstr(error.message, "30"));
    bitaxon_session_free(session);
}

static void test_refusals(void **state)
{
    (void)state;
    static record r;
    bitaxon_generate_result result;
    bitaxon_session *session;
    OK(bitaxon_session_create(model, NULL, &session, &error));
    bitaxon_generate_params p = { .max_tokens = 1 };
    assert_int_equal(run(session, &p, &r, &result), BITAXON_BAD_STATE); /* nothing read */
    bitaxon_session_free(session);
    session = begin(prompt);
    const char *empty[1] = { "" };
    p = (bitaxon_generate_params){ .max_tokens = 1, .stop = empty, .stop_count = 1 };
    assert_int_equal(run(session, &p, &r, &result), BITAXON_INVALID_ARGUMENT);
    p = (bitaxon_generate_params){ .max_tokens = 1, .stop_count = 1 };
    assert_int_equal(run(session, &p, &r, &result), BITAXON_INVALID_ARGUMENT);
    p = (bitaxon_generate_params){ .max_tokens = 1, .top_logprobs = 65 };
    assert_int_equal(run(session, &p, &r, &result), BITAXON_INVALID_ARGUMENT);
    bitaxon_session_free(session);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stream),  cmocka_unit_test(test_same_again), cmocka_unit_test(test_stop_strings),
        cmocka_unit_test(test_endings), cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
