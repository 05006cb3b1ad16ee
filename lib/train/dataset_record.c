/* SPDX-License-Identifier: Apache-2.0 */
/* dataset_record.c - one JSON record of a data set to messages or texts. The keys tell the shape; docs/data.md has them
 * all. Nothing here knows of tokens or of places in files: a bad record is FORMAT with the reason alone. */
#include "train/dataset_parts.h"

#include <string.h>

static bitaxon_status bad(bitaxon_error *error, const char *what, const char *problem)
{
    return bxn_fail(error, BITAXON_FORMAT, "\"%.40s\" %s", what, problem);
}

/* A key that is absent, or null, is not given. */
static json_t *given(const json_t *object, const char *key)
{
    json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

static bitaxon_status take_text(const json_t *object, const char *key, const char **text, size_t *bytes,
                                bitaxon_error *error)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_string(value))
        return bad(error, key, value == NULL ? "is missing" : "is not a string");
    *text = json_string_value(value);
    *bytes = json_string_length(value);
    return BITAXON_OK;
}

static bitaxon_status room_for(bxn_record *r, size_t more, bitaxon_error *error)
{
    void *memory = r->messages;
    size_t room = r->count + more, size = sizeof *r->messages;
    if (room <= r->room)
        return BITAXON_OK;
    bitaxon_status status = bxn_realloc(r->mem, &memory, r->room * size, room * size, "messages of a record", error);
    if (status == BITAXON_OK) {
        r->messages = memory;
        r->room = room;
    }
    return status;
}

static void add(bxn_record *r, const char *role, const char *content, size_t bytes)
{
    r->messages[r->count++] = (bitaxon_message){
        .struct_size = sizeof *r->messages, .role = role, .content = content, .content_bytes = bytes};
}

/* [{"role", "content"}, ...] */
static bitaxon_status add_messages(bxn_record *r, const json_t *list, const char *key, bitaxon_error *error)
{
    size_t count = json_array_size(list);
    if (!json_is_array(list) || count == 0)
        return bad(error, key, "is not a list of messages, or an empty one");
    bitaxon_status status = room_for(r, count, error);
    for (size_t i = 0; i < count && status == BITAXON_OK; i++) {
        const json_t *node = json_array_get(list, i);
        const char *role = NULL, *content = NULL;
        size_t role_bytes, bytes = 0;
        if (!json_is_object(node))
            return bad(error, key, "has an entry that is not an object");
        status = take_text(node, "role", &role, &role_bytes, error);
        if (status == BITAXON_OK)
            status = take_text(node, "content", &content, &bytes, error);
        if (status == BITAXON_OK)
            add(r, role, content, bytes);
    }
    return status;
}

/* Who speaks in a conversation of the ShareGPT kind; other names stay. */
static const char *speaker(const char *from)
{
    if (strcmp(from, "human") == 0)
        return "user";
    return strcmp(from, "gpt") == 0 ? "assistant" : from;
}

static bitaxon_status parse_conversations(bxn_record *r, const json_t *root, bitaxon_error *error)
{
    const json_t *list = json_object_get(root, "conversations"), *system = given(root, "system_prompt");
    size_t count = json_array_size(list);
    if (!json_is_array(list) || count == 0)
        return bad(error, "conversations", "is not a list of turns, or an empty one");
    if (system != NULL && !json_is_string(system))
        return bad(error, "system_prompt", "is not a string");
    bitaxon_status status = room_for(r, count + 1, error);
    if (status == BITAXON_OK && json_string_length(system) != 0)
        add(r, "system", json_string_value(system), json_string_length(system));
    for (size_t i = 0; i < count && status == BITAXON_OK; i++) {
        const json_t *node = json_array_get(list, i);
        const char *from = NULL, *value = NULL;
        size_t from_bytes, bytes = 0;
        if (!json_is_object(node))
            return bad(error, "conversations", "has an entry that is not an object");
        status = take_text(node, "from", &from, &from_bytes, error);
        if (status == BITAXON_OK)
            status = take_text(node, "value", &value, &bytes, error);
        if (status == BITAXON_OK)
            add(r, speaker(from), value, bytes);
    }
    return status;
}

/* instruction, input (may be empty or absent), output. */
static bitaxon_status parse_alpaca(bxn_record *r, const json_t *root, bitaxon_error *error)
{
    const char *instruction = NULL, *input = "", *output = NULL;
    size_t bytes = 0, input_bytes = 0, output_bytes = 0;
    void *memory;
    bitaxon_status status = take_text(root, "instruction", &instruction, &bytes, error);
    if (status == BITAXON_OK && given(root, "input") != NULL)
        status = take_text(root, "input", &input, &input_bytes, error);
    if (status == BITAXON_OK)
        status = take_text(root, "output", &output, &output_bytes, error);
    if (status == BITAXON_OK && input_bytes != 0) {
        status = bxn_alloc(r->mem, bytes + 2 + input_bytes, "instruction and input", &memory, error);
        if (status == BITAXON_OK) {
            r->joined = memory;
            r->joined_bytes = bytes + 2 + input_bytes;
            memcpy(r->joined, instruction, bytes);
            memcpy(r->joined + bytes, "\n\n", 2);
            memcpy(r->joined + bytes + 2, input, input_bytes);
            instruction = r->joined;
            bytes = r->joined_bytes;
        }
    }
    if (status == BITAXON_OK)
        status = room_for(r, 2, error);
    if (status == BITAXON_OK) {
        add(r, "user", instruction, bytes);
        add(r, "assistant", output, output_bytes);
    }
    return status;
}

