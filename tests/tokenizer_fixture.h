/* SPDX-License-Identifier: Apache-2.0 */
/* tokenizer_fixture.h - what the tests of the tokenizer share: files, tokenizers, and the corpus
 * of tests/oracle/make_tokenizer_fixtures.py, whose generator is written down here again. */
#ifndef TOKENIZER_FIXTURE_H
#define TOKENIZER_FIXTURE_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer/bpe.h"

#define UNUSED_OK __attribute__((unused))
#define COUNT(array) (sizeof(array) / sizeof *(array))
#define SMALL "examples/models/tokenizer/"
#define GOLDEN "tests/golden/tokenizer/"

#define CHUNKS 2048
#define CHUNK_BYTES 1024
#define IDS 128
#define VARIANT_CHUNKS 256

/* ---- files and tokenizers ----------------------------------------------------------------- */

typedef struct text {
    char *data; /* terminated */
    size_t bytes;
} text;

/* data NULL when there is no such file. */
static UNUSED_OK text read_file(const char *path)
{
    text t = {NULL, 0};
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return t;
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    t.bytes = (size_t)ftell(file);
    rewind(file);
    t.data = malloc(t.bytes + 1);
    assert_non_null(t.data);
    assert_int_equal(fread(t.data, 1, t.bytes, file), t.bytes);
    t.data[t.bytes] = '\0';
    fclose(file);
    return t;
}

static UNUSED_OK text need_file(const char *path)
{
    text t = read_file(path);
    if (t.data == NULL)
        fail_msg("cannot read %s", path);
    return t;
}

static UNUSED_OK bxn_tokenizer *open_tokenizer(bxn_mem *mem, const char *path)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bxn_tokenizer *t = NULL;
    text json = need_file(path);
    assert_int_equal(bxn_mem_init(mem, NULL, 0, &error), BITAXON_OK);
    if (bxn_tokenizer_create(mem, "test", json.data, json.bytes, NULL, 0, NULL, 0, &t, &error) !=
        BITAXON_OK)
        fail_msg("%s: %s", path, error.message);
    free(json.data);
    return t;
}

static UNUSED_OK void close_tokenizer(bxn_mem *mem, bxn_tokenizer *t)
{
    bxn_tokenizer_free(t);
    assert_int_equal(mem->used, 0);
}

/* ---- random numbers and the corpus ------------------------------------------------------------
 */

static UNUSED_OK uint64_t below(uint64_t *state, uint64_t n)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (z ^ z >> 31) % n;
}

typedef struct corpus {
    text file;
    const char *snippet[1024];
    size_t bytes[1024], count;
    char chunk[8 * CHUNK_BYTES];
    size_t used;
} corpus;

static UNUSED_OK void corpus_open(corpus *c)
{
    c->file = need_file(GOLDEN "snippets.txt");
    c->count = 0;
    for (const char *at = c->file.data, *end;; at = end + 1) {
        end = memchr(at, 0x1E, (size_t)(c->file.data + c->file.bytes - at));
        assert_true(c->count < COUNT(c->snippet));
        c->snippet[c->count] = at;
        c->bytes[c->count++] = (size_t)((end != NULL ? end : c->file.data + c->file.bytes) - at);
        if (end == NULL)
            break;
    }
}

static UNUSED_OK void corpus_close(corpus *c)
{
    free(c->file.data);
}

static void put_bytes(corpus *c, const char *data, size_t bytes)
{
    assert_true(bytes <= sizeof c->chunk - c->used);
    memcpy(c->chunk + c->used, data, bytes);
    c->used += bytes;
}

static void put_character(corpus *c, uint32_t character)
{
    char out[4];
    put_bytes(c, out, bxn_utf8_write(character, out));
}

static void put_one_of(corpus *c, const char *const *list, size_t count, uint64_t *r)
{
    const char *s = list[below(r, count)];
    put_bytes(c, s, strlen(s));
}

