/* SPDX-License-Identifier: Apache-2.0 */
/* test_writer.c - files appear whole or not at all: after success, after every kind of
 * failure, and when the process dies between; safetensors written here are read back, are
 * deterministic and aligned; copies and directories. */
#include "io_fixture.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

static void assert_file(const char *path, const void *data, size_t bytes)
{
    size_t size;
    uint8_t *found = get_file(path, &size);
    assert_int_equal(size, bytes);
    if (bytes > 0)
        assert_memory_equal(found, data, bytes);
    free(found);
}

/* ---- the writer ------------------------------------------------------------------------- */

static void test_commit(void **state)
{
    (void)state;
    fault_host fault;
    scratch dir;
    bxn_writer *writer;
    bitaxon_error error = BITAXON_ERROR_INIT;
    bxn_mem *mem = fault_start(&fault, 0);
    unsigned files = open_files();
    scratch_start(&dir);
    const char *path = scratch_name(&dir, "out");
    put_text(path, "old");

    /* Pieces around the buffer's size, then a patch inside, at the seam, and at both ends. */
    size_t total = 3000000;
    uint8_t *data = malloc(total);
    assert_non_null(data);
    for (size_t i = 0; i < total; i++)
        data[i] = (uint8_t)(i * 2654435761u >> 13);
    static const size_t pieces[] = {1, 0, 262143, 262144, 262145, 7, 600000, 524288, 3};
    assert_int_equal(bxn_writer_open(mem, path, &writer, &error), BITAXON_OK);
    size_t at = 0;
    for (size_t i = 0; at < total; i++) {
        size_t piece = pieces[i % COUNT(pieces)];
        if (piece > total - at)
            piece = total - at;
        assert_int_equal(bxn_writer_put(writer, data + at, piece, &error), BITAXON_OK);
        at += piece;
        assert_int_equal(bxn_writer_size(writer), at);
        if (i % 5 == 4) {
            size_t offset = at > 300000 ? at - 300000 : 0;
            memset(data + offset, (int)i, 100);
            assert_int_equal(bxn_writer_patch(writer, offset, data + offset, 100, &error),
                             BITAXON_OK);
        }
    }
    assert_int_equal(bxn_writer_patch(writer, total - 1, "x", 1, &error), BITAXON_OK);
    data[total - 1] = 'x';
    assert_int_equal(bxn_writer_patch(writer, total, "x", 1, &error), BITAXON_INTERNAL);
    assert_int_equal(bxn_writer_patch(writer, UINT64_MAX, "x", 1, &error), BITAXON_INTERNAL);
    assert_file(path, "old", 3); /* until the commit */
    assert_int_equal(entries_of(dir.path), 2);
    assert_int_equal(bxn_writer_commit(writer, &error), BITAXON_OK);
    assert_file(path, data, total);
    assert_int_equal(entries_of(dir.path), 1);
    free(data);

    assert_int_equal(bxn_writer_open(mem, path, &writer, &error), BITAXON_OK);
    assert_int_equal(bxn_writer_commit(writer, &error), BITAXON_OK);
    assert_file(path, "", 0);

    /* In the working directory, without a directory part. */
    char before[1024];
    assert_non_null(getcwd(before, sizeof before));
    assert_int_equal(chdir(dir.path), 0);
    assert_int_equal(bxn_writer_open(mem, "plain", &writer, &error), BITAXON_OK);
    assert_int_equal(bxn_writer_put(writer, "abc", 3, &error), BITAXON_OK);
    assert_int_equal(bxn_writer_commit(writer, &error), BITAXON_OK);
    assert_file("plain", "abc", 3);
    assert_int_equal(chdir(before), 0);

    fault_end(&fault);
    scratch_end(&dir);
    assert_int_equal(open_files(), files);
}

