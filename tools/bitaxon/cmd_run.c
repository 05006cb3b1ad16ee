/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_run.c - `bitaxon run`: continue a text, streaming, or print one JSON object. With
 * --save and --load the state lives in a file, and what follows is the same to the bit as
 * if one run had done it all. */
#include "tool.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tool_chat.h"
#include "tool_file.h"
#include "tool_json.h"
#include "tool_model.h"
#include "tool_options.h"
#include "tool_thermal.h"

static const tool_usage usage = {
    "run", "MODEL [PROMPT]",
    "Read a prompt and continue it; the text appears as it is made. The prompt is PROMPT,\n"
    "or --file, or standard input when that is not a terminal (of these two, one newline at\n"
    "the end is dropped). With --load and no PROMPT the saved text is continued as it is.",
    1, 2};

typedef struct run_args {
    tool_model_args model;
    tool_sampler_args sampler;
    const char *file;
    const char *system;
    const char *save;
    const char *load;
    uint64_t max_tokens;
    uint32_t logprobs;
    bool logprobs_given;
    tool_list stop;
    bool chat;
    bool special;
    bool json;
    bool stats;
    tool_thermal thermal;
} run_args;

typedef struct run_state {
    const run_args *args;
    bitaxon_model *model;
    bitaxon_cache *cache;
    bitaxon_session *session;
    bitaxon_thermal *thermal;
    tool_progress progress;
    tool_tokens generated;
    char *text; /* --json collects */
    size_t text_bytes;
    size_t text_capacity;
    char last; /* last byte printed */
    bool printed;
    json_t *logprobs;
    double load_seconds;
    size_t prompt_tokens;
} run_state;

static void collect_text(run_state *state, const char *text, size_t bytes)
{
    if (state->text_bytes + bytes + 1 > state->text_capacity) {
        state->text_capacity = 2 * (state->text_bytes + bytes) + 256;
        state->text = tool_realloc(state->text, state->text_capacity);
    }
    memcpy(state->text + state->text_bytes, text, bytes);
    state->text_bytes += bytes;
}

static void print_text(run_state *state, const char *text, size_t bytes)
{
    if (bytes == 0) {
        return;
    }
    if (isatty(STDOUT_FILENO)) {
        size_t count = 0;
        char *clean = tool_clean_text(text, bytes, true, &count);
        tool_out_bytes(clean, count);
        free(clean);
    } else {
        tool_out_bytes(text, bytes);
    }
    tool_out_flush();
    state->printed = true;
    state->last = text[bytes - 1];
}

static void set_token_text(run_state *state, json_t *object, int32_t token)
{
    char buffer[1024];
    size_t need = 0;
    if (bitaxon_model_detokenize(state->model, &token, 1, BITAXON_DETOKENIZE_SPECIAL, buffer,
                                 sizeof buffer, &need, NULL) == BITAXON_OK) {
        tool_json_set_text(object, "text", buffer, need);
    }
}

static void collect_logprobs(run_state *state, const bitaxon_generated *step)
{
    json_t *entry = tool_json_object();
    json_t *top = tool_json_array();
    tool_json_set_integer(entry, "id", (uint64_t)step->token);
    set_token_text(state, entry, step->token);
    tool_json_set_real(entry, "logprob", step->logprob);
    for (uint32_t i = 0; i < step->top_count; i++) {
        json_t *candidate = tool_json_object();
        tool_json_set_integer(candidate, "id", (uint64_t)step->top[i].token);
        set_token_text(state, candidate, step->top[i].token);
        tool_json_set_real(candidate, "logprob", step->top[i].logprob);
        tool_json_append(top, candidate);
    }
    tool_json_set(entry, "top", top);
    tool_json_append(state->logprobs, entry);
}

static int32_t on_token(void *user, const bitaxon_generated *step)
{
    run_state *state = user;
    if (step->token >= 0) {
        tool_tokens_append(&state->generated, &step->token, 1);
        if (state->logprobs != NULL) {
            collect_logprobs(state, step);
        }
    }
    if (step->text != NULL) {
        if (state->args->json) {
            collect_text(state, step->text, step->text_bytes);
        } else {
            print_text(state, step->text, step->text_bytes);
        }
    }
    return tool_out_failed();
}

/* The prompt's text. Returns TOOL_OK or an exit code; *given tells whether there is one. */
static int read_prompt(const run_args *args, const char *argument, char **text, size_t *bytes,
                       bool *given)
{
    *given = true;
    if (argument != NULL) {
        *bytes = strlen(argument);
        *text = tool_copy(argument, *bytes);
        return TOOL_OK;
    }
    if (args->file == NULL && args->load != NULL) {
        *given = false;
        return TOOL_OK;
    }
    if (args->file == NULL && isatty(STDIN_FILENO)) {
        return tool_usage_error(usage.command, "no prompt: give PROMPT, --file, or a pipe");
    }
    int code = tool_read_file(args->file != NULL ? args->file : "-", text, bytes);
    if (code == TOOL_OK && *bytes > 0 && (*text)[*bytes - 1] == '\n') {
        *bytes -= 1;
        if (*bytes > 0 && (*text)[*bytes - 1] == '\r') {
            *bytes -= 1;
        }
    }
    return code;
}

