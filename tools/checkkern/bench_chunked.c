/* SPDX-License-Identifier: Apache-2.0 */
/* bench_chunked.c - the chunked forms of state-space recurrences beside the recurrences, by
 * which the faster one was chosen (docs/scan.md). Mamba-1: both forms in plain C, 256
 * channels x 16 states. One decay per head: the products of a tier, 16 heads of 64 with 128
 * states; a chunk of 1 is the recurrence. */
#include "checkkern.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "ops/scan_chunked.h"
#include "runtime/runtime.h"

#define TOKENS 256u
#define ROUNDS 5

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

static float *filled(size_t count, float low, float high)
{
    float *x = aligned_alloc(64, bxn_round_up(count * sizeof *x, 64));
    if (x == NULL) {
        perror("checkkern");
        exit(2);
    }
    for (size_t i = 0; i < count; i++)
        x[i] = low + (high - low) * (float)(i * 2654435761u % 1024) / 1024;
    return x;
}

static void bench_channels(const bxn_kernels *k, const char *tier)
{
    enum { CHANNELS = 256, STATES = 16, LD = 2 * STATES + 1 };
    const uint32_t chunks[] = {1, 4, 16, 64};
    float *x = filled(TOKENS * CHANNELS, -1, 1), *y = filled(TOKENS * CHANNELS, 0, 0);
    float *bcd = filled(TOKENS * LD, -1, 1), *p = filled(3 * CHANNELS, -3, 0);
    float *a2 = filled(CHANNELS * STATES, -23, -1), *h = filled(CHANNELS * STATES, 0, 0);
    float *scratch = filled(bxn_scan_chunked_bytes(64) / sizeof(float), 0, 0);
    bxn_scan_args a = {TOKENS, 0,       CHANNELS, STATES,       x,  CHANNELS,         x, CHANNELS,
                       bcd,    LD,      p,        p + CHANNELS, a2, p + 2 * CHANNELS, h, h,
                       y,      CHANNELS};
    const double units = TOKENS * (CHANNELS / 16.0);
    double recurrence = INFINITY, best[4] = {INFINITY, INFINITY, INFINITY, INFINITY};
    for (int round = 0; round < ROUNDS; round++) {
        double t0 = now_ns();
        k->scan(&a);
        recurrence = fmin(recurrence, (now_ns() - t0) / units);
        for (int c = 0; c < 4; c++) {
            t0 = now_ns();
            bxn_scan_chunked(&a, chunks[c], scratch);
            best[c] = fmin(best[c], (now_ns() - t0) / units);
        }
    }
    printf(
        "scan chunked     %-7s 16 channels x 16 states x 1 token: recurrence %.0f ns; chunks of 1, "
        "4, 16, 64 in plain C: %.0f, %.0f, %.0f, %.0f ns\n",
        tier, recurrence, best[0], best[1], best[2], best[3]);
    float *all[] = {x, y, bcd, p, a2, h, scratch};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
}

static void bench_heads(const bxn_kernels *k, const char *tier)
{
    enum { HEADS = 16, DIM = 64, STATES = 128 };
    const uint32_t chunks[] = {1, 8, 16, 32, 64, 128};
    float *x = filled(TOKENS * HEADS * DIM, -1, 1), *y = filled(TOKENS * HEADS * DIM, 0, 0);
    float *dt = filled(TOKENS * HEADS, 0.01f, 1), *p = filled(2 * HEADS, -2, -1);
    float *bc = filled(TOKENS * STATES * 2, -1, 1), *h = filled(HEADS * DIM * STATES, 0, 0);
    float *scratch = filled(bxn_ssd_chunked_bytes(128, DIM, STATES) / sizeof(float), 0, 0);
    bxn_ssd_args a = {TOKENS,      0,  HEADS, DIM, STATES,      HEADS,      x,
                      HEADS * DIM, dt, HEADS, bc,  bc + STATES, 2 * STATES, p,
                      p + HEADS,   h,  h,     y,   HEADS * DIM};
    printf("one decay / head %-7s 64 x 128, 1 token:", tier);
    for (size_t c = 0; c < sizeof chunks / sizeof chunks[0]; c++) {
        double best = INFINITY;
        for (int round = 0; round < ROUNDS; round++) {
            double t0 = now_ns();
            bxn_ssd_chunked(k, &a, chunks[c], scratch);
            best = fmin(best, (now_ns() - t0) / TOKENS / HEADS);
        }
        printf(" chunks of %u: %.0f ns%s", chunks[c], best, c == 5 ? "\n" : ",");
    }
    float *all[] = {x, y, dt, p, bc, h, scratch};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
}

void bench_chunked(const bxn_kernels *k, const char *tier)
{
    bench_channels(k, tier);
    bench_heads(k, tier);
}
