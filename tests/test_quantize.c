/* SPDX-License-Identifier: Apache-2.0 */
/* test_quantize.c - quantising against files of the reference, packing against loading, and
 * verifying against damage. */
#include "convert_fixture.h"

static void load_model(opened *o, bxn_model *model, bxn_loaded *loaded, const char *path)
{
    size_t bytes;
    char *text = (char *)read_all(path, "config.json", &bytes);
    open_files(o, path);
    memset(model, 0, sizeof *model);
    check_ok(bxn_config_parse(&o->mem, text, bytes, "config.json", &model->config, &error));
    check_ok(bxn_pool_create(&o->mem, 1, &model->pool, &error));
    check_ok(bxn_import_bit_axon(&o->mem, o->tensors, false, NULL, model, loaded, &error));
    free(text);
}

static void unload_model(opened *o, bxn_model *model, bxn_loaded *loaded)
{
    bxn_import_free(&o->mem, model, loaded);
    bxn_pool_free(model->pool);
    close_files(o);
}

/* ---- quantize ---------------------------------------------------------------------------------------- */

/* Codes equal those that MLX made of the same weights, scales after rounding to f16. */
static void test_quantize_golden(void **state)
{
    (void)state;
    const char *output = fresh();
    reports r = {0};
    bitaxon_convert_params p = params_of(FP32, output);
    p.flags = BITAXON_CONVERT_ALL_LINEARS;
    p.embedding_format = "affine4";
    p.report = note;
    p.user = &r;
    check_ok(bitaxon_model_quantize(&p, &error));
    assert_string_equal(r.first_format, "affine4 g64 F16");
    assert_true(r.worst_rms > 0.03 && r.worst_rms < 0.15);
    opened ours, theirs;
    open_files(&ours, output);
    open_files(&theirs, Q4);
    int compared = 0;
    uint64_t sum = 0;
    for (uint64_t i = 0; i < ours.tensors->count; i++) {
        const bxn_tensor *t = &ours.tensors->items[i];
        sum += t->bytes;
        if (strncmp(t->name, "embed_tokens.", 13) == 0)
            continue; /* a float in the reference's file, which quantises the head apart */
        const bxn_tensor *u = must_find(&theirs, t->name);
        const uint8_t *a = bxn_tensor_map(ours.tensors, t), *b = bxn_tensor_map(theirs.tensors, u);
        assert_int_equal(t->rank, u->rank);
        assert_memory_equal(t->shape, u->shape, t->rank * sizeof t->shape[0]);
        compared++;
        if (t->dtype == u->dtype) {
            assert_memory_equal(a, b, t->bytes);
            continue;
        }
        assert_int_equal(t->dtype, BXN_F16);
        assert_int_equal(u->dtype, BXN_F32);
        for (uint64_t k = 0; k < t->bytes / 2; k++) {
            float x;
            uint16_t half;
            memcpy(&x, b + 4 * k, 4);
            memcpy(&half, a + 2 * k, 2);
            assert_int_equal(half, bxn_f32_f16(x));
        }
    }
    assert_true(compared > 90);
    assert_int_equal(r.after, sum);
    /* embedding and head are tied in the source: one of them is left */
    const bxn_tensor *embedding = must_find(&ours, "embed_tokens.weight");
    assert_int_equal(embedding->dtype, BXN_U32);
    assert_memory_equal(bytes_of(&ours, "embed_tokens.weight"), bytes_of(&theirs, "lm_head.weight"),
                        embedding->bytes);
    assert_null(bxn_tensors_find(ours.tensors, "lm_head.weight"));
    close_files(&ours);
    close_files(&theirs);
    size_t bytes;
    char *text = (char *)read_all(output, "config.json", &bytes);
    json_t *root = json_loads(text, 0, NULL), *q = json_object_get(root, "quantization");
    assert_int_equal(json_integer_value(json_object_get(q, "group_size")), 64);
    assert_int_equal(json_integer_value(json_object_get(q, "bits")), 4);
    assert_string_equal(json_string_value(json_object_get(q, "mode")), "affine");
    assert_int_equal(json_object_size(q), 3);
    assert_int_equal(json_object_size(root), 18);
    json_decref(root);
    free(text);
    remove_tree(output);
}