static void test_abort(void **state)
{
    (void)state;
    fault_host fault;
    scratch dir;
    bxn_writer *writer, *other;
    bxn_mem *mem = fault_start(&fault, 0);
    unsigned files = open_files();
    scratch_start(&dir);
    const char *path = scratch_name(&dir, "out");
    put_text(path, "old");
    static const uint8_t big[400000];

    /* Two writers of one path do not meet. */
    assert_int_equal(bxn_writer_open(mem, path, &writer, NULL), BITAXON_OK);
    assert_int_equal(bxn_writer_open(mem, path, &other, NULL), BITAXON_OK);
    assert_int_equal(bxn_writer_put(writer, big, sizeof big, NULL), BITAXON_OK);
    assert_int_equal(bxn_writer_put(other, "new", 3, NULL), BITAXON_OK);
    assert_int_equal(entries_of(dir.path), 3);
    bxn_writer_abort(writer);
    assert_file(path, "old", 3);
    assert_int_equal(bxn_writer_commit(other, NULL), BITAXON_OK);
    assert_file(path, "new", 3);
    bxn_writer_abort(NULL);
    assert_int_equal(entries_of(dir.path), 1);
    fault_end(&fault);
    scratch_end(&dir);
    assert_int_equal(open_files(), files);
}

static void test_cannot_create(void **state)
{
    (void)state;
    fault_host fault;
    scratch dir;
    bxn_writer *writer;
    char name[600];
    bitaxon_error error = BITAXON_ERROR_INIT;
    bxn_mem *mem = fault_start(&fault, 0);
    unsigned files = open_files();
    scratch_start(&dir);

    snprintf(name, sizeof name, "%s/none/out", dir.path);
    assert_int_equal(bxn_writer_open(mem, name, &writer, &error), BITAXON_IO);
    assert_null(writer);
    assert_non_null(strstr(error.message, "no such file"));
    assert_non_null(strstr(error.message, "/none/out"));
    int n = snprintf(name, sizeof name, "%s/", dir.path);
    memset(name + n, 'a', 250);
    name[n + 250] = '\0';
    assert_int_equal(bxn_writer_open(mem, name, &writer, &error), BITAXON_IO);
    assert_int_equal(bxn_writer_open(mem, "", &writer, &error), BITAXON_IO);

    /* The target is a directory: only the rename can find out. */
    snprintf(name, sizeof name, "%s/dir", dir.path);
    assert_int_equal(mkdir(name, 0700), 0);
    assert_int_equal(bxn_writer_open(mem, name, &writer, &error), BITAXON_OK);
    assert_int_equal(bxn_writer_put(writer, "abc", 3, &error), BITAXON_OK);
    assert_int_equal(bxn_writer_commit(writer, &error), BITAXON_IO);
    assert_non_null(strstr(error.message, "rename"));
    assert_int_equal(entries_of(dir.path), 1);
    fault_end(&fault);
    scratch_end(&dir);
    assert_int_equal(open_files(), files);
}

/* A full disk, played by a file size limit: in put, in patch's flush, in commit. */
static void test_no_space(void **state)
{
    (void)state;
    fault_host fault;
    scratch dir;
    struct rlimit before, small;
    static const uint8_t data[600000];
    bitaxon_error error = BITAXON_ERROR_INIT;
    bxn_mem *mem = fault_start(&fault, 0);
    unsigned files = open_files();
    scratch_start(&dir);
    const char *path = scratch_name(&dir, "out");
    put_text(path, "old");
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    small = before;
    for (size_t limit = 0; limit < 700000; limit += 50000) {
        bxn_writer *writer;
        small.rlim_cur = limit;
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
        assert_int_equal(bxn_writer_open(mem, path, &writer, &error), BITAXON_OK);
        bitaxon_status status = BITAXON_OK, patched = BITAXON_OK, again = BITAXON_OK;
        for (size_t at = 0; at < sizeof data && status == BITAXON_OK; at += 60000)
            status = bxn_writer_put(writer, data + at, 60000, &error);
        if (status != BITAXON_OK) {
            again = bxn_writer_put(writer, data, 10, NULL);
            patched = bxn_writer_patch(writer, 0, data, 1, NULL);
        }
        bitaxon_status committed = bxn_writer_commit(writer, status == BITAXON_OK ? &error : NULL);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        if (limit >= sizeof data) {
            assert_int_equal(committed, BITAXON_OK);
            assert_file(path, data, sizeof data);
            put_text(path, "old");
        } else {
            assert_int_equal(committed, BITAXON_IO);
            assert_non_null(strstr(error.message, "file too large"));
            assert_non_null(strstr(error.message, "/out"));
            if (status != BITAXON_OK) {
                assert_int_equal(again, BITAXON_IO);
                assert_int_equal(patched, BITAXON_IO);
            }
            assert_file(path, "old", 3);
        }
        assert_int_equal(entries_of(dir.path), 1);
        fault_end(&fault);
    }
    signal(SIGXFSZ, handler);
    scratch_end(&dir);
    assert_int_equal(open_files(), files);
}

