/* SPDX-License-Identifier: Apache-2.0 */
/* near_neon.c - products of quantised matrices with integer activations for Armv8.0, which has
 * no dot products of bytes: codes and activations are widened to 16 bits and SMLAL by element
 * multiplies one column of 16 rows at a time. Called through the kernel table by the linear
 * op. Order and integers are those of kernels.h at bxn_xq_kind, so bits are those of every
 * other SIMD tier. `fast` saves memory and conversions here, not multiplications.
 *
 * Integers are stored in the order of the columns, as int16 (near) or int8 (fast). A vector of
 * codes is loaded with LD4, which puts byte i of all 16 rows into one register. */
#include "kernels/kernels_isa.h"

#if defined(__aarch64__)
#include "kernels/arm/quant_neon.h"
#include "kernels/arm/unit_neon.h"

#define STREAMS 2
#define CHUNK 144 /* tokens that share one decoding of a unit */
#define TILE 4    /* tokens whose sums are in registers at once: 16 accumulators */

/* How codes become values of 16 bits: a table of whole numbers of 8 or of 16 bits; bytes. */
enum { AFFINE4, TABLE4, BYTES8 };

typedef struct job {
    const bxn_packed *w;
    const bxn_mm_args *args;
    code_table table;
    unsigned width; /* columns of an integer block */
} job;

void bxn_quant_x_neon(bxn_xq_kind kind, const float *x, size_t columns, void *xq, float *xscale)
{
    for (size_t k = 0; k < columns; k += BXN_XQ_BLOCK) {
        const float factor = block_factor(kind, x + k, xscale + k / BXN_XQ_BLOCK);
        for (size_t i = k; i < k + BXN_XQ_BLOCK; i += 8) {
            int16x8_t q = quantised8(kind, x + i, factor);
            if (kind >= BXN_XQ_FAST4)
                vst1_s8((int8_t *)xq + i, vmovn_s16(q));
            else
                vst1q_s16((int16_t *)xq + i, q);
        }
    }
}

BXN_INLINE int16x8_t activations(const uint8_t *row, size_t k, int fast)
{
    if (fast)
        return vmovl_s8(vreinterpret_s8_u8(vld1_u8(row + k)));
    return vreinterpretq_s16_u8(vld1q_u8(row + 2 * k));
}

/* Values of code n (columns ascending) of the 16 rows, rows 0-7 and 8-15. */
BXN_INLINE void values(const code_table *t, uint8x16x4_t codes, unsigned n, int16x8_t v[2],
                       int mode)
{
    int8x16_t low;
    if (mode == BYTES8) {
        low = vreinterpretq_s8_u8(codes.val[n]);
    } else {
        uint8x16_t byte = codes.val[n / 2];
        byte = n % 2 == 0 ? vandq_u8(byte, vdupq_n_u8(15)) : vshrq_n_u8(byte, 4);
        low = vqtbl1q_s8(t->plane[0], byte);
        if (mode == TABLE4) { /* plane 1 counts the low byte as unsigned here */
            int8x16_t high = vqtbl1q_s8(t->plane[1], byte);
            v[0] = vreinterpretq_s16_s8(vzip1q_s8(low, high));
            v[1] = vreinterpretq_s16_s8(vzip2q_s8(low, high));
            return;
        }
    }
    v[0] = vmovl_s8(vget_low_s8(low));
    v[1] = vmovl_high_s8(low);
}

/* sum[q] += v * lane of x, four rows each. */
BXN_INLINE void multiply(int32x4_t sum[4], const int16x8_t v[2], int16x8_t x, unsigned lane)
{
#define CASE(n)                                                                                    \
    case n:                                                                                        \
        sum[0] = vmlal_laneq_s16(sum[0], vget_low_s16(v[0]), x, n);                                \
        sum[1] = vmlal_high_laneq_s16(sum[1], v[0], x, n);                                         \
        sum[2] = vmlal_laneq_s16(sum[2], vget_low_s16(v[1]), x, n);                                \
        sum[3] = vmlal_high_laneq_s16(sum[3], v[1], x, n);                                         \
        break
    switch (lane) {
        CASE(0);
        CASE(1);
        CASE(2);
        CASE(3);
        CASE(4);
        CASE(5);
        CASE(6);
        CASE(7);
    }
#undef CASE
}

