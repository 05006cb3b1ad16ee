/* SPDX-License-Identifier: Apache-2.0 */
/* test_io.c - sources, bundles, whole-file reading, JSON, the sort: what they accept, what
 * they refuse, and that they leave nothing behind when memory or reading fails. */
#include "io_fixture.h"

#include <malloc.h>
#include <locale.h>
#include <pthread.h>

/* ---- sources ------------------------------------------------------------------------- */

static void test_source_file(void **state)
{
    (void)state;
    scratch dir;
    bitaxon_source source;
    bitaxon_error error = BITAXON_ERROR_INIT;
    char buffer[8] = "";
    scratch_start(&dir);
    unsigned files = open_files();

    put_text(scratch_name(&dir, "a"), "0123456789");
    assert_int_equal(bitaxon_source_file_open(dir.name, &source, &error), BITAXON_OK);
    assert_int_equal(source.struct_size, sizeof source);
    assert_int_equal(source.size, 10);
    assert_int_equal(source.read_at(source.user, 3, buffer, 4), 0);
    assert_memory_equal(buffer, "3456", 4);
    assert_int_not_equal(source.read_at(source.user, 8, buffer, 3), 0); /* beyond the end */
    assert_int_not_equal(source.read_at(source.user, UINT64_MAX - 1, buffer, 3), 0);
    const char *map = source.map(source.user);
    assert_non_null(map);
    assert_memory_equal(map, "0123456789", 10);
    assert_ptr_equal(map, source.map(source.user));
    /* A file that shrinks gives an error for what is gone. */
    assert_int_equal(truncate(dir.name, 4), 0);
    assert_int_equal(source.read_at(source.user, 2, buffer, 4), ENODATA);
    bitaxon_source_close(&source);
    assert_null(source.read_at);
    bitaxon_source_close(&source);
    bitaxon_source_close(NULL);

    put_text(scratch_name(&dir, "empty"), "");
    assert_int_equal(bitaxon_source_file_open(dir.name, &source, &error), BITAXON_OK);
    assert_int_equal(source.size, 0);
    assert_null(source.map(source.user));
    assert_int_equal(source.read_at(source.user, 0, buffer, 0), 0);
    bitaxon_source_close(&source);

    assert_int_equal(bitaxon_source_file_open(scratch_name(&dir, "none"), &source, &error),
                     BITAXON_IO);
    assert_non_null(strstr(error.message, "none"));
    assert_non_null(strstr(error.message, "no such file"));
    assert_null(source.close);
    assert_int_equal(bitaxon_source_file_open(dir.path, &source, &error), BITAXON_IO);
    assert_non_null(strstr(error.message, "not a regular file"));
    assert_int_equal(mkfifo(scratch_name(&dir, "pipe"), 0600), 0);
    assert_int_equal(bitaxon_source_file_open(dir.name, &source, &error), BITAXON_IO);
    assert_int_equal(bitaxon_source_file_open("/dev/zero", &source, &error), BITAXON_IO);
    assert_int_equal(bitaxon_source_file_open(NULL, &source, &error), BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_source_file_open("x", NULL, &error), BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_source_file_open("/nope", &source, NULL), BITAXON_IO);

    assert_int_equal(open_files(), files);
    scratch_end(&dir);
}

static void *map_source(void *source)
{
    bitaxon_source *s = source;
    return (void *)(uintptr_t)s->map(s->user);
}

static void test_source_map_race(void **state)
{
    (void)state;
    scratch dir;
    scratch_start(&dir);
    put_text(scratch_name(&dir, "a"), "0123456789");
    for (int round = 0; round < 50; round++) {
        bitaxon_source source;
        pthread_t threads[4];
        void *maps[4];
        assert_int_equal(bitaxon_source_file_open(dir.name, &source, NULL), BITAXON_OK);
        for (int i = 0; i < 4; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, map_source, &source), 0);
        for (int i = 0; i < 4; i++)
            pthread_join(threads[i], &maps[i]);
        for (int i = 0; i < 4; i++)
            assert_ptr_equal(maps[i], source.map(source.user));
        bitaxon_source_close(&source);
    }
    scratch_end(&dir);
}