/* The process dies before the commit: the old file stands. */
static void test_death(void **state)
{
    (void)state;
    scratch dir;
    scratch_start(&dir);
    const char *path = scratch_name(&dir, "out");
    put_text(path, "old");
    for (int moment = 0; moment < 3; moment++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            static uint8_t data[500000];
            bxn_mem mem;
            bxn_writer *writer;
            if (bxn_mem_init(&mem, NULL, 0, NULL) != BITAXON_OK ||
                bxn_writer_open(&mem, path, &writer, NULL) != BITAXON_OK)
                _exit(2);
            if (moment > 0 && bxn_writer_put(writer, data, sizeof data, NULL) != BITAXON_OK)
                _exit(3);
            if (moment == 2)
                kill(getpid(), SIGKILL);
            _exit(0);
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(moment == 2 ? WIFSIGNALED(status) : status == 0);
        assert_file(path, "old", 3);
    }
    /* What the dead left behind is in nobody's way. */
    fault_host fault;
    bxn_writer *writer;
    assert_int_equal(bxn_writer_open(fault_start(&fault, 0), path, &writer, NULL), BITAXON_OK);
    assert_int_equal(bxn_writer_put(writer, "new", 3, NULL), BITAXON_OK);
    assert_int_equal(bxn_writer_commit(writer, NULL), BITAXON_OK);
    assert_file(path, "new", 3);
    fault_end(&fault);
    scratch_end(&dir);
}

/* Killed at some moment while writing again and again: the old or the new file, whole. */
static void test_death_at_any_time(void **state)
{
    (void)state;
    scratch dir;
    scratch_start(&dir);
    const char *path = scratch_name(&dir, "out");
    enum { BYTES = 300000 };
    static uint8_t data[BYTES];
    put_file(path, data, BYTES);
    for (int round = 0; round < 12; round++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            bxn_mem mem;
            bxn_writer *writer;
            if (bxn_mem_init(&mem, NULL, 0, NULL) != BITAXON_OK)
                _exit(2);
            for (int i = 1;; i++) {
                memset(data, i, BYTES);
                if (bxn_writer_open(&mem, path, &writer, NULL) != BITAXON_OK ||
                    bxn_writer_put(writer, data, BYTES, NULL) != BITAXON_OK ||
                    bxn_writer_commit(writer, NULL) != BITAXON_OK)
                    _exit(3);
            }
        }
        usleep((useconds_t)(1000 + round * 1700));
        kill(child, SIGKILL);
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        size_t size;
        uint8_t *found = get_file(path, &size);
        assert_int_equal(size, BYTES);
        for (size_t i = 1; i < size; i++)
            assert_int_equal(found[i], found[0]);
        free(found);
    }
    scratch_end(&dir);
}

/* ---- safetensors -------------------------------------------------------------------------- */

typedef struct plan {
    const char *name;
    bxn_dtype dtype;
    uint32_t rank;
    uint64_t shape[4];
    uint64_t bytes;
} plan;

