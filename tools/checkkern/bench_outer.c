/* SPDX-License-Identifier: Apache-2.0 */
/* bench_outer.c - the speed of outer products, which are the gradients of matrices, beside the f32 peak.
 * Called by checkkern --bench; one thread. */
#include "checkkern_bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECONDS 0.5 /* of repeating one measurement, of which the best counts */

void bench_outer_products(const bxn_kernels *k, const char *tier, const char *filter, double peak)
{
    /* rows and columns of c, rows that are summed, floats between rows of activations */
    static const struct {
        uint32_t rows, cols, tokens, padding;
    } shapes[] = { { 256, 256, 512, 0 },   { 192, 256, 1024, 16 }, { 512, 256, 2048, 0 }, { 1024, 1024, 512, 0 },
                   { 2560, 2560, 256, 0 }, { 8, 2560, 256, 0 },    { 64, 2560, 256, 0 },  { 1000, 700, 300, 20 } };
    if (k->features == 0 || (filter != NULL && strstr("outer_add", filter) == NULL))
        return;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        const uint32_t rows = shapes[i].rows, cols = shapes[i].cols, tokens = shapes[i].tokens;
        const size_t ldp = rows + shapes[i].padding, ldq = cols + shapes[i].padding;
        float *p = floats(tokens * ldp), *q = floats(tokens * ldq), *c = floats((size_t)rows * cols);
        bxn_outer_args args = {p, ldp, q, ldq, tokens, c, cols};
        double least = INFINITY, end = bench_now() + SECONDS;
        do {
            double begin = bench_now();
            k->outer_add(&args, 0, rows, 0, cols);
            double seconds = bench_now() - begin;
            least = seconds < least ? seconds : least;
        } while (bench_now() < end);
        double speed = 2.0 * rows * cols * tokens / least;
        printf("outer_add      %-10s 1 thread  c=%ux%u tokens=%-4u %8.2f GFLOP/s %5.1f %% of f32 peak\n", tier, rows,
               cols, tokens, speed * 1e-9, 100 * speed / peak);
        fflush(stdout);
        free(p);
        free(q);
        free(c);
    }
}
