/* SPDX-License-Identifier: Apache-2.0 */
/* cache.c - making, growing, cloning and freeing caches: states, pages, tokens. */
#include "session/bxn_cache.h"

#include <string.h>

static size_t state_size(size_t state_floats, uint32_t vocab)
{
    return BXN_ALIGN + (bxn_round_up(state_floats, 16) + vocab) * sizeof(float);
}

bitaxon_status bxn_state_create(bxn_mem *mem, const bxn_model *model, bxn_state **out,
                                bitaxon_error *error)
{
    void *memory;
    *out = NULL;
    bitaxon_status status = bxn_calloc(mem, state_size(model->state_floats, model->config.vocab_size),
                                       "scan state", &memory, error);
    if (status != BITAXON_OK)
        return status;
    bxn_state *state = memory;
    atomic_store(&state->refs, 1);
    state->scan = (float *)((char *)memory + BXN_ALIGN);
    state->logits = state->scan + bxn_round_up(model->state_floats, 16);
    *out = state;
    return BITAXON_OK;
}

void bxn_state_unref(bxn_mem *mem, const bxn_model *model, bxn_state *state)
{
    if (state != NULL && atomic_fetch_sub(&state->refs, 1) == 1)
        bxn_free(mem, state, state_size(model->state_floats, model->config.vocab_size));
}

static size_t page_size(const bxn_kv_layout *layout) { return BXN_PAGE_HEADER + layout->page_bytes; }

static bitaxon_status page_create(bxn_mem *mem, const bxn_kv_layout *layout, bxn_page **out,
                                  bitaxon_error *error)
{
    void *memory;
    *out = NULL;
    bitaxon_status status = bxn_alloc(mem, page_size(layout), "page of keys and values", &memory, error);
    if (status == BITAXON_OK) {
        *out = memory;
        atomic_store(&(*out)->refs, 1);
    }
    return status;
}

static void page_unref(bxn_mem *mem, const bxn_kv_layout *layout, bxn_page *page)
{
    if (atomic_fetch_sub(&page->refs, 1) == 1)
        bxn_free(mem, page, page_size(layout));
}

/* Pages that a window and a tile touch at once. */
static uint64_t page_capacity(const bxn_config *config, uint64_t max_tokens, bool tiles)
{
    uint64_t window = config->swa_window_size < max_tokens ? config->swa_window_size : max_tokens;
    uint64_t pages = (window + bxn_pass_tokens(tiles) + BXN_PAGE - 2) / BXN_PAGE + 1;
    uint64_t all = (max_tokens + BXN_PAGE - 1) / BXN_PAGE;
    return pages < all ? pages : all;
}

bitaxon_status bxn_cache_params_check(const bxn_config *config, const bitaxon_cache_params *params,
                                      bitaxon_cache_params *out, bitaxon_error *error)
{
    bitaxon_cache_params p = { .struct_size = sizeof p };
    if (params != NULL)
        p = *params;
    if (p.kv_type == BITAXON_KV_DEFAULT)
        p.kv_type = BITAXON_KV_F16;
    if (p.kv_type < BITAXON_KV_F16 || p.kv_type > BITAXON_KV_Q4)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "bitaxon_cache_params: kv_type %d is unknown", p.kv_type);
    if (p.max_tokens == 0)
        p.max_tokens = config->max_seq_len;
    if (p.max_tokens > config->max_seq_len)
        return bxn_fail(error, BITAXON_LIMIT,
                        "bitaxon_cache_params: max_tokens is %llu, the model's max_seq_len is %u",
                        (unsigned long long)p.max_tokens, config->max_seq_len);
    if (p.checkpoint_max == 0)
        p.checkpoint_max = 16;
    *out = p;
    return BITAXON_OK;
}

static void layout_for(bxn_kv_layout *layout, const bxn_config *config, uint32_t attention_layers, int32_t kv_type)
{
    bxn_kv_layout_init(layout, attention_layers, config->num_heads, config->hidden_dim / config->num_heads,
                       (bxn_kv_type)kv_type);
}

uint64_t bxn_cache_state_bytes(const bxn_config *config, size_t state_floats)
{
    return bxn_alloc_cost(state_size(state_floats, config->vocab_size));
}

