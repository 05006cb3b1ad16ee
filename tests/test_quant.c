/* SPDX-License-Identifier: Apache-2.0 */
/* test_quant.c - quantised formats against the values of other implementations
 * (tests/golden: MLX through the reference, MLX, bitsandbytes), against plain bit-level
 * writers made here, and the packed layout against the rule in kernels.h. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fixture_tensors.h"
#include "quant/quant.h"

static const uint32_t all_bits[] = {2, 3, 4, 5, 6, 8};
static const uint32_t all_groups[] = {32, 64, 128};

static uint32_t seed_state;

static float noise(void)
{
    double sum = 0;
    for (int i = 0; i < 4; i++)
        sum += bxn_uniform(99, 0, seed_state++) - 0.5;
    return (float)sum;
}

/* ---- float rows ------------------------------------------------------------------- */

static void test_float_rows(void **state)
{
    (void)state;
    /* every finite half and every bfloat16 goes to f32 and back unchanged, unaligned too */
    static uint8_t source[2 * 65536 + 1], back[2 * 65536 + 1];
    static float values[65536];
    for (uint32_t i = 0; i < 65536; i++) {
        uint16_t half = (uint16_t)i;
        memcpy(source + 1 + 2 * i, &half, 2);
    }
    for (int pass = 0; pass < 2; pass++) {
        bxn_dtype dtype = pass == 0 ? BXN_F16 : BXN_BF16;
        bxn_to_f32(source + 1, dtype, 65536, values);
        bxn_from_f32(values, dtype, 65536, back + 1);
        for (uint32_t i = 0; i < 65536; i++) {
            if (isnan(values[i])) {
                uint16_t half;
                memcpy(&half, back + 1 + 2 * i, 2);
                assert_true(isnan(dtype == BXN_F16 ? bxn_f16_f32(half) : bxn_bf16_f32(half)));
            } else {
                assert_memory_equal(source + 1 + 2 * i, back + 1 + 2 * i, 2);
            }
        }
    }
    bxn_to_f32(source + 1, BXN_F16, 65536, values);
    assert_true(values[0x3C00] == 1.0f && values[0xC000] == -2.0f && values[1] == 0x1p-24f);
    bxn_to_f32(source + 1, BXN_BF16, 65536, values);
    assert_true(values[0x3F80] == 1.0f && values[0xC049] == -3.140625f);
    float odd[3] = {0.1f, -7, 1e30f};
    memcpy(source + 1, odd, sizeof odd);
    bxn_to_f32(source + 1, BXN_F32, 3, values);
    assert_memory_equal(values, odd, sizeof odd);
    bxn_from_f32(values, BXN_F32, 3, back + 3);
    assert_memory_equal(back + 3, odd, sizeof odd);
}

/* ---- affine -------------------------------------------------------------------------- */

/* Encode rows, compare words, scales and offsets (after rounding to `dtype`) and values. */
static void check_affine(const float *w, uint32_t rows, uint32_t cols, uint32_t bits,
                         uint32_t group, bxn_dtype dtype, const void *words, const void *scales,
                         const void *biases, const void *values)
{
    uint32_t row_words = (uint32_t)bxn_affine_words(cols, bits), groups = cols / group;
    size_t size = dtype == BXN_F32 ? 4 : 2;
    uint32_t *codes32 = malloc(row_words * 4);
    uint8_t *codes = malloc(cols);
    float s[64], b[64];
    for (uint32_t r = 0; r < rows; r++) {
        uint8_t stored[2][64 * 4];
        bxn_affine_encode_row(w + (size_t)r * cols, cols, bits, group, codes32, s, b);
        assert_memory_equal(codes32, (const uint8_t *)words + (size_t)r * row_words * 4,
                            row_words * 4);
        bxn_from_f32(s, dtype, groups, stored[0]);
        bxn_from_f32(b, dtype, groups, stored[1]);
        assert_memory_equal(stored[0], (const uint8_t *)scales + r * groups * size, groups * size);
        assert_memory_equal(stored[1], (const uint8_t *)biases + r * groups * size, groups * size);
        bxn_to_f32(stored[0], dtype, groups, s);
        bxn_to_f32(stored[1], dtype, groups, b);
        bxn_affine_unpack_row(codes32, cols, bits, codes);
        for (uint32_t k = 0; k < cols; k++) {
            float product = s[k / group] * (float)codes[k], value, expected;
            uint8_t rounded[4];
            bxn_from_f32(&product, dtype, 1, rounded); /* the reference computes in its type */
            bxn_to_f32(rounded, dtype, 1, &product);
            value = product + b[k / group];
            bxn_from_f32(&value, dtype, 1, rounded);
            bxn_to_f32(rounded, dtype, 1, &value);
            bxn_to_f32((const uint8_t *)values + ((size_t)r * cols + k) * size, dtype, 1,
                       &expected);
            if (value != expected)
                fail_msg("bits %u group %u row %u column %u: %.9g, not %.9g", bits, group, r, k,
                         (double)value, (double)expected);
        }
    }
    free(codes);
    free(codes32);
}

