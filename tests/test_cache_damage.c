/* SPDX-License-Identifier: Apache-2.0 */
/* test_cache_damage.c - saved caches that are damaged, cut, lengthened, foreign, or forged with
 * right checksums: each is refused with its own status, and the session that was to take it
 * goes on to the same bits as if nothing had happened. A save that fails leaves the old file. */
#include "call_fixture.h"
#include "fault_files.h"
#include "fault_host.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <signal.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

enum { LENGTH = 37, VOCAB = 96, BIASES = 2, TRACK = 24, HEADER = 208 };

static char *root;
static fault_host fault;
static bitaxon_model *model;
static bitaxon_session *victim; /* at position TRACK, with a checkpoint */
static float expected[VOCAB];   /* its logits some tokens later */

static void read_text(bitaxon_session *session, uint64_t seed, uint64_t count)
{
    int32_t tokens[128];
    uint64_t at = bitaxon_session_position(session);
    for (uint64_t i = 0; i < count; i++)
        tokens[i] = (int32_t)((seed + (at + i) * 29) % VOCAB);
    OK(bitaxon_session_prefill(session, tokens, count, &error));
}

static bitaxon_session *new_session(bitaxon_model *of, int32_t kv, uint64_t max_tokens)
{
    bitaxon_cache_params cache = { .struct_size = sizeof cache, .kv_type = kv, .max_tokens = max_tokens };
    bitaxon_session_params params = { .struct_size = sizeof params, .cache_params = &cache };
    bitaxon_session *session;
    OK(bitaxon_session_create(of, &params, &session, &error));
    return session;
}

static void save_one(const char *path, uint64_t length)
{
    bitaxon_session *session = new_session(model, BITAXON_KV_F16, 512);
    bitaxon_logit_bias bias[BIASES] = { { 3, 0.5f }, { 9, -INFINITY } };
    bitaxon_sampler_params sampler = { .struct_size = sizeof sampler,
                                       .temperature = 0.75f,
                                       .top_k = 9,
                                       .top_p = 0.5f,
                                       .min_p = 0.125f,
                                       .repetition_penalty = 1.25f,
                                       .repetition_window = 11,
                                       .seed = 77,
                                       .bias = bias,
                                       .bias_count = BIASES };
    OK(bitaxon_session_set_sampler(session, &sampler, &error));
    if (length != 0)
        read_text(session, 5, length);
    OK(bitaxon_cache_save(bitaxon_session_cache(session), path, &error));
    bitaxon_session_free(session);
}

static int set_up(void **state)
{
    (void)state;
    root = make_folder();
    fault_host_init(&fault);
    bitaxon_model_params params = { .struct_size = sizeof params, .path = "tests/golden/tiny-q4", .threads = 1,
                                    .host = &fault.host };
    OK(bitaxon_model_open(&params, &model, &error));
    bitaxon_session *session = new_session(model, BITAXON_KV_F16, 512);
    const float *logits;
    read_text(session, 1, TRACK + 50);
    OK(bitaxon_session_logits(session, &logits, &error));
    memcpy(expected, logits, sizeof expected);
    bitaxon_session_free(session);

    victim = new_session(model, BITAXON_KV_F16, 512);
    read_text(victim, 1, TRACK);
    OK(bitaxon_cache_checkpoint(bitaxon_session_cache(victim), &error));
    save_one(in_folder(root, "good"), LENGTH);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    bitaxon_session_free(victim);
    bitaxon_model_free(model);
    remove_folder(root);
    assert_string_equal(fault_host_balance(&fault), "");
    return 0;
}

/* The victim reads on to the same bits, and goes back. */
static void victim_goes_on(const char *after)
{
    const float *logits;
    if (bitaxon_session_position(victim) != TRACK)
        fail_msg("%s: the session moved to %llu", after, (unsigned long long)bitaxon_session_position(victim));
    read_text(victim, 1, 50);
    OK(bitaxon_session_logits(victim, &logits, &error));
    if (memcmp(logits, expected, sizeof expected) != 0)
        fail_msg("%s: other bits", after);
    OK(bitaxon_session_rewind(victim, TRACK, &error));
}

