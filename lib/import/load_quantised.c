/* SPDX-License-Identifier: Apache-2.0 */
/* load_quantised.c - affine triplets (MLX: weight, scales, biases or biases_quant; bits and
 * group size follow from the shapes, spec 2.3) and NF4 (bitsandbytes: U8 codes, absmax,
 * perhaps nested; spec 6.2), repacked into the kernels' layout while loading. Row groups of
 * a piece are repacked in parallel; progress and cancel come between pieces. */
#include "import/load_internal.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct repack {
    bxn_loader *loader;
    const bxn_tensor *weight, *scales, *biases; /* scales, biases: affine */
    const float *absmax;                         /* NF4: one per block of the flattened stack */
    uint32_t block;                              /* NF4: values per absmax */
    uint32_t rows, cols, group;
    uint64_t row_bytes; /* of codes */
    bxn_packed packed;
    /* the piece at work */
    uint32_t matrix, first_group;
    const uint8_t *codes, *scale_bytes, *bias_bytes; /* of the piece's first row */
    uint8_t *scratch;
    size_t scratch_each;
    uint8_t *dst;
} repack;

static void repack_task(void *context, uint32_t index)
{
    const repack *c = context;
    uint32_t first = (c->first_group + index) * BXN_UNIT_ROWS, groups = c->cols / c->group;
    uint32_t rows = c->rows - first < BXN_UNIT_ROWS ? c->rows - first : BXN_UNIT_ROWS;
    uint8_t *codes = c->scratch + index * c->scratch_each;
    float *scales = (float *)(codes + bxn_round_up((size_t)BXN_UNIT_ROWS * c->cols, BXN_ALIGN));
    float *biases = scales + (size_t)BXN_UNIT_ROWS * groups;
    for (uint32_t r = 0; r < rows; r++) {
        size_t row = (size_t)index * BXN_UNIT_ROWS + r; /* of the piece */
        const uint8_t *src = c->codes + row * c->row_bytes;
        uint8_t *dst = codes + (size_t)r * c->cols;
        if (c->absmax != NULL) {
            for (uint32_t k = 0; k < c->cols; k += 2) { /* even element in the high nibble */
                dst[k] = src[k / 2] >> 4;
                dst[k + 1] = src[k / 2] & 15;
            }
            uint64_t flat = ((uint64_t)c->matrix * c->rows + first + r) * c->cols;
            for (uint32_t g = 0; g < groups; g++)
                scales[(size_t)r * groups + g] = c->absmax[(flat + (uint64_t)g * c->group) / c->block];
        } else {
            bxn_affine_unpack_row(src, c->cols, c->packed.source_bits, dst);
            size_t size = bxn_dtype_size(c->scales->dtype);
            bxn_to_f32(c->scale_bytes + row * groups * size, c->scales->dtype, groups, scales + (size_t)r * groups);
            bxn_to_f32(c->bias_bytes + row * groups * size, c->biases->dtype, groups, biases + (size_t)r * groups);
        }
    }
    bxn_packed_write_group(&c->packed, rows, codes, scales, c->absmax != NULL ? NULL : biases,
                           c->dst + (size_t)index * c->packed.k_units * c->packed.unit_bytes);
}

/* Rows [row, row + count) of the flattened stack: in place, or read into *buffer. */
static bitaxon_status fetch_rows(const repack *c, const bxn_tensor *tensor, uint64_t row_bytes, uint64_t row,
                                 uint32_t count, uint8_t **buffer, const uint8_t **out)
{
    const uint8_t *map = bxn_tensor_map(c->loader->tensors, tensor);
    if (map != NULL) {
        *out = map + row * row_bytes;
        return BITAXON_OK;
    }
    *out = *buffer;
    bitaxon_status status = bxn_tensor_read(c->loader->tensors, tensor, row * row_bytes, *buffer,
                                            (size_t)(row_bytes * count), c->loader->error);
    *buffer += bxn_round_up((size_t)(row_bytes * count), BXN_ALIGN);
    return status;
}

