/* SPDX-License-Identifier: Apache-2.0 */
/* mem.c - accounted memory. Every byte that a model and its sessions hold passes
 * here: the host's allocator (or the C library's) below, a ceiling above. Sizes are
 * charged before the allocator is asked, so that the ceiling is never exceeded. */
#include "runtime/runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define LARGE_PAGE ((size_t)2 << 20)

/* What is larger than two large pages lies in such, where the system has them for those who ask: rows of
 * matrices are pages apart, and finding small pages costs more than reading them. */
static void *default_alloc(void *user, size_t size, size_t align)
{
    (void)user;
    const bool large = size >= 2 * LARGE_PAGE;
    void *ptr = NULL;
    if (posix_memalign(&ptr, large ? LARGE_PAGE : align, size) != 0)
        return NULL;
#if defined(MADV_HUGEPAGE)
    if (large)
        (void)madvise(ptr, size / LARGE_PAGE * LARGE_PAGE, MADV_HUGEPAGE); /* no more than the size is held */
#endif
    return ptr;
}

static void default_free(void *user, void *ptr, size_t size, size_t align)
{
    (void)user;
    (void)size;
    (void)align;
    free(ptr);
}

static uint64_t default_now_ns(void *user)
{
    (void)user;
    struct timespec now;
    if (clock_gettime(CLOCK_MONOTONIC, &now) != 0)
        return 0;
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

bitaxon_status bxn_mem_init(bxn_mem *mem, const bitaxon_host *host, uint64_t limit,
                            bitaxon_error *error)
{
    memset(mem, 0, sizeof *mem);
    if (host != NULL) {
        size_t known = sizeof *host;
        if (host->struct_size < offsetof(bitaxon_host, alloc) || host->struct_size > 4096)
            return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "bitaxon_host: struct_size is %u",
                            (unsigned)host->struct_size);
        if (host->struct_size > known) {
            const unsigned char *tail = (const unsigned char *)host;
            for (size_t i = known; i < host->struct_size; i++)
                if (tail[i] != 0)
                    return bxn_fail(error, BITAXON_UNSUPPORTED,
                                    "bitaxon_host: a field of a later version is set (byte %zu)", i);
        }
        memcpy(&mem->host, host, host->struct_size < known ? host->struct_size : known);
        mem->host.struct_size = (uint32_t)known;
    }
    if ((mem->host.alloc == NULL) != (mem->host.free == NULL))
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT,
                        "bitaxon_host: alloc and free must be given together");
    if (mem->host.alloc == NULL) {
        mem->host.alloc = default_alloc;
        mem->host.free = default_free;
    }
    if (mem->host.now_ns == NULL)
        mem->host.now_ns = default_now_ns;
    mem->limit = limit;
    return BITAXON_OK;
}

static void raise_peak(bxn_mem *mem, uint64_t used)
{
    uint64_t peak = atomic_load_explicit(&mem->peak, memory_order_relaxed);
    while (used > peak && !atomic_compare_exchange_weak(&mem->peak, &peak, used))
        ;
}

bitaxon_status bxn_mem_charge(bxn_mem *mem, uint64_t bytes, bool mapped, const char *what,
                              bitaxon_error *error)
{
    _Atomic uint64_t *account = mapped ? &mem->mapped : &mem->used;
    uint64_t before = atomic_load(account), after;
    do {
        uint64_t other = atomic_load(mapped ? &mem->used : &mem->mapped), total;
        if (!bxn_add_u64(before, bytes, &after) || !bxn_add_u64(after, other, &total) ||
            (mem->limit != 0 && total > mem->limit))
            return bxn_fail(error, BITAXON_LIMIT,
                            "%s needs %llu bytes, %llu are in use and the ceiling is %llu", what,
                            (unsigned long long)bytes, (unsigned long long)(before + other),
                            (unsigned long long)mem->limit);
    } while (!atomic_compare_exchange_weak(account, &before, after));
    if (!mapped)
        raise_peak(mem, after);
    return BITAXON_OK;
}

