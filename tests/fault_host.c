/* SPDX-License-Identifier: Apache-2.0 */
/* fault_host.c - the counting and refusing allocator of the fault tests, and counts of what
 * a process may leak besides memory. Used by the tests of this folder alone. */
#include "fault_host.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* In front of each block, `align` bytes at least. */
typedef struct block {
    uint64_t magic, size, align;
} block;

#define MAGIC 0x6261786f6e6d656dULL

static size_t front(size_t align) { return align > sizeof(block) ? align : sizeof(block); }

static void *fault_alloc(void *user, size_t size, size_t align)
{
    fault_host *f = user;
    uint64_t n = atomic_fetch_add(&f->allocations, 1) + 1;
    if (f->fail_at != 0 && (f->persistent ? n >= f->fail_at : n == f->fail_at)) {
        atomic_fetch_add(&f->refused, 1);
        return NULL;
    }
    void *memory;
    if (size > SIZE_MAX / 2 || posix_memalign(&memory, align, front(align) + size) != 0)
        return NULL;
    unsigned char *bytes = (unsigned char *)memory + front(align);
    block b = { MAGIC, size, align };
    memcpy(bytes - sizeof b, &b, sizeof b);
    if (size <= (size_t)1 << 24)
        memset(bytes, 0xA5, size);
    int64_t now = atomic_fetch_add(&f->bytes, (int64_t)size) + (int64_t)size;
    int64_t peak = atomic_load(&f->peak);
    while (now > peak && !atomic_compare_exchange_weak(&f->peak, &peak, now))
        ;
    if (f->ceiling != 0 && now > f->ceiling)
        atomic_fetch_add(&f->above_ceiling, 1);
    atomic_fetch_add(&f->blocks, 1);
    return bytes;
}

static void fault_free(void *user, void *ptr, size_t size, size_t align)
{
    fault_host *f = user;
    block b;
    memcpy(&b, (unsigned char *)ptr - sizeof b, sizeof b);
    if (b.magic != MAGIC || b.size != size || b.align != align) {
        atomic_fetch_add(&f->wrong_frees, 1);
        return;
    }
    memset((unsigned char *)ptr - sizeof b, 0, sizeof b);
    if (size <= (size_t)1 << 24)
        memset(ptr, 0x5A, size);
    atomic_fetch_sub(&f->bytes, (int64_t)size);
    atomic_fetch_sub(&f->blocks, 1);
    free((unsigned char *)ptr - front(align));
}

static void fault_log(void *user, int32_t level, const char *line)
{
    fault_host *f = user;
    (void)level;
    if (line != NULL && strchr(line, '\n') == NULL)
        atomic_fetch_add(&f->log_lines, 1);
}

void fault_host_init(fault_host *fault)
{
    memset(fault, 0, sizeof *fault);
    fault->host = (bitaxon_host){ .struct_size = sizeof fault->host, .user = fault, .alloc = fault_alloc,
                                  .free = fault_free, .log = fault_log };
}

void fault_host_arm(fault_host *fault, uint64_t fail_at, bool persistent)
{
    fault->fail_at = fail_at;
    fault->persistent = persistent;
    atomic_store(&fault->allocations, 0);
    atomic_store(&fault->refused, 0);
}

void fault_host_disarm(fault_host *fault) { fault->fail_at = 0; }

const char *fault_host_balance(const fault_host *fault)
{
    if (atomic_load(&fault->wrong_frees) != 0)
        return "a block was freed with another size or alignment";
    if (atomic_load(&fault->blocks) != 0 || atomic_load(&fault->bytes) != 0)
        return "blocks are left alive";
    return "";
}

static int count_entries(const char *path)
{
    DIR *directory = opendir(path);
    int count = 0;
    if (directory == NULL)
        return -1;
    for (const struct dirent *entry; (entry = readdir(directory)) != NULL;)
        count += entry->d_name[0] != '.';
    closedir(directory);
    return count - 1; /* not the listing itself */
}

int count_descriptors(void) { return count_entries("/proc/self/fd"); }

int count_threads(void)
{
    int count = count_entries("/proc/self/task");
    for (int i = 0; i < 100; i++) { /* a joined thread may stand in the list for a moment */
        nanosleep(&(struct timespec){ 0, 200000 }, NULL);
        int again = count_entries("/proc/self/task");
        if (again >= count)
            break;
        count = again;
    }
    return count;
}
