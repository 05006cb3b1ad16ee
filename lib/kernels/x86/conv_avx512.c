/* SPDX-License-Identifier: Apache-2.0 */
/* conv_avx512.c - causal depthwise convolution with SiLU, 16 channels in the lanes of a
 * vector. Called through the kernel table by the state-space op. Walks tokens within
 * blocks of channels whose weights stay in the first cache, and fetches rows of tokens that
 * follow while one is computed: rows are far apart. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/vec_avx512.h"

#define BLOCK 256 /* channels */
#define COMMON 4  /* taps that have a loop of their own */

/* Row `row` of the joined sequence of tail and x. */
BXN_INLINE const float *input_row(const bxn_conv_args *args, size_t row)
{
    const size_t before = args->taps - 1;
    return row < before ? args->tail + row * args->e16 : args->x + (row - before) * args->ldx;
}

BXN_INLINE void prefetch_rows(const bxn_conv_args *args, uint32_t t, uint32_t e, uint32_t ahead)
{
    if (t + ahead < args->tokens) {
        _mm_prefetch((const char *)(args->x + (t + ahead) * args->ldx + e), _MM_HINT_T0);
        _mm_prefetch((const char *)(args->y + (t + ahead) * args->ldy + e), _MM_HINT_T0);
    }
}

/* One token, channels [begin, end), 4 taps. */
static void token4(const bxn_conv_args *args, uint32_t t, uint32_t begin, uint32_t end, uint32_t ahead)
{
    const float *p[COMMON];
    for (size_t j = 0; j < COMMON; j++)
        p[j] = input_row(args, (size_t)t + j);
    for (uint32_t e = begin; e < end; e += 16) {
        prefetch_rows(args, t, e, ahead);
        __m512 c = _mm512_loadu_ps(args->bias + e);
        BXN_UNROLL
        for (size_t j = 0; j < COMMON; j++)
            c = _mm512_fmadd_ps(_mm512_loadu_ps(args->weight + j * args->e16 + e),
                                _mm512_loadu_ps(p[j] + e), c);
        _mm512_storeu_ps(args->y + t * args->ldy + e, silu(c));
    }
}

static void token_any(const bxn_conv_args *args, uint32_t t, uint32_t begin, uint32_t end)
{
    for (uint32_t e = begin; e < end; e += 16) {
        __m512 c = _mm512_loadu_ps(args->bias + e);
        for (size_t j = 0; j < args->taps; j++)
            c = _mm512_fmadd_ps(_mm512_loadu_ps(args->weight + j * args->e16 + e),
                                _mm512_loadu_ps(input_row(args, t + j) + e), c);
        _mm512_storeu_ps(args->y + t * args->ldy + e, silu(c));
    }
}

void bxn_conv_silu_avx512(const bxn_conv_args *args)
{
    for (uint32_t begin = args->begin; begin < args->end; begin += BLOCK) {
        const uint32_t end = args->end - begin < BLOCK ? args->end : begin + BLOCK;
        const uint32_t ahead = 2 * BLOCK / (end - begin); /* as many channels ahead, however wide a row is */
        for (uint32_t t = 0; t < args->tokens; t++) {
            if (args->taps == COMMON)
                token4(args, t, begin, end, ahead);
            else
                token_any(args, t, begin, end);
        }
    }
}
#endif