static size_t phase_bytes(uint64_t max_tokens) { return (size_t)((max_tokens + 63) / 64) * sizeof(uint64_t); }

static uint64_t history_bytes(uint64_t max_tokens)
{
    return bxn_alloc_cost(max_tokens * sizeof(int32_t)) + bxn_alloc_cost(phase_bytes(max_tokens));
}

static uint64_t table_bytes(uint64_t capacity) { return 3 * bxn_alloc_cost(capacity * sizeof(void *)); }

uint64_t bxn_cache_bytes(const bxn_config *config, size_t state_floats, uint32_t attention_layers,
                         const bitaxon_cache_params *params, bool tiles)
{
    bxn_kv_layout layout;
    layout_for(&layout, config, attention_layers, params->kv_type);
    uint64_t capacity = layout.layers == 0 ? 0 : page_capacity(config, params->max_tokens, tiles);
    return bxn_cache_state_bytes(config, state_floats) + history_bytes(params->max_tokens) +
           capacity * bxn_alloc_cost(page_size(&layout)) + table_bytes(capacity);
}

uint64_t bxn_cache_fork_bytes(const bxn_config *config, size_t state_floats, uint32_t attention_layers,
                              const bitaxon_cache_params *params, bool tiles)
{
    bxn_kv_layout layout;
    layout_for(&layout, config, attention_layers, params->kv_type);
    uint64_t capacity = layout.layers == 0 ? 0 : page_capacity(config, params->max_tokens, tiles);
    return bxn_cache_state_bytes(config, state_floats) + history_bytes(params->max_tokens) +
           (layout.layers == 0 ? 0 : bxn_alloc_cost(page_size(&layout))) + table_bytes(capacity);
}

/* Tables and tokens, no state and no pages yet. */
static bitaxon_status make_tables(bxn_cache *cache, bitaxon_error *error)
{
    uint64_t capacity = cache->layout.layers == 0 ? 0 : page_capacity(&cache->model->config, cache->max_tokens,
                                                                        bxn_model_tiles(cache->model));
    void *memory;
    cache->page_capacity = (uint32_t)capacity;
    bitaxon_status status =
        bxn_alloc(cache->mem, cache->max_tokens * sizeof *cache->tokens, "token history", &memory, error);
    cache->tokens = memory;
    if (status == BITAXON_OK) {
        status = bxn_calloc(cache->mem, phase_bytes(cache->max_tokens), "phases of tokens", &memory, error);
        cache->phases = memory;
    }
    if (status == BITAXON_OK) {
        status = bxn_calloc(cache->mem, capacity * sizeof(void *), "page table", &memory, error);
        cache->pages = memory;
    }
    if (status == BITAXON_OK) {
        status = bxn_calloc(cache->mem, capacity * sizeof(void *), "page table", &memory, error);
        cache->data = memory;
    }
    if (status == BITAXON_OK) {
        status = bxn_calloc(cache->mem, capacity * sizeof(void *), "page table", &memory, error);
        cache->spare_pages = memory;
    }
    return status;
}

bitaxon_status bxn_cache_init(bxn_cache *cache, bxn_mem *mem, const bxn_model *model,
                              const bitaxon_cache_params *params, bitaxon_error *error)
{
    memset(cache, 0, sizeof *cache);
    cache->mem = mem;
    cache->model = model;
    cache->kv_type = params->kv_type;
    cache->max_tokens = params->max_tokens;
    cache->interval = params->checkpoint_interval;
    cache->automatic_max = params->checkpoint_max;
    layout_for(&cache->layout, &model->config, model->attention_count, params->kv_type);
    bitaxon_status status = make_tables(cache, error);
    if (status == BITAXON_OK)
        status = bxn_state_create(mem, model, &cache->state, error);
    while (status == BITAXON_OK && cache->spare_count < cache->page_capacity) {
        status = page_create(mem, &cache->layout, &cache->spare_pages[cache->spare_count], error);
        cache->spare_count += status == BITAXON_OK;
    }
    if (status != BITAXON_OK)
        bxn_cache_release(cache);
    return status;
}

