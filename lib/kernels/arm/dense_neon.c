/* SPDX-License-Identifier: Apache-2.0 */
/* dense_neon.c - products with dense f32, f16 and bf16 matrices, output rows in the lanes of
 * vectors. Called through the kernel table by the linear op. Rows of weights are row-major in a
 * file, maybe unaligned: 8 inputs of four rows are read side by side and turned into lanes. One
 * token multiplies on the way, more tokens share a panel of 16 rows; both follow the order of
 * kernels.h, so their bits are equal. */
#include "kernels/kernels_isa.h"

#if defined(__aarch64__)
#include "kernels/arm/panel_neon.h"
#include "kernels/arm/unit_neon.h"

#define STEP 8 /* inputs that are turned at once */

/* Up to 16 rows; where there are fewer, the last of them stands for the others too, and what
 * comes of those is dropped. */
typedef struct source {
    const uint8_t *row[16];
    bxn_dtype dtype;
    size_t next; /* from a row to the one that is read after its end; bytes */
} source;

BXN_INLINE size_t size_of(bxn_dtype dtype)
{
    return dtype == BXN_F32 ? 4 : 2;
}

BXN_INLINE source make_source(const bxn_dense *w, bxn_dtype dtype, uint32_t row, uint32_t rows)
{
    const size_t row_bytes = w->cols * size_of(dtype);
    source s = {.dtype = dtype, .next = 16 * row_bytes};
    for (uint32_t r = 0; r < 16; r++)
        s.row[r] = (const uint8_t *)w->data + (row + (r < rows ? r : rows - 1)) * row_bytes;
    return s;
}

/* Four vectors of four rows, inputs in the lanes, to four vectors of inputs. */
BXN_INLINE void turn(const float32x4_t row[4], float32x4_t v[4])
{
    float32x4_t low02 = vzip1q_f32(row[0], row[2]), high02 = vzip2q_f32(row[0], row[2]);
    float32x4_t low13 = vzip1q_f32(row[1], row[3]), high13 = vzip2q_f32(row[1], row[3]);
    v[0] = vzip1q_f32(low02, low13);
    v[1] = vzip2q_f32(low02, low13);
    v[2] = vzip1q_f32(high02, high13);
    v[3] = vzip2q_f32(high02, high13);
}

/* v[i] lane r = input i of row[r], 8 inputs. Halves are turned before they are widened. */
BXN_INLINE void load_rows(bxn_dtype dtype, const uint8_t *const row[4], float32x4_t v[STEP])
{
    if (dtype == BXN_F32) {
        BXN_UNROLL
        for (unsigned h = 0; h < 2; h++) {
            float32x4_t in[4];
            BXN_UNROLL
            for (unsigned r = 0; r < 4; r++)
                in[r] = load4(row[r] + h * 16);
            turn(in, v + h * 4);
        }
        return;
    }
    uint16x8_t in[4];
    BXN_UNROLL
    for (unsigned r = 0; r < 4; r++)
        in[r] = vreinterpretq_u16_u8(vld1q_u8(row[r]));
    const uint16x8_t r02[2] = {vzip1q_u16(in[0], in[2]), vzip2q_u16(in[0], in[2])};
    const uint16x8_t r13[2] = {vzip1q_u16(in[1], in[3]), vzip2q_u16(in[1], in[3])};
    BXN_UNROLL
    for (unsigned h = 0; h < 2; h++) {
        const uint16x8_t pair[2] = {vzip1q_u16(r02[h], r13[h]), vzip2q_u16(r02[h], r13[h])};
        BXN_UNROLL
        for (unsigned i = 0; i < 2; i++) {
            float32x4_t *out = v + h * 4 + i * 2;
            if (dtype == BXN_F16) {
                const float16x8_t halves = vreinterpretq_f16_u16(pair[i]);
                out[0] = vcvt_f32_f16(vget_low_f16(halves));
                out[1] = vcvt_high_f32_f16(halves);
            } else {
                out[0] = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(pair[i]), 16));
                out[1] = vreinterpretq_f32_u32(vshll_high_n_u16(pair[i], 16));
            }
        }
    }
}

/* Inputs k ... k + left - 1, fewer than 8, and zeros after them. */
BXN_INLINE void load_end(const source *s, unsigned quad, size_t k, size_t left, float32x4_t v[STEP])
{
    const size_t size = size_of(s->dtype);
    uint8_t end[4][STEP * 4] = {0};
    const uint8_t *row[4];
    for (unsigned r = 0; r < 4; r++) {
        memcpy(end[r], s->row[quad * 4 + r] + k * size, left * size);
        row[r] = end[r];
    }
    load_rows(s->dtype, row, v);
}

BXN_INLINE void load_inputs(const source *s, unsigned quad, size_t k, float32x4_t v[STEP])
{
    const uint8_t *row[4];
    BXN_UNROLL
    for (unsigned r = 0; r < 4; r++)
        row[r] = s->row[quad * 4 + r] + k * size_of(s->dtype);
    load_rows(s->dtype, row, v);
}

