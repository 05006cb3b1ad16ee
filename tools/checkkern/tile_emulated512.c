/* SPDX-License-Identifier: Apache-2.0 */
/* tile_emulated512.c - the tile kernel of the library with tile operations in plain C and
 * the library's decoding in AVX-512: runs where AVX-512 with BF16 is. Used by check_tile.c. */
#include "check_tile.h"

#if defined(__AVX512BF16__)
#include "kernels/x86/tile_decode.h"
#include "tile_emulated.h"

#define TILE_NAME(entry) entry##_emulated512
#include "kernels/x86/tile_body.h"

bool tile_emulated512(bxn_kernels *kernels)
{
    kernels->mm_tile4 = mm_tile4_emulated512;
    kernels->mm_tile8 = mm_tile8_emulated512;
    kernels->quant_bf16 = quant_bf16_emulated512;
    kernels->attention_tile = attention_tile_emulated512;
    return true;
}
#else
bool tile_emulated512(bxn_kernels *kernels)
{
    (void)kernels;
    return false;
}
#endif
