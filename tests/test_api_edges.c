/* SPDX-License-Identifier: Apache-2.0 */
/* test_api_edges.c - what a host may get wrong, function by function, against the status that
 * the headers promise: missing handles and pointers, struct sizes of every kind, fields of
 * later versions, unknown flags, ranges. Each call is made with five kinds of error record,
 * with guards around the ones that must not be written. */
#include "edges_fixture.h"
#include "fault_files.h"
#include "fault_host.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *root;
static fault_host fault;
static bitaxon_model *model, *other, *words, *text_only;
static bitaxon_session *session, *fresh;
static bitaxon_cache *cache, *foreign;

/* ---- what the calls are made on ----------------------------------------------------------------------- */

static bitaxon_model *open_path(const char *path, uint32_t flags)
{
    bitaxon_model_params params = { .struct_size = sizeof params, .path = path, .threads = 1, .flags = flags,
                                    .host = &fault.host };
    bitaxon_model *opened;
    OK(bitaxon_model_open(&params, &opened, &error));
    return opened;
}

static const int32_t some[4] = { 1, 2, 3, 4 };

static int set_up(void **state)
{
    (void)state;
    root = make_folder();
    fault_host_init(&fault);
    new_model_of_words(in_folder(root, "words"), small_config("\"vocab_size\": 300"), "affine4");
    model = open_path("tests/golden/tiny-q4", 0);
    other = open_path("tests/golden/tiny-q4", 0);
    words = open_path(in_folder(root, "words"), 0);
    text_only = open_path(in_folder(root, "words"), BITAXON_MODEL_TOKENIZER_ONLY);
    OK(bitaxon_cache_create(model, NULL, &cache, &error));
    OK(bitaxon_cache_create(other, NULL, &foreign, &error));
    bitaxon_session_params params = { .struct_size = sizeof params, .cache = cache };
    OK(bitaxon_session_create(model, &params, &session, &error));
    bitaxon_cache_params small = { .struct_size = sizeof small, .max_tokens = 8 };
    bitaxon_session_params short_one = { .struct_size = sizeof short_one, .cache_params = &small };
    OK(bitaxon_session_create(model, &short_one, &fresh, &error));
    OK(bitaxon_session_prefill(session, some, 4, &error));
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    bitaxon_session_free(session);
    bitaxon_session_free(fresh);
    bitaxon_cache_free(cache);
    bitaxon_cache_free(foreign);
    bitaxon_model_free(model);
    bitaxon_model_free(other);
    bitaxon_model_free(words);
    bitaxon_model_free(text_only);
    remove_folder(root);
    assert_string_equal(fault_host_balance(&fault), "");
    return 0;
}

/* ---- parameter structs ---------------------------------------------------------------------------------- */

typedef bitaxon_status (*params_call)(const void *params, bitaxon_error *e);

static bitaxon_status call_open(const void *params, bitaxon_error *e)
{
    bitaxon_model *out = (bitaxon_model *)&guard;
    bitaxon_status status = bitaxon_model_open(params, &out, e);
    assert_true((out != NULL) == (status == BITAXON_OK));
    bitaxon_model_free(out);
    return status;
}

static bitaxon_status call_estimate(const void *params, bitaxon_error *e)
{
    bitaxon_estimate out = { .struct_size = sizeof out };
    return bitaxon_model_estimate(params, NULL, &out, e);
}

static bitaxon_status call_estimate_cache(const void *params, bitaxon_error *e)
{
    bitaxon_model_params p = { .struct_size = sizeof p, .path = "tests/golden/tiny-q4" };
    bitaxon_estimate out = { .struct_size = sizeof out };
    return bitaxon_model_estimate(&p, params, &out, e);
}

static bitaxon_status call_cache_create(const void *params, bitaxon_error *e)
{
    bitaxon_cache *out = (bitaxon_cache *)&guard;
    bitaxon_status status = bitaxon_cache_create(model, params, &out, e);
    assert_true((out != NULL) == (status == BITAXON_OK));
    bitaxon_cache_free(out);
    return status;
}

static bitaxon_status call_session_create(const void *params, bitaxon_error *e)
{
    bitaxon_session *out = (bitaxon_session *)&guard;
    bitaxon_status status = bitaxon_session_create(model, params, &out, e);
    assert_true((out != NULL) == (status == BITAXON_OK));
    bitaxon_session_free(out);
    return status;
}

static bitaxon_status call_set_sampler(const void *params, bitaxon_error *e)
{
    return bitaxon_session_set_sampler(session, params, e);
}

static bitaxon_status call_generate(const void *params, bitaxon_error *e)
{
    bitaxon_status status = bitaxon_session_generate(session, params, NULL, e);
    OK(bitaxon_session_rewind(session, 4, &error));
    return status;
}

static bitaxon_status call_host(const void *host, bitaxon_error *e)
{
    bitaxon_model_params p = { .struct_size = sizeof p, .path = "tests/golden/tiny-q4", .threads = 1, .host = host };
    return call_open(&p, e);
}

static bitaxon_status call_verify(const void *params, bitaxon_error *e) { return bitaxon_model_verify(params, e); }

static const bitaxon_model_params good_open = { .struct_size = sizeof good_open,
                                                .path = "tests/golden/tiny-q4",
                                                .threads = 1 };
