/* SPDX-License-Identifier: Apache-2.0 */
/* kv_page.c - how keys and values lie in pages: layout, storing a row in any type, clearing
 * slots, and the rotation of 4-bit rows. Called by the attention op and by caches. What is
 * stored of a token depends on its row alone. */
#include "ops/ops.h"

#include <math.h>
#include <string.h>

static bool has_scales(bxn_kv_type type)
{
    return type == BXN_KV_I8 || type == BXN_KV_Q4;
}

static size_t scale_bytes(bxn_kv_type type)
{
    return has_scales(type) ? BXN_PAGE * sizeof(float) : 0;
}

/* K is [4][rows][16] elements: features, or words of 8 features. */
static uint32_t key_rows(const bxn_kv_layout *layout)
{
    return layout->type == BXN_KV_Q4 ? (layout->head_dim + 7) / 8 : layout->head_dim;
}

static size_t element_bytes(bxn_kv_type type)
{
    return type == BXN_KV_I8 ? 1 : type == BXN_KV_F16 ? 2 : 4;
}

void bxn_kv_layout_init(bxn_kv_layout *layout, uint32_t layers, uint32_t heads, uint32_t head_dim,
                        bxn_kv_type type)
{
    layout->layers = layers;
    layout->heads = heads;
    layout->head_dim = head_dim;
    layout->v_stride = (uint32_t)bxn_round_up(head_dim, 16);
    layout->type = type;
    layout->k_bytes = scale_bytes(type) + (size_t)BXN_PAGE * key_rows(layout) * element_bytes(type);
    layout->v_bytes =
        scale_bytes(type) + (type == BXN_KV_Q4 ? (size_t)BXN_PAGE / 2 * layout->v_stride
                                               : BXN_PAGE * layout->v_stride * element_bytes(type));
    layout->page_bytes = (layout->k_bytes + layout->v_bytes) * heads * layers;
}

static void clear_values(const bxn_kv_layout *layout, char *v, uint32_t used)
{
    size_t stride = layout->v_stride, row = stride * element_bytes(layout->type);
    if (layout->type != BXN_KV_Q4) {
        memset(v + used * row, 0, (BXN_PAGE - used) * row);
        return;
    }
    uint32_t *words = (uint32_t *)(void *)v + used / 8 * stride;
    size_t rest = (BXN_PAGE / 8 - used / 8) * stride;
    if (used % 8 != 0) {
        for (size_t f = 0; f < stride; f++)
            words[f] &= ((uint32_t)1 << used % 8 * 4) - 1;
        words += stride;
        rest -= stride;
    }
    if (rest != 0)
        memset(words, 0, rest * sizeof *words);
}

void bxn_kv_clear(const bxn_kv_layout *layout, void *page, uint32_t used)
{
    size_t e = element_bytes(layout->type), rows = key_rows(layout),
           scales = scale_bytes(layout->type);
    if (used >= BXN_PAGE)
        return;
    for (size_t head = 0; head < (size_t)layout->layers * layout->heads; head++) {
        char *k = (char *)page + head * (layout->k_bytes + layout->v_bytes),
             *v = k + layout->k_bytes;
        if (scales != 0) {
            memset(k + used * sizeof(float), 0, scales - used * sizeof(float));
            memset(v + used * sizeof(float), 0, scales - used * sizeof(float));
        }
        for (uint32_t block = 0; block < BXN_PAGE / 16; block++) {
            uint32_t live = used <= block * 16 ? 0 : used - block * 16;
            for (size_t i = 0; live < 16 && i < rows; i++)
                memset(k + scales + ((block * rows + i) * 16 + live) * e, 0, (16 - live) * e);
        }
        clear_values(layout, v + scales, used);
    }
}

/* ---- storing ------------------------------------------------------------------------------ */

static void store_f32(const bxn_kv_layout *layout, const float *key, const float *value, char *k,
                      char *v, uint32_t slot)
{
    size_t d = layout->head_dim, stride = layout->v_stride;
    float *keys = (float *)(void *)k + slot / 16 * d * 16 + slot % 16,
          *values = (float *)(void *)v + slot * stride;
    for (size_t i = 0; i < d; i++)
        keys[i * 16] = key[i];
    memcpy(values, value, d * sizeof *values);
    memset(values + d, 0, (stride - d) * sizeof *values);
}

static void store_f16(const bxn_kernels *kernels, const bxn_kv_layout *layout, const float *key,
                      const float *value, char *k, char *v, uint32_t slot, void *scratch)
{
    size_t d = layout->head_dim, stride = layout->v_stride;
    uint16_t *keys = (uint16_t *)(void *)k + slot / 16 * d * 16 + slot % 16, *half = scratch;
    uint16_t *values = (uint16_t *)(void *)v + slot * stride;
    kernels->to_f16(key, d, half);
    for (size_t i = 0; i < d; i++)
        keys[i * 16] = half[i];
    kernels->to_f16(value, d, values);
    memset(values + d, 0, (stride - d) * sizeof *values);
}

