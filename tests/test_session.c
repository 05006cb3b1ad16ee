/* SPDX-License-Identifier: Apache-2.0 */
/* test_session.c - exactness of sessions, as properties: any split of a prompt, any number
 * of threads and any way back to a position (checkpoint, rewind, clone, save and load) give
 * the same bits; the future never changes the past. On the golden checkpoints (window 16)
 * in every tier, in float and 4 bits, with f16 and f32 keys and values. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <bitaxon/bitaxon.h>

#include "call_fixture.h"
#include "runtime/runtime.h"

enum { VOCAB = 96, WINDOW = 16, MOST = 700 };

static const char *const paths[] = { "tests/golden/tiny-fp32", "tests/golden/tiny-q4" };
/* Sanitizers take long: the first type of the window and the last are enough for them. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { KV_STEP = BITAXON_KV_Q4 - BITAXON_KV_F16 };
#else
enum { KV_STEP = 1 };
#endif

/* Number 2 is what most tests take: the default accuracy. A mask of 0: all that the CPU has. */
static const struct {
    uint64_t mask;
    int32_t accuracy;
} tiers[] = {
    { BITAXON_CPU_NONE, BITAXON_ACCURACY_DEFAULT },
#if defined(__aarch64__)
    { BITAXON_CPU_NEON, BITAXON_ACCURACY_EXACT },
    { BITAXON_CPU_NEON | BITAXON_CPU_NEON_DOTPROD, BITAXON_ACCURACY_DEFAULT },
    { BITAXON_CPU_NEON, BITAXON_ACCURACY_NEAR },
    { BITAXON_CPU_NEON, BITAXON_ACCURACY_FAST },
#else
    { BITAXON_CPU_AVX2, BITAXON_ACCURACY_EXACT },
    { BITAXON_CPU_AVX2 | BITAXON_CPU_AVX512, BITAXON_ACCURACY_DEFAULT },
    { BITAXON_CPU_AVX2 | BITAXON_CPU_AVX512, BITAXON_ACCURACY_EXACT },
    { BITAXON_CPU_AVX2, BITAXON_ACCURACY_NEAR },
#endif
    { BITAXON_CPU_NONE, BITAXON_ACCURACY_NEAR },
    { BITAXON_CPU_NONE, BITAXON_ACCURACY_FAST },
    { 0, BITAXON_ACCURACY_NEAR },
    { 0, BITAXON_ACCURACY_FAST },
};
enum { TIERS = sizeof tiers / sizeof tiers[0] };

static int32_t text[MOST];

static bool tier_present(int tier)
{
    uint64_t needed = tiers[tier].mask & ~BITAXON_CPU_NONE;
    return (bitaxon_cpu_features() & needed) == needed;
}

static bitaxon_model *open_model(int which, int tier, uint32_t threads)
{
    bitaxon_model_params params = { .struct_size = sizeof params,
                                    .path = paths[which],
                                    .threads = threads,
                                    .cpu_mask = tiers[tier].mask,
                                    .accuracy = tiers[tier].accuracy };
    bitaxon_model *model;
    OK(bitaxon_model_open(&params, &model, &error));
    return model;
}

static bitaxon_session *open_session(bitaxon_model *model, int32_t kv)
{
    bitaxon_cache_params cache = { .struct_size = sizeof cache, .kv_type = kv, .max_tokens = 4096 };
    bitaxon_session_params params = { .struct_size = sizeof params, .cache_params = &cache };
    bitaxon_session *session;
    OK(bitaxon_session_create(model, &params, &session, &error));
    return session;
}

static float *logits_of(bitaxon_session *session, const int32_t *tokens, size_t count)
{
    float *logits = malloc((count + 1) * VOCAB * sizeof *logits);
    assert_non_null(logits);
    OK(bitaxon_session_evaluate(session, tokens, count, logits, &error));
    return logits;
}

