/* SPDX-License-Identifier: Apache-2.0 */
/* chat_template.c - messages to token ids by a template that is data, never code.
 *
 * A template has texts that stand before and after the content of a message, by role, and a
 * list of the control tokens that these texts use. The built-in one is ChatML; the key
 * "bitaxon_chat_template" of tokenizer_config.json gives another. The program that a
 * "chat_template" holds is not run.
 *
 * Control tokens come from the template's own texts alone. What stands between two of them
 * (the rest of the template, the role and the content) is encoded as one text, as it would be
 * were the whole conversation one string, but with every control token switched off. */
#include "tokenizer/bpe.h"

#include <string.h>

static const char *const chatml_controls[] = {"<|im_start|>", "<|im_end|>"};
static const bxn_role chatml_roles[] = {{NULL, "<|im_start|>{role}\n", "<|im_end|>\n"}};
static const bxn_template chatml = {.begin = "",
                                    .generate = "<|im_start|>assistant\n",
                                    .controls = chatml_controls,
                                    .control_count = 2,
                                    .roles = chatml_roles,
                                    .role_count = 1};

/* ---- reading ---------------------------------------------------------------------------- */

/* Strings and tables laid out in one block: measured first (block NULL), then written. */
typedef struct layout {
    char *block;
    size_t used;
    const char *where;
    bitaxon_error *error;
} layout;

static void *place(layout *l, size_t bytes)
{
    void *at = l->block != NULL ? l->block + l->used : NULL;
    l->used += bxn_round_up(bytes, sizeof(void *));
    return at;
}

static bitaxon_status bad(const layout *l, bitaxon_status status, const char *what,
                          const char *problem)
{
    return bxn_fail(l->error, status,
                    "%.80s: tokenizer_config.json: bitaxon_chat_template: "
                    "\"%.60s\" %s",
                    l->where, what, problem);
}

static bitaxon_status place_string(layout *l, json_t *value, const char *what, const char **out)
{
    if (value == NULL) {
        *out = "";
        return BITAXON_OK;
    }
    if (!json_is_string(value))
        return bad(l, BITAXON_FORMAT, what, "is not a string");
    size_t bytes = json_string_length(value) + 1;
    char *copy = place(l, bytes);
    if (copy != NULL)
        memcpy(copy, json_string_value(value), bytes);
    *out = copy;
    return BITAXON_OK;
}

static bitaxon_status known_keys(layout *l, json_t *node, const char *what, const char *const *keys)
{
    const char *key;
    json_t *value;
    if (!json_is_object(node))
        return bad(l, BITAXON_FORMAT, what, "is not an object");
    json_object_foreach(node, key, value)
    {
        size_t i = 0;
        while (keys[i] != NULL && strcmp(keys[i], key) != 0)
            i++;
        if (keys[i] == NULL)
            return bad(l, BITAXON_UNSUPPORTED, key, "is not a known key");
    }
    return BITAXON_OK;
}

static bitaxon_status place_role(layout *l, json_t *node, const char *name, bxn_role *role)
{
    static const char *const keys[] = {"prefix", "suffix", NULL};
    bxn_role made = {0};
    bitaxon_status status = known_keys(l, node, name != NULL ? name : "turn", keys);
    if (status == BITAXON_OK && name != NULL) {
        char *copy = place(l, strlen(name) + 1);
        if (copy != NULL)
            memcpy(copy, name, strlen(name) + 1);
        made.name = copy;
    }
    if (status == BITAXON_OK)
        status = place_string(l, json_object_get(node, "prefix"), "prefix", &made.prefix);
    if (status == BITAXON_OK)
        status = place_string(l, json_object_get(node, "suffix"), "suffix", &made.suffix);
    if (role != NULL)
        *role = made;
    return status;
}

static bitaxon_status place_template(layout *l, json_t *node, bxn_template *chat)
{
    static const char *const keys[] = {"control_tokens", "begin", "turn", "roles",
                                       "generate",       "trim",  NULL};
    json_t *controls = json_object_get(node, "control_tokens");
    json_t *roles = json_object_get(node, "roles"), *turn = json_object_get(node, "turn");
    json_t *trim = json_object_get(node, "trim"), *value;
    const char *name;
    size_t i;
    bitaxon_status status = known_keys(l, node, "bitaxon_chat_template", keys);
    if (status != BITAXON_OK)
        return status;
    if (controls != NULL && !json_is_array(controls))
        return bad(l, BITAXON_FORMAT, "control_tokens", "is not an array");
    if (roles != NULL && !json_is_object(roles))
        return bad(l, BITAXON_FORMAT, "roles", "is not an object");
    if (turn == NULL && json_object_size(roles) == 0)
        return bad(l, BITAXON_FORMAT, "turn", "and \"roles\" are both missing");
    if (trim != NULL && !json_is_boolean(trim))
        return bad(l, BITAXON_FORMAT, "trim", "is not true or false");
    if (json_array_size(controls) > BXN_MAX_ROLES || json_object_size(roles) >= BXN_MAX_ROLES)
        return bad(l, BITAXON_LIMIT, "bitaxon_chat_template", "has too many tokens or roles");
    chat->trim = json_is_true(trim);
    chat->control_count = (uint32_t)json_array_size(controls);
    const char **control = place(l, chat->control_count * sizeof *control);
    chat->controls = control;
    json_array_foreach(controls, i, value)
    {
        const char *text = NULL;
        if (json_string_length(value) == 0)
            return bad(l, BITAXON_FORMAT, "control_tokens", "has an entry without a text");
        status = place_string(l, value, "control_tokens", &text);
        if (status != BITAXON_OK)
            return status;
        if (control != NULL)
            control[i] = text;
    }
    chat->role_count = (uint32_t)(json_object_size(roles) + (turn != NULL));
    bxn_role *role = place(l, chat->role_count * sizeof *role), *next = role;
    chat->roles = role;
    json_object_foreach(roles, name, value)
    {
        status = place_role(l, value, name, next);
        if (status != BITAXON_OK)
            return status;
        next += next != NULL;
    }
    if (turn != NULL)
        status = place_role(l, turn, NULL, next);
    if (status == BITAXON_OK)
        status = place_string(l, json_object_get(node, "begin"), "begin", &chat->begin);
    if (status == BITAXON_OK)
        status = place_string(l, json_object_get(node, "generate"), "generate", &chat->generate);
    return status;
}

