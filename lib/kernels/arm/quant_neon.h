/* SPDX-License-Identifier: Apache-2.0 */
/* quant_neon.h - activations as integers: the part of quant_x that the Arm tiers share, and
 * the code values of quantised matrices. Included by near_neon.c, near_dotprod.c and
 * near_i8mm.c, which differ in how they store the integers. */
#ifndef BXN_QUANT_NEON_H
#define BXN_QUANT_NEON_H

#include <float.h>
#include <math.h>

#include "kernels/arm/vec_neon.h"
#include "kernels/kernels.h"

BXN_INLINE float xq_limit(bxn_xq_kind kind)
{
    return kind >= BXN_XQ_FAST4 ? 127.0f : kind == BXN_XQ_NEAR_TABLE ? 4095.0f : 32512.0f;
}

BXN_INLINE float xq_table_unit(bxn_xq_kind kind)
{
    return kind == BXN_XQ_NEAR_TABLE ? 8191.0f : kind == BXN_XQ_FAST_TABLE ? 127.0f : 1.0f;
}

/* What the values of a block are multiplied by, and what undoes it (kernels.h). */
BXN_INLINE float block_factor(bxn_xq_kind kind, const float *x, float *xscale)
{
    float32x4_t most = vabsq_f32(vld1q_f32(x));
    BXN_UNROLL
    for (unsigned i = 4; i < BXN_XQ_BLOCK; i += 4)
        most = vmaxq_f32(most, vabsq_f32(vld1q_f32(x + i)));
    const float m = vmaxvq_f32(most), limit = xq_limit(kind); /* NaN when there is one */
    const int finite = m <= FLT_MAX, flat = !finite || m < 1e-30f;
    *xscale = !finite ? NAN : flat ? 0.0f : m / limit / xq_table_unit(kind);
    return flat ? 0.0f : limit / m;
}

/* Eight integers. A factor of 0 gives 0, whatever x is. */
BXN_INLINE int16x8_t quantised8(bxn_xq_kind kind, const float *x, float factor)
{
    const int16x8_t limit = vdupq_n_s16((int16_t)xq_limit(kind));
    int32x4_t low = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x), factor));
    int32x4_t high = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4), factor));
    int16x8_t q = vcombine_s16(vqmovn_s32(low), vqmovn_s32(high));
    if (factor == 0.0f)
        return vdupq_n_s16(0);
    return vmaxq_s16(vminq_s16(q, limit), vnegq_s16(limit));
}

/* The integer values of 4-bit codes as bytes: plane[0] the low ones (all there is to fast ones
 * and to affine codes), plane[1] what is left, in units of 256. */
typedef struct code_table {
    int8x16_t plane[2];
} code_table;

BXN_INLINE code_table make_table(const bxn_packed *w, float unit)
{
    int8_t low[16], high[16];
    for (int c = 0; c < 16; c++) {
        int value = bxn_packed_has_table(w) ? (int)rintf(w->table[c] * unit) : c - (int)w->center;
        low[c] = (int8_t)(((value + 128) & 255) - 128);
        high[c] = (int8_t)((value - low[c]) / 256);
    }
    code_table t = {{vld1q_s8(low), vld1q_s8(high)}};
    return t;
}

#endif
