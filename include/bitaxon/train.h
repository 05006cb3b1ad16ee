/* SPDX-License-Identifier: Apache-2.0 */
/* train.h - training on the machine at hand: adapters (LoRA, DoRA) over a frozen model of any
 * format, or all parameters of a float model; supervised (SFT) or with preferences (ORPO).
 *
 * The host owns the loop: each bitaxon_trainer_step is one update of the optimiser, and between
 * two of them it may save, evaluate, put the adapter so far on a session, or leave. The same
 * model, data, parameters and seed give the same bits for any number of threads, interrupted and
 * resumed or not.
 *
 * A trainer is single-user; bitaxon_trainer_cancel alone may come from any thread. */
#ifndef BITAXON_TRAIN_H
#define BITAXON_TRAIN_H

#include <bitaxon/base.h>
#include <bitaxon/dataset.h>
#include <bitaxon/model.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bitaxon_trainer bitaxon_trainer;
struct bitaxon_adapter;
struct bitaxon_thermal;

enum { BITAXON_TRAIN_LORA = 1, BITAXON_TRAIN_DORA = 2, BITAXON_TRAIN_FULL = 3 };
enum { BITAXON_OPTIMIZER_ADAMW = 1, BITAXON_OPTIMIZER_MUON = 2 }; /* MUON: matrices; AdamW for the rest */
enum {
    BITAXON_TRAIN_EXACT_NORM = 1,         /* DoRA: gradients go through the norm too */
    BITAXON_TRAIN_NO_BIAS_CORRECTION = 2, /* of AdamW */
    BITAXON_TRAIN_NO_ISOLATION = 4,       /* examples run on into each other, split where a block is full */
    BITAXON_TRAIN_NO_SHUFFLE = 8,
    BITAXON_TRAIN_ORDERED = 16            /* the same bits for any number of machines; see all_reduce */
};

typedef struct bitaxon_trainer_params {
    uint32_t struct_size;
    int32_t method;              /* BITAXON_TRAIN_*; 0: DORA */
    int32_t objective;           /* 0: that of the data */
    uint32_t flags;              /* BITAXON_TRAIN_EXACT_NORM, ... */
    bitaxon_dataset *data;
    bitaxon_dataset *validation; /* nullable */
    struct bitaxon_adapter *adapter; /* nullable: start from a copy of it; method, rank and scale are its own */
    const char *targets;         /* name endings, comma separated; NULL: all that adapters may change */
    uint32_t rank;               /* 0: 8 */
    float scale;                 /* used directly; 0: alpha / rank, without alpha 20 */
    float alpha;
    float dropout;               /* of what adapters read, in [0, 1) */
    uint32_t block_tokens;       /* 0: the data's max_tokens */
    uint32_t blocks;             /* blocks (ORPO: pairs) of a micro-step; 0: 1 */
    uint32_t accumulate;         /* micro-steps of an update; 0: 4 */
    uint32_t bad_steps;          /* in a row, whose loss or gradient is not finite, before FORMAT; 0: 8 */
    uint64_t steps;              /* updates of the whole run, at least 1 */
    uint64_t warmup;             /* updates in which the rate rises */
    uint64_t seed;
    double learning_rate;        /* highest; 0: 1e-4 */
    double min_learning_rate;    /* what the cosine would reach after the last step */
    double other_learning_rate;  /* MUON: highest of what AdamW takes; 0: learning_rate */
    double weight_decay;         /* 0: 0.01; negative: none */
    double max_norm;             /* of the gradient, else it is shortened; 0: 1; negative: any */
    double beta1, beta2, epsilon; /* 0: 0.9, 0.999, 1e-8 */
    double momentum;             /* MUON; 0: 0.95 */
    int32_t optimizer;           /* 0: ADAMW; MUON with FULL only */
    float orpo_beta;             /* inside the sigmoid; 0: 0.1 */
    float orpo_lambda;           /* weight of the odds ratio; 0: 1. The paper's: beta 1, lambda 0.1 */
    /* Added to the mean loss: balance times the loss that spreads tokens over experts (experts * sum of their shares of
     * choices times mean probabilities, over all rows of a micro-step; 1 per MoE layer when even), whatever share of
     * rows has a label; micro-steps weigh by their labels or pairs. 0: off. */
    float balance;
    struct bitaxon_thermal *thermal; /* nullable: asked once per micro-step; kept alive */
    /* Several machines with one adapter; nullable. Each trains its micro-steps of the data (number `machine` of
     * `machines`); per update the callback replaces gradients [count] and sums [sum_count] by their sums over
     * all machines, added in the order of their numbers. Returns: 0, or the status that the step ends with.
     * ORDERED: it is called after each micro-step, and whatever `machines` is the sums are the same chain of additions,
     * so that runs of one accumulate * machines have the same bits; one more array of the gradient's size. */
    bitaxon_status (*all_reduce)(void *user, float *gradients, uint64_t count, double *sums,
                                 uint32_t sum_count);
    void *all_reduce_user;
    uint32_t machine, machines;
    /* Nullable; before each micro-step, stage TRAIN: micro-steps of the update, or examples evaluated. */
    bitaxon_progress_fn progress;
    void *progress_user;
} bitaxon_trainer_params;

