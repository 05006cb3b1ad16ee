/* SPDX-License-Identifier: Apache-2.0 */
/* bench_near.c - the speed of the products with integer activations. Called by
 * checkkern_bench.c for every tier. Each line is the median of five turns, in each of which
 * the limit is measured and then the product: few tokens beside the read bandwidth of memory,
 * many beside the f32 and integer peaks of the tier's vector width. */
#include "checkkern_bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <bitaxon/version.h>

#include "../../bench/peaks.h"
#include "runtime/runtime.h"

#define TURNS 5
#define COLS 2560u

typedef struct near_job {
    const bxn_packed *w;
    bxn_mm_args mm;
    void (*multiply)(const bxn_packed *w, uint32_t begin, uint32_t end, const bxn_mm_args *args);
    unsigned threads;
} near_job;

static void run_near(void *context, unsigned thread)
{
    const near_job *j = context;
    uint32_t groups = j->w->row_groups;
    uint32_t begin = (uint32_t)((uint64_t)groups * thread / j->threads);
    uint32_t end = (uint32_t)((uint64_t)groups * (thread + 1) / j->threads);
    j->multiply(j->w, begin, end, &j->mm);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double values[TURNS])
{
    qsort(values, TURNS, sizeof *values, ascending);
    return values[TURNS / 2];
}

static void *bytes(size_t count)
{
    void *p = aligned_alloc(64, bxn_round_up(count, 64));
    if (p == NULL) {
        perror("checkkern");
        exit(2);
    }
    return p;
}

/* The peaks that a tier's products are held against. */
static bench_peak_kind float_peak(const subject *s)
{
    return s->k->features & BITAXON_CPU_AVX512 ? BENCH_F32_512 : BENCH_F32_256;
}

static bench_peak_kind integer_peak(const subject *s, bool fast)
{
    uint64_t f = s->k->features;
    bench_peak_kind kind = f & BITAXON_CPU_AVX512_VNNI ? BENCH_VNNI16_512
                           : f & BITAXON_CPU_AVX512    ? BENCH_I16_512
                           : f & BITAXON_CPU_AVX_VNNI  ? BENCH_VNNI16_256
                                                       : BENCH_I16_256;
    return fast ? kind + 2 : kind; /* the same of bytes */
}

static void few_tokens(const subject *s, near_job *j, const char *name, const char *what)
{
    const int all = j->threads > 1;
    const double size = (double)j->w->k_units * j->w->unit_bytes * j->w->row_groups;
    double read[TURNS], speed[TURNS];
    for (int i = 0; i < TURNS; i++) {
        read[i] = bench_read(s->buffer, BUFFER_BYTES, j->threads, s->limit.streams[all], 1);
        speed[i] = size / bench_parallel(j->threads, run_near, j);
    }
    double got = median(speed), most = median(read);
    printf("%-9s %-10s %u thread%s %-24s %7.2f GB/s, %5.1f %% of reading at %.2f\n", name, s->tier,
           j->threads, all ? "s" : " ", what, got * 1e-9, 100 * got / most, most * 1e-9);
}

static void many_tokens(const subject *s, near_job *j, bool fast, const char *name,
                        const char *what)
{
    const double work = 2.0 * j->w->rows * COLS * j->mm.count;
    const bench_peak_kind kinds[] = {float_peak(s), integer_peak(s, fast)};
    double peak[2][TURNS], speed[TURNS];
    for (int i = 0; i < TURNS; i++) {
        peak[0][i] = bench_peak(kinds[0], j->threads);
        peak[1][i] = bench_peak(kinds[1], j->threads);
        speed[i] = work / bench_parallel(j->threads, run_near, j);
    }
    double got = median(speed), real = median(peak[0]), whole = median(peak[1]);
    printf("%-9s %-10s %u thread%s %-24s %7.1f GOP/s, %5.1f %% of %s at %.0f, %5.1f %% of %s at "
           "%.0f\n",
           name, s->tier, j->threads, j->threads > 1 ? "s" : " ", what, got * 1e-9,
           real > 0 ? 100 * got / real : 0.0, bench_peak_name(kinds[0]), real * 1e-9,
           whole > 0 ? 100 * got / whole : 0.0, bench_peak_name(kinds[1]), whole * 1e-9);
}

