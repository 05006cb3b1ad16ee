/* SPDX-License-Identifier: Apache-2.0 */
/* chat.c - a conversation, one line of standard input per turn. Each turn is laid out by the
 * model's chat template; only what the cache has not read yet is read.
 *   chat MODEL [MAX_TOKENS] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <bitaxon/bitaxon.h>

enum { TURNS = 64, TOKENS = 8192, TEXT = 4096 };

typedef struct turn {
    char text[TEXT];
    size_t bytes;
} turn;

static int32_t append_text(void *user, const bitaxon_generated *step)
{
    turn *reply = user;

    fwrite(step->text, 1, step->text_bytes, stdout);
    fflush(stdout);
    if (step->text_bytes > TEXT - reply->bytes)
        return 1; /* the turn is full */
    memcpy(reply->text + reply->bytes, step->text, step->text_bytes);
    reply->bytes += step->text_bytes;
    return 0;
}

/* Bring the session to exactly these tokens: keep the common beginning, read the rest. */
static bitaxon_status read_tokens(bitaxon_session *session, const int32_t *tokens, size_t count,
                                  bitaxon_error *error)
{
    bitaxon_cache *cache = bitaxon_session_cache(session);
    const uint64_t length = bitaxon_cache_length(cache);
    uint64_t same = 0;
    int32_t token;

    while (same < length && same < count &&
           bitaxon_cache_tokens(cache, same, 1, &token, error) == BITAXON_OK &&
           token == tokens[same])
        same++;
    bitaxon_status status = bitaxon_session_rewind(session, same, error);
    if (status == BITAXON_OK)
        status = bitaxon_session_prefill(session, tokens + same, count - same, error);
    fprintf(stderr, "[%zu tokens, %llu of them read before]\n", count, (unsigned long long)same);
    return status;
}

int main(int argc, char **argv)
{
    static turn turns[TURNS];
    static int32_t tokens[TOKENS];
    bitaxon_message messages[TURNS];
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_model *model = NULL;
    bitaxon_session *session = NULL;
    size_t used = 0;
    int failed = 1;

    if (argc < 2) {
        fprintf(stderr, "usage: chat MODEL [MAX_TOKENS]\n");
        return 2;
    }
    bitaxon_model_params params = {.struct_size = sizeof params, .path = argv[1]};
    if (bitaxon_model_open(&params, &model, &error) != BITAXON_OK ||
        bitaxon_session_create(model, NULL, &session, &error) != BITAXON_OK)
        goto done;

    while (used + 2 <= TURNS && fgets(turns[used].text, TEXT, stdin) != NULL) {
        size_t count = 0;

        turns[used].bytes = strcspn(turns[used].text, "\n");
        for (size_t i = 0; i <= used; i++) {
            messages[i] = (bitaxon_message){
                .struct_size = sizeof messages[i],
                .role = i % 2 == 0 ? "user" : "assistant",
                .content = turns[i].text,
                .content_bytes = turns[i].bytes,
            };
        }
        if (bitaxon_model_chat(model, messages, used + 1, BITAXON_CHAT_GENERATE, tokens, TOKENS,
                               &count, NULL, &error) != BITAXON_OK ||
            read_tokens(session, tokens, count, &error) != BITAXON_OK)
            goto done;
        bitaxon_generate_params generate = {
            .struct_size = sizeof generate,
            .max_tokens = argc > 2 ? strtoull(argv[2], NULL, 10) : 128,
            .on_token = append_text,
            .user = &turns[used + 1],
        };
        if (bitaxon_session_generate(session, &generate, NULL, &error) != BITAXON_OK)
            goto done;
        printf("\n");
        used += 2;
    }
    failed = 0;

done:
    if (failed)
        fprintf(stderr, "chat: %s\n", error.message);
    bitaxon_session_free(session);
    bitaxon_model_free(model);
    return failed;
}
