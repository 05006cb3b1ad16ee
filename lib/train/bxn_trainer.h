/* SPDX-License-Identifier: Apache-2.0 */
/* bxn_trainer.h - a run of training in memory and on disk: parameters checked once, the object that joins
 * data, passes, optimiser and thermal policy, and its checkpoints. api_train.c wraps it. */
#ifndef BXN_TRAINER_H
#define BXN_TRAINER_H

#include <bitaxon/train.h>

#include "io/io.h"
#include "thermal/bxn_thermal.h"
#include "train/bxn_dataset.h"
#include "train/bxn_train.h"

/* ---- parameters (train_params.c) ------------------------------------------------------------ */

/* *p with all defaults filled in, in place. `adapter`: there is one to start from, whose method, rank and
 * scale hold. INVALID_ARGUMENT naming the field and its value. */
bitaxon_status bxn_trainer_resolve(bitaxon_trainer_params *p, uint32_t max_tokens, const bxn_adapter *adapter,
                                   bitaxon_error *error);
void bxn_trainer_plan(const bitaxon_trainer_params *p, bxn_adapter_plan *plan);
void bxn_trainer_packing(const bitaxon_trainer_params *p, int32_t separator, bxn_packing *packing);
void bxn_trainer_optimizer(const bitaxon_trainer_params *p, bxn_optimizer *optimizer);
/* A model of which the headers alone were read, as shapes of its weights without stacks of experts (which no
 * adapter changes): what bxn_trainer_measure reads. */
bitaxon_status bxn_trainer_shapes(bxn_mem *mem, const bxn_model *plan, bxn_model *out, bitaxon_error *error);
void bxn_trainer_shapes_free(bxn_mem *mem, bxn_model *shapes);
/* values_bytes, pass_bytes and trainable, of a model or of its shapes; p resolved, rows of a micro-step. start
 * (nullable; then the model is its own, no shapes): the adapter that trains, else it is what p plans. */
void bxn_trainer_measure(const bxn_model *model, const bitaxon_trainer_params *p, uint32_t rows,
                         const bxn_adapter *start, bitaxon_train_estimate *out);
uint32_t bxn_trainer_rows(const bitaxon_trainer_params *p); /* of a micro-step at most; 0: too many */

/* ---- the run (trainer.c) --------------------------------------------------------------------- */

/* What the history keeps of an update or an evaluation. */
typedef struct bxn_train_point {
    uint64_t step;
    double loss, learning_rate, gradient_norm;
    uint64_t evaluation;
} bxn_train_point;

/* Where a run stands: what a checkpoint keeps beside arrays and history. */
typedef struct bxn_train_progress {
    uint64_t step;     /* updates made */
    uint64_t attempts; /* updates begun: those made and those left out */
    uint64_t skipped, empty, tokens;
    uint64_t bad;      /* steps in a row that were left out */
    bxn_cursor cursor;
} bxn_train_progress;

typedef struct bxn_trainer {
    bxn_mem *mem;
    bitaxon_trainer_params params; /* resolved; targets is our own copy */
    char *targets;
    const bxn_model *source;
    const bxn_model *model; /* source, or the trainable's */
    uint64_t populated;     /* bytes of its mapping that updates have brought in */
    const bxn_dataset *data, *validation;
    uint8_t start_id[16];   /* of the adapter it started from, else zero */
    int32_t separator;
    /* one of the two */
    bxn_adapter adapter;
    bxn_trainable *trainable;
    bxn_parameters own;         /* of the adapter: grad, m, v in `arrays` */
    bxn_parameters *parameters; /* own, or the trainable's */
    void *arrays;
    void *sum;                  /* ORDERED: gradients of the micro-steps before, all machines' */
    bxn_weight_grads *weight_grads; /* of the adapter, [weight_count] */
    bxn_model_grads adapter_grads;
    const bxn_model_grads *grads;
    uint64_t trainable_values;

    bxn_optimizer optimizer;
    size_t scratch_bytes;
    bxn_runner runner;
    bxn_packer *packer, *validation_packer;
    bxn_train_progress at;
    bool stale;  /* what follows from values is to be made again (it lacked memory) */
    bool broken; /* half an update, or half of a checkpoint: nothing of it holds */
    bool link_lost; /* all_reduce failed within the call */
    bxn_train_point *history;
    size_t history_count, history_room;

    bxn_thermal *thermal; /* nullable */
    bxn_thermal_use use;
    uint64_t left_ns;     /* end of the last call */
    uint64_t work_ns, work_rows; /* of the last micro-step, until the policy was asked */
    atomic_int cancel;
    bxn_progress progress;
    uint64_t host_float;

    bool settled; /* it has checkpoints, or comes from one, in the directory `home` */
    bxn_identity home;
} bxn_trainer;