/* The integer sums of one block, scaled, for one token. */
BXN_INLINE float32x4_t add_block(float32x4_t y, int32x4_t sum, float32x4_t scale, float xscale,
                                 float32x4_t bias, const float *xsum, unsigned width)
{
    y = vfmaq_f32(y, vcvtq_f32_s32(sum), vmulq_n_f32(scale, xscale));
    if (xsum != NULL)
        y = vfmaq_n_f32(y, bias, width == 32 ? xsum[0] : xsum[0] + xsum[1]);
    return y;
}

/* One token, n row groups `step` apart beginning at `group`. */
BXN_INLINE void gemv(const job *p, uint32_t group, uint32_t step, unsigned n, int mode, int fast)
{
    const bxn_packed *w = p->w;
    const size_t row = source_row(p->args, 0), codes_offset = bxn_unit_scale_bytes(w);
    const uint8_t *xq = (const uint8_t *)p->args->xq + row * p->args->ldxq;
    const float *xscale = p->args->xscale + row * p->args->ldxscale;
    const float *xsum = w->has_bias ? p->args->xsum + row * p->args->ldsum : NULL;
    const size_t ahead = 2 * (size_t)w->unit_bytes;
    const unsigned lines = mode == BYTES8 ? 2 : 1; /* vectors of codes for 8 columns */
    const uint8_t *unit[STREAMS];
    float32x4_t y[STREAMS][4];
    BXN_UNROLL
    for (unsigned s = 0; s < n; s++) {
        unit[s] = unit_at(w, group + s * step, 0);
        BXN_UNROLL
        for (unsigned q = 0; q < 4; q++)
            y[s][q] = vdupq_n_f32(0.0f);
    }
    for (uint32_t u = 0; u < w->k_units; u++) {
        for (unsigned k = 0; k < BXN_UNIT_COLS; k += p->width) {
            const size_t column = (size_t)u * BXN_UNIT_COLS + k;
            int32x4_t sum[STREAMS][4];
            BXN_UNROLL
            for (unsigned s = 0; s < n; s++) {
                fetch(unit[s], ahead + k * 2);
                BXN_UNROLL
                for (unsigned q = 0; q < 4; q++)
                    sum[s][q] = vdupq_n_s32(0);
            }
            for (unsigned g = k / 8; g < (k + p->width) / 8; g++) {
                const int16x8_t x = activations(xq, (size_t)u * BXN_UNIT_COLS + g * 8, fast);
                BXN_UNROLL
                for (unsigned l = 0; l < lines; l++) {
                    const size_t at = codes_offset + (g * lines + l) * 64;
                    BXN_UNROLL
                    for (unsigned s = 0; s < n; s++) {
                        uint8x16x4_t codes = vld4q_u8(unit[s] + at);
                        fetch(unit[s], ahead + at);
                        BXN_UNROLL
                        for (unsigned i = 0; i < 8 / lines; i++) {
                            int16x8_t v[2];
                            values(&p->table, codes, i, v, mode);
                            multiply(sum[s], v, x, l * 4 + i);
                        }
                    }
                }
            }
            BXN_UNROLL
            for (unsigned s = 0; s < n; s++) {
                BXN_UNROLL
                for (unsigned q = 0; q < 4; q++) {
                    float32x4_t scale, bias;
                    block_at(w, unit[s], k * w->blocks / BXN_UNIT_COLS, q, &scale, &bias);
                    y[s][q] = add_block(y[s][q], sum[s][q], scale, xscale[column / BXN_XQ_BLOCK],
                                        bias, xsum != NULL ? xsum + column / BXN_SUB_BLOCK : NULL,
                                        p->width);
                }
            }
        }
        BXN_UNROLL
        for (unsigned s = 0; s < n; s++)
            unit[s] += w->unit_bytes;
    }
    BXN_UNROLL
    for (unsigned s = 0; s < n; s++) {
        BXN_UNROLL
        for (unsigned q = 0; q < 4; q++)
            store_rows(w, group + s * step, q, p->args->y, y[s][q]);
    }
}