static void test_affine_reference(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "tests/golden/expected.safetensors");
    static const struct {
        const char *prefix, *name;
        bxn_dtype dtype;
    } cases[] = {
        {"q_f32", "F32", BXN_F32}, {"q_f16", "F16", BXN_F16}, {"q_bf16", "BF16", BXN_BF16}};
    for (int i = 0; i < 3; i++) {
        char name[5][32];
        static const char *const part[] = {"w", "packed", "scales", "biases", "deq"};
        for (int j = 0; j < 5; j++)
            snprintf(name[j], sizeof name[j], "%s_%s", cases[i].prefix, part[j]);
        size_t count;
        const void *source = fixture_get(&f, name[0], cases[i].name, &count);
        assert_int_equal(count, 8 * 128);
        float w[8 * 128];
        bxn_to_f32(source, cases[i].dtype, count, w);
        check_affine(w, 8, 128, 4, 64, cases[i].dtype, fixture_get(&f, name[1], "U32", NULL),
                     fixture_get(&f, name[2], cases[i].name, NULL),
                     fixture_get(&f, name[3], cases[i].name, NULL),
                     fixture_get(&f, name[4], cases[i].name, NULL));
    }
    fixture_close(&f);
}

static void test_affine_mlx(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "tests/golden/quant.safetensors");
    size_t count;
    float w[6 * 256];
    memcpy(w, fixture_get(&f, "w", "F32", &count), sizeof w);
    assert_int_equal(count, 6 * 256);
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 3; j++) {
            char name[4][32];
            static const char *const part[] = {"codes", "scales", "biases", "values"};
            for (int k = 0; k < 4; k++)
                snprintf(name[k], sizeof name[k], "a%ug%u.%s", all_bits[i], all_groups[j], part[k]);
            check_affine(
                w, 6, 256, all_bits[i], all_groups[j], BXN_F32,
                fixture_get(&f, name[0], "U32", NULL), fixture_get(&f, name[1], "F32", NULL),
                fixture_get(&f, name[2], "F32", NULL), fixture_get(&f, name[3], "F32", NULL));
        }
    fixture_close(&f);
}

