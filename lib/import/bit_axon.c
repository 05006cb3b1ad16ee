/* SPDX-License-Identifier: Apache-2.0 */
/* bit_axon.c - Bit-Axon checkpoints (spec 2.2) to sublayers. Thirds: state space; window
 * attention + experts; state space + experts. */
#include "import/load.h"
#include "import/load_internal.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Scan parameters, transposed and padded for the kernels: channels in lanes. */
static bitaxon_status load_scan(bxn_loader *loader, const char *prefix, bxn_ssm *ssm)
{
    uint64_t E = ssm->channels, E16 = ssm->channels16, N = ssm->states, K = ssm->taps;
    char name[96];
    float *conv = NULL, *a_log = NULL;
    void *weight, *a2;
    snprintf(name, sizeof name, "%s.conv1d.weight", prefix); /* [E, K, 1] */
    bitaxon_status status = bxn_load_temporary(loader, name, E * K, &conv);
    if (status == BITAXON_OK)
        status = bxn_loader_alloc(loader, K * E16 * sizeof(float), name, &weight);
    if (status == BITAXON_OK && !loader->plan) {
        for (uint64_t e = 0; e < E; e++)
            for (uint64_t j = 0; j < K; j++)
                ((float *)weight)[j * E16 + e] = conv[e * K + j];
        ssm->conv_weight = weight;
    }
    bxn_free(loader->mem, conv, E * K * sizeof(float));
    if (status != BITAXON_OK)
        return status;

    snprintf(name, sizeof name, "%s.A_log", prefix); /* [E, N] */
    status = bxn_load_temporary(loader, name, E * N, &a_log);
    if (status == BITAXON_OK)
        status = bxn_loader_alloc(loader, E16 * N * sizeof(float), name, &a2);
    if (status == BITAXON_OK && !loader->plan) {
        for (uint64_t e = 0; e < E && status == BITAXON_OK; e++)
            for (uint64_t n = 0; n < N && status == BITAXON_OK; n++) {
                float value = a_log[e * N + n];
                if (value > 80) /* exp(80) * log2(e) * dt stays finite */
                    status = bxn_fail(loader->error, BITAXON_FORMAT,
                                      "tensor %s: value [%llu, %llu] is %g, above 80: its exponential is no decay",
                                      name, (unsigned long long)e, (unsigned long long)n, (double)value);
                ((float *)a2)[(e / 16 * N + n) * 16 + e % 16] = (float)(-exp((double)value) * 1.4426950408889634);
            }
        ssm->a2 = a2;
    }
    bxn_free(loader->mem, a_log, E * N * sizeof(float));
    return status;
}

static bitaxon_status load_ssm(bxn_loader *loader, const bxn_config *config, uint32_t layer, bxn_ssm *ssm)
{
    uint32_t D = config->hidden_dim, E = D * config->ssm_expand, N = config->ssm_d_state;
    char prefix[48], name[96];
    ssm->channels = E;
    ssm->channels16 = (uint32_t)bxn_round_up(E, 16);
    ssm->states = N;
    ssm->taps = config->ssm_d_conv;
    snprintf(prefix, sizeof prefix, "layer_%u.ssm", layer);
    const struct {
        const char *suffix;
        const float **out;
    } vectors[] = {
        { "conv1d.bias", &ssm->conv_bias },
        { "dt_proj.weight", &ssm->dt_weight },
        { "dt_proj.bias", &ssm->dt_bias },
        { "D", &ssm->d },
    };
    const struct {
        const char *suffix;
        bxn_weight *out;
        uint32_t rows, cols;
    } weights[] = {
        { "in_proj", &ssm->in_proj, 2 * E, D },
        { "x_proj", &ssm->x_proj, 2 * N + 1, E },
        { "out_proj", &ssm->out_proj, D, E },
    };
    bitaxon_status status = load_scan(loader, prefix, ssm);
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0] && status == BITAXON_OK; i++) {
        snprintf(name, sizeof name, "%s.%s", prefix, vectors[i].suffix);
        status = bxn_load_vector(loader, name, E, ssm->channels16, vectors[i].out);
    }
    for (size_t i = 0; i < sizeof weights / sizeof weights[0] && status == BITAXON_OK; i++) {
        snprintf(name, sizeof name, "%s.%s", prefix, weights[i].suffix);
        status = bxn_load_weight(loader, name, weights[i].rows, weights[i].cols, weights[i].out);
    }
    return status;
}

