/* SPDX-License-Identifier: Apache-2.0 */
/* bxn_thermal.h - the thermal policy in three parts: a pure state machine (policy.c), sensors
 * (sensors*.c, energy.c), and the object that joins them with a clock and does the waiting
 * (gate.c). Sessions and trainers call bxn_thermal_gate between tokens and steps. */
#ifndef BXN_THERMAL_H
#define BXN_THERMAL_H

#include <bitaxon/thermal.h>

#include <pthread.h>

#include "runtime/runtime.h"

/* ---- policy.c: decisions, without clock, files or memory ------------------------------ */

#define BXN_TREND_POINTS 64
#define BXN_TREND_NS 10000000000u /* the trend looks back and ahead so far */

typedef struct bxn_policy {
    uint32_t flags, no_sensor, battery_floor;
    int32_t enter_mc[4], leave_mc[4]; /* by band; [NORMAL] unused */
    uint64_t dwell_ns, stale_ns;
} bxn_policy;

/* Fill from params, defaults for zeros. INVALID_ARGUMENT naming field and values. */
bitaxon_status bxn_policy_init(bxn_policy *policy, const bitaxon_thermal_params *params,
                               bitaxon_error *error);

typedef struct bxn_policy_state {
    bool begun;
    uint64_t clock_ns, time_ns; /* last clock reading; time that has passed, never backwards */
    uint32_t band;
    uint64_t band_since_ns, good_ns; /* when the band was entered; last temperature or pressure */
    bool had_temperature, had_power, had_battery;
    int32_t temperature_mc, max_mc;
    uint64_t throttle_count, throttle_events;
    bool had_throttle;
    uint32_t on_battery, battery_percent;
    struct {
        uint64_t time_ns;
        int32_t mc;
    } trend[BXN_TREND_POINTS];
    uint32_t trend_count, trend_next;
    uint64_t transitions, band_ns[4];
} bxn_policy_state;

typedef struct bxn_decision {
    uint32_t band, action, reason;
    bool stale;
    int32_t slope_mc_per_s;
    uint32_t rest_permille; /* graded: of the time to be rested; the action is NARROW then */
    bool narrow;            /* fewer threads should work */
} bxn_decision;

/* The graded share of rest in WARM, in thousandths: none up to half way between the marks of WARM and HOT, from
 * there on in a straight line to BXN_REST_MOST at the mark of HOT. */
#define BXN_REST_MOST 900
uint32_t bxn_policy_rest(const bxn_policy *policy, int32_t mc);

/* One reading (known may be 0) at clock time now_ns. A clock that goes backwards counts as one
 * that stood still. */
bxn_decision bxn_policy_step(const bxn_policy *policy, bxn_policy_state *state,
                             const bitaxon_reading *reading, uint64_t now_ns);

/* ---- sensors.c and its systems ----------------------------------------------------------- */

#define BXN_SENSOR_FILES 16

/* A file that holds one number. */
typedef struct bxn_sensor_file {
    char path[512];
    char name[96];
} bxn_sensor_file;

/* A counter that starts again at 0 after `range`. */
typedef struct bxn_counter {
    uint64_t last, range, total;
    bool begun;
} bxn_counter;

/* Add a new value of the counter; returns the total since the first. range 0: no wrap, a
 * value that falls starts anew. */
uint64_t bxn_counter_add(bxn_counter *counter, uint64_t value);

typedef struct bxn_sensors {
    char root[256];
    bxn_sensor_file temperature[BXN_SENSOR_FILES]; /* chosen: the highest counts */
    uint32_t temperature_count;
    char temperature_source[160];
    bxn_sensor_file throttle[BXN_SENSOR_FILES];
    uint32_t throttle_count;
    bxn_sensor_file mains[BXN_SENSOR_FILES]; /* .../online */
    uint32_t mains_count;
    char battery[512]; /* directory; empty: none */
    char power_source[160];
    bxn_sensor_file energy[BXN_SENSOR_FILES];
    bxn_counter energy_counter[BXN_SENSOR_FILES];
    uint32_t energy_count;
    bool battery_energy; /* by the battery's charge */
    bxn_counter battery_counter;
    uint64_t battery_uj;
    char energy_source[160];
} bxn_sensors;

