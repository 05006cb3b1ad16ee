/* SPDX-License-Identifier: Apache-2.0 */
/* test_adapter_ops.c - adapters in the ops: products against a dense double-precision computation, whole passes
 * against a model into which the same adapters are merged; the same bits however a prompt is cut and with
 * any number of threads; and that an adapter whose B is zero changes no bit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "api/api.h"
#include "linear_fixture.h"
#include "test_tiers.h"

static const uint64_t tiers[] = TEST_TIERS;
enum { TIERS = sizeof tiers / sizeof tiers[0] };

static bool tier_present(size_t tier)
{
    uint64_t needed = tiers[tier] & ~BITAXON_CPU_NONE;
    return (bitaxon_cpu_features() & needed) == needed;
}

/* ---- products -------------------------------------------------------------------------------------- */

enum { TOKENS = 150, COUNT = 3 };

/* y_i - W x of one adapter, in double. */
static double part_of(const fixture_lora *f, const double *base, const float *x, uint32_t n, uint32_t cols)
{
    double z = *base;
    for (uint32_t r = 0; r < f->lora.rank; r++) {
        double u = 0;
        for (uint32_t k = 0; k < cols; k++)
            u += (double)f->a[r * f->lora.lda + k] * (double)x[k];
        z += (double)f->lora.scale * u * (double)f->b[r * f->lora.ldb + n];
    }
    return (f->gain != NULL ? (double)f->gain[n] * z : z) - *base;
}

/* Three weights that read the same rows, two of them adapted, with up to four adapters in force. */
static void test_products(void **state)
{
    (void)state;
    static const uint32_t cols = 192, rows[COUNT] = { 70, 301, 40 }, ranks[BXN_ADAPTERS] = { 5, 1, 17, 8 };
    static const float weights[BXN_ADAPTERS] = { 1, 0.5f, -0.75f, 1 };
    static const char kinds[] = "fan";
    for (size_t tier = 0; tier < TIERS; tier++) {
        if (!tier_present(tier))
            continue;
        for (uint32_t count = 0; count <= BXN_ADAPTERS; count++) {
            fixture_weight w[COUNT];
            fixture_lora f[BXN_ADAPTERS][COUNT];
            bxn_lora loras[BXN_ADAPTERS][COUNT + 1];
            bxn_adapters adapters = { .count = count };
            uint64_t seed = 3;
            float *x = fixture_rows(&seed, TOKENS, cols), *y[COUNT], *one[COUNT];
            memset(loras, 0, sizeof loras);
            memset(f, 0, sizeof f);
            for (uint32_t j = 0; j < COUNT; j++) {
                fixture_weight_make(&w[j], kinds[j], rows[j], cols, j + 1, 10 + j);
                y[j] = fixture_alloc(TOKENS * bxn_round_up(rows[j], 128) * sizeof(float));
                one[j] = fixture_alloc(TOKENS * bxn_round_up(rows[j], 128) * sizeof(float));
                for (uint32_t i = 0; i < count && j < 2; i++) {
                    fixture_lora_make(&f[i][j], &w[j], ranks[i], 1.5f, (i + j) % 2 == (count == 1 ? tier % 2 : 0),
                                      i + 30);
                    loras[i][j] = f[i][j].lora;
                }
            }
            for (uint32_t i = 0; i < count; i++) {
                adapters.loras[i] = loras[i];
                adapters.weights[i] = weights[(i + count) % BXN_ADAPTERS];
            }
            for (uint32_t threads = 1; threads <= 3; threads += 2) {
                fixture_world world;
                fixture_world_open(&world, tiers[tier], threads, 0);
                const size_t room = TOKENS * bxn_input_bytes(cols) + 128, low = bxn_low_rank_bytes(TOKENS, 31);
                bxn_workspace ws = { .inputs = fixture_alloc(room), .inputs_bytes = room,
                                     .low = fixture_alloc(low), .low_bytes = low };
                bxn_exec exec = world.pass.exec;
                exec.ws = &ws;
                exec.adapters = &adapters;
                /* All together with one thread; in pieces of rows and one by one with three. */
                for (uint32_t t = 0, piece; t < TOKENS; t += piece) {
                    bxn_linear_job jobs[COUNT];
                    piece = threads == 1 ? TOKENS : t == 0 ? 1 : t < 50 ? 7 : 40;
                    piece = piece < TOKENS - t ? piece : TOKENS - t;
                    for (uint32_t j = 0; j < COUNT; j++) {
                        const size_t ld = bxn_round_up(rows[j], 128);
                        float *out = (threads == 1 ? y : one)[j] + t * ld;
                        jobs[j] =
                            (bxn_linear_job){ &w[j].w,
                                              { .x = x + t * 256, .ldx = 256, .count = piece, .y = out, .ldy = ld } };
                    }
                    assert_int_equal(bxn_linear_jobs(&exec, jobs, COUNT), BITAXON_OK);
                    assert_int_equal(ws.taken.inputs, 0);
                    assert_int_equal(ws.taken.low, 0);
                }
                free(ws.inputs);
                free(ws.low);
                fixture_world_close(&world);
            }
            for (uint32_t j = 0; j < COUNT; j++) {
                const size_t ld = bxn_round_up(rows[j], 128);
                assert_memory_equal(y[j], one[j], TOKENS * ld * sizeof(float));
                for (uint32_t t = 0; t < TOKENS; t += 37) {
                    for (uint32_t n = 0; n < rows[j]; n++) {
                        double base = 0, size = 0;
                        for (uint32_t k = 0; k < cols; k++)
                            base += w[j].value[(size_t)n * cols + k] * (double)x[t * 256 + k];
                        double want = base;
                        for (uint32_t i = 0; i < count && j < 2; i++) {
                            double part = (double)adapters.weights[i] * part_of(&f[i][j], &base, x + t * 256, n, cols);
                            want += part;
                            size += fabs(part);
                        }
                        assert_true(fabs(want - (double)y[j][t * ld + n]) <= 2e-5 * (size + fabs(base)) + 2e-5);
                    }
                }
                free(y[j]);
                free(one[j]);
                fixture_weight_free(&w[j]);
                for (uint32_t i = 0; i < count; i++)
                    fixture_lora_free(&f[i][j]);
            }
            free(x);
        }
    }
}

