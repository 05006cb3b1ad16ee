/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_train_run.c - the loop of `bitaxon train`: updates, evaluations, checkpoints; what it shows
 * meanwhile, and what it keeps in metrics.jsonl and loss.svg. Called by cmd_train.c.
 *
 * Whatever ends the loop early (a signal, the thermal policy, a failing disk), a step that is not
 * done has changed nothing, so that a checkpoint of the updates before it is saved, and a
 * resumed run gives the bits of one that was never stopped. metrics.jsonl is cut back to the
 * checkpoint then: it has each update once. */
#include "cmd_train.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tool_file.h"

/* A picture and, without a terminal, a line so often. */
#define PICTURE_NS 5000000000u
#define LINE_NS 10000000000u
#define REDRAW_NS 100000000u

static const double keep = 0.9; /* of averages shown, from one update to the next */

/* ---- metrics.jsonl ----------------------------------------------------------------------- */

static int log_error(const train_state *state)
{
    return tool_error("writing %s: %s", state->metrics, strerror(errno));
}

/* Print the object as one line, and free it. */
static int log_object(train_state *state, json_t *object)
{
    char *line = json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(12));
    json_decref(object);
    if (line == NULL) {
        return tool_error("out of memory");
    }
    bool fine = fprintf(state->log, "%s\n", line) > 0 && fflush(state->log) == 0;
    free(line);
    return fine ? TOOL_OK : log_error(state);
}

static json_t *result_object(const train_state *state, const bitaxon_train_result *r,
                             bool evaluation)
{
    json_t *object = tool_json_object();
    tool_json_set_integer(object, "step", r->step);
    if (evaluation) {
        tool_json_set(object, "evaluation", json_true());
    } else if (r->updated == 0) {
        tool_json_set(object, "updated", json_false());
    }
    tool_json_set_real(object, "loss", r->loss);
    if (!evaluation) {
        tool_json_set_real(object, "learning_rate", r->learning_rate);
        tool_json_set_real(object, "gradient_norm", r->gradient_norm);
        tool_json_set_integer(object, "epoch", r->epoch);
    }
    tool_json_set_integer(object, "tokens", r->tokens);
    tool_json_set_integer(object, "rows", r->rows);
    if (state->params.objective == BITAXON_OBJECTIVE_ORPO) {
        tool_json_set_integer(object, "pairs", r->pairs);
        tool_json_set_integer(object, "skipped_pairs", r->skipped_pairs);
        tool_json_set_real(object, "nll", r->nll);
        tool_json_set_real(object, "odds", r->odds);
        tool_json_set_real(object, "chosen", r->chosen);
        tool_json_set_real(object, "rejected", r->rejected);
        tool_json_set_real(object, "margin", r->margin);
        tool_json_set_real(object, "accuracy", r->accuracy);
    } else if (evaluation) {
        tool_json_set(object, "perplexity", isfinite(exp(r->loss)) ? json_real(exp(r->loss)) : json_null());
    }
    tool_json_set_real(object, "balance", r->balance);
    tool_json_set_integer(object, "skipped_steps", r->skipped_steps);
    tool_json_set_real(object, "seconds", (double)r->step_ns / 1e9);
    tool_json_set_real(object, "paused_seconds", (double)r->paused_ns / 1e9);
    if (r->energy_uj != 0) {
        tool_json_set_real(object, "joules", (double)r->energy_uj / 1e6);
    }
    return object;
}

/* Whether a line of before is of what the checkpoint holds. */
static bool still_holds(const train_state *state, const json_t *line)
{
    const json_t *step = json_object_get(line, "step");
    const json_t *skipped = json_object_get(line, "skipped_steps");
    uint64_t at = (uint64_t)json_integer_value(step);
    if (json_is_true(json_object_get(line, "evaluation")) && at == state->info.step) {
        return state->evaluated; /* else it is made again */
    }
    return json_is_integer(step) && at <= state->info.step &&
           (uint64_t)json_integer_value(skipped) <= state->info.skipped_steps;
}