bitaxon_status bxn_template_load(bxn_tokenizer *t, const char *where, json_t *config,
                                 bitaxon_error *error)
{
    json_t *node = json_object_get(config, "bitaxon_chat_template");
    layout l = {.where = where, .error = error};
    bxn_template chat = chatml;
    int32_t id;

    if (node != NULL) {
        memset(&chat, 0, sizeof chat);
        bitaxon_status status = place_template(&l, node, &chat);
        if (status != BITAXON_OK)
            return status;
        chat.block_bytes = l.used;
        status = bxn_tokenizer_alloc(t, l.used, "chat template", &chat.block, error);
        if (status != BITAXON_OK)
            return status;
        l.block = chat.block;
        l.used = 0;
        (void)place_template(&l, node, &chat); /* as it went before */
    }
    t->chat = chat;
    for (uint32_t i = 0; i < chat.control_count; i++)
        if (bxn_tokenizer_id(t, chat.controls[i], strlen(chat.controls[i]), &id))
            t->flags[id] |= BXN_TOKEN_CONTROL;
    return BITAXON_OK;
}

void bxn_template_free(bxn_tokenizer *t)
{
    bxn_tokenizer_release(t, t->chat.block, t->chat.block_bytes);
}

/* ---- rendering ----------------------------------------------------------------------------- */

typedef struct control {
    const char *text;
    size_t bytes;
    int32_t id;
    bool lstrip, rstrip;
} control;

/* Text since the last control token, and the borders in it that are not yet known as tokens. */
typedef struct render {
    bxn_encoder encoder;
    const bxn_template *chat;
    control controls[BXN_MAX_ROLES];
    bxn_bytes run;
    bool strip_start; /* the control token before the run takes white space behind it */
    bxn_border *borders;
    size_t settled, reached; /* borders known as tokens; borders passed */
} render;

static bitaxon_status append(render *r, const char *text, size_t bytes)
{
    bxn_encoder *e = &r->encoder;
    return bxn_utf8_append(e->mem, &r->run, text, bytes, e->error);
}

static void border(render *r)
{
    r->borders[r->reached++].offset = r->run.count;
}

/* Encode the run; strip_end: the control token behind it takes white space before it. */
static bitaxon_status flush(render *r, bool strip_end)
{
    bxn_encoder *e = &r->encoder;
    const char *text = r->run.data;
    size_t bytes = r->run.count;
    if (r->strip_start && bytes != 0) {
        size_t white = bxn_space_prefix(text, bytes);
        text += white;
        bytes -= white;
        for (size_t i = r->settled; i < r->reached; i++)
            r->borders[i].offset -= r->borders[i].offset < white ? r->borders[i].offset : white;
    }
    if (strip_end && bytes != 0)
        bytes -= bxn_space_suffix(text, bytes);
    e->borders = r->borders + r->settled;
    e->border_count = r->reached - r->settled;
    e->border_next = 0;
    bitaxon_status status = bxn_encoder_text(e, text, bytes);
    r->settled = r->reached;
    r->run.count = 0;
    r->strip_start = false;
    return status;
}

/* A text of the template: control tokens, "{role}", and plain text. */
static bitaxon_status render_text(render *r, const char *text, const char *role)
{
    bitaxon_status status = BITAXON_OK;
    size_t plain = 0, at = 0;
    for (;;) {
        const control *found = NULL;
        bool is_role = role != NULL && strncmp(text + at, "{role}", 6) == 0;
        for (uint32_t i = 0; i < r->chat->control_count && !is_role; i++) {
            const control *c = &r->controls[i];
            if ((found == NULL || c->bytes > found->bytes) &&
                strncmp(text + at, c->text, c->bytes) == 0)
                found = c;
        }
        if (text[at] != '\0' && !is_role && found == NULL) {
            at++;
            continue;
        }
        status = append(r, text + plain, at - plain);
        if (status != BITAXON_OK || text[at] == '\0')
            return status;
        if (is_role) {
            status = append(r, role, strlen(role));
            at += 6;
        } else {
            status = flush(r, found->lstrip);
            if (status == BITAXON_OK)
                status = bxn_ids_push(r->encoder.mem, &r->encoder.ids, found->id, r->encoder.error);
            r->strip_start = found->rstrip;
            at += found->bytes;
        }
        if (status != BITAXON_OK)
            return status;
        plain = at;
    }
}

