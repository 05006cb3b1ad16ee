/* SPDX-License-Identifier: Apache-2.0 */
/* train_rows_body.h - what training does to rows and flat arrays besides products: AdamW, sums of squares,
 * the ends of a softmax, the gradient of RMSNorm. Included by ref_train_rows.c and by the train_rows_*.c of the
 * tiers, which define TRAIN_ROWS(name) and leave it to the compiler to turn the loops into vectors: sixteen
 * lanes that never meet before the end. Nothing is fused that would round otherwise (products of two floats
 * are exact in double), so that all tiers give the same bits. kernels.h has the formulas. */
#include <math.h>

#include "kernels/kernels_isa.h"

enum { TRAIN_LANES = 16, TRAIN_COLUMNS = 64 };

/* The lanes by a tree: i and i + 8, then + 4, + 2, + 1. */
static double train_tree(double lanes[TRAIN_LANES])
{
    for (size_t half = TRAIN_LANES / 2; half >= 1; half /= 2)
        for (size_t i = 0; i < half; i++)
            lanes[i] += lanes[i + half];
    return lanes[0];
}

void TRAIN_ROWS(adamw)(const bxn_adamw *a, float keep, float *restrict value, float *restrict grad,
                       float *restrict m, float *restrict v, size_t n)
{
    const float scale = a->scale, b1 = a->b1, c1 = a->c1, b2 = a->b2, c2 = a->c2;
    const float step = a->step, root = a->root, epsilon = a->epsilon;
    for (size_t i = 0; i < n; i++) {
        const float gradient = grad[i] * scale;
        m[i] = b1 * m[i] + c1 * gradient;
        v[i] = b2 * v[i] + c2 * (gradient * gradient);
        value[i] = value[i] * keep - step * (m[i] / (sqrtf(v[i]) * root + epsilon));
        grad[i] = 0;
    }
}

double TRAIN_ROWS(square_sum)(const float *x, size_t n)
{
    double lanes[TRAIN_LANES] = { 0 }, sum = 0;
    size_t i = 0;
    for (; i + TRAIN_LANES <= n; i += TRAIN_LANES)
        for (size_t l = 0; l < TRAIN_LANES; l++)
            lanes[l] += (double)x[i + l] * (double)x[i + l];
    for (; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    for (size_t l = 0; l < TRAIN_LANES; l++)
        sum += lanes[l];
    return sum;
}

float TRAIN_ROWS(row_max)(const float *x, size_t n)
{
    float lanes[TRAIN_LANES], max = -INFINITY;
    for (size_t l = 0; l < TRAIN_LANES; l++)
        lanes[l] = -INFINITY;
    size_t i = 0;
    for (; i + TRAIN_LANES <= n; i += TRAIN_LANES)
        for (size_t l = 0; l < TRAIN_LANES; l++)
            lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
    for (; i < n; i++)
        max = x[i] > max ? x[i] : max;
    for (size_t l = 0; l < TRAIN_LANES; l++)
        max = lanes[l] > max ? lanes[l] : max;
    return max;
}

void TRAIN_ROWS(scale)(float *x, float s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] *= s;
}

float TRAIN_ROWS(rmsnorm_backward)(const float *restrict x, const float *restrict w, const float *restrict dy,
                                   size_t n, float eps, float *restrict dx)
{
    double squares[TRAIN_LANES] = { 0 }, products[TRAIN_LANES] = { 0 };
    size_t i = 0;
    for (; i + TRAIN_LANES <= n; i += TRAIN_LANES) {
        for (size_t l = 0; l < TRAIN_LANES; l++) {
            squares[l] += (double)x[i + l] * (double)x[i + l];
            products[l] += (double)(w[i + l] * dy[i + l]) * (double)x[i + l];
        }
    }
    for (size_t l = 0; i + l < n; l++) {
        squares[l] += (double)x[i + l] * (double)x[i + l];
        products[l] += (double)(w[i + l] * dy[i + l]) * (double)x[i + l];
    }
    const double r = 1 / sqrt(train_tree(squares) / (double)n + (double)eps);
    const float inverse = (float)r, back = (float)(train_tree(products) * r * r * r / (double)n);
    for (i = 0; i < n; i++)
        dx[i] += inverse * (w[i] * dy[i]) - back * x[i];
    return inverse;
}

void TRAIN_ROWS(rmsnorm_weight)(const float *x, size_t ldx, const float *dy, size_t lddy, const float *inverse,
                                uint32_t rows, size_t n, float *dw)
{
    for (size_t i = 0; i < n; i += TRAIN_COLUMNS) {
        const size_t count = n - i < TRAIN_COLUMNS ? n - i : TRAIN_COLUMNS;
        double sums[TRAIN_COLUMNS] = { 0 };
        for (uint32_t t = 0; t < rows; t++) {
            const float *xt = x + t * ldx + i, *dyt = dy + t * lddy + i;
            const double by = (double)inverse[t];
            for (size_t l = 0; l < count; l++)
                sums[l] += (double)(dyt[l] * xt[l]) * by;
        }
        for (size_t l = 0; l < count; l++)
            dw[i + l] += (float)sums[l];
    }
}
