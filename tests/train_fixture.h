/* SPDX-License-Identifier: Apache-2.0 */
/* train_fixture.h - a training run put together by hand for tests of the pass through the whole model: a
 * golden model, its data and first values from tests/golden/train (tests/oracle/make_train_fixtures.py),
 * everything that trains as one table, micro-steps and updates. */
#ifndef TRAIN_FIXTURE_H
#define TRAIN_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>

#include "api/api.h"
#include "fault_host.h"
#include "fixture_tensors.h"
#include "train/bxn_train.h"

#define UNUSED_OK __attribute__((unused))
#define CHECK(call) check_status((call), #call)

static bitaxon_error error = BITAXON_ERROR_INIT;

static UNUSED_OK void check_status(bitaxon_status status, const char *call)
{
    if (status != BITAXON_OK)
        fail_msg("%s: %s: %s", call, bitaxon_status_name(status), error.message);
}

typedef struct training {
    fixture f;
    const json_t *meta;
    fault_host fault;
    bitaxon_model *model;
    const bxn_model *core; /* that runs: of model, or of trainable */
    uint32_t rank;         /* 0: full */
    bxn_trainable *trainable;
    bxn_adapter adapter;
    bxn_adapters adapters;
    bxn_parameters own;    /* of the adapter */
    bxn_model_grads own_grads;
    bxn_parameters *parameters;
    const bxn_model_grads *grads;
    bxn_objective_params objective;
    bxn_optimizer optimizer;
    uint32_t updates, micro; /* micro-steps of an update */
    bool exact;              /* DoRA with the gradient through the norm */
    bxn_micro_step *steps;   /* [updates * micro] */
    uint32_t step_count;
    int32_t *tokens, *labels;
    bxn_document *documents;
    bxn_runner runner;
} training;

static UNUSED_OK double meta_number(const training *t, const char *key, double otherwise)
{
    const json_t *text = json_object_get(t->meta, key);
    return text == NULL ? otherwise : strcmp(json_string_value(text), "true") == 0 ? 1 : atof(json_string_value(text));
}

/* A copy with alignment; free it. */
static UNUSED_OK void *fixture_copy(const fixture *f, const char *name, const char *dtype, size_t size, size_t *count)
{
    size_t n;
    const void *data = fixture_get(f, name, dtype, &n);
    void *out = malloc(n * size + 1);
    assert_non_null(out);
    memcpy(out, data, n * size);
    if (count != NULL)
        *count = n;
    return out;
}

static UNUSED_OK void read_steps(training *t)
{
    size_t rows, documents, steps;
    t->tokens = fixture_copy(&t->f, "tokens", "I32", 4, &rows);
    t->labels = fixture_copy(&t->f, "labels", "I32", 4, NULL);
    uint32_t *lengths = fixture_copy(&t->f, "documents", "U32", 4, &documents);
    uint32_t *counts = fixture_copy(&t->f, "steps", "U32", 4, &steps);
    t->documents = calloc(documents, sizeof *t->documents);
    t->steps = calloc(steps, sizeof *t->steps);
    t->step_count = (uint32_t)steps;
    size_t row = 0, document = 0;
    for (size_t i = 0; i < steps; i++) {
        bxn_micro_step *s = &t->steps[i];
        s->tokens = t->tokens + row;
        s->labels = t->labels + row;
        s->documents = t->documents + document;
        s->document_count = counts[i];
        for (uint32_t d = 0; d < counts[i]; d++, document++) {
            t->documents[document] = (bxn_document){ s->rows, lengths[document] };
            s->rows += lengths[document];
        }
        row += s->rows;
    }
    assert_int_equal(row, rows);
    assert_int_equal(document, documents);
    free(lengths);
    free(counts);
}

static UNUSED_OK uint32_t most_rows(const training *t)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < t->step_count; i++)
        most = t->steps[i].rows > most ? t->steps[i].rows : most;
    return most;
}

/* ---- adapters ----------------------------------------------------------------------------- */

