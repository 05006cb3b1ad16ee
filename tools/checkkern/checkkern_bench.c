/* SPDX-License-Identifier: Apache-2.0 */
/* checkkern_bench.c - the speed of every kernel beside the read bandwidth and the f32 peak
 * that the machine shows in the same run. Shapes are those of a model of hidden size 2560
 * with state-space width 5120. Weights of one-token products come from memory: the buffer
 * is far larger than the cache. */
#include "checkkern_bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/runtime.h"

#define REPEATS 4
#define FILL 0x2E /* bytes of every buffer: f16 0.097, f32 4e-11, codes 14 and 2 */

/* One measured job: bytes or operations of all threads together. */
typedef struct job {
    const subject *s;
    unsigned threads;
    const void *matrix;
    uint32_t parts; /* row groups or rows, split over the threads */
    int kind;
    bxn_mm_args mm;
    float *scratch[BENCH_MAX_THREADS];
    uint32_t tokens;
} job;

bool selected(const subject *s, const char *name)
{
    return s->filter == NULL || strstr(name, s->filter) != NULL;
}

static double best_seconds(job *j, void (*fn)(void *context, unsigned thread))
{
    double best = INFINITY;
    for (int i = 0; i < REPEATS; i++) {
        double seconds = bench_parallel(j->threads, fn, j);
        best = seconds > 0.0 && seconds < best ? seconds : best;
    }
    return best;
}

static void print_bytes(const job *j, const char *name, const char *what, double bytes,
                        double seconds)
{
    double speed = bytes / seconds;
    printf("%-14s %-7s %u thread%s %-34s %8.2f GB/s   %5.1f %% of read bandwidth\n", name,
           j->s->tier, j->threads, j->threads > 1 ? "s" : " ", what, speed * 1e-9,
           100 * speed / j->s->limit.read[j->threads > 1]);
}

static void print_flops(const job *j, const char *name, const char *what, double flops,
                        double seconds)
{
    double speed = flops / seconds;
    printf("%-14s %-7s %u thread%s %-34s %8.2f GFLOP/s %5.1f %% of f32 peak\n", name, j->s->tier,
           j->threads, j->threads > 1 ? "s" : " ", what, speed * 1e-9,
           100 * speed / j->s->limit.peak[j->threads > 1]);
}

static void print_time(const job *j, const char *name, const char *what, double units,
                       double seconds)
{
    printf("%-14s %-7s %u thread%s %-34s %8.2f ns each\n", name, j->s->tier, j->threads,
           j->threads > 1 ? "s" : " ", what, 1e9 * seconds / units);
}

float *floats(size_t count)
{
    float *x = aligned_alloc(64, bxn_round_up(count * sizeof *x, 64));
    if (x == NULL) {
        perror("checkkern");
        exit(2);
    }
    for (size_t i = 0; i < count; i++)
        x[i] = 0.01f * (float)(i % 17) - 0.08f;
    return x;
}

/* ---- products ---------------------------------------------------------------------------- */

static void run_product(void *context, unsigned thread)
{
    job *j = context;
    const bxn_kernels *k = j->s->k;
    uint32_t begin = (uint32_t)((uint64_t)j->parts * thread / j->threads);
    uint32_t end = (uint32_t)((uint64_t)j->parts * (thread + 1) / j->threads);
    switch (j->kind) {
    case 4:
        k->mm_packed4(j->matrix, begin, end, &j->mm);
        break;
    case 8:
        k->mm_packed8(j->matrix, begin, end, &j->mm);
        break;
    case BXN_F16 + 100:
        k->mm_f16(j->matrix, begin, end, &j->mm);
        break;
    case BXN_BF16 + 100:
        k->mm_bf16(j->matrix, begin, end, &j->mm);
        break;
    default:
        k->mm_f32(j->matrix, begin, end, &j->mm);
        break;
    }
}

