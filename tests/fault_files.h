/* SPDX-License-Identifier: Apache-2.0 */
/* fault_files.h - model files for tests that damage them: held in memory, each in a block of
 * its exact size (so that a sanitizer sees a read beyond it), with a reader and a writer of
 * the safetensors frame that are independent of the library's. A failing step fails the test. */
#ifndef FAULT_FILES_H
#define FAULT_FILES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>

#include <bitaxon/bitaxon.h>

#define FILE_SET_MAX 8

typedef struct file_set {
    uint32_t count;
    char name[FILE_SET_MAX][64];
    unsigned char *data[FILE_SET_MAX]; /* size bytes exactly */
    size_t size[FILE_SET_MAX];
    bool no_map; /* sources that can be read alone */
    bitaxon_source sources[FILE_SET_MAX];
    bitaxon_file files[FILE_SET_MAX];
} file_set;

/* All regular files of a folder. */
void file_set_load(file_set *set, const char *folder);
/* Copy; a file of that name is replaced. */
void file_set_put(file_set *set, const char *name, const void *data, size_t size);
int file_set_find(const file_set *set, const char *name); /* -1: none */
void file_set_copy(file_set *to, const file_set *from);
void file_set_free(file_set *set);
/* params->files and file_count, for the set as it is now. */
void file_set_use(file_set *set, bitaxon_model_params *params);
void file_set_save(const file_set *set, const char *folder);

/* A safetensors file taken apart and put together. */
typedef struct st_parts {
    json_t *header;
    unsigned char *data;
    size_t data_bytes;
} st_parts;

void st_split(const unsigned char *file, size_t size, st_parts *out);
/* Into the set under this name. */
void st_join(const st_parts *parts, file_set *set, const char *name);
void st_free(st_parts *parts);

unsigned char *read_whole(const char *path, size_t *size);
void write_whole(const char *path, const void *data, size_t size);
/* A new empty folder; free the name with remove_folder (which removes the folder too). */
char *make_folder(void);
void remove_folder(char *folder);
/* folder + "/" + name, in one of a few static buffers. */
const char *in_folder(const char *folder, const char *name);

/* A tokenizer.json for the bytes, a few merges and three control tokens: TOKENIZER_IDS ids. */
#define TOKENIZER_IDS 268
void write_tokenizer(const char *folder);

/* config.json of a small model: the golden one's keys with `changes` ("\"vocab_size\": 300, ...")
 * put over them. Static buffer. */
const char *small_config(const char *changes);
/* bitaxon_model_new (format NULL: f32), with the tokenizer of folder `tokenizer` when given. */
void new_model(const char *folder, const char *config_json, const char *format, const char *tokenizer);
/* The same with the tokenizer of write_tokenizer. */
void new_model_of_words(const char *folder, const char *config_json, const char *format);
void pack_model(const char *from, const char *to);
void quantize_model(const char *from, const char *to, const char *format);

#endif
