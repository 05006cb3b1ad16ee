/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_bench_report.c - what `bitaxon bench` prints: one text for people, the same in Markdown for
 * docs/performance.md, one JSON object for programs. Numbers are medians; n is how many. */
#include "cmd_bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tool_json.h"

enum { CELLS = 7, CELL_BYTES = 96 };

static void format_value(char *buffer, size_t capacity, bench_unit unit, double value)
{
    char text[TOOL_NUMBER_BYTES];
    switch (unit) {
    case BENCH_TOKENS:
        snprintf(buffer, capacity, "%.*f tokens/s", value < 100 ? 2 : value < 1000 ? 1 : 0, value);
        break;
    case BENCH_SECONDS:
        if (value < 1e-4) {
            snprintf(buffer, capacity, "%.2f us", value * 1e6);
        } else {
            snprintf(buffer, capacity, value < 1 ? "%.2f ms" : "%.2f s", value < 1 ? value * 1e3 : value);
        }
        break;
    case BENCH_BYTES:
        snprintf(buffer, capacity, "%s", tool_bytes_text((uint64_t)value, text));
        break;
    case BENCH_RATIO:
        snprintf(buffer, capacity, "%.3f", value);
        break;
    case BENCH_PERCENT:
        snprintf(buffer, capacity, "%.2f %%", value);
        break;
    case BENCH_READ:
        snprintf(buffer, capacity, "%.2f GB/s", value * 1e-9);
        break;
    case BENCH_FLOPS:
        snprintf(buffer, capacity, "%.1f GFLOP/s", value * 1e-9);
        break;
    case BENCH_OPS:
        snprintf(buffer, capacity, "%.1f Gop/s", value * 1e-9);
        break;
    case BENCH_JOULES:
        snprintf(buffer, capacity, "%.3g J/token", value);
        break;
    }
}

static const char *unit_name(bench_unit unit)
{
    static const char *const names[] = {"tokens/s", "s", "bytes", "ratio", "percent",
                                        "bytes/s", "flop/s", "op/s", "J/token"};
    return names[unit];
}

/* Median of the rounds' shares: each result beside the limit of its own minute. */
static double share_of(const bench_row *row)
{
    bench_samples share = {.count = 0};
    for (uint32_t i = 0; i < row->limit.count; i++) {
        bench_add(&share, row->rate.value[i] / row->limit.value[i]);
    }
    return bench_median(&share);
}

/* "model name" of /proc/cpuinfo, or the machine's name for what it is. */
static void cpu_name(char *buffer, size_t capacity)
{
    char line[256];
    FILE *file = fopen("/proc/cpuinfo", "r");
    snprintf(buffer, capacity, "unknown processor");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) == 0 && colon != NULL) {
            colon[strcspn(colon, "\n")] = '\0';
            snprintf(buffer, capacity, "%.100s", colon + 1 + strspn(colon + 1, " "));
            break;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
}

static uint64_t memory_bytes(void)
{
    long pages = sysconf(_SC_PHYS_PAGES);
    long page = sysconf(_SC_PAGESIZE);
    return pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0;
}

static const char *window_type(const bench_run *run)
{
    return run->args->model.kv != NULL ? run->args->model.kv : "f16";
}

/* ---- tables ------------------------------------------------------------------------------------- */

/* Column widths of the text; 0: as long as it is. Negative: to the left. */
typedef struct table {
    bool markdown;
    int columns;
    const int *width;
} table;

static void print_cells(const table *t, char cells[CELLS][CELL_BYTES])
{
    if (t->markdown) {
        tool_out("|");
        for (int i = 0; i < t->columns; i++) {
            const char *text = cells[i] + strspn(cells[i], " ");
            tool_out(" %s |", text);
        }
        tool_out("\n");
        return;
    }
    char line[CELLS * CELL_BYTES];
    size_t at = 0;
    for (int i = 0; i < t->columns; i++) {
        at += (size_t)snprintf(line + at, sizeof line - at, "%s%*s", i == 0 ? "" : " ", t->width[i],
                               cells[i]);
    }
    while (at > 0 && line[at - 1] == ' ') {
        at--;
    }
    tool_out("%.*s\n", (int)at, line);
}

