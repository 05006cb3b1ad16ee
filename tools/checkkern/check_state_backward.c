/* SPDX-License-Identifier: Apache-2.0 */
/* check_state_backward.c - checks of the gradients of the scan and of the convolution. What is
 * expected is computed in double along with a bound of its error in single precision: every
 * operation carries the errors of its operands, a sum also a rounding per term. Then results
 * in place, without the gradients of vectors, by ranges of channels and in two calls must have
 * the same bits. */
#include "checkkern.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/runtime.h"

#define LN2 0.693147180559945309

/* A value and how far single precision may be from it. */
typedef struct val {
    double v, e;
} val;

static val exact(double v)
{
    return (val){v, 0};
}

static val rounded(double v, double e)
{
    return (val){v, e + UNIT_ROUNDOFF * fabs(v) + TINY};
}

static val plus(val a, val b)
{
    return rounded(a.v + b.v, a.e + b.e);
}

static val times(val a, val b)
{
    return rounded(a.v * b.v, fabs(a.v) * b.e + fabs(b.v) * a.e + a.e * b.e);
}

static val sigmoid(val a)
{
    double s = 1 / (1 + exp(-a.v));
    return rounded(s, 1.01 * s * (1 - s) * a.e + SILU_ERROR * s);
}

/* s * (1 + a * (1 - s)) */
static val silu_slope(val a, val s)
{
    val rest = {1 - s.v, s.e + UNIT_ROUNDOFF};
    return times(s, plus(exact(1), times(a, rest)));
}

/* A sum in any order. */
typedef struct total {
    double v, e, size, terms;
} total;

static void include(total *t, val a)
{
    t->v += a.v;
    t->e += a.e;
    t->size += fabs(a.v);
    t->terms++;
}

static val whole(const total *t)
{
    return (val){t->v, t->e + (t->terms + 8) * UNIT_ROUNDOFF * t->size + TINY};
}

/* [rows, count] without the rest of the last row, which nobody may touch. */
static float *random_rows(run *r, uint32_t rows, size_t ld, uint32_t count, float size)
{
    return guarded_randoms(r, (rows - 1) * ld + count, size);
}

/* A result of the tier against the expected value, or what plain C has where there is none. */
static void judge(run *r, const char *what, size_t i, float got, float plain, val want)
{
    bool use_double = r->is_plain && isfinite(want.v) && isfinite(want.e);
    compare(r, what, i, (double)got, use_double ? want.v : (double)plain,
            isfinite(want.e) ? (use_double ? 1 : 2) * want.e : 0);
}

/* ---- scan ------------------------------------------------------------------------------- */

typedef struct sizes {
    uint32_t channels, states, tokens;
    float dt_size, a_size; /* spread of the argument of softplus, largest -a2 */
} sizes;

/* Buffers that a call writes. */
typedef struct outputs {
    float *dx, *dz, *dbcd, *carry, *vectors[4];
    size_t rows, state; /* floats */
} outputs;

static void point_at(bxn_scan_backward_args *a, const outputs *o)
{
    a->dx = o->dx;
    a->dz = o->dz;
    a->dbcd = o->dbcd;
    a->carry = o->carry;
    a->ddt_weight = o->vectors[0];
    a->ddt_bias = o->vectors[1];
    a->dd = o->vectors[2];
    a->da_log = o->vectors[3];
}

/* Of dx and dz, what a call does not write must keep the pattern. */
static outputs new_outputs(const bxn_scan_backward_args *a, const outputs *start, size_t e16)
{
    outputs o = {.rows = start->rows, .state = start->state};
    o.dx = guarded_floats(o.rows);
    o.dz = guarded_floats((a->tokens - 1) * a->lddz + (o.rows - (a->tokens - 1) * a->lddx));
    fill_pattern(o.dx, o.rows);
    fill_pattern(o.dz, (a->tokens - 1) * a->lddz + (o.rows - (a->tokens - 1) * a->lddx));
    o.dbcd = guarded_floats((a->tokens - 1) * a->lddbcd + 2 * (size_t)a->states + 1);
    o.carry = guarded_copy(start->carry, o.state);
    for (int i = 0; i < 4; i++)
        o.vectors[i] = guarded_copy(start->vectors[i], i < 3 ? e16 : o.state);
    return o;
}

/* One channel: its rows of dx and dz, its vectors and carries are judged, and what it adds to the
 * columns of dbcd goes into `columns`. */
