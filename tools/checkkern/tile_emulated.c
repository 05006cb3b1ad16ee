/* SPDX-License-Identifier: Apache-2.0 */
/* tile_emulated.c - the tile kernel of the library with tile operations and decoding in
 * plain C: runs on every machine. Used by check_tile.c. */
#include "check_tile.h"
#include "kernels/ref/ref_weight.h"
#include "tile_emulated.h"

static void decode_part(const bxn_packed *w, const uint8_t *unit, unsigned bits, int has_bias,
                        unsigned part, uint16_t *out)
{
    (void)bits;
    (void)has_bias;
    for (uint32_t k = 0; k < 8; k++)
        for (uint32_t lane = 0; lane < BXN_UNIT_ROWS; lane++) /* pairs (0, 4), (1, 5), (2, 6), (3, 7) */
            out[k % 4 * 32 + lane * 2 + k / 4] =
                bxn_f32_bf16(emulated_flush(bxn_ref_packed(w, unit, lane, part * 8 + k)));
}

static void convert_row(const float *x, size_t columns, uint16_t *tiles, uint32_t row)
{
    for (size_t k = 0; k < columns; k++)
        tiles[k / 32 * 512 + row * (size_t)32 + k % 32 / 8 * 8 + k % 4 * 2 + k % 8 / 4] =
            bxn_f32_bf16(emulated_flush(x[k]));
}

#define TILE_NAME(entry) entry##_emulated
#include "kernels/x86/tile_body.h"
