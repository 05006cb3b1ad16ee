/* SPDX-License-Identifier: Apache-2.0 */
/* test_thermal_waits.c - what the policy object lets its users wait for, and what asking it costs: graded rest, how
 * soon HOT is noticed and cancel is heard, overhead, batches that share a policy. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include <pthread.h>

#include "api/api.h"
#include "tree_fixture.h"

#define SECOND 1000000000u

/* ---- a clock and a sensor --------------------------------------------------------------- */

typedef struct world {
    bitaxon_host host;
    uint64_t now, slept;
    double celsius, cooling; /* degrees; degrees a second of sleep */
    uint64_t energy_uj;
    uint64_t reading_ns; /* what a reading takes */
    atomic_int *cancel_at_sleep;
    int sleeps;
} world;

static uint64_t world_now(void *user) { return ((world *)user)->now; }

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
    out->known = BITAXON_READ_TEMPERATURE | BITAXON_READ_ENERGY;
    out->temperature_mc = (int32_t)(w->celsius * 1000);
    out->energy_uj = w->energy_uj;
    w->now += w->reading_ns;
    return 0;
}

static bitaxon_thermal *policy_in(world *w, bitaxon_thermal_params params)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_thermal *thermal = NULL;
    w->now = w->now == 0 ? 50u * (uint64_t)SECOND : w->now;
    w->host = (bitaxon_host){.struct_size = sizeof w->host, .user = w, .now_ns = world_now};
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

static bitaxon_status open_tree(bitaxon_thermal_params params, bitaxon_thermal **out, bitaxon_error *error)
{
    params.struct_size = sizeof params;
    params.root = tree;
    return bitaxon_thermal_create(&params, out, error);
}

/* Graded: all threads, rest by temperature that a cooling machine ends earlier, and a stop or cancel out of it. */
static void test_graded_rest(void **state)
{
    (void)state;
    bitaxon_error error = BITAXON_ERROR_INIT;
    const bitaxon_thermal_params graded = {.flags = BITAXON_THERMAL_GRADED};
    static const double at[] = {79, 82.5, 84};
    static const double share[] = {0, 0.45, 0.72};
    bool narrow = true;
    for (size_t i = 0; i < 3; i++) { /* held at a temperature: the share that it asks for */
        world w = {.celsius = at[i]};
        bitaxon_thermal *thermal = policy_in(&w, graded);
        bxn_thermal_use use = {0};
        uint64_t began = w.now;
        for (int step = 0; step < 20; step++) {
            assert_int_equal(bxn_thermal_gate(&thermal->core, &use, 1, NULL, &narrow, &error), BITAXON_OK);
            assert_false(narrow);
            w.now += 1500000000u;
        }
        double rested = (double)w.slept / (double)(w.now - began);
        assert_true(fabs(rested - share[i]) < 0.03); /* before the first step there is nothing to rest from */
        bitaxon_thermal_status s = status_of(thermal);
        assert_int_equal(s.rested_ns, w.slept);
        assert_int_equal(s.paused_ns, 0);
        assert_int_equal(s.band, BITAXON_BAND_WARM);
        bitaxon_thermal_free(thermal);
    }
    world w = {.celsius = 83, .cooling = 0.5};
    bitaxon_thermal *thermal = policy_in(&w, graded);
    bxn_thermal_use use = {0};
    for (int long_step = 0; long_step < 2; long_step++) {
        w.celsius = 83; /* at 83 C it would be 11.7 s; it is below 80 C in 6 s */
        assert_int_equal(bxn_thermal_gate(&thermal->core, &use, 1, NULL, NULL, &error), BITAXON_OK);
        w.now += 10u * (uint64_t)SECOND;
    }
    assert_in_range(w.slept, 2u * (uint64_t)SECOND, 6u * (uint64_t)SECOND + 100000000u);
    bitaxon_thermal_free(thermal);

    world heats = {.celsius = 84, .cooling = -2}; /* goes on heating in the rest */
    thermal = policy_in(&heats, graded);
    memset(&use, 0, sizeof use);
    assert_int_equal(bxn_thermal_gate(&thermal->core, &use, 1, NULL, NULL, &error), BITAXON_OK);
    heats.now += 60u * (uint64_t)SECOND;
    assert_int_equal(bxn_thermal_gate(&thermal->core, &use, 1, NULL, NULL, &error), BITAXON_THERMAL_STOP);
    assert_in_range(heats.slept, 5400000000u, 5700000000u);
    bitaxon_thermal_free(thermal);

    atomic_int cancel = 0;
    world rests = {.celsius = 84, .cancel_at_sleep = &cancel};
    thermal = policy_in(&rests, graded);
    memset(&use, 0, sizeof use);
    assert_int_equal(bxn_thermal_gate(&thermal->core, &use, 1, &cancel, NULL, &error), BITAXON_OK);
    rests.now += 60u * (uint64_t)SECOND;
    assert_int_equal(bxn_thermal_gate(&thermal->core, &use, 1, &cancel, NULL, &error), BITAXON_CANCELLED);
    assert_int_equal(rests.sleeps, 3);
    bitaxon_thermal_free(thermal);
}

