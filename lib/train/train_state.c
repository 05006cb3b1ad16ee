/* SPDX-License-Identifier: Apache-2.0 */
/* train_state.c - what a checkpoint of a run holds (docs/training.md), and going on from one. Called by the API.
 *
 *   adapters.safetensors         the adapter, or parameters.safetensors: all parameters of full training
 *   optimizer_state.safetensors  step, learning_rate, moments NAME.m and NAME.v of each parameter
 *   history.safetensors          losses of all updates and evaluations
 *   trainer_state.json           where the run stands, and the parameters that it was made with
 *   manifest.json                sizes and checksums of these, written last
 *
 * A save comes between updates, so that no part of a gradient is pending, and random numbers follow from
 * seed and counters. Everything is checked before anything of the trainer changes. */
#include "import/import.h"
#include "io/io.h"
#include "train/bxn_trainer.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

_Static_assert(sizeof(bxn_cursor) == 16, "a cursor is its epoch and its index");

#define PIECE 4096 /* floats */
#define KEEP 3
#define MAX_STATE_BYTES 1048576u

enum { FILES = 4 };

static void files_of(const bxn_trainer *t, const char *names[FILES])
{
    names[0] = t->trainable != NULL ? BXN_CHECKPOINT_VALUES : BXN_CHECKPOINT_ADAPTER;
    names[1] = BXN_CHECKPOINT_MOMENTS;
    names[2] = BXN_CHECKPOINT_HISTORY;
    names[3] = BXN_CHECKPOINT_STATE;
}

static bitaxon_status join(char out[BXN_PATH_MAX], const char *path, const char *name, bitaxon_error *error)
{
    int n = snprintf(out, BXN_PATH_MAX, "%s/%s", path, name);
    return n > 0 && n < BXN_PATH_MAX ? BITAXON_OK
                                     : bxn_fail(error, BITAXON_LIMIT, "the path is too long: %.100s...", path);
}

/* ---- arrays -------------------------------------------------------------------------------- */

/* Adapters keep A transposed to what files hold. */
static bool transposed(const bxn_parameter *p)
{
    size_t n = strlen(p->name);
    return n > 7 && strcmp(p->name + n - 7, ".lora_a") == 0;
}

/* Which arrays of the parameters a file has. */
typedef struct part {
    const char *suffix;
    float *array;
    bool second; /* of AdamW alone */
} part;

static uint32_t parts_of(const bxn_trainer *t, bool moments, part out[2])
{
    const bxn_parameters *p = t->parameters;
    out[0] = moments ? (part){ ".m", p->m, false } : (part){ "", p->value, false };
    out[1] = (part){ ".v", p->v, true };
    return moments ? 2 : 1;
}

static bool has_part(const bxn_trainer *t, const bxn_parameter *p, const part *of)
{
    return !(of->second && t->optimizer.kind == BXN_MUON && p->matrix);
}

static void part_name(const bxn_parameter *p, const part *of, char out[sizeof(p->name) + 4])
{
    snprintf(out, sizeof(p->name) + 4, "%s%s", p->name, of->suffix);
}

static void shape_of(const bxn_parameter *p, uint64_t shape[2], uint32_t *rank)
{
    shape[0] = transposed(p) ? p->cols : p->rows == 1 ? p->cols : p->rows;
    shape[1] = transposed(p) ? p->rows : p->cols;
    *rank = p->rows == 1 && !transposed(p) ? 1 : 2;
}

static bitaxon_status put_array(bxn_st_writer *writer, const bxn_parameter *p, const float *array, bitaxon_error *error)
{
    const float *values = array + p->offset;
    float piece[PIECE];
    bitaxon_status status = BITAXON_OK;
    size_t used = 0;
    if (!transposed(p)) {
        for (uint32_t r = 0; r < p->rows && status == BITAXON_OK; r++)
            status = bxn_st_put(writer, values + r * p->ld, p->cols * sizeof(float), error);
        return status;
    }
    for (uint32_t k = 0; k < p->cols && status == BITAXON_OK; k++) {
        for (uint32_t r = 0; r < p->rows; r++) /* ranks are below PIECE */
            piece[used++] = values[r * p->ld + k];
        if (used + p->rows > PIECE || k + 1 == p->cols) {
            status = bxn_st_put(writer, piece, used * sizeof(float), error);
            used = 0;
        }
    }
    return status;
}