/* Temperatures and pauses of a line, for the picture; `at` goes along with the steps. */
static void recall(train_state *state, const json_t *line, size_t *at)
{
    uint64_t step = (uint64_t)json_integer_value(json_object_get(line, "step"));
    const json_t *celsius = json_object_get(line, "celsius");
    if (json_is_true(json_object_get(line, "evaluation")) ||
        json_is_false(json_object_get(line, "updated"))) {
        return;
    }
    while (*at < state->plot.count && state->plot.points[*at].step < step) {
        (*at)++;
    }
    if (*at < state->plot.count && state->plot.points[*at].step == step) {
        tool_plot_point *point = &state->plot.points[*at];
        point->celsius = json_is_number(celsius) ? json_number_value(celsius) : NAN;
        point->paused = json_number_value(json_object_get(line, "paused_seconds"));
    }
}

/* The file anew, without the lines that are later than the checkpoint. */
static int cut_log(train_state *state)
{
    char *text = NULL;
    size_t bytes = 0, at = 0;
    tool_output output;
    FILE *there = fopen(state->metrics, "r");
    if (there == NULL) {
        return errno == ENOENT ? TOOL_OK : log_error(state);
    }
    fclose(there);
    int code = tool_read_file(state->metrics, &text, &bytes);
    if (code != TOOL_OK) {
        return code;
    }
    code = tool_output_open(&output, state->metrics);
    for (char *line = text; code == TOOL_OK && line < text + bytes;) {
        char *end = memchr(line, '\n', (size_t)(text + bytes - line));
        if (end == NULL) {
            break; /* a line that a kill cut off */
        }
        json_t *object = json_loadb(line, (size_t)(end - line), 0, NULL);
        if (object != NULL && still_holds(state, object)) {
            recall(state, object, &at);
            code = tool_output_write(&output, line, (size_t)(end + 1 - line));
        }
        json_decref(object);
        line = end + 1;
    }
    if (code == TOOL_OK) {
        code = tool_output_commit(&output);
    }
    if (output.temporary != NULL) {
        tool_output_abandon(&output);
    }
    free(text);
    return code;
}

static void note_evaluation(train_state *state, uint64_t step, double loss)
{
    state->valid_loss = loss;
    if (!(loss >= state->best_loss)) { /* also the first */
        state->best_loss = loss;
        state->best_step = step;
    }
    tool_plot_add_evaluation(&state->plot, step, loss);
    state->evaluated = step == state->info.step;
}

static void smooth(train_state *state, double loss)
{
    if (isfinite(loss)) {
        state->loss = keep * state->loss + (1 - keep) * loss;
        state->weight = keep * state->weight + (1 - keep);
    }
}

/* What the checkpoint remembers of the run before. */
static int read_history(train_state *state)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    size_t count = 0;
    (void)bitaxon_trainer_history(state->trainer, NULL, 0, &count, &error);
    bitaxon_train_point *points = tool_alloc((count + 1) * sizeof *points);
    points[0].struct_size = sizeof *points;
    bitaxon_status status =
        bitaxon_trainer_history(state->trainer, points, count + 1, &count, &error);
    for (size_t i = 0; status == BITAXON_OK && i < count; i++) {
        if (points[i].evaluation != 0) {
            note_evaluation(state, points[i].step, points[i].loss);
        } else {
            tool_plot_point point = {points[i].step, points[i].loss, points[i].learning_rate, NAN,
                                     0};
            tool_plot_add(&state->plot, &point);
            smooth(state, points[i].loss);
        }
    }
    free(points);
    return status == BITAXON_OK ? TOOL_OK : tool_fail(status, &error);
}

/* ---- what is shown ----------------------------------------------------------------------- */

static void picture(train_state *state, bool now)
{
    uint64_t time = tool_now_ns();
    if (!state->plot_failed && (now || time - state->plot_ns >= PICTURE_NS)) {
        state->plot_failed = tool_plot_write(&state->plot, state->picture) != TOOL_OK;
        state->plot_ns = tool_now_ns();
    }
}

static void clear_line(train_state *state)
{
    if (state->terminal && state->drawn_ns != 0) {
        fputs("\r\033[K", stderr);
        fflush(stderr);
    }
}

/* "1:02:03" */
static void time_text(double seconds, char buffer[32])
{
    unsigned whole = seconds < 3.6e6 ? (unsigned)(seconds + 0.5) : 3600000;
    if (whole >= 3600) {
        snprintf(buffer, 32, "%u:%02u:%02u", whole / 3600, whole / 60 % 60, whole % 60);
    } else {
        snprintf(buffer, 32, "%u:%02u", whole / 60, whole % 60);
    }
}

