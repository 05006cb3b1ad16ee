/* SPDX-License-Identifier: Apache-2.0 */
/* unicode.c - UTF-8 and the Unicode normalization forms, for the tokenizer.
 *
 * Character data come from utf8proc. Its own whole-string functions are not used because they
 * sort combining marks in quadratic time and take memory from the C library: here text is
 * copied as it is up to a character that may change, and only such a stretch (with the starter
 * before it) is decomposed, ordered and composed. Work and memory are linear but for the
 * ordering of marks, which is a merge sort. */
#include "tokenizer/bpe.h"

#include <string.h>
#include <utf8proc.h>

bxn_utf8 bxn_utf8_step(const char *text, size_t count, size_t *length)
{
    const unsigned char *s = (const unsigned char *)text;
    unsigned char lead = s[0];
    *length = 1;
    if (lead < 0x80)
        return BXN_UTF8_VALID;
    if (lead < 0xC2 || lead > 0xF4)
        return BXN_UTF8_INVALID;
    size_t want = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    while (*length < want) {
        if (*length == count)
            return BXN_UTF8_PARTIAL;
        if (s[*length] < low || s[*length] > high)
            return BXN_UTF8_INVALID;
        low = 0x80;
        high = 0xBF;
        ++*length;
    }
    return BXN_UTF8_VALID;
}

uint32_t bxn_utf8_read(const char *text, size_t *length)
{
    const unsigned char *s = (const unsigned char *)text;
    if (s[0] < 0x80) {
        *length = 1;
        return s[0];
    }
    if (s[0] < 0xE0) {
        *length = 2;
        return (uint32_t)(s[0] & 0x1F) << 6 | (s[1] & 0x3F);
    }
    if (s[0] < 0xF0) {
        *length = 3;
        return (uint32_t)(s[0] & 0x0F) << 12 | (uint32_t)(s[1] & 0x3F) << 6 | (s[2] & 0x3F);
    }
    *length = 4;
    return (uint32_t)(s[0] & 0x07) << 18 | (uint32_t)(s[1] & 0x3F) << 12 |
           (uint32_t)(s[2] & 0x3F) << 6 | (s[3] & 0x3F);
}

size_t bxn_utf8_write(uint32_t c, char out[4])
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xC0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3F));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xE0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3F));
        out[2] = (char)(0x80 | (c & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3F));
    out[2] = (char)(0x80 | (c >> 6 & 0x3F));
    out[3] = (char)(0x80 | (c & 0x3F));
    return 4;
}

bool bxn_is_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
           c == 0x205F || c == 0x3000;
}

size_t bxn_space_prefix(const char *text, size_t bytes)
{
    size_t at = 0, length;
    while (at < bytes && bxn_is_space(bxn_utf8_read(text + at, &length)))
        at += length;
    return at;
}

size_t bxn_space_suffix(const char *text, size_t bytes)
{
    size_t start = bytes, length;
    while (start > 0) {
        size_t at = start - 1;
        while (at > 0 && ((unsigned char)text[at] & 0xC0) == 0x80)
            at--;
        if (!bxn_is_space(bxn_utf8_read(text + at, &length)))
            break;
        start = at;
    }
    return bytes - start;
}

bool bxn_utf8_valid(const char *text, size_t bytes)
{
    size_t length;
    for (size_t at = 0; at < bytes; at += length)
        if (bxn_utf8_step(text + at, bytes - at, &length) != BXN_UTF8_VALID)
            return false;
    return true;
}

bitaxon_status bxn_utf8_append(bxn_mem *mem, bxn_bytes *out, const char *text, size_t bytes,
                               bitaxon_error *error)
{
    bitaxon_status status = BITAXON_OK;
    size_t start = 0, at = 0, length;
    while (at < bytes && status == BITAXON_OK) {
        bool valid = bxn_utf8_step(text + at, bytes - at, &length) == BXN_UTF8_VALID;
        if (!valid) {
            status = bxn_bytes_append(mem, out, text + start, at - start, error);
            if (status == BITAXON_OK)
                status = bxn_bytes_append(mem, out, "\xEF\xBF\xBD", 3, error);
            start = at + length;
        }
        at += length;
    }
    if (status == BITAXON_OK)
        status = bxn_bytes_append(mem, out, text + start, bytes - start, error);
    return status;
}

