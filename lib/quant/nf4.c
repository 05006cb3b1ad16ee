/* SPDX-License-Identifier: Apache-2.0 */
/* nf4.c - 4-bit NormalFloat (Dettmers et al., "QLoRA", 2023): sixteen quantiles of the
 * normal distribution and one magnitude per block, and the second quantisation of those
 * magnitudes. Called by import and convert. */
#include "quant/quant.h"

#include <math.h>
#include <stdlib.h>

const float bxn_nf4_table[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

void bxn_nf4_encode_group(const float *w, uint32_t count, uint8_t *codes, float *absmax)
{
    double middle[15]; /* exact: the sum of two neighbours has fewer than 53 bits */
    for (int i = 0; i < 15; i++)
        middle[i] = ((double)bxn_nf4_table[i] + (double)bxn_nf4_table[i + 1]) / 2;
    float largest = 0;
    for (uint32_t i = 0; i < count; i++)
        largest = fabsf(w[i]) > largest ? fabsf(w[i]) : largest;
    float unit = largest > 0 ? largest : 1;
    for (uint32_t i = 0; i < count; i++) {
        double value = w[i] / unit;
        uint32_t code = 0;
        for (uint32_t step = 8; step != 0; step /= 2)
            code += value > middle[code + step - 1] ? step : 0;
        codes[i] = (uint8_t)code;
    }
    *absmax = largest;
}

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

void bxn_nf4_dynamic_map(float map[256])
{
    double power = 1e-6; /* 10^(i - 6) */
    uint32_t used = 0;
    for (uint32_t i = 0; i < 7; i++, power *= 10) {
        uint32_t parts = 1u << i;
        for (uint32_t j = 0; j < parts; j++) {
            double middle = 0.1 + 0.9 * (j + 0.5) / parts;
            map[used++] = (float)(middle * power);
            map[used++] = (float)(-middle * power);
        }
    }
    map[used++] = 0;
    map[used++] = 1;
    qsort(map, used, sizeof *map, ascending);
}

void bxn_nf4_denest(const uint8_t *codes, const float *map, const float *nested_absmax,
                    uint32_t nested_block, float offset, uint64_t count, float *absmax)
{
    for (uint64_t i = 0; i < count; i++)
        absmax[i] = map[codes[i]] * nested_absmax[i / nested_block] + offset;
}