/* head: step and rate of the optimiser's file. */
static bitaxon_status write_arrays(const bxn_trainer *t, const char *path, bool moments, bitaxon_error *error)
{
    const bxn_parameters *all = t->parameters;
    bxn_st_writer *writer;
    part parts[2];
    uint32_t count = parts_of(t, moments, parts), rank;
    uint64_t shape[2], step = t->at.step;
    float rate = (float)bxn_learning_rate(&t->optimizer, t->at.step == 0 ? 0 : t->at.step - 1);
    bitaxon_status status = bxn_st_create(t->mem, path, 8, &writer, error);
    if (status != BITAXON_OK)
        return status;
    if (moments) {
        status = bxn_st_declare(writer, "step", BXN_U64, 0, shape, error);
        if (status == BITAXON_OK)
            status = bxn_st_declare(writer, "learning_rate", BXN_F32, 0, shape, error);
    }
    for (uint32_t i = 0; i < all->count; i++)
        for (uint32_t k = 0; k < count && status == BITAXON_OK; k++) {
            char name[sizeof all->items->name + 4];
            if (!has_part(t, &all->items[i], &parts[k]))
                continue;
            part_name(&all->items[i], &parts[k], name);
            shape_of(&all->items[i], shape, &rank);
            status = bxn_st_declare(writer, name, BXN_F32, rank, shape, error);
        }
    if (status == BITAXON_OK)
        status = bxn_st_begin(writer, error);
    if (status == BITAXON_OK && moments)
        status = bxn_st_put(writer, &step, sizeof step, error);
    if (status == BITAXON_OK && moments)
        status = bxn_st_put(writer, &rate, sizeof rate, error);
    for (uint32_t i = 0; i < all->count; i++)
        for (uint32_t k = 0; k < count && status == BITAXON_OK; k++)
            if (has_part(t, &all->items[i], &parts[k]))
                status = put_array(writer, &all->items[i], parts[k].array, error);
    if (status == BITAXON_OK)
        return bxn_st_commit(writer, error);
    bxn_st_abort(writer);
    return status;
}

/* An opened file of a checkpoint. */
typedef struct input {
    bxn_bundle *bundle;
    bxn_tensors *tensors;
} input;

static void close_input(input *in)
{
    bxn_tensors_free(in->tensors);
    bxn_bundle_free(in->bundle);
    *in = (input){ NULL, NULL };
}

static bitaxon_status open_input(bxn_mem *mem, const char *path, input *in, bitaxon_error *error)
{
    *in = (input){ NULL, NULL };
    bitaxon_status status = bxn_bundle_open(mem, path, NULL, 0, BXN_BUNDLE_NO_MMAP, &in->bundle, error);
    if (status == BITAXON_OK)
        status = bxn_tensors_open(in->bundle, &in->tensors, error);
    if (status != BITAXON_OK)
        close_input(in);
    return status;
}

static bitaxon_status find(const input *in, const char *name, bxn_dtype dtype, uint32_t rank, const uint64_t *shape,
                           const bxn_tensor **out, bitaxon_error *error)
{
    const bxn_tensor *tensor = bxn_tensors_find(in->tensors, name);
    *out = tensor;
    if (tensor == NULL)
        return bxn_fail(error, BITAXON_FORMAT, "damaged checkpoint: no tensor %s in %s", name, in->bundle->where);
    bool fits = tensor->dtype == dtype && tensor->rank == rank;
    for (uint32_t i = 0; i < rank && fits; i++)
        fits = tensor->shape[i] == shape[i];
    return fits ? BITAXON_OK
                : bxn_fail(error, BITAXON_FORMAT, "damaged checkpoint: tensor %s has another type or shape in %s", name,
                           in->bundle->where);
}

static bitaxon_status get_array(const input *in, const bxn_tensor *tensor, const bxn_parameter *p, float *array,
                                bitaxon_error *error)
{
    float *values = array + p->offset, piece[PIECE];
    bitaxon_status status = BITAXON_OK;
    if (!transposed(p)) {
        for (uint32_t r = 0; r < p->rows && status == BITAXON_OK; r++)
            status = bxn_tensor_read(in->tensors, tensor, (uint64_t)r * p->cols * sizeof(float), values + r * p->ld,
                                     p->cols * sizeof(float), error);
        return status;
    }
    for (uint32_t k = 0; k < p->cols && status == BITAXON_OK; k++) {
        status = bxn_tensor_read(in->tensors, tensor, (uint64_t)k * p->rows * sizeof(float), piece,
                                 p->rows * sizeof(float), error);
        for (uint32_t r = 0; r < p->rows && status == BITAXON_OK; r++)
            values[r * p->ld + k] = piece[r];
    }
    return status;
}

