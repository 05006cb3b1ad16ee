/* SPDX-License-Identifier: Apache-2.0 */
/* kernels_isa.h - the functions behind the kernel table, one set per tier. Included by
 * the tiers, which define them, and by kernels_init.c, which alone chooses. Each is
 * bxn_<entry>_<tier> with the signature of its table entry. */
#ifndef BXN_KERNELS_ISA_H
#define BXN_KERNELS_ISA_H

#include "kernels/kernels.h"

/* The products with integer activations, which some tiers have alone. */
#define BXN_DECLARE_INTEGER(tier)                                                                  \
    void bxn_mm_near4_##tier(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,        \
                             const bxn_mm_args *args);                                             \
    void bxn_mm_near8_##tier(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,        \
                             const bxn_mm_args *args);                                             \
    void bxn_mm_fast4_##tier(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,        \
                             const bxn_mm_args *args);                                             \
    void bxn_mm_fast8_##tier(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,        \
                             const bxn_mm_args *args);                                             \
    void bxn_quant_x_##tier(bxn_xq_kind kind, const float *x, size_t columns, void *xq,            \
                            float *xscale)

/* Products with the transpose, and outer products. */
#define BXN_DECLARE_TRANSPOSED(tier)                                                               \
    void bxn_mm_t_packed4_##tier(const bxn_packed *w, uint32_t unit_begin, uint32_t unit_end,      \
                                 const bxn_mm_args *args, bool add);                               \
    void bxn_mm_t_packed8_##tier(const bxn_packed *w, uint32_t unit_begin, uint32_t unit_end,      \
                                 const bxn_mm_args *args, bool add);                               \
    void bxn_mm_t_f32_##tier(const bxn_dense *w, uint32_t unit_begin, uint32_t unit_end,           \
                             const bxn_mm_args *args, bool add);                                   \
    void bxn_mm_t_f16_##tier(const bxn_dense *w, uint32_t unit_begin, uint32_t unit_end,           \
                             const bxn_mm_args *args, bool add);                                   \
    void bxn_mm_t_bf16_##tier(const bxn_dense *w, uint32_t unit_begin, uint32_t unit_end,          \
                              const bxn_mm_args *args, bool add);                                  \
    void bxn_outer_add_##tier(const bxn_outer_args *args, uint32_t i_begin, uint32_t i_end,        \
                              uint32_t j_begin, uint32_t j_end)

/* Gradients of the state-space op. */
#define BXN_DECLARE_STATE(tier)                                                                    \
    void bxn_scan_backward_##tier(const bxn_scan_backward_args *args);                             \
    void bxn_conv_backward_##tier(const bxn_conv_backward_args *args)

/* Attention in training. */
#define BXN_DECLARE_ATTENTION_TRAIN(tier)                                                          \
    void bxn_attention_train_##tier(const bxn_attention_train_args *args);                         \
    void bxn_attention_backward_##tier(const bxn_attention_train_args *args)

/* Rows of training. */
#define BXN_DECLARE_TRAIN_ROWS(tier)                                                               \
    void bxn_adamw_##tier(const bxn_adamw *a, float keep, float *value, float *grad, float *m,     \
                          float *v, size_t n);                                                     \
    double bxn_square_sum_##tier(const float *x, size_t n);                                        \
    float bxn_row_max_##tier(const float *x, size_t n);                                            \
    void bxn_scale_##tier(float *x, float s, size_t n);                                            \
    float bxn_rmsnorm_backward_##tier(const float *x, const float *w, const float *dy, size_t n,   \
                                      float eps, float *dx);                                       \
    void bxn_rmsnorm_weight_##tier(const float *x, size_t ldx, const float *dy, size_t lddy,       \
                                   const float *r, uint32_t rows, size_t n, float *dw)

/* Products of bf16 tiles. */
#define BXN_DECLARE_TILE(tier)                                                                     \
    void bxn_mm_tile4_##tier(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,        \
                             const bxn_mm_args *args);                                             \
    void bxn_mm_tile8_##tier(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,        \
                             const bxn_mm_args *args);                                             \
    void bxn_quant_bf16_##tier(const float *x, size_t columns, void *tiles, uint32_t row);         \
    void bxn_attention_tile_##tier(const bxn_attention_args *args, bxn_kv_type type)

