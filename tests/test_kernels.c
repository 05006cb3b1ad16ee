/* SPDX-License-Identifier: Apache-2.0 */
/* test_kernels.c - the properties of the kernel table that everything above relies on, for
 * every tier of this processor: values against double precision, accuracy of the
 * exponentials, and equal bits however the work is cut. checkkern checks the same entries
 * in guarded memory and at many more sizes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <bitaxon/version.h>

#include "kernels/kernels.h"
#include "runtime/runtime.h"

#if defined(__aarch64__)
#define TIERS 4
#else
#define TIERS 3
#endif
static bxn_kernels tiers[TIERS];
static size_t tier_count;

static int set_up(void **state)
{
    (void)state;
#if defined(__aarch64__)
    const uint64_t dotprod = BITAXON_CPU_NEON | BITAXON_CPU_NEON_DOTPROD;
    const uint64_t features[TIERS] = {0, BITAXON_CPU_NEON, dotprod,
                                      dotprod | BITAXON_CPU_NEON_I8MM};
#else
    static const uint64_t features[TIERS] = {0, BITAXON_CPU_AVX2,
                                             BITAXON_CPU_AVX2 | BITAXON_CPU_AVX512};
#endif
    uint64_t detected = bxn_cpu_detect();
    tier_count = 0;
    for (size_t i = 0; i < TIERS; i++)
        if ((detected & features[i]) == features[i])
            bxn_kernels_init(&tiers[tier_count++], features[i]);
    return 0;
}

static uint64_t seed = 1;

static float uniform(float low, float high)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return low + (high - low) * (float)(seed >> 40) * 0x1p-24f;
}

static float *randoms(size_t n, float low, float high)
{
    float *x = aligned_alloc(64, bxn_round_up(n * sizeof *x + 1, 64));
    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = uniform(low, high);
    return x;
}

/* ---- choosing ------------------------------------------------------------------------ */

static void test_choice(void **state)
{
    (void)state;
    bxn_kernels k, all;
    bxn_kernels_init(&k, 0);
    assert_true(k.features == 0);
    assert_string_equal(bxn_kernels_name(0), "c");
    bxn_kernels_init(&all, UINT64_MAX);
#if defined(__x86_64__)
    const uint64_t both = BITAXON_CPU_AVX2 | BITAXON_CPU_AVX512; /* what lies above is the compiler's */
    assert_true((all.features & both) == both && (all.features & BITAXON_CPU_NEON) == 0);
    assert_true((all.mm_tile4 != NULL) == ((all.features & BITAXON_CPU_AMX) != 0));
    assert_true(k.mm_tile4 == NULL && k.mm_tile8 == NULL && k.quant_bf16 == NULL);
    assert_string_equal(bxn_kernels_name(BITAXON_CPU_AVX2), "c avx2");
    assert_string_equal(bxn_kernels_name(both), "c avx2 avx512");
    assert_true(all.scan != k.scan);
    bxn_kernels_init(&all, BITAXON_CPU_AVX512); /* stands upon AVX2 */
    assert_true(all.features == 0 && all.scan == k.scan);
    if (bxn_cpu_detect() & BITAXON_CPU_AVX512)
        assert_true(bxn_cpu_detect() & BITAXON_CPU_AVX2);
#elif defined(__aarch64__)
    const uint64_t neon = BITAXON_CPU_NEON, dotprod = neon | BITAXON_CPU_NEON_DOTPROD;
    assert_true(all.features == (dotprod | BITAXON_CPU_NEON_I8MM));
    assert_string_equal(bxn_kernels_name(UINT64_MAX), "c neon dotprod i8mm");
    assert_string_equal(bxn_kernels_name(dotprod), "c neon dotprod");
    assert_string_equal(bxn_kernels_name(neon | BITAXON_CPU_NEON_I8MM), "c neon");
    assert_string_equal(bxn_kernels_name(BITAXON_CPU_AVX2), "c");
    assert_true(all.scan != k.scan && all.mm_near4 != k.mm_near4);
    bxn_kernels_init(&all, BITAXON_CPU_NEON_DOTPROD); /* stands upon NEON */
    assert_true(all.features == 0 && all.mm_near4 == k.mm_near4);
    bxn_kernels_init(&all, neon | BITAXON_CPU_NEON_I8MM); /* stands upon both */
    assert_true(all.features == neon);
    assert_true(bxn_cpu_detect() & BITAXON_CPU_NEON);
#else
    assert_true(all.features == 0 && all.scan == k.scan);
#endif
}

