/* SPDX-License-Identifier: Apache-2.0 */
/* convert_output.c - the directory that a conversion makes. It must hold no model before,
 * so that everything found there later was made here: a failure removes it all, and nothing
 * of an older model can mix with the new one. Weights are committed first and config.json
 * last: a directory with config.json is complete. */
#define _POSIX_C_SOURCE 200809L
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "convert/bxn_convert.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHECKSUM_KEY "bitaxon.checksum"
#define WEIGHTS 0
#define CONFIG 4
#define FILES 5

static const char *const file_names[FILES] = {"model.safetensors", "tokenizer.json",
                                              "tokenizer_config.json", "generation_config.json",
                                              "config.json"};

struct bxn_output {
    XXH3_state_t hash; /* first: aligned to 64 as the block is */
    bxn_conversion *c;
    char *path;    /* of a file: directory, '/', name */
    size_t length; /* of the directory in it */
    size_t capacity;
    size_t existed; /* length of the part of the directory that was there before */
    bxn_st_writer *writer;
    uint32_t made; /* bit i: file_names[i] */
};

static const char *path_of(bxn_output *out, const char *name)
{
    snprintf(out->path + out->length, out->capacity - out->length, "/%s", name);
    return out->path;
}

static const char *directory_of(bxn_output *out)
{
    out->path[out->length] = '\0';
    return out->path;
}

/* How much of the path exists already: up to a '/' or its end. */
static size_t existing_part(char *path, size_t length)
{
    struct stat info;
    while (length > 0 && stat(path, &info) != 0) {
        while (length > 0 && path[length - 1] != '/')
            length--;
        while (length > 1 && path[length - 1] == '/')
            length--;
        if (length == 1 && path[0] == '/')
            return 1;
        path[length] = '\0';
    }
    return length;
}

static bitaxon_status refuse_input(bxn_output *out, const char *input)
{
    struct stat a, b;
    if (input != NULL && stat(directory_of(out), &a) == 0 && stat(input, &b) == 0 &&
        a.st_dev == b.st_dev && a.st_ino == b.st_ino)
        return bxn_fail(out->c->error, BITAXON_INVALID_ARGUMENT,
                        "the output is the input's directory: %s", out->path);
    return BITAXON_OK;
}

static bitaxon_status refuse_model(bxn_output *out)
{
    bxn_bundle *bundle;
    bitaxon_status status =
        bxn_bundle_open(&out->c->mem, directory_of(out), NULL, 0, 0, &bundle, out->c->error);
    if (status == BITAXON_OK && bundle->count > 0)
        status = bxn_fail(out->c->error, BITAXON_IO,
                          "the output directory holds %.64s already; give an empty one: %s",
                          bundle->files[0].name, directory_of(out));
    bxn_bundle_free(bundle);
    return status;
}

bitaxon_status bxn_output_open(bxn_conversion *c, const char *input, size_t align,
                               bxn_output **result)
{
    void *memory;
    size_t length = strlen(c->params->output);
    *result = NULL;
    bitaxon_status status = bxn_calloc(&c->mem, sizeof(bxn_output), "output", &memory, c->error);
    if (status != BITAXON_OK)
        return status;
    bxn_output *out = memory;
    out->c = c;
    out->capacity = length + 64;
    out->existed = length;
    status = bxn_alloc(&c->mem, out->capacity, "path", &memory, c->error);
    if (status != BITAXON_OK) {
        bxn_free(&c->mem, out, sizeof *out);
        return status;
    }
    out->path = memory;
    while (length > 1 && c->params->output[length - 1] == '/')
        length--;
    out->length = length;
    memcpy(out->path, c->params->output, length);
    directory_of(out); /* ends it */
    status = refuse_input(out, input);
    if (status == BITAXON_OK) {
        out->existed = existing_part(out->path, length);
        memcpy(out->path, c->params->output, length);
        status = bxn_make_directory(directory_of(out), c->error);
    }
    if (status == BITAXON_OK)
        status = refuse_model(out);
    if (status == BITAXON_OK)
        status = bxn_st_create(&c->mem, path_of(out, file_names[WEIGHTS]), align, &out->writer,
                               c->error);
    if (status != BITAXON_OK) {
        bxn_output_abort(out);
        return status;
    }
    XXH3_128bits_reset(&out->hash);
    *result = out;
    return BITAXON_OK;
}

bxn_st_writer *bxn_output_writer(bxn_output *out)
{
    return out->writer;
}

