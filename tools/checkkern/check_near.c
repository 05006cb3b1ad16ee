/* SPDX-License-Identifier: Apache-2.0 */
/* check_near.c - checks of the products with integer activations (near and fast tiers) and of
 * quant_x, which makes the integers. A tier stores integers as it likes, so each tier's
 * products get what its own quant_x wrote, and quant_x is judged by products with a unit
 * matrix, which give back every integer. Expected values come from the formulas of kernels.h,
 * evaluated here once more, and from the product of the real values with the error that
 * rounding to integers may cost. */
#include "check_products.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/runtime.h"

enum { PLAIN_INPUTS, DENORMAL, WITH_NAN, WITH_INFINITY, MIXED, EXTREME };

static const double limits[] = {0, 32512, 32512, 4095, 127, 127, 127}; /* L of kernels.h */
static const double table_units[] = {1, 1, 1, 8191, 1, 1, 127};        /* T */

/* The integers of one block by the formula; its scale is returned. */
static float integers(bxn_xq_kind kind, const float *x, int32_t *q)
{
    const float limit = (float)limits[kind];
    float most = 0;
    bool finite = true;
    for (int i = 0; i < BXN_XQ_BLOCK; i++) {
        finite = finite && isfinite(x[i]);
        if (fabsf(x[i]) > most)
            most = fabsf(x[i]);
    }
    memset(q, 0, BXN_XQ_BLOCK * sizeof *q);
    if (!finite)
        return NAN;
    if (most < 1e-30f)
        return 0;
    const float factor = limit / most, step = most / limit;
    for (int i = 0; i < BXN_XQ_BLOCK; i++) {
        float scaled = (float)((double)x[i] * (double)factor); /* exact, then to f32 */
        double whole = nearbyint((double)scaled);
        q[i] = (int32_t)fmax(-(double)limit, fmin((double)limit, whole));
    }
    return (float)((double)step / table_units[kind]);
}

/* ---- products --------------------------------------------------------------------------- */

/* What one table's quant_x made of the activations. */
typedef struct quantised {
    const bxn_kernels *kernels;
    const char *xq;
    const float *xscale;
} quantised;

typedef struct near_matrix {
    bxn_packed w;
    bool fast;
    bxn_xq_kind kind;
    const float *x; /* of all sources */
    size_t ldx, ldxq, ldxscale;
    quantised set[3];
    size_t sets;
} near_matrix;

/* Fill args with the integers of the table k, for the tokens that begin at args->x. */
static void multiply_near(const run *r, const bxn_kernels *k, const void *matrix, uint32_t begin,
                          uint32_t end, const bxn_mm_args *args)
{
    const near_matrix *near = matrix;
    const quantised *set = NULL;
    (void)r;
    for (size_t i = 0; i < near->sets; i++)
        if (near->set[i].kernels == k)
            set = &near->set[i];
    if (set == NULL) {
        fprintf(stderr, "checkkern: no integers for this table\n");
        exit(2);
    }
    bxn_mm_args a = *args;
    size_t first = (size_t)(args->x - near->x) / near->ldx;
    a.x = NULL;
    a.ldx = 0;
    a.xq = set->xq + first * near->ldxq;
    a.ldxq = near->ldxq;
    a.xscale = set->xscale + first * near->ldxscale;
    a.ldxscale = near->ldxscale;
    bool four = near->w.code_bits == 4;
    (near->fast ? (four ? k->mm_fast4 : k->mm_fast8)
                : (four ? k->mm_near4 : k->mm_near8))(&near->w, begin, end, &a);
}

static void quantise(run *r, near_matrix *near, const problem *p, const bxn_kernels *k)
{
    size_t columns = (size_t)near->w.k_units * BXN_UNIT_COLS;
    char *xq = guarded(p->sources * near->ldxq);
    float *xscale = guarded_floats(p->sources * near->ldxscale);
    fill_pattern(xscale, p->sources * near->ldxscale);
    for (uint32_t m = 0; m < p->sources; m++)
        k->quant_x(near->kind, p->x + m * p->ldx, columns, xq + m * near->ldxq,
                   xscale + m * near->ldxscale);
    for (uint32_t m = 0; m < p->sources; m++)
        for (size_t i = columns / BXN_XQ_BLOCK; i < near->ldxscale; i++)
            if (!has_pattern(xscale[m * near->ldxscale + i]))
                fail(r, "quant_x wrote a scale beyond column %zu", columns);
    near->set[near->sets++] = (quantised){k, xq, xscale};
}

