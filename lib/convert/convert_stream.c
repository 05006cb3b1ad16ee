/* SPDX-License-Identifier: Apache-2.0 */
/* convert_stream.c - one tensor at a time from its values (a file's, or first values) to its
 * stored form, in pieces: a piece is read, worked on in parallel, written. Scales of a tensor
 * are kept until its codes are out, as they follow them in the file. Called by `new`, `quantize` and
 * `merge`. Results do not depend on pieces or threads. */
#include "convert/bxn_convert.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define PIECE_ELEMENTS ((uint64_t)1 << 18)
#define COPY_BYTES ((size_t)1 << 20)
#define FLAT_ROW 4096u /* elements of a "row" where rows do not matter */
#define TASKS 32u

/* What one row came to. */
typedef struct row_result {
    double square, error_square;
    float worst;
    bool wide; /* f16 cannot hold its scales */
    bool bad;  /* a value is not finite, or its format cannot hold it */
    uint32_t bad_column;
} row_result;

/* Sums over a tensor, rows in order. */
typedef struct totals {
    double square, error_square;
    float worst;
    bool wide;
} totals;

typedef struct work {
    bxn_conversion *c;
    const bxn_stream *stream;
    bool scan;           /* look only */
    uint64_t key;        /* of first values */
    uint64_t rows, cols; /* cols: of a row here, the last one may be shorter when flat */
    uint64_t elements;
    uint32_t groups; /* per row; 0: float */
    uint32_t piece_rows;
    size_t out_row; /* bytes of an encoded row (codes or values) */
    /* the piece at work */
    uint64_t first;
    uint32_t count;
    /* one block of memory */
    void *memory;
    size_t bytes;
    uint8_t *raw, *out, *codes;
    float *x;
    row_result *results;
    float *scales, *biases; /* of all rows */
} work;

static bool f16_holds(float value)
{
    float size = fabsf(value);
    return size == 0 || (size >= 0x1p-14f && size <= 65504);
}

/* Would f16 lose scales of this row? A constant group has codes 0: its scale is idle. */
static bool row_is_wide(const float *x, uint32_t cols, uint32_t bits, uint32_t group)
{
    for (uint32_t k = 0; k < cols; k += group) {
        float s, b;
        if (bxn_affine_range(x + k, group, bits, &s, &b) && !f16_holds(s))
            return true;
        if (!f16_holds(b))
            return true;
    }
    return false;
}

static void add_error(row_result *result, float before, float after)
{
    double error = (double)after - (double)before;
    result->error_square += error * error;
    if (fabs(error) > (double)result->worst)
        result->worst = (float)fabs(error);
}

static float stored(float value, bxn_dtype dtype)
{
    return dtype == BXN_F16    ? bxn_f16_f32(bxn_f32_f16(value))
           : dtype == BXN_BF16 ? bxn_bf16_f32(bxn_f32_bf16(value))
                               : value;
}

static void encode_affine(const work *w, const float *x, uint32_t index, row_result *result)
{
    const bxn_target *t = &w->stream->target;
    uint32_t cols = (uint32_t)w->cols;
    uint64_t row = w->first + index;
    uint8_t *out = w->out + index * w->out_row, *codes = w->codes + (size_t)index * cols;
    float *scales = w->scales + row * w->groups, *biases = w->biases + row * w->groups;
    bxn_affine_encode_row(x, cols, t->bits, t->group, (uint32_t *)(void *)out, scales, biases);
    bxn_affine_unpack_row(out, cols, t->bits, codes);
    for (uint32_t g = 0; g < w->groups; g++) {
        float s = stored(scales[g], t->dtype), b = stored(biases[g], t->dtype);
        for (uint32_t k = g * t->group; k < (g + 1) * t->group; k++)
            add_error(result, x[k], s * (float)codes[k] + b);
    }
}

static void encode_nf4(const work *w, const float *x, uint32_t index, row_result *result)
{
    uint32_t group = w->stream->target.group;
    uint8_t *out = w->out + index * w->out_row, codes[128];
    float *scales = w->scales + (w->first + index) * w->groups;
    for (uint32_t g = 0; g < w->groups; g++, out += group / 2) {
        bxn_nf4_encode_group(x + (size_t)g * group, group, codes, scales + g);
        for (uint32_t k = 0; k < group; k += 2) /* even element in the high nibble */
            out[k / 2] = (uint8_t)(codes[k] << 4 | codes[k + 1]);
        for (uint32_t k = 0; k < group; k++)
            add_error(result, x[(size_t)g * group + k], scales[g] * bxn_nf4_table[codes[k]]);
    }
}

