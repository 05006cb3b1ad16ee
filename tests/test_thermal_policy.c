/* SPDX-License-Identifier: Apache-2.0 */
/* test_thermal_policy.c - the state machine of lib/thermal/policy.c with made-up readings and a
 * made-up clock: every transition, leave marks, dwell, lost and absent sensors, pressure,
 * throttling, trend, power, and clocks that jump. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "thermal/bxn_thermal.h"

#define SECOND 1000000000u

static bxn_policy policy_of(const bitaxon_thermal_params *params)
{
    bxn_policy policy;
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_thermal_params none = {.struct_size = sizeof none};
    assert_int_equal(bxn_policy_init(&policy, params != NULL ? params : &none, &error), BITAXON_OK);
    return policy;
}

typedef struct machine {
    bxn_policy policy;
    bxn_policy_state state;
    uint64_t now;
} machine;

static machine machine_of(const bitaxon_thermal_params *params)
{
    machine m = {.policy = policy_of(params), .now = 1000u * (uint64_t)SECOND};
    return m;
}

static bxn_decision feel(machine *m, double seconds, double celsius)
{
    bitaxon_reading reading = {.struct_size = sizeof reading,
                               .known = BITAXON_READ_TEMPERATURE,
                               .temperature_mc = (int32_t)(celsius * 1000)};
    m->now += (uint64_t)(seconds * 1e9);
    return bxn_policy_step(&m->policy, &m->state, &reading, m->now);
}

static bxn_decision give(machine *m, double seconds, bitaxon_reading reading)
{
    m->now += (uint64_t)(seconds * 1e9);
    reading.struct_size = sizeof reading;
    return bxn_policy_step(&m->policy, &m->state, &reading, m->now);
}

static void test_marks(void **state)
{
    (void)state;
    static const struct {
        double celsius;
        uint32_t band, action;
    } steps[] = {
        {20, 0, BITAXON_THERMAL_RUN},       {74.999, 0, BITAXON_THERMAL_RUN},
        {75, 1, BITAXON_THERMAL_NARROW},    {84.999, 1, BITAXON_THERMAL_NARROW},
        {85, 2, BITAXON_THERMAL_PAUSE},     {94.999, 2, BITAXON_THERMAL_PAUSE},
        {95, 3, BITAXON_THERMAL_HALT},      {120, 3, BITAXON_THERMAL_HALT},
        {80, 3, BITAXON_THERMAL_HALT},      {79.999, 1, BITAXON_THERMAL_NARROW}, /* HOT's own mark is passed too */
        {72, 1, BITAXON_THERMAL_NARROW},    {71.999, 0, BITAXON_THERMAL_RUN},
        {96, 3, BITAXON_THERMAL_HALT},      {20, 0, BITAXON_THERMAL_RUN},
        {86, 2, BITAXON_THERMAL_PAUSE},     {80, 2, BITAXON_THERMAL_PAUSE},
        {79.999, 1, BITAXON_THERMAL_NARROW}, {74, 1, BITAXON_THERMAL_NARROW},
        {60, 0, BITAXON_THERMAL_RUN},
    };
    machine m = machine_of(NULL);
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        bxn_decision d = feel(&m, 3, steps[i].celsius);
        assert_int_equal(d.band, steps[i].band);
        assert_int_equal(d.action, steps[i].action);
        assert_int_equal(d.reason, d.action == BITAXON_THERMAL_RUN ? BITAXON_REASON_NONE : BITAXON_REASON_TEMPERATURE);
    }
    assert_int_equal(m.state.max_mc, 120000);
    assert_int_equal(m.state.transitions, 10);
}

/* From every band to every band, in one step when dwell has passed. */
static void test_all_transitions(void **state)
{
    (void)state;
    static const double at[4] = {50, 78, 88, 99}, down[4] = {50, 74, 83, 99};
    for (uint32_t from = 0; from < 4; from++) {
        for (uint32_t to = 0; to < 4; to++) {
            machine m = machine_of(NULL);
            assert_int_equal(feel(&m, 1, at[from]).band, from);
            /* 83 leaves nothing: CRITICAL goes down below 80 only. */
            uint32_t want = from == 3 && to == 2 ? 3 : to;
            assert_int_equal(feel(&m, 2.5, to < from ? down[to] : at[to]).band, want);
        }
    }
}