static const bitaxon_cache_params good_cache = { .struct_size = sizeof good_cache, .max_tokens = 10 };
static const bitaxon_session_params good_session = { .struct_size = sizeof good_session };
static const bitaxon_sampler_params good_sampler = { .struct_size = sizeof good_sampler };
static const bitaxon_generate_params good_generate = { .struct_size = sizeof good_generate, .max_tokens = 1 };
static const bitaxon_host good_host = { .struct_size = sizeof good_host };
static const bitaxon_convert_params good_convert = { .struct_size = sizeof good_convert,
                                                     .input = "tests/golden/tiny-q4" };

static const struct {
    const char *name;
    params_call call;
    const void *good;
    size_t size;
    size_t enough; /* bytes that make the call work */
} structs[] = {
    { "open", call_open, &good_open, sizeof good_open, offsetof(bitaxon_model_params, files) },
    { "estimate", call_estimate, &good_open, sizeof good_open, offsetof(bitaxon_model_params, files) },
    { "estimate's cache", call_estimate_cache, &good_cache, sizeof good_cache, 8 },
    { "cache_create", call_cache_create, &good_cache, sizeof good_cache, 8 },
    { "session_create", call_session_create, &good_session, sizeof good_session, 8 },
    { "set_sampler", call_set_sampler, &good_sampler, sizeof good_sampler, 8 },
    { "generate", call_generate, &good_generate, sizeof good_generate, 16 },
    { "host", call_host, &good_host, sizeof good_host, 16 },
    { "verify", call_verify, &good_convert, sizeof good_convert, offsetof(bitaxon_convert_params, output) },
};

static void test_struct_sizes(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof structs / sizeof structs[0]; i++) {
        params_call call = structs[i].call;
        size_t size = structs[i].size;
        print_message("%s\n", structs[i].name);
        static const uint32_t wrong[] = { 0, 1, 4, 7, 4097, 0x7FFFFFFF, 0x80000000, UINT32_MAX };
        for (size_t s = 0; s < sizeof wrong / sizeof wrong[0]; s++) {
            unsigned char *exact = malloc(size); /* a sanitizer sees a read beyond it */
            assert_non_null(exact);
            memcpy(exact, structs[i].good, size);
            memcpy(exact, &wrong[s], 4);
            EDGE(INVALID_ARGUMENT, call(exact, e));
            free(exact);
        }
        for (size_t s = structs[i].enough; s <= size; s++) { /* earlier versions: the rest is default */
            unsigned char *exact = malloc(s);
            assert_non_null(exact);
            uint32_t bytes = (uint32_t)s;
            memcpy(exact, structs[i].good, s);
            memcpy(exact, &bytes, 4);
            if (s % 8 == 0)
                EDGE(OK, call(exact, e));
            free(exact);
        }
        for (uint32_t more = 1; more <= 64; more += 21) { /* later versions */
            unsigned char *longer = calloc(1, size + more);
            assert_non_null(longer);
            uint32_t bytes = (uint32_t)size + more;
            memcpy(longer, structs[i].good, size);
            memcpy(longer, &bytes, 4);
            EDGE(OK, call(longer, e));
            longer[size + more - 1] = 1;
            EDGE(UNSUPPORTED, call(longer, e));
            free(longer);
        }
    }
}

/* ---- results ----------------------------------------------------------------------------------------------- */

typedef bitaxon_status (*result_call)(void *out, bitaxon_error *e);

static bitaxon_status fill_estimate(void *out, bitaxon_error *e)
{
    return bitaxon_model_estimate(&good_open, NULL, out, e);
}
static bitaxon_status fill_tensor(void *out, bitaxon_error *e) { return bitaxon_model_tensor_info(model, 0, out, e); }
static bitaxon_status fill_stats(void *out, bitaxon_error *e) { return bitaxon_session_stats(session, out, e); }

static bitaxon_status fill_generated(void *out, bitaxon_error *e)
{
    bitaxon_status status = bitaxon_session_generate(session, &good_generate, out, e);
    OK(bitaxon_session_rewind(session, 4, &error));
    return status;
}

static void test_results(void **state)
{
    (void)state;
    static const result_call calls[] = { fill_estimate, fill_tensor, fill_stats, fill_generated };
    static const size_t sizes[] = { sizeof(bitaxon_estimate), sizeof(bitaxon_tensor_info), sizeof(bitaxon_stats),
                                    sizeof(bitaxon_generate_result) };
    for (size_t i = 0; i < 4; i++) {
        result_call call = calls[i];
        unsigned char bytes[512];
        static const uint32_t wrong[] = { 0, 1, 4, 7 };
        for (size_t s = 0; s < 4; s++) {
            memset(bytes, 0xEE, sizeof bytes);
            memcpy(bytes, &wrong[s], 4);
            EDGE(INVALID_ARGUMENT, call(bytes, e));
            for (size_t b = 4; b < sizeof bytes; b++)
                assert_int_equal(bytes[b], 0xEE);
        }
        for (uint32_t size = 8; size <= 400; size += 8) {
            memset(bytes, 0xEE, sizeof bytes);
            memcpy(bytes, &size, 4);
            EDGE(OK, call(bytes, e));
            uint32_t kept;
            memcpy(&kept, bytes, 4);
            assert_int_equal(kept, size);
            for (size_t b = size < sizes[i] ? size : sizes[i]; b < sizeof bytes; b++)
                assert_int_equal(bytes[b], 0xEE);
        }
    }
}

