/* SPDX-License-Identifier: Apache-2.0 */
/* accuracy.c - which products take integer activations. Called once, when a model is opened in
 * the near or the fast tier. Invariant: weights that read the same rows in one region take
 * two kinds of integers at most, which the workspace has room for. */
#include <bitaxon/model.h>

#include "model/bxn_model.h"

static void set(bxn_weight *w, bool fast)
{
    if (w->kind == BXN_WEIGHT_PACKED)
        w->xq = bxn_xq_kind_of(&w->packed, fast);
}

/* Weights with the same input; a third kind among them stays exact. */
static void set_list(bxn_weight *const *list, uint32_t count, bool fast)
{
    bxn_xq_kind kinds[2] = { BXN_XQ_NONE, BXN_XQ_NONE };
    for (uint32_t i = 0; i < count; i++) {
        bxn_weight *w = list[i];
        set(w, fast);
        if (w->xq == BXN_XQ_NONE || w->xq == kinds[0] || w->xq == kinds[1])
            continue;
        if (kinds[0] == BXN_XQ_NONE)
            kinds[0] = w->xq;
        else if (kinds[1] == BXN_XQ_NONE)
            kinds[1] = w->xq;
        else
            w->xq = BXN_XQ_NONE;
    }
}

/* A stack is loaded from one tensor: all its matrices are alike. */
static void set_stack(const bxn_weight *stack, uint32_t count, bxn_xq_kind kind)
{
    bxn_weight *w = (bxn_weight *)(uintptr_t)stack; /* the model's own memory */
    for (uint32_t i = 0; i < count; i++)
        w[i].xq = kind;
}

static void set_moe(bxn_moe *moe, bool fast)
{
    bxn_weight gate = moe->gate[0], up = moe->up[0], down = moe->down[0];
    set_list((bxn_weight *[]){ &gate, &up, &moe->shared_gate_proj, &moe->shared_up_proj }, moe->shared ? 4 : 2, fast);
    set(&down, fast);
    set_stack(moe->gate, moe->experts, gate.xq);
    set_stack(moe->up, moe->experts, up.xq);
    set_stack(moe->down, moe->experts, down.xq);
    if (moe->shared)
        set(&moe->shared_down_proj, fast);
}

bool bxn_model_tiles(const bxn_model *model)
{
    return model->accuracy != BITAXON_ACCURACY_EXACT && model->kernels.mm_tile4 != NULL;
}

void bxn_model_integers(bxn_model *model, bool fast)
{
    set(&model->input_proj, fast);
    set(&model->output_proj, fast);
    set(&model->head, fast);
    for (uint32_t i = 0; i < model->sublayer_count; i++) {
        bxn_sublayer *sub = &model->sublayers[i];
        bxn_attention *a = &sub->u.attention;
        if (sub->op == BXN_OP_MOE) {
            set_moe(&sub->u.moe, fast);
        } else if (sub->op == BXN_OP_ATTENTION) {
            set_list((bxn_weight *[]){ &a->q_proj, &a->k_proj, &a->v_proj }, 3, fast);
            set(&a->o_proj, fast);
        } else {
            set(&sub->u.ssm.in_proj, fast);
            set(&sub->u.ssm.x_proj, fast);
            set(&sub->u.ssm.out_proj, fast);
        }
    }
}
