/* SPDX-License-Identifier: Apache-2.0 */
/* test_kv.c - cached keys and values in 8 and 4 bits: the rotation is orthogonal and the same
 * everywhere, the codebook loses what its theory says, attention from stored rows is near
 * attention from the rows themselves, a window in parts gives the bits of a whole one, and
 * the phase of every token survives all ways back to a position. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/api.h"
#include "call_fixture.h"
#include "fault_files.h"
#include "ops/ops.h"

#define ROTATION_HASH 0x22101F467DD4CDA5u

static uint64_t state = 1;

static double uniform(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return ((double)(state >> 33) + 0.5) / 2147483648.0;
}

static double normal(void)
{
    double radius = sqrt(-2 * log(uniform())), angle = 6.283185307179586 * uniform();
    return radius * cos(angle);
}

/* ---- rotation and codebook ---------------------------------------------------------------- */

static void test_rotation(void **unused)
{
    (void)unused;
    static const uint32_t dims[] = {1, 2, 3, 8, 20, 33, 64, 80, 96, 127, 128, 256};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
        uint32_t d = dims[i];
        size_t stride = bxn_round_up(d, 16);
        float *r = malloc(d * stride * sizeof *r);
        assert_non_null(r);
        bxn_kv_rotation(r, d);
        for (uint32_t a = 0; a < d; a++) {
            for (uint32_t b = 0; b < stride; b++) {
                if (b >= d) {
                    assert_true(r[a * stride + b] == 0.0f);
                    continue;
                }
                double dot = 0;
                for (uint32_t k = 0; k < d; k++)
                    dot += (double)r[a * stride + k] * (double)r[b * stride + k];
                assert_true(fabs(dot - (a == b)) < 1e-6);
                assert_true(r[a * stride + b] == r[b * stride + a]);
                assert_true(fabs((double)r[a * stride + b]) <
                            1.4143 / sqrt((double)d)); /* all inputs spread */
            }
        }
        free(r);
    }
    /* the same bits on every machine: caches are saved with it */
    static float r[80 * 80];
    bxn_kv_rotation(r, 80);
    uint64_t hash = 0xCBF29CE484222325u; /* FNV-1a */
    for (size_t i = 0; i < 80 * 80; i++) {
        uint32_t bits;
        memcpy(&bits, &r[i], sizeof bits);
        hash = (hash ^ bits) * 0x100000001B3u;
    }
    assert_int_equal(hash, ROTATION_HASH);
}

/* Mean square error of random unit vectors after 4 bits. */
static double codebook_error(const bxn_kernels *kernels, uint32_t d, int vectors)
{
    static const float levels[8] = BXN_KV_LEVELS;
    float *r = aligned_alloc(64, d * d * sizeof *r), *x = malloc(d * sizeof *x),
          *y = aligned_alloc(64, d * sizeof *y);
    uint8_t *codes = malloc(d);
    assert_true(r != NULL && x != NULL && y != NULL && codes != NULL);
    bxn_kv_rotation(r, d);
    double sum = 0;
    state = 5;
    for (int n = 0; n < vectors; n++) {
        double norm = 0;
        float scale;
        for (uint32_t i = 0; i < d; i++) {
            x[i] = (float)normal();
            norm += (double)x[i] * (double)x[i];
        }
        for (uint32_t i = 0; i < d; i++)
            x[i] = (float)((double)x[i] / sqrt(norm));
        kernels->kv_rotate(r, d, x, d, 1, y);
        kernels->quant_q4(y, d, codes, &scale);
        for (uint32_t i = 0; i < d; i++) {
            double value =
                (codes[i] & 8 ? -1.0 : 1.0) * (double)levels[codes[i] & 7] * (double)scale;
            sum += ((double)y[i] - value) * ((double)y[i] - value);
        }
    }
    free(r);
    free(x);
    free(y);
    free(codes);
    return sum / vectors;
}

/* Spec 6.4 has 0.0095 for coordinates that are N(0, 1). Those of unit vectors have thinner tails,
 * the more so the fewer they are: 0.0092 at 80. */
static void test_codebook(void **unused)
{
    (void)unused;
    bxn_kernels tiers[2];
    bxn_kernels_init(&tiers[0], 0);
    bxn_kernels_init(&tiers[1], bxn_cpu_detect());
    for (int t = 0; t < 2; t++) {
        double wide = codebook_error(&tiers[t], 512, 2000),
               narrow = codebook_error(&tiers[t], 80, 8000);
        print_message("4 bits: mean square error of unit vectors %.5f of 512, %.5f of 80\n", wide,
                      narrow);
        assert_true(fabs(wide - 0.0095) < 0.02 * 0.0095);
        assert_true(narrow < 1.02 * 0.0095 && narrow > 0.95 * 0.0095);
    }
}

