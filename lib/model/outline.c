/* SPDX-License-Identifier: Apache-2.0 */
/* outline.c - the weights of a configuration with their names, shapes and ids but without data: for
 * whoever must know what a model will have before, or instead of, loading it (merging of adapters). */
#include "model/bxn_model.h"

#include <string.h>

static bxn_weight sized(uint32_t rows, uint32_t cols) { return (bxn_weight){ .rows = rows, .cols = cols }; }

static void outline_ssm(const bxn_config *config, bxn_ssm *ssm)
{
    uint32_t D = config->hidden_dim, E = D * config->ssm_expand, N = config->ssm_d_state;
    *ssm = (bxn_ssm){ .channels = E,
                      .channels16 = (uint32_t)bxn_round_up(E, 16),
                      .states = N,
                      .taps = config->ssm_d_conv,
                      .in_proj = sized(2 * E, D),
                      .x_proj = sized(2 * N + 1, E),
                      .out_proj = sized(D, E) };
}

static void outline_attention(const bxn_config *config, bxn_attention *attention)
{
    uint32_t D = config->hidden_dim;
    *attention = (bxn_attention){ .heads = config->num_heads, .head_dim = D / config->num_heads,
                                  .window = config->swa_window_size, .rope_theta = (float)config->rope_theta,
                                  .q_proj = sized(D, D), .k_proj = sized(D, D), .v_proj = sized(D, D),
                                  .o_proj = sized(D, D) };
}

/* experts: room for 3 X weights. */
static void outline_moe(const bxn_config *config, bxn_moe *moe, bxn_weight *experts)
{
    uint32_t D = config->hidden_dim, I = config->moe_intermediate_dim, X = config->moe_num_experts;
    for (uint32_t e = 0; e < X; e++) {
        experts[e] = experts[X + e] = sized(I, D);
        experts[2 * X + e] = sized(D, I);
    }
    *moe = (bxn_moe){ .experts = X, .top_k = config->moe_top_k, .inner = I, .router = sized(X, D), .gate = experts,
                      .up = experts + X, .down = experts + 2 * X, .shared = config->moe_shared_expert,
                      .shared_gate = sized(1, D), .shared_gate_proj = sized(I, D), .shared_up_proj = sized(I, D),
                      .shared_down_proj = sized(D, I) };
}

/* One block: sublayers, then the experts of all of them. */
static size_t outline_bytes(const bxn_config *config)
{
    return 2 * (size_t)config->num_layers * sizeof(bxn_sublayer) +
           3 * (size_t)config->num_layers * config->moe_num_experts * sizeof(bxn_weight);
}

bitaxon_status bxn_model_outline(bxn_mem *mem, const bxn_config *config, bxn_model *out, bitaxon_error *error)
{
    void *memory;
    memset(out, 0, sizeof *out);
    bitaxon_status status = bxn_calloc(mem, outline_bytes(config), "outline of a model", &memory, error);
    if (status != BITAXON_OK)
        return status;
    out->config = *config;
    out->tied = config->weight_tying;
    out->sublayers = memory;
    bxn_weight *experts = (bxn_weight *)(void *)(out->sublayers + 2 * (size_t)config->num_layers);
    uint32_t V = config->vocab_size, S = config->d_source_model, D = config->hidden_dim;
    out->embed = out->head = sized(V, S);
    out->input_proj = sized(D, S);
    out->output_proj = sized(S, D);
    for (uint32_t i = 0; i < config->num_layers; i++) {
        bxn_layer_kind kind = bxn_config_layer(config, i);
        bxn_sublayer *sub = &out->sublayers[out->sublayer_count++];
        sub->layer = i;
        if (kind == BXN_LAYER_SWA_MOE) {
            sub->op = BXN_OP_ATTENTION;
            outline_attention(config, &sub->u.attention);
        } else {
            sub->op = BXN_OP_SSM;
            outline_ssm(config, &sub->u.ssm);
        }
        if (kind == BXN_LAYER_SSM)
            continue;
        sub = &out->sublayers[out->sublayer_count++];
        sub->layer = i;
        sub->op = BXN_OP_MOE;
        outline_moe(config, &sub->u.moe, experts + 3 * (size_t)i * config->moe_num_experts);
    }
    bxn_model_number(out);
    return BITAXON_OK;
}

void bxn_model_outline_free(bxn_mem *mem, bxn_model *outline)
{
    bxn_free(mem, outline->sublayers, outline_bytes(&outline->config));
    memset(outline, 0, sizeof *outline);
}
