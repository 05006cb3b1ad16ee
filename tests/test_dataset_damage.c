/* SPDX-License-Identifier: Apache-2.0 */
/* test_dataset_damage.c - data sets of lib/train whose files are hostile or change while they are used, that are
 * cancelled, and whose memory runs out at every allocation. */
#include "dataset_fixture.h"

/* ---- hostile and changing files --------------------------------------------------------------------------- */

static void test_hostile(void **state)
{
    (void)state;
    /* A line of 100 MB, most of it a hole, in front of a good one: it costs no memory. */
    for (int array = 0; array < 2; array++) {
        const char *path = write_file("huge.jsonl", array ? "[{\"text\":\"" : "{\"text\":\"", array ? 10 : 9);
        const char *rest = array ? "\"}," G "]" : "\"}\n" G "\n";
        int fd = open(path, O_WRONLY);
        assert_true(fd >= 0);
        assert_int_equal(pwrite(fd, rest, strlen(rest), 100 << 20), (ssize_t)strlen(rest));
        close(fd);
        bxn_dataset *d = NULL;
        int64_t before = fault.bytes;
        fault.peak = before;
        assert_int_equal(try_open(path, (options){0}, &d), BITAXON_OK);
        assert_int_equal(facts_of(d).examples, 1);
        assert_int_equal(facts_of(d).bad_lines, 1);
        assert_true(fault.peak - before < 1 << 20);
        bxn_dataset_free(d);
        assert_int_equal(try_open(path, (options){.strict = true}, &d), BITAXON_FORMAT);
        assert_non_null(strstr(error.message, "line 1: longer than 16 MiB"));
    }
    /* Deep, and wide. */
    size_t size = 1 << 20;
    char *file = malloc(size);
    assert_non_null(file);
    memset(file, '[', size);
    memcpy(file, "{\"text\":", 8);
    fails("deep.jsonl", file, size, (options){.strict = true}, BITAXON_FORMAT, "values in one record");
    fails("deep.jsonl", file, 8 + 300, (options){.strict = true}, BITAXON_FORMAT, "nested too deeply");
    memcpy(file, "[{\"text\":", 9);
    fails("deep.json", file, size, (options){.strict = true}, BITAXON_FORMAT, "the file ends inside");
    for (size_t i = 0; i + 3 <= size; i += 3)
        memcpy(file + i, "[],", 3);
    memcpy(file, "{\"messages\":[", 13);
    int64_t before = fault.bytes;
    fault.peak = before;
    fails("wide.jsonl", file, size, (options){ .strict = true }, BITAXON_FORMAT,
          "values in one record, the limit is 65536");
    assert_true(fault.peak - before < 2 << 20);
    free(file);
    fails("nul.jsonl", "{\"text\":\"a\0b\"}", 14, (options){.strict = true}, BITAXON_FORMAT, "NUL byte");
    fails("role.jsonl", "{\"messages\":[{\"role\":\"a\\u0000b\",\"content\":\"\"}]}", 48, (options){ .strict = true },
          BITAXON_FORMAT, "record: line 1");
}

static bitaxon_status read_first(const bxn_dataset *d)
{
    bxn_reader reader;
    bxn_example side[2];
    bxn_reader_open(&reader, d);
    bitaxon_status status = bxn_reader_example(&reader, 0, side, &error);
    bxn_reader_close(&reader);
    return status;
}

static void test_changed(void **state)
{
    (void)state;
    static const char *const names[] = {"changed.jsonl", "changed.json", "changed.txt"};
    static const char *const contents[] = { "{\"text\":\"one two three\"}\n", "[ {\"text\":\"one two three\"} ]",
                                            "one two three\n" };
    for (int i = 0; i < 3; i++) {
        bxn_dataset *d = open_text(names[i], contents[i], (options){0});
        const char *path = in_folder(folder, names[i]);
        assert_int_equal(read_first(d), BITAXON_OK);
        int fd = open(path, O_WRONLY);
        assert_true(fd >= 0);
        off_t at = strstr(contents[i], "two") - contents[i];
        assert_int_equal(pwrite(fd, "TWO", 3, at), 3);
        assert_int_equal(read_first(d), BITAXON_IO);
        assert_non_null(strstr(error.message, names[i]));
        assert_non_null(strstr(error.message, "line 1 is no longer what it was"));
        assert_int_equal(pwrite(fd, "two", 3, at), 3);
        assert_int_equal(read_first(d), BITAXON_OK);
        assert_int_equal(ftruncate(fd, 5), 0);
        assert_int_equal(read_first(d), BITAXON_IO);
        assert_non_null(strstr(error.message, names[i]));
        assert_non_null(strstr(error.message, "the file ended before its size"));
        close(fd);
        bxn_dataset_free(d);
    }
    /* Another file put in its place is not read: the one that was opened stays. */
    bxn_dataset *d = open_text("replaced.jsonl", G, (options){0});
    write_file("other", "{}", 2);
    assert_int_equal(rename(in_folder(folder, "other"), in_folder(folder, "replaced.jsonl")), 0);
    assert_int_equal(read_first(d), BITAXON_OK);
    bxn_dataset_free(d);
}

