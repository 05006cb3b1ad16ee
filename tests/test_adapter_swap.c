/* SPDX-License-Identifier: Apache-2.0 */
/* test_adapter_swap.c - adapters put on a session in place of others: the same bits as from scratch however often,
 * room for any ranks in well under a millisecond, its memory to the byte, and batches in which the cache of
 * one session was read with others. */
#include "adapter_fixture.h"
#include "call_fixture.h"
#include "fault_host.h"

#include <stdlib.h>

enum { VOCAB = 96, LENGTH = 40, WIDEST = BXN_MAX_ADAPTER_RANK };

static const char path[] = "tests/golden/tiny-q4";
static int32_t text[LENGTH];

static int set_up(void **state)
{
    (void)state;
    for (int i = 0; i < LENGTH; i++)
        text[i] = (i * 37 + i / 7) % VOCAB;
    return 0;
}

static bitaxon_model *open_model(const bitaxon_host *host, uint64_t max_bytes)
{
    bitaxon_model_params params = { .struct_size = sizeof params, .path = path, .threads = 2, .host = host,
                                    .max_bytes = max_bytes };
    bitaxon_model *model;
    OK(bitaxon_model_open(&params, &model, &error));
    return model;
}

static bitaxon_session *open_session(bitaxon_model *model)
{
    bitaxon_session *session;
    OK(bitaxon_session_create(model, NULL, &session, &error));
    return session;
}

static bitaxon_adapter *of_rank(bitaxon_model *model, uint32_t rank, bool dora)
{
    bxn_adapter_plan plan = { .rank = rank, .scale = 2, .dora = dora, .seed = rank };
    return adapter_new(model, plan, 0.01f);
}

static void read_text(bitaxon_session *session, float *logits)
{
    const float *last;
    OK(bitaxon_session_prefill(session, text, LENGTH, &error));
    OK(bitaxon_session_logits(session, &last, &error));
    memcpy(logits, last, VOCAB * sizeof(float));
}

/* ---- bits -------------------------------------------------------------------------------------- */

static void test_back_and_forth(void **state)
{
    (void)state;
    bitaxon_model *model = open_model(NULL, 0);
    bitaxon_adapter *a = of_rank(model, 4, false), *b = of_rank(model, 40, true), *c = of_rank(model, WIDEST, false);
    bitaxon_adapter *sets[][4] = { { NULL }, { a }, { b }, { a, b }, { c, b, a, c } };
    static const uint32_t counts[] = { 0, 1, 1, 2, 4 };
    static const float weights[4] = { 0.7f, -0.4f, 1, 0.2f };
    enum { SETS = 5 };
    float want[SETS][VOCAB], got[VOCAB];
    for (int i = 0; i < SETS; i++) {
        bitaxon_session *fresh = open_session(model);
        OK(bitaxon_session_set_adapters(fresh, sets[i], weights, counts[i], &error));
        read_text(fresh, want[i]);
        bitaxon_session_free(fresh);
        for (int j = 0; j < i; j++)
            assert_memory_not_equal(want[i], want[j], sizeof want[i]);
    }
    bitaxon_session *session = open_session(model);
    for (int turn = 0; turn < 4 * SETS; turn++) {
        int i = turn < SETS ? turn : turn * 7 / 2 % SETS;
        bitaxon_cache_reset(bitaxon_session_cache(session));
        OK(bitaxon_session_set_adapters(session, sets[i], weights, counts[i], &error));
        read_text(session, got);
        assert_memory_equal(got, want[i], sizeof got);
    }
    bitaxon_session_free(session);
    bitaxon_adapter_free(a);
    bitaxon_adapter_free(b);
    bitaxon_adapter_free(c);
    bitaxon_model_free(model);
}

/* ---- memory -------------------------------------------------------------------------------------- */

static uint64_t room_for(uint32_t rank) { return bxn_alloc_cost(bxn_low_rank_bytes(BXN_TILE, rank)); }

