/* SPDX-License-Identifier: Apache-2.0 */
/* outer_avx2.c - the outer product of AVX2, for gradients of matrices. Called through the kernel table;
 * outer_body.h has the loops, panel_avx2.c the product. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/panel_avx2.h"
#include "kernels/x86/transpose_avx2.h"

#define OUTER_COLUMNS PANEL_COLUMNS
#define OUTER_LANES 8

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
    for (uint32_t k = 0; k < count; k += 4, in += 4, out += 4 * PANEL_DEPTH) {
        __m256 v[4];
        transpose_8x4(in, ld, v);
        for (unsigned i = 0; i < 4; i++)
            _mm256_store_ps(out + i * PANEL_DEPTH, v[i]);
    }
}

/* The product knows one stride of panels, that of its own. */
static inline void outer_panel(const float *panel, size_t stride, uint32_t width, uint32_t depth,
                               const bxn_mm_args *mm, float *c)
{
    (void)stride;
    const panel_ahead ahead = {(const char *)panel, 0, 0};
    bxn_panel_avx2(panel, depth, 0, mm, c, width, 0, &ahead);
}

#include "kernels/outer_body.h"

void bxn_outer_add_avx2(const bxn_outer_args *args, uint32_t i_begin, uint32_t i_end, uint32_t j_begin,
                        uint32_t j_end)
{
    outer_add(args, i_begin, i_end, j_begin, j_end);
}
#endif
