/* SPDX-License-Identifier: Apache-2.0 */
/* conv_avx512.c - causal depthwise convolution with SiLU, 16 channels in the lanes of a
 * vector. Called through the kernel table by the state-space op. Walks tokens within
 * blocks of channels whose weights stay in the first cache. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/vec_avx512.h"

#define BLOCK 256

void bxn_conv_silu_avx512(const bxn_conv_args *args)
{
    const uint32_t before = args->taps - 1;
    for (uint32_t block = args->begin; block < args->end; block += BLOCK) {
        const uint32_t end = args->end - block < BLOCK ? args->end : block + BLOCK;
        for (uint32_t t = 0; t < args->tokens; t++) {
            for (uint32_t e = block; e < end; e += 16) {
                __m512 c = _mm512_loadu_ps(args->bias + e);
                for (uint32_t j = 0; j < args->taps; j++) {
                    size_t row = (size_t)t + j;
                    const float *p = row < before ? args->tail + row * args->e16 + e
                                                  : args->x + (row - before) * args->ldx + e;
                    c = _mm512_fmadd_ps(_mm512_loadu_ps(args->weight + j * args->e16 + e),
                                        _mm512_loadu_ps(p), c);
                }
                _mm512_storeu_ps(args->y + t * args->ldy + e, silu(c));
            }
        }
    }
}
#endif
