/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_train.c - `bitaxon train`: an adapter, or all parameters, on a data set. This file reads
 * and checks the command line, opens model and data, tells what will be done, and writes what
 * came of it; the loop is cmd_train_run.c.
 *
 *   DIR/checkpoints/    of bitaxon_trainer_save
 *   DIR/metrics.jsonl   an object for each update and evaluation
 *   DIR/loss.svg        the same as a picture
 *   DIR/adapter/, DIR/model/   the result, when all updates are done */
#include "cmd_train.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const tool_usage usage = {
    "train", "MODEL DATA --output DIR",
    "Train an adapter of MODEL (or with --method full all parameters of a float model) on the\n"
    "examples in DATA: JSON Lines, a JSON array, or NAME.txt. DIR gets checkpoints,\n"
    "metrics.jsonl, loss.svg and the result: adapter/ or model/. Ctrl-C saves; --resume goes on.",
    2, 2};

enum { DEFAULT_BLOCK = 2048, DEFAULT_WARMUP = 100 };

char *train_path(const train_args *args, const char *name)
{
    size_t bytes = strlen(args->output) + strlen(name) + 2;
    char *path = tool_alloc(bytes);
    snprintf(path, bytes, "%s/%s", args->output, name);
    return path;
}

/* ---- the command line -------------------------------------------------------------------- */

/* 1 + the index of a word in a list that NULL ends, `otherwise` for NULL, -1 for another word. */
static int32_t choose(const char *option, const char *word, const char *const *words,
                      int32_t otherwise)
{
    if (word == NULL) {
        return otherwise;
    }
    for (int32_t i = 0; words[i] != NULL; i++) {
        if (strcmp(word, words[i]) == 0) {
            return i + 1;
        }
    }
    tool_usage_error(usage.command, "--%s: '%s' is not %s, %s%s%s", option, word, words[0],
                     words[1], words[2] != NULL ? " or " : "", words[2] != NULL ? words[2] : "");
    return -1;
}

static const char *const methods[] = {"lora", "dora", "full", NULL};
static const char *const objectives[] = {"sft", "orpo", NULL};
static const char *const presets[] = {"low-memory", "battery", NULL};
static const char *const masks[] = {"content", "reference", "all", NULL};
static const char *const optimizers[] = {"adamw", "muon", NULL};

/* A preset sets what is not given otherwise. */
static int apply_preset(train_args *args)
{
    enum { LOW_MEMORY = 1, BATTERY = 2, RANK = 4, BLOCK = 256, ACCUMULATE = 8 };
    int32_t preset = choose("preset", args->preset, presets, 0);
    if (preset == LOW_MEMORY) {
        bool adapter = args->adapter == NULL && !args->rank_given;
        args->rank = adapter ? (uint32_t)RANK : args->rank;
        args->usual_block = BLOCK;
        args->accumulate = args->accumulate_given ? args->accumulate : (uint32_t)ACCUMULATE;
    }
    args->thermal.battery = preset == BATTERY;
    args->thermal.graded = true;
    return preset < 0 ? TOOL_USAGE : TOOL_OK;
}

