/* SPDX-License-Identifier: Apache-2.0 */
/* bpe.c - byte-level byte-pair encoding and the lookups of tokens.
 *
 * A text is cut at added tokens, each part is normalized, cut again at the added tokens that
 * are looked for after normalization, cut into pieces by the pre-tokenizer, and each piece is
 * merged: the pair of lowest rank first, the leftmost of equal ones. Merging keeps a linked
 * list of symbols and a heap of candidates, O(n log n) for a piece of n bytes. */
#include "tokenizer/bpe.h"

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define NONE UINT32_MAX

/* ---- growing arrays ---------------------------------------------------------------- */

bitaxon_status bxn_bytes_reserve(bxn_mem *mem, bxn_bytes *bytes, size_t more, bitaxon_error *error)
{
    if (bytes->data != NULL && more <= bytes->capacity - bytes->count)
        return BITAXON_OK;
    if (more > SIZE_MAX / 4 || bytes->count > SIZE_MAX / 4)
        return bxn_fail(error, BITAXON_OUT_OF_MEMORY, "out of memory: text of the tokenizer");
    size_t grown = bytes->count + more;
    grown = grown < 2 * bytes->capacity ? 2 * bytes->capacity : grown < 256 ? 256 : grown;
    void *data = bytes->data;
    bitaxon_status status =
        bxn_realloc(mem, &data, bytes->capacity, grown, "text of the tokenizer", error);
    if (status == BITAXON_OK) {
        bytes->data = data;
        bytes->capacity = grown;
    }
    return status;
}

bitaxon_status bxn_bytes_append(bxn_mem *mem, bxn_bytes *bytes, const char *text, size_t count,
                                bitaxon_error *error)
{
    bitaxon_status status = bxn_bytes_reserve(mem, bytes, count, error);
    if (status == BITAXON_OK && count != 0) {
        memcpy(bytes->data + bytes->count, text, count);
        bytes->count += count;
    }
    return status;
}

void bxn_bytes_free(bxn_mem *mem, bxn_bytes *bytes)
{
    bxn_free(mem, bytes->data, bytes->capacity);
    memset(bytes, 0, sizeof *bytes);
}

bitaxon_status bxn_ids_push(bxn_mem *mem, bxn_ids *ids, int32_t id, bitaxon_error *error)
{
    if (ids->count == ids->capacity) {
        size_t grown = ids->capacity < 64 ? 64 : ids->capacity * 2;
        void *data = ids->data;
        bitaxon_status status = bxn_realloc(mem, &data, ids->capacity * sizeof *ids->data,
                                            grown * sizeof *ids->data, "token ids", error);
        if (status != BITAXON_OK)
            return status;
        ids->data = data;
        ids->capacity = grown;
    }
    ids->data[ids->count++] = id;
    return BITAXON_OK;
}

void bxn_ids_free(bxn_mem *mem, bxn_ids *ids)
{
    bxn_free(mem, ids->data, ids->capacity * sizeof *ids->data);
    memset(ids, 0, sizeof *ids);
}

bitaxon_status bxn_ids_deliver(const bxn_ids *ids, int32_t *out, size_t capacity, size_t *need,
                               bitaxon_error *error)
{
    *need = ids->count;
    if (capacity < ids->count)
        return bxn_fail(error, BITAXON_LIMIT, "%zu token ids do not fit into %zu", ids->count,
                        capacity);
    if (ids->count != 0)
        memcpy(out, ids->data, ids->count * sizeof *out);
    return BITAXON_OK;
}

/* ---- lookups -------------------------------------------------------------------------- */

uint32_t bxn_tokenizer_slot(const bxn_tokenizer *t, const char *text, size_t bytes)
{
    uint32_t at = (uint32_t)XXH3_64bits_withSeed(text, bytes, t->seed) & (t->slot_count - 1);
    while (t->slots[at] != BXN_NO_ID) {
        const bxn_token *token = &t->tokens[t->slots[at]];
        if (token->length == bytes && memcmp(t->pool + token->offset, text, bytes) == 0)
            break;
        at = (at + 1) & (t->slot_count - 1);
    }
    return at;
}

uint32_t bxn_tokenizer_find(const bxn_tokenizer *t, const char *text, size_t bytes, bool want_bpe)
{
    uint32_t id = t->slots[bxn_tokenizer_slot(t, text, bytes)];
    if (id != BXN_NO_ID && want_bpe && (t->flags[id] & BXN_TOKEN_RAW) != 0)
        return BXN_NO_ID;
    return id;
}

