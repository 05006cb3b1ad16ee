/* SPDX-License-Identifier: Apache-2.0 */
/* test_convert.c - making model files: presets and their tensors, first values, arguments,
 * and what a failure, a cancel or a full disk leaves behind. */
#include "convert_fixture.h"

/* ---- presets and plans ---------------------------------------------------------------------- */

static void test_presets(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t tensors;
        uint64_t parameters;
    } cases[] = {
        {"default", 348, 5766778880u},    {"small", 66, 7571456}, {"medium", 176, 1483874304},
        {"bitaxon-3b", 348, 3184947200u}, {"mini", 133, 8567040},
    };
    bxn_mem mem;
    check_ok(bxn_mem_init(&mem, NULL, 0, &error));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bxn_config config;
        bxn_plan plan;
        uint64_t total, active;
        check_ok(bxn_preset(cases[i].name, &config, &error));
        check_ok(bxn_config_check(&config, cases[i].name, &error));
        check_ok(bxn_plan_build(&mem, &config, &plan, &error));
        assert_int_equal(plan.count, cases[i].tensors);
        assert_true(plan.count <= plan.capacity);
        assert_int_equal(bxn_plan_parameters(&plan, false), cases[i].parameters);
        bxn_config_parameters(&config, false, &total, &active);
        assert_int_equal(total, cases[i].parameters);
        assert_int_equal(bxn_plan_parameters(&plan, true),
                         cases[i].parameters + (uint64_t)config.vocab_size * config.d_source_model);
        for (uint32_t a = 0; a < plan.count; a++)
            for (uint32_t b = 0; b < a; b++)
                assert_string_not_equal(plan.items[a].name, plan.items[b].name);
        bxn_plan_free(&mem, &plan);
    }
    bxn_config config;
    check_fails(bxn_preset("large", &config, &error), BITAXON_INVALID_ARGUMENT, "large");
    assert_int_equal(mem.used, 0);
}

/* Names and shapes are those of a file that the reference wrote. */
static void test_plan_names(void **state)
{
    (void)state;
    opened o;
    size_t bytes;
    char *text = (char *)read_all(FP32, "config.json", &bytes);
    bxn_config config;
    bxn_plan plan;
    open_files(&o, FP32);
    check_ok(bxn_config_parse(&o.mem, text, bytes, "config.json", &config, &error));
    check_ok(bxn_plan_build(&o.mem, &config, &plan, &error));
    assert_int_equal(plan.count, o.tensors->count);
    for (uint32_t i = 0; i < plan.count; i++) {
        const bxn_tensor *t = must_find(&o, plan.items[i].name);
        assert_int_equal(t->rank, plan.items[i].rank);
        assert_memory_equal(t->shape, plan.items[i].shape, t->rank * sizeof t->shape[0]);
        assert_int_equal(t->bytes, 4 * plan.items[i].elements);
    }
    bxn_plan_free(&o.mem, &plan);
    /* extensions and missing branches */
    config.final_norm = true;
    config.moe_shared_expert = false;
    config.num_layers = 2; /* fewer than three: all of the last kind */
    check_ok(bxn_plan_build(&o.mem, &config, &plan, &error));
    assert_int_equal(plan.count, 4 + 1 + 2 * (19 - 4));
    bxn_plan_free(&o.mem, &plan);
    free(text);
    close_files(&o);
}

/* ---- first values ---------------------------------------------------------------------------- */

