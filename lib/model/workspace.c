/* SPDX-License-Identifier: Apache-2.0 */
/* workspace.c - the buffers of one pass, cut from one block by one table, and one more for adapters. What lives from op
 * to op comes first and is cleared once: the padding of its rows (kernels.h) stays zero for ever, since nobody writes
 * it. The buffers of one kind of op share their place with those of the other kinds, and each op clears the padding of
 * its own rows. Memory is touched when it is used. */
#include "model/bxn_model.h"

#include <string.h>

static size_t most(size_t a, size_t b) { return a > b ? a : b; }

/* Bytes of the largest set of inputs that one region reads as bf16 tiles. Rows of each expert
 * begin a block, and end one: at most 15 rows of a block are nobody's. */
static size_t tiled_inputs(const bxn_config *config, bool moe, bool ssm)
{
    size_t T = BXN_TILE_AMX, D = config->hidden_dim, S = config->d_source_model, E = D * config->ssm_expand;
    size_t I = config->moe_intermediate_dim, pairs = T * config->moe_top_k;
    size_t experts = config->moe_num_experts < pairs ? config->moe_num_experts : pairs;
    size_t blocks = (T + 15) / 16, routed = (pairs + 15 * experts) / 16;
    size_t bytes = most(bxn_tiled_input_bytes(D, T, blocks), bxn_tiled_input_bytes(S, T, blocks));
    if (ssm)
        bytes = most(bytes, bxn_tiled_input_bytes(D, T, blocks) + bxn_tiled_input_bytes(E, T, blocks));
    if (moe)
        bytes = most(bytes, most(bxn_tiled_input_bytes(D, T, blocks + routed),
                                 bxn_tiled_input_bytes(I, T + pairs, blocks + routed)));
    return bytes;
}

/* Floats from a row to the next: no multiple of 2 KiB, so that rows of a block lie in different sets of
 * the caches. */
static size_t stride(size_t columns)
{
    size_t least = bxn_round_up(columns, BXN_UNIT_COLS);
    return least % 512 == 0 ? least + 16 : least;
}

/* Walks the table twice: first with memory NULL to add up, then to place. */
static size_t place(const bxn_config *config, uint64_t max_tokens, bool tiles, bxn_workspace *ws)
{
    size_t T = bxn_pass_tokens(tiles), D = config->hidden_dim, S = config->d_source_model;
    size_t I = config->moe_intermediate_dim, E = D * config->ssm_expand, N = config->ssm_d_state;
    size_t X = config->moe_num_experts, k = config->moe_top_k;
    uint64_t window = config->swa_window_size < max_tokens ? config->swa_window_size : max_tokens;

    ws->tokens = (uint32_t)T;
    ws->ld_d = stride(D);
    ws->ld_s = stride(S);
    ws->ld_e = stride(E);
    ws->ld_2e = stride(2 * E);
    ws->ld_bcd = stride(2 * N + 1);
    ws->ld_i = stride(I);
    ws->ld_x = stride(X);
    size_t in_d = bxn_input_bytes(D), in_e = bxn_input_bytes(E), in_i = bxn_input_bytes(I);
    uint32_t heads = config->num_heads, head_dim = config->hidden_dim / config->num_heads;
    size_t attention_floats = bxn_attention_floats(heads, head_dim, window, &ws->score_stride);

    bool moe = false, ssm = false, attention = false;
    for (uint32_t i = 0; i < config->num_layers; i++) {
        bxn_layer_kind kind = bxn_config_layer(config, i);
        ssm |= kind != BXN_LAYER_SWA_MOE;
        attention |= kind == BXN_LAYER_SWA_MOE;
        moe |= kind != BXN_LAYER_SSM;
    }
    size_t inputs = most(2 * in_d, bxn_input_bytes(S)); /* two kinds of integers at a time at most */
    inputs = most(inputs, ssm ? in_d + in_e : 0);
    inputs = T * most(inputs, moe ? (k + 1) * in_i : 0);
    inputs = most(inputs, tiles ? tiled_inputs(config, moe, ssm) : 0);
    inputs = bxn_round_up(inputs, BXN_ALIGN);
    enum { ALWAYS, SSM, ATTENTION, MOE, ENDS, KINDS };
    ws->inputs_bytes = inputs;
    const struct {
        void *slot; /* of the pointer to set */
        int op;
        size_t count; /* of 4 bytes */
    } table[] = {
        { &ws->x, ALWAYS, T * ws->ld_d },
        { &ws->n, ALWAYS, T * ws->ld_d },
        { &ws->rotation, ALWAYS, attention ? head_dim * bxn_round_up(head_dim, 16) : 0 },
        /* from here on not cleared */
        { &ws->inputs, ALWAYS, inputs / 4 },
        { &ws->xz, SSM, ssm ? T * ws->ld_2e : 0 },
        { &ws->xc, SSM, ssm ? T * ws->ld_e : 0 },
        { &ws->bcd, SSM, ssm ? T * ws->ld_bcd : 0 },
        { &ws->q, ATTENTION, attention ? T * ws->ld_d : 0 },
        { &ws->k, ATTENTION, attention ? T * ws->ld_d : 0 },
        { &ws->v, ATTENTION, attention ? T * ws->ld_d : 0 },
        { &ws->o, ATTENTION, attention ? T * ws->ld_d : 0 },
        { &ws->scores, ATTENTION, attention ? attention_floats : 0 },
        { &ws->route, MOE, moe ? T * ws->ld_x : 0 },
        { &ws->weight, MOE, moe ? T * k : 0 },
        { &ws->shared_s, MOE, moe ? T * BXN_UNIT_COLS : 0 },
        { &ws->picked, MOE, moe ? T * k : 0 },
        { &ws->pair_row, MOE, moe ? T * k : 0 },
        { &ws->pair_of, MOE, moe ? T * k : 0 },
        { &ws->first, MOE, moe ? X + 1 : 0 },
        { &ws->used, MOE, moe ? X : 0 },
        { &ws->a, MOE, moe ? T * (k + 1) * ws->ld_i : 0 },
        { &ws->b, MOE, moe ? most(T * (k + 1) * ws->ld_i, T * k * ws->ld_d) : 0 },
        { &ws->s, ENDS, T * ws->ld_s },
    };
    size_t end[KINDS] = { 0 };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        int op = table[i].op;
        size_t offset = end[op] != 0 ? end[op] : end[ALWAYS];
        char *at = ws->memory != NULL ? (char *)ws->memory + offset : NULL;
        memcpy(table[i].slot, &at, sizeof at); /* all pointers to objects are alike */
        end[op] = offset + bxn_round_up(table[i].count * 4, BXN_ALIGN);
    }
    ws->r = ws->n;
    ws->y = ws->xc;
    ws->e = ws->b;
    return most(most(end[ENDS], end[SSM]), most(end[ATTENTION], end[MOE]));
}

