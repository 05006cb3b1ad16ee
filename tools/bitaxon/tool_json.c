/* SPDX-License-Identifier: Apache-2.0 */
/* tool_json.c - thin helpers over Jansson for the --json output of all commands. */
#include "tool_json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static json_t *needed(json_t *value)
{
    if (value == NULL) {
        tool_error("out of memory");
        exit(TOOL_FAILURE);
    }
    return value;
}

json_t *tool_json_object(void)
{
    return needed(json_object());
}

json_t *tool_json_array(void)
{
    return needed(json_array());
}

void tool_json_set(json_t *object, const char *key, json_t *value)
{
    if (json_object_set_new(object, key, needed(value)) != 0) {
        needed(NULL);
    }
}

void tool_json_append(json_t *array, json_t *value)
{
    if (json_array_append_new(array, needed(value)) != 0) {
        needed(NULL);
    }
}

void tool_json_set_integer(json_t *object, const char *key, uint64_t value)
{
    tool_json_set(object, key, json_integer((json_int_t)value));
}

void tool_json_set_real(json_t *object, const char *key, double value)
{
    tool_json_set(object, key, isfinite(value) ? json_real(value) : json_null());
}

void tool_json_set_text(json_t *object, const char *key, const char *text, size_t bytes)
{
    size_t count = 0;
    char *clean = tool_clean_text(text, bytes, false, &count);
    tool_json_set(object, key, json_stringn(clean, count));
    free(clean);
}

void tool_json_set_string(json_t *object, const char *key, const char *text)
{
    tool_json_set_text(object, key, text, strlen(text));
}

static int write_chunk(const char *bytes, size_t count, void *user)
{
    (void)user;
    tool_out_bytes(bytes, count);
    return tool_out_failed() ? -1 : 0;
}

void tool_json_print(json_t *object)
{
    if (json_dump_callback(object, write_chunk, NULL, JSON_INDENT(2) | JSON_REAL_PRECISION(12)) !=
            0 &&
        !tool_out_failed()) {
        needed(NULL);
    }
    tool_out("\n");
    json_decref(object);
}