/* What excludes what, before anything is opened. */
static int check_args(const train_args *args, bitaxon_trainer_params *p, int32_t *mask)
{
    const char *wrong = NULL;
    p->method = choose("method", args->method, methods, 0);
    p->objective = choose("objective", args->objective, objectives, BITAXON_OBJECTIVE_SFT);
    p->optimizer = choose("optimizer", args->optimizer, optimizers, BITAXON_OPTIMIZER_ADAMW);
    *mask = choose("mask", args->mask, masks, BITAXON_MASK_CONTENT);
    if (p->method < 0 || p->objective < 0 || p->optimizer < 0 || *mask < 0) {
        return TOOL_USAGE;
    }
    bool full = p->method == BITAXON_TRAIN_FULL;
    if (args->output == NULL || args->output[0] == '\0') {
        wrong = "--output DIR is missing";
    } else if (args->steps != 0 && args->epochs_given) {
        wrong = "--steps and --epochs exclude each other";
    } else if (full && (args->rank_given || args->alpha_given || args->scale_given ||
                        args->dropout_given || args->targets != NULL || args->adapter != NULL)) {
        wrong = "--rank, --alpha, --scale, --dropout, --targets and --adapter are of adapters, "
                "not of --method full";
    } else if (args->alpha_given && args->scale_given) {
        wrong = "--alpha (divided by the rank) and --scale exclude each other";
    } else if (args->adapter != NULL &&
               (args->rank_given || args->alpha_given || args->targets != NULL)) {
        wrong = "rank, scale and targets are those of --adapter";
    } else if (args->exact_norm && (full || p->method == BITAXON_TRAIN_LORA)) {
        wrong = "--exact-norm is for --method dora";
    } else if (p->optimizer == BITAXON_OPTIMIZER_MUON && !full) {
        wrong = "--optimizer muon is for --method full";
    } else if (p->optimizer != BITAXON_OPTIMIZER_MUON && args->other_learning_rate > 0) {
        wrong = "--other-learning-rate is for --optimizer muon";
    } else if (p->objective != BITAXON_OBJECTIVE_ORPO &&
               (args->paper || args->beta_given || args->lambda_given)) {
        wrong = "--beta, --lambda and --paper are for --objective orpo";
    } else if (args->paper && (args->beta_given || args->lambda_given)) {
        wrong = "--paper stands for --beta 1 --lambda 0.1: give one or the other";
    } else if (args->min_learning_rate > args->learning_rate) {
        wrong = "--min-learning-rate is above --learning-rate";
    } else if (args->no_isolation && p->objective == BITAXON_OBJECTIVE_ORPO) {
        wrong = "--no-isolation is for --objective sft";
    } else if (args->validation == NULL && (args->eval_every != 0 || args->eval_batches != 0)) {
        wrong = "--eval-every and --eval-batches need --validation FILE";
    }
    return wrong == NULL ? TOOL_OK : tool_usage_error(usage.command, "%s", wrong);
}

static void fill_params(const train_args *args, bitaxon_trainer_params *p)
{
    p->flags = (args->exact_norm ? BITAXON_TRAIN_EXACT_NORM : 0) |
               (args->no_isolation ? BITAXON_TRAIN_NO_ISOLATION : 0) |
               (args->no_shuffle ? BITAXON_TRAIN_NO_SHUFFLE : 0) |
               (args->ordered ? BITAXON_TRAIN_ORDERED : 0);
    p->targets = args->targets;
    p->rank = args->rank;
    p->scale = (float)args->scale;
    p->alpha = (float)args->alpha;
    p->dropout = (float)args->dropout;
    p->blocks = args->blocks;
    p->accumulate = args->accumulate;
    p->seed = args->seed;
    p->learning_rate = args->learning_rate;
    p->min_learning_rate = args->min_learning_rate;
    p->other_learning_rate = args->other_learning_rate;
    p->weight_decay = args->weight_decay > 0 ? args->weight_decay : -1; /* 0 would be a default */
    p->max_norm = args->max_norm > 0 ? args->max_norm : -1;
    p->orpo_beta = args->paper ? 1.0f : (float)args->beta;
    p->orpo_lambda = args->paper ? 0.1f : (float)args->lambda;
    p->balance = (float)args->balance;
}

/* ---- the directory ----------------------------------------------------------------------- */

/* Whether checkpoints/ has one, also one that a killed process left moved aside. */
static bool has_checkpoint(const char *path)
{
    DIR *directory = opendir(path);
    bool found = false;
    if (directory == NULL) {
        return false;
    }
    for (struct dirent *entry; !found && (entry = readdir(directory)) != NULL;) {
        const char *name = entry->d_name;
        size_t digits = strncmp(name, "step_", 5) == 0 ? strspn(name + 5, "0123456789") : 0;
        found = digits >= 8 && (name[5 + digits] == '\0' || strcmp(name + 5 + digits, ".old") == 0);
    }
    closedir(directory);
    return found;
}

