/* SPDX-License-Identifier: Apache-2.0 */
/* tool_plot.c - the picture of a run, SVG written by hand. Two panels share the axis of
 * updates. Curves are thinned to what a column of the picture can show (lowest and highest of
 * each), so that the file's size does not grow with the run. Colours are classes: a dark
 * viewer gets dark ones, and one that knows no classes for it a white background. */
#include "tool_plot.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tool_file.h"

enum {
    WIDTH = 860,
    LEFT = 66,
    RIGHT = 76,
    TOP = 44,
    LOSS_HEIGHT = 300,
    HEAT_HEIGHT = 110,
    GAP = 26,
    BOTTOM = 48,
    INNER = WIDTH - LEFT - RIGHT,
    MAX_TICKS = 16,
    MAX_DOTS = 400
};

void tool_plot_add(tool_plot *plot, const tool_plot_point *point)
{
    if (plot->count == plot->room) {
        plot->room = plot->room == 0 ? 256 : 2 * plot->room;
        plot->points = tool_realloc(plot->points, plot->room * sizeof *plot->points);
    }
    plot->points[plot->count++] = *point;
}

void tool_plot_add_evaluation(tool_plot *plot, uint64_t step, double loss)
{
    if (plot->evaluation_count == plot->evaluation_room) {
        plot->evaluation_room = plot->evaluation_room == 0 ? 64 : 2 * plot->evaluation_room;
        plot->evaluations =
            tool_realloc(plot->evaluations, plot->evaluation_room * sizeof *plot->evaluations);
    }
    plot->evaluations[plot->evaluation_count++] = (tool_plot_evaluation){step, loss};
}

void tool_plot_free(tool_plot *plot)
{
    free(plot->points);
    free(plot->evaluations);
    memset(plot, 0, sizeof *plot);
}

/* ---- scales and axes --------------------------------------------------------------------- */

/* Values low .. high onto pixels from .. to. */
typedef struct scale {
    double low, high, from, to;
} scale;

static double place(const scale *s, double value)
{
    return s->from + (value - s->low) / (s->high - s->low) * (s->to - s->from);
}

/* 1, 2 or 5 times a power of ten, so that about `wanted` of them fill the range. */
static double tick_step(double range, int wanted)
{
    double rough = range / wanted;
    double power = pow(10, floor(log10(rough)));
    double part = rough / power;
    return power * (part < 1.5 ? 1 : part < 3.5 ? 2 : part < 7.5 ? 5 : 10);
}

static void text(FILE *file, double x, double y, const char *anchor, const char *line)
{
    fprintf(file, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y, anchor, line);
}

static void title_beside(FILE *file, double x, double y, const char *line)
{
    fprintf(file,
            "<text x=\"%.1f\" y=\"%.1f\" transform=\"rotate(-90 %.1f %.1f)\" "
            "text-anchor=\"middle\">%s</text>\n",
            x, y, x, y, line);
}

static void draw_ticks_y(FILE *file, const scale *y, int wanted, bool right)
{
    double step = tick_step(y->high - y->low, wanted);
    int decimals = step < 1 ? (int)-floor(log10(step) + 1e-9) : 0;
    double first = ceil(y->low / step - 1e-9);
    for (int i = 0; i < MAX_TICKS && (first + i) * step <= y->high + 1e-9 * step; i++) {
        double value = (first + i) * step;
        double at = place(y, value);
        char line[40];
        if (right) {
            snprintf(line, sizeof line, "%.3g", fabs(value) < step / 2 ? 0 : value);
            text(file, WIDTH - RIGHT + 6, at + 4, "start", line);
            continue;
        }
        snprintf(line, sizeof line, "%.*f", decimals < 9 ? decimals : 9, value);
        fprintf(file, "<path class=\"g\" d=\"M%d %.1fh%d\"/>\n", LEFT, at, INNER);
        text(file, LEFT - 6, at + 4, "end", line);
    }
}

static void draw_ticks_x(FILE *file, const scale *x, double top, double bottom, bool labels)
{
    double step = fmax(1, tick_step(x->high - x->low, 8));
    double first = ceil(x->low / step);
    for (int i = 0; i < MAX_TICKS && (first + i) * step <= x->high; i++) {
        double at = place(x, (first + i) * step);
        fprintf(file, "<path class=\"g\" d=\"M%.1f %.1fV%.1f\"/>\n", at, top, bottom);
        if (labels) {
            char line[40];
            snprintf(line, sizeof line, "%.0f", (first + i) * step);
            text(file, at, bottom + 16, "middle", line);
        }
    }
}

