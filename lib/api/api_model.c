/* SPDX-License-Identifier: Apache-2.0 */
/* api_model.c - opening, estimating and freeing models. Opening and estimating are one
 * path: an estimate plans the same load without touching data, so that it cannot tell
 * another story. */
#include "api/api.h"

#include <stdio.h>
#include <string.h>

#include "kernels/features.h"

#define KNOWN_FLAGS                                                                                          \
    (BITAXON_MODEL_NO_MMAP | BITAXON_MODEL_ALLOW_AMX | BITAXON_MODEL_TOKENIZER_ONLY | BITAXON_MODEL_NO_TOKENIZER)

const bxn_tokenizer *bxn_model_tokenizer(const bitaxon_model *model) { return model->tokenizer; }

/* The account is the one mutable part of a shared model, and synchronised by itself. */
bxn_mem *bxn_model_mem(const bitaxon_model *model) { return (bxn_mem *)(uintptr_t)&model->mem; }

void bxn_model_ref(bitaxon_model *model) { atomic_fetch_add(&model->refs, 1); }

static void destroy(bitaxon_model *model)
{
    bxn_mem mem;
    bxn_pool_free(model->core.pool);
    bxn_tokenizer_free(model->tokenizer);
    bxn_import_free(&model->mem, &model->core, &model->loaded);
    if (model->tokenizer_files != NULL)
        bxn_bundle_free(model->tokenizer_files);
    if (model->bundle != NULL)
        bxn_bundle_free(model->bundle);
    memcpy(&mem, &model->mem, sizeof mem); /* the account ends with the model's own bytes */
    bxn_free(&mem, model, sizeof *model);
}

void bitaxon_model_free(bitaxon_model *model)
{
    if (model != NULL && atomic_fetch_sub(&model->refs, 1) == 1)
        destroy(model);
}

static bitaxon_status check_params(const bitaxon_model_params *p, bitaxon_error *error)
{
    if ((p->path == NULL) == (p->files == NULL))
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "bitaxon_model_params: give either path or files");
    if (p->files == NULL && p->file_count != 0)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "bitaxon_model_params: file_count is %u, files is NULL",
                        p->file_count);
    if ((p->flags & ~(uint32_t)KNOWN_FLAGS) != 0)
        return bxn_fail(error, BITAXON_UNSUPPORTED, "bitaxon_model_params: unknown flags 0x%x",
                        p->flags & ~(uint32_t)KNOWN_FLAGS);
    if ((p->flags & BITAXON_MODEL_TOKENIZER_ONLY) != 0 && (p->flags & BITAXON_MODEL_NO_TOKENIZER) != 0)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT,
                        "bitaxon_model_params: TOKENIZER_ONLY and NO_TOKENIZER leave nothing to open");
    if (p->tokenizer != NULL && (p->flags & BITAXON_MODEL_NO_TOKENIZER) != 0)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT,
                        "bitaxon_model_params: a tokenizer is given, and the flags say NO_TOKENIZER");
    if (p->accuracy < BITAXON_ACCURACY_DEFAULT || p->accuracy > BITAXON_ACCURACY_FAST)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "bitaxon_model_params: accuracy %d is unknown", p->accuracy);
    if (p->reserved0 != 0)
        return bxn_fail(error, BITAXON_UNSUPPORTED, "bitaxon_model_params: reserved0 is %u, must be 0", p->reserved0);
    if (p->threads > 256)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "bitaxon_model_params: threads is %u, at most 256",
                        p->threads);
    return BITAXON_OK;
}

static bitaxon_status open_config(bitaxon_model *model, bitaxon_error *error)
{
    bxn_file *file = bxn_bundle_find(model->bundle, "config.json");
    char *text;
    size_t bytes;
    if (file == NULL)
        return bxn_fail(error, BITAXON_IO, "%s: no config.json", model->bundle->where);
    bitaxon_status status = bxn_file_text(model->bundle, file, BXN_MAX_JSON_BYTES, &text, &bytes, error);
    if (status != BITAXON_OK)
        return status;
    status = bxn_config_parse(&model->mem, text, bytes, "config.json", &model->core.config, error);
    bxn_free(&model->mem, text, bytes + 1);
    return status;
}