/* Code values as integers of the kind. */
static int32_t *code_values(const near_matrix *near, const plain_matrix *plain)
{
    const size_t count = (size_t)near->w.rows * near->w.k_units * BXN_UNIT_COLS;
    int32_t *value = calloc(count, sizeof *value);
    for (size_t i = 0; i < count; i++)
        value[i] = (int32_t)nearbyint((double)(plain->value[i] * (float)table_units[near->kind]));
    return value;
}

/* Expected values of the integer order into want and bound, and of the product of the real
 * values into real and real_bound. */
static void expect_near(const problem *p, const near_matrix *near, const plain_matrix *plain,
                        double *real, double *real_bound)
{
    const bxn_packed *w = &near->w;
    const size_t columns = (size_t)w->k_units * BXN_UNIT_COLS, subs = columns / 32;
    const uint32_t width = w->blocks == 4 ? 32 : 64;
    const double unit = table_units[near->kind], steps = 10.0 + 2.0 * (double)(columns / width);
    int32_t *value = code_values(near, plain);
    int32_t *q = calloc(columns, sizeof *q);
    float *xs = calloc(columns / BXN_XQ_BLOCK, sizeof *xs);
    for (uint32_t m = 0; m < p->count; m++) {
        size_t source = p->index != NULL ? (size_t)p->index[m] : m;
        const float *x = p->x + source * p->ldx;
        for (size_t b = 0; b < columns / BXN_XQ_BLOCK; b++)
            xs[b] = integers(near->kind, x + b * BXN_XQ_BLOCK, q + b * BXN_XQ_BLOCK);
        for (uint32_t row = 0; row < w->rows; row++) {
            double sum = 0, size = 0, tiny = 0, exact = 0, lost = 0;
            for (size_t k = 0; k < columns; k += width) {
                const float *v = plain->value + row * columns + k;
                double scale = (double)plain->scale[row * subs + k / 32];
                double step = (double)xs[k / BXN_XQ_BLOCK];
                double x_error = (step > 0 ? 0.52 * step * unit : 1e-30);
                double v_error = unit > 1 ? 0.51 / unit : 0, dot = 0;
                int64_t s = 0;
                for (uint32_t i = 0; i < width; i++) {
                    s += (int64_t)value[row * columns + k + i] * q[k + i];
                    dot += (double)v[i] * (double)x[k + i];
                    lost += fabs(scale) * (fabs((double)v[i]) * x_error +
                                           v_error * (fabs((double)x[k + i]) + x_error));
                }
                if (llabs(s) > INT32_MAX) {
                    fprintf(stderr, "checkkern: a sum that needs more than 32 bits\n");
                    exit(2);
                }
                double term = (double)s * scale * step;
                sum += term;
                size += fabs(term);
                tiny += fabs((double)s) + 4;
                exact += scale * dot;
                if (w->has_bias) {
                    const float *sums = p->xsum + source * p->ldsum + k / 32;
                    double total = (double)sums[0] + (width == 64 ? (double)sums[1] : 0), size_x = 0;
                    double bias = (double)plain->bias_[row * subs + k / 32];
                    for (uint32_t i = 0; i < width; i++)
                        size_x += fabs((double)x[k + i]);
                    sum += bias * total;
                    exact += bias * total;
                    size += (fabs(bias) + 2 * fabs(scale * (double)w->center)) * fabs(total);
                    tiny += 2 * fabs(total) + 2 * fabs(bias) + fabs((double)w->center);
                    lost += 32 * UNIT_ROUNDOFF * fabs(bias) * size_x;
                }
            }
            size_t at = (size_t)m * w->rows + row;
            p->want[at] = sum;
            p->bound[at] = steps * UNIT_ROUNDOFF * size + 0x1p-126 * tiny;
            real[at] = exact;
            real_bound[at] = p->bound[at] + lost;
        }
    }
    free(value);
    free(q);
    free(xs);
}

