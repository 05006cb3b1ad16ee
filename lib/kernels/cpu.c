/* SPDX-License-Identifier: Apache-2.0 */
/* cpu.c - what this processor and its operating system offer. Called when a model is
 * opened and by the public feature query. A feature counts only when the registers it
 * needs are saved by the system, as xgetbv or, on Arm64, the system's own list says. No
 * permission is asked for: that a host may use AMX tiles is decided elsewhere. */
#include <bitaxon/version.h>

#include "kernels/kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>

#define XSTATE_YMM 0x06u /* SSE and AVX */
#define XSTATE_ZMM 0xE6u /* and mask registers, upper halves, registers 16 to 31 */
#define XSTATE_TILE 0x60000u

static uint64_t enabled_states(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static int has(uint32_t word, uint32_t bits)
{
    return (word & bits) == bits;
}

uint64_t bxn_cpu_detect(void)
{
    uint32_t a, b, c, d, a71 = 0, b7, c7, d7;
    const uint32_t osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29, fma = 1u << 12;
    const uint32_t avx2 = 1u << 5;
    const uint32_t avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    const uint32_t vbmi = 1u << 1, avx512_vnni = 1u << 11, avx_vnni = 1u << 4,
                   avx512_bf16 = 1u << 5;
    const uint32_t amx = 1u << 22 | 1u << 24 | 1u << 25;               /* BF16, TILE, INT8 */
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, osxsave))
        return 0;
    uint32_t c1 = c;
    uint64_t states = enabled_states(), features = 0;
    if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7))
        return 0;
    if (a >= 1)
        __get_cpuid_count(7, 1, &a71, &b, &c, &d);
    if (has(c1, avx | f16c | fma) && has(b7, avx2) && (states & XSTATE_YMM) == XSTATE_YMM)
        features |= BITAXON_CPU_AVX2;
    if (features != 0 && has(a71, avx_vnni))
        features |= BITAXON_CPU_AVX_VNNI;
    if (features != 0 && has(b7, avx512) && (states & XSTATE_ZMM) == XSTATE_ZMM) {
        features |= BITAXON_CPU_AVX512;
        if (has(c7, vbmi | avx512_vnni))
            features |= BITAXON_CPU_AVX512_VNNI;
    }
    if ((features & BITAXON_CPU_AVX512) && has(a71, avx512_bf16) && has(d7, amx) &&
        (states & XSTATE_TILE) == XSTATE_TILE)
        features |= BITAXON_CPU_AMX;
    return features;
}
#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>

/* Bits of the kernel's interface (arch/arm64 uapi asm/hwcap.h), here by number because old
 * headers lack them. A bit is set only when all cores have the instructions. */
#define CAP_ASIMD (1ul << 1)
#define CAP_ASIMDDP (1ul << 20)
#define CAP2_I8MM (1ul << 13)

uint64_t bxn_cpu_detect(void)
{
    const unsigned long caps = getauxval(AT_HWCAP), caps2 = getauxval(AT_HWCAP2);
    uint64_t features = 0;
    if (caps & CAP_ASIMD)
        features |= BITAXON_CPU_NEON;
    if (features != 0 && (caps & CAP_ASIMDDP) != 0)
        features |= BITAXON_CPU_NEON_DOTPROD;
    if ((features & BITAXON_CPU_NEON_DOTPROD) != 0 && (caps2 & CAP2_I8MM) != 0)
        features |= BITAXON_CPU_NEON_I8MM;
    return features;
}
#elif defined(__APPLE__)
#include <sys/sysctl.h>

static int offered(const char *name)
{
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value != 0;
}

/* Every Arm Mac has NEON. */
uint64_t bxn_cpu_detect(void)
{
    uint64_t features = BITAXON_CPU_NEON;
    if (offered("hw.optional.arm.FEAT_DotProd"))
        features |= BITAXON_CPU_NEON_DOTPROD;
    if ((features & BITAXON_CPU_NEON_DOTPROD) != 0 && offered("hw.optional.arm.FEAT_I8MM"))
        features |= BITAXON_CPU_NEON_I8MM;
    return features;
}
#else
uint64_t bxn_cpu_detect(void)
{
    return BITAXON_CPU_NEON; /* part of the architecture; the rest nobody can be asked */
}
#endif
#else
uint64_t bxn_cpu_detect(void)
{
    return 0;
}
#endif
