/* SPDX-License-Identifier: Apache-2.0 */
/* load_internal.h - between load.c and load_quantised.c. */
#ifndef BXN_LOAD_INTERNAL_H
#define BXN_LOAD_INTERNAL_H

#include "import/load.h"

#define LOAD_PIECE ((size_t)1 << 20) /* bytes between two looks at progress and cancel */

/* Tensor PREFIX + SUFFIX, counted as used; NULL when absent. */
const bxn_tensor *bxn_loader_find(bxn_loader *loader, const char *prefix, const char *suffix);
const bxn_tensor *bxn_loader_find_packed(bxn_loader *loader, const char *prefix);
bitaxon_status bxn_loader_advance(bxn_loader *loader, uint64_t bytes, const char *item);
bitaxon_status bxn_loader_misshapen(bxn_loader *loader, const bxn_tensor *tensor, const char *expected);
bitaxon_status bxn_loader_missing(bxn_loader *loader, const char *name);
bitaxon_status bxn_loader_note(bxn_loader *loader, const char *name, const char *format, const char *dtype,
                               uint32_t rank, const uint64_t *shape, uint64_t bytes, bool mapped);
/* bxn_loader_alloc without clearing. */
bitaxon_status bxn_loader_alloc_raw(bxn_loader *loader, size_t bytes, const char *what, void **out);
/* Account for bytes that exist during loading only. */
void bxn_loader_transient(bxn_loader *loader, uint64_t bytes);
/* All bytes of a tensor: in place when mapped and aligned, else in owned memory. In plan
 * mode *out may be NULL. */
bitaxon_status bxn_loader_bytes(bxn_loader *loader, const bxn_tensor *tensor, size_t align, const void **out,
                                bool *mapped);

#endif