static void judge_channel(run *r, const bxn_scan_backward_args *a, const outputs *got,
                          const outputs *plain, const outputs *start, uint32_t e, total *columns)
{
    const uint32_t states = a->states;
    const size_t base = (size_t)(e / 16) * states * 16 + e % 16, width = 2 * (size_t)states + 1;
    val *h = calloc((size_t)(a->tokens + 1) * states, sizeof *h), *dt = calloc(a->tokens, sizeof *dt);
    val *carry = calloc(states, sizeof *carry), *v = calloc(a->tokens, sizeof *v);
    total vectors[3] = {{0}}, *rates = calloc(states, sizeof *rates);
    for (uint32_t n = 0; n < states; n++) {
        h[n] = exact((double)a->h_in[base + n * 16]);
        carry[n] = exact((double)start->carry[base + n * 16]);
        include(&rates[n], exact((double)start->vectors[3][base + n * 16]));
    }
    for (int i = 0; i < 3; i++)
        include(&vectors[i], exact((double)start->vectors[i][e]));
    for (uint32_t t = 0; t < a->tokens; t++) {
        const float *b = a->bcd + t * a->ldbcd;
        val x = exact((double)a->x[t * a->ldx + e]);
        val product = times(exact((double)b[2 * states]), exact((double)a->dt_weight[e]));
        v[t] = plus(product, exact((double)a->dt_bias[e]));
        double soft = (v[t].v > 0 ? v[t].v : 0) + log1p(exp(-fabs(v[t].v)));
        /* the derivative of log(softplus) is at most 1 */
        dt[t] = rounded(soft, soft * (v[t].e + SILU_ERROR));
        if (soft <= 1e-4 || soft >= 100)
            dt[t] = rounded(soft <= 1e-4 ? 1e-4 : 100, 0);
        for (uint32_t n = 0; n < states; n++) {
            val power = times(dt[t], exact((double)a->a2[base + n * 16]));
            double d = exp2(power.v);
            val decay = {d, d * fmin(LN2 * power.e + EXP_ERROR, 1e30) + TINY};
            val added = times(times(dt[t], x), exact((double)b[n]));
            h[(t + 1) * states + n] = plus(times(decay, h[t * states + n]), added);
        }
    }
    for (uint32_t t = a->tokens; t-- > 0;) {
        const float *b = a->bcd + t * a->ldbcd;
        val x = exact((double)a->x[t * a->ldx + e]), z = exact((double)a->z[t * a->ldz + e]);
        val g = exact((double)a->dy[t * a->lddy + e]), d = exact((double)a->d[e]);
        val s = sigmoid(z), p = times(g, times(z, s)), u = times(dt[t], x);
        total sum = {0}, du = {0}, rate = {0};
        include(&sum, times(d, x));
        for (uint32_t n = 0; n < states; n++) {
            val a2 = exact((double)a->a2[base + n * 16]), power = times(dt[t], a2);
            double f = exp2(power.v);
            val decay = {f, f * fmin(LN2 * power.e + EXP_ERROR, 1e30) + TINY};
            val c = exact((double)b[states + n]), q = plus(times(c, p), carry[n]);
            include(&sum, times(c, h[(t + 1) * states + n]));
            include(&columns[t * width + states + n], times(p, h[(t + 1) * states + n]));
            include(&columns[t * width + n], times(q, u));
            include(&du, times(q, exact((double)b[n])));
            carry[n] = times(decay, q);
            val rn = times(times(carry[n], h[t * states + n]), a2);
            include(&rate, rn);
            include(&rates[n], times(rn, times(dt[t], rounded(LN2, 0))));
        }
        bool clipped = dt[t].v <= 1e-4 || dt[t].v >= 100;
        val slope = clipped ? exact(0) : sigmoid(v[t]);
        val dv = plus(times(x, whole(&du)), times(rounded(LN2, 0), whole(&rate)));
        dv = clipped && isfinite(dv.v) ? exact(0) : times(dv, slope);
        val dz = times(times(g, silu_slope(z, s)), whole(&sum));
        val dx = plus(times(d, p), times(dt[t], whole(&du)));
        judge(r, "dx", t * a->lddx + e, got->dx[t * a->lddx + e], plain->dx[t * a->lddx + e], dx);
        judge(r, "dz", t * a->lddz + e, got->dz[t * a->lddz + e], plain->dz[t * a->lddz + e], dz);
        include(&columns[t * width + 2 * states], times(dv, exact((double)a->dt_weight[e])));
        include(&vectors[0], times(dv, exact((double)b[2 * states])));
        include(&vectors[1], dv);
        include(&vectors[2], times(p, x));
    }
    static const char *const names[] = {"ddt_weight", "ddt_bias", "dd"};
    for (int i = 0; i < 3; i++)
        judge(r, names[i], e, got->vectors[i][e], plain->vectors[i][e], whole(&vectors[i]));
    for (uint32_t n = 0; n < states; n++) {
        size_t i = base + n * 16;
        judge(r, "carry", i, got->carry[i], plain->carry[i], carry[n]);
        judge(r, "da_log", i, got->vectors[3][i], plain->vectors[3][i], whole(&rates[n]));
    }
    free(h);
    free(dt);
    free(carry);
    free(v);
    free(rates);
}

