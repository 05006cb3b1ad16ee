/* SPDX-License-Identifier: Apache-2.0 */
/* bench_scan.c - the selective scan of a model with 16 state-space layers of 5120 channels and 16
 * states, on one core, beside two loops that are measured in the same run: the recurrence
 * with everything exponential left out (decays are read, the step is linear, the gate is a
 * product), once as it comes and once with rows fetched ahead; and the scalar loop with
 * expf. Rows lie as a pass over 128 tokens has them. */
#include "checkkern.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <bitaxon/version.h>

#include "runtime/runtime.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define TOKENS 128u
#define CHANNELS 5120u
#define STATES 16u
#define LAYERS 16
#define ROUNDS 9

/* h = a h + dt x B, y = (C h + d x) z, with a given. */
static void free_scalar(const bxn_scan_args *a, uint32_t e, bool ahead)
{
    (void)ahead;
    for (uint32_t c = e; c < e + 16; c++) {
        float h[STATES];
        const size_t base = (size_t)(c / 16) * STATES * 16 + c % 16;
        for (uint32_t n = 0; n < STATES; n++)
            h[n] = a->h_in[base + n * 16];
        for (uint32_t t = 0; t < a->tokens; t++) {
            const float *bcd = a->bcd + t * a->ldbcd;
            float x = a->x[t * a->ldx + c], sum = a->d[c] * x;
            float u = (bcd[2 * STATES] * a->dt_weight[c] + a->dt_bias[c]) * x;
            for (uint32_t n = 0; n < STATES; n++) {
                h[n] = a->a2[base + n * 16] * h[n] + u * bcd[n];
                sum += bcd[STATES + n] * h[n];
            }
            a->y[t * a->ldy + c] = sum * a->z[t * a->ldz + c];
        }
        for (uint32_t n = 0; n < STATES; n++)
            a->h_out[base + n * 16] = h[n];
    }
}

#if defined(__x86_64__)
/* Channels in lanes, states in registers, rows fetched ahead: nothing but the recurrence. */
__attribute__((target("avx2,fma"))) static void free_avx2(const bxn_scan_args *a, uint32_t e,
                                                          bool ahead)
{
    for (uint32_t c = e; c < e + 16; c += 8) {
        __m256 h[STATES];
        const size_t base = (size_t)(c / 16) * STATES * 16 + c % 16;
        for (uint32_t n = 0; n < STATES; n++)
            h[n] = _mm256_loadu_ps(a->h_in + base + n * 16);
        const __m256 w = _mm256_loadu_ps(a->dt_weight + c), b = _mm256_loadu_ps(a->dt_bias + c);
        const __m256 d = _mm256_loadu_ps(a->d + c);
        for (uint32_t t = 0; t < a->tokens; t++) {
            const float *bcd = a->bcd + t * a->ldbcd;
            const uint32_t next = t + 8 < a->tokens ? t + 8 : t;
            if (ahead) {
                _mm_prefetch((const char *)(a->x + next * a->ldx + c), _MM_HINT_T0);
                _mm_prefetch((const char *)(a->z + next * a->ldz + c), _MM_HINT_T0);
                _mm_prefetch((const char *)(a->y + next * a->ldy + c), _MM_HINT_T0);
            }
            __m256 x = _mm256_loadu_ps(a->x + t * a->ldx + c);
            __m256 u = _mm256_mul_ps(_mm256_fmadd_ps(_mm256_set1_ps(bcd[2 * STATES]), w, b), x);
            __m256 sum[2] = {_mm256_mul_ps(d, x), _mm256_setzero_ps()};
#pragma GCC unroll 16
            for (uint32_t n = 0; n < STATES; n++) {
                __m256 added = _mm256_mul_ps(u, _mm256_set1_ps(bcd[n]));
                h[n] = _mm256_fmadd_ps(_mm256_loadu_ps(a->a2 + base + n * 16), h[n], added);
                sum[n & 1] = _mm256_fmadd_ps(_mm256_set1_ps(bcd[STATES + n]), h[n], sum[n & 1]);
            }
            __m256 z = _mm256_loadu_ps(a->z + t * a->ldz + c);
            _mm256_storeu_ps(a->y + t * a->ldy + c,
                             _mm256_mul_ps(_mm256_add_ps(sum[0], sum[1]), z));
        }
        for (uint32_t n = 0; n < STATES; n++)
            _mm256_storeu_ps(a->h_out + base + n * 16, h[n]);
    }
}