static const plan tensors_of_test[] = {
    {"zz.first", BXN_U8, 1, {5}, 5},
    {"a \"quoted\\name\"\n\xC3\xA9", BXN_F32, 2, {3, 7}, 84},
    {"empty", BXN_F16, 3, {4, 0, 2}, 0},
    {"scalar", BXN_U64, 0, {0}, 8},
    {"large", BXN_BF16, 2, {1000, 301}, 602000},
    {"b", BXN_BOOL, 1, {3}, 3},
    {"last empty", BXN_F64, 1, {0}, 0},
};

static uint8_t byte_of(size_t tensor, uint64_t i)
{
    return (uint8_t)(tensor * 41 + i * 7 + (i >> 9));
}

/* All of the test's tensors, their bytes put in pieces of `piece` that heed no border. */
static bitaxon_status write_all_tensors(bxn_mem *mem, const char *path, size_t align, size_t piece,
                                        bitaxon_error *error)
{
    bxn_st_writer *writer = NULL;
    uint8_t *stream = malloc(700000);
    size_t total = 0;
    assert_non_null(stream);
    bitaxon_status status = bxn_st_create(mem, path, align, &writer, error);
    if (status == BITAXON_OK)
        status = bxn_st_meta(writer, "format", "mlx", error);
    if (status == BITAXON_OK)
        status = bxn_st_meta(writer, "no\"te", "line\n\xF0\x9F\x98\x80", error);
    for (size_t i = 0; i < COUNT(tensors_of_test) && status == BITAXON_OK; i++) {
        const plan *p = &tensors_of_test[i];
        status = bxn_st_declare(writer, p->name, p->dtype, p->rank, p->shape, error);
        for (uint64_t j = 0; j < p->bytes; j++)
            stream[total++] = byte_of(i, j);
    }
    if (status == BITAXON_OK)
        status = bxn_st_begin(writer, error);
    for (size_t at = 0; at < total && status == BITAXON_OK; at += piece)
        status = bxn_st_put(writer, stream + at, piece < total - at ? piece : total - at, error);
    if (status == BITAXON_OK)
        status = bxn_st_commit(writer, error);
    else
        bxn_st_abort(writer);
    free(stream);
    return status;
}

static void test_round_trip(void **state)
{
    (void)state;
    static const size_t aligns[] = {8, 16, 64, 4096, 65536};
    static const size_t pieces[] = {700000, 4096, 97};
    scratch dir;
    scratch_start(&dir);
    const char *path = scratch_name(&dir, "w.safetensors");
    for (size_t a = 0; a < COUNT(aligns); a++) {
        uint8_t *first = NULL;
        size_t first_size = 0;
        for (size_t p = 0; p < COUNT(pieces); p++) {
            fault_host fault;
            bxn_bundle *bundle;
            bxn_tensors *tensors;
            bitaxon_error error = BITAXON_ERROR_INIT;
            bxn_mem *mem = fault_start(&fault, 0);
            assert_int_equal(write_all_tensors(mem, path, aligns[a], pieces[p], &error),
                             BITAXON_OK);
            fault_end(&fault);
            size_t size;
            uint8_t *file = get_file(path, &size);
            if (p == 0) {
                first = file;
                first_size = size;
            } else { /* the same bytes however they came */
                assert_int_equal(size, first_size);
                assert_memory_equal(file, first, size);
                free(file);
            }
            assert_int_equal(bxn_bundle_open(mem, path, NULL, 0, 0, &bundle, &error), BITAXON_OK);
            assert_int_equal(bxn_tensors_open(bundle, &tensors, &error), BITAXON_OK);
            assert_int_equal(tensors->count, COUNT(tensors_of_test));
            assert_string_equal(bxn_tensors_meta(tensors, "format"), "mlx");
            assert_string_equal(bxn_tensors_meta(tensors, "no\"te"), "line\n\xF0\x9F\x98\x80");
            for (size_t i = 0; i < COUNT(tensors_of_test); i++) {
                const plan *want = &tensors_of_test[i];
                const bxn_tensor *tensor = bxn_tensors_find(tensors, want->name);
                assert_non_null(tensor);
                assert_int_equal(tensor->dtype, want->dtype);
                assert_int_equal(tensor->rank, want->rank);
                assert_memory_equal(tensor->shape, want->shape, want->rank * sizeof(uint64_t));
                assert_int_equal(tensor->bytes, want->bytes);
                if (aligns[a] > 8 && want->bytes > 0)
                    assert_int_equal(tensor->offset % aligns[a], 0);
                const uint8_t *bytes = bxn_tensor_map(tensors, tensor);
                for (uint64_t j = 0; j < want->bytes; j++)
                    assert_int_equal(bytes[j], byte_of(i, j));
            }
            uint64_t header = 0;
            for (int b = 7; b >= 0; b--)
                header = header << 8 | first[b];
            assert_int_equal((8 + header) % aligns[a], 0);
            /* At 8 there is no padding, and the data is exactly the tensors. */
            if (aligns[a] == 8)
                assert_int_equal(first_size, 8 + header + 5 + 84 + 8 + 602000 + 3);
            bxn_tensors_free(tensors);
            bxn_bundle_free(bundle);
            fault_end(&fault);
        }
        free(first);
    }
    scratch_end(&dir);
}

