/* SPDX-License-Identifier: Apache-2.0 */
/* train_params.c - the parameters of a run: defaults, ranges, what they mean to the parts, and the memory
 * that they will take. Called when a trainer is made and when one is estimated, so that both tell the same. */
#include <math.h>
#include <string.h>

#include "train/bxn_trainer.h"

#define MAX_ROWS (1u << 22) /* tokens of a micro-step */

#define KNOWN_FLAGS                                                                                   \
    (BITAXON_TRAIN_EXACT_NORM | BITAXON_TRAIN_NO_BIAS_CORRECTION | BITAXON_TRAIN_NO_ISOLATION |       \
     BITAXON_TRAIN_NO_SHUFFLE | BITAXON_TRAIN_ORDERED)

static bitaxon_status range(const char *field, double value, bool fine, const char *allowed, bitaxon_error *error)
{
    return fine ? BITAXON_OK
                : bxn_fail(error, BITAXON_INVALID_ARGUMENT, "bitaxon_trainer_params: %s is %.9g, must be %s", field,
                           value, allowed);
}

static bitaxon_status bad(const char *text, bitaxon_error *error)
{
    return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "bitaxon_trainer_params: %s", text);
}

static double chosen(double value, double otherwise) { return value == 0 ? otherwise : value; }
static bool in_zero_one(double value) { return value >= 0 && value < 1; }
static bool not_negative(double value) { return value >= 0 && value <= 1e30; }

static bitaxon_status resolve_method(bitaxon_trainer_params *p, const bxn_adapter *adapter, bitaxon_error *error)
{
    int32_t own = adapter == NULL ? 0 : adapter->dora ? BITAXON_TRAIN_DORA : BITAXON_TRAIN_LORA;
    if (p->method < 0 || p->method > BITAXON_TRAIN_FULL)
        return range("method", p->method, false, "one of BITAXON_TRAIN_LORA, _DORA, _FULL", error);
    if (own != 0 && p->method != 0 && p->method != own)
        return bad(p->method == BITAXON_TRAIN_FULL ? "method FULL does not train the adapter that is given"
                   : own == BITAXON_TRAIN_DORA     ? "method is LORA, the adapter that is given is DORA"
                                                   : "method is DORA, the adapter that is given is LORA",
                   error);
    if (own != 0 && p->targets != NULL)
        return bad("targets are those of the adapter that is given", error);
    if (p->method == 0)
        p->method = own != 0 ? own : BITAXON_TRAIN_DORA;
    if (adapter != NULL) {
        p->rank = adapter->rank;
        p->scale = adapter->scale;
        p->alpha = 0;
    }
    if (p->rank == 0)
        p->rank = 8;
    if (p->rank > 256)
        return range("rank", p->rank, false, "1 to 256", error);
    if (!isfinite(p->alpha) || p->alpha < 0)
        return range("alpha", (double)p->alpha, false, "finite and not negative", error);
    if (p->scale == 0)
        p->scale = p->alpha > 0 ? p->alpha / (float)p->rank : 20;
    if (!isfinite(p->scale))
        return range("scale", (double)p->scale, false, "finite", error);
    if (p->dropout != 0 && p->method == BITAXON_TRAIN_FULL)
        return bad("dropout is of adapters, the method is FULL", error);
    if ((p->flags & BITAXON_TRAIN_EXACT_NORM) != 0 && p->method != BITAXON_TRAIN_DORA)
        return bad("flag EXACT_NORM is for the method DORA", error);
    return range("dropout", (double)p->dropout, in_zero_one((double)p->dropout), "in [0, 1)", error);
}

