/* SPDX-License-Identifier: Apache-2.0 */
/* test_tiles.c - prompts read with bf16 tiles, as on machines with AMX, on any machine: the tile
 * kernels in plain C are put into an opened model before its sessions are made; where there is AMX
 * its own kernels follow. Reading a prompt and generating are then two arithmetics: any split and
 * any threads give the same bits still, and every way back to a position (rewind, clone, save and load)
 * reads each token in the phase it was read in first. */
#include "call_fixture.h"
#include "fault_files.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/api.h"
#include "kernels/kernels_isa.h"

BXN_DECLARE_TILE(ref);

enum { VOCAB = 96, LENGTH = 150 };

/* ---- tile kernels that watch how they are called ------------------------------------------- */

static atomic_uint products, rows_made, attended, longest, wrong;
static _Atomic(const unsigned char *) room_begin, room_end; /* of inputs, in the workspace */

static void watch(const void *begin, size_t bytes)
{
    const unsigned char *low = atomic_load(&room_begin), *high = atomic_load(&room_end);
    if ((const unsigned char *)begin < low || (const unsigned char *)begin + bytes > high ||
        (uintptr_t)begin % 64 != 0)
        atomic_store(&wrong, 1);
}

static void watch_product(const bxn_packed *w, const bxn_mm_args *args)
{
    size_t block = bxn_tile_bytes((size_t)w->k_units * BXN_UNIT_COLS);
    atomic_fetch_add(&products, 1);
    for (unsigned most = atomic_load(&longest); args->count > most;)
        if (atomic_compare_exchange_weak(&longest, &most, args->count))
            break;
    if (args->rows != NULL || args->ldxq != block)
        atomic_store(&wrong, 1);
    watch(args->xq, (args->count + 15) / 16 * block);
}

static void watched_tile4(const bxn_packed *w, uint32_t begin, uint32_t end, const bxn_mm_args *args)
{
    watch_product(w, args);
    bxn_mm_tile4_ref(w, begin, end, args);
}

static void watched_tile8(const bxn_packed *w, uint32_t begin, uint32_t end, const bxn_mm_args *args)
{
    watch_product(w, args);
    bxn_mm_tile8_ref(w, begin, end, args);
}

static void watched_attention(const bxn_attention_args *args, bxn_kv_type type)
{
    atomic_fetch_add(&attended, 1);
    bxn_attention_tile_ref(args, type);
}

static void watched_bf16(const float *x, size_t columns, void *tiles, uint32_t row)
{
    atomic_fetch_add(&rows_made, 1);
    watch(tiles, bxn_tile_bytes(columns));
    bxn_quant_bf16_ref(x, columns, tiles, row);
}

static unsigned all_calls(void)
{
    return atomic_load(&products) + atomic_load(&rows_made) + atomic_load(&attended);
}

/* ---- models -------------------------------------------------------------------------------- */

enum { MODELS = 4 };
static char *root;
static char paths[MODELS][512];
static int32_t text[LENGTH];

static int make_models(void **state)
{
    (void)state;
    root = make_folder();
    snprintf(paths[0], sizeof paths[0], "tests/golden/tiny-q4");
    for (int i = 1; i < MODELS; i++) {
        char name[8];
        snprintf(name, sizeof name, "m%d", i);
        snprintf(paths[i], sizeof paths[i], "%s", in_folder(root, name));
    }
    /* widths that are no whole units, no shared expert, codes of 8 bits */
    new_model(paths[1],
              small_config(
                  "\"hidden_dim\": 192, \"num_heads\": 3, \"ssm_expand\": 1, \"moe_num_experts\": 5, \"moe_top_k\": 3, "
                  "\"moe_shared_expert\": false, \"final_norm\": true, \"weight_tying\": false"),
              "affine8", NULL);
    /* more experts than one region takes */
    new_model(paths[2], small_config("\"moe_num_experts\": 70, \"moe_top_k\": 3"),
              "nf4", NULL);
    /* router, shared gate and x_proj quantised too */
    bitaxon_convert_params params = { .struct_size = sizeof params, .flags = BITAXON_CONVERT_ALL_LINEARS,
                                      .input = "tests/golden/tiny-fp32", .output = paths[3], .format = "affine4" };
    OK(bitaxon_model_quantize(&params, &error));
    for (uint32_t i = 0; i < LENGTH; i++)
        text[i] = (int32_t)((i * 2654435761u ^ i >> 2) % VOCAB);
    return 0;
}

