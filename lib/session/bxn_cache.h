/* SPDX-License-Identifier: Apache-2.0 */
/* bxn_cache.h - what a session has read, as shared pieces. A scan state and a page of
 * keys and values are counted references: checkpoints and clones hold the same pieces,
 * and whoever goes on makes his own (copy on write). A pass reads the present state
 * and writes a spare one; committing swaps them, so that a pass that fails is as if it
 * had not been. */
#ifndef BXN_CACHE_H
#define BXN_CACHE_H

#include <bitaxon/cache.h>
#include <bitaxon/session.h>

#include "model/bxn_model.h"

#define BXN_MAX_BIAS 1024

/* One allocation: this, scan state [state_floats], logits [V]. */
typedef struct bxn_state {
    _Atomic uint32_t refs;
    uint32_t has_logits;
    float *scan;
    float *logits;
} bxn_state;

typedef struct bxn_page {
    _Atomic uint32_t refs;
} bxn_page;
#define BXN_PAGE_HEADER BXN_ALIGN /* data follow */

typedef struct bxn_sampler {
    bitaxon_sampler_params params; /* bias points to biases */
    bitaxon_logit_bias *biases;    /* owned, params.bias_count */
} bxn_sampler;

typedef struct bxn_checkpoint {
    uint64_t position;
    uint64_t first_page;
    bxn_state *state;
    bxn_page **pages;
    uint32_t page_count;
    bool automatic;
} bxn_checkpoint;

/* Which adapters a cache was read with, or a session has; what is not used is zero. */
typedef struct bxn_adapter_mark {
    uint32_t count;
    float weights[BXN_ADAPTERS];
    uint8_t ids[BXN_ADAPTERS][16];
} bxn_adapter_mark;
bool bxn_mark_equal(const bxn_adapter_mark *a, const bxn_adapter_mark *b);
/* "no adapter", "adapter 1f2e3d4c", "adapters 1f2e3d4c * 0.5, ..." */
#define BXN_MARK_TEXT 88
void bxn_mark_text(const bxn_adapter_mark *mark, char text[BXN_MARK_TEXT]);

typedef struct bxn_cache {
    bxn_mem *mem;
    const bxn_model *model;
    bxn_kv_layout layout;
    int32_t kv_type;
    uint64_t max_tokens;
    uint64_t length;
    int32_t *tokens;  /* [max_tokens] */
    uint64_t *phases; /* a bit for each token: bxn_phase; beyond the length, what a replay goes by */
    bxn_state *state;
    bxn_state *reserve; /* taken by a checkpoint for the next commit; may be NULL */
    /* pages[i] holds positions (first_page + i) * BXN_PAGE ...; data[i] its bytes */
    bxn_page **pages;
    void **data;
    uint32_t page_count, page_capacity;
    uint64_t first_page;
    bxn_page **spare_pages; /* exclusive, unused */
    uint32_t spare_count;
    bxn_checkpoint *points; /* ascending by position */
    uint32_t point_count, point_capacity;
    uint64_t interval;
    uint32_t automatic_max;
    bxn_sampler sampler;
    bxn_adapter_mark mark;          /* of the tokens read, when there are any */
    const bxn_adapter_mark *wanted; /* of the session it serves; NULL: none */
} bxn_cache;

/* params: checked and complete (defaults filled in by bxn_cache_params_check). */
bitaxon_status bxn_cache_params_check(const bxn_config *config, const bitaxon_cache_params *params,
                                      bitaxon_cache_params *out, bitaxon_error *error);
bitaxon_status bxn_cache_init(bxn_cache *cache, bxn_mem *mem, const bxn_model *model,
                              const bitaxon_cache_params *params, bitaxon_error *error);
void bxn_cache_release(bxn_cache *cache);
bitaxon_status bxn_cache_copy(bxn_cache *out, bxn_cache *from, bitaxon_error *error);
void bxn_cache_clear(bxn_cache *cache);

/* Accounted bytes of a new cache, of one state, and of a checkpoint or diverged clone at most; tiles: as
 * bxn_model_tiles. */
uint64_t bxn_cache_bytes(const bxn_config *config, size_t state_floats, uint32_t attention_layers,
                         const bitaxon_cache_params *params, bool tiles);
uint64_t bxn_cache_state_bytes(const bxn_config *config, size_t state_floats);
uint64_t bxn_cache_fork_bytes(const bxn_config *config, size_t state_floats, uint32_t attention_layers,
                              const bitaxon_cache_params *params, bool tiles);

/* A cleared state, exclusive. */
bitaxon_status bxn_state_create(bxn_mem *mem, const bxn_model *model, bxn_state **out,
                                bitaxon_error *error);
void bxn_state_unref(bxn_mem *mem, const bxn_model *model, bxn_state *state);

/* Make pages for `count` tokens at the present length, exclusive and in place. */
bitaxon_status bxn_cache_prepare(bxn_cache *cache, uint32_t count, bitaxon_error *error);
/* The pass at the present length is done: take its tokens, read in one phase, and its state; *spare
 * becomes a state for the next pass, or NULL when none is free. */
void bxn_cache_commit(bxn_cache *cache, const int32_t *tokens, uint32_t count, bxn_phase phase,
                      bxn_state **spare);
/* The phase of the token at `position` < max_tokens, and how many from there on (at most `most`,
 * within max_tokens) have the same. After a rewind this holds beyond the length as well. */
bxn_phase bxn_cache_phase(const bxn_cache *cache, uint64_t position);
uint32_t bxn_cache_phase_run(const bxn_cache *cache, uint64_t position, uint32_t most);

bitaxon_status bxn_cache_point(bxn_cache *cache, bool automatic, bitaxon_error *error);
/* Give up all automatic checkpoints; true when there were any. */
bool bxn_cache_drop_automatic(bxn_cache *cache);
bitaxon_status bxn_cache_point_drop(bxn_cache *cache, uint64_t position);
void bxn_cache_cost(const bxn_cache *cache, uint64_t position, uint64_t *from);
/* Go back to the nearest checkpoint at or before `position` (0 is always one); later
 * checkpoints are dropped. Nothing happens when position is the length. */
bitaxon_status bxn_cache_restore(bxn_cache *cache, uint64_t position, bitaxon_error *error);

/* For loading: page tables like `like`'s with `count` exclusive pages in out->data (the rest of
 * *out stays empty; bxn_cache_release frees it); then give those pages to an emptied cache. */
bitaxon_status bxn_cache_tables(bxn_cache *out, const bxn_cache *like, uint32_t count,
                                bitaxon_error *error);
void bxn_cache_take_pages(bxn_cache *cache, bxn_cache *from, uint64_t first_page);

bitaxon_status bxn_cache_write(const bxn_cache *cache, const char *path, bitaxon_error *error);
bitaxon_status bxn_cache_read(bxn_cache *cache, const char *path, bitaxon_error *error);

/* Check and take over; on failure *sampler is as it was. params NULL: greedy. */
bitaxon_status bxn_sampler_set(bxn_mem *mem, const bxn_config *config, bxn_sampler *sampler,
                               const bitaxon_sampler_params *params, bitaxon_error *error);
void bxn_sampler_free(bxn_mem *mem, bxn_sampler *sampler);

#endif