/* The largest codes of either sign in any mixture, so that no intermediate sum has room to
 * spare. */
static void make_extreme_codes(run *r, bxn_packed *w, plain_matrix *plain)
{
    uint8_t *data = (uint8_t *)(uintptr_t)w->data;
    const uint32_t most = (1u << w->source_bits) - 1;
    if (bxn_packed_has_table(w)) {
        w->table[0] = -1.0f;
        w->table[most] = 1.0f;
    }
    for (uint32_t row = 0; row < w->rows; row++) {
        uint32_t mixture = below(r, 4); /* all low, all high, alternating, random */
        for (uint32_t k = 0; k < w->cols; k++) {
            bool high = mixture == 3 ? below(r, 2) : mixture == 2 ? k & 1 : mixture == 1;
            uint8_t *codes = data + ((size_t)(row / 16) * w->k_units + k / 128) * w->unit_bytes +
                             bxn_unit_scale_bytes(w);
            float *value = plain->value + (size_t)row * w->k_units * 128 + k;
            uint32_t c = k % 128;
            if (w->code_bits == 8) {
                int code = high ? (int)(most / 2) : -(int)(most / 2) - 1;
                codes[(c / 4 * 16 + row % 16) * 4 + c % 4] = (uint8_t)code;
                *value = (float)code;
            } else {
                uint8_t *byte = &codes[(c / 8 * 16 + row % 16) * 4 + c % 8 / 2];
                uint32_t code = high ? most : 0, shift = c % 2 * 4;
                *byte = (uint8_t)((*byte & ~(15u << shift)) | code << shift);
                *value = w->table[code];
            }
        }
    }
}

/* Inputs whose integers are the largest, or have the largest bytes when cut in two. */
static void make_extreme_inputs(run *r, const problem *p, bxn_xq_kind kind)
{
    static const int32_t corners[] = {32512, -32512, 32511, -32511, 127, -128, 128,  32384 - 128,
                                      -129,  32383,  255,   -256,   1,   0,    -255, -32384};
    const double limit = limits[kind];
    float *x = (float *)(uintptr_t)p->x;
    for (uint32_t m = 0; m < p->sources; m++) {
        uint32_t mixture = below(r, 4);
        for (uint32_t k = 0; k < p->cols; k++) {
            int32_t q = mixture == 0 || k % BXN_XQ_BLOCK == 0 ? 32512
                        : mixture == 1                         ? -32512
                                                               : corners[below(r, 16)];
            if (abs(q) > limit)
                q = q > 0 ? (int32_t)limit : -(int32_t)limit;
            x[m * p->ldx + k] = (float)((double)q / limit);
        }
    }
}

static void make_mixed_inputs(run *r, const problem *p)
{
    float *x = (float *)(uintptr_t)p->x;
    for (uint32_t m = 0; m < p->sources; m++) {
        for (uint32_t k = 0; k < p->cols;) {
            float size = powf(10.0f, uniform(r, -33.0f, 25.0f));
            uint32_t end = k + 1 + below(r, 100);
            for (; k < p->cols && k < end; k++)
                x[m * p->ldx + k] *= below(r, 8) == 0 ? 0.0f : size;
        }
    }
}

typedef struct shape {
    uint32_t rows, cols, count;
    uint8_t code_bits, source_bits, block_count;
    bool has_bias, f32, indirect, fast;
    int special;
} shape;