static void test_dwell(void **state)
{
    (void)state;
    machine m = machine_of(NULL);
    assert_int_equal(feel(&m, 1, 86).band, BITAXON_BAND_HOT);
    assert_int_equal(feel(&m, 1, 40).band, BITAXON_BAND_HOT);
    assert_int_equal(feel(&m, 0.99, 40).band, BITAXON_BAND_HOT);
    assert_int_equal(feel(&m, 0.01, 40).band, BITAXON_BAND_NORMAL);
    assert_int_equal(feel(&m, 0, 99).band, BITAXON_BAND_CRITICAL); /* up needs no dwell */
}

static void test_lost_sensor(void **state)
{
    (void)state;
    machine m = machine_of(NULL);
    bitaxon_reading nothing = {0};
    assert_int_equal(feel(&m, 1, 50).band, BITAXON_BAND_NORMAL);
    bxn_decision d = give(&m, 1, nothing);
    assert_true(d.stale);
    assert_int_equal(d.action, BITAXON_THERMAL_RUN);
    d = give(&m, 8.9, nothing);
    assert_int_equal(d.action, BITAXON_THERMAL_RUN);
    d = give(&m, 0.1, nothing);
    assert_int_equal(d.band, BITAXON_BAND_HOT);
    assert_int_equal(d.action, BITAXON_THERMAL_PAUSE);
    assert_int_equal(d.reason, BITAXON_REASON_SENSOR_LOST);
    d = give(&m, 1000, nothing); /* it is never taken for cold */
    assert_int_equal(d.action, BITAXON_THERMAL_PAUSE);
    d = feel(&m, 1, 50);
    assert_false(d.stale);
    assert_int_equal(d.band, BITAXON_BAND_NORMAL);
    /* Nonsense is no reading. */
    assert_int_equal(feel(&m, 1, 90).band, BITAXON_BAND_HOT);
    assert_true(feel(&m, 3, -273).stale);
    assert_int_equal(feel(&m, 3, 400).band, BITAXON_BAND_HOT);
    /* Lost while CRITICAL stays CRITICAL. */
    assert_int_equal(feel(&m, 1, 99).band, BITAXON_BAND_CRITICAL);
    assert_int_equal(give(&m, 30, nothing).band, BITAXON_BAND_CRITICAL);
}

static void test_no_sensor(void **state)
{
    (void)state;
    bitaxon_reading nothing = {0};
    machine m = machine_of(NULL);
    for (int i = 0; i < 100; i++) {
        bxn_decision d = give(&m, 10, nothing);
        assert_int_equal(d.action, BITAXON_THERMAL_RUN);
        assert_int_equal(d.reason, BITAXON_REASON_NO_SENSOR);
    }
    bitaxon_thermal_params narrow = {.struct_size = sizeof narrow, .no_sensor = BITAXON_NO_SENSOR_NARROW};
    m = machine_of(&narrow);
    assert_int_equal(give(&m, 1, nothing).action, BITAXON_THERMAL_NARROW);
    assert_int_equal(give(&m, 100, nothing).action, BITAXON_THERMAL_NARROW);
}

static void test_pressure_and_throttling(void **state)
{
    (void)state;
    machine m = machine_of(NULL);
    bitaxon_reading r = {.known = BITAXON_READ_PRESSURE};
    for (int32_t p = 0; p < 4; p++) {
        r.pressure = p;
        bxn_decision d = give(&m, 3, r);
        assert_int_equal(d.band, p);
        assert_int_equal(d.reason, p == 0 ? BITAXON_REASON_NONE : BITAXON_REASON_PRESSURE);
    }
    r.pressure = 1;
    assert_int_equal(give(&m, 3, r).band, BITAXON_BAND_WARM);
    /* The higher of the two counts, and both must be low to go down. */
    r.known |= BITAXON_READ_TEMPERATURE;
    r.temperature_mc = 88000;
    assert_int_equal(give(&m, 3, r).band, BITAXON_BAND_HOT);
    r.temperature_mc = 50000;
    r.pressure = 2;
    assert_int_equal(give(&m, 3, r).band, BITAXON_BAND_HOT);
    r.pressure = 0;
    assert_int_equal(give(&m, 3, r).band, BITAXON_BAND_NORMAL);

    m = machine_of(NULL);
    bitaxon_reading t = { .known = BITAXON_READ_TEMPERATURE | BITAXON_READ_THROTTLE,
                          .temperature_mc = 60000,
                          .throttle_count = 7 };
    assert_int_equal(give(&m, 1, t).band, BITAXON_BAND_NORMAL); /* what was before is not ours */
    t.throttle_count = 9;
    bxn_decision d = give(&m, 1, t);
    assert_int_equal(d.action, BITAXON_THERMAL_NARROW);
    assert_int_equal(d.reason, BITAXON_REASON_THROTTLED);
    assert_int_equal(m.state.throttle_events, 2);
    assert_int_equal(give(&m, 3, t).band, BITAXON_BAND_NORMAL);
    t.throttle_count = 1; /* counters that start again are no event */
    assert_int_equal(give(&m, 1, t).band, BITAXON_BAND_NORMAL);
}

