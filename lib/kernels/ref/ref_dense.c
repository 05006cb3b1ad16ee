/* SPDX-License-Identifier: Apache-2.0 */
/* ref_dense.c - products with dense f32, f16 and bf16 matrices in plain C. Called through
 * the kernel table by the linear op and the embedding head. Weights lie in a file and may
 * be unaligned, so they are read by memcpy. */
#include <string.h>

#include "kernels/kernels_isa.h"
#include "runtime/runtime.h"

static float weight_at(const uint8_t *row, bxn_dtype dtype, uint32_t k)
{
    if (dtype == BXN_F32) {
        float value;
        memcpy(&value, row + 4 * (size_t)k, sizeof value);
        return value;
    }
    uint16_t bits;
    memcpy(&bits, row + 2 * (size_t)k, sizeof bits);
    return dtype == BXN_F16 ? bxn_f16_f32(bits) : bxn_bf16_f32(bits);
}

static void mm_dense(const bxn_dense *w, bxn_dtype dtype, uint32_t row_begin, uint32_t row_end,
                     const bxn_mm_args *args)
{
    size_t row_bytes = (size_t)w->cols * (dtype == BXN_F32 ? 4 : 2);
    for (uint32_t row = row_begin; row < row_end; row++) {
        const uint8_t *weights = (const uint8_t *)w->data + row * row_bytes;
        for (uint32_t m = 0; m < args->count; m++) {
            size_t source = args->rows != NULL ? (size_t)args->rows[m] : m;
            const float *x = args->x + source * args->ldx;
            float y = 0.0f;
            for (uint32_t begin = 0; begin < w->cols; begin += BXN_UNIT_COLS) {
                uint32_t left = w->cols - begin;
                uint32_t end = begin + (left < BXN_UNIT_COLS ? left : BXN_UNIT_COLS);
                float p = 0.0f;
                for (uint32_t k = begin; k < end; k++)
                    p += weight_at(weights, dtype, k) * x[k];
                y += p;
            }
            args->y[m * args->ldy + row] = y;
        }
    }
}

void bxn_mm_f32_ref(const bxn_dense *w, uint32_t row_begin, uint32_t row_end,
                    const bxn_mm_args *args)
{
    mm_dense(w, BXN_F32, row_begin, row_end, args);
}

void bxn_mm_f16_ref(const bxn_dense *w, uint32_t row_begin, uint32_t row_end,
                    const bxn_mm_args *args)
{
    mm_dense(w, BXN_F16, row_begin, row_end, args);
}

void bxn_mm_bf16_ref(const bxn_dense *w, uint32_t row_begin, uint32_t row_end,
                     const bxn_mm_args *args)
{
    mm_dense(w, BXN_BF16, row_begin, row_end, args);
}
