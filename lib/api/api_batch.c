/* SPDX-License-Identifier: Apache-2.0 */
/* api_batch.c - the exported function of batch.h: the checks of a list of sessions around
 * session/batch. */
#include "api/api.h"

_Static_assert(BXN_BATCH_MAX == BITAXON_BATCH_MAX, "the public bound is the internal one");

bitaxon_status bitaxon_batch_decode(bitaxon_session *const *sessions, uint32_t count, int32_t *tokens,
                                    uint32_t *failed, bitaxon_error *error)
{
    uint32_t unused;
    bxn_session *cores[BXN_BATCH_MAX];
    failed = failed != NULL ? failed : &unused;
    *failed = count;
    if (sessions == NULL || tokens == NULL)
        return bxn_null(error, sessions == NULL ? "sessions" : "tokens");
    if (count == 0 || count > BXN_BATCH_MAX)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "%u sessions; 1 to %d decode together", count, BXN_BATCH_MAX);
    for (uint32_t i = 0; i < count; i++) {
        const bitaxon_session *session = sessions[i];
        *failed = i;
        if (session == NULL)
            return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "session %u is NULL", i);
        for (uint32_t j = 0; j < i; j++)
            if (sessions[j] == session)
                return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "session %u is session %u again", i, j);
        if (session->model != sessions[0]->model)
            return bxn_fail(error, BITAXON_MISMATCH, "session %u is of another model than session 0", i);
        if (!session->cache->core.state->has_logits)
            return bxn_fail(error, BITAXON_BAD_STATE,
                            "session %u: nothing is read yet: there is no next token to choose", i);
        if (!bxn_mark_equal(&session->core.mark, &sessions[0]->core.mark))
            return bxn_fail(error, BITAXON_MISMATCH,
                            "session %u has other adapters than session 0: those with the same decode together", i);
        bitaxon_error cause = BITAXON_ERROR_INIT;
        bitaxon_status status = bxn_session_check(&session->core, &cause);
        if (status != BITAXON_OK)
            return bxn_fail(error, status, "session %u: %.200s", i, cause.message);
        cores[i] = &sessions[i]->core;
    }
    return bxn_batch_step(cores, count, tokens, failed, error);
}