static void test_quantize_defaults(void **state)
{
    (void)state;
    static const struct {
        const char *format, *embedding;
        uint32_t group;
        bxn_dtype weight, table;
    } cases[] = {
        {NULL, NULL, 0, BXN_U32, BXN_U32},        {"nf4", NULL, 64, BXN_U8, BXN_F16},
        {"affine2", "f32", 32, BXN_U32, BXN_F32}, {"affine6", "bf16", 32, BXN_U32, BXN_BF16},
        {"f16", NULL, 0, BXN_F16, BXN_F16},       {"nf4", "nf4", 32, BXN_U8, BXN_U8},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *output = fresh();
        reports r = {0};
        bitaxon_convert_params p = params_of(FP32, output);
        p.format = cases[i].format;
        p.embedding_format = cases[i].embedding;
        p.group_size = cases[i].group;
        p.report = note;
        p.user = &r;
        check_ok(bitaxon_model_quantize(&p, &error));
        opened o;
        open_files(&o, output);
        assert_int_equal(must_find(&o, "layer_1.attention.q_proj.weight")->dtype, cases[i].weight);
        assert_int_equal(must_find(&o, "embed_tokens.weight")->dtype, cases[i].table);
        assert_int_equal(must_find(&o, "layer_0.ssm.A_log")->dtype, BXN_F32);
        assert_int_equal(must_find(&o, "layer_1.moe.gate.weight")->dtype,
                         cases[i].weight == BXN_F16 ? BXN_F16 : BXN_F32);
        assert_int_equal(must_find(&o, "layer_0.ssm.x_proj.weight")->dtype,
                         cases[i].weight == BXN_F16 ? BXN_F16 : BXN_F32);
        if (cases[i].weight == BXN_U32) {
            must_find(&o, "layer_1.moe.switch_mlp.up_proj.biases_quant");
            must_find(&o, "layer_1.moe.shared_expert.up_proj.biases");
        }
        if (i == 0) /* 8 bits of 64 columns: 16 words */
            assert_int_equal(must_find(&o, "embed_tokens.weight")->shape[1], 16);
        close_files(&o);
        p = params_of(output, NULL);
        check_ok(bitaxon_model_verify(&p, &error));
        remove_tree(output);
    }
}

static void test_quantize_nf4_layout(void **state)
{
    (void)state;
    const char *output = fresh();
    bitaxon_convert_params p = params_of(FP32, output);
    p.format = "nf4";
    check_ok(bitaxon_model_quantize(&p, &error));
    opened o, source;
    open_files(&o, output);
    open_files(&source, FP32);
    static const char *const names[] = {"layer_0.ssm.in_proj", "layer_2.moe.switch_mlp.down_proj"};
    static const uint64_t sizes[] = {256 * 64, 4 * 64 * 64};
    for (int i = 0; i < 2; i++) {
        char name[128];
        snprintf(name, sizeof name, "%s.weight", names[i]);
        const bxn_tensor *t = must_find(&o, name);
        assert_true(t->rank == 2 && t->shape[0] == sizes[i] / 2 && t->shape[1] == 1);
        const uint8_t *codes = bytes_of(&o, name);
        const float *w = bytes_of(&source, name);
        float *copy = malloc(sizes[i] * 4), *absmax = malloc(sizes[i] / 64 * 4);
        memcpy(copy, w, sizes[i] * 4);
        snprintf(name, sizeof name, "%s.weight.absmax", names[i]);
        assert_int_equal(must_find(&o, name)->bytes, sizes[i] / 64 * 4);
        memcpy(absmax, bytes_of(&o, name), sizes[i] / 64 * 4);
        for (uint64_t k = 0; k < sizes[i]; k++) {
            uint8_t code = k % 2 == 0 ? codes[k / 2] >> 4 : codes[k / 2] & 15;
            float value = absmax[k / 64] * bxn_nf4_table[code];
            for (int c = 0; c < 16; c++)
                assert_true(fabsf(value - copy[k]) <=
                            fabsf(absmax[k / 64] * bxn_nf4_table[c] - copy[k]) * 1.00001f + 1e-12f);
        }
        snprintf(name, sizeof name, "%s.weight.quant_map", names[i]);
        assert_memory_equal(bytes_of(&o, name), bxn_nf4_table, sizeof bxn_nf4_table);
        snprintf(name, sizeof name, "%s.weight.quant_state.bitsandbytes__nf4", names[i]);
        json_t *q = json_loadb(bytes_of(&o, name), (size_t)must_find(&o, name)->bytes, 0, NULL);
        assert_string_equal(json_string_value(json_object_get(q, "quant_type")), "nf4");
        assert_string_equal(json_string_value(json_object_get(q, "dtype")), "float32");
        assert_int_equal(json_integer_value(json_object_get(q, "blocksize")), 64);
        assert_int_equal(json_array_size(json_object_get(q, "shape")), i == 0 ? 2 : 3);
        json_decref(q);
        free(copy);
        free(absmax);
    }
    close_files(&o);
    close_files(&source);
    remove_tree(output);
}

