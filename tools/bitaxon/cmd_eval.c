/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_eval.c - `bitaxon eval`: perplexity and bits per byte of a text file, strided (questions and
 * choices: cmd_eval_items.c). Windows
 * of --context tokens begin every --stride tokens; each is read from an empty cache, and
 * only tokens that no window before has scored count. The first token of a window has
 * nothing before it and is never scored there.
 *
 *   nll       mean of -ln p(token | the tokens before it in its window), its standard error sd / sqrt(n)
 *   ppl       exp(nll), its standard error ppl * sd / sqrt(n), tokens taken as independent
 *   bits/byte sum of -log2 p over the bytes of the scored tokens */
#include "cmd_eval.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tool_file.h"

static const tool_usage usage = {
    "eval", "MODEL [FILE]",
    "Perplexity with its standard error, and bits per byte, of the text in FILE ('-':\n"
    "standard input). The text is read in windows that overlap; each token counts once.\n"
    "With --choices or --questions instead of FILE: the share of right answers.",
    1, 2};

enum { DEFAULT_CONTEXT = 2048, DEFAULT_ANSWER = 64 };

static int32_t on_progress(void *user, const bitaxon_progress *progress)
{
    eval_state *state = user;
    if (state->items) {
        return tool_signal() != 0;
    }
    tool_progress_show(&state->progress, BITAXON_STAGE_PREFILL, "scoring", "tokens",
                       state->work_done + progress->done, state->work_total);
    return tool_signal() != 0;
}

static void add_score(eval_state *state, double nll)
{
    state->scored++;
    double delta = nll - state->mean;
    state->mean += delta / (double)state->scored;
    state->squares += delta * (nll - state->mean);
}

/* Bytes that tokens stand for. */
static bitaxon_status count_bytes(const bitaxon_model *model, const int32_t *ids, size_t count,
                                  uint64_t *bytes, bitaxon_error *error)
{
    size_t need = 0;
    bitaxon_status status = BITAXON_OK;
    if (count != 0) {
        status = bitaxon_model_detokenize(model, ids, count, BITAXON_DETOKENIZE_SPECIAL, NULL, 0,
                                          &need, error);
        if (status == BITAXON_LIMIT) {
            status = BITAXON_OK; /* asked for the size alone */
        }
    }
    *bytes += need;
    return status;
}

static bitaxon_status score_windows(eval_state *state, const int32_t *ids, size_t count,
                                    float *logprobs, bitaxon_error *error)
{
    bitaxon_cache *cache = bitaxon_session_cache(state->session);
    uint64_t scored_end = 0;
    for (uint64_t begin = 0; scored_end < count; begin += state->stride) {
        uint64_t end = count - begin < state->context ? count : begin + state->context;
        double sum = 0.0;
        bitaxon_cache_reset(cache);
        bitaxon_status status = bitaxon_session_score(state->session, ids + begin,
                                                      (size_t)(end - begin), &sum, logprobs, error);
        uint64_t from = scored_end > begin + 1 ? scored_end : begin + 1;
        if (status == BITAXON_OK) {
            status =
                count_bytes(state->model, ids + from, (size_t)(end - from), &state->bytes, error);
        }
        if (status != BITAXON_OK) {
            return status;
        }
        for (uint64_t i = from; i < end; i++) {
            add_score(state, -(double)logprobs[i - begin]);
        }
        state->windows++;
        state->work_done += end - begin;
        scored_end = end;
        tool_progress_show(&state->progress, BITAXON_STAGE_PREFILL, "scoring", "tokens",
                           state->work_done, state->work_total);
    }
    return BITAXON_OK;
}

static uint64_t total_work(uint64_t count, uint64_t context, uint64_t stride)
{
    uint64_t work = 0;
    uint64_t end = 0;
    for (uint64_t begin = 0; end < count; begin += stride) {
        end = count - begin < context ? count : begin + context;
        work += end - begin;
    }
    return work;
}

