/* SPDX-License-Identifier: Apache-2.0 */
/* gate.c - the policy object: reads its sensors when it is time, decides, and makes the one who
 * asks wait. Called between tokens and training steps, from any number of threads. Waiting
 * is done without the lock, in slices, so that others go on deciding and cancel is heard. */
#define _POSIX_C_SOURCE 200809L

#include "thermal/bxn_thermal.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define MS 1000000u
#define SLICE_NS (20u * MS)
#define SAMPLE_NS (50u * MS)       /* a machine that becomes hot is noticed so soon */
#define SLOW_SAMPLE_NS (250u * MS) /* of slow sensors, while it is not warm and the host gives no time: each reading
                                    * waits 2000 times as long as it takes, for a twentieth of a percent */
#define LONGEST_REST_NS 10000000000u /* of one gate: a long step at a low duty is not slept out whole */

static void system_sleep(void *user, uint64_t ns)
{
    (void)user;
    struct timespec wait = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    nanosleep(&wait, NULL); /* a signal ends it early: the caller looks at the clock */
}

static void remember(bxn_thermal *t, uint64_t now, bool changed)
{
    if (!changed && t->history_count != 0 && now - t->history_last_ns < t->history_step_ns)
        return;
    if (t->history_count == BXN_HISTORY) { /* every second one goes, and the next come half as often */
        for (uint32_t i = 0; i < BXN_HISTORY / 2; i++)
            t->history[i] = t->history[2 * i];
        t->history_count = BXN_HISTORY / 2;
        t->history_step_ns *= 2;
    }
    bitaxon_thermal_point *point = &t->history[t->history_count++];
    point->struct_size = sizeof *point;
    point->band = t->decision.band;
    point->action = t->decision.action;
    point->time_ns = now;
    point->temperature_mc = t->reading.known & BITAXON_READ_TEMPERATURE ? t->reading.temperature_mc : INT32_MIN;
    point->energy_uj = t->energy_uj;
    t->history_last_ns = now;
}

/* Under the lock: sample when due; true when band or action is another than before. */
static bool sample(bxn_thermal *t, uint64_t now, bool force)
{
    bool warm = t->decision.band != BITAXON_BAND_NORMAL;
    uint64_t least = t->reading_ns < SLOW_SAMPLE_NS / 2000 ? 2000 * t->reading_ns : SLOW_SAMPLE_NS;
    uint64_t wait = t->sample_ns > least || t->sample_given ? t->sample_ns : least;
    wait = warm && wait > SAMPLE_NS ? SAMPLE_NS : wait;
    if (t->sampled && !force && now >= t->last_ns && now - t->last_ns < wait)
        return false;
    bitaxon_reading reading = {.struct_size = sizeof reading};
    if (t->read == NULL)
        bxn_sensors_read(&t->sensors, &reading);
    else if (t->read(t->user, &reading) != 0)
        reading.known = 0;
    uint64_t read_at = bxn_now_ns(&t->mem);
    t->reading_ns = read_at > now ? read_at - now : 0;
    bxn_decision before = t->decision;
    bool first = !t->sampled;
    t->decision = bxn_policy_step(&t->policy, &t->state, &reading, now);
    t->reading = reading;
    t->last_ns = now;
    t->sampled = true;
    t->samples++;
    if (reading.known & BITAXON_READ_ENERGY) {
        if (!t->had_energy)
            t->energy_first_uj = reading.energy_uj;
        t->had_energy = true;
        uint64_t used = reading.energy_uj >= t->energy_first_uj ? reading.energy_uj - t->energy_first_uj : 0;
        t->energy_uj = used > t->energy_uj ? used : t->energy_uj;
    }
    bool changed = before.band != t->decision.band || before.action != t->decision.action;
    remember(t, now, changed);
    return changed && !first;
}

static void degrees(char text[24], int32_t mc)
{
    uint32_t size = mc < 0 ? 0u - (uint32_t)mc : (uint32_t)mc, tenths = (size + 50) / 100;
    snprintf(text, 24, "%s%u.%u C", mc < 0 ? "-" : "", tenths / 10, tenths % 10);
}