static int check_directory(const train_args *args, const char *checkpoints)
{
    static const char *const results[] = {"adapter", "model"};
    bool have = has_checkpoint(checkpoints);
    if (args->resume) {
        return have ? TOOL_OK
                    : tool_error("%s: there is no checkpoint to go on from; without --resume the "
                                 "run begins anew", checkpoints);
    }
    if (have) {
        return tool_error("%s has checkpoints of a run: go on from them with --resume, or give "
                          "another --output", args->output);
    }
    for (size_t i = 0; i < sizeof results / sizeof results[0]; i++) {
        char *path = train_path(args, results[i]);
        bool there = access(path, F_OK) == 0;
        free(path);
        if (there) {
            return tool_error("%s has the result of a run in %s/: move it away, or give another "
                              "--output", args->output, results[i]);
        }
    }
    return TOOL_OK;
}

/* With the directories above it. */
static int make_directory(const char *path)
{
    char *part = tool_copy(path, strlen(path));
    int code = TOOL_OK;
    for (size_t i = 1; code == TOOL_OK && i <= strlen(path); i++) {
        if ((path[i] == '/' || path[i] == '\0') && path[i - 1] != '/') {
            part[i] = '\0';
            if (mkdir(part, 0777) != 0 && errno != EEXIST) {
                code = tool_error("%s: %s", part, strerror(errno));
            }
            part[i] = path[i];
        }
    }
    free(part);
    return code;
}

/* A directory of files, as a model is. */
static void remove_directory(const char *path)
{
    DIR *directory = opendir(path);
    for (struct dirent *entry; directory != NULL && (entry = readdir(directory)) != NULL;) {
        unlinkat(dirfd(directory), entry->d_name, 0);
    }
    if (directory != NULL) {
        closedir(directory);
    }
    rmdir(path);
}

/* ---- opening ----------------------------------------------------------------------------- */

static int open_data(train_state *state, const char *path, int32_t mask, uint32_t max_tokens,
                     bitaxon_dataset **out)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_dataset_params params = {.struct_size = sizeof params,
                                     .objective = state->params.objective,
                                     .mask = mask,
                                     .max_tokens = max_tokens,
                                     .flags = state->args->strict ? BITAXON_DATASET_STRICT : 0,
                                     .path = path,
                                     .progress = tool_progress_library,
                                     .progress_user = &state->loading};
    bitaxon_status status = bitaxon_dataset_open(state->model, &params, out, &error);
    tool_progress_clear(&state->loading);
    return status == BITAXON_OK ? TOOL_OK : tool_fail(status, &error);
}

static int open_all(train_state *state, int32_t mask)
{
    const train_args *args = state->args;
    bitaxon_trainer_params *p = &state->params;
    bitaxon_error error = BITAXON_ERROR_INIT;
    int64_t longest = 0;
    int code = tool_thermal_open(&args->thermal, &state->thermal);
    if (code == TOOL_OK) {
        code = tool_model_open(args->model_path, &args->model, 0, &state->loading, &state->model);
    }
    if (code == TOOL_OK) {
        code = tool_model_integer(state->model, "max_seq_len", &longest);
    }
    if (code != TOOL_OK) {
        return code;
    }
    if (args->block > longest) {
        return tool_error("--block: %u is more than the model's max_seq_len of %lld",
                          (unsigned)args->block, (long long)longest);
    }
    p->block_tokens = args->block != 0              ? args->block
                      : longest < args->usual_block ? (uint32_t)longest
                                                    : args->usual_block;
    code = open_data(state, args->data, mask, p->block_tokens, &state->data);
    if (code == TOOL_OK && args->validation != NULL) {
        code = open_data(state, args->validation, mask, p->block_tokens, &state->validation);
    }
    bitaxon_status status = BITAXON_OK;
    if (code == TOOL_OK && args->adapter != NULL) {
        bitaxon_adapter_params adapter = {.struct_size = sizeof adapter,
                                          .scale = (float)args->scale,
                                          .path = args->adapter};
        status = bitaxon_adapter_open(state->model, &adapter, &state->adapter, &error);
    }
    if (code != TOOL_OK || status != BITAXON_OK) {
        return code != TOOL_OK ? code : tool_fail(status, &error);
    }
    p->data = state->data;
    p->validation = state->validation;
    p->adapter = state->adapter;
    p->thermal = state->thermal;
    p->progress = train_progress;
    p->progress_user = state;
    p->steps = args->steps;
    if (args->steps == 0) {
        status = bitaxon_trainer_epoch_steps(p, args->epochs, &p->steps, &error);
    }
    p->warmup = args->warmup_given                        ? args->warmup
                : p->steps / 10 < (uint64_t)DEFAULT_WARMUP ? p->steps / 10
                                                          : DEFAULT_WARMUP;
    return status == BITAXON_OK ? TOOL_OK : tool_fail(status, &error);
}

