/* SPDX-License-Identifier: Apache-2.0 */
/* cache_file.c - a cache on disk (docs/formats.md): a header, then tokens, phases, biases, scan
 * state, logits and the pages of the window, each followed by its XXH3 checksum. Slots
 * that hold nothing are written as zeros, so that equal caches make equal files. Loading
 * builds everything beside the present content and swaps at the end. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "io/io.h"
#include "session/bxn_cache.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#define FILE_VERSION 3u
#define PLAIN_VERSION 2u /* without the fields of adapters: read as none */

typedef struct file_header {
    char magic[8]; /* "BXNCACHE" */
    uint32_t version;
    uint32_t header_bytes; /* of this struct, the checksum after it not counted */
    uint8_t fingerprint[16];
    int32_t kv_type;
    uint32_t vocab;
    uint64_t state_floats;
    uint64_t page_bytes;
    uint64_t length;
    uint64_t first_page;
    uint32_t page_count;
    uint32_t bias_count;
    uint32_t top_k;
    float temperature, top_p, min_p, repetition_penalty;
    uint32_t repetition_window;
    uint64_t seed;
    uint32_t has_logits;
    int32_t accuracy; /* of the model that read the tokens */
    /* from version 3 on */
    uint32_t adapter_count;
    uint32_t reserved;
    float adapter_weights[BXN_ADAPTERS];
    uint8_t adapter_ids[BXN_ADAPTERS][16];
} file_header;

#define PLAIN_BYTES offsetof(file_header, adapter_count)

_Static_assert(sizeof(file_header) == 208 && PLAIN_BYTES == 120, "the header has no padding");
_Static_assert(sizeof(bitaxon_logit_bias) == 8, "biases are written as they are");

/* The pages that the next query can see. */
static void live_pages(const bxn_cache *cache, uint64_t length, uint64_t *first, uint32_t *count)
{
    uint64_t window = cache->model->config.swa_window_size;
    *first = length + 1 > window ? (length + 1 - window) / BXN_PAGE : 0;
    uint64_t end = (length + BXN_PAGE - 1) / BXN_PAGE;
    *count = cache->layout.layers == 0 || end <= *first ? 0 : (uint32_t)(end - *first);
    if (*count == 0)
        *first = 0;
}

static bitaxon_status put(bxn_writer *writer, const void *data, size_t bytes, bitaxon_error *error)
{
    uint64_t sum = XXH3_64bits(data, bytes);
    bitaxon_status status = bxn_writer_put(writer, data, bytes, error);
    return status == BITAXON_OK ? bxn_writer_put(writer, &sum, sizeof sum, error) : status;
}

static size_t phase_bytes(uint64_t length) { return (size_t)((length + 63) / 64) * sizeof(uint64_t); }

static const char *kv_name(int32_t type)
{
    static const char *const names[] = { "f16", "f32", "i8", "q4" };
    return type >= BITAXON_KV_F16 && type <= BITAXON_KV_Q4 ? names[type - BITAXON_KV_F16] : "unknown";
}

static const char *accuracy_name(int32_t accuracy)
{
    static const char *const names[] = { "not stated", "exact", "near", "fast" };
    return accuracy >= 0 && accuracy <= 3 ? names[accuracy] : "unknown";
}

/* The phases of the tokens read; bits after them are zero. */
static bitaxon_status put_phases(bxn_writer *writer, const bxn_cache *cache, bitaxon_error *error)
{
    size_t bytes = phase_bytes(cache->length);
    void *memory;
    bitaxon_status status = bxn_alloc(cache->mem, bytes, "phases to save", &memory, error);
    if (status != BITAXON_OK)
        return status;
    uint64_t *words = memory;
    if (bytes != 0)
        memcpy(words, cache->phases, bytes);
    if (cache->length % 64 != 0)
        words[cache->length / 64] &= ((uint64_t)1 << cache->length % 64) - 1;
    status = put(writer, words, bytes, error);
    bxn_free(cache->mem, memory, bytes);
    return status;
}

