/* SPDX-License-Identifier: Apache-2.0 */
/* tile_emulated.h - the tile operations of AMX in plain C, for a second and a third
 * compilation of the kernel in kernels/x86/tile_body.h: with decoding in plain C, and with
 * the decoding of the library in AVX-512. */
#ifndef TILE_EMULATED_H
#define TILE_EMULATED_H

#include <stdint.h>
#include <string.h>

#include "runtime/runtime.h"

/* A file has tiles of its own; checkkern has one thread. */
static float emulated_f32[8][16][16];
static uint16_t emulated_bf16[8][16][32];
static int emulated_ready;

/* Denormals count as zero in products of tiles, whatever the thread's mode. */
static inline float emulated_flush(float value)
{
    uint32_t bits = bxn_f32_bits(value);
    return (bits & 0x7F800000u) == 0 ? bxn_bits_f32(bits & 0x80000000u) : value;
}

static inline void emulated_begin(void)
{
    emulated_ready = 1;
    memset(emulated_f32, 0, sizeof emulated_f32);
    memset(emulated_bf16, 0, sizeof emulated_bf16);
}

static inline void emulated_end(void)
{
    emulated_ready = 0;
}

/* Tiles 0 to 3 are sums, the others operands: what the body uses them for. */
static inline void emulated_move(int t, void *memory, size_t stride, int store)
{
    for (int row = 0; row < 16; row++) {
        void *tile = t < 4 ? (void *)emulated_f32[t][row] : (void *)emulated_bf16[t][row];
        char *at = (char *)memory + (size_t)row * stride;
        memcpy(store ? (void *)at : tile, store ? tile : (void *)at, 64);
    }
}

static inline void emulated_product(int c, int a, int b)
{
    if (!emulated_ready) /* the processor would stop the program */
        __builtin_trap();
    for (int m = 0; m < 16; m++) {
        for (int n = 0; n < 16; n++) {
            float sum[2] = {0.0f, 0.0f};
            for (int k = 0; k < 16; k++)
                for (int i = 0; i < 2; i++)
                    sum[i] = emulated_flush(
                        sum[i] + emulated_flush(
                                     emulated_flush(bxn_bf16_f32(emulated_bf16[a][m][2 * k + i])) *
                                     emulated_flush(bxn_bf16_f32(emulated_bf16[b][k][2 * n + i]))));
            emulated_f32[c][m][n] =
                emulated_flush(emulated_f32[c][m][n] + emulated_flush(sum[0] + sum[1]));
        }
    }
}

#define TILE_BEGIN() emulated_begin()
#define TILE_END() emulated_end()
#define TILE_FENCE() ((void)0)
#define TILE_ZERO(t) memset(emulated_f32[t], 0, sizeof emulated_f32[t])
#define TILE_LOAD(t, address, stride) emulated_move(t, (void *)(uintptr_t)(address), stride, 0)
#define TILE_STORE(t, address, stride) emulated_move(t, (void *)(uintptr_t)(address), stride, 1)
#define TILE_PRODUCT(c, a, b) emulated_product(c, a, b)

#endif
