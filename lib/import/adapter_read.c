/* SPDX-License-Identifier: Apache-2.0 */
/* adapter_read.c - an adapter from a file (docs/adapters.md): the original's keys, with or without our
 * metadata, alone or among the tensors of an adapted model. Called by the API, by conversions and by
 * training that goes on. Every tensor is accounted for: used, of the base, or refused. */
#include "import/import.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct input {
    const bxn_model *model;
    const bxn_tensors *tensors;
    const char *path; /* for messages */
    bxn_adapter *adapter;
    uint64_t found; /* tensors that are parts of weights of the model */
    bool dora;
    bitaxon_error *error;
} input;

static const bxn_tensor *part(const input *in, const char *weight, const char *suffix)
{
    char name[BXN_WEIGHT_NAME + 8];
    snprintf(name, sizeof name, "%s%s", weight, suffix);
    return bxn_tensors_find(in->tensors, name);
}

static const char *shape_text(const bxn_tensor *tensor, char text[160])
{
    size_t used = (size_t)snprintf(text, 160, "[");
    for (uint32_t i = 0; i < tensor->rank && used < 130; i++)
        used += (size_t)snprintf(text + used, 160 - used, "%s%llu", i == 0 ? "" : ", ",
                                 (unsigned long long)tensor->shape[i]);
    snprintf(text + used, 160 - used, "]");
    return text;
}

static bitaxon_status check_type(const input *in, const bxn_tensor *tensor, uint32_t rank)
{
    char text[160];
    if (tensor->dtype != BXN_F32 && tensor->dtype != BXN_F16 && tensor->dtype != BXN_BF16)
        return bxn_fail(in->error, BITAXON_UNSUPPORTED, "%s: tensor %s has type %s, floats are needed", in->path,
                        tensor->name, bxn_dtype_name(tensor->dtype));
    if (tensor->rank != rank)
        return bxn_fail(in->error, BITAXON_FORMAT, "%s: tensor %s has shape %s, %s is needed", in->path, tensor->name,
                        shape_text(tensor, text), rank == 1 ? "one dimension" : "two dimensions");
    return BITAXON_OK;
}

static bitaxon_status misfit(const input *in, const bxn_tensor *tensor, const bxn_weight *w)
{
    char text[160];
    return bxn_fail(in->error, BITAXON_MISMATCH, "%s: of another model: tensor %s has shape %s, the weight is [%u, %u]",
                    in->path, tensor->name, shape_text(tensor, text), w->rows, w->cols);
}

/* Both halves, their shapes and the magnitudes of one weight, before anything is allocated. */
static bitaxon_status check_weight(void *user, bxn_weight *w, const char *name, int32_t expert)
{
    input *in = user;
    if (expert >= 0 || !bxn_weight_adaptable(name))
        return BITAXON_OK;
    const bxn_tensor *a = part(in, name, ".lora_a"), *b = part(in, name, ".lora_b"), *m = part(in, name, ".m");
    in->found += (uint64_t)((a != NULL) + (b != NULL) + (m != NULL));
    if (a == NULL && b == NULL && m == NULL)
        return BITAXON_OK;
    if (a == NULL || b == NULL)
        return bxn_fail(in->error, BITAXON_FORMAT, "%s: %s has no %s", in->path, name, a == NULL ? "lora_a" : "lora_b");
    if (in->dora && m == NULL)
        return bxn_fail(in->error, BITAXON_FORMAT, "%s: %s has no m, though others do (DoRA)", in->path, name);
    bitaxon_status status = check_type(in, a, 2);
    if (status == BITAXON_OK)
        status = check_type(in, b, 2);
    if (status == BITAXON_OK && m != NULL)
        status = check_type(in, m, 1);
    if (status != BITAXON_OK)
        return status;
    if (a->shape[0] != w->cols)
        return misfit(in, a, w);
    if (b->shape[1] != w->rows)
        return misfit(in, b, w);
    if (m != NULL && m->shape[0] != w->rows)
        return misfit(in, m, w);
    if (a->shape[1] != b->shape[0])
        return bxn_fail(in->error, BITAXON_FORMAT, "%s: %s: lora_a has rank %llu, lora_b has %llu", in->path, name,
                        (unsigned long long)a->shape[1], (unsigned long long)b->shape[0]);
    if (a->shape[1] == 0 || a->shape[1] > BXN_MAX_ADAPTER_RANK)
        return bxn_fail(in->error, a->shape[1] == 0 ? BITAXON_FORMAT : BITAXON_LIMIT,
                        "%s: %s has rank %llu, 1 to %u are possible", in->path, name, (unsigned long long)a->shape[1],
                        BXN_MAX_ADAPTER_RANK);
    return BITAXON_OK;
}

