/* SPDX-License-Identifier: Apache-2.0 */
/* near_i8mm.c - products of quantised matrices with the integer activations of many tokens by
 * SMMLA (the int8 matrix extension): 8 columns of two rows with 8 columns of two tokens, twice
 * the products of SDOT. Called through the kernel table by the linear op. One token has
 * nothing to pair and takes SDOT's code. Activations are stored as SDOT's tier does. Order
 * and integers are those of kernels.h at bxn_xq_kind, so bits are those of every other SIMD
 * tier. */
#include "kernels/kernels_isa.h"

#if defined(__aarch64__)
#include "kernels/arm/dots_arm.h"

/* Panel: [group of 8 columns][pair of rows][16 bytes: 8 of each row]. */
BXN_INLINE void store_group(int8_t *out, unsigned q, int8x16_t t0, int8x16_t t1)
{
    const int32x4_t a = vreinterpretq_s32_s8(t0), b = vreinterpretq_s32_s8(t1);
    vst1q_s8(out + q * 32, vreinterpretq_s8_s32(vzip1q_s32(a, b)));
    vst1q_s8(out + q * 32 + 16, vreinterpretq_s8_s32(vzip2q_s32(a, b)));
}

/* 8 bytes of token a, then 8 of token b, from either half of a vector of x. */
BXN_INLINE int8x16_t paired(int8x16_t a, int8x16_t b, unsigned half)
{
    const int64x2_t first = vreinterpretq_s64_s8(a), second = vreinterpretq_s64_s8(b);
    return vreinterpretq_s8_s64(half == 0 ? vzip1q_s64(first, second) : vzip2q_s64(first, second));
}

BXN_INLINE int8x16_t inputs(const uint8_t *xq, size_t at)
{
    return vreinterpretq_s8_u8(vld1q_u8(xq + at));
}

/* Sums of pairs of rows 2 q and 2 q + 1 of a pair of tokens as the quad of token t. */
BXN_INLINE int32x4_t of_token(int32x4_t low, int32x4_t high, unsigned t)
{
    return t == 0 ? vuzp1q_s32(low, high) : vuzp2q_s32(low, high);
}

/* Fast: two pairs of tokens. */
BXN_INLINE void tile_fast(const job *p, panel *work, uint32_t first, const token_row r[4],
                          uint32_t take)
{
    for (unsigned k = 0; k < BXN_UNIT_COLS; k += p->width) {
        int32x4_t sum[2][8];
        BXN_UNROLL
        for (unsigned i = 0; i < 8; i++)
            sum[0][i] = sum[1][i] = vdupq_n_s32(0);
        for (unsigned g = k / 8; g < (k + p->width) / 8; g += 2) {
            int8x16_t x[4];
            BXN_UNROLL
            for (unsigned m = 0; m < 4; m++)
                x[m] = inputs(r[m].xq, (size_t)g * 8);
            BXN_UNROLL
            for (unsigned j = 0; j < 2; j++) {
                const int8x16_t x0 = paired(x[0], x[1], j), x1 = paired(x[2], x[3], j);
                BXN_UNROLL
                for (unsigned i = 0; i < 8; i++) {
                    const int8x16_t v = vld1q_s8(work->value[0] + (size_t)(g + j) * 128 + i * 16);
                    sum[0][i] = vmmlaq_s32(sum[0][i], v, x0);
                    sum[1][i] = vmmlaq_s32(sum[1][i], v, x1);
                }
            }
        }
        for (uint32_t m = 0; m < take; m++) {
            BXN_UNROLL
            for (unsigned q = 0; q < 4; q++) {
                const int32x4_t low = sum[m / 2][2 * q], high = sum[m / 2][2 * q + 1];
                add_to_panel(work, first + m, q, of_token(low, high, m % 2), &r[m], k, p->width);
            }
        }
    }
}

