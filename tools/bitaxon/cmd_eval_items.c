/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_eval_items.c - `bitaxon eval --choices` and `--questions`: the share of records of a file that a model gets
 * right.
 *
 *   choices    a question is read once; from a checkpoint behind it each choice is scored by the sum of the
 *              log-probabilities of its tokens, by that sum over its bytes, and by that over its tokens. The
 *              largest is taken, the first of equals.
 *   questions  the greedy answer, without white space around it, is compared with the accepted ones, byte by byte
 *
 * The standard error of a share p of n is sqrt(p (1 - p) / n). */
#include "cmd_eval.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tool_chat.h"
#include "tool_file.h"

/* How choices are compared. */
enum { BY_SUM, PER_BYTE, PER_TOKEN, RULES };

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f';
}

/* ---- reading records ---------------------------------------------------------------------- */

static bool is_text(const json_t *value)
{
    return json_is_string(value) && json_string_length(value) != 0;
}

static bool all_texts(const json_t *list, size_t least)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        if (!is_text(json_array_get(list, i))) {
            return false;
        }
    }
    return json_array_size(list) >= least;
}

static bool are_messages(const json_t *list)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *message = json_array_get(list, i);
        if (!json_is_string(json_object_get(message, "role")) ||
            !json_is_string(json_object_get(message, "content"))) {
            return false;
        }
    }
    return json_array_size(list) != 0;
}

/* NULL, or what is wrong. */
static const char *check_record(const eval_args *args, const json_t *record)
{
    const json_t *question = json_object_get(record, "question");
    const json_t *messages = json_object_get(record, "messages");
    const json_t *choices = json_object_get(record, "choices");
    const json_t *answer = json_object_get(record, "answer");
    if (!json_is_object(record)) {
        return "not an object";
    }
    if (messages == NULL ? !is_text(question) : !are_messages(messages)) {
        return "needs \"question\", a text, or \"messages\", a list of objects with \"role\" and "
               "\"content\"";
    }
    if (messages != NULL && args->raw) {
        return "\"messages\" cannot be read with --raw";
    }
    if (args->questions != NULL) {
        return is_text(answer) || (json_is_array(answer) && all_texts(answer, 1))
                   ? NULL
                   : "\"answer\" is not a text, nor a list of texts";
    }
    if (!json_is_array(choices) || !all_texts(choices, 2)) {
        return "\"choices\" is not a list of two texts or more";
    }
    if (!json_is_integer(answer) || json_integer_value(answer) < 0 ||
        (size_t)json_integer_value(answer) >= json_array_size(choices)) {
        return "\"answer\" is not the index of a choice, from 0";
    }
    return NULL;
}

int eval_items_load(const eval_args *args, eval_items *items)
{
    char *text = NULL;
    size_t bytes = 0;
    size_t capacity = 0;
    memset(items, 0, sizeof *items);
    items->path = args->choices != NULL ? args->choices : args->questions;
    int code = tool_read_file(items->path, &text, &bytes);
    size_t line = 0;
    for (size_t at = 0; code == TOOL_OK && at < bytes; line++) {
        const char *begin = text + at;
        const char *newline = memchr(begin, '\n', bytes - at);
        size_t length = newline != NULL ? (size_t)(newline - begin) : bytes - at;
        at += length + 1;
        while (length > 0 && is_space(begin[length - 1])) {
            length--;
        }
        if (length == 0) {
            continue;
        }
        if (args->limit != 0 && items->count == args->limit) {
            break;
        }
        json_error_t problem;
        json_t *record = json_loadb(begin, length, JSON_REJECT_DUPLICATES, &problem);
        if (record == NULL) {
            code = tool_error("%s: line %zu, column %d: %s", items->path, line + 1, problem.column,
                              problem.text);
            break;
        }
        const char *wrong = check_record(args, record);
        if (wrong != NULL) {
            json_decref(record);
            code = tool_error("%s: line %zu: %s", items->path, line + 1, wrong);
            break;
        }
        if (items->count == capacity) {
            capacity = capacity != 0 ? 2 * capacity : 256;
            items->records = tool_realloc(items->records, capacity * sizeof(json_t *));
            items->lines = tool_realloc(items->lines, capacity * sizeof(size_t));
        }
        items->lines[items->count] = line + 1;
        items->records[items->count++] = record;
    }
    free(text);
    if (code == TOOL_OK && items->count == 0) {
        code = tool_error("%s: no records", items->path);
    }
    return code;
}

void eval_items_free(eval_items *items)
{
    for (size_t i = 0; i < items->count; i++) {
        json_decref(items->records[i]);
    }
    free(items->records);
    free(items->lines);
    memset(items, 0, sizeof *items);
}

