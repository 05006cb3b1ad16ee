/* SPDX-License-Identifier: Apache-2.0 */
/* ref_packed.c - quantised matrix products in plain C, the judge of every other tier.
 * Called through the kernel table by the linear op. The order of operations is the one
 * kernels.h states, with separate multiplications and additions. */
#include <string.h>

#include "kernels/kernels_isa.h"
#include "runtime/runtime.h"

static float scale_at(const uint8_t *values, bool f32, uint32_t index)
{
    if (f32) {
        float value;
        memcpy(&value, values + 4 * (size_t)index, sizeof value);
        return value;
    }
    uint16_t bits;
    memcpy(&bits, values + 2 * (size_t)index, sizeof bits);
    return bxn_f16_f32(bits);
}

static float code_value(const bxn_packed *w, const uint8_t *codes, uint32_t lane, uint32_t k)
{
    if (w->code_bits == 8) {
        uint8_t byte = codes[((size_t)(k / 4) * BXN_UNIT_ROWS + lane) * 4 + k % 4];
        return (float)(byte < 128 ? (int)byte : (int)byte - 256);
    }
    uint8_t byte = codes[((size_t)(k / 8) * BXN_UNIT_ROWS + lane) * 4 + k % 8 / 2];
    return w->table[k % 2 == 0 ? byte & 15 : byte >> 4];
}

/* The values of one row over one unit, its scales and biases. */
typedef struct row_unit {
    float value[BXN_UNIT_COLS];
    float scale[4], bias[4]; /* per sub-block of 32 */
} row_unit;

static void decode(const bxn_packed *w, const uint8_t *unit, uint32_t lane, row_unit *out)
{
    uint32_t scale_bytes = w->scale_f32 ? 4 : 2;
    const uint8_t *biases = unit + (size_t)w->blocks * BXN_UNIT_ROWS * scale_bytes;
    for (uint32_t j = 0; j < 4; j++) {
        uint32_t index = j * w->blocks / 4 * BXN_UNIT_ROWS + lane;
        out->scale[j] = scale_at(unit, w->scale_f32, index);
        out->bias[j] = 0.0f;
        if (w->has_bias)
            out->bias[j] = scale_at(biases, w->scale_f32, index) + w->center * out->scale[j];
    }
    const uint8_t *codes = unit + bxn_unit_scale_bytes(w);
    for (uint32_t k = 0; k < BXN_UNIT_COLS; k++)
        out->value[k] = code_value(w, codes, lane, k);
}

static void mm_packed(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                      const bxn_mm_args *args)
{
    for (uint32_t group = group_begin; group < group_end; group++) {
        for (uint32_t lane = 0; lane < BXN_UNIT_ROWS; lane++) {
            uint32_t row = group * BXN_UNIT_ROWS + lane;
            if (row >= w->rows)
                break;
            for (uint32_t m = 0; m < args->count; m++)
                args->y[m * args->ldy + row] = 0.0f;
            for (uint32_t u = 0; u < w->k_units; u++) {
                row_unit unit;
                decode(w, w->data + ((size_t)group * w->k_units + u) * w->unit_bytes, lane, &unit);
                for (uint32_t m = 0; m < args->count; m++) {
                    size_t source = args->rows != NULL ? (size_t)args->rows[m] : m;
                    const float *x = args->x + source * args->ldx + (size_t)u * BXN_UNIT_COLS;
                    float y = args->y[m * args->ldy + row];
                    for (uint32_t j = 0; j < 4; j++) {
                        float p = 0.0f;
                        for (uint32_t k = j * BXN_SUB_BLOCK; k < (j + 1) * BXN_SUB_BLOCK; k++)
                            p += unit.value[k] * x[k];
                        y += unit.scale[j] * p;
                        if (w->has_bias)
                            y += unit.bias[j] * args->xsum[source * args->ldsum + u * 4 + j];
                    }
                    args->y[m * args->ldy + row] = y;
                }
            }
        }
    }
}

void bxn_mm_packed4_ref(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                        const bxn_mm_args *args)
{
    mm_packed(w, group_begin, group_end, args);
}

void bxn_mm_packed8_ref(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                        const bxn_mm_args *args)
{
    mm_packed(w, group_begin, group_end, args);
}
