/* SPDX-License-Identifier: Apache-2.0 */
/* tile_amx.c - products of bf16 tiles on AMX: tile_body.h with the processor's tile
 * operations. Called through the kernel table by the linear op in prefill, when the process
 * has the permission (runtime/amx.c). The tiles are set up and let go within a call, so that
 * a thread of the host carries no tile state between calls. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/tile_decode.h"

/* The intrinsics of some compilers do not say that memory is read or written. */
#define TILE_FENCE() __asm__ volatile("" : : : "memory")
#define TILE_BEGIN() tile_begin()
#define TILE_END() _tile_release()
#define TILE_ZERO(t) _tile_zero(t)
#define TILE_LOAD(t, address, stride) _tile_loadd(t, address, stride)
#define TILE_STORE(t, address, stride) _tile_stored(t, address, stride)
#define TILE_PRODUCT(c, a, b) _tile_dpbf16ps(c, a, b)
#define TILE_NAME(entry) bxn_##entry##_amx

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

#include "kernels/x86/tile_body.h"
#endif
