/* SPDX-License-Identifier: Apache-2.0 */
/* dataset_scan.c - where the records of a file are. The file is read from front to back through one small buffer,
 * whatever the length of a line; a record's bytes are not kept. In a JSON array only strings, brackets and commas are
 * understood, enough to tell where an element ends: whether it is valid the parser says later. */
#include "train/dataset_parts.h"

#include <string.h>

enum { LINES, FIRST_ELEMENT, NEXT_ELEMENT, CLOSED, ENDED };

bitaxon_status bxn_scan_read(const bitaxon_source *source, const char *name, uint64_t offset, void *buffer,
                             size_t bytes, bitaxon_error *error)
{
    char text[32];
    int32_t code = bytes == 0 ? 0 : source->read_at(source->user, offset, buffer, bytes);
    if (code != 0)
        return bxn_fail(error, BITAXON_IO, "%.100s: cannot read %zu bytes at %llu (%s)", name, bytes,
                        (unsigned long long)offset, bxn_io_reason(code, text));
    return BITAXON_OK;
}

/* The next byte without passing it; -1 at the end, -2 after a failure. */
static int look(bxn_scan *s, bitaxon_error *error)
{
    if (s->at == s->have) {
        uint64_t next = s->offset + s->have, left = s->source->size - next;
        size_t bytes = left < BXN_SCAN_BYTES ? (size_t)left : BXN_SCAN_BYTES;
        if (bytes == 0)
            return -1;
        if (bxn_scan_read(s->source, s->name, next, s->buffer, bytes, error) != BITAXON_OK)
            return -2;
        s->offset = next;
        s->at = 0;
        s->have = bytes;
    }
    return s->buffer[s->at];
}

static uint64_t place(const bxn_scan *s) { return s->offset + s->at; }

static bool blank(int c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

static void pass(bxn_scan *s, int c)
{
    s->at++;
    s->line += c == '\n';
}

bitaxon_status bxn_scan_open(bxn_mem *mem, const bitaxon_source *source, const char *name, bxn_scan *scan,
                             bitaxon_error *error)
{
    static const unsigned char mark[3] = {0xEF, 0xBB, 0xBF};
    void *memory;
    int c;
    *scan = (bxn_scan){.source = source, .name = name, .line = 1};
    bitaxon_status status = bxn_alloc(mem, BXN_SCAN_BYTES, "buffer of a data set", &memory, error);
    if (status != BITAXON_OK)
        return status;
    scan->buffer = memory;
    if ((c = look(scan, error)) >= 0 && scan->have >= 3 && memcmp(scan->buffer, mark, 3) == 0)
        scan->at = 3;
    while ((c = look(scan, error)) >= 0 && blank(c))
        pass(scan, c);
    if (c == -2) {
        bxn_scan_close(mem, scan);
        return BITAXON_IO;
    }
    if (c == '[') {
        pass(scan, c);
        scan->state = FIRST_ELEMENT;
    }
    return BITAXON_OK;
}

void bxn_scan_close(bxn_mem *mem, bxn_scan *scan)
{
    bxn_free(mem, scan->buffer, BXN_SCAN_BYTES);
    scan->buffer = NULL;
}

static bitaxon_status next_line(bxn_scan *s, bxn_found *out, bitaxon_error *error)
{
    int c;
    while ((c = look(s, error)) >= 0 && blank(c))
        pass(s, c);
    if (c < 0)
        return c == -1 ? BITAXON_END : BITAXON_IO;
    out->offset = place(s);
    out->line = s->line;
    while ((c = look(s, error)) >= 0 && c != '\n') {
        if (!blank(c))
            out->bytes = place(s) + 1 - out->offset;
        pass(s, c);
    }
    return c == -2 ? BITAXON_IO : BITAXON_OK;
}

static bitaxon_status problem(bxn_scan *s, bxn_found *out, const char *what, int state)
{
    out->problem = what;
    s->state = state;
    return BITAXON_OK;
}

/* To the comma or bracket that ends the element; the scanner stands on its first byte. */
static bitaxon_status pass_element(bxn_scan *s, bxn_found *out, bitaxon_error *error)
{
    uint64_t depth = 0;
    bool string = false, escape = false;
    int c;
    while ((c = look(s, error)) >= 0) {
        if (string) {
            string = escape || c != '"';
            escape = !escape && c == '\\';
        } else if (c == '"') {
            string = true;
        } else if (c == '{' || c == '[') {
            depth++;
        } else if (depth == 0 && (c == ',' || c == ']')) {
            pass(s, c);
            s->state = c == ',' ? NEXT_ELEMENT : CLOSED;
            return BITAXON_OK;
        } else if (depth > 0 && (c == '}' || c == ']')) {
            depth--;
        }
        if (!blank(c))
            out->bytes = place(s) + 1 - out->offset;
        pass(s, c);
    }
    return c == -2 ? BITAXON_IO : problem(s, out, "the file ends inside of an element of the array", ENDED);
}

static bitaxon_status next_element(bxn_scan *s, bxn_found *out, bitaxon_error *error)
{
    for (;;) {
        int c = s->state == ENDED ? -1 : look(s, error);
        if (c == -2)
            return BITAXON_IO;
        out->offset = place(s);
        out->line = s->line;
        if (c == -1) {
            if (s->state == CLOSED || s->state == ENDED)
                return BITAXON_END;
            return problem(s, out, "the file ends before the array does", ENDED);
        }
        if (blank(c)) {
            pass(s, c);
        } else if (s->state == CLOSED) {
            return problem(s, out, "text after the end of the array", ENDED);
        } else if (c == ']') {
            bool missing = s->state == NEXT_ELEMENT;
            pass(s, c);
            s->state = CLOSED;
            if (missing)
                return problem(s, out, "an element of the array is missing after a comma", CLOSED);
        } else if (c == ',') {
            pass(s, c);
            return problem(s, out, "an element of the array is missing before a comma", NEXT_ELEMENT);
        } else {
            return pass_element(s, out, error);
        }
    }
}

bitaxon_status bxn_scan_next(bxn_scan *scan, bxn_found *out, bitaxon_error *error)
{
    *out = (bxn_found){0};
    return scan->state == LINES ? next_line(scan, out, error) : next_element(scan, out, error);
}
