/* SPDX-License-Identifier: Apache-2.0 */
/* ref_transposed.c - products with the transpose of a matrix in plain C: gradients with
 * respect to the inputs of a linear layer, from the same weights in the same layout. Called
 * through the kernel table. The order is the one kernels.h states, with separate
 * multiplications and additions. */
#include <string.h>

#include "kernels/kernels_isa.h"
#include "kernels/ref/ref_weight.h"
#include "runtime/runtime.h"

static float packed_at(const bxn_packed *w, uint32_t row, uint32_t column)
{
    size_t unit = (size_t)(row / BXN_UNIT_ROWS) * w->k_units + column / BXN_UNIT_COLS;
    return bxn_ref_packed(w, w->data + unit * w->unit_bytes, row % BXN_UNIT_ROWS,
                          column % BXN_UNIT_COLS);
}

static float dense_at(const bxn_dense *w, bxn_dtype dtype, uint32_t row, uint32_t column)
{
    const uint8_t *data = w->data;
    size_t index = (size_t)row * w->cols + column;
    if (dtype == BXN_F32) {
        float value;
        memcpy(&value, data + 4 * index, sizeof value);
        return value;
    }
    uint16_t bits;
    memcpy(&bits, data + 2 * index, sizeof bits);
    return dtype == BXN_F16 ? bxn_f16_f32(bits) : bxn_bf16_f32(bits);
}

/* packed or dense: the other is NULL. */
static void mm_transposed(const bxn_packed *packed, const bxn_dense *dense, bxn_dtype dtype,
                          uint32_t unit_begin, uint32_t unit_end, const bxn_mm_args *args, bool add)
{
    const uint32_t rows = packed != NULL ? packed->rows : dense->rows;
    const uint32_t cols = packed != NULL ? packed->cols : dense->cols;
    for (uint32_t k = unit_begin * BXN_UNIT_COLS; k < unit_end * BXN_UNIT_COLS && k < cols; k++) {
        for (uint32_t m = 0; m < args->count; m++) {
            size_t source = args->rows != NULL ? (size_t)args->rows[m] : m;
            const float *x = args->x + source * args->ldx;
            float y = add ? args->y[m * args->ldy + k] : 0.0f;
            for (uint32_t begin = 0; begin < rows; begin += BXN_UNIT_COLS) {
                uint32_t left = rows - begin;
                uint32_t end = begin + (left < BXN_UNIT_COLS ? left : BXN_UNIT_COLS);
                float p = 0.0f;
                for (uint32_t n = begin; n < end; n++)
                    p += (packed != NULL ? packed_at(packed, n, k) : dense_at(dense, dtype, n, k)) *
                         x[n];
                y += p;
            }
            args->y[m * args->ldy + k] = y;
        }
    }
}

void bxn_mm_t_packed4_ref(const bxn_packed *w, uint32_t unit_begin, uint32_t unit_end,
                          const bxn_mm_args *args, bool add)
{
    mm_transposed(w, NULL, BXN_F32, unit_begin, unit_end, args, add);
}

void bxn_mm_t_packed8_ref(const bxn_packed *w, uint32_t unit_begin, uint32_t unit_end,
                          const bxn_mm_args *args, bool add)
{
    mm_transposed(w, NULL, BXN_F32, unit_begin, unit_end, args, add);
}

void bxn_mm_t_f32_ref(const bxn_dense *w, uint32_t unit_begin, uint32_t unit_end,
                      const bxn_mm_args *args, bool add)
{
    mm_transposed(NULL, w, BXN_F32, unit_begin, unit_end, args, add);
}

void bxn_mm_t_f16_ref(const bxn_dense *w, uint32_t unit_begin, uint32_t unit_end,
                      const bxn_mm_args *args, bool add)
{
    mm_transposed(NULL, w, BXN_F16, unit_begin, unit_end, args, add);
}

void bxn_mm_t_bf16_ref(const bxn_dense *w, uint32_t unit_begin, uint32_t unit_end,
                       const bxn_mm_args *args, bool add)
{
    mm_transposed(NULL, w, BXN_BF16, unit_begin, unit_end, args, add);
}

void bxn_outer_add_ref(const bxn_outer_args *args, uint32_t i_begin, uint32_t i_end, uint32_t j_begin,
                       uint32_t j_end)
{
    for (uint32_t first = 0, depth; first < args->rows; first += depth) {
        depth = args->rows - first < BXN_UNIT_COLS ? args->rows - first : BXN_UNIT_COLS;
        for (uint32_t i = i_begin; i < i_end; i++) {
            const float *p = args->p + first * args->ldp + i;
            float *c = args->c + i * args->ldc;
            for (uint32_t j = j_begin, width; j < j_end; j += width) {
                float sums[64] = {0};
                width = j_end - j < 64 ? j_end - j : 64;
                for (uint32_t t = 0; t < depth; t++) {
                    const float *q = args->q + (first + t) * args->ldq + j;
                    for (uint32_t n = 0; n < width; n++)
                        sums[n] += p[t * args->ldp] * q[n];
                }
                for (uint32_t n = 0; n < width; n++)
                    c[j + n] += sums[n];
            }
        }
    }
}
