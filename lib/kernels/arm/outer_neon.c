/* SPDX-License-Identifier: Apache-2.0 */
/* outer_neon.c - the outer product of NEON, for gradients of matrices. Called through the kernel table;
 * outer_body.h has the loops, panel_neon.c the product. */
#include "kernels/kernels_isa.h"

#if defined(__aarch64__)
#include "kernels/arm/panel_neon.h"

#define OUTER_COLUMNS PANEL_COLUMNS
#define OUTER_LANES 4

static inline uint32_t outer_width(uint32_t left)
{
    return left < PANEL_COLUMNS ? left : PANEL_COLUMNS;
}

static inline uint32_t outer_stride(uint32_t width)
{
    (void)width;
    return PANEL_COLUMNS;
}

static inline void outer_turn(const float *in, size_t ld, uint32_t count, float *out)
{
    for (uint32_t k = 0; k < count; k++)
        for (uint32_t t = 0; t < OUTER_LANES; t++)
            out[k * PANEL_DEPTH + t] = in[t * ld + k];
}

/* The product knows one stride of panels, that of its own. */
static inline void outer_panel(const float *panel, size_t stride, uint32_t width, uint32_t depth,
                               const bxn_mm_args *mm, float *c)
{
    (void)stride;
    bxn_panel_neon(panel, depth, 0, mm, c, width, false);
}

#include "kernels/outer_body.h"

void bxn_outer_add_neon(const bxn_outer_args *args, uint32_t i_begin, uint32_t i_end, uint32_t j_begin,
                        uint32_t j_end)
{
    outer_add(args, i_begin, i_end, j_begin, j_end);
}
#endif
