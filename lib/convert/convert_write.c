/* SPDX-License-Identifier: Apache-2.0 */
/* convert_write.c - a float checkpoint of values that are in no file: a model that was trained. Called by
 * api. The tensors are those of the configuration, in the plan's order, the head too although it may be
 * tied, as the original stores it; keys of config.json that are not ours, metadata of the weights and the
 * tokenizer come from the model that training began with. */
#include "convert/bxn_convert.h"

#include <math.h>
#include <string.h>

#define PIECE ((size_t)1 << 16) /* values */

static bitaxon_status put_tensor(bxn_conversion *c, const bxn_plan_item *item, const bxn_tensor_values *values,
                                 float *piece, bxn_output *out)
{
    bitaxon_status status = BITAXON_OK;
    for (uint64_t at = 0; at < item->elements && status == BITAXON_OK;) {
        size_t n = item->elements - at < PIECE ? (size_t)(item->elements - at) : PIECE;
        status = values->read(values->user, item->name, at, n, piece, c->error);
        for (size_t i = 0; i < n && status == BITAXON_OK; i++)
            if (!isfinite(piece[i]))
                status = bxn_fail(c->error, BITAXON_FORMAT, "tensor %s: value %llu is not finite", item->name,
                                  (unsigned long long)(at + i));
        if (status == BITAXON_OK)
            status = bxn_output_put(out, piece, n * sizeof *piece);
        if (status == BITAXON_OK)
            status = bxn_conversion_step(c, n * sizeof *piece, item->name);
        at += n;
    }
    return status;
}

static bitaxon_status put_all(bxn_conversion *c, const bxn_tensor_values *values, bxn_output *out)
{
    void *piece = NULL;
    bitaxon_status status = BITAXON_OK;
    for (uint32_t i = 0; i < c->plan.count && status == BITAXON_OK; i++) {
        const bxn_plan_item *item = &c->plan.items[i];
        c->progress.total += item->elements * sizeof(float);
        status = bxn_st_declare(bxn_output_writer(out), item->name, BXN_F32, item->rank, item->shape, c->error);
    }
    if (status == BITAXON_OK)
        status = bxn_output_begin(out);
    if (status == BITAXON_OK)
        status = bxn_alloc(&c->mem, PIECE * sizeof(float), "values", &piece, c->error);
    for (uint32_t i = 0; i < c->plan.count && status == BITAXON_OK; i++)
        status = put_tensor(c, &c->plan.items[i], values, piece, out);
    bxn_free(&c->mem, piece, PIECE * sizeof(float));
    return status;
}

bitaxon_status bxn_convert_write(const bitaxon_convert_params *params, const bxn_config *config, bxn_bundle *source,
                                 bxn_bundle *tokenizer, const bxn_tensor_values *values, bitaxon_error *error)
{
    bxn_conversion c;
    bxn_output *out = NULL;
    memset(&c, 0, sizeof c);
    c.params = params;
    c.error = error;
    c.config = *config;
    c.format = (bxn_target){ BXN_TARGET_FLOAT, BXN_F32, 0, 0 };
    c.progress = (bxn_progress){ params->progress, params->user, BITAXON_STAGE_CONVERT, 0, 0 };
    bitaxon_status status = bxn_mem_init(&c.mem, params->host, 0, error);
    if (status == BITAXON_OK)
        status = bxn_plan_build(&c.mem, config, &c.plan, error);
    if (status == BITAXON_OK && source != NULL) {
        c.bundle = source;
        status = bxn_tensors_open(source, &c.tensors, error);
    }
    if (status == BITAXON_OK)
        status = bxn_output_open(&c, source != NULL ? source->where : NULL, 8, &out);
    if (status == BITAXON_OK)
        status = put_all(&c, values, out);
    if (status == BITAXON_OK)
        status = bxn_output_commit(out, tokenizer != NULL ? tokenizer : source, &c.format);
    else
        bxn_output_abort(out);
    c.bundle = NULL; /* the caller's */
    bxn_conversion_free(&c);
    return status;
}
