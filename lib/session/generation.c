/* SPDX-License-Identifier: Apache-2.0 */
/* generation.c - the loop of choosing, reading and handing out text. Text is held back while
 * it might be the beginning of a stop string, and characters until they are whole. */
#include "session/bxn_session.h"

#include <string.h>

/* Text not handed out yet. Grows only when a token is longer than any before. */
typedef struct held_text {
    char *bytes;
    size_t size, capacity;
} held_text;

typedef struct generation {
    bxn_session *session;
    const bitaxon_generate_params *params;
    const int32_t *eos;
    size_t eos_count;
    size_t *stop_bytes; /* [stop_count], behind the held text's memory */
    held_text held;
    bitaxon_text_stream stream;
    bitaxon_candidate top[64];
} generation;

static bitaxon_status reserve(generation *g, size_t more, bitaxon_error *error)
{
    if (g->held.size + more <= g->held.capacity)
        return BITAXON_OK;
    size_t capacity = (g->held.size + more) * 2;
    void *bytes = g->held.bytes;
    bitaxon_status status = bxn_realloc(g->session->mem, &bytes, g->held.capacity, capacity, "text held back", error);
    if (status != BITAXON_OK)
        return status;
    g->held.bytes = bytes;
    g->held.capacity = capacity;
    return BITAXON_OK;
}

/* Where the earliest stop string begins in the held text (*which tells it), or its size. */
static size_t find_stop(const generation *g, int32_t *which)
{
    size_t best = g->held.size;
    *which = -1;
    for (uint32_t i = 0; i < g->params->stop_count; i++) {
        size_t n = g->stop_bytes[i];
        for (size_t at = 0; n <= g->held.size && at <= g->held.size - n && at < best; at++)
            if (memcmp(g->held.bytes + at, g->params->stop[i], n) == 0) {
                best = at;
                *which = (int32_t)i;
            }
    }
    return best;
}

/* Bytes at the end of the held text that may become a stop string. */
static size_t find_partial(const generation *g)
{
    size_t longest = 0;
    for (uint32_t i = 0; i < g->params->stop_count; i++) {
        size_t n = g->stop_bytes[i] - 1;
        if (n > g->held.size)
            n = g->held.size;
        for (; n > longest; n--)
            if (memcmp(g->held.bytes + g->held.size - n, g->params->stop[i], n) == 0) {
                longest = n;
                break;
            }
    }
    return longest;
}

/* Hand out the first `count` held bytes with the token; true when the host wants to stop. */
static bool emit(generation *g, int32_t token, size_t count, float logprob, uint32_t top_count)
{
    bool stop = false;
    if (g->params->on_token != NULL) {
        bitaxon_generated step = { sizeof step, token, g->session->tokenizer != NULL ? g->held.bytes : NULL,
                                   count, logprob, top_count, g->top };
        stop = g->params->on_token(g->params->user, &step) != 0;
    }
    g->held.size -= count;
    if (g->held.size != 0)
        memmove(g->held.bytes, g->held.bytes + count, g->held.size);
    return stop;
}

/* Append the text of a token (-1: flush) to the held text. */
static bitaxon_status append(generation *g, int32_t token, bitaxon_error *error)
{
    const char *bytes = "";
    size_t count = 0;
    bool special = false;
    if (g->session->tokenizer == NULL)
        return BITAXON_OK;
    if (token >= 0 && (!bxn_tokenizer_piece(g->session->tokenizer, token, &bytes, &count, &special) ||
                       (special && (g->params->flags & BITAXON_GENERATE_SPECIAL) == 0)))
        count = 0; /* a padding row of the matrix, or a control token: no text */
    bitaxon_status status = reserve(g, 3 * (count + g->stream.pending_bytes) + 4, error);
    if (status == BITAXON_OK)
        g->held.size += bxn_utf8_push(&g->stream, bytes, count, token < 0, g->held.bytes + g->held.size);
    return status;
}

static bool is_eos(const generation *g, int32_t token)
{
    for (size_t i = 0; i < g->eos_count; i++)
        if (g->eos[i] == token)
            return true;
    return false;
}