static bitaxon_status run_repack(repack *c, uint32_t count, uint8_t *dst)
{
    bxn_loader *loader = c->loader;
    uint32_t groups = c->packed.row_groups, k_groups = c->cols / c->group;
    uint64_t scale_row = c->absmax == NULL ? (uint64_t)k_groups * bxn_dtype_size(c->scales->dtype) : 0;
    uint64_t group_bytes = BXN_UNIT_ROWS * (c->row_bytes + 2 * scale_row);
    uint32_t piece = (uint32_t)(LOAD_PIECE / (group_bytes + 1)) + 1; /* row groups at a time */
    piece = piece < 32 ? piece : 32;
    piece = piece < groups ? piece : groups;
    c->scratch_each = bxn_round_up((size_t)BXN_UNIT_ROWS * c->cols, BXN_ALIGN) +
                      bxn_round_up((size_t)2 * BXN_UNIT_ROWS * k_groups * sizeof(float), BXN_ALIGN);
    bool mapped = bxn_tensor_map(loader->tensors, c->weight) != NULL;
    size_t scratch = piece * c->scratch_each + (mapped ? 0 : (size_t)(piece * group_bytes) + 3 * BXN_ALIGN);
    uint64_t blocks = c->absmax != NULL ? ((uint64_t)count * c->rows * c->cols + c->block - 1) / c->block : 0;
    bxn_loader_transient(loader, bxn_alloc_cost(scratch) + (blocks != 0 ? bxn_alloc_cost(blocks * sizeof(float)) : 0));
    if (loader->plan)
        return BITAXON_OK;

    void *memory;
    bitaxon_status status = bxn_alloc(loader->mem, scratch, c->weight->name, &memory, loader->error);
    if (status != BITAXON_OK)
        return status;
    c->scratch = memory;
    for (uint32_t m = 0; m < count && status == BITAXON_OK; m++) {
        for (uint32_t g = 0; g < groups && status == BITAXON_OK; g += piece) {
            uint32_t n = groups - g < piece ? groups - g : piece;
            uint32_t rows = c->rows - g * BXN_UNIT_ROWS < n * BXN_UNIT_ROWS ? c->rows - g * BXN_UNIT_ROWS
                                                                           : n * BXN_UNIT_ROWS;
            uint64_t row = (uint64_t)m * c->rows + (uint64_t)g * BXN_UNIT_ROWS;
            uint8_t *buffer = c->scratch + piece * c->scratch_each;
            c->matrix = m;
            c->first_group = g;
            c->dst = dst + ((uint64_t)m * groups + g) * c->packed.k_units * c->packed.unit_bytes;
            status = fetch_rows(c, c->weight, c->row_bytes, row, rows, &buffer, &c->codes);
            if (status == BITAXON_OK && c->absmax == NULL)
                status = fetch_rows(c, c->scales, scale_row, row, rows, &buffer, &c->scale_bytes);
            if (status == BITAXON_OK && c->absmax == NULL)
                status = fetch_rows(c, c->biases, scale_row, row, rows, &buffer, &c->bias_bytes);
            if (status == BITAXON_OK) {
                status = bxn_pool_run(loader->pool, n, repack_task, c, NULL);
                if (status != BITAXON_OK)
                    bxn_fail(loader->error, status, "tensor %s: the host's executor failed", c->weight->name);
            }
            if (status == BITAXON_OK)
                status = bxn_loader_advance(loader, rows * (c->row_bytes + 2 * scale_row), c->weight->name);
        }
    }
    bxn_free(loader->mem, memory, scratch);
    return status;
}

static bool shape_is(const bxn_tensor *tensor, bool stack, uint64_t count, uint64_t rows, uint64_t *last)
{
    if (tensor->rank != (stack ? 3u : 2u) || (stack && tensor->shape[0] != count) ||
        tensor->shape[tensor->rank - 2] != rows)
        return false;
    *last = tensor->shape[tensor->rank - 1];
    return true;
}

