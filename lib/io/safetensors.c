/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors.c - the table of all tensors of a bundle, from the headers of its files:
 *
 *     u64 header length | JSON header | data
 *
 * Called by importers and conversions. After bxn_tensors_open every tensor's bytes are known
 * to lie inside its file and not to overlap another's; nothing of the data has been read.
 * Every count and offset is an integer checked against the file's size first. */
#include "io/io.h"

#include <string.h>

#define INDEX_NAME "model.safetensors.index.json"

static const struct {
    const char *name;
    size_t size;
} dtypes[BXN_DTYPE_COUNT] = {
    [BXN_F32] = {"F32", 4},   [BXN_F16] = {"F16", 2}, [BXN_BF16] = {"BF16", 2},
    [BXN_U8] = {"U8", 1},     [BXN_I8] = {"I8", 1},   [BXN_U16] = {"U16", 2},
    [BXN_I16] = {"I16", 2},   [BXN_U32] = {"U32", 4}, [BXN_I32] = {"I32", 4},
    [BXN_U64] = {"U64", 8},   [BXN_I64] = {"I64", 8}, [BXN_F64] = {"F64", 8},
    [BXN_BOOL] = {"BOOL", 1},
};

size_t bxn_dtype_size(bxn_dtype dtype)
{
    return (unsigned)dtype < BXN_DTYPE_COUNT ? dtypes[dtype].size : 0;
}

const char *bxn_dtype_name(bxn_dtype dtype)
{
    return (unsigned)dtype < BXN_DTYPE_COUNT ? dtypes[dtype].name : "unknown";
}

/* One entry of a file's __metadata__. */
typedef struct pair {
    char *key, *value;
    uint32_t file;
} pair;

/* What is gathered while the files are read. */
typedef struct gathering {
    bxn_tensors *tensors;
    pair *pairs;
    uint64_t pair_count, pair_capacity;
    const json_t *places; /* weight_map of the index, or NULL */
} gathering;

static void free_text(bxn_mem *mem, char *text)
{
    if (text != NULL)
        bxn_free(mem, text, strlen(text) + 1);
}

/* Make room for `more` items after `count`. */
static bitaxon_status reserve(bxn_mem *mem, void **items, size_t size, uint64_t count,
                              uint64_t more, uint64_t *capacity, bitaxon_error *error)
{
    uint64_t need, bytes;
    if (!bxn_add_u64(count, more, &need) || !bxn_mul_u64(need, size, &bytes) || bytes > SIZE_MAX)
        return bxn_fail(error, BITAXON_OUT_OF_MEMORY, "out of memory: %llu table entries",
                        (unsigned long long)more);
    if (need <= *capacity)
        return BITAXON_OK;
    bitaxon_status status =
        bxn_realloc(mem, items, (size_t)(*capacity * size), (size_t)bytes, "tensor table", error);
    if (status == BITAXON_OK)
        *capacity = need;
    return status;
}

/* ---- one entry --------------------------------------------------------------- */

/* A count or an offset: an integer that is not negative. */
static bool get_count(const json_t *value, uint64_t *out)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return false;
    *out = (uint64_t)json_integer_value(value);
    return true;
}

static bitaxon_status read_dtype(const char *file, const char *name, const json_t *value,
                                 bxn_dtype *out, bitaxon_error *error)
{
    const char *text = json_string_value(value);
    if (text == NULL)
        return bxn_fail(error, BITAXON_FORMAT, "%.64s: tensor %.96s: no dtype", file, name);
    for (int i = 0; i < BXN_DTYPE_COUNT; i++)
        if (strcmp(text, dtypes[i].name) == 0) {
            *out = (bxn_dtype)i;
            return BITAXON_OK;
        }
    return bxn_fail(error, BITAXON_UNSUPPORTED, "%.64s: tensor %.96s: unknown dtype '%.32s'", file,
                    name, text);
}

/* Shape and the bytes it gives. Dimensions of 0 are left out of the overflow check's product,
 * so that later code may multiply any of them. */
