/* SPDX-License-Identifier: Apache-2.0 */
/* api_session.c - the exported functions of session.h: handles and checks around
 * session/session, sampler and generate. */
#include "api/api.h"

#include <string.h>

/* Take the cache for one session; BAD_STATE when another has it. */
static bitaxon_status attach(bitaxon_model *model, bitaxon_cache *cache, bitaxon_error *error)
{
    if (cache->model != model)
        return bxn_fail(error, BITAXON_MISMATCH, "the cache was made with another model");
    int idle = 0;
    if (!atomic_compare_exchange_strong(&cache->attached, &idle, 1))
        return bxn_fail(error, BITAXON_BAD_STATE, "the cache serves another session");
    atomic_fetch_add(&cache->refs, 1);
    return BITAXON_OK;
}

static void detach(bitaxon_cache *cache)
{
    if (cache == NULL)
        return;
    atomic_store(&cache->attached, 0);
    bxn_cache_unref(cache);
}

void bitaxon_session_free(bitaxon_session *session)
{
    if (session == NULL)
        return;
    bitaxon_model *model = session->model;
    bxn_session_release(&session->core);
    detach(session->cache);
    bitaxon_thermal_free(session->thermal);
    for (uint32_t i = 0; i < BITAXON_ADAPTERS_MAX; i++)
        bitaxon_adapter_free(session->adapters[i]);
    bxn_free(&model->mem, session, sizeof *session);
    bitaxon_model_free(model);
}

bitaxon_status bitaxon_session_create(bitaxon_model *model, const bitaxon_session_params *params,
                                      bitaxon_session **out, bitaxon_error *error)
{
    if (out == NULL)
        return bxn_null(error, "out");
    *out = NULL;
    if (model == NULL)
        return bxn_null(error, "model");
    if (!model->has_weights)
        return bxn_fail(error, BITAXON_BAD_STATE, "the model was opened for its tokenizer only");
    bitaxon_session_params p;
    bitaxon_session *session = NULL;
    bitaxon_cache *own = NULL;
    void *memory;
    bitaxon_status status = bxn_copy_params(params, &p, sizeof p, 8, "bitaxon_session_params", error);
    if (status == BITAXON_OK && p.cache != NULL && p.cache_params != NULL)
        status = bxn_fail(error, BITAXON_INVALID_ARGUMENT, "bitaxon_session_params: give cache or cache_params");
    if (status == BITAXON_OK)
        status = bxn_calloc(&model->mem, sizeof *session, "session", &memory, error);
    if (status != BITAXON_OK)
        return status;
    session = memory;
    session->model = model;
    bxn_model_ref(model);
    if (p.cache == NULL)
        status = bitaxon_cache_create(model, p.cache_params, &own, error);
    if (status == BITAXON_OK) {
        bitaxon_cache *cache = p.cache != NULL ? p.cache : own;
        status = attach(model, cache, error);
        session->cache = status == BITAXON_OK ? cache : NULL;
    }
    bxn_cache_unref(own); /* the session's reference remains */
    if (status == BITAXON_OK)
        status = bxn_session_init(&session->core, &model->mem, &model->core, model->tokenizer, &session->cache->core,
                                  p.progress, p.progress_user, error);
    if (status == BITAXON_OK && p.sampler != NULL)
        status = bitaxon_session_set_sampler(session, p.sampler, error);
    if (status != BITAXON_OK) {
        bitaxon_session_free(session);
        return status;
    }
    if (p.thermal != NULL) {
        bxn_thermal_ref(p.thermal);
        session->thermal = p.thermal;
        session->core.thermal = &p.thermal->core;
    }
    *out = session;
    return BITAXON_OK;
}

bitaxon_cache *bitaxon_session_cache(bitaxon_session *session)
{
    return session == NULL ? NULL : session->cache;
}

bitaxon_status bitaxon_session_set_cache(bitaxon_session *session, bitaxon_cache *cache, bitaxon_error *error)
{
    if (session == NULL || cache == NULL)
        return bxn_null(error, session == NULL ? "session" : "cache");
    if (session->cache == cache)
        return BITAXON_OK;
    bitaxon_status status = attach(session->model, cache, error);
    if (status != BITAXON_OK)
        return status;
    status = bxn_session_attach(&session->core, &cache->core, error);
    if (status != BITAXON_OK) {
        detach(cache);
        return status;
    }
    detach(session->cache);
    session->cache = cache;
    return BITAXON_OK;
}

uint64_t bitaxon_session_position(const bitaxon_session *session)
{
    return session == NULL ? 0 : session->cache->core.length;
}

static bitaxon_status read_tokens(bitaxon_session *session, const int32_t *tokens, size_t count, float *logits,
                                  float *logprobs, double *sum, bitaxon_error *error)
{
    if (session == NULL || (tokens == NULL && count != 0))
        return bxn_null(error, session == NULL ? "session" : "tokens");
    return bxn_session_read(&session->core, BXN_READ_PREFILL, tokens, count, logits, logprobs, sum, error);
}