/* ---- exponentials ------------------------------------------------------------------------ */

static double relative(double got, double want)
{
    return fabs(got - want) / fabs(want);
}

/* exp2 is seen through the scan: dt is clipped to exactly 100, x is 0, so the state is
 * multiplied by exp2(100 * a2) alone. A tier may round the product first or not. */
static void test_exp2(void **state)
{
    (void)state;
    enum { E = 1024, N = 16 };
    float *a2 = randoms(E * N, 0, 0), *h = randoms(E * N, 0, 0), *zero = randoms(E, 0, 0);
    float *one = randoms(E * N, 1, 1), *bias = randoms(E, 1000, 1000), *y = randoms(E, 0, 0);
    float bcd[2 * N + 1] = {0};
    for (size_t t = 0; t < tier_count; t++) {
        double worst = 0;
        for (int round = 0; round < 60; round++) {
            for (size_t i = 0; i < E * N; i++) {
                float size = round % 3 == 0 ? 1.25f : round % 3 == 1 ? 0.01f : 1e-6f;
                a2[i] = -uniform(0.0f, size);
            }
            bxn_scan_args a = {.tokens = 1,
                               .begin = 0,
                               .end = E,
                               .states = N,
                               .x = zero,
                               .ldx = E,
                               .z = zero,
                               .ldz = E,
                               .bcd = bcd,
                               .ldbcd = 2 * N + 1,
                               .dt_weight = zero,
                               .dt_bias = bias,
                               .a2 = a2,
                               .d = zero,
                               .h_in = one,
                               .h_out = h,
                               .y = y,
                               .ldy = E};
            tiers[t].scan(&a);
            for (size_t i = 0; i < E * N; i++) {
                float power = 100.0f * a2[i];
                double error = relative((double)h[i], exp2((double)power));
                double other = relative((double)h[i], exp2(100.0 * (double)a2[i]));
                error = other < error ? other : error;
                worst = error > worst ? error : worst;
            }
        }
        assert_true(worst < 2e-7);
        /* ends: exactly 1 at 0, exactly 0 far below, never more than 1 */
        const float ends[] = {-0.0f, 0.0f, -1e-12f, -0.01f, -2.0f, -1e30f, -3e38f, -1.2599f};
        for (size_t i = 0; i < E * N; i++)
            a2[i] = ends[i / 16 % 8];
        bxn_scan_args a = {.tokens = 1,
                           .begin = 0,
                           .end = 16,
                           .states = 8,
                           .x = zero,
                           .ldx = E,
                           .z = zero,
                           .ldz = E,
                           .bcd = bcd,
                           .ldbcd = 17,
                           .dt_weight = zero,
                           .dt_bias = bias,
                           .a2 = a2,
                           .d = zero,
                           .h_in = one,
                           .h_out = h,
                           .y = y,
                           .ldy = E};
        tiers[t].scan(&a);
        const float wanted[] = {1.0f, 1.0f, 1.0f, 0.5f, 0.0f, 0.0f, 0.0f};
        for (size_t i = 0; i < 7; i++)
            assert_true(h[i * 16] == wanted[i]);
        assert_true(h[7 * 16] > 0.0f && h[7 * 16] < 0x1p-125f);
    }
    free(a2);
    free(h);
    free(zero);
    free(one);
    free(bias);
    free(y);
}

