/* SPDX-License-Identifier: Apache-2.0 */
/* attention_avx512.c - windowed attention over cached pages and the codes of cached rows, for
 * 16 lanes. Called through the kernel table by the attention op. What is computed stands in
 * attention_body.h, its vectors in attention_vec_avx512.h. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/attention_vec_avx512.h"

#include "kernels/attention_body.h"
#include "kernels/attention_train_body.h"

BXN_ATTENTION_ENTRIES(avx512)
BXN_ATTENTION_TRAIN_ENTRIES(avx512)
#endif