static uint32_t rank_of(void *user, const bxn_weight *w, const char *name)
{
    const bxn_tensor *a = part(user, name, ".lora_a");
    (void)w;
    return a == NULL ? 0 : (uint32_t)a->shape[1];
}

static bool ends_with(const char *name, const char *suffix)
{
    size_t n = strlen(name), s = strlen(suffix);
    return n > s && strcmp(name + n - s, suffix) == 0;
}

static bool is_part(const char *name)
{
    return ends_with(name, ".lora_a") || ends_with(name, ".lora_b") || ends_with(name, ".m");
}

/* A tensor of the model that was adapted, as in a dump of all of its parameters. */
static bool is_base(const char *name)
{
    static const char *const starts[] = { "layer_", "embed_tokens.", "input_proj.", "output_proj.", "lm_head.",
                                          "final_norm." };
    if (strstr(name, "lora") != NULL || strstr(name, "LoRA") != NULL) /* a part by another's naming */
        return false;
    for (size_t i = 0; i < sizeof starts / sizeof starts[0]; i++)
        if (strncmp(name, starts[i], strlen(starts[i])) == 0)
            return true;
    return false;
}

/* The first part that belongs to no weight, for the message. */
typedef struct owner {
    const char *name;
    bool found;
} owner;

static bitaxon_status find_owner(void *user, bxn_weight *w, const char *name, int32_t expert)
{
    owner *o = user;
    (void)w;
    if (expert >= 0 || !bxn_weight_adaptable(name) || strncmp(o->name, name, strlen(name)) != 0)
        return BITAXON_OK;
    const char *suffix = o->name + strlen(name);
    o->found |= strcmp(suffix, ".lora_a") == 0 || strcmp(suffix, ".lora_b") == 0 || strcmp(suffix, ".m") == 0;
    return BITAXON_OK;
}

static bitaxon_status check_others(const input *in)
{
    uint64_t parts = 0, base = 0;
    for (uint64_t i = 0; i < in->tensors->count; i++) {
        const char *name = in->tensors->items[i].name;
        if (is_part(name))
            parts++;
        else if (is_base(name))
            base++;
        else
            return bxn_fail(in->error, BITAXON_FORMAT, "%s: tensor %s is no part of an adapter", in->path, name);
    }
    for (uint64_t i = 0; i < in->tensors->count && parts != in->found; i++) {
        owner o = { in->tensors->items[i].name, false };
        if (!is_part(o.name))
            continue;
        (void)bxn_model_weights(in->model, find_owner, &o);
        if (!o.found)
            return bxn_fail(in->error, BITAXON_MISMATCH,
                            "%s: of another model: no weight that an adapter may change belongs to tensor %s", in->path,
                            o.name);
    }
    if (parts == 0)
        return bxn_fail(in->error, BITAXON_FORMAT, "%s holds no adapter: no tensor ends with .lora_a", in->path);
    if (base != 0)
        bxn_log(in->adapter->mem, BITAXON_LOG_INFO, "%s: %llu tensors of the adapted model are not needed", in->path,
                (unsigned long long)base);
    return BITAXON_OK;
}