/* ---- normalization ------------------------------------------------------------------ */

#define HANGUL_FIRST 0xAC00u
#define HANGUL_LAST 0xD7A3u
#define MOST_PARTS 32 /* characters that one character decomposes into; Unicode has at most 18 */

/* Characters of one stretch, and room of the same size to sort in. */
typedef struct stretch {
    utf8proc_int32_t *c; /* [2 * capacity] */
    size_t count, capacity;
} stretch;

/* Characters that came after Unicode 9 and have a combining class or a decomposition. The
 * tables of the library by which models' tokenizers are made are of that version: there they
 * are starters that nothing changes, and ids must come out alike. */
static const uint32_t late[][2] = {
    {0x07FD, 0x07FD},   {0x0898, 0x089F},   {0x08CA, 0x08D3},   {0x09FE, 0x09FE},
    {0x0C3C, 0x0C3C},   {0x0D3B, 0x0D3C},   {0x0EBA, 0x0EBA},   {0x1715, 0x1715},
    {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},   {0x32FF, 0x32FF},   {0xA7F2, 0xA7F4},
    {0xA82C, 0xA82C},   {0xAB69, 0xAB69},   {0x10781, 0x10785}, {0x10787, 0x107B0},
    {0x107B2, 0x107BA}, {0x10D24, 0x10D27}, {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF},
    {0x10F46, 0x10F50}, {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B},
    {0x1145E, 0x1145E}, {0x11839, 0x1183A}, {0x11930, 0x11930}, {0x11935, 0x11935},
    {0x11938, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0},
    {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42},
    {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x16FF0, 0x16FF1},
    {0x1E030, 0x1E06D}, {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE},
    {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF}, {0x1F16C, 0x1F16C}, {0x1FBF0, 0x1FBF9}};

static bool is_late(uint32_t c)
{
    size_t low = 0, high = sizeof late / sizeof *late;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (c < late[middle][0])
            high = middle;
        else if (c > late[middle][1])
            low = middle + 1;
        else
            return true;
    }
    return false;
}

/* True for a starter that the form leaves alone and that never composes with what stands
 * before it: text may be cut in front of it. Said of too few characters, it costs time only. */
static bool is_stable(uint32_t c, bxn_form form)
{
    bool compose = form == BXN_NFC || form == BXN_NFKC;
    bool compatible = form == BXN_NFKC || form == BXN_NFKD;
    if (c < 0x80)
        return true;
    if (form == BXN_NFC && c < 0x300)
        return true;
    if (c >= HANGUL_FIRST && c <= HANGUL_LAST)
        return compose;
    if (is_late(c))
        return true;
    if (c >= 0x1160 && c <= 0x11FF) /* vowels and finals join the syllable before */
        return false;
    const utf8proc_property_t *property = utf8proc_get_property((utf8proc_int32_t)c);
    bool second = property->comb_index != UINT16_MAX && property->comb_index >= 0x8000;
    bool decomposes =
        property->decomp_seqindex != UINT16_MAX && (property->decomp_type == 0 || compatible);
    return property->combining_class == 0 && !second && !decomposes;
}

static int combining_class(utf8proc_int32_t c)
{
    return utf8proc_get_property(c)->combining_class & 255;
}

/* Order a run of marks by class, stable. */
static void order_marks(utf8proc_int32_t *c, size_t count, utf8proc_int32_t *room)
{
    if (count <= 16) {
        for (size_t i = 1; i < count; i++) {
            utf8proc_int32_t mark = c[i];
            int rank = combining_class(mark);
            size_t at = i;
            for (; at > 0 && combining_class(c[at - 1]) > rank; at--)
                c[at] = c[at - 1];
            c[at] = mark;
        }
        return;
    }
    size_t start[257] = {0};
    for (size_t i = 0; i < count; i++)
        start[combining_class(c[i]) + 1]++;
    for (int rank = 0; rank < 256; rank++)
        start[rank + 1] += start[rank];
    for (size_t i = 0; i < count; i++)
        room[start[combining_class(c[i])]++] = c[i];
    memcpy(c, room, count * sizeof *c);
}

