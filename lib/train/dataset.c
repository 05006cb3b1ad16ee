/* SPDX-License-Identifier: Apache-2.0 */
/* dataset.c - a data set: opened by reading its file once, or filled with tokens by the caller. What stays of a file is
 * the place, the hash and the number of tokens of each example; an example that is asked for is read, checked
 * against its hash and tokenised again. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "train/dataset_parts.h"

#include <string.h>

#define COUNTS 0x80000000u /* in the pool: the token counts */

enum { LOGGED_LINES = 10, FIRST_WINDOW = 4096, BAD_TEXT = 160 };

/* What opening needs besides the data set. */
typedef struct opening {
    bxn_dataset *d;
    bxn_reader reader;
    bxn_progress *progress;
    uint64_t told;           /* bytes, to the host */
    size_t window;           /* bytes of text that one document is likely to need */
    uint64_t records;
    char first_bad[BAD_TEXT];
    bitaxon_error *error;
} opening;

/* ---- what both forms share ---------------------------------------------------------------------- */

static bitaxon_status grow(bxn_mem *mem, void **array, size_t *room, size_t need, size_t size, const char *what,
                           bitaxon_error *error)
{
    if (need <= *room)
        return BITAXON_OK;
    size_t more = need > 2 * *room ? need : 2 * *room;
    more = more < 64 ? 64 : more;
    bitaxon_status status = bxn_realloc(mem, array, *room * size, more * size, what, error);
    if (status == BITAXON_OK)
        *room = more;
    return status;
}

static bitaxon_status check_params(const bxn_dataset_params *params, bitaxon_error *error)
{
    if (params->objective != BXN_OBJECTIVE_SFT && params->objective != BXN_OBJECTIVE_ORPO)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "data set: objective %d", (int)params->objective);
    if (params->mask < BXN_MASK_CONTENT || params->mask > BXN_MASK_ALL)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "data set: mask %d", (int)params->mask);
    if (params->max_tokens < 4 || params->max_tokens > BXN_MAX_EXAMPLE_TOKENS)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "data set: max_tokens is %u, allowed are 4 to %u",
                        params->max_tokens, BXN_MAX_EXAMPLE_TOKENS);
    return BITAXON_OK;
}

static void add_to_id(bxn_dataset *d, const void *data, size_t bytes) { XXH3_128bits_update(d->hash, data, bytes); }

static bitaxon_status make_empty(bxn_mem *mem, const bxn_tokenizer *tokenizer, const bxn_dataset_params *params,
                                 bxn_dataset **out, bitaxon_error *error)
{
    void *memory;
    *out = NULL;
    bitaxon_status status = check_params(params, error);
    if (status == BITAXON_OK)
        status = bxn_calloc(mem, sizeof **out, "data set", &memory, error);
    if (status != BITAXON_OK)
        return status;
    bxn_dataset *d = memory;
    d->mem = mem;
    d->tokenizer = tokenizer;
    d->params = *params;
    d->params.path = NULL;
    status = bxn_alloc(mem, sizeof(XXH3_state_t), "hash of a data set", &d->hash, error);
    if (status != BITAXON_OK) {
        bxn_dataset_free(d);
        return status;
    }
    XXH3_128bits_reset(d->hash);
    const uint32_t key[] = {1 /* version */, (uint32_t)params->objective, (uint32_t)params->mask, params->max_tokens};
    add_to_id(d, key, sizeof key);
    *out = d;
    return BITAXON_OK;
}

void bxn_dataset_free(bxn_dataset *d)
{
    if (d == NULL)
        return;
    if (d->source.close != NULL)
        d->source.close(d->source.user);
    bxn_free(d->mem, d->path, d->path_bytes);
    bxn_free(d->mem, d->entries, d->room * sizeof *d->entries);
    bxn_free(d->mem, d->pool, d->pool_room * sizeof *d->pool);
    bxn_free(d->mem, d->hash, sizeof(XXH3_state_t));
    bxn_free(d->mem, d, sizeof *d);
}

void bxn_dataset_facts_get(const bxn_dataset *d, bxn_dataset_facts *out)
{
    XXH128_canonical_t id;
    XXH128_canonicalFromHash(&id, XXH3_128bits_digest(d->hash));
    *out = d->facts;
    memcpy(out->id, id.digest, sizeof out->id);
}