static bitaxon_status read_shape(const char *file, const char *name, const json_t *value,
                                 bxn_tensor *out, bitaxon_error *error)
{
    size_t rank = json_array_size(value);
    uint64_t bytes = bxn_dtype_size(out->dtype);
    bool empty = false;
    if (!json_is_array(value) || rank > BXN_MAX_RANK)
        return bxn_fail(error, BITAXON_FORMAT,
                        "%.64s: tensor %.96s: shape is not a list of at most %u numbers", file,
                        name, BXN_MAX_RANK);
    out->rank = (uint32_t)rank;
    for (size_t i = 0; i < rank; i++) {
        if (!get_count(json_array_get(value, i), &out->shape[i]))
            return bxn_fail(error, BITAXON_FORMAT,
                            "%.64s: tensor %.96s: dimension %zu of the shape is not a whole "
                            "number from 0",
                            file, name, i);
        if (out->shape[i] == 0)
            empty = true;
        else if (!bxn_mul_u64(bytes, out->shape[i], &bytes))
            return bxn_fail(error, BITAXON_FORMAT, "%.64s: tensor %.96s: the shape overflows", file,
                            name);
    }
    out->bytes = empty ? 0 : bytes;
    return BITAXON_OK;
}

static bitaxon_status read_offsets(const char *file, const char *name, const json_t *value,
                                   uint64_t data_start, uint64_t data_bytes, bxn_tensor *out,
                                   bitaxon_error *error)
{
    uint64_t begin, end;
    if (!json_is_array(value) || json_array_size(value) != 2 ||
        !get_count(json_array_get(value, 0), &begin) || !get_count(json_array_get(value, 1), &end))
        return bxn_fail(error, BITAXON_FORMAT,
                        "%.64s: tensor %.96s: data_offsets are not two whole numbers from 0", file,
                        name);
    if (begin > end || end > data_bytes)
        return bxn_fail(error, BITAXON_FORMAT,
                        "%.64s: tensor %.96s: data_offsets [%llu, %llu] are not inside the data "
                        "(%llu bytes)",
                        file, name, (unsigned long long)begin, (unsigned long long)end,
                        (unsigned long long)data_bytes);
    if (end - begin != out->bytes)
        return bxn_fail(error, BITAXON_FORMAT,
                        "%.64s: tensor %.96s: %llu bytes of data, %s and its shape make %llu", file,
                        name, (unsigned long long)(end - begin), bxn_dtype_name(out->dtype),
                        (unsigned long long)out->bytes);
    out->offset = data_start + begin;
    return BITAXON_OK;
}

static bitaxon_status add_tensor(gathering *g, uint32_t file_index, const char *name,
                                 size_t name_bytes, const json_t *entry, uint64_t data_start,
                                 uint64_t data_bytes, bitaxon_error *error)
{
    bxn_tensors *tensors = g->tensors;
    const char *file = tensors->bundle->files[file_index].name;
    bxn_tensor tensor = {0};
    bitaxon_status status;

    if (name_bytes == 0 || name_bytes >= BXN_MAX_NAME)
        return bxn_fail(error, BITAXON_FORMAT,
                        "%.64s: tensor %.96s: a name of %zu bytes, expected 1 to %u", file, name,
                        name_bytes, BXN_MAX_NAME - 1);
    if (!json_is_object(entry))
        return bxn_fail(error, BITAXON_FORMAT, "%.64s: tensor %.96s: its entry is not an object",
                        file, name);
    tensor.file = file_index;
    status = read_dtype(file, name, json_object_get(entry, "dtype"), &tensor.dtype, error);
    if (status != BITAXON_OK)
        return status;
    status = read_shape(file, name, json_object_get(entry, "shape"), &tensor, error);
    if (status != BITAXON_OK)
        return status;
    status = read_offsets(file, name, json_object_get(entry, "data_offsets"), data_start,
                          data_bytes, &tensor, error);
    if (status != BITAXON_OK)
        return status;
    status =
        bxn_copy_text(tensors->bundle->mem, name, name_bytes, "tensor name", &tensor.name, error);
    if (status == BITAXON_OK)
        tensors->items[tensors->count++] = tensor;
    return status;
}

static bitaxon_status add_metadata(gathering *g, uint32_t file_index, json_t *metadata,
                                   bitaxon_error *error)
{
    bxn_mem *mem = g->tensors->bundle->mem;
    const char *file = g->tensors->bundle->files[file_index].name, *key;
    size_t key_bytes;
    json_t *value;
    bitaxon_status status;

    if (json_is_null(metadata))
        return BITAXON_OK;
    if (!json_is_object(metadata))
        return bxn_fail(error, BITAXON_FORMAT,
                        "%.64s: __metadata__ is neither null nor an object of strings", file);
    void *pairs = g->pairs;
    status = reserve(mem, &pairs, sizeof *g->pairs, g->pair_count, json_object_size(metadata),
                     &g->pair_capacity, error);
    g->pairs = pairs;
    if (status != BITAXON_OK)
        return status;
    json_object_keylen_foreach(metadata, key, key_bytes, value)
    {
        pair *at = &g->pairs[g->pair_count];
        if (!json_is_string(value))
            return bxn_fail(error, BITAXON_FORMAT, "%.64s: __metadata__: %.96s is not a string",
                            file, key);
        *at = (pair){NULL, NULL, file_index};
        g->pair_count++;
        status = bxn_copy_text(mem, key, key_bytes, "metadata", &at->key, error);
        if (status == BITAXON_OK)
            status = bxn_copy_text(mem, json_string_value(value), json_string_length(value),
                                   "metadata", &at->value, error);
        if (status != BITAXON_OK)
            return status;
    }
    return BITAXON_OK;
}

