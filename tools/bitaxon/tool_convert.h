/* SPDX-License-Identifier: Apache-2.0 */
/* tool_convert.h - what the commands that write a model share: running the library's
 * function with progress, a table of what was done with each tensor, the total, --json. */
#ifndef BITAXON_TOOL_CONVERT_H
#define BITAXON_TOOL_CONVERT_H

#include "tool.h"

typedef bitaxon_status (*tool_convert_fn)(const bitaxon_convert_params *params,
                                          bitaxon_error *error);

/* Fills host, progress and report of `params` and runs `function`. verb: "quantized", ...;
 * table: a line for every tensor. Returns TOOL_OK or an exit code after a message. */
int tool_convert(tool_convert_fn function, bitaxon_convert_params *params, const char *verb,
                 bool table, bool json);

/* Whether `format` is one that the library can write; else a usage error for `command`. */
int tool_format_check(const char *command, const char *option, const char *format);

#endif
