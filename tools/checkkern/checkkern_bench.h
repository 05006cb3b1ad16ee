/* SPDX-License-Identifier: Apache-2.0 */
/* checkkern_bench.h - what the files of checkkern --bench share: the table that is measured,
 * the buffer that stands for weights, and the limits of the machine in the same run. */
#ifndef CHECKKERN_BENCH_H
#define CHECKKERN_BENCH_H

#include "checkkern.h"

#include "../../bench/bandwidth.h"

#define BUFFER_BYTES ((size_t)768 << 20)

typedef struct limits {
    double read[2], peak[2]; /* of 1 thread, of all */
    unsigned streams[2];     /* with which reading is fastest */
    unsigned threads;        /* all */
} limits;

typedef struct subject {
    const bxn_kernels *k;
    const char *tier, *filter;
    uint8_t *buffer;
    limits limit;
} subject;

bool selected(const subject *s, const char *name);
float *floats(size_t count); /* aligned, small values; the caller frees */

/* Products with integer activations, near and fast, on 1 or all threads. */
void bench_near(const subject *s, unsigned threads);

#endif