/* One bit at a time: bit i of the stream is bit i % 8 of byte i / 8. */
static void test_affine_stream(void **state)
{
    (void)state;
    enum { COLS = 384 };
    for (int i = 0; i < 6; i++) {
        uint32_t bits = all_bits[i];
        uint8_t codes[COLS], stream[COLS + 1] = {0}, back[COLS];
        for (uint32_t k = 0; k < COLS; k++) {
            codes[k] = (uint8_t)((k * 2654435761u >> 13) & ((1u << bits) - 1));
            for (uint32_t b = 0; b < bits; b++)
                stream[1 + (k * bits + b) / 8] |=
                    (uint8_t)((codes[k] >> b & 1) << (k * bits + b) % 8);
        }
        memset(back, 0xEE, sizeof back);
        bxn_affine_unpack_row(stream + 1, COLS, bits, back); /* unaligned on purpose */
        assert_memory_equal(back, codes, COLS);
        assert_int_equal(bxn_affine_words(COLS, bits), COLS * bits / 32);
        for (int j = 0; j < 3; j++) {
            /* codes that encoding must give back: values that are the codes */
            float w[COLS], s[COLS / 32], b[COLS / 32];
            uint32_t group = all_groups[j], words[COLS / 4];
            for (uint32_t k = 0; k < COLS; k++)
                w[k] = (float)(k % group == 0 ? 0 : k % group == 1 ? (1 << bits) - 1 : codes[k]);
            memset(stream, 0, sizeof stream);
            bxn_affine_encode_row(w, COLS, bits, group, words, s, b);
            bxn_affine_unpack_row(words, COLS, bits, back);
            for (uint32_t k = 0; k < COLS; k++) {
                float value = s[k / group] * (float)back[k] + b[k / group];
                assert_true(fabsf(value - w[k]) <= 1e-5f * (float)(1 << bits));
                for (uint32_t at = 0; at < bits; at++) {
                    uint32_t bit = k * bits + at;
                    assert_int_equal(words[bit / 32] >> bit % 32 & 1, back[k] >> at & 1);
                }
            }
        }
    }
}

static void test_affine_error(void **state)
{
    (void)state;
    /* never further than half a step plus what moving the edge to a whole code costs */
    enum { COLS = 512 };
    float w[COLS], s[COLS / 32], b[COLS / 32];
    uint32_t words[COLS / 4];
    uint8_t codes[COLS];
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 3; j++)
            for (int trial = 0; trial < 8; trial++) {
                for (int k = 0; k < COLS; k++)
                    w[k] = noise() * (trial < 4 ? 1.0f : 1e-3f) + (trial % 4 == 3 ? 2.0f : 0.0f);
                bxn_affine_encode_row(w, COLS, all_bits[i], all_groups[j], words, s, b);
                bxn_affine_unpack_row(words, COLS, all_bits[i], codes);
                for (int k = 0; k < COLS; k++) {
                    uint32_t g = (uint32_t)k / all_groups[j];
                    float step = fabsf(s[g]), value = s[g] * (float)codes[k] + b[g];
                    if (fabsf(value - w[k]) > 1.01f * step)
                        fail_msg("bits %u: %g became %g, step %g", all_bits[i], (double)w[k],
                                 (double)value, (double)step);
                }
            }
}

static void test_affine_special(void **state)
{
    (void)state;
    float w[64], s, b;
    uint32_t words[16];
    memset(w, 0, sizeof w);
    memset(words, 0xFF, sizeof words);
    bxn_affine_encode_row(w, 64, 4, 64, words, &s, &b);
    assert_true(s == -1e-7f && b == 0);
    for (int i = 0; i < 8; i++)
        assert_int_equal(words[i], 0);
    for (int i = 0; i < 64; i++)
        w[i] = 0.3f;
    bxn_affine_encode_row(w, 64, 4, 64, words, &s, &b);
    assert_true(b == 0.3f);
    for (int i = 0; i < 8; i++)
        assert_int_equal(words[i], 0);
    /* values that are not finite must not run wild: codes stay codes */
    w[3] = NAN;
    w[4] = INFINITY;
    w[5] = -INFINITY;
    uint8_t codes[64];
    for (int i = 0; i < 6; i++) {
        bxn_affine_encode_row(w, 64, all_bits[i], 64, words, &s, &b);
        bxn_affine_unpack_row(words, 64, all_bits[i], codes);
        for (int k = 0; k < 64; k++)
            assert_true(codes[k] < 1u << all_bits[i]);
    }
    assert_true(bxn_affine_supported(4, 64) && !bxn_affine_supported(7, 64) &&
                !bxn_affine_supported(1, 64) && !bxn_affine_supported(4, 16) &&
                !bxn_affine_supported(4, 256) && !bxn_affine_supported(0, 0));
}

