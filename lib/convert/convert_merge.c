/* SPDX-License-Identifier: Apache-2.0 */
/* convert_merge.c - a checkpoint and adapters to a new checkpoint. Called by bitaxon_model_merge. Row o of
 * a changed weight becomes W_o + sum over i of weights[i] * (V_i - W_o), where V_i is W_o + s (A B)^T_o and,
 * for DoRA, brought to the length m_o. It is written in the form it was read from - its float type, its bits
 * and group - or in the format asked for; all other tensors are copied. One weight is in memory at a
 * time, read twice when its scales must be looked at first. */
#include "convert/bxn_convert.h"
#include "import/load.h"
#include "model/bxn_adapter.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define PIECE 256

typedef struct merge {
    bxn_conversion *c;
    bxn_model outline;
    bxn_adapter adapters[BITAXON_MERGE_MAX];
    uint32_t count;
    struct entry *entries;
    uint32_t entry_count;
} merge;

/* One weight that changes. */
typedef struct entry {
    const bxn_plan_item *item;
    char prefix[BXN_PLAN_NAME]; /* with the dot at its end */
    uint32_t id;
    uint64_t bytes; /* of its tensors in the input */
    bxn_stream stream;
    /* at work */
    const merge *all;
    bxn_weight weight;
    bxn_loaded loaded;
} entry;

/* ---- values ------------------------------------------------------------------------------------ */

/* d[0 .. n) = s (A B)^T_o from column k on. */
static void low_rank_row(const bxn_lora *lora, uint32_t row, uint32_t k, uint32_t n, float *d)
{
    memset(d, 0, n * sizeof *d);
    for (uint32_t r = 0; r < lora->rank; r++) {
        const float *a = lora->a + r * lora->lda + k;
        float b = lora->scale * lora->b[r * lora->ldb + row];
        for (uint32_t i = 0; i < n; i++)
            d[i] += b * a[i];
    }
}

/* m / ||W_o + d||. */
static float gain_of(const bxn_lora *lora, uint32_t row, const float *x, uint32_t cols)
{
    float d[PIECE];
    double square = 0;
    if (lora->m == NULL)
        return 1;
    for (uint32_t k = 0; k < cols; k += PIECE) {
        uint32_t n = cols - k < PIECE ? cols - k : PIECE;
        low_rank_row(lora, row, k, n, d);
        for (uint32_t i = 0; i < n; i++)
            square += ((double)x[k + i] + (double)d[i]) * ((double)x[k + i] + (double)d[i]);
    }
    return (float)((double)lora->m[row] / sqrt(square > 1e-12 ? square : 1e-12));
}

static void merged_row(void *user, uint64_t index, float *x)
{
    const entry *e = user;
    const merge *all = e->all;
    uint32_t row = (uint32_t)index, cols = e->weight.cols;
    float gains[BITAXON_MERGE_MAX], d[PIECE], sum[PIECE];
    bxn_weight_row(&e->weight, row, x);
    for (uint32_t i = 0; i < all->count; i++)
        gains[i] = gain_of(&all->adapters[i].loras[e->id - 1], row, x, cols);
    for (uint32_t k = 0; k < cols; k += PIECE) {
        uint32_t n = cols - k < PIECE ? cols - k : PIECE;
        memset(sum, 0, sizeof sum);
        for (uint32_t i = 0; i < all->count; i++) {
            const bxn_lora *lora = &all->adapters[i].loras[e->id - 1];
            float weight = all->c->params->adapter_weights != NULL ? all->c->params->adapter_weights[i] : 1;
            if (lora->rank == 0)
                continue;
            low_rank_row(lora, row, k, n, d);
            if (lora->m == NULL)
                for (uint32_t j = 0; j < n; j++)
                    sum[j] += weight * d[j];
            else
                for (uint32_t j = 0; j < n; j++)
                    sum[j] += weight * (gains[i] * (x[k + j] + d[j]) - x[k + j]);
        }
        for (uint32_t j = 0; j < n; j++)
            x[k + j] += sum[j];
    }
}

/* ---- one weight ----------------------------------------------------------------------------------- */

static bitaxon_status load(entry *e, bool plan)
{
    bxn_conversion *c = e->all->c;
    bxn_loader loader;
    char prefix[BXN_PLAN_NAME];
    bxn_plan_prefix(e->item, prefix);
    memset(&e->weight, 0, sizeof e->weight);
    bitaxon_status status =
        bxn_loader_init(&loader, &c->mem, c->tensors, plan, c->pool, NULL, &e->loaded, c->error);
    if (status != BITAXON_OK)
        return status;
    status = bxn_load_weight(&loader, prefix, (uint32_t)e->item->shape[0], (uint32_t)e->item->shape[1], &e->weight);
    bxn_loader_done(&loader);
    return status;
}