/* softplus is seen as the state that x = B = 1 adds to nothing: dt. */
static void test_softplus(void **state)
{
    (void)state;
    enum { E = 16384 };
    float *zero = randoms(E, 0, 0), *one = randoms(E, 1, 1), *h = randoms(E, 0, 0);
    float *y = randoms(E, 0, 0);
    const float bcd[3] = {1.0f, 0.0f, 0.0f};
    for (size_t t = 0; t < tier_count; t++) {
        double worst = 0;
        for (int round = 0; round < 20; round++) {
            float *v = randoms(E, round & 1 ? -9.2f : -3.0f, round & 2 ? 99.0f : 3.0f);
            v[0] = 1000.0f;
            v[1] = -1000.0f;
            v[2] = INFINITY;
            v[3] = -INFINITY;
            v[4] = NAN;
            v[5] = 3e38f;
            v[6] = 64.0f;
            bxn_scan_args a = {.tokens = 1,
                               .begin = 0,
                               .end = E,
                               .states = 1,
                               .x = one,
                               .ldx = E,
                               .z = one,
                               .ldz = E,
                               .bcd = bcd,
                               .ldbcd = 3,
                               .dt_weight = zero,
                               .dt_bias = v,
                               .a2 = zero,
                               .d = zero,
                               .h_in = zero,
                               .h_out = h,
                               .y = y,
                               .ldy = E};
            tiers[t].scan(&a);
            assert_true(h[0] == 100.0f && h[1] == 1e-4f && h[2] == 100.0f && h[3] == 1e-4f);
            assert_true(isnan(h[4]) && h[5] == 100.0f && h[6] == 64.0f);
            for (size_t i = 7; i < E; i++) {
                double want = log1p(exp((double)v[i]));
                want = want < 1e-4 ? (double)1e-4f : want > 100 ? 100 : want;
                double error = relative((double)h[i], want);
                worst = error > worst ? error : worst;
            }
            free(v);
        }
        assert_true(worst < 4e-7);
    }
    free(zero);
    free(one);
    free(h);
    free(y);
}

static void test_sigmoid(void **state)
{
    (void)state;
    enum { N = 1 << 16 };
    float *one = randoms(N, 1, 1), *x = randoms(N, 0, 0), *y = randoms(N, 0, 0);
    for (size_t t = 0; t < tier_count; t++) {
        double worst = 0;
        for (int round = 0; round < 12; round++) {
            for (size_t i = 0; i < N; i++)
                y[i] = x[i] =
                    uniform(round % 3 == 0 ? -85.0f : -8.0f, round % 3 == 1 ? 85.0f : 8.0f);
            tiers[t].silu_mul(y, one, N);
            for (size_t i = 0; i < N; i++) {
                double v = (double)x[i], want = v / (1 + exp(-v));
                double error = want == 0 ? fabs((double)y[i]) : relative((double)y[i], want);
                worst = error > worst ? error : worst;
            }
        }
        assert_true(worst < 4e-7);
        float ends[6] = {0.0f, INFINITY, NAN, -200.0f, 200.0f, -0.0f};
        tiers[t].silu_mul(ends, one, 6);
        assert_true(ends[0] == 0.0f && isinf(ends[1]) && isnan(ends[2]));
        assert_true(fabsf(ends[3]) < 1e-36f && ends[4] == 200.0f && ends[5] == 0.0f);
    }
    free(one);
    free(x);
    free(y);
}

/* ---- quantised product ------------------------------------------------------------------- */

typedef struct matrix {
    bxn_packed packed;
    uint8_t *data;
    float *value, *bias; /* [rows, cols] scale * value; [rows, k_units * 4] bias' */
} matrix;

static matrix make_matrix(uint32_t rows, uint32_t cols, uint8_t bits, bool affine)
{
    matrix m = {.packed = {.rows = rows,
                           .cols = cols,
                           .row_groups = (rows + 15) / 16,
                           .k_units = (cols + 127) / 128,
                           .code_bits = bits,
                           .source_bits = bits,
                           .blocks = 2,
                           .has_bias = affine}};
    bxn_packed *w = &m.packed;
    w->center = affine ? (float)(1 << (bits - 1)) : 0.0f;
    for (int c = 0; c < 16; c++)
        w->table[c] = affine ? (float)c - w->center : 0.13f * (float)c - 0.9f;
    w->unit_bytes = bxn_unit_scale_bytes(w) + 256u * bits;
    size_t units = (size_t)w->row_groups * w->k_units;
    w->data = m.data = aligned_alloc(64, units * w->unit_bytes);
    m.value = calloc((size_t)rows * cols, sizeof(float));
    m.bias = calloc((size_t)rows * w->k_units * 4, sizeof(float));
    assert_true(m.data != NULL && m.value != NULL && m.bias != NULL);
    memset(m.data, 0, units * w->unit_bytes);
    for (uint32_t row = 0; row < rows; row++) {
        for (uint32_t k = 0; k < cols; k++) {
            uint8_t *unit = m.data + ((size_t)(row / 16) * w->k_units + k / 128) * w->unit_bytes;
            uint32_t in = k % 128, lane = row % 16, index = in / 64 * 16 + lane;
            uint16_t scale, bias = 0;
            if (in % 64 == 0) {
                scale = bxn_f32_f16(uniform(-0.1f, 0.1f));
                memcpy(unit + 2 * index, &scale, 2);
                if (affine) {
                    bias = bxn_f32_f16(uniform(-0.5f, 0.5f));
                    memcpy(unit + 64 + 2 * index, &bias, 2);
                }
            }
            memcpy(&scale, unit + 2 * index, 2);
            if (affine)
                memcpy(&bias, unit + 64 + 2 * index, 2);
            uint8_t *codes = unit + bxn_unit_scale_bytes(w);
            uint32_t code = (uint32_t)uniform(0.0f, (float)(1 << bits));
            float value;
            if (bits == 4) {
                codes[(in / 8 * 16 + lane) * 4 + in % 8 / 2] |= (uint8_t)(code << (in % 2 * 4));
                value = w->table[code];
            } else {
                codes[(in / 4 * 16 + lane) * 4 + in % 4] = (uint8_t)(code ^ 0x80);
                value = (float)code - 128.0f;
            }
            m.value[(size_t)row * cols + k] = bxn_f16_f32(scale) * value;
            m.bias[(size_t)row * w->k_units * 4 + k / 32] =
                bxn_f16_f32(bias) + w->center * bxn_f16_f32(scale);
        }
    }
    return m;
}

