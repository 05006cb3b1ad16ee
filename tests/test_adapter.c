/* SPDX-License-Identifier: Apache-2.0 */
/* test_adapter.c - adapters: the golden LoRA and DoRA products, new ones and their identity, files (exact,
 * the same bytes, of the original, damaged), and sessions that have them: every promise of
 * docs/sessions.md, several with weights, swaps, and states kept apart. */
#include "adapter_fixture.h"
#include "call_fixture.h"
#include "fault_host.h"
#include "fixture_tensors.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { VOCAB = 96, LENGTH = 90 };

static char *root;
static int32_t text[LENGTH];

static int set_up(void **state)
{
    (void)state;
    root = make_folder();
    for (int i = 0; i < LENGTH; i++)
        text[i] = (i * 37 + i / 7) % VOCAB;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    remove_folder(root);
    return 0;
}

static bitaxon_model *open_with(const char *path, const bitaxon_host *host, uint32_t threads)
{
    bitaxon_model_params params = { .struct_size = sizeof params, .path = path, .threads = threads, .host = host };
    bitaxon_model *model;
    OK(bitaxon_model_open(&params, &model, &error));
    return model;
}

static bitaxon_model *open_path(const char *path) { return open_with(path, NULL, 2); }

static const bxn_adapter_plan lora_plan = { .rank = 4, .scale = 20, .seed = 1 };
static const bxn_adapter_plan dora_plan = { .rank = 6, .scale = 2, .dora = true, .seed = 2 };
static const float NOISE = 0.01f;

static bitaxon_session *open_session(bitaxon_model *model, bitaxon_adapter *const *adapters, const float *weights,
                                     uint32_t count)
{
    bitaxon_session *session;
    OK(bitaxon_session_create(model, NULL, &session, &error));
    OK(bitaxon_session_set_adapters(session, adapters, weights, count, &error));
    return session;
}

/* ---- products ------------------------------------------------------------------------------------ */

/* A model whose input_proj is the golden weight, and adapter files with the golden halves. */
static void write_golden(const fixture *f)
{
    file_set set = { 0 };
    st_parts parts;
    new_model(in_folder(root, "golden"), small_config("\"hidden_dim\": 32, \"d_source_model\": 64"), NULL, NULL);
    file_set_load(&set, in_folder(root, "golden"));
    int weights = file_set_find(&set, "model.safetensors");
    st_split(set.data[weights], set.size[weights], &parts);
    json_t *offsets = json_object_get(json_object_get(parts.header, "input_proj.weight"), "data_offsets");
    memcpy(parts.data + json_integer_value(json_array_get(offsets, 0)), fixture_get(f, "ad_w", "F32", NULL),
           32 * 64 * 4);
    json_object_del(json_object_get(parts.header, "__metadata__"), "bitaxon.checksum");
    st_join(&parts, &set, "model.safetensors");
    file_set_save(&set, in_folder(root, "golden"));
    st_free(&parts);
    file_set_free(&set);
    for (int dora = 0; dora < 2; dora++) {
        st_parts adapter = { .header = json_object(), .data_bytes = (64 * 4 + 4 * 32 + 32 * (size_t)dora) * 4 };
        adapter.data = malloc(adapter.data_bytes);
        memcpy(adapter.data, fixture_get(f, "ad_a", "F32", NULL), 1024);
        memcpy(adapter.data + 1024, fixture_get(f, "ad_b", "F32", NULL), 512);
        json_object_set_new(
            adapter.header, "input_proj.lora_a",
            json_pack("{s:s, s:[i,i], s:[i,i]}", "dtype", "F32", "shape", 64, 4, "data_offsets", 0, 1024));
        json_object_set_new(
            adapter.header, "input_proj.lora_b",
            json_pack("{s:s, s:[i,i], s:[i,i]}", "dtype", "F32", "shape", 4, 32, "data_offsets", 1024, 1536));
        if (dora) {
            memcpy(adapter.data + 1536, fixture_get(f, "dora_m", "F32", NULL), 128);
            json_object_set_new(
                adapter.header, "input_proj.m",
                json_pack("{s:s, s:[i], s:[i,i]}", "dtype", "F32", "shape", 32, "data_offsets", 1536, 1664));
        }
        file_set one = { 0 };
        st_join(&adapter, &one, dora ? "dora.safetensors" : "lora.safetensors");
        file_set_save(&one, root);
        file_set_free(&one);
        st_free(&adapter);
    }
}