/* Why, in words, for messages and the log. */
static void explain(const bxn_thermal *t, char *text, size_t capacity)
{
    char at[24];
    degrees(at, t->state.temperature_mc);
    switch (t->decision.reason) {
    case BITAXON_REASON_SENSOR_LOST:
        snprintf(text, capacity, "the temperature sensor has been silent for %llu s",
                 (unsigned long long)((t->state.time_ns - t->state.good_ns) / 1000000000u));
        break;
    case BITAXON_REASON_NO_SENSOR:
        snprintf(text, capacity, "no temperature sensor can be read");
        break;
    case BITAXON_REASON_PRESSURE:
        snprintf(text, capacity, "the system's thermal pressure level is %d", t->reading.pressure);
        break;
    case BITAXON_REASON_THROTTLED:
        snprintf(text, capacity, "the processor has throttled itself");
        break;
    case BITAXON_REASON_TREND:
        snprintf(text, capacity, "%s and rising by %d.%d C a second", at, t->decision.slope_mc_per_s / 1000,
                 t->decision.slope_mc_per_s % 1000 / 100);
        break;
    case BITAXON_REASON_ON_BATTERY:
        snprintf(text, capacity, "on battery");
        break;
    case BITAXON_REASON_BATTERY_LOW:
        snprintf(text, capacity, "on battery at %u percent, the floor is %u", t->state.battery_percent,
                 t->policy.battery_floor);
        break;
    default:
        snprintf(text, capacity, "%s at %s", at,
                 t->read != NULL ? "the host's sensor" : t->sensors.temperature_source);
        break;
    }
}

typedef struct note {
    bool changed;
    int32_t level;
    char text[320];
} note;

/* Sample under the lock; what is to be logged is logged after it, by the caller. */
static bxn_decision look(bxn_thermal *t, uint64_t now, bool force, note *n)
{
    static const char *const actions[] = {"full speed", "slower", "paused", "stopped"};
    static const char *const bands[] = {"NORMAL", "WARM", "HOT", "CRITICAL"};
    n->changed = sample(t, now, force);
    if (n->changed) {
        char why[256];
        explain(t, why, sizeof why);
        n->level = t->decision.action >= BITAXON_THERMAL_PAUSE ? BITAXON_LOG_WARNING : BITAXON_LOG_INFO;
        snprintf(n->text, sizeof n->text, "thermal: %s, %s: %s", bands[t->decision.band],
                 actions[t->decision.action], why);
    }
    return t->decision;
}

static void tell(const bxn_thermal *t, const note *n)
{
    if (n->changed)
        bxn_log(&t->mem, n->level, "%s", n->text);
}

static bool cancelled(const atomic_int *cancel)
{
    return cancel != NULL && atomic_load_explicit(cancel, memory_order_relaxed) != 0;
}

/* Sleep until the clock says `until`; false when cancelled. Adds what passed to *account. */
static bool rest(bxn_thermal *t, uint64_t until, const atomic_int *cancel, uint64_t *account)
{
    for (uint64_t now = bxn_now_ns(&t->mem); now < until;) {
        if (cancelled(cancel))
            return false;
        uint64_t left = until - now;
        t->sleep_ns(t->user, left < SLICE_NS ? left : SLICE_NS);
        uint64_t after = bxn_now_ns(&t->mem);
        if (after < now)
            break; /* the clock went back: enough */
        pthread_mutex_lock(&t->lock);
        *account += after - now;
        pthread_mutex_unlock(&t->lock);
        now = after;
    }
    return true;
}

static bitaxon_status halt(bxn_thermal *t, bitaxon_error *error)
{
    char why[256], leave[24];
    pthread_mutex_lock(&t->lock);
    explain(t, why, sizeof why);
    degrees(leave, t->policy.leave_mc[BITAXON_BAND_CRITICAL]);
    bool battery = t->decision.reason == BITAXON_REASON_BATTERY_LOW;
    pthread_mutex_unlock(&t->lock);
    return bxn_fail(error, BITAXON_THERMAL_STOP, "thermal policy: %s: stopped; nothing is lost, go on %s %s", why,
                    battery ? "when" : "below", battery ? "it is charged" : leave);
}

