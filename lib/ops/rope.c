/* SPDX-License-Identifier: Apache-2.0 */
/* rope.c - rotary position embedding (Su et al. 2021, RoFormer), pairs (i, i + d/2). An
 * extension of Bit-Axon, off unless config.json has rope_theta. Angles in double, so
 * that late positions keep their precision. */
#include "ops/ops.h"

#include <math.h>

void bxn_rope_row(float *row, uint32_t head_dim, uint64_t position, float theta)
{
    uint32_t half = head_dim / 2;
    for (uint32_t i = 0; i < half; i++) {
        double angle = (double)position * pow((double)theta, -2.0 * i / head_dim);
        float c = (float)cos(angle), s = (float)sin(angle);
        float a = row[i], b = row[i + half];
        row[i] = a * c - b * s;
        row[i + half] = b * c + a * s;
    }
}
