/* SPDX-License-Identifier: Apache-2.0 */
/* test_packing.c - micro-steps from a data set: layouts against blocks written by hand, order and sharding by their
 * properties over many sizes, and the same stream again from every cursor. */
#include "dataset_fixture.h"

enum { MOST = 64 };

typedef struct example {
    uint32_t count;
    int32_t tokens[MOST];
    uint8_t mask[MOST];
} example;

static bxn_dataset *empty_set(bxn_objective objective)
{
    const bxn_dataset_params params = {.objective = objective, .mask = BXN_MASK_CONTENT, .max_tokens = MOST};
    bxn_dataset *d = NULL;
    assert_int_equal(bxn_dataset_create(&mem, &params, &d, &error), BITAXON_OK);
    return d;
}

static void add(bxn_dataset *d, uint32_t count, const int32_t *tokens, const uint8_t *mask)
{
    assert_int_equal(bxn_dataset_add(d, tokens, mask, count, &error), BITAXON_OK);
}

static bxn_packer *pack(const bxn_dataset *d, bxn_packing packing)
{
    bxn_packer *p = NULL;
    error = (bitaxon_error)BITAXON_ERROR_INIT;
    if (bxn_packer_create(&mem, d, &packing, &p, &error) != BITAXON_OK)
        fail_msg("%s", error.message);
    return p;
}

static void check_step(const bxn_micro_step *step, uint32_t rows, const int32_t *tokens, const int32_t *labels,
                       uint32_t documents, const uint32_t *counts)
{
    uint32_t first = 0;
    assert_int_equal(step->rows, rows);
    assert_int_equal(step->document_count, documents);
    assert_memory_equal(step->tokens, tokens, rows * sizeof *tokens);
    assert_memory_equal(step->labels, labels, rows * sizeof *labels);
    for (uint32_t i = 0; i < documents; i++) {
        assert_int_equal(step->documents[i].first, first);
        assert_int_equal(step->documents[i].count, counts[i]);
        first += counts[i];
    }
    assert_int_equal(first, rows);
}

#define LIST(...) __VA_ARGS__
#define EXPECT(step, tokens, labels, counts)                                                                           \
    do {                                                                                                               \
        static const int32_t t_[] = {tokens}, l_[] = {labels};                                                         \
        static const uint32_t c_[] = {counts};                                                                         \
        _Static_assert(sizeof t_ == sizeof l_, "a label for each token");                                              \
        check_step(step, COUNT(t_), t_, l_, COUNT(c_), c_);                                                            \
    } while (0)

static void next(bxn_packer *p, bxn_cursor *cursor, bool loop, bxn_micro_step *step)
{
    if (bxn_packer_next(p, cursor, loop, step, &error) != BITAXON_OK)
        fail_msg("%s", error.message);
    assert_true(step->rows <= bxn_packer_rows(p));
}

static bxn_dataset *two_examples(void)
{
    bxn_dataset *d = empty_set(BXN_OBJECTIVE_SFT);
    add(d, 5, (const int32_t[]){1, 2, 3, 4, 5}, (const uint8_t[]){0, 0, 1, 1, 1});
    add(d, 4, (const int32_t[]){6, 7, 8, 9}, (const uint8_t[]){0, 1, 1, 1});
    return d;
}

/* ---- layouts ------------------------------------------------------------------------------------ */

