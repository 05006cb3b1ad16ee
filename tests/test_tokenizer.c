/* SPDX-License-Identifier: Apache-2.0 */
/* test_tokenizer.c - token ids against the Hugging Face library (fixtures of
 * tests/oracle/make_tokenizer_fixtures.py), decoding, hostile tokenizer.json files, time and
 * memory bounds. The vocabularies of Qwen2.5 and GPT-2 are compared when they are found in
 * $BITAXON_TOKENIZERS (default tests/golden/tokenizer/external). */
#include "fault_host.h"
#include "tokenizer_fixture.h"

#include <time.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

static int32_t ids[1 << 21];
static char bytes_out[1 << 22];

static size_t encode(const bxn_tokenizer *t, const char *data, size_t bytes, uint32_t flags)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    size_t need = 0;
    if (bxn_tokenizer_encode(t, data, bytes, flags, ids, COUNT(ids), &need, &error) != BITAXON_OK)
        fail_msg("encode: %s", error.message);
    return need;
}

static size_t decode(const bxn_tokenizer *t, size_t count)
{
    size_t used = 0, bytes;
    const char *piece;
    bool special;
    for (size_t i = 0; i < count; i++) {
        assert_true(bxn_tokenizer_piece(t, ids[i], &piece, &bytes, &special));
        assert_true(bytes <= sizeof bytes_out - used);
        memcpy(bytes_out + used, piece, bytes);
        used += bytes;
    }
    return used;
}

/* ---- ids ------------------------------------------------------------------------------------- */

static void compare(const char *tokenizer_path, const char *expected_path, size_t chunks)
{
    static corpus c;
    bxn_mem mem;
    bxn_tokenizer *t = open_tokenizer(&mem, tokenizer_path);
    text expected = need_file(expected_path);
    size_t wrong = 0, total = 0, tokens = 0;
    corpus_open(&c);
    assert_int_equal(expected.bytes, 12 * chunks);
    for (size_t i = 0; i < chunks; i++) {
        uint32_t want_count;
        uint64_t want_hash;
        memcpy(&want_count, expected.data + 12 * i, 4);
        memcpy(&want_hash, expected.data + 12 * i + 4, 8);
        corpus_chunk(&c, i);
        size_t count = encode(t, c.chunk, c.used, i & 1 ? BITAXON_TOKENIZE_SPECIAL : 0);
        uint64_t hash = XXH3_64bits(ids, count * sizeof *ids);
        if (count != want_count || hash != want_hash) {
            if (wrong++ < 10)
                print_message("%s: chunk %zu: %zu ids, hash %016llx; expected %u, %016llx\n",
                              tokenizer_path, i, count, (unsigned long long)hash,
                              (unsigned)want_count, (unsigned long long)want_hash);
        }
        total += c.used;
        tokens += count;
    }
    print_message("%s: %zu bytes, %zu ids, %zu of %zu chunks differ\n", tokenizer_path, total,
                  tokens, wrong, chunks);
    assert_int_equal(wrong, 0);
    free(expected.data);
    corpus_close(&c);
    close_tokenizer(&mem, t);
}

static void test_small_vocabulary(void **state)
{
    (void)state;
    compare(SMALL "tokenizer.json", GOLDEN "small.expected", CHUNKS);
}

/* Id by id, so that a difference can be seen. */
static void test_small_ids(void **state)
{
    static corpus c;
    bxn_mem mem;
    bxn_tokenizer *t = open_tokenizer(&mem, SMALL "tokenizer.json");
    text want = need_file(GOLDEN "small.ids");
    size_t at = 0;
    (void)state;
    corpus_open(&c);
    for (size_t i = 0; i < IDS; i++) {
        corpus_chunk(&c, i);
        size_t count = encode(t, c.chunk, c.used, i & 1 ? BITAXON_TOKENIZE_SPECIAL : 0);
        for (size_t j = 0; j < count; j++, at += 2) {
            assert_true(at + 2 <= want.bytes);
            int32_t id = (unsigned char)want.data[at] | (unsigned char)want.data[at + 1] << 8;
            if (ids[j] != id)
                fail_msg("chunk %zu, token %zu: %d, expected %d", i, j, (int)ids[j], (int)id);
        }
    }
    assert_int_equal(at, want.bytes);
    free(want.data);
    corpus_close(&c);
    close_tokenizer(&mem, t);
}

/* Patterns, normalizers and added tokens of other families. */
static void test_variants(void **state)
{
    static const char *const names[] = {"llama3", "words", "o200k", "deepseek", "prefix", "digits"};
    (void)state;
    for (size_t i = 0; i < COUNT(names); i++) {
        char path[128], expected[128];
        snprintf(path, sizeof path, GOLDEN "variant-%s.json", names[i]);
        snprintf(expected, sizeof expected, GOLDEN "variant-%s.expected", names[i]);
        compare(path, expected, VARIANT_CHUNKS);
    }
}

