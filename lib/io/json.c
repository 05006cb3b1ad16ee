/* SPDX-License-Identifier: Apache-2.0 */
/* json.c - JSON documents through Jansson, within the account.
 *
 * Jansson takes its memory from the C library, so an upper bound of what it can take is
 * counted over the text first and charged to the account before the parser starts. The same
 * pass refuses what the parser should never see: NUL bytes (Jansson drops one that follows a
 * number) and nesting that is too deep.
 *
 * Jansson finds the decimal point through the locale: reading asserts that it is one byte long, writing replaces one
 * byte of it. So the parser runs in the thread's "C" locale, which is restored afterwards, and so does who writes
 * reals. */
#define _POSIX_C_SOURCE 200809L

#include "io/io.h"

#include <locale.h>
#include <string.h>
#if defined(__APPLE__)
#include <xlocale.h>
#endif

/* What the text contains, as far as memory goes. Sizes of strings include both quotes. */
typedef struct census {
    uint64_t objects, arrays, commas, colons, scalars;
    uint64_t string_bytes; /* of nodes and keys, see string_cost */
    uint64_t longest;      /* token */
    uint64_t longest_key;
    uint32_t deepest;
} census;

/* An upper bound of what malloc(n) takes: glibc adds 8 bytes and rounds to 16, at least 32;
 * large blocks are mappings of whole pages. */
static uint64_t chunk(uint64_t n)
{
    uint64_t size = (n + 8 + 15) & ~(uint64_t)15;
    return n >= 65536 ? size + 4096 + 16 : size < 32 ? 32 : size;
}

/* Jansson 2.14 on a 64-bit machine (sizes in bytes):
 *   object   72 for the node (type, count, size, buckets, order, two list heads) and 8 buckets
 *            of 16. The bucket array doubles when there are as many pairs as buckets, so n
 *            pairs have at most 2n buckets, and the half as large array before it is alive
 *            while they move: 48 per pair.
 *   pair     56 + the key + 1. The parser's own copy of a key, as long as the token, lives
 *            until its value is complete: at most one per level of nesting.
 *   array    40 for the node and 8 pointers; doubling likewise: 24 per element.
 *   string   32 for the node and a buffer as long as the token + 1.
 *   number   24. true, false and null are shared and free.
 *   lexer    one buffer, doubling: 3 times the longest token.
 * Elements of an array are at most its commas + 1, and 8 + 1 pointers fit the first array and
 * the slack counted here. */
static uint64_t bound(const census *c)
{
    uint64_t total = 16384;
    total += c->objects * (chunk(72) + chunk(8 * 16));
    total += c->colons * 48;
    total += c->arrays * (chunk(40) + chunk(8 * 8));
    total += c->commas * 24;
    total += c->scalars * chunk(24);
    total += c->string_bytes;
    total += (uint64_t)(c->deepest + 1) * chunk(c->longest_key + 1);
    total += 3 * chunk(c->longest + 1);
    return total; /* counts are at most 2^28 and each item under 2^9 bytes: no overflow */
}

static void take_string(census *c, uint64_t token, bool key)
{
    if (key) {
        c->string_bytes += chunk(56 + token + 1);
        if (token > c->longest_key)
            c->longest_key = token;
    } else {
        c->string_bytes += chunk(32) + chunk(token + 1);
    }
}

static bitaxon_status fail_at(const char *text, size_t offset, const char *what,
                              const char *message, bitaxon_error *error)
{
    size_t line = 1, start = 0;
    for (size_t i = 0; i < offset; i++)
        if (text[i] == '\n') {
            line++;
            start = i + 1;
        }
    return bxn_fail(error, BITAXON_FORMAT, "%.64s: line %zu, column %zu (offset %zu): %s", what,
                    line, offset - start + 1, offset, message);
}

