/* SPDX-License-Identifier: Apache-2.0 */
/* api_train.c - the public functions of train.h: argument checks, references, and the two results that
 * need floors beside training: adapters as handles, and the trained model as files. */
#include "api/api.h"

#include <math.h>
#include <string.h>

#include "convert/bxn_convert.h"

/* A copy of the host's parameters with the objective of its data; defaults come with the adapter. */
static bitaxon_status copy_params(const bitaxon_trainer_params *params, bitaxon_trainer_params *p,
                                  bitaxon_error *error)
{
    bitaxon_status status = bxn_copy_params(params, p, sizeof *p, 8, "bitaxon_trainer_params", error);
    if (status != BITAXON_OK)
        return status;
    int32_t own = p->data != NULL ? p->data->params.objective : 0;
    if (p->objective < 0 || p->objective > BITAXON_OBJECTIVE_ORPO)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "bitaxon_trainer_params: objective is %d", p->objective);
    if (own != 0 && p->objective != 0 && own != p->objective)
        return bxn_fail(error, BITAXON_MISMATCH, "the objective is %s, the data was opened for %s",
                        own == BITAXON_OBJECTIVE_SFT ? "ORPO" : "SFT", own == BITAXON_OBJECTIVE_SFT ? "SFT" : "ORPO");
    p->objective = own != 0 ? own : p->objective != 0 ? p->objective : BITAXON_OBJECTIVE_SFT;
    if (p->validation != NULL && p->validation->params.objective != p->objective)
        return bxn_fail(error, BITAXON_MISMATCH, "the validation data was opened for another objective than the data");
    return BITAXON_OK;
}

static uint32_t longest(const bitaxon_trainer_params *p)
{
    uint32_t most = p->data != NULL ? p->data->params.max_tokens : 2048;
    return p->validation != NULL && p->validation->params.max_tokens > most ? p->validation->params.max_tokens : most;
}

/* What runs on between examples that are not kept apart. */
static int32_t separator(const bitaxon_model *model)
{
    size_t count = 0;
    const int32_t *eos = model->tokenizer != NULL ? bxn_tokenizer_eos(model->tokenizer, &count) : NULL;
    return count != 0 ? eos[0] : -1;
}

/* Ids that a file was read as must mean the same to the model. Tokens that the host has are its own matter, and a model
 * that was opened without its tokenizer cannot tell. */
static bitaxon_status check_tokenizer(const bitaxon_model *model, const bitaxon_dataset *data, const char *what,
                                      bitaxon_error *error)
{
    if (data == NULL || !data->from_file || data->model == model || model->tokenizer == NULL)
        return BITAXON_OK;
    uint8_t its[16], own[16];
    bxn_tokenizer_identity(data->model->tokenizer, its);
    bxn_tokenizer_identity(model->tokenizer, own);
    if (memcmp(its, own, sizeof own) == 0)
        return BITAXON_OK;
    return bxn_fail(error, BITAXON_MISMATCH,
                    "%s was read with the tokenizer %02x%02x%02x%02x of %.60s, the model has %02x%02x%02x%02x of %.60s",
                    what, its[0], its[1], its[2], its[3], data->model->where, own[0], own[1], own[2], own[3],
                    model->where);
}