static void encode_float(const work *w, const float *x, uint32_t index, uint32_t cols,
                         row_result *result)
{
    bxn_dtype dtype = w->stream->target.dtype;
    bxn_from_f32(x, dtype, cols, w->out + index * w->out_row);
    for (uint32_t k = 0; k < cols; k++) {
        float back = stored(x[k], dtype);
        if (!isfinite(back) && !result->bad) {
            result->bad = true;
            result->bad_column = k;
        }
        add_error(result, x[k], back);
    }
}

static void work_row(const work *w, uint32_t index)
{
    const bxn_stream *stream = w->stream;
    row_result *result = &w->results[index];
    uint64_t start = (w->first + index) * w->cols;
    uint32_t cols = (uint32_t)(w->elements - start < w->cols ? w->elements - start : w->cols);
    float *x = w->x + (size_t)index * w->cols;
    *result = (row_result){0};
    if (stream->row != NULL)
        stream->row(stream->user, w->first + index, x);
    else if (stream->source != NULL)
        bxn_to_f32(w->raw + (size_t)index * w->cols * bxn_dtype_size(stream->source->dtype),
                   stream->source->dtype, cols, x);
    else
        bxn_init_values(stream->item, w->c->params->seed, w->key, start, cols, x);
    for (uint32_t k = 0; k < cols; k++) {
        if (!isfinite(x[k])) {
            result->bad = true;
            result->bad_column = k;
            return;
        }
        result->square += (double)x[k] * (double)x[k];
    }
    if (w->scan)
        result->wide = stream->target.kind == BXN_TARGET_AFFINE &&
                       row_is_wide(x, cols, stream->target.bits, stream->target.group);
    else if (stream->target.kind == BXN_TARGET_AFFINE)
        encode_affine(w, x, index, result);
    else if (stream->target.kind == BXN_TARGET_NF4)
        encode_nf4(w, x, index, result);
    else
        encode_float(w, x, index, cols, result);
}

static void work_task(void *context, uint32_t task)
{
    const work *w = context;
    uint32_t tasks = w->count < TASKS ? w->count : TASKS;
    uint32_t begin = (uint32_t)((uint64_t)w->count * task / tasks);
    uint32_t end = (uint32_t)((uint64_t)w->count * (task + 1) / tasks);
    for (uint32_t i = begin; i < end; i++)
        work_row(w, i);
}

/* Sizes and memory of a tensor's work. */
static bitaxon_status work_init(work *w, bxn_conversion *c, const bxn_stream *stream, bool scan)
{
    const bxn_target *t = &stream->target;
    const bxn_plan_item *item = stream->item;
    bool grouped = t->kind == BXN_TARGET_AFFINE || t->kind == BXN_TARGET_NF4;
    memset(w, 0, sizeof *w);
    w->c = c;
    w->stream = stream;
    w->scan = scan;
    w->key = bxn_init_key(
        item->role == BXN_ROLE_HEAD && c->config.weight_tying ? "embed_tokens.weight" : item->name);
    w->elements = item->elements;
    w->cols = grouped || stream->row != NULL ? item->shape[item->rank - 1] : FLAT_ROW;
    w->rows = (w->elements - 1) / w->cols + 1;
    w->groups = grouped ? (uint32_t)(w->cols / t->group) : 0;
    w->piece_rows = (uint32_t)(PIECE_ELEMENTS / w->cols > 1 ? PIECE_ELEMENTS / w->cols : 1);
    if (w->rows < w->piece_rows)
        w->piece_rows = (uint32_t)w->rows;
    size_t piece = (size_t)(w->piece_rows * w->cols);
    w->out_row = t->kind == BXN_TARGET_AFFINE ? (size_t)bxn_affine_words(w->cols, t->bits) * 4
                 : t->kind == BXN_TARGET_NF4  ? (size_t)w->cols / 2
                                              : (size_t)w->cols * bxn_dtype_size(t->dtype);
    size_t raw = stream->source != NULL ? piece * bxn_dtype_size(stream->source->dtype) : 0;
    size_t parts[] = {
        piece * sizeof *w->x,
        raw,
        scan ? 0 : w->piece_rows * w->out_row,
        !scan && t->kind == BXN_TARGET_AFFINE ? piece : 0,
        w->piece_rows * sizeof *w->results,
        scan ? 0 : (size_t)(w->rows * w->groups) * sizeof *w->scales,
        !scan && t->kind == BXN_TARGET_AFFINE ? (size_t)(w->rows * w->groups) * sizeof *w->biases
                                              : 0,
    };
    size_t at[sizeof parts / sizeof *parts];
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        at[i] = w->bytes;
        w->bytes += bxn_round_up(parts[i], BXN_ALIGN);
    }
    bitaxon_status status = bxn_alloc(&c->mem, w->bytes, item->name, &w->memory, c->error);
    if (status != BITAXON_OK)
        return status;
    uint8_t *base = w->memory;
    w->x = (float *)(void *)(base + at[0]);
    w->raw = base + at[1];
    w->out = base + at[2];
    w->codes = base + at[3];
    w->results = (row_result *)(void *)(base + at[4]);
    w->scales = (float *)(void *)(base + at[5]);
    w->biases = (float *)(void *)(base + at[6]);
    return BITAXON_OK;
}

