/* SPDX-License-Identifier: Apache-2.0 */
/* test_thermal.c - the policy object through the public header: sensors in made-up trees of
 * files, pauses and stops with a made-up clock, cancel, duty and rate, energy with counters
 * that wrap, shared use by threads, faults. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include <pthread.h>

#include "api/api.h"
#include "fault_host.h"
#include "tree_fixture.h"

#define SECOND 1000000000u

/* ---- a tree of files ------------------------------------------------------------------- */

static void take(const char *path)
{
    char full[600];
    snprintf(full, sizeof full, "%s/%s", tree, path);
    assert_int_equal(unlink(full), 0);
}

/* ---- a clock and a sensor --------------------------------------------------------------- */

typedef struct world {
    bitaxon_host host;
    uint64_t now, slept;
    double celsius, heating; /* degrees a second; while sleeping: -cooling */
    double cooling;
    uint64_t energy_uj;
    int silent;
    atomic_int *cancel_at_sleep;
    int sleeps;
    char log[4096];
} world;

static uint64_t world_now(void *user) { return ((world *)user)->now; }

static void world_log(void *user, int32_t level, const char *line)
{
    world *w = user;
    (void)level;
    size_t used = strlen(w->log);
    snprintf(w->log + used, sizeof w->log - used, "%s\n", line);
}

static void world_sleep(void *user, uint64_t ns)
{
    world *w = user;
    w->now += ns;
    w->slept += ns;
    w->celsius -= w->cooling * (double)ns / 1e9;
    if (++w->sleeps == 3 && w->cancel_at_sleep != NULL)
        atomic_store(w->cancel_at_sleep, 1);
}

static int32_t world_read(void *user, bitaxon_reading *out)
{
    world *w = user;
    assert_int_equal(out->struct_size, sizeof *out);
    if (w->silent)
        return 1;
    out->known = BITAXON_READ_TEMPERATURE | BITAXON_READ_ENERGY;
    out->temperature_mc = (int32_t)(w->celsius * 1000);
    out->energy_uj = w->energy_uj;
    return 0;
}

static bitaxon_thermal *policy_in(world *w, bitaxon_thermal_params params)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_thermal *thermal = NULL;
    w->now = w->now == 0 ? 50u * (uint64_t)SECOND : w->now;
    w->host = (bitaxon_host){.struct_size = sizeof w->host, .user = w, .now_ns = world_now, .log = world_log};
    params.struct_size = sizeof params;
    params.host = &w->host;
    params.read = world_read;
    params.sleep_ns = world_sleep;
    params.user = w;
    assert_int_equal(bitaxon_thermal_create(&params, &thermal, &error), BITAXON_OK);
    return thermal;
}

static bitaxon_thermal_status status_of(bitaxon_thermal *thermal)
{
    bitaxon_thermal_status status = {.struct_size = sizeof status};
    assert_int_equal(bitaxon_thermal_sample(thermal, &status, NULL), BITAXON_OK);
    return status;
}

/* ---- waiting ------------------------------------------------------------------------------- */

static void test_pause_until_cool(void **state)
{
    (void)state;
    world w = {.celsius = 90, .cooling = 1};
    bitaxon_thermal *thermal = policy_in(&w, (bitaxon_thermal_params){0});
    bxn_thermal_use use = {0};
    bool narrow = false;
    assert_int_equal(bxn_thermal_gate(&thermal->core, &use, 1, NULL, &narrow, NULL), BITAXON_OK);
    /* 10 degrees to the leave mark at one a second; it may last a sample longer. */
    assert_in_range(w.slept, 10u * (uint64_t)SECOND, 10u * (uint64_t)SECOND + 300000000u);
    bitaxon_thermal_status s = status_of(thermal);
    assert_int_equal(s.band, BITAXON_BAND_WARM);
    assert_true(narrow);
    assert_in_range(s.paused_ns, w.slept, w.slept);
    assert_int_equal(s.max_temperature_mc, 90000);
    assert_non_null(strstr(w.log, "thermal: WARM, slower"));
    w.celsius = 60;
    w.now += 3u * (uint64_t)SECOND;
    assert_int_equal(bxn_thermal_gate(&thermal->core, &use, 1, NULL, &narrow, NULL), BITAXON_OK);
    assert_false(narrow);
    bitaxon_thermal_free(thermal);
}

