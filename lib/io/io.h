/* SPDX-License-Identifier: Apache-2.0 */
/* io.h - files in and out: sources, bundles (the files of one model), JSON,
 * safetensors, the atomic writer. No mathematics here. All counts and offsets that
 * come from a file are checked against the file's size before use. */
#ifndef BXN_IO_H
#define BXN_IO_H

#include <jansson.h>

#include <bitaxon/source.h>

#include "runtime/dtype.h"
#include "runtime/runtime.h"

/* ---- limits, in one place --------------------------------------------------- */
#define BXN_MAX_HEADER_BYTES 100000000u /* safetensors header */
#define BXN_MAX_JSON_BYTES 268435456u   /* config, tokenizer */
#define BXN_MAX_TENSORS 1000000u
#define BXN_MAX_NAME 512u               /* bytes with the terminator */
#define BXN_MAX_RANK 8u
#define BXN_MAX_FILES 4096u
#define BXN_MAX_NESTING 64u             /* of JSON */

/* ---- small helpers ------------------------------------------------------------- */

/* Text of an errno value, or "error N" written into buffer. No locale, no strerror. */
const char *bxn_io_reason(int32_t code, char buffer[32]);

/* *out = a terminated copy of bytes of text; free with bxn_free(mem, *out, bytes + 1). */
bitaxon_status bxn_copy_text(bxn_mem *mem, const char *text, size_t bytes, const char *what,
                             char **out, bitaxon_error *error);

/* In place, O(n log n) whatever the order, no memory; not stable. size <= 256. */
void bxn_sort(void *items, uint64_t count, size_t size,
              int (*compare)(const void *left, const void *right));

/* ---- sources ------------------------------------------------------------------- */

/* A regular file. mem NULL: the C library's memory, unaccounted. Close with
 * out->close(out->user). */
bitaxon_status bxn_source_file_open(bxn_mem *mem, const char *path, bitaxon_source *out,
                                    bitaxon_error *error);

/* ---- bundle ------------------------------------------------------------------ */

typedef struct bxn_file {
    char *name; /* "config.json", "model-00001-of-00003.safetensors" */
    bitaxon_source source;
    bool owned;          /* opened here: closed by bxn_bundle_free */
    const uint8_t *map;  /* whole file, or NULL; set by bxn_file_map */
} bxn_file;

/* The files of one model, sorted by name. Of a directory these names are taken:
 * config.json, generation_config.json, tokenizer.json, tokenizer_config.json,
 * *.safetensors, model.safetensors.index.json. */
typedef struct bxn_bundle {
    bxn_mem *mem;
    char *where; /* the directory; "(memory)" for given files */
    bxn_file *files;
    uint32_t count;
    uint32_t capacity;
    uint32_t flags; /* BXN_BUNDLE_* */
} bxn_bundle;

enum { BXN_BUNDLE_NO_MMAP = 1, BXN_BUNDLE_NO_WEIGHTS = 2 };

/* path: a directory, or one .safetensors file (its neighbours config.json etc. are
 * taken too, but no other .safetensors and no index). Exactly one of path and files is
 * given. Nothing is mapped yet: bxn_tensors_open maps the files it uses. */
bitaxon_status bxn_bundle_open(bxn_mem *mem, const char *path, const bitaxon_file *files,
                               uint32_t file_count, uint32_t flags, bxn_bundle **out,
                               bitaxon_error *error);
void bxn_bundle_free(bxn_bundle *bundle);
/* NULL when there is no such file. */
bxn_file *bxn_bundle_find(bxn_bundle *bundle, const char *name);
/* Map the whole file, once, and charge it to mem as mapped until the bundle goes; LIMIT
 * when the ceiling does not allow it. With NO_MMAP, for an empty file and for a source
 * that cannot be mapped, file->map stays NULL and the status is OK. */
bitaxon_status bxn_file_map(bxn_bundle *bundle, bxn_file *file, bitaxon_error *error);
/* Exactly bytes at offset; IO naming file and offset on failure, FORMAT beyond the end. */
bitaxon_status bxn_file_read(const bxn_bundle *bundle, const bxn_file *file, uint64_t offset,
                             void *buffer, size_t bytes, bitaxon_error *error);
