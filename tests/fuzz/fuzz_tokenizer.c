/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_tokenizer.c - a tokenizer.json from bytes; what opens must turn text into ids and the
 * ids of that text back. */
#include "fuzz.h"

#include <string.h>

enum { CEILING = 64 << 20, MOST = 512 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] =
        "The end,  of 12 things\n\xed\x95\x9c\xea\xb8\x80 \xff\xf0\x9f\x98\x80 <|im_end|>\xe2\x80";
    char *copy = malloc(size + (size == 0));
    FUZZ_CHECK(copy != NULL);
    memcpy(copy, data, size);
    bitaxon_source source;
    FUZZ_CHECK(bitaxon_source_memory(copy, size, &source, NULL) == BITAXON_OK);
    const bitaxon_file file = { "tokenizer.json", &source };
    fault_host fault;
    fault_host_init(&fault);
    fault.ceiling = CEILING;
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_model_params params = { .struct_size = sizeof params, .files = &file, .file_count = 1, .host = &fault.host,
                                    .flags = BITAXON_MODEL_TOKENIZER_ONLY, .max_bytes = CEILING };
    bitaxon_model *model = NULL;
    bitaxon_status status = bitaxon_model_open(&params, &model, &error);
    FUZZ_STATUS(status, &error);
    if (status == BITAXON_OK) {
        int32_t ids[MOST];
        char back[4096];
        size_t count = 0, bytes = 0;
        status =
            bitaxon_model_tokenize(model, text, sizeof text - 1, BITAXON_TOKENIZE_SPECIAL, ids, MOST, &count, &error);
        FUZZ_STATUS(status, &error);
        if (status == BITAXON_OK) {
            FUZZ_CHECK(count <= MOST);
            status = bitaxon_model_detokenize(model, ids, count, BITAXON_DETOKENIZE_SPECIAL, back, sizeof back, &bytes,
                                              &error);
            FUZZ_CHECK(status == BITAXON_OK || status == BITAXON_LIMIT);
            bitaxon_text_stream stream = { .struct_size = sizeof stream };
            for (size_t i = 0; i <= count; i++) {
                status = bitaxon_text_stream_next(model, &stream, i < count ? ids[i] : -1, 0, back, sizeof back, &bytes,
                                                  &error);
                FUZZ_CHECK(status == BITAXON_OK || status == BITAXON_LIMIT);
            }
        }
        const bitaxon_message message = { .struct_size = sizeof message, .role = "user", .content = text,
                                          .content_bytes = sizeof text - 1 };
        status = bitaxon_model_chat(model, &message, 1, BITAXON_CHAT_GENERATE, ids, MOST, &count, NULL, &error);
        FUZZ_STATUS(status, &error);
        status = bitaxon_model_eos_tokens(model, ids, MOST, &count, &error);
        FUZZ_STATUS(status, &error);
    }
    bitaxon_model_free(model);
    FUZZ_CHECK(fault.above_ceiling == 0);
    FUZZ_CHECK(fault_host_balance(&fault)[0] == '\0');
    free(copy);
    return 0;
}
