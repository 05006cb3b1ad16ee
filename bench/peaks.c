/* SPDX-License-Identifier: Apache-2.0 */
/* peaks.c - loops of one kind of multiply-add over twelve independent registers; those of tiles are in
 * amx_peak.c. Called by checkkern --bench and `bitaxon bench`. What the machine has is asked before a loop
 * is run. */
#include "peaks.h"

#include <stdatomic.h>
#include <stdint.h>

#include "amx_peak.h"
#include "bandwidth.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#include <sys/auxv.h>
#endif

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#define ROUNDS 2000000
#define CHAINS 12

#if defined(__x86_64__)
#define KEEP "+x"
#define TARGET(features) __attribute__((target(features)))
#else
#define KEEP "+w"
#define TARGET(features)
#endif

/* STEP makes a[i] of a[i] and m. */
#define DEFINE_LOOP(name, features, type, zero, STEP, add, fold)                                   \
    TARGET(features) static uint64_t name(void)                                                    \
    {                                                                                              \
        type a[CHAINS], m = zero;                                                                  \
        UNROLL                                                                                     \
        for (int i = 0; i < CHAINS; i++) {                                                         \
            a[i] = zero;                                                                           \
            __asm__ volatile("" : KEEP(a[i])); /* or equal chains would become one */              \
        }                                                                                          \
        for (long n = 0; n < ROUNDS; n++) {                                                        \
            __asm__ volatile("" : KEEP(m));                                                         \
            UNROLL                                                                                 \
            for (int i = 0; i < CHAINS; i++)                                                       \
                a[i] = STEP;                                                                       \
        }                                                                                          \
        UNROLL                                                                                     \
        for (int i = 1; i < CHAINS; i++)                                                           \
            a[0] = add(a[0], a[i]);                                                                \
        return (uint64_t)fold(a[0]);                                                               \
    }

#if defined(__x86_64__)
/* In assembly, because compilers copy the accumulator of these before and after. */
#define DEFINE_DOT(name, features, type, instruction)                                              \
    TARGET(features) static inline __attribute__((always_inline)) type name(type a, type m)        \
    {                                                                                              \
        __asm__(instruction " %1, %1, %0" : "+v"(a) : "v"(m));                                     \
        return a;                                                                                  \
    }
DEFINE_DOT(dot8_512, "avx512f,avx512vnni", __m512i, "vpdpbusd")
DEFINE_DOT(dot16_512, "avx512f,avx512vnni", __m512i, "vpdpwssd")
#if (defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11)
#define HAVE_AVXVNNI /* the assembler knows it */
DEFINE_DOT(dot8_256, "avx2", __m256i, "%{vex%} vpdpbusd")
DEFINE_DOT(dot16_256, "avx2", __m256i, "%{vex%} vpdpwssd")
#endif

#define FIRST_F128(v) _mm_cvtss_f32(v)
#define FIRST_F256(v) _mm256_cvtss_f32(v)
#define FIRST_F512(v) _mm512_cvtss_f32(v)
#define FIRST_I256(v) _mm_cvtsi128_si64(_mm256_castsi256_si128(v))
#define FIRST_I512(v) _mm_cvtsi128_si64(_mm512_castsi512_si128(v))

DEFINE_LOOP(f32_256, "avx2,fma", __m256, _mm256_set1_ps(0.5f), _mm256_fmadd_ps(a[i], m, m),
            _mm256_add_ps, FIRST_F256)
DEFINE_LOOP(f32_512, "avx512f", __m512, _mm512_set1_ps(0.5f), _mm512_fmadd_ps(a[i], m, m),
            _mm512_add_ps, FIRST_F512)
DEFINE_LOOP(i16_256, "avx2", __m256i, _mm256_set1_epi32(3),
            _mm256_add_epi32(a[i], _mm256_madd_epi16(a[i], m)), _mm256_add_epi32, FIRST_I256)
DEFINE_LOOP(i16_512, "avx512f,avx512bw", __m512i, _mm512_set1_epi32(3),
            _mm512_add_epi32(a[i], _mm512_madd_epi16(a[i], m)), _mm512_add_epi32, FIRST_I512)
DEFINE_LOOP(i8_256, "avx2", __m256i, _mm256_set1_epi32(3),
            _mm256_add_epi16(a[i], _mm256_maddubs_epi16(a[i], m)), _mm256_add_epi16, FIRST_I256)
DEFINE_LOOP(i8_512, "avx512f,avx512bw", __m512i, _mm512_set1_epi32(3),
            _mm512_add_epi16(a[i], _mm512_maddubs_epi16(a[i], m)), _mm512_add_epi16, FIRST_I512)
DEFINE_LOOP(vnni16_512, "avx512f,avx512vnni", __m512i, _mm512_set1_epi32(3), dot16_512(a[i], m),
            _mm512_add_epi32, FIRST_I512)
DEFINE_LOOP(vnni8_512, "avx512f,avx512vnni", __m512i, _mm512_set1_epi32(3), dot8_512(a[i], m),
            _mm512_add_epi32, FIRST_I512)
#if defined(HAVE_AVXVNNI)
DEFINE_LOOP(vnni16_256, "avx2", __m256i, _mm256_set1_epi32(3), dot16_256(a[i], m),
            _mm256_add_epi32, FIRST_I256)
