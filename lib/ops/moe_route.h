/* SPDX-License-Identifier: Apache-2.0 */
/* moe_route.h - which experts a token takes, and pairs of tokens and experts grouped by expert: the same
 * for the forward op (moe.c) and for training (moe_backward.c). */
#ifndef BXN_MOE_ROUTE_H
#define BXN_MOE_ROUTE_H

#include "ops/ops.h"

/* The softmax over one row of router logits: the top_k largest, ties to the lower expert, and their
 * probabilities. False when one is NaN or no softmax exists. */
bool bxn_route_row(const float *logits, uint32_t experts, uint32_t top_k, int32_t *picked, float *weight);

/* Group the picks of all tokens [tokens, top_k] by expert, stable: first[e] .. first[e + 1] are the pairs
 * of expert e, pair_row [pairs] their tokens, pair_of [tokens, top_k] the pair of each pick. first [experts + 1]. */
void bxn_route_group(const int32_t *picked, uint32_t tokens, uint32_t experts, uint32_t top_k, int32_t *first,
                     int32_t *pair_row, int32_t *pair_of);

/* FORMAT of a row that has no softmax. */
bitaxon_status bxn_route_fail(bitaxon_error *error, uint32_t layer, uint32_t token);

#endif
