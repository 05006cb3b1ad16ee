/* SPDX-License-Identifier: Apache-2.0 */
/* dense_avx512.c - products with dense f32, f16 and bf16 matrices, 16 inputs in the lanes
 * of a vector. Called through the kernel table by the linear op. A tile of rows and tokens
 * has one accumulator each, so the order of an output's sum never depends on the tile.
 * Weights may be unaligned; the end of a row is read under a mask. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/vec_avx512.h"

#define ROWS 8   /* most rows of a tile */
#define TOKENS 6 /* most tokens of a tile */

/* 16 weights from column k on; lanes outside the mask are 0 and not read. */
BXN_INLINE __m512 weights(const uint8_t *row, size_t k, __mmask16 mask, bxn_dtype dtype)
{
    if (dtype == BXN_F32)
        return _mm512_maskz_loadu_ps(mask, row + 4 * k);
    __m256i half = _mm256_maskz_loadu_epi16(mask, row + 2 * k);
    if (dtype == BXN_F16)
        return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

BXN_INLINE void tile(const bxn_dense *w, bxn_dtype dtype, uint32_t row, const bxn_mm_args *args,
                     uint32_t token, unsigned rows, unsigned tokens)
{
    const size_t row_bytes = (size_t)w->cols * (dtype == BXN_F32 ? 4 : 2);
    const uint8_t *base = (const uint8_t *)w->data + row * row_bytes;
    const float *x[TOKENS];
    __m512 sum[ROWS][TOKENS];
    BXN_UNROLL
    for (unsigned m = 0; m < tokens; m++) {
        size_t source = args->rows != NULL ? (size_t)args->rows[token + m] : token + m;
        x[m] = args->x + source * args->ldx;
        BXN_UNROLL
        for (unsigned r = 0; r < rows; r++)
            sum[r][m] = _mm512_setzero_ps();
    }
    const size_t full = w->cols / 16 * 16;
    for (size_t k = 0; k < full; k += 16) {
        __m512 v[ROWS];
        BXN_UNROLL
        for (unsigned r = 0; r < rows; r++)
            v[r] = weights(base + r * row_bytes, k, 0xFFFF, dtype);
        BXN_UNROLL
        for (unsigned m = 0; m < tokens; m++) {
            __m512 xm = _mm512_loadu_ps(x[m] + k);
            BXN_UNROLL
            for (unsigned r = 0; r < rows; r++)
                sum[r][m] = _mm512_fmadd_ps(v[r], xm, sum[r][m]);
        }
    }
    if (full < w->cols) {
        const __mmask16 mask = tail_mask(w->cols - full);
        BXN_UNROLL
        for (unsigned r = 0; r < rows; r++) {
            __m512 v = weights(base + r * row_bytes, full, mask, dtype);
            BXN_UNROLL
            for (unsigned m = 0; m < tokens; m++)
                sum[r][m] = _mm512_fmadd_ps(v, _mm512_maskz_loadu_ps(mask, x[m] + full), sum[r][m]);
        }
    }
    BXN_UNROLL
    for (unsigned m = 0; m < tokens; m++) {
        BXN_UNROLL
        for (unsigned r = 0; r < rows; r++)
            args->y[(token + m) * args->ldy + row + r] = tree_sum(sum[r][m]);
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
    for (; row + 4 <= end; row += 4) {
        uint32_t m = 0;
        for (; m + TOKENS <= args->count; m += TOKENS)
            tile(w, dtype, row, args, m, 4, TOKENS);
        for (; m + 2 <= args->count; m += 2)
            tile(w, dtype, row, args, m, 4, 2);
        if (m < args->count)
            tile(w, dtype, row, args, m, 4, 1);
    }
    for (; row < end; row++) {
        uint32_t m = 0;
        for (; m + TOKENS <= args->count; m += TOKENS)
            tile(w, dtype, row, args, m, 1, TOKENS);
        for (; m < args->count; m++)
            tile(w, dtype, row, args, m, 1, 1);
    }
}

void bxn_mm_f32_avx512(const bxn_dense *w, uint32_t row_begin, uint32_t row_end,
                       const bxn_mm_args *args)
{
    mm_dense(w, BXN_F32, row_begin, row_end, args);
}

void bxn_mm_f16_avx512(const bxn_dense *w, uint32_t row_begin, uint32_t row_end,
                       const bxn_mm_args *args)
{
    mm_dense(w, BXN_F16, row_begin, row_end, args);
}

void bxn_mm_bf16_avx512(const bxn_dense *w, uint32_t row_begin, uint32_t row_end,
                        const bxn_mm_args *args)
{
    mm_dense(w, BXN_BF16, row_begin, row_end, args);
}
#endif