static int open_session(run_state *state, const char *path, bitaxon_sampler_params *sampler,
                        bool *own_sampler)
{
    const run_args *args = state->args;
    bitaxon_error error = BITAXON_ERROR_INIT;
    uint64_t start = tool_now_ns();
    int code = tool_model_open(path, &args->model, 0, &state->progress, &state->model);
    if (code != TOOL_OK) {
        return code;
    }
    bitaxon_cache_params cache_params = {.struct_size = sizeof cache_params};
    cache_params.kv_type = tool_kv_type(&args->model, BITAXON_KV_DEFAULT);
    bitaxon_status status =
        bitaxon_cache_create(state->model, &cache_params, &state->cache, &error);
    if (status == BITAXON_OK && args->load != NULL) {
        status = bitaxon_cache_load(state->cache, args->load, &error);
    }
    if (status != BITAXON_OK) {
        return tool_fail(status, &error);
    }
    /* A saved state brings its sampler along, unless the command line sets one. */
    *own_sampler = args->load == NULL || args->sampler.given || args->sampler.seed_given;
    bitaxon_session_params params = {.struct_size = sizeof params};
    params.thermal = state->thermal;
    params.cache = state->cache;
    params.sampler = *own_sampler ? sampler : NULL;
    params.progress = tool_progress_library;
    params.progress_user = &state->progress;
    status = bitaxon_session_create(state->model, &params, &state->session, &error);
    code = status == BITAXON_OK ? tool_adapters_put(state->model, &args->model, state->session)
                                : tool_fail(status, &error);
    state->load_seconds = (double)(tool_now_ns() - start) * 1e-9;
    return code;
}

/* Ids to read: *ids [count], the caller frees *ids. */
static int prompt_tokens(run_state *state, const char *text, size_t bytes, int32_t **ids,
                         size_t *count)
{
    const run_args *args = state->args;
    if (!args->chat) {
        return tool_tokenize(state->model, text, bytes,
                             args->special ? BITAXON_TOKENIZE_SPECIAL : 0, ids, count);
    }
    tool_conversation conversation = {0};
    tool_tokens tokens = {0};
    size_t length = (size_t)bitaxon_cache_length(state->cache);
    int code = tool_conversation_base(state->model, state->cache, &conversation);
    if (code == TOOL_OK) {
        if (args->system != NULL) {
            tool_conversation_add(&conversation, "system", args->system, strlen(args->system));
        }
        tool_conversation_add(&conversation, "user", text, bytes);
        code = tool_conversation_tokens(state->model, &conversation, &tokens);
    }
    if (code == TOOL_OK) {
        *count = tokens.count - length;
        *ids = tool_alloc(*count * sizeof **ids);
        memcpy(*ids, tokens.ids + length, *count * sizeof **ids);
    }
    tool_tokens_free(&tokens);
    tool_conversation_free(&conversation);
    return code;
}

static double rate(uint64_t tokens, uint64_t ns)
{
    return ns != 0 ? (double)tokens * 1e9 / (double)ns : 0.0;
}

static void report_json(run_state *state, const bitaxon_generate_result *result,
                        const bitaxon_stats *stats, bool own_sampler)
{
    json_t *object = tool_json_object();
    json_t *ids = tool_json_array();
    json_t *timings = tool_json_object();
    const tool_list *stop = &state->args->stop;
    tool_json_set_text(object, "text", state->text != NULL ? state->text : "", state->text_bytes);
    for (size_t i = 0; i < state->generated.count; i++) {
        tool_json_append(ids, json_integer(state->generated.ids[i]));
    }
    tool_json_set(object, "ids", ids);
    tool_json_set_string(object, "finish", tool_finish_name(result->finish));
    bool stopped = result->finish == BITAXON_FINISH_STOP && result->stop_index >= 0 &&
                   (size_t)result->stop_index < stop->count;
    if (stopped) {
        tool_json_set_string(object, "stop", stop->items[result->stop_index]);
    } else {
        tool_json_set(object, "stop", json_null());
    }
    bool ended = result->finish == BITAXON_FINISH_EOS;
    tool_json_set(object, "eos_token", ended ? json_integer(result->eos_token) : json_null());
    tool_json_set(object, "seed",
                  own_sampler ? json_integer((json_int_t)state->args->sampler.seed) : json_null());
    tool_json_set_integer(object, "prompt_tokens", state->prompt_tokens);
    tool_json_set_integer(object, "generated_tokens", state->generated.count);
    tool_json_set_integer(object, "position", bitaxon_session_position(state->session));
    if (state->logprobs != NULL) {
        tool_json_set(object, "logprobs", json_incref(state->logprobs));
    }
    tool_json_set_real(timings, "load_seconds", state->load_seconds);
    tool_json_set_real(timings, "prefill_seconds", (double)stats->prefill_ns * 1e-9);
    tool_json_set_real(timings, "prefill_tokens_per_second",
                       rate(stats->prefill_tokens, stats->prefill_ns));
    tool_json_set_real(timings, "decode_seconds", (double)stats->decode_ns * 1e-9);
    tool_json_set_real(timings, "decode_tokens_per_second",
                       rate(stats->decode_tokens, stats->decode_ns));
    tool_json_set_real(timings, "first_token_seconds", (double)stats->first_token_ns * 1e-9);
    tool_json_set(object, "timings", timings);
    if (state->thermal != NULL) {
        tool_thermal_json(object, state->thermal, stats);
    }
    tool_json_print(object);
}

