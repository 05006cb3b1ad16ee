/* SPDX-License-Identifier: Apache-2.0 */
/* conv_neon.c - causal depthwise convolution with SiLU, 4 channels in the lanes of a vector.
 * Called through the kernel table by the state-space op. Walks tokens within blocks of
 * channels whose weights stay in the first cache. */
#include "kernels/kernels_isa.h"

#if defined(__aarch64__)
#include "kernels/arm/vec_neon.h"

#define BLOCK 256

void bxn_conv_silu_neon(const bxn_conv_args *args)
{
    const uint32_t before = args->taps - 1;
    for (uint32_t block = args->begin; block < args->end; block += BLOCK) {
        const uint32_t end = args->end - block < BLOCK ? args->end : block + BLOCK;
        for (uint32_t t = 0; t < args->tokens; t++) {
            for (uint32_t e = block; e < end; e += 16) {
                float32x4_t c[4];
                BXN_UNROLL
                for (unsigned q = 0; q < 4; q++)
                    c[q] = vld1q_f32(args->bias + e + q * 4);
                for (uint32_t j = 0; j < args->taps; j++) {
                    size_t row = (size_t)t + j;
                    const float *p = row < before ? args->tail + row * args->e16 + e
                                                  : args->x + (row - before) * args->ldx + e;
                    const float *weight = args->weight + j * args->e16 + e;
                    BXN_UNROLL
                    for (unsigned q = 0; q < 4; q++)
                        c[q] = vfmaq_f32(c[q], vld1q_f32(weight + q * 4), vld1q_f32(p + q * 4));
                }
                BXN_UNROLL
                for (unsigned q = 0; q < 4; q++)
                    vst1q_f32(args->y + t * args->ldy + e + q * 4, vmulq_f32(c[q], sigmoid(c[q])));
            }
        }
    }
}
#endif
