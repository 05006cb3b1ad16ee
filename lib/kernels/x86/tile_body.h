/* SPDX-License-Identifier: Apache-2.0 */
/* tile_body.h - products of bf16 tiles from packed weights: the whole kernel but its tile
 * operations and its decoding, which the file that includes this defines before:
 *
 *   TILE_BEGIN(), TILE_END()          set up eight tiles of 16 rows x 64 bytes; let them go
 *   TILE_FENCE()                      what was written is seen by tiles that are loaded after it, and what
 *                                     tiles stored before it is seen by what reads
 *   TILE_ZERO(t), TILE_LOAD(t, address, stride), TILE_STORE(t, address, stride), in bytes
 *   TILE_PRODUCT(c, a, b)             c += a times b, as TDPBF16PS; t, a, b, c are literals
 *   void decode_part(const bxn_packed *w, const uint8_t *unit, unsigned bits, int has_bias,
 *                    unsigned part, uint16_t *out)
 *                                     inputs 8 part ... of a unit as four rows of a tile: rows are pairs
 *                                     of inputs in the order of kernels.h, columns its 16 rows
 *   void convert_row(const float *x, size_t columns, uint16_t *tiles, uint32_t row)
 *   TILE_NAME(entry)                  the name of a function of the table
 *
 * x86/tile_amx.c includes it for the processor, checkkern for tile operations in plain C, so
 * that layout, indexing and tails are checked on machines without AMX.
 *
 * Products are limited by how fast tiles arrive from the second-level cache, decoding by vector
 * instructions: they use different parts of the core and are done at once. A panel of two groups
 * of weight rows x 1280 inputs is multiplied with all tokens of a stretch, 32 x 32 outputs in four tiles,
 * while the next panel is decoded, some parts of it in every step. Two panels are 160 KiB of stack; with
 * the tiles of the stretch (384 tokens x 1280 inputs: 1 MB) they stay in the second-level cache.
 * Sums leave the tiles after a panel and wait in y, exactly. */
#ifndef BXN_TILE_BODY_H
#define BXN_TILE_BODY_H

#include <string.h>

#include "kernels/kernels_isa.h"

#define TILE_INLINE static inline __attribute__((always_inline))
#define TILE_VALUES 512  /* bf16 values of a tile */
#define TILE_PARTS 16u   /* of a unit */
#define TILE_UNITS 10u   /* units of each group in a panel at most */
#define TILE_TOKENS 384u /* of a stretch at most */
#define TILE_EDGE 32u    /* outputs and tokens of a step */

typedef struct tile_scratch {
    _Alignas(64) uint16_t panels[2][(size_t)TILE_UNITS * 4 * 2 * TILE_VALUES]; /* [32 inputs][group] */
    _Alignas(64) float edge[TILE_EDGE * TILE_EDGE];
} tile_scratch;

/* `units` units from u on of one group or two; of none at the end. */
typedef struct tile_panel {
    uint32_t group, groups, u, units;
} tile_panel;

/* A panel that is being decoded, units of its groups in turns: each group is a stream of memory. */
typedef struct tile_cursor {
    const uint8_t *unit;
    uint16_t *out;  /* of the unit */
    uint32_t part;  /* of the unit, to be done next */
    uint32_t left;  /* parts to be done */
    uint32_t group, groups; /* of the panel */
    size_t across;          /* bytes from a unit of the first group to that of the second */
} tile_cursor;

TILE_INLINE tile_cursor tile_decoding(const bxn_packed *w, tile_panel panel, uint16_t *out)
{
    const size_t across = (size_t)w->k_units * w->unit_bytes;
    if (panel.groups == 0)
        return (tile_cursor){.left = 0};
    return (tile_cursor){.unit = w->data + panel.group * across + (size_t)panel.u * w->unit_bytes, .out = out,
                         .left = panel.units * panel.groups * TILE_PARTS, .groups = panel.groups, .across = across};
}

