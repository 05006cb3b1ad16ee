/* SPDX-License-Identifier: Apache-2.0 */
/* call_fixture.h - calls that a test makes: OK(call) must succeed; FAILS(MISMATCH, "part", call) must not, with
 * that status and a message that has the part. All take the one error record `error`. */
#ifndef CALL_FIXTURE_H
#define CALL_FIXTURE_H

#include <bitaxon/base.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static bitaxon_error error = BITAXON_ERROR_INIT;

#define OK(call) call_ok((call), #call)
#define FAILS(expected, part, call) call_fails((call), BITAXON_##expected, part, #call)

static inline void call_ok(bitaxon_status status, const char *call)
{
    if (status != BITAXON_OK)
        fail_msg("%s: %s: %s", call, bitaxon_status_name(status), error.message);
}

static inline void call_fails(bitaxon_status status, bitaxon_status expected, const char *part, const char *call)
{
    if (status != expected || strstr(error.message, part) == NULL)
        fail_msg("%s: %s: '%s', not %s with '%s'", call, bitaxon_status_name(status), error.message,
                 bitaxon_status_name(expected), part);
}

#endif