static void test_external_vocabularies(void **state)
{
    static const char *const names[] = {"qwen2.5", "gpt2"};
    const char *root = getenv("BITAXON_TOKENIZERS");
    (void)state;
    for (size_t i = 0; i < COUNT(names); i++) {
        char path[512], expected[128];
        snprintf(path, sizeof path, "%s/%s/tokenizer.json", root != NULL ? root : GOLDEN "external",
                 names[i]);
        snprintf(expected, sizeof expected, GOLDEN "%s.expected", names[i]);
        FILE *file = fopen(path, "rb");
        if (file == NULL) {
            print_message("SKIP %s: no %s (see tests/oracle/make_tokenizer_fixtures.py)\n",
                          names[i], path);
            continue;
        }
        fclose(file);
        compare(path, expected, CHUNKS);
    }
}

/* ---- there and back ---------------------------------------------------------------------------------- */

static void test_round_trip(void **state)
{
    static corpus c;
    bxn_mem mem;
    bxn_tokenizer *t = open_tokenizer(&mem, SMALL "tokenizer.json");
    size_t checked = 0;
    bxn_bytes normal = {0}, clean = {0};
    (void)state;
    corpus_open(&c);
    for (size_t i = 0; i < CHUNKS; i += 3) {
        bitaxon_error error = BITAXON_ERROR_INIT;
        bool changed;
        corpus_chunk(&c, i);
        clean.count = 0;
        assert_int_equal(bxn_utf8_append(&mem, &clean, c.chunk, c.used, &error), BITAXON_OK);
        assert_int_equal(bxn_normalize(&mem, BXN_NFC, clean.data, clean.count, &normal, NULL, 0,
                                       &changed, &error),
                         BITAXON_OK);
        const bxn_bytes *want = changed ? &normal : &clean;
        for (uint32_t flags = 0; flags <= BITAXON_TOKENIZE_SPECIAL; flags++) {
            size_t count = encode(t, want->data, want->count, flags);
            assert_int_equal(decode(t, count), want->count);
            assert_memory_equal(bytes_out, want->data, want->count);
        }
        /* The text as it came gives the same ids as its normal form. */
        size_t count = encode(t, want->data, want->count, 0);
        uint64_t hash = XXH3_64bits(ids, count * sizeof *ids);
        assert_int_equal(encode(t, c.chunk, c.used, 0), count);
        assert_int_equal(XXH3_64bits(ids, count * sizeof *ids), hash);
        checked++;
    }
    assert_true(checked > 600);
    bxn_bytes_free(&mem, &normal);
    bxn_bytes_free(&mem, &clean);
    corpus_close(&c);
    close_tokenizer(&mem, t);
}

static void test_lookups(void **state)
{
    bxn_mem mem;
    bxn_tokenizer *t = open_tokenizer(&mem, SMALL "tokenizer.json");
    bitaxon_error error = BITAXON_ERROR_INIT;
    const char *piece;
    size_t bytes, need;
    int32_t id = -7;
    bool special;
    (void)state;
    assert_int_equal(bxn_tokenizer_size(t), 4096);
    assert_true(bxn_tokenizer_id(t, "<|im_end|>", 10, &id));
    assert_int_equal(id, 4095);
    assert_true(bxn_tokenizer_id(t, " the", 4, &id));
    assert_true(bxn_tokenizer_piece(t, id, &piece, &bytes, &special));
    assert_int_equal(bytes, 4);
    assert_memory_equal(piece, " the", 4);
    assert_false(special);
    assert_false(bxn_tokenizer_id(t, "", 0, &id));
    assert_false(bxn_tokenizer_id(t, "<|im_end|> ", 11, &id));
    assert_false(bxn_tokenizer_piece(t, -1, &piece, &bytes, &special));
    assert_false(bxn_tokenizer_piece(t, 4096, &piece, &bytes, &special));
    assert_false(bxn_tokenizer_piece(t, INT32_MAX, &piece, &bytes, &special));
    assert_true(bxn_tokenizer_piece(t, 4094, &piece, &bytes, &special));
    assert_true(special);
    for (int32_t i = 0; i < 4096; i++) { /* each token is found by its bytes */
        assert_true(bxn_tokenizer_piece(t, i, &piece, &bytes, &special));
        assert_true(bxn_tokenizer_id(t, piece, bytes, &id));
        assert_int_equal(id, i);
    }
    const int32_t *ends = bxn_tokenizer_eos(t, &need);
    assert_int_equal(need, 2);
    assert_int_equal(ends[0], 4093);
    assert_int_equal(ends[1], 4095);

    /* Text stays text unless control tokens are asked for. */
    assert_true(encode(t, "a<|im_end|>b", 12, 0) > 3);
    for (size_t i = 0, count = encode(t, "a<|im_end|>b", 12, 0); i < count; i++)
        assert_true(ids[i] < 4093);
    assert_int_equal(encode(t, "a<|im_end|>b", 12, BITAXON_TOKENIZE_SPECIAL), 3);
    assert_int_equal(ids[1], 4095);

    /* Too little room: nothing is written, the need is told. */
    size_t count = encode(t, "Hello there", 11, 0);
    ids[0] = -5;
    need = 0;
    assert_int_equal(bxn_tokenizer_encode(t, "Hello there", 11, 0, ids, count - 1, &need, &error),
                     BITAXON_LIMIT);
    assert_int_equal(need, count);
    assert_int_equal(ids[0], -5);
    assert_int_equal(bxn_tokenizer_encode(t, "Hello there", 11, 0, NULL, 0, &need, NULL),
                     BITAXON_LIMIT);
    assert_int_equal(bxn_tokenizer_encode(t, "", 0, 0, NULL, 0, &need, &error), BITAXON_OK);
    assert_int_equal(need, 0);
    close_tokenizer(&mem, t);
}