/* HOT is noticed by the first token that begins 50 ms later: out of NORMAL, and out of WARM whatever
 * sample_ms is. */
static void reaction_from(double celsius, uint32_t sample_ms)
{
    static const uint64_t tokens[] = {1, 7, 40, 90, 400}; /* ms */
    for (size_t i = 0; i < sizeof tokens / sizeof tokens[0]; i++) {
        world w = {.celsius = celsius, .cooling = 0};
        bitaxon_thermal *thermal = policy_in(&w, (bitaxon_thermal_params){.sample_ms = sample_ms});
        bxn_thermal_use use = {0};
        uint64_t begun = w.now, hot = begun + 1003000000u;
        while (w.slept == 0) {
            assert_true(w.now <= hot + 50000000u + tokens[i] * 1000000u);
            w.cooling = w.celsius > 85 ? 5 : 0; /* pausing cools */
            assert_int_equal(bxn_thermal_gate(&thermal->core, &use, 1, NULL, NULL, NULL), BITAXON_OK);
            w.now += tokens[i] * 1000000u;
            if (w.now >= hot && w.slept == 0)
                w.celsius = 90;
        }
        bitaxon_thermal_status s = status_of(thermal);
        assert_true(s.paused_ns > 0);
        bitaxon_thermal_free(thermal);
    }
}

static void test_reaction(void **state)
{
    (void)state;
    reaction_from(40, 0);
    reaction_from(76, 0);
    reaction_from(76, 1000);
}

/* A sensor that takes 60 us is read every 120 ms, one that takes 5 ms every 250 ms; when it is warm, both
 * every 50 ms. */
static void test_slow_sensors(void **state)
{
    (void)state;
    static const struct {
        double celsius;
        uint64_t takes_us, every_ms;
    } cases[] = {{40, 1, 50}, {40, 60, 120}, {40, 5000, 250}, {76, 60, 50}, {76, 5000, 50}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        world w = {.celsius = cases[i].celsius, .cooling = 0, .reading_ns = cases[i].takes_us * 1000};
        bitaxon_thermal *thermal = policy_in(&w, (bitaxon_thermal_params){0});
        bxn_thermal_use use = {0};
        uint64_t begun = w.now;
        for (int ms = 0; ms < 3000; ms++) {
            assert_int_equal(bxn_thermal_gate(&thermal->core, &use, 1, NULL, NULL, NULL), BITAXON_OK);
            w.now += 1000000u;
        }
        double passed = (double)(w.now - begun) / 1e6, want = passed / (double)cases[i].every_ms;
        double readings = (double)status_of(thermal).samples;
        if (readings > 1.05 * want + 2 || readings < 0.85 * want - 2)
            fail_msg("%g C, %u us a reading: %g readings, not %g", cases[i].celsius, (unsigned)cases[i].takes_us,
                     readings, want);
        bitaxon_thermal_free(thermal);
    }
}

/* Real time from here on; on a machine that others use too the best of several tries counts. */
static uint64_t real_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static int32_t always_hot(void *user, bitaxon_reading *out)
{
    (void)user;
    out->known = BITAXON_READ_TEMPERATURE;
    out->temperature_mc = 90000;
    return 0;
}

typedef struct waiter {
    bitaxon_thermal *thermal;
    atomic_int cancel;
    bitaxon_status status;
    uint64_t ended;
} waiter;

static void *wait_there(void *user)
{
    waiter *w = user;
    bxn_thermal_use use = {0};
    w->status = bxn_thermal_gate(&w->thermal->core, &use, 1, &w->cancel, NULL, NULL);
    w->ended = real_ns(CLOCK_MONOTONIC);
    return NULL;
}

static void test_cancel_in_real_time(void **state)
{
    (void)state;
    bitaxon_thermal_params params = {.struct_size = sizeof params, .read = always_hot};
    waiter w = {0};
    uint64_t best = UINT64_MAX;
    assert_int_equal(bitaxon_thermal_create(&params, &w.thermal, NULL), BITAXON_OK);
    for (int i = 0; i < 20 && best > 50000000u; i++) {
        pthread_t thread;
        struct timespec moment = {0, 30000000};
        atomic_store(&w.cancel, 0);
        assert_int_equal(pthread_create(&thread, NULL, wait_there, &w), 0);
        nanosleep(&moment, NULL);
        uint64_t asked = real_ns(CLOCK_MONOTONIC);
        atomic_store(&w.cancel, 1);
        pthread_join(thread, NULL);
        assert_int_equal(w.status, BITAXON_CANCELLED);
        best = w.ended > asked && w.ended - asked < best ? w.ended - asked : best;
    }
    print_message("cancel in a pause: heard after %.1f ms\n", (double)best / 1e6);
    assert_true(best <= 50000000u);
    bitaxon_thermal_free(w.thermal);
}

