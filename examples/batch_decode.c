/* SPDX-License-Identifier: Apache-2.0 */
/* batch_decode.c - several prompts continued together: one session each, one pass through the model
 * for all of them. Each text is the one that its prompt would get alone.
 *   batch_decode MODEL TOKENS PROMPT... */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <bitaxon/bitaxon.h>

enum { PROMPT_TOKENS = 1024 };

/* A session that has read the prompt, its tokens and room for `more` of context. */
static bitaxon_status start(bitaxon_model *model, const char *prompt, uint64_t more,
                            bitaxon_session **session, bitaxon_error *error)
{
    int32_t ids[PROMPT_TOKENS];
    size_t count = 0;
    bitaxon_status status =
        bitaxon_model_tokenize(model, prompt, strlen(prompt), 0, ids, PROMPT_TOKENS, &count, error);
    if (status != BITAXON_OK)
        return status;
    bitaxon_cache_params cache = {.struct_size = sizeof cache, .max_tokens = count + more};
    bitaxon_session_params params = {.struct_size = sizeof params, .cache_params = &cache};
    status = bitaxon_session_create(model, &params, session, error);
    return status == BITAXON_OK ? bitaxon_session_prefill(*session, ids, count, error) : status;
}

static bitaxon_status print_text(const bitaxon_model *model, const int32_t *ids, size_t count,
                                 const char *prompt, bitaxon_error *error)
{
    char text[4096];
    size_t need = 0;
    bitaxon_status status =
        bitaxon_model_detokenize(model, ids, count, 0, text, sizeof text, &need, error);
    if (status == BITAXON_OK)
        printf("[%s]%.*s\n", prompt, (int)need, text);
    return status;
}

int main(int argc, char **argv)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_model *model = NULL;
    bitaxon_session *sessions[BITAXON_BATCH_MAX] = {NULL};
    static int32_t read[BITAXON_BATCH_MAX][256];
    int32_t next[BITAXON_BATCH_MAX];
    uint32_t count = argc > 3 ? (uint32_t)argc - 3 : 0;
    int failed = 1;

    if (count == 0 || count > BITAXON_BATCH_MAX) {
        fprintf(stderr, "usage: batch_decode MODEL TOKENS PROMPT...\n");
        return 2;
    }
    unsigned long tokens = strtoul(argv[2], NULL, 10);
    tokens = tokens < 256 ? tokens : 256;
    bitaxon_model_params params = {.struct_size = sizeof params, .path = argv[1]};
    if (bitaxon_model_open(&params, &model, &error) != BITAXON_OK)
        goto done;
    for (uint32_t i = 0; i < count; i++)
        if (start(model, argv[3 + i], tokens, &sessions[i], &error) != BITAXON_OK)
            goto done;
    for (unsigned long t = 0; t < tokens; t++) {
        if (bitaxon_batch_decode(sessions, count, next, NULL, &error) != BITAXON_OK)
            goto done;
        for (uint32_t i = 0; i < count; i++)
            read[i][t] = next[i];
    }
    for (uint32_t i = 0; i < count; i++)
        if (print_text(model, read[i], tokens, argv[3 + i], &error) != BITAXON_OK)
            goto done;
    printf("%u texts of %lu tokens, %lu passes\n", (unsigned)count, tokens, tokens);
    failed = 0;

done:
    if (failed)
        fprintf(stderr, "batch_decode: %s\n", error.message);
    for (uint32_t i = 0; i < count; i++)
        bitaxon_session_free(sessions[i]);
    bitaxon_model_free(model);
    return failed;
}
