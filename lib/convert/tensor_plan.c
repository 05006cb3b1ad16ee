/* SPDX-License-Identifier: Apache-2.0 */
/* tensor_plan.c - names, shapes and first values of every tensor of a configuration (spec
 * 2.2), in the order of computation. Called by all conversions. Sizes stay within 64 bits
 * because bxn_config_check bounds every factor. */
#include "convert/bxn_convert.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define PER_LAYER 19u /* SSM + MoE with a shared expert */
#define ENDS 5u       /* embedding, both bridges, final norm, head */

/* What stays the same for a family of tensors. */
typedef struct kind {
    bxn_role role;
    bxn_init init;
    double bound;
} kind;

static const kind one = {BXN_ROLE_VECTOR, BXN_INIT_ONE, 0};
static const kind zero = {BXN_ROLE_VECTOR, BXN_INIT_ZERO, 0};

/* A matrix of `inputs` columns: U(+-1 / sqrt(inputs)). */
static kind uniform(bxn_role role, uint64_t inputs)
{
    return (kind){role, BXN_INIT_UNIFORM, 1 / sqrt((double)inputs)};
}

__attribute__((format(printf, 6, 7))) static void
add(bxn_plan *plan, kind k, uint64_t a, uint64_t b, uint64_t c, const char *format, ...)
{
    bxn_plan_item *item = &plan->items[plan->count++];
    item->role = k.role;
    item->init = k.init;
    item->bound = k.bound;
    item->rank = c != 0 ? 3 : b != 0 ? 2 : 1;
    item->shape[0] = a;
    item->shape[1] = b;
    item->shape[2] = c;
    item->elements = a * (b != 0 ? b : 1) * (c != 0 ? c : 1);
    va_list args;
    va_start(args, format);
    vsnprintf(item->name, sizeof item->name, format, args);
    va_end(args);
}

static void add_ssm(bxn_plan *plan, const bxn_config *config, uint32_t i)
{
    uint64_t D = config->hidden_dim, E = D * config->ssm_expand, N = config->ssm_d_state,
             K = config->ssm_d_conv;
    kind wide = {BXN_ROLE_VECTOR, BXN_INIT_UNIFORM, 1};
    kind tap = uniform(BXN_ROLE_VECTOR, E * K), decay = {BXN_ROLE_VECTOR, BXN_INIT_LOG_RANGE, 0};
    add(plan, uniform(BXN_ROLE_LINEAR, D), 2 * E, D, 0, "layer_%u.ssm.in_proj.weight", i);
    add(plan, tap, E, K, 1, "layer_%u.ssm.conv1d.weight", i);
    add(plan, zero, E, 0, 0, "layer_%u.ssm.conv1d.bias", i);
    add(plan, uniform(BXN_ROLE_SENSITIVE, E), 2 * N + 1, E, 0, "layer_%u.ssm.x_proj.weight", i);
    add(plan, wide, E, 1, 0, "layer_%u.ssm.dt_proj.weight", i);
    add(plan, wide, E, 0, 0, "layer_%u.ssm.dt_proj.bias", i);
    add(plan, decay, E, N, 0, "layer_%u.ssm.A_log", i);
    add(plan, one, E, 0, 0, "layer_%u.ssm.D", i);
    add(plan, uniform(BXN_ROLE_LINEAR, E), D, E, 0, "layer_%u.ssm.out_proj.weight", i);
}

static void add_attention(bxn_plan *plan, const bxn_config *config, uint32_t i)
{
    static const char letters[] = "qkvo";
    uint64_t D = config->hidden_dim;
    for (int j = 0; j < 4; j++)
        add(plan, uniform(BXN_ROLE_LINEAR, D), D, D, 0, "layer_%u.attention.%c_proj.weight", i,
            letters[j]);
}

