/* SPDX-License-Identifier: Apache-2.0 */
/* source.h - where bytes come from when they do not come from a path: memory,
 * an archive, an encrypted store, a test that injects faults. */
#ifndef BITAXON_SOURCE_H
#define BITAXON_SOURCE_H

#include <bitaxon/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Copied by value when a model is opened; `user` and the functions must outlive
 * the model. The library never calls close on a source that it did not open. */
typedef struct bitaxon_source {
    uint32_t struct_size;
    uint32_t reserved0;
    void *user;
    uint64_t size; /* bytes in all */
    /* Fill buffer with exactly `bytes` bytes from `offset`; 0, or an error
     * number (errno values are understood). Callable from any thread. */
    int32_t (*read_at)(void *user, uint64_t offset, void *buffer, size_t bytes);
    /* Nullable. The address of byte 0 of a read-only mapping of the whole
     * source that stays valid until close; NULL when it cannot be mapped. */
    const void *(*map)(void *user);
    void (*close)(void *user); /* nullable */
} bitaxon_source;

/* A source with a name, as in a directory: "config.json", "model.safetensors". */
typedef struct bitaxon_file {
    const char *name;
    const bitaxon_source *source;
} bitaxon_file;

/* Open a regular file for reading.
 * Params:    path  UTF-8.  out  filled on success.
 * Returns:   OK, INVALID_ARGUMENT, IO (no such file, not a regular file), OUT_OF_MEMORY.
 * Ownership: the caller closes it with bitaxon_source_close after the last model using it.
 * Thread:    any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_source_file_open(const char *path, bitaxon_source *out,
                                                    bitaxon_error *error);

/* Present bytes that the caller keeps alive as a source (mapped in place).
 * Params:    data, size  borrowed until the last model using it is gone.
 * Returns:   OK, INVALID_ARGUMENT.  Thread: any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_source_memory(const void *data, size_t size, bitaxon_source *out,
                                                 bitaxon_error *error);

/* Call the source's close function, if any, and clear the struct. NULL is fine.
 * Thread:    any-thread.  Since: 0.1 */
BITAXON_API void bitaxon_source_close(bitaxon_source *source);

#ifdef __cplusplus
}
#endif
#endif
