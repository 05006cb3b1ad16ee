/* SPDX-License-Identifier: Apache-2.0 */
/* transposed_avx512.c - products with the transpose of a matrix, 16 columns in the lanes of
 * a vector: gradients with respect to the inputs of a linear layer. Called through the kernel
 * table. Panels of 128 rows x 32 columns are made in f32 from the weights as they lie (packed
 * codes are decoded with rows in the lanes, then turned) and shared by all tokens. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/panel_avx512.h"
#include "kernels/x86/vec_avx512.h"

#define COLUMNS 32 /* of a panel: a quarter of a unit's */
#define PANELS (BXN_UNIT_COLS / COLUMNS)

BXN_INLINE __m512 scales_at(const bxn_packed *w, const uint8_t *unit, uint32_t block)
{
    if (w->scale_f32)
        return _mm512_loadu_ps((const float *)(const void *)(unit + (size_t)block * 64));
    return _mm512_cvtph_ps(
        _mm256_loadu_si256((const __m256i *)(const void *)(unit + (size_t)block * 32)));
}

/* 16 rows of a unit, columns part * 32 ..., to panel [16][32]. */
BXN_INLINE void decode(const bxn_packed *w, const uint8_t *unit, uint32_t part, unsigned bits,
                       float *panel)
{
    const uint32_t block = part * w->blocks / 4;
    const unsigned per = 32 / bits; /* codes in a lane */
    const uint8_t *codes = unit + bxn_unit_scale_bytes(w) + (size_t)part * bits * 64;
    const __m512 scale = scales_at(w, unit, block), table = _mm512_loadu_ps(w->table);
    __m512 bias = _mm512_setzero_ps();
    if (w->has_bias)
        bias = _mm512_fmadd_ps(_mm512_set1_ps(w->center), scale,
                               scales_at(w, unit, block + w->blocks));
    _Alignas(64) float turned[COLUMNS * 16]; /* [column][row] */
    float *out = turned;
    for (unsigned v = 0; v < bits; v++) {
        __m512i c = _mm512_loadu_si512(codes + (size_t)v * 64);
        for (unsigned i = 0; i < per; i++, out += 16, c = _mm512_srli_epi32(c, bits)) {
            __m512 value =
                bits == 4 ? _mm512_permutexvar_ps(c, table)
                          : _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(c, 24), 24));
            value = w->has_bias ? _mm512_fmadd_ps(scale, value, bias) : _mm512_mul_ps(scale, value);
            _mm512_store_ps(out, value);
        }
    }
    for (unsigned half = 0; half < COLUMNS; half += 16)
        bxn_panel_transpose_avx512(turned + half * 16, 16, 16, panel + half, COLUMNS);
}

BXN_INLINE void mm_packed(const bxn_packed *w, uint32_t begin, uint32_t end,
                          const bxn_mm_args *args, bool add, unsigned bits)
{
    _Alignas(64) float panel[PANEL_DEPTH * COLUMNS];
    const panel_ahead ahead = {(const char *)w->data, 0, 0};
    if (args->count == 0)
        return;
    for (uint32_t u = begin; u < end; u++) {
        for (uint32_t row = 0; row < w->rows; row += PANEL_DEPTH) {
            const uint32_t depth = w->rows - row < PANEL_DEPTH ? w->rows - row : PANEL_DEPTH;
            for (uint32_t part = 0; part < PANELS; part++) {
                const uint32_t column = u * BXN_UNIT_COLS + part * COLUMNS;
                if (column >= w->cols)
                    break;
                for (uint32_t r = 0; r < depth; r += BXN_UNIT_ROWS)
                    decode(w,
                           w->data + ((size_t)((row + r) / BXN_UNIT_ROWS) * w->k_units + u) *
                                         w->unit_bytes,
                           part, bits, panel + (size_t)r * COLUMNS);
                bxn_panel_avx512(panel, COLUMNS, COLUMNS, depth, row, args, args->y + column,
                                 w->cols - column, row == 0 && !add, &ahead);
            }
        }
    }
}