static void same_bits(const float *a, const float *b, size_t count, const char *what)
{
    if (memcmp(a, b, count * sizeof *a) == 0)
        return;
    for (size_t i = 0; i < count; i++)
        if (memcmp(a + i, b + i, sizeof *a) != 0)
            fail_msg("%s: row %zu, token %zu: %.9g is not %.9g", what, i / VOCAB, i % VOCAB, (double)a[i],
                     (double)b[i]);
}

static uint32_t dice(uint64_t seed, uint64_t i, uint32_t sides)
{
    return (uint32_t)(bxn_uniform(seed, 77, i) * sides);
}

static int setup(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < MOST; i++)
        text[i] = (int32_t)dice(1, i, VOCAB);
    return 0;
}

/* Every split, in every tier and form: same bits as one piece. */
static void test_any_split(void **state)
{
    (void)state;
    enum { LENGTH = 300 };
    for (int which = 0; which < 2; which++)
        for (int tier = 0; tier < TIERS; tier++) {
            if (!tier_present(tier))
                continue;
            for (int32_t kv = BITAXON_KV_F16; kv <= BITAXON_KV_Q4; kv += KV_STEP) {
                bitaxon_model *model = open_model(which, tier, 2);
                bitaxon_session *session = open_session(model, kv);
                float *whole = logits_of(session, text, LENGTH);
                for (uint64_t trial = 0; trial < 12; trial++) {
                    bitaxon_cache_reset(bitaxon_session_cache(session));
                    uint32_t most = trial == 0 ? 1 : trial == 1 ? WINDOW : trial < 6 ? 7 : 200;
                    for (size_t at = 0; at < LENGTH;) {
                        size_t n = most == 1 ? 1 : 1 + dice(trial + 10, at, most);
                        n = n < LENGTH - at ? n : LENGTH - at;
                        float *piece = logits_of(session, text + at, n);
                        same_bits(piece, whole + at * VOCAB, n * VOCAB, "split");
                        free(piece);
                        at += n;
                    }
                }
                free(whole);
                bitaxon_session_free(session);
                bitaxon_model_free(model);
            }
        }
}

static void test_any_threads(void **state)
{
    (void)state;
    enum { LENGTH = 150 };
    for (int round = 0; round < 8; round++) {
        const int which = round % 2;
        const int32_t kv = BITAXON_KV_F16 + round / 2;
        float *first = NULL;
        for (uint32_t threads = 1; threads <= 8; threads++) {
            bitaxon_model *model = open_model(which, tier_present(2) ? 2 : 0, threads);
            bitaxon_session *session = open_session(model, kv);
            float *logits = logits_of(session, text, LENGTH);
            int32_t token;
            for (int i = 0; i < 20; i++) {
                OK(bitaxon_session_decode(session, &token, &error));
                const float *row;
                OK(bitaxon_session_logits(session, &row, &error));
                memcpy(logits + (LENGTH)*VOCAB, row, VOCAB * sizeof *row);
            }
            if (first == NULL) {
                first = logits;
            } else {
                same_bits(logits, first, (LENGTH + 1) * VOCAB, "threads");
                free(logits);
            }
            bitaxon_session_free(session);
            bitaxon_model_free(model);
        }
        free(first);
    }
}

/* Changing token t changes no logit before t, and does change one after. */
static void test_causality(void **state)
{
    (void)state;
    static const size_t changed[] = { 0, 1, 15, 16, 17, 31, 40, 128, 300, 511, 512, 600, 698 };
    enum { LENGTH = 699 };
    for (int which = 0; which < 2; which++) {
        bitaxon_model *model = open_model(which, tier_present(2) ? 2 : 0, 2);
        bitaxon_session *session = open_session(model, BITAXON_KV_F32);
        float *before = logits_of(session, text, LENGTH);
        for (size_t i = 0; i < sizeof changed / sizeof changed[0]; i++) {
            int32_t other[LENGTH];
            memcpy(other, text, sizeof other);
            for (size_t t = changed[i]; t < LENGTH; t++)
                other[t] = (other[t] + 1) % VOCAB;
            bitaxon_cache_reset(bitaxon_session_cache(session));
            float *after = logits_of(session, other, LENGTH);
            same_bits(before, after, changed[i] * VOCAB, "causality");
            assert_true(memcmp(before + changed[i] * VOCAB, after + changed[i] * VOCAB, VOCAB * sizeof *after) != 0);
            free(after);
        }
        free(before);
        bitaxon_session_free(session);
        bitaxon_model_free(model);
    }
}