/* ---- passes ------------------------------------------------------------------------------------------ */

enum { VOCAB = 96, LENGTH = 150, RANK = 3, WEIGHTS = 64 };

typedef struct world {
    bitaxon_model *model;
    bxn_workspace ws;
    bxn_exec exec;
    bitaxon_error error;
} world;

static void world_open(world *w, const char *path, uint64_t tier, int32_t accuracy, uint32_t threads)
{
    memset(w, 0, sizeof *w);
    w->error = (bitaxon_error)BITAXON_ERROR_INIT;
    bitaxon_model_params params = { .struct_size = sizeof params, .path = path, .threads = threads, .cpu_mask = tier,
                                    .accuracy = accuracy };
    assert_int_equal(bitaxon_model_open(&params, &w->model, &w->error), BITAXON_OK);
    const bxn_model *core = &w->model->core;
    assert_int_equal(
        bxn_workspace_create(&w->model->mem, &core->config, 512, bxn_model_tiles(core), RANK, &w->ws, &w->error),
        BITAXON_OK);
    w->exec = (bxn_exec){ .kernels = &core->kernels, .pool = core->pool, .ws = &w->ws, .error = &w->error };
}

static void world_close(world *w)
{
    bxn_workspace_free(&w->model->mem, &w->ws);
    bitaxon_model_free(w->model);
}

/* An adapter of everything that may have one. */
typedef struct model_adapter {
    fixture_lora parts[WEIGHTS];
    bxn_lora loras[WEIGHTS];
    bxn_adapters adapters;
    uint32_t count;
    bool dora, zero;
    const bxn_model *model;
} model_adapter;