static void add_moe(bxn_plan *plan, const bxn_config *config, uint32_t i)
{
    uint64_t D = config->hidden_dim, I = config->moe_intermediate_dim, X = config->moe_num_experts;
    kind in = uniform(BXN_ROLE_EXPERTS, D), out = uniform(BXN_ROLE_EXPERTS, I);
    kind small = uniform(BXN_ROLE_SENSITIVE, D);
    add(plan, small, X, D, 0, "layer_%u.moe.gate.weight", i);
    add(plan, in, X, I, D, "layer_%u.moe.switch_mlp.gate_proj.weight", i);
    add(plan, in, X, I, D, "layer_%u.moe.switch_mlp.up_proj.weight", i);
    add(plan, out, X, D, I, "layer_%u.moe.switch_mlp.down_proj.weight", i);
    if (!config->moe_shared_expert)
        return;
    in.role = out.role = BXN_ROLE_LINEAR;
    add(plan, small, 1, D, 0, "layer_%u.moe.shared_expert_gate.weight", i);
    add(plan, in, I, D, 0, "layer_%u.moe.shared_expert.gate_proj.weight", i);
    add(plan, in, I, D, 0, "layer_%u.moe.shared_expert.up_proj.weight", i);
    add(plan, out, D, I, 0, "layer_%u.moe.shared_expert.down_proj.weight", i);
}

bitaxon_status bxn_plan_build(bxn_mem *mem, const bxn_config *config, bxn_plan *out,
                              bitaxon_error *error)
{
    uint64_t D = config->hidden_dim, S = config->d_source_model, V = config->vocab_size;
    void *memory;
    bxn_plan plan = {NULL, 0, config->num_layers * PER_LAYER + ENDS};
    bitaxon_status status =
        bxn_alloc(mem, plan.capacity * sizeof(bxn_plan_item), "list of tensors", &memory, error);
    if (status != BITAXON_OK)
        return status;
    plan.items = memory;
    kind embedding = {BXN_ROLE_EMBEDDING, BXN_INIT_NORMAL, 1 / sqrt((double)S)};
    add(&plan, embedding, V, S, 0, "embed_tokens.weight");
    add(&plan, uniform(BXN_ROLE_LINEAR, S), D, S, 0, "input_proj.weight");
    for (uint32_t i = 0; i < config->num_layers; i++) {
        bxn_layer_kind layer = bxn_config_layer(config, i);
        add(&plan, one, D, 0, 0, "layer_%u.input_norm.weight", i);
        if (layer == BXN_LAYER_SWA_MOE)
            add_attention(&plan, config, i);
        else
            add_ssm(&plan, config, i);
        if (layer == BXN_LAYER_SSM)
            continue;
        add(&plan, one, D, 0, 0, "layer_%u.%s.weight", i,
            layer == BXN_LAYER_SWA_MOE ? "post_attention_norm" : "post_ssm_norm");
        add_moe(&plan, config, i);
    }
    if (config->final_norm)
        add(&plan, one, D, 0, 0, "final_norm.weight");
    add(&plan, uniform(BXN_ROLE_LINEAR, D), S, D, 0, "output_proj.weight");
    kind head = config->weight_tying ? embedding : uniform(BXN_ROLE_HEAD, S);
    head.role = BXN_ROLE_HEAD;
    add(&plan, head, V, S, 0, "lm_head.weight");
    *out = plan;
    return BITAXON_OK;
}

void bxn_plan_free(bxn_mem *mem, bxn_plan *plan)
{
    bxn_free(mem, plan->items, plan->capacity * sizeof *plan->items);
    *plan = (bxn_plan){NULL, 0, 0};
}

void bxn_plan_prefix(const bxn_plan_item *item, char prefix[BXN_PLAN_NAME])
{
    static const char suffix[] = ".weight";
    size_t length = strlen(item->name), cut = sizeof suffix - 1;
    memcpy(prefix, item->name, length + 1);
    if (length > cut && strcmp(prefix + length - cut, suffix) == 0)
        prefix[length - cut] = '\0';
}

uint64_t bxn_plan_parameters(const bxn_plan *plan, bool untied)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < plan->count; i++)
        if (untied || plan->items[i].role != BXN_ROLE_HEAD)
            sum += plan->items[i].elements;
    return sum;
}
