/* SPDX-License-Identifier: Apache-2.0 */
/* load.c - vectors, float matrices and packed matrices: what is used in place or copied
 * as it is. Quantised forms that need repacking are in load_quantised.c. */
#include "import/load.h"
#include "import/load_internal.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct bxn_block {
    struct bxn_block *next;
    size_t bytes; /* this header included */
};
#define BLOCK_HEADER bxn_round_up(sizeof(struct bxn_block), BXN_ALIGN)

bitaxon_status bxn_loader_init(bxn_loader *loader, bxn_mem *mem, const bxn_tensors *tensors,
                               bool plan, bxn_pool *pool, bxn_progress *progress,
                               bxn_loaded *loaded, bitaxon_error *error)
{
    memset(loader, 0, sizeof *loader);
    memset(loaded, 0, sizeof *loaded);
    loader->mem = mem;
    loader->tensors = tensors;
    loader->plan = plan;
    loader->pool = pool;
    loader->progress = progress;
    loader->loaded = loaded;
    loader->error = error;
    uint64_t total = 0, codes = 0;
    for (uint64_t i = 0; i < tensors->count; i++) {
        const bxn_tensor *tensor = &tensors->items[i];
        total += tensor->bytes; /* each within its file: no overflow */
        if ((tensor->dtype == BXN_U32 || tensor->dtype == BXN_U8) && strstr(tensor->name, ".packed.") == NULL)
            codes += tensor->bytes;
    }
    loader->repacks = codes > total / 2;
    if (progress != NULL)
        progress->total = total;
    void *memory;
    bitaxon_status status = bxn_calloc(mem, tensors->count, "tensor marks", &memory, error);
    loader->seen = memory;
    return status;
}

void bxn_loader_done(bxn_loader *loader)
{
    if (loader->seen != NULL)
        bxn_free(loader->mem, loader->seen, loader->tensors->count);
    loader->seen = NULL;
}

void bxn_loader_transient(bxn_loader *loader, uint64_t bytes)
{
    bxn_loaded *loaded = loader->loaded;
    uint64_t peak = loaded->private_bytes + bxn_alloc_cost(loader->tensors->count) + bytes; /* with the marks */
    if (peak > loaded->peak_bytes)
        loaded->peak_bytes = peak;
}

bitaxon_status bxn_loader_alloc_raw(bxn_loader *loader, size_t bytes, const char *what, void **out)
{
    *out = NULL;
    size_t total;
    if (__builtin_add_overflow(bytes, BLOCK_HEADER, &total))
        return bxn_fail(loader->error, BITAXON_LIMIT, "%s: size overflows", what);
    if (!loader->plan) {
        void *memory;
        bitaxon_status status = bxn_alloc(loader->mem, total, what, &memory, loader->error);
        if (status != BITAXON_OK)
            return status;
        struct bxn_block *block = memory;
        block->bytes = total;
        block->next = loader->loaded->blocks;
        loader->loaded->blocks = block;
        *out = (char *)memory + BLOCK_HEADER;
    }
    loader->loaded->private_bytes += bxn_alloc_cost(total);
    bxn_loader_transient(loader, 0);
    return BITAXON_OK;
}

bitaxon_status bxn_loader_alloc(bxn_loader *loader, size_t bytes, const char *what, void **out)
{
    bitaxon_status status = bxn_loader_alloc_raw(loader, bytes, what, out);
    if (*out != NULL)
        memset(*out, 0, bytes);
    return status;
}

void bxn_import_free(bxn_mem *mem, bxn_model *model, bxn_loaded *loaded)
{
    while (loaded->blocks != NULL) {
        struct bxn_block *block = loaded->blocks;
        loaded->blocks = block->next;
        bxn_free(mem, block, block->bytes);
    }
    if (loaded->stored != NULL)
        bxn_free(mem, loaded->stored, loaded->stored_capacity * sizeof *loaded->stored);
    loaded->stored = NULL;
    model->sublayers = NULL;
    model->sublayer_count = 0;
}

