/* SPDX-License-Identifier: Apache-2.0 */
/* packed.c - the kernels' layout of a quantised matrix (see bxn_packed in kernels.h):
 * describing it, writing it a row group at a time, reading rows back. Called by import
 * and convert. Bytes beyond the matrix are zero; the layout is little-endian. */
#include "quant/quant.h"

#include <stdio.h>
#include <string.h>

enum { ROWS = BXN_UNIT_ROWS, COLS = BXN_UNIT_COLS };

bitaxon_status bxn_packed_describe(uint32_t rows, uint32_t cols, char kind, uint32_t bits,
                                   uint32_t group, bool scale_f32, bxn_packed *out,
                                   bitaxon_error *error)
{
    bool affine = kind == 'a';
    if ((!affine && kind != 'n') || !bxn_affine_supported(bits, group) || (!affine && bits != 4))
        return bxn_fail(error, BITAXON_UNSUPPORTED,
                        "no packed layout for %s codes of %u bits in groups of %u",
                        affine ? "affine" : "nf4", (unsigned)bits, (unsigned)group);
    if (rows == 0 || cols == 0 || cols % group != 0)
        return bxn_fail(error, BITAXON_UNSUPPORTED,
                        "no packed layout for a matrix of %u x %u in groups of %u", (unsigned)rows,
                        (unsigned)cols, (unsigned)group);
    bxn_packed w = {0};
    w.rows = rows;
    w.cols = cols;
    w.row_groups = (rows - 1) / ROWS + 1;
    w.k_units = (cols - 1) / COLS + 1;
    w.code_bits = bits <= 4 ? 4 : 8;
    w.source_bits = (uint8_t)bits;
    w.blocks = (uint8_t)(COLS / group);
    w.has_bias = affine;
    w.scale_f32 = scale_f32;
    w.center = affine ? (float)(1u << (bits - 1)) : 0;
    for (int c = 0; c < 16; c++)
        w.table[c] = affine ? (float)c - w.center : bxn_nf4_table[c];
    w.unit_bytes = bxn_unit_scale_bytes(&w) + ROWS * COLS * w.code_bits / 8u;
    *out = w;
    return BITAXON_OK;
}

uint64_t bxn_packed_bytes(const bxn_packed *w)
{
    /* at most 2^28 * 2^25 * 2^12: describe bounds each factor */
    return (uint64_t)w->row_groups * w->k_units * w->unit_bytes;
}

void bxn_packed_suffix(const bxn_packed *w, char suffix[16])
{
    snprintf(suffix, 16, "%c%ug%uf%s", w->has_bias ? 'a' : 'n', (unsigned)w->source_bits,
             (unsigned)(COLS / w->blocks), w->scale_f32 ? "32" : "16");
}

bool bxn_packed_parse(const char *suffix, char *kind, uint32_t *bits, uint32_t *group,
                      bool *scale_f32)
{
    /* the set is small and the spelling unique: compare with every name there is */
    static const uint8_t widths[] = {2, 3, 4, 5, 6, 8}, groups[] = {32, 64, 128};
    for (size_t i = 0; i < sizeof widths; i++)
        for (size_t j = 0; j < sizeof groups; j++)
            for (int k = 0; k < 4; k++) {
                char name[16];
                char letter = (k & 1) != 0 ? 'n' : 'a';
                if (letter == 'n' && widths[i] != 4)
                    continue;
                snprintf(name, sizeof name, "%c%ug%uf%s", letter, (unsigned)widths[i],
                         (unsigned)groups[j], (k & 2) != 0 ? "32" : "16");
                if (strcmp(suffix, name) != 0)
                    continue;
                *kind = letter;
                *bits = widths[i];
                *group = groups[j];
                *scale_f32 = (k & 2) != 0;
                return true;
            }
    return false;
}

static void put_scale(const bxn_packed *w, uint8_t *at, uint32_t index, float value)
{
    if (w->scale_f32) {
        memcpy(at + 4 * (size_t)index, &value, 4);
    } else {
        uint16_t half = bxn_f32_f16(value);
        memcpy(at + 2 * (size_t)index, &half, 2);
    }
}

static float get_scale(const bxn_packed *w, const uint8_t *at, uint32_t index)
{
    if (w->scale_f32) {
        float value;
        memcpy(&value, at + 4 * (size_t)index, 4);
        return value;
    }
    uint16_t half;
    memcpy(&half, at + 2 * (size_t)index, 2);
    return bxn_f16_f32(half);
}

/* Eight codes below 16, one a byte, to eight nibbles, first lowest. */
static uint32_t pack_nibbles(const uint8_t *codes)
{
    uint64_t x;
    memcpy(&x, codes, 8);
    x = (x | x >> 4) & 0x00FF00FF00FF00FFu;
    x = (x | x >> 8) & 0x0000FFFF0000FFFFu;
    return (uint32_t)(x | x >> 16);
}