static int remove_models(void **state)
{
    (void)state;
    remove_folder(root);
    return 0;
}

typedef enum tiles { NO_TILES, PLAIN_C, AMX } tiles;

/* NULL where there is no AMX. */
static bitaxon_model *open_model(const char *path, tiles kind, int32_t accuracy, uint32_t threads)
{
    bitaxon_model_params params = { .struct_size = sizeof params, .path = path, .threads = threads,
                                    .accuracy = accuracy, .flags = kind == AMX ? BITAXON_MODEL_ALLOW_AMX : 0 };
    bitaxon_model *model;
    OK(bitaxon_model_open(&params, &model, &error));
    if (kind == PLAIN_C) {
        model->core.kernels.mm_tile4 = watched_tile4;
        model->core.kernels.mm_tile8 = watched_tile8;
        model->core.kernels.quant_bf16 = watched_bf16;
        model->core.kernels.attention_tile = watched_attention;
    }
    if (kind == AMX && model->core.kernels.mm_tile4 == NULL) {
        static bool told;
        if (!told)
            print_message("SKIP tiles on AMX: the machine, the compiler or the system lacks it\n");
        told = true;
        bitaxon_model_free(model);
        return NULL;
    }
    return model;
}

static bitaxon_session *open_session(bitaxon_model *model)
{
    bitaxon_cache_params cache = { .struct_size = sizeof cache, .max_tokens = 512 };
    bitaxon_session_params params = { .struct_size = sizeof params, .cache_params = &cache };
    bitaxon_session *session;
    OK(bitaxon_session_create(model, &params, &session, &error));
    atomic_store(&room_begin, session->core.ws.inputs);
    atomic_store(&room_end, session->core.ws.inputs + session->core.ws.inputs_bytes);
    return session;
}

static void same_bits(const float *a, const float *b, size_t count, const char *path, const char *what, size_t at)
{
    if (memcmp(a, b, count * sizeof *a) != 0)
        fail_msg("%s: %s: other logits at position %zu", path, what, at);
}

/* ---- splits and threads ---------------------------------------------------------------------- */

static void check_splits(const char *path, tiles kind)
{
    static float whole[LENGTH * VOCAB], piece[LENGTH * VOCAB];
    for (uint32_t threads = 1; threads <= 4; threads++) {
        static const uint32_t most[4][2] = { { LENGTH, 0 }, { 1, 0 }, { 17, 0 }, { LENGTH, 100 } };
        /* what tiles compute is the same in both accuracies that have them */
        int32_t accuracy = threads == 3 ? BITAXON_ACCURACY_FAST : BITAXON_ACCURACY_NEAR;
        bitaxon_model *model = open_model(path, kind, accuracy, threads);
        if (model == NULL)
            return;
        bitaxon_session *session = open_session(model);
        for (size_t trial = 0; trial < 2 && most[threads - 1][trial] != 0; trial++) {
            bitaxon_cache_reset(bitaxon_session_cache(session));
            for (size_t at = 0, i = 0; at < LENGTH; i++) {
                size_t m = most[threads - 1][trial], n = m == 1 || m == LENGTH ? m : 1 + i * 7 % m;
                n = n < LENGTH - at ? n : LENGTH - at;
                OK(bitaxon_session_evaluate(session, text + at, n, piece, &error));
                if (threads == 1)
                    memcpy(whole, piece, sizeof whole);
                same_bits(piece, whole + at * VOCAB, n * VOCAB, path, "split or threads", at);
                at += n;
            }
        }
        bitaxon_session_free(session);
        bitaxon_model_free(model);
    }
}