static void test_trend(void **state)
{
    (void)state;
    bitaxon_thermal_params early = {.struct_size = sizeof early, .flags = BITAXON_THERMAL_EARLY};
    machine with = machine_of(&early), without = machine_of(NULL);
    bool acted = false;
    for (double c = 50; c < 75; c += 1.5) {
        bxn_decision a = feel(&with, 1, c), b = feel(&without, 1, c);
        assert_int_equal(b.action, BITAXON_THERMAL_RUN);
        if (c > 53)
            assert_in_range(a.slope_mc_per_s, 1490, 1510);
        /* 1.5 C a second leads to 85 from 70 in 10 s. */
        if (c < 69.9 || c <= 53)
            assert_int_equal(a.action, BITAXON_THERMAL_RUN);
        if (c > 70.1) {
            assert_int_equal(a.action, BITAXON_THERMAL_NARROW);
            assert_int_equal(a.reason, BITAXON_REASON_TREND);
            acted = true;
        }
    }
    assert_true(acted);
    /* Readings that come often do not shorten what the trend looks back on. */
    machine often = machine_of(&early);
    for (int i = 0; i < 2000; i++) {
        bxn_decision a = feel(&often, 0.01, 50 + 0.5 * i / 100);
        if (i > 300)
            assert_in_range(a.slope_mc_per_s, 490, 510);
    }
    machine cooling = machine_of(&early);
    for (double c = 74; c > 60; c -= 1)
        assert_int_equal(feel(&cooling, 1, c).action, BITAXON_THERMAL_RUN);
}

static void test_power(void **state)
{
    (void)state;
    bitaxon_thermal_params p = {.struct_size = sizeof p, .flags = BITAXON_THERMAL_MAINS_ONLY, .battery_floor = 20};
    machine m = machine_of(&p);
    bitaxon_reading r = {.known = BITAXON_READ_TEMPERATURE | BITAXON_READ_POWER | BITAXON_READ_BATTERY,
                         .temperature_mc = 50000, .battery_percent = 50};
    assert_int_equal(give(&m, 1, r).action, BITAXON_THERMAL_RUN);
    r.on_battery = 1;
    bxn_decision d = give(&m, 1, r);
    assert_int_equal(d.action, BITAXON_THERMAL_PAUSE);
    assert_int_equal(d.reason, BITAXON_REASON_ON_BATTERY);
    bitaxon_reading silent = r; /* power that stops being readable is as it was */
    silent.known = BITAXON_READ_TEMPERATURE;
    assert_int_equal(give(&m, 1, silent).action, BITAXON_THERMAL_PAUSE);
    r.battery_percent = 20;
    d = give(&m, 1, r);
    assert_int_equal(d.action, BITAXON_THERMAL_HALT);
    assert_int_equal(d.reason, BITAXON_REASON_BATTERY_LOW);
    r.on_battery = 0;
    assert_int_equal(give(&m, 1, r).action, BITAXON_THERMAL_RUN);
    r.temperature_mc = 99000; /* heat is told first */
    r.on_battery = 1;
    d = give(&m, 1, r);
    assert_int_equal(d.action, BITAXON_THERMAL_HALT);
    assert_int_equal(d.reason, BITAXON_REASON_TEMPERATURE);
}

/* Field by field: what lies between the fields may differ. */
static void assert_same_decision(const bxn_decision *a, const bxn_decision *b)
{
    assert_int_equal(a->band, b->band);
    assert_int_equal(a->action, b->action);
    assert_int_equal(a->reason, b->reason);
    assert_int_equal(a->stale, b->stale);
    assert_int_equal(a->slope_mc_per_s, b->slope_mc_per_s);
    assert_int_equal(a->rest_permille, b->rest_permille);
    assert_int_equal(a->narrow, b->narrow);
}

