/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_chat.c - `bitaxon chat`: a conversation whose cache is reused, so that only what is
 * new is read in each turn. Invariant: after every turn the cache holds the conversation's
 * tokens up to the end of the last answer; `start` of a turn is where it was before. */
#include "tool.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "tool_chat.h"
#include "tool_line.h"
#include "tool_model.h"
#include "tool_options.h"
#include "tool_thermal.h"

static const tool_usage usage = {
    "chat", "MODEL",
    "Talk with a model. An empty line is ignored; exit, quit, /exit, /quit or the end of\n"
    "input (Ctrl-D) ends it; Ctrl-C stops an answer, and ends the chat at the prompt.\n"
    "/help lists the commands. Input may be a pipe: one message a line.",
    1, 1};

static const char help_text[] = "  /undo        take the last message and its answer back\n"
                                "  /reset       forget the conversation\n"
                                "  /save FILE   save the state of the conversation\n"
                                "  /load FILE   continue from a saved state, to the bit\n"
                                "  /help        this list\n"
                                "  /quit        end (also /exit, quit, exit, Ctrl-D)\n";

/* Positions whose checkpoint is kept, so that /undo of these turns costs nothing. */
enum { KEPT_CHECKPOINTS = 8 };

typedef struct chat_args {
    tool_model_args model;
    tool_sampler_args sampler;
    const char *system;
    uint64_t max_tokens;
    tool_list stop;
    bool stats;
    tool_thermal thermal;
} chat_args;

typedef struct chat_turn {
    uint64_t start;  /* position before the turn */
    size_t messages; /* of the conversation before the turn */
} chat_turn;

typedef struct chat_state {
    const chat_args *args;
    bitaxon_model *model;
    bitaxon_session *session;
    bitaxon_thermal *thermal;
    bitaxon_cache *cache; /* the session's, borrowed */
    bitaxon_sampler_params sampler;
    tool_progress progress;
    tool_conversation conversation;
    chat_turn *turns; /* [turn_count] those that /undo can take back */
    size_t turn_count;
    tool_tokens generated;
    char *answer;
    size_t answer_bytes;
    size_t answer_capacity;
} chat_state;

static int32_t on_token(void *user, const bitaxon_generated *step)
{
    chat_state *state = user;
    if (step->token >= 0) {
        tool_tokens_append(&state->generated, &step->token, 1);
    }
    if (step->text_bytes != 0) {
        size_t count = 0;
        char *clean = tool_clean_text(step->text, step->text_bytes, isatty(STDOUT_FILENO), &count);
        if (state->answer_bytes + step->text_bytes > state->answer_capacity) {
            state->answer_capacity = 2 * (state->answer_bytes + step->text_bytes) + 256;
            state->answer = tool_realloc(state->answer, state->answer_capacity);
        }
        memcpy(state->answer + state->answer_bytes, step->text, step->text_bytes);
        state->answer_bytes += step->text_bytes;
        tool_out_bytes(clean, count);
        tool_out_flush();
        free(clean);
    }
    return tool_out_failed();
}

static void clear_conversation(chat_state *state)
{
    tool_conversation_drop(&state->conversation, 0);
    tool_tokens_free(&state->conversation.base);
    state->turn_count = 0;
}

static void add_system(chat_state *state)
{
    const char *system = state->args->system;
    if (system != NULL) {
        tool_conversation_add(&state->conversation, "system", system, strlen(system));
    }
}

/* Note where a turn begins. Its message is in the conversation already. */
static void begin_turn(chat_state *state, uint64_t start)
{
    state->turns = tool_realloc(state->turns, (state->turn_count + 1) * sizeof *state->turns);
    state->turns[state->turn_count++] = (chat_turn){start, state->conversation.count - 1};
    /* A checkpoint that cannot be had only makes /undo slower. */
    bitaxon_cache_checkpoint(state->cache, NULL);
    if (state->turn_count > KEPT_CHECKPOINTS) {
        const chat_turn *old = &state->turns[state->turn_count - 1 - KEPT_CHECKPOINTS];
        bitaxon_cache_checkpoint_drop(state->cache, old->start, NULL);
    }
}