static void test_source_memory(void **state)
{
    (void)state;
    bitaxon_source source;
    bitaxon_error error = BITAXON_ERROR_INIT;
    char buffer[4];
    assert_int_equal(bitaxon_source_memory("abcdef", 6, &source, &error), BITAXON_OK);
    assert_int_equal(source.size, 6);
    assert_int_equal(source.read_at(source.user, 2, buffer, 4), 0);
    assert_memory_equal(buffer, "cdef", 4);
    assert_memory_equal(source.map(source.user), "abcdef", 6);
    bitaxon_source_close(&source);
    assert_int_equal(bitaxon_source_memory(NULL, 0, &source, &error), BITAXON_OK);
    assert_int_equal(source.read_at(source.user, 0, NULL, 0), 0);
    assert_int_equal(bitaxon_source_memory(NULL, 1, &source, &error), BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bitaxon_source_memory("a", 1, NULL, &error), BITAXON_INVALID_ARGUMENT);
}

/* ---- bundles --------------------------------------------------------------------------- */

static void fill_directory(scratch *dir)
{
    put_text(scratch_name(dir, "config.json"), "{}");
    put_text(scratch_name(dir, "tokenizer.json"), "{\"a\": 1}");
    put_text(scratch_name(dir, "z.safetensors"), "12345678");
    put_text(scratch_name(dir, "b.safetensors"), "1234");
    put_text(scratch_name(dir, ".hidden.safetensors"), "1");
    put_text(scratch_name(dir, ".safetensors"), "1");
    put_text(scratch_name(dir, "notes.txt"), "1");
    put_text(scratch_name(dir, "old.safetensors.bak"), "1");
    assert_int_equal(mkdir(scratch_name(dir, "dir.safetensors"), 0700), 0);
    assert_int_equal(mkdir(scratch_name(dir, "generation_config.json"), 0700), 0);
}

static void test_bundle_directory(void **state)
{
    (void)state;
    static const char *const names[] = {"b.safetensors", "config.json", "tokenizer.json",
                                        "z.safetensors"};
    fault_host fault;
    scratch dir;
    bxn_bundle *bundle;
    bitaxon_error error = BITAXON_ERROR_INIT;
    bxn_mem *mem = fault_start(&fault, 0);
    unsigned files = open_files();
    scratch_start(&dir);
    fill_directory(&dir);

    assert_int_equal(bxn_bundle_open(mem, dir.path, NULL, 0, 0, &bundle, &error), BITAXON_OK);
    assert_int_equal(bundle->count, COUNT(names));
    assert_string_equal(bundle->where, dir.path);
    for (size_t i = 0; i < COUNT(names); i++) {
        assert_string_equal(bundle->files[i].name, names[i]);
        assert_ptr_equal(bxn_bundle_find(bundle, names[i]), &bundle->files[i]);
    }
    assert_null(bxn_bundle_find(bundle, "notes.txt"));
    assert_null(bxn_bundle_find(bundle, ""));

    bxn_file *file = bxn_bundle_find(bundle, "z.safetensors");
    assert_int_equal(bxn_file_map(bundle, file, &error), BITAXON_OK);
    assert_int_equal(bxn_file_map(bundle, file, &error), BITAXON_OK); /* once */
    assert_memory_equal(file->map, "12345678", 8);
    assert_int_equal(mem->mapped, 8);
    bxn_bundle_free(bundle);
    bxn_bundle_free(NULL);
    fault_end(&fault);

    assert_int_equal(bxn_bundle_open(mem, dir.path, NULL, 0, BXN_BUNDLE_NO_MMAP, &bundle, &error),
                     BITAXON_OK);
    file = bxn_bundle_find(bundle, "z.safetensors");
    assert_int_equal(bxn_file_map(bundle, file, &error), BITAXON_OK);
    assert_null(file->map);
    assert_int_equal(mem->mapped, 0);
    bxn_bundle_free(bundle);

    assert_int_equal(
        bxn_bundle_open(mem, dir.path, NULL, 0, BXN_BUNDLE_NO_WEIGHTS, &bundle, &error),
        BITAXON_OK);
    assert_int_equal(bundle->count, 2);
    bxn_bundle_free(bundle);

    /* An empty directory is a bundle of nothing. */
    assert_int_equal(
        bxn_bundle_open(mem, scratch_name(&dir, "dir.safetensors"), NULL, 0, 0, &bundle, &error),
        BITAXON_OK);
    assert_int_equal(bundle->count, 0);
    assert_null(bxn_bundle_find(bundle, "config.json"));
    bxn_bundle_free(bundle);

    /* A link to nowhere is a file that cannot be opened. */
    assert_int_equal(symlink("nowhere", scratch_name(&dir, "link.safetensors")), 0);
    assert_int_equal(bxn_bundle_open(mem, dir.path, NULL, 0, 0, &bundle, &error), BITAXON_IO);
    assert_null(bundle);
    assert_non_null(strstr(error.message, "link.safetensors"));
    assert_int_equal(bxn_bundle_open(mem, scratch_name(&dir, "none"), NULL, 0, 0, &bundle, &error),
                     BITAXON_IO);
    assert_non_null(strstr(error.message, "none"));

    fault_end(&fault);
    scratch_end(&dir);
    assert_int_equal(open_files(), files);
}

