/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_inspect.c - `bitaxon inspect`: what a model is, what its files hold and what it will
 * need. The memory figures come from headers alone (bitaxon_model_estimate). */
#include "tool.h"

#include <stdlib.h>
#include <string.h>

#include "tool_json.h"
#include "tool_model.h"
#include "tool_options.h"

static const tool_usage usage = {
    "inspect", "MODEL",
    "Show a model's configuration, exact parameter counts, tensors, and the memory that it\n"
    "and one session need.",
    1, 1};

static const char *const integer_keys[] = {
    "vocab_size",      "hidden_dim", "num_layers",           "num_heads",     "d_source_model",
    "ssm_d_state",     "ssm_d_conv", "ssm_expand",           "ssm_scan_step", "swa_window_size",
    "moe_num_experts", "moe_top_k",  "moe_intermediate_dim", "max_seq_len"};
static const char *const boolean_keys[] = {"moe_shared_expert", "weight_tying", "final_norm"};
static const char *const text_keys[] = {"rms_norm_eps", "rope_theta", "tied", "kernels", "accuracy",
                                        "fingerprint", "tokenizer_fingerprint"};

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

enum { NAME_COLUMN = 46, FORMAT_COLUMN = 22, SHAPE_COLUMN = 16 };

static int info_text(const bitaxon_model *model, const char *key, char *buffer, size_t capacity)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_status status = bitaxon_model_info_text(model, key, buffer, capacity, NULL, &error);
    return status == BITAXON_OK ? TOOL_OK : tool_fail(status, &error);
}

/* Config and counts, into the object or onto the screen (object NULL). */
static int show_facts(const bitaxon_model *model, json_t *object)
{
    static const char *const count_keys[] = {"parameters", "active_parameters", "sublayers",
                                             "tokenizer_vocab_size"};
    json_t *config = object != NULL ? tool_json_object() : NULL;
    char text[512];
    char number[TOOL_NUMBER_BYTES];
    int64_t value = 0;
    int code = TOOL_OK;
    for (size_t i = 0; i < COUNT(text_keys) && code == TOOL_OK; i++) {
        double real;
        code = info_text(model, text_keys[i], text, sizeof text);
        if (code != TOOL_OK) {
            break;
        }
        if (object == NULL) {
            tool_out("%-22s %s\n", text_keys[i], text);
        } else if (i < 2 && tool_parse_real(text, &real)) {
            tool_json_set_real(config, text_keys[i], real);
        } else {
            tool_json_set_string(i < 2 ? config : object, text_keys[i], text);
        }
    }
    for (size_t i = 0; i < COUNT(integer_keys) && code == TOOL_OK; i++) {
        code = tool_model_integer(model, integer_keys[i], &value);
        if (code == TOOL_OK && object == NULL) {
            tool_out("%-22s %lld\n", integer_keys[i], (long long)value);
        } else if (code == TOOL_OK) {
            tool_json_set(config, integer_keys[i], json_integer(value));
        }
    }
    for (size_t i = 0; i < COUNT(boolean_keys) && code == TOOL_OK; i++) {
        code = tool_model_integer(model, boolean_keys[i], &value);
        if (code == TOOL_OK && object == NULL) {
            tool_out("%-22s %s\n", boolean_keys[i], value != 0 ? "true" : "false");
        } else if (code == TOOL_OK) {
            tool_json_set(config, boolean_keys[i], json_boolean(value != 0));
        }
    }
    if (object != NULL) {
        tool_json_set(object, "config", config);
    }
    for (size_t i = 0; i < COUNT(count_keys) && code == TOOL_OK; i++) {
        code = tool_model_integer(model, count_keys[i], &value);
        if (code == TOOL_OK && object == NULL) {
            tool_out("%-22s %s\n", count_keys[i], tool_count_text((uint64_t)value, number));
        } else if (code == TOOL_OK) {
            tool_json_set(object, count_keys[i], json_integer(value));
        }
    }
    return code;
}