/* Room first, so that nothing can fail once the example counts. */
static bitaxon_status item_room(bxn_dataset *d, bitaxon_error *error)
{
    void *items = d->entries;
    bitaxon_status status =
        grow(d->mem, &items, &d->room, d->count + 1, sizeof *d->entries, "places of examples", error);
    d->entries = items;
    return status;
}

static void add_item(bxn_dataset *d, const bxn_entry *item, uint64_t labels)
{
    const uint64_t key[] = {item->hash, item->text_at, item->count[0], item->count[1], labels};
    uint32_t longer = item->count[0] > item->count[1] ? item->count[0] : item->count[1];
    uint32_t both = item->count[0] + item->count[1];
    add_to_id(d, key, sizeof key);
    d->entries[d->count++] = *item;
    d->longest = longer > d->longest ? longer : d->longest;
    d->longest_pair = both > d->longest_pair ? both : d->longest_pair;
    d->facts.examples++;
    d->facts.tokens += both;
    d->facts.counted += labels;
}

static void note_vocabulary(bxn_dataset *d, const int32_t *tokens, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if ((uint32_t)tokens[i] >= d->facts.vocabulary)
            d->facts.vocabulary = (uint32_t)tokens[i] + 1;
}

/* ---- opening a file ------------------------------------------------------------------------------ */

static bitaxon_status bad_line(opening *o, uint64_t line, const char *reason)
{
    bxn_dataset *d = o->d;
    if (d->params.strict)
        return bxn_fail(o->error, BITAXON_FORMAT, "%.90s: line %llu: %s", d->path, (unsigned long long)line, reason);
    if (d->facts.bad_lines++ == 0) {
        bitaxon_error text = BITAXON_ERROR_INIT;
        bxn_fail(&text, BITAXON_FORMAT, "line %llu: %.120s", (unsigned long long)line, reason);
        memcpy(o->first_bad, text.message, sizeof o->first_bad - 1);
    }
    if (d->facts.bad_lines <= LOGGED_LINES)
        bxn_log(d->mem, BITAXON_LOG_WARNING, "%.200s: line %llu is left out: %s", d->path, (unsigned long long)line,
                reason);
    return BITAXON_OK;
}

static bitaxon_status tell(opening *o, uint64_t bytes)
{
    if (o->progress == NULL || bytes - o->told < BXN_SCAN_BYTES)
        return BITAXON_OK;
    o->told = bytes;
    return bxn_progress_step(o->progress, bytes, o->d->path, o->error);
}

static bitaxon_status record_room(bxn_reader *r, size_t bytes, bitaxon_error *error)
{
    void *memory;
    if (bytes <= r->record_room)
        return BITAXON_OK;
    bytes = bxn_round_up(bytes + bytes / 4, 4096);
    bitaxon_status status = bxn_alloc(r->dataset->mem, bytes, "a record", &memory, error);
    if (status != BITAXON_OK)
        return status;
    bxn_free(r->dataset->mem, r->record, r->record_room);
    r->record = memory;
    r->record_room = bytes;
    return BITAXON_OK;
}

/* An example, or a pair, as it was made: kept when a token counts on each side. */
static bitaxon_status take(opening *o, bxn_entry *item)
{
    bxn_dataset *d = o->d;
    const bxn_sequence *s = o->reader.sequences;
    size_t sides = d->params.objective == BXN_OBJECTIVE_ORPO ? 2 : 1, labels = 0;
    bool kept = true, cut = false, had = true;
    bitaxon_status status = item_room(d, o->error);
    if (status != BITAXON_OK)
        return status;
    for (size_t i = 0; i < sides; i++) {
        item->count[i] = (uint32_t)s[i].count;
        labels += s[i].labels;
        kept = kept && s[i].labels != 0;
        had = had && s[i].uncut != 0;
        cut = cut || s[i].cut;
    }
    d->facts.cut += cut;
    if (!kept) {
        d->facts.cut_empty += had;
        d->facts.empty += !had;
        return BITAXON_OK;
    }
    for (size_t i = 0; i < sides; i++)
        note_vocabulary(d, s[i].tokens, s[i].count);
    add_item(d, item, labels);
    return BITAXON_OK;
}