static void near_case(run *r, const shape *s)
{
    near_matrix near = {.fast = s->fast};
    plain_matrix plain;
    make_packed(r, &near.w, &plain, s->rows, s->cols, s->code_bits, s->source_bits, s->block_count,
                s->has_bias, s->f32);
    if (s->special == EXTREME)
        make_extreme_codes(r, &near.w, &plain);
    near.kind = bxn_xq_kind_of(&near.w, s->fast);
    problem p = {.matrix = &near,
                 .multiply = multiply_near,
                 .rows = s->rows,
                 .cols = s->cols,
                 .cut_unit = 16,
                 .count = s->count,
                 .sources = s->indirect ? s->count + 2 : s->count};
    make_activations(r, &p, s->special <= WITH_INFINITY ? s->special : 0, false);
    if (s->special == MIXED)
        make_mixed_inputs(r, &p);
    if (s->special == EXTREME)
        make_extreme_inputs(r, &p, near.kind);
    if (s->has_bias)
        make_sums(r, &p);
    size_t columns = (size_t)near.w.k_units * BXN_UNIT_COLS;
    near.x = p.x;
    near.ldx = p.ldx;
    near.ldxq = bxn_xq_bytes(near.kind, columns) + 64 * (size_t)below(r, 3);
    near.ldxscale = columns / BXN_XQ_BLOCK + below(r, 3);
    size_t values = (size_t)s->count * s->rows;
    p.want = calloc(values, sizeof(double));
    p.bound = calloc(values, sizeof(double));
    double *real = calloc(values, sizeof(double)), *real_bound = calloc(values, sizeof(double));
    expect_near(&p, &near, &plain, real, real_bound);
    bool flushed = s->special == DENORMAL || s->special == MIXED; /* as tasks run; too */
    for (int flush = 0; flush <= flushed; flush++) {
        uint64_t saved = flush ? bxn_float_enter() : 0;
        near.sets = 0;
        quantise(r, &near, &p, r->plain);
        if (!r->is_plain)
            quantise(r, &near, &p, r->kernels);
        if (r->below != NULL)
            quantise(r, &near, &p, r->below);
        check_problem(r, &p, true);
        if (r->is_plain && s->special != WITH_NAN && s->special != WITH_INFINITY) {
            problem q = p;
            q.want = real;
            q.bound = real_bound;
            check_problem(r, &q, false);
        }
        if (flush)
            bxn_float_leave(saved);
    }
    free(plain.value);
    free(plain.scale);
    free(plain.bias_);
    free(p.want);
    free(p.bound);
    free(real);
    free(real_bound);
    release_guarded(r, "integer product");
}

static void check_empty(run *r, uint8_t code_bits, bool fast)
{
    near_matrix near = {.fast = fast};
    plain_matrix plain;
    make_packed(r, &near.w, &plain, 20, 130, code_bits, code_bits, 2, false, false);
    near.kind = bxn_xq_kind_of(&near.w, fast);
    problem p = {.rows = 20, .cols = 130, .count = 1, .sources = 1};
    make_activations(r, &p, 0, false);
    near.x = p.x;
    near.ldx = p.ldx;
    near.ldxq = bxn_xq_bytes(near.kind, 256);
    near.ldxscale = 4;
    quantise(r, &near, &p, r->kernels);
    float *y = guarded_floats(20);
    fill_pattern(y, 20);
    bxn_mm_args none = {.x = p.x, .ldx = p.ldx, .count = 0, .y = y, .ldy = 20};
    multiply_near(r, r->kernels, &near, 0, 2, &none);
    none.count = 1;
    multiply_near(r, r->kernels, &near, 1, 1, &none);
    for (int i = 0; i < 20; i++)
        if (!has_pattern(y[i]))
            fail(r, "an empty product wrote y[%d]", i);
    free(plain.value);
    free(plain.scale);
    free(plain.bias_);
    release_guarded(r, "empty product");
}

static void check_products(run *r, uint8_t code_bits, bool fast)
{
    static const uint32_t counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 23, 33, 145, 157};
    static const uint8_t block_counts[] = {1, 2, 4};
    for (int has_bias = 0; has_bias < 2; has_bias++) {
        shape s = {.code_bits = code_bits, .has_bias = has_bias, .fast = fast};
        for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
            for (size_t b = 0; b < 3; b++) {
                s.count = counts[c];
                s.block_count = block_counts[b];
                s.source_bits = code_bits == 8 ? (uint8_t[]){5, 6, 8}[below(r, 3)]
                                : has_bias     ? (uint8_t)(2 + below(r, 3))
                                               : 4;
                s.rows = 1 + below(r, counts[c] > 33 ? 40 : 200);
                s.cols = 1 + below(r, counts[c] > 33 ? 300 : 700);
                s.f32 = below(r, 2);
                s.indirect = below(r, 2);
                near_case(r, &s);
            }
        }
        s = (shape){.cols = 256, .count = 1, .code_bits = code_bits, .source_bits = code_bits,
                    .block_count = 2, .has_bias = has_bias, .fast = fast};
        for (uint32_t groups = 1; groups <= 17; groups++) {
            s.rows = groups * 16;
            s.count = 1 + groups % 3;
            near_case(r, &s);
        }
        for (s.special = DENORMAL; s.special <= EXTREME; s.special++) {
            for (s.count = 1; s.count <= 25; s.count += 3) {
                s.rows = 50;
                s.cols = 300;
                s.block_count = block_counts[below(r, 3)];
                s.f32 = s.special == WITH_NAN;
                near_case(r, &s);
            }
        }
    }
    check_empty(r, code_bits, fast);
}