/* Chunk `index` into c->chunk. */
static UNUSED_OK void corpus_chunk(corpus *c, uint64_t index)
{
    static const char *const spaces[] = {" ",
                                         " ",
                                         " ",
                                         "\t",
                                         "\n",
                                         "\r",
                                         "\r\n",
                                         "\xC2\xA0",
                                         "\xE3\x80\x80",
                                         "\xE2\x80\x8B",
                                         "\xE2\x80\xA8",
                                         "\xE1\xA0\x8E",
                                         "\x0B",
                                         "\x0C",
                                         "\xC2\x85",
                                         "\xE2\x80\x83"};
    static const char *const digits[] = {"0",
                                         "1",
                                         "2",
                                         "3",
                                         "4",
                                         "5",
                                         "6",
                                         "7",
                                         "8",
                                         "9",
                                         "\xD9\xA3",
                                         "\xE0\xA5\xAB",
                                         "\xEF\xBC\x93",
                                         "\xC2\xB2",
                                         "\xE2\x85\xA7",
                                         "\xC2\xBE"};
    static const char *const specials[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>",
                                           "<tool_call>",   "</tool_call>", "<|fim_prefix|>",
                                           "<|im_",         "end|>"};
    static const uint32_t ranges[][2] = {
        {0xAC00, 0xD7A3},   {0xAC00, 0xD7A3},   {0x4E00, 0x9FFF},   {0x4E00, 0x9FFF},
        {0x3040, 0x30FF},   {0x1F300, 0x1FAFF}, {0x1F1E6, 0x1F1FF}, {0xFE00, 0xFE0F},
        {0x0600, 0x06FF},   {0x0900, 0x097F},   {0x0400, 0x04FF},   {0x0E00, 0x0E7F},
        {0x00C0, 0x024F},   {0x1100, 0x11FF},   {0x2000, 0x2BFF},   {0xE000, 0xE0FF},
        {0x1D400, 0x1D7FF}, {0x0001, 0x10FFFF}};
    uint64_t r = 0x6269746178000000u + index;
    c->used = 0;
    while (c->used < CHUNK_BYTES) {
        uint64_t kind = below(&r, 100);
        if (kind < 55) {
            uint64_t i = below(&r, c->count);
            put_bytes(c, c->snippet[i], c->bytes[i]);
        } else if (kind < 65) {
            uint64_t i = below(&r, c->count), start = below(&r, c->bytes[i] + 1);
            put_bytes(c, c->snippet[i] + start, below(&r, c->bytes[i] - start + 1));
        } else if (kind < 72) {
            for (uint64_t n = 1 + below(&r, 12); n > 0; n--)
                put_one_of(c, spaces, COUNT(spaces), &r);
        } else if (kind < 78) {
            for (uint64_t n = 1 + below(&r, 12); n > 0; n--)
                put_one_of(c, digits, COUNT(digits), &r);
        } else if (kind < 84) {
            for (uint64_t n = 1 + below(&r, 8); n > 0; n--) {
                const uint32_t *range = ranges[below(&r, COUNT(ranges))];
                uint32_t ch = range[0] + (uint32_t)below(&r, range[1] - range[0] + 1);
                put_character(c, ch >= 0xD800 && ch <= 0xDFFF ? 0xFFFD : ch);
            }
        } else if (kind < 88) {
            put_character(c, 'a' + (uint32_t)below(&r, 26));
            for (uint64_t n = 1 + below(&r, 4); n > 0; n--)
                put_character(c, 0x300 + (uint32_t)below(&r, 0x70));
        } else if (kind < 91) {
            for (uint64_t n = 1 + below(&r, 6); n > 0; n--) {
                char byte = (char)below(&r, 256);
                put_bytes(c, &byte, 1);
            }
        } else if (kind < 95) {
            put_one_of(c, specials, COUNT(specials), &r);
        } else if (kind < 98) {
            uint32_t ch = 33 + (uint32_t)below(&r, 94);
            for (uint64_t n = 1 + below(&r, 64); n > 0; n--)
                put_character(c, ch);
        } else {
            for (uint64_t n = 1 + below(&r, 4); n > 0; n--)
                put_character(c, below(&r, 8) == 0 ? 127 : (uint32_t)below(&r, 33));
        }
    }
}

#endif