static void test_golden(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "tests/golden/expected.safetensors");
    write_golden(&f);
    bitaxon_model *model = open_path(in_folder(root, "golden"));
    float x[5 * 128] = { 0 }, y[5 * 32], want[5 * 32];
    for (int t = 0; t < 5; t++)
        memcpy(x + (size_t)t * 128, (const char *)fixture_get(&f, "ad_x", "F32", NULL) + t * 256, 256);
    for (int dora = 0; dora < 2; dora++) {
        bitaxon_adapter_params params = { .struct_size = sizeof params,
                                          .path = in_folder(root, dora ? "dora.safetensors" : "lora.safetensors") };
        bitaxon_adapter *adapter;
        OK(bitaxon_adapter_open(model, &params, &adapter, &error)); /* of the original: scale 20 */
        bxn_workspace ws;
        OK(bxn_workspace_create(&model->mem, &model->core.config, 16, false, 4, &ws, &error));
        bxn_adapters in_force = { .count = 1, .loras = { adapter->core.loras }, .weights = { 1 } };
        bxn_exec exec = { .kernels = &model->core.kernels, .pool = model->core.pool, .ws = &ws, .adapters = &in_force,
                          .error = &error };
        OK(bxn_linear(&exec, &model->core.input_proj, x, 128, 5, y, 32));
        memcpy(want, fixture_get(&f, dora ? "dora_out_exact" : "lora_out", "F32", NULL), sizeof want);
        double worst = 0;
        for (int i = 0; i < 5 * 32; i++)
            worst = fmax(worst, fabs((double)y[i] - (double)want[i]));
        print_message("%s: max error %.3g\n", dora ? "DoRA" : "LoRA", worst);
        assert_true(worst <= (dora ? 2e-6 : 1e-5)); /* LoRA's values are up to 40 */
        bxn_workspace_free(&model->mem, &ws);
        bitaxon_adapter_free(adapter);
    }
    bitaxon_model_free(model);
    fixture_close(&f);
}

/* ---- new ones ------------------------------------------------------------------------------------- */

static void test_create(void **state)
{
    (void)state;
    fault_host fault;
    fault_host_init(&fault);
    bitaxon_model *model = open_with("tests/golden/tiny-q4", &fault.host, 1);
    for (int dora = 0; dora < 2; dora++) {
        bxn_adapter_plan plan = dora ? dora_plan : lora_plan;
        bxn_adapter a, b;
        uint64_t trainable, used = model->mem.used;
        uint64_t bytes = bxn_adapter_bytes(&model->core, &plan, &trainable);
        OK(bxn_adapter_create(&model->mem, &model->core, &plan, &a, &error));
        assert_int_equal(model->mem.used - used, bytes);
        OK(bxn_adapter_create(&model->mem, &model->core, &plan, &b, &error));
        assert_memory_equal(a.id, b.id, 16);
        assert_int_equal(a.adapted, 2 + 2 * 2 + 4 + 2 * 3); /* bridges, state spaces, attention, shared experts */
        bxn_adapter_free(&b);
        plan.seed++;
        OK(bxn_adapter_create(&model->mem, &model->core, &plan, &b, &error));
        assert_memory_not_equal(a.id, b.id, 16);
        bxn_adapter_free(&b);
        OK(bxn_adapter_copy(&a, &model->mem, &b, &error));
        assert_memory_equal(a.id, b.id, 16);
        assert_memory_equal(a.values, b.values, a.floats * sizeof(float));
        bxn_adapter_free(&b);
        assert_true((a.gain_floats != 0) == a.dora);
        for (size_t i = 0; i < a.gain_floats; i++) /* it changes nothing yet; all rows here are in 16s: no padding */
            assert_true(fabsf(a.gains[i] - 1) < 1e-5f);
        bxn_adapter_free(&a);
        plan.targets = "q_proj, layer_0.ssm.in_proj";
        OK(bxn_adapter_create(&model->mem, &model->core, &plan, &a, &error));
        assert_int_equal(a.adapted, 2);
        bxn_adapter_free(&a);
        plan.targets = "q_proj,x_proj";
        FAILS(INVALID_ARGUMENT, "x_proj", bxn_adapter_create(&model->mem, &model->core, &plan, &a, &error));
        plan.targets = " ,";
        FAILS(INVALID_ARGUMENT, "empty", bxn_adapter_create(&model->mem, &model->core, &plan, &a, &error));
        plan.targets = NULL;
        plan.rank = 257;
        FAILS(INVALID_ARGUMENT, "257", bxn_adapter_create(&model->mem, &model->core, &plan, &a, &error));
        assert_int_equal(model->mem.used, used);
    }
    bitaxon_model_free(model);
    assert_string_equal(fault_host_balance(&fault), "");
}

/* Gains are those of the sum that is nowhere made. */
static void test_gains(void **state)
{
    (void)state;
    bitaxon_model *model = open_path("tests/golden/tiny-q4");
    bitaxon_adapter *adapter = adapter_new(model, dora_plan, 0.1f);
    const bxn_weight *w = &model->core.input_proj;
    const bxn_lora *lora = &adapter->core.loras[w->id - 1];
    float row[512];
    for (uint32_t o = 0; o < w->rows; o++) {
        double square = 0;
        bxn_weight_row(w, o, row);
        for (uint32_t k = 0; k < w->cols; k++) {
            double v = (double)row[k];
            for (uint32_t r = 0; r < lora->rank; r++)
                v += (double)lora->scale * (double)lora->a[r * lora->lda + k] * (double)lora->b[r * lora->ldb + o];
            square += v * v;
        }
        double gain = (double)lora->m[o] / sqrt(square);
        assert_true(fabs((double)lora->gain[o] - gain) <= 1e-5 * gain);
    }
    bitaxon_adapter_free(adapter);
    bitaxon_model_free(model);
}

/* ---- files ------------------------------------------------------------------------------------------ */

