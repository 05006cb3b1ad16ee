/* SPDX-License-Identifier: Apache-2.0 */
/* test_merge.c - a merged model gives what the adapted one gives: within rounding in float, as well as the
 * format allows when quantised; golden fused weights; everything else is copied bit for bit; formats,
 * several adapters with weights, what is refused, and running out of memory anywhere. */
#include "adapter_fixture.h"
#include "convert_fixture.h"
#include "fault_host.h"
#include "fixture_tensors.h"

enum { LENGTH = 60, MOST_VOCAB = 128 };

static const bxn_adapter_plan lora_plan = { .rank = 4, .scale = 20, .seed = 1 };
static const bxn_adapter_plan dora_plan = { .rank = 6, .scale = 2, .dora = true, .seed = 2 };

static bitaxon_model *open_exact(const char *path)
{
    bitaxon_model_params params = { .struct_size = sizeof params, .path = path, .threads = 2,
                                    .accuracy = BITAXON_ACCURACY_EXACT };
    bitaxon_model *model = NULL;
    check_ok(bitaxon_model_open(&params, &model, &error));
    return model;
}

static size_t logits_of(bitaxon_model *model, bitaxon_adapter *const *adapters, const float *weights, uint32_t count,
                        float *logits)
{
    int64_t vocab = 0;
    bitaxon_cache_params cache = { .struct_size = sizeof cache, .kv_type = BITAXON_KV_F32 };
    bitaxon_session_params params = { .struct_size = sizeof params, .cache_params = &cache };
    bitaxon_session *session = NULL;
    int32_t text[LENGTH];
    check_ok(bitaxon_model_info_int(model, "vocab_size", &vocab, &error));
    assert_true(vocab <= MOST_VOCAB);
    for (int i = 0; i < LENGTH; i++)
        text[i] = (int32_t)((i * 37 + i / 7) % vocab);
    check_ok(bitaxon_session_create(model, &params, &session, &error));
    check_ok(bitaxon_session_set_adapters(session, adapters, weights, count, &error));
    check_ok(bitaxon_session_evaluate(session, text, LENGTH, logits, &error));
    bitaxon_session_free(session);
    return (size_t)vocab * LENGTH;
}

static double distance(const float *a, const float *b, size_t count, bool mean)
{
    double worst = 0, square = 0;
    for (size_t i = 0; i < count; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        worst = fmax(worst, d);
        square += d * d;
    }
    return mean ? sqrt(square / (double)count) : worst;
}

static char adapter_paths[4][128];

static bitaxon_adapter *make_adapter(bitaxon_model *model, bxn_adapter_plan plan, float size, int slot)
{
    bitaxon_adapter *adapter = adapter_new(model, plan, size);
    snprintf(adapter_paths[slot], sizeof adapter_paths[slot], "%s/adapter%d.safetensors", scratch, slot);
    check_ok(bitaxon_adapter_save(adapter, adapter_paths[slot], &error));
    return adapter;
}

static void drop_adapters(void)
{
    for (int i = 0; i < 4; i++)
        unlink(adapter_paths[i]);
}

static bitaxon_convert_params merge_params(const char *input, const char *output, uint32_t count)
{
    static const char *const paths[4] = { adapter_paths[0], adapter_paths[1], adapter_paths[2], adapter_paths[3] };
    bitaxon_convert_params p = params_of(input, output);
    p.adapters = paths;
    p.adapter_count = count;
    return p;
}

/* Merge `count` adapters into `path`; how far logits are from those of the adapted model, the plain model being
 * *moved away. */
static double merged_error(const char *path, const bxn_adapter_plan *plans, const float *weights, uint32_t count,
                           const char *format, float size, bool mean, double *moved, reports *seen)
{
    static float plain[LENGTH * MOST_VOCAB], adapted[LENGTH * MOST_VOCAB], merged[LENGTH * MOST_VOCAB];
    bitaxon_model *model = open_exact(path);
    bitaxon_adapter *adapters[4];
    for (uint32_t i = 0; i < count; i++)
        adapters[i] = make_adapter(model, plans[i], size, (int)i);
    size_t n = logits_of(model, NULL, NULL, 0, plain);
    logits_of(model, adapters, weights, count, adapted);
    *moved = distance(plain, adapted, n, mean);
    const char *output = fresh();
    bitaxon_convert_params p = merge_params(path, output, count);
    p.adapter_weights = weights;
    p.format = format;
    p.report = note;
    p.user = seen;
    check_ok(bitaxon_model_merge(&p, &error));
    bitaxon_convert_params v = params_of(output, NULL);
    check_ok(bitaxon_model_verify(&v, &error));
    bitaxon_model *other = open_exact(output);
    logits_of(other, NULL, NULL, 0, merged);
    double found = distance(adapted, merged, n, mean);
    for (uint32_t i = 0; i < count; i++)
        bitaxon_adapter_free(adapters[i]);
    bitaxon_model_free(model);
    bitaxon_model_free(other);
    remove_tree(output);
    drop_adapters();
    return found;
}

