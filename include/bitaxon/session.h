/* SPDX-License-Identifier: Apache-2.0 */
/* session.h - reading and writing with a model: prefill, decode, generate, score.
 * A session is single-user; bitaxon_session_cancel alone may come from any thread.
 * Its position is the length of its cache; a call that fails or is cancelled
 * leaves the position at a token boundary (bitaxon_session_position tells which)
 * and the session usable. Whatever reads, chooses a token or goes back is MISMATCH while the cache holds
 * tokens read with other adapters than the session has (adapter.h). */
#ifndef BITAXON_SESSION_H
#define BITAXON_SESSION_H

#include <bitaxon/base.h>
#include <bitaxon/cache.h>
#include <bitaxon/model.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bitaxon_session bitaxon_session;
struct bitaxon_thermal;

/* Add `bias` to the logit of `token`; -INFINITY forbids it. */
typedef struct bitaxon_logit_bias {
    int32_t token;
    float bias;
} bitaxon_logit_bias;

/* How the next token is chosen. Order: repetition penalty, bias, then temperature,
 * top-k, top-p, min-p, one draw. The draw for position p is a function of (seed, p)
 * alone (Philox 4x32-10): independent of threads, and repeated after a rewind. */
typedef struct bitaxon_sampler_params {
    uint32_t struct_size;
    uint32_t top_k;           /* 0: off. Ties by lower id. */
    float temperature;        /* 0: greedy (highest logit, lowest id). Never negative. */
    float top_p;              /* 0 or 1: off; else in (0, 1) */
    float min_p;              /* 0: off; keep tokens with p >= min_p * p_max; below 1 */
    float repetition_penalty; /* 0 or 1: off; > 0 */
    uint32_t repetition_window; /* tokens looked back at; 0: all */
    uint32_t bias_count;      /* at most 1024 */
    uint64_t seed;
    const bitaxon_logit_bias *bias; /* [bias_count]; copied */
} bitaxon_sampler_params;

typedef struct bitaxon_session_params {
    uint32_t struct_size;
    uint32_t reserved0;
    bitaxon_cache *cache;                  /* NULL: the session makes its own by cache_params */
    const bitaxon_cache_params *cache_params; /* NULL: defaults */
    const bitaxon_sampler_params *sampler; /* NULL: what the cache holds (greedy when new) */
    bitaxon_progress_fn progress;          /* nullable; prefill, rewind and scoring */
    void *progress_user;
    /* Nullable: asked before each token and each tile of a prompt (thermal.h); kept alive. */
    struct bitaxon_thermal *thermal;
} bitaxon_session_params;

/* Params:    params  NULL: defaults.  out  NULL on failure.
 * Returns:   OK, INVALID_ARGUMENT, OUT_OF_MEMORY, LIMIT, MISMATCH (cache of another
 *            model), BAD_STATE (the cache serves another session; a tokenizer-only model).
 * Ownership: free with bitaxon_session_free.  Thread: any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_session_create(bitaxon_model *model,
                                                  const bitaxon_session_params *params,
                                                  bitaxon_session **out, bitaxon_error *error);

/* NULL is fine.  Thread: single-user.  Since: 0.1 */
BITAXON_API void bitaxon_session_free(bitaxon_session *session);

/* Returns:   the session's cache, borrowed: valid while the session lives. Its
 *            functions may be called between calls of the session.
 * Thread:    single-user.  Since: 0.1 */
BITAXON_API bitaxon_cache *bitaxon_session_cache(bitaxon_session *session);

/* Go on with another cache of the same model: one session can serve many clones in turn.
 * The one it had is let go (and freed, when the session alone held it). One that was read with other
 * adapters (adapter.h) than the session's is taken, and not read on before its own are put on.
 * Returns:   OK, MISMATCH, BAD_STATE (the cache serves another session), OUT_OF_MEMORY,
 *            LIMIT; on failure the session keeps the cache it had.
 * Thread:    single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_session_set_cache(bitaxon_session *session, bitaxon_cache *cache,
                                                     bitaxon_error *error);

/* Returns:   tokens read so far.  Thread: single-user.  Since: 0.1 */
BITAXON_API uint64_t bitaxon_session_position(const bitaxon_session *session);

