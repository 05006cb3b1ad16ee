/* SPDX-License-Identifier: Apache-2.0 */
/* dataset_tokens.c - records to tokens, with a mask of those that count. The chat template tells where each message's
 * text and turn begin and end, so that masks need no second tokenisation. Cutting is on the right; called by
 * dataset.c when a file is opened and again for each example that is asked for, with the same result. */
#include "train/dataset_parts.h"

#include <string.h>

#include "tokenizer/bpe.h"

/* The first of these that is a token; else the first token that ends a turn; -1: none. */
static int32_t end_token(const bxn_tokenizer *tokenizer, const char *const names[3])
{
    int32_t id;
    size_t count;
    for (int i = 0; i < 3; i++)
        if (bxn_tokenizer_id(tokenizer, names[i], strlen(names[i]), &id))
            return id;
    const int32_t *ends = bxn_tokenizer_eos(tokenizer, &count);
    return count != 0 ? ends[0] : -1;
}

void bxn_maker_open(bxn_maker *maker, bxn_mem *mem, const bxn_tokenizer *tokenizer, const bxn_dataset_params *params)
{
    static const char *const of_texts[3] = {"<|endoftext|>", "</s>", "<|im_end|>"};
    static const char *const of_turns[3] = {"<|im_end|>", "</s>", "<|endoftext|>"};
    *maker = (bxn_maker){
        .mem = mem, .tokenizer = tokenizer, .mask = params->mask, .max_tokens = params->max_tokens};
    if (tokenizer != NULL) {
        maker->text_end = end_token(tokenizer, of_texts);
        maker->chat_end = end_token(tokenizer, of_turns);
    }
}

void bxn_maker_close(bxn_maker *maker)
{
    bxn_free(maker->mem, maker->spans, maker->span_room * sizeof *maker->spans);
    maker->spans = NULL;
    maker->span_room = 0;
}

void bxn_sequence_free(bxn_mem *mem, bxn_sequence *s)
{
    bxn_free(mem, s->tokens, s->capacity * sizeof *s->tokens);
    bxn_free(mem, s->mask, s->capacity);
    memset(s, 0, sizeof *s);
}

bitaxon_status bxn_sequence_reserve(bxn_mem *mem, bxn_sequence *s, size_t capacity, bitaxon_error *error)
{
    void *tokens, *mask;
    if (capacity <= s->capacity)
        return BITAXON_OK;
    capacity = bxn_round_up(capacity + capacity / 4, 256);
    bitaxon_status status = bxn_alloc(mem, capacity * sizeof *s->tokens, "tokens of an example", &tokens, error);
    if (status != BITAXON_OK)
        return status;
    status = bxn_alloc(mem, capacity, "mask of an example", &mask, error);
    if (status != BITAXON_OK) {
        bxn_free(mem, tokens, capacity * sizeof *s->tokens);
        return status;
    }
    if (s->count != 0) {
        memcpy(tokens, s->tokens, s->count * sizeof *s->tokens);
        memcpy(mask, s->mask, s->count);
    }
    bxn_free(mem, s->tokens, s->capacity * sizeof *s->tokens);
    bxn_free(mem, s->mask, s->capacity);
    s->tokens = tokens;
    s->mask = mask;
    s->capacity = capacity;
    return BITAXON_OK;
}

static size_t labels_of(const bxn_sequence *s)
{
    size_t labels = 0;
    for (size_t i = 1; i < s->count; i++)
        labels += s->mask[i];
    return labels;
}

static void cut(const bxn_maker *maker, bxn_sequence *s)
{
    s->uncut = s->labels = labels_of(s);
    s->cut = s->count > maker->max_tokens;
    if (s->cut) {
        s->count = maker->max_tokens;
        s->labels = labels_of(s);
    }
}

/* Append one token. */
static bitaxon_status push(bxn_maker *maker, bxn_sequence *s, int32_t token, bool counts, bitaxon_error *error)
{
    bitaxon_status status = bxn_sequence_reserve(maker->mem, s, s->count + 1, error);
    if (status == BITAXON_OK) {
        s->tokens[s->count] = token;
        s->mask[s->count++] = counts;
    }
    return status;
}

/* Append the tokens of a text. */
static bitaxon_status push_text(bxn_maker *maker, bxn_sequence *s, const char *text, size_t bytes, bool counts,
                                bitaxon_error *error)
{
    bitaxon_status status = bxn_sequence_reserve(maker->mem, s, s->count + bytes / 2 + 16, error);
    while (status == BITAXON_OK) {
        size_t need = 0, room = s->capacity - s->count;
        status = bxn_tokenizer_encode(maker->tokenizer, text, bytes, 0, s->tokens + s->count, room, &need, error);
        if (status == BITAXON_OK) {
            memset(s->mask + s->count, counts, need);
            s->count += need;
            return BITAXON_OK;
        }
        if (status == BITAXON_LIMIT && need > room)
            status = bxn_sequence_reserve(maker->mem, s, s->count + need, error);
    }
    return status;
}

