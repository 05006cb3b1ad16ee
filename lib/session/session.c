/* SPDX-License-Identifier: Apache-2.0 */
/* session.c - reading tokens: tiles of bxn_pass_tokens through bxn_forward, one commit each. Memory
 * does not grow with the prompt, and a failure or a cancel leaves the position at the
 * end of the last tile. */
#include "session/bxn_session.h"

#include <math.h>
#include <string.h>

static uint64_t buffers_bytes(uint32_t vocab)
{
    return bxn_alloc_cost(vocab * sizeof(float)) + bxn_alloc_cost(vocab) +
           bxn_alloc_cost(vocab * sizeof(bitaxon_candidate)) +
           bxn_alloc_cost((size_t)BXN_SCORE_ROWS * vocab * sizeof(float));
}

uint64_t bxn_session_bytes(const bxn_config *config, size_t state_floats, uint64_t max_tokens, bool tiles)
{
    return buffers_bytes(config->vocab_size) + bxn_workspace_cost(config, max_tokens, tiles, BXN_ADAPTER_ROOM) +
           bxn_cache_state_bytes(config, state_floats);
}

bitaxon_status bxn_session_init(bxn_session *session, bxn_mem *mem, const bxn_model *model,
                                const bxn_tokenizer *tokenizer, bxn_cache *cache,
                                bitaxon_progress_fn progress, void *progress_user,
                                bitaxon_error *error)
{
    size_t vocab = model->config.vocab_size;
    void *memory;
    memset(session, 0, sizeof *session);
    session->mem = mem;
    session->model = model;
    session->tokenizer = tokenizer;
    session->cache = cache;
    session->progress = (bxn_progress){ progress, progress_user, BITAXON_STAGE_PREFILL, 0, 1 };
    session->stats.struct_size = sizeof session->stats;
    session->tile = 16;
    cache->wanted = &session->mark;
    bitaxon_status status = bxn_session_room(session, cache->max_tokens, BXN_ADAPTER_ROOM, error);
    if (status == BITAXON_OK)
        status = bxn_state_create(mem, model, &session->spare, error);
    if (status == BITAXON_OK) {
        status = bxn_alloc(mem, vocab * sizeof(float), "sampler", &memory, error);
        session->work = memory;
    }
    if (status == BITAXON_OK) {
        status = bxn_calloc(mem, vocab, "sampler", &memory, error);
        session->seen = memory;
    }
    if (status == BITAXON_OK) {
        status = bxn_alloc(mem, vocab * sizeof(bitaxon_candidate), "sampler", &memory, error);
        session->candidates = memory;
    }
    if (status == BITAXON_OK) {
        status = bxn_alloc(mem, BXN_SCORE_ROWS * vocab * sizeof(float), "rows of logits", &memory, error);
        session->rows = memory;
    }
    if (status != BITAXON_OK)
        bxn_session_release(session);
    return status;
}

void bxn_session_release(bxn_session *session)
{
    bxn_mem *mem = session->mem;
    if (mem == NULL)
        return;
    size_t vocab = session->model->config.vocab_size;
    session->cache->wanted = NULL;
    bxn_free(mem, session->rows, BXN_SCORE_ROWS * vocab * sizeof(float));
    bxn_free(mem, session->candidates, vocab * sizeof(bitaxon_candidate));
    bxn_free(mem, session->seen, vocab);
    bxn_free(mem, session->work, vocab * sizeof(float));
    bxn_state_unref(mem, session->model, session->spare);
    bxn_workspace_free(mem, &session->ws);
    memset(session, 0, sizeof *session);
}

