/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_logits.c - `bitaxon logits`: the logits after every token of a list, as one F32 tensor
 * `logits` [T, V] in a safetensors file. Memory is bounded by a chunk of rows; the file
 * appears when it is complete. */
#include "tool.h"

#include <stdlib.h>
#include <string.h>

#include "tool_file.h"
#include "tool_model.h"
#include "tool_options.h"

static const tool_usage usage = {
    "logits", "MODEL --ids FILE --output OUT.safetensors",
    "Read token ids, separated by white space, and write the logits after each of them as\n"
    "the F32 tensor `logits` of shape [T, V]. --split feeds them in the given pieces; what\n"
    "is left over is the last piece.",
    1, 1};

/* Rows computed at a time: at most so many, and at most so many bytes. */
enum { CHUNK_ROWS = 256, CHUNK_BYTES = 64 * 1024 * 1024 };

typedef struct logits_args {
    tool_model_args model;
    const char *ids;
    const char *output;
    const char *split;
    bool exact;
} logits_args;

typedef struct logits_state {
    const logits_args *args;
    bitaxon_model *model;
    bitaxon_session *session;
    tool_progress progress;
    int32_t *ids; /* [count] */
    size_t count;
    size_t *pieces; /* [piece_count], their sum is count */
    size_t piece_count;
    uint64_t vocab;
} logits_state;

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f';
}

static int parse_ids(logits_state *state, const char *text, size_t bytes)
{
    const char *path = state->args->ids;
    size_t line = 1;
    size_t capacity = 0;
    for (size_t i = 0; i < bytes;) {
        if (is_space(text[i])) {
            line += text[i] == '\n';
            i++;
            continue;
        }
        size_t end = i;
        while (end < bytes && !is_space(text[end])) {
            end++;
        }
        uint64_t value = 0;
        if (!tool_parse_u64(text + i, end - i, &value) || value > INT32_MAX) {
            int shown = end - i < 40 ? (int)(end - i) : 40;
            return tool_error("%s: line %zu, id %zu: '%.*s' is not a token id", path, line,
                              state->count, shown, text + i);
        }
        if (value >= state->vocab) {
            return tool_error("%s: line %zu, id %zu: %llu is not below the vocabulary's size %llu",
                              path, line, state->count, (unsigned long long)value,
                              (unsigned long long)state->vocab);
        }
        if (state->count == capacity) {
            capacity = capacity != 0 ? 2 * capacity : 1024;
            state->ids = tool_realloc(state->ids, capacity * sizeof *state->ids);
        }
        state->ids[state->count++] = (int32_t)value;
        i = end;
    }
    return state->count != 0 ? TOOL_OK : tool_error("%s: no token ids", path);
}

static void add_piece(logits_state *state, size_t size)
{
    state->pieces = tool_realloc(state->pieces, (state->piece_count + 1) * sizeof *state->pieces);
    state->pieces[state->piece_count++] = size;
}

/* The sizes in --split; what they leave over is added by fill_pieces. */
static int parse_split(logits_state *state)
{
    const char *text = state->args->split;
    while (text != NULL) {
        size_t length = strcspn(text, ",");
        uint64_t value = 0;
        if (!tool_parse_u64(text, length, &value) || value == 0 || value > SIZE_MAX / 2) {
            return tool_usage_error(usage.command, "--split: '%.*s' is not a size of 1 or more",
                                    (int)length, text);
        }
        add_piece(state, (size_t)value);
        text = text[length] == ',' ? text + length + 1 : NULL;
    }
    return TOOL_OK;
}

static int fill_pieces(logits_state *state)
{
    size_t left = state->count;
    for (size_t i = 0; i < state->piece_count; i++) {
        if (state->pieces[i] > left) {
            return tool_usage_error(
                usage.command, "--split: the pieces add up to more than the %zu ids", state->count);
        }
        left -= state->pieces[i];
    }
    if (left != 0) {
        add_piece(state, left);
    }
    return TOOL_OK;
}

/* Length of the header as 8 bytes, least significant first, then JSON padded to 8 bytes. */
static int write_header(const logits_state *state, tool_output *output)
{
    char json[256];
    unsigned char length[8];
    unsigned long long bytes = (unsigned long long)state->count * state->vocab * sizeof(float);
    int used = snprintf(json, sizeof json,
                        "{\"logits\":{\"dtype\":\"F32\",\"shape\":[%zu,%llu],"
                        "\"data_offsets\":[0,%llu]}}",
                        state->count, (unsigned long long)state->vocab, bytes);
    size_t padded = ((size_t)used + 7) / 8 * 8;
    memset(json + used, ' ', padded - (size_t)used);
    for (int i = 0; i < 8; i++) {
        length[i] = (unsigned char)((uint64_t)padded >> (8 * i));
    }
    int code = tool_output_write(output, length, sizeof length);
    return code == TOOL_OK ? tool_output_write(output, json, padded) : code;
}

