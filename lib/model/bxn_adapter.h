/* SPDX-License-Identifier: Apache-2.0 */
/* bxn_adapter.h - low-rank adapters of a model in memory: values in one block, views of them per weight,
 * and their files (spec 9.6). */
#ifndef BXN_ADAPTER_H
#define BXN_ADAPTER_H

#include "model/bxn_model.h"

/* All values lie in `values`: for each adapted weight a, then b, then m (DoRA), each as bxn_lora says and
 * beginning on 64 bytes. What is derived, the gains, has a block of its own. */
typedef struct bxn_adapter {
    bxn_mem *mem;
    uint32_t rank; /* largest of all */
    float scale;
    bool dora;
    uint32_t weight_count; /* of the model */
    uint32_t adapted;      /* weights that have a part */
    bxn_lora *loras;       /* [weight_count] */
    float *values;
    size_t floats;
    float *gains, *norms; /* DoRA: of each adapted weight, rows padded to 16: gain; ||W_o||^2 */
    size_t gain_floats;
    uint8_t id[16];       /* of model and content; equal: interchangeable, to the bit */
} bxn_adapter;

typedef struct bxn_adapter_plan {
    uint32_t rank;  /* 1 .. 256 */
    float scale;
    bool dora;
    uint64_t seed;
    /* Name endings of the weights to adapt ("q_proj", "layer_3.ssm.in_proj", ...), comma separated; NULL:
     * all that bxn_weight_adaptable allows. FORMAT-free: INVALID_ARGUMENT names one that matches nothing. */
    const char *targets;
} bxn_adapter_plan;

/* Zeroed values and views for weights of which rank_of gives a rank > 0 (`dora`: with m), without gains and id. */
typedef uint32_t (*bxn_adapter_rank_fn)(void *user, const bxn_weight *weight, const char *name);
bitaxon_status bxn_adapter_make(bxn_mem *mem, const bxn_model *model, float scale, bool dora,
                                bxn_adapter_rank_fn rank_of, void *user, bxn_adapter *out, bitaxon_error *error);

/* A ~ U(+-1/sqrt(cols)) by seed, name and place, B = 0, m = row norms of W: it changes nothing yet but, with DoRA,
 * roundings. Complete, with gains and id. */
bitaxon_status bxn_adapter_create(bxn_mem *mem, const bxn_model *model, const bxn_adapter_plan *plan,
                                  bxn_adapter *out, bitaxon_error *error);
/* The same without values: what it will hold, and the number of values that train. The model needs no weights. */
uint64_t bxn_adapter_bytes(const bxn_model *model, const bxn_adapter_plan *plan, uint64_t *trainable);
bitaxon_status bxn_adapter_copy(const bxn_adapter *adapter, bxn_mem *mem, bxn_adapter *out, bitaxon_error *error);
void bxn_adapter_free(bxn_adapter *adapter);

/* Once, when all values are set: the norms of W that gains need. */
bitaxon_status bxn_adapter_norms(const bxn_model *model, bxn_adapter *adapter, bitaxon_error *error);
/* After values changed: gains (DoRA) and, when `identify`, the id. With `grad` (laid out as values) and DoRA,
 * adds the gradient through the norms to it first (exact DoRA; bxn_dora_gains). OUT_OF_MEMORY, SYSTEM. */
bitaxon_status bxn_adapter_updated(const bxn_model *model, bxn_adapter *adapter, bool identify, float *grad,
                                   bitaxon_error *error);

/* Each array of values: name as in files ("layer_0.ssm.in_proj.lora_a", ".lora_b", ".m"), floats from
 * `values`, [rows, cols] ld. lora_a is [rank, cols], the transpose of what the file holds. */
typedef bitaxon_status (*bxn_adapter_visitor)(void *user, const char *name, uint32_t weight_id, size_t offset,
                                              uint32_t rows, uint32_t cols, size_t ld);
bitaxon_status bxn_adapter_each(const bxn_model *model, const bxn_adapter *adapter, bxn_adapter_visitor visit,
                                void *user);
/* How many values the arrays have together, without padding. */
uint64_t bxn_adapter_values(const bxn_model *model, const bxn_adapter *adapter);

#define BXN_MAX_ADAPTER_RANK 256u
#define BXN_ADAPTER_SCALE 20.0f /* of a file that tells none, when the caller tells none either */
#define BXN_ADAPTER_FILE "adapters.safetensors"

/* A file with the keys of the original plus metadata (docs/adapters.md); the same adapter gives the same bytes.
 * Read by bxn_adapter_read (import.h). IO, OUT_OF_MEMORY; what was there before stays until the end. */
bitaxon_status bxn_adapter_write(const bxn_model *model, const bxn_adapter *adapter, const char *path,
                                 bitaxon_error *error);

#endif