/* The first block goes when the larger one is there: both count until then, and one byte less is too little. */
static void test_ceiling(void **state)
{
    (void)state;
    fault_host fault;
    fault_host_init(&fault);
    bitaxon_model *model = open_model(&fault.host, 0);
    bitaxon_adapter *narrow = of_rank(model, 8, false), *wide = of_rank(model, 2 * BXN_ADAPTER_ROOM, false);
    bitaxon_session *session = open_session(model);
    OK(bitaxon_session_set_adapters(session, &narrow, NULL, 1, &error));
    float want[VOCAB], got[VOCAB];
    read_text(session, want);
    bitaxon_cache_reset(bitaxon_session_cache(session));
    uint64_t before = atomic_load(&model->mem.used), larger = room_for(2 * BXN_ADAPTER_ROOM);
    assert_true(larger > room_for(BXN_ADAPTER_ROOM));

    model->mem.limit = before + atomic_load(&model->mem.mapped) + larger - 1;
    FAILS(LIMIT, "adapters", bitaxon_session_set_adapters(session, &wide, NULL, 1, &error));
    assert_int_equal(atomic_load(&model->mem.used), before);
    read_text(session, got);
    assert_memory_equal(got, want, sizeof got);
    bitaxon_cache_reset(bitaxon_session_cache(session));
    before = atomic_load(&model->mem.used);

    fault_host_arm(&fault, 1, false);
    FAILS(OUT_OF_MEMORY, "adapters",
          (model->mem.limit = 0, bitaxon_session_set_adapters(session, &wide, NULL, 1, &error)));
    fault_host_disarm(&fault);
    assert_int_equal(atomic_load(&model->mem.used), before);
    read_text(session, got);
    assert_memory_equal(got, want, sizeof got);
    bitaxon_cache_reset(bitaxon_session_cache(session));

    before = atomic_load(&model->mem.used);
    model->mem.limit = before + atomic_load(&model->mem.mapped) + larger;
    OK(bitaxon_session_set_adapters(session, &wide, NULL, 1, &error));
    assert_int_equal(atomic_load(&model->mem.used), before + larger - room_for(BXN_ADAPTER_ROOM));
    fault_host_arm(&fault, 1, true); /* from now on every swap finds its room */
    for (int i = 0; i < 9; i++)
        OK(bitaxon_session_set_adapters(session, i % 2 == 0 ? &narrow : &wide, NULL, 1, &error));
    assert_int_equal(fault.refused, 0);
    assert_int_equal(fault.allocations, 0);
    fault_host_disarm(&fault);
    model->mem.limit = 0;
    read_text(session, got);
    assert_memory_equal(got, want, sizeof got);
    bitaxon_session_free(session);
    bitaxon_adapter_free(narrow);
    bitaxon_adapter_free(wide);
    bitaxon_model_free(model);
    assert_string_equal(fault_host_balance(&fault), "");
}

/* ---- time ---------------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

static uint64_t swap_ns(bitaxon_session *session, bitaxon_adapter *const *adapters, uint32_t count)
{
    uint64_t began = bxn_now_ns(session->core.mem);
    OK(bitaxon_session_set_adapters(session, adapters, NULL, count, &error));
    return bxn_now_ns(session->core.mem) - began;
}

/* Under 1 ms in the median: the first swap to the largest ranks there are, of a session that has used its buffers, and
 * those after it. Room does not depend on the model's widths. */
static void test_time(void **state)
{
    (void)state;
    enum { TIMES = 31 };
    const uint64_t limit = 1000000;
    uint64_t first[TIMES], later[TIMES];
    float logits[VOCAB];
    bitaxon_model *model = open_model(NULL, 0);
    bitaxon_adapter *narrow = of_rank(model, 8, false), *wide = of_rank(model, WIDEST, false);
    bitaxon_adapter *most[4] = { wide, wide, wide, wide };
    for (int i = 0; i < TIMES; i++) {
        bitaxon_session *session = open_session(model);
        OK(bitaxon_session_set_adapters(session, &narrow, NULL, 1, &error));
        read_text(session, logits);
        bitaxon_cache_reset(bitaxon_session_cache(session));
        first[i] = swap_ns(session, most, 4);
        later[i] = (swap_ns(session, &narrow, 1) + swap_ns(session, most, 4)) / 2;
        bitaxon_session_free(session);
    }
    qsort(first, TIMES, sizeof *first, by_value);
    qsort(later, TIMES, sizeof *later, by_value);
    print_message("swap: %.3f us, the first to ranks of %d together %.1f us\n", (double)later[TIMES / 2] * 1e-3,
                  4 * WIDEST, (double)first[TIMES / 2] * 1e-3);
    assert_true(first[TIMES / 2] < limit);
    assert_true(later[TIMES / 2] < limit);
    bitaxon_adapter_free(narrow);
    bitaxon_adapter_free(wide);
    bitaxon_model_free(model);
}