/* Rewrite a float checkpoint with some tensors changed. */
typedef int (*edit)(const bxn_tensor *t, float *values, uint64_t count); /* 0: leave it out */

static void rewrite(const char *from, const char *to, edit change)
{
    opened o;
    bxn_st_writer *writer;
    char path[512];
    open_files(&o, from);
    check_ok(bxn_make_directory(to, &error));
    join(path, to, "weights.safetensors");
    check_ok(bxn_st_create(&o.mem, path, 8, &writer, &error));
    for (int pass = 0; pass < 2; pass++) {
        for (uint64_t i = 0; i < o.tensors->count; i++) {
            const bxn_tensor *t = &o.tensors->items[i];
            float *values = malloc(t->bytes + 4);
            memcpy(values, bxn_tensor_map(o.tensors, t), t->bytes);
            if (change(t, values, t->bytes / 4)) {
                if (pass == 0)
                    check_ok(bxn_st_declare(writer, t->name, t->dtype, t->rank, t->shape, &error));
                else
                    check_ok(bxn_st_put(writer, values, t->bytes, &error));
            }
            free(values);
        }
        if (pass == 0)
            check_ok(bxn_st_begin(writer, &error));
    }
    check_ok(bxn_st_commit(writer, &error));
    size_t bytes;
    unsigned char *config = read_all(from, "config.json", &bytes);
    write_file(to, "config.json", config, bytes);
    free(config);
    close_files(&o);
}

static int make_wide(const bxn_tensor *t, float *values, uint64_t count)
{
    if (strcmp(t->name, "layer_1.attention.q_proj.weight") ==
        0) /* scales below f16's normal range */
        for (uint64_t i = 0; i < count; i++)
            values[i] *= 1e-4f;
    if (strcmp(t->name, "layer_1.attention.k_proj.weight") == 0) /* above it */
        values[5] = 1e6f;
    if (strcmp(t->name, "layer_1.attention.v_proj.weight") ==
        0) /* zero and constant groups are no reason */
        for (int i = 0; i < 128; i++)
            values[i] = i < 64 ? 0.0f : 0.25f;
    if (strcmp(t->name, "lm_head.weight") == 0)
        values[0] += 1;
    return 1;
}

static void test_quantize_wide(void **state)
{
    (void)state;
    const char *input = fresh(), *output = fresh();
    rewrite(FP32, input, make_wide);
    bitaxon_convert_params p = params_of(input, output);
    check_ok(bitaxon_model_quantize(&p, &error));
    opened o;
    open_files(&o, output);
    assert_int_equal(must_find(&o, "layer_1.attention.q_proj.scales")->dtype, BXN_F32);
    assert_int_equal(must_find(&o, "layer_1.attention.q_proj.biases")->dtype, BXN_F32);
    assert_int_equal(must_find(&o, "layer_1.attention.k_proj.scales")->dtype, BXN_F32);
    assert_int_equal(must_find(&o, "layer_1.attention.v_proj.scales")->dtype, BXN_F16);
    assert_int_equal(must_find(&o, "layer_1.attention.o_proj.scales")->dtype, BXN_F16);
    assert_int_equal(must_find(&o, "lm_head.weight")->dtype, BXN_U32); /* a head of its own */
    must_find(&o, "lm_head.scales");
    close_files(&o);
    remove_tree(output);
    p.format = "f16"; /* 1e6 has no f16 */
    check_fails(bitaxon_model_quantize(&p, &error), BITAXON_UNSUPPORTED, "k_proj");
    assert_int_equal(count_files(output), -1);
    remove_tree(input);
}