static UNUSED_OK bitaxon_status count_array(void *user, const char *name, uint32_t id, size_t offset, uint32_t rows,
                                            uint32_t cols, size_t ld)
{
    training *t = user;
    bxn_parameter *p = &t->own.items[t->own.count++];
    bxn_weight_grads *g = &t->own_grads.weights[id - 1];
    const char *kind = strrchr(name, '.');
    *p = (bxn_parameter){ .offset = offset, .rows = rows, .cols = cols, .ld = ld, .decay = strcmp(kind, ".m") != 0 };
    snprintf(p->name, sizeof p->name, "%s", name);
    *(strcmp(kind, ".lora_a") == 0 ? &g->a : strcmp(kind, ".lora_b") == 0 ? &g->b : &g->m) = t->own.grad + offset;
    return BITAXON_OK;
}

/* Element i of a parameter in the layout of files: A is stored transposed. */
static UNUSED_OK size_t own_place(const bxn_parameter *p, size_t i)
{
    size_t length = strlen(p->name);
    if (length > 7 && strcmp(p->name + length - 7, ".lora_a") == 0)
        return i % p->rows * p->ld + i / p->rows;
    return i / p->cols * p->ld + i % p->cols;
}

static UNUSED_OK void start_adapter(training *t)
{
    bxn_adapter_plan plan = { .rank = t->rank, .scale = (float)meta_number(t, "scale", 0),
                              .dora = meta_number(t, "dora", 0) != 0, .seed = 1 };
    CHECK(bxn_adapter_create(&t->model->mem, t->core, &plan, &t->adapter, &error));
    t->own.floats = t->adapter.floats;
    t->own.value = t->adapter.values;
    t->own.grad = calloc(t->own.floats, sizeof(float));
    t->own.m = calloc(t->own.floats, sizeof(float));
    t->own.v = calloc(t->own.floats, sizeof(float));
    t->own.items = calloc(3 * (size_t)t->adapter.adapted, sizeof *t->own.items);
    t->own_grads.weights = calloc(t->core->weight_count, sizeof *t->own_grads.weights);
    CHECK(bxn_adapter_each(t->core, &t->adapter, count_array, t));
    for (uint32_t i = 0; i < t->own.count; i++) {
        const bxn_parameter *p = &t->own.items[i];
        char name[128];
        size_t n;
        snprintf(name, sizeof name, "start.%s", p->name);
        float *start = fixture_copy(&t->f, name, "F32", 4, &n);
        assert_int_equal(n, (size_t)p->rows * p->cols);
        for (size_t j = 0; j < n; j++)
            t->own.value[p->offset + own_place(p, j)] = start[j];
        free(start);
    }
    CHECK(bxn_adapter_updated(t->core, &t->adapter, false, NULL, &error));
    t->adapters = (bxn_adapters){ .count = 1, .loras = { t->adapter.loras }, .weights = { 1 } };
    t->parameters = &t->own;
    t->grads = &t->own_grads;
}

static UNUSED_OK void make_runner(training *t, uint32_t rows, size_t keep)
{
    CHECK(bxn_runner_create(&t->model->mem, t->core, rows, t->rank, t->rank != 0 && t->adapter.dora, t->rank == 0, keep,
                            &t->runner, &error));
}

/* ---- a run -------------------------------------------------------------------------------- */