static void test_bundle_single_file(void **state)
{
    (void)state;
    fault_host fault;
    scratch dir;
    bxn_bundle *bundle;
    bitaxon_error error = BITAXON_ERROR_INIT;
    bxn_mem *mem = fault_start(&fault, 0);
    scratch_start(&dir);
    fill_directory(&dir);
    put_text(scratch_name(&dir, "model.safetensors.index.json"), "{}");

    assert_int_equal(
        bxn_bundle_open(mem, scratch_name(&dir, "z.safetensors"), NULL, 0, 0, &bundle, &error),
        BITAXON_OK);
    assert_string_equal(bundle->where, dir.path);
    assert_int_equal(bundle->count, 3);
    assert_non_null(bxn_bundle_find(bundle, "z.safetensors"));
    assert_non_null(bxn_bundle_find(bundle, "config.json"));
    assert_null(bxn_bundle_find(bundle, "b.safetensors"));
    assert_null(bxn_bundle_find(bundle, "model.safetensors.index.json"));
    bxn_bundle_free(bundle);

    char before[1024];
    assert_non_null(getcwd(before, sizeof before));
    assert_int_equal(chdir(dir.path), 0);
    assert_int_equal(bxn_bundle_open(mem, "b.safetensors", NULL, 0, 0, &bundle, &error),
                     BITAXON_OK);
    assert_string_equal(bundle->where, ".");
    assert_int_equal(bundle->count, 3);
    bxn_bundle_free(bundle);
    assert_int_equal(chdir(before), 0);

    assert_int_equal(
        bxn_bundle_open(mem, scratch_name(&dir, "notes.txt"), NULL, 0, 0, &bundle, &error),
        BITAXON_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "notes.txt"));
    assert_int_equal(bxn_bundle_open(mem, "/dev/null", NULL, 0, 0, &bundle, &error),
                     BITAXON_INVALID_ARGUMENT);
    fault_end(&fault);
    scratch_end(&dir);
}

