/* SPDX-License-Identifier: Apache-2.0 */
/* tile_emulated512.c - the tile kernel of the library with tile operations in plain C and
 * the library's decoding in AVX-512: runs where AVX-512 with BF16 is. Used by check_tile.c. */
#include "check_tile.h"

#if defined(__AVX512BF16__)
#include "kernels/x86/tile_decode.h"
#include "tile_emulated.h"

#define TILE_NAME(entry) entry##_emulated512
#include "kernels/x86/tile_body.h"

const int have_emulated512 = 1;
#else
const int have_emulated512 = 0;
#endif
