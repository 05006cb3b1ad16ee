/* SPDX-License-Identifier: Apache-2.0 */
/* kernels_init.c - fills the kernel table: plain C first, then each instruction set in
 * ascending order over it, with the entries that it has. Called once per model; the only
 * place that chooses. */
#include <bitaxon/version.h>

#include "kernels/kernels_isa.h"

#define SET(entry, tier) kernels->entry = bxn_##entry##_##tier

/* The entries that every tier of full width has. */
#define FILL_COMMON(tier)                                                                          \
    do {                                                                                           \
        SET(mm_packed4, tier);                                                                     \
        SET(mm_packed8, tier);                                                                     \
        SET(mm_f32, tier);                                                                         \
        SET(mm_f16, tier);                                                                         \
        SET(mm_bf16, tier);                                                                        \
        SET(block_sums, tier);                                                                     \
        SET(rmsnorm, tier);                                                                        \
        SET(add, tier);                                                                            \
        SET(scale_add, tier);                                                                      \
        SET(silu_mul, tier);                                                                       \
        SET(silu_mul_backward, tier);                                                              \
        SET(exp_sum, tier);                                                                        \
        SET(conv_silu, tier);                                                                      \
        SET(scan, tier);                                                                           \
        SET(attention_f16, tier);                                                                  \
        SET(attention_f32, tier);                                                                  \
        SET(attention_i8, tier);                                                                   \
        SET(attention_q4, tier);                                                                   \
        SET(attention_merge, tier);                                                                \
        SET(quant_i8, tier);                                                                       \
        SET(quant_q4, tier);                                                                       \
        SET(kv_rotate, tier);                                                                      \
        SET(to_f16, tier);                                                                         \
    } while (0)

/* Products with integer activations: the five belong together, because the tier chooses how
 * the integers are stored. */
#define FILL_INTEGER(tier)                                                                         \
    do {                                                                                           \
        SET(mm_near4, tier);                                                                       \
        SET(mm_near8, tier);                                                                       \
        SET(mm_fast4, tier);                                                                       \
        SET(mm_fast8, tier);                                                                       \
        SET(quant_x, tier);                                                                        \
    } while (0)

/* Products with the transpose and outer products; for training alone. */
#define FILL_TRANSPOSED(tier)                                                                      \
    do {                                                                                           \
        SET(mm_t_packed4, tier);                                                                   \
        SET(mm_t_packed8, tier);                                                                   \
        SET(mm_t_f32, tier);                                                                       \
        SET(mm_t_f16, tier);                                                                       \
        SET(mm_t_bf16, tier);                                                                      \
        SET(outer_add, tier);                                                                      \
    } while (0)

/* Gradients of the state-space op. */
#define FILL_STATE(tier)                                                                           \
    do {                                                                                           \
        SET(scan_backward, tier);                                                                  \
        SET(conv_backward, tier);                                                                  \
    } while (0)

/* Attention in training. */
#define FILL_ATTENTION_TRAIN(tier)                                                                 \
    do {                                                                                           \
        SET(attention_train, tier);                                                                \
        SET(attention_backward, tier);                                                             \
    } while (0)

/* Rows of training. */
#define FILL_TRAIN_ROWS(tier)                                                                      \
    do {                                                                                           \
        SET(adamw, tier);                                                                          \
        SET(square_sum, tier);                                                                     \
        SET(row_max, tier);                                                                        \
        SET(scale, tier);                                                                          \
        SET(rmsnorm_backward, tier);                                                               \
        SET(rmsnorm_weight, tier);                                                                 \
    } while (0)

/* Products of bf16 tiles, and attention with them; no tier but AMX has them. */
#define FILL_TILE(tier)                                                                            \
    do {                                                                                           \
        SET(mm_tile4, tier);                                                                       \
        SET(mm_tile8, tier);                                                                       \
        SET(quant_bf16, tier);                                                                     \
        SET(attention_tile, tier);                                                                 \
    } while (0)

/* The features that have kernels in this build. AVX-512 stands upon AVX2, AMX upon AVX-512 (to
 * whose BF16 part bxn_cpu_detect sees), the dot products of bytes upon NEON, the matrix
 * products of bytes upon those. */
