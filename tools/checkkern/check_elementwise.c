/* SPDX-License-Identifier: Apache-2.0 */
/* check_elementwise.c - checks of norms, sums, additions, gates and conversions: every
 * length to 70 and some long ones, in guarded memory, with special values. */
#include "checkkern.h"

#include <math.h>

#include "runtime/runtime.h"

static const float specials[] = {0.0f,    -0.0f,    NAN,      INFINITY, -INFINITY, 1e-42f,
                                 -1e-42f, 65504.0f, 65519.9f, 65520.0f, -70000.0f, 1e30f,
                                 -1e30f,  6e-8f,    2.9e-8f,  3.1e-8f,  88.7f,     -88.7f,
                                 -104.0f, 104.0f,   0.5f,     2049.0f,  -2051.0f};
#define SPECIALS (sizeof specials / sizeof specials[0])

/* n values; special: the values above, in turn. */
static float *values(run *r, size_t n, float size, bool special)
{
    float *x = guarded_floats(n);
    for (size_t i = 0; i < n; i++)
        x[i] = special ? specials[i % SPECIALS] : size * normal(r);
    return x;
}

static size_t length(size_t i)
{
    return i <= 70 ? i : 61 * (i - 70) * (i - 70);
}
#define LENGTHS 80

void check_block_sums(run *r)
{
    for (size_t count = 0; count < 40; count++) {
        float *x = values(r, count * 32, 3.0f, false), *got = guarded_floats(count);
        float *plain = guarded_floats(count);
        r->kernels->block_sums(x, count, got);
        r->plain->block_sums(x, count, plain);
        for (size_t j = 0; j < count; j++) {
            double sum = 0, size = 0;
            for (size_t i = 0; i < 32; i++) {
                sum += (double)x[32 * j + i];
                size += fabs((double)x[32 * j + i]);
            }
            compare(r, "sum", j, (double)got[j], sum, 5 * UNIT_ROUNDOFF * size);
        }
        same_bits(r, "against plain C", got, plain, count); /* additions alone */
        r->cases++;
        release_guarded(r, "block_sums");
    }
}

void check_rmsnorm(run *r)
{
    for (size_t i = 1; i < 2 * LENGTHS; i++) {
        size_t n = length(i % LENGTHS);
        if (n == 0)
            continue;
        bool in_place = i & 1, special = i % 16 == 15;
        float size = i % 8 == 3 ? 1e-12f : 2.0f, eps = i % 3 == 0 ? 1e-5f : 1e-6f;
        float *x = values(r, n, size, special), *w = values(r, n, 1.0f, false);
        float *plain = guarded_floats(n), *y = in_place ? guarded_copy(x, n) : guarded_floats(n);
        r->plain->rmsnorm(x, w, n, eps, plain);
        r->kernels->rmsnorm(in_place ? y : x, w, n, eps, y);
        double sum = 0;
        for (size_t k = 0; k < n; k++)
            sum += (double)x[k] * (double)x[k];
        double inverse = 1.0 / sqrt(sum / (double)n + (double)eps);
        for (size_t k = 0; k < n; k++) {
            double want = (double)x[k] * inverse * (double)w[k];
            double bound = ((double)n / 32 + 8) * UNIT_ROUNDOFF * fabs(want) + TINY;
            bool use_double = r->is_plain && !special;
            compare(r, "value", k, (double)y[k], use_double ? want : (double)plain[k],
                    use_double ? bound : 2 * bound);
        }
        r->cases++;
        release_guarded(r, "rmsnorm");
    }
}

void check_add(run *r)
{
    for (size_t i = 0; i < 2 * LENGTHS; i++) {
        size_t n = length(i % LENGTHS);
        float *x = values(r, n, 1.0f, i % 8 == 7), *y = values(r, n, 1.0f, false);
        float *got = guarded_copy(y, n);
        r->kernels->add(got, x, n);
        for (size_t k = 0; k < n; k++)
            compare(r, "value", k, (double)got[k], (double)(float)(y[k] + x[k]), 0.0);
        r->cases++;
        release_guarded(r, "add");
    }
}

void check_scale_add(run *r)
{
    for (size_t i = 0; i < 2 * LENGTHS; i++) {
        size_t n = length(i % LENGTHS);
        float s = i == 9 ? 0.0f : normal(r);
        float *x = values(r, n, 1.0f, i % 8 == 7), *y = values(r, n, 1.0f, false);
        float *got = guarded_copy(y, n);
        r->kernels->scale_add(got, x, s, n);
        for (size_t k = 0; k < n; k++) {
            double term = (double)s * (double)x[k], want = (double)y[k] + term;
            compare(r, "value", k, (double)got[k], want,
                    UNIT_ROUNDOFF * (fabs(term) + 2 * fabs(want)) + TINY);
        }
        r->cases++;
        release_guarded(r, "scale_add");
    }
}

void check_silu_mul(run *r)
{
    for (size_t i = 0; i < 2 * LENGTHS; i++) {
        size_t n = length(i % LENGTHS);
        float *a = values(r, n, i % 4 == 1 ? 30.0f : 3.0f, i % 8 == 7);
        float *b = values(r, n, 1.0f, false), *got = guarded_copy(a, n), *plain = guarded_copy(a, n);
        r->kernels->silu_mul(got, b, n);
        r->plain->silu_mul(plain, b, n);
        for (size_t k = 0; k < n; k++) {
            double v = (double)a[k], gate = v / (1 + exp(-v)), want = gate * (double)b[k];
            bool use_double = r->is_plain && isfinite(v);
            double bound = (SILU_ERROR + UNIT_ROUNDOFF) * fabs(want) + TINY * fabs((double)b[k]);
            compare(r, "value", k, (double)got[k], use_double ? want : (double)plain[k],
                    use_double ? bound : 2 * bound);
        }
        r->cases++;
        release_guarded(r, "silu_mul");
    }
}