uint32_t bxn_merge_slot(const bxn_tokenizer *t, uint32_t left, uint32_t right)
{
    uint64_t key = ((uint64_t)left << 32 | right) ^ t->seed;
    key = (key ^ key >> 33) * 0xFF51AFD7ED558CCDu;
    key = (key ^ key >> 33) * 0xC4CEB9FE1A85EC53u;
    uint32_t at = (uint32_t)(key >> 32) & (t->merge_slots - 1);
    while (t->merges[at].left != BXN_NO_ID &&
           (t->merges[at].left != left || t->merges[at].right != right))
        at = (at + 1) & (t->merge_slots - 1);
    return at;
}

/* An added token with exactly this text; BXN_NO_ID: none. */
static uint32_t find_added(const bxn_tokenizer *t, const bxn_matcher *matcher, const char *text,
                           size_t bytes)
{
    if (bytes == 0)
        return BXN_NO_ID;
    unsigned char lead = (unsigned char)text[0];
    for (uint32_t i = matcher->first[lead]; i < matcher->first[lead + 1]; i++)
        if (matcher->items[i].length == bytes &&
            memcmp(t->pool + matcher->items[i].offset, text, bytes) == 0)
            return matcher->items[i].id;
    return BXN_NO_ID;
}

const bxn_added *bxn_tokenizer_added(const bxn_tokenizer *t, uint32_t id)
{
    const bxn_matcher *matchers[] = {&t->raw, &t->normalized};
    for (int m = 0; m < 2; m++)
        for (uint32_t i = 0; i < matchers[m]->count; i++)
            if (matchers[m]->items[i].id == id)
                return &matchers[m]->items[i];
    return NULL;
}

bool bxn_tokenizer_id(const bxn_tokenizer *t, const char *text, size_t bytes, int32_t *id)
{
    uint32_t found = find_added(t, &t->raw, text, bytes);
    if (found == BXN_NO_ID)
        found = find_added(t, &t->normalized, text, bytes);
    if (found == BXN_NO_ID)
        found = bxn_tokenizer_find(t, text, bytes, false);
    if (found == BXN_NO_ID)
        return false;
    *id = (int32_t)found;
    return true;
}

bool bxn_tokenizer_piece(const bxn_tokenizer *t, int32_t id, const char **bytes, size_t *count,
                         bool *special)
{
    if (id < 0 || (uint32_t)id >= t->size || (t->flags[id] & BXN_TOKEN_PRESENT) == 0)
        return false;
    *bytes = t->pool + t->tokens[id].offset;
    *count = t->tokens[id].length;
    *special = (t->flags[id] & BXN_TOKEN_SPECIAL) != 0;
    return true;
}

uint32_t bxn_tokenizer_size(const bxn_tokenizer *t)
{
    return t->size;
}

uint64_t bxn_tokenizer_bytes(const bxn_tokenizer *t)
{
    return t->held;
}

const int32_t *bxn_tokenizer_eos(const bxn_tokenizer *t, size_t *count)
{
    *count = t->eos_count;
    return t->eos;
}

/* ---- emitting ----------------------------------------------------------------------------- */

static void pass_borders(bxn_encoder *e, size_t offset)
{
    while (e->border_next < e->border_count && e->borders[e->border_next].offset <= offset)
        e->borders[e->border_next++].mark = e->ids.count;
}

/* A token that begins at byte `at` of the piece at hand. */
static bitaxon_status emit(bxn_encoder *e, uint32_t id, const char *at)
{
    if (e->border_next < e->border_count) {
        size_t i = (size_t)(at - e->base);
        size_t local = e->origin + (e->spaced && i > 0 ? i - 1 : i);
        while (e->border_next < e->border_count &&
               e->borders[e->border_next].offset < e->piece_end &&
               e->borders[e->border_next].local <= local)
            e->borders[e->border_next++].mark = e->ids.count;
    }
    return bxn_ids_push(e->mem, &e->ids, (int32_t)id, e->error);
}

/* ---- merging -------------------------------------------------------------------------------- */

static void heap_push(uint64_t *heap, size_t *count, uint64_t value)
{
    size_t at = (*count)++;
    while (at > 0 && heap[(at - 1) / 2] > value) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = value;
}

