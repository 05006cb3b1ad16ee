/* SPDX-License-Identifier: Apache-2.0 */
/* tool_thermal.c - a thermal policy from options, and what it says in words. Used by the
 * commands that compute for long and by `bitaxon thermal`. */
#include "tool_thermal.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tool_model.h"

static int32_t milli(double celsius)
{
    return (int32_t)lround(celsius * 1000);
}

/* A lower pause mark draws the warm mark along, so that one option is enough. */
static double lowered_warm(const tool_thermal *options)
{
    bool low = options->pause != 0 && options->warm == 0 && options->pause <= 75;
    return low ? options->pause - 10 : options->warm;
}

void tool_thermal_marks(const tool_thermal *options, double marks[3])
{
    double warm = lowered_warm(options);
    marks[0] = warm != 0 ? warm : 75;
    marks[1] = options->pause != 0 ? options->pause : 85;
    marks[2] = options->stop != 0 ? options->stop : 95;
}

enum { BATTERY_POWER = 50, BATTERY_FLOOR = 20 };

static bitaxon_thermal *create(const tool_thermal *options, bool tell, int *code)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_thermal_params params = {.struct_size = sizeof params};
    bitaxon_host host;
    bitaxon_thermal *thermal = NULL;
    tool_host(&host);
    params.host = tell ? &host : NULL;
    params.warm_mc = milli(lowered_warm(options));
    params.hot_mc = milli(options->pause);
    params.critical_mc = milli(options->stop);
    params.flags = (options->mains_only ? BITAXON_THERMAL_MAINS_ONLY : 0) |
                   (options->graded ? BITAXON_THERMAL_GRADED : 0);
    params.duty_percent =
        options->battery && options->power == 0 ? (uint32_t)BATTERY_POWER : options->power;
    params.battery_floor = options->battery && options->battery_floor == 0
                               ? (uint32_t)BATTERY_FLOOR
                               : options->battery_floor;
    params.max_tokens_per_second = options->max_rate;
    params.sensor = options->sensor;
    params.root = options->root;
    bitaxon_status status = bitaxon_thermal_create(&params, &thermal, &error);
    *code = status == BITAXON_OK ? TOOL_OK : tool_fail(status, &error);
    return thermal;
}

bitaxon_thermal *tool_thermal_create(const tool_thermal *options, int *code)
{
    return create(options, true, code);
}

int tool_thermal_open(const tool_thermal *options, bitaxon_thermal **thermal)
{
    bool asked = options->warm != 0 || options->pause != 0 || options->stop != 0 || options->sensor != NULL ||
                 options->root != NULL;
    int code = TOOL_OK;
    *thermal = NULL;
    if (options->battery && (options->off || options->mains_only)) {
        return tool_usage_error("", "the settings for battery exclude --no-thermal and --mains-only");
    }
    *thermal = options->off ? NULL : create(options, asked, &code);
    return code;
}

const char *tool_band_name(uint32_t band)
{
    static const char *const names[] = {"NORMAL", "WARM", "HOT", "CRITICAL"};
    return band < 4 ? names[band] : "?";
}

const char *tool_action_name(uint32_t action)
{
    static const char *const names[] = {"run", "slow down", "pause", "stop"};
    return action < 4 ? names[action] : "?";
}

const char *tool_reason_text(uint32_t reason)
{
    static const char *const texts[] = {
        "",
        "temperature",
        "it rises fast",
        "the system's thermal pressure",
        "the processor throttled itself",
        "no sensor can be read",
        "the sensor has stopped answering",
        "on battery",
        "battery low",
    };
    return reason < sizeof texts / sizeof texts[0] ? texts[reason] : "?";
}

char *tool_thermal_text(bitaxon_thermal *thermal, const char *key)
{
    size_t need = 0;
    (void)bitaxon_thermal_info(thermal, key, NULL, 0, &need, NULL);
    need += 4096; /* sensors may come meanwhile */
    char *text = tool_alloc(need);
    text[0] = '\0';
    (void)bitaxon_thermal_info(thermal, key, text, need, &need, NULL);
    return text;
}

static bitaxon_thermal_status status_of(bitaxon_thermal *thermal)
{
    bitaxon_thermal_status status = {.struct_size = sizeof status};
    (void)bitaxon_thermal_sample(thermal, &status, NULL);
    return status;
}

