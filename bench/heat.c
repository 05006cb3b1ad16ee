/* SPDX-License-Identifier: Apache-2.0 */
/* heat.c - `bench_heat MODEL`: training on a simulated machine that heats while it works. The trainer makes real
 * updates of the model under the library's thermal policy; only time and temperature are made up: the
 * host's executor moves the clock on by what a region of work would take, sleeping moves it by what was asked
 * for, and the sensor gives the temperature of a body that power heats and air cools (heat.h). An
 * hour passes in seconds. Uses the public headers alone.
 *
 *   bench_heat tests/golden/tiny-q4 --svg docs/thermal.svg   the tables and the picture of docs/thermal.md
 *   bench_heat tests/golden/tiny-q4 --short                  what must hold, for tests
 *
 * Exit code 1 when a run under the graded policy does not hold what is asked of it. */
#include "heat.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <bitaxon/bitaxon.h>

enum { ACCUMULATE = 4, WATCHED = 25 };
static const double marks[3] = {75, 85, 95}; /* the policy's defaults */
static const double most_lost = 0.10;

double heat_full(const machine *m)
{
    return m->ambient + m->kelvin_per_watt * m->full_watts;
}

double heat_idle(const machine *m)
{
    return m->ambient + m->kelvin_per_watt * m->idle_watts;
}

double heat_share(const machine *m, double celsius)
{
    double share = (celsius - heat_idle(m)) / (heat_full(m) - heat_idle(m));
    return share < 1 ? share : 1;
}

/* Seconds of work in `seconds` by a controller that works on until the temperature is `celsius` and then holds it
 * there exactly. */
static double ideal(const machine *m, double celsius, double seconds)
{
    double full = heat_full(m);
    if (full <= celsius)
        return seconds;
    double until = m->tau * log((full - heat_idle(m)) / (full - celsius));
    return until >= seconds ? seconds : until + (seconds - until) * heat_share(m, celsius);
}

/* ---- the machine ------------------------------------------------------------------------- */

typedef struct world {
    const machine *m;
    uint64_t now, began, region_ns, regions;
    double celsius, most, joules, worked; /* s */
    double band[4];                       /* s, by temperature */
    course *course;
    double point_seconds, next_point, point_worked;
} world;

static double elapsed(const world *w)
{
    return (double)(w->now - w->began) / 1e9;
}

static void pass(world *w, uint64_t ns, bool working)
{
    const machine *m = w->m;
    double seconds = (double)ns / 1e9, watts = working ? m->full_watts : m->idle_watts;
    double settles = m->ambient + m->kelvin_per_watt * watts;
    w->celsius = settles + (w->celsius - settles) * exp(-seconds / m->tau);
    w->most = w->celsius > w->most ? w->celsius : w->most;
    w->joules += watts * seconds;
    w->worked += working ? seconds : 0;
    w->band[(w->celsius >= marks[0]) + (w->celsius >= marks[1]) + (w->celsius >= marks[2])] += seconds;
    w->now += ns;
    course *c = w->course;
    if (c != NULL && c->count < HEAT_POINTS && elapsed(w) >= w->next_point) {
        c->celsius[c->count] = w->celsius;
        c->work[c->count++] = (w->worked - w->point_worked) / (elapsed(w) - w->next_point + w->point_seconds);
        w->point_worked = w->worked;
        w->next_point = elapsed(w) + w->point_seconds;
    }
}

static uint64_t world_now(void *user)
{
    return ((world *)user)->now;
}

static int32_t world_work(void *user, uint32_t count, void (*task)(void *context, uint32_t index), void *context)
{
    world *w = user;
    w->regions++;
    for (uint32_t i = 0; i < count; i++)
        task(context, i);
    pass(w, w->region_ns, true);
    return 0;
}

static void world_sleep(void *user, uint64_t ns)
{
    pass(user, ns, false);
}

/* Whole degrees, as sensors of processors give them. */
static int32_t world_read(void *user, bitaxon_reading *out)
{
    const world *w = user;
    out->known = BITAXON_READ_TEMPERATURE | BITAXON_READ_ENERGY;
    out->temperature_mc = (int32_t)floor(w->celsius) * 1000;
    out->energy_uj = (uint64_t)(w->joules * 1e6);
    return 0;
}

/* ---- a run --------------------------------------------------------------------------------- */

typedef enum policy { NONE, HALF, GRADED, POLICIES } policy;

typedef struct trial {
    const char *name;
    machine m;
    double micro_seconds; /* of a micro-step */
    policy policy;
    uint32_t duty;
} trial;

typedef struct outcome {
    double seconds, worked, most, joules, band[4];
    uint64_t updates, rows;
    double losses[WATCHED]; /* of the first updates */
    double reported_uj, rested;
    bool stopped;
} outcome;