/* Bring the cache to the beginning of `tokens`; *common is how many of them it holds. */
static bitaxon_status align_cache(chat_state *state, const tool_tokens *tokens, size_t *common,
                                  bitaxon_error *error)
{
    size_t length = (size_t)bitaxon_cache_length(state->cache);
    int32_t *have = tool_alloc(length * sizeof *have);
    bitaxon_status status = BITAXON_OK;
    *common = 0;
    if (length != 0) {
        status = bitaxon_cache_tokens(state->cache, 0, length, have, error);
    }
    if (status == BITAXON_OK) {
        while (*common < length && *common < tokens->count &&
               have[*common] == tokens->ids[*common]) {
            *common += 1;
        }
        if (*common < length) {
            status = bitaxon_session_rewind(state->session, *common, error);
        }
    }
    free(have);
    return status;
}

static bitaxon_status answer_turn(chat_state *state, const tool_tokens *tokens,
                                  bitaxon_generate_result *result, bitaxon_error *error)
{
    const chat_args *args = state->args;
    size_t common = 0;
    bitaxon_status status = align_cache(state, tokens, &common, error);
    if (status != BITAXON_OK) {
        return status;
    }
    begin_turn(state, common);
    status = bitaxon_session_prefill(state->session, tokens->ids + common, tokens->count - common,
                                     error);
    tool_progress_clear(&state->progress);
    if (status != BITAXON_OK) {
        return status;
    }
    tool_out("Assistant: ");
    tool_out_flush();
    bitaxon_generate_params params = {.struct_size = sizeof params};
    params.max_tokens = args->max_tokens;
    params.stop = args->stop.items;
    params.stop_count = (uint32_t)args->stop.count;
    params.on_token = on_token;
    params.user = state;
    status = bitaxon_session_generate(state->session, &params, result, error);
    tool_out("\n");
    tool_out_flush();
    return status;
}

static void print_footer(const chat_state *state, const bitaxon_generate_result *result)
{
    bitaxon_stats stats = {.struct_size = sizeof stats};
    if (!(state->args->stats || isatty(STDERR_FILENO)) ||
        bitaxon_session_stats(state->session, &stats, NULL) != BITAXON_OK) {
        return;
    }
    double rate =
        stats.decode_ns != 0 ? (double)stats.decode_tokens * 1e9 / (double)stats.decode_ns : 0.0;
    fprintf(stderr, "[%zu tokens, %.1f tok/s; read %llu; finish: %s]\n", state->generated.count,
            rate, (unsigned long long)stats.prefill_tokens, tool_finish_name(result->finish));
    tool_thermal_summary(state->thermal, &stats);
}

/* Take the last turn out of the conversation and of the cache. */
static int undo_turn(chat_state *state)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    chat_turn turn = state->turns[--state->turn_count];
    tool_conversation_drop(&state->conversation, turn.messages);
    if (bitaxon_cache_length(state->cache) <= turn.start) {
        return TOOL_OK;
    }
    bitaxon_status status = bitaxon_session_rewind(state->session, turn.start, &error);
    tool_progress_clear(&state->progress);
    return status == BITAXON_OK ? TOOL_OK : tool_fail(status, &error);
}

/* One message and its answer. Returns an exit code only when the chat cannot go on. */
static int take_turn(chat_state *state, const char *text, size_t bytes)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_generate_result result = {.struct_size = sizeof result};
    bitaxon_status status;
    tool_tokens tokens = {0};
    size_t turns = state->turn_count;

    tool_conversation_add(&state->conversation, "user", text, bytes);
    int code = tool_conversation_tokens(state->model, &state->conversation, &tokens);
    if (code != TOOL_OK) {
        tool_tokens_free(&tokens);
        return code;
    }
    state->generated.count = 0;
    state->answer_bytes = 0;
    bitaxon_session_stats_reset(state->session);
    tool_signal_session(state->session);
    status = answer_turn(state, &tokens, &result, &error);
    if (status == BITAXON_CANCELLED && tool_signal() == 0) {
        /* By the Ctrl-C of an earlier turn, which came just after that turn's end. */
        state->turn_count = turns;
        status = answer_turn(state, &tokens, &result, &error);
    }
    tool_signal_session(NULL);
    tool_progress_clear(&state->progress);
    tool_tokens_free(&tokens);

    if (tool_out_failed()) {
        return TOOL_FAILURE;
    }
    if (tool_signal() != 0 && tool_signal() != SIGINT) {
        return tool_fail(BITAXON_CANCELLED, NULL); /* told to end, not to stop the answer */
    }
    tool_signal_clear();
    if (status != BITAXON_OK && status != BITAXON_CANCELLED) {
        tool_fail(status, &error);
    }
    if (status == BITAXON_INTERNAL) {
        return TOOL_FAILURE;
    }
    if (status == BITAXON_OK || state->generated.count != 0) {
        print_footer(state, &result);
        tool_conversation_answer(&state->conversation, state->answer != NULL ? state->answer : "",
                                 state->answer_bytes, &state->generated);
        return TOOL_OK;
    }
    if (state->turn_count > turns) {
        return undo_turn(state);
    }
    tool_conversation_drop(&state->conversation, state->conversation.count - 1);
    return TOOL_OK;
}

