/* SPDX-License-Identifier: Apache-2.0 */
/* config_json.c - config.json of Bit-Axon to bxn_config (spec 1). */
#include "import/import.h"

#include <math.h>
#include <string.h>

static bitaxon_status read_int(json_t *root, const char *key, const char *what, uint32_t *value,
                               bitaxon_error *error)
{
    json_t *item = json_object_get(root, key);
    if (item == NULL)
        return BITAXON_OK;
    if (!json_is_integer(item))
        return bxn_fail(error, BITAXON_FORMAT, "%s: %s must be an integer", what, key);
    json_int_t n = json_integer_value(item);
    if (n < 1 || n > UINT32_MAX)
        return bxn_fail(error, BITAXON_FORMAT, "%s: %s is %lld, must be at least 1 and fit in 32 bits", what,
                        key, (long long)n);
    *value = (uint32_t)n;
    return BITAXON_OK;
}

static bitaxon_status read_bool(json_t *root, const char *key, const char *what, bool *value,
                                bitaxon_error *error)
{
    json_t *item = json_object_get(root, key);
    if (item == NULL)
        return BITAXON_OK;
    if (!json_is_boolean(item))
        return bxn_fail(error, BITAXON_FORMAT, "%s: %s must be true or false", what, key);
    *value = json_is_true(item);
    return BITAXON_OK;
}

static bitaxon_status read_real(json_t *root, const char *key, const char *what, double *value,
                                bitaxon_error *error)
{
    json_t *item = json_object_get(root, key);
    if (item == NULL || (json_is_null(item) && strcmp(key, "rope_theta") == 0))
        return BITAXON_OK;
    if (!json_is_number(item))
        return bxn_fail(error, BITAXON_FORMAT, "%s: %s must be a number", what, key);
    *value = json_number_value(item);
    if (!isfinite(*value))
        return bxn_fail(error, BITAXON_FORMAT, "%s: %s is not finite", what, key);
    return BITAXON_OK;
}

bitaxon_status bxn_config_parse(bxn_mem *mem, const char *json, size_t bytes, const char *what,
                                bxn_config *out, bitaxon_error *error)
{
    bxn_config config;
    bxn_config_default(&config);
    const struct {
        const char *key;
        uint32_t *value;
    } integers[] = {
        { "vocab_size", &config.vocab_size },
        { "hidden_dim", &config.hidden_dim },
        { "num_layers", &config.num_layers },
        { "num_heads", &config.num_heads },
        { "d_source_model", &config.d_source_model },
        { "ssm_d_state", &config.ssm_d_state },
        { "ssm_d_conv", &config.ssm_d_conv },
        { "ssm_expand", &config.ssm_expand },
        { "ssm_scan_step", &config.ssm_scan_step },
        { "swa_window_size", &config.swa_window_size },
        { "moe_num_experts", &config.moe_num_experts },
        { "moe_top_k", &config.moe_top_k },
        { "moe_intermediate_dim", &config.moe_intermediate_dim },
        { "max_seq_len", &config.max_seq_len },
    };
    static const char *const others[] = { "moe_shared_expert", "weight_tying", "final_norm", "rms_norm_eps",
                                          "rope_theta", "quantization" };
    bxn_json document = { 0 };
    bitaxon_status status = bxn_json_parse(mem, json, bytes, what, &document, error);
    if (status != BITAXON_OK)
        return status;
    if (!json_is_object(document.root))
        status = bxn_fail(error, BITAXON_FORMAT, "%s: not a JSON object", what);
    for (size_t i = 0; i < sizeof integers / sizeof integers[0] && status == BITAXON_OK; i++)
        status = read_int(document.root, integers[i].key, what, integers[i].value, error);
    if (status == BITAXON_OK)
        status = read_bool(document.root, "moe_shared_expert", what, &config.moe_shared_expert, error);
    if (status == BITAXON_OK)
        status = read_bool(document.root, "weight_tying", what, &config.weight_tying, error);
    if (status == BITAXON_OK)
        status = read_bool(document.root, "final_norm", what, &config.final_norm, error);
    if (status == BITAXON_OK)
        status = read_real(document.root, "rms_norm_eps", what, &config.rms_norm_eps, error);
    if (status == BITAXON_OK)
        status = read_real(document.root, "rope_theta", what, &config.rope_theta, error);
    if (status == BITAXON_OK)
        status = bxn_config_check(&config, what, error);
    if (status == BITAXON_OK) {
        const char *key;
        json_t *value;
        json_object_foreach(document.root, key, value) {
            bool known = false;
            for (size_t i = 0; i < sizeof integers / sizeof integers[0]; i++)
                known |= strcmp(key, integers[i].key) == 0;
            for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
                known |= strcmp(key, others[i]) == 0;
            if (!known)
                bxn_log(mem, BITAXON_LOG_DEBUG, "%s: unknown key %s is ignored", what, key);
        }
        *out = config;
    }
    bxn_json_free(&document);
    return status;
}
