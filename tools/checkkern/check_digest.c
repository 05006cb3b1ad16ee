/* SPDX-License-Identifier: Apache-2.0 */
/* check_digest.c - one number for the bits of each entry's results on inputs that are the same
 * on every machine, to be compared between architectures (tests/arm64.sh does): kernels.h
 * fixes the order of operations, so equal orders must give equal bits wherever they run. The
 * entries here are those whose order all SIMD tiers share. */
#include "check_products.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/runtime.h"

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
    uint64_t hash = 0xCBF29CE484222325u;
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
    run r = {.entry = "sums", .kernels = kernels, .plain = plain, .seed = 99};
    uint64_t sums = 0xCBF29CE484222325u, norms = sums;
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
