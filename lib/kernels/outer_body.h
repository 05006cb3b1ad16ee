/* SPDX-License-Identifier: Apache-2.0 */
/* outer_body.h - the outer product c += P^T Q, once for the tiers, over the panel product that each has for
 * its other products: rows of Q are the panel, [128 rows t][columns j], and P is turned so that a column
 * of it is an input row, [i][128 rows t]. A part of c that fits the second cache takes all rows t before
 * the next. Included by the outer_*.c of the tiers, which define
 *   OUTER_COLUMNS                 columns of the widest panel
 *   OUTER_LANES                   rows that outer_turn takes
 *   outer_width(left)             columns of the next panel: what is left, or less
 *   outer_stride(width)           floats from row to row of a panel of so many columns
 *   outer_turn(in, ld, k, out)    out[j][t] = in[t][j], t < OUTER_LANES, j < k, a multiple of 4;
 *                                 rows of out are 128 floats apart and aligned
 *   outer_panel(panel, stride, width, depth, mm, c) the panel product, adding
 *   OUTER_IN_PLACE(width, ldq)    whether rows of q can be the panel as they lie; without it they are copied. */
#include <string.h>

#ifndef OUTER_IN_PLACE
#define OUTER_IN_PLACE(width, ldq) false
#endif

enum {
    OUTER_DEPTH = BXN_UNIT_COLS, /* rows t of a panel: one chain of sums */
    OUTER_ROWS = 144,            /* rows of c taken together: 16 tiles of 9, 24 of 6 */
    OUTER_WIDE = 480             /* columns of c taken together */
};

/* turned[i][t] = p[t][i] */
static void outer_turn_all(const float *p, size_t ldp, uint32_t depth, uint32_t count, float *turned)
{
    const uint32_t whole = count / 4 * 4, deep = depth / OUTER_LANES * OUTER_LANES;
    for (uint32_t t = 0; t < deep; t += OUTER_LANES)
        outer_turn(p + t * ldp, ldp, whole, turned + t);
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t t = i < whole ? deep : 0; t < depth; t++)
            turned[i * OUTER_DEPTH + t] = p[t * ldp + i];
}

static void outer_block(const bxn_outer_args *args, uint32_t i_begin, uint32_t i_end, uint32_t j_begin,
                        uint32_t j_end)
{
    _Alignas(64) float turned[OUTER_ROWS * OUTER_DEPTH], panel[OUTER_DEPTH * OUTER_COLUMNS];
    for (uint32_t first = 0, depth; first < args->rows; first += depth) {
        depth = args->rows - first < OUTER_DEPTH ? args->rows - first : OUTER_DEPTH;
        outer_turn_all(args->p + first * args->ldp + i_begin, args->ldp, depth, i_end - i_begin, turned);
        bxn_mm_args mm = {.x = turned, .ldx = OUTER_DEPTH, .count = i_end - i_begin, .ldy = args->ldc};
        for (uint32_t j = j_begin, width; j < j_end; j += width) {
            width = outer_width(j_end - j);
            const uint32_t stride = outer_stride(width);
            const float *q = args->q + first * args->ldq + j;
            float *c = args->c + i_begin * args->ldc + j;
            if (OUTER_IN_PLACE(width, args->ldq)) {
                outer_panel(q, args->ldq, width, depth, &mm, c);
                continue;
            }
            for (uint32_t t = 0; t < depth; t++, q += args->ldq) {
                float *row = panel + (size_t)t * stride;
                if (width == OUTER_COLUMNS) {
                    memcpy(row, q, OUTER_COLUMNS * sizeof *q);
                    continue;
                }
                memcpy(row, q, width * sizeof *q);
                memset(row + width, 0, (stride - width) * sizeof *q);
            }
            outer_panel(panel, stride, width, depth, &mm, c);
        }
    }
}

static void outer_add(const bxn_outer_args *args, uint32_t i_begin, uint32_t i_end, uint32_t j_begin, uint32_t j_end)
{
    for (uint32_t i = i_begin, rows; i < i_end; i += rows) {
        rows = i_end - i < OUTER_ROWS ? i_end - i : OUTER_ROWS;
        for (uint32_t j = j_begin, wide; j < j_end; j += wide) {
            wide = j_end - j < OUTER_WIDE ? j_end - j : OUTER_WIDE;
            outer_block(args, i, i + rows, j, j + wide);
        }
    }
}
