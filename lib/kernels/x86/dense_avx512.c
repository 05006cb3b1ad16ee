/* SPDX-License-Identifier: Apache-2.0 */
/* dense_avx512.c - products with dense f32, f16 and bf16 matrices, 16 output rows in the
 * lanes of a vector. Called through the kernel table by the linear op. Rows of weights are
 * row-major in a file, maybe unaligned: 16 of them are read as f32 side by side, 128 inputs
 * at a time, and turned into lanes. One token multiplies on the way, more tokens share the
 * panel; both follow the order of kernels.h, so their bits are equal. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/panel_avx512.h"
#include "kernels/x86/transpose_avx512.h"

#define BLOCKS 2 /* blocks of inputs that one token takes at once, for two chains in flight */

/* Up to 16 rows from `row` on, inputs k ... k + depth - 1, as f32 `ld` floats apart; depth is
 * filled up with zeros to a multiple of 16. Fetches `lines` cache lines from `ahead` per row. */
BXN_INLINE void read_rows(const bxn_dense *w, bxn_dtype dtype, uint32_t row, uint32_t rows,
                          size_t k, unsigned depth, float *out, size_t ld, const char *ahead,
                          unsigned lines)
{
    const size_t size = dtype == BXN_F32 ? 4 : 2, row_bytes = w->cols * size;
    const uint8_t *in = (const uint8_t *)w->data + row * row_bytes + k * size;
    for (uint32_t r = 0; r < rows; r++, in += row_bytes, out += ld, ahead += row_bytes) {
        for (unsigned i = 0; i < lines; i++)
            _mm_prefetch(ahead + (size_t)i * 64, _MM_HINT_T0);
        for (unsigned i = 0; i < depth; i += 16) {
            __mmask16 mask = depth - i >= 16 ? (__mmask16)0xFFFF : tail_mask(depth - i);
            __m512 v;
            if (dtype == BXN_F32) {
                v = _mm512_maskz_loadu_ps(mask, in + i * size);
            } else {
                __m256i half = _mm256_maskz_loadu_epi16(mask, in + i * size);
                v = dtype == BXN_F16
                        ? _mm512_cvtph_ps(half)
                        : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
            }
            _mm512_store_ps(out + i, v);
        }
    }
}

/* One token. */
BXN_INLINE void gemv(const bxn_dense *w, bxn_dtype dtype, uint32_t row, uint32_t rows,
                     const float *x, float *y)
{
    enum { LD = BLOCKS * PANEL_DEPTH };
    const size_t size = dtype == BXN_F32 ? 4 : 2, row_bytes = w->cols * size;
    _Alignas(64) float stage[16 * LD];
    for (size_t i = (size_t)rows * LD; i < (size_t)16 * LD; i += 16)
        _mm512_store_ps(stage + i, _mm512_setzero_ps());
    __m512 sum = _mm512_setzero_ps();
    size_t k = 0;
    for (; k + LD <= w->cols; k += LD) {
        /* What is read next is fetched evenly meanwhile: a quarter here, the rest below. */
        const char *ahead = (const char *)w->data + row * row_bytes +
                            (k + LD < w->cols ? (k + LD) * size : 16 * row_bytes);
        read_rows(w, dtype, row, rows, k, LD, stage, LD, ahead, (unsigned)size);
        __m512 p[BLOCKS];
        BXN_UNROLL
        for (unsigned b = 0; b < BLOCKS; b++)
            p[b] = _mm512_setzero_ps();
        for (unsigned i = 0; i < PANEL_DEPTH; i += 4) {
            BXN_UNROLL
            for (unsigned j = 0; j < 3 * size / 2; j++)
                _mm_prefetch(ahead + i / 8 * row_bytes +
                                 (size + i / 4 % 2 * (3 * size / 2) + j) * 64,
                             _MM_HINT_T0);
            BXN_UNROLL
            for (unsigned b = 0; b < BLOCKS; b++) {
                __m512 v[4];
                transpose_16x4(stage + b * PANEL_DEPTH + i, LD, v);
                BXN_UNROLL
                for (unsigned j = 0; j < 4; j++)
                    p[b] =
                        _mm512_fmadd_ps(v[j], _mm512_set1_ps(x[k + b * PANEL_DEPTH + i + j]), p[b]);
            }
        }
        BXN_UNROLL
        for (unsigned b = 0; b < BLOCKS; b++)
            sum = _mm512_add_ps(sum, p[b]);
    }
    for (; k < w->cols; k += PANEL_DEPTH) {
        unsigned depth = w->cols - k < PANEL_DEPTH ? (unsigned)(w->cols - k) : PANEL_DEPTH;
        read_rows(w, dtype, row, rows, k, depth, stage, LD, w->data, 0);
        __m512 p = _mm512_setzero_ps();
        for (unsigned i = 0; i < depth; i += 4) {
            __m512 v[4];
            transpose_16x4(stage + i, LD, v);
            for (unsigned j = 0; j < 4 && i + j < depth; j++)
                p = _mm512_fmadd_ps(v[j], _mm512_set1_ps(x[k + i + j]), p);
        }
        sum = _mm512_add_ps(sum, p);
    }
    _mm512_mask_storeu_ps(y, rows >= 16 ? (__mmask16)0xFFFF : tail_mask(rows), sum);
}

/* Panels of 48 rows, which need the fewest inputs, but none of 16 at the end where it can be
 * avoided. */
static uint32_t panel_rows(uint32_t left)
{
    return left <= 32 || (left > 48 && left <= 64) ? 32 : 48;
}

BXN_INLINE void mm_dense(const bxn_dense *w, bxn_dtype dtype, uint32_t begin, uint32_t end,
                         const bxn_mm_args *args)
{
    if (args->count == 0)
        return;
    if (args->count == 1) {
        const float *x = args->x + (args->rows != NULL ? (size_t)args->rows[0] : 0) * args->ldx;
        for (uint32_t row = begin; row < end; row += 16)
            gemv(w, dtype, row, end - row < 16 ? end - row : 16, x, args->y + row);
        return;
    }
    const size_t size = dtype == BXN_F32 ? 4 : 2, row_bytes = w->cols * size;
    _Alignas(64) float stage[16 * PANEL_DEPTH], panel[PANEL_DEPTH * PANEL_COLUMNS];
    for (uint32_t row = begin, most; row < end; row += most) {
        most = panel_rows(end - row);
        uint32_t rows = end - row < most ? end - row : most;
        unsigned columns = (rows + 15) / 16 * 16;
        for (size_t k = 0; k < w->cols; k += PANEL_DEPTH) {
            unsigned depth = w->cols - k < PANEL_DEPTH ? (unsigned)(w->cols - k) : PANEL_DEPTH;
            panel_ahead ahead = {(const char *)w->data + row * row_bytes +
                                     (k + depth < w->cols ? (k + depth) * size : most * row_bytes),
                                 row_bytes, PANEL_DEPTH * (unsigned)size};
            for (unsigned g = 0; g < columns; g += 16) {
                uint32_t part = rows - g < 16 ? rows - g : 16;
                read_rows(w, dtype, row + g, part, k, depth, stage, PANEL_DEPTH, w->data, 0);
                for (size_t i = (size_t)part * PANEL_DEPTH; i < (size_t)16 * PANEL_DEPTH; i += 16)
                    _mm512_store_ps(stage + i, _mm512_setzero_ps());
                bxn_panel_transpose_avx512(stage, PANEL_DEPTH, depth, panel + g, columns);
            }
            bxn_panel_avx512(panel, columns, columns, depth, k, args, args->y + row, rows, k == 0,
                             &ahead);
        }
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
