/* SPDX-License-Identifier: Apache-2.0 */
/* check_digest.c - one number for the bits of each entry's results on inputs that are the same
 * on every machine, to be compared between architectures (tests/arm64.sh does): kernels.h
 * fixes the order of operations, so equal orders must give equal bits wherever they run. The
 * entries here are those whose order all SIMD tiers share; attention's exponentials are those of
 * AVX2 and NEON alone. */
#include "check_products.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/runtime.h"

#define EMPTY 0xCBF29CE484222325u

/* FNV-1a of floats' bits; -0 counts as 0. */
static uint64_t digest(uint64_t hash, const float *y, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = y[i] == 0 ? 0 : bxn_f32_bits(y[i]);
        for (int b = 0; b < 4; b++)
            hash = (hash ^ (bits >> (8 * b) & 255)) * 0x100000001B3u;
    }
    return hash;
}

static uint64_t packed(run *r, uint8_t code_bits, int accuracy, bool has_bias)
{
    static const uint32_t counts[] = {1, 2, 3, 5, 17};
    uint64_t hash = EMPTY;
    for (int i = 0; i < 15; i++) {
        bxn_packed w;
        plain_matrix plain;
        uint32_t rows = 1 + below(r, 90), cols = 1 + below(r, 500), count = counts[i / 3];
        make_packed(r, &w, &plain, rows, cols, code_bits, code_bits, (uint8_t)(1 << i % 3), has_bias,
                    i & 1);
        problem p = {.rows = rows, .cols = cols, .count = count, .sources = count};
        make_activations(r, &p, 0, true);
        float *y = guarded_floats((size_t)count * rows);
        const size_t columns = (size_t)w.k_units * BXN_UNIT_COLS;
        const bxn_xq_kind kind = bxn_xq_kind_of(&w, accuracy == 2);
        const size_t ldxq = bxn_xq_bytes(kind, columns), ldxscale = columns / BXN_XQ_BLOCK;
        char *xq = guarded(count * ldxq);
        float *xscale = guarded_floats(count * ldxscale);
        for (uint32_t m = 0; m < count && accuracy > 0; m++)
            r->kernels->quant_x(kind, p.x + m * p.ldx, columns, xq + m * ldxq,
                                xscale + m * ldxscale);
        const bxn_mm_args a = {.x = p.x, .ldx = p.ldx, .count = count, .y = y, .ldy = rows,
                               .xsum = p.xsum, .ldsum = p.ldsum, .xq = xq, .ldxq = ldxq,
                               .xscale = xscale, .ldxscale = ldxscale};
        const bxn_kernels *k = r->kernels;
        const bool four = code_bits == 4;
        (accuracy == 0   ? (four ? k->mm_packed4 : k->mm_packed8)
         : accuracy == 1 ? (four ? k->mm_near4 : k->mm_near8)
                         : (four ? k->mm_fast4 : k->mm_fast8))(&w, 0, w.row_groups, &a);
        hash = digest(hash, y, (size_t)count * rows);
        free(plain.value);
        free(plain.scale);
        free(plain.bias_);
        release_guarded(r, "digest");
    }
    return hash;
}