/* A document of a text. One without a label (a single token that is left over) is nothing to learn from. */
static bitaxon_status take_document(opening *o, const bxn_entry *item, size_t *kept)
{
    const bxn_sequence *s = o->reader.sequences;
    bxn_entry made = *item;
    bitaxon_status status = item_room(o->d, o->error);
    if (status != BITAXON_OK || s->labels == 0)
        return status;
    made.count[0] = (uint32_t)s->count;
    note_vocabulary(o->d, s->tokens, s->count);
    add_item(o->d, &made, s->labels);
    ++*kept;
    return BITAXON_OK;
}

/* Was the window too small to fill a document? Also how large the next one should be. */
static bool widen(opening *o, size_t window, size_t used, bool all)
{
    if (used == window && !all && o->window < BXN_MAX_RECORD_BYTES) {
        o->window = 2 * o->window < BXN_MAX_RECORD_BYTES ? 2 * o->window : BXN_MAX_RECORD_BYTES;
        return true;
    }
    if (used < window)
        o->window = used + used / 4 + 256;
    return false;
}

/* The text of a record, in as many documents as it needs. */
static bitaxon_status take_text(opening *o, const bxn_entry *item, const char *text, size_t bytes)
{
    size_t at = 0, used = 0, kept = 0;
    bitaxon_status status = BITAXON_OK;
    while (at < bytes) {
        size_t window = o->window < bytes - at ? o->window : bytes - at;
        while (window < bytes - at && ((uint8_t)text[at + window] & 0xC0) == 0x80)
            window--;
        bool all = at + window == bytes;
        status = bxn_make_text(&o->reader.maker, text + at, window, all, &o->reader.sequences[0], &used, o->error);
        if (status != BITAXON_OK)
            return status;
        if (widen(o, window, used, all))
            continue;
        bxn_entry document = *item;
        document.text_at = (uint32_t)at;
        document.text_bytes = (uint32_t)window;
        status = take_document(o, &document, &kept);
        if (status != BITAXON_OK)
            return status;
        at += used != 0 ? used : window;
    }
    o->d->facts.empty += kept == 0;
    return BITAXON_OK;
}

static bitaxon_status take_record(opening *o, const bxn_found *found)
{
    bxn_dataset *d = o->d;
    bxn_reader *reader = &o->reader;
    bxn_record record = {.mem = d->mem};
    bitaxon_error reason = BITAXON_ERROR_INIT;
    bitaxon_status status;
    if (found->problem != NULL)
        return bad_line(o, found->line, found->problem);
    if (found->bytes > BXN_MAX_RECORD_BYTES)
        return bad_line(o, found->line, "longer than 16 MiB");
    status = record_room(reader, (size_t)found->bytes, o->error);
    if (status == BITAXON_OK)
        status = bxn_scan_read(&d->source, d->path, found->offset, reader->record, (size_t)found->bytes, o->error);
    if (status != BITAXON_OK)
        return status;
    bxn_entry item = {.offset = found->offset,
                     .hash = XXH3_64bits(reader->record, (size_t)found->bytes),
                     .line = found->line,
                     .bytes = (uint32_t)found->bytes};
    status = bxn_record_parse(d->mem, reader->record, (size_t)found->bytes, d->params.objective, &record, &reason);
    if (status == BITAXON_OK && record.kind == BXN_RECORD_TEXT) {
        status = take_text(o, &item, record.text, record.text_bytes);
        bxn_record_free(&record);
        return status;
    }
    if (status == BITAXON_OK)
        status = bxn_make_record(&reader->maker, &record, reader->sequences, &reason);
    bxn_record_free(&record);
    if (status == BITAXON_OK)
        return take(o, &item);
    if (status == BITAXON_FORMAT)
        return bad_line(o, found->line, reason.message);
    return bxn_fail(o->error, status, "%.90s: line %llu: %s", d->path, (unsigned long long)found->line,
                    reason.message);
}

static bitaxon_status read_records(opening *o)
{
    bxn_dataset *d = o->d;
    bxn_scan scan;
    bxn_found found;
    bitaxon_status status = bxn_scan_open(d->mem, &d->source, d->path, &scan, o->error);
    if (status != BITAXON_OK)
        return status;
    while ((status = bxn_scan_next(&scan, &found, o->error)) == BITAXON_OK) {
        o->records++;
        status = take_record(o, &found);
        if (status == BITAXON_OK)
            status = tell(o, scan.offset + scan.at);
        if (status != BITAXON_OK)
            break;
    }
    bxn_scan_close(d->mem, &scan);
    return status == BITAXON_END ? BITAXON_OK : status;
}