/* The exact bytes of a small file. */
static void test_layout(void **state)
{
    (void)state;
    fault_host fault;
    scratch dir;
    bxn_st_writer *writer;
    bxn_mem *mem = fault_start(&fault, 0);
    scratch_start(&dir);
    const char *path = scratch_name(&dir, "w.safetensors");
    const uint64_t three = 3, two[] = {1, 2};
    assert_int_equal(bxn_st_create(mem, path, 16, &writer, NULL), BITAXON_OK);
    assert_int_equal(bxn_st_meta(writer, "k", "v", NULL), BITAXON_OK);
    assert_int_equal(bxn_st_declare(writer, "b", BXN_U8, 1, &three, NULL), BITAXON_OK);
    assert_int_equal(bxn_st_declare(writer, "a", BXN_F32, 2, two, NULL), BITAXON_OK);
    assert_int_equal(bxn_st_begin(writer, NULL), BITAXON_OK);
    assert_int_equal(bxn_st_put(writer, "xyz01234567", 11, NULL), BITAXON_OK);
    assert_int_equal(bxn_st_commit(writer, NULL), BITAXON_OK);
    static const char want[] =
        "\xC8\0\0\0\0\0\0\0"
        "{\"__metadata__\":{\"k\":\"v\"},"
        "\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]},"
        "\"__pad.0\":{\"dtype\":\"U8\",\"shape\":[13],\"data_offsets\":[3,16]},"
        "\"a\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[16,24]}}     "
        "xyz\0\0\0\0\0\0\0\0\0\0\0\0\0"
        "01234567";
    assert_file(path, want, sizeof want - 1);

    /* Nothing at all is a file too. */
    assert_int_equal(bxn_st_create(mem, path, 8, &writer, NULL), BITAXON_OK);
    assert_int_equal(bxn_st_begin(writer, NULL), BITAXON_OK);
    assert_int_equal(bxn_st_commit(writer, NULL), BITAXON_OK);
    assert_file(path, "\x08\0\0\0\0\0\0\0{}      ", 16);
    fault_end(&fault);
    scratch_end(&dir);
}

