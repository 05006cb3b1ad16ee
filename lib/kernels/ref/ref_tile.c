/* SPDX-License-Identifier: Apache-2.0 */
/* ref_tile.c - products of bf16 tiles in plain C: what the kernels of AMX compute, with its
 * roundings. It judges them, and stands in for them in tests of the floors above; no table
 * that bxn_kernels_init fills holds it, because plain f32 products are faster and more exact. */
#include "kernels/kernels_isa.h"
#include "kernels/ref/ref_weight.h"

/* To bf16 and back, denormals to zero with their sign. */
static float flushed(float value)
{
    uint32_t bits = bxn_f32_bits(value);
    return (bits & 0x7F800000u) == 0 ? bxn_bits_f32(bits & 0x80000000u) : value;
}

static uint16_t to_bf16(float value)
{
    return bxn_f32_bf16(flushed(value));
}

/* Where column k of a row stands in a block of tiles. */
static size_t place(uint32_t row, size_t k)
{
    static const uint8_t order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    return k / 32 * 512 + row * (size_t)32 + k % 32 / 8 * 8 + order[k % 8];
}

void bxn_quant_bf16_ref(const float *x, size_t columns, void *tiles, uint32_t row)
{
    uint16_t *out = tiles;
    for (size_t k = 0; k < columns; k++)
        out[place(row, k)] = to_bf16(x[k]);
}

static void mm_tile(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                    const bxn_mm_args *args)
{
    for (uint32_t row = group_begin * BXN_UNIT_ROWS;
         row < group_end * BXN_UNIT_ROWS && row < w->rows; row++) {
        for (uint32_t m = 0; m < args->count; m++)
            args->y[m * args->ldy + row] = 0.0f;
        for (uint32_t u = 0; u < w->k_units; u++) {
            const uint8_t *unit =
                w->data + ((size_t)(row / BXN_UNIT_ROWS) * w->k_units + u) * w->unit_bytes;
            float weight[BXN_UNIT_COLS];
            for (uint32_t k = 0; k < BXN_UNIT_COLS; k++)
                weight[k] = bxn_bf16_f32(to_bf16(bxn_ref_packed(w, unit, row % BXN_UNIT_ROWS, k)));
            for (uint32_t m = 0; m < args->count; m++) {
                const uint16_t *tiles = (const uint16_t *)args->xq + m / 16 * (args->ldxq / 2);
                float y = args->y[m * args->ldy + row];
                for (uint32_t j = 0; j < BXN_UNIT_COLS; j += 32) {
                    float sum[2] = {0.0f, 0.0f};
                    for (uint32_t k = j; k < j + 32; k++) {
                        float x = bxn_bf16_f32(tiles[place(m % 16, (size_t)u * BXN_UNIT_COLS + k)]);
                        sum[k % 8 / 4] = flushed(sum[k % 8 / 4] + flushed(weight[k] * x));
                    }
                    y = flushed(y + flushed(sum[0] + sum[1]));
                }
                args->y[m * args->ldy + row] = y;
            }
        }
    }
}

void bxn_mm_tile4_ref(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                      const bxn_mm_args *args)
{
    mm_tile(w, group_begin, group_end, args);
}

void bxn_mm_tile8_ref(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                      const bxn_mm_args *args)
{
    mm_tile(w, group_begin, group_end, args);
}