__attribute__((target("avx512f"))) static void free_avx512(const bxn_scan_args *a, uint32_t e,
                                                           bool ahead)
{
    __m512 h[STATES];
    const size_t base = (size_t)(e / 16) * STATES * 16;
#pragma GCC unroll 16
    for (uint32_t n = 0; n < STATES; n++)
        h[n] = _mm512_loadu_ps(a->h_in + base + n * 16);
    const __m512 w = _mm512_loadu_ps(a->dt_weight + e), b = _mm512_loadu_ps(a->dt_bias + e);
    const __m512 d = _mm512_loadu_ps(a->d + e);
    for (uint32_t t = 0; t < a->tokens; t++) {
        const float *bcd = a->bcd + t * a->ldbcd;
        const uint32_t next = t + 8 < a->tokens ? t + 8 : t;
        if (ahead) {
            _mm_prefetch((const char *)(a->x + next * a->ldx + e), _MM_HINT_T0);
            _mm_prefetch((const char *)(a->z + next * a->ldz + e), _MM_HINT_T0);
            _mm_prefetch((const char *)(a->y + next * a->ldy + e), _MM_HINT_T0);
        }
        __m512 x = _mm512_loadu_ps(a->x + t * a->ldx + e);
        __m512 u = _mm512_mul_ps(_mm512_fmadd_ps(_mm512_set1_ps(bcd[2 * STATES]), w, b), x);
        __m512 sum[2] = {_mm512_mul_ps(d, x), _mm512_setzero_ps()};
#pragma GCC unroll 16
        for (uint32_t n = 0; n < STATES; n++) {
            __m512 added = _mm512_mul_ps(u, _mm512_set1_ps(bcd[n]));
            h[n] = _mm512_fmadd_ps(_mm512_loadu_ps(a->a2 + base + n * 16), h[n], added);
            sum[n & 1] = _mm512_fmadd_ps(_mm512_set1_ps(bcd[STATES + n]), h[n], sum[n & 1]);
        }
        __m512 z = _mm512_loadu_ps(a->z + t * a->ldz + e);
        _mm512_storeu_ps(a->y + t * a->ldy + e, _mm512_mul_ps(_mm512_add_ps(sum[0], sum[1]), z));
    }
#pragma GCC unroll 16
    for (uint32_t n = 0; n < STATES; n++)
        _mm512_storeu_ps(a->h_out + base + n * 16, h[n]);
}
#endif

/* The scan as a plain program has it: one channel after another, a state's values side by side. */
static void scalar_loop(const bxn_scan_args *a, uint32_t channels)
{
    for (uint32_t e = 0; e < channels; e++) {
        float *h = a->h_out + (size_t)e * STATES;
        const float *rate = a->a2 + (size_t)e * STATES;
        for (uint32_t t = 0; t < a->tokens; t++) {
            const float *bcd = a->bcd + t * a->ldbcd;
            float v = bcd[2 * STATES] * a->dt_weight[e] + a->dt_bias[e];
            float dt = v > 20.0f ? v : log1pf(expf(v)), x = a->x[t * a->ldx + e];
            dt = dt < 1e-4f ? 1e-4f : dt > 100.0f ? 100.0f : dt;
            float sum = a->d[e] * x, z = a->z[t * a->ldz + e];
            for (uint32_t n = 0; n < STATES; n++) {
                h[n] = expf(dt * rate[n]) * h[n] + dt * x * bcd[n];
                sum += bcd[STATES + n] * h[n];
            }
            a->y[t * a->ldy + e] = sum * (z / (1.0f + expf(-z)));
        }
    }
}

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

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t count)
{
    qsort(values, count, sizeof *values, by_value);
    return values[count / 2];
}

