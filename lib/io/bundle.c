/* SPDX-License-Identifier: Apache-2.0 */
/* bundle.c - the files of one model under their names, whether they come from a directory,
 * from beside one .safetensors file, or from the caller's memory. Called by the opening of
 * models and by conversions. The names are plain (no directory part), unique and sorted;
 * files opened here are closed with the bundle, given ones are not. */
#define _POSIX_C_SOURCE 200809L
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif

#include "io/io.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static const char *const beside[] = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
};

#define INDEX_NAME "model.safetensors.index.json"

static bool has_suffix(const char *name, const char *suffix)
{
    size_t n = strlen(name), s = strlen(suffix);
    return n > s && memcmp(name + n - s, suffix, s) == 0;
}

/* Takes over an owned source: on failure it is closed. */
static bitaxon_status add_file(bxn_bundle *bundle, const char *name, const bitaxon_source *source,
                               bool owned, bitaxon_error *error)
{
    char *copy = NULL;
    bitaxon_status status = BITAXON_OK;

    if (bundle->count == BXN_MAX_FILES) {
        status = bxn_fail(error, BITAXON_LIMIT, "more than %u files in %s", BXN_MAX_FILES,
                          bundle->where);
        goto fail;
    }
    if (bundle->count == bundle->capacity) {
        uint32_t capacity = bundle->capacity != 0 ? 2 * bundle->capacity : 8;
        void *files = bundle->files;
        status = bxn_realloc(bundle->mem, &files, bundle->capacity * sizeof(bxn_file),
                             capacity * sizeof(bxn_file), "file table", error);
        if (status != BITAXON_OK)
            goto fail;
        bundle->files = files;
        bundle->capacity = capacity;
    }
    status = bxn_copy_text(bundle->mem, name, strlen(name), "file name", &copy, error);
    if (status != BITAXON_OK)
        goto fail;
    bundle->files[bundle->count++] = (bxn_file){copy, *source, owned, NULL};
    return BITAXON_OK;

fail:
    if (owned)
        source->close(source->user);
    return status;
}

/* Add the directory's file of this name; without `required` a missing one is left out. A
 * directory of that name is none. */
static bitaxon_status add_from_directory(bxn_bundle *bundle, const char *name, bool required,
                                         bitaxon_error *error)
{
    size_t prefix = strlen(bundle->where), bytes = prefix + 1 + strlen(name) + 1;
    bitaxon_source source;
    struct stat info;
    void *memory;
    bitaxon_status status = bxn_alloc(bundle->mem, bytes, "path", &memory, error);
    if (status != BITAXON_OK)
        return status;
    char *path = memory;
    const char *slash = prefix > 0 && bundle->where[prefix - 1] == '/' ? "" : "/";
    snprintf(path, bytes, "%s%s%s", bundle->where, slash, name);

    bool found = stat(path, &info) == 0;
    if (!required && !found && errno == ENOENT)
        goto done;
    if (found && S_ISDIR(info.st_mode))
        goto done;
    status = bxn_source_file_open(bundle->mem, path, &source, error);
    if (status == BITAXON_OK)
        status = add_file(bundle, name, &source, true, error);
done:
    bxn_free(bundle->mem, path, bytes);
    return status;
}

static bitaxon_status add_neighbours(bxn_bundle *bundle, bitaxon_error *error)
{
    bitaxon_status status = BITAXON_OK;
    for (size_t i = 0; i < sizeof beside / sizeof *beside && status == BITAXON_OK; i++)
        status = add_from_directory(bundle, beside[i], false, error);
    return status;
}

static bitaxon_status open_directory(bxn_bundle *bundle, bitaxon_error *error)
{
    char text[32];
    DIR *directory = NULL;
    bitaxon_status status = add_neighbours(bundle, error);
    if (status != BITAXON_OK || (bundle->flags & BXN_BUNDLE_NO_WEIGHTS) != 0)
        goto done;
    status = add_from_directory(bundle, INDEX_NAME, false, error);
    if (status != BITAXON_OK)
        goto done;

    directory = opendir(bundle->where);
    if (directory == NULL) {
        status = bxn_fail(error, BITAXON_IO, "cannot list (%s): %s", bxn_io_reason(errno, text),
                          bundle->where);
        goto done;
    }
    while (status == BITAXON_OK) {
        errno = 0;
        const struct dirent *entry = readdir(directory);
        if (entry == NULL) {
            if (errno != 0)
                status = bxn_fail(error, BITAXON_IO, "cannot list (%s): %s",
                                  bxn_io_reason(errno, text), bundle->where);
            break;
        }
        if (entry->d_name[0] != '.' && has_suffix(entry->d_name, ".safetensors"))
            status = add_from_directory(bundle, entry->d_name, true, error);
    }
done:
    if (directory != NULL)
        closedir(directory);
    return status;
}

