/* SPDX-License-Identifier: Apache-2.0 */
/* io_util.c - what the files of this floor share: texts of system errors, copies of strings,
 * and a sort for tables whose order a hostile file may choose (the C library's qsort may take
 * memory past the account and may be quadratic; this one neither). */
#define _POSIX_C_SOURCE 200809L

#include "io/io.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

const char *bxn_io_reason(int32_t code, char buffer[32])
{
    static const struct {
        int32_t code;
        const char *text;
    } table[] = {
        {ENOENT, "no such file or directory"},
        {EACCES, "permission denied"},
        {EPERM, "operation not permitted"},
        {EISDIR, "is a directory"},
        {ENOTDIR, "not a directory"},
        {EEXIST, "already exists"},
        {ENOTEMPTY, "directory not empty"},
        {ENAMETOOLONG, "name too long"},
        {ELOOP, "too many symbolic links"},
        {EMFILE, "too many open files in this process"},
        {ENFILE, "too many open files in the system"},
        {ENOSPC, "no space left on the device"},
        {EDQUOT, "disk quota exceeded"},
        {EFBIG, "file too large"},
        {EROFS, "read-only file system"},
        {EIO, "input/output error"},
        {ENODATA, "the file ended before its size"},
        {ENOMEM, "out of memory"},
        {EINVAL, "invalid argument"},
        {EBADF, "bad file descriptor"},
        {EBUSY, "device or resource busy"},
        {ETXTBSY, "file busy"},
        {EXDEV, "on another file system"},
        {EOVERFLOW, "value too large"},
        {ESTALE, "stale file handle"},
        {ETIMEDOUT, "timed out"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (table[i].code == code)
            return table[i].text;
    snprintf(buffer, 32, "error %d", (int)code);
    return buffer;
}

bitaxon_status bxn_copy_text(bxn_mem *mem, const char *text, size_t bytes, const char *what,
                             char **out, bitaxon_error *error)
{
    void *copy;
    *out = NULL;
    bitaxon_status status = bxn_alloc(mem, bytes + 1, what, &copy, error);
    if (status == BITAXON_OK) {
        *out = copy;
        memcpy(copy, text, bytes);
        (*out)[bytes] = '\0';
    }
    return status;
}

static void sift_down(uint8_t *items, uint64_t root, uint64_t count, size_t size,
                      int (*compare)(const void *left, const void *right))
{
    uint8_t moved[256];
    memcpy(moved, items + root * size, size);
    for (;;) {
        uint64_t child = 2 * root + 1;
        if (child >= count)
            break;
        if (child + 1 < count && compare(items + child * size, items + (child + 1) * size) < 0)
            child++;
        if (compare(moved, items + child * size) >= 0)
            break;
        memcpy(items + root * size, items + child * size, size);
        root = child;
    }
    memcpy(items + root * size, moved, size);
}

void bxn_sort(void *items, uint64_t count, size_t size,
              int (*compare)(const void *left, const void *right))
{
    uint8_t *bytes = items, swap[256];
    for (uint64_t i = count / 2; i > 0; i--)
        sift_down(bytes, i - 1, count, size, compare);
    for (uint64_t last = count; last > 1; last--) {
        memcpy(swap, bytes, size);
        memcpy(bytes, bytes + (last - 1) * size, size);
        memcpy(bytes + (last - 1) * size, swap, size);
        sift_down(bytes, 0, last - 1, size, compare);
    }
}