bitaxon_status bxn_output_begin(bxn_output *out)
{
    bxn_conversion *c = out->c;
    const bxn_tensors *tensors = c->tensors;
    bitaxon_status status = BITAXON_OK;
    bool named = false;
    for (uint64_t i = 0; tensors != NULL && i < tensors->pairs && status == BITAXON_OK; i++) {
        if (strncmp(tensors->keys[i], "bitaxon.", 8) == 0)
            continue; /* ours are made anew */
        named |= strcmp(tensors->keys[i], "format") == 0;
        status = bxn_st_meta(out->writer, tensors->keys[i], tensors->values[i], c->error);
    }
    if (status == BITAXON_OK && !named)
        status = bxn_st_meta(out->writer, "format", "mlx", c->error);
    if (status == BITAXON_OK)
        status =
            bxn_st_meta(out->writer, CHECKSUM_KEY, "00000000000000000000000000000000", c->error);
    return status == BITAXON_OK ? bxn_st_begin(out->writer, c->error) : status;
}

bitaxon_status bxn_output_put(bxn_output *out, const void *data, size_t bytes)
{
    XXH3_128bits_update(&out->hash, data, bytes);
    return bxn_st_put(out->writer, data, bytes, out->c->error);
}

static bitaxon_status finish_weights(bxn_output *out)
{
    char hex[33];
    XXH128_hash_t hash = XXH3_128bits_digest(&out->hash);
    snprintf(hex, sizeof hex, "%016llx%016llx", (unsigned long long)hash.high64,
             (unsigned long long)hash.low64);
    bitaxon_status status = bxn_st_patch_meta(out->writer, CHECKSUM_KEY, hex, out->c->error);
    if (status != BITAXON_OK)
        return status;
    bxn_st_writer *writer = out->writer;
    out->writer = NULL; /* commit frees it */
    out->made |= 1u << WEIGHTS;
    return bxn_st_commit(writer, out->c->error);
}

static bitaxon_status write_text(bxn_output *out, uint32_t file, const char *text, size_t bytes)
{
    bxn_writer *writer;
    bitaxon_status status =
        bxn_writer_open(&out->c->mem, path_of(out, file_names[file]), &writer, out->c->error);
    if (status != BITAXON_OK)
        return status;
    status = bxn_writer_put(writer, text, bytes, out->c->error);
    if (status != BITAXON_OK) {
        bxn_writer_abort(writer);
        return status;
    }
    out->made |= 1u << file;
    return bxn_writer_commit(writer, out->c->error);
}

/* Set `key` unless the source has it. */
static bool set_default(json_t *root, const char *key, json_t *value)
{
    if (json_object_get(root, key) == NULL)
        return json_object_set_new(root, key, value) == 0;
    json_decref(value);
    return true;
}

/* The keys of spec 1.1, and of the extensions in use, that `root` lacks. */
static bool complete_config(json_t *root, const bxn_config *config)
{
    const struct {
        const char *key;
        uint32_t value;
    } integers[] = {
        {"vocab_size", config->vocab_size},
        {"hidden_dim", config->hidden_dim},
        {"num_layers", config->num_layers},
        {"num_heads", config->num_heads},
        {"d_source_model", config->d_source_model},
        {"ssm_d_state", config->ssm_d_state},
        {"ssm_d_conv", config->ssm_d_conv},
        {"ssm_expand", config->ssm_expand},
        {"ssm_scan_step", config->ssm_scan_step},
        {"swa_window_size", config->swa_window_size},
        {"moe_num_experts", config->moe_num_experts},
        {"moe_top_k", config->moe_top_k},
        {"moe_intermediate_dim", config->moe_intermediate_dim},
    };
    bool fine = true;
    for (size_t i = 0; i < sizeof integers / sizeof *integers; i++)
        fine &= set_default(root, integers[i].key, json_integer(integers[i].value));
    fine &= set_default(root, "moe_shared_expert", json_boolean(config->moe_shared_expert));
    fine &= set_default(root, "weight_tying", json_boolean(config->weight_tying));
    fine &= set_default(root, "max_seq_len", json_integer(config->max_seq_len));
    fine &= set_default(root, "rms_norm_eps", json_real(config->rms_norm_eps));
    if (config->final_norm)
        fine &= set_default(root, "final_norm", json_true());
    if (config->rope_theta != 0)
        fine &= set_default(root, "rope_theta", json_real(config->rope_theta));
    return fine;
}

static bool set_quantization(json_t *root, const bxn_target *target)
{
    if (target == NULL || target->kind == BXN_TARGET_COPY)
        return true;
    if (target->kind == BXN_TARGET_FLOAT) {
        json_object_del(root, "quantization");
        return true;
    }
    json_t *value = json_object();
    bool fine =
        json_object_set_new(value, "group_size", json_integer(target->group)) == 0 &&
        json_object_set_new(value, "bits", json_integer(target->bits)) == 0 &&
        json_object_set_new(value, "mode",
                            json_string(target->kind == BXN_TARGET_NF4 ? "nf4" : "affine")) == 0;
    return json_object_set_new(root, "quantization", value) == 0 && fine;
}

