/* SPDX-License-Identifier: Apache-2.0 */
/* check_state.c - checks of the convolution and the selective scan: values against bounds
 * that follow the errors through the recurrence, channel ranges, and equal bits however
 * the tokens are cut into calls. */
#include "checkkern.h"

#include <math.h>
#include <string.h>

#include "runtime/runtime.h"

/* What lies outside [begin, end) of every row must be untouched. */
static void check_untouched(run *r, const float *y, uint32_t tokens, size_t ld, uint32_t begin,
                            uint32_t end)
{
    for (uint32_t t = 0; t < tokens; t++)
        for (size_t e = 0; e < ld; e++)
            if ((e < begin || e >= end) && !has_pattern(y[t * ld + e]))
                fail(r, "wrote channel %zu of row %u outside [%u, %u)", e, t, begin, end);
}

/* ---- convolution ------------------------------------------------------------------ */

static void conv_case(run *r, uint32_t strips, uint32_t taps, uint32_t tokens, bool special)
{
    const size_t e16 = strips * 16u;
    bxn_conv_args a = {.tokens = tokens,
                       .taps = taps,
                       .e16 = e16,
                       .ldx = e16 + below(r, 2) * 32,
                       .ldy = e16 + below(r, 2) * 16};
    a.begin = below(r, strips) * 16;
    a.end = a.begin + (1 + below(r, strips - a.begin / 16)) * 16;
    float *x = guarded_randoms(r, tokens * a.ldx, 2.0f);
    if (special && tokens > 0) {
        x[a.begin] = NAN;
        x[a.begin + 1] = INFINITY;
        x[a.begin + 2] = 1e-42f;
        x[a.begin + 3] = -200.0f;
    }
    a.x = x;
    a.tail = guarded_randoms(r, (taps - 1) * e16, 2.0f);
    a.weight = guarded_randoms(r, taps * e16, 1.0f);
    a.bias = guarded_randoms(r, e16, 1.0f);
    float *y = guarded_floats(tokens * a.ldy), *plain = guarded_floats(tokens * a.ldy);
    fill_pattern(y, tokens * a.ldy);
    fill_pattern(plain, tokens * a.ldy);
    a.y = plain;
    r->plain->conv_silu(&a);
    a.y = y;
    r->kernels->conv_silu(&a);
    check_untouched(r, y, tokens, a.ldy, a.begin, a.end);
    for (uint32_t t = 0; t < tokens; t++) {
        for (uint32_t e = a.begin; e < a.end; e++) {
            double c = (double)a.bias[e], size = fabs(c);
            for (uint32_t j = 0; j < taps; j++) {
                size_t row = (size_t)t + j;
                double p = row < taps - 1 ? (double)a.tail[row * e16 + e]
                                          : (double)x[(row - (taps - 1)) * a.ldx + e];
                c += (double)a.weight[j * e16 + e] * p;
                size += fabs((double)a.weight[j * e16 + e] * p);
            }
            double want = c / (1 + exp(-c));
            double bound = 1.1 * (taps + 2.0) * UNIT_ROUNDOFF * size +
                           (SILU_ERROR + UNIT_ROUNDOFF) * fabs(want) + TINY;
            bool use_double = r->is_plain && isfinite(c);
            compare(r, "value", t * a.ldy + e, (double)y[t * a.ldy + e],
                    use_double ? want : (double)plain[t * a.ldy + e],
                    use_double ? bound : 2 * bound);
        }
    }
    if (tokens >= 2 && !special) { /* two calls, the tail carried over */
        uint32_t first = 1 + below(r, tokens - 1);
        float *cut = guarded_floats(tokens * a.ldy), *tail = guarded_floats((taps - 1) * e16);
        memcpy(cut, y, tokens * a.ldy * sizeof *cut);
        for (uint32_t t = 0; t < tokens; t++)
            fill_pattern(cut + t * a.ldy + a.begin, a.end - a.begin);
        bxn_conv_args part = a;
        part.tokens = first;
        part.y = cut;
        r->kernels->conv_silu(&part);
        for (uint32_t j = 0; j + 1 < taps; j++) {
            size_t row = (size_t)first + j; /* of tail, then x */
            const float *p = row < taps - 1 ? a.tail + row * e16 : x + (row - (taps - 1)) * a.ldx;
            memcpy(tail + j * e16, p, e16 * sizeof *tail);
        }
        part.tokens = tokens - first;
        part.tail = tail;
        part.x = x + first * a.ldx;
        part.y = cut + first * a.ldy;
        r->kernels->conv_silu(&part);
        same_bits(r, "in two calls", y, cut, tokens * a.ldy);
    }
    r->cases++;
    release_guarded(r, "conv_silu");
}