/* ---- end tokens -------------------------------------------------------------------------------------- */

static bitaxon_status create(bxn_mem *mem, const char *json, const char *config,
                             const char *generation, bxn_tokenizer **t, bitaxon_error *error)
{
    *error = (bitaxon_error)BITAXON_ERROR_INIT;
    return bxn_tokenizer_create(mem, "m", json, strlen(json), config,
                                config != NULL ? strlen(config) : 0, generation,
                                generation != NULL ? strlen(generation) : 0, t, error);
}

static void test_end_tokens(void **state)
{
    static const struct {
        const char *config, *generation;
        bitaxon_status status;
        size_t count;
        int32_t first;
    } cases[] = {
        {NULL, "{\"eos_token_id\": 7}", BITAXON_OK, 3, 7},
        {NULL, "{\"eos_token_id\": [4095, 4093, 9, 9]}", BITAXON_OK, 3, 9},
        {NULL, "{\"eos_token_id\": null}", BITAXON_OK, 2, 4093},
        {"{\"eos_token\": \"!\"}", NULL, BITAXON_OK, 3, 0},
        {"{\"eos_token\": {\"content\": \"!\", \"special\": true}}", NULL, BITAXON_OK, 3, 0},
        {"{\"eos_token\": null}", "{}", BITAXON_OK, 2, 4093},
        {"{\"eos_token\": \"<none>\"}", NULL, BITAXON_OK, 2, 4093},
        {"{\"eos_token\": 5}", NULL, BITAXON_FORMAT, 0, 0},
        {"[]", NULL, BITAXON_FORMAT, 0, 0},
        {"{", NULL, BITAXON_FORMAT, 0, 0},
        {NULL, "{\"eos_token_id\": -1}", BITAXON_FORMAT, 0, 0},
        {NULL, "{\"eos_token_id\": 99999999999}", BITAXON_FORMAT, 0, 0},
        {NULL, "{\"eos_token_id\": [\"a\"]}", BITAXON_FORMAT, 0, 0},
        {NULL, "{\"eos_token_id\": {}}", BITAXON_FORMAT, 0, 0},
    };
    text json = need_file(SMALL "tokenizer.json");
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        bxn_mem mem;
        bxn_tokenizer *t;
        bitaxon_error error;
        size_t count = 0;
        bxn_mem_init(&mem, NULL, 0, NULL);
        assert_int_equal(create(&mem, json.data, cases[i].config, cases[i].generation, &t, &error),
                         cases[i].status);
        if (t != NULL) {
            const int32_t *ends = bxn_tokenizer_eos(t, &count);
            assert_int_equal(count, cases[i].count);
            assert_int_equal(ends[0], cases[i].first);
        }
        close_tokenizer(&mem, t);
    }
    free(json.data);
}

/* ---- hostile files ----------------------------------------------------------------------------------- */

/* A copy of text with one place replaced. */
static char *replaced(const char *whole, const char *what, const char *with)
{
    const char *at = strstr(whole, what);
    if (at == NULL)
        fail_msg("the base file has no %s", what);
    char *copy = malloc(strlen(whole) + strlen(with) + 1);
    assert_non_null(copy);
    memcpy(copy, whole, (size_t)(at - whole));
    strcpy(copy + (at - whole), with);
    strcat(copy, at + strlen(what));
    return copy;
}

static void expect_refused(const char *json, bitaxon_status status, const char *message)
{
    bxn_mem mem;
    bxn_tokenizer *t = (bxn_tokenizer *)&mem;
    bitaxon_error error;
    bxn_mem_init(&mem, NULL, 0, NULL);
    bitaxon_status got = create(&mem, json, NULL, NULL, &t, &error);
    if (got != status || error.code != status || strstr(error.message, message) == NULL)
        fail_msg("status %d \"%s\", expected %d \"%s\"", (int)got, error.message, (int)status,
                 message);
    assert_null(t);
    assert_int_equal(mem.used, 0);
    assert_true(mem.peak < 64u << 20);
}

#define PRE                                                                                        \
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":"       \
    "false,\"use_regex\":true}"
#define SPLIT(pattern)                                                                             \
    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":"                       \
    "\"Split\",\"pattern\":" pattern ",\"behavior\":\"Isolated\",\"invert\":false},{\"type\":"     \
    "\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]}"
#define REGEX(pattern) SPLIT("{\"Regex\":\"" pattern "\"}")
#define ADDED "\"added_tokens\":["
#define TOKEN(id, content)                                                                         \
    "{\"id\":" id ",\"content\":\"" content "\",\"single_word\":false,"                            \
    "\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true}"