static void test_stop_and_go_on(void **state)
{
    (void)state;
    world w = {.celsius = 96};
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_thermal *thermal = policy_in(&w, (bitaxon_thermal_params){0});
    bxn_thermal_use use = {0};
    for (int i = 0; i < 3; i++) { /* as often as it is asked */
        assert_int_equal(bxn_thermal_gate(&thermal->core, &use, 1, NULL, NULL, &error), BITAXON_THERMAL_STOP);
        assert_non_null(strstr(error.message, "96.0 C at the host's sensor"));
        assert_non_null(strstr(error.message, "below 80.0 C"));
    }
    assert_int_equal(w.sleeps, 0);
    w.celsius = 70;
    w.now += 5u * (uint64_t)SECOND;
    assert_int_equal(bxn_thermal_gate(&thermal->core, &use, 1, NULL, NULL, &error), BITAXON_OK);
    bitaxon_thermal_free(thermal);
    /* Out of a pause: it goes on heating while nothing is done. */
    world heats = {.celsius = 86, .cooling = -2};
    thermal = policy_in(&heats, (bitaxon_thermal_params){0});
    assert_int_equal(bxn_thermal_gate(&thermal->core, &use, 1, NULL, NULL, &error), BITAXON_THERMAL_STOP);
    assert_in_range(heats.slept, 4500000000u, 4800000000u);
    bitaxon_thermal_free(thermal);
}

static void test_cancel_in_a_pause(void **state)
{
    (void)state;
    atomic_int cancel = 0;
    world w = {.celsius = 90, .cancel_at_sleep = &cancel};
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_thermal *thermal = policy_in(&w, (bitaxon_thermal_params){0});
    bxn_thermal_use use = {0};
    assert_int_equal(bxn_thermal_gate(&thermal->core, &use, 1, &cancel, NULL, &error), BITAXON_CANCELLED);
    assert_int_equal(w.sleeps, 3);
    assert_true(w.slept <= 60000000u); /* slices of 20 ms */
    bitaxon_thermal_free(thermal);
    /* And in a rest. */
    static const double rates[] = {0.1, 1e-300};
    for (size_t i = 0; i < sizeof rates / sizeof rates[0]; i++) {
        cancel = 0;
        world rests = {.celsius = 40, .cancel_at_sleep = &cancel};
        thermal = policy_in(&rests, (bitaxon_thermal_params){.max_tokens_per_second = rates[i]});
        memset(&use, 0, sizeof use);
        assert_int_equal(bxn_thermal_gate(&thermal->core, &use, 1, &cancel, NULL, &error), BITAXON_CANCELLED);
        assert_int_equal(rests.sleeps, 3);
        bitaxon_thermal_free(thermal);
    }
}

static void test_duty_and_rate(void **state)
{
    (void)state;
    world w = {.celsius = 40};
    bitaxon_thermal *thermal = policy_in(&w, (bitaxon_thermal_params){.duty_percent = 25});
    bxn_thermal_use use = {0};
    uint64_t worked = 0, began = w.now;
    for (int i = 0; i < 50; i++) {
        assert_int_equal(bxn_thermal_gate(&thermal->core, &use, 1, NULL, NULL, NULL), BITAXON_OK);
        w.now += 70000000u;
        worked += 70000000u;
    }
    double duty = (double)worked / (double)(w.now - began);
    assert_true(duty > 0.249 && duty < 0.26);
    assert_int_equal(status_of(thermal).rested_ns, w.slept);
    assert_int_equal(status_of(thermal).paused_ns, 0);
    bitaxon_thermal_free(thermal);

    world r = {.celsius = 40};
    thermal = policy_in(&r, (bitaxon_thermal_params){.max_tokens_per_second = 8});
    memset(&use, 0, sizeof use);
    began = r.now;
    for (int i = 0; i < 80; i++) {
        assert_int_equal(bxn_thermal_gate(&thermal->core, &use, 1, NULL, NULL, NULL), BITAXON_OK);
        r.now += 10000000u;
    }
    double rate = 80 / ((double)(r.now - began) / 1e9);
    assert_true(rate > 7.9 && rate < 8.05);
    bitaxon_thermal_free(thermal);
}

