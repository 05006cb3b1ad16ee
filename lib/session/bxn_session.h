/* SPDX-License-Identifier: Apache-2.0 */
/* bxn_session.h - a session: a workspace, a cache it reads into, a sampler's buffers. */
#ifndef BXN_SESSION_H
#define BXN_SESSION_H

#include "model/bxn_adapter.h"
#include "session/bxn_cache.h"
#include "thermal/bxn_thermal.h"
#include "tokenizer/bxn_tokenizer.h"

#define BXN_SCORE_ROWS 16 /* rows of logits at a time when scoring */
#define BXN_ADAPTER_ROOM 32 /* ranks of adapters that every workspace has room for from the start */
#define BXN_BATCH_MAX BXN_SCORE_ROWS /* sessions that decode together */

typedef struct bxn_session {
    bxn_mem *mem;
    const bxn_model *model;
    const bxn_tokenizer *tokenizer; /* nullable */
    bxn_cache *cache;               /* borrowed */
    bxn_workspace ws;
    uint64_t ws_tokens;             /* what the workspace was sized for */
    uint32_t ws_rank;               /* of adapters together, likewise */
    bxn_adapters adapters;          /* borrowed, in force */
    bxn_adapter_mark mark;          /* which those are */
    bxn_state *spare;               /* exclusive; NULL when the next pass must make one */
    float *work;                    /* [V] */
    uint8_t *seen;                  /* [V], zero between calls */
    bitaxon_candidate *candidates;  /* [V] */
    float *rows;                    /* [BXN_SCORE_ROWS, V] */
    atomic_int cancel;
    bxn_progress progress;
    uint64_t populated;    /* bytes of the model's mapping that long prompts have brought in */
    uint32_t tile;         /* tokens at a time while a host watches */
    uint64_t tick_ns, longest_ns;
    uint64_t host_float; /* the caller's floating-point mode during a read */
    bitaxon_stats stats;
    uint64_t prefill_began_ns;
    bool first_pending; /* no token decoded since the last prefill */
    bxn_thermal *thermal; /* borrowed, nullable */
    bxn_thermal_use use;
    uint64_t left_ns;   /* when the last read ended */
    uint64_t energy_uj; /* the policy's count that has been booked */
} bxn_session;

/* Accounted bytes of a session without its cache; tiles: as bxn_model_tiles. */
uint64_t bxn_session_bytes(const bxn_config *config, size_t state_floats, uint64_t max_tokens, bool tiles);
bitaxon_status bxn_session_init(bxn_session *session, bxn_mem *mem, const bxn_model *model,
                                const bxn_tokenizer *tokenizer, bxn_cache *cache,
                                bitaxon_progress_fn progress, void *progress_user,
                                bitaxon_error *error);
void bxn_session_release(bxn_session *session);

/* On with another cache (the session's buffers grow when it is longer). */
bitaxon_status bxn_session_attach(bxn_session *session, bxn_cache *cache, bitaxon_error *error);

/* Adapters for all passes from here on, none with count 0; each weight is finite. MISMATCH when the cache holds
 * tokens read with others, OUT_OF_MEMORY, LIMIT: nothing has changed. (adapters.c) */
bitaxon_status bxn_session_adapt(bxn_session *session, const bxn_adapter *const *adapters, const float *weights,
                                 uint32_t count, bitaxon_error *error);
/* MISMATCH when what the cache holds was read with other adapters than the session has. */
bitaxon_status bxn_session_check(const bxn_session *session, bitaxon_error *error);
/* For passes: NULL when there are none. */
static inline const bxn_adapters *bxn_session_adapters(const bxn_session *session)
{
    return session->adapters.count == 0 ? NULL : &session->adapters;
}
/* A workspace for caches of max_tokens and adapters of `rank` together, in place of the present one when that
 * is too small; on failure it stays. */
bitaxon_status bxn_session_room(bxn_session *session, uint64_t max_tokens, uint32_t rank, bitaxon_error *error);

/* What a read is for: its time is booked there. */
typedef enum bxn_read_kind { BXN_READ_PREFILL, BXN_READ_DECODE, BXN_READ_REPLAY } bxn_read_kind;

/* Read tokens in tiles. logits: NULL, or [count, V] to fill. sum: NULL, or the total of the
 * log-probabilities of the tokens, each given all before it; they go to logprobs [count]
 * (nullable; 0 for the first token of all, which nothing precedes). */
bitaxon_status bxn_session_read(bxn_session *session, bxn_read_kind kind, const int32_t *tokens,
                                size_t count, float *logits, float *logprobs, double *sum,
                                bitaxon_error *error);
bitaxon_status bxn_session_step(bxn_session *session, int32_t *token, bitaxon_error *error);

/* Make the spare state and the pages for a pass of `count` tokens. */
bitaxon_status bxn_session_prepare(bxn_session *session, uint32_t count, bitaxon_error *error);
/* After a commit: the automatic checkpoint, when one is due. */
void bxn_session_keep_point(bxn_cache *cache);
/* One step of each of count <= BXN_BATCH_MAX distinct sessions of one model, all or nothing. On
 * failure *failed is the session's index, or count. */
bitaxon_status bxn_batch_step(bxn_session *const *sessions, uint32_t count, int32_t *tokens, uint32_t *failed,
                              bitaxon_error *error);

bitaxon_status bxn_session_return(bxn_session *session, uint64_t position, bitaxon_error *error);
bitaxon_status bxn_session_run(bxn_session *session, const bitaxon_generate_params *params,
                               bitaxon_generate_result *result, bitaxon_error *error);

/* FORMAT when a logit is NaN or +infinity. */
bitaxon_status bxn_sampler_check(const float *logits, uint32_t vocab, bitaxon_error *error);
/* The next token by the cache's sampler settings. */
bitaxon_status bxn_sampler_draw(bxn_session *session, int32_t *token, bitaxon_error *error);
double bxn_log_sum_exp(const float *logits, uint32_t vocab);
/* The `count` best with log-probabilities; returns how many. */
uint32_t bxn_top_logprobs(const float *logits, uint32_t vocab, uint32_t count, bitaxon_candidate *out);

#endif
