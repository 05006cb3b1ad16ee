/* SPDX-License-Identifier: Apache-2.0 */
/* check_train_rows.c - checks of what training does to rows and flat arrays: plain C against doubles, every
 * other tier against plain C to the bit; all lengths to 70 and some long ones, in guarded memory. */
#include "checkkern.h"

#include <math.h>

#define LENGTHS 80

static size_t length(size_t i)
{
    return i <= 70 ? i : 41 * (i - 70) * (i - 70) + i % 3;
}

void check_adamw(run *r)
{
    for (size_t i = 0; i < LENGTHS; i++) {
        const size_t n = length(i);
        const bxn_adamw a = { .scale = i % 3 == 0 ? 1.0f : 0.37f, .b1 = 0.9f, .c1 = 0.1f, .b2 = 0.999f, .c2 = 0.001f,
                              .step = 1e-3f * (float)(1 + i % 5), .root = i % 4 == 0 ? 1.0f : 3.2f, .epsilon = 1e-8f };
        const float keep = i % 2 == 0 ? 1.0f : 0.99f;
        float *value = guarded_randoms(r, n, 1), *grad = guarded_randoms(r, n, 0.1f), *m = guarded_randoms(r, n, 0.1f);
        float *v = guarded_randoms(r, n, 0.1f);
        for (size_t k = 0; k < n; k++)
            v[k] = i % 7 == 0 && k % 5 == 0 ? 0 : v[k] * v[k];
        if (i % 7 == 6 && n > 2) { /* what is not finite stays where it is */
            grad[n - 1] = NAN;
            grad[n / 2] = INFINITY;
        }
        float *got[4] = { guarded_copy(value, n), guarded_copy(grad, n), guarded_copy(m, n), guarded_copy(v, n) };
        float *plain[4] = { guarded_copy(value, n), guarded_copy(grad, n), guarded_copy(m, n), guarded_copy(v, n) };
        r->kernels->adamw(&a, keep, got[0], got[1], got[2], got[3], n);
        r->plain->adamw(&a, keep, plain[0], plain[1], plain[2], plain[3], n);
        for (size_t k = 0; k < n; k++) {
            const double g = (double)grad[k] * (double)a.scale, u = UNIT_ROUNDOFF;
            const double size = fabs((double)a.b1 * (double)m[k]) + fabs((double)a.c1 * g);
            const double mean = (double)a.b1 * (double)m[k] + (double)a.c1 * g, mean_error = 4 * u * size;
            const double square = (double)a.b2 * (double)v[k] + (double)a.c2 * g * g;
            const double by = sqrt(square) * (double)a.root + (double)a.epsilon, term = (double)a.step * mean / by;
            const double kept = (double)keep * (double)value[k], want = kept - term;
            const double error = (double)a.step * mean_error / by + 10 * u * fabs(term) + u * (fabs(kept) + fabs(want));
            if (r->is_plain && isfinite(g)) {
                compare(r, "m", k, (double)got[2][k], mean, mean_error);
                compare(r, "v", k, (double)got[3][k], square, 5 * u * square + 1e-38);
                compare(r, "value", k, (double)got[0][k], want, error);
            }
            compare(r, "gradient", k, (double)got[1][k], 0, 0);
            for (int j = 0; j < 4; j++)
                compare(r, "against plain C", k, (double)got[j][k], (double)plain[j][k], 0);
        }
        r->cases++;
        release_guarded(r, "adamw");
    }
}

void check_square_sum(run *r)
{
    for (size_t i = 0; i < LENGTHS; i++) {
        const size_t n = length(i);
        float *x = guarded_randoms(r, n, i % 2 == 0 ? 1.0f : 1e15f);
        if (i % 9 == 8)
            x[n / 2] = i % 2 == 0 ? NAN : INFINITY;
        const double got = r->kernels->square_sum(x, n), plain = r->plain->square_sum(x, n);
        long double want = 0;
        for (size_t k = 0; k < n; k++)
            want += (long double)x[k] * (long double)x[k];
        compare(r, "sum", n, got, (double)want, isfinite((double)want) ? ((double)n + 16) * 0x1p-53 * (double)want : 0);
        compare(r, "against plain C", n, got, plain, 0);
        r->cases++;
        release_guarded(r, "square_sum");
    }
}

void check_row_max(run *r)
{
    for (size_t i = 0; i < LENGTHS; i++) {
        const size_t n = length(i);
        float *x = guarded_randoms(r, n, 3), want = -INFINITY;
        for (size_t k = 0; k < n; k++) {
            if (i % 5 == 4)
                x[k] = k % 3 == 0 ? NAN : k % 3 == 1 ? -INFINITY : -1e30f;
            want = x[k] > want ? x[k] : want;
        }
        compare(r, "maximum", n, (double)r->kernels->row_max(x, n), (double)want, 0);
        for (size_t k = 0; k < n; k += n < 70 ? 1 : n / 7) { /* wherever it stands */
            const float was = x[k];
            x[k] = 1e4f;
            compare(r, "maximum put there", k, (double)r->kernels->row_max(x, n), 1e4, 0);
            x[k] = was;
        }
        r->cases++;
        release_guarded(r, "row_max");
    }
}

