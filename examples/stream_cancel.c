/* SPDX-License-Identifier: Apache-2.0 */
/* stream_cancel.c - stream text without an end and stop it from another thread. A cancelled
 * session stands at a token border and goes on as if nothing had happened.
 *   stream_cancel MODEL PROMPT MILLISECONDS */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <bitaxon/bitaxon.h>

typedef struct alarm_clock {
    bitaxon_session *session;
    long milliseconds;
} alarm_clock;

/* The only function of a session that another thread may call. */
static void *cancel_later(void *argument)
{
    const alarm_clock *clock = argument;
    const struct timespec pause = {clock->milliseconds / 1000,
                                   clock->milliseconds % 1000 * 1000000};

    nanosleep(&pause, NULL);
    bitaxon_session_cancel(clock->session);
    return NULL;
}

static int32_t print_text(void *user, const bitaxon_generated *step)
{
    (void)user;
    fwrite(step->text, 1, step->text_bytes, stdout);
    fflush(stdout);
    return 0;
}

int main(int argc, char **argv)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_model *model = NULL;
    bitaxon_session *session = NULL;
    int32_t tokens[256];
    size_t count = 0;
    pthread_t thread;
    int failed = 1;

    if (argc != 4) {
        fprintf(stderr, "usage: stream_cancel MODEL PROMPT MILLISECONDS\n");
        return 2;
    }
    bitaxon_model_params params = {.struct_size = sizeof params, .path = argv[1]};
    if (bitaxon_model_open(&params, &model, &error) != BITAXON_OK ||
        bitaxon_model_tokenize(model, argv[2], strlen(argv[2]), 0, tokens, 256, &count, &error) !=
            BITAXON_OK ||
        bitaxon_session_create(model, NULL, &session, &error) != BITAXON_OK ||
        bitaxon_session_prefill(session, tokens, count, &error) != BITAXON_OK)
        goto done;

    alarm_clock clock = {session, atol(argv[3])};
    if (pthread_create(&thread, NULL, cancel_later, &clock) != 0)
        goto done;
    bitaxon_generate_params generate = {
        .struct_size = sizeof generate,
        .flags = BITAXON_GENERATE_IGNORE_EOS, /* no end but the context's */
        .on_token = print_text,
    };
    bitaxon_generate_result result = {.struct_size = sizeof result};
    const bitaxon_status status = bitaxon_session_generate(session, &generate, &result, &error);
    pthread_join(thread, NULL);
    if (status != BITAXON_CANCELLED)
        goto done;
    printf("\n[cancelled after %llu tokens, position %llu]\n", (unsigned long long)result.tokens,
           (unsigned long long)bitaxon_session_position(session));
    if (bitaxon_session_position(session) != count + result.tokens)
        goto done;

    /* Usable at once, from where it stopped. */
    generate.max_tokens = 8;
    error.code = 0;
    if (bitaxon_session_generate(session, &generate, &result, &error) != BITAXON_OK)
        goto done;
    printf("\n[went on for %llu tokens]\n", (unsigned long long)result.tokens);
    failed = 0;

done:
    if (failed)
        fprintf(stderr, "stream_cancel: %s\n", error.code != 0 ? error.message : "not cancelled");
    bitaxon_session_free(session);
    bitaxon_model_free(model);
    return failed;
}
