/* SPDX-License-Identifier: Apache-2.0 */
/* pretokenize.c - cutting text into the pieces that BPE works on, by PCRE2.
 *
 * The patterns of tokenizer.json are written for Oniguruma with Ruby's syntax. They are
 * translated where the two engines differ (white space, script names, \u), and refused where
 * they could differ unnoticed: a wrong piece gives plausible but wrong tokens. PCRE2 takes its
 * memory from the account, runs interpreted, and has limits that grow with the text, so that a
 * pattern which explodes ends with a status. */
#include "tokenizer/bpe.h"

#include <stdio.h>
#include <string.h>

/* ---- PCRE2's memory ------------------------------------------------------------------ */

#define HEADER 64 /* keeps PCRE2's blocks aligned; holds their size */

static void *pcre_alloc(size_t size, void *user)
{
    bxn_pcre_memory *memory = user;
    void *block = NULL;
    bitaxon_error error = BITAXON_ERROR_INIT;
    if (size > SIZE_MAX / 2) {
        memory->status = BITAXON_OUT_OF_MEMORY;
        return NULL;
    }
    bitaxon_status status = bxn_alloc(memory->mem, size + HEADER, "pre-tokenizer", &block, &error);
    if (status != BITAXON_OK) {
        memory->status = status;
        snprintf(memory->reason, sizeof memory->reason, "%s", error.message);
        return NULL;
    }
    memcpy(block, &size, sizeof size);
    if (memory->held != NULL)
        *memory->held += bxn_alloc_cost(size + HEADER);
    return (char *)block + HEADER;
}

static void pcre_release(void *ptr, void *user)
{
    bxn_pcre_memory *memory = user;
    size_t size;
    if (ptr == NULL)
        return;
    char *block = (char *)ptr - HEADER;
    memcpy(&size, block, sizeof size);
    if (memory->held != NULL)
        *memory->held -= bxn_alloc_cost(size + HEADER);
    bxn_free(memory->mem, block, size + HEADER);
}

bitaxon_status bxn_pcre_general(bxn_pcre_memory *memory, pcre2_general_context **out,
                                bitaxon_error *error)
{
    memory->status = BITAXON_OUT_OF_MEMORY;
    *out = pcre2_general_context_create(pcre_alloc, pcre_release, memory);
    if (*out == NULL)
        return bxn_fail(error, memory->status, "no memory for the pre-tokenizer: %s",
                        memory->reason);
    return BITAXON_OK;
}

/* ---- patterns --------------------------------------------------------------------------- */

/* White_Space, to stand in a class. PCRE2's own \s has U+180E besides. */
#define SPACE_CLASS "\\t-\\r \\x{85}\\p{Z}"

typedef struct translation {
    bxn_mem *mem;
    bitaxon_error *error;
    const char *where;
    const char *pattern; /* terminated, valid UTF-8 */
    size_t at;
    bool in_class;
    bxn_bytes out;
} translation;

static bitaxon_status put(translation *x, const char *text, size_t bytes)
{
    return bxn_bytes_append(x->mem, &x->out, text, bytes, x->error);
}

static bitaxon_status refuse(const translation *x, const char *what)
{
    return bxn_fail(
        x->error, BITAXON_UNSUPPORTED,
        "%.80s: tokenizer.json: pre_tokenizer: pattern: %s at byte %zu is not supported", x->where,
        what, x->at);
}