bitaxon_status bitaxon_session_prefill(bitaxon_session *session, const int32_t *tokens, size_t count,
                                       bitaxon_error *error)
{
    return read_tokens(session, tokens, count, NULL, NULL, NULL, error);
}

bitaxon_status bitaxon_session_evaluate(bitaxon_session *session, const int32_t *tokens, size_t count,
                                        float *logits, bitaxon_error *error)
{
    if (logits == NULL && count != 0)
        return bxn_null(error, "logits");
    return read_tokens(session, tokens, count, logits, NULL, NULL, error);
}

bitaxon_status bitaxon_session_score(bitaxon_session *session, const int32_t *tokens, size_t count,
                                     double *sum, float *logprobs, bitaxon_error *error)
{
    double total = 0;
    bitaxon_status status = read_tokens(session, tokens, count, NULL, logprobs, &total, error);
    if ((status == BITAXON_OK || status == BITAXON_CANCELLED) && sum != NULL)
        *sum = total;
    return status;
}

static bitaxon_status ready(const bitaxon_session *session, bitaxon_error *error)
{
    if (session == NULL)
        return bxn_null(error, "session");
    if (!session->cache->core.state->has_logits)
        return bxn_fail(error, BITAXON_BAD_STATE, "nothing is read yet: there is no next token to choose");
    return bxn_session_check(&session->core, error);
}

bitaxon_status bitaxon_session_sample(bitaxon_session *session, int32_t *token, bitaxon_error *error)
{
    if (token == NULL)
        return bxn_null(error, "token");
    bitaxon_status status = ready(session, error);
    return status == BITAXON_OK ? bxn_sampler_draw(&session->core, token, error) : status;
}

bitaxon_status bitaxon_session_decode(bitaxon_session *session, int32_t *token, bitaxon_error *error)
{
    if (token == NULL)
        return bxn_null(error, "token");
    bitaxon_status status = ready(session, error);
    return status == BITAXON_OK ? bxn_session_step(&session->core, token, error) : status;
}

bitaxon_status bitaxon_session_logits(const bitaxon_session *session, const float **logits, bitaxon_error *error)
{
    if (logits == NULL)
        return bxn_null(error, "logits");
    *logits = NULL;
    bitaxon_status status = ready(session, error);
    if (status == BITAXON_OK)
        *logits = session->cache->core.state->logits;
    return status;
}

bitaxon_status bitaxon_session_rewind(bitaxon_session *session, uint64_t position, bitaxon_error *error)
{
    return session == NULL ? bxn_null(error, "session") : bxn_session_return(&session->core, position, error);
}

bitaxon_status bitaxon_session_set_sampler(bitaxon_session *session, const bitaxon_sampler_params *sampler,
                                           bitaxon_error *error)
{
    if (session == NULL)
        return bxn_null(error, "session");
    bitaxon_sampler_params p;
    bitaxon_status status = bxn_copy_params(sampler, &p, sizeof p, 8, "bitaxon_sampler_params", error);
    if (status != BITAXON_OK)
        return status;
    return bxn_sampler_set(&session->model->mem, &session->model->core.config, &session->cache->core.sampler, &p,
                           error);
}

bitaxon_status bitaxon_session_generate(bitaxon_session *session, const bitaxon_generate_params *params,
                                        bitaxon_generate_result *result, bitaxon_error *error)
{
    bitaxon_generate_params p;
    bitaxon_generate_result r = { sizeof r, BITAXON_FINISH_NONE, 0, -1, -1 };
    if (result != NULL && result->struct_size < 8)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT,
                        "bitaxon_generate_result: struct_size is %u, at least 8 is needed", result->struct_size);
    bitaxon_status status = ready(session, error);
    if (status == BITAXON_OK)
        status = bxn_copy_params(params, &p, sizeof p, 8, "bitaxon_generate_params", error);
    if (status == BITAXON_OK)
        status = bxn_session_run(&session->core, &p, &r, error);
    if (result != NULL) {
        bitaxon_status copied = bxn_copy_result(&r, result, sizeof r, 8, "bitaxon_generate_result",
                                                status == BITAXON_OK ? error : NULL);
        if (status == BITAXON_OK)
            status = copied;
    }
    return status;
}

void bitaxon_session_cancel(bitaxon_session *session)
{
    if (session != NULL)
        atomic_store(&session->core.cancel, 1);
}

bitaxon_status bitaxon_session_stats(const bitaxon_session *session, bitaxon_stats *out, bitaxon_error *error)
{
    if (session == NULL || out == NULL)
        return bxn_null(error, session == NULL ? "session" : "out");
    return bxn_copy_result(&session->core.stats, out, sizeof *out, 8, "bitaxon_stats", error);
}

void bitaxon_session_stats_reset(bitaxon_session *session)
{
    if (session == NULL)
        return;
    memset(&session->core.stats, 0, sizeof session->core.stats);
    session->core.stats.struct_size = sizeof session->core.stats;
}