static bitaxon_status open_adapter(bitaxon_model *model, const char *path, float scale, bitaxon_adapter **out)
{
    bitaxon_adapter_params params = { .struct_size = sizeof params, .path = path, .scale = scale };
    bitaxon_status status = bitaxon_adapter_open(model, &params, out, &error);
    assert_true((status == BITAXON_OK) == (*out != NULL));
    return status;
}

static void check_same_file(const char *a, const char *b)
{
    size_t n, m;
    unsigned char *x = read_whole(a, &n), *y = read_whole(b, &m);
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    free(x);
    free(y);
}

static void test_files(void **state)
{
    (void)state;
    bitaxon_model *model = open_path("tests/golden/tiny-q4");
    for (int dora = 0; dora < 2; dora++) {
        bxn_adapter_plan plan = dora ? dora_plan : lora_plan;
        plan.scale = 1.1f; /* no short decimal */
        bitaxon_adapter *adapter = adapter_new(model, plan, NOISE), *again, *other;
        mkdir(in_folder(root, "step"), 0700);
        OK(bitaxon_adapter_save(adapter, in_folder(root, "a.safetensors"), &error));
        OK(bitaxon_adapter_save(adapter, in_folder(root, "step/adapters.safetensors"), &error));
        check_same_file(in_folder(root, "a.safetensors"), in_folder(root, "step/adapters.safetensors"));
        OK(open_adapter(model, in_folder(root, "step"), 0, &again));
        assert_memory_equal(again->core.id, adapter->core.id, 16);
        assert_memory_equal(again->core.values, adapter->core.values, adapter->core.floats * sizeof(float));
        if (dora)
            assert_memory_equal(again->core.gains, adapter->core.gains, adapter->core.gain_floats * sizeof(float));
        assert_true(again->core.scale >= 1.1f && again->core.scale <= 1.1f);
        OK(bitaxon_adapter_save(again, in_folder(root, "b.safetensors"), &error));
        check_same_file(in_folder(root, "a.safetensors"), in_folder(root, "b.safetensors"));
        OK(open_adapter(model, in_folder(root, "a.safetensors"), 3, &other));
        bitaxon_adapter_info info = { .struct_size = sizeof info };
        OK(bitaxon_adapter_get_info(other, &info, &error));
        assert_int_equal(info.rank, plan.rank);
        assert_int_equal(info.dora, dora);
        assert_true(info.scale >= 3 && info.scale <= 3);
        assert_memory_not_equal(info.id, adapter->core.id, 16);
        uint64_t trainable;
        bxn_adapter_bytes(&model->core, &plan, &trainable);
        assert_int_equal(info.parameters, trainable);
        bitaxon_adapter_free(adapter);
        bitaxon_adapter_free(again);
        bitaxon_adapter_free(other);
    }
    bitaxon_adapter *none;
    FAILS(IO, "nowhere", open_adapter(model, in_folder(root, "nowhere"), 0, &none));
    bitaxon_model *other = open_path("tests/golden/tiny-fp32");
    FAILS(MISMATCH, "made for the model", open_adapter(other, in_folder(root, "a.safetensors"), 0, &none));
    bitaxon_model_free(other);
    bitaxon_model_free(model);
}

/* One change of a sound file, and what must be said about it. */
typedef void (*change)(st_parts *parts);

static json_t *tensor(st_parts *parts, const char *name) { return json_object_get(parts->header, name); }
static json_t *meta(st_parts *parts) { return json_object_get(parts->header, "__metadata__"); }

static void rename_tensor(st_parts *parts, const char *from, const char *to)
{
    json_t *item = json_incref(tensor(parts, from));
    json_object_del(parts->header, from);
    json_object_set_new(parts->header, to, item);
}

static float *values_of(st_parts *parts, const char *name)
{
    json_t *offsets = json_object_get(tensor(parts, name), "data_offsets");
    return (float *)(void *)(parts->data + json_integer_value(json_array_get(offsets, 0)));
}

