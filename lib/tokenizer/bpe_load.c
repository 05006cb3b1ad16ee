/* SPDX-License-Identifier: Apache-2.0 */
/* bpe_load.c - a tokenizer from the texts of tokenizer.json, tokenizer_config.json and
 * generation_config.json.
 *
 * Nothing in the files is trusted: every count is bounded by the size of the text, ids are
 * unique, and what would change ids but is not known is refused by name. A token that BPE can
 * produce is never a control token, so text alone cannot become one. */
#include "tokenizer/bpe.h"

#include <string.h>

/* An entry of added_tokens. Strings belong to the parsed document. */
typedef struct added_input {
    const char *content;
    size_t bytes;
    const char *match; /* what is looked for: content, or its normalized form */
    size_t match_bytes;
    size_t match_at; /* in loader's normal text, when changed */
    uint32_t id, order;
    bool special, normalized, lstrip, rstrip, changed;
} added_input;

typedef struct load {
    bxn_loader base;
    bxn_tokenizer *t;
    bxn_mem *mem;
    bitaxon_error *error;
    const char *where;
    uint64_t id_limit;
    json_t *vocab, *merges;
    added_input *added;
    size_t added_count;
    bxn_bytes normal;  /* normalized texts of added tokens */
    bxn_bytes scratch; /* the bytes of one token, the left part of one merge */
    bxn_bytes joined;  /* both parts */
} load;

bitaxon_status bxn_tokenizer_alloc(bxn_tokenizer *t, size_t size, const char *what, void **out,
                                   bitaxon_error *error)
{
    bitaxon_status status = bxn_alloc(t->mem, size, what, out, error);
    if (status == BITAXON_OK)
        t->held += bxn_alloc_cost(size);
    return status;
}

void bxn_tokenizer_release(bxn_tokenizer *t, void *ptr, size_t size)
{
    if (ptr == NULL)
        return;
    t->held -= bxn_alloc_cost(size);
    bxn_free(t->mem, ptr, size);
}

/* ---- the byte alphabet ----------------------------------------------------------------- */

/* The byte that a character of the byte alphabet stands for (printable Latin-1 for itself,
 * the rest from U+0100 on), or -1. */
static int byte_of(uint32_t c)
{
    if ((c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255))
        return (int)c;
    if (c < 256 || c > 256 + 67)
        return -1;
    c -= 256;
    return c <= 32 ? (int)c : c <= 66 ? (int)(c - 33 + 127) : 173;
}

/* Append the bytes that a text in the byte alphabet stands for. A text that is not written in
 * it is appended as it is, and *raw set. */
static bitaxon_status decode_token(load *l, const char *text, size_t bytes, bxn_bytes *out,
                                   bool *raw)
{
    bitaxon_status status = bxn_bytes_reserve(l->mem, out, bytes, l->error);
    if (status != BITAXON_OK)
        return status;
    size_t length, count = out->count;
    *raw = false;
    for (size_t at = 0; at < bytes; at += length) {
        int byte = byte_of(bxn_utf8_read(text + at, &length));
        if (byte < 0) {
            *raw = true;
            return bxn_bytes_append(l->mem, out, text, bytes, l->error);
        }
        out->data[count++] = (char)byte;
    }
    out->count = count;
    return BITAXON_OK;
}

/* ---- added tokens, first pass ------------------------------------------------------------- */

static bitaxon_status check_id(load *l, const char *what, const char *text, json_t *value,
                               uint32_t *id)
{
    if (!json_is_integer(value))
        return bxn_fail(l->error, BITAXON_FORMAT,
                        "%.80s: tokenizer.json: %s \"%.60s\": its id is not an integer", l->where,
                        what, text);
    json_int_t number = json_integer_value(value);
    if (number < 0 || (uint64_t)number >= l->id_limit)
        return bxn_fail(l->error, BITAXON_FORMAT,
                        "%.80s: tokenizer.json: %s \"%.60s\": id %lld, expected 0 to %llu",
                        l->where, what, text, (long long)number,
                        (unsigned long long)(l->id_limit - 1));
    *id = (uint32_t)number;
    if (*id >= l->t->size)
        l->t->size = *id + 1;
    return BITAXON_OK;
}

