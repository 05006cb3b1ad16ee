/* SPDX-License-Identifier: Apache-2.0 */
/* bench_dense.c - the speed of products of many tokens with dense matrices and of products
 * with the transpose, beside the f32 peak and beside OpenBLAS, which is loaded for this
 * comparison alone when the machine has it. Called by checkkern --bench; one thread. */
#include "checkkern.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../bench/amx_peak.h"
#include "../../bench/bandwidth.h"
#include "runtime/runtime.h"

#define SECONDS 0.5 /* of repeating one measurement, of which the best counts */
#define PADDING 16u /* floats between rows of activations, so that they do not alias */

/* C = alpha op(A) op(B) + beta C, row-major: the C interface to BLAS (1 = row-major: 101). */
typedef void (*sgemm)(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha,
                      const float *a, int lda, const float *b, int ldb, float beta, float *c,
                      int ldc);

typedef struct shape {
    uint32_t rows, cols, tokens;
    bool transposed;
} shape;

static void fill(float *x, size_t count)
{
    for (size_t i = 0; i < count; i++)
        x[i] = 0.01f * (float)(i % 17) - 0.08f;
}

static float *floats(size_t count)
{
    float *x = aligned_alloc(64, bxn_round_up(count * sizeof *x, 64));
    if (x == NULL) {
        perror("checkkern");
        exit(2);
    }
    fill(x, count);
    return x;
}

static void report(const char *name, const char *tier, const shape *s, double seconds, double peak)
{
    double speed = 2.0 * s->rows * s->cols * s->tokens / seconds;
    printf("%-14s %-10s 1 thread  rows=%u K=%u tokens=%-4u %8.2f GFLOP/s %5.1f %% of f32 peak\n",
           name, tier, s->rows, s->cols, s->tokens, speed * 1e-9, 100 * speed / peak);
    fflush(stdout);
}

/* One product of whichever kind; blas replaces the kernel when given. */
typedef struct work {
    const bxn_kernels *k;
    sgemm blas;
    shape s;
    bxn_dense dense;
    bxn_packed packed; /* when code_bits != 0 */
    bxn_mm_args mm;
} work;

static void multiply(const work *w)
{
    const uint32_t units = (w->s.cols + BXN_UNIT_COLS - 1) / BXN_UNIT_COLS;
    const int rows = (int)w->s.rows, cols = (int)w->s.cols, tokens = (int)w->s.tokens;
    if (w->blas != NULL && w->s.transposed)
        w->blas(101, 111, 111, tokens, cols, rows, 1.0f, w->mm.x, (int)w->mm.ldx, w->dense.data,
                cols, 0.0f, w->mm.y, (int)w->mm.ldy);
    else if (w->blas != NULL)
        w->blas(101, 111, 112, tokens, rows, cols, 1.0f, w->mm.x, (int)w->mm.ldx, w->dense.data,
                cols, 0.0f, w->mm.y, (int)w->mm.ldy);
    else if (w->packed.code_bits != 0)
        (w->packed.code_bits == 4 ? w->k->mm_t_packed4 : w->k->mm_t_packed8)(&w->packed, 0, units,
                                                                             &w->mm, false);
    else if (w->s.transposed)
        (w->dense.dtype == BXN_F32 ? w->k->mm_t_f32 : w->k->mm_t_bf16)(&w->dense, 0, units, &w->mm,
                                                                       false);
    else
        (w->dense.dtype == BXN_F32   ? w->k->mm_f32
         : w->dense.dtype == BXN_F16 ? w->k->mm_f16
                                     : w->k->mm_bf16)(&w->dense, 0, w->s.rows, &w->mm);
}

static double best(const work *w)
{
    double least = INFINITY, end = bench_now() + SECONDS;
    do {
        double begin = bench_now();
        multiply(w);
        double seconds = bench_now() - begin;
        least = seconds < least ? seconds : least;
    } while (bench_now() < end);
    return least;
}

