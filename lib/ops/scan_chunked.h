/* SPDX-License-Identifier: Apache-2.0 */
/* scan_chunked.h - the chunked ("segment sum") form of state-space recurrences: within a chunk
 * every output is a sum over the inputs before it, each times the decay between the two, and
 * the state goes from chunk to chunk. The same mathematics as the recurrence step by step,
 * within 1e-5 relative; not the same bits, and the bits depend on where chunks begin.
 *
 * For Mamba-1, where the decay differs per channel and state, this form needs chunk / 2
 * exponentials where the recurrence needs one: the op uses kernels->scan, and this stands
 * here to be tested against it (docs/scan.md has the figures). With one decay per head (Mamba-2;
 * Dao & Gu 2024) it turns into four matrix products. */
#ifndef BXN_SCAN_CHUNKED_H
#define BXN_SCAN_CHUNKED_H

#include "kernels/kernels.h"

/* Bytes of scratch for chunks of up to `chunk` tokens; 64-byte aligned. */
size_t bxn_scan_chunked_bytes(uint32_t chunk);

/* What kernels->scan does with these arguments, in chunks of `chunk` >= 1 tokens. */
void bxn_scan_chunked(const bxn_scan_args *args, uint32_t chunk, void *scratch);

/* One decay per head, for heads [begin, end) (state space duality):
 *   h[p][n] = exp2(dt[t] * a2) * h[p][n] + dt[t] * x[t][p] * B[t][n]
 *   y[t][p] = sum_n C[t][n] * h[p][n] + d * x[t][p]
 * dt > 0 is after softplus and clip; a2 = -exp(A_log) * log2(e). */
typedef struct bxn_ssd_args {
    uint32_t tokens;
    uint32_t begin, end;
    uint32_t head_dim, states; /* P, N */
    uint32_t heads_per_group;  /* heads that share B and C; begin need not be a multiple */
    const float *x;            /* [T, H * P] ldx */
    size_t ldx;
    const float *dt; /* [T, H] lddt */
    size_t lddt;
    const float *b, *c; /* [T, H / heads_per_group * N] ldbc */
    size_t ldbc;
    const float *a2, *d; /* [H] */
    const float *h_in;   /* [H][P][N] */
    float *h_out;        /* h_in or disjoint from it */
    float *y;            /* [T, H * P] ldy; disjoint from x */
    size_t ldy;
} bxn_ssd_args;

size_t bxn_ssd_chunked_bytes(uint32_t chunk, uint32_t head_dim, uint32_t states);

/* A chunk of 1 is the recurrence itself. */
void bxn_ssd_chunked(const bxn_kernels *kernels, const bxn_ssd_args *args, uint32_t chunk,
                     void *scratch);

#endif
