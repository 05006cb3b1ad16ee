/* SPDX-License-Identifier: Apache-2.0 */
/* train_files.c - checkpoints as directories: which there are, whether one is whole, how a new one takes its
 * place. Called by train_state.c, which knows what is in them.
 *
 * A checkpoint is written as step_NNNNNNNN.tmp and renamed when everything in it is on the disk, the manifest
 * last. One that has to make way for a successor of the same step is step_NNNNNNNN.old for that moment. A process
 * that is killed at any time leaves whole checkpoints, and leftovers of these two names that the next call
 * of bxn_checkpoints_list clears up. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "io/io.h"
#include "train/bxn_trainer.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define PIECE_BYTES ((size_t)256 << 10)
#define MANIFEST_FORMAT "bitaxon.checkpoint"
#define MAX_MANIFEST_BYTES 65536u

/* ---- names --------------------------------------------------------------------------------- */

typedef enum kind { NONE, WHOLE, UNFINISHED, ASIDE } kind;

static kind parse(const char *name, uint64_t *step)
{
    size_t digits = 0;
    uint64_t value = 0;
    if (strncmp(name, "step_", 5) != 0)
        return NONE;
    for (name += 5; *name >= '0' && *name <= '9' && digits < 19; name++, digits++)
        value = 10 * value + (uint64_t)(*name - '0');
    *step = value;
    return digits < 8 ? NONE : *name == '\0' ? WHOLE : strcmp(name, ".tmp") == 0 ? UNFINISHED
                           : strcmp(name, ".old") == 0 ? ASIDE : NONE;
}

bool bxn_checkpoint_named(const char *path, uint64_t *step)
{
    const char *slash = strrchr(path, '/');
    return parse(slash == NULL ? path : slash + 1, step) == WHOLE;
}

bitaxon_status bxn_checkpoint_path(char out[BXN_PATH_MAX], const char *directory, uint64_t step, const char *suffix,
                                   bitaxon_error *error)
{
    int n = snprintf(out, BXN_PATH_MAX, "%s/step_%08" PRIu64 "%s", directory, step, suffix);
    return n > 0 && n < BXN_PATH_MAX - 64
               ? BITAXON_OK
               : bxn_fail(error, BITAXON_LIMIT, "the path of checkpoints is too long: %.100s...", directory);
}

/* ---- which there are ------------------------------------------------------------------------- */

typedef struct entry {
    uint64_t step;
    uint64_t kind;
} entry;

typedef struct listing {
    bxn_mem *mem;
    entry *entries;
    size_t count, room;
    bitaxon_error *error;
} listing;

static bitaxon_status add_entry(void *user, const char *name)
{
    listing *l = user;
    uint64_t step;
    kind found = parse(name, &step);
    if (found == NONE)
        return BITAXON_OK;
    if (l->count == l->room) {
        size_t room = l->room == 0 ? 16 : 2 * l->room;
        void *memory = l->entries;
        bitaxon_status status = bxn_realloc(l->mem, &memory, l->room * sizeof *l->entries, room * sizeof *l->entries,
                                            "list of checkpoints", l->error);
        if (status != BITAXON_OK)
            return status;
        l->entries = memory;
        l->room = room;
    }
    l->entries[l->count++] = (entry){ step, found };
    return BITAXON_OK;
}

static int by_step(const void *left, const void *right)
{
    const entry *a = left, *b = right;
    return a->step != b->step ? (a->step < b->step ? -1 : 1) : a->kind < b->kind ? -1 : a->kind > b->kind;
}

