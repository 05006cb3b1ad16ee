/* SPDX-License-Identifier: Apache-2.0 */
/* panel_avx512.h - the tiled f32 product that the dense and the transposed products of
 * AVX-512 share: a panel of weights in f32, inputs down and outputs across, is made once and
 * used by all tokens of a call. panel_avx512.c defines it. */
#ifndef BXN_PANEL_AVX512_H
#define BXN_PANEL_AVX512_H

#include "kernels/kernels.h"

#define PANEL_DEPTH BXN_UNIT_COLS /* inputs of a panel: one chain of sums */
#define PANEL_COLUMNS 48          /* outputs of a panel at most */

/* What the next panel is made of, to be fetched while this one is multiplied: 32 stretches (48
 * for 48 columns) of `bytes` (a multiple of 64, at most 512), `stride` apart. */
typedef struct panel_ahead {
    const char *data;
    size_t stride;
    unsigned bytes;
} panel_ahead;

/* For every token of args and `valid` outputs: p = 0; for k < depth ascending:
 * p = fma(panel[k][output], x[first_input + k], p); y += p, with y = 0 before when `clear`.
 * columns: 16, 32 or 48 of the panel, whose rows are `stride` floats apart; y: the first output of the
 * first token. */
void bxn_panel_avx512(const float *panel, size_t stride, unsigned columns, unsigned depth,
                      size_t first_input, const bxn_mm_args *args, float *y, uint32_t valid,
                      int clear, const panel_ahead *ahead);

/* out[k][output] = in[output][k] for 16 outputs, `ld` floats apart, and `depth` inputs, rounded up
 * to 4; rows of out are `columns` floats apart. */
void bxn_panel_transpose_avx512(const float *in, size_t ld, unsigned depth, float *out,
                                unsigned columns);

#endif