bitaxon_status bitaxon_trainer_create(bitaxon_model *model, const bitaxon_trainer_params *params,
                                      bitaxon_trainer **out, bitaxon_error *error)
{
    if (out == NULL)
        return bxn_null(error, "out");
    *out = NULL;
    if (model == NULL || params == NULL)
        return bxn_null(error, model == NULL ? "model" : "params");
    bitaxon_trainer_params p;
    void *memory;
    bitaxon_status status = copy_params(params, &p, error);
    if (status == BITAXON_OK && p.data == NULL)
        return bxn_null(error, "data");
    if (status == BITAXON_OK && p.adapter != NULL && p.adapter->model != model)
        status = bxn_fail(error, BITAXON_MISMATCH, "the adapter was opened for another model");
    if (status == BITAXON_OK)
        status = bxn_trainer_resolve(&p, longest(&p), p.adapter != NULL ? &p.adapter->core : NULL, error);
    if (status == BITAXON_OK && !model->has_weights)
        status = bxn_fail(error, BITAXON_BAD_STATE, "the model was opened for its tokenizer only");
    if (status == BITAXON_OK)
        status = check_tokenizer(model, p.data, "the data", error);
    if (status == BITAXON_OK)
        status = check_tokenizer(model, p.validation, "the validation data", error);
    if (status == BITAXON_OK)
        status = bxn_calloc(&model->mem, sizeof(bitaxon_trainer), "trainer", &memory, error);
    if (status != BITAXON_OK)
        return status;
    bitaxon_trainer *trainer = memory;
    status = bxn_trainer_init(&trainer->core, &model->mem, &model->core, separator(model), &p, p.data->core,
                              p.validation != NULL ? p.validation->core : NULL,
                              p.adapter != NULL ? &p.adapter->core : NULL,
                              p.thermal != NULL ? &p.thermal->core : NULL, error);
    if (status != BITAXON_OK) {
        bxn_free(&model->mem, trainer, sizeof *trainer);
        return status;
    }
    trainer->model = model;
    bxn_model_ref(model);
    trainer->data = p.data;
    bxn_dataset_ref(p.data);
    if (p.validation != NULL)
        bxn_dataset_ref(p.validation);
    trainer->validation = p.validation;
    if (p.thermal != NULL)
        bxn_thermal_ref(p.thermal);
    trainer->thermal = p.thermal;
    *out = trainer;
    return BITAXON_OK;
}

/* Micro-steps of so many epochs. Where the order says nothing of their number, one epoch is counted. */
static bitaxon_status micro_steps(const bitaxon_dataset *data, const bxn_packing *packing, double epochs, double *sum,
                                  bitaxon_error *error)
{
    const uint64_t counted = packing->shuffle && data->params.objective == BITAXON_OBJECTIVE_SFT ? 16 : 1;
    *sum = 0;
    for (uint64_t epoch = 0; epoch < counted && (double)epoch < epochs; epoch++) {
        double left = epochs - (double)epoch;
        uint64_t count;
        bitaxon_status status = bxn_packing_count(data->core, packing, epoch, &count, error);
        if (status != BITAXON_OK)
            return status;
        *sum += left < 1 ? left * (double)count : (double)count;
    }
    *sum *= epochs > (double)counted ? epochs / (double)counted : 1;
    return BITAXON_OK;
}

bitaxon_status bitaxon_trainer_epoch_steps(const bitaxon_trainer_params *params, double epochs, uint64_t *steps,
                                           bitaxon_error *error)
{
    if (params == NULL || steps == NULL)
        return bxn_null(error, params == NULL ? "params" : "steps");
    *steps = 0;
    bitaxon_trainer_params p;
    bxn_packing packing;
    double micro = 0;
    if (!(epochs > 0 && isfinite(epochs)))
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "epochs is %g, must be above 0", epochs);
    bitaxon_status status = copy_params(params, &p, error);
    if (status == BITAXON_OK && p.data == NULL)
        return bxn_null(error, "data");
    if (status == BITAXON_OK) {
        p.steps = 1;
        status = bxn_trainer_resolve(&p, longest(&p), p.adapter != NULL ? &p.adapter->core : NULL, error);
    }
    if (status != BITAXON_OK)
        return status;
    bxn_trainer_packing(&p, 0, &packing); /* whatever the separator is */
    status = micro_steps(p.data, &packing, epochs, &micro, error);
    if (status != BITAXON_OK)
        return status;
    double updates = micro / ((double)p.accumulate * p.machines) - 1e-9;
    if (updates > 0x1p53)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "%g epochs are %g updates", epochs, updates);
    *steps = updates > 0 ? (uint64_t)updates + 1 : 1;
    return BITAXON_OK;
}

void bitaxon_trainer_free(bitaxon_trainer *trainer)
{
    if (trainer == NULL)
        return;
    bitaxon_model *model = trainer->model;
    bxn_trainer_release(&trainer->core);
    bitaxon_thermal_free(trainer->thermal);
    bitaxon_dataset_free(trainer->validation);
    bitaxon_dataset_free(trainer->data);
    bxn_free(&model->mem, trainer, sizeof *trainer);
    bitaxon_model_free(model);
}