/* 256 bytes, a few merges, one control token. */
static char *base_file(void)
{
    char *json = malloc(16384);
    size_t at = 0, extra = 0;
    assert_non_null(json);
    at += (size_t)sprintf(
        json,
        "{\"version\":\"1.0\"," ADDED TOKEN(
            "300", "<|x|>") "],\"normalizer\":null," PRE ",\"post_processor\":null,\"decoder\":"
                            "{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{");
    for (int byte = 0; byte < 256; byte++) {
        bool self = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
        uint32_t c = self ? (uint32_t)byte : 256 + (uint32_t)extra++;
        json[at++] = '"';
        if (c == '"' || c == '\\')
            json[at++] = '\\';
        at += bxn_utf8_write(c, json + at);
        at += (size_t)sprintf(json + at, "\":%d,", byte);
    }
    sprintf(json + at,
            "\"ab\":256,\"abc\":257,\"bc\":258},\"merges\":[\"a b\",\"ab c\",\"b c\"]}}");
    return json;
}

static void test_hostile_files(void **state)
{
    static const struct {
        const char *what, *with;
        bitaxon_status status;
        const char *message;
    } cases[] = {
        /* the document */
        {"\"version\"", "\"version\":1,\"odd\"", BITAXON_UNSUPPORTED, "unknown key \"odd\""},
        {"{\"version\"", "{\"model\":7,\"version\"", BITAXON_FORMAT, ""}, /* a key twice */
        {"\"vocab\":{", "\"vocab\":{\"\\u0000\":400,", BITAXON_FORMAT, ""},
        {"\"BPE\"", "\"Unigram\"", BITAXON_UNSUPPORTED, "\"Unigram\""},
        {"\"BPE\"", "3", BITAXON_FORMAT, "\"model\""},
        {"\"type\":\"BPE\"", "\"mystery\":1", BITAXON_UNSUPPORTED, "\"mystery\""},
        {"\"type\":\"BPE\"", "\"dropout\":0.1", BITAXON_UNSUPPORTED, "\"dropout\""},
        {"\"type\":\"BPE\"", "\"byte_fallback\":true", BITAXON_UNSUPPORTED, "\"byte_fallback\""},
        {"\"type\":\"BPE\"", "\"unk_token\":\"<unk>\"", BITAXON_UNSUPPORTED, "\"unk_token\""},
        {"\"type\":\"BPE\"", "\"continuing_subword_prefix\":\"##\"", BITAXON_UNSUPPORTED,
         "\"continuing_subword_prefix\""},
        {"\"type\":\"BPE\"", "\"end_of_word_suffix\":\"</w>\"", BITAXON_UNSUPPORTED,
         "\"end_of_word_suffix\""},
        {"\"type\":\"BPE\"", "\"ignore_merges\":1", BITAXON_FORMAT, "\"ignore_merges\""},
        {"\"type\":\"BPE\"", "\"fuse_unk\":\"no\"", BITAXON_FORMAT, "\"fuse_unk\""},
        {"\"model\":{", "\"model\":null,\"x\":{", BITAXON_UNSUPPORTED, "\"x\""},
        {"\"vocab\":{", "\"vocab\":[],\"x\":{", BITAXON_UNSUPPORTED, "\"x\""},
        /* vocabulary */
        {"\"ab\":256", "\"ab\":-1", BITAXON_FORMAT, "id -1"},
        {"\"ab\":256", "\"ab\":1.5", BITAXON_FORMAT, "\"ab\""},
        {"\"ab\":256", "\"ab\":\"256\"", BITAXON_FORMAT, "\"ab\""},
        {"\"ab\":256", "\"ab\":97", BITAXON_FORMAT, "id 97"},
        {"\"ab\":256", "\"ab\":10000000", BITAXON_FORMAT, "id 10000000"},
        {"\"ab\":256", "\"ab\":9223372036854775807", BITAXON_FORMAT, "id 9223372036854775807"},
        {"\"ab\":256", "\"ab\":99999999999999999999", BITAXON_FORMAT, ""},
        {"\"ab\":256", "\"\":256", BITAXON_FORMAT, "empty"},
        {"\"a\":97,", "", BITAXON_UNSUPPORTED, "byte 0x61"},
        {"\"a\":97,", "\"a a\":97,", BITAXON_UNSUPPORTED, "byte 0x61"},
        /* merges */
        {"\"a b\"", "\"a\"", BITAXON_FORMAT, "merge 0"},
        {"\"a b\"", "\"a b c\"", BITAXON_FORMAT, "merge 0"},
        {"\"a b\"", "\"a \"", BITAXON_FORMAT, "merge 0"},
        {"\"a b\"", "\" \"", BITAXON_FORMAT, "merge 0"},
        {"\"a b\"", "\"\"", BITAXON_FORMAT, "merge 0"},
        {"\"a b\"", "7", BITAXON_FORMAT, "merge 0"},
        {"\"a b\"", "[\"a\"]", BITAXON_FORMAT, "merge 0"},
        {"\"a b\"", "[\"a\",\"b\",\"c\"]", BITAXON_FORMAT, "merge 0"},
        {"\"a b\"", "[\"a\",5]", BITAXON_FORMAT, "merge 0"},
        {"\"a b\"", "\"a q\"", BITAXON_FORMAT, "its result \"aq\""},
        {"\"ab c\"", "\"zz c\"", BITAXON_FORMAT, "\"zz\""},
        {"\"merges\":[", "\"merges\":{},\"x\":[", BITAXON_UNSUPPORTED, "\"x\""},
        {"[\"a b\",\"ab c\",\"b c\"]", "{}", BITAXON_FORMAT, "\"merges\""},
        {"[\"a b\",\"ab c\",\"b c\"]", "null", BITAXON_FORMAT, "\"merges\""},
        /* added tokens */
        {"\"added_tokens\":[", "\"added_tokens\":[5,", BITAXON_FORMAT, "added_tokens"},
        {"\"added_tokens\":[", "\"added_tokens\":[{},", BITAXON_FORMAT, "content"},
        {"\"added_tokens\":[", "\"added_tokens\":[{\"content\":\"q\"},", BITAXON_FORMAT, "id"},
        {"\"added_tokens\":[", "\"added_tokens\":[" TOKEN("301", "") ",", BITAXON_FORMAT,
         "content"},
        {"\"added_tokens\":[", "\"added_tokens\":[" TOKEN("-1", "q") ",", BITAXON_FORMAT, "id -1"},
        {"\"added_tokens\":[", "\"added_tokens\":[" TOKEN("300", "q|") ",", BITAXON_FORMAT,
         "id 300"},
        {"\"added_tokens\":[", "\"added_tokens\":[" TOKEN("301", "<|x|>") ",", BITAXON_FORMAT,
         "besides"},
        {"\"added_tokens\":[", "\"added_tokens\":[" TOKEN("300", "<|x|>") ",", BITAXON_FORMAT,
         "twice"},
        {"\"added_tokens\":[", "\"added_tokens\":[" TOKEN("301", "ab") ",", BITAXON_FORMAT,
         "besides"},
        {"\"added_tokens\":[", "\"added_tokens\":[" TOKEN("97", "b") ",", BITAXON_FORMAT,
         "another token"},
        {"\"added_tokens\":[", "\"added_tokens\":[" TOKEN("256", "ab") ",", BITAXON_UNSUPPORTED,
         "special token 256"},
        {"\"added_tokens\":[", "\"added_tokens\":[" TOKEN("97", "a") ",", BITAXON_UNSUPPORTED,
         "byte 0x61"},
        {"\"single_word\":false", "\"single_word\":true", BITAXON_UNSUPPORTED, "single_word"},
        {"\"lstrip\":false", "\"lstrip\":0", BITAXON_FORMAT, "lstrip"},
        {"\"lstrip\":false", "\"weight\":0", BITAXON_UNSUPPORTED, "weight"},
        /* normalizer */
        {"\"normalizer\":null", "\"normalizer\":{\"type\":\"Lowercase\"}", BITAXON_UNSUPPORTED,
         "\"Lowercase\""},
        {"\"normalizer\":null", "\"normalizer\":{\"type\":\"NFC\",\"x\":1}", BITAXON_UNSUPPORTED,
         "\"x\""},
        {"\"normalizer\":null", "\"normalizer\":{}", BITAXON_FORMAT, "normalizer"},
        {"\"normalizer\":null", "\"normalizer\":[]", BITAXON_FORMAT, "normalizer"},
        {"\"normalizer\":null", "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[null]}",
         BITAXON_FORMAT, "null"},
        {"\"normalizer\":null", "\"normalizer\":{\"type\":\"Sequence\"}", BITAXON_FORMAT,
         "normalizers"},
        /* pre-tokenizer */
        {PRE, "\"pre_tokenizer\":null", BITAXON_UNSUPPORTED, "ByteLevel"},
        {PRE, "\"pre_tokenizer\":{\"type\":\"Metaspace\"}", BITAXON_UNSUPPORTED, "\"Metaspace\""},
        {PRE, "\"pre_tokenizer\":{\"type\":\"ByteLevel\"}", BITAXON_FORMAT, "add_prefix_space"},
        {"\"trim_offsets\":false", "\"odd\":false", BITAXON_UNSUPPORTED, "\"odd\""},
        {PRE, "\"pre_tokenizer\":{\"type\":\"Digits\",\"individual_digits\":true}",
         BITAXON_UNSUPPORTED, "ByteLevel"},
        {PRE,
         "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":"
         "\"ByteLevel\",\"add_prefix_space\":false},{\"type\":\"Digits\"}]}",
         BITAXON_UNSUPPORTED, "after ByteLevel"},
        {PRE, SPLIT("{\"Regex\":5}"), BITAXON_FORMAT, "pattern"},
        {PRE, SPLIT("{}"), BITAXON_FORMAT, "pattern"},
        {PRE, SPLIT("\"a\""), BITAXON_FORMAT, "pattern"},
        {PRE, SPLIT("{\"String\":\"\"}"), BITAXON_UNSUPPORTED, "0 bytes"},
        {PRE, REGEX("(a"), BITAXON_UNSUPPORTED, "(a"},
        {PRE, REGEX("[a"), BITAXON_UNSUPPORTED, "[a"},
        {PRE, REGEX("[[:alpha:]]"), BITAXON_UNSUPPORTED, "class inside a class"},
        {PRE, REGEX("[a&&b]"), BITAXON_UNSUPPORTED, "intersection"},
        {PRE, REGEX("[]a]"), BITAXON_UNSUPPORTED, "begins with ]"},
        {PRE, REGEX("[\\\\S]"), BITAXON_UNSUPPORTED, "inside a class"},
        {PRE, REGEX("\\\\w+"), BITAXON_UNSUPPORTED, "escape"},
        {PRE, REGEX("\\\\b"), BITAXON_UNSUPPORTED, "escape"},
        {PRE, REGEX("(a)\\\\1"), BITAXON_UNSUPPORTED, "escape"},
        {PRE, REGEX("\\\\x41"), BITAXON_UNSUPPORTED, "\\x"},
        {PRE, REGEX("\\\\u12"), BITAXON_UNSUPPORTED, "\\u"},
        {PRE, REGEX("\\\\pL"), BITAXON_UNSUPPORTED, "property"},
        {PRE, REGEX("\\\\p{Nonsense}"), BITAXON_UNSUPPORTED, "pattern"},
        {PRE, REGEX("^a"), BITAXON_UNSUPPORTED, "anchor"},
        {PRE, REGEX("a$"), BITAXON_UNSUPPORTED, "anchor"},
        {PRE, REGEX("(*COMMIT)a"), BITAXON_UNSUPPORTED, "group"},
        {PRE, REGEX("(?R)a"), BITAXON_UNSUPPORTED, "group"},
        {PRE, REGEX("(?C1)a"), BITAXON_UNSUPPORTED, "group"},
        {PRE, REGEX("a{,3}"), BITAXON_UNSUPPORTED, "lower bound"},
        {PRE, REGEX("a{1,3}+"), BITAXON_UNSUPPORTED, "quantifier"},
        {PRE, REGEX("(((a{999}){999}){999}){999}"), BITAXON_UNSUPPORTED, "pattern"},
        {PRE, REGEX("a\\\\"), BITAXON_UNSUPPORTED, "escape"},
        {"\"Isolated\"", "\"MergedWithNext\"", BITAXON_UNSUPPORTED, "\"MergedWithNext\""},
        {"\"behavior\":\"Isolated\"", "\"behavior\":1", BITAXON_FORMAT, "behavior"},
        {"\"invert\":false", "\"invert\":0", BITAXON_FORMAT, "invert"},
        /* the rest */
        {"\"post_processor\":null", "\"post_processor\":{\"type\":\"BertProcessing\"}",
         BITAXON_UNSUPPORTED, "\"BertProcessing\""},
        {"\"decoder\":{\"type\":\"ByteLevel\"}", "\"decoder\":{\"type\":\"Metaspace\"}",
         BITAXON_UNSUPPORTED, "\"Metaspace\""},
        {"\"decoder\":{\"type\":\"ByteLevel\"}", "\"decoder\":5", BITAXON_FORMAT, "decoder"},
    };
    char *base = base_file();
    char *split = replaced(base, PRE, REGEX("a"));
    bitaxon_error error;
    bxn_tokenizer *t;
    bxn_mem mem;
    (void)state;
    bxn_mem_init(&mem, NULL, 0, NULL);
    assert_int_equal(create(&mem, base, NULL, NULL, &t, &error), BITAXON_OK);
    assert_int_equal(encode(t, "abcab", 5, 0), 2);
    assert_int_equal(ids[0], 257);
    assert_int_equal(ids[1], 256);
    close_tokenizer(&mem, t);
    for (size_t i = 0; i < COUNT(cases); i++) {
        const char *from = strstr(base, cases[i].what) != NULL ? base : split;
        char *json = replaced(from, cases[i].what, cases[i].with);
        expect_refused(json, cases[i].status, cases[i].message);
        free(json);
    }
    free(split);
    free(base);
}