static void draw_frame(FILE *file, double top, double height)
{
    fprintf(file,
            "<rect class=\"f\" x=\"%d\" y=\"%.1f\" width=\"%d\" height=\"%.1f\" fill=\"none\"/>\n",
            LEFT, top, INNER, height);
}

/* ---- curves ------------------------------------------------------------------------------ */

typedef enum column { LOSS, SMOOTH, RATE, HEAT } column;

static double value_of(const tool_plot *plot, const double *smooth, column what, size_t i)
{
    const tool_plot_point *p = &plot->points[i];
    return what == LOSS ? p->loss : what == SMOOTH ? smooth[i] : what == RATE ? p->rate : p->celsius;
}

/* A path through all points, or through the first, lowest, highest and last of each column. */
static void draw_curve(FILE *file, const tool_plot *plot, const double *smooth, column what,
                       const char *class, const scale *x, const scale *y)
{
    char letter = 'M';
    bool thin = plot->count > INNER;
    size_t drawn = 0;
    fprintf(file, "<path class=\"%s\" clip-path=\"url(#%s)\" d=\"", class,
            what == HEAT ? "heat" : "loss");
    for (size_t i = 0; i < plot->count;) {
        double at = place(x, (double)plot->points[i].step);
        size_t end = i + 1;
        while (thin && end < plot->count &&
               floor(place(x, (double)plot->points[end].step)) <= floor(at)) {
            end++;
        }
        size_t low = i, high = i;
        bool any = false;
        for (size_t k = i; k < end; k++) {
            double value = value_of(plot, smooth, what, k);
            if (!isfinite(value)) {
                continue;
            }
            low = !any || value < value_of(plot, smooth, what, low) ? k : low;
            high = !any || value > value_of(plot, smooth, what, high) ? k : high;
            any = true;
        }
        if (!any) {
            letter = 'M'; /* a gap */
        } else {
            size_t order[2] = {low < high ? low : high, low < high ? high : low};
            for (int k = 0; k < (order[0] == order[1] ? 1 : 2); k++) {
                double down = place(y, value_of(plot, smooth, what, order[k]));
                down = fmin(fmax(down, -9999), 9999); /* far outside of the clipped panel */
                fprintf(file, "%c%.1f %.1f", letter, at, down);
                letter = 'L';
                drawn++;
            }
        }
        i = end;
    }
    fprintf(file, "%s\"/>\n", drawn == 1 ? "h.1" : drawn == 0 ? "M0 0" : "");
}

static int ascending(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return a < b ? -1 : a > b;
}

static void widen(scale *s, double value)
{
    if (isfinite(value)) {
        s->low = fmin(s->low, value);
        s->high = fmax(s->high, value);
    }
}

/* Room for what is drawn; single updates may lie outside of the panel: a spike in a thousand
 * would flatten all the others. */
static void loss_scale(const tool_plot *plot, const double *smooth, scale *s)
{
    double *sorted = tool_alloc(plot->count * sizeof *sorted);
    size_t n = 0;
    s->low = INFINITY;
    s->high = -INFINITY;
    for (size_t i = 0; i < plot->count; i++) {
        widen(s, smooth[i]);
        if (isfinite(plot->points[i].loss)) {
            sorted[n++] = plot->points[i].loss;
        }
    }
    qsort(sorted, n, sizeof *sorted, ascending);
    if (n != 0) {
        widen(s, sorted[n / 200]);
        widen(s, sorted[n - 1 - n / 200]);
    }
    free(sorted);
    for (size_t i = 0; i < plot->evaluation_count; i++) {
        widen(s, plot->evaluations[i].loss);
    }
    if (!(s->low <= s->high)) {
        s->low = s->high = 0;
    }
    double room = fmax(0.05 * (s->high - s->low), 1e-3 * fmax(1, fabs(s->high)));
    s->low = s->low >= 0 ? fmax(0, s->low - room) : s->low - room;
    s->high += room;
}

/* An average that forgets: half of it is of the last fiftieth of the run. */
static double *smoothed(const tool_plot *plot)
{
    double *out = tool_alloc(plot->count * sizeof *out);
    double half = fmin(fmax((double)plot->count / 50, 2), 500);
    double keep = pow(0.5, 1 / half);
    double sum = 0, weight = 0;
    for (size_t i = 0; i < plot->count; i++) {
        if (isfinite(plot->points[i].loss)) {
            sum = keep * sum + (1 - keep) * plot->points[i].loss;
            weight = keep * weight + (1 - keep);
        }
        out[i] = weight > 0 ? sum / weight : NAN;
    }
    return out;
}

