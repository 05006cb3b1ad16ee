/* SPDX-License-Identifier: Apache-2.0 */
/* train_ops.h - the operations of a sublayer in training: a forward over all rows of a micro-step and its
 * backward, twin files to the forward ops. There is no tape: a backward gets the op's input again, recomputes
 * what it needs of the forward, and gives the gradient of the input; gradients of trainable parameters
 * are added to arrays that the trainer owns. Nothing is allocated; scratch is taken from one block.
 *
 * Rows are tokens: all documents of a micro-step one after another, each with a state of its own that
 * begins at zero and with attention to itself alone, so that padding does not exist. Activation
 * rows are as in kernels.h ([T, K] ld, zero from K to the next multiple of 128).
 *
 * Whatever the number of threads, sums run in one fixed order: gradients have the same bits. */
#ifndef BXN_TRAIN_OPS_H
#define BXN_TRAIN_OPS_H

#include "ops/ops.h"

/* Rows first ... first + count - 1 are one document, or one whole block when examples are not kept apart.
 * Documents are in order and cover all rows. */
typedef struct bxn_document {
    uint32_t first, count;
} bxn_document;

/* ---- scratch ------------------------------------------------------------------------------ */

/* One block of memory from which ops take buffers and give them back in reverse order. With memory NULL
 * it only counts: that is how the bytes an op needs are found, by the same code that takes them. */
typedef struct bxn_scratch {
    unsigned char *memory; /* 64-byte aligned, or NULL */
    size_t bytes, used, most;
} bxn_scratch;

/* 64-byte aligned; NULL when counting. The block was made large enough. */
void *bxn_scratch_take(bxn_scratch *scratch, size_t bytes);
/* [rows, ld] floats; ld is a multiple of 16. */
float *bxn_scratch_rows(bxn_scratch *scratch, size_t rows, size_t ld);

/* Floats from one row of `cols` to the next: products read rows to a multiple of 128, behind which are zeros, and a
 * cache line more puts the same columns of successive rows into different sets of the caches. Without it rows of
 * 10240 floats share a sixteenth of them. */
static inline size_t bxn_train_ld(uint64_t cols) { return bxn_round_up(cols, BXN_UNIT_COLS) + 16; }

/* ---- gradients ---------------------------------------------------------------------------- */

/* Where gradients of one weight are added; NULL where it does not train. All layouts are those of the
 * values: w [rows, cols] without padding, a and b as in bxn_lora, m [rows]. */
typedef struct bxn_weight_grads {
    float *w;
    float *a, *b, *m;
} bxn_weight_grads;

/* The same for the vectors of a sublayer, in the layout of the kernels; a_log is the gradient of A_log
 * in the layout of a2. */
typedef struct bxn_sublayer_grads {
    float *norm;
    float *conv_weight, *conv_bias, *dt_weight, *dt_bias, *a_log, *d;
} bxn_sublayer_grads;

/* ---- pass --------------------------------------------------------------------------------- */

/* Whether an op's backward computes again what its forward had in its buffers, or finds it in `kept`. */
typedef enum bxn_keep {
    BXN_KEEP_NOTHING, /* computes it again */
    BXN_KEEP_LEAVE,   /* this forward leaves it there */
    BXN_KEEP_FIND     /* this backward is the next op after such a forward to use `kept`: it spends what is there */
} bxn_keep;

typedef struct bxn_train_pass {
    bxn_exec exec; /* phase PREFILL; ops of training use no workspace of it */
    uint32_t rows;
    const bxn_document *documents;
    uint32_t document_count;
    bxn_scratch scratch;
    bxn_scratch kept; /* bxn_ssm_kept_bytes and its like; read and written as `keep` says */
    bxn_keep keep;
    const bxn_weight_grads *grads; /* [weights of the model] by id - 1; NULL: none train */
    /* Load balancing of experts (Fedus et al. 2021, eq. 4): balance * X * sum over e of f_e P_e per MoE
     * sublayer, over all rows of the pass, times `rows`; its gradient goes with that of the result. 0: off. */
    float balance;
    double balance_loss; /* added to by forwards, without the factor `balance` */
} bxn_train_pass;

/* ---- linear (linear_backward.c) ------------------------------------------------------------- */

/* y[rows, w->rows] = x W^T with the adapters of the pass, any number of rows. x rows padded with zeros. */
bitaxon_status bxn_train_linear(bxn_train_pass *pass, const bxn_weight *w, const float *x, size_t ldx,
                                uint32_t rows, float *y, size_t ldy);

/* Backward of it. dy is not changed; its rows are padded with zeros too. dx (nullable; neither x nor dy) is
 * written, or added to. y is the result of the forward, read when a DoRA magnitude trains and may be NULL
 * otherwise. Dropout is that of the forward, by rows from adapters->first_row on. Of gradients,
 * full: dW += dy^T x; adapters (one in force, weight 1): with u = A^T drop(x), dz = g o dy:
 * dB += s u^T dz, dA += s drop(x)^T (dz B^T), dm += sum over rows of dy o y / m. The gradient through the norm of
 * DoRA is not here (bxn_dora_gains). */
