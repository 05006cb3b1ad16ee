/* SPDX-License-Identifier: Apache-2.0 */
/* bxn_model.h - a model in memory: its configuration, a flat list of sublayers, and the
 * pass through them. It knows no file; import fills it. */
#ifndef BXN_MODEL_H
#define BXN_MODEL_H

#include "ops/ops.h"

/* config.json of Bit-Axon, validated (spec 1.1). Integers are in the ranges that
 * bxn_config_check states, so that products of any three fit in 64 bits. */
typedef struct bxn_config {
    uint32_t vocab_size;           /* V */
    uint32_t hidden_dim;           /* D */
    uint32_t num_layers;
    uint32_t num_heads;            /* H, divides D */
    uint32_t d_source_model;       /* S */
    uint32_t ssm_d_state;          /* N */
    uint32_t ssm_d_conv;           /* K */
    uint32_t ssm_expand;           /* E / D */
    uint32_t ssm_scan_step;
    uint32_t swa_window_size;      /* W */
    uint32_t moe_num_experts;      /* X */
    uint32_t moe_top_k;            /* k <= X */
    uint32_t moe_intermediate_dim; /* I */
    uint32_t max_seq_len;
    bool moe_shared_expert;
    bool weight_tying;
    bool final_norm; /* extension: RMSNorm before output_proj, tensor final_norm.weight */
    double rms_norm_eps;
    double rope_theta; /* extension: 0 off */
} bxn_config;

typedef enum bxn_layer_kind { BXN_LAYER_SSM, BXN_LAYER_SWA_MOE, BXN_LAYER_SSM_MOE } bxn_layer_kind;

/* The values of spec 1.1, column `default`. */
void bxn_config_default(bxn_config *config);
/* Ranges and relations; FORMAT naming the key and both values. `what` names the source. */
bitaxon_status bxn_config_check(const bxn_config *config, const char *what, bitaxon_error *error);
/* Thirds: floor(n / 3) SSM, as many SWA + MoE, the rest SSM + MoE. */
bxn_layer_kind bxn_config_layer(const bxn_config *config, uint32_t layer);
/* What a model of this configuration will have (as bxn_model_number counts it). */
size_t bxn_config_state_floats(const bxn_config *config);
uint32_t bxn_config_attention_layers(const bxn_config *config);
/* Exact numbers of parameters; a tied head counts once, `untied` adds it. */
void bxn_config_parameters(const bxn_config *config, bool untied, uint64_t *total, uint64_t *active);

typedef enum bxn_op { BXN_OP_SSM = 1, BXN_OP_ATTENTION, BXN_OP_MOE } bxn_op;

/* x += op(rmsnorm(x, norm)) */
typedef struct bxn_sublayer {
    bxn_op op;
    uint32_t layer; /* for messages */
    const float *norm; /* [D] */
    union {
        bxn_ssm ssm;
        bxn_attention attention;
        bxn_moe moe;
    } u;
} bxn_sublayer;

typedef struct bxn_model {
    bxn_config config;
    bxn_weight embed;       /* [V, S] */
    bxn_weight input_proj;  /* [D, S] */
    bxn_weight output_proj; /* [S, D] */
    bxn_weight head;        /* [V, S]; the embedding again when tied */
    bool tied;
    const float *final_norm; /* [D] or NULL */
    bxn_sublayer *sublayers;
    uint32_t sublayer_count;
    uint32_t ssm_count, attention_count;
    uint32_t weight_count;  /* ids are 1 .. weight_count */
    size_t state_floats;    /* scan states and tails of all SSM sublayers */
    uint8_t fingerprint[16];
    const void *map;    /* span of the weights used in place (of the file that has the first of them) */
    uint64_t map_bytes;
    bxn_kernels kernels;
    bxn_pool *pool;
    int32_t accuracy; /* BITAXON_ACCURACY_*, the one in use; 0 without weights */
} bxn_model;

/* Fill state_offset of every SSM sublayer, kv_index, counts, state_floats and the ids of weights. */
void bxn_model_number(bxn_model *model);

void bxn_model_number_weights(bxn_model *model); /* its part of it for weights */

/* All weights in the order of their ids, with the names of files: "embed_tokens", "input_proj",
 * "layer_0.ssm.in_proj", ..., "lm_head" (left out when tied). Of the experts of a stack, `expert` is the
 * index and the name that of the stack ("layer_3.moe.switch_mlp.gate_proj"); else it is -1. The weight may be
 * changed by who made the model. A visitor that does not return OK ends the walk. */