/* Entries that are not written in the byte alphabet are tokens, but never of text. */
static void test_raw_entries(void **state)
{
    char *base = base_file();
    char *json = replaced(base, "\"!\":33,", "\"!\":33,\" \":301,\"x y\":302,");
    bitaxon_error error;
    bxn_tokenizer *t;
    bxn_mem mem;
    const char *piece;
    size_t bytes;
    bool special;
    int32_t id;
    (void)state;
    bxn_mem_init(&mem, NULL, 0, NULL);
    assert_int_equal(create(&mem, json, NULL, NULL, &t, &error), BITAXON_OK);
    assert_int_equal(bxn_tokenizer_size(t), 303);
    assert_int_equal(encode(t, " ", 1, 0), 1);
    assert_int_equal(ids[0], 32);
    assert_int_equal(encode(t, "x y", 3, BITAXON_TOKENIZE_SPECIAL), 3);
    assert_true(bxn_tokenizer_id(t, " ", 1, &id));
    assert_int_equal(id, 32);
    assert_true(bxn_tokenizer_id(t, "x y", 3, &id));
    assert_int_equal(id, 302);
    assert_true(bxn_tokenizer_piece(t, 301, &piece, &bytes, &special));
    assert_int_equal(bytes, 1);
    assert_memory_equal(piece, " ", 1);
    assert_false(bxn_tokenizer_piece(t, 299, &piece, &bytes, &special)); /* a hole */
    close_tokenizer(&mem, t);
    free(json);
    free(base);
}

