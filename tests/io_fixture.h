/* SPDX-License-Identifier: Apache-2.0 */
/* io_fixture.h - what the tests of lib/io share: a host whose memory is counted and may fail,
 * a source that lies and fails, scratch directories, safetensors images in memory. */
#ifndef IO_FIXTURE_H
#define IO_FIXTURE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/io.h"

#define UNUSED_OK __attribute__((unused))
#define COUNT(array) (sizeof(array) / sizeof *(array))

/* ---- memory that fails ---------------------------------------------------------- */

typedef struct fault_host {
    bitaxon_host host;
    bxn_mem mem;
    uint64_t live, calls;
    uint64_t fail_at; /* number of the call that fails, from 1; 0: none */
    bool persistent;  /* and all after it */
    bool fired;
    unsigned warnings;
    char last_log[512];
} fault_host;

static UNUSED_OK void *fault_alloc(void *user, size_t size, size_t align)
{
    fault_host *fault = user;
    void *ptr = NULL;
    fault->calls++;
    /* The ceiling holds at every moment at which memory is taken. */
    if (fault->mem.limit != 0)
        assert_true(fault->mem.used + fault->mem.mapped <= fault->mem.limit);
    if (fault->fail_at != 0 &&
        (fault->calls == fault->fail_at || (fault->persistent && fault->calls > fault->fail_at))) {
        fault->fired = true;
        return NULL;
    }
    if (posix_memalign(&ptr, align, size) != 0)
        return NULL;
    memset(ptr, 0xA5, size);
    fault->live += size;
    return ptr;
}

static UNUSED_OK void fault_free(void *user, void *ptr, size_t size, size_t align)
{
    fault_host *fault = user;
    (void)align;
    assert_true(fault->live >= size);
    fault->live -= size;
    free(ptr);
}

static UNUSED_OK void fault_log(void *user, int32_t level, const char *line)
{
    fault_host *fault = user;
    if (level >= BITAXON_LOG_WARNING)
        fault->warnings++;
    snprintf(fault->last_log, sizeof fault->last_log, "%s", line);
}

static UNUSED_OK bxn_mem *fault_start(fault_host *fault, uint64_t limit)
{
    memset(fault, 0, sizeof *fault);
    fault->host.struct_size = sizeof fault->host;
    fault->host.user = fault;
    fault->host.alloc = fault_alloc;
    fault->host.free = fault_free;
    fault->host.log = fault_log;
    assert_int_equal(bxn_mem_init(&fault->mem, &fault->host, limit, NULL), BITAXON_OK);
    return &fault->mem;
}

static UNUSED_OK void fault_end(fault_host *fault)
{
    assert_int_equal(fault->live, 0);
    assert_int_equal(fault->mem.used, 0);
    assert_int_equal(fault->mem.mapped, 0);
}

/* Run body(context, mem, error) with the Nth allocation failing, N = 1, 2, ... until none
 * fails any more; each once alone and once with all later ones failing too. The body frees
 * what it made. */
static UNUSED_OK void
fault_loop(bitaxon_status (*body)(void *context, bxn_mem *mem, bitaxon_error *error), void *context)
{
    for (int persistent = 0; persistent < 2; persistent++) {
        for (uint64_t n = 1;; n++) {
            fault_host fault;
            bitaxon_error error = BITAXON_ERROR_INIT;
            bxn_mem *mem = fault_start(&fault, 0);
            fault.fail_at = n;
            fault.persistent = persistent != 0;
            bitaxon_status status = body(context, mem, &error);
            fault_end(&fault);
            if (!fault.fired) {
                assert_int_equal(status, BITAXON_OK);
                assert_true(n > 3);
                break;
            }
            assert_int_equal(status, BITAXON_OUT_OF_MEMORY);
            assert_int_equal(error.code, BITAXON_OUT_OF_MEMORY);
            assert_true(error.message[0] != '\0');
        }
    }
}

/* ---- a source that lies and fails ------------------------------------------------ */

typedef struct fault_source {
    bitaxon_source source;
    const uint8_t *data;
    size_t size; /* of the data; source.size may say something else */
    uint64_t reads;
    uint64_t fail_at; /* number of the read that fails, from 1 */
    int32_t code;
} fault_source;

static UNUSED_OK int32_t fault_read_at(void *user, uint64_t offset, void *buffer, size_t bytes)
{
    fault_source *fault = user;
    fault->reads++;
    if (fault->reads == fault->fail_at)
        return fault->code;
    if (offset > fault->size || bytes > fault->size - offset)
        return ENODATA;
    memcpy(buffer, fault->data + offset, bytes);
    return 0;
}

static UNUSED_OK const void *fault_map_null(void *user)
{
    (void)user;
    return NULL;
}

static UNUSED_OK void fault_source_start(fault_source *fault, const void *data, size_t size)
{
    memset(fault, 0, sizeof *fault);
    fault->source.struct_size = sizeof fault->source;
    fault->source.user = fault;
    fault->source.size = size;
    fault->source.read_at = fault_read_at;
    fault->source.map = fault_map_null;
    fault->data = data;
    fault->size = size;
    fault->code = EIO;
}

