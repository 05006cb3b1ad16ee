/* SPDX-License-Identifier: Apache-2.0 */
/* test_dataset.c - data sets of lib/train: every shape of a record, masks against expectations written by hand, bad
 * records, texts cut into documents, examples given as tokens. An example is shown as its text with the tokens that
 * count in brackets: ⟦ and ⟧ stand nowhere else. */
#include "dataset_fixture.h"

#define OPEN "\xE2\x9F\xA6"
#define CLOSE "\xE2\x9F\xA7"
#define TURN(role, text) "<|im_start|>" role "\n" text "<|im_end|>\n"
/* What is trained by default: the text and the end of a turn. */
#define ANSWER(text) "<|im_start|>assistant\n" OPEN text "<|im_end|>" CLOSE "\n"

/* One side as text; free it. */
static char *show(const bxn_example *e)
{
    size_t room = 64, used = 0;
    for (uint32_t i = 0; i < e->count; i++)
        room += 300;
    char *out = malloc(room);
    assert_non_null(out);
    bool on = false;
    for (uint32_t i = 0; i <= e->count; i++) {
        bool counts = i < e->count && e->mask[i] != 0;
        const char *bytes = counts ? OPEN : CLOSE, *piece;
        size_t count;
        bool special;
        if (counts != on) {
            memcpy(out + used, bytes, 3);
            used += 3;
        }
        on = counts;
        if (i < e->count) {
            assert_true(bxn_tokenizer_piece(tokenizer, e->tokens[i], &piece, &count, &special));
            assert_true(used + count + 8 < room);
            memcpy(out + used, piece, count);
            used += count;
        }
    }
    out[used] = '\0';
    return out;
}

static void expect(const bxn_dataset *d, size_t i, const char *first, const char *second)
{
    bxn_reader reader;
    bxn_example side[2];
    assert_true(i < d->count);
    bxn_reader_open(&reader, d);
    if (bxn_reader_example(&reader, i, side, &error) != BITAXON_OK)
        fail_msg("%s", error.message);
    char *text = show(&side[0]);
    assert_string_equal(text, first);
    free(text);
    if (second != NULL) {
        text = show(&side[1]);
        assert_string_equal(text, second);
        free(text);
    } else {
        assert_int_equal(side[1].count, 0);
    }
    bxn_reader_close(&reader);
}

/* One record, one example. */
static void gives(const char *record, options o, const char *first, const char *second)
{
    bxn_dataset *d = open_text("one.jsonl", record, o);
    assert_int_equal(facts_of(d).examples, 1);
    assert_int_equal(facts_of(d).bad_lines, 0);
    expect(d, 0, first, second);
    bxn_dataset_free(d);
}

/* ---- shapes and masks --------------------------------------------------------------------------- */

#define TWO_TURNS                                                                                                      \
    "{\"messages\":[{\"role\":\"system\",\"content\":\"Be kind.\"},{\"role\":\"user\",\"content\":\"One?\"},"          \
    "{\"role\":\"assistant\",\"content\":\"First.\"},{\"role\":\"user\",\"content\":\"Two?\"},"                        \
    "{\"role\":\"assistant\",\"content\":\"Second.\"}]}"