static bitaxon_status open_single(bxn_bundle *bundle, const char *name, bitaxon_error *error)
{
    bitaxon_status status = add_neighbours(bundle, error);
    if (status == BITAXON_OK && (bundle->flags & BXN_BUNDLE_NO_WEIGHTS) == 0)
        status = add_from_directory(bundle, name, true, error);
    return status;
}

static bitaxon_status open_given(bxn_bundle *bundle, const bitaxon_file *files, uint32_t count,
                                 bitaxon_error *error)
{
    bitaxon_status status = BITAXON_OK;
    for (uint32_t i = 0; i < count && status == BITAXON_OK; i++) {
        const char *name = files[i].name;
        const bitaxon_source *given = files[i].source;
        bitaxon_source source = {0};
        if (name == NULL || given == NULL)
            return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "file %u: %s is NULL", i,
                            name == NULL ? "name" : "source");
        size_t length = strnlen(name, BXN_MAX_NAME);
        if (length == 0 || length == BXN_MAX_NAME || strchr(name, '/') != NULL ||
            strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
            return bxn_fail(error, BITAXON_INVALID_ARGUMENT,
                            "file %u: not a plain file name of 1 to %u bytes: '%.64s'", i,
                            BXN_MAX_NAME - 1, name);
        if (given->struct_size < offsetof(bitaxon_source, map) || given->struct_size > 4096)
            return bxn_fail(error, BITAXON_INVALID_ARGUMENT,
                            "%.64s: bitaxon_source: struct_size is %u", name,
                            (unsigned)given->struct_size);
        if (given->read_at == NULL)
            return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "%.64s: read_at is NULL", name);
        for (size_t at = sizeof source; at < given->struct_size; at++)
            if (((const unsigned char *)given)[at] != 0)
                return bxn_fail(error, BITAXON_UNSUPPORTED,
                                "%.64s: a field of a later bitaxon_source is set (byte %zu)", name,
                                at);
        memcpy(&source, given,
               given->struct_size < sizeof source ? given->struct_size : sizeof source);
        source.struct_size = sizeof source;
        bool weights = has_suffix(name, ".safetensors") || strcmp(name, INDEX_NAME) == 0;
        if (!weights || (bundle->flags & BXN_BUNDLE_NO_WEIGHTS) == 0)
            status = add_file(bundle, name, &source, false, error);
    }
    return status;
}

static int by_name(const void *left, const void *right)
{
    return strcmp(((const bxn_file *)left)->name, ((const bxn_file *)right)->name);
}

bitaxon_status bxn_bundle_open(bxn_mem *mem, const char *path, const bitaxon_file *files,
                               uint32_t file_count, uint32_t flags, bxn_bundle **out,
                               bitaxon_error *error)
{
    bxn_bundle *bundle = NULL;
    const char *where = "(memory)", *name = NULL;
    size_t where_bytes = strlen(where);
    struct stat info;
    char text[32];
    void *memory;

    *out = NULL;
    if ((path != NULL) == (files != NULL))
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "%s",
                        path != NULL ? "both a path and files are given"
                                     : "neither a path nor files are given");
    if (path != NULL) {
        if (stat(path, &info) != 0)
            return bxn_fail(error, BITAXON_IO, "cannot open (%s): %s", bxn_io_reason(errno, text),
                            path);
        where = path;
        where_bytes = strlen(path);
        if (!S_ISDIR(info.st_mode)) {
            if (!S_ISREG(info.st_mode) || !has_suffix(path, ".safetensors"))
                return bxn_fail(error, BITAXON_INVALID_ARGUMENT,
                                "neither a directory nor a .safetensors file: %s", path);
            const char *slash = strrchr(path, '/');
            name = slash != NULL ? slash + 1 : path;
            if (slash == NULL)
                where = ".";
            where_bytes = slash == NULL || slash == path ? 1 : (size_t)(slash - path);
        }
    }

    bitaxon_status status = bxn_calloc(mem, sizeof *bundle, "file table", &memory, error);
    if (status != BITAXON_OK)
        return status;
    bundle = memory;
    bundle->mem = mem;
    bundle->flags = flags;
    status = bxn_copy_text(mem, where, where_bytes, "path", &bundle->where, error);
    if (status != BITAXON_OK)
        goto fail;
    if (path == NULL)
        status = open_given(bundle, files, file_count, error);
    else if (name == NULL)
        status = open_directory(bundle, error);
    else
        status = open_single(bundle, name, error);
    if (status != BITAXON_OK)
        goto fail;

    bxn_sort(bundle->files, bundle->count, sizeof(bxn_file), by_name);
    for (uint32_t i = 1; i < bundle->count; i++)
        if (strcmp(bundle->files[i - 1].name, bundle->files[i].name) == 0) {
            status = bxn_fail(error, BITAXON_INVALID_ARGUMENT, "the file %.64s is given twice",
                              bundle->files[i].name);
            goto fail;
        }
    *out = bundle;
    return BITAXON_OK;