/* What does not depend on which channels a call has. */
static void same_channels(run *r, const char *what, const bxn_scan_backward_args *a,
                          const outputs *one, const outputs *two, bool vectors)
{
    const uint32_t n = a->end - a->begin;
    const size_t first = a->begin / 16 * (size_t)a->states * 16;
    for (uint32_t t = 0; t < a->tokens; t++) {
        same_bits(r, what, one->dx + t * a->lddx + a->begin, two->dx + t * a->lddx + a->begin, n);
        same_bits(r, what, one->dz + t * a->lddz + a->begin, two->dz + t * a->lddz + a->begin, n);
    }
    same_bits(r, what, one->carry + first, two->carry + first, one->state - first);
    for (int i = 0; i < 4 && vectors; i++)
        same_bits(r, what, one->vectors[i], two->vectors[i], i < 3 ? a->end : one->state);
}

static void same_columns(run *r, const char *what, const bxn_scan_backward_args *a,
                         const outputs *one, const outputs *two)
{
    for (uint32_t t = 0; t < a->tokens; t++)
        same_bits(r, what, one->dbcd + t * a->lddbcd, two->dbcd + t * a->lddbcd,
                  2 * (size_t)a->states + 1);
}

/* Channels [begin, middle) and [middle, end) in calls of their own. */
static void check_ranges(run *r, const bxn_scan_backward_args *a, const outputs *got,
                         const outputs *start, size_t e16)
{
    const uint32_t middle = a->begin + 16;
    if (middle >= a->end)
        return;
    outputs cut = new_outputs(a, start, e16);
    bxn_scan_backward_args part = *a;
    point_at(&part, &cut);
    part.end = middle;
    r->kernels->scan_backward(&part);
    part.begin = middle;
    part.end = a->end;
    r->kernels->scan_backward(&part);
    same_channels(r, "by ranges of channels", a, got, &cut, true);
}

/* The last tokens, then the first, the state between from the scan. */
static void check_two_calls(run *r, const bxn_scan_backward_args *a, const outputs *got,
                            const outputs *start, size_t e16)
{
    if (a->tokens < 2 || a->end % 16 != 0)
        return;
    const uint32_t first = 1 + below(r, a->tokens - 1);
    float *h = guarded_floats(start->state), *y = guarded_floats(first * e16);
    bxn_scan_args scan = {first, a->begin, a->end, a->states, a->x, a->ldx, a->z, a->ldz,
                          a->bcd, a->ldbcd, a->dt_weight, a->dt_bias, a->a2, a->d, a->h_in, h, y, e16};
    r->kernels->scan(&scan);
    outputs cut = new_outputs(a, start, e16);
    bxn_scan_backward_args part = *a;
    point_at(&part, &cut);
    part.tokens = a->tokens - first;
    part.x += first * a->ldx;
    part.z += first * a->ldz;
    part.bcd += first * a->ldbcd;
    part.dy += first * a->lddy;
    part.dx += first * a->lddx;
    part.dz += first * a->lddz;
    part.dbcd += first * a->lddbcd;
    part.h_in = h;
    r->kernels->scan_backward(&part);
    part = *a;
    point_at(&part, &cut);
    part.tokens = first;
    r->kernels->scan_backward(&part);
    same_channels(r, "in two calls", a, got, &cut, true);
    same_columns(r, "in two calls", a, got, &cut);
}

