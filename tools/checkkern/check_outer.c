/* SPDX-License-Identifier: Apache-2.0 */
/* check_outer.c - checks of the outer product: values, adding to what is there, odd sizes, reads and writes
 * within guard pages, and equal bits however rows and columns of the result are cut. */
#include "checkkern.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/runtime.h"

enum { SPECIAL_NAN = 1, SPECIAL_INFINITY, SPECIAL_TINY };

/* Columns of c that lie on both sides of those asked for. */
enum { SIDE = 3 };

static float value_of(run *r, int special)
{
    return special == SPECIAL_TINY ? normal(r) * 0x1p-100f : normal(r);
}

static void outer_case(run *r, uint32_t rows, uint32_t count, uint32_t columns, int special)
{
    const size_t ldp = count + below(r, 5), ldq = columns + below(r, 5), ldc = columns + 2 * SIDE;
    float *p = guarded_floats((rows - 1) * ldp + count), *q = guarded_floats((rows - 1) * ldq + columns);
    float *c = guarded_floats(count * ldc), *first = malloc(count * ldc * sizeof *c);
    float *other = malloc(count * ldc * sizeof *c);
    for (uint32_t t = 0; t < rows; t++) {
        for (uint32_t i = 0; i < count; i++)
            p[t * ldp + i] = value_of(r, special);
        for (uint32_t j = 0; j < columns; j++)
            q[t * ldq + j] = value_of(r, special);
    }
    if (special == SPECIAL_NAN)
        p[below(r, rows) * ldp + below(r, count)] = NAN;
    if (special == SPECIAL_INFINITY)
        q[below(r, rows) * ldq + below(r, columns)] = INFINITY;
    fill_pattern(first, count * ldc);
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t j = 0; j < columns; j++)
            first[i * ldc + SIDE + j] = value_of(r, special);
    memcpy(c, first, count * ldc * sizeof *c);
    bxn_outer_args args = {p, ldp, q, ldq, rows, c + SIDE, ldc};
    r->kernels->outer_add(&args, 0, count, 0, columns);

    memcpy(other, first, count * ldc * sizeof *c);
    bxn_outer_args plain = args;
    plain.c = other + SIDE;
    if (!r->is_plain)
        r->plain->outer_add(&plain, 0, count, 0, columns);
    /* A chain of at most 128 products, and the sums of the blocks. */
    const double steps = (rows < 128 ? rows : 128) + rows / 128 + 3.0;
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t j = 0; j < columns; j++) {
            const size_t at = i * ldc + SIDE + j;
            double sum = (double)first[at], terms = fabs(sum);
            for (uint32_t t = 0; t < rows; t++) {
                const double term = (double)p[t * ldp + i] * (double)q[t * ldq + j];
                sum += term;
                terms += fabs(term);
            }
            const double bound = steps * UNIT_ROUNDOFF * terms + TINY * (1 + rows);
            compare(r, "outer_add", at, (double)c[at], r->is_plain ? sum : (double)other[at],
                    r->is_plain ? bound : 2 * bound);
        }
        for (uint32_t side = 0; side < SIDE; side++)
            if (!has_pattern(c[i * ldc + side]) || !has_pattern(c[i * ldc + SIDE + columns + side]))
                fail(r, "row %u: wrote beside its columns", i);
    }
    /* In pieces, and other tiers of SIMD: the same bits. */
    const uint32_t i_cut = below(r, count + 1), j_cut = below(r, columns + 1);
    memcpy(other, first, count * ldc * sizeof *c);
    r->kernels->outer_add(&plain, i_cut, count, j_cut, columns);
    r->kernels->outer_add(&plain, i_cut, count, 0, j_cut);
    r->kernels->outer_add(&plain, 0, i_cut, 0, j_cut);
    r->kernels->outer_add(&plain, 0, i_cut, j_cut, columns);
    same_bits(r, "in pieces", c, other, count * ldc);
    if (r->below != NULL && special == 0) {
        memcpy(other, first, count * ldc * sizeof *c);
        r->below->outer_add(&plain, 0, count, 0, columns);
        same_bits(r, "the tier below", c, other, count * ldc);
    }
    r->cases++;
    free(first);
    free(other);
    release_guarded(r, "outer_add");
}

void check_outer_add(run *r)
{
    for (uint32_t columns = 1; columns <= 100; columns++)
        outer_case(r, 1 + below(r, 40), 1 + below(r, 33), columns, 0);
    for (uint32_t rows = 1; rows <= 20; rows++)
        outer_case(r, rows, rows, 50 - rows, 0);
    for (uint32_t rows = 126; rows <= 130; rows++)
        outer_case(r, rows, 1 + below(r, 30), 1 + below(r, 200), 0);
    for (int i = 0; i < 6; i++)
        outer_case(r, 200 + below(r, 400), 1 + below(r, 20), 1 + below(r, 90), 0);
    outer_case(r, 40, 150, 61, 0);
    outer_case(r, 40, 300, 20, 0);
    outer_case(r, 30, 20, 490, 0);
    for (int special = SPECIAL_NAN; special <= SPECIAL_TINY; special++) {
        outer_case(r, 50, 9, 70, special);
        uint64_t saved = bxn_float_enter();
        outer_case(r, 150, 16, 33, special);
        bxn_float_leave(saved);
    }
}
