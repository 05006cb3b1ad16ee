/* SPDX-License-Identifier: Apache-2.0 */
/* check_mm.c - checks of the matrix products, quantised and dense: values, tails, row
 * indirection, exact writes, and equal bits however the work is cut. */
#include "check_products.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/runtime.h"

static bxn_mm_args args_of(const problem *p, uint32_t first, uint32_t count, float *y, size_t ldy)
{
    bxn_mm_args a = {.x = p->x,
                     .ldx = p->ldx,
                     .rows = p->index,
                     .count = count,
                     .y = y,
                     .ldy = ldy,
                     .xsum = p->xsum,
                     .ldsum = p->ldsum};
    if (p->index != NULL) {
        a.rows = p->index + first;
    } else {
        a.x += first * p->ldx;
        a.xsum = p->xsum != NULL ? p->xsum + first * p->ldsum : NULL;
    }
    return a;
}

static uint32_t parts(const problem *p)
{
    return (p->rows + p->cut_unit - 1) / p->cut_unit;
}

void make_sums(run *r, problem *p)
{
    p->ldsum = p->ldx / 32;
    float *sums = guarded_floats(p->sources * p->ldsum);
    for (uint32_t m = 0; m < p->sources; m++)
        r->plain->block_sums(p->x + m * p->ldx, p->ldsum, sums + m * p->ldsum);
    p->xsum = sums;
}

void make_activations(run *r, problem *p, int special, bool with_sums)
{
    p->ldx = bxn_round_up(p->cols, 128);
    float *x = guarded_floats(p->sources * p->ldx);
    memset(x, 0, p->sources * p->ldx * sizeof(float));
    for (uint32_t m = 0; m < p->sources; m++)
        for (uint32_t k = 0; k < p->cols; k++)
            x[m * p->ldx + k] = normal(r) * (special == 1 ? 1e-40f : 1.0f);
    if (special >= 2)
        x[below(r, p->sources) * p->ldx + below(r, p->cols)] = special == 2 ? NAN : INFINITY;
    p->x = x;
    if (with_sums)
        make_sums(r, p);
    if (p->sources != p->count) {
        int32_t *index = guarded(p->count * sizeof *index);
        for (uint32_t m = 0; m < p->count; m++)
            index[m] = (int32_t)below(r, p->sources);
        p->index = index;
    }
}

/* All rows at once into a fresh y with a gap of 3; checks what was not to be written. */
static float *whole(run *r, const bxn_kernels *k, const problem *p)
{
    size_t ldy = (size_t)p->rows + 3;
    float *y = guarded_floats(p->count * ldy);
    fill_pattern(y, p->count * ldy);
    bxn_mm_args a = args_of(p, 0, p->count, y, ldy);
    p->multiply(r, k, p->matrix, 0, parts(p), &a);
    for (uint32_t m = 0; m < p->count; m++)
        for (size_t c = p->rows; c < ldy; c++)
            if (!has_pattern(y[m * ldy + c]))
                fail(r, "%u x %u x %u: wrote beyond row %u", p->count, p->rows, p->cols, m);
    return y;
}

static void check_cuts(run *r, const problem *p, const float *y)
{
    const size_t ldy = (size_t)p->rows + 3;
    float *cut = guarded_floats(p->count * ldy);
    fill_pattern(cut, p->count * ldy);
    for (uint32_t m = 0; m < p->count; m++)
        for (size_t c = p->rows; c < ldy; c++)
            cut[m * ldy + c] = y[m * ldy + c];
    uint32_t all = parts(p), a = below(r, all + 1), b = a + below(r, all - a + 1);
    const uint32_t borders[] = {0, a, b, all};
    for (int i = 0; i < 3; i++) {
        for (uint32_t m = 0; m < p->count;) {
            uint32_t n = i == 0 ? 1 : 1 + below(r, p->count - m);
            bxn_mm_args part = args_of(p, m, n, cut + m * ldy, ldy);
            p->multiply(r, r->kernels, p->matrix, borders[i], borders[i + 1], &part);
            m += n;
        }
    }
    same_bits(r, "cut into row ranges and tokens", y, cut, p->count * ldy);
}