static bitaxon_status load_attention(bxn_loader *loader, const bxn_config *config, uint32_t layer,
                                     bxn_attention *attention)
{
    static const char *const names[] = { "q_proj", "k_proj", "v_proj", "o_proj" };
    bxn_weight *weights[] = { &attention->q_proj, &attention->k_proj, &attention->v_proj, &attention->o_proj };
    uint32_t D = config->hidden_dim;
    char name[96];
    attention->heads = config->num_heads;
    attention->head_dim = D / config->num_heads;
    attention->window = config->swa_window_size;
    attention->rope_theta = (float)config->rope_theta;
    bitaxon_status status = BITAXON_OK;
    for (int i = 0; i < 4 && status == BITAXON_OK; i++) {
        snprintf(name, sizeof name, "layer_%u.attention.%s", layer, names[i]);
        status = bxn_load_weight(loader, name, D, D, weights[i]);
    }
    return status;
}

static bitaxon_status load_moe(bxn_loader *loader, const bxn_config *config, uint32_t layer, bxn_moe *moe)
{
    uint32_t D = config->hidden_dim, I = config->moe_intermediate_dim, X = config->moe_num_experts;
    char name[96];
    moe->experts = X;
    moe->top_k = config->moe_top_k;
    moe->inner = I;
    moe->shared = config->moe_shared_expert;
    const struct {
        const char *suffix;
        bxn_weight *out;
        uint32_t rows, cols;
    } weights[] = {
        { "gate", &moe->router, X, D },
        { "shared_expert_gate", &moe->shared_gate, 1, D },
        { "shared_expert.gate_proj", &moe->shared_gate_proj, I, D },
        { "shared_expert.up_proj", &moe->shared_up_proj, I, D },
        { "shared_expert.down_proj", &moe->shared_down_proj, D, I },
    };
    const struct {
        const char *suffix;
        const bxn_weight **out;
        uint32_t rows, cols;
    } stacks[] = {
        { "gate_proj", &moe->gate, I, D },
        { "up_proj", &moe->up, I, D },
        { "down_proj", &moe->down, D, I },
    };
    bitaxon_status status = BITAXON_OK;
    for (size_t i = 0; i < (moe->shared ? 5u : 1u) && status == BITAXON_OK; i++) {
        snprintf(name, sizeof name, "layer_%u.moe.%s", layer, weights[i].suffix);
        status = bxn_load_weight(loader, name, weights[i].rows, weights[i].cols, weights[i].out);
    }
    for (size_t i = 0; i < 3 && status == BITAXON_OK; i++) {
        snprintf(name, sizeof name, "layer_%u.moe.switch_mlp.%s", layer, stacks[i].suffix);
        status = bxn_load_stack(loader, name, X, stacks[i].rows, stacks[i].cols, stacks[i].out);
    }
    if (!moe->shared) { /* files of the original have the branch whatever the key says */
        snprintf(name, sizeof name, "layer_%u.moe.shared_expert", layer);
        bxn_load_ignore(loader, name);
    }
    return status;
}

/* One layer is one or two sublayers, each with its norm. */
static bitaxon_status load_layer(bxn_loader *loader, const bxn_config *config, uint32_t layer, bxn_sublayer *sub,
                                 uint32_t *made)
{
    bxn_layer_kind kind = bxn_config_layer(config, layer);
    uint32_t D = config->hidden_dim;
    char name[96];
    *made = kind == BXN_LAYER_SSM ? 1 : 2;
    snprintf(name, sizeof name, "layer_%u.input_norm.weight", layer);
    sub[0].layer = layer;
    bitaxon_status status = bxn_load_vector(loader, name, D, bxn_round_up(D, 16), &sub[0].norm);
    if (status != BITAXON_OK)
        return status;
    if (kind == BXN_LAYER_SWA_MOE) {
        sub[0].op = BXN_OP_ATTENTION;
        status = load_attention(loader, config, layer, &sub[0].u.attention);
    } else {
        sub[0].op = BXN_OP_SSM;
        status = load_ssm(loader, config, layer, &sub[0].u.ssm);
    }
    if (status != BITAXON_OK || kind == BXN_LAYER_SSM)
        return status;
    snprintf(name, sizeof name, "layer_%u.%s.weight", layer,
             kind == BXN_LAYER_SWA_MOE ? "post_attention_norm" : "post_ssm_norm");
    sub[1].layer = layer;
    sub[1].op = BXN_OP_MOE;
    status = bxn_load_vector(loader, name, D, bxn_round_up(D, 16), &sub[1].norm);
    return status == BITAXON_OK ? load_moe(loader, config, layer, &sub[1].u.moe) : status;
}

/* Are two float matrices the same bytes (a head that is stored although it is tied)? In pieces,
 * so that a cancel is heard. */