bitaxon_status bxn_thermal_gate(bxn_thermal *t, bxn_thermal_use *use, uint64_t tokens, const atomic_int *cancel,
                                bool *narrow, bitaxon_error *error)
{
    note n;
    uint64_t began = bxn_now_ns(&t->mem), now = began;
    pthread_mutex_lock(&t->lock);
    bxn_decision decision = look(t, now, false, &n);
    pthread_mutex_unlock(&t->lock);
    tell(t, &n);
    uint64_t spent = use->since_ns != 0 && began > use->since_ns ? began - use->since_ns : 0;
    uint64_t rested = use->rested_ns < spent ? use->rested_ns : spent, worked = spent - rested;
    for (uint64_t waited = rested;;) { /* each look decides anew how long: it cools meanwhile */
        bool pause = decision.action == BITAXON_THERMAL_PAUSE;
        uint64_t rest_for = worked / (1000 - decision.rest_permille) * decision.rest_permille;
        if (!pause && waited >= rest_for)
            break;
        if (cancelled(cancel))
            return bxn_fail(error, BITAXON_CANCELLED, "cancelled while the thermal policy %s",
                            pause ? "paused" : "rested");
        t->sleep_ns(t->user, pause || rest_for - waited > SLICE_NS ? SLICE_NS : rest_for - waited);
        uint64_t after = bxn_now_ns(&t->mem), passed = after > now ? after - now : 0;
        pthread_mutex_lock(&t->lock);
        *(pause ? &t->paused_ns : &t->rested_ns) += passed;
        decision = look(t, after, false, &n);
        pthread_mutex_unlock(&t->lock);
        tell(t, &n);
        waited += passed;
        now = after;
    }
    if (decision.action == BITAXON_THERMAL_HALT)
        return halt(t, error);
    if (narrow != NULL)
        *narrow = decision.narrow;

    uint64_t until = 0;
    if (t->duty_percent < 100 && worked != 0) {
        uint64_t pause = worked / t->duty_percent * (100 - t->duty_percent);
        until = began - rested + (pause < LONGEST_REST_NS ? pause : LONGEST_REST_NS);
    }
    if (t->max_tokens_per_second > 0) {
        double from = use->since_ns != 0 ? (double)use->since_ns : (double)began;
        use->due_ns = (use->due_ns > from ? use->due_ns : from) + (double)tokens * 1e9 / t->max_tokens_per_second;
        if (use->due_ns > (double)until) /* a rate next to none is never due */
            until = use->due_ns < 1e19 ? (uint64_t)use->due_ns : UINT64_MAX;
    }
    if (!rest(t, until, cancel, &t->rested_ns))
        return bxn_fail(error, BITAXON_CANCELLED, "cancelled while the thermal policy rested");
    use->since_ns = bxn_now_ns(&t->mem);
    use->rested_ns = 0;
    return BITAXON_OK;
}

bitaxon_status bxn_thermal_rest(bxn_thermal *t, bxn_thermal_use *use, uint64_t ns, const atomic_int *cancel,
                                bitaxon_error *error)
{
    uint64_t until = bxn_now_ns(&t->mem) + (ns < LONGEST_REST_NS ? ns : LONGEST_REST_NS);
    if (!rest(t, until, cancel, &t->rested_ns))
        return bxn_fail(error, BITAXON_CANCELLED, "cancelled while the thermal policy rested");
    use->since_ns = bxn_now_ns(&t->mem);
    use->rested_ns = 0;
    return BITAXON_OK;
}

bool bxn_thermal_energy(bxn_thermal *t, uint64_t *uj)
{
    note n;
    pthread_mutex_lock(&t->lock);
    look(t, bxn_now_ns(&t->mem), true, &n);
    *uj = t->energy_uj;
    bool known = t->had_energy;
    pthread_mutex_unlock(&t->lock);
    tell(t, &n);
    return known;
}

bool bxn_thermal_energy_seen(bxn_thermal *t, uint64_t *uj)
{
    pthread_mutex_lock(&t->lock);
    *uj = t->energy_uj;
    bool known = t->had_energy;
    pthread_mutex_unlock(&t->lock);
    return known;
}