static void must(bitaxon_status status, const bitaxon_error *error, const char *what)
{
    if (status == BITAXON_OK)
        return;
    fprintf(stderr, "bench_heat: %s: %s: %s\n", what, bitaxon_status_name(status), error->message);
    exit(2);
}

/* Examples that count upwards. */
static bitaxon_dataset *counting(bitaxon_model *model)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_dataset_params params = {.struct_size = sizeof params, .max_tokens = 32};
    bitaxon_dataset *data;
    must(bitaxon_dataset_open(model, &params, &data, &error), &error, "data");
    for (int32_t i = 0; i < 64; i++) {
        int32_t tokens[16];
        for (int32_t t = 0; t < 16; t++)
            tokens[t] = (i * 7 + t) % 96;
        must(bitaxon_dataset_add(data, tokens, NULL, 16, &error), &error, "data");
    }
    return data;
}

static bitaxon_trainer *make_trainer(bitaxon_model *model, bitaxon_dataset *data, bitaxon_thermal *thermal)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_trainer_params params = {.struct_size = sizeof params, .data = data, .thermal = thermal, .rank = 4,
                                     .block_tokens = 32, .accumulate = ACCUMULATE, .steps = UINT64_MAX / 4,
                                     .warmup = 10, .seed = 7, .learning_rate = 1e-3};
    bitaxon_trainer *trainer;
    must(bitaxon_trainer_create(model, &params, &trainer, &error), &error, "trainer");
    return trainer;
}

static bitaxon_thermal *make_policy(world *w, const bitaxon_host *host, const trial *t)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_thermal_params params = {.struct_size = sizeof params, .host = host, .read = world_read,
                                     .sleep_ns = world_sleep, .user = w, .duty_percent = t->duty,
                                     .flags = t->policy == GRADED ? BITAXON_THERMAL_GRADED : 0};
    bitaxon_thermal *thermal = NULL;
    if (t->policy != NONE)
        must(bitaxon_thermal_create(&params, &thermal, &error), &error, "policy");
    return thermal;
}

static outcome simulate(const char *path, const trial *t, double seconds, course *course)
{
    world w = {.m = &t->m, .now = 1000000000u};
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_host host = {.struct_size = sizeof host, .user = &w, .now_ns = world_now, .parallel_for = world_work};
    bitaxon_model_params params = {.struct_size = sizeof params, .path = path, .threads = 2, .host = &host,
                                   .accuracy = BITAXON_ACCURACY_EXACT};
    bitaxon_train_result r = {.struct_size = sizeof r};
    bitaxon_model *model;
    outcome out = {0};
    must(bitaxon_model_open(&params, &model, &error), &error, path);
    bitaxon_dataset *data = counting(model);

    bitaxon_trainer *trainer = make_trainer(model, data, NULL); /* how many regions an update has */
    uint64_t before = w.regions;
    must(bitaxon_trainer_step(trainer, &r, &error), &error, "first update");
    w.region_ns = (uint64_t)(t->micro_seconds * ACCUMULATE * 1e9 / (double)(w.regions - before));
    bitaxon_trainer_free(trainer);

    w.celsius = heat_idle(&t->m);
    w.began = w.now;
    bitaxon_thermal *thermal = make_policy(&w, &host, t);
    trainer = make_trainer(model, data, thermal);
    w = (world){.m = w.m, .now = w.now, .began = w.now, .region_ns = w.region_ns, .celsius = heat_idle(&t->m),
                .course = course, .point_seconds = seconds / HEAT_POINTS, .next_point = seconds / HEAT_POINTS};
    while (elapsed(&w) < seconds && !out.stopped) {
        bitaxon_status status = bitaxon_trainer_step(trainer, &r, &error);
        out.stopped = status == BITAXON_THERMAL_STOP;
        if (out.stopped)
            break;
        must(status, &error, "update");
        if (out.updates < WATCHED)
            out.losses[out.updates] = r.loss;
        out.updates++;
        out.rows += r.rows;
        out.reported_uj += (double)r.energy_uj;
    }
    out.seconds = elapsed(&w);
    out.worked = w.worked;
    out.most = w.most;
    out.joules = w.joules;
    memcpy(out.band, w.band, sizeof out.band);
    if (thermal != NULL) {
        bitaxon_thermal_status status = {.struct_size = sizeof status};
        must(bitaxon_thermal_sample(thermal, &status, &error), &error, "status");
        out.rested = (double)(status.rested_ns + status.paused_ns) / 1e9;
    }
    bitaxon_trainer_free(trainer);
    bitaxon_dataset_free(data);
    bitaxon_model_free(model);
    bitaxon_thermal_free(thermal);
    return out;
}

/* ---- what is asked for ----------------------------------------------------------------------- */

static const char *const policies[POLICIES] = {"none", "half in WARM", "graded"};