static bitaxon_status read_added(load *l, json_t *node, added_input *in)
{
    static const char *const keys[] = {"id",     "content",    "single_word", "lstrip",
                                       "rstrip", "normalized", "special",     NULL};
    bool single_word = false;
    bitaxon_status status = bxn_load_check_keys(&l->base, node, "added_tokens", keys);
    if (status != BITAXON_OK)
        return status;
    json_t *content = json_object_get(node, "content");
    if (!json_is_string(content) || json_string_length(content) == 0)
        return bxn_fail(l->error, BITAXON_FORMAT,
                        "%.80s: tokenizer.json: added_tokens: entry %u has no \"content\"",
                        l->where, (unsigned)in->order);
    in->content = in->match = json_string_value(content);
    in->bytes = in->match_bytes = json_string_length(content);
    if (in->bytes > BXN_MAX_ADDED_BYTES)
        return bxn_fail(
            l->error, BITAXON_LIMIT,
            "%.80s: tokenizer.json: added token \"%.60s\" has %zu bytes, the limit is %u", l->where,
            in->content, in->bytes, BXN_MAX_ADDED_BYTES);
    status = check_id(l, "added token", in->content, json_object_get(node, "id"), &in->id);
    if (status == BITAXON_OK)
        status = bxn_load_flag(&l->base, node, "added_tokens", "special", &in->special);
    in->normalized = !in->special;
    if (status == BITAXON_OK)
        status = bxn_load_flag(&l->base, node, "added_tokens", "normalized", &in->normalized);
    if (status == BITAXON_OK)
        status = bxn_load_flag(&l->base, node, "added_tokens", "lstrip", &in->lstrip);
    if (status == BITAXON_OK)
        status = bxn_load_flag(&l->base, node, "added_tokens", "rstrip", &in->rstrip);
    if (status == BITAXON_OK)
        status = bxn_load_flag(&l->base, node, "added_tokens", "single_word", &single_word);
    if (status == BITAXON_OK && single_word)
        return bxn_fail(
            l->error, BITAXON_UNSUPPORTED,
            "%.80s: tokenizer.json: added token \"%.60s\": \"single_word\" is not supported",
            l->where, in->content);
    return status;
}

/* The text looked for in normalized text; it is longer than any input it came from at most by
 * what normalization adds, and must keep to the limit too. */
static bitaxon_status normalize_added(load *l, added_input *in)
{
    bxn_bytes buffers[2] = {{0}, {0}};
    bitaxon_status status = BITAXON_OK;
    for (uint32_t i = 0; i < l->t->form_count && status == BITAXON_OK; i++) {
        bool changed = false;
        status = bxn_normalize(l->mem, l->t->forms[i], in->match, in->match_bytes, &buffers[i & 1],
                               NULL, 0, &changed, l->error);
        if (status == BITAXON_OK && changed) {
            in->changed = true;
            in->match = buffers[i & 1].data;
            in->match_bytes = buffers[i & 1].count;
        }
    }
    if (status == BITAXON_OK && in->changed) {
        in->match_at = l->normal.count;
        status = bxn_bytes_append(l->mem, &l->normal, in->match, in->match_bytes, l->error);
    }
    bxn_bytes_free(l->mem, &buffers[0]);
    bxn_bytes_free(l->mem, &buffers[1]);
    return status;
}

static int by_match(const void *left, const void *right)
{
    const added_input *a = left, *b = right;
    size_t bytes = a->match_bytes < b->match_bytes ? a->match_bytes : b->match_bytes;
    int order = memcmp(a->match, b->match, bytes);
    if (order != 0)
        return order;
    if (a->match_bytes != b->match_bytes)
        return a->match_bytes < b->match_bytes ? -1 : 1;
    return a->order < b->order ? -1 : a->order > b->order;
}