/* Try to load; the victim must refuse with `want` (any failure: BITAXON_OK) and be as it was. */
static void refuse(const unsigned char *data, size_t size, bitaxon_status want, const char *what, bool thorough)
{
    const char *path = in_folder(root, "bad");
    int64_t before = atomic_load(&fault.bytes);
    write_whole(path, data, size);
    memset(error.message, 0, sizeof error.message);
    bitaxon_status status = bitaxon_cache_load(bitaxon_session_cache(victim), path, &error);
    if (want == BITAXON_OK ? status == BITAXON_OK : status != want)
        fail_msg("%s: %s: %s", what, bitaxon_status_name(status), error.message);
    if (strstr(error.message, path) == NULL)
        fail_msg("%s: the file is not named in: %s", what, error.message);
    assert_int_equal(atomic_load(&fault.bytes), before);
    assert_int_equal(bitaxon_session_position(victim), TRACK);
    if (thorough)
        victim_goes_on(what);
}

static void test_every_byte(void **state)
{
    (void)state;
    size_t size;
    unsigned char *data = read_whole(in_folder(root, "good"), &size);
    for (size_t i = 0; i < size; i++) {
        char what[80];
        unsigned char mask = (unsigned char)(1u << i % 8);
        snprintf(what, sizeof what, "byte %zu of %zu flipped", i, size);
        data[i] ^= mask;
        refuse(data, size, BITAXON_OK, what, i % 257 == 0 || i < HEADER);
        data[i] ^= mask;
    }
    print_message("%zu bytes\n", size);
    free(data);
    victim_goes_on("all flips");
}

static void test_length(void **state)
{
    (void)state;
    size_t size;
    unsigned char *data = read_whole(in_folder(root, "good"), &size);
    for (size_t cut = 0; cut < size; cut += 16) {
        char what[80];
        snprintf(what, sizeof what, "cut at %zu", cut);
        refuse(data, cut, BITAXON_FORMAT, what, cut % 1600 == 0);
    }
    refuse(data, size - 1, BITAXON_FORMAT, "the last byte cut", true);
    unsigned char *longer = calloc(1, size + 4096);
    assert_non_null(longer);
    memcpy(longer, data, size);
    refuse(longer, size + 1, BITAXON_FORMAT, "a byte more", true);
    refuse(longer, size + 4096, BITAXON_FORMAT, "a page more", true);
    free(longer);
    free(data);
}

/* ---- forged: right checksums ------------------------------------------------------------------ */

/* Offsets in the file (docs/formats.md). */
enum {
    AT_VERSION = 8,
    AT_HEADER_BYTES = 12,
    AT_FINGERPRINT = 16,
    AT_KV = 32,
    AT_VOCAB = 36,
    AT_STATE = 40,
    AT_PAGE = 48,
    AT_LENGTH = 56,
    AT_FIRST_PAGE = 64,
    AT_PAGES = 72,
    AT_BIASES = 76,
    AT_TOP_K = 80,
    AT_TEMPERATURE = 84,
    AT_TOP_P = 88,
    AT_MIN_P = 92,
    AT_PENALTY = 96,
    AT_WINDOW = 100,
    AT_SEED = 104,
    AT_HAS_LOGITS = 112,
    AT_TOKENS = HEADER + 8,
    AT_ACCURACY = 116,
    AT_ADAPTERS = 120,
    AT_RESERVED = 124,
    AT_WEIGHTS = 128,
    AT_IDS = 144,
    AT_PHASES = AT_TOKENS + LENGTH * 4 + 8,
    PHASE_BYTES = (LENGTH + 63) / 64 * 8,
    AT_BIAS = AT_PHASES + PHASE_BYTES + 8
};

static void sum_again(unsigned char *data, size_t at, size_t bytes)
{
    uint64_t sum = XXH3_64bits(data + at, bytes);
    memcpy(data + at + bytes, &sum, sizeof sum);
}

static void forge(size_t at, const void *value, size_t bytes, bitaxon_status want, const char *what)
{
    size_t size;
    unsigned char *data = read_whole(in_folder(root, "good"), &size);
    memcpy(data + at, value, bytes);
    if (at < HEADER)
        sum_again(data, 0, HEADER);
    else if (at < AT_PHASES)
        sum_again(data, AT_TOKENS, LENGTH * 4);
    else if (at < AT_BIAS)
        sum_again(data, AT_PHASES, PHASE_BYTES);
    else
        sum_again(data, AT_BIAS, BIASES * 8);
    refuse(data, size, want, what, true);
    free(data);
}

static void forge_u32(size_t at, uint32_t value, bitaxon_status want, const char *what)
{
    forge(at, &value, sizeof value, want, what);
}

