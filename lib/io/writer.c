/* SPDX-License-Identifier: Apache-2.0 */
/* writer.c - files that appear whole or not at all. Bytes go to PATH.tmp-PID-N in the same
 * directory; commit syncs it, renames it over PATH and syncs the directory. Whatever fails,
 * the temporary file is removed and PATH is as it was. A killed process may leave the
 * temporary file behind, never a partial PATH. Used by every part that saves something. */
#define _POSIX_C_SOURCE 200809L
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif

#include "io/io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUFFER_BYTES ((size_t)256 << 10)
#define TEMP_SUFFIX_BYTES 48 /* ".tmp-PID-N" */

struct bxn_writer {
    bxn_mem *mem;
    char *path;
    char *temp; /* strlen(path) + TEMP_SUFFIX_BYTES */
    uint8_t *buffer;
    size_t buffered;
    uint64_t size; /* buffered bytes included */
    int fd;
    bool failed;
};

static bitaxon_status fail_errno(const bxn_writer *writer, const char *what, int code,
                                 bitaxon_error *error)
{
    char text[32];
    return bxn_fail(error, BITAXON_IO, "%s (%s) at offset %llu: %s", what,
                    bxn_io_reason(code, text), (unsigned long long)writer->size, writer->path);
}

/* Close and free; the temporary file stays as it is. */
static void release(bxn_writer *writer)
{
    if (writer->fd >= 0)
        close(writer->fd);
    bxn_free(writer->mem, writer->buffer, BUFFER_BYTES);
    if (writer->path != NULL) {
        size_t bytes = strlen(writer->path) + 1;
        bxn_free(writer->mem, writer->temp, bytes + TEMP_SUFFIX_BYTES);
        bxn_free(writer->mem, writer->path, bytes);
    }
    bxn_free(writer->mem, writer, sizeof *writer);
}

bitaxon_status bxn_writer_open(bxn_mem *mem, const char *path, bxn_writer **out,
                               bitaxon_error *error)
{
    void *memory;
    *out = NULL;
    bitaxon_status status = bxn_calloc(mem, sizeof(bxn_writer), "writer", &memory, error);
    if (status != BITAXON_OK)
        return status;
    bxn_writer *writer = memory;
    writer->mem = mem;
    writer->fd = -1;
    size_t length = strlen(path);
    if (length == 0) {
        status = bxn_fail(error, BITAXON_IO, "the path to write to is empty");
        goto fail;
    }
    status = bxn_copy_text(mem, path, length, "path", &writer->path, error);
    if (status != BITAXON_OK)
        goto fail;
    status = bxn_alloc(mem, length + 1 + TEMP_SUFFIX_BYTES, "path", &memory, error);
    if (status != BITAXON_OK)
        goto fail;
    writer->temp = memory;
    status = bxn_alloc(mem, BUFFER_BYTES, "write buffer", &memory, error);
    if (status != BITAXON_OK)
        goto fail;
    writer->buffer = memory;

    for (unsigned n = 0; writer->fd < 0 && n < 10000; n++) {
        snprintf(writer->temp, length + 1 + TEMP_SUFFIX_BYTES, "%s.tmp-%lld-%u", path,
                 (long long)getpid(), n);
        writer->fd = open(writer->temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY, 0666);
        if (writer->fd < 0 && errno != EEXIST && errno != EINTR)
            break;
    }
    if (writer->fd < 0) {
        status = fail_errno(writer, "cannot create a file beside", errno, error);
        goto fail;
    }
    *out = writer;
    return BITAXON_OK;

fail:
    release(writer);
    return status;
}

/* Write at an offset, or at the end when offset is UINT64_MAX. */
static bitaxon_status write_all(bxn_writer *writer, const uint8_t *data, size_t bytes,
                                uint64_t offset, bitaxon_error *error)
{
    while (bytes > 0) {
        size_t piece = bytes < (size_t)1 << 30 ? bytes : (size_t)1 << 30;
        ssize_t put = offset == UINT64_MAX ? write(writer->fd, data, piece)
                                           : pwrite(writer->fd, data, piece, (off_t)offset);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0) {
            writer->failed = true;
            return fail_errno(writer, "cannot write", put < 0 ? errno : ENOSPC, error);
        }
        data += put;
        bytes -= (size_t)put;
        if (offset != UINT64_MAX)
            offset += (uint64_t)put;
    }
    return BITAXON_OK;
}

static bitaxon_status flush(bxn_writer *writer, bitaxon_error *error)
{
    size_t bytes = writer->buffered;
    writer->buffered = 0;
    return write_all(writer, writer->buffer, bytes, UINT64_MAX, error);
}

static bitaxon_status refuse_failed(const bxn_writer *writer, bitaxon_error *error)
{
    return bxn_fail(error, BITAXON_IO, "an earlier write failed: %s", writer->path);
}

bitaxon_status bxn_writer_put(bxn_writer *writer, const void *data, size_t bytes,
                              bitaxon_error *error)
{
    const uint8_t *from = data;
    bitaxon_status status = BITAXON_OK;
    if (writer->failed)
        return refuse_failed(writer, error);
    while (bytes > 0 && status == BITAXON_OK) {
        size_t piece = bytes;
        if (writer->buffered == 0 && bytes >= BUFFER_BYTES) {
            status = write_all(writer, from, piece, UINT64_MAX, error);
        } else {
            if (piece > BUFFER_BYTES - writer->buffered)
                piece = BUFFER_BYTES - writer->buffered;
            memcpy(writer->buffer + writer->buffered, from, piece);
            writer->buffered += piece;
            if (writer->buffered == BUFFER_BYTES)
                status = flush(writer, error);
        }
        writer->size += piece;
        from += piece;
        bytes -= piece;
    }
    return status;
}