void bench_scan(const bxn_kernels *k, const char *tier)
{
    bxn_scan_args a = {.tokens = TOKENS,
                       .states = STATES,
                       .ldx = CHANNELS,
                       .ldz = 2 * CHANNELS,
                       .ldbcd = 128,
                       .ldy = CHANNELS};
    float *x = filled(TOKENS * a.ldx, -1, 1), *z = filled(TOKENS * a.ldz, -2, 2);
    float *bcd = filled(TOKENS * a.ldbcd, -1, 1), *p = filled(3 * CHANNELS, -3, 0);
    float *a2 = filled(CHANNELS * STATES, -1, 0), *h = filled(CHANNELS * STATES, 0, 0);
    float *decay = filled(CHANNELS * STATES, 0, 1), *y = filled(TOKENS * a.ldy, 0, 0);
    for (size_t i = 0; i < CHANNELS * STATES; i++)
        a2[i] = -1.442695f * (float)(1 + i / 16 % 16);
    a.a2 = a2;
    a.x = x;
    a.z = z;
    a.bcd = bcd;
    a.dt_weight = p;
    a.dt_bias = p + CHANNELS;
    a.d = p + 2 * CHANNELS;
    a.h_in = a.h_out = h;
    a.y = y;
    void (*without)(const bxn_scan_args *, uint32_t, bool) = free_scalar;
#if defined(__x86_64__)
    if (k->features & BITAXON_CPU_AVX512)
        without = free_avx512;
    else if (k->features & BITAXON_CPU_AVX2)
        without = free_avx2;
#endif
    const uint32_t channels = k->features == 0 ? 256 : CHANNELS, scalar_channels = 128;
    const double units = TOKENS * (channels / 16.0),
                 scalar_units = TOKENS * (scalar_channels / 16.0);
    double full[ROUNDS], bare[2][ROUNDS], scalar[ROUNDS];
    for (int i = 0; i < ROUNDS; i++) { /* in turn, so that all see the same clock */
        a.end = channels;
        double t0 = now_ns();
        k->scan(&a);
        full[i] = (now_ns() - t0) / units;
        a.a2 = decay;
        for (int ahead = 0; ahead < 2; ahead++) {
            t0 = now_ns();
            for (uint32_t e = 0; e < channels; e += 16)
                without(&a, e, ahead);
            bare[ahead][i] = (now_ns() - t0) / units;
        }
        a.a2 = a2;
        t0 = now_ns();
        scalar_loop(&a, scalar_channels);
        scalar[i] = (now_ns() - t0) / scalar_units;
    }
    double ns = median(full, ROUNDS), slow = median(scalar, ROUNDS);
    double free_ns = median(bare[0], ROUNDS), ahead_ns = median(bare[1], ROUNDS);
    const double per_token = LAYERS * (CHANNELS / 16.0) * 1e-9;
    printf("scan 16 x 16 x 1  %-7s %.1f ns; without exponentials %.1f ns, %.1f with rows fetched "
           "ahead; scalar loop %.0f ns\n",
           tier, ns, free_ns, ahead_ns, slow);
    printf("scan %d layers    %-7s one core: %.0f tokens/s = %.2f of the recurrence without "
           "exponentials (%.2f with rows fetched ahead), %.1f x the scalar loop\n",
           LAYERS, tier, 1 / (ns * per_token), free_ns / ns, ahead_ns / ns, slow / ns);
    float *all[] = {x, z, bcd, p, a2, h, decay, y};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
}

static double least(const double *values, size_t count)
{
    double best = values[0];
    for (size_t i = 1; i < count; i++)
        best = values[i] < best ? values[i] : best;
    return best;
}

