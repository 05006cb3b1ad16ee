/* SPDX-License-Identifier: Apache-2.0 */
/* convert_pack.c - any checkpoint to one whose quantised matrices stand in the kernels'
 * layout, aligned for mapping in place. Called by bitaxon_model_pack. The importer's own
 * loading makes the packed bytes, so that a model computes the same bits before and
 * after; one matrix or stack is in memory at a time. */
#include "convert/bxn_convert.h"
#include "import/load.h"

#include <stdio.h>
#include <string.h>

#define PUT_BYTES ((size_t)4 << 20)

/* One item of the plan as it stands in the input. */
typedef struct pack_entry {
    const bxn_plan_item *item;
    const bxn_tensor *codes;  /* U32 or U8: packed on the way; else NULL */
    const bxn_tensor *copied; /* float or packed already; else NULL */
    bxn_packed packed;
    uint64_t bytes_before; /* scales included, with `codes` */
} pack_entry;

static uint32_t stack_count(const bxn_plan_item *item)
{
    return item->role == BXN_ROLE_EXPERTS ? (uint32_t)item->shape[0] : 1;
}

/* The packed form of `prefix` in the input, if it has one. */
static const bxn_tensor *find_packed(const bxn_tensors *tensors, const char *prefix)
{
    char start[BXN_PLAN_NAME + 16];
    int n = snprintf(start, sizeof start, "%s.packed.", prefix);
    for (uint64_t i = 0; i < tensors->count; i++)
        if (strncmp(tensors->items[i].name, start, (size_t)n) == 0)
            return &tensors->items[i];
    return NULL;
}

/* Load the matrix or stack (plan: only describe it) into weights [stack_count]. */
static bitaxon_status load(bxn_conversion *c, const pack_entry *entry, bool plan,
                           bxn_weight *weights, bxn_loaded *loaded, uint64_t *bytes)
{
    const bxn_plan_item *item = entry->item;
    char prefix[BXN_PLAN_NAME];
    bxn_loader loader;
    bxn_plan_prefix(item, prefix);
    bitaxon_status status = bxn_loader_init(&loader, &c->mem, c->tensors, plan, c->pool,
                                            plan ? NULL : &c->progress, loaded, c->error);
    if (status != BITAXON_OK)
        return status;
    loader.done = c->done;
    bool stack = item->role == BXN_ROLE_EXPERTS;
    status = bxn_load_quantised(&loader, entry->codes, prefix, stack_count(item),
                                (uint32_t)item->shape[item->rank - 2],
                                (uint32_t)item->shape[item->rank - 1], stack, weights);
    *bytes = entry->codes->bytes; /* and of all tensors beside it that loading made use of */
    for (uint64_t i = 0; i < c->tensors->count; i++)
        *bytes += loader.seen[i] ? c->tensors->items[i].bytes : 0;
    bxn_loader_done(&loader);
    return status;
}

static void free_loaded(bxn_conversion *c, bxn_loaded *loaded)
{
    bxn_model none;
    memset(&none, 0, sizeof none);
    bxn_import_free(&c->mem, &none, loaded);
}

/* Describe an entry (out NULL), or load it and put its packed bytes. */
static bitaxon_status with_loaded(bxn_conversion *c, pack_entry *entry, bxn_output *out)
{
    size_t bytes = stack_count(entry->item) * sizeof(bxn_weight);
    uint64_t read = 0;
    void *memory;
    bxn_loaded loaded;
    memset(&loaded, 0, sizeof loaded);
    bitaxon_status status = bxn_calloc(&c->mem, bytes, "list of experts", &memory, c->error);
    if (status != BITAXON_OK)
        return status;
    bxn_weight *weights = memory;
    status = load(c, entry, out == NULL, weights, &loaded, &read);
    if (status == BITAXON_OK && out == NULL) {
        entry->packed = weights[0].packed;
        entry->bytes_before = read;
    } else if (status == BITAXON_OK) {
        uint64_t total = bxn_packed_bytes(&entry->packed) * stack_count(entry->item);
        const uint8_t *data = weights[0].packed.data; /* matrix after matrix */
        c->done += read;
        for (uint64_t at = 0; at < total && status == BITAXON_OK;) {
            size_t n = total - at < PUT_BYTES ? (size_t)(total - at) : PUT_BYTES;
            status = bxn_output_put(out, data + at, n);
            if (status == BITAXON_OK)
                status = bxn_conversion_step(c, 0, entry->item->name);
            at += n;
        }
    }
    free_loaded(c, &loaded);
    bxn_free(&c->mem, memory, bytes);
    return status;
}

static bitaxon_status plan_entries(bxn_conversion *c, pack_entry *entries, uint32_t *count)
{
    bool tied = false;
    bitaxon_status status = bxn_conversion_tied(c, &tied);
    *count = 0;
    for (uint32_t i = 0; i < c->plan.count && status == BITAXON_OK; i++) {
        const bxn_plan_item *item = &c->plan.items[i];
        char prefix[BXN_PLAN_NAME];
        if (item->role == BXN_ROLE_HEAD && tied)
            continue;
        pack_entry *entry = &entries[(*count)++];
        memset(entry, 0, sizeof *entry);
        entry->item = item;
        bxn_plan_prefix(item, prefix);
        const bxn_tensor *tensor =
            item->role == BXN_ROLE_VECTOR ? NULL : find_packed(c->tensors, prefix);
        if (tensor == NULL)
            tensor = bxn_tensors_find(c->tensors, item->name);
        if (tensor == NULL)
            return bxn_fail(c->error, BITAXON_FORMAT, "%s: tensor %s is missing", c->bundle->where,
                            item->name);
        bool codes = tensor->dtype == BXN_U32 ||
                     (tensor->dtype == BXN_U8 && strcmp(tensor->name, item->name) == 0);
        if (codes)
            entry->codes = tensor;
        else
            entry->copied = tensor;
        if (codes)
            status = with_loaded(c, entry, NULL);
        else
            entry->bytes_before = tensor->bytes;
    }
    return status;
}