/* ---- running ---------------------------------------------------------------------------------- */

typedef struct items_state {
    eval_state *eval;
    const eval_items *items;
    tool_tokens prompt;
    char *answer; /* the text that is generated */
    size_t answer_bytes;
    size_t answer_capacity;
    uint64_t correct[RULES]; /* of questions the first alone */
    double chance;           /* of guessing right, summed */
    double nll_right;        /* of a token: mean of each right choice, summed over records */
    double nll_wrong;        /* the same of the others, their mean */
    uint64_t tokens;
    json_t *failures; /* the first --show of them */
} items_state;

/* A failed call of the library, with the line that it was about. */
static int fail_at(const items_state *state, size_t i, bitaxon_status status,
                   const bitaxon_error *error)
{
    if (status == BITAXON_CANCELLED || status == BITAXON_THERMAL_STOP) {
        return tool_fail(status, error);
    }
    tool_progress_clear(&state->eval->progress);
    return tool_error("%s: line %zu: %s", state->items->path, state->items->lines[i],
                      error->message);
}

/* The tokens that a record's question stands for, and the cache that has read them. */
static int read_question(items_state *state, size_t i)
{
    eval_state *eval = state->eval;
    const json_t *record = state->items->records[i];
    const json_t *list = json_object_get(record, "messages");
    const json_t *question = json_object_get(record, "question");
    bitaxon_error error = BITAXON_ERROR_INIT;
    size_t count = list != NULL ? json_array_size(list) : 1;
    int code = TOOL_OK;
    tool_tokens_free(&state->prompt);
    if (eval->args->raw) {
        code = tool_tokenize(eval->model, json_string_value(question), json_string_length(question),
                             0, &state->prompt.ids, &state->prompt.count);
    } else {
        bitaxon_message *messages = tool_alloc(count * sizeof *messages);
        for (size_t m = 0; m < count; m++) {
            const json_t *message = json_array_get(list, m);
            const json_t *content = list != NULL ? json_object_get(message, "content") : question;
            messages[m] = (bitaxon_message){
                .struct_size = sizeof *messages,
                .role = list != NULL ? json_string_value(json_object_get(message, "role")) : "user",
                .content = json_string_value(content),
                .content_bytes = json_string_length(content)};
        }
        code = tool_chat_encode(eval->model, messages, count, BITAXON_CHAT_GENERATE, &state->prompt,
                                NULL);
        free(messages);
    }
    if (code != TOOL_OK) {
        return code;
    }
    bitaxon_cache_reset(bitaxon_session_cache(eval->session));
    bitaxon_status status =
        bitaxon_session_prefill(eval->session, state->prompt.ids, state->prompt.count, &error);
    state->tokens += state->prompt.count;
    return status == BITAXON_OK ? TOOL_OK : fail_at(state, i, status, &error);
}

/* scores: nullable; taken over. */
static void note_failure(items_state *state, size_t i, json_t *wanted, const char *got,
                         size_t got_bytes, json_t *scores)
{
    if (json_array_size(state->failures) >= state->eval->args->show) {
        json_decref(scores);
        return;
    }
    json_t *failure = tool_json_object();
    const json_t *question = json_object_get(state->items->records[i], "question");
    tool_json_set_integer(failure, "line", state->items->lines[i]);
    if (question != NULL) {
        tool_json_set_string(failure, "question", json_string_value(question));
    }
    tool_json_set(failure, "expected", json_incref(wanted));
    tool_json_set_text(failure, "answer", got, got_bytes);
    if (scores != NULL) {
        tool_json_set(failure, "scores", scores);
    }
    tool_json_append(state->failures, failure);
}

