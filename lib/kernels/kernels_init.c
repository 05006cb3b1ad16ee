/* SPDX-License-Identifier: Apache-2.0 */
/* kernels_init.c - fills the kernel table: plain C first, then each instruction set in
 * ascending order over it. Called once per model; the only place that chooses. */
#include <bitaxon/version.h>

#include "kernels/kernels_isa.h"

#define FILL(kernels, tier)                                                                        \
    do {                                                                                           \
        (kernels)->mm_packed4 = bxn_mm_packed4_##tier;                                             \
        (kernels)->mm_packed8 = bxn_mm_packed8_##tier;                                             \
        (kernels)->mm_f32 = bxn_mm_f32_##tier;                                                     \
        (kernels)->mm_f16 = bxn_mm_f16_##tier;                                                     \
        (kernels)->mm_bf16 = bxn_mm_bf16_##tier;                                                   \
        (kernels)->block_sums = bxn_block_sums_##tier;                                             \
        (kernels)->rmsnorm = bxn_rmsnorm_##tier;                                                   \
        (kernels)->add = bxn_add_##tier;                                                           \
        (kernels)->scale_add = bxn_scale_add_##tier;                                               \
        (kernels)->silu_mul = bxn_silu_mul_##tier;                                                 \
        (kernels)->conv_silu = bxn_conv_silu_##tier;                                               \
        (kernels)->scan = bxn_scan_##tier;                                                         \
        (kernels)->attention_f16 = bxn_attention_f16_##tier;                                       \
        (kernels)->attention_f32 = bxn_attention_f32_##tier;                                       \
        (kernels)->to_f16 = bxn_to_f16_##tier;                                                     \
    } while (0)

/* The features that have kernels in this build. AVX-512 stands upon AVX2. */
static uint64_t usable(uint64_t features)
{
#if defined(__x86_64__)
    uint64_t used = features & BITAXON_CPU_AVX2;
    if (used != 0)
        used |= features & BITAXON_CPU_AVX512;
    return used;
#else
    (void)features;
    return 0;
#endif
}

void bxn_kernels_init(bxn_kernels *kernels, uint64_t features)
{
    FILL(kernels, ref);
    kernels->features = usable(features);
#if defined(__x86_64__)
    if (kernels->features & BITAXON_CPU_AVX2)
        FILL(kernels, avx2);
    if (kernels->features & BITAXON_CPU_AVX512)
        FILL(kernels, avx512);
#endif
}

const char *bxn_kernels_name(uint64_t features)
{
    uint64_t used = usable(features);
    if (used & BITAXON_CPU_AVX512)
        return "c avx2 avx512";
    return used & BITAXON_CPU_AVX2 ? "c avx2" : "c";
}