static void test_messages(void **state)
{
    (void)state;
    gives(TWO_TURNS, (options){ 0 },
          TURN("system", "Be kind.") TURN("user", "One?") ANSWER("First.") TURN("user", "Two?") ANSWER("Second."),
          NULL);
    gives(TWO_TURNS, (options){.mask = BXN_MASK_REFERENCE},
          TURN("system", "Be kind.") TURN("user", "One?") OPEN TURN("assistant", "First.") CLOSE TURN("user", "Two?")
              OPEN TURN("assistant", "Second.") "<|im_end|>" CLOSE,
          NULL);
    gives(TWO_TURNS, (options){.mask = BXN_MASK_ALL},
          OPEN TURN("system", "Be kind.") TURN("user", "One?") TURN("assistant", "First.") TURN("user", "Two?")
              TURN("assistant", "Second.") CLOSE,
          NULL);
    /* The reference's end token counts only behind an answer. */
    gives("{\"messages\":[{\"role\":\"assistant\",\"content\":\"Hi\"},{\"role\":\"user\",\"content\":\"\"}]}",
          (options){.mask = BXN_MASK_REFERENCE},
          OPEN TURN("assistant", "Hi") CLOSE TURN("user", "") "<|im_end|>", NULL);
    /* An empty answer is one that ends; another role is kept as it is; more keys do not matter. */
    gives("{\"id\":7,\"messages\":[{\"role\":\"tool\",\"content\":\"3\",\"x\":null},{\"role\":\"assistant\","
          "\"content\":\"\"}]}",
          (options){ 0 }, TURN("tool", "3") ANSWER(""), NULL);
    /* Control tokens in a text stay text: they are no end of a turn. */
    bxn_dataset *d = open_text("inject.jsonl",
                               "{\"messages\":[{\"role\":\"user\",\"content\":\"<|im_end|>\"},"
                               "{\"role\":\"assistant\",\"content\":\"ok\"}]}",
                               (options){0});
    bxn_reader reader;
    bxn_example side[2];
    int32_t end_id;
    int ends = 0;
    assert_true(bxn_tokenizer_id(tokenizer, "<|im_end|>", 10, &end_id));
    bxn_reader_open(&reader, d);
    assert_int_equal(bxn_reader_example(&reader, 0, side, &error), BITAXON_OK);
    for (uint32_t i = 0; i < side[0].count; i++)
        ends += side[0].tokens[i] == end_id;
    assert_int_equal(ends, 2);
    bxn_reader_close(&reader);
    bxn_dataset_free(d);
}

static void test_conversations(void **state)
{
    (void)state;
    const char *wanted = TURN("system", "S") TURN("user", "Q") ANSWER("A") TURN("tool", "T");
    gives("{\"system_prompt\":\"S\",\"conversations\":[{\"from\":\"human\",\"value\":\"Q\"},{\"from\":\"gpt\","
          "\"value\":\"A\"},"
          "{\"from\":\"tool\",\"value\":\"T\"}]}",
          (options){ 0 }, wanted, NULL);
    gives("{\"conversations\":[{\"from\":\"system\",\"value\":\"S\"},{\"from\":\"user\",\"value\":\"Q\"},"
          "{\"from\":\"assistant\",\"value\":\"A\"},{\"from\":\"tool\",\"value\":\"T\"}]}",
          (options){0}, wanted, NULL);
    gives("{\"system_prompt\":null,\"conversations\":[{\"from\":\"gpt\",\"value\":\"A\"}]}", (options){ 0 },
          ANSWER("A"), NULL);
    gives("{\"system_prompt\":\"\",\"conversations\":[{\"from\":\"gpt\",\"value\":\"A\"}]}", (options){ 0 },
          ANSWER("A"), NULL);
    /* messages wins */
    gives("{\"conversations\":[{\"from\":\"gpt\",\"value\":\"no\"}],\"messages\":[{\"role\":\"assistant\",\"content\":"
          "\"yes\"}]}",
          (options){ 0 }, ANSWER("yes"), NULL);
}

static void test_other_shapes(void **state)
{
    (void)state;
    gives("{\"instruction\":\"Add.\",\"input\":\"1 2\",\"output\":\"3\"}", (options){ 0 },
          TURN("user", "Add.\n\n1 2") ANSWER("3"), NULL);
    gives("{\"instruction\":\"Add.\",\"input\":\"\",\"output\":\"3\"}", (options){ 0 },
          TURN("user", "Add.") ANSWER("3"), NULL);
    gives("{\"instruction\":\"Add.\",\"output\":\"3\"}", (options){0}, TURN("user", "Add.") ANSWER("3"), NULL);
    gives("{\"prompt\":\"The sky is\",\"completion\":\" blue\"}", (options){ 0 },
          "The sky is" OPEN " blue<|endoftext|>" CLOSE, NULL);
    gives("{\"prompt\":\"The sky is\",\"completion\":\" blue\"}", (options){.mask = BXN_MASK_ALL},
          OPEN "The sky is blue<|endoftext|>" CLOSE, NULL);
    gives("{\"text\":\"A story.\"}", (options){0}, OPEN "A story.<|endoftext|>" CLOSE, NULL);
}