void check_mm_near4(run *r)
{
    check_products(r, 4, false);
}

void check_mm_near8(run *r)
{
    check_products(r, 8, false);
}

void check_mm_fast4(run *r)
{
    check_products(r, 4, true);
}

void check_mm_fast8(run *r)
{
    check_products(r, 8, true);
}

/* ---- the integers ------------------------------------------------------------------------ */

/* A unit matrix of columns x columns: row i has one code of value 1 in column i. Bias' is 0. */
static void make_unit_matrix(bxn_packed *w, bxn_xq_kind kind, uint32_t columns)
{
    const bool bytes = kind == BXN_XQ_NEAR8 || kind == BXN_XQ_FAST8;
    const bool affine = kind == BXN_XQ_NEAR4 || kind == BXN_XQ_FAST4;
    const uint16_t one = 0x3C00, minus_eight = 0xC800;
    *w = (bxn_packed){.rows = columns, .cols = columns, .row_groups = columns / 16,
                      .k_units = columns / 128, .code_bits = bytes ? 8 : 4,
                      .source_bits = bytes ? 8 : 4, .blocks = 2, .has_bias = affine};
    w->center = affine ? 8.0f : 0.0f;
    for (int c = 0; c < 16; c++)
        w->table[c] = affine ? (float)c - 8.0f : (float)c;
    w->unit_bytes = bxn_unit_scale_bytes(w) + 256u * w->code_bits;
    size_t units = (size_t)w->row_groups * w->k_units;
    uint8_t *data = guarded(units * w->unit_bytes);
    for (size_t u = 0; u < units; u++) {
        uint8_t *unit = data + u * w->unit_bytes, *codes = unit + bxn_unit_scale_bytes(w);
        for (size_t i = 0; i < 32; i++) {
            memcpy(unit + 2 * i, &one, 2);
            if (affine)
                memcpy(unit + 64 + 2 * i, &minus_eight, 2);
        }
        memset(codes, affine ? 0x88 : 0, 256u * w->code_bits);
        for (uint32_t lane = 0; lane < 16; lane++) {
            uint32_t row = (uint32_t)(u / w->k_units) * 16 + lane, c = row % 128;
            if (row / 128 != u % w->k_units)
                continue;
            if (bytes)
                codes[(c / 4 * 16 + lane) * 4 + c % 4] = 1;
            else
                codes[(c / 8 * 16 + lane) * 4 + c % 8 / 2] += (uint8_t)(1 << (c % 2 * 4));
        }
    }
    w->data = data;
}

#define ROW_SORTS 12

/* Rows of every sort that the formula tells apart; NaN and infinity last. */
static void fill_row(run *r, float *x, uint32_t columns, uint32_t sort, double limit)
{
    for (uint32_t k = 0; k < columns; k++)
        x[k] = normal(r);
    for (uint32_t k = 0; k < columns; k++) {
        switch (sort) {
        case 1: /* halves, to even; the largest makes the factor 1 */
            x[k] = k % BXN_XQ_BLOCK == 7 ? (float)limit : (float)below(r, (uint32_t)limit) + 0.5f;
            x[k] = below(r, 2) ? -x[k] : x[k];
            break;
        case 2: /* the least that is not 0 */
            x[k] = k % BXN_XQ_BLOCK == 0 ? 1e-30f : x[k] * 1e-31f;
            break;
        case 3: /* the largest that is 0 */
            x[k] = k % BXN_XQ_BLOCK == 0 ? nextafterf(1e-30f, 0) : x[k] * 1e-32f;
            break;
        case 4:
            x[k] = k % BXN_XQ_BLOCK == 63 ? -FLT_MAX : x[k] * 1e37f;
            break;
        case 5:
            x[k] *= 1e-40f;
            break;
        case 6:
            x[k] = k % 2 ? -0.0f : 0.0f;
            break;
        case 7: /* one value alone, and denormals beside it */
            x[k] = k % 64 == k / 64 ? x[k] : 1e-40f;
            break;
        case 8:
            x[k] *= powf(10.0f, uniform(r, -6.0f, 6.0f));
            break;
        default:
            break;
        }
    }
    uint32_t at = below(r, columns);
    if (sort == 9 || sort == 11)
        x[at] = below(r, 2) ? NAN : -NAN;
    if (sort == 10 || sort == 11)
        x[at ^ 1] = below(r, 2) ? INFINITY : -INFINITY;
}

