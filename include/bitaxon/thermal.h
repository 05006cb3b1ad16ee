/* SPDX-License-Identifier: Apache-2.0 */
/* thermal.h - a policy that keeps a machine cool, quiet and on its battery's good side while
 * it generates and learns, and that says what it did and what it cost.
 *
 * Nothing runs by itself: a session asks once per token (and per tile of a prompt), a
 * trainer once per micro-step, and sensors are read at most every sample_ms (50). The
 * decision is a pure function of the parameters, the readings and the clock:
 *
 *   band      entered at   left below   what happens
 *   NORMAL    -            -            nothing
 *   WARM      75 C         72 C         a session uses fewer threads, a trainer smaller micro-batches
 *   HOT       85 C         80 C         pause, until the temperature is below the leave mark
 *   CRITICAL  95 C         80 C         BITAXON_THERMAL_STOP, also out of a pause; go on later
 *
 * With BITAXON_THERMAL_GRADED WARM costs less: all threads work, and from half way between `warm`
 * and `hot` on a share of the time is rested that grows with the temperature.
 *
 * A band is entered by any one reading and left after dwell_ms at the earliest. Without a
 * temperature sensor `no_sensor` says what holds; a sensor that had answered and is silent for
 * stale_ms counts as HOT. Power: `mains_only` pauses on battery, the battery floor stops.
 * No helper program is run and no privilege is asked for.
 *
 * A policy is synchronized: any number of sessions of any threads may share one. */
#ifndef BITAXON_THERMAL_H
#define BITAXON_THERMAL_H

#include <bitaxon/base.h>
#include <bitaxon/host.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bitaxon_thermal bitaxon_thermal;

enum {
    BITAXON_BAND_NORMAL = 0,
    BITAXON_BAND_WARM = 1,
    BITAXON_BAND_HOT = 2,
    BITAXON_BAND_CRITICAL = 3
};

/* What is to be done. */
enum {
    BITAXON_THERMAL_RUN = 0,
    BITAXON_THERMAL_NARROW = 1, /* fewer threads, smaller micro-batches */
    BITAXON_THERMAL_PAUSE = 2,
    BITAXON_THERMAL_HALT = 3 /* save, and stop with the status THERMAL_STOP */
};

/* Why. */
enum {
    BITAXON_REASON_NONE = 0,
    BITAXON_REASON_TEMPERATURE = 1,
    BITAXON_REASON_TREND = 2,       /* it rises, and would be hot within 10 s */
    BITAXON_REASON_PRESSURE = 3,    /* the system's own thermal pressure level */
    BITAXON_REASON_THROTTLED = 4,   /* the processor has throttled itself since the last sample */
    BITAXON_REASON_NO_SENSOR = 5,
    BITAXON_REASON_SENSOR_LOST = 6,
    BITAXON_REASON_ON_BATTERY = 7,
    BITAXON_REASON_BATTERY_LOW = 8
};

/* What of a reading is known. */
enum {
    BITAXON_READ_TEMPERATURE = 1,
    BITAXON_READ_PRESSURE = 2,
    BITAXON_READ_THROTTLE = 4,
    BITAXON_READ_POWER = 8,   /* on_battery */
    BITAXON_READ_BATTERY = 16, /* battery_percent */
    BITAXON_READ_ENERGY = 32
};

typedef struct bitaxon_reading {
    uint32_t struct_size;
    uint32_t known;          /* BITAXON_READ_* */
    int32_t temperature_mc;  /* thousandths of a degree Celsius */
    int32_t pressure;        /* 0 nominal, 1 fair, 2 serious, 3 critical: the lowest band that holds */
    uint64_t throttle_count; /* how often the processor has throttled itself, ever */
    uint64_t energy_uj;      /* microjoules since some moment; never falls */
    uint32_t on_battery;     /* 1: no mains */
    uint32_t battery_percent;
} bitaxon_reading;

/* Fill *out (struct_size is set, known is 0) and return 0; anything else: no reading now. It
 * must not call functions of the policy it belongs to. */
typedef int32_t (*bitaxon_read_fn)(void *user, bitaxon_reading *out);

/* Without any temperature or pressure: */
enum {
    BITAXON_NO_SENSOR_RUN = 0,    /* run, and say so (status, log) */
    BITAXON_NO_SENSOR_NARROW = 1, /* as if it were always WARM */
    BITAXON_NO_SENSOR_REFUSE = 2  /* bitaxon_thermal_create fails with UNSUPPORTED */
};

enum {
    BITAXON_THERMAL_MAINS_ONLY = 1, /* pause while on battery */
    BITAXON_THERMAL_EARLY = 2,      /* act as in WARM when the trend leads to HOT within 10 s */
    BITAXON_THERMAL_GRADED = 4      /* WARM by temperature: rest more the hotter it is, with all threads */
};