static void test_limits_of_files(void **state)
{
    char *base = base_file(), *with, *json;
    (void)state;
    /* an added token of 300 bytes */
    with = malloc(1024);
    sprintf(with, ADDED "{\"id\":301,\"content\":\"%0300d\"},", 0);
    json = replaced(base, ADDED, with);
    expect_refused(json, BITAXON_LIMIT, "300 bytes");
    free(json);
    free(with);
    /* a pattern of 20 000 bytes, a literal too */
    for (int literal = 0; literal < 2; literal++) {
        with = malloc(24000);
        sprintf(with,
                "\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"%s\":\"%020000d\"},"
                "\"behavior\":\"Isolated\",\"invert\":false}",
                literal ? "String" : "Regex", 0);
        json = replaced(base, PRE, with);
        expect_refused(json, literal ? BITAXON_UNSUPPORTED : BITAXON_LIMIT, "20000 bytes");
        free(json);
        free(with);
    }
    /* too many steps */
    with = malloc(4000);
    strcpy(with, "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[");
    for (int i = 0; i < 20; i++)
        strcat(with, i == 0 ? "{\"type\":\"NFC\"}" : ",{\"type\":\"NFC\"}");
    strcat(with, "]}");
    json = replaced(base, "\"normalizer\":null", with);
    expect_refused(json, BITAXON_LIMIT, "normalizers");
    free(json);
    strcpy(with, "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[");
    for (int i = 0; i < 20; i++)
        strcat(with, i == 0 ? "{\"type\":\"Digits\"}" : ",{\"type\":\"Digits\"}");
    strcat(with, "]}");
    json = replaced(base, PRE, with);
    expect_refused(json, BITAXON_LIMIT, "steps");
    free(json);
    free(with);
    /* every truncation, and every byte replaced by rubbish: a status, or a working tokenizer */
    size_t bytes = strlen(base);
    uint64_t r = 99;
    for (size_t i = 0; i < bytes; i++) {
        bxn_mem mem;
        bxn_tokenizer *t;
        bitaxon_error error = BITAXON_ERROR_INIT;
        bxn_mem_init(&mem, NULL, 0, NULL);
        bitaxon_status status =
            bxn_tokenizer_create(&mem, "m", base, i, NULL, 0, NULL, 0, &t, &error);
        assert_int_equal(status, BITAXON_FORMAT);
        assert_null(t);
        assert_true(error.message[0] != '\0');
        if (i % 3 == 0) {
            char was = base[i];
            base[i] = "\"{}[],:0x\\\x80 "[below(&r, 12)];
            status = bxn_tokenizer_create(&mem, "m", base, bytes, NULL, 0, NULL, 0, &t, &error);
            assert_true((status == BITAXON_OK) == (t != NULL));
            if (t != NULL)
                encode(t, "abc abcabc 12 \xFF", 15, BITAXON_TOKENIZE_SPECIAL);
            bxn_tokenizer_free(t);
            base[i] = was;
        }
        assert_int_equal(mem.used, 0);
    }
    free(base);
}