/* A page leaves the cache: kept for reuse when nobody else has it and there is room. */
static void drop_page(bxn_cache *cache, bxn_page *page)
{
    if (atomic_load(&page->refs) == 1 && cache->spare_count + cache->page_count < cache->page_capacity)
        cache->spare_pages[cache->spare_count++] = page;
    else
        page_unref(cache->mem, &cache->layout, page);
}

static void drop_pages(bxn_cache *cache)
{
    while (cache->page_count > 0) {
        bxn_page *page = cache->pages[--cache->page_count];
        drop_page(cache, page);
    }
    cache->first_page = 0;
}

static void free_point(bxn_cache *cache, bxn_checkpoint *point)
{
    for (uint32_t i = 0; i < point->page_count; i++)
        page_unref(cache->mem, &cache->layout, point->pages[i]);
    bxn_free(cache->mem, point->pages, point->page_count * sizeof *point->pages);
    bxn_state_unref(cache->mem, cache->model, point->state);
}

void bxn_cache_release(bxn_cache *cache)
{
    bxn_mem *mem = cache->mem;
    if (mem == NULL)
        return;
    for (uint32_t i = 0; i < cache->point_count; i++)
        free_point(cache, &cache->points[i]);
    bxn_free(mem, cache->points, cache->point_capacity * sizeof *cache->points);
    for (uint32_t i = 0; i < cache->page_count; i++)
        page_unref(mem, &cache->layout, cache->pages[i]);
    for (uint32_t i = 0; i < cache->spare_count; i++)
        page_unref(mem, &cache->layout, cache->spare_pages[i]);
    bxn_free(mem, cache->spare_pages, cache->page_capacity * sizeof(void *));
    bxn_free(mem, cache->data, cache->page_capacity * sizeof(void *));
    bxn_free(mem, cache->pages, cache->page_capacity * sizeof(void *));
    bxn_free(mem, cache->phases, phase_bytes(cache->max_tokens));
    bxn_free(mem, cache->tokens, cache->max_tokens * sizeof *cache->tokens);
    bxn_state_unref(mem, cache->model, cache->state);
    bxn_state_unref(mem, cache->model, cache->reserve);
    bxn_sampler_free(mem, &cache->sampler);
    memset(cache, 0, sizeof *cache);
}

bitaxon_status bxn_cache_prepare(bxn_cache *cache, uint32_t count, bitaxon_error *error)
{
    if (cache->layout.layers == 0)
        return BITAXON_OK;
    /* Pages that no query from here on can see go first: they are what is filled next. */
    uint64_t window = cache->model->config.swa_window_size;
    uint64_t oldest = cache->length + 1 > window ? cache->length + 1 - window : 0;
    uint32_t gone = 0;
    while (gone < cache->page_count && (cache->first_page + gone + 1) * BXN_PAGE <= oldest)
        gone++;
    for (uint32_t i = 0; i < gone; i++) {
        bxn_page *page = cache->pages[i];
        if (atomic_load(&page->refs) == 1 && cache->spare_count < cache->page_capacity)
            cache->spare_pages[cache->spare_count++] = page;
        else
            page_unref(cache->mem, &cache->layout, page);
    }
    if (gone != 0) {
        cache->page_count -= gone;
        cache->first_page += gone;
        memmove(cache->pages, cache->pages + gone, cache->page_count * sizeof *cache->pages);
        memmove(cache->data, cache->data + gone, cache->page_count * sizeof *cache->data);
    }
    if (cache->page_count == 0)
        cache->first_page = cache->length / BXN_PAGE;

    uint64_t last = (cache->length + count - 1) / BXN_PAGE;
    for (uint64_t at = cache->length / BXN_PAGE; at <= last; at++) {
        uint32_t i = (uint32_t)(at - cache->first_page);
        bool present = i < cache->page_count;
        if (present && atomic_load(&cache->pages[i]->refs) == 1)
            continue;
        bxn_page *page;
        if (cache->spare_count > 0) {
            page = cache->spare_pages[--cache->spare_count];
        } else {
            bitaxon_status status = page_create(cache->mem, &cache->layout, &page, error);
            if (status != BITAXON_OK)
                return status;
        }
        if (present) { /* shared with a clone or a checkpoint: go on in a copy */
            memcpy((char *)page + BXN_PAGE_HEADER, cache->data[i], cache->layout.page_bytes);
            page_unref(cache->mem, &cache->layout, cache->pages[i]);
        } else {
            cache->page_count++;
        }
        cache->pages[i] = page;
        cache->data[i] = (char *)page + BXN_PAGE_HEADER;
    }
    return BITAXON_OK;
}