static void test_bundle_given(void **state)
{
    (void)state;
    fault_host fault;
    bxn_bundle *bundle;
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_source one, two, bad;
    bxn_mem *mem = fault_start(&fault, 0);
    bitaxon_source_memory("{}", 2, &one, NULL);
    bitaxon_source_memory("12345678", 8, &two, NULL);

    bitaxon_file good[] = {{"w.safetensors", &two}, {"config.json", &one}};
    assert_int_equal(bxn_bundle_open(mem, NULL, good, 2, 0, &bundle, &error), BITAXON_OK);
    assert_string_equal(bundle->where, "(memory)");
    assert_string_equal(bundle->files[0].name, "config.json");
    assert_int_equal(bxn_file_map(bundle, &bundle->files[1], &error), BITAXON_OK);
    assert_ptr_equal(bundle->files[1].map, two.user);
    assert_int_equal(mem->mapped, 8);
    bxn_bundle_free(bundle);
    fault_end(&fault);

    assert_int_equal(bxn_bundle_open(mem, NULL, good, 2, BXN_BUNDLE_NO_WEIGHTS, &bundle, &error),
                     BITAXON_OK);
    assert_int_equal(bundle->count, 1);
    bxn_bundle_free(bundle);
    assert_int_equal(bxn_bundle_open(mem, NULL, good, 0, 0, &bundle, &error), BITAXON_OK);
    assert_int_equal(bundle->count, 0);
    bxn_bundle_free(bundle);

    assert_int_equal(bxn_bundle_open(mem, "x", good, 2, 0, &bundle, &error),
                     BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bxn_bundle_open(mem, NULL, NULL, 0, 0, &bundle, &error),
                     BITAXON_INVALID_ARGUMENT);

    char long_name[BXN_MAX_NAME + 1];
    memset(long_name, 'a', sizeof long_name);
    long_name[BXN_MAX_NAME] = '\0';
    const char *names[] = {NULL, "", ".", "..", "a/b", "/etc/passwd", "../x", long_name};
    for (size_t i = 0; i < COUNT(names); i++) {
        bitaxon_file file = {names[i], &one};
        assert_int_equal(bxn_bundle_open(mem, NULL, &file, 1, 0, &bundle, &error),
                         BITAXON_INVALID_ARGUMENT);
        assert_null(bundle);
    }
    bitaxon_file twice[] = {{"a", &one}, {"b", &one}, {"a", &two}};
    assert_int_equal(bxn_bundle_open(mem, NULL, twice, 3, 0, &bundle, &error),
                     BITAXON_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "twice"));
    bitaxon_file none = {"a", NULL};
    assert_int_equal(bxn_bundle_open(mem, NULL, &none, 1, 0, &bundle, &error),
                     BITAXON_INVALID_ARGUMENT);

    bitaxon_file file = {"a", &bad};
    bad = one;
    bad.struct_size = offsetof(bitaxon_source, read_at);
    assert_int_equal(bxn_bundle_open(mem, NULL, &file, 1, 0, &bundle, &error),
                     BITAXON_INVALID_ARGUMENT);
    bad = one;
    bad.read_at = NULL;
    assert_int_equal(bxn_bundle_open(mem, NULL, &file, 1, 0, &bundle, &error),
                     BITAXON_INVALID_ARGUMENT);
    /* An older caller's shorter struct: what it does not have is not read. */
    bad = one;
    bad.struct_size = offsetof(bitaxon_source, map);
    assert_int_equal(bxn_bundle_open(mem, NULL, &file, 1, 0, &bundle, &error), BITAXON_OK);
    assert_null(bundle->files[0].source.map);
    bxn_bundle_free(bundle);
    /* A newer caller's longer one. */
    struct {
        bitaxon_source source;
        uint64_t later;
    } longer = {one, 0};
    longer.source.struct_size = sizeof longer;
    file.source = &longer.source;
    assert_int_equal(bxn_bundle_open(mem, NULL, &file, 1, 0, &bundle, &error), BITAXON_OK);
    bxn_bundle_free(bundle);
    longer.later = 1;
    assert_int_equal(bxn_bundle_open(mem, NULL, &file, 1, 0, &bundle, &error), BITAXON_UNSUPPORTED);
    fault_end(&fault);
}

static void test_file_read(void **state)
{
    (void)state;
    fault_host fault;
    fault_source source;
    bxn_bundle *bundle;
    bitaxon_error error = BITAXON_ERROR_INIT;
    char buffer[16], *text;
    size_t bytes;
    bxn_mem *mem = fault_start(&fault, 0);
    fault_source_start(&source, "hello world", 11);
    bitaxon_file given = {"config.json", &source.source};
    assert_int_equal(bxn_bundle_open(mem, NULL, &given, 1, 0, &bundle, &error), BITAXON_OK);
    bxn_file *file = &bundle->files[0];

    assert_int_equal(bxn_file_read(bundle, file, 6, buffer, 5, &error), BITAXON_OK);
    assert_memory_equal(buffer, "world", 5);
    uint64_t reads = source.reads;
    assert_int_equal(bxn_file_read(bundle, file, 11, buffer, 0, &error), BITAXON_OK);
    assert_int_equal(bxn_file_read(bundle, file, 7, buffer, 5, &error), BITAXON_FORMAT);
    assert_int_equal(bxn_file_read(bundle, file, UINT64_MAX, buffer, 2, &error), BITAXON_FORMAT);
    assert_int_equal(bxn_file_read(bundle, file, 12, buffer, 0, &error), BITAXON_FORMAT);
    assert_int_equal(source.reads, reads); /* nothing was asked of the source */

    source.fail_at = reads + 1;
    assert_int_equal(bxn_file_read(bundle, file, 6, buffer, 5, &error), BITAXON_IO);
    assert_non_null(strstr(error.message, "config.json"));
    assert_non_null(strstr(error.message, "offset 6"));
    assert_non_null(strstr(error.message, "input/output error"));
    source.fail_at = reads + 2;
    source.code = -77;
    assert_int_equal(bxn_file_read(bundle, file, 6, buffer, 5, &error), BITAXON_IO);
    assert_non_null(strstr(error.message, "error -77"));

    assert_int_equal(bxn_file_text(bundle, file, 11, &text, &bytes, &error), BITAXON_OK);
    assert_int_equal(bytes, 11);
    assert_string_equal(text, "hello world");
    bxn_free(mem, text, bytes + 1);
    assert_int_equal(bxn_file_text(bundle, file, 10, &text, &bytes, &error), BITAXON_LIMIT);
    assert_null(text);
    source.fail_at = source.reads + 1;
    assert_int_equal(bxn_file_text(bundle, file, 11, &text, &bytes, &error), BITAXON_IO);
    assert_null(text);

    /* A size that is not true: an error, and no more memory than the limit allows. */
    file->source.size = 1000;
    assert_int_equal(bxn_file_text(bundle, file, 1000, &text, &bytes, &error), BITAXON_IO);
    file->source.size = UINT64_MAX;
    uint64_t peak = mem->peak;
    assert_int_equal(bxn_file_text(bundle, file, 1000, &text, &bytes, &error), BITAXON_LIMIT);
    assert_int_equal(mem->peak, peak);
    assert_int_equal(bxn_file_map(bundle, file, &error), BITAXON_LIMIT);
    /* A source that cannot be mapped is read. */
    file->source.size = 11;
    assert_int_equal(bxn_file_map(bundle, file, &error), BITAXON_OK);
    assert_null(file->map);
    assert_int_equal(mem->mapped, 0);
    bxn_bundle_free(bundle);
    fault_end(&fault);
}