/* A pattern that explodes on a text ends with a status. */
static void test_exploding_pattern(void **state)
{
    char *base = base_file();
    char *json = replaced(base, PRE, REGEX("(?:a|aa|aaa|aaaa)+(?=b|c)"));
    bitaxon_error error = BITAXON_ERROR_INIT;
    bxn_tokenizer *t;
    bxn_mem mem;
    char run[4000];
    size_t need;
    (void)state;
    bxn_mem_init(&mem, NULL, 0, NULL);
    assert_int_equal(create(&mem, json, NULL, NULL, &t, &error), BITAXON_OK);
    memset(run, 'a', sizeof run);
    assert_int_equal(bxn_tokenizer_encode(t, run, sizeof run, 0, ids, COUNT(ids), &need, &error),
                     BITAXON_LIMIT);
    assert_non_null(strstr(error.message, "too many steps"));
    close_tokenizer(&mem, t);
    free(json);
    free(base);
}

/* ---- time and memory --------------------------------------------------------------------------------- */

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Long runs must not take quadratic time: that would be minutes to hours. */
static void test_long_runs(void **state)
{
    static const struct {
        const char *name, *unit;
        size_t unit_bytes;
    } runs[] = {
        {"letter", "a", 1},
        {"words without spaces", "thequickbrownfox", 16},
        {"spaces", " ", 1},
        {"newlines and spaces", "\n ", 2},
        {"Hangul", "\xEA\xB0\x80", 3},
        {"punctuation", "=-", 2},
        {"broken UTF-8", "\xE2\x82", 2},
        {"combining marks", "\xCC\x81\xCC\xA3", 4},
        {"letters of control tokens", "<|im_end|", 9},
    };
    bxn_mem mem;
    bxn_tokenizer *t = open_tokenizer(&mem, SMALL "tokenizer.json");
    size_t bytes = 1 << 20;
    char *run = malloc(bytes);
    (void)state;
    assert_non_null(run);
    for (size_t i = 0; i < COUNT(runs); i++) {
        for (size_t at = 0; at < bytes; at++)
            run[at] = runs[i].unit[at % runs[i].unit_bytes];
        double start = seconds();
        size_t count = encode(t, run, bytes, BITAXON_TOKENIZE_SPECIAL);
        double took = seconds() - start;
        print_message("1 MiB of %s: %zu ids, %.2f s\n", runs[i].name, count, took);
        assert_true(count > 0);
        assert_true(took < 15.0);
    }
    free(run);
    close_tokenizer(&mem, t);
}

