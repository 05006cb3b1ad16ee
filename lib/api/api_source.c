/* SPDX-License-Identifier: Apache-2.0 */
/* api_source.c - the public functions of source.h: a file or a piece of memory as a source.
 * They check arguments; the file itself is io/source_file.c. */
#include <bitaxon/source.h>

#include "io/io.h"

#include <string.h>

bitaxon_status bitaxon_source_file_open(const char *path, bitaxon_source *out, bitaxon_error *error)
{
    if (out == NULL)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "out is NULL");
    memset(out, 0, sizeof *out);
    if (path == NULL)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "path is NULL");
    return bxn_source_file_open(NULL, path, out, error);
}

/* The reader of a source stays within its size, which is all that a pointer to the bytes
 * leaves to be checked here. */
static int32_t memory_read_at(void *user, uint64_t offset, void *buffer, size_t bytes)
{
    if (bytes > 0)
        memcpy(buffer, (const uint8_t *)user + offset, bytes);
    return 0;
}

static const void *memory_map(void *user)
{
    return user;
}

bitaxon_status bitaxon_source_memory(const void *data, size_t size, bitaxon_source *out,
                                     bitaxon_error *error)
{
    if (out == NULL)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "out is NULL");
    memset(out, 0, sizeof *out);
    if (data == NULL && size > 0)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "data is NULL, size is %zu", size);
    out->struct_size = sizeof *out;
    out->user = (void *)(uintptr_t)data;
    out->size = size;
    out->read_at = memory_read_at;
    out->map = memory_map;
    return BITAXON_OK;
}

void bitaxon_source_close(bitaxon_source *source)
{
    if (source == NULL)
        return;
    if (source->close != NULL)
        source->close(source->user);
    memset(source, 0, sizeof *source);
}