static void test_map_ceiling(void **state)
{
    (void)state;
    fault_host fault;
    bitaxon_source source;
    bxn_bundle *bundle;
    bitaxon_error error = BITAXON_ERROR_INIT;
    static char data[100000];
    bxn_mem *mem = fault_start(&fault, 50000);
    bitaxon_source_memory(data, sizeof data, &source, NULL);
    bitaxon_file given = {"w.safetensors", &source};
    assert_int_equal(bxn_bundle_open(mem, NULL, &given, 1, 0, &bundle, &error), BITAXON_OK);
    assert_int_equal(bxn_file_map(bundle, &bundle->files[0], &error), BITAXON_LIMIT);
    assert_null(bundle->files[0].map);
    assert_int_equal(mem->mapped, 0);
    assert_non_null(strstr(error.message, "w.safetensors"));
    bxn_bundle_free(bundle);
    fault_end(&fault);
}

static bitaxon_status open_body(void *context, bxn_mem *mem, bitaxon_error *error)
{
    bxn_bundle *bundle;
    char *text = NULL;
    size_t bytes;
    bitaxon_status status = bxn_bundle_open(mem, context, NULL, 0, 0, &bundle, error);
    if (status == BITAXON_OK)
        status = bxn_file_text(bundle, bxn_bundle_find(bundle, "config.json"), 1000, &text, &bytes,
                               error);
    else
        assert_null(bundle);
    if (text != NULL)
        bxn_free(mem, text, bytes + 1);
    bxn_bundle_free(bundle);
    return status;
}

static void test_bundle_out_of_memory(void **state)
{
    (void)state;
    scratch dir;
    unsigned files = open_files();
    scratch_start(&dir);
    fill_directory(&dir);
    for (int i = 0; i < 12; i++) { /* so that the table grows */
        char name[64];
        snprintf(name, sizeof name, "w%02d.safetensors", i);
        put_text(scratch_name(&dir, name), "1");
    }
    fault_loop(open_body, dir.path);
    assert_int_equal(open_files(), files);
    scratch_end(&dir);
}

/* ---- JSON --------------------------------------------------------------------------------- */

static bitaxon_status parse(const char *text, size_t bytes, bitaxon_error *error)
{
    fault_host fault;
    bxn_json json;
    bitaxon_status status =
        bxn_json_parse(fault_start(&fault, 0), text, bytes, "doc", &json, error);
    assert_true((status == BITAXON_OK) == (json.root != NULL));
    if (status == BITAXON_OK)
        assert_true(fault.mem.used == json.charged && json.charged > 0);
    bxn_json_free(&json);
    fault_end(&fault);
    return status;
}

