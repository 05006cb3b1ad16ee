/* SPDX-License-Identifier: Apache-2.0 */
/* bxn_dataset.h - examples of a file, tokenised as they are asked for, and their packing into micro-steps.
 * A data set is immutable once opened; where a run stands in it is a cursor of a few numbers, from
 * which everything later follows. */
#ifndef BXN_DATASET_H
#define BXN_DATASET_H

#include "train/bxn_train.h"

typedef enum bxn_mask {
    BXN_MASK_CONTENT = 1, /* what the assistant says and the <|im_end|> after it (completions: the completion) */
    BXN_MASK_REFERENCE,   /* the original's: with the header of the assistant's turns, eos appended (spec 9.2) */
    BXN_MASK_ALL          /* every token; always of plain text */
} bxn_mask;

typedef struct bxn_dataset_params {
    const char *path;   /* JSONL, a JSON array, or plain text (one example: a file that ends in .txt) */
    bxn_objective objective; /* ORPO wants prompt, chosen, rejected */
    bxn_mask mask;
    uint32_t max_tokens; /* of an example; longer ones are cut on the right, plain text goes on in the next */
    bool strict;         /* a bad line is FORMAT naming it; else it is counted and left out */
} bxn_dataset_params;

typedef struct bxn_dataset bxn_dataset;

typedef struct bxn_dataset_facts {
    uint64_t examples, bad_lines, empty; /* empty: no token counts; found while opening */
    uint64_t tokens, counted;            /* of all examples as they train; the first of an example never counts */
    uint64_t cut;                        /* examples that were longer than max_tokens; texts go on instead */
    uint64_t cut_empty;                  /* of those, without a counted token afterwards: left out */
    uint32_t vocabulary;                 /* 1 + the highest token: the model must have as many */
    uint8_t id[16];                      /* of path-independent content and parameters */
} bxn_dataset_facts;

/* Reads the file once: offsets and lengths of its examples stay, the text does not. FORMAT when it is empty, or no
 * token of it counts (the message says which), or a line is bad and strict. progress: bytes. */
bitaxon_status bxn_dataset_open(bxn_mem *mem, const bxn_tokenizer *tokenizer, const bxn_dataset_params *params,
                                bxn_progress *progress, bxn_dataset **out, bitaxon_error *error);
/* From tokens that the caller has; mask [count] non-zero where a token counts. Copied. ORPO: each pair of examples. */
bitaxon_status bxn_dataset_create(bxn_mem *mem, const bxn_dataset_params *params, bxn_dataset **out,
                                  bitaxon_error *error);
bitaxon_status bxn_dataset_add(bxn_dataset *dataset, const int32_t *tokens, const uint8_t *mask, size_t count,
                               bitaxon_error *error);
void bxn_dataset_free(bxn_dataset *dataset);
void bxn_dataset_facts_get(const bxn_dataset *dataset, bxn_dataset_facts *out);

/* Where a run stands. */
typedef struct bxn_cursor {
    uint64_t epoch, index; /* the next example is order(epoch)[index]; not isolated: the next block of the epoch */
} bxn_cursor;

/* Packing: examples in the order of hash(seed, epoch) (a Feistel permutation, no memory) go one after another
 * into blocks of block_tokens, first come first placed; an example that does not fit ends the block and begins
 * the next one (nothing is split: no example is longer than block_tokens). A micro-step is `blocks` blocks, fewer at
 * the end of an epoch. ORPO: `blocks` pairs. isolate false: a block is one document, examples separated by
 * `separator`, split where a block is full (the original's way). */
typedef struct bxn_packing {
    uint32_t block_tokens, blocks;
    bool isolate, shuffle;
    int32_t separator;
    uint64_t seed;
    /* Of machines that share the data: micro-step i of all belongs to rank i % ranks; ranks 0: 1. A call moves the
     * cursor behind `ranks` micro-steps, so that all machines have the same cursor. Without loop the last of them may
     * find nothing left (rows 0) where the first still do. */
    uint32_t rank, ranks;
} bxn_packing;

typedef struct bxn_packer bxn_packer;
bitaxon_status bxn_packer_create(bxn_mem *mem, const bxn_dataset *dataset, const bxn_packing *packing,
                                 bxn_packer **out, bitaxon_error *error);
void bxn_packer_free(bxn_packer *packer);
uint32_t bxn_packer_rows(const bxn_packer *packer); /* most that a micro-step has */
/* The micro-step from *cursor on, and the cursor moved behind it; views are valid until the next call. At the
 * end of an epoch the next begins (loop), or step->rows is 0. */
bitaxon_status bxn_packer_next(bxn_packer *packer, bxn_cursor *cursor, bool loop, bxn_micro_step *step,
                               bitaxon_error *error);
/* Micro-steps of an epoch, of all machines together. Errors as of bxn_packer_create, but for memory. */
bitaxon_status bxn_packing_count(const bxn_dataset *dataset, const bxn_packing *packing, uint64_t epoch,
                                 uint64_t *count, bitaxon_error *error);

#endif
