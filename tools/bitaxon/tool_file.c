/* SPDX-License-Identifier: Apache-2.0 */
/* tool_file.c - reading whole files, and writing one through a temporary name: the target
 * holds either what it held before or the complete new content. */
#include "tool_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int tool_read_file(const char *path, char **data, size_t *size)
{
    bool standard = strcmp(path, "-") == 0;
    const char *name = standard ? "standard input" : path;
    int file = standard ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    *data = NULL;
    *size = 0;
    if (file < 0) {
        return tool_error("%s: %s", name, strerror(errno));
    }
    size_t capacity = 65536;
    size_t used = 0;
    char *buffer = tool_alloc(capacity);
    int code = TOOL_OK;
    for (;;) {
        if (capacity - used < 2) {
            capacity *= 2;
            buffer = tool_realloc(buffer, capacity);
        }
        ssize_t got = read(file, buffer + used, capacity - used - 1);
        if (got > 0) {
            used += (size_t)got;
        } else if (got == 0) {
            break;
        } else if (errno != EINTR) {
            code = tool_error("%s: %s", name, strerror(errno));
            break;
        } else if (tool_signal() != 0) {
            code = tool_fail(BITAXON_CANCELLED, NULL);
            break;
        }
    }
    if (!standard) {
        close(file);
    }
    if (code != TOOL_OK) {
        free(buffer);
        return code;
    }
    buffer[used] = '\0';
    *data = buffer;
    *size = used;
    return TOOL_OK;
}

static int output_error(const tool_output *output)
{
    return tool_error("writing %s: %s", output->path, strerror(errno));
}

int tool_output_open(tool_output *output, const char *path)
{
    size_t length = strlen(path) + sizeof ".XXXXXX";
    output->path = path;
    output->file = NULL;
    output->temporary = tool_alloc(length);
    snprintf(output->temporary, length, "%s.XXXXXX", path);
    int file = mkstemp(output->temporary);
    if (file < 0) {
        int code = output_error(output);
        free(output->temporary);
        output->temporary = NULL;
        return code;
    }
    mode_t mask = umask(0);
    umask(mask);
    output->file = fchmod(file, 0666 & ~mask) == 0 ? fdopen(file, "wb") : NULL;
    if (output->file == NULL) {
        int code = output_error(output);
        close(file);
        tool_output_abandon(output);
        return code;
    }
    return TOOL_OK;
}

int tool_output_write(tool_output *output, const void *data, size_t bytes)
{
    if (fwrite(data, 1, bytes, output->file) != bytes) {
        return output_error(output);
    }
    return TOOL_OK;
}

int tool_output_commit(tool_output *output)
{
    if (fflush(output->file) != 0 || fsync(fileno(output->file)) != 0) {
        return output_error(output);
    }
    FILE *file = output->file;
    output->file = NULL;
    if (fclose(file) != 0 || rename(output->temporary, output->path) != 0) {
        return output_error(output);
    }
    free(output->temporary);
    output->temporary = NULL;
    return TOOL_OK;
}

void tool_output_abandon(tool_output *output)
{
    if (output->file != NULL) {
        fclose(output->file);
        output->file = NULL;
    }
    if (output->temporary != NULL) {
        unlink(output->temporary);
        free(output->temporary);
        output->temporary = NULL;
    }
}
