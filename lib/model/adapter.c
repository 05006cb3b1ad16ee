/* SPDX-License-Identifier: Apache-2.0 */
/* adapter.c - low-rank adapters in memory: one block of values with a view for each weight of the model,
 * made new, copied, and kept up to date (gains of DoRA, identity). Called by training, the reading of
 * files, sessions and conversions. The order of values is that of the weights' ids. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "model/bxn_adapter.h"
#include "ops/train_ops.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static size_t rounded(size_t n) { return bxn_round_up(n, 16); } /* floats of 64 bytes */

/* ---- structure -------------------------------------------------------------------------------- */

static size_t stride(uint32_t n) { return bxn_round_up(n, BXN_UNIT_COLS); }

static size_t part_floats(const bxn_weight *w, uint32_t rank, bool dora)
{
    return rank * (stride(w->cols) + stride(w->rows)) + (dora ? rounded(w->rows) : 0);
}

/* Walked twice: to count, then to place the views in the blocks. */
typedef struct layout {
    bxn_adapter_rank_fn rank_of;
    void *user;
    bxn_adapter *adapter;
    bool place;
    size_t floats, gain_floats;
    uint32_t rank, adapted;
    uint64_t parameters;
} layout;

static bitaxon_status lay(void *user, bxn_weight *w, const char *name, int32_t expert)
{
    layout *l = user;
    uint32_t rank = expert < 0 && bxn_weight_adaptable(name) ? l->rank_of(l->user, w, name) : 0;
    bool dora = l->adapter->dora;
    if (rank == 0)
        return BITAXON_OK;
    if (l->place) {
        bxn_lora *lora = &l->adapter->loras[w->id - 1];
        float *at = l->adapter->values + l->floats;
        lora->rank = rank;
        lora->scale = l->adapter->scale;
        lora->lda = stride(w->cols);
        lora->ldb = stride(w->rows);
        lora->a = at;
        lora->b = at + rank * lora->lda;
        lora->m = dora ? lora->b + rank * lora->ldb : NULL;
        lora->gain = dora ? l->adapter->gains + l->gain_floats : NULL;
    }
    l->floats += part_floats(w, rank, dora);
    l->gain_floats += dora ? rounded(w->rows) : 0;
    l->rank = rank > l->rank ? rank : l->rank;
    l->parameters += (uint64_t)rank * ((uint64_t)w->cols + w->rows) + (dora ? w->rows : 0);
    l->adapted++;
    return BITAXON_OK;
}

static bitaxon_status allocate(bxn_adapter *a, bitaxon_error *error)
{
    void *memory;
    bitaxon_status status =
        bxn_calloc(a->mem, a->weight_count * sizeof *a->loras, "views of an adapter", &memory, error);
    a->loras = memory;
    if (status == BITAXON_OK) {
        status = bxn_calloc(a->mem, a->floats * sizeof(float), "adapter", &memory, error);
        a->values = memory;
    }
    if (status == BITAXON_OK && a->gain_floats != 0) {
        status = bxn_calloc(a->mem, 2 * a->gain_floats * sizeof(float), "gains of an adapter", &memory, error);
        a->gains = memory;
        a->norms = status == BITAXON_OK ? a->gains + a->gain_floats : NULL;
    }
    if (status != BITAXON_OK)
        bxn_adapter_free(a);
    return status;
}

bitaxon_status bxn_adapter_make(bxn_mem *mem, const bxn_model *model, float scale, bool dora,
                                bxn_adapter_rank_fn rank_of, void *user, bxn_adapter *out, bitaxon_error *error)
{
    layout l = { .rank_of = rank_of, .user = user, .adapter = out };
    memset(out, 0, sizeof *out);
    out->mem = mem;
    out->scale = scale;
    out->dora = dora;
    out->weight_count = model->weight_count;
    (void)bxn_model_weights(model, lay, &l);
    out->floats = l.floats;
    out->gain_floats = l.gain_floats;
    out->rank = l.rank;
    out->adapted = l.adapted;
    bitaxon_status status = allocate(out, error);
    if (status != BITAXON_OK)
        return status;
    l = (layout){ .rank_of = rank_of, .user = user, .adapter = out, .place = true };
    (void)bxn_model_weights(model, lay, &l);
    return BITAXON_OK;
}

void bxn_adapter_free(bxn_adapter *a)
{
    if (a->mem == NULL)
        return;
    bxn_free(a->mem, a->gains, 2 * a->gain_floats * sizeof(float));
    bxn_free(a->mem, a->values, a->floats * sizeof(float));
    bxn_free(a->mem, a->loras, a->weight_count * sizeof *a->loras);
    memset(a, 0, sizeof *a);
}