static void integers_case(run *r, bxn_xq_kind kind, uint32_t columns, bool shifted)
{
    near_matrix near = {.fast = kind >= BXN_XQ_FAST4, .kind = kind};
    make_unit_matrix(&near.w, kind, columns);
    problem p = {.count = ROW_SORTS, .sources = ROW_SORTS, .cols = columns, .ldx = columns + 128};
    float *x = guarded_floats(ROW_SORTS * p.ldx - 128 + shifted) + shifted;
    for (uint32_t m = 0; m < ROW_SORTS; m++)
        fill_row(r, x + m * p.ldx, columns, m, limits[kind]);
    p.x = near.x = x;
    near.ldx = p.ldx;
    near.ldxq = bxn_xq_bytes(kind, columns) + 64;
    near.ldxscale = columns / BXN_XQ_BLOCK + 1;
    quantise(r, &near, &p, r->kernels);
    float *y = guarded_floats(ROW_SORTS * (size_t)columns);
    float *zero = guarded_floats(ROW_SORTS * (size_t)columns / 32);
    memset(zero, 0, ROW_SORTS * (size_t)columns / 32 * sizeof *zero);
    bxn_mm_args a = {.x = x, .ldx = p.ldx, .count = ROW_SORTS, .y = y, .ldy = columns,
                     .xsum = zero, .ldsum = columns / 32};
    multiply_near(r, r->kernels, &near, 0, columns / 16, &a);
    const char *xq = near.set[0].xq;
    const float unit = (float)table_units[kind];
    for (uint32_t m = 0; m < ROW_SORTS; m++) {
        for (uint32_t k = 0; k < columns; k++) {
            int32_t q[BXN_XQ_BLOCK];
            const size_t block = k / BXN_XQ_BLOCK;
            float xs = integers(kind, x + m * p.ldx + block * BXN_XQ_BLOCK, q);
            int32_t want = q[k % BXN_XQ_BLOCK];
            float scale = near.set[0].xscale[m * near.ldxscale + block];
            compare(r, "scale", m * columns + k, (double)scale, (double)xs, 0);
            float product = (float)want * unit * scale;
            if (m >= 9) /* a NaN of one block goes through every sum of the row */
                product = NAN;
            compare(r, "integer times scale", m * columns + k, (double)y[m * columns + k],
                    (double)product, 0);
            if (!r->is_plain)
                continue;
            int32_t got = near.fast ? ((const int8_t *)(xq + m * near.ldxq))[k]
                                    : ((const int16_t *)(const void *)(xq + m * near.ldxq))[k];
            if (got != want)
                fail(r, "integer [%u, %u]: got %d, expected %d", m, k, got, want);
        }
    }
    r->cases++;
    release_guarded(r, "quant_x");
}

void check_quant_x(run *r)
{
    for (int kind = BXN_XQ_NEAR4; kind <= BXN_XQ_FAST_TABLE; kind++) {
        for (uint32_t columns = 128; columns <= 512; columns += 128) {
            for (int shifted = 0; shifted < 2; shifted++) {
                integers_case(r, (bxn_xq_kind)kind, columns, shifted);
                uint64_t saved = bxn_float_enter(); /* denormals flushed, as tasks run */
                integers_case(r, (bxn_xq_kind)kind, columns, shifted);
                bxn_float_leave(saved);
            }
        }
    }
}