static void no_b(st_parts *p) { rename_tensor(p, "input_proj.lora_b", "output_proj.bias"); }
static void no_a(st_parts *p) { rename_tensor(p, "input_proj.lora_a", "output_proj.bias"); }
static void no_m(st_parts *p) { rename_tensor(p, "input_proj.m", "output_proj.bias"); }
static void move(st_parts *p, const char *a, const char *b, const char *m)
{
    rename_tensor(p, "input_proj.lora_a", a);
    rename_tensor(p, "input_proj.lora_b", b);
    rename_tensor(p, "input_proj.m", m);
}
static void unknown(st_parts *p) { move(p, "something", "input_proj.bias", "input_proj.weight"); }
static void elsewhere(st_parts *p)
{
    move(p, "layer_9.ssm.in_proj.lora_a", "layer_9.ssm.in_proj.lora_b", "layer_9.ssm.in_proj.m");
}
static void router(st_parts *p) { move(p, "layer_1.moe.gate.lora_a", "layer_1.moe.gate.lora_b", "layer_1.moe.gate.m"); }
static void shape_a(st_parts *p)
{
    json_object_set_new(tensor(p, "input_proj.lora_a"), "shape", json_pack("[i,i]", 16, 24));
}
static void shape_b(st_parts *p)
{
    json_object_set_new(tensor(p, "input_proj.lora_b"), "shape", json_pack("[i,i]", 12, 32));
}
static void flat_a(st_parts *p) { json_object_set_new(tensor(p, "input_proj.lora_a"), "shape", json_pack("[i]", 384)); }
static void flat_m(st_parts *p) { json_object_set_new(tensor(p, "input_proj.m"), "shape", json_pack("[i,i]", 1, 64)); }
static void ranks(st_parts *p)
{
    json_object_set_new(tensor(p, "input_proj.lora_a"), "dtype", json_string("F16")); /* 64 x 12 of half the size */
    json_object_set_new(tensor(p, "input_proj.lora_a"), "shape", json_pack("[i,i]", 64, 12));
}
static void integers(st_parts *p) { json_object_set_new(tensor(p, "input_proj.m"), "dtype", json_string("I32")); }
static void not_finite(st_parts *p) { values_of(p, "input_proj.lora_b")[3] = NAN; }
static void endless(st_parts *p) { values_of(p, "input_proj.m")[7] = INFINITY; }
static void base(st_parts *p) { json_object_set_new(meta(p), "base_fingerprint", json_string("00ff")); }
static void scale(st_parts *p) { json_object_set_new(meta(p), "lora_scale", json_string("2,5")); }
static void no_scale(st_parts *p) { json_object_set_new(meta(p), "lora_scale", json_string("inf")); }
static void version(st_parts *p) { json_object_set_new(meta(p), "format_version", json_string("2")); }
static void type(st_parts *p) { json_object_set_new(meta(p), "type", json_string("lora")); }
static void other_type(st_parts *p) { json_object_set_new(meta(p), "type", json_string("ia3")); }
static void empty(st_parts *p) { json_object_clear(p->header); }

static void test_bad_files(void **state)
{
    (void)state;
    static const struct {
        change change;
        bitaxon_status status;
        const char *part;
    } bad[] = {
        { no_b, BITAXON_FORMAT, "input_proj has no lora_b" },
        { no_a, BITAXON_FORMAT, "input_proj has no lora_a" },
        { no_m, BITAXON_FORMAT, "input_proj has no m" },
        { unknown, BITAXON_FORMAT, "something" },
        { elsewhere, BITAXON_MISMATCH, "layer_9.ssm" },
        { router, BITAXON_MISMATCH, "layer_1.moe.gate" },
        { shape_a, BITAXON_MISMATCH, "[16, 24]" },
        { shape_b, BITAXON_MISMATCH, "[12, 32]" },
        { flat_a, BITAXON_FORMAT, "two dimensions" },
        { flat_m, BITAXON_FORMAT, "one dimension" },
        { ranks, BITAXON_FORMAT, "rank 12" },
        { integers, BITAXON_UNSUPPORTED, "I32" },
        { not_finite, BITAXON_FORMAT, "input_proj.lora_b: value 3" },
        { endless, BITAXON_FORMAT, "input_proj.m: value 7" },
        { base, BITAXON_MISMATCH, "00ff" },
        { scale, BITAXON_FORMAT, "2,5" },
        { no_scale, BITAXON_FORMAT, "inf" },
        { version, BITAXON_UNSUPPORTED, "format_version 2" },
        { type, BITAXON_FORMAT, "type lora" },
        { other_type, BITAXON_UNSUPPORTED, "ia3" },
        { empty, BITAXON_FORMAT, "" },
    };
    fault_host fault;
    fault_host_init(&fault);
    bitaxon_model *model = open_with("tests/golden/tiny-q4", &fault.host, 1);
    bxn_adapter_plan plan = dora_plan;
    plan.targets = "input_proj, q_proj";
    bitaxon_adapter *adapter = adapter_new(model, plan, NOISE), *none;
    OK(bitaxon_adapter_save(adapter, in_folder(root, "sound.safetensors"), &error));
    bitaxon_adapter_free(adapter);
    int64_t before = fault.bytes;
    size_t size;
    unsigned char *file = read_whole(in_folder(root, "sound.safetensors"), &size);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        st_parts parts;
        file_set one = { 0 };
        st_split(file, size, &parts);
        bad[i].change(&parts);
        st_join(&parts, &one, "bad.safetensors");
        file_set_save(&one, root);
        bitaxon_status status = open_adapter(model, in_folder(root, "bad.safetensors"), 0, &none);
        if (status != bad[i].status || strstr(error.message, bad[i].part) == NULL)
            fail_msg("change %zu: %s: '%s', not %s with '%s'", i, bitaxon_status_name(status), error.message,
                     bitaxon_status_name(bad[i].status), bad[i].part);
        assert_int_equal(fault.bytes, before);
        file_set_free(&one);
        st_free(&parts);
    }
    for (size_t cut = 0; cut < size; cut += cut < 600 ? 7 : 61) { /* every header, some of the data */
        write_whole(in_folder(root, "cut.safetensors"), file, cut);
        assert_int_equal(open_adapter(model, in_folder(root, "cut.safetensors"), 0, &none), BITAXON_FORMAT);
        assert_int_equal(fault.bytes, before);
    }
    free(file);
    bitaxon_model_free(model);
    assert_string_equal(fault_host_balance(&fault), "");
}