static void test_float(void **state)
{
    (void)state;
    const bxn_adapter_plan plans[2] = { lora_plan, dora_plan };
    const float weights[2] = { 0.7f, 0.4f };
    double moved;
    for (uint32_t i = 0; i < 3; i++) {
        reports seen = { 0 };
        double found = merged_error(FP32, i == 1 ? plans + 1 : plans, i == 2 ? weights : NULL, i == 2 ? 2 : 1, NULL,
                                    0.01f, false, &moved, &seen);
        print_message("%s: merged is %.2g from adapted, which is %.2g from the base\n",
                      i == 0 ? "LoRA" : i == 1 ? "DoRA" : "both", found, moved);
        assert_true(moved > 0.05);
        assert_true(found <= 1e-5);
        assert_int_equal(seen.changed, 16); /* all that may be adapted */
        assert_true(seen.count > seen.changed);
    }
}

/* Requantised with the same bits and group the error is that of the format. */
static void test_quantised(void **state)
{
    (void)state;
    char nf4[96], affine8[96];
    snprintf(nf4, sizeof nf4, "%s", fresh());
    snprintf(affine8, sizeof affine8, "%s", fresh());
    quantize_model(FP32, nf4, "nf4");
    quantize_model(FP32, affine8, "affine8");
    const struct {
        const char *path, *format, *text;
        double bound; /* of the distance moved, root mean square */
    } all[] = {
        { Q4, NULL, "affine4 g64", 0.5 }, { nf4, NULL, "nf4 g64", 0.6 }, { affine8, NULL, "affine8 g64", 0.06 },
        { Q4, "f32", "F32", 1e-4 },       { nf4, "f32", "F32", 1e-4 },   { Q4, "affine8", "affine8 g64", 0.06 },
        { FP32, "nf4", "nf4 g64", 0.6 },  { FP32, "f16", "F16", 2e-3 },
    };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        reports seen = { 0 };
        double moved, found = merged_error(all[i].path, &dora_plan, NULL, 1, all[i].format, 0.1f, true, &moved, &seen);
        print_message("%s: merged is %.2g from adapted, which is %.2g from the base (%s)\n", all[i].text, found, moved,
                      seen.first_format);
        assert_true(found <= all[i].bound * moved);
        assert_true(strncmp(seen.first_format, all[i].text, strlen(all[i].text)) == 0);
        assert_int_equal(seen.changed, 16);
    }
    remove_tree(nf4);
    remove_tree(affine8);
}