/* The example of the specification: blocks of 8, separator 99. */
static void test_stream_layout(void **state)
{
    (void)state;
    bxn_dataset *d = two_examples();
    bxn_packer *p = pack(d, (bxn_packing){.block_tokens = 8, .blocks = 1, .separator = 99});
    bxn_cursor cursor = {0, 0};
    bxn_micro_step step;
    next(p, &cursor, false, &step);
    EXPECT(&step, LIST(1, 2, 3, 4, 5, 99, 6, 7), LIST(-1, 3, 4, 5, -1, -1, 7, -1), 8);
    next(p, &cursor, false, &step);
    EXPECT(&step, LIST(8, 9), LIST(9, -1), 2);
    next(p, &cursor, false, &step);
    assert_int_equal(step.rows, 0);
    bxn_packer_free(p);
    /* Both blocks in one micro-step. */
    p = pack(d, (bxn_packing){.block_tokens = 8, .blocks = 2, .separator = 99});
    cursor = (bxn_cursor){0, 0};
    next(p, &cursor, false, &step);
    EXPECT(&step, LIST(1, 2, 3, 4, 5, 99, 6, 7, 8, 9), LIST(-1, 3, 4, 5, -1, -1, 7, -1, 9, -1), LIST(8, 2));
    bxn_packer_free(p);
    /* A block that an example fills exactly: no separator before the next. */
    p = pack(d, (bxn_packing){.block_tokens = 5, .blocks = 3, .separator = 99});
    cursor = (bxn_cursor){0, 0};
    next(p, &cursor, false, &step);
    EXPECT(&step, LIST(1, 2, 3, 4, 5, 6, 7, 8, 9), LIST(-1, 3, 4, 5, -1, 7, 8, 9, -1), LIST(5, 4));
    bxn_packer_free(p);
    /* A separator that is the last of its block; an example over three blocks. */
    p = pack(d, (bxn_packing){.block_tokens = 6, .blocks = 9, .separator = 99});
    cursor = (bxn_cursor){0, 0};
    next(p, &cursor, false, &step);
    EXPECT(&step, LIST(1, 2, 3, 4, 5, 99, 6, 7, 8, 9), LIST(-1, 3, 4, 5, -1, -1, 7, 8, 9, -1), LIST(6, 4));
    assert_int_equal(cursor.index, 2);
    bxn_packer_free(p);
    p = pack(d, (bxn_packing){.block_tokens = 2, .blocks = 9, .separator = 99});
    cursor = (bxn_cursor){0, 0};
    next(p, &cursor, false, &step);
    EXPECT(&step, LIST(1, 2, 3, 4, 5, 99, 6, 7, 8, 9), LIST(-1, -1, 4, -1, -1, -1, 7, -1, 9, -1), LIST(2, 2, 2, 2, 2));
    bxn_packer_free(p);
    bxn_dataset_free(d);
}

static void test_isolated_layout(void **state)
{
    (void)state;
    bxn_dataset *d = two_examples();
    add(d, 2, (const int32_t[]){10, 11}, (const uint8_t[]){1, 1});
    add(d, 3, (const int32_t[]){12, 13, 14}, (const uint8_t[]){0, 1, 0});
    bxn_packer *p = pack(d, (bxn_packing){.block_tokens = 8, .blocks = 1, .isolate = true});
    bxn_cursor cursor = {0, 0};
    bxn_micro_step step;
    next(p, &cursor, false, &step); /* 5, and 4 do not fit into 8 */
    EXPECT(&step, LIST(1, 2, 3, 4, 5), LIST(-1, 3, 4, 5, -1), 5);
    assert_int_equal(cursor.index, 1);
    next(p, &cursor, false, &step); /* 4 + 2, not 3 more */
    EXPECT(&step, LIST(6, 7, 8, 9, 10, 11), LIST(7, 8, 9, -1, 11, -1), LIST(4, 2));
    assert_int_equal(cursor.index, 3);
    next(p, &cursor, false, &step);
    EXPECT(&step, LIST(12, 13, 14), LIST(13, -1, -1), 3);
    next(p, &cursor, false, &step);
    assert_int_equal(step.rows, 0);
    assert_int_equal(cursor.index, 4);
    next(p, &cursor, true, &step);
    EXPECT(&step, LIST(1, 2, 3, 4, 5), LIST(-1, 3, 4, 5, -1), 5);
    assert_int_equal(cursor.epoch, 1);
    assert_int_equal(cursor.index, 1);
    bxn_packer_free(p);
    /* Two blocks: the second begins where the first was full. */
    p = pack(d, (bxn_packing){.block_tokens = 5, .blocks = 2, .isolate = true});
    cursor = (bxn_cursor){0, 0};
    next(p, &cursor, true, &step);
    EXPECT(&step, LIST(1, 2, 3, 4, 5, 6, 7, 8, 9), LIST(-1, 3, 4, 5, -1, 7, 8, 9, -1), LIST(5, 4));
    next(p, &cursor, true, &step); /* the end of an epoch ends the micro-step */
    EXPECT(&step, LIST(10, 11, 12, 13, 14), LIST(11, -1, 13, -1, -1), LIST(2, 3));
    bxn_packer_free(p);
    bxn_dataset_free(d);
}