static void print_header(const table *t, const char *const *titles)
{
    char cells[CELLS][CELL_BYTES];
    tool_out("\n");
    for (int i = 0; i < t->columns; i++) {
        snprintf(cells[i], CELL_BYTES, "%s", titles[i]);
    }
    print_cells(t, cells);
    if (t->markdown) {
        tool_out("|");
        for (int i = 0; i < t->columns; i++) {
            tool_out(t->width[i] < 0 ? "---|" : "---:|");
        }
        tool_out("\n");
    }
}

/* One thread and all threads side by side: rows of one thread come first, in the same order. */
static void print_limits(const bench_run *run, bool markdown)
{
    static const int width[] = {-26, 17, 17, 4};
    static const char *const one[] = {"limit of the machine", "1 thread", "n"};
    static const int width_one[] = {-26, 17, 4};
    bool both = run->threads > 1;
    table t = {markdown, both ? 4 : 3, both ? width : width_one};
    char all[24];
    snprintf(all, sizeof all, "%u threads", run->threads);
    const char *const two[] = {"limit of the machine", "1 thread", all, "n"};
    uint32_t rows = both ? run->limit_count / 2 : run->limit_count;
    if (rows == 0 || run->limits[0].samples.count == 0) {
        return;
    }
    print_header(&t, both ? two : one);
    for (uint32_t i = 0; i < rows; i++) {
        char cells[CELLS][CELL_BYTES];
        const bench_limit *limit = &run->limits[i];
        snprintf(cells[0], CELL_BYTES, "%s", limit->name);
        format_value(cells[1], CELL_BYTES, limit->unit, bench_median(&limit->samples));
        if (both) {
            format_value(cells[2], CELL_BYTES, limit->unit, bench_median(&run->limits[rows + i].samples));
        }
        snprintf(cells[t.columns - 1], CELL_BYTES, "%u", limit->samples.count);
        print_cells(&t, cells);
    }
}

static void print_results(const bench_run *run, bool markdown)
{
    static const int width[] = {-30, 14, 14, 7, -27, 2};
    static const char *const titles[] = {"result", "", "rate", "share", "of the limit", "n"};
    table t = {markdown, 6, width};
    bool any = false;
    for (uint32_t i = 0; i < run->row_count; i++) {
        const bench_row *row = &run->rows[i];
        char cells[CELLS][CELL_BYTES];
        if (row->value.count == 0) {
            continue;
        }
        if (!any) {
            print_header(&t, titles);
            any = true;
        }
        memset(cells, 0, sizeof cells);
        snprintf(cells[0], CELL_BYTES, "%s", row->name);
        format_value(cells[1], CELL_BYTES, row->unit, bench_median(&row->value));
        if (row->rate.count != 0) {
            format_value(cells[2], CELL_BYTES, row->rate_unit, bench_median(&row->rate));
        }
        if (row->limit.count != 0) {
            snprintf(cells[3], CELL_BYTES, "%.1f %%", 100.0 * share_of(row));
            snprintf(cells[4], CELL_BYTES, "%.1f %s", bench_median(&row->limit) * 1e-9, row->limit_name);
        }
        snprintf(cells[5], CELL_BYTES, "%u", row->value.count);
        print_cells(&t, cells);
    }
}

static void print_peers(const bench_run *run, bool markdown)
{
    static const int width[] = {-30, 17, 17, 9, 6};
    static const char *const titles[] = {"compared", "bitaxon", "llama.cpp", "ratio", "n"};
    table t = {markdown, 5, width};
    if (run->peer_count == 0) {
        return;
    }
    print_header(&t, titles);
    for (uint32_t i = 0; i < run->peer_count; i++) {
        const bench_peer_row *peer = &run->peers[i];
        const bench_row *row = bench_row_find(run, peer->key);
        char cells[CELLS][CELL_BYTES];
        memset(cells, 0, sizeof cells);
        snprintf(cells[0], CELL_BYTES, "%s", peer->name);
        format_value(cells[2], CELL_BYTES, BENCH_TOKENS, bench_median(&peer->value));
        snprintf(cells[4], CELL_BYTES, "%u/%u", row != NULL ? row->value.count : 0, peer->value.count);
        if (row != NULL) {
            format_value(cells[1], CELL_BYTES, BENCH_TOKENS, bench_median(&row->value));
            snprintf(cells[3], CELL_BYTES, "%.2f", bench_median(&row->value) / bench_median(&peer->value));
        }
        print_cells(&t, cells);
    }
    tool_out("%sllama.cpp: %s\n", markdown ? "\n" : "", run->peer_name);
}

