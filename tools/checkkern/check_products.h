/* SPDX-License-Identifier: Apache-2.0 */
/* check_products.h - what the checks of matrix products share: one problem with its inputs and
 * expected values, quantised matrices with their values as floats, and the comparison of one
 * tier with plain C, with itself cut into parts, and with the tier below. Defined in
 * check_mm.c; used there and in check_near.c. */
#ifndef CHECK_PRODUCTS_H
#define CHECK_PRODUCTS_H

#include "checkkern.h"

typedef void (*product)(const run *r, const bxn_kernels *k, const void *w, uint32_t begin,
                        uint32_t end, const bxn_mm_args *args);

/* One matrix, its activations and where results go. */
typedef struct problem {
    const void *matrix;
    product multiply;
    uint32_t rows, cols, cut_unit; /* ranges are in multiples of cut_unit rows */
    uint32_t count, sources;
    const float *x, *xsum;
    size_t ldx, ldsum;
    const int32_t *index;
    double *want, *bound; /* [count, rows] */
    bool own_order;       /* a tier may order it otherwise: no bits to compare between tiers */
} problem;

/* Activations with a zero tail, and the row index when there are more sources than tokens;
 * special: 1 denormal, 2 NaN, 3 infinity in places. */
void make_activations(run *r, problem *p, int special, bool with_sums);
void make_sums(run *r, problem *p); /* p->xsum of p->x as it now is */

void check_problem(run *r, const problem *p, bool cuts);

/* The values of a quantised matrix. The caller frees the three. */
typedef struct plain_matrix {
    float *value;         /* [rows, cols rounded up to 128]: table[code] or code - centre */
    float *scale, *bias_; /* [rows, sub-blocks]: bias' */
} plain_matrix;

/* Random codes, scales and biases in guarded memory; fills *w and *plain. */
void make_packed(run *r, bxn_packed *w, plain_matrix *plain, uint32_t rows, uint32_t cols,
                 uint8_t code_bits, uint8_t source_bits, uint8_t block_count, bool has_bias,
                 bool f32);

#endif