static int write_rows(logits_state *state, tool_output *output)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    size_t row_bytes = (size_t)state->vocab * sizeof(float);
    size_t chunk = CHUNK_BYTES / row_bytes;
    chunk = chunk < 1 ? 1 : chunk > CHUNK_ROWS ? CHUNK_ROWS : chunk;
    chunk = chunk < state->count ? chunk : state->count;
    float *rows = tool_alloc(chunk * row_bytes);
    size_t done = 0;
    int code = TOOL_OK;
    for (size_t p = 0; p < state->piece_count && code == TOOL_OK; p++) {
        size_t end = done + state->pieces[p];
        while (done < end && code == TOOL_OK) {
            size_t count = end - done < chunk ? end - done : chunk;
            bitaxon_status status =
                bitaxon_session_evaluate(state->session, state->ids + done, count, rows, &error);
            if (status != BITAXON_OK) {
                code = tool_fail(status, &error);
                break;
            }
            code = tool_output_write(output, rows, count * row_bytes);
            done += count;
            tool_progress_show(&state->progress, BITAXON_STAGE_PREFILL, "computing", "tokens", done,
                               state->count);
        }
    }
    free(rows);
    return code;
}

static int open_session(logits_state *state)
{
    const logits_args *args = state->args;
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_cache_params cache = {.struct_size = sizeof cache};
    bitaxon_session_params params = {.struct_size = sizeof params};
    cache.kv_type = tool_kv_type(&args->model, BITAXON_KV_F32);
    params.cache_params = &cache;
    bitaxon_status status = bitaxon_session_create(state->model, &params, &state->session, &error);
    return status == BITAXON_OK ? tool_adapters_put(state->model, &args->model, state->session)
                                : tool_fail(status, &error);
}

static int compute(logits_state *state)
{
    tool_output output = {0};
    int code = tool_output_open(&output, state->args->output);
    if (code != TOOL_OK) {
        return code;
    }
    tool_signal_session(state->session);
    code = write_header(state, &output);
    if (code == TOOL_OK) {
        code = write_rows(state, &output);
    }
    tool_signal_session(NULL);
    tool_progress_clear(&state->progress);
    if (code == TOOL_OK && tool_signal() != 0) {
        code = tool_fail(BITAXON_CANCELLED, NULL);
    }
    if (code == TOOL_OK) {
        code = tool_output_commit(&output);
    }
    tool_output_abandon(&output);
    return code;
}

static int logits(logits_state *state, const char *path)
{
    const logits_args *args = state->args;
    char *text = NULL;
    size_t bytes = 0;
    int64_t vocab = 0;
    int code = parse_split(state);
    if (code == TOOL_OK) {
        code = tool_read_file(args->ids, &text, &bytes);
    }
    if (code == TOOL_OK) {
        code = tool_model_open(path, &args->model, BITAXON_MODEL_NO_TOKENIZER, &state->progress,
                               &state->model);
    }
    if (code == TOOL_OK) {
        code = tool_model_integer(state->model, "vocab_size", &vocab);
    }
    if (code == TOOL_OK) {
        state->vocab = (uint64_t)vocab;
        code = parse_ids(state, text, bytes);
    }
    if (code == TOOL_OK) {
        code = fill_pieces(state);
    }
    if (code == TOOL_OK) {
        code = open_session(state);
    }
    if (code == TOOL_OK) {
        code = compute(state);
    }
    free(text);
    return code;
}

int cmd_logits(int argc, char **argv)
{
    logits_args args = {0};
    const tool_option options[] = {
        TOOL_TEXT("ids", 0, "FILE", &args.ids, "the token ids ('-': standard input)"),
        TOOL_TEXT("output", 'o', "FILE", &args.output, "the safetensors file to write"),
        TOOL_TEXT("split", 0, "N,N,...", &args.split, "sizes of the pieces to feed (default: one)"),
        TOOL_FLAG("exact", 0, &args.exact,
                  "f32 attention window and --accuracy exact"),
        TOOL_KV_OPTION(&args.model, "f32"),
        TOOL_ADAPTER_OPTIONS(&args.model),
        TOOL_MODEL_OPTIONS(&args.model),
        TOOL_OPTIONS_END};
    logits_state state = {.args = &args};
    int first = 0;
    int code = TOOL_OK;
    tool_progress_init(&state.progress);
    if (!tool_parse(&usage, options, argc, argv, &first, &code)) {
        return code;
    }
    if (args.ids == NULL || args.output == NULL) {
        code = tool_usage_error(usage.command, "--ids and --output are needed");
    } else if (args.exact && args.model.kv != NULL && strcmp(args.model.kv, "f32") != 0) {
        code = tool_usage_error(usage.command, "--exact and --kv %s exclude each other",
                                args.model.kv);
    } else if (args.exact && args.model.accuracy != NULL && strcmp(args.model.accuracy, "exact") != 0) {
        code = tool_usage_error(usage.command, "--exact and --accuracy %s exclude each other",
                                args.model.accuracy);
    } else {
        args.model.accuracy = args.exact ? "exact" : args.model.accuracy;
        code = tool_model_args_check(usage.command, &args.model);
    }
    if (code == TOOL_OK) {
        code = logits(&state, argv[first]);
    }
    free(state.ids);
    free(state.pieces);
    tool_list_free(&args.model.adapters);
    bitaxon_session_free(state.session);
    bitaxon_model_free(state.model);
    return code;
}