static void free_matrix(matrix *m)
{
    free(m->data);
    free(m->value);
    free(m->bias);
}

static void multiply(const bxn_kernels *k, const matrix *m, uint32_t begin, uint32_t end,
                     const bxn_mm_args *args)
{
    (m->packed.code_bits == 4 ? k->mm_packed4 : k->mm_packed8)(&m->packed, begin, end, args);
}

static void check_packed(uint32_t rows, uint32_t cols, uint32_t count, uint8_t bits, bool affine)
{
    matrix m = make_matrix(rows, cols, bits, affine);
    size_t ldx = (size_t)m.packed.k_units * 128, ldsum = ldx / 32, size = (size_t)count * rows;
    float *x = randoms(count * ldx, -1, 1), *sums = randoms(count * ldsum, 0, 0);
    float *first = randoms(size, 0, 0), *y = randoms(size, 0, 0);
    for (uint32_t t = 0; t < count; t++) {
        for (size_t k = cols; k < ldx; k++)
            x[t * ldx + k] = 0.0f;
        tiers[0].block_sums(x + t * ldx, ldsum, sums + t * ldsum);
    }
    for (size_t t = 0; t < tier_count; t++) {
        bxn_mm_args a = {.x = x, .ldx = ldx, .count = count, .y = y, .ldy = rows, .xsum = sums, .ldsum = ldsum};
        multiply(&tiers[t], &m, 0, m.packed.row_groups, &a);
        for (uint32_t i = 0; i < count; i++) {
            for (uint32_t row = 0; row < rows; row++) {
                double want = 0, terms = 0;
                for (uint32_t k = 0; k < cols; k++) {
                    double term = (double)m.value[(size_t)row * cols + k] * (double)x[i * ldx + k];
                    want += term;
                    terms += fabs(term);
                }
                for (size_t j = 0; affine && j < ldsum; j++) {
                    double term = (double)m.bias[row * ldsum + j] * (double)sums[i * ldsum + j];
                    want += term;
                    terms += fabs(term);
                }
                double error = fabs((double)y[i * rows + row] - want);
                assert_true(error <= (50.0 + 3.0 * (double)ldsum) * 0x1p-24 * terms);
            }
        }
        /* token by token and in two row ranges: the same bits */
        float *cut = randoms(size, 0, 0);
        for (uint32_t i = 0; i < count; i++) {
            bxn_mm_args one = {.x = x + i * ldx, .ldx = ldx, .count = 1, .y = cut + i * rows,
                               .ldy = rows, .xsum = sums + i * ldsum, .ldsum = ldsum};
            multiply(&tiers[t], &m, 0, m.packed.row_groups / 3, &one);
            multiply(&tiers[t], &m, m.packed.row_groups / 3, m.packed.row_groups, &one);
        }
        assert_memory_equal(cut, y, size * sizeof *y);
        if (t == 1) /* AVX-512 gives the bits of AVX2, but where AVX2 does not centre the codes */
            memcpy(first, y, size * sizeof *y);
        else if (t == 2 && !(affine && bits == 4))
            assert_memory_equal(first, y, size * sizeof *y);
        free(cut);
    }
    free(x);
    free(sums);
    free(first);
    free(y);
    free_matrix(&m);
}

