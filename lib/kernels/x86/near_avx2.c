/* SPDX-License-Identifier: Apache-2.0 */
/* near_avx2.c - products with integer activations on AVX2: near_256.h with its
 * instructions. Called through the kernel table by the linear op. */
#if defined(__x86_64__)
#define BXN_VNNI 0
#include "kernels/x86/near_256.h"

BXN_DEFINE_NEAR(avx2)
#endif
