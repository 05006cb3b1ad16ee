/* SPDX-License-Identifier: Apache-2.0 */
/* tile_ops_amx.h - the tile operations of tile_body.h and attention_tile_body.h on the processor. Tiles are
 * set up and let go within a call, so that a thread of the host carries no tile state between calls. */
#ifndef BXN_TILE_OPS_AMX_H
#define BXN_TILE_OPS_AMX_H

#include "kernels/kernels.h"
#include "kernels/x86/vec_avx512.h"

/* The intrinsics of some compilers do not say that memory is read or written. */
#define TILE_FENCE() __asm__ volatile("" : : : "memory")
#define TILE_BEGIN() tile_begin()
#define TILE_END() _tile_release()
#define TILE_ZERO(t) _tile_zero(t)
#define TILE_LOAD(t, address, stride) _tile_loadd(t, address, stride)
#define TILE_STORE(t, address, stride) _tile_stored(t, address, stride)
#define TILE_PRODUCT(c, a, b) _tile_dpbf16ps(c, a, b)

BXN_INLINE void tile_begin(void)
{
    /* Palette 1: bytes per row of tile t at 16 + 2 t, rows at 48 + t. */
    _Alignas(64) uint8_t config[64] = {1};
    for (unsigned t = 0; t < 8; t++) {
        config[16 + 2 * t] = 64;
        config[48 + t] = 16;
    }
    __asm__ volatile("" : : "r"(config) : "memory");
    _tile_loadconfig(config);
}

#endif
