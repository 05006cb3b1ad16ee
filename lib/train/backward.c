/* SPDX-License-Identifier: Apache-2.0 */
/* backward.c - one micro-step through the whole model: forward, loss, backward. Called by the trainer.
 * Of the forward only the residual stream before every second sublayer is kept; everything else is computed
 * again by the backward of each op, and so is the stream between: the buffers of the mixer that is run again
 * for it stay until its own backward. Where there is room (`keep`), the stream before each sublayer and the buffers of
 * all mixers are kept, and with more room those of all experts. The choice does not show in a bit.
 * All buffers lie in one block of a size that follows from the configuration (bxn_runner_bytes), so that a
 * step allocates nothing. Whatever the number of threads, every sum has one order. */
#include <string.h>

#include "train/bxn_train.h"

/* ---- buffers -------------------------------------------------------------------------------- */

static size_t most(size_t a, size_t b) { return a > b ? a : b; }

/* A weight of which only the shape is known. */
static bxn_weight shape(uint32_t rows, uint32_t cols)
{
    return (bxn_weight){ .kind = BXN_WEIGHT_DENSE, .rows = rows, .cols = cols,
                         .dense = { .dtype = BXN_F32, .rows = rows, .cols = cols } };
}

/* The ops of the model as far as their buffers depend on them; experts with weights of which only one is described. */
static void ops_of(const bxn_config *config, bxn_ssm *ssm, bxn_attention *attention, bxn_moe *moe, bxn_weight *in,
                   bxn_weight *out)
{
    uint32_t D = config->hidden_dim, E = D * config->ssm_expand, N = config->ssm_d_state;
    uint32_t I = config->moe_intermediate_dim, X = config->moe_num_experts;
    *in = shape(I, D);
    *out = shape(D, I);
    *moe = (bxn_moe){ .experts = X,
                      .top_k = config->moe_top_k,
                      .inner = I,
                      .router = shape(X, D),
                      .gate = in,
                      .up = in,
                      .down = out,
                      .shared = config->moe_shared_expert,
                      .shared_gate = shape(1, D),
                      .shared_gate_proj = *in,
                      .shared_up_proj = *in,
                      .shared_down_proj = *out };
    *ssm = (bxn_ssm){ .channels = E, .channels16 = (uint32_t)bxn_round_up(E, 16), .states = N,
                      .taps = config->ssm_d_conv, .in_proj = shape(2 * E, D), .x_proj = shape(2 * N + 1, E),
                      .out_proj = shape(D, E) };
    *attention = (bxn_attention){ .heads = config->num_heads, .head_dim = D / config->num_heads,
                                  .window = config->swa_window_size, .rope_theta = (float)config->rope_theta,
                                  .q_proj = shape(D, D), .k_proj = shape(D, D), .v_proj = shape(D, D),
                                  .o_proj = shape(D, D) };
}

/* What the ops of the first `layers` layers leave for their backwards, as far as it is kept. */
static size_t left_by(const bxn_config *config, const bxn_left *left, uint32_t layers)
{
    size_t bytes = 0;
    for (uint32_t i = 0; i < layers; i++) {
        bxn_layer_kind kind = bxn_config_layer(config, i);
        bytes += kind == BXN_LAYER_SWA_MOE ? left->attention : left->ssm;
        bytes += kind != BXN_LAYER_SSM ? left->experts : 0;
    }
    return bytes;
}

/* How much is kept of a pass whose streams before all sublayers take `streams` bytes; bytes of what ops leave. */
static size_t choose(const bxn_config *config, uint32_t rows, size_t streams, size_t keep, bxn_runner *runner)
{
    bxn_ssm ssm;
    bxn_attention attention;
    bxn_moe moe;
    bxn_weight in, out;
    ops_of(config, &ssm, &attention, &moe, &in, &out);
    runner->left = (bxn_left){ bxn_ssm_kept_bytes(&ssm, rows), bxn_attention_kept_bytes(&attention, rows),
                               bxn_moe_kept_bytes(&moe, rows) };
    size_t bytes = left_by(config, &runner->left, config->num_layers);
    if (streams + bytes > keep) {
        runner->left.experts = 0;
        bytes = left_by(config, &runner->left, config->num_layers);
    }
    runner->every = streams + bytes <= keep;
    if (!runner->every)
        runner->left = (bxn_left){ 0 };
    return runner->every ? bytes : 0;
}