static bitaxon_status read_all_added(load *l, json_t *list)
{
    size_t i;
    json_t *node;
    if (list == NULL || json_is_null(list))
        return BITAXON_OK;
    if (!json_is_array(list))
        return bxn_fail(l->error, BITAXON_FORMAT,
                        "%.80s: tokenizer.json: \"added_tokens\" is not an array", l->where);
    void *added = NULL;
    l->added_count = json_array_size(list);
    bitaxon_status status =
        bxn_calloc(l->mem, l->added_count * sizeof *l->added, "added tokens", &added, l->error);
    l->added = added;
    if (status != BITAXON_OK)
        return status;
    json_array_foreach(list, i, node)
    {
        l->added[i].order = (uint32_t)i;
        status = read_added(l, node, &l->added[i]);
        if (status == BITAXON_OK && l->added[i].normalized)
            status = normalize_added(l, &l->added[i]);
        if (status != BITAXON_OK)
            return status;
    }
    for (i = 0; i < l->added_count; i++)
        if (l->added[i].changed)
            l->added[i].match = l->normal.data + l->added[i].match_at;
    bxn_sort(l->added, l->added_count, sizeof *l->added, by_match);
    return BITAXON_OK;
}

/* ---- the vocabulary ---------------------------------------------------------------------------
 */

static uint32_t power_of_two(uint64_t least)
{
    uint64_t size = 16;
    while (size < least)
        size *= 2;
    return (uint32_t)size;
}

/* First pass: ids and sizes. */
static bitaxon_status measure_vocab(load *l, uint64_t *bytes)
{
    const char *text;
    json_t *value;
    uint32_t id;
    json_object_foreach(l->vocab, text, value)
    {
        bitaxon_status status = check_id(l, "vocabulary: token", text, value, &id);
        if (status != BITAXON_OK)
            return status;
        *bytes += strlen(text);
    }
    return BITAXON_OK;
}

static bitaxon_status make_tables(load *l)
{
    bxn_tokenizer *t = l->t;
    uint64_t bytes = 0;
    void *p = NULL;
    bitaxon_status status = measure_vocab(l, &bytes);
    if (status != BITAXON_OK)
        return status;
    for (size_t i = 0; i < l->added_count; i++)
        bytes += l->added[i].bytes + (l->added[i].changed ? l->added[i].match_bytes : 0);
    /* Both are sums of parts of the text, or of normalized forms of at most 18 times that. */
    if (bytes > UINT32_MAX)
        return bxn_fail(l->error, BITAXON_LIMIT,
                        "%.80s: tokenizer.json: tokens of %llu bytes in all", l->where,
                        (unsigned long long)bytes);
    t->pool_bytes = (size_t)bytes;
    status = bxn_tokenizer_alloc(t, t->pool_bytes, "vocabulary", &p, l->error);
    t->pool = p;
    if (status != BITAXON_OK)
        return status;
    status = bxn_tokenizer_alloc(t, t->size * sizeof *t->tokens, "vocabulary", &p, l->error);
    t->tokens = p;
    if (status != BITAXON_OK)
        return status;
    status = bxn_tokenizer_alloc(t, t->size, "vocabulary", &p, l->error);
    t->flags = p;
    if (status != BITAXON_OK)
        return status;
    memset(t->tokens, 0, t->size * sizeof *t->tokens);
    memset(t->flags, 0, t->size);
    t->slot_count = power_of_two(2 * (uint64_t)(json_object_size(l->vocab) + l->added_count));
    status = bxn_tokenizer_alloc(t, t->slot_count * sizeof *t->slots, "vocabulary", &p, l->error);
    t->slots = p;
    if (status == BITAXON_OK)
        memset(t->slots, 0xFF, t->slot_count * sizeof *t->slots);
    return status;
}

/* Second pass. Tokens that BPE can produce own their bytes in the table of texts; others
 * come in where there is room. */