/* ---- metadata ---------------------------------------------------------------------------------- */

static bitaxon_status check_base(const input *in, const char *base)
{
    char own[33];
    for (int i = 0; i < 16; i++)
        snprintf(own + 2 * i, 3, "%02x", in->model->fingerprint[i]);
    if (base == NULL || strcmp(base, own) == 0)
        return BITAXON_OK;
    return bxn_fail(in->error, BITAXON_MISMATCH, "%s: made for the model %.32s, this one is %s", in->path, base, own);
}

static bitaxon_status parse_scale(const input *in, bxn_mem *mem, const char *text, float *scale)
{
    char list[80];
    bxn_json json = { 0 };
    double value = NAN;
    int n = snprintf(list, sizeof list, "[%s]", text);
    if (n > 0 && (size_t)n < sizeof list) {
        bitaxon_error cause = BITAXON_ERROR_INIT;
        bitaxon_status status = bxn_json_parse(mem, list, (size_t)n, "lora_scale", &json, &cause);
        if (status != BITAXON_OK && status != BITAXON_FORMAT)
            return bxn_fail(in->error, status, "%s: %s", in->path, cause.message);
        const json_t *item = status == BITAXON_OK ? json_array_get(json.root, 0) : NULL;
        if (json_is_number(item) && json_array_size(json.root) == 1)
            value = json_number_value(item);
        bxn_json_free(&json);
    }
    *scale = (float)value;
    return isfinite(*scale) ? BITAXON_OK
                            : bxn_fail(in->error, BITAXON_FORMAT, "%s: metadata lora_scale is '%.40s'", in->path, text);
}

static bitaxon_status check_metadata(const input *in, bxn_mem *mem, float given, float *scale)
{
    const char *version = bxn_tensors_meta(in->tensors, "format_version");
    const char *type = bxn_tensors_meta(in->tensors, "type");
    const char *told = bxn_tensors_meta(in->tensors, "lora_scale");
    if (version != NULL && strcmp(version, "1") != 0)
        return bxn_fail(in->error, BITAXON_UNSUPPORTED, "%s: format_version %.16s (this library reads 1)", in->path,
                        version);
    if (type != NULL && strcmp(type, "lora") != 0 && strcmp(type, "dora") != 0)
        return bxn_fail(in->error, BITAXON_UNSUPPORTED, "%s: adapters of type '%.32s' are not known", in->path, type);
    if (type != NULL && (strcmp(type, "dora") == 0) != in->dora)
        return bxn_fail(in->error, BITAXON_FORMAT, "%s: of type %s, and there are %s magnitudes (.m)", in->path, type,
                        in->dora ? "" : "no");
    bitaxon_status status = check_base(in, bxn_tensors_meta(in->tensors, "base_fingerprint"));
    *scale = given;
    if (status != BITAXON_OK || given != 0)
        return status;
    if (told != NULL)
        return parse_scale(in, mem, told, scale);
    *scale = BXN_ADAPTER_SCALE;
    bxn_log(mem, BITAXON_LOG_WARNING, "%s tells no scale: %g is taken", in->path, (double)*scale);
    return BITAXON_OK;
}

/* ---- values -------------------------------------------------------------------------------------- */

