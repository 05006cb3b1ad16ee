/* SPDX-License-Identifier: Apache-2.0 */
/* ref_attention.c - windowed attention of one head over cached pages in plain C. Called
 * through the kernel table by the attention op. Slots outside a query's window are never
 * looked at, so what lies in them cannot matter. */
#include <math.h>
#include <string.h>

#include "kernels/kernels_isa.h"
#include "runtime/runtime.h"

static float load(const uint8_t *base, bool f32, size_t index)
{
    if (f32) {
        float value;
        memcpy(&value, base + 4 * index, sizeof value);
        return value;
    }
    uint16_t bits;
    memcpy(&bits, base + 2 * index, sizeof bits);
    return bxn_f16_f32(bits);
}

static void attention(const bxn_attention_args *args, bool f32)
{
    const uint32_t dim = args->head_dim;
    const size_t v_stride = bxn_round_up(dim, 16);
    for (uint32_t i = 0; i < args->count; i++) {
        uint64_t end = args->position + i + 1;
        uint64_t begin = end > args->window ? end - args->window : 0;
        const float *q = args->q + i * args->ldq;
        float *scores = args->scores + i * args->score_stride, *out = args->out + i * args->ldout;
        float max = -INFINITY;
        for (uint64_t p = begin; p < end; p++) {
            const uint8_t *k =
                (const uint8_t *)args->pages[p / BXN_PAGE - args->first_page] + args->k_offset;
            size_t block = (size_t)(p % BXN_PAGE / 16) * dim * 16, lane = (size_t)(p % 16);
            float dot = 0.0f;
            for (uint32_t d = 0; d < dim; d++)
                dot += q[d] * load(k, f32, block + (size_t)d * 16 + lane);
            scores[p - begin] = dot * args->scale;
            max = scores[p - begin] > max ? scores[p - begin] : max;
        }
        float lanes[16] = {0};
        for (uint64_t p = begin; p < end; p++) {
            scores[p - begin] = expf(scores[p - begin] - max);
            lanes[p % 16] += scores[p - begin];
        }
        for (uint32_t half = 8; half >= 1; half /= 2)
            for (uint32_t l = 0; l < half; l++)
                lanes[l] += lanes[l + half];
        for (uint32_t d = 0; d < dim; d++)
            out[d] = 0.0f;
        for (uint64_t p = begin; p < end; p++) {
            const uint8_t *v =
                (const uint8_t *)args->pages[p / BXN_PAGE - args->first_page] + args->v_offset;
            for (uint32_t d = 0; d < dim; d++)
                out[d] += scores[p - begin] * load(v, f32, (size_t)(p % BXN_PAGE) * v_stride + d);
        }
        for (uint32_t d = 0; d < dim; d++)
            out[d] /= lanes[0];
    }
}

void bxn_attention_f16_ref(const bxn_attention_args *args)
{
    attention(args, false);
}

void bxn_attention_f32_ref(const bxn_attention_args *args)
{
    attention(args, true);
}