static void forge_u64(size_t at, uint64_t value, bitaxon_status want, const char *what)
{
    forge(at, &value, sizeof value, want, what);
}

static void forge_f32(size_t at, float value, const char *what)
{
    forge(at, &value, sizeof value, BITAXON_FORMAT, what);
}

static uint32_t accuracy_of(const char *path)
{
    size_t size;
    unsigned char *data = read_whole(path, &size);
    uint32_t accuracy;
    memcpy(&accuracy, data + AT_ACCURACY, sizeof accuracy);
    free(data);
    return accuracy;
}

static void test_forged(void **state)
{
    (void)state;
    forge_u32(AT_VERSION, 0, BITAXON_UNSUPPORTED, "version 0");
    forge_u32(AT_VERSION, 1, BITAXON_UNSUPPORTED, "version 1");
    forge_u32(AT_VERSION, 2, BITAXON_UNSUPPORTED, "version 2 with a header of version 3");
    forge_u32(AT_VERSION, 4, BITAXON_UNSUPPORTED, "version 4");
    forge_u32(AT_VERSION, 0xFFFFFFFF, BITAXON_UNSUPPORTED, "the last version");
    forge_u32(AT_HEADER_BYTES, 119, BITAXON_UNSUPPORTED, "another header");
    forge_u32(AT_FINGERPRINT, 1, BITAXON_MISMATCH, "fingerprint");
    for (uint32_t kv = 0; kv < 6; kv++)
        if (kv != BITAXON_KV_F16)
            forge_u32(AT_KV, kv, BITAXON_MISMATCH, "KV type");
    forge_u32(AT_ACCURACY, accuracy_of(in_folder(root, "good")) + 1, BITAXON_MISMATCH, "accuracy");
    forge_u32(AT_ACCURACY, 0x80000000, BITAXON_MISMATCH, "accuracy that is none");
    forge_u64(AT_PHASES, (uint64_t)1 << LENGTH, BITAXON_FORMAT, "phase after the last token");
    forge_u32(AT_VOCAB, VOCAB + 1, BITAXON_MISMATCH, "vocabulary");
    forge_u64(AT_STATE, 1, BITAXON_MISMATCH, "state");
    forge_u64(AT_PAGE, 1, BITAXON_MISMATCH, "page");
    static const uint64_t lengths[] = { 0, 1, LENGTH - 1, LENGTH + 1, 512 };
    for (size_t i = 0; i < 5; i++)
        forge_u64(AT_LENGTH, lengths[i], BITAXON_FORMAT, "length");
    forge_u64(AT_LENGTH, 513, BITAXON_LIMIT, "longer than the cache");
    forge_u64(AT_LENGTH, 0x4000000000000000, BITAXON_LIMIT, "length that overflows");
    forge_u64(AT_LENGTH, UINT64_MAX, BITAXON_LIMIT, "the greatest length");
    static const uint64_t odd[] = { 1, 0x7FFFFFFF, 0x80000000, UINT64_MAX };
    for (size_t i = 0; i < 4; i++) {
        forge_u64(AT_FIRST_PAGE, odd[i], BITAXON_FORMAT, "first page");
        forge_u32(AT_PAGES, (uint32_t)odd[i] + 1, BITAXON_FORMAT, "pages");
        forge_u32(AT_BIASES, (uint32_t)odd[i], BITAXON_FORMAT, "biases");
        forge_u32(AT_HAS_LOGITS, (uint32_t)odd[i] + 1, BITAXON_FORMAT, "has_logits");
    }
    static const float bad[] = { NAN, -1.0f, INFINITY, -INFINITY };
    for (size_t i = 0; i < 4; i++) {
        forge_f32(AT_TEMPERATURE, bad[i], "temperature");
        forge_f32(AT_TOP_P, bad[i], "top_p");
        forge_f32(AT_MIN_P, bad[i], "min_p");
        forge_f32(AT_PENALTY, bad[i], "repetition_penalty");
    }
    forge_u32(AT_ADAPTERS, 1, BITAXON_MISMATCH, "an adapter");
    forge_u32(AT_ADAPTERS, 5, BITAXON_FORMAT, "five adapters");
    forge_u32(AT_ADAPTERS, UINT32_MAX, BITAXON_FORMAT, "adapters without end");
    forge_u32(AT_RESERVED, 1, BITAXON_FORMAT, "what is reserved");
    forge_u32(AT_WEIGHTS, 1, BITAXON_FORMAT, "the weight of no adapter");
    forge_u32(AT_IDS + 60, 1, BITAXON_FORMAT, "the id of no adapter");
    static const int32_t tokens[] = { -1, VOCAB, INT32_MAX, INT32_MIN };
    for (size_t i = 0; i < 4; i++) {
        forge(AT_TOKENS, &tokens[i], 4, BITAXON_FORMAT, "first token");
        forge(AT_TOKENS + (LENGTH - 1) * 4, &tokens[i], 4, BITAXON_FORMAT, "last token");
        forge(AT_BIAS + 8, &tokens[i], 4, BITAXON_FORMAT, "token of a bias");
    }
    forge_f32(AT_BIAS + 4, NAN, "bias that is no number");
    forge_f32(AT_BIAS + 4, INFINITY, "bias without end");
    unsigned char other[HEADER] = "GGUFGGUF";
    refuse(other, sizeof other, BITAXON_FORMAT, "another kind of file", true);
    refuse(other, 0, BITAXON_FORMAT, "an empty file", true);
}

