/* SPDX-License-Identifier: Apache-2.0 */
/* bpe.h - what the files of the tokenizer share: the tokenizer's tables, the state of one
 * encoding, and text helpers. The tables are compact arrays that are written by bpe_load.c
 * and never change afterwards; an encoding owns everything that it changes. */
#ifndef BXN_BPE_H
#define BXN_BPE_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "io/io.h"
#include "tokenizer/bxn_tokenizer.h"

/* ---- limits ---------------------------------------------------------------------- */
#define BXN_MAX_TOKEN_IDS 10000000u
#define BXN_MAX_ADDED_BYTES 256u     /* of the text of an added token */
#define BXN_MAX_PATTERN_BYTES 16384u /* of a pre-tokenizer's pattern */
#define BXN_MAX_STEPS 16u            /* normalizers, and steps of the pre-tokenizer */
#define BXN_MAX_END_TOKENS 1024u
#define BXN_MAX_ROLES 256u
#define BXN_MAX_TEXT_BYTES 0x3FFFFFFFu /* of one text to encode */
#define BXN_NO_ID UINT32_MAX

/* ---- growing arrays ---------------------------------------------------------------- */

typedef struct bxn_bytes {
    char *data;
    size_t count, capacity;
} bxn_bytes;

typedef struct bxn_ids {
    int32_t *data;
    size_t count, capacity;
} bxn_ids;

bitaxon_status bxn_bytes_reserve(bxn_mem *mem, bxn_bytes *bytes, size_t more, bitaxon_error *error);
bitaxon_status bxn_bytes_append(bxn_mem *mem, bxn_bytes *bytes, const char *text, size_t count,
                                bitaxon_error *error);
void bxn_bytes_free(bxn_mem *mem, bxn_bytes *bytes);
bitaxon_status bxn_ids_push(bxn_mem *mem, bxn_ids *ids, int32_t id, bitaxon_error *error);
void bxn_ids_free(bxn_mem *mem, bxn_ids *ids);

/* ---- tables ------------------------------------------------------------------------- */

enum {
    BXN_TOKEN_PRESENT = 1,
    BXN_TOKEN_SPECIAL = 2, /* "special": true among added_tokens */
    BXN_TOKEN_CONTROL = 4, /* a control token of the chat template */
    BXN_TOKEN_ADDED = 8,   /* listed in added_tokens */
    BXN_TOKEN_RAW = 16     /* never produced by BPE: not written in the byte alphabet */
};

typedef struct bxn_token {
    uint32_t offset, length; /* in the pool */
} bxn_token;

/* A slot of the merge table; empty when left is BXN_NO_ID. */
typedef struct bxn_merge {
    uint32_t left, right, rank, id;
} bxn_merge;

typedef struct bxn_added {
    uint32_t id;
    uint32_t offset, length; /* the text looked for, in the pool */
    bool lstrip, rstrip;
} bxn_added;

/* Added tokens sorted by their text; those that begin with byte b are
 * items[first[b] .. first[b + 1]). */
typedef struct bxn_matcher {
    bxn_added *items;
    uint32_t count;
    uint32_t first[257];
} bxn_matcher;

typedef enum bxn_form { BXN_NFC, BXN_NFD, BXN_NFKC, BXN_NFKD } bxn_form;

/* One step of the pre-tokenizer. */
typedef struct bxn_step {
    pcre2_code *code; /* pieces are its matches and what is between, or */
    char *literal;    /* the same with a fixed text, or */
    size_t literal_bytes;
    bool add_space; /* a piece that does not begin with a space gets one */
    bool drop_matches, drop_gaps;
} bxn_step;

typedef struct bxn_role {
    const char *name; /* NULL: any other role */
    const char *prefix, *suffix;
} bxn_role;

/* A chat template as data. See chat_template.c. */
typedef struct bxn_template {
    void *block; /* holds all that follows; NULL for the built-in template */
    size_t block_bytes;
    const char *begin, *generate;
    const char *const *controls; /* texts of control tokens */
    const bxn_role *roles;
    uint32_t control_count, role_count;
    bool trim;
} bxn_template;