/* Check (`take` false) that all arrays are there, or read them. */
static bitaxon_status read_arrays(bxn_trainer *t, const input *in, bool moments, bool take, bitaxon_error *error)
{
    const bxn_parameters *all = t->parameters;
    const bxn_tensor *tensor;
    part parts[2];
    uint32_t count = parts_of(t, moments, parts), rank;
    uint64_t shape[2];
    bitaxon_status status = BITAXON_OK;
    for (uint32_t i = 0; i < all->count; i++)
        for (uint32_t k = 0; k < count && status == BITAXON_OK; k++) {
            char name[sizeof all->items->name + 4];
            if (!has_part(t, &all->items[i], &parts[k]))
                continue;
            part_name(&all->items[i], &parts[k], name);
            shape_of(&all->items[i], shape, &rank);
            status = find(in, name, BXN_F32, rank, shape, &tensor, error);
            if (status == BITAXON_OK && take)
                status = get_array(in, tensor, &all->items[i], parts[k].array, error);
        }
    return status;
}

/* ---- history -------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    bxn_dtype dtype;
    size_t offset;
} columns[] = {
    { "step", BXN_U64, offsetof(bxn_train_point, step) },
    { "evaluation", BXN_U64, offsetof(bxn_train_point, evaluation) },
    { "loss", BXN_F64, offsetof(bxn_train_point, loss) },
    { "learning_rate", BXN_F64, offsetof(bxn_train_point, learning_rate) },
    { "gradient_norm", BXN_F64, offsetof(bxn_train_point, gradient_norm) },
};
enum { COLUMNS = sizeof columns / sizeof columns[0] };

static bitaxon_status write_history(const bxn_trainer *t, const char *path, bitaxon_error *error)
{
    bxn_st_writer *writer;
    uint64_t count = t->history_count, piece[PIECE / 2];
    bitaxon_status status = bxn_st_create(t->mem, path, 8, &writer, error);
    if (status != BITAXON_OK)
        return status;
    for (size_t c = 0; c < COLUMNS && status == BITAXON_OK; c++)
        status = bxn_st_declare(writer, columns[c].name, columns[c].dtype, 1, &count, error);
    if (status == BITAXON_OK)
        status = bxn_st_begin(writer, error);
    for (size_t c = 0; c < COLUMNS; c++)
        for (size_t at = 0; at < count && status == BITAXON_OK;) {
            size_t n = 0;
            for (; n < PIECE / 2 && at < count; n++, at++)
                memcpy(&piece[n], (const char *)&t->history[at] + columns[c].offset, sizeof *piece);
            status = bxn_st_put(writer, piece, n * sizeof *piece, error);
        }
    if (status == BITAXON_OK)
        return bxn_st_commit(writer, error);
    bxn_st_abort(writer);
    return status;
}

static bitaxon_status history_size(const input *in, uint64_t *count, bitaxon_error *error)
{
    const bxn_tensor *tensor = bxn_tensors_find(in->tensors, columns[0].name);
    *count = tensor != NULL && tensor->rank == 1 ? tensor->shape[0] : 0;
    bitaxon_status status = BITAXON_OK;
    for (size_t c = 0; c < COLUMNS && status == BITAXON_OK; c++)
        status = find(in, columns[c].name, columns[c].dtype, 1, count, &tensor, error);
    return status;
}

/* There is room for them. */
static bitaxon_status read_history(bxn_trainer *t, const input *in, uint64_t count, bitaxon_error *error)
{
    uint64_t piece[PIECE / 2];
    bitaxon_status status = BITAXON_OK;
    for (size_t c = 0; c < COLUMNS; c++) {
        const bxn_tensor *tensor = bxn_tensors_find(in->tensors, columns[c].name);
        for (size_t at = 0; at < count && status == BITAXON_OK;) {
            size_t n = count - at < PIECE / 2 ? count - at : PIECE / 2;
            status = bxn_tensor_read(in->tensors, tensor, at * sizeof *piece, piece, n * sizeof *piece, error);
            for (size_t i = 0; i < n && status == BITAXON_OK; i++, at++)
                memcpy((char *)&t->history[at] + columns[c].offset, &piece[i], sizeof *piece);
        }
    }
    return status;
}

/* ---- state ---------------------------------------------------------------------------------- */

static bool set(json_t *to, const char *key, json_t *value) { return json_object_set_new(to, key, value) == 0; }