static bitaxon_status fill_vocab(load *l, size_t *used)
{
    bxn_tokenizer *t = l->t;
    const char *text;
    json_t *value;
    json_object_foreach(l->vocab, text, value)
    {
        uint32_t id = (uint32_t)json_integer_value(value);
        bool raw = false;
        l->scratch.count = 0;
        bitaxon_status status = decode_token(l, text, strlen(text), &l->scratch, &raw);
        if (status != BITAXON_OK)
            return status;
        if ((t->flags[id] & BXN_TOKEN_PRESENT) != 0)
            return bxn_fail(l->error, BITAXON_FORMAT,
                            "%.80s: tokenizer.json: vocabulary: id %u of token \"%.60s\" is taken",
                            l->where, (unsigned)id, text);
        if (l->scratch.count == 0)
            return bxn_fail(l->error, BITAXON_FORMAT,
                            "%.80s: tokenizer.json: vocabulary: id %u is an empty token", l->where,
                            (unsigned)id);
        t->flags[id] = (uint8_t)(BXN_TOKEN_PRESENT | (raw ? BXN_TOKEN_RAW : 0));
        t->tokens[id] = (bxn_token){(uint32_t)*used, (uint32_t)l->scratch.count};
        memcpy(t->pool + *used, l->scratch.data, l->scratch.count);
        *used += l->scratch.count;
        if (!raw)
            t->slots[bxn_tokenizer_slot(t, l->scratch.data, l->scratch.count)] = id;
    }
    for (uint32_t id = 0; id < t->size; id++) {
        if ((t->flags[id] & BXN_TOKEN_RAW) == 0)
            continue;
        uint32_t slot = bxn_tokenizer_slot(t, t->pool + t->tokens[id].offset, t->tokens[id].length);
        if (t->slots[slot] == BXN_NO_ID)
            t->slots[slot] = id;
    }
    for (int byte = 0; byte < 256; byte++) {
        char c = (char)byte;
        t->byte_id[byte] = bxn_tokenizer_find(t, &c, 1, true);
        if (t->byte_id[byte] == BXN_NO_ID)
            return bxn_fail(l->error, BITAXON_UNSUPPORTED,
                            "%.80s: tokenizer.json: the vocabulary has no token for byte 0x%02X; "
                            "only byte-level "
                            "vocabularies with all 256 bytes are supported",
                            l->where, (unsigned)byte);
    }
    return BITAXON_OK;
}

/* ---- added tokens, second pass ------------------------------------------------------------------
 */

/* Give an added token its id: a new one, or that of the same text in the vocabulary. */
static bitaxon_status place_added(load *l, const added_input *in, size_t *used)
{
    bxn_tokenizer *t = l->t;
    bool raw = false;
    l->scratch.count = 0;
    bitaxon_status status = decode_token(l, in->content, in->bytes, &l->scratch, &raw);
    if (status != BITAXON_OK)
        return status;
    if ((t->flags[in->id] & BXN_TOKEN_ADDED) != 0)
        return bxn_fail(l->error, BITAXON_FORMAT,
                        "%.80s: tokenizer.json: added token \"%.60s\": id %u is listed "
                        "twice",
                        l->where, in->content, (unsigned)in->id);
    if ((t->flags[in->id] & BXN_TOKEN_PRESENT) != 0) {
        const bxn_token *token = &t->tokens[in->id];
        bool same = token->length == l->scratch.count &&
                    memcmp(t->pool + token->offset, l->scratch.data, l->scratch.count) == 0;
        if (!same)
            return bxn_fail(
                l->error, BITAXON_FORMAT,
                "%.80s: tokenizer.json: added token \"%.60s\": id %u belongs to another token",
                l->where, in->content, (unsigned)in->id);
    } else {
        uint32_t other =
            raw ? BXN_NO_ID : bxn_tokenizer_find(t, l->scratch.data, l->scratch.count, true);
        if (other == BXN_NO_ID) {
            other = bxn_tokenizer_find(t, in->content, in->bytes, false);
            if (other != BXN_NO_ID && (t->flags[other] & BXN_TOKEN_RAW) == 0)
                other = BXN_NO_ID; /* the same bytes, but written otherwise */
        }
        if (other != BXN_NO_ID)
            return bxn_fail(
                l->error, BITAXON_FORMAT,
                "%.80s: tokenizer.json: added token \"%.60s\" has id %u, and %u besides", l->where,
                in->content, (unsigned)in->id, (unsigned)other);
        t->flags[in->id] = BXN_TOKEN_PRESENT | BXN_TOKEN_RAW;
        t->tokens[in->id] = (bxn_token){(uint32_t)*used, (uint32_t)in->bytes};
        memcpy(t->pool + *used, in->content, in->bytes);
        *used += in->bytes;
        uint32_t slot = bxn_tokenizer_slot(t, in->content, in->bytes);
        if (t->slots[slot] == BXN_NO_ID)
            t->slots[slot] = in->id;
    }
    t->flags[in->id] |= (uint8_t)(BXN_TOKEN_ADDED | (in->special ? BXN_TOKEN_SPECIAL : 0));
    return BITAXON_OK;
}

