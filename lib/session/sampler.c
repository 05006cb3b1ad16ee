/* SPDX-License-Identifier: Apache-2.0 */
/* sampler.c - from logits to a token (spec 7.2, in that order). The draw at a position is a
 * function of (seed, position) alone. Candidates are ordered by logit, ties by lower id. A
 * heap hands them out best first, so that top-k, top-p and min-p look at no more than
 * they keep. Allocates nothing: the session lends two buffers of V entries. */
#include "session/bxn_session.h"

#include <math.h>
#include <string.h>

void bxn_sampler_free(bxn_mem *mem, bxn_sampler *sampler)
{
    bxn_free(mem, sampler->biases, sampler->params.bias_count * sizeof *sampler->biases);
    memset(sampler, 0, sizeof *sampler);
}

bitaxon_status bxn_sampler_set(bxn_mem *mem, const bxn_config *config, bxn_sampler *sampler,
                               const bitaxon_sampler_params *params, bitaxon_error *error)
{
    bitaxon_sampler_params p = { .struct_size = sizeof p };
    if (params != NULL)
        p = *params;
    const char *field = NULL;
    double value = 0;
    if (!(p.temperature >= 0 && isfinite(p.temperature)))
        field = "temperature", value = (double)p.temperature;
    else if (!(p.top_p >= 0 && p.top_p <= 1))
        field = "top_p", value = (double)p.top_p;
    else if (!(p.min_p >= 0 && p.min_p < 1))
        field = "min_p", value = (double)p.min_p;
    else if (!(p.repetition_penalty >= 0 && isfinite(p.repetition_penalty)))
        field = "repetition_penalty", value = (double)p.repetition_penalty;
    if (field != NULL)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "bitaxon_sampler_params: %s is %g", field, value);
    if (p.bias_count > BXN_MAX_BIAS || (p.bias_count != 0 && p.bias == NULL))
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "bitaxon_sampler_params: %u biases, at most %u",
                        p.bias_count, BXN_MAX_BIAS);
    for (uint32_t i = 0; i < p.bias_count; i++)
        if (p.bias[i].token < 0 || (uint32_t)p.bias[i].token >= config->vocab_size || isnan(p.bias[i].bias) ||
            p.bias[i].bias == INFINITY)
            return bxn_fail(error, BITAXON_INVALID_ARGUMENT,
                            "bitaxon_sampler_params: bias %u (token %d, %g) is out of range", i, p.bias[i].token,
                            (double)p.bias[i].bias);
    void *biases = NULL;
    if (p.bias_count != 0) {
        bitaxon_status status = bxn_alloc(mem, p.bias_count * sizeof *p.bias, "logit biases", &biases, error);
        if (status != BITAXON_OK)
            return status;
        memcpy(biases, p.bias, p.bias_count * sizeof *p.bias);
    }
    bxn_sampler_free(mem, sampler);
    sampler->params = p;
    sampler->params.struct_size = sizeof p;
    sampler->biases = biases;
    sampler->params.bias = biases;
    return BITAXON_OK;
}

/* Is a before b in the order of candidates? */
static bool better(const bitaxon_candidate *a, const bitaxon_candidate *b)
{
    return a->logprob > b->logprob || (a->logprob == b->logprob && a->token < b->token);
}

static void sift(bitaxon_candidate *heap, uint32_t n, uint32_t i)
{
    bitaxon_candidate moving = heap[i];
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= n)
            break;
        if (child + 1 < n && better(&heap[child + 1], &heap[child]))
            child++;
        if (!better(&heap[child], &moving))
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = moving;
}

/* Take the best off a heap of *n; it moves to heap[*n - 1], and *n shrinks: what has been
 * taken stands at the end, best last. */
static const bitaxon_candidate *take(bitaxon_candidate *heap, uint32_t *n)
{
    bitaxon_candidate best = heap[0];
    heap[0] = heap[--*n];
    sift(heap, *n, 0);
    heap[*n] = best;
    return &heap[*n];
}

static void penalise(const bxn_cache *cache, const bitaxon_sampler_params *p, float *work, uint8_t *seen)
{
    uint64_t from = p->repetition_window != 0 && cache->length > p->repetition_window
                        ? cache->length - p->repetition_window
                        : 0;
    for (uint64_t i = from; i < cache->length; i++) {
        int32_t token = cache->tokens[i];
        if (seen[token])
            continue;
        seen[token] = 1;
        work[token] = work[token] > 0 ? work[token] / p->repetition_penalty : work[token] * p->repetition_penalty;
    }
    for (uint64_t i = from; i < cache->length; i++)
        seen[cache->tokens[i]] = 0;
}