static json_t *hex(const uint8_t bytes[16])
{
    char text[33];
    for (int i = 0; i < 16; i++)
        snprintf(text + 2 * i, 3, "%02x", bytes[i]);
    return json_string(text);
}

static json_t *integer(uint64_t value) { return json_integer((json_int_t)value); }

/* Everything that the bits of the run follow from but `steps`, in the order in which a difference is told. */
static json_t *identity(const bxn_trainer *t)
{
    static const char *const methods[] = { "", "lora", "dora", "full" };
    static const char *const accuracies[] = { "", "exact", "near", "fast" };
    const bitaxon_trainer_params *p = &t->params;
    bxn_dataset_facts facts;
    char seed[24];
    json_t *to = json_object();
    bool full = p->method == BITAXON_TRAIN_FULL, orpo = p->objective == BITAXON_OBJECTIVE_ORPO;
    bxn_dataset_facts_get(t->data, &facts);
    snprintf(seed, sizeof seed, "%" PRIu64, p->seed);
    bool fine = set(to, "model", hex(t->source->fingerprint)) && set(to, "data", hex(facts.id)) &&
                set(to, "method", json_string(methods[p->method])) &&
                set(to, "objective", json_string(orpo ? "orpo" : "sft")) && set(to, "seed", json_string(seed)) &&
                set(to, "accuracy", json_string(accuracies[t->model->accuracy]));
    if ((p->flags & BITAXON_TRAIN_NO_ISOLATION) != 0)
        fine = fine && set(to, "separator", json_integer(t->separator));
    if (!full)
        fine = fine && set(to, "start_adapter", hex(t->start_id)) && set(to, "rank", integer(p->rank)) &&
               set(to, "scale", json_real((double)p->scale)) && set(to, "dropout", json_real((double)p->dropout)) &&
               set(to, "targets", json_string(p->targets != NULL ? p->targets : "")) &&
               set(to, "exact_norm", json_boolean((p->flags & BITAXON_TRAIN_EXACT_NORM) != 0));
    fine = fine && set(to, "block_tokens", integer(p->block_tokens)) && set(to, "blocks", integer(p->blocks)) &&
           set(to, "micro_steps", integer((uint64_t)p->accumulate * p->machines)) &&
           set(to, "ordered", json_boolean((p->flags & BITAXON_TRAIN_ORDERED) != 0)) &&
           set(to, "isolation", json_boolean((p->flags & BITAXON_TRAIN_NO_ISOLATION) == 0)) &&
           set(to, "shuffle", json_boolean((p->flags & BITAXON_TRAIN_NO_SHUFFLE) == 0)) &&
           set(to, "learning_rate", json_real(p->learning_rate)) &&
           set(to, "min_learning_rate", json_real(p->min_learning_rate)) && set(to, "warmup", integer(p->warmup)) &&
           set(to, "weight_decay", json_real(p->weight_decay)) && set(to, "max_norm", json_real(p->max_norm)) &&
           set(to, "optimizer", json_string(p->optimizer == BITAXON_OPTIMIZER_MUON ? "muon" : "adamw")) &&
           set(to, "beta1", json_real(p->beta1)) && set(to, "beta2", json_real(p->beta2)) &&
           set(to, "epsilon", json_real(p->epsilon)) &&
           set(to, "bias_correction", json_boolean((p->flags & BITAXON_TRAIN_NO_BIAS_CORRECTION) == 0)) &&
           set(to, "balance", json_real((double)p->balance));
    if (p->optimizer == BITAXON_OPTIMIZER_MUON)
        fine = fine && set(to, "momentum", json_real(p->momentum)) &&
               set(to, "other_learning_rate", json_real(p->other_learning_rate));
    if (orpo)
        fine = fine && set(to, "orpo_beta", json_real((double)p->orpo_beta)) &&
               set(to, "orpo_lambda", json_real((double)p->orpo_lambda));
    if (!fine) {
        json_decref(to);
        return NULL;
    }
    return to;
}

/* Counters by name, written and read alike. */
static const struct {
    const char *name;
    size_t offset;
} counters[] = {
    { "step", offsetof(bxn_train_progress, step) },
    { "attempts", offsetof(bxn_train_progress, attempts) },
    { "skipped_steps", offsetof(bxn_train_progress, skipped) },
    { "skipped_in_a_row", offsetof(bxn_train_progress, bad) },
    { "empty_micro_steps", offsetof(bxn_train_progress, empty) },
    { "tokens", offsetof(bxn_train_progress, tokens) },
    { "epoch", offsetof(bxn_train_progress, cursor.epoch) },
    { "index", offsetof(bxn_train_progress, cursor.index) },
};
enum { COUNTERS = sizeof counters / sizeof counters[0] };

