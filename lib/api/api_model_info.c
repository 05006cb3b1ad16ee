/* SPDX-License-Identifier: Apache-2.0 */
/* api_model_info.c - facts of an opened model by key, and its table of tensors. */
#include "api/api.h"

#include <stdio.h>
#include <string.h>

bitaxon_status bitaxon_model_info_int(const bitaxon_model *model, const char *key, int64_t *out,
                                      bitaxon_error *error)
{
    if (model == NULL || key == NULL || out == NULL)
        return bxn_null(error, model == NULL ? "model" : key == NULL ? "key" : "out");
    const bxn_config *c = &model->core.config;
    const bxn_mem *mem = &model->mem;
    size_t eos = 0;
    if (model->tokenizer != NULL)
        (void)bxn_tokenizer_eos(model->tokenizer, &eos);
    const struct {
        const char *key;
        uint64_t value;
    } facts[] = {
        { "vocab_size", c->vocab_size },
        { "hidden_dim", c->hidden_dim },
        { "num_layers", c->num_layers },
        { "num_heads", c->num_heads },
        { "d_source_model", c->d_source_model },
        { "ssm_d_state", c->ssm_d_state },
        { "ssm_d_conv", c->ssm_d_conv },
        { "ssm_expand", c->ssm_expand },
        { "ssm_scan_step", c->ssm_scan_step },
        { "swa_window_size", c->swa_window_size },
        { "moe_num_experts", c->moe_num_experts },
        { "moe_top_k", c->moe_top_k },
        { "moe_intermediate_dim", c->moe_intermediate_dim },
        { "moe_shared_expert", c->moe_shared_expert },
        { "weight_tying", c->weight_tying },
        { "max_seq_len", c->max_seq_len },
        { "final_norm", c->final_norm },
        { "parameters", model->parameters },
        { "active_parameters", model->active_parameters },
        { "tensors", model->loaded.stored_count },
        { "sublayers", model->core.sublayer_count },
        { "threads", model->core.pool != NULL ? bxn_pool_threads(model->core.pool) : 0 },
        { "cpu_features", model->core.kernels.features },
        { "eos_token_count", eos },
        { "tokenizer_vocab_size", model->tokenizer != NULL ? bxn_tokenizer_size(model->tokenizer) : 0 },
        { "packed", model->packed },
        { "bytes_used", atomic_load(&mem->used) },
        { "bytes_peak", atomic_load(&mem->peak) },
        { "mapped_bytes", model->mapped_bytes },
        { "max_bytes", mem->limit },
    };
    for (size_t i = 0; i < sizeof facts / sizeof facts[0]; i++)
        if (strcmp(key, facts[i].key) == 0) {
            *out = (int64_t)facts[i].value;
            return BITAXON_OK;
        }
    return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "unknown integer key '%s'", key);
}

static void put_hex(const uint8_t id[16], char hex[33])
{
    for (int i = 0; i < 16; i++)
        snprintf(hex + 2 * i, 3, "%02x", id[i]);
}

bitaxon_status bitaxon_model_info_text(const bitaxon_model *model, const char *key, char *buffer,
                                       size_t capacity, size_t *need, bitaxon_error *error)
{
    if (model == NULL || key == NULL || (buffer == NULL && capacity != 0))
        return bxn_null(error, model == NULL ? "model" : key == NULL ? "key" : "buffer");
    char number[40], hex[33];
    const char *text = NULL;
    if (strcmp(key, "rms_norm_eps") == 0) {
        snprintf(number, sizeof number, "%.9g", model->core.config.rms_norm_eps);
        text = number;
    } else if (strcmp(key, "rope_theta") == 0) {
        snprintf(number, sizeof number, "%.9g", model->core.config.rope_theta);
        text = number;
    } else if (strcmp(key, "architecture") == 0) {
        text = "bit-axon";
    } else if (strcmp(key, "path") == 0) {
        text = model->where;
    } else if (strcmp(key, "fingerprint") == 0) {
        put_hex(model->core.fingerprint, hex);
        text = hex;
    } else if (strcmp(key, "tokenizer_fingerprint") == 0) {
        uint8_t id[16];
        text = "none";
        if (model->tokenizer != NULL) {
            bxn_tokenizer_identity(model->tokenizer, id);
            put_hex(id, hex);
            text = hex;
        }
    } else if (strcmp(key, "tied") == 0) {
        text = model->core.tied ? "tied" : "untied";
    } else if (strcmp(key, "kernels") == 0) {
        text = bxn_kernels_name(model->core.kernels.features);
    } else if (strcmp(key, "accuracy") == 0) {
        static const char *const names[] = { "none", "exact", "near", "fast" };
        text = names[model->core.accuracy];
    }
    if (text == NULL)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "unknown text key '%s'", key);
    size_t bytes = strlen(text) + 1;
    if (need != NULL)
        *need = bytes;
    if (bytes > capacity)
        return bxn_fail(error, BITAXON_LIMIT, "%s needs %zu bytes, the buffer has %zu", key, bytes, capacity);
    memcpy(buffer, text, bytes);
    return BITAXON_OK;
}

bitaxon_status bitaxon_model_tensor_info(const bitaxon_model *model, uint64_t index,
                                         bitaxon_tensor_info *out, bitaxon_error *error)
{
    if (model == NULL || out == NULL)
        return bxn_null(error, model == NULL ? "model" : "out");
    if (index >= model->loaded.stored_count)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "tensor %llu: the model has %llu", (unsigned long long)index,
                        (unsigned long long)model->loaded.stored_count);
    const bxn_stored *stored = &model->loaded.stored[index];
    bitaxon_tensor_info info = {
        .struct_size = sizeof info,
        .rank = stored->rank,
        .name = stored->name,
        .dtype = stored->dtype,
        .format = stored->format,
        .bytes = stored->bytes,
        .mapped = stored->mapped,
    };
    memcpy(info.shape, stored->shape, sizeof info.shape);
    return bxn_copy_result(&info, out, sizeof info, 8, "bitaxon_tensor_info", error);
}
