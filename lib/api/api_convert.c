/* SPDX-License-Identifier: Apache-2.0 */
/* api_convert.c - the public functions of convert.h: argument checks and the copy of the
 * parameters; the work is in lib/convert. */
#include <bitaxon/convert.h>

#include <math.h>

#include "api/api.h"
#include "convert/bxn_convert.h"

/* *out = params in this library's size, fields of later versions refused. */
static bitaxon_status copy_params(const bitaxon_convert_params *params, bitaxon_convert_params *out,
                                  bitaxon_error *error)
{
    if (params == NULL)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "params is NULL");
    bitaxon_status status =
        bxn_copy_params(params, out, sizeof *out, 8, "bitaxon_convert_params", error);
    if (status != BITAXON_OK)
        return status;
    if ((out->flags & ~(uint32_t)BITAXON_CONVERT_ALL_LINEARS) != 0)
        return bxn_fail(error, BITAXON_UNSUPPORTED, "flags 0x%x are not known",
                        (unsigned)out->flags);
    if (out->reserved0 != 0)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "reserved0 is not zero");
    return BITAXON_OK;
}

static bitaxon_status need(const char *path, const char *what, bitaxon_error *error)
{
    if (path != NULL && path[0] != '\0')
        return BITAXON_OK;
    return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "%s is %s", what,
                    path == NULL ? "NULL" : "empty");
}

bitaxon_status bitaxon_model_new(const bitaxon_convert_params *params, bitaxon_error *error)
{
    bitaxon_convert_params own;
    bitaxon_status status = copy_params(params, &own, error);
    if (status == BITAXON_OK && own.config_json == NULL)
        status = need(own.input, "input (the name of a preset)", error);
    if (status == BITAXON_OK)
        status = need(own.output, "output", error);
    return status == BITAXON_OK ? bxn_convert_new(&own, error) : status;
}

bitaxon_status bitaxon_model_quantize(const bitaxon_convert_params *params, bitaxon_error *error)
{
    bitaxon_convert_params own;
    bitaxon_status status = copy_params(params, &own, error);
    if (status == BITAXON_OK)
        status = need(own.input, "input", error);
    if (status == BITAXON_OK)
        status = need(own.output, "output", error);
    return status == BITAXON_OK ? bxn_convert_quantize(&own, error) : status;
}

bitaxon_status bitaxon_model_pack(const bitaxon_convert_params *params, bitaxon_error *error)
{
    bitaxon_convert_params own;
    bitaxon_status status = copy_params(params, &own, error);
    if (status == BITAXON_OK)
        status = need(own.input, "input", error);
    if (status == BITAXON_OK)
        status = need(own.output, "output", error);
    return status == BITAXON_OK ? bxn_convert_pack(&own, error) : status;
}

bitaxon_status bitaxon_model_merge(const bitaxon_convert_params *params, bitaxon_error *error)
{
    bitaxon_convert_params own;
    bitaxon_status status = copy_params(params, &own, error);
    if (status == BITAXON_OK)
        status = need(own.input, "input", error);
    if (status == BITAXON_OK)
        status = need(own.output, "output", error);
    if (status == BITAXON_OK && (own.adapter_count == 0 || own.adapter_count > BITAXON_MERGE_MAX))
        status = bxn_fail(error, BITAXON_INVALID_ARGUMENT, "adapter_count is %u, must be 1 to %d",
                          (unsigned)own.adapter_count, BITAXON_MERGE_MAX);
    if (status == BITAXON_OK && own.adapters == NULL)
        status = bxn_null(error, "adapters");
    if (status == BITAXON_OK && !isfinite(own.adapter_scale))
        status = bxn_fail(error, BITAXON_INVALID_ARGUMENT, "adapter_scale is not finite");
    for (uint32_t i = 0; status == BITAXON_OK && i < own.adapter_count; i++) {
        status = need(own.adapters[i], "the path of an adapter", error);
        if (status == BITAXON_OK && own.adapter_weights != NULL && !isfinite(own.adapter_weights[i]))
            status = bxn_fail(error, BITAXON_INVALID_ARGUMENT, "the weight of adapter %u is not finite", (unsigned)i);
    }
    return status == BITAXON_OK ? bxn_convert_merge(&own, error) : status;
}

bitaxon_status bitaxon_model_verify(const bitaxon_convert_params *params, bitaxon_error *error)
{
    bitaxon_convert_params own;
    bitaxon_status status = copy_params(params, &own, error);
    if (status == BITAXON_OK)
        status = need(own.input, "input", error);
    return status == BITAXON_OK ? bxn_convert_verify(&own, error) : status;
}