/* What no adapter changes has the same bytes, and so have tokenizer files. */
static void test_untouched(void **state)
{
    (void)state;
    char packed[96];
    snprintf(packed, sizeof packed, "%s", fresh());
    pack_model(Q4, packed);
    const char *const paths[] = { FP32, Q4, packed };
    for (int i = 0; i < 3; i++) {
        char input[96];
        snprintf(input, sizeof input, "%s", fresh());
        bitaxon_model *model = open_exact(paths[i]);
        bxn_adapter_plan plan = dora_plan;
        plan.targets = "q_proj,input_proj,shared_expert.up_proj";
        bitaxon_adapter_free(make_adapter(model, plan, 0.01f, 0));
        bitaxon_model_free(model);
        file_set set = { 0 }; /* with a tokenizer and a key that is not ours */
        file_set_load(&set, paths[i]);
        file_set_put(&set, "tokenizer.json", "{\"made\": \"up\"}", 14);
        int config = file_set_find(&set, "config.json");
        char text[2048];
        snprintf(text, sizeof text, "{\"somebody_else\": 7, %.*s", (int)set.size[config] - 1,
                 strchr((const char *)set.data[config], '{') + 1);
        file_set_put(&set, "config.json", text, strlen(text));
        mkdir(input, 0700);
        file_set_save(&set, input);
        file_set_free(&set);
        const char *output = fresh();
        bitaxon_convert_params p = merge_params(input, output, 1);
        check_ok(bitaxon_model_merge(&p, &error));
        opened before, after;
        open_files(&before, input);
        open_files(&after, output);
        int changed = 0;
        for (uint64_t t = 0; t < before.tensors->count; t++) {
            const bxn_tensor *tensor = &before.tensors->items[t];
            if (strstr(tensor->name, "q_proj.") != NULL || strncmp(tensor->name, "input_proj.", 11) == 0 ||
                strstr(tensor->name, "shared_expert.up_proj.") != NULL) {
                changed++;
                continue;
            }
            const bxn_tensor *copy = must_find(&after, tensor->name);
            assert_int_equal(copy->bytes, tensor->bytes);
            assert_int_equal(copy->dtype, tensor->dtype);
            assert_memory_equal(bytes_of(&after, tensor->name), bytes_of(&before, tensor->name), tensor->bytes);
        }
        assert_int_equal(changed, i == 1 ? 12 : 4);
        size_t n;
        unsigned char *copied = read_all(output, "tokenizer.json", &n);
        assert_string_equal((char *)copied, "{\"made\": \"up\"}");
        free(copied);
        copied = read_all(output, "config.json", &n);
        assert_non_null(strstr((char *)copied, "somebody_else"));
        free(copied);
        close_files(&before);
        close_files(&after);
        remove_tree(input);
        remove_tree(output);
        drop_adapters();
    }
    remove_tree(packed);
}

static void test_golden(void **state)
{
    (void)state;
    static const char config[] =
        "{\"vocab_size\": 77, \"hidden_dim\": 32, \"num_layers\": 3, \"num_heads\": 2, \"d_source_model\": 64, "
        "\"ssm_d_state\": 3, \"ssm_d_conv\": 3, \"ssm_expand\": 2, \"swa_window_size\": 16, \"moe_num_experts\": 3, "
        "\"moe_top_k\": 2, \"moe_intermediate_dim\": 64}";
    char input[96];
    fixture f;
    fixture_open(&f, "tests/golden/expected.safetensors");
    snprintf(input, sizeof input, "%s", fresh());
    bitaxon_convert_params p = params_of(NULL, input);
    p.config_json = config;
    check_ok(bitaxon_model_new(&p, &error));
    opened o;
    open_files(&o, input);
    char path[512];
    join(path, input, "model.safetensors");
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    fseek(file, (long)must_find(&o, "input_proj.weight")->offset, SEEK_SET);
    assert_int_equal(fwrite(fixture_get(&f, "ad_w", "F32", NULL), 4, 32 * 64, file), 32 * 64);
    fclose(file);
    close_files(&o);
    for (int dora = 0; dora < 2; dora++) {
        bxn_mem mem;
        bxn_st_writer *writer = NULL;
        const uint64_t a[2] = { 64, 4 }, b[2] = { 4, 32 }, m[1] = { 32 };
        check_ok(bxn_mem_init(&mem, NULL, 0, &error));
        snprintf(adapter_paths[0], sizeof adapter_paths[0], "%s/golden.safetensors", scratch);
        check_ok(bxn_st_create(&mem, adapter_paths[0], 8, &writer, &error));
        check_ok(bxn_st_declare(writer, "input_proj.lora_a", BXN_F32, 2, a, &error));
        check_ok(bxn_st_declare(writer, "input_proj.lora_b", BXN_F32, 2, b, &error));
        if (dora)
            check_ok(bxn_st_declare(writer, "input_proj.m", BXN_F32, 1, m, &error));
        check_ok(bxn_st_begin(writer, &error));
        check_ok(bxn_st_put(writer, fixture_get(&f, "ad_a", "F32", NULL), 1024, &error));
        check_ok(bxn_st_put(writer, fixture_get(&f, "ad_b", "F32", NULL), 512, &error));
        if (dora)
            check_ok(bxn_st_put(writer, fixture_get(&f, "dora_m", "F32", NULL), 128, &error));
        check_ok(bxn_st_commit(writer, &error));
        const char *output = fresh();
        p = merge_params(input, output, 1);
        check_ok(bitaxon_model_merge(&p, &error)); /* scale 20 */
        open_files(&o, output);
        float want[32 * 64], got[32 * 64];
        memcpy(want, fixture_get(&f, dora ? "dora_fused_w" : "lora_fused_w", "F32", NULL), sizeof want);
        memcpy(got, bytes_of(&o, "input_proj.weight"), sizeof got);
        double worst = distance(want, got, 32 * 64, false);
        print_message("%s: fused weight within %.2g\n", dora ? "DoRA" : "LoRA", worst);
        assert_true(worst <= 2e-6);
        close_files(&o);
        remove_tree(output);
    }
    drop_adapters();
    remove_tree(input);
    fixture_close(&f);
}

