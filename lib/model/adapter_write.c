/* SPDX-License-Identifier: Apache-2.0 */
/* adapter_write.c - an adapter to a file (docs/adapters.md): the keys and shapes of the original, A as
 * [in, r] and B as [r, out] in F32, and what the original leaves out as metadata. Called by the API and by
 * checkpoints of training. The same adapter gives the same bytes. */
#include "io/io.h"
#include "model/bxn_adapter.h"

#include <stdio.h>
#include <string.h>

#define PIECE 4096 /* floats */

typedef struct output {
    const bxn_adapter *adapter;
    bxn_st_writer *writer;
    bitaxon_error *error;
} output;

/* Whether an array is kept transposed to what files hold. */
static bool is_a(const char *name)
{
    size_t n = strlen(name);
    return n > 7 && strcmp(name + n - 7, ".lora_a") == 0;
}

static bitaxon_status declare(void *user, const char *name, uint32_t weight_id, size_t offset, uint32_t rows,
                              uint32_t cols, size_t ld)
{
    const output *o = user;
    const char *dot = strrchr(name, '.');
    bool a = is_a(name), m = strcmp(dot, ".m") == 0;
    uint64_t shape[2] = { a || m ? cols : rows, a ? rows : cols };
    (void)weight_id;
    (void)offset;
    (void)ld;
    return bxn_st_declare(o->writer, name, BXN_F32, m ? 1 : 2, shape, o->error);
}

static bitaxon_status put(void *user, const char *name, uint32_t weight_id, size_t offset, uint32_t rows,
                          uint32_t cols, size_t ld)
{
    const output *o = user;
    const float *values = o->adapter->values + offset;
    float piece[PIECE];
    bitaxon_status status = BITAXON_OK;
    (void)weight_id;
    if (!is_a(name)) {
        for (uint32_t r = 0; r < rows && status == BITAXON_OK; r++)
            status = bxn_st_put(o->writer, values + r * ld, cols * sizeof(float), o->error);
        return status;
    }
    uint32_t used = 0;
    for (uint32_t k = 0; k < cols && status == BITAXON_OK; k++) {
        for (uint32_t r = 0; r < rows; r++)
            piece[used++] = values[r * ld + k];
        if (used + rows > PIECE || k + 1 == cols) {
            status = bxn_st_put(o->writer, piece, used * sizeof(float), o->error);
            used = 0;
        }
    }
    return status;
}

static void hex(const uint8_t *bytes, char out[33])
{
    for (int i = 0; i < 16; i++)
        snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}

/* The shortest decimal that gives the float back, whatever the locale. */
static bool real_text(float value, char out[40])
{
    bxn_locale locale;
    json_t *number = bxn_locale_enter(&locale) ? json_real((double)value) : NULL;
    size_t n = 0;
    for (size_t digits = 6; digits <= 9 && number != NULL; digits++) {
        n = json_dumpb(number, out, 39, JSON_ENCODE_ANY | JSON_REAL_PRECISION(digits));
        json_t *back = n != 0 && n < 40 ? json_loadb(out, n, JSON_DECODE_ANY, NULL) : NULL;
        bool same = back != NULL && (float)json_number_value(back) == value;
        json_decref(back);
        if (same)
            break;
    }
    json_decref(number);
    bxn_locale_leave(&locale);
    out[n < 40 ? n : 0] = '\0';
    return number != NULL && n != 0 && n < 40;
}

static bitaxon_status describe(const bxn_model *model, const bxn_adapter *adapter, bxn_st_writer *writer,
                               bitaxon_error *error)
{
    char base[33], scale[40], rank[16];
    hex(model->fingerprint, base);
    snprintf(rank, sizeof rank, "%u", adapter->rank);
    if (!real_text(adapter->scale, scale))
        return bxn_fail(error, BITAXON_OUT_OF_MEMORY, "out of memory: metadata of an adapter");
    const struct {
        const char *key, *value;
    } facts[] = {
        { "base_fingerprint", base }, { "format_version", "1" }, { "lora_scale", scale },
        { "rank", rank },             { "type", adapter->dora ? "dora" : "lora" },
    };
    bitaxon_status status = BITAXON_OK;
    for (size_t i = 0; i < sizeof facts / sizeof facts[0] && status == BITAXON_OK; i++)
        status = bxn_st_meta(writer, facts[i].key, facts[i].value, error);
    return status;
}

bitaxon_status bxn_adapter_write(const bxn_model *model, const bxn_adapter *adapter, const char *path,
                                 bitaxon_error *error)
{
    output o = { .adapter = adapter, .error = error };
    bitaxon_status status = bxn_st_create(adapter->mem, path, 8, &o.writer, error);
    if (status != BITAXON_OK)
        return status;
    status = describe(model, adapter, o.writer, error);
    if (status == BITAXON_OK)
        status = bxn_adapter_each(model, adapter, declare, &o);
    if (status == BITAXON_OK)
        status = bxn_st_begin(o.writer, error);
    if (status == BITAXON_OK)
        status = bxn_adapter_each(model, adapter, put, &o);
    if (status == BITAXON_OK)
        return bxn_st_commit(o.writer, error);
    bxn_st_abort(o.writer);
    return status;
}