/* A dense matrix, or its transpose. */
static uint64_t dense(run *r, bxn_dtype dtype, bool transposed)
{
    static const uint32_t counts[] = {1, 2, 3, 5, 17};
    const bxn_kernels *k = r->kernels;
    uint64_t hash = EMPTY;
    for (int i = 0; i < 15; i++) {
        const uint32_t rows = 1 + below(r, 300), cols = 1 + below(r, 500), count = counts[i / 3];
        const uint32_t inputs = transposed ? rows : cols, outputs = transposed ? cols : rows;
        const size_t size = dtype == BXN_F32 ? 4 : 2;
        uint8_t *data = guarded(size * rows * cols);
        for (size_t at = 0; at < (size_t)rows * cols; at++) {
            const float value = normal(r);
            const uint16_t half = dtype == BXN_F16 ? bxn_f32_f16(value) : bxn_f32_bf16(value);
            memcpy(data + at * size, dtype == BXN_F32 ? (const void *)&value : &half, size);
        }
        const bxn_dense w = {data, dtype, rows, cols};
        problem p = {.rows = outputs, .cols = inputs, .count = count, .sources = count};
        make_activations(r, &p, 0, false);
        float *y = guarded_floats((size_t)count * outputs);
        const bxn_mm_args a = {
            .x = p.x, .ldx = p.ldx, .count = count, .y = y, .ldy = outputs};
        if (transposed)
            (dtype == BXN_F32   ? k->mm_t_f32
             : dtype == BXN_F16 ? k->mm_t_f16
                                : k->mm_t_bf16)(&w, 0, (cols + 127) / 128, &a, false);
        else
            (dtype == BXN_F32   ? k->mm_f32
             : dtype == BXN_F16 ? k->mm_f16
                                : k->mm_bf16)(&w, 0, rows, &a);
        hash = digest(hash, y, (size_t)count * outputs);
        release_guarded(r, "digest");
    }
    return hash;
}

/* Random keys or values of a page; bytes: of the codes. */
static void fill_region(run *r, bxn_kv_type type, uint8_t *region, size_t bytes)
{
    if (type == BXN_KV_I8 || type == BXN_KV_Q4) {
        for (uint32_t slot = 0; slot < BXN_PAGE; slot++, region += sizeof(float)) {
            const float scale = uniform(r, 0.005f, 0.02f);
            memcpy(region, &scale, sizeof scale);
        }
        for (size_t i = 0; i < bytes; i++)
            region[i] = (uint8_t)below(r, 256);
        return;
    }
    for (size_t i = 0; i < bytes / (type == BXN_KV_F32 ? 4 : 2); i++) {
        const float value = normal(r);
        const uint16_t half = bxn_f32_f16(value);
        if (type == BXN_KV_F32)
            memcpy(region + 4 * i, &value, sizeof value);
        else
            memcpy(region + 2 * i, &half, sizeof half);
    }
}

static uint64_t attention(run *r, bxn_kv_type type)
{
    static const uint32_t counts[] = {1, 2, 3, 7}, twice[] = {0, 4, 8, 2, 1};
    const bxn_kernels *k = r->kernels;
    uint64_t hash = EMPTY;
    for (int i = 0; i < 8; i++) {
        enum { PAGES = 12 };
        const uint32_t dim = 16 * (1 + below(r, 8)), count = counts[i / 2];
        const size_t codes = (size_t)BXN_PAGE * dim * twice[type] / 2;
        const size_t bytes = codes + (twice[type] < 4 ? BXN_PAGE * sizeof(float) : 0);
        const void *pages[PAGES];
        for (int p = 0; p < PAGES; p++) {
            uint8_t *page = guarded(2 * bytes);
            fill_region(r, type, page, codes);
            fill_region(r, type, page + bytes, codes);
            pages[p] = page;
        }
        float *q = guarded_floats((size_t)count * dim), *out = guarded_floats((size_t)count * dim);
        for (uint32_t d = 0; d < count * dim; d++)
            q[d] = normal(r);
        const bxn_attention_args a = {.q = q, .ldq = dim, .scale = 0.2f, .count = count,
                                      .head_dim = dim, .position = 600 + below(r, 150),
                                      .window = 500 + below(r, 100), .pages = pages,
                                      .v_offset = bytes,
                                      .scratch = guarded_floats(bxn_attention_scratch(dim)),
                                      .part = BXN_ALL_PARTS, .out = out, .ldout = dim};
        (type == BXN_KV_F16   ? k->attention_f16
         : type == BXN_KV_F32 ? k->attention_f32
         : type == BXN_KV_I8  ? k->attention_i8
                              : k->attention_q4)(&a);
        hash = digest(hash, out, (size_t)count * dim);
        release_guarded(r, "digest");
    }
    return hash;
}