/* Behind the end of the line that `at` is in. */
static bitaxon_status skip_line(opening *o, uint64_t *at)
{
    bxn_reader *r = &o->reader;
    while (*at < o->d->source.size) {
        uint64_t left = o->d->source.size - *at;
        size_t bytes = left < 4096 ? (size_t)left : 4096;
        bitaxon_status status = bxn_scan_read(&o->d->source, o->d->path, *at, r->record, bytes, o->error);
        if (status != BITAXON_OK)
            return status;
        const char *end = memchr(r->record, '\n', bytes);
        *at += end != NULL ? (size_t)(end - r->record) + 1 : bytes;
        if (end != NULL)
            break;
    }
    return BITAXON_OK;
}

/* Plain text: documents follow each other closely. A line that is not UTF-8 is left out, and ends a document. */
static bitaxon_status read_text(opening *o)
{
    static const unsigned char mark[3] = {0xEF, 0xBB, 0xBF};
    bxn_dataset *d = o->d;
    bxn_reader *r = &o->reader;
    uint64_t size = d->source.size, at = 0, line = 1;
    size_t used = 0, kept = 0;
    bitaxon_status status = BITAXON_OK;
    o->records = size != 0;
    while (at < size && status == BITAXON_OK) {
        size_t window = o->window < size - at ? o->window : (size_t)(size - at);
        bool partial;
        status = record_room(r, window > 4096 ? window : 4096, o->error);
        if (status == BITAXON_OK)
            status = bxn_scan_read(&d->source, d->path, at, r->record, window, o->error);
        if (status != BITAXON_OK)
            break;
        if (at == 0 && window >= 3 && memcmp(r->record, mark, 3) == 0) {
            at = 3;
            continue;
        }
        size_t valid = bxn_text_prefix(r->record, window, &partial);
        bool bad = valid < window && !(partial && at + window < size);
        while (bad && valid > 0 && r->record[valid - 1] != '\n')
            valid--;
        if (valid == 0) {
            status = bad_line(o, line++, "not UTF-8, or a NUL byte");
            if (status == BITAXON_OK)
                status = skip_line(o, &at);
            continue;
        }
        bool last = at + valid == size;
        status = bxn_make_text(&r->maker, r->record, valid, last, &r->sequences[0], &used, o->error);
        if (status != BITAXON_OK || widen(o, valid, used, last || bad))
            continue;
        const bxn_entry item = {.offset = at,
                               .hash = XXH3_64bits(r->record, valid),
                               .line = line,
                               .bytes = (uint32_t)valid,
                               .text_bytes = (uint32_t)valid};
        status = take_document(o, &item, &kept);
        used = used != 0 ? used : valid;
        for (size_t i = 0; i < used; i++)
            line += r->record[i] == '\n';
        at += used;
        if (status == BITAXON_OK)
            status = tell(o, at);
    }
    return status;
}

/* Nothing to train on is an error that says why. */
static bitaxon_status check_result(opening *o)
{
    const bxn_dataset *d = o->d;
    const bxn_dataset_facts *f = &d->facts;
    if (f->examples != 0)
        return BITAXON_OK;
    if (o->records == 0)
        return bxn_fail(o->error, BITAXON_FORMAT, "%.150s: no examples: the file is empty", d->path);
    if (f->bad_lines != 0 && f->empty + f->cut_empty == 0)
        return bxn_fail(o->error, BITAXON_FORMAT, "%.60s: no examples: all %llu records are bad, the first: %.120s",
                        d->path, (unsigned long long)f->bad_lines, o->first_bad);
    return bxn_fail(o->error, BITAXON_FORMAT,
                    "%.80s: no token counts: %llu examples have none, %llu lose theirs by the cut at %u tokens, %llu "
                    "records are bad",
                    d->path, (unsigned long long)f->empty, (unsigned long long)f->cut_empty, d->params.max_tokens,
                    (unsigned long long)f->bad_lines);
}

static void log_result(const bxn_dataset *d)
{
    const bxn_dataset_facts *f = &d->facts;
    if (f->bad_lines != 0)
        bxn_log(d->mem, BITAXON_LOG_WARNING, "%.200s: %llu bad records are left out", d->path,
                (unsigned long long)f->bad_lines);
    if (f->empty != 0)
        bxn_log(d->mem, BITAXON_LOG_WARNING, "%.200s: %llu examples without a token that counts are left out", d->path,
                (unsigned long long)f->empty);
    if (f->cut != 0)
        bxn_log(d->mem, BITAXON_LOG_WARNING,
                "%.200s: %llu examples were longer than %u tokens and are cut; %llu of them lost all tokens that count "
                "and are left out",
                d->path, (unsigned long long)f->cut, d->params.max_tokens, (unsigned long long)f->cut_empty);
}