/* Shapes of an affine triplet; bits and group size follow. */
static bitaxon_status describe_affine(repack *c, const char *prefix, uint32_t count, bool stack, uint64_t *bytes)
{
    bxn_loader *loader = c->loader;
    uint64_t words, groups, bias_groups;
    char text[128];
    c->scales = bxn_loader_find(loader, prefix, ".scales");
    c->biases = bxn_loader_find(loader, prefix, ".biases");
    const bxn_tensor *other = bxn_loader_find(loader, prefix, ".biases_quant");
    if (c->biases != NULL && other != NULL)
        return bxn_fail(loader->error, BITAXON_FORMAT, "%s has both .biases and .biases_quant", prefix);
    if (c->biases == NULL)
        c->biases = other;
    if (c->scales == NULL || c->biases == NULL) {
        snprintf(text, sizeof text, "%.100s%s", prefix, c->scales == NULL ? ".scales" : ".biases");
        return bxn_loader_missing(loader, text);
    }
    if (!shape_is(c->weight, stack, count, c->rows, &words) || words == 0) {
        snprintf(text, sizeof text, "U32 [%s%u, %u * bits / 32]", stack ? "experts, " : "", c->rows, c->cols);
        return bxn_loader_misshapen(loader, c->weight, text);
    }
    const bxn_tensor *pair[2] = { c->scales, c->biases };
    uint64_t *widths[2] = { &groups, &bias_groups };
    for (int i = 0; i < 2; i++)
        if (!shape_is(pair[i], stack, count, c->rows, widths[i]) || *widths[i] == 0 || c->cols % *widths[i] != 0 ||
            (pair[i]->dtype != BXN_F32 && pair[i]->dtype != BXN_F16 && pair[i]->dtype != BXN_BF16)) {
            snprintf(text, sizeof text, "float [%s%u, %u / group size]", stack ? "experts, " : "", c->rows, c->cols);
            return bxn_loader_misshapen(loader, pair[i], text);
        }
    if (groups != bias_groups || c->scales->dtype != c->biases->dtype)
        return bxn_fail(loader->error, BITAXON_FORMAT, "tensors %s and %s differ in shape or type", c->scales->name,
                        c->biases->name);
    uint64_t bits = 32 * words / c->cols, group = c->cols / groups;
    if (bits > 8 || group > 128 || !bxn_affine_supported((uint32_t)bits, (uint32_t)group) ||
        bxn_affine_words(c->cols, (uint32_t)bits) != words)
        return bxn_fail(loader->error, BITAXON_UNSUPPORTED,
                        "tensor %s: %llu words for %u inputs in groups of %llu is no supported width (2, 3, 4, 5, 6, 8 "
                        "bits; groups of 32, 64, 128)",
                        c->weight->name, (unsigned long long)words, c->cols, (unsigned long long)group);
    c->group = (uint32_t)group;
    c->row_bytes = words * 4;
    *bytes = c->weight->bytes + c->scales->bytes + c->biases->bytes;
    return bxn_packed_describe(c->rows, c->cols, 'a', (uint32_t)bits, c->group, c->scales->dtype != BXN_F16,
                               &c->packed, loader->error);
}

/* A small float tensor of NF4's quantisation state. */
static bitaxon_status read_state(bxn_loader *loader, const bxn_tensor *tensor, uint64_t n, float *out)
{
    if (tensor->dtype != BXN_F32 || tensor->bytes != n * sizeof(float)) {
        char text[64];
        snprintf(text, sizeof text, "%llu F32 values", (unsigned long long)n);
        return bxn_loader_misshapen(loader, tensor, text);
    }
    bitaxon_status status = bxn_tensor_read(loader->tensors, tensor, 0, out, (size_t)(n * sizeof *out), loader->error);
    for (uint64_t i = 0; i < n && status == BITAXON_OK; i++)
        if (!isfinite(out[i]))
            status = bxn_fail(loader->error, BITAXON_FORMAT, "tensor %s: value %llu is not finite", tensor->name,
                              (unsigned long long)i);
    return status;
}

typedef struct nf4_state {
    const bxn_tensor *absmax, *map, *nested_absmax, *nested_map, *json;
    uint32_t block, nested_block;
    float offset;
} nf4_state;

