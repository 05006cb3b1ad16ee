/* SPDX-License-Identifier: Apache-2.0 */
/* api_dataset.c - the public functions of dataset.h: argument checks, references; the work is in lib/train. */
#include "api/api.h"

#include <string.h>

static bitaxon_status resolve(bitaxon_dataset_params *p, bitaxon_error *error)
{
    if ((p->flags & ~(uint32_t)BITAXON_DATASET_STRICT) != 0)
        return bxn_fail(error, BITAXON_UNSUPPORTED, "bitaxon_dataset_params: unknown flags 0x%x",
                        p->flags & ~(uint32_t)BITAXON_DATASET_STRICT);
    if (p->reserved0 != 0)
        return bxn_fail(error, BITAXON_UNSUPPORTED, "bitaxon_dataset_params: reserved0 is %u, must be 0", p->reserved0);
    p->objective = p->objective == 0 ? BITAXON_OBJECTIVE_SFT : p->objective;
    p->mask = p->mask == 0 ? BITAXON_MASK_CONTENT : p->mask;
    p->max_tokens = p->max_tokens == 0 ? 2048 : p->max_tokens;
    if (p->objective != BITAXON_OBJECTIVE_SFT && p->objective != BITAXON_OBJECTIVE_ORPO)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "bitaxon_dataset_params: objective is %d", p->objective);
    if (p->mask < BITAXON_MASK_CONTENT || p->mask > BITAXON_MASK_ALL)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "bitaxon_dataset_params: mask is %d", p->mask);
    return BITAXON_OK;
}

static bitaxon_status open_core(bitaxon_dataset *dataset, const bitaxon_dataset_params *p, bitaxon_error *error)
{
    bxn_mem *mem = &dataset->model->mem;
    const bxn_tokenizer *tokenizer = dataset->model->tokenizer;
    bxn_dataset_params params = {
        .path = p->path,
        .objective = p->objective == BITAXON_OBJECTIVE_ORPO ? BXN_OBJECTIVE_ORPO : BXN_OBJECTIVE_SFT,
        .mask = p->mask == BITAXON_MASK_REFERENCE ? BXN_MASK_REFERENCE
                : p->mask == BITAXON_MASK_ALL     ? BXN_MASK_ALL
                                                  : BXN_MASK_CONTENT,
        .max_tokens = p->max_tokens,
        .strict = (p->flags & BITAXON_DATASET_STRICT) != 0,
    };
    bxn_progress progress = { p->progress, p->progress_user, BITAXON_STAGE_LOAD, 0, 1 };
    if (p->path == NULL)
        return bxn_dataset_create(mem, &params, &dataset->core, error);
    if (tokenizer == NULL)
        return bxn_fail(error, BITAXON_BAD_STATE, "the model has no tokenizer to read data with");
    return bxn_dataset_open(mem, tokenizer, &params, &progress, &dataset->core, error);
}

bitaxon_status bitaxon_dataset_open(bitaxon_model *model, const bitaxon_dataset_params *params, bitaxon_dataset **out,
                                    bitaxon_error *error)
{
    if (out == NULL)
        return bxn_null(error, "out");
    *out = NULL;
    if (model == NULL)
        return bxn_null(error, "model");
    bitaxon_dataset_params p;
    void *memory;
    bitaxon_status status = bxn_copy_params(params, &p, sizeof p, 8, "bitaxon_dataset_params", error);
    if (status == BITAXON_OK)
        status = resolve(&p, error);
    if (status == BITAXON_OK)
        status = bxn_calloc(&model->mem, sizeof(bitaxon_dataset), "data set", &memory, error);
    if (status != BITAXON_OK)
        return status;
    bitaxon_dataset *dataset = memory;
    atomic_init(&dataset->refs, 1);
    dataset->model = model;
    bxn_model_ref(model);
    dataset->from_file = p.path != NULL;
    status = open_core(dataset, &p, error);
    p.path = NULL;
    p.progress = NULL;
    p.progress_user = NULL;
    dataset->params = p;
    if (status != BITAXON_OK) {
        bitaxon_dataset_free(dataset);
        return status;
    }
    *out = dataset;
    return BITAXON_OK;
}

bitaxon_status bitaxon_dataset_add(bitaxon_dataset *dataset, const int32_t *tokens, const uint8_t *mask, size_t count,
                                   bitaxon_error *error)
{
    if (dataset == NULL || tokens == NULL)
        return bxn_null(error, dataset == NULL ? "dataset" : "tokens");
    if (dataset->from_file)
        return bxn_fail(error, BITAXON_BAD_STATE, "the data set is that of a file");
    if (atomic_load(&dataset->taken) != 0)
        return bxn_fail(error, BITAXON_BAD_STATE, "a trainer has the data set: nothing is added to it any more");
    if (mask != NULL)
        return bxn_dataset_add(dataset->core, tokens, mask, count, error);
    bxn_mem *mem = &dataset->model->mem;
    void *all;
    bitaxon_status status = bxn_alloc(mem, count, "mask", &all, error);
    if (status != BITAXON_OK)
        return status;
    memset(all, 1, count);
    status = bxn_dataset_add(dataset->core, tokens, all, count, error);
    bxn_free(mem, all, count);
    return status;
}

bitaxon_status bitaxon_dataset_get_info(const bitaxon_dataset *dataset, bitaxon_dataset_info *out,
                                        bitaxon_error *error)
{
    if (dataset == NULL || out == NULL)
        return bxn_null(error, dataset == NULL ? "dataset" : "out");
    bxn_dataset_facts facts;
    bxn_dataset_facts_get(dataset->core, &facts);
    bitaxon_dataset_info info = { .struct_size = sizeof info, .vocabulary = facts.vocabulary,
                                  .examples = facts.examples, .bad_lines = facts.bad_lines, .empty = facts.empty,
                                  .tokens = facts.tokens, .counted = facts.counted, .cut = facts.cut,
                                  .cut_empty = facts.cut_empty };
    memcpy(info.id, facts.id, sizeof info.id);
    return bxn_copy_result(&info, out, sizeof info, 8, "bitaxon_dataset_info", error);
}

void bxn_dataset_ref(bitaxon_dataset *dataset)
{
    atomic_store(&dataset->taken, 1);
    atomic_fetch_add(&dataset->refs, 1);
}

void bitaxon_dataset_free(bitaxon_dataset *dataset)
{
    if (dataset == NULL || atomic_fetch_sub(&dataset->refs, 1) != 1)
        return;
    bitaxon_model *model = dataset->model;
    bxn_dataset_free(dataset->core);
    bxn_free(&model->mem, dataset, sizeof *dataset);
    bitaxon_model_free(model);
}
