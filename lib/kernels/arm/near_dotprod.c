/* SPDX-License-Identifier: Apache-2.0 */
/* near_dotprod.c - products of quantised matrices with integer activations by SDOT (Armv8.2
 * with the dot product extension): 4 bytes of each of 4 rows with 4 bytes of x. Called through
 * the kernel table by the linear op. Order and integers are those of kernels.h at
 * bxn_xq_kind, so bits are those of every other SIMD tier. */
#include "kernels/kernels_isa.h"

#if defined(__aarch64__)
#include "kernels/arm/dots_arm.h"

#define STREAMS 2
#define TILE 4 /* most tokens of a tile */

void bxn_quant_x_dotprod(bxn_xq_kind kind, const float *x, size_t columns, void *xq,
                         float *xscale)
{
    static const uint8_t pairs[16] = {0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15};
    static const uint8_t same[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const int bytes8 = kind == BXN_XQ_NEAR8 || kind == BXN_XQ_FAST8;
    const uint8x16_t order = vld1q_u8(bytes8 ? same : pairs);
    int8_t *out = xq;
    for (size_t k = 0; k < columns; k += BXN_XQ_BLOCK) {
        const float factor = block_factor(kind, x + k, xscale + k / BXN_XQ_BLOCK);
        for (size_t i = k; i < k + BXN_XQ_BLOCK; i += 16, out += 16) {
            int16x8_t a = quantised8(kind, x + i, factor);
            int16x8_t b = quantised8(kind, x + i + 8, factor);
            if (kind >= BXN_XQ_FAST4) {
                vst1q_s8(out, vqtbl1q_s8(vcombine_s8(vmovn_s16(a), vmovn_s16(b)), order));
                continue;
            }
            /* rounded down after adding 128, the high byte leaves a low one of -128 .. 127 */
            int8x16_t first = vcombine_s8(vrshrn_n_s16(a, 8), vmovn_s16(a));
            int8x16_t second = vcombine_s8(vrshrn_n_s16(b, 8), vmovn_s16(b));
            vst1q_s8(out, vqtbl1q_s8(first, order));
            out += 16;
            vst1q_s8(out, vqtbl1q_s8(second, order));
        }
    }
}

BXN_INLINE int32x4_t dot(int32x4_t sum, int8x16_t w, int8x16_t x, unsigned lane)
{
    switch (lane) {
    case 0:
        return vdotq_laneq_s32(sum, w, x, 0);
    case 1:
        return vdotq_laneq_s32(sum, w, x, 1);
    case 2:
        return vdotq_laneq_s32(sum, w, x, 2);
    default:
        return vdotq_laneq_s32(sum, w, x, 3);
    }
}

/* Half t of a group of 8 columns: x is the 16 bytes that hold the group, `at` the lane of its
 * first four (fast: 0 or 2; near: 0, and 2 for the low bytes). */
BXN_INLINE void multiply(int32x4_t *sum, const int8x16_t v[2], int8x16_t x, unsigned t,
                         unsigned at, int mode)
{
    if (mode == FAST) {
        sum[0] = dot(sum[0], v[0], x, at + t);
    } else if (mode == NEAR) {
        sum[0] = dot(sum[0], v[0], x, t);
        sum[1] = dot(sum[1], v[0], x, 2 + t);
    } else {
        sum[0] = dot(sum[0], v[1], x, t);
        sum[1] = dot(sum[1], v[1], x, 2 + t);
        sum[1] = dot(sum[1], v[0], x, t);
        sum[2] = dot(sum[2], v[0], x, 2 + t);
    }
}

/* 16 bytes of x: a group of 8 columns, or two of them in fast. */
BXN_INLINE int8x16_t inputs(const uint8_t *xq, unsigned g, int mode)
{
    return vreinterpretq_s8_u8(vld1q_u8(xq + (mode == FAST ? g * 8 : g * 16)));
}

/* One token, n row groups `step` apart beginning at `group`. */
BXN_INLINE void gemv(const job *p, uint32_t group, uint32_t step, unsigned n, int mode,
                     int container)
{
    const bxn_packed *w = p->w;
    const size_t ahead = 2 * (size_t)w->unit_bytes, codes_offset = bxn_unit_scale_bytes(w);
    const unsigned groups = mode == FAST ? 2 : 1; /* in one vector of x */
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
        const token_row r = row_of(p, 0, u, mode);
        for (unsigned k = 0; k < BXN_UNIT_COLS; k += p->width) {
            int32x4_t sum[STREAMS][4][3];
            BXN_UNROLL
            for (unsigned s = 0; s < n; s++) {
                fetch(unit[s], ahead + k * 2);
                BXN_UNROLL
                for (unsigned q = 0; q < 4; q++) {
                    BXN_UNROLL
                    for (unsigned i = 0; i < sums_of(mode); i++)
                        sum[s][q][i] = vdupq_n_s32(0);
                }
            }
            for (unsigned g = k / 8; g < (k + p->width) / 8; g += groups) {
                const int8x16_t x = inputs(r.xq, g, mode);
                BXN_UNROLL
                for (unsigned j = 0; j < groups; j++) {
                    BXN_UNROLL
                    for (unsigned s = 0; s < n; s++) {
                        const uint8_t *codes = unit[s] + codes_offset;
                        fetch(codes, ahead + (g + j) * (container == BYTES8 ? 128 : 64));
                        if (container == BYTES8)
                            fetch(codes, ahead + (g + j) * 128 + 64);
                        BXN_UNROLL
                        for (unsigned q = 0; q < 4; q++) {
                            BXN_UNROLL
                            for (unsigned t = 0; t < 2; t++) {
                                int8x16_t v[2];
                                weights_at(p, codes, g + j, t, q, v, mode, container);
                                multiply(sum[s][q], v, x, t, j * 2, mode);
                            }
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
                    y[s][q] = add_block(y[s][q], joined(sum[s][q], mode), scale, bias, &r, k,
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

/* Panel: [group of 8 columns][half][quad][16 bytes]. */
BXN_INLINE void store_group(int8_t *out, unsigned q, int8x16_t t0, int8x16_t t1)
{
    vst1q_s8(out + q * 16, t0);
    vst1q_s8(out + 64 + q * 16, t1);
}

BXN_INLINE void tile_of(const job *p, panel *work, uint32_t u, uint32_t chunk, uint32_t first,
                        unsigned tokens, int mode)
{
    const unsigned groups = mode == FAST ? 2 : 1;
    token_row r[TILE];
    BXN_UNROLL
    for (unsigned m = 0; m < tokens; m++)
        r[m] = row_of(p, chunk + first + m, u, mode);
    for (unsigned k = 0; k < BXN_UNIT_COLS; k += p->width) {
        int32x4_t sum[TILE][4][3];
        BXN_UNROLL
        for (unsigned m = 0; m < tokens; m++) {
            BXN_UNROLL
            for (unsigned q = 0; q < 4; q++) {
                BXN_UNROLL
                for (unsigned i = 0; i < sums_of(mode); i++)
                    sum[m][q][i] = vdupq_n_s32(0);
            }
        }
        for (unsigned g = k / 8; g < (k + p->width) / 8; g += groups) {
            int8x16_t x[TILE];
            BXN_UNROLL
            for (unsigned m = 0; m < tokens; m++)
                x[m] = inputs(r[m].xq, g, mode);
            BXN_UNROLL
            for (unsigned j = 0; j < groups; j++) {
                BXN_UNROLL
                for (unsigned t = 0; t < 2; t++) {
                    BXN_UNROLL
                    for (unsigned q = 0; q < 4; q++) {
                        const size_t at = (size_t)(g + j) * 128 + t * 64 + q * 16;
                        int8x16_t v[2];
                        BXN_UNROLL
                        for (unsigned i = 0; i < weight_planes(mode); i++)
                            v[i] = vld1q_s8(work->value[i] + at);
                        BXN_UNROLL
                        for (unsigned m = 0; m < tokens; m++)
                            multiply(sum[m][q], v, x[m], t, j * 2, mode);
                    }
                }
            }
        }
        BXN_UNROLL
        for (unsigned m = 0; m < tokens; m++) {
            BXN_UNROLL
            for (unsigned q = 0; q < 4; q++)
                add_to_panel(work, first + m, q, joined(sum[m][q], mode), &r[m], k, p->width);
        }
    }
}

/* As many tokens as have their sums in 16 to 24 registers. */
BXN_INLINE uint32_t tile(const job *p, panel *work, uint32_t u, uint32_t chunk, uint32_t first,
                         uint32_t left, int mode)
{
    const unsigned most = mode == FAST ? 4 : mode == NEAR ? 3 : 2;
    if (left >= most) {
        tile_of(p, work, u, chunk, first, most, mode);
        return most;
    }
    tile_of(p, work, u, chunk, first, 1, mode);
    return 1;
}

BXN_INLINE void mm(const bxn_packed *w, uint32_t begin, uint32_t end, const bxn_mm_args *args,
                   int mode, int container)
{
    if (begin >= end || args->count == 0)
        return;
    const job p = make_job(w, args, mode, container);
    if (args->count > 1) {
        gemm(&p, begin, end, mode, container);
        return;
    }
    const uint32_t part = (end - begin) / STREAMS;
    for (uint32_t g = begin; g < begin + part; g++)
        gemv(&p, g, part, STREAMS, mode, container);
    for (uint32_t g = begin + part * STREAMS; g < end; g++)
        gemv(&p, g, 1, 1, mode, container);
}

void bxn_mm_near4_dotprod(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                          const bxn_mm_args *args)
{
    if (bxn_packed_has_table(w))
        mm(w, group_begin, group_end, args, NEAR_TABLE, CODES4);
    else
        mm(w, group_begin, group_end, args, NEAR, CODES4);
}

void bxn_mm_near8_dotprod(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                          const bxn_mm_args *args)
{
    mm(w, group_begin, group_end, args, NEAR, BYTES8);
}

void bxn_mm_fast4_dotprod(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                          const bxn_mm_args *args)
{
    mm(w, group_begin, group_end, args, FAST, CODES4);
}

void bxn_mm_fast8_dotprod(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                          const bxn_mm_args *args)
{
    mm(w, group_begin, group_end, args, FAST, BYTES8);
}
#endif
