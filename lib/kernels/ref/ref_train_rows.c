/* SPDX-License-Identifier: Apache-2.0 */
/* ref_train_rows.c - rows of training in plain C; train_rows_body.h has the loops. */
#define TRAIN_ROWS(name) bxn_##name##_ref
#include "kernels/train_rows_body.h"
