/* SPDX-License-Identifier: Apache-2.0 */
/* decode_neon.h - 16 codes of a packed matrix as floats. Shared by the products of NEON with
 * packed matrices and with their transpose, which compile it themselves. Codes of 4 bits become
 * floats through one TBL for each byte of the result that can differ from 0 (two for whole
 * numbers, which are exact in bf16, four for any table) and zips. */
#ifndef BXN_DECODE_NEON_H
#define BXN_DECODE_NEON_H

#include "kernels/arm/vec_neon.h"
#include "kernels/kernels.h"

/* How codes become values: 4 bits through a table; the same where the low halves of the
 * table's values are zero; bytes. */
enum { TABLE4, SHORT4, BYTES8 };

typedef struct decoder {
    uint8x16_t plane[4]; /* byte i of the table's values */
} decoder;

BXN_INLINE decoder make_decoder(const bxn_packed *w)
{
    decoder d;
    uint8x16x4_t bytes = vld4q_u8((const uint8_t *)w->table);
    BXN_UNROLL
    for (unsigned i = 0; i < 4; i++)
        d.plane[i] = bytes.val[i];
    return d;
}

BXN_INLINE int is_short(const float table[16])
{
    uint32_t low = 0;
    for (int c = 0; c < 16; c++) {
        uint32_t bits;
        memcpy(&bits, table + c, sizeof bits);
        low |= bits & 0xFFFFu;
    }
    return low == 0;
}

/* The values of 16 codes: nibbles (4 bits, one to a byte) or signed bytes. */
BXN_INLINE void values(const decoder *d, uint8x16_t code, float32x4_t v[4], int mode)
{
    uint16x8_t high[2];
    if (mode == BYTES8) {
        /* 2^23 + (code + 128) as bits, less the same */
        const uint16x8_t power = vdupq_n_u16(0x4B00);
        const float32x4_t offset = vdupq_n_f32(0x1p23f + 128.0f);
        code = veorq_u8(code, vdupq_n_u8(0x80));
        high[0] = vreinterpretq_u16_u8(vzip1q_u8(code, vdupq_n_u8(0)));
        high[1] = vreinterpretq_u16_u8(vzip2q_u8(code, vdupq_n_u8(0)));
        BXN_UNROLL
        for (unsigned h = 0; h < 2; h++) {
            v[2 * h] = vreinterpretq_f32_u16(vzip1q_u16(high[h], power));
            v[2 * h + 1] = vreinterpretq_f32_u16(vzip2q_u16(high[h], power));
        }
        BXN_UNROLL
        for (unsigned q = 0; q < 4; q++)
            v[q] = vsubq_f32(v[q], offset);
        return;
    }
    uint8x16_t b2 = vqtbl1q_u8(d->plane[2], code), b3 = vqtbl1q_u8(d->plane[3], code);
    high[0] = vreinterpretq_u16_u8(vzip1q_u8(b2, b3));
    high[1] = vreinterpretq_u16_u8(vzip2q_u8(b2, b3));
    uint16x8_t low[2] = {vdupq_n_u16(0), vdupq_n_u16(0)};
    if (mode == TABLE4) {
        uint8x16_t b0 = vqtbl1q_u8(d->plane[0], code), b1 = vqtbl1q_u8(d->plane[1], code);
        low[0] = vreinterpretq_u16_u8(vzip1q_u8(b0, b1));
        low[1] = vreinterpretq_u16_u8(vzip2q_u8(b0, b1));
    }
    BXN_UNROLL
    for (unsigned h = 0; h < 2; h++) {
        v[2 * h] = vreinterpretq_f32_u16(vzip1q_u16(low[h], high[h]));
        v[2 * h + 1] = vreinterpretq_f32_u16(vzip2q_u16(low[h], high[h]));
    }
}

#endif