void check_problem(run *r, const problem *p, bool cuts)
{
    const size_t ldy = (size_t)p->rows + 3;
    float *y = whole(r, r->kernels, p);
    const float *plain = r->is_plain ? NULL : whole(r, r->plain, p);
    for (uint32_t m = 0; m < p->count; m++) {
        for (uint32_t n = 0; n < p->rows; n++) {
            double bound = p->bound[(size_t)m * p->rows + n];
            double want =
                r->is_plain ? p->want[(size_t)m * p->rows + n] : (double)plain[m * ldy + n];
            /* Centred or not, infinite inputs give something infinite or not a number. */
            if (p->own_order && !isfinite(want) && !isfinite(y[m * ldy + n]))
                continue;
            compare(r, "value", (size_t)m * p->rows + n, (double)y[m * ldy + n], want,
                    r->is_plain ? bound : 2 * bound);
        }
    }
    bool special = false;
    for (size_t i = 0; i < (size_t)p->count * p->rows; i++)
        special = special || !isfinite(p->want[i]);
    if (cuts && !special)
        check_cuts(r, p, y);
    if (r->below != NULL && !special && !p->own_order)
        same_bits(r, "against the tier below", y, whole(r, r->below, p), p->count * ldy);
    r->cases++;
}

/* ---- quantised ------------------------------------------------------------------------ */

static void multiply_packed(const run *r, const bxn_kernels *k, const void *w, uint32_t begin,
                            uint32_t end, const bxn_mm_args *args)
{
    (void)r;
    const bxn_packed *packed = w;
    (packed->code_bits == 4 ? k->mm_packed4 : k->mm_packed8)(packed, begin, end, args);
}

static float put_scale(run *r, bool f32, uint8_t *at, uint32_t index, float low, float high)
{
    if (f32) {
        float value = uniform(r, low, high);
        memcpy(at + 4 * (size_t)index, &value, sizeof value);
        return value;
    }
    uint16_t bits = random_f16(r, low, high);
    memcpy(at + 2 * (size_t)index, &bits, sizeof bits);
    return f16_value(bits);
}

void make_packed(run *r, bxn_packed *w, plain_matrix *plain, uint32_t rows, uint32_t cols,
                 uint8_t code_bits, uint8_t source_bits, uint8_t block_count, bool has_bias,
                 bool f32)
{
    *w = (bxn_packed){.rows = rows,
                      .cols = cols,
                      .row_groups = (rows + 15) / 16,
                      .k_units = (cols + 127) / 128,
                      .code_bits = code_bits,
                      .source_bits = source_bits,
                      .blocks = block_count,
                      .has_bias = has_bias,
                      .scale_f32 = f32};
    w->center = has_bias ? (float)(1u << (source_bits - 1)) : 0.0f;
    w->unit_bytes = bxn_unit_scale_bytes(w) + 256u * code_bits;
    for (int c = 0; c < 16; c++)
        w->table[c] = has_bias ? (float)c - w->center : uniform(r, -1.0f, 1.0f);
    size_t bytes = (size_t)w->row_groups * w->k_units * w->unit_bytes;
    uint8_t *data = guarded(bytes);
    memset(data, 0, bytes);
    w->data = data;
    size_t subs = (size_t)w->k_units * 4;
    plain->value = calloc((size_t)rows * w->k_units * 128, sizeof(float));
    plain->scale = calloc(rows * subs, sizeof(float));
    plain->bias_ = calloc(rows * subs, sizeof(float));
    for (uint32_t row = 0; row < rows; row++) {
        for (uint32_t u = 0; u < w->k_units; u++) {
            uint8_t *unit = data + ((size_t)(row / 16) * w->k_units + u) * w->unit_bytes;
            uint8_t *biases = unit + bxn_unit_scale_bytes(w) / 2;
            uint8_t *codes = unit + bxn_unit_scale_bytes(w);
            for (uint32_t b = 0; b < block_count; b++) {
                if (u * 128 + b * (128u / block_count) >= cols)
                    continue; /* padding */
                uint32_t index = b * 16 + row % 16;
                float tiny = below(r, 50) == 0 ? 1e-3f : 1.0f; /* f16 subnormals too */
                float scale = put_scale(r, f32, unit, index, -0.1f * tiny, 0.1f * tiny);
                float bias = has_bias ? put_scale(r, f32, biases, index, -0.5f, 0.5f) : 0.0f;
                for (uint32_t j = b * 4 / block_count; j < (b + 1) * 4 / block_count; j++) {
                    plain->scale[row * subs + u * 4 + j] = scale;
                    plain->bias_[row * subs + u * 4 + j] = has_bias ? bias + w->center * scale : 0;
                }
            }
            for (uint32_t k = 0; k < 128 && u * 128 + k < cols; k++) {
                float *value = plain->value + (size_t)row * w->k_units * 128 + u * 128 + k;
                if (code_bits == 8) {
                    int half = 1 << (source_bits - 1);
                    int code = (int)below(r, 2 * (uint32_t)half) - half;
                    codes[(k / 4 * 16 + row % 16) * 4 + k % 4] = (uint8_t)code;
                    *value = (float)code;
                } else {
                    uint32_t code = below(r, 1u << source_bits);
                    codes[(k / 8 * 16 + row % 16) * 4 + k % 8 / 2] |=
                        (uint8_t)(code << (k % 2 * 4));
                    *value = w->table[code];
                }
            }
        }
    }
}