/* params: resolved; its pointers to handles are not looked at. start: nullable. On failure nothing is held. */
bitaxon_status bxn_trainer_init(bxn_trainer *trainer, bxn_mem *mem, const bxn_model *model, int32_t separator,
                                const bitaxon_trainer_params *params, const bxn_dataset *data,
                                const bxn_dataset *validation, const bxn_adapter *start, bxn_thermal *thermal,
                                bitaxon_error *error);
void bxn_trainer_release(bxn_trainer *trainer);
bitaxon_status bxn_trainer_step(bxn_trainer *trainer, bitaxon_train_result *result, bitaxon_error *error);
bitaxon_status bxn_trainer_evaluate(bxn_trainer *trainer, uint64_t max_micro_steps, bitaxon_train_result *result,
                                    bitaxon_error *error);
/* BAD_STATE when it is broken. */
bitaxon_status bxn_trainer_usable(const bxn_trainer *trainer, bitaxon_error *error);
/* What follows from values is up to date; `identify`: the adapter's id too. OUT_OF_MEMORY, SYSTEM; BAD_STATE when
 * broken. */
bitaxon_status bxn_trainer_settle(bxn_trainer *trainer, bool identify, bitaxon_error *error);
/* Room for one more point. */
bitaxon_status bxn_trainer_history_reserve(bxn_trainer *trainer, size_t count, bitaxon_error *error);

/* ---- checkpoints (train_state.c, train_files.c) ------------------------------------------------ */

bitaxon_status bxn_trainer_save(bxn_trainer *trainer, const char *directory, uint32_t keep, bitaxon_error *error);
bitaxon_status bxn_trainer_resume(bxn_trainer *trainer, const char *directory, bitaxon_error *error);

/* A checkpoint is a directory step_NNNNNNNN with a manifest, written last: names, sizes and checksums of all other
 * files. Names of its files: */
#define BXN_CHECKPOINT_ADAPTER "adapters.safetensors"
#define BXN_CHECKPOINT_VALUES "parameters.safetensors"
#define BXN_CHECKPOINT_MOMENTS "optimizer_state.safetensors"
#define BXN_CHECKPOINT_HISTORY "history.safetensors"
#define BXN_CHECKPOINT_STATE "trainer_state.json"
#define BXN_CHECKPOINT_MANIFEST "manifest.json"
#define BXN_PATH_MAX 4096

/* The steps of a directory's checkpoints, ascending; with `change` leftovers of what was killed are cleared up: what
 * was not finished goes, what was moved aside for its successor comes back if that is not there (and counts here). */
bitaxon_status bxn_checkpoints_list(bxn_mem *mem, const char *directory, bool change, uint64_t **steps,
                                    size_t *count, size_t *room, bitaxon_error *error);
/* The same for one of them by its path. */
bitaxon_status bxn_checkpoint_bring_back(const char *path, bitaxon_error *error);
/* Write the manifest of the files in `path`. */
bitaxon_status bxn_manifest_write(bxn_mem *mem, const char *path, const char *const *names, uint32_t count,
                                  bitaxon_error *error);
/* FORMAT (naming the file) unless all files of it are there and as they were written. */
bitaxon_status bxn_manifest_check(bxn_mem *mem, const char *path, const char *const *names, uint32_t count,
                                  bitaxon_error *error);
/* Put a finished `path` in place as the checkpoint of the step; whole at every moment. A failure may come when it is
 * placed already. */
bitaxon_status bxn_checkpoint_place(const char *path, const char *directory, uint64_t step, bool *placed,
                                    bitaxon_error *error);
/* Remove all but the newest `keep`, and those after `step`. Failures are logged: they lose nothing. */
void bxn_checkpoints_trim(bxn_mem *mem, const char *directory, uint64_t step, uint32_t keep);
/* DIRECTORY/step_NNNNNNNN + suffix; LIMIT when it is too long. */
bitaxon_status bxn_checkpoint_path(char out[BXN_PATH_MAX], const char *directory, uint64_t step, const char *suffix,
                                   bitaxon_error *error);
/* Whether the last part of a path is that of a checkpoint, and its step. */
bool bxn_checkpoint_named(const char *path, uint64_t *step);

#endif
