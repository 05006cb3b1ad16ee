/* SPDX-License-Identifier: Apache-2.0 */
/* tool_plot.h - the course of a training run as a picture: losses and learning rate, and below
 * them the temperature when there is a sensor. */
#ifndef BITAXON_TOOL_PLOT_H
#define BITAXON_TOOL_PLOT_H

#include "tool.h"

typedef struct tool_plot_point {
    uint64_t step;
    double loss;
    double rate;    /* learning rate */
    double celsius; /* NAN: not known */
    double paused;  /* seconds */
} tool_plot_point;

typedef struct tool_plot_evaluation {
    uint64_t step;
    double loss;
} tool_plot_evaluation;

typedef struct tool_plot {
    tool_plot_point *points; /* of updates, steps ascending */
    size_t count, room;
    tool_plot_evaluation *evaluations;
    size_t evaluation_count, evaluation_room;
    double marks[3]; /* degrees Celsius where WARM, HOT and CRITICAL begin */
} tool_plot;

void tool_plot_add(tool_plot *plot, const tool_plot_point *point);
void tool_plot_add_evaluation(tool_plot *plot, uint64_t step, double loss);
/* Replace the SVG file `path`; nothing without a point. Returns TOOL_OK or an exit code after
 * a message; the file is then the one before. */
int tool_plot_write(const tool_plot *plot, const char *path);
void tool_plot_free(tool_plot *plot);

#endif
