/* SPDX-License-Identifier: Apache-2.0 */
/* base.h - status codes, the error record, struct rules.
 *
 * Every fallible function returns a bitaxon_status and takes, last, a nullable
 * bitaxon_error that the caller owns. On failure out-parameters are NULL or
 * untouched, and nothing is left half done. Structs given to the library start
 * with struct_size = sizeof(the struct); a zero in any other field means its
 * default. Strings are UTF-8. Handles may be freed in any order. */
#ifndef BITAXON_BASE_H
#define BITAXON_BASE_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define BITAXON_API
#elif defined(__GNUC__)
#define BITAXON_API __attribute__((visibility("default")))
#else
#define BITAXON_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef int32_t bitaxon_status;

/* X(name, value, meaning). Numbers are for ever. */
#define BITAXON_STATUS_LIST(X) \
    X(OK, 0, "done") \
    X(END, 1, "nothing more to produce; not an error") \
    X(INVALID_ARGUMENT, -1, "the caller passed something that can never be right") \
    X(OUT_OF_MEMORY, -2, "the allocator said no; the object is unchanged") \
    X(IO, -3, "reading or writing failed") \
    X(FORMAT, -4, "bytes are malformed or truncated") \
    X(UNSUPPORTED, -5, "well formed, but this version or machine cannot") \
    X(MISMATCH, -6, "the file or state belongs to another model") \
    X(BAD_STATE, -7, "the call came at the wrong moment") \
    X(CANCELLED, -8, "cancelled by the host; the object is usable") \
    X(THERMAL_STOP, -9, "the thermal policy said stop; continue later") \
    X(LIMIT, -10, "a limit set by the host or the model would be exceeded") \
    X(SYSTEM, -11, "a thread or clock primitive failed") \
    X(INTERNAL, -12, "a fault of bitaxon itself; free the object")

/* BITAXON_OK, BITAXON_END, BITAXON_INVALID_ARGUMENT, ... */
#define BITAXON_STATUS_ENUM_(name, value, text) BITAXON_##name = value,
enum { BITAXON_STATUS_LIST(BITAXON_STATUS_ENUM_) BITAXON_STATUS_LIST_END_ = -1000 };

/* What went wrong. Written only on failure; always terminated; names the file,
 * tensor, offset, expected and found values where there are any. A struct_size
 * too small to hold a message makes the library leave the record alone. */
typedef struct bitaxon_error {
    uint32_t struct_size;
    bitaxon_status code;
    char message[248];
} bitaxon_error;

#define BITAXON_ERROR_INIT { sizeof(bitaxon_error), 0, { 0 } }

/* Params:    status  any value.
 * Returns:   "OK", "IO", ...; "UNKNOWN" for a value not in the list.
 * Ownership: static.  Thread: any-thread.  Since: 0.1 */
BITAXON_API const char *bitaxon_status_name(bitaxon_status status);

/* For bindings: size in bytes that this library gives a public struct.
 * Params:    name  the type's name, for example "bitaxon_error".
 * Returns:   its size, 0 when there is no such public struct.
 * Thread:    any-thread.  Since: 0.1 */
BITAXON_API size_t bitaxon_struct_size(const char *name);

/* A stage of long work. stage is one of BITAXON_STAGE_*; done and total are in
 * the stage's own unit (bytes when loading or converting, tokens in prefill,
 * evaluation and scoring, micro-steps or examples in training); total is never 0. */
typedef struct bitaxon_progress {
    uint32_t struct_size;
    int32_t stage;
    uint64_t done;
    uint64_t total;
    const char *item; /* tensor or file at work, or NULL; valid during the call */
} bitaxon_progress;

enum {
    BITAXON_STAGE_LOAD = 1,
    BITAXON_STAGE_PREFILL = 2,
    BITAXON_STAGE_CONVERT = 3,
    BITAXON_STAGE_VERIFY = 4,
    BITAXON_STAGE_TRAIN = 5
};

/* Called from the thread that made the call, at least every 50 ms of work.
 * Returns: 0 to go on, anything else to stop with BITAXON_CANCELLED. */
typedef int32_t (*bitaxon_progress_fn)(void *user, const bitaxon_progress *progress);

#ifdef __cplusplus
}
#endif
#endif