/* Unfinished ones go; one that was moved aside comes back when its successor (sorted before it) is not there. */
static bitaxon_status tidy(listing *l, const char *directory, bool change, uint64_t *steps, size_t *count)
{
    char from[BXN_PATH_MAX], to[BXN_PATH_MAX];
    bitaxon_error ignored = BITAXON_ERROR_INIT;
    bitaxon_status status = BITAXON_OK;
    for (size_t i = 0; i < l->count && status == BITAXON_OK; i++) {
        const entry *e = &l->entries[i];
        if (e->kind == WHOLE) {
            steps[(*count)++] = e->step;
            continue;
        }
        bool missing = e->kind == ASIDE && (*count == 0 || steps[*count - 1] != e->step);
        if (!change) {
            if (missing)
                steps[(*count)++] = e->step;
            continue;
        }
        status = bxn_checkpoint_path(from, directory, e->step, e->kind == ASIDE ? ".old" : ".tmp", l->error);
        if (status == BITAXON_OK && missing) {
            status = bxn_checkpoint_path(to, directory, e->step, "", l->error);
            if (status == BITAXON_OK)
                status = bxn_directory_move(from, to, l->error);
            if (status == BITAXON_OK)
                steps[(*count)++] = e->step;
        } else if (status == BITAXON_OK && bxn_directory_remove(from, &ignored) != BITAXON_OK) {
            bxn_log(l->mem, BITAXON_LOG_WARNING, "what was left of a checkpoint stays: %s", ignored.message);
        }
    }
    return status;
}

bitaxon_status bxn_checkpoints_list(bxn_mem *mem, const char *directory, bool change, uint64_t **steps,
                                    size_t *count, size_t *room, bitaxon_error *error)
{
    listing l = { .mem = mem, .error = error };
    void *memory = NULL;
    *steps = NULL;
    *count = *room = 0;
    bitaxon_status status = bxn_directory_each(directory, add_entry, &l, error);
    if (status == BITAXON_OK && l.count != 0)
        status = bxn_alloc(mem, l.count * sizeof **steps, "list of checkpoints", &memory, error);
    if (status == BITAXON_OK && l.count != 0) {
        bxn_sort(l.entries, l.count, sizeof *l.entries, by_step);
        *steps = memory;
        *room = l.count;
        status = tidy(&l, directory, change, *steps, count);
    }
    bxn_free(mem, l.entries, l.room * sizeof *l.entries);
    if (status != BITAXON_OK) {
        bxn_free(mem, *steps, *room * sizeof **steps);
        *steps = NULL;
        *count = *room = 0;
    }
    return status;
}

void bxn_checkpoints_trim(bxn_mem *mem, const char *directory, uint64_t step, uint32_t keep)
{
    char path[BXN_PATH_MAX];
    bitaxon_error error = BITAXON_ERROR_INIT;
    uint64_t *steps;
    size_t count, room, present = 0, gone = 0;
    bitaxon_status status = bxn_checkpoints_list(mem, directory, true, &steps, &count, &room, &error);
    for (size_t i = 0; i < count; i++)
        present += steps[i] <= step;
    for (size_t i = 0; i < count && status == BITAXON_OK; i++) {
        bool old = steps[i] <= step && gone++ + keep < present;
        if (!old && steps[i] <= step)
            continue;
        status = bxn_checkpoint_path(path, directory, steps[i], "", &error);
        if (status == BITAXON_OK)
            status = bxn_directory_remove(path, &error);
    }
    bxn_free(mem, steps, room * sizeof *steps);
    if (status != BITAXON_OK)
        bxn_log(mem, BITAXON_LOG_WARNING, "older checkpoints stay: %s", error.message);
}

bitaxon_status bxn_checkpoint_bring_back(const char *path, bitaxon_error *error)
{
    char aside[BXN_PATH_MAX];
    int n = snprintf(aside, sizeof aside, "%s.old", path);
    return n > 0 && n < BXN_PATH_MAX && !bxn_path_exists(path) && bxn_path_exists(aside)
               ? bxn_directory_move(aside, path, error)
               : BITAXON_OK;
}

bitaxon_status bxn_checkpoint_place(const char *path, const char *directory, uint64_t step, bool *placed,
                                    bitaxon_error *error)
{
    char final[BXN_PATH_MAX], aside[BXN_PATH_MAX];
    bitaxon_error ignored = BITAXON_ERROR_INIT;
    *placed = false;
    bitaxon_status status = bxn_checkpoint_path(final, directory, step, "", error);
    if (status == BITAXON_OK)
        status = bxn_checkpoint_path(aside, directory, step, ".old", error);
    if (status == BITAXON_OK)
        status = bxn_directory_sync(path, error);
    if (status != BITAXON_OK)
        return status;
    bool before = bxn_path_exists(final);
    if (before)
        status = bxn_directory_move(final, aside, error);
    if (status == BITAXON_OK) {
        status = bxn_directory_move(path, final, error);
        if (status != BITAXON_OK && before)
            (void)bxn_directory_move(aside, final, &ignored);
    }
    *placed = status == BITAXON_OK;
    if (status == BITAXON_OK)
        status = bxn_directory_sync(directory, error);
    if (status == BITAXON_OK && before)
        (void)bxn_directory_remove(aside, &ignored); /* else the next listing does */
    return status;
}