fail:
    bxn_bundle_free(bundle);
    return status;
}

void bxn_bundle_free(bxn_bundle *bundle)
{
    if (bundle == NULL)
        return;
    bxn_mem *mem = bundle->mem;
    for (uint32_t i = 0; i < bundle->count; i++) {
        bxn_file *file = &bundle->files[i];
        if (file->map != NULL)
            bxn_mem_discharge(mem, file->source.size, true);
        if (file->owned)
            file->source.close(file->source.user);
        bxn_free(mem, file->name, strlen(file->name) + 1);
    }
    bxn_free(mem, bundle->files, bundle->capacity * sizeof(bxn_file));
    if (bundle->where != NULL)
        bxn_free(mem, bundle->where, strlen(bundle->where) + 1);
    bxn_free(mem, bundle, sizeof *bundle);
}

bxn_file *bxn_bundle_find(bxn_bundle *bundle, const char *name)
{
    uint32_t low = 0, high = bundle->count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = strcmp(name, bundle->files[middle].name);
        if (order == 0)
            return &bundle->files[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

bitaxon_status bxn_file_map(bxn_bundle *bundle, bxn_file *file, bitaxon_error *error)
{
    const bitaxon_source *source = &file->source;
    if (file->map != NULL || source->map == NULL || source->size == 0 || source->size > SIZE_MAX ||
        (bundle->flags & BXN_BUNDLE_NO_MMAP) != 0)
        return BITAXON_OK;
    bitaxon_status status = bxn_mem_charge(bundle->mem, source->size, true, file->name, error);
    if (status != BITAXON_OK)
        return status;
    file->map = source->map(source->user);
    if (file->map == NULL)
        bxn_mem_discharge(bundle->mem, source->size, true);
    return BITAXON_OK;
}

bitaxon_status bxn_file_read(const bxn_bundle *bundle, const bxn_file *file, uint64_t offset,
                             void *buffer, size_t bytes, bitaxon_error *error)
{
    char text[32];
    uint64_t end;
    (void)bundle;
    if (!bxn_add_u64(offset, bytes, &end) || end > file->source.size)
        return bxn_fail(error, BITAXON_FORMAT,
                        "%.96s: %zu bytes at offset %llu are beyond the end of the file "
                        "(%llu bytes)",
                        file->name, bytes, (unsigned long long)offset,
                        (unsigned long long)file->source.size);
    if (bytes == 0)
        return BITAXON_OK;
    if (file->map != NULL) {
        memcpy(buffer, file->map + offset, bytes);
        return BITAXON_OK;
    }
    int32_t code = file->source.read_at(file->source.user, offset, buffer, bytes);
    if (code != 0)
        return bxn_fail(error, BITAXON_IO, "%.96s: reading %zu bytes at offset %llu: %s",
                        file->name, bytes, (unsigned long long)offset, bxn_io_reason(code, text));
    return BITAXON_OK;
}

bitaxon_status bxn_file_text(const bxn_bundle *bundle, const bxn_file *file, uint64_t max_bytes,
                             char **text, size_t *bytes, bitaxon_error *error)
{
    void *memory;
    uint64_t size = file->source.size;
    *text = NULL;
    *bytes = 0;
    if (size > max_bytes || size >= SIZE_MAX)
        return bxn_fail(error, BITAXON_LIMIT, "%.96s: %llu bytes, the limit is %llu", file->name,
                        (unsigned long long)size, (unsigned long long)max_bytes);
    bitaxon_status status = bxn_alloc(bundle->mem, (size_t)size + 1, file->name, &memory, error);
    if (status != BITAXON_OK)
        return status;
    status = bxn_file_read(bundle, file, 0, memory, (size_t)size, error);
    if (status != BITAXON_OK) {
        bxn_free(bundle->mem, memory, (size_t)size + 1);
        return status;
    }
    *text = memory;
    *bytes = (size_t)size;
    (*text)[size] = '\0';
    return BITAXON_OK;
}