DEFINE_LOOP(vnni8_256, "avx2", __m256i, _mm256_set1_epi32(3), dot8_256(a[i], m),
            _mm256_add_epi32, FIRST_I256)
#endif
DEFINE_LOOP(f32_128, "sse2", __m128, _mm_set1_ps(0.5f), _mm_add_ps(_mm_mul_ps(a[i], m), m),
            _mm_add_ps, FIRST_F128)

static int supported(bench_peak_kind kind)
{
    uint32_t a, b, c, d;
    switch (kind) {
    case BENCH_F32_128:
        return 1;
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
#elif defined(__aarch64__)
#define FIRST_F128(v) vgetq_lane_f32(v, 0)
#define FIRST_I128(v) vgetq_lane_s32(v, 0)
DEFINE_LOOP(f32_128, , float32x4_t, vdupq_n_f32(0.5f), vfmaq_f32(m, a[i], m), vaddq_f32, FIRST_F128)

/* By its name in assembly, so that the file needs no compile flag. */
static inline int32x4_t dot8(int32x4_t a, int32x4_t m)
{
    __asm__(".arch armv8.2-a+dotprod\n\tsdot %0.4s, %1.16b, %1.16b" : "+w"(a) : "w"(m));
    return a;
}
DEFINE_LOOP(dot8_128, , int32x4_t, vdupq_n_s32(3), dot8(a[i], m), vaddq_s32, FIRST_I128)

static int supported(bench_peak_kind kind)
{
    return kind == BENCH_F32_128 ||
           (kind == BENCH_DOT8_128 && (getauxval(AT_HWCAP) & 1ul << 20) != 0); /* ASIMDDP */
}
#else
#undef KEEP
#define KEEP "+m"
#define ADD(x, y) ((x) + (y))
#define FIRST_F(v) (v)
DEFINE_LOOP(f32_128, , float, 0.5f, a[i] * m + m, ADD, FIRST_F) /* one number at a time */

static int supported(bench_peak_kind kind) { return kind == BENCH_F32_128; }
#endif

static const struct {
    const char *name, *key;
    uint64_t (*run)(void);  /* NULL: not of this architecture or compiler, or of amx_peak.c */
    unsigned multiply_adds; /* of one step */
} table[BENCH_PEAK_KINDS] = {
#if defined(__x86_64__)
    [BENCH_F32_128] = {"f32 mul + add, 128 bits", "f32_128", f32_128, 4},
    [BENCH_F32_256] = {"f32 fma, 256 bits", "f32_256", f32_256, 8},
    [BENCH_F32_512] = {"f32 fma, 512 bits", "f32_512", f32_512, 16},
    [BENCH_I16_256] = {"vpmaddwd, 256 bits", "i16_256", i16_256, 16},
    [BENCH_I16_512] = {"vpmaddwd, 512 bits", "i16_512", i16_512, 32},
    [BENCH_I8_256] = {"vpmaddubsw, 256 bits", "i8_256", i8_256, 32},
    [BENCH_I8_512] = {"vpmaddubsw, 512 bits", "i8_512", i8_512, 64},
#if defined(HAVE_AVXVNNI)
    [BENCH_VNNI16_256] = {"vpdpwssd, 256 bits", "vnni16_256", vnni16_256, 16},
    [BENCH_VNNI8_256] = {"vpdpbusd, 256 bits", "vnni8_256", vnni8_256, 32},
#endif
    [BENCH_VNNI16_512] = {"vpdpwssd, 512 bits", "vnni16_512", vnni16_512, 32},
    [BENCH_VNNI8_512] = {"vpdpbusd, 512 bits", "vnni8_512", vnni8_512, 64},
    [BENCH_AMX_INT8] = {"tdpbssd (AMX)", "amx_int8", NULL, 0},
    [BENCH_AMX_BF16] = {"tdpbf16ps (AMX)", "amx_bf16", NULL, 0},
    [BENCH_AMX_BF16_L2] = {"tdpbf16ps from L2", "amx_bf16_l2", NULL, 0},
#elif defined(__aarch64__)
    [BENCH_F32_128] = {"f32 fma, 128 bits", "f32_128", f32_128, 4},
    [BENCH_DOT8_128] = {"sdot, 128 bits", "dot8_128", dot8_128, 16},
#else
    [BENCH_F32_128] = {"f32 mul + add", "f32_128", f32_128, 1},
#endif
};

const char *bench_peak_name(bench_peak_kind kind)
{
    return table[kind].name != NULL ? table[kind].name : "not of this machine";
}

const char *bench_peak_key(bench_peak_kind kind)
{
    return table[kind].key != NULL ? table[kind].key : "";
}

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
    if (kind == BENCH_AMX_INT8)
        return bench_amx_int8(threads, 0);
    if (kind == BENCH_AMX_BF16 || kind == BENCH_AMX_BF16_L2)
        return bench_amx_bf16(threads, kind == BENCH_AMX_BF16_L2);
    if (table[kind].run == NULL || !supported(kind))
        return 0.0;
    work w = {.run = table[kind].run};
    double seconds = bench_parallel(threads, run_loop, &w);
    return seconds > 0.0 ? 2.0 * table[kind].multiply_adds * CHAINS * ROUNDS * threads / seconds
                         : 0.0;
}