bitaxon_status bxn_linear_backward(bxn_train_pass *pass, const bxn_weight *w, const float *x, size_t ldx,
                                   const float *y, size_t ldy, const float *dy, size_t lddy, uint32_t rows,
                                   float *dx, size_t lddx, bool add);
/* Columns 128 * begin ... of y = x W without adapters, or added to y, within a task. */
void bxn_product_transposed(const bxn_exec *exec, const bxn_weight *w, uint32_t begin, uint32_t end,
                            const bxn_mm_args *args, bool add);
/* Scratch of both, for at most `rows` rows, and of bxn_dora_gains; rank: of the adapters in force together. */
size_t bxn_train_linear_bytes(const bxn_weight *w, uint32_t rank, uint32_t rows);

/* c[i][j] += sum over t of p[t][i] * q[t][j] by all threads, in the order of the kernel outer_add. */
bitaxon_status bxn_outer_add(const bxn_exec *exec, const float *p, size_t ldp, uint32_t p_cols, const float *q,
                             size_t ldq, uint32_t q_cols, uint32_t rows, float *c, size_t ldc);

/* x without dropped elements, the others divided by 1 - p: element (row, column) of the input of weight id is
 * dropped by a function of (key, id, row, column) alone, with a chance in steps of 2^-16. out may be x. */
void bxn_dropout(const bxn_adapters *adapters, uint32_t id, uint64_t row, const float *x, uint32_t cols, float *out);

/* Squares of the norms of the rows of W: norm2 [rows], in double sums. */
bitaxon_status bxn_weight_norms(const bxn_exec *exec, const bxn_weight *w, float *norm2);
/* gain [rows] = m / ||(W + s (A B)^T)_o||, by ||W||^2 + 2 s <W_o A, B_o> + s^2 B_o^T (A^T A) B_o, at least
 * 1e-12 below the root (spec 9.6). wa [rank, ldb] is filled with (W A)^T. When dm is not NULL, also adds the
 * gradient through the norm to da and db: -sum over o of (dm_o m_o / norm2_o) * d(norm2_o) / 2 by A and B,
 * where dm is the gradient of m summed over what da and db were (exact DoRA). */
bitaxon_status bxn_dora_gains(bxn_train_pass *pass, const bxn_weight *w, const bxn_lora *lora, const float *norm2,
                              float *gain, float *wa, const float *dm, float *da, float *db);
size_t bxn_dora_bytes(const bxn_weight *w, uint32_t rank); /* its scratch */

/* ---- norm (norm_backward.c) ----------------------------------------------------------------- */

/* dx += gradient of x through y = rmsnorm(x, w); dw (nullable) is added to. */
bitaxon_status bxn_norm_backward(bxn_train_pass *pass, const float *x, size_t ldx, const float *w, uint32_t dim,
                                 float eps, const float *dy, size_t lddy, uint32_t rows, float *dx, size_t lddx,
                                 float *dw);

/* ---- mixers and experts ---------------------------------------------------------------------- */

/* n [rows, D] normed input -> r [rows, D]. */
bitaxon_status bxn_ssm_train(bxn_train_pass *pass, const bxn_ssm *p, const float *n, size_t ldn, float *r, size_t ldr);
bitaxon_status bxn_attention_train(bxn_train_pass *pass, const bxn_attention *p, const float *n, size_t ldn, float *r,
                                   size_t ldr);
bitaxon_status bxn_moe_train(bxn_train_pass *pass, const bxn_moe *p, uint32_t layer, const float *n, size_t ldn,
                             float *r, size_t ldr);
/* dr: gradient of r; dn is written. Attention spends dr, the others leave it alone. */
bitaxon_status bxn_ssm_backward(bxn_train_pass *pass, const bxn_ssm *p, const bxn_sublayer_grads *grads, const float *n,
                                size_t ldn, float *dr, size_t lddr, float *dn, size_t lddn);
bitaxon_status bxn_attention_backward(bxn_train_pass *pass, const bxn_attention *p, const float *n, size_t ldn,
                                      float *dr, size_t lddr, float *dn, size_t lddn);
bitaxon_status bxn_moe_backward(bxn_train_pass *pass, const bxn_moe *p, uint32_t layer, const float *n, size_t ldn,
                                float *dr, size_t lddr, float *dn, size_t lddn);
/* Scratch that forward and backward need for at most `rows` rows; rank: of the adapter, 0 none;
 * magnitudes: it is DoRA; full: weights train; kept: besides bxn_moe_kept_bytes. That of experts looks at whether they
 * are packed. */
size_t bxn_ssm_train_bytes(const bxn_ssm *p, uint32_t rows, uint32_t rank, bool magnitudes, bool full);
size_t bxn_attention_train_bytes(const bxn_attention *p, uint32_t rows, uint32_t rank, bool full);
size_t bxn_moe_train_bytes(const bxn_moe *p, uint32_t rows, uint32_t rank, bool kept);
/* Bytes of `kept` that a forward may leave. */
size_t bxn_ssm_kept_bytes(const bxn_ssm *p, uint32_t rows);
size_t bxn_attention_kept_bytes(const bxn_attention *p, uint32_t rows);
size_t bxn_moe_kept_bytes(const bxn_moe *p, uint32_t rows);

#endif
