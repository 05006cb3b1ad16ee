/* SPDX-License-Identifier: Apache-2.0 */
/* bandwidth.c - measures what the machine can do at most: reading memory in one or several
 * streams per thread, and multiplying and adding. Widest vectors are chosen at run time. */
#include "bandwidth.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

double bench_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- threads ------------------------------------------------------------------------- */

typedef struct crew {
    void (*fn)(void *context, unsigned thread);
    void *context;
    atomic_uint waiting;
    atomic_int go; /* 1: work, -1: give up */
} crew;

typedef struct member {
    crew *crew;
    unsigned index;
    pthread_t thread;
} member;

static void *member_main(void *argument)
{
    member *m = argument;
    atomic_fetch_add(&m->crew->waiting, 1);
    int go;
    while ((go = atomic_load(&m->crew->go)) == 0)
        ;
    if (go > 0)
        m->crew->fn(m->crew->context, m->index);
    return NULL;
}

double bench_parallel(unsigned threads, void (*fn)(void *context, unsigned thread), void *context)
{
    crew c = {.fn = fn, .context = context};
    member members[BENCH_MAX_THREADS];
    unsigned started = 1;
    if (threads == 0 || threads > BENCH_MAX_THREADS)
        return -1.0;
    for (; started < threads; started++) {
        members[started] = (member){.crew = &c, .index = started};
        if (pthread_create(&members[started].thread, NULL, member_main, &members[started]) != 0)
            break;
    }
    while (atomic_load(&c.waiting) != started - 1)
        ;
    double begin = bench_now();
    atomic_store(&c.go, started == threads ? 1 : -1);
    if (started == threads)
        fn(context, 0);
    for (unsigned i = 1; i < started; i++)
        pthread_join(members[i].thread, NULL);
    return started == threads ? bench_now() - begin : -1.0;
}

/* ---- reading --------------------------------------------------------------------------- */

#define STEP 256 /* bytes read of each stream at a time */

/* Sums `length` bytes of each of n streams that lie `length` apart. */
#define DEFINE_READ(name, target_attribute)                                                        \
    target_attribute static inline __attribute__((always_inline))                                  \
    uint64_t name##_streams(const uint8_t *data, size_t length, unsigned n)                        \
    {                                                                                              \
        typedef uint64_t wide __attribute__((vector_size(64), aligned(8), may_alias));             \
        wide sum[4];                                                                               \
        memset(sum, 0, sizeof sum);                                                                \
        for (size_t at = 0; at < length; at += STEP) {                                             \
            UNROLL                                                                                 \
            for (unsigned s = 0; s < n; s++) {                                                     \
                const uint8_t *p = data + s * length + at;                                         \
                sum[0] += *(const wide *)(const void *)p;                                          \
                sum[1] += *(const wide *)(const void *)(p + 64);                                   \
                sum[2] += *(const wide *)(const void *)(p + 128);                                  \
                sum[3] += *(const wide *)(const void *)(p + 192);                                  \
            }                                                                                      \
        }                                                                                          \
        sum[0] += sum[1] + sum[2] + sum[3];                                                        \
        uint64_t total = 0;                                                                        \
        for (int i = 0; i < 8; i++)                                                                \
            total += sum[0][i];                                                                    \
        return total;                                                                              \
    }                                                                                              \
    target_attribute static uint64_t name(const uint8_t *data, size_t length, unsigned n)          \
    {                                                                                              \
        return n == 8   ? name##_streams(data, length, 8)                                          \
               : n == 4 ? name##_streams(data, length, 4)                                          \
               : n == 2 ? name##_streams(data, length, 2)                                          \
                        : name##_streams(data, length, 1);                                         \
    }

DEFINE_READ(read_plain, )
#if defined(__x86_64__)
DEFINE_READ(read_avx2, __attribute__((target("avx2"))))
DEFINE_READ(read_avx512, __attribute__((target("avx512f"))))
#endif

typedef struct reading {
    const uint8_t *data;
    size_t part; /* bytes of a thread */
    unsigned streams;
    uint64_t (*read)(const uint8_t *data, size_t length, unsigned streams);
    _Atomic uint64_t sum; /* so that nothing is left out */
} reading;

