/* SPDX-License-Identifier: Apache-2.0 */
/* test_mutate.c - model files with one thing wrong: each number of a safetensors header, each
 * tensor missing, surplus or misshapen, values that are not finite, each key of config.json.
 * Always a status and a message that names the thing, never a crash, never much memory. What
 * still opens must also run. */
#include "fault_files.h"
#include "fault_host.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { CEILING = 6 << 20 };
#define WEIGHTS "weights.safetensors"

static bitaxon_error error = BITAXON_ERROR_INIT;
static const char *const models[] = { "tests/golden/tiny-fp32", "tests/golden/tiny-q4" };

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Open within the ceiling, and when that works read some tokens. Balance and bounds hold always. */
static bitaxon_status try_model(file_set *set, uint32_t flags)
{
    fault_host fault;
    fault_host_init(&fault);
    fault.ceiling = CEILING;
    bitaxon_model_params params = { .struct_size = sizeof params, .flags = flags, .threads = 1, .host = &fault.host,
                                    .max_bytes = CEILING };
    bitaxon_model *model = (bitaxon_model *)&fault;
    bitaxon_session *session = NULL;
    file_set_use(set, &params);
    memset(error.message, 0, sizeof error.message);
    double began = seconds();
    bitaxon_status status = bitaxon_model_open(&params, &model, &error);
    if (status != BITAXON_OK) {
        assert_null(model);
        assert_int_equal(error.code, status);
        assert_true(strlen(error.message) > 10);
    } else {
        bitaxon_cache_params cache = { .struct_size = sizeof cache };
        bitaxon_session_params sp = { .struct_size = sizeof sp, .cache_params = &cache };
        int64_t most;
        assert_int_equal(bitaxon_model_info_int(model, "max_seq_len", &most, &error), BITAXON_OK);
        cache.max_tokens = most < 64 ? (uint64_t)most : 64;
        bitaxon_status ran = bitaxon_session_create(model, &sp, &session, &error);
        int32_t tokens[20];
        for (int i = 0; i < 20; i++)
            tokens[i] = i % 2;
        size_t count = cache.max_tokens < 20 ? (size_t)cache.max_tokens : 20;
        if (ran == BITAXON_OK)
            ran = bitaxon_session_prefill(session, tokens, count, &error);
        if (ran == BITAXON_OK)
            ran = bitaxon_session_decode(session, tokens, &error);
        if (ran != BITAXON_OK && ran != BITAXON_LIMIT && ran != BITAXON_FORMAT && ran != BITAXON_INVALID_ARGUMENT)
            fail_msg("%s: %s", bitaxon_status_name(ran), error.message);
    }
    bitaxon_session_free(session);
    bitaxon_model_free(model);
    bitaxon_estimate estimate = { .struct_size = sizeof estimate };
    bitaxon_error other = BITAXON_ERROR_INIT;
    bitaxon_status estimated = bitaxon_model_estimate(&params, NULL, &estimate, &other);
    if (status == BITAXON_OK && estimated != BITAXON_OK)
        fail_msg("opens, but its estimate says %s: %s", bitaxon_status_name(estimated), other.message);
    assert_true(seconds() - began < 5);
    assert_int_equal(atomic_load(&fault.above_ceiling), 0);
    assert_string_equal(fault_host_balance(&fault), "");
    return status;
}

static void must_refuse(file_set *set, const char *named, const char *what)
{
    bitaxon_status status = try_model(set, 0);
    if (status != BITAXON_FORMAT && status != BITAXON_UNSUPPORTED)
        fail_msg("%s: %s: %s", what, bitaxon_status_name(status), error.message);
    if (strstr(error.message, named) == NULL)
        fail_msg("%s: '%s' is not named in: %s", what, named, error.message);
}

typedef struct bench {
    file_set set;
    st_parts parts;
} bench;

static void bench_open(bench *b, const char *folder)
{
    file_set_load(&b->set, folder);
    int at = file_set_find(&b->set, WEIGHTS);
    st_split(b->set.data[at], b->set.size[at], &b->parts);
}

static void bench_close(bench *b)
{
    st_free(&b->parts);
    file_set_free(&b->set);
}

/* ---- numbers of the header ---------------------------------------------------------------------- */