/* ---- what will be done ------------------------------------------------------------------- */

static void say_data(const char *what, const char *path, const bitaxon_dataset *data, bool pairs)
{
    bitaxon_dataset_info info = {.struct_size = sizeof info};
    char a[TOOL_NUMBER_BYTES], b[TOOL_NUMBER_BYTES], c[TOOL_NUMBER_BYTES];
    if (bitaxon_dataset_get_info(data, &info, NULL) != BITAXON_OK) {
        return;
    }
    fprintf(stderr, "%-12s %s: %s %s, %s tokens, %s of them count\n", what, path,
            tool_count_text(info.examples, a), pairs ? "pairs" : "examples",
            tool_count_text(info.tokens, b), tool_count_text(info.counted, c));
    const struct {
        uint64_t count;
        const char *what;
    } troubles[] = {{info.bad_lines, "left out: not understood"},
                    {info.empty, "left out: no token counts"},
                    {info.cut, "cut to the block"},
                    {info.cut_empty, "of these left out: no token counts any more"}};
    for (size_t i = 0; i < sizeof troubles / sizeof troubles[0]; i++) {
        if (troubles[i].count != 0) {
            fprintf(stderr, "%-12s %s %s\n", "", tool_count_text(troubles[i].count, a),
                    troubles[i].what);
        }
    }
}

static void say_memory(const bitaxon_train_estimate *e)
{
    char a[TOOL_NUMBER_BYTES], b[TOOL_NUMBER_BYTES], c[TOOL_NUMBER_BYTES], d[TOOL_NUMBER_BYTES];
    fprintf(stderr, "%-12s %s: model %s, values with gradients and moments %s, passes %s\n",
            "memory", tool_bytes_text(e->total_bytes, a),
            tool_bytes_text(e->mapped_bytes + e->model_bytes, b),
            tool_bytes_text(e->values_bytes, c), tool_bytes_text(e->pass_bytes, d));
    uint64_t machine = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    if (e->total_bytes > machine) {
        tool_error("warning: this machine has %s of memory; a smaller --block needs less",
                   tool_bytes_text(machine, a));
    }
}

static const char *method_text(const train_state *state, char *buffer, size_t bytes)
{
    const bitaxon_trainer_params *p = &state->params;
    uint32_t rank = p->rank;
    double scale = p->scale != 0 ? (double)p->scale : p->alpha != 0 ? (double)p->alpha / rank : 20;
    bool lora = p->method == BITAXON_TRAIN_LORA;
    if (p->method == BITAXON_TRAIN_FULL) {
        snprintf(buffer, bytes, "all parameters, %s",
                 p->optimizer == BITAXON_OPTIMIZER_MUON ? "Muon" : "AdamW");
        return buffer;
    }
    if (state->adapter != NULL) {
        bitaxon_adapter_info info = {.struct_size = sizeof info};
        (void)bitaxon_adapter_get_info(state->adapter, &info, NULL);
        rank = info.rank;
        scale = (double)info.scale;
        lora = info.dora == 0;
    }
    snprintf(buffer, bytes, "%s of rank %u, scale %g", lora ? "LoRA" : "DoRA", (unsigned)rank,
             scale);
    return buffer;
}