static void test_pairs(void **state)
{
    (void)state;
    const options orpo = {.objective = BXN_OBJECTIVE_ORPO};
    const char *strings = "{\"prompt\":\"Q\",\"chosen\":\"good\",\"rejected\":\"bad\"}";
    gives(strings, orpo, TURN("user", "Q") ANSWER("good"), TURN("user", "Q") ANSWER("bad"));
    gives("{\"prompt\":[{\"role\":\"user\",\"content\":\"Q\"},{\"role\":\"assistant\",\"content\":\"A\"},"
          "{\"role\":\"user\",\"content\":\"R\"}],\"chosen\":[{\"role\":\"assistant\",\"content\":\"good\"}],"
          "\"rejected\":\"bad\"}",
          orpo, TURN("user", "Q") TURN("assistant", "A") TURN("user", "R") ANSWER("good"),
          TURN("user", "Q") TURN("assistant", "A") TURN("user", "R") ANSWER("bad"));
    gives(strings, (options){.objective = BXN_OBJECTIVE_ORPO, .mask = BXN_MASK_REFERENCE},
          TURN("user", "Q") OPEN TURN("assistant", "good") "<|im_end|>" CLOSE,
          TURN("user", "Q") OPEN TURN("assistant", "bad") "<|im_end|>" CLOSE);
    bxn_dataset *d = open_text("pair.jsonl", strings, orpo);
    bxn_dataset_facts facts = facts_of(d);
    assert_int_equal(facts.tokens, d->entries[0].count[0] + d->entries[0].count[1]);
    bxn_dataset_free(d);
    fails("pair.jsonl", "{\"prompt\":\"Q\",\"chosen\":\"a\"}", 27,
          (options){ .objective = BXN_OBJECTIVE_ORPO, .strict = true }, BITAXON_FORMAT, "\"rejected\" is missing");
    fails("plain.txt", "text", 4, orpo, BITAXON_FORMAT, "no pairs");
}

/* The same examples whatever the frame. */
static void test_frames(void **state)
{
    (void)state;
#define A "{\"text\":\"a [1, 2] \\\" ]\"}"
#define B "{\"prompt\": \"p\",\n \"completion\" : \"{c\\\\\"}"
#define B1 "{\"prompt\": \"p\", \"completion\" : \"{c\\\\\"}"
    static const char *const frames[] = {
        A "\n" B1 "\n",
        A "\r\n\r\n  \n\t" B1 "  ",
        "\xEF\xBB\xBF\n" A "\n" B1,
        "[" A "," B "]",
        "\xEF\xBB\xBF\r\n [\n  " A "  ,\n\n" B "\n ] \n\n",
    };
    uint8_t id[16];
    for (size_t i = 0; i < COUNT(frames); i++) {
        bxn_dataset *d = open_text("frame.data", frames[i], (options){.strict = true});
        bxn_dataset_facts facts = facts_of(d);
        assert_int_equal(facts.examples, 2);
        assert_int_equal(facts.counted, facts.tokens - 2); /* all but "p" and the first of the text */
        assert_true(facts.vocabulary == 4094);             /* <|endoftext|> is 4093 */
        expect(d, 0, OPEN "a [1, 2] \" ]<|endoftext|>" CLOSE, NULL);
        expect(d, 1, "p" OPEN "{c\\<|endoftext|>" CLOSE, NULL);
        if (i == 0)
            memcpy(id, facts.id, sizeof id);
        else if (i < 3) /* the records' bytes are the same */
            assert_memory_equal(id, facts.id, sizeof id);
        bxn_dataset_free(d);
    }
    bxn_dataset *d = open_text("frame.data", frames[0], (options){.max_tokens = 100});
    assert_memory_not_equal(id, facts_of(d).id, sizeof id);
    bxn_dataset_free(d);
    d = open_text("frame.data", A, (options){0});
    assert_memory_not_equal(id, facts_of(d).id, sizeof id);
    bxn_dataset_free(d);
}

/* ---- texts ------------------------------------------------------------------------------------------ */

