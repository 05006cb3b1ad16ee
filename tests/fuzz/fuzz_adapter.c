/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_adapter.c - opening an adapter from bytes; what opens must save to a file that opens to the same
 * adapter and the same bytes, and work on a session. Runs from the root of the repository. */
#include "fuzz.h"

#include <string.h>
#include <unistd.h>

static char one[64], two[64];

static void write_file(const char *path, const uint8_t *data, size_t size)
{
    FILE *file = fopen(path, "wb");
    FUZZ_CHECK(file != NULL && fwrite(data, 1, size, file) == size && fclose(file) == 0);
}

static size_t read_file(const char *path, char *data, size_t capacity)
{
    FILE *file = fopen(path, "rb");
    FUZZ_CHECK(file != NULL);
    size_t size = fread(data, 1, capacity, file);
    FUZZ_CHECK(fclose(file) == 0);
    return size;
}

static bitaxon_status open_path(bitaxon_model *model, const char *path, bitaxon_adapter **adapter)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_adapter_params params = { .struct_size = sizeof params, .path = path };
    bitaxon_status status = bitaxon_adapter_open(model, &params, adapter, &error);
    FUZZ_STATUS(status, &error);
    FUZZ_CHECK((*adapter != NULL) == (status == BITAXON_OK));
    return status;
}

static void use(bitaxon_model *model, bitaxon_adapter *adapter)
{
    static char first[1 << 20], second[1 << 20];
    const int32_t tokens[6] = { 5, 4, 3, 2, 1, 0 };
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_adapter *again;
    bitaxon_session *session;
    bitaxon_adapter_info a = { .struct_size = sizeof a }, b = a;
    FUZZ_CHECK(bitaxon_adapter_save(adapter, one, &error) == BITAXON_OK);
    FUZZ_CHECK(open_path(model, one, &again) == BITAXON_OK);
    FUZZ_CHECK(bitaxon_adapter_save(again, two, &error) == BITAXON_OK);
    size_t n = read_file(one, first, sizeof first);
    FUZZ_CHECK(read_file(two, second, sizeof second) == n && memcmp(first, second, n) == 0);
    FUZZ_CHECK(bitaxon_adapter_get_info(adapter, &a, &error) == BITAXON_OK);
    FUZZ_CHECK(bitaxon_adapter_get_info(again, &b, &error) == BITAXON_OK);
    FUZZ_CHECK(memcmp(&a, &b, sizeof a) == 0);
    bitaxon_adapter_free(again);
    FUZZ_CHECK(bitaxon_session_create(model, NULL, &session, &error) == BITAXON_OK);
    bitaxon_status status = bitaxon_session_set_adapters(session, &adapter, NULL, 1, &error);
    FUZZ_STATUS(status, &error);
    status = bitaxon_session_prefill(session, tokens, 6, &error); /* values may be huge: FORMAT */
    FUZZ_STATUS(status, &error);
    bitaxon_session_free(session);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bitaxon_model *model;
    static fault_host fault;
    bitaxon_error error = BITAXON_ERROR_INIT;
    if (model == NULL) {
        fault_host_init(&fault);
        bitaxon_model_params params = { .struct_size = sizeof params, .path = "tests/golden/tiny-q4", .threads = 1,
                                        .host = &fault.host };
        FUZZ_CHECK(bitaxon_model_open(&params, &model, &error) == BITAXON_OK);
    }
    int64_t before = fault.bytes;
    bitaxon_adapter *adapter;
    char folder[] = "/tmp/bitaxon-fuzz-adapter-XXXXXX";
    FUZZ_CHECK(mkdtemp(folder) != NULL);
    snprintf(one, sizeof one, "%s/one.safetensors", folder);
    snprintf(two, sizeof two, "%s/two.safetensors", folder);
    FUZZ_CHECK(size < 1 << 20);
    write_file(one, data, size);
    if (open_path(model, one, &adapter) == BITAXON_OK)
        use(model, adapter);
    bitaxon_adapter_free(adapter);
    FUZZ_CHECK(fault.bytes == before && fault.wrong_frees == 0);
    unlink(one);
    unlink(two);
    FUZZ_CHECK(rmdir(folder) == 0);
    return 0;
}