bitaxon_status bxn_session_room(bxn_session *session, uint64_t max_tokens, uint32_t rank, bitaxon_error *error)
{
    bool longer = session->ws.memory == NULL || max_tokens > session->ws_tokens;
    rank = rank > session->ws_rank ? rank : session->ws_rank;
    bxn_workspace larger;
    bitaxon_status status =
        longer ? bxn_workspace_create(session->mem, &session->model->config, max_tokens,
                                      bxn_model_tiles(session->model), rank, &larger, error)
               : bxn_workspace_adapt(session->mem, rank, &session->ws, error);
    if (status != BITAXON_OK)
        return status;
    session->ws_rank = rank;
    if (!longer)
        return BITAXON_OK;
    bxn_workspace_free(session->mem, &session->ws);
    session->ws = larger;
    session->ws_tokens = max_tokens;
    return BITAXON_OK;
}

bitaxon_status bxn_session_attach(bxn_session *session, bxn_cache *cache, bitaxon_error *error)
{
    bitaxon_status status = bxn_session_room(session, cache->max_tokens, session->ws_rank, error);
    if (status != BITAXON_OK)
        return status;
    session->cache->wanted = NULL;
    session->cache = cache;
    cache->wanted = &session->mark;
    return BITAXON_OK;
}

#define MILLISECOND 1000000u

/* Between sublayers and rows of logits of a watched read: the host is told, and the longest
 * silence is noted. */
static bitaxon_status tick(void *user)
{
    bxn_session *session = user;
    uint64_t now = bxn_now_ns(session->mem), silence = now - session->tick_ns;
    if (silence > session->longest_ns)
        session->longest_ns = silence;
    session->tick_ns = now;
    bxn_float_leave(session->host_float); /* the host's code runs in the host's mode */
    bitaxon_status status = bxn_progress_step(&session->progress, session->progress.done, NULL, NULL);
    bxn_float_enter();
    return status;
}

/* A watched read takes tiles so short that no silence lasts 50 ms (splits change no bits). */
static void fit_tile(bxn_session *session)
{
    if (session->longest_ns > 40 * MILLISECOND && session->tile > 1)
        session->tile /= 2;
    else if (session->longest_ns < 15 * MILLISECOND && session->tile < session->ws.tokens)
        session->tile *= 2;
    session->longest_ns = 0;
}

/* Logits of rows first ... of the pass, some rows at a time with a tick between. */
static bitaxon_status head_rows(bxn_session *session, const bxn_exec *exec, uint32_t first, uint32_t count,
                                float *logits)
{
    uint32_t vocab = session->model->config.vocab_size;
    bitaxon_status status = BITAXON_OK;
    for (uint32_t at = 0; at < count && status == BITAXON_OK; at += BXN_SCORE_ROWS) {
        uint32_t n = count - at < BXN_SCORE_ROWS ? count - at : BXN_SCORE_ROWS;
        status = bxn_head(session->model, exec, first + at, n, logits + (size_t)at * vocab, vocab);
        if (status == BITAXON_OK && exec->tick != NULL)
            status = exec->tick(exec->tick_user);
    }
    return status;
}

/* Log-probabilities of tile[0 .. count), from the rows that precede each. */
static bitaxon_status score_tile(bxn_session *session, const bxn_exec *exec, const int32_t *tile,
                                 uint32_t count, float *logprobs, double *sum, bitaxon_error *error)
{
    const bxn_cache *cache = session->cache;
    uint32_t vocab = session->model->config.vocab_size;
    for (uint32_t i = 0; i < count; i++) {
        const float *row = cache->state->logits;
        if (i > 0) {
            uint32_t at = (i - 1) % BXN_SCORE_ROWS;
            if (at == 0) {
                uint32_t n = count - i < BXN_SCORE_ROWS ? count - i : BXN_SCORE_ROWS;
                bitaxon_status status = head_rows(session, exec, i - 1, n, session->rows);
                if (status != BITAXON_OK)
                    return status;
            }
            row = session->rows + (size_t)at * vocab;
        } else if (cache->length == 0) {
            if (logprobs != NULL)
                logprobs[0] = 0;
            continue;
        }
        double value = (double)row[tile[i]] - bxn_log_sum_exp(row, vocab);
        if (isnan(value))
            return bxn_sampler_check(row, vocab, error) != BITAXON_OK
                       ? BITAXON_FORMAT
                       : bxn_fail(error, BITAXON_FORMAT, "the model's logits are not sound");
        *sum += value;
        if (logprobs != NULL)
            logprobs[i] = (float)value;
    }
    return BITAXON_OK;
}