static void test_json_accepts(void **state)
{
    (void)state;
    static const char *const good[] = {
        "{}",
        "[]",
        " {\"a\": [1, -2, 3.5e3, true, false, null, \"x\\u00e9\\n\\ud83d\\ude00\"]} \n",
        "{\"a\":{},\"b\":[[],[{}]]}",
        "[\"{[,:\\\"\\\\\"]",
        "{\"\":0}",
    };
    for (size_t i = 0; i < COUNT(good); i++)
        assert_int_equal(parse(good[i], strlen(good[i]), NULL), BITAXON_OK);
}

static void test_json_refuses(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        " ",
        "1",
        "\"a\"",
        "null",
        "{",
        "[",
        "{\"a\"",
        "{\"a\":}",
        "{\"a\":1,}",
        "[1,]",
        "{} x",
        "{}{}",
        "{\"a\":1,\"a\":2}",
        "{\"a\":{\"b\":1,\"c\":2,\"b\":1}}",
        "[\"\xff\"]",
        "[\"\xc0\x80\"]",
        "[\"\xed\xa0\x80\"]",
        "[\"\\ud800\"]",
        "[\"\\u0000\"]",
        "{\"a\\u0000b\":1}",
        "[\"a\nb\"]",
        "[nan]",
        "[NaN]",
        "[Infinity]",
        "[01]",
        "[1.]",
        "[.5]",
        "[+1]",
        "[1e999]",
        "[99999999999999999999]",
        "{'a':1}",
        "[1 2]",
        "[\"abc",
        "[\"abc\\",
        "\xef\xbb\xbf{}",
        "[/* */]",
        "{\"a\" 1}",
        "{1:2}",
        "]",
        "}",
        ",",
        ":",
        "[}",
        "{]",
    };
    for (size_t i = 0; i < COUNT(bad); i++) {
        bitaxon_error error = BITAXON_ERROR_INIT;
        assert_int_equal(parse(bad[i], strlen(bad[i]), &error), BITAXON_FORMAT);
        assert_int_equal(strncmp(error.message, "doc: line ", 10), 0);
        assert_non_null(strstr(error.message, "offset "));
    }
    bitaxon_error error = BITAXON_ERROR_INIT;
    assert_int_equal(parse("{\n \"a\": 1,\n  \"a\": 2}", 20, &error), BITAXON_FORMAT);
    assert_non_null(strstr(error.message, "line 3"));
    assert_non_null(strstr(error.message, "duplicate"));
    /* NUL bytes anywhere, with their place. */
    static const char nul[] = "[1,\n 2\0]";
    assert_int_equal(parse(nul, sizeof nul - 1, &error), BITAXON_FORMAT);
    assert_string_equal(error.message, "doc: line 2, column 3 (offset 6): NUL byte");
    assert_int_equal(parse("{}\0", 3, &error), BITAXON_FORMAT);
    assert_int_equal(parse("[\"a\0b\"]", 7, &error), BITAXON_FORMAT);
}

static void test_json_depth(void **state)
{
    (void)state;
    char text[1000];
    for (unsigned depth = 1; depth < 400; depth += depth < 62 || depth > 70 ? 7 : 1) {
        for (int kind = 0; kind < 2; kind++) {
            size_t n = 0;
            for (unsigned i = 0; i < depth; i++)
                n += (size_t)sprintf(text + n, "%s", kind == 0 ? "[" : i % 2 ? "[" : "{");
            if (kind == 0)
                for (unsigned i = 0; i < depth; i++)
                    text[n++] = ']';
            bitaxon_error error = BITAXON_ERROR_INIT;
            bitaxon_status status = parse(text, n, &error);
            assert_int_equal(status, kind == 0 && depth <= 64 ? BITAXON_OK : BITAXON_FORMAT);
            if (depth > 64)
                assert_non_null(strstr(error.message, "nested too deeply"));
        }
    }
    /* Brackets inside strings do not count. */
    char quoted[300];
    memset(quoted, '[', sizeof quoted);
    memcpy(quoted, "[\"", 2);
    memcpy(quoted + sizeof quoted - 2, "\"]", 2);
    assert_int_equal(parse(quoted, sizeof quoted, NULL), BITAXON_OK);
}