static void test_clock(void **state)
{
    (void)state;
    machine m = machine_of(NULL);
    bitaxon_reading nothing = {0};
    feel(&m, 1, 86);
    m.now -= 500u * (uint64_t)SECOND; /* backwards: no time has passed */
    assert_int_equal(feel(&m, 0, 50).band, BITAXON_BAND_HOT);
    assert_int_equal(feel(&m, 1.9, 50).band, BITAXON_BAND_HOT);
    assert_int_equal(feel(&m, 0.2, 50).band, BITAXON_BAND_NORMAL);
    assert_false(give(&m, 1, nothing).action == BITAXON_THERMAL_PAUSE);
    m.now -= 100u * (uint64_t)SECOND;
    assert_int_equal(give(&m, 0, nothing).action, BITAXON_THERMAL_RUN);
    /* A long sleep is not spent in a band, and a sensor that answers after it is not lost. */
    m = machine_of(NULL);
    feel(&m, 1, 50);
    assert_int_equal(feel(&m, 3600, 50).band, BITAXON_BAND_NORMAL);
    assert_true(m.state.band_ns[0] <= 10u * (uint64_t)SECOND);
    machine one = machine_of(NULL), two = one; /* a pure function: the same twice */
    for (int i = 0; i < 200; i++) {
        double c = 40 + (i * 37 % 61);
        bxn_decision a = feel(&one, 0.7, c), b = feel(&two, 0.7, c);
        assert_same_decision(&a, &b);
    }
    assert_int_equal(one.state.transitions, two.state.transitions);
    assert_true(one.state.transitions > 10);
    for (int i = 0; i < 4; i++)
        assert_int_equal(one.state.band_ns[i], two.state.band_ns[i]);
}