const bxn_tensor *bxn_loader_find(bxn_loader *loader, const char *prefix, const char *suffix)
{
    char name[BXN_MAX_NAME];
    int n = snprintf(name, sizeof name, "%s%s", prefix, suffix);
    if (n < 0 || (size_t)n >= sizeof name)
        return NULL;
    const bxn_tensor *tensor = bxn_tensors_find(loader->tensors, name);
    if (tensor != NULL)
        loader->seen[tensor - loader->tensors->items] = 1;
    return tensor;
}

const bxn_tensor *bxn_loader_find_packed(bxn_loader *loader, const char *prefix)
{
    char start[BXN_MAX_NAME];
    int n = snprintf(start, sizeof start, "%s.packed.", prefix);
    if (n < 0 || (size_t)n >= sizeof start)
        return NULL;
    uint64_t low = 0, high = loader->tensors->count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (strcmp(loader->tensors->items[middle].name, start) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == loader->tensors->count || strncmp(loader->tensors->items[low].name, start, (size_t)n) != 0)
        return NULL;
    loader->seen[low] = 1;
    return &loader->tensors->items[low];
}

bitaxon_status bxn_loader_advance(bxn_loader *loader, uint64_t bytes, const char *item)
{
    loader->done += bytes;
    if (loader->progress == NULL || loader->plan)
        return BITAXON_OK;
    return bxn_progress_step(loader->progress, loader->done, item, loader->error);
}

/* "[4, 64, 8]" for messages. */
static const char *shape_text(const bxn_tensor *tensor, char *buffer, size_t capacity)
{
    size_t used = 0;
    buffer[0] = '\0';
    for (uint32_t i = 0; i < tensor->rank && used + 24 < capacity; i++)
        used += (size_t)snprintf(buffer + used, capacity - used, "%s%llu", i == 0 ? "[" : ", ",
                                 (unsigned long long)tensor->shape[i]);
    snprintf(buffer + used, capacity - used, tensor->rank == 0 ? "[]" : "]");
    return buffer;
}

bitaxon_status bxn_loader_misshapen(bxn_loader *loader, const bxn_tensor *tensor, const char *expected)
{
    char shape[160];
    return bxn_fail(loader->error, BITAXON_FORMAT, "tensor %s: expected %s, found %s %s", tensor->name,
                    expected, bxn_dtype_name(tensor->dtype), shape_text(tensor, shape, sizeof shape));
}

bitaxon_status bxn_loader_missing(bxn_loader *loader, const char *name)
{
    return bxn_fail(loader->error, BITAXON_FORMAT, "%s: tensor %s is missing",
                    loader->tensors->bundle->where, name);
}

bitaxon_status bxn_loader_note(bxn_loader *loader, const char *name, const char *format, const char *dtype,
                               uint32_t rank, const uint64_t *shape, uint64_t bytes, bool mapped)
{
    bxn_loaded *loaded = loader->loaded;
    if (mapped)
        loaded->mapped_bytes += bytes;
    if (loaded->stored_capacity == 0) { /* at most one entry per tensor of the files */
        loaded->stored_capacity = loader->tensors->count;
        loaded->private_bytes += bxn_alloc_cost(loaded->stored_capacity * sizeof *loaded->stored);
        if (!loader->plan) {
            void *memory;
            bitaxon_status status = bxn_calloc(loader->mem, loaded->stored_capacity * sizeof *loaded->stored,
                                               "tensor table", &memory, loader->error);
            if (status != BITAXON_OK)
                return status;
            loaded->stored = memory;
        }
    }
    if (loader->plan)
        return BITAXON_OK;
    bxn_stored *entry = &loaded->stored[loaded->stored_count++];
    snprintf(entry->name, sizeof entry->name, "%s", name);
    snprintf(entry->format, sizeof entry->format, "%s", format);
    entry->dtype = dtype;
    entry->rank = rank;
    for (uint32_t i = 0; i < rank && i < 4; i++)
        entry->shape[i] = shape[i];
    entry->bytes = bytes;
    entry->mapped = mapped;
    return BITAXON_OK;
}

static bool is_float(bxn_dtype dtype)
{
    return dtype == BXN_F32 || dtype == BXN_F16 || dtype == BXN_BF16;
}