static void test_splits_and_threads(void **state)
{
    (void)state;
    for (int i = 0; i < MODELS; i++) {
        atomic_store(&products, 0);
        check_splits(paths[i], PLAIN_C);
        assert_true(atomic_load(&products) != 0);
        check_splits(paths[i], AMX);
    }
    assert_int_equal(atomic_load(&wrong), 0);
}

/* Longer than a pass, which takes more tokens than without tiles: the same logits whole and in pieces. */
static void check_passes(const char *path, tiles kind)
{
    enum { LONG = 2 * BXN_TILE_AMX + 70 };
    static float whole[LONG * VOCAB], piece[LONG * VOCAB];
    static int32_t ids[LONG];
    bitaxon_model *model = open_model(path, kind, BITAXON_ACCURACY_NEAR, 2);
    if (model == NULL)
        return;
    bitaxon_cache_params cache = { .struct_size = sizeof cache, .max_tokens = LONG }, told;
    bitaxon_session_params params = { .struct_size = sizeof params, .cache_params = &cache };
    int64_t before, after;
    OK(bitaxon_model_info_int(model, "bytes_used", &before, &error));
    OK(bxn_cache_params_check(&model->core.config, &cache, &told, &error));
    bitaxon_session *session;
    OK(bitaxon_session_create(model, &params, &session, &error));
    assert_int_equal(session->core.ws.tokens, BXN_TILE_AMX);
    atomic_store(&room_begin, session->core.ws.inputs);
    atomic_store(&room_end, session->core.ws.inputs + session->core.ws.inputs_bytes);
    for (uint32_t i = 0; i < LONG; i++)
        ids[i] = (int32_t)((i * 2246822519u ^ i >> 3) % VOCAB);
    atomic_store(&longest, 0);
    atomic_store(&attended, 0);
    OK(bitaxon_session_evaluate(session, ids, LONG, whole, &error));
    if (kind == PLAIN_C) { /* as few passes as there can be, as equal as can be */
        assert_in_range(atomic_load(&longest), LONG / 3, LONG / 3 + 64);
        assert_true(atomic_load(&attended) > 0);
    }
    const bxn_config *config = &model->core.config;
    const size_t state_floats = bxn_config_state_floats(config);
    const uint64_t expected =
        bxn_alloc_cost(sizeof *session) + bxn_session_bytes(config, state_floats, LONG, true) +
        bxn_alloc_cost(sizeof(bitaxon_cache)) +
        bxn_cache_bytes(config, state_floats, bxn_config_attention_layers(config), &told, true);
    OK(bitaxon_model_info_int(model, "bytes_used", &after, &error));
    assert_int_equal(after - before, expected); /* every page has been taken */
    static const size_t sizes[] = { BXN_TILE_AMX, 333 };
    for (int s = 0; s < 2; s++) {
        bitaxon_cache_reset(bitaxon_session_cache(session));
        for (size_t at = 0, n; at < LONG; at += n) {
            n = LONG - at < sizes[s] ? LONG - at : sizes[s];
            OK(bitaxon_session_evaluate(session, ids + at, n, piece + at * VOCAB, &error));
        }
        same_bits(piece, whole, (size_t)LONG * VOCAB, path, "passes", 0);
    }
    bitaxon_session_free(session);
    bitaxon_model_free(model);
}

static void test_passes(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        check_passes(paths[i], PLAIN_C);
        check_passes(paths[i], AMX);
    }
    assert_int_equal(atomic_load(&wrong), 0);
}

/* ---- phases ------------------------------------------------------------------------------------ */

/* A conversation: pieces read as a prompt and generated by turns. */
static const struct {
    uint32_t end;
    bool decoded;
} script[] = { { 37, false }, { 50, true }, { 51, false }, { 52, true }, { 90, false }, { 99, true } };
enum { PIECES = sizeof script / sizeof *script, END = 99 };