/* Reals with as few digits as give them back. */
static size_t json_flags(const json_t *root)
{
    for (int digits = 6; digits < 17; digits++) {
        size_t flags = JSON_INDENT(2) | JSON_REAL_PRECISION(digits);
        char *text = json_dumps(root, flags);
        json_t *back = text != NULL ? json_loads(text, 0, NULL) : NULL;
        bool same = back != NULL && json_equal(root, back);
        json_decref(back);
        free(text);
        if (same)
            return flags;
    }
    return JSON_INDENT(2) | JSON_REAL_PRECISION(17);
}

static bitaxon_status write_config(bxn_output *out, const bxn_target *quantization)
{
    bxn_conversion *c = out->c;
    bxn_json source = {0};
    json_t *root = NULL;
    char *text = NULL;
    size_t bytes = 0;
    void *memory;
    bitaxon_status status = BITAXON_OK;
    bxn_file *file = c->bundle != NULL ? bxn_bundle_find(c->bundle, "config.json") : NULL;
    if (file != NULL) { /* keys that are not ours stay */
        status = bxn_file_text(c->bundle, file, BXN_MAX_JSON_BYTES, &text, &bytes, c->error);
        if (status != BITAXON_OK)
            return status;
        status = bxn_json_parse(&c->mem, text, bytes, "config.json", &source, c->error);
        bxn_free(&c->mem, text, bytes + 1);
        if (status != BITAXON_OK)
            return status;
    }
    root = source.root != NULL ? json_incref(source.root) : json_object();
    if (root == NULL || !complete_config(root, &c->config) ||
        !set_quantization(root, quantization)) {
        status = bxn_fail(c->error, BITAXON_OUT_OF_MEMORY, "out of memory: config.json");
        goto done;
    }
    bxn_locale locale;
    bool plain = bxn_locale_enter(&locale);
    size_t flags = plain ? json_flags(root) : 0, size = plain ? json_dumpb(root, NULL, 0, flags) : 0;
    status = bxn_alloc(&c->mem, size + 1, "config.json", &memory, c->error);
    if (status != BITAXON_OK) {
        bxn_locale_leave(&locale);
        goto done;
    }
    text = memory;
    bool written = size != 0 && json_dumpb(root, text, size, flags) == size;
    bxn_locale_leave(&locale);
    if (!written) {
        status = bxn_fail(c->error, BITAXON_OUT_OF_MEMORY, "out of memory: config.json");
    } else {
        text[size] = '\n';
        status = write_text(out, CONFIG, text, size + 1);
    }
    bxn_free(&c->mem, memory, size + 1);
done:
    json_decref(root);
    bxn_json_free(&source);
    return status;
}

bitaxon_status bxn_output_commit(bxn_output *out, bxn_bundle *tokenizer,
                                 const bxn_target *quantization)
{
    bxn_conversion *c = out->c;
    bitaxon_status status = finish_weights(out);
    for (uint32_t i = WEIGHTS + 1; i < CONFIG && tokenizer != NULL && status == BITAXON_OK; i++) {
        bxn_file *file = bxn_bundle_find(tokenizer, file_names[i]);
        if (file == NULL)
            continue;
        out->made |= 1u << i;
        status = bxn_copy_file(&c->mem, tokenizer, file, path_of(out, file_names[i]), c->error);
    }
    if (status == BITAXON_OK)
        status = write_config(out, quantization);
    if (status == BITAXON_OK) {
        out->made = 0;
        out->existed = out->length;
    }
    bxn_output_abort(out);
    return status;
}

void bxn_output_abort(bxn_output *out)
{
    if (out == NULL)
        return;
    bxn_mem *mem = &out->c->mem;
    if (out->writer != NULL)
        bxn_st_abort(out->writer);
    for (uint32_t i = 0; i < FILES; i++)
        if ((out->made >> i & 1) != 0)
            unlink(path_of(out, file_names[i]));
    directory_of(out);
    for (size_t end = out->length; end > out->existed;) { /* directories made on the way */
        out->path[end] = '\0';
        if (rmdir(out->path) != 0)
            break;
        while (end > out->existed && out->path[end - 1] != '/')
            end--;
        while (end > out->existed && out->path[end - 1] == '/')
            end--;
    }
    bxn_free(mem, out->path, out->capacity);
    bxn_free(mem, out, sizeof *out);
}
