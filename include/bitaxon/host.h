/* SPDX-License-Identifier: Apache-2.0 */
/* host.h - what a host may supply per model: memory, log, clock, threads.
 * Every member may be NULL (the C library, silence, CLOCK_MONOTONIC and the
 * library's own sleeping pool are used then). The struct is copied when a model
 * is opened; the functions and `user` must outlive the model and everything
 * made from it. */
#ifndef BITAXON_HOST_H
#define BITAXON_HOST_H

#include <bitaxon/base.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { BITAXON_LOG_DEBUG = 0, BITAXON_LOG_INFO = 1, BITAXON_LOG_WARNING = 2 };

typedef struct bitaxon_host {
    uint32_t struct_size;
    uint32_t reserved0;
    void *user;
    /* align is a power of two, at most 4096. Return NULL for out of memory.
     * Must be callable from any thread that uses the model. */
    void *(*alloc)(void *user, size_t size, size_t align);
    void (*free)(void *user, void *ptr, size_t size, size_t align);
    /* One finished line without a newline. Called only from the thread that made the call. */
    void (*log)(void *user, int32_t level, const char *line);
    /* Monotonic, nanoseconds. */
    uint64_t (*now_ns)(void *user);
    /* Run task(context, i) once for every i < count, in any order, on any
     * threads, and return after the last has finished: 0, or non-zero when it
     * could not. Tasks neither sleep nor throw, but one may spin for what another that
     * has begun is doing: a thread that runs a task must be let run. Each restores the
     * floating-point state of the thread that runs it. They need 256 KiB
     * of stack. */
    int32_t (*parallel_for)(void *user, uint32_t count,
                            void (*task)(void *context, uint32_t index), void *context);
} bitaxon_host;

#ifdef __cplusplus
}
#endif
#endif