/* What a session gives from here on: logits of `count` more tokens. */
static void expect_continuation(bitaxon_session *session, size_t at, size_t count, const float *whole, const char *what)
{
    assert_int_equal(bitaxon_session_position(session), at);
    if (at > 0) {
        const float *row;
        OK(bitaxon_session_logits(session, &row, &error));
        same_bits(row, whole + (at - 1) * VOCAB, VOCAB, what);
    }
    float *logits = logits_of(session, text + at, count);
    same_bits(logits, whole + at * VOCAB, count * VOCAB, what);
    free(logits);
}

static const size_t places[] = { 0, 1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW, 63, 64, 65, 200 };
enum { PLACES = sizeof places / sizeof places[0], LONG = 260, MORE = 50 };

static void test_checkpoint_rewind(void **state)
{
    (void)state;
    for (int round = 0; round < 8; round++) {
        const int which = round % 2;
        const int32_t kv = BITAXON_KV_F16 + round / 2;
        bitaxon_model *model = open_model(which, tier_present(2) ? 2 : 0, 2);
        bitaxon_session *session = open_session(model, kv);
        bitaxon_cache *cache = bitaxon_session_cache(session);
        float *whole = logits_of(session, text, LONG);
        /* without checkpoints: replay from 0 */
        for (int i = 0; i < PLACES; i++) {
            uint64_t from, replay;
            OK(bitaxon_cache_rewind_cost(cache, places[i], &from, &replay, &error));
            assert_int_equal(from, 0);
            assert_int_equal(replay, places[i]);
            OK(bitaxon_session_rewind(session, places[i], &error));
            expect_continuation(session, places[i], LONG - places[i], whole, "rewind by replay");
        }
        /* with checkpoints at each place, visited backwards */
        bitaxon_cache_reset(cache);
        for (size_t at = 0; at < LONG; at++) {
            for (int i = 0; i < PLACES; i++)
                if (places[i] == at)
                    OK(bitaxon_cache_checkpoint(cache, &error));
            OK(bitaxon_session_prefill(session, text + at, 1, &error));
        }
        for (size_t at = LONG; at-- > 0;) {
            uint64_t from, replay, nearest = 0;
            for (int i = 0; i < PLACES; i++)
                if (places[i] <= at && places[i] > nearest)
                    nearest = places[i];
            OK(bitaxon_cache_rewind_cost(cache, at, &from, &replay, &error));
            assert_int_equal(from, nearest);
            assert_int_equal(replay, at - nearest);
            OK(bitaxon_session_rewind(session, at, &error));
            size_t n = LONG - at < MORE ? LONG - at : MORE;
            expect_continuation(session, at, n, whole, "rewind to a checkpoint");
            OK(bitaxon_session_rewind(session, at, &error));
        }
        assert_int_equal(bitaxon_session_position(session), 0);
        free(whole);
        bitaxon_session_free(session);
        bitaxon_model_free(model);
    }
}

static void test_automatic_checkpoints(void **state)
{
    (void)state;
    bitaxon_model *model = open_model(0, tier_present(2) ? 2 : 0, 2);
    bitaxon_cache_params params = {
        .struct_size = sizeof params, .max_tokens = 4096, .checkpoint_interval = 20, .checkpoint_max = 4
    };
    bitaxon_session_params sp = { .struct_size = sizeof sp, .cache_params = &params };
    bitaxon_session *session;
    OK(bitaxon_session_create(model, &sp, &session, &error));
    bitaxon_cache *cache = bitaxon_session_cache(session);
    float *whole = logits_of(session, text, LONG);
    bitaxon_cache_reset(cache);
    for (size_t at = 0; at < LONG; at += 5)
        OK(bitaxon_session_prefill(session, text + at, 5, &error));
    uint64_t from, replay, distinct = 0, last = UINT64_MAX;
    for (size_t at = 0; at <= LONG; at++) {
        OK(bitaxon_cache_rewind_cost(cache, at, &from, &replay, &error));
        if (at < LONG && from != 0 && from != last) {
            distinct++;
            last = from;
        }
    }
    assert_in_range(distinct, 3, 4);
    OK(bitaxon_session_rewind(session, 150, &error));
    expect_continuation(session, 150, MORE, whole, "automatic checkpoint");
    free(whole);
    bitaxon_session_free(session);
    bitaxon_model_free(model);
}