static const char *const numbers[] = { "0", "1", "-1", "255", "65535", "2147483647", "2147483648", "4294967295",
                                       "4294967296", "9223372036854775806", "9223372036854775807",
                                       "-9223372036854775808", "1e30", "0.5", "null", "\"7\"", "[]", "{}" };

static json_t *parse_any(const char *text)
{
    json_t *value = json_loads(text, JSON_DECODE_ANY, NULL);
    assert_non_null(value);
    return value;
}

static uint64_t dice_state = 1;

static uint32_t dice(uint32_t sides)
{
    dice_state = dice_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(dice_state >> 33) % sides;
}

static void test_header_numbers(void **state)
{
    (void)state;
    bool full = getenv("BITAXON_TEST_FULL") != NULL;
    size_t tried = 0, opened = 0;
    for (int m = 0; m < 2; m++) {
        bench b;
        bench_open(&b, models[m]);
        json_t *good = json_deep_copy(b.parts.header);
        const char *key;
        json_t *entry;
        json_object_foreach(good, key, entry) {
            if (strcmp(key, "__metadata__") == 0)
                continue;
            for (int field = 0; field < 2; field++) {
                const char *name = field == 0 ? "shape" : "data_offsets";
                size_t n = json_array_size(json_object_get(entry, name));
                for (size_t i = 0; i < n; i++)
                    for (size_t v = 0; v < sizeof numbers / sizeof numbers[0]; v++) {
                        if (!full && dice(8) != 0)
                            continue;
                        json_t *changed = json_object_get(b.parts.header, key);
                        json_array_set_new(json_object_get(changed, name), i, parse_any(numbers[v]));
                        st_join(&b.parts, &b.set, WEIGHTS);
                        bitaxon_status status = try_model(&b.set, 0);
                        bool same = json_equal(changed, entry);
                        json_array_set(json_object_get(changed, name), i,
                                       json_array_get(json_object_get(entry, name), i));
                        tried++;
                        opened += status == BITAXON_OK;
                        if (status == BITAXON_OK && !same)
                            fail_msg("%s: %s of %s: entry %zu is %s, and it opens", models[m], name, key, i,
                                     numbers[v]);
                        if (status != BITAXON_OK && strstr(error.message, key) == NULL)
                            fail_msg("%s of %s: entry %zu is %s: not named in: %s", name, key, i, numbers[v],
                                     error.message);
                    }
            }
        }
        json_decref(good);
        bench_close(&b);
    }
    print_message("%zu headers, %zu of them without a change\n", tried, opened);
}

/* A word that the message must hold: the tensor, or for a part of a quantised one its stem. */
static const char *stem(const char *name)
{
    static char text[512];
    snprintf(text, sizeof text, "%s", name);
    char *dot = strrchr(text, '.');
    if (dot != NULL && (strcmp(dot, ".scales") == 0 || strcmp(dot, ".biases") == 0 || strcmp(dot, ".weight") == 0 ||
                        strcmp(dot, ".biases_quant") == 0))
        *dot = '\0';
    return text;
}

static void test_header_values(void **state)
{
    (void)state;
    static const char *const dtypes[] = { "F32", "F16", "BF16", "U8", "I8", "U32", "I64", "F64", "BOOL", "F8_E4M3", "",
                                          "f32", "X" };
    for (int m = 0; m < 2; m++) {
        bench b;
        bench_open(&b, models[m]);
        json_t *good = json_deep_copy(b.parts.header);
        const char *key;
        json_t *entry;
        json_object_foreach(good, key, entry) {
            if (strcmp(key, "__metadata__") == 0)
                continue;
            const char *was = json_string_value(json_object_get(entry, "dtype"));
            for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
                if (strcmp(dtypes[i], was) == 0)
                    continue;
                json_object_set_new(json_object_get(b.parts.header, key), "dtype", json_string(dtypes[i]));
                st_join(&b.parts, &b.set, WEIGHTS);
                bitaxon_status status = try_model(&b.set, 0);
                if (status == BITAXON_OK) { /* F16 and BF16, F32 and U32 have one size: values, not structure */
                    bool halves = strstr("F16 BF16", was) != NULL && strstr("F16 BF16", dtypes[i]) != NULL;
                    if (!halves)
                        fail_msg("%s as %s instead of %s opens", key, dtypes[i], was);
                } else if (strstr(error.message, stem(key)) == NULL) {
                    fail_msg("%s as %s instead of %s: not named in: %s", key, dtypes[i], was, error.message);
                }
            }
            json_object_set(json_object_get(b.parts.header, key), "dtype", json_object_get(entry, "dtype"));
            for (int f = 0; f < 3; f++) { /* each field gone */
                const char *field = f == 0 ? "dtype" : f == 1 ? "shape" : "data_offsets";
                json_object_del(json_object_get(b.parts.header, key), field);
                st_join(&b.parts, &b.set, WEIGHTS);
                must_refuse(&b.set, key, field);
                json_object_set(json_object_get(b.parts.header, key), field, json_object_get(entry, field));
            }
        }
        json_decref(good);
        bench_close(&b);
    }
}