static void show_tensor_row(const bitaxon_tensor_info *tensor)
{
    char name[NAME_COLUMN + 1];
    char shape[96] = "scalar";
    char format[64];
    char bytes[TOOL_NUMBER_BYTES];
    size_t used = 0;
    for (uint32_t i = 0; i < tensor->rank && i < 4; i++) {
        used += (size_t)snprintf(shape + used, sizeof shape - used, "%s%llu", i != 0 ? "x" : "",
                                 (unsigned long long)tensor->shape[i]);
    }
    tool_fit_name(tensor->name, NAME_COLUMN, name);
    bool plain = strcmp(tensor->format, "float") == 0;
    snprintf(format, sizeof format, "%s%s%s", tensor->dtype, plain ? "" : " ",
             plain ? "" : tensor->format);
    tool_out("%-*s %-*s %-*s %12s\n", NAME_COLUMN, name, FORMAT_COLUMN, format, SHAPE_COLUMN, shape,
             tool_bytes_text(tensor->bytes, bytes));
}

static json_t *tensor_object(const bitaxon_tensor_info *tensor)
{
    json_t *object = tool_json_object();
    json_t *shape = tool_json_array();
    tool_json_set_string(object, "name", tensor->name);
    tool_json_set_string(object, "dtype", tensor->dtype);
    tool_json_set_string(object, "format", tensor->format);
    for (uint32_t i = 0; i < tensor->rank && i < 4; i++) {
        tool_json_append(shape, json_integer((json_int_t)tensor->shape[i]));
    }
    tool_json_set(object, "shape", shape);
    tool_json_set_integer(object, "bytes", tensor->bytes);
    tool_json_set(object, "mapped", json_boolean(tensor->mapped != 0));
    return object;
}

static int show_tensors(const bitaxon_model *model, json_t *object)
{
    json_t *array = object != NULL ? tool_json_array() : NULL;
    bitaxon_error error = BITAXON_ERROR_INIT;
    char number[TOOL_NUMBER_BYTES];
    int64_t count = 0;
    uint64_t total = 0;
    int code = tool_model_integer(model, "tensors", &count);
    if (code == TOOL_OK && object == NULL) {
        tool_out("\n%-*s %-*s %-*s %12s\n", NAME_COLUMN, "tensor", FORMAT_COLUMN, "format",
                 SHAPE_COLUMN, "shape", "bytes");
    }
    for (int64_t i = 0; i < count && code == TOOL_OK; i++) {
        bitaxon_tensor_info tensor = {.struct_size = sizeof tensor};
        bitaxon_status status = bitaxon_model_tensor_info(model, (uint64_t)i, &tensor, &error);
        if (status != BITAXON_OK) {
            code = tool_fail(status, &error);
            break;
        }
        total += tensor.bytes;
        if (object != NULL) {
            tool_json_append(array, tensor_object(&tensor));
        } else {
            show_tensor_row(&tensor);
        }
    }
    if (object != NULL) {
        tool_json_set(object, "tensors", array);
        tool_json_set_integer(object, "tensor_bytes", total);
    } else if (code == TOOL_OK) {
        tool_out("%lld tensors, %s\n", (long long)count, tool_bytes_text(total, number));
    }
    return code;
}