static void test_clone(void **state)
{
    (void)state;
    for (int round = 0; round < 8; round++) {
        const int which = round % 2;
        const int32_t kv = BITAXON_KV_F16 + round / 2;
        bitaxon_model *model = open_model(which, tier_present(2) ? 2 : 0, 2);
        bitaxon_session *session = open_session(model, kv), *other = NULL;
        float *whole = logits_of(session, text, LONG);
        for (int i = 0; i < PLACES; i++) {
            bitaxon_cache *cache = bitaxon_session_cache(session), *clones[3];
            bitaxon_cache_reset(cache);
            OK(bitaxon_session_prefill(session, text, places[i], &error));
            for (int c = 0; c < 3; c++)
                OK(bitaxon_cache_clone(cache, &clones[c], &error));
            /* the origin goes on first, in another direction */
            int32_t elsewhere[40];
            for (int t = 0; t < 40; t++)
                elsewhere[t] = (text[t] + 5) % VOCAB;
            OK(bitaxon_session_prefill(session, elsewhere, 40, &error));
            for (int c = 0; c < 3; c++) {
                bitaxon_session_params sp = { .struct_size = sizeof sp, .cache = clones[c] };
                OK(bitaxon_session_create(model, &sp, &other, &error));
                expect_continuation(other, places[i], LONG - places[i], whole, "clone");
                bitaxon_session_free(other);
                if (c != 1)
                    bitaxon_cache_free(clones[c]);
            }
            /* one session, another cache */
            bitaxon_cache *own = cache;
            OK(bitaxon_session_set_cache(session, clones[1], &error));
            assert_int_equal(bitaxon_session_position(session), LONG);
            (void)own;
            bitaxon_cache_free(clones[1]);
        }
        free(whole);
        bitaxon_session_free(session);
        bitaxon_model_free(model);
    }
}

static int64_t fact(const bitaxon_model *model, const char *key)
{
    int64_t value;
    OK(bitaxon_model_info_int(model, key, &value, &error));
    return value;
}

/* A hundred clones cost a hundred states (and their token lists), not a hundred windows. */
static void test_clone_memory(void **state)
{
    (void)state;
    bitaxon_model *model = open_model(0, 0, 1);
    bitaxon_session *session = open_session(model, BITAXON_KV_F16);
    OK(bitaxon_session_prefill(session, text, 600, &error));
    bitaxon_cache *clones[100];
    int64_t before = fact(model, "bytes_used");
    for (int i = 0; i < 100; i++)
        OK(bitaxon_cache_clone(bitaxon_session_cache(session), &clones[i], &error));
    int64_t each = (fact(model, "bytes_used") - before) / 100;
    /* state: 2 layers x 128 channels x (4 states + 3 taps), logits; tokens; small tables */
    int64_t bill = (2 * 128 * 7 + VOCAB) * 4 + 4096 * 4 + 2048;
    print_message("a clone holds %lld bytes (bill %lld)\n", (long long)each, (long long)bill);
    assert_true(each <= bill);
    for (int i = 0; i < 100; i++)
        bitaxon_cache_free(clones[i]);
    assert_true(fact(model, "bytes_used") - before <= each); /* the origin's reserve may stay */
    bitaxon_session_free(session);
    bitaxon_model_free(model);
}