/* The frame around the header. */
static void test_frame(void **state)
{
    (void)state;
    static const uint64_t lengths[] = { 0,
                                        1,
                                        2,
                                        7,
                                        0xFF,
                                        0xFFFF,
                                        0x7FFFFFFF,
                                        0x80000000,
                                        0xFFFFFFFF,
                                        0x100000000,
                                        0x7FFFFFFFFFFFFFFF,
                                        0x8000000000000000,
                                        0xFFFFFFFFFFFFFFF7,
                                        0xFFFFFFFFFFFFFFFF };
    bench b;
    bench_open(&b, models[1]);
    int at = file_set_find(&b.set, WEIGHTS);
    uint64_t was, odd;
    memcpy(&was, b.set.data[at], 8);
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0] + 2; i++) {
        odd = i < sizeof lengths / sizeof lengths[0] ? lengths[i] : was + (i % 2 ? 1 : (uint64_t)-1);
        memcpy(b.set.data[at], &odd, 8);
        must_refuse(&b.set, WEIGHTS, "header length");
    }
    memcpy(b.set.data[at], &was, 8);
    for (size_t i = 0; i < was; i++) { /* each byte of the header replaced */
        unsigned char byte = b.set.data[at][8 + i];
        static const unsigned char others[] = { 0, 0x7F, 0x80, 0xFF, '"', '{', '9' };
        b.set.data[at][8 + i] = others[i % sizeof others];
        (void)try_model(&b.set, i % 2 ? BITAXON_MODEL_NO_MMAP : 0);
        b.set.data[at][8 + i] = byte;
    }
    /* a deep document, a document of many commas, a duplicate name */
    static char deep[100008];
    uint64_t length = sizeof deep - 8;
    memcpy(deep, &length, 8);
    memset(deep + 8, '[', sizeof deep - 8);
    file_set_put(&b.set, WEIGHTS, deep, sizeof deep);
    must_refuse(&b.set, WEIGHTS, "nesting");
    memset(deep + 8, ',', sizeof deep - 8);
    file_set_put(&b.set, WEIGHTS, deep, sizeof deep);
    must_refuse(&b.set, WEIGHTS, "commas");
    const char *twice = "{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},"
                        "\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}";
    length = strlen(twice);
    memcpy(deep, &length, 8);
    memcpy(deep + 8, twice, length);
    file_set_put(&b.set, WEIGHTS, deep, 8 + length);
    must_refuse(&b.set, WEIGHTS, "duplicate");
    bench_close(&b);
}

/* ---- tensors ------------------------------------------------------------------------------------ */