static const char *nan_name;
static int make_nan(const bxn_tensor *t, float *values, uint64_t count)
{
    if (strcmp(t->name, nan_name) == 0)
        values[count - 1] = NAN;
    return 1;
}

static int drop_gate(const bxn_tensor *t, float *values, uint64_t count)
{
    (void)values;
    (void)count;
    return strcmp(t->name, "layer_2.moe.gate.weight") != 0;
}

static int drop_head(const bxn_tensor *t, float *values, uint64_t count)
{
    (void)values;
    (void)count;
    return strcmp(t->name, "lm_head.weight") != 0;
}

static void test_quantize_bad_input(void **state)
{
    (void)state;
    const char *output = fresh();
    static const char *const formats[] = {"affine4", "nf4", "bf16"};
    for (int i = 0; i < 3; i++) {
        const char *input = fresh();
        nan_name = "layer_1.moe.switch_mlp.up_proj.weight";
        rewrite(FP32, input, make_nan);
        bitaxon_convert_params p = params_of(input, output);
        p.format = formats[i];
        check_fails(bitaxon_model_quantize(&p, &error), BITAXON_FORMAT,
                    "up_proj.weight: value 16383");
        assert_int_equal(count_files(output), -1);
        remove_tree(input);
    }
    const char *input = fresh();
    rewrite(FP32, input, drop_gate);
    bitaxon_convert_params p = params_of(input, output);
    check_fails(bitaxon_model_quantize(&p, &error), BITAXON_FORMAT, "layer_2.moe.gate.weight");
    check_fails(bitaxon_model_pack(&p, &error), BITAXON_FORMAT, "layer_2.moe.gate.weight");
    check_fails(bitaxon_model_verify(&p, &error), BITAXON_FORMAT, "layer_2.moe.gate.weight");
    remove_tree(input);
    rewrite(FP32, input, drop_head); /* absent and tied is fine */
    check_ok(bitaxon_model_quantize(&p, &error));
    remove_tree(input);
    remove_tree(output);
    p = params_of(Q4, output);
    check_fails(bitaxon_model_quantize(&p, &error), BITAXON_UNSUPPORTED, "quantised already");
    const char *packed = fresh();
    bitaxon_convert_params q = params_of(Q4, packed);
    check_ok(bitaxon_model_pack(&q, &error));
    p.input = packed;
    check_fails(bitaxon_model_quantize(&p, &error), BITAXON_UNSUPPORTED, "quantised already");
    assert_int_equal(count_files(output), -1);
    remove_tree(packed);
}

/* Widths that the group does not divide are copied. */
static void test_quantize_narrow(void **state)
{
    (void)state;
    const char *input = fresh(), *output = fresh();
    make_new(input, "f32", 9);
    bitaxon_convert_params p = params_of(input, output);
    p.group_size = 128; /* D = 64, E = 128, S = 128, I = 192 */
    check_ok(bitaxon_model_quantize(&p, &error));
    opened o;
    open_files(&o, output);
    assert_int_equal(must_find(&o, "layer_0.ssm.in_proj.weight")->dtype, BXN_F32);
    assert_int_equal(must_find(&o, "layer_1.moe.switch_mlp.down_proj.weight")->dtype, BXN_F32);
    assert_int_equal(must_find(&o, "layer_0.ssm.out_proj.weight")->dtype, BXN_U32);
    assert_int_equal(must_find(&o, "input_proj.weight")->dtype, BXN_U32);
    assert_int_equal(must_find(&o, "embed_tokens.weight")->dtype, BXN_U32);
    close_files(&o);
    p = params_of(output, NULL);
    check_ok(bitaxon_model_verify(&p, &error));
    remove_tree(input);
    remove_tree(output);
}