bxn_phase bxn_cache_phase(const bxn_cache *cache, uint64_t position)
{
    return (bxn_phase)(cache->phases[position / 64] >> position % 64 & 1);
}

uint32_t bxn_cache_phase_run(const bxn_cache *cache, uint64_t position, uint32_t most)
{
    uint32_t run = 0;
    while (run < most && position + run < cache->max_tokens &&
           bxn_cache_phase(cache, position + run) == bxn_cache_phase(cache, position))
        run++;
    return run;
}

void bxn_cache_commit(bxn_cache *cache, const int32_t *tokens, uint32_t count, bxn_phase phase,
                      bxn_state **spare)
{
    memmove(cache->tokens + cache->length, tokens, count * sizeof *tokens);
    for (uint64_t at = cache->length; at < cache->length + count; at++) {
        uint64_t bit = (uint64_t)1 << at % 64;
        cache->phases[at / 64] = phase == BXN_PHASE_DECODE ? cache->phases[at / 64] | bit
                                                           : cache->phases[at / 64] & ~bit;
    }
    cache->length += count;
    bxn_state *old = cache->state;
    cache->state = *spare;
    cache->state->has_logits = 1;
    if (atomic_load(&old->refs) == 1) {
        *spare = old;
        return;
    }
    bxn_state_unref(cache->mem, cache->model, old);
    *spare = cache->reserve;
    cache->reserve = NULL;
}

/* Whoever shares a state keeps another at hand: going on and starting over never fail for
 * want of it. */
static bitaxon_status ensure_reserve(bxn_cache *cache, bitaxon_error *error)
{
    return cache->reserve != NULL ? BITAXON_OK
                                  : bxn_state_create(cache->mem, cache->model, &cache->reserve, error);
}

void bxn_cache_clear(bxn_cache *cache)
{
    for (uint32_t i = 0; i < cache->point_count; i++)
        free_point(cache, &cache->points[i]);
    cache->point_count = 0;
    drop_pages(cache);
    cache->length = 0;
    if (atomic_load(&cache->state->refs) != 1) {
        bxn_state_unref(cache->mem, cache->model, cache->state);
        cache->state = cache->reserve;
        cache->reserve = NULL;
    }
    cache->state->has_logits = 0;
    memset(&cache->mark, 0, sizeof cache->mark);
    memset(cache->state->scan, 0, cache->model->state_floats * sizeof(float));
}

bitaxon_status bxn_cache_copy(bxn_cache *out, bxn_cache *from, bitaxon_error *error)
{
    memset(out, 0, sizeof *out);
    out->mem = from->mem;
    out->model = from->model;
    out->layout = from->layout;
    out->kv_type = from->kv_type;
    out->max_tokens = from->max_tokens;
    out->interval = from->interval;
    out->automatic_max = from->automatic_max;
    void *memory;
    bitaxon_status status = make_tables(out, error);
    if (status == BITAXON_OK)
        status = ensure_reserve(from, error);
    if (status == BITAXON_OK)
        status = ensure_reserve(out, error);
    if (status == BITAXON_OK)
        status = bxn_sampler_set(out->mem, &out->model->config, &out->sampler, &from->sampler.params, error);
    if (status == BITAXON_OK && from->point_count != 0) {
        status = bxn_calloc(out->mem, from->point_count * sizeof *out->points, "checkpoints", &memory, error);
        out->points = memory;
        out->point_capacity = status == BITAXON_OK ? from->point_count : 0;
    }
    for (uint32_t i = 0; i < from->point_count && status == BITAXON_OK; i++) {
        const bxn_checkpoint *src = &from->points[i];
        status = bxn_alloc(out->mem, src->page_count * sizeof *src->pages, "checkpoint", &memory, error);
        if (status != BITAXON_OK)
            break;
        out->points[i] = *src;
        out->points[i].pages = memory;
        if (src->page_count != 0)
            memcpy(memory, src->pages, src->page_count * sizeof *src->pages);
        for (uint32_t j = 0; j < src->page_count; j++)
            atomic_fetch_add(&src->pages[j]->refs, 1);
        atomic_fetch_add(&src->state->refs, 1);
        out->point_count++;
    }
    if (status != BITAXON_OK) {
        bxn_cache_release(out);
        return status;
    }
    atomic_fetch_add(&from->state->refs, 1);
    out->state = from->state;
    out->length = from->length;
    out->mark = from->mark;
    memcpy(out->tokens, from->tokens, from->length * sizeof *from->tokens);
    memcpy(out->phases, from->phases, phase_bytes(from->length));
    out->first_page = from->first_page;
    out->page_count = from->page_count;
    for (uint32_t i = 0; i < from->page_count; i++) {
        atomic_fetch_add(&from->pages[i]->refs, 1);
        out->pages[i] = from->pages[i];
        out->data[i] = from->data[i];
    }
    return BITAXON_OK;
}