static void test_packed(void **state)
{
    (void)state;
    for (uint8_t bits = 4; bits <= 8; bits += 4) {
        for (int affine = 0; affine < 2; affine++) {
            check_packed(77, 200, 1, bits, affine);
            check_packed(33, 130, 5, bits, affine);
            check_packed(130, 384, 29, bits, affine);
            check_packed(16, 64, 150, bits, affine);
        }
    }
}

static void test_dense_bits(void **state)
{
    (void)state;
    enum { ROWS = 27, COLS = 171, LDX = 256, COUNT = 11 };
    float *w = randoms(ROWS * COLS, -1, 1), *x = randoms(COUNT * LDX, -1, 1);
    float *first = randoms(COUNT * ROWS, 0, 0);
    for (size_t t = 0; t < COUNT; t++)
        for (size_t k = COLS; k < LDX; k++)
            x[t * LDX + k] = 0.0f;
    bxn_dense dense = {w, BXN_F32, ROWS, COLS};
    for (size_t t = 0; t < tier_count; t++) {
        float y[COUNT * ROWS], cut[COUNT * ROWS];
        bxn_mm_args a = {.x = x, .ldx = LDX, .count = COUNT, .y = y, .ldy = ROWS};
        tiers[t].mm_f32(&dense, 0, ROWS, &a);
        for (size_t i = 0; i < COUNT; i++) {
            for (size_t row = 0; row < ROWS; row++) {
                double want = 0;
                for (size_t k = 0; k < COLS; k++)
                    want += (double)w[row * COLS + k] * (double)x[i * LDX + k];
                assert_true(fabs((double)y[i * ROWS + row] - want) < 1e-5);
            }
            bxn_mm_args one = {
                .x = x + i * LDX, .ldx = LDX, .count = 1, .y = cut + i * ROWS, .ldy = ROWS};
            tiers[t].mm_f32(&dense, 0, 10, &one);
            tiers[t].mm_f32(&dense, 10, ROWS, &one);
        }
        assert_memory_equal(cut, y, sizeof y);
        if (t == 1)
            memcpy(first, y, sizeof y);
        else if (t == 2)
            assert_memory_equal(first, y, sizeof y);
    }
    free(w);
    free(x);
    free(first);
}

/* ---- scan --------------------------------------------------------------------------------------
 */

static void check_scan(uint32_t states)
{
    enum { E = 48, T = 40 };
    const size_t ldbcd = 2 * (size_t)states + 1;
    float *x = randoms(T * E, -1, 1), *z = randoms(T * E, -3, 3), *bcd = randoms(T * ldbcd, -1, 1);
    float *weight = randoms(E, -1, 1), *bias = randoms(E, -4, 1), *d = randoms(E, -1, 1);
    float *a2 = randoms(E * states, -20, 0), *h_in = randoms(E * states, -1, 1);
    for (size_t t = 0; t < tier_count; t++) {
        float *h = randoms(E * states, 0, 0), *y = randoms(T * E, 0, 0);
        bxn_scan_args a = {.tokens = T,
                           .begin = 0,
                           .end = E,
                           .states = states,
                           .x = x,
                           .ldx = E,
                           .z = z,
                           .ldz = E,
                           .bcd = bcd,
                           .ldbcd = ldbcd,
                           .dt_weight = weight,
                           .dt_bias = bias,
                           .a2 = a2,
                           .d = d,
                           .h_in = h_in,
                           .h_out = h,
                           .y = y,
                           .ldy = E};
        tiers[t].scan(&a);
        for (uint32_t e = 0; e < E; e++) {
            double state[64];
            for (uint32_t n = 0; n < states; n++)
                state[n] = (double)h_in[(e / 16 * states + n) * 16 + e % 16];
            for (uint32_t i = 0; i < T; i++) {
                const float *row = bcd + i * ldbcd;
                double dt =
                    log1p(exp((double)row[2 * states] * (double)weight[e] + (double)bias[e]));
                dt = dt < 1e-4 ? 1e-4 : dt > 100 ? 100 : dt;
                double xi = (double)x[i * E + e], zi = (double)z[i * E + e], sum = 0;
                for (uint32_t n = 0; n < states; n++) {
                    double a_n = (double)a2[(e / 16 * states + n) * 16 + e % 16];
                    state[n] = exp2(dt * a_n) * state[n] + dt * xi * (double)row[n];
                    sum += (double)row[states + n] * state[n];
                }
                double want = (sum + (double)d[e] * xi) * zi / (1 + exp(-zi));
                assert_true(fabs((double)y[i * E + e] - want) < 2e-5);
            }
            for (uint32_t n = 0; n < states; n++)
                assert_true(fabs((double)h[(e / 16 * states + n) * 16 + e % 16] - state[n]) < 1e-5);
        }
        /* in two calls, with the state updated in place */
        float *cut = randoms(T * E, 0, 0), *carried = randoms(E * states, 0, 0);
        memcpy(carried, h_in, E * states * sizeof *carried);
        a.h_in = a.h_out = carried;
        a.y = cut;
        a.tokens = 7;
        tiers[t].scan(&a);
        a.tokens = T - 7;
        a.x += 7 * E;
        a.z += 7 * E;
        a.bcd += 7 * ldbcd;
        a.y += 7 * E;
        tiers[t].scan(&a);
        assert_memory_equal(cut, y, T * E * sizeof *y);
        assert_memory_equal(carried, h, E * states * sizeof *h);
        free(h);
        free(y);
        free(cut);
        free(carried);
    }
    free(x);
    free(z);
    free(bcd);
    free(weight);
    free(bias);
    free(d);
    free(a2);
    free(h_in);
}

