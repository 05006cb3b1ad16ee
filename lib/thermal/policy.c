/* SPDX-License-Identifier: Apache-2.0 */
/* policy.c - from readings to bands to actions: a pure function of parameters, state, reading
 * and clock. Called by gate.c under its lock, and by tests with made-up readings. */
#include "thermal/bxn_thermal.h"

#include <limits.h>
#include <string.h>

#define MS 1000000u
#define LOWEST_MC (-40000) /* what no processor that computes can have is no reading */
#define HIGHEST_MC 150000
#define GAP_NS 5000000000u /* time not asked for (a sleeping machine) is spent in no band */

static int32_t or_default(int32_t value, int32_t otherwise)
{
    return value != 0 ? value : otherwise;
}

static bitaxon_status in_range(const char *name, int32_t value, bitaxon_error *error)
{
    if (value >= LOWEST_MC && value <= HIGHEST_MC)
        return BITAXON_OK;
    return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "%s is %d, allowed are %d to %d", name, value,
                    LOWEST_MC, HIGHEST_MC);
}

bitaxon_status bxn_policy_init(bxn_policy *policy, const bitaxon_thermal_params *params,
                               bitaxon_error *error)
{
    memset(policy, 0, sizeof *policy);
    int32_t *enter = policy->enter_mc, *leave = policy->leave_mc;
    enter[1] = or_default(params->warm_mc, 75000);
    enter[2] = or_default(params->hot_mc, 85000);
    enter[3] = or_default(params->critical_mc, 95000);
    static const char *const entries[4] = {NULL, "warm_mc", "hot_mc", "critical_mc"};
    for (uint32_t b = 1; b < 4; b++) {
        bitaxon_status status = in_range(entries[b], enter[b], error);
        if (status != BITAXON_OK)
            return status;
    }
    /* Leave marks follow entry marks that were moved. */
    leave[1] = or_default(params->warm_leave_mc, enter[1] - 3000);
    leave[2] = or_default(params->hot_leave_mc, enter[2] - 5000);
    leave[3] = or_default(params->critical_leave_mc, leave[2] < enter[3] ? leave[2] : enter[3] - 5000);
    const struct {
        const char *low_name, *high_name;
        int32_t low, high;
        bool equal;
    } order[] = {
        {"warm_leave_mc", "warm_mc", leave[1], enter[1], false},
        {"hot_leave_mc", "hot_mc", leave[2], enter[2], false},
        {"critical_leave_mc", "critical_mc", leave[3], enter[3], false},
        {"warm_mc", "hot_mc", enter[1], enter[2], false},
        {"hot_mc", "critical_mc", enter[2], enter[3], false},
        {"warm_leave_mc", "hot_leave_mc", leave[1], leave[2], true},
    };
    const struct {
        const char *name;
        int32_t value;
    } marks[] = {{"warm_leave_mc", leave[1]}, {"hot_leave_mc", leave[2]}, {"critical_leave_mc", leave[3]}};
    for (size_t i = 0; i < sizeof marks / sizeof marks[0]; i++) {
        bitaxon_status status = in_range(marks[i].name, marks[i].value, error);
        if (status != BITAXON_OK)
            return status;
    }
    for (size_t i = 0; i < sizeof order / sizeof order[0]; i++)
        if (order[i].low > order[i].high || (order[i].low == order[i].high && !order[i].equal))
            return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "%s (%d) must be below %s (%d)",
                            order[i].low_name, order[i].low, order[i].high_name, order[i].high);
    if ((params->flags & ~(uint32_t)(BITAXON_THERMAL_MAINS_ONLY | BITAXON_THERMAL_EARLY | BITAXON_THERMAL_GRADED)) !=
        0)
        return bxn_fail(error, BITAXON_UNSUPPORTED, "flags are 0x%X, known are 0x7", params->flags);
    if (params->no_sensor > BITAXON_NO_SENSOR_REFUSE)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "no_sensor is %u, allowed are 0 to 2",
                        params->no_sensor);
    if (params->battery_floor > 100)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "battery_floor is %u percent",
                        params->battery_floor);
    policy->flags = params->flags;
    policy->no_sensor = params->no_sensor;
    policy->battery_floor = params->battery_floor;
    policy->dwell_ns = (uint64_t)(params->dwell_ms != 0 ? params->dwell_ms : 2000) * MS;
    policy->stale_ns = (uint64_t)(params->stale_ms != 0 ? params->stale_ms : 10000) * MS;
    return BITAXON_OK;
}

static void pass_time(bxn_policy_state *state, uint64_t now_ns)
{
    if (state->begun && now_ns > state->clock_ns) {
        uint64_t passed = now_ns - state->clock_ns;
        state->time_ns += passed;
        state->band_ns[state->band] += passed < GAP_NS ? passed : GAP_NS;
    }
    state->clock_ns = now_ns;
    state->begun = true;
}

