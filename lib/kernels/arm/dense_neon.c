/* SPDX-License-Identifier: Apache-2.0 */
/* dense_neon.c - products with dense f32, f16 and bf16 matrices, 16 inputs in the lanes of
 * four vectors. Called through the kernel table by the linear op. A tile of rows and tokens
 * has four accumulators each, so the order of an output's sum never depends on the tile.
 * Weights may be unaligned; the end of a row is read through a padded copy. */
#include "kernels/kernels_isa.h"

#if defined(__aarch64__)
#include "kernels/arm/vec_neon.h"

#define ROWS 4   /* rows of a tile of one token */
#define TOKENS 3 /* most tokens of a tile of two rows: 24 accumulators */

/* 4 weights at element k. */
BXN_INLINE float32x4_t weights(const uint8_t *row, size_t k, bxn_dtype dtype)
{
    if (dtype == BXN_F32)
        return load4(row + 4 * k);
    if (dtype == BXN_F16)
        return load4_f16(row + 2 * k);
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(row + 2 * k)), 16));
}

BXN_INLINE void tile(const bxn_dense *w, bxn_dtype dtype, uint32_t row, const bxn_mm_args *args,
                     uint32_t token, unsigned rows, unsigned tokens)
{
    const size_t size = dtype == BXN_F32 ? 4 : 2, row_bytes = w->cols * size;
    const uint8_t *base = (const uint8_t *)w->data + row * row_bytes;
    const float *x[TOKENS];
    float32x4_t sum[ROWS][TOKENS][4];
    BXN_UNROLL
    for (unsigned m = 0; m < tokens; m++) {
        size_t source = args->rows != NULL ? (size_t)args->rows[token + m] : token + m;
        x[m] = args->x + source * args->ldx;
        BXN_UNROLL
        for (unsigned r = 0; r < rows; r++) {
            BXN_UNROLL
            for (unsigned q = 0; q < 4; q++)
                sum[r][m][q] = vdupq_n_f32(0.0f);
        }
    }
    const size_t full = w->cols / 16 * 16;
    for (size_t k = 0; k < full; k += 16) {
        BXN_UNROLL
        for (unsigned q = 0; q < 4; q++) {
            float32x4_t v[ROWS];
            BXN_UNROLL
            for (unsigned r = 0; r < rows; r++)
                v[r] = weights(base + r * row_bytes, k + q * 4, dtype);
            BXN_UNROLL
            for (unsigned m = 0; m < tokens; m++) {
                float32x4_t xm = vld1q_f32(x[m] + k + q * 4);
                BXN_UNROLL
                for (unsigned r = 0; r < rows; r++)
                    sum[r][m][q] = vfmaq_f32(sum[r][m][q], v[r], xm);
            }
        }
    }
    if (full < w->cols) {
        const size_t left = w->cols - full;
        BXN_UNROLL
        for (unsigned r = 0; r < rows; r++) {
            uint8_t end[16 * 4] = {0};
            memcpy(end, base + r * row_bytes + full * size, left * size);
            BXN_UNROLL
            for (unsigned q = 0; q < 4; q++) {
                if (q * 4 >= left)
                    break;
                float32x4_t v = weights(end, q * 4, dtype);
                BXN_UNROLL
                for (unsigned m = 0; m < tokens; m++)
                    sum[r][m][q] =
                        vfmaq_f32(sum[r][m][q], v, load_first(x[m] + full + q * 4, left - q * 4));
            }
        }
    }
    BXN_UNROLL
    for (unsigned m = 0; m < tokens; m++) {
        BXN_UNROLL
        for (unsigned r = 0; r < rows; r++)
            args->y[(token + m) * args->ldy + row + r] =
                tree_sum(sum[r][m][0], sum[r][m][1], sum[r][m][2], sum[r][m][3]);
    }
}

BXN_INLINE void mm_dense(const bxn_dense *w, bxn_dtype dtype, uint32_t begin, uint32_t end,
                         const bxn_mm_args *args)
{
    uint32_t row = begin;
    if (args->count == 1) {
        for (; row + ROWS <= end; row += ROWS)
            tile(w, dtype, row, args, 0, ROWS, 1);
        for (; row < end; row++)
            tile(w, dtype, row, args, 0, 1, 1);
        return;
    }
    for (; row + 2 <= end; row += 2) {
        uint32_t m = 0;
        for (; m + TOKENS <= args->count; m += TOKENS)
            tile(w, dtype, row, args, m, 2, TOKENS);
        for (; m < args->count; m++)
            tile(w, dtype, row, args, m, 2, 1);
    }
    for (; row < end; row++)
        for (uint32_t m = 0; m < args->count; m++)
            tile(w, dtype, row, args, m, 1, 1);
}

void bxn_mm_f32_neon(const bxn_dense *w, uint32_t row_begin, uint32_t row_end,
                     const bxn_mm_args *args)
{
    mm_dense(w, BXN_F32, row_begin, row_end, args);
}

void bxn_mm_f16_neon(const bxn_dense *w, uint32_t row_begin, uint32_t row_end,
                     const bxn_mm_args *args)
{
    mm_dense(w, BXN_F16, row_begin, row_end, args);
}

void bxn_mm_bf16_neon(const bxn_dense *w, uint32_t row_begin, uint32_t row_end,
                      const bxn_mm_args *args)
{
    mm_dense(w, BXN_BF16, row_begin, row_end, args);
}
#endif