static void test_pairs(void **state)
{
    (void)state;
    bxn_dataset *d = empty_set(BXN_OBJECTIVE_ORPO);
    for (int32_t i = 0; i < 3; i++) {
        add(d, 3, (const int32_t[]){10 * i, 1, 2}, (const uint8_t[]){0, 0, 1});
        add(d, 2, (const int32_t[]){10 * i, 3}, (const uint8_t[]){0, 1});
    }
    bxn_packer *p = pack(d, (bxn_packing){.blocks = 2});
    assert_int_equal(bxn_packer_rows(p), 10);
    bxn_cursor cursor = {0, 0};
    bxn_micro_step step;
    next(p, &cursor, false, &step);
    EXPECT(&step, LIST(0, 1, 2, 0, 3, 10, 1, 2, 10, 3), LIST(-1, 2, -1, 3, -1, -1, 2, -1, 3, -1), LIST(3, 2, 3, 2));
    next(p, &cursor, false, &step);
    EXPECT(&step, LIST(20, 1, 2, 20, 3), LIST(-1, 2, -1, 3, -1), LIST(3, 2));
    next(p, &cursor, false, &step);
    assert_int_equal(step.rows, 0);
    bxn_packer_free(p);
    /* A pair that is not complete. */
    add(d, 3, (const int32_t[]){1, 1, 2}, (const uint8_t[]){0, 0, 1});
    const bxn_packing packing = {.blocks = 1};
    assert_int_equal(bxn_packer_create(&mem, d, &packing, &p, &error), BITAXON_BAD_STATE);
    assert_null(p);
    bxn_dataset_free(d);
}

/* ---- properties ----------------------------------------------------------------------------------- */

/* `count` examples; the first token of each tells which it is, the others how far. */
static bxn_dataset *many(uint32_t count, bool pairs, example *kept)
{
    bxn_dataset *d = empty_set(pairs ? BXN_OBJECTIVE_ORPO : BXN_OBJECTIVE_SFT);
    uint64_t r = count;
    for (uint32_t i = 0; i < count * (pairs ? 2 : 1); i++) {
        example e = {.count = 2 + (uint32_t)below(&r, 9)};
        for (uint32_t t = 0; t < e.count; t++) {
            e.tokens[t] = (int32_t)(t == 0 ? 1000 + i : 100 + t);
            e.mask[t] = t + 1 == e.count || below(&r, 2) != 0;
        }
        add(d, e.count, e.tokens, e.mask);
        if (kept != NULL)
            kept[i] = e;
    }
    return d;
}

/* The order of one epoch of isolated examples, each checked against what was added. */
static void read_order(const bxn_dataset *d, const example *kept, uint64_t seed, uint64_t epoch, uint32_t *order)
{
    bxn_packer *p =
        pack(d, (bxn_packing){ .block_tokens = 23, .blocks = 2, .isolate = true, .shuffle = true, .seed = seed });
    bxn_cursor cursor = {epoch, 0};
    bxn_micro_step step;
    size_t n = 0;
    for (;;) {
        next(p, &cursor, false, &step);
        assert_int_equal(cursor.epoch, epoch);
        if (step.rows == 0)
            break;
        uint32_t rows = 0;
        for (uint32_t i = 0; i < step.document_count; i++) {
            const bxn_document *document = &step.documents[i];
            uint32_t which = (uint32_t)step.tokens[document->first] - 1000;
            const example *e = &kept[which];
            assert_int_equal(document->first, rows);
            assert_int_equal(document->count, e->count);
            assert_memory_equal(step.tokens + rows, e->tokens, e->count * sizeof *e->tokens);
            for (uint32_t t = 0; t < e->count; t++)
                assert_int_equal(step.labels[rows + t], t + 1 < e->count && e->mask[t + 1] ? e->tokens[t + 1] : -1);
            rows += e->count;
            order[n++] = which;
        }
        assert_int_equal(rows, step.rows);
    }
    assert_int_equal(n, d->count);
    assert_int_equal(cursor.index, d->count);
    bxn_packer_free(p);
}