static int warnings;
static void count_warnings(void *user, int32_t level, const char *line)
{
    (void)user;
    warnings += level == BITAXON_LOG_WARNING && strstr(line, "20") != NULL;
}

/* As the original writes them: no metadata, and perhaps all parameters of the adapted model. */
static void test_files_of_the_original(void **state)
{
    (void)state;
    bitaxon_host host = { .struct_size = sizeof host, .log = count_warnings };
    bitaxon_model *model = open_with("tests/golden/tiny-q4", &host, 1);
    bitaxon_adapter *adapter = adapter_new(model, lora_plan, NOISE), *again;
    OK(bitaxon_adapter_save(adapter, in_folder(root, "own.safetensors"), &error));
    size_t size;
    unsigned char *file = read_whole(in_folder(root, "own.safetensors"), &size);
    st_parts parts;
    file_set one = { 0 };
    st_split(file, size, &parts);
    json_object_del(parts.header, "__metadata__");
    st_join(&parts, &one, "dump.safetensors");
    file_set_save(&one, root);
    warnings = 0;
    OK(open_adapter(model, in_folder(root, "dump.safetensors"), 0, &again));
    assert_int_equal(warnings, 1);
    assert_memory_equal(again->core.id, adapter->core.id, 16); /* its scale is 20 */
    bitaxon_adapter_free(again);
    OK(open_adapter(model, in_folder(root, "dump.safetensors"), 2, &again));
    assert_int_equal(warnings, 1);
    assert_true(again->core.scale >= 2 && again->core.scale <= 2);
    bitaxon_adapter_free(again);
    /* the base beside it */
    parts.data = realloc(parts.data, parts.data_bytes + 64);
    memset(parts.data + parts.data_bytes, 1, 64);
    json_object_set_new(parts.header, "layer_0.ssm.in_proj.linear.weight",
                        json_pack("{s:s, s:[i], s:[I,I]}", "dtype", "U8", "shape", 64, "data_offsets",
                                  (json_int_t)parts.data_bytes, (json_int_t)parts.data_bytes + 64));
    parts.data_bytes += 64;
    st_join(&parts, &one, "dump.safetensors");
    file_set_save(&one, root);
    OK(open_adapter(model, in_folder(root, "dump.safetensors"), 0, &again));
    assert_memory_equal(again->core.id, adapter->core.id, 16);
    bitaxon_adapter_free(again);
    bitaxon_adapter_free(adapter);
    st_free(&parts);
    file_set_free(&one);
    free(file);
    bitaxon_model_free(model);
}

/* ---- sessions ------------------------------------------------------------------------------------------ */

static void read_text(bitaxon_session *session, int first, int count, float *logits)
{
    const float *last;
    OK(bitaxon_session_prefill(session, text + first, (size_t)count, &error));
    OK(bitaxon_session_logits(session, &last, &error));
    memcpy(logits, last, VOCAB * sizeof(float));
}

static double distance(const float *a, const float *b)
{
    double worst = 0;
    for (int i = 0; i < VOCAB; i++)
        worst = fmax(worst, fabs((double)a[i] - (double)b[i]));
    return worst;
}

/* The same text with these adapters, from scratch. */
static void from_scratch(bitaxon_model *model, bitaxon_adapter *const *adapters, const float *weights, uint32_t count,
                         int length, float *logits)
{
    bitaxon_session *session = open_session(model, adapters, weights, count);
    read_text(session, 0, length, logits);
    bitaxon_session_free(session);
}

