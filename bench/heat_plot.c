/* SPDX-License-Identifier: Apache-2.0 */
/* heat_plot.c - runs of heat.c as a picture: temperature above, the share of the time that is worked
 * below. */
#include "heat.h"

#include <errno.h>
#include <stdio.h>

enum { WIDTH = 860, LEFT = 60, RIGHT = 150, TOP = 30, UPPER = 250, LOWER = 130, GAP = 34 };

typedef struct frame {
    FILE *file;
    double top, height, low, high; /* of a panel: where it is, what it shows */
} frame;

static double across(double share)
{
    return LEFT + share * (WIDTH - LEFT - RIGHT);
}

static double down(const frame *f, double value)
{
    double at = value < f->low ? f->low : value > f->high ? f->high : value;
    return f->top + f->height * (f->high - at) / (f->high - f->low);
}

static void text(const frame *f, double x, double y, const char *anchor, const char *colour, const char *words)
{
    fprintf(f->file, "<text x=\"%.0f\" y=\"%.0f\" text-anchor=\"%s\" fill=\"%s\">%s</text>\n", x, y, anchor, colour,
            words);
}

static void level(const frame *f, double value, const char *colour, const char *words)
{
    double y = down(f, value);
    fprintf(f->file,
            "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"%s\" stroke-dasharray=\"5 3\"/>\n", LEFT, y,
            WIDTH - RIGHT, y, colour);
    text(f, WIDTH - RIGHT + 6, y + 4, "start", colour, words);
}

static void panel(const frame *f, double step, const char *unit, double minutes)
{
    char words[32];
    fprintf(f->file, "<rect x=\"%d\" y=\"%.0f\" width=\"%d\" height=\"%.0f\" fill=\"none\" stroke=\"#999\"/>\n", LEFT,
            f->top, WIDTH - LEFT - RIGHT, f->height);
    for (double value = f->low; value <= f->high + step / 2; value += step) {
        snprintf(words, sizeof words, "%.0f%s", value, unit);
        text(f, LEFT - 6, down(f, value) + 4, "end", "#333", words);
    }
    for (int i = 0; i <= 6; i++) {
        snprintf(words, sizeof words, i == 6 ? "%.0f min" : "%.0f", minutes * i / 6);
        text(f, across(i / 6.0), f->top + f->height + 15, "middle", "#333", words);
    }
}

static void line(const frame *f, const course *c, const double *values, double scale)
{
    fprintf(f->file, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\" points=\"", c->colour);
    for (uint32_t i = 0; i < c->count; i++)
        fprintf(f->file, "%.0f,%.1f ", across((i + 1.0) / c->count), down(f, scale * values[i]));
    fputs("\"/>\n", f->file);
}

int heat_plot(const char *path, const machine *m, double minutes, const double marks[3], const course *courses,
              uint32_t count)
{
    static const char *const names[3] = {"WARM", "HOT: pause", "CRITICAL: stop"};
    static const char *const colours[3] = {"#b8860b", "#d2691e", "#b22222"};
    FILE *file = fopen(path, "w");
    if (file == NULL)
        return errno;
    fprintf(file,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" "
            "font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
            WIDTH, TOP + UPPER + GAP + LOWER + 30);
    frame heat = {file, TOP, UPPER, 20, 110};
    frame work = {file, TOP + UPPER + GAP, LOWER, 0, 100};
    char words[64];
    double x = LEFT;
    for (uint32_t i = 0; i < count; i++, x += 210)
        text(&heat, x, 18, "start", courses[i].colour, courses[i].name);
    panel(&heat, 10, " C", minutes);
    for (int i = 0; i < 3; i++)
        level(&heat, marks[i], colours[i], names[i]);
    panel(&work, 25, "%", minutes);
    snprintf(words, sizeof words, "ideal %.0f%%", 100 * heat_share(m, marks[1]));
    level(&work, 100 * heat_share(m, marks[1]), "#333", words);
    for (uint32_t i = 0; i < count; i++) {
        line(&heat, &courses[i], courses[i].celsius, 1);
        line(&work, &courses[i], courses[i].work, 100);
    }
    text(&work, WIDTH - RIGHT + 6, work.top + 12, "start", "#333", "time worked");
    text(&heat, WIDTH - RIGHT + 6, heat.top + heat.height - 4, "start", "#333", "temperature");
    fputs("</svg>\n", file);
    int bad = ferror(file) ? EIO : 0;
    return fclose(file) != 0 ? errno : bad;
}