bitaxon_status bxn_adapter_copy(const bxn_adapter *adapter, bxn_mem *mem, bxn_adapter *out, bitaxon_error *error)
{
    *out = *adapter;
    out->mem = mem;
    out->loras = NULL;
    out->values = out->gains = out->norms = NULL;
    bitaxon_status status = allocate(out, error);
    if (status != BITAXON_OK)
        return status;
    memcpy(out->values, adapter->values, adapter->floats * sizeof(float));
    if (adapter->gain_floats != 0)
        memcpy(out->gains, adapter->gains, 2 * adapter->gain_floats * sizeof(float));
    for (uint32_t i = 0; i < adapter->weight_count; i++) {
        const bxn_lora *from = &adapter->loras[i];
        bxn_lora *to = &out->loras[i];
        if (from->rank == 0)
            continue;
        *to = *from;
        to->a = out->values + (from->a - adapter->values);
        to->b = out->values + (from->b - adapter->values);
        to->m = from->m == NULL ? NULL : out->values + (from->m - adapter->values);
        to->gain = from->gain == NULL ? NULL : out->gains + (from->gain - adapter->gains);
    }
    return BITAXON_OK;
}

/* ---- targets ------------------------------------------------------------------------------------ */

/* The next name of a list "a, b": false at its end. Spaces around names are not part of them. */
static bool next_target(const char **list, const char **name, size_t *bytes)
{
    const char *at = *list;
    while (*at == ' ' || *at == ',')
        at++;
    const char *end = at;
    while (*end != '\0' && *end != ',')
        end++;
    *list = end;
    while (end > at && end[-1] == ' ')
        end--;
    *name = at;
    *bytes = (size_t)(end - at);
    return end != at;
}

/* "q_proj" names "layer_1.attention.q_proj": the whole name, or what stands after one of its dots. */
static bool is_named(const char *weight, const char *target, size_t bytes)
{
    size_t n = strlen(weight);
    return n >= bytes && memcmp(weight + n - bytes, target, bytes) == 0 && (n == bytes || weight[n - bytes - 1] == '.');
}

static uint32_t rank_of_plan(void *user, const bxn_weight *w, const char *name)
{
    const bxn_adapter_plan *plan = user;
    const char *list = plan->targets, *target;
    size_t bytes;
    (void)w;
    if (list == NULL)
        return plan->rank;
    while (next_target(&list, &target, &bytes))
        if (is_named(name, target, bytes))
            return plan->rank;
    return 0;
}

typedef struct search {
    const char *target;
    size_t bytes;
    bool found;
} search;

static bitaxon_status find_target(void *user, bxn_weight *w, const char *name, int32_t expert)
{
    search *s = user;
    (void)w;
    s->found |= expert < 0 && bxn_weight_adaptable(name) && is_named(name, s->target, s->bytes);
    return BITAXON_OK;
}

static bitaxon_status check_plan(const bxn_model *model, const bxn_adapter_plan *plan, bitaxon_error *error)
{
    const char *list = plan->targets;
    search s = { 0 };
    bool any = list == NULL;
    if (plan->rank == 0 || plan->rank > BXN_MAX_ADAPTER_RANK)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "the rank of an adapter is %u, must be 1 to %u", plan->rank,
                        BXN_MAX_ADAPTER_RANK);
    if (!isfinite(plan->scale))
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "the scale of an adapter is not finite");
    while (list != NULL && next_target(&list, &s.target, &s.bytes)) {
        s.found = false;
        any = true;
        (void)bxn_model_weights(model, find_target, &s);
        if (!s.found)
            return bxn_fail(error, BITAXON_INVALID_ARGUMENT,
                            "targets: no weight that an adapter may change is named %.*s",
                            s.bytes < 64 ? (int)s.bytes : 64, s.target);
    }
    return any ? BITAXON_OK : bxn_fail(error, BITAXON_INVALID_ARGUMENT, "targets: the list is empty");
}

uint64_t bxn_adapter_bytes(const bxn_model *model, const bxn_adapter_plan *plan, uint64_t *trainable)
{
    bxn_adapter none = { .dora = plan->dora };
    bxn_adapter_plan copy = *plan;
    layout l = { .rank_of = rank_of_plan, .user = &copy, .adapter = &none };
    (void)bxn_model_weights(model, lay, &l);
    if (trainable != NULL)
        *trainable = l.parameters;
    return bxn_alloc_cost(model->weight_count * sizeof(bxn_lora)) + bxn_alloc_cost(l.floats * sizeof(float)) +
           (plan->dora ? bxn_alloc_cost(2 * l.gain_floats * sizeof(float)) : 0);
}