/* The JSON bytes that bitsandbytes keeps beside the codes. */
static bitaxon_status parse_state(bxn_loader *loader, nf4_state *s, uint64_t values)
{
    if (s->json->dtype != BXN_U8 || s->json->bytes > 65536)
        return bxn_loader_misshapen(loader, s->json, "U8 text of at most 65536 bytes");
    void *text;
    bxn_json document = { 0 };
    size_t size = (size_t)s->json->bytes + 1;
    bitaxon_status status = bxn_calloc(loader->mem, size, s->json->name, &text, loader->error);
    if (status != BITAXON_OK)
        return status;
    status = bxn_tensor_read(loader->tensors, s->json, 0, text, (size_t)s->json->bytes, loader->error);
    if (status == BITAXON_OK)
        status = bxn_json_parse(loader->mem, text, (size_t)s->json->bytes, s->json->name, &document, loader->error);
    bxn_loader_transient(loader, bxn_alloc_cost(size) + document.charged);
    if (status == BITAXON_OK) {
        json_t *block = json_object_get(document.root, "blocksize"), *shape = json_object_get(document.root, "shape");
        const char *type = json_string_value(json_object_get(document.root, "quant_type"));
        uint64_t product = json_is_array(shape) ? 1 : 0;
        for (size_t i = 0; i < json_array_size(shape); i++) {
            json_int_t n = json_integer_value(json_array_get(shape, i));
            if (n < 0 || !bxn_mul_u64(product, (uint64_t)n, &product))
                product = 0;
        }
        json_int_t b = json_integer_value(block),
                   nested = json_integer_value(json_object_get(document.root, "nested_blocksize"));
        double offset = json_number_value(json_object_get(document.root, "nested_offset"));
        if ((type != NULL && strcmp(type, "nf4") != 0) || b < 32 || b > 65536 || (b & (b - 1)) != 0 ||
            (shape != NULL && product != values) || nested < 0 || nested > 1 << 24 || !isfinite(offset))
            status = bxn_fail(loader->error, BITAXON_FORMAT,
                              "tensor %s: not a state of %llu NF4 values (block size %lld, nested %lld)", s->json->name,
                              (unsigned long long)values, (long long)b, (long long)nested);
        s->block = (uint32_t)b;
        s->nested_block = nested > 0 ? (uint32_t)nested : 256;
        s->offset = (float)offset;
    }
    bxn_json_free(&document);
    bxn_free(loader->mem, text, size);
    return status;
}

/* absmax of every block as f32, in memory that the caller frees ([blocks]). */
static bitaxon_status read_absmax(bxn_loader *loader, const nf4_state *s, uint64_t blocks, float *out)
{
    if (s->nested_absmax == NULL)
        return read_state(loader, s->absmax, blocks, out);
    uint64_t outer = (blocks + s->nested_block - 1) / s->nested_block;
    float map[256];
    void *memory = NULL, *nested = NULL;
    if (s->absmax->dtype != BXN_U8 || s->absmax->bytes != blocks)
        return bxn_loader_misshapen(loader, s->absmax, "one U8 code per block");
    bitaxon_status status = s->nested_map != NULL ? read_state(loader, s->nested_map, 256, map) : BITAXON_OK;
    if (s->nested_map == NULL)
        bxn_nf4_dynamic_map(map);
    if (status == BITAXON_OK)
        status = bxn_alloc(loader->mem, (size_t)blocks, s->absmax->name, &memory, loader->error);
    if (status == BITAXON_OK)
        status = bxn_alloc(loader->mem, (size_t)(outer * sizeof(float)), s->absmax->name, &nested, loader->error);
    if (status == BITAXON_OK)
        status = bxn_tensor_read(loader->tensors, s->absmax, 0, memory, (size_t)blocks, loader->error);
    if (status == BITAXON_OK)
        status = read_state(loader, s->nested_absmax, outer, nested);
    if (status == BITAXON_OK)
        bxn_nf4_denest(memory, map, nested, s->nested_block, s->offset, blocks, out);
    bxn_free(loader->mem, nested, (size_t)(outer * sizeof(float)));
    bxn_free(loader->mem, memory, (size_t)blocks);
    return status;
}