/* One line; doing: what is at work now, or "". */
static void show(train_state *state, const char *doing, bool now)
{
    uint64_t time = tool_now_ns();
    char heat[TOOL_HEAT_BYTES] = "", left[32];
    if (state->args->quiet ||
        (!now && time - state->drawn_ns < (state->terminal ? REDRAW_NS : LINE_NS))) {
        return;
    }
    state->drawn_ns = time;
    fprintf(stderr, "%s%llu/%llu", state->terminal ? "\r" : "",
            (unsigned long long)state->info.step, (unsigned long long)state->info.steps);
    if (state->share > 0) {
        double each = state->seconds / state->share;
        time_text(each * (double)(state->info.steps - state->info.step), left);
        fprintf(stderr, "  loss %.4f  %.0f tokens/s  rate %.2e  %s left",
                state->weight > 0 ? state->loss / state->weight : NAN,
                state->seconds > 0 ? state->rows / state->seconds : 0, state->learning_rate, left);
    }
    if (state->thermal != NULL) {
        tool_thermal_short(state->thermal, state->read, heat);
    }
    fprintf(stderr, "%s%s%s%s%s", heat[0] != '\0' ? "  " : "", heat, doing[0] != '\0' ? "  " : "",
            doing, state->terminal ? "\033[K" : "\n");
    fflush(stderr);
}

/* Before each micro-step. */
int32_t train_progress(void *user, const bitaxon_progress *progress)
{
    train_state *state = user;
    char doing[64];
    if (state->terminal) {
        snprintf(doing, sizeof doing, "(%llu of %llu)", (unsigned long long)progress->done,
                 (unsigned long long)progress->total);
        show(state, progress->total > 1 ? doing : "", false);
    }
    return tool_signal() != 0;
}

/* ---- the loop ---------------------------------------------------------------------------- */

static int note_update(train_state *state, const bitaxon_train_result *r)
{
    tool_plot_point point = {r->step, r->loss, r->learning_rate, NAN, (double)r->paused_ns / 1e9};
    json_t *object = result_object(state, r, false);
    if (state->thermal != NULL) {
        bitaxon_thermal_status heat = {.struct_size = sizeof heat};
        (void)bitaxon_thermal_sample(state->thermal, &heat, NULL);
        if (heat.known & BITAXON_READ_TEMPERATURE) {
            point.celsius = heat.temperature_mc / 1000.0;
            tool_json_set_real(object, "celsius", point.celsius);
            tool_json_set_string(object, "band", tool_band_name(heat.band));
        }
    }
    state->dirty = true;
    state->info.step = r->step;
    state->info.skipped_steps = r->skipped_steps;
    state->read += r->rows;
    state->paused_ns += r->paused_ns;
    state->energy_uj += r->energy_uj;
    state->learning_rate = r->learning_rate;
    state->seconds = keep * state->seconds + (1 - keep) * (double)r->step_ns / 1e9;
    state->rows = keep * state->rows + (1 - keep) * (double)r->rows;
    state->share = keep * state->share + (1 - keep);
    if (r->updated != 0) {
        state->evaluated = false;
        smooth(state, r->loss);
        tool_plot_add(&state->plot, &point);
    }
    int code = log_object(state, object);
    show(state, "", r->step == state->info.steps);
    picture(state, false);
    return code;
}

static bitaxon_status evaluate(train_state *state, int *code, bitaxon_error *error)
{
    bitaxon_train_result r = {.struct_size = sizeof r};
    const train_args *args = state->args;
    bitaxon_status status =
        bitaxon_trainer_evaluate(state->trainer, args->eval_batches, &r, error);
    if (status != BITAXON_OK) {
        return status;
    }
    state->dirty = true;
    state->paused_ns += r.paused_ns;
    state->energy_uj += r.energy_uj;
    note_evaluation(state, r.step, r.loss);
    state->evaluated = true;
    *code = log_object(state, result_object(state, &r, true));
    clear_line(state);
    if (!args->quiet) {
        fprintf(stderr, "%llu/%llu  validation loss %.4f", (unsigned long long)r.step,
                (unsigned long long)state->info.steps, r.loss);
        if (state->params.objective == BITAXON_OBJECTIVE_ORPO) {
            fprintf(stderr, ", %.1f%% of the chosen answers the likelier", 100 * r.accuracy);
        } else {
            fprintf(stderr, ", perplexity %.4g", exp(r.loss));
        }
        fprintf(stderr, "\n");
    }
    picture(state, true);
    return BITAXON_OK;
}

