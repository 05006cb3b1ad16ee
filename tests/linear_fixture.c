/* SPDX-License-Identifier: Apache-2.0 */
/* linear_fixture.c - see linear_fixture.h. */
#include "linear_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "quant/quant.h"

void fixture_world_open(fixture_world *world, uint64_t features, uint32_t threads, size_t scratch)
{
    memset(world, 0, sizeof *world);
    world->error = (bitaxon_error)BITAXON_ERROR_INIT;
    assert_int_equal(bxn_mem_init(&world->mem, NULL, 0, &world->error), BITAXON_OK);
    assert_int_equal(bxn_pool_create(&world->mem, threads, &world->pool, &world->error), BITAXON_OK);
    bxn_kernels_init(&world->kernels, features);
    world->pass.exec = (bxn_exec){ .kernels = &world->kernels, .pool = world->pool, .error = &world->error };
    world->pass.scratch.memory = fixture_alloc(scratch);
    world->pass.scratch.bytes = scratch;
}

void fixture_world_close(fixture_world *world)
{
    assert_int_equal(world->pass.scratch.used, 0);
    bxn_pool_free(world->pool);
    free(world->pass.scratch.memory);
}

static double unit(uint64_t *state)
{
    *state += 0x9E3779B97F4A7C15u;
    uint64_t z = *state;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

float fixture_normal(uint64_t *state)
{
    double sum = 0;
    for (int i = 0; i < 12; i++)
        sum += unit(state);
    return (float)(sum - 6);
}

void *fixture_alloc(size_t bytes)
{
    void *memory = aligned_alloc(64, bxn_round_up(bytes == 0 ? 1 : bytes, 64));
    assert_non_null(memory);
    memset(memory, 0, bytes);
    return memory;
}

float *fixture_rows(uint64_t *state, size_t rows, size_t cols)
{
    const size_t ld = bxn_round_up(cols, 128);
    float *out = fixture_alloc(rows * ld * sizeof *out);
    for (size_t t = 0; t < rows; t++)
        for (size_t k = 0; k < cols; k++)
            out[t * ld + k] = fixture_normal(state);
    return out;
}

static void pack(fixture_weight *f, char kind, const float *dense)
{
    const uint32_t rows = f->w.rows, cols = f->w.cols, group = 64, bits = kind == '8' ? 8 : 4;
    bxn_packed *p = &f->w.packed;
    bitaxon_error error = BITAXON_ERROR_INIT;
    f->w.kind = BXN_WEIGHT_PACKED;
    assert_int_equal(bxn_packed_describe(rows, cols, kind == 'n' ? 'n' : 'a', bits, group, kind == 'n', p, &error),
                     BITAXON_OK);
    f->data = fixture_alloc(bxn_packed_bytes(p));
    const uint32_t groups = cols / group;
    uint8_t *codes = malloc((size_t)16 * cols);
    uint32_t *words = malloc(bxn_affine_words(cols, bits) * sizeof *words);
    float *scales = malloc(16 * sizeof(float) * groups), *biases = malloc(16 * sizeof(float) * groups);
    for (uint32_t row = 0; row < rows; row += 16) {
        uint32_t count = rows - row < 16 ? rows - row : 16;
        for (uint32_t r = 0; r < count; r++) {
            const float *in = dense + (size_t)(row + r) * cols;
            float *scale = scales + r * groups, *bias = biases + r * groups;
            if (kind != 'n') {
                bxn_affine_encode_row(in, cols, bits, group, words, scale, bias);
                bxn_affine_unpack_row(words, cols, bits, codes + r * cols);
            }
            for (uint32_t g = 0; g < groups; g++) {
                if (kind == 'n')
                    bxn_nf4_encode_group(in + g * group, group, codes + r * cols + g * group, &scale[g]);
                scale[g] = bxn_f16_f32(bxn_f32_f16(scale[g]));
                bias[g] = kind == 'n' ? 0 : bxn_f16_f32(bxn_f32_f16(bias[g]));
            }
        }
        bxn_packed_write_group(p, count, codes, scales, kind == 'n' ? NULL : biases,
                               (uint8_t *)f->data + (size_t)row / 16 * p->k_units * p->unit_bytes);
    }
    p->data = f->data;
    free(codes);
    free(words);
    free(scales);
    free(biases);
}

void fixture_weight_make(fixture_weight *f, char kind, uint32_t rows, uint32_t cols, uint32_t id, uint64_t seed)
{
    const size_t count = (size_t)rows * cols;
    float *dense = malloc(count * sizeof *dense);
    memset(f, 0, sizeof *f);
    f->w.rows = rows;
    f->w.cols = cols;
    f->w.id = id;
    f->w.kind = BXN_WEIGHT_DENSE;
    for (size_t i = 0; i < count; i++)
        dense[i] = 0.3f * fixture_normal(&seed);
    if (kind == 'f' || kind == 'h' || kind == 'b') {
        const bxn_dtype type = kind == 'f' ? BXN_F32 : kind == 'h' ? BXN_F16 : BXN_BF16;
        f->data = fixture_alloc(count * 4);
        for (size_t i = 0; i < count; i++) {
            if (kind == 'f')
                ((float *)f->data)[i] = dense[i];
            else
                ((uint16_t *)f->data)[i] = kind == 'h' ? bxn_f32_f16(dense[i]) : bxn_f32_bf16(dense[i]);
        }
        f->w.dense = (bxn_dense){ f->data, type, rows, cols };
    } else {
        pack(f, kind, dense);
    }
    f->value = malloc(count * sizeof *f->value);
    for (uint32_t row = 0; row < rows; row++) {
        bxn_weight_row(&f->w, row, dense);
        for (uint32_t k = 0; k < cols; k++)
            f->value[(size_t)row * cols + k] = (double)dense[k];
    }
    free(dense);
}

void fixture_weight_free(fixture_weight *f)
{
    free(f->data);
    free(f->value);
}

double fixture_norm(const fixture_weight *w, const bxn_lora *lora, const double *a, const double *b, uint32_t row)
{
    double sum = 0;
    for (uint32_t k = 0; k < w->w.cols; k++) {
        double value = w->value[(size_t)row * w->w.cols + k];
        for (uint32_t r = 0; r < lora->rank; r++)
            value += (double)lora->scale * b[r * lora->ldb + row] * a[r * lora->lda + k];
        sum += value * value;
    }
    return sqrt(sum);
}

static double *widened(const float *values, size_t count)
{
    double *out = malloc(count * sizeof *out);
    for (size_t i = 0; i < count; i++)
        out[i] = (double)values[i];
    return out;
}

void fixture_lora_make(fixture_lora *f, const fixture_weight *w, uint32_t rank, float scale, bool dora, uint64_t seed)
{
    const uint32_t rows = w->w.rows, cols = w->w.cols;
    memset(f, 0, sizeof *f);
    f->a = fixture_rows(&seed, rank, cols);
    f->b = fixture_rows(&seed, rank, rows);
    f->lora = (bxn_lora){ .rank = rank, .scale = scale, .a = f->a, .b = f->b, .lda = bxn_round_up(cols, 128),
                          .ldb = bxn_round_up(rows, 128) };
    for (size_t i = 0; i < rank * f->lora.lda; i++)
        f->a[i] *= 0.1f;
    if (!dora)
        return;
    f->m = fixture_alloc(rows * sizeof *f->m);
    f->gain = fixture_alloc(rows * sizeof *f->gain);
    double *a = widened(f->a, rank * f->lora.lda), *b = widened(f->b, rank * f->lora.ldb);
    for (uint32_t n = 0; n < rows; n++) {
        f->m[n] = 1.0f + 0.2f * fixture_normal(&seed);
        f->gain[n] = (float)((double)f->m[n] / fixture_norm(w, &f->lora, a, b, n));
    }
    f->lora.m = f->m;
    f->lora.gain = f->gain;
    free(a);
    free(b);
}

void fixture_lora_free(fixture_lora *f)
{
    free(f->a);
    free(f->b);
    free(f->m);
    free(f->gain);
}
