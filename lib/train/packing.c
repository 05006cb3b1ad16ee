/* SPDX-License-Identifier: Apache-2.0 */
/* packing.c - micro-steps from a data set. The order of an epoch is a permutation that is computed element by element,
 * and lengths of examples are known, so that where a micro-step begins and ends is a function of the cursor alone;
 * only the examples that are in it are read. Called by the trainer, from one thread. */
#include "train/dataset_parts.h"

#include <string.h>

enum { ROUNDS = 8 };

/* How far the blocks of an epoch have come, when examples are not kept apart: block `block` begins with token `at` of
 * the example `example` in order. */
typedef struct place {
    uint64_t epoch, block, example;
    uint32_t at;
} place;

struct bxn_packer {
    bxn_mem *mem;
    const bxn_dataset *dataset;
    bxn_packing packing;
    bxn_reader reader;
    bool pairs;
    uint32_t rows, document_room;
    int32_t *tokens, *labels; /* [rows] */
    bxn_document *documents;  /* [document_room] */
    uint32_t row_count, document_count;
    place place; /* of the last search */
};

/* ---- order -------------------------------------------------------------------------------------- */

/* A Feistel network over the smallest even number of bits that holds n, walked until the result is below n
 * (J. Black, P. Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). */
static uint64_t permute(uint64_t seed, uint64_t epoch, uint64_t n, uint64_t i)
{
    uint32_t half = 1, word[4];
    while (half < 32 && n > (uint64_t)1 << 2 * half)
        half++;
    const uint64_t mask = ((uint64_t)1 << half) - 1;
    do {
        uint64_t left = i >> half, right = i & mask;
        for (uint64_t round = 0; round < ROUNDS; round++) {
            bxn_philox(seed ^ 0x6F72646572u, epoch, round << 56 | right, word);
            uint64_t next = left ^ (word[0] & mask);
            left = right;
            right = next;
        }
        i = left << half | right;
    } while (i >= n);
    return i;
}

static uint64_t in_order(const bxn_packer *p, uint64_t epoch, uint64_t index)
{
    return p->packing.shuffle ? permute(p->packing.seed, epoch, p->dataset->count, index) : index;
}

static uint32_t length_of(const bxn_packer *p, uint64_t epoch, uint64_t index)
{
    return p->dataset->entries[in_order(p, epoch, index)].count[0];
}

/* ---- making --------------------------------------------------------------------------------------- */

static bitaxon_status check(const bxn_dataset *d, const bxn_packing *packing, uint64_t *rows, bitaxon_error *error)
{
    bool pairs = d->params.objective == BXN_OBJECTIVE_ORPO;
    if (d->half)
        return bxn_fail(error, BITAXON_BAD_STATE, "data set: the last chosen answer has no rejected one");
    if (d->count == 0)
        return bxn_fail(error, BITAXON_FORMAT, "data set: no examples: %llu were given without a token that counts",
                        (unsigned long long)(d->facts.empty + d->facts.cut_empty));
    if (packing->blocks == 0 || (!pairs && packing->block_tokens < 2))
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "packing: %u blocks of %u tokens", packing->blocks,
                        packing->block_tokens);
    if (packing->rank >= (packing->ranks != 0 ? packing->ranks : 1))
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "packing: rank %u of %u", packing->rank, packing->ranks);
    if (!pairs && packing->isolate && d->longest > packing->block_tokens)
        return bxn_fail(
            error, BITAXON_INVALID_ARGUMENT,
            "packing: blocks of %u tokens, but the longest example has %u; open the data with max_tokens %u",
            packing->block_tokens, d->longest, packing->block_tokens);
    if (!pairs && !packing->isolate && packing->separator < 0)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "packing: the separator is %d", (int)packing->separator);
    *rows = (uint64_t)packing->blocks * (pairs ? d->longest_pair : packing->block_tokens);
    if (*rows > (uint32_t)1 << 30)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "packing: a micro-step would have %llu rows",
                        (unsigned long long)*rows);
    return BITAXON_OK;
}