static void say_plan(const train_state *state, const bitaxon_train_estimate *estimate)
{
    const train_args *args = state->args;
    const bitaxon_trainer_params *p = &state->params;
    bool pairs = p->objective == BITAXON_OBJECTIVE_ORPO;
    char text[80], number[TOOL_NUMBER_BYTES];
    fprintf(stderr, "%-12s %s\n", "model", args->model_path);
    say_data("data", args->data, state->data, pairs);
    if (state->validation != NULL) {
        say_data("validation", args->validation, state->validation, pairs);
    }
    fprintf(stderr, "%-12s %s, %s; %s parameters train\n", "method",
            method_text(state, text, sizeof text), pairs ? "ORPO" : "SFT",
            tool_count_text(estimate->trainable, number));
    say_memory(estimate);
    fprintf(stderr, "%-12s %s of %u x %u %s of up to %u tokens", "updates",
            tool_count_text(p->steps, number), (unsigned)p->accumulate, (unsigned)p->blocks,
            pairs ? "pairs" : "blocks", (unsigned)p->block_tokens);
    if (args->steps == 0) {
        fprintf(stderr, ", %g epoch%s", args->epochs, args->epochs == 1 ? "" : "s");
    }
    fprintf(stderr, "; warm-up %s\n", tool_count_text(p->warmup, number));
    if (args->resume) {
        fprintf(stderr, "%-12s update %s\n", "resumed at", tool_count_text(state->info.step, number));
    }
}

static int make_trainer(train_state *state)
{
    const train_args *args = state->args;
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_train_estimate estimate = {.struct_size = sizeof estimate};
    bitaxon_host host;
    bitaxon_model_params model;
    tool_model_params(args->model_path, &args->model, 0, &state->loading, &host, &model);
    bitaxon_status status = bitaxon_trainer_estimate(&model, &state->params, &estimate, &error);
    if (status == BITAXON_OK && !args->quiet && !args->resume) {
        say_plan(state, &estimate);
    }
    if (status == BITAXON_OK) {
        status = bitaxon_trainer_create(state->model, &state->params, &state->trainer, &error);
    }
    if (status == BITAXON_OK && args->resume) {
        status = bitaxon_trainer_resume(state->trainer, state->checkpoints, &error);
    }
    state->info.struct_size = sizeof state->info;
    if (status == BITAXON_OK) {
        status = bitaxon_trainer_get_info(state->trainer, &state->info, &error);
    }
    if (status == BITAXON_OK && !args->quiet && args->resume) {
        say_plan(state, &estimate);
    }
    return status == BITAXON_OK ? TOOL_OK : tool_fail(status, &error);
}

/* ---- what came of it --------------------------------------------------------------------- */

/* The model takes the place of one that an earlier part of the same run had written. */
static int write_model(train_state *state, const char *path)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    char *fresh = train_path(state->args, "model.new");
    char *aside = train_path(state->args, "model.old");
    remove_directory(fresh);
    bitaxon_status status = bitaxon_trainer_write_model(state->trainer, fresh, &error);
    int code = status == BITAXON_OK ? TOOL_OK : tool_fail(status, &error);
    if (code == TOOL_OK) {
        remove_directory(aside);
        bool moved = rename(path, aside) == 0 || errno == ENOENT;
        if (!moved || rename(fresh, path) != 0) {
            code = tool_error("%s: %s; the model is in %s", path, strerror(errno), fresh);
        }
        remove_directory(aside);
    }
    free(fresh);
    free(aside);
    return code;
}

static int write_adapter(train_state *state, const char *path)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_adapter *adapter = NULL;
    char *file = train_path(state->args, "adapter/adapters.safetensors");
    int code = make_directory(path);
    if (code == TOOL_OK) {
        bitaxon_status status = bitaxon_trainer_adapter(state->trainer, &adapter, &error);
        if (status == BITAXON_OK) {
            status = bitaxon_adapter_save(adapter, file, &error);
        }
        code = status == BITAXON_OK ? TOOL_OK : tool_fail(status, &error);
    }
    bitaxon_adapter_free(adapter);
    free(file);
    return code;
}

static void set_data(json_t *object, const char *key, const bitaxon_dataset *data)
{
    bitaxon_dataset_info info = {.struct_size = sizeof info};
    if (data == NULL || bitaxon_dataset_get_info(data, &info, NULL) != BITAXON_OK) {
        return;
    }
    json_t *facts = tool_json_object();
    tool_json_set_integer(facts, "examples", info.examples);
    tool_json_set_integer(facts, "tokens", info.tokens);
    tool_json_set_integer(facts, "counted", info.counted);
    tool_json_set_integer(facts, "bad_lines", info.bad_lines);
    tool_json_set_integer(facts, "empty", info.empty);
    tool_json_set_integer(facts, "cut", info.cut);
    tool_json_set_integer(facts, "cut_empty", info.cut_empty);
    tool_json_set(object, key, facts);
}

