/* SPDX-License-Identifier: Apache-2.0 */
/* custom_host.c - the host brings its own memory and log. Every byte that the library holds
 * goes through the two functions below (mapped files aside), sizes included, so that arenas
 * and budgets are possible; a ceiling in bytes is kept by the library itself.
 *   custom_host MODEL PROMPT */
#define _POSIX_C_SOURCE 200809L
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <bitaxon/bitaxon.h>

/* The library's threads may allocate too: the counters are atomic. */
typedef struct account {
    atomic_size_t held;
    atomic_size_t most;
    atomic_size_t calls;
} account;

static void *host_alloc(void *user, size_t size, size_t align)
{
    account *a = user;
    void *memory = NULL;

    if (posix_memalign(&memory, align < sizeof(void *) ? sizeof(void *) : align, size) != 0)
        return NULL;
    const size_t held = atomic_fetch_add(&a->held, size) + size;
    size_t most = atomic_load(&a->most);
    while (held > most && !atomic_compare_exchange_weak(&a->most, &most, held)) {
    }
    atomic_fetch_add(&a->calls, 1);
    return memory;
}

static void host_free(void *user, void *memory, size_t size, size_t align)
{
    account *a = user;

    (void)align;
    atomic_fetch_sub(&a->held, size);
    free(memory);
}

static void host_log(void *user, int32_t level, const char *line)
{
    (void)user;
    fprintf(stderr, "[%s] %s\n", level == BITAXON_LOG_WARNING ? "warning" : "bitaxon", line);
}

int main(int argc, char **argv)
{
    account a = {0};
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_model *model = NULL;
    bitaxon_session *session = NULL;
    int32_t tokens[256];
    size_t count = 0;
    int failed = 1;

    if (argc != 3) {
        fprintf(stderr, "usage: custom_host MODEL PROMPT\n");
        return 2;
    }
    bitaxon_host host = {
        .struct_size = sizeof host,
        .user = &a,
        .alloc = host_alloc,
        .free = host_free,
        .log = host_log,
    };
    bitaxon_model_params params = {
        .struct_size = sizeof params,
        .host = &host,
        .path = argv[1],
        .max_bytes = (uint64_t)1 << 30, /* never more than a GiB, mapped files included */
    };
    if (bitaxon_model_open(&params, &model, &error) != BITAXON_OK ||
        bitaxon_model_tokenize(model, argv[2], strlen(argv[2]), 0, tokens, 256, &count, &error) !=
            BITAXON_OK ||
        bitaxon_session_create(model, NULL, &session, &error) != BITAXON_OK ||
        bitaxon_session_prefill(session, tokens, count, &error) != BITAXON_OK)
        goto done;

    /* A decoded token costs no allocation. */
    const size_t before = atomic_load(&a.calls);
    for (int i = 0; i < 32; i++) {
        int32_t token;

        if (bitaxon_session_decode(session, &token, &error) != BITAXON_OK)
            goto done;
    }
    printf("%zu allocations for 32 tokens\n", atomic_load(&a.calls) - before);
    failed = 0;

done:
    if (failed)
        fprintf(stderr, "custom_host: %s\n", error.message);
    bitaxon_model_free(model); /* in any order: the session keeps what it needs */
    bitaxon_session_free(session);
    printf("%zu bytes at most, %zu bytes left\n", atomic_load(&a.most), atomic_load(&a.held));
    return failed || atomic_load(&a.held) != 0;
}