typedef struct bitaxon_thermal_params {
    uint32_t struct_size;
    uint32_t flags;              /* BITAXON_THERMAL_MAINS_ONLY, _EARLY, _GRADED */
    const bitaxon_host *host;    /* alloc, free, log and now_ns are used; NULL: defaults; copied */
    /* Thousandths of a degree, 0: the defaults of the table above. Each mark lies below the
     * next: warm_leave < warm < hot_leave or = it, hot_leave < hot < critical,
     * critical_leave < critical; between -40000 and 150000. */
    int32_t warm_mc, warm_leave_mc;
    int32_t hot_mc, hot_leave_mc;
    int32_t critical_mc, critical_leave_mc;
    uint32_t dwell_ms;  /* 0: 2000 */
    uint32_t sample_ms; /* 0: 50, and more for slow sensors; at least 10; from WARM on 50 at most */
    uint32_t stale_ms;  /* 0: 10000 */
    uint32_t no_sensor; /* BITAXON_NO_SENSOR_* */
    uint32_t duty_percent;   /* 1 to 100 of the time is worked; 0: 100 */
    uint32_t battery_floor;  /* percent; on battery at or below it: HALT; 0: none */
    double max_tokens_per_second; /* 0: no limit */
    const char *sensor; /* part of the name of the sensor to use; NULL: chosen by type */
    const char *root;   /* where sys/class is looked for; NULL: "/" */
    bitaxon_read_fn read; /* instead of the built-in sensors */
    /* Sleep; NULL: the system's. With a now_ns of its own a host should give one. */
    void (*sleep_ns)(void *user, uint64_t ns);
    void *user; /* of read and sleep_ns */
} bitaxon_thermal_params;

/* Params:    params  NULL: defaults.  out  NULL on failure.
 * Returns:   OK, INVALID_ARGUMENT (the message names the field), OUT_OF_MEMORY, UNSUPPORTED
 *            (no sensor, and no_sensor is REFUSE; or `sensor` names none).
 * Ownership: free with bitaxon_thermal_free; sessions that use it keep it alive.
 * Thread:    any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_thermal_create(const bitaxon_thermal_params *params,
                                                  bitaxon_thermal **out, bitaxon_error *error);

/* NULL is fine.  Thread: any-thread.  Since: 0.1 */
BITAXON_API void bitaxon_thermal_free(bitaxon_thermal *thermal);

typedef struct bitaxon_thermal_status {
    uint32_t struct_size;
    uint32_t known;  /* BITAXON_READ_*: of the last reading */
    uint32_t band;   /* BITAXON_BAND_* */
    uint32_t action; /* BITAXON_THERMAL_* */
    uint32_t reason; /* BITAXON_REASON_* of the action */
    uint32_t stale;  /* 1: the temperature below is old, the sensor is silent */
    int32_t temperature_mc, max_temperature_mc; /* last and highest; when known */
    int32_t slope_mc_per_s; /* of the last 10 s */
    uint32_t on_battery, battery_percent;
    uint32_t reserved0;
    uint64_t samples, transitions, throttle_events;
    uint64_t band_ns[4];  /* time spent in each band while asked */
    uint64_t paused_ns;   /* HOT and MAINS_ONLY */
    uint64_t rested_ns;   /* duty, max_tokens_per_second and GRADED */
    uint64_t energy_uj;   /* used since the policy was created, wraps of counters accounted for */
} bitaxon_thermal_status;

/* Read the sensors if it is time, decide, and tell. For hosts with loops of their own, and to look.
 * Params:    out  caller-owned, struct_size set.
 * Returns:   OK, INVALID_ARGUMENT.  Thread: synchronized.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_thermal_sample(bitaxon_thermal *thermal,
                                                  bitaxon_thermal_status *out,
                                                  bitaxon_error *error);

/* What the policy found and chose, in text: temperature_source, power_source, energy_source
 * ("none" when there is none), sensors (one "name<TAB>milli-degrees<TAB>file" per line, the
 * chosen ones first).
 * Params:    buffer, capacity  may be NULL, 0.  need  bytes with the terminator; nullable.
 * Returns:   OK; LIMIT when the buffer is too small (need is set); INVALID_ARGUMENT.
 * Thread:    synchronized.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_thermal_info(bitaxon_thermal *thermal, const char *key,
                                                char *buffer, size_t capacity, size_t *need,
                                                bitaxon_error *error);

/* One moment of the past. */
typedef struct bitaxon_thermal_point {
    uint32_t struct_size;
    uint32_t band;
    uint64_t time_ns;       /* of the policy's clock */
    int32_t temperature_mc; /* INT32_MIN: not known */
    uint32_t action;
    uint64_t energy_uj;
} bitaxon_thermal_point;

/* The last points, oldest first: at most 1024, thinned so that they span the whole life.
 * Params:    out [capacity], the first one's struct_size set; NULL with capacity 0.
 *            count  how many there are.
 * Returns:   OK, INVALID_ARGUMENT, LIMIT (more than capacity; the first `capacity` are filled).
 * Thread:    synchronized.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_thermal_history(bitaxon_thermal *thermal,
                                                   bitaxon_thermal_point *out, size_t capacity,
                                                   size_t *count, bitaxon_error *error);

#ifdef __cplusplus
}
#endif
#endif
