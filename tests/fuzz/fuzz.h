/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz.h - what the fuzz targets share. A target is one function, the same for libFuzzer and
 * for replay.c; what must never happen ends the process through FUZZ_CHECK. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <bitaxon/bitaxon.h>

#include "fault_host.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FUZZ_CHECK(condition)                                                            \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);    \
            abort();                                                                     \
        }                                                                                \
    } while (0)

/* A status, and a message whenever it is a failure. */
#define FUZZ_STATUS(status, error)                                                                                     \
    FUZZ_CHECK((status) >= 0 || ((error)->code == (status) && (error)->message[0] != '\0'))

#endif
