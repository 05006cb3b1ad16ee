/* SPDX-License-Identifier: Apache-2.0 */
/* error.c - composing the caller's error record. Called once per failure, where the
 * name of what failed is known; every floor passes the record through untouched. */
#include "runtime/runtime.h"

#include <stdio.h>
#include <string.h>

/* Length of the well-formed UTF-8 sequence at s (n bytes left), 0 when there is none. */
static size_t sequence(const unsigned char *s, size_t n)
{
    size_t length = s[0] < 0x80 ? 1 : s[0] < 0xC2 ? 0 : s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : s[0] < 0xF5 ? 4 : 0;
    if (length == 0 || length > n)
        return 0;
    for (size_t i = 1; i < length; i++)
        if ((s[i] & 0xC0) != 0x80)
            return 0;
    if ((s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xED && s[1] > 0x9F) ||
        (s[0] == 0xF0 && s[1] < 0x90) || (s[0] == 0xF4 && s[1] > 0x8F))
        return 0;
    return length;
}

void bxn_sanitise(char *message)
{
    size_t n = strlen(message);
    for (size_t i = 0; i < n;) {
        size_t length = sequence((const unsigned char *)message + i, n - i);
        if (length == 0) {
            if (n - i < 4 && ((unsigned char)message[i] & 0xC0) == 0xC0) { /* cut by the end */
                message[i] = '\0';
                return;
            }
            message[i] = '?';
            length = 1;
        } else if (length == 1 && ((unsigned char)message[i] < 0x20 || message[i] == 0x7F)) {
            message[i] = ' ';
        }
        i += length;
    }
}

bitaxon_status bxn_fail(bitaxon_error *error, bitaxon_status status, const char *format, ...)
{
    if (error == NULL || error->struct_size < sizeof *error)
        return status;
    error->code = status;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(error->message, sizeof error->message, format, args);
    va_end(args);
    if (n < 0)
        error->message[0] = '\0';
    bxn_sanitise(error->message);
    return status;
}
