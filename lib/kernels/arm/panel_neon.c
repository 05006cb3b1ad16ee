/* SPDX-License-Identifier: Apache-2.0 */
/* panel_neon.c - the inner product of panel_neon.h: tiles of up to 6 tokens x 16 outputs
 * whose sums stay in registers over the depth of a panel. Called by the dense and the
 * transposed products of NEON. A tile's shape never shows in a result: every output is one
 * chain. */
#include "kernels/arm/panel_neon.h"

#if defined(__aarch64__)
#include "kernels/arm/unit_neon.h"

#define TILE 6 /* 24 sums, four vectors of weights, inputs */

/* What a tile reads and writes. */
typedef struct target {
    const float *panel;
    const float *x[TILE]; /* at the first input */
    float *y;
    size_t ldy;
    unsigned depth;
    uint32_t valid;
    bool clear;
} target;

BXN_INLINE void tile(const target *t, unsigned tokens)
{
    const float *w = t->panel, *x[TILE];
    float32x4_t p[TILE][4];
    BXN_UNROLL
    for (unsigned m = 0; m < tokens; m++) {
        x[m] = t->x[m];
        BXN_UNROLL
        for (unsigned q = 0; q < 4; q++)
            p[m][q] = vdupq_n_f32(0.0f);
    }
    for (size_t k = 0; k < t->depth; k++, w += PANEL_COLUMNS) {
        float32x4_t v[4];
        BXN_UNROLL
        for (unsigned q = 0; q < 4; q++)
            v[q] = vld1q_f32(w + q * 4);
        BXN_UNROLL
        for (unsigned m = 0; m < tokens; m++) {
            const float xm = x[m][k];
            BXN_UNROLL
            for (unsigned q = 0; q < 4; q++)
                p[m][q] = vfmaq_n_f32(p[m][q], v[q], xm);
        }
    }
    BXN_UNROLL
    for (unsigned m = 0; m < tokens; m++) {
        BXN_UNROLL
        for (unsigned q = 0; q < 4; q++) {
            float *y = t->y + m * t->ldy + q * 4;
            if (q * 4 >= t->valid)
                break;
            float32x4_t sum = vdupq_n_f32(0.0f);
            if (!t->clear)
                sum = load_first(y, t->valid - q * 4);
            store_first(y, t->valid - q * 4, vaddq_f32(sum, p[m][q]));
        }
    }
}

static void tile_of(const target *t, unsigned tokens)
{
    switch (tokens) {
    case 1:
        tile(t, 1);
        break;
    case 2:
        tile(t, 2);
        break;
    case 3:
        tile(t, 3);
        break;
    case 4:
        tile(t, 4);
        break;
    case 5:
        tile(t, 5);
        break;
    default:
        tile(t, TILE);
        break;
    }
}

void bxn_panel_neon(const float *panel, unsigned depth, size_t first_input, const bxn_mm_args *args,
                    float *y, uint32_t valid, bool clear)
{
    target t = {.panel = panel, .ldy = args->ldy, .depth = depth, .valid = valid, .clear = clear};
    /* Tiles of nearly equal size: a small last one would be slow. */
    const uint32_t tiles = (args->count + TILE - 1) / TILE;
    for (uint32_t i = 0, token = 0; i < tiles; i++) {
        const uint32_t tokens = (args->count - token + tiles - i - 1) / (tiles - i);
        for (uint32_t m = 0; m < tokens; m++)
            t.x[m] = args->x + source_row(args, token + m) * args->ldx + first_input;
        t.y = y + token * args->ldy;
        tile_of(&t, tokens);
        token += tokens;
    }
}
#endif