static void test_values(void **state)
{
    (void)state;
    enum { N = 200000 };
    static float whole[N], part[N];
    bxn_plan_item uniform = {.init = BXN_INIT_UNIFORM, .bound = 0.125, .rank = 1, .shape = {N}};
    bxn_plan_item normal = {.init = BXN_INIT_NORMAL, .bound = 0.5, .rank = 1, .shape = {N}};
    const bxn_plan_item *items[] = {&uniform, &normal};
    for (int i = 0; i < 2; i++) {
        double sum = 0, square = 0, fourth = 0, most = 0, pairs = 0;
        bxn_init_values(items[i], 7, bxn_init_key("a"), 0, N, whole);
        for (size_t k = 0; k < N; k++) {
            double x = (double)whole[k];
            sum += x;
            square += x * x;
            fourth += x * x * x * x;
            most = fmax(most, fabs(x));
            pairs += k > 0 ? x * (double)whole[k - 1] : 0;
        }
        double variance = i == 0 ? 0.125 * 0.125 / 3 : 0.25, kurtosis = i == 0 ? 1.8 : 3;
        assert_true(fabs(sum / N) < 4 * sqrt(variance / N));
        assert_true(fabs(square / N / variance - 1) < 0.02);
        assert_true(fabs(fourth / N / (variance * variance) - kurtosis) < 0.15);
        assert_true(fabs(pairs / N) < 4 * variance / sqrt(N));
        assert_true(i == 0 ? most <= 0.125 && most > 0.1249 : most > 1.9 && most < 3.5);
        /* any cut gives the same values */
        for (size_t at = 0, n; at < 5000; at += n) {
            n = 1 + at % 7;
            bxn_init_values(items[i], 7, bxn_init_key("a"), at, n, part + at);
        }
        assert_memory_equal(part, whole, 5000 * sizeof *whole);
        bxn_init_values(items[i], 8, bxn_init_key("a"), 0, 64, part);
        assert_memory_not_equal(part, whole, 64 * sizeof *whole);
        bxn_init_values(items[i], 7, bxn_init_key("b"), 0, 64, part);
        assert_memory_not_equal(part, whole, 64 * sizeof *whole);
    }
    bxn_plan_item range = {.init = BXN_INIT_LOG_RANGE, .rank = 2, .shape = {3, 1000}};
    bxn_init_values(&range, 1, 1, 500, 2500, whole);
    for (int k = 0; k < 2500; k++)
        assert_true(fabs((double)whole[k] - log((k + 500) % 1000 + 1)) < 1e-6);
    /* also from Python's math module; fixed for ever: the same seed gives the same bytes in any
     * version and on any machine */
    static const uint32_t first_uniform[4] = {0x3D9192DC, 0x3DE5A98A, 0x3D3D0B2B, 0x3DD19EB5};
    static const uint32_t first_normal[4] = {0x3EA933F3, 0xBDE2B439, 0x3EBBB84E, 0xBE703483};
    bxn_init_values(&uniform, 7, bxn_init_key("a"), 0, 4, whole);
    bxn_init_values(&normal, 7, bxn_init_key("a"), 0, 4, part);
    for (int k = 0; k < 4; k++) {
        assert_int_equal(bxn_f32_bits(whole[k]), first_uniform[k]);
        assert_int_equal(bxn_f32_bits(part[k]), first_normal[k]);
    }
}

/* ---- new --------------------------------------------------------------------------------------------- */

