/* SPDX-License-Identifier: Apache-2.0 */
/* ref_weight.h - one weight of a matrix as f32, in plain C, for the files of the judge that
 * go through a matrix in an order of their own. */
#ifndef BXN_REF_WEIGHT_H
#define BXN_REF_WEIGHT_H

#include <string.h>

#include "kernels/kernels.h"
#include "runtime/runtime.h"

static inline float bxn_ref_scale(const bxn_packed *w, const uint8_t *values, uint32_t index)
{
    if (w->scale_f32) {
        float value;
        memcpy(&value, values + 4 * (size_t)index, sizeof value);
        return value;
    }
    uint16_t bits;
    memcpy(&bits, values + 2 * (size_t)index, sizeof bits);
    return bxn_f16_f32(bits);
}

/* Row `lane`, column k of a unit: scale * value, or scale * value + bias'. */
static inline float bxn_ref_packed(const bxn_packed *w, const uint8_t *unit, uint32_t lane,
                                   uint32_t k)
{
    const uint8_t *codes = unit + bxn_unit_scale_bytes(w);
    const uint32_t block = k / (BXN_UNIT_COLS / w->blocks);
    float scale = bxn_ref_scale(w, unit, block * BXN_UNIT_ROWS + lane), value;
    if (w->code_bits == 8) {
        uint8_t byte = codes[((size_t)(k / 4) * BXN_UNIT_ROWS + lane) * 4 + k % 4];
        value = (float)(byte < 128 ? (int)byte : (int)byte - 256);
    } else {
        uint8_t byte = codes[((size_t)(k / 8) * BXN_UNIT_ROWS + lane) * 4 + k % 8 / 2];
        value = w->table[k % 2 == 0 ? byte & 15 : byte >> 4];
    }
    if (!w->has_bias)
        return scale * value;
    float bias = bxn_ref_scale(w, unit, (w->blocks + block) * BXN_UNIT_ROWS + lane);
    return scale * value + (bias + w->center * scale);
}

#endif