static void test_each_tensor(void **state)
{
    (void)state;
    for (int m = 0; m < 2; m++) {
        bench b;
        bench_open(&b, models[m]);
        json_t *good = json_deep_copy(b.parts.header);
        const char *key;
        json_t *entry;
        json_object_foreach(good, key, entry) {
            if (strcmp(key, "__metadata__") == 0)
                continue;
            json_object_del(b.parts.header, key); /* missing */
            st_join(&b.parts, &b.set, WEIGHTS);
            if (strcmp(key, "lm_head.weight") == 0 && m == 0)
                assert_int_equal(try_model(&b.set, 0), BITAXON_OK); /* tied: need not be stored */
            else
                must_refuse(&b.set, stem(key), "missing");

            char other[600]; /* under another name: one missing, one surplus */
            snprintf(other, sizeof other, "%s_", key);
            json_object_set(b.parts.header, other, entry);
            st_join(&b.parts, &b.set, WEIGHTS);
            must_refuse(&b.set, stem(key), "renamed");
            json_object_del(b.parts.header, other);
            json_object_set_new(b.parts.header, key, json_deep_copy(entry));

            /* the same bytes in another shape: first dimension halved, last doubled; for vectors
             * half the values */
            json_t *changed = json_object_get(b.parts.header, key), *shape = json_object_get(changed, "shape");
            json_t *offsets = json_object_get(changed, "data_offsets");
            size_t rank = json_array_size(shape);
            json_int_t first = json_integer_value(json_array_get(shape, 0)),
                       last = json_integer_value(json_array_get(shape, rank - 1));
            bool vector = strstr(key, "norm") != NULL || strstr(key, ".bias") != NULL ||
                          strstr(key, "conv1d") != NULL || strstr(key, "A_log") != NULL || strstr(key, ".D") != NULL ||
                          strstr(key, "dt_proj") != NULL;
            if (first % 2 == 0 && !(vector && strstr(key, ".biases") == NULL) && rank > 1) {
                json_array_set_new(shape, 0, json_integer(first / 2));
                json_array_set_new(shape, rank - 1, json_integer(last * 2));
            } else if (first % 2 == 0) {
                json_int_t begin = json_integer_value(json_array_get(offsets, 0)),
                           end = json_integer_value(json_array_get(offsets, 1));
                json_array_set_new(shape, 0, json_integer(first / 2));
                json_array_set_new(offsets, 1, json_integer(begin + (end - begin) / 2));
            } else {
                json_array_insert_new(shape, 0, json_integer(1)); /* one more dimension */
            }
            st_join(&b.parts, &b.set, WEIGHTS);
            must_refuse(&b.set, stem(key), "misshapen");
            json_object_set_new(b.parts.header, key, json_deep_copy(entry));
        }
        /* surplus, of any kind and at any place of the alphabet */
        static const char *const surplus[] = { "a",
                                               "zzz",
                                               "layer_9.ssm.D",
                                               "layer_0.ssm.D2",
                                               "layer_0.ssm",
                                               "lm_head.bias",
                                               "layer_1.attention.q_proj.bias",
                                               "embed_tokens.weight.absmax" };
        for (size_t i = 0; i < sizeof surplus / sizeof surplus[0]; i++) {
            json_object_set_new(b.parts.header, surplus[i], json_pack("{s:s,s:[i],s:[i,i]}", "dtype", "U8", "shape", 0,
                                                                     "data_offsets", 0, 0));
            st_join(&b.parts, &b.set, WEIGHTS);
            must_refuse(&b.set, surplus[i], "surplus");
            json_object_del(b.parts.header, surplus[i]);
        }
        st_join(&b.parts, &b.set, WEIGHTS);
        assert_int_equal(try_model(&b.set, 0), BITAXON_OK);
        json_decref(good);
        bench_close(&b);
    }
}

/* Values that no arithmetic survives, in tensors that are read at opening. */
static void test_values(void **state)
{
    (void)state;
    for (int m = 0; m < 2; m++) {
        bench b;
        bench_open(&b, models[m]);
        const char *key;
        json_t *entry;
        int tried = 0;
        json_object_foreach(b.parts.header, key, entry) {
            if (strcmp(key, "__metadata__") == 0)
                continue;
            bool scan = strstr(key, "A_log") != NULL;
            if (!scan && strstr(key, "norm") == NULL && strstr(key, "conv1d") == NULL && strstr(key, "ssm.D") == NULL)
                continue;
            const char *dtype = json_string_value(json_object_get(entry, "dtype"));
            size_t begin = (size_t)json_integer_value(json_array_get(json_object_get(entry, "data_offsets"), 0));
            size_t end = (size_t)json_integer_value(json_array_get(json_object_get(entry, "data_offsets"), 1));
            static const float bad[] = { NAN, INFINITY, -INFINITY, 1e30f };
            static const uint16_t bad_half[] = { 0x7E00, 0x7C00, 0xFC00, 0x7BFF },
                                  bad_brain[] = { 0x7FC0, 0x7F80, 0xFF80, 0x7149 };
            size_t size = strcmp(dtype, "F32") == 0 ? 4 : 2;
            for (int v = 0; v < (scan ? 4 : 3); v++)
                for (int place = 0; place < 2; place++) {
                    unsigned char *at = b.parts.data + (place == 0 ? begin : end - size), kept[4];
                    memcpy(kept, at, size);
                    if (size == 4)
                        memcpy(at, &bad[v], 4);
                    else
                        memcpy(at, strcmp(dtype, "F16") == 0 ? &bad_half[v] : &bad_brain[v], 2);
                    st_join(&b.parts, &b.set, WEIGHTS);
                    must_refuse(&b.set, key, "value");
                    memcpy(at, kept, size);
                    tried++;
                }
        }
        assert_true(tried > 20);
        bench_close(&b);
    }
}