/* The lines of the updates that a checkpoint holds are on the disk before it is. */
static bitaxon_status save(train_state *state, bitaxon_error *error)
{
    if (state->log != NULL) {
        (void)fsync(fileno(state->log)); /* a pipe or a device has nothing to keep */
    }
    bitaxon_status status = bitaxon_trainer_save(state->trainer, state->checkpoints,
                                                 state->args->keep, error);
    state->dirty = state->dirty && status != BITAXON_OK;
    return status;
}

/* Every so many updates, and at both ends. */
static bool due(const train_state *state, uint64_t every)
{
    return state->info.step % every == 0 || state->info.step == state->info.steps;
}

/* To the last update; *code tells of failures of the command's own. */
static bitaxon_status loop(train_state *state, int *code, bitaxon_error *error)
{
    const train_args *args = state->args;
    bitaxon_status status = BITAXON_OK;
    while (*code == TOOL_OK) {
        if (state->validation != NULL && !state->evaluated && due(state, args->eval_every)) {
            status = evaluate(state, code, error);
        }
        if (status == BITAXON_OK && *code == TOOL_OK && state->dirty &&
            state->info.step != 0 && due(state, args->save_every)) {
            status = save(state, error);
        }
        if (status != BITAXON_OK || *code != TOOL_OK || state->info.step >= state->info.steps) {
            return status;
        }
        bitaxon_train_result r = {.struct_size = sizeof r};
        status = tool_signal() != 0 ? BITAXON_CANCELLED
                                    : bitaxon_trainer_step(state->trainer, &r, error);
        if (status != BITAXON_OK) {
            return status;
        }
        *code = note_update(state, &r);
    }
    return BITAXON_OK;
}

/* The loop ended before the last update: keep what there is, and say how to go on. */
static int end_early(train_state *state, bitaxon_status status, int code,
                     const bitaxon_error *error)
{
    bitaxon_error problem = BITAXON_ERROR_INIT;
    unsigned long long step = state->info.step, steps = state->info.steps;
    bool stopped = status == BITAXON_CANCELLED || status == BITAXON_THERMAL_STOP;
    /* Also after FORMAT: values and moments are those of the last sound update. */
    bool fine = true;
    if (state->dirty && status != BITAXON_BAD_STATE) {
        fine = save(state, &problem) == BITAXON_OK;
    }
    if (status == BITAXON_CANCELLED) {
        code = tool_signal() != 0 ? 128 + tool_signal() : TOOL_CANCELLED;
        tool_error("cancelled after update %llu of %llu", step, steps);
    } else if (status != BITAXON_OK) {
        code = tool_fail(status, error);
    }
    if (!fine) {
        tool_error("no checkpoint of update %llu: %s", step, problem.message);
    } else if (stopped) {
        fprintf(stderr, "Saved in %s; the same command with --resume goes on.\n",
                state->checkpoints);
    }
    return code;
}

int train_run(train_state *state)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    int code = read_history(state);
    if (code == TOOL_OK && state->args->resume) {
        code = cut_log(state);
    }
    state->start_step = state->info.step;
    state->start_ns = tool_now_ns();
    state->dirty = !state->args->resume;
    state->drawn_ns = state->terminal ? 0 : state->start_ns;
    if (code != TOOL_OK) {
        return code;
    }
    /* Whether the directory serves shows before hours of work, not after them. */
    bitaxon_status status = state->dirty ? save(state, &error) : BITAXON_OK;
    if (status != BITAXON_OK) {
        return tool_fail(status, &error);
    }
    state->log = fopen(state->metrics, state->args->resume ? "a" : "w");
    if (state->log == NULL) {
        return log_error(state);
    }
    tool_signal_trainer(state->trainer);
    status = loop(state, &code, &error);
    tool_signal_trainer(NULL);
    clear_line(state);
    picture(state, true);
    if (status != BITAXON_OK || code != TOOL_OK) {
        return end_early(state, status, code, &error);
    }
    return TOOL_OK;
}
