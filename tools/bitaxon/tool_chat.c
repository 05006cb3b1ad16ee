/* SPDX-License-Identifier: Apache-2.0 */
/* tool_chat.c - conversations for `chat` and `run --chat`. The model's template gives the
 * tokens of the whole history; where it has an assistant's content, the tokens that were
 * generated are put in, because a text may be cut into tokens in several ways and only the
 * tokens that were read make the cache's content a prefix of the history. */
#include "tool_chat.h"

#include <stdlib.h>
#include <string.h>

void tool_tokens_append(tool_tokens *tokens, const int32_t *ids, size_t count)
{
    if (tokens->count + count > tokens->capacity) {
        tokens->capacity = 2 * (tokens->count + count) + 64;
        tokens->ids = tool_realloc(tokens->ids, tokens->capacity * sizeof *tokens->ids);
    }
    if (count != 0) {
        memcpy(tokens->ids + tokens->count, ids, count * sizeof *ids);
    }
    tokens->count += count;
}

void tool_tokens_free(tool_tokens *tokens)
{
    free(tokens->ids);
    memset(tokens, 0, sizeof *tokens);
}

void tool_conversation_add(tool_conversation *conversation, const char *role, const char *content,
                           size_t bytes)
{
    conversation->turns =
        tool_realloc(conversation->turns, (conversation->count + 1) * sizeof *conversation->turns);
    tool_turn *turn = &conversation->turns[conversation->count++];
    memset(turn, 0, sizeof *turn);
    turn->role = role;
    turn->content = tool_copy(content, bytes);
    turn->content_bytes = bytes;
}

void tool_conversation_answer(tool_conversation *conversation, const char *content, size_t bytes,
                              tool_tokens *generated)
{
    tool_conversation_add(conversation, "assistant", content, bytes);
    conversation->turns[conversation->count - 1].generated = *generated;
    memset(generated, 0, sizeof *generated);
}

void tool_conversation_drop(tool_conversation *conversation, size_t keep)
{
    while (conversation->count > keep) {
        tool_turn *turn = &conversation->turns[--conversation->count];
        free(turn->content);
        tool_tokens_free(&turn->generated);
    }
}

void tool_conversation_free(tool_conversation *conversation)
{
    tool_conversation_drop(conversation, 0);
    free(conversation->turns);
    tool_tokens_free(&conversation->base);
    memset(conversation, 0, sizeof *conversation);
}

int tool_chat_encode(const bitaxon_model *model, const bitaxon_message *messages, size_t count,
                     uint32_t flags, tool_tokens *tokens, bitaxon_span *spans)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    size_t capacity = 256;
    for (;;) {
        size_t need = 0;
        int32_t *ids = tool_alloc(capacity * sizeof *ids);
        bitaxon_status status =
            bitaxon_model_chat(model, messages, count, flags, ids, capacity, &need, spans, &error);
        if (status == BITAXON_OK) {
            tool_tokens_append(tokens, ids, need);
            free(ids);
            return TOOL_OK;
        }
        free(ids);
        if (status != BITAXON_LIMIT || need <= capacity) {
            return tool_fail(status, &error);
        }
        capacity = need;
    }
}

int tool_conversation_tokens(const bitaxon_model *model, const tool_conversation *conversation,
                             tool_tokens *tokens)
{
    bitaxon_message *messages = tool_alloc(conversation->count * sizeof *messages);
    bitaxon_span *spans = tool_alloc(conversation->count * sizeof *spans);
    tool_tokens whole = {0};
    for (size_t i = 0; i < conversation->count; i++) {
        messages[i].struct_size = sizeof messages[i];
        messages[i].role = conversation->turns[i].role;
        messages[i].content = conversation->turns[i].content;
        messages[i].content_bytes = conversation->turns[i].content_bytes;
    }
    int code = tool_chat_encode(model, messages, conversation->count, BITAXON_CHAT_GENERATE, &whole,
                                spans);
    if (code == TOOL_OK) {
        size_t copied = 0;
        tool_tokens_append(tokens, conversation->base.ids, conversation->base.count);
        for (size_t i = 0; i < conversation->count; i++) {
            if (strcmp(conversation->turns[i].role, "assistant") == 0) {
                const tool_tokens *generated = &conversation->turns[i].generated;
                tool_tokens_append(tokens, whole.ids + copied, (size_t)spans[i].content - copied);
                tool_tokens_append(tokens, generated->ids, generated->count);
                copied = (size_t)spans[i].content_end;
            }
        }
        tool_tokens_append(tokens, whole.ids + copied, whole.count - copied);
    }
    tool_tokens_free(&whole);
    free(spans);
    free(messages);
    return code;
}

int tool_conversation_base(const bitaxon_model *model, const bitaxon_cache *cache,
                           tool_conversation *conversation)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    tool_tokens sample = {0};
    bitaxon_span span = {0, 0, 0, 0};
    bitaxon_message message = {sizeof message, 0, "assistant", "a", 1};
    uint64_t length = bitaxon_cache_length(cache);

    tool_tokens_free(&conversation->base);
    if (length == 0) {
        return TOOL_OK;
    }
    int32_t *ids = tool_alloc((size_t)length * sizeof *ids);
    bitaxon_status status = bitaxon_cache_tokens(cache, 0, length, ids, &error);
    if (status != BITAXON_OK) {
        free(ids);
        return tool_fail(status, &error);
    }
    tool_tokens_append(&conversation->base, ids, (size_t)length);
    free(ids);

    int code = tool_chat_encode(model, &message, 1, 0, &sample, &span);
    if (code != TOOL_OK) {
        tool_tokens_free(&sample);
        return code;
    }
    /* What closes a turn, less the part of it that the cache ends with already. */
    const int32_t *closing = sample.ids + span.content_end;
    size_t closing_count = (size_t)(span.end - span.content_end);
    size_t have = closing_count < length ? closing_count : (size_t)length;
    const int32_t *end = conversation->base.ids + conversation->base.count;
    while (have > 0 && memcmp(end - have, closing, have * sizeof *closing) != 0) {
        have--;
    }
    tool_tokens_append(&conversation->base, closing + have, closing_count - have);
    tool_tokens_free(&sample);
    return TOOL_OK;
}