bitaxon_status bxn_packer_create(bxn_mem *mem, const bxn_dataset *dataset, const bxn_packing *packing,
                                 bxn_packer **out, bitaxon_error *error)
{
    void *memory;
    uint64_t rows = 0;
    *out = NULL;
    bitaxon_status status = check(dataset, packing, &rows, error);
    if (status == BITAXON_OK)
        status = bxn_calloc(mem, sizeof **out, "packer", &memory, error);
    if (status != BITAXON_OK)
        return status;
    bxn_packer *p = memory;
    p->mem = mem;
    p->dataset = dataset;
    p->packing = *packing;
    p->pairs = dataset->params.objective == BXN_OBJECTIVE_ORPO;
    p->packing.ranks = packing->ranks != 0 ? packing->ranks : 1;
    p->rows = (uint32_t)rows;
    p->document_room = p->rows / 2 + packing->blocks + 1; /* an example has two tokens at least */
    bxn_reader_open(&p->reader, dataset);
    status = bxn_alloc(mem, rows * sizeof *p->tokens, "tokens of a micro-step", &memory, error);
    p->tokens = memory;
    if (status == BITAXON_OK) {
        status = bxn_alloc(mem, rows * sizeof *p->labels, "labels of a micro-step", &memory, error);
        p->labels = memory;
    }
    if (status == BITAXON_OK) {
        status = bxn_alloc(mem, p->document_room * sizeof *p->documents, "documents of a micro-step", &memory, error);
        p->documents = memory;
    }
    if (status != BITAXON_OK) {
        bxn_packer_free(p);
        return status;
    }
    *out = p;
    return BITAXON_OK;
}

void bxn_packer_free(bxn_packer *p)
{
    if (p == NULL)
        return;
    bxn_reader_close(&p->reader);
    bxn_free(p->mem, p->tokens, p->rows * sizeof *p->tokens);
    bxn_free(p->mem, p->labels, p->rows * sizeof *p->labels);
    bxn_free(p->mem, p->documents, p->document_room * sizeof *p->documents);
    bxn_free(p->mem, p, sizeof *p);
}

uint32_t bxn_packer_rows(const bxn_packer *packer) { return packer->rows; }

/* ---- examples kept apart ---------------------------------------------------------------------------- */

/* The index behind the micro-step that begins at `index`. */
static uint64_t step_end(const bxn_packer *p, uint64_t epoch, uint64_t index)
{
    const uint64_t count = p->dataset->count;
    if (p->pairs)
        return count - index < p->packing.blocks ? count : index + p->packing.blocks;
    for (uint32_t block = 0; block < p->packing.blocks; block++) {
        uint32_t used = 0, length;
        while (index < count && (length = length_of(p, epoch, index)) <= p->packing.block_tokens - used) {
            used += length;
            index++;
        }
    }
    return index;
}

static void open_document(bxn_packer *p)
{
    p->documents[p->document_count++] = (bxn_document){p->row_count, 0};
}

/* One more row of the last document; a token that counts is the label of the row before. */
static void put(bxn_packer *p, int32_t token, bool counts)
{
    bxn_document *document = &p->documents[p->document_count - 1];
    if (document->count++ != 0 && counts)
        p->labels[p->row_count - 1] = token;
    p->tokens[p->row_count] = token;
    p->labels[p->row_count++] = -1;
}

static bitaxon_status put_examples(bxn_packer *p, uint64_t epoch, uint64_t index, uint64_t end, bitaxon_error *error)
{
    bxn_example side[2];
    for (; index < end; index++) {
        bitaxon_status status = bxn_reader_example(&p->reader, (size_t)in_order(p, epoch, index), side, error);
        if (status != BITAXON_OK)
            return status;
        for (int i = 0; i < (p->pairs ? 2 : 1); i++) {
            open_document(p);
            for (uint32_t t = 0; t < side[i].count; t++)
                put(p, side[i].tokens[t], side[i].mask[t] != 0);
        }
    }
    return BITAXON_OK;
}

/* ---- examples in one stream ----------------------------------------------------------------------------- */

