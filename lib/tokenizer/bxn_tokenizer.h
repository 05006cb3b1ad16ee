/* SPDX-License-Identifier: Apache-2.0 */
/* bxn_tokenizer.h - the internal face of the tokenizer: byte-level BPE from
 * tokenizer.json, streaming UTF-8, chat template as data. Immutable after creation;
 * all functions may run on any number of threads at once. */
#ifndef BXN_TOKENIZER_H
#define BXN_TOKENIZER_H

#include <bitaxon/tokenizer.h>

#include "runtime/runtime.h"

typedef struct bxn_tokenizer bxn_tokenizer;

/* tokenizer_json: the text of tokenizer.json. config_json, generation_json: the texts of
 * tokenizer_config.json and generation_config.json, or NULL. `where` names the model in
 * messages. All memory through mem (PCRE2 by its custom allocators). */
bitaxon_status bxn_tokenizer_create(bxn_mem *mem, const char *where, const char *tokenizer_json,
                                    size_t tokenizer_bytes, const char *config_json,
                                    size_t config_bytes, const char *generation_json,
                                    size_t generation_bytes, bxn_tokenizer **out,
                                    bitaxon_error *error);
void bxn_tokenizer_free(bxn_tokenizer *tokenizer);
/* Bytes held (for the estimate), equal to what mem was charged. */
uint64_t bxn_tokenizer_bytes(const bxn_tokenizer *tokenizer);

/* 1 + the highest id. */
uint32_t bxn_tokenizer_size(const bxn_tokenizer *tokenizer);

/* Of its vocabulary, merges and special tokens: with one identity, ids mean the same. */
void bxn_tokenizer_identity(const bxn_tokenizer *tokenizer, uint8_t id[16]);

/* As the public functions of the same names, less argument checks on handles. */
bitaxon_status bxn_tokenizer_encode(const bxn_tokenizer *tokenizer, const char *text, size_t bytes,
                                    uint32_t flags, int32_t *ids, size_t capacity, size_t *need,
                                    bitaxon_error *error);
/* Ids of the beginning of a text: at most `most` (4 or more) into ids, cut where a character begins. *used: bytes of
 * the text that they stand for, all when all fit. The text is valid UTF-8; its special tokens stay text. */
bitaxon_status bxn_tokenizer_encode_part(const bxn_tokenizer *tokenizer, const char *text, size_t bytes, size_t most,
                                         int32_t *ids, size_t *count, size_t *used, bitaxon_error *error);
/* The bytes of one token; *special tells a control token. False: no such id. */
bool bxn_tokenizer_piece(const bxn_tokenizer *tokenizer, int32_t id, const char **bytes,
                         size_t *count, bool *special);
bool bxn_tokenizer_id(const bxn_tokenizer *tokenizer, const char *text, size_t bytes, int32_t *id);
bitaxon_status bxn_tokenizer_chat(const bxn_tokenizer *tokenizer, const bitaxon_message *messages,
                                  size_t count, uint32_t flags, int32_t *ids, size_t capacity,
                                  size_t *need, bitaxon_span *spans, bitaxon_error *error);
/* End tokens: generation_config's eos_token_id (number or list), tokenizer_config's
 * eos_token, and <|im_end|>, <|endoftext|>, </s> where they exist; ascending, unique. */
const int32_t *bxn_tokenizer_eos(const bxn_tokenizer *tokenizer, size_t *count);

/* Streaming decode: append `count` bytes to the carry and hand out the longest valid
 * UTF-8 text; see utf8_stream.c. `out` must hold 3 * (pending + count) bytes, or is NULL to
 * count only; returns bytes written. flush: an incomplete tail becomes U+FFFD. */
size_t bxn_utf8_push(bitaxon_text_stream *stream, const char *bytes, size_t count, bool flush,
                     char *out);

#endif