bitaxon_status bxn_dataset_open(bxn_mem *mem, const bxn_tokenizer *tokenizer, const bxn_dataset_params *params,
                                bxn_progress *progress, bxn_dataset **out, bitaxon_error *error)
{
    opening o = {.progress = progress, .window = FIRST_WINDOW, .error = error};
    bxn_dataset *d;
    size_t length = strlen(params->path);
    *out = NULL;
    if (tokenizer == NULL)
        return bxn_fail(error, BITAXON_BAD_STATE, "data set: the model has no tokenizer");
    bitaxon_status status = make_empty(mem, tokenizer, params, &d, error);
    if (status != BITAXON_OK)
        return status;
    o.d = d;
    bxn_reader_open(&o.reader, d);
    status = bxn_copy_text(mem, params->path, length, "path of a data set", &d->path, error);
    if (status != BITAXON_OK)
        goto done;
    d->path_bytes = length + 1;
    d->params.path = d->path;
    d->plain = length >= 4 && strcmp(d->path + length - 4, ".txt") == 0;
    if (d->plain && params->objective == BXN_OBJECTIVE_ORPO) {
        status =
            bxn_fail(error, BITAXON_FORMAT, "%.120s: plain text has no pairs of answers, which ORPO needs", d->path);
        goto done;
    }
    status = bxn_source_file_open(mem, d->path, &d->source, error);
    if (status != BITAXON_OK)
        goto done;
    if (progress != NULL)
        progress->total = d->source.size;
    status = d->plain ? read_text(&o) : read_records(&o);
    if (status == BITAXON_OK)
        status = check_result(&o);
    if (status == BITAXON_OK && progress != NULL)
        status = bxn_progress_step(progress, progress->total, d->path, error);
    if (status == BITAXON_OK)
        log_result(d);

done:
    bxn_reader_close(&o.reader);
    if (status == BITAXON_OK)
        *out = d;
    else
        bxn_dataset_free(d);
    return status;
}

/* ---- filled by the caller ---------------------------------------------------------------------------- */

bitaxon_status bxn_dataset_create(bxn_mem *mem, const bxn_dataset_params *params, bxn_dataset **out,
                                  bitaxon_error *error)
{
    return make_empty(mem, NULL, params, out, error);
}

bitaxon_status bxn_dataset_add(bxn_dataset *d, const int32_t *tokens, const uint8_t *mask, size_t count,
                               bitaxon_error *error)
{
    bool pair = d->params.objective == BXN_OBJECTIVE_ORPO;
    size_t kept = count < d->params.max_tokens ? count : d->params.max_tokens;
    uint32_t labels = 0;
    bool uncut = false;
    void *pool = d->pool;
    if (d->source.close != NULL)
        return bxn_fail(error, BITAXON_BAD_STATE, "data set: it was opened from %.100s", d->path);
    for (size_t i = 0; i < count; i++) {
        if (tokens[i] < 0)
            return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "data set: tokens[%zu] is %d", i, (int)tokens[i]);
        labels += i > 0 && i < kept && mask[i] != 0;
        uncut = uncut || (i > 0 && mask[i] != 0);
    }
    bitaxon_status status =
        grow(d->mem, &pool, &d->pool_room, d->pool_count + kept, sizeof *d->pool, "tokens of a data set", error);
    d->pool = pool;
    if (status == BITAXON_OK)
        status = item_room(d, error);
    if (status != BITAXON_OK)
        return status;
    for (size_t i = 0; i < kept; i++)
        d->pool[d->pool_count + i] = (uint32_t)tokens[i] | (mask[i] != 0 ? COUNTS : 0);
    d->pool_count += kept;
    if (pair && !d->half) {
        d->half = true;
        d->half_count = (uint32_t)kept;
        d->half_labels = labels;
        d->half_uncut = uncut;
        d->half_cut = count > kept;
        return BITAXON_OK;
    }
    bool both = labels != 0 && (!pair || d->half_labels != 0);
    bool had = uncut && (!pair || d->half_uncut), cut = count > kept || (pair && d->half_cut);
    bxn_entry item = {.count = {(uint32_t)kept, 0}};
    if (pair) {
        item.count[0] = d->half_count;
        item.count[1] = (uint32_t)kept;
        labels += d->half_labels;
        d->half = false;
    }
    size_t all = item.count[0] + item.count[1];
    item.offset = d->pool_count - all;
    d->facts.cut += cut;
    if (!both) {
        d->pool_count -= all;
        d->facts.cut_empty += had;
        d->facts.empty += !had;
        return BITAXON_OK;
    }
    item.hash = XXH3_64bits(d->pool + item.offset, all * sizeof *d->pool);
    for (size_t i = 0; i < all; i++) {
        int32_t token = (int32_t)(d->pool[item.offset + i] & ~COUNTS);
        note_vocabulary(d, &token, 1);
    }
    add_item(d, &item, labels);
    return BITAXON_OK;
}