/* The whole file as text with a terminating 0 after it; free with bxn_free(mem, *text, *bytes + 1).
 * LIMIT when it is larger than max_bytes. */
bitaxon_status bxn_file_text(const bxn_bundle *bundle, const bxn_file *file, uint64_t max_bytes,
                             char **text, size_t *bytes, bitaxon_error *error);

/* ---- JSON -------------------------------------------------------------------- */

/* A parsed document. Jansson allocates with the C library; an upper bound of its tree,
 * counted over the text beforehand, is charged to mem while the document lives. */
typedef struct bxn_json {
    json_t *root;
    bxn_mem *mem;
    uint64_t charged;
} bxn_json;

/* The root is an object or an array. Duplicate keys, trailing text, nesting over 64, NUL
 * and invalid UTF-8 are FORMAT with line, column and offset. `what` names the document. */
bitaxon_status bxn_json_parse(bxn_mem *mem, const char *text, size_t bytes, const char *what,
                              bxn_json *out, bitaxon_error *error);
void bxn_json_free(bxn_json *json);
/* Between the two Jansson writes and reads numbers of the calling thread with a point, whatever the host's locale.
 * False: no memory, and nothing to leave (which is fine all the same). */
typedef struct bxn_locale {
    void *plain, *before;
} bxn_locale;
bool bxn_locale_enter(bxn_locale *locale);
void bxn_locale_leave(bxn_locale *locale);

/* ---- safetensors ---------------------------------------------------------------- */

#define BXN_PAD_PREFIX "__pad."

typedef struct bxn_tensor {
    char *name;
    bxn_dtype dtype;
    uint32_t rank;
    uint64_t shape[BXN_MAX_RANK];
    uint64_t bytes;  /* = product of shape * dtype size, checked */
    uint64_t offset; /* in the file, checked to lie inside */
    uint32_t file;   /* index into the bundle */
} bxn_tensor;

typedef struct bxn_tensors {
    bxn_bundle *bundle; /* borrowed */
    bxn_tensor *items;  /* sorted by name, unique */
    uint64_t count;
    uint64_t capacity;
    /* __metadata__ of all files: sorted key, value pairs; a later file overrides. */
    char **keys;
    char **values;
    uint64_t pairs;
} bxn_tensors;

/* Read the headers of every .safetensors file of the bundle and map the files. With an
 * index JSON only the files it names are read, each tensor must be where the index says,
 * and a missing file is IO naming it; without one, files are read in name order and a
 * later file overrides an earlier one's tensors. Refuses: header length 0, beyond the file
 * or over the limit, malformed JSON, unknown dtype (UNSUPPORTED, the rest FORMAT), shape
 * that does not give the byte count, offsets out of range, decreasing or overlapping,
 * duplicate names. Accepts "__metadata__": null, unaligned data, bytes that belong to no
 * tensor. Names that begin with BXN_PAD_PREFIX are checked and left out. */
bitaxon_status bxn_tensors_open(bxn_bundle *bundle, bxn_tensors **out, bitaxon_error *error);
void bxn_tensors_free(bxn_tensors *tensors);
const bxn_tensor *bxn_tensors_find(const bxn_tensors *tensors, const char *name);
const char *bxn_tensors_meta(const bxn_tensors *tensors, const char *key); /* or NULL */
/* Address of the tensor's bytes when its file is mapped, else NULL. */
const void *bxn_tensor_map(const bxn_tensors *tensors, const bxn_tensor *tensor);
bitaxon_status bxn_tensor_read(const bxn_tensors *tensors, const bxn_tensor *tensor,
                               uint64_t offset, void *buffer, size_t bytes, bitaxon_error *error);
size_t bxn_dtype_size(bxn_dtype dtype);
const char *bxn_dtype_name(bxn_dtype dtype); /* "F32" */