/* Pages for the tokens; automatic checkpoints give way when there is no room. */
static bitaxon_status prepare(bxn_cache *cache, uint32_t count, bitaxon_error *error)
{
    bitaxon_error first = BITAXON_ERROR_INIT;
    bitaxon_status status = bxn_cache_prepare(cache, count, &first);
    if (status == BITAXON_OK)
        return status;
    if (bxn_cache_drop_automatic(cache))
        return bxn_cache_prepare(cache, count, error);
    return bxn_fail(error, status, "%s", first.message);
}

bitaxon_status bxn_session_prepare(bxn_session *session, uint32_t count, bitaxon_error *error)
{
    bitaxon_status status = BITAXON_OK;
    if (session->spare == NULL)
        status = bxn_state_create(session->mem, session->model, &session->spare, error);
    return status == BITAXON_OK ? prepare(session->cache, count, error) : status;
}

static bitaxon_status read_tile(bxn_session *session, bool watch, bxn_phase phase, const int32_t *tile,
                                uint32_t count, float *logits, float *logprobs, double *sum, bitaxon_error *error)
{
    const bxn_model *model = session->model;
    bxn_cache *cache = session->cache;
    uint32_t vocab = model->config.vocab_size;
    bitaxon_status status = bxn_session_prepare(session, count, error);
    if (status != BITAXON_OK)
        return status;
    bxn_exec exec = { .kernels = &model->kernels, .pool = model->pool, .cancel = &session->cancel,
                      .ws = &session->ws, .phase = phase, .adapters = bxn_session_adapters(session),
                      .tick = watch ? tick : NULL,
                      .tick_user = session, .error = error };
    bxn_kv_view kv = { &cache->layout, cache->data, cache->first_page };
    bxn_segment segment = { 0, count, cache->length, cache->state->scan, session->spare->scan, &kv };
    status = bxn_forward(model, &exec, tile, count, &segment, 1);
    double tile_sum = 0;
    if (status == BITAXON_OK && sum != NULL)
        status = score_tile(session, &exec, tile, count, logprobs, &tile_sum, error);
    if (status == BITAXON_OK && logits != NULL)
        status = head_rows(session, &exec, 0, count, logits);
    if (status == BITAXON_OK && logits != NULL)
        memcpy(session->spare->logits, logits + (size_t)(count - 1) * vocab, vocab * sizeof *logits);
    if (status == BITAXON_OK && logits == NULL)
        status = bxn_head(model, &exec, count - 1, 1, session->spare->logits, vocab);
    if (status != BITAXON_OK)
        return status;
    if (sum != NULL)
        *sum += tile_sum;
    bxn_cache_commit(cache, tile, count, phase, &session->spare);
    return BITAXON_OK;
}

void bxn_session_keep_point(bxn_cache *cache)
{
    uint64_t last = cache->point_count == 0 ? 0 : cache->points[cache->point_count - 1].position;
    if (cache->interval == 0 || cache->length - last < cache->interval)
        return;
    bitaxon_error error = BITAXON_ERROR_INIT; /* a convenience missed is no failure of the read */
    if (bxn_cache_point(cache, true, &error) != BITAXON_OK)
        bxn_log(cache->mem, BITAXON_LOG_WARNING, "no automatic checkpoint at position %llu: %s",
                (unsigned long long)cache->length, error.message);
}

#define GAP_NS 1000000000u /* between two reads: what was used meanwhile is not theirs */

/* A read begins: time and energy since the last one were the host's. A token is not worth
 * reading the counter for; it is read when the sensors are. */