/* A state that was saved sound and forged to NaN: reading gives FORMAT, never a crash. */
static void test_forged_state(void **state)
{
    (void)state;
    size_t size;
    unsigned char *data = read_whole(in_folder(root, "good"), &size);
    uint64_t floats;
    memcpy(&floats, data + AT_STATE, sizeof floats);
    size_t at = AT_BIAS + BIASES * 8 + 8;
    for (int part = 0; part < 2; part++) { /* scan state, logits */
        unsigned char *copy = malloc(size);
        assert_non_null(copy);
        memcpy(copy, data, size);
        size_t start = part == 0 ? at : at + floats * 4 + 8, count = part == 0 ? (size_t)floats : VOCAB;
        for (size_t i = 0; i < count; i++) {
            float nan_value = NAN;
            memcpy(copy + start + 4 * i, &nan_value, 4);
        }
        sum_again(copy, start, count * 4);
        write_whole(in_folder(root, "bad"), copy, size);
        bitaxon_session *session = new_session(model, BITAXON_KV_F16, 512);
        bitaxon_status status = bitaxon_cache_load(bitaxon_session_cache(session), in_folder(root, "bad"), &error);
        if (status == BITAXON_OK) {
            int32_t token = 0;
            if (part == 0)
                status = bitaxon_session_prefill(session, &token, 1, &error);
            if (status == BITAXON_OK)
                status = bitaxon_session_decode(session, &token, &error);
        }
        assert_int_equal(status, BITAXON_FORMAT);
        bitaxon_session_free(session);
        free(copy);
    }
    free(data);
    victim_goes_on("forged states");
}

/* ---- of others ----------------------------------------------------------------------------------- */

static void test_foreign(void **state)
{
    (void)state;
    const char *path = in_folder(root, "foreign");
    bitaxon_model_params params = { .struct_size = sizeof params, .path = "tests/golden/tiny-fp32", .threads = 1 };
    bitaxon_model *other;
    OK(bitaxon_model_open(&params, &other, &error));
    bitaxon_session *session = new_session(other, BITAXON_KV_F16, 512);
    read_text(session, 5, LENGTH);
    OK(bitaxon_cache_save(bitaxon_session_cache(session), path, &error));
    bitaxon_session_free(session);
    bitaxon_model_free(other);
    assert_int_equal(bitaxon_cache_load(bitaxon_session_cache(victim), path, &error), BITAXON_MISMATCH);
    victim_goes_on("another model's cache");

    static const char *const names[] = { "f32", "i8", "q4" };
    for (int32_t kv = BITAXON_KV_F32; kv <= BITAXON_KV_Q4; kv++) {
        session = new_session(model, kv, 512);
        read_text(session, 5, LENGTH);
        OK(bitaxon_cache_save(bitaxon_session_cache(session), path, &error));
        bitaxon_session_free(session);
        assert_int_equal(bitaxon_cache_load(bitaxon_session_cache(victim), path, &error), BITAXON_MISMATCH);
        assert_non_null(strstr(error.message, names[kv - BITAXON_KV_F32]));
        assert_non_null(strstr(error.message, "f16"));
        victim_goes_on("another KV type");
    }

    session = new_session(model, BITAXON_KV_F16, 0);
    for (int i = 0; i < 6; i++)
        read_text(session, 5, 100);
    OK(bitaxon_cache_save(bitaxon_session_cache(session), path, &error));
    bitaxon_session_free(session);
    assert_int_equal(bitaxon_cache_load(bitaxon_session_cache(victim), path, &error), BITAXON_LIMIT);
    assert_non_null(strstr(error.message, "600"));
    assert_non_null(strstr(error.message, "512"));
    victim_goes_on("a longer cache");

    assert_int_equal(bitaxon_cache_load(bitaxon_session_cache(victim), in_folder(root, "absent"), &error), BITAXON_IO);
    assert_int_equal(bitaxon_cache_load(bitaxon_session_cache(victim), root, &error), BITAXON_IO);
    assert_int_equal(bitaxon_cache_load(bitaxon_session_cache(victim), "/dev/null", &error), BITAXON_IO);
    victim_goes_on("no file");
}

