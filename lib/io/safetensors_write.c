/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors_write.c - safetensors files written as a stream: all tensors are declared
 * first, so that the header is complete before the data and nothing has to be held. The same
 * declarations give the same bytes. Used by conversions and by the training states.
 *
 * The header is padded with spaces so that the data starts at a multiple of `align` in the
 * file. The format allows no gaps between tensors; above 8, tensors are therefore separated by
 * declared U8 tensors "__pad.N" of zeros that bring the next one to a multiple of `align`. */
#define _POSIX_C_SOURCE 200809L

#include "io/io.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define MAX_ALIGN 65536u

typedef struct declared {
    char *quoted; /* name as a JSON string */
    bxn_dtype dtype;
    uint32_t rank;
    uint64_t shape[BXN_MAX_RANK];
    uint64_t bytes;
    uint64_t pad; /* zeros before it */
} declared;

typedef struct meta {
    char *key, *value; /* as JSON strings */
    uint64_t offset;   /* of the value in the file, once begun */
} meta;

/* A growing text. */
typedef struct text {
    bxn_mem *mem;
    char *data;
    size_t used, capacity;
} text;

struct bxn_st_writer {
    bxn_mem *mem;
    char *path;
    bxn_writer *file;
    size_t align;
    declared *tensors;
    uint64_t count, capacity;
    meta *metas;
    uint64_t meta_count, meta_capacity;
    bool begun;
    uint64_t current; /* tensor being put */
    uint64_t left;    /* its missing bytes */
};

static void free_text(bxn_mem *mem, char *string)
{
    if (string != NULL)
        bxn_free(mem, string, strlen(string) + 1);
}

static bitaxon_status grow(bxn_mem *mem, void **items, size_t size, uint64_t count,
                           uint64_t *capacity, bitaxon_error *error)
{
    if (count < *capacity)
        return BITAXON_OK;
    uint64_t more = *capacity != 0 ? 2 * *capacity : 16, bytes;
    if (!bxn_mul_u64(more, size, &bytes) || bytes > SIZE_MAX)
        return bxn_fail(error, BITAXON_OUT_OF_MEMORY, "out of memory: %llu table entries",
                        (unsigned long long)more);
    bitaxon_status status =
        bxn_realloc(mem, items, (size_t)(*capacity * size), (size_t)bytes, "tensor table", error);
    if (status == BITAXON_OK)
        *capacity = more;
    return status;
}

static bitaxon_status append(text *to, const char *from, size_t bytes, bitaxon_error *error)
{
    if (bytes > to->capacity - to->used) {
        size_t capacity = to->capacity != 0 ? to->capacity : 4096;
        while (bytes > capacity - to->used) {
            if (capacity > BXN_MAX_HEADER_BYTES)
                return bxn_fail(error, BITAXON_LIMIT, "the header is longer than %u bytes",
                                BXN_MAX_HEADER_BYTES);
            capacity *= 2;
        }
        void *data = to->data;
        bitaxon_status status =
            bxn_realloc(to->mem, &data, to->capacity, capacity, "safetensors header", error);
        if (status != BITAXON_OK)
            return status;
        to->data = data;
        to->capacity = capacity;
    }
    memcpy(to->data + to->used, from, bytes);
    to->used += bytes;
    return BITAXON_OK;
}

static bitaxon_status append_string(text *to, const char *string, bitaxon_error *error)
{
    return append(to, string, strlen(string), error);
}

static bitaxon_status append_number(text *to, const char *before, uint64_t number,
                                    bitaxon_error *error)
{
    char digits[64];
    int n = snprintf(digits, sizeof digits, "%s%" PRIu64, before, number);
    return append(to, digits, (size_t)n, error);
}

/* *out = string as JSON, quotes included. */
static bitaxon_status quote(bxn_mem *mem, const char *string, char **out, bitaxon_error *error)
{
    *out = NULL;
    json_t *node = json_string(string);
    if (node == NULL)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT,
                        "not valid UTF-8, or no memory to quote it: '%.96s'", string);
    size_t bytes = json_dumpb(node, NULL, 0, JSON_ENCODE_ANY);
    void *memory = NULL;
    bitaxon_status status = bxn_alloc(mem, bytes + 1, "quoted text", &memory, error);
    if (status == BITAXON_OK) {
        char *quoted = memory;
        json_dumpb(node, quoted, bytes, JSON_ENCODE_ANY);
        quoted[bytes] = '\0';
        *out = quoted;
    }
    json_decref(node);
    return status;
}