static void unload(entry *e)
{
    bxn_model none;
    memset(&none, 0, sizeof none);
    bxn_import_free(&e->all->c->mem, &none, &e->loaded);
}

/* In which form it is written: as it stands in the input, or as `format` says where its groups fit. */
static bitaxon_status choose_target(entry *e)
{
    bxn_conversion *c = e->all->c;
    bxn_target *target = &e->stream.target;
    bitaxon_status status = load(e, true);
    const bxn_packed *packed = &e->weight.packed;
    if (e->weight.kind == BXN_WEIGHT_PACKED && packed->has_bias)
        *target = (bxn_target){ BXN_TARGET_AFFINE, packed->scale_f32 ? BXN_F32 : BXN_F16, packed->source_bits,
                                BXN_UNIT_COLS / packed->blocks };
    else if (e->weight.kind == BXN_WEIGHT_PACKED)
        *target = (bxn_target){ BXN_TARGET_NF4, BXN_F32, 4, BXN_UNIT_COLS / packed->blocks };
    else
        *target = (bxn_target){ BXN_TARGET_FLOAT, e->weight.dense.dtype, 0, 0 };
    unload(e);
    if (status == BITAXON_OK && c->params->format != NULL &&
        (c->format.kind == BXN_TARGET_FLOAT || e->item->shape[1] % c->format.group == 0))
        *target = c->format;
    return status;
}

/* Scales as they were typed, and F32 where f16 would lose them. */
static bitaxon_status scan(entry *e)
{
    bxn_dtype before = e->stream.target.dtype;
    if (e->stream.target.kind != BXN_TARGET_AFFINE)
        return BITAXON_OK;
    bitaxon_status status = load(e, false);
    if (status == BITAXON_OK)
        status = bxn_stream_scan(e->all->c, &e->stream);
    if (before == BXN_F32)
        e->stream.target.dtype = BXN_F32;
    unload(e);
    return status;
}

static bitaxon_status put(entry *e, bxn_output *out)
{
    bitaxon_status status = load(e, false);
    if (status == BITAXON_OK)
        status = bxn_stream_put(e->all->c, &e->stream, out);
    unload(e);
    return status;
}

/* ---- the whole ------------------------------------------------------------------------------------- */

static const bxn_plan_item *find_item(const bxn_plan *plan, const char *weight)
{
    size_t n = strlen(weight);
    for (uint32_t i = 0; i < plan->count; i++)
        if (strncmp(plan->items[i].name, weight, n) == 0 && strcmp(plan->items[i].name + n, ".weight") == 0)
            return &plan->items[i];
    return NULL;
}

static bitaxon_status add_entry(void *user, bxn_weight *w, const char *name, int32_t expert)
{
    merge *m = user;
    bool changed = false;
    for (uint32_t i = 0; i < m->count && expert < 0; i++)
        changed |= m->adapters[i].loras[w->id - 1].rank != 0;
    if (!changed)
        return BITAXON_OK;
    entry *e = &m->entries[m->entry_count++];
    memset(e, 0, sizeof *e);
    e->all = m;
    e->id = w->id;
    e->item = find_item(&m->c->plan, name);
    if (e->item == NULL)
        return bxn_fail(m->c->error, BITAXON_FORMAT, "%s: tensor %s.weight is missing", m->c->bundle->where, name);
    snprintf(e->prefix, sizeof e->prefix, "%s.", name);
    for (uint64_t i = 0; i < m->c->tensors->count; i++)
        if (strncmp(m->c->tensors->items[i].name, e->prefix, strlen(e->prefix)) == 0)
            e->bytes += m->c->tensors->items[i].bytes;
    bitaxon_status status = choose_target(e);
    e->stream.item = e->item;
    e->stream.row = merged_row;
    e->stream.user = e;
    e->stream.bytes_before = e->bytes;
    m->c->progress.total += bxn_stream_work(&e->stream, e->stream.target.kind == BXN_TARGET_AFFINE);
    return status;
}

static entry *entry_of(const merge *m, const char *tensor)
{
    for (uint32_t i = 0; i < m->entry_count; i++)
        if (strncmp(tensor, m->entries[i].prefix, strlen(m->entries[i].prefix)) == 0)
            return &m->entries[i];
    return NULL;
}

