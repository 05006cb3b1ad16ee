/* SPDX-License-Identifier: Apache-2.0 */
/* test_safetensors.c - reading safetensors headers: the dialects that exist, every refusal
 * of io.h, hostile files (truncated, mutated, nested, enormous), and memory and read
 * failures at every point. */
#include "io_fixture.h"

/* Open one image as model.safetensors. On OK the table is checked: every tensor lies inside
 * the file and can be read. The message of a failure must name the file. */
static bitaxon_status open_bytes(const uint8_t *data, size_t size, uint32_t flags,
                                 bitaxon_error *error)
{
    fault_host fault;
    bitaxon_source source;
    bxn_bundle *bundle;
    bxn_tensors *tensors;
    bitaxon_error own = BITAXON_ERROR_INIT;
    /* A copy of the exact size, so that a sanitizer sees every byte read past the end. */
    uint8_t *copy = malloc(size > 0 ? size : 1), byte;
    assert_non_null(copy);
    memcpy(copy, data, size);
    bxn_mem *mem = fault_start(&fault, 64u << 20);
    if (error == NULL)
        error = &own;
    assert_int_equal(bitaxon_source_memory(copy, size, &source, NULL), BITAXON_OK);
    bitaxon_file file = {"model.safetensors", &source};
    assert_int_equal(bxn_bundle_open(mem, NULL, &file, 1, flags, &bundle, error), BITAXON_OK);
    bitaxon_status status = bxn_tensors_open(bundle, &tensors, error);
    if (status == BITAXON_OK) {
        for (uint64_t i = 0; i < tensors->count; i++) {
            const bxn_tensor *tensor = &tensors->items[i];
            assert_true(tensor->offset <= size && tensor->bytes <= size - tensor->offset);
            assert_true(i == 0 || strcmp(tensors->items[i - 1].name, tensor->name) < 0);
            assert_ptr_equal(bxn_tensors_find(tensors, tensor->name), tensor);
            if (tensor->bytes > 0)
                assert_int_equal(
                    bxn_tensor_read(tensors, tensor, tensor->bytes - 1, &byte, 1, NULL),
                    BITAXON_OK);
        }
    } else {
        assert_null(tensors);
        assert_int_equal(error->code, status);
        assert_non_null(strstr(error->message, "model.safetensors"));
    }
    bxn_tensors_free(tensors);
    bxn_bundle_free(bundle);
    fault_end(&fault);
    free(copy);
    return status;
}

static bitaxon_status open_json(const char *json, size_t data_bytes, bitaxon_error *error)
{
    image made = image_of(json, data_bytes);
    bitaxon_status status = open_bytes(made.data, made.size, 0, error);
    assert_int_equal(open_bytes(made.data, made.size, BXN_BUNDLE_NO_MMAP, NULL), status);
    free(made.data);
    return status;
}

#define VALID                                                                                      \
    "{\"__metadata__\":{\"format\":\"mlx\",\"a\":\"\"},"                                           \
    "\"b.weight\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[5,29]},"                    \
    "\"a\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[0,5]},"                               \
    "\"scalar\":{\"dtype\":\"U64\",\"shape\":[],\"data_offsets\":[29,37]},"                        \
    "\"none\":{\"dtype\":\"BF16\",\"shape\":[0,7],\"data_offsets\":[9,9]}}  "
#define VALID_DATA 37