static void expect_packed(problem *p, const bxn_packed *w, const plain_matrix *plain)
{
    size_t subs = (size_t)w->k_units * 4;
    double steps = 40.0 + 2.0 * (double)subs;
    for (uint32_t m = 0; m < p->count; m++) {
        size_t source = p->index != NULL ? (size_t)p->index[m] : m;
        for (uint32_t row = 0; row < w->rows; row++) {
            double sum = 0, size = 0, weight = 0;
            for (size_t j = 0; j < subs; j++) {
                double dot = 0, dot_size = 0;
                double s = (double)plain->scale[row * subs + j];
                for (size_t k = j * 32; k < j * 32 + 32; k++) {
                    double v = (double)plain->value[(size_t)row * subs * 32 + k];
                    double term = v * (double)p->x[source * p->ldx + k];
                    dot += term;
                    dot_size += fabs(term);
                    if (w->has_bias) /* a tier may leave the centre to the bias */
                        dot_size += (double)w->center * fabs((double)p->x[source * p->ldx + k]);
                    weight += fabs(s * v);
                }
                sum += s * dot;
                size += fabs(s) * dot_size;
                if (w->has_bias) {
                    double term = (double)plain->bias_[row * subs + j] *
                                  (double)p->xsum[source * p->ldsum + j];
                    sum += term;
                    size += 2 * fabs(term) +
                            fabs(s * (double)w->center * (double)p->xsum[source * p->ldsum + j]);
                }
            }
            p->want[(size_t)m * w->rows + row] = sum;
            p->bound[(size_t)m * w->rows + row] =
                steps * UNIT_ROUNDOFF * size + TINY * (1 + weight);
        }
    }
}

static void packed_case(run *r, uint32_t rows, uint32_t cols, uint32_t count, uint8_t code_bits,
                        uint8_t source_bits, uint8_t block_count, bool has_bias, bool f32,
                        bool indirect, int special)
{
    bxn_packed w;
    plain_matrix plain;
    make_packed(r, &w, &plain, rows, cols, code_bits, source_bits, block_count, has_bias, f32);
    problem p = {.matrix = &w,
                 .own_order = has_bias && code_bits == 4,
                 .multiply = multiply_packed,
                 .rows = rows,
                 .cols = cols,
                 .cut_unit = 16,
                 .count = count,
                 .sources = indirect ? count + 2 : count};
    make_activations(r, &p, special, has_bias);
    p.want = calloc((size_t)count * rows, sizeof(double));
    p.bound = calloc((size_t)count * rows, sizeof(double));
    expect_packed(&p, &w, &plain);
    check_problem(r, &p, true);
    if (special == 1) { /* and with denormals flushed, as tasks run */
        uint64_t saved = bxn_float_enter();
        check_problem(r, &p, true);
        bxn_float_leave(saved);
    }
    free(plain.value);
    free(plain.scale);
    free(plain.bias_);
    free(p.want);
    free(p.bound);
    release_guarded(r, "mm_packed");
}

static void check_packed(run *r, uint8_t code_bits)
{
    static const uint32_t counts[] = {1, 2, 3, 4, 5, 7, 8, 12, 13, 16, 23, 33, 145, 157};
    static const uint8_t block_counts[] = {1, 2, 4};
    for (int has_bias = 0; has_bias < 2; has_bias++) {
        for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
            for (size_t b = 0; b < 3; b++) {
                uint8_t source = code_bits == 8 ? (uint8_t[]){5, 6, 8}[below(r, 3)] : 4;
                if (code_bits == 4 && has_bias)
                    source = (uint8_t)(2 + below(r, 3));
                uint32_t rows = 1 + below(r, counts[c] > 33 ? 40 : 200);
                uint32_t cols = 1 + below(r, counts[c] > 33 ? 300 : 700);
                packed_case(r, rows, cols, counts[c], code_bits, source, block_counts[b], has_bias,
                            below(r, 2), below(r, 2), 0);
            }
        }
        for (uint32_t groups = 1; groups <= 9; groups++)
            packed_case(r, groups * 16, 256, 1, code_bits, code_bits, 2, has_bias, false, false, 0);
        for (int special = 1; special <= 3; special++)
            for (uint32_t count = 1; count <= 4; count += 3)
                packed_case(r, 50, 300, count, code_bits, code_bits, 2, has_bias, special == 2,
                            false, special);
    }
    bxn_packed w; /* nothing asked, nothing touched */
    plain_matrix plain;
    make_packed(r, &w, &plain, 20, 130, code_bits, code_bits, 2, false, false);
    float *x = guarded_floats(256), *y = guarded_floats(20);
    memset(x, 0, 256 * sizeof *x);
    fill_pattern(y, 20);
    bxn_mm_args none = {.x = x, .ldx = 256, .count = 0, .y = y, .ldy = 20};
    multiply_packed(r, r->kernels, &w, 0, 2, &none);
    none.count = 1;
    multiply_packed(r, r->kernels, &w, 1, 1, &none);
    for (int i = 0; i < 20; i++)
        if (!has_pattern(y[i]))
            fail(r, "an empty product wrote y[%d]", i);
    free(plain.value);
    free(plain.scale);
    free(plain.bias_);
    release_guarded(r, "empty product");
}

