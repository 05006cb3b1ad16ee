/* SPDX-License-Identifier: Apache-2.0 */
/* ops.h - the operations of a sublayer: linear, norm, selective state space,
 * attention, mixture of experts, rotary position. Each op reads its parameters,
 * rows of activations and the state passed to it, and writes into buffers of the
 * workspace; it allocates nothing. Rows are "[T, K] ld" as in kernels.h. */
#ifndef BXN_OPS_H
#define BXN_OPS_H

#include "kernels/kernels.h"
#include "runtime/runtime.h"

#define BXN_TILE 128 /* tokens that one pass through the layers takes at most */
#define BXN_TILE_AMX 512 /* the same where prompts are read in bf16 tiles: many tokens share what is decoded */

static inline uint32_t bxn_pass_tokens(bool tiles) { return tiles ? BXN_TILE_AMX : BXN_TILE; }

/* ---- parameters ------------------------------------------------------------------ */

typedef enum bxn_weight_kind { BXN_WEIGHT_NONE = 0, BXN_WEIGHT_DENSE, BXN_WEIGHT_PACKED } bxn_weight_kind;

/* A matrix [rows, cols] in any form that kernels multiply. Views: the model owns or maps the bytes. */
typedef struct bxn_weight {
    bxn_weight_kind kind;
    bxn_xq_kind xq; /* integers that its products take (near and fast tiers); NONE: exact f32 */
    uint32_t rows, cols;
    uint32_t id; /* number within the model, from 1 (bxn_model_number); a tied head has that of the embedding */
    bxn_dense dense;
    bxn_packed packed;
} bxn_weight;

/* Vectors padded to a multiple of 16 with zeros are marked E16. */
typedef struct bxn_ssm {
    uint32_t channels;     /* E */
    uint32_t channels16;   /* E16 */
    uint32_t states;       /* N */
    uint32_t taps;         /* K */
    bxn_weight in_proj;    /* [2E, D]: x rows, then z rows */
    bxn_weight x_proj;     /* [2N+1, E]: B, C, dt */
    bxn_weight out_proj;   /* [D, E] */
    const float *conv_weight; /* [K, E16] */
    const float *conv_bias;   /* [E16] */
    const float *dt_weight;   /* [E16] */
    const float *dt_bias;     /* [E16] */
    const float *a2;          /* [E16/16][N][16] = -exp(A_log) * log2(e) */
    const float *d;           /* [E16] */
    size_t state_offset;   /* floats into the scan state: h, then the tail [K-1, E16] */
} bxn_ssm;

typedef struct bxn_attention {
    uint32_t heads, head_dim;
    uint64_t window;
    float rope_theta; /* 0: no rotary position */
    bxn_weight q_proj, k_proj, v_proj, o_proj; /* [D, D] */
    uint32_t kv_index; /* which attention layer, for the place in a page */
} bxn_attention;

typedef struct bxn_moe {
    uint32_t experts, top_k, inner;
    bxn_weight router;                    /* [X, D] */
    const bxn_weight *gate, *up, *down;   /* [X] of [I, D], [I, D], [D, I] */
    bool shared;
    bxn_weight shared_gate;               /* [1, D] */
    bxn_weight shared_gate_proj, shared_up_proj, shared_down_proj;
} bxn_moe;

/* ---- adapters ---------------------------------------------------------------------- */

/* A low-rank adapter of one weight W [rows, cols] (Hu et al. 2021, Liu et al. 2024; spec 9.6). With the
 * matrices of files, A [cols, r] and B [r, rows]:
 *   LoRA   y = W x + s (A B)^T x
 *   DoRA   y = g o (W x + s (A B)^T x),  g_o = m_o / ||(W + s (A B)^T)_o||
 * Rows begin on 64 bytes; from cols and from rows up to the strides there are zeros. */
typedef struct bxn_lora {
    uint32_t rank;     /* r; 0: this weight has none */
    float scale;       /* s */
    const float *a;    /* [r, cols] lda: the transpose of A */
    const float *b;    /* [r, rows] ldb */
    size_t lda, ldb;   /* cols and rows rounded up to 128 */
    const float *m;    /* [rows] magnitudes; NULL: LoRA */
    const float *gain; /* [rows] g; NULL: LoRA */
} bxn_lora;

#define BXN_ADAPTERS 4 /* in force together */

/* Adapters of a pass. With y_i what W and adapter i alone give:
 *   y = W x + sum over i ascending of weights[i] * (y_i - W x)
 * In training, u = A^T x is taken of x with elements dropped (bxn_dropout). */