static void test_order(void **state)
{
    (void)state;
    static const uint32_t sizes[] = { 1,  2,  3,  4,  5,   7,   8,   15,  16,  17,  31,
                                      33, 63, 64, 65, 100, 127, 128, 255, 256, 257, 300 };
    static example kept[300];
    static uint32_t order[5][300];
    for (size_t i = 0; i < COUNT(sizes); i++) {
        uint32_t n = sizes[i];
        bxn_dataset *d = many(n, false, kept);
        for (uint32_t run = 0; run < 5; run++) { /* three epochs, another seed, the first again */
            bool seen[300] = {false};
            read_order(d, kept, run == 3 ? 2 : 1, run < 3 ? run : 0, order[run]);
            for (uint32_t k = 0; k < n; k++) {
                assert_false(seen[order[run][k]]);
                seen[order[run][k]] = true;
            }
        }
        assert_memory_equal(order[0], order[4], n * sizeof *order[0]);
        if (n >= 15) {
            assert_memory_not_equal(order[0], order[1], n * sizeof *order[0]);
            assert_memory_not_equal(order[0], order[3], n * sizeof *order[0]);
            assert_memory_not_equal(order[1], order[2], n * sizeof *order[0]);
            uint32_t fixed = 0, follow = 0;
            for (uint32_t k = 0; k < n; k++) {
                fixed += order[0][k] == k;
                follow += k > 0 && order[0][k] == order[0][k - 1] + 1;
            }
            assert_true(fixed < 6 && follow < 6); /* one each is expected */
        }
        bxn_dataset_free(d);
    }
    /* Runs go on with later versions: the order is part of what is promised. */
    static const uint32_t promised[] = {17, 3, 15, 12, 1, 14, 19, 0, 16, 7, 2, 18, 5, 6, 10, 8, 13, 4, 11, 9};
    bxn_dataset *d = many(COUNT(promised), false, kept);
    read_order(d, kept, 42, 3, order[0]);
    assert_memory_equal(order[0], promised, sizeof promised);
    bxn_dataset_free(d);
}

/* ---- cursors --------------------------------------------------------------------------------------- */

typedef struct recorded {
    bxn_cursor before, after;
    uint64_t hash; /* of all that the step holds */
    uint32_t rows;
} recorded;

static uint64_t mix(uint64_t hash, const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ ((const uint8_t *)data)[i]) * 1099511628211u;
    return hash;
}

static recorded take_step(bxn_packer *p, bxn_cursor from, bool loop)
{
    recorded r = {.before = from, .after = from, .hash = 14695981039346656037u};
    bxn_micro_step step;
    next(p, &r.after, loop, &step);
    r.rows = step.rows;
    r.hash = mix(r.hash, step.tokens, step.rows * sizeof *step.tokens);
    r.hash = mix(r.hash, step.labels, step.rows * sizeof *step.labels);
    r.hash = mix(r.hash, step.documents, step.document_count * sizeof *step.documents);
    return r;
}

enum { STEPS = 60 };

