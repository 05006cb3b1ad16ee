/* SPDX-License-Identifier: Apache-2.0 */
/* fork_prefix.c - read a long prefix once, continue it in several ways. A clone shares
 * memory with its origin until it goes on, and continues exactly as the origin would.
 *   fork_prefix MODEL PREFIX CONTINUATION... */
#include <stdio.h>
#include <string.h>

#include <bitaxon/bitaxon.h>

enum { TOKENS = 4096, GENERATED = 16 };

static int32_t print_text(void *user, const bitaxon_generated *step)
{
    (void)user;
    fwrite(step->text, 1, step->text_bytes, stdout);
    return 0;
}

/* Open a session on the cache, read the text, optionally generate. */
static bitaxon_status go_on(bitaxon_model *model, bitaxon_cache *cache, const char *text,
                            uint64_t generated, bitaxon_error *error)
{
    static int32_t tokens[TOKENS];
    bitaxon_session *session = NULL;
    size_t count = 0;

    bitaxon_status status =
        bitaxon_model_tokenize(model, text, strlen(text), 0, tokens, TOKENS, &count, error);
    if (status != BITAXON_OK)
        return status;
    bitaxon_session_params params = {.struct_size = sizeof params, .cache = cache};
    status = bitaxon_session_create(model, &params, &session, error);
    if (status != BITAXON_OK)
        return status;
    status = bitaxon_session_prefill(session, tokens, count, error);
    if (status == BITAXON_OK && generated > 0) {
        bitaxon_generate_params generate = {
            .struct_size = sizeof generate,
            .max_tokens = generated,
            .on_token = print_text,
        };
        status = bitaxon_session_generate(session, &generate, NULL, error);
    }
    bitaxon_session_free(session); /* the cache keeps what was read */
    return status;
}

int main(int argc, char **argv)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_model *model = NULL;
    bitaxon_cache *prefix = NULL;
    bitaxon_cache *clone = NULL;
    int failed = 1;

    if (argc < 4) {
        fprintf(stderr, "usage: fork_prefix MODEL PREFIX CONTINUATION...\n");
        return 2;
    }
    bitaxon_model_params params = {.struct_size = sizeof params, .path = argv[1]};
    if (bitaxon_model_open(&params, &model, &error) != BITAXON_OK ||
        bitaxon_cache_create(model, NULL, &prefix, &error) != BITAXON_OK ||
        go_on(model, prefix, argv[2], 0, &error) != BITAXON_OK)
        goto done;
    const uint64_t length = bitaxon_cache_length(prefix);

    for (int i = 3; i < argc; i++) {
        if (bitaxon_cache_clone(prefix, &clone, &error) != BITAXON_OK)
            goto done;
        printf("[%s]", argv[i]);
        if (go_on(model, clone, argv[i], GENERATED, &error) != BITAXON_OK)
            goto done;
        printf("\n");
        bitaxon_cache_free(clone);
        clone = NULL;
    }
    printf("prefix of %llu tokens read once, continued %d times\n", (unsigned long long)length,
           argc - 3);
    failed = bitaxon_cache_length(prefix) != length;

done:
    if (failed)
        fprintf(stderr, "fork_prefix: %s\n", error.message);
    bitaxon_cache_free(clone);
    bitaxon_cache_free(prefix);
    bitaxon_model_free(model);
    return failed;
}
