/* SPDX-License-Identifier: Apache-2.0 */
/* ref_near.c - products of quantised matrices with integer activations in plain C, the judge
 * of the near and fast tiers. Called through the kernel table by the linear op. Integers are
 * stored in the order of the columns, as int16 (near) or int8 (fast). */
#include <math.h>
#include <string.h>

#include "kernels/kernels_isa.h"
#include "runtime/runtime.h"

static const float limits[] = { 0, 32512, 32512, 4095, 127, 127, 127 };
static const float table_units[] = { 1, 1, 1, 8191, 1, 1, 127 };

void bxn_quant_x_ref(bxn_xq_kind kind, const float *x, size_t columns, void *xq, float *xscale)
{
    const float limit = limits[kind];
    for (size_t block = 0; block < columns / BXN_XQ_BLOCK; block++, x += BXN_XQ_BLOCK) {
        float most = 0;
        bool finite = true;
        for (int i = 0; i < BXN_XQ_BLOCK; i++) {
            finite = finite && isfinite(x[i]);
            most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
        }
        bool flat = !finite || most < 1e-30f;
        const float factor = flat ? 0 : limit / most;
        xscale[block] = !finite ? NAN : flat ? 0 : most / limit / table_units[kind];
        for (int i = 0; i < BXN_XQ_BLOCK; i++) {
            float q = flat ? 0 : rintf(x[i] * factor);
            q = q > limit ? limit : q < -limit ? -limit : q;
            size_t at = block * BXN_XQ_BLOCK + (size_t)i;
            if (kind >= BXN_XQ_FAST4)
                ((int8_t *)xq)[at] = (int8_t)q;
            else
                ((int16_t *)xq)[at] = (int16_t)q;
        }
    }
}

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

static int32_t code_value(const bxn_packed *w, const uint8_t *codes, uint32_t lane, uint32_t k, float unit)
{
    if (w->code_bits == 8) {
        uint8_t byte = codes[((size_t)(k / 4) * BXN_UNIT_ROWS + lane) * 4 + k % 4];
        return byte < 128 ? (int)byte : (int)byte - 256;
    }
    uint8_t byte = codes[((size_t)(k / 8) * BXN_UNIT_ROWS + lane) * 4 + k % 8 / 2];
    uint8_t code = k % 2 == 0 ? byte & 15 : byte >> 4;
    return bxn_packed_has_table(w) ? (int32_t)rintf(w->table[code] * unit) : (int32_t)code - (int32_t)w->center;
}

static int32_t activation(const void *row, size_t k, bool fast)
{
    return fast ? ((const int8_t *)row)[k] : ((const int16_t *)row)[k];
}

/* One row of one unit against one token: adds to y. */
static float unit_row(const bxn_packed *w, const uint8_t *unit, uint32_t lane, const int32_t *value,
                      const bxn_mm_args *args, size_t source, uint32_t u, float y, bool fast)
{
    const uint8_t *biases = unit + (size_t)w->blocks * BXN_UNIT_ROWS * (w->scale_f32 ? 4 : 2);
    const char *xq = (const char *)args->xq + source * args->ldxq;
    const uint32_t width = w->blocks == 4 ? 32 : 64;
    for (uint32_t k = 0; k < BXN_UNIT_COLS; k += width) {
        size_t column = (size_t)u * BXN_UNIT_COLS + k;
        uint32_t index = k * w->blocks / BXN_UNIT_COLS * BXN_UNIT_ROWS + lane;
        int32_t sum = 0;
        for (uint32_t i = 0; i < width; i++)
            sum += value[k + i] * activation(xq, column + i, fast);
        float scale = scale_at(unit, w->scale_f32, index);
        y += (float)sum * (scale * args->xscale[source * args->ldxscale + column / BXN_XQ_BLOCK]);
        if (w->has_bias) {
            const float *sums = args->xsum + source * args->ldsum + column / BXN_SUB_BLOCK;
            float bias = scale_at(biases, w->scale_f32, index) + w->center * scale;
            y += bias * (width == 32 ? sums[0] : sums[0] + sums[1]);
        }
    }
    return y;
}

static void mm(const bxn_packed *w, uint32_t group_begin, uint32_t group_end, const bxn_mm_args *args, bool fast)
{
    const float table_unit = fast ? 127.0f : 8191.0f;
    for (uint32_t group = group_begin; group < group_end; group++) {
        for (uint32_t lane = 0; lane < BXN_UNIT_ROWS && group * BXN_UNIT_ROWS + lane < w->rows; lane++) {
            uint32_t row = group * BXN_UNIT_ROWS + lane;
            for (uint32_t m = 0; m < args->count; m++)
                args->y[m * args->ldy + row] = 0.0f;
            for (uint32_t u = 0; u < w->k_units; u++) {
                const uint8_t *unit = w->data + ((size_t)group * w->k_units + u) * w->unit_bytes;
                int32_t value[BXN_UNIT_COLS];
                for (uint32_t k = 0; k < BXN_UNIT_COLS; k++)
                    value[k] = code_value(w, unit + bxn_unit_scale_bytes(w), lane, k, table_unit);
                for (uint32_t m = 0; m < args->count; m++) {
                    size_t source = args->rows != NULL ? (size_t)args->rows[m] : m;
                    float *y = args->y + m * args->ldy + row;
                    *y = unit_row(w, unit, lane, value, args, source, u, *y, fast);
                }
            }
        }
    }
}

void bxn_mm_near4_ref(const bxn_packed *w, uint32_t group_begin, uint32_t group_end, const bxn_mm_args *args)
{
    mm(w, group_begin, group_end, args, false);
}

void bxn_mm_near8_ref(const bxn_packed *w, uint32_t group_begin, uint32_t group_end, const bxn_mm_args *args)
{
    mm(w, group_begin, group_end, args, false);
}

void bxn_mm_fast4_ref(const bxn_packed *w, uint32_t group_begin, uint32_t group_end, const bxn_mm_args *args)
{
    mm(w, group_begin, group_end, args, true);
}

void bxn_mm_fast8_ref(const bxn_packed *w, uint32_t group_begin, uint32_t group_end, const bxn_mm_args *args)
{
    mm(w, group_begin, group_end, args, true);
}