bitaxon_status bxn_sampler_check(const float *logits, uint32_t vocab, bitaxon_error *error)
{
    for (uint32_t i = 0; i < vocab; i++)
        if (isnan(logits[i]) || logits[i] == INFINITY)
            return bxn_fail(error, BITAXON_FORMAT, "the model's logit of token %u is %s: its weights are not sound",
                            i, isnan(logits[i]) ? "not a number" : "infinite");
    return BITAXON_OK;
}

bitaxon_status bxn_sampler_draw(bxn_session *session, int32_t *token, bitaxon_error *error)
{
    const bxn_cache *cache = session->cache;
    const bitaxon_sampler_params *p = &cache->sampler.params;
    uint32_t vocab = session->model->config.vocab_size;
    float *work = session->work;
    bitaxon_status status = bxn_sampler_check(cache->state->logits, vocab, error);
    if (status != BITAXON_OK)
        return status;
    memcpy(work, cache->state->logits, vocab * sizeof *work);
    if (p->repetition_penalty != 0 && p->repetition_penalty != 1)
        penalise(cache, p, work, session->seen);
    for (uint32_t i = 0; i < p->bias_count; i++)
        work[p->bias[i].token] += p->bias[i].bias;

    uint32_t best = 0;
    for (uint32_t i = 1; i < vocab; i++)
        if (work[i] > work[best])
            best = i;
    if (work[best] == -INFINITY)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "every token is forbidden by logit biases");
    *token = (int32_t)best;
    if (p->temperature == 0)
        return BITAXON_OK;

    /* Weights relative to the best; sums in double, in the order of candidates. */
    double scale = 1.0 / (double)p->temperature, max = (double)work[best];
    double u = bxn_uniform(p->seed, 0, cache->length);
    bool limit_k = p->top_k != 0 && p->top_k < vocab, limit_p = p->top_p > 0 && p->top_p < 1;
    if (!limit_k && !limit_p && p->min_p == 0) {
        double total = 0, sum = 0;
        for (uint32_t i = 0; i < vocab; i++)
            total += exp(((double)work[i] - max) * scale);
        for (uint32_t i = 0; i < vocab; i++) {
            sum += exp(((double)work[i] - max) * scale);
            if (sum > u * total) {
                *token = (int32_t)i;
                return BITAXON_OK;
            }
        }
        return BITAXON_OK; /* rounding at the very end: the best */
    }
    bitaxon_candidate *heap = session->candidates;
    double total = 0;
    for (uint32_t i = 0; i < vocab; i++)
        heap[i] = (bitaxon_candidate){ (int32_t)i, work[i] };
    for (uint32_t i = vocab / 2; i-- > 0;)
        sift(heap, vocab, i);
    uint32_t left = vocab, most = limit_k ? p->top_k : vocab;
    if (limit_k) {
        /* The k best, then their total; the rest of the heap is out of the game. */
        while (left > vocab - most)
            total += exp(((double)take(heap, &left)->logprob - max) * scale);
    } else {
        for (uint32_t i = 0; i < vocab; i++)
            total += exp(((double)work[i] - max) * scale);
    }
    uint32_t kept = 0;
    double sum = 0;
    while (kept < most) {
        const bitaxon_candidate *next = limit_k ? &heap[vocab - 1 - kept] : take(heap, &left);
        double weight = exp(((double)next->logprob - max) * scale);
        if (kept > 0 && ((limit_p && sum > (double)p->top_p * total) || weight < (double)p->min_p))
            break;
        sum += weight;
        kept++;
    }
    double at = 0;
    for (uint32_t i = 0; i < kept; i++) {
        at += exp(((double)heap[vocab - 1 - i].logprob - max) * scale);
        if (at > u * sum) {
            *token = heap[vocab - 1 - i].token;
            break;
        }
    }
    return BITAXON_OK;
}

double bxn_log_sum_exp(const float *logits, uint32_t vocab)
{
    float max = logits[0];
    for (uint32_t i = 1; i < vocab; i++)
        if (logits[i] > max)
            max = logits[i];
    double sum = 0;
    for (uint32_t i = 0; i < vocab; i++)
        sum += exp((double)logits[i] - (double)max);
    return (double)max + log(sum);
}

uint32_t bxn_top_logprobs(const float *logits, uint32_t vocab, uint32_t count, bitaxon_candidate *out)
{
    double norm = bxn_log_sum_exp(logits, vocab);
    uint32_t n = 0;
    for (uint32_t i = 0; i < vocab; i++) { /* insertion into a short sorted list */
        bitaxon_candidate candidate = { (int32_t)i, logits[i] };
        if (n == count && !better(&candidate, &out[n - 1]))
            continue;
        uint32_t at = n < count ? n++ : n - 1;
        while (at > 0 && better(&candidate, &out[at - 1])) {
            out[at] = out[at - 1];
            at--;
        }
        out[at] = candidate;
    }
    for (uint32_t i = 0; i < n; i++)
        out[i].logprob = (float)((double)out[i].logprob - norm);
    return n;
}
