/* SPDX-License-Identifier: Apache-2.0 */
/* utf8_stream.c - valid UTF-8 out of bytes that arrive in any pieces.
 *
 * The carry holds the well-formed beginning of one character, at most three bytes. What is
 * handed out over a whole stream and its flush is the text with U+FFFD for every maximal
 * ill-formed part, wherever the stream was cut. */
#include "tokenizer/bpe.h"

#include <string.h>

size_t bxn_utf8_push(bitaxon_text_stream *stream, const char *bytes, size_t count, bool flush,
                     char *out)
{
    char joined[sizeof stream->pending + 4];
    size_t written = 0, at = 0, length;

    /* First finish the character in the carry: it is 4 bytes long at most. */
    size_t carried = stream->pending_bytes;
    while (carried > 0) {
        size_t more = count - at < 4 ? count - at : 4;
        memcpy(joined, stream->pending, carried);
        if (more > 0)
            memcpy(joined + carried, bytes + at, more);
        bxn_utf8 kind = bxn_utf8_step(joined, carried + more, &length);
        if (kind == BXN_UTF8_PARTIAL) {
            /* All of bytes is in joined: a character is shorter than 4 more bytes. */
            memcpy(stream->pending, joined, carried + more);
            carried += more;
            at = count;
            if (!flush)
                break;
        }
        bool valid = kind == BXN_UTF8_VALID;
        size_t piece = valid ? length : 3;
        if (out != NULL)
            memcpy(out + written, valid ? joined : "\xEF\xBF\xBD", piece);
        written += piece;
        if (kind == BXN_UTF8_PARTIAL || length >= carried) {
            at += kind == BXN_UTF8_PARTIAL ? 0 : length - carried;
            carried = 0;
        } else { /* an ill-formed part inside the carry */
            carried -= length;
            memmove(stream->pending, stream->pending + length, carried);
        }
    }
    stream->pending_bytes = (uint32_t)carried;

    size_t start = at;
    while (at < count) {
        bxn_utf8 kind = bxn_utf8_step(bytes + at, count - at, &length);
        if (kind == BXN_UTF8_VALID) {
            at += length;
            continue;
        }
        if (out != NULL && at > start)
            memcpy(out + written, bytes + start, at - start);
        written += at - start;
        if (kind == BXN_UTF8_PARTIAL && !flush) {
            memcpy(stream->pending, bytes + at, count - at);
            stream->pending_bytes = (uint32_t)(count - at);
        } else {
            if (out != NULL)
                memcpy(out + written, "\xEF\xBF\xBD", 3);
            written += 3;
        }
        at += length;
        start = at;
    }
    if (out != NULL && at > start)
        memcpy(out + written, bytes + start, at - start);
    return written + (at - start);
}