static void test_json_locale(void **state)
{
    (void)state;
    fault_host fault;
    bxn_json json;
    /* Where a locale with a decimal comma exists it must not matter; the thread's own locale
     * is back afterwards. */
    locale_t comma = newlocale(LC_ALL_MASK, "de_DE.UTF-8", (locale_t)0);
    locale_t mine = comma != (locale_t)0 ? comma : newlocale(LC_ALL_MASK, "C.UTF-8", (locale_t)0);
    if (mine == (locale_t)0)
        mine = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    locale_t before = uselocale(mine);
    assert_int_equal(bxn_json_parse(fault_start(&fault, 0), "[1.5]", 5, "doc", &json, NULL),
                     BITAXON_OK);
    assert_true(json_real_value(json_array_get(json.root, 0)) == 1.5);
    assert_ptr_equal(uselocale((locale_t)0), mine);
    bxn_json_free(&json);
    assert_int_equal(bxn_json_parse(&fault.mem, "[1.5", 4, "doc", &json, NULL), BITAXON_FORMAT);
    assert_ptr_equal(uselocale((locale_t)0), mine);
    uselocale(before);
    freelocale(mine);
}

/* What Jansson really takes from malloc: chunk sizes as glibc makes them. */
static uint64_t jansson_live, jansson_peak;

static void *counted_malloc(size_t size)
{
    void *ptr = malloc(size);
    if (ptr != NULL) {
        jansson_live += malloc_usable_size(ptr) + 8;
        if (jansson_live > jansson_peak)
            jansson_peak = jansson_live;
    }
    return ptr;
}

static void counted_free(void *ptr)
{
    if (ptr != NULL)
        jansson_live -= malloc_usable_size(ptr) + 8;
    free(ptr);
}

static uint64_t jansson_calls, jansson_fail_at;

static void *failing_malloc(size_t size)
{
    return ++jansson_calls == jansson_fail_at ? NULL : counted_malloc(size);
}

/* The parser's own memory fails: no document, nothing charged, nothing left. (Tokens stay
 * within the first size of Jansson's token buffer, whose growth it does not check.) */
static void test_json_out_of_memory(void **state)
{
    (void)state;
    static const char text[] =
        "{\"a\":[1,2.5,\"xyz\",null,[],{}],\"b\":{\"c\":[1,2,3,4,5,6,7,8,9]}}";
    bitaxon_status status;
    uint64_t n = 0;
    do {
        fault_host fault;
        bxn_json json;
        bitaxon_error error = BITAXON_ERROR_INIT;
        fault_start(&fault, 0);
        jansson_live = jansson_calls = 0;
        jansson_fail_at = ++n;
        json_set_alloc_funcs(failing_malloc, counted_free);
        status = bxn_json_parse(&fault.mem, text, sizeof text - 1, "doc", &json, &error);
        if (status != BITAXON_OK) {
            assert_null(json.root);
            assert_true(status == BITAXON_OUT_OF_MEMORY || status == BITAXON_FORMAT);
            assert_true(error.message[0] != '\0');
        }
        bxn_json_free(&json);
        json_set_alloc_funcs(malloc, free);
        assert_int_equal(jansson_live, 0);
        fault_end(&fault);
    } while (status != BITAXON_OK);
    assert_true(n > 20);
}

static void check_bound(const char *text, size_t bytes)
{
    fault_host fault;
    bxn_json json;
    fault_start(&fault, 0);
    jansson_live = jansson_peak = 0;
    json_set_alloc_funcs(counted_malloc, counted_free);
    assert_int_equal(bxn_json_parse(&fault.mem, text, bytes, "doc", &json, NULL), BITAXON_OK);
    uint64_t charged = json.charged, peak = jansson_peak;
    bxn_json_free(&json);
    json_set_alloc_funcs(malloc, free);
    assert_int_equal(jansson_live, 0);
    if (peak > charged)
        print_message("%.40s...: took %llu, charged %llu\n", text, (unsigned long long)peak,
                      (unsigned long long)charged);
    assert_true(peak <= charged);
    /* A ceiling just below the charge refuses, and the parser never runs. */
    jansson_peak = 0;
    json_set_alloc_funcs(counted_malloc, counted_free);
    fault_start(&fault, charged - 1);
    assert_int_equal(bxn_json_parse(&fault.mem, text, bytes, "doc", &json, NULL), BITAXON_LIMIT);
    json_set_alloc_funcs(malloc, free);
    assert_int_equal(jansson_peak, 0);
    fault_end(&fault);
}

