/* SPDX-License-Identifier: Apache-2.0 */
/* workspace.c - the buffers of one pass, cut from one block by one table. The block is
 * cleared once: the padding of rows (kernels.h) stays zero for ever, since nobody
 * writes it. For the same reason buffers never share their place. Scores, which may be
 * large, are left as they are: memory is touched when it is used. */
#include "model/bxn_model.h"

#include <string.h>

/* Walks the table twice: first with memory NULL to add up, then to place. */
static size_t place(const bxn_config *config, uint64_t max_tokens, bxn_workspace *ws)
{
    size_t T = BXN_TILE, D = config->hidden_dim, S = config->d_source_model, I = config->moe_intermediate_dim;
    size_t E = D * config->ssm_expand, N = config->ssm_d_state, X = config->moe_num_experts, k = config->moe_top_k;
    uint64_t window = config->swa_window_size < max_tokens ? config->swa_window_size : max_tokens;
    size_t widest = D > E ? D : E;
    widest = widest > I ? widest : I;
    widest = widest > S ? widest : S;

    ws->ld_d = bxn_round_up(D, BXN_UNIT_COLS);
    ws->ld_s = bxn_round_up(S, BXN_UNIT_COLS);
    ws->ld_e = bxn_round_up(E, BXN_UNIT_COLS);
    ws->ld_2e = bxn_round_up(2 * E, BXN_UNIT_COLS);
    ws->ld_bcd = bxn_round_up(2 * N + 1, BXN_UNIT_COLS);
    ws->ld_i = bxn_round_up(I, BXN_UNIT_COLS);
    ws->ld_x = bxn_round_up(X, BXN_UNIT_COLS);
    ws->ld_sum = bxn_round_up(bxn_round_up(widest, BXN_UNIT_COLS) / BXN_SUB_BLOCK, 16);
    ws->score_stride = bxn_round_up((size_t)window, 16) + 32;

    bool moe = false, ssm = false, attention = false;
    for (uint32_t i = 0; i < config->num_layers; i++) {
        bxn_layer_kind kind = bxn_config_layer(config, i);
        ssm |= kind != BXN_LAYER_SWA_MOE;
        attention |= kind == BXN_LAYER_SWA_MOE;
        moe |= kind != BXN_LAYER_SSM;
    }
    const struct {
        void *slot; /* of the pointer to set */
        size_t count;
    } table[] = {
        { &ws->x, T * ws->ld_d },
        { &ws->n, T * ws->ld_d },
        { &ws->r, T * ws->ld_d },
        { &ws->s, T * ws->ld_s },
        { &ws->sums, T * k * ws->ld_sum },
        { &ws->sums2, moe ? T * ws->ld_sum : 0 },
        { &ws->xz, ssm ? T * ws->ld_2e : 0 },
        { &ws->xc, ssm ? T * ws->ld_e : 0 },
        { &ws->bcd, ssm ? T * ws->ld_bcd : 0 },
        { &ws->y, ssm ? T * ws->ld_e : 0 },
        { &ws->q, attention ? T * ws->ld_d : 0 },
        { &ws->k, attention ? T * ws->ld_d : 0 },
        { &ws->v, attention ? T * ws->ld_d : 0 },
        { &ws->o, attention ? T * ws->ld_d : 0 },
        { &ws->route, moe ? T * ws->ld_x : 0 },
        { &ws->weight, moe ? T * k : 0 },
        { &ws->shared_s, moe ? T * BXN_UNIT_COLS : 0 },
        { &ws->picked, moe ? T * k : 0 },
        { &ws->pair_row, moe ? T * k : 0 },
        { &ws->pair_of, moe ? T * k : 0 },
        { &ws->first, moe ? X + 1 : 0 },
        { &ws->a, moe ? T * k * ws->ld_i : 0 },
        { &ws->b, moe ? T * k * ws->ld_i : 0 },
        { &ws->sa, moe ? T * ws->ld_i : 0 },
        { &ws->sb, moe ? T * ws->ld_i : 0 },
        { &ws->e, moe ? T * k * ws->ld_d : 0 },
        /* the last: scratch of the kernels, not rows, and not cleared */
        { &ws->scores, attention ? config->num_heads * BXN_QUERIES * ws->score_stride : 0 },
    };
    size_t offset = 0;
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        char *at = ws->memory != NULL ? (char *)ws->memory + offset : NULL;
        memcpy(table[i].slot, &at, sizeof at); /* float * and int32_t * alike */
        offset += bxn_round_up(table[i].count * 4, BXN_ALIGN);
    }
    return offset;
}

size_t bxn_workspace_bytes(const bxn_config *config, uint64_t max_tokens)
{
    bxn_workspace ws = { 0 };
    return place(config, max_tokens, &ws);
}

bitaxon_status bxn_workspace_create(bxn_mem *mem, const bxn_config *config, uint64_t max_tokens,
                                    bxn_workspace *out, bitaxon_error *error)
{
    memset(out, 0, sizeof *out);
    size_t bytes = bxn_workspace_bytes(config, max_tokens);
    bitaxon_status status = bxn_alloc(mem, bytes, "session workspace", &out->memory, error);
    if (status != BITAXON_OK)
        return status;
    out->bytes = bytes;
    place(config, max_tokens, out);
    memset(out->memory, 0, (size_t)((char *)out->scores - (char *)out->memory));
    return BITAXON_OK;
}

void bxn_workspace_free(bxn_mem *mem, bxn_workspace *ws)
{
    bxn_free(mem, ws->memory, ws->bytes);
    memset(ws, 0, sizeof *ws);
}
