/* SPDX-License-Identifier: Apache-2.0 */
/* version.h - what this header set is, and what the loaded library is.
 * Both builds of one release carry the same numbers; a binding should compare
 * bitaxon_abi_version() with BITAXON_ABI_VERSION before it calls anything else. */
#ifndef BITAXON_VERSION_H
#define BITAXON_VERSION_H

#include <bitaxon/base.h>

#define BITAXON_VERSION_MAJOR 0
#define BITAXON_VERSION_MINOR 1
#define BITAXON_VERSION_PATCH 0
/* major * 1000000 + minor * 1000 + patch */
#define BITAXON_VERSION_NUMBER 1000
#define BITAXON_VERSION_STRING "0.1.0"
/* The number in the shared object's name (libbitaxon.so.N). 0 until release 1.0. */
#define BITAXON_ABI_VERSION 0

#ifdef __cplusplus
extern "C" {
#endif

/* Returns:   BITAXON_VERSION_NUMBER of the library that is loaded.
 * Thread:    any-thread.  Since: 0.1 */
BITAXON_API uint32_t bitaxon_version(void);

/* Returns:   "MAJOR.MINOR.PATCH" of the library that is loaded.
 * Ownership: static.  Thread: any-thread.  Since: 0.1 */
BITAXON_API const char *bitaxon_version_string(void);

/* Returns:   BITAXON_ABI_VERSION of the library that is loaded.
 * Thread:    any-thread.  Since: 0.1 */
BITAXON_API uint32_t bitaxon_abi_version(void);

/* Returns:   one line: version, compiler, kernel tiers compiled in.
 * Ownership: static.  Thread: any-thread.  Since: 0.1 */
BITAXON_API const char *bitaxon_build_info(void);

/* CPU features the library can use, as a bit mask. `detected` is what this
 * machine and its operating system offer; a model uses detected & its cpu_mask. */
#define BITAXON_CPU_AVX2 1u   /* AVX2 + FMA + F16C */
#define BITAXON_CPU_AVX512 2u /* AVX-512 F, BW, DQ, VL (and AVX2) */
#define BITAXON_CPU_AMX 4u    /* AMX tiles, BF16 and INT8; used only when the host allows it */
#define BITAXON_CPU_AVX512_VNNI 8u /* VNNI on 512-bit vectors, VBMI (and AVX-512) */
#define BITAXON_CPU_AVX_VNNI 16u   /* VNNI on 256-bit vectors (and AVX2) */
#define BITAXON_CPU_NEON 256u
#define BITAXON_CPU_NEON_DOTPROD 512u /* SDOT, UDOT */
#define BITAXON_CPU_NEON_I8MM 1024u   /* SMMLA, USDOT */

/* Returns:   the features of this machine, BITAXON_CPU_* bits.
 * Thread:    any-thread.  Since: 0.1 */
BITAXON_API uint64_t bitaxon_cpu_features(void);

#ifdef __cplusplus
}
#endif
#endif
