/* SPDX-License-Identifier: Apache-2.0 */
/* unit_neon.h - scales, biases, codes and results of a packed unit, four rows to a vector.
 * Shared by the Arm products of quantised matrices, which compile it themselves. Quad q of a
 * unit is its rows 4 q .. 4 q + 3. */
#ifndef BXN_UNIT_NEON_H
#define BXN_UNIT_NEON_H

#include "kernels/arm/vec_neon.h"
#include "kernels/kernels.h"

/* Quad q of the 16 scales (or, past them, biases) of a block. */
BXN_INLINE float32x4_t scales_at(const uint8_t *values, int f32, uint32_t block, unsigned q)
{
    size_t index = (size_t)block * 16 + q * 4;
    return f32 ? load4(values + index * 4) : load4_f16(values + index * 2);
}

/* Scale and bias' of quad q of a block. */
BXN_INLINE void block_at(const bxn_packed *w, const uint8_t *unit, uint32_t block, unsigned q,
                         float32x4_t *scale, float32x4_t *bias)
{
    *scale = scales_at(unit, w->scale_f32, block, q);
    *bias = vdupq_n_f32(0.0f);
    if (w->has_bias)
        *bias = vfmaq_n_f32(scales_at(unit, w->scale_f32, block + w->blocks, q), *scale, w->center);
}

BXN_INLINE void store_rows(const bxn_packed *w, uint32_t group, unsigned q, float *out,
                           float32x4_t y)
{
    size_t row = (size_t)group * BXN_UNIT_ROWS + q * 4;
    if (row < w->rows)
        store_first(out + row, w->rows - row, y);
}

BXN_INLINE const uint8_t *unit_at(const bxn_packed *w, uint32_t group, uint32_t u)
{
    return w->data + ((size_t)group * w->k_units + u) * w->unit_bytes;
}

BXN_INLINE size_t source_row(const bxn_mm_args *args, uint32_t token)
{
    return args->rows != NULL ? (size_t)args->rows[token] : token;
}

/* Fetch what lies `ahead` bytes after a line of codes. */
BXN_INLINE void fetch(const uint8_t *p, size_t ahead)
{
    __builtin_prefetch((const void *)((uintptr_t)p + ahead), 0, 3);
}

#endif
