/* SPDX-License-Identifier: Apache-2.0 */
/* dataset.h - what is trained on: examples of a file, tokenised as they are asked for, or tokens that
 * the host has. A data set is single-user until a trainer has it, and immutable-shared from then on. */
#ifndef BITAXON_DATASET_H
#define BITAXON_DATASET_H

#include <bitaxon/base.h>
#include <bitaxon/model.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bitaxon_dataset bitaxon_dataset;

enum { BITAXON_OBJECTIVE_SFT = 1, BITAXON_OBJECTIVE_ORPO = 2 };
enum {
    BITAXON_MASK_CONTENT = 1,   /* what the assistant says, and the end mark after it */
    BITAXON_MASK_REFERENCE = 2, /* the original's: with the header of the turn and a second end mark */
    BITAXON_MASK_ALL = 3        /* every token; plain text always */
};
enum { BITAXON_DATASET_STRICT = 1 }; /* a bad line is FORMAT; else it is counted and left out */

/* Files: JSONL or a JSON array of {"messages"}, {"conversations"}, {"instruction", "output"},
 * {"prompt", "completion"}, {"text"}, for ORPO {"prompt", "chosen", "rejected"}; or NAME.txt. */
typedef struct bitaxon_dataset_params {
    uint32_t struct_size;
    int32_t objective;   /* 0: SFT */
    int32_t mask;        /* 0: CONTENT */
    uint32_t max_tokens; /* of an example, longer ones are cut; 0: 2048 */
    uint32_t flags;      /* BITAXON_DATASET_* */
    uint32_t reserved0;
    const char *path;    /* NULL: empty, filled by bitaxon_dataset_add */
    bitaxon_progress_fn progress; /* nullable; bytes of the file, stage LOAD */
    void *progress_user;
} bitaxon_dataset_params;

typedef struct bitaxon_dataset_info {
    uint32_t struct_size;
    uint32_t vocabulary;       /* 1 + the highest token: a model must have as many */
    uint64_t examples;         /* ORPO: pairs */
    uint64_t bad_lines, empty; /* left out: not understood; without a token that counts */
    uint64_t tokens, counted;  /* of all examples as they train; those that count */
    uint64_t cut, cut_empty;   /* longer than max_tokens; of these left out: nothing that counts is left */
    uint8_t id[16];            /* of content and parameters, not of the path */
} bitaxon_dataset_info;

/* Params:    model  for its tokenizer (also with TOKENIZER_ONLY); kept alive.
 * Returns:   OK; INVALID_ARGUMENT; BAD_STATE (a path, but the model has no tokenizer); IO; FORMAT (empty,
 *            no token counts, or strict and a bad line: which); CANCELLED; OUT_OF_MEMORY; LIMIT.
 * Ownership: free with bitaxon_dataset_free; trainers keep it alive.  Thread: any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_dataset_open(bitaxon_model *model, const bitaxon_dataset_params *params,
                                                bitaxon_dataset **out, bitaxon_error *error);

/* Append one example; ORPO: the chosen, then the rejected answer, each with its prompt.
 * Params:    tokens [count]  copied.  mask [count]  non-zero where a token counts; NULL: all.
 * Returns:   OK; INVALID_ARGUMENT; BAD_STATE (opened from a file, or a trainer has it); OUT_OF_MEMORY; LIMIT.
 * Thread:    single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_dataset_add(bitaxon_dataset *dataset, const int32_t *tokens, const uint8_t *mask,
                                               size_t count, bitaxon_error *error);

/* Returns:   OK, INVALID_ARGUMENT.  Thread: single-user.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_dataset_get_info(const bitaxon_dataset *dataset, bitaxon_dataset_info *out,
                                                    bitaxon_error *error);

/* NULL is fine.  Thread: any-thread.  Since: 0.1 */
BITAXON_API void bitaxon_dataset_free(bitaxon_dataset *dataset);

#ifdef __cplusplus
}
#endif
#endif
