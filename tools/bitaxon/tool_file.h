/* SPDX-License-Identifier: Apache-2.0 */
/* tool_file.h - whole files in, and one file out that appears complete or not at all. */
#ifndef BITAXON_TOOL_FILE_H
#define BITAXON_TOOL_FILE_H

#include "tool.h"

/* Read a file ("-": standard input) into memory; a terminating zero follows the bytes.
 * Returns TOOL_OK or an exit code after a message. The caller frees *data. */
int tool_read_file(const char *path, char **data, size_t *size);

/* A file being written under a temporary name beside `path`. */
typedef struct tool_output {
    const char *path;
    char *temporary;
    FILE *file;
} tool_output;

int tool_output_open(tool_output *output, const char *path);
int tool_output_write(tool_output *output, const void *data, size_t bytes);
/* Flush to the disk and rename. */
int tool_output_commit(tool_output *output);
/* Remove what was written; nothing after a commit. */
void tool_output_abandon(tool_output *output);

#endif