bitaxon_status bxn_cache_write(const bxn_cache *cache, const char *path, bitaxon_error *error)
{
    const bxn_model *model = cache->model;
    const bitaxon_sampler_params *s = &cache->sampler.params;
    file_header header = {
        .magic = "BXNCACH", .version = FILE_VERSION, .header_bytes = sizeof header, .kv_type = cache->kv_type,
        .vocab = model->config.vocab_size, .state_floats = model->state_floats,
        .page_bytes = cache->layout.page_bytes, .length = cache->length, .bias_count = s->bias_count,
        .top_k = s->top_k, .temperature = s->temperature, .top_p = s->top_p, .min_p = s->min_p,
        .repetition_penalty = s->repetition_penalty, .repetition_window = s->repetition_window, .seed = s->seed,
        .has_logits = cache->state->has_logits, .accuracy = model->accuracy,
        .adapter_count = cache->length == 0 ? 0 : cache->mark.count,
    };
    if (header.adapter_count != 0) {
        memcpy(header.adapter_weights, cache->mark.weights, sizeof header.adapter_weights);
        memcpy(header.adapter_ids, cache->mark.ids, sizeof header.adapter_ids);
    }
    header.magic[7] = 'E';
    memcpy(header.fingerprint, model->fingerprint, sizeof header.fingerprint);
    live_pages(cache, cache->length, &header.first_page, &header.page_count);

    bxn_writer *writer = NULL;
    void *page = NULL;
    bitaxon_status status = bxn_alloc(cache->mem, cache->layout.page_bytes, "page to save", &page, error);
    if (status == BITAXON_OK)
        status = bxn_writer_open(cache->mem, path, &writer, error);
    if (status == BITAXON_OK)
        status = put(writer, &header, sizeof header, error);
    if (status == BITAXON_OK)
        status = put(writer, cache->tokens, cache->length * sizeof *cache->tokens, error);
    if (status == BITAXON_OK)
        status = put_phases(writer, cache, error);
    if (status == BITAXON_OK)
        status = put(writer, cache->sampler.biases, s->bias_count * sizeof *cache->sampler.biases, error);
    if (status == BITAXON_OK)
        status = put(writer, cache->state->scan, model->state_floats * sizeof(float), error);
    if (status == BITAXON_OK && header.has_logits)
        status = put(writer, cache->state->logits, header.vocab * sizeof(float), error);
    for (uint32_t i = 0; i < header.page_count && status == BITAXON_OK; i++) {
        uint64_t at = header.first_page + i;
        uint64_t used = cache->length - at * BXN_PAGE;
        memcpy(page, cache->data[at - cache->first_page], cache->layout.page_bytes);
        bxn_kv_clear(&cache->layout, page, used < BXN_PAGE ? (uint32_t)used : BXN_PAGE);
        status = put(writer, page, cache->layout.page_bytes, error);
    }
    if (writer != NULL && status == BITAXON_OK)
        status = bxn_writer_commit(writer, error);
    else if (writer != NULL)
        bxn_writer_abort(writer);
    bxn_free(cache->mem, page, cache->layout.page_bytes);
    return status;
}

typedef struct reader {
    bitaxon_source source;
    const char *path;
    uint64_t at;
} reader;

/* `bytes` and their checksum; `what` for the message. */
static bitaxon_status get(reader *r, void *data, size_t bytes, const char *what, bitaxon_error *error)
{
    uint64_t sum, start = r->at;
    int32_t code = bytes == 0 ? 0 : r->source.read_at(r->source.user, r->at, data, bytes);
    r->at += bytes;
    if (code == 0)
        code = r->source.read_at(r->source.user, r->at, &sum, sizeof sum);
    r->at += sizeof sum;
    if (code != 0)
        return bxn_fail(error, BITAXON_IO, "%s: cannot read %s at offset %llu (error %d)", r->path, what,
                        (unsigned long long)start, code);
    if (XXH3_64bits(data, bytes) != sum)
        return bxn_fail(error, BITAXON_FORMAT, "%s: damaged: the checksum of %s at offset %llu does not hold",
                        r->path, what, (unsigned long long)start);
    return BITAXON_OK;
}

/* The adapters the tokens were read with; `mark` is filled. */
static bitaxon_status check_adapters(const bxn_cache *cache, const reader *r, const file_header *h,
                                     bxn_adapter_mark *mark, bitaxon_error *error)
{
    memset(mark, 0, sizeof *mark);
    bool sound = h->adapter_count <= BXN_ADAPTERS && h->reserved == 0;
    mark->count = sound ? h->adapter_count : 0;
    for (uint32_t i = 0; i < BXN_ADAPTERS && sound; i++) {
        static const uint8_t none[16];
        if (i < h->adapter_count) {
            sound = isfinite(h->adapter_weights[i]);
            mark->weights[i] = h->adapter_weights[i];
            memcpy(mark->ids[i], h->adapter_ids[i], sizeof mark->ids[i]);
        } else {
            sound = bxn_f32_bits(h->adapter_weights[i]) == 0 && memcmp(h->adapter_ids[i], none, sizeof none) == 0;
        }
    }
    if (!sound || (h->length == 0 && h->adapter_count != 0))
        return bxn_fail(error, BITAXON_FORMAT, "%s: adapters in the header are not sound", r->path);
    if (h->length == 0 || cache->wanted == NULL || bxn_mark_equal(mark, cache->wanted))
        return BITAXON_OK;
    char had[BXN_MARK_TEXT], has[BXN_MARK_TEXT];
    bxn_mark_text(mark, had);
    bxn_mark_text(cache->wanted, has);
    return bxn_fail(error, BITAXON_MISMATCH, "%s: saved after reading with %s, the session has %s", r->path, had, has);
}