void check_mm_packed4(run *r)
{
    check_packed(r, 4);
}

void check_mm_packed8(run *r)
{
    check_packed(r, 8);
}

/* ---- dense -------------------------------------------------------------------------------- */

static void multiply_dense(const run *r, const bxn_kernels *k, const void *w, uint32_t begin,
                           uint32_t end, const bxn_mm_args *args)
{
    (void)r;
    const bxn_dense *dense = w;
    (dense->dtype == BXN_F32   ? k->mm_f32
     : dense->dtype == BXN_F16 ? k->mm_f16
                               : k->mm_bf16)(dense, begin, end, args);
}

static void dense_case(run *r, bxn_dtype dtype, uint32_t rows, uint32_t cols, uint32_t count,
                       bool odd, bool indirect, int special)
{
    size_t size = dtype == BXN_F32 ? 4 : 2, bytes = rows * (size_t)cols * size;
    uint8_t *data = guarded(bytes + odd);
    float *value = calloc((size_t)rows * cols, sizeof *value);
    for (size_t i = 0; i < (size_t)rows * cols; i++) {
        float v = normal(r);
        uint16_t bits = dtype == BXN_F16 ? bxn_f32_f16(v) : bxn_f32_bf16(v);
        if (dtype == BXN_F32)
            memcpy(data + i * size, &v, size);
        else
            memcpy(data + i * size, &bits, size);
        value[i] = dtype == BXN_F32 ? v : dtype == BXN_F16 ? f16_value(bits) : bxn_bf16_f32(bits);
    }
    bxn_dense w = {data, dtype, rows, cols};
    problem p = {.matrix = &w,
                 .multiply = multiply_dense,
                 .rows = rows,
                 .cols = cols,
                 .cut_unit = 1,
                 .count = count,
                 .sources = indirect ? count + 2 : count};
    make_activations(r, &p, special, false);
    p.want = calloc((size_t)count * rows, sizeof(double));
    p.bound = calloc((size_t)count * rows, sizeof(double));
    for (uint32_t m = 0; m < count; m++) {
        const float *x = p.x + (p.index != NULL ? (size_t)p.index[m] : m) * p.ldx;
        for (uint32_t n = 0; n < rows; n++) {
            double sum = 0, terms = 0, weight = 0;
            for (uint32_t k = 0; k < cols; k++) {
                double v = (double)value[(size_t)n * cols + k], term = v * (double)x[k];
                sum += term;
                terms += fabs(term);
                weight += fabs(v);
            }
            p.want[(size_t)m * rows + n] = sum;
            p.bound[(size_t)m * rows + n] =
                ((cols < 128 ? cols : 128) + cols / 128 + 4.0) * UNIT_ROUNDOFF * terms + TINY * (1 + weight);
        }
    }
    check_problem(r, &p, true);
    free(value);
    free(p.want);
    free(p.bound);
    release_guarded(r, "mm_dense");
}

static void check_dense(run *r, bxn_dtype dtype)
{
    for (uint32_t cols = 1; cols <= 34; cols++)
        dense_case(r, dtype, 1 + below(r, 20), cols, 1 + below(r, 4), cols & 1, false, 0);
    for (uint32_t count = 1; count <= 33; count++)
        dense_case(r, dtype, 1 + below(r, 40), 1 + below(r, 400), count, count & 1, count & 2, 0);
    for (uint32_t rows = 1; rows <= 18; rows++)
        dense_case(r, dtype, rows, 1 + below(r, 150), 1, rows & 1, rows & 2, 0);
    for (int special = 1; special <= 3; special++)
        for (uint32_t count = 1; count <= 7; count += 3)
            dense_case(r, dtype, 11, 75, count, false, false, special);
}

void check_mm_f32(run *r)
{
    check_dense(r, BXN_F32);
}

void check_mm_f16(run *r)
{
    check_dense(r, BXN_F16);
}

void check_mm_bf16(run *r)
{
    check_dense(r, BXN_BF16);
}
