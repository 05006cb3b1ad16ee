/* SPDX-License-Identifier: Apache-2.0 */
/* api_cache.c - the exported functions of cache.h: handles and checks around
 * session/cache. */
#include "api/api.h"

#include <string.h>

void bxn_cache_unref(bitaxon_cache *cache)
{
    if (cache == NULL || atomic_fetch_sub(&cache->refs, 1) != 1)
        return;
    bitaxon_model *model = cache->model;
    bxn_cache_release(&cache->core);
    bxn_free(&model->mem, cache, sizeof *cache);
    bitaxon_model_free(model);
}

void bitaxon_cache_free(bitaxon_cache *cache) { bxn_cache_unref(cache); }

/* A handle without content. */
static bitaxon_status make(bitaxon_model *model, bitaxon_cache **out, bitaxon_error *error)
{
    void *memory;
    bitaxon_status status = bxn_calloc(&model->mem, sizeof **out, "cache", &memory, error);
    if (status != BITAXON_OK)
        return status;
    *out = memory;
    atomic_store(&(*out)->refs, 1);
    (*out)->model = model;
    bxn_model_ref(model);
    return BITAXON_OK;
}

bitaxon_status bitaxon_cache_create(bitaxon_model *model, const bitaxon_cache_params *params,
                                    bitaxon_cache **out, bitaxon_error *error)
{
    if (out == NULL)
        return bxn_null(error, "out");
    *out = NULL;
    if (model == NULL)
        return bxn_null(error, "model");
    if (!model->has_weights)
        return bxn_fail(error, BITAXON_BAD_STATE, "the model was opened for its tokenizer only");
    bitaxon_cache_params p;
    bitaxon_cache *cache = NULL;
    bitaxon_status status = bxn_copy_params(params, &p, sizeof p, 8, "bitaxon_cache_params", error);
    if (status == BITAXON_OK)
        status = bxn_cache_params_check(&model->core.config, &p, &p, error);
    if (status == BITAXON_OK)
        status = make(model, &cache, error);
    if (status == BITAXON_OK)
        status = bxn_cache_init(&cache->core, &model->mem, &model->core, &p, error);
    if (status != BITAXON_OK) {
        bxn_cache_unref(cache);
        return status;
    }
    *out = cache;
    return BITAXON_OK;
}

uint64_t bitaxon_cache_length(const bitaxon_cache *cache) { return cache == NULL ? 0 : cache->core.length; }

bitaxon_status bitaxon_cache_tokens(const bitaxon_cache *cache, uint64_t first, uint64_t count,
                                    int32_t *out, bitaxon_error *error)
{
    if (cache == NULL || (out == NULL && count != 0))
        return bxn_null(error, cache == NULL ? "cache" : "out");
    if (first > cache->core.length || count > cache->core.length - first)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "tokens %llu and %llu more: %llu are read",
                        (unsigned long long)first, (unsigned long long)count, (unsigned long long)cache->core.length);
    if (count != 0)
        memcpy(out, cache->core.tokens + first, count * sizeof *out);
    return BITAXON_OK;
}

bitaxon_status bitaxon_cache_checkpoint(bitaxon_cache *cache, bitaxon_error *error)
{
    return cache == NULL ? bxn_null(error, "cache") : bxn_cache_point(&cache->core, false, error);
}

bitaxon_status bitaxon_cache_checkpoint_drop(bitaxon_cache *cache, uint64_t position, bitaxon_error *error)
{
    return cache == NULL ? bxn_null(error, "cache") : bxn_cache_point_drop(&cache->core, position);
}

bitaxon_status bitaxon_cache_rewind_cost(const bitaxon_cache *cache, uint64_t position, uint64_t *from,
                                         uint64_t *replay, bitaxon_error *error)
{
    if (cache == NULL)
        return bxn_null(error, "cache");
    if (position > cache->core.length)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "rewind to %llu: only %llu tokens are read",
                        (unsigned long long)position, (unsigned long long)cache->core.length);
    uint64_t start;
    bxn_cache_cost(&cache->core, position, &start);
    if (from != NULL)
        *from = start;
    if (replay != NULL)
        *replay = position - start;
    return BITAXON_OK;
}

bitaxon_status bitaxon_cache_clone(bitaxon_cache *cache, bitaxon_cache **out, bitaxon_error *error)
{
    if (out == NULL)
        return bxn_null(error, "out");
    *out = NULL;
    if (cache == NULL)
        return bxn_null(error, "cache");
    bitaxon_cache *clone = NULL;
    bitaxon_status status = make(cache->model, &clone, error);
    if (status == BITAXON_OK)
        status = bxn_cache_copy(&clone->core, &cache->core, error);
    if (status != BITAXON_OK) {
        bxn_cache_unref(clone);
        return status;
    }
    *out = clone;
    return BITAXON_OK;
}

bitaxon_status bitaxon_cache_save(const bitaxon_cache *cache, const char *path, bitaxon_error *error)
{
    if (cache == NULL || path == NULL)
        return bxn_null(error, cache == NULL ? "cache" : "path");
    return bxn_cache_write(&cache->core, path, error);
}

bitaxon_status bitaxon_cache_load(bitaxon_cache *cache, const char *path, bitaxon_error *error)
{
    if (cache == NULL || path == NULL)
        return bxn_null(error, cache == NULL ? "cache" : "path");
    return bxn_cache_read(&cache->core, path, error);
}

void bitaxon_cache_reset(bitaxon_cache *cache)
{
    if (cache != NULL)
        bxn_cache_clear(&cache->core);
}