/* Values of a whole tensor, converted, every one finite. */
static bitaxon_status read_values(bxn_loader *loader, const bxn_tensor *tensor, uint64_t n, float *out)
{
    size_t size = bxn_dtype_size(tensor->dtype);
    char buffer[4096];
    for (uint64_t i = 0; i < n;) {
        size_t count = n - i < sizeof buffer / size ? (size_t)(n - i) : sizeof buffer / size;
        bitaxon_status status = bxn_tensor_read(loader->tensors, tensor, i * size, buffer, count * size, loader->error);
        if (status != BITAXON_OK)
            return status;
        bxn_to_f32(buffer, tensor->dtype, count, out + i);
        for (size_t j = 0; j < count; j++)
            if (!isfinite(out[i + j]))
                return bxn_fail(loader->error, BITAXON_FORMAT, "tensor %s: value %llu is not finite",
                                tensor->name, (unsigned long long)(i + j));
        i += count;
    }
    return BITAXON_OK;
}

static bitaxon_status find_vector(bxn_loader *loader, const char *name, uint64_t n, const bxn_tensor **out)
{
    const bxn_tensor *tensor = bxn_loader_find(loader, name, "");
    if (tensor == NULL)
        return bxn_loader_missing(loader, name);
    uint64_t product = 1;
    for (uint32_t i = 0; i < tensor->rank; i++)
        product *= tensor->shape[i]; /* checked by the reader against the byte count */
    if (product != n || !is_float(tensor->dtype)) {
        char expected[64];
        snprintf(expected, sizeof expected, "%llu float values", (unsigned long long)n);
        return bxn_loader_misshapen(loader, tensor, expected);
    }
    *out = tensor;
    return bxn_loader_note(loader, name, "float", bxn_dtype_name(tensor->dtype), tensor->rank < 4 ? tensor->rank : 4,
                           tensor->shape, tensor->bytes, false);
}

bitaxon_status bxn_load_vector(bxn_loader *loader, const char *name, uint64_t n, uint64_t n16,
                               const float **out)
{
    const bxn_tensor *tensor;
    void *memory;
    *out = NULL;
    bitaxon_status status = find_vector(loader, name, n, &tensor);
    if (status == BITAXON_OK)
        status = bxn_loader_alloc(loader, n16 * sizeof(float), name, &memory);
    if (status != BITAXON_OK || loader->plan)
        return status;
    status = read_values(loader, tensor, n, memory);
    if (status != BITAXON_OK)
        return status;
    *out = memory;
    return bxn_loader_advance(loader, tensor->bytes, name);
}

bitaxon_status bxn_load_temporary(bxn_loader *loader, const char *name, uint64_t n, float **out)
{
    const bxn_tensor *tensor;
    *out = NULL;
    bitaxon_status status = find_vector(loader, name, n, &tensor);
    if (status != BITAXON_OK)
        return status;
    bxn_loader_transient(loader, bxn_alloc_cost(n * sizeof(float)));
    if (loader->plan)
        return BITAXON_OK;
    void *memory;
    status = bxn_alloc(loader->mem, n * sizeof(float), name, &memory, loader->error);
    if (status != BITAXON_OK)
        return status;
    status = read_values(loader, tensor, n, memory);
    if (status == BITAXON_OK)
        status = bxn_loader_advance(loader, tensor->bytes, name);
    if (status != BITAXON_OK) {
        bxn_free(loader->mem, memory, n * sizeof(float));
        return status;
    }
    *out = memory;
    return BITAXON_OK;
}

