/* SPDX-License-Identifier: Apache-2.0 */
/* test_api_edges_adapter.c - what a host may get wrong with adapters, on sessions and in merging, against
 * the status that the headers promise; with every kind of error record, and guards around it. */
#include "edges_fixture.h"
#include "fault_files.h"
#include "fault_host.h"

#include <math.h>
#include <string.h>

static fault_host fault;
static char *root;
static bitaxon_model *model, *other, *text_only;
static bitaxon_adapter *adapter, *foreign;
static bitaxon_session *session;

static const char lora[] = "tests/golden/tiny-adapter/lora.safetensors";

static bitaxon_model *open_path(const char *path, uint32_t flags)
{
    bitaxon_model_params params = { .struct_size = sizeof params, .path = path, .threads = 1, .flags = flags,
                                    .host = &fault.host };
    bitaxon_model *opened;
    OK(bitaxon_model_open(&params, &opened, &error));
    return opened;
}

static int set_up(void **state)
{
    (void)state;
    fault_host_init(&fault);
    root = make_folder();
    new_model_of_words(in_folder(root, "words"), small_config("\"vocab_size\": 300"), NULL);
    model = open_path("tests/golden/tiny-q4", 0);
    other = open_path("tests/golden/tiny-q4", 0);
    text_only = open_path(in_folder(root, "words"), BITAXON_MODEL_TOKENIZER_ONLY);
    bitaxon_adapter_params params = { .struct_size = sizeof params, .path = lora, .scale = 2 };
    OK(bitaxon_adapter_open(model, &params, &adapter, &error));
    OK(bitaxon_adapter_open(other, &params, &foreign, &error));
    OK(bitaxon_session_create(model, NULL, &session, &error));
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    bitaxon_model_free(model); /* before what was made of it: references count */
    bitaxon_adapter_free(adapter);
    bitaxon_adapter_free(foreign);
    bitaxon_session_free(session);
    bitaxon_model_free(other);
    bitaxon_model_free(text_only);
    remove_folder(root);
    assert_string_equal(fault_host_balance(&fault), "");
    return 0;
}

/* ---- structs ------------------------------------------------------------------------------------------------ */

static bitaxon_status open_with(bitaxon_model *with, const void *params, bitaxon_error *e)
{
    bitaxon_adapter *out = (bitaxon_adapter *)&guard;
    bitaxon_status status = bitaxon_adapter_open(with, params, &out, e);
    assert_true((out != NULL) == (status == BITAXON_OK));
    bitaxon_adapter_free(out);
    return status;
}

static void test_open(void **state)
{
    (void)state;
    struct {
        bitaxon_adapter_params params;
        unsigned char later[16];
    } wide = { .params = { .struct_size = sizeof wide, .path = lora, .scale = 2 } };
    bitaxon_adapter_params p = { .struct_size = sizeof p, .path = lora, .scale = 2 };
    EDGE(OK, open_with(model, &p, e));
    EDGE(OK, open_with(model, &wide, e));
    wide.later[3] = 1;
    EDGE(UNSUPPORTED, open_with(model, &wide, e));
    static const uint32_t sizes[] = { 0, 1, 7, 4097, UINT32_MAX };
    for (int i = 0; i < 5; i++) {
        p.struct_size = sizes[i];
        EDGE(INVALID_ARGUMENT, open_with(model, &p, e));
    }
    p.struct_size = 8; /* without the path */
    EDGE(INVALID_ARGUMENT, open_with(model, &p, e));
    p.struct_size = sizeof p;
    EDGE(INVALID_ARGUMENT, open_with(model, NULL, e));
    EDGE(INVALID_ARGUMENT, open_with(NULL, &p, e));
    EDGE(INVALID_ARGUMENT, bitaxon_adapter_open(model, &p, NULL, e));
    EDGE(BAD_STATE, open_with(text_only, &p, e));
    p.scale = NAN;
    EDGE(INVALID_ARGUMENT, open_with(model, &p, e));
    p.scale = 1;
    p.path = "";
    EDGE(INVALID_ARGUMENT, open_with(model, &p, e));
    p.path = "nowhere.safetensors";
    EDGE(IO, open_with(model, &p, e));
    p.path = "tests/golden"; /* no adapters.safetensors there */
    EDGE(IO, open_with(model, &p, e));
    p.path = "tests/golden/expected.safetensors";
    EDGE(FORMAT, open_with(model, &p, e));
}

