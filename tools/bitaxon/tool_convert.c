/* SPDX-License-Identifier: Apache-2.0 */
/* tool_convert.c - running quantize, pack and new: a row for each tensor as it is done,
 * totals at the end. Rows go to standard output, progress to a terminal's standard error. */
#include "tool_convert.h"

#include <stdlib.h>
#include <string.h>

#include "tool_json.h"
#include "tool_model.h"

enum { NAME_COLUMN = 43, FORMAT_COLUMN = 16 };

typedef struct convert_state {
    tool_progress progress; /* first: the library's progress callback takes it */
    json_t *tensors;        /* NULL without --json */
    bool table;
    bool headed;
    uint64_t count;
    uint64_t changed;
    uint64_t bytes_before;
    uint64_t bytes_after;
} convert_state;

int tool_format_check(const char *command, const char *option, const char *format)
{
    static const char *const formats[] = {"affine2", "affine3", "affine4", "affine5", "affine6",
                                          "affine8", "nf4",     "f32",     "f16",     "bf16"};
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        if (format == NULL || strcmp(format, formats[i]) == 0) {
            return TOOL_OK;
        }
    }
    return tool_usage_error(command, "--%s: '%s' is not affine2|3|4|5|6|8, nf4, f32, f16 or bf16",
                            option, format);
}

static int32_t on_progress(void *user, const bitaxon_progress *progress)
{
    convert_state *state = user;
    return tool_progress_library(&state->progress, progress);
}

static void print_row(convert_state *state, const bitaxon_tensor_report *tensor)
{
    char before[TOOL_NUMBER_BYTES];
    char after[TOOL_NUMBER_BYTES];
    char name[NAME_COLUMN + 1];
    tool_fit_name(tensor->name, NAME_COLUMN, name);
    if (!state->headed) {
        tool_out("%-*s %-*s %10s %10s %8s %8s\n", NAME_COLUMN, "tensor", FORMAT_COLUMN, "format",
                 "before", "after", "rms err", "max err");
        state->headed = true;
    }
    tool_bytes_text(tensor->bytes_before, before);
    tool_bytes_text(tensor->bytes_after, after);
    if (tensor->changed != 0) {
        tool_out("%-*s %-*s %10s %10s %7.3f%% %8.1e\n", NAME_COLUMN, name, FORMAT_COLUMN,
                 tensor->format, before, after, 100.0 * tensor->relative_rms, tensor->max_error);
    } else {
        tool_out("%-*s %-*s %10s %10s %8s\n", NAME_COLUMN, name, FORMAT_COLUMN, tensor->format,
                 before, after, "copied");
    }
    tool_out_flush();
}

static int32_t on_tensor(void *user, const bitaxon_tensor_report *tensor)
{
    convert_state *state = user;
    state->count++;
    state->changed += tensor->changed != 0;
    state->bytes_before += tensor->bytes_before;
    state->bytes_after += tensor->bytes_after;
    if (state->tensors != NULL) {
        json_t *object = tool_json_object();
        tool_json_set_string(object, "name", tensor->name);
        tool_json_set_string(object, "format", tensor->format);
        tool_json_set(object, "changed", json_boolean(tensor->changed != 0));
        tool_json_set_integer(object, "bytes_before", tensor->bytes_before);
        tool_json_set_integer(object, "bytes_after", tensor->bytes_after);
        tool_json_set_real(object, "relative_rms", tensor->relative_rms);
        tool_json_set_real(object, "max_error", tensor->max_error);
        tool_json_append(state->tensors, object);
    } else if (state->table) {
        tool_progress_clear(&state->progress);
        print_row(state, tensor);
    }
    return tool_signal() != 0 || tool_out_failed();
}

static void print_total(const convert_state *state, const char *verb, const char *output,
                        double seconds)
{
    char before[TOOL_NUMBER_BYTES];
    char after[TOOL_NUMBER_BYTES];
    size_t count = 0;
    char *clean = tool_clean_text(output, strlen(output), true, &count);
    tool_out("%s %s", verb, clean);
    free(clean);
    if (state->count != 0) {
        tool_out(": %llu tensors, %llu changed", (unsigned long long)state->count,
                 (unsigned long long)state->changed);
        if (state->bytes_before != 0) {
            tool_out(", %s -> %s (%.1f%%)", tool_bytes_text(state->bytes_before, before),
                     tool_bytes_text(state->bytes_after, after),
                     100.0 * (double)state->bytes_after / (double)state->bytes_before);
        } else {
            tool_out(", %s", tool_bytes_text(state->bytes_after, after));
        }
    }
    tool_out(", %.1f s\n", seconds);
}

int tool_convert(tool_convert_fn function, bitaxon_convert_params *params, const char *verb,
                 bool table, bool json)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_host host;
    convert_state state;
    memset(&state, 0, sizeof state);
    tool_progress_init(&state.progress);
    tool_host(&host);
    state.table = table;
    state.tensors = json ? tool_json_array() : NULL;
    params->struct_size = sizeof *params;
    params->host = &host;
    params->progress = on_progress;
    params->report = on_tensor;
    params->user = &state;

    uint64_t start = tool_now_ns();
    bitaxon_status status = function(params, &error);
    double seconds = (double)(tool_now_ns() - start) * 1e-9;
    tool_progress_clear(&state.progress);
    if (status != BITAXON_OK) {
        json_decref(state.tensors);
        return tool_fail(status, &error);
    }
    if (!json) {
        print_total(&state, verb, params->output, seconds);
        return TOOL_OK;
    }
    json_t *object = tool_json_object();
    tool_json_set_string(object, "output", params->output);
    tool_json_set_integer(object, "tensor_count", state.count);
    tool_json_set_integer(object, "changed_count", state.changed);
    tool_json_set_integer(object, "bytes_before", state.bytes_before);
    tool_json_set_integer(object, "bytes_after", state.bytes_after);
    tool_json_set_real(object, "seconds", seconds);
    tool_json_set(object, "tensors", state.tensors);
    tool_json_print(object);
    return TOOL_OK;
}
