/* SPDX-License-Identifier: Apache-2.0 */
/* tool_line.h - one line of input: edited, with history, when libedit is there (compile
 * with HAVE_LIBEDIT) and both ends are a terminal; plain otherwise. */
#ifndef BITAXON_TOOL_LINE_H
#define BITAXON_TOOL_LINE_H

#include "tool.h"

typedef struct tool_line tool_line;

tool_line *tool_line_open(const char *prompt);
/* The next line without its newline; valid until the next call. NULL at the end of input,
 * or when a signal came (tool_signal() tells). */
const char *tool_line_read(tool_line *line, size_t *bytes);
void tool_line_close(tool_line *line);

#endif