/* l->added is sorted by the text that is looked for. */
static bitaxon_status make_matcher(load *l, bxn_matcher *matcher, bool normalized, size_t *used)
{
    bxn_tokenizer *t = l->t;
    uint32_t count = 0;
    void *items = NULL;
    for (size_t i = 0; i < l->added_count; i++)
        count += l->added[i].normalized == normalized;
    if (count == 0)
        return BITAXON_OK;
    bitaxon_status status =
        bxn_tokenizer_alloc(t, count * sizeof *matcher->items, "added tokens", &items, l->error);
    if (status != BITAXON_OK)
        return status;
    matcher->items = items;
    matcher->count = count;
    bxn_added *out = matcher->items;
    for (size_t i = 0; i < l->added_count; i++) {
        const added_input *in = &l->added[i];
        if (in->normalized != normalized)
            continue;
        *out = (bxn_added){.id = in->id,
                           .length = (uint32_t)in->match_bytes,
                           .lstrip = in->lstrip,
                           .rstrip = in->rstrip};
        out->offset = (uint32_t)*used;
        if (in->changed || t->tokens[in->id].length != in->match_bytes ||
            memcmp(t->pool + t->tokens[in->id].offset, in->match, in->match_bytes) != 0) {
            memcpy(t->pool + *used, in->match, in->match_bytes);
            *used += in->match_bytes;
        } else {
            out->offset = t->tokens[in->id].offset;
        }
        matcher->first[(unsigned char)in->match[0] + 1]++;
        out++;
    }
    for (int byte = 0; byte < 256; byte++)
        matcher->first[byte + 1] += matcher->first[byte];
    return BITAXON_OK;
}

static bitaxon_status place_all_added(load *l, size_t *used)
{
    for (size_t i = 0; i < l->added_count; i++) {
        bitaxon_status status = place_added(l, &l->added[i], used);
        if (status != BITAXON_OK)
            return status;
    }
    for (int byte = 0; byte < 256; byte++)
        if ((l->t->flags[l->t->byte_id[byte]] & BXN_TOKEN_SPECIAL) != 0)
            return bxn_fail(l->error, BITAXON_UNSUPPORTED,
                            "%.80s: tokenizer.json: the token of byte 0x%02X is marked as special",
                            l->where, (unsigned)byte);
    bitaxon_status status = make_matcher(l, &l->t->raw, false, used);
    if (status == BITAXON_OK)
        status = make_matcher(l, &l->t->normalized, true, used);
    return status;
}

/* ---- merges ------------------------------------------------------------------------------------------ */

/* The two parts of merge i: "a b" or ["a", "b"]. */
static bitaxon_status merge_parts(load *l, size_t i, json_t *merge, const char **left,
                                  size_t *left_bytes, const char **right, size_t *right_bytes)
{
    const char *text = json_string_value(merge);
    if (text != NULL) {
        const char *space = strchr(text, ' ');
        if (space != NULL && strchr(space + 1, ' ') == NULL) {
            *left = text;
            *left_bytes = (size_t)(space - text);
            *right = space + 1;
            *right_bytes = strlen(space + 1);
            return BITAXON_OK;
        }
    } else if (json_is_array(merge) && json_array_size(merge) == 2) {
        json_t *a = json_array_get(merge, 0), *b = json_array_get(merge, 1);
        if (json_is_string(a) && json_is_string(b)) {
            *left = json_string_value(a);
            *left_bytes = json_string_length(a);
            *right = json_string_value(b);
            *right_bytes = json_string_length(b);
            return BITAXON_OK;
        }
    }
    return bxn_fail(l->error, BITAXON_FORMAT,
                    "%.80s: tokenizer.json: merge %zu is not a pair of tokens", l->where, i);
}