static int score_choices(items_state *state, size_t i)
{
    eval_state *eval = state->eval;
    const json_t *record = state->items->records[i];
    const json_t *choices = json_object_get(record, "choices");
    size_t right = (size_t)json_integer_value(json_object_get(record, "answer"));
    size_t all = json_array_size(choices);
    /* None, when every choice is impossible: never the right one. */
    size_t best[RULES] = {all, all, all};
    double most[RULES] = {-INFINITY, -INFINITY, -INFINITY};
    bitaxon_error error = BITAXON_ERROR_INIT;
    int code = read_question(state, i);
    if (code != TOOL_OK) {
        return code;
    }
    json_t *scores = tool_json_array();
    bitaxon_status status = bitaxon_cache_checkpoint(bitaxon_session_cache(eval->session), &error);
    for (size_t c = 0; c < all && status == BITAXON_OK; c++) {
        const json_t *choice = json_array_get(choices, c);
        int32_t *ids = NULL;
        size_t count = 0;
        double sum = 0.0;
        code = tool_tokenize(eval->model, json_string_value(choice), json_string_length(choice), 0,
                             &ids, &count);
        if (code != TOOL_OK) {
            json_decref(scores);
            return code;
        }
        status = bitaxon_session_score(eval->session, ids, count, &sum, NULL, &error);
        free(ids);
        state->tokens += count;
        if (status == BITAXON_OK) {
            status = bitaxon_session_rewind(eval->session, state->prompt.count, &error);
        }
        tool_json_append(scores, isfinite(sum) ? json_real(sum) : json_null());
        const double by[RULES] = {sum, sum / (double)json_string_length(choice), sum / (double)count};
        for (int rule = 0; rule < RULES; rule++) {
            if (by[rule] > most[rule]) {
                most[rule] = by[rule];
                best[rule] = c;
            }
        }
        state->nll_right -= c == right ? by[PER_TOKEN] : 0.0;
        state->nll_wrong -= c != right ? by[PER_TOKEN] / (double)(all - 1) : 0.0;
    }
    if (status != BITAXON_OK) {
        json_decref(scores);
        return fail_at(state, i, status, &error);
    }
    for (int rule = 0; rule < RULES; rule++) {
        state->correct[rule] += best[rule] == right;
    }
    state->chance += 1.0 / (double)all;
    if (best[BY_SUM] != right) {
        const json_t *taken = json_array_get(choices, best[BY_SUM]); /* NULL: none */
        note_failure(state, i, json_array_get(choices, right),
                     taken != NULL ? json_string_value(taken) : "", json_string_length(taken), scores);
    } else {
        json_decref(scores);
    }
    return TOOL_OK;
}

static int32_t on_token(void *user, const bitaxon_generated *step)
{
    items_state *state = user;
    if (state->answer_bytes + step->text_bytes > state->answer_capacity) {
        state->answer_capacity = 2 * (state->answer_bytes + step->text_bytes) + 256;
        state->answer = tool_realloc(state->answer, state->answer_capacity);
    }
    if (step->text_bytes != 0) {
        memcpy(state->answer + state->answer_bytes, step->text, step->text_bytes);
    }
    state->answer_bytes += step->text_bytes;
    state->tokens += step->token >= 0;
    return 0;
}

static void trim(const char **text, size_t *bytes)
{
    while (*bytes > 0 && is_space((*text)[*bytes - 1])) {
        --*bytes;
    }
    while (*bytes > 0 && is_space(**text)) {
        ++*text;
        --*bytes;
    }
}

static bool is_answer(const json_t *accepted, const char *text, size_t bytes)
{
    const char *other = json_string_value(accepted);
    size_t other_bytes = json_string_length(accepted);
    trim(&other, &other_bytes);
    return bytes == other_bytes && memcmp(text, other, bytes) == 0;
}

static int ask(items_state *state, size_t i)
{
    static const char *const newline[] = {"\n"};
    eval_state *eval = state->eval;
    json_t *accepted = json_object_get(state->items->records[i], "answer");
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_generate_params params = {.struct_size = sizeof params,
                                      .max_tokens = eval->args->answer_tokens,
                                      .stop = newline,
                                      .stop_count = eval->args->raw ? 1 : 0,
                                      .on_token = on_token,
                                      .user = state};
    int code = read_question(state, i);
    if (code != TOOL_OK) {
        return code;
    }
    state->answer_bytes = 0;
    bitaxon_status status = bitaxon_session_generate(eval->session, &params, NULL, &error);
    if (status != BITAXON_OK) {
        return fail_at(state, i, status, &error);
    }
    const char *text = state->answer != NULL ? state->answer : "";
    size_t bytes = state->answer_bytes;
    trim(&text, &bytes);
    bool right = !json_is_array(accepted) && is_answer(accepted, text, bytes);
    for (size_t a = 0; a < json_array_size(accepted) && !right; a++) {
        right = is_answer(json_array_get(accepted, a), text, bytes);
    }
    state->correct[BY_SUM] += right;
    if (!right) {
        note_failure(state, i, accepted, text, bytes, NULL);
    }
    return TOOL_OK;
}

/* ---- report -------------------------------------------------------------------------------------- */

static double share(uint64_t part, uint64_t all)
{
    return (double)part / (double)all;
}

static double share_error(uint64_t part, uint64_t all)
{
    double p = share(part, all);
    return sqrt(p * (1.0 - p) / (double)all);
}