static double stolen_percent(const bench_run *run)
{
    double stolen, ticks;
    bench_stolen(&stolen, &ticks);
    return ticks > run->ticks ? 100.0 * (stolen - run->stolen) / (ticks - run->ticks) : 0.0;
}

static void print_text(const bench_run *run, bool markdown)
{
    char name[128];
    char text[3][TOOL_NUMBER_BYTES];
    const bench_facts *facts = &run->facts;
    const char *line = markdown ? "* " : "";
    cpu_name(name, sizeof name);
    tool_out("%smachine  %s, %u CPUs, %s\n", line, name, bench_cpus(), tool_bytes_text(memory_bytes(), text[0]));
    tool_out("%slibrary  %s\n", line, bitaxon_build_info());
    if (run->model != NULL) {
        tool_out("%smodel    %s, %s parameters, %s active\n", line, run->path,
                 tool_count_text(facts->parameters, text[0]), tool_count_text(facts->active, text[1]));
        tool_out("%s         %s of weights and %s of state a token, %s a token in the window\n", line,
                 tool_bytes_text((uint64_t)bench_weights_bytes(facts, 1), text[0]),
                 tool_bytes_text((uint64_t)facts->state_bytes, text[1]),
                 tool_bytes_text((uint64_t)facts->kv_bytes, text[2]));
        tool_out("%sruns on  %u threads, kernels %s, accuracy %s, window in %s\n", line, run->threads,
                 facts->kernels, facts->accuracy, window_type(run));
    }
    print_limits(run, markdown);
    print_results(run, markdown);
    print_peers(run, markdown);
    if (run->stopped || run->left_out_count != 0) {
        tool_out("\n");
    }
    if (run->stopped) {
        tool_out("%sended early: %s\n", line, run->stop_reason);
        for (uint32_t i = 0; i < run->row_count; i++) {
            if (run->rows[i].value.count == 0) {
                tool_out("%sbegun, not finished: %s\n", line, run->rows[i].name);
            }
        }
    }
    for (uint32_t i = 0; i < run->left_out_count; i++) {
        tool_out("%sleft out: %s\n", line, run->left_out[i]);
    }
    tool_out("\n%smedians of n, limits measured before and after each result; %.0f s in all\n", line,
             bench_seconds(run));
    double stolen = stolen_percent(run);
    if (stolen >= 0.1) {
        tool_out("%sthe hypervisor gave %.1f %% of the processors' time to others\n", line, stolen);
    }
}

/* ---- JSON ------------------------------------------------------------------------------------------ */

static void set_samples(json_t *object, const char *prefix, const bench_samples *samples)
{
    char key[32];
    tool_json_set_real(object, prefix, bench_median(samples));
    snprintf(key, sizeof key, "%s_min", prefix);
    tool_json_set_real(object, key, bench_least(samples));
    snprintf(key, sizeof key, "%s_max", prefix);
    tool_json_set_real(object, key, bench_most(samples));
}

static json_t *limits_json(const bench_run *run)
{
    json_t *array = tool_json_array();
    for (uint32_t i = 0; i < run->limit_count; i++) {
        const bench_limit *limit = &run->limits[i];
        if (limit->samples.count == 0) {
            continue;
        }
        json_t *object = tool_json_object();
        tool_json_set_string(object, "key", limit->key);
        tool_json_set_string(object, "name", limit->name);
        tool_json_set_string(object, "unit", unit_name(limit->unit));
        tool_json_set_integer(object, "threads", limit->threads);
        set_samples(object, "value", &limit->samples);
        tool_json_set_integer(object, "samples", limit->samples.count);
        tool_json_append(array, object);
    }
    return array;
}