static void test_patch_meta(void **state)
{
    (void)state;
    fault_host fault;
    scratch dir;
    bxn_st_writer *writer;
    bxn_bundle *bundle;
    bxn_tensors *tensors;
    bitaxon_error error = BITAXON_ERROR_INIT;
    bxn_mem *mem = fault_start(&fault, 0);
    scratch_start(&dir);
    const char *path = scratch_name(&dir, "w.safetensors");
    const uint64_t four = 4;
    assert_int_equal(bxn_st_create(mem, path, 64, &writer, &error), BITAXON_OK);
    assert_int_equal(bxn_st_meta(writer, "first", "1", &error), BITAXON_OK);
    assert_int_equal(bxn_st_meta(writer, "sum", "00000000", &error), BITAXON_OK);
    assert_int_equal(bxn_st_declare(writer, "t", BXN_U8, 1, &four, &error), BITAXON_OK);
    assert_int_equal(bxn_st_patch_meta(writer, "sum", "12345678", &error), BITAXON_INTERNAL);
    assert_int_equal(bxn_st_begin(writer, &error), BITAXON_OK);
    assert_int_equal(bxn_st_put(writer, "abcd", 4, &error), BITAXON_OK);
    assert_int_equal(bxn_st_patch_meta(writer, "sum", "1234567", &error), BITAXON_INTERNAL);
    assert_int_equal(bxn_st_patch_meta(writer, "su", "12345678", &error), BITAXON_INTERNAL);
    assert_int_equal(bxn_st_patch_meta(writer, "sum", "12345678", &error), BITAXON_OK);
    assert_int_equal(bxn_st_commit(writer, &error), BITAXON_OK);

    assert_int_equal(bxn_bundle_open(mem, path, NULL, 0, 0, &bundle, &error), BITAXON_OK);
    assert_int_equal(bxn_tensors_open(bundle, &tensors, &error), BITAXON_OK);
    assert_string_equal(bxn_tensors_meta(tensors, "sum"), "12345678");
    assert_string_equal(bxn_tensors_meta(tensors, "first"), "1");
    assert_memory_equal(bxn_tensor_map(tensors, bxn_tensors_find(tensors, "t")), "abcd", 4);
    close_both(&fault, bundle, tensors);
    scratch_end(&dir);
}

