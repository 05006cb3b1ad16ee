/* SPDX-License-Identifier: Apache-2.0 */
/* near_avx512vnni.c - products with integer activations by VNNI on 512-bit vectors: four
 * unsigned bytes times four signed ones, or two words times two, added into each lane by one
 * instruction. Called through the kernel table by the linear op; dots_avx512.h has the code. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#define BXN_VNNI 1
#include "kernels/x86/dots_avx512.h"

DOTS(near4, TWO_BYTES, 4, 0)
DOTS(near_table, WORDS, 4, 0)
DOTS(near8, TWO_BYTES, 8, 0)
DOTS(fast4, ONE_BYTE, 4, 1)
DOTS(fast_table, ONE_LOOKUP, 4, 1)
DOTS(fast8, ONE_BYTE, 8, 1)

void bxn_mm_near4_avx512vnni(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                             const bxn_mm_args *args)
{
    (bxn_packed_has_table(w) ? near_table : near4)(w, group_begin, group_end, args);
}

void bxn_mm_near8_avx512vnni(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                             const bxn_mm_args *args)
{
    near8(w, group_begin, group_end, args);
}

void bxn_mm_fast4_avx512vnni(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                             const bxn_mm_args *args)
{
    (bxn_packed_has_table(w) ? fast_table : fast4)(w, group_begin, group_end, args);
}

void bxn_mm_fast8_avx512vnni(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                             const bxn_mm_args *args)
{
    fast8(w, group_begin, group_end, args);
}

void bxn_quant_x_avx512vnni(bxn_xq_kind kind, const float *x, size_t columns, void *xq,
                            float *xscale)
{
    switch (kind) {
    case BXN_XQ_NEAR4:
        quant(x, columns, xq, xscale, 32512, 1, TWO_BYTES, 4);
        break;
    case BXN_XQ_NEAR8:
        quant(x, columns, xq, xscale, 32512, 1, TWO_BYTES, 8);
        break;
    case BXN_XQ_NEAR_TABLE:
        quant(x, columns, xq, xscale, 4095, 8191, WORDS, 4);
        break;
    case BXN_XQ_FAST4:
        quant(x, columns, xq, xscale, 127, 1, ONE_BYTE, 4);
        break;
    case BXN_XQ_FAST8:
        quant(x, columns, xq, xscale, 127, 1, ONE_BYTE, 8);
        break;
    case BXN_XQ_FAST_TABLE:
        quant(x, columns, xq, xscale, 127, 127, ONE_LOOKUP, 4);
        break;
    case BXN_XQ_NONE:
        break;
    }
}
#endif