/* Points no nearer than lets them reach back as far as the trend looks. */
static void add_trend(bxn_policy_state *state, int32_t mc)
{
    uint32_t last = (state->trend_next + BXN_TREND_POINTS - 1) % BXN_TREND_POINTS;
    if (state->trend_count != 0 &&
        state->time_ns - state->trend[last].time_ns < BXN_TREND_NS / BXN_TREND_POINTS)
        return;
    state->trend[state->trend_next].time_ns = state->time_ns;
    state->trend[state->trend_next].mc = mc;
    state->trend_next = (state->trend_next + 1) % BXN_TREND_POINTS;
    if (state->trend_count < BXN_TREND_POINTS)
        state->trend_count++;
}

/* Slope of the least-squares line through the points of the last 10 s, in thousandths of a
 * degree per second; 0 for fewer than three points or less than a second. */
static int32_t slope(const bxn_policy_state *state)
{
    double n = 0, sum_t = 0, sum_c = 0, sum_tt = 0, sum_tc = 0, first = 0, last = 0;
    for (uint32_t i = 0; i < state->trend_count; i++) {
        uint64_t age = state->time_ns - state->trend[i].time_ns;
        if (age > BXN_TREND_NS)
            continue;
        double t = -(double)age / 1e9, c = (double)state->trend[i].mc;
        first = n == 0 || t < first ? t : first;
        last = n == 0 || t > last ? t : last;
        n++;
        sum_t += t;
        sum_c += c;
        sum_tt += t * t;
        sum_tc += t * c;
    }
    double spread = n * sum_tt - sum_t * sum_t;
    if (n < 3 || last - first < 1 || spread <= 0)
        return 0;
    double value = (n * sum_tc - sum_t * sum_c) / spread;
    return value > 1e6 ? 1000000 : value < -1e6 ? -1000000 : (int32_t)value;
}

static void enter(bxn_policy_state *state, uint32_t band)
{
    if (band != state->band) {
        state->transitions++;
        state->band = band;
    }
    state->band_since_ns = state->time_ns;
}

/* The band after a reading that has a temperature or a pressure; *reason is set when the
 * band is raised or held by something. */
static void follow(const bxn_policy *policy, bxn_policy_state *state, const bitaxon_reading *reading,
                   bool throttled, uint32_t *reason)
{
    uint32_t heat = 0, pressure = 0, least = throttled ? BITAXON_BAND_WARM : BITAXON_BAND_NORMAL;
    bool cool = true; /* below the leave mark of the present band */
    if (reading->known & BITAXON_READ_TEMPERATURE) {
        for (uint32_t b = 1; b < 4; b++)
            if (reading->temperature_mc >= policy->enter_mc[b])
                heat = b;
        cool = state->band == 0 || reading->temperature_mc < policy->leave_mc[state->band];
    }
    if (reading->known & BITAXON_READ_PRESSURE) {
        pressure = reading->pressure < 0 ? 0 : reading->pressure > 3 ? 3 : (uint32_t)reading->pressure;
        cool = cool && pressure < state->band;
    }
    uint32_t up = heat > pressure ? heat : pressure;
    *reason = heat >= pressure ? BITAXON_REASON_TEMPERATURE : BITAXON_REASON_PRESSURE;
    if (least > up) {
        up = least;
        *reason = BITAXON_REASON_THROTTLED;
    }
    if (up > state->band || (throttled && up == state->band)) {
        enter(state, up);
        return;
    }
    if (!cool || up == state->band || state->time_ns - state->band_since_ns < policy->dwell_ns)
        return;
    uint32_t down = state->band - 1; /* the next band whose own leave mark is not passed either */
    while (down > up && (!(reading->known & BITAXON_READ_TEMPERATURE) ||
                         reading->temperature_mc < policy->leave_mc[down]))
        down--;
    enter(state, down);
}

/* From half way on: a controller in proportion to the temperature settles the nearer to HOT, where more work
 * is done, the later it begins to rest, and the more unsteadily; docs/thermal.md has the figures. */
uint32_t bxn_policy_rest(const bxn_policy *policy, int32_t mc)
{
    int64_t hot = policy->enter_mc[BITAXON_BAND_HOT];
    int64_t from = (policy->enter_mc[BITAXON_BAND_WARM] + hot) / 2;
    if (mc <= from)
        return 0;
    return mc >= hot ? BXN_REST_MOST : (uint32_t)((mc - from) * BXN_REST_MOST / (hot - from));
}