/* Shards with an index, and files that only have company: metadata, tokenizer files. */
static void test_quantize_shards(void **state)
{
    (void)state;
    const char *input = fresh(), *output = fresh(), *whole = fresh();
    opened o;
    char path[512];
    bxn_st_writer *writer;
    open_files(&o, FP32);
    check_ok(bxn_make_directory(input, &error));
    json_t *map = json_object();
    for (uint64_t part = 0; part < 3; part++) {
        char name[64];
        snprintf(name, sizeof name, "model-%05u-of-00003.safetensors", (unsigned)part + 1);
        join(path, input, name);
        check_ok(bxn_st_create(&o.mem, path, 8, &writer, &error));
        if (part == 0)
            check_ok(bxn_st_meta(writer, "vocab_mapping", "{0: 1}", &error));
        for (uint64_t i = part; i < o.tensors->count; i += 3) {
            const bxn_tensor *t = &o.tensors->items[i];
            check_ok(bxn_st_declare(writer, t->name, t->dtype, t->rank, t->shape, &error));
            json_object_set_new(map, t->name, json_string(name));
        }
        check_ok(bxn_st_begin(writer, &error));
        for (uint64_t i = part; i < o.tensors->count; i += 3)
            check_ok(bxn_st_put(writer, bxn_tensor_map(o.tensors, &o.tensors->items[i]),
                                (size_t)o.tensors->items[i].bytes, &error));
        check_ok(bxn_st_commit(writer, &error));
    }
    close_files(&o);
    json_t *index = json_pack("{s:{},s:o}", "metadata", "weight_map", map);
    char *text = json_dumps(index, 0);
    write_file(input, "model.safetensors.index.json", text, strlen(text));
    free(text);
    json_decref(index);
    size_t bytes;
    unsigned char *config = read_all(FP32, "config.json", &bytes);
    config[bytes - 1] = ',';
    static const char more[] = "\"architectures\": [\"BitAxon\"]}";
    unsigned char *longer = malloc(bytes + sizeof more);
    memcpy(longer, config, bytes);
    memcpy(longer + bytes, more, sizeof more);
    write_file(input, "config.json", longer, bytes + sizeof more - 1);
    free(longer);
    free(config);
    write_file(input, "tokenizer_config.json", "{\"a\":1}", 7);
    write_file(input, "generation_config.json", "{\"b\":2}", 7);
    write_file(input, "README.md", "x", 1);

    bitaxon_convert_params p = params_of(input, output), q = params_of(FP32, whole);
    check_ok(bitaxon_model_quantize(&p, &error));
    check_ok(bitaxon_model_quantize(&q, &error));
    assert_int_equal(count_files(output), 4);
    opened a, b;
    open_files(&a, output);
    open_files(&b, whole);
    assert_int_equal(a.tensors->count, b.tensors->count);
    for (uint64_t i = 0; i < a.tensors->count; i++)
        assert_memory_equal(bxn_tensor_map(a.tensors, &a.tensors->items[i]),
                            bxn_tensor_map(b.tensors, &b.tensors->items[i]),
                            a.tensors->items[i].bytes);
    assert_string_equal(bxn_tensors_meta(a.tensors, "vocab_mapping"), "{0: 1}");
    close_files(&a);
    close_files(&b);
    config = read_all(output, "config.json", &bytes);
    assert_non_null(strstr((char *)config, "architectures"));
    free(config);
    config = read_all(output, "generation_config.json", &bytes);
    assert_string_equal((char *)config, "{\"b\":2}");
    free(config);
    remove_tree(input);
    remove_tree(output);
    remove_tree(whole);
}

/* ---- pack
 * ------------------------------------------------------------------------------------------------
 */

static void compare_weights(const bxn_weight *a, const bxn_weight *b)
{
    assert_int_equal(a->kind, b->kind);
    assert_int_equal(a->rows, b->rows);
    assert_int_equal(a->cols, b->cols);
    if (a->kind == BXN_WEIGHT_PACKED)
        assert_memory_equal(a->packed.data, b->packed.data, bxn_packed_bytes(&a->packed));
    else
        assert_memory_equal(a->dense.data, b->dense.data,
                            (size_t)a->rows * a->cols * bxn_dtype_size(a->dense.dtype));
}

