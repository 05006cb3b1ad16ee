/* SPDX-License-Identifier: Apache-2.0 */
/* tool_progress.c - one line of progress with rate and time left. It is drawn on standard
 * error when that is a terminal, at most ten times a second and not before a third of a
 * second has passed; in a pipe nothing is drawn. */
#include "tool.h"
#include "tool_thermal.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { FIRST_DELAY_NS = 300000000, REDRAW_NS = 100000000 };

uint64_t tool_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void tool_progress_init(tool_progress *progress)
{
    const char *terminal = getenv("TERM");
    memset(progress, 0, sizeof *progress);
    progress->enabled = isatty(STDERR_FILENO) && terminal != NULL && strcmp(terminal, "dumb") != 0;
    progress->stage = -1;
}

static void format_amount(char *buffer, size_t capacity, const char *unit, double amount)
{
    char text[TOOL_NUMBER_BYTES];
    if (strcmp(unit, "bytes") == 0) {
        tool_bytes_text(amount > 0.0 ? (uint64_t)amount : 0, text);
        snprintf(buffer, capacity, "%s", text);
    } else {
        snprintf(buffer, capacity, "%.*f %s", amount < 10.0 ? 1 : 0, amount, unit);
    }
}

void tool_progress_show(tool_progress *progress, int32_t stage, const char *verb, const char *unit,
                        uint64_t done, uint64_t total)
{
    if (!progress->enabled) {
        return;
    }
    uint64_t now = tool_now_ns();
    if (progress->stage != stage || done < progress->start_done) {
        progress->stage = stage;
        progress->start_ns = now;
        progress->start_done = done;
    }
    if (now - progress->start_ns < FIRST_DELAY_NS || now - progress->shown_ns < REDRAW_NS) {
        return;
    }
    progress->shown_ns = now;
    progress->shown = true;

    double seconds = (double)(now - progress->start_ns) * 1e-9;
    double rate = (double)(done - progress->start_done) / seconds;
    char have[64];
    char speed[64];
    char left[32] = "";
    format_amount(have, sizeof have, unit, (double)done);
    format_amount(speed, sizeof speed, unit, rate);
    if (rate > 0.0 && total >= done) {
        double wait = (double)(total - done) / rate;
        if (wait < 360000.0) {
            unsigned whole = (unsigned)(wait + 0.5);
            if (whole >= 3600) {
                snprintf(left, sizeof left, ", %u:%02u:%02u left", whole / 3600, whole / 60 % 60,
                         whole % 60);
            } else {
                snprintf(left, sizeof left, ", %u:%02u left", whole / 60, whole % 60);
            }
        }
    }
    char heat[TOOL_HEAT_BYTES] = "";
    if (progress->thermal != NULL && strcmp(unit, "tokens") == 0) {
        tool_thermal_short(progress->thermal, done, heat);
    }
    double percent = total != 0 ? 100.0 * (double)done / (double)total : 0.0;
    fprintf(stderr, "\r%s %3.0f%%  %s, %s/s%s%s%s\033[K", verb, percent, have, speed, left,
            heat[0] != '\0' ? "  " : "", heat);
    fflush(stderr);
}

void tool_progress_clear(tool_progress *progress)
{
    if (progress->shown) {
        fputs("\r\033[K", stderr);
        fflush(stderr);
        progress->shown = false;
    }
    progress->stage = -1;
}

int32_t tool_progress_library(void *user, const bitaxon_progress *step)
{
    static const char *const verbs[] = {"working", "loading", "reading", "converting", "checking"};
    int32_t stage = step->stage >= 0 && step->stage <= BITAXON_STAGE_VERIFY ? step->stage : 0;
    tool_progress_show(user, stage, verbs[stage],
                       stage == BITAXON_STAGE_PREFILL ? "tokens" : "bytes", step->done,
                       step->total);
    return tool_signal() != 0 || tool_out_failed();
}
