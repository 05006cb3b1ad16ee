/* SPDX-License-Identifier: Apache-2.0 */
/* generate.c - continue a text: open a model, read a prompt, print what follows.
 *   generate MODEL PROMPT [MAX_TOKENS [SEED]] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <bitaxon/bitaxon.h>

/* Text comes as it becomes certain: always whole characters, without a terminator. */
static int32_t print_text(void *user, const bitaxon_generated *step)
{
    (void)user;
    fwrite(step->text, 1, step->text_bytes, stdout);
    fflush(stdout);
    return 0; /* anything else would stop the generation */
}

int main(int argc, char **argv)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_model *model = NULL;
    bitaxon_session *session = NULL;
    int32_t *tokens = NULL;
    size_t count = 0;
    int failed = 1;

    if (argc < 3) {
        fprintf(stderr, "usage: generate MODEL PROMPT [MAX_TOKENS [SEED]]\n");
        return 2;
    }

    /* A zero in a params struct is the default; struct_size says which fields we know. */
    bitaxon_model_params model_params = {.struct_size = sizeof model_params, .path = argv[1]};
    if (bitaxon_model_open(&model_params, &model, &error) != BITAXON_OK)
        goto done;

    /* Ask for the number of tokens, then for the tokens. */
    bitaxon_status status =
        bitaxon_model_tokenize(model, argv[2], strlen(argv[2]), 0, NULL, 0, &count, &error);
    if (status != BITAXON_OK && status != BITAXON_LIMIT)
        goto done;
    tokens = malloc((count + 1) * sizeof *tokens);
    if (tokens == NULL)
        goto done;
    if (bitaxon_model_tokenize(model, argv[2], strlen(argv[2]), 0, tokens, count, &count, &error) !=
        BITAXON_OK)
        goto done;

    bitaxon_sampler_params sampler = {
        .struct_size = sizeof sampler,
        .temperature = 0.8f,
        .top_p = 0.95f,
        .seed = argc > 4 ? strtoull(argv[4], NULL, 10) : 1,
    };
    bitaxon_session_params session_params = {.struct_size = sizeof session_params,
                                             .sampler = &sampler};
    if (bitaxon_session_create(model, &session_params, &session, &error) != BITAXON_OK)
        goto done;
    if (bitaxon_session_prefill(session, tokens, count, &error) != BITAXON_OK)
        goto done;

    bitaxon_generate_params generate = {
        .struct_size = sizeof generate,
        .max_tokens = argc > 3 ? strtoull(argv[3], NULL, 10) : 64,
        .on_token = print_text,
    };
    bitaxon_generate_result result = {.struct_size = sizeof result};
    printf("%s", argv[2]);
    if (bitaxon_session_generate(session, &generate, &result, &error) != BITAXON_OK)
        goto done;
    printf("\n");

    bitaxon_stats stats = {.struct_size = sizeof stats};
    if (bitaxon_session_stats(session, &stats, &error) != BITAXON_OK)
        goto done;
    fprintf(stderr, "prompt %llu tokens in %.1f ms, generated %llu tokens in %.1f ms\n",
            (unsigned long long)stats.prefill_tokens, (double)stats.prefill_ns / 1e6,
            (unsigned long long)result.tokens, (double)stats.decode_ns / 1e6);
    failed = 0;

done:
    if (failed)
        fprintf(stderr, "generate: %s\n", error.code != 0 ? error.message : "out of memory");
    free(tokens);
    bitaxon_session_free(session);
    bitaxon_model_free(model);
    return failed;
}