static bitaxon_status add_merge(load *l, size_t i, json_t *merge, uint32_t rank)
{
    bxn_tokenizer *t = l->t;
    const char *text[2] = {NULL, NULL};
    size_t bytes[2] = {0, 0};
    uint32_t id[3] = {BXN_NO_ID, BXN_NO_ID, BXN_NO_ID};
    bool raw = false;
    bitaxon_status status = merge_parts(l, i, merge, &text[0], &bytes[0], &text[1], &bytes[1]);
    if (status != BITAXON_OK)
        return status;
    l->joined.count = 0;
    for (int part = 0; part < 2; part++) {
        size_t before = l->joined.count;
        status = decode_token(l, text[part], bytes[part], &l->joined, &raw);
        if (status != BITAXON_OK)
            return status;
        if (!raw)
            id[part] =
                bxn_tokenizer_find(t, l->joined.data + before, l->joined.count - before, true);
        if (id[part] == BXN_NO_ID)
            return bxn_fail(l->error, BITAXON_FORMAT,
                            "%.80s: tokenizer.json: merge %zu: \"%.*s\" is not in the vocabulary",
                            l->where, i, (int)(bytes[part] < 60 ? bytes[part] : 60), text[part]);
    }
    id[2] = bxn_tokenizer_find(t, l->joined.data, l->joined.count, true);
    if (id[2] == BXN_NO_ID)
        return bxn_fail(
            l->error, BITAXON_FORMAT,
            "%.80s: tokenizer.json: merge %zu: its result \"%.*s%.*s\" is not in the vocabulary",
            l->where, i, (int)(bytes[0] < 40 ? bytes[0] : 40), text[0],
            (int)(bytes[1] < 40 ? bytes[1] : 40), text[1]);
    if ((t->flags[id[2]] & BXN_TOKEN_SPECIAL) != 0)
        return bxn_fail(l->error, BITAXON_UNSUPPORTED,
                        "%.80s: tokenizer.json: merge %zu gives the special token %u", l->where, i,
                        (unsigned)id[2]);
    /* A pair that is listed twice has its last rank. */
    t->merges[bxn_merge_slot(t, id[0], id[1])] = (bxn_merge){id[0], id[1], rank, id[2]};
    return BITAXON_OK;
}

static bitaxon_status load_merges(load *l)
{
    bxn_tokenizer *t = l->t;
    size_t count = json_array_size(l->merges), i;
    uint32_t rank = 0;
    json_t *merge;
    void *p = NULL;
    t->merge_slots = power_of_two(count + count / 2 + 1);
    bitaxon_status status =
        bxn_tokenizer_alloc(t, t->merge_slots * sizeof *t->merges, "merges", &p, l->error);
    t->merges = p;
    if (status != BITAXON_OK)
        return status;
    memset(t->merges, 0xFF, t->merge_slots * sizeof *t->merges);
    json_array_foreach(l->merges, i, merge)
    {
        const char *text = json_string_value(merge);
        if (text != NULL && strncmp(text, "#version", 8) == 0)
            continue;
        status = add_merge(l, i, merge, rank++);
        if (status != BITAXON_OK)
            return status;
    }
    return BITAXON_OK;
}

/* ---- the document ------------------------------------------------------------------------------------ */

/* The value at key is absent, null, false or 0, or an empty string. */
static bitaxon_status need_off(load *l, json_t *model, const char *key)
{
    json_t *value = json_object_get(model, key);
    if (value == NULL || json_is_null(value) || json_is_false(value) ||
        (json_is_number(value) && json_number_value(value) == 0) ||
        (json_is_string(value) && json_string_length(value) == 0))
        return BITAXON_OK;
    return bxn_fail(l->error, BITAXON_UNSUPPORTED,
                    "%.80s: tokenizer.json: model: \"%s\" is not supported", l->where, key);
}