static const char *kernels_of(const bxn_trainer *t) { return bxn_kernels_name(t->model->kernels.features); }

static bitaxon_status write_state(const bxn_trainer *t, const char *path, bitaxon_error *error)
{
    json_t *root = json_object();
    bxn_writer *writer = NULL;
    bool fine = root != NULL && set(root, "format", json_string("bitaxon.training")) &&
                set(root, "version", integer(1));
    for (size_t i = 0; i < COUNTERS && fine; i++) {
        uint64_t value;
        memcpy(&value, (const char *)&t->at + counters[i].offset, sizeof value);
        fine = set(root, counters[i].name, integer(value));
    }
    double loss = 0;
    for (size_t i = 0; i < t->history_count; i++)
        if (t->history[i].evaluation == 0)
            loss = t->history[i].loss;
    fine = fine && set(root, "pending_micro_steps", integer(0)) && set(root, "steps", integer(t->params.steps)) &&
           set(root, "loss", json_real(loss)) && set(root, "kernels", json_string(kernels_of(t))) &&
           set(root, "parameters", identity(t));
    bxn_locale locale;
    fine = bxn_locale_enter(&locale) && fine;
    size_t flags = JSON_INDENT(2) | JSON_REAL_PRECISION(17), bytes = fine ? json_dumpb(root, NULL, 0, flags) : 0;
    void *text = NULL;
    bitaxon_status status = bytes != 0
                                ? bxn_alloc(t->mem, bytes, "state of a run", &text, error)
                                : bxn_fail(error, BITAXON_OUT_OF_MEMORY, "out of memory: state of a run");
    if (status == BITAXON_OK && json_dumpb(root, text, bytes, flags) != bytes)
        status = bxn_fail(error, BITAXON_OUT_OF_MEMORY, "out of memory: state of a run");
    bxn_locale_leave(&locale);
    json_decref(root);
    if (status == BITAXON_OK)
        status = bxn_writer_open(t->mem, path, &writer, error);
    if (status == BITAXON_OK)
        status = bxn_writer_put(writer, text, bytes, error);
    if (status == BITAXON_OK)
        status = bxn_writer_put(writer, "\n", 1, error);
    if (writer != NULL && status == BITAXON_OK)
        status = bxn_writer_commit(writer, error);
    else
        bxn_writer_abort(writer);
    bxn_free(t->mem, text, bytes);
    return status;
}

static void show(const json_t *value, size_t digits, char out[48])
{
    bxn_locale locale;
    size_t n = bxn_locale_enter(&locale) && value != NULL
                   ? json_dumpb(value, out, 47, JSON_ENCODE_ANY | JSON_REAL_PRECISION(digits)) : 0;
    bxn_locale_leave(&locale);
    if (n == 0)
        snprintf(out, 48, "%s", value == NULL ? "nothing" : "something else");
    else
        out[n < 47 ? n : 47] = '\0';
}

static bitaxon_status compare(const bxn_trainer *t, const json_t *theirs, const char *path, bitaxon_error *error)
{
    json_t *ours = identity(t);
    bitaxon_status status = BITAXON_OK;
    if (ours == NULL)
        return bxn_fail(error, BITAXON_OUT_OF_MEMORY, "out of memory: parameters of a run");
    for (void *at = json_object_iter(ours); at != NULL && status == BITAXON_OK; at = json_object_iter_next(ours, at)) {
        const char *key = json_object_iter_key(at);
        json_t *mine = json_object_iter_value(at), *other = json_object_get(theirs, key);
        bool same = json_equal(mine, other) || (json_is_number(mine) && json_is_number(other) &&
                                                json_number_value(mine) == json_number_value(other));
        char a[48], b[48];
        if (same)
            continue;
        for (size_t digits = 9; digits <= 17; digits += 8) { /* all of them where nine look the same */
            show(other, digits, a);
            show(mine, digits, b);
            if (strcmp(a, b) != 0)
                break;
        }
        status = bxn_fail(error, BITAXON_MISMATCH, "the checkpoint was made with %s %s, this trainer has %s: %.100s",
                          key, a, b, path);
    }
    json_decref(ours);
    return status;
}

