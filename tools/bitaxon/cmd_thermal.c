/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_thermal.c - `bitaxon thermal`: what the sensors say now, which of them count, and what
 * the policy would do. */
#include "tool.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tool_thermal.h"

static const tool_usage usage = {
    "thermal", "",
    "Show the temperature, power and energy sensors of this machine, which of them a policy\n"
    "uses, and what it would do now. With --watch a line for each change of the readings.",
    0, 0};

static void print_sources(bitaxon_thermal *thermal)
{
    static const char *const rows[][2] = {
        {"temperature_source", "temperature"}, {"power_source", "power"}, {"energy_source", "energy"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char *text = tool_thermal_text(thermal, rows[i][0]);
        tool_out("%-12s %s\n", rows[i][1], text);
        free(text);
    }
    char *list = tool_thermal_text(thermal, "sensors");
    if (list[0] != '\0') {
        tool_out("\nall temperature sensors, those in use first\n");
    }
    for (char *line = list; *line != '\0';) {
        char *end = line + strcspn(line, "\n");
        char *tab = memchr(line, '\t', (size_t)(end - line));
        if (tab == NULL) {
            break;
        }
        double value = strtod(tab + 1, NULL);
        if (tab[1] == '?') {
            tool_out("  %-32.*s       ?\n", (int)(tab - line), line);
        } else {
            tool_out("  %-32.*s %6.1f C\n", (int)(tab - line), line, value / 1000);
        }
        line = *end == '\0' ? end : end + 1;
    }
    free(list);
}

static void print_now(bitaxon_thermal *thermal, bool clock)
{
    bitaxon_thermal_status s = {.struct_size = sizeof s};
    (void)bitaxon_thermal_sample(thermal, &s, NULL);
    if (clock) {
        char text[32];
        time_t now = time(NULL);
        struct tm parts;
        strftime(text, sizeof text, "%H:%M:%S", localtime_r(&now, &parts));
        tool_out("%s  ", text);
    }
    if (s.known & BITAXON_READ_TEMPERATURE) {
        tool_out("%.1f C (%+.2f C/s)  ", s.temperature_mc / 1000.0, s.slope_mc_per_s / 1000.0);
    } else {
        tool_out("temperature not known  ");
    }
    tool_out("%s: %s", tool_band_name(s.band), tool_action_name(s.action));
    if (s.reason != BITAXON_REASON_NONE) {
        tool_out(" (%s)", tool_reason_text(s.reason));
    }
    if (s.known & BITAXON_READ_POWER) {
        tool_out("  %s", s.on_battery ? "on battery" : "on mains");
    }
    if (s.known & BITAXON_READ_BATTERY) {
        tool_out(" %u%%", (unsigned)s.battery_percent);
    }
    tool_out("\n");
    tool_out_flush();
}

int cmd_thermal(int argc, char **argv)
{
    tool_thermal policy = {0};
    bool json = false;
    double watch = 0;
    const tool_option options[] = {
        TOOL_THERMAL_OPTIONS(&policy),
        {TOOL_KIND_REAL, "watch", 'w', "SECONDS", "a line every SECONDS until interrupted", &watch, 0.1, 3600, NULL},
        TOOL_FLAG("json", 0, &json, "print one JSON object"), TOOL_OPTIONS_END};
    int first = 0;
    int code = TOOL_OK;
    if (!tool_parse(&usage, options, argc, argv, &first, &code)) {
        return code;
    }
    if (json && watch > 0) {
        return tool_usage_error("thermal", "--json and --watch exclude each other");
    }
    bitaxon_thermal *thermal = tool_thermal_create(&policy, &code);
    if (thermal == NULL) {
        return code;
    }
    if (json) {
        json_t *object = tool_json_object();
        tool_thermal_json(object, thermal, NULL);
        tool_json_print(object);
    } else {
        print_sources(thermal);
        tool_out("\n");
        print_now(thermal, watch > 0);
    }
    while (watch > 0 && tool_signal() == 0 && !tool_out_failed()) {
        struct timespec wait = {(time_t)watch, (long)((watch - (double)(time_t)watch) * 1e9)};
        if (nanosleep(&wait, NULL) == 0) {
            print_now(thermal, true);
        }
    }
    bitaxon_thermal_free(thermal);
    return TOOL_OK; /* an interrupt is how a watch ends */
}