bitaxon_status bxn_st_create(bxn_mem *mem, const char *path, size_t align, bxn_st_writer **out,
                             bitaxon_error *error)
{
    void *memory;
    *out = NULL;
    if (align < 8 || align > MAX_ALIGN || (align & (align - 1)) != 0)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT,
                        "alignment %zu is not a power of two from 8 to %u", align, MAX_ALIGN);
    bitaxon_status status = bxn_calloc(mem, sizeof(bxn_st_writer), "writer", &memory, error);
    if (status != BITAXON_OK)
        return status;
    bxn_st_writer *writer = memory;
    writer->mem = mem;
    writer->align = align;
    status = bxn_copy_text(mem, path, strlen(path), "path", &writer->path, error);
    if (status != BITAXON_OK) {
        bxn_st_abort(writer);
        return status;
    }
    *out = writer;
    return BITAXON_OK;
}

static bitaxon_status check_open(const bxn_st_writer *writer, bool begun, bitaxon_error *error)
{
    if (writer->begun == begun)
        return BITAXON_OK;
    return bxn_fail(error, BITAXON_INTERNAL, "%s: %s",
                    begun ? "data before the header is complete" : "the header is complete",
                    writer->path);
}

bitaxon_status bxn_st_meta(bxn_st_writer *writer, const char *key, const char *value,
                           bitaxon_error *error)
{
    void *metas = writer->metas;
    bitaxon_status status = check_open(writer, false, error);
    if (status == BITAXON_OK)
        status = grow(writer->mem, &metas, sizeof(meta), writer->meta_count, &writer->meta_capacity,
                      error);
    writer->metas = metas;
    if (status != BITAXON_OK)
        return status;
    meta pair = {NULL, NULL, 0};
    status = quote(writer->mem, key, &pair.key, error);
    if (status == BITAXON_OK)
        status = quote(writer->mem, value, &pair.value, error);
    if (status != BITAXON_OK) {
        free_text(writer->mem, pair.key);
        return status;
    }
    writer->metas[writer->meta_count++] = pair;
    return BITAXON_OK;
}

bitaxon_status bxn_st_declare(bxn_st_writer *writer, const char *name, bxn_dtype dtype,
                              uint32_t rank, const uint64_t *shape, bitaxon_error *error)
{
    void *tensors = writer->tensors;
    declared tensor = {0};
    size_t length = strnlen(name, BXN_MAX_NAME);
    bitaxon_status status = check_open(writer, false, error);
    if (status != BITAXON_OK)
        return status;
    if (length == 0 || length == BXN_MAX_NAME || strcmp(name, "__metadata__") == 0 ||
        strncmp(name, BXN_PAD_PREFIX, strlen(BXN_PAD_PREFIX)) == 0)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "not a name for a tensor: '%.96s'", name);
    if (rank > BXN_MAX_RANK || bxn_dtype_size(dtype) == 0)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "tensor %.96s: rank %u, dtype %s", name,
                        rank, bxn_dtype_name(dtype));
    tensor.dtype = dtype;
    tensor.rank = rank;
    tensor.bytes = bxn_dtype_size(dtype);
    bool empty = false;
    for (uint32_t i = 0; i < rank; i++) {
        tensor.shape[i] = shape[i];
        if (shape[i] == 0)
            empty = true;
        else if (!bxn_mul_u64(tensor.bytes, shape[i], &tensor.bytes))
            return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "tensor %.96s: the shape overflows",
                            name);
    }
    if (empty)
        tensor.bytes = 0;
    status = grow(writer->mem, &tensors, sizeof(declared), writer->count, &writer->capacity, error);
    writer->tensors = tensors;
    if (status == BITAXON_OK)
        status = quote(writer->mem, name, &tensor.quoted, error);
    if (status == BITAXON_OK)
        writer->tensors[writer->count++] = tensor;
    return status;
}

static int by_text(const void *left, const void *right)
{
    return strcmp(*(char *const *)left, *(char *const *)right);
}