static void test_new_small(void **state)
{
    (void)state;
    const char *a = fresh();
    bitaxon_convert_params p = params_of("small", a);
    p.seed = 5;
    check_ok(bitaxon_model_new(&p, &error));
    assert_int_equal(count_files(a), 2);
    opened o;
    open_files(&o, a);
    assert_int_equal(o.tensors->count, 66);
    const float *norm = bytes_of(&o, "layer_0.input_norm.weight");
    const float *a_log = bytes_of(&o, "layer_0.ssm.A_log");
    const float *in = bytes_of(&o, "layer_0.ssm.in_proj.weight");
    const float *conv = bytes_of(&o, "layer_0.ssm.conv1d.weight");
    assert_true(norm[0] == 1 && norm[255] == 1);
    assert_true(a_log[0] == 0 && fabsf(a_log[7] - 1.3862944f) < 1e-6f);
    double most = 0, wide = 0;
    for (int i = 0; i < 1024 * 256; i++)
        most = fmax(most, fabs((double)in[i]));
    for (int i = 0; i < 512 * 2; i++)
        wide = fmax(wide, fabs((double)conv[i]));
    assert_true(most <= 1 / 16. && most > 0.0624);
    assert_true(wide <= 1 / 32. && wide > 0.030);
    const bxn_tensor *t = must_find(&o, "layer_1.moe.switch_mlp.down_proj.weight");
    assert_true(t->rank == 3 && t->shape[0] == 4 && t->shape[1] == 256 && t->shape[2] == 512);
    assert_memory_equal(bytes_of(&o, "embed_tokens.weight"), bytes_of(&o, "lm_head.weight"),
                        1024 * 128 * 4);
    assert_non_null(bxn_tensors_meta(o.tensors, "bitaxon.checksum"));
    close_files(&o);
    p = params_of(a, NULL);
    check_ok(bitaxon_model_verify(&p, &error));

    size_t bytes;
    char *text = (char *)read_all(a, "config.json", &bytes);
    bxn_mem mem;
    bxn_config config, expected;
    check_ok(bxn_mem_init(&mem, NULL, 0, &error));
    check_ok(bxn_config_parse(&mem, text, bytes, "config.json", &config, &error));
    check_ok(bxn_preset("small", &expected, &error));
    assert_true(config.vocab_size == expected.vocab_size && config.ssm_d_conv == 2 &&
                config.swa_window_size == 64 && config.rms_norm_eps == expected.rms_norm_eps);
    json_t *root = json_loads(text, 0, NULL);
    assert_int_equal(json_object_size(root), 17);
    assert_non_null(strstr(text, "\"rms_norm_eps\": 1e-6\n")); /* not 9.9999999999999995e-7 */
    json_decref(root);
    free(text);
    remove_tree(a);
}

static void test_new_same_bytes(void **state)
{
    (void)state;
    static const char *const formats[] = {"f32", "f16", "bf16", "affine4", "affine3", "nf4"};
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        const char *path[3] = {fresh(), fresh(), fresh()};
        unsigned char *data[3];
        size_t bytes[3];
        for (int j = 0; j < 3; j++) {
            make_new(path[j], formats[i], j == 2 ? 2 : 1);
            data[j] = read_all(path[j], "model.safetensors", &bytes[j]);
        }
        assert_int_equal(bytes[0], bytes[1]);
        assert_memory_equal(data[0], data[1], bytes[0]);
        assert_int_equal(bytes[0], bytes[2]);
        assert_memory_not_equal(data[0], data[2], bytes[0]);
        for (int j = 0; j < 3; j++) {
            bitaxon_convert_params p = params_of(path[j], NULL);
            check_ok(bitaxon_model_verify(&p, &error));
            free(data[j]);
            remove_tree(path[j]);
        }
    }
}

/* `new` in a format gives what quantising the f32 checkpoint gives. */
static void test_new_equals_quantize(void **state)
{
    (void)state;
    static const char *const formats[] = {"affine4", "affine8", "affine5", "nf4", "f16", "bf16"};
    const char *floats = fresh();
    make_new(floats, "f32", 3);
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        const char *direct = fresh(), *after = fresh();
        make_new(direct, formats[i], 3);
        bitaxon_convert_params p = params_of(floats, after);
        p.format = formats[i];
        check_ok(bitaxon_model_quantize(&p, &error));
        opened a, b;
        open_files(&a, direct);
        open_files(&b, after);
        for (uint64_t j = 0; j < b.tensors->count; j++) {
            const bxn_tensor *t = &b.tensors->items[j], *u = must_find(&a, t->name);
            assert_int_equal(t->bytes, u->bytes);
            assert_int_equal(t->dtype, u->dtype);
            assert_memory_equal(bxn_tensor_map(b.tensors, t), bxn_tensor_map(a.tensors, u),
                                t->bytes);
        }
        /* a float file keeps the head that it had; the tied one of a quantised file is left out */
        assert_int_equal(a.tensors->count - b.tensors->count, i < 4 ? 0 : 1);
        assert_null(bxn_tensors_find(b.tensors, "lm_head.weight"));
        close_files(&a);
        close_files(&b);
        remove_tree(direct);
        remove_tree(after);
    }
    remove_tree(floats);
}