static void report_summary(const run_state *state, const bitaxon_generate_result *result,
                           const bitaxon_stats *stats, bool own_sampler)
{
    fprintf(stderr,
            "[prompt %zu tokens, %.1f tokens/s; text %zu tokens, %.1f tokens/s; "
            "first token after %.3f s; finish: %s",
            state->prompt_tokens, rate(stats->prefill_tokens, stats->prefill_ns),
            state->generated.count, rate(stats->decode_tokens, stats->decode_ns),
            (double)stats->first_token_ns * 1e-9, tool_finish_name(result->finish));
    if (own_sampler) {
        fprintf(stderr, "; seed %llu", (unsigned long long)state->args->sampler.seed);
    }
    fputs("]\n", stderr);
    tool_thermal_summary(state->thermal, stats);
}

static bitaxon_status generate(run_state *state, bitaxon_generate_result *result,
                               bitaxon_error *error)
{
    const run_args *args = state->args;
    bitaxon_generate_params params = {.struct_size = sizeof params};
    if (args->max_tokens == 0) {
        result->finish = BITAXON_FINISH_LENGTH;
        return BITAXON_OK;
    }
    params.max_tokens = args->max_tokens;
    params.stop = args->stop.items;
    params.stop_count = (uint32_t)args->stop.count;
    params.top_logprobs = args->logprobs;
    params.flags = args->logprobs_given ? BITAXON_GENERATE_LOGPROBS : 0;
    params.on_token = on_token;
    params.user = state;
    return bitaxon_session_generate(state->session, &params, result, error);
}

static int run(run_state *state, const char *text, size_t bytes, bool own_sampler)
{
    const run_args *args = state->args;
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_generate_result result = {.struct_size = sizeof result};
    bitaxon_stats stats = {.struct_size = sizeof stats};
    int32_t *ids = NULL;
    size_t count = 0;

    int code = text != NULL ? prompt_tokens(state, text, bytes, &ids, &count) : TOOL_OK;
    if (code != TOOL_OK) {
        return code;
    }
    state->prompt_tokens = count;
    if (count == 0 && bitaxon_session_position(state->session) == 0) {
        free(ids);
        return tool_error("the prompt is empty");
    }
    tool_signal_session(state->session);
    bitaxon_status status =
        count != 0 ? bitaxon_session_prefill(state->session, ids, count, &error) : BITAXON_OK;
    tool_progress_clear(&state->progress);
    free(ids);
    if (status == BITAXON_OK) {
        status = generate(state, &result, &error);
    }
    tool_signal_session(NULL);
    if (!args->json && isatty(STDOUT_FILENO) && state->printed && state->last != '\n') {
        tool_out("\n");
        tool_out_flush();
    }
    if (tool_out_failed()) {
        return TOOL_FAILURE;
    }
    if (status == BITAXON_CANCELLED) {
        result.finish = BITAXON_FINISH_CANCELLED;
    }
    if (args->save != NULL && (status == BITAXON_OK || status == BITAXON_THERMAL_STOP)) {
        bitaxon_error problem = BITAXON_ERROR_INIT;
        bitaxon_status saved = bitaxon_cache_save(state->cache, args->save, &problem);
        if (saved != BITAXON_OK) {
            tool_fail(saved, &problem);
            return TOOL_FAILURE;
        }
    }
    code = status == BITAXON_OK ? TOOL_OK : tool_fail(status, &error);
    if (code != TOOL_OK && result.finish == BITAXON_FINISH_NONE) {
        return code;
    }
    bitaxon_session_stats(state->session, &stats, NULL);
    if (args->json) {
        report_json(state, &result, &stats, own_sampler);
    }
    if (args->stats || (isatty(STDERR_FILENO) && !args->json)) {
        report_summary(state, &result, &stats, own_sampler);
    }
    return code;
}