static void thermal_begin(bxn_session *session, bxn_read_kind kind, uint64_t now)
{
    bxn_thermal *thermal = session->thermal;
    if (thermal == NULL)
        return;
    uint64_t gap = now - session->left_ns;
    if (session->use.since_ns != 0)
        session->use.since_ns += gap;
    if (kind != BXN_READ_DECODE || gap > GAP_NS)
        (void)bxn_thermal_energy(thermal, &session->energy_uj);
}

static void thermal_end(bxn_session *session, bxn_read_kind kind)
{
    if (session->thermal == NULL)
        return;
    uint64_t uj = 0;
    bool known = kind == BXN_READ_DECODE ? bxn_thermal_energy_seen(session->thermal, &uj)
                                         : bxn_thermal_energy(session->thermal, &uj);
    if (known && uj > session->energy_uj)
        *(kind == BXN_READ_DECODE ? &session->stats.decode_uj : &session->stats.prefill_uj) += uj - session->energy_uj;
    session->energy_uj = uj;
    session->left_ns = bxn_now_ns(session->mem);
}

/* Before a tile: wait as the policy says; a warm machine gets half of the threads. */
static bitaxon_status thermal_gate(bxn_session *session, uint64_t tokens, bitaxon_error *error)
{
    bool narrow = false;
    bitaxon_status status = BITAXON_OK;
    if (session->thermal != NULL) {
        bxn_float_leave(session->host_float); /* a host's sensor runs in the host's mode */
        status = bxn_thermal_gate(session->thermal, &session->use, tokens, &session->cancel, &narrow, error);
        bxn_float_enter();
    }
    uint32_t threads = bxn_pool_threads(session->model->pool);
    bxn_pool_limit(session->model->pool, narrow ? (threads + 1) / 2 : threads);
    return status;
}

/* How many of `left` tokens the next pass reads. Where passes are long because they share what is decoded,
 * none is left with few: all get about the same. */
static uint32_t pass_tokens(size_t left, uint32_t most)
{
    if (left <= most)
        return (uint32_t)left;
    if (most <= BXN_TILE)
        return most;
    size_t passes = (left + most - 1) / most, even = bxn_round_up((left + passes - 1) / passes, 32);
    return even < most ? (uint32_t)even : most;
}