static bitaxon_status find_controls(const bxn_tokenizer *t, render *r, bitaxon_error *error)
{
    for (uint32_t i = 0; i < t->chat.control_count; i++) {
        control *c = &r->controls[i];
        c->text = t->chat.controls[i];
        c->bytes = strlen(c->text);
        if (!bxn_tokenizer_id(t, c->text, c->bytes, &c->id))
            return bxn_fail(error, BITAXON_BAD_STATE,
                            "chat: the vocabulary has no token \"%.60s\", which the chat template "
                            "needs",
                            c->text);
        const bxn_added *added = bxn_tokenizer_added(t, (uint32_t)c->id);
        c->lstrip = added != NULL && added->lstrip;
        c->rstrip = added != NULL && added->rstrip;
    }
    return BITAXON_OK;
}

static const bxn_role *find_role(const bxn_template *chat, const char *name)
{
    const bxn_role *other = NULL;
    for (uint32_t i = 0; i < chat->role_count; i++) {
        if (chat->roles[i].name == NULL)
            other = &chat->roles[i];
        else if (strcmp(chat->roles[i].name, name) == 0)
            return &chat->roles[i];
    }
    return other;
}

static bitaxon_status render_message(render *r, const bitaxon_message *message, size_t index)
{
    const char *content = message->content != NULL ? message->content : "";
    size_t bytes = message->content_bytes;
    const bxn_role *role = find_role(r->chat, message->role);
    if (role == NULL)
        return bxn_fail(r->encoder.error, BITAXON_INVALID_ARGUMENT,
                        "chat: message %zu: the chat template has no role \"%.60s\"", index,
                        message->role);
    border(r);
    bitaxon_status status = render_text(r, role->prefix, message->role);
    if (status != BITAXON_OK)
        return status;
    size_t start = r->run.count;
    border(r);
    status = append(r, content, bytes);
    if (status == BITAXON_OK && r->chat->trim && r->run.count > start) {
        char *text = r->run.data + start;
        size_t length = r->run.count - start, white = bxn_space_prefix(text, length);
        memmove(text, text + white, length - white);
        length -= white;
        r->run.count = start + length - bxn_space_suffix(text, length);
    }
    border(r);
    if (status == BITAXON_OK)
        status = render_text(r, role->suffix, message->role);
    border(r);
    return status;
}

bitaxon_status bxn_tokenizer_chat(const bxn_tokenizer *t, const bitaxon_message *messages,
                                  size_t count, uint32_t flags, int32_t *ids, size_t capacity,
                                  size_t *need, bitaxon_span *spans, bitaxon_error *error)
{
    render *r = NULL;
    void *p = NULL;
    size_t border_bytes = 0;
    bitaxon_status status;

    if (count > SIZE_MAX / 8 / sizeof(bxn_border))
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "chat: %zu messages", count);
    status = bxn_calloc(t->mem, sizeof *r, "chat", &p, error);
    if (status != BITAXON_OK)
        return status;
    r = p;
    r->chat = &t->chat;
    status = find_controls(t, r, error);
    if (status != BITAXON_OK)
        goto done;
    border_bytes = 4 * count * sizeof *r->borders;
    status = bxn_alloc(t->mem, border_bytes, "chat", &p, error);
    r->borders = p;
    if (status != BITAXON_OK)
        goto done;
    status = bxn_encoder_open(t, BXN_TOKEN_SPECIAL | BXN_TOKEN_CONTROL, &r->encoder, error);
    if (status != BITAXON_OK)
        goto done;

    status = render_text(r, t->chat.begin, NULL);
    for (size_t i = 0; i < count && status == BITAXON_OK; i++)
        status = render_message(r, &messages[i], i);
    if (status == BITAXON_OK && (flags & BITAXON_CHAT_GENERATE) != 0)
        status = render_text(r, t->chat.generate, NULL);
    if (status == BITAXON_OK)
        status = flush(r, false);
    if (status == BITAXON_OK)
        status = bxn_ids_deliver(&r->encoder.ids, ids, capacity, need, error);
    for (size_t i = 0; i < count && spans != NULL && status == BITAXON_OK; i++) {
        const bxn_border *at = &r->borders[4 * i];
        spans[i] = (bitaxon_span){at[0].mark, at[1].mark, at[2].mark, at[3].mark};
    }

done:
    if (r->encoder.t != NULL)
        bxn_encoder_close(&r->encoder);
    bxn_bytes_free(t->mem, &r->run);
    bxn_free(t->mem, r->borders, border_bytes);
    bxn_free(t->mem, r, sizeof *r);
    return status;
}
