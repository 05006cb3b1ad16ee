/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_model.c - opening and running a model from bytes: u16 length of config.json, the text,
 * then a safetensors file. In memory blocks of their exact sizes, under a ceiling. */
#include "fuzz.h"

#include <string.h>

enum { CEILING = 32 << 20 };

static void use(bitaxon_model *model, bitaxon_error *error)
{
    bitaxon_cache_params cache = { .struct_size = sizeof cache };
    bitaxon_session_params params = { .struct_size = sizeof params, .cache_params = &cache };
    bitaxon_session *session = NULL;
    int64_t most = 0, vocab = 0;
    int32_t tokens[12];
    FUZZ_CHECK(bitaxon_model_info_int(model, "max_seq_len", &most, error) == BITAXON_OK);
    FUZZ_CHECK(bitaxon_model_info_int(model, "vocab_size", &vocab, error) == BITAXON_OK);
    cache.max_tokens = most < 16 ? (uint64_t)most : 16;
    bitaxon_status status = bitaxon_session_create(model, &params, &session, error);
    FUZZ_STATUS(status, error);
    for (int i = 0; i < 12; i++)
        tokens[i] = (int32_t)(i * 7 % vocab);
    if (status == BITAXON_OK)
        status = bitaxon_session_prefill(session, tokens, cache.max_tokens < 12 ? (size_t)cache.max_tokens : 12, error);
    FUZZ_STATUS(status, error);
    if (status == BITAXON_OK) {
        status = bitaxon_session_decode(session, tokens, error);
        FUZZ_STATUS(status, error);
        FUZZ_CHECK(status != BITAXON_OK || (tokens[0] >= 0 && tokens[0] < vocab));
    }
    bitaxon_session_free(session);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    size_t config = (size_t)data[0] | (size_t)data[1] << 8;
    if (config > size - 2)
        config = size - 2;
    size_t bytes[2] = { config, size - 2 - config };
    char *blocks[2];
    bitaxon_source sources[2];
    const bitaxon_file files[2] = { { "config.json", &sources[0] }, { "model.safetensors", &sources[1] } };
    for (int i = 0; i < 2; i++) {
        blocks[i] = malloc(bytes[i] + (bytes[i] == 0));
        FUZZ_CHECK(blocks[i] != NULL);
        memcpy(blocks[i], data + 2 + (i == 0 ? 0 : config), bytes[i]);
        FUZZ_CHECK(bitaxon_source_memory(blocks[i], bytes[i], &sources[i], NULL) == BITAXON_OK);
    }
    fault_host fault;
    fault_host_init(&fault);
    fault.ceiling = CEILING;
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_model_params params = { .struct_size = sizeof params, .files = files, .file_count = 2, .threads = 1,
                                    .host = &fault.host, .max_bytes = CEILING,
                                    .flags = size % 2 ? BITAXON_MODEL_NO_MMAP : 0 };
    bitaxon_estimate estimate = { .struct_size = sizeof estimate };
    bitaxon_status estimated = bitaxon_model_estimate(&params, NULL, &estimate, &error);
    FUZZ_STATUS(estimated, &error);
    bitaxon_model *model = NULL;
    bitaxon_status status = bitaxon_model_open(&params, &model, &error);
    FUZZ_STATUS(status, &error);
    FUZZ_CHECK((model != NULL) == (status == BITAXON_OK));
    if (status == BITAXON_OK) {
        FUZZ_CHECK(estimated == BITAXON_OK);
        use(model, &error);
    }
    bitaxon_model_free(model);
    FUZZ_CHECK(fault.above_ceiling == 0);
    FUZZ_CHECK(fault_host_balance(&fault)[0] == '\0');
    free(blocks[0]);
    free(blocks[1]);
    return 0;
}
