/* SPDX-License-Identifier: Apache-2.0 */
/* check_tile.h - the tile kernel compiled against tile operations in plain C: tile_emulated.c
 * decodes in plain C, tile_emulated512.c in AVX-512 when its compiler can, and
 * attention_emulated512.c has attention with the vectors of AVX-512. */
#ifndef CHECK_TILE_H
#define CHECK_TILE_H

#include "checkkern.h"

#define DECLARE_EMULATED(name)                                                                     \
    void mm_tile4_##name(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,            \
                         const bxn_mm_args *args);                                                 \
    void mm_tile8_##name(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,            \
                         const bxn_mm_args *args);                                                 \
    void quant_bf16_##name(const float *x, size_t columns, void *tiles, uint32_t row);             \
    void attention_tile_##name(const bxn_attention_args *args, bxn_kv_type type)
DECLARE_EMULATED(emulated);
DECLARE_EMULATED(emulated512);

/* Sets the entries of tiles to the forms in AVX-512; false where the compiler left them out. */
bool tile_emulated512(bxn_kernels *kernels);

/* The ways in which this machine can run the tile products: plain C first, which judges. */
typedef struct tile_table {
    const char *name;
    bxn_kernels kernels;
} tile_table;

/* The plain C that stands for decoding has no attention. */
bool tile_has(const tile_table *table, const char *entry);

/* Returns whether AMX itself is among them; asks the system for it. */
bool tile_tables(tile_table out[4], size_t *count, uint64_t features);

#endif