/* ---- panels ------------------------------------------------------------------------------ */

static void draw_legend(FILE *file, const tool_plot *plot)
{
    static const struct {
        const char *class, *line;
        int x;
    } items[] = {{"l", "training loss", LEFT},
                 {"s", "the same, smoothed", LEFT + 140},
                 {"r", "learning rate (right)", LEFT + 310}};
    for (size_t i = 0; i < sizeof items / sizeof items[0]; i++) {
        fprintf(file, "<path class=\"%s\" d=\"M%d 24h22\"/>\n", items[i].class, items[i].x);
        text(file, items[i].x + 28, 28, "start", items[i].line);
    }
    if (plot->evaluation_count != 0) {
        fprintf(file, "<circle class=\"v\" cx=\"%d\" cy=\"24\" r=\"3.5\"/>\n", LEFT + 490);
        text(file, LEFT + 500, 28, "start", "validation loss");
    }
}

static void draw_loss(FILE *file, const tool_plot *plot, const scale *x, bool labels)
{
    double *smooth = smoothed(plot);
    scale y = {0, 1, TOP + LOSS_HEIGHT, TOP};
    scale rate = {0, 0, TOP + LOSS_HEIGHT, TOP};
    loss_scale(plot, smooth, &y);
    for (size_t i = 0; i < plot->count; i++) {
        widen(&rate, plot->points[i].rate);
    }
    rate.high = rate.high > 0 ? 1.05 * rate.high : 1;
    draw_ticks_x(file, x, TOP, TOP + LOSS_HEIGHT, labels);
    draw_ticks_y(file, &y, 6, false);
    draw_ticks_y(file, &rate, 5, true);
    draw_curve(file, plot, smooth, RATE, "r", x, &rate);
    draw_curve(file, plot, smooth, LOSS, "l", x, &y);
    draw_curve(file, plot, smooth, SMOOTH, "s", x, &y);
    free(smooth);
    size_t every = 1 + plot->evaluation_count / MAX_DOTS;
    for (size_t i = 0; i < plot->evaluation_count; i++) {
        const tool_plot_evaluation *e = &plot->evaluations[i];
        if (isfinite(e->loss) && (i % every == 0 || i + 1 == plot->evaluation_count)) {
            fprintf(file, "<circle class=\"v\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\"/>\n",
                    place(x, (double)e->step), place(&y, e->loss));
        }
    }
    draw_frame(file, TOP, LOSS_HEIGHT);
    title_beside(file, 18, TOP + LOSS_HEIGHT / 2, "loss (nats)");
    title_beside(file, WIDTH - 10, TOP + LOSS_HEIGHT / 2, "learning rate");
}

static void draw_bands(FILE *file, const tool_plot *plot, const scale *y)
{
    static const char *const names[] = {"warm", "hot", "critical"};
    for (int i = 0; i < 3 && plot->marks[i] < y->high; i++) {
        double low = fmax(plot->marks[i], y->low);
        double high = i < 2 ? fmin(plot->marks[i + 1], y->high) : y->high;
        if (high > low) {
            double top = place(y, high), bottom = place(y, low);
            fprintf(file,
                    "<rect class=\"b%d\" x=\"%d\" y=\"%.1f\" width=\"%d\" height=\"%.1f\"/>\n", i,
                    LEFT, top, INNER, bottom - top);
            text(file, WIDTH - RIGHT + 6, (top + bottom) / 2 + 4, "start", names[i]);
        }
    }
}

/* Updates that waited, side by side as one bar. */
static void draw_pauses(FILE *file, const tool_plot *plot, const scale *x, double top)
{
    bool any = false;
    for (size_t i = 0; i < plot->count;) {
        if (!(plot->points[i].paused >= 0.05)) {
            i++;
            continue;
        }
        double from = place(x, (double)plot->points[i].step - 0.5), to = from + 1;
        for (; i < plot->count; i++) {
            double left = place(x, (double)plot->points[i].step - 0.5);
            if (plot->points[i].paused >= 0.05 && left <= to + 1.5) {
                to = fmax(to, place(x, (double)plot->points[i].step + 0.5));
            } else if (left > to) {
                break;
            }
        }
        any = true;
        from = fmax(from, LEFT);
        to = fmin(to, WIDTH - RIGHT);
        fprintf(file, "<rect class=\"p\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%d\"/>\n",
                from, top, fmax(0.5, to - from), HEAT_HEIGHT);
    }
    if (any) {
        text(file, WIDTH - RIGHT, top - 6, "end", "grey: paused");
    }
}