static void test_memory_account(void **state)
{
    text json = need_file(SMALL "tokenizer.json"),
         config = need_file(SMALL "tokenizer_config.json");
    bitaxon_error error = BITAXON_ERROR_INIT;
    fault_host host;
    bxn_mem mem;
    bxn_tokenizer *t;
    (void)state;
    fault_host_init(&host);
    assert_int_equal(bxn_mem_init(&mem, &host.host, 0, &error), BITAXON_OK);
    assert_int_equal(bxn_tokenizer_create(&mem, "m", json.data, json.bytes, config.data,
                                          config.bytes, NULL, 0, &t, &error),
                     BITAXON_OK);
    assert_int_equal(bxn_tokenizer_bytes(t), mem.used);
    assert_int_equal(bxn_tokenizer_bytes(t), host.bytes);
    assert_true(bxn_tokenizer_bytes(t) < 300000);
    encode(t, "some text", 9, 0);
    assert_int_equal(bxn_tokenizer_bytes(t), mem.used);
    uint64_t peak = mem.peak;
    bxn_tokenizer_free(t);
    assert_string_equal(fault_host_balance(&host), "");
    /* A ceiling is kept: every one below the peak is refused, with a message. */
    for (uint64_t limit = 1; limit < peak; limit += peak / 50) {
        error = (bitaxon_error)BITAXON_ERROR_INIT;
        assert_int_equal(bxn_mem_init(&mem, &host.host, limit, &error), BITAXON_OK);
        assert_int_equal(bxn_tokenizer_create(&mem, "m", json.data, json.bytes, config.data,
                                              config.bytes, NULL, 0, &t, &error),
                         BITAXON_LIMIT);
        assert_null(t);
        assert_true(error.message[0] != '\0');
        assert_true(mem.peak <= limit);
        assert_int_equal(mem.used, 0);
    }
    assert_string_equal(fault_host_balance(&host), "");
    free(json.data);
    free(config.data);
}

/* Fail allocation N, for every N, once and from there on. */
static void test_allocation_failures(void **state)
{
    static const char *const files[] = {GOLDEN "variant-o200k.json", GOLDEN "variant-prefix.json",
                                        GOLDEN "variant-deepseek.json",
                                        GOLDEN "variant-digits.json"};
    static const char *const config =
        "{\"bitaxon_chat_template\":{\"control_tokens\":[\"<|im_start|>\",\"<|im_end|>\"],\"turn\":"
        "{\"prefix\":\"<|im_start|>{role}\\n\",\"suffix\":\"<|im_end|>\"}}}";
    static const char sample[] = "e\xCC\x81\xCC\xA3 the 12 <|im_end|>\xFF \xEF\xAC\x81x\n\n";
    bitaxon_message messages[] = {{sizeof *messages, 0, "user", sample, sizeof sample - 1},
                                  {sizeof *messages, 0, "tool", "", 0}};
    (void)state;
    for (size_t file = 0; file < COUNT(files); file++) {
        text json = need_file(files[file]);
        for (int persistent = 0; persistent < 2; persistent++) {
            uint64_t n = 1;
            for (;; n++) {
                bitaxon_error error = BITAXON_ERROR_INIT;
                bitaxon_span spans[2];
                fault_host host;
                bxn_mem mem;
                bxn_tokenizer *t = NULL;
                size_t need = 0;
                fault_host_init(&host);
                assert_int_equal(bxn_mem_init(&mem, &host.host, 0, &error), BITAXON_OK);
                fault_host_arm(&host, n, persistent != 0);
                bitaxon_status status = bxn_tokenizer_create(
                    &mem, "m", json.data, json.bytes, config, strlen(config), NULL, 0, &t, &error);
                assert_true((status == BITAXON_OK) == (t != NULL));
                if (t != NULL)
                    status = bxn_tokenizer_encode(t, sample, sizeof sample - 1, 0, ids, COUNT(ids),
                                                  &need, &error);
                if (status == BITAXON_OK)
                    status = bxn_tokenizer_chat(t, messages, 2, BITAXON_CHAT_GENERATE, ids,
                                                COUNT(ids), &need, spans, &error);
                bool fired = host.refused != 0;
                assert_int_equal(status, fired ? BITAXON_OUT_OF_MEMORY : BITAXON_OK);
                if (fired)
                    assert_int_equal(error.code, BITAXON_OUT_OF_MEMORY);
                bxn_tokenizer_free(t);
                assert_string_equal(fault_host_balance(&host), "");
                assert_int_equal(mem.used, 0);
                if (!fired)
                    break;
            }
            assert_true(n > 20);
        }
        free(json.data);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_vocabulary),
        cmocka_unit_test(test_small_ids),
        cmocka_unit_test(test_variants),
        cmocka_unit_test(test_external_vocabularies),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_lookups),
        cmocka_unit_test(test_end_tokens),
        cmocka_unit_test(test_hostile_files),
        cmocka_unit_test(test_raw_entries),
        cmocka_unit_test(test_limits_of_files),
        cmocka_unit_test(test_exploding_pattern),
        cmocka_unit_test(test_long_runs),
        cmocka_unit_test(test_memory_account),
        cmocka_unit_test(test_allocation_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
