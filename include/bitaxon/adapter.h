/* SPDX-License-Identifier: Apache-2.0 */
/* adapter.h - low-rank adapters of a model (LoRA, DoRA): opened from files, put on sessions and taken
 * off again (bitaxon_session_set_adapters) without touching the model, and merged into a new
 * model (bitaxon_model_merge).
 *
 * With the matrices A [in, r] and B [r, out] of a file and its scale s, a weight W gives
 *   LoRA   y = W x + s (A B)^T x
 *   DoRA   y = g o (W x + s (A B)^T x),   g_o = m_o / norm of row o of W + s (A B)^T
 *
 * An adapter is immutable-shared: any number of sessions of any threads may use it. It keeps its
 * model alive, and sessions keep it alive. Files: docs/adapters.md. */
#ifndef BITAXON_ADAPTER_H
#define BITAXON_ADAPTER_H

#include <bitaxon/base.h>
#include <bitaxon/model.h>
#include <bitaxon/session.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bitaxon_adapter bitaxon_adapter;

#define BITAXON_ADAPTERS_MAX 4 /* on a session, or merged, together */

typedef struct bitaxon_adapter_params {
    uint32_t struct_size;
    float scale;      /* s; 0: by the file, and of a file that tells none 20, with a warning in the log */
    const char *path; /* a file that ends with .safetensors, or a directory with adapters.safetensors */
} bitaxon_adapter_params;

/* Read an adapter. A file that tells the model it was made for is taken for that model alone; one that
 * does not (of the original implementation) must fit by names and shapes. Of DoRA the norms of all
 * adapted weights are computed here, so that putting it on a session costs nothing.
 * Params:    params  required.  out  NULL on failure.
 * Returns:   OK, INVALID_ARGUMENT, IO, FORMAT (damaged, half an adapter, values that are not finite),
 *            MISMATCH (of another model; the message names both), UNSUPPORTED (a later version),
 *            LIMIT (rank over 256; max_bytes), OUT_OF_MEMORY, BAD_STATE (a tokenizer-only model), SYSTEM.
 * Ownership: free with bitaxon_adapter_free.  Thread: any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_adapter_open(bitaxon_model *model, const bitaxon_adapter_params *params,
                                                bitaxon_adapter **out, bitaxon_error *error);

/* Write it: the keys of the original implementation, and scale, rank, kind and the model's fingerprint
 * as metadata. The same adapter gives the same bytes, and reading them gives the same values; written
 * beside `path` and renamed, so that `path` holds either the old or the new file.
 * Params:    path  of the file.
 * Returns:   OK, INVALID_ARGUMENT, IO, OUT_OF_MEMORY, LIMIT.  Thread: any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_adapter_save(const bitaxon_adapter *adapter, const char *path,
                                                bitaxon_error *error);

typedef struct bitaxon_adapter_info {
    uint32_t struct_size;
    uint32_t rank;    /* the largest of its weights */
    uint32_t dora;    /* 1: DoRA, 0: LoRA */
    uint32_t weights; /* that it changes */
    float scale;
    uint32_t reserved0;
    uint64_t parameters; /* values that train */
    uint64_t bytes;      /* of memory */
    uint8_t id[16];      /* of model and content: adapters with one id give the same bits */
} bitaxon_adapter_info;

/* Params:    info  caller-owned, struct_size set.
 * Returns:   OK, INVALID_ARGUMENT.  Thread: any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_adapter_get_info(const bitaxon_adapter *adapter,
                                                    bitaxon_adapter_info *info, bitaxon_error *error);

/* Put adapters of the same model on a session, in place of those it has. With y_i what a
 * weight W and adapter i alone give, every adapted product is then
 *   y = W x + sum of weights[i] * (y_i - W x)
 * What a cache holds depends on the adapters it was read with, and it remembers which: with others, or
 * none, a session neither reads on nor chooses a token (MISMATCH) until these are put on, the
 * cache is emptied (bitaxon_cache_reset) or another is given. Nothing is copied or computed: a
 * swap takes well under a millisecond, also the first one whose ranks together pass 32, which takes one more
 * block of memory (2.1 MB at most) and keeps it.
 * Params:    adapters [count]  at most BITAXON_ADAPTERS_MAX; NULL with count 0: none.
 *            weights [count]  nullable: 1 each.
 * Returns:   OK, INVALID_ARGUMENT, MISMATCH (of another model; the session's cache holds tokens read with
 *            others), OUT_OF_MEMORY, LIMIT (room for a larger rank); on failure the session keeps those it had.
 * Ownership: the session keeps the adapters alive.  Thread: single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_session_set_adapters(bitaxon_session *session,
                                                        bitaxon_adapter *const *adapters,
                                                        const float *weights, uint32_t count,
                                                        bitaxon_error *error);

/* NULL is fine. Sessions that have it go on with it.  Thread: any-thread.  Since: 0.1 */
BITAXON_API void bitaxon_adapter_free(bitaxon_adapter *adapter);

#ifdef __cplusplus
}
#endif
#endif
