/* SPDX-License-Identifier: Apache-2.0 */
/* test_safetensors_files.c - one table from several safetensors files: with and without an
 * index, with every way in which an index can be wrong; and the committed checkpoints. */
#include "io_fixture.h"

static void test_later_file_overrides(void **state)
{
    (void)state;
    fault_host fault;
    scratch dir;
    bxn_bundle *bundle;
    bxn_tensors *tensors;
    scratch_start(&dir);
    put_two(&dir);
    assert_int_equal(open_path(&fault, dir.path, &bundle, &tensors, NULL), BITAXON_OK);
    assert_int_equal(tensors->count, 3);
    const bxn_tensor *y = bxn_tensors_find(tensors, "y");
    assert_int_equal(y->dtype, BXN_F32);
    assert_string_equal(bundle->files[y->file].name, "b.safetensors");
    assert_string_equal(bxn_tensors_meta(tensors, "k"), "from b");
    assert_string_equal(bxn_tensors_meta(tensors, "only"), "a");
    assert_int_equal(fault.warnings, 1);
    assert_non_null(strstr(fault.last_log, "tensor y "));
    close_both(&fault, bundle, tensors);

    /* One file alone, although the other lies beside it. */
    assert_int_equal(
        open_path(&fault, scratch_name(&dir, "a.safetensors"), &bundle, &tensors, NULL),
        BITAXON_OK);
    assert_int_equal(tensors->count, 2);
    assert_int_equal(bxn_tensors_find(tensors, "y")->dtype, BXN_U8);
    close_both(&fault, bundle, tensors);
    scratch_end(&dir);
}

static void test_many_overrides(void **state)
{
    (void)state;
    fault_host fault;
    scratch dir;
    bxn_bundle *bundle;
    bxn_tensors *tensors;
    char json[4000];
    size_t n = (size_t)sprintf(json, "{");
    for (int i = 0; i < 40; i++)
        n += (size_t)sprintf(json + n,
                             "%s\"t%d\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}",
                             i > 0 ? "," : "", i);
    sprintf(json + n, "}");
    scratch_start(&dir);
    put_image(scratch_name(&dir, "a.safetensors"), json, 0);
    put_image(scratch_name(&dir, "b.safetensors"), json, 0);
    put_image(scratch_name(&dir, "c.safetensors"), json, 0);
    assert_int_equal(open_path(&fault, dir.path, &bundle, &tensors, NULL), BITAXON_OK);
    assert_int_equal(tensors->count, 40);
    for (uint64_t i = 0; i < tensors->count; i++)
        assert_string_equal(bundle->files[tensors->items[i].file].name, "c.safetensors");
    assert_int_equal(fault.warnings, 17); /* 16 by name, then their number */
    assert_non_null(strstr(fault.last_log, "64 more"));
    close_both(&fault, bundle, tensors);
    scratch_end(&dir);
}

static void test_index(void **state)
{
    (void)state;
    fault_host fault;
    scratch dir;
    bxn_bundle *bundle;
    bxn_tensors *tensors;
    bitaxon_error error = BITAXON_ERROR_INIT;
    scratch_start(&dir);
    put_two(&dir);
    put_text(scratch_name(&dir, "consolidated.safetensors"), "not read, not mapped");

    /* The index decides: y comes from a, although b is later; z is not listed but kept. */
    put_text(scratch_name(&dir, "model.safetensors.index.json"),
             "{\"metadata\":{\"total_size\":7},\"weight_map\":{\"x\":\"a.safetensors\","
             "\"y\":\"a.safetensors\",\"z\":\"b.safetensors\"}}");
    assert_int_equal(open_path(&fault, dir.path, &bundle, &tensors, &error), BITAXON_OK);
    assert_int_equal(tensors->count, 3);
    assert_int_equal(bxn_tensors_find(tensors, "y")->dtype, BXN_U8);
    assert_non_null(bxn_bundle_find(bundle, "a.safetensors")->map);
    assert_null(bxn_bundle_find(bundle, "consolidated.safetensors")->map);
    assert_int_equal(fault.warnings, 1);
    close_both(&fault, bundle, tensors);

    put_text(scratch_name(&dir, "model.safetensors.index.json"),
             "{\"weight_map\":{\"y\":\"b.safetensors\",\"__pad.0\":\"b.safetensors\"}}");
    assert_int_equal(open_path(&fault, dir.path, &bundle, &tensors, &error), BITAXON_OK);
    assert_int_equal(tensors->count, 2); /* a is not named at all; z of b is extra */
    assert_int_equal(bxn_tensors_find(tensors, "y")->dtype, BXN_F32);
    close_both(&fault, bundle, tensors);

    static const struct {
        const char *index;
        bitaxon_status status;
        const char *says[2];
    } bad[] = {
        {"{\"weight_map\":{\"q\":\"c.safetensors\"}}", BITAXON_IO, {"c.safetensors", "q"}},
        {"{\"weight_map\":{\"q\":\"b.safetensors\"}}",
         BITAXON_FORMAT,
         {"b.safetensors", "tensor q"}},
        {"{\"weight_map\":{\"x\":\"b.safetensors\",\"y\":\"a.safetensors\"}}",
         BITAXON_FORMAT,
         {"b.safetensors", "tensor x"}},
        {"{\"weight_map\":{\"x\":\"consolidated.safetensors\"}}",
         BITAXON_FORMAT,
         {"consolidated.safetensors", "header length"}},
        {"{\"weight_map\":{\"x\":\"../a.safetensors\"}}", BITAXON_FORMAT, {"../a", "x"}},
        {"{\"weight_map\":{\"x\":\"/etc/a.safetensors\"}}", BITAXON_FORMAT, {"/etc", "x"}},
        {"{\"weight_map\":{\"x\":\"sub/a.safetensors\"}}", BITAXON_FORMAT, {"sub/a", "x"}},
        {"{\"weight_map\":{\"x\":\"..\"}}", BITAXON_FORMAT, {"'..'", "x"}},
        {"{\"weight_map\":{\"x\":\"\"}}", BITAXON_FORMAT, {"''", "x"}},
        {"{\"weight_map\":{\"x\":\"config.json\"}}", BITAXON_FORMAT, {"config.json", "x"}},
        {"{\"weight_map\":{\"x\":1}}", BITAXON_FORMAT, {"not a string", "x"}},
        {"{\"weight_map\":[]}", BITAXON_FORMAT, {"weight_map", "index"}},
        {"{}", BITAXON_FORMAT, {"weight_map", "index"}},
        {"[]", BITAXON_FORMAT, {"weight_map", "index"}},
        {"", BITAXON_FORMAT, {"line 1", "index"}},
        {"{\"weight_map\":{\"x\":\"a.safetensors\",\"x\":\"a.safetensors\"}}",
         BITAXON_FORMAT,
         {"duplicate", "index"}},
    };
    for (size_t i = 0; i < COUNT(bad); i++) {
        put_text(scratch_name(&dir, "model.safetensors.index.json"), bad[i].index);
        bitaxon_status status = open_path(&fault, dir.path, &bundle, &tensors, &error);
        if (status != bad[i].status)
            print_message("%s: %d %s\n", bad[i].index, (int)status, error.message);
        assert_int_equal(status, bad[i].status);
        assert_null(tensors);
        assert_non_null(strstr(error.message, bad[i].says[0]));
        assert_non_null(strstr(error.message, bad[i].says[1]));
        close_both(&fault, bundle, tensors);
    }
    scratch_end(&dir);
}

