/* SPDX-License-Identifier: Apache-2.0 */
/* checkkern.h - what the checks of the kernel table share: guarded memory, random data,
 * comparison against computed bounds, and the list of entries. A check runs one entry of
 * one tier over many cases; its expected values are a double-precision evaluation for plain
 * C, and the results of plain C for every other tier. */
#ifndef CHECKKERN_H
#define CHECKKERN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

#define UNIT_ROUNDOFF 0x1p-24
#define EXP_ERROR 2e-7  /* relative, of exp and exp2 */
#define SILU_ERROR 5e-7 /* relative, of x * sigmoid(x) and softplus */
#define TINY 0x1p-120   /* what flushed denormals may cost, per unit of scale */

typedef struct run {
    const char *entry, *tier;
    const bxn_kernels *kernels; /* the tier under test */
    const bxn_kernels *plain;   /* plain C */
    const bxn_kernels *below;   /* the next tier with a function of its own, not plain C; or NULL */
    bool is_plain;
    uint64_t seed;
    uint64_t cases, failures;
    double worst; /* largest error as a part of its bound */
} run;

typedef struct entry {
    const char *name;
    void (*check)(run *r);
    size_t slot; /* offset of the entry in bxn_kernels */
    unsigned group; /* of entries that a tier has or has not: GROUP_* */
} entry;

extern const entry entries[];
extern const size_t entry_count;

/* ---- random data ------------------------------------------------------------------ */

uint64_t next_random(run *r);
uint32_t below(run *r, uint32_t n); /* 0 .. n - 1 */
float uniform(run *r, float low, float high);
float normal(run *r);
uint16_t random_f16(run *r, float low, float high);

/* ---- memory between guard pages ------------------------------------------------------ */

/* bytes that end where an unreadable page begins; the slack before them is a canary. */
void *guarded(size_t bytes);
float *guarded_floats(size_t count);
float *guarded_randoms(run *r, size_t count, float size); /* normal, of that deviation */
float *guarded_copy(const float *x, size_t count);
/* Check the canaries of every guarded block since the last call and free them all. */
void release_guarded(run *r, const char *what);

/* ---- verdicts ---------------------------------------------------------------------- */

void fail(run *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* |got - want| <= bound; not-a-number must meet its like, infinity too. */
void compare(run *r, const char *what, size_t index, double got, double want, double bound);
void same_bits(run *r, const char *what, const float *a, const float *b, size_t count);
/* All `count` floats still have the pattern of fill_pattern. */
void fill_pattern(float *y, size_t count);
bool has_pattern(float y);

float f16_value(uint16_t bits);

/* ---- the checks ------------------------------------------------------------------------ */

void check_mm_packed4(run *r);
void check_mm_packed8(run *r);
void check_mm_near4(run *r);
void check_mm_near8(run *r);
void check_mm_fast4(run *r);
void check_mm_fast8(run *r);
void check_quant_x(run *r);
void check_mm_f32(run *r);
void check_mm_f16(run *r);
void check_mm_bf16(run *r);
void check_mm_t_packed4(run *r);
void check_mm_t_packed8(run *r);
void check_mm_t_f32(run *r);
void check_mm_t_f16(run *r);
void check_mm_t_bf16(run *r);
void check_outer_add(run *r);
void check_mm_tile4(run *r);
void check_mm_tile8(run *r);
void check_quant_bf16(run *r);
void check_attention_tile(run *r);
void check_block_sums(run *r);
void check_rmsnorm(run *r);
void check_add(run *r);
void check_scale_add(run *r);
void check_silu_mul(run *r);
void check_silu_mul_backward(run *r);
void check_exp_sum(run *r);
void check_conv_silu(run *r);
void check_scan(run *r);
void check_scan_backward(run *r);
void check_conv_backward(run *r);
void check_attention_f16(run *r);
void check_attention_f32(run *r);
void check_attention_i8(run *r);
void check_attention_q4(run *r);
void check_attention_merge(run *r);
void check_attention_train(run *r);
void check_attention_backward(run *r);
void check_adamw(run *r);
void check_square_sum(run *r);
void check_row_max(run *r);
void check_scale(run *r);
void check_rmsnorm_backward(run *r);
void check_rmsnorm_weight(run *r);
void check_quant_i8(run *r);
void check_quant_q4(run *r);
void check_kv_rotate(run *r);
void check_to_f16(run *r);

/* Products of many tokens with dense matrices, and with the transpose, of one tier. */
void bench_dense_products(const bxn_kernels *k, const char *tier, const char *filter,
                          const uint8_t *buffer, double peak);
void bench_outer_products(const bxn_kernels *k, const char *tier, const char *filter, double peak);
/* Attention in training beside the f32 peak. */
void bench_attention_train(const bxn_kernels *k, const char *tier, const char *filter, double peak);
/* One line for each entry whose bits all SIMD tiers share. */
void print_digests(const bxn_kernels *kernels, const bxn_kernels *plain);

/* Speed of every entry of these tables beside the machine's own limits. */
int bench_kernels(const bxn_kernels *tables, const char *const *names, size_t count,
                  const char *filter);
/* The scan beside its recurrence without exponentials and beside the scalar loop. */
void bench_scan(const bxn_kernels *k, const char *tier);
void bench_scan_backward(const bxn_kernels *k, const char *tier);
/* Chunked forms of state-space recurrences beside the recurrences. */
void bench_chunked(const bxn_kernels *k, const char *tier);

#endif
