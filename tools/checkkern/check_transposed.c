/* SPDX-License-Identifier: Apache-2.0 */
/* check_transposed.c - checks of the products with the transpose: values, tails, row
 * indirection, exact writes, adding to what is there, and equal bits however the work is cut.
 * Here the outputs of a problem are the columns of the matrix and its inputs the rows. */
#include "check_products.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/runtime.h"

typedef struct matrix {
    const bxn_packed *packed; /* or */
    const bxn_dense *dense;
    bool add;
} matrix;

static void once(const bxn_kernels *k, const matrix *w, uint32_t begin, uint32_t end,
                 const bxn_mm_args *args, bool add)
{
    if (w->packed != NULL)
        (w->packed->code_bits == 4 ? k->mm_t_packed4 : k->mm_t_packed8)(w->packed, begin, end, args,
                                                                        add);
    else
        (w->dense->dtype == BXN_F32   ? k->mm_t_f32
         : w->dense->dtype == BXN_F16 ? k->mm_t_f16
                                      : k->mm_t_bf16)(w->dense, begin, end, args, add);
}

static void multiply(const run *r, const bxn_kernels *k, const void *m, uint32_t begin,
                     uint32_t end, const bxn_mm_args *args)
{
    const matrix *w = m;
    (void)r;
    once(k, w, begin, end, args, false);
    if (w->add)
        once(k, w, begin, end, args, true);
}

/* weight and size [inputs, outputs]: the exact weight, and the magnitudes of its terms. */
static void judge(run *r, problem *p, const matrix *w, const double *weight, const double *size,
                  int special)
{
    const uint32_t inputs = p->cols, outputs = p->rows;
    const double times = w->add ? 2 : 1;
    const double steps = (inputs < 128 ? inputs : 128) + times * (inputs / 128 + 1.0) + 8.0;
    make_activations(r, p, special, false);
    p->matrix = w;
    p->multiply = multiply;
    p->cut_unit = 128;
    p->want = calloc((size_t)p->count * outputs, sizeof(double));
    p->bound = calloc((size_t)p->count * outputs, sizeof(double));
    for (uint32_t m = 0; m < p->count; m++) {
        const float *x = p->x + (p->index != NULL ? (size_t)p->index[m] : m) * p->ldx;
        for (uint32_t o = 0; o < outputs; o++) {
            double sum = 0, terms = 0, whole = 0;
            for (uint32_t n = 0; n < inputs; n++) {
                size_t at = (size_t)n * outputs + o;
                sum += weight[at] * (double)x[n];
                terms += size[at] * fabs((double)x[n]);
                whole += size[at];
            }
            p->want[(size_t)m * outputs + o] = times * sum;
            p->bound[(size_t)m * outputs + o] =
                times * (steps * UNIT_ROUNDOFF * terms + TINY * (1 + whole));
        }
    }
    check_problem(r, p, true);
    if (special == 1) { /* and with denormals flushed, as tasks run */
        uint64_t saved = bxn_float_enter();
        check_problem(r, p, true);
        bxn_float_leave(saved);
    }
    free(p->want);
    free(p->bound);
}

static void packed_case(run *r, uint32_t rows, uint32_t cols, uint32_t count, uint8_t code_bits,
                        uint8_t block_count, bool has_bias, bool f32, bool indirect, bool add,
                        int special)
{
    bxn_packed w;
    plain_matrix plain;
    make_packed(r, &w, &plain, rows, cols, code_bits, code_bits, block_count, has_bias, f32);
    const size_t wide = (size_t)w.k_units * 128, subs = (size_t)w.k_units * 4;
    double *weight = calloc((size_t)rows * cols, sizeof *weight);
    double *size = calloc((size_t)rows * cols, sizeof *size);
    for (uint32_t n = 0; n < rows; n++) {
        for (uint32_t k = 0; k < cols; k++) {
            double scale = (double)plain.scale[n * subs + k / 32];
            double term = scale * (double)plain.value[n * wide + k];
            double bias = has_bias ? (double)plain.bias_[n * subs + k / 32] : 0;
            weight[(size_t)n * cols + k] = term + bias;
            size[(size_t)n * cols + k] = fabs(term) + 3 * fabs(bias) + /* bias' is rounded too */
                                         (has_bias ? fabs(scale) * (double)w.center : 0);
        }
    }
    matrix m = {.packed = &w, .add = add};
    problem p = {
        .rows = cols, .cols = rows, .count = count, .sources = indirect ? count + 2 : count};
    judge(r, &p, &m, weight, size, special);
    free(weight);
    free(size);
    free(plain.value);
    free(plain.scale);
    free(plain.bias_);
    release_guarded(r, "mm_t_packed");
}