/* Move behind the block at `at`; emit: with its rows. A separator stands between two examples of one block. */
static bitaxon_status pass_block(bxn_packer *p, place *at, bool emit, bitaxon_error *error)
{
    uint32_t used = 0;
    if (emit)
        open_document(p);
    while (used < p->packing.block_tokens && at->example < p->dataset->count) {
        uint32_t length = length_of(p, at->epoch, at->example);
        if (at->at == 0 && used != 0) {
            if (emit)
                put(p, p->packing.separator, false);
            if (++used == p->packing.block_tokens)
                break;
        }
        uint32_t room = p->packing.block_tokens - used, left = length - at->at, n = left < room ? left : room;
        if (emit) {
            bxn_example side[2];
            bitaxon_status status =
                bxn_reader_example(&p->reader, (size_t)in_order(p, at->epoch, at->example), side, error);
            if (status != BITAXON_OK)
                return status;
            for (uint32_t t = at->at; t < at->at + n; t++)
                put(p, side[0].tokens[t], side[0].mask[t] != 0);
        }
        used += n;
        at->at += n;
        if (at->at == length) {
            at->at = 0;
            at->example++;
        }
    }
    at->block++;
    return BITAXON_OK;
}

/* Where the cursor's block begins: walked from the place found last, or from the epoch's begin. False: there are
 * not so many blocks. */
static bool seek(bxn_packer *p, const bxn_cursor *cursor)
{
    place *at = &p->place;
    if (at->epoch != cursor->epoch || at->block > cursor->index)
        *at = (place){.epoch = cursor->epoch};
    while (at->block < cursor->index && at->example < p->dataset->count)
        (void)pass_block(p, at, false, NULL);
    return at->block == cursor->index;
}

/* ---- micro-steps ------------------------------------------------------------------------------------------ */

static bitaxon_status find(bxn_packer *p, const bxn_cursor *cursor, bool *ended, bitaxon_error *error)
{
    bool stream = !p->pairs && !p->packing.isolate,
         found = stream ? seek(p, cursor) : cursor->index <= p->dataset->count;
    if (!found)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "packing: the cursor is at %llu, beyond the end of the data",
                        (unsigned long long)cursor->index);
    *ended = (stream ? p->place.example : cursor->index) == p->dataset->count;
    return BITAXON_OK;
}

/* Behind the micro-step at the cursor, which `find` has found. */
static bitaxon_status advance(bxn_packer *p, bxn_cursor *cursor, bool emit, bitaxon_error *error)
{
    bitaxon_status status = BITAXON_OK;
    if (p->pairs || p->packing.isolate) {
        uint64_t end = step_end(p, cursor->epoch, cursor->index);
        if (emit)
            status = put_examples(p, cursor->epoch, cursor->index, end, error);
        cursor->index = end;
        return status;
    }
    place at = p->place;
    for (uint32_t i = 0; i < p->packing.blocks && at.example < p->dataset->count && status == BITAXON_OK; i++)
        status = pass_block(p, &at, emit, error);
    if (status == BITAXON_OK)
        p->place = at;
    cursor->index = at.block;
    return status;
}

bitaxon_status bxn_packer_next(bxn_packer *p, bxn_cursor *cursor, bool loop, bxn_micro_step *step,
                               bitaxon_error *error)
{
    bxn_cursor at = *cursor;
    memset(step, 0, sizeof *step);
    p->row_count = 0;
    p->document_count = 0;
    for (uint32_t i = 0; i < p->packing.ranks; i++) {
        bool ended;
        bitaxon_status status = find(p, &at, &ended, error);
        if (status == BITAXON_OK && ended && loop) {
            at = (bxn_cursor){at.epoch + 1, 0};
            status = find(p, &at, &ended, error);
        }
        if (status == BITAXON_OK && !ended)
            status = advance(p, &at, i == p->packing.rank, error);
        if (status != BITAXON_OK)
            return status;
    }
    *step = (bxn_micro_step){p->row_count, p->tokens, p->labels, p->documents, p->document_count};
    *cursor = at;
    return BITAXON_OK;
}

bitaxon_status bxn_packing_count(const bxn_dataset *dataset, const bxn_packing *packing, uint64_t epoch,
                                 uint64_t *count, bitaxon_error *error)
{
    uint64_t rows;
    bxn_packer p = {.dataset = dataset, .packing = *packing, .pairs = dataset->params.objective == BXN_OBJECTIVE_ORPO};
    bxn_cursor at = {epoch, 0};
    bool ended = false;
    *count = 0;
    bitaxon_status status = check(dataset, packing, &rows, error);
    while (status == BITAXON_OK) { /* only lengths are looked at: p needs no buffers */
        status = find(&p, &at, &ended, error);
        if (status == BITAXON_OK && ended)
            break;
        if (status == BITAXON_OK)
            status = advance(&p, &at, false, error);
        ++*count;
    }
    return status;
}