static bitaxon_status resolve_optimizer(bitaxon_trainer_params *p, bitaxon_error *error)
{
    p->learning_rate = chosen(p->learning_rate, 1e-4);
    p->other_learning_rate = chosen(p->other_learning_rate, p->learning_rate);
    p->weight_decay = p->weight_decay < 0 ? 0 : chosen(p->weight_decay, 0.01);
    p->max_norm = p->max_norm < 0 ? 0 : chosen(p->max_norm, 1);
    p->beta1 = chosen(p->beta1, 0.9);
    p->beta2 = chosen(p->beta2, 0.999);
    p->epsilon = chosen(p->epsilon, 1e-8);
    p->momentum = chosen(p->momentum, 0.95);
    p->optimizer = p->optimizer == 0 ? BITAXON_OPTIMIZER_ADAMW : p->optimizer;
    const struct {
        const char *field;
        double value;
        bool fine;
        const char *allowed;
    } checks[] = {
        { "learning_rate", p->learning_rate, not_negative(p->learning_rate), "positive" },
        { "min_learning_rate", p->min_learning_rate, not_negative(p->min_learning_rate), "0 or positive" },
        { "other_learning_rate", p->other_learning_rate, not_negative(p->other_learning_rate), "positive" },
        { "weight_decay", p->weight_decay, in_zero_one(p->weight_decay), "below 1" },
        { "max_norm", p->max_norm, not_negative(p->max_norm), "finite" },
        { "beta1", p->beta1, in_zero_one(p->beta1), "in (0, 1)" },
        { "beta2", p->beta2, in_zero_one(p->beta2), "in (0, 1)" },
        { "epsilon", p->epsilon, not_negative(p->epsilon) && (float)p->epsilon > 0, "positive" },
        { "momentum", p->momentum, in_zero_one(p->momentum), "in (0, 1)" },
        { "optimizer", p->optimizer, p->optimizer == BITAXON_OPTIMIZER_ADAMW || p->optimizer == BITAXON_OPTIMIZER_MUON,
          "one of BITAXON_OPTIMIZER_ADAMW, _MUON" },
        { "orpo_beta", (double)p->orpo_beta, not_negative((double)p->orpo_beta), "positive" },
        { "orpo_lambda", (double)p->orpo_lambda, not_negative((double)p->orpo_lambda), "positive" },
        { "balance", (double)p->balance, not_negative((double)p->balance), "0 or positive" },
    };
    for (size_t i = 0; i < sizeof checks / sizeof checks[0]; i++) {
        bitaxon_status status = range(checks[i].field, checks[i].value, checks[i].fine, checks[i].allowed, error);
        if (status != BITAXON_OK)
            return status;
    }
    p->orpo_beta = p->orpo_beta == 0 ? 0.1f : p->orpo_beta;
    p->orpo_lambda = p->orpo_lambda == 0 ? 1.0f : p->orpo_lambda;
    return p->optimizer == BITAXON_OPTIMIZER_MUON && p->method != BITAXON_TRAIN_FULL
               ? bad("optimizer MUON is for the method FULL", error)
               : BITAXON_OK;
}

bitaxon_status bxn_trainer_resolve(bitaxon_trainer_params *p, uint32_t max_tokens, const bxn_adapter *adapter,
                                   bitaxon_error *error)
{
    if ((p->flags & ~(uint32_t)KNOWN_FLAGS) != 0)
        return bxn_fail(error, BITAXON_UNSUPPORTED, "bitaxon_trainer_params: unknown flags 0x%x",
                        p->flags & ~(uint32_t)KNOWN_FLAGS);
    bitaxon_status status = resolve_method(p, adapter, error);
    if (status == BITAXON_OK)
        status = resolve_optimizer(p, error);
    if (status != BITAXON_OK)
        return status;
    p->block_tokens = p->block_tokens == 0 ? max_tokens : p->block_tokens;
    p->blocks = p->blocks == 0 ? 1 : p->blocks;
    p->accumulate = p->accumulate == 0 ? 4 : p->accumulate;
    p->bad_steps = p->bad_steps == 0 ? 8 : p->bad_steps;
    p->machines = p->machines == 0 ? 1 : p->machines;
    if (p->steps == 0)
        return bad("steps is 0", error);
    if (bxn_trainer_rows(p) == 0)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT,
                        "bitaxon_trainer_params: %u blocks of %u tokens are more than %u tokens in a micro-step",
                        p->blocks, p->block_tokens, MAX_ROWS);
    if ((p->flags & BITAXON_TRAIN_NO_ISOLATION) != 0 && p->objective == BITAXON_OBJECTIVE_ORPO)
        return bad("flag NO_ISOLATION is for the objective SFT", error);
    if (p->machine >= p->machines)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "bitaxon_trainer_params: machine %u of %u", p->machine,
                        p->machines);
    if (p->machines > 1 && p->all_reduce == NULL)
        return bad("several machines, but all_reduce is NULL", error);
    return BITAXON_OK;
}