/* dx over dy and dz over z, without vectors. */
static void check_in_place(run *r, const bxn_scan_backward_args *a, const outputs *got,
                           const outputs *start, size_t e16)
{
    const size_t row = got->rows - (a->tokens - 1) * a->lddx; /* channels */
    outputs over = new_outputs(a, start, e16);
    bxn_scan_backward_args b = *a;
    memset(over.vectors, 0, sizeof over.vectors);
    point_at(&b, &over);
    b.dy = b.dx = guarded_copy(a->dy, (a->tokens - 1) * a->lddy + row);
    b.z = b.dz = guarded_copy(a->z, (a->tokens - 1) * a->ldz + row);
    b.lddx = a->lddy;
    b.lddz = a->ldz;
    r->kernels->scan_backward(&b);
    for (uint32_t t = 0; t < a->tokens; t++) {
        size_t n = a->end - a->begin;
        same_bits(r, "in place", b.dx + t * b.lddx + a->begin, got->dx + t * a->lddx + a->begin, n);
        same_bits(r, "in place", b.dz + t * b.lddz + a->begin, got->dz + t * a->lddz + a->begin, n);
        same_bits(r, "beside", b.dx + t * b.lddx, a->dy + t * a->lddy, a->begin);
        same_bits(r, "beside", b.dz + t * b.lddz, a->z + t * a->ldz, a->begin);
        same_bits(r, "beside", b.dx + t * b.lddx + a->end, a->dy + t * a->lddy + a->end, row - a->end);
        same_bits(r, "beside", b.dz + t * b.lddz + a->end, a->z + t * a->ldz + a->end, row - a->end);
    }
    same_columns(r, "in place", a, got, &over);
}

static void scan_case(run *r, sizes s, int special)
{
    const uint32_t strips = (s.channels + 15) / 16, e16 = strips * 16;
    const size_t state = (size_t)e16 * s.states, width = 2 * (size_t)s.states + 1;
    bxn_scan_backward_args a = {.tokens = s.tokens,
                                .states = s.states,
                                .ldx = e16 + below(r, 2) * 16,
                                .ldz = 2 * e16,
                                .ldbcd = width + below(r, 5),
                                .lddy = e16 + below(r, 2) * 32,
                                .lddx = e16 + below(r, 2) * 8,
                                .lddz = e16 + below(r, 2) * 3,
                                .lddbcd = width + below(r, 3)};
    a.begin = below(r, strips) * 16;
    a.end = a.begin + (1 + below(r, strips - a.begin / 16)) * 16;
    a.end = a.end < s.channels ? a.end : s.channels;
    float *x = random_rows(r, s.tokens, a.ldx, s.channels, 1.0f);
    float *z = random_rows(r, s.tokens, a.ldz, s.channels, 2.0f);
    float *dy = random_rows(r, s.tokens, a.lddy, s.channels, 1.0f);
    a.bcd = random_rows(r, s.tokens, a.ldbcd, (uint32_t)width, 1.0f);
    float *parameters[3], *a2 = guarded_floats(state), *h_in = guarded_randoms(r, state, 1.0f);
    outputs start = {.rows = (s.tokens - 1) * a.lddx + s.channels, .state = state};
    start.carry = guarded_randoms(r, state, 1.0f);
    for (int i = 0; i < 4; i++)
        start.vectors[i] = guarded_randoms(r, i < 3 ? e16 : state, 1.0f);
    for (int i = 0; i < 3; i++)
        parameters[i] = guarded_randoms(r, e16, i < 2 ? s.dt_size : 1.0f);
    for (size_t i = 0; i < state; i++)
        a2[i] = -uniform(r, 0.0f, s.a_size);
    a2[a.begin * s.states] = -0.0f;
    if (special != 0)
        a2[a.begin * s.states + 1] = -3e38f;
    for (uint32_t e = s.channels; e < e16; e++) { /* padding is zero */
        for (int i = 0; i < 3; i++)
            parameters[i][e] = start.vectors[i][e] = 0.0f;
        for (uint32_t n = 0; n < s.states; n++) {
            size_t i = ((size_t)(e / 16) * s.states + n) * 16 + e % 16;
            a2[i] = h_in[i] = start.carry[i] = start.vectors[3][i] = 0.0f;
        }
    }
    if (special != 0) {
        dy[(s.tokens - 1) * a.lddy + a.begin] = special == 2 ? NAN : -0.0f;
        dy[a.begin + 1] = special == 2 ? INFINITY : 1e-42f;
        x[a.begin + 2] = special == 2 ? NAN : 1e-42f;
        z[a.begin + 3] = 150.0f;
        z[a.begin + 4] = -150.0f;
    }
    a.x = x;
    a.z = z;
    a.dy = dy;
    a.dt_weight = parameters[0];
    a.dt_bias = parameters[1];
    a.d = parameters[2];
    a.a2 = a2;
    a.h_in = h_in;
    a.scratch = guarded_floats(bxn_scan_backward_floats(s.states));
    outputs plain = new_outputs(&a, &start, e16), got = new_outputs(&a, &start, e16);
    point_at(&a, &plain);
    r->plain->scan_backward(&a);
    point_at(&a, &got);
    r->kernels->scan_backward(&a);
    total *columns = calloc(s.tokens * width, sizeof *columns);
    for (uint32_t e = a.begin; e < a.end; e++)
        judge_channel(r, &a, &got, &plain, &start, e, columns);
    for (uint32_t t = 0; t < s.tokens; t++)
        for (size_t j = 0; j < width; j++)
            judge(r, "dbcd", t * a.lddbcd + j, got.dbcd[t * a.lddbcd + j],
                  plain.dbcd[t * a.lddbcd + j], whole(&columns[t * width + j]));
    for (uint32_t t = 0; t < s.tokens; t++)
        for (uint32_t e = 0; e < s.channels; e++)
            if ((e < a.begin || e >= a.end) &&
                !(has_pattern(got.dx[t * a.lddx + e]) && has_pattern(got.dz[t * a.lddz + e])))
                fail(r, "wrote channel %u of row %u outside [%u, %u)", e, t, a.begin, a.end);
    free(columns);
    if (special == 0) {
        check_ranges(r, &a, &got, &start, e16);
        check_two_calls(r, &a, &got, &start, e16);
        check_in_place(r, &a, &got, &start, e16);
    }
    r->cases++;
    release_guarded(r, "scan_backward");
}