static uint64_t outer(run *r)
{
    uint64_t hash = EMPTY;
    for (int i = 0; i < 10; i++) {
        const uint32_t rows = 1 + below(r, 300), count = 1 + below(r, 60), columns = 1 + below(r, 200);
        float *p = guarded_floats((size_t)rows * count), *q = guarded_floats((size_t)rows * columns);
        float *c = guarded_floats((size_t)count * columns);
        for (size_t at = 0; at < (size_t)rows * count; at++)
            p[at] = normal(r);
        for (size_t at = 0; at < (size_t)rows * columns; at++)
            q[at] = normal(r);
        for (size_t at = 0; at < (size_t)count * columns; at++)
            c[at] = normal(r);
        const bxn_outer_args args = {p, count, q, columns, rows, c, columns};
        r->kernels->outer_add(&args, 0, count, 0, columns);
        hash = digest(hash, c, (size_t)count * columns);
        release_guarded(r, "digest");
    }
    return hash;
}

void print_digests(const bxn_kernels *kernels, const bxn_kernels *plain)
{
    static const struct {
        const char *name;
        uint8_t code_bits;
        int accuracy;
        bool has_bias;
    } products[] = {
        {"packed4 table", 4, 0, false}, {"packed8 affine", 8, 0, true},
        {"packed8", 8, 0, false},       {"near4 affine", 4, 1, true},
        {"near4 table", 4, 1, false},   {"near8 affine", 8, 1, true},
        {"near8", 8, 1, false},         {"fast4 affine", 4, 2, true},
        {"fast4 table", 4, 2, false},   {"fast8 affine", 8, 2, true},
        {"fast8", 8, 2, false},
    };
    for (size_t i = 0; i < sizeof products / sizeof products[0]; i++) {
        run r = {.entry = products[i].name, .kernels = kernels, .plain = plain, .seed = i + 1};
        printf("%-16s %016llx\n", products[i].name,
               (unsigned long long)packed(&r, products[i].code_bits, products[i].accuracy,
                                          products[i].has_bias));
    }
    for (int i = 0; i < 6; i++) {
        static const bxn_dtype types[] = {BXN_F32, BXN_F16, BXN_BF16};
        static const char *const names[] = {"mm_f32",   "mm_f16",   "mm_bf16",
                                            "mm_t_f32", "mm_t_f16", "mm_t_bf16"};
        run r = {.entry = names[i], .kernels = kernels, .plain = plain, .seed = 50 + i % 3};
        printf("%-16s %016llx\n", names[i], (unsigned long long)dense(&r, types[i % 3], i >= 3));
    }
    run products_of_columns = {.entry = "outer_add", .kernels = kernels, .plain = plain, .seed = 55};
    printf("%-16s %016llx\n", "outer_add", (unsigned long long)outer(&products_of_columns));
    for (int type = BXN_KV_F16; type <= BXN_KV_Q4; type++) {
        static const char *const names[] = {"", "attention_f16", "attention_f32", "attention_i8",
                                            "attention_q4"};
        run r = {.entry = names[type], .kernels = kernels, .plain = plain, .seed = 60};
        printf("%-16s %016llx\n", names[type],
               (unsigned long long)attention(&r, (bxn_kv_type)type));
    }
    run r = {.entry = "sums", .kernels = kernels, .plain = plain, .seed = 99};
    uint64_t sums = EMPTY, norms = sums;
    for (uint32_t n = 1; n < 200; n += 7) {
        float *x = guarded_floats(n * (size_t)32), *y = guarded_floats(n * (size_t)32);
        for (uint32_t i = 0; i < n * 32; i++)
            x[i] = normal(&r);
        kernels->block_sums(x, n, y);
        sums = digest(sums, y, n);
        kernels->rmsnorm(x, x, n, 1e-5f, y);
        norms = digest(norms, y, n);
        release_guarded(&r, "digest");
    }
    printf("%-16s %016llx\n%-16s %016llx\n", "block_sums", (unsigned long long)sums, "rmsnorm",
           (unsigned long long)norms);
}