static void check_packed(run *r, uint8_t code_bits)
{
    static const uint32_t counts[] = {1, 2, 3, 5, 6, 7, 13, 14, 15, 29, 43};
    static const uint8_t block_counts[] = {1, 2, 4};
    for (int has_bias = 0; has_bias < 2; has_bias++) {
        for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++)
            for (size_t b = 0; b < 3; b++)
                packed_case(r, 1 + below(r, 300), 1 + below(r, 300), counts[c], code_bits,
                            block_counts[b], has_bias, below(r, 2), below(r, 2), below(r, 2), 0);
        for (int special = 1; special <= 3; special++)
            packed_case(r, 50, 140, 4, code_bits, 2, has_bias, special == 2, false, special == 1,
                        special);
    }
}

void check_mm_t_packed4(run *r)
{
    check_packed(r, 4);
}

void check_mm_t_packed8(run *r)
{
    check_packed(r, 8);
}

static void dense_case(run *r, bxn_dtype dtype, uint32_t rows, uint32_t cols, uint32_t count,
                       bool odd, bool indirect, bool add, int special)
{
    const size_t element = dtype == BXN_F32 ? 4 : 2, values = (size_t)rows * cols;
    uint8_t *data = guarded(values * element + odd);
    double *weight = calloc(values, sizeof *weight), *size = calloc(values, sizeof *size);
    for (size_t i = 0; i < values; i++) {
        float v = normal(r);
        uint16_t bits = dtype == BXN_F16 ? bxn_f32_f16(v) : bxn_f32_bf16(v);
        if (dtype == BXN_F32)
            memcpy(data + i * element, &v, element);
        else
            memcpy(data + i * element, &bits, element);
        weight[i] = (double)(dtype == BXN_F32   ? v
                             : dtype == BXN_F16 ? f16_value(bits)
                                                : bxn_bf16_f32(bits));
        size[i] = fabs(weight[i]);
    }
    bxn_dense w = {data, dtype, rows, cols};
    matrix m = {.dense = &w, .add = add};
    problem p = {
        .rows = cols, .cols = rows, .count = count, .sources = indirect ? count + 2 : count};
    judge(r, &p, &m, weight, size, special);
    free(weight);
    free(size);
    release_guarded(r, "mm_t_dense");
}

static void check_dense(run *r, bxn_dtype dtype)
{
    for (uint32_t cols = 1; cols <= 34; cols++)
        dense_case(r, dtype, 1 + below(r, 20), cols, 1 + below(r, 4), cols & 1, false, false, 0);
    for (uint32_t count = 1; count <= 30; count++)
        dense_case(r, dtype, 1 + below(r, 400), 1 + below(r, 300), count, count & 1, count & 2,
                   count & 4, 0);
    for (uint32_t rows = 126; rows <= 130; rows++)
        dense_case(r, dtype, rows, 256 + below(r, 3), 3, rows & 1, rows & 2, true, 0);
    for (int special = 1; special <= 3; special++)
        for (uint32_t count = 1; count <= 7; count += 3)
            dense_case(r, dtype, 75, 11, count, false, false, special == 1, special);
}

void check_mm_t_f32(run *r)
{
    check_dense(r, BXN_F32);
}

void check_mm_t_f16(run *r)
{
    check_dense(r, BXN_F16);
}

void check_mm_t_bf16(run *r)
{
    check_dense(r, BXN_BF16);
}
