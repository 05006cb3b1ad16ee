/* SPDX-License-Identifier: Apache-2.0 */
/* attention_emulated512.c - the library's attention with bf16 tiles, with tile operations in plain C and
 * its vectors of AVX-512: runs where AVX-512 with BF16 is. Used by check_tile.c. */
#include "check_tile.h"

#if defined(__AVX512BF16__)
#include "kernels/x86/attention_vec_avx512.h"
#include "tile_emulated.h"

#define TILE_NAME(entry) entry##_emulated512
#include "kernels/x86/attention_tile_body.h"
#endif