static void check_promises(const char *path, bool dora)
{
    float want[VOCAB], got[VOCAB], longer[VOCAB], plain[VOCAB];
    bitaxon_model *model = open_path(path);
    bitaxon_adapter *pair[2] = { adapter_new(model, dora ? dora_plan : lora_plan, NOISE),
                                 adapter_new(model, dora ? lora_plan : dora_plan, NOISE) };
    const float weights[2] = { 0.7f, -0.4f };
    from_scratch(model, pair, weights, 2, 60, want);
    from_scratch(model, pair, weights, 2, LENGTH, longer);
    from_scratch(model, NULL, NULL, 0, 60, plain);
    assert_true(distance(want, plain) > 1e-2);
    bitaxon_model *one = open_with(path, NULL, 1); /* another number of threads */
    bitaxon_adapter *same[2] = { adapter_new(one, dora ? dora_plan : lora_plan, NOISE),
                                 adapter_new(one, dora ? lora_plan : dora_plan, NOISE) };
    from_scratch(one, same, weights, 2, 60, got);
    assert_memory_equal(got, want, sizeof got);
    bitaxon_adapter_free(same[0]);
    bitaxon_adapter_free(same[1]);
    bitaxon_model_free(one);

    bitaxon_session *session = open_session(model, pair, weights, 2);
    for (int at = 0; at < 60; at += at % 7 + 1) { /* any split */
        int n = at % 7 + 1 < 60 - at ? at % 7 + 1 : 60 - at;
        read_text(session, at, n, got);
    }
    assert_memory_equal(got, want, sizeof got);
    bitaxon_cache *clone;
    OK(bitaxon_cache_clone(bitaxon_session_cache(session), &clone, &error));
    OK(bitaxon_cache_checkpoint(bitaxon_session_cache(session), &error));
    read_text(session, 60, LENGTH - 60, got);
    assert_memory_equal(got, longer, sizeof got);
    OK(bitaxon_session_rewind(session, 23, &error)); /* replayed */
    read_text(session, 23, 37, got);
    assert_memory_equal(got, want, sizeof got);
    OK(bitaxon_cache_save(bitaxon_session_cache(session), in_folder(root, "saved"), &error));

    /* A clone goes on where it was, with the adapters it was read with. */
    OK(bitaxon_session_set_cache(session, clone, &error));
    read_text(session, 60, LENGTH - 60, got);
    assert_memory_equal(got, longer, sizeof got);
    bitaxon_cache_free(clone);

    /* Saved and loaded. */
    bitaxon_session *second = open_session(model, pair, weights, 2);
    OK(bitaxon_cache_load(bitaxon_session_cache(second), in_folder(root, "saved"), &error));
    read_text(second, 60, LENGTH - 60, got);
    assert_memory_equal(got, longer, sizeof got);
    OK(bitaxon_cache_save(bitaxon_session_cache(second), in_folder(root, "again"), &error));
    bitaxon_session_free(second);

    /* One with weight 1 is the adapter; with weight 0 it is nothing but rounding. */
    float nothing[2] = { 0, 0 }, first[VOCAB];
    from_scratch(model, pair, nothing, 2, 60, got);
    assert_true(distance(got, plain) < 1e-5);
    from_scratch(model, pair, NULL, 1, 60, first);
    float only[2] = { 1, 0 };
    from_scratch(model, pair, only, 2, 60, got);
    assert_true(distance(got, first) < 1e-4);
    bitaxon_adapter_free(pair[0]);
    bitaxon_adapter_free(pair[1]);
    bitaxon_session_free(session);
    bitaxon_model_free(model);
}

static void test_promises(void **state)
{
    (void)state;
    check_promises("tests/golden/tiny-fp32", false);
    check_promises("tests/golden/tiny-q4", true);
}

static void test_decode(void **state)
{
    (void)state;
    bitaxon_model *model = open_path("tests/golden/tiny-q4");
    bitaxon_adapter *adapter = adapter_new(model, dora_plan, NOISE);
    bitaxon_session *a = open_session(model, &adapter, NULL, 1), *b = open_session(model, &adapter, NULL, 1);
    bitaxon_session *plain = open_session(model, NULL, NULL, 0);
    float logits[VOCAB];
    read_text(a, 0, 40, logits);
    read_text(b, 0, 50, logits);
    read_text(plain, 0, 40, logits);
    bitaxon_cache *twins[2];
    OK(bitaxon_cache_clone(bitaxon_session_cache(a), &twins[0], &error));
    OK(bitaxon_cache_clone(bitaxon_session_cache(b), &twins[1], &error));
    int32_t together[12][2], token;
    bitaxon_session *const both[2] = { a, b }, *const mixed[2] = { a, plain };
    uint32_t failed;
    for (int i = 0; i < 12; i++)
        OK(bitaxon_batch_decode(both, 2, together[i], &failed, &error));
    FAILS(MISMATCH, "session 1", bitaxon_batch_decode(mixed, 2, together[0], &failed, &error));
    assert_int_equal(failed, 1);
    for (int s = 0; s < 2; s++) { /* alone they do the same */
        OK(bitaxon_session_set_cache(both[s], twins[s], &error));
        for (int i = 0; i < 12; i++) {
            OK(bitaxon_session_decode(both[s], &token, &error));
            assert_int_equal(token, together[i][s]);
        }
        bitaxon_cache_free(twins[s]);
    }
    bitaxon_adapter_free(adapter); /* sessions keep it */
    OK(bitaxon_session_decode(a, &token, &error));
    bitaxon_session_free(a);
    bitaxon_session_free(b);
    bitaxon_session_free(plain);
    bitaxon_model_free(model);
}