/* A prompt of 64K tokens holds not a byte more than one of 4K. */
static void test_constant_memory(void **state)
{
    (void)state;
    bitaxon_model *model = open_model(1, tier_present(2) ? 2 : 0, 2);
    bitaxon_session *session;
    OK(bitaxon_session_create(model, NULL, &session, &error));
    int64_t peak = 0;
    for (int piece = 0; piece < 16; piece++) {
        static int32_t tokens[4096];
        for (int i = 0; i < 4096; i++)
            tokens[i] = (int32_t)dice(9, (uint64_t)piece * 4096 + (uint64_t)i, VOCAB);
        OK(bitaxon_session_prefill(session, tokens, 4096, &error));
        if (piece == 0)
            peak = fact(model, "bytes_peak");
    }
    assert_int_equal(bitaxon_session_position(session), 65536);
    assert_int_equal(fact(model, "bytes_peak"), peak);
    bitaxon_session_free(session);
    bitaxon_model_free(model);
}

static long file_size(const char *path)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    fclose(file);
    return size;
}

static int files_equal(const char *a, const char *b)
{
    long n = file_size(a);
    if (n != file_size(b))
        return 0;
    FILE *fa = fopen(a, "rb"), *fb = fopen(b, "rb");
    int equal = 1;
    for (long i = 0; i < n && equal; i++)
        equal = fgetc(fa) == fgetc(fb);
    fclose(fa);
    fclose(fb);
    return equal;
}

static void test_save_load(void **state)
{
    (void)state;
    char a[64], b[64];
    snprintf(a, sizeof a, "/tmp/bitaxon-test-%d-a", (int)getpid());
    snprintf(b, sizeof b, "/tmp/bitaxon-test-%d-b", (int)getpid());
    for (int which = 0; which < 2; which++)
        for (int32_t kv = BITAXON_KV_F16; kv <= BITAXON_KV_Q4; kv += KV_STEP) {
            bitaxon_model *model = open_model(which, tier_present(2) ? 2 : 0, 2);
            bitaxon_session *session = open_session(model, kv), *fresh = open_session(model, kv);
            float *whole = logits_of(session, text, LONG);
            for (int i = 0; i < PLACES; i++) {
                bitaxon_cache_reset(bitaxon_session_cache(session));
                OK(bitaxon_session_prefill(session, text, places[i], &error));
                bitaxon_logit_bias bias = { 3, -1.5f };
                bitaxon_sampler_params sampler = { .struct_size = sizeof sampler, .temperature = 0.8f, .top_k = 10,
                                                   .seed = 1234567 + (uint64_t)i, .bias = &bias, .bias_count = 1 };
                OK(bitaxon_session_set_sampler(session, &sampler, &error));
                OK(bitaxon_cache_save(bitaxon_session_cache(session), a, &error));
                OK(bitaxon_session_prefill(fresh, text, 30, &error)); /* something to be replaced */
                OK(bitaxon_cache_load(bitaxon_session_cache(fresh), a, &error));
                OK(bitaxon_cache_save(bitaxon_session_cache(fresh), b, &error));
                assert_true(files_equal(a, b));
                if (places[i] > 0) { /* the sampler came along: same draws */
                    int32_t one, two;
                    for (int n = 0; n < 20; n++) {
                        OK(bitaxon_session_decode(session, &one, &error));
                        OK(bitaxon_session_decode(fresh, &two, &error));
                        assert_int_equal(one, two);
                    }
                    OK(bitaxon_cache_load(bitaxon_session_cache(fresh), a, &error));
                }
                expect_continuation(fresh, places[i], LONG - places[i], whole, "save and load");
            }
            /* another model, another KV type */
            bitaxon_model *stranger = open_model(1 - which, 0, 1);
            bitaxon_session *wrong = open_session(stranger, kv), *kind = open_session(model, kv % 4 + 1);
            assert_int_equal(bitaxon_cache_load(bitaxon_session_cache(wrong), a, &error), BITAXON_MISMATCH);
            assert_int_equal(bitaxon_cache_load(bitaxon_session_cache(kind), a, &error), BITAXON_MISMATCH);
            bitaxon_session_free(wrong);
            bitaxon_session_free(kind);
            bitaxon_model_free(stranger);
            free(whole);
            bitaxon_session_free(session);
            bitaxon_session_free(fresh);
            bitaxon_model_free(model);
        }
    unlink(a);
    unlink(b);
}