/* Text of an optional file: NULL when absent. */
static bitaxon_status optional_text(bxn_bundle *bundle, const char *name, char **text, size_t *bytes,
                                    bitaxon_error *error)
{
    bxn_file *file = bxn_bundle_find(bundle, name);
    *text = NULL;
    *bytes = 0;
    return file == NULL ? BITAXON_OK : bxn_file_text(bundle, file, BXN_MAX_JSON_BYTES, text, bytes, error);
}

/* From the directory that params name, or from the model's own files. */
static bitaxon_status open_tokenizer(bitaxon_model *model, const bitaxon_model_params *p, bitaxon_error *error)
{
    bool alone = (p->flags & BITAXON_MODEL_TOKENIZER_ONLY) != 0;
    bool required = alone || p->tokenizer != NULL;
    static const char *const names[3] = { "tokenizer.json", "tokenizer_config.json", "generation_config.json" };
    char *text[3] = { NULL, NULL, NULL };
    size_t bytes[3] = { 0, 0, 0 };
    bitaxon_status status = BITAXON_OK;
    if (p->tokenizer != NULL)
        status = bxn_bundle_open(&model->mem, p->tokenizer, NULL, 0, BXN_BUNDLE_NO_WEIGHTS | BXN_BUNDLE_NO_MMAP,
                                 &model->tokenizer_files, error);
    if (status != BITAXON_OK)
        return status;
    bxn_bundle *bundle = p->tokenizer != NULL ? model->tokenizer_files : model->bundle;
    if (bxn_bundle_find(bundle, names[0]) == NULL)
        return required ? bxn_fail(error, BITAXON_IO, "%s: no tokenizer.json", bundle->where) : BITAXON_OK;
    for (int i = 0; i < 3 && status == BITAXON_OK; i++)
        status = optional_text(bundle, names[i], &text[i], &bytes[i], error);
    if (status == BITAXON_OK)
        status = bxn_tokenizer_create(&model->mem, bundle->where, text[0], bytes[0], text[1], bytes[1],
                                      text[2], bytes[2], &model->tokenizer, error);
    for (int i = 0; i < 3; i++)
        if (text[i] != NULL)
            bxn_free(&model->mem, text[i], bytes[i] + 1);
    if (status == BITAXON_OK && !alone && bxn_tokenizer_size(model->tokenizer) > model->core.config.vocab_size)
        bxn_log(&model->mem, BITAXON_LOG_WARNING, "%s: the tokenizer has %u ids, the model %u rows",
                bundle->where, bxn_tokenizer_size(model->tokenizer), model->core.config.vocab_size);
    return status;
}

/* Pages of mapped files that only served repacking are let go; files of which nothing is used in
 * place are closed. */
static void settle_files(bitaxon_model *model)
{
    if (model->loaded.mapped_bytes == 0) {
        bxn_bundle_free(model->bundle);
        model->bundle = NULL;
        return;
    }
    for (uint32_t i = 0; i < model->bundle->count && !model->packed; i++)
        if (model->bundle->files[i].owned && model->bundle->files[i].map != NULL)
            bxn_release_pages(model->bundle->files[i].map, model->bundle->files[i].source.size);
}

/* A system that refuses AMX is no reason to fail: everything runs without it. */
static uint64_t choose_features(const bitaxon_model *model, const bitaxon_model_params *p)
{
    uint64_t mask = p->cpu_mask == 0 ? ~(uint64_t)0 : p->cpu_mask & ~BITAXON_CPU_NONE;
    int refused;
    uint64_t features = bxn_features_choose(bxn_cpu_detect(), mask, (p->flags & BITAXON_MODEL_ALLOW_AMX) != 0, NULL,
                                            NULL, &refused);
    if (refused != 0)
        bxn_log(&model->mem, BITAXON_LOG_WARNING, "AMX is not used: the system refuses it (error %d)", refused);
    return features;
}