/* ---- NF4 ------------------------------------------------------------------------------ */

static void test_nf4_bitsandbytes(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "tests/golden/quant.safetensors");
    size_t count;
    const uint8_t *packed = fixture_get(&f, "nf4.codes", "U8", &count);
    assert_int_equal(count, 6 * 256 / 2);
    float w[6 * 256], absmax[24], table[16], values[6 * 256];
    memcpy(w, fixture_get(&f, "w", "F32", NULL), sizeof w);
    memcpy(absmax, fixture_get(&f, "nf4.absmax", "F32", NULL), sizeof absmax);
    memcpy(table, fixture_get(&f, "nf4.table", "F32", NULL), sizeof table);
    memcpy(values, fixture_get(&f, "nf4.values", "F32", NULL), sizeof values);
    assert_memory_equal(table, bxn_nf4_table, sizeof table);
    for (int block = 0; block < 24; block++) {
        uint8_t codes[64];
        float largest;
        bxn_nf4_encode_group(w + 64 * block, 64, codes, &largest);
        if (largest != 0)
            assert_true(largest == absmax[block]);
        for (int k = 0; k < 64; k++) {
            uint8_t byte = packed[(64 * block + k) / 2];
            assert_int_equal(codes[k], k % 2 == 0 ? byte >> 4 : byte & 15);
            assert_true(bxn_nf4_table[codes[k]] * largest == values[64 * block + k]);
        }
    }
    /* the second quantisation: our map and formula give bitsandbytes' magnitudes */
    float map[256], theirs[256], nested[2], offset, expected[512], plain[512], got[512];
    uint8_t codes[512];
    memcpy(theirs, fixture_get(&f, "nested.map", "F32", &count), sizeof theirs);
    assert_int_equal(count, 256);
    memcpy(nested, fixture_get(&f, "nested.absmax", "F32", &count), sizeof nested);
    assert_int_equal(count, 2);
    memcpy(&offset, fixture_get(&f, "nested.offset", "F32", NULL), 4);
    memcpy(codes, fixture_get(&f, "nested.codes", "U8", NULL), sizeof codes);
    memcpy(expected, fixture_get(&f, "nested.values", "F32", NULL), sizeof expected);
    memcpy(plain, fixture_get(&f, "nested.plain", "F32", NULL), sizeof plain);
    bxn_nf4_dynamic_map(map);
    for (int i = 0; i < 256; i++)
        assert_true(fabsf(map[i] - theirs[i]) <= 2e-7f * fabsf(theirs[i]));
    bxn_nf4_denest(codes, theirs, nested, 256, offset, 512, got);
    double worst = 0;
    for (int i = 0; i < 512; i++) {
        assert_true(fabsf(got[i] - expected[i]) <= 2e-7f * fabsf(expected[i]));
        worst = fmax(worst, fabs((double)got[i] - (double)plain[i]));
    }
    assert_true(worst < 0.02 && worst > 0);
    fixture_close(&f);
}

static void test_nf4_nearest(void **state)
{
    (void)state;
    /* the nearest entry, searched entry by entry; a tie goes to the lower */
    float w[64];
    uint8_t codes[64];
    float absmax;
    for (int trial = 0; trial < 200; trial++) {
        for (int i = 0; i < 64; i++)
            w[i] = noise();
        bxn_nf4_encode_group(w, 64, codes, &absmax);
        float largest = 0;
        for (int i = 0; i < 64; i++)
            largest = fmaxf(largest, fabsf(w[i]));
        assert_true(absmax == largest);
        for (int i = 0; i < 64; i++) {
            float x = w[i] / largest;
            int best = 0;
            for (int c = 1; c < 16; c++)
                if (fabs((double)x - (double)bxn_nf4_table[c]) <
                    fabs((double)x - (double)bxn_nf4_table[best]))
                    best = c;
            assert_int_equal(codes[i], best);
        }
    }
    w[0] = 1;
    w[1] = bxn_nf4_table[8] / 2; /* exactly between 0 and the next: lower */
    w[2] = nextafterf(w[1], 1);
    w[3] = bxn_nf4_table[6] / 2;
    bxn_nf4_encode_group(w, 4, codes, &absmax);
    assert_int_equal(codes[0], 15);
    assert_int_equal(codes[1], 7);
    assert_int_equal(codes[2], 8);
    assert_int_equal(codes[3], 6);
    memset(w, 0, sizeof w);
    bxn_nf4_encode_group(w, 64, codes, &absmax);
    assert_true(absmax == 0);
    for (int i = 0; i < 64; i++)
        assert_int_equal(codes[i], 7);
}