static void test_rate_of_samples(void **state)
{
    (void)state;
    world w = {.celsius = 40};
    bitaxon_thermal *thermal = policy_in(&w, (bitaxon_thermal_params){.sample_ms = 100});
    bxn_thermal_use use = {0};
    for (int i = 0; i < 1000; i++) { /* a second of tokens */
        bxn_thermal_gate(&thermal->core, &use, 1, NULL, NULL, NULL);
        w.now += 1000000u;
    }
    assert_in_range(status_of(thermal).samples, 10, 12);
    bitaxon_thermal_free(thermal);
}

static void test_energy_and_history(void **state)
{
    (void)state;
    world w = {.celsius = 40, .energy_uj = 5000};
    bitaxon_thermal *thermal = policy_in(&w, (bitaxon_thermal_params){.sample_ms = 10});
    uint64_t uj;
    w.energy_uj += 1234;
    assert_true(bxn_thermal_energy(&thermal->core, &uj));
    assert_int_equal(uj, 1234);
    w.energy_uj = 10; /* a source that falls gives nothing back */
    assert_true(bxn_thermal_energy(&thermal->core, &uj));
    assert_int_equal(uj, 1234);
    uint64_t began = w.now;
    for (int i = 0; i < 20000; i++) {
        w.now += 10000000u;
        w.celsius = 40 + i % 7;
        status_of(thermal);
    }
    size_t count = 0;
    bitaxon_error error = BITAXON_ERROR_INIT;
    static bitaxon_thermal_point points[2000];
    assert_int_equal(bitaxon_thermal_history(thermal, NULL, 0, &count, &error), BITAXON_LIMIT);
    assert_in_range(count, 512, 1024);
    points[0].struct_size = sizeof points[0];
    assert_int_equal(bitaxon_thermal_history(thermal, points, 2000, &count, &error), BITAXON_OK);
    assert_in_range(points[0].time_ns, began - SECOND, began + SECOND);
    assert_in_range(points[count - 1].time_ns, w.now - SECOND, w.now);
    for (size_t i = 1; i < count; i++)
        assert_true(points[i].time_ns > points[i - 1].time_ns);
    bitaxon_thermal_free(thermal);
}

/* ---- sensors ------------------------------------------------------------------------------- */

static bitaxon_status open_tree(bitaxon_thermal_params params, bitaxon_thermal **out, bitaxon_error *error)
{
    params.struct_size = sizeof params;
    params.root = tree;
    return bitaxon_thermal_create(&params, out, error);
}

static void expect_info(bitaxon_thermal *thermal, const char *key, const char *want)
{
    char text[2048];
    size_t need;
    assert_int_equal(bitaxon_thermal_info(thermal, key, text, sizeof text, &need, NULL), BITAXON_OK);
    assert_int_equal(need, strlen(text) + 1);
    assert_non_null(strstr(text, want));
}

static bitaxon_thermal_status fresh(bitaxon_thermal *thermal)
{
    uint64_t uj;
    bxn_thermal_energy(&thermal->core, &uj); /* reads now */
    return status_of(thermal);
}

static void test_empty_tree(void **state)
{
    (void)state;
    clear_tree();
    bitaxon_thermal *thermal;
    bitaxon_error error = BITAXON_ERROR_INIT;
    assert_int_equal(open_tree((bitaxon_thermal_params){.no_sensor = BITAXON_NO_SENSOR_REFUSE}, &thermal, &error),
                     BITAXON_UNSUPPORTED);
    assert_null(thermal);
    assert_int_equal(open_tree((bitaxon_thermal_params){.sensor = "x86"}, &thermal, &error), BITAXON_UNSUPPORTED);
    assert_non_null(strstr(error.message, "x86"));
    world w = {.now = 1};
    w.host = (bitaxon_host){.struct_size = sizeof w.host, .user = &w, .log = world_log};
    assert_int_equal(open_tree((bitaxon_thermal_params){.host = &w.host}, &thermal, &error), BITAXON_OK);
    assert_non_null(strstr(w.log, "no temperature sensor can be read")); /* never silently */
    bitaxon_thermal_status s = fresh(thermal);
    assert_int_equal(s.known, 0);
    assert_int_equal(s.reason, BITAXON_REASON_NO_SENSOR);
    expect_info(thermal, "temperature_source", "none");
    expect_info(thermal, "energy_source", "none");
    expect_info(thermal, "power_source", "none");
    bitaxon_thermal_free(thermal);
}