#define BXN_WEIGHT_NAME 64
typedef bitaxon_status (*bxn_weight_visitor)(void *user, bxn_weight *weight, const char *name, int32_t expert);
bitaxon_status bxn_model_weights(const bxn_model *model, bxn_weight_visitor visit, void *user);

/* The same for the vectors: norms, and the convolution, dt, A and D of state spaces, in the layout
 * of the kernels. */
typedef enum bxn_vector_kind {
    BXN_VECTOR_PLAIN = 0, /* [count], padded with zeros to `floats` */
    BXN_VECTOR_CONV,      /* [K, E16], in files [E, K, 1] */
    BXN_VECTOR_A          /* [E16/16][N][16] of -exp(A_log) * log2(e), in files A_log [E, N] */
} bxn_vector_kind;
typedef struct bxn_vector {
    bxn_vector_kind kind;
    const float **values;
    uint32_t count, inner; /* PLAIN: count, 1; CONV: E, K; A: E, N */
    size_t floats;         /* with padding */
    const bxn_sublayer *sublayer; /* NULL: final_norm */
} bxn_vector;
typedef bitaxon_status (*bxn_vector_visitor)(void *user, const bxn_vector *vector, const char *name);
bitaxon_status bxn_model_vectors(const bxn_model *model, bxn_vector_visitor visit, void *user);

/* A model without weights: configuration, sublayers, shapes, ids. Its memory is one block. */
bitaxon_status bxn_model_outline(bxn_mem *mem, const bxn_config *config, bxn_model *out, bitaxon_error *error);
void bxn_model_outline_free(bxn_mem *mem, bxn_model *outline);

/* Whether adapters may have a part for the weight of this name (spec 9.6): projections of mixers, shared
 * experts and the two bridges; never routed experts, routers, gates, x_proj, embedding or head. */
bool bxn_weight_adaptable(const char *name);

/* Many tokens come to use all weights, those of rare experts last of all. Brings in so many more bytes of the
 * mapping, from *populated on, so that what the process holds is settled early, whatever follows. */
void bxn_model_populate(const bxn_model *model, uint64_t bytes, uint64_t *populated);

/* From now on products with quantised weights take integer activations (`fast`: of 8 bits, else of
 * 16). Routers and shared gates stay exact. Before any pass. */
void bxn_model_integers(bxn_model *model, bool fast);

/* Whether prefill takes bf16 tiles (bxn_tiled) with any weight that may. */
bool bxn_model_tiles(const bxn_model *model);

/* Accounted bytes of a workspace for sequences of at most max_tokens, with room for tiles or without and for
 * adapters in force whose ranks add up to `rank`; then make and free it. */
uint64_t bxn_workspace_cost(const bxn_config *config, uint64_t max_tokens, bool tiles, uint32_t rank);
bitaxon_status bxn_workspace_create(bxn_mem *mem, const bxn_config *config, uint64_t max_tokens,
                                    bool tiles, uint32_t rank, bxn_workspace *out, bitaxon_error *error);
/* Room for adapters of `rank` together, between passes: one block that nothing is written to, whatever its size.
 * OUT_OF_MEMORY, LIMIT: it has the room that it had. */
bitaxon_status bxn_workspace_adapt(bxn_mem *mem, uint32_t rank, bxn_workspace *ws, bitaxon_error *error);
void bxn_workspace_free(bxn_mem *mem, bxn_workspace *ws);

/* One pass: `tokens` [count], count <= exec->ws->tokens, made up of segments in order, each tokens of one
 * sequence. Of each, reads the scan state state_in and the pages up to its position, writes
 * state_out (disjoint) and the pages from its position on; nothing that a later call at
 * that position reads is lost, so that a failed or cancelled pass changes nothing. What a
 * sequence gets does not depend on the others. At the end exec->ws->s [count, S] holds
 * the rows that bxn_head takes. */
bitaxon_status bxn_forward(const bxn_model *model, const bxn_exec *exec, const int32_t *tokens,
                           uint32_t count, const bxn_segment *segments, uint32_t segment_count);

/* Logits [count, V] (rows ldy apart) of rows first ... of the last pass, in its phase: the logits
 * after a token belong to the token, so that going back to it and reading it again gives them again. */
bitaxon_status bxn_head(const bxn_model *model, const bxn_exec *exec, uint32_t first,
                        uint32_t count, float *logits, size_t ldy);

#endif
