/* SPDX-License-Identifier: Apache-2.0 */
/* runtime.h - the bottom floor: error records, checked arithmetic, accounted
 * memory, the clock, the thread pool, the counter-based random generator.
 * Everything above may use it; it uses nothing of the library. */
#ifndef BXN_RUNTIME_H
#define BXN_RUNTIME_H

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <bitaxon/base.h>
#include <bitaxon/host.h>

/* ---- errors ------------------------------------------------------------- */

/* Fill *error (nullable) and return status: `return bxn_fail(error, BITAXON_FORMAT, "...", ...)`.
 * The message is cut at a character border and made valid UTF-8. */
bitaxon_status bxn_fail(bitaxon_error *error, bitaxon_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Names from files reach messages and logs: make text printable and valid UTF-8, in place; a
 * character cut by the end goes. */
void bxn_sanitise(char *text);

/* ---- checked arithmetic: true when the result fits ------------------------ */

static inline bool bxn_mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

static inline bool bxn_add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

static inline size_t bxn_round_up(size_t value, size_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

/* ---- memory --------------------------------------------------------------- */

#define BXN_ALIGN 64

/* The account of one model: host callbacks, ceiling, bytes in use. Shared by the
 * model and everything made from it; outlives them (refcounted by the model). */
typedef struct bxn_mem {
    bitaxon_host host; /* all callbacks filled in but log and parallel_for */
    uint64_t limit;    /* 0: none; covers used + mapped */
    _Atomic uint64_t used;
    _Atomic uint64_t peak;   /* of used */
    _Atomic uint64_t mapped; /* files mapped in place */
} bxn_mem;

/* host may be NULL. */
bitaxon_status bxn_mem_init(bxn_mem *mem, const bitaxon_host *host, uint64_t limit,
                            bitaxon_error *error);

/* *out = size bytes, aligned to BXN_ALIGN, not cleared; size 0 gives a unique
 * pointer too. On failure *out = NULL and OUT_OF_MEMORY or LIMIT; `what` names the
 * thing in the message. Sizes are rounded up to BXN_ALIGN in the account. */
bitaxon_status bxn_alloc(bxn_mem *mem, size_t size, const char *what, void **out,
                         bitaxon_error *error);
bitaxon_status bxn_calloc(bxn_mem *mem, size_t size, const char *what, void **out,
                          bitaxon_error *error);
/* ptr may be NULL; size as allocated. */
void bxn_free(bxn_mem *mem, void *ptr, size_t size);
/* Grow to new_size, contents kept; on failure *ptr is as it was. */
bitaxon_status bxn_realloc(bxn_mem *mem, void **ptr, size_t old_size, size_t new_size,
                           const char *what, bitaxon_error *error);

/* Charge bytes that something else holds (a mapping, a parser's tree) against the
 * ceiling without allocating them. */
bitaxon_status bxn_mem_charge(bxn_mem *mem, uint64_t bytes, bool mapped, const char *what,
                              bitaxon_error *error);
void bxn_mem_discharge(bxn_mem *mem, uint64_t bytes, bool mapped);

/* Bytes that an allocation of `size` counts for. */
static inline uint64_t bxn_alloc_cost(uint64_t size)
{
    return ((size == 0 ? 1 : size) + (BXN_ALIGN - 1)) & ~(uint64_t)(BXN_ALIGN - 1);
}

/* Pages of a file mapping that were read once and are not needed soon: let them go. Never for
 * memory that is not a file mapping of our own. */
void bxn_release_pages(const void *map, uint64_t bytes);

/* Have the pages of a mapping present (what is in the page cache is mapped, the rest read);
 * where the system cannot, nothing happens. */
void bxn_populate_pages(const void *map, uint64_t bytes);

uint64_t bxn_now_ns(const bxn_mem *mem);
void bxn_log(const bxn_mem *mem, int32_t level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* ---- progress ------------------------------------------------------------- */

typedef struct bxn_progress {
    bitaxon_progress_fn fn; /* nullable */
    void *user;
    int32_t stage;
    uint64_t done, total;
} bxn_progress;

/* Report done (clamped to total) for `item`; CANCELLED when the host says so. */
bitaxon_status bxn_progress_step(bxn_progress *progress, uint64_t done, const char *item,
                                 bitaxon_error *error);

/* ---- threads -------------------------------------------------------------- */

typedef void (*bxn_task)(void *context, uint32_t index);
typedef struct bxn_pool bxn_pool;

/* CPUs this process may use: affinity mask and cgroup quota, at least 1. */
uint32_t bxn_cpu_count(void);
/* Whole CPUs that the quota of a control group pays for, given the paths of the process's
 * membership file and of the mounted tree; 0 when unlimited or unknown. */
uint32_t bxn_quota_cpus(const char *membership, const char *mount);

/* threads >= 1 counts the caller: threads - 1 workers are started, and sleep. */
bitaxon_status bxn_pool_create(bxn_mem *mem, uint32_t threads, bxn_pool **out,
                               bitaxon_error *error);
void bxn_pool_free(bxn_pool *pool);
uint32_t bxn_pool_threads(const bxn_pool *pool);
uint64_t bxn_pool_bytes(uint32_t threads);
/* From now on wake so many threads at most, the caller included, at least 1 (for a machine that
 * is warm). Any thread; results do not depend on it. */
void bxn_pool_limit(bxn_pool *pool, uint32_t threads);

/* Run task(context, i) for i < count on the pool or the host's executor and wait. A thread
 * of the pool begins with a contiguous range of tasks, the same range whenever count is the
 * same, and ends with what others have left of theirs.
 * Tasks run with denormals flushed. When *cancel (nullable) becomes non-zero,
 * tasks not begun are skipped and CANCELLED comes back. A pool that is busy with
 * another caller's work is not waited for: the caller runs its tasks itself. */
bitaxon_status bxn_pool_run(bxn_pool *pool, uint32_t count, bxn_task task, void *context,
                            const atomic_int *cancel);

/* A moment's rest while waiting for another thread. */
void bxn_relax(void);

/* Flush-to-zero and denormals-are-zero, for code that computes outside tasks. */
uint64_t bxn_float_enter(void);
void bxn_float_leave(uint64_t saved);

/* The system's arch_prctl, or a test's: 0 or a negative error number. */
typedef long (*bxn_arch_prctl)(void *context, int code, unsigned long argument);
/* Ask for the use of AMX tiles for this process. 0 when it has it, else an error number; call NULL: the
 * system's. */
int bxn_amx_request(bxn_arch_prctl call, void *context);

/* ---- random numbers ------------------------------------------------------- */

/* Philox 4x32-10 (Salmon et al., SC 2011): four words that are a pure function of
 * (key, counter). */
void bxn_philox(uint64_t key, uint64_t counter_hi, uint64_t counter_lo, uint32_t out[4]);
/* Uniform in [0, 1) with 53 bits. */
double bxn_uniform(uint64_t key, uint64_t counter_hi, uint64_t counter_lo);

/* ---- small number formats -------------------------------------------------- */

static inline float bxn_bits_f32(uint32_t bits)
{
    union { uint32_t u; float f; } v;
    v.u = bits;
    return v.f;
}

static inline uint32_t bxn_f32_bits(float value)
{
    union { float f; uint32_t u; } v;
    v.f = value;
    return v.u;
}

static inline float bxn_bf16_f32(uint16_t bits) { return bxn_bits_f32((uint32_t)bits << 16); }
float bxn_f16_f32(uint16_t bits);
/* Round to nearest even; NaN stays NaN; overflow gives infinity. */
uint16_t bxn_f32_f16(float value);
uint16_t bxn_f32_bf16(float value);

#endif
