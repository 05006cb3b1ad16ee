/* SPDX-License-Identifier: Apache-2.0 */
/* directory.c - what is done with whole directories: listed, made durable, put in place under another
 * name, removed. Called by checkpoints of training. Only plain files and one level are removed, and
 * links are never followed. */
#define _POSIX_C_SOURCE 200809L
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif

#include "io/io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bitaxon_status fail_errno(const char *what, int code, const char *path, bitaxon_error *error)
{
    char text[32];
    return bxn_fail(error, BITAXON_IO, "%s (%s): %s", what, bxn_io_reason(code, text), path);
}

bool bxn_path_exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0;
}

bool bxn_path_identity(const char *path, bxn_identity *out)
{
    struct stat info;
    bool there = stat(path, &info) == 0;
    *out = there ? (bxn_identity){ (uint64_t)info.st_dev, (uint64_t)info.st_ino } : (bxn_identity){ 0, 0 };
    return there;
}

bitaxon_status bxn_directory_each(const char *path, bitaxon_status (*visit)(void *user, const char *name), void *user,
                                  bitaxon_error *error)
{
    bitaxon_status status = BITAXON_OK;
    DIR *directory = opendir(path);
    if (directory == NULL)
        return fail_errno("cannot list", errno, path, error);
    while (status == BITAXON_OK) {
        errno = 0;
        const struct dirent *entry = readdir(directory);
        if (entry == NULL) {
            if (errno != 0)
                status = fail_errno("cannot list", errno, path, error);
            break;
        }
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            status = visit(user, entry->d_name);
    }
    closedir(directory);
    return status;
}

bitaxon_status bxn_directory_make(const char *path, bitaxon_error *error)
{
    return mkdir(path, 0777) == 0 ? BITAXON_OK : fail_errno("cannot make the directory", errno, path, error);
}

bitaxon_status bxn_directory_sync(const char *path, bitaxon_error *error)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), code = 0;
    if (fd < 0)
        return errno == EACCES ? BITAXON_OK : fail_errno("cannot sync the directory", errno, path, error);
    if (fsync(fd) != 0)
        code = errno;
    close(fd);
    return code == 0 || code == EINVAL || code == ENOTSUP || code == EROFS
               ? BITAXON_OK
               : fail_errno("cannot sync the directory", code, path, error);
}

bitaxon_status bxn_directory_move(const char *from, const char *to, bitaxon_error *error)
{
    return rename(from, to) == 0 ? BITAXON_OK : fail_errno("cannot rename a directory to", errno, to, error);
}

typedef struct removal {
    const char *path;
    int code;
} removal;

static bitaxon_status remove_file(void *user, const char *name)
{
    removal *r = user;
    char full[4096];
    if ((size_t)snprintf(full, sizeof full, "%s/%s", r->path, name) >= sizeof full)
        r->code = ENAMETOOLONG;
    else if (unlink(full) != 0 && errno != ENOENT)
        r->code = errno;
    return BITAXON_OK;
}

bitaxon_status bxn_directory_remove(const char *path, bitaxon_error *error)
{
    removal r = { path, 0 };
    bitaxon_status status = bxn_directory_each(path, remove_file, &r, error);
    if (status == BITAXON_OK && r.code == 0 && rmdir(path) != 0)
        r.code = errno;
    return status == BITAXON_OK && r.code != 0 ? fail_errno("cannot remove the directory", r.code, path, error)
                                               : status;
}