bxn_decision bxn_policy_step(const bxn_policy *policy, bxn_policy_state *state,
                             const bitaxon_reading *given, uint64_t now_ns)
{
    bxn_decision decision = {0};
    bitaxon_reading reading = *given;
    if ((reading.known & BITAXON_READ_TEMPERATURE) &&
        (reading.temperature_mc < LOWEST_MC || reading.temperature_mc > HIGHEST_MC))
        reading.known &= ~(uint32_t)BITAXON_READ_TEMPERATURE;
    pass_time(state, now_ns);

    bool throttled = false;
    if (reading.known & BITAXON_READ_THROTTLE) {
        throttled = state->had_throttle && reading.throttle_count > state->throttle_count;
        if (throttled)
            state->throttle_events += reading.throttle_count - state->throttle_count;
        state->throttle_count = reading.throttle_count;
        state->had_throttle = true;
    }
    if (reading.known & BITAXON_READ_TEMPERATURE) {
        state->max_mc = !state->had_temperature || reading.temperature_mc > state->max_mc
                            ? reading.temperature_mc
                            : state->max_mc;
        state->temperature_mc = reading.temperature_mc;
        state->had_temperature = true;
        add_trend(state, reading.temperature_mc);
    }

    bool sensed = (reading.known & (BITAXON_READ_TEMPERATURE | BITAXON_READ_PRESSURE)) != 0;
    uint32_t reason = BITAXON_REASON_NONE;
    if (sensed) {
        state->good_ns = state->time_ns + 1; /* 0: never */
        follow(policy, state, &reading, throttled, &reason);
    } else if (state->good_ns == 0) { /* there never was one */
        uint32_t band =
            policy->no_sensor == BITAXON_NO_SENSOR_NARROW || throttled ? BITAXON_BAND_WARM : BITAXON_BAND_NORMAL;
        bool dwelt = state->time_ns - state->band_since_ns >= policy->dwell_ns;
        if (band > state->band || throttled || (band < state->band && dwelt))
            enter(state, band);
        reason = throttled ? BITAXON_REASON_THROTTLED : BITAXON_REASON_NO_SENSOR;
    } else {
        decision.stale = true;
        reason = BITAXON_REASON_TEMPERATURE; /* the band of the last reading goes on */
        if (state->time_ns + 1 - state->good_ns >= policy->stale_ns) {
            reason = BITAXON_REASON_SENSOR_LOST;
            if (state->band < BITAXON_BAND_HOT)
                enter(state, BITAXON_BAND_HOT);
        }
    }
    if (reading.known & BITAXON_READ_POWER) {
        state->had_power = true;
        state->on_battery = reading.on_battery != 0;
    }
    if (reading.known & BITAXON_READ_BATTERY) {
        state->had_battery = true;
        state->battery_percent = reading.battery_percent;
    }

    decision.band = state->band;
    decision.slope_mc_per_s = slope(state);
    static const uint32_t actions[4] = {BITAXON_THERMAL_RUN, BITAXON_THERMAL_NARROW,
                                        BITAXON_THERMAL_PAUSE, BITAXON_THERMAL_HALT};
    decision.action = actions[state->band];
    decision.reason = decision.action != BITAXON_THERMAL_RUN || reason == BITAXON_REASON_NO_SENSOR
                          ? reason
                          : BITAXON_REASON_NONE;
    if ((policy->flags & BITAXON_THERMAL_EARLY) && decision.action == BITAXON_THERMAL_RUN &&
        state->had_temperature && !decision.stale && decision.slope_mc_per_s > 0 &&
        state->temperature_mc + (int64_t)decision.slope_mc_per_s * 10 >= policy->enter_mc[2]) {
        decision.action = BITAXON_THERMAL_NARROW;
        decision.reason = BITAXON_REASON_TREND;
    }
    bool graded = (policy->flags & BITAXON_THERMAL_GRADED) && decision.reason == BITAXON_REASON_TEMPERATURE;
    decision.narrow = decision.action == BITAXON_THERMAL_NARROW && !graded;
    if (decision.action == BITAXON_THERMAL_NARROW && graded)
        decision.rest_permille = bxn_policy_rest(policy, state->temperature_mc);
    bool on_battery = state->had_power && state->on_battery != 0;
    if (on_battery && (policy->flags & BITAXON_THERMAL_MAINS_ONLY) && decision.action < BITAXON_THERMAL_PAUSE) {
        decision.action = BITAXON_THERMAL_PAUSE;
        decision.reason = BITAXON_REASON_ON_BATTERY;
    }
    if (on_battery && policy->battery_floor != 0 && state->battery_percent <= policy->battery_floor &&
        state->had_battery && decision.action < BITAXON_THERMAL_HALT) {
        decision.action = BITAXON_THERMAL_HALT;
        decision.reason = BITAXON_REASON_BATTERY_LOW;
    }
    if (decision.action >= BITAXON_THERMAL_PAUSE) {
        decision.narrow = false;
        decision.rest_permille = 0;
    }
    return decision;
}
