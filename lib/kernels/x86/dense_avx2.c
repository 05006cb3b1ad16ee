/* SPDX-License-Identifier: Apache-2.0 */
/* dense_avx2.c - products with dense f32, f16 and bf16 matrices, 16 inputs in the lanes of
 * two vectors. Called through the kernel table by the linear op. A tile of rows and tokens
 * has one pair of accumulators each, so the order of an output's sum never depends on the
 * tile. Weights may be unaligned; the end of a row is read through a padded copy. */
#include <string.h>

#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/vec_avx2.h"

#define ROWS 4   /* most rows of a tile */
#define TOKENS 3 /* most tokens of a tile */

/* 8 weights at element k. */
BXN_INLINE __m256 weights(const uint8_t *row, size_t k, bxn_dtype dtype)
{
    if (dtype == BXN_F32)
        return _mm256_loadu_ps((const float *)(const void *)(row + 4 * k));
    __m128i half = _mm_loadu_si128((const __m128i *)(const void *)(row + 2 * k));
    if (dtype == BXN_F16)
        return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

BXN_INLINE void tile(const bxn_dense *w, bxn_dtype dtype, uint32_t row, const bxn_mm_args *args,
                     uint32_t token, unsigned rows, unsigned tokens)
{
    const size_t size = dtype == BXN_F32 ? 4 : 2, row_bytes = w->cols * size;
    const uint8_t *base = (const uint8_t *)w->data + row * row_bytes;
    const float *x[TOKENS];
    __m256 sum[ROWS][TOKENS][2];
    BXN_UNROLL
    for (unsigned m = 0; m < tokens; m++) {
        size_t source = args->rows != NULL ? (size_t)args->rows[token + m] : token + m;
        x[m] = args->x + source * args->ldx;
        BXN_UNROLL
        for (unsigned r = 0; r < rows; r++)
            sum[r][m][0] = sum[r][m][1] = _mm256_setzero_ps();
    }
    const size_t full = w->cols / 16 * 16;
    for (size_t k = 0; k < full; k += 16) {
        BXN_UNROLL
        for (unsigned r = 0; r < rows; r++) {
            __m256 low = weights(base + r * row_bytes, k, dtype);
            __m256 high = weights(base + r * row_bytes, k + 8, dtype);
            BXN_UNROLL
            for (unsigned m = 0; m < tokens; m++) {
                sum[r][m][0] = _mm256_fmadd_ps(low, _mm256_loadu_ps(x[m] + k), sum[r][m][0]);
                sum[r][m][1] = _mm256_fmadd_ps(high, _mm256_loadu_ps(x[m] + k + 8), sum[r][m][1]);
            }
        }
    }
    if (full < w->cols) {
        const size_t left = w->cols - full, past = left > 8 ? left - 8 : 0;
        BXN_UNROLL
        for (unsigned r = 0; r < rows; r++) {
            uint8_t end[16 * 4] = {0};
            memcpy(end, base + r * row_bytes + full * size, left * size);
            __m256 low = weights(end, 0, dtype), high = weights(end, 8, dtype);
            BXN_UNROLL
            for (unsigned m = 0; m < tokens; m++) {
                sum[r][m][0] = _mm256_fmadd_ps(low, load_first(x[m] + full, left), sum[r][m][0]);
                sum[r][m][1] =
                    _mm256_fmadd_ps(high, load_first(x[m] + full + 8, past), sum[r][m][1]);
            }
        }
    }
    BXN_UNROLL
    for (unsigned m = 0; m < tokens; m++) {
        BXN_UNROLL
        for (unsigned r = 0; r < rows; r++)
            args->y[(token + m) * args->ldy + row + r] = tree_sum(sum[r][m][0], sum[r][m][1]);
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

void bxn_mm_f32_avx2(const bxn_dense *w, uint32_t row_begin, uint32_t row_end,
                     const bxn_mm_args *args)
{
    mm_dense(w, BXN_F32, row_begin, row_end, args);
}

void bxn_mm_f16_avx2(const bxn_dense *w, uint32_t row_begin, uint32_t row_end,
                     const bxn_mm_args *args)
{
    mm_dense(w, BXN_F16, row_begin, row_end, args);
}

void bxn_mm_bf16_avx2(const bxn_dense *w, uint32_t row_begin, uint32_t row_end,
                      const bxn_mm_args *args)
{
    mm_dense(w, BXN_BF16, row_begin, row_end, args);
}
#endif