/* Headers, configuration, weights or their plan, tokenizer. estimate NULL: open. */
static bitaxon_status open_all(bitaxon_model *model, const bitaxon_model_params *p, bitaxon_estimate *estimate,
                               bitaxon_error *error)
{
    bool plan = estimate != NULL, weights = (p->flags & BITAXON_MODEL_TOKENIZER_ONLY) == 0;
    uint32_t flags =
        (p->flags & BITAXON_MODEL_NO_MMAP ? BXN_BUNDLE_NO_MMAP : 0) | (weights ? 0 : BXN_BUNDLE_NO_WEIGHTS);
    bxn_progress progress = { p->progress, p->progress_user, BITAXON_STAGE_LOAD, 0, 1 };
    bxn_tensors *tensors = NULL;
    bitaxon_status status =
        bxn_bundle_open(&model->mem, p->path, p->files, p->file_count, flags, &model->bundle, error);
    if (status != BITAXON_OK)
        return status;
    snprintf(model->where, sizeof model->where, "%s", model->bundle->where);
    if (weights)
        status = open_config(model, error);
    if (status == BITAXON_OK && (p->flags & BITAXON_MODEL_NO_TOKENIZER) == 0)
        status = open_tokenizer(model, p, error);
    if (status == BITAXON_OK && !weights) { /* nothing is read any more */
        bxn_bundle_free(model->bundle);
        model->bundle = NULL;
    }
    if (status != BITAXON_OK || !weights)
        return status;

    uint32_t threads = p->threads != 0 ? p->threads : bxn_cpu_count();
    bxn_kernels_init(&model->core.kernels, choose_features(model, p));
    status = bxn_tensors_open(model->bundle, &tensors, error);
    if (status == BITAXON_OK && tensors->count == 0)
        status = bxn_fail(error, BITAXON_IO, "%s: no .safetensors file with tensors", model->bundle->where);
    if (status == BITAXON_OK && !plan)
        status = bxn_pool_create(&model->mem, threads, &model->core.pool, error);
    uint64_t before = atomic_load(&model->mem.used);
    if (status == BITAXON_OK)
        status = bxn_progress_step(&progress, 0, NULL, error);
    if (status == BITAXON_OK)
        status = bxn_import_bit_axon(&model->mem, tensors, plan, &progress, &model->core, &model->loaded, error);
    if (status == BITAXON_OK) {
        int32_t best = model->core.kernels.features != 0 ? BITAXON_ACCURACY_NEAR : BITAXON_ACCURACY_EXACT;
        model->core.accuracy = p->accuracy == BITAXON_ACCURACY_DEFAULT ? best : p->accuracy;
        if (!plan && model->core.accuracy != BITAXON_ACCURACY_EXACT)
            bxn_model_integers(&model->core, model->core.accuracy == BITAXON_ACCURACY_FAST);
        model->has_weights = true;
        model->packed = bxn_tensors_meta(tensors, "bitaxon.packed") != NULL;
    }
    if (tensors != NULL)
        bxn_tensors_free(tensors);
    if (status != BITAXON_OK)
        return status;
    settle_files(model);
    const bxn_config *config = &model->core.config;
    bxn_config_parameters(config, !model->core.tied, &model->parameters, &model->active_parameters);
    model->mapped_bytes = atomic_load(&model->mem.mapped);
    if (plan) {
        uint64_t pool = bxn_pool_bytes(threads), peak = atomic_load(&model->mem.peak);
        estimate->mapped_bytes = model->mapped_bytes;
        estimate->model_bytes = atomic_load(&model->mem.used) + model->loaded.private_bytes + pool;
        estimate->load_peak_bytes = before + pool + model->loaded.peak_bytes;
        if (estimate->load_peak_bytes < peak + pool)
            estimate->load_peak_bytes = peak + pool;
        if (estimate->load_peak_bytes < estimate->model_bytes)
            estimate->load_peak_bytes = estimate->model_bytes;
        estimate->parameters = model->parameters;
        estimate->active_parameters = model->active_parameters;
    }
    return BITAXON_OK;
}