static void test_reads(void **state)
{
    (void)state;
    for (uint32_t flags = 0; flags <= BXN_BUNDLE_NO_MMAP; flags++) {
        fault_host fault;
        bitaxon_source source;
        bxn_bundle *bundle;
        bxn_tensors *tensors;
        uint8_t bytes[64];
        bitaxon_error error = BITAXON_ERROR_INIT;
        bxn_mem *mem = fault_start(&fault, 0);
        image made = image_of(VALID, VALID_DATA);
        bitaxon_source_memory(made.data, made.size, &source, NULL);
        bitaxon_file file = {"w.safetensors", &source};
        assert_int_equal(bxn_bundle_open(mem, NULL, &file, 1, flags, &bundle, &error), BITAXON_OK);
        assert_int_equal(bxn_tensors_open(bundle, &tensors, &error), BITAXON_OK);
        assert_int_equal(mem->mapped, flags == 0 ? made.size : 0);
        assert_int_equal(tensors->count, 4);

        const bxn_tensor *tensor = bxn_tensors_find(tensors, "b.weight");
        assert_non_null(tensor);
        assert_int_equal(tensor->dtype, BXN_F32);
        assert_int_equal(tensor->rank, 2);
        assert_int_equal(tensor->shape[0], 2);
        assert_int_equal(tensor->shape[1], 3);
        assert_int_equal(tensor->bytes, 24);
        assert_int_equal(tensor->offset, made.header + 5);
        assert_int_equal(bxn_tensor_read(tensors, tensor, 4, bytes, 20, &error), BITAXON_OK);
        for (int i = 0; i < 20; i++)
            assert_int_equal(bytes[i], 9 + i);
        if (flags == 0)
            assert_memory_equal((const uint8_t *)bxn_tensor_map(tensors, tensor) + 4, bytes, 20);
        else
            assert_null(bxn_tensor_map(tensors, tensor));
        assert_int_equal(bxn_tensor_read(tensors, tensor, 5, bytes, 20, &error), BITAXON_INTERNAL);
        assert_int_equal(bxn_tensor_read(tensors, tensor, UINT64_MAX, bytes, 2, &error),
                         BITAXON_INTERNAL);

        tensor = bxn_tensors_find(tensors, "scalar");
        assert_int_equal(tensor->rank, 0);
        assert_int_equal(tensor->bytes, 8);
        tensor = bxn_tensors_find(tensors, "none");
        assert_int_equal(tensor->bytes, 0);
        assert_null(bxn_tensors_find(tensors, "b"));
        assert_null(bxn_tensors_find(tensors, "zz"));
        assert_null(bxn_tensors_find(tensors, "__metadata__"));
        assert_int_equal(tensors->pairs, 2);
        assert_string_equal(bxn_tensors_meta(tensors, "format"), "mlx");
        assert_string_equal(bxn_tensors_meta(tensors, "a"), "");
        assert_null(bxn_tensors_meta(tensors, "b"));
        bxn_tensors_free(tensors);
        bxn_tensors_free(NULL);
        bxn_bundle_free(bundle);
        fault_end(&fault);
        free(made.data);
    }
}

static void test_dtypes(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        bxn_dtype dtype;
        size_t size;
    } all[] = {
        {"F32", BXN_F32, 4},   {"F16", BXN_F16, 2}, {"BF16", BXN_BF16, 2}, {"U8", BXN_U8, 1},
        {"I8", BXN_I8, 1},     {"U16", BXN_U16, 2}, {"I16", BXN_I16, 2},   {"U32", BXN_U32, 4},
        {"I32", BXN_I32, 4},   {"U64", BXN_U64, 8}, {"I64", BXN_I64, 8},   {"F64", BXN_F64, 8},
        {"BOOL", BXN_BOOL, 1},
    };
    char json[200];
    assert_int_equal(COUNT(all), BXN_DTYPE_COUNT);
    for (size_t i = 0; i < COUNT(all); i++) {
        assert_int_equal(bxn_dtype_size(all[i].dtype), all[i].size);
        assert_string_equal(bxn_dtype_name(all[i].dtype), all[i].name);
        snprintf(json, sizeof json,
                 "{\"t\":{\"dtype\":\"%s\",\"shape\":[3],\"data_offsets\":[0,%zu]}}", all[i].name,
                 3 * all[i].size);
        assert_int_equal(open_json(json, 3 * all[i].size, NULL), BITAXON_OK);
    }
    assert_int_equal(bxn_dtype_size(BXN_DTYPE_COUNT), 0);
    assert_int_equal(bxn_dtype_size((bxn_dtype)-1), 0);
    static const char *const unknown[] = {"F8_E4M3", "f32", "F32 ", "", "U128"};
    for (size_t i = 0; i < COUNT(unknown); i++) {
        bitaxon_error error = BITAXON_ERROR_INIT;
        snprintf(json, sizeof json,
                 "{\"odd\":{\"dtype\":\"%s\",\"shape\":[1],\"data_offsets\":[0,1]}}", unknown[i]);
        assert_int_equal(open_json(json, 8, &error), BITAXON_UNSUPPORTED);
        assert_non_null(strstr(error.message, "odd"));
    }
}