static int check_args(const run_args *args, int arguments)
{
    int code = tool_model_args_check(usage.command, &args->model);
    if (code != TOOL_OK) {
        return code;
    }
    for (size_t i = 0; i < args->stop.count; i++) {
        if (args->stop.items[i][0] == '\0') {
            return tool_usage_error(usage.command, "--stop: the text is empty");
        }
    }
    if (arguments == 2 && args->file != NULL) {
        return tool_usage_error(usage.command, "both PROMPT and --file are given");
    }
    if (args->system != NULL && !args->chat) {
        return tool_usage_error(usage.command, "--system needs --chat");
    }
    if (args->special && args->chat) {
        return tool_usage_error(usage.command, "--special and --chat exclude each other");
    }
    if (args->logprobs_given && !args->json) {
        return tool_usage_error(usage.command, "--logprobs needs --json");
    }
    return TOOL_OK;
}

int cmd_run(int argc, char **argv)
{
    run_args args = {.max_tokens = 512, .sampler = TOOL_SAMPLER_DEFAULTS};
    const tool_option options[] = {
        TOOL_TEXT("file", 'f', "FILE", &args.file,
                  "read the prompt from FILE ('-': standard input)"),
        TOOL_U64("max-tokens", 'n', &args.max_tokens, 0, TOOL_MAX_INTEGER,
                 "most tokens to generate (default: 512)"),
        TOOL_SAMPLER_OPTIONS(&args.sampler),
        TOOL_LIST("stop", 0, "TEXT", &args.stop, "end before this text; may be repeated"),
        TOOL_FLAG("chat", 'c', &args.chat, "the prompt is a user's message: use the chat template"),
        TOOL_TEXT("system", 0, "TEXT", &args.system, "with --chat: a system message before it"),
        TOOL_FLAG("special", 0, &args.special,
                  "control tokens written in the prompt count as such"),
        TOOL_TEXT("load", 0, "FILE", &args.load,
                  "start from a saved state; its sampler and seed are used\n"
                  "unless one of the sampling options is given"),
        TOOL_TEXT("save", 0, "FILE", &args.save, "save the state at the end"),
        TOOL_KV_OPTION(&args.model, "f16"),
        TOOL_ADAPTER_OPTIONS(&args.model),
        TOOL_TOKENIZER_OPTION(&args.model),
        TOOL_MODEL_OPTIONS(&args.model),
        TOOL_NO_THERMAL_OPTION(&args.thermal),
        TOOL_BATTERY_OPTION(&args.thermal),
        TOOL_THERMAL_OPTIONS(&args.thermal),
        {TOOL_KIND_U32, "logprobs", 0, "N", "with --json: N likeliest candidates of each token",
         &args.logprobs, 0, 64, &args.logprobs_given},
        TOOL_FLAG("json", 0, &args.json, "print one JSON object instead of the text"),
        TOOL_FLAG("stats", 0, &args.stats,
                  "print a summary on standard error (on a terminal always)"),
        TOOL_OPTIONS_END};
    run_state state = {.args = &args};
    bitaxon_sampler_params sampler;
    char *text = NULL;
    size_t bytes = 0;
    bool given = false;
    bool own_sampler = true;
    int first = 0;
    int code = TOOL_OK;

    tool_progress_init(&state.progress);
    if (!tool_parse(&usage, options, argc, argv, &first, &code)) {
        tool_list_free(&args.stop);
        return code;
    }
    code = check_args(&args, argc - first);
    if (code == TOOL_OK) {
        code =
            read_prompt(&args, argc - first == 2 ? argv[first + 1] : NULL, &text, &bytes, &given);
    }
    if (code == TOOL_OK) {
        code = tool_sampler_params(&args.sampler, &sampler);
    }
    if (code == TOOL_OK) {
        code = tool_thermal_open(&args.thermal, &state.thermal);
        state.progress.thermal = state.thermal;
    }
    if (code == TOOL_OK) {
        code = open_session(&state, argv[first], &sampler, &own_sampler);
    }
    if (code == TOOL_OK) {
        state.logprobs = args.logprobs_given ? tool_json_array() : NULL;
        code = run(&state, given ? text : NULL, bytes, own_sampler);
    }
    json_decref(state.logprobs);
    free(text);
    free(state.text);
    tool_tokens_free(&state.generated);
    tool_list_free(&args.stop);
    tool_list_free(&args.model.adapters);
    bitaxon_session_free(state.session);
    bitaxon_cache_free(state.cache);
    bitaxon_model_free(state.model);
    bitaxon_thermal_free(state.thermal);
    return code;
}