/* ---- first values ---------------------------------------------------------------------------------- */

typedef struct fill {
    bxn_adapter *adapter;
    uint64_t seed;
} fill;

static bitaxon_status fill_a(void *user, bxn_weight *w, const char *name, int32_t expert)
{
    const fill *f = user;
    const bxn_lora *lora = &f->adapter->loras[w->id - 1];
    if (expert >= 0 || lora->rank == 0)
        return BITAXON_OK;
    float *a = f->adapter->values + (lora->a - f->adapter->values);
    uint64_t key = XXH3_64bits(name, strlen(name)), place = 0;
    double bound = 1 / sqrt((double)w->cols);
    uint32_t word[4];
    for (uint32_t r = 0; r < lora->rank; r++)
        for (uint32_t k = 0; k < w->cols; k++, place++) {
            if (place % 4 == 0)
                bxn_philox(f->seed, key, place / 4, word);
            a[r * lora->lda + k] = (float)(bound * (((double)word[place % 4] + 0.5) * 0x1p-31 - 1));
        }
    if (lora->m != NULL) {
        float *m = f->adapter->values + (lora->m - f->adapter->values);
        const float *norm = f->adapter->norms + (lora->gain - f->adapter->gains);
        for (uint32_t o = 0; o < w->rows; o++)
            m[o] = sqrtf(norm[o]);
    }
    return BITAXON_OK;
}

bitaxon_status bxn_adapter_create(bxn_mem *mem, const bxn_model *model, const bxn_adapter_plan *plan,
                                  bxn_adapter *out, bitaxon_error *error)
{
    bxn_adapter_plan copy = *plan;
    memset(out, 0, sizeof *out);
    bitaxon_status status = check_plan(model, plan, error);
    if (status == BITAXON_OK)
        status = bxn_adapter_make(mem, model, plan->scale, plan->dora, rank_of_plan, &copy, out, error);
    if (status == BITAXON_OK)
        status = bxn_adapter_norms(model, out, error);
    if (status == BITAXON_OK) {
        fill f = { out, plan->seed };
        (void)bxn_model_weights(model, fill_a, &f);
        status = bxn_adapter_updated(model, out, true, NULL, error);
    }
    if (status != BITAXON_OK)
        bxn_adapter_free(out);
    return status;
}

/* ---- what follows from the values -------------------------------------------------------------------- */

/* What gains need, in one block for the time of a call. */
typedef struct derive {
    bxn_adapter *adapter;
    float *grad;
    bxn_train_pass pass;
    float *wa;
    size_t wa_floats;
    bool norms;
} derive;

static bitaxon_status measure(void *user, bxn_weight *w, const char *name, int32_t expert)
{
    derive *d = user;
    const bxn_lora *lora = &d->adapter->loras[w->id - 1];
    (void)name;
    if (expert >= 0 || lora->rank == 0)
        return BITAXON_OK;
    size_t scratch = bxn_dora_bytes(w, lora->rank), wa = lora->rank * lora->ldb;
    d->pass.scratch.bytes = scratch > d->pass.scratch.bytes ? scratch : d->pass.scratch.bytes;
    d->wa_floats = wa > d->wa_floats ? wa : d->wa_floats;
    return BITAXON_OK;
}

static bitaxon_status derive_weight(void *user, bxn_weight *w, const char *name, int32_t expert)
{
    derive *d = user;
    bxn_adapter *a = d->adapter;
    const bxn_lora *lora = &a->loras[w->id - 1];
    (void)name;
    if (expert >= 0 || lora->rank == 0)
        return BITAXON_OK;
    size_t at = (size_t)(lora->gain - a->gains);
    if (d->norms)
        return bxn_weight_norms(&d->pass.exec, w, a->norms + at);
    const float *dm = d->grad == NULL ? NULL : d->grad + (lora->m - a->values);
    float *da = d->grad == NULL ? NULL : d->grad + (lora->a - a->values);
    float *db = d->grad == NULL ? NULL : d->grad + (lora->b - a->values);
    return bxn_dora_gains(&d->pass, w, lora, a->norms + at, a->gains + at, d->wa, dm, da, db);
}

