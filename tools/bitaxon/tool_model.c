/* SPDX-License-Identifier: Apache-2.0 */
/* tool_model.c - opening a model and choosing a sampler as the command line says.
 * Invariant: an instruction set that is asked for by name is used or refused by name. */
#include "tool_model.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct isa_choice {
    const char *name;
    uint64_t features;
    uint64_t mask;
} isa_choice;

static const isa_choice isa_choices[] = {
    {"c", 0, BITAXON_CPU_NONE},
    {"avx2", BITAXON_CPU_AVX2, BITAXON_CPU_AVX2},
    {"avx512", BITAXON_CPU_AVX2 | BITAXON_CPU_AVX512, BITAXON_CPU_AVX2 | BITAXON_CPU_AVX512},
    {"avx512vnni", BITAXON_CPU_AVX2 | BITAXON_CPU_AVX512 | BITAXON_CPU_AVX512_VNNI,
     BITAXON_CPU_AVX2 | BITAXON_CPU_AVX512 | BITAXON_CPU_AVX512_VNNI},
    {"amx", BITAXON_CPU_AVX2 | BITAXON_CPU_AVX512 | BITAXON_CPU_AMX,
     BITAXON_CPU_AVX2 | BITAXON_CPU_AVX512 | BITAXON_CPU_AMX},
    {"neon", BITAXON_CPU_NEON, BITAXON_CPU_NEON},
    {"dotprod", BITAXON_CPU_NEON | BITAXON_CPU_NEON_DOTPROD,
     BITAXON_CPU_NEON | BITAXON_CPU_NEON_DOTPROD},
    {"i8mm", BITAXON_CPU_NEON | BITAXON_CPU_NEON_DOTPROD | BITAXON_CPU_NEON_I8MM,
     BITAXON_CPU_NEON | BITAXON_CPU_NEON_DOTPROD | BITAXON_CPU_NEON_I8MM},
};

static const isa_choice *find_isa(const char *name)
{
    for (size_t i = 0; i < sizeof isa_choices / sizeof isa_choices[0]; i++) {
        if (strcmp(name, isa_choices[i].name) == 0) {
            return &isa_choices[i];
        }
    }
    return NULL;
}

static const char *const accuracies[] = {NULL, "exact", "near", "fast"};

/* BITAXON_ACCURACY_*, or -1. */
static int32_t find_accuracy(const char *name)
{
    for (int32_t i = 1; i < (int32_t)(sizeof accuracies / sizeof accuracies[0]); i++) {
        if (strcmp(name, accuracies[i]) == 0) {
            return i;
        }
    }
    return -1;
}

/* BITAXON_KV_DEFAULT: no such name. */
static int32_t find_kv(const char *name)
{
    static const char *const names[] = {"f16", "f32", "i8", "q4"};
    for (int32_t i = 0; i < 4; i++) {
        if (strcmp(name, names[i]) == 0) {
            return BITAXON_KV_F16 + i;
        }
    }
    return BITAXON_KV_DEFAULT;
}

int tool_model_args_check(const char *command, const tool_model_args *args)
{
    if (args->isa != NULL) {
        const isa_choice *isa = find_isa(args->isa);
        if (isa == NULL) {
            return tool_usage_error(
                command, "--isa: '%s' is not c, avx2, avx512, avx512vnni, amx, neon, dotprod or i8mm",
                args->isa);
        }
        if ((isa->features & ~bitaxon_cpu_features()) != 0) {
            return tool_error("--isa %s: this machine lacks it", args->isa);
        }
    }
    if (args->accuracy != NULL && find_accuracy(args->accuracy) < 0) {
        return tool_usage_error(command, "--accuracy: '%s' is not exact, near or fast",
                                args->accuracy);
    }
    if (args->kv != NULL && find_kv(args->kv) == BITAXON_KV_DEFAULT) {
        return tool_usage_error(command, "--kv: '%s' is not f16, f32, i8 or q4", args->kv);
    }
    return tool_adapters_check(command, &args->adapters);
}

int32_t tool_kv_type(const tool_model_args *args, int32_t fallback)
{
    if (args->kv == NULL) {
        return fallback;
    }
    return find_kv(args->kv);
}

static void log_warning(void *user, int32_t level, const char *line)
{
    (void)user;
    if (level >= BITAXON_LOG_WARNING) {
        tool_error("warning: %s", line);
    }
}

void tool_host(bitaxon_host *host)
{
    memset(host, 0, sizeof *host);
    host->struct_size = sizeof *host;
    host->log = log_warning;
}

void tool_model_params(const char *path, const tool_model_args *args, uint32_t flags,
                       tool_progress *progress, bitaxon_host *host, bitaxon_model_params *params)
{
    tool_host(host);
    memset(params, 0, sizeof *params);
    params->struct_size = sizeof *params;
    params->host = host;
    params->path = path;
    params->flags = flags | BITAXON_MODEL_ALLOW_AMX;
    if (args->no_mmap) {
        params->flags |= BITAXON_MODEL_NO_MMAP;
    }
    params->tokenizer = args->tokenizer;
    params->threads = args->threads;
    params->max_bytes = args->max_bytes;
    if (args->isa != NULL) {
        params->cpu_mask = find_isa(args->isa)->mask;
    }
    if (args->accuracy != NULL) {
        params->accuracy = find_accuracy(args->accuracy);
    }
    params->progress = tool_progress_library;
    params->progress_user = progress;
}