static int32_t count_down(void *user, const bitaxon_progress *progress)
{
    int *left = user;
    assert_true(progress->done <= progress->total && progress->item != NULL);
    return (*left)-- == 0;
}

static void test_progress(void **state)
{
    (void)state;
    size_t size = 400000;
    char *file = malloc(size);
    assert_non_null(file);
    for (size_t i = 0; i < size; i++)
        file[i] = i % 50 == 49 ? '\n' : i % 50 < sizeof G - 1 ? G[i % 50] : ' ';
    const char *path = write_file("long.jsonl", file, size);
    for (int stop = 0; stop < 3; stop++) {
        int left = stop == 2 ? -1 : stop;
        bxn_progress progress = {.fn = count_down, .user = &left};
        bxn_dataset *d = NULL;
        const bxn_dataset_params params = {
            .path = path, .objective = BXN_OBJECTIVE_SFT, .mask = BXN_MASK_ALL, .max_tokens = 9
        };
        bitaxon_status status = bxn_dataset_open(&mem, tokenizer, &params, &progress, &d, &error);
        assert_int_equal(progress.total, size);
        if (stop == 2) {
            assert_int_equal(status, BITAXON_OK);
            assert_int_equal(progress.done, size);
            assert_true(left < -5);
            assert_int_equal(facts_of(d).examples, size / 50);
        } else {
            assert_int_equal(status, BITAXON_CANCELLED);
        }
        bxn_dataset_free(d);
    }
    free(file);
}

/* ---- memory ---------------------------------------------------------------------------------------------------- */

static bitaxon_status everything(const char *path, bxn_objective objective)
{
    bxn_dataset *d = NULL;
    bitaxon_status status = try_open(path, (options){.objective = objective, .max_tokens = 16}, &d);
    bxn_reader reader;
    bxn_example side[2];
    if (status != BITAXON_OK) {
        assert_null(d);
        return status;
    }
    bxn_reader_open(&reader, d);
    for (size_t i = 0; i < d->count && status == BITAXON_OK; i++)
        status = bxn_reader_example(&reader, i, side, &error);
    bxn_reader_close(&reader);
    bxn_dataset_free(d);
    return status;
}

static void test_memory(void **state)
{
    (void)state;
    static const char records[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}\n"
        "{\"instruction\":\"i\",\"input\":\"j\",\"output\":\"o\"}\nbad\n"
        "{\"text\":\"many words that do not fit into the sixteen tokens of one example at all\"}";
    static const char pair[] = "[{\"prompt\":\"p\",\"chosen\":\"a\",\"rejected\":\"b\"}]";
    static const char words[] = "many words that do not fit into the sixteen tokens of one example at all";
    static const struct {
        const char *name, *content;
        bxn_objective objective;
    } files[] = {{"r.jsonl", records, 0}, {"p.json", pair, BXN_OBJECTIVE_ORPO}, {"w.txt", words, 0}};
    int64_t blocks = fault.blocks, bytes = fault.bytes;
    for (size_t f = 0; f < COUNT(files); f++) {
        const char *path = write_file(files[f].name, files[f].content, strlen(files[f].content));
        for (int persistent = 0; persistent < 2; persistent++) {
            for (uint64_t n = 1;; n++) {
                fault_host_arm(&fault, n, persistent != 0);
                bitaxon_status status = everything(path, files[f].objective);
                uint64_t refused = fault.refused;
                fault_host_disarm(&fault);
                assert_int_equal(fault.blocks, blocks);
                assert_int_equal(fault.bytes, bytes);
                if (refused == 0) {
                    assert_int_equal(status, BITAXON_OK);
                    assert_true(n > 20);
                    break;
                }
                assert_int_equal(status, BITAXON_OUT_OF_MEMORY);
                assert_true(error.message[0] != '\0');
            }
        }
    }
    /* The ceiling of the account. */
    mem.limit = mem.used + 4096;
    assert_int_equal(everything(in_folder(folder, "r.jsonl"), 0), BITAXON_LIMIT);
    mem.limit = 0;
    assert_int_equal(fault.blocks, blocks);
    /* add: on failure the data set is as it was. */
    const bxn_dataset_params params = {.objective = BXN_OBJECTIVE_SFT, .mask = BXN_MASK_CONTENT, .max_tokens = 64};
    static const int32_t tokens[40];
    static const uint8_t mask[40] = {1, 1, 1};
    bxn_dataset *d = NULL;
    assert_int_equal(bxn_dataset_create(&mem, &params, &d, &error), BITAXON_OK);
    for (uint64_t i = 0; i < 200; i++) {
        fault_host_arm(&fault, 1, true);
        bitaxon_status status = bxn_dataset_add(d, tokens, mask, 40, &error);
        fault_host_disarm(&fault);
        if (status != BITAXON_OK) {
            assert_int_equal(status, BITAXON_OUT_OF_MEMORY);
            assert_int_equal(facts_of(d).examples, i);
            assert_int_equal(bxn_dataset_add(d, tokens, mask, 40, &error), BITAXON_OK);
        }
        assert_int_equal(facts_of(d).examples, i + 1);
    }
    bxn_dataset_free(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_changed),
        cmocka_unit_test(test_progress),
        cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