/* One pass over the text; it need not be valid JSON. */
static bitaxon_status take_census(const char *text, size_t bytes, const char *what, census *c,
                                  bitaxon_error *error)
{
    uint32_t depth = 0;
    bool pending = false; /* a string that may turn out to be a key */
    uint64_t token = 0;   /* its length */

    const char *nul = memchr(text, '\0', bytes);
    if (nul != NULL)
        return fail_at(text, (size_t)(nul - text), what, "NUL byte", error);
    for (size_t i = 0; i < bytes;) {
        char ch = text[i];
        size_t start = i++;
        if (ch == ' ' || ch == '\t' || ch == '\n' || ch == '\r')
            continue;
        if (pending)
            take_string(c, token, ch == ':');
        pending = false;
        switch (ch) {
        case '{':
        case '[':
            if (++depth > BXN_MAX_NESTING)
                return fail_at(text, start, what, "nested too deeply (the limit is 64)", error);
            if (depth > c->deepest)
                c->deepest = depth;
            c->objects += ch == '{';
            c->arrays += ch == '[';
            break;
        case '}':
        case ']':
            depth -= depth > 0;
            break;
        case ',':
            c->commas++;
            break;
        case ':':
            c->colons++;
            break;
        case '"':
            while (i < bytes && text[i] != '"')
                i += text[i] == '\\' ? 2 : 1;
            i = i < bytes ? i + 1 : bytes;
            pending = true;
            break;
        default:
            while (i < bytes && memchr(" \t\n\r{}[],:\"", text[i], 11) == NULL)
                i++;
            c->scalars++;
        }
        token = i - start;
        if (token > c->longest)
            c->longest = token;
    }
    if (pending)
        take_string(c, token, false);
    return BITAXON_OK;
}

bool bxn_locale_enter(bxn_locale *locale)
{
    locale_t plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    *locale = (bxn_locale){ NULL, NULL };
    if (plain == (locale_t)0)
        return false;
    locale->plain = plain;
    locale->before = uselocale(plain);
    return true;
}

void bxn_locale_leave(bxn_locale *locale)
{
    if (locale->plain == NULL)
        return;
    uselocale(locale->before);
    freelocale(locale->plain);
    *locale = (bxn_locale){ NULL, NULL };
}

bitaxon_status bxn_json_parse(bxn_mem *mem, const char *text, size_t bytes, const char *what,
                              bxn_json *out, bitaxon_error *error)
{
    census c = {0};
    json_error_t problem;
    bitaxon_status status = BITAXON_OK;

    memset(out, 0, sizeof *out);
    if (bytes > BXN_MAX_JSON_BYTES)
        return bxn_fail(error, BITAXON_LIMIT, "%.64s: %zu bytes of JSON, the limit is %u", what,
                        bytes, BXN_MAX_JSON_BYTES);
    status = take_census(text, bytes, what, &c, error);
    if (status != BITAXON_OK)
        return status;
    uint64_t charge = bound(&c);
    status = bxn_mem_charge(mem, charge, false, what, error);
    if (status != BITAXON_OK)
        return status;

    bxn_locale locale;
    if (!bxn_locale_enter(&locale)) {
        status = bxn_fail(error, BITAXON_OUT_OF_MEMORY, "out of memory: locale for %.64s", what);
        goto fail;
    }
    memset(&problem, 0, sizeof problem);
    out->root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &problem);
    bxn_locale_leave(&locale);
    if (out->root == NULL) {
        if (problem.text[0] == '\0')
            status = bxn_fail(error, BITAXON_OUT_OF_MEMORY, "out of memory: JSON of %.64s", what);
        else
            status = bxn_fail(error, BITAXON_FORMAT, "%.64s: line %d, column %d (offset %d): %s",
                              what, problem.line, problem.column, problem.position, problem.text);
        goto fail;
    }
    out->mem = mem;
    out->charged = charge;
    return BITAXON_OK;

fail:
    bxn_mem_discharge(mem, charge, false);
    return status;
}

void bxn_json_free(bxn_json *json)
{
    if (json->root != NULL) {
        json_decref(json->root);
        bxn_mem_discharge(json->mem, json->charged, false);
    }
    memset(json, 0, sizeof *json);
}
