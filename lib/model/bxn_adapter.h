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

/* A ~ U(+-1/sqrt(cols)) by seed, name and place, B = 0, m = row norms of W: it changes nothing yet. */
bitaxon_status bxn_adapter_create(bxn_mem *mem, const bxn_model *model, const bxn_adapter_plan *plan,
                                  bxn_adapter *out, bitaxon_error *error);
/* The same without values: what it will allocate, and the number of values that train. */
uint64_t bxn_adapter_bytes(const bxn_model *model, const bxn_adapter_plan *plan, uint64_t *trainable);
bitaxon_status bxn_adapter_copy(const bxn_adapter *adapter, bxn_mem *mem, bxn_adapter *out, bitaxon_error *error);
void bxn_adapter_free(bxn_adapter *adapter);

/* After values changed: gains (DoRA) and, when `identify`, the id. With `grad` (laid out as values) and DoRA,
 * adds the gradient through the norms to it first (exact DoRA; bxn_dora_gains). */
bitaxon_status bxn_adapter_updated(const bxn_model *model, bxn_adapter *adapter, bool identify, float *grad,
                                   bitaxon_error *error);

/* Each array of values: name as in files ("layer_0.ssm.in_proj.lora_a", ".lora_b", ".m"), floats from
 * `values`, [rows, cols] ld. lora_a is [rank, cols], the transpose of what the file holds. */
typedef bitaxon_status (*bxn_adapter_visitor)(void *user, const char *name, uint32_t weight_id, size_t offset,
                                              uint32_t rows, uint32_t cols, size_t ld);
bitaxon_status bxn_adapter_each(const bxn_model *model, const bxn_adapter *adapter, bxn_adapter_visitor visit,
                                void *user);

/* Files: adapters.safetensors with the keys of the original plus metadata. bundle: one file or a directory with it.
 * scale: given by the caller, 0: by the file, without either 20 and a warning in the log. FORMAT,
 * MISMATCH (of another model: fingerprint in the metadata, or shapes). */
bitaxon_status bxn_adapter_write(const bxn_model *model, const bxn_adapter *adapter, const char *path,
                                 bitaxon_error *error);

#endif