/* Sound ones load, at every length that matters, and twice. */
static void test_sound(void **state)
{
    (void)state;
    static const uint64_t lengths[] = { 0, 1, 15, 16, 17, 48, 63, 64, 65, 128 };
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        const char *path = in_folder(root, "sound");
        save_one(path, lengths[i]);
        bitaxon_session *session = new_session(model, BITAXON_KV_F16, 512);
        read_text(session, 4, 70);
        for (int twice = 0; twice < 2; twice++) {
            OK(bitaxon_cache_load(bitaxon_session_cache(session), path, &error));
            assert_int_equal(bitaxon_session_position(session), lengths[i]);
        }
        OK(bitaxon_cache_save(bitaxon_session_cache(session), in_folder(root, "again"), &error));
        size_t a, b;
        unsigned char *first = read_whole(path, &a), *second = read_whole(in_folder(root, "again"), &b);
        assert_int_equal(a, b);
        assert_memory_equal(first, second, a);
        free(first);
        free(second);
        bitaxon_session_free(session);
    }
}

/* ---- saving where it cannot be ---------------------------------------------------------------------- */

static int entries(const char *folder)
{
    file_set set;
    file_set_load(&set, folder);
    int count = (int)set.count;
    file_set_free(&set);
    return count;
}

static void test_full_disk(void **state)
{
    (void)state;
    char *folder = make_folder();
    const char *path = in_folder(folder, "cache");
    save_one(path, 10);
    size_t size, after;
    unsigned char *old = read_whole(path, &size);
    struct rlimit was;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    signal(SIGXFSZ, SIG_IGN); /* a write beyond the limit is an error then, as on a full disk */
    for (rlim_t most = 0; most < 20000; most += most < 200 ? 40 : 1777) {
        struct rlimit limit = { most, was.rlim_max };
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        bitaxon_status status = bitaxon_cache_save(bitaxon_session_cache(victim), path, &error);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
        assert_int_equal(status, BITAXON_IO);
        assert_non_null(strstr(error.message, path));
        unsigned char *now = read_whole(path, &after);
        assert_int_equal(after, size);
        assert_memory_equal(now, old, size);
        free(now);
        assert_int_equal(entries(folder), 1);
    }
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(bitaxon_cache_save(bitaxon_session_cache(victim), in_folder(folder, "no/such/place"), &error),
                     BITAXON_IO);
    assert_int_equal(bitaxon_cache_save(bitaxon_session_cache(victim), folder, &error), BITAXON_IO);
    assert_int_equal(bitaxon_cache_save(bitaxon_session_cache(victim), "", &error), BITAXON_IO);
    if (geteuid() == 0) {
        print_message("SKIP read-only folder: root may write everywhere\n");
    } else {
        assert_int_equal(chmod(folder, 0500), 0);
        assert_int_equal(bitaxon_cache_save(bitaxon_session_cache(victim), path, &error), BITAXON_IO);
        assert_int_equal(chmod(folder, 0700), 0);
    }
    unsigned char *now = read_whole(path, &after);
    assert_int_equal(after, size);
    assert_memory_equal(now, old, size);
    free(now);
    free(old);
    remove_folder(folder);
    victim_goes_on("saves that failed");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_byte), cmocka_unit_test(test_length), cmocka_unit_test(test_forged),
        cmocka_unit_test(test_forged_state), cmocka_unit_test(test_foreign), cmocka_unit_test(test_sound),
        cmocka_unit_test(test_full_disk),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