static void work_free(work *w)
{
    bxn_free(&w->c->mem, w->memory, w->bytes);
}

static bitaxon_status fail_value(const work *w, uint32_t index)
{
    uint64_t at = (w->first + index) * w->cols + w->results[index].bad_column;
    float value = w->x[(size_t)index * w->cols + w->results[index].bad_column];
    if (isfinite(value))
        return bxn_fail(w->c->error, BITAXON_UNSUPPORTED, "tensor %s: value %llu is %g, beyond %s",
                        w->stream->item->name, (unsigned long long)at, (double)value,
                        bxn_dtype_name(w->stream->target.dtype));
    return bxn_fail(w->c->error, BITAXON_FORMAT, "tensor %s: value %llu is not finite",
                    w->stream->item->name, (unsigned long long)at);
}

/* All pieces in order; encoded rows go to out (NULL: scanning). */
static bitaxon_status work_run(work *w, totals *sum, bxn_output *out)
{
    bxn_conversion *c = w->c;
    const bxn_stream *stream = w->stream;
    size_t size = stream->source != NULL ? bxn_dtype_size(stream->source->dtype) : sizeof(float);
    bitaxon_status status = BITAXON_OK;
    memset(sum, 0, sizeof *sum);
    for (w->first = 0; w->first < w->rows && status == BITAXON_OK; w->first += w->count) {
        uint64_t start = w->first * w->cols, left = w->elements - start;
        w->count =
            (uint32_t)(w->rows - w->first < w->piece_rows ? w->rows - w->first : w->piece_rows);
        size_t elements = (size_t)(left < w->count * w->cols ? left : w->count * w->cols);
        if (stream->source != NULL)
            status = bxn_tensor_read(c->tensors, stream->source, start * size, w->raw,
                                     elements * size, c->error);
        if (status != BITAXON_OK)
            break;
        status = bxn_pool_run(c->pool, w->count < TASKS ? w->count : TASKS, work_task, w, NULL);
        if (status != BITAXON_OK) {
            bxn_fail(c->error, status, "tensor %s: the host's executor failed", stream->item->name);
            break;
        }
        for (uint32_t i = 0; i < w->count; i++) {
            const row_result *r = &w->results[i];
            if (r->bad)
                return fail_value(w, i);
            sum->square += r->square;
            sum->error_square += r->error_square;
            sum->worst = r->worst > sum->worst ? r->worst : sum->worst;
            sum->wide |= r->wide;
        }
        if (out != NULL) { /* rows follow each other closely; a short one is the last */
            size_t bytes = w->groups != 0 ? w->count * w->out_row
                                          : elements * bxn_dtype_size(stream->target.dtype);
            status = bxn_output_put(out, w->out, bytes);
        }
        if (status == BITAXON_OK)
            status = bxn_conversion_step(c, elements * size, stream->item->name);
    }
    return status;
}

uint64_t bxn_stream_work(const bxn_stream *stream, bool scanned)
{
    if (stream->source == NULL)
        return stream->item->elements * sizeof(float) * (scanned ? 2 : 1);
    return stream->source->bytes * (scanned ? 2 : 1);
}