/* ---- one file ------------------------------------------------------------------ */

static int by_offset(const void *left, const void *right)
{
    const bxn_tensor *a = left, *b = right;
    return a->offset != b->offset ? (a->offset < b->offset ? -1 : 1)
                                  : (a->bytes > b->bytes) - (a->bytes < b->bytes);
}

/* Of the tensors from `first` on, which are those of one file; leaves them sorted by offset. */
static bitaxon_status check_overlap(const char *file, bxn_tensors *tensors, uint64_t first,
                                    bitaxon_error *error)
{
    const bxn_tensor *last = NULL;
    if (first == tensors->count)
        return BITAXON_OK;
    bxn_sort(tensors->items + first, tensors->count - first, sizeof *tensors->items, by_offset);
    for (uint64_t i = first; i < tensors->count; i++) {
        const bxn_tensor *tensor = &tensors->items[i];
        if (tensor->bytes == 0)
            continue;
        if (last != NULL && last->offset + last->bytes > tensor->offset)
            return bxn_fail(error, BITAXON_FORMAT,
                            "%.48s: tensors %.64s and %.64s overlap at offset %llu", file,
                            last->name, tensor->name, (unsigned long long)tensor->offset);
        last = tensor;
    }
    return BITAXON_OK;
}

/* Drop padding tensors and, with an index, tensors that it places in another file. */
static void drop_unwanted(gathering *g, uint32_t file_index, uint64_t first)
{
    bxn_tensors *tensors = g->tensors;
    bxn_mem *mem = tensors->bundle->mem;
    const char *file = tensors->bundle->files[file_index].name;
    uint64_t kept = first, misplaced = 0, unlisted = 0;
    for (uint64_t i = first; i < tensors->count; i++) {
        bxn_tensor *tensor = &tensors->items[i];
        bool drop = strncmp(tensor->name, BXN_PAD_PREFIX, strlen(BXN_PAD_PREFIX)) == 0;
        if (!drop && g->places != NULL) {
            const char *place = json_string_value(json_object_get(g->places, tensor->name));
            unlisted += place == NULL;
            if (place != NULL && strcmp(place, file) != 0) {
                drop = true;
                misplaced++;
            }
        }
        if (drop)
            free_text(mem, tensor->name);
        else
            tensors->items[kept++] = *tensor;
    }
    tensors->count = kept;
    if (misplaced > 0)
        bxn_log(mem, BITAXON_LOG_WARNING,
                "%.96s: %llu tensors are left out, the index places them in other files", file,
                (unsigned long long)misplaced);
    if (unlisted > 0)
        bxn_log(mem, BITAXON_LOG_INFO, "%.96s: %llu tensors are not in the index", file,
                (unsigned long long)unlisted);
}

