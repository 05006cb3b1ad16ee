/* SPDX-License-Identifier: Apache-2.0 */
/* features.c - which of the processor's features a model uses: what is there, less what the
 * host masked, and AMX only when the host allowed it and the system grants it. Called when a
 * model is opened. */
#include <bitaxon/version.h>

#include "kernels/features.h"

uint64_t bxn_features_choose(uint64_t detected, uint64_t mask, bool allow_amx, bxn_arch_prctl call,
                             void *context, int *refused)
{
    uint64_t features = detected & mask;
    *refused = 0;
    if ((features & BITAXON_CPU_AMX) == 0)
        return features;
    /* Its kernels stand upon AVX-512: without it there is nothing to ask for. */
    if (!allow_amx || (features & BITAXON_CPU_AVX2) == 0 || (features & BITAXON_CPU_AVX512) == 0)
        return features & ~(uint64_t)BITAXON_CPU_AMX;
    *refused = bxn_amx_request(call, context);
    return *refused == 0 ? features : features & ~(uint64_t)BITAXON_CPU_AMX;
}