/* A text as one message of `role`, or a list of messages. */
static bitaxon_status add_side(bxn_record *r, const json_t *root, const char *key, const char *role,
                               bitaxon_error *error)
{
    const json_t *value = json_object_get(root, key);
    if (json_is_array(value))
        return add_messages(r, value, key, error);
    if (!json_is_string(value))
        return bad(error, key, value == NULL ? "is missing" : "is neither a string nor a list of messages");
    bitaxon_status status = room_for(r, 1, error);
    if (status == BITAXON_OK)
        add(r, role, json_string_value(value), json_string_length(value));
    return status;
}

static bitaxon_status parse_pair(bxn_record *r, const json_t *root, bitaxon_error *error)
{
    r->kind = BXN_RECORD_PAIR;
    bitaxon_status status = add_side(r, root, "prompt", "user", error);
    r->prompt = r->count;
    if (status == BITAXON_OK)
        status = add_side(r, root, "chosen", "assistant", error);
    r->second = r->count;
    if (status == BITAXON_OK)
        status = room_for(r, r->prompt, error);
    if (status != BITAXON_OK)
        return status;
    memcpy(r->messages + r->count, r->messages, r->prompt * sizeof *r->messages);
    r->count += r->prompt;
    return add_side(r, root, "rejected", "assistant", error);
}

static bitaxon_status parse_root(bxn_record *r, const json_t *root, bxn_objective objective, bitaxon_error *error)
{
    if (!json_is_object(root))
        return bxn_fail(error, BITAXON_FORMAT, "the record is not an object");
    if (objective == BXN_OBJECTIVE_ORPO)
        return parse_pair(r, root, error);
    r->kind = BXN_RECORD_CHAT;
    if (given(root, "messages") != NULL)
        return add_messages(r, json_object_get(root, "messages"), "messages", error);
    if (given(root, "conversations") != NULL)
        return parse_conversations(r, root, error);
    if (given(root, "instruction") != NULL)
        return parse_alpaca(r, root, error);
    if (given(root, "completion") != NULL) {
        r->kind = BXN_RECORD_COMPLETION;
        bitaxon_status status = take_text(root, "prompt", &r->text, &r->text_bytes, error);
        return status != BITAXON_OK ? status
                                    : take_text(root, "completion", &r->completion, &r->completion_bytes, error);
    }
    if (given(root, "text") != NULL) {
        r->kind = BXN_RECORD_TEXT;
        return take_text(root, "text", &r->text, &r->text_bytes, error);
    }
    if (given(root, "chosen") != NULL)
        return bxn_fail(error, BITAXON_FORMAT, "a pair of answers (\"chosen\", \"rejected\") is for ORPO");
    return bxn_fail(error, BITAXON_FORMAT, "no key tells the shape: \"messages\", \"conversations\", \"instruction\", "
                                           "\"completion\" and \"text\" are all missing");
}

/* The parser's tree is bounded by the number of values, which brackets, commas and colons tell. */
static bitaxon_status count_values(const char *text, size_t bytes, bitaxon_error *error)
{
    size_t values = 0;
    bool string = false;
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] == '"')
            string = !string;
        else if (string)
            i += text[i] == '\\';
        else
            values += text[i] == '{' || text[i] == '[' || text[i] == ',' || text[i] == ':';
    }
    if (values > BXN_MAX_RECORD_VALUES)
        return bxn_fail(error, BITAXON_FORMAT, "%zu values in one record, the limit is %u", values,
                        BXN_MAX_RECORD_VALUES);
    return BITAXON_OK;
}

bitaxon_status bxn_record_parse(bxn_mem *mem, const char *text, size_t bytes, bxn_objective objective,
                                bxn_record *out, bitaxon_error *error)
{
    *out = (bxn_record){.mem = mem};
    bitaxon_status status = count_values(text, bytes, error);
    if (status == BITAXON_OK)
        status = bxn_json_parse(mem, text, bytes, "record", &out->json, error);
    if (status == BITAXON_OK)
        status = parse_root(out, out->json.root, objective, error);
    if (status != BITAXON_OK)
        bxn_record_free(out);
    return status;
}

void bxn_record_free(bxn_record *record)
{
    bxn_json_free(&record->json);
    bxn_free(record->mem, record->messages, record->room * sizeof *record->messages);
    bxn_free(record->mem, record->joined, record->joined_bytes);
    memset(record, 0, sizeof *record);
}