bitaxon_status bxn_stream_scan(bxn_conversion *c, bxn_stream *stream)
{
    work w;
    totals sum = {0};
    bitaxon_status status = work_init(&w, c, stream, true);
    if (status == BITAXON_OK)
        status = work_run(&w, &sum, NULL);
    if (w.memory != NULL)
        work_free(&w);
    if (status == BITAXON_OK && stream->target.kind == BXN_TARGET_AFFINE)
        stream->target.dtype = sum.wide ? BXN_F32 : BXN_F16;
    return status;
}

/* bitsandbytes' record of a tensor; returns its length. */
static int nf4_state_text(const bxn_stream *stream, char text[256])
{
    const bxn_plan_item *item = stream->item;
    bxn_dtype dtype = stream->source != NULL ? stream->source->dtype : BXN_F32;
    char shape[80];
    int n = snprintf(shape, sizeof shape, "%llu", (unsigned long long)item->shape[0]);
    for (uint32_t i = 1; i < item->rank; i++)
        n += snprintf(shape + n, sizeof shape - (size_t)n, ", %llu",
                      (unsigned long long)item->shape[i]);
    return snprintf(
        text, 256,
        "{\"quant_type\": \"nf4\", \"blocksize\": %u, \"dtype\": \"%s\", \"shape\": [%s]}",
        (unsigned)stream->target.group,
        dtype == BXN_F16    ? "float16"
        : dtype == BXN_BF16 ? "bfloat16"
                            : "float32",
        shape);
}

static bitaxon_status declare(bxn_conversion *c, bxn_output *out, const char *prefix,
                              const char *suffix, bxn_dtype dtype, uint32_t rank,
                              const uint64_t *shape)
{
    char name[BXN_PLAN_NAME + 64];
    snprintf(name, sizeof name, "%s%s", prefix, suffix);
    return bxn_st_declare(bxn_output_writer(out), name, dtype, rank, shape, c->error);
}

bitaxon_status bxn_stream_declare(bxn_conversion *c, const bxn_stream *stream, bxn_output *out)
{
    const bxn_plan_item *item = stream->item;
    const bxn_target *t = &stream->target;
    if (t->kind == BXN_TARGET_COPY && stream->source != NULL)
        return bxn_st_declare(bxn_output_writer(out), stream->source->name, stream->source->dtype,
                              stream->source->rank, stream->source->shape, c->error);
    if (t->kind == BXN_TARGET_COPY || t->kind == BXN_TARGET_FLOAT)
        return declare(c, out, item->name, "", t->dtype, item->rank, item->shape);
    char prefix[BXN_PLAN_NAME], text[256];
    uint64_t shape[3] = {item->shape[0], item->shape[1], item->shape[2]};
    uint64_t groups = item->elements / t->group, table = 16, flat[2] = {item->elements / 2, 1};
    bxn_plan_prefix(item, prefix);
    bitaxon_status status;
    if (t->kind == BXN_TARGET_NF4) {
        uint64_t length = (uint64_t)nf4_state_text(stream, text);
        status = declare(c, out, prefix, ".weight", BXN_U8, 2, flat);
        if (status == BITAXON_OK)
            status = declare(c, out, prefix, ".weight.absmax", BXN_F32, 1, &groups);
        if (status == BITAXON_OK)
            status = declare(c, out, prefix, ".weight.quant_map", BXN_F32, 1, &table);
        if (status == BITAXON_OK)
            status = declare(c, out, prefix, ".weight.quant_state.bitsandbytes__nf4", BXN_U8, 1,
                             &length);
        return status;
    }
    uint64_t cols = shape[item->rank - 1];
    shape[item->rank - 1] = bxn_affine_words(cols, t->bits);
    status = declare(c, out, prefix, ".weight", BXN_U32, item->rank, shape);
    shape[item->rank - 1] = cols / t->group;
    if (status == BITAXON_OK)
        status = declare(c, out, prefix, ".scales", t->dtype, item->rank, shape);
    if (status == BITAXON_OK)
        status =
            declare(c, out, prefix, item->role == BXN_ROLE_EXPERTS ? ".biases_quant" : ".biases",
                    t->dtype, item->rank, shape);
    return status;
}