typedef struct record {
    int32_t tokens[END];
    float logits[END * VOCAB];
} record;

/* The script from the session's position to its end, into `out`. */
static void play(bitaxon_session *session, record *out)
{
    for (int i = 0; i < PIECES; i++) {
        size_t at = (size_t)bitaxon_session_position(session);
        if (at >= script[i].end)
            continue;
        if (!script[i].decoded) {
            memcpy(out->tokens + at, text + at, (script[i].end - at) * sizeof *text);
            OK(bitaxon_session_evaluate(session, text + at, script[i].end - at, out->logits + at * VOCAB, &error));
        }
        for (; script[i].decoded && at < script[i].end; at++) {
            const float *logits;
            unsigned before = all_calls();
            OK(bitaxon_session_decode(session, &out->tokens[at], &error));
            assert_int_equal(all_calls(), before);
            OK(bitaxon_session_logits(session, &logits, &error));
            memcpy(out->logits + at * VOCAB, logits, VOCAB * sizeof *logits);
        }
    }
}

static const size_t places[] = { 1, 16, 37, 38, 50, 51, 52, 63, 64, 65, 89, 90, 91, 99 };
enum { PLACES = sizeof places / sizeof *places };

/* From its position on, the session gives what it gave the first time. */
static void expect_again(bitaxon_session *session, const record *first, const char *path, const char *what)
{
    static record again;
    size_t at = (size_t)bitaxon_session_position(session);
    const float *logits;
    OK(bitaxon_session_logits(session, &logits, &error));
    same_bits(logits, first->logits + (at - 1) * VOCAB, VOCAB, path, what, at - 1);
    play(session, &again);
    assert_memory_equal(again.tokens + at, first->tokens + at, (END - at) * sizeof *again.tokens);
    for (; at < END; at++)
        same_bits(again.logits + at * VOCAB, first->logits + at * VOCAB, VOCAB, path, what, at);
}

static void check_phases(const char *path, tiles kind, int32_t accuracy)
{
    static record first;
    static float prompt[END * VOCAB];
    bitaxon_model *model = open_model(path, kind, accuracy, 2);
    if (model == NULL)
        return;
    bitaxon_sampler_params sampler = { .struct_size = sizeof sampler, .temperature = 1.0f, .seed = 5 };
    bitaxon_session *session = open_session(model);
    bitaxon_cache *cache = bitaxon_session_cache(session);
    OK(bitaxon_session_set_sampler(session, &sampler, &error));
    play(session, &first);

    /* by replay from the start, last place first: what is beyond is forgotten and played again */
    for (int i = PLACES; (i -= 4) > 0;) {
        OK(bitaxon_session_rewind(session, places[i], &error));
        expect_again(session, &first, path, "rewind by replay");
    }
    /* to places between checkpoints, without playing on in between */
    bitaxon_cache_reset(cache);
    play(session, &first);
    for (int i = PLACES; i-- > 0;) {
        const float *logits;
        OK(bitaxon_session_rewind(session, places[i], &error));
        OK(bitaxon_session_logits(session, &logits, &error));
        same_bits(logits, first.logits + (places[i] - 1) * VOCAB, VOCAB, path, "rewind step by step", places[i] - 1);
        if (places[i] == 64 || places[i] == 91)
            OK(bitaxon_cache_checkpoint(cache, &error));
    }
    expect_again(session, &first, path, "after all rewinds");

    /* a clone, and a file read by another session */
    char file[600];
    snprintf(file, sizeof file, "%s", in_folder(root, "saved"));
    OK(bitaxon_cache_save(cache, file, &error));
    bitaxon_model *other = open_model(path, kind, accuracy, 3);
    for (int i = 5; i < PLACES; i += 6) { /* 51 and 90: the last token generated, and read */
        bitaxon_cache *clone;
        OK(bitaxon_cache_clone(cache, &clone, &error));
        bitaxon_session_params params = { .struct_size = sizeof params, .cache = clone };
        bitaxon_session *child;
        OK(bitaxon_session_create(model, &params, &child, &error));
        atomic_store(&room_begin, child->core.ws.inputs);
        atomic_store(&room_end, child->core.ws.inputs + child->core.ws.inputs_bytes);
        OK(bitaxon_session_rewind(child, places[i], &error));
        expect_again(child, &first, path, "clone");
        bitaxon_session_free(child);
        bitaxon_cache_free(clone);

        bitaxon_session *fresh = open_session(other);
        OK(bitaxon_cache_load(bitaxon_session_cache(fresh), file, &error));
        OK(bitaxon_session_rewind(fresh, places[i], &error));
        expect_again(fresh, &first, path, "save and load");
        bitaxon_session_free(fresh);
    }
    bitaxon_model_free(other);

    /* The two phases do differ, or nothing of this was tested. */
    bitaxon_session *reader = open_session(model);
    OK(bitaxon_session_evaluate(reader, first.tokens, END, prompt, &error));
    same_bits(prompt, first.logits, (size_t)37 * VOCAB, path, "the same prompt", 0);
    assert_memory_not_equal(prompt + 37 * VOCAB, first.logits + 37 * VOCAB, VOCAB * sizeof *prompt);
    bitaxon_session_free(reader);
    bitaxon_session_free(session);
    bitaxon_model_free(model);
}