static bitaxon_status chat_tokens(bxn_maker *maker, const bitaxon_message *messages, size_t count, bxn_sequence *s,
                                  bitaxon_error *error)
{
    void *memory = maker->spans;
    size_t size = sizeof *maker->spans;
    bitaxon_error reason = BITAXON_ERROR_INIT;
    bitaxon_status status = BITAXON_OK;
    if (count > maker->span_room) {
        status =
            bxn_realloc(maker->mem, &memory, maker->span_room * size, 2 * count * size, "spans of messages", error);
        if (status != BITAXON_OK)
            return status;
        maker->spans = memory;
        maker->span_room = 2 * count;
    }
    status = bxn_sequence_reserve(maker->mem, s, 1024, error);
    while (status == BITAXON_OK) {
        size_t need = 0;
        status = bxn_tokenizer_chat(maker->tokenizer, messages, count, 0, s->tokens, s->capacity, &need, maker->spans,
                                    &reason);
        if (status == BITAXON_OK) {
            s->count = need;
            return BITAXON_OK;
        }
        if (status == BITAXON_LIMIT && need > s->capacity)
            status = bxn_sequence_reserve(maker->mem, s, need, error);
        else if (status == BITAXON_BAD_STATE)
            return bxn_fail(error, BITAXON_UNSUPPORTED, "a record of messages needs a chat template: %s",
                            reason.message);
        else
            return bxn_fail(error, status == BITAXON_INVALID_ARGUMENT ? BITAXON_FORMAT : status, "%s", reason.message);
    }
    return status;
}

/* Messages from `answer` on may count. pair: the mask of reference begins with the answer, whoever gives it. */
static bitaxon_status make_chat(bxn_maker *maker, const bitaxon_message *messages, size_t count, size_t answer,
                                bool pair, bxn_sequence *s, bitaxon_error *error)
{
    s->count = 0;
    bitaxon_status status = chat_tokens(maker, messages, count, s, error);
    if (status != BITAXON_OK)
        return status;
    if (s->count != 0)
        memset(s->mask, maker->mask == BXN_MASK_ALL, s->count);
    if (maker->mask == BXN_MASK_ALL)
        return BITAXON_OK;
    bool reference = maker->mask == BXN_MASK_REFERENCE;
    for (size_t i = answer; i < count; i++) {
        const bitaxon_span *span = &maker->spans[i];
        bool counts = strcmp(messages[i].role, "assistant") == 0 || (reference && pair);
        uint64_t begin = reference ? span->begin : span->content;
        uint64_t end = reference || span->content_end == span->end ? span->end : span->content_end + 1;
        if (counts && end > begin)
            memset(s->mask + begin, 1, (size_t)(end - begin));
    }
    if (reference && maker->chat_end >= 0 && (s->count == 0 || s->tokens[s->count - 1] != maker->chat_end))
        status = push(maker, s, maker->chat_end, pair || strcmp(messages[count - 1].role, "assistant") == 0, error);
    return status;
}

bitaxon_status bxn_make_record(bxn_maker *maker, const bxn_record *r, bxn_sequence out[2], bitaxon_error *error)
{
    bitaxon_status status = BITAXON_OK;
    if (r->kind == BXN_RECORD_PAIR) {
        status = make_chat(maker, r->messages, r->second, r->prompt, true, &out[0], error);
        if (status == BITAXON_OK)
            status = make_chat(maker, r->messages + r->second, r->count - r->second, r->prompt, true, &out[1], error);
        if (status == BITAXON_OK)
            cut(maker, &out[1]);
    } else if (r->kind == BXN_RECORD_CHAT) {
        status = make_chat(maker, r->messages, r->count, 0, false, &out[0], error);
    } else {
        out[0].count = 0;
        status = push_text(maker, &out[0], r->text, r->text_bytes, maker->mask == BXN_MASK_ALL, error);
        if (status == BITAXON_OK)
            status = push_text(maker, &out[0], r->completion, r->completion_bytes, true, error);
        if (status == BITAXON_OK && maker->text_end >= 0)
            status = push(maker, &out[0], maker->text_end, true, error);
    }
    if (status == BITAXON_OK)
        cut(maker, &out[0]);
    return status;
}

bitaxon_status bxn_make_text(bxn_maker *maker, const char *text, size_t bytes, bool last, bxn_sequence *s,
                             size_t *used, bitaxon_error *error)
{
    size_t most = maker->max_tokens < bytes + 4 ? maker->max_tokens : bytes + 4;
    s->count = 0;
    bitaxon_status status = bxn_sequence_reserve(maker->mem, s, most + 1, error);
    if (status == BITAXON_OK)
        status = bxn_tokenizer_encode_part(maker->tokenizer, text, bytes, most, s->tokens, &s->count, used, error);
    if (status != BITAXON_OK)
        return status;
    memset(s->mask, 1, s->count + 1);
    if (last && *used == bytes && s->count < maker->max_tokens && maker->text_end >= 0)
        s->tokens[s->count++] = maker->text_end;
    cut(maker, s);
    return BITAXON_OK;
}

size_t bxn_text_prefix(const char *text, size_t bytes, bool *partial)
{
    size_t at = 0, length;
    *partial = false;
    while (at < bytes && text[at] != '\0') {
        bxn_utf8 step = bxn_utf8_step(text + at, bytes - at, &length);
        if (step != BXN_UTF8_VALID) {
            *partial = step == BXN_UTF8_PARTIAL;
            break;
        }
        at += length;
    }
    return at;
}