/* name: of a fixture. threads: of the pool; parallel_for (nullable) in its place. */
static UNUSED_OK void training_open(training *t, const char *name, uint32_t threads, uint64_t tier,
                                    int32_t (*parallel_for)(void *, uint32_t, void (*)(void *, uint32_t), void *))
{
    char path[256];
    memset(t, 0, sizeof *t);
    snprintf(path, sizeof path, "tests/golden/train/%s.safetensors", name);
    fixture_open(&t->f, path);
    t->meta = json_object_get(t->f.header, "__metadata__");
    fault_host_init(&t->fault);
    t->fault.host.parallel_for = parallel_for;
    snprintf(path, sizeof path, "tests/golden/%s", json_string_value(json_object_get(t->meta, "model")));
    bitaxon_model_params params = { .struct_size = sizeof params,
                                    .path = path,
                                    .host = &t->fault.host,
                                    .threads = threads,
                                    .cpu_mask = tier,
                                    .accuracy = BITAXON_ACCURACY_EXACT };
    CHECK(bitaxon_model_open(&params, &t->model, &error));
    t->core = &t->model->core;
    t->rank = (uint32_t)meta_number(t, "rank", 0);
    t->exact = meta_number(t, "exact", 0) != 0;
    t->updates = (uint32_t)meta_number(t, "updates", 0);
    t->micro = (uint32_t)meta_number(t, "micro", 0);
    bool orpo = strcmp(json_string_value(json_object_get(t->meta, "objective")), "orpo") == 0;
    t->objective = (bxn_objective_params){ .kind = orpo ? BXN_OBJECTIVE_ORPO : BXN_OBJECTIVE_SFT,
                                           .beta = (float)meta_number(t, "beta", 0),
                                           .lambda = (float)meta_number(t, "lambda", 0),
                                           .balance = (float)meta_number(t, "balance", 0) };
    t->optimizer = (bxn_optimizer){ .kind = BXN_ADAMW, .learning_rate = meta_number(t, "lr", 0),
                                    .min_learning_rate = meta_number(t, "min_lr", 0),
                                    .warmup = (uint64_t)meta_number(t, "warmup", 0), .total = t->updates, .beta1 = 0.9,
                                    .beta2 = 0.999, .epsilon = 1e-8, .weight_decay = meta_number(t, "decay", 0),
                                    .max_norm = meta_number(t, "max_norm", 0), .bias_correction = true };
    read_steps(t);
    if (t->rank != 0) {
        start_adapter(t);
    } else {
        CHECK(bxn_trainable_create(&t->model->mem, &t->model->core, false, &t->trainable, &error));
        t->core = bxn_trainable_model(t->trainable);
        t->parameters = bxn_trainable_parameters(t->trainable);
        t->grads = bxn_trainable_grads(t->trainable);
    }
    make_runner(t, most_rows(t), BXN_KEEP_BYTES);
}

static UNUSED_OK void training_close(training *t)
{
    bxn_runner_free(&t->runner);
    bxn_trainable_free(t->trainable);
    if (t->rank != 0) {
        bxn_adapter_free(&t->adapter);
        free(t->own.grad);
        free(t->own.m);
        free(t->own.v);
        free(t->own.items);
        free(t->own_grads.weights);
    }
    bitaxon_model_free(t->model);
    assert_string_equal(fault_host_balance(&t->fault), "");
    free(t->tokens);
    free(t->labels);
    free(t->documents);
    free(t->steps);
    fixture_close(&t->f);
}

static UNUSED_OK const bxn_adapters *in_force(const training *t) { return t->rank != 0 ? &t->adapters : NULL; }

/* One micro-step; evaluation when grads is NULL. */
static UNUSED_OK bitaxon_status run_step(training *t, const bxn_micro_step *step, const bxn_model_grads *grads,
                                         const atomic_int *cancel, bxn_losses *losses)
{
    return bxn_runner_step(&t->runner, step, &t->objective, in_force(t), grads, cancel, losses, &error);
}

static UNUSED_OK void clear_grads(training *t)
{
    memset(t->parameters->grad, 0, t->parameters->floats * sizeof(float));
}

static UNUSED_OK void values_changed(training *t)
{
    if (t->rank == 0)
        bxn_trainable_updated(t->trainable);
    else
        CHECK(bxn_adapter_updated(t->core, &t->adapter, false, NULL, &error));
}

/* The micro-steps of update u: gradients summed, exact DoRA's included. Returns what losses are sums over. */
static UNUSED_OK double run_update(training *t, uint32_t u, bxn_losses *losses)
{
    memset(losses, 0, sizeof *losses);
    for (uint32_t i = 0; i < t->micro; i++)
        CHECK(run_step(t, &t->steps[u * t->micro + i], t->grads, NULL, losses));
    if (t->exact)
        CHECK(bxn_adapter_updated(t->core, &t->adapter, false, t->own.grad, &error));
    return t->objective.kind == BXN_OBJECTIVE_ORPO ? (double)losses->pairs : (double)losses->tokens;
}

#endif