/* Fetch what row r of a full panel has after the 128 inputs from k on. */
BXN_INLINE void fetch_ahead(const source *s, unsigned r, size_t k, size_t cols)
{
    const size_t size = size_of(s->dtype);
    const size_t ahead = k + PANEL_DEPTH < cols ? (k + PANEL_DEPTH) * size : s->next;
    BXN_UNROLL
    for (size_t at = 0; at < PANEL_DEPTH * size; at += 64)
        fetch(s->row[r], ahead + at);
}

/* One token, 4 * quads rows; `rows` of them are written. */
BXN_INLINE void gemv(const source *s, size_t cols, const float *x, float *y, uint32_t rows,
                     unsigned quads)
{
    float32x4_t sum[4];
    BXN_UNROLL
    for (unsigned q = 0; q < quads; q++)
        sum[q] = vdupq_n_f32(0.0f);
    for (size_t begin = 0; begin < cols; begin += PANEL_DEPTH) {
        const size_t depth = cols - begin < PANEL_DEPTH ? cols - begin : PANEL_DEPTH;
        float32x4_t p[4], v[STEP];
        BXN_UNROLL
        for (unsigned q = 0; q < quads; q++)
            p[q] = vdupq_n_f32(0.0f);
        size_t k = 0;
        for (; k + STEP <= depth; k += STEP) {
            const float *at = x + begin + k;
            if (quads == 4)
                fetch_ahead(s, (unsigned)(k / STEP), begin, cols);
            const float32x4_t x0 = vld1q_f32(at), x1 = vld1q_f32(at + 4);
            BXN_UNROLL
            for (unsigned q = 0; q < quads; q++) {
                load_inputs(s, q, begin + k, v);
                BXN_UNROLL
                for (unsigned i = 0; i < STEP; i++)
                    p[q] = fma_lane(p[q], v[i], i < 4 ? x0 : x1, i % 4);
            }
        }
        BXN_UNROLL
        for (unsigned q = 0; q < quads; q++) {
            float32x4_t last[STEP];
            if (k == depth)
                break;
            load_end(s, q, begin + k, depth - k, last);
            for (size_t i = 0; i < depth - k; i++)
                p[q] = vfmaq_n_f32(p[q], last[i], x[begin + k + i]);
        }
        BXN_UNROLL
        for (unsigned q = 0; q < quads; q++)
            sum[q] = vaddq_f32(sum[q], p[q]);
    }
    BXN_UNROLL
    for (unsigned q = 0; q < quads; q++) {
        if (q * 4 < rows)
            store_first(y + q * 4, rows - q * 4, sum[q]);
    }
}

/* Inputs begin ... begin + depth - 1 of 16 rows. */
BXN_INLINE void make_panel(const source *s, size_t begin, size_t depth, size_t cols, float *panel)
{
    for (size_t k = 0; k < depth; k += STEP, panel += STEP * PANEL_COLUMNS) {
        fetch_ahead(s, (unsigned)(k / STEP), begin, cols);
        BXN_UNROLL
        for (unsigned q = 0; q < 4; q++) {
            float32x4_t v[STEP];
            if (depth - k < STEP)
                load_end(s, q, begin + k, depth - k, v);
            else
                load_inputs(s, q, begin + k, v);
            BXN_UNROLL
            for (unsigned i = 0; i < STEP; i++)
                vst1q_f32(panel + i * PANEL_COLUMNS + q * 4, v[i]);
        }
    }
}

BXN_INLINE void mm_dense(const bxn_dense *w, bxn_dtype dtype, uint32_t begin, uint32_t end,
                         const bxn_mm_args *args)
{
    if (args->count == 0)
        return;
    if (args->count == 1) {
        const float *x = args->x + source_row(args, 0) * args->ldx;
        uint32_t row = begin;
        for (; end - row >= 16; row += 16) {
            const source s = make_source(w, dtype, row, 16);
            gemv(&s, w->cols, x, args->y + row, 16, 4);
        }
        for (; row < end; row += end - row < 4 ? end - row : 4) {
            const source s = make_source(w, dtype, row, end - row);
            gemv(&s, w->cols, x, args->y + row, end - row, 1);
        }
        return;
    }
    float panel[PANEL_DEPTH * PANEL_COLUMNS];
    for (uint32_t row = begin; row < end; row += PANEL_COLUMNS) {
        const uint32_t rows = end - row < PANEL_COLUMNS ? end - row : PANEL_COLUMNS;
        const source s = make_source(w, dtype, row, rows);
        for (size_t k = 0; k < w->cols; k += PANEL_DEPTH) {
            const size_t depth = w->cols - k < PANEL_DEPTH ? w->cols - k : PANEL_DEPTH;
            make_panel(&s, k, depth, w->cols, panel);
            bxn_panel_neon(panel, (unsigned)depth, k, args, args->y + row, rows, k == 0);
        }
    }
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