typedef struct bxn_adapters {
    uint32_t count;
    const bxn_lora *loras[BXN_ADAPTERS]; /* each [weights of the model], by bxn_weight.id - 1 */
    float weights[BXN_ADAPTERS];
    float dropout;        /* chance of an element to be dropped, in [0, 1); 0 outside of training */
    uint64_t dropout_key; /* of this micro-step */
    uint64_t first_row;   /* of the pass's rows within the micro-step */
} bxn_adapters;

/* What one adapter adds to the products of one weight with one input (bxn_inputs_make). */
typedef struct bxn_low_rank {
    const bxn_lora *lora;
    uint32_t id;    /* of the weight */
    uint32_t rows, cols;
    const float *x; /* [rows, lda] ldx: of the input, or of it with elements dropped */
    size_t ldx;
    float weight;
    float *u;       /* [rows, rank], `rank` floats apart: A^T x */
    float *dropped; /* [rows, lda] room for x with elements dropped; NULL: nothing is dropped */
} bxn_low_rank;

/* ---- key and value pages ---------------------------------------------------------- */

/* How a page of BXN_PAGE tokens is laid out: [kv layers][heads]{K, V}, each as kernels.h says. */
typedef struct bxn_kv_layout {
    uint32_t layers, heads, head_dim;
    uint32_t v_stride;       /* head_dim rounded up to 16 */
    bxn_kv_type type;
    size_t k_bytes, v_bytes; /* of one head of one layer */
    size_t page_bytes;
} bxn_kv_layout;

void bxn_kv_layout_init(bxn_kv_layout *layout, uint32_t layers, uint32_t heads, uint32_t head_dim,
                        bxn_kv_type type);
/* Zero the slots of a page from `used` on, and what belongs to no slot. */
void bxn_kv_clear(const bxn_kv_layout *layout, void *page, uint32_t used);

/* Put a key and a value of a head into a slot of its regions k and v; of a 4-bit cache both
 * rotated. scratch: 4 * v_stride bytes. */
void bxn_kv_store(const bxn_kernels *kernels, const bxn_kv_layout *layout, const float *key,
                  const float *value, void *k, void *v, uint32_t slot, void *scratch);

/* The rotation of keys, values and queries of a 4-bit cache: a symmetric orthogonal matrix
 * [head_dim, v_stride] made from constants alone (docs/attention.md). */
void bxn_kv_rotation(float *matrix, uint32_t head_dim);

/* The pages a pass may read and write: pages[i] holds positions (first + i) * BXN_PAGE ... */
typedef struct bxn_kv_view {
    const bxn_kv_layout *layout;
    void *const *pages;
    uint64_t first;
} bxn_kv_view;

/* How a token was read: with others of a prompt, or alone, as it was generated. A cache keeps it of
 * every token, so that a replay computes as the first reading did where the two differ. */
typedef enum bxn_phase { BXN_PHASE_PREFILL = 0, BXN_PHASE_DECODE = 1 } bxn_phase;

/* The rows first ... first + count - 1 of a pass: consecutive tokens of one sequence, with its
 * state and pages. A prompt is a pass of one segment; several sequences that decode
 * together are one segment each. Segments of a pass have states and pages of their own. */
typedef struct bxn_segment {
    uint32_t first, count;
    uint64_t position; /* of the first */
    const float *state_in;
    float *state_out; /* disjoint from state_in */
    const bxn_kv_view *kv;
} bxn_segment;

/* ---- workspace --------------------------------------------------------------------- */

/* Bytes that inputs have of a workspace: an op notes them before it makes some, and sets them back. */
typedef struct bxn_taken {
    size_t inputs, low;
} bxn_taken;

/* Buffers of one pass in one block of memory, but for those of adapters, which grow apart from it. Strides in
 * floats. Buffers of different ops share their place; an op begins with zeros in the padding of its own
 * rows (bxn_pad_rows). */