static void test_accepts(void **state)
{
    (void)state;
    static const char *const good[] = {
        "{}",
        "{\"__metadata__\":null}",
        "{\"__metadata__\":{}}",
        " {} ",
        /* a hole before, between and after; unaligned; any order; extra members */
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[13,17],\"extra\":[{}]},"
        "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[3,7]}}",
        /* rank 8; zero-size tensors anywhere, also inside others and at the very end */
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,4],\"data_offsets\":[0,4]},"
        "\"b\":{\"dtype\":\"F64\",\"shape\":[0],\"data_offsets\":[2,2]},"
        "\"c\":{\"dtype\":\"F64\",\"shape\":[4096,0],\"data_offsets\":[32,32]}}",
        /* names with escapes and beyond ASCII */
        "{\"\\u00e9\\\"\\\\/\\n\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
    };
    for (size_t i = 0; i < COUNT(good); i++)
        assert_int_equal(open_json(good[i], 32, NULL), BITAXON_OK);
}

static void test_refuses(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        const char *says; /* in the message */
    } bad[] = {
        {"[]", "not an object"},
        {"{\"a\":1}", "not an object"},
        {"{\"a\":{}}", "dtype"},
        {"{\"a\":{\"dtype\":4,\"shape\":[1],\"data_offsets\":[0,4]}}", "dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":{},\"data_offsets\":[0,4]}}", "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,4]}}", "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4.0]}}", "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}",
         "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", "[4, 0]"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[30,34]}}", "(32 bytes)"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,8]}}", "8 bytes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,4]}}", "make 0"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}",
         "overflow"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}",
         "overflow"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0,4294967296,4294967296],\"data_offsets\":[0,0]}}",
         "overflow"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
         "overlap"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
         "overlap"},
        {"{\"c\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[7,7]}}",
         "overlap"},
        {"{\"__pad.0\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]},"
         "\"a\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[4,12]}}",
         "overlap"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
         "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
         "duplicate"},
        {"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
         "duplicate"},
        {"{\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", "name"},
        {"{\"__metadata__\":[]}", "__metadata__"},
        {"{\"__metadata__\":\"x\"}", "__metadata__"},
        {"{\"__metadata__\":{\"n\":1}}", "__metadata__"},
        {"{\"__metadata__\":{\"n\":null}}", "__metadata__"},
        {"{\"__metadata__\":{\"n\":\"1\",\"n\":\"2\"}}", "duplicate"},
        {"{", "line 1"},
        {"{} x", "line 1"},
        {"\xff", "line 1"},
    };
    for (size_t i = 0; i < COUNT(bad); i++) {
        bitaxon_error error = BITAXON_ERROR_INIT;
        bitaxon_status status = open_json(bad[i].json, 32, &error);
        if (status != BITAXON_FORMAT || strstr(error.message, bad[i].says) == NULL)
            print_message("%s: %d %s\n", bad[i].json, (int)status, error.message);
        assert_int_equal(status, BITAXON_FORMAT);
        assert_non_null(strstr(error.message, bad[i].says));
    }
    /* Names up to the limit, and one byte more. */
    for (size_t length = BXN_MAX_NAME - 1; length <= BXN_MAX_NAME; length++) {
        char json[2000], name[BXN_MAX_NAME + 1];
        memset(name, 'n', length);
        name[length] = '\0';
        snprintf(json, sizeof json,
                 "{\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", name);
        assert_int_equal(open_json(json, 1, NULL),
                         length < BXN_MAX_NAME ? BITAXON_OK : BITAXON_FORMAT);
    }
    /* Nesting. */
    char deep[2000] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0],\"x\":";
    for (int i = 0; i < 500; i++)
        strcat(deep, "[");
    assert_int_equal(open_json(deep, 1, NULL), BITAXON_FORMAT);
}