static void compare_models(const char *plain, const char *packed, bool in_place)
{
    opened o[2];
    bxn_model m[2];
    bxn_loaded loaded[2];
    load_model(&o[0], &m[0], &loaded[0], plain);
    load_model(&o[1], &m[1], &loaded[1], packed);
    assert_memory_equal(m[0].fingerprint, m[1].fingerprint, 16);
    assert_int_equal(m[0].tied, m[1].tied);
    compare_weights(&m[0].embed, &m[1].embed);
    compare_weights(&m[0].head, &m[1].head);
    compare_weights(&m[0].input_proj, &m[1].input_proj);
    compare_weights(&m[0].output_proj, &m[1].output_proj);
    assert_int_equal(m[0].sublayer_count, m[1].sublayer_count);
    for (uint32_t i = 0; i < m[0].sublayer_count; i++) {
        const bxn_sublayer *a = &m[0].sublayers[i], *b = &m[1].sublayers[i];
        assert_int_equal(a->op, b->op);
        if (a->op == BXN_OP_SSM) {
            compare_weights(&a->u.ssm.in_proj, &b->u.ssm.in_proj);
            compare_weights(&a->u.ssm.x_proj, &b->u.ssm.x_proj);
            compare_weights(&a->u.ssm.out_proj, &b->u.ssm.out_proj);
            assert_memory_equal(a->u.ssm.a2, b->u.ssm.a2,
                                a->u.ssm.channels16 * a->u.ssm.states * 4);
        } else if (a->op == BXN_OP_ATTENTION) {
            compare_weights(&a->u.attention.q_proj, &b->u.attention.q_proj);
            compare_weights(&a->u.attention.o_proj, &b->u.attention.o_proj);
        } else {
            compare_weights(&a->u.moe.router, &b->u.moe.router);
            compare_weights(&a->u.moe.shared_down_proj, &b->u.moe.shared_down_proj);
            for (uint32_t x = 0; x < a->u.moe.experts; x++) {
                compare_weights(&a->u.moe.gate[x], &b->u.moe.gate[x]);
                compare_weights(&a->u.moe.up[x], &b->u.moe.up[x]);
                compare_weights(&a->u.moe.down[x], &b->u.moe.down[x]);
            }
        }
    }
    if (in_place) { /* the packed file's matrices are used where they lie */
        assert_true(loaded[1].mapped_bytes > loaded[1].private_bytes / 2);
        assert_int_equal((uintptr_t)m[1].sublayers[0].u.ssm.in_proj.packed.data % 64, 0);
        const uint8_t *map = o[1].bundle->files[1].map;
        const uint8_t *data = m[1].sublayers[0].u.ssm.in_proj.packed.data;
        assert_true(data > map && data < map + o[1].bundle->files[1].source.size);
    }
    unload_model(&o[0], &m[0], &loaded[0]);
    unload_model(&o[1], &m[1], &loaded[1]);
}

static void test_pack(void **state)
{
    (void)state;
    static const char *const formats[] = {"affine4", "affine8", "affine3", "affine5",
                                          "nf4",     "f16",     "f32"};
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        const char *plain = fresh(), *packed = fresh(), *twice = fresh();
        make_new(plain, formats[i], 11);
        reports r = {0};
        bitaxon_convert_params p = params_of(plain, packed);
        p.report = note;
        p.user = &r;
        check_ok(bitaxon_model_pack(&p, &error));
        assert_true(i < 5 ? r.changed > 20 : r.changed == 0);
        opened o;
        open_files(&o, packed);
        assert_string_equal(bxn_tensors_meta(o.tensors, "bitaxon.packed"), "1");
        assert_non_null(bxn_tensors_meta(o.tensors, "bitaxon.tensors"));
        if (i == 0) {
            const bxn_tensor *t = must_find(&o, "layer_1.moe.switch_mlp.down_proj.packed.a4g64f16");
            assert_true(t->rank == 4 && t->shape[0] == 3 && t->shape[1] == 4 && t->shape[2] == 2 &&
                        t->shape[3] == 1024 + 128);
            assert_int_equal((uintptr_t)bxn_tensor_map(o.tensors, t) % 64, 0);
            must_find(&o, "embed_tokens.packed.a8g64f16");
        }
        close_files(&o);
        compare_models(plain, packed, i < 5);
        p = params_of(packed, NULL);
        check_ok(bitaxon_model_verify(&p, &error));
        p = params_of(packed, twice); /* packing again copies */
        check_ok(bitaxon_model_pack(&p, &error));
        size_t a_bytes, b_bytes;
        unsigned char *a = read_all(packed, "model.safetensors", &a_bytes);
        unsigned char *b = read_all(twice, "model.safetensors", &b_bytes);
        assert_int_equal(a_bytes, b_bytes);
        assert_memory_equal(a, b, a_bytes);
        free(a);
        free(b);
        remove_tree(plain);
        remove_tree(packed);
        remove_tree(twice);
    }
    const char *packed = fresh();
    bitaxon_convert_params p =
        params_of(Q4, packed); /* the reference's file: f32 scales, a head apart */
    check_ok(bitaxon_model_pack(&p, &error));
    compare_models(Q4, packed, true);
    remove_tree(packed);
}