static bitaxon_status make(const bitaxon_model_params *p, bitaxon_model **out, bitaxon_error *error)
{
    bxn_mem mem;
    void *memory;
    bitaxon_status status = bxn_mem_init(&mem, p->host, p->max_bytes, error);
    if (status == BITAXON_OK)
        status = bxn_calloc(&mem, sizeof(bitaxon_model), "model", &memory, error);
    if (status != BITAXON_OK)
        return status;
    *out = memory;
    memcpy(&(*out)->mem, &mem, sizeof mem);
    atomic_store(&(*out)->refs, 1);
    return BITAXON_OK;
}

bitaxon_status bitaxon_model_open(const bitaxon_model_params *params, bitaxon_model **out, bitaxon_error *error)
{
    if (out == NULL)
        return bxn_null(error, "out");
    *out = NULL;
    if (params == NULL)
        return bxn_null(error, "params");
    bitaxon_model_params p;
    bitaxon_model *model = NULL;
    bitaxon_status status = bxn_copy_params(params, &p, sizeof p, 8, "bitaxon_model_params", error);
    if (status == BITAXON_OK)
        status = check_params(&p, error);
    if (status == BITAXON_OK)
        status = make(&p, &model, error);
    if (status == BITAXON_OK)
        status = open_all(model, &p, NULL, error);
    if (status != BITAXON_OK) {
        bitaxon_model_free(model);
        return status;
    }
    *out = model;
    return BITAXON_OK;
}

bitaxon_status bxn_model_plan(const bitaxon_model_params *params, bitaxon_model **out, bitaxon_estimate *estimate,
                              bitaxon_error *error)
{
    bitaxon_model_params p;
    bitaxon_model *model = NULL;
    *out = NULL;
    *estimate = (bitaxon_estimate){ .struct_size = sizeof *estimate };
    bitaxon_status status = bxn_copy_params(params, &p, sizeof p, 8, "bitaxon_model_params", error);
    if (status == BITAXON_OK)
        status = check_params(&p, error);
    if (status == BITAXON_OK && (p.flags & BITAXON_MODEL_TOKENIZER_ONLY) != 0)
        status = bxn_fail(error, BITAXON_INVALID_ARGUMENT, "an estimate needs weights, the flags say TOKENIZER_ONLY");
    if (status == BITAXON_OK)
        status = make(&p, &model, error);
    if (status == BITAXON_OK)
        status = open_all(model, &p, estimate, error);
    if (status != BITAXON_OK) {
        bitaxon_model_free(model);
        return status;
    }
    *out = model;
    return BITAXON_OK;
}

bitaxon_status bitaxon_model_estimate(const bitaxon_model_params *params, const bitaxon_cache_params *cache,
                                      bitaxon_estimate *out, bitaxon_error *error)
{
    if (params == NULL || out == NULL)
        return bxn_null(error, params == NULL ? "params" : "out");
    bitaxon_cache_params c;
    bitaxon_model *model = NULL;
    bitaxon_estimate estimate;
    bitaxon_status status = bxn_copy_params(cache, &c, sizeof c, 8, "bitaxon_cache_params", error);
    if (status == BITAXON_OK)
        status = bxn_model_plan(params, &model, &estimate, error);
    if (status == BITAXON_OK)
        status = bxn_cache_params_check(&model->core.config, &c, &c, error);
    if (status == BITAXON_OK) {
        const bxn_config *config = &model->core.config;
        size_t state = bxn_config_state_floats(config);
        uint32_t layers = bxn_config_attention_layers(config);
        bool tiles = bxn_model_tiles(&model->core);
        uint64_t handle = bxn_alloc_cost(sizeof(bitaxon_cache));
        estimate.session_bytes = bxn_alloc_cost(sizeof(bitaxon_session)) +
                                 bxn_session_bytes(config, state, c.max_tokens, tiles);
        estimate.cache_bytes = handle + bxn_cache_bytes(config, state, layers, &c, tiles);
        estimate.checkpoint_bytes = handle + bxn_cache_fork_bytes(config, state, layers, &c, tiles);
        status = bxn_copy_result(&estimate, out, sizeof estimate, 8, "bitaxon_estimate", error);
    }
    bitaxon_model_free(model);
    return status;
}
