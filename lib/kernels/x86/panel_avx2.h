/* SPDX-License-Identifier: Apache-2.0 */
/* panel_avx2.h - the tiled f32 product that the dense and the transposed products of AVX2
 * share, as in panel_avx512.h, with panels of 16 outputs. panel_avx2.c defines it. */
#ifndef BXN_PANEL_AVX2_H
#define BXN_PANEL_AVX2_H

#include "kernels/kernels.h"

#define PANEL_DEPTH BXN_UNIT_COLS /* inputs of a panel: one chain of sums */
#define PANEL_COLUMNS 16          /* outputs of a panel, and its stride */

/* What the next panel is made of, to be fetched while this one is multiplied: 16 stretches of
 * `bytes` (a multiple of 64, at most 512), `stride` apart. */
typedef struct panel_ahead {
    const char *data;
    size_t stride;
    unsigned bytes;
} panel_ahead;

/* For every token of args and `valid` outputs: p = 0; for k < depth ascending:
 * p = fma(panel[k][output], x[first_input + k], p); y += p, with y = 0 before when `clear`.
 * y: the first output of the first token. */
void bxn_panel_avx2(const float *panel, unsigned depth, size_t first_input, const bxn_mm_args *args,
                    float *y, uint32_t valid, int clear, const panel_ahead *ahead);

/* out[k][output] = in[output][k] for 8 outputs, `ld` floats apart, and `depth` inputs, rounded up
 * to 4; rows of out are PANEL_COLUMNS floats apart. */
void bxn_panel_transpose_avx2(const float *in, size_t ld, unsigned depth, float *out);

#endif
