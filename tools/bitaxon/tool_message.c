/* SPDX-License-Identifier: Apache-2.0 */
/* tool_message.c - messages, standard output, memory and text for all commands.
 * Everything that reaches a terminal from a file or a model passes tool_clean_text, and
 * every byte for standard output passes tool_out_bytes, so that a full disk or a closed
 * pipe is noticed once and reported once. */
#include "tool.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int out_errno; /* of the first failed write to standard output */

static void print_message(const char *prefix, const char *format, va_list arguments)
{
    char line[1024];
    vsnprintf(line, sizeof line, format, arguments);
    for (char *c = line; *c != '\0'; c++) {
        if (*c == '\n' || *c == '\t') {
            *c = ' ';
        }
    }
    size_t count = 0;
    char *clean = tool_clean_text(line, strlen(line), true, &count);
    fprintf(stderr, "%s%s\n", prefix, clean);
    free(clean);
}

int tool_error(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    print_message("bitaxon: ", format, arguments);
    va_end(arguments);
    return TOOL_FAILURE;
}

int tool_usage_error(const char *command, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    print_message("bitaxon: ", format, arguments);
    va_end(arguments);
    fprintf(stderr, "Try 'bitaxon%s%s --help'.\n", command[0] != '\0' ? " " : "", command);
    return TOOL_USAGE;
}

int tool_fail(bitaxon_status status, const bitaxon_error *error)
{
    if (tool_out_failed()) {
        return TOOL_FAILURE; /* tool_out_close says what happened */
    }
    if (status == BITAXON_CANCELLED) {
        tool_error("cancelled");
        return tool_signal() != 0 ? 128 + tool_signal() : TOOL_CANCELLED;
    }
    if (error != NULL && error->message[0] != '\0') {
        return tool_error("%s", error->message);
    }
    return tool_error("%s", bitaxon_status_name(status));
}

static void out_of_memory(void)
{
    fputs("bitaxon: out of memory\n", stderr);
    exit(TOOL_FAILURE);
}

void *tool_alloc(size_t size)
{
    void *memory = calloc(1, size != 0 ? size : 1);
    if (memory == NULL) {
        out_of_memory();
    }
    return memory;
}

void *tool_realloc(void *old, size_t size)
{
    void *memory = realloc(old, size != 0 ? size : 1);
    if (memory == NULL) {
        out_of_memory();
    }
    return memory;
}

char *tool_copy(const char *text, size_t bytes)
{
    char *copy = tool_alloc(bytes + 1);
    memcpy(copy, text, bytes);
    return copy;
}

static void note_out_error(void)
{
    if (out_errno == 0) {
        out_errno = errno != 0 ? errno : EIO;
    }
}

void tool_out_bytes(const char *bytes, size_t count)
{
    if (out_errno == 0 && count != 0 && fwrite(bytes, 1, count, stdout) != count) {
        note_out_error();
    }
}

void tool_out(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (out_errno == 0 && vfprintf(stdout, format, arguments) < 0) {
        note_out_error();
    }
    va_end(arguments);
}

void tool_out_flush(void)
{
    if (out_errno == 0 && fflush(stdout) != 0) {
        note_out_error();
    }
}

bool tool_out_failed(void)
{
    return out_errno != 0;
}

int tool_out_close(int code)
{
    tool_out_flush();
    if (fclose(stdout) != 0) {
        note_out_error();
    }
    if (out_errno != 0) {
        tool_error("writing standard output: %s", strerror(out_errno));
        return code == TOOL_OK ? TOOL_FAILURE : code;
    }
    return code;
}

/* Length of the well-formed character at s, or, when there is none, the length of the
 * ill-formed part to replace, with *valid cleared. */
static size_t utf8_step(const unsigned char *s, size_t bytes, bool *valid)
{
    unsigned char lead = s[0];
    size_t length = lead < 0x80                    ? 1
                    : lead >= 0xc2 && lead <= 0xdf ? 2
                    : lead >= 0xe0 && lead <= 0xef ? 3
                    : lead >= 0xf0 && lead <= 0xf4 ? 4
                                                   : 0;
    *valid = false;
    if (length == 0) {
        return 1;
    }
    for (size_t i = 1; i < length; i++) {
        unsigned char low = 0x80;
        unsigned char high = 0xbf;
        if (i == 1) {
            low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
            high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
        }
        if (i >= bytes || s[i] < low || s[i] > high) {
            return i;
        }
    }
    *valid = true;
    return length;
}

char *tool_clean_text(const char *text, size_t bytes, bool terminal, size_t *count)
{
    const unsigned char *s = (const unsigned char *)text;
    char *out = tool_alloc(3 * bytes + 1);
    size_t n = 0;
    for (size_t i = 0; i < bytes;) {
        bool valid;
        size_t length = utf8_step(s + i, bytes - i, &valid);
        bool control =
            terminal &&
            ((length == 1 && (s[i] < 0x20 || s[i] == 0x7f) && s[i] != '\n' && s[i] != '\t') ||
             (length == 2 && s[i] == 0xc2 && s[i + 1] < 0xa0));
        if (valid && !control) {
            memcpy(out + n, s + i, length);
            n += length;
        } else {
            memcpy(out + n, "\xef\xbf\xbd", 3);
            n += 3;
        }
        i += length;
    }
    out[n] = '\0';
    *count = n;
    return out;
}

void tool_fit_name(const char *name, size_t columns, char *buffer)
{
    size_t count = strlen(name);
    size_t head = count <= columns ? count : (columns - 3) / 2;
    size_t tail = count <= columns ? 0 : columns - 3 - head;
    memcpy(buffer, name, head);
    if (tail != 0) {
        memcpy(buffer + head, "...", 3);
        memcpy(buffer + head + 3, name + count - tail, tail);
        head += 3 + tail;
    }
    buffer[head] = '\0';
    for (char *c = buffer; *c != '\0'; c++) {
        if ((unsigned char)*c < 0x20 || (unsigned char)*c >= 0x7f) {
            *c = '?';
        }
    }
}

const char *tool_count_text(uint64_t value, char buffer[TOOL_NUMBER_BYTES])
{
    char digits[24];
    int length = snprintf(digits, sizeof digits, "%llu", (unsigned long long)value);
    int n = 0;
    for (int i = 0; i < length; i++) {
        if (i != 0 && (length - i) % 3 == 0) {
            buffer[n++] = ',';
        }
        buffer[n++] = digits[i];
    }
    buffer[n] = '\0';
    return buffer;
}

const char *tool_bytes_text(uint64_t bytes, char buffer[TOOL_NUMBER_BYTES])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 1024.0 && unit + 1 < sizeof units / sizeof units[0]) {
        value /= 1024.0;
        unit++;
    }
    int decimals = unit == 0 ? 0 : value < 100.0 ? 2 : 1;
    snprintf(buffer, TOOL_NUMBER_BYTES, "%.*f %s", decimals, value, units[unit]);
    return buffer;
}