static void show_memory(const bitaxon_estimate *estimate, uint64_t context, const char *kv,
                        json_t *object)
{
    const struct {
        const char *key;
        uint64_t bytes;
        const char *meaning;
    } rows[] = {
        {"mapped_bytes", estimate->mapped_bytes, "weights read in place from the file"},
        {"model_bytes", estimate->model_bytes, "private memory of the opened model"},
        {"load_peak_bytes", estimate->load_peak_bytes, "private memory while opening, at most"},
        {"session_bytes", estimate->session_bytes, "one session"},
        {"cache_bytes", estimate->cache_bytes, "one cache"},
        {"checkpoint_bytes", estimate->checkpoint_bytes, "one checkpoint, at most"},
        {"total_bytes",
         estimate->mapped_bytes + estimate->model_bytes + estimate->session_bytes +
             estimate->cache_bytes,
         "model, one session and its cache"}};
    json_t *memory = object != NULL ? tool_json_object() : NULL;
    char number[TOOL_NUMBER_BYTES];
    if (object != NULL) {
        tool_json_set_integer(memory, "context", context);
        tool_json_set_string(memory, "kv", kv);
    } else {
        tool_out("\nmemory for %llu tokens, attention window in %s\n", (unsigned long long)context,
                 kv);
    }
    for (size_t i = 0; i < COUNT(rows); i++) {
        if (object != NULL) {
            tool_json_set_integer(memory, rows[i].key, rows[i].bytes);
        } else {
            tool_out("  %-18s %12s  %s\n", rows[i].key, tool_bytes_text(rows[i].bytes, number),
                     rows[i].meaning);
        }
    }
    if (object != NULL) {
        tool_json_set(object, "memory", memory);
    }
}

static int inspect(const char *path, const tool_model_args *args, uint64_t context, bool json)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_estimate estimate = {.struct_size = sizeof estimate};
    bitaxon_cache_params cache = {.struct_size = sizeof cache};
    bitaxon_host host;
    bitaxon_model_params params;
    bitaxon_model *model = NULL;
    tool_progress progress;
    char architecture[128];
    int64_t max_context = 0;

    tool_progress_init(&progress);
    int code = tool_model_open(path, args, 0, &progress, &model);
    if (code != TOOL_OK) {
        return code;
    }
    json_t *object = json ? tool_json_object() : NULL;
    code = tool_model_integer(model, "max_seq_len", &max_context);
    if (code == TOOL_OK) {
        tool_model_params(path, args, 0, &progress, &host, &params);
        cache.kv_type = tool_kv_type(args, BITAXON_KV_F16);
        cache.max_tokens = context;
        bitaxon_status status = bitaxon_model_estimate(&params, &cache, &estimate, &error);
        tool_progress_clear(&progress);
        code = status == BITAXON_OK ? TOOL_OK : tool_fail(status, &error);
    }
    if (code == TOOL_OK) {
        code = info_text(model, "architecture", architecture, sizeof architecture);
    }
    if (code == TOOL_OK && json) {
        tool_json_set_string(object, "model", path);
        tool_json_set_string(object, "architecture", architecture);
    } else if (code == TOOL_OK) {
        size_t count = 0;
        char *clean = tool_clean_text(path, strlen(path), true, &count);
        tool_out("%-22s %s\n%-22s %s\n", "model", clean, "architecture", architecture);
        free(clean);
    }
    if (code == TOOL_OK) {
        code = show_facts(model, object);
    }
    if (code == TOOL_OK) {
        code = show_tensors(model, object);
    }
    if (code == TOOL_OK) {
        show_memory(&estimate, context != 0 ? context : (uint64_t)max_context,
                    args->kv != NULL ? args->kv : "f16", object);
        if (json) {
            tool_json_print(json_incref(object));
        }
    }
    json_decref(object);
    bitaxon_model_free(model);
    return code;
}

int cmd_inspect(int argc, char **argv)
{
    tool_model_args args = {0};
    uint64_t context = 0;
    bool json = false;
    const tool_option options[] = {
        TOOL_U64("context", 0, &context, 1, TOOL_MAX_INTEGER,
                 "memory for a session of N tokens (default: max_seq_len)"),
        TOOL_KV_OPTION(&args, "f16"), TOOL_TOKENIZER_OPTION(&args), TOOL_MODEL_OPTIONS(&args),
        TOOL_FLAG("json", 0, &json, "print one JSON object"), TOOL_OPTIONS_END};
    int first = 0;
    int code = TOOL_OK;
    if (!tool_parse(&usage, options, argc, argv, &first, &code)) {
        return code;
    }
    code = tool_model_args_check(usage.command, &args);
    return code == TOOL_OK ? inspect(argv[first], &args, context, json) : code;
}
