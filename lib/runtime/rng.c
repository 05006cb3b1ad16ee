/* SPDX-License-Identifier: Apache-2.0 */
/* rng.c - the counter-based random generator Philox 4x32-10 (J. Salmon et al.,
 * "Parallel random numbers: as easy as 1, 2, 3", SC 2011). No state: sampling at a
 * position and initialising a weight are functions of seed and index alone. */
#include "runtime/runtime.h"

void bxn_philox(uint64_t key, uint64_t counter_hi, uint64_t counter_lo, uint32_t out[4])
{
    uint32_t c0 = (uint32_t)counter_lo, c1 = (uint32_t)(counter_lo >> 32);
    uint32_t c2 = (uint32_t)counter_hi, c3 = (uint32_t)(counter_hi >> 32);
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

double bxn_uniform(uint64_t key, uint64_t counter_hi, uint64_t counter_lo)
{
    uint32_t word[4];
    bxn_philox(key, counter_hi, counter_lo, word);
    uint64_t bits = ((uint64_t)word[1] << 32 | word[0]) >> 11;
    return (double)bits * 0x1p-53;
}