/* ---- attention from stored rows -------------------------------------------------------------- */

enum { DIM = 80, KEYS = 700, QUERIES = 16 };

typedef enum data_kind { GAUSSIAN, HEAVY, OUTLIERS, KINDS } data_kind;
static const char *const kind_names[] = {"Gaussian", "heavy tails", "outlier channels"};

/* Rows as layers make them: heavy tails by a random scale for each row and a cubed share, outliers
 * by four channels that are 20 times the others with a common offset. */
static void fill(float *x, data_kind kind)
{
    for (int p = 0; p < KEYS; p++) {
        double size = kind == GAUSSIAN ? 1 : exp(0.5 * normal());
        for (int d = 0; d < DIM; d++) {
            double v = normal();
            if (kind != GAUSSIAN)
                v = size * (0.7 * v + 0.1 * v * v * v);
            if (kind == OUTLIERS && d % 20 == 7)
                v = 8 * v + 12;
            x[p * DIM + d] = (float)v;
        }
    }
}

static void reference(const float *q, const float *k, const float *v, double scale,
                      uint64_t position, double *out)
{
    double weight[KEYS], max = -INFINITY, total = 0;
    for (uint64_t p = 0; p <= position; p++) {
        double dot = 0;
        for (int d = 0; d < DIM; d++)
            dot += (double)q[d] * (double)k[p * DIM + (uint64_t)d];
        weight[p] = dot * scale;
        max = weight[p] > max ? weight[p] : max;
    }
    memset(out, 0, DIM * sizeof *out);
    for (uint64_t p = 0; p <= position; p++) {
        weight[p] = exp(weight[p] - max);
        total += weight[p];
        for (int d = 0; d < DIM; d++)
            out[d] += weight[p] * (double)v[p * DIM + (uint64_t)d];
    }
    for (int d = 0; d < DIM; d++)
        out[d] /= total;
}

/* Relative root mean square error of attention outputs. */
static double stored_error(const bxn_kernels *kernels, bxn_kv_type type, data_kind kind)
{
    static float k[KEYS * DIM], v[KEYS * DIM], q[KEYS * DIM], out[QUERIES * DIM],
        turned[QUERIES * DIM];
    static float r[DIM * DIM], rows[2 * DIM] __attribute__((aligned(64)));
    bxn_kv_layout layout;
    bxn_kv_layout_init(&layout, 1, 1, DIM, type);
    bxn_kv_rotation(r, DIM);
    state = 77 + (uint64_t)kind;
    fill(k, kind);
    fill(v, kind);
    fill(q, GAUSSIAN);
    void *pages[KEYS / BXN_PAGE + 1];
    for (int i = 0; i <= KEYS / BXN_PAGE; i++) {
        pages[i] = aligned_alloc(64, bxn_round_up(layout.page_bytes, 64));
        assert_non_null(pages[i]);
        memset(pages[i], 0xFF, layout.page_bytes);
    }
    for (int p = 0; p < KEYS; p++) {
        const float *key = k + p * DIM, *value = v + p * DIM;
        char scratch[4 * DIM] __attribute__((aligned(64)));
        if (type == BXN_KV_Q4) {
            kernels->kv_rotate(r, DIM, key, DIM, 1, rows);
            kernels->kv_rotate(r, DIM, value, DIM, 1, rows + DIM);
            key = rows;
            value = rows + DIM;
        }
        char *page = pages[p / BXN_PAGE];
        bxn_kv_store(kernels, &layout, key, value, page, page + layout.k_bytes,
                     (uint32_t)p % BXN_PAGE, scratch);
    }
    const float *queries = q;
    if (type == BXN_KV_Q4) {
        kernels->kv_rotate(r, DIM, q, DIM, QUERIES, turned);
        queries = turned;
    }
    float *scratch =
        aligned_alloc(64, bxn_round_up(bxn_attention_scratch(DIM) * sizeof *scratch, 64));
    assert_non_null(scratch);
    bxn_attention_args args = {.q = queries,
                               .ldq = DIM,
                               .scale = 1 / sqrtf(DIM),
                               .count = QUERIES,
                               .head_dim = DIM,
                               .position = KEYS - QUERIES,
                               .window = KEYS,
                               .pages = (const void *const *)pages,
                               .v_offset = layout.k_bytes,
                               .scratch = scratch,
                               .part = BXN_ALL_PARTS,
                               .out = out,
                               .ldout = DIM};
    void (*const entry[])(const bxn_attention_args *) = {
        NULL, kernels->attention_f16, kernels->attention_f32, kernels->attention_i8,
        kernels->attention_q4};
    entry[type](&args);
    if (type == BXN_KV_Q4) {
        kernels->kv_rotate(r, DIM, out, DIM, QUERIES, turned);
        memcpy(out, turned, sizeof out);
    }
    double error = 0, size = 0, want[DIM];
    for (int i = 0; i < QUERIES; i++) {
        reference(q + i * DIM, k, v, 1 / sqrt((double)DIM), (uint64_t)(KEYS - QUERIES + i), want);
        for (int d = 0; d < DIM; d++) {
            error += (want[d] - (double)out[i * DIM + d]) * (want[d] - (double)out[i * DIM + d]);
            size += want[d] * want[d];
        }
    }
    for (int i = 0; i <= KEYS / BXN_PAGE; i++)
        free(pages[i]);
    free(scratch);
    return sqrt(error / size);
}