/* Every number and type in a tensor's entry, replaced. */
static void test_field_mutations(void **state)
{
    (void)state;
    static const char *const values[] = {
        "0",
        "1",
        "-1",
        "2",
        "3",
        "5",
        "23",
        "24",
        "25",
        "29",
        "100",
        "4294967295",
        "4294967296",
        "2147483648",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "1.0",
        "24.0",
        "1e3",
        "\"24\"",
        "null",
        "true",
        "[]",
        "[24]",
        "{}",
        "",
    };
    static const char *const original[4] = {"2", "3", "5", "29"};
    for (int field = 0; field < 4; field++) {
        for (size_t i = 0; i < COUNT(values); i++) {
            const char *now[4];
            char json[600];
            memcpy(now, original, sizeof now);
            now[field] = values[i];
            snprintf(json, sizeof json,
                     "{\"w\":{\"dtype\":\"F32\",\"shape\":[%s,%s],\"data_offsets\":[%s,%s]}}",
                     now[0], now[1], now[2], now[3]);
            bitaxon_error error = BITAXON_ERROR_INIT;
            bitaxon_status status = open_json(json, 64, &error);
            assert_int_equal(status,
                             strcmp(values[i], original[field]) == 0 ? BITAXON_OK : BITAXON_FORMAT);
        }
    }
}

static void test_header_length(void **state)
{
    (void)state;
    image made = image_of(VALID, VALID_DATA);
    uint64_t right = made.header - 8;
    const uint64_t lengths[] = {
        0,
        1,
        2,
        right - 3,
        right + 1,
        made.size - 8,
        made.size - 7,
        made.size,
        100000000,
        100000001,
        INT32_MAX,
        UINT32_MAX,
        (uint64_t)UINT32_MAX + 1 + right,
        INT64_MAX,
        (uint64_t)1 << 63,
        UINT64_MAX - 8,
        UINT64_MAX - 7,
        UINT64_MAX,
    };
    for (size_t i = 0; i < COUNT(lengths); i++) {
        bitaxon_error error = BITAXON_ERROR_INIT;
        for (int b = 0; b < 8; b++)
            made.data[b] = (uint8_t)(lengths[i] >> 8 * b);
        assert_int_equal(open_bytes(made.data, made.size, 0, &error), BITAXON_FORMAT);
        assert_int_equal(open_bytes(made.data, made.size, BXN_BUNDLE_NO_MMAP, &error),
                         BITAXON_FORMAT);
    }
    free(made.data);
    /* Over the limit although the file is long enough: a source that only says so. */
    fault_host fault;
    fault_source source;
    bxn_bundle *bundle;
    bxn_tensors *tensors;
    bitaxon_error error = BITAXON_ERROR_INIT;
    uint8_t prefix[8] = {0x01, 0xE1, 0xF5, 0x05}; /* 100000001 */
    bxn_mem *mem = fault_start(&fault, 0);
    fault_source_start(&source, prefix, sizeof prefix);
    source.source.size = (uint64_t)1 << 40;
    bitaxon_file file = {"w.safetensors", &source.source};
    assert_int_equal(bxn_bundle_open(mem, NULL, &file, 1, 0, &bundle, &error), BITAXON_OK);
    assert_int_equal(bxn_tensors_open(bundle, &tensors, &error), BITAXON_FORMAT);
    assert_non_null(strstr(error.message, "100000001"));
    bxn_bundle_free(bundle);
    fault_end(&fault);
    assert_true(mem->peak < 100000);
}