static bitaxon_status adapt(void *user, bxn_weight *weight, const char *name, int32_t expert)
{
    model_adapter *m = user;
    if (expert >= 0 || !bxn_weight_adaptable(name))
        return BITAXON_OK;
    const uint32_t at = weight->id - 1;
    assert_true(at < WEIGHTS);
    fixture_weight f = { .w = *weight };
    f.value = malloc((size_t)weight->rows * weight->cols * sizeof *f.value);
    float *row = malloc(weight->cols * sizeof *row);
    for (uint32_t n = 0; n < weight->rows; n++) {
        bxn_weight_row(weight, n, row);
        for (uint32_t k = 0; k < weight->cols; k++)
            f.value[(size_t)n * weight->cols + k] = (double)row[k];
    }
    fixture_lora_make(&m->parts[at], &f, RANK, 0.05f, m->dora && weight->id % 2 == 0, weight->id);
    if (m->zero)
        memset(m->parts[at].b, 0, RANK * m->parts[at].lora.ldb * sizeof(float));
    m->loras[at] = m->parts[at].lora;
    m->count++;
    free(row);
    free(f.value);
    return BITAXON_OK;
}

static void adapter_open(model_adapter *m, const bxn_model *model, bool dora, bool zero)
{
    memset(m, 0, sizeof *m);
    m->dora = dora;
    m->zero = zero;
    assert_int_equal(bxn_model_weights(model, adapt, m), BITAXON_OK);
    m->adapters = (bxn_adapters){ .count = 1, .loras = { m->loras }, .weights = { 1 } };
}

static void adapter_close(model_adapter *m)
{
    for (uint32_t i = 0; i < WEIGHTS; i++)
        fixture_lora_free(&m->parts[i]);
}

/* Logits [LENGTH, VOCAB] of a fixed text that is read in pieces: `first` tokens, then `piece` at a time. */
static void read_text(world *w, const bxn_adapters *adapters, uint32_t first, uint32_t piece, float *logits)
{
    const bxn_model *core = &w->model->core;
    bitaxon_cache *cache;
    bitaxon_cache_params params = { .struct_size = sizeof params, .kv_type = BITAXON_KV_F32, .max_tokens = 512 };
    assert_int_equal(bitaxon_cache_create(w->model, &params, &cache, &w->error), BITAXON_OK);
    bxn_state *spare;
    w->exec.adapters = adapters;
    for (uint32_t t = 0, count; t < LENGTH; t += count) {
        count = t == 0 ? first : piece;
        count = count < BXN_TILE ? count : BXN_TILE;
        count = count < LENGTH - t ? count : LENGTH - t;
        int32_t tokens[BXN_TILE];
        for (uint32_t i = 0; i < count; i++)
            tokens[i] = (int32_t)(((t + i) * 2654435761u + ((t + i) >> 3)) % VOCAB);
        assert_int_equal(bxn_state_create(&w->model->mem, core, &spare, &w->error), BITAXON_OK);
        assert_int_equal(bxn_cache_prepare(&cache->core, count, &w->error), BITAXON_OK);
        bxn_kv_view view = { &cache->core.layout, cache->core.data, cache->core.first_page };
        bxn_segment segment = { 0, count, cache->core.length, cache->core.state->scan, spare->scan, &view };
        assert_int_equal(bxn_forward(core, &w->exec, tokens, count, &segment, 1), BITAXON_OK);
        assert_int_equal(bxn_head(core, &w->exec, 0, count, logits + (size_t)t * VOCAB, VOCAB), BITAXON_OK);
        bxn_cache_commit(&cache->core, tokens, count, BXN_PHASE_PREFILL, &spare);
        if (spare != NULL)
            bxn_state_unref(&w->model->mem, core, spare);
        assert_int_equal(w->ws.taken.inputs, 0);
        assert_int_equal(w->ws.taken.low, 0);
    }
    bitaxon_cache_free(cache);
    w->exec.adapters = NULL;
}

static double distance(const float *a, const float *b)
{
    double most = 0;
    for (size_t i = 0; i < (size_t)LENGTH * VOCAB; i++)
        most = fmax(most, fabs((double)a[i] - (double)b[i]));
    return most;
}

static float none[LENGTH * VOCAB], with[LENGTH * VOCAB], other[LENGTH * VOCAB];