/* Scores are log-softmax of the logits; a split changes nothing. */
static void test_score(void **state)
{
    (void)state;
    enum { LENGTH = 280 };
    bitaxon_model *model = open_model(1, tier_present(2) ? 2 : 0, 2);
    bitaxon_session *session = open_session(model, BITAXON_KV_F16);
    float *logits = logits_of(session, text, LENGTH), scores[LENGTH], again[LENGTH];
    double sum, expected = 0, first, second;
    bitaxon_cache_reset(bitaxon_session_cache(session));
    OK(bitaxon_session_score(session, text, LENGTH, &sum, scores, &error));
    assert_true(scores[0] == 0);
    for (int t = 1; t < LENGTH; t++) {
        const float *row = logits + (t - 1) * VOCAB;
        double max = -INFINITY, total = 0;
        for (int v = 0; v < VOCAB; v++)
            max = fmax(max, (double)row[v]);
        for (int v = 0; v < VOCAB; v++)
            total += exp((double)row[v] - max);
        double value = (double)row[text[t]] - max - log(total);
        assert_true(fabs(value - (double)scores[t]) < 1e-5);
        expected += value;
    }
    assert_true(fabs(sum - expected) < 1e-6 * fabs(expected));
    bitaxon_cache_reset(bitaxon_session_cache(session));
    OK(bitaxon_session_score(session, text, 101, &first, again, &error));
    OK(bitaxon_session_score(session, text + 101, LENGTH - 101, &second, again + 101, &error));
    assert_memory_equal(scores, again, sizeof scores);
    free(logits);
    bitaxon_session_free(session);
    bitaxon_model_free(model);
}

static void test_limits(void **state)
{
    (void)state;
    bitaxon_model *model = open_model(0, 0, 1);
    bitaxon_cache_params params = { .struct_size = sizeof params, .max_tokens = 50 };
    bitaxon_session_params sp = { .struct_size = sizeof sp, .cache_params = &params };
    bitaxon_session *session;
    OK(bitaxon_session_create(model, &sp, &session, &error));
    int32_t token;
    assert_int_equal(bitaxon_session_decode(session, &token, &error), BITAXON_BAD_STATE);
    OK(bitaxon_session_prefill(session, text, 40, &error));
    assert_int_equal(bitaxon_session_prefill(session, text, 11, &error), BITAXON_LIMIT);
    assert_non_null(strstr(error.message, "51"));
    assert_non_null(strstr(error.message, "50"));
    assert_int_equal(bitaxon_session_position(session), 40);
    int32_t bad[3] = { 1, VOCAB, 2 };
    assert_int_equal(bitaxon_session_prefill(session, bad, 3, &error), BITAXON_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "96"));
    bad[1] = -1;
    assert_int_equal(bitaxon_session_prefill(session, bad, 3, &error), BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_session_position(session), 40);
    for (int i = 0; i < 10; i++)
        OK(bitaxon_session_decode(session, &token, &error));
    assert_int_equal(bitaxon_session_decode(session, &token, &error), BITAXON_LIMIT);
    params.max_tokens = 65537;
    bitaxon_session *none;
    assert_int_equal(bitaxon_session_create(model, &sp, &none, &error), BITAXON_LIMIT);
    assert_null(none);
    bitaxon_session_free(session);
    bitaxon_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_split),
        cmocka_unit_test(test_any_threads),
        cmocka_unit_test(test_causality),
        cmocka_unit_test(test_checkpoint_rewind),
        cmocka_unit_test(test_automatic_checkpoints),
        cmocka_unit_test(test_clone),
        cmocka_unit_test(test_clone_memory),
        cmocka_unit_test(test_constant_memory),
        cmocka_unit_test(test_save_load),
        cmocka_unit_test(test_score),
        cmocka_unit_test(test_limits),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