static void test_resume(void **state)
{
    (void)state;
    static const struct {
        bool pairs;
        bxn_packing packing;
    } ways[] = {
        {false, {.block_tokens = 20, .blocks = 2, .isolate = true, .shuffle = true, .seed = 5}},
        {false, {.block_tokens = 11, .blocks = 1, .isolate = true}},
        {false, {.block_tokens = 20, .blocks = 2, .shuffle = true, .separator = 7, .seed = 5}},
        {false, {.block_tokens = 3, .blocks = 5, .separator = 7}},
        {true, {.blocks = 3, .shuffle = true, .seed = 9}},
    };
    for (size_t w = 0; w < COUNT(ways); w++) {
        static recorded all[STEPS];
        bxn_dataset *d = many(29, ways[w].pairs, NULL);
        bxn_packer *p = pack(d, ways[w].packing);
        bxn_cursor cursor = {0, 0};
        for (int i = 0; i < STEPS; i++) {
            all[i] = take_step(p, cursor, true);
            assert_true(all[i].rows != 0);
            cursor = all[i].after;
        }
        assert_true(cursor.epoch >= 1);
        for (uint64_t epoch = 0, i = 0; i < STEPS; epoch++) { /* as many as are counted */
            uint64_t begin = i;
            while (i < STEPS && all[i].after.epoch == epoch)
                i++;
            uint64_t count;
            assert_int_equal(bxn_packing_count(d, &ways[w].packing, epoch, &count, &error), BITAXON_OK);
            assert_true(i == STEPS ? count >= i - begin : count == i - begin);
        }
        for (int i = 0; i < STEPS; i++) { /* a new packer, and the old one back and forth */
            bxn_packer *fresh = pack(d, ways[w].packing);
            for (int j = i; j < i + 3 && j < STEPS; j++) {
                recorded again = take_step(fresh, j == i ? all[i].before : all[j - 1].after, true);
                assert_memory_equal(&again, &all[j], sizeof again);
            }
            bxn_packer_free(fresh);
            int back = i * 37 % STEPS;
            recorded again = take_step(p, all[back].before, true);
            assert_memory_equal(&again, &all[back], sizeof again);
        }
        bxn_packer_free(p);
        /* Machines that share the data: the same steps, dealt out in turn, and the same cursors. */
        for (uint32_t ranks = 2; ranks <= 4; ranks++) {
            bxn_cursor at[4] = {{0, 0}};
            for (uint32_t rank = 0; rank < ranks; rank++) {
                bxn_packing packing = ways[w].packing;
                packing.rank = rank;
                packing.ranks = ranks;
                p = pack(d, packing);
                cursor = (bxn_cursor){0, 0};
                for (uint32_t i = 0; i * ranks + ranks <= STEPS; i++) {
                    recorded own = take_step(p, cursor, true);
                    assert_true(own.hash == all[i * ranks + rank].hash);
                    assert_memory_equal(&own.after, &all[i * ranks + ranks - 1].after, sizeof own.after);
                    cursor = own.after;
                }
                at[rank] = cursor;
                assert_memory_equal(&at[rank], &at[0], sizeof cursor);
                bxn_packer_free(p);
            }
        }
        /* Without loop each machine ends once the data do. */
        uint32_t rows = 0, whole = 0;
        for (uint32_t rank = 0; rank < 3; rank++) {
            bxn_packing packing = ways[w].packing;
            packing.rank = rank;
            packing.ranks = 3;
            p = pack(d, packing);
            cursor = (bxn_cursor){2, 0};
            for (;;) {
                recorded own = take_step(p, cursor, false);
                rows += own.rows;
                if (own.rows == 0 && memcmp(&own.before, &own.after, sizeof own.after) == 0)
                    break;
                cursor = own.after;
                assert_int_equal(cursor.epoch, 2);
            }
            bxn_packer_free(p);
        }
        p = pack(d, ways[w].packing);
        cursor = (bxn_cursor){2, 0};
        for (recorded own; (own = take_step(p, cursor, false)).rows != 0; cursor = own.after)
            whole += own.rows;
        assert_int_equal(rows, whole);
        bxn_packer_free(p);
        bxn_dataset_free(d);
    }
}

/* ---- errors ------------------------------------------------------------------------------------------ */

static void refuses(const bxn_dataset *d, bxn_packing packing, bitaxon_status want, const char *part)
{
    bxn_packer *p = NULL;
    error = (bitaxon_error)BITAXON_ERROR_INIT;
    assert_int_equal(bxn_packer_create(&mem, d, &packing, &p, &error), want);
    assert_null(p);
    if (strstr(error.message, part) == NULL)
        fail_msg("%s", error.message);
}

static void test_errors(void **state)
{
    (void)state;
    bxn_dataset *d = empty_set(BXN_OBJECTIVE_SFT);
    refuses(d, (bxn_packing){ .block_tokens = 8, .blocks = 1, .isolate = true }, BITAXON_FORMAT,
            "no examples: 0 were given");
    add(d, 2, (const int32_t[]){1, 2}, (const uint8_t[]){1, 0});
    refuses(d, (bxn_packing){ .block_tokens = 8, .blocks = 1, .isolate = true }, BITAXON_FORMAT,
            "no examples: 1 were given");
    bxn_dataset_free(d);
    d = two_examples();
    refuses(d, (bxn_packing){ .block_tokens = 4, .blocks = 1, .isolate = true }, BITAXON_INVALID_ARGUMENT,
            "the longest example has 5");
    refuses(d, (bxn_packing){.block_tokens = 8, .isolate = true}, BITAXON_INVALID_ARGUMENT, "0 blocks of 8");
    refuses(d, (bxn_packing){.block_tokens = 1, .blocks = 1}, BITAXON_INVALID_ARGUMENT, "1 blocks of 1");
    refuses(d, (bxn_packing){.block_tokens = 8, .blocks = 1, .rank = 1}, BITAXON_INVALID_ARGUMENT, "rank 1 of 0");
    refuses(d, (bxn_packing){ .block_tokens = 8, .blocks = 1, .rank = 2, .ranks = 2 }, BITAXON_INVALID_ARGUMENT,
            "rank 2 of 2");
    refuses(d, (bxn_packing){ .block_tokens = 8, .blocks = 1, .separator = -1 }, BITAXON_INVALID_ARGUMENT,
            "separator is -1");
    refuses(d, (bxn_packing){ .block_tokens = UINT32_MAX, .blocks = UINT32_MAX, .isolate = true },
            BITAXON_INVALID_ARGUMENT, "rows");
    bxn_micro_step step;
    for (int isolate = 0; isolate < 2; isolate++) {
        bxn_packer *p = pack(d, (bxn_packing){.block_tokens = 8, .blocks = 1, .isolate = isolate != 0});
        bxn_cursor cursor = {0, 3};
        assert_int_equal(bxn_packer_next(p, &cursor, true, &step, &error), BITAXON_INVALID_ARGUMENT);
        assert_non_null(strstr(error.message, "the cursor is at 3"));
        assert_int_equal(cursor.index, 3);
        cursor.index = 2; /* the end itself is fine */
        next(p, &cursor, true, &step);
        assert_int_equal(cursor.epoch, 1);
        bxn_packer_free(p);
    }
    bxn_packer_free(NULL);
    bxn_dataset_free(d);
}