bitaxon_status bxn_loader_bytes(bxn_loader *loader, const bxn_tensor *tensor, size_t align, const void **out,
                                bool *mapped)
{
    const void *map = bxn_tensor_map(loader->tensors, tensor);
    *mapped = map != NULL && !loader->repacks && ((uintptr_t)map & (align - 1)) == 0;
    if (*mapped) {
        *out = map;
        const char *begin = map, *end = begin + tensor->bytes;
        if (loader->map_begin == NULL) {
            loader->map_begin = begin;
            loader->map_end = end;
            loader->map_file = tensor->file;
        } else if (tensor->file == loader->map_file) {
            loader->map_begin = begin < loader->map_begin ? begin : loader->map_begin;
            loader->map_end = end > loader->map_end ? end : loader->map_end;
        }
        return bxn_loader_advance(loader, tensor->bytes, tensor->name);
    }
    void *memory;
    bitaxon_status status = bxn_loader_alloc_raw(loader, tensor->bytes, tensor->name, &memory);
    *out = memory;
    if (status != BITAXON_OK || loader->plan)
        return status;
    for (uint64_t at = 0; at < tensor->bytes && status == BITAXON_OK;) {
        size_t n = tensor->bytes - at < LOAD_PIECE ? (size_t)(tensor->bytes - at) : LOAD_PIECE;
        status = bxn_tensor_read(loader->tensors, tensor, at, (char *)memory + at, n, loader->error);
        if (status == BITAXON_OK)
            status = bxn_loader_advance(loader, n, tensor->name);
        at += n;
    }
    return status;
}

/* A float matrix or stack, used in place when the file is mapped (any alignment). */
static bitaxon_status load_dense(bxn_loader *loader, const bxn_tensor *tensor, const char *prefix,
                                 uint32_t count, uint32_t rows, uint32_t cols, bool stack, bxn_weight *out)
{
    uint64_t shape[3] = { count, rows, cols };
    const uint64_t *expected = stack ? shape : shape + 1;
    uint32_t rank = stack ? 3 : 2;
    bool fits = tensor->rank == rank;
    for (uint32_t i = 0; fits && i < rank; i++)
        fits = tensor->shape[i] == expected[i];
    if (!fits) {
        char text[96];
        if (stack)
            snprintf(text, sizeof text, "[%u, %u, %u] of a float type or its codes", count, rows, cols);
        else
            snprintf(text, sizeof text, "[%u, %u] of a float type or its codes", rows, cols);
        return bxn_loader_misshapen(loader, tensor, text);
    }
    const void *data;
    bool mapped;
    bitaxon_status status = bxn_loader_bytes(loader, tensor, 1, &data, &mapped);
    if (status == BITAXON_OK)
        status = bxn_loader_note(loader, prefix, "float", bxn_dtype_name(tensor->dtype), rank, expected, tensor->bytes,
                                 mapped);
    size_t matrix = (size_t)rows * cols * bxn_dtype_size(tensor->dtype);
    for (uint32_t i = 0; i < count && status == BITAXON_OK && out != NULL; i++) {
        out[i].kind = BXN_WEIGHT_DENSE;
        out[i].rows = rows;
        out[i].cols = cols;
        out[i].dense = (bxn_dense){ data != NULL ? (const char *)data + i * matrix : NULL, tensor->dtype, rows, cols };
    }
    return status;
}

/* A matrix or stack in the kernels' layout, used in place when mapped and aligned. */
static bitaxon_status load_packed(bxn_loader *loader, const bxn_tensor *tensor, const char *prefix,
                                  uint32_t count, uint32_t rows, uint32_t cols, bool stack, bxn_weight *out)
{
    const char *suffix = tensor->name + strlen(prefix) + strlen(".packed.");
    char kind;
    uint32_t bits, group;
    bool scale_f32;
    if (!bxn_packed_parse(suffix, &kind, &bits, &group, &scale_f32))
        return bxn_fail(loader->error, BITAXON_UNSUPPORTED, "tensor %s: unknown packed form", tensor->name);
    bxn_packed packed;
    bitaxon_status status = bxn_packed_describe(rows, cols, kind, bits, group, scale_f32, &packed, loader->error);
    if (status != BITAXON_OK)
        return status;
    uint64_t shape[4] = { count, packed.row_groups, packed.k_units, packed.unit_bytes };
    const uint64_t *expected = stack ? shape : shape + 1;
    uint32_t rank = stack ? 4 : 3;
    bool fits = tensor->rank == rank && tensor->dtype == BXN_U8;
    for (uint32_t i = 0; fits && i < rank; i++)
        fits = tensor->shape[i] == expected[i];
    if (!fits) {
        char text[96];
        snprintf(text, sizeof text, "U8 [%s%u, %u, %u] of a [%u, %u] weight", stack ? "experts, " : "",
                 packed.row_groups, packed.k_units, packed.unit_bytes, rows, cols);
        return bxn_loader_misshapen(loader, tensor, text);
    }
    const void *data;
    bool mapped;
    status = bxn_loader_bytes(loader, tensor, BXN_ALIGN, &data, &mapped);
    char format[40];
    snprintf(format, sizeof format, "packed %s%u g%u", kind == 'a' ? "affine" : "nf", bits, group);
    uint64_t logical[3] = { count, rows, cols };
    if (status == BITAXON_OK)
        status = bxn_loader_note(loader, prefix, format, scale_f32 ? "F32" : "F16", stack ? 3 : 2,
                                 stack ? logical : logical + 1, tensor->bytes, mapped);
    uint64_t matrix = bxn_packed_bytes(&packed);
    for (uint32_t i = 0; i < count && status == BITAXON_OK && out != NULL; i++) {
        out[i].kind = BXN_WEIGHT_PACKED;
        out[i].rows = rows;
        out[i].cols = cols;
        out[i].packed = packed;
        out[i].packed.data = data != NULL ? (const uint8_t *)data + i * matrix : NULL;
    }
    return status;
}