bitaxon_status bxn_cache_tables(bxn_cache *out, const bxn_cache *like, uint32_t count,
                                bitaxon_error *error)
{
    memset(out, 0, sizeof *out);
    out->mem = like->mem;
    out->model = like->model;
    out->layout = like->layout;
    out->max_tokens = like->max_tokens;
    bitaxon_status status = make_tables(out, error);
    while (status == BITAXON_OK && out->page_count < count) {
        bxn_page *page;
        status = page_create(out->mem, &out->layout, &page, error);
        if (status == BITAXON_OK) {
            out->data[out->page_count] = (char *)page + BXN_PAGE_HEADER;
            out->pages[out->page_count++] = page;
        }
    }
    if (status != BITAXON_OK)
        bxn_cache_release(out);
    return status;
}

void bxn_cache_take_pages(bxn_cache *cache, bxn_cache *from, uint64_t first_page)
{
    /* The emptied cache keeps its own spare pages only as far as its ration goes. */
    while (cache->spare_count > 0 && cache->spare_count + from->page_count > cache->page_capacity)
        page_unref(cache->mem, &cache->layout, cache->spare_pages[--cache->spare_count]);
    for (uint32_t i = 0; i < from->page_count; i++) {
        cache->pages[i] = from->pages[i];
        cache->data[i] = from->data[i];
    }
    cache->page_count = from->page_count;
    cache->first_page = first_page;
    from->page_count = 0;
}

/* ---- checkpoints --------------------------------------------------------------------- */

/* Room in the list, and what going on from here will need: a state and the last page. */
static bitaxon_status reserve_for_point(bxn_cache *cache, bitaxon_error *error)
{
    bitaxon_status status;
    if (cache->point_count == cache->point_capacity) {
        uint32_t capacity = cache->point_capacity * 2 + 8;
        void *points = cache->points;
        status = bxn_realloc(cache->mem, &points, cache->point_capacity * sizeof *cache->points,
                             capacity * sizeof *cache->points, "checkpoints", error);
        if (status != BITAXON_OK)
            return status;
        cache->points = points;
        cache->point_capacity = capacity;
    }
    status = ensure_reserve(cache, error);
    if (status == BITAXON_OK && cache->layout.layers != 0 && cache->length % BXN_PAGE != 0 &&
        cache->spare_count == 0) {
        status = page_create(cache->mem, &cache->layout, &cache->spare_pages[0], error);
        cache->spare_count = status == BITAXON_OK;
    }
    return status;
}

static void remove_point(bxn_cache *cache, uint32_t index)
{
    free_point(cache, &cache->points[index]);
    cache->point_count--;
    memmove(cache->points + index, cache->points + index + 1, (cache->point_count - index) * sizeof *cache->points);
}