static void draw_heat(FILE *file, const tool_plot *plot, const scale *x)
{
    double top = TOP + LOSS_HEIGHT + GAP;
    scale y = {INFINITY, -INFINITY, top + HEAT_HEIGHT, top};
    for (size_t i = 0; i < plot->count; i++) {
        widen(&y, plot->points[i].celsius);
    }
    y.low = floor(y.low - 3);
    y.high = ceil(fmax(y.high + 3, plot->marks[0] + 2));
    draw_bands(file, plot, &y);
    draw_pauses(file, plot, x, top);
    draw_ticks_x(file, x, top, top + HEAT_HEIGHT, true);
    draw_ticks_y(file, &y, 4, false);
    draw_curve(file, plot, NULL, HEAT, "t", x, &y);
    draw_frame(file, top, HEAT_HEIGHT);
    title_beside(file, 18, top + HEAT_HEIGHT / 2, "temperature (&#176;C)");
}

static const char style[] =
    "<style>"
    "text{font:12px system-ui,sans-serif;fill:#333}path{fill:none}"
    ".bg{fill:#fff}.f{stroke:#888}.g{stroke:#e4e4e4}"
    ".l{stroke:#9cc2e8;stroke-width:.8}.s{stroke:#1664b0;stroke-width:2.2}"
    ".r{stroke:#999;stroke-width:1;stroke-dasharray:5 3}.v{fill:#d1541b}"
    ".t{stroke:#a03050;stroke-width:1.2}.p{fill:#555;opacity:.18}"
    ".b0{fill:#fbe9a0;opacity:.6}.b1{fill:#f9c38c;opacity:.6}.b2{fill:#f2998f;opacity:.6}"
    "@media(prefers-color-scheme:dark){"
    "text{fill:#d0d3d8}.bg{fill:#16181d}.f{stroke:#6a6f78}.g{stroke:#2c3038}"
    ".l{stroke:#3a628c}.s{stroke:#6db3f8}.r{stroke:#8a8f98}.v{fill:#ff9a5c}.t{stroke:#f08ca8}"
    ".p{fill:#ccc}.b0{fill:#6b5a10}.b1{fill:#7a4413}.b2{fill:#7d2a22}}"
    "</style>\n";

static void draw(FILE *file, const tool_plot *plot)
{
    bool heat = false;
    for (size_t i = 0; i < plot->count && !heat; i++) {
        heat = isfinite(plot->points[i].celsius);
    }
    int bottom = TOP + LOSS_HEIGHT + (heat ? GAP + HEAT_HEIGHT : 0);
    scale x = {(double)plot->points[0].step, (double)plot->points[plot->count - 1].step, LEFT,
               WIDTH - RIGHT};
    if (plot->evaluation_count != 0) {
        widen(&x, (double)plot->evaluations[0].step);
        widen(&x, (double)plot->evaluations[plot->evaluation_count - 1].step);
    }
    if (x.high <= x.low) {
        x.low -= x.low >= 1 ? 1 : 0;
        x.high = x.low + 2;
    }
    fprintf(file,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
            "viewBox=\"0 0 %d %d\">\n<title>Course of training</title>\n",
            WIDTH, bottom + BOTTOM, WIDTH, bottom + BOTTOM);
    fputs(style, file);
    fprintf(file,
            "<defs><clipPath id=\"loss\"><rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"/>"
            "</clipPath><clipPath id=\"heat\"><rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"/>"
            "</clipPath></defs>\n",
            LEFT, TOP, INNER, LOSS_HEIGHT, LEFT, TOP + LOSS_HEIGHT + GAP, INNER, HEAT_HEIGHT);
    fprintf(file, "<rect class=\"bg\" width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n", WIDTH,
            bottom + BOTTOM);
    draw_legend(file, plot);
    draw_loss(file, plot, &x, !heat);
    if (heat) {
        draw_heat(file, plot, &x);
    }
    text(file, LEFT + INNER / 2, bottom + 36, "middle", "updates");
    fputs("</svg>\n", file);
}

int tool_plot_write(const tool_plot *plot, const char *path)
{
    tool_output output;
    if (plot->count == 0) {
        return TOOL_OK;
    }
    int code = tool_output_open(&output, path);
    if (code == TOOL_OK) {
        draw(output.file, plot);
        code = ferror(output.file) ? tool_error("writing %s failed", path)
                                   : tool_output_commit(&output);
        tool_output_abandon(&output);
    }
    return code;
}