uint32_t bxn_trainer_rows(const bitaxon_trainer_params *p)
{
    uint64_t rows = (uint64_t)p->blocks * p->block_tokens * (p->objective == BITAXON_OBJECTIVE_ORPO ? 2 : 1);
    return p->blocks <= MAX_ROWS && rows <= MAX_ROWS ? (uint32_t)rows : 0;
}

void bxn_trainer_plan(const bitaxon_trainer_params *p, bxn_adapter_plan *plan)
{
    *plan = (bxn_adapter_plan){ .rank = p->rank, .scale = p->scale, .dora = p->method == BITAXON_TRAIN_DORA,
                                .seed = p->seed, .targets = p->targets };
}

void bxn_trainer_packing(const bitaxon_trainer_params *p, int32_t separator, bxn_packing *packing)
{
    *packing = (bxn_packing){ .block_tokens = p->block_tokens, .blocks = p->blocks,
                              .isolate = (p->flags & BITAXON_TRAIN_NO_ISOLATION) == 0,
                              .shuffle = (p->flags & BITAXON_TRAIN_NO_SHUFFLE) == 0, .separator = separator,
                              .seed = p->seed, .rank = p->machine, .ranks = p->machines };
}

void bxn_trainer_optimizer(const bitaxon_trainer_params *p, bxn_optimizer *o)
{
    *o = (bxn_optimizer){ .kind = p->optimizer == BITAXON_OPTIMIZER_MUON ? BXN_MUON : BXN_ADAMW,
                          .learning_rate = p->learning_rate, .min_learning_rate = p->min_learning_rate,
                          .warmup = p->warmup, .total = p->steps, .beta1 = p->beta1, .beta2 = p->beta2,
                          .epsilon = p->epsilon, .weight_decay = p->weight_decay, .max_norm = p->max_norm,
                          .momentum = p->momentum, .other_rate = p->other_learning_rate,
                          .bias_correction = (p->flags & BITAXON_TRAIN_NO_BIAS_CORRECTION) == 0 };
}

/* ---- memory -------------------------------------------------------------------------------- */

static bxn_weight matrix(uint32_t rows, uint32_t cols)
{
    return (bxn_weight){ .kind = BXN_WEIGHT_DENSE, .rows = rows, .cols = cols };
}

/* Shapes of all weights outside of stacks of experts, in the order of the model; no data. */
static void shape_layer(const bxn_config *config, uint32_t layer, bxn_sublayer *mixer, bxn_sublayer *experts)
{
    uint32_t D = config->hidden_dim, E = D * config->ssm_expand, N = config->ssm_d_state;
    uint32_t I = config->moe_intermediate_dim;
    memset(mixer, 0, sizeof *mixer);
    memset(experts, 0, sizeof *experts);
    mixer->layer = experts->layer = layer;
    if (bxn_config_layer(config, layer) == BXN_LAYER_SWA_MOE) {
        mixer->op = BXN_OP_ATTENTION;
        mixer->u.attention.q_proj = mixer->u.attention.k_proj = matrix(D, D);
        mixer->u.attention.v_proj = mixer->u.attention.o_proj = matrix(D, D);
    } else {
        mixer->op = BXN_OP_SSM;
        mixer->u.ssm.in_proj = matrix(2 * E, D);
        mixer->u.ssm.x_proj = matrix(2 * N + 1, E);
        mixer->u.ssm.out_proj = matrix(D, E);
    }
    experts->op = BXN_OP_MOE;
    bxn_moe *moe = &experts->u.moe;
    moe->router = matrix(config->moe_num_experts, D);
    moe->shared = config->moe_shared_expert;
    moe->shared_gate = matrix(1, D);
    moe->shared_gate_proj = moe->shared_up_proj = matrix(I, D);
    moe->shared_down_proj = matrix(D, I);
}

bitaxon_status bxn_trainer_shapes(bxn_mem *mem, const bxn_model *plan, bxn_model *out, bitaxon_error *error)
{
    const bxn_config *config = &plan->config;
    void *memory;
    bitaxon_status status = bxn_calloc(mem, 2 * (size_t)config->num_layers * sizeof *out->sublayers,
                                       "shapes of a model", &memory, error);
    if (status != BITAXON_OK)
        return status;
    memset(out, 0, sizeof *out);
    out->config = *config;
    out->tied = plan->tied;
    out->embed = out->head = matrix(config->vocab_size, config->d_source_model);
    out->input_proj = matrix(config->hidden_dim, config->d_source_model);
    out->output_proj = matrix(config->d_source_model, config->hidden_dim);
    out->sublayers = memory;
    uint32_t stacks = 0;
    for (uint32_t i = 0; i < config->num_layers; i++) {
        bxn_sublayer mixer, experts;
        bool both = bxn_config_layer(config, i) != BXN_LAYER_SSM;
        shape_layer(config, i, &mixer, &experts);
        out->sublayers[out->sublayer_count++] = mixer;
        if (both)
            out->sublayers[out->sublayer_count++] = experts;
        stacks += both ? 3 : 0;
    }
    bxn_model_number(out);
    out->weight_count += stacks * config->moe_num_experts;
    return BITAXON_OK;
}

