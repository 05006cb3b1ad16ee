/* SPDX-License-Identifier: Apache-2.0 */
/* linear_fixture.h - weights in every form, adapters of them and passes, for the tests of linear layers
 * with adapters and of training; and what they give in double precision. */
#ifndef LINEAR_FIXTURE_H
#define LINEAR_FIXTURE_H

#include "ops/train_ops.h"

/* 'f' f32, 'h' f16, 'b' bf16, 'a' affine of 4 bits, '8' affine of 8 bits, 'n' NF4. */
typedef struct fixture_weight {
    bxn_weight w;
    void *data;
    double *value; /* [rows, cols] */
} fixture_weight;

typedef struct fixture_lora {
    bxn_lora lora;
    float *a, *b, *m, *gain;
} fixture_lora;

/* Kernels of all this processor has, a pool, and a pass with scratch of so many bytes. */
typedef struct fixture_world {
    bxn_mem mem;
    bxn_kernels kernels;
    bxn_pool *pool;
    bxn_train_pass pass;
    bitaxon_error error;
} fixture_world;

void fixture_world_open(fixture_world *world, uint64_t features, uint32_t threads, size_t scratch);
void fixture_world_close(fixture_world *world);

float fixture_normal(uint64_t *state);
void *fixture_alloc(size_t bytes); /* cleared, 64-byte aligned; free() */
/* [rows, ld] normal values, ld = cols rounded up to 128, zeros behind. */
float *fixture_rows(uint64_t *state, size_t rows, size_t cols);

/* cols: a multiple of 64 where it is packed. */
void fixture_weight_make(fixture_weight *f, char kind, uint32_t rows, uint32_t cols, uint32_t id, uint64_t seed);
void fixture_weight_free(fixture_weight *f);
/* Normal A and B; dora: m about 1, and exact gains. */
void fixture_lora_make(fixture_lora *f, const fixture_weight *w, uint32_t rank, float scale, bool dora, uint64_t seed);
void fixture_lora_free(fixture_lora *f);
/* ||(W + s (A B)^T)_o|| */
double fixture_norm(const fixture_weight *w, const bxn_lora *lora, const double *a, const double *b, uint32_t row);

#endif
