/* SPDX-License-Identifier: Apache-2.0 */
/* dataset_parts.h - what the files of a data set share: finding records in a file, one record as messages or
 * text, its tokens with their mask, and reading an example again. packing.c uses the last of these. */
#ifndef BXN_DATASET_PARTS_H
#define BXN_DATASET_PARTS_H

#include "io/io.h"
#include "train/bxn_dataset.h"

/* ---- limits ---------------------------------------------------------------------------------- */
#define BXN_MAX_RECORD_BYTES (16u << 20) /* of one line, one element of an array; nothing longer is ever held */
#define BXN_MAX_RECORD_VALUES 65536u     /* of JSON in one record: bounds what the parser takes */
#define BXN_MAX_EXAMPLE_TOKENS (1u << 24)
#define BXN_SCAN_BYTES 65536u

/* ---- finding records (dataset_scan.c) --------------------------------------------------------- */

/* A file read in pieces from front to back. Of a record only its place is known. */
typedef struct bxn_scan {
    const bitaxon_source *source;
    const char *name;      /* of the file, for messages */
    unsigned char *buffer; /* [BXN_SCAN_BYTES] */
    uint64_t offset;       /* in the file, of buffer[0] */
    size_t at, have;
    uint64_t line; /* of the next byte, from 1 */
    int state;
} bxn_scan;

/* One line, or one element of the array. problem: what is there is no record; else NULL. */
typedef struct bxn_found {
    uint64_t offset, bytes, line;
    const char *problem;
} bxn_found;

/* A file whose first character is '[' is one JSON array, any other has a record on each line. */
bitaxon_status bxn_scan_open(bxn_mem *mem, const bitaxon_source *source, const char *name, bxn_scan *scan,
                             bitaxon_error *error);
void bxn_scan_close(bxn_mem *mem, bxn_scan *scan);
/* OK, END, or a failure. */
bitaxon_status bxn_scan_next(bxn_scan *scan, bxn_found *out, bitaxon_error *error);
/* Bytes of a source, or IO naming the file. */
bitaxon_status bxn_scan_read(const bitaxon_source *source, const char *name, uint64_t offset, void *buffer,
                             size_t bytes, bitaxon_error *error);

/* ---- one record (dataset_record.c) -------------------------------------------------------------- */

typedef enum bxn_record_kind {
    BXN_RECORD_CHAT = 1,   /* messages [0, count) */
    BXN_RECORD_COMPLETION, /* text, then completion */
    BXN_RECORD_TEXT,
    BXN_RECORD_PAIR /* messages [0, second) end with the chosen answer, [second, count) with the rejected one */
} bxn_record_kind;

/* Texts are the JSON document's own. */
typedef struct bxn_record {
    bxn_mem *mem;
    bxn_json json;
    bxn_record_kind kind;
    bitaxon_message *messages;
    size_t count, room;
    size_t second, prompt; /* PAIR: each list begins with `prompt` messages that the answer follows */
    const char *text, *completion;
    size_t text_bytes, completion_bytes;
    char *joined; /* an Alpaca instruction with its input */
    size_t joined_bytes;
} bxn_record;

/* FORMAT: a bad record, the message says why and names no place. Any other failure is not the record's. */
bitaxon_status bxn_record_parse(bxn_mem *mem, const char *text, size_t bytes, bxn_objective objective,
                                bxn_record *out, bitaxon_error *error);
void bxn_record_free(bxn_record *record);

/* ---- tokens (dataset_tokens.c) ------------------------------------------------------------------ */

typedef struct bxn_sequence {
    int32_t *tokens;
    uint8_t *mask; /* 1: the token counts */
    size_t count, capacity;
    bool cut;         /* it was longer than max_tokens */
    size_t labels;    /* tokens that count, the first left out: nothing is before it */
    size_t uncut;     /* labels before the cut */
} bxn_sequence;

/* How records become tokens. */
typedef struct bxn_maker {
    bxn_mem *mem;
    const bxn_tokenizer *tokenizer;
    bxn_mask mask;
    uint32_t max_tokens;
    int32_t text_end; /* follows a text and a completion; -1: none */
    int32_t chat_end; /* what the reference mask appends; -1: none */
    bitaxon_span *spans;
    size_t span_room;
} bxn_maker;

void bxn_maker_open(bxn_maker *maker, bxn_mem *mem, const bxn_tokenizer *tokenizer, const bxn_dataset_params *params);
void bxn_maker_close(bxn_maker *maker);
void bxn_sequence_free(bxn_mem *mem, bxn_sequence *sequence);
bitaxon_status bxn_sequence_reserve(bxn_mem *mem, bxn_sequence *sequence, size_t capacity, bitaxon_error *error);

/* Tokens of a CHAT or COMPLETION record, or of both sides of a PAIR, cut to max_tokens. FORMAT as above; UNSUPPORTED
 * when the tokenizer has no chat template. */
bitaxon_status bxn_make_record(bxn_maker *maker, const bxn_record *record, bxn_sequence out[2], bitaxon_error *error);
/* The document that a text begins with: at most max_tokens tokens. *used: bytes of the text in it. When the text
 * ends in it and `last` says that no more follows, the end token is appended if there is room. */
bitaxon_status bxn_make_text(bxn_maker *maker, const char *text, size_t bytes, bool last, bxn_sequence *out,
                             size_t *used, bitaxon_error *error);
/* Bytes of valid UTF-8 without NUL at the start of text. *partial: what follows is the beginning of a character that
 * the end cuts off. */
size_t bxn_text_prefix(const char *text, size_t bytes, bool *partial);

/* ---- the data set (dataset.c) --------------------------------------------------------------------- */

/* An example, or a pair of them. */
typedef struct bxn_entry {
    uint64_t offset; /* of its record in the file; without a file, of its first token in the pool */
    uint64_t hash;   /* of the record's bytes, when it was opened */
    uint64_t line;
    uint32_t bytes;
    uint32_t text_at, text_bytes; /* of a text: the part that was tokenised for this document */
    uint32_t count[2];            /* tokens; of the rejected answer */
} bxn_entry;

struct bxn_dataset {
    bxn_mem *mem;
    const bxn_tokenizer *tokenizer;
    bxn_dataset_params params; /* path: our own copy */
    char *path;
    size_t path_bytes;
    bitaxon_source source; /* close NULL: none */
    bool plain;            /* the file is text, not JSON */
    bxn_entry *entries;
    size_t count, room;
    uint32_t *pool; /* without a file: tokens, the highest bit set where one counts */
    size_t pool_count, pool_room;
    bool half; /* a chosen answer waits for its rejected one; of it: */
    bool half_uncut, half_cut;
    uint32_t half_count, half_labels;
    uint32_t longest, longest_pair;
    bxn_dataset_facts facts;
    void *hash; /* XXH3_state_t: of what the id is */
};

/* Examples read again, one after another; each thread needs a reader of its own. */
typedef struct bxn_reader {
    const bxn_dataset *dataset;
    bxn_maker maker;
    char *record;
    size_t record_room;
    bxn_sequence sequences[2];
} bxn_reader;

typedef struct bxn_example {
    const int32_t *tokens;
    const uint8_t *mask;
    uint32_t count;
} bxn_example;

void bxn_reader_open(bxn_reader *reader, const bxn_dataset *dataset);
void bxn_reader_close(bxn_reader *reader);
/* Example i, ORPO: both sides. Views until the next call. IO when the file is no longer what was opened. */
bitaxon_status bxn_reader_example(bxn_reader *reader, size_t i, bxn_example out[2], bitaxon_error *error);

#endif
