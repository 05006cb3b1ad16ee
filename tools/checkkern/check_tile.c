/* SPDX-License-Identifier: Apache-2.0 */
/* check_tile.c - checks of the products of bf16 tiles. Plain C of the library judges; the
 * kernel of AMX runs on the processor where that can, and everywhere with tile operations in
 * plain C, so that its layout, indexing and tails are checked on every machine. */
#include "check_tile.h"
#include "check_products.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <bitaxon/version.h>

#include "kernels/kernels_isa.h"
#include "runtime/runtime.h"

static void multiply(const run *r, const bxn_kernels *k, const void *matrix, uint32_t begin,
                     uint32_t end, const bxn_mm_args *args)
{
    const bxn_packed *w = matrix;
    const size_t columns = (size_t)w->k_units * 128, bytes = bxn_tile_bytes(columns);
    const uint32_t blocks = (args->count + 15) / 16;
    uint16_t *tiles = guarded(blocks * bytes);
    (void)r;
    memset(tiles, 0xFF, blocks * bytes); /* rows of no token: NaN */
    for (uint32_t m = 0; m < args->count; m++)
        k->quant_bf16(args->x + m * args->ldx, columns, tiles + m / 16 * (bytes / 2), m % 16);
    bxn_mm_args a = {
        .count = args->count, .y = args->y, .ldy = args->ldy, .xq = tiles, .ldxq = bytes};
    (w->code_bits == 4 ? k->mm_tile4 : k->mm_tile8)(w, begin, end, &a);
}

/* Rounded to bf16, as a float. */
static float rounded(double value)
{
    float v = (float)value;
    return bxn_bf16_f32(bxn_f32_bf16(fabsf(v) < 0x1p-126f ? 0.0f : v));
}

static void tile_case(run *r, uint32_t rows, uint32_t cols, uint32_t count, uint8_t code_bits,
                      uint8_t block_count, bool has_bias, bool f32, int special)
{
    bxn_packed w;
    plain_matrix plain;
    make_packed(r, &w, &plain, rows, cols, code_bits, code_bits, block_count, has_bias, f32);
    problem p = {.matrix = &w,
                 .multiply = multiply,
                 .rows = rows,
                 .cols = cols,
                 .cut_unit = 16,
                 .count = count,
                 .sources = count,
                 .own_order = true};
    make_activations(r, &p, special, false);
    p.want = calloc((size_t)count * rows, sizeof(double));
    p.bound = calloc((size_t)count * rows, sizeof(double));
    const size_t subs = (size_t)w.k_units * 4, wide = subs * 32;
    for (uint32_t n = 0; n < rows; n++) {
        for (uint32_t m = 0; m < count; m++) {
            double sum = 0, terms = 0, doubt = 0, whole = 0;
            for (uint32_t k = 0; k < cols; k++) {
                float scale = plain.scale[n * subs + k / 32], value = plain.value[n * wide + k];
                float bias = plain.bias_[n * subs + k / 32];
                /* A weight between two values of bf16 may go to either: its f32 is fused or not,
                 * and so is bias', which is a rounding apart. */
                double exact = (double)scale * (double)value + (has_bias ? (double)bias : 0);
                double slack = has_bias
                                   ? 4 * UNIT_ROUNDOFF *
                                         (fabs((double)scale * (double)w.center) +
                                          fabs((double)scale * (double)value) + fabs((double)bias))
                                   : UNIT_ROUNDOFF * fabs(exact);
                double low = (double)rounded(exact - slack), high = (double)rounded(exact + slack);
                double weight = (double)rounded(exact);
                double x = (double)rounded((double)p.x[m * p.ldx + k]);
                sum += weight * x;
                terms += fabs(weight * x);
                doubt += fmax(high - weight, weight - low) * fabs(x);
                whole += fabs(weight);
            }
            p.want[(size_t)m * rows + n] = sum;
            p.bound[(size_t)m * rows + n] =
                (cols / 32 + 24.0) * UNIT_ROUNDOFF * terms + doubt + TINY * (1 + whole);
        }
    }
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
    release_guarded(r, "mm_tile");
}

