/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_api.c - bytes as a sequence of calls on one model: sessions, caches, clones, rewinds,
 * failing allocations in between. After each call the positions are what the calls so far
 * make them, and two sessions at the same text have the same bits. Runs from the root of the
 * repository. */
#include "fuzz.h"

#include <string.h>

enum { SLOTS = 4, MOST = 96, VOCAB = 96 };

typedef struct slot {
    bitaxon_session *session;
    bitaxon_cache *cache; /* a reference of our own, or NULL */
} slot;

typedef struct input {
    const uint8_t *data;
    size_t left;
} input;

static uint8_t next(input *in)
{
    if (in->left == 0)
        return 0;
    in->left--;
    return *in->data++;
}

static bitaxon_model *model;
static fault_host fault;

static void free_slot(slot *s)
{
    bitaxon_session_free(s->session);
    bitaxon_cache_free(s->cache);
    s->session = NULL;
    s->cache = NULL;
}

static void make_slot(slot *s, bitaxon_cache *cache, int32_t kv, bitaxon_error *error)
{
    bitaxon_cache_params cp = { .struct_size = sizeof cp,
                                .max_tokens = MOST,
                                .kv_type = kv,
                                .checkpoint_interval = kv == 2 ? 9 : 0,
                                .checkpoint_max = 3 };
    free_slot(s);
    if (cache == NULL && bitaxon_cache_create(model, &cp, &cache, error) != BITAXON_OK)
        return;
    bitaxon_session_params sp = { .struct_size = sizeof sp, .cache = cache };
    bitaxon_status status = bitaxon_session_create(model, &sp, &s->session, error);
    FUZZ_STATUS(status, error);
    FUZZ_CHECK((s->session != NULL) == (status == BITAXON_OK));
    s->cache = cache;
    if (s->session == NULL)
        free_slot(s);
}

/* The same tokens from scratch give the same logits. */
static void check_bits(slot *s, int32_t kv_of_cache)
{
    static int32_t tokens[MOST];
    bitaxon_error error = BITAXON_ERROR_INIT;
    uint64_t length = bitaxon_session_position(s->session);
    const float *a, *b;
    if (length == 0)
        return;
    FUZZ_CHECK(bitaxon_cache_tokens(bitaxon_session_cache(s->session), 0, length, tokens, &error) == BITAXON_OK);
    slot again = { NULL, NULL };
    make_slot(&again, NULL, kv_of_cache, &error);
    FUZZ_CHECK(again.session != NULL);
    FUZZ_CHECK(bitaxon_session_prefill(again.session, tokens, length, &error) == BITAXON_OK);
    FUZZ_CHECK(bitaxon_session_logits(s->session, &a, &error) == BITAXON_OK);
    FUZZ_CHECK(bitaxon_session_logits(again.session, &b, &error) == BITAXON_OK);
    FUZZ_CHECK(memcmp(a, b, VOCAB * sizeof *a) == 0);
    free_slot(&again);
}