/* Scratch that the largest op of the model takes, whatever form its weights have; where mixers run again, with room
 * before it for what those of layers of two leave (runner->kept). Only shapes are looked at, which are those of
 * the configuration: a model of which headers alone were read gives the same. */
static size_t scratch_bytes(const bxn_config *config, uint32_t rows, uint32_t rank, bool magnitudes, bool full,
                            bxn_runner *runner)
{
    uint32_t D = config->hidden_dim, S = config->d_source_model;
    bxn_weight in, out;
    bxn_ssm ssm;
    bxn_attention attention;
    bxn_moe moe;
    ops_of(config, &ssm, &attention, &moe, &in, &out);
    if (!full) /* experts may be quantised, and then need room for their inputs (bxn_moe_train_bytes) */
        in.kind = out.kind = moe.shared_gate_proj.kind = moe.shared_up_proj.kind = moe.shared_down_proj.kind =
            BXN_WEIGHT_PACKED;
    bxn_model ends = { .config = *config, .embed = shape(config->vocab_size, S), .input_proj = shape(D, S),
                       .output_proj = shape(S, D), .head = shape(config->vocab_size, S) };
    size_t copy = bxn_round_up(rows * bxn_train_ld(D) * sizeof(float), BXN_ALIGN); /* op_backward */
    size_t bytes = bxn_loss_bytes(&ends, rows), left = 0, beside = 0; /* by mixers, and what is used meanwhile */
    bytes = most(bytes, bxn_train_linear_bytes(&ends.input_proj, rank, rows));
    bytes = most(bytes, bxn_train_linear_bytes(&ends.output_proj, rank, rows));
    for (uint32_t i = 0; i < config->num_layers; i++) {
        bxn_layer_kind kind = bxn_config_layer(config, i);
        if (i > 0 && kind == bxn_config_layer(config, i - 1))
            continue;
        bool attends = kind == BXN_LAYER_SWA_MOE;
        size_t mixer = attends ? bxn_attention_train_bytes(&attention, rows, rank, full) + copy
                               : bxn_ssm_train_bytes(&ssm, rows, rank, magnitudes, full);
        size_t leaves = attends ? bxn_attention_kept_bytes(&attention, rows) : bxn_ssm_kept_bytes(&ssm, rows);
        bytes = most(bytes, runner->every ? mixer - leaves : mixer);
        if (kind != BXN_LAYER_SSM) {
            size_t experts = bxn_moe_train_bytes(&moe, rows, rank, runner->left.experts != 0);
            bytes = most(bytes, experts);
            left = most(left, leaves);
            beside = most(beside, most(mixer - leaves, experts));
        }
    }
    runner->kept = runner->every ? 0 : left;
    return runner->every ? bytes : most(bytes, left + beside);
}

/* Layers of one sublayer; they are the first. */
static uint32_t single_layers(const bxn_config *config)
{
    uint32_t count = 0;
    while (count < config->num_layers && bxn_config_layer(config, count) == BXN_LAYER_SSM)
        count++;
    return count;
}

/* Walks the table twice: first with memory NULL to add up, then to place. */
static size_t place(const bxn_config *config, uint32_t rows, uint32_t rank, bool magnitudes, bool full, size_t keep,
                    bxn_runner *runner)
{
    runner->ld_d = bxn_train_ld(config->hidden_dim);
    runner->ld_s = bxn_train_ld(config->d_source_model);
    runner->single = single_layers(config);
    uint32_t sublayers = 2 * config->num_layers - runner->single;
    uint32_t kept = config->num_layers - runner->single / 2; /* of single layers every other */
    size_t d = rows * runner->ld_d * sizeof(float), wide = most(d, rows * runner->ld_s * sizeof(float));
    size_t left = choose(config, rows, sublayers * d, keep, runner);
    runner->scratch.bytes = scratch_bytes(config, rows, rank, magnitudes, full, runner);
    const struct {
        void *slot; /* of the pointer to set */
        size_t bytes;
    } table[] = {
        { &runner->x, (runner->every ? sublayers : kept) * d },
        { &runner->mid, d },
        { &runner->n, wide },
        { &runner->dx, wide },
        { &runner->dn, wide },
        { &runner->dtop, config->final_norm ? d : 0 },
        { &runner->logp, rows * sizeof(float) },
        { &runner->coefficient, rows * sizeof(float) },
        { &runner->scratch.memory, runner->scratch.bytes },
        { &runner->left_memory, left },
    };
    size_t offset = 0;
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        char *at = runner->memory != NULL ? (char *)runner->memory + offset : NULL;
        memcpy(table[i].slot, &at, sizeof at); /* all pointers to objects are alike */
        offset += bxn_round_up(table[i].bytes, BXN_ALIGN);
    }
    runner->r = runner->s = runner->dn; /* where nothing else is at the time */
    return offset;
}

