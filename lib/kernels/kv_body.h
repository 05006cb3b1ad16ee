/* SPDX-License-Identifier: Apache-2.0 */
/* kv_body.h - rows of keys and values as codes, and their rotation, over the vectors of
 * attention_body.h, which includes this. Scalars are those of kernels.h: the same scale and the
 * same codes in every tier, but for the order in which squares are added. */
#ifndef BXN_KV_BODY_H
#define BXN_KV_BODY_H

/* LANES values of a row from i on, zeros after its end. */
BXN_INLINE vec load_row(const float *x, uint32_t n, uint32_t i)
{
    if (n - i >= LANES)
        return v_load(x + i);
    float part[LANES] = {0};
    memcpy(part, x + i, (n - i) * sizeof *x);
    return v_load(part);
}

static void row_i8(const float *x, uint32_t n, int8_t *codes, float *scale)
{
    vec top = v_zero(), bad = v_zero();
    const vec zero = v_zero();
    for (uint32_t i = 0; i < n; i += LANES) {
        const vec v = load_row(x, n, i);
        top = v_max(v_abs(v), top);
        bad = v_fma(v, zero, bad); /* NaN once a value is not finite */
    }
    float lanes[LANES], bads[LANES];
    v_store(lanes, top);
    v_store(bads, bad);
    float max = 0.0f, sum = 0.0f;
    for (unsigned l = 0; l < LANES; l++) {
        max = lanes[l] > max ? lanes[l] : max;
        sum += bads[l];
    }
    if (sum != 0.0f || !(max >= 1e-30f)) {
        memset(codes, 0, n);
        *scale = sum != sum ? NAN : 0.0f;
        return;
    }
    const vec inverse = v_set1(127.0f / max);
    *scale = max / 127.0f;
    for (uint32_t i = 0; i < n; i += LANES) {
        v_store(lanes, v_round(v_mul(load_row(x, n, i), inverse)));
        for (uint32_t l = 0; l < LANES && i + l < n; l++)
            codes[i + l] = (int8_t)lanes[l];
    }
}

static void row_q4(const float *x, uint32_t n, uint8_t *codes, float *scale)
{
    static const float borders[7] = BXN_KV_BORDERS;
    vec squares[PIECES];
    for (unsigned h = 0; h < PIECES; h++)
        squares[h] = v_zero();
    for (uint32_t i = 0; i < n; i += 16) {
        for (unsigned h = 0; h < PIECES && i + h * LANES < n; h++) {
            const vec v = load_row(x, n, i + h * LANES);
            squares[h] = v_fma(v, v, squares[h]);
        }
    }
    const float sum = v_tree(squares);
    if (!(sum >= 1e-30f) || !(sum < INFINITY)) {
        memset(codes, 0, n);
        *scale = sum < 1e-30f ? 0.0f : NAN;
        return;
    }
    const float norm = sqrtf(sum), root = sqrtf((float)n);
    const vec inverse = v_set1(root / norm), eight = v_set1(8.0f);
    *scale = norm / root;
    for (uint32_t i = 0; i < n; i += LANES) {
        const vec u = v_mul(load_row(x, n, i), inverse), size = v_abs(u);
        vec code = v_mul(v_greater(v_zero(), u), eight);
        for (unsigned b = 0; b < 7; b++)
            code = v_add(code, v_greater(size, v_set1(borders[b])));
        float lanes[LANES];
        v_store(lanes, code);
        for (uint32_t l = 0; l < LANES && i + l < n; l++)
            codes[i + l] = (uint8_t)(int)lanes[l];
    }
}

/* n vectors from column c on, of `count` rows. */
BXN_INLINE void rotate(const float *r, size_t n, size_t stride, const float *x, size_t ldx,
                       float *y, size_t c, unsigned count, unsigned vectors)
{
    vec sum[MIX_QUERIES][5];
    BXN_UNROLL
    for (unsigned i = 0; i < count; i++) {
        BXN_UNROLL
        for (unsigned b = 0; b < vectors; b++)
            sum[i][b] = v_zero();
    }
    for (size_t k = 0; k < n; k++) {
        vec row[5];
        BXN_UNROLL
        for (unsigned b = 0; b < vectors; b++)
            row[b] = v_load(r + k * stride + c + b * LANES);
        BXN_UNROLL
        for (unsigned i = 0; i < count; i++) {
            const vec v = v_set1(x[i * ldx + k]);
            BXN_UNROLL
            for (unsigned b = 0; b < vectors; b++)
                sum[i][b] = v_fma(v, row[b], sum[i][b]);
        }
    }
    BXN_UNROLL
    for (unsigned i = 0; i < count; i++) {
        BXN_UNROLL
        for (unsigned b = 0; b < vectors; b++)
            v_store(y + i * stride + c + b * LANES, sum[i][b]);
    }
}

static void rotate_rows(const float *r, uint32_t n, const float *x, size_t ldx, uint32_t count,
                        float *y)
{
    const size_t stride = ((size_t)n + 15) & ~(size_t)15;
    while (count > 0) {
        const unsigned rows = count >= MIX_QUERIES ? MIX_QUERIES : 1;
        for (size_t c = 0; c < stride;) {
            const size_t left = (stride - c) / LANES;
            const bool five = left % 5 == 0;
            if (rows == 1 && five)
                rotate(r, n, stride, x, ldx, y, c, 1, 5);
            else if (rows == 1)
                rotate(r, n, stride, x, ldx, y, c, 1, 1);
            else if (five)
                rotate(r, n, stride, x, ldx, y, c, MIX_QUERIES, 5);
            else
                rotate(r, n, stride, x, ldx, y, c, MIX_QUERIES, 1);
            c += five ? 5 * LANES : LANES;
        }
        x += rows * ldx;
        y += rows * stride;
        count -= rows;
    }
}

#endif