static void test_bits(void **state)
{
    (void)state;
    static const struct {
        const char *path;
        int32_t accuracy;
    } models[] = { { "tests/golden/tiny-fp32", BITAXON_ACCURACY_EXACT },
                   { "tests/golden/tiny-q4", BITAXON_ACCURACY_EXACT },
                   { "tests/golden/tiny-q4", BITAXON_ACCURACY_NEAR },
                   { "tests/golden/tiny-q4", BITAXON_ACCURACY_FAST } };
    for (size_t tier = 0; tier < TIERS; tier++) {
        for (size_t i = 0; i < sizeof models / sizeof *models && tier_present(tier); i++) {
            static model_adapter zero, mixed;
            world w, several;
            world_open(&w, models[i].path, tiers[tier], models[i].accuracy, 1);
            world_open(&several, models[i].path, tiers[tier], models[i].accuracy, 3);
            adapter_open(&zero, &w.model->core, false, true);
            adapter_open(&mixed, &w.model->core, true, false);
            assert_int_equal(zero.count, 2 + 2 + 4 + 3 + 2 + 3);
            read_text(&w, NULL, LENGTH, LENGTH, none);
            read_text(&w, &zero.adapters, LENGTH, LENGTH, with);
            assert_memory_equal(none, with, sizeof none);
            read_text(&w, &mixed.adapters, LENGTH, LENGTH, with);
            assert_true(distance(none, with) > 1e-3);
            static const uint32_t pieces[][2] = { { 1, 37 }, { 40, 1 }, { 5, 9 } };
            for (size_t p = 0; p < 3; p++) {
                read_text(p == 0 ? &w : &several, &mixed.adapters, pieces[p][0], pieces[p][1], other);
                assert_memory_equal(with, other, sizeof with);
            }
            adapter_close(&zero);
            adapter_close(&mixed);
            world_close(&several);
            world_close(&w);
        }
    }
}

/* ---- merged ------------------------------------------------------------------------------------------ */

typedef struct merger {
    const model_adapter *adapter;
    float *merged[WEIGHTS];
} merger;

/* W' = g o (W + s (A B)^T), in double, instead of W. */
static bitaxon_status merge(void *user, bxn_weight *weight, const char *name, int32_t expert)
{
    merger *m = user;
    (void)name;
    const bxn_lora *lora = expert < 0 ? &m->adapter->loras[weight->id - 1] : NULL;
    if (lora == NULL || lora->rank == 0)
        return BITAXON_OK;
    float *out = malloc((size_t)weight->rows * weight->cols * sizeof *out);
    for (uint32_t n = 0; n < weight->rows; n++) {
        float *row = out + (size_t)n * weight->cols;
        bxn_weight_row(weight, n, row);
        for (uint32_t k = 0; k < weight->cols; k++) {
            double value = (double)row[k];
            for (uint32_t r = 0; r < lora->rank; r++)
                value += (double)lora->scale * (double)lora->b[r * lora->ldb + n] * (double)lora->a[r * lora->lda + k];
            row[k] = (float)(lora->gain != NULL ? (double)lora->gain[n] * value : value);
        }
    }
    m->merged[weight->id - 1] = out;
    weight->kind = BXN_WEIGHT_DENSE;
    weight->xq = BXN_XQ_NONE;
    weight->dense = (bxn_dense){ out, BXN_F32, weight->rows, weight->cols };
    return BITAXON_OK;
}

static void test_merged(void **state)
{
    (void)state;
    static const char *const paths[] = { "tests/golden/tiny-fp32", "tests/golden/tiny-q4" };
    for (size_t tier = 0; tier < TIERS; tier++) {
        for (int i = 0; i < 4 && tier_present(tier); i++) {
            static model_adapter adapter;
            world w;
            merger m = { .adapter = &adapter };
            world_open(&w, paths[i / 2], tiers[tier], BITAXON_ACCURACY_EXACT, 2);
            adapter_open(&adapter, &w.model->core, i % 2 == 1, false);
            read_text(&w, NULL, LENGTH, LENGTH, none);
            read_text(&w, &adapter.adapters, 100, 1, with);
            assert_int_equal(bxn_model_weights(&w.model->core, merge, &m), BITAXON_OK);
            read_text(&w, NULL, LENGTH, LENGTH, other);
            if (distance(none, with) < 0.05 || distance(with, other) > 1e-3 * distance(none, with))
                fail_msg("%s: %g from the merged model, which is %g from that without", paths[i / 2],
                         distance(with, other), distance(none, other));
            world_close(&w);
            adapter_close(&adapter);
            for (int j = 0; j < WEIGHTS; j++)
                free(m.merged[j]);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_products), cmocka_unit_test(test_bits),
                                        cmocka_unit_test(test_merged) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