static void test_misuse(void **state)
{
    (void)state;
    fault_host fault;
    scratch dir;
    bxn_st_writer *writer;
    bitaxon_error error = BITAXON_ERROR_INIT;
    bxn_mem *mem = fault_start(&fault, 0);
    scratch_start(&dir);
    const char *path = scratch_name(&dir, "w.safetensors");
    put_text(path, "old");
    const uint64_t four = 4, huge[] = {(uint64_t)1 << 40, (uint64_t)1 << 40};
    const uint64_t many = (uint64_t)1 << 62;

    static const size_t aligns[] = {0, 1, 4, 9, 24, 131072, SIZE_MAX};
    for (size_t i = 0; i < COUNT(aligns); i++) {
        assert_int_equal(bxn_st_create(mem, path, aligns[i], &writer, &error),
                         BITAXON_INVALID_ARGUMENT);
        assert_null(writer);
    }

    char long_name[BXN_MAX_NAME + 1];
    memset(long_name, 'n', BXN_MAX_NAME);
    long_name[BXN_MAX_NAME] = '\0';
    const char *names[] = {"", "__metadata__", "__pad.0", "__pad.", long_name, "\xff", "a\xC3"};
    assert_int_equal(bxn_st_create(mem, path, 8, &writer, &error), BITAXON_OK);
    for (size_t i = 0; i < COUNT(names); i++)
        assert_int_equal(bxn_st_declare(writer, names[i], BXN_U8, 1, &four, &error),
                         BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bxn_st_declare(writer, "t", BXN_DTYPE_COUNT, 1, &four, &error),
                     BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bxn_st_declare(writer, "t", BXN_U8, BXN_MAX_RANK + 1, huge, &error),
                     BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bxn_st_declare(writer, "t", BXN_U8, 2, huge, &error),
                     BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bxn_st_meta(writer, "k", "\xff", &error), BITAXON_INVALID_ARGUMENT);
    assert_int_equal(bxn_st_put(writer, "x", 1, &error), BITAXON_INTERNAL); /* before begin */
    assert_int_equal(bxn_st_declare(writer, "t", BXN_U8, 1, &four, &error), BITAXON_OK);
    assert_int_equal(bxn_st_begin(writer, &error), BITAXON_OK);
    assert_int_equal(bxn_st_begin(writer, &error), BITAXON_INTERNAL);
    assert_int_equal(bxn_st_declare(writer, "u", BXN_U8, 1, &four, &error), BITAXON_INTERNAL);
    assert_int_equal(bxn_st_meta(writer, "k", "v", &error), BITAXON_INTERNAL);
    /* Too many bytes, then too few. */
    assert_int_equal(bxn_st_put(writer, "12345", 5, &error), BITAXON_INTERNAL);
    bxn_st_abort(writer);
    assert_int_equal(bxn_st_create(mem, path, 8, &writer, &error), BITAXON_OK);
    assert_int_equal(bxn_st_declare(writer, "t", BXN_U8, 1, &four, &error), BITAXON_OK);
    assert_int_equal(bxn_st_begin(writer, &error), BITAXON_OK);
    assert_int_equal(bxn_st_put(writer, "123", 3, &error), BITAXON_OK);
    assert_int_equal(bxn_st_commit(writer, &error), BITAXON_INTERNAL);
    assert_non_null(strstr(error.message, "\"t\" lacks 1 byte"));
    assert_int_equal(bxn_st_create(mem, path, 8, &writer, &error), BITAXON_OK);
    assert_int_equal(bxn_st_commit(writer, &error), BITAXON_INTERNAL); /* never begun */

    /* Found by begin: names twice, keys twice, more than a file can hold. */
    for (int kind = 0; kind < 3; kind++) {
        assert_int_equal(bxn_st_create(mem, path, 8, &writer, &error), BITAXON_OK);
        for (int i = 0; i < 3; i++)
            if (kind == 1)
                assert_int_equal(bxn_st_meta(writer, "k", "v", &error), BITAXON_OK);
            else
                assert_int_equal(bxn_st_declare(writer,
                                                kind == 0 || i == 1 ? "t"
                                                : i                 ? "u"
                                                                    : "v",
                                                BXN_U8, 1, kind == 0 ? &four : &many, &error),
                                 BITAXON_OK);
        assert_int_equal(bxn_st_begin(writer, &error), BITAXON_INVALID_ARGUMENT);
        bxn_st_abort(writer);
    }
    bxn_st_abort(NULL);
    fault_end(&fault);
    assert_file(path, "old", 3);
    assert_int_equal(entries_of(dir.path), 1);
    scratch_end(&dir);
}

/* ---- copies and directories ------------------------------------------------------------------ */

static void test_copy(void **state)
{
    (void)state;
    fault_host fault;
    scratch dir;
    fault_source source;
    bxn_bundle *bundle;
    bitaxon_error error = BITAXON_ERROR_INIT;
    bxn_mem *mem = fault_start(&fault, 0);
    size_t size = 700001;
    uint8_t *data = malloc(size);
    assert_non_null(data);
    for (size_t i = 0; i < size; i++)
        data[i] = (uint8_t)(i * 31 >> 4);
    scratch_start(&dir);
    const char *path = scratch_name(&dir, "copy");
    fault_source_start(&source, data, size);
    bitaxon_file file = {"tokenizer.json", &source.source};
    assert_int_equal(bxn_bundle_open(mem, NULL, &file, 1, 0, &bundle, &error), BITAXON_OK);
    assert_int_equal(bxn_copy_file(mem, bundle, &bundle->files[0], path, &error), BITAXON_OK);
    assert_file(path, data, size);
    assert_int_equal(source.reads, 3);
    put_text(path, "old");
    for (uint64_t n = 4; n <= 6; n++) {
        source.fail_at = n;
        source.reads = 3;
        assert_int_equal(bxn_copy_file(mem, bundle, &bundle->files[0], path, &error), BITAXON_IO);
        assert_non_null(strstr(error.message, "tokenizer.json"));
        assert_file(path, "old", 3);
    }
    char none[600];
    snprintf(none, sizeof none, "%s/none/copy", dir.path);
    assert_int_equal(bxn_copy_file(mem, bundle, &bundle->files[0], none, &error), BITAXON_IO);
    assert_int_equal(entries_of(dir.path), 1);
    bxn_bundle_free(bundle);
    fault_end(&fault);
    free(data);
    scratch_end(&dir);
}

