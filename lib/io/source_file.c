/* SPDX-License-Identifier: Apache-2.0 */
/* source_file.c - a regular file as a bitaxon_source: pread for reading, one mapping of the
 * whole file made when it is first asked for. Called by bundle.c and by the public
 * bitaxon_source_file_open. Reads and map may come from any thread; the size is what fstat
 * said at opening, and a file that has shrunk since gives an error, not short data. */
#define _POSIX_C_SOURCE 200809L
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif

#include "io/io.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct source_file {
    bxn_mem *mem; /* NULL: the C library's */
    int fd;
    uint64_t size;
    _Atomic(void *) map;
} source_file;

static int32_t file_read_at(void *user, uint64_t offset, void *buffer, size_t bytes)
{
    source_file *file = user;
    uint8_t *to = buffer;
    while (bytes > 0) {
        size_t piece = bytes < (size_t)1 << 30 ? bytes : (size_t)1 << 30;
        if (offset > (uint64_t)INT64_MAX - piece)
            return EOVERFLOW;
        ssize_t got = pread(file->fd, to, piece, (off_t)offset);
        if (got < 0) {
            if (errno == EINTR)
                continue;
            return errno != 0 ? errno : EIO;
        }
        if (got == 0)
            return ENODATA;
        to += got;
        offset += (uint64_t)got;
        bytes -= (size_t)got;
    }
    return 0;
}

static const void *file_map(void *user)
{
    source_file *file = user;
    void *map = atomic_load(&file->map);
    if (map != NULL || file->size == 0 || file->size > SIZE_MAX)
        return map;
    void *made = mmap(NULL, (size_t)file->size, PROT_READ, MAP_PRIVATE, file->fd, 0);
    if (made == MAP_FAILED)
        return NULL;
    if (atomic_compare_exchange_strong(&file->map, &map, made))
        return made;
    munmap(made, (size_t)file->size); /* another thread was first */
    return map;
}

/* The account of a source that belongs to no model. */
static bitaxon_status private_account(bxn_mem *mem, bitaxon_error *error)
{
    return bxn_mem_init(mem, NULL, 0, error);
}

static void file_close(void *user)
{
    source_file *file = user;
    void *map = atomic_load(&file->map);
    if (map != NULL)
        munmap(map, (size_t)file->size);
    close(file->fd);
    if (file->mem != NULL) {
        bxn_free(file->mem, file, sizeof *file);
    } else {
        bxn_mem mem;
        private_account(&mem, NULL);
        bxn_mem_charge(&mem, bxn_alloc_cost(sizeof *file), false, "file", NULL);
        bxn_free(&mem, file, sizeof *file);
    }
}

bitaxon_status bxn_source_file_open(bxn_mem *mem, const char *path, bitaxon_source *out,
                                    bitaxon_error *error)
{
    bxn_mem private_mem;
    void *memory = NULL;
    char text[32];
    struct stat info;
    int fd = -1;

    memset(out, 0, sizeof *out);
    bitaxon_status status = private_account(&private_mem, error);
    if (status != BITAXON_OK)
        goto fail;
    /* O_NONBLOCK: opening a pipe or a device must not wait. */
    do
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    while (fd < 0 && errno == EINTR);
    if (fd < 0 || fstat(fd, &info) != 0) {
        status =
            bxn_fail(error, BITAXON_IO, "cannot open (%s): %s", bxn_io_reason(errno, text), path);
        goto fail;
    }
    if (!S_ISREG(info.st_mode) || info.st_size < 0) {
        status = bxn_fail(error, BITAXON_IO, "not a regular file: %s", path);
        goto fail;
    }
    status =
        bxn_calloc(mem != NULL ? mem : &private_mem, sizeof(source_file), "file", &memory, error);
    if (status != BITAXON_OK)
        goto fail;

    source_file *file = memory;
    file->mem = mem;
    file->fd = fd;
    file->size = (uint64_t)info.st_size;
    out->struct_size = sizeof *out;
    out->user = file;
    out->size = file->size;
    out->read_at = file_read_at;
    out->map = file_map;
    out->close = file_close;
    return BITAXON_OK;

fail:
    if (fd >= 0)
        close(fd);
    return status;
}
