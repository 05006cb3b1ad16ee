/* SPDX-License-Identifier: Apache-2.0 */
/* config.c - ranges, relations and exact parameter counts of a configuration. Every
 * configuration passes bxn_config_check before anything is sized by it. */
#include "model/bxn_model.h"

#include <math.h>

void bxn_config_default(bxn_config *config)
{
    *config = (bxn_config){
        .vocab_size = 32000,
        .hidden_dim = 2560,
        .num_layers = 24,
        .num_heads = 32,
        .d_source_model = 2048,
        .ssm_d_state = 16,
        .ssm_d_conv = 4,
        .ssm_expand = 3,
        .ssm_scan_step = 64,
        .swa_window_size = 4096,
        .moe_num_experts = 8,
        .moe_top_k = 2,
        .moe_intermediate_dim = 4096,
        .max_seq_len = 65536,
        .moe_shared_expert = true,
        .weight_tying = true,
        .rms_norm_eps = 1e-6,
    };
}

bitaxon_status bxn_config_check(const bxn_config *config, const char *what, bitaxon_error *error)
{
    const struct {
        const char *key;
        uint32_t value, most;
    } range[] = {
        { "vocab_size", config->vocab_size, 1u << 24 },
        { "hidden_dim", config->hidden_dim, 1u << 20 },
        { "num_layers", config->num_layers, 4096 },
        { "num_heads", config->num_heads, 1u << 16 },
        { "d_source_model", config->d_source_model, 1u << 20 },
        { "ssm_d_state", config->ssm_d_state, 1024 },
        { "ssm_d_conv", config->ssm_d_conv, 1024 },
        { "ssm_expand", config->ssm_expand, 64 },
        { "ssm_scan_step", config->ssm_scan_step, 1u << 20 },
        { "swa_window_size", config->swa_window_size, 1u << 24 },
        { "moe_num_experts", config->moe_num_experts, 4096 },
        { "moe_top_k", config->moe_top_k, 4096 },
        { "moe_intermediate_dim", config->moe_intermediate_dim, 1u << 22 },
        { "max_seq_len", config->max_seq_len, 1u << 30 },
    };
    for (size_t i = 0; i < sizeof range / sizeof range[0]; i++)
        if (range[i].value < 1 || range[i].value > range[i].most)
            return bxn_fail(error, BITAXON_FORMAT, "%s: %s is %u, must be 1 to %u", what, range[i].key,
                            range[i].value, range[i].most);
    if (config->hidden_dim % config->num_heads != 0)
        return bxn_fail(error, BITAXON_FORMAT, "%s: hidden_dim %u is not divisible by num_heads %u", what,
                        config->hidden_dim, config->num_heads);
    if (config->moe_top_k > config->moe_num_experts)
        return bxn_fail(error, BITAXON_FORMAT, "%s: moe_top_k %u exceeds moe_num_experts %u", what,
                        config->moe_top_k, config->moe_num_experts);
    if (!(config->rms_norm_eps > 0 && config->rms_norm_eps < 1))
        return bxn_fail(error, BITAXON_FORMAT, "%s: rms_norm_eps is %g, must be above 0 and below 1", what,
                        config->rms_norm_eps);
    if (config->rope_theta != 0 && !(config->rope_theta >= 1 && config->rope_theta <= 1e12))
        return bxn_fail(error, BITAXON_FORMAT, "%s: rope_theta is %g, must be 0 (off) or 1 to 1e12", what,
                        config->rope_theta);
    if (config->rope_theta != 0 && config->hidden_dim / config->num_heads % 2 != 0)
        return bxn_fail(error, BITAXON_FORMAT, "%s: rope_theta needs an even head size, hidden_dim / num_heads is %u",
                        what, config->hidden_dim / config->num_heads);
    return BITAXON_OK;
}

bxn_layer_kind bxn_config_layer(const bxn_config *config, uint32_t layer)
{
    uint32_t third = config->num_layers / 3;
    return layer < third ? BXN_LAYER_SSM : layer < 2 * third ? BXN_LAYER_SWA_MOE : BXN_LAYER_SSM_MOE;
}

size_t bxn_config_state_floats(const bxn_config *config)
{
    size_t channels = bxn_round_up((size_t)config->hidden_dim * config->ssm_expand, 16);
    uint32_t layers = config->num_layers - bxn_config_attention_layers(config);
    return layers * channels * (config->ssm_d_state + config->ssm_d_conv - 1);
}

uint32_t bxn_config_attention_layers(const bxn_config *config) { return config->num_layers / 3; }

void bxn_config_parameters(const bxn_config *config, bool untied, uint64_t *total, uint64_t *active)
{
    uint64_t V = config->vocab_size, S = config->d_source_model, D = config->hidden_dim;
    uint64_t E = D * config->ssm_expand, N = config->ssm_d_state, K = config->ssm_d_conv;
    uint64_t X = config->moe_num_experts, k = config->moe_top_k, I = config->moe_intermediate_dim;
    uint64_t ssm = 2 * E * D + E * K + E + (2 * N + 1) * E + 2 * E + E * N + E + D * E;
    uint64_t attention = 4 * D * D, expert = 3 * I * D;
    uint64_t always = X * D + (config->moe_shared_expert ? D + expert : 0);
    uint64_t all = V * S + 2 * S * D + (untied ? V * S : 0) + (config->final_norm ? D : 0), used = all;
    for (uint32_t i = 0; i < config->num_layers; i++) {
        bxn_layer_kind kind = bxn_config_layer(config, i);
        uint64_t mixer = D + (kind == BXN_LAYER_SWA_MOE ? attention : ssm);
        all += mixer;
        used += mixer;
        if (kind != BXN_LAYER_SSM) {
            all += D + always + X * expert;
            used += D + always + k * expert;
        }
    }
    *total = all;
    *active = used;
}