TILE_INLINE void decode_some(const bxn_packed *w, tile_cursor *c, uint32_t parts, unsigned bits, int has_bias)
{
    parts = parts < c->left ? parts : c->left;
    c->left -= parts;
    for (; parts != 0; parts--) {
        uint16_t *out = c->out + c->part / 4 * c->groups * TILE_VALUES + c->part % 4 * 128;
        decode_part(w, c->unit, bits, has_bias, c->part, out);
        if (++c->part < TILE_PARTS)
            continue;
        c->part = 0;
        if (++c->group < c->groups) {
            c->unit += c->across;
            c->out += TILE_VALUES;
        } else {
            c->unit = c->unit - (c->groups - 1) * c->across + w->unit_bytes;
            c->out += (4 * c->groups - (c->groups - 1)) * (size_t)TILE_VALUES;
            c->group = 0;
        }
    }
}

/* Adds `steps` products of 32 inputs to `blocks` x 16 tokens and `groups` x 16 outputs at y, and decodes
 * `pace` parts of the next panel in each. */
TILE_INLINE void tile_step(const uint16_t *weight, const uint8_t *x, size_t ldx, uint32_t steps,
                           float *y, size_t ldy, int clear, unsigned blocks, unsigned groups,
                           const bxn_packed *w, tile_cursor *next, uint32_t pace, unsigned bits, int has_bias)
{
    const size_t stride = ldy * sizeof *y;
    float *y1 = y + 16 * ldy;
    TILE_FENCE();
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
        if (blocks == 2)
            TILE_LOAD(5, x + ldx, 64);
        if (groups == 2)
            TILE_LOAD(7, weight + TILE_VALUES, 64);
        decode_some(w, next, pace, bits, has_bias);
        TILE_PRODUCT(0, 4, 6);
        if (groups == 2)
            TILE_PRODUCT(1, 4, 7);
        if (blocks == 2)
            TILE_PRODUCT(2, 5, 6);
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
    TILE_FENCE();
}

/* Rows and columns of y that exist, to the edge buffer or back. */
TILE_INLINE void copy_edge(float *to, size_t ldto, const float *from, size_t ldfrom,
                           uint32_t tokens, uint32_t rows)
{
    for (uint32_t m = 0; m < tokens; m++)
        memcpy(to + m * ldto, from + m * ldfrom, rows * sizeof *to);
}

/* The panel times tokens [token, token_end) of args; token is a multiple of TILE_EDGE. */
TILE_INLINE void tile_tokens(const bxn_packed *w, tile_panel panel, const uint16_t *weight, const bxn_mm_args *args,
                             uint32_t token, uint32_t token_end, float *edge, tile_cursor *next, unsigned groups,
                             unsigned bits, int has_bias)
{
    const uint32_t left = w->rows - panel.group * BXN_UNIT_ROWS, rows = left < groups * 16 ? left : groups * 16;
    const uint32_t steps = panel.units * 4;
    const uint32_t turns = (token_end - token + TILE_EDGE - 1) / TILE_EDGE * steps;
    const uint32_t pace = (next->left + turns - 1) / turns;
    for (uint32_t m = token; m < token_end; m += TILE_EDGE) {
        const uint32_t tokens = token_end - m < TILE_EDGE ? token_end - m : TILE_EDGE;
        const uint8_t *x = (const uint8_t *)args->xq + m / 16 * args->ldxq + (size_t)panel.u * 4 * 1024;
        float *out = args->y + m * args->ldy + (size_t)panel.group * BXN_UNIT_ROWS, *y = out;
        size_t ldy = args->ldy;
        const int first = panel.u == 0, at_edge = tokens % 16 != 0 || rows != groups * 16;
        if (at_edge) {
            y = edge;
            ldy = TILE_EDGE;
            if (!first)
                copy_edge(y, ldy, out, args->ldy, tokens, rows);
        }
        /* Sums of the tokens that follow. */
        for (uint32_t i = m + TILE_EDGE; i < m + 2 * TILE_EDGE && i < token_end; i++) {
            const float *soon = args->y + i * args->ldy + (size_t)panel.group * BXN_UNIT_ROWS;
            __builtin_prefetch(soon, 1);
            __builtin_prefetch(soon + 16, 1);
        }
        if (tokens > 16)
            tile_step(weight, x, args->ldxq, steps, y, ldy, first, 2, groups, w, next, pace, bits, has_bias);
        else
            tile_step(weight, x, args->ldxq, steps, y, ldy, first, 1, groups, w, next, pace, bits, has_bias);
        if (at_edge)
            copy_edge(out, args->ldy, y, ldy, tokens, rows);
    }
}