size_t bxn_runner_bytes(const bxn_model *model, uint32_t rows, uint32_t rank, bool magnitudes, bool full, size_t keep)
{
    bxn_runner runner = { 0 };
    return place(&model->config, rows, rank, magnitudes, full, keep, &runner);
}

bitaxon_status bxn_runner_create(bxn_mem *mem, const bxn_model *model, uint32_t rows, uint32_t rank, bool magnitudes,
                                 bool full, size_t keep, bxn_runner *out, bitaxon_error *error)
{
    size_t bytes = bxn_runner_bytes(model, rows, rank, magnitudes, full, keep);
    memset(out, 0, sizeof *out);
    bitaxon_status status = bxn_alloc(mem, bytes, "training buffers", &out->memory, error);
    if (status != BITAXON_OK)
        return status;
    out->mem = mem;
    out->model = model;
    out->pool = model->pool;
    out->rows = rows;
    out->bytes = bytes;
    place(&model->config, rows, rank, magnitudes, full, keep, out);
    return BITAXON_OK;
}

void bxn_runner_free(bxn_runner *runner)
{
    if (runner->memory != NULL)
        bxn_free(runner->mem, runner->memory, runner->bytes);
    memset(runner, 0, sizeof *runner);
}

/* ---- rows ------------------------------------------------------------------------------------ */

/* The pass of one micro-step, with what every part of it needs. */
typedef struct run {
    bxn_train_pass pass;
    bxn_runner *runner;
    const bxn_model *model;
    const bxn_micro_step *step;
    const bxn_model_grads *grads;
    uint32_t dim; /* D */
    size_t ld;    /* of rows [*, D] */
    float eps;
} run;

typedef struct sum_context {
    const bxn_kernels *kernels;
    const float *a, *b;
    float *out;
    size_t ld;
    uint32_t dim;
} sum_context;

static void sum_task(void *context, uint32_t row)
{
    const sum_context *c = context;
    size_t at = row * c->ld;
    if (c->out != c->a)
        memcpy(c->out + at, c->a + at, c->dim * sizeof *c->a);
    if (c->b != NULL)
        c->kernels->add(c->out + at, c->b + at, c->dim);
}

/* out = a + b (nullable) over rows [*, D]; a may be out. */
static bitaxon_status sum_rows(run *r, const float *a, const float *b, float *out)
{
    sum_context c = { r->pass.exec.kernels, a, b, out, r->ld, r->dim };
    if (out != a)
        bxn_pad_rows(out, r->ld, r->dim, r->pass.rows);
    return bxn_rows_run(&r->pass.exec, r->pass.rows, sum_task, &c);
}

static bitaxon_status norm_rows(run *r, const float *x, const float *w)
{
    bxn_pad_rows(r->runner->n, r->ld, r->dim, r->pass.rows);
    return bxn_norm(&r->pass.exec, x, r->ld, w, r->dim, r->eps, r->pass.rows, r->runner->n, r->ld);
}

/* ---- embedding ------------------------------------------------------------------------------- */

static void embed_task(void *context, uint32_t row)
{
    const run *r = context;
    bxn_weight_row(&r->model->embed, (uint32_t)r->step->tokens[row], r->runner->s + row * r->runner->ld_s);
}

static bitaxon_status embed_rows(run *r)
{
    bxn_pad_rows(r->runner->s, r->runner->ld_s, r->model->embed.cols, r->pass.rows);
    return bxn_rows_run(&r->pass.exec, r->pass.rows, embed_task, r);
}

#define SCATTER_COLS 64 /* columns that a task takes */