static bitaxon_status read_state(const bxn_trainer *t, const char *path, bxn_train_progress *out, bitaxon_error *error)
{
    bitaxon_source source;
    bxn_json json = { 0 };
    void *text = NULL;
    char reason[32];
    bitaxon_status status = bxn_source_file_open(t->mem, path, &source, error);
    if (status != BITAXON_OK)
        return status;
    size_t bytes = source.size <= MAX_STATE_BYTES ? (size_t)source.size : 0;
    status = bytes != 0 ? bxn_alloc(t->mem, bytes, "state of a run", &text, error)
                        : bxn_fail(error, BITAXON_FORMAT, "not the state of a run: %s", path);
    int32_t code = status == BITAXON_OK ? source.read_at(source.user, 0, text, bytes) : 0;
    if (code != 0)
        status = bxn_fail(error, BITAXON_IO, "cannot read (%s): %s", bxn_io_reason(code, reason), path);
    source.close(source.user);
    if (status == BITAXON_OK)
        status = bxn_json_parse(t->mem, text, bytes, path, &json, error);
    bxn_free(t->mem, text, bytes);
    if (status != BITAXON_OK)
        return status;
    memset(out, 0, sizeof *out);
    for (size_t i = 0; i < COUNTERS && status == BITAXON_OK; i++) {
        const json_t *value = json_object_get(json.root, counters[i].name);
        uint64_t number = (uint64_t)json_integer_value(value);
        if (!json_is_integer(value) || json_integer_value(value) < 0)
            status = bxn_fail(error, BITAXON_FORMAT, "damaged checkpoint: no number \"%s\" in %s", counters[i].name,
                              path);
        memcpy((char *)out + counters[i].offset, &number, sizeof number);
    }
    const json_t *parameters = json_object_get(json.root, "parameters");
    if (status == BITAXON_OK && !json_is_object(parameters))
        status = bxn_fail(error, BITAXON_FORMAT, "damaged checkpoint: no parameters in %s", path);
    if (status == BITAXON_OK)
        status = compare(t, parameters, path, error);
    const char *kernels = json_string_value(json_object_get(json.root, "kernels"));
    if (status == BITAXON_OK && (kernels == NULL || strcmp(kernels, kernels_of(t)) != 0))
        bxn_log(t->mem, BITAXON_LOG_WARNING, "the checkpoint's kernels were %.40s, here they are %s: the bits of the "
                "run may differ: %.100s", kernels != NULL ? kernels : "others", kernels_of(t), path);
    bxn_json_free(&json);
    if (status == BITAXON_OK && out->step > t->params.steps)
        return bxn_fail(error, BITAXON_MISMATCH,
                        "the checkpoint has made %" PRIu64 " updates, steps is %" PRIu64 ": %.100s", out->step,
                        t->params.steps, path);
    return status;
}

/* ---- save ------------------------------------------------------------------------------------ */

static bitaxon_status write_all(bxn_trainer *t, const char *path, bitaxon_error *error)
{
    const char *names[FILES];
    char full[BXN_PATH_MAX];
    bitaxon_status status = BITAXON_OK;
    files_of(t, names);
    for (int i = 0; i < FILES && status == BITAXON_OK; i++) {
        status = join(full, path, names[i], error);
        if (status != BITAXON_OK)
            return status;
        status = i == 1                   ? write_arrays(t, full, true, error)
                 : i == 2                 ? write_history(t, full, error)
                 : i == 3                 ? write_state(t, full, error)
                 : t->trainable != NULL ? write_arrays(t, full, false, error)
                                          : bxn_adapter_write(t->model, &t->adapter, full, error);
    }
    return status == BITAXON_OK ? bxn_manifest_write(t->mem, path, names, FILES, error) : status;
}

/* *out = directory without slashes at its end. */
static bitaxon_status copy_directory(bxn_trainer *t, const char *directory, size_t bytes, char **out,
                                     bitaxon_error *error)
{
    while (bytes > 1 && directory[bytes - 1] == '/')
        bytes--;
    return bxn_copy_text(t->mem, bytes == 0 ? "." : directory, bytes == 0 ? 1 : bytes, "path", out, error);
}

static void settle_in(bxn_trainer *t, const char *home) { t->settled = bxn_path_identity(home, &t->home); }

static bool is_home(const bxn_trainer *t, const char *directory)
{
    bxn_identity found;
    return t->settled && bxn_path_identity(directory, &found) && found.device == t->home.device &&
           found.number == t->home.number;
}

