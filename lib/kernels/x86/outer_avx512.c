/* SPDX-License-Identifier: Apache-2.0 */
/* outer_avx512.c - the outer product of AVX-512, for gradients of matrices. Called through the kernel
 * table; outer_body.h has the loops, panel_avx512.c the product. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/panel_avx512.h"

#define OUTER_COLUMNS PANEL_COLUMNS
#define OUTER_LANES 16
/* Not where rows of q are read beyond the columns asked for, or all meet in few sets of the first cache. */
#define OUTER_IN_PLACE(width, ldq) ((width) % 16 == 0 && (ldq) % 128 != 0)

/* Panels of 48, but none of 16 at the end where it can be avoided. */
static inline uint32_t outer_width(uint32_t left)
{
    const uint32_t most = left > 48 && left <= 64 ? 32 : 48;
    return left < most ? left : most;
}

static inline uint32_t outer_stride(uint32_t width)
{
    return (width + 15) / 16 * 16;
}

static inline void outer_turn(const float *in, size_t ld, uint32_t count, float *out)
{
    bxn_panel_transpose_avx512(in, ld, count, out, PANEL_DEPTH);
}

static inline void outer_panel(const float *panel, size_t stride, uint32_t width, uint32_t depth,
                               const bxn_mm_args *mm, float *c)
{
    const panel_ahead ahead = {(const char *)panel, 0, 0};
    bxn_panel_avx512(panel, stride, outer_stride(width), depth, 0, mm, c, width, 0, &ahead);
}

#include "kernels/outer_body.h"

void bxn_outer_add_avx512(const bxn_outer_args *args, uint32_t i_begin, uint32_t i_end, uint32_t j_begin,
                          uint32_t j_end)
{
    outer_add(args, i_begin, i_end, j_begin, j_end);
}
#endif
