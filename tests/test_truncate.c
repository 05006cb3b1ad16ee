/* SPDX-License-Identifier: Apache-2.0 */
/* test_truncate.c - each file of a model cut short: at every byte of its header and at every
 * 64th after it. Opening and estimating fail with a message that names the file, or the tensor
 * that is not whole, and hold less than a small ceiling on the way. */
#include "fault_files.h"
#include "fault_host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CEILING = 4 << 20 };

static bitaxon_error error = BITAXON_ERROR_INIT;
static char *root;

static int make_models(void **state)
{
    (void)state;
    root = make_folder();
    pack_model("tests/golden/tiny-q4", in_folder(root, "packed"));
    new_model_of_words(in_folder(root, "words"), small_config("\"vocab_size\": 300"), "affine4");
    return 0;
}

static int remove_models(void **state)
{
    (void)state;
    remove_folder(root);
    return 0;
}

/* The set must not open; `name` is the damaged file. */
static void refuse(file_set *set, const char *name, size_t cut)
{
    fault_host fault;
    fault_host_init(&fault);
    bitaxon_model_params params = {
        .struct_size = sizeof params, .threads = 1, .host = &fault.host, .max_bytes = CEILING
    };
    bitaxon_model *model = (bitaxon_model *)&fault;
    bitaxon_estimate estimate = { .struct_size = sizeof estimate };
    fault.ceiling = CEILING;
    file_set_use(set, &params);
    memset(error.message, 0, sizeof error.message);
    bitaxon_status status = bitaxon_model_open(&params, &model, &error);
    if (status != BITAXON_FORMAT)
        fail_msg("%s cut at %zu: %s: %s", name, cut, bitaxon_status_name(status), error.message);
    assert_null(model);
    if (strstr(error.message, name) == NULL)
        fail_msg("%s cut at %zu: not named in: %s", name, cut, error.message);
    if (cut % 16 == 0) { /* the same path: a sample is enough */
        status = bitaxon_model_estimate(&params, NULL, &estimate, &error);
        if (status != BITAXON_FORMAT)
            fail_msg("%s cut at %zu: estimate: %s", name, cut, bitaxon_status_name(status));
    }
    assert_int_equal(atomic_load(&fault.above_ceiling), 0);
    assert_string_equal(fault_host_balance(&fault), "");
}

/* Every file of the folder in turn. BITAXON_TEST_FULL: a step of 64 in every one. */
static void cut_all(const char *folder, bool no_map, size_t step)
{
    if (getenv("BITAXON_TEST_FULL") != NULL)
        step = 64;
    file_set whole, set;
    file_set_load(&whole, folder);
    file_set_copy(&set, &whole);
    set.no_map = no_map;
    for (uint32_t i = 0; i < whole.count; i++) {
        size_t size = whole.size[i], header = size, cuts = 0;
        const char *name = whole.name[i];
        while (size > 0 && whole.data[i][size - 1] == '\n') /* a document without its last line end is whole */
            size--;
        if (strstr(name, ".safetensors") != NULL && strstr(name, ".json") == NULL) {
            uint64_t length;
            memcpy(&length, whole.data[i], sizeof length);
            header = 8 + (size_t)length;
        }
        for (size_t cut = 0; cut < size; cut += cut < header ? 1 : step) {
            file_set_put(&set, name, whole.data[i], cut);
            refuse(&set, name, cut);
            cuts++;
        }
        file_set_put(&set, name, whole.data[i], whole.size[i]);
        if (strstr(name, ".safetensors") != NULL && strstr(name, ".json") == NULL) { /* the last byte */
            file_set_put(&set, name, whole.data[i], whole.size[i] - 1);
            refuse(&set, name, whole.size[i] - 1);
            file_set_put(&set, name, whole.data[i], whole.size[i]);
        }
        print_message("%s/%s: %zu cuts\n", folder, name, cuts);
    }
    bitaxon_model_params params = { .struct_size = sizeof params, .threads = 1 };
    bitaxon_model *model;
    file_set_use(&set, &params); /* whole again, it opens */
    if (bitaxon_model_open(&params, &model, &error) != BITAXON_OK)
        fail_msg("%s", error.message);
    bitaxon_model_free(model);
    file_set_free(&set);
    file_set_free(&whole);
}

static void test_float(void **state)
{
    (void)state;
    cut_all("tests/golden/tiny-fp32", false, 640);
}

static void test_affine(void **state)
{
    (void)state;
    cut_all("tests/golden/tiny-q4", false, 64);
}

static void test_affine_read(void **state)
{
    (void)state;
    cut_all("tests/golden/tiny-q4", true, 640);
}

static void test_packed(void **state)
{
    (void)state;
    cut_all(in_folder(root, "packed"), false, 64);
}

static void test_tokenizer(void **state)
{
    (void)state;
    cut_all(in_folder(root, "words"), false, 640);
}