static void bench_packed(const subject *s, uint8_t bits, bool affine, uint32_t cols, uint32_t count,
                         unsigned threads)
{
    const char *name = bits == 4 ? "mm_packed4" : "mm_packed8";
    if (!selected(s, name))
        return;
    bxn_packed w = {.data = s->buffer,
                    .cols = cols,
                    .k_units = (cols + 127) / 128,
                    .code_bits = bits,
                    .source_bits = bits,
                    .blocks = 2,
                    .has_bias = affine,
                    .center = affine ? 8.0f : 0.0f};
    for (int c = 0; c < 16; c++)
        w.table[c] = affine ? (float)c - 8.0f : 0.13f * (float)c - 1.0f + 0.001f * (float)(c * c);
    w.unit_bytes = bxn_unit_scale_bytes(&w) + 256u * bits;
    size_t group_bytes = (size_t)w.k_units * w.unit_bytes;
    bool plain = s->k->features == 0;
    w.row_groups =
        count == 1 ? (uint32_t)(BUFFER_BYTES / group_bytes) / (plain ? 16 : 1) : (plain ? 8 : 160);
    w.rows = w.row_groups * 16;
    float *x = floats(count * (size_t)w.k_units * 128), *y = floats(count * (size_t)w.rows);
    float *sums = floats(count * (size_t)w.k_units * 4);
    job j = {
        .s = s,
        .threads = threads,
        .matrix = &w,
        .parts = w.row_groups,
        .kind = bits,
        .mm = {x, w.k_units * 128u, NULL, count, y, w.rows, affine ? sums : NULL, w.k_units * 4u}};
    double seconds = best_seconds(&j, run_product);
    char what[64];
    snprintf(what, sizeof what, "%s K=%u tokens=%u", affine ? "affine" : "table", cols, count);
    if (count == 1)
        print_bytes(&j, name, what, (double)group_bytes * w.row_groups, seconds);
    else
        print_flops(&j, name, what, 2.0 * w.rows * cols * count, seconds);
    free(x);
    free(y);
    free(sums);
}

static void bench_dense(const subject *s, bxn_dtype dtype, uint32_t count, unsigned threads)
{
    const char *name = dtype == BXN_F32 ? "mm_f32" : dtype == BXN_F16 ? "mm_f16" : "mm_bf16";
    if (!selected(s, name))
        return;
    const uint32_t cols = 2560;
    const size_t row_bytes = cols * (dtype == BXN_F32 ? 4u : 2u);
    bool plain = s->k->features == 0;
    uint32_t rows =
        count == 1 ? (uint32_t)(BUFFER_BYTES / row_bytes) / (plain ? 16 : 1) : (plain ? 64 : 2560);
    bxn_dense w = {s->buffer, dtype, rows, cols};
    float *x = floats(count * (size_t)cols), *y = floats(count * (size_t)rows);
    job j = {.s = s,
             .threads = threads,
             .matrix = &w,
             .parts = rows,
             .kind = 100 + (int)dtype,
             .mm = {x, cols, NULL, count, y, rows, NULL, 0}};
    double seconds = best_seconds(&j, run_product);
    char what[64];
    snprintf(what, sizeof what, "K=%u tokens=%u", cols, count);
    if (count == 1)
        print_bytes(&j, name, what, (double)row_bytes * rows, seconds);
    else
        print_flops(&j, name, what, 2.0 * rows * cols * count, seconds);
    free(x);
    free(y);
}

/* ---- state space ----------------------------------------------------------------------------- */

#define CHANNELS 5120u
#define STATES 16u
#define TOKENS 64u

static void run_scan(void *context, unsigned thread)
{
    job *j = context;
    (void)thread;
    float *f = j->scratch[0];
    bxn_scan_args a = {.tokens = TOKENS,
                       .begin = 0,
                       .end = CHANNELS,
                       .states = STATES,
                       .x = f,
                       .ldx = CHANNELS,
                       .z = f + TOKENS * CHANNELS,
                       .ldz = CHANNELS,
                       .bcd = f,
                       .ldbcd = 48,
                       .dt_weight = f,
                       .dt_bias = f,
                       .d = f,
                       .h_in = j->scratch[1],
                       .h_out = j->scratch[1],
                       .a2 = j->scratch[2],
                       .y = f + 2 * TOKENS * CHANNELS,
                       .ldy = CHANNELS};
    j->s->k->scan(&a);
}

static void run_conv(void *context, unsigned thread)
{
    job *j = context;
    (void)thread;
    float *f = j->scratch[0];
    bxn_conv_args a = {.tokens = TOKENS,
                       .begin = 0,
                       .end = CHANNELS,
                       .taps = 4,
                       .x = f,
                       .ldx = CHANNELS,
                       .tail = j->scratch[1],
                       .weight = j->scratch[2],
                       .bias = j->scratch[1],
                       .e16 = CHANNELS,
                       .y = f + 2 * TOKENS * CHANNELS,
                       .ldy = CHANNELS};
    j->s->k->conv_silu(&a);
}

static void bench_state(const subject *s)
{
    job j = {.s = s, .threads = 1};
    j.scratch[0] = floats(3 * TOKENS * CHANNELS);
    j.scratch[1] = floats(CHANNELS * STATES);
    j.scratch[2] = floats(CHANNELS * STATES);
    for (size_t i = 0; i < CHANNELS * STATES; i++)
        j.scratch[2][i] = -1.44f * (float)(1 + i / 16 % 16);
    if (selected(s, "scan")) {
        double seconds = best_seconds(&j, run_scan);
        print_time(&j, "scan", "16 channels x 16 states x 1 token", TOKENS * CHANNELS / 16.0,
                   seconds);
    }
    if (selected(s, "conv_silu")) {
        double seconds = best_seconds(&j, run_conv);
        print_time(&j, "conv_silu", "16 channels x 4 taps x 1 token", TOKENS * CHANNELS / 16.0,
                   seconds);
    }
    for (int i = 0; i < 3; i++)
        free(j.scratch[i]);
}