void check_scale(run *r)
{
    for (size_t i = 0; i < LENGTHS; i++) {
        const size_t n = length(i);
        const float s = i == 9 ? 0.0f : normal(r);
        float *x = guarded_randoms(r, n, 1);
        if (i % 7 == 6 && n > 1) {
            x[0] = NAN;
            x[n - 1] = INFINITY;
        }
        float *got = guarded_copy(x, n), *plain = guarded_copy(x, n);
        r->kernels->scale(got, s, n);
        r->plain->scale(plain, s, n);
        for (size_t k = 0; k < n; k++) {
            const double want = (double)s * (double)x[k];
            compare(r, "value", k, (double)got[k], want, UNIT_ROUNDOFF * fabs(want) + 1e-38);
            compare(r, "against plain C", k, (double)got[k], (double)plain[k], 0);
        }
        r->cases++;
        release_guarded(r, "scale");
    }
}

void check_rmsnorm_backward(run *r)
{
    for (size_t i = 1; i < LENGTHS; i++) {
        const size_t n = length(i);
        const float eps = i % 2 == 0 ? 1e-6f : 1e-5f;
        float *x = guarded_randoms(r, n, i % 6 == 5 ? 1e-4f : 1.0f), *w = guarded_randoms(r, n, 1);
        float *dy = guarded_randoms(r, n, 1), *dx = guarded_randoms(r, n, 0.5f);
        float *got = guarded_copy(dx, n), *plain = guarded_copy(dx, n);
        const float inverse = r->kernels->rmsnorm_backward(x, w, dy, n, eps, got);
        const float plain_inverse = r->plain->rmsnorm_backward(x, w, dy, n, eps, plain);
        double squares = 0, products = 0, size = 0;
        for (size_t k = 0; k < n; k++) {
            const double product = (double)w[k] * (double)dy[k] * (double)x[k];
            squares += (double)x[k] * (double)x[k];
            products += product;
            size += fabs(product);
        }
        const double by = 1 / sqrt(squares / (double)n + (double)eps), u = 1.1 * UNIT_ROUNDOFF;
        const double cube = by * by * by / (double)n, back = products * cube;
        compare(r, "inverse", n, (double)inverse, by, u * by);
        compare(r, "inverse against plain C", n, (double)inverse, (double)plain_inverse, 0);
        for (size_t k = 0; k < n; k++) {
            const double direct = by * (double)w[k] * (double)dy[k], mean = back * (double)x[k];
            const double want = (double)dx[k] + direct - mean;
            const double error = u * (4 * fabs(direct) + 3 * fabs(mean) + 2 * size * cube * fabs((double)x[k]) +
                                      fabs(direct - mean) + fabs(want));
            compare(r, "dx", k, (double)got[k], want, error + 1e-38);
        }
        same_bits(r, "dx against plain C", got, plain, n);
        r->cases++;
        release_guarded(r, "rmsnorm_backward");
    }
}

void check_rmsnorm_weight(run *r)
{
    for (size_t i = 0; i < 72; i++) {
        const size_t n = i < 70 ? i : 64 * (i - 68), ldx = n + 3, lddy = n + 1;
        const uint32_t rows = i % 5 == 0 ? 0 : (uint32_t)(i % 37);
        float *x = guarded_randoms(r, rows * ldx, 1), *dy = guarded_randoms(r, rows * lddy, 1);
        float *by = guarded_randoms(r, rows, 1), *dw = guarded_randoms(r, n, 1);
        float *got = guarded_copy(dw, n), *plain = guarded_copy(dw, n);
        r->kernels->rmsnorm_weight(x, ldx, dy, lddy, by, rows, n, got);
        r->plain->rmsnorm_weight(x, ldx, dy, lddy, by, rows, n, plain);
        for (size_t k = 0; k < n; k++) {
            double sum = 0, size = 0;
            for (uint32_t t = 0; t < rows; t++) {
                const double part = (double)x[t * ldx + k] * (double)dy[t * lddy + k] * (double)by[t];
                sum += part;
                size += fabs(part);
            }
            compare(r, "dw", k, (double)got[k], (double)dw[k] + sum,
                    1.1 * UNIT_ROUNDOFF * (size + fabs(sum) + fabs((double)dw[k] + sum)));
        }
        same_bits(r, "against plain C", got, plain, n);
        r->cases++;
        release_guarded(r, "rmsnorm_weight");
    }
}