static void test_choice_of_sensor(void **state)
{
    (void)state;
    clear_tree();
    put("sys/class/thermal/thermal_zone0/type", "acpitz\n");
    put("sys/class/thermal/thermal_zone0/temp", "31000\n");
    put("sys/class/thermal/thermal_zone1/type", "iwlwifi_1\n");
    put("sys/class/thermal/thermal_zone1/temp", "99000\n");
    put("sys/class/hwmon/hwmon0/name", "nvme\n");
    put("sys/class/hwmon/hwmon0/temp1_input", "70000\n");
    put("sys/class/hwmon/hwmon1/name", "coretemp\n");
    put("sys/class/hwmon/hwmon1/temp1_label", "Package id 0\n");
    put("sys/class/hwmon/hwmon1/temp1_input", "52000\n");
    put("sys/class/hwmon/hwmon1/temp2_label", "Core 0\n");
    put("sys/class/hwmon/hwmon1/temp2_input", "51000\n");
    bitaxon_thermal *thermal;
    assert_int_equal(open_tree((bitaxon_thermal_params){0}, &thermal, NULL), BITAXON_OK);
    expect_info(thermal, "temperature_source", "coretemp Package id 0");
    expect_info(thermal, "sensors", "coretemp Package id 0\t52000\t");
    expect_info(thermal, "sensors", "nvme temp1\t70000\t");
    assert_int_equal(status_of(thermal).temperature_mc, 52000);
    bitaxon_thermal_free(thermal);

    put("sys/class/thermal/thermal_zone2/type", "x86_pkg_temp\n");
    put("sys/class/thermal/thermal_zone2/temp", "53000\n");
    put("sys/class/thermal/thermal_zone10/type", "x86_pkg_temp\n");
    put("sys/class/thermal/thermal_zone10/temp", "55000\n");
    assert_int_equal(open_tree((bitaxon_thermal_params){0}, &thermal, NULL), BITAXON_OK);
    expect_info(thermal, "temperature_source", "x86_pkg_temp (highest of 2)");
    assert_int_equal(status_of(thermal).temperature_mc, 55000);
    put("sys/class/thermal/thermal_zone2/temp", "86000\n");
    assert_int_equal(fresh(thermal).action, BITAXON_THERMAL_PAUSE);
    /* Answers that are none: text, nothing, a file that is gone. */
    put("sys/class/thermal/thermal_zone2/temp", "hot\n");
    put("sys/class/thermal/thermal_zone10/temp", "");
    bitaxon_thermal_status s = fresh(thermal);
    assert_int_equal(s.stale, 1);
    assert_int_equal(s.temperature_mc, 86000);
    take("sys/class/thermal/thermal_zone2/temp");
    assert_int_equal(fresh(thermal).stale, 1);
    bitaxon_thermal_free(thermal);

    assert_int_equal(open_tree((bitaxon_thermal_params){.sensor = "nvme"}, &thermal, NULL), BITAXON_OK);
    assert_int_equal(status_of(thermal).temperature_mc, 70000);
    bitaxon_thermal_free(thermal);
}

