/* SPDX-License-Identifier: Apache-2.0 */
/* test_tiers.h - the kernel tiers of this architecture as cpu_mask values with their names,
 * plain C first, for the tests that run a model on each. */
#ifndef TEST_TIERS_H
#define TEST_TIERS_H

#include <bitaxon/bitaxon.h>

#if defined(__aarch64__)
#define TEST_DOTPROD (BITAXON_CPU_NEON | BITAXON_CPU_NEON_DOTPROD)
#define TEST_TIERS                                                                                 \
    {                                                                                              \
        BITAXON_CPU_NONE, BITAXON_CPU_NEON, TEST_DOTPROD, TEST_DOTPROD | BITAXON_CPU_NEON_I8MM     \
    }
#define TEST_TIER_NAMES                                                                            \
    {                                                                                              \
        "c", "neon", "dotprod", "i8mm"                                                             \
    }
#else
#define TEST_TIERS                                                                                 \
    {                                                                                              \
        BITAXON_CPU_NONE, BITAXON_CPU_AVX2, BITAXON_CPU_AVX2 | BITAXON_CPU_AVX_VNNI,               \
            BITAXON_CPU_AVX2 | BITAXON_CPU_AVX512,                                                 \
            BITAXON_CPU_AVX2 | BITAXON_CPU_AVX512 | BITAXON_CPU_AVX512_VNNI                        \
    }
#define TEST_TIER_NAMES                                                                                                \
    {                                                                                                                  \
        "c", "avx2", "avxvnni", "avx512", "avx512vnni"                                                                 \
    }
#endif

#endif