void bxn_packed_write_group(const bxn_packed *w, uint32_t rows, const uint8_t *codes,
                            const float *scales, const float *biases, uint8_t *dst)
{
    uint32_t group = COLS / w->blocks, groups = w->cols / group;
    uint8_t center = (uint8_t)w->center;
    size_t plane = (size_t)ROWS * (w->scale_f32 ? 4 : 2) * w->blocks;
    memset(dst, 0, (size_t)w->k_units * w->unit_bytes);
    for (uint32_t unit = 0; unit < w->k_units; unit++, dst += w->unit_bytes) {
        for (uint32_t block = 0; block < w->blocks; block++) {
            uint32_t g = unit * w->blocks + block;
            for (uint32_t r = 0; g < groups && r < rows; r++) {
                float scale = scales[(size_t)r * groups + g];
                put_scale(w, dst, block * ROWS + r, scale);
                if (w->has_bias) /* as it is: adding center * scale is left to f32 at run time */
                    put_scale(w, dst + plane, block * ROWS + r, biases[(size_t)r * groups + g]);
            }
        }
        uint8_t *lane = dst + bxn_unit_scale_bytes(w);
        uint32_t step = 32u / w->code_bits, first = unit * COLS;
        for (uint32_t k = first; k < first + COLS && k < w->cols; k += step, lane += 4 * ROWS)
            for (uint32_t r = 0; r < rows; r++) {
                const uint8_t *c = codes + (size_t)r * w->cols + k;
                uint32_t word = 0;
                if (w->code_bits == 4)
                    word = pack_nibbles(c);
                else
                    for (uint32_t i = 0; i < 4; i++)
                        word |= (uint32_t)(uint8_t)(c[i] - center) << (8 * i);
                memcpy(lane + 4 * (size_t)r, &word, 4);
            }
    }
}

void bxn_packed_row_parts(const bxn_packed *w, uint32_t row, uint8_t *codes, float *scales,
                          float *biases)
{
    uint32_t group = COLS / w->blocks, r = row % ROWS, center = (uint32_t)w->center;
    size_t plane = (size_t)ROWS * (w->scale_f32 ? 4 : 2) * w->blocks;
    const uint8_t *unit = w->data + (size_t)(row / ROWS) * w->k_units * w->unit_bytes;
    for (uint32_t first = 0; first < w->cols; first += COLS, unit += w->unit_bytes) {
        uint32_t last = w->cols - first < COLS ? w->cols : first + COLS;
        for (uint32_t k = first; k < last; k += group) {
            uint32_t index = (k - first) / group * ROWS + r;
            scales[k / group] = get_scale(w, unit, index);
            if (w->has_bias && biases != NULL)
                biases[k / group] = get_scale(w, unit + plane, index);
        }
        const uint8_t *lane = unit + bxn_unit_scale_bytes(w) + 4 * (size_t)r;
        for (uint32_t k = first; k < last; k++) {
            uint32_t at = k - first;
            if (w->code_bits == 4)
                codes[k] = lane[at / 8 * (4 * ROWS) + at % 8 / 2] >> (at % 2 * 4) & 15;
            else
                codes[k] = (uint8_t)(lane[at / 4 * (4 * ROWS) + at % 4] + center);
        }
    }
}

void bxn_packed_row(const bxn_packed *w, uint32_t row, float *out)
{
    uint32_t group = COLS / w->blocks, r = row % ROWS;
    size_t plane = (size_t)ROWS * (w->scale_f32 ? 4 : 2) * w->blocks;
    const uint8_t *unit = w->data + (size_t)(row / ROWS) * w->k_units * w->unit_bytes;
    for (uint32_t first = 0; first < w->cols; first += COLS, unit += w->unit_bytes) {
        const uint8_t *lane = unit + bxn_unit_scale_bytes(w) + 4 * (size_t)r;
        for (uint32_t block = 0; block < w->blocks && first + block * group < w->cols; block++) {
            float scale = get_scale(w, unit, block * ROWS + r);
            float bias = w->has_bias ? get_scale(w, unit + plane, block * ROWS + r) : 0;
            bias += w->center * scale;
            for (uint32_t at = block * group; at < (block + 1) * group; at++) {
                float value;
                if (w->code_bits == 4)
                    value = w->table[lane[at / 8 * (4 * ROWS) + at % 8 / 2] >> (at % 2 * 4) & 15];
                else
                    value = (float)(int8_t)lane[at / 4 * (4 * ROWS) + at % 4];
                value *= scale;
                out[first + at] = w->has_bias ? value + bias : value;
            }
        }
    }
}
