/* SPDX-License-Identifier: Apache-2.0 */
/* quant.h - quantised formats: reading and writing their codes, and turning any of
 * them into the kernels' packed layout. Called by import (loading) and convert. */
#ifndef BXN_QUANT_H
#define BXN_QUANT_H

#include "kernels/kernels.h"
#include "runtime/runtime.h"

/* ---- float rows ------------------------------------------------------------------ */

/* count values of dtype F32/F16/BF16 (unaligned is fine) to f32 and back (round to
 * nearest even). */
void bxn_to_f32(const void *src, bxn_dtype dtype, size_t count, float *dst);
void bxn_from_f32(const float *src, bxn_dtype dtype, size_t count, void *dst);

/* ---- affine (MLX dialect; bit-axon spec 2.4) ---------------------------------------- */

/* Bits 2, 3, 4, 5, 6, 8; group 32, 64, 128; cols divisible by group. */
bool bxn_affine_supported(uint32_t bits, uint32_t group);
/* uint32 words per row of `cols` codes. */
uint64_t bxn_affine_words(uint64_t cols, uint32_t bits);
/* Scale and offset of one group as unrounded f32. False: all values are equal (all codes are 0
 * then, and the scale says nothing). */
bool bxn_affine_range(const float *w, uint32_t count, uint32_t bits, float *scale, float *bias);
/* One row: codes as words (little-endian bit stream, least significant first), scales and
 * biases [cols / group] as unrounded f32 (the caller rounds them to the stored type). */
void bxn_affine_encode_row(const float *w, uint32_t cols, uint32_t bits, uint32_t group,
                           uint32_t *words, float *scales, float *biases);
/* Codes of one row, one byte each. */
void bxn_affine_unpack_row(const void *words, uint32_t cols, uint32_t bits, uint8_t *codes);

/* ---- NF4 (QLoRA; bit-axon spec 6.2) -------------------------------------------------- */

extern const float bxn_nf4_table[16];
/* One group: codes (one byte each) and absmax; ties between entries go to the lower. */
void bxn_nf4_encode_group(const float *w, uint32_t count, uint8_t *codes, float *absmax);
/* Double quantisation of `count` absmax values: the 256-entry signed dynamic map. */
void bxn_nf4_dynamic_map(float map[256]);
/* absmax[i] = map[codes[i]] * nested_absmax[i / nested_block] + offset */
void bxn_nf4_denest(const uint8_t *codes, const float *map, const float *nested_absmax,
                    uint32_t nested_block, float offset, uint64_t count, float *absmax);

/* ---- packed layout ---------------------------------------------------------------------- */

/* Shape, unit size, table and centre for a format; data stays NULL.
 * kind 'a' affine or 'n' NF4; bits of the codes; group 32, 64, 128. NF4: bits 4, group
 * 32, 64 or 128, no bias. Affine 2..4 bits use the 4-bit container, 5..8 the 8-bit one. */
bitaxon_status bxn_packed_describe(uint32_t rows, uint32_t cols, char kind, uint32_t bits,
                                   uint32_t group, bool scale_f32, bxn_packed *out,
                                   bitaxon_error *error);
/* The one rule for loading and packing, so that a model computes the same bits before and
 * after: scales and biases stored as F16 stay f16, F32 and BF16 ones become f32. */
static inline bool bxn_packed_scale_f32(bxn_dtype stored)
{
    return stored != BXN_F16;
}
uint64_t bxn_packed_bytes(const bxn_packed *w); /* row_groups * k_units * unit_bytes */
/* "a4g64f16", "n4g64f32": the suffix of a packed tensor's name ("P.packed.a4g64f16"), 16
 * bytes at most; and back (false: not one). */
void bxn_packed_suffix(const bxn_packed *w, char suffix[16]);
bool bxn_packed_parse(const char *suffix, char *kind, uint32_t *bits, uint32_t *group,
                      bool *scale_f32);
/* Write one row group (up to 16 rows) at dst [k_units][unit_bytes] from per-row codes
 * (codes[r * cols + k], uncentred, one byte each) and f32 scales and biases [rows][cols /
 * group]; biases NULL for NF4. `rows` < 16 pads with zero bytes. */
void bxn_packed_write_group(const bxn_packed *w, uint32_t rows, const uint8_t *codes,
                            const float *scales, const float *biases, uint8_t *dst);
/* One row back as f32 (embedding look-up, tests, repacking). out [cols]. The value is
 * scale * (code - center) + bias' computed in f32, bias' = bias + center * scale as in
 * kernels.h, which equals what kernels multiply. */
void bxn_packed_row(const bxn_packed *w, uint32_t row, float *out);
/* Its parts: codes uncentred [cols], scales and biases [cols / group] as f32, as stored (biases
 * may be NULL); value = scale * code + bias. */
void bxn_packed_row_parts(const bxn_packed *w, uint32_t row, uint8_t *codes, float *scales,
                          float *biases);

#endif