static uint64_t usable(uint64_t features)
{
#if defined(__x86_64__)
    uint64_t used = features & BITAXON_CPU_AVX2;
    if (used != 0)
        used |= features & (BITAXON_CPU_AVX512 | BITAXON_CPU_AVX_VNNI);
    if (used & BITAXON_CPU_AVX512)
        used |= features & BITAXON_CPU_AVX512_VNNI;
#if defined(BXN_HAVE_AMX)
    if (used & BITAXON_CPU_AVX512)
        used |= features & BITAXON_CPU_AMX;
#endif
    return used;
#elif defined(__aarch64__)
    uint64_t used = features & BITAXON_CPU_NEON;
    if (used != 0)
        used |= features & BITAXON_CPU_NEON_DOTPROD;
    if (used & BITAXON_CPU_NEON_DOTPROD)
        used |= features & BITAXON_CPU_NEON_I8MM;
    return used;
#else
    (void)features;
    return 0;
#endif
}

void bxn_kernels_init(bxn_kernels *kernels, uint64_t features)
{
    FILL_COMMON(ref);
    FILL_INTEGER(ref);
    FILL_TRANSPOSED(ref);
    FILL_STATE(ref);
    FILL_ATTENTION_TRAIN(ref);
    FILL_TRAIN_ROWS(ref);
    kernels->mm_tile4 = NULL;
    kernels->mm_tile8 = NULL;
    kernels->quant_bf16 = NULL;
    kernels->attention_tile = NULL;
    kernels->features = usable(features);
#if defined(__x86_64__)
    if (kernels->features & BITAXON_CPU_AVX2) {
        FILL_COMMON(avx2);
        FILL_INTEGER(avx2);
        FILL_TRANSPOSED(avx2);
        FILL_STATE(avx2);
        FILL_ATTENTION_TRAIN(avx2);
        FILL_TRAIN_ROWS(avx2);
    }
    if (kernels->features & BITAXON_CPU_AVX_VNNI)
        FILL_INTEGER(avxvnni);
    if (kernels->features & BITAXON_CPU_AVX512) {
        FILL_COMMON(avx512);
        FILL_INTEGER(avx512);
        FILL_TRANSPOSED(avx512);
        FILL_STATE(avx512);
        FILL_ATTENTION_TRAIN(avx512);
        FILL_TRAIN_ROWS(avx512);
    }
    if (kernels->features & BITAXON_CPU_AVX512_VNNI)
        FILL_INTEGER(avx512vnni);
#if defined(BXN_HAVE_AMX)
    if (kernels->features & BITAXON_CPU_AMX)
        FILL_TILE(amx);
#endif
#elif defined(__aarch64__)
    if (kernels->features & BITAXON_CPU_NEON) {
        FILL_COMMON(neon);
        FILL_INTEGER(neon);
        FILL_TRANSPOSED(neon);
        FILL_ATTENTION_TRAIN(neon);
        FILL_TRAIN_ROWS(neon);
    }
    if (kernels->features & BITAXON_CPU_NEON_DOTPROD)
        FILL_INTEGER(dotprod);
    if (kernels->features & BITAXON_CPU_NEON_I8MM)
        FILL_INTEGER(i8mm);
#endif
}

/* Tiers in the order in which they are filled. */
const char *bxn_kernels_name(uint64_t features)
{
    uint64_t used = usable(features);
    int vnni = (used & BITAXON_CPU_AVX_VNNI) != 0; /* of 256 bits */
    if ((used & BITAXON_CPU_AMX) && (used & BITAXON_CPU_AVX512_VNNI))
        return vnni ? "c avx2 avxvnni avx512 avx512vnni amx" : "c avx2 avx512 avx512vnni amx";
    if (used & BITAXON_CPU_AMX)
        return vnni ? "c avx2 avxvnni avx512 amx" : "c avx2 avx512 amx";
    if (used & BITAXON_CPU_AVX512_VNNI)
        return vnni ? "c avx2 avxvnni avx512 avx512vnni" : "c avx2 avx512 avx512vnni";
    if (used & BITAXON_CPU_AVX512)
        return vnni ? "c avx2 avxvnni avx512" : "c avx2 avx512";
    if (used & BITAXON_CPU_AVX2)
        return vnni ? "c avx2 avxvnni" : "c avx2";
    if (used & BITAXON_CPU_NEON_I8MM)
        return "c neon dotprod i8mm";
    if (used & BITAXON_CPU_NEON)
        return used & BITAXON_CPU_NEON_DOTPROD ? "c neon dotprod" : "c neon";
    return "c";
}
