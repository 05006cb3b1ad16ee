/* SPDX-License-Identifier: Apache-2.0 */
/* heat.h - a machine that heats while it works, and what a run on it was like. heat.c simulates and
 * measures, heat_plot.c draws. */
#ifndef BITAXON_BENCH_HEAT_H
#define BITAXON_BENCH_HEAT_H

#include <stdint.h>

/* T' = (ambient + kelvin_per_watt * watts - T) / tau */
typedef struct machine {
    const char *name;
    double ambient, kelvin_per_watt, tau; /* degrees Celsius; K/W; s */
    double idle_watts, full_watts;
} machine;

enum { HEAT_POINTS = 400 };

/* A run, watched at equal distances: temperature, and the share of the time that was worked
 * since the point before. */
typedef struct course {
    const char *name, *colour;
    uint32_t count;
    double celsius[HEAT_POINTS], work[HEAT_POINTS];
} course;

/* Where a machine settles that never rests, and one that only rests. */
double heat_full(const machine *m);
double heat_idle(const machine *m);
/* Share of the time that can be worked while the temperature is held at `celsius`; at most 1. */
double heat_share(const machine *m, double celsius);

/* The SVG file `path`; marks are where WARM, HOT and CRITICAL begin. Returns 0 or an errno. */
int heat_plot(const char *path, const machine *m, double minutes, const double marks[3], const course *courses,
              uint32_t count);

#endif