/* Read tokens. Any split of a text into calls gives the same bits.
 * Params:    tokens [count]  each in [0, vocab_size).
 * Returns:   OK, INVALID_ARGUMENT (which token, which value), LIMIT (context: needed
 *            and allowed lengths; or max_bytes), CANCELLED, FORMAT (weights gave NaN),
 *            OUT_OF_MEMORY (a clone or a cache with checkpoints needs a page), SYSTEM,
 *            MISMATCH (the cache was read with other adapters).
 * Thread:    single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_session_prefill(bitaxon_session *session, const int32_t *tokens,
                                                   size_t count, bitaxon_error *error);

/* Read tokens and give the logits after each: row t predicts what follows tokens[t].
 * Params:    logits [count, vocab_size]  f32; on failure, rows of the tokens read are filled.
 * Returns:   as prefill.  Thread: single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_session_evaluate(bitaxon_session *session,
                                                    const int32_t *tokens, size_t count,
                                                    float *logits, bitaxon_error *error);

/* Choose the next token by the sampler and read it.
 * Params:    token  the chosen token.
 * Returns:   OK; BAD_STATE (nothing read yet); LIMIT, OUT_OF_MEMORY (as prefill); CANCELLED;
 *            FORMAT (NaN logits).
 * Thread:    single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_session_decode(bitaxon_session *session, int32_t *token,
                                                  bitaxon_error *error);

/* Choose the next token without reading it.
 * Returns:   OK, BAD_STATE, FORMAT.  Thread: single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_session_sample(bitaxon_session *session, int32_t *token,
                                                  bitaxon_error *error);

/* The logits after the last token read.
 * Params:    logits  borrowed [vocab_size]; valid until the next call on the session or its cache.
 * Returns:   OK, BAD_STATE (nothing read yet).  Thread: single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_session_logits(const bitaxon_session *session,
                                                  const float **logits, bitaxon_error *error);

/* Log-probability of given tokens: log p(tokens[i] | all before). They are read.
 * Params:    sum  of the scored ones; of those read when CANCELLED.  logprobs [count]  nullable; at position 0 the
 *            first token has nothing before it: it is 0 there and not in the sum.
 * Returns:   as prefill.  Thread: single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_session_score(bitaxon_session *session, const int32_t *tokens,
                                                 size_t count, double *sum, float *logprobs,
                                                 bitaxon_error *error);

/* Go back to an earlier position, exactly: nearest checkpoint, then replay
 * (bitaxon_cache_rewind_cost tells the price). Cancelled on the way, the position is
 * somewhere between the checkpoint and the target.
 * Returns:   OK, INVALID_ARGUMENT (beyond the length), CANCELLED, OUT_OF_MEMORY, LIMIT.
 * Thread:    single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_session_rewind(bitaxon_session *session, uint64_t position,
                                                  bitaxon_error *error);

/* Params:    sampler  NULL: greedy.
 * Returns:   OK, INVALID_ARGUMENT (which field), OUT_OF_MEMORY.  Thread: single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_session_set_sampler(bitaxon_session *session,
                                                       const bitaxon_sampler_params *sampler,
                                                       bitaxon_error *error);

typedef struct bitaxon_candidate {
    int32_t token;
    float logprob;
} bitaxon_candidate;

/* One step of bitaxon_session_generate. */
typedef struct bitaxon_generated {
    uint32_t struct_size;
    int32_t token;     /* -1 for text released at the end without a token */
    const char *text;  /* UTF-8, text_bytes long, may be empty while text is held back; NULL without tokenizer */
    size_t text_bytes;
    float logprob;     /* of the token by the model's own distribution (before the sampler) */
    uint32_t top_count;
    const bitaxon_candidate *top; /* [top_count], best first */
} bitaxon_generated;

