/* SPDX-License-Identifier: Apache-2.0 */
/* test_utf8_stream.c - text streams: valid UTF-8 for every split, equal in sum to the whole
 * text with U+FFFD for each maximal ill-formed part; and bitaxon_text_stream_next. */
#include "tokenizer_fixture.h"

#include <bitaxon/bitaxon.h>

static bool valid(const char *data, size_t bytes)
{
    return bytes == 0 || bxn_utf8_valid(data, bytes);
}

static size_t whole(bxn_mem *mem, const char *data, size_t bytes, bxn_bytes *out)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    out->count = 0;
    assert_int_equal(bxn_utf8_append(mem, out, data, bytes, &error), BITAXON_OK);
    return out->count;
}

/* Pieces of random sizes up to `most`, then a flush, sometimes together with the last piece. */
static void stream_split(const char *data, size_t bytes, const bxn_bytes *want, size_t most,
                         uint64_t *r)
{
    bitaxon_text_stream stream = {0};
    size_t at = 0, written = 0;
    bool flushed = false;
    while (!flushed) {
        char out[3 * 64 + 3 * 8];
        size_t piece = below(r, most + 1);
        if (piece > bytes - at)
            piece = bytes - at;
        bool flush = at + piece == bytes && below(r, 2) == 0;
        bitaxon_text_stream before = stream;
        size_t room = 3 * (stream.pending_bytes + piece);
        size_t told = bxn_utf8_push(&before, data + at, piece, flush, NULL);
        size_t got = bxn_utf8_push(&stream, data + at, piece, flush, out);
        assert_int_equal(told, got);
        assert_memory_equal(&before, &stream, sizeof stream);
        assert_true(got <= room);
        assert_true(stream.pending_bytes <= 3);
        assert_true(valid(out, got));
        assert_true(written + got <= want->count);
        if (got != 0)
            assert_memory_equal(out, want->data + written, got);
        written += got;
        at += piece;
        flushed = flush;
    }
    assert_int_equal(written, want->count);
    assert_int_equal(stream.pending_bytes, 0);
}

static void test_random_splits(void **state)
{
    static corpus c;
    bxn_bytes want = {0};
    bxn_mem mem;
    uint64_t r = 5;
    (void)state;
    bxn_mem_init(&mem, NULL, 0, NULL);
    corpus_open(&c);
    for (size_t i = 0; i < 200; i++) {
        corpus_chunk(&c, i);
        whole(&mem, c.chunk, c.used, &want);
        stream_split(c.chunk, c.used, &want, 1, &r);
        stream_split(c.chunk, c.used, &want, 3, &r);
        stream_split(c.chunk, c.used, &want, 64, &r);
    }
    bxn_bytes_free(&mem, &want);
    corpus_close(&c);
}

/* Short texts made of the bytes where rules change, split everywhere. */
static void test_borderline_bytes(void **state)
{
    static const unsigned char set[] = {0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF,
                                        0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED, 0xEE,
                                        0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF};
    bxn_bytes want = {0};
    bxn_mem mem;
    uint64_t r = 6;
    (void)state;
    bxn_mem_init(&mem, NULL, 0, NULL);
    for (int round = 0; round < 60000; round++) {
        char data[8];
        size_t bytes = 1 + below(&r, sizeof data);
        for (size_t i = 0; i < bytes; i++)
            data[i] = (char)set[below(&r, COUNT(set))];
        whole(&mem, data, bytes, &want);
        stream_split(data, bytes, &want, 1 + below(&r, 4), &r);
    }
    bxn_bytes_free(&mem, &want);
}