static void test_truncation(void **state)
{
    (void)state;
    image made = image_of(VALID, VALID_DATA);
    for (size_t size = 0; size < made.size; size++) {
        bitaxon_error error = BITAXON_ERROR_INIT;
        assert_int_equal(open_bytes(made.data, size, size % 2 ? BXN_BUNDLE_NO_MMAP : 0, &error),
                         BITAXON_FORMAT);
    }
    assert_int_equal(open_bytes(made.data, made.size, 0, NULL), BITAXON_OK);
    free(made.data);

    /* A larger file with many tensors, as files. */
    scratch dir;
    scratch_start(&dir);
    char *json = malloc(40000);
    size_t n = (size_t)sprintf(json, "{");
    for (int i = 0; i < 60; i++)
        n += (size_t)sprintf(json + n,
                             "%s\"layer_%d.w\":{\"data_offsets\":[%d,%d],\"dtype\":\"F16\","
                             "\"shape\":[4,4]}",
                             i > 0 ? "," : "", i, i * 32, i * 32 + 32);
    strcpy(json + n, "}");
    made = image_of(json, 60 * 32);
    free(json);
    unsigned files = open_files();
    for (size_t size = 0; size <= made.size; size += size < made.header ? 7 : 16) {
        fault_host fault;
        bxn_bundle *bundle;
        bxn_tensors *tensors;
        bitaxon_error error = BITAXON_ERROR_INIT;
        bxn_mem *mem = fault_start(&fault, 1u << 20);
        put_file(scratch_name(&dir, "model.safetensors"), made.data, size);
        assert_int_equal(bxn_bundle_open(mem, dir.path, NULL, 0, 0, &bundle, &error), BITAXON_OK);
        assert_int_equal(bxn_tensors_open(bundle, &tensors, &error),
                         size == made.size ? BITAXON_OK : BITAXON_FORMAT);
        bxn_tensors_free(tensors);
        bxn_bundle_free(bundle);
        fault_end(&fault);
    }
    assert_int_equal(open_files(), files);
    free(made.data);
    scratch_end(&dir);
}

/* Every byte of the header replaced by bytes that mean something: any status but a crash,
 * and a table that holds when it is accepted (open_bytes checks it). */
static void test_byte_mutations(void **state)
{
    (void)state;
    static const uint8_t values[] = {0x00, 0xFF, 0x80, ' ', '"', '\\', '{', '}', '[',
                                     ']',  ',',  ':',  '-', '0', '9',  'e', '.'};
    image made = image_of(VALID, VALID_DATA);
    unsigned accepted = 0, refused = 0;
    for (size_t at = 0; at < made.header; at++) {
        uint8_t old = made.data[at];
        for (size_t i = 0; i < COUNT(values); i++) {
            made.data[at] = values[i];
            bitaxon_status status = open_bytes(made.data, made.size, 0, NULL);
            assert_true(status == BITAXON_OK || status == BITAXON_FORMAT ||
                        status == BITAXON_UNSUPPORTED);
            accepted += status == BITAXON_OK;
            refused += status != BITAXON_OK;
        }
        made.data[at] = old;
    }
    assert_true(accepted > 0 && refused > 4000);
    /* Two bytes at once, at random. */
    uint32_t random = 12345;
    for (int round = 0; round < 4000; round++) {
        uint8_t *copy = malloc(made.size);
        memcpy(copy, made.data, made.size);
        for (int k = 0; k < 2; k++) {
            random = random * 1664525u + 1013904223u;
            copy[8 + (random >> 8) % (made.header - 8)] = values[(random >> 4) % COUNT(values)];
        }
        bitaxon_status status = open_bytes(copy, made.size, 0, NULL);
        assert_true(status == BITAXON_OK || status == BITAXON_FORMAT ||
                    status == BITAXON_UNSUPPORTED);
        free(copy);
    }
    free(made.data);
}

