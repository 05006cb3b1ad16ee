/* SPDX-License-Identifier: Apache-2.0 */
/* api_tokenizer.c - the public functions of tokenizer.h: argument checks, then the tokenizer
 * of the model. Detokenizing and text streams are put together here from the bytes of tokens. */
#include "api/api.h"

#include <string.h>

/* The tokenizer, or NULL and *status. */
static const bxn_tokenizer *tokenizer_of(const bitaxon_model *model, bitaxon_status *status,
                                         bitaxon_error *error)
{
    const bxn_tokenizer *tokenizer = NULL;
    if (model == NULL) {
        *status = bxn_null(error, "model");
        return NULL;
    }
    tokenizer = bxn_model_tokenizer(model);
    *status = BITAXON_OK;
    if (tokenizer == NULL)
        *status = bxn_fail(error, BITAXON_BAD_STATE, "the model has no tokenizer.json");
    return tokenizer;
}

static bitaxon_status check_flags(uint32_t flags, uint32_t known, bitaxon_error *error)
{
    if ((flags & ~known) != 0)
        return bxn_fail(error, BITAXON_UNSUPPORTED, "flags are 0x%X, known are 0x%X",
                        (unsigned)flags, (unsigned)known);
    return BITAXON_OK;
}

/* A buffer for `capacity` results, and where the count goes. */
static bitaxon_status check_output(const void *out, size_t capacity, const size_t *need,
                                   const char *name, bitaxon_error *error)
{
    if (out == NULL && capacity != 0)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "%s is NULL, capacity is %zu", name,
                        capacity);
    return need == NULL ? bxn_null(error, "need") : BITAXON_OK;
}

static bitaxon_status no_such_id(const bxn_tokenizer *tokenizer, int32_t id, bitaxon_error *error)
{
    return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "there is no token %d; ids go up to %u",
                    (int)id, (unsigned)(bxn_tokenizer_size(tokenizer) - 1));
}

bitaxon_status bitaxon_model_tokenize(const bitaxon_model *model, const char *text, size_t bytes,
                                      uint32_t flags, int32_t *ids, size_t capacity, size_t *need,
                                      bitaxon_error *error)
{
    bitaxon_status status;
    const bxn_tokenizer *tokenizer = tokenizer_of(model, &status, error);
    if (tokenizer == NULL)
        return status;
    status = check_output(ids, capacity, need, "ids", error);
    if (status == BITAXON_OK)
        status = check_flags(flags, BITAXON_TOKENIZE_SPECIAL, error);
    if (status == BITAXON_OK && text == NULL && bytes != 0)
        status = bxn_fail(error, BITAXON_INVALID_ARGUMENT, "text is NULL, bytes is %zu", bytes);
    if (status != BITAXON_OK)
        return status;
    return bxn_tokenizer_encode(tokenizer, text != NULL ? text : "", bytes, flags, ids, capacity,
                                need, error);
}

bitaxon_status bitaxon_model_detokenize(const bitaxon_model *model, const int32_t *ids,
                                        size_t count, uint32_t flags, char *buffer, size_t capacity,
                                        size_t *need, bitaxon_error *error)
{
    bitaxon_status status;
    const bxn_tokenizer *tokenizer = tokenizer_of(model, &status, error);
    const char *piece;
    size_t length, total = 0;
    bool special;
    if (tokenizer == NULL)
        return status;
    status = check_output(buffer, capacity, need, "buffer", error);
    if (status == BITAXON_OK)
        status = check_flags(flags, BITAXON_DETOKENIZE_SPECIAL, error);
    if (status == BITAXON_OK && ids == NULL && count != 0)
        status = bxn_fail(error, BITAXON_INVALID_ARGUMENT, "ids is NULL, count is %zu", count);
    if (status != BITAXON_OK)
        return status;
    for (size_t i = 0; i < count; i++) {
        if (!bxn_tokenizer_piece(tokenizer, ids[i], &piece, &length, &special))
            return no_such_id(tokenizer, ids[i], error);
        if (special && (flags & BITAXON_DETOKENIZE_SPECIAL) == 0)
            continue;
        if (length > SIZE_MAX - total)
            return bxn_fail(error, BITAXON_LIMIT, "the text is longer than memory");
        total += length;
    }
    *need = total;
    if (total > capacity)
        return bxn_fail(error, BITAXON_LIMIT, "%zu bytes of text do not fit into %zu", total,
                        capacity);
    for (size_t i = 0, at = 0; i < count; i++) {
        bxn_tokenizer_piece(tokenizer, ids[i], &piece, &length, &special);
        if (length == 0 || (special && (flags & BITAXON_DETOKENIZE_SPECIAL) == 0))
            continue;
        memcpy(buffer + at, piece, length);
        at += length;
    }
    return BITAXON_OK;
}

