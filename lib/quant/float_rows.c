/* SPDX-License-Identifier: Apache-2.0 */
/* float_rows.c - runs of F32, F16 and BF16 values to f32 and back. Called by import and
 * convert. Addresses in files may be unaligned, so every element goes through memcpy. */
#include "quant/quant.h"

#include <string.h>

void bxn_to_f32(const void *src, bxn_dtype dtype, size_t count, float *dst)
{
    const uint8_t *bytes = src;
    if (dtype == BXN_F32) {
        memcpy(dst, bytes, count * sizeof *dst);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, bytes + 2 * i, sizeof half);
        dst[i] = dtype == BXN_F16 ? bxn_f16_f32(half) : bxn_bf16_f32(half);
    }
}

void bxn_from_f32(const float *src, bxn_dtype dtype, size_t count, void *dst)
{
    uint8_t *bytes = dst;
    if (dtype == BXN_F32) {
        memcpy(bytes, src, count * sizeof *src);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        uint16_t half = dtype == BXN_F16 ? bxn_f32_f16(src[i]) : bxn_f32_bf16(src[i]);
        memcpy(bytes + 2 * i, &half, sizeof half);
    }
}
