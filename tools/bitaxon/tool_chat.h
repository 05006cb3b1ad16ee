/* SPDX-License-Identifier: Apache-2.0 */
/* tool_chat.h - a conversation as tokens. An assistant's turn keeps the very tokens that
 * were generated, so that the conversation's tokens continue what the cache has read. */
#ifndef BITAXON_TOOL_CHAT_H
#define BITAXON_TOOL_CHAT_H

#include "tool.h"

typedef struct tool_tokens {
    int32_t *ids;
    size_t count;
    size_t capacity;
} tool_tokens;

void tool_tokens_append(tool_tokens *tokens, const int32_t *ids, size_t count);
void tool_tokens_free(tool_tokens *tokens);

/* bitaxon_model_chat, appended to tokens; spans [count] is nullable. */
int tool_chat_encode(const bitaxon_model *model, const bitaxon_message *messages, size_t count,
                     uint32_t flags, tool_tokens *tokens, bitaxon_span *spans);

typedef struct tool_turn {
    const char *role; /* "system", "user", "assistant" */
    char *content;
    size_t content_bytes;
    tool_tokens generated; /* of an assistant's turn, its content */
} tool_turn;

/* Turns after `base`: tokens of a loaded cache, whose messages are unknown. */
typedef struct tool_conversation {
    tool_tokens base;
    tool_turn *turns;
    size_t count;
} tool_conversation;

void tool_conversation_add(tool_conversation *conversation, const char *role, const char *content,
                           size_t bytes);
/* Add an assistant's turn; takes its tokens over. */
void tool_conversation_answer(tool_conversation *conversation, const char *content, size_t bytes,
                              tool_tokens *generated);
void tool_conversation_drop(tool_conversation *conversation, size_t keep);
void tool_conversation_free(tool_conversation *conversation);

/* Everything the model should have read before it answers. Returns TOOL_OK or an exit code. */
int tool_conversation_tokens(const bitaxon_model *model, const tool_conversation *conversation,
                             tool_tokens *tokens);

/* Make what a cache has read the base, and close its last turn where that is still open. */
int tool_conversation_base(const bitaxon_model *model, const bitaxon_cache *cache,
                           tool_conversation *conversation);

#endif
