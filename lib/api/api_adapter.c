/* SPDX-License-Identifier: Apache-2.0 */
/* api_adapter.c - the exported functions of adapter.h, and adapters on sessions: handles and checks
 * around model/adapter, import/adapter_read and session/adapters. */
#include "api/api.h"

#include <math.h>
#include <string.h>

_Static_assert(BXN_ADAPTERS == BITAXON_ADAPTERS_MAX, "the public bound is the internal one");

void bxn_adapter_ref(bitaxon_adapter *adapter) { atomic_fetch_add(&adapter->refs, 1); }

void bitaxon_adapter_free(bitaxon_adapter *adapter)
{
    if (adapter == NULL || atomic_fetch_sub(&adapter->refs, 1) != 1)
        return;
    bitaxon_model *model = adapter->model;
    bxn_adapter_free(&adapter->core);
    bxn_free(&model->mem, adapter, sizeof *adapter);
    bitaxon_model_free(model);
}

bitaxon_status bxn_adapter_handle(bitaxon_model *model, bitaxon_adapter **out, bitaxon_error *error)
{
    void *memory;
    *out = NULL;
    bitaxon_status status = bxn_calloc(&model->mem, sizeof **out, "adapter", &memory, error);
    if (status != BITAXON_OK)
        return status;
    *out = memory;
    atomic_store(&(*out)->refs, 1);
    (*out)->model = model;
    bxn_model_ref(model);
    return BITAXON_OK;
}

bitaxon_status bitaxon_adapter_open(bitaxon_model *model, const bitaxon_adapter_params *params,
                                    bitaxon_adapter **out, bitaxon_error *error)
{
    if (out == NULL)
        return bxn_null(error, "out");
    *out = NULL;
    if (model == NULL || params == NULL)
        return bxn_null(error, model == NULL ? "model" : "params");
    bitaxon_adapter_params p;
    bitaxon_adapter *adapter = NULL;
    bitaxon_status status = bxn_copy_params(params, &p, sizeof p, 8, "bitaxon_adapter_params", error);
    if (status == BITAXON_OK && (p.path == NULL || p.path[0] == '\0'))
        status = bxn_fail(error, BITAXON_INVALID_ARGUMENT, "bitaxon_adapter_params: path is %s",
                          p.path == NULL ? "NULL" : "empty");
    if (status == BITAXON_OK && !isfinite(p.scale))
        status = bxn_fail(error, BITAXON_INVALID_ARGUMENT, "bitaxon_adapter_params: scale is not finite");
    if (status == BITAXON_OK && !model->has_weights)
        status = bxn_fail(error, BITAXON_BAD_STATE, "the model was opened for its tokenizer only");
    if (status == BITAXON_OK)
        status = bxn_adapter_handle(model, &adapter, error);
    if (status != BITAXON_OK)
        return status;
    status = bxn_adapter_open(&model->mem, &model->core, p.path, p.scale, &adapter->core, error);
    if (status != BITAXON_OK) {
        bitaxon_adapter_free(adapter);
        return status;
    }
    *out = adapter;
    return BITAXON_OK;
}

bitaxon_status bitaxon_adapter_save(const bitaxon_adapter *adapter, const char *path, bitaxon_error *error)
{
    if (adapter == NULL || path == NULL)
        return bxn_null(error, adapter == NULL ? "adapter" : "path");
    size_t length = strlen(path), end = strlen(".safetensors");
    if (length <= end || strcmp(path + length - end, ".safetensors") != 0)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "%s: an adapter's file ends with .safetensors", path);
    return bxn_adapter_write(&adapter->model->core, &adapter->core, path, error);
}

bitaxon_status bitaxon_adapter_get_info(const bitaxon_adapter *adapter, bitaxon_adapter_info *info,
                                        bitaxon_error *error)
{
    if (adapter == NULL || info == NULL)
        return bxn_null(error, adapter == NULL ? "adapter" : "info");
    const bxn_adapter *core = &adapter->core;
    bitaxon_adapter_info r = { .struct_size = sizeof r, .rank = core->rank, .dora = core->dora,
                               .weights = core->adapted, .scale = core->scale };
    r.parameters = bxn_adapter_values(&adapter->model->core, core);
    r.bytes = bxn_alloc_cost(sizeof *adapter) + bxn_alloc_cost(core->weight_count * sizeof *core->loras) +
              bxn_alloc_cost(core->floats * sizeof(float)) +
              (core->gain_floats != 0 ? bxn_alloc_cost(2 * core->gain_floats * sizeof(float)) : 0);
    memcpy(r.id, core->id, sizeof r.id);
    return bxn_copy_result(&r, info, sizeof r, 8, "bitaxon_adapter_info", error);
}

bitaxon_status bitaxon_session_set_adapters(bitaxon_session *session, bitaxon_adapter *const *adapters,
                                            const float *weights, uint32_t count, bitaxon_error *error)
{
    const bxn_adapter *cores[BITAXON_ADAPTERS_MAX] = { NULL };
    float shares[BITAXON_ADAPTERS_MAX] = { 0 };
    if (session == NULL || (adapters == NULL && count != 0))
        return bxn_null(error, session == NULL ? "session" : "adapters");
    if (count > BITAXON_ADAPTERS_MAX)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "%u adapters; a session takes at most %d", count,
                        BITAXON_ADAPTERS_MAX);
    for (uint32_t i = 0; i < count; i++) {
        if (adapters[i] == NULL)
            return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "adapter %u is NULL", i);
        if (adapters[i]->model != session->model)
            return bxn_fail(error, BITAXON_MISMATCH, "adapter %u was opened for another model than the session's", i);
        cores[i] = &adapters[i]->core;
        shares[i] = weights != NULL ? weights[i] : 1;
        if (!isfinite(shares[i]))
            return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "the weight of adapter %u is not finite", i);
    }
    bitaxon_status status = bxn_session_adapt(&session->core, cores, shares, count, error);
    if (status != BITAXON_OK)
        return status;
    bitaxon_adapter *before[BITAXON_ADAPTERS_MAX];
    memcpy(before, session->adapters, sizeof before);
    memset(session->adapters, 0, sizeof session->adapters);
    for (uint32_t i = 0; i < count; i++) {
        bxn_adapter_ref(adapters[i]);
        session->adapters[i] = adapters[i];
    }
    for (uint32_t i = 0; i < BITAXON_ADAPTERS_MAX; i++)
        bitaxon_adapter_free(before[i]);
    return BITAXON_OK;
}