/* Nobody else's checkpoints are in it; what is left over of those that are not is cleared up after that. */
static bitaxon_status claim(const bxn_trainer *t, const char *home, bitaxon_error *error)
{
    uint64_t *steps = NULL;
    size_t count = 0, room = 0;
    bitaxon_status status = bxn_checkpoints_list(t->mem, home, false, &steps, &count, &room, error);
    if (status == BITAXON_OK && count != 0 && !is_home(t, home))
        status = bxn_fail(error, BITAXON_BAD_STATE,
                          "%.100s has checkpoints of another run (step %" PRIu64 "): resume from them, or save "
                          "elsewhere", home, steps[count - 1]);
    bxn_free(t->mem, steps, room * sizeof *steps);
    if (status != BITAXON_OK)
        return status;
    status = bxn_checkpoints_list(t->mem, home, true, &steps, &count, &room, error);
    bxn_free(t->mem, steps, room * sizeof *steps);
    return status;
}

/* The directory's own name, and those above it, survive a loss of power. */
static bitaxon_status sync_names(const char *home, bitaxon_error *error)
{
    char path[BXN_PATH_MAX];
    bitaxon_status status = join(path, home, "", error);
    for (size_t i = status == BITAXON_OK ? strlen(home) : 0; i > 0 && status == BITAXON_OK; i--)
        if (path[i - 1] == '/' && i > 1 && path[i - 2] != '/') {
            path[i - 1] = '\0';
            status = bxn_directory_sync(path, error);
        }
    return status == BITAXON_OK ? bxn_directory_sync(home[0] == '/' ? "/" : ".", error) : status;
}

bitaxon_status bxn_trainer_save(bxn_trainer *t, const char *directory, uint32_t keep, bitaxon_error *error)
{
    char path[BXN_PATH_MAX], *home = NULL;
    bitaxon_error ignored = BITAXON_ERROR_INIT;
    bool made = false, placed = false;
    bitaxon_status status = bxn_trainer_usable(t, error);
    if (status == BITAXON_OK)
        status = copy_directory(t, directory, strlen(directory), &home, error);
    bool there = status == BITAXON_OK && bxn_path_exists(home);
    if (status == BITAXON_OK)
        status = bxn_make_directory(home, error);
    if (status == BITAXON_OK && !there)
        status = sync_names(home, error);
    if (status == BITAXON_OK)
        status = claim(t, home, error);
    if (status == BITAXON_OK)
        status = bxn_checkpoint_path(path, home, t->at.step, ".tmp", error);
    if (status == BITAXON_OK) {
        status = bxn_directory_make(path, error);
        made = status == BITAXON_OK;
    }
    if (status == BITAXON_OK)
        status = write_all(t, path, error);
    if (status == BITAXON_OK)
        status = bxn_checkpoint_place(path, home, t->at.step, &placed, error);
    if (placed) /* it is this run's, even if it may not survive a loss of power */
        settle_in(t, home);
    else if (made)
        (void)bxn_directory_remove(path, &ignored);
    if (status == BITAXON_OK)
        bxn_checkpoints_trim(t->mem, home, t->at.step, keep == 0 ? KEEP : keep);
    if (home != NULL)
        bxn_free(t->mem, home, strlen(home) + 1);
    return status;
}

/* ---- resume ---------------------------------------------------------------------------------- */

static bool same_layout(const bxn_adapter *a, const bxn_adapter *b)
{
    bool same = a->floats == b->floats && a->dora == b->dora && a->weight_count == b->weight_count;
    for (uint32_t i = 0; i < a->weight_count && same; i++)
        same = a->loras[i].rank == b->loras[i].rank;
    return same;
}

/* Values of the adapter, still beside the run. */
static bitaxon_status read_adapter(bxn_trainer *t, const char *path, bxn_adapter *out, bitaxon_error *error)
{
    bitaxon_status status = bxn_adapter_read(t->mem, t->model, path, t->adapter.scale, out, error);
    if (status == BITAXON_OK && !same_layout(&t->adapter, out)) {
        bxn_adapter_free(out);
        status = bxn_fail(error, BITAXON_MISMATCH, "the checkpoint's adapter changes other weights: %.160s", path);
    }
    return status;
}