/* All tokens of all examples one after another; count tells how many. */
static int32_t *all_tokens(const bxn_dataset *d, size_t *count)
{
    bxn_reader reader;
    bxn_example side[2];
    int32_t *out = malloc((facts_of(d).tokens + 1) * sizeof *out);
    assert_non_null(out);
    *count = 0;
    bxn_reader_open(&reader, d);
    for (size_t i = 0; i < d->count; i++) {
        if (bxn_reader_example(&reader, i, side, &error) != BITAXON_OK)
            fail_msg("%s", error.message);
        for (uint32_t t = 0; t < side[0].count; t++) {
            assert_int_equal(side[0].mask[t], 1);
            out[(*count)++] = side[0].tokens[t];
        }
    }
    bxn_reader_close(&reader);
    return out;
}

static char *detokenised(const int32_t *tokens, size_t count, size_t *bytes)
{
    char *out = malloc(count * 64 + 1);
    assert_non_null(out);
    *bytes = 0;
    for (size_t i = 0; i < count; i++) {
        const char *piece;
        size_t n;
        bool special;
        assert_true(bxn_tokenizer_piece(tokenizer, tokens[i], &piece, &n, &special));
        assert_true(n <= 64);
        memcpy(out + *bytes, piece, n);
        *bytes += n;
    }
    out[*bytes] = '\0';
    return out;
}

/* Documents of exactly max_tokens, the last may be shorter; nothing lost, nothing twice. */
static void check_documents(const bxn_dataset *d, const char *text, size_t text_bytes, uint32_t max_tokens)
{
    size_t count, bytes;
    for (size_t i = 0; i < d->count; i++) {
        if (i + 1 < d->count)
            assert_true(d->entries[i].count[0] <= max_tokens && d->entries[i].count[0] + 4 > max_tokens);
    }
    int32_t *tokens = all_tokens(d, &count);
    int32_t last;
    bool room = d->entries[d->count - 1].count[0] < max_tokens; /* for the end token */
    assert_true(bxn_tokenizer_id(tokenizer, "<|endoftext|>", 13, &last));
    if (room || tokens[count - 1] == last)
        assert_int_equal(tokens[--count], last);
    char *back = detokenised(tokens, count, &bytes);
    assert_int_equal(bytes, text_bytes);
    assert_memory_equal(back, text, bytes);
    free(back);
    free(tokens);
}

/* Valid text without NUL. */
static size_t make_text(char *out, size_t limit)
{
    static corpus c;
    size_t bytes = 0;
    corpus_open(&c);
    for (uint64_t i = 0; bytes < limit; i++) {
        bool partial;
        corpus_chunk(&c, i);
        size_t n = bxn_text_prefix(c.chunk, c.used, &partial);
        memcpy(out + bytes, c.chunk, n);
        bytes += n;
        memcpy(out + bytes, "e\xCC\x81 \xEC\x95\x88\xEB\x85\x95\n", 11); /* e + acute: two characters that become one */
        bytes += 11;
    }
    corpus_close(&c);
    return bytes;
}

static void test_texts(void **state)
{
    (void)state;
    static const uint32_t sizes[][2] = {{4, 3000}, {7, 3000}, {64, 3000}, {1000, 60000}, {100000, 60000}};
    char *plain = malloc(1 << 17);
    assert_non_null(plain);
    for (size_t i = 0; i < COUNT(sizes); i++) {
        bxn_bytes normal = {0};
        bxn_dataset *d = NULL;
        bool changed;
        size_t bytes = make_text(plain, sizes[i][1]);
        assert_int_equal(bxn_normalize(&mem, BXN_NFC, plain, bytes, &normal, NULL, 0, &changed, &error), BITAXON_OK);
        assert_true(changed);
        write_file("plain.txt", plain, bytes);
        assert_int_equal(try_open(in_folder(folder, "plain.txt"), (options){ .max_tokens = sizes[i][0] }, &d),
                         BITAXON_OK);
        check_documents(d, normal.data, normal.count, sizes[i][0]);
        assert_int_equal(facts_of(d).cut, 0);
        bxn_dataset_free(d);
        json_t *record = json_pack("{s:o}", "text", json_stringn(plain, bytes));
        char *line = json_dumps(record, 0);
        d = open_text("text.jsonl", line, (options){.max_tokens = sizes[i][0]});
        check_documents(d, normal.data, normal.count, sizes[i][0]);
        bxn_dataset_free(d);
        free(line);
        json_decref(record);
        bxn_bytes_free(&mem, &normal);
    }
    free(plain);
}

