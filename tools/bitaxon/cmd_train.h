/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_train.h - what `bitaxon train` reads from its command line (cmd_train.c) and hands to the
 * loop that trains, shows and keeps the run (cmd_train_run.c). */
#ifndef BITAXON_CMD_TRAIN_H
#define BITAXON_CMD_TRAIN_H

#include "tool_model.h"
#include "tool_plot.h"
#include "tool_thermal.h"

typedef struct train_args {
    tool_model_args model;
    tool_thermal thermal;
    const char *model_path, *data, *output;
    const char *method, *objective, *adapter, *targets, *optimizer, *mask, *validation, *preset;
    uint32_t rank, block, usual_block, blocks, accumulate, keep;
    double alpha, scale, dropout;
    double epochs, learning_rate, other_learning_rate, min_learning_rate, weight_decay, max_norm, balance, beta, lambda;
    uint64_t steps, warmup, eval_every, eval_batches, save_every, seed;
    bool rank_given, accumulate_given, alpha_given, scale_given, dropout_given, epochs_given, warmup_given;
    bool beta_given, lambda_given;
    bool exact_norm, no_isolation, no_shuffle, ordered, strict, paper, resume, quiet, json;
} train_args;

typedef struct train_state {
    const train_args *args;
    bitaxon_trainer_params params;
    bitaxon_model *model;
    bitaxon_dataset *data, *validation;
    bitaxon_adapter *adapter;
    bitaxon_thermal *thermal;
    bitaxon_trainer *trainer;
    bitaxon_trainer_info info;
    tool_progress loading;
    char *checkpoints, *metrics, *picture; /* paths below --output */
    FILE *log;                             /* metrics.jsonl */
    tool_plot plot;
    bool plot_failed;
    uint64_t plot_ns;
    bool dirty;            /* the run has moved since the last checkpoint */
    bool evaluated;        /* at this step */
    bool terminal;         /* standard error shows a line that is redrawn */
    uint64_t drawn_ns, start_ns, start_step;
    double loss, weight;   /* smoothed, times its weight */
    double seconds, share; /* of an update, smoothed likewise */
    double rows;           /* tokens read per update, smoothed likewise */
    double learning_rate;
    double valid_loss, best_loss;
    uint64_t best_step;
    uint64_t read, paused_ns, energy_uj; /* sums of this call of the command */
} train_state;

/* DIR/NAME; allocated. */
char *train_path(const train_args *args, const char *name);
/* As the trainer's progress, with the state as user. */
int32_t train_progress(void *user, const bitaxon_progress *progress);
/* The loop: from where the trainer stands to its last update; returns an exit code. */
int train_run(train_state *state);

#endif
