/* SPDX-License-Identifier: Apache-2.0 */
/* packed_neon.c - quantised matrix products, 16 output rows in the lanes of four vectors.
 * Called through the kernel table by the linear op. One token: two row groups are walked in
 * lockstep along K, each a sequential stream of memory. More tokens: the codes of a row group
 * are decoded once per unit into a panel on the stack that all tokens use. Both do, lane by
 * lane, the operations of kernels.h in its order, so their bits are equal.
 *
 * A vector of 64 bytes is loaded with LD4, which puts byte i of all 16 rows into one register. */
#include "kernels/kernels_isa.h"

#if defined(__aarch64__)
#include "kernels/arm/decode_neon.h"
#include "kernels/arm/unit_neon.h"

#define STREAMS 2
#define CHUNK 144 /* tokens that share one decoding of a unit */
#define TILE 6    /* tokens whose sums are in registers at once: 24 accumulators */

/* Code n (columns ascending) of each byte register of a vector of codes, ready for values(). */
BXN_INLINE uint8x16_t code_of(uint8x16x4_t codes, unsigned n, int mode)
{
    if (mode == BYTES8)
        return codes.val[n];
    uint8x16_t byte = codes.val[n / 2];
    return n % 2 == 0 ? vandq_u8(byte, vdupq_n_u8(15)) : vshrq_n_u8(byte, 4);
}

BXN_INLINE unsigned codes_per_lane(int mode)
{
    return mode == BYTES8 ? 4 : 8;
}

