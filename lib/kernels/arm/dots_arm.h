/* SPDX-License-Identifier: Apache-2.0 */
/* dots_arm.h - what the products of integers with byte dot products (SDOT) and byte matrix
 * products (SMMLA) share: how activations are stored, the panel of a decoded unit, what
 * becomes of the integer sums, the walk over row groups and tokens. Included by
 * near_dotprod.c and near_i8mm.c, which define tile().
 *
 * Stored activations: for 8 columns, near: 8 high bytes, then 8 low bytes, of q = 256 high +
 * low, both signed; fast: 8 bytes. Within 8, the columns 0 2 4 6 1 3 5 7 for 4-bit codes (the
 * low nibbles of a lane's 4 bytes, then the high ones), ascending for bytes.
 *
 * Integer sums: with the weight as one byte plane (affine codes, bytes, fast tables) there is
 * one sum for each byte plane of x; a near table has values of two planes as well, and sums
 * for high * high, for high * low + low * high, and for low * low. They are put together
 * modulo 2^32, in which the whole sum is exact. */
#ifndef BXN_DOTS_ARM_H
#define BXN_DOTS_ARM_H

#include "kernels/arm/quant_neon.h"
#include "kernels/arm/unit_neon.h"
#include "kernels/kernels_isa.h"

#define CHUNK 144 /* tokens that share one decoding of a unit; even */

/* Byte planes of weights and activations: near with 1 x 2, near with a table 2 x 2, fast 1 x 1. */
enum { NEAR, NEAR_TABLE, FAST };
/* Containers. */
enum { CODES4, BYTES8 };

typedef struct job {
    const bxn_packed *w;
    const bxn_mm_args *args;
    code_table table;
    unsigned width; /* columns of an integer block */
} job;

/* One token's row. */
typedef struct token_row {
    const uint8_t *xq;   /* at the unit */
    const float *xscale; /* [2] of the unit */
    const float *xsum;   /* [4] of the unit, or NULL */
} token_row;

BXN_INLINE unsigned sums_of(int mode)
{
    return mode == FAST ? 1 : mode == NEAR ? 2 : 3;
}

BXN_INLINE unsigned weight_planes(int mode)
{
    return mode == NEAR_TABLE ? 2 : 1;
}

BXN_INLINE size_t unit_xq_bytes(int mode)
{
    return mode == FAST ? BXN_UNIT_COLS : 2 * BXN_UNIT_COLS;
}

BXN_INLINE token_row row_of(const job *p, uint32_t token, uint32_t u, int mode)
{
    const bxn_mm_args *args = p->args;
    const size_t row = source_row(args, token);
    token_row r = {(const uint8_t *)args->xq + row * args->ldxq + u * unit_xq_bytes(mode),
                   args->xscale + row * args->ldxscale + (size_t)u * 2,
                   p->w->has_bias ? args->xsum + row * args->ldsum + (size_t)u * 4 : NULL};
    return r;
}

/* Half t (columns 0 2 4 6 or 1 3 5 7; of bytes 0-3 or 4-7) of the group g of 8 columns, quad q:
 * 4 bytes of each of 4 rows, for each plane. */
BXN_INLINE void weights_at(const job *p, const uint8_t *codes, unsigned g, unsigned t, unsigned q,
                           int8x16_t v[2], int mode, int container)
{
    if (container == BYTES8) {
        v[0] = vreinterpretq_s8_u8(vld1q_u8(codes + (g * 2 + t) * 64 + q * 16));
        return;
    }
    uint8x16_t byte = vld1q_u8(codes + g * 64 + q * 16);
    byte = t == 0 ? vandq_u8(byte, vdupq_n_u8(15)) : vshrq_n_u8(byte, 4);
    v[0] = vqtbl1q_s8(p->table.plane[0], byte);
    if (mode == NEAR_TABLE)
        v[1] = vqtbl1q_s8(p->table.plane[1], byte);
}

/* The whole integer sum from those of the planes. */
BXN_INLINE int32x4_t joined(const int32x4_t *sum, int mode)
{
    if (mode == FAST)
        return sum[0];
    if (mode == NEAR)
        return vaddq_s32(vshlq_n_s32(sum[0], 8), sum[1]);
    return vaddq_s32(vshlq_n_s32(vaddq_s32(vshlq_n_s32(sum[0], 8), sum[1]), 8), sum[2]);
}

