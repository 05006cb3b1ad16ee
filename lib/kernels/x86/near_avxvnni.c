/* SPDX-License-Identifier: Apache-2.0 */
/* near_avxvnni.c - products with integer activations on AVX-VNNI: near_256.h with its
 * instructions. Called through the kernel table by the linear op. */
#if defined(__x86_64__)
#define BXN_VNNI 1
#include "kernels/x86/near_256.h"

BXN_DEFINE_NEAR(avxvnni)
#endif