static void check_tiles(run *r, uint8_t code_bits)
{
    static const uint32_t counts[] = {1, 15, 16, 17, 31, 32, 33, 48, 50};
    static const uint8_t block_counts[] = {1, 2, 4};
    for (int has_bias = 0; has_bias < 2; has_bias++) {
        for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++)
            for (size_t b = 0; b < 3; b++)
                tile_case(r, 1 + below(r, 70), 1 + below(r, 400), counts[c], code_bits,
                          block_counts[b], has_bias, below(r, 2), 0);
        for (uint32_t rows = 16; rows <= 48; rows += 16) /* several panels of inputs */
            tile_case(r, rows, 2100 + rows, 33, code_bits, 2, has_bias, false, 0);
        tile_case(r, 40, 140, 400, code_bits, 2, has_bias, false, 0); /* stretches of tokens */
        if (has_bias) /* two of them, whose inputs do not fit into the cache whole, x panels of 6 and 5 units */
            tile_case(r, 40, 1400, 700, code_bits, 2, true, false, 0);
        for (int special = 1; special <= 3; special++)
            tile_case(r, 40, 300, 20, code_bits, 2, has_bias, special == 2, special);
    }
}

void check_mm_tile4(run *r)
{
    check_tiles(r, 4);
}

void check_mm_tile8(run *r)
{
    check_tiles(r, 8);
}

void check_quant_bf16(run *r)
{
    static const uint32_t order[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    for (uint32_t i = 0; i < 40; i++) {
        const size_t columns = 128 * (1 + (size_t)below(r, 3)), bytes = bxn_tile_bytes(columns);
        const uint32_t row = i % 16;
        float *x = guarded_floats(columns);
        uint16_t *tiles = guarded(bytes);
        memset(tiles, 0x5A, bytes);
        for (size_t k = 0; k < columns; k++) {
            uint32_t bits = (uint32_t)next_random(r); /* all of f32 */
            x[k] = i % 2 == 0 ? normal(r) : bxn_bits_f32(bits);
        }
        r->kernels->quant_bf16(x, columns, tiles, row);
        for (size_t j = 0; j < bytes / 2; j++) {
            const size_t place = j % 512 % 32;
            const float from = x[j / 512 * 32 + place / 8 * 8 + order[place % 8]];
            if (j % 512 / 32 != row) {
                if (tiles[j] != 0x5A5A)
                    fail(r, "row %u: wrote value %zu of another row", row, j);
            } else if (isnan(from)) {
                if (!isnan(bxn_bf16_f32(tiles[j])))
                    fail(r, "value %zu: %#x from NaN", j, tiles[j]);
            } else {
                compare(r, "value", j, (double)bxn_bf16_f32(tiles[j]),
                        (double)rounded((double)from), 0.0);
            }
        }
        r->cases++;
        release_guarded(r, "quant_bf16");
    }
}

bool tile_has(const tile_table *table, const char *entry)
{
    return strcmp(entry, "attention_tile") != 0 || table->kernels.attention_tile != NULL;
}

bool tile_tables(tile_table out[4], size_t *count, uint64_t features)
{
    size_t n = 0;
    bxn_kernels plain;
    bxn_kernels_init(&plain, 0);
    plain.mm_tile4 = bxn_mm_tile4_ref;
    plain.mm_tile8 = bxn_mm_tile8_ref;
    plain.quant_bf16 = bxn_quant_bf16_ref;
    plain.attention_tile = bxn_attention_tile_ref;
    out[n++] = (tile_table){"c", plain};
    out[n++] = (tile_table){"emulated", plain};
    out[n - 1].kernels.mm_tile4 = mm_tile4_emulated;
    out[n - 1].kernels.mm_tile8 = mm_tile8_emulated;
    out[n - 1].kernels.quant_bf16 = quant_bf16_emulated;
    out[n - 1].kernels.attention_tile = NULL;
#if defined(__x86_64__)
    tile_table wide = {"emul.512", plain};
    if (tile_emulated512(&wide.kernels) && (features & BITAXON_CPU_AVX512) &&
        __builtin_cpu_supports("avx512bf16")) {
        bxn_kernels simd; /* parts are merged by the vectors that made them */
        bxn_kernels_init(&simd, features & (BITAXON_CPU_AVX2 | BITAXON_CPU_AVX512));
        wide.kernels.attention_merge = simd.attention_merge;
        out[n++] = wide;
    }
#endif
    bool real = (features & BITAXON_CPU_AMX) != 0 && bxn_amx_request(NULL, NULL) == 0;
    if (real) {
        bxn_kernels amx;
        bxn_kernels_init(&amx, features);
        real = amx.mm_tile4 != NULL;
        if (real) {
            out[n] = (tile_table){"amx", plain};
            out[n].kernels.mm_tile4 = amx.mm_tile4;
            out[n].kernels.mm_tile8 = amx.mm_tile8;
            out[n].kernels.attention_tile = amx.attention_tile;
            out[n].kernels.attention_merge = amx.attention_merge;
            out[n++].kernels.quant_bf16 = amx.quant_bf16;
        }
    }
    *count = n;
    return real;
}
