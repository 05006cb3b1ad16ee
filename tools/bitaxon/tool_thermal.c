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

bitaxon_thermal *tool_thermal_create(const tool_thermal *options, int *code)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_thermal_params params = {.struct_size = sizeof params};
    bitaxon_host host;
    bitaxon_thermal *thermal = NULL;
    tool_host(&host);
    params.host = &host;
    params.warm_mc = milli(options->warm);
    params.hot_mc = milli(options->pause);
    params.critical_mc = milli(options->stop);
    /* A lower pause mark draws the warm mark along, so that one option is enough. */
    if (options->pause != 0 && options->warm == 0 && options->pause <= 75) {
        params.warm_mc = milli(options->pause - 10);
    }
    params.flags = options->mains_only ? BITAXON_THERMAL_MAINS_ONLY : 0;
    params.duty_percent = options->power;
    params.battery_floor = options->battery_floor;
    params.max_tokens_per_second = options->max_rate;
    params.sensor = options->sensor;
    params.root = options->root;
    bitaxon_status status = bitaxon_thermal_create(&params, &thermal, &error);
    *code = status == BITAXON_OK ? TOOL_OK : tool_fail(status, &error);
    return thermal;
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

static double joules(const bitaxon_thermal_status *status)
{
    return (double)status->energy_uj / 1e6;
}

void tool_thermal_json(json_t *object, bitaxon_thermal *thermal)
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
        tool_json_set_real(out, "joules", joules(&s));
    }
    for (size_t i = 0; i < sizeof sources / sizeof sources[0]; i++) {
        char *text = tool_thermal_text(thermal, sources[i]);
        tool_json_set_string(out, sources[i], text);
        free(text);
    }
    tool_json_set(object, "thermal", out);
}

void tool_thermal_short(bitaxon_thermal *thermal, char buffer[TOOL_NUMBER_BYTES])
{
    bitaxon_thermal_status s = status_of(thermal);
    buffer[0] = '\0';
    if (s.known & BITAXON_READ_TEMPERATURE) {
        snprintf(buffer, TOOL_NUMBER_BYTES, "%.0f C %s", s.temperature_mc / 1000.0, tool_band_name(s.band));
    }
}

void tool_thermal_summary(FILE *to, bitaxon_thermal *thermal, uint64_t tokens)
{
    bitaxon_thermal_status s = status_of(thermal);
    char *heat = tool_thermal_text(thermal, "temperature_source");
    char *energy = tool_thermal_text(thermal, "energy_source");
    fprintf(to, "[");
    if (s.known & BITAXON_READ_TEMPERATURE) {
        fprintf(to, "%.1f C, at most %.1f C (%s)", s.temperature_mc / 1000.0, s.max_temperature_mc / 1000.0, heat);
    } else {
        fprintf(to, "temperature not known (sensor: %s)", heat);
    }
    fprintf(to, "; paused %.1f s, rested %.1f s; ", (double)s.paused_ns / 1e9, (double)s.rested_ns / 1e9);
    if (s.known & BITAXON_READ_ENERGY) {
        fprintf(to, "%.1f J", joules(&s));
        if (tokens != 0) {
            fprintf(to, ", %.3f J/token", joules(&s) / (double)tokens);
        }
        fprintf(to, " (%s)", energy);
    } else {
        fprintf(to, "energy not known (%s)", energy);
    }
    fprintf(to, "]\n");
    free(heat);
    free(energy);
}