static void step(input *in, slot *slots, int32_t *kv)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    uint8_t op = next(in), which = next(in) % SLOTS, value = next(in);
    slot *s = &slots[which];
    bitaxon_status status = BITAXON_OK;
    int32_t tokens[24], token;
    double sum;
    for (int i = 0; i < 24; i++)
        tokens[i] = (value + i * 31) % VOCAB;
    if (op % 16 == 15) { /* what comes next runs out of memory */
        fault_host_arm(&fault, 1 + value % 8, value >= 128);
        return;
    }
    if (s->session == NULL) {
        kv[which] = 1 + value % 4;
        make_slot(s, NULL, kv[which], &error);
        fault_host_disarm(&fault);
        return;
    }
    uint64_t position = bitaxon_session_position(s->session), after = position;
    bitaxon_cache *cache = bitaxon_session_cache(s->session);
    switch (op % 16) {
    case 0:
    case 1: status = bitaxon_session_prefill(s->session, tokens, value % 24, &error); after += value % 24; break;
    case 2: status = bitaxon_session_decode(s->session, &token, &error); after += 1; break;
    case 3: status = bitaxon_session_rewind(s->session, value % (MOST + 2), &error); after = value % (MOST + 2); break;
    case 4: status = bitaxon_cache_checkpoint(cache, &error); break;
    case 5: status = bitaxon_cache_checkpoint_drop(cache, value % MOST, &error); break;
    case 6: bitaxon_cache_reset(cache); after = 0; break;
    case 7: free_slot(s); break;
    case 8: {
        bitaxon_cache *clone = NULL;
        uint32_t to = (uint32_t)(which + 1 + value % (SLOTS - 1)) % SLOTS;
        status = bitaxon_cache_clone(cache, &clone, &error);
        FUZZ_CHECK((clone != NULL) == (status == BITAXON_OK));
        if (clone != NULL) {
            kv[to] = kv[which];
            make_slot(&slots[to], clone, 0, &error);
            FUZZ_CHECK(slots[to].session == NULL || bitaxon_session_position(slots[to].session) == position);
        }
        break;
    }
    case 9:
        status = bitaxon_session_score(s->session, tokens, value % 24, &sum, NULL, &error);
        after += value % 24;
        break;
    case 10:
        bitaxon_session_cancel(s->session);
        status = bitaxon_session_prefill(s->session, tokens, 1, &error);
        after += 1;
        break;
    case 11: {
        const bitaxon_logit_bias bias = { value % VOCAB, 2.0f };
        const bitaxon_sampler_params sampler = { .struct_size = sizeof sampler, .temperature = value % 3, .seed = value,
                                                 .top_k = value % 5, .bias = &bias, .bias_count = value % 2 };
        status = bitaxon_session_set_sampler(s->session, &sampler, &error);
        break;
    }
    case 12: {
        slot *other = &slots[(which + 1) % SLOTS];
        if (other->cache != NULL) /* in use: refused */
            FUZZ_CHECK(bitaxon_session_set_cache(s->session, other->cache, &error) == BITAXON_BAD_STATE);
        break;
    }
    case 13: {
        const bitaxon_generate_params params = { .struct_size = sizeof params,
                                                 .max_tokens = 1 + value % 9,
                                                 .top_logprobs = value % 3 };
        bitaxon_generate_result result = { .struct_size = sizeof result };
        status = bitaxon_session_generate(s->session, &params, &result, &error);
        after += result.tokens;
        if (status != BITAXON_OK)
            position = after; /* what was generated before a failure stays */
        break;
    }
    default: fault_host_disarm(&fault); check_bits(s, kv[which]); break;
    }
    fault_host_disarm(&fault);
    FUZZ_STATUS(status, &error);
    if (s->session == NULL)
        return;
    uint64_t now = bitaxon_session_position(s->session);
    FUZZ_CHECK(now <= MOST);
    if (status >= 0)
        FUZZ_CHECK(now == after);
    else if (op % 16 == 3) /* a way back that failed stands on the way */
        FUZZ_CHECK(now == position || now < after);
    else
        FUZZ_CHECK(now == position);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    if (model == NULL) {
        fault_host_init(&fault);
        bitaxon_model_params params = { .struct_size = sizeof params, .path = "tests/golden/tiny-q4", .threads = 1,
                                        .host = &fault.host };
        FUZZ_CHECK(bitaxon_model_open(&params, &model, &error) == BITAXON_OK);
    }
    int64_t before = fault.bytes;
    slot slots[SLOTS] = { { NULL, NULL } };
    int32_t kv[SLOTS] = { 0 };
    input in = { data, size < 300 ? size : 300 };
    while (in.left > 0)
        step(&in, slots, kv);
    fault_host_disarm(&fault);
    for (int i = 0; i < SLOTS; i++)
        free_slot(&slots[i]);
    FUZZ_CHECK(fault.bytes == before && fault.wrong_frees == 0);
    return 0;
}