/* ---- models -------------------------------------------------------------------------------------------------- */

static bitaxon_status open_with(bitaxon_model_params p, bitaxon_error *e)
{
    p.struct_size = sizeof p;
    return call_open(&p, e);
}

#define OPEN(want, ...) EDGE(want, open_with((bitaxon_model_params){ __VA_ARGS__ }, e))

static void *some_alloc(void *user, size_t size, size_t align)
{
    (void)user;
    (void)size;
    (void)align;
    return NULL;
}

static void test_models(void **state)
{
    (void)state;
    const char *path = "tests/golden/tiny-q4";
    bitaxon_source source;
    OK(bitaxon_source_memory("{}", 2, &source, &error));
    const bitaxon_file file = { "config.json", &source };
    EDGE(INVALID_ARGUMENT, bitaxon_model_open(&good_open, NULL, e));
    EDGE_OUT(INVALID_ARGUMENT, bitaxon_model, bitaxon_model_open(NULL, &out, e));
    OPEN(INVALID_ARGUMENT, .threads = 1);
    OPEN(INVALID_ARGUMENT, .path = path, .files = &file, .file_count = 1);
    OPEN(INVALID_ARGUMENT, .path = path, .file_count = 1);
    OPEN(INVALID_ARGUMENT, .path = path, .threads = 257);
    OPEN(INVALID_ARGUMENT, .path = path, .threads = UINT32_MAX);
    OPEN(UNSUPPORTED, .path = path, .flags = 16);
    OPEN(UNSUPPORTED, .path = path, .flags = 0x80000000);
    OPEN(UNSUPPORTED, .path = path, .flags = UINT32_MAX);
    OPEN(INVALID_ARGUMENT, .path = path, .flags = BITAXON_MODEL_TOKENIZER_ONLY | BITAXON_MODEL_NO_TOKENIZER);
    OPEN(INVALID_ARGUMENT, .path = path, .tokenizer = "tests/golden", .flags = BITAXON_MODEL_NO_TOKENIZER);
    OPEN(IO, .path = path, .tokenizer = "");
    OPEN(IO, .path = path, .tokenizer = "tests/golden/no-such-folder");
    OPEN(IO, .path = path, .tokenizer = "tests/golden"); /* no tokenizer.json */
    OPEN(IO, .path = "");
    OPEN(IO, .path = "tests/golden/no-such-model");
    OPEN(IO, .path = "tests/golden/tiny-q4/config.json/x");
    OPEN(INVALID_ARGUMENT, .path = "tests/golden/tiny-q4/config.json");
    OPEN(INVALID_ARGUMENT, .path = "/dev/null");
    OPEN(IO, .path = "tests/golden");
    OPEN(IO, .path = path, .flags = BITAXON_MODEL_TOKENIZER_ONLY);
    OPEN(LIMIT, .path = path, .max_bytes = 1);
    OPEN(OK, .path = path, .max_bytes = UINT64_MAX, .threads = 1);
    OPEN(OK, .path = path, .cpu_mask = UINT64_MAX, .threads = 1);
    OPEN(OK, .path = path, .cpu_mask = BITAXON_CPU_NONE, .threads = 1);
    OPEN(OK, .path = path, .cpu_mask = 0x4000000000000000u, .threads = 256);
    OPEN(OK, .path = "tests/golden/tiny-q4/weights.safetensors", .threads = 1);
    OPEN(IO, .files = &file, .file_count = 0);
    OPEN(IO, .files = &file, .file_count = 1);
    const bitaxon_file twice[2] = { file, file };
    OPEN(INVALID_ARGUMENT, .files = twice, .file_count = 2);
    static const char *const names[] = { NULL, "", "a/b", ".", "..", "/config.json" };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const bitaxon_file bad = { names[i], &source };
        OPEN(INVALID_ARGUMENT, .files = &bad, .file_count = 1);
    }
    char long_name[2000];
    memset(long_name, 'n', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = '\0';
    const bitaxon_file bad_name = { long_name, &source };
    OPEN(INVALID_ARGUMENT, .files = &bad_name, .file_count = 1);
    const bitaxon_file no_source = { "config.json", NULL };
    OPEN(INVALID_ARGUMENT, .files = &no_source, .file_count = 1);
    bitaxon_source broken = source;
    const bitaxon_file broken_file = { "config.json", &broken };
    broken.struct_size = 0;
    OPEN(INVALID_ARGUMENT, .files = &broken_file, .file_count = 1);
    broken = source;
    broken.read_at = NULL;
    OPEN(INVALID_ARGUMENT, .files = &broken_file, .file_count = 1);
    bitaxon_host half = { .struct_size = sizeof half, .alloc = some_alloc };
    OPEN(INVALID_ARGUMENT, .path = path, .host = &half);

    EDGE(INVALID_ARGUMENT,
         bitaxon_model_estimate(NULL, NULL, &(bitaxon_estimate){ .struct_size = sizeof(bitaxon_estimate) }, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_estimate(&good_open, NULL, NULL, e));
    bitaxon_model_free(NULL);

    int64_t value = 77;
    EDGE(INVALID_ARGUMENT, bitaxon_model_info_int(NULL, "threads", &value, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_info_int(model, NULL, &value, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_info_int(model, "threads", NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_info_int(model, "Threads", &value, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_info_int(model, long_name, &value, e));
    assert_int_equal(value, 77);
    EDGE(OK, bitaxon_model_info_int(text_only, "threads", &value, e));

    char buffer[600];
    size_t need;
    static const char *const keys[] = { "rms_norm_eps",          "rope_theta", "architecture", "path",    "fingerprint",
                                        "tokenizer_fingerprint", "tied",       "kernels",      "accuracy" };
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        EDGE(LIMIT, bitaxon_model_info_text(model, keys[i], NULL, 0, &need, e));
        size_t bytes = need;
        memset(buffer, 0x7E, sizeof buffer);
        EDGE(LIMIT, bitaxon_model_info_text(model, keys[i], buffer, bytes - 1, NULL, e));
        assert_int_equal(buffer[0], 0x7E);
        EDGE(OK, bitaxon_model_info_text(model, keys[i], buffer, bytes, &need, e));
        assert_int_equal(strlen(buffer) + 1, bytes);
        assert_int_equal(buffer[bytes], 0x7E);
        EDGE(INVALID_ARGUMENT, bitaxon_model_info_text(model, keys[i], NULL, 5, &need, e));
    }
    EDGE(INVALID_ARGUMENT, bitaxon_model_info_text(NULL, "path", buffer, 5, &need, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_info_text(model, NULL, buffer, 5, &need, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_info_text(model, "none", buffer, 5, &need, e));

    bitaxon_tensor_info info = { .struct_size = sizeof info };
    int64_t tensors;
    OK(bitaxon_model_info_int(model, "tensors", &tensors, &error));
    EDGE(INVALID_ARGUMENT, bitaxon_model_tensor_info(NULL, 0, &info, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_tensor_info(model, 0, NULL, e));
    EDGE(OK, bitaxon_model_tensor_info(model, (uint64_t)tensors - 1, &info, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_tensor_info(model, (uint64_t)tensors, &info, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_tensor_info(model, UINT64_MAX, &info, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_tensor_info(text_only, 0, &info, e));
}

static void test_sources(void **state)
{
    (void)state;
    bitaxon_source source;
    EDGE(INVALID_ARGUMENT, bitaxon_source_file_open("x", NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_source_file_open(NULL, &source, e));
    EDGE(IO, bitaxon_source_file_open("", &source, e));
    EDGE(IO, bitaxon_source_file_open("tests/golden", &source, e));
    EDGE(IO, bitaxon_source_file_open("/dev/zero", &source, e));
    EDGE(IO, bitaxon_source_file_open("tests/golden/absent", &source, e));
    bitaxon_source_close(&source); /* a failed open leaves nothing to close */
    bitaxon_source_close(NULL);
    EDGE(INVALID_ARGUMENT, bitaxon_source_memory(NULL, 1, &source, e));
    EDGE(INVALID_ARGUMENT, bitaxon_source_memory("x", 1, NULL, e));
    EDGE(OK, bitaxon_source_memory(NULL, 0, &source, e));
    for (int i = 0; i < 3; i++) {
        OK(bitaxon_source_file_open("tests/golden/tiny-q4/config.json", &source, &error));
        bitaxon_source_close(&source);
        bitaxon_source_close(&source);
    }
}

/* ---- caches and sessions ---------------------------------------------------------------------------------------- */

static bitaxon_status cache_with(bitaxon_cache_params p, bitaxon_error *e)
{
    p.struct_size = sizeof p;
    return call_cache_create(&p, e);
}

#define CACHE(want, ...) EDGE(want, cache_with((bitaxon_cache_params){ __VA_ARGS__ }, e))

static void test_caches(void **state)
{
    (void)state;
    EDGE(INVALID_ARGUMENT, bitaxon_cache_create(model, NULL, NULL, e));
    EDGE_OUT(INVALID_ARGUMENT, bitaxon_cache, bitaxon_cache_create(NULL, NULL, &out, e));
    EDGE_OUT(BAD_STATE, bitaxon_cache, bitaxon_cache_create(text_only, NULL, &out, e));
    CACHE(INVALID_ARGUMENT, .kv_type = BITAXON_KV_Q4 + 1);
    CACHE(INVALID_ARGUMENT, .kv_type = -1);
    CACHE(INVALID_ARGUMENT, .kv_type = INT32_MAX);
    CACHE(LIMIT, .max_tokens = 65537);
    CACHE(LIMIT, .max_tokens = UINT64_MAX);
    CACHE(OK, .max_tokens = 65536);
    CACHE(OK, .max_tokens = 1, .checkpoint_interval = UINT64_MAX, .checkpoint_max = UINT32_MAX);
    bitaxon_cache_free(NULL);
    bitaxon_cache_reset(NULL);
    assert_int_equal(bitaxon_cache_length(NULL), 0);
    assert_int_equal(bitaxon_cache_length(cache), 4);

    int32_t out[4] = { 0 };
    EDGE(INVALID_ARGUMENT, bitaxon_cache_tokens(NULL, 0, 1, out, e));
    EDGE(INVALID_ARGUMENT, bitaxon_cache_tokens(cache, 0, 1, NULL, e));
    EDGE(OK, bitaxon_cache_tokens(cache, 0, 0, NULL, e));
    EDGE(OK, bitaxon_cache_tokens(cache, 0, 4, out, e));
    assert_memory_equal(out, some, sizeof out);
    EDGE(INVALID_ARGUMENT, bitaxon_cache_tokens(cache, 0, 5, out, e));
    EDGE(INVALID_ARGUMENT, bitaxon_cache_tokens(cache, 5, 0, out, e));
    EDGE(INVALID_ARGUMENT, bitaxon_cache_tokens(cache, 1, UINT64_MAX, out, e));
    EDGE(INVALID_ARGUMENT, bitaxon_cache_tokens(cache, UINT64_MAX, 1, out, e));

    EDGE(INVALID_ARGUMENT, bitaxon_cache_checkpoint(NULL, e));
    EDGE(OK, bitaxon_cache_checkpoint(foreign, e));
    EDGE(INVALID_ARGUMENT, bitaxon_cache_checkpoint_drop(NULL, 0, e));
    EDGE(END, bitaxon_cache_checkpoint_drop(foreign, 0, e));
    EDGE(END, bitaxon_cache_checkpoint_drop(cache, UINT64_MAX, e));
    uint64_t from, replay;
    EDGE(INVALID_ARGUMENT, bitaxon_cache_rewind_cost(NULL, 0, &from, &replay, e));
    EDGE(INVALID_ARGUMENT, bitaxon_cache_rewind_cost(cache, 5, &from, &replay, e));
    EDGE(INVALID_ARGUMENT, bitaxon_cache_rewind_cost(cache, UINT64_MAX, NULL, NULL, e));
    EDGE(OK, bitaxon_cache_rewind_cost(cache, 4, NULL, NULL, e));
    EDGE(OK, bitaxon_cache_rewind_cost(cache, 3, &from, &replay, e));
    assert_int_equal(from + replay, 3);

    EDGE(INVALID_ARGUMENT, bitaxon_cache_clone(cache, NULL, e));
    EDGE_OUT(INVALID_ARGUMENT, bitaxon_cache, bitaxon_cache_clone(NULL, &out, e));
    EDGE(INVALID_ARGUMENT, bitaxon_cache_save(NULL, "x", e));
    EDGE(INVALID_ARGUMENT, bitaxon_cache_save(cache, NULL, e));
    EDGE(IO, bitaxon_cache_save(cache, "", e));
    EDGE(INVALID_ARGUMENT, bitaxon_cache_load(NULL, "x", e));
    EDGE(INVALID_ARGUMENT, bitaxon_cache_load(cache, NULL, e));
    EDGE(IO, bitaxon_cache_load(cache, "", e));
    EDGE(FORMAT, bitaxon_cache_load(cache, "tests/golden/tiny-q4/config.json", e));
    assert_int_equal(bitaxon_cache_length(cache), 4);
}

static bitaxon_status session_with(bitaxon_session_params p, bitaxon_error *e)
{
    p.struct_size = sizeof p;
    return call_session_create(&p, e);
}

#define SESSION(want, ...) EDGE(want, session_with((bitaxon_session_params){ __VA_ARGS__ }, e))

static bitaxon_status sampler_with(bitaxon_sampler_params p, bitaxon_error *e)
{
    p.struct_size = sizeof p;
    return bitaxon_session_set_sampler(session, &p, e);
}

#define SAMPLER(want, ...) EDGE(want, sampler_with((bitaxon_sampler_params){ __VA_ARGS__ }, e))

static void test_sessions(void **state)
{
    (void)state;
    const int32_t low[] = { 1, -1 }, high[] = { 1, 96 }, far_off[] = { INT32_MIN, INT32_MAX };
    float logits[4 * 96];
    double sum;
    int32_t token = 55;
    const float *borrowed = logits;
    EDGE(INVALID_ARGUMENT, bitaxon_session_create(model, NULL, NULL, e));
    EDGE_OUT(INVALID_ARGUMENT, bitaxon_session, bitaxon_session_create(NULL, NULL, &out, e));
    EDGE_OUT(BAD_STATE, bitaxon_session, bitaxon_session_create(text_only, NULL, &out, e));
    SESSION(BAD_STATE, .cache = cache);
    SESSION(MISMATCH, .cache = foreign);
    SESSION(INVALID_ARGUMENT, .cache = foreign, .cache_params = &good_cache);
    const bitaxon_cache_params bad_cache = { .struct_size = sizeof bad_cache, .kv_type = 9 };
    const bitaxon_sampler_params bad_sampler = { .struct_size = sizeof bad_sampler, .temperature = -1 };
    SESSION(INVALID_ARGUMENT, .cache_params = &bad_cache);
    SESSION(INVALID_ARGUMENT, .sampler = &bad_sampler);
    bitaxon_session_free(NULL);
    bitaxon_session_cancel(NULL);
    bitaxon_session_stats_reset(NULL);
    assert_null(bitaxon_session_cache(NULL));
    assert_int_equal(bitaxon_session_position(NULL), 0);
    EDGE(INVALID_ARGUMENT, bitaxon_session_set_cache(NULL, cache, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_set_cache(session, NULL, e));
    EDGE(MISMATCH, bitaxon_session_set_cache(session, foreign, e));
    EDGE(BAD_STATE, bitaxon_session_set_cache(fresh, cache, e));

    EDGE(INVALID_ARGUMENT, bitaxon_session_prefill(NULL, some, 1, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_prefill(session, NULL, 1, e));
    EDGE(OK, bitaxon_session_prefill(session, NULL, 0, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_prefill(session, low, 2, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_prefill(session, high, 2, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_prefill(session, far_off, 2, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_evaluate(NULL, some, 1, logits, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_evaluate(session, NULL, 1, logits, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_evaluate(session, some, 1, NULL, e));
    EDGE(OK, bitaxon_session_evaluate(session, some, 0, NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_evaluate(session, high, 2, logits, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_score(NULL, some, 1, &sum, NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_score(session, NULL, 1, &sum, NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_score(session, low, 2, &sum, NULL, e));
    EDGE(OK, bitaxon_session_score(session, NULL, 0, NULL, NULL, e));

    EDGE(INVALID_ARGUMENT, bitaxon_session_decode(NULL, &token, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_decode(session, NULL, e));
    EDGE(BAD_STATE, bitaxon_session_decode(fresh, &token, e));
    EDGE(INVALID_ARGUMENT, bitaxon_batch_decode(NULL, 1, &token, NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_sample(NULL, &token, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_sample(session, NULL, e));
    EDGE(BAD_STATE, bitaxon_session_sample(fresh, &token, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_logits(NULL, &borrowed, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_logits(session, NULL, e));
    EDGE(BAD_STATE, bitaxon_session_logits(fresh, &borrowed, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_rewind(NULL, 0, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_rewind(session, 5, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_rewind(session, UINT64_MAX, e));
    EDGE(OK, bitaxon_session_rewind(session, 4, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_set_sampler(NULL, NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_generate(NULL, NULL, NULL, e));
    EDGE(BAD_STATE, bitaxon_session_generate(fresh, NULL, NULL, e));
    bitaxon_stats stats = { .struct_size = sizeof stats };
    EDGE(INVALID_ARGUMENT, bitaxon_session_stats(NULL, &stats, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_stats(session, NULL, e));
    assert_int_equal(token, 55);
    assert_int_equal(bitaxon_session_position(session), 4);

    /* the context: its numbers are in the message, nothing is read */
    const int32_t nine[9] = { 1, 1, 1, 1, 1, 1, 1, 1, 1 };
    EDGE(LIMIT, bitaxon_session_prefill(fresh, nine, 9, e));
    assert_int_equal(bitaxon_session_prefill(fresh, nine, 9, &error), BITAXON_LIMIT);
    assert_non_null(strstr(error.message, "9"));
    assert_non_null(strstr(error.message, "8"));
    assert_int_equal(bitaxon_session_position(fresh), 0);
    OK(bitaxon_session_prefill(fresh, nine, 8, &error));
    EDGE(LIMIT, bitaxon_session_decode(fresh, &token, e));
    bitaxon_generate_result result = { .struct_size = sizeof result };
    EDGE(LIMIT, bitaxon_session_generate(fresh, NULL, &result, e));
    assert_int_equal(result.finish, BITAXON_FINISH_CONTEXT);
    assert_int_equal(bitaxon_session_position(fresh), 8);
    bitaxon_cache_reset(bitaxon_session_cache(fresh));
}

static void test_sampler(void **state)
{
    (void)state;
    static const float rubbish[] = { NAN, -1.0f, INFINITY, -INFINITY };
    for (size_t i = 0; i < 4; i++) {
        SAMPLER(INVALID_ARGUMENT, .temperature = rubbish[i]);
        SAMPLER(INVALID_ARGUMENT, .top_p = rubbish[i]);
        SAMPLER(INVALID_ARGUMENT, .min_p = rubbish[i]);
        SAMPLER(INVALID_ARGUMENT, .repetition_penalty = rubbish[i]);
    }
    SAMPLER(INVALID_ARGUMENT, .top_p = 1.5f);
    SAMPLER(INVALID_ARGUMENT, .min_p = 1.0f);
    SAMPLER(INVALID_ARGUMENT, .bias_count = 1);
    SAMPLER(INVALID_ARGUMENT, .bias_count = UINT32_MAX);
    static const bitaxon_logit_bias biases[] = { { -1, 0 }, { 96, 0 }, { INT32_MIN, 0 }, { 0, NAN }, { 0, INFINITY } };
    for (size_t i = 0; i < 5; i++)
        SAMPLER(INVALID_ARGUMENT, .bias = &biases[i], .bias_count = 1);
    static bitaxon_logit_bias many[1025];
    SAMPLER(OK, .bias = many, .bias_count = 1024);
    SAMPLER(INVALID_ARGUMENT, .bias = many, .bias_count = 1025);
    /* extremes that are allowed give a token */
    static const bitaxon_logit_bias forbid = { 5, -INFINITY };
    int32_t token;
    const bitaxon_sampler_params extremes[] = {
        { .struct_size = sizeof extremes[0], .temperature = 1e-30f },
        { .struct_size = sizeof extremes[0], .temperature = 3e38f },
        { .struct_size = sizeof extremes[0], .temperature = 1, .top_k = 1, .top_p = 1e-38f, .min_p = 0.999999f },
        { .struct_size = sizeof extremes[0], .repetition_penalty = 1e-38f },
        { .struct_size = sizeof extremes[0], .repetition_penalty = 3e38f, .temperature = 1 },
        { .struct_size = sizeof extremes[0], .repetition_penalty = 3e38f, .temperature = 1, .top_k = 3, .top_p = 0.5f },
        { .struct_size = sizeof extremes[0], .bias = &forbid, .bias_count = 1, .repetition_window = UINT32_MAX },
        { .struct_size = sizeof extremes[0], .temperature = 1, .seed = UINT64_MAX },
    };
    for (size_t i = 0; i < sizeof extremes / sizeof extremes[0]; i++) {
        OK(bitaxon_session_set_sampler(session, &extremes[i], &error));
        OK(bitaxon_session_sample(session, &token, &error));
        assert_in_range(token, 0, 95);
    }
    OK(bitaxon_session_set_sampler(session, NULL, &error));
}

static bitaxon_status generate_with(bitaxon_generate_params p, bitaxon_error *e)
{
    p.struct_size = sizeof p;
    p.max_tokens = p.max_tokens != 0 ? p.max_tokens : 1;
    return call_generate(&p, e);
}

#define GENERATE(want, ...) EDGE(want, generate_with((bitaxon_generate_params){ __VA_ARGS__ }, e))

static void test_generate(void **state)
{
    (void)state;
    static const char *const stop[] = { "x", "" }, *const none[] = { NULL };
    static const int32_t eos[] = { -7, 1 << 30 };
    GENERATE(INVALID_ARGUMENT, .top_logprobs = 65);
    GENERATE(INVALID_ARGUMENT, .top_logprobs = UINT32_MAX);
    GENERATE(OK, .top_logprobs = 64);
    GENERATE(INVALID_ARGUMENT, .stop_count = 1);
    GENERATE(INVALID_ARGUMENT, .stop = stop, .stop_count = 2);
    GENERATE(INVALID_ARGUMENT, .stop = none, .stop_count = 1);
    GENERATE(INVALID_ARGUMENT, .stop = stop, .stop_count = UINT32_MAX);
    GENERATE(BAD_STATE, .stop = stop, .stop_count = 1);
    GENERATE(INVALID_ARGUMENT, .eos_count = 1);
    GENERATE(INVALID_ARGUMENT, .eos = eos, .eos_count = UINT32_MAX);
    GENERATE(OK, .eos = eos, .eos_count = 2);
    GENERATE(UNSUPPORTED, .flags = 8);
    GENERATE(UNSUPPORTED, .flags = UINT32_MAX);
    GENERATE(OK, .flags = 7, .max_tokens = 3);
}

/* ---- text -------------------------------------------------------------------------------------------- */

static void test_text(void **state)
{
    (void)state;
    int32_t ids[64], bad_ids[] = { 1, TOKENIZER_IDS }, low_ids[] = { -1 };
    char buffer[256];
    size_t need;
    bitaxon_text_stream stream = { .struct_size = sizeof stream };
    EDGE(INVALID_ARGUMENT, bitaxon_model_tokenize(NULL, "a", 1, 0, ids, 64, &need, e));
    EDGE(BAD_STATE, bitaxon_model_tokenize(model, "a", 1, 0, ids, 64, &need, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_tokenize(words, NULL, 1, 0, ids, 64, &need, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_tokenize(words, "a", 1, 0, NULL, 64, &need, e));
    EDGE(OK, bitaxon_model_tokenize(words, NULL, 0, 0, NULL, 0, &need, e));
    assert_int_equal(need, 0);
    EDGE(LIMIT, bitaxon_model_tokenize(words, "the end", 7, 0, NULL, 0, &need, e));
    size_t count = need;
    memset(ids, 0x7E, sizeof ids);
    EDGE(LIMIT, bitaxon_model_tokenize(words, "the end", 7, 0, ids, count - 1, &need, e));
    assert_int_equal(ids[0], 0x7E7E7E7E);
    EDGE(OK, bitaxon_model_tokenize(words, "the end", 7, 0, ids, count, &need, e));
    EDGE(OK,
         bitaxon_model_tokenize(text_only, "\xff\xfe\0<|im_end|>", 13, BITAXON_TOKENIZE_SPECIAL, ids, 64, &need, e));
    EDGE(OK, bitaxon_model_tokenize(words, "the end", 7, 0, ids, 64, &need, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_detokenize(NULL, ids, count, 0, buffer, 256, &need, e));
    EDGE(BAD_STATE, bitaxon_model_detokenize(model, ids, count, 0, buffer, 256, &need, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_detokenize(words, NULL, 1, 0, buffer, 256, &need, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_detokenize(words, ids, count, 0, NULL, 256, &need, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_detokenize(words, bad_ids, 2, 0, buffer, 256, &need, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_detokenize(words, low_ids, 1, 0, buffer, 256, &need, e));
    EDGE(LIMIT, bitaxon_model_detokenize(words, ids, count, 0, NULL, 0, &need, e));
    assert_int_equal(need, 7);
    EDGE(LIMIT, bitaxon_model_detokenize(words, ids, count, 0, buffer, 6, &need, e));
    EDGE(OK, bitaxon_model_detokenize(words, ids, count, 0, buffer, 7, &need, e));
    EDGE(INVALID_ARGUMENT, bitaxon_text_stream_next(NULL, &stream, 1, 0, buffer, 256, &need, e));
    EDGE(INVALID_ARGUMENT, bitaxon_text_stream_next(words, NULL, 1, 0, buffer, 256, &need, e));
    EDGE(BAD_STATE, bitaxon_text_stream_next(model, &stream, 1, 0, buffer, 256, &need, e));
    EDGE(INVALID_ARGUMENT, bitaxon_text_stream_next(words, &stream, TOKENIZER_IDS, 0, buffer, 256, &need, e));
    EDGE(INVALID_ARGUMENT, bitaxon_text_stream_next(words, &stream, -2, 0, buffer, 256, &need, e));
    EDGE(INVALID_ARGUMENT, bitaxon_text_stream_next(words, &stream, 1, 0, NULL, 256, &need, e));
    bitaxon_text_stream odd = { .struct_size = sizeof odd, .pending_bytes = 9 };
    EDGE(INVALID_ARGUMENT, bitaxon_text_stream_next(words, &odd, 1, 0, buffer, 256, &need, e));
    odd.pending_bytes = UINT32_MAX;
    EDGE(INVALID_ARGUMENT, bitaxon_text_stream_next(words, &odd, 1, 0, buffer, 256, &need, e));
    EDGE(LIMIT, bitaxon_text_stream_next(words, &stream, ids[0], 0, NULL, 0, &need, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_token_id(NULL, "a", 1, ids, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_token_id(words, NULL, 1, ids, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_token_id(words, "a", 1, NULL, e));
    EDGE(BAD_STATE, bitaxon_model_token_id(model, "a", 1, ids, e));
    EDGE(END, bitaxon_model_token_id(words, "no such token", 13, ids, e));
    EDGE(OK, bitaxon_model_token_id(words, "<|im_end|>", 10, ids, e));
    bitaxon_message message = { .struct_size = sizeof message, .role = "user", .content = "hi", .content_bytes = 2 };
    bitaxon_message empty = { .struct_size = sizeof empty, .content = "hi", .content_bytes = 2 };
    EDGE(INVALID_ARGUMENT, bitaxon_model_chat(NULL, &message, 1, 0, ids, 64, &need, NULL, e));
    EDGE(BAD_STATE, bitaxon_model_chat(model, &message, 1, 0, ids, 64, &need, NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_chat(words, NULL, 1, 0, ids, 64, &need, NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_chat(words, &empty, 1, 0, ids, 64, &need, NULL, e));
    EDGE(LIMIT, bitaxon_model_chat(words, &message, 1, 0, NULL, 0, &need, NULL, e));
    EDGE(OK, bitaxon_model_chat(words, &message, 1, BITAXON_CHAT_GENERATE, ids, 64, &need, NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_eos_tokens(NULL, ids, 64, &need, e));
    EDGE(LIMIT, bitaxon_model_eos_tokens(words, NULL, 0, &need, e));
    EDGE(OK, bitaxon_model_eos_tokens(words, ids, 64, &need, e));
}

static void test_small_things(void **state)
{
    (void)state;
    assert_string_equal(bitaxon_status_name(0), "OK");
    assert_string_equal(bitaxon_status_name(-12), "INTERNAL");
    assert_string_equal(bitaxon_status_name(-13), "UNKNOWN");
    assert_string_equal(bitaxon_status_name(INT32_MIN), "UNKNOWN");
    assert_string_equal(bitaxon_status_name(INT32_MAX), "UNKNOWN");
    assert_int_equal(bitaxon_struct_size("bitaxon_error"), sizeof(bitaxon_error));
    assert_int_equal(bitaxon_struct_size("no such struct"), 0);
    assert_int_equal(bitaxon_struct_size(""), 0);
    assert_int_equal(bitaxon_struct_size(NULL), 0);
    EDGE(INVALID_ARGUMENT, bitaxon_model_new(NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_quantize(NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_pack(NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_verify(NULL, e));
    bitaxon_convert_params none = { .struct_size = sizeof none };
    EDGE(INVALID_ARGUMENT, bitaxon_model_new(&none, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_quantize(&none, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_pack(&none, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_verify(&none, e));
    bitaxon_convert_params odd = { .struct_size = sizeof odd, .input = "tests/golden/tiny-fp32",
                                   .output = in_folder(root, "odd"), .format = "affine9" };
    EDGE(INVALID_ARGUMENT, bitaxon_model_quantize(&odd, e));
    odd.format = "affine4";
    odd.group_size = 33;
    EDGE(INVALID_ARGUMENT, bitaxon_model_quantize(&odd, e));
    odd.group_size = 0;
    odd.flags = 0x100;
    EDGE(UNSUPPORTED, bitaxon_model_quantize(&odd, e));
    odd.flags = 0;
    odd.output = odd.input;
    EDGE(INVALID_ARGUMENT, bitaxon_model_quantize(&odd, e));
    EDGE(INVALID_ARGUMENT, bitaxon_model_pack(&odd, e));
    odd.input = "no such preset";
    odd.output = in_folder(root, "odd");
    EDGE(INVALID_ARGUMENT, bitaxon_model_new(&odd, e));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_struct_sizes), cmocka_unit_test(test_results), cmocka_unit_test(test_models),
        cmocka_unit_test(test_sources), cmocka_unit_test(test_caches), cmocka_unit_test(test_sessions),
        cmocka_unit_test(test_sampler), cmocka_unit_test(test_generate), cmocka_unit_test(test_text),
        cmocka_unit_test(test_small_things),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