/* Columns of the embedding's gradient: rows of ds added in the order of tokens. */
static void scatter_task(void *context, uint32_t item, uint32_t begin, uint32_t end)
{
    const run *r = context;
    uint32_t cols = r->model->embed.cols, first = begin * SCATTER_COLS;
    uint32_t last = end * SCATTER_COLS < cols ? end * SCATTER_COLS : cols;
    float *w = r->grads->weights[r->model->embed.id - 1].w;
    (void)item;
    for (uint32_t t = 0; t < r->pass.rows; t++)
        r->pass.exec.kernels->add(w + (size_t)r->step->tokens[t] * cols + first,
                                  r->runner->ds + t * r->runner->ld_s + first, last - first);
}

static bitaxon_status embed_backward(run *r)
{
    bxn_item item = { (r->model->embed.cols + SCATTER_COLS - 1) / SCATTER_COLS, (uint64_t)SCATTER_COLS * r->pass.rows,
                      0 };
    return bxn_ranges_run(&r->pass.exec, &item, 1, scatter_task, r);
}

/* ---- layers ------------------------------------------------------------------------------------ */

/* Where the stream lies before sublayer i, and after the last. What is not kept passes through `mid`. */
static float *stream_at(const run *r, uint32_t i)
{
    const bxn_runner *b = r->runner;
    uint32_t slot = i;
    if (i == r->model->sublayer_count)
        return b->mid;
    if (!b->every) { /* pairs of single layers, then layers of two */
        uint32_t in_pairs = i < b->single ? i : i - b->single;
        if (in_pairs % 2 != 0)
            return b->mid;
        slot = in_pairs / 2 + (i < b->single ? 0 : (b->single + 1) / 2);
    }
    return b->x + (size_t)slot * b->rows * r->ld;
}

/* n -> r */
static bitaxon_status op_forward(run *r, const bxn_sublayer *sub)
{
    bxn_runner *b = r->runner;
    bxn_pad_rows(b->r, r->ld, r->dim, r->pass.rows);
    switch (sub->op) {
    case BXN_OP_SSM:
        return bxn_ssm_train(&r->pass, &sub->u.ssm, b->n, r->ld, b->r, r->ld);
    case BXN_OP_ATTENTION:
        return bxn_attention_train(&r->pass, &sub->u.attention, b->n, r->ld, b->r, r->ld);
    case BXN_OP_MOE:
        break;
    }
    return bxn_moe_train(&r->pass, &sub->u.moe, sub->layer, b->n, r->ld, b->r, r->ld);
}

/* n and dx, the gradient of the stream behind -> dn. Attention spends the gradient of its result. */
static bitaxon_status attention_backward(run *r, const bxn_attention *p)
{
    bxn_runner *b = r->runner;
    size_t used = r->pass.scratch.used;
    float *dr = bxn_scratch_rows(&r->pass.scratch, r->pass.rows, r->ld);
    bitaxon_status status = sum_rows(r, b->dx, NULL, dr);
    if (status == BITAXON_OK)
        status = bxn_attention_backward(&r->pass, p, b->n, r->ld, dr, r->ld, b->dn, r->ld);
    r->pass.scratch.used = used;
    return status;
}

static bitaxon_status op_backward(run *r, const bxn_sublayer *sub, const bxn_sublayer_grads *grads)
{
    bxn_runner *b = r->runner;
    bxn_pad_rows(b->dn, r->ld, r->dim, r->pass.rows);
    switch (sub->op) {
    case BXN_OP_SSM:
        return bxn_ssm_backward(&r->pass, &sub->u.ssm, grads, b->n, r->ld, b->dx, r->ld, b->dn, r->ld);
    case BXN_OP_ATTENTION:
        return attention_backward(r, &sub->u.attention);
    case BXN_OP_MOE:
        break;
    }
    return bxn_moe_backward(&r->pass, &sub->u.moe, sub->layer, b->n, r->ld, b->dx, r->ld, b->dn, r->ld);
}

/* Where buffers of ops of its kind are kept: this one's are left for its backward, or found by that. Experts are the
 * last of their layer. */