static void test_stored_attention(void **unused)
{
    (void)unused;
    /* far above the errors of a sound store, far below those of a wrong one */
    static const double most[KINDS][5] = {
        {0, 1e-3, 1e-6, 0.02, 0.2}, {0, 2e-3, 2e-6, 0.05, 0.5}, {0, 5e-3, 1e-5, 0.2, 0.9}};
    bxn_kernels tiers[2];
    bxn_kernels_init(&tiers[0], 0);
    bxn_kernels_init(&tiers[1], bxn_cpu_detect());
    for (int kind = 0; kind < KINDS; kind++)
        for (bxn_kv_type type = BXN_KV_F16; type <= BXN_KV_Q4; type++) {
            double plain = stored_error(&tiers[0], type, (data_kind)kind),
                   best = stored_error(&tiers[1], type, (data_kind)kind);
            print_message("%-17s type %d: relative rms error of attention %.2e (plain C %.2e)\n",
                          kind_names[kind], type, best, plain);
            assert_true(plain < most[kind][type]);
            assert_true(best < most[kind][type]);
        }
}

/* Slots cleared from any place on are zero, those before it are untouched. */
static void test_clear(void **unused)
{
    (void)unused;
    bxn_kernels kernels;
    bxn_kernels_init(&kernels, 0);
    for (bxn_kv_type type = BXN_KV_F16; type <= BXN_KV_Q4; type++)
        for (uint32_t dim = 5; dim < 40; dim += 11) {
            bxn_kv_layout layout;
            bxn_kv_layout_init(&layout, 1, 1, dim, type);
            char *page = malloc(layout.page_bytes), *want = malloc(layout.page_bytes), scratch[256];
            assert_true(page != NULL && want != NULL);
            for (uint32_t used = 0; used <= BXN_PAGE; used++) {
                /* what `used` rows make of zeros is what all rows make when the rest is cleared */
                memset(want, 0, layout.page_bytes);
                memset(page, 0xA5, layout.page_bytes);
                for (uint32_t slot = 0; slot < BXN_PAGE; slot++) {
                    float row[2][40];
                    for (uint32_t d = 0; d < dim; d++) {
                        row[0][d] = (float)((slot * 31 + d * 17) % 23) - 11;
                        row[1][d] = (float)((slot * 13 + d * 29) % 19) - 9;
                    }
                    bxn_kv_store(&kernels, &layout, row[0], row[1], page, page + layout.k_bytes,
                                 slot, scratch);
                    if (slot < used)
                        bxn_kv_store(&kernels, &layout, row[0], row[1], want, want + layout.k_bytes,
                                     slot, scratch);
                }
                bxn_kv_clear(&layout, page, used);
                assert_memory_equal(page, want, layout.page_bytes);
            }
            free(page);
            free(want);
        }
}

/* ---- sessions ---- */

static bitaxon_session *open_session(const char *path, uint32_t threads, int32_t kv,
                                     bitaxon_model **model)
{
    bitaxon_model_params params = {.struct_size = sizeof params, .path = path, .threads = threads};
    bitaxon_cache_params cache = {.struct_size = sizeof cache, .kv_type = kv};
    bitaxon_session_params sp = {.struct_size = sizeof sp, .cache_params = &cache};
    bitaxon_session *session;
    OK(bitaxon_model_open(&params, model, &error));
    OK(bitaxon_session_create(*model, &sp, &session, &error));
    return session;
}