static bitaxon_status describe_nf4(repack *c, const char *prefix, uint32_t count, uint64_t *bytes, void **absmax,
                                   uint64_t *blocks)
{
    bxn_loader *loader = c->loader;
    nf4_state s = { .block = 64, .nested_block = 256 };
    s.absmax = bxn_loader_find(loader, prefix, ".weight.absmax");
    s.map = bxn_loader_find(loader, prefix, ".weight.quant_map");
    s.nested_absmax = bxn_loader_find(loader, prefix, ".weight.nested_absmax");
    s.nested_map = bxn_loader_find(loader, prefix, ".weight.nested_quant_map");
    s.json = bxn_loader_find(loader, prefix, ".weight.quant_state.bitsandbytes__nf4");
    uint64_t values = (uint64_t)count * c->rows * c->cols;
    char text[128];
    if (s.absmax == NULL) {
        snprintf(text, sizeof text, "%.100s.weight.absmax", prefix);
        return bxn_loader_missing(loader, text);
    }
    if (c->weight->bytes != values / 2 || values % 2 != 0) {
        snprintf(text, sizeof text, "%llu bytes of NF4 codes", (unsigned long long)(values / 2));
        return bxn_loader_misshapen(loader, c->weight, text);
    }
    bitaxon_status status = s.json != NULL ? parse_state(loader, &s, values) : BITAXON_OK;
    if (status != BITAXON_OK)
        return status;
    if (s.map != NULL) {
        float map[16];
        status = read_state(loader, s.map, 16, map);
        for (int i = 0; i < 16 && status == BITAXON_OK; i++)
            if (fabsf(map[i] - bxn_nf4_table[i]) > 1e-6f)
                status = bxn_fail(loader->error, BITAXON_UNSUPPORTED, "tensor %s: entry %d is %g, NF4 has %g",
                                  s.map->name, i, (double)map[i], (double)bxn_nf4_table[i]);
        if (status != BITAXON_OK)
            return status;
    }
    c->block = s.block;
    c->group = s.block < 128 ? s.block : 128;
    if (c->cols % c->group != 0)
        return bxn_fail(loader->error, BITAXON_UNSUPPORTED,
                        "tensor %s: blocks of %u values do not divide rows of %u", c->weight->name, s.block, c->cols);
    c->row_bytes = c->cols / 2;
    *blocks = (values + s.block - 1) / s.block;
    *bytes = c->weight->bytes + s.absmax->bytes + (s.nested_absmax != NULL ? s.nested_absmax->bytes : 0);
    status = bxn_packed_describe(c->rows, c->cols, 'n', 4, c->group, true, &c->packed, loader->error);
    bxn_loader_transient(loader, 2 * bxn_alloc_cost(*blocks * sizeof(float)));
    if (status != BITAXON_OK || loader->plan)
        return status;
    status = bxn_alloc(loader->mem, (size_t)(*blocks * sizeof(float)), s.absmax->name, absmax, loader->error);
    if (status == BITAXON_OK)
        status = read_absmax(loader, &s, *blocks, *absmax);
    return status;
}

bitaxon_status bxn_load_quantised(bxn_loader *loader, const bxn_tensor *weight, const char *prefix,
                                  uint32_t count, uint32_t rows, uint32_t cols, bool stack, bxn_weight *out)
{
    repack c = { .loader = loader, .weight = weight, .rows = rows, .cols = cols };
    void *absmax = NULL, *data = NULL;
    uint64_t bytes = 0, blocks = 0;
    bitaxon_status status = weight->dtype == BXN_U32 ? describe_affine(&c, prefix, count, stack, &bytes)
                                                     : describe_nf4(&c, prefix, count, &bytes, &absmax, &blocks);
    uint64_t matrix = 0, total = 0;
    if (status == BITAXON_OK) {
        matrix = bxn_packed_bytes(&c.packed);
        if (!bxn_mul_u64(matrix, count, &total) || total > SIZE_MAX / 2)
            status = bxn_fail(loader->error, BITAXON_LIMIT, "tensor %s: size overflows", weight->name);
    }
    if (status == BITAXON_OK)
        status = bxn_loader_alloc_raw(loader, (size_t)total, weight->name, &data);
    if (status == BITAXON_OK) {
        c.absmax = absmax;
        if (loader->plan && weight->dtype == BXN_U8)
            c.absmax = bxn_nf4_table; /* only its presence counts in a plan */
        status = run_repack(&c, count, data);
    }
    if (status == BITAXON_OK) {
        uint64_t logical[3] = { count, rows, cols };
        char format[40];
        snprintf(format, sizeof format, "%s%u g%u", c.packed.has_bias ? "affine" : "nf", c.packed.source_bits, c.group);
        status = bxn_loader_note(loader, prefix, format, bxn_dtype_name(weight->dtype), stack ? 3 : 2,
                                 stack ? logical : logical + 1, bytes, false);
    }
    for (uint32_t i = 0; i < count && status == BITAXON_OK && out != NULL; i++) {
        out[i].kind = BXN_WEIGHT_PACKED;
        out[i].rows = rows;
        out[i].cols = cols;
        out[i].packed = c.packed;
        out[i].packed.data = data != NULL ? (const uint8_t *)data + i * matrix : NULL;
    }
    bxn_free(loader->mem, absmax, (size_t)(blocks * sizeof(float)));
    return status;
}