enum {
    BITAXON_FINISH_NONE = 0,
    BITAXON_FINISH_EOS = 1,
    BITAXON_FINISH_STOP = 2,     /* a stop string */
    BITAXON_FINISH_LENGTH = 3,   /* max_tokens */
    BITAXON_FINISH_CONTEXT = 4,  /* the context is full; the status is LIMIT */
    BITAXON_FINISH_CANCELLED = 5,
    BITAXON_FINISH_CALLBACK = 6  /* on_token asked to stop */
};

typedef struct bitaxon_generate_params {
    uint32_t struct_size;
    uint32_t flags;            /* BITAXON_GENERATE_* */
    uint64_t max_tokens;       /* 0: until something else stops it */
    const char *const *stop;   /* [stop_count] stop strings, terminated, not empty */
    uint32_t stop_count;
    uint32_t eos_count;        /* 0: the model's own */
    const int32_t *eos;        /* [eos_count] */
    uint32_t top_logprobs;     /* candidates per token, at most 64 */
    uint32_t reserved0;
    int32_t (*on_token)(void *user, const bitaxon_generated *step); /* nullable; non-zero stops */
    void *user;
} bitaxon_generate_params;

enum {
    BITAXON_GENERATE_IGNORE_EOS = 1, /* read on through end tokens */
    BITAXON_GENERATE_SPECIAL = 2,    /* control tokens appear in the text */
    BITAXON_GENERATE_LOGPROBS = 4    /* fill logprob (implied by top_logprobs) */
};

typedef struct bitaxon_generate_result {
    uint32_t struct_size;
    int32_t finish; /* BITAXON_FINISH_* */
    uint64_t tokens; /* generated and read; an end token is neither */
    int32_t stop_index; /* which stop string, or -1 */
    int32_t eos_token;  /* which end token, or -1 */
} bitaxon_generate_result;

/* Generate from the present position. An end token ends it unread; a stop string
 * ends it with its tokens read and its text withheld.
 * Params:    params  NULL: defaults.  result  nullable, struct_size set; also on failure.
 * Returns:   OK for every finish reason but: LIMIT (context full), CANCELLED, or a failure.
 * Thread:    single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_session_generate(bitaxon_session *session,
                                                    const bitaxon_generate_params *params,
                                                    bitaxon_generate_result *result,
                                                    bitaxon_error *error);

/* Stop the call in progress, or, when none is, the next one, within 50 ms. A cancel that
 * comes too late for a call that succeeds is spent with it.
 * Async-signal-safe.  Thread: any-thread.  Since: 0.1 */
BITAXON_API void bitaxon_session_cancel(bitaxon_session *session);

/* Counts and times since the session was made or bitaxon_session_stats_reset. */
typedef struct bitaxon_stats {
    uint32_t struct_size;
    uint32_t reserved0;
    uint64_t prefill_tokens;
    uint64_t prefill_ns;
    uint64_t decode_tokens;
    uint64_t decode_ns;
    uint64_t replayed_tokens;
    uint64_t replay_ns;
    uint64_t first_token_ns; /* from the start of the last prefill to its first decoded token */
    /* With a thermal policy that has an energy source, microjoules of the source (of the whole
     * package or machine); else 0. Replays count as prefill. */
    uint64_t prefill_uj;
    uint64_t decode_uj;
} bitaxon_stats;

/* Params:    out  caller-owned, struct_size set.
 * Returns:   OK, INVALID_ARGUMENT.  Thread: single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_session_stats(const bitaxon_session *session,
                                                 bitaxon_stats *out, bitaxon_error *error);

/* Set all counts and times to 0. NULL is fine.  Thread: single-user.  Since: 0.1 */
BITAXON_API void bitaxon_session_stats_reset(bitaxon_session *session);

#ifdef __cplusplus
}
#endif
#endif