typedef struct bxn_workspace {
    void *memory;
    size_t bytes;
    uint32_t tokens; /* T: of a pass at most */
    unsigned char *low; /* what adapters make of inputs; NULL: there is no room for any */
    size_t low_bytes;
    size_t ld_d, ld_s, ld_e, ld_2e, ld_bcd, ld_i, ld_x, score_stride;
    float *x;      /* [T, D] residual stream */
    float *n;      /* [T, D] normed input of the op */
    float *r;      /* [T, D] result of the op; in the place of n, which is spent by then */
    float *s;      /* [T, S] embeddings; at the end, the rows that the head takes; between, of the ops */
    unsigned char *inputs; /* what products read of their inputs (bxn_inputs_make) */
    size_t inputs_bytes;   /* room there */
    bxn_taken taken;       /* of inputs and low */
    /* state space */
    float *xz, *xc, *bcd, *y; /* y in the place of xc */
    /* attention */
    float *q, *k, *v, *o;
    float *rotation; /* bxn_kv_rotation */
    float *scores;   /* bxn_attention_floats, of which each task has score_stride */
    /* experts */
    float *route;       /* [T, X] */
    float *weight;      /* [T, top_k] */
    float *shared_s;    /* [T] rows BXN_UNIT_COLS apart: gate of the shared expert */
    int32_t *picked;    /* [T, top_k] */
    int32_t *pair_row;  /* [T * top_k] token of each pair, grouped by expert */
    int32_t *pair_of;   /* [T, top_k] pair index of each pick */
    int32_t *first;     /* [X + 1] first pair of each expert */
    int32_t *used;      /* [X] experts that have pairs, ascending */
    float *a, *b;       /* [T * top_k + T, I] hidden rows of pairs, then of the shared expert */
    float *e;           /* [T * top_k, D] expert results; in the place of b */
} bxn_workspace;

/* What ops compute with. Initialised by name: the phase that nobody names is PREFILL. */
typedef struct bxn_exec {
    const bxn_kernels *kernels;
    bxn_pool *pool;
    const atomic_int *cancel; /* nullable */
    bxn_workspace *ws;
    bxn_phase phase; /* of all tokens of the pass */
    const bxn_adapters *adapters; /* nullable */
    /* Nullable: called between sublayers from the thread that made the call; not OK ends the pass. */
    bitaxon_status (*tick)(void *user);
    void *tick_user;
    bitaxon_error *error;
} bxn_exec;

/* ---- operations ---------------------------------------------------------------------- */

static inline bool bxn_cancelled(const atomic_int *cancel)
{
    return cancel != NULL && atomic_load_explicit(cancel, memory_order_relaxed) != 0;
}

/* A parallel region: `groups` units of work of `cost` each (any unit, the same for all items),
 * which threads take in ranges. task(context, item, begin, end) comes once for each range. Ranges
 * are begun in order by threads that run, so that one may wait for what an earlier one does
 * unless it is cancelled. CANCELLED, SYSTEM. */
typedef struct bxn_item {
    uint32_t groups;
    uint64_t cost;
    uint32_t least; /* groups that a range should have, where every range reads the same inputs; 0: no matter */
} bxn_item;
typedef void (*bxn_range_task)(void *context, uint32_t item, uint32_t begin, uint32_t end);
bitaxon_status bxn_ranges_run(const bxn_exec *exec, const bxn_item *items, uint32_t count,
                              bxn_range_task task, void *context);
/* Rows of little work: few are done by the caller, many by all threads. */
bitaxon_status bxn_rows_run(const bxn_exec *exec, uint32_t rows, bxn_task task, void *context);

/* Whether products with w take bf16 tiles (kernels.h): in prefill, where there is AMX, with weights
 * that are not kept exact. The phase decides, never how many tokens there are. */
static inline bool bxn_tiled(const bxn_exec *exec, const bxn_weight *w)
{
    return w->xq != BXN_XQ_NONE && exec->phase == BXN_PHASE_PREFILL &&
           exec->kernels->mm_tile4 != NULL;
}

/* The part of w in adapter i of those in force, or NULL. */
static inline const bxn_lora *bxn_lora_of(const bxn_adapters *adapters, uint32_t i, const bxn_weight *w)
{
    const bxn_lora *lora = w->id != 0 && adapters->loras[i] != NULL ? &adapters->loras[i][w->id - 1] : NULL;
    return lora != NULL && lora->rank != 0 ? lora : NULL;
}

#define BXN_INPUT_ADAPTED 4 /* weights with adapters that read one input at most */

/* Rows of activations and what products read of them besides: sums of blocks when `summed`, and
 * integers of one kind or bf16 tiles. Row i of tiles is row from[i] of x, so that experts have
 * rows of their own in blocks of their own; sums and integers are those of all rows, `from` NULL. */