static bitaxon_status check_header(const bxn_cache *cache, const reader *r, const file_header *h,
                                   bitaxon_error *error)
{
    const bxn_model *model = cache->model;
    if (memcmp(h->fingerprint, model->fingerprint, sizeof h->fingerprint) != 0)
        return bxn_fail(error, BITAXON_MISMATCH, "%s: saved with another model (fingerprints differ)", r->path);
    if (h->kv_type != cache->kv_type)
        return bxn_fail(error, BITAXON_MISMATCH, "%s: saved with KV type %s, this cache has %s", r->path,
                        kv_name(h->kv_type), kv_name(cache->kv_type));
    if (h->accuracy != model->accuracy)
        return bxn_fail(error, BITAXON_MISMATCH, "%s: saved by a model with accuracy %s, this one has %s", r->path,
                        accuracy_name(h->accuracy), accuracy_name(model->accuracy));
    if (h->vocab != model->config.vocab_size || h->state_floats != model->state_floats ||
        h->page_bytes != cache->layout.page_bytes)
        return bxn_fail(error, BITAXON_MISMATCH, "%s: saved with a model of other sizes", r->path);
    if (h->length > cache->max_tokens)
        return bxn_fail(error, BITAXON_LIMIT, "%s: holds %llu tokens, this cache takes %llu", r->path,
                        (unsigned long long)h->length, (unsigned long long)cache->max_tokens);
    uint64_t first;
    uint32_t count;
    live_pages(cache, h->length, &first, &count);
    uint64_t expected = (uint64_t)h->header_bytes + 8 + h->length * 4 + 8 + phase_bytes(h->length) + 8 +
                        (uint64_t)h->bias_count * 8 + 8 + h->state_floats * 4 + 8 +
                        (h->has_logits ? (uint64_t)h->vocab * 4 + 8 : 0) + count * (h->page_bytes + 8);
    if (h->first_page != first || h->page_count != count || h->bias_count > BXN_MAX_BIAS || h->has_logits > 1 ||
        (h->length != 0) != (h->has_logits != 0) || expected != r->source.size)
        return bxn_fail(error, BITAXON_FORMAT, "%s: %llu bytes long, its header asks for %llu", r->path,
                        (unsigned long long)r->source.size, (unsigned long long)expected);
    return BITAXON_OK;
}

/* Everything a load makes before it touches the cache. */
typedef struct fresh {
    int32_t *tokens;
    uint64_t *phases;
    bitaxon_logit_bias biases[BXN_MAX_BIAS];
    bxn_state *state;
    bxn_cache pages; /* a cache used for its tables alone */
    bxn_sampler sampler;
} fresh;

static bitaxon_status read_all(bxn_cache *cache, reader *r, const file_header *h, fresh *f, bitaxon_error *error)
{
    void *memory;
    bitaxon_status status = bxn_alloc(cache->mem, h->length * sizeof *f->tokens, "token history", &memory, error);
    f->tokens = memory;
    if (status == BITAXON_OK)
        status = get(r, f->tokens, h->length * sizeof *f->tokens, "the tokens", error);
    for (uint64_t i = 0; i < h->length && status == BITAXON_OK; i++)
        if (f->tokens[i] < 0 || (uint32_t)f->tokens[i] >= h->vocab)
            status = bxn_fail(error, BITAXON_FORMAT, "%s: token %llu is %d, the vocabulary has 0 to %u", r->path,
                              (unsigned long long)i, f->tokens[i], h->vocab - 1);
    if (status == BITAXON_OK) {
        status = bxn_alloc(cache->mem, phase_bytes(h->length), "phases of tokens", &memory, error);
        f->phases = memory;
    }
    if (status == BITAXON_OK)
        status = get(r, f->phases, phase_bytes(h->length), "the phases of the tokens", error);
    if (status == BITAXON_OK && h->length % 64 != 0 && f->phases[h->length / 64] >> h->length % 64 != 0)
        status = bxn_fail(error, BITAXON_FORMAT, "%s: phases of tokens that were not read", r->path);
    if (status == BITAXON_OK)
        status = get(r, f->biases, h->bias_count * sizeof *f->biases, "the logit biases", error);
    if (status == BITAXON_OK) {
        bitaxon_sampler_params p = { sizeof p, h->top_k, h->temperature, h->top_p, h->min_p, h->repetition_penalty,
                                     h->repetition_window, h->bias_count, h->seed, f->biases };
        bitaxon_error inner = BITAXON_ERROR_INIT;
        status = bxn_sampler_set(cache->mem, &cache->model->config, &f->sampler, &p, &inner);
        if (status != BITAXON_OK)
            status = bxn_fail(error, status == BITAXON_INVALID_ARGUMENT ? BITAXON_FORMAT : status, "%s: %s", r->path,
                              inner.message);
    }
    if (status == BITAXON_OK)
        status = bxn_state_create(cache->mem, cache->model, &f->state, error);
    if (status == BITAXON_OK)
        status = get(r, f->state->scan, h->state_floats * sizeof(float), "the scan state", error);
    if (status == BITAXON_OK && h->has_logits) {
        status = get(r, f->state->logits, h->vocab * sizeof(float), "the logits", error);
        f->state->has_logits = 1;
    }
    if (status == BITAXON_OK)
        status = bxn_cache_tables(&f->pages, cache, h->page_count, error);
    for (uint32_t i = 0; i < h->page_count && status == BITAXON_OK; i++)
        status = get(r, f->pages.data[i], h->page_bytes, "a page of keys and values", error);
    return status;
}

