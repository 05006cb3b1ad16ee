/* SPDX-License-Identifier: Apache-2.0 */
/* train_rows_neon.c - rows of training in NEON; train_rows_body.h has the loops. */
#if defined(__aarch64__)
#define TRAIN_ROWS(name) bxn_##name##_neon
#include "kernels/train_rows_body.h"
#endif