/* out == NULL: plan mode of a stack. */
static bitaxon_status load_any(bxn_loader *loader, const char *prefix, uint32_t count, uint32_t rows,
                               uint32_t cols, bool stack, bxn_weight *out)
{
    const bxn_tensor *packed = bxn_loader_find_packed(loader, prefix);
    loader->loaded->quantised |= packed != NULL;
    if (packed != NULL)
        return load_packed(loader, packed, prefix, count, rows, cols, stack, out);
    const bxn_tensor *tensor = bxn_loader_find(loader, prefix, ".weight");
    if (tensor == NULL) {
        char name[BXN_MAX_NAME];
        snprintf(name, sizeof name, "%s.weight", prefix);
        return bxn_loader_missing(loader, name);
    }
    loader->loaded->quantised |= tensor->dtype == BXN_U32 || tensor->dtype == BXN_U8;
    if (tensor->dtype == BXN_U32 || tensor->dtype == BXN_U8)
        return bxn_load_quantised(loader, tensor, prefix, count, rows, cols, stack, out);
    if (!is_float(tensor->dtype))
        return bxn_loader_misshapen(loader, tensor, "F32, F16, BF16, or U32 or U8 codes");
    return load_dense(loader, tensor, prefix, count, rows, cols, stack, out);
}

bitaxon_status bxn_load_weight(bxn_loader *loader, const char *prefix, uint32_t rows, uint32_t cols,
                               bxn_weight *out)
{
    memset(out, 0, sizeof *out);
    return load_any(loader, prefix, 1, rows, cols, false, out);
}

bitaxon_status bxn_load_stack(bxn_loader *loader, const char *prefix, uint32_t count, uint32_t rows,
                              uint32_t cols, const bxn_weight **out)
{
    void *memory;
    *out = NULL;
    bitaxon_status status = bxn_loader_alloc(loader, count * sizeof(bxn_weight), prefix, &memory);
    if (status == BITAXON_OK)
        status = load_any(loader, prefix, count, rows, cols, true, memory);
    *out = memory;
    return status;
}

bool bxn_load_has(const bxn_loader *loader, const char *prefix)
{
    bxn_loader look = *loader;
    char name[BXN_MAX_NAME];
    snprintf(name, sizeof name, "%s.weight", prefix);
    return bxn_tensors_find(loader->tensors, name) != NULL || bxn_loader_find_packed(&look, prefix) != NULL;
}

void bxn_load_ignore(bxn_loader *loader, const char *prefix)
{
    for (uint64_t i = 0; i < loader->tensors->count; i++)
        if (strncmp(loader->tensors->items[i].name, prefix, strlen(prefix)) == 0)
            loader->seen[i] = 1;
}

bitaxon_status bxn_load_finish(bxn_loader *loader)
{
    for (uint64_t i = 0; i < loader->tensors->count; i++)
        if (!loader->seen[i])
            return bxn_fail(loader->error, BITAXON_FORMAT,
                            "%s: tensor %s does not belong to a model of this configuration",
                            loader->tensors->bundle->where, loader->tensors->items[i].name);
    return BITAXON_OK;
}