/* Decompose, order and compose [text, text + bytes) behind what out holds. */
static bitaxon_status normalize_stretch(bxn_mem *mem, bxn_form form, const char *text, size_t bytes,
                                        stretch *s, bxn_bytes *out, bitaxon_error *error)
{
    utf8proc_option_t options = UTF8PROC_DECOMPOSE;
    if (form == BXN_NFKC || form == BXN_NFKD)
        options |= UTF8PROC_COMPAT;
    size_t length;

    s->count = 0;
    for (size_t at = 0; at < bytes; at += length) {
        if (s->capacity - s->count < MOST_PARTS) {
            size_t unit = 2 * sizeof *s->c;
            size_t grown = s->capacity * 2 + 256;
            void *c = NULL;
            bitaxon_status status = bxn_alloc(mem, grown * unit, "normalization", &c, error);
            if (status != BITAXON_OK)
                return status;
            if (s->count != 0)
                memcpy(c, s->c, s->count * sizeof *s->c);
            bxn_free(mem, s->c, s->capacity * unit);
            s->c = c;
            s->capacity = grown;
        }
        uint32_t c = bxn_utf8_read(text + at, &length);
        int boundary = 0;
        utf8proc_ssize_t parts = utf8proc_decompose_char((utf8proc_int32_t)c, s->c + s->count,
                                                         MOST_PARTS, options, &boundary);
        if (parts < 0 || parts > MOST_PARTS)
            return bxn_fail(error, BITAXON_INTERNAL, "normalization of U+%04X failed", (unsigned)c);
        s->count += (size_t)parts;
    }
    for (size_t at = 0; at < s->count;) {
        size_t end = at;
        while (end < s->count && combining_class(s->c[end]) != 0)
            end++;
        order_marks(s->c + at, end - at, s->c + s->capacity);
        at = end + 1;
    }
    if (form == BXN_NFC || form == BXN_NFKC) {
        utf8proc_ssize_t count = utf8proc_normalize_utf32(s->c, (utf8proc_ssize_t)s->count,
                                                          UTF8PROC_COMPOSE | UTF8PROC_STABLE);
        if (count < 0)
            return bxn_fail(error, BITAXON_INTERNAL, "normalization failed");
        s->count = (size_t)count;
    }
    for (size_t i = 0; i < s->count; i++) {
        char c[4];
        bitaxon_status status =
            bxn_bytes_append(mem, out, c, bxn_utf8_write((uint32_t)s->c[i], c), error);
        if (status != BITAXON_OK)
            return status;
    }
    return BITAXON_OK;
}

bitaxon_status bxn_normalize(bxn_mem *mem, bxn_form form, const char *text, size_t bytes,
                             bxn_bytes *out, bxn_border *borders, size_t border_count,
                             bool *changed, bitaxon_error *error)
{
    stretch s = {0};
    bitaxon_status status = BITAXON_OK;
    size_t copied = 0, at = 0, previous = 0, length, border = 0;

    *changed = false;
    out->count = 0;
    while (at < bytes) {
        uint32_t c = bxn_utf8_read(text + at, &length);
        if (is_stable(c, form)) {
            previous = is_late(c) ? at + length : at; /* nothing composes with those */
            at += length;
            continue;
        }
        size_t start = previous < copied ? copied : previous, end = at;
        while (end < bytes && !is_stable(bxn_utf8_read(text + end, &length), form))
            end += length;
        for (; border < border_count && borders[border].local <= start; border++)
            borders[border].local += out->count - copied;
        status = bxn_bytes_append(mem, out, text + copied, start - copied, error);
        if (status != BITAXON_OK)
            goto done;
        size_t before = out->count;
        status = normalize_stretch(mem, form, text + start, end - start, &s, out, error);
        if (status != BITAXON_OK)
            goto done;
        size_t same = 0, written = out->count - before;
        while (same < written && same < end - start &&
               out->data[before + same] == text[start + same])
            same++;
        if (same != written || same != end - start)
            *changed = true;
        for (; border < border_count && borders[border].local < end; border++) {
            size_t inside = borders[border].local - start;
            borders[border].local = inside <= same ? before + inside : out->count;
        }
        copied = at = end;
        previous = end;
    }
    if (!*changed) { /* borders kept their places: equal text was written so far */
        out->count = 0;
        goto done;
    }
    for (; border < border_count; border++)
        borders[border].local += out->count - copied;
    status = bxn_bytes_append(mem, out, text + copied, bytes - copied, error);

done:
    bxn_free(mem, s.c, s.capacity * 2 * sizeof *s.c);
    return status;
}
