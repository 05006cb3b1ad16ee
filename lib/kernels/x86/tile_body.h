/* SPDX-License-Identifier: Apache-2.0 */
/* tile_body.h - products of bf16 tiles from packed weights: the whole kernel but its tile
 * operations and its decoding, which the file that includes this defines before:
 *
 *   TILE_BEGIN(), TILE_END()          set up eight tiles of 16 rows x 64 bytes; let them go
 *   TILE_ZERO(t), TILE_LOAD(t, address, stride), TILE_STORE(t, address, stride), in bytes
 *   TILE_PRODUCT(c, a, b)             c += a times b, as TDPBF16PS; t, a, b, c are literals
 *   void decode_unit(const bxn_packed *w, const uint8_t *unit, unsigned bits, uint16_t *out,
 *                    size_t step)     a unit as four tiles, `step` values apart: rows are pairs
 *                                     of inputs in the order of kernels.h, columns its 16 rows
 *   void convert_row(const float *x, size_t columns, uint16_t *tiles, uint32_t row)
 *   TILE_NAME(entry)                  the name of a function of the table
 *
 * x86/tile_amx.c includes it for the processor, checkkern for tile operations in plain C, so
 * that layout, indexing and tails are checked on machines without AMX.
 *
 * For two groups of weight rows at a time, 1024 inputs are decoded into tiles on the stack (64
 * KiB, second-level cache) and used by all tokens, 32 x 32 outputs in four tiles at once. */
#ifndef BXN_TILE_BODY_H
#define BXN_TILE_BODY_H

#include <string.h>

#include "kernels/kernels_isa.h"

#define TILE_INLINE static inline __attribute__((always_inline))
#define TILE_VALUES 512 /* bf16 values of a tile */
#define TILE_UNITS 8    /* units of weights decoded at once */
#define TILE_EDGE 32    /* outputs and tokens of a step */

typedef struct tile_scratch {
    _Alignas(64) uint16_t weight[(size_t)TILE_UNITS * 4 * 2 * TILE_VALUES]; /* [32 inputs][group] */
    _Alignas(64) float edge[TILE_EDGE * TILE_EDGE];
} tile_scratch;

/* Adds `steps` products of 32 inputs to `blocks` x 16 tokens and `groups` x 16 outputs at y. */
TILE_INLINE void tile_step(const uint16_t *weight, const uint8_t *x, size_t ldx, uint32_t steps,
                           float *y, size_t ldy, int clear, unsigned blocks, unsigned groups)
{
    const size_t stride = ldy * sizeof *y;
    float *y1 = y + 16 * ldy;
    if (clear) {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
    } else {
        TILE_LOAD(0, y, stride);
        if (groups == 2)
            TILE_LOAD(1, y + 16, stride);
        if (blocks == 2)
            TILE_LOAD(2, y1, stride);
        if (blocks == 2 && groups == 2)
            TILE_LOAD(3, y1 + 16, stride);
    }
    for (uint32_t s = 0; s < steps; s++, x += 1024, weight += groups * TILE_VALUES) {
        TILE_LOAD(4, x, 64);
        TILE_LOAD(6, weight, 64);
        TILE_PRODUCT(0, 4, 6);
        if (groups == 2) {
            TILE_LOAD(7, weight + TILE_VALUES, 64);
            TILE_PRODUCT(1, 4, 7);
        }
        if (blocks == 2) {
            TILE_LOAD(5, x + ldx, 64);
            TILE_PRODUCT(2, 5, 6);
        }
        if (blocks == 2 && groups == 2)
            TILE_PRODUCT(3, 5, 7);
    }
    TILE_STORE(0, y, stride);
    if (groups == 2)
        TILE_STORE(1, y + 16, stride);
    if (blocks == 2)
        TILE_STORE(2, y1, stride);
    if (blocks == 2 && groups == 2)
        TILE_STORE(3, y1 + 16, stride);
}

/* Rows and columns of y that exist, to the edge buffer or back. */
TILE_INLINE void copy_edge(float *to, size_t ldto, const float *from, size_t ldfrom,
                           uint32_t tokens, uint32_t rows)
{
    for (uint32_t m = 0; m < tokens; m++)
        memcpy(to + m * ldto, from + m * ldfrom, rows * sizeof *to);
}

TILE_INLINE void tile_groups(const bxn_packed *w, uint32_t group, const bxn_mm_args *args,
                             tile_scratch *work, unsigned groups, unsigned bits)
{
    const uint32_t left = w->rows - group * BXN_UNIT_ROWS;
    const uint32_t rows = left < groups * 16 ? left : groups * 16;
    for (uint32_t u = 0; u < w->k_units; u += TILE_UNITS) {
        const uint32_t units = w->k_units - u < TILE_UNITS ? w->k_units - u : TILE_UNITS;
        for (uint32_t i = 0; i < units; i++)
            for (unsigned g = 0; g < groups; g++)
                decode_unit(w, w->data + ((size_t)(group + g) * w->k_units + u + i) * w->unit_bytes,
                            bits, work->weight + ((size_t)i * 4 * groups + g) * TILE_VALUES,
                            (size_t)groups * TILE_VALUES);
        for (uint32_t m = 0; m < args->count; m += TILE_EDGE) {
            const uint32_t tokens = args->count - m < TILE_EDGE ? args->count - m : TILE_EDGE;
            const uint8_t *x =
                (const uint8_t *)args->xq + m / 16 * args->ldxq + (size_t)u * 4 * 1024;
            float *out = args->y + m * args->ldy + (size_t)group * BXN_UNIT_ROWS, *y = out;
            size_t ldy = args->ldy;
            const int edge = tokens % 16 != 0 || rows != groups * 16;
            if (edge) {
                y = work->edge;
                ldy = TILE_EDGE;
                if (u > 0)
                    copy_edge(y, ldy, out, args->ldy, tokens, rows);
            }
            if (tokens > 16)
                tile_step(work->weight, x, args->ldxq, units * 4, y, ldy, u == 0, 2, groups);
            else
                tile_step(work->weight, x, args->ldxq, units * 4, y, ldy, u == 0, 1, groups);
            if (edge)
                copy_edge(out, args->ldy, y, ldy, tokens, rows);
        }
    }
}

TILE_INLINE void tile_product(const bxn_packed *w, uint32_t begin, uint32_t end,
                              const bxn_mm_args *args, unsigned bits)
{
    tile_scratch work;
    if (begin >= end || args->count == 0)
        return;
    memset(work.edge, 0, sizeof work.edge); /* what is not copied is multiplied by nobody */
    TILE_BEGIN();
    for (; begin + 2 <= end; begin += 2)
        tile_groups(w, begin, args, &work, 2, bits);
    if (begin < end)
        tile_groups(w, begin, args, &work, 1, bits);
    TILE_END();
}

void TILE_NAME(mm_tile4)(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                         const bxn_mm_args *args)
{
    tile_product(w, group_begin, group_end, args, 4);
}

void TILE_NAME(mm_tile8)(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                         const bxn_mm_args *args)
{
    tile_product(w, group_begin, group_end, args, 8);
}

void TILE_NAME(quant_bf16)(const float *x, size_t columns, void *tiles, uint32_t row)
{
    convert_row(x, columns, tiles, row);
}

#endif
