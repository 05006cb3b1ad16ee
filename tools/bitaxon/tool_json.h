/* SPDX-License-Identifier: Apache-2.0 */
/* tool_json.h - building and printing the object that --json asks for. */
#ifndef BITAXON_TOOL_JSON_H
#define BITAXON_TOOL_JSON_H

#include <jansson.h>

#include "tool.h"

json_t *tool_json_object(void);
json_t *tool_json_array(void);
/* The setters and the appender take the value over; a refusal of memory ends the program. */
void tool_json_set(json_t *object, const char *key, json_t *value);
void tool_json_append(json_t *array, json_t *value);
void tool_json_set_integer(json_t *object, const char *key, uint64_t value);
/* Infinity and NaN, which JSON lacks, become null. */
void tool_json_set_real(json_t *object, const char *key, double value);
/* Bytes that are not UTF-8 become U+FFFD. */
void tool_json_set_text(json_t *object, const char *key, const char *text, size_t bytes);
void tool_json_set_string(json_t *object, const char *key, const char *text);
/* Print to standard output and free. */
void tool_json_print(json_t *object);

#endif