/* Tensor names and metadata keys, as far as given, must be unique. */
static bitaxon_status check_unique(bxn_st_writer *writer, bool tensors, bitaxon_error *error)
{
    uint64_t count = tensors ? writer->count : writer->meta_count;
    void *memory;
    bitaxon_status status =
        bxn_alloc(writer->mem, (size_t)count * sizeof(char *), "name table", &memory, error);
    if (status != BITAXON_OK)
        return status;
    char **names = memory;
    for (uint64_t i = 0; i < count; i++)
        names[i] = tensors ? writer->tensors[i].quoted : writer->metas[i].key;
    bxn_sort(names, count, sizeof *names, by_text);
    for (uint64_t i = 1; i < count && status == BITAXON_OK; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            status = bxn_fail(error, BITAXON_INVALID_ARGUMENT, "%s is declared twice for %s",
                              names[i], writer->path);
    bxn_free(writer->mem, names, (size_t)count * sizeof(char *));
    return status;
}

static bitaxon_status append_entry(text *header, const char *quoted, const char *dtype,
                                   uint32_t rank, const uint64_t *shape, uint64_t begin,
                                   uint64_t end, bitaxon_error *error)
{
    bitaxon_status status = BITAXON_OK;
    if (header->used > 1)
        status = append_string(header, ",", error);
    if (status == BITAXON_OK)
        status = append_string(header, quoted, error);
    if (status == BITAXON_OK)
        status = append_string(header, ":{\"dtype\":\"", error);
    if (status == BITAXON_OK)
        status = append_string(header, dtype, error);
    if (status == BITAXON_OK)
        status = append_string(header, "\",\"shape\":[", error);
    for (uint32_t i = 0; i < rank && status == BITAXON_OK; i++)
        status = append_number(header, i > 0 ? "," : "", shape[i], error);
    if (status == BITAXON_OK)
        status = append_number(header, "],\"data_offsets\":[", begin, error);
    if (status == BITAXON_OK)
        status = append_number(header, ",", end, error);
    if (status == BITAXON_OK)
        status = append_string(header, "]}", error);
    return status;
}

static bitaxon_status build_header(bxn_st_writer *writer, text *header, bitaxon_error *error)
{
    uint64_t offset = 0, pads = 0;
    bitaxon_status status = append_string(header, "{", error);
    for (uint64_t i = 0; i < writer->meta_count && status == BITAXON_OK; i++) {
        status = append_string(header, i == 0 ? "\"__metadata__\":{" : ",", error);
        if (status == BITAXON_OK)
            status = append_string(header, writer->metas[i].key, error);
        if (status == BITAXON_OK)
            status = append_string(header, ":", error);
        writer->metas[i].offset = 8 + header->used;
        if (status == BITAXON_OK)
            status = append_string(header, writer->metas[i].value, error);
    }
    if (status == BITAXON_OK && writer->meta_count > 0)
        status = append_string(header, "}", error);
    for (uint64_t i = 0; i < writer->count && status == BITAXON_OK; i++) {
        declared *tensor = &writer->tensors[i];
        uint64_t past = offset & (writer->align - 1), pad = past > 0 ? writer->align - past : 0;
        uint64_t end;
        if (writer->align > 8 && pad > 0 && tensor->bytes > 0) {
            char name[48];
            snprintf(name, sizeof name, "\"" BXN_PAD_PREFIX "%" PRIu64 "\"", pads++);
            tensor->pad = pad;
            status = append_entry(header, name, "U8", 1, &pad, offset, offset + pad, error);
            if (status != BITAXON_OK)
                return status;
            offset += pad;
        }
        if (!bxn_add_u64(offset, tensor->bytes, &end) || end > INT64_MAX / 2)
            return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "more data than a file can hold: %s",
                            writer->path);
        status = append_entry(header, tensor->quoted, bxn_dtype_name(tensor->dtype), tensor->rank,
                              tensor->shape, offset, end, error);
        offset = end;
    }
    if (status == BITAXON_OK)
        status = append_string(header, "}", error);
    while (status == BITAXON_OK && (8 + header->used) % writer->align != 0)
        status = append_string(header, " ", error);
    if (status == BITAXON_OK &&
        (header->used > BXN_MAX_HEADER_BYTES || writer->count + pads > BXN_MAX_TENSORS))
        status =
            bxn_fail(error, BITAXON_LIMIT,
                     "a header of %zu bytes, %" PRIu64 " tensors; the limits are %u and %u: %s",
                     header->used, writer->count + pads, BXN_MAX_HEADER_BYTES, BXN_MAX_TENSORS,
                     writer->path);
    return status;
}

/* Go on to the next tensor that has bytes, over the zeros before it. */
static bitaxon_status advance(bxn_st_writer *writer, bitaxon_error *error)
{
    static const uint8_t zeros[4096];
    bitaxon_status status = BITAXON_OK;
    while (writer->left == 0 && writer->current < writer->count && status == BITAXON_OK) {
        writer->current++;
        if (writer->current == writer->count)
            break;
        writer->left = writer->tensors[writer->current].bytes;
        for (uint64_t pad = writer->tensors[writer->current].pad;
             pad > 0 && status == BITAXON_OK;) {
            size_t piece = pad < sizeof zeros ? (size_t)pad : sizeof zeros;
            status = bxn_writer_put(writer->file, zeros, piece, error);
            pad -= piece;
        }
    }
    return status;
}