/* ---- batches --------------------------------------------------------------------------------------- */

/* Two sessions with the same adapters, one of which has been given a cache that was read with others, or none:
 * refused by its number, and nothing has moved; with its own adapters, or another cache, they go on. */
static void refuse_cache(bitaxon_model *model, bitaxon_adapter *const *on, uint32_t count,
                         bitaxon_adapter *const *read_with, uint32_t read_count, const char *had)
{
    bitaxon_session *list[2] = { open_session(model), open_session(model) }, *reader = open_session(model);
    bitaxon_cache *strange, *own = bitaxon_session_cache(list[1]);
    int32_t tokens[2] = { -7, -7 }, token;
    uint32_t failed = 9;
    float before[2][VOCAB], logits[VOCAB];
    OK(bitaxon_session_set_adapters(reader, read_with, NULL, read_count, &error));
    read_text(reader, logits);
    OK(bitaxon_cache_clone(bitaxon_session_cache(reader), &strange, &error));
    for (int i = 0; i < 2; i++) {
        OK(bitaxon_session_set_adapters(list[i], on, NULL, count, &error));
        read_text(list[i], before[i]);
    }
    OK(bitaxon_cache_clone(own, &own, &error));
    OK(bitaxon_session_set_cache(list[1], strange, &error));
    for (int order = 0; order < 2; order++) {
        bitaxon_session *mixed[2] = { list[order], list[1 - order] };
        FAILS(MISMATCH, had, bitaxon_batch_decode(mixed, 2, tokens, &failed, &error));
        assert_int_equal(failed, 1 - order);
        assert_int_equal(tokens[0], -7);
        assert_int_equal(tokens[1], -7);
    }
    assert_int_equal(bitaxon_session_position(list[0]), LENGTH);
    assert_int_equal(bitaxon_cache_length(strange), LENGTH);
    /* with the cache that is its own: as alone */
    OK(bitaxon_session_set_cache(list[1], own, &error));
    OK(bitaxon_batch_decode(list, 2, tokens, &failed, &error));
    assert_int_equal(tokens[0], tokens[1]);
    /* the strange one with the adapters it was read with: as its reader */
    OK(bitaxon_session_set_cache(list[1], strange, &error));
    OK(bitaxon_session_set_adapters(list[1], read_with, NULL, read_count, &error));
    FAILS(MISMATCH, "other adapters than session 0", bitaxon_batch_decode(list, 2, tokens, &failed, &error));
    bitaxon_session *readers[2] = { reader, list[1] };
    OK(bitaxon_batch_decode(readers, 2, tokens, &failed, &error));
    assert_int_equal(tokens[0], tokens[1]);
    OK(bitaxon_session_decode(list[1], &token, &error));
    for (int i = 0; i < 2; i++)
        bitaxon_session_free(list[i]);
    bitaxon_session_free(reader);
    bitaxon_cache_free(strange);
    bitaxon_cache_free(own);
}

static void test_batch_cache_of_others(void **state)
{
    (void)state;
    bitaxon_model *model = open_model(NULL, 0);
    bitaxon_adapter *a = of_rank(model, 4, false), *b = of_rank(model, 6, true);
    refuse_cache(model, &a, 1, NULL, 0, "the cache was read with no adapter");
    refuse_cache(model, NULL, 0, &a, 1, "the session has no adapter");
    refuse_cache(model, &a, 1, &b, 1, "the cache was read with adapter ");
    bitaxon_adapter_free(a);
    bitaxon_adapter_free(b);
    bitaxon_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_back_and_forth),
        cmocka_unit_test(test_ceiling),
        cmocka_unit_test(test_time),
        cmocka_unit_test(test_batch_cache_of_others),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