/* All of one checkpoint is checked, then taken. */
static bitaxon_status take(bxn_trainer *t, const char *path, bitaxon_error *error)
{
    const char *names[FILES];
    char full[FILES][BXN_PATH_MAX];
    bxn_train_progress at;
    bxn_adapter adapter = { 0 };
    input values = { NULL, NULL }, moments = { NULL, NULL }, history = { NULL, NULL };
    uint64_t points = 0;
    files_of(t, names);
    bitaxon_status status = bxn_manifest_check(t->mem, path, names, FILES, error);
    for (int i = 0; i < FILES && status == BITAXON_OK; i++)
        status = join(full[i], path, names[i], error);
    if (status == BITAXON_OK)
        status = read_state(t, full[3], &at, error);
    if (status == BITAXON_OK)
        status = open_input(t->mem, full[1], &moments, error);
    if (status == BITAXON_OK)
        status = read_arrays(t, &moments, true, false, error);
    if (status == BITAXON_OK)
        status = open_input(t->mem, full[2], &history, error);
    if (status == BITAXON_OK)
        status = history_size(&history, &points, error);
    if (status == BITAXON_OK)
        status = bxn_trainer_history_reserve(t, points, error);
    if (status == BITAXON_OK && t->trainable == NULL)
        status = read_adapter(t, full[0], &adapter, error);
    else if (status == BITAXON_OK)
        status = open_input(t->mem, full[0], &values, error);
    if (status == BITAXON_OK && t->trainable != NULL)
        status = read_arrays(t, &values, false, false, error);
    if (status != BITAXON_OK)
        goto done;

    /* From here on only the device can fail, and then nothing of the run holds. */
    t->broken = true;
    status = read_arrays(t, &moments, true, true, error);
    if (status == BITAXON_OK && t->trainable != NULL)
        status = read_arrays(t, &values, false, true, error);
    if (status == BITAXON_OK)
        status = read_history(t, &history, points, error);
    if (status != BITAXON_OK)
        goto done;
    t->broken = false;
    t->at = at;
    t->history_count = points;
    if (t->trainable != NULL) {
        bxn_trainable_updated(t->trainable);
    } else {
        memcpy(t->adapter.values, adapter.values, t->adapter.floats * sizeof(float));
        t->stale = true;
    }
    memset(t->parameters->grad, 0, t->parameters->floats * sizeof(float));
done:
    bxn_adapter_free(&adapter);
    close_input(&history);
    close_input(&moments);
    close_input(&values);
    return status;
}

/* The newest that is whole. */
static bitaxon_status take_newest(bxn_trainer *t, const char *directory, bitaxon_error *error)
{
    char path[BXN_PATH_MAX];
    uint64_t *steps;
    size_t count, room;
    bitaxon_status status = bxn_checkpoints_list(t->mem, directory, true, &steps, &count, &room, error);
    if (status != BITAXON_OK)
        return status;
    status = bxn_fail(error, BITAXON_IO, "there is no checkpoint in %s", directory);
    for (size_t i = count; i > 0; i--) {
        bitaxon_error why = BITAXON_ERROR_INIT;
        status = bxn_checkpoint_path(path, directory, steps[i - 1], "", error);
        if (status == BITAXON_OK)
            status = take(t, path, &why);
        if (status == BITAXON_OK)
            break;
        status = bxn_fail(error, status, "%s", why.message);
        if (status != BITAXON_FORMAT && status != BITAXON_IO)
            break;
        bxn_log(t->mem, BITAXON_LOG_WARNING, "%s: the one before it is tried", why.message);
    }
    bxn_free(t->mem, steps, room * sizeof *steps);
    return status;
}

bitaxon_status bxn_trainer_resume(bxn_trainer *t, const char *directory, bitaxon_error *error)
{
    char *home = NULL;
    uint64_t step;
    size_t bytes = strlen(directory);
    while (bytes > 1 && directory[bytes - 1] == '/')
        bytes--;
    char *path = NULL;
    bitaxon_status status = copy_directory(t, directory, bytes, &path, error);
    if (status != BITAXON_OK)
        return status;
    bool one = bxn_checkpoint_named(path, &step);
    const char *slash = one ? strrchr(path, '/') : NULL;
    size_t parent = !one ? bytes : slash == NULL ? 0 : slash == path ? 1 : (size_t)(slash - path);
    status = copy_directory(t, path, parent, &home, error);
    if (status == BITAXON_OK && one)
        status = bxn_checkpoint_bring_back(path, error);
    uint64_t saved = bxn_float_enter();
    if (status == BITAXON_OK)
        status = one ? take(t, path, error) : take_newest(t, path, error);
    if (status == BITAXON_OK) { /* gains, now if there is memory for them */
        bitaxon_error ignored = BITAXON_ERROR_INIT;
        (void)bxn_trainer_settle(t, false, &ignored);
    }
    bxn_float_leave(saved);
    bxn_free(t->mem, path, strlen(path) + 1);
    if (status == BITAXON_OK)
        settle_in(t, home);
    if (home != NULL)
        bxn_free(t->mem, home, strlen(home) + 1);
    return status;
}