/* Products of bf16 tiles beside the rate of AMX with operands in the second-level cache. */
static void bench_tiles(const bxn_kernels *k, const char *tier, const char *filter,
                        const uint8_t *buffer)
{
    static const uint32_t counts[] = {16, 128, 512};
    enum { ROWS = 2560, COLS = 2560 };
    if (k->mm_tile4 == NULL || (filter != NULL && strstr("mm_tile4", filter) == NULL))
        return;
    double peak = bench_amx_bf16(1, 1);
    printf("AMX bf16, 1 thread: %.0f GFLOP/s from tiles, %.0f from the second-level cache\n",
           bench_amx_bf16(1, 0) * 1e-9, peak * 1e-9);
    printf("AMX int8, 1 thread: %.0f Gop/s from tiles\n", bench_amx_int8(1, 0) * 1e-9);
    bxn_packed w = {.data = buffer,
                    .rows = ROWS,
                    .cols = COLS,
                    .row_groups = ROWS / 16,
                    .k_units = COLS / 128,
                    .code_bits = 4,
                    .source_bits = 4,
                    .blocks = 2,
                    .has_bias = 1,
                    .center = 8.0f};
    w.unit_bytes = bxn_unit_scale_bytes(&w) + 1024u;
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        const uint32_t count = counts[i];
        float *y = floats((size_t)count * (ROWS + PADDING)), *x = floats((size_t)count / 16 * COLS * 8);
        bxn_mm_args mm = {
            .count = count, .y = y, .ldy = ROWS + PADDING, .xq = x, .ldxq = bxn_tile_bytes(COLS)};
        double least = INFINITY, end = bench_now() + SECONDS;
        do {
            double begin = bench_now();
            k->mm_tile4(&w, 0, w.row_groups, &mm);
            double seconds = bench_now() - begin;
            least = seconds < least ? seconds : least;
        } while (bench_now() < end);
        double speed = 2.0 * ROWS * COLS * count / least;
        printf("mm_tile4       %-10s 1 thread  rows=%u K=%u tokens=%-4u %8.2f GFLOP/s %5.1f %% of "
               "AMX from cache\n",
               tier, ROWS, COLS, count, speed * 1e-9, 100 * speed / peak);
        free(x);
        free(y);
    }
}

void bench_dense_products(const bxn_kernels *k, const char *tier, const char *filter,
                          const uint8_t *buffer, double peak)
{
    static const shape shapes[] = {{2560, 2560, 8, false},   {2560, 2560, 128, false},
                                   {2560, 2560, 512, false}, {2560, 5120, 128, false},
                                   {32, 2560, 128, false},   {2560, 2560, 512, true}};
    static const struct {
        const char *name;
        bxn_dtype dtype;
        uint8_t bits;
        bool transposed;
    } kinds[] = {{"mm_f32", BXN_F32, 0, false},     {"mm_f16", BXN_F16, 0, false},
                 {"mm_bf16", BXN_BF16, 0, false},   {"mm_t_f32", BXN_F32, 0, true},
                 {"mm_t_bf16", BXN_BF16, 0, true},  {"mm_t_packed4", BXN_F32, 4, true},
                 {"mm_t_packed8", BXN_F32, 8, true}};
    if (k->features == 0)
        return;
    bench_tiles(k, tier, filter, buffer);
    void *library = NULL;
    if (filter == NULL || strstr("sgemm", filter) != NULL || strstr("mm_f32", filter) != NULL)
        library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    sgemm blas = NULL;
    if (library != NULL) {
        void *symbol = dlsym(library, "cblas_sgemm");
        memcpy(&blas, &symbol, sizeof blas); /* ISO C has no cast from object to function */
        void (*threads)(int) = NULL;
        symbol = dlsym(library, "openblas_set_num_threads");
        memcpy(&threads, &symbol, sizeof threads);
        if (threads != NULL)
            threads(1);
    }
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        const shape *s = &shapes[i];
        size_t in = s->transposed ? s->rows : s->cols, out = s->transposed ? s->cols : s->rows;
        float *x = floats(s->tokens * (in + PADDING)), *y = floats(s->tokens * (out + PADDING));
        work w = {
            .k = k,
            .s = *s,
            .dense = {buffer, BXN_F32, s->rows, s->cols},
            .mm = {.x = x, .ldx = in + PADDING, .count = s->tokens, .y = y, .ldy = out + PADDING}};
        for (size_t j = 0; j < sizeof kinds / sizeof kinds[0]; j++) {
            if (kinds[j].transposed != s->transposed ||
                (filter != NULL && strstr(kinds[j].name, filter) == NULL))
                continue;
            w.dense.dtype = kinds[j].dtype;
            w.packed = (bxn_packed){.data = buffer,
                                    .rows = s->rows,
                                    .cols = s->cols,
                                    .row_groups = s->rows / 16,
                                    .k_units = s->cols / 128,
                                    .code_bits = kinds[j].bits,
                                    .source_bits = kinds[j].bits,
                                    .blocks = 2,
                                    .has_bias = 1,
                                    .center = 8.0f};
            w.packed.unit_bytes = bxn_unit_scale_bytes(&w.packed) + 256u * kinds[j].bits;
            report(kinds[j].name, tier, s, best(&w), peak);
        }
        if (blas != NULL) {
            w.packed.code_bits = 0;
            w.blas = blas;
            report(s->transposed ? "sgemm, transp." : "sgemm", "openblas", s, best(&w), peak);
        }
        free(x);
        free(y);
    }
    if (library != NULL)
        dlclose(library);
}