static void test_scan(void **state)
{
    (void)state;
    check_scan(16);
    check_scan(4);
    check_scan(1);
}

/* ---- attention --------------------------------------------------------------------------------------- */

static void check_attention(bool f32, uint32_t dim, uint64_t position, uint64_t window)
{
    enum { COUNT = 7, PAGES = 5, SLOTS = PAGES * BXN_PAGE };
    const size_t size = f32 ? 4 : 2, stride = bxn_round_up(dim, 16), end = position + COUNT;
    const size_t page_bytes = BXN_PAGE * (dim + stride) * size, v_offset = BXN_PAGE * dim * size;
    uint8_t *memory = aligned_alloc(64, PAGES * page_bytes);
    float *q = randoms(COUNT * dim, -1, 1), *k = randoms(SLOTS * dim, -1, 1);
    float *v = randoms(SLOTS * dim, -1, 1);
    const void *pages[PAGES];
    const float scale = 1.0f / sqrtf((float)dim);
    assert_non_null(memory);
    memset(memory, 0xFF, PAGES * page_bytes); /* slots that nobody wrote hold NaN */
    for (size_t p = 0; p < PAGES; p++)
        pages[p] = memory + p * page_bytes;
    for (size_t p = 0; p < end; p++) {
        uint8_t *page = memory + p / BXN_PAGE * page_bytes;
        size_t slot = p % BXN_PAGE;
        memset(page + v_offset + slot * stride * size, 0, stride * size);
        for (size_t d = 0; d < dim; d++) {
            uint8_t *at_k = page + ((slot / 16 * dim + d) * 16 + slot % 16) * size;
            uint8_t *at_v = page + v_offset + (slot * stride + d) * size;
            float *kd = &k[p * dim + d], *vd = &v[p * dim + d];
            uint16_t k16 = bxn_f32_f16(*kd), v16 = bxn_f32_f16(*vd);
            if (!f32) {
                *kd = bxn_f16_f32(k16);
                *vd = bxn_f16_f32(v16);
            }
            memcpy(at_k, f32 ? (const void *)kd : &k16, size);
            memcpy(at_v, f32 ? (const void *)vd : &v16, size);
        }
    }
    for (size_t t = 0; t < tier_count; t++) {
        float *scratch = randoms(bxn_attention_scratch(dim), 0, 0), *out = randoms(COUNT * dim, 0, 0);
        float *one = randoms(COUNT * dim, 0, 0);
        bxn_attention_args a = {.q = q,
                                .ldq = dim,
                                .scale = scale,
                                .count = COUNT,
                                .head_dim = dim,
                                .position = position,
                                .window = window,
                                .pages = pages,
                                .v_offset = v_offset,
                                .scratch = scratch,
                                .part = BXN_ALL_PARTS,
                                .out = out,
                                .ldout = dim};
        (f32 ? tiers[t].attention_f32 : tiers[t].attention_f16)(&a);
        for (uint32_t i = 0; i < COUNT; i++) {
            size_t last = position + i, first = last + 1 > window ? last + 1 - window : 0;
            double weights[SLOTS], total = 0;
            for (size_t p = first; p <= last; p++) {
                double dot = 0;
                for (size_t d = 0; d < dim; d++)
                    dot += (double)q[i * dim + d] * (double)k[p * dim + d];
                total += weights[p] = exp(dot * (double)scale);
            }
            for (size_t d = 0; d < dim; d++) {
                double want = 0;
                for (size_t p = first; p <= last; p++)
                    want += weights[p] * (double)v[p * dim + d];
                assert_true(fabs((double)out[i * dim + d] - want / total) < 2e-6);
            }
            bxn_attention_args single = a;
            single.q = q + i * dim;
            single.count = 1;
            single.position = position + i;
            single.out = one + i * dim;
            (f32 ? tiers[t].attention_f32 : tiers[t].attention_f16)(&single);
        }
        assert_memory_equal(one, out, COUNT * dim * sizeof *out);
        free(scratch);
        free(out);
        free(one);
    }
    free(memory);
    free(q);
    free(k);
    free(v);
}

