/* SPDX-License-Identifier: Apache-2.0 */
/* tokenizer.h - text to token ids and back, with the tokenizer.json of a model.
 * All functions are pure: any number of threads may call them on one model. */
#ifndef BITAXON_TOKENIZER_H
#define BITAXON_TOKENIZER_H

#include <bitaxon/base.h>
#include <bitaxon/model.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    BITAXON_TOKENIZE_SPECIAL = 1,  /* text such as <|im_end|> becomes its control token */
    BITAXON_DETOKENIZE_SPECIAL = 2 /* control tokens appear as text; else they are dropped */
};

/* Text to ids. Bytes that are not UTF-8 are replaced by U+FFFD first, one per
 * maximal ill-formed part (as the tokenizer's authors' own library is fed).
 * Params:    text, bytes  borrowed.  ids [capacity]  may be NULL when capacity is 0.
 *            need  number of ids in all; set on OK and on LIMIT.
 * Returns:   OK; LIMIT when capacity is too small (nothing is written);
 *            BAD_STATE without a tokenizer; OUT_OF_MEMORY; LIMIT.
 * Thread:    any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_model_tokenize(const bitaxon_model *model, const char *text,
                                                  size_t bytes, uint32_t flags, int32_t *ids,
                                                  size_t capacity, size_t *need,
                                                  bitaxon_error *error);

/* Ids to bytes: the exact bytes of the tokens, which need not be valid UTF-8.
 * Params:    ids [count]  each in range.  buffer  not terminated.  need  bytes in all.
 * Returns:   OK; LIMIT (buffer too small); INVALID_ARGUMENT (id out of range); BAD_STATE.
 * Thread:    any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_model_detokenize(const bitaxon_model *model, const int32_t *ids,
                                                    size_t count, uint32_t flags, char *buffer,
                                                    size_t capacity, size_t *need,
                                                    bitaxon_error *error);

/* The carry of a stream of text: zero it, then pass it to every step. */
typedef struct bitaxon_text_stream {
    uint32_t struct_size;
    uint32_t pending_bytes;
    uint8_t pending[8];
} bitaxon_text_stream;

/* The next piece of a stream: valid UTF-8 whatever the split into tokens.
 * Params:    stream  caller-owned.  id  the next token, or -1 to flush (an
 *            incomplete character becomes U+FFFD).  buffer  not terminated.
 * Returns:   OK; LIMIT (buffer too small: stream unchanged, need is set);
 *            INVALID_ARGUMENT; BAD_STATE.
 * Thread:    one stream, one thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_text_stream_next(const bitaxon_model *model,
                                                    bitaxon_text_stream *stream, int32_t id,
                                                    uint32_t flags, char *buffer, size_t capacity,
                                                    size_t *need, bitaxon_error *error);

/* Params:    text, bytes  the exact text of one token, for example "<|im_end|>".
 *            id  its id.
 * Returns:   OK; END when no such token exists; BAD_STATE.  Thread: any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_model_token_id(const bitaxon_model *model, const char *text,
                                                  size_t bytes, int32_t *id, bitaxon_error *error);

typedef struct bitaxon_message {
    uint32_t struct_size;
    uint32_t reserved0;
    const char *role; /* "system", "user", "assistant", ... */
    const char *content;
    size_t content_bytes;
} bitaxon_message;

/* Where a message's tokens are: [begin, end) is the whole turn, [content, end)
 * starts at its text and [content_end, end) is what closes the turn.
 * A loss mask takes [content, content_end + 1): the text and its end marker. */
typedef struct bitaxon_span {
    uint64_t begin;
    uint64_t content;
    uint64_t content_end;
    uint64_t end;
} bitaxon_span;

enum { BITAXON_CHAT_GENERATE = 1 /* append the header of an assistant turn */ };

/* Messages to ids by the model's chat template (ChatML unless tokenizer_config.json
 * declares another by data). Control tokens come from the template alone: the same
 * text inside a message stays text.
 * Params:    messages [count].  ids [capacity], need  as for tokenize.
 *            spans [count]  nullable.
 * Returns:   OK, LIMIT, BAD_STATE (no tokenizer, or it lacks the template's
 *            tokens), INVALID_ARGUMENT, OUT_OF_MEMORY.
 * Thread:    any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_model_chat(const bitaxon_model *model,
                                              const bitaxon_message *messages, size_t count,
                                              uint32_t flags, int32_t *ids, size_t capacity,
                                              size_t *need, bitaxon_span *spans,
                                              bitaxon_error *error);

/* Params:    ids [capacity]  the tokens that end a turn or a text.  need  how many.
 * Returns:   OK, LIMIT.  Thread: any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_model_eos_tokens(const bitaxon_model *model, int32_t *ids,
                                                    size_t capacity, size_t *need,
                                                    bitaxon_error *error);

#ifdef __cplusplus
}
#endif
#endif
