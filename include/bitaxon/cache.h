/* SPDX-License-Identifier: Apache-2.0 */
/* cache.h - everything a session has read: scan states, convolution tails, the
 * attention window, the tokens, the last logits, the sampler's settings.
 *
 * A cache only grows; it moves by checkpoint, rewind, clone, save and load, and
 * each of these is exact: what follows is the same to the bit as if the cache had
 * been read from the start. Clones and checkpoints share memory with their origin
 * until one of them goes on (copy on write).
 *
 * A cache is single-user: it serves at most one session at a time, from one
 * thread at a time; clones are independent of each other. */
#ifndef BITAXON_CACHE_H
#define BITAXON_CACHE_H

#include <bitaxon/base.h>
#include <bitaxon/model.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bitaxon_cache bitaxon_cache;

/* How keys and values are kept, bytes for a token, a head and a layer of head_dim 80: F16 320,
 * F32 640, I8 168 (8-bit codes, one scale for a key and for a value), Q4 88 (rotated, 4-bit codes of
 * a fixed codebook, one norm). What each costs in accuracy: docs/attention.md. */
enum {
    BITAXON_KV_DEFAULT = 0,
    BITAXON_KV_F16 = 1,
    BITAXON_KV_F32 = 2,
    BITAXON_KV_I8 = 3,
    BITAXON_KV_Q4 = 4
};

typedef struct bitaxon_cache_params {
    uint32_t struct_size;
    int32_t kv_type; /* BITAXON_KV_*; default F16 */
    /* Most tokens the cache will hold; 0: the model's max_seq_len. More is LIMIT. */
    uint64_t max_tokens;
    /* Keep a checkpoint about every so many tokens by itself; 0: only those asked for. */
    uint64_t checkpoint_interval;
    /* Of the automatic ones keep at most this many (thinned in the middle); 0: 16. */
    uint32_t checkpoint_max;
    uint32_t reserved0;
} bitaxon_cache_params;

/* Params:    params  NULL: defaults.  out  an empty cache; NULL on failure.
 * Returns:   OK, INVALID_ARGUMENT, OUT_OF_MEMORY, LIMIT, BAD_STATE (the model was opened
 *            for its tokenizer only).
 * Ownership: free with bitaxon_cache_free.  Thread: any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_cache_create(bitaxon_model *model,
                                                const bitaxon_cache_params *params,
                                                bitaxon_cache **out, bitaxon_error *error);

/* NULL is fine. A session that uses the cache keeps it alive.
 * Thread:    single-user.  Since: 0.1 */
BITAXON_API void bitaxon_cache_free(bitaxon_cache *cache);

/* Returns:   tokens read so far; 0 for NULL.  Thread: single-user.  Since: 0.1 */
BITAXON_API uint64_t bitaxon_cache_length(const bitaxon_cache *cache);

/* The tokens read so far.
 * Params:    first, count  a range within the length.  out [count].
 * Returns:   OK, INVALID_ARGUMENT.  Thread: single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_cache_tokens(const bitaxon_cache *cache, uint64_t first,
                                                uint64_t count, int32_t *out, bitaxon_error *error);

/* Remember the present position, so that a rewind to it costs nothing. The scan state and
 * the page that going on from here needs first are taken now; further pages are taken
 * as the window moves on. Doing it twice at one position is one checkpoint.
 * Returns:   OK, OUT_OF_MEMORY, LIMIT.  Thread: single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_cache_checkpoint(bitaxon_cache *cache, bitaxon_error *error);

/* Forget the checkpoint at `position`.
 * Returns:   OK; END when there is none there; INVALID_ARGUMENT.
 * Thread:    single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_cache_checkpoint_drop(bitaxon_cache *cache, uint64_t position,
                                                         bitaxon_error *error);

/* What bitaxon_session_rewind to `position` would cost.
 * Params:    from  nullable: the checkpoint it would start at.
 *            replay  nullable: tokens to read again.
 * Returns:   OK, INVALID_ARGUMENT (beyond the length).  Thread: single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_cache_rewind_cost(const bitaxon_cache *cache, uint64_t position,
                                                     uint64_t *from, uint64_t *replay,
                                                     bitaxon_error *error);

/* A second cache at the same position, checkpoints included.
 * Returns:   OK, OUT_OF_MEMORY, LIMIT.  Ownership: free with bitaxon_cache_free.
 * Thread:    single-user (of the origin, during the call).  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_cache_clone(bitaxon_cache *cache, bitaxon_cache **out,
                                               bitaxon_error *error);

/* Write the cache to a file: versioned, checksummed, bound to the model's
 * fingerprint; written beside `path` and renamed, so that `path` holds either the
 * old or the new file. Checkpoints are not saved.
 * Returns:   OK, INVALID_ARGUMENT, IO, OUT_OF_MEMORY, LIMIT.  Thread: single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_cache_save(const bitaxon_cache *cache, const char *path,
                                              bitaxon_error *error);

/* Replace the cache's content by a saved one. On any failure the cache is as it was.
 * Returns:   OK, IO, FORMAT (damaged; the message holds the offset), MISMATCH
 *            (another model or KV type; read with other adapters than the session has that the
 *            cache serves), LIMIT (longer than max_tokens),
 *            UNSUPPORTED (a later version), OUT_OF_MEMORY.
 * Thread:    single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_cache_load(bitaxon_cache *cache, const char *path,
                                              bitaxon_error *error);

/* Empty the cache; checkpoints go too.  Thread: single-user.  Since: 0.1 */
BITAXON_API void bitaxon_cache_reset(bitaxon_cache *cache);

#ifdef __cplusplus
}
#endif
#endif
