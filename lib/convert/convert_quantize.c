/* SPDX-License-Identifier: Apache-2.0 */
/* convert_quantize.c - a float checkpoint to a quantised one (or another float type). Called
 * by bitaxon_model_quantize. Affine tensors are looked through first, because their scales'
 * type stands in the header that comes before them. */
#include "convert/bxn_convert.h"

#include <string.h>

static bool is_float(const bxn_tensor *tensor)
{
    return tensor->dtype == BXN_F32 || tensor->dtype == BXN_F16 || tensor->dtype == BXN_BF16;
}

static bitaxon_status refuse_quantised(bxn_conversion *c)
{
    for (uint64_t i = 0; i < c->tensors->count; i++)
        if (!is_float(&c->tensors->items[i]))
            return bxn_fail(c->error, BITAXON_UNSUPPORTED,
                            "%s is quantised already: tensor %s is %s", c->bundle->where,
                            c->tensors->items[i].name, bxn_dtype_name(c->tensors->items[i].dtype));
    return BITAXON_OK;
}

/* What each tensor of the plan becomes; *count of them. */
static bitaxon_status plan_streams(bxn_conversion *c, bxn_stream *streams, uint32_t *count)
{
    bool tied = false;
    bitaxon_status status = bxn_conversion_tied(c, &tied);
    *count = 0;
    for (uint32_t i = 0; i < c->plan.count && status == BITAXON_OK; i++) {
        const bxn_plan_item *item = &c->plan.items[i];
        const bxn_tensor *source = bxn_tensors_find(c->tensors, item->name);
        if (item->role == BXN_ROLE_HEAD && tied)
            continue;
        if (source == NULL)
            return bxn_fail(c->error, BITAXON_FORMAT, "%s: tensor %s is missing", c->bundle->where,
                            item->name);
        bxn_stream *stream = &streams[(*count)++];
        *stream = (bxn_stream){
            .item = item,
            .source = source,
            .target = bxn_target_of(item, &c->format, &c->embedding, c->params->flags)};
        if (stream->target.kind == BXN_TARGET_FLOAT && stream->target.dtype == source->dtype)
            stream->target.kind = BXN_TARGET_COPY;
        c->progress.total += bxn_stream_work(stream, stream->target.kind == BXN_TARGET_AFFINE);
    }
    return status;
}

static bitaxon_status write_weights(bxn_conversion *c, bxn_stream *streams, uint32_t count,
                                    bxn_output *out)
{
    bitaxon_status status = BITAXON_OK;
    for (uint32_t i = 0; i < count && status == BITAXON_OK; i++)
        if (streams[i].target.kind == BXN_TARGET_AFFINE)
            status = bxn_stream_scan(c, &streams[i]);
    for (uint32_t i = 0; i < count && status == BITAXON_OK; i++)
        status = bxn_stream_declare(c, &streams[i], out);
    if (status == BITAXON_OK)
        status = bxn_output_begin(out);
    for (uint32_t i = 0; i < count && status == BITAXON_OK; i++)
        status = bxn_stream_put(c, &streams[i], out);
    return status;
}

bitaxon_status bxn_convert_quantize(const bitaxon_convert_params *params, bitaxon_error *error)
{
    bxn_conversion c;
    void *streams = NULL;
    size_t bytes = 0;
    uint32_t count = 0;
    bxn_output *out = NULL;
    bitaxon_status status =
        bxn_conversion_init(&c, params, BITAXON_STAGE_CONVERT, "affine4", error);
    if (status == BITAXON_OK)
        status = bxn_conversion_open(&c);
    if (status == BITAXON_OK)
        status = refuse_quantised(&c);
    if (status == BITAXON_OK) {
        bytes = c.plan.count * sizeof(bxn_stream);
        status = bxn_alloc(&c.mem, bytes, "list of tensors", &streams, error);
    }
    if (status == BITAXON_OK)
        status = plan_streams(&c, streams, &count);
    if (status == BITAXON_OK)
        status = bxn_output_open(&c, c.bundle->where, 8, &out);
    if (status == BITAXON_OK)
        status = write_weights(&c, streams, count, out);
    if (status == BITAXON_OK)
        status = bxn_output_commit(out, c.bundle, &c.format);
    else
        bxn_output_abort(out);
    bxn_free(&c.mem, streams, bytes);
    bxn_conversion_free(&c);
    return status;
}