static void load_state(chat_state *state, const char *path)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_status status = bitaxon_cache_load(state->cache, path, &error);
    const tool_sampler_args *sampler = &state->args->sampler;
    if (status == BITAXON_OK && (sampler->given || sampler->seed_given)) {
        status = bitaxon_session_set_sampler(state->session, &state->sampler, &error);
    }
    if (status != BITAXON_OK) {
        tool_fail(status, &error);
        return;
    }
    clear_conversation(state);
    if (tool_conversation_base(state->model, state->cache, &state->conversation) == TOOL_OK) {
        tool_out("(%llu tokens loaded)\n", (unsigned long long)bitaxon_cache_length(state->cache));
    }
}

static void save_state(chat_state *state, const char *path)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_status status = bitaxon_cache_save(state->cache, path, &error);
    if (status != BITAXON_OK) {
        tool_fail(status, &error);
        return;
    }
    tool_out("(%llu tokens saved)\n", (unsigned long long)bitaxon_cache_length(state->cache));
}

static int reset_chat(chat_state *state)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    clear_conversation(state);
    add_system(state);
    bitaxon_cache_reset(state->cache);
    bitaxon_status status = bitaxon_session_set_sampler(state->session, &state->sampler, &error);
    tool_out("(forgotten)\n");
    return status == BITAXON_OK ? TOOL_OK : tool_fail(status, &error);
}

/* A line that begins with '/'. Returns an exit code when the chat cannot go on. */
static int take_command(chat_state *state, const char *line)
{
    size_t word = strcspn(line, " \t");
    const char *argument = line + word + strspn(line + word, " \t");
    bool file = false;
    if (word == 5 && (strncmp(line, "/save", word) == 0 || strncmp(line, "/load", word) == 0)) {
        file = true;
        if (argument[0] == '\0') {
            tool_error("%.*s needs a file name", (int)word, line);
            return TOOL_OK;
        }
    }
    if (file && line[1] == 's') {
        save_state(state, argument);
    } else if (file) {
        load_state(state, argument);
    } else if (argument[0] != '\0') {
        tool_error("unknown command '%s' (/help lists them)", line);
    } else if (strcmp(line, "/help") == 0) {
        tool_out("%s", help_text);
    } else if (strcmp(line, "/reset") == 0) {
        return reset_chat(state);
    } else if (strcmp(line, "/undo") != 0) {
        tool_error("unknown command '%s' (/help lists them)", line);
    } else if (state->turn_count == 0) {
        tool_error("nothing to take back");
    } else {
        int code = undo_turn(state);
        tool_out("%s", code == TOOL_OK ? "(taken back)\n" : "");
        return code;
    }
    return TOOL_OK;
}

static bool is_end_word(const char *line)
{
    const char *word = line[0] == '/' ? line + 1 : line;
    return strcasecmp(word, "exit") == 0 || strcasecmp(word, "quit") == 0;
}

