/* SPDX-License-Identifier: Apache-2.0 */
/* panel_neon.h - the tiled f32 product that the dense and the transposed products of NEON
 * share: a panel of weights [inputs][16 outputs] in f32. panel_neon.c defines it. */
#ifndef BXN_PANEL_NEON_H
#define BXN_PANEL_NEON_H

#include "kernels/kernels.h"

#define PANEL_DEPTH BXN_UNIT_COLS /* inputs of a panel: one chain of sums */
#define PANEL_COLUMNS 16          /* outputs of a panel, and its stride */

/* For every token of args and `valid` outputs: p = 0; for k < depth ascending:
 * p = fma(panel[k][output], x[first_input + k], p); y += p, with y = 0 before when `clear`.
 * y: the first output of the first token. */
void bxn_panel_neon(const float *panel, unsigned depth, size_t first_input, const bxn_mm_args *args,
                    float *y, uint32_t valid, bool clear);

#endif