/* ---- arguments and outputs --------------------------------------------------------------------------- */

static void test_arguments(void **state)
{
    (void)state;
    const char *output = fresh();
    check_fails(bitaxon_model_new(NULL, &error), BITAXON_INVALID_ARGUMENT, "params");
    check_fails(bitaxon_model_verify(NULL, &error), BITAXON_INVALID_ARGUMENT, "params");
    bitaxon_convert_params p = params_of(NULL, output);
    check_fails(bitaxon_model_new(&p, &error), BITAXON_INVALID_ARGUMENT, "input");
    check_fails(bitaxon_model_quantize(&p, &error), BITAXON_INVALID_ARGUMENT, "input");
    check_fails(bitaxon_model_pack(&p, &error), BITAXON_INVALID_ARGUMENT, "input");
    check_fails(bitaxon_model_verify(&p, &error), BITAXON_INVALID_ARGUMENT, "input");
    p = params_of("small", NULL);
    check_fails(bitaxon_model_new(&p, &error), BITAXON_INVALID_ARGUMENT, "output");
    p.output = "";
    check_fails(bitaxon_model_new(&p, &error), BITAXON_INVALID_ARGUMENT, "output");
    p = params_of("smaller", output);
    check_fails(bitaxon_model_new(&p, &error), BITAXON_INVALID_ARGUMENT, "smaller");
    p = params_of(FP32, output);
    p.format = "int4";
    check_fails(bitaxon_model_quantize(&p, &error), BITAXON_INVALID_ARGUMENT, "int4");
    p.format = "affine4";
    p.embedding_format = "affine7";
    check_fails(bitaxon_model_quantize(&p, &error), BITAXON_INVALID_ARGUMENT, "affine7");
    p.embedding_format = NULL;
    p.group_size = 48;
    check_fails(bitaxon_model_quantize(&p, &error), BITAXON_INVALID_ARGUMENT, "48");
    p.group_size = 0;
    p.flags = 2;
    check_fails(bitaxon_model_quantize(&p, &error), BITAXON_UNSUPPORTED, "flags");
    p.flags = 0;
    p.struct_size = 4;
    check_fails(bitaxon_model_quantize(&p, &error), BITAXON_INVALID_ARGUMENT, "struct_size");
    struct {
        bitaxon_convert_params p;
        uint64_t later;
    } longer = {params_of(FP32, output), 1};
    longer.p.struct_size = sizeof longer;
    check_fails(bitaxon_model_quantize(&longer.p, &error), BITAXON_UNSUPPORTED, "later version");
    longer.later = 0;
    check_ok(bitaxon_model_quantize(&longer.p, &error));
    /* what is there already stays */
    p = params_of(FP32, output);
    check_fails(bitaxon_model_quantize(&p, &error), BITAXON_IO, "already");
    assert_int_equal(count_files(output), 2);
    p = params_of(output, output);
    check_fails(bitaxon_model_pack(&p, &error), BITAXON_INVALID_ARGUMENT, "input's directory");
    char path[512];
    join(path, output, "model.safetensors");
    p = params_of(path, output); /* a file of that directory */
    check_fails(bitaxon_model_pack(&p, &error), BITAXON_INVALID_ARGUMENT, "input's directory");
    assert_int_equal(count_files(output), 2);
    p = params_of(FP32, path); /* a file where a directory should be */
    check_fails(bitaxon_model_quantize(&p, &error), BITAXON_IO, "model.safetensors");
    remove_tree(output);
    p = params_of(NULL, output);
    p.config_json = "{\"hidden_dim\": 65}";
    check_fails(bitaxon_model_new(&p, &error), BITAXON_FORMAT, "hidden_dim");
    p.config_json = tiny_config;
    p.tokenizer = FP32;
    check_fails(bitaxon_model_new(&p, &error), BITAXON_IO, "tokenizer.json");
    p.tokenizer = "tests/golden/nowhere";
    check_fails(bitaxon_model_new(&p, &error), BITAXON_IO, "nowhere");
    assert_int_equal(count_files(output), -1);
    assert_int_equal(bitaxon_model_quantize(&p, NULL),
                     BITAXON_INVALID_ARGUMENT); /* no record: fine */
}