/* The panel after this one among groups up to `end` x units [u, u_end), `deep` of them in a panel: all units of its
 * groups, then the next groups; of no group at the end. */
TILE_INLINE tile_panel tile_after(tile_panel panel, uint32_t end, uint32_t u, uint32_t u_end, uint32_t deep)
{
    panel.u += panel.units;
    if (panel.u == u_end) {
        panel.u = u;
        panel.group += panel.groups;
        panel.groups = end - panel.group < 2 ? end - panel.group : 2;
    }
    panel.units = u_end - panel.u < deep ? u_end - panel.u : deep;
    return panel;
}

/* Groups [begin, end) x units [u, u_end) x a stretch of tokens: panel after panel. */
TILE_INLINE void tile_stretch(const bxn_packed *w, uint32_t begin, uint32_t end, uint32_t u, uint32_t u_end,
                              uint32_t deep, const bxn_mm_args *args, uint32_t token, uint32_t token_end,
                              tile_scratch *work, unsigned bits, int has_bias)
{
    tile_panel panel = {begin, end - begin < 2 ? end - begin : 2, u, u_end - u < deep ? u_end - u : deep};
    tile_cursor next = tile_decoding(w, panel, work->panels[0]);
    decode_some(w, &next, next.left, bits, has_bias);
    for (unsigned turn = 0; panel.group < end; turn++) {
        const uint16_t *weight = work->panels[turn % 2];
        const tile_panel then = tile_after(panel, end, u, u_end, deep);
        next = tile_decoding(w, then, work->panels[(turn + 1) % 2]);
        if (panel.groups == 2)
            tile_tokens(w, panel, weight, args, token, token_end, work->edge, &next, 2, bits, has_bias);
        else
            tile_tokens(w, panel, weight, args, token, token_end, work->edge, &next, 1, bits, has_bias);
        decode_some(w, &next, next.left, bits, has_bias);
        panel = then;
    }
}

/* The least multiple of `unit` by which parts of at most `most` make up the whole. */
TILE_INLINE uint32_t tile_share(uint32_t whole, uint32_t most, uint32_t unit)
{
    const uint32_t parts = (whole + most - 1) / most;
    return ((whole + parts - 1) / parts + unit - 1) / unit * unit;
}

TILE_INLINE void tile_product(const bxn_packed *w, uint32_t begin, uint32_t end,
                              const bxn_mm_args *args, unsigned bits, int has_bias)
{
    tile_scratch work;
    if (begin >= end || args->count == 0)
        return;
    memset(work.edge, 0, sizeof work.edge); /* what is not copied is multiplied by nobody */
    TILE_BEGIN();
    /* Stretches of tokens and panels as equal as can be. */
    const uint32_t part = tile_share(args->count, TILE_TOKENS, TILE_EDGE), deep = tile_share(w->k_units, TILE_UNITS, 1);
    const uint32_t wide = part * w->k_units <= TILE_TOKENS * TILE_UNITS ? w->k_units : deep;
    for (uint32_t m = 0; m < args->count; m += part) {
        const uint32_t m_end = args->count - m < part ? args->count : m + part;
        for (uint32_t u = 0; u < w->k_units; u += wide)
            tile_stretch(w, begin, end, u, w->k_units - u < wide ? w->k_units : u + wide, deep, args, m, m_end, &work,
                         bits, has_bias);
    }
    TILE_END();
}

void TILE_NAME(mm_tile4)(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                         const bxn_mm_args *args)
{
    if (w->has_bias)
        tile_product(w, group_begin, group_end, args, 4, 1);
    else
        tile_product(w, group_begin, group_end, args, 4, 0);
}

void TILE_NAME(mm_tile8)(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                         const bxn_mm_args *args)
{
    if (w->has_bias)
        tile_product(w, group_begin, group_end, args, 8, 1);
    else
        tile_product(w, group_begin, group_end, args, 8, 0);
}

void TILE_NAME(quant_bf16)(const float *x, size_t columns, void *tiles, uint32_t row)
{
    convert_row(x, columns, tiles, row);
}

#endif