/* Near: one pair of tokens. */
BXN_INLINE void tile_near(const job *p, panel *work, uint32_t first, const token_row r[2],
                          uint32_t take, int mode)
{
    for (unsigned k = 0; k < BXN_UNIT_COLS; k += p->width) {
        int32x4_t sum[8][3];
        BXN_UNROLL
        for (unsigned i = 0; i < 8; i++) {
            BXN_UNROLL
            for (unsigned s = 0; s < sums_of(mode); s++)
                sum[i][s] = vdupq_n_s32(0);
        }
        for (unsigned g = k / 8; g < (k + p->width) / 8; g++) {
            const int8x16_t a = inputs(r[0].xq, (size_t)g * 16);
            const int8x16_t b = inputs(r[1].xq, (size_t)g * 16);
            const int8x16_t high = paired(a, b, 0), low = paired(a, b, 1);
            BXN_UNROLL
            for (unsigned i = 0; i < 8; i++) {
                const size_t at = (size_t)g * 128 + i * 16;
                const int8x16_t v = vld1q_s8(work->value[0] + at);
                if (mode == NEAR) {
                    sum[i][0] = vmmlaq_s32(sum[i][0], v, high);
                    sum[i][1] = vmmlaq_s32(sum[i][1], v, low);
                } else {
                    const int8x16_t v1 = vld1q_s8(work->value[1] + at);
                    sum[i][0] = vmmlaq_s32(sum[i][0], v1, high);
                    sum[i][1] = vmmlaq_s32(sum[i][1], v1, low);
                    sum[i][1] = vmmlaq_s32(sum[i][1], v, high);
                    sum[i][2] = vmmlaq_s32(sum[i][2], v, low);
                }
            }
        }
        for (uint32_t m = 0; m < take; m++) {
            BXN_UNROLL
            for (unsigned q = 0; q < 4; q++) {
                int32x4_t whole[3];
                BXN_UNROLL
                for (unsigned s = 0; s < sums_of(mode); s++)
                    whole[s] = of_token(sum[2 * q][s], sum[2 * q + 1][s], m % 2);
                add_to_panel(work, first + m, q, joined(whole, mode), &r[m], k, p->width);
            }
        }
    }
}

/* A token without a partner is paired with itself, and its copy's sums are left. */
BXN_INLINE uint32_t tile(const job *p, panel *work, uint32_t u, uint32_t chunk, uint32_t first,
                         uint32_t left, int mode)
{
    const uint32_t most = mode == FAST ? 4 : 2, take = left < most ? left : most;
    token_row r[4];
    for (uint32_t m = 0; m < most; m++)
        r[m] = row_of(p, chunk + first + (m < take ? m : take - 1), u, mode);
    if (mode == FAST)
        tile_fast(p, work, first, r, take);
    else
        tile_near(p, work, first, r, take, mode);
    return take;
}

BXN_INLINE void mm(const bxn_packed *w, uint32_t begin, uint32_t end, const bxn_mm_args *args,
                   int mode, int container)
{
    const job p = make_job(w, args, mode, container);
    gemm(&p, begin, end, mode, container);
}

void bxn_quant_x_i8mm(bxn_xq_kind kind, const float *x, size_t columns, void *xq, float *xscale)
{
    bxn_quant_x_dotprod(kind, x, columns, xq, xscale);
}

void bxn_mm_near4_i8mm(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                       const bxn_mm_args *args)
{
    if (args->count <= 1)
        bxn_mm_near4_dotprod(w, group_begin, group_end, args);
    else if (bxn_packed_has_table(w))
        mm(w, group_begin, group_end, args, NEAR_TABLE, CODES4);
    else
        mm(w, group_begin, group_end, args, NEAR, CODES4);
}

void bxn_mm_near8_i8mm(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                       const bxn_mm_args *args)
{
    if (args->count <= 1)
        bxn_mm_near8_dotprod(w, group_begin, group_end, args);
    else
        mm(w, group_begin, group_end, args, NEAR, BYTES8);
}

void bxn_mm_fast4_i8mm(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                       const bxn_mm_args *args)
{
    if (args->count <= 1)
        bxn_mm_fast4_dotprod(w, group_begin, group_end, args);
    else
        mm(w, group_begin, group_end, args, FAST, CODES4);
}

void bxn_mm_fast8_i8mm(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                       const bxn_mm_args *args)
{
    if (args->count <= 1)
        bxn_mm_fast8_dotprod(w, group_begin, group_end, args);
    else
        mm(w, group_begin, group_end, args, FAST, BYTES8);
}
#endif
