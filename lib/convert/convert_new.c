/* SPDX-License-Identifier: Apache-2.0 */
/* convert_new.c - a checkpoint of first values, streamed from generator to file. Called by
 * bitaxon_model_new. Float files have the head that the reference stores although it is
 * tied; quantised ones leave a tied head out. */
#include "convert/bxn_convert.h"

#include <math.h>
#include <string.h>

static bitaxon_status choose_config(bxn_conversion *c)
{
    const char *json = c->params->config_json;
    if (json != NULL)
        return bxn_config_parse(&c->mem, json, strlen(json), "config_json", &c->config, c->error);
    return bxn_preset(c->params->input, &c->config, c->error);
}

/* First values have known ranges, so their scales need no look beforehand. */
static void choose_scale_type(bxn_stream *stream)
{
    const bxn_plan_item *item = stream->item;
    if (stream->target.kind == BXN_TARGET_AFFINE)
        stream->target.dtype =
            2 * item->bound / ((1u << stream->target.bits) - 1) >= 0x1p-12 ? BXN_F16 : BXN_F32;
}

static bool stream_of(const bxn_conversion *c, uint32_t index, bxn_stream *stream)
{
    const bxn_plan_item *item = &c->plan.items[index];
    if (item->role == BXN_ROLE_HEAD && c->config.weight_tying && c->format.kind != BXN_TARGET_FLOAT)
        return false;
    *stream =
        (bxn_stream){.item = item,
                     .target = bxn_target_of(item, &c->format, &c->embedding, c->params->flags)};
    choose_scale_type(stream);
    return true;
}

static bitaxon_status write_weights(bxn_conversion *c, bxn_output *out)
{
    bitaxon_status status = BITAXON_OK;
    bxn_stream stream;
    for (uint32_t i = 0; i < c->plan.count && status == BITAXON_OK; i++)
        if (stream_of(c, i, &stream)) {
            c->progress.total += bxn_stream_work(&stream, false);
            status = bxn_stream_declare(c, &stream, out);
        }
    if (status == BITAXON_OK)
        status = bxn_output_begin(out);
    for (uint32_t i = 0; i < c->plan.count && status == BITAXON_OK; i++)
        if (stream_of(c, i, &stream))
            status = bxn_stream_put(c, &stream, out);
    return status;
}

bitaxon_status bxn_convert_new(const bitaxon_convert_params *params, bitaxon_error *error)
{
    bxn_conversion c;
    bxn_bundle *tokenizer = NULL;
    bxn_output *out = NULL;
    bitaxon_status status = bxn_conversion_init(&c, params, BITAXON_STAGE_CONVERT, "f32", error);
    if (status == BITAXON_OK)
        status = choose_config(&c);
    if (status == BITAXON_OK)
        status = bxn_plan_build(&c.mem, &c.config, &c.plan, error);
    if (status == BITAXON_OK && params->tokenizer != NULL) {
        status = bxn_bundle_open(&c.mem, params->tokenizer, NULL, 0,
                                 BXN_BUNDLE_NO_WEIGHTS | BXN_BUNDLE_NO_MMAP, &tokenizer, error);
        if (status == BITAXON_OK && bxn_bundle_find(tokenizer, "tokenizer.json") == NULL)
            status = bxn_fail(error, BITAXON_IO, "%s has no tokenizer.json", tokenizer->where);
    }
    if (status == BITAXON_OK)
        status = bxn_output_open(&c, params->tokenizer, 8, &out);
    if (status == BITAXON_OK)
        status = write_weights(&c, out);
    if (status == BITAXON_OK)
        status = bxn_output_commit(out, tokenizer, &c.format);
    else
        bxn_output_abort(out);
    bxn_bundle_free(tokenizer);
    bxn_conversion_free(&c);
    return status;
}
