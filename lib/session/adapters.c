/* SPDX-License-Identifier: Apache-2.0 */
/* adapters.c - adapters on a session, and the rule that keeps states apart: what a cache holds is bound to
 * the adapters it was read with, by identity and weight. Called by the API and before every read. */
#include "session/bxn_session.h"

#include <stdio.h>
#include <string.h>

bool bxn_mark_equal(const bxn_adapter_mark *a, const bxn_adapter_mark *b)
{
    return memcmp(a, b, sizeof *a) == 0; /* no padding, and what is not used is zero */
}

_Static_assert(sizeof(bxn_adapter_mark) == 4 + BXN_ADAPTERS * 20, "marks are compared byte by byte");

void bxn_mark_text(const bxn_adapter_mark *mark, char text[BXN_MARK_TEXT])
{
    size_t used = (size_t)snprintf(text, BXN_MARK_TEXT, "%s", mark->count == 0 ? "no adapter" : "");
    for (uint32_t i = 0; i < mark->count && used + 22 < BXN_MARK_TEXT; i++) {
        const uint8_t *id = mark->ids[i];
        used += (size_t)snprintf(text + used, BXN_MARK_TEXT - used, "%s%02x%02x%02x%02x",
                                 i != 0             ? ", "
                                 : mark->count == 1 ? "adapter "
                                                    : "adapters ",
                                 id[0], id[1], id[2], id[3]);
        if (mark->weights[i] < 1 || mark->weights[i] > 1)
            used += (size_t)snprintf(text + used, BXN_MARK_TEXT - used, " * %.3g", (double)mark->weights[i]);
    }
}

static bitaxon_status mismatch(const bxn_cache *cache, const bxn_adapter_mark *mark, const char *who,
                               bitaxon_error *error)
{
    char had[BXN_MARK_TEXT], has[BXN_MARK_TEXT];
    bxn_mark_text(&cache->mark, had);
    bxn_mark_text(mark, has);
    return bxn_fail(error, BITAXON_MISMATCH,
                    "the cache was read with %s, %s %s: put those on, or reset the cache, or take another", had, who,
                    has);
}

bitaxon_status bxn_session_check(const bxn_session *session, bitaxon_error *error)
{
    const bxn_cache *cache = session->cache;
    if (cache->length == 0 || bxn_mark_equal(&cache->mark, &session->mark))
        return BITAXON_OK;
    return mismatch(cache, &session->mark, "the session has", error);
}

bitaxon_status bxn_session_adapt(bxn_session *session, const bxn_adapter *const *adapters, const float *weights,
                                 uint32_t count, bitaxon_error *error)
{
    bxn_adapters in_force = { .count = count };
    bxn_adapter_mark mark;
    uint32_t rank = 0;
    memset(&mark, 0, sizeof mark);
    mark.count = count;
    for (uint32_t i = 0; i < count; i++) {
        in_force.loras[i] = adapters[i]->loras;
        in_force.weights[i] = weights[i];
        mark.weights[i] = weights[i];
        memcpy(mark.ids[i], adapters[i]->id, sizeof mark.ids[i]);
        rank += adapters[i]->rank;
    }
    const bxn_cache *cache = session->cache;
    if (cache->length != 0 && !bxn_mark_equal(&cache->mark, &mark))
        return mismatch(cache, &mark, "not with", error);
    bitaxon_status status = bxn_session_room(session, cache->max_tokens, rank, error);
    if (status != BITAXON_OK)
        return status;
    session->adapters = in_force;
    session->mark = mark;
    return BITAXON_OK;
}