/* ---- scratch files ------------------------------------------------------------------ */

static UNUSED_OK unsigned entries_of(const char *path)
{
    unsigned count = 0;
    DIR *directory = opendir(path);
    assert_non_null(directory);
    const struct dirent *entry;
    while ((entry = readdir(directory)) != NULL)
        count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(directory);
    return count;
}

/* 0 where /proc is not mounted: descriptors are not counted there. */
static UNUSED_OK unsigned open_files(void)
{
    if (access("/proc/self/fd", R_OK) != 0) {
        print_message("SKIP open files: /proc is not mounted\n");
        return 0;
    }
    return entries_of("/proc/self/fd");
}

typedef struct scratch {
    char path[256];
    char name[768]; /* of the last scratch_name */
} scratch;

static UNUSED_OK void scratch_start(scratch *dir)
{
    const char *base = getenv("TMPDIR");
    snprintf(dir->path, sizeof dir->path, "%s/bitaxon-test-XXXXXX",
             base != NULL && base[0] != '\0' ? base : "/tmp");
    assert_non_null(mkdtemp(dir->path));
}

static UNUSED_OK const char *scratch_name(scratch *dir, const char *name)
{
    snprintf(dir->name, sizeof dir->name, "%s/%s", dir->path, name);
    return dir->name;
}

static UNUSED_OK void remove_tree(const char *path)
{
    struct stat info;
    assert_int_equal(lstat(path, &info), 0);
    if (S_ISDIR(info.st_mode)) {
        DIR *directory = opendir(path);
        assert_non_null(directory);
        const struct dirent *entry;
        while ((entry = readdir(directory)) != NULL) {
            char inner[1024];
            if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
                continue;
            snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name);
            remove_tree(inner);
        }
        closedir(directory);
        assert_int_equal(rmdir(path), 0);
    } else {
        assert_int_equal(unlink(path), 0);
    }
}

static UNUSED_OK void scratch_end(scratch *dir)
{
    remove_tree(dir->path);
}

static UNUSED_OK void put_file(const char *path, const void *data, size_t bytes)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

static UNUSED_OK void put_text(const char *path, const char *text)
{
    put_file(path, text, strlen(text));
}

/* The bytes of a file, 0-terminated; free() them. */
static UNUSED_OK uint8_t *get_file(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    long size = ftell(file);
    assert_true(size >= 0);
    rewind(file);
    uint8_t *data = malloc((size_t)size + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, (size_t)size, file), (size_t)size);
    fclose(file);
    data[size] = 0;
    *bytes = (size_t)size;
    return data;
}

/* ---- safetensors images -------------------------------------------------------------- */

typedef struct image {
    uint8_t *data;
    size_t size;
    size_t header; /* 8 + length of the JSON */
} image;

/* length | json | bytes 0, 1, 2, ... */
static UNUSED_OK image image_of(const char *json, size_t data_bytes)
{
    image made;
    size_t n = strlen(json);
    made.header = 8 + n;
    made.size = made.header + data_bytes;
    made.data = malloc(made.size);
    assert_non_null(made.data);
    for (int i = 0; i < 8; i++)
        made.data[i] = (uint8_t)((uint64_t)n >> 8 * i);
    memcpy(made.data + 8, json, n);
    for (size_t i = 0; i < data_bytes; i++)
        made.data[made.header + i] = (uint8_t)i;
    return made;
}

static UNUSED_OK void put_image(const char *path, const char *json, size_t data_bytes)
{
    image made = image_of(json, data_bytes);
    put_file(path, made.data, made.size);
    free(made.data);
}

/* Two files that share the tensor y and the metadata key k. */
static UNUSED_OK void put_two(scratch *dir)
{
    put_image(scratch_name(dir, "a.safetensors"),
              "{\"__metadata__\":{\"k\":\"from a\",\"only\":\"a\"},"
              "\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
              "\"y\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
              2);
    put_image(scratch_name(dir, "b.safetensors"),
              "{\"__metadata__\":{\"k\":\"from b\"},"
              "\"y\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
              "\"z\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[4,5]}}",
              5);
}

static UNUSED_OK bitaxon_status open_path(fault_host *fault, const char *path, bxn_bundle **bundle,
                                          bxn_tensors **tensors, bitaxon_error *error)
{
    assert_int_equal(bxn_bundle_open(fault_start(fault, 0), path, NULL, 0, 0, bundle, error),
                     BITAXON_OK);
    return bxn_tensors_open(*bundle, tensors, error);
}

static UNUSED_OK void close_both(fault_host *fault, bxn_bundle *bundle, bxn_tensors *tensors)
{
    bxn_tensors_free(tensors);
    bxn_bundle_free(bundle);
    fault_end(fault);
}

#endif
