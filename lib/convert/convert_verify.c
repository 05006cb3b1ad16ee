/* SPDX-License-Identifier: Apache-2.0 */
/* convert_verify.c - a complete look at an untrusted model without running it. Called by
 * bitaxon_model_verify. Structure goes through the importer as opening does, the tokenizer
 * is made and dropped, every stored float (scales in packed units too) must be finite, and
 * the checksum must fit when the only weights file carries one. Tensors are read in the
 * order of the file, a piece at a time. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "convert/bxn_convert.h"
#include "tokenizer/bxn_tokenizer.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define PIECE_BYTES ((size_t)1 << 20)

static bool is_float(bxn_dtype dtype)
{
    return dtype == BXN_F32 || dtype == BXN_F16 || dtype == BXN_BF16;
}

/* Index of the first value that is not finite, or count. Bits suffice: an exponent of ones. */
static size_t first_bad(const uint8_t *bytes, bxn_dtype dtype, size_t count)
{
    uint32_t ones = dtype == BXN_F32 ? 0x7F800000u : dtype == BXN_F16 ? 0x7C00u : 0x7F80u;
    size_t size = bxn_dtype_size(dtype);
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = 0;
        memcpy(&bits, bytes + i * size, size);
        if ((bits & ones) == ones)
            return i;
    }
    return count;
}

static bitaxon_status check_floats(bxn_conversion *c, const bxn_tensor *tensor, uint64_t first,
                                   const uint8_t *bytes, size_t count)
{
    size_t bad = first_bad(bytes, tensor->dtype, count);
    if (bad == count)
        return BITAXON_OK;
    return bxn_fail(c->error, BITAXON_FORMAT, "tensor %s: value %llu is not finite", tensor->name,
                    (unsigned long long)(first + bad));
}

/* The packed form that a tensor's name tells, or false. Its shape was checked by import. */
static bool packed_form(const bxn_tensor *tensor, bxn_packed *packed)
{
    const char *at = strstr(tensor->name, ".packed.");
    char kind;
    uint32_t bits, group;
    bool scale_f32;
    return at != NULL && tensor->dtype == BXN_U8 &&
           bxn_packed_parse(at + strlen(".packed."), &kind, &bits, &group, &scale_f32) &&
           bxn_packed_describe(BXN_UNIT_ROWS, BXN_UNIT_COLS, kind, bits, group, scale_f32, packed,
                               NULL) == BITAXON_OK;
}

static bitaxon_status check_units(bxn_conversion *c, const bxn_tensor *tensor,
                                  const bxn_packed *packed, uint64_t offset, const uint8_t *bytes,
                                  size_t count)
{
    bxn_dtype dtype = packed->scale_f32 ? BXN_F32 : BXN_F16;
    size_t scales = bxn_unit_scale_bytes(packed) / bxn_dtype_size(dtype);
    for (size_t at = 0; at + packed->unit_bytes <= count; at += packed->unit_bytes) {
        size_t bad = first_bad(bytes + at, dtype, scales);
        if (bad < scales)
            return bxn_fail(c->error, BITAXON_FORMAT,
                            "tensor %s: scale %zu of the unit at byte %llu is not finite",
                            tensor->name, bad, (unsigned long long)(offset + at));
    }
    return BITAXON_OK;
}

static bitaxon_status check_tensor(bxn_conversion *c, const bxn_tensor *tensor, uint8_t *buffer,
                                   XXH3_state_t *hash)
{
    bxn_packed packed;
    bool units = packed_form(tensor, &packed);
    size_t step = units ? PIECE_BYTES / packed.unit_bytes * packed.unit_bytes : PIECE_BYTES;
    bitaxon_status status = BITAXON_OK;
    for (uint64_t at = 0; at < tensor->bytes && status == BITAXON_OK;) {
        size_t n = tensor->bytes - at < step ? (size_t)(tensor->bytes - at) : step;
        status = bxn_tensor_read(c->tensors, tensor, at, buffer, n, c->error);
        if (status != BITAXON_OK)
            break;
        XXH3_128bits_update(hash, buffer, n);
        if (units)
            status = check_units(c, tensor, &packed, at, buffer, n);
        else if (is_float(tensor->dtype))
            status = check_floats(c, tensor, at / bxn_dtype_size(tensor->dtype), buffer,
                                  n / bxn_dtype_size(tensor->dtype));
        if (status == BITAXON_OK)
            status = bxn_conversion_step(c, n, tensor->name);
        at += n;
    }
    return status;
}