/* `count` f32 values in another type. */
static bitaxon_status put_values(bxn_output *out, const float *values, uint64_t count,
                                 bxn_dtype dtype)
{
    uint8_t buffer[4096];
    size_t size = bxn_dtype_size(dtype);
    bitaxon_status status = BITAXON_OK;
    if (dtype == BXN_F32)
        return bxn_output_put(out, values, (size_t)count * sizeof *values);
    for (uint64_t i = 0; i < count && status == BITAXON_OK;) {
        size_t n = count - i < sizeof buffer / size ? (size_t)(count - i) : sizeof buffer / size;
        bxn_from_f32(values + i, dtype, n, buffer);
        status = bxn_output_put(out, buffer, n * size);
        i += n;
    }
    return status;
}

bitaxon_status bxn_stream_copy(bxn_conversion *c, const bxn_tensor *tensor, bxn_output *out)
{
    size_t capacity = tensor->bytes < COPY_BYTES ? (size_t)tensor->bytes : COPY_BYTES;
    void *buffer;
    bitaxon_status status = bxn_alloc(&c->mem, capacity, tensor->name, &buffer, c->error);
    for (uint64_t at = 0; at < tensor->bytes && status == BITAXON_OK;) {
        size_t n = tensor->bytes - at < capacity ? (size_t)(tensor->bytes - at) : capacity;
        status = bxn_tensor_read(c->tensors, tensor, at, buffer, n, c->error);
        if (status == BITAXON_OK)
            status = bxn_output_put(out, buffer, n);
        if (status == BITAXON_OK)
            status = bxn_conversion_step(c, n, tensor->name);
        at += n;
    }
    bxn_free(&c->mem, buffer, capacity);
    return status;
}

static bitaxon_status put_encoded(bxn_conversion *c, const bxn_stream *stream, bxn_output *out,
                                  totals *sum, uint64_t *bytes)
{
    const bxn_target *t = &stream->target;
    work w;
    bitaxon_status status = work_init(&w, c, stream, false);
    if (status == BITAXON_OK)
        status = work_run(&w, sum, out);
    uint64_t groups = w.rows * w.groups;
    *bytes = w.groups != 0 ? w.rows * w.out_row : w.elements * bxn_dtype_size(t->dtype);
    if (t->kind == BXN_TARGET_AFFINE) {
        *bytes += 2 * groups * bxn_dtype_size(t->dtype);
        if (status == BITAXON_OK)
            status = put_values(out, w.scales, groups, t->dtype);
        if (status == BITAXON_OK)
            status = put_values(out, w.biases, groups, t->dtype);
    } else if (t->kind == BXN_TARGET_NF4) {
        char text[256];
        size_t length = (size_t)nf4_state_text(stream, text);
        *bytes += groups * sizeof(float) + sizeof bxn_nf4_table + length;
        if (status == BITAXON_OK)
            status = put_values(out, w.scales, groups, BXN_F32);
        if (status == BITAXON_OK)
            status = bxn_output_put(out, bxn_nf4_table, sizeof bxn_nf4_table);
        if (status == BITAXON_OK)
            status = bxn_output_put(out, text, length);
    }
    if (w.memory != NULL)
        work_free(&w);
    return status;
}

bitaxon_status bxn_stream_put(bxn_conversion *c, const bxn_stream *stream, bxn_output *out)
{
    bool copied = stream->target.kind == BXN_TARGET_COPY && stream->source != NULL;
    totals sum = {0};
    uint64_t bytes = copied ? stream->source->bytes : 0;
    bitaxon_status status = copied ? bxn_stream_copy(c, stream->source, out)
                                   : put_encoded(c, stream, out, &sum, &bytes);
    if (status != BITAXON_OK)
        return status;
    char text[32];
    bxn_target shown = stream->target;
    if (copied)
        shown.dtype = stream->source->dtype;
    bxn_target_text(&shown, text);
    bitaxon_tensor_report report = {
        .struct_size = sizeof report,
        .changed = !copied,
        .name = stream->item->name,
        .format = text,
        .bytes_before = stream->source != NULL ? stream->source->bytes : stream->bytes_before,
        .bytes_after = bytes,
        .relative_rms = sum.square > 0 ? sqrt(sum.error_square / sum.square) : 0,
        .max_error = (double)sum.worst,
    };
    return bxn_conversion_report(c, &report);
}