/* 32 columns of a row, those beyond `count` zero and not read, to panel. */
BXN_INLINE void widen(const uint8_t *in, bxn_dtype dtype, uint32_t count, float *panel)
{
    BXN_UNROLL
    for (unsigned i = 0; i < COLUMNS; i += 16) {
        __mmask16 mask = count >= i + 16 ? (__mmask16)0xFFFF : tail_mask(count > i ? count - i : 0);
        __m512 v;
        if (dtype == BXN_F32) {
            v = _mm512_maskz_loadu_ps(mask, in + i * 4);
        } else {
            __m256i half = _mm256_maskz_loadu_epi16(mask, in + i * 2);
            v = dtype == BXN_F16
                    ? _mm512_cvtph_ps(half)
                    : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
        }
        _mm512_store_ps(panel + i, v);
    }
}

BXN_INLINE void mm_dense(const bxn_dense *w, bxn_dtype dtype, uint32_t begin, uint32_t end,
                         const bxn_mm_args *args, bool add)
{
    _Alignas(64) float panel[PANEL_DEPTH * COLUMNS];
    const size_t size = dtype == BXN_F32 ? 4 : 2, row_bytes = w->cols * size;
    if (args->count == 0)
        return;
    for (uint32_t u = begin; u < end; u++) {
        for (uint32_t row = 0; row < w->rows; row += PANEL_DEPTH) {
            const uint32_t depth = w->rows - row < PANEL_DEPTH ? w->rows - row : PANEL_DEPTH;
            const uint8_t *block =
                (const uint8_t *)w->data + row * row_bytes + (size_t)u * BXN_UNIT_COLS * size;
            for (uint32_t part = 0; part < PANELS; part++) {
                const uint32_t column = u * BXN_UNIT_COLS + part * COLUMNS;
                if (column >= w->cols)
                    break;
                const uint8_t *in = block + (size_t)part * COLUMNS * size;
                for (uint32_t n = 0; n < depth; n++)
                    widen(in + n * row_bytes, dtype, w->cols - column, panel + n * COLUMNS);
                /* A quarter of the rows that follow: all of a unit's columns. */
                const panel_ahead ahead = {
                    (const char *)block + (PANEL_DEPTH + part * 32) * row_bytes, row_bytes,
                    row + PANEL_DEPTH < w->rows ? BXN_UNIT_COLS * (unsigned)size : 0};
                bxn_panel_avx512(panel, COLUMNS, COLUMNS, depth, row, args, args->y + column,
                                 w->cols - column, row == 0 && !add, &ahead);
            }
        }
    }
}

void bxn_mm_t_packed4_avx512(const bxn_packed *w, uint32_t unit_begin, uint32_t unit_end,
                             const bxn_mm_args *args, bool add)
{
    mm_packed(w, unit_begin, unit_end, args, add, 4);
}

void bxn_mm_t_packed8_avx512(const bxn_packed *w, uint32_t unit_begin, uint32_t unit_end,
                             const bxn_mm_args *args, bool add)
{
    mm_packed(w, unit_begin, unit_end, args, add, 8);
}

void bxn_mm_t_f32_avx512(const bxn_dense *w, uint32_t unit_begin, uint32_t unit_end,
                         const bxn_mm_args *args, bool add)
{
    mm_dense(w, BXN_F32, unit_begin, unit_end, args, add);
}

void bxn_mm_t_f16_avx512(const bxn_dense *w, uint32_t unit_begin, uint32_t unit_end,
                         const bxn_mm_args *args, bool add)
{
    mm_dense(w, BXN_F16, unit_begin, unit_end, args, add);
}

void bxn_mm_t_bf16_avx512(const bxn_dense *w, uint32_t unit_begin, uint32_t unit_end,
                          const bxn_mm_args *args, bool add)
{
    mm_dense(w, BXN_BF16, unit_begin, unit_end, args, add);
}
#endif