/* Random bytes where weights are: opens, and reading ends with a status. */
static void test_noise(void **state)
{
    (void)state;
    int ran = 0;
    for (int m = 0; m < 2; m++)
        for (int round = 0; round < 40; round++) {
            bench b;
            bench_open(&b, models[m]);
            size_t n = 1 + dice(2000);
            for (size_t i = 0; i < n; i++)
                b.parts.data[dice((uint32_t)b.parts.data_bytes)] = (unsigned char)dice(256);
            st_join(&b.parts, &b.set, WEIGHTS);
            ran += try_model(&b.set, round % 2 ? BITAXON_MODEL_NO_MMAP : 0) == BITAXON_OK;
            bench_close(&b);
        }
    print_message("%d of 80 noisy models opened\n", ran);
}

/* ---- config.json ---------------------------------------------------------------------------------- */

static void put_config(file_set *set, json_t *config)
{
    char *text = json_dumps(config, 0);
    file_set_put(set, "config.json", text, strlen(text));
    free(text);
}

static void test_config_keys(void **state)
{
    (void)state;
    static const char *const values[] = {
        "0",        "1",    "-1",    "2",   "3",   "2147483647", "2147483648", "4294967296", "9223372036854775807",
        "\"text\"", "null", "1e300", "0.5", "[1]", "{}",         "true",       "false",      "16777216",
        "4096"
    };
    /* changes that leave the tensors as they are */
    static const char *const free_keys[] = { "ssm_scan_step", "swa_window_size", "max_seq_len",
                                             "moe_top_k",     "num_heads",       "rms_norm_eps",
                                             "rope_theta",    "weight_tying",    "moe_shared_expert" };
    for (int m = 0; m < 2; m++) {
        file_set set;
        file_set_load(&set, models[m]);
        json_t *good = json_load_file("tests/golden/tiny-q4/config.json", 0, NULL), *value;
        json_object_set_new(good, "rope_theta", json_null());
        json_object_set_new(good, "final_norm", json_false());
        const char *key;
        json_object_foreach(good, key, value)
            for (size_t v = 0; v < sizeof values / sizeof values[0]; v++) {
                json_t *config = json_deep_copy(good);
                json_object_set_new(config, key, parse_any(values[v]));
                put_config(&set, config);
                bitaxon_status status = try_model(&set, 0);
                bool same = json_equal(config, good);
                json_decref(config);
                bool harmless = same;
                for (size_t i = 0; i < sizeof free_keys / sizeof free_keys[0]; i++)
                    harmless |= strcmp(key, free_keys[i]) == 0;
                if (same)
                    assert_int_equal(status, BITAXON_OK);
                if (status == BITAXON_OK && !harmless)
                    fail_msg("%s: %s is %s, and it opens", models[m], key, values[v]);
                if (status != BITAXON_OK && status != BITAXON_FORMAT && status != BITAXON_UNSUPPORTED)
                    fail_msg("%s: %s is %s: %s: %s", models[m], key, values[v], bitaxon_status_name(status),
                             error.message);
                /* a value of the wrong kind or range is named by its key */
                bool wrong =
                    json_typeof(value) == JSON_INTEGER &&
                    (values[v][0] == '-' || strcmp(values[v], "0") == 0 || strchr("\"n[{tf", values[v][0]) != NULL ||
                     strlen(values[v]) > 8 || strchr(values[v], '.') != NULL);
                if (wrong && (status == BITAXON_OK || strstr(error.message, key) == NULL ||
                              strstr(error.message, "config.json") == NULL))
                    if (!(strcmp(key, "max_seq_len") == 0 || strcmp(key, "ssm_scan_step") == 0) ||
                        status != BITAXON_FORMAT)
                        fail_msg("%s is %s: %s: %s", key, values[v], bitaxon_status_name(status), error.message);
            }
        json_decref(good);
        file_set_free(&set);
    }
}