static bitaxon_status load_model(load *l, json_t *model, size_t *used)
{
    static const char *const keys[] = {"type",
                                       "dropout",
                                       "unk_token",
                                       "continuing_subword_prefix",
                                       "end_of_word_suffix",
                                       "fuse_unk",
                                       "byte_fallback",
                                       "ignore_merges",
                                       "vocab",
                                       "merges",
                                       NULL};
    static const char *const off[] = {"dropout", "unk_token", "continuing_subword_prefix",
                                      "end_of_word_suffix", "byte_fallback"};
    bool fuse_unk = false; /* of no effect: there is no unknown byte */
    bitaxon_status status = BITAXON_OK;
    json_t *type = json_object_get(model, "type");
    if (!json_is_object(model) || (type != NULL && !json_is_string(type)))
        return bxn_fail(l->error, BITAXON_FORMAT,
                        "%.80s: tokenizer.json: \"model\" is not an object with a \"type\"",
                        l->where);
    if (type != NULL && strcmp(json_string_value(type), "BPE") != 0)
        return bxn_fail(l->error, BITAXON_UNSUPPORTED,
                        "%.80s: tokenizer.json: model \"%.60s\" is not supported", l->where,
                        json_string_value(type));
    status = bxn_load_check_keys(&l->base, model, "model", keys);
    for (size_t i = 0; i < sizeof off / sizeof *off && status == BITAXON_OK; i++)
        status = need_off(l, model, off[i]);
    if (status == BITAXON_OK)
        status = bxn_load_flag(&l->base, model, "model", "fuse_unk", &fuse_unk);
    if (status == BITAXON_OK)
        status = bxn_load_flag(&l->base, model, "model", "ignore_merges", &l->t->ignore_merges);
    if (status != BITAXON_OK)
        return status;
    l->vocab = json_object_get(model, "vocab");
    l->merges = json_object_get(model, "merges");
    if (!json_is_object(l->vocab) || !json_is_array(l->merges))
        return bxn_fail(l->error, BITAXON_FORMAT,
                        "%.80s: tokenizer.json: model: \"vocab\" is not an object or \"merges\" is "
                        "not an array",
                        l->where);
    status = make_tables(l);
    if (status == BITAXON_OK)
        status = fill_vocab(l, used);
    return status;
}

static bitaxon_status load_document(load *l, json_t *root)
{
    static const char *const keys[] = {
        "version",       "truncation",     "padding", "added_tokens", "normalizer",
        "pre_tokenizer", "post_processor", "decoder", "model",        NULL};
    size_t used = 0;
    bitaxon_status status = bxn_load_check_keys(&l->base, root, "the document", keys);
    if (status == BITAXON_OK)
        status = bxn_load_normalizer(&l->base, json_object_get(root, "normalizer"));
    if (status == BITAXON_OK)
        status = bxn_load_pre_tokenizer(&l->base, json_object_get(root, "pre_tokenizer"));
    if (status == BITAXON_OK && !l->base.byte_level)
        status = bxn_fail(
            l->error, BITAXON_UNSUPPORTED,
            "%.80s: tokenizer.json: pre_tokenizer: no ByteLevel step; only byte-level BPE is "
            "supported",
            l->where);
    if (status == BITAXON_OK)
        status = bxn_load_post_processor(&l->base, json_object_get(root, "post_processor"));
    if (status == BITAXON_OK)
        status = bxn_load_decoder(&l->base, json_object_get(root, "decoder"));
    if (status == BITAXON_OK)
        status = read_all_added(l, json_object_get(root, "added_tokens"));
    if (status == BITAXON_OK)
        status = load_model(l, json_object_get(root, "model"), &used);
    if (status == BITAXON_OK)
        status = place_all_added(l, &used);
    if (status == BITAXON_OK)
        status = load_merges(l);
    return status;
}

/* ---- a tokenizer's life ------------------------------------------------------------------------------ */

static bitaxon_status parse_optional(load *l, const char *text, size_t bytes, const char *what,
                                     bxn_json *out)
{
    if (text == NULL)
        return BITAXON_OK;
    bitaxon_status status = bxn_json_parse(l->mem, text, bytes, what, out, l->error);
    if (status == BITAXON_OK && !json_is_object(out->root))
        status = bxn_fail(l->error, BITAXON_FORMAT, "%.80s: %s is not an object", l->where, what);
    return status;
}