/* ---- manifest --------------------------------------------------------------------------------- */

typedef struct digest {
    uint64_t bytes;
    char hash[33];
} digest;

static bitaxon_status read_file(bxn_mem *mem, const char *path, bitaxon_status (*take)(void *, const void *, size_t),
                                void *user, uint64_t *bytes, bitaxon_error *error)
{
    bitaxon_source source;
    void *buffer;
    char text[32];
    bitaxon_status status = bxn_source_file_open(mem, path, &source, error);
    if (status != BITAXON_OK)
        return status;
    *bytes = source.size;
    status = bxn_alloc(mem, PIECE_BYTES, "piece of a checkpoint", &buffer, error);
    for (uint64_t at = 0; status == BITAXON_OK && at < source.size;) {
        size_t n = source.size - at < PIECE_BYTES ? (size_t)(source.size - at) : PIECE_BYTES;
        int32_t code = source.read_at(source.user, at, buffer, n);
        status = code != 0 ? bxn_fail(error, BITAXON_IO, "cannot read (%s): %s", bxn_io_reason(code, text), path)
                           : take(user, buffer, n);
        at += n;
    }
    bxn_free(mem, buffer, PIECE_BYTES);
    source.close(source.user);
    return status;
}

static bitaxon_status hash_piece(void *user, const void *data, size_t bytes)
{
    XXH3_128bits_update(user, data, bytes);
    return BITAXON_OK;
}

static bitaxon_status digest_file(bxn_mem *mem, const char *path, digest *out, bitaxon_error *error)
{
    XXH3_state_t state;
    XXH128_canonical_t canonical;
    XXH3_128bits_reset(&state);
    bitaxon_status status = read_file(mem, path, hash_piece, &state, &out->bytes, error);
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(&state));
    for (int i = 0; i < 16; i++)
        snprintf(out->hash + 2 * i, 3, "%02x", canonical.digest[i]);
    return status;
}

static bitaxon_status file_path(char out[BXN_PATH_MAX], const char *path, const char *name, bitaxon_error *error)
{
    int n = snprintf(out, BXN_PATH_MAX, "%s/%s", path, name);
    return n > 0 && n < BXN_PATH_MAX ? BITAXON_OK
                                     : bxn_fail(error, BITAXON_LIMIT, "the path is too long: %.100s...", path);
}

bitaxon_status bxn_manifest_write(bxn_mem *mem, const char *path, const char *const *names, uint32_t count,
                                  bitaxon_error *error)
{
    char full[BXN_PATH_MAX];
    digest d;
    bxn_writer *writer = NULL;
    json_t *root = json_object(), *files = json_object();
    bitaxon_status status = BITAXON_OK;
    bool fine = root != NULL && files != NULL;
    for (uint32_t i = 0; i < count && fine && status == BITAXON_OK; i++) {
        status = file_path(full, path, names[i], error);
        if (status == BITAXON_OK)
            status = digest_file(mem, full, &d, error);
        if (status != BITAXON_OK)
            break;
        json_t *one = json_object();
        fine = one != NULL && json_object_set_new(files, names[i], one) == 0 &&
               json_object_set_new(one, "bytes", json_integer((json_int_t)d.bytes)) == 0 &&
               json_object_set_new(one, "xxh3_128", json_string(d.hash)) == 0;
    }
    if (fine && status == BITAXON_OK) {
        fine = json_object_set_new(root, "format", json_string(MANIFEST_FORMAT)) == 0 &&
               json_object_set_new(root, "version", json_integer(1)) == 0 &&
               json_object_set_new(root, "files", files) == 0;
        files = NULL;
    }
    char text[4096];
    size_t bytes = fine && status == BITAXON_OK ? json_dumpb(root, text, sizeof text, JSON_INDENT(2)) : 0;
    json_decref(files);
    json_decref(root);
    if (status != BITAXON_OK)
        return status;
    if (!fine || bytes == 0 || bytes >= sizeof text)
        return bxn_fail(error, BITAXON_OUT_OF_MEMORY, "out of memory: manifest of a checkpoint");
    text[bytes++] = '\n';
    status = file_path(full, path, BXN_CHECKPOINT_MANIFEST, error);
    if (status == BITAXON_OK)
        status = bxn_writer_open(mem, full, &writer, error);
    if (status == BITAXON_OK)
        status = bxn_writer_put(writer, text, bytes, error);
    if (status == BITAXON_OK)
        return bxn_writer_commit(writer, error);
    bxn_writer_abort(writer);
    return status;
}

