/* SPDX-License-Identifier: Apache-2.0 */
/* peaks.c - loops of one kind of multiply-add over twelve independent registers. Called by
 * checkkern --bench. Each loop asks cpuid first. */
#include "peaks.h"

#include <stdatomic.h>
#include <stdint.h>

#include "bandwidth.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#define ROUNDS 2000000
#define CHAINS 12

const char *bench_peak_name(bench_peak_kind kind)
{
    static const char *const names[BENCH_PEAK_KINDS] = {
        "f32 fma, 256 bits",  "f32 fma, 512 bits",  "vpmaddwd, 256 bits", "vpmaddwd, 512 bits",
        "vpmaddubsw, 256 bits", "vpmaddubsw, 512 bits", "vpdpwssd, 256 bits", "vpdpwssd, 512 bits",
        "vpdpbusd, 256 bits", "vpdpbusd, 512 bits"};
    return names[kind];
}

#if defined(__x86_64__)
/* STEP makes a[i] of a[i] and m. */
#define DEFINE_LOOP(name, features, type, start, STEP, add, fold)                                  \
    __attribute__((target(features))) static uint64_t name(void)                                   \
    {                                                                                              \
        type a[CHAINS], m = start;                                                                 \
        UNROLL                                                                                     \
        for (int i = 0; i < CHAINS; i++) {                                                         \
            a[i] = start;                                                                          \
            __asm__ volatile("" : "+x"(a[i])); /* or equal chains would be computed once */        \
        }                                                                                          \
        for (long n = 0; n < ROUNDS; n++) {                                                        \
            UNROLL                                                                                 \
            for (int i = 0; i < CHAINS; i++) {                                                     \
                __asm__("" : "+x"(m));                                                             \
                a[i] = STEP;                                                                       \
                __asm__("" : "+x"(a[i])); /* in its register, in this order */                     \
            }                                                                                      \
        }                                                                                          \
        UNROLL                                                                                     \
        for (int i = 1; i < CHAINS; i++)                                                           \
            a[0] = add(a[0], a[i]);                                                                \
        return (uint64_t)fold(a[0]);                                                               \
    }

#define FIRST_F256(v) _mm256_cvtss_f32(v)
#define FIRST_F512(v) _mm512_cvtss_f32(v)
#define FIRST_I256(v) _mm_cvtsi128_si64(_mm256_castsi256_si128(v))
#define FIRST_I512(v) _mm_cvtsi128_si64(_mm512_castsi512_si128(v))

DEFINE_LOOP(f32_256, "avx2,fma", __m256, _mm256_set1_ps(0.5f), _mm256_fmadd_ps(a[i], m, m),
            _mm256_add_ps, FIRST_F256)
DEFINE_LOOP(f32_512, "avx512f", __m512, _mm512_set1_ps(0.5f), _mm512_fmadd_ps(a[i], m, m),
            _mm512_add_ps, FIRST_F512)
DEFINE_LOOP(i16_256, "avx2", __m256i, _mm256_set1_epi32(3),
            _mm256_add_epi32(a[i], _mm256_madd_epi16(m, m)), _mm256_add_epi32, FIRST_I256)
DEFINE_LOOP(i16_512, "avx512f,avx512bw", __m512i, _mm512_set1_epi32(3),
            _mm512_add_epi32(a[i], _mm512_madd_epi16(m, m)), _mm512_add_epi32, FIRST_I512)
DEFINE_LOOP(i8_256, "avx2", __m256i, _mm256_set1_epi32(3),
            _mm256_add_epi16(a[i], _mm256_maddubs_epi16(m, m)), _mm256_add_epi16, FIRST_I256)
DEFINE_LOOP(i8_512, "avx512f,avx512bw", __m512i, _mm512_set1_epi32(3),
            _mm512_add_epi16(a[i], _mm512_maddubs_epi16(m, m)), _mm512_add_epi16, FIRST_I512)
DEFINE_LOOP(vnni16_256, "avx2,avxvnni", __m256i, _mm256_set1_epi32(3),
            _mm256_dpwssd_avx_epi32(a[i], m, m), _mm256_add_epi32, FIRST_I256)
DEFINE_LOOP(vnni16_512, "avx512f,avx512vnni", __m512i, _mm512_set1_epi32(3),
            _mm512_dpwssd_epi32(a[i], m, m), _mm512_add_epi32, FIRST_I512)
DEFINE_LOOP(vnni8_256, "avx2,avxvnni", __m256i, _mm256_set1_epi32(3),
            _mm256_dpbusd_avx_epi32(a[i], m, m), _mm256_add_epi32, FIRST_I256)
DEFINE_LOOP(vnni8_512, "avx512f,avx512vnni", __m512i, _mm512_set1_epi32(3),
            _mm512_dpbusd_epi32(a[i], m, m), _mm512_add_epi32, FIRST_I512)

static int supported(bench_peak_kind kind)
{
    uint32_t a, b, c, d;
    switch (kind) {
    case BENCH_F32_256:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case BENCH_I16_256:
    case BENCH_I8_256:
        return __builtin_cpu_supports("avx2");
    case BENCH_VNNI16_256:
    case BENCH_VNNI8_256:
        return __builtin_cpu_supports("avx2") && __get_cpuid_count(7, 0, &a, &b, &c, &d) &&
               a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4) != 0;
    case BENCH_F32_512:
        return __builtin_cpu_supports("avx512f");
    case BENCH_I16_512:
    case BENCH_I8_512:
        return __builtin_cpu_supports("avx512bw");
    default:
        return __builtin_cpu_supports("avx512vnni");
    }
}

typedef struct loop {
    uint64_t (*run)(void);
    unsigned multiply_adds; /* of one step */
} loop;

static const loop loops[BENCH_PEAK_KINDS] = {
    {f32_256, 8},     {f32_512, 16},    {i16_256, 16},   {i16_512, 32},   {i8_256, 32},
    {i8_512, 64},     {vnni16_256, 16}, {vnni16_512, 32}, {vnni8_256, 32}, {vnni8_512, 64}};

typedef struct work {
    uint64_t (*run)(void);
    _Atomic uint64_t result; /* so that nothing is left out */
} work;

static void run_loop(void *context, unsigned thread)
{
    work *w = context;
    (void)thread;
    atomic_fetch_add(&w->result, w->run());
}

double bench_peak(bench_peak_kind kind, unsigned threads)
{
    if (!supported(kind))
        return 0.0;
    work w = {.run = loops[kind].run};
    double seconds = bench_parallel(threads, run_loop, &w);
    return seconds > 0.0 ? 2.0 * loops[kind].multiply_adds * CHAINS * ROUNDS * threads / seconds
                         : 0.0;
}
#else
double bench_peak(bench_peak_kind kind, unsigned threads)
{
    (void)kind;
    (void)threads;
    return 0.0;
}
#endif