/* One token, n row groups `step` apart beginning at `group`. */
BXN_INLINE void gemv(const bxn_packed *w, const decoder *d, uint32_t group, uint32_t step,
                     const float *x, const float *xsum, float *out, unsigned n, int mode)
{
    const unsigned per = codes_per_lane(mode);
    const uint32_t codes_offset = bxn_unit_scale_bytes(w);
    const size_t ahead = 2 * (size_t)w->unit_bytes;
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
        for (unsigned j = 0; j < 4; j++, x += BXN_SUB_BLOCK) {
            float32x4_t p[STREAMS][4];
            BXN_UNROLL
            for (unsigned s = 0; s < n; s++) {
                fetch(unit[s], ahead + j * 64);
                BXN_UNROLL
                for (unsigned q = 0; q < 4; q++)
                    p[s][q] = vdupq_n_f32(0.0f);
            }
            const unsigned vectors = BXN_SUB_BLOCK / per;
            for (unsigned v = 0; v < vectors; v++) {
                const size_t at = codes_offset + (j * vectors + v) * 64;
                uint8x16x4_t codes[STREAMS];
                BXN_UNROLL
                for (unsigned s = 0; s < n; s++) {
                    codes[s] = vld4q_u8(unit[s] + at);
                    fetch(unit[s], ahead + at);
                }
                BXN_UNROLL
                for (unsigned k = 0; k < per; k++) {
                    const float32x4_t xk = vdupq_n_f32(x[v * per + k]);
                    BXN_UNROLL
                    for (unsigned s = 0; s < n; s++) {
                        float32x4_t value[4];
                        values(d, code_of(codes[s], k, mode), value, mode);
                        BXN_UNROLL
                        for (unsigned q = 0; q < 4; q++)
                            p[s][q] = vfmaq_f32(p[s][q], value[q], xk);
                    }
                }
            }
            BXN_UNROLL
            for (unsigned s = 0; s < n; s++) {
                BXN_UNROLL
                for (unsigned q = 0; q < 4; q++) {
                    float32x4_t scale, bias;
                    block_at(w, unit[s], j * w->blocks / 4, q, &scale, &bias);
                    y[s][q] = vfmaq_f32(y[s][q], scale, p[s][q]);
                    if (w->has_bias)
                        y[s][q] = vfmaq_n_f32(y[s][q], bias, xsum[u * 4 + j]);
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
            store_rows(w, group + s * step, q, out, y[s][q]);
    }
}

BXN_INLINE void gemv_range(const bxn_packed *w, const decoder *d, uint32_t begin, uint32_t end,
                           const bxn_mm_args *args, int mode)
{
    const size_t row = source_row(args, 0);
    const float *x = args->x + row * args->ldx;
    const float *xsum = w->has_bias ? args->xsum + row * args->ldsum : NULL;
    const uint32_t part = (end - begin) / STREAMS;
    for (uint32_t g = begin; g < begin + part; g++)
        gemv(w, d, g, part, x, xsum, args->y, STREAMS, mode);
    for (uint32_t g = begin + part * STREAMS; g < end; g++)
        gemv(w, d, g, 1, x, xsum, args->y, 1, mode);
}

/* A decoded unit of a row group and the sums of a chunk of tokens. */
typedef struct panel {
    float value[BXN_UNIT_COLS * 16];   /* [k][16] */
    float scale[4 * 16], bias[4 * 16]; /* [sub-block][16] */
    float y[CHUNK * 16];               /* [token][16] */
} panel;

BXN_INLINE void decode_unit(const bxn_packed *w, const decoder *d, const uint8_t *unit, panel *work,
                            int mode)
{
    const unsigned per = codes_per_lane(mode);
    const size_t ahead = w->unit_bytes;
    for (unsigned j = 0; j < 4; j++) {
        fetch(unit, ahead + j * 64);
        BXN_UNROLL
        for (unsigned q = 0; q < 4; q++) {
            float32x4_t scale, bias;
            block_at(w, unit, j * w->blocks / 4, q, &scale, &bias);
            vst1q_f32(work->scale + j * 16 + q * 4, scale);
            vst1q_f32(work->bias + j * 16 + q * 4, bias);
        }
    }
    const uint8_t *at = unit + bxn_unit_scale_bytes(w);
    float *out = work->value;
    for (unsigned v = 0; v < BXN_UNIT_COLS / per; v++, at += 64) {
        uint8x16x4_t codes = vld4q_u8(at);
        fetch(at, ahead);
        BXN_UNROLL
        for (unsigned k = 0; k < per; k++, out += 16) {
            float32x4_t value[4];
            values(d, code_of(codes, k, mode), value, mode);
            BXN_UNROLL
            for (unsigned q = 0; q < 4; q++)
                vst1q_f32(out + q * 4, value[q]);
        }
    }
}

/* `tokens` tokens of the chunk from `first` on: one unit more. */
BXN_INLINE void tile(const bxn_packed *w, const bxn_mm_args *args, panel *work, uint32_t u,
                     uint32_t chunk, uint32_t first, unsigned tokens)
{
    const float *x[TILE], *xsum[TILE];
    BXN_UNROLL
    for (unsigned m = 0; m < tokens; m++) {
        size_t row = source_row(args, chunk + first + m);
        x[m] = args->x + row * args->ldx + (size_t)u * BXN_UNIT_COLS;
        xsum[m] = w->has_bias ? args->xsum + row * args->ldsum + (size_t)u * 4 : NULL;
    }
    const float *value = work->value;
    for (unsigned j = 0; j < 4; j++) {
        float32x4_t p[TILE][4];
        BXN_UNROLL
        for (unsigned m = 0; m < tokens; m++) {
            BXN_UNROLL
            for (unsigned q = 0; q < 4; q++)
                p[m][q] = vdupq_n_f32(0.0f);
        }
        for (unsigned k = j * BXN_SUB_BLOCK; k < (j + 1) * BXN_SUB_BLOCK; k++, value += 16) {
            float32x4_t v[4];
            BXN_UNROLL
            for (unsigned q = 0; q < 4; q++)
                v[q] = vld1q_f32(value + q * 4);
            BXN_UNROLL
            for (unsigned m = 0; m < tokens; m++) {
                const float xm = x[m][k];
                BXN_UNROLL
                for (unsigned q = 0; q < 4; q++)
                    p[m][q] = vfmaq_n_f32(p[m][q], v[q], xm);
            }
        }
        BXN_UNROLL
        for (unsigned q = 0; q < 4; q++) {
            float32x4_t scale = vld1q_f32(work->scale + j * 16 + q * 4);
            float32x4_t bias = vld1q_f32(work->bias + j * 16 + q * 4);
            BXN_UNROLL
            for (unsigned m = 0; m < tokens; m++) {
                float *out = work->y + (size_t)(first + m) * 16 + q * 4;
                float32x4_t y = vfmaq_f32(vld1q_f32(out), scale, p[m][q]);
                if (w->has_bias)
                    y = vfmaq_n_f32(y, bias, xsum[m][j]);
                vst1q_f32(out, y);
            }
        }
    }
}

BXN_INLINE void gemm_group(const bxn_packed *w, const decoder *d, uint32_t group,
                           const bxn_mm_args *args, uint32_t chunk, uint32_t count, int mode)
{
    panel work;
    memset(work.y, 0, (size_t)count * 16 * sizeof(float));
    for (uint32_t u = 0; u < w->k_units; u++) {
        decode_unit(w, d, unit_at(w, group, u), &work, mode);
        uint32_t m = 0;
        for (; m + TILE <= count; m += TILE)
            tile(w, args, &work, u, chunk, m, TILE);
        for (; m + 2 <= count; m += 2)
            tile(w, args, &work, u, chunk, m, 2);
        if (m < count)
            tile(w, args, &work, u, chunk, m, 1);
    }
    for (uint32_t m = 0; m < count; m++) {
        BXN_UNROLL
        for (unsigned q = 0; q < 4; q++)
            store_rows(w, group, q, args->y + (chunk + m) * args->ldy,
                       vld1q_f32(work.y + (size_t)m * 16 + q * 4));
    }
}

BXN_INLINE void mm_packed(const bxn_packed *w, uint32_t begin, uint32_t end,
                          const bxn_mm_args *args, int mode)
{
    if (begin >= end || args->count == 0)
        return;
    const decoder d = make_decoder(w);
    if (args->count == 1) {
        gemv_range(w, &d, begin, end, args, mode);
        return;
    }
    for (uint32_t chunk = 0; chunk < args->count; chunk += CHUNK) {
        uint32_t left = args->count - chunk, count = left < CHUNK ? left : CHUNK;
        for (uint32_t group = begin; group < end; group++)
            gemm_group(w, &d, group, args, chunk, count, mode);
    }
}

void bxn_mm_packed4_neon(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                         const bxn_mm_args *args)
{
    if (is_short(w->table))
        mm_packed(w, group_begin, group_end, args, SHORT4);
    else
        mm_packed(w, group_begin, group_end, args, TABLE4);
}

void bxn_mm_packed8_neon(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                         const bxn_mm_args *args)
{
    mm_packed(w, group_begin, group_end, args, BYTES8);
}
#endif