static void test_attention(void **state)
{
    (void)state;
    for (int f32 = 0; f32 < 2; f32++) {
        check_attention(f32, 80, 250, 130);
        check_attention(f32, 64, 0, 16);
        check_attention(f32, 33, 61, 64);
        check_attention(f32, 128, 100, 1);
    }
}

/* ---- the rest ---------------------------------------------------------------------------------------- */

static void test_norm_and_sums(void **state)
{
    (void)state;
    enum { N = 203 };
    float *x = randoms(N, -2, 2), *w = randoms(N, -1, 1), *blocks = randoms(320, -1, 1);
    float plain[10];
    double sum = 0;
    for (size_t i = 0; i < N; i++)
        sum += (double)x[i] * (double)x[i];
    tiers[0].block_sums(blocks, 10, plain);
    for (size_t t = 0; t < tier_count; t++) {
        float y[N], sums[10];
        tiers[t].rmsnorm(x, w, N, 1e-6f, y);
        for (size_t i = 0; i < N; i++) {
            double want = (double)x[i] / sqrt(sum / N + 1e-6) * (double)w[i];
            assert_true(fabs((double)y[i] - want) <= 2e-6 * fabs(want));
        }
        tiers[t].block_sums(blocks, 10, sums);
        assert_memory_equal(sums, plain, sizeof sums);
    }
    free(x);
    free(w);
    free(blocks);
}

/* Every f16 value and the middle between neighbours, and beyond the range. */
static void test_to_f16(void **state)
{
    (void)state;
    for (size_t t = 0; t < tier_count; t++) {
        for (uint32_t bits = 0; bits < 0x7C00; bits += 31) {
            float low = bxn_f16_f32((uint16_t)bits), high = bxn_f16_f32((uint16_t)(bits + 1));
            high = isinf(high) ? 65536.0f : high;
            float x[5] = {low, 0.5f * (low + high), nextafterf(0.5f * (low + high), 1e9f), -low,
                          -0.5f * (low + high)};
            uint16_t y[5];
            tiers[t].to_f16(x, 5, y);
            uint16_t even = (uint16_t)(bits & 1 ? bits + 1 : bits), up = (uint16_t)(bits + 1);
            even = even == 0x7C00 ? 0x7BFF : even;
            up = up == 0x7C00 ? 0x7BFF : up;
            assert_int_equal(y[0], bits);
            assert_int_equal(y[1], even);
            assert_int_equal(y[2], up);
            assert_int_equal(y[3], 0x8000u | bits);
            assert_int_equal(y[4], 0x8000u | even);
        }
        float x[6] = {INFINITY, -INFINITY, 1e9f, -65520.0f, 65519.0f, NAN};
        uint16_t y[6];
        tiers[t].to_f16(x, 6, y);
        assert_int_equal(y[0], 0x7BFF);
        assert_int_equal(y[1], 0xFBFF);
        assert_int_equal(y[2], 0x7BFF);
        assert_int_equal(y[3], 0xFBFF);
        assert_int_equal(y[4], 0x7BFF);
        assert_true((y[5] & 0x7C00) == 0x7C00 && (y[5] & 0x3FF) != 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choice),        cmocka_unit_test(test_exp2),
        cmocka_unit_test(test_softplus),      cmocka_unit_test(test_sigmoid),
        cmocka_unit_test(test_packed),        cmocka_unit_test(test_dense_bits),
        cmocka_unit_test(test_scan),          cmocka_unit_test(test_attention),
        cmocka_unit_test(test_norm_and_sums), cmocka_unit_test(test_to_f16),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