/* Two files and their index. */
static void test_index(void **state)
{
    (void)state;
    file_set golden, set = { 0 };
    st_parts parts;
    file_set_load(&golden, "tests/golden/tiny-q4");
    int at = file_set_find(&golden, "weights.safetensors");
    st_split(golden.data[at], golden.size[at], &parts);
    json_t *headers[2] = { json_object(), json_object() }, *map = json_object(), *entry;
    const char *names[2] = { "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors" }, *key;
    int turn = 0;
    json_object_foreach(parts.header, key, entry) {
        if (strcmp(key, "__metadata__") == 0)
            continue;
        json_object_set(headers[turn % 2], key, entry);
        json_object_set_new(map, key, json_string(names[turn++ % 2]));
    }
    for (int i = 0; i < 2; i++) {
        st_parts half = { headers[i], parts.data, parts.data_bytes };
        st_join(&half, &set, names[i]);
    }
    at = file_set_find(&golden, "config.json");
    file_set_put(&set, "config.json", golden.data[at], golden.size[at]);
    json_t *index = json_pack("{s:{s:i},s:o}", "metadata", "total_size", 1, "weight_map", map);
    char *text = json_dumps(index, JSON_INDENT(1));
    size_t bytes = strlen(text);
    file_set_put(&set, "model.safetensors.index.json", text, bytes);
    bitaxon_model_params params = { .struct_size = sizeof params, .threads = 1 };
    bitaxon_model *model;
    file_set_use(&set, &params);
    if (bitaxon_model_open(&params, &model, &error) != BITAXON_OK)
        fail_msg("%s", error.message);
    bitaxon_model_free(model);
    for (size_t cut = 0; cut < bytes; cut++) {
        file_set_put(&set, "model.safetensors.index.json", text, cut);
        refuse(&set, "model.safetensors.index.json", cut);
    }
    file_set_put(&set, "model.safetensors.index.json", text, bytes);
    for (int i = 0; i < 2; i++) { /* a shard cut in its data, and gone */
        int shard = file_set_find(&set, names[i]);
        file_set damaged;
        file_set_copy(&damaged, &set);
        file_set_put(&damaged, names[i], set.data[shard], set.size[shard] / 2);
        refuse(&damaged, names[i], set.size[shard] / 2);
        file_set_free(&damaged);
        for (uint32_t j = 0; j < set.count; j++)
            if ((int)j != shard)
                file_set_put(&damaged, set.name[j], set.data[j], set.size[j]);
        file_set_use(&damaged, &params);
        assert_int_equal(bitaxon_model_open(&params, &model, &error), BITAXON_IO);
        assert_non_null(strstr(error.message, names[i]));
        file_set_free(&damaged);
    }
    free(text);
    json_decref(index);
    json_decref(headers[0]);
    json_decref(headers[1]);
    st_free(&parts);
    file_set_free(&set);
    file_set_free(&golden);
}

/* A source that says it is larger than it is, or that stops reading in the middle. */
typedef struct liar {
    const unsigned char *data;
    size_t size, fail_after;
    int32_t code;
} liar;

static int32_t liar_read(void *user, uint64_t offset, void *buffer, size_t bytes)
{
    const liar *l = user;
    if (offset > l->size || bytes > l->size - offset || offset + bytes > l->fail_after)
        return l->code;
    memcpy(buffer, l->data + offset, bytes);
    return 0;
}

static void test_read_failures(void **state)
{
    (void)state;
    file_set set;
    file_set_load(&set, "tests/golden/tiny-q4");
    int at = file_set_find(&set, "weights.safetensors");
    liar l = { set.data[at], set.size[at], 0, 5 /* EIO */ };
    for (size_t stop = 0; stop < l.size; stop += stop < 9000 ? 97 : 1499) {
        fault_host fault;
        fault_host_init(&fault);
        bitaxon_model_params params = { .struct_size = sizeof params, .threads = 1, .host = &fault.host };
        bitaxon_model *model;
        file_set_use(&set, &params);
        l.fail_after = stop;
        bitaxon_source broken = { .struct_size = sizeof broken, .user = &l, .size = l.size, .read_at = liar_read };
        set.files[at].source = &broken;
        assert_int_equal(bitaxon_model_open(&params, &model, &error), BITAXON_IO);
        assert_null(model);
        assert_non_null(strstr(error.message, "weights.safetensors"));
        assert_string_equal(fault_host_balance(&fault), "");
    }
    file_set_free(&set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_float), cmocka_unit_test(test_affine), cmocka_unit_test(test_affine_read),
        cmocka_unit_test(test_packed), cmocka_unit_test(test_tokenizer), cmocka_unit_test(test_index),
        cmocka_unit_test(test_read_failures),
    };
    return cmocka_run_group_tests(tests, make_models, remove_models);
}