static void test_refused(void **state)
{
    (void)state;
    bitaxon_model *model = open_exact(Q4);
    bitaxon_adapter_free(make_adapter(model, lora_plan, 0.01f, 0));
    bitaxon_model_free(model);
    const char *output = fresh();
    bitaxon_convert_params p = merge_params(FP32, output, 1);
    check_fails(bitaxon_model_merge(&p, &error), BITAXON_MISMATCH, "made for the model");
    p.input = Q4;
    p.adapter_count = 0;
    check_fails(bitaxon_model_merge(&p, &error), BITAXON_INVALID_ARGUMENT, "adapter_count is 0");
    p.adapter_count = 5;
    check_fails(bitaxon_model_merge(&p, &error), BITAXON_INVALID_ARGUMENT, "adapter_count is 5");
    p.adapter_count = 1;
    const float endless = INFINITY;
    p.adapter_weights = &endless;
    check_fails(bitaxon_model_merge(&p, &error), BITAXON_INVALID_ARGUMENT, "weight of adapter 0");
    p.adapter_weights = NULL;
    p.adapter_scale = NAN;
    check_fails(bitaxon_model_merge(&p, &error), BITAXON_INVALID_ARGUMENT, "adapter_scale");
    p.adapter_scale = 0;
    p.format = "affine9";
    check_fails(bitaxon_model_merge(&p, &error), BITAXON_INVALID_ARGUMENT, "affine9");
    p.format = NULL;
    const char *none = NULL, *nowhere = "/nowhere/at.safetensors";
    p.adapters = &none;
    check_fails(bitaxon_model_merge(&p, &error), BITAXON_INVALID_ARGUMENT, "NULL");
    p.adapters = &nowhere;
    check_fails(bitaxon_model_merge(&p, &error), BITAXON_IO, "nowhere");
    p.adapters = NULL;
    check_fails(bitaxon_model_merge(&p, &error), BITAXON_INVALID_ARGUMENT, "adapters");
    assert_int_equal(count_files(output), -1);
    p = merge_params(Q4, Q4, 1);
    check_fails(bitaxon_model_merge(&p, &error), BITAXON_INVALID_ARGUMENT, "input's directory");
    p.output = output;
    reports seen = { .cancel_at = 5 };
    p.report = note;
    p.user = &seen;
    check_fails(bitaxon_model_merge(&p, &error), BITAXON_CANCELLED, "cancelled");
    assert_int_equal(count_files(output), -1);
    p.format = "f16"; /* too large for it */
    p.adapter_scale = 1e9f;
    p.report = NULL;
    check_fails(bitaxon_model_merge(&p, &error), BITAXON_UNSUPPORTED, "beyond F16");
    assert_int_equal(count_files(output), -1);
    drop_adapters();
}

static void test_out_of_memory(void **state)
{
    (void)state;
    bitaxon_model *model = open_exact(Q4);
    bitaxon_adapter_free(make_adapter(model, dora_plan, 0.01f, 0));
    bitaxon_model_free(model);
    fault_host fault;
    fault_host_init(&fault);
    const char *output = fresh();
    bitaxon_convert_params p = merge_params(Q4, output, 1);
    p.host = &fault.host;
    for (int persistent = 0; persistent < 2; persistent++) {
        uint64_t refused = 1;
        for (uint64_t n = 1; refused != 0; n += persistent ? 7 : 3) {
            bitaxon_error error = BITAXON_ERROR_INIT;
            fault_host_arm(&fault, n, persistent);
            bitaxon_status status = bitaxon_model_merge(&p, &error);
            refused = fault.refused;
            fault_host_disarm(&fault);
            if (status != (refused != 0 ? BITAXON_OUT_OF_MEMORY : BITAXON_OK))
                fail_msg("allocation %d: %d %s", (int)n, (int)status, error.message);
            assert_int_equal(count_files(output), status == BITAXON_OK ? 2 : -1);
            assert_string_equal(fault_host_balance(&fault), "");
        }
        remove_tree(output);
    }
    drop_adapters();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_float),
        cmocka_unit_test(test_quantised),
        cmocka_unit_test(test_untouched),
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