/* For PCRE2's callbacks: whose memory, and what to say when there is none. */
typedef struct bxn_pcre_memory {
    bxn_mem *mem;
    uint64_t *held; /* nullable */
    bitaxon_status status;
    char reason[248]; /* with a status that is a failure: the account's own words, or empty */
} bxn_pcre_memory;

struct bxn_tokenizer {
    bxn_mem *mem;
    uint64_t held;     /* what mem was charged for this tokenizer */
    uint64_t seed;     /* of the hash tables; of no effect on results */
    uint32_t size;     /* 1 + highest id */
    bxn_token *tokens; /* [size] */
    uint8_t *flags;    /* [size] BXN_TOKEN_* */
    char *pool;
    size_t pool_bytes;
    uint32_t *slots; /* text -> id, open addressing: [slot_count] id or BXN_NO_ID */
    uint32_t slot_count;
    bxn_merge *merges; /* pair -> rank and result: [merge_slots] */
    uint32_t merge_slots;
    bool ignore_merges;
    uint32_t byte_id[256];
    bxn_matcher raw, normalized; /* looked for before and after normalization */
    bxn_form forms[BXN_MAX_STEPS];
    uint32_t form_count;
    bxn_step steps[BXN_MAX_STEPS];
    uint32_t step_count;
    int32_t *eos;
    uint32_t eos_count;
    bxn_template chat;
    bxn_pcre_memory pcre_memory; /* used by creation and freeing alone */
    pcre2_general_context *pcre;
};

/* Memory that stays with the tokenizer. */
bitaxon_status bxn_tokenizer_alloc(bxn_tokenizer *t, size_t size, const char *what, void **out,
                                   bitaxon_error *error);
void bxn_tokenizer_release(bxn_tokenizer *t, void *ptr, size_t size);

/* The id of exactly these bytes; want_bpe: only tokens that BPE may produce. */
uint32_t bxn_tokenizer_find(const bxn_tokenizer *t, const char *text, size_t bytes, bool want_bpe);
/* Index of the slot that holds these bytes, or of the empty one where they belong. */
uint32_t bxn_tokenizer_slot(const bxn_tokenizer *t, const char *text, size_t bytes);
/* How the added token with this id is looked for; NULL when it is none. */
const bxn_added *bxn_tokenizer_added(const bxn_tokenizer *t, uint32_t id);
uint32_t bxn_merge_slot(const bxn_tokenizer *t, uint32_t left, uint32_t right);

/* ---- encoding ------------------------------------------------------------------------- */

/* A place in the text whose token index is wanted: mark = the index of the first token that
 * begins at or after it. Ascending. */
typedef struct bxn_border {
    size_t offset; /* in the text to encode */
    size_t local;  /* in the normalized piece at hand */
    uint64_t mark;
} bxn_border;

typedef struct bxn_symbol {
    uint32_t id, previous, next, rank, merged;
} bxn_symbol;

typedef struct bxn_encoder {
    const bxn_tokenizer *t;
    bxn_mem *mem;
    bitaxon_error *error;
    uint8_t skip; /* added tokens with one of these flags stay text */
    bxn_ids ids;

    bxn_border *borders; /* [border_count], nullable */
    size_t border_count, border_next;

    /* Where a byte at `base + i` stands in the normalized piece: origin + i, less one
     * after a space that was put in front. */
    const char *base;
    size_t origin;
    bool spaced;
    size_t piece_end; /* of the piece at hand, in the text */

    bxn_bytes normal[2], space;
    bxn_symbol *symbols;
    uint64_t *heap;
    size_t symbol_capacity;

    bxn_pcre_memory pcre_memory;
    pcre2_general_context *general;
    pcre2_match_context *limits;
    pcre2_match_data *match;
} bxn_encoder;

bitaxon_status bxn_encoder_open(const bxn_tokenizer *t, uint8_t skip, bxn_encoder *encoder,
                                bitaxon_error *error);
void bxn_encoder_close(bxn_encoder *encoder);
/* Encode valid UTF-8 behind what encoder->ids holds. */
bitaxon_status bxn_encoder_text(bxn_encoder *encoder, const char *text, size_t bytes);
/* The tokens of one piece of the pre-tokenizer. */
bitaxon_status bxn_encoder_piece(bxn_encoder *encoder, const char *text, size_t bytes);
/* Copy ids out, or LIMIT. */
bitaxon_status bxn_ids_deliver(const bxn_ids *ids, int32_t *out, size_t capacity, size_t *need,
                               bitaxon_error *error);