/* ---- writing ------------------------------------------------------------------- */

/* A file that appears whole or not at all: written as PATH.tmp-PID-N in the same
 * directory, synced, renamed over PATH by commit; removed by abort. */
typedef struct bxn_writer bxn_writer;
bitaxon_status bxn_writer_open(bxn_mem *mem, const char *path, bxn_writer **out,
                               bitaxon_error *error);
bitaxon_status bxn_writer_put(bxn_writer *writer, const void *data, size_t bytes,
                              bitaxon_error *error);
/* Overwrite earlier bytes (headers completed late). */
bitaxon_status bxn_writer_patch(bxn_writer *writer, uint64_t offset, const void *data,
                                size_t bytes, bitaxon_error *error);
uint64_t bxn_writer_size(const bxn_writer *writer);
/* Always frees the writer. On failure PATH is as it was, unless only the last step, the
 * sync of the directory, failed: then the new file is in place but may not survive a crash. */
bitaxon_status bxn_writer_commit(bxn_writer *writer, bitaxon_error *error);
void bxn_writer_abort(bxn_writer *writer);

/* Safetensors written in declaration order: declare every tensor, begin, then put their
 * bytes in that order (in any number of pieces). `align` is a power of two from 8 to 65536;
 * the data starts at a multiple of it. Above 8 every tensor does too: the format allows no
 * gaps, so they are filled by U8 tensors "__pad.N" that readers of ours leave out. At 8
 * tensors follow each other closely, as other readers of the format expect. */
typedef struct bxn_st_writer bxn_st_writer;
bitaxon_status bxn_st_create(bxn_mem *mem, const char *path, size_t align, bxn_st_writer **out,
                             bitaxon_error *error);
bitaxon_status bxn_st_meta(bxn_st_writer *writer, const char *key, const char *value,
                           bitaxon_error *error);
bitaxon_status bxn_st_declare(bxn_st_writer *writer, const char *name, bxn_dtype dtype,
                              uint32_t rank, const uint64_t *shape, bitaxon_error *error);
bitaxon_status bxn_st_begin(bxn_st_writer *writer, bitaxon_error *error);
bitaxon_status bxn_st_put(bxn_st_writer *writer, const void *data, size_t bytes,
                          bitaxon_error *error);
/* Give a value declared with bxn_st_meta another one of the same length, known only now. */
bitaxon_status bxn_st_patch_meta(bxn_st_writer *writer, const char *key, const char *value,
                                 bitaxon_error *error);
bitaxon_status bxn_st_commit(bxn_st_writer *writer, bitaxon_error *error); /* frees */
void bxn_st_abort(bxn_st_writer *writer);

/* ---- directories (directory.c) ---------------------------------------------------------- */

bool bxn_path_exists(const char *path);
/* What a path leads to, however it is written. False: nothing is there. */
typedef struct bxn_identity {
    uint64_t device, number;
} bxn_identity;
bool bxn_path_identity(const char *path, bxn_identity *out);
/* Names in no order, without "." and ".."; a visitor that does not return OK ends the walk. */
bitaxon_status bxn_directory_each(const char *path, bitaxon_status (*visit)(void *user, const char *name), void *user,
                                  bitaxon_error *error);
bitaxon_status bxn_directory_make(const char *path, bitaxon_error *error); /* its parent exists, it does not */
/* What is in it and its names survive a loss of power; where a system knows no such sync, nothing. */
bitaxon_status bxn_directory_sync(const char *path, bitaxon_error *error);
bitaxon_status bxn_directory_move(const char *from, const char *to, bitaxon_error *error);
/* With the files in it; directories in it are a failure, and the files are gone then. */
bitaxon_status bxn_directory_remove(const char *path, bitaxon_error *error);

/* mkdir -p; copy a file through the writer. */
bitaxon_status bxn_make_directory(const char *path, bitaxon_error *error);
bitaxon_status bxn_copy_file(bxn_mem *mem, const bxn_bundle *bundle, const bxn_file *file,
                             const char *path, bitaxon_error *error);

#endif