void check_silu_mul_backward(run *r)
{
    for (size_t i = 0; i < 2 * LENGTHS; i++) {
        size_t n = length(i % LENGTHS);
        bool special = i % 8 == 7;
        float *a = values(r, n, i % 4 == 1 ? 30.0f : 3.0f, special), s = i == 9 ? 0.0f : normal(r);
        float *b = values(r, n, 1.0f, false), *g = values(r, n, 1.0f, false);
        float *got = guarded_copy(g, n), *plain = guarded_copy(g, n);
        float *db = guarded_floats(n), *plain_db = guarded_floats(n);
        float sum = r->kernels->silu_mul_backward(a, b, got, s, db, n);
        float plain_sum = r->plain->silu_mul_backward(a, b, plain, s, plain_db, n);
        double want_sum = 0, size = 0;
        for (size_t k = 0; k < n; k++) {
            double v = (double)a[k], sigmoid = 1 / (1 + exp(-v)), rest = 1 / (1 + exp(v)), up = (double)b[k];
            double scaled = (double)s * (double)g[k], want_db = scaled * v * sigmoid;
            double want = scaled * up * (sigmoid + v * sigmoid * rest);
            double parts = fabs(scaled * up) * (sigmoid + fabs(v) * sigmoid * rest); /* the two may cancel */
            bool use_double = r->is_plain && isfinite(v);
            double tiny = TINY * (1 + (isfinite(v) ? fabs(v) : 0)); /* where e^-|v| is flushed */
            double bound = 2 * SILU_ERROR * parts + tiny, factor = use_double ? 1 : 2;
            compare(r, "da", k, (double)got[k], use_double ? want : (double)plain[k], factor * bound);
            bound = 2 * SILU_ERROR * fabs(want_db) + tiny;
            compare(r, "db", k, (double)db[k], use_double ? want_db : (double)plain_db[k], factor * bound);
            want_sum += (double)g[k] * v * sigmoid * up;
            size += fabs((double)g[k] * v * sigmoid * up);
        }
        bool use_double = r->is_plain && !special;
        double bound = (((double)n / 16 + 8) * UNIT_ROUNDOFF + 2 * SILU_ERROR) * size + TINY;
        compare(r, "sum", n, (double)sum, use_double ? want_sum : (double)plain_sum, use_double ? bound : 2 * bound);
        r->cases++;
        release_guarded(r, "silu_mul_backward");
    }
}

void check_exp_sum(run *r)
{
    for (size_t i = 0; i < 2 * LENGTHS; i++) {
        size_t n = length(i % LENGTHS);
        bool special = i % 8 == 7 && n > SPECIALS;
        float *x = values(r, n, i % 4 == 1 ? 60.0f : 3.0f, special), max = 0;
        for (size_t k = 0; k < n; k++) {
            if (special && k % 2 == 0)
                x[k] = k % 4 == 0 ? -INFINITY : -1e4f;
            if (special && k != 2 && isinf(x[k]) && x[k] > 0)
                x[k] = -INFINITY;
            max = x[k] > max ? x[k] : max;
        }
        float *got = guarded_copy(x, n), *plain = guarded_copy(x, n);
        float sum = r->kernels->exp_sum(got, max, n), plain_sum = r->plain->exp_sum(plain, max, n);
        double want_sum = 0;
        bool use_double = r->is_plain && !special;
        for (size_t k = 0; k < n; k++) {
            double want = exp((double)(x[k] - max));
            bool against_double = r->is_plain && !isnan(x[k]);
            compare(r, "value", k, (double)got[k], against_double ? want : (double)plain[k],
                    (against_double ? 1 : 2) * EXP_ERROR * want + TINY);
            want_sum += want;
        }
        double bound = (((double)n / 16 + 8) * UNIT_ROUNDOFF + EXP_ERROR) * want_sum + TINY;
        compare(r, "sum", n, (double)sum, use_double ? want_sum : (double)plain_sum, use_double ? bound : 2 * bound);
        r->cases++;
        release_guarded(r, "exp_sum");
    }
}

void check_to_f16(run *r)
{
    for (size_t i = 0; i < 2 * LENGTHS; i++) {
        size_t n = length(i % LENGTHS);
        static const float sizes[] = {1.0f, 1e-4f, 1e-7f, 40000.0f};
        float *x = values(r, n, sizes[i % 4], i % 8 == 7);
        uint16_t *got = guarded(n * sizeof *got);
        r->kernels->to_f16(x, n, got);
        for (size_t k = 0; k < n; k++) {
            float limited = fabsf(x[k]) > 65504.0f ? copysignf(65504.0f, x[k]) : x[k];
            uint16_t want = bxn_f32_f16(limited);
            if (isnan(x[k]) ? !isnan(f16_value(got[k])) : got[k] != want)
                fail(r, "[%zu] %a: got %04x, expected %04x", k, (double)x[k], got[k], want);
        }
        r->cases++;
        release_guarded(r, "to_f16");
    }
}