static void test_nf4_map(void **state)
{
    (void)state;
    float map[256];
    bxn_nf4_dynamic_map(map);
    for (int i = 1; i < 256; i++)
        assert_true(map[i] > map[i - 1]);
    assert_true(map[127] == 0 && map[255] == 1);
    for (int i = 0; i < 127; i++)
        assert_true(map[126 - i] == -map[128 + i]);   /* +1 alone has no mirror */
    assert_true(fabsf(map[128] - 0.55e-6f) < 1e-12f); /* one interval: its middle */
    assert_true(fabsf(map[254] - (1 - 0.9f / 128)) < 1e-6f);
}

/* ---- packed --------------------------------------------------------------------------- */

/* Where the layout of kernels.h says a code is. */
static int code_at(const bxn_packed *w, uint32_t row, uint32_t col)
{
    const uint8_t *unit = w->data + ((size_t)(row / 16) * w->k_units + col / 128) * w->unit_bytes;
    const uint8_t *lanes = unit + bxn_unit_scale_bytes(w);
    uint32_t lane, k = col % 128;
    if (w->code_bits == 4) {
        memcpy(&lane, lanes + (k / 8 * 16 + row % 16) * 4, 4);
        return (int)(lane >> k % 8 * 4 & 15);
    }
    memcpy(&lane, lanes + (k / 4 * 16 + row % 16) * 4, 4);
    return (int8_t)(lane >> k % 4 * 8 & 255);
}

static float scale_at(const bxn_packed *w, uint32_t row, uint32_t col, uint32_t plane)
{
    const uint8_t *unit = w->data + ((size_t)(row / 16) * w->k_units + col / 128) * w->unit_bytes;
    uint32_t block = col % 128 / (128u / w->blocks);
    size_t index = (size_t)plane * w->blocks * 16 + block * 16 + row % 16;
    if (w->scale_f32) {
        float value;
        memcpy(&value, unit + 4 * index, 4);
        return value;
    }
    uint16_t half;
    memcpy(&half, unit + 2 * index, 2);
    return bxn_f16_f32(half);
}

