/* SPDX-License-Identifier: Apache-2.0 */
/* weights.c - the weights and vectors of a model one by one, with their names in files. Adapters, training
 * and whoever writes a model walk here; the order is that of the forward pass, and gives weights
 * their ids. */
#include "model/bxn_model.h"

#include <stdio.h>
#include <string.h>

typedef struct walk {
    bxn_weight_visitor visit;
    void *user;
    bitaxon_status status;
} walk;

static void go(walk *w, const bxn_weight *weight, const char *prefix, uint32_t layer, const char *name, int32_t expert)
{
    char full[BXN_WEIGHT_NAME];
    if (w->status != BITAXON_OK)
        return;
    if (prefix == NULL)
        snprintf(full, sizeof full, "%s", name);
    else
        snprintf(full, sizeof full, "layer_%u.%s.%s", layer, prefix, name);
    w->status = w->visit(w->user, (bxn_weight *)(uintptr_t)weight, full, expert); /* the model's own memory */
}

static void walk_sublayer(walk *w, const bxn_sublayer *sub)
{
    uint32_t layer = sub->layer;
    switch (sub->op) {
    case BXN_OP_SSM:
        go(w, &sub->u.ssm.in_proj, "ssm", layer, "in_proj", -1);
        go(w, &sub->u.ssm.x_proj, "ssm", layer, "x_proj", -1);
        go(w, &sub->u.ssm.out_proj, "ssm", layer, "out_proj", -1);
        break;
    case BXN_OP_ATTENTION:
        go(w, &sub->u.attention.q_proj, "attention", layer, "q_proj", -1);
        go(w, &sub->u.attention.k_proj, "attention", layer, "k_proj", -1);
        go(w, &sub->u.attention.v_proj, "attention", layer, "v_proj", -1);
        go(w, &sub->u.attention.o_proj, "attention", layer, "o_proj", -1);
        break;
    case BXN_OP_MOE: {
        const bxn_moe *moe = &sub->u.moe;
        go(w, &moe->router, "moe", layer, "gate", -1);
        for (uint32_t e = 0; e < moe->experts; e++)
            go(w, &moe->gate[e], "moe", layer, "switch_mlp.gate_proj", (int32_t)e);
        for (uint32_t e = 0; e < moe->experts; e++)
            go(w, &moe->up[e], "moe", layer, "switch_mlp.up_proj", (int32_t)e);
        for (uint32_t e = 0; e < moe->experts; e++)
            go(w, &moe->down[e], "moe", layer, "switch_mlp.down_proj", (int32_t)e);
        if (!moe->shared)
            break;
        go(w, &moe->shared_gate, "moe", layer, "shared_expert_gate", -1);
        go(w, &moe->shared_gate_proj, "moe", layer, "shared_expert.gate_proj", -1);
        go(w, &moe->shared_up_proj, "moe", layer, "shared_expert.up_proj", -1);
        go(w, &moe->shared_down_proj, "moe", layer, "shared_expert.down_proj", -1);
        break;
    }
    }
}

bitaxon_status bxn_model_weights(const bxn_model *model, bxn_weight_visitor visit, void *user)
{
    walk w = { visit, user, BITAXON_OK };
    go(&w, &model->embed, NULL, 0, "embed_tokens", -1);
    go(&w, &model->input_proj, NULL, 0, "input_proj", -1);
    for (uint32_t i = 0; i < model->sublayer_count; i++)
        walk_sublayer(&w, &model->sublayers[i]);
    go(&w, &model->output_proj, NULL, 0, "output_proj", -1);
    if (!model->tied)
        go(&w, &model->head, NULL, 0, "lm_head", -1);
    return w.status;
}

static bitaxon_status number(void *user, bxn_weight *weight, const char *name, int32_t expert)
{
    uint32_t *count = user;
    (void)name;
    (void)expert;
    weight->id = ++*count;
    return BITAXON_OK;
}

void bxn_model_number_weights(bxn_model *model)
{
    model->weight_count = 0;
    (void)bxn_model_weights(model, number, &model->weight_count);
    if (model->tied)
        model->head.id = model->embed.id;
}

bitaxon_status bxn_model_vectors(const bxn_model *model, bxn_vector_visitor visit, void *user)
{
    uint32_t D = model->config.hidden_dim;
    size_t D16 = bxn_round_up(D, 16);
    bitaxon_status status = BITAXON_OK;
    char full[BXN_WEIGHT_NAME];
    for (uint32_t i = 0; i < model->sublayer_count && status == BITAXON_OK; i++) {
        bxn_sublayer *sub = &model->sublayers[i];
        bxn_ssm *ssm = &sub->u.ssm;
        bool second = i > 0 && model->sublayers[i - 1].layer == sub->layer, state_space = sub->op == BXN_OP_SSM;
        bool after_attention = second && model->sublayers[i - 1].op == BXN_OP_ATTENTION;
        uint32_t E = state_space ? ssm->channels : 0, N = state_space ? ssm->states : 0;
        uint32_t K = state_space ? ssm->taps : 0;
        size_t E16 = state_space ? ssm->channels16 : 0;
        const struct {
            const char *name;
            bxn_vector vector;
        } all[] = {
            { !second            ? "input_norm.weight"
              : after_attention ? "post_attention_norm.weight"
                                : "post_ssm_norm.weight",
              { BXN_VECTOR_PLAIN, &sub->norm, D, 1, D16, sub } },
            { "ssm.conv1d.weight", { BXN_VECTOR_CONV, &ssm->conv_weight, E, K, K * E16, sub } },
            { "ssm.conv1d.bias", { BXN_VECTOR_PLAIN, &ssm->conv_bias, E, 1, E16, sub } },
            { "ssm.dt_proj.weight", { BXN_VECTOR_PLAIN, &ssm->dt_weight, E, 1, E16, sub } },
            { "ssm.dt_proj.bias", { BXN_VECTOR_PLAIN, &ssm->dt_bias, E, 1, E16, sub } },
            { "ssm.A_log", { BXN_VECTOR_A, &ssm->a2, E, N, N * E16, sub } },
            { "ssm.D", { BXN_VECTOR_PLAIN, &ssm->d, E, 1, E16, sub } },
        };
        for (size_t j = 0; j < (state_space ? sizeof all / sizeof all[0] : 1) && status == BITAXON_OK; j++) {
            snprintf(full, sizeof full, "layer_%u.%s", sub->layer, all[j].name);
            status = visit(user, &all[j].vector, full);
        }
    }
    if (status == BITAXON_OK && model->final_norm != NULL) {
        bxn_vector last = { BXN_VECTOR_PLAIN, (const float **)(uintptr_t)&model->final_norm, D, 1, D16, NULL };
        status = visit(user, &last, "final_norm.weight");
    }
    return status;
}

bool bxn_weight_adaptable(const char *name)
{
    static const char *const ends[] = { "q_proj",    "k_proj",  "v_proj",    "o_proj",     "in_proj",    "out_proj",
                                        "gate_proj", "up_proj", "down_proj", "input_proj", "output_proj" };
    if (strstr(name, "switch_mlp") != NULL)
        return false;
    const char *last = strrchr(name, '.');
    last = last == NULL ? name : last + 1;
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++)
        if (strcmp(last, ends[i]) == 0)
            return true;
    return false;
}

void bxn_model_populate(const bxn_model *model, uint64_t bytes, uint64_t *populated)
{
    const uint64_t left = model->map_bytes - *populated, piece = bytes < left ? bytes : left;
    if (piece != 0)
        bxn_populate_pages((const char *)model->map + *populated, piece);
    *populated += piece;
}