int tool_model_open(const char *path, const tool_model_args *args, uint32_t flags,
                    tool_progress *progress, bitaxon_model **model)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_host host;
    bitaxon_model_params params;
    tool_model_params(path, args, flags, progress, &host, &params);
    bitaxon_status status = bitaxon_model_open(&params, model, &error);
    tool_progress_clear(progress);
    return status == BITAXON_OK ? TOOL_OK : tool_fail(status, &error);
}

char *tool_adapter_path(const char *text, float *weight)
{
    const char *colon = strrchr(text, ':');
    size_t bytes = strlen(text);
    double value = 1;
    if (colon != NULL && tool_parse_real(colon + 1, &value)) {
        bytes = (size_t)(colon - text);
    }
    char *path = tool_alloc(bytes + 1);
    memcpy(path, text, bytes);
    path[bytes] = '\0';
    *weight = (float)value;
    return path;
}

int tool_adapters_check(const char *command, const tool_list *adapters)
{
    if (adapters->count > BITAXON_ADAPTERS_MAX) {
        return tool_usage_error(command, "--adapter: %zu are too many, %d work together",
                                adapters->count, BITAXON_ADAPTERS_MAX);
    }
    for (size_t i = 0; i < adapters->count; i++) {
        float weight = 0;
        char *path = tool_adapter_path(adapters->items[i], &weight);
        bool empty = path[0] == '\0';
        free(path);
        if (empty || !(fabsf(weight) <= FLT_MAX)) {
            return tool_usage_error(command, "--adapter: '%s' is not PATH or PATH:WEIGHT",
                                    adapters->items[i]);
        }
    }
    return TOOL_OK;
}

int tool_adapters_put(bitaxon_model *model, const tool_model_args *args, bitaxon_session *session)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_adapter *adapters[BITAXON_ADAPTERS_MAX] = {NULL};
    float weights[BITAXON_ADAPTERS_MAX] = {0};
    uint32_t count = (uint32_t)args->adapters.count;
    bitaxon_status status = BITAXON_OK;
    for (uint32_t i = 0; i < count && status == BITAXON_OK; i++) {
        char *path = tool_adapter_path(args->adapters.items[i], &weights[i]);
        bitaxon_adapter_params params = {.struct_size = sizeof params,
                                         .scale = (float)args->adapter_scale,
                                         .path = path};
        status = bitaxon_adapter_open(model, &params, &adapters[i], &error);
        free(path);
    }
    if (status == BITAXON_OK) {
        status = bitaxon_session_set_adapters(session, adapters, weights, count, &error);
    }
    for (uint32_t i = 0; i < count; i++) {
        bitaxon_adapter_free(adapters[i]);
    }
    return status == BITAXON_OK ? TOOL_OK : tool_fail(status, &error);
}

int tool_model_integer(const bitaxon_model *model, const char *key, int64_t *value)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_status status = bitaxon_model_info_int(model, key, value, &error);
    return status == BITAXON_OK ? TOOL_OK : tool_fail(status, &error);
}

int tool_sampler_params(tool_sampler_args *args, bitaxon_sampler_params *params)
{
    if (!args->seed_given) {
        if (getentropy(&args->seed, sizeof args->seed) != 0) {
            return tool_error("no random seed: %s", strerror(errno));
        }
        args->seed >>= 11; /* 53 bits, exact in JSON */
    }
    memset(params, 0, sizeof *params);
    params->struct_size = sizeof *params;
    params->temperature = args->greedy ? 0.0f : (float)args->temperature;
    params->top_k = args->top_k;
    /* 0 would mean "off" to the library; on the command line it keeps the likeliest alone. */
    params->top_p = args->top_p < (double)FLT_MIN ? FLT_MIN : (float)args->top_p;
    params->min_p = (float)args->min_p;
    params->repetition_penalty = (float)args->repetition_penalty;
    params->seed = args->seed;
    return TOOL_OK;
}

int tool_tokenize(const bitaxon_model *model, const char *text, size_t bytes, uint32_t flags,
                  int32_t **ids, size_t *count)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    /* A token stands for one byte at least, so that this is enough but for replaced bytes. */
    size_t capacity = bytes + 16;
    *count = 0;
    *ids = NULL;
    for (;;) {
        size_t need = 0;
        *ids = tool_realloc(*ids, capacity * sizeof **ids);
        bitaxon_status status =
            bitaxon_model_tokenize(model, text, bytes, flags, *ids, capacity, &need, &error);
        if (status == BITAXON_OK) {
            *count = need;
            return TOOL_OK;
        }
        if (status != BITAXON_LIMIT || need <= capacity) {
            free(*ids);
            *ids = NULL;
            return tool_fail(status, &error);
        }
        capacity = need;
    }
}

const char *tool_finish_name(int32_t finish)
{
    static const char *const names[] = {"none",    "eos",       "stop",    "length",
                                        "context", "cancelled", "callback"};
    return finish >= 0 && finish <= BITAXON_FINISH_CALLBACK ? names[finish] : "none";
}
