/* SPDX-License-Identifier: Apache-2.0 */
/* edges_fixture.h - a call made with every kind of error record: sound, absent, without a size, too short, of a later
 * version. The status must be the one wanted, and a record is written if it can be, and nothing around it. */
#ifndef EDGES_FIXTURE_H
#define EDGES_FIXTURE_H

#include "call_fixture.h"

#include <stdbool.h>

enum { SOUND, ABSENT, NO_SIZE, SHORT, LONG, KINDS };

static struct {
    unsigned char before[64];
    bitaxon_error record;
    unsigned char after[64];
} guard;

static inline bitaxon_error *arm(int kind)
{
    static const uint32_t sizes[KINDS] = { sizeof(bitaxon_error), 0, 0, sizeof(bitaxon_error) - 1, UINT32_MAX };
    memset(&guard, 0xC3, sizeof guard);
    guard.record.struct_size = sizes[kind];
    return kind == ABSENT ? NULL : &guard.record;
}

static inline void check_guard(int kind, bitaxon_status want, bitaxon_status found, const char *call)
{
    if (found != want)
        fail_msg("%s: %s, not %s (error record %d): %.200s", call, bitaxon_status_name(found),
                 bitaxon_status_name(want), kind, kind == SOUND && found < 0 ? guard.record.message : "");
    const unsigned char *bytes = (const unsigned char *)&guard, *record = (const unsigned char *)&guard.record;
    bool written = (kind == SOUND || kind == LONG) && want < 0;
    for (size_t i = 0; i < sizeof guard; i++) {
        const unsigned char *at = bytes + i;
        bool size_field = at >= record && at < record + 4;
        bool own = at >= record && at < record + sizeof(bitaxon_error);
        if (!size_field && !(written && own) && *at != 0xC3)
            fail_msg("%s: error record %d: byte %zu was written", call, kind, i);
    }
    if (!written)
        return;
    if (guard.record.code != want)
        fail_msg("%s: the record says %s", call, bitaxon_status_name(guard.record.code));
    if (memchr(guard.record.message, 0, sizeof guard.record.message) == NULL || guard.record.message[0] == '\0')
        fail_msg("%s: no message, or without an end", call);
}

/* `call` uses `e`. */
#define EDGE(want, call)                                          \
    do {                                                          \
        for (int kind_ = 0; kind_ < KINDS; kind_++) {             \
            bitaxon_error *e = arm(kind_);                        \
            check_guard(kind_, BITAXON_##want, (call), #call);    \
        }                                                         \
    } while (0)

/* An out-handle must become NULL. */
#define EDGE_OUT(want, type, call)                                \
    do {                                                          \
        for (int kind_ = 0; kind_ < KINDS; kind_++) {             \
            bitaxon_error *e = arm(kind_);                        \
            type *out = (type *)&guard;                           \
            check_guard(kind_, BITAXON_##want, (call), #call);    \
            assert_null(out);                                     \
        }                                                         \
    } while (0)

#endif