static void test_power_supply(void **state)
{
    (void)state;
    clear_tree();
    put("sys/class/power_supply/AC/type", "Mains\n");
    put("sys/class/power_supply/AC/online", "1\n");
    put("sys/class/power_supply/BAT0/type", "Battery\n");
    put("sys/class/power_supply/BAT0/status", "Full\n");
    put("sys/class/power_supply/BAT0/capacity", "100\n");
    put("sys/class/power_supply/BAT0/energy_now", "50000000\n"); /* 50 Wh */
    put("sys/class/power_supply/mouse/type", "Battery\n");
    put("sys/class/power_supply/mouse/scope", "Device\n");
    put("sys/class/power_supply/mouse/status", "Discharging\n");
    bitaxon_thermal *thermal;
    assert_int_equal(
        open_tree((bitaxon_thermal_params){ .flags = BITAXON_THERMAL_MAINS_ONLY, .battery_floor = 30 }, &thermal, NULL),
        BITAXON_OK);
    expect_info(thermal, "power_source", "BAT0");
    expect_info(thermal, "energy_source", "battery");
    bitaxon_thermal_status s = fresh(thermal);
    assert_int_equal(s.on_battery, 0);
    assert_int_equal(s.action, BITAXON_THERMAL_RUN);
    put("sys/class/power_supply/AC/online", "0\n");
    put("sys/class/power_supply/BAT0/status", "Discharging\n");
    put("sys/class/power_supply/BAT0/capacity", "80\n");
    put("sys/class/power_supply/BAT0/energy_now", "49999000\n");
    s = fresh(thermal);
    assert_int_equal(s.action, BITAXON_THERMAL_PAUSE);
    assert_int_equal(s.reason, BITAXON_REASON_ON_BATTERY);
    assert_int_equal(s.energy_uj, 3600000); /* 1 mWh = 3.6 J */
    put("sys/class/power_supply/BAT0/capacity", "30\n");
    assert_int_equal(fresh(thermal).action, BITAXON_THERMAL_HALT);
    put("sys/class/power_supply/AC/online", "1\n");
    put("sys/class/power_supply/BAT0/status", "Charging\n");
    put("sys/class/power_supply/BAT0/energy_now", "50500000\n");
    s = fresh(thermal);
    assert_int_equal(s.action, BITAXON_THERMAL_RUN);
    assert_int_equal(s.energy_uj, 3600000); /* charging is not use */
    bitaxon_thermal_free(thermal);
}

static void test_rapl(void **state)
{
    (void)state;
    clear_tree();
    put("sys/class/powercap/intel-rapl:0/name", "package-0\n");
    put("sys/class/powercap/intel-rapl:0/energy_uj", "999000\n");
    put("sys/class/powercap/intel-rapl:0/max_energy_range_uj", "1000000\n");
    put("sys/class/powercap/intel-rapl:0:0/name", "core\n"); /* part of the package: not counted twice */
    put("sys/class/powercap/intel-rapl:0:0/energy_uj", "500\n");
    put("sys/class/powercap/intel-rapl:0:2/name", "dram\n");
    put("sys/class/powercap/intel-rapl:0:2/energy_uj", "100\n");
    put("sys/class/powercap/intel-rapl:0:2/max_energy_range_uj", "1000000\n");
    bitaxon_thermal *thermal;
    assert_int_equal(open_tree((bitaxon_thermal_params){0}, &thermal, NULL), BITAXON_OK);
    expect_info(thermal, "energy_source", "RAPL package-0 + dram");
    put("sys/class/powercap/intel-rapl:0/energy_uj", "4000\n"); /* wrapped: 1000 to the end and 4000 */
    put("sys/class/powercap/intel-rapl:0:2/energy_uj", "150\n");
    assert_int_equal(fresh(thermal).energy_uj, 5050);
    take("sys/class/powercap/intel-rapl:0/energy_uj"); /* what cannot be read adds nothing */
    assert_int_equal(fresh(thermal).energy_uj, 5050);
    bitaxon_thermal_free(thermal);
    assert_int_equal(open_tree((bitaxon_thermal_params){0}, &thermal, NULL), BITAXON_OK);
    expect_info(thermal, "energy_source", "RAPL dram");
    bitaxon_thermal_free(thermal);
    take("sys/class/powercap/intel-rapl:0:2/energy_uj");
    assert_int_equal(open_tree((bitaxon_thermal_params){0}, &thermal, NULL), BITAXON_OK);
    expect_info(thermal, "energy_source", "not readable by this user");
    bitaxon_thermal_free(thermal);
}