static bitaxon_status compare_dense(bxn_loader *loader, const bxn_weight *a, const bxn_weight *b, bool *same)
{
    *same = false;
    if (a->kind != BXN_WEIGHT_DENSE || b->kind != BXN_WEIGHT_DENSE || a->dense.dtype != b->dense.dtype)
        return BITAXON_OK;
    size_t bytes = (size_t)a->rows * a->cols * bxn_dtype_size(a->dense.dtype), piece = (size_t)4 << 20;
    for (size_t at = 0; at < bytes; at += piece) {
        size_t n = bytes - at < piece ? bytes - at : piece;
        if (memcmp((const char *)a->dense.data + at, (const char *)b->dense.data + at, n) != 0)
            return BITAXON_OK;
        bitaxon_status status = bxn_loader_advance(loader, 0, "lm_head.weight");
        if (status != BITAXON_OK)
            return status;
    }
    *same = true;
    return BITAXON_OK;
}

static bitaxon_status load_ends(bxn_loader *loader, bxn_model *model)
{
    const bxn_config *config = &model->config;
    uint32_t V = config->vocab_size, S = config->d_source_model, D = config->hidden_dim;
    bitaxon_status status = bxn_load_weight(loader, "embed_tokens", V, S, &model->embed);
    if (status == BITAXON_OK)
        status = bxn_load_weight(loader, "input_proj", D, S, &model->input_proj);
    if (status == BITAXON_OK)
        status = bxn_load_weight(loader, "output_proj", S, D, &model->output_proj);
    if (status == BITAXON_OK && config->final_norm)
        status = bxn_load_vector(loader, "final_norm.weight", D, bxn_round_up(D, 16), &model->final_norm);
    if (status != BITAXON_OK)
        return status;
    model->tied = false;
    if (!bxn_load_has(loader, "lm_head") && config->weight_tying) {
        model->head = model->embed;
        model->tied = true;
        return BITAXON_OK;
    }
    status = bxn_load_weight(loader, "lm_head", V, S, &model->head);
    if (status != BITAXON_OK || !config->weight_tying)
        return status;
    if (loader->plan) { /* no data are looked at: the configuration's word is taken */
        model->tied = model->embed.kind == BXN_WEIGHT_DENSE && model->head.kind == BXN_WEIGHT_DENSE &&
                      model->embed.dense.dtype == model->head.dense.dtype;
        return BITAXON_OK;
    }
    status = compare_dense(loader, &model->embed, &model->head, &model->tied);
    if (status == BITAXON_OK && model->tied)
        model->head = model->embed;
    else if (status == BITAXON_OK)
        bxn_log(loader->mem, BITAXON_LOG_INFO, "%s: lm_head differs from the embedding: untied",
                loader->tensors->bundle->where);
    return status;
}

bitaxon_status bxn_import_bit_axon(bxn_mem *mem, const bxn_tensors *tensors, bool plan,
                                   bxn_progress *progress, bxn_model *model, bxn_loaded *loaded,
                                   bitaxon_error *error)
{
    const bxn_config *config = &model->config;
    bxn_loader loader;
    bitaxon_status status = bxn_loader_init(&loader, mem, tensors, plan, model->pool, progress, loaded, error);
    if (status != BITAXON_OK)
        return status;
    status = load_ends(&loader, model);

    bxn_sublayer discarded[2];
    void *memory = NULL;
    if (status == BITAXON_OK && config->num_layers > tensors->count) /* before anything is sized by it */
        status = bxn_fail(error, BITAXON_FORMAT, "%s: num_layers is %u, and there are %llu tensors in all",
                          tensors->bundle->where, config->num_layers, (unsigned long long)tensors->count);
    if (status == BITAXON_OK)
        status = bxn_loader_alloc(&loader, 2 * (size_t)config->num_layers * sizeof *model->sublayers,
                                  "sublayers", &memory);
    model->sublayers = memory;
    model->sublayer_count = 0;
    for (uint32_t i = 0; i < config->num_layers && status == BITAXON_OK; i++) {
        uint32_t made;
        memset(discarded, 0, sizeof discarded);
        status = load_layer(&loader, config, i, plan ? discarded : model->sublayers + model->sublayer_count, &made);
        model->sublayer_count += made;
    }
    if (status == BITAXON_OK)
        status = bxn_load_finish(&loader);
    if (status == BITAXON_OK && !plan) {
        bxn_model_number(model);
        model->map = loader.map_begin;
        model->map_bytes = (uint64_t)(loader.map_end - loader.map_begin);
        status = bxn_import_fingerprint(config, tensors, progress, model->fingerprint, error);
    }
    bxn_loader_done(&loader);
    return status;
}