static int converse(chat_state *state)
{
    int code = TOOL_OK;
    tool_line *input = tool_line_open("You: ");
    while (code == TOOL_OK && !tool_out_failed()) {
        size_t bytes = 0;
        tool_out_flush();
        const char *text = tool_line_read(input, &bytes);
        if (text == NULL) {
            if (isatty(STDIN_FILENO)) {
                tool_out("\n");
            }
            code = tool_signal() != 0 ? 128 + tool_signal() : TOOL_OK;
            break;
        }
        while (bytes > 0 && (text[bytes - 1] == ' ' || text[bytes - 1] == '\t')) {
            bytes--;
        }
        while (bytes > 0 && (*text == ' ' || *text == '\t')) {
            text++;
            bytes--;
        }
        char *line = tool_copy(text, bytes);
        if (is_end_word(line)) {
            free(line);
            break;
        }
        if (line[0] == '/') {
            code = take_command(state, line);
        } else if (bytes != 0) {
            code = take_turn(state, line, bytes);
        }
        free(line);
    }
    tool_line_close(input);
    return code;
}

static int open_chat(chat_state *state, const char *path)
{
    const chat_args *args = state->args;
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_cache_params cache_params = {.struct_size = sizeof cache_params};
    bitaxon_session_params params = {.struct_size = sizeof params};
    int code = tool_model_open(path, &args->model, 0, &state->progress, &state->model);
    if (code != TOOL_OK) {
        return code;
    }
    cache_params.kv_type = tool_kv_type(&args->model, BITAXON_KV_DEFAULT);
    params.cache_params = &cache_params;
    params.sampler = &state->sampler;
    params.progress = tool_progress_library;
    params.progress_user = &state->progress;
    params.thermal = state->thermal;
    bitaxon_status status = bitaxon_session_create(state->model, &params, &state->session, &error);
    if (status != BITAXON_OK) {
        return tool_fail(status, &error);
    }
    state->cache = bitaxon_session_cache(state->session);
    return tool_adapters_put(state->model, &args->model, state->session);
}

int cmd_chat(int argc, char **argv)
{
    chat_args args = {.max_tokens = 512, .sampler = TOOL_SAMPLER_DEFAULTS};
    const tool_option options[] = {
        TOOL_TEXT("system", 0, "TEXT", &args.system, "a system message before the first turn"),
        TOOL_U64("max-tokens", 'n', &args.max_tokens, 1, TOOL_MAX_INTEGER,
                 "most tokens of an answer (default: 512)"),
        TOOL_SAMPLER_OPTIONS(&args.sampler),
        TOOL_LIST("stop", 0, "TEXT", &args.stop, "end an answer before this text; may be repeated"),
        TOOL_KV_OPTION(&args.model, "f16"),
        TOOL_ADAPTER_OPTIONS(&args.model),
        TOOL_TOKENIZER_OPTION(&args.model),
        TOOL_MODEL_OPTIONS(&args.model),
        TOOL_NO_THERMAL_OPTION(&args.thermal),
        TOOL_BATTERY_OPTION(&args.thermal),
        TOOL_THERMAL_OPTIONS(&args.thermal),
        TOOL_FLAG("stats", 0, &args.stats,
                  "tokens and tokens/s after each answer, on standard\n"
                  "error (on a terminal always)"),
        TOOL_OPTIONS_END};
    chat_state state = {.args = &args};
    int first = 0;
    int code = TOOL_OK;

    tool_progress_init(&state.progress);
    if (tool_parse(&usage, options, argc, argv, &first, &code)) {
        code = tool_model_args_check(usage.command, &args.model);
        for (size_t i = 0; code == TOOL_OK && i < args.stop.count; i++) {
            if (args.stop.items[i][0] == '\0') {
                code = tool_usage_error(usage.command, "--stop: the text is empty");
            }
        }
        if (code == TOOL_OK) {
            code = tool_sampler_params(&args.sampler, &state.sampler);
        }
        if (code == TOOL_OK) {
            code = tool_thermal_open(&args.thermal, &state.thermal);
            state.progress.thermal = state.thermal;
        }
        if (code == TOOL_OK) {
            code = open_chat(&state, argv[first]);
        }
        if (code == TOOL_OK) {
            add_system(&state);
            code = converse(&state);
        }
    }
    tool_conversation_free(&state.conversation);
    tool_tokens_free(&state.generated);
    tool_list_free(&args.stop);
    tool_list_free(&args.model.adapters);
    free(state.turns);
    free(state.answer);
    bitaxon_session_free(state.session);
    bitaxon_model_free(state.model);
    bitaxon_thermal_free(state.thermal);
    return code;
}
