/* SPDX-License-Identifier: Apache-2.0 */
/* attention_amx.c - windowed attention with bf16 tiles on AMX: attention_tile_body.h with the processor's tile
 * operations. Called through the kernel table by the attention op in prefill, when the process has the
 * permission (runtime/amx.c). */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/attention_vec_avx512.h"
#include "kernels/x86/tile_ops_amx.h"

#define TILE_NAME(entry) bxn_##entry##_amx

#include "kernels/x86/attention_tile_body.h"
#endif