static void use_left(run *r, const bxn_sublayer *sub, bxn_keep keep)
{
    const bxn_config *config = &r->model->config;
    const bxn_left *left = &r->runner->left;
    size_t bytes = sub->op == BXN_OP_SSM ? left->ssm : sub->op == BXN_OP_ATTENTION ? left->attention : left->experts;
    if (bytes == 0)
        return;
    size_t at = left_by(config, left, sub->layer);
    if (sub->op == BXN_OP_MOE)
        at = left_by(config, left, sub->layer + 1) - bytes;
    r->pass.kept = (bxn_scratch){ .memory = r->runner->left_memory + at, .bytes = bytes };
    r->pass.keep = keep;
}

static bitaxon_status sublayer_forward(run *r, uint32_t i)
{
    const bxn_sublayer *sub = &r->model->sublayers[i];
    bitaxon_status status = norm_rows(r, stream_at(r, i), sub->norm);
    use_left(r, sub, BXN_KEEP_LEAVE);
    if (status == BITAXON_OK)
        status = op_forward(r, sub);
    if (r->runner->every)
        r->pass.keep = BXN_KEEP_NOTHING;
    return status == BITAXON_OK ? sum_rows(r, stream_at(r, i), r->runner->r, stream_at(r, i + 1)) : status;
}

static bitaxon_status sublayer_backward(run *r, uint32_t i)
{
    static const bxn_sublayer_grads frozen = { 0 };
    const bxn_sublayer *sub = &r->model->sublayers[i];
    const bxn_sublayer_grads *grads = r->grads->sublayers != NULL ? &r->grads->sublayers[i] : &frozen;
    bxn_runner *b = r->runner;
    bitaxon_status status = BITAXON_OK;
    bool found = r->pass.keep == BXN_KEEP_FIND, leaves = false;
    if (stream_at(r, i) == b->mid) { /* the stream behind a mixer, whose own backward is the next */
        leaves = sub->op == BXN_OP_MOE; /* two mixers at once would take more room than all others */
        r->pass.scratch.used = leaves ? b->kept : 0;
        r->pass.keep = leaves ? BXN_KEEP_LEAVE : BXN_KEEP_NOTHING;
        status = sublayer_forward(r, i - 1);
        r->pass.keep = BXN_KEEP_NOTHING;
    }
    if (status == BITAXON_OK)
        status = norm_rows(r, stream_at(r, i), sub->norm);
    use_left(r, sub, BXN_KEEP_FIND);
    if (status == BITAXON_OK)
        status = op_backward(r, sub, grads);
    if (found)
        r->pass.scratch.used = 0;
    r->pass.keep = leaves ? BXN_KEEP_FIND : BXN_KEEP_NOTHING;
    if (status == BITAXON_OK)
        status = bxn_norm_backward(&r->pass, stream_at(r, i), r->ld, sub->norm, r->dim, r->eps, b->dn, r->ld,
                                   r->pass.rows, b->dx, r->ld, grads->norm);
    return status;
}

/* ---- the whole ----------------------------------------------------------------------------------- */

static bitaxon_status forward(run *r)
{
    const bxn_model *model = r->model;
    bxn_runner *b = r->runner;
    uint32_t rows = r->pass.rows, count = model->sublayer_count;
    bitaxon_status status = embed_rows(r);
    bxn_pad_rows(stream_at(r, 0), r->ld, r->dim, rows);
    if (status == BITAXON_OK)
        status = bxn_train_linear(&r->pass, &model->input_proj, b->s, b->ld_s, rows, stream_at(r, 0), r->ld);
    for (uint32_t i = 0; i < count && status == BITAXON_OK; i++)
        status = sublayer_forward(r, i);
    if (status == BITAXON_OK && model->final_norm != NULL)
        status = norm_rows(r, stream_at(r, count), model->final_norm);
    bxn_pad_rows(b->s, b->ld_s, model->output_proj.rows, rows);
    if (status == BITAXON_OK)
        status = bxn_train_linear(&r->pass, &model->output_proj, model->final_norm != NULL ? b->n : stream_at(r, count),
                                  r->ld, rows, b->s, b->ld_s);
    return status;
}