static void store_i8(const bxn_kernels *kernels, const bxn_kv_layout *layout, const float *key,
                     const float *value, char *k, char *v, uint32_t slot, void *scratch)
{
    uint32_t d = layout->head_dim, stride = layout->v_stride;
    int8_t *keys = (int8_t *)k + scale_bytes(BXN_KV_I8) + slot / 16 * (size_t)d * 16 + slot % 16,
           *codes = scratch;
    int8_t *values = (int8_t *)v + scale_bytes(BXN_KV_I8) + slot * (size_t)stride;
    kernels->quant_i8(key, d, codes, (float *)(void *)k + slot);
    for (size_t i = 0; i < d; i++)
        keys[i * 16] = codes[i];
    kernels->quant_i8(value, d, values, (float *)(void *)v + slot);
    memset(values + d, 0, stride - d);
}

static void store_q4(const bxn_kernels *kernels, const bxn_kv_layout *layout, const float *key,
                     const float *value, char *k, char *v, uint32_t slot, void *scratch)
{
    uint32_t d = layout->head_dim, stride = layout->v_stride, rows = key_rows(layout),
             shift = slot % 8 * 4;
    uint32_t *keys = (uint32_t *)(void *)(k + scale_bytes(BXN_KV_Q4)) +
                     slot / 16 * (size_t)rows * 16 + slot % 16;
    uint32_t *values = (uint32_t *)(void *)(v + scale_bytes(BXN_KV_Q4)) + slot / 8 * (size_t)stride;
    uint8_t *codes = scratch;
    memset(codes, 0, stride);
    kernels->quant_q4(key, d, codes, (float *)(void *)k + slot);
    for (uint32_t i = 0; i < rows; i++) {
        uint32_t word = 0;
        for (uint32_t j = 0; j < 8; j++)
            word |= (uint32_t)codes[i * 8 + j] << j * 4;
        keys[(size_t)i * 16] = word;
    }
    kernels->quant_q4(value, d, codes, (float *)(void *)v + slot);
    for (uint32_t f = 0; f < stride; f++)
        values[f] = (values[f] & ~((uint32_t)15 << shift)) | (uint32_t)codes[f] << shift;
}

void bxn_kv_store(const bxn_kernels *kernels, const bxn_kv_layout *layout, const float *key,
                  const float *value, void *k, void *v, uint32_t slot, void *scratch)
{
    switch (layout->type) {
    case BXN_KV_F32:
        store_f32(layout, key, value, k, v, slot);
        break;
    case BXN_KV_F16:
        store_f16(kernels, layout, key, value, k, v, slot, scratch);
        break;
    case BXN_KV_I8:
        store_i8(kernels, layout, key, value, k, v, slot, scratch);
        break;
    case BXN_KV_Q4:
        store_q4(kernels, layout, key, value, k, v, slot, scratch);
        break;
    }
}

/* ---- rotation -------------------------------------------------------------------------------- */

/* cos + sin of 2 pi k / n. By quarter turns, then the Taylor series for at most an eighth of a
 * turn: additions and products in double alone, so that every machine gets the same. */
static double cas(uint64_t k, uint64_t n)
{
    const double pi = 3.14159265358979323846;
    uint64_t quarter = (8 * k + n) / (2 * n); /* nearest quarter turn */
    double x = 2.0 * pi * ((double)(4 * k) - (double)(quarter * n)) / (4.0 * (double)n);
    double c = 1.0, s = x, term_c = 1.0, term_s = x, square = x * x;
    for (int i = 1; i <= 9; i++) {
        term_c *= -square / (double)((2 * i - 1) * (2 * i));
        term_s *= -square / (double)((2 * i) * (2 * i + 1));
        c += term_c;
        s += term_s;
    }
    switch (quarter % 4) {
    case 0:
        return c + s;
    case 1:
        return c - s;
    case 2:
        return -c - s;
    default:
        return s - c;
    }
}

/* SplitMix64 (Steele, Lea and Flood 2014). */
static double sign_of(uint64_t i)
{
    uint64_t z = (i + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (z ^ z >> 31) & 1 ? -1.0 : 1.0;
}

void bxn_kv_rotation(float *matrix, uint32_t head_dim)
{
    size_t stride = bxn_round_up(head_dim, 16);
    double root = sqrt((double)head_dim);
    memset(matrix, 0, head_dim * stride * sizeof *matrix);
    for (uint64_t i = 0; i < head_dim; i++)
        for (uint64_t j = i; j < head_dim; j++) {
            double value = sign_of(i) * sign_of(j) * cas(i * j % head_dim, head_dim) / root;
            matrix[i * stride + j] = matrix[j * stride + i] = (float)value;
        }
}