static void report(const eval_state *state, const char *path, size_t text_bytes, size_t count)
{
    double ppl = exp(state->mean);
    double deviation = state->scored > 1 ? sqrt(state->squares / (double)(state->scored - 1)) : NAN;
    double nll_error = deviation / sqrt((double)state->scored);
    double error = ppl * nll_error;
    double bits = state->bytes != 0
                      ? state->mean * (double)state->scored / log(2.0) / (double)state->bytes
                      : NAN;
    double speed = state->seconds > 0.0 ? (double)state->work_total / state->seconds : 0.0;
    if (state->args->json) {
        json_t *object = tool_json_object();
        tool_json_set_string(object, "file", path);
        tool_json_set_integer(object, "text_bytes", text_bytes);
        tool_json_set_integer(object, "tokens", count);
        tool_json_set_integer(object, "scored_tokens", state->scored);
        tool_json_set_integer(object, "scored_bytes", state->bytes);
        tool_json_set_integer(object, "context", state->context);
        tool_json_set_integer(object, "stride", state->stride);
        tool_json_set_integer(object, "windows", state->windows);
        tool_json_set_real(object, "nll", state->mean);
        tool_json_set_real(object, "nll_standard_error", nll_error);
        tool_json_set_real(object, "perplexity", ppl);
        tool_json_set_real(object, "standard_error", error);
        tool_json_set_real(object, "bits_per_byte", bits);
        tool_json_set_real(object, "seconds", state->seconds);
        tool_json_set_real(object, "tokens_per_second", speed);
        if (state->thermal != NULL) {
            tool_thermal_json(object, state->thermal, NULL);
        }
        tool_json_print(object);
        return;
    }
    tool_out("perplexity     %.4f +- %.4f\n", ppl, error);
    tool_out("nll per token  %.4f +- %.4f\n", state->mean, nll_error);
    tool_out("bits per byte  %.4f\n", bits);
    tool_out("scored         %llu of %zu tokens, %llu bytes\n", (unsigned long long)state->scored,
             count, (unsigned long long)state->bytes);
    tool_out("windows        %llu of %llu tokens, every %llu\n", (unsigned long long)state->windows,
             (unsigned long long)state->context, (unsigned long long)state->stride);
    tool_out("time           %.1f s, %.1f tokens/s\n", state->seconds, speed);
    tool_thermal_report(state->thermal, state->work_total);
}

static int open_session(eval_state *state, const char *path)
{
    const eval_args *args = state->args;
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_cache_params cache = {.struct_size = sizeof cache};
    bitaxon_session_params params = {.struct_size = sizeof params, .thermal = state->thermal};
    int64_t longest = 0;
    int code = tool_model_open(path, &args->model, 0, &state->progress, &state->model);
    if (code == TOOL_OK) {
        code = tool_model_integer(state->model, "max_seq_len", &longest);
    }
    if (code != TOOL_OK) {
        return code;
    }
    state->context = args->context;
    if (state->context == 0 && state->items) {
        state->context = (uint64_t)longest;
    } else if (state->context == 0) {
        state->context = longest < DEFAULT_CONTEXT ? (uint64_t)longest : DEFAULT_CONTEXT;
    }
    if (state->context > (uint64_t)longest) {
        return tool_error("--context: %llu is more than the model's max_seq_len of %lld",
                          (unsigned long long)state->context, (long long)longest);
    }
    state->stride = args->stride != 0 ? args->stride : (state->context + 1) / 2;
    if (state->stride > state->context) {
        return tool_usage_error(usage.command, "--stride: %llu is more than the context of %llu",
                                (unsigned long long)state->stride,
                                (unsigned long long)state->context);
    }
    cache.kv_type = tool_kv_type(&args->model, BITAXON_KV_DEFAULT);
    cache.max_tokens = state->context;
    params.cache_params = &cache;
    params.progress = on_progress;
    params.progress_user = state;
    bitaxon_status status = bitaxon_session_create(state->model, &params, &state->session, &error);
    return status == BITAXON_OK ? tool_adapters_put(state->model, &args->model, state->session)
                                : tool_fail(status, &error);
}

static int evaluate(eval_state *state, const char *path, const char *text, size_t bytes)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    int32_t *ids = NULL;
    size_t count = 0;
    int code = tool_tokenize(state->model, text, bytes, 0, &ids, &count);
    if (code != TOOL_OK) {
        return code;
    }
    if (state->args->max_tokens != 0 && count > state->args->max_tokens) {
        count = (size_t)state->args->max_tokens;
    }
    if (count < 2) {
        free(ids);
        return tool_error("%s: %zu tokens are too few to score (2 or more are needed)", path,
                          count);
    }
    state->work_total = total_work(count, state->context, state->stride);
    float *logprobs = tool_alloc((size_t)state->context * sizeof *logprobs);
    tool_signal_session(state->session);
    uint64_t start = tool_now_ns();
    bitaxon_status status = score_windows(state, ids, count, logprobs, &error);
    state->seconds = (double)(tool_now_ns() - start) * 1e-9;
    tool_signal_session(NULL);
    tool_progress_clear(&state->progress);
    free(logprobs);
    free(ids);
    if (status != BITAXON_OK) {
        return tool_fail(status, &error);
    }
    report(state, path, bytes, count);
    return TOOL_OK;
}