bitaxon_status bxn_tokenizer_create(bxn_mem *mem, const char *where, const char *tokenizer_json,
                                    size_t tokenizer_bytes, const char *config_json,
                                    size_t config_bytes, const char *generation_json,
                                    size_t generation_bytes, bxn_tokenizer **out,
                                    bitaxon_error *error)
{
    bxn_json document = {0}, config = {0}, generation = {0};
    load l = {.mem = mem, .error = error, .where = where};
    void *p = NULL;

    *out = NULL;
    bitaxon_status status = bxn_calloc(mem, sizeof(bxn_tokenizer), "tokenizer", &p, error);
    if (status != BITAXON_OK)
        return status;
    bxn_tokenizer *t = p;
    t->mem = mem;
    t->held = bxn_alloc_cost(sizeof *t);
    t->pcre_memory.mem = mem;
    t->pcre_memory.held = &t->held;
    /* Differs from run to run, so that no file can be made to fill one chain of a table. */
    t->seed = (uint64_t)(uintptr_t)t * 0x9E3779B97F4A7C15u ^ bxn_now_ns(mem);
    l.t = t;
    l.base = (bxn_loader){.t = t, .where = where, .error = error};
    /* An id beyond the text's own size by more than this is no vocabulary's. */
    l.id_limit = 1000000 + (uint64_t)tokenizer_bytes;
    if (l.id_limit > BXN_MAX_TOKEN_IDS)
        l.id_limit = BXN_MAX_TOKEN_IDS;

    status = bxn_pcre_general(&t->pcre_memory, &t->pcre, error);
    if (status == BITAXON_OK)
        status = bxn_json_parse(mem, tokenizer_json, tokenizer_bytes, "tokenizer.json", &document,
                                error);
    if (status == BITAXON_OK)
        status = parse_optional(&l, config_json, config_bytes, "tokenizer_config.json", &config);
    if (status == BITAXON_OK)
        status = parse_optional(&l, generation_json, generation_bytes, "generation_config.json",
                                &generation);
    if (status == BITAXON_OK)
        status = load_document(&l, document.root);
    if (status == BITAXON_OK)
        status = bxn_load_ends(&l.base, config.root, generation.root);
    if (status == BITAXON_OK)
        status = bxn_template_load(t, where, config.root, error);

    bxn_free(mem, l.added, l.added_count * sizeof *l.added);
    bxn_bytes_free(mem, &l.normal);
    bxn_bytes_free(mem, &l.scratch);
    bxn_bytes_free(mem, &l.joined);
    bxn_json_free(&document);
    bxn_json_free(&config);
    bxn_json_free(&generation);
    if (status != BITAXON_OK)
        bxn_tokenizer_free(t);
    else
        *out = t;
    return status;
}

void bxn_tokenizer_free(bxn_tokenizer *t)
{
    if (t == NULL)
        return;
    bxn_template_free(t);
    for (uint32_t i = 0; i < t->step_count; i++) {
        pcre2_code_free(t->steps[i].code);
        bxn_tokenizer_release(t, t->steps[i].literal, t->steps[i].literal_bytes);
    }
    pcre2_general_context_free(t->pcre);
    bxn_tokenizer_release(t, t->eos, t->eos_count * sizeof *t->eos);
    bxn_tokenizer_release(t, t->merges, t->merge_slots * sizeof *t->merges);
    bxn_tokenizer_release(t, t->slots, t->slot_count * sizeof *t->slots);
    bxn_tokenizer_release(t, t->raw.items, t->raw.count * sizeof *t->raw.items);
    bxn_tokenizer_release(t, t->normalized.items,
                          t->normalized.count * sizeof *t->normalized.items);
    bxn_tokenizer_release(t, t->flags, t->size);
    bxn_tokenizer_release(t, t->tokens, t->size * sizeof *t->tokens);
    bxn_tokenizer_release(t, t->pool, t->pool_bytes);
    bxn_free(t->mem, t, sizeof *t);
}