static void test_config_document(void **state)
{
    (void)state;
    static const char *const documents[] = { "", "{", "[]", "null", "7", "\"text\"", "{}", "{\"vocab_size\":96}{}",
                                             "{\"vocab_size\":96,\"vocab_size\":96}", "{\"vocab_size\":\xff}" };
    file_set set;
    file_set_load(&set, models[1]);
    for (size_t i = 0; i < sizeof documents / sizeof documents[0]; i++) {
        file_set_put(&set, "config.json", documents[i], strlen(documents[i]));
        bitaxon_status status = try_model(&set, 0);
        if (status != BITAXON_FORMAT)
            fail_msg("'%s': %s", documents[i], bitaxon_status_name(status));
    }
    file_set_put(&set, "config.json", "{\"a\":\0}", 8);
    must_refuse(&set, "config.json", "NUL");
    file_set_free(&set);
}

/* Valid and enormous: found out from the headers, at once, with next to no memory. */
static void test_enormous(void **state)
{
    (void)state;
    static const char *const changes[] = {
        "\"vocab_size\": 16777216", "\"num_layers\": 4096", "\"hidden_dim\": 1048576", "\"moe_num_experts\": 4096",
        "\"swa_window_size\": 16777216, \"max_seq_len\": 1073741824", "\"ssm_d_state\": 1024, \"ssm_expand\": 64",
        "\"vocab_size\": 16777216, \"num_layers\": 4096, \"hidden_dim\": 1048576, \"moe_num_experts\": 4096, "
        "\"moe_intermediate_dim\": 4194304, \"ssm_expand\": 64, \"ssm_d_state\": 1024, \"ssm_d_conv\": 1024, "
        "\"d_source_model\": 1048576, \"max_seq_len\": 1073741824, \"swa_window_size\": 16777216",
    };
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        file_set set;
        file_set_load(&set, models[0]);
        const char *config = small_config(changes[i]);
        file_set_put(&set, "config.json", config, strlen(config));
        double began = seconds();
        bitaxon_status status = try_model(&set, 0);
        assert_true(seconds() - began < 1);
        if (i == 4)
            assert_int_equal(status, BITAXON_OK); /* a long context is no fault; its cache has its own limit */
        else
            assert_int_equal(status, BITAXON_FORMAT);
        file_set_free(&set);
    }
    /* The cache of the longest context and window: refused with a number, or taken, at once. */
    file_set set;
    file_set_load(&set, models[0]);
    const char *config = small_config(changes[4]);
    file_set_put(&set, "config.json", config, strlen(config));
    bitaxon_model_params params = { .struct_size = sizeof params, .threads = 1, .max_bytes = 64 << 20 };
    bitaxon_model *model;
    bitaxon_session *session = (bitaxon_session *)&params;
    bitaxon_estimate e = { .struct_size = sizeof e };
    file_set_use(&set, &params);
    assert_int_equal(bitaxon_model_open(&params, &model, &error), BITAXON_OK);
    assert_int_equal(bitaxon_session_create(model, NULL, &session, &error), BITAXON_LIMIT);
    assert_null(session);
    bitaxon_model_free(model);
    params.max_bytes = 0;
    assert_int_equal(bitaxon_model_estimate(&params, NULL, &e, &error), BITAXON_OK);
    assert_true(e.cache_bytes > (uint64_t)4 << 30);
    file_set_free(&set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_header_numbers), cmocka_unit_test(test_header_values), cmocka_unit_test(test_frame),
        cmocka_unit_test(test_each_tensor), cmocka_unit_test(test_values), cmocka_unit_test(test_noise),
        cmocka_unit_test(test_config_keys), cmocka_unit_test(test_config_document), cmocka_unit_test(test_enormous),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