bitaxon_status bitaxon_text_stream_next(const bitaxon_model *model, bitaxon_text_stream *stream,
                                        int32_t id, uint32_t flags, char *buffer, size_t capacity,
                                        size_t *need, bitaxon_error *error)
{
    bitaxon_status status;
    const bxn_tokenizer *tokenizer = tokenizer_of(model, &status, error);
    const char *piece = "";
    size_t length = 0;
    bool special = false;
    if (tokenizer == NULL)
        return status;
    if (stream == NULL)
        return bxn_null(error, "stream");
    status = check_output(buffer, capacity, need, "buffer", error);
    if (status == BITAXON_OK)
        status = check_flags(flags, BITAXON_DETOKENIZE_SPECIAL, error);
    if (status != BITAXON_OK)
        return status;
    /* A stream that was only zeroed is taken too. */
    if ((stream->struct_size != 0 && stream->struct_size < sizeof *stream) ||
        stream->pending_bytes > 3)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT,
                        "stream: struct_size is %u, pending_bytes is %u; zero it before its first "
                        "use",
                        (unsigned)stream->struct_size, (unsigned)stream->pending_bytes);
    if (id != -1 && !bxn_tokenizer_piece(tokenizer, id, &piece, &length, &special))
        return no_such_id(tokenizer, id, error);
    if (special && (flags & BITAXON_DETOKENIZE_SPECIAL) == 0)
        length = 0;
    bitaxon_text_stream after = *stream;
    *need = bxn_utf8_push(&after, piece, length, id == -1, NULL);
    if (*need > capacity)
        return bxn_fail(error, BITAXON_LIMIT, "%zu bytes of text do not fit into %zu", *need,
                        capacity);
    bxn_utf8_push(stream, piece, length, id == -1, buffer);
    return BITAXON_OK;
}

bitaxon_status bitaxon_model_token_id(const bitaxon_model *model, const char *text, size_t bytes,
                                      int32_t *id, bitaxon_error *error)
{
    bitaxon_status status;
    const bxn_tokenizer *tokenizer = tokenizer_of(model, &status, error);
    if (tokenizer == NULL)
        return status;
    if (id == NULL)
        return bxn_null(error, "id");
    if (text == NULL)
        return bxn_null(error, "text");
    return bxn_tokenizer_id(tokenizer, text, bytes, id) ? BITAXON_OK : BITAXON_END;
}

bitaxon_status bitaxon_model_chat(const bitaxon_model *model, const bitaxon_message *messages,
                                  size_t count, uint32_t flags, int32_t *ids, size_t capacity,
                                  size_t *need, bitaxon_span *spans, bitaxon_error *error)
{
    bitaxon_status status;
    const bxn_tokenizer *tokenizer = tokenizer_of(model, &status, error);
    if (tokenizer == NULL)
        return status;
    status = check_output(ids, capacity, need, "ids", error);
    if (status == BITAXON_OK)
        status = check_flags(flags, BITAXON_CHAT_GENERATE, error);
    if (status == BITAXON_OK && messages == NULL && count != 0)
        status = bxn_fail(error, BITAXON_INVALID_ARGUMENT, "messages is NULL, count is %zu", count);
    for (size_t i = 0; i < count && status == BITAXON_OK; i++) {
        const bitaxon_message *message = &messages[i];
        if (message->struct_size != sizeof *message)
            status = bxn_fail(error, BITAXON_INVALID_ARGUMENT,
                              "message %zu: struct_size is %u, expected %zu", i,
                              (unsigned)message->struct_size, sizeof *message);
        else if (message->reserved0 != 0)
            status = bxn_fail(error, BITAXON_INVALID_ARGUMENT, "message %zu: reserved0 is set", i);
        else if (message->role == NULL || message->role[0] == '\0')
            status = bxn_fail(error, BITAXON_INVALID_ARGUMENT, "message %zu has no role", i);
        else if (message->content == NULL && message->content_bytes != 0)
            status = bxn_fail(error, BITAXON_INVALID_ARGUMENT,
                              "message %zu: content is NULL, content_bytes is %zu", i,
                              message->content_bytes);
    }
    if (status != BITAXON_OK)
        return status;
    return bxn_tokenizer_chat(tokenizer, messages, count, flags, ids, capacity, need, spans, error);
}

bitaxon_status bitaxon_model_eos_tokens(const bitaxon_model *model, int32_t *ids, size_t capacity,
                                        size_t *need, bitaxon_error *error)
{
    bitaxon_status status;
    const bxn_tokenizer *tokenizer = tokenizer_of(model, &status, error);
    size_t count = 0;
    if (tokenizer == NULL)
        return status;
    status = check_output(ids, capacity, need, "ids", error);
    if (status != BITAXON_OK)
        return status;
    const int32_t *ends = bxn_tokenizer_eos(tokenizer, &count);
    *need = count;
    if (count > capacity)
        return bxn_fail(error, BITAXON_LIMIT, "%zu token ids do not fit into %zu", count, capacity);
    if (count != 0)
        memcpy(ids, ends, count * sizeof *ids);
    return BITAXON_OK;
}