typedef struct text {
    char bytes[MAX_MANIFEST_BYTES];
    size_t used;
} text;

static bitaxon_status keep_piece(void *user, const void *data, size_t bytes)
{
    text *t = user;
    if (bytes > sizeof t->bytes - t->used)
        bytes = sizeof t->bytes - t->used; /* too long for one of ours: it will not parse */
    memcpy(t->bytes + t->used, data, bytes);
    t->used += bytes;
    return BITAXON_OK;
}

static bitaxon_status check_file(bxn_mem *mem, const char *path, const char *name, const json_t *files,
                                 bitaxon_error *error)
{
    char full[BXN_PATH_MAX];
    digest d = { 0 };
    const json_t *one = json_object_get(files, name), *bytes = json_object_get(one, "bytes");
    const char *hash = json_string_value(json_object_get(one, "xxh3_128"));
    bitaxon_status status = file_path(full, path, name, error);
    if (status == BITAXON_OK && (bytes == NULL || hash == NULL))
        return bxn_fail(error, BITAXON_FORMAT, "damaged checkpoint: its manifest does not name %s: %s", name, path);
    if (status == BITAXON_OK)
        status = digest_file(mem, full, &d, error);
    if (status != BITAXON_OK)
        return status;
    if ((json_int_t)d.bytes != json_integer_value(bytes))
        return bxn_fail(error, BITAXON_FORMAT, "damaged checkpoint: %s has %" PRIu64 " bytes, %lld were written", full,
                        d.bytes, (long long)json_integer_value(bytes));
    if (strcmp(d.hash, hash) != 0)
        return bxn_fail(error, BITAXON_FORMAT, "damaged checkpoint: %s is not what was written", full);
    return BITAXON_OK;
}

bitaxon_status bxn_manifest_check(bxn_mem *mem, const char *path, const char *const *names, uint32_t count,
                                  bitaxon_error *error)
{
    char full[BXN_PATH_MAX];
    bxn_json json = { 0 };
    void *memory = NULL;
    uint64_t size;
    bitaxon_status status = file_path(full, path, BXN_CHECKPOINT_MANIFEST, error);
    if (status == BITAXON_OK)
        status = bxn_alloc(mem, sizeof(text), "manifest of a checkpoint", &memory, error);
    if (status != BITAXON_OK)
        return status;
    text *t = memory;
    t->used = 0;
    status = read_file(mem, full, keep_piece, t, &size, error);
    if (status == BITAXON_OK)
        status = bxn_json_parse(mem, t->bytes, t->used, full, &json, error);
    bxn_free(mem, memory, sizeof(text));
    if (status != BITAXON_OK)
        return status;
    const char *format = json_string_value(json_object_get(json.root, "format"));
    if (format == NULL || strcmp(format, MANIFEST_FORMAT) != 0)
        status = bxn_fail(error, BITAXON_FORMAT, "not the manifest of a checkpoint: %s", full);
    else if (json_integer_value(json_object_get(json.root, "version")) != 1)
        status = bxn_fail(error, BITAXON_UNSUPPORTED, "a checkpoint of another version: %s", full);
    for (uint32_t i = 0; i < count && status == BITAXON_OK; i++)
        status = check_file(mem, path, names[i], json_object_get(json.root, "files"), error);
    bxn_json_free(&json);
    return status;
}
