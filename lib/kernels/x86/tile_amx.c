/* SPDX-License-Identifier: Apache-2.0 */
/* tile_amx.c - products of bf16 tiles on AMX: tile_body.h with the processor's tile
 * operations. Called through the kernel table by the linear op in prefill, when the process
 * has the permission (runtime/amx.c). The tiles are set up and let go within a call, so that
 * a thread of the host carries no tile state between calls. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/tile_decode.h"
#include "kernels/x86/tile_ops_amx.h"

#define TILE_NAME(entry) bxn_##entry##_amx

#include "kernels/x86/tile_body.h"
#endif