/* From ds, the gradient of what the head takes, to dx, that of the stream after the last layer. */
static bitaxon_status top_backward(run *r)
{
    const bxn_model *model = r->model;
    bxn_runner *b = r->runner;
    uint32_t rows = r->pass.rows;
    float *top = stream_at(r, model->sublayer_count);
    bool normed = model->final_norm != NULL;
    float *out = normed ? b->dtop : b->dx;
    bxn_pad_rows(out, r->ld, r->dim, rows);
    bitaxon_status status = bxn_linear_backward(&r->pass, &model->output_proj, normed ? b->n : top, r->ld, b->s,
                                                b->ld_s, b->ds, b->ld_s, rows, out, r->ld, false);
    if (status != BITAXON_OK || !normed)
        return status;
    memset(b->dx, 0, rows * r->ld * sizeof *b->dx);
    return bxn_norm_backward(&r->pass, top, r->ld, model->final_norm, r->dim, r->eps, out, r->ld, rows, b->dx, r->ld,
                             r->grads->final_norm);
}

/* From dx to the gradients of the first bridge and of the embedding. */
static bitaxon_status bottom_backward(run *r)
{
    const bxn_model *model = r->model;
    bxn_runner *b = r->runner;
    const bxn_weight_grads *in = &r->grads->weights[model->input_proj.id - 1];
    bool embedding = r->grads->weights[model->embed.id - 1].w != NULL;
    uint32_t rows = r->pass.rows;
    b->ds = b->n; /* spent by now */
    if (!embedding && in->w == NULL && in->a == NULL && in->b == NULL && in->m == NULL)
        return BITAXON_OK;
    bitaxon_status status = embed_rows(r);
    bxn_pad_rows(b->ds, b->ld_s, model->input_proj.cols, rows);
    if (status == BITAXON_OK)
        status = bxn_linear_backward(&r->pass, &model->input_proj, b->s, b->ld_s, stream_at(r, 0), r->ld, b->dx, r->ld,
                                     rows, embedding ? b->ds : NULL, b->ld_s, false);
    return status == BITAXON_OK && embedding ? embed_backward(r) : status;
}

static bitaxon_status backward(run *r)
{
    bitaxon_status status = top_backward(r);
    for (uint32_t i = r->model->sublayer_count; i-- > 0 && status == BITAXON_OK;)
        status = sublayer_backward(r, i);
    return status == BITAXON_OK ? bottom_backward(r) : status;
}

/* ---- loss ------------------------------------------------------------------------------------------ */

/* SFT: the coefficients are known before the probabilities, so that one pass over the head does. */
static bitaxon_status sft_loss(run *r, bxn_losses *losses)
{
    bxn_runner *b = r->runner;
    const bxn_micro_step *step = r->step;
    bitaxon_status status;
    if (r->grads == NULL) {
        status = bxn_loss_logprobs(&r->pass, r->model, b->s, b->ld_s, step->labels, step->rows, b->logp);
    } else {
        for (uint32_t t = 0; t < step->rows; t++)
            b->coefficient[t] = step->labels[t] >= 0 ? -1.0f : 0.0f;
        bxn_pad_rows(b->ds, b->ld_s, r->model->output_proj.rows, step->rows);
        status = bxn_loss_backward(&r->pass, r->model, b->s, b->ld_s, step->labels, b->coefficient, step->rows, b->logp,
                                   b->ds, b->ld_s);
    }
    for (uint32_t t = 0; t < step->rows && status == BITAXON_OK; t++)
        if (step->labels[t] >= 0) {
            losses->loss -= (double)b->logp[t];
            losses->tokens++;
        }
    return status;
}

static bitaxon_status orpo_loss(run *r, const bxn_objective_params *objective, bxn_losses *losses)
{
    bxn_runner *b = r->runner;
    const bxn_micro_step *step = r->step;
    bitaxon_status status =
        bxn_loss_logprobs(&r->pass, r->model, b->s, b->ld_s, step->labels, step->rows, b->logp);
    if (status != BITAXON_OK)
        return status;
    bxn_orpo(objective, step, b->logp, b->coefficient, losses);
    if (r->grads == NULL)
        return BITAXON_OK;
    bxn_pad_rows(b->ds, b->ld_s, r->model->output_proj.rows, step->rows);
    return bxn_loss_backward(&r->pass, r->model, b->s, b->ld_s, step->labels, b->coefficient, step->rows, NULL, b->ds,
                             b->ld_s);
}

/* ---- entry -------------------------------------------------------------------------------------------- */