static bitaxon_status read_header(gathering *g, uint32_t file_index, bitaxon_error *error)
{
    bxn_tensors *tensors = g->tensors;
    bxn_bundle *bundle = tensors->bundle;
    bxn_file *file = &bundle->files[file_index];
    uint64_t size = file->source.size, length = 0, first = tensors->count;
    uint8_t prefix[8];
    bxn_json header = {0};
    void *text = NULL;
    const char *name;
    size_t name_bytes;
    json_t *entry;
    bitaxon_status status;

    if (size < sizeof prefix)
        return bxn_fail(error, BITAXON_FORMAT,
                        "%.96s: %llu bytes are too few for a safetensors file", file->name,
                        (unsigned long long)size);
    status = bxn_file_read(bundle, file, 0, prefix, sizeof prefix, error);
    if (status != BITAXON_OK)
        return status;
    for (int i = 7; i >= 0; i--)
        length = length << 8 | prefix[i];
    if (length == 0 || length > size - sizeof prefix || length > BXN_MAX_HEADER_BYTES)
        return bxn_fail(error, BITAXON_FORMAT,
                        "%.96s: header length %llu at offset 0, expected 1 to %llu", file->name,
                        (unsigned long long)length,
                        (unsigned long long)(size - sizeof prefix < BXN_MAX_HEADER_BYTES
                                                 ? size - sizeof prefix
                                                 : BXN_MAX_HEADER_BYTES));

    status = bxn_alloc(bundle->mem, (size_t)length, "safetensors header", &text, error);
    if (status != BITAXON_OK)
        return status;
    status = bxn_file_read(bundle, file, sizeof prefix, text, (size_t)length, error);
    if (status == BITAXON_OK)
        status = bxn_json_parse(bundle->mem, text, (size_t)length, file->name, &header, error);
    bxn_free(bundle->mem, text, (size_t)length);
    if (status != BITAXON_OK)
        return status;

    if (!json_is_object(header.root)) {
        status = bxn_fail(error, BITAXON_FORMAT, "%.96s: the header is not an object", file->name);
        goto done;
    }
    uint64_t entries =
        json_object_size(header.root) - (json_object_get(header.root, "__metadata__") != NULL);
    if (entries > BXN_MAX_TENSORS || first + entries > BXN_MAX_TENSORS) {
        status = bxn_fail(error, BITAXON_FORMAT, "%.96s: more than %u tensors", file->name,
                          BXN_MAX_TENSORS);
        goto done;
    }
    void *items = tensors->items;
    status = reserve(bundle->mem, &items, sizeof *tensors->items, first, entries,
                     &tensors->capacity, error);
    tensors->items = items;
    if (status != BITAXON_OK)
        goto done;
    uint64_t data_start = sizeof prefix + length;
    json_object_keylen_foreach(header.root, name, name_bytes, entry)
    {
        if (strcmp(name, "__metadata__") == 0)
            status = add_metadata(g, file_index, entry, error);
        else
            status = add_tensor(g, file_index, name, name_bytes, entry, data_start,
                                size - data_start, error);
        if (status != BITAXON_OK)
            goto done;
    }
    status = check_overlap(file->name, tensors, first, error);
    if (status == BITAXON_OK) {
        drop_unwanted(g, file_index, first);
        status = bxn_file_map(bundle, file, error);
    }
done:
    bxn_json_free(&header);
    return status;
}

/* ---- all files ------------------------------------------------------------------ */

static bool is_weights(const char *name)
{
    static const char suffix[] = ".safetensors";
    size_t n = strlen(name), s = sizeof suffix - 1;
    return n > s && strcmp(name + n - s, suffix) == 0;
}

/* Check weight_map and mark the bundle's files that it names in use[]. */
static bitaxon_status read_places(bxn_bundle *bundle, json_t *root, const json_t **places,
                                  bool *use, bitaxon_error *error)
{
    json_t *map = json_is_object(root) ? json_object_get(root, "weight_map") : NULL, *value;
    const char *name;
    if (!json_is_object(map))
        return bxn_fail(error, BITAXON_FORMAT, "%s: no weight_map object", INDEX_NAME);
    if (json_object_size(map) > BXN_MAX_TENSORS)
        return bxn_fail(error, BITAXON_FORMAT, "%s: more than %u tensors", INDEX_NAME,
                        BXN_MAX_TENSORS);
    json_object_foreach(map, name, value)
    {
        const char *place = json_string_value(value);
        if (place == NULL)
            return bxn_fail(error, BITAXON_FORMAT, "%s: the place of %.96s is not a string",
                            INDEX_NAME, name);
        if (strchr(place, '/') != NULL || place[0] == '.' || !is_weights(place) ||
            strlen(place) >= BXN_MAX_NAME)
            return bxn_fail(error, BITAXON_FORMAT,
                            "%s: the place of %.64s is not a plain .safetensors file name: '%.64s'",
                            INDEX_NAME, name, place);
        bxn_file *file = bxn_bundle_find(bundle, place);
        if (file == NULL)
            return bxn_fail(error, BITAXON_IO, "%.64s, the place of tensor %.64s, is missing in %s",
                            place, name, bundle->where);
        use[file - bundle->files] = true;
    }
    *places = map;
    return BITAXON_OK;
}