/* ---- reading examples ------------------------------------------------------------------------------- */

void bxn_reader_open(bxn_reader *reader, const bxn_dataset *dataset)
{
    *reader = (bxn_reader){.dataset = dataset};
    bxn_maker_open(&reader->maker, dataset->mem, dataset->tokenizer, &dataset->params);
}

void bxn_reader_close(bxn_reader *reader)
{
    bxn_mem *mem = reader->dataset->mem;
    bxn_maker_close(&reader->maker);
    bxn_free(mem, reader->record, reader->record_room);
    bxn_sequence_free(mem, &reader->sequences[0]);
    bxn_sequence_free(mem, &reader->sequences[1]);
    reader->record = NULL;
    reader->record_room = 0;
}

static bitaxon_status read_pool(bxn_reader *r, const bxn_entry *item, bitaxon_error *error)
{
    const uint32_t *from = r->dataset->pool + item->offset;
    for (int side = 0; side < 2; side++) {
        bxn_sequence *s = &r->sequences[side];
        s->count = 0;
        bitaxon_status status = bxn_sequence_reserve(r->dataset->mem, s, item->count[side], error);
        if (status != BITAXON_OK)
            return status;
        for (; s->count < item->count[side]; s->count++, from++) {
            s->tokens[s->count] = (int32_t)(*from & ~COUNTS);
            s->mask[s->count] = (*from & COUNTS) != 0;
        }
    }
    return BITAXON_OK;
}

static bitaxon_status read_file(bxn_reader *r, const bxn_entry *item, bitaxon_error *error)
{
    const bxn_dataset *d = r->dataset;
    bxn_record record = {.mem = d->mem};
    size_t used = 0;
    bitaxon_status status = record_room(r, item->bytes, error);
    if (status == BITAXON_OK)
        status = bxn_scan_read(&d->source, d->path, item->offset, r->record, item->bytes, error);
    if (status != BITAXON_OK)
        return status;
    if (XXH3_64bits(r->record, item->bytes) != item->hash)
        return bxn_fail(error, BITAXON_IO, "%.100s: line %llu is no longer what it was when the data set was opened",
                        d->path, (unsigned long long)item->line);
    r->sequences[1].count = 0;
    if (d->plain)
        return bxn_make_text(&r->maker, r->record, item->bytes, item->offset + item->bytes == d->source.size,
                             &r->sequences[0], &used, error);
    status = bxn_record_parse(d->mem, r->record, item->bytes, d->params.objective, &record, error);
    if (status != BITAXON_OK)
        return status;
    if (record.kind == BXN_RECORD_TEXT)
        status = bxn_make_text(&r->maker, record.text + item->text_at, item->text_bytes,
                               (size_t)item->text_at + item->text_bytes == record.text_bytes, &r->sequences[0], &used,
                               error);
    else
        status = bxn_make_record(&r->maker, &record, r->sequences, error);
    bxn_record_free(&record);
    return status;
}

bitaxon_status bxn_reader_example(bxn_reader *r, size_t i, bxn_example out[2], bitaxon_error *error)
{
    const bxn_entry *item = &r->dataset->entries[i];
    bitaxon_status status =
        r->dataset->source.close != NULL ? read_file(r, item, error) : read_pool(r, item, error);
    if (status != BITAXON_OK)
        return status;
    for (int side = 0; side < 2; side++)
        out[side] = (bxn_example){r->sequences[side].tokens, r->sequences[side].mask, item->count[side]};
    return BITAXON_OK;
}
