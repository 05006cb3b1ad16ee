/* SPDX-License-Identifier: Apache-2.0 */
/* amx_peak.c - the peak rates of AMX by products of tiles that depend on nothing else. The
 * instructions are written as assembly, so that the file needs no compile flag and the
 * program runs everywhere; a machine without AMX gets 0. */
#include "amx_peak.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "bandwidth.h"

#if defined(__x86_64__) && defined(__linux__) && (__GNUC__ >= 11 || __clang_major__ >= 12)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ROUNDS 200000
#define REPEATS 5
#define TILE_BYTES 1024
#define STEPS 256 /* of four products: 512 KiB of one operand, 128 KiB of the other */
#define FLOPS (2.0 * 16 * 16 * 32) /* of a bf16 product; one of 8-bit integers has twice that */

/* Processor, system and permission. */
static int available(unsigned edx_bit)
{
    uint32_t a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & 1u << 27) == 0)
        return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 0x60000u) != 0x60000u || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    if ((d & 1u << 24) == 0 || (d & 1u << edx_bit) == 0)
        return 0;
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18L) == 0;
}

typedef struct tiles {
    int integers, from_l2;
    uint8_t *memory[BENCH_MAX_THREADS];
} tiles;

#define PRODUCTS(name)                                                                             \
    __asm__ volatile(name " %tmm6, %tmm4, %tmm0\n\t" name " %tmm7, %tmm4, %tmm1\n\t" name          \
                          " %tmm6, %tmm5, %tmm2\n\t" name " %tmm7, %tmm5, %tmm3")
#define LOADS(a, b)                                                                                \
    __asm__ volatile("tileloadd (%0,%2,1), %%tmm4\n\ttileloadd (%1,%2,1), %%tmm6\n\t"              \
                     "tileloadd 1024(%0,%2,1), %%tmm5\n\ttileloadd 1024(%1,%2,1), %%tmm7"          \
                     :                                                                             \
                     : "r"(a), "r"(b), "r"((long)64)                                               \
                     : "memory")

static void multiply(void *context, unsigned thread)
{
    const tiles *t = context;
    _Alignas(64) uint8_t config[64] = {1}; /* palette 1: eight tiles of 16 rows x 64 bytes */
    for (int i = 0; i < 8; i++) {
        config[16 + 2 * i] = 64;
        config[48 + i] = 16;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
    __asm__ volatile("tilezero %tmm0\n\ttilezero %tmm1\n\ttilezero %tmm2\n\ttilezero %tmm3");
    const uint8_t *a = t->memory[thread], *b = a + 2 * STEPS * TILE_BYTES;
    LOADS(a, b);
    for (int n = 0; n < ROUNDS; n++) {
        if (t->from_l2)
            LOADS(a + (size_t)(n % STEPS) * 2 * TILE_BYTES,
                  b + (size_t)(n % (STEPS / 4)) * 2 * TILE_BYTES);
        if (t->integers)
            PRODUCTS("tdpbssd");
        else
            PRODUCTS("tdpbf16ps");
    }
    __asm__ volatile("tilerelease");
}

/* bf16 values of both signs, 2^-7 to 2. Products are measured with values as they have: zeros arrive a
 * quarter faster from the second-level cache (Sapphire Rapids) and take less power. */
static void fill(uint8_t *memory, size_t bytes)
{
    for (size_t i = 0; i < bytes / 2; i++) {
        const uint16_t value = (uint16_t)(0x3C00u + ((uint32_t)i * 2654435761u >> 9 & 0x83FFu));
        memcpy(memory + 2 * i, &value, sizeof value);
    }
}

static double peak(unsigned threads, int integers, int from_l2)
{
    if (threads == 0 || threads > BENCH_MAX_THREADS || !available(integers ? 25 : 22))
        return 0.0;
    tiles *t = calloc(1, sizeof *t);
    double best = 0.0;
    int ready = t != NULL;
    for (unsigned i = 0; ready && i < threads; i++) {
        const size_t bytes = (size_t)(2 * STEPS + STEPS / 2) * TILE_BYTES;
        t->memory[i] = aligned_alloc(4096, bytes);
        ready = t->memory[i] != NULL;
        if (ready)
            fill(t->memory[i], bytes);
    }
    for (int i = 0; ready && i < REPEATS; i++) {
        t->integers = integers;
        t->from_l2 = from_l2;
        double seconds = bench_parallel(threads, multiply, t);
        double speed =
            seconds > 0.0 ? (integers ? 2 : 1) * FLOPS * 4.0 * ROUNDS * threads / seconds : 0.0;
        best = speed > best ? speed : best;
    }
    for (unsigned i = 0; t != NULL && i < threads; i++)
        free(t->memory[i]);
    free(t);
    return best;
}
#else
static double peak(unsigned threads, int integers, int from_l2)
{
    (void)threads;
    (void)integers;
    (void)from_l2;
    return 0.0;
}
#endif

double bench_amx_bf16(unsigned threads, int from_l2)
{
    return peak(threads, 0, from_l2);
}

double bench_amx_int8(unsigned threads, int from_l2)
{
    return peak(threads, 1, from_l2);
}