static void check_packed(char kind, uint32_t bits, uint32_t group, bool f32, uint32_t rows,
                         uint32_t cols)
{
    bxn_packed w;
    assert_int_equal(bxn_packed_describe(rows, cols, kind, bits, group, f32, &w, NULL), BITAXON_OK);
    assert_null(w.data);
    assert_int_equal(w.row_groups, (rows + 15) / 16);
    assert_int_equal(w.k_units, (cols + 127) / 128);
    assert_int_equal(w.code_bits, bits <= 4 ? 4 : 8);
    assert_int_equal(w.unit_bytes,
                     128 / group * 16 * (f32 ? 4 : 2) * (kind == 'a' ? 2 : 1) + 256 * w.code_bits);
    assert_int_equal(w.unit_bytes % 32, 0); /* NF4 in groups of 128 with f16: 1056 */
    size_t bytes = (size_t)bxn_packed_bytes(&w), group_bytes = (size_t)w.k_units * w.unit_bytes;
    assert_int_equal(bytes, w.row_groups * group_bytes);

    uint32_t groups = cols / group;
    uint8_t *codes = malloc((size_t)rows * cols), *data = malloc(bytes + 1),
            *row_codes = malloc(cols);
    float *scales = malloc((size_t)rows * groups * 4), *biases = malloc((size_t)rows * groups * 4);
    float *out = malloc(cols * 4), *part_s = malloc(groups * 4), *part_b = malloc(groups * 4);
    for (size_t i = 0; i < (size_t)rows * cols; i++)
        codes[i] = (uint8_t)((uint32_t)(bxn_uniform(5, 1, i) * 256) & ((1u << bits) - 1));
    for (size_t i = 0; i < (size_t)rows * groups; i++) {
        scales[i] = noise() * 0.01f;
        biases[i] = noise();
    }
    memset(data, 0xA5, bytes + 1);
    w.data = data;
    for (uint32_t g = 0; g < w.row_groups; g++) {
        uint32_t n = rows - g * 16 < 16 ? rows - g * 16 : 16;
        bxn_packed_write_group(
            &w, n, codes + (size_t)g * 16 * cols, scales + (size_t)g * 16 * groups,
            kind == 'a' ? biases + (size_t)g * 16 * groups : NULL, data + g * group_bytes);
    }
    assert_int_equal(data[bytes], 0xA5); /* nothing beyond the end */
    int center = kind == 'a' ? 1 << (bits - 1) : 0;
    for (uint32_t r = 0; r < w.row_groups * 16; r++) {
        if (r < rows) {
            bxn_packed_row(&w, r, out);
            bxn_packed_row_parts(&w, r, row_codes, part_s, part_b);
        }
        for (uint32_t k = 0; k < w.k_units * 128; k++) {
            int code = code_at(&w, r, k);
            float scale = scale_at(&w, r, k, 0), bias = kind == 'a' ? scale_at(&w, r, k, 1) : 0;
            if (r >= rows || k >= cols) {
                assert_true(code == 0 && bxn_f32_bits(scale) == 0 && bxn_f32_bits(bias) == 0);
                continue;
            }
            float s = scales[r * groups + k / group], b = biases[r * groups + k / group];
            if (!f32) {
                s = bxn_f16_f32(bxn_f32_f16(s));
                b = bxn_f16_f32(bxn_f32_f16(b));
            }
            float moved = b + (float)center * s;
            assert_true(scale == s);
            int raw = codes[(size_t)r * cols + k];
            assert_int_equal(w.code_bits == 4 ? code : code + center, raw);
            float base = kind == 'a' ? (float)(raw - center) : bxn_nf4_table[raw];
            float value = s * base;
            if (kind == 'a') {
                assert_true(bias == b);
                assert_true(part_b[k / group] == b);
                value += moved;
            }
            assert_true(out[k] == value);
            assert_int_equal(row_codes[k], raw);
            assert_true(part_s[k / group] == s);
        }
    }
    char suffix[16], parsed_kind;
    uint32_t parsed_bits, parsed_group;
    bool parsed_f32;
    bxn_packed_suffix(&w, suffix);
    assert_true(bxn_packed_parse(suffix, &parsed_kind, &parsed_bits, &parsed_group, &parsed_f32));
    assert_true(parsed_kind == kind && parsed_bits == bits && parsed_group == group &&
                parsed_f32 == f32);
    free(codes);
    free(data);
    free(row_codes);
    free(scales);
    free(biases);
    free(out);
    free(part_s);
    free(part_b);
}

static void test_packed(void **state)
{
    (void)state;
    static const uint32_t shapes[][2] = {{16, 128}, {1, 128}, {33, 384}, {7, 256}};
    for (int j = 0; j < 3; j++)
        for (int f32 = 0; f32 < 2; f32++) {
            for (int i = 0; i < 6; i++) {
                for (int k = 0; k < 4; k++)
                    check_packed('a', all_bits[i], all_groups[j], f32, shapes[k][0], shapes[k][1]);
                check_packed('a', all_bits[i], all_groups[j], f32, 17, 128 + all_groups[j]);
            }
            check_packed('n', 4, all_groups[j], f32, 33, 128);
            check_packed('n', 4, all_groups[j], f32, 5, 256 + all_groups[j]);
        }
}