/* Keep at most automatic_max automatic checkpoints: drop the one whose loss widens a gap least. */
static void thin(bxn_cache *cache)
{
    uint32_t automatic = 0, best = UINT32_MAX;
    uint64_t best_gap = UINT64_MAX;
    for (uint32_t i = 0; i < cache->point_count; i++) {
        if (!cache->points[i].automatic)
            continue;
        automatic++;
        if (i + 1 == cache->point_count)
            continue; /* the newest stays */
        uint64_t before = i == 0 ? 0 : cache->points[i - 1].position;
        uint64_t gap = cache->points[i + 1].position - before;
        if (gap < best_gap) {
            best_gap = gap;
            best = i;
        }
    }
    if (automatic > cache->automatic_max && best != UINT32_MAX)
        remove_point(cache, best);
}

bitaxon_status bxn_cache_point(bxn_cache *cache, bool automatic, bitaxon_error *error)
{
    uint32_t n = cache->point_count;
    if (n > 0 && cache->points[n - 1].position == cache->length) {
        cache->points[n - 1].automatic &= automatic;
        return BITAXON_OK;
    }
    if (cache->length == 0)
        return BITAXON_OK; /* the empty state is always there */
    void *pages;
    bitaxon_status status = reserve_for_point(cache, error);
    if (status == BITAXON_OK)
        status = bxn_alloc(cache->mem, cache->page_count * sizeof *cache->pages, "checkpoint", &pages, error);
    if (status != BITAXON_OK)
        return status;
    bxn_checkpoint *point = &cache->points[cache->point_count++];
    *point = (bxn_checkpoint){ cache->length, cache->first_page, cache->state, pages, cache->page_count, automatic };
    atomic_fetch_add(&cache->state->refs, 1);
    for (uint32_t i = 0; i < cache->page_count; i++) {
        atomic_fetch_add(&cache->pages[i]->refs, 1);
        point->pages[i] = cache->pages[i];
    }
    if (automatic)
        thin(cache);
    return BITAXON_OK;
}

bool bxn_cache_drop_automatic(bxn_cache *cache)
{
    uint32_t before = cache->point_count;
    for (uint32_t i = before; i-- > 0;)
        if (cache->points[i].automatic)
            remove_point(cache, i);
    return cache->point_count != before;
}

bitaxon_status bxn_cache_point_drop(bxn_cache *cache, uint64_t position)
{
    for (uint32_t i = 0; i < cache->point_count; i++)
        if (cache->points[i].position == position) {
            remove_point(cache, i);
            return BITAXON_OK;
        }
    return BITAXON_END;
}

void bxn_cache_cost(const bxn_cache *cache, uint64_t position, uint64_t *from)
{
    *from = position == cache->length ? position : 0;
    for (uint32_t i = 0; i < cache->point_count; i++)
        if (cache->points[i].position <= position && cache->points[i].position > *from)
            *from = cache->points[i].position;
}

bitaxon_status bxn_cache_restore(bxn_cache *cache, uint64_t position, bitaxon_error *error)
{
    if (position == cache->length)
        return BITAXON_OK;
    uint64_t from;
    bxn_cache_cost(cache, position, &from);
    if (from == 0) {
        bxn_cache_clear(cache);
        return BITAXON_OK;
    }
    if (atomic_load(&cache->state->refs) != 1) { /* else the present state becomes the reserve */
        bitaxon_status status = ensure_reserve(cache, error);
        if (status != BITAXON_OK)
            return status;
    }
    while (cache->points[cache->point_count - 1].position > position)
        remove_point(cache, cache->point_count - 1);
    const bxn_checkpoint *point = &cache->points[cache->point_count - 1];
    for (uint32_t i = 0; i < point->page_count; i++)
        atomic_fetch_add(&point->pages[i]->refs, 1);
    drop_pages(cache);
    for (uint32_t i = 0; i < point->page_count; i++) {
        cache->pages[i] = point->pages[i];
        cache->data[i] = (char *)point->pages[i] + BXN_PAGE_HEADER;
    }
    cache->page_count = point->page_count;
    cache->first_page = point->first_page;
    atomic_fetch_add(&point->state->refs, 1);
    if (cache->reserve == NULL)
        cache->reserve = cache->state;
    else
        bxn_state_unref(cache->mem, cache->model, cache->state);
    cache->state = point->state;
    cache->length = point->position;
    return BITAXON_OK;
}