static void test_bad_text(void **state)
{
    (void)state;
    static const char content[] = "\xEF\xBB\xBFone\ntwo \xFF\nthree\nfo\0ur\nfive\n\xC3";
    bxn_dataset *d = NULL;
    assert_int_equal(try_open(write_file("bad.txt", content, sizeof content - 1), (options){0}, &d), BITAXON_OK);
    assert_int_equal(facts_of(d).bad_lines, 3);
    assert_int_equal(facts_of(d).examples, 3);
    expect(d, 0, OPEN "one\n" CLOSE, NULL);
    expect(d, 1, OPEN "three\n" CLOSE, NULL);
    expect(d, 2, OPEN "five\n" CLOSE, NULL);
    bxn_dataset_free(d);
    fails("bad.txt", content, sizeof content - 1, (options){.strict = true}, BITAXON_FORMAT, "line 2: not UTF-8");
    fails("bad.txt", "\xFF", 1, (options){0}, BITAXON_FORMAT, "all 1 records are bad");
    fails("empty.txt", "", 0, (options){0}, BITAXON_FORMAT, "the file is empty");
}

/* ---- bad records -------------------------------------------------------------------------------------- */

static void test_bad_records(void **state)
{
    (void)state;
    static const struct {
        const char *record, *reason;
        bxn_objective objective;
    } table[] = {
        { "{", "record: line 1, column", 0 },
        { "nonsense", "record: line 1", 0 },
        { "3", "record: ", 0 },
        { "\"text\"", "record: ", 0 },
        { "{\"text\":\"a\",\"text\":\"b\"}", "duplicate", 0 },
        { "{\"text\":\"\xFF\"}", "record: line 1", 0 },
        { "{\"text\":\"\\u0000\"}", "record: line 1", 0 },
        { "{\"text\":3}", "\"text\" is not a string", 0 },
        { "{}", "no key tells the shape", 0 },
        { "{\"txt\":\"a\"}", "\"conversations\"", 0 },
        { "{\"messages\":null}", "\"messages\"", 0 },
        { "{\"messages\":{}}", "\"messages\" is not a list", 0 },
        { "{\"messages\":[]}", "\"messages\" is not a list of messages, or an empty one", 0 },
        { "{\"messages\":[1]}", "\"messages\" has an entry that is not an object", 0 },
        { "{\"messages\":[{\"content\":\"a\"}]}", "\"role\" is missing", 0 },
        { "{\"messages\":[{\"role\":\"user\"}]}", "\"content\" is missing", 0 },
        { "{\"messages\":[{\"role\":\"user\",\"content\":null}]}", "\"content\" is not a string", 0 },
        { "{\"conversations\":[]}", "\"conversations\"", 0 },
        { "{\"conversations\":[[]]}", "\"conversations\" has an entry", 0 },
        { "{\"conversations\":[{\"from\":1,\"value\":\"\"}]}", "\"from\" is not a string", 0 },
        { "{\"conversations\":[{\"from\":\"gpt\"}]}", "\"value\" is missing", 0 },
        { "{\"system_prompt\":1,\"conversations\":[{\"from\":\"gpt\",\"value\":\"\"}]}",
          "\"system_prompt\" is not a string", 0 },
        { "{\"instruction\":1,\"output\":\"\"}", "\"instruction\" is not a string", 0 },
        { "{\"instruction\":\"a\"}", "\"output\" is missing", 0 },
        { "{\"instruction\":\"a\",\"input\":1,\"output\":\"\"}", "\"input\" is not a string", 0 },
        { "{\"completion\":\"a\"}", "\"prompt\" is missing", 0 },
        { "{\"completion\":1,\"prompt\":\"a\"}", "\"completion\" is not a string", 0 },
        { "{\"prompt\":\"a\",\"chosen\":\"b\",\"rejected\":\"c\"}", "is for ORPO", 0 },
        { "{\"text\":\"a\"}", "\"prompt\" is missing", BXN_OBJECTIVE_ORPO },
        { "{\"prompt\":1,\"chosen\":\"a\",\"rejected\":\"b\"}", "\"prompt\" is neither a string nor a list",
          BXN_OBJECTIVE_ORPO },
        { "{\"prompt\":[],\"chosen\":\"a\",\"rejected\":\"b\"}", "\"prompt\" is not a list of messages, or an empty",
          BXN_OBJECTIVE_ORPO },
        { "{\"prompt\":\"p\",\"chosen\":{},\"rejected\":\"b\"}", "\"chosen\" is neither", BXN_OBJECTIVE_ORPO },
        { "{\"prompt\":\"p\",\"chosen\":\"a\",\"rejected\":[{\"role\":\"user\"}]}", "\"content\" is missing",
          BXN_OBJECTIVE_ORPO },
    };
    for (size_t i = 0; i < COUNT(table); i++) {
        bool orpo = table[i].objective == BXN_OBJECTIVE_ORPO;
        const char *good = orpo ? "{\"prompt\":\"p\",\"chosen\":\"a\",\"rejected\":\"b\"}" : "{\"text\":\"good text\"}";
        char file[512];
        int n = snprintf(file, sizeof file, "%s\n\n%s\n%s", good, table[i].record, good);
        fails("bad.jsonl", file, (size_t)n, (options){ .objective = table[i].objective, .strict = true },
              BITAXON_FORMAT, "line 3: ");
        if (strstr(error.message, table[i].reason) == NULL)
            fail_msg("%s: %s", table[i].record, error.message);
        uint64_t before = fault.log_lines;
        bxn_dataset *d = open_text("bad.jsonl", file, (options){.objective = table[i].objective});
        assert_int_equal(facts_of(d).bad_lines, 1);
        assert_int_equal(facts_of(d).examples, 2);
        assert_int_equal(fault.log_lines - before, 2); /* the line, and the sum */
        bxn_dataset_free(d);
        fails("bad.jsonl", table[i].record, strlen(table[i].record), (options){ .objective = table[i].objective },
              BITAXON_FORMAT, "all 1 records are bad, the first: line 1: ");
    }
}

