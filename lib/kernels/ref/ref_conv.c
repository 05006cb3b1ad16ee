/* SPDX-License-Identifier: Apache-2.0 */
/* ref_conv.c - causal depthwise convolution with SiLU in plain C. Called through the kernel
 * table by the state-space op before its scan. */
#include <math.h>

#include "kernels/kernels_isa.h"

void bxn_conv_silu_ref(const bxn_conv_args *args)
{
    uint32_t before = args->taps - 1;
    for (uint32_t t = 0; t < args->tokens; t++) {
        for (uint32_t e = args->begin; e < args->end; e++) {
            float c = args->bias[e];
            for (uint32_t j = 0; j < args->taps; j++) {
                size_t row = (size_t)t + j;
                float p = row < before ? args->tail[row * args->e16 + e]
                                       : args->x[(row - before) * args->ldx + e];
                c += args->weight[j * args->e16 + e] * p;
            }
            args->y[t * args->ldy + e] = c * (1.0f / (1.0f + expf(-c)));
        }
    }
}
