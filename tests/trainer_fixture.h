/* SPDX-License-Identifier: Apache-2.0 */
/* trainer_fixture.h - small runs of training for the tests of trainers: a golden model, examples that
 * count upwards from a random token, short parameters, what a run ends with. */
#ifndef TRAINER_FIXTURE_H
#define TRAINER_FIXTURE_H

#include "api/api.h"
#include "call_fixture.h"
#include "fault_files.h"
#include "fault_host.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define UNUSED_OK __attribute__((unused))
#define EXPECT(status, call) expect(BITAXON_##status, (call), #call)

static UNUSED_OK void expect(bitaxon_status want, bitaxon_status found, const char *call)
{
    if (found != want)
        fail_msg("%s: %s, not %s: %s", call, bitaxon_status_name(found), bitaxon_status_name(want), error.message);
}

static UNUSED_OK void expect_message(const char *part)
{
    if (strstr(error.message, part) == NULL)
        fail_msg("the message has no \"%s\": %s", part, error.message);
}

#define QUANTISED "tests/golden/tiny-q4"
#define FLOAT_MODEL "tests/golden/tiny-fp32"
enum { WORDS = 96 };

static UNUSED_OK bitaxon_model *open_model(const char *path, uint32_t threads, const bitaxon_host *host)
{
    bitaxon_model_params params = { .struct_size = sizeof params, .path = path, .threads = threads, .host = host,
                                    .accuracy = BITAXON_ACCURACY_EXACT };
    bitaxon_model *model;
    OK(bitaxon_model_open(&params, &model, &error));
    return model;
}

/* `count` examples of 6 to 21 tokens: t, t + 1, ... Pairs: chosen counts up, rejected repeats. */
static UNUSED_OK bitaxon_dataset *count_up(bitaxon_model *model, int32_t objective, uint32_t count, uint64_t seed)
{
    bitaxon_dataset_params params = { .struct_size = sizeof params, .objective = objective, .max_tokens = 32 };
    bitaxon_dataset *data;
    OK(bitaxon_dataset_open(model, &params, &data, &error));
    for (uint32_t i = 0; i < count; i++) {
        uint32_t dice[4];
        int32_t tokens[24];
        uint8_t mask[24];
        bxn_philox(seed, i, 0, dice);
        uint32_t length = 6 + dice[0] % 16;
        for (int side = 0; side < (objective == BITAXON_OBJECTIVE_ORPO ? 2 : 1); side++) {
            for (uint32_t t = 0; t < length; t++) {
                tokens[t] = (int32_t)((dice[1] + (side == 0 ? t : t / 4)) % WORDS);
                mask[t] = t >= 2;
            }
            OK(bitaxon_dataset_add(data, tokens, mask, length, &error));
        }
    }
    return data;
}

static UNUSED_OK bitaxon_trainer_params small_run(bitaxon_dataset *data, int32_t method, uint64_t steps)
{
    return (bitaxon_trainer_params){ .struct_size = sizeof(bitaxon_trainer_params), .method = method, .data = data,
                                     .rank = 4, .scale = 4, .block_tokens = 48, .accumulate = 2, .steps = steps,
                                     .warmup = 2, .seed = 11, .learning_rate = 5e-3,
                                     .dropout = method == BITAXON_TRAIN_FULL ? 0 : 0.1f };
}

static UNUSED_OK bitaxon_trainer *make_trainer(bitaxon_model *model, const bitaxon_trainer_params *params)
{
    bitaxon_trainer *trainer;
    OK(bitaxon_trainer_create(model, params, &trainer, &error));
    return trainer;
}

static UNUSED_OK bitaxon_train_result step(bitaxon_trainer *trainer)
{
    bitaxon_train_result r = { .struct_size = sizeof r };
    OK(bitaxon_trainer_step(trainer, &r, &error));
    return r;
}

static UNUSED_OK void steps(bitaxon_trainer *trainer, uint64_t count)
{
    while (count-- > 0)
        step(trainer);
}

/* Everything that training has made, by its bits. */
typedef struct outcome {
    size_t floats;
    float *values, *m, *v;
    bxn_train_progress at;
    size_t points;
    bxn_train_point *history;
} outcome;

static UNUSED_OK void *duplicate(const void *from, size_t bytes)
{
    void *copy = malloc(bytes + 1);
    assert_non_null(copy);
    if (bytes != 0)
        memcpy(copy, from, bytes);
    return copy;
}

static UNUSED_OK outcome outcome_of(const bitaxon_trainer *trainer)
{
    const bxn_parameters *p = trainer->core.parameters;
    outcome o = { .floats = p->floats, .at = trainer->core.at, .points = trainer->core.history_count };
    o.values = duplicate(p->value, p->floats * sizeof(float));
    o.m = duplicate(p->m, p->floats * sizeof(float));
    o.v = duplicate(p->v, p->floats * sizeof(float));
    o.history = duplicate(trainer->core.history, o.points * sizeof *o.history);
    return o;
}

static UNUSED_OK void outcome_free(outcome *o)
{
    free(o->values);
    free(o->m);
    free(o->v);
    free(o->history);
}

static UNUSED_OK void check_outcome(const bitaxon_trainer *trainer, const outcome *want)
{
    const bxn_parameters *p = trainer->core.parameters;
    assert_int_equal(p->floats, want->floats);
    assert_memory_equal(p->value, want->values, p->floats * sizeof(float));
    assert_memory_equal(p->m, want->m, p->floats * sizeof(float));
    assert_memory_equal(p->v, want->v, p->floats * sizeof(float));
    assert_memory_equal(&trainer->core.at, &want->at, sizeof want->at);
    assert_int_equal(trainer->core.history_count, want->points);
    if (want->points != 0)
        assert_memory_equal(trainer->core.history, want->history, want->points * sizeof *want->history);
    for (size_t i = 0; i < p->floats; i++)
        assert_true(p->grad[i] == 0);
}

#endif