static void test_json_bound(void **state)
{
    (void)state;
    /* Each shape that grows something else: keys, nested keys, arrays, numbers, strings. */
    static const char *const items[] = {
        "0",
        "-1.5",
        "\"\"",
        "\"ab\"",
        "[]",
        "{}",
        "[1]",
        "[[[]]]",
        "{\"k\":{\"l\":{\"m\":[]}}}",
        "null",
        "\"0123456789012345678901234567890123456789\"",
        "[1,2,3,4,5,6,7,8,9]",
        "\"\\u00e9\\u00e9\"",
        "{\"a\":1,\"b\":2,\"c\":3,\"d\":4,\"e\":5,\"f\":6,\"g\":7,\"h\":8,\"i\":9}",
    };
    size_t capacity = 12u << 20;
    char *text = malloc(capacity);
    assert_non_null(text);
    for (size_t k = 0; k < COUNT(items); k++) {
        for (unsigned count = 1; count < 100000; count = count * 7 + 2) {
            for (int object = 0; object < 2; object++) {
                size_t n = 0;
                text[n++] = object ? '{' : '[';
                for (unsigned i = 0; i < count && n < capacity - 256; i++) {
                    if (i > 0)
                        text[n++] = ',';
                    if (object)
                        n += (size_t)sprintf(text + n, "\"%x\":", i);
                    n += (size_t)sprintf(text + n, "%s", items[k]);
                }
                text[n++] = object ? '}' : ']';
                check_bound(text, n);
            }
        }
    }
    /* Long strings and keys, one inside the other. */
    for (size_t length = 1; length < 3000000; length = length * 5 + 1) {
        size_t n = 0;
        n += (size_t)sprintf(text + n, "{\"");
        memset(text + n, 'k', length);
        n += length;
        n += (size_t)sprintf(text + n, "\":{\"");
        memset(text + n, 'l', length);
        n += length;
        n += (size_t)sprintf(text + n, "\":[\"");
        memset(text + n, 'v', length);
        n += length;
        n += (size_t)sprintf(text + n, "\"]}}");
        check_bound(text, n);
    }
    free(text);
}

/* ---- helpers --------------------------------------------------------------------------------- */

typedef struct item {
    uint32_t key, payload;
} item;

static int by_key(const void *left, const void *right)
{
    const item *a = left, *b = right;
    return (a->key > b->key) - (a->key < b->key);
}

static void test_sort(void **state)
{
    (void)state;
    static item items[2000];
    for (uint32_t count = 0; count < 2000; count = count < 20 ? count + 1 : count * 2 - 3) {
        for (int pattern = 0; pattern < 5; pattern++) {
            uint64_t before = 0, after = 0;
            uint32_t random = count * 7 + 1;
            for (uint32_t i = 0; i < count; i++) {
                random = random * 1664525u + 1013904223u;
                uint32_t keys[5] = {i, count - i, 7, random >> 8, random >> 29};
                items[i] = (item){keys[pattern], keys[pattern] * 31 + 5};
                before += items[i].key * 2654435761u;
            }
            bxn_sort(items, count, sizeof *items, by_key);
            for (uint32_t i = 0; i < count; i++) {
                after += items[i].key * 2654435761u;
                assert_int_equal(items[i].payload, items[i].key * 31 + 5);
                assert_true(i == 0 || items[i - 1].key <= items[i].key);
            }
            assert_int_equal(before, after);
        }
    }
    bxn_sort(NULL, 0, sizeof *items, by_key);
}

static void test_reason(void **state)
{
    (void)state;
    char buffer[32];
    assert_string_equal(bxn_io_reason(ENOENT, buffer), "no such file or directory");
    assert_string_equal(bxn_io_reason(12345, buffer), "error 12345");
    assert_string_equal(bxn_io_reason(INT32_MIN, buffer), "error -2147483648");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_source_file),
        cmocka_unit_test(test_source_map_race),
        cmocka_unit_test(test_source_memory),
        cmocka_unit_test(test_bundle_directory),
        cmocka_unit_test(test_bundle_single_file),
        cmocka_unit_test(test_bundle_given),
        cmocka_unit_test(test_file_read),
        cmocka_unit_test(test_map_ceiling),
        cmocka_unit_test(test_bundle_out_of_memory),
        cmocka_unit_test(test_json_accepts),
        cmocka_unit_test(test_json_refuses),
        cmocka_unit_test(test_json_depth),
        cmocka_unit_test(test_json_locale),
        cmocka_unit_test(test_json_bound),
        cmocka_unit_test(test_json_out_of_memory),
        cmocka_unit_test(test_sort),
        cmocka_unit_test(test_reason),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
