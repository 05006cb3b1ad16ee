/* SPDX-License-Identifier: Apache-2.0 */
/* bxn_train.h - what the files of training share: parameters as flat arrays, a micro-step of
 * tokens, the pass through the whole model, data, optimiser, and the trainer that joins them.
 *
 * One update is `accumulate` micro-steps: of each, losses and gradients are sums, and the update divides
 * by what they were summed over, so that a token weighs the same whatever micro-step it was in. */
#ifndef BXN_TRAIN_H
#define BXN_TRAIN_H

#include "model/bxn_adapter.h"
#include "model/bxn_model.h"
#include "ops/train_ops.h"
#include "tokenizer/bxn_tokenizer.h"

/* ---- parameters ----------------------------------------------------------------------------- */

/* One trainable array, [rows, cols] ld, `offset` floats (a multiple of 16) into each of the flat arrays below;
 * what is padding there is zero in all of them and stays so. */
typedef struct bxn_parameter {
    char name[BXN_WEIGHT_NAME + 16]; /* as in files: "layer_0.ssm.in_proj.lora_a", "embed_tokens.weight" */
    size_t offset;
    uint32_t rows, cols;
    size_t ld;
    bool matrix; /* Muon may take it: a weight of a hidden layer, not embedding, head or vector */
    bool decay;  /* weight decay applies */
} bxn_parameter;

typedef struct bxn_parameters {
    bxn_parameter *items;
    uint32_t count;
    size_t floats;
    float *value, *grad, *m, *v; /* [floats] each; v NULL where the optimiser has none */
} bxn_parameters;

/* ---- a micro-step ---------------------------------------------------------------------------- */

/* Rows of documents one after another. labels[t] is the token that should follow tokens[t], or -1
 * where none counts (the last of a document, what is masked). In ORPO documents come in pairs, first the
 * chosen, then the rejected answer. */
typedef struct bxn_micro_step {
    uint32_t rows;
    const int32_t *tokens; /* [rows] */
    const int32_t *labels; /* [rows] */
    const bxn_document *documents;
    uint32_t document_count;
} bxn_micro_step;

typedef enum bxn_objective { BXN_OBJECTIVE_SFT = 1, BXN_OBJECTIVE_ORPO } bxn_objective;

typedef struct bxn_objective_params {
    bxn_objective kind;
    float beta;    /* inside the sigmoid */
    float lambda;  /* weight of the odds-ratio term */
    float balance; /* of experts, per unit of the loss (label or pair) as the loss itself; 0 off */
} bxn_objective_params;

/* Sums over what a micro-step or more hold. */
typedef struct bxn_losses {
    double loss;     /* SFT: sum of -log p over tokens; ORPO: sum over pairs of nll + lambda * odds term */
    uint64_t tokens; /* labels counted */
    uint64_t pairs, skipped_pairs; /* ORPO; skipped: a side without a label */
    double nll;      /* ORPO: sum over pairs of the mean -log p of the chosen answer */
    double odds;     /* ORPO: sum of -log sigmoid(beta * log odds) */
    double chosen, rejected; /* ORPO: sums of mean log-probabilities */
    uint64_t preferred;      /* ORPO: pairs whose chosen answer has the larger mean */
    double balance;  /* sum over MoE sublayers and rows, without its factor */
} bxn_losses;

/* ---- loss (loss.c) ---------------------------------------------------------------------------- */

/* log p(label) of each row with a label, from rows h [rows, S] ldh that the head takes: logp [rows], 0 where
 * the label is -1. Logits exist for a tile of rows only. */
bitaxon_status bxn_loss_logprobs(bxn_train_pass *pass, const bxn_model *model, const float *h, size_t ldh,
                                 const int32_t *labels, uint32_t rows, float *logp);
/* The gradient of sum over rows of coefficient[t] * log p(label t): dh [rows, S] is written (zero where the
 * coefficient is 0), the head's gradient is added to when it trains. logp (nullable) is filled as above, so
 * that SFT needs one pass over the head. */
bitaxon_status bxn_loss_backward(bxn_train_pass *pass, const bxn_model *model, const float *h, size_t ldh,
                                 const int32_t *labels, const float *coefficient, uint32_t rows, float *logp,
                                 float *dh, size_t lddh);
size_t bxn_loss_bytes(const bxn_model *model, uint32_t rows);
/* ORPO (Hong et al. 2024; spec 9.7): from logp of all rows, adds to losses and fills the gradient of the
 * summed loss by each logp. Averages in the odds are clamped to [-1000, -1e-6]; where they are, no gradient of the
 * odds flows. Sums of log-probabilities are of what was not clamped; pairs left out count nowhere else. */
void bxn_orpo(const bxn_objective_params *params, const bxn_micro_step *step, const float *logp, float *coefficient,
              bxn_losses *losses);
double bxn_log1mexp(double x); /* log(1 - e^x), x < 0 */

/* ---- the whole model (backward.c) --------------------------------------------------------------- */

/* Where gradients of everything else than weights go; entries NULL where frozen. */
typedef struct bxn_model_grads {
    bxn_weight_grads *weights;       /* [model->weight_count] */
    bxn_sublayer_grads *sublayers;   /* [model->sublayer_count] */
    float *final_norm;
} bxn_model_grads;

/* Bytes that an op of each kind leaves of its forward for its backward; 0: nothing is kept. */
typedef struct bxn_left {
    size_t ssm, attention, experts;
} bxn_left;