typedef struct bxn_input {
    const float *x;
    size_t ldx;
    const int32_t *from; /* nullable: row i is i */
    uint32_t cols, rows;
    bool summed, tiled;
    bxn_xq_kind kind; /* NONE when tiled */
    const bxn_weight *adapted[BXN_INPUT_ADAPTED]; /* readers that have adapters; `from` is NULL then */
    uint32_t adapted_count;
    /* made */
    float *sums, *xscale;
    unsigned char *xq;
    size_t ldsum, ldxq, ldxscale; /* of tiles, ldxq is from block to block */
    const bxn_low_rank *low;
    uint32_t low_count;
} bxn_input;
size_t bxn_input_bytes(size_t columns); /* of a row at most, without tiles */
/* Of `rows` rows with sums and `blocks` blocks of 16 rows as tiles. */
size_t bxn_tiled_input_bytes(size_t columns, size_t rows, size_t blocks);
/* An input that w reads in this phase; then asked of others with the same rows. */
void bxn_input_want(bxn_input *in, const bxn_exec *exec, const bxn_weight *w);
void bxn_input_adapt(bxn_input *in, const bxn_exec *exec, const bxn_weight *w); /* its part of that for adapters */
/* Room in ws->low for `rows` rows of all that reads one input with adapters whose ranks add up to `rank`;
 * without dropout. */
size_t bxn_low_rank_bytes(size_t rows, uint32_t rank);
/* Makes them in ws->inputs and ws->low, behind what is taken there (ws->taken, which the caller sets back). */
bitaxon_status bxn_inputs_make(const bxn_exec *exec, bxn_input *inputs, uint32_t count);
void bxn_input_use(const bxn_input *in, bxn_mm_args *args);

/* Rows 16 * begin ... of y = x W^T with adapters, within a task. args are of an input that w wants. */
void bxn_product(const bxn_exec *exec, const bxn_weight *w, uint32_t group_begin, uint32_t group_end,
                 const bxn_mm_args *args);
/* `groups` times 16 rows of such products as an item of a region. */
bxn_item bxn_product_item(const bxn_exec *exec, const bxn_weight *w, uint32_t groups, uint32_t tokens);

/* One product of a job list. Sums and integers (or tiles) that the weight needs and args lacks
 * (NULL) are made once for all jobs of the list with the same x; those of jobs with args.rows must
 * be there. */
typedef struct bxn_linear_job {
    const bxn_weight *w;
    bxn_mm_args args;
} bxn_linear_job;

/* All products of the list in one parallel region: y = x W^T each. CANCELLED, SYSTEM. */
bitaxon_status bxn_linear_jobs(const bxn_exec *exec, const bxn_linear_job *jobs, uint32_t count);
/* y[T, rows] = x[T, cols] W^T. */
bitaxon_status bxn_linear(const bxn_exec *exec, const bxn_weight *w, const float *x, size_t ldx,
                          uint32_t tokens, float *y, size_t ldy);
bool bxn_needs_sums(const bxn_exec *exec, const bxn_weight *w);
/* Row `row` as f32 (embedding look-up). out [cols]. */
void bxn_weight_row(const bxn_weight *w, uint32_t row, float *out);

bitaxon_status bxn_norm(const bxn_exec *exec, const float *x, size_t ldx, const float *w,
                        uint32_t dim, float eps, uint32_t tokens, float *y, size_t ldy);
bitaxon_status bxn_residual_add(const bxn_exec *exec, float *x, const float *r, size_t ld,
                                uint32_t dim, uint32_t tokens);

/* Zeros from `cols` to the next multiple of 128 of each row. */
void bxn_pad_rows(float *x, size_t ld, uint32_t cols, uint32_t rows);

/* Rotate pairs (i, i + d/2) of a row by position * theta^(-2i/d) (Su et al. 2021). */
void bxn_rope_row(float *row, uint32_t head_dim, uint64_t position, float theta);

/* Both: ws->n -> ws->r, `tokens` rows that n segments make up in order. Products run over all rows,
 * what has a memory runs segment by segment. Of the scan states the op touches its own
 * part only; keys and values of a segment's tokens are written to its pages. */
bitaxon_status bxn_ssm_forward(const bxn_exec *exec, const bxn_ssm *p, uint32_t tokens,
                               const bxn_segment *segments, uint32_t n);
/* Scratch of attention: floats in all, and of one task. */
size_t bxn_attention_floats(uint32_t heads, uint32_t head_dim, uint64_t window, size_t *of_task);
bitaxon_status bxn_attention_forward(const bxn_exec *exec, const bxn_attention *p, uint32_t tokens,
                                     const bxn_segment *segments, uint32_t n);
/* ws->n -> ws->r. FORMAT when a router logit is NaN or the largest is infinite; `layer` for the message. */
bitaxon_status bxn_moe_forward(const bxn_exec *exec, const bxn_moe *p, uint32_t tokens,
                               uint32_t layer);

#endif