void bxn_mem_discharge(bxn_mem *mem, uint64_t bytes, bool mapped)
{
    atomic_fetch_sub(mapped ? &mem->mapped : &mem->used, bytes);
}

bitaxon_status bxn_alloc(bxn_mem *mem, size_t size, const char *what, void **out,
                         bitaxon_error *error)
{
    *out = NULL;
    if (size > SIZE_MAX - BXN_ALIGN)
        return bxn_fail(error, BITAXON_OUT_OF_MEMORY, "out of memory: %s needs %zu bytes", what, size);
    size_t cost = (size_t)bxn_alloc_cost(size);
    bitaxon_status status = bxn_mem_charge(mem, cost, false, what, error);
    if (status != BITAXON_OK)
        return status;
    *out = mem->host.alloc(mem->host.user, cost, BXN_ALIGN);
    if (*out == NULL) {
        bxn_mem_discharge(mem, cost, false);
        return bxn_fail(error, BITAXON_OUT_OF_MEMORY, "out of memory: %s needs %zu bytes", what, size);
    }
    return BITAXON_OK;
}

bitaxon_status bxn_calloc(bxn_mem *mem, size_t size, const char *what, void **out,
                          bitaxon_error *error)
{
    bitaxon_status status = bxn_alloc(mem, size, what, out, error);
    if (status == BITAXON_OK)
        memset(*out, 0, (size_t)bxn_alloc_cost(size));
    return status;
}

void bxn_free(bxn_mem *mem, void *ptr, size_t size)
{
    if (ptr == NULL)
        return;
    size_t cost = (size_t)bxn_alloc_cost(size);
    mem->host.free(mem->host.user, ptr, cost, BXN_ALIGN);
    bxn_mem_discharge(mem, cost, false);
}

bitaxon_status bxn_realloc(bxn_mem *mem, void **ptr, size_t old_size, size_t new_size,
                           const char *what, bitaxon_error *error)
{
    void *grown;
    bitaxon_status status = bxn_alloc(mem, new_size, what, &grown, error);
    if (status != BITAXON_OK)
        return status;
    if (*ptr != NULL)
        memcpy(grown, *ptr, old_size < new_size ? old_size : new_size);
    bxn_free(mem, *ptr, old_size);
    *ptr = grown;
    return BITAXON_OK;
}

void bxn_release_pages(const void *map, uint64_t bytes)
{
    (void)madvise((void *)(uintptr_t)map, (size_t)bytes, MADV_DONTNEED); /* advice: failure changes nothing */
}

void bxn_populate_pages(const void *map, uint64_t bytes)
{
#ifdef MADV_POPULATE_READ /* Linux 5.14 */
    uintptr_t begin = (uintptr_t)map & ~(uintptr_t)4095;
    (void)madvise((void *)begin, (size_t)((uintptr_t)map + bytes - begin), MADV_POPULATE_READ);
#else
    (void)map;
    (void)bytes;
#endif
}

uint64_t bxn_now_ns(const bxn_mem *mem) { return mem->host.now_ns(mem->host.user); }

void bxn_log(const bxn_mem *mem, int32_t level, const char *format, ...)
{
    if (mem->host.log == NULL)
        return;
    char line[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (n < 0)
        return;
    bxn_sanitise(line);
    mem->host.log(mem->host.user, level, line);
}

bitaxon_status bxn_progress_step(bxn_progress *progress, uint64_t done, const char *item,
                                 bitaxon_error *error)
{
    progress->done = done < progress->total ? done : progress->total;
    if (progress->fn == NULL)
        return BITAXON_OK;
    bitaxon_progress report = { sizeof report, progress->stage, progress->done,
                                progress->total != 0 ? progress->total : 1, item };
    if (progress->fn(progress->user, &report) != 0)
        return bxn_fail(error, BITAXON_CANCELLED, "cancelled by the progress callback at %llu of %llu%s%s",
                        (unsigned long long)report.done, (unsigned long long)report.total,
                        item != NULL ? ": " : "", item != NULL ? item : "");
    return BITAXON_OK;
}