static void test_bad_params(void **state)
{
    (void)state;
    static const struct {
        bitaxon_thermal_params p;
        bitaxon_status status;
        const char *name;
    } cases[] = {
        {{.warm_mc = 85000}, BITAXON_INVALID_ARGUMENT, "hot_mc"},
        {{.hot_mc = 95000}, BITAXON_INVALID_ARGUMENT, "critical_mc"},
        {{.hot_mc = 74000}, BITAXON_INVALID_ARGUMENT, "warm_mc (75000)"},
        {{.warm_leave_mc = 75000}, BITAXON_INVALID_ARGUMENT, "warm_leave_mc"},
        {{.hot_leave_mc = 86000}, BITAXON_INVALID_ARGUMENT, "hot_leave_mc"},
        {{.hot_leave_mc = 71000}, BITAXON_INVALID_ARGUMENT, "hot_leave_mc"},
        {{.critical_leave_mc = 95000}, BITAXON_INVALID_ARGUMENT, "critical_leave_mc"},
        {{.critical_mc = 200000}, BITAXON_INVALID_ARGUMENT, "critical_mc is 200000"},
        {{.warm_leave_mc = -50000}, BITAXON_INVALID_ARGUMENT, "warm_leave_mc is -50000"},
        {{.warm_mc = INT32_MIN}, BITAXON_INVALID_ARGUMENT, "warm_mc is -2147483648"},
        {{.hot_mc = INT32_MIN, .hot_leave_mc = 1}, BITAXON_INVALID_ARGUMENT, "hot_mc is -2147483648"},
        {{.critical_mc = INT32_MIN, .critical_leave_mc = 1}, BITAXON_INVALID_ARGUMENT, "critical_mc is -2147483648"},
        {{.flags = 64}, BITAXON_UNSUPPORTED, "flags"},
        {{.no_sensor = 3}, BITAXON_INVALID_ARGUMENT, "no_sensor"},
        {{.battery_floor = 101}, BITAXON_INVALID_ARGUMENT, "battery_floor"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bxn_policy policy;
        bitaxon_error error = BITAXON_ERROR_INIT;
        assert_int_equal(bxn_policy_init(&policy, &cases[i].p, &error), cases[i].status);
        assert_non_null(strstr(error.message, cases[i].name));
    }
    /* Marks that are moved take their leave marks along. */
    bitaxon_thermal_params cool = {.warm_mc = 55000, .hot_mc = 60000, .critical_mc = 70000};
    bxn_policy policy = policy_of(&cool);
    assert_int_equal(policy.leave_mc[1], 52000);
    assert_int_equal(policy.leave_mc[2], 55000);
}

static void test_counters(void **state)
{
    (void)state;
    bxn_counter c = {.range = 1000};
    assert_int_equal(bxn_counter_add(&c, 900), 0);
    assert_int_equal(bxn_counter_add(&c, 990), 90);
    assert_int_equal(bxn_counter_add(&c, 10), 110);
    assert_int_equal(bxn_counter_add(&c, 10), 110);
    bxn_counter plain = {0};
    bxn_counter_add(&plain, 500);
    assert_int_equal(bxn_counter_add(&plain, 100), 0); /* it started anew: nothing is made up */
    assert_int_equal(bxn_counter_add(&plain, 130), 30);
}

/* Graded: the share of rest by temperature, within WARM and because of the temperature only. */
static void test_graded(void **state)
{
    (void)state;
    static const struct {
        double celsius;
        uint32_t permille;
    } steps[] = {
        {74.9, 0},  {75, 0},    {80, 0},    {80.5, 90}, {81, 180},  {82.5, 450}, {84, 720},
        {84.999, 899}, {85, 0}, {79.9, 0}, {83, 540},  {78, 0},    {71, 0},     {95, 0},
    };
    bitaxon_thermal_params params = {.struct_size = sizeof params,
                                     .flags = BITAXON_THERMAL_GRADED | BITAXON_THERMAL_EARLY |
                                              BITAXON_THERMAL_MAINS_ONLY};
    machine m = machine_of(&params), plain = machine_of(NULL);
    uint32_t last = 0;
    for (int32_t mc = 60000; mc < 100000; mc += 50) { /* never less when it is hotter, never all */
        uint32_t rest = bxn_policy_rest(&m.policy, mc);
        assert_true(rest >= last && rest <= BXN_REST_MOST);
        last = rest;
    }
    assert_int_equal(last, BXN_REST_MOST);
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        bxn_decision d = feel(&m, 30, steps[i].celsius), half = feel(&plain, 30, steps[i].celsius);
        assert_int_equal(d.rest_permille, steps[i].permille);
        assert_false(d.narrow);
        assert_int_equal(d.band, half.band);
        assert_int_equal(d.action, half.action);
        assert_int_equal(half.rest_permille, 0);
        assert_true(half.narrow == (half.action == BITAXON_THERMAL_NARROW));
    }
    /* Silent for a moment: what the last reading asked for. */
    assert_int_equal(feel(&m, 10, 60).band, BITAXON_BAND_NORMAL);
    assert_int_equal(feel(&m, 10, 82).rest_permille, 360);
    bxn_decision d = give(&m, 1, (bitaxon_reading){0});
    assert_true(d.stale && d.rest_permille == 360);
    /* Without a temperature that tells how much: fewer threads, as without the flag. */
    machine p = machine_of(&params);
    d = give(&p, 1, (bitaxon_reading){.known = BITAXON_READ_PRESSURE, .pressure = 1});
    assert_true(d.narrow && d.rest_permille == 0);
    machine t = machine_of(&params);
    for (int i = 0; i < 12; i++)
        d = feel(&t, 1, 50 + 2 * i);
    assert_int_equal(d.reason, BITAXON_REASON_TREND);
    assert_true(d.narrow && d.rest_permille == 0);
    /* A pause for another reason is no rest. */
    assert_int_equal(feel(&p, 10, 83).rest_permille, 540);
    d = give(&p, 1, (bitaxon_reading){.known = BITAXON_READ_TEMPERATURE | BITAXON_READ_POWER, .temperature_mc = 83000,
                                      .on_battery = 1});
    assert_int_equal(d.action, BITAXON_THERMAL_PAUSE);
    assert_int_equal(d.rest_permille, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_marks),       cmocka_unit_test(test_all_transitions),
        cmocka_unit_test(test_dwell),       cmocka_unit_test(test_lost_sensor),
        cmocka_unit_test(test_no_sensor),   cmocka_unit_test(test_pressure_and_throttling),
        cmocka_unit_test(test_trend),       cmocka_unit_test(test_power),
        cmocka_unit_test(test_clock),       cmocka_unit_test(test_bad_params),
        cmocka_unit_test(test_counters),    cmocka_unit_test(test_graded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
