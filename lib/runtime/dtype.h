/* SPDX-License-Identifier: Apache-2.0 */
/* dtype.h - element types of tensors in files and memory. */
#ifndef BXN_DTYPE_H
#define BXN_DTYPE_H

typedef enum bxn_dtype {
    BXN_F32 = 0,
    BXN_F16,
    BXN_BF16,
    BXN_U8,
    BXN_I8,
    BXN_U16,
    BXN_I16,
    BXN_U32,
    BXN_I32,
    BXN_U64,
    BXN_I64,
    BXN_F64,
    BXN_BOOL,
    BXN_DTYPE_COUNT
} bxn_dtype;

#endif