static void test_bad_arrays(void **state)
{
    (void)state;
    static const struct {
        const char *file, *reason;
        uint64_t examples, bad;
    } table[] = {
        {"[" G "," G, "the file ends inside of an element", 1, 1},
        {"[" G ",", "the file ends before the array does", 1, 1},
        {"[" G ",\n" G ",]", "an element of the array is missing after a comma", 2, 1},
        {"[" G ",," G "]", "an element of the array is missing before a comma", 2, 1},
        {"[," G "]", "missing before a comma", 1, 1},
        {"[" G "] x", "text after the end of the array", 1, 1},
        {"[" G ",{\"text\":\"x]", "ends inside of an element", 1, 1},
        {"[" G ",{\"text\":]}," G "]", "record: line 1", 2, 1},
        {"[" G ",3," G "]", "record: ", 2, 1},
        {"[" G " " G "]", "record: ", 0, 1},
        {"[" G ",[" G "]]", "the record is not an object", 1, 1},
        {"[" G ",}," G "]", "record: ", 2, 1},
    };
    for (size_t i = 0; i < COUNT(table); i++) {
        fails("array.json", table[i].file, strlen(table[i].file), (options){ .strict = true }, BITAXON_FORMAT,
              table[i].reason);
        if (table[i].examples == 0)
            continue;
        bxn_dataset *d = open_text("array.json", table[i].file, (options){0});
        assert_int_equal(facts_of(d).examples, table[i].examples);
        assert_int_equal(facts_of(d).bad_lines, table[i].bad);
        bxn_dataset_free(d);
    }
    fails("array.json", "[]", 2, (options){0}, BITAXON_FORMAT, "the file is empty");
    fails("array.json", "[\n\n" G ",\n 1]", 3 + sizeof G - 1 + 5, (options){ .strict = true }, BITAXON_FORMAT,
          "line 4: ");
}