/* Tokens of a micro-step: what the data needs, else what the parameters allow. */
static bitaxon_status rows_of(bitaxon_model *model, const bitaxon_trainer_params *p, uint32_t *rows,
                              bitaxon_error *error)
{
    bxn_packing packing;
    bxn_packer *packer;
    *rows = bxn_trainer_rows(p);
    bxn_trainer_packing(p, 0, &packing);
    if (p->data == NULL)
        return BITAXON_OK;
    bitaxon_status status = bxn_packer_create(&model->mem, p->data->core, &packing, &packer, error);
    if (status != BITAXON_OK)
        return status;
    *rows = bxn_packer_rows(packer);
    bxn_packer_free(packer);
    if (p->validation == NULL)
        return BITAXON_OK;
    status = bxn_packer_create(&model->mem, p->validation->core, &packing, &packer, error);
    if (status == BITAXON_OK && bxn_packer_rows(packer) > *rows)
        *rows = bxn_packer_rows(packer);
    if (status == BITAXON_OK)
        bxn_packer_free(packer);
    return status;
}

/* What can be told of two models from their headers. */
static bool same_sizes(const bxn_config *a, const bxn_config *b)
{
    return a->vocab_size == b->vocab_size && a->hidden_dim == b->hidden_dim && a->num_layers == b->num_layers &&
           a->d_source_model == b->d_source_model && a->ssm_expand == b->ssm_expand &&
           a->moe_intermediate_dim == b->moe_intermediate_dim;
}

bitaxon_status bitaxon_trainer_estimate(const bitaxon_model_params *model, const bitaxon_trainer_params *params,
                                        bitaxon_train_estimate *out, bitaxon_error *error)
{
    if (model == NULL || params == NULL || out == NULL)
        return bxn_null(error, model == NULL ? "model" : params == NULL ? "params" : "out");
    bitaxon_trainer_params p;
    bitaxon_model *plan = NULL;
    bitaxon_estimate estimate;
    bxn_model shapes;
    uint32_t rows = 0;
    bitaxon_status status = copy_params(params, &p, error);
    if (status == BITAXON_OK)
        status = bxn_trainer_resolve(&p, longest(&p), p.adapter != NULL ? &p.adapter->core : NULL, error);
    if (status == BITAXON_OK)
        status = bxn_model_plan(model, &plan, &estimate, error);
    if (status == BITAXON_OK && p.method == BITAXON_TRAIN_FULL && plan->loaded.quantised)
        status = bxn_fail(error, BITAXON_UNSUPPORTED, "only float models train in full, and %s is quantised: "
                          "train an adapter, or the float model", plan->where);
    if (status == BITAXON_OK && p.adapter != NULL && !same_sizes(&plan->core.config, &p.adapter->model->core.config))
        status = bxn_fail(error, BITAXON_MISMATCH, "the adapter was opened for another model");
    if (status == BITAXON_OK)
        status = rows_of(plan, &p, &rows, error);
    if (status == BITAXON_OK)
        status = bxn_trainer_shapes(&plan->mem, &plan->core, &shapes, error);
    if (status == BITAXON_OK) {
        bitaxon_train_estimate e = { .struct_size = sizeof e, .mapped_bytes = estimate.mapped_bytes,
                                     .model_bytes = estimate.model_bytes };
        const bxn_adapter *start = p.adapter != NULL ? &p.adapter->core : NULL;
        bxn_trainer_measure(start != NULL ? &p.adapter->model->core : &shapes, &p, rows, start, &e);
        bxn_trainer_shapes_free(&plan->mem, &shapes);
        e.values_bytes += bxn_alloc_cost(sizeof(bitaxon_trainer));
        e.total_bytes = e.mapped_bytes + e.model_bytes + e.values_bytes + e.pass_bytes;
        if (e.total_bytes < estimate.load_peak_bytes)
            e.total_bytes = estimate.load_peak_bytes;
        status = bxn_copy_result(&e, out, sizeof e, 8, "bitaxon_train_estimate", error);
    }
    bitaxon_model_free(plan);
    return status;
}