void tool_thermal_json(json_t *object, bitaxon_thermal *thermal, const bitaxon_stats *stats)
{
    static const char *const sources[] = {"temperature_source", "power_source", "energy_source"};
    bitaxon_thermal_status s = status_of(thermal);
    json_t *out = tool_json_object();
    if (s.known & BITAXON_READ_TEMPERATURE) {
        tool_json_set_real(out, "celsius", s.temperature_mc / 1000.0);
        tool_json_set_real(out, "max_celsius", s.max_temperature_mc / 1000.0);
        tool_json_set_real(out, "celsius_per_second", s.slope_mc_per_s / 1000.0);
    }
    tool_json_set_string(out, "band", tool_band_name(s.band));
    tool_json_set_string(out, "action", tool_action_name(s.action));
    tool_json_set_string(out, "reason", tool_reason_text(s.reason));
    tool_json_set(out, "stale", json_boolean(s.stale != 0));
    if (s.known & BITAXON_READ_POWER) {
        tool_json_set(out, "on_battery", json_boolean(s.on_battery != 0));
    }
    if (s.known & BITAXON_READ_BATTERY) {
        tool_json_set_integer(out, "battery_percent", s.battery_percent);
    }
    tool_json_set_integer(out, "throttle_events", s.throttle_events);
    tool_json_set_real(out, "paused_seconds", (double)s.paused_ns / 1e9);
    tool_json_set_real(out, "rested_seconds", (double)s.rested_ns / 1e9);
    if (s.known & BITAXON_READ_ENERGY) {
        tool_json_set_real(out, "joules", (double)s.energy_uj / 1e6);
        if (stats != NULL) {
            tool_json_set_real(out, "prefill_joules", (double)stats->prefill_uj / 1e6);
            tool_json_set_real(out, "decode_joules", (double)stats->decode_uj / 1e6);
        }
    }
    for (size_t i = 0; i < sizeof sources / sizeof sources[0]; i++) {
        char *text = tool_thermal_text(thermal, sources[i]);
        tool_json_set_string(out, sources[i], text);
        free(text);
    }
    tool_json_set(object, "thermal", out);
}

void tool_thermal_short(bitaxon_thermal *thermal, uint64_t tokens, char buffer[TOOL_HEAT_BYTES])
{
    bitaxon_thermal_status s = status_of(thermal);
    char heat[24] = "", waits[32] = "", energy[32] = "";
    double waited = (double)(s.paused_ns + s.rested_ns) / 1e9;
    if (s.known & BITAXON_READ_TEMPERATURE) {
        snprintf(heat, sizeof heat, "%.0f C %s", s.temperature_mc / 1000.0, tool_band_name(s.band));
    }
    if (waited >= 0.5) {
        snprintf(waits, sizeof waits, "%spaused %.0f s", heat[0] != '\0' ? ", " : "", waited);
    }
    if ((s.known & BITAXON_READ_ENERGY) && tokens != 0) {
        snprintf(energy, sizeof energy, "%s%.3g J/token", heat[0] != '\0' || waits[0] != '\0' ? ", " : "",
                 (double)s.energy_uj / 1e6 / (double)tokens);
    }
    snprintf(buffer, TOOL_HEAT_BYTES, "%s%s%s", heat, waits, energy);
}

void tool_thermal_report(bitaxon_thermal *thermal, uint64_t tokens)
{
    if (thermal == NULL) {
        return;
    }
    bitaxon_thermal_status s = status_of(thermal);
    if (s.known & BITAXON_READ_TEMPERATURE) {
        char *source = tool_thermal_text(thermal, "temperature_source");
        tool_out("temperature    %.1f C, at most %.1f C (%s), %s\n", s.temperature_mc / 1000.0,
                 s.max_temperature_mc / 1000.0, source, tool_band_name(s.band));
        free(source);
    }
    if (s.paused_ns + s.rested_ns >= 50000000) {
        tool_out("paused         %.1f s, rested %.1f s\n", (double)s.paused_ns / 1e9,
                 (double)s.rested_ns / 1e9);
    }
    if (s.known & BITAXON_READ_ENERGY) {
        char *source = tool_thermal_text(thermal, "energy_source");
        tool_out("energy         %.1f J", (double)s.energy_uj / 1e6);
        if (tokens != 0) {
            tool_out(", %.3g J/token", (double)s.energy_uj / 1e6 / (double)tokens);
        }
        tool_out(" (%s)\n", source);
        free(source);
    }
}

void tool_thermal_summary(bitaxon_thermal *thermal, const bitaxon_stats *stats)
{
    if (thermal == NULL) {
        return;
    }
    bitaxon_thermal_status s = status_of(thermal);
    bool heat = (s.known & BITAXON_READ_TEMPERATURE) != 0, energy = (s.known & BITAXON_READ_ENERGY) != 0;
    if (!heat && !energy && s.paused_ns == 0 && s.rested_ns == 0) {
        return;
    }
    fputs("[", stderr);
    if (heat) {
        char *source = tool_thermal_text(thermal, "temperature_source");
        fprintf(stderr, "%.1f C, at most %.1f C (%s), %s; ", s.temperature_mc / 1000.0,
                s.max_temperature_mc / 1000.0, source, tool_band_name(s.band));
        free(source);
    }
    fprintf(stderr, "paused %.1f s, rested %.1f s", (double)s.paused_ns / 1e9, (double)s.rested_ns / 1e9);
    if (energy) {
        char *source = tool_thermal_text(thermal, "energy_source");
        fprintf(stderr, "; prompt %.1f J", (double)stats->prefill_uj / 1e6);
        if (stats->decode_tokens != 0) {
            fprintf(stderr, ", text %.3f J/token", (double)stats->decode_uj / 1e6 / (double)stats->decode_tokens);
        }
        fprintf(stderr, " (%s)", source);
        free(source);
    }
    fputs("]\n", stderr);
}