static void test_make_directory(void **state)
{
    (void)state;
    scratch dir;
    char path[600];
    static char long_path[5000];
    struct stat info;
    bitaxon_error error = BITAXON_ERROR_INIT;
    scratch_start(&dir);
    snprintf(path, sizeof path, "%s/a//b/c/", dir.path);
    assert_int_equal(bxn_make_directory(path, &error), BITAXON_OK);
    assert_int_equal(stat(path, &info), 0);
    assert_true(S_ISDIR(info.st_mode));
    assert_int_equal(bxn_make_directory(path, &error), BITAXON_OK);
    assert_int_equal(bxn_make_directory(dir.path, &error), BITAXON_OK);
    assert_int_equal(bxn_make_directory("/", &error), BITAXON_OK);
    assert_int_equal(bxn_make_directory(".", &error), BITAXON_OK);
    put_text(scratch_name(&dir, "file"), "x");
    assert_int_equal(bxn_make_directory(dir.name, &error), BITAXON_IO);
    assert_non_null(strstr(error.message, "/file"));
    snprintf(path, sizeof path, "%s/file/below", dir.path);
    assert_int_equal(bxn_make_directory(path, &error), BITAXON_IO);
    assert_int_equal(bxn_make_directory("", &error), BITAXON_IO);
    memset(long_path, 'a', sizeof long_path - 1);
    assert_int_equal(bxn_make_directory(long_path, &error), BITAXON_IO);
    scratch_end(&dir);
}

/* ---- memory that fails --------------------------------------------------------------------------
 */

static bitaxon_status write_body(void *context, bxn_mem *mem, bitaxon_error *error)
{
    return write_all_tensors(mem, context, 64, 100000, error);
}

static bitaxon_status copy_body(void *context, bxn_mem *mem, bitaxon_error *error)
{
    bitaxon_source source;
    bxn_bundle *bundle;
    bitaxon_source_memory("abc", 3, &source, NULL);
    bitaxon_file file = {"config.json", &source};
    bitaxon_status status = bxn_bundle_open(mem, NULL, &file, 1, 0, &bundle, error);
    if (status == BITAXON_OK)
        status = bxn_copy_file(mem, bundle, &bundle->files[0], context, error);
    bxn_bundle_free(bundle);
    return status;
}

static void test_out_of_memory(void **state)
{
    (void)state;
    scratch dir;
    unsigned files = open_files();
    scratch_start(&dir);
    fault_loop(write_body, (void *)(uintptr_t)scratch_name(&dir, "w.safetensors"));
    assert_int_equal(entries_of(dir.path), 1); /* of the two runs that succeeded */
    fault_loop(copy_body, (void *)(uintptr_t)scratch_name(&dir, "w.safetensors"));
    assert_int_equal(entries_of(dir.path), 1);
    assert_int_equal(open_files(), files);
    scratch_end(&dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_commit),        cmocka_unit_test(test_abort),
        cmocka_unit_test(test_cannot_create), cmocka_unit_test(test_no_space),
        cmocka_unit_test(test_death),         cmocka_unit_test(test_death_at_any_time),
        cmocka_unit_test(test_round_trip),    cmocka_unit_test(test_layout),
        cmocka_unit_test(test_patch_meta),    cmocka_unit_test(test_misuse),
        cmocka_unit_test(test_copy),          cmocka_unit_test(test_make_directory),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
