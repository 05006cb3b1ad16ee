/* SPDX-License-Identifier: Apache-2.0 */
/* convert_common.c - what every conversion needs: memory, threads, formats, the input with
 * its structure checked, progress and reports. */
#include "convert/bxn_convert.h"

#include <string.h>

bitaxon_status bxn_conversion_init(bxn_conversion *c, const bitaxon_convert_params *params,
                                   int32_t stage, const char *default_format, bitaxon_error *error)
{
    memset(c, 0, sizeof *c);
    c->params = params;
    c->error = error;
    c->progress = (bxn_progress){params->progress, params->user, stage, 0, 0};
    bitaxon_status status = bxn_mem_init(&c->mem, params->host, 0, error);
    if (status != BITAXON_OK)
        return status;
    uint32_t group = params->group_size != 0 ? params->group_size : 64;
    if (group != 32 && group != 64 && group != 128)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "group_size is %u, must be 32, 64 or 128",
                        group);
    if (default_format != NULL) {
        const char *format = params->format != NULL ? params->format : default_format;
        status = bxn_target_parse(format, "format", group, &c->format, error);
        if (status != BITAXON_OK)
            return status;
        const char *embedding = params->embedding_format;
        if (embedding == NULL)
            embedding = c->format.kind == BXN_TARGET_AFFINE ? "affine8"
                        : c->format.kind == BXN_TARGET_NF4  ? "f16"
                                                            : format;
        status = bxn_target_parse(embedding, "embedding_format", group, &c->embedding, error);
        if (status != BITAXON_OK)
            return status;
    }
    return bxn_pool_create(&c->mem, bxn_cpu_count(), &c->pool, error);
}

void bxn_conversion_free(bxn_conversion *c)
{
    bxn_plan_free(&c->mem, &c->plan);
    bxn_tensors_free(c->tensors);
    bxn_bundle_free(c->bundle);
    bxn_pool_free(c->pool);
}

bitaxon_status bxn_conversion_open(bxn_conversion *c)
{
    char *text = NULL;
    size_t bytes = 0;
    /* read, not mapped: what is converted is read once, and a file cut short meanwhile is an
     * error rather than a signal */
    bitaxon_status status = bxn_bundle_open(&c->mem, c->params->input, NULL, 0, BXN_BUNDLE_NO_MMAP,
                                            &c->bundle, c->error);
    if (status == BITAXON_OK)
        status = bxn_tensors_open(c->bundle, &c->tensors, c->error);
    if (status != BITAXON_OK)
        return status;
    bxn_file *file = bxn_bundle_find(c->bundle, "config.json");
    if (file == NULL)
        return bxn_fail(c->error, BITAXON_IO, "%s has no config.json", c->bundle->where);
    status = bxn_file_text(c->bundle, file, BXN_MAX_JSON_BYTES, &text, &bytes, c->error);
    if (status != BITAXON_OK)
        return status;
    status = bxn_config_parse(&c->mem, text, bytes, "config.json", &c->config, c->error);
    bxn_free(&c->mem, text, bytes + 1);
    if (status == BITAXON_OK)
        status = bxn_plan_build(&c->mem, &c->config, &c->plan, c->error);
    if (status != BITAXON_OK)
        return status;
    bxn_model model;
    bxn_loaded loaded;
    memset(&model, 0, sizeof model);
    model.config = c->config;
    status = bxn_import_bit_axon(&c->mem, c->tensors, true, NULL, &model, &loaded, c->error);
    bxn_import_free(&c->mem, &model, &loaded);
    return status;
}

bitaxon_status bxn_conversion_step(bxn_conversion *c, uint64_t bytes, const char *item)
{
    c->done += bytes;
    return bxn_progress_step(&c->progress, c->done, item, c->error);
}

bitaxon_status bxn_conversion_report(bxn_conversion *c, const bitaxon_tensor_report *report)
{
    if (c->params->report != NULL && c->params->report(c->params->user, report) != 0)
        return bxn_fail(c->error, BITAXON_CANCELLED, "cancelled by the report callback at %s",
                        report->name);
    return BITAXON_OK;
}

bitaxon_status bxn_conversion_tied(bxn_conversion *c, bool *tied)
{
    uint8_t a[4096], b[4096];
    const bxn_tensor *embedding = bxn_tensors_find(c->tensors, "embed_tokens.weight");
    const bxn_tensor *head = bxn_tensors_find(c->tensors, "lm_head.weight");
    *tied = false;
    if (!c->config.weight_tying)
        return BITAXON_OK;
    if (head == NULL || embedding == NULL) { /* a packed head or embedding stays as it is */
        char start[] = "lm_head.";
        for (uint64_t i = 0; i < c->tensors->count; i++)
            if (strncmp(c->tensors->items[i].name, start, sizeof start - 1) == 0)
                return BITAXON_OK;
        *tied = true;
        return BITAXON_OK;
    }
    if (head->dtype != embedding->dtype || head->bytes != embedding->bytes ||
        (head->dtype != BXN_F32 && head->dtype != BXN_F16 && head->dtype != BXN_BF16))
        return BITAXON_OK;
    for (uint64_t at = 0; at < head->bytes;) {
        size_t n = head->bytes - at < sizeof a ? (size_t)(head->bytes - at) : sizeof a;
        bitaxon_status status = bxn_tensor_read(c->tensors, embedding, at, a, n, c->error);
        if (status == BITAXON_OK)
            status = bxn_tensor_read(c->tensors, head, at, b, n, c->error);
        if (status != BITAXON_OK)
            return status;
        if (memcmp(a, b, n) != 0)
            return BITAXON_OK;
        at += n;
    }
    *tied = true;
    return BITAXON_OK;
}
