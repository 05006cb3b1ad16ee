/* SPDX-License-Identifier: Apache-2.0 */
/* batch.h - several sessions of one model decode together: every weight is read once for
 * all of them, so that on a machine whose decoding is bound by memory a few sequences cost
 * little more than one. What a session gets does not depend on the others: tokens, logits
 * and state are the same to the bit as if it had decoded alone. */
#ifndef BITAXON_BATCH_H
#define BITAXON_BATCH_H

#include <bitaxon/base.h>
#include <bitaxon/session.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BITAXON_BATCH_MAX 16 /* sessions in one call */

/* For each session choose the next token by its own sampler and read it, as
 * bitaxon_session_decode does, in one pass through the model. All or nothing: on any
 * failure no session has read a token. A cancel of any of the sessions stops the call. The
 * thermal policies of all are asked first; the energy of batches is booked to no session.
 * Params:    sessions [count]  distinct, of one model.  count  1 .. BITAXON_BATCH_MAX.
 *            tokens [count]  the chosen tokens.
 *            failed  nullable; on failure the index of the session that caused it, or
 *            count when it was none of them alone.
 * Returns:   OK; INVALID_ARGUMENT (no session, too many, the same twice); MISMATCH (of another
 *            model, with other adapters, or with a cache read with others); BAD_STATE (one has
 *            read nothing yet); LIMIT (one's context is full, or max_bytes); FORMAT (NaN logits);
 *            CANCELLED; THERMAL_STOP; OUT_OF_MEMORY; SYSTEM. The message names the session by its
 *            index.
 * Thread:    single-user, of every session in the list.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_batch_decode(bitaxon_session *const *sessions, uint32_t count,
                                                int32_t *tokens, uint32_t *failed,
                                                bitaxon_error *error);

#ifdef __cplusplus
}
#endif
#endif