static void test_throttle_files(void **state)
{
    (void)state;
    clear_tree();
    put("sys/class/thermal/thermal_zone0/type", "x86_pkg_temp\n");
    put("sys/class/thermal/thermal_zone0/temp", "50000\n");
    put("sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count", "5\n");
    put("sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "2\n");
    put("sys/devices/system/cpu/cpufreq/boost", "1\n");
    bitaxon_thermal *thermal;
    assert_int_equal(open_tree((bitaxon_thermal_params){0}, &thermal, NULL), BITAXON_OK);
    assert_int_equal(fresh(thermal).action, BITAXON_THERMAL_RUN);
    put("sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count", "6\n");
    bitaxon_thermal_status s = fresh(thermal);
    assert_int_equal(s.action, BITAXON_THERMAL_NARROW);
    assert_int_equal(s.reason, BITAXON_REASON_THROTTLED);
    assert_int_equal(s.throttle_events, 1);
    bitaxon_thermal_free(thermal);
}

/* ---- arguments, faults, threads --------------------------------------------------------------- */

static void test_arguments(void **state)
{
    (void)state;
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_thermal *thermal;
    static const struct {
        bitaxon_thermal_params p;
        const char *name;
    } cases[] = {
        {{.sample_ms = 5}, "sample_ms"},
        {{.duty_percent = 101}, "duty_percent"},
        {{.max_tokens_per_second = -1}, "max_tokens_per_second"},
        {{.hot_mc = 10}, "hot_mc"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(open_tree(cases[i].p, &thermal, &error), BITAXON_INVALID_ARGUMENT);
        assert_non_null(strstr(error.message, cases[i].name));
        assert_null(thermal);
    }
    bitaxon_thermal_params nan_rate = {.max_tokens_per_second = (double)NAN};
    assert_int_equal(open_tree(nan_rate, &thermal, &error), BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_thermal_create(NULL, NULL, &error), BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_thermal_create(NULL, &thermal, &error), BITAXON_OK); /* this machine, whatever it has */
    bitaxon_thermal_status s = {.struct_size = 4};
    assert_int_equal(bitaxon_thermal_sample(thermal, &s, &error), BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_thermal_sample(NULL, &s, &error), BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_thermal_sample(thermal, NULL, &error), BITAXON_INVALID_ARGUMENT);
    size_t n;
    char small[2];
    assert_int_equal(bitaxon_thermal_info(thermal, "colour", small, 2, &n, &error), BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_thermal_info(thermal, "power_source", small, 2, &n, &error), BITAXON_LIMIT);
    assert_true(n > 2);
    assert_int_equal(bitaxon_thermal_info(thermal, "power_source", NULL, 2, &n, &error), BITAXON_INVALID_ARGUMENT);
    bitaxon_thermal_point point = {.struct_size = 1};
    assert_int_equal(bitaxon_thermal_history(thermal, &point, 1, &n, &error), BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_thermal_history(thermal, &point, 1, NULL, &error), BITAXON_INVALID_ARGUMENT);
    bitaxon_thermal_free(thermal);
    bitaxon_thermal_free(NULL);
}

static void test_no_memory(void **state)
{
    (void)state;
    fault_host fault;
    fault_host_init(&fault);
    bitaxon_thermal_params params = {.struct_size = sizeof params, .host = &fault.host, .root = tree};
    bitaxon_thermal *thermal;
    bitaxon_error error = BITAXON_ERROR_INIT;
    int failed = 0;
    for (uint64_t n = 1;; n++) {
        fault_host_arm(&fault, n, false);
        bitaxon_status status = bitaxon_thermal_create(&params, &thermal, &error);
        fault_host_disarm(&fault);
        if (status == BITAXON_OK)
            break;
        assert_int_equal(status, BITAXON_OUT_OF_MEMORY);
        assert_null(thermal);
        failed++;
    }
    assert_true(failed > 0);
    bitaxon_thermal_free(thermal);
    assert_string_equal(fault_host_balance(&fault), "");
}

static void *hammer(void *user)
{
    bitaxon_thermal *thermal = user;
    bxn_thermal_use use = {0};
    for (int i = 0; i < 300; i++) {
        bitaxon_thermal_status s = {.struct_size = sizeof s};
        if (bxn_thermal_gate(&thermal->core, &use, 1, NULL, NULL, NULL) != BITAXON_OK ||
            bitaxon_thermal_sample(thermal, &s, NULL) != BITAXON_OK)
            return user;
    }
    return NULL;
}

static void test_shared(void **state)
{
    (void)state;
    clear_tree();
    put("sys/class/thermal/thermal_zone0/type", "x86_pkg_temp\n");
    put("sys/class/thermal/thermal_zone0/temp", "50000\n");
    bitaxon_thermal *thermal;
    assert_int_equal(open_tree((bitaxon_thermal_params){.sample_ms = 10}, &thermal, NULL), BITAXON_OK);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, hammer, thermal), 0);
    for (int i = 0; i < 4; i++) {
        void *bad;
        pthread_join(threads[i], &bad);
        assert_null(bad);
    }
    bitaxon_thermal_free(thermal);
}

