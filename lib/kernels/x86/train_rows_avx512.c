/* SPDX-License-Identifier: Apache-2.0 */
/* train_rows_avx512.c - rows of training in AVX-512; train_rows_body.h has the loops. */
#if defined(__x86_64__)
#define TRAIN_ROWS(name) bxn_##name##_avx512
#include "kernels/train_rows_body.h"
#endif