#define BXN_DECLARE_TIER(tier)                                                                     \
    void bxn_mm_packed4_##tier(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,      \
                               const bxn_mm_args *args);                                           \
    void bxn_mm_packed8_##tier(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,      \
                               const bxn_mm_args *args);                                           \
    void bxn_mm_f32_##tier(const bxn_dense *w, uint32_t row_begin, uint32_t row_end,               \
                           const bxn_mm_args *args);                                               \
    void bxn_mm_f16_##tier(const bxn_dense *w, uint32_t row_begin, uint32_t row_end,               \
                           const bxn_mm_args *args);                                               \
    void bxn_mm_bf16_##tier(const bxn_dense *w, uint32_t row_begin, uint32_t row_end,              \
                            const bxn_mm_args *args);                                              \
    BXN_DECLARE_INTEGER(tier);                                                                     \
    void bxn_block_sums_##tier(const float *x, size_t count, float *out);                          \
    void bxn_rmsnorm_##tier(const float *x, const float *w, size_t n, float eps, float *y);        \
    void bxn_add_##tier(float *y, const float *x, size_t n);                                       \
    void bxn_scale_add_##tier(float *y, const float *x, float s, size_t n);                        \
    void bxn_silu_mul_##tier(float *a, const float *b, size_t n);                                  \
    float bxn_silu_mul_backward_##tier(const float *a, const float *b, float *g, float s,          \
                                       float *db, size_t n);                                       \
    float bxn_exp_sum_##tier(float *x, float max, size_t n);                                       \
    void bxn_conv_silu_##tier(const bxn_conv_args *args);                                          \
    void bxn_scan_##tier(const bxn_scan_args *args);                                               \
    void bxn_attention_f16_##tier(const bxn_attention_args *args);                                 \
    void bxn_attention_f32_##tier(const bxn_attention_args *args);                                 \
    void bxn_attention_i8_##tier(const bxn_attention_args *args);                                  \
    void bxn_attention_q4_##tier(const bxn_attention_args *args);                                  \
    void bxn_attention_merge_##tier(const float *partials, uint32_t parts, uint32_t head_dim,      \
                                    float *out);                                                   \
    void bxn_quant_i8_##tier(const float *x, uint32_t n, int8_t *codes, float *scale);             \
    void bxn_quant_q4_##tier(const float *x, uint32_t n, uint8_t *codes, float *scale);            \
    void bxn_kv_rotate_##tier(const float *r, uint32_t n, const float *x, size_t ldx,              \
                              uint32_t count, float *y);                                           \
    void bxn_to_f16_##tier(const float *x, size_t n, uint16_t *y)

BXN_DECLARE_TIER(ref);
BXN_DECLARE_TIER(avx2);
BXN_DECLARE_TIER(avxvnni);
BXN_DECLARE_TIER(avx512);
BXN_DECLARE_TRANSPOSED(ref);
BXN_DECLARE_TRANSPOSED(avx2);
BXN_DECLARE_TRANSPOSED(avx512);
BXN_DECLARE_TRANSPOSED(neon);
BXN_DECLARE_STATE(ref);
BXN_DECLARE_STATE(avx2);
BXN_DECLARE_STATE(avx512);
BXN_DECLARE_ATTENTION_TRAIN(ref);
BXN_DECLARE_ATTENTION_TRAIN(avx2);
BXN_DECLARE_ATTENTION_TRAIN(avx512);
BXN_DECLARE_ATTENTION_TRAIN(neon);
BXN_DECLARE_TRAIN_ROWS(ref);
BXN_DECLARE_TRAIN_ROWS(avx2);
BXN_DECLARE_TRAIN_ROWS(avx512);
BXN_DECLARE_TRAIN_ROWS(neon);
BXN_DECLARE_TILE(ref);
BXN_DECLARE_TILE(amx);
BXN_DECLARE_INTEGER(avx512vnni);
BXN_DECLARE_TIER(neon);
BXN_DECLARE_INTEGER(dotprod);
BXN_DECLARE_INTEGER(i8mm);

#endif