static bitaxon_status run(const bxn_model *model, bxn_adapter *adapter, bool norms, float *grad, bitaxon_error *error)
{
    derive d = { .adapter = adapter, .grad = grad, .norms = norms };
    (void)bxn_model_weights(model, measure, &d);
    size_t wa = bxn_round_up(d.wa_floats * sizeof(float), BXN_ALIGN), bytes = wa + d.pass.scratch.bytes;
    void *memory;
    bitaxon_status status = bxn_alloc(adapter->mem, bytes, "gains of an adapter", &memory, error);
    if (status != BITAXON_OK)
        return status;
    d.wa = memory;
    d.pass.scratch.memory = (unsigned char *)memory + wa;
    d.pass.exec = (bxn_exec){ .kernels = &model->kernels, .pool = model->pool, .error = error };
    status = bxn_model_weights(model, derive_weight, &d);
    bxn_free(adapter->mem, memory, bytes);
    if (status == BITAXON_SYSTEM)
        return bxn_fail(error, status, "the host's executor failed in the gains of an adapter");
    return status;
}

bitaxon_status bxn_adapter_norms(const bxn_model *model, bxn_adapter *adapter, bitaxon_error *error)
{
    return adapter->dora ? run(model, adapter, true, NULL, error) : BITAXON_OK;
}

/* Structure and values; what is padding is zero and belongs to them. */
static void identify(const bxn_model *model, bxn_adapter *a)
{
    XXH3_state_t state;
    XXH128_canonical_t canonical;
    const uint32_t facts[] = { 1, a->weight_count, a->dora, bxn_f32_bits(a->scale) };
    XXH3_128bits_reset(&state);
    XXH3_128bits_update(&state, model->fingerprint, sizeof model->fingerprint);
    XXH3_128bits_update(&state, facts, sizeof facts);
    for (uint32_t i = 0; i < a->weight_count; i++)
        XXH3_128bits_update(&state, &a->loras[i].rank, sizeof a->loras[i].rank);
    XXH3_128bits_update(&state, a->values, a->floats * sizeof(float));
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(&state));
    memcpy(a->id, canonical.digest, sizeof a->id);
}

bitaxon_status bxn_adapter_updated(const bxn_model *model, bxn_adapter *adapter, bool with_id, float *grad,
                                   bitaxon_error *error)
{
    bitaxon_status status = adapter->dora ? run(model, adapter, false, grad, error) : BITAXON_OK;
    if (status == BITAXON_OK && with_id)
        identify(model, adapter);
    return status;
}

/* ---- arrays ------------------------------------------------------------------------------------------ */

typedef struct each {
    const bxn_adapter *adapter;
    bxn_adapter_visitor visit;
    void *user;
} each;

static bitaxon_status each_weight(void *user, bxn_weight *w, const char *name, int32_t expert)
{
    const each *e = user;
    const bxn_adapter *a = e->adapter;
    const bxn_lora *lora = expert < 0 ? &a->loras[w->id - 1] : NULL; /* a plan has no experts in memory */
    char full[BXN_WEIGHT_NAME + 8];
    if (lora == NULL || lora->rank == 0)
        return BITAXON_OK;
    snprintf(full, sizeof full, "%s.lora_a", name);
    bitaxon_status status =
        e->visit(e->user, full, w->id, (size_t)(lora->a - a->values), lora->rank, w->cols, lora->lda);
    if (status != BITAXON_OK)
        return status;
    snprintf(full, sizeof full, "%s.lora_b", name);
    status = e->visit(e->user, full, w->id, (size_t)(lora->b - a->values), lora->rank, w->rows, lora->ldb);
    if (status != BITAXON_OK || lora->m == NULL)
        return status;
    snprintf(full, sizeof full, "%s.m", name);
    return e->visit(e->user, full, w->id, (size_t)(lora->m - a->values), 1, w->rows, rounded(w->rows));
}

bitaxon_status bxn_adapter_each(const bxn_model *model, const bxn_adapter *adapter, bxn_adapter_visitor visit,
                                void *user)
{
    each e = { adapter, visit, user };
    return bxn_model_weights(model, each_weight, &e);
}

static bitaxon_status add_values(void *user, const char *name, uint32_t weight_id, size_t offset, uint32_t rows,
                                 uint32_t cols, size_t ld)
{
    uint64_t *values = user;
    (void)name;
    (void)weight_id;
    (void)offset;
    (void)ld;
    *values += (uint64_t)rows * cols;
    return BITAXON_OK;
}

uint64_t bxn_adapter_values(const bxn_model *model, const bxn_adapter *adapter)
{
    uint64_t values = 0;
    (void)bxn_adapter_each(model, adapter, add_values, &values);
    return values;
}