void bxn_thermal_status(bxn_thermal *t, bool take, bitaxon_thermal_status *out)
{
    note n = {0};
    memset(out, 0, sizeof *out);
    out->struct_size = sizeof *out;
    pthread_mutex_lock(&t->lock);
    if (take)
        look(t, bxn_now_ns(&t->mem), false, &n);
    out->known = t->reading.known;
    out->band = t->decision.band;
    out->action = t->decision.action;
    out->reason = t->decision.reason;
    out->stale = t->decision.stale;
    out->temperature_mc = t->state.temperature_mc;
    out->max_temperature_mc = t->state.max_mc;
    out->slope_mc_per_s = t->decision.slope_mc_per_s;
    out->on_battery = t->state.on_battery;
    out->battery_percent = t->state.battery_percent;
    out->samples = t->samples;
    out->transitions = t->state.transitions;
    out->throttle_events = t->state.throttle_events;
    memcpy(out->band_ns, t->state.band_ns, sizeof out->band_ns);
    out->paused_ns = t->paused_ns;
    out->rested_ns = t->rested_ns;
    out->energy_uj = t->energy_uj;
    pthread_mutex_unlock(&t->lock);
    tell(t, &n);
}

bitaxon_status bxn_thermal_init(bxn_thermal *t, const bitaxon_thermal_params *params, bitaxon_error *error)
{
    memset(t, 0, sizeof *t);
    bitaxon_status status = bxn_policy_init(&t->policy, params, error);
    if (status == BITAXON_OK && params->sample_ms != 0 && params->sample_ms < 10)
        status = bxn_fail(error, BITAXON_INVALID_ARGUMENT, "sample_ms is %u, at least 10", params->sample_ms);
    if (status == BITAXON_OK && params->duty_percent > 100)
        status = bxn_fail(error, BITAXON_INVALID_ARGUMENT, "duty_percent is %u", params->duty_percent);
    if (status == BITAXON_OK && !(params->max_tokens_per_second >= 0 && params->max_tokens_per_second <= 1e9))
        status =
            bxn_fail(error, BITAXON_INVALID_ARGUMENT, "max_tokens_per_second is %g", params->max_tokens_per_second);
    if (status == BITAXON_OK)
        status = bxn_mem_init(&t->mem, params->host, 0, error);
    if (status != BITAXON_OK)
        return status;
    t->sample_ns = (uint64_t)(params->sample_ms != 0 ? params->sample_ms : SAMPLE_NS / MS) * MS;
    t->sample_given = params->sample_ms != 0;
    t->history_step_ns = t->sample_ns > SLOW_SAMPLE_NS ? t->sample_ns : SLOW_SAMPLE_NS;
    t->duty_percent = params->duty_percent != 0 ? params->duty_percent : 100;
    t->max_tokens_per_second = params->max_tokens_per_second;
    t->read = params->read;
    t->sleep_ns = params->sleep_ns != NULL ? params->sleep_ns : system_sleep;
    t->user = params->user;
    if (t->read == NULL)
        status = bxn_sensors_open(&t->sensors, params->root, params->sensor, error);
    if (status != BITAXON_OK)
        return status;
    if (pthread_mutex_init(&t->lock, NULL) != 0)
        return bxn_fail(error, BITAXON_SYSTEM, "no mutex for the thermal policy");
    note n;
    look(t, bxn_now_ns(&t->mem), true, &n);
    if (!(t->reading.known & (BITAXON_READ_TEMPERATURE | BITAXON_READ_PRESSURE))) {
        if (params->no_sensor == BITAXON_NO_SENSOR_REFUSE) {
            bxn_thermal_release(t);
            return bxn_fail(error, BITAXON_UNSUPPORTED, "no temperature sensor can be read");
        }
        bxn_log(&t->mem, BITAXON_LOG_WARNING, "thermal: no temperature sensor can be read: %s",
                params->no_sensor == BITAXON_NO_SENSOR_NARROW ? "working as if it were warm"
                                                              : "there is no limit by heat");
    }
    return BITAXON_OK;
}

void bxn_thermal_release(bxn_thermal *t)
{
    pthread_mutex_destroy(&t->lock);
}