/* ---- attention ---------------------------------------------------------------------------------
 */

#define HEADS 32u
#define HEAD_DIM 80u
#define WINDOW 4096u

/* Heads of one layer after another over distinct memory: one query each, as a decoder reads
 * them, or 128 queries of a head in turn, as a tile of a prompt does. */
static void run_attention(void *context, unsigned thread)
{
    job *j = context;
    static const size_t twice[] = {0, 4, 8, 2, 1}; /* bytes of two values */
    const size_t region = BXN_PAGE * HEAD_DIM * twice[j->kind] / 2 + (j->kind > BXN_KV_F32 ? 256 : 0);
    /* pages are allocations of their own: not a power of two apart */
    const size_t page_bytes = 2 * region * HEADS + 4096 + 64;
    const void *pages[WINDOW / BXN_PAGE + 3];
    const size_t layer_bytes = page_bytes * (WINDOW / BXN_PAGE);
    const bxn_kernels *k = j->s->k;
    void (*const entry[])(const bxn_attention_args *) = {NULL, k->attention_f16, k->attention_f32, k->attention_i8,
                                                         k->attention_q4};
    for (uint32_t layer = 0; layer < j->parts; layer++) {
        for (size_t p = 0; p < WINDOW / BXN_PAGE + 3; p++)
            pages[p] = j->s->buffer + layer * layer_bytes + p % (WINDOW / BXN_PAGE) * page_bytes;
        for (uint32_t h = HEADS * thread / j->threads; h < HEADS * (thread + 1) / j->threads; h++) {
            for (uint32_t done = 0; done < j->tokens; done += BXN_QUERIES) {
                bxn_attention_args a = {.q = j->mm.x,
                                        .ldq = HEADS * HEAD_DIM,
                                        .scale = 0.11f,
                                        .count = j->tokens - done < BXN_QUERIES ? j->tokens - done : BXN_QUERIES,
                                        .head_dim = HEAD_DIM,
                                        .position = WINDOW - 1 + done,
                                        .window = WINDOW,
                                        .pages = pages,
                                        .first_page = 0,
                                        .k_offset = h * 2 * region,
                                        .v_offset = (h * 2 + 1) * region,
                                        .scratch = j->scratch[thread],
                                        .part = BXN_ALL_PARTS,
                                        .out = j->mm.y + thread * BXN_QUERIES * HEAD_DIM,
                                        .ldout = HEAD_DIM};
                entry[j->kind](&a);
            }
        }
    }
}

static void bench_attention(const subject *s, bxn_kv_type type, uint32_t queries, unsigned threads)
{
    static const char *const names[] = {"", "attention_f16", "attention_f32", "attention_i8", "attention_q4"};
    static const double bytes_of[] = {0, 2, 4, 1.05, 0.55};
    const char *name = names[type];
    if (!selected(s, name))
        return;
    const double bytes = 2.0 * HEADS * HEAD_DIM * WINDOW * bytes_of[type];
    float *q = floats((size_t)BXN_QUERIES * HEADS * HEAD_DIM);
    float *out = floats((size_t)threads * BXN_QUERIES * HEAD_DIM);
    job j = {.s = s,
             .threads = threads,
             .kind = (int)type,
             .tokens = queries,
             .mm = {.x = q, .y = out},
             .parts = s->k->features == 0 || queries > 1 ? 1 : (uint32_t)((double)BUFFER_BYTES / bytes) - 1};
    for (unsigned t = 0; t < threads; t++)
        j.scratch[t] = floats(bxn_attention_scratch(HEAD_DIM));
    double seconds = best_seconds(&j, run_attention);
    char what[64];
    snprintf(what, sizeof what, "32 x 80, window 4096, queries=%u", queries);
    if (queries > 1)
        print_flops(&j, name, what, 4.0 * HEADS * HEAD_DIM * WINDOW * queries * j.parts, seconds);
    else
        print_bytes(&j, name, what, bytes * j.parts, seconds);
    for (unsigned t = 0; t < threads; t++)
        free(j.scratch[t]);
    free(q);
    free(out);
}

/* ---- elementwise ------------------------------------------------------------------------------------- */

#define LENGTH 2560u
#define CALLS 2000u