bitaxon_status bxn_writer_patch(bxn_writer *writer, uint64_t offset, const void *data, size_t bytes,
                                bitaxon_error *error)
{
    uint64_t end;
    if (writer->failed)
        return refuse_failed(writer, error);
    if (!bxn_add_u64(offset, bytes, &end) || end > writer->size)
        return bxn_fail(error, BITAXON_INTERNAL, "patch of %zu bytes at %llu of %llu: %s", bytes,
                        (unsigned long long)offset, (unsigned long long)writer->size, writer->path);
    bitaxon_status status = flush(writer, error);
    if (status == BITAXON_OK)
        status = write_all(writer, data, bytes, offset, error);
    return status;
}

uint64_t bxn_writer_size(const bxn_writer *writer)
{
    return writer->size;
}

/* Make the rename durable. A directory that may be written but not read cannot be synced,
 * and some file systems know no such sync: neither is a failure. */
static bitaxon_status sync_directory(bxn_writer *writer, bitaxon_error *error)
{
    char *slash = strrchr(writer->path, '/');
    const char *directory = slash == NULL ? "." : slash == writer->path ? "/" : writer->temp;
    if (directory == writer->temp) { /* no longer needed for its name */
        size_t length = (size_t)(slash - writer->path);
        memcpy(writer->temp, writer->path, length);
        writer->temp[length] = '\0';
    }
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC), code = 0;
    if (fd < 0)
        return errno == EACCES ? BITAXON_OK
                               : fail_errno(writer, "cannot sync the directory of", errno, error);
    if (fsync(fd) != 0)
        code = errno;
    close(fd);
    if (code != 0 && code != EINVAL && code != ENOTSUP)
        return fail_errno(writer, "cannot sync the directory of", code, error);
    return BITAXON_OK;
}

bitaxon_status bxn_writer_commit(bxn_writer *writer, bitaxon_error *error)
{
    bitaxon_status status = writer->failed ? refuse_failed(writer, error) : flush(writer, error);
    if (status != BITAXON_OK)
        goto fail;
    int result;
    do
        result = fsync(writer->fd);
    while (result != 0 && errno == EINTR);
    if (result != 0) {
        status = fail_errno(writer, "cannot sync", errno, error);
        goto fail;
    }
    result = close(writer->fd);
    writer->fd = -1;
    if (result != 0 && errno != EINTR) {
        status = fail_errno(writer, "cannot close", errno, error);
        goto fail;
    }
    if (rename(writer->temp, writer->path) != 0) {
        status = fail_errno(writer, "cannot rename over", errno, error);
        goto fail;
    }
    status = sync_directory(writer, error);
    release(writer);
    return status;

fail:
    bxn_writer_abort(writer);
    return status;
}

void bxn_writer_abort(bxn_writer *writer)
{
    if (writer == NULL)
        return;
    unlink(writer->temp);
    release(writer);
}

bitaxon_status bxn_make_directory(const char *path, bitaxon_error *error)
{
    char part[4096], text[32];
    struct stat info;
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof part)
        return bxn_fail(error, BITAXON_IO, "cannot make a directory (%s): %s",
                        bxn_io_reason(length == 0 ? ENOENT : ENAMETOOLONG, text), path);
    memcpy(part, path, length + 1);
    for (size_t i = 1; i <= length; i++) {
        if (part[i] != '/' && part[i] != '\0')
            continue;
        part[i] = '\0';
        if (mkdir(part, 0777) != 0) {
            int code = errno;
            if (stat(part, &info) != 0 || !S_ISDIR(info.st_mode))
                return bxn_fail(error, BITAXON_IO, "cannot make the directory (%s): %s",
                                bxn_io_reason(code, text), part);
        }
        part[i] = path[i];
    }
    return BITAXON_OK;
}

bitaxon_status bxn_copy_file(bxn_mem *mem, const bxn_bundle *bundle, const bxn_file *file,
                             const char *path, bitaxon_error *error)
{
    bxn_writer *writer = NULL;
    void *buffer = NULL;
    bitaxon_status status = bxn_alloc(mem, BUFFER_BYTES, "copy buffer", &buffer, error);
    if (status != BITAXON_OK)
        return status;
    status = bxn_writer_open(mem, path, &writer, error);
    for (uint64_t at = 0; status == BITAXON_OK && at < file->source.size;) {
        uint64_t left = file->source.size - at;
        size_t piece = left < BUFFER_BYTES ? (size_t)left : BUFFER_BYTES;
        status = bxn_file_read(bundle, file, at, buffer, piece, error);
        if (status == BITAXON_OK)
            status = bxn_writer_put(writer, buffer, piece, error);
        at += piece;
    }
    if (status == BITAXON_OK)
        status = bxn_writer_commit(writer, error);
    else
        bxn_writer_abort(writer);
    bxn_free(mem, buffer, BUFFER_BYTES);
    return status;
}