static bitaxon_status check_places(const bxn_tensors *tensors, json_t *places, bitaxon_error *error)
{
    const char *name;
    json_t *value;
    json_object_foreach(places, name, value)
    {
        const bxn_tensor *tensor = bxn_tensors_find(tensors, name);
        /* A padding tensor may be listed; it is nobody's. */
        if (strncmp(name, BXN_PAD_PREFIX, strlen(BXN_PAD_PREFIX)) == 0)
            continue;
        if (tensor == NULL ||
            strcmp(tensors->bundle->files[tensor->file].name, json_string_value(value)) != 0)
            return bxn_fail(error, BITAXON_FORMAT,
                            "tensor %.96s is not in %.64s, where %s places it", name,
                            json_string_value(value), INDEX_NAME);
    }
    return BITAXON_OK;
}

static int by_name(const void *left, const void *right)
{
    const bxn_tensor *a = left, *b = right;
    int order = strcmp(a->name, b->name);
    return order != 0 ? order : (a->file > b->file) - (a->file < b->file);
}

/* Sort by name; of several of one name the one of the last file stays. */
static void settle_tensors(bxn_tensors *tensors)
{
    bxn_bundle *bundle = tensors->bundle;
    uint64_t kept = 0, overridden = 0;
    bxn_sort(tensors->items, tensors->count, sizeof *tensors->items, by_name);
    for (uint64_t i = 0; i < tensors->count; i++) {
        bxn_tensor *tensor = &tensors->items[i];
        if (kept > 0 && strcmp(tensors->items[kept - 1].name, tensor->name) == 0) {
            bxn_tensor *old = &tensors->items[kept - 1];
            if (++overridden <= 16)
                bxn_log(bundle->mem, BITAXON_LOG_WARNING,
                        "tensor %.128s of %.96s overrides the one of %.96s", tensor->name,
                        bundle->files[tensor->file].name, bundle->files[old->file].name);
            free_text(bundle->mem, old->name);
            *old = *tensor;
        } else {
            tensors->items[kept++] = *tensor;
        }
    }
    tensors->count = kept;
    if (overridden > 16)
        bxn_log(bundle->mem, BITAXON_LOG_WARNING, "%llu more tensors are overridden",
                (unsigned long long)(overridden - 16));
}

static int by_key(const void *left, const void *right)
{
    const pair *a = left, *b = right;
    int order = strcmp(a->key, b->key);
    return order != 0 ? order : (a->file > b->file) - (a->file < b->file);
}

/* Sort by key, keep the value of the last file, hand over to the table. */
static bitaxon_status settle_metadata(gathering *g, bitaxon_error *error)
{
    bxn_tensors *tensors = g->tensors;
    bxn_mem *mem = tensors->bundle->mem;
    uint64_t kept = 0;
    void *keys = NULL, *values = NULL;
    bxn_sort(g->pairs, g->pair_count, sizeof *g->pairs, by_key);
    for (uint64_t i = 0; i < g->pair_count; i++) {
        if (kept > 0 && strcmp(g->pairs[kept - 1].key, g->pairs[i].key) == 0) {
            free_text(mem, g->pairs[kept - 1].key);
            free_text(mem, g->pairs[kept - 1].value);
            g->pairs[kept - 1] = g->pairs[i];
        } else {
            g->pairs[kept++] = g->pairs[i];
        }
    }
    g->pair_count = kept;
    if (kept == 0)
        return BITAXON_OK;
    bitaxon_status status = bxn_alloc(mem, (size_t)kept * sizeof(char *), "metadata", &keys, error);
    if (status == BITAXON_OK)
        status = bxn_alloc(mem, (size_t)kept * sizeof(char *), "metadata", &values, error);
    if (status != BITAXON_OK) {
        bxn_free(mem, keys, (size_t)kept * sizeof(char *));
        return status;
    }
    tensors->keys = keys;
    tensors->values = values;
    tensors->pairs = kept;
    for (uint64_t i = 0; i < kept; i++) {
        tensors->keys[i] = g->pairs[i].key;
        tensors->values[i] = g->pairs[i].value;
    }
    g->pair_count = 0;
    return BITAXON_OK;
}