/* A decoded unit of a row group and the sums of a chunk of tokens. */
typedef struct panel {
    int16_t value[BXN_UNIT_COLS * 16]; /* [k][16] */
    float scale[4 * 16], bias[4 * 16]; /* [integer block][16] */
    float y[CHUNK * 16];               /* [token][16] */
} panel;

BXN_INLINE void decode_unit(const job *p, const uint8_t *unit, panel *work, int mode)
{
    const size_t ahead = p->w->unit_bytes;
    const unsigned blocks = BXN_UNIT_COLS / p->width;
    for (unsigned j = 0; j < blocks; j++) {
        fetch(unit, ahead + j * 64);
        BXN_UNROLL
        for (unsigned q = 0; q < 4; q++) {
            float32x4_t scale, bias;
            block_at(p->w, unit, j * p->w->blocks / blocks, q, &scale, &bias);
            vst1q_f32(work->scale + j * 16 + q * 4, scale);
            vst1q_f32(work->bias + j * 16 + q * 4, bias);
        }
    }
    const uint8_t *at = unit + bxn_unit_scale_bytes(p->w);
    const unsigned per = mode == BYTES8 ? 4 : 8;
    int16_t *out = work->value;
    for (unsigned i = 0; i < BXN_UNIT_COLS / per; i++, at += 64) {
        uint8x16x4_t codes = vld4q_u8(at);
        fetch(at, ahead);
        BXN_UNROLL
        for (unsigned k = 0; k < per; k++, out += 16) {
            int16x8_t v[2];
            values(&p->table, codes, k, v, mode);
            vst1q_s16(out, v[0]);
            vst1q_s16(out + 8, v[1]);
        }
    }
}

/* `tokens` tokens of the chunk from `first` on: one unit more. */
BXN_INLINE void tile(const job *p, panel *work, uint32_t u, uint32_t chunk, uint32_t first,
                     unsigned tokens, int fast)
{
    const bxn_mm_args *args = p->args;
    const uint8_t *xq[TILE];
    const float *xscale[TILE], *xsum[TILE];
    BXN_UNROLL
    for (unsigned m = 0; m < tokens; m++) {
        size_t row = source_row(args, chunk + first + m);
        xq[m] = (const uint8_t *)args->xq + row * args->ldxq;
        xscale[m] = args->xscale + row * args->ldxscale + u * 2;
        xsum[m] = p->w->has_bias ? args->xsum + row * args->ldsum + (size_t)u * 4 : NULL;
    }
    for (unsigned k = 0; k < BXN_UNIT_COLS; k += p->width) {
        int32x4_t sum[TILE][4];
        BXN_UNROLL
        for (unsigned m = 0; m < tokens; m++) {
            BXN_UNROLL
            for (unsigned q = 0; q < 4; q++)
                sum[m][q] = vdupq_n_s32(0);
        }
        for (unsigned g = k; g < k + p->width; g += 8) {
            int16x8_t x[TILE];
            BXN_UNROLL
            for (unsigned m = 0; m < tokens; m++)
                x[m] = activations(xq[m], (size_t)u * BXN_UNIT_COLS + g, fast);
            BXN_UNROLL
            for (unsigned i = 0; i < 8; i++) {
                const int16_t *at = work->value + (size_t)(g + i) * 16;
                const int16x8_t v[2] = {vld1q_s16(at), vld1q_s16(at + 8)};
                BXN_UNROLL
                for (unsigned m = 0; m < tokens; m++)
                    multiply(sum[m], v, x[m], i);
            }
        }
        const unsigned j = k / p->width;
        BXN_UNROLL
        for (unsigned q = 0; q < 4; q++) {
            float32x4_t scale = vld1q_f32(work->scale + j * 16 + q * 4);
            float32x4_t bias = vld1q_f32(work->bias + j * 16 + q * 4);
            BXN_UNROLL
            for (unsigned m = 0; m < tokens; m++) {
                float *out = work->y + (size_t)(first + m) * 16 + q * 4;
                const float *sums = xsum[m] != NULL ? xsum[m] + k / BXN_SUB_BLOCK : NULL;
                vst1q_f32(out, add_block(vld1q_f32(out), sum[m][q], scale,
                                         xscale[m][k / BXN_XQ_BLOCK], bias, sums, p->width));
            }
        }
    }
}