void check_conv_silu(run *r)
{
    for (uint32_t taps = 1; taps <= 6; taps++)
        for (uint32_t tokens = 0; tokens <= 9; tokens++)
            conv_case(r, 1 + below(r, 20), taps, tokens, false);
    conv_case(r, 33, 4, 40, false);
    for (uint32_t taps = 1; taps <= 4; taps++)
        conv_case(r, 2, taps, 5, true);
}

/* ---- scan ---------------------------------------------------------------------------- */

/* Values and error bounds of one channel, in double. */
static void expect_channel(const bxn_scan_args *a, uint32_t e, double *y, double *y_bound,
                           double *h, double *h_bound)
{
    const uint32_t states = a->states;
    const size_t base = (size_t)(e / 16) * states * 16 + e % 16;
    for (uint32_t n = 0; n < states; n++) {
        h[n] = (double)a->h_in[base + n * 16];
        h_bound[n] = 0;
    }
    for (uint32_t t = 0; t < a->tokens; t++) {
        const float *bcd = a->bcd + t * a->ldbcd;
        double product = (double)bcd[2 * states] * (double)a->dt_weight[e];
        double v = product + (double)a->dt_bias[e];
        double dt = (v > 0 ? v : 0) + log1p(exp(-fabs(v)));
        /* the derivative of log(softplus) is at most 1 */
        double dt_error = 2 * UNIT_ROUNDOFF * (fabs(product) + fabs(v)) + SILU_ERROR;
        dt = dt < 1e-4 ? 1e-4 : dt > 100 ? 100 : dt;
        double x = (double)a->x[t * a->ldx + e], z = (double)a->z[t * a->ldz + e];
        double sum = 0, size = 0, bound = 0;
        for (uint32_t n = 0; n < states; n++) {
            double power = dt * (double)a->a2[base + n * 16], decay = exp2(power);
            double decay_error = 0.6932 * fabs(power) * (dt_error + 2 * UNIT_ROUNDOFF) + EXP_ERROR;
            double kept = decay * h[n], added = dt * x * (double)bcd[n];
            h_bound[n] = decay * h_bound[n] + fabs(kept) * (decay_error + 2 * UNIT_ROUNDOFF) +
                         fabs(added) * (dt_error + 4 * UNIT_ROUNDOFF) + TINY * (1 + fabs(h[n]));
            h[n] = kept + added;
            double term = (double)bcd[states + n] * h[n];
            sum += term;
            size += fabs(term);
            bound += fabs((double)bcd[states + n]) * h_bound[n];
        }
        double skip = (double)a->d[e] * x, gate = z / (1 + exp(-z));
        y[t] = (sum + skip) * gate;
        y_bound[t] = (bound + (states + 4.0) * UNIT_ROUNDOFF * (size + fabs(skip))) * fabs(gate) +
                     fabs(y[t]) * 2 * SILU_ERROR + TINY * (1 + fabs(sum + skip));
    }
}

#define MOST_TOKENS 80

typedef struct scan_sizes {
    uint32_t strips, states, tokens;
    float dt_size; /* spread of the argument of softplus */
    float a_size;  /* largest -a2 */
} scan_sizes;