/* Params:    params  data and steps at least.  out  NULL on failure.
 * Returns:   OK; INVALID_ARGUMENT (which field); UNSUPPORTED (FULL on quantised weights: the first); MISMATCH (adapter
 *            of another model; data of another objective, read with another tokenizer than the model's, or with tokens
 *            beyond the vocabulary); BAD_STATE (model without weights); FORMAT; OUT_OF_MEMORY; LIMIT.
 * Ownership: free with bitaxon_trainer_free; it keeps model and data alive.  Thread: any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_trainer_create(bitaxon_model *model, const bitaxon_trainer_params *params,
                                                  bitaxon_trainer **out, bitaxon_error *error);

/* What to put into params->steps for so many epochs: updates until params->data, packed as the other parameters say,
 * was read so often (all machines together; the last may read on into the next epoch). params->steps is not read.
 * Params:    epochs  above 0; those after the 16th are taken to be as long as the mean of these.
 *            steps   may be that of params.
 * Returns:   as bitaxon_trainer_create for params and data; INVALID_ARGUMENT (epochs; more than 2^53 updates).
 * Thread:    any-thread, while nothing is added to the data.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_trainer_epoch_steps(const bitaxon_trainer_params *params, double epochs,
                                                       uint64_t *steps, bitaxon_error *error);

/* NULL is fine.  Thread: single-user.  Since: 0.1 */
BITAXON_API void bitaxon_trainer_free(bitaxon_trainer *trainer);

typedef struct bitaxon_train_estimate {
    uint32_t struct_size;
    uint32_t reserved0;
    uint64_t mapped_bytes;  /* of the model's files, used in place */
    uint64_t model_bytes;   /* of the model besides */
    uint64_t values_bytes;  /* parameters that train, gradients, moments */
    uint64_t pass_bytes;    /* activations and buffers of a micro-step */
    uint64_t total_bytes;   /* all of these together */
    uint64_t trainable;     /* parameters that train */
} bitaxon_train_estimate;

/* Memory of a run, from the headers of the model's files, before anything is loaded.
 * Params:    params  data, validation and adapter may be NULL; block_tokens 0 is 2048 then.
 * Returns:   as bitaxon_model_estimate and bitaxon_trainer_create; MISMATCH: the adapter's model has other sizes.
 * Thread:    any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_trainer_estimate(const bitaxon_model_params *model,
                                                    const bitaxon_trainer_params *params,
                                                    bitaxon_train_estimate *out, bitaxon_error *error);

/* Of an update or an evaluation. Means are per token (SFT) or pair (ORPO), of an update over
 * all machines. */
typedef struct bitaxon_train_result {
    uint32_t struct_size;
    uint32_t updated;       /* 0: left out, loss or gradient was not finite (or an evaluation) */
    uint64_t step;          /* updates made so far */
    uint64_t epoch;         /* of the next example */
    double loss, learning_rate, gradient_norm; /* norm before it was shortened */
    uint64_t tokens, rows;  /* that counted; that were read */
    uint64_t pairs, skipped_pairs;
    double nll, odds, chosen, rejected, margin; /* ORPO: parts of the loss; mean log-probabilities, difference */
    double accuracy;        /* ORPO: share of pairs whose chosen answer is the likelier */
    double balance;         /* mean per row, without its weight */
    uint64_t step_ns, paused_ns, energy_uj; /* paused: of step_ns, by the thermal policy; energy 0: no source */
    uint64_t skipped_steps, empty_micro_steps; /* of the whole run, all machines: left out; without a token that counts
                                                  (of an evaluation: its own) */
} bitaxon_train_result;