static void test_phases(void **state)
{
    (void)state;
    static const int32_t accuracies[MODELS] = { BITAXON_ACCURACY_NEAR, BITAXON_ACCURACY_NEAR, 0,
                                                BITAXON_ACCURACY_FAST };
    for (int i = 0; i < MODELS; i++) { /* the largest takes long and adds nothing */
        if (accuracies[i] == 0)
            continue;
        check_phases(paths[i], PLAIN_C, accuracies[i]);
        check_phases(paths[i], AMX, accuracies[i]);
    }
    assert_int_equal(atomic_load(&wrong), 0);
}

/* Sessions that decode together decode as alone: a batch is of the phase of decoding. */
static void test_batch(void **state)
{
    (void)state;
    bitaxon_model *model = open_model(paths[0], PLAIN_C, BITAXON_ACCURACY_NEAR, 2);
    bitaxon_session *alone[3], *together[3];
    for (int i = 0; i < 3; i++) {
        alone[i] = open_session(model);
        OK(bitaxon_session_prefill(alone[i], text + i, (size_t)20 + (size_t)i * 30, &error));
        together[i] = open_session(model);
        OK(bitaxon_session_prefill(together[i], text + i, (size_t)20 + (size_t)i * 30, &error));
    }
    for (int step = 0; step < 12; step++) {
        int32_t tokens[3], token;
        unsigned before = atomic_load(&products);
        OK(bitaxon_batch_decode(together, 3, tokens, NULL, &error));
        assert_int_equal(atomic_load(&products), before);
        for (int i = 0; i < 3; i++) {
            const float *a, *b;
            OK(bitaxon_session_decode(alone[i], &token, &error));
            assert_int_equal(token, tokens[i]);
            OK(bitaxon_session_logits(alone[i], &a, &error));
            OK(bitaxon_session_logits(together[i], &b, &error));
            same_bits(a, b, VOCAB, paths[0], "batch", (size_t)step);
        }
    }
    for (int i = 0; i < 3; i++) {
        bitaxon_session_free(alone[i]);
        bitaxon_session_free(together[i]);
    }
    bitaxon_model_free(model);
}

/* ---- how far from exact, and where tiles have no place ------------------------------------------ */

static void logits_of(const char *path, tiles kind, int32_t accuracy, float *out)
{
    bitaxon_model *model = open_model(path, kind, accuracy, 2);
    bitaxon_session *session = open_session(model);
    OK(bitaxon_session_evaluate(session, text, LENGTH, out, &error));
    bitaxon_session_free(session);
    bitaxon_model_free(model);
}