/* ---- sessions ---------------------------------------------------------------------------------- */

typedef struct story { /* a sensor that follows a script, one value per sample */
    const double *celsius;
    size_t count, next;
    uint64_t energy_uj, now;
} story;

static int32_t story_read(void *user, bitaxon_reading *out)
{
    story *s = user;
    double celsius = s->celsius[s->next < s->count ? s->next : s->count - 1];
    s->next++;
    s->energy_uj += 1000;
    out->known = BITAXON_READ_TEMPERATURE | BITAXON_READ_ENERGY;
    out->temperature_mc = (int32_t)(celsius * 1000);
    out->energy_uj = s->energy_uj;
    return 0;
}

/* A clock that moves on at each look: every gate samples. */
static uint64_t story_now(void *user) { return ((story *)user)->now += 300000000u; }
static void story_sleep(void *user, uint64_t ns) { ((story *)user)->now += ns; }

static bitaxon_session *session_with(bitaxon_model *model, bitaxon_thermal *thermal)
{
    bitaxon_session_params params = {.struct_size = sizeof params, .thermal = thermal};
    bitaxon_session *session;
    assert_int_equal(bitaxon_session_create(model, &params, &session, NULL), BITAXON_OK);
    return session;
}

static void test_sessions(void **state)
{
    (void)state;
    enum { PROMPT = 90, MORE = 6 };
    static const double heats[] = {50, 50, 60, 78, 86, 84, 79, 60, 50, 50, 97, 97, 60, 50};
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_model_params open = {.struct_size = sizeof open, .path = "tests/golden/tiny-q4", .threads = 3};
    bitaxon_model *model;
    assert_int_equal(bitaxon_model_open(&open, &model, &error), BITAXON_OK);
    int32_t prompt[PROMPT], want[MORE], got[MORE];
    for (int i = 0; i < PROMPT; i++)
        prompt[i] = i * 7 % 90;
    bitaxon_session *plain = session_with(model, NULL);
    assert_int_equal(bitaxon_session_prefill(plain, prompt, PROMPT, &error), BITAXON_OK);
    for (int i = 0; i < MORE; i++)
        assert_int_equal(bitaxon_session_decode(plain, &want[i], &error), BITAXON_OK);

    story s = {.celsius = heats, .count = sizeof heats / sizeof heats[0], .now = 1};
    bitaxon_host host = {.struct_size = sizeof host, .user = &s, .now_ns = story_now};
    bitaxon_thermal_params params = {.struct_size = sizeof params, .host = &host, .read = story_read,
                                     .sleep_ns = story_sleep, .user = &s};
    bitaxon_thermal *thermal;
    assert_int_equal(bitaxon_thermal_create(&params, &thermal, &error), BITAXON_OK);
    bitaxon_session *session = session_with(model, thermal);
    int stops = 0;
    uint64_t read = 0;
    while (read < PROMPT) { /* in pieces, so that the story gets on */
        size_t n = PROMPT - read < 9 ? (size_t)(PROMPT - read) : 9;
        bitaxon_status status = bitaxon_session_prefill(session, prompt + read, n, &error);
        if (status == BITAXON_THERMAL_STOP) {
            assert_non_null(strstr(error.message, "thermal policy: "));
            assert_int_equal(bitaxon_session_position(session), read); /* nothing half read */
            stops++;
        } else {
            assert_int_equal(status, BITAXON_OK);
            read += n;
        }
    }
    for (int i = 0; i < MORE; i++)
        assert_int_equal(bitaxon_session_decode(session, &got[i], &error), BITAXON_OK);
    assert_memory_equal(got, want, sizeof want); /* pauses, fewer threads and stops change no bits */
    assert_true(stops >= 1);
    bitaxon_thermal_status t = status_of(thermal);
    assert_true(t.paused_ns > 0);
    assert_in_range(t.transitions, 4, 20);
    bitaxon_stats stats = {.struct_size = sizeof stats};
    assert_int_equal(bitaxon_session_stats(session, &stats, &error), BITAXON_OK);
    assert_true(stats.prefill_uj > 0 && stats.prefill_uj + stats.decode_uj <= t.energy_uj);
    bitaxon_thermal_free(thermal); /* the session keeps it */
    assert_int_equal(bitaxon_session_decode(session, &got[0], &error), BITAXON_OK);
    bitaxon_session_free(session);

    /* Cancel from another thread while it is paused for ever. */
    static const double hot[] = {90};
    story h = {.celsius = hot, .count = 1, .now = 1};
    params.user = &h;
    params.host = NULL;
    params.sleep_ns = NULL;
    assert_int_equal(bitaxon_thermal_create(&params, &thermal, &error), BITAXON_OK);
    session = session_with(model, thermal);
    bitaxon_session_cancel(session);
    assert_int_equal(bitaxon_session_prefill(session, prompt, PROMPT, &error), BITAXON_CANCELLED);
    assert_int_equal(bitaxon_session_position(session), 0);
    bitaxon_session_free(session);
    bitaxon_thermal_free(thermal);

    /* A batch stops whole when one of its sessions must. */
    static const double boiling[] = {50, 50, 50, 99};
    story b = {.celsius = boiling, .count = 4, .now = 1};
    bitaxon_host moving = {.struct_size = sizeof moving, .user = &b, .now_ns = story_now};
    params.user = &b;
    params.host = &moving;
    assert_int_equal(bitaxon_thermal_create(&params, &thermal, &error), BITAXON_OK);
    session = session_with(model, thermal);
    assert_int_equal(bitaxon_session_prefill(session, prompt, 9, &error), BITAXON_OK);
    bitaxon_session *both[2] = {plain, session};
    uint64_t before[2] = {bitaxon_session_position(plain), bitaxon_session_position(session)};
    uint32_t failed = 0;
    assert_int_equal(bitaxon_batch_decode(both, 2, got, &failed, &error), BITAXON_THERMAL_STOP);
    assert_int_equal(failed, 1);
    assert_non_null(strstr(error.message, "session 1: thermal policy: 99.0 C"));
    for (int i = 0; i < 2; i++)
        assert_int_equal(bitaxon_session_position(both[i]), before[i]);
    bitaxon_session_free(session);
    bitaxon_thermal_free(thermal);
    bitaxon_session_free(plain);
    bitaxon_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pause_until_cool),  cmocka_unit_test(test_stop_and_go_on),
        cmocka_unit_test(test_cancel_in_a_pause), cmocka_unit_test(test_duty_and_rate),
        cmocka_unit_test(test_rate_of_samples),   cmocka_unit_test(test_energy_and_history),
        cmocka_unit_test(test_empty_tree),        cmocka_unit_test(test_choice_of_sensor),
        cmocka_unit_test(test_power_supply),      cmocka_unit_test(test_rapl),
        cmocka_unit_test(test_throttle_files),    cmocka_unit_test(test_arguments),
        cmocka_unit_test(test_no_memory),         cmocka_unit_test(test_shared),
        cmocka_unit_test(test_sessions),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