static bitaxon_status declare(bxn_conversion *c, const pack_entry *entry, bxn_output *out)
{
    if (entry->copied != NULL)
        return bxn_st_declare(bxn_output_writer(out), entry->copied->name, entry->copied->dtype,
                              entry->copied->rank, entry->copied->shape, c->error);
    char name[BXN_PLAN_NAME + 32], prefix[BXN_PLAN_NAME], suffix[16];
    uint64_t shape[4] = {stack_count(entry->item), entry->packed.row_groups, entry->packed.k_units,
                         entry->packed.unit_bytes};
    bool stack = entry->item->role == BXN_ROLE_EXPERTS;
    bxn_plan_prefix(entry->item, prefix);
    bxn_packed_suffix(&entry->packed, suffix);
    snprintf(name, sizeof name, "%s.packed.%s", prefix, suffix);
    return bxn_st_declare(bxn_output_writer(out), name, BXN_U8, stack ? 4 : 3,
                          stack ? shape : shape + 1, c->error);
}

static bitaxon_status report(bxn_conversion *c, const pack_entry *entry)
{
    const bxn_packed *packed = &entry->packed;
    char text[48];
    bitaxon_tensor_report result = {.struct_size = sizeof result,
                                    .name = entry->item->name,
                                    .format = text,
                                    .bytes_before = entry->bytes_before};
    if (entry->copied != NULL) {
        snprintf(text, sizeof text, "%s", bxn_dtype_name(entry->copied->dtype));
        result.bytes_after = entry->bytes_before;
    } else {
        snprintf(text, sizeof text, "packed %s%u g%u %s", packed->has_bias ? "affine" : "nf",
                 packed->source_bits, BXN_UNIT_COLS / packed->blocks,
                 packed->scale_f32 ? "F32" : "F16");
        result.changed = 1;
        result.bytes_after = bxn_packed_bytes(packed) * stack_count(entry->item);
    }
    return bxn_conversion_report(c, &result);
}

static bitaxon_status write_digest(bxn_conversion *c, bxn_output *out)
{
    uint8_t print[16];
    char hex[33];
    bitaxon_status status = bxn_import_digest(c->tensors, NULL, print, c->error);
    if (status != BITAXON_OK)
        return status;
    for (size_t i = 0; i < sizeof print; i++)
        snprintf(hex + 2 * i, 3, "%02x", print[i]);
    status = bxn_st_meta(bxn_output_writer(out), "bitaxon.tensors", hex, c->error);
    if (status == BITAXON_OK)
        status = bxn_st_meta(bxn_output_writer(out), "bitaxon.packed", "1", c->error);
    return status;
}

static bitaxon_status write_weights(bxn_conversion *c, pack_entry *entries, uint32_t count,
                                    bxn_output *out)
{
    bitaxon_status status = write_digest(c, out);
    for (uint32_t i = 0; i < count && status == BITAXON_OK; i++)
        status = declare(c, &entries[i], out);
    if (status == BITAXON_OK)
        status = bxn_output_begin(out);
    for (uint32_t i = 0; i < count && status == BITAXON_OK; i++) {
        status = entries[i].copied != NULL ? bxn_stream_copy(c, entries[i].copied, out)
                                           : with_loaded(c, &entries[i], out);
        if (status == BITAXON_OK)
            status = report(c, &entries[i]);
    }
    return status;
}

bitaxon_status bxn_convert_pack(const bitaxon_convert_params *params, bitaxon_error *error)
{
    bxn_conversion c;
    void *entries = NULL;
    size_t bytes = 0;
    uint32_t count = 0;
    bxn_output *out = NULL;
    bitaxon_status status = bxn_conversion_init(&c, params, BITAXON_STAGE_CONVERT, NULL, error);
    if (status == BITAXON_OK)
        status = bxn_conversion_open(&c);
    if (status == BITAXON_OK) {
        for (uint64_t i = 0; i < c.tensors->count; i++)
            c.progress.total += c.tensors->items[i].bytes;
        bytes = c.plan.count * sizeof(pack_entry);
        status = bxn_alloc(&c.mem, bytes, "list of tensors", &entries, error);
    }
    if (status == BITAXON_OK)
        status = plan_entries(&c, entries, &count);
    if (status == BITAXON_OK)
        status = bxn_output_open(&c, c.bundle->where, BXN_ALIGN, &out);
    if (status == BITAXON_OK)
        status = write_weights(&c, entries, count, out);
    if (status == BITAXON_OK)
        status = bxn_output_commit(out, c.bundle, NULL);
    else
        bxn_output_abort(out);
    bxn_free(&c.mem, entries, bytes);
    bxn_conversion_free(&c);
    return status;
}
