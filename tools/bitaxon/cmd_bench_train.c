/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_bench_train.c - what `bitaxon bench` measures of training: updates of LoRA adapters of rank 8 on all that can be
 * adapted, a block of random tokens each, beside the f32 peak, and memory beside what was told before. */
#include "cmd_bench.h"

#include <stdlib.h>

enum { RANK = 8 };

/* Operations of an update that are counted: of what is frozen forward and the gradient of its input, of adapters their
 * own gradient too, of attention six products of length hidden for each key that a token sees. What is computed twice
 * is counted once. */
static double update_flops(const bench_facts *facts, uint64_t length, uint64_t trainable)
{
    double n = (double)length;
    return 4.0 * (double)facts->active * n + 6.0 * (double)trainable * n +
           12.0 * facts->hidden * facts->attention_layers * bench_keys(facts, length);
}

/* `length` tokens that all count. */
static bitaxon_status make_data(const bench_run *run, uint64_t length, bitaxon_dataset **data, bitaxon_error *error)
{
    bitaxon_dataset_params params = {.struct_size = sizeof params, .max_tokens = (uint32_t)length};
    bitaxon_status status = bitaxon_dataset_open(run->model, &params, data, error);
    if (status == BITAXON_OK) {
        int32_t *ids = bench_prompt(run, 0, length);
        status = bitaxon_dataset_add(*data, ids, NULL, (size_t)length, error);
        free(ids);
    }
    return status;
}

static bitaxon_status told_bytes(bench_run *run, const bitaxon_trainer_params *params, double *bytes,
                                 bitaxon_error *error)
{
    bitaxon_host host;
    bitaxon_model_params model;
    bitaxon_train_estimate told = {.struct_size = sizeof told};
    tool_model_params(run->path, &run->args->model, BITAXON_MODEL_NO_TOKENIZER, &run->progress, &host, &model);
    model.progress = NULL;
    bitaxon_status status = bitaxon_trainer_estimate(&model, params, &told, error);
    *bytes = (double)told.total_bytes;
    return status;
}

static bitaxon_status updates(bench_run *run, bitaxon_trainer *trainer, uint64_t length, uint32_t rounds,
                              bench_row *row, bitaxon_error *error)
{
    bitaxon_trainer_info info = {.struct_size = sizeof info};
    bitaxon_status status = bitaxon_trainer_get_info(trainer, &info, error);
    double seconds = 3.0 * (double)length / run->prefill_rate; /* forward, again, backward */
    for (uint32_t i = 0; i < rounds && status == BITAXON_OK; i++) {
        bitaxon_train_result result = {.struct_size = sizeof result};
        if (!bench_go_on(run, row->name, i, rounds, seconds)) {
            break;
        }
        double before = bench_peak_now(run, run->float_peak, 3);
        bench_watch_trainer(trainer);
        status = bitaxon_trainer_step(trainer, &result, error);
        bench_watch_trainer(NULL);
        if (status == BITAXON_OK) {
            seconds = (double)result.step_ns * 1e-9;
            bench_add(&row->value, (double)length / seconds);
            bench_add(&row->rate, update_flops(&run->facts, length, info.trainable) / seconds);
            bench_add(&row->limit, (before + bench_peak_now(run, run->float_peak, 3)) / 2);
        }
    }
    return status;
}

int bench_measure_train(bench_run *run, uint64_t length, uint32_t rounds)
{
    bench_row *row = bench_row_add(run, BENCH_TOKENS, "train_lora", "LoRA of rank %d, %llu tokens", RANK,
                                   (unsigned long long)length);
    bench_row *peak = bench_row_add(run, BENCH_BYTES, "train_memory", "  peak memory");
    bench_row *told = bench_row_add(run, BENCH_BYTES, "train_told", "  as told beforehand");
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_dataset *data = NULL;
    bitaxon_trainer *trainer = NULL;
    double bytes = 0;
    row->rate_unit = BENCH_FLOPS;
    row->limit_name = bench_peak_name(run->float_peak);
    bench_buffer_drop(run);
    bench_batch_free(run);
    bitaxon_session_free(run->session); /* nothing after this step has use for it */
    run->session = NULL;
    bool reset = bench_memory_reset();

    bitaxon_status status = make_data(run, length, &data, &error);
    bitaxon_trainer_params params = {.struct_size = sizeof params, .method = BITAXON_TRAIN_LORA, .data = data,
                                     .rank = RANK, .block_tokens = (uint32_t)length, .blocks = 1, .accumulate = 1,
                                     .steps = rounds};
    if (status == BITAXON_OK) {
        status = told_bytes(run, &params, &bytes, &error);
    }
    if (status == BITAXON_OK) {
        status = bitaxon_trainer_create(run->model, &params, &trainer, &error);
    }
    if (status == BITAXON_OK) {
        status = updates(run, trainer, length, rounds, row, &error);
    }
    if (status == BITAXON_OK && row->value.count != 0) {
        double most = bench_process_bytes("VmHWM");
        if (reset && most > 0) {
            bench_add(&peak->value, most);
        }
        bench_add(&told->value, bytes);
    }
    bitaxon_trainer_free(trainer);
    bitaxon_dataset_free(data);
    return bench_outcome(run, status, &error);
}