bitaxon_status bxn_cache_read(bxn_cache *cache, const char *path, bitaxon_error *error)
{
    reader r = { .source = { .struct_size = sizeof r.source }, .path = path };
    file_header header;
    bxn_adapter_mark mark;
    void *memory = NULL;
    bitaxon_status status = bxn_source_file_open(cache->mem, path, &r.source, error);
    if (status != BITAXON_OK)
        return status;
    fresh *f = NULL;
    if (r.source.size < PLAIN_BYTES + 8) {
        status = bxn_fail(error, BITAXON_FORMAT, "%s: %llu bytes long, too short for a saved cache", path,
                          (unsigned long long)r.source.size);
        goto done;
    }
    memset(&header, 0, sizeof header);
    int32_t code = r.source.read_at(r.source.user, 0, &header, PLAIN_BYTES);
    if (code != 0) {
        status = bxn_fail(error, BITAXON_IO, "%s: cannot read the header (error %d)", path, code);
        goto done;
    }
    if (memcmp(header.magic, "BXNCACHE", 8) != 0) {
        status = bxn_fail(error, BITAXON_FORMAT, "%s: not a saved cache (offset 0)", path);
        goto done;
    }
    size_t header_bytes = header.version == PLAIN_VERSION ? PLAIN_BYTES : sizeof header;
    if ((header.version != FILE_VERSION && header.version != PLAIN_VERSION) || header.header_bytes != header_bytes) {
        status = bxn_fail(error, BITAXON_UNSUPPORTED, "%s: version %u (this library reads %u and %u)", path,
                          header.version, PLAIN_VERSION, FILE_VERSION);
        goto done;
    }
    if (r.source.size < header_bytes + 8) {
        status = bxn_fail(error, BITAXON_FORMAT, "%s: %llu bytes long, its header has %zu", path,
                          (unsigned long long)r.source.size, header_bytes);
        goto done;
    }
    memset(&header, 0, sizeof header);
    status = get(&r, &header, header_bytes, "the header", error);
    if (status == BITAXON_OK)
        status = check_header(cache, &r, &header, error);
    if (status == BITAXON_OK)
        status = check_adapters(cache, &r, &header, &mark, error);
    if (status == BITAXON_OK)
        status = bxn_calloc(cache->mem, sizeof *f, "saved cache", &memory, error);
    f = memory;
    if (status == BITAXON_OK)
        status = read_all(cache, &r, &header, f, error);
    if (status != BITAXON_OK)
        goto done;

    bxn_cache_clear(cache);
    memcpy(cache->tokens, f->tokens, header.length * sizeof *f->tokens);
    if (header.length != 0)
        memcpy(cache->phases, f->phases, phase_bytes(header.length));
    cache->length = header.length;
    cache->mark = mark;
    bxn_state_unref(cache->mem, cache->model, cache->state);
    cache->state = f->state;
    f->state = NULL;
    bxn_cache_take_pages(cache, &f->pages, header.first_page);
    bxn_sampler_free(cache->mem, &cache->sampler);
    cache->sampler = f->sampler;
    memset(&f->sampler, 0, sizeof f->sampler);
done:
    if (f != NULL) {
        bxn_free(cache->mem, f->phases, f->phases == NULL ? 0 : phase_bytes(header.length));
        bxn_free(cache->mem, f->tokens, header.length * sizeof *f->tokens);
        bxn_state_unref(cache->mem, cache->model, f->state);
        bxn_sampler_free(cache->mem, &f->sampler);
        bxn_cache_release(&f->pages);
        bxn_free(cache->mem, f, sizeof *f);
    }
    r.source.close(r.source.user);
    return status;
}
