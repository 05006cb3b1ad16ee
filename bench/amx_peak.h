/* SPDX-License-Identifier: Apache-2.0 */
/* amx_peak.h - the limits of AMX, measured: for bench programs, which print their results
 * beside these in the same run. */
#ifndef BENCH_AMX_PEAK_H
#define BENCH_AMX_PEAK_H

/* Operations per second (two per multiply-add) of tile products of bf16 and of 8-bit integers with
 * four sums in flight: operands stay in tiles, or (from_l2) four are loaded per four products,
 * walking 640 KiB per thread, as a blocked product does. 0 where the processor, the system
 * or the compiler has no AMX. */
double bench_amx_bf16(unsigned threads, int from_l2);
double bench_amx_int8(unsigned threads, int from_l2);

#endif