/* Affine or NF4-like with 4 bits, affine with 8; groups of 64, f16 scales. */
static void bench_matrix(const subject *s, uint8_t bits, bool affine, bool fast, uint32_t count,
                         unsigned threads)
{
    char name[16], what[64];
    snprintf(name, sizeof name, "mm_%s%u", fast ? "fast" : "near", bits);
    if (!selected(s, name))
        return;
    bxn_packed w = {.data = s->buffer, .cols = COLS, .k_units = COLS / BXN_UNIT_COLS,
                    .code_bits = bits, .source_bits = bits, .blocks = 2, .has_bias = affine,
                    .center = !affine ? 0.0f : bits == 4 ? 8.0f : 128.0f};
    for (int c = 0; c < 16; c++)
        w.table[c] = affine ? (float)c - 8.0f : 0.12f * (float)c - 0.9f;
    w.unit_bytes = bxn_unit_scale_bytes(&w) + 256u * bits;
    const bool plain = s->k->features == 0, few = count <= 8;
    size_t group_bytes = (size_t)w.k_units * w.unit_bytes;
    w.row_groups = few ? (uint32_t)(BUFFER_BYTES / group_bytes) / (plain ? 16 * count : 1)
                       : (plain ? 4 : 160);
    w.rows = w.row_groups * 16;
    const bxn_xq_kind kind = bxn_xq_kind_of(&w, fast);
    const size_t row_bytes = bxn_xq_bytes(kind, COLS), blocks = COLS / BXN_XQ_BLOCK;
    float *x = floats((size_t)count * COLS), *xscale = floats(count * blocks);
    float *sums = floats(count * (size_t)COLS / 32), *y = floats((size_t)count * w.rows);
    char *xq = bytes(count * row_bytes);
    for (uint32_t m = 0; m < count; m++)
        s->k->quant_x(kind, x + (size_t)m * COLS, COLS, xq + m * row_bytes, xscale + m * blocks);
    near_job j = {.w = &w, .threads = threads,
                  .multiply = fast ? (bits == 4 ? s->k->mm_fast4 : s->k->mm_fast8)
                                   : (bits == 4 ? s->k->mm_near4 : s->k->mm_near8),
                  .mm = {.count = count, .y = y, .ldy = w.rows, .xsum = sums, .ldsum = COLS / 32,
                         .xq = xq, .ldxq = row_bytes, .xscale = xscale, .ldxscale = blocks}};
    snprintf(what, sizeof what, "%s K=%u tokens=%u", affine ? "affine" : "table", COLS, count);
    bench_parallel(threads, run_near, &j); /* pages of y */
    if (few)
        few_tokens(s, &j, name, what);
    else
        many_tokens(s, &j, fast, name, what);
    free(x);
    free(xscale);
    free(sums);
    free(y);
    free(xq);
}

static void bench_quant(const subject *s)
{
    if (!selected(s, "quant_x"))
        return;
    float *x = floats(COLS), xscale[COLS / BXN_XQ_BLOCK];
    void *xq = bytes(bxn_xq_bytes(BXN_XQ_NEAR4, COLS));
    for (int kind = BXN_XQ_NEAR4; kind <= BXN_XQ_FAST_TABLE; kind++) {
        double seconds[TURNS];
        for (int i = 0; i < TURNS; i++) {
            double begin = bench_now();
            for (int n = 0; n < 1000; n++)
                s->k->quant_x((bxn_xq_kind)kind, x, COLS, xq, xscale);
            seconds[i] = bench_now() - begin;
        }
        printf("%-9s %-10s kind %d, 64 values, cached %16.2f ns each\n", "quant_x", s->tier, kind,
               1e9 * median(seconds) / (1000.0 * COLS / BXN_XQ_BLOCK));
    }
    free(x);
    free(xq);
}

void bench_near(const subject *s, unsigned threads)
{
    static const uint32_t counts[] = {1, 2, 4, 8, 128, 512};
    for (int fast = 0; fast < 2; fast++) {
        for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
            bench_matrix(s, 4, true, fast, counts[i], threads);
            bench_matrix(s, 4, false, fast, counts[i], threads);
            bench_matrix(s, 8, true, fast, counts[i], threads);
        }
    }
    if (threads == 1)
        bench_quant(s);
}