/* The size that the caller gave is checked before anything is done. */
static bitaxon_status check_result(const bitaxon_train_result *result, bitaxon_error *error)
{
    bitaxon_train_result probe;
    if (result == NULL)
        return BITAXON_OK;
    memcpy(&probe.struct_size, &result->struct_size, sizeof probe.struct_size);
    return probe.struct_size >= 8 ? BITAXON_OK
                                  : bxn_fail(error, BITAXON_INVALID_ARGUMENT,
                                             "bitaxon_train_result: struct_size is %u, at least 8 is needed",
                                             probe.struct_size);
}

bitaxon_status bitaxon_trainer_step(bitaxon_trainer *trainer, bitaxon_train_result *result, bitaxon_error *error)
{
    if (trainer == NULL)
        return bxn_null(error, "trainer");
    bitaxon_train_result own;
    bitaxon_status status = check_result(result, error);
    if (status == BITAXON_OK)
        status = bxn_trainer_step(&trainer->core, &own, error);
    return status == BITAXON_OK && result != NULL
               ? bxn_copy_result(&own, result, sizeof own, 8, "bitaxon_train_result", error)
               : status;
}

bitaxon_status bitaxon_trainer_evaluate(bitaxon_trainer *trainer, uint64_t max_micro_steps,
                                        bitaxon_train_result *result, bitaxon_error *error)
{
    if (trainer == NULL)
        return bxn_null(error, "trainer");
    bitaxon_train_result own;
    bitaxon_status status = check_result(result, error);
    if (status == BITAXON_OK)
        status = bxn_trainer_evaluate(&trainer->core, max_micro_steps, &own, error);
    return status == BITAXON_OK && result != NULL
               ? bxn_copy_result(&own, result, sizeof own, 8, "bitaxon_train_result", error)
               : status;
}

void bitaxon_trainer_cancel(bitaxon_trainer *trainer)
{
    if (trainer != NULL)
        atomic_store(&trainer->core.cancel, 1);
}

bitaxon_status bitaxon_trainer_save(bitaxon_trainer *trainer, const char *directory, uint32_t keep,
                                    bitaxon_error *error)
{
    if (trainer == NULL || directory == NULL)
        return bxn_null(error, trainer == NULL ? "trainer" : "directory");
    if (directory[0] == '\0')
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "the directory's name is empty");
    return bxn_trainer_save(&trainer->core, directory, keep, error);
}

bitaxon_status bitaxon_trainer_resume(bitaxon_trainer *trainer, const char *directory, bitaxon_error *error)
{
    if (trainer == NULL || directory == NULL)
        return bxn_null(error, trainer == NULL ? "trainer" : "directory");
    if (directory[0] == '\0')
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "the directory's name is empty");
    return bxn_trainer_resume(&trainer->core, directory, error);
}

bitaxon_status bitaxon_trainer_adapter(bitaxon_trainer *trainer, bitaxon_adapter **out, bitaxon_error *error)
{
    if (out == NULL)
        return bxn_null(error, "out");
    *out = NULL;
    if (trainer == NULL)
        return bxn_null(error, "trainer");
    if (trainer->core.trainable != NULL)
        return bxn_fail(error, BITAXON_BAD_STATE, "all parameters train: there is no adapter");
    bitaxon_adapter *adapter = NULL;
    bitaxon_status status = bxn_trainer_settle(&trainer->core, true, error);
    if (status == BITAXON_OK)
        status = bxn_adapter_handle(trainer->model, &adapter, error);
    if (status != BITAXON_OK)
        return status;
    status = bxn_adapter_copy(&trainer->core.adapter, &trainer->model->mem, &adapter->core, error);
    if (status != BITAXON_OK) {
        bitaxon_adapter_free(adapter);
        return status;
    }
    *out = adapter;
    return BITAXON_OK;
}