static int check_what(const eval_args *args, int files)
{
    int items = (args->choices != NULL) + (args->questions != NULL);
    if (files + items != 1) {
        return tool_usage_error(usage.command, "%s", files + items == 0
                                ? "nothing to evaluate: FILE, --choices or --questions"
                                : "FILE, --choices and --questions are one at a time");
    }
    if (items != 0 && (args->stride != 0 || args->max_tokens != 0)) {
        return tool_usage_error(usage.command, "--stride and --max-tokens are for the text in FILE");
    }
    if (items == 0 && (args->raw || args->limit != 0 || args->show != 0)) {
        return tool_usage_error(usage.command,
                                "--raw, --limit and --show are for --choices and --questions");
    }
    if (args->context != 0 && args->stride > args->context) {
        return tool_usage_error(usage.command, "--stride: %llu is more than the context of %llu",
                                (unsigned long long)args->stride, (unsigned long long)args->context);
    }
    return TOOL_OK;
}

int cmd_eval(int argc, char **argv)
{
    eval_args args = {.answer_tokens = DEFAULT_ANSWER};
    const tool_option options[] = {
        TOOL_U64("context", 0, &args.context, 2, TOOL_MAX_INTEGER,
                 "tokens of a window (default: 2048, at most max_seq_len)"),
        TOOL_U64("stride", 0, &args.stride, 1, TOOL_MAX_INTEGER,
                 "tokens from one window's begin to the next's (default: half)"),
        TOOL_U64("max-tokens", 'n', &args.max_tokens, 2, TOOL_MAX_INTEGER,
                 "take only the first N tokens of the text"),
        TOOL_TEXT("choices", 0, "FILE.jsonl", &args.choices,
                  "multiple choice: {\"question\", \"choices\": [...], \"answer\": index}"),
        TOOL_TEXT("questions", 0, "FILE.jsonl", &args.questions,
                  "{\"question\" or \"messages\", \"answer\": text or list of texts}"),
        TOOL_FLAG("raw", 0, &args.raw, "questions are read as text, without the chat template"),
        TOOL_U64("limit", 0, &args.limit, 1, TOOL_MAX_INTEGER, "take only the first N questions"),
        TOOL_U64("answer-tokens", 0, &args.answer_tokens, 1, TOOL_MAX_INTEGER,
                 "most tokens of an answer (default: 64)"),
        TOOL_U64("show", 0, &args.show, 1, TOOL_MAX_INTEGER, "print the first N wrong answers"),
        TOOL_KV_OPTION(&args.model, "f16"),
        TOOL_ADAPTER_OPTIONS(&args.model),
        TOOL_TOKENIZER_OPTION(&args.model),
        TOOL_MODEL_OPTIONS(&args.model),
        TOOL_NO_THERMAL_OPTION(&args.thermal),
        TOOL_THERMAL_OPTIONS(&args.thermal),
        TOOL_FLAG("json", 0, &args.json, "print one JSON object"),
        TOOL_OPTIONS_END};
    eval_state state = {.args = &args};
    eval_items items = {0};
    char *text = NULL;
    size_t bytes = 0;
    int first = 0;
    int code = TOOL_OK;
    tool_progress_init(&state.progress);
    if (!tool_parse(&usage, options, argc, argv, &first, &code)) {
        tool_list_free(&args.model.adapters);
        return code;
    }
    code = tool_model_args_check(usage.command, &args.model);
    if (code == TOOL_OK) {
        code = check_what(&args, argc - first - 1);
    }
    state.items = args.choices != NULL || args.questions != NULL;
    if (code == TOOL_OK) {
        code = state.items ? eval_items_load(&args, &items)
                           : tool_read_file(argv[first + 1], &text, &bytes);
    }
    if (code == TOOL_OK) {
        code = tool_thermal_open(&args.thermal, &state.thermal);
        state.progress.thermal = state.thermal;
    }
    if (code == TOOL_OK) {
        code = open_session(&state, argv[first]);
    }
    if (code == TOOL_OK) {
        code = state.items ? eval_items_run(&state, &items)
                           : evaluate(&state, argv[first + 1], text, bytes);
    }
    eval_items_free(&items);
    free(text);
    tool_list_free(&args.model.adapters);
    bitaxon_session_free(state.session);
    bitaxon_model_free(state.model);
    bitaxon_thermal_free(state.thermal);
    return code;
}