static void test_packed_encoded(void **state)
{
    (void)state;
    /* weights -> codes -> packed -> row equals scale * code + bias of the codes */
    enum { COLS = 256 };
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 3; j++) {
            uint32_t bits = all_bits[i], group = all_groups[j], words[COLS / 4];
            float w[COLS], s[COLS / 32], b[COLS / 32], out[COLS];
            uint8_t codes[COLS];
            for (int k = 0; k < COLS; k++)
                w[k] = noise();
            bxn_affine_encode_row(w, COLS, bits, group, words, s, b);
            bxn_affine_unpack_row(words, COLS, bits, codes);
            bxn_packed p;
            assert_int_equal(bxn_packed_describe(1, COLS, 'a', bits, group, true, &p, NULL),
                             BITAXON_OK);
            uint8_t *data = malloc((size_t)bxn_packed_bytes(&p));
            bxn_packed_write_group(&p, 1, codes, s, b, data);
            p.data = data;
            bxn_packed_row(&p, 0, out);
            for (int k = 0; k < COLS; k++)
                assert_true(fabsf(out[k] - (s[(uint32_t)k / group] * (float)codes[k] +
                                            b[(uint32_t)k / group])) <=
                            1e-6f * fabsf(b[(uint32_t)k / group]) + 1e-7f);
            free(data);
        }
}

static void test_packed_refused(void **state)
{
    (void)state;
    static const struct {
        uint32_t rows, cols, bits, group;
        char kind;
    } bad[] = {
        {0, 128, 4, 64, 'a'},  {16, 0, 4, 64, 'a'},   {16, 96, 4, 64, 'a'},
        {16, 128, 7, 64, 'a'}, {16, 128, 1, 64, 'a'}, {16, 128, 4, 16, 'a'},
        {16, 128, 4, 0, 'a'},  {16, 128, 8, 64, 'n'}, {16, 128, 4, 64, 'x'},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        bxn_packed w = {.rows = 77};
        bitaxon_error error = BITAXON_ERROR_INIT;
        assert_int_equal(bxn_packed_describe(bad[i].rows, bad[i].cols, bad[i].kind, bad[i].bits,
                                             bad[i].group, false, &w, &error),
                         BITAXON_UNSUPPORTED);
        assert_int_equal(error.code, BITAXON_UNSUPPORTED);
        assert_int_equal(w.rows, 77);
    }
    bxn_packed w;
    assert_int_equal(bxn_packed_describe(UINT32_MAX, 128, 'a', 4, 64, true, &w, NULL), BITAXON_OK);
    assert_int_equal(bxn_packed_bytes(&w), (UINT64_C(1) << 28) * 1280);
    static const char *const names[] = {
        "",         "a",        "a4g64",     "a4g64f8",   "a4g64f160", "a7g64f16", "n8g64f16",
        "x4g64f16", "A4g64f16", "a04g64f16", "a4g064f16", "a4 g64f16", "a4g65f16", "n4g64f32 "};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char kind = 'q';
        uint32_t bits = 9, group = 9;
        bool f32 = true;
        assert_false(bxn_packed_parse(names[i], &kind, &bits, &group, &f32));
        assert_true(kind == 'q' && bits == 9 && group == 9);
    }
    assert_false(bxn_packed_scale_f32(BXN_F16));
    assert_true(bxn_packed_scale_f32(BXN_F32) && bxn_packed_scale_f32(BXN_BF16));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_float_rows),       cmocka_unit_test(test_affine_reference),
        cmocka_unit_test(test_affine_mlx),       cmocka_unit_test(test_affine_stream),
        cmocka_unit_test(test_affine_error),     cmocka_unit_test(test_affine_special),
        cmocka_unit_test(test_nf4_bitsandbytes), cmocka_unit_test(test_nf4_nearest),
        cmocka_unit_test(test_nf4_map),          cmocka_unit_test(test_packed),
        cmocka_unit_test(test_packed_encoded),   cmocka_unit_test(test_packed_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
