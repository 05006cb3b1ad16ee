/* SPDX-License-Identifier: Apache-2.0 */
/* forward.c - the whole model to be read at a glance: tokens in, rows for the head out. Called by
 * session for every tile of a prompt and every decoded token. */
#include "model/bxn_model.h"

void bxn_model_number(bxn_model *model)
{
    model->ssm_count = model->attention_count = 0;
    model->state_floats = 0;
    for (uint32_t i = 0; i < model->sublayer_count; i++) {
        bxn_sublayer *sub = &model->sublayers[i];
        if (sub->op == BXN_OP_SSM) {
            bxn_ssm *ssm = &sub->u.ssm;
            ssm->state_offset = model->state_floats;
            model->state_floats += (size_t)ssm->channels16 * (ssm->states + ssm->taps - 1);
            model->ssm_count++;
        } else if (sub->op == BXN_OP_ATTENTION) {
            sub->u.attention.kv_index = model->attention_count++;
        }
    }
    bxn_model_number_weights(model);
}

bitaxon_status bxn_forward(const bxn_model *model, const bxn_exec *exec, const int32_t *tokens,
                           uint32_t count, const bxn_segment *segments, uint32_t segment_count)
{
    const bxn_config *config = &model->config;
    bxn_workspace *ws = exec->ws;
    uint32_t D = config->hidden_dim;
    float eps = (float)config->rms_norm_eps;
    bitaxon_status status;

    bxn_pad_rows(ws->s, ws->ld_s, config->d_source_model, count);
    for (uint32_t t = 0; t < count; t++)
        bxn_weight_row(&model->embed, (uint32_t)tokens[t], ws->s + t * ws->ld_s);
    status = bxn_linear(exec, &model->input_proj, ws->s, ws->ld_s, count, ws->x, ws->ld_d);

    for (uint32_t i = 0; i < model->sublayer_count && status == BITAXON_OK; i++) {
        const bxn_sublayer *sub = &model->sublayers[i];
        status = bxn_norm(exec, ws->x, ws->ld_d, sub->norm, D, eps, count, ws->n, ws->ld_d);
        if (status != BITAXON_OK)
            break;
        switch (sub->op) {
        case BXN_OP_SSM:
            status = bxn_ssm_forward(exec, &sub->u.ssm, count, segments, segment_count);
            break;
        case BXN_OP_ATTENTION:
            bxn_pad_rows(ws->o, ws->ld_d, D, count);
            status = bxn_attention_forward(exec, &sub->u.attention, count, segments, segment_count);
            break;
        case BXN_OP_MOE:
            status = bxn_moe_forward(exec, &sub->u.moe, count, sub->layer);
            break;
        }
        if (status == BITAXON_OK)
            status = bxn_residual_add(exec, ws->x, ws->r, ws->ld_d, D, count);
        if (status == BITAXON_OK && exec->tick != NULL)
            status = exec->tick(exec->tick_user);
    }
    if (status == BITAXON_OK && model->final_norm != NULL)
        status = bxn_norm(exec, ws->x, ws->ld_d, model->final_norm, D, eps, count, ws->x, ws->ld_d);
    bxn_pad_rows(ws->s, ws->ld_s, config->d_source_model, count);
    if (status == BITAXON_OK)
        status = bxn_linear(exec, &model->output_proj, ws->x, ws->ld_d, count, ws->s, ws->ld_s);
    return status;
}

bitaxon_status bxn_head(const bxn_model *model, const bxn_exec *exec, uint32_t first,
                        uint32_t count, float *logits, size_t ldy)
{
    return bxn_linear(exec, &model->head, exec->ws->s + first * exec->ws->ld_s, exec->ws->ld_s, count,
                      logits, ldy);
}