uint64_t bxn_workspace_cost(const bxn_config *config, uint64_t max_tokens, bool tiles, uint32_t rank)
{
    bxn_workspace ws = { 0 };
    return bxn_alloc_cost(place(config, max_tokens, tiles, &ws)) +
           (rank != 0 ? bxn_alloc_cost(bxn_low_rank_bytes(bxn_pass_tokens(tiles), rank)) : 0);
}

bitaxon_status bxn_workspace_create(bxn_mem *mem, const bxn_config *config, uint64_t max_tokens,
                                    bool tiles, uint32_t rank, bxn_workspace *out, bitaxon_error *error)
{
    memset(out, 0, sizeof *out);
    size_t bytes = place(config, max_tokens, tiles, out);
    bitaxon_status status = bxn_alloc(mem, bytes, "session workspace", &out->memory, error);
    if (status != BITAXON_OK)
        return status;
    out->bytes = bytes;
    place(config, max_tokens, tiles, out);
    memset(out->memory, 0, (size_t)((char *)out->inputs - (char *)out->memory));
    if ((void *)out->rotation != (void *)out->inputs) /* there is attention */
        bxn_kv_rotation(out->rotation, config->hidden_dim / config->num_heads);
    status = bxn_workspace_adapt(mem, rank, out, error);
    if (status != BITAXON_OK)
        bxn_workspace_free(mem, out);
    return status;
}

bitaxon_status bxn_workspace_adapt(bxn_mem *mem, uint32_t rank, bxn_workspace *ws, bitaxon_error *error)
{
    size_t bytes = bxn_low_rank_bytes(ws->tokens, rank);
    void *larger;
    if (bytes <= ws->low_bytes)
        return BITAXON_OK;
    bitaxon_status status = bxn_alloc(mem, bytes, "buffers of adapters", &larger, error);
    if (status != BITAXON_OK)
        return status;
    bxn_free(mem, ws->low, ws->low_bytes);
    ws->low = larger;
    ws->low_bytes = bytes;
    return BITAXON_OK;
}

void bxn_workspace_free(bxn_mem *mem, bxn_workspace *ws)
{
    bxn_free(mem, ws->low, ws->low_bytes);
    bxn_free(mem, ws->memory, ws->bytes);
    memset(ws, 0, sizeof *ws);
}