/* ---- pretokenize.c ---------------------------------------------------------------------- */

bitaxon_status bxn_pcre_general(bxn_pcre_memory *memory, pcre2_general_context **out,
                                bitaxon_error *error);
/* Compile a pattern written for Oniguruma. UNSUPPORTED where PCRE2 would read it otherwise. */
bitaxon_status bxn_pattern_compile(bxn_tokenizer *t, const char *where, const char *pattern,
                                   pcre2_code **out, bitaxon_error *error);
/* Cut a piece by the steps from `step` on and hand the results to bxn_encoder_piece. */
bitaxon_status bxn_pretokenize(bxn_encoder *encoder, uint32_t step, const char *text, size_t bytes);

/* ---- load_steps.c ---------------------------------------------------------------------------- */

/* Reading tokenizer.json: where in it, for messages. */
typedef struct bxn_loader {
    bxn_tokenizer *t;
    const char *where;
    bitaxon_error *error;
    bool byte_level; /* a ByteLevel step has been read */
} bxn_loader;

bitaxon_status bxn_load_normalizer(bxn_loader *l, json_t *node);
bitaxon_status bxn_load_pre_tokenizer(bxn_loader *l, json_t *node);
/* What has no effect on ids, but may tell of another kind of tokenizer. */
bitaxon_status bxn_load_post_processor(bxn_loader *l, json_t *node);
bitaxon_status bxn_load_decoder(bxn_loader *l, json_t *node);
/* An object that has no keys but these (a list ended by NULL). */
bitaxon_status bxn_load_check_keys(bxn_loader *l, json_t *node, const char *what,
                                   const char *const *keys);
/* *value = the boolean at key, or as it is when there is none. */
bitaxon_status bxn_load_flag(bxn_loader *l, json_t *node, const char *what, const char *key,
                             bool *value);

/* ---- end_tokens.c ------------------------------------------------------------------------------
 */

/* config, generation: tokenizer_config.json and generation_config.json, or NULL. */
bitaxon_status bxn_load_ends(bxn_loader *l, json_t *config, json_t *generation);

/* ---- chat_template.c --------------------------------------------------------------------- */

/* config: the parsed tokenizer_config.json or NULL. */
bitaxon_status bxn_template_load(bxn_tokenizer *t, const char *where, json_t *config,
                                 bitaxon_error *error);
void bxn_template_free(bxn_tokenizer *t);

/* ---- unicode.c ------------------------------------------------------------------------------ */

typedef enum bxn_utf8 { BXN_UTF8_VALID, BXN_UTF8_INVALID, BXN_UTF8_PARTIAL } bxn_utf8;

/* What begins at text (count > 0 bytes): a character, a maximal ill-formed part, or the
 * well-formed beginning of a character that goes on behind the end. */
bxn_utf8 bxn_utf8_step(const char *text, size_t count, size_t *length);
/* The character at text, which is valid UTF-8. */
uint32_t bxn_utf8_read(const char *text, size_t *length);
size_t bxn_utf8_write(uint32_t c, char out[4]);
bool bxn_is_space(uint32_t c); /* White_Space */
size_t bxn_space_prefix(const char *text, size_t bytes);
size_t bxn_space_suffix(const char *text, size_t bytes); /* bytes of white space at the end */

/* Append text to out with ill-formed parts replaced by U+FFFD. */
bitaxon_status bxn_utf8_append(bxn_mem *mem, bxn_bytes *out, const char *text, size_t bytes,
                               bitaxon_error *error);
bool bxn_utf8_valid(const char *text, size_t bytes);

/* out = text in a normalization form. Borders (ascending, `local` in and out) move along;
 * one inside characters that change together goes behind them. */
bitaxon_status bxn_normalize(bxn_mem *mem, bxn_form form, const char *text, size_t bytes,
                             bxn_bytes *out, bxn_border *borders, size_t border_count,
                             bool *changed, bitaxon_error *error);

#endif