static void test_padding_is_left_out(void **state)
{
    (void)state;
    fault_host fault;
    bitaxon_source source;
    bxn_bundle *bundle;
    bxn_tensors *tensors;
    bxn_mem *mem = fault_start(&fault, 0);
    image made = image_of("{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]},"
                          "\"__pad.0\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[3,8]},"
                          "\"__padded\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[8,9]}}",
                          9);
    bitaxon_source_memory(made.data, made.size, &source, NULL);
    bitaxon_file file = {"w.safetensors", &source};
    assert_int_equal(bxn_bundle_open(mem, NULL, &file, 1, 0, &bundle, NULL), BITAXON_OK);
    assert_int_equal(bxn_tensors_open(bundle, &tensors, NULL), BITAXON_OK);
    assert_int_equal(tensors->count, 2);
    assert_string_equal(tensors->items[0].name, "__padded");
    bxn_tensors_free(tensors);
    bxn_bundle_free(bundle);
    fault_end(&fault);
    free(made.data);
}

/* ---- faults ---------------------------------------------------------------------------- */

static bitaxon_status tensors_body(void *context, bxn_mem *mem, bitaxon_error *error)
{
    bxn_bundle *bundle;
    bxn_tensors *tensors = NULL;
    bitaxon_status status = bxn_bundle_open(mem, context, NULL, 0, 0, &bundle, error);
    if (status == BITAXON_OK)
        status = bxn_tensors_open(bundle, &tensors, error);
    bxn_tensors_free(tensors);
    bxn_bundle_free(bundle);
    return status;
}

static void test_out_of_memory(void **state)
{
    (void)state;
    scratch dir;
    scratch_start(&dir);
    put_two(&dir);
    unsigned files = open_files();
    fault_loop(tensors_body, dir.path);
    put_text(scratch_name(&dir, "model.safetensors.index.json"),
             "{\"weight_map\":{\"x\":\"a.safetensors\",\"y\":\"a.safetensors\","
             "\"z\":\"b.safetensors\"}}");
    fault_loop(tensors_body, dir.path);
    assert_int_equal(open_files(), files);
    scratch_end(&dir);
}

/* Every ceiling from nothing to enough: LIMIT or OK, and the ceiling holds (fault_alloc
 * checks it at every allocation, the peak covers the rest). */
static void test_ceiling(void **state)
{
    (void)state;
    scratch dir;
    scratch_start(&dir);
    put_two(&dir);
    bool done = false;
    unsigned refused = 0;
    for (uint64_t limit = 64; !done; limit += 64) {
        fault_host fault;
        bitaxon_error error = BITAXON_ERROR_INIT;
        bxn_mem *mem = fault_start(&fault, limit);
        bitaxon_status status = tensors_body(dir.path, mem, &error);
        assert_true(status == BITAXON_OK || status == BITAXON_LIMIT);
        assert_true(mem->peak <= limit);
        refused += status == BITAXON_LIMIT;
        done = status == BITAXON_OK;
        fault_end(&fault);
    }
    assert_true(refused > 20);
    scratch_end(&dir);
}