static void run_elementwise(void *context, unsigned thread)
{
    job *j = context;
    const bxn_kernels *k = j->s->k;
    float *x = j->scratch[0], *y = j->scratch[1];
    (void)thread;
    for (unsigned i = 0; i < CALLS; i++) {
        switch (j->kind) {
        case 0:
            k->block_sums(x, LENGTH / 32, y);
            break;
        case 1:
            k->rmsnorm(x, x, LENGTH, 1e-6f, y);
            break;
        case 2:
            k->add(y, x, LENGTH);
            break;
        case 3:
            k->scale_add(y, x, 1e-3f, LENGTH);
            break;
        case 4:
            k->silu_mul(y, x, LENGTH);
            break;
        default:
            k->to_f16(x, LENGTH, (uint16_t *)(void *)y);
            break;
        }
    }
}

static void bench_elementwise(const subject *s)
{
    static const char *const names[] = {"block_sums", "rmsnorm",  "add",
                                        "scale_add",  "silu_mul", "to_f16"};
    job j = {.s = s, .threads = 1, .scratch = {floats(LENGTH), floats(LENGTH)}};
    for (j.kind = 0; j.kind < 6; j.kind++)
        if (selected(s, names[j.kind]))
            print_time(&j, names[j.kind], "16 values, cached", CALLS * LENGTH / 16.0,
                       best_seconds(&j, run_elementwise));
    free(j.scratch[0]);
    free(j.scratch[1]);
}

int bench_kernels(const bxn_kernels *tables, const char *const *names, size_t count,
                  const char *filter)
{
    subject s = {.filter = filter};
    uint32_t cpus = bxn_cpu_count();
    s.limit.threads = cpus < BENCH_MAX_THREADS ? cpus : BENCH_MAX_THREADS;
    s.buffer = aligned_alloc((size_t)2 << 20, BUFFER_BYTES);
    if (s.buffer == NULL) {
        perror("checkkern: bench buffer");
        return 1;
    }
    memset(s.buffer, FILL, BUFFER_BYTES);
    uint64_t saved = bxn_float_enter();
    for (int all = 0; all < (s.limit.threads > 1 ? 2 : 1); all++) {
        unsigned threads = all ? s.limit.threads : 1;
        for (unsigned streams = 1; streams <= 8; streams *= 2) {
            double speed = bench_read(s.buffer, BUFFER_BYTES, threads, streams, 3);
            printf("read bandwidth, %u thread%s, %u stream%s: %.2f GB/s\n", threads,
                   threads > 1 ? "s" : "", streams, streams > 1 ? "s" : "", speed * 1e-9);
            if (speed > s.limit.read[all]) {
                s.limit.read[all] = speed;
                s.limit.streams[all] = streams;
            }
        }
        s.limit.peak[all] = bench_fma(threads);
        printf("f32 fused multiply-add, %u thread%s: %.1f GFLOP/s\n", threads,
               threads > 1 ? "s" : "", s.limit.peak[all] * 1e-9);
    }
    for (size_t t = 0; t < count; t++) {
        s.k = &tables[t];
        s.tier = names[t];
        for (int all = 0; all < (s.limit.threads > 1 ? 2 : 1); all++) {
            unsigned threads = all ? s.limit.threads : 1;
            bench_packed(&s, 4, true, 2560, 1, threads);
            bench_packed(&s, 4, false, 2560, 1, threads);
            bench_packed(&s, 8, true, 2560, 1, threads);
            bench_dense(&s, BXN_F32, 1, threads);
            bench_dense(&s, BXN_F16, 1, threads);
            bench_dense(&s, BXN_BF16, 1, threads);
            for (bxn_kv_type type = BXN_KV_F16; type <= BXN_KV_Q4; type++)
                bench_attention(&s, type, 1, threads);
            bench_near(&s, threads);
        }
        bench_packed(&s, 4, true, 2560, 2, 1);
        bench_packed(&s, 4, true, 2560, 8, 1);
        bench_packed(&s, 4, true, 2560, 128, 1);
        bench_packed(&s, 4, false, 2560, 128, 1);
        bench_packed(&s, 4, true, 5120, 128, 1);
        bench_packed(&s, 8, true, 2560, 128, 1);
        bench_dense_products(s.k, s.tier, filter, s.buffer, s.limit.peak[0]);
        bench_outer_products(s.k, s.tier, filter, s.limit.peak[0]);
        for (bxn_kv_type type = BXN_KV_F16; s.k->features != 0 && type <= BXN_KV_Q4; type++)
            bench_attention(&s, type, 128, 1);
        bench_attention_train(s.k, s.tier, filter, s.limit.peak[0]);
        bench_state(&s);
        if (selected(&s, "scan")) {
            bench_scan(s.k, s.tier);
            bench_chunked(s.k, s.tier);
        }
        if (selected(&s, "scan_backward"))
            bench_scan_backward(s.k, s.tier);
        bench_elementwise(&s);
    }
    bxn_float_leave(saved);
    free(s.buffer);
    return 0;
}