/* Rows of the packed file are scale * (code - center) + bias' of the codes beside it. */
static void test_pack_rows(void **state)
{
    (void)state;
    const char *packed = fresh();
    bitaxon_convert_params p = params_of(Q4, packed);
    check_ok(bitaxon_model_pack(&p, &error));
    opened a, b;
    open_files(&a, Q4);
    open_files(&b, packed);
    bxn_packed w;
    check_ok(bxn_packed_describe(256, 64, 'a', 4, 64, true, &w, &error));
    w.data = bytes_of(&b, "layer_0.ssm.in_proj.packed.a4g64f32");
    const uint8_t *words = bytes_of(&a, "layer_0.ssm.in_proj.weight");
    float scales[256], biases[256], row[64];
    memcpy(scales, bytes_of(&a, "layer_0.ssm.in_proj.scales"), sizeof scales);
    memcpy(biases, bytes_of(&a, "layer_0.ssm.in_proj.biases"), sizeof biases);
    for (uint32_t r = 0; r < 256; r++) {
        uint8_t codes[64];
        bxn_affine_unpack_row(words + 32 * r, 64, 4, codes);
        bxn_packed_row(&w, r, row);
        float moved = biases[r] + 8 * scales[r];
        for (int k = 0; k < 64; k++) {
            float value = scales[r] * ((float)codes[k] - 8);
            assert_true(row[k] == value + moved);
        }
    }
    close_files(&a);
    close_files(&b);
    remove_tree(packed);
}

/* ---- verify
 * -----------------------------------------------------------------------------------------------
 */

