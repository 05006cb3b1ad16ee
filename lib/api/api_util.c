/* SPDX-License-Identifier: Apache-2.0 */
/* api_util.c - parameter and result structs of different ages (ABI.md: how structs grow). */
#include "api/api.h"

#include <string.h>

/* A struct_size above this is none: rubbish is not followed into other memory. */
#define MOST_BYTES 4096

bitaxon_status bxn_null(bitaxon_error *error, const char *what)
{
    return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "%s is NULL", what);
}

bitaxon_status bxn_copy_params(const void *in, void *out, size_t known, size_t least,
                               const char *name, bitaxon_error *error)
{
    memset(out, 0, known);
    uint32_t size = (uint32_t)known;
    if (in != NULL) {
        memcpy(&size, in, sizeof size);
        if (size < least)
            return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "%s: struct_size is %u, at least %zu is needed", name,
                            size, least);
        if (size > MOST_BYTES)
            return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "%s: struct_size is %u, no version has more than %d", name,
                            size, MOST_BYTES);
        const unsigned char *bytes = in;
        for (size_t i = known; i < size; i++)
            if (bytes[i] != 0)
                return bxn_fail(error, BITAXON_UNSUPPORTED, "%s: a field of a later version is set (byte %zu)", name,
                                i);
        memcpy(out, in, size < known ? size : known);
    }
    size = (uint32_t)known;
    memcpy(out, &size, sizeof size);
    return BITAXON_OK;
}

bitaxon_status bxn_copy_result(const void *in, void *out, size_t known, size_t least,
                               const char *name, bitaxon_error *error)
{
    uint32_t size;
    memcpy(&size, out, sizeof size);
    if (size < least)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "%s: struct_size is %u, at least %zu is needed", name, size,
                        least);
    memcpy(out, in, size < known ? size : known);
    memcpy(out, &size, sizeof size);
    return BITAXON_OK;
}