/* A line of the table; false when a promise was not kept. */
static bool report(const trial *t, const outcome *o)
{
    double share = o->worked / ideal(&t->m, marks[1], o->seconds);
    char name[40], duty[24] = "";
    if (t->duty != 0)
        snprintf(duty, sizeof duty, ", power %u %%", t->duty);
    snprintf(name, sizeof name, "%s%s", policies[t->policy], duty);
    printf("| %-34s | %4.1f s | %-20s | %5.1f C | %5.1f | %5.1f | %4.1f | %4.1f | %5.1f W | %6.1f %% | %6.1f %% |%s\n",
           t->name, t->micro_seconds, name, o->most, o->band[0] / 60, o->band[1] / 60, o->band[2] / 60, o->band[3] / 60,
           o->joules / o->seconds, 100 * o->worked / o->seconds, 100 * share, o->stopped ? " stopped" : "");
    if (t->policy != GRADED)
        return true;
    bool cool = o->most < marks[1] && !o->stopped && o->band[2] == 0 && o->band[3] == 0;
    bool quick = t->duty != 0 || share >= 1 - most_lost;
    /* The clock has seen nothing but work and rest, and the policy has counted them. */
    bool counted = fabs(o->seconds - o->worked - o->rested) < 0.01 * o->seconds &&
                   fabs(o->reported_uj / 1e6 - o->joules) < 0.02 * o->joules;
    bool duty_held = t->duty == 0 || o->worked / o->seconds < t->duty / 100.0 + 0.01;
    if (!cool || !quick || !counted || !duty_held)
        printf("FAILED:%s%s%s%s\n", cool ? "" : " not below HOT", quick ? "" : " too slow",
               counted ? "" : " badly counted", duty_held ? "" : " more work than its share");
    return cool && quick && counted && duty_held;
}

#define MACHINE(full, tau) {"", 25, 4, tau, 2, ((full)-25) / 4.0}

int main(int argc, char **argv)
{
    static const trial trials[] = {
        {"fanless laptop, 105 C, 75 s", MACHINE(105, 75), 2, NONE, 0},
        {"the same", MACHINE(105, 75), 2, HALF, 0},
        {"the same", MACHINE(105, 75), 2, GRADED, 0},
        {"short micro-steps", MACHINE(105, 75), 0.2, GRADED, 0},
        {"long micro-steps", MACHINE(105, 75), 8, GRADED, 0},
        {"quicker, 105 C, 60 s", MACHINE(105, 60), 2, GRADED, 0},
        {"slower, 105 C, 90 s", MACHINE(105, 90), 2, GRADED, 0},
        {"stronger, 125 C, 75 s", MACHINE(125, 75), 2, GRADED, 0},
        {"weaker, 90 C, 75 s", MACHINE(90, 75), 2, GRADED, 0},
        {"on battery", MACHINE(105, 75), 2, GRADED, 50},
    };
    const char *svg = NULL;
    double minutes = 60;
    bool brief = false;
    for (int i = 2; i < argc; i++) {
        if (strcmp(argv[i], "--short") == 0) {
            brief = true;
            minutes = 8;
        } else if (strcmp(argv[i], "--svg") == 0 && i + 1 < argc) {
            svg = argv[++i];
        } else {
            argc = 0;
        }
    }
    if (argc < 2) {
        fputs("Usage: bench_heat MODEL [--short] [--svg FILE]\n", stderr);
        return 2;
    }
    static course courses[POLICIES] = {{.name = "no policy", .colour = "#888"},
                                       {.name = "half speed in WARM", .colour = "#3a7"},
                                       {.name = "graded rest", .colour = "#26c"}};
    double watched[WATCHED] = {0};
    bool well = true;
    printf("| machine: settles at, time constant | micro-step | policy | highest | min below 75 C | to 85 C | to 95 C "
           "| above | mean power | worked | of the ideal |\n|---|---|---|---|---|---|---|---|---|---|---|\n");
    for (size_t i = 0; i < sizeof trials / sizeof *trials; i++) {
        const trial *t = &trials[i];
        bool drawn = i < POLICIES;
        if (brief && !drawn && t->duty == 0)
            continue;
        outcome o = simulate(argv[1], t, minutes * 60, drawn ? &courses[t->policy] : NULL);
        well = report(t, &o) && well;
        fflush(stdout);
        if (i == 0)
            memcpy(watched, o.losses, sizeof watched);
        if (memcmp(watched, o.losses, sizeof watched) != 0) {
            printf("FAILED: the losses are others than without a policy\n");
            well = false;
        }
    }
    int code = svg != NULL ? heat_plot(svg, &trials[0].m, minutes, marks, courses, POLICIES) : 0;
    if (code != 0)
        fprintf(stderr, "bench_heat: %s: %s\n", svg, strerror(code));
    return well && code == 0 ? 0 : 1;
}