/* y with the block at column k of the unit added. */
BXN_INLINE float32x4_t add_block(float32x4_t y, int32x4_t sum, float32x4_t scale, float32x4_t bias,
                                 const token_row *r, unsigned k, unsigned width)
{
    y = vfmaq_f32(y, vcvtq_f32_s32(sum), vmulq_n_f32(scale, r->xscale[k / BXN_XQ_BLOCK]));
    if (r->xsum != NULL) {
        const float *xsum = r->xsum + k / BXN_SUB_BLOCK;
        y = vfmaq_n_f32(y, bias, width == 32 ? xsum[0] : xsum[0] + xsum[1]);
    }
    return y;
}

/* A decoded unit of a row group and the sums of a chunk of tokens. The bytes of a plane are
 * in the order in which tile() of the file wants them: 128 for each group of 8 columns. */
typedef struct panel {
    int8_t value[2][BXN_UNIT_COLS * 16];
    float scale[4 * 16], bias[4 * 16]; /* [integer block][16] */
    float y[CHUNK * 16];               /* [token][16] */
} panel;

BXN_INLINE void add_to_panel(panel *work, uint32_t m, unsigned q, int32x4_t sum,
                             const token_row *r, unsigned k, unsigned width)
{
    const size_t at = (size_t)(k / width) * 16 + q * 4;
    float *y = work->y + (size_t)m * 16 + q * 4;
    vst1q_f32(y, add_block(vld1q_f32(y), sum, vld1q_f32(work->scale + at),
                           vld1q_f32(work->bias + at), r, k, width));
}

/* Defined by each file: one unit more for some tokens of the chunk from `first` on; returns
 * how many it took of the `left`. */
BXN_INLINE uint32_t tile(const job *p, panel *work, uint32_t u, uint32_t chunk, uint32_t first,
                         uint32_t left, int mode);
/* Defined by each file: stores the two halves of a group of 8 columns of quad q. */
BXN_INLINE void store_group(int8_t *out, unsigned q, int8x16_t t0, int8x16_t t1);

BXN_INLINE void decode_unit(const job *p, const uint8_t *unit, panel *work, int mode,
                            int container)
{
    const unsigned blocks = BXN_UNIT_COLS / p->width;
    for (unsigned j = 0; j < blocks; j++) {
        BXN_UNROLL
        for (unsigned q = 0; q < 4; q++) {
            float32x4_t scale, bias;
            block_at(p->w, unit, j * p->w->blocks / blocks, q, &scale, &bias);
            vst1q_f32(work->scale + j * 16 + q * 4, scale);
            vst1q_f32(work->bias + j * 16 + q * 4, bias);
        }
    }
    const uint8_t *codes = unit + bxn_unit_scale_bytes(p->w);
    for (unsigned at = 0; at < p->w->unit_bytes; at += 64)
        fetch(unit, p->w->unit_bytes + at);
    for (unsigned g = 0; g < BXN_UNIT_COLS / 8; g++) {
        BXN_UNROLL
        for (unsigned q = 0; q < 4; q++) {
            int8x16_t t0[2], t1[2];
            weights_at(p, codes, g, 0, q, t0, mode, container);
            weights_at(p, codes, g, 1, q, t1, mode, container);
            BXN_UNROLL
            for (unsigned i = 0; i < weight_planes(mode); i++)
                store_group(work->value[i] + g * 128, q, t0[i], t1[i]);
        }
    }
}

BXN_INLINE void gemm_group(const job *p, uint32_t group, uint32_t chunk, uint32_t count, int mode,
                           int container)
{
    panel work;
    memset(work.y, 0, (size_t)count * 16 * sizeof(float));
    for (uint32_t u = 0; u < p->w->k_units; u++) {
        decode_unit(p, unit_at(p->w, group, u), &work, mode, container);
        for (uint32_t m = 0; m < count;)
            m += tile(p, &work, u, chunk, m, count - m, mode);
    }
    for (uint32_t m = 0; m < count; m++) {
        BXN_UNROLL
        for (unsigned q = 0; q < 4; q++)
            store_rows(p->w, group, q, p->args->y + (chunk + m) * p->args->ldy,
                       vld1q_f32(work.y + (size_t)m * 16 + q * 4));
    }
}

BXN_INLINE job make_job(const bxn_packed *w, const bxn_mm_args *args, int mode, int container)
{
    job p = {.w = w, .args = args, .width = w->blocks == 4 ? 32 : 64};
    if (container == CODES4)
        p.table = make_table(w, xq_table_unit(bxn_xq_kind_of(w, mode == FAST)));
    return p;
}

BXN_INLINE void gemm(const job *p, uint32_t begin, uint32_t end, int mode, int container)
{
    for (uint32_t chunk = 0; chunk < p->args->count; chunk += CHUNK) {
        uint32_t left = p->args->count - chunk, count = left < CHUNK ? left : CHUNK;
        for (uint32_t group = begin; group < end; group++)
            gemm_group(p, group, chunk, count, mode, container);
    }
}

#endif