static void test_source_faults(void **state)
{
    (void)state;
    image made = image_of(VALID, VALID_DATA);
    static const char index[] = "{\"weight_map\":{\"a\":\"w.safetensors\"}}";
    uint64_t n;
    bitaxon_status status = BITAXON_IO;
    /* EIO at the Nth read of the weights, then of the index. */
    for (int which = 0; which < 2; which++) {
        for (n = 1, status = BITAXON_IO; status != BITAXON_OK; n++) {
            fault_host fault;
            fault_source weights, places;
            bxn_bundle *bundle;
            bxn_tensors *tensors;
            uint8_t byte;
            bitaxon_error error = BITAXON_ERROR_INIT;
            bxn_mem *mem = fault_start(&fault, 0);
            fault_source_start(&weights, made.data, made.size);
            fault_source_start(&places, index, sizeof index - 1);
            (which == 0 ? &weights : &places)->fail_at = n;
            bitaxon_file files[] = {{"w.safetensors", &weights.source},
                                    {"model.safetensors.index.json", &places.source}};
            assert_int_equal(bxn_bundle_open(mem, NULL, files, 2, 0, &bundle, &error), BITAXON_OK);
            status = bxn_tensors_open(bundle, &tensors, &error);
            if (status == BITAXON_OK)
                status =
                    bxn_tensor_read(tensors, bxn_tensors_find(tensors, "a"), 0, &byte, 1, &error);
            if (status != BITAXON_OK) {
                assert_int_equal(status, BITAXON_IO);
                assert_non_null(strstr(error.message, "input/output error"));
                assert_non_null(strstr(error.message, which == 0 ? "w.safetensors" : "index.json"));
            }
            bxn_tensors_free(tensors);
            bxn_bundle_free(bundle);
            fault_end(&fault);
        }
        assert_int_equal(n, which == 0 ? 5 : 3); /* 3 reads and 1 read were failed */
    }
    /* Less data than the size says: wherever it ends, an error. */
    for (size_t size = 0; size < made.header; size++) {
        fault_host fault;
        fault_source weights;
        bxn_bundle *bundle;
        bxn_tensors *tensors;
        bitaxon_error error = BITAXON_ERROR_INIT;
        bxn_mem *mem = fault_start(&fault, 0);
        fault_source_start(&weights, made.data, size);
        weights.source.size = made.size;
        bitaxon_file file = {"w.safetensors", &weights.source};
        assert_int_equal(bxn_bundle_open(mem, NULL, &file, 1, 0, &bundle, &error), BITAXON_OK);
        assert_int_equal(bxn_tensors_open(bundle, &tensors, &error), BITAXON_IO);
        bxn_bundle_free(bundle);
        fault_end(&fault);
    }
    free(made.data);
}

static void test_many_tensors(void **state)
{
    (void)state;
    /* 100000 tensors in descending order, and a million metadata bytes, in sensible time. */
    size_t n = 0, capacity = 12u << 20;
    char *json = malloc(capacity);
    assert_non_null(json);
    n += (size_t)sprintf(json + n, "{\"__metadata__\":{");
    for (int i = 0; i < 50000; i++)
        n += (size_t)sprintf(json + n, "%s\"k%d\":\"%d\"", i > 0 ? "," : "", 50000 - i, i);
    n += (size_t)sprintf(json + n, "}");
    for (int i = 0; i < 100000; i++)
        n += (size_t)sprintf(json + n,
                             ",\"t%06d\":{\"dtype\":\"U8\",\"shape\":[1],"
                             "\"data_offsets\":[%d,%d]}",
                             99999 - i, i, i + 1);
    n += (size_t)sprintf(json + n, "}");
    assert_true(n < capacity);
    image made = image_of(json, 100000);
    free(json);
    fault_host fault;
    bitaxon_source source;
    bxn_bundle *bundle;
    bxn_tensors *tensors;
    bxn_mem *mem = fault_start(&fault, 0);
    bitaxon_source_memory(made.data, made.size, &source, NULL);
    bitaxon_file file = {"w.safetensors", &source};
    assert_int_equal(bxn_bundle_open(mem, NULL, &file, 1, 0, &bundle, NULL), BITAXON_OK);
    assert_int_equal(bxn_tensors_open(bundle, &tensors, NULL), BITAXON_OK);
    assert_int_equal(tensors->count, 100000);
    assert_int_equal(tensors->pairs, 50000);
    assert_string_equal(bxn_tensors_meta(tensors, "k50000"), "0");
    assert_int_equal(bxn_tensors_find(tensors, "t099999")->offset, made.header);
    close_both(&fault, bundle, tensors);
    free(made.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads),
        cmocka_unit_test(test_dtypes),
        cmocka_unit_test(test_accepts),
        cmocka_unit_test(test_refuses),
        cmocka_unit_test(test_field_mutations),
        cmocka_unit_test(test_header_length),
        cmocka_unit_test(test_truncation),
        cmocka_unit_test(test_byte_mutations),
        cmocka_unit_test(test_padding_is_left_out),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_ceiling),
        cmocka_unit_test(test_source_faults),
        cmocka_unit_test(test_many_tensors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
