/* SPDX-License-Identifier: Apache-2.0 */
/* peaks.h - the arithmetic peaks of the machine by instruction and width, measured. Used by
 * checkkern --bench, which prints products with integers beside the peak of the instructions
 * that they may use, and by `bitaxon bench`, which prints them all. */
#ifndef BENCH_PEAKS_H
#define BENCH_PEAKS_H

/* Sums of products over independent registers, of 128, 256 or 512 bits. A new kind gets a row in the
 * table of peaks.c; one that needs compile flags of its own, a file of its own. */
typedef enum bench_peak_kind {
    BENCH_F32_128,     /* fused where every machine of the architecture has it (Arm64) */
    BENCH_DOT8_128,    /* Arm64: sdot */
    BENCH_F32_256,     /* fused multiply-add */
    BENCH_F32_512,
    BENCH_I16_256,     /* vpmaddwd, vpaddd */
    BENCH_I16_512,
    BENCH_I8_256,      /* vpmaddubsw, vpaddw */
    BENCH_I8_512,
    BENCH_VNNI16_256,  /* vpdpwssd */
    BENCH_VNNI16_512,
    BENCH_VNNI8_256,   /* vpdpbusd */
    BENCH_VNNI8_512,
    BENCH_AMX_INT8,    /* tiles: tdpbssd */
    BENCH_AMX_BF16,    /* tdpbf16ps, operands in tiles */
    BENCH_AMX_BF16_L2, /* the same, operands loaded from the second-level cache (amx_peak.h) */
    BENCH_PEAK_KINDS
} bench_peak_kind;

const char *bench_peak_name(bench_peak_kind kind); /* for people: "f32 fma, 512 bits" */
const char *bench_peak_key(bench_peak_kind kind);  /* for programs: "f32_512" */

/* Operations per second of all threads together, two per multiply-add, of one run of about
 * 20 ms; 0 when the machine has not the instructions. */
double bench_peak(bench_peak_kind kind, unsigned threads);

#endif
