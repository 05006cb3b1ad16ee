/* SPDX-License-Identifier: Apache-2.0 */
/* tool_thermal.h - the options that make a thermal policy, and its readings in words. */
#ifndef BITAXON_TOOL_THERMAL_H
#define BITAXON_TOOL_THERMAL_H

#include "tool_json.h"
#include "tool_options.h"

/* In degrees Celsius, 0: the library's default. */
typedef struct tool_thermal {
    double warm, pause, stop;
    uint32_t power; /* percent of the time that is worked; 0: all */
    double max_rate;
    bool mains_only;
    uint32_t battery_floor;
    const char *sensor;
    const char *root; /* of the tree of sensor files; for looking at another machine's, and tests */
    bool off;         /* --no-thermal, of the commands that compute */
    bool battery;     /* half of the time, and stop at 20 percent, where nothing else is given */
    bool graded;      /* slower by resting more the hotter it is; training does so */
} tool_thermal;

/* Rows of a command's option table. */
#define TOOL_THERMAL_OPTIONS(t)                                                                    \
    {TOOL_KIND_REAL, "temp-warm", 0, "CELSIUS", "work slower from here on (default 75)",           \
     &(t)->warm, -40, 150, NULL},                                                                  \
        {TOOL_KIND_REAL, "temp-pause", 0, "CELSIUS",                                               \
         "pause from here on, until 5 degrees below (default 85)", &(t)->pause, -40, 150, NULL},   \
        {TOOL_KIND_REAL, "temp-stop", 0, "CELSIUS", "save and stop from here on (default 95)",     \
         &(t)->stop, -40, 150, NULL},                                                              \
        {TOOL_KIND_U32, "power", 0, "PERCENT", "work this part of the time, rest the others",      \
         &(t)->power, 1, 100, NULL},                                                               \
        {TOOL_KIND_REAL, "max-rate", 0, "N", "at most so many tokens per second", &(t)->max_rate,  \
         0.001, 1e9, NULL},                                                                        \
        TOOL_FLAG("mains-only", 0, &(t)->mains_only, "pause while on battery"),                    \
        {TOOL_KIND_U32, "battery-floor", 0, "PERCENT", "stop on battery at this charge",           \
         &(t)->battery_floor, 1, 100, NULL},                                                       \
        TOOL_TEXT("sensor", 0, "NAME", &(t)->sensor,                                               \
                  "use the temperature sensors whose name contains NAME"),                         \
        TOOL_TEXT("sensor-root", 0, "DIR", &(t)->root, "look for sys/class below DIR (default /)")

#define TOOL_NO_THERMAL_OPTION(t)                                                                  \
    TOOL_FLAG("no-thermal", 0, &(t)->off, "pay no regard to temperature and power")

#define TOOL_BATTERY_OPTION(t)                                                                     \
    TOOL_FLAG("battery", 0, &(t)->battery, "the same as --power 50 --battery-floor 20")

/* NULL and *code after a message when the options do not fit each other. */
bitaxon_thermal *tool_thermal_create(const tool_thermal *options, int *code);
/* For a command that computes: *thermal is NULL with --no-thermal. Without any option the defaults
 * hold and a machine without sensors is no cause for a warning. */
int tool_thermal_open(const tool_thermal *options, bitaxon_thermal **thermal);

/* Where WARM, HOT and CRITICAL begin, in degrees Celsius. */
void tool_thermal_marks(const tool_thermal *options, double marks[3]);

const char *tool_band_name(uint32_t band);
const char *tool_action_name(uint32_t action);
const char *tool_reason_text(uint32_t reason);
/* Text of bitaxon_thermal_info; allocated. */
char *tool_thermal_text(bitaxon_thermal *thermal, const char *key);
/* What a policy knows and did, as a member "thermal" of a JSON object. stats: nullable. */
void tool_thermal_json(json_t *object, bitaxon_thermal *thermal, const bitaxon_stats *stats);
/* "76 C WARM, paused 3 s, 0.35 J/token" for progress lines: what is known of it, of `tokens` so far. */
enum { TOOL_HEAT_BYTES = 96 };
void tool_thermal_short(bitaxon_thermal *thermal, uint64_t tokens, char buffer[TOOL_HEAT_BYTES]);
/* Lines of a table on standard output: temperature, pauses, energy, of which `tokens` have each a
 * part; what is not known is left out. thermal may be NULL. */
void tool_thermal_report(bitaxon_thermal *thermal, uint64_t tokens);
/* A line for a summary on standard error: temperature, pauses, energy and where it was read; nothing
 * when nothing is known and nothing was done. thermal may be NULL. */
void tool_thermal_summary(bitaxon_thermal *thermal, const bitaxon_stats *stats);

#endif