static void test_new_tokenizer(void **state)
{
    (void)state;
    const char *from = fresh(), *output = fresh();
    check_ok(bxn_make_directory(from, &error));
    write_file(from, "tokenizer.json", "{}", 2);
    write_file(from, "tokenizer_config.json", "{ }", 3);
    bitaxon_convert_params p = params_of(NULL, output);
    p.config_json = tiny_config;
    p.tokenizer = from;
    check_ok(bitaxon_model_new(&p, &error));
    assert_int_equal(count_files(output), 4);
    size_t bytes;
    unsigned char *text = read_all(output, "tokenizer_config.json", &bytes);
    assert_string_equal((char *)text, "{ }");
    free(text);
    remove_tree(from);
    remove_tree(output);
}

/* ---- cancel, full disk, no memory -------------------------------------------------------------------- */

typedef struct stop {
    uint64_t calls, stop_at, last, total;
} stop;

static int32_t on_progress(void *user, const bitaxon_progress *progress)
{
    stop *s = user;
    assert_int_equal(progress->struct_size, sizeof *progress);
    assert_true(progress->total > 0 && progress->done <= progress->total);
    assert_true(progress->done >= s->last);
    s->last = progress->done;
    s->total = progress->total;
    return ++s->calls == s->stop_at;
}

typedef bitaxon_status (*operation)(const bitaxon_convert_params *params, bitaxon_error *error);

static void test_cancel(void **state)
{
    (void)state;
    static const operation operations[] = {bitaxon_model_new, bitaxon_model_quantize,
                                           bitaxon_model_pack, bitaxon_model_verify};
    static const char *const inputs[] = {NULL, FP32, Q4, Q4};
    for (int i = 0; i < 4; i++) {
        uint64_t calls = 0;
        for (uint64_t at = 0; at <= calls; at = at == 0 ? 1 : at + 1 + calls / 12) {
            const char *output = fresh();
            stop s = {.stop_at = at};
            bitaxon_convert_params p = params_of(inputs[i], i < 3 ? output : NULL);
            p.config_json = i == 0 ? tiny_config : NULL;
            p.progress = on_progress;
            p.user = &s;
            if (at == 0) {
                check_ok(operations[i](&p, &error));
                assert_int_equal(s.last, s.total);
                calls = s.calls;
                assert_true(calls > 20);
            } else {
                check_fails(operations[i](&p, &error), BITAXON_CANCELLED, "cancelled");
                assert_int_equal(s.calls, at);
                assert_int_equal(count_files(output), -1);
            }
            remove_tree(output);
        }
    }
    /* the report callback cancels too, and directories made on the way go as well */
    char deep[512];
    const char *top = fresh();
    join(deep, top, "a//b/");
    reports r = {.cancel_at = 5};
    bitaxon_convert_params p = params_of(FP32, deep);
    p.report = note;
    p.user = &r;
    check_fails(bitaxon_model_quantize(&p, &error), BITAXON_CANCELLED, "report");
    assert_int_equal(count_files(top), -1);
    /* what was in the directory stays */
    check_ok(bxn_make_directory(top, &error));
    write_file(top, "notes.txt", "mine", 4);
    p.output = top;
    r = (reports){.cancel_at = 5};
    check_fails(bitaxon_model_quantize(&p, &error), BITAXON_CANCELLED, "report");
    assert_int_equal(count_files(top), 1);
    r = (reports){0};
    check_ok(bitaxon_model_quantize(&p, &error));
    assert_int_equal(count_files(top), 3);
    remove_tree(top);
}