static bitaxon_status copy(bxn_conversion *c, const bxn_tensor *tensor, bxn_output *out)
{
    bitaxon_status status = bxn_stream_copy(c, tensor, out);
    bitaxon_tensor_report report = { .struct_size = sizeof report, .name = tensor->name,
                                     .format = bxn_dtype_name(tensor->dtype), .bytes_before = tensor->bytes,
                                     .bytes_after = tensor->bytes };
    return status == BITAXON_OK ? bxn_conversion_report(c, &report) : status;
}

/* All tensors in the input's order; a changed weight stands where its first tensor stood. */
static bitaxon_status each_tensor(merge *m, bxn_output *out, bool declare)
{
    bxn_conversion *c = m->c;
    const entry *last = NULL;
    bitaxon_status status = BITAXON_OK;
    for (uint64_t i = 0; i < c->tensors->count && status == BITAXON_OK; i++) {
        const bxn_tensor *tensor = &c->tensors->items[i];
        entry *e = entry_of(m, tensor->name);
        if (e == NULL && declare)
            status = bxn_st_declare(bxn_output_writer(out), tensor->name, tensor->dtype, tensor->rank, tensor->shape,
                                    c->error);
        else if (e == NULL)
            status = copy(c, tensor, out);
        else if (e != last)
            status = declare ? bxn_stream_declare(c, &e->stream, out) : put(e, out);
        last = e != NULL ? e : last;
    }
    return status;
}

static bitaxon_status write_weights(merge *m, bxn_output *out)
{
    bitaxon_status status = BITAXON_OK;
    for (uint32_t i = 0; i < m->entry_count && status == BITAXON_OK; i++)
        status = scan(&m->entries[i]);
    if (status == BITAXON_OK)
        status = each_tensor(m, out, true);
    if (status == BITAXON_OK)
        status = bxn_output_begin(out);
    return status == BITAXON_OK ? each_tensor(m, out, false) : status;
}

static bitaxon_status read_adapters(merge *m)
{
    bxn_conversion *c = m->c;
    bitaxon_status status = bxn_model_outline(&c->mem, &c->config, &m->outline, c->error);
    if (status == BITAXON_OK)
        status = bxn_import_fingerprint(&c->config, c->tensors, NULL, m->outline.fingerprint, c->error);
    while (m->count < c->params->adapter_count && status == BITAXON_OK) {
        status = bxn_adapter_read(&c->mem, &m->outline, c->params->adapters[m->count], c->params->adapter_scale,
                                  &m->adapters[m->count], c->error);
        m->count += status == BITAXON_OK;
    }
    return status;
}

static void release(merge *m, size_t bytes)
{
    bxn_mem *mem = &m->c->mem;
    bxn_free(mem, m->entries, bytes);
    for (uint32_t i = 0; i < m->count; i++)
        bxn_adapter_free(&m->adapters[i]);
    if (m->outline.sublayers != NULL)
        bxn_model_outline_free(mem, &m->outline);
}

bitaxon_status bxn_convert_merge(const bitaxon_convert_params *params, bitaxon_error *error)
{
    bxn_conversion c;
    merge m = { .c = &c };
    void *memory = NULL;
    size_t bytes = 0;
    bxn_output *out = NULL;
    bitaxon_status status =
        bxn_conversion_init(&c, params, BITAXON_STAGE_CONVERT, params->format != NULL ? "f32" : NULL, error);
    if (status == BITAXON_OK)
        status = bxn_conversion_open(&c);
    if (status == BITAXON_OK)
        status = read_adapters(&m);
    if (status == BITAXON_OK) {
        bytes = m.outline.weight_count * sizeof(entry);
        status = bxn_alloc(&c.mem, bytes, "list of weights", &memory, error);
        m.entries = memory;
    }
    if (status == BITAXON_OK)
        status = bxn_model_weights(&m.outline, add_entry, &m);
    bool packed = false;
    for (uint64_t i = 0; status == BITAXON_OK && i < c.tensors->count; i++) {
        const bxn_tensor *tensor = &c.tensors->items[i];
        packed |= strstr(tensor->name, ".packed.") != NULL;
        c.progress.total += entry_of(&m, tensor->name) == NULL ? tensor->bytes : 0;
    }
    if (status == BITAXON_OK)
        status = bxn_output_open(&c, c.bundle->where, packed ? BXN_ALIGN : 8, &out);
    if (status == BITAXON_OK)
        status = write_weights(&m, out);
    /* What the configuration says of quantisation is of the base: it holds for all that was not changed,
     * and the others tell their form by their shapes. */
    if (status == BITAXON_OK)
        status = bxn_output_commit(out, c.bundle, NULL);
    else
        bxn_output_abort(out);
    release(&m, bytes);
    bxn_conversion_free(&c);
    return status;
}