/* What was read with one set of adapters is never gone on from with another. */
static void test_apart(void **state)
{
    (void)state;
    bitaxon_model *model = open_path("tests/golden/tiny-q4"), *stranger = open_path("tests/golden/tiny-q4");
    bitaxon_adapter *adapter = adapter_new(model, lora_plan, NOISE), *other = adapter_new(model, dora_plan, NOISE);
    bitaxon_adapter *foreign = adapter_new(stranger, lora_plan, NOISE);
    bitaxon_session *session = open_session(model, &adapter, NULL, 1);
    float logits[VOCAB], want[VOCAB];
    int32_t token;
    const float *last;
    double sum;
    read_text(session, 0, 30, logits);
    const float half = 0.5f;
    FAILS(MISMATCH, "no adapter", bitaxon_session_set_adapters(session, NULL, NULL, 0, &error));
    FAILS(MISMATCH, "reset", bitaxon_session_set_adapters(session, &other, NULL, 1, &error));
    FAILS(MISMATCH, "0.5", bitaxon_session_set_adapters(session, &adapter, &half, 1, &error));
    FAILS(MISMATCH, "another model", bitaxon_session_set_adapters(session, &foreign, NULL, 1, &error));
    OK(bitaxon_session_set_adapters(session, &adapter, NULL, 1, &error)); /* the same again */
    OK(bitaxon_cache_save(bitaxon_session_cache(session), in_folder(root, "adapted"), &error));
    bitaxon_cache *adapted;
    OK(bitaxon_cache_clone(bitaxon_session_cache(session), &adapted, &error));

    bitaxon_session *plain = open_session(model, NULL, NULL, 0);
    read_text(plain, 0, 30, want);
    OK(bitaxon_cache_save(bitaxon_session_cache(plain), in_folder(root, "plain"), &error));
    FAILS(MISMATCH, "no adapter", bitaxon_cache_load(bitaxon_session_cache(plain), in_folder(root, "adapted"), &error));
    FAILS(MISMATCH, "no adapter", bitaxon_cache_load(bitaxon_session_cache(session), in_folder(root, "plain"), &error));
    OK(bitaxon_session_logits(plain, &last, &error)); /* it is as it was */
    assert_memory_equal(last, want, sizeof want);

    OK(bitaxon_session_set_cache(plain, adapted, &error)); /* taken, and of no use yet */
    FAILS(MISMATCH, "put those on", bitaxon_session_prefill(plain, text, 1, &error));
    FAILS(MISMATCH, "put those on", bitaxon_session_decode(plain, &token, &error));
    FAILS(MISMATCH, "put those on", bitaxon_session_sample(plain, &token, &error));
    FAILS(MISMATCH, "put those on", bitaxon_session_logits(plain, &last, &error));
    FAILS(MISMATCH, "put those on", bitaxon_session_score(plain, text, 2, &sum, NULL, &error));
    FAILS(MISMATCH, "put those on", bitaxon_session_generate(plain, NULL, NULL, &error));
    FAILS(MISMATCH, "put those on", bitaxon_session_rewind(plain, 10, &error));
    assert_int_equal(bitaxon_session_position(plain), 30);
    FAILS(MISMATCH, "adapter", bitaxon_session_set_adapters(plain, &other, NULL, 1, &error));
    OK(bitaxon_session_set_adapters(plain, &adapter, NULL, 1, &error));
    OK(bitaxon_session_logits(plain, &last, &error));
    assert_memory_equal(last, logits, sizeof logits);
    OK(bitaxon_session_rewind(plain, 0, &error)); /* empty: anything goes */
    OK(bitaxon_session_set_adapters(plain, NULL, NULL, 0, &error));
    read_text(plain, 0, 30, logits);
    assert_memory_equal(logits, want, sizeof want);

    /* A cache that no session has takes what it finds, and keeps whose it is. */
    bitaxon_cache *loaded;
    OK(bitaxon_cache_create(model, NULL, &loaded, &error));
    OK(bitaxon_cache_load(loaded, in_folder(root, "adapted"), &error));
    bitaxon_session_params params = { .struct_size = sizeof params, .cache = loaded };
    bitaxon_session *late;
    OK(bitaxon_session_create(model, &params, &late, &error));
    FAILS(MISMATCH, "put those on", bitaxon_session_prefill(late, text, 1, &error));
    OK(bitaxon_session_set_adapters(late, &adapter, NULL, 1, &error));
    OK(bitaxon_session_prefill(late, text, 1, &error));
    bitaxon_cache_reset(loaded);
    OK(bitaxon_session_set_adapters(late, NULL, NULL, 0, &error));
    read_text(late, 0, 30, logits);
    assert_memory_equal(logits, want, sizeof want);
    bitaxon_session_free(late);
    bitaxon_cache_free(loaded);
    bitaxon_cache_free(adapted);
    bitaxon_session_free(session);
    bitaxon_session_free(plain);
    bitaxon_adapter_free(adapter);
    bitaxon_adapter_free(other);
    bitaxon_adapter_free(foreign);
    bitaxon_model_free(model);
    bitaxon_model_free(stranger);
}

/* Files of the version without adapters are those of sessions without. */
static void test_old_cache_file(void **state)
{
    (void)state;
    bitaxon_model *model = open_path("tests/golden/tiny-q4");
    bitaxon_session *session = open_session(model, NULL, NULL, 0);
    float logits[VOCAB], want[VOCAB];
    OK(bitaxon_session_prefill(session, text, 40, &error));
    OK(bitaxon_cache_save(bitaxon_session_cache(session), in_folder(root, "new"), &error));
    read_text(session, 40, 10, want);
    size_t size;
    unsigned char *file = read_whole(in_folder(root, "new"), &size);
    uint32_t numbers[2] = { 2, 120 }; /* version, bytes of the header */
    memcpy(file + 8, numbers, sizeof numbers);
    uint64_t sum = XXH3_64bits(file, 120);
    memmove(file + 120 + 8, file + 208 + 8, size - 208 - 8);
    memcpy(file + 120, &sum, 8);
    write_whole(in_folder(root, "old"), file, size - 88);
    OK(bitaxon_cache_load(bitaxon_session_cache(session), in_folder(root, "old"), &error));
    read_text(session, 40, 10, logits);
    assert_memory_equal(logits, want, sizeof want);
    bitaxon_adapter *adapter = adapter_new(model, lora_plan, NOISE);
    bitaxon_cache_reset(bitaxon_session_cache(session));
    OK(bitaxon_session_set_adapters(session, &adapter, NULL, 1, &error));
    FAILS(MISMATCH, "no adapter", bitaxon_cache_load(bitaxon_session_cache(session), in_folder(root, "old"), &error));
    numbers[0] = 4;
    memcpy(file + 8, numbers, sizeof numbers);
    write_whole(in_folder(root, "old"), file, size - 88);
    FAILS(UNSUPPORTED, "version 4", bitaxon_cache_load(bitaxon_session_cache(session), in_folder(root, "old"), &error));
    free(file);
    bitaxon_adapter_free(adapter);
    bitaxon_session_free(session);
    bitaxon_model_free(model);
}

