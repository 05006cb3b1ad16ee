/* SPDX-License-Identifier: Apache-2.0 */
/* transposed_avx2.c - products with the transpose of a matrix, 8 columns in the lanes of a
 * vector: gradients with respect to the inputs of a linear layer. Called through the kernel
 * table. Panels of 128 rows x 16 columns are made in f32 from the weights as they lie (packed
 * codes are decoded with rows in the lanes, then turned) and shared by all tokens. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/panel_avx2.h"
#include "kernels/x86/vec_avx2.h"

#define PANELS (BXN_UNIT_COLS / PANEL_COLUMNS) /* of a unit's columns */

/* Scales of 8 rows from `lane` on. */
BXN_INLINE __m256 scales_at(const bxn_packed *w, const uint8_t *unit, uint32_t block, unsigned lane)
{
    size_t index = (size_t)block * 16 + lane;
    if (w->scale_f32)
        return _mm256_loadu_ps((const float *)(const void *)(unit + index * 4));
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(unit + index * 2)));
}

/* 8 rows of a unit from `lane` on, columns part * 16 ..., to panel [8][16]. A table of 16 is
 * two of 8, chosen by the top bit of a code. */
BXN_INLINE void decode(const bxn_packed *w, const uint8_t *unit, uint32_t part, unsigned bits,
                       unsigned lane, float *panel)
{
    const uint32_t block = part * w->blocks / 8;
    const unsigned per = 32 / bits; /* codes in a lane */
    const uint8_t *codes =
        unit + bxn_unit_scale_bytes(w) + (size_t)part * bits * 32 + (size_t)lane * 4;
    const __m256 scale = scales_at(w, unit, block, lane);
    const __m256 low = _mm256_loadu_ps(w->table), high = _mm256_loadu_ps(w->table + 8);
    __m256 bias = _mm256_setzero_ps();
    if (w->has_bias)
        bias = _mm256_fmadd_ps(_mm256_set1_ps(w->center), scale,
                               scales_at(w, unit, block + w->blocks, lane));
    _Alignas(32) float turned[PANEL_COLUMNS * 8]; /* [column][row] */
    float *out = turned;
    for (unsigned v = 0; v < bits / 2; v++) {
        __m256i c = _mm256_loadu_si256((const __m256i *)(const void *)(codes + (size_t)v * 64));
        for (unsigned i = 0; i < per; i++, out += 8, c = _mm256_srli_epi32(c, (int)bits)) {
            __m256 value;
            if (bits == 4)
                value = _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, c),
                                         _mm256_permutevar8x32_ps(high, c),
                                         _mm256_castsi256_ps(_mm256_slli_epi32(c, 28)));
            else
                value = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(c, 24), 24));
            value = w->has_bias ? _mm256_fmadd_ps(scale, value, bias) : _mm256_mul_ps(scale, value);
            _mm256_store_ps(out, value);
        }
    }
    for (unsigned half = 0; half < PANEL_COLUMNS; half += 8)
        bxn_panel_transpose_avx2(turned + half * 8, 8, 8, panel + half);
}

BXN_INLINE void mm_packed(const bxn_packed *w, uint32_t begin, uint32_t end,
                          const bxn_mm_args *args, bool add, unsigned bits)
{
    _Alignas(32) float panel[PANEL_DEPTH * PANEL_COLUMNS];
    const panel_ahead ahead = {(const char *)w->data, 0, 0};
    if (args->count == 0)
        return;
    for (uint32_t u = begin; u < end; u++) {
        for (uint32_t row = 0; row < w->rows; row += PANEL_DEPTH) {
            const uint32_t depth = w->rows - row < PANEL_DEPTH ? w->rows - row : PANEL_DEPTH;
            for (uint32_t part = 0; part < PANELS; part++) {
                const uint32_t column = u * BXN_UNIT_COLS + part * PANEL_COLUMNS;
                if (column >= w->cols)
                    break;
                for (uint32_t r = 0; r < depth; r += 8)
                    decode(w,
                           w->data + ((size_t)((row + r) / BXN_UNIT_ROWS) * w->k_units + u) *
                                         w->unit_bytes,
                           part, bits, r % BXN_UNIT_ROWS, panel + (size_t)r * PANEL_COLUMNS);
                bxn_panel_avx2(panel, depth, row, args, args->y + column, w->cols - column,
                               row == 0 && !add, &ahead);
            }
        }
    }
}