bitaxon_status bxn_tensors_open(bxn_bundle *bundle, bxn_tensors **out, bitaxon_error *error)
{
    gathering g = {0};
    bxn_json index = {0};
    char *text = NULL;
    size_t text_bytes = 0;
    void *memory = NULL, *use_memory = NULL;
    bool *use = NULL, any = false;
    bitaxon_status status;

    *out = NULL;
    status = bxn_calloc(bundle->mem, sizeof *g.tensors, "tensor table", &memory, error);
    if (status != BITAXON_OK)
        return status;
    g.tensors = memory;
    g.tensors->bundle = bundle;
    status = bxn_calloc(bundle->mem, bundle->count, "file table", &use_memory, error);
    if (status != BITAXON_OK)
        goto done;
    use = use_memory;

    bxn_file *index_file = bxn_bundle_find(bundle, INDEX_NAME);
    if (index_file != NULL) {
        status = bxn_file_text(bundle, index_file, BXN_MAX_JSON_BYTES, &text, &text_bytes, error);
        if (status == BITAXON_OK)
            status = bxn_json_parse(bundle->mem, text, text_bytes, INDEX_NAME, &index, error);
        if (text != NULL)
            bxn_free(bundle->mem, text, text_bytes + 1);
        if (status == BITAXON_OK)
            status = read_places(bundle, index.root, &g.places, use, error);
        if (status != BITAXON_OK)
            goto done;
        any = true;
    } else {
        for (uint32_t i = 0; i < bundle->count; i++) {
            use[i] = is_weights(bundle->files[i].name);
            any = any || use[i];
        }
    }
    if (!any) {
        status = bxn_fail(error, BITAXON_IO, "no .safetensors file in %s", bundle->where);
        goto done;
    }

    for (uint32_t i = 0; i < bundle->count; i++)
        if (use[i]) {
            status = read_header(&g, i, error);
            if (status != BITAXON_OK)
                goto done;
        }
    settle_tensors(g.tensors);
    status = settle_metadata(&g, error);
    if (status == BITAXON_OK && g.places != NULL)
        status = check_places(g.tensors, json_object_get(index.root, "weight_map"), error);

done:
    bxn_json_free(&index);
    for (uint64_t i = 0; i < g.pair_count; i++) {
        free_text(bundle->mem, g.pairs[i].key);
        free_text(bundle->mem, g.pairs[i].value);
    }
    bxn_free(bundle->mem, g.pairs, (size_t)g.pair_capacity * sizeof *g.pairs);
    bxn_free(bundle->mem, use, bundle->count);
    if (status != BITAXON_OK)
        bxn_tensors_free(g.tensors);
    else
        *out = g.tensors;
    return status;
}

void bxn_tensors_free(bxn_tensors *tensors)
{
    if (tensors == NULL)
        return;
    bxn_mem *mem = tensors->bundle->mem;
    for (uint64_t i = 0; i < tensors->count; i++)
        free_text(mem, tensors->items[i].name);
    bxn_free(mem, tensors->items, (size_t)tensors->capacity * sizeof *tensors->items);
    for (uint64_t i = 0; i < tensors->pairs; i++) {
        free_text(mem, tensors->keys[i]);
        free_text(mem, tensors->values[i]);
    }
    bxn_free(mem, tensors->keys, (size_t)tensors->pairs * sizeof(char *));
    bxn_free(mem, tensors->values, (size_t)tensors->pairs * sizeof(char *));
    bxn_free(mem, tensors, sizeof *tensors);
}

/* ---- use --------------------------------------------------------------------------- */

const bxn_tensor *bxn_tensors_find(const bxn_tensors *tensors, const char *name)
{
    uint64_t low = 0, high = tensors->count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        int order = strcmp(name, tensors->items[middle].name);
        if (order == 0)
            return &tensors->items[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

const char *bxn_tensors_meta(const bxn_tensors *tensors, const char *key)
{
    uint64_t low = 0, high = tensors->pairs;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        int order = strcmp(key, tensors->keys[middle]);
        if (order == 0)
            return tensors->values[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

const void *bxn_tensor_map(const bxn_tensors *tensors, const bxn_tensor *tensor)
{
    const uint8_t *map = tensors->bundle->files[tensor->file].map;
    return map != NULL ? map + tensor->offset : NULL;
}

bitaxon_status bxn_tensor_read(const bxn_tensors *tensors, const bxn_tensor *tensor,
                               uint64_t offset, void *buffer, size_t bytes, bitaxon_error *error)
{
    uint64_t end;
    if (!bxn_add_u64(offset, bytes, &end) || end > tensor->bytes)
        return bxn_fail(error, BITAXON_INTERNAL,
                        "tensor %.96s: %zu bytes at %llu asked of %llu bytes", tensor->name, bytes,
                        (unsigned long long)offset, (unsigned long long)tensor->bytes);
    return bxn_file_read(tensors->bundle, &tensors->bundle->files[tensor->file],
                         tensor->offset + offset, buffer, bytes, error);
}