/* Buffers of passes of at most `rows` rows through one model. */
typedef struct bxn_runner {
    bxn_mem *mem;
    const bxn_model *model;
    bxn_pool *pool;
    uint32_t rows;
    size_t ld_d, ld_s; /* of rows of D and of S */
    void *memory;
    size_t bytes;
    bxn_scratch scratch; /* of ops */
    size_t kept;     /* bytes at its start for a mixer's second forward, until its backward; 0 with `every` */
    uint32_t single; /* layers of one sublayer, the first ones */
    bool every;      /* the stream before every sublayer is kept, and what `left` says; else before every second one */
    bxn_left left;
    unsigned char *left_memory;
    float *x;        /* what is kept of the stream, [*][rows, D] */
    float *mid;      /* the stream after the last sublayer, and before those that do not keep it */
    float *n;        /* input of an op */
    float *dx, *dn;  /* gradients of the stream and of the input of an op */
    float *dtop;     /* of the result of the final norm */
    float *r;        /* result of an op; in the place of dn */
    float *s, *ds;   /* [rows, S]: embeddings, or what the head takes, and its gradient; in those of dn, n or dx */
    float *logp, *coefficient;
} bxn_runner;

/* Most bytes of streams and ops' buffers that are kept so as not to be computed twice. */
#define BXN_KEEP_BYTES ((size_t)512 << 20)

/* Bytes that bxn_runner_create will allocate, from the configuration of the model alone. */
size_t bxn_runner_bytes(const bxn_model *model, uint32_t rows, uint32_t rank, bool magnitudes, bool full, size_t keep);
/* rank: of the adapter that trains, 0 none; magnitudes: it is DoRA; full: weights and vectors train; keep:
 * BXN_KEEP_BYTES. */
bitaxon_status bxn_runner_create(bxn_mem *mem, const bxn_model *model, uint32_t rows, uint32_t rank, bool magnitudes,
                                 bool full, size_t keep, bxn_runner *out, bitaxon_error *error);
void bxn_runner_free(bxn_runner *runner);
/* Forward, loss, backward of one micro-step. grads NULL: evaluation, no backward and no dropout. Adds to
 * losses and gradients. CANCELLED, FORMAT (a router's value is not finite), SYSTEM: gradients are spoilt. */
bitaxon_status bxn_runner_step(bxn_runner *runner, const bxn_micro_step *step, const bxn_objective_params *objective,
                               const bxn_adapters *adapters, const bxn_model_grads *grads, const atomic_int *cancel,
                               bxn_losses *losses, bitaxon_error *error);

/* A model of which everything trains: f32 copies of all weights and vectors in one flat array (padded
 * as kernels want), with A as A_log and a2 derived after each update. The source stays as it is. */
typedef struct bxn_trainable bxn_trainable;
/* UNSUPPORTED naming the first weight that is quantised. muon: parameters are marked as its matrices. */
bitaxon_status bxn_trainable_create(bxn_mem *mem, const bxn_model *source, bool muon, bxn_trainable **out,
                                    bitaxon_error *error);
/* What it allocates, from the configuration alone (and whether the head is tied); *values: how many train. */
uint64_t bxn_trainable_bytes(const bxn_model *model, uint64_t *values);
size_t bxn_trainable_floats(const bxn_model *model); /* of one of its arrays */
void bxn_trainable_free(bxn_trainable *trainable);
const bxn_model *bxn_trainable_model(const bxn_trainable *trainable);
bxn_parameters *bxn_trainable_parameters(bxn_trainable *trainable);
const bxn_model_grads *bxn_trainable_grads(const bxn_trainable *trainable);
void bxn_trainable_updated(bxn_trainable *trainable); /* after values changed: what is derived from them */
/* Elements first ... of a tensor by its name and in its layout in files (spec 2.2), as bxn_convert_write asks for
 * them; lm_head.weight of a tied model is the embedding. Parameters of a stack of experts are named one by one,
 * "layer_1.moe.switch_mlp.up_proj.weight.0". INVALID_ARGUMENT when there is no such tensor. */
bitaxon_status bxn_trainable_read(const bxn_trainable *trainable, const char *name, uint64_t first, size_t count,
                                  float *out, bitaxon_error *error);

/* ---- optimiser (optimizer.c) ---------------------------------------------------------------------- */

typedef enum bxn_optimizer_kind { BXN_ADAMW = 1, BXN_MUON } bxn_optimizer_kind;

typedef struct bxn_optimizer {
    bxn_optimizer_kind kind; /* MUON: matrices by Muon, the rest by AdamW */
    double learning_rate, min_learning_rate; /* peak and end of the cosine */
    uint64_t warmup, total;  /* updates */
    double beta1, beta2, epsilon, weight_decay;
    double max_norm;         /* of the gradient; 0: no clipping */
    double momentum;         /* Muon */
    double other_rate;       /* MUON: peak of what AdamW takes; 0: as learning_rate. The schedule is the same */
    bool bias_correction;
    void *scratch;           /* MUON: bxn_optimizer_scratch bytes, 64-byte aligned */
} bxn_optimizer;

size_t bxn_optimizer_scratch(const bxn_optimizer *optimizer, const bxn_parameters *parameters);

/* Of update u = 0, 1, ...: peak * (u + 1) / warmup while u < warmup, then half a cosine that reaches the
 * minimum at `total`. */
double bxn_learning_rate(const bxn_optimizer *optimizer, uint64_t update);
/* Global norm of grad * scale; sums in double over fixed blocks in order. NaN or infinite when a value is. */
bitaxon_status bxn_gradient_norm(const bxn_exec *exec, const bxn_parameters *parameters, double scale, double *norm);
/* One update with gradient grad * scale, clipped by the norm found before; clears grad. It is not cancelled half
 * way; after SYSTEM (the host's executor failed) the values are of no use. */
bitaxon_status bxn_optimizer_update(const bxn_exec *exec, const bxn_optimizer *optimizer, bxn_parameters *parameters,
                                    uint64_t update, double scale, double norm);

#endif