/* 16 columns of a row, those beyond `count` zero and not read, to panel. */
BXN_INLINE void widen(const uint8_t *in, bxn_dtype dtype, uint32_t count, float *panel)
{
    const size_t size = dtype == BXN_F32 ? 4 : 2;
    uint8_t end[PANEL_COLUMNS * 4] = {0};
    if (count < PANEL_COLUMNS) {
        memcpy(end, in, count * size);
        in = end;
    }
    BXN_UNROLL
    for (unsigned i = 0; i < PANEL_COLUMNS; i += 8) {
        const void *at = in + i * size;
        __m256 v;
        if (dtype == BXN_F32) {
            v = _mm256_loadu_ps(at);
        } else {
            __m128i half = _mm_loadu_si128(at);
            v = dtype == BXN_F16
                    ? _mm256_cvtph_ps(half)
                    : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
        }
        _mm256_store_ps(panel + i, v);
    }
}

BXN_INLINE void mm_dense(const bxn_dense *w, bxn_dtype dtype, uint32_t begin, uint32_t end,
                         const bxn_mm_args *args, bool add)
{
    _Alignas(32) float panel[PANEL_DEPTH * PANEL_COLUMNS];
    const size_t size = dtype == BXN_F32 ? 4 : 2, row_bytes = w->cols * size;
    if (args->count == 0)
        return;
    for (uint32_t u = begin; u < end; u++) {
        for (uint32_t row = 0; row < w->rows; row += PANEL_DEPTH) {
            const uint32_t depth = w->rows - row < PANEL_DEPTH ? w->rows - row : PANEL_DEPTH;
            const uint8_t *block =
                (const uint8_t *)w->data + row * row_bytes + (size_t)u * BXN_UNIT_COLS * size;
            for (uint32_t part = 0; part < PANELS; part++) {
                const uint32_t column = u * BXN_UNIT_COLS + part * PANEL_COLUMNS;
                if (column >= w->cols)
                    break;
                const uint8_t *in = block + (size_t)part * PANEL_COLUMNS * size;
                for (uint32_t n = 0; n < depth; n++)
                    widen(in + n * row_bytes, dtype, w->cols - column, panel + n * PANEL_COLUMNS);
                /* An eighth of the rows that follow: all of a unit's columns. */
                const panel_ahead ahead = {
                    (const char *)block + (PANEL_DEPTH + part * 16) * row_bytes, row_bytes,
                    row + PANEL_DEPTH < w->rows ? BXN_UNIT_COLS * (unsigned)size : 0};
                bxn_panel_avx2(panel, depth, row, args, args->y + column, w->cols - column,
                               row == 0 && !add, &ahead);
            }
        }
    }
}

void bxn_mm_t_packed4_avx2(const bxn_packed *w, uint32_t unit_begin, uint32_t unit_end,
                           const bxn_mm_args *args, bool add)
{
    mm_packed(w, unit_begin, unit_end, args, add, 4);
}

void bxn_mm_t_packed8_avx2(const bxn_packed *w, uint32_t unit_begin, uint32_t unit_end,
                           const bxn_mm_args *args, bool add)
{
    mm_packed(w, unit_begin, unit_end, args, add, 8);
}

void bxn_mm_t_f32_avx2(const bxn_dense *w, uint32_t unit_begin, uint32_t unit_end,
                       const bxn_mm_args *args, bool add)
{
    mm_dense(w, BXN_F32, unit_begin, unit_end, args, add);
}

void bxn_mm_t_f16_avx2(const bxn_dense *w, uint32_t unit_begin, uint32_t unit_end,
                       const bxn_mm_args *args, bool add)
{
    mm_dense(w, BXN_F16, unit_begin, unit_end, args, add);
}

void bxn_mm_t_bf16_avx2(const bxn_dense *w, uint32_t unit_begin, uint32_t unit_end,
                        const bxn_mm_args *args, bool add)
{
    mm_dense(w, BXN_BF16, unit_begin, unit_end, args, add);
}
#endif