/* One update: `accumulate` micro-steps forward and backward, then the optimiser.
 * Params:    result  nullable.
 * Returns:   OK; END (all steps are done); CANCELLED, THERMAL_STOP: nothing has changed, call again and it goes on
 *            with the same bits; FORMAT (bad_steps in a row; the model's values are not finite; no micro-step of a
 *            whole epoch has a token that counts); IO (data); SYSTEM and what all_reduce gives: as for CANCELLED,
 *            but after SYSTEM within an update (the message says it) resume from a checkpoint.
 * Thread:    single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_trainer_step(bitaxon_trainer *trainer, bitaxon_train_result *result,
                                                bitaxon_error *error);

/* The loss of the validation data, from its beginning in its own order, without dropout.
 * Params:    max_micro_steps  0: all.
 * Returns:   as bitaxon_trainer_step; BAD_STATE (no validation data).  Thread: single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_trainer_evaluate(bitaxon_trainer *trainer, uint64_t max_micro_steps,
                                                    bitaxon_train_result *result, bitaxon_error *error);

/* Ends the step or evaluation at work, or the next one; a step that ends well at that moment has spent it.
 * Safe in a signal handler.  Thread: any-thread.  Since: 0.1 */
BITAXON_API void bitaxon_trainer_cancel(bitaxon_trainer *trainer);

/* Write DIRECTORY/step_NNNNNNNN: adapter or weights, moments, state, history, checksums; it appears whole or
 * not at all. Older ones go when it is in place. One at step 0 shows whether the directory serves. One process at a
 * time saves to a directory or resumes from it: what another has not finished there would be cleared up.
 * Params:    keep  newest checkpoints to keep; 0: 3.
 * Returns:   OK, IO, OUT_OF_MEMORY, BAD_STATE (the directory has checkpoints of which this trainer is no part).
 *            After IO the checkpoint may be there all the same (the disk did not confirm it); saving again is fine.
 * Thread:    single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_trainer_save(bitaxon_trainer *trainer, const char *directory, uint32_t keep,
                                                bitaxon_error *error);

/* Go on from a checkpoint of the same model (accuracy too), data and parameters; only `steps` may differ. Other
 * kernels than the checkpoint's are a warning in the log: bits may differ.
 * Params:    directory  of checkpoints: the newest whole one (damaged ones are left with a warning in the log);
 *            or one checkpoint.
 * Returns:   OK; MISMATCH (the first parameter that differs); FORMAT (damaged); IO (there is none);
 *            OUT_OF_MEMORY. On failure the trainer is as it was; only when a file that was whole
 *            cannot be read a moment later every call gives BAD_STATE until one of resume succeeds.
 * Thread:    single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_trainer_resume(bitaxon_trainer *trainer, const char *directory,
                                                  bitaxon_error *error);

/* The adapter as it is now, a copy.
 * Returns:   OK, BAD_STATE (FULL), OUT_OF_MEMORY.  Ownership: free with bitaxon_adapter_free.
 * Thread:    single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_trainer_adapter(bitaxon_trainer *trainer, struct bitaxon_adapter **out,
                                                   bitaxon_error *error);

/* FULL: the model as it is now, in f32, with config.json and the tokenizer's files, into a new directory.
 * Returns:   OK, BAD_STATE (adapters train: merge one), IO, OUT_OF_MEMORY.  Thread: single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_trainer_write_model(bitaxon_trainer *trainer, const char *directory,
                                                       bitaxon_error *error);

typedef struct bitaxon_trainer_info {
    uint32_t struct_size;
    uint32_t micro_rows;      /* tokens of a micro-step at most */
    uint64_t step, steps;
    uint64_t epoch, index;    /* the next example is number `index` of its order */
    uint64_t trainable;       /* parameters */
    uint64_t bytes;           /* held besides the model */
    uint64_t tokens;          /* that counted, of the whole run, all machines */
    uint64_t skipped_steps, empty_micro_steps;
} bitaxon_trainer_info;

/* Returns:   OK, INVALID_ARGUMENT.  Thread: single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_trainer_get_info(const bitaxon_trainer *trainer, bitaxon_trainer_info *out,
                                                    bitaxon_error *error);

/* One update or evaluation of the run, also of before it was resumed. */
typedef struct bitaxon_train_point {
    uint32_t struct_size;
    uint32_t evaluation; /* 1: of bitaxon_trainer_evaluate */
    uint64_t step;       /* updates made before it, this one included */
    double loss, learning_rate, gradient_norm;
} bitaxon_train_point;

/* Params:    out [capacity]  the first one's struct_size set; NULL with capacity 0.  count  how many there are.
 * Returns:   OK, INVALID_ARGUMENT, LIMIT (more than capacity; the first are filled).
 * Thread:    single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_trainer_history(bitaxon_trainer *trainer, bitaxon_train_point *out,
                                                   size_t capacity, size_t *count, bitaxon_error *error);

#ifdef __cplusplus
}
#endif
#endif