static void test_too_many_files(void **state)
{
    (void)state;
    fault_host fault;
    bitaxon_source source;
    bxn_bundle *bundle;
    bitaxon_error error = BITAXON_ERROR_INIT;
    static char names[BXN_MAX_FILES + 1][8];
    static bitaxon_file files[BXN_MAX_FILES + 1];
    bxn_mem *mem = fault_start(&fault, 0);
    bitaxon_source_memory(NULL, 0, &source, NULL);
    for (unsigned i = 0; i <= BXN_MAX_FILES; i++) {
        snprintf(names[i], sizeof names[i], "f%u", i);
        files[i] = (bitaxon_file){names[i], &source};
    }
    assert_int_equal(bxn_bundle_open(mem, NULL, files, BXN_MAX_FILES, 0, &bundle, &error),
                     BITAXON_OK);
    for (unsigned i = 0; i < BXN_MAX_FILES; i++)
        assert_string_equal(bxn_bundle_find(bundle, names[i])->name, names[i]);
    bxn_bundle_free(bundle);
    assert_int_equal(bxn_bundle_open(mem, NULL, files, BXN_MAX_FILES + 1, 0, &bundle, &error),
                     BITAXON_LIMIT);
    fault_end(&fault);
}

static void test_no_weights(void **state)
{
    (void)state;
    fault_host fault;
    scratch dir;
    bxn_bundle *bundle;
    bxn_tensors *tensors;
    bitaxon_error error = BITAXON_ERROR_INIT;
    scratch_start(&dir);
    put_text(scratch_name(&dir, "config.json"), "{}");
    assert_int_equal(open_path(&fault, dir.path, &bundle, &tensors, &error), BITAXON_IO);
    assert_non_null(strstr(error.message, dir.path));
    close_both(&fault, bundle, tensors);
    scratch_end(&dir);
}

static void test_golden_checkpoints(void **state)
{
    (void)state;
    static const struct {
        const char *path;
        uint64_t count;
        const char *tensor;
        bxn_dtype dtype;
    } all[] = {
        {"tests/golden/tiny-fp32", 47, "embed_tokens.weight", BXN_F32},
        {"tests/golden/tiny-q4/weights.safetensors", 105, "input_proj.weight", BXN_U32},
    };
    for (size_t i = 0; i < COUNT(all); i++) {
        fault_host fault;
        bxn_bundle *bundle;
        bxn_tensors *tensors;
        assert_int_equal(open_path(&fault, all[i].path, &bundle, &tensors, NULL), BITAXON_OK);
        assert_int_equal(tensors->count, all[i].count);
        const bxn_tensor *tensor = bxn_tensors_find(tensors, all[i].tensor);
        assert_non_null(tensor);
        assert_int_equal(tensor->dtype, all[i].dtype);
        assert_string_equal(bxn_tensors_meta(tensors, "format"), "mlx");
        close_both(&fault, bundle, tensors);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_later_file_overrides),
        cmocka_unit_test(test_many_overrides),
        cmocka_unit_test(test_index),
        cmocka_unit_test(test_too_many_files),
        cmocka_unit_test(test_no_weights),
        cmocka_unit_test(test_golden_checkpoints),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
