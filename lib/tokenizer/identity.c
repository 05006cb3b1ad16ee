/* SPDX-License-Identifier: Apache-2.0 */
/* identity.c - 128 bits (XXH3) of what the ids of a tokenizer mean: its vocabulary, merges and special tokens. Files
 * that say the same in other words, or come with another chat template, have one identity. Made from the
 * tables when somebody asks, so that opening a model does not pay for it. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "tokenizer/bpe.h"

#include <string.h>

static void add_matcher(XXH3_state_t *state, const bxn_tokenizer *t, const bxn_matcher *matcher)
{
    XXH3_128bits_update(state, &matcher->count, sizeof matcher->count);
    for (uint32_t i = 0; i < matcher->count; i++) {
        const bxn_added *added = &matcher->items[i];
        const uint32_t facts[] = {added->id, added->length, added->lstrip, added->rstrip};
        XXH3_128bits_update(state, facts, sizeof facts);
        XXH3_128bits_update(state, t->pool + added->offset, added->length);
    }
}

void bxn_tokenizer_identity(const bxn_tokenizer *t, uint8_t id[16])
{
    XXH3_state_t state;
    XXH128_canonical_t canonical;
    const uint32_t facts[] = {1 /* version */, t->size, t->ignore_merges};
    XXH3_128bits_reset(&state);
    XXH3_128bits_update(&state, facts, sizeof facts);
    for (uint32_t i = 0; i < t->size; i++) {
        const uint32_t token[] = {t->flags[i] & (uint32_t)~BXN_TOKEN_CONTROL, t->tokens[i].length};
        XXH3_128bits_update(&state, token, sizeof token);
        XXH3_128bits_update(&state, t->pool + t->tokens[i].offset, t->tokens[i].length);
    }
    uint64_t sums[2] = {0, 0}; /* the order of the table differs from run to run */
    for (uint32_t i = 0; i < t->merge_slots; i++) {
        if (t->merges[i].left == BXN_NO_ID)
            continue;
        XXH128_hash_t hash = XXH3_128bits(&t->merges[i], sizeof t->merges[i]);
        sums[0] += hash.low64;
        sums[1] += hash.high64;
    }
    XXH3_128bits_update(&state, sums, sizeof sums);
    add_matcher(&state, t, &t->raw);
    add_matcher(&state, t, &t->normalized);
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(&state));
    memcpy(id, canonical.digest, sizeof canonical.digest);
}