/* Gradients through TOKENS tokens as the op takes them: blocks of 128 channels, chunk after chunk from the
 * last. With states at chunk starts given; the scan that finds them is measured beside. */
void bench_scan_backward(const bxn_kernels *k, const char *tier)
{
    const uint32_t channels = k->features == 0 ? 256 : CHANNELS, width = 2 * STATES + 1;
    float *x = filled(TOKENS * CHANNELS, -1, 1), *z = filled(2 * TOKENS * CHANNELS, -2, 2);
    float *dy = filled(TOKENS * CHANNELS, -1, 1), *bcd = filled(TOKENS * 128, -1, 1);
    float *p = filled(3 * CHANNELS, -3, 0), *a2 = filled(CHANNELS * STATES, -1, 0);
    float *h = filled(CHANNELS * STATES, -1, 1), *carry = filled(CHANNELS * STATES, 0, 0);
    float *scratch = filled(bxn_scan_backward_floats(STATES), 0, 0), *dbcd = filled(TOKENS * width, 0, 0);
    float *dx = filled(TOKENS * CHANNELS, 0, 0), *dz = filled(2 * TOKENS * CHANNELS, 0, 0);
    float *grads = filled(CHANNELS * (STATES + 3), 0, 0);
    for (size_t i = 0; i < CHANNELS * STATES; i++)
        a2[i] = -1.442695f * (float)(1 + i / 16 % 16);
    bxn_scan_args f = {TOKENS, 0, channels, STATES, x, CHANNELS, z, 2 * CHANNELS, bcd, 128,
                       p, p + CHANNELS, a2, p + 2 * CHANNELS, h, carry, dx, CHANNELS};
    const double units = TOKENS * (channels / 16.0);
    double times[3][ROUNDS];
    for (int i = 0; i < ROUNDS; i++) {
        double t0 = now_ns();
        k->scan(&f);
        times[0][i] = (now_ns() - t0) / units;
        for (int full = 0; full < 2; full++) {
            t0 = now_ns();
            for (uint32_t e = 0; e < channels; e += 128) {
                for (uint32_t t = TOKENS; t > 0;) {
                    t -= BXN_SCAN_CHUNK;
                    bxn_scan_backward_args a = {
                        .tokens = BXN_SCAN_CHUNK, .begin = e, .end = e + 128, .states = STATES,
                        .x = x + t * CHANNELS, .ldx = CHANNELS,
                        .z = z + 2 * t * CHANNELS, .ldz = 2 * CHANNELS,
                        .bcd = bcd + t * 128, .ldbcd = 128,
                        .dt_weight = p, .dt_bias = p + CHANNELS, .a2 = a2, .d = p + 2 * CHANNELS,
                        .h_in = h, .carry = carry, .dy = dy + t * CHANNELS, .lddy = CHANNELS,
                        .dx = dx + t * CHANNELS, .lddx = CHANNELS,
                        .dz = dz + 2 * t * CHANNELS, .lddz = 2 * CHANNELS,
                        .dbcd = dbcd + t * width, .lddbcd = width, .scratch = scratch};
                    if (full) {
                        a.da_log = grads;
                        a.ddt_weight = grads + CHANNELS * STATES;
                        a.ddt_bias = a.ddt_weight + CHANNELS;
                        a.dd = a.ddt_bias + CHANNELS;
                    }
                    k->scan_backward(&a);
                }
            }
            times[1 + full][i] = (now_ns() - t0) / units;
        }
    }
    double forward = least(times[0], ROUNDS), frozen = least(times[1], ROUNDS), all = least(times[2], ROUNDS);
    printf("scan_backward     %-7s %.1f ns = %.2f x the scan, with gradients of vectors %.1f ns = %.2f x\n",
           tier, frozen, frozen / forward, all, all / forward);
    float *buffers[] = {x, z, dy, bcd, p, a2, h, carry, scratch, dbcd, dx, dz, grads};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        free(buffers[i]);
}