static bitaxon_status check(const bxn_runner *runner, const bxn_micro_step *step, const bxn_objective_params *objective,
                            bitaxon_error *error)
{
    uint32_t vocab = runner->model->config.vocab_size, at = 0;
    if (step->rows > runner->rows)
        return bxn_fail(error, BITAXON_LIMIT, "a micro-step of %u tokens, there is room for %u", step->rows,
                        runner->rows);
    for (uint32_t i = 0; i < step->document_count; i++) {
        const bxn_document *d = &step->documents[i];
        if (d->first != at || d->count == 0 || d->count > step->rows - at)
            return bxn_fail(error, BITAXON_INVALID_ARGUMENT,
                            "document %u of a micro-step is at %u with %u tokens, expected at %u of %u", i, d->first,
                            d->count, at, step->rows);
        at += d->count;
    }
    if (at != step->rows || (objective->kind == BXN_OBJECTIVE_ORPO && step->document_count % 2 != 0))
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "%u documents of a micro-step hold %u of its %u tokens%s",
                        step->document_count, at, step->rows,
                        objective->kind == BXN_OBJECTIVE_ORPO ? ", two make a pair" : "");
    for (uint32_t t = 0; t < step->rows; t++) {
        int32_t token = step->tokens[t], label = step->labels[t];
        if (token < 0 || (uint32_t)token >= vocab || label < -1 || (label >= 0 && (uint32_t)label >= vocab))
            return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "row %u: token %d, label %d; the vocabulary has 0 to %u",
                            t, token, label, vocab - 1);
    }
    return BITAXON_OK;
}

/* Of what an update divides by, labels or pairs, as many as the micro-step has for each of its rows. */
static float units_per_row(const bxn_micro_step *step, const bxn_objective_params *objective, const bxn_losses *after,
                           const bxn_losses *before)
{
    uint64_t units =
        objective->kind == BXN_OBJECTIVE_ORPO ? after->pairs - before->pairs : after->tokens - before->tokens;
    return (float)((double)units / (double)step->rows);
}

bitaxon_status bxn_runner_step(bxn_runner *runner, const bxn_micro_step *step, const bxn_objective_params *objective,
                               const bxn_adapters *adapters, const bxn_model_grads *grads, const atomic_int *cancel,
                               bxn_losses *losses, bitaxon_error *error)
{
    const bxn_model *model = runner->model;
    bitaxon_status status = check(runner, step, objective, error);
    if (status != BITAXON_OK || step->rows == 0)
        return status;
    bxn_adapters undropped;
    if (adapters != NULL && grads == NULL) {
        undropped = *adapters;
        undropped.dropout = 0;
        adapters = &undropped;
    }
    run r = { .pass = { .exec = { .kernels = &model->kernels, .pool = runner->pool, .cancel = cancel,
                                  .adapters = adapters, .error = error },
                        .rows = step->rows, .documents = step->documents, .document_count = step->document_count,
                        .scratch = runner->scratch, .kept = { .memory = runner->scratch.memory, .bytes = runner->kept },
                        .grads = grads != NULL ? grads->weights : NULL, .balance = objective->balance },
              .runner = runner, .model = model, .step = step, .grads = grads, .dim = model->config.hidden_dim,
              .ld = runner->ld_d, .eps = (float)model->config.rms_norm_eps };
    bxn_losses sums = *losses;
    runner->ds = model->final_norm != NULL ? runner->dx : runner->n; /* what the backward of the top does not read */
    uint64_t mode = bxn_float_enter(); /* rows that the caller computes itself are like those of tasks */
    status = forward(&r);
    if (status == BITAXON_OK)
        status = objective->kind == BXN_OBJECTIVE_ORPO ? orpo_loss(&r, objective, &sums) : sft_loss(&r, &sums);
    /* An update divides by units, the op's is per row. */
    r.pass.balance *= units_per_row(step, objective, &sums, losses);
    if (status == BITAXON_OK && grads != NULL)
        status = backward(&r);
    bxn_float_leave(mode);
    runner->scratch.most = r.pass.scratch.most;
    if (status == BITAXON_CANCELLED)
        return bxn_fail(error, status, "training was cancelled");
    if (status == BITAXON_SYSTEM)
        return bxn_fail(error, status, "the host's executor failed in a step of training");
    if (status != BITAXON_OK)
        return status;
    sums.balance += r.pass.balance_loss;
    *losses = sums;
    return BITAXON_OK;
}