bitaxon_status bxn_st_begin(bxn_st_writer *writer, bitaxon_error *error)
{
    text header = {writer->mem, NULL, 0, 0};
    uint8_t prefix[8];
    bitaxon_status status = check_open(writer, false, error);
    if (status == BITAXON_OK)
        status = check_unique(writer, true, error);
    if (status == BITAXON_OK)
        status = check_unique(writer, false, error);
    if (status == BITAXON_OK)
        status = build_header(writer, &header, error);
    if (status == BITAXON_OK)
        status = bxn_writer_open(writer->mem, writer->path, &writer->file, error);
    if (status == BITAXON_OK) {
        for (int i = 0; i < 8; i++)
            prefix[i] = (uint8_t)((uint64_t)header.used >> 8 * i);
        status = bxn_writer_put(writer->file, prefix, sizeof prefix, error);
    }
    if (status == BITAXON_OK)
        status = bxn_writer_put(writer->file, header.data, header.used, error);
    bxn_free(writer->mem, header.data, header.capacity);
    if (status != BITAXON_OK)
        return status;
    writer->begun = true;
    if (writer->count > 0) {
        writer->left = writer->tensors[0].bytes;
        status = advance(writer, error);
    }
    return status;
}

bitaxon_status bxn_st_put(bxn_st_writer *writer, const void *data, size_t bytes,
                          bitaxon_error *error)
{
    const uint8_t *from = data;
    bitaxon_status status = check_open(writer, true, error);
    while (bytes > 0 && status == BITAXON_OK) {
        if (writer->left == 0)
            return bxn_fail(error, BITAXON_INTERNAL, "%zu bytes more than declared: %s", bytes,
                            writer->path);
        size_t piece = bytes < writer->left ? bytes : (size_t)writer->left;
        status = bxn_writer_put(writer->file, from, piece, error);
        writer->left -= piece;
        from += piece;
        bytes -= piece;
        if (status == BITAXON_OK)
            status = advance(writer, error);
    }
    return status;
}

bitaxon_status bxn_st_patch_meta(bxn_st_writer *writer, const char *key, const char *value,
                                 bitaxon_error *error)
{
    char *quoted_key = NULL, *quoted = NULL;
    bitaxon_status status = check_open(writer, true, error);
    if (status == BITAXON_OK)
        status = quote(writer->mem, key, &quoted_key, error);
    if (status == BITAXON_OK)
        status = quote(writer->mem, value, &quoted, error);
    for (uint64_t i = 0; status == BITAXON_OK; i++) {
        if (i == writer->meta_count) {
            status = bxn_fail(error, BITAXON_INTERNAL, "no metadata %.96s to patch: %s", key,
                              writer->path);
        } else if (strcmp(writer->metas[i].key, quoted_key) == 0) {
            size_t bytes = strlen(quoted);
            if (bytes != strlen(writer->metas[i].value))
                status = bxn_fail(error, BITAXON_INTERNAL, "metadata %.96s changes its length: %s",
                                  key, writer->path);
            else
                status =
                    bxn_writer_patch(writer->file, writer->metas[i].offset, quoted, bytes, error);
            break;
        }
    }
    free_text(writer->mem, quoted_key);
    free_text(writer->mem, quoted);
    return status;
}

static void release(bxn_st_writer *writer)
{
    bxn_mem *mem = writer->mem;
    for (uint64_t i = 0; i < writer->count; i++)
        free_text(mem, writer->tensors[i].quoted);
    for (uint64_t i = 0; i < writer->meta_count; i++) {
        free_text(mem, writer->metas[i].key);
        free_text(mem, writer->metas[i].value);
    }
    bxn_free(mem, writer->tensors, (size_t)writer->capacity * sizeof(declared));
    bxn_free(mem, writer->metas, (size_t)writer->meta_capacity * sizeof(meta));
    free_text(mem, writer->path);
    bxn_free(mem, writer, sizeof *writer);
}

bitaxon_status bxn_st_commit(bxn_st_writer *writer, bitaxon_error *error)
{
    bitaxon_status status = check_open(writer, true, error);
    if (status == BITAXON_OK && writer->current < writer->count)
        status = bxn_fail(error, BITAXON_INTERNAL, "tensor %.96s lacks %" PRIu64 " bytes: %s",
                          writer->tensors[writer->current].quoted, writer->left, writer->path);
    if (status != BITAXON_OK) {
        bxn_st_abort(writer);
        return status;
    }
    status = bxn_writer_commit(writer->file, error);
    release(writer);
    return status;
}

void bxn_st_abort(bxn_st_writer *writer)
{
    if (writer == NULL)
        return;
    bxn_writer_abort(writer->file);
    release(writer);
}