static uint64_t heap_pop(uint64_t *heap, size_t *count)
{
    uint64_t top = heap[0], last = heap[--*count];
    size_t at = 0, child;
    while ((child = 2 * at + 1) < *count) {
        if (child + 1 < *count && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= last)
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return top;
}

/* Look up the pair that begins at symbol i and make it a candidate when it merges. */
static void propose(const bxn_tokenizer *t, bxn_symbol *symbols, uint32_t i, uint64_t *heap,
                    size_t *count)
{
    bxn_symbol *symbol = &symbols[i];
    symbol->rank = NONE;
    if (symbol->next == NONE)
        return;
    const bxn_merge *merge = &t->merges[bxn_merge_slot(t, symbol->id, symbols[symbol->next].id)];
    if (merge->left == BXN_NO_ID)
        return;
    symbol->rank = merge->rank;
    symbol->merged = merge->id;
    heap_push(heap, count, (uint64_t)merge->rank << 32 | i);
}

/* Room for a piece of `bytes`: each merge takes one candidate and adds two at most. */
static bitaxon_status reserve_symbols(bxn_encoder *e, size_t bytes)
{
    if (bytes <= e->symbol_capacity)
        return BITAXON_OK;
    size_t grown = bytes < 256 ? 256 : bytes + bytes / 2;
    void *symbols = NULL, *heap = NULL;
    bitaxon_status status =
        bxn_alloc(e->mem, grown * sizeof *e->symbols, "symbols of a piece", &symbols, e->error);
    if (status == BITAXON_OK)
        status = bxn_alloc(e->mem, 2 * grown * sizeof *e->heap, "candidates of a piece", &heap,
                           e->error);
    if (status != BITAXON_OK) {
        bxn_free(e->mem, symbols, grown * sizeof *e->symbols);
        return status;
    }
    bxn_free(e->mem, e->symbols, e->symbol_capacity * sizeof *e->symbols);
    bxn_free(e->mem, e->heap, 2 * e->symbol_capacity * sizeof *e->heap);
    e->symbols = symbols;
    e->heap = heap;
    e->symbol_capacity = grown;
    return BITAXON_OK;
}

bitaxon_status bxn_encoder_piece(bxn_encoder *e, const char *text, size_t bytes)
{
    const bxn_tokenizer *t = e->t;
    bitaxon_status status;

    if (bytes == 0)
        return BITAXON_OK;
    if (bytes > BXN_MAX_TEXT_BYTES) /* normalized text may be longer than the text */
        return bxn_fail(e->error, BITAXON_LIMIT, "a piece of %zu bytes: at most %u at a time",
                        bytes, BXN_MAX_TEXT_BYTES);
    if (bytes == 1)
        return emit(e, t->byte_id[(unsigned char)text[0]], text);
    if (t->ignore_merges) {
        uint32_t id = bxn_tokenizer_find(t, text, bytes, true);
        if (id != BXN_NO_ID && (t->flags[id] & BXN_TOKEN_SPECIAL) == 0)
            return emit(e, id, text);
    }
    status = reserve_symbols(e, bytes);
    if (status != BITAXON_OK)
        return status;

    bxn_symbol *symbols = e->symbols;
    size_t candidates = 0;
    for (uint32_t i = 0; i < bytes; i++)
        symbols[i] = (bxn_symbol){.id = t->byte_id[(unsigned char)text[i]],
                                  .previous = i == 0 ? NONE : i - 1,
                                  .next = i + 1 < bytes ? i + 1 : NONE};
    for (uint32_t i = 0; i < bytes; i++)
        propose(t, symbols, i, e->heap, &candidates);
    while (candidates > 0) {
        uint64_t best = heap_pop(e->heap, &candidates);
        uint32_t i = (uint32_t)best;
        bxn_symbol *left = &symbols[i];
        if (left->rank != best >> 32) /* the pair has changed since: a rank has one pair */
            continue;
        bxn_symbol *right = &symbols[left->next];
        left->id = left->merged;
        left->next = right->next;
        right->rank = NONE;
        if (left->next != NONE)
            symbols[left->next].previous = i;
        propose(t, symbols, i, e->heap, &candidates);
        if (left->previous != NONE)
            propose(t, symbols, left->previous, e->heap, &candidates);
    }
    for (uint32_t i = 0; i != NONE && status == BITAXON_OK; i = symbols[i].next)
        status = emit(e, symbols[i].id, text + i);
    return status;
}

/* ---- added tokens ---------------------------------------------------------------------------- */

/* The longest added token that begins at text; NULL when there is none. */
static const bxn_added *longest(const bxn_tokenizer *t, const bxn_matcher *matcher,
                                const char *text, size_t bytes)
{
    unsigned char lead = (unsigned char)text[0];
    uint32_t low = matcher->first[lead], high = matcher->first[lead + 1];
    const bxn_added *found = NULL;
    for (size_t depth = 1; low < high; depth++) {
        /* [low, high) begin with the first `depth` bytes of text. */
        if (matcher->items[low].length == depth)
            found = &matcher->items[low];
        while (low < high && matcher->items[low].length == depth)
            low++;
        if (depth == bytes)
            break;
        unsigned char next = (unsigned char)text[depth];
        for (uint32_t end = high; low < end;) { /* first with byte >= next */
            uint32_t middle = low + (end - low) / 2;
            if ((unsigned char)t->pool[matcher->items[middle].offset + depth] < next)
                low = middle + 1;
            else
                end = middle;
        }
        for (uint32_t start = low; start < high;) { /* first with byte > next */
            uint32_t middle = start + (high - start) / 2;
            if ((unsigned char)t->pool[matcher->items[middle].offset + depth] > next)
                high = middle;
            else
                start = middle + 1;
        }
    }
    return found;
}

/* The next added token in text, as the authors' library finds them: leftmost, then longest;
 * one that must stay text hides what overlaps it. False: none. */
static bool next_added(const bxn_encoder *e, const bxn_matcher *matcher, const char *text,
                       size_t bytes, size_t from, size_t *start, size_t *end,
                       const bxn_added **found)
{
    for (size_t at = from; matcher->count != 0 && at < bytes;) {
        const bxn_added *token = longest(e->t, matcher, text + at, bytes - at);
        if (token == NULL) {
            at++;
            continue;
        }
        if ((e->t->flags[token->id] & e->skip) != 0) {
            at += token->length;
            continue;
        }
        *start = token->lstrip ? at - bxn_space_suffix(text + from, at - from) : at;
        *end = at + token->length;
        if (token->rstrip)
            *end += bxn_space_prefix(text + *end, bytes - *end);
        *found = token;
        return true;
    }
    return false;
}

/* A part between added tokens, normalized. */
static bitaxon_status encode_normal(bxn_encoder *e, const char *text, size_t bytes)
{
    size_t at = 0;
    bitaxon_status status = BITAXON_OK;
    while (at < bytes && status == BITAXON_OK) {
        size_t start = bytes, end = bytes;
        const bxn_added *token = NULL;
        next_added(e, &e->t->normalized, text, bytes, at, &start, &end, &token);
        if (start > at) {
            e->base = text + at;
            e->origin = at;
            status = bxn_pretokenize(e, 0, text + at, start - at);
        }
        if (token != NULL && status == BITAXON_OK) {
            e->base = text + start;
            e->origin = start;
            status = emit(e, token->id, text + start);
        }
        at = end;
    }
    return status;
}

/* A part of the text between added tokens that are looked for before normalization. */
static bitaxon_status encode_part(bxn_encoder *e, const char *whole, size_t start, size_t end)
{
    const char *text = whole + start;
    size_t bytes = end - start, inside;

    pass_borders(e, start);
    e->piece_end = end;
    bxn_border *borders = e->border_next < e->border_count ? e->borders + e->border_next : NULL;
    for (inside = 0; e->border_next + inside < e->border_count; inside++) {
        if (borders[inside].offset >= end)
            break;
        borders[inside].local = borders[inside].offset - start;
    }
    for (uint32_t i = 0; i < e->t->form_count; i++) {
        bxn_bytes *out = &e->normal[i & 1];
        bool changed = false;
        bitaxon_status status = bxn_normalize(e->mem, e->t->forms[i], text, bytes, out, borders,
                                              inside, &changed, e->error);
        if (status != BITAXON_OK)
            return status;
        if (changed) {
            text = out->data;
            bytes = out->count;
        }
    }
    return encode_normal(e, text, bytes);
}

bitaxon_status bxn_encoder_text(bxn_encoder *e, const char *text, size_t bytes)
{
    size_t at = 0;
    bitaxon_status status = BITAXON_OK;

    if (bytes > BXN_MAX_TEXT_BYTES)
        return bxn_fail(e->error, BITAXON_LIMIT, "a text of %zu bytes: at most %u at a time", bytes,
                        BXN_MAX_TEXT_BYTES);
    while (at < bytes && status == BITAXON_OK) {
        size_t start = bytes, end = bytes;
        const bxn_added *token = NULL;
        next_added(e, &e->t->raw, text, bytes, at, &start, &end, &token);
        if (start > at)
            status = encode_part(e, text, at, start);
        if (token != NULL && status == BITAXON_OK) {
            pass_borders(e, start);
            status = bxn_ids_push(e->mem, &e->ids, (int32_t)token->id, e->error);
        }
        at = end;
    }
    if (status == BITAXON_OK)
        pass_borders(e, SIZE_MAX);
    return status;
}

/* ---- the encoder's life -------------------------------------------------------------------------
 */

bitaxon_status bxn_encoder_open(const bxn_tokenizer *t, uint8_t skip, bxn_encoder *e,
                                bitaxon_error *error)
{
    memset(e, 0, sizeof *e);
    e->t = t;
    e->mem = t->mem;
    e->error = error;
    e->skip = skip;
    e->pcre_memory.mem = t->mem;
    bitaxon_status status = bxn_pcre_general(&e->pcre_memory, &e->general, error);
    if (status != BITAXON_OK)
        return status;
    e->limits = pcre2_match_context_create(e->general);
    e->match = pcre2_match_data_create(1, e->general);
    if (e->limits == NULL || e->match == NULL) {
        bxn_encoder_close(e);
        return bxn_fail(error, e->pcre_memory.status, "no memory for the pre-tokenizer: %s",
                        e->pcre_memory.reason);
    }
    return BITAXON_OK;
}

void bxn_encoder_close(bxn_encoder *e)
{
    pcre2_match_data_free(e->match);
    pcre2_match_context_free(e->limits);
    pcre2_general_context_free(e->general);
    bxn_free(e->mem, e->symbols, e->symbol_capacity * sizeof *e->symbols);
    bxn_free(e->mem, e->heap, 2 * e->symbol_capacity * sizeof *e->heap);
    bxn_bytes_free(e->mem, &e->normal[0]);
    bxn_bytes_free(e->mem, &e->normal[1]);
    bxn_bytes_free(e->mem, &e->space);
    bxn_ids_free(e->mem, &e->ids);
    e->general = NULL;
    e->limits = NULL;
    e->match = NULL;
    e->symbols = NULL;
    e->heap = NULL;
    e->symbol_capacity = 0;
}

bitaxon_status bxn_tokenizer_encode(const bxn_tokenizer *t, const char *text, size_t bytes,
                                    uint32_t flags, int32_t *ids, size_t capacity, size_t *need,
                                    bitaxon_error *error)
{
    bxn_encoder e;
    bxn_bytes clean = {0};
    uint8_t skip = (flags & BITAXON_TOKENIZE_SPECIAL) != 0 ? 0 : BXN_TOKEN_SPECIAL;
    bitaxon_status status = bxn_encoder_open(t, skip, &e, error);
    if (status != BITAXON_OK)
        return status;
    if (!bxn_utf8_valid(text, bytes)) {
        status = bxn_utf8_append(t->mem, &clean, text, bytes, error);
        text = clean.data;
        bytes = clean.count;
    }
    if (status == BITAXON_OK)
        status = bxn_encoder_text(&e, text, bytes);
    if (status == BITAXON_OK)
        status = bxn_ids_deliver(&e.ids, ids, capacity, need, error);
    bxn_bytes_free(t->mem, &clean);
    bxn_encoder_close(&e);
    return status;
}

/* A border at each character tells which of them the first token that is too many begins with. */
bitaxon_status bxn_tokenizer_encode_part(const bxn_tokenizer *t, const char *text, size_t bytes, size_t most,
                                         int32_t *ids, size_t *count, size_t *used, bitaxon_error *error)
{
    bxn_encoder e;
    void *memory = NULL;
    size_t characters = 0, length, keep;
    for (size_t i = 0; i < bytes; i++)
        characters += ((uint8_t)text[i] & 0xC0) != 0x80;
    size_t border_bytes = characters * sizeof(bxn_border);
    bitaxon_status status = bxn_encoder_open(t, BXN_TOKEN_SPECIAL, &e, error);
    if (status != BITAXON_OK)
        return status;
    status = bxn_alloc(t->mem, border_bytes, "borders of characters", &memory, error);
    if (status != BITAXON_OK)
        goto done;
    e.borders = memory;
    e.border_count = characters;
    for (size_t i = 0, at = 0; at < bytes; i++, at += length) {
        bxn_utf8_read(text + at, &length);
        e.borders[i] = (bxn_border){.offset = at};
    }
    status = bxn_encoder_text(&e, text, bytes);
    if (status != BITAXON_OK)
        goto done;
    *used = bytes;
    keep = e.ids.count;
    if (keep > most) {
        keep = most;
        while (keep > 0) { /* a token that begins with a character's first byte */
            const bxn_token *token = &t->tokens[e.ids.data[keep]];
            if (token->length == 0 || ((uint8_t)t->pool[token->offset] & 0xC0) != 0x80)
                break;
            keep--;
        }
        size_t last = characters;
        while (last > 0 && e.borders[last - 1].mark > keep)
            last--;
        *used = last > 0 ? e.borders[last - 1].offset : 0;
    }
    memcpy(ids, e.ids.data, keep * sizeof *ids);
    *count = keep;

done:
    bxn_free(t->mem, memory, border_bytes);
    bxn_encoder_close(&e);
    return status;
}