static bitaxon_status read_values(void *user, const char *name, uint64_t first, size_t count, float *out,
                                  bitaxon_error *error)
{
    return bxn_trainable_read(user, name, first, count, out, error);
}

bitaxon_status bitaxon_trainer_write_model(bitaxon_trainer *trainer, const char *directory, bitaxon_error *error)
{
    if (trainer == NULL || directory == NULL)
        return bxn_null(error, trainer == NULL ? "trainer" : "directory");
    if (directory[0] == '\0')
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "the directory's name is empty");
    bxn_trainer *core = &trainer->core;
    if (core->trainable == NULL)
        return bxn_fail(error, BITAXON_BAD_STATE, "an adapter trains: merge it into the model instead");
    bitaxon_status status = bxn_trainer_settle(core, false, error);
    if (status != BITAXON_OK)
        return status;
    bitaxon_model *model = trainer->model;
    bxn_bundle *bundle = model->bundle, *opened = NULL;
    if (bundle == NULL && strlen(model->where) + 1 < sizeof model->where) { /* closed: nothing of it was in place */
        status = bxn_bundle_open(&model->mem, model->where, NULL, 0, 0, &opened, error);
        bundle = opened;
    } else if (bundle == NULL) {
        status = bxn_fail(error, BITAXON_IO, "the model's files are closed: its tokenizer cannot be copied");
    }
    bitaxon_host host = model->mem.host;
    host.struct_size = sizeof host;
    bitaxon_convert_params params = { .struct_size = sizeof params, .host = &host, .output = directory };
    bxn_tensor_values values = { read_values, core->trainable };
    if (status == BITAXON_OK)
        status = bxn_convert_write(&params, &model->core.config, bundle, model->tokenizer_files, &values, error);
    if (opened != NULL)
        bxn_bundle_free(opened);
    return status;
}

bitaxon_status bitaxon_trainer_get_info(const bitaxon_trainer *trainer, bitaxon_trainer_info *out,
                                        bitaxon_error *error)
{
    if (trainer == NULL || out == NULL)
        return bxn_null(error, trainer == NULL ? "trainer" : "out");
    const bxn_trainer *core = &trainer->core;
    bitaxon_train_estimate e = { .struct_size = sizeof e };
    bxn_trainer_measure(core->source, &core->params, core->runner.rows,
                        core->trainable == NULL ? &core->adapter : NULL, &e);
    bitaxon_trainer_info info = {
        .struct_size = sizeof info, .micro_rows = core->runner.rows, .step = core->at.step,
        .steps = core->params.steps, .epoch = core->at.cursor.epoch, .index = core->at.cursor.index,
        .trainable = core->trainable_values,
        .bytes = bxn_alloc_cost(sizeof *trainer) + e.values_bytes + e.pass_bytes,
        .tokens = core->at.tokens, .skipped_steps = core->at.skipped, .empty_micro_steps = core->at.empty,
    };
    return bxn_copy_result(&info, out, sizeof info, 8, "bitaxon_trainer_info", error);
}

bitaxon_status bitaxon_trainer_history(bitaxon_trainer *trainer, bitaxon_train_point *out, size_t capacity,
                                       size_t *count, bitaxon_error *error)
{
    if (trainer == NULL || count == NULL)
        return bxn_null(error, trainer == NULL ? "trainer" : "count");
    if (out == NULL && capacity != 0)
        return bxn_null(error, "out");
    if (capacity != 0 && out->struct_size != sizeof *out)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "bitaxon_train_point: struct_size is %u, this library has %zu",
                        out->struct_size, sizeof *out);
    const bxn_trainer *core = &trainer->core;
    for (size_t i = 0; i < core->history_count && i < capacity; i++) {
        const bxn_train_point *p = &core->history[i];
        out[i] = (bitaxon_train_point){ sizeof *out, p->evaluation != 0, p->step, p->loss, p->learning_rate,
                                        p->gradient_norm };
    }
    *count = core->history_count;
    if (core->history_count > capacity)
        return bxn_fail(error, BITAXON_LIMIT, "there are %zu points, room is for %zu", core->history_count, capacity);
    return BITAXON_OK;
}
