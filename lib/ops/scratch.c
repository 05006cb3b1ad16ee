/* SPDX-License-Identifier: Apache-2.0 */
/* scratch.c - buffers of training ops from one block, taken and given back like a stack. */
#include "ops/train_ops.h"

#include <assert.h>

void *bxn_scratch_take(bxn_scratch *scratch, size_t bytes)
{
    size_t at = scratch->used;
    scratch->used += bxn_round_up(bytes, BXN_ALIGN);
    if (scratch->used > scratch->most)
        scratch->most = scratch->used;
    if (scratch->memory == NULL)
        return NULL;
    assert(scratch->used <= scratch->bytes);
    return scratch->memory + at;
}

float *bxn_scratch_rows(bxn_scratch *scratch, size_t rows, size_t ld)
{
    return bxn_scratch_take(scratch, rows * ld * sizeof(float));
}