/* Against what the Unicode standard (table 3-8) and Python say. */
static void test_ill_formed_parts(void **state)
{
#define R "\xEF\xBF\xBD"
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64", "a" R R R "b" R "c" R R "d"},
        {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", R R R R R R R R "A"},
        {"\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41", R R R R R R R R "A"},
        {"\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42", R R R R R "A" R R "B"},
        {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", R R R R "A"},
        {"\xF4\x8F\xBF\xBF\xED\x9F\xBF", "\xF4\x8F\xBF\xBF\xED\x9F\xBF"},
        {"\xF0\x9F\x98", R},
        {"\xE2\x82\xE2\x82\xAC", R "\xE2\x82\xAC"},
    };
#undef R
    bxn_bytes out = {0};
    bxn_mem mem;
    uint64_t r = 7;
    (void)state;
    bxn_mem_init(&mem, NULL, 0, NULL);
    for (size_t i = 0; i < COUNT(cases); i++) {
        size_t bytes = strlen(cases[i].in);
        assert_int_equal(whole(&mem, cases[i].in, bytes, &out), strlen(cases[i].out));
        assert_memory_equal(out.data, cases[i].out, out.count);
        for (int split = 0; split < 50; split++)
            stream_split(cases[i].in, bytes, &out, 1 + below(&r, 5), &r);
    }
    bxn_bytes_free(&mem, &out);
}

/* A carry that no stream leaves behind is survived. */
static void test_rubbish_carry(void **state)
{
    uint64_t r = 8;
    (void)state;
    for (int round = 0; round < 20000; round++) {
        bitaxon_text_stream stream = {.pending_bytes = (uint32_t)below(&r, 9)};
        char in[6], out[3 * 14];
        for (size_t i = 0; i < 8; i++)
            stream.pending[i] = (uint8_t)below(&r, 256);
        for (size_t i = 0; i < sizeof in; i++)
            in[i] = (char)below(&r, 256);
        size_t got = bxn_utf8_push(&stream, in, sizeof in, round & 1, out);
        assert_true(got <= sizeof out);
        assert_true(valid(out, got));
        assert_true(stream.pending_bytes <= 3);
    }
}

/* ---- the public functions -------------------------------------------------------------------- */

static bitaxon_model *open_model(void)
{
    bitaxon_model_params params = {
        .struct_size = sizeof params, .path = SMALL, .flags = BITAXON_MODEL_TOKENIZER_ONLY};
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_model *model = NULL;
    if (bitaxon_model_open(&params, &model, &error) != BITAXON_OK)
        fail_msg("%s", error.message);
    return model;
}

static void test_stream_of_tokens(void **state)
{
    static const char said[] = "\xEC\x95\x88\xEB\x85\x95 \xF0\x9F\x91\xA8\xE2\x80\x8D\xF0\x9F\x91"
                               "\xA9, it's \xE4\xBD\xA0\xE5\xA5\xBD<|im_end|>";
    bitaxon_model *model = open_model();
    bitaxon_error error = BITAXON_ERROR_INIT;
    int32_t ids[256];
    size_t count, need, total = 0;
    char text[512], piece[64];
    (void)state;
    assert_int_equal(bitaxon_model_tokenize(model, said, sizeof said - 1, BITAXON_TOKENIZE_SPECIAL,
                                            ids, COUNT(ids), &count, &error),
                     BITAXON_OK);
    assert_int_equal(ids[count - 1], 4095);
    for (uint32_t flags = 0; flags <= BITAXON_DETOKENIZE_SPECIAL; flags += 2) {
        bitaxon_text_stream stream = {0};
        total = 0;
        for (size_t i = 0; i <= count; i++) {
            int32_t id = i < count ? ids[i] : -1;
            bitaxon_text_stream before = stream;
            assert_int_equal(bitaxon_text_stream_next(model, &stream, id, flags, piece,
                                                      sizeof piece, &need, &error),
                             BITAXON_OK);
            assert_true(valid(piece, need));
            memcpy(text + total, piece, need);
            total += need;
            if (need > 0) { /* too little room leaves the stream as it was */
                bitaxon_text_stream again = before;
                size_t told = 0;
                assert_int_equal(bitaxon_text_stream_next(model, &again, id, flags, piece, need - 1,
                                                          &told, &error),
                                 BITAXON_LIMIT);
                assert_int_equal(told, need);
                assert_memory_equal(&again, &before, sizeof again);
            }
        }
        size_t want = sizeof said - 1 - (flags == 0 ? 10 : 0);
        assert_int_equal(total, want);
        assert_memory_equal(text, said, want);
        assert_int_equal(
            bitaxon_model_detokenize(model, ids, count, flags, text, sizeof text, &need, &error),
            BITAXON_OK);
        assert_int_equal(need, want);
        assert_memory_equal(text, said, want);
    }
    /* A character cut off is U+FFFD at the flush, once. */
    bitaxon_text_stream stream = {sizeof stream, 0, {0}};
    int32_t byte_f0;
    assert_int_equal(bitaxon_model_token_id(model, "\xF0", 1, &byte_f0, &error), BITAXON_OK);
    assert_int_equal(
        bitaxon_text_stream_next(model, &stream, byte_f0, 0, piece, sizeof piece, &need, &error),
        BITAXON_OK);
    assert_int_equal(need, 0);
    assert_int_equal(
        bitaxon_text_stream_next(model, &stream, -1, 0, piece, sizeof piece, &need, &error),
        BITAXON_OK);
    assert_int_equal(need, 3);
    assert_memory_equal(piece, "\xEF\xBF\xBD", 3);
    assert_int_equal(bitaxon_text_stream_next(model, &stream, -1, 0, NULL, 0, &need, &error),
                     BITAXON_OK);
    assert_int_equal(need, 0);
    bitaxon_model_free(model);
}

static void test_arguments(void **state)
{
    bitaxon_model *model = open_model();
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_text_stream stream = {0};
    int32_t ids[8] = {0}, bad = 4096;
    size_t need;
    char text[8];
    (void)state;
    /* NULL and out of range */
    assert_int_equal(bitaxon_model_tokenize(NULL, "a", 1, 0, ids, 8, &need, &error),
                     BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_model_tokenize(model, NULL, 1, 0, ids, 8, &need, &error),
                     BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_model_tokenize(model, NULL, 0, 0, ids, 8, &need, &error), BITAXON_OK);
    assert_int_equal(need, 0);
    assert_int_equal(bitaxon_model_tokenize(model, "a", 1, 0, NULL, 8, &need, &error),
                     BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_model_tokenize(model, "a", 1, 0, ids, 8, NULL, &error),
                     BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_model_tokenize(model, "a", 1, 8, ids, 8, &need, &error),
                     BITAXON_UNSUPPORTED);
    assert_int_equal(bitaxon_model_detokenize(NULL, ids, 1, 0, text, 8, &need, &error),
                     BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_model_detokenize(model, NULL, 1, 0, text, 8, &need, &error),
                     BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_model_detokenize(model, &bad, 1, 0, text, 8, &need, &error),
                     BITAXON_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "4096"));
    bad = -1;
    assert_int_equal(bitaxon_model_detokenize(model, &bad, 1, 0, text, 8, &need, &error),
                     BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_model_detokenize(model, ids, 8, 0, text, 7, &need, &error),
                     BITAXON_LIMIT);
    assert_int_equal(need, 8);
    assert_int_equal(bitaxon_model_detokenize(model, ids, 0, 0, NULL, 0, &need, &error),
                     BITAXON_OK);
    assert_int_equal(bitaxon_text_stream_next(model, NULL, 0, 0, text, 8, &need, &error),
                     BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_text_stream_next(model, &stream, -2, 0, text, 8, &need, &error),
                     BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_text_stream_next(model, &stream, 4096, 0, text, 8, &need, &error),
                     BITAXON_INVALID_ARGUMENT);
    stream.pending_bytes = 4;
    assert_int_equal(bitaxon_text_stream_next(model, &stream, 0, 0, text, 8, &need, &error),
                     BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_model_token_id(model, "<none>", 6, ids, &error), BITAXON_END);
    assert_int_equal(bitaxon_model_token_id(model, NULL, 0, ids, &error), BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_model_token_id(model, "a", 1, NULL, &error), BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_model_eos_tokens(model, NULL, 0, &need, &error), BITAXON_LIMIT);
    assert_int_equal(need, 2);
    assert_int_equal(bitaxon_model_eos_tokens(model, ids, 8, &need, NULL), BITAXON_OK);
    assert_int_equal(ids[1], 4095);
    bitaxon_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_splits),    cmocka_unit_test(test_borderline_bytes),
        cmocka_unit_test(test_ill_formed_parts), cmocka_unit_test(test_rubbish_carry),
        cmocka_unit_test(test_stream_of_tokens), cmocka_unit_test(test_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
