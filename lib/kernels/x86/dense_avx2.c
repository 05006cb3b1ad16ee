/* SPDX-License-Identifier: Apache-2.0 */
/* dense_avx2.c - products with dense f32, f16 and bf16 matrices, 8 output rows in the lanes
 * of a vector. Called through the kernel table by the linear op. Rows of weights are
 * row-major in a file, maybe unaligned: 8 of them are read as f32 side by side, 128 inputs at
 * a time, and turned into lanes. One token multiplies on the way, more tokens share the
 * panel; both follow the order of kernels.h, so their bits are equal. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/panel_avx2.h"
#include "kernels/x86/transpose_avx2.h"

#define BLOCKS 2 /* blocks of inputs that one token takes at once, for two chains in flight */

BXN_INLINE __m256 widen(const uint8_t *in, bxn_dtype dtype)
{
    if (dtype == BXN_F32)
        return _mm256_loadu_ps((const float *)(const void *)in);
    __m128i half = _mm_loadu_si128((const __m128i *)(const void *)in);
    if (dtype == BXN_F16)
        return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* Up to 8 rows from `row` on, inputs k ... k + depth - 1, as f32 `ld` floats apart; depth is
 * filled up with zeros to a multiple of 8. Fetches `lines` cache lines from `ahead` per row. */
BXN_INLINE void read_rows(const bxn_dense *w, bxn_dtype dtype, uint32_t row, uint32_t rows,
                          size_t k, unsigned depth, float *out, size_t ld, const char *ahead,
                          unsigned lines)
{
    const size_t size = dtype == BXN_F32 ? 4 : 2, row_bytes = w->cols * size;
    const uint8_t *in = (const uint8_t *)w->data + row * row_bytes + k * size;
    for (uint32_t r = 0; r < rows; r++, in += row_bytes, out += ld, ahead += row_bytes) {
        for (unsigned i = 0; i < lines; i++)
            _mm_prefetch(ahead + (size_t)i * 64, _MM_HINT_T0);
        unsigned i = 0;
        for (; i + 8 <= depth; i += 8)
            _mm256_store_ps(out + i, widen(in + i * size, dtype));
        if (i < depth) {
            uint8_t end[8 * 4] = {0};
            memcpy(end, in + i * size, (depth - i) * size);
            _mm256_store_ps(out + i, widen(end, dtype));
        }
    }
}

/* One token. */
BXN_INLINE void gemv(const bxn_dense *w, bxn_dtype dtype, uint32_t row, uint32_t rows,
                     const float *x, float *y)
{
    enum { LD = BLOCKS * PANEL_DEPTH };
    const size_t size = dtype == BXN_F32 ? 4 : 2, row_bytes = w->cols * size;
    _Alignas(32) float stage[8 * LD];
    for (size_t i = (size_t)rows * LD; i < (size_t)8 * LD; i += 8)
        _mm256_store_ps(stage + i, _mm256_setzero_ps());
    __m256 sum = _mm256_setzero_ps();
    size_t k = 0;
    for (; k + LD <= w->cols; k += LD) {
        /* What is read next is fetched evenly meanwhile: half of it here, the rest below. */
        const char *ahead = (const char *)w->data + row * row_bytes +
                            (k + LD < w->cols ? (k + LD) * size : 8 * row_bytes);
        read_rows(w, dtype, row, rows, k, LD, stage, LD, ahead, 2 * (unsigned)size);
        __m256 p[BLOCKS];
        BXN_UNROLL
        for (unsigned b = 0; b < BLOCKS; b++)
            p[b] = _mm256_setzero_ps();
        for (unsigned i = 0; i < PANEL_DEPTH; i += 4) {
            BXN_UNROLL
            for (unsigned j = 0; j < size / 2; j++)
                _mm_prefetch(ahead + i / 16 * row_bytes +
                                 (2 * size + i / 4 % 4 * (size / 2) + j) * 64,
                             _MM_HINT_T0);
            BXN_UNROLL
            for (unsigned b = 0; b < BLOCKS; b++) {
                __m256 v[4];
                transpose_8x4(stage + b * PANEL_DEPTH + i, LD, v);
                BXN_UNROLL
                for (unsigned j = 0; j < 4; j++)
                    p[b] = _mm256_fmadd_ps(
                        v[j], _mm256_broadcast_ss(&x[k + b * PANEL_DEPTH + i + j]), p[b]);
            }
        }
        BXN_UNROLL
        for (unsigned b = 0; b < BLOCKS; b++)
            sum = _mm256_add_ps(sum, p[b]);
    }
    for (; k < w->cols; k += PANEL_DEPTH) {
        unsigned depth = w->cols - k < PANEL_DEPTH ? (unsigned)(w->cols - k) : PANEL_DEPTH;
        read_rows(w, dtype, row, rows, k, depth, stage, LD, w->data, 0);
        __m256 p = _mm256_setzero_ps();
        for (unsigned i = 0; i < depth; i += 4) {
            __m256 v[4];
            transpose_8x4(stage + i, LD, v);
            for (unsigned j = 0; j < 4 && i + j < depth; j++)
                p = _mm256_fmadd_ps(v[j], _mm256_broadcast_ss(&x[k + i + j]), p);
        }
        sum = _mm256_add_ps(sum, p);
    }
    store_first(y, rows, sum);
}

BXN_INLINE void mm_dense(const bxn_dense *w, bxn_dtype dtype, uint32_t begin, uint32_t end,
                         const bxn_mm_args *args)
{
    if (args->count == 0)
        return;
    if (args->count == 1) {
        const float *x = args->x + (args->rows != NULL ? (size_t)args->rows[0] : 0) * args->ldx;
        for (uint32_t row = begin; row < end; row += 8)
            gemv(w, dtype, row, end - row < 8 ? end - row : 8, x, args->y + row);
        return;
    }
    const size_t size = dtype == BXN_F32 ? 4 : 2, row_bytes = w->cols * size;
    _Alignas(32) float stage[8 * PANEL_DEPTH], panel[PANEL_DEPTH * PANEL_COLUMNS];
    for (uint32_t row = begin; row < end; row += PANEL_COLUMNS) {
        uint32_t rows = end - row < PANEL_COLUMNS ? end - row : PANEL_COLUMNS;
        for (size_t k = 0; k < w->cols; k += PANEL_DEPTH) {
            unsigned depth = w->cols - k < PANEL_DEPTH ? (unsigned)(w->cols - k) : PANEL_DEPTH;
            panel_ahead ahead = {
                (const char *)w->data + row * row_bytes +
                    (k + depth < w->cols ? (k + depth) * size : PANEL_COLUMNS * row_bytes),
                row_bytes, PANEL_DEPTH * (unsigned)size};
            for (unsigned g = 0; g < PANEL_COLUMNS; g += 8) {
                uint32_t part = rows <= g ? 0 : rows - g < 8 ? rows - g : 8;
                read_rows(w, dtype, row + g, part, k, depth, stage, PANEL_DEPTH, w->data, 0);
                for (size_t i = (size_t)part * PANEL_DEPTH; i < (size_t)8 * PANEL_DEPTH; i += 8)
                    _mm256_store_ps(stage + i, _mm256_setzero_ps());
                bxn_panel_transpose_avx2(stage, PANEL_DEPTH, depth, panel + g);
            }
            bxn_panel_avx2(panel, depth, k, args, args->y + row, rows, k == 0, &ahead);
        }
    }
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