static bitaxon_status read_array(void *user, const char *name, uint32_t weight_id, size_t offset, uint32_t rows,
                                 uint32_t cols, size_t ld)
{
    const input *in = user;
    const bxn_tensor *tensor = bxn_tensors_find(in->tensors, name);
    float *values = in->adapter->values + offset, piece[2048];
    size_t size = bxn_dtype_size(tensor->dtype);
    uint64_t count = (uint64_t)rows * cols;
    bool a = ends_with(name, ".lora_a");
    uint8_t raw[sizeof piece];
    (void)weight_id;
    for (uint64_t at = 0; at < count;) {
        size_t n = count - at < 2048 ? (size_t)(count - at) : 2048;
        bitaxon_status status = bxn_tensor_read(in->tensors, tensor, at * size, raw, n * size, in->error);
        if (status != BITAXON_OK)
            return status;
        bxn_to_f32(raw, tensor->dtype, n, piece);
        for (size_t i = 0; i < n; i++, at++) {
            if (!isfinite(piece[i]))
                return bxn_fail(in->error, BITAXON_FORMAT, "%s: tensor %s: value %llu is not finite", in->path, name,
                                (unsigned long long)at);
            if (a) /* [cols, rows] in the file */
                values[at % rows * ld + at / rows] = piece[i];
            else
                values[at / cols * ld + at % cols] = piece[i];
        }
    }
    return BITAXON_OK;
}

static bitaxon_status read_tensors(input *in, bxn_mem *mem, float given)
{
    float scale = 0;
    for (uint64_t i = 0; i < in->tensors->count; i++)
        in->dora |= ends_with(in->tensors->items[i].name, ".m");
    in->adapter->mem = mem; /* for the log */
    bitaxon_status status = bxn_model_weights(in->model, check_weight, in);
    if (status == BITAXON_OK)
        status = check_others(in);
    if (status == BITAXON_OK)
        status = check_metadata(in, mem, given, &scale);
    memset(in->adapter, 0, sizeof *in->adapter);
    if (status == BITAXON_OK)
        status = bxn_adapter_make(mem, in->model, scale, in->dora, rank_of, in, in->adapter, in->error);
    if (status == BITAXON_OK)
        status = bxn_adapter_each(in->model, in->adapter, read_array, in);
    if (status != BITAXON_OK)
        bxn_adapter_free(in->adapter);
    return status;
}

bitaxon_status bxn_adapter_read(bxn_mem *mem, const bxn_model *model, const char *path, float scale,
                                bxn_adapter *out, bitaxon_error *error)
{
    char *in_directory = NULL;
    bxn_bundle *bundle = NULL;
    bxn_tensors *tensors = NULL;
    size_t bytes = strlen(path) + sizeof "/" BXN_ADAPTER_FILE;
    void *memory;
    memset(out, 0, sizeof *out);
    if (!isfinite(scale))
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "the scale of an adapter is not finite");
    if (!ends_with(path, ".safetensors")) {
        bitaxon_status status = bxn_alloc(mem, bytes, "path", &memory, error);
        if (status != BITAXON_OK)
            return status;
        in_directory = memory;
        snprintf(in_directory, bytes, "%s/%s", path, BXN_ADAPTER_FILE);
        path = in_directory;
    }
    /* Read, not mapped: values are copied once, and a file cut short meanwhile is an error. */
    bitaxon_status status = bxn_bundle_open(mem, path, NULL, 0, BXN_BUNDLE_NO_MMAP, &bundle, error);
    if (status == BITAXON_OK)
        status = bxn_tensors_open(bundle, &tensors, error);
    if (status == BITAXON_OK) {
        size_t n = strlen(path); /* of a long path the end, so that messages have room for what is wrong */
        input in = { .model = model, .tensors = tensors, .path = n > 96 ? path + n - 96 : path, .adapter = out,
                     .error = error };
        status = read_tensors(&in, mem, scale);
    }
    bxn_tensors_free(tensors);
    bxn_bundle_free(bundle);
    bxn_free(mem, in_directory, bytes);
    return status;
}

bitaxon_status bxn_adapter_open(bxn_mem *mem, const bxn_model *model, const char *path, float scale,
                                bxn_adapter *out, bitaxon_error *error)
{
    bitaxon_status status = bxn_adapter_read(mem, model, path, scale, out, error);
    if (status == BITAXON_OK)
        status = bxn_adapter_norms(model, out, error);
    if (status == BITAXON_OK)
        status = bxn_adapter_updated(model, out, true, NULL, error);
    if (status != BITAXON_OK)
        bxn_adapter_free(out);
    return status;
}