static void set_shares(json_t *object, uint64_t part, uint64_t all, const char *count,
                       const char *accuracy, const char *error)
{
    tool_json_set_integer(object, count, part);
    tool_json_set_real(object, accuracy, share(part, all));
    tool_json_set_real(object, error, share_error(part, all));
}

/* JSON has no infinity: null where a choice is impossible. */
static void set_finite(json_t *object, const char *key, double value)
{
    tool_json_set(object, key, isfinite(value) ? json_real(value) : json_null());
}

static void report_text(const items_state *state, uint64_t n, double speed)
{
    static const char *const names[RULES] = {"accuracy", "per byte", "per token"};
    bool choices = state->eval->args->choices != NULL;
    for (int rule = 0; rule < (choices ? RULES : 1); rule++) {
        uint64_t correct = state->correct[rule];
        tool_out("%-14s %.4f +- %.4f (%llu of %llu)\n", names[rule], share(correct, n),
                 share_error(correct, n), (unsigned long long)correct, (unsigned long long)n);
    }
    if (choices) {
        tool_out("chance         %.4f\n", state->chance / (double)n);
        tool_out("nll per token  %.4f of right choices, %.4f of others\n",
                 state->nll_right / (double)n, state->nll_wrong / (double)n);
    }
    tool_out("time           %.1f s, %.1f questions/s\n", state->eval->seconds, speed);
    tool_thermal_report(state->eval->thermal, state->tokens);
    for (size_t i = 0; i < json_array_size(state->failures); i++) {
        const json_t *failure = json_array_get(state->failures, i);
        char *wanted = json_dumps(json_object_get(failure, "expected"), JSON_ENCODE_ANY);
        char *got = json_dumps(json_object_get(failure, "answer"), JSON_ENCODE_ANY);
        tool_out("line %lld: expected %s, got %s\n",
                 (long long)json_integer_value(json_object_get(failure, "line")),
                 wanted != NULL ? wanted : "?", got != NULL ? got : "?");
        free(wanted);
        free(got);
    }
}

static void report(items_state *state, uint64_t n)
{
    const eval_args *args = state->eval->args;
    double seconds = state->eval->seconds;
    double speed = seconds > 0.0 ? (double)n / seconds : 0.0;
    if (!args->json) {
        report_text(state, n, speed);
        return;
    }
    json_t *object = tool_json_object();
    tool_json_set_string(object, "file", state->items->path);
    tool_json_set_string(object, "kind", args->choices != NULL ? "choices" : "questions");
    tool_json_set_integer(object, "items", n);
    set_shares(object, state->correct[BY_SUM], n, "correct", "accuracy", "standard_error");
    if (args->choices != NULL) {
        set_shares(object, state->correct[PER_BYTE], n, "correct_per_byte", "accuracy_per_byte",
                   "standard_error_per_byte");
        set_shares(object, state->correct[PER_TOKEN], n, "correct_per_token", "accuracy_per_token",
                   "standard_error_per_token");
        tool_json_set_real(object, "chance", state->chance / (double)n);
        set_finite(object, "nll_right", state->nll_right / (double)n);
        set_finite(object, "nll_wrong", state->nll_wrong / (double)n);
    }
    tool_json_set_integer(object, "tokens", state->tokens);
    tool_json_set_real(object, "seconds", seconds);
    tool_json_set_real(object, "questions_per_second", speed);
    if (args->show != 0) {
        tool_json_set(object, "failures", json_incref(state->failures));
    }
    if (state->eval->thermal != NULL) {
        tool_thermal_json(object, state->eval->thermal, NULL);
    }
    tool_json_print(object);
}

int eval_items_run(eval_state *eval, const eval_items *items)
{
    items_state state = {.eval = eval, .items = items, .failures = tool_json_array()};
    int code = TOOL_OK;
    tool_signal_session(eval->session);
    uint64_t start = tool_now_ns();
    for (size_t i = 0; i < items->count && code == TOOL_OK; i++) {
        code = eval->args->choices != NULL ? score_choices(&state, i) : ask(&state, i);
        tool_progress_show(&eval->progress, BITAXON_STAGE_PREFILL,
                           eval->args->choices != NULL ? "choosing" : "answering", "questions",
                           i + 1, items->count);
        if (code == TOOL_OK && tool_signal() != 0) {
            code = tool_fail(BITAXON_CANCELLED, NULL);
        }
    }
    eval->seconds = (double)(tool_now_ns() - start) * 1e-9;
    tool_signal_session(NULL);
    tool_progress_clear(&eval->progress);
    if (code == TOOL_OK) {
        report(&state, items->count);
    }
    json_decref(state.failures);
    tool_tokens_free(&state.prompt);
    free(state.answer);
    return code;
}