/* One token: choose, read, hand out. *finish stays NONE while there is more to do. */
static bitaxon_status one(generation *g, bitaxon_generate_result *result, bitaxon_error *error)
{
    bxn_session *session = g->session;
    const bitaxon_generate_params *p = g->params;
    const bxn_cache *cache = session->cache;
    uint32_t vocab = session->model->config.vocab_size;
    int32_t token;
    if (atomic_exchange(&session->cancel, 0) != 0) {
        result->finish = BITAXON_FINISH_CANCELLED;
        return bxn_fail(error, BITAXON_CANCELLED, "cancelled at position %llu", (unsigned long long)cache->length);
    }
    bitaxon_status status = bxn_sampler_draw(session, &token, error);
    if (status != BITAXON_OK)
        return status;
    if ((p->flags & BITAXON_GENERATE_IGNORE_EOS) == 0 && is_eos(g, token)) {
        result->finish = BITAXON_FINISH_EOS;
        result->eos_token = token;
        return BITAXON_OK;
    }
    if (cache->length == cache->max_tokens) {
        result->finish = BITAXON_FINISH_CONTEXT;
        return bxn_fail(error, BITAXON_LIMIT, "context: all %llu tokens are used",
                        (unsigned long long)cache->max_tokens);
    }
    float logprob = 0;
    uint32_t top_count = 0;
    if (p->top_logprobs != 0 || (p->flags & BITAXON_GENERATE_LOGPROBS) != 0) {
        const float *logits = cache->state->logits;
        logprob = (float)((double)logits[token] - bxn_log_sum_exp(logits, vocab));
        if (p->top_logprobs != 0)
            top_count = bxn_top_logprobs(logits, vocab, p->top_logprobs, g->top);
    }
    status = bxn_session_read(session, BXN_READ_DECODE, &token, 1, NULL, NULL, NULL, error);
    if (status != BITAXON_OK) {
        if (status == BITAXON_CANCELLED)
            result->finish = BITAXON_FINISH_CANCELLED;
        return status;
    }
    result->tokens++;
    status = append(g, token, error);
    if (status != BITAXON_OK)
        return status;
    int32_t which;
    size_t text = find_stop(g, &which);
    if (which >= 0) {
        g->held.size = text; /* the stop string and what follows it are withheld */
        result->finish = BITAXON_FINISH_STOP;
        result->stop_index = which;
    } else {
        text = g->held.size - find_partial(g);
    }
    if (emit(g, token, text, logprob, top_count) && result->finish == BITAXON_FINISH_NONE)
        result->finish = BITAXON_FINISH_CALLBACK;
    if (result->finish == BITAXON_FINISH_NONE && p->max_tokens != 0 && result->tokens == p->max_tokens)
        result->finish = BITAXON_FINISH_LENGTH;
    return BITAXON_OK;
}

static bitaxon_status check(const bxn_session *session, const bitaxon_generate_params *p, bitaxon_error *error)
{
    const uint32_t known = BITAXON_GENERATE_IGNORE_EOS | BITAXON_GENERATE_SPECIAL | BITAXON_GENERATE_LOGPROBS;
    if ((p->flags & ~known) != 0)
        return bxn_fail(error, BITAXON_UNSUPPORTED, "bitaxon_generate_params: unknown flags 0x%x", p->flags & ~known);
    if (p->top_logprobs > 64)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "bitaxon_generate_params: top_logprobs is %u, at most 64",
                        p->top_logprobs);
    if ((p->stop_count != 0 && p->stop == NULL) || (p->eos_count != 0 && p->eos == NULL) || p->stop_count > 1024 ||
        p->eos_count > 1024)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT,
                        "bitaxon_generate_params: %u stop strings and %u end tokens; at most 1024, and not NULL",
                        p->stop_count, p->eos_count);
    for (uint32_t i = 0; i < p->stop_count; i++)
        if (p->stop[i] == NULL || p->stop[i][0] == '\0')
            return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "bitaxon_generate_params: stop string %u is empty", i);
    if (p->stop_count != 0 && session->tokenizer == NULL)
        return bxn_fail(error, BITAXON_BAD_STATE, "stop strings need a tokenizer, and the model has none");
    return BITAXON_OK;
}

bitaxon_status bxn_session_run(bxn_session *session, const bitaxon_generate_params *params,
                               bitaxon_generate_result *result, bitaxon_error *error)
{
    generation g = { .session = session, .params = params };
    result->finish = BITAXON_FINISH_NONE;
    result->tokens = 0;
    result->stop_index = result->eos_token = -1;
    bitaxon_status status = check(session, params, error);
    if (status != BITAXON_OK)
        return status;
    g.stream.struct_size = sizeof g.stream;
    g.eos = params->eos;
    g.eos_count = params->eos_count;
    if (g.eos_count == 0 && session->tokenizer != NULL)
        g.eos = bxn_tokenizer_eos(session->tokenizer, &g.eos_count);
    size_t stop_size = params->stop_count * sizeof *g.stop_bytes, most = 0;
    void *memory = NULL;
    status = bxn_alloc(session->mem, stop_size, "stop strings", &memory, error);
    g.stop_bytes = memory;
    for (uint32_t i = 0; i < params->stop_count && status == BITAXON_OK; i++) {
        g.stop_bytes[i] = strlen(params->stop[i]);
        most = g.stop_bytes[i] > most ? g.stop_bytes[i] : most;
    }
    if (status == BITAXON_OK)
        status = reserve(&g, most + 1024, error);
    while (status == BITAXON_OK && result->finish == BITAXON_FINISH_NONE)
        status = one(&g, result, error);

    /* What was held back for nothing comes out at the end, an incomplete character as U+FFFD. */
    if (g.held.bytes != NULL && result->finish != BITAXON_FINISH_STOP && result->finish != BITAXON_FINISH_CALLBACK) {
        bitaxon_status flushed = append(&g, -1, status == BITAXON_OK ? error : NULL);
        if (status == BITAXON_OK)
            status = flushed;
        if (flushed == BITAXON_OK && g.held.size != 0)
            emit(&g, -1, g.held.size, 0, 0);
    }
    if (status == BITAXON_OK)
        atomic_store(&session->cancel, 0); /* it came too late for this call, and was not for the next */
    bxn_free(session->mem, g.held.bytes, g.held.capacity);
    bxn_free(session->mem, g.stop_bytes, stop_size);
    return status;
}