void check_scan_backward(run *r)
{
    for (uint32_t states = 1; states <= 19; states++)
        scan_case(r, (sizes){1 + below(r, 70), states, 1 + below(r, 12), 1.0f, 4.0f}, 0);
    for (int i = 0; i < 12; i++) {
        static const float dt_sizes[] = {0.1f, 2.0f, 10.0f, 200.0f};
        static const float a_sizes[] = {1e-3f, 1.0f, 24.0f};
        scan_case(r, (sizes){1 + below(r, 130), 16, 1 + (uint32_t)i, dt_sizes[i % 4], a_sizes[i % 3]}, 0);
    }
    for (uint32_t tokens = BXN_SCAN_CHUNK - 1; tokens <= BXN_SCAN_CHUNK; tokens++)
        scan_case(r, (sizes){27, 16 + tokens % 2 * 5, tokens, 0.5f, 8.0f}, 0);
    for (uint32_t channels = 7; channels <= 9; channels++)
        scan_case(r, (sizes){channels, 4, 5, 1.0f, 4.0f}, 0);
    for (uint32_t states = 2; states <= 18; states += 8)
        for (int special = 1; special <= 2; special++)
            scan_case(r, (sizes){16, states, 6, 1.0f, 4.0f}, special);
    uint64_t saved = bxn_float_enter(); /* as tasks run */
    scan_case(r, (sizes){48, 16, 9, 10.0f, 30.0f}, 0);
    scan_case(r, (sizes){16, 8, 6, 1.0f, 4.0f}, 1);
    bxn_float_leave(saved);
}

/* ---- convolution ----------------------------------------------------------------------------- */