void bxn_trainer_shapes_free(bxn_mem *mem, bxn_model *shapes)
{
    bxn_free(mem, shapes->sublayers, 2 * (size_t)shapes->config.num_layers * sizeof *shapes->sublayers);
}

typedef struct largest {
    bxn_optimizer optimizer;
    size_t scratch;
} largest;

static void count_matrix(largest *l, uint32_t rows, uint32_t cols)
{
    bxn_parameter one = { .rows = rows, .cols = cols, .ld = cols, .matrix = true };
    bxn_parameters alone = { .items = &one, .count = 1 };
    size_t scratch = bxn_optimizer_scratch(&l->optimizer, &alone);
    l->scratch = scratch > l->scratch ? scratch : l->scratch;
}

static bitaxon_status count_weight(void *user, bxn_weight *weight, const char *name, int32_t expert)
{
    if (expert < 0 && strcmp(name, "embed_tokens") != 0 && strcmp(name, "lm_head") != 0)
        count_matrix(user, weight->rows, weight->cols);
    return BITAXON_OK;
}

/* Bytes of an adapter's values and of its gains, and how many values train. */
static void measure_adapter(const bxn_model *model, const bitaxon_trainer_params *p, const bxn_adapter *start,
                            uint64_t *values, uint64_t *gains, uint64_t *trainable)
{
    bxn_adapter_plan plan;
    *gains = 0;
    if (start != NULL) {
        *trainable = bxn_adapter_values(model, start);
        *values = bxn_alloc_cost(start->floats * sizeof(float));
        *gains = start->dora ? bxn_alloc_cost(2 * start->gain_floats * sizeof(float)) : 0;
        return;
    }
    bxn_trainer_plan(p, &plan);
    *values = bxn_adapter_bytes(model, &plan, trainable) - bxn_alloc_cost(model->weight_count * sizeof(bxn_lora));
    if (plan.dora) { /* magnitudes, gains and norms are of one size */
        plan.dora = false;
        *gains = (*values + bxn_alloc_cost(model->weight_count * sizeof(bxn_lora)) -
                  bxn_adapter_bytes(model, &plan, NULL)) / 3 * 2;
        *values -= *gains;
    }
}

void bxn_trainer_measure(const bxn_model *model, const bitaxon_trainer_params *p, uint32_t rows,
                         const bxn_adapter *start, bitaxon_train_estimate *out)
{
    bool full = p->method == BITAXON_TRAIN_FULL, ordered = (p->flags & BITAXON_TRAIN_ORDERED) != 0;
    if (full) {
        largest l = { .scratch = 0 };
        bxn_trainer_optimizer(p, &l.optimizer);
        (void)bxn_model_weights(model, count_weight, &l);
        count_matrix(&l, model->config.moe_intermediate_dim, model->config.hidden_dim);
        out->values_bytes = bxn_trainable_bytes(model, &out->trainable) + l.scratch +
                            (ordered ? bxn_alloc_cost(bxn_trainable_floats(model) * sizeof(float)) : 0);
    } else { /* gradient, two moments and ORDERED's sum, laid out as the values */
        uint64_t values, gains;
        measure_adapter(model, p, start, &values, &gains, &out->trainable);
        out->values_bytes = (ordered ? 5 : 4) * values + gains +
                            bxn_alloc_cost(model->weight_count * sizeof(bxn_lora)) +
                            bxn_alloc_cost(model->weight_count * sizeof(bxn_weight_grads));
    }
    out->pass_bytes = bxn_alloc_cost(bxn_runner_bytes(model, rows, full ? 0 : p->rank,
                                                      p->method == BITAXON_TRAIN_DORA, full, BXN_KEEP_BYTES));
}