static void report_json(const train_state *state, const char *result, double seconds)
{
    const bitaxon_trainer_params *p = &state->params;
    json_t *object = tool_json_object();
    bool full = p->method == BITAXON_TRAIN_FULL;
    tool_json_set_string(object, "output", state->args->output);
    tool_json_set(object, full ? "model" : "adapter",
                  result != NULL ? json_string(result) : json_null());
    tool_json_set(object, "complete", json_boolean(result != NULL));
    tool_json_set_integer(object, "step", state->info.step);
    tool_json_set_integer(object, "steps", state->info.steps);
    tool_json_set_integer(object, "epoch", state->info.epoch);
    set_data(object, "data", state->data);
    set_data(object, "validation_data", state->validation);
    tool_json_set_integer(object, "trainable", state->info.trainable);
    tool_json_set_integer(object, "bytes", state->info.bytes);
    tool_json_set_integer(object, "tokens", state->info.tokens);
    tool_json_set_integer(object, "skipped_steps", state->info.skipped_steps);
    tool_json_set_integer(object, "empty_micro_steps", state->info.empty_micro_steps);
    tool_json_set_real(object, "loss", state->weight > 0 ? state->loss / state->weight : NAN);
    tool_json_set_real(object, "validation_loss", state->valid_loss);
    tool_json_set_real(object, "best_validation_loss", state->best_loss);
    tool_json_set_integer(object, "best_step", state->best_step);
    tool_json_set_real(object, "seconds", seconds);
    tool_json_set_real(object, "tokens_per_second",
                       seconds > 0 ? (double)state->read / seconds : 0);
    tool_json_set_real(object, "paused_seconds", (double)state->paused_ns / 1e9);
    if (state->energy_uj != 0) {
        tool_json_set_real(object, "joules", (double)state->energy_uj / 1e6);
    }
    if (state->thermal != NULL) {
        tool_thermal_json(object, state->thermal, NULL);
    }
    tool_json_print(object);
}

static void report(const train_state *state, const char *result, double seconds)
{
    char number[TOOL_NUMBER_BYTES];
    tool_out("trained        %s updates", tool_count_text(state->info.step, number));
    if (state->info.step > state->start_step) {
        tool_out(", %s here in %.1f s, %.0f tokens/s",
                 tool_count_text(state->info.step - state->start_step, number), seconds,
                 (double)state->read / seconds);
    }
    tool_out("\n");
    if (state->weight > 0) {
        tool_out("loss           %.4f (smoothed)\n", state->loss / state->weight);
    }
    if (isfinite(state->valid_loss)) {
        tool_out("validation     %.4f; lowest %.4f after update %s\n", state->valid_loss,
                 state->best_loss, tool_count_text(state->best_step, number));
    }
    if (state->info.skipped_steps != 0) {
        tool_out("left out       %s updates that were not finite\n",
                 tool_count_text(state->info.skipped_steps, number));
    }
    tool_thermal_report(state->thermal, state->read);
    if (result != NULL) {
        tool_out("%-14s %s\n", state->params.method == BITAXON_TRAIN_FULL ? "model" : "adapter",
                 result);
    }
}

static int train(train_state *state)
{
    const train_args *args = state->args;
    bool full = state->params.method == BITAXON_TRAIN_FULL;
    char *result = train_path(args, full ? "model" : "adapter");
    int code = make_directory(args->output);
    if (code == TOOL_OK) {
        code = train_run(state);
        double seconds = (double)(tool_now_ns() - state->start_ns) * 1e-9;
        (void)bitaxon_trainer_get_info(state->trainer, &state->info, NULL);
        bool complete = code == TOOL_OK;
        if (complete) {
            code = full ? write_model(state, result) : write_adapter(state, result);
        }
        if (args->json) {
            report_json(state, code == TOOL_OK ? result : NULL, seconds);
        } else if (!args->quiet && code == TOOL_OK) {
            report(state, result, seconds);
        }
    }
    free(result);
    return code;
}