static void conv_case(run *r, uint32_t channels, uint32_t taps, uint32_t tokens, int special)
{
    const uint32_t strips = (channels + 15) / 16, e16 = strips * 16;
    bxn_conv_backward_args a = {.tokens = tokens,
                                .taps = taps,
                                .e16 = e16,
                                .ldx = e16 + below(r, 2) * 32,
                                .lddy = e16 + below(r, 2) * 16,
                                .lddx = e16 + below(r, 2) * 8};
    a.begin = below(r, strips) * 16;
    a.end = a.begin + (1 + below(r, strips - a.begin / 16)) * 16;
    a.end = a.end < channels ? a.end : channels;
    const size_t dy_floats = (tokens - 1) * a.lddy + channels, weights = (size_t)taps * e16;
    const size_t x_floats = (tokens - 1) * a.ldx + channels;
    float *x = random_rows(r, tokens, a.ldx, channels, 2.0f);
    float *dy = random_rows(r, tokens, a.lddy, channels, 1.0f);
    float *start_w = guarded_randoms(r, weights, 1.0f), *start_b = guarded_randoms(r, e16, 1.0f);
    if (special != 0) {
        x[a.begin] = special == 2 ? NAN : 1e-42f;
        x[a.begin + 1] = special == 2 ? 1e30f : 150.0f;
        x[a.begin + 2] = -150.0f;
        dy[a.begin + 3] = special == 2 ? INFINITY : 1e-42f;
    }
    a.x = x;
    a.weight = guarded_randoms(r, weights, 1.0f);
    a.bias = guarded_randoms(r, e16, 1.0f);
    float *got[4], *plain[4], *place[4]; /* dy, dx, dweight, dbias */
    float **const all[] = {plain, got, place};
    for (int i = 0; i < 3; i++) {
        all[i][0] = guarded_copy(dy, dy_floats);
        all[i][1] = i == 2 ? guarded_copy(x, x_floats) : guarded_floats((tokens - 1) * a.lddx + channels);
        all[i][2] = guarded_copy(start_w, weights);
        all[i][3] = guarded_copy(start_b, e16);
        if (i < 2)
            fill_pattern(all[i][1], (tokens - 1) * a.lddx + channels);
        bxn_conv_backward_args b = a;
        b.dy = all[i][0];
        b.dx = all[i][1];
        b.dweight = i == 2 ? NULL : all[i][2];
        b.dbias = i == 2 ? NULL : all[i][3];
        if (i == 2) { /* in place, and nothing for the parameters */
            b.x = b.dx;
            b.lddx = b.ldx;
        }
        (i == 0 ? r->plain : r->kernels)->conv_backward(&b);
    }
    val *dc = calloc(tokens, sizeof *dc);
    for (uint32_t e = 0; e < channels; e++) {
        total dbias = {0}, *dweight = calloc(taps, sizeof *dweight);
        bool inside = e >= a.begin && e < a.end;
        include(&dbias, exact((double)start_b[e]));
        for (uint32_t j = 0; j < taps; j++)
            include(&dweight[j], exact((double)start_w[j * e16 + e]));
        for (uint32_t t = tokens; t-- > 0;) {
            if (!inside) {
                if (!has_pattern(got[1][t * a.lddx + e]) || bxn_f32_bits(got[0][t * a.lddy + e]) !=
                                                                bxn_f32_bits(dy[t * a.lddy + e]))
                    fail(r, "wrote channel %u of row %u outside [%u, %u)", e, t, a.begin, a.end);
                continue;
            }
            total sum = {0}, back = {0};
            include(&sum, exact((double)a.bias[e]));
            for (uint32_t j = 0; j < taps; j++)
                if (t + j + 1 >= taps)
                    include(&sum, times(exact((double)a.weight[j * e16 + e]),
                                        exact((double)x[(t + j + 1 - taps) * a.ldx + e])));
            val c = whole(&sum);
            dc[t] = times(exact((double)dy[t * a.lddy + e]), silu_slope(c, sigmoid(c)));
            include(&dbias, dc[t]);
            for (uint32_t j = 0; j < taps; j++) {
                if (t + j + 1 >= taps)
                    include(&dweight[j], times(dc[t], exact((double)x[(t + j + 1 - taps) * a.ldx + e])));
                if (t + taps - 1 - j < tokens)
                    include(&back, times(exact((double)a.weight[j * e16 + e]), dc[t + taps - 1 - j]));
            }
            judge(r, "dc", t * a.lddy + e, got[0][t * a.lddy + e], plain[0][t * a.lddy + e], dc[t]);
            judge(r, "dx", t * a.lddx + e, got[1][t * a.lddx + e], plain[1][t * a.lddx + e], whole(&back));
            same_bits(r, "in place", got[1] + t * a.lddx + e, place[1] + t * a.ldx + e, special != 2);
        }
        if (inside) {
            judge(r, "dbias", e, got[3][e], plain[3][e], whole(&dbias));
            for (uint32_t j = 0; j < taps; j++)
                judge(r, "dweight", j * e16 + e, got[2][j * e16 + e], plain[2][j * e16 + e],
                      whole(&dweight[j]));
        } else {
            same_bits(r, "dbias beside", got[3] + e, start_b + e, 1);
        }
        free(dweight);
    }
    free(dc);
    r->cases++;
    release_guarded(r, "conv_backward");
}

void check_conv_backward(run *r)
{
    for (uint32_t taps = 1; taps <= 6; taps++)
        for (uint32_t tokens = 1; tokens <= 9; tokens++)
            conv_case(r, 1 + below(r, 300), taps, tokens, 0);
    for (uint32_t channels = 7; channels <= 17; channels += 2)
        conv_case(r, channels, 4, 40, 0);
    for (uint32_t taps = 1; taps <= 4; taps++)
        for (int special = 1; special <= 2; special++)
            conv_case(r, 30, taps, 5, special);
}
