/* SPDX-License-Identifier: Apache-2.0 */
/* bandwidth.h - the limits of the machine, measured: read bandwidth by threads and streams,
 * and the peak of f32 fused multiply-add. Used by checkkern --bench and by bench programs,
 * which print their results beside these in the same run. */
#ifndef BENCH_BANDWIDTH_H
#define BENCH_BANDWIDTH_H

#include <stddef.h>

#define BENCH_MAX_THREADS 256

double bench_now(void); /* seconds */

/* Run fn(context, i) for i < threads, each on a thread of its own (the caller's when there is
 * one), begun together. Returns seconds from the start of the first to the end of the last;
 * negative when a thread cannot be started. */
double bench_parallel(unsigned threads, void (*fn)(void *context, unsigned thread), void *context);

/* Bytes per second of reading the buffer once, the best of `repeats`. Threads own equal
 * parts and walk `streams` (1, 2, 4, 8) equal ranges of theirs at once. The buffer should be
 * several times the last-level cache. */
double bench_read(const void *buffer, size_t bytes, unsigned threads, unsigned streams,
                  unsigned repeats);

/* The best of 1, 2, 4 and 8 streams. */
double bench_read_best(const void *buffer, size_t bytes, unsigned threads, unsigned repeats);

/* f32 operations per second (two per fused multiply-add) with the widest vectors. */
double bench_fma(unsigned threads);

#endif