/* ---- memory -------------------------------------------------------------------------------------------- */

/* What one turn does with a model: open, put on, read, save, merge's twin of it is test_merge's. */
static bitaxon_status turn(bitaxon_model *model, float *logits)
{
    bitaxon_adapter *adapter = NULL;
    bitaxon_session *session = NULL;
    const float *last;
    bitaxon_status status = open_adapter(model, in_folder(root, "memory.safetensors"), 0, &adapter);
    if (status == BITAXON_OK)
        status = bitaxon_session_create(model, NULL, &session, &error);
    if (status == BITAXON_OK)
        status = bitaxon_session_set_adapters(session, &adapter, NULL, 1, &error);
    if (status == BITAXON_OK)
        status = bitaxon_session_prefill(session, text, 20, &error);
    if (status == BITAXON_OK)
        status = bitaxon_adapter_save(adapter, in_folder(root, "saved.safetensors"), &error);
    if (status == BITAXON_OK)
        status = bitaxon_session_logits(session, &last, &error);
    if (status == BITAXON_OK)
        memcpy(logits, last, VOCAB * sizeof(float));
    bitaxon_session_free(session);
    bitaxon_adapter_free(adapter);
    return status;
}

static void test_out_of_memory(void **state)
{
    (void)state;
    fault_host fault;
    fault_host_init(&fault);
    bitaxon_model *model = open_with("tests/golden/tiny-q4", &fault.host, 1);
    bitaxon_adapter *adapter = adapter_new(model, dora_plan, NOISE);
    OK(bitaxon_adapter_save(adapter, in_folder(root, "memory.safetensors"), &error));
    bitaxon_adapter_free(adapter);
    float want[VOCAB], got[VOCAB];
    OK(turn(model, want));
    int64_t before = fault.bytes;
    for (int persistent = 0; persistent < 2; persistent++) {
        uint64_t n = 0, refused = 1;
        while (refused != 0) {
            fault_host_arm(&fault, ++n, persistent);
            bitaxon_status status = turn(model, got);
            refused = fault.refused;
            fault_host_disarm(&fault);
            if (status != (refused != 0 ? BITAXON_OUT_OF_MEMORY : BITAXON_OK))
                fail_msg("allocation %llu: %s: %s", (unsigned long long)n, bitaxon_status_name(status), error.message);
            assert_int_equal(fault.bytes, before);
        }
        assert_true(n > 20);
        assert_memory_equal(got, want, sizeof want);
    }
    /* Larger buffers that there is no memory for leave those in use. */
    bxn_adapter_plan wide = lora_plan;
    wide.rank = BXN_ADAPTER_ROOM + 8;
    adapter = adapter_new(model, wide, NOISE);
    bitaxon_session *session = open_session(model, NULL, NULL, 0);
    for (int persistent = 0; persistent < 2; persistent++) {
        bitaxon_cache_reset(bitaxon_session_cache(session));
        fault_host_arm(&fault, 1, persistent);
        bitaxon_status status = bitaxon_session_set_adapters(session, &adapter, NULL, 1, &error);
        assert_int_not_equal(fault.refused, 0);
        fault_host_disarm(&fault);
        assert_int_equal(status, BITAXON_OUT_OF_MEMORY);
        read_text(session, 0, 20, got);
        from_scratch(model, NULL, NULL, 0, 20, want);
        assert_memory_equal(got, want, sizeof want);
    }
    bitaxon_cache_reset(bitaxon_session_cache(session));
    OK(bitaxon_session_set_adapters(session, &adapter, NULL, 1, &error));
    read_text(session, 0, 20, got);
    from_scratch(model, &adapter, NULL, 1, 20, want);
    assert_memory_equal(got, want, sizeof want);
    uint64_t room = session->core.ws.low_bytes;
    bitaxon_cache_reset(bitaxon_session_cache(session));
    OK(bitaxon_session_set_adapters(session, NULL, NULL, 0, &error));
    assert_int_equal(session->core.ws.low_bytes, room); /* kept for the next one */
    bitaxon_session_free(session);
    bitaxon_adapter_free(adapter);
    bitaxon_model_free(model);
    assert_string_equal(fault_host_balance(&fault), "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_create),
        cmocka_unit_test(test_gains),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_files_of_the_original),
        cmocka_unit_test(test_promises),
        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_apart),
        cmocka_unit_test(test_old_cache_file),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
