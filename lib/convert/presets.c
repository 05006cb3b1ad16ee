/* SPDX-License-Identifier: Apache-2.0 */
/* presets.c - configurations by name. `default`, `small` and `medium` have the published
 * keys; `bitaxon-3b` is the default narrowed to what its name says; `mini` is what fits 6 MB
 * with its tokenizer (docs/quantization.md has the sum). Called by `new`. */
#include "convert/bxn_convert.h"

#include <string.h>

bitaxon_status bxn_preset(const char *name, bxn_config *out, bitaxon_error *error)
{
    bxn_config config;
    bxn_config_default(&config);
    if (strcmp(name, "small") == 0) {
        config.vocab_size = 1024;
        config.hidden_dim = 256;
        config.num_layers = 4;
        config.num_heads = 4;
        config.d_source_model = 128;
        config.ssm_d_state = 4;
        config.ssm_d_conv = 2;
        config.ssm_expand = 2;
        config.swa_window_size = 64;
        config.moe_num_experts = 4;
        config.moe_intermediate_dim = 512;
    } else if (strcmp(name, "medium") == 0) {
        config.hidden_dim = 2048;
        config.num_layers = 12;
        config.num_heads = 16;
        config.d_source_model = 1536;
        config.ssm_d_state = 12;
        config.moe_num_experts = 6;
        config.moe_intermediate_dim = 3072;
    } else if (strcmp(name, "bitaxon-3b") == 0) {
        config.ssm_expand = 2;
        config.moe_intermediate_dim = 2048;
    } else if (strcmp(name, "mini") == 0) {
        config.vocab_size = 4096;
        config.hidden_dim = 256;
        config.num_layers = 9;
        config.num_heads = 4;
        config.d_source_model = 192;
        config.ssm_d_state = 8;
        config.ssm_expand = 2;
        config.swa_window_size = 512;
        config.moe_num_experts = 4;
        config.moe_intermediate_dim = 192;
        config.max_seq_len = 8192;
    } else if (strcmp(name, "default") != 0) {
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT,
                        "no preset '%.64s': small, medium, default, bitaxon-3b, mini", name);
    }
    *out = config;
    return BITAXON_OK;
}
