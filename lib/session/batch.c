/* SPDX-License-Identifier: Apache-2.0 */
/* batch.c - one decode step of several sessions in one pass, one segment each. Everything that
 * can fail for one of them (choice, spare state, pages) is done before the pass, the pass
 * writes spare states only, and the commits at the end cannot fail: it is all or nothing. */
#include "session/bxn_session.h"

#include <string.h>

typedef struct batch {
    bxn_session *const *sessions;
    uint32_t count;
} batch;

/* Which session was cancelled, or count. */
static uint32_t find_cancelled(const batch *b)
{
    uint32_t i = 0;
    while (i < b->count && atomic_load(&b->sessions[i]->cancel) == 0)
        i++;
    return i;
}

/* Between sublayers: tasks look at the cancel of one session only. */
static bitaxon_status tick(void *user)
{
    const batch *b = user;
    return find_cancelled(b) < b->count ? BITAXON_CANCELLED : BITAXON_OK;
}

/* "session 3: ..." before what went wrong with one. */
static bitaxon_status blame(bitaxon_status status, uint32_t i, const bitaxon_error *cause, uint32_t *failed,
                            bitaxon_error *error)
{
    *failed = i;
    return bxn_fail(error, status, "session %u: %.200s", i, cause->message);
}

/* The pass and the logits of all rows; leader lends its workspace and rows. */
static bitaxon_status pass(const batch *b, bxn_session *leader, const int32_t *tokens, bitaxon_error *error)
{
    const bxn_model *model = leader->model;
    uint32_t vocab = model->config.vocab_size;
    bxn_kv_view views[BXN_BATCH_MAX];
    bxn_segment segments[BXN_BATCH_MAX];
    for (uint32_t i = 0; i < b->count; i++) {
        const bxn_session *session = b->sessions[i];
        const bxn_cache *cache = session->cache;
        views[i] = (bxn_kv_view){ &cache->layout, cache->data, cache->first_page };
        segments[i] = (bxn_segment){ i, 1, cache->length, cache->state->scan, session->spare->scan, &views[i] };
    }
    batch context = *b;
    bxn_exec exec = { .kernels = &model->kernels,
                      .pool = model->pool,
                      .cancel = &leader->cancel,
                      .ws = &leader->ws,
                      .phase = BXN_PHASE_DECODE,
                      .adapters = bxn_session_adapters(leader),
                      .tick = tick,
                      .tick_user = &context,
                      .error = error };
    bitaxon_status status = bxn_forward(model, &exec, tokens, b->count, segments, b->count);
    if (status == BITAXON_OK)
        status = bxn_head(model, &exec, 0, b->count, leader->rows, vocab);
    for (uint32_t i = 0; i < b->count && status == BITAXON_OK; i++)
        memcpy(b->sessions[i]->spare->logits, leader->rows + (size_t)i * vocab, vocab * sizeof(float));
    return status;
}

/* Session i waits as its policy says. The others rest meanwhile: so much less have those after it to wait. */
static bitaxon_status gate(const batch *b, uint32_t i, bool *slow, bitaxon_error *error)
{
    bxn_session *session = b->sessions[i];
    bxn_mem *clock = &session->thermal->mem;
    uint64_t began = bxn_now_ns(clock);
    bitaxon_status status =
        bxn_thermal_gate(session->thermal, &session->use, 1, &session->cancel, slow, error);
    uint64_t now = bxn_now_ns(clock), waited = now > began ? now - began : 0;
    for (uint32_t j = 0; j < i; j++)
        b->sessions[j]->use.since_ns += waited;
    for (uint32_t j = i + 1; j < b->count; j++)
        b->sessions[j]->use.rested_ns += b->sessions[j]->use.since_ns != 0 ? waited : 0;
    return status;
}

bitaxon_status bxn_batch_step(bxn_session *const *sessions, uint32_t count, int32_t *tokens, uint32_t *failed,
                              bitaxon_error *error)
{
    batch b = { sessions, count };
    bxn_session *leader = sessions[0]; /* the one whose workspace is large enough for every window */
    int32_t chosen[BXN_BATCH_MAX];
    uint64_t began = bxn_now_ns(leader->mem);
    bitaxon_status status = BITAXON_OK;
    *failed = count;
    bool narrow = false;
    for (uint32_t i = 0; i < count && status == BITAXON_OK; i++) { /* the strictest policy decides */
        bxn_session *session = sessions[i];
        bool slow = false;
        bitaxon_error cause = BITAXON_ERROR_INIT;
        if (session->thermal != NULL)
            status = gate(&b, i, &slow, &cause);
        narrow = narrow || slow;
        if (status == BITAXON_CANCELLED)
            atomic_store(&session->cancel, 0);
        if (status != BITAXON_OK)
            blame(status, i, &cause, failed, error);
    }
    if (status != BITAXON_OK)
        return status;
    uint32_t threads = bxn_pool_threads(leader->model->pool);
    bxn_pool_limit(leader->model->pool, narrow ? (threads + 1) / 2 : threads);
    for (uint32_t i = 0; i < count && status == BITAXON_OK; i++) {
        bxn_session *session = sessions[i];
        bitaxon_error cause = BITAXON_ERROR_INIT;
        if (session->ws_tokens > leader->ws_tokens)
            leader = session;
        if (session->cache->length == session->cache->max_tokens)
            status = bxn_fail(&cause, BITAXON_LIMIT, "context: all %llu tokens are used",
                              (unsigned long long)session->cache->max_tokens);
        if (status == BITAXON_OK)
            status = bxn_sampler_draw(session, &chosen[i], &cause);
        if (status == BITAXON_OK)
            status = bxn_session_prepare(session, 1, &cause);
        if (status != BITAXON_OK)
            blame(status, i, &cause, failed, error);
    }
    if (status != BITAXON_OK)
        return status;

    uint64_t host_float = bxn_float_enter();
    status = pass(&b, leader, chosen, error);
    bxn_float_leave(host_float);
    if (status == BITAXON_CANCELLED) {
        uint32_t i = find_cancelled(&b);
        for (uint32_t j = 0; j < count; j++)
            atomic_store(&sessions[j]->cancel, 0);
        *failed = i;
        return bxn_fail(error, status, "session %u: cancelled; no session has read a token", i);
    }
    if (status == BITAXON_SYSTEM)
        return bxn_fail(error, status, "the host's executor failed; no session has read a token");
    if (status != BITAXON_OK)
        return status;

    uint64_t spent = bxn_now_ns(leader->mem) - began;
    for (uint32_t i = 0; i < count; i++) {
        bxn_session *session = sessions[i];
        bxn_cache_commit(session->cache, &chosen[i], 1, BXN_PHASE_DECODE, &session->spare);
        bxn_session_keep_point(session->cache);
        atomic_store(&session->cancel, 0); /* it came too late for this call, and was not for the next */
        session->stats.decode_tokens++;
        session->stats.decode_ns += spent;
        if (session->first_pending) {
            session->stats.first_token_ns = began + spent - session->prefill_began_ns;
            session->first_pending = false;
        }
        tokens[i] = chosen[i];
    }
    return BITAXON_OK;
}