/* Two heads and eight threads: the window of 1300 is cut into parts, one token at a time. */
static void test_parts(void **unused)
{
    (void)unused;
    enum { VOCAB = 96, LENGTH = 1450, LAST = 40 };
    char *root = make_folder();
    static const char *const thetas[] = {"", ", \"rope_theta\": 10000.0"};
    static int32_t text[LENGTH];
    static float whole[LENGTH * VOCAB], single[LAST * VOCAB];
    for (int i = 0; i < LENGTH; i++)
        text[i] = (i * 7 + i / 3 * 11) % VOCAB;
    for (int theta = 0; theta < 2; theta++) {
        char config[256];
        snprintf(config, sizeof config,
                 "\"num_layers\": 3, \"vocab_size\": 96, \"hidden_dim\": 40, \"num_heads\": 2, "
                 "\"swa_window_size\": 1300, \"max_seq_len\": 1500%s",
                 thetas[theta]);
        const char *path = in_folder(root, theta ? "rope" : "plain");
        new_model(path, small_config(config), NULL, NULL);
        for (int32_t kv = BITAXON_KV_F16; kv <= BITAXON_KV_Q4; kv++) {
            bitaxon_model *one, *many;
            bitaxon_session *a =
                open_session(in_folder(root, theta ? "rope" : "plain"), 1, kv, &one);
            bitaxon_session *b =
                open_session(in_folder(root, theta ? "rope" : "plain"), 8, kv, &many);
            OK(bitaxon_session_evaluate(a, text, LENGTH, whole, &error));
            OK(bitaxon_session_prefill(b, text, LENGTH - LAST, &error));
            for (int i = 0; i < LAST; i++)
                OK(bitaxon_session_evaluate(b, text + LENGTH - LAST + i, 1, single + i * VOCAB,
                                            &error));
            assert_memory_equal(single, whole + (LENGTH - LAST) * VOCAB, sizeof single);
            bitaxon_session_free(a);
            bitaxon_session_free(b);
            bitaxon_model_free(one);
            bitaxon_model_free(many);
        }
    }
    remove_folder(root);
}

static void expect_phases(const bxn_cache *cache, const char *want)
{
    assert_int_equal(cache->length, strlen(want));
    for (size_t i = 0; i < strlen(want); i++)
        assert_int_equal(bxn_cache_phase(cache, i),
                         want[i] == 'd' ? BXN_PHASE_DECODE : BXN_PHASE_PREFILL);
}

static void test_phases(void **unused)
{
    (void)unused;
    char *root = make_folder();
    const char *path = in_folder(root, "cache");
    bitaxon_model *model;
    bitaxon_session *session = open_session("tests/golden/tiny-fp32", 1, BITAXON_KV_I8, &model),
                    *other;
    bitaxon_cache *cache = bitaxon_session_cache(session), *clone;
    int32_t text[70] = {1, 2, 3}, token;
    OK(bitaxon_session_prefill(session, text, 3, &error));
    for (int i = 0; i < 4; i++)
        OK(bitaxon_session_decode(session, &token, &error));
    OK(bitaxon_session_prefill(session, text, 2, &error));
    expect_phases(&cache->core, "pppddddpp");
    assert_int_equal(bxn_cache_phase_run(&cache->core, 0, 100), 3);
    assert_int_equal(bxn_cache_phase_run(&cache->core, 4, 2), 2);
    OK(bitaxon_session_rewind(session, 8, &error)); /* reads all again */
    expect_phases(&cache->core, "pppddddp");
    OK(bitaxon_session_rewind(session, 5, &error));
    expect_phases(&cache->core, "pppdd");
    OK(bitaxon_cache_clone(cache, &clone, &error));
    expect_phases(&clone->core, "pppdd");
    bitaxon_cache_free(clone);
    OK(bitaxon_session_prefill(session, text, 62, &error)); /* beyond a word of phases */
    OK(bitaxon_session_decode(session, &token, &error));
    OK(bitaxon_cache_save(cache, path, &error));
    bitaxon_model *again;
    other = open_session("tests/golden/tiny-fp32", 1, BITAXON_KV_I8, &again);
    OK(bitaxon_session_prefill(other, text, 70, &error)); /* something to be replaced */
    OK(bitaxon_cache_load(bitaxon_session_cache(other), path, &error));
    expect_phases(&bitaxon_session_cache(other)->core,
                  "pppddppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppd");
    bitaxon_session_free(other);
    bitaxon_model_free(again);
    bitaxon_session_free(session);
    bitaxon_model_free(model);
    remove_folder(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rotation),
        cmocka_unit_test(test_codebook),
        cmocka_unit_test(test_stored_attention),
        cmocka_unit_test(test_clear),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_phases),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
