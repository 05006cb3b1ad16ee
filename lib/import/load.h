/* SPDX-License-Identifier: Apache-2.0 */
/* load.h - tensors of any stored form to weights and vectors: shared by the importers of
 * all families. In plan mode nothing is read and nothing lasts; only the account is kept. */
#ifndef BXN_LOAD_H
#define BXN_LOAD_H

#include "import/import.h"

typedef struct bxn_loader {
    bxn_mem *mem;
    const bxn_tensors *tensors;
    bool plan;
    bxn_pool *pool; /* NULL in plan mode */
    bxn_progress *progress;
    bxn_loaded *loaded;
    uint8_t *seen;      /* [tensors->count] used by the model */
    uint64_t done;      /* bytes of the files gone through */
    const char *map_begin, *map_end; /* span of what is used in place, in file map_file */
    uint32_t map_file;
    bool repacks;       /* mostly codes that are repacked: float matrices are copied too, so that the
                         * files need not stay mapped for a sliver */
    bitaxon_error *error;
} bxn_loader;

bitaxon_status bxn_loader_init(bxn_loader *loader, bxn_mem *mem, const bxn_tensors *tensors,
                               bool plan, bxn_pool *pool, bxn_progress *progress,
                               bxn_loaded *loaded, bitaxon_error *error);
void bxn_loader_done(bxn_loader *loader);

/* Owned memory that lives as long as the model; NULL in plan mode. Cleared. */
bitaxon_status bxn_loader_alloc(bxn_loader *loader, size_t bytes, const char *what, void **out);

/* Tensor NAME of `n` values, any float type, shape free as long as it multiplies to n
 * with `rank` given dimensions; to f32, padded with zeros to n16. */
bitaxon_status bxn_load_vector(bxn_loader *loader, const char *name, uint64_t n, uint64_t n16,
                               const float **out);
/* The same, read into a temporary that the caller frees with bxn_free(mem, out, n * 4). NULL in plan mode. */
bitaxon_status bxn_load_temporary(bxn_loader *loader, const char *name, uint64_t n, float **out);

/* Matrix PREFIX.weight [rows, cols] in any stored form. */
bitaxon_status bxn_load_weight(bxn_loader *loader, const char *prefix, uint32_t rows, uint32_t cols,
                               bxn_weight *out);
/* Stack PREFIX.weight [count, rows, cols] to count weights (owned array). */
bitaxon_status bxn_load_stack(bxn_loader *loader, const char *prefix, uint32_t count, uint32_t rows,
                              uint32_t cols, const bxn_weight **out);
/* PREFIX.weight holds codes: affine (U32) or NF4 (U8). out NULL: plan mode of a stack. */
bitaxon_status bxn_load_quantised(bxn_loader *loader, const bxn_tensor *weight, const char *prefix,
                                  uint32_t count, uint32_t rows, uint32_t cols, bool stack, bxn_weight *out);
/* True when the files have PREFIX.weight or a packed form of it. */
bool bxn_load_has(const bxn_loader *loader, const char *prefix);
/* Count all tensors whose name begins with prefix as used, without reading them. */
void bxn_load_ignore(bxn_loader *loader, const char *prefix);
/* FORMAT naming the first tensor that nobody asked for. */
bitaxon_status bxn_load_finish(bxn_loader *loader);

#endif
