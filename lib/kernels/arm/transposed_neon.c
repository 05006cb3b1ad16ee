/* SPDX-License-Identifier: Apache-2.0 */
/* transposed_neon.c - products with the transpose of a matrix, columns in the lanes of vectors:
 * gradients with respect to the inputs of a linear layer. Called through the kernel table.
 * Panels of 128 rows x 16 columns are made in f32 from the weights as they lie (a lane of packed
 * codes is a row of consecutive columns already) and shared by all tokens. */
#include "kernels/kernels_isa.h"

#if defined(__aarch64__)
#include "kernels/arm/decode_neon.h"
#include "kernels/arm/panel_neon.h"
#include "kernels/arm/unit_neon.h"

#define PANELS (BXN_UNIT_COLS / PANEL_COLUMNS) /* of a unit's columns */

/* 16 codes of a row, columns ascending: two lanes of 8 nibbles, or four of 4 bytes. */
BXN_INLINE uint8x16_t row_codes(const uint8_t *lane, int mode)
{
    uint32_t words[4];
    for (unsigned v = 0; v < (mode == BYTES8 ? 4 : 2); v++)
        memcpy(words + v, lane + (size_t)v * 64, sizeof words[v]);
    if (mode == BYTES8)
        return vreinterpretq_u8_u32(vld1q_u32(words));
    const uint8x8_t pairs = vreinterpret_u8_u32(vld1_u32(words));
    const uint8x8x2_t codes = vzip_u8(vand_u8(pairs, vdup_n_u8(15)), vshr_n_u8(pairs, 4));
    return vcombine_u8(codes.val[0], codes.val[1]);
}

/* The 16 rows of a unit, columns part * 16 ..., to panel [16][16]. */
BXN_INLINE void decode(const bxn_packed *w, const decoder *d, const uint8_t *unit, uint32_t part,
                       float *panel, int mode)
{
    const uint8_t *codes =
        unit + bxn_unit_scale_bytes(w) + (size_t)part * (mode == BYTES8 ? 256 : 128);
    float scale[BXN_UNIT_ROWS], bias[BXN_UNIT_ROWS];
    BXN_UNROLL
    for (unsigned q = 0; q < 4; q++) {
        float32x4_t s, b;
        block_at(w, unit, part * w->blocks / 8, q, &s, &b);
        vst1q_f32(scale + q * 4, s);
        vst1q_f32(bias + q * 4, b);
    }
    for (unsigned r = 0; r < BXN_UNIT_ROWS; r++, panel += PANEL_COLUMNS) {
        float32x4_t v[4];
        values(d, row_codes(codes + (size_t)r * 4, mode), v, mode);
        BXN_UNROLL
        for (unsigned q = 0; q < 4; q++) {
            v[q] = w->has_bias ? vfmaq_n_f32(vdupq_n_f32(bias[r]), v[q], scale[r])
                               : vmulq_n_f32(v[q], scale[r]);
            vst1q_f32(panel + q * 4, v[q]);
        }
    }
}

BXN_INLINE void mm_packed(const bxn_packed *w, uint32_t begin, uint32_t end,
                          const bxn_mm_args *args, bool add, int mode)
{
    float panel[PANEL_DEPTH * PANEL_COLUMNS];
    if (args->count == 0)
        return;
    const decoder d = make_decoder(w);
    for (uint32_t u = begin; u < end; u++) {
        for (uint32_t row = 0; row < w->rows; row += PANEL_DEPTH) {
            const uint32_t depth = w->rows - row < PANEL_DEPTH ? w->rows - row : PANEL_DEPTH;
            for (uint32_t part = 0; part < PANELS; part++) {
                const uint32_t column = u * BXN_UNIT_COLS + part * PANEL_COLUMNS;
                if (column >= w->cols)
                    break;
                for (uint32_t r = 0; r < depth; r += BXN_UNIT_ROWS)
                    decode(w, &d, unit_at(w, (row + r) / BXN_UNIT_ROWS, u), part,
                           panel + (size_t)r * PANEL_COLUMNS, mode);
                bxn_panel_neon(panel, depth, row, args, args->y + column, w->cols - column,
                               row == 0 && !add);
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
    for (unsigned i = 0; i < PANEL_COLUMNS; i += 4) {
        const uint8_t *at = in + i * size;
        const float32x4_t v =
            dtype == BXN_F32 ? load4(at)
            : dtype == BXN_F16
                ? load4_f16(at)
                : vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(at)), 16));
        vst1q_f32(panel + i, v);
    }
}

BXN_INLINE void mm_dense(const bxn_dense *w, bxn_dtype dtype, uint32_t begin, uint32_t end,
                         const bxn_mm_args *args, bool add)
{
    float panel[PANEL_DEPTH * PANEL_COLUMNS];
    const size_t size = dtype == BXN_F32 ? 4 : 2, row_bytes = w->cols * size;
    if (args->count == 0)
        return;
    for (uint32_t u = begin; u < end; u++) {
        for (uint32_t row = 0; row < w->rows; row += PANEL_DEPTH) {
            const uint32_t depth = w->rows - row < PANEL_DEPTH ? w->rows - row : PANEL_DEPTH;
            for (uint32_t part = 0; part < PANELS; part++) {
                const uint32_t column = u * BXN_UNIT_COLS + part * PANEL_COLUMNS;
                if (column >= w->cols)
                    break;
                const uint8_t *in = (const uint8_t *)w->data + row * row_bytes + column * size;
                for (uint32_t n = 0; n < depth; n++)
                    widen(in + n * row_bytes, dtype, w->cols - column, panel + n * PANEL_COLUMNS);
                bxn_panel_neon(panel, depth, row, args, args->y + column, w->cols - column,
                               row == 0 && !add);
            }
        }
    }
}

void bxn_mm_t_packed4_neon(const bxn_packed *w, uint32_t unit_begin, uint32_t unit_end,
                           const bxn_mm_args *args, bool add)
{
    mm_packed(w, unit_begin, unit_end, args, add, TABLE4);
}

void bxn_mm_t_packed8_neon(const bxn_packed *w, uint32_t unit_begin, uint32_t unit_end,
                           const bxn_mm_args *args, bool add)
{
    mm_packed(w, unit_begin, unit_end, args, add, BYTES8);
}

void bxn_mm_t_f32_neon(const bxn_dense *w, uint32_t unit_begin, uint32_t unit_end,
                       const bxn_mm_args *args, bool add)
{
    mm_dense(w, BXN_F32, unit_begin, unit_end, args, add);
}

void bxn_mm_t_f16_neon(const bxn_dense *w, uint32_t unit_begin, uint32_t unit_end,
                       const bxn_mm_args *args, bool add)
{
    mm_dense(w, BXN_F16, unit_begin, unit_end, args, add);
}

void bxn_mm_t_bf16_neon(const bxn_dense *w, uint32_t unit_begin, uint32_t unit_end,
                        const bxn_mm_args *args, bool add)
{
    mm_dense(w, BXN_BF16, unit_begin, unit_end, args, add);
}
#endif