bitaxon_status bxn_session_read(bxn_session *session, bxn_read_kind kind, const int32_t *tokens,
                                size_t count, float *logits, float *logprobs, double *sum,
                                bitaxon_error *error)
{
    bxn_cache *cache = session->cache;
    uint32_t vocab = session->model->config.vocab_size;
    for (size_t i = 0; i < count; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= vocab)
            return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "token %zu is %d, the vocabulary has 0 to %u", i,
                            tokens[i], vocab - 1);
    if (count > cache->max_tokens - cache->length)
        return bxn_fail(error, BITAXON_LIMIT,
                        "context: %llu tokens are read, %zu more make %llu, the limit is %llu",
                        (unsigned long long)cache->length, count, (unsigned long long)(cache->length + count),
                        (unsigned long long)cache->max_tokens);
    if (cache->length == 0)
        cache->mark = session->mark;
    bitaxon_status sound = bxn_session_check(session, error);
    if (sound != BITAXON_OK)
        return sound;
    uint64_t began = bxn_now_ns(session->mem), first = cache->length;
    if (kind == BXN_READ_PREFILL) {
        session->prefill_began_ns = began;
        session->first_pending = true;
    }
    session->progress.total = count;
    session->progress.done = 0;
    bool watch = session->progress.fn != NULL && kind != BXN_READ_DECODE;
    session->host_float = bxn_float_enter();
    bitaxon_status status = BITAXON_OK;
    if (sum != NULL)
        *sum = 0;
    thermal_begin(session, kind, began);
    uint64_t tokens_before = kind == BXN_READ_DECODE ? 1 : 0; /* the gate before this one has counted none */
    for (size_t at = 0; at < count && status == BITAXON_OK;) {
        uint32_t most = watch ? session->tile : session->ws.tokens;
        uint32_t n = pass_tokens(count - at, most);
        session->tick_ns = watch ? bxn_now_ns(session->mem) : 0;
        bxn_phase phase = kind == BXN_READ_DECODE ? BXN_PHASE_DECODE : BXN_PHASE_PREFILL;
        if (kind == BXN_READ_REPLAY) { /* as they were read first */
            phase = bxn_cache_phase(cache, cache->length);
            n = bxn_cache_phase_run(cache, cache->length, n);
        }
        status = thermal_gate(session, tokens_before, error);
        if (status != BITAXON_OK)
            break;
        tokens_before = n;
        if (n >= 8) /* a prompt: all within some thousand tokens */
            bxn_model_populate(session->model, (uint64_t)n << 19, &session->populated);
        status = read_tile(session, watch, phase, tokens + at, n, logits != NULL ? logits + at * vocab : NULL,
                           logprobs != NULL ? logprobs + at : NULL, sum, error);
        if (status != BITAXON_OK)
            break;
        at += n;
        bxn_session_keep_point(cache);
        session->progress.done = at;
        if (watch) {
            status = tick(session);
            fit_tile(session);
        }
    }
    if (status == BITAXON_OK && kind != BXN_READ_DECODE && count != 0)
        atomic_store(&session->cancel, 0); /* it came too late for this call, and was not for the next */
    bxn_float_leave(session->host_float);
    thermal_end(session, kind);
    uint64_t spent = bxn_now_ns(session->mem) - began, read = cache->length - first;
    bitaxon_stats *stats = &session->stats;
    if (kind == BXN_READ_PREFILL) {
        stats->prefill_tokens += read;
        stats->prefill_ns += spent;
    } else if (kind == BXN_READ_DECODE) {
        stats->decode_tokens += read;
        stats->decode_ns += spent;
        if (session->first_pending && read != 0) {
            stats->first_token_ns = bxn_now_ns(session->mem) - session->prefill_began_ns;
            session->first_pending = false;
        }
    } else {
        stats->replayed_tokens += read;
        stats->replay_ns += spent;
    }
    if (status == BITAXON_CANCELLED) {
        atomic_store(&session->cancel, 0);
        return bxn_fail(error, status, "cancelled at position %llu (%llu of %zu tokens were read)",
                        (unsigned long long)cache->length, (unsigned long long)read, count);
    }
    if (status == BITAXON_SYSTEM)
        return bxn_fail(error, status, "the host's executor failed at position %llu",
                        (unsigned long long)cache->length);
    return status;
}

bitaxon_status bxn_session_step(bxn_session *session, int32_t *token, bitaxon_error *error)
{
    int32_t chosen;
    bitaxon_status status = bxn_sampler_draw(session, &chosen, error);
    if (status == BITAXON_OK)
        status = bxn_session_read(session, BXN_READ_DECODE, &chosen, 1, NULL, NULL, NULL, error);
    if (status == BITAXON_OK) {
        *token = chosen;
        atomic_store(&session->cancel, 0); /* it came too late for this call, and was not for the next */
    }
    return status;
}

bitaxon_status bxn_session_return(bxn_session *session, uint64_t position, bitaxon_error *error)
{
    bxn_cache *cache = session->cache;
    if (position > cache->length)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "rewind to %llu: only %llu tokens are read",
                        (unsigned long long)position, (unsigned long long)cache->length);
    bitaxon_status status = position == 0 ? BITAXON_OK : bxn_session_check(session, error);
    if (status == BITAXON_OK)
        status = bxn_cache_restore(cache, position, error);
    if (status != BITAXON_OK || cache->length == position)
        return status;
    return bxn_session_read(session, BXN_READ_REPLAY, cache->tokens + cache->length,
                            (size_t)(position - cache->length), NULL, NULL, NULL, error);
}