static bool is_hex(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* \p{..} or \P{..}; a script is meant by its Script property, not by Script_Extensions. */
static bitaxon_status translate_property(translation *x)
{
    const char *p = x->pattern + x->at;
    size_t start = p[2] == '{' && p[3] == '^' ? 4 : 3, end = start;
    if (p[2] != '{')
        return refuse(x, "a property without braces");
    while (is_letter(p[end]) || p[end] == '_')
        end++;
    if (end == start || end - start > 40 || p[end] != '}')
        return refuse(x, "a property's name");
    bitaxon_status status = put(x, p, start);
    if (status == BITAXON_OK && end - start > 2)
        status = put(x, "sc:", 3);
    if (status == BITAXON_OK)
        status = put(x, p + start, end + 1 - start);
    x->at += end + 1;
    return status;
}

static bitaxon_status translate_escape(translation *x)
{
    const char *p = x->pattern + x->at;
    char c = p[1];
    size_t digits = 0;
    bitaxon_status status = BITAXON_OK;
    switch (c) {
    case 's':
    case 'S':
        if (x->in_class && c == 'S')
            return refuse(x, "\\S inside a class");
        if (x->in_class)
            status = put(x, SPACE_CLASS, strlen(SPACE_CLASS));
        else if (c == 's')
            status = put(x, "[" SPACE_CLASS "]", strlen(SPACE_CLASS) + 2);
        else
            status = put(x, "[^" SPACE_CLASS "]", strlen(SPACE_CLASS) + 3);
        x->at += 2;
        return status;
    case 'p':
    case 'P':
        return translate_property(x);
    case 'd':
    case 'D':
    case 'r':
    case 'n':
    case 't':
    case 'f':
        status = put(x, p, 2);
        x->at += 2;
        return status;
    case 'u':
        while (digits < 4 && is_hex(p[2 + digits]))
            digits++;
        if (digits != 4)
            return refuse(x, "\\u without four digits");
        status = put(x, "\\x{", 3);
        if (status == BITAXON_OK)
            status = put(x, p + 2, 4);
        if (status == BITAXON_OK)
            status = put(x, "}", 1);
        x->at += 6;
        return status;
    case 'x':
        while (p[2] == '{' && digits < 8 && is_hex(p[3 + digits]))
            digits++;
        if (digits == 0 || p[3 + digits] != '}')
            return refuse(x, "\\x without braces");
        status = put(x, p, 4 + digits);
        x->at += 4 + digits;
        return status;
    default:
        if (is_letter(c) || (c >= '0' && c <= '9') || (unsigned char)c < 0x20 ||
            (unsigned char)c >= 0x7F)
            return refuse(x, "an escape");
        status = put(x, p, 2);
        x->at += 2;
        return status;
    }
}

static bool is_known_group(const char *p)
{
    static const char *const known[] = {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    if (p[1] != '?' && p[1] != '*')
        return true;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strncmp(p, known[i], strlen(known[i])) == 0)
            return true;
    return false;
}

static bitaxon_status translate(translation *x)
{
    bitaxon_status status = BITAXON_OK;
    while (status == BITAXON_OK && x->pattern[x->at] != '\0') {
        const char *p = x->pattern + x->at;
        if (*p == '\\') {
            status = translate_escape(x);
            continue;
        }
        if (x->in_class) {
            if (*p == '[')
                return refuse(x, "a class inside a class");
            if (*p == '&' && p[1] == '&')
                return refuse(x, "an intersection of classes");
            x->in_class = *p != ']';
        } else if (*p == '[') {
            size_t first = p[1] == '^' ? 2 : 1;
            if (p[first] == ']')
                return refuse(x, "a class that begins with ]");
            x->in_class = true;
            status = put(x, p, first);
            x->at += first;
            continue;
        } else if (*p == '(' && !is_known_group(p)) {
            return refuse(x, "a kind of group");
        } else if (*p == '^' || *p == '$') {
            return refuse(x, "an anchor");
        } else if (*p == '{' && p[1] == ',') {
            return refuse(x, "a quantifier without a lower bound");
        } else if (*p == '}' && (p[1] == '+' || p[1] == '?')) {
            return refuse(x, "a modified {} quantifier");
        }
        status = put(x, p, 1);
        x->at++;
    }
    return status;
}

bitaxon_status bxn_pattern_compile(bxn_tokenizer *t, const char *where, const char *pattern,
                                   pcre2_code **out, bitaxon_error *error)
{
    bxn_pcre_memory *memory = &t->pcre_memory;
    translation x = {.mem = t->mem, .error = error, .where = where, .pattern = pattern};
    pcre2_compile_context *context = NULL;
    int code = 0;
    PCRE2_SIZE offset = 0;
    bitaxon_status status;

    *out = NULL;
    if (strlen(pattern) > BXN_MAX_PATTERN_BYTES)
        return bxn_fail(error, BITAXON_LIMIT,
                        "%.80s: tokenizer.json: pre_tokenizer: a pattern of %zu bytes, the "
                        "limit is %u",
                        where, strlen(pattern), BXN_MAX_PATTERN_BYTES);
    status = translate(&x);
    if (status != BITAXON_OK)
        goto done;
    memory->status = BITAXON_OUT_OF_MEMORY;
    context = pcre2_compile_context_create(t->pcre);
    if (context == NULL) {
        status = bxn_fail(error, memory->status, "%.80s: no memory for the pre-tokenizer: %s",
                          where, memory->reason);
        goto done;
    }
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    memory->status = BITAXON_OK;
    *out = pcre2_compile((PCRE2_SPTR)x.out.data, x.out.count,
                         PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_AUTO_CAPTURE,
                         &code, &offset, context);
    if (*out == NULL && memory->status != BITAXON_OK) {
        status = bxn_fail(error, memory->status, "%.80s: no memory for the pre-tokenizer: %s",
                          where, memory->reason);
    } else if (*out == NULL) {
        PCRE2_UCHAR reason[120] = {0};
        pcre2_get_error_message(code, reason, sizeof reason);
        status = bxn_fail(error, BITAXON_UNSUPPORTED,
                          "%.80s: tokenizer.json: pre_tokenizer: pattern: %s (%.40s)", where,
                          (const char *)reason, pattern);
    }

done:
    pcre2_compile_context_free(context);
    bxn_bytes_free(t->mem, &x.out);
    return status;
}

/* ---- cutting --------------------------------------------------------------------------------- */

static void set_limits(bxn_encoder *e, size_t bytes)
{
    uint64_t steps = 1000000 + 32 * (uint64_t)bytes;
    uint32_t limit = steps < UINT32_MAX ? (uint32_t)steps : UINT32_MAX;
    pcre2_set_match_limit(e->limits, limit);
    pcre2_set_depth_limit(e->limits, limit);
    pcre2_set_heap_limit(e->limits, 65536); /* KiB */
}

/* The next match at or behind `from`. OK, or END for none. */
static bitaxon_status next_match(bxn_encoder *e, const bxn_step *step, const char *text,
                                 size_t bytes, size_t from, size_t *start, size_t *end)
{
    if (step->code == NULL) {
        const char *found = memmem(text + from, bytes - from, step->literal, step->literal_bytes);
        if (found == NULL)
            return BITAXON_END;
        *start = (size_t)(found - text);
        *end = *start + step->literal_bytes;
        return BITAXON_OK;
    }
    int code = pcre2_match(step->code, (PCRE2_SPTR)text, bytes, from, PCRE2_NO_UTF_CHECK, e->match,
                           e->limits);
    if (code == PCRE2_ERROR_NOMATCH)
        return BITAXON_END;
    if (code == PCRE2_ERROR_NOMEMORY)
        return bxn_fail(e->error, e->pcre_memory.status, "no memory for the pre-tokenizer: %s",
                        e->pcre_memory.reason);
    if (code == PCRE2_ERROR_MATCHLIMIT || code == PCRE2_ERROR_DEPTHLIMIT ||
        code == PCRE2_ERROR_HEAPLIMIT)
        return bxn_fail(e->error, BITAXON_LIMIT,
                        "the pre-tokenizer's pattern takes too many steps on this text");
    if (code < 0)
        return bxn_fail(e->error, BITAXON_INTERNAL, "the pre-tokenizer failed with code %d", code);
    PCRE2_SIZE *ends = pcre2_get_ovector_pointer(e->match);
    *start = ends[0];
    *end = ends[1];
    return BITAXON_OK;
}

/* Put a space in front of the piece, which does not begin with one. */
static bitaxon_status with_space(bxn_encoder *e, uint32_t step, const char *text, size_t bytes)
{
    const char *base = e->base;
    size_t origin = e->origin;
    e->space.count = 0;
    bitaxon_status status = bxn_bytes_append(e->mem, &e->space, " ", 1, e->error);
    if (status == BITAXON_OK)
        status = bxn_bytes_append(e->mem, &e->space, text, bytes, e->error);
    if (status != BITAXON_OK)
        return status;
    e->origin = origin + (size_t)(text - base);
    e->base = e->space.data;
    e->spaced = true;
    status = bxn_pretokenize(e, step, e->space.data, e->space.count);
    e->base = base;
    e->origin = origin;
    e->spaced = false;
    return status;
}

bitaxon_status bxn_pretokenize(bxn_encoder *e, uint32_t index, const char *text, size_t bytes)
{
    if (bytes == 0)
        return BITAXON_OK;
    if (index == e->t->step_count)
        return bxn_encoder_piece(e, text, bytes);

    const bxn_step *step = &e->t->steps[index];
    bitaxon_status status = BITAXON_OK;
    size_t done = 0, from = 0, start = 0, end = 0;
    if (step->add_space)
        return text[0] == ' ' ? bxn_pretokenize(e, index + 1, text, bytes)
                              : with_space(e, index + 1, text, bytes);
    while (from <= bytes && status == BITAXON_OK) {
        set_limits(e, bytes);
        status = next_match(e, step, text, bytes, from, &start, &end);
        if (status != BITAXON_OK)
            break;
        if (!step->drop_gaps)
            status = bxn_pretokenize(e, index + 1, text + done, start - done);
        if (status == BITAXON_OK && !step->drop_matches)
            status = bxn_pretokenize(e, index + 1, text + start, end - start);
        done = from = end;
        if (start == end) { /* an empty match only cuts */
            size_t length = 1;
            if (end < bytes)
                bxn_utf8_read(text + end, &length);
            from += length;
        }
    }
    if (status != BITAXON_END)
        return status;
    return step->drop_gaps ? BITAXON_OK : bxn_pretokenize(e, index + 1, text + done, bytes - done);
}