static void release(train_state *state)
{
    if (state->log != NULL) {
        fclose(state->log);
    }
    bitaxon_trainer_free(state->trainer);
    bitaxon_adapter_free(state->adapter);
    bitaxon_dataset_free(state->validation);
    bitaxon_dataset_free(state->data);
    bitaxon_model_free(state->model);
    bitaxon_thermal_free(state->thermal);
    tool_plot_free(&state->plot);
    free(state->checkpoints);
    free(state->metrics);
    free(state->picture);
}

#define REAL(name, value, least, most, given, help)                                                \
    {                                                                                              \
        TOOL_KIND_REAL, name, 0, "X", help, value, least, most, given                              \
    }

int cmd_train(int argc, char **argv)
{
    train_args args = {.rank = 8, .usual_block = DEFAULT_BLOCK, .blocks = 1, .accumulate = 4,
                       .keep = 3, .epochs = 1, .learning_rate = 1e-4, .weight_decay = 0.01,
                       .max_norm = 1, .beta = 0.1, .lambda = 1, .save_every = 500, .seed = 42};
    const tool_option options[] = {
        TOOL_TEXT("output", 'o', "DIR", &args.output, "where everything goes"),
        TOOL_FLAG("resume", 0, &args.resume, "go on from the newest checkpoint in DIR"),
        TOOL_TEXT("method", 0, "NAME", &args.method, "dora, lora or full (default: dora)"),
        TOOL_TEXT("objective", 0, "NAME", &args.objective,
                  "sft, or orpo for pairs of a chosen and a rejected answer\n(default: sft)"),
        TOOL_TEXT("adapter", 0, "PATH", &args.adapter, "start from this adapter"),
        {TOOL_KIND_U32, "rank", 0, "N", "of the adapter (default: 8)", &args.rank, 1, 256,
         &args.rank_given},
        REAL("alpha", &args.alpha, 1e-6, 1e6, &args.alpha_given, "scale by X / rank"),
        REAL("scale", &args.scale, 1e-6, 1e6, &args.scale_given, "scale by X (default: 20)"),
        REAL("dropout", &args.dropout, 0, 0.99, &args.dropout_given,
             "share of what adapters read that is left out (default: 0)"),
        TOOL_TEXT("targets", 0, "LIST", &args.targets,
                  "ends of names of the weights to adapt, comma separated\n"
                  "(default: all that can be)"),
        TOOL_FLAG("exact-norm", 0, &args.exact_norm, "DoRA: gradients through the norm too"),
        TOOL_U64("steps", 0, &args.steps, 1, TOOL_MAX_INTEGER, "updates of the whole run"),
        REAL("epochs", &args.epochs, 1e-3, 1e6, &args.epochs_given,
             "instead: so many times through the data (default: 1)"),
        {TOOL_KIND_U64, "warmup", 0, "N",
         "updates in which the rate rises (default: 100, at most a\ntenth of all)", &args.warmup,
         0, TOOL_MAX_INTEGER, &args.warmup_given},
        REAL("learning-rate", &args.learning_rate, 1e-12, 100, NULL, "highest (default: 1e-4)"),
        REAL("other-learning-rate", &args.other_learning_rate, 0, 100, NULL,
             "muon: highest of what AdamW takes (default: the same)"),
        REAL("min-learning-rate", &args.min_learning_rate, 0, 100, NULL,
             "at the end of the cosine (default: 0)"),
        REAL("weight-decay", &args.weight_decay, 0, 0.999, NULL, "(default: 0.01)"),
        REAL("max-norm", &args.max_norm, 0, 1e9, NULL,
             "shorten longer gradients; 0: none (default: 1)"),
        TOOL_TEXT("optimizer", 0, "NAME", &args.optimizer,
                  "adamw, or muon with --method full (default: adamw)"),
        TOOL_U32("block", 0, &args.block, 2, 4194304,
                 "tokens of a block; longer examples are cut (default: 2048,\n"
                 "at most max_seq_len)"),
        TOOL_U32("blocks", 0, &args.blocks, 1, 65536, "blocks or pairs at once (default: 1)"),
        {TOOL_KIND_U32, "accumulate", 0, "N", "so many times --blocks make an update (default: 4)",
         &args.accumulate, 1, 65536, &args.accumulate_given},
        TOOL_TEXT("preset", 0, "NAME", &args.preset,
                  "low-memory: --rank 4 --block 256 --accumulate 8;\n"
                  "battery: --power 50 --battery-floor 20; options that are\n"
                  "given hold instead"),
        TOOL_TEXT("mask", 0, "NAME", &args.mask,
                  "what counts: content (of answers), reference or all\n(default: content)"),
        TOOL_FLAG("no-isolation", 0, &args.no_isolation, "examples run on into each other"),
        TOOL_FLAG("no-shuffle", 0, &args.no_shuffle, "take examples in the order of the file"),
        TOOL_FLAG("ordered", 0, &args.ordered,
                  "the bits of a run of several machines, which can go on from\n"
                  "its checkpoints; one more array of the gradient's size"),
        TOOL_FLAG("strict", 0, &args.strict, "a bad line is an error, else it is left out"),
        REAL("balance", &args.balance, 0, 1e6, NULL,
             "weight of the loss that spreads tokens over experts\n(default: 0)"),
        REAL("beta", &args.beta, 1e-6, 1e6, &args.beta_given,
             "ORPO: inside the sigmoid (default: 0.1)"),
        REAL("lambda", &args.lambda, 1e-6, 1e6, &args.lambda_given,
             "ORPO: weight of the odds ratio (default: 1)"),
        TOOL_FLAG("paper", 0, &args.paper, "ORPO as published: --beta 1 --lambda 0.1"),
        TOOL_TEXT("validation", 0, "FILE", &args.validation, "examples to evaluate on"),
        TOOL_U64("eval-every", 0, &args.eval_every, 1, TOOL_MAX_INTEGER,
                 "updates from one evaluation to the next (default: 500);\n"
                 "also at the start and at the end"),
        TOOL_U64("eval-batches", 0, &args.eval_batches, 1, TOOL_MAX_INTEGER,
                 "take only the first N times --blocks of FILE"),
        TOOL_U64("save-every", 0, &args.save_every, 1, TOOL_MAX_INTEGER,
                 "updates from one checkpoint to the next (default: 500)"),
        TOOL_U32("keep", 0, &args.keep, 1, 1000000, "newest checkpoints to keep (default: 3)"),
        TOOL_U64("seed", 0, &args.seed, 0, TOOL_MAX_INTEGER,
                 "of random start, order and dropout (default: 42)"),
        TOOL_TOKENIZER_OPTION(&args.model),
        TOOL_MODEL_OPTIONS(&args.model),
        TOOL_NO_THERMAL_OPTION(&args.thermal),
        TOOL_THERMAL_OPTIONS(&args.thermal),
        TOOL_FLAG("quiet", 'q', &args.quiet, "say only what goes wrong"),
        TOOL_FLAG("json", 0, &args.json, "print one JSON object at the end"),
        TOOL_OPTIONS_END};
    train_state state = {.args = &args, .params = {.struct_size = sizeof state.params},
                         .valid_loss = NAN, .best_loss = NAN};
    int32_t mask = 0;
    int first = 0;
    int code = TOOL_OK;
    tool_progress_init(&state.loading);
    if (!tool_parse(&usage, options, argc, argv, &first, &code)) {
        return code;
    }
    state.loading.enabled = state.loading.enabled && !args.quiet;
    state.terminal = state.loading.enabled;
    args.model_path = argv[first];
    args.data = argv[first + 1];
    code = tool_model_args_check(usage.command, &args.model);
    if (code == TOOL_OK) {
        code = apply_preset(&args);
    }
    if (code == TOOL_OK) {
        code = check_args(&args, &state.params, &mask);
    }
    if (code == TOOL_OK) {
        fill_params(&args, &state.params);
        if (args.validation != NULL && args.eval_every == 0) {
            args.eval_every = 500;
        }
        state.checkpoints = train_path(&args, "checkpoints");
        state.metrics = train_path(&args, "metrics.jsonl");
        state.picture = train_path(&args, "loss.svg");
        tool_thermal_marks(&args.thermal, state.plot.marks);
        code = check_directory(&args, state.checkpoints);
    }
    if (code == TOOL_OK) {
        code = open_all(&state, mask);
    }
    if (code == TOOL_OK) {
        code = make_trainer(&state);
    }
    if (code == TOOL_OK) {
        code = train(&state);
    }
    release(&state);
    return code;
}