static json_t *results_json(const bench_run *run)
{
    json_t *array = tool_json_array();
    for (uint32_t i = 0; i < run->row_count; i++) {
        const bench_row *row = &run->rows[i];
        if (row->value.count == 0) {
            continue;
        }
        json_t *object = tool_json_object();
        tool_json_set_string(object, "key", row->key);
        tool_json_set_string(object, "name", row->name + strspn(row->name, " "));
        tool_json_set_string(object, "unit", unit_name(row->unit));
        set_samples(object, "value", &row->value);
        tool_json_set_integer(object, "samples", row->value.count);
        if (row->limit.count != 0) {
            tool_json_set_string(object, "rate_unit", unit_name(row->rate_unit));
            set_samples(object, "rate", &row->rate);
            tool_json_set_string(object, "limit_name", row->limit_name);
            set_samples(object, "limit", &row->limit);
            tool_json_set_real(object, "share", share_of(row));
        }
        tool_json_append(array, object);
    }
    return array;
}

static json_t *peers_json(const bench_run *run)
{
    json_t *array = tool_json_array();
    for (uint32_t i = 0; i < run->peer_count; i++) {
        const bench_peer_row *peer = &run->peers[i];
        const bench_row *row = bench_row_find(run, peer->key);
        double ours = row != NULL ? bench_median(&row->value) : (double)NAN;
        json_t *object = tool_json_object();
        tool_json_set_string(object, "key", peer->key);
        tool_json_set_real(object, "bitaxon", ours);
        set_samples(object, "peer", &peer->value);
        tool_json_set_integer(object, "samples", peer->value.count);
        tool_json_set_real(object, "ratio", ours / bench_median(&peer->value));
        tool_json_append(array, object);
    }
    return array;
}

static void print_json(const bench_run *run)
{
    char name[128];
    const bench_facts *facts = &run->facts;
    json_t *object = tool_json_object();
    json_t *machine = tool_json_object();
    cpu_name(name, sizeof name);
    tool_json_set_string(machine, "cpu", name);
    tool_json_set_integer(machine, "cpus", bench_cpus());
    tool_json_set_integer(machine, "memory_bytes", memory_bytes());
    tool_json_set(object, "machine", machine);
    tool_json_set_string(object, "library", bitaxon_build_info());
    tool_json_set_integer(object, "threads", run->threads);
    if (run->model != NULL) {
        json_t *model = tool_json_object();
        tool_json_set_string(model, "path", run->path);
        tool_json_set_string(model, "fingerprint", facts->fingerprint);
        tool_json_set_string(model, "kernels", facts->kernels);
        tool_json_set_string(model, "accuracy", facts->accuracy);
        tool_json_set_string(model, "kv", window_type(run));
        tool_json_set_integer(model, "parameters", facts->parameters);
        tool_json_set_integer(model, "active_parameters", facts->active);
        tool_json_set_integer(model, "window", facts->window);
        tool_json_set_real(model, "weights_bytes_per_token", bench_weights_bytes(facts, 1));
        tool_json_set_real(model, "state_bytes", facts->state_bytes);
        tool_json_set_real(model, "cache_bytes_per_token", facts->kv_bytes);
        tool_json_set(object, "model", model);
    }
    tool_json_set(object, "limits", limits_json(run));
    tool_json_set(object, "results", results_json(run));
    if (run->peer_count != 0) {
        tool_json_set_string(object, "peer", run->peer_name);
        tool_json_set(object, "compared", peers_json(run));
    }
    json_t *left_out = tool_json_array();
    for (uint32_t i = 0; i < run->left_out_count; i++) {
        tool_json_append(left_out, json_string(run->left_out[i]));
    }
    tool_json_set(object, "left_out", left_out);
    tool_json_set(object, "complete", json_boolean(!run->stopped && !run->fewer && run->left_out_count == 0));
    tool_json_set_real(object, "seconds", bench_seconds(run));
    tool_json_set_real(object, "stolen_percent", stolen_percent(run));
    tool_json_print(object);
}

void bench_report(const bench_run *run)
{
    if (run->args->json) {
        print_json(run);
    } else {
        print_text(run, run->args->markdown);
    }
}