static void test_nothing_counts(void **state)
{
    (void)state;
    fails("none.jsonl", "", 0, (options){0}, BITAXON_FORMAT, "the file is empty");
    fails("none.jsonl", " \n\r\n", 4, (options){0}, BITAXON_FORMAT, "the file is empty");
    static const char users[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}\n{\"text\":\"\"}\nx\n";
    fails("none.jsonl", users, sizeof users - 1, (options){ 0 }, BITAXON_FORMAT,
          "no token counts: 2 examples have none, 0 lose");
    assert_non_null(strstr(error.message, "1 records are bad"));
    static const char late[] = "{\"prompt\":\"one two three four five six seven eight\",\"completion\":\"nine\"}";
    fails("none.jsonl", late, sizeof late - 1, (options){ .max_tokens = 4 }, BITAXON_FORMAT,
          "1 lose theirs by the cut at 4 tokens");
    /* Cut, but something is left; and one that loses all. */
    char two[400];
    snprintf(two, sizeof two, "{\"prompt\":\"a\",\"completion\":\"one two three four five six\"}\n%s\n", late);
    uint64_t before = fault.log_lines;
    bxn_dataset *d = open_text("cut.jsonl", two, (options){.max_tokens = 5});
    bxn_dataset_facts facts = facts_of(d);
    assert_int_equal(facts.examples, 1);
    assert_int_equal(facts.cut, 2);
    assert_int_equal(facts.cut_empty, 1);
    assert_int_equal(facts.empty, 0);
    assert_int_equal(facts.tokens, 5);
    assert_int_equal(facts.counted, 4);
    assert_int_equal(fault.log_lines - before, 1);
    bxn_dataset_free(d);
    /* A pair of which one side is without a token. */
    static const char pair[] =
        "{\"prompt\":\"p\",\"chosen\":\"a\",\"rejected\":\"b\"}\n"
        "{\"prompt\":\"p\",\"chosen\":\"a\",\"rejected\":[{\"role\":\"user\",\"content\":\"b\"}]}";
    d = open_text("pair.jsonl", pair, (options){.objective = BXN_OBJECTIVE_ORPO});
    assert_int_equal(facts_of(d).examples, 1);
    assert_int_equal(facts_of(d).empty, 1);
    bxn_dataset_free(d);
}

static void test_arguments(void **state)
{
    (void)state;
    bxn_dataset *d = NULL;
    const char *path = write_file("a.jsonl", G, sizeof G - 1);
    assert_int_equal(try_open(path, (options){.max_tokens = 3}, &d), BITAXON_INVALID_ARGUMENT);
    assert_int_equal(try_open(path, (options){.max_tokens = BXN_MAX_EXAMPLE_TOKENS + 1}, &d), BITAXON_INVALID_ARGUMENT);
    assert_int_equal(try_open(path, (options){.mask = (bxn_mask)4}, &d), BITAXON_INVALID_ARGUMENT);
    assert_int_equal(try_open(path, (options){.objective = (bxn_objective)3}, &d), BITAXON_INVALID_ARGUMENT);
    assert_int_equal(try_open(in_folder(folder, "not-there.jsonl"), (options){0}, &d), BITAXON_IO);
    assert_non_null(strstr(error.message, "not-there.jsonl"));
    assert_int_equal(try_open(folder, (options){0}, &d), BITAXON_IO);
    const bxn_dataset_params params = {
        .path = path, .objective = BXN_OBJECTIVE_SFT, .mask = BXN_MASK_ALL, .max_tokens = 9
    };
    assert_int_equal(bxn_dataset_open(&mem, NULL, &params, NULL, &d, &error), BITAXON_BAD_STATE);
    /* Without a chat template messages cannot be read, and no line is to blame. */
    bxn_tokenizer *with = tokenizer;
    tokenizer = load_tokenizer(GOLDEN "variant-words.json");
    fails("chat.jsonl", TWO_TURNS, sizeof TWO_TURNS - 1, (options){0}, BITAXON_UNSUPPORTED, "needs a chat template");
    d = open_text("text.jsonl", G, (options){0});
    bxn_dataset_free(d);
    bxn_tokenizer_free(tokenizer);
    tokenizer = with;
}

/* ---- filled by the caller ----------------------------------------------------------------------------------- */

static void test_added(void **state)
{
    (void)state;
    bxn_dataset_params params = {.objective = BXN_OBJECTIVE_SFT, .mask = BXN_MASK_CONTENT, .max_tokens = 4};
    bxn_dataset *d = NULL;
    const int32_t tokens[] = {5, 6, 7, 8, 9}, wrong[] = {1, -1};
    assert_int_equal(bxn_dataset_create(&mem, &params, &d, &error), BITAXON_OK);
    assert_int_equal(bxn_dataset_add(d, tokens, (const uint8_t[]){0, 1, 0, 1, 1}, 5, &error), BITAXON_OK); /* cut */
    assert_int_equal(bxn_dataset_add(d, tokens, (const uint8_t[]){0, 0, 0, 0, 1}, 5, &error), BITAXON_OK); /* lost */
    assert_int_equal(bxn_dataset_add(d, tokens, (const uint8_t[]){ 1, 0, 0 }, 3, &error), BITAXON_OK); /* no label */
    assert_int_equal(bxn_dataset_add(d, NULL, NULL, 0, &error), BITAXON_OK);
    assert_int_equal(bxn_dataset_add(d, tokens + 2, (const uint8_t[]){0, 2}, 2, &error), BITAXON_OK);
    assert_int_equal(bxn_dataset_add(d, wrong, (const uint8_t[]){1, 1}, 2, &error), BITAXON_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "tokens[1] is -1"));
    bxn_dataset_facts facts = facts_of(d);
    assert_int_equal(facts.examples, 2);
    assert_int_equal(facts.cut, 2);
    assert_int_equal(facts.cut_empty, 1);
    assert_int_equal(facts.empty, 2);
    assert_int_equal(facts.tokens, 6);
    assert_int_equal(facts.counted, 3);
    assert_int_equal(facts.vocabulary, 9);
    bxn_reader reader;
    bxn_example side[2];
    bxn_reader_open(&reader, d);
    assert_int_equal(bxn_reader_example(&reader, 0, side, &error), BITAXON_OK);
    assert_int_equal(side[0].count, 4);
    assert_memory_equal(side[0].tokens, tokens, 4 * sizeof *tokens);
    assert_memory_equal(side[0].mask, ((const uint8_t[]){0, 1, 0, 1}), 4);
    assert_int_equal(bxn_reader_example(&reader, 1, side, &error), BITAXON_OK);
    assert_int_equal(side[0].count, 2);
    assert_memory_equal(side[0].tokens, tokens + 2, 2 * sizeof *tokens);
    assert_memory_equal(side[0].mask, ((const uint8_t[]){0, 1}), 2);
    bxn_reader_close(&reader);
    bxn_dataset_free(d);

    params.objective = BXN_OBJECTIVE_ORPO;
    assert_int_equal(bxn_dataset_create(&mem, &params, &d, &error), BITAXON_OK);
    for (int i = 0; i < 3; i++) { /* the second pair has an empty side */
        uint8_t counts = i != 1;
        assert_int_equal(bxn_dataset_add(d, tokens, (const uint8_t[]){0, 1, 1}, 3, &error), BITAXON_OK);
        assert_int_equal(bxn_dataset_add(d, tokens + 2, (const uint8_t[]){0, counts}, 2, &error), BITAXON_OK);
    }
    assert_int_equal(facts_of(d).examples, 2);
    assert_int_equal(facts_of(d).empty, 1);
    assert_int_equal(facts_of(d).counted, 6);
    bxn_reader_open(&reader, d);
    assert_int_equal(bxn_reader_example(&reader, 1, side, &error), BITAXON_OK);
    assert_int_equal(side[0].count, 3);
    assert_int_equal(side[1].count, 2);
    assert_int_equal(side[1].tokens[0], 7);
    assert_int_equal(side[1].mask[1], 1);
    bxn_reader_close(&reader);
    bxn_dataset_free(d);

    d = open_text("a.jsonl", G, (options){0});
    assert_int_equal(bxn_dataset_add(d, tokens, (const uint8_t[]){1, 1}, 2, &error), BITAXON_BAD_STATE);
    bxn_dataset_free(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_messages),     cmocka_unit_test(test_conversations),
        cmocka_unit_test(test_other_shapes), cmocka_unit_test(test_pairs),
        cmocka_unit_test(test_frames),       cmocka_unit_test(test_texts),
        cmocka_unit_test(test_bad_text),     cmocka_unit_test(test_bad_records),
        cmocka_unit_test(test_bad_arrays),   cmocka_unit_test(test_nothing_counts),
        cmocka_unit_test(test_arguments),    cmocka_unit_test(test_added),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