BXN_INLINE void gemm_group(const job *p, uint32_t group, uint32_t chunk, uint32_t count, int mode,
                           int fast)
{
    panel work;
    memset(work.y, 0, (size_t)count * 16 * sizeof(float));
    for (uint32_t u = 0; u < p->w->k_units; u++) {
        decode_unit(p, unit_at(p->w, group, u), &work, mode);
        uint32_t m = 0;
        for (; m + TILE <= count; m += TILE)
            tile(p, &work, u, chunk, m, TILE, fast);
        for (; m < count; m++)
            tile(p, &work, u, chunk, m, 1, fast);
    }
    for (uint32_t m = 0; m < count; m++) {
        BXN_UNROLL
        for (unsigned q = 0; q < 4; q++)
            store_rows(p->w, group, q, p->args->y + (chunk + m) * p->args->ldy,
                       vld1q_f32(work.y + (size_t)m * 16 + q * 4));
    }
}

BXN_INLINE void mm(const bxn_packed *w, uint32_t begin, uint32_t end, const bxn_mm_args *args,
                   int mode, int fast)
{
    if (begin >= end || args->count == 0)
        return;
    job p = {.w = w, .args = args, .width = w->blocks == 4 ? 32 : 64};
    if (mode != BYTES8) {
        p.table = make_table(w, xq_table_unit(bxn_xq_kind_of(w, fast)));
        if (mode == TABLE4) /* whole 16-bit values from here: the high byte as it is in them */
            p.table.plane[1] = vaddq_s8(p.table.plane[1], vshrq_n_s8(p.table.plane[0], 7));
    }
    if (args->count == 1) {
        const uint32_t part = (end - begin) / STREAMS;
        for (uint32_t g = begin; g < begin + part; g++)
            gemv(&p, g, part, STREAMS, mode, fast);
        for (uint32_t g = begin + part * STREAMS; g < end; g++)
            gemv(&p, g, 1, 1, mode, fast);
        return;
    }
    for (uint32_t chunk = 0; chunk < args->count; chunk += CHUNK) {
        uint32_t left = args->count - chunk, count = left < CHUNK ? left : CHUNK;
        for (uint32_t group = begin; group < end; group++)
            gemm_group(&p, group, chunk, count, mode, fast);
    }
}

void bxn_mm_near4_neon(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                       const bxn_mm_args *args)
{
    if (bxn_packed_has_table(w))
        mm(w, group_begin, group_end, args, TABLE4, 0);
    else
        mm(w, group_begin, group_end, args, AFFINE4, 0);
}

void bxn_mm_near8_neon(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                       const bxn_mm_args *args)
{
    mm(w, group_begin, group_end, args, BYTES8, 0);
}

void bxn_mm_fast4_neon(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                       const bxn_mm_args *args)
{
    mm(w, group_begin, group_end, args, AFFINE4, 1); /* a table's fast values are bytes too */
}

void bxn_mm_fast8_neon(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                       const bxn_mm_args *args)
{
    mm(w, group_begin, group_end, args, BYTES8, 1);
}
#endif