/* A file that changed: the cursor stays, and once it is back the run goes on. */
static void test_changed_file(void **state)
{
    (void)state;
    static const char content[] = G "\n{\"text\":\"more text\"}\n";
    for (int isolate = 0; isolate < 2; isolate++) {
        bxn_dataset *d = open_text("p.jsonl", content, (options){.max_tokens = 16});
        const char *path = in_folder(folder, "p.jsonl");
        bxn_packer *p = pack(d, (bxn_packing){.block_tokens = 16, .blocks = 4, .isolate = isolate != 0});
        bxn_cursor cursor = {0, 0};
        bxn_micro_step step;
        int fd = open(path, O_WRONLY);
        assert_true(fd >= 0);
        assert_int_equal(pwrite(fd, "x", 1, sizeof G + 12), 1);
        assert_int_equal(bxn_packer_next(p, &cursor, true, &step, &error), BITAXON_IO);
        assert_non_null(strstr(error.message, "p.jsonl: line 2"));
        assert_int_equal(cursor.index, 0);
        assert_int_equal(step.rows, 0);
        assert_int_equal(pwrite(fd, content + sizeof G + 12, 1, sizeof G + 12), 1);
        close(fd);
        next(p, &cursor, true, &step);
        assert_int_equal(step.rows, facts_of(d).tokens + !isolate);
        bxn_packer_free(p);
        bxn_dataset_free(d);
    }
}

static void test_memory(void **state)
{
    (void)state;
    bxn_dataset *d = open_text("m.jsonl", G "\n{\"text\":\"more text\"}\n", (options){.max_tokens = 16});
    const bxn_packing packing = {.block_tokens = 16, .blocks = 4, .isolate = true};
    int64_t blocks = fault.blocks;
    for (uint64_t n = 1;; n++) {
        bxn_packer *p = NULL;
        bxn_cursor cursor = {0, 0};
        bxn_micro_step step;
        error = (bitaxon_error)BITAXON_ERROR_INIT;
        fault_host_arm(&fault, n, false);
        bitaxon_status status = bxn_packer_create(&mem, d, &packing, &p, &error);
        if (status == BITAXON_OK)
            status = bxn_packer_next(p, &cursor, true, &step, &error);
        uint64_t refused = fault.refused;
        fault_host_disarm(&fault);
        if (refused != 0) {
            assert_int_equal(status, BITAXON_OUT_OF_MEMORY);
            assert_true(error.message[0] != '\0');
            assert_int_equal(cursor.index, 0);
            if (p != NULL) { /* the same step, once there is memory */
                next(p, &cursor, true, &step);
                assert_int_equal(step.document_count, 2);
            }
        }
        bxn_packer_free(p);
        assert_int_equal(fault.blocks, blocks);
        if (refused == 0) {
            assert_int_equal(status, BITAXON_OK);
            assert_true(n > 8);
            break;
        }
    }
    bxn_dataset_free(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stream_layout), cmocka_unit_test(test_isolated_layout), cmocka_unit_test(test_pairs),
        cmocka_unit_test(test_order),         cmocka_unit_test(test_resume),          cmocka_unit_test(test_errors),
        cmocka_unit_test(test_changed_file),  cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