/* In a child whose files may not grow beyond a limit. */
static void test_full_disk(void **state)
{
    (void)state;
    for (rlim_t limit = 0; limit < 200000; limit += 9973) {
        const char *output = fresh();
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            struct rlimit r = {limit, limit};
            signal(SIGXFSZ, SIG_IGN);
            bitaxon_convert_params p = params_of(FP32, output);
            bitaxon_error error = BITAXON_ERROR_INIT;
            if (setrlimit(RLIMIT_FSIZE, &r) != 0)
                _exit(2);
            bitaxon_status status = bitaxon_model_quantize(&p, &error);
            bool told = status == BITAXON_IO && strstr(error.message, "model.safetensors") != NULL;
            _exit(status == BITAXON_OK ? 3 : told && count_files(output) == -1 ? 0 : 1);
        }
        int result;
        assert_int_equal(waitpid(child, &result, 0), child);
        assert_true(WIFEXITED(result));
        bool fits = WEXITSTATUS(result) == 3; /* a limit above the file's size */
        assert_true(fits ? limit > 100000 : WEXITSTATUS(result) == 0);
        remove_tree(output);
    }
}

static void test_unwritable(void **state)
{
    (void)state;
    const char *output = fresh();
    /* below a file there is no directory to make, for root neither */
    bitaxon_convert_params p = params_of(FP32, FP32 "/config.json/x");
    check_fails(bitaxon_model_quantize(&p, &error), BITAXON_IO, FP32 "/config.json");
    if (geteuid() != 0) {
        assert_int_equal(mkdir(output, 0500), 0);
        p.output = output;
        check_fails(bitaxon_model_quantize(&p, &error), BITAXON_IO, output);
        assert_int_equal(count_files(output), 0);
        remove_tree(output);
    }
}

typedef struct allocator {
    uint64_t calls, fail_at, live;
} allocator;

static void *failing_alloc(void *user, size_t size, size_t align)
{
    allocator *a = user;
    void *p;
    if (++a->calls == a->fail_at || posix_memalign(&p, align, size) != 0)
        return NULL;
    a->live++;
    return p;
}

static void counted_free(void *user, void *ptr, size_t size, size_t align)
{
    (void)size;
    (void)align;
    if (ptr != NULL)
        ((allocator *)user)->live--;
    free(ptr);
}

/* One thread: the host's executor, so that no worker is started a thousand times. */
static int32_t serial(void *user, uint32_t count, void (*task)(void *context, uint32_t index),
                      void *context)
{
    (void)user;
    for (uint32_t i = 0; i < count; i++)
        task(context, i);
    return 0;
}

static void test_no_memory(void **state)
{
    (void)state;
    static const operation operations[] = {bitaxon_model_new, bitaxon_model_quantize,
                                           bitaxon_model_pack, bitaxon_model_verify};
    static const char *const inputs[] = {NULL, FP32, Q4, Q4};
    for (int i = 0; i < 4; i++) {
        uint64_t calls = 0;
        const char *output = fresh();
        for (uint64_t at = 0; at <= calls; at = at < 60 ? at + 1 : at + 1 + at % 23) {
            allocator a = {.fail_at = at};
            bitaxon_host host = {.struct_size = sizeof host,
                                 .user = &a,
                                 .alloc = failing_alloc,
                                 .free = counted_free,
                                 .parallel_for = serial};
            bitaxon_convert_params p = params_of(inputs[i], i < 3 ? output : NULL);
            p.config_json = i == 0 ? tiny_config : NULL;
            p.host = &host;
            if (at == 0) {
                check_ok(operations[i](&p, &error));
                calls = a.calls;
            } else {
                check_fails(operations[i](&p, &error), BITAXON_OUT_OF_MEMORY, "out of memory");
            }
            assert_int_equal(a.live, 0);
            assert_int_equal(count_files(output), at == 0 && i < 3 ? 2 : -1);
            remove_tree(output);
        }
        assert_true(calls > 30);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_presets),        cmocka_unit_test(test_plan_names),
        cmocka_unit_test(test_values),         cmocka_unit_test(test_new_small),
        cmocka_unit_test(test_new_same_bytes), cmocka_unit_test(test_new_equals_quantize),
        cmocka_unit_test(test_arguments),      cmocka_unit_test(test_new_tokenizer),
        cmocka_unit_test(test_cancel),         cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_unwritable),     cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
