/* SPDX-License-Identifier: Apache-2.0 */
/* moe_route.c - the choice of experts, in double from router logits: softmax over all, the k largest
 * without renormalising. Called by the ops of experts; a token's picks depend on its own row alone. */
#include "ops/moe_route.h"

#include <math.h>
#include <string.h>

bool bxn_route_row(const float *logits, uint32_t experts, uint32_t top_k, int32_t *picked, float *weight)
{
    float max = -INFINITY;
    for (uint32_t e = 0; e < experts; e++) {
        if (isnan(logits[e]))
            return false;
        if (logits[e] > max)
            max = logits[e];
    }
    if (isinf(max)) /* all -inf, or an infinite winner: no softmax exists */
        return false;
    double sum = 0;
    for (uint32_t e = 0; e < experts; e++)
        sum += exp((double)logits[e] - (double)max);
    for (uint32_t i = 0; i < top_k; i++) {
        int32_t best = -1, last = i == 0 ? -1 : picked[i - 1];
        for (uint32_t e = 0; e < experts; e++) { /* the best of those that come after the last pick */
            bool left = last < 0 || logits[e] < logits[last] ||
                        (logits[e] == logits[last] && (int32_t)e > last);
            if (left && (best < 0 || logits[e] > logits[best]))
                best = (int32_t)e;
        }
        picked[i] = best;
        weight[i] = (float)(exp((double)logits[best] - (double)max) / sum);
    }
    return true;
}

void bxn_route_group(const int32_t *picked, uint32_t tokens, uint32_t experts, uint32_t top_k, int32_t *first,
                     int32_t *pair_row, int32_t *pair_of)
{
    uint32_t picks = tokens * top_k;
    memset(first, 0, (experts + 1) * sizeof *first);
    for (uint32_t i = 0; i < picks; i++)
        first[picked[i] + 1]++;
    for (uint32_t e = 0; e < experts; e++)
        first[e + 1] += first[e];
    for (uint32_t i = 0; i < picks; i++) {
        int32_t pair = first[picked[i]]++;
        pair_of[i] = pair;
        pair_row[pair] = (int32_t)(i / top_k);
    }
    for (uint32_t e = experts; e > 0; e--)
        first[e] = first[e - 1];
    first[0] = 0;
}

bitaxon_status bxn_route_fail(bitaxon_error *error, uint32_t layer, uint32_t token)
{
    return bxn_fail(error, BITAXON_FORMAT,
                    "layer %u: the router gave a value that is not finite (token %u of the pass)", layer, token);
}