/* Look for what there is. UNSUPPORTED when `wanted` (nullable) is part of no sensor's name. */
bitaxon_status bxn_sensors_open(bxn_sensors *sensors, const char *root, const char *wanted,
                                bitaxon_error *error);
/* What can be read now; `known` tells what could. */
void bxn_sensors_read(bxn_sensors *sensors, bitaxon_reading *out);
/* All temperature sensors of the system as lines for info key "sensors"; returns bytes needed
 * with the terminator. */
size_t bxn_sensors_list(const bxn_sensors *sensors, char *buffer, size_t capacity);

/* ---- gate.c: the object --------------------------------------------------------------------- */

#define BXN_HISTORY 1024

typedef struct bxn_thermal {
    bxn_mem mem;
    bxn_policy policy;
    pthread_mutex_t lock; /* of all below */
    bxn_policy_state state;
    bxn_decision decision;
    bitaxon_reading reading;
    bool sampled;
    uint64_t sample_ns, last_ns;
    bool sample_given;   /* by the host: then sensors that are slow are read as often, too */
    uint64_t reading_ns; /* that the last reading took */
    uint32_t duty_percent;
    double max_tokens_per_second;
    bxn_sensors sensors;
    bitaxon_read_fn read; /* NULL: sensors */
    void (*sleep_ns)(void *user, uint64_t ns);
    void *user;
    uint64_t samples, paused_ns, rested_ns;
    uint64_t energy_first_uj, energy_uj;
    bool had_energy;
    bitaxon_thermal_point history[BXN_HISTORY];
    uint32_t history_count;
    uint64_t history_step_ns, history_last_ns;
} bxn_thermal;

/* What one user of a policy remembers between two gates. */
typedef struct bxn_thermal_use {
    uint64_t since_ns;  /* end of the last gate; 0: none yet */
    uint64_t rested_ns; /* since then, with others, which counts as rest; 0 after each gate */
    double due_ns;      /* when the next token may begin, for max_tokens_per_second */
} bxn_thermal_use;

bitaxon_status bxn_thermal_init(bxn_thermal *thermal, const bitaxon_thermal_params *params,
                                bitaxon_error *error);
void bxn_thermal_release(bxn_thermal *thermal);

/* Between two pieces of work: sample if it is time, wait as the policy says (in slices of at most
 * 20 ms, so that cancel is honoured), and tell how to go on.
 * use       begin a series of work with a zeroed one
 * tokens    read or made since the last gate
 * cancel    nullable
 * narrow    nullable: true when fewer threads should work
 * Returns OK, CANCELLED, THERMAL_STOP (the message says why, and when to go on). */
bitaxon_status bxn_thermal_gate(bxn_thermal *thermal, bxn_thermal_use *use, uint64_t tokens,
                                const atomic_int *cancel, bool *narrow, bitaxon_error *error);
/* Rest for ns, at most 10 s, in slices; counted as rested. CANCELLED. For trainers of one thread, which
 * cannot be narrowed. */
bitaxon_status bxn_thermal_rest(bxn_thermal *thermal, bxn_thermal_use *use, uint64_t ns, const atomic_int *cancel,
                                bitaxon_error *error);
/* Microjoules used so far, read now; false when there is no source. */
bool bxn_thermal_energy(bxn_thermal *thermal, uint64_t *uj);
/* The same as of the last sample. */
bool bxn_thermal_energy_seen(bxn_thermal *thermal, uint64_t *uj);
void bxn_thermal_status(bxn_thermal *thermal, bool sample, bitaxon_thermal_status *out);

#endif