static void test_info_and_save(void **state)
{
    (void)state;
    struct {
        bitaxon_adapter_info info;
        unsigned char after[64];
    } found;
    static const uint32_t sizes[] = { 8, 24, sizeof(bitaxon_adapter_info), sizeof(bitaxon_adapter_info) + 32 };
    for (int i = 0; i < 4; i++) {
        memset(&found, 0xC3, sizeof found);
        found.info.struct_size = sizes[i];
        OK(bitaxon_adapter_get_info(adapter, &found.info, &error));
        assert_int_equal(found.info.struct_size, sizes[i]);
        assert_int_equal(found.info.rank, 2);
        const unsigned char *bytes = (const unsigned char *)&found;
        for (size_t at = sizes[i] < sizeof found.info ? sizes[i] : sizeof found.info; at < sizeof found; at++)
            assert_int_equal(bytes[at], 0xC3);
    }
    assert_int_equal(found.info.weights, 2);
    assert_int_equal(found.info.dora, 0);
    assert_int_equal(found.info.parameters, 2 * 2 * 128);
    assert_int_equal(found.info.reserved0, 0);
    found.info.struct_size = 4;
    EDGE(INVALID_ARGUMENT, bitaxon_adapter_get_info(adapter, &found.info, e));
    EDGE(INVALID_ARGUMENT, bitaxon_adapter_get_info(adapter, NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_adapter_get_info(NULL, &found.info, e));
    EDGE(INVALID_ARGUMENT, bitaxon_adapter_save(NULL, "x", e));
    EDGE(INVALID_ARGUMENT, bitaxon_adapter_save(adapter, NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_adapter_save(adapter, "/tmp/x.bin", e));
    EDGE(IO, bitaxon_adapter_save(adapter, "/nowhere/x.safetensors", e));
    bitaxon_adapter_free(NULL);
    assert_int_equal(bitaxon_struct_size("bitaxon_adapter_params"), sizeof(bitaxon_adapter_params));
    assert_int_equal(bitaxon_struct_size("bitaxon_adapter_info"), sizeof(bitaxon_adapter_info));
}

static void test_session(void **state)
{
    (void)state;
    bitaxon_adapter *list[5] = { adapter, adapter, adapter, adapter, adapter }, *none[1] = { NULL };
    const float bad[2][2] = { { 1, NAN }, { INFINITY, 1 } };
    EDGE(OK, bitaxon_session_set_adapters(session, list, NULL, 4, e));
    EDGE(OK, bitaxon_session_set_adapters(session, NULL, NULL, 0, e));
    EDGE(OK, bitaxon_session_set_adapters(session, list, bad[0], 1, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_set_adapters(NULL, list, NULL, 1, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_set_adapters(session, NULL, NULL, 1, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_set_adapters(session, none, NULL, 1, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_set_adapters(session, list, NULL, 5, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_set_adapters(session, list, NULL, UINT32_MAX, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_set_adapters(session, list, bad[0], 2, e));
    EDGE(INVALID_ARGUMENT, bitaxon_session_set_adapters(session, list, bad[1], 2, e));
    EDGE(MISMATCH, bitaxon_session_set_adapters(session, &foreign, NULL, 1, e));
    const int32_t tokens[2] = { 1, 2 };
    OK(bitaxon_session_prefill(session, tokens, 2, &error)); /* with `list`, one of them */
    EDGE(MISMATCH, bitaxon_session_set_adapters(session, NULL, NULL, 0, e));
    EDGE(MISMATCH, bitaxon_session_set_adapters(session, list, NULL, 2, e));
    EDGE(OK, bitaxon_session_set_adapters(session, list, NULL, 1, e));
}

static void test_merge(void **state)
{
    (void)state;
    const char *const paths[5] = { lora, lora, lora, lora, lora };
    const float weights[1] = { NAN };
    bitaxon_convert_params p = { .struct_size = sizeof p, .host = &fault.host, .input = "tests/golden/tiny-q4",
                                 .output = in_folder(root, "merged"), .adapters = paths, .adapter_count = 1 };
    EDGE(INVALID_ARGUMENT, bitaxon_model_merge(NULL, e));
    p.struct_size = 104; /* the size before there were adapters */
    EDGE(INVALID_ARGUMENT, bitaxon_model_merge(&p, e));
    p.struct_size = sizeof p;
    p.adapter_count = 0;
    EDGE(INVALID_ARGUMENT, bitaxon_model_merge(&p, e));
    p.adapter_count = 5;
    EDGE(INVALID_ARGUMENT, bitaxon_model_merge(&p, e));
    p.adapter_count = 1;
    p.flags = 2;
    EDGE(UNSUPPORTED, bitaxon_model_merge(&p, e));
    p.flags = 0;
    p.group_size = 48;
    EDGE(INVALID_ARGUMENT, bitaxon_model_merge(&p, e));
    p.group_size = 0;
    p.adapter_weights = weights;
    EDGE(INVALID_ARGUMENT, bitaxon_model_merge(&p, e));
    p.adapter_weights = NULL;
    p.adapters = NULL;
    EDGE(INVALID_ARGUMENT, bitaxon_model_merge(&p, e));
    p.adapters = paths;
    p.output = NULL;
    EDGE(INVALID_ARGUMENT, bitaxon_model_merge(&p, e));
    p.output = "";
    EDGE(INVALID_ARGUMENT, bitaxon_model_merge(&p, e));
    p.output = p.input;
    EDGE(INVALID_ARGUMENT, bitaxon_model_merge(&p, e));
    p.output = in_folder(root, "merged");
    p.input = NULL;
    EDGE(INVALID_ARGUMENT, bitaxon_model_merge(&p, e));
    p.input = "tests/golden/tiny-q4";
    OK(bitaxon_model_merge(&p, &error));
    EDGE(IO, bitaxon_model_merge(&p, e)); /* there is a model now */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open),
        cmocka_unit_test(test_info_and_save),
        cmocka_unit_test(test_session),
        cmocka_unit_test(test_merge),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