static void scan_case(run *r, scan_sizes s, bool in_place, bool special)
{
    const size_t e16 = s.strips * 16u, state_floats = e16 * s.states;
    bxn_scan_args a = {.tokens = s.tokens,
                       .states = s.states,
                       .ldx = e16,
                       .ldz = 2 * e16,
                       .ldbcd = 2 * (size_t)s.states + 1 + below(r, 5),
                       .ldy = e16 + below(r, 2) * 16};
    a.begin = below(r, s.strips) * 16;
    a.end = a.begin + (1 + below(r, s.strips - a.begin / 16)) * 16;
    float *x = guarded_randoms(r, s.tokens * e16, 1.0f), *a2 = guarded_floats(state_floats);
    a.x = x;
    a.z = guarded_randoms(r, s.tokens * a.ldz, 2.0f);
    a.bcd = guarded_randoms(r, s.tokens * a.ldbcd, 1.0f);
    a.dt_weight = guarded_randoms(r, e16, s.dt_size);
    a.dt_bias = guarded_randoms(r, e16, s.dt_size);
    a.d = guarded_randoms(r, e16, 1.0f);
    for (size_t i = 0; i < state_floats; i++)
        a2[i] = -uniform(r, 0.0f, s.a_size);
    a2[a.begin * s.states] = -0.0f;
    a2[a.begin * s.states + 1] = -3e38f;
    a.a2 = a2;
    if (special && s.tokens > 0) {
        x[a.begin] = NAN;
        x[a.begin + 2] = INFINITY;
        x[a.begin + 3] = 1e-42f;
    }
    float *h_in = guarded_randoms(r, state_floats, 1.0f), *h_plain = guarded_floats(state_floats);
    float *h_out = guarded_floats(state_floats), *y = guarded_floats(s.tokens * a.ldy);
    float *plain = guarded_floats(s.tokens * a.ldy);
    fill_pattern(h_out, state_floats);
    fill_pattern(y, s.tokens * a.ldy);
    fill_pattern(plain, s.tokens * a.ldy);
    a.h_in = h_in;
    a.h_out = h_plain;
    a.y = plain;
    r->plain->scan(&a);
    bxn_scan_args b = a;
    b.h_out = h_out;
    b.y = y;
    if (in_place) {
        memcpy(h_out, h_in, state_floats * sizeof *h_in);
        b.h_in = h_out;
    }
    r->kernels->scan(&b);
    check_untouched(r, y, s.tokens, a.ldy, a.begin, a.end);
    for (uint32_t e = a.begin; e < a.end; e++) {
        double want[MOST_TOKENS], bound[MOST_TOKENS], h[40], h_bound[40];
        expect_channel(&a, e, want, bound, h, h_bound);
        for (uint32_t t = 0; t < s.tokens; t++) {
            bool use_double = r->is_plain && isfinite(want[t]);
            compare(r, "value", t * a.ldy + e, (double)y[t * a.ldy + e],
                    use_double ? want[t] : (double)plain[t * a.ldy + e],
                    use_double ? bound[t] : 2 * bound[t]);
        }
        for (uint32_t n = 0; n < s.states; n++) {
            size_t i = ((size_t)(e / 16) * s.states + n) * 16 + e % 16;
            bool use_double = r->is_plain && isfinite(h[n]);
            compare(r, "state", i, (double)h_out[i], use_double ? h[n] : (double)h_plain[i],
                    use_double ? h_bound[n] : 2 * h_bound[n]);
        }
    }
    if (s.tokens >= 2 && !special) { /* token by token, the state carried over */
        float *cut = guarded_floats(s.tokens * a.ldy), *state = guarded_floats(state_floats);
        memcpy(cut, y, s.tokens * a.ldy * sizeof *cut);
        memcpy(state, h_in, state_floats * sizeof *state);
        for (uint32_t t = 0; t < s.tokens; t++) {
            fill_pattern(cut + t * a.ldy + a.begin, a.end - a.begin);
            bxn_scan_args one = a;
            one.tokens = 1;
            one.x += t * a.ldx;
            one.z += t * a.ldz;
            one.bcd += t * a.ldbcd;
            one.y = cut + t * a.ldy;
            one.h_in = one.h_out = state;
            r->kernels->scan(&one);
        }
        same_bits(r, "token by token", y, cut, s.tokens * a.ldy);
        size_t first = a.begin * (size_t)s.states, n = (a.end - a.begin) * (size_t)s.states;
        same_bits(r, "state token by token", h_out + first, state + first, n);
    }
    float *over = guarded_floats(s.tokens * e16); /* y written over x */
    memcpy(over, x, s.tokens * e16 * sizeof *over);
    bxn_scan_args c = a;
    c.x = c.y = over;
    c.ldy = c.ldx;
    c.h_out = h_plain;
    r->kernels->scan(&c);
    for (uint32_t t = 0; t < s.tokens; t++) {
        float *row = over + t * e16;
        same_bits(r, "over x", row + a.begin, y + t * a.ldy + a.begin, a.end - a.begin);
        same_bits(r, "beside", row, x + t * e16, a.begin);
        same_bits(r, "beside", row + a.end, x + t * e16 + a.end, e16 - a.end);
    }
    r->cases++;
    release_guarded(r, "scan");
}

void check_scan(run *r)
{
    for (uint32_t states = 1; states <= 33; states++)
        scan_case(r, (scan_sizes){1 + below(r, 4), states, below(r, 20), 1.0f, 4.0f}, states & 1,
                  false);
    for (int i = 0; i < 24; i++) {
        static const float dt_sizes[] = {0.1f, 2.0f, 10.0f, 200.0f};
        static const float a_sizes[] = {1e-3f, 1.0f, 24.0f};
        scan_case(
            r, (scan_sizes){1 + below(r, 6), 16, (uint32_t)i * 2, dt_sizes[i % 4], a_sizes[i % 3]},
            i & 1, false);
    }
    for (uint32_t tokens = 62; tokens <= 66; tokens++) /* around the blocks of the tiers */
        scan_case(r, (scan_sizes){2, 11 + tokens % 3 * 5, tokens, 0.5f, 8.0f}, tokens & 1, false);
    scan_case(r, (scan_sizes){3, 16, 80, 0.5f, 8.0f}, false, true);
    for (uint32_t states = 4; states <= 16; states += 12) {
        scan_case(r, (scan_sizes){2, states, 6, 1.0f, 4.0f}, false, true);
        uint64_t saved = bxn_float_enter(); /* as tasks run */
        scan_case(r, (scan_sizes){2, states, 6, 10.0f, 30.0f}, true, false);
        bxn_float_leave(saved);
    }
}