static void test_verify_damage(void **state)
{
    (void)state;
    const char *good = fresh(), *bad = fresh();
    bitaxon_convert_params p = params_of(Q4, good);
    check_ok(bitaxon_model_pack(&p, &error));
    size_t bytes;
    unsigned char *data = read_all(good, "model.safetensors", &bytes);
    size_t config_bytes;
    unsigned char *config = read_all(good, "config.json", &config_bytes);
    check_ok(bxn_make_directory(bad, &error));
    write_file(bad, "config.json", config, config_bytes);
    uint64_t header;
    memcpy(&header, data, 8);
    p = params_of(bad, NULL);
    /* any flipped bit of a tensor is noticed (bytes between tensors belong to nobody) */
    opened o;
    open_files(&o, good);
    int noticed = 0;
    for (uint64_t i = 0; i < o.tensors->count; i += 5) {
        const bxn_tensor *t = &o.tensors->items[i];
        size_t at = (size_t)(t->offset + t->bytes / 3);
        data[at] ^= 0x10;
        write_file(bad, "model.safetensors", data, bytes);
        check_fails(bitaxon_model_verify(&p, &error), BITAXON_FORMAT, "");
        data[at] ^= 0x10;
        noticed++;
    }
    assert_true(noticed >= 8);
    /* a scale of a unit that is not finite is named */
    const bxn_tensor *t = must_find(&o, "layer_0.ssm.in_proj.packed.a4g64f32");
    uint32_t infinite = 0x7F800000u, kept;
    size_t at = (size_t)t->offset + (size_t)t->shape[2] * 3 + 8;
    memcpy(&kept, data + at, 4);
    memcpy(data + at, &infinite, 4);
    write_file(bad, "model.safetensors", data, bytes);
    check_fails(bitaxon_model_verify(&p, &error), BITAXON_FORMAT,
                "in_proj.packed.a4g64f32: scale 2 of");
    memcpy(data + at, &kept, 4);
    close_files(&o);
    for (size_t cut = 0; cut < bytes; cut += 1 + bytes / 40) {
        write_file(bad, "model.safetensors", data, cut);
        bitaxon_error error = BITAXON_ERROR_INIT;
        assert_true(bitaxon_model_verify(&p, &error) < 0);
        assert_true(error.message[0] != '\0');
    }
    write_file(bad, "model.safetensors", data, bytes);
    check_ok(bitaxon_model_verify(&p, &error));
    char path[512];
    join(path, bad, "config.json");
    unlink(path);
    check_fails(bitaxon_model_verify(&p, &error), BITAXON_IO, "config.json");
    write_file(bad, "config.json", "{\"hidden_dim\": 63}", 18);
    check_fails(bitaxon_model_verify(&p, &error), BITAXON_FORMAT, "hidden_dim");
    write_file(bad, "config.json", config, config_bytes);
    write_file(bad, "tokenizer.json", "{\"model\": 7}", 12);
    {
        bitaxon_error error = BITAXON_ERROR_INIT;
        assert_true(bitaxon_model_verify(&p, &error) < 0);
        assert_true(error.message[0] != '\0');
    }
    free(data);
    free(config);
    remove_tree(good);
    remove_tree(bad);

    const char *input = fresh();
    static const char *const names[] = {"layer_0.ssm.D", "layer_2.ssm.A_log",
                                        "embed_tokens.weight"};
    for (int i = 0; i < 3; i++) {
        nan_name = names[i];
        rewrite(FP32, input, make_nan);
        p = params_of(input, NULL);
        check_fails(bitaxon_model_verify(&p, &error), BITAXON_FORMAT, names[i]);
        remove_tree(input);
    }
    p = params_of(FP32, NULL);
    check_ok(bitaxon_model_verify(&p, &error));
    p = params_of(Q4, NULL);
    check_ok(bitaxon_model_verify(&p, &error));
    p = params_of("tests/golden/nowhere", NULL);
    check_fails(bitaxon_model_verify(&p, &error), BITAXON_IO, "nowhere");
}

/* A tokenizer is made, and each of its ids has a row of the embedding. */
static void test_verify_tokenizer(void **state)
{
    (void)state;
    size_t bytes;
    unsigned char *text = read_all("tests/golden/tokenizer", "variant-words.json", &bytes);
    const char *output = fresh();
    make_new(output, "affine4", 1); /* 77 rows */
    bitaxon_convert_params p = params_of(output, NULL);
    check_ok(bitaxon_model_verify(&p, &error));
    write_file(output, "tokenizer.json", text, bytes);
    check_fails(bitaxon_model_verify(&p, &error), BITAXON_FORMAT, "the vocabulary has 77 rows");
    remove_tree(output);

    p = params_of(NULL, output);
    p.config_json =
        "{\"vocab_size\": 1000, \"hidden_dim\": 64, \"num_layers\": 1, \"num_heads\": 2, "
        "\"d_source_model\": 64, \"moe_num_experts\": 2, \"moe_intermediate_dim\": 64}";
    check_ok(bitaxon_model_new(&p, &error));
    write_file(output, "tokenizer.json", text, bytes);
    p = params_of(output, NULL);
    check_ok(bitaxon_model_verify(&p, &error));
    write_file(output, "tokenizer.json", text, bytes / 2);
    check_fails(bitaxon_model_verify(&p, &error), BITAXON_FORMAT, "tokenizer.json");
    free(text);
    remove_tree(output);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantize_golden),     cmocka_unit_test(test_quantize_defaults),
        cmocka_unit_test(test_quantize_nf4_layout), cmocka_unit_test(test_quantize_wide),
        cmocka_unit_test(test_quantize_bad_input),  cmocka_unit_test(test_quantize_narrow),
        cmocka_unit_test(test_quantize_shards),     cmocka_unit_test(test_pack),
        cmocka_unit_test(test_pack_rows),           cmocka_unit_test(test_verify_damage),
        cmocka_unit_test(test_verify_tokenizer),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