/* What asking costs, of a processor's time, against tokens of 5 ms (200 a second, and with 50 ms between readings, as
 * in WARM): less than a thousandth. */
static void test_overhead(void **state)
{
    (void)state;
    enum { GATES = 2000, READINGS = 40 };
    clear_tree();
    put("sys/class/thermal/thermal_zone0/type", "x86_pkg_temp\n");
    put("sys/class/thermal/thermal_zone0/temp", "50000\n");
    put("sys/class/power_supply/BAT0/type", "Battery\n");
    put("sys/class/power_supply/BAT0/status", "Discharging\n");
    put("sys/class/power_supply/BAT0/capacity", "90\n");
    put("sys/class/powercap/intel-rapl:0/name", "package-0\n");
    put("sys/class/powercap/intel-rapl:0/energy_uj", "999000\n");
    put("sys/class/powercap/intel-rapl:0/max_energy_range_uj", "1000000\n");
    bitaxon_thermal *thermal;
    assert_int_equal(open_tree((bitaxon_thermal_params){.sample_ms = 3600000}, &thermal, NULL), BITAXON_OK);
    double gate = INFINITY, reading = INFINITY;
    for (int i = 0; i < 20; i++) {
        bxn_thermal_use use = {0};
        uint64_t uj, began = real_ns(CLOCK_THREAD_CPUTIME_ID);
        for (int n = 0; n < GATES; n++)
            bxn_thermal_gate(&thermal->core, &use, 1, NULL, NULL, NULL);
        uint64_t middle = real_ns(CLOCK_THREAD_CPUTIME_ID);
        for (int n = 0; n < READINGS; n++)
            bxn_thermal_energy(&thermal->core, &uj);
        uint64_t end = real_ns(CLOCK_THREAD_CPUTIME_ID);
        gate = fmin(gate, (double)(middle - began) / GATES);
        reading = fmin(reading, (double)(end - middle) / READINGS);
    }
    double part = gate / 5e6 + reading / 50e6;
    print_message("a gate %.0f ns, a reading %.1f us: %.4f %% of decoding at 200 tokens/s\n", gate, reading / 1e3,
                  100 * part);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    assert_true(part < 0.01); /* of instrumented code */
#else
    assert_true(part < 0.001);
#endif
    bitaxon_thermal_free(thermal);
}

/* Sessions of a batch that share a policy rest its share once: what one waits the others have not worked. */
static int32_t world_work(void *user, uint32_t count, void (*task)(void *context, uint32_t index), void *context)
{
    ((world *)user)->now += 1000000u;
    for (uint32_t i = 0; i < count; i++)
        task(context, i);
    return 0;
}

static void test_batch_rests_once(void **state)
{
    (void)state;
    enum { SESSIONS = 4 };
    world w = {.celsius = 40};
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_thermal *thermal = policy_in(&w, (bitaxon_thermal_params){.duty_percent = 50});
    bitaxon_host host = {.struct_size = sizeof host, .user = &w, .now_ns = world_now, .parallel_for = world_work};
    bitaxon_model_params open = {
        .struct_size = sizeof open, .path = "tests/golden/tiny-q4", .threads = 2, .host = &host
    };
    bitaxon_model *model;
    assert_int_equal(bitaxon_model_open(&open, &model, &error), BITAXON_OK);
    bitaxon_session *sessions[SESSIONS];
    static const int32_t prompt[3] = {5, 6, 7};
    for (int i = 0; i < SESSIONS; i++) {
        bitaxon_session_params params = {.struct_size = sizeof params, .thermal = thermal};
        assert_int_equal(bitaxon_session_create(model, &params, &sessions[i], &error), BITAXON_OK);
        assert_int_equal(bitaxon_session_prefill(sessions[i], prompt, 3, &error), BITAXON_OK);
    }
    int32_t tokens[SESSIONS];
    uint32_t failed;
    assert_int_equal(bitaxon_batch_decode(sessions, SESSIONS, tokens, &failed, &error), BITAXON_OK);
    uint64_t began = w.now, slept = w.slept;
    for (int i = 0; i < 20; i++)
        assert_int_equal(bitaxon_batch_decode(sessions, SESSIONS, tokens, &failed, &error), BITAXON_OK);
    double share = (double)(w.slept - slept) / (double)(w.now - began);
    print_message("%d sessions at half power rested %.2f of the time\n", SESSIONS, share);
    assert_true(share > 0.45 && share < 0.55);
    for (int i = 0; i < SESSIONS; i++)
        bitaxon_session_free(sessions[i]);
    bitaxon_model_free(model);
    bitaxon_thermal_free(thermal);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_graded_rest),  cmocka_unit_test(test_reaction),
        cmocka_unit_test(test_slow_sensors), cmocka_unit_test(test_cancel_in_real_time),
        cmocka_unit_test(test_overhead),     cmocka_unit_test(test_batch_rests_once),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