static int by_place(const void *left, const void *right)
{
    const bxn_tensor *a = *(const bxn_tensor *const *)left, *b = *(const bxn_tensor *const *)right;
    if (a->file != b->file)
        return a->file < b->file ? -1 : 1;
    if (a->offset != b->offset)
        return a->offset < b->offset ? -1 : 1;
    return a->bytes < b->bytes ? -1 : a->bytes > b->bytes; /* empty ones before the next */
}

static bitaxon_status check_sum(bxn_conversion *c, bool one_file, const XXH3_state_t *hash)
{
    const char *recorded = bxn_tensors_meta(c->tensors, "bitaxon.checksum");
    char hex[33];
    if (recorded == NULL || !one_file)
        return BITAXON_OK;
    XXH128_hash_t sum = XXH3_128bits_digest(hash);
    snprintf(hex, sizeof hex, "%016llx%016llx", (unsigned long long)sum.high64,
             (unsigned long long)sum.low64);
    if (strcmp(hex, recorded) == 0)
        return BITAXON_OK;
    return bxn_fail(c->error, BITAXON_FORMAT,
                    "%s: the checksum of the data is %s, recorded is %.40s", c->bundle->where, hex,
                    recorded);
}

static bitaxon_status check_values(bxn_conversion *c)
{
    uint64_t count = c->tensors->count;
    size_t bytes = (size_t)count * sizeof(bxn_tensor *);
    void *order = NULL, *buffer = NULL;
    XXH3_state_t hash;
    bool one_file = true;
    bitaxon_status status = bxn_alloc(&c->mem, bytes, "list of tensors", &order, c->error);
    if (status == BITAXON_OK)
        status = bxn_alloc(&c->mem, PIECE_BYTES, "read buffer", &buffer, c->error);
    if (status == BITAXON_OK) {
        const bxn_tensor **tensors = order;
        for (uint64_t i = 0; i < count; i++) {
            tensors[i] = &c->tensors->items[i];
            c->progress.total += tensors[i]->bytes;
            one_file &= tensors[i]->file == tensors[0]->file;
        }
        bxn_sort(tensors, count, sizeof *tensors, by_place);
        XXH3_128bits_reset(&hash);
        for (uint64_t i = 0; i < count && status == BITAXON_OK; i++)
            status = check_tensor(c, tensors[i], buffer, &hash);
        if (status == BITAXON_OK)
            status = check_sum(c, one_file, &hash);
    }
    bxn_free(&c->mem, buffer, PIECE_BYTES);
    bxn_free(&c->mem, order, bytes);
    return status;
}

/* Make the tokenizer and see that the embedding has a row for each of its ids. */
static bitaxon_status check_tokenizer(bxn_conversion *c)
{
    static const char *const names[3] = {"tokenizer.json", "tokenizer_config.json",
                                         "generation_config.json"};
    char *text[3] = {NULL, NULL, NULL};
    size_t bytes[3] = {0, 0, 0};
    bxn_tokenizer *tokenizer = NULL;
    bitaxon_status status = BITAXON_OK;
    if (bxn_bundle_find(c->bundle, names[0]) == NULL)
        return BITAXON_OK;
    for (int i = 0; i < 3 && status == BITAXON_OK; i++) {
        bxn_file *file = bxn_bundle_find(c->bundle, names[i]);
        if (file != NULL)
            status =
                bxn_file_text(c->bundle, file, BXN_MAX_JSON_BYTES, &text[i], &bytes[i], c->error);
    }
    if (status == BITAXON_OK)
        status = bxn_tokenizer_create(&c->mem, c->bundle->where, text[0], bytes[0], text[1],
                                      bytes[1], text[2], bytes[2], &tokenizer, c->error);
    if (status == BITAXON_OK && bxn_tokenizer_size(tokenizer) > c->config.vocab_size)
        status =
            bxn_fail(c->error, BITAXON_FORMAT,
                     "%s: tokenizer.json has ids up to %u, the vocabulary has %u rows",
                     c->bundle->where, bxn_tokenizer_size(tokenizer) - 1, c->config.vocab_size);
    if (tokenizer != NULL)
        bxn_tokenizer_free(tokenizer);
    for (int i = 0; i < 3; i++)
        if (text[i] != NULL)
            bxn_free(&c->mem, text[i], bytes[i] + 1);
    return status;
}

bitaxon_status bxn_convert_verify(const bitaxon_convert_params *params, bitaxon_error *error)
{
    bxn_conversion c;
    bitaxon_status status = bxn_conversion_init(&c, params, BITAXON_STAGE_VERIFY, NULL, error);
    if (status == BITAXON_OK)
        status = bxn_conversion_open(&c);
    if (status == BITAXON_OK)
        status = check_tokenizer(&c);
    if (status == BITAXON_OK)
        status = check_values(&c);
    bxn_conversion_free(&c);
    return status;
}