static int ascending(const void *a, const void *b)
{
    double x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

/* One product with tiles is 2.4e-3 off (docs/linear.md), the logits of these models about twice that.
 * A token whose router is nearly undecided takes another expert and is farther off: hence the median. */
static void test_error(void **state)
{
    (void)state;
    static float exact[LENGTH * VOCAB], got[LENGTH * VOCAB];
    for (int i = 0; i < MODELS; i++) {
        double errors[LENGTH];
        logits_of(paths[i], NO_TILES, BITAXON_ACCURACY_EXACT, exact);
        logits_of(paths[i], PLAIN_C, BITAXON_ACCURACY_NEAR, got);
        for (size_t t = 0; t < LENGTH; t++) {
            double s = 0, d = 0;
            for (size_t k = t * VOCAB; k < (t + 1) * VOCAB; k++) {
                double off = (double)got[k] - (double)exact[k];
                s += (double)exact[k] * (double)exact[k];
                d += off * off;
            }
            errors[t] = sqrt(d / s);
        }
        qsort(errors, LENGTH, sizeof *errors, ascending);
        double median = errors[LENGTH / 2], high = errors[LENGTH * 9 / 10];
        print_message(
            "%s: logits of tiles, relative rms error: %.3g of the median token, %.3g of 9 in 10, %.3g of the worst\n",
            paths[i], median, high, errors[LENGTH - 1]);
        assert_true(median > 1e-3 && median < 1e-2 && high < 2e-2);
    }
}

static void test_exact_takes_none(void **state)
{
    (void)state;
    static float with[LENGTH * VOCAB], without[LENGTH * VOCAB];
    for (int i = 0; i < MODELS; i++) {
        logits_of(paths[i], NO_TILES, BITAXON_ACCURACY_EXACT, without);
        unsigned before = all_calls();
        logits_of(paths[i], PLAIN_C, BITAXON_ACCURACY_EXACT, with);
        assert_int_equal(all_calls(), before);
        same_bits(with, without, LENGTH * VOCAB, paths[i], "exact with tile kernels", 0);
    }
}

/* A session holds what was planned for it, room for tiles only where they are used. */
static void test_memory(void **state)
{
    (void)state;
    static const struct {
        tiles kind;
        int32_t accuracy;
        bool room;
    } cases[] = { { NO_TILES, BITAXON_ACCURACY_NEAR, false }, { PLAIN_C, BITAXON_ACCURACY_EXACT, false },
                  { PLAIN_C, BITAXON_ACCURACY_NEAR, true }, { PLAIN_C, BITAXON_ACCURACY_FAST, true } };
    for (int i = 0; i < MODELS; i++)
        for (int c = 0; c < 4; c++) {
            bitaxon_model *model = open_model(paths[i], cases[c].kind, cases[c].accuracy, 1);
            const bxn_config *config = &model->core.config;
            bitaxon_cache_params params = { .struct_size = sizeof params, .max_tokens = 512 };
            bitaxon_cache *cache;
            OK(bitaxon_cache_create(model, &params, &cache, &error));
            int64_t before, after;
            OK(bitaxon_model_info_int(model, "bytes_used", &before, &error));
            bitaxon_session_params sp = { .struct_size = sizeof sp, .cache = cache };
            bitaxon_session *session;
            OK(bitaxon_session_create(model, &sp, &session, &error));
            OK(bitaxon_model_info_int(model, "bytes_used", &after, &error));
            size_t state_floats = bxn_config_state_floats(config);
            assert_int_equal(after - before, bxn_alloc_cost(sizeof *session) +
                                                 bxn_session_bytes(config, state_floats, 512, cases[c].room));
            bitaxon_session_free(session);
            bitaxon_cache_free(cache);
            bitaxon_model_free(model);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_splits_and_threads), cmocka_unit_test(test_phases),
        cmocka_unit_test(test_batch),              cmocka_unit_test(test_error),
        cmocka_unit_test(test_exact_takes_none),   cmocka_unit_test(test_memory),
        cmocka_unit_test(test_passes),
    };
    return cmocka_run_group_tests(tests, make_models, remove_models);
}