static void read_part(void *context, unsigned thread)
{
    reading *r = context;
    uint64_t sum = r->read(r->data + thread * r->part, r->part / r->streams, r->streams);
    atomic_fetch_add(&r->sum, sum);
}

double bench_read(const void *buffer, size_t bytes, unsigned threads, unsigned streams,
                  unsigned repeats)
{
    reading r = {.data = buffer, .streams = streams, .read = read_plain};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        r.read = read_avx512;
    else if (__builtin_cpu_supports("avx2"))
        r.read = read_avx2;
#endif
    if (threads == 0 || streams == 0)
        return 0.0;
    r.part = bytes / threads / (streams * STEP) * (streams * STEP);
    double best = 0.0;
    for (unsigned i = 0; i < repeats; i++) {
        double seconds = bench_parallel(threads, read_part, &r);
        double speed = seconds > 0.0 ? (double)r.part * threads / seconds : 0.0;
        best = speed > best ? speed : best;
    }
    return best;
}

double bench_read_best(const void *buffer, size_t bytes, unsigned threads, unsigned repeats)
{
    double best = 0.0;
    for (unsigned streams = 1; streams <= 8; streams *= 2) {
        double speed = bench_read(buffer, bytes, threads, streams, repeats);
        best = speed > best ? speed : best;
    }
    return best;
}

/* ---- multiplying and adding --------------------------------------------------------------- */

#define ROUNDS 2000000

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static float fma_avx512(void)
{
    __m512 a[12], m = _mm512_set1_ps(0.999f), c = _mm512_set1_ps(0.001f);
    UNROLL
    for (int i = 0; i < 12; i++)
        a[i] = _mm512_set1_ps((float)i);
    for (long n = 0; n < ROUNDS; n++)
        UNROLL
    for (int i = 0; i < 12; i++)
        a[i] = _mm512_fmadd_ps(a[i], m, c);
    UNROLL
    for (int i = 1; i < 12; i++)
        a[0] = _mm512_add_ps(a[0], a[i]);
    return _mm512_cvtss_f32(a[0]);
}

__attribute__((target("avx2,fma"))) static float fma_avx2(void)
{
    __m256 a[12], m = _mm256_set1_ps(0.999f), c = _mm256_set1_ps(0.001f);
    UNROLL
    for (int i = 0; i < 12; i++)
        a[i] = _mm256_set1_ps((float)i);
    for (long n = 0; n < ROUNDS; n++)
        UNROLL
    for (int i = 0; i < 12; i++)
        a[i] = _mm256_fmadd_ps(a[i], m, c);
    UNROLL
    for (int i = 1; i < 12; i++)
        a[0] = _mm256_add_ps(a[0], a[i]);
    return _mm256_cvtss_f32(a[0]);
}
#endif

static float fma_plain(void)
{
    typedef float wide __attribute__((vector_size(16)));
    wide a[12];
    UNROLL
    for (int i = 0; i < 12; i++)
        a[i] = (wide){(float)i, 1.0f, 2.0f, 3.0f};
    for (long n = 0; n < ROUNDS; n++)
        UNROLL
    for (int i = 0; i < 12; i++)
        a[i] = a[i] * 0.999f + 0.001f;
    UNROLL
    for (int i = 1; i < 12; i++)
        a[0] += a[i];
    return a[0][0];
}

typedef struct multiplying {
    float (*run)(void);
    double flops; /* of one run */
    _Atomic float result[BENCH_MAX_THREADS];
} multiplying;

static void multiply(void *context, unsigned thread)
{
    multiplying *m = context;
    atomic_store(&m->result[thread], m->run());
}

double bench_fma(unsigned threads)
{
    static const double lane_flops = 2.0 * 12.0 * ROUNDS;
    multiplying m = {.run = fma_plain, .flops = 4 * lane_flops};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        m.run = fma_avx512;
        m.flops = 16 * lane_flops;
    } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        m.run = fma_avx2;
        m.flops = 8 * lane_flops;
    }
#endif
    double best = 0.0;
    for (int i = 0; i < 5; i++) {
        double seconds = bench_parallel(threads, multiply, &m);
        double speed = seconds > 0.0 ? m.flops * threads / seconds : 0.0;
        best = speed > best ? speed : best;
    }
    return best;
}
