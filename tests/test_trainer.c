/* SPDX-License-Identifier: Apache-2.0 */
/* test_trainer.c - runs of training through the public interface: that they learn, that no number of
 * threads, no cancel and no heat shows in a bit, what becomes of values that are not finite and of data
 * without anything that counts, several machines, memory told beforehand. */
#include "trainer_fixture.h"

#include <pthread.h>

#define RUNS 5

/* One of each kind. */
static bitaxon_trainer_params run_of(int kind, bitaxon_dataset *data, uint64_t updates)
{
    static const int32_t methods[RUNS] = { BITAXON_TRAIN_LORA, BITAXON_TRAIN_DORA, BITAXON_TRAIN_FULL,
                                           BITAXON_TRAIN_FULL, BITAXON_TRAIN_DORA };
    bitaxon_trainer_params p = small_run(data, methods[kind], updates);
    if (kind == 1)
        p.flags = BITAXON_TRAIN_EXACT_NORM;
    if (kind == 2)
        p.learning_rate = 1e-3;
    if (kind == 3) {
        p.optimizer = BITAXON_OPTIMIZER_MUON;
        p.learning_rate = 0.01;
        p.other_learning_rate = 1e-3;
        p.balance = 0.01f;
    }
    return p;
}

static const char *model_of(int kind) { return kind == 2 || kind == 3 ? FLOAT_MODEL : QUANTISED; }
static int32_t objective_of(int kind) { return kind == 4 ? BITAXON_OBJECTIVE_ORPO : BITAXON_OBJECTIVE_SFT; }

static void test_learns(void **state)
{
    (void)state;
    for (int kind = 0; kind < RUNS; kind++) {
        bitaxon_model *model = open_model(model_of(kind), 2, NULL);
        bitaxon_dataset *data = count_up(model, objective_of(kind), 60, 1);
        bitaxon_dataset *held = count_up(model, objective_of(kind), 20, 2);
        bitaxon_trainer_params p = run_of(kind, data, 30);
        p.validation = held;
        p.learning_rate = kind == 2 ? 5e-3 : 0.02;
        bitaxon_trainer *trainer = make_trainer(model, &p);
        bitaxon_train_result before = { .struct_size = sizeof before }, after = before, r;
        OK(bitaxon_trainer_evaluate(trainer, 0, &before, &error));
        for (uint64_t u = 0; u < 30; u++) {
            r = step(trainer);
            assert_true(r.updated == 1 && r.step == u + 1 && r.skipped_steps == 0 && r.empty_micro_steps == 0);
            assert_true(isfinite(r.loss) && r.loss > 0 && r.gradient_norm > 0 && r.rows > 0 && r.tokens > 0);
            assert_true(r.step_ns > 0 && r.paused_ns == 0 && r.energy_uj == 0);
            assert_true(r.learning_rate == bxn_learning_rate(&trainer->core.optimizer, u));
            assert_int_equal(r.pairs != 0, kind == 4);
        }
        EXPECT(END, bitaxon_trainer_step(trainer, &r, &error));
        OK(bitaxon_trainer_evaluate(trainer, 0, &after, &error));
        print_message("kind %d: held-out loss %.3f to %.3f\n", kind, before.loss, after.loss);
        assert_true(after.loss < (kind == 4 ? 0.92 : 0.8) * before.loss);
        if (kind == 4) {
            assert_true(after.accuracy > before.accuracy - 1e-9 && after.margin > before.margin);
            assert_int_equal(after.pairs, 20);
            assert_true(fabs(after.loss - (after.nll + after.odds)) < 1e-6);
        }
        bitaxon_trainer_info info = { .struct_size = sizeof info };
        OK(bitaxon_trainer_get_info(trainer, &info, &error));
        assert_true(info.step == 30 && info.steps == 30 && info.trainable > 0 && info.tokens > 0);
        assert_true(info.epoch == r.epoch);
        /* 30 updates and two evaluations, in order. */
        bitaxon_train_point points[32];
        size_t count;
        points[0].struct_size = sizeof *points;
        OK(bitaxon_trainer_history(trainer, points, 32, &count, &error));
        assert_int_equal(count, 32);
        assert_true(points[0].evaluation == 1 && points[0].loss == before.loss && points[31].loss == after.loss);
        for (uint64_t i = 1; i < 31; i++)
            assert_true(points[i].evaluation == 0 && points[i].step == i);
        EXPECT(LIMIT, bitaxon_trainer_history(trainer, points, 31, &count, &error));
        /* Any order of freeing. */
        bitaxon_dataset_free(data);
        bitaxon_model_free(model);
        bitaxon_dataset_free(held);
        bitaxon_trainer_free(trainer);
    }
}

static void test_threads(void **state)
{
    (void)state;
    for (int kind = 0; kind < RUNS; kind++) {
        outcome want = { 0 };
        for (uint32_t threads = 1; threads <= 4; threads *= 2) {
            bitaxon_model *model = open_model(model_of(kind), threads, NULL);
            bitaxon_dataset *data = count_up(model, objective_of(kind), 30, 1);
            bitaxon_trainer_params p = run_of(kind, data, 4);
            bitaxon_trainer *trainer = make_trainer(model, &p);
            steps(trainer, 4);
            if (threads == 1)
                want = outcome_of(trainer);
            check_outcome(trainer, &want);
            bitaxon_trainer_free(trainer);
            bitaxon_dataset_free(data);
            bitaxon_model_free(model);
        }
        outcome_free(&want);
    }
}

/* ---- cancelling ------------------------------------------------------------------------------ */

typedef struct stopper {
    bitaxon_trainer *trainer;
    uint64_t calls, next;
    atomic_int end;
} stopper;

/* Says no at one of the next few micro-steps. */
static int32_t stop_now_and_then(void *user, const bitaxon_progress *progress)
{
    stopper *s = user;
    assert_int_equal(progress->stage, BITAXON_STAGE_TRAIN);
    assert_true(progress->done < progress->total);
    if (++s->calls != s->next)
        return 0;
    uint32_t dice[4];
    bxn_philox(5, s->calls, 0, dice);
    s->next = s->calls + 2 + dice[0] % 9;
    return 1;
}

static void *cancel_often(void *user)
{
    stopper *s = user;
    for (uint32_t n = 0; !atomic_load(&s->end); n++) {
        struct timespec wait = { 0, 300000 + n % 7 * 400000 };
        nanosleep(&wait, NULL);
        bitaxon_trainer_cancel(s->trainer);
    }
    return NULL;
}

static void test_cancel(void **state)
{
    (void)state;
    bitaxon_model *model = open_model(QUANTISED, 2, NULL);
    bitaxon_dataset *data = count_up(model, BITAXON_OBJECTIVE_SFT, 30, 1);
    bitaxon_trainer_params p = run_of(1, data, 12);
    bitaxon_trainer *trainer = make_trainer(model, &p);
    steps(trainer, 12);
    outcome want = outcome_of(trainer);
    bitaxon_trainer_free(trainer);

    stopper s = { .next = 1 };
    p.progress = stop_now_and_then;
    p.progress_user = &s;
    trainer = make_trainer(model, &p);
    uint64_t stopped = 0;
    while (trainer->core.at.step < 12) {
        bitaxon_status status = bitaxon_trainer_step(trainer, NULL, &error);
        if (status != BITAXON_OK)
            EXPECT(CANCELLED, status);
        stopped += status != BITAXON_OK;
    }
    assert_true(stopped > 3);
    check_outcome(trainer, &want);
    bitaxon_trainer_free(trainer);

    /* From another thread, also within micro-steps. */
    pthread_t thread;
    p.progress = NULL;
    s.trainer = trainer = make_trainer(model, &p);
    assert_int_equal(pthread_create(&thread, NULL, cancel_often, &s), 0);
    for (stopped = 0; trainer->core.at.step < 12;) {
        bitaxon_status status = bitaxon_trainer_step(trainer, NULL, &error);
        if (status != BITAXON_OK)
            EXPECT(CANCELLED, status);
        stopped += status != BITAXON_OK;
        if (stopped == 200)
            atomic_store(&s.end, 1); /* a slow machine does no step in the time between */
    }
    atomic_store(&s.end, 1);
    pthread_join(thread, NULL);
    print_message("cancelled %llu times from another thread\n", (unsigned long long)stopped);
    check_outcome(trainer, &want);
    /* One that comes between two calls ends the next. */
    bitaxon_trainer_free(trainer);
    trainer = make_trainer(model, &p);
    bitaxon_trainer_cancel(trainer);
    EXPECT(CANCELLED, bitaxon_trainer_step(trainer, NULL, &error));
    steps(trainer, 12);
    check_outcome(trainer, &want);
    bitaxon_trainer_free(trainer);
    bitaxon_trainer_cancel(NULL);
    outcome_free(&want);
    bitaxon_dataset_free(data);
    bitaxon_model_free(model);
}

/* ---- values that are not finite ------------------------------------------------------------------ */

static void test_not_finite(void **state)
{
    (void)state;
    bitaxon_model *model = open_model(QUANTISED, 2, NULL);
    bitaxon_dataset *data = count_up(model, BITAXON_OBJECTIVE_SFT, 30, 1);
    bitaxon_trainer_params p = run_of(0, data, 100);
    p.bad_steps = 3;
    bitaxon_trainer *trainer = make_trainer(model, &p);
    steps(trainer, 2);
    float *value = &trainer->core.adapter.values[0], saved = *value;
    for (int round = 0; round < 2; round++) {
        for (uint32_t n = 1; n <= 5; n++) {
            bitaxon_train_result r = { .struct_size = sizeof r };
            outcome before = outcome_of(trainer);
            *value = round == 0 ? NAN : INFINITY;
            bitaxon_status status = bitaxon_trainer_step(trainer, &r, &error);
            *value = saved;
            if (n < 3) {
                OK(status);
                assert_true(r.updated == 0 && r.step == before.at.step && r.skipped_steps == before.at.skipped + 1);
            } else {
                EXPECT(FORMAT, status);
                expect_message("steps in a row");
            }
            /* Only the place in the data has moved. */
            assert_true(trainer->core.at.bad == n && trainer->core.at.attempts == before.at.attempts + 1);
            assert_true(trainer->core.at.cursor.index != before.at.cursor.index ||
                        trainer->core.at.cursor.epoch != before.at.cursor.epoch);
            before.at = trainer->core.at;
            check_outcome(trainer, &before);
            outcome_free(&before);
        }
        bitaxon_train_result r = step(trainer);
        assert_true(r.updated == 1 && trainer->core.at.bad == 0 && r.skipped_steps == 5u * ((unsigned)round + 1));
        saved = *value;
    }
    bitaxon_trainer_free(trainer);
    bitaxon_dataset_free(data);
    bitaxon_model_free(model);
}

/* ---- data without anything that counts -------------------------------------------------------------- */

static void test_empty_micro_steps(void **state)
{
    (void)state;
    bitaxon_model *model = open_model(QUANTISED, 2, NULL);
    bitaxon_dataset_params params = { .struct_size = sizeof params, .max_tokens = 128 };
    bitaxon_dataset *data;
    int32_t tokens[128];
    uint8_t mask[128] = { 0 };
    for (int i = 0; i < 128; i++)
        tokens[i] = i % WORDS;
    OK(bitaxon_dataset_open(model, &params, &data, &error));
    OK(bitaxon_dataset_add(data, tokens, mask, 128, &error)); /* nothing counts: left out */
    mask[126] = 1;
    OK(bitaxon_dataset_add(data, tokens, mask, 128, &error));
    bitaxon_dataset_info info = { .struct_size = sizeof info };
    OK(bitaxon_dataset_get_info(data, &info, &error));
    assert_true(info.examples == 1 && info.empty == 1 && info.counted == 1);
    /* Blocks of 16 tokens, of which one in eight has a label. */
    bitaxon_trainer_params p = run_of(0, data, 6);
    p.flags = BITAXON_TRAIN_NO_ISOLATION;
    p.block_tokens = 16;
    p.accumulate = 1;
    bitaxon_trainer *trainer;
    EXPECT(INVALID_ARGUMENT, bitaxon_trainer_create(model, &p, &trainer, &error)); /* no tokenizer: no separator */
    expect_message("separator");
    bitaxon_dataset_free(data);
    bitaxon_model_free(model);

    char *folder = make_folder();
    new_model_of_words(in_folder(folder, "m"), small_config("\"vocab_size\": 300"), "affine4");
    model = open_model(in_folder(folder, "m"), 1, NULL);
    OK(bitaxon_dataset_open(model, &params, &data, &error));
    OK(bitaxon_dataset_add(data, tokens, mask, 128, &error));
    p.data = data;
    trainer = make_trainer(model, &p);
    for (uint64_t u = 0; u < 6; u++) {
        bitaxon_train_result r = step(trainer);
        assert_true(r.updated == 1 && r.tokens == 1 && r.empty_micro_steps >= 7 * u);
    }
    EXPECT(BAD_STATE, bitaxon_dataset_add(data, tokens, mask, 128, &error)); /* a trainer has it */
    bitaxon_trainer_free(trainer);
    bitaxon_dataset_free(data);
    OK(bitaxon_dataset_open(model, &params, &data, &error));
    p.data = data;
    EXPECT(FORMAT, bitaxon_trainer_create(model, &p, &trainer, &error));
    bitaxon_dataset_free(data);
    /* Tokens that the model does not have. */
    tokens[5] = 300;
    OK(bitaxon_dataset_open(model, &params, &data, &error));
    OK(bitaxon_dataset_add(data, tokens, NULL, 128, &error));
    p.data = data;
    EXPECT(MISMATCH, bitaxon_trainer_create(model, &p, &trainer, &error));
    expect_message("300");
    bitaxon_dataset_free(data);
    bitaxon_model_free(model);
    remove_folder(folder);
}

/* From a file of records, kept apart or run together, to lower losses; the file's name is no part of the run. */
static void test_from_file(void **state)
{
    (void)state;
    char *folder = make_folder();
    new_model_of_words(in_folder(folder, "m"), small_config("\"vocab_size\": 300"), "affine4");
    bitaxon_model *model = open_model(in_folder(folder, "m"), 2, NULL);
    char records[4096], path[640];
    size_t used = 0;
    for (int i = 0; i < 24; i++)
        used += (size_t)snprintf(records + used, sizeof records - used,
                                 "{\"prompt\": \"%d plus %d is \", \"completion\": \"%d.\"}\n", i, i % 5, i + i % 5);
    for (int kind = 0; kind < 2; kind++) {
        snprintf(path, sizeof path, "%s/%s.jsonl", folder, kind == 0 ? "a" : "b");
        write_whole(path, records, used);
        bitaxon_dataset_params dp = { .struct_size = sizeof dp, .path = path, .max_tokens = 64,
                                      .flags = BITAXON_DATASET_STRICT };
        bitaxon_dataset *data;
        OK(bitaxon_dataset_open(model, &dp, &data, &error));
        bitaxon_trainer_params p = small_run(data, BITAXON_TRAIN_LORA, 20);
        p.learning_rate = 0.02;
        p.block_tokens = 64;
        p.flags = kind == 0 ? 0 : BITAXON_TRAIN_NO_ISOLATION;
        bitaxon_trainer *trainer = make_trainer(model, &p);
        double first = step(trainer).loss;
        steps(trainer, 9);
        OK(bitaxon_trainer_save(trainer, in_folder(folder, kind == 0 ? "run0" : "run1"), 0, &error));
        steps(trainer, 9);
        bitaxon_train_result r = step(trainer);
        print_message("from a file: loss %.3f to %.3f\n", first, r.loss);
        assert_true(r.loss < first && r.epoch > 0);
        outcome want = outcome_of(trainer);
        bitaxon_trainer_free(trainer);
        bitaxon_dataset_free(data);
        char moved[700];
        snprintf(moved, sizeof moved, "%s.moved.jsonl", path);
        assert_int_equal(rename(path, moved), 0);
        dp.path = moved;
        OK(bitaxon_dataset_open(model, &dp, &data, &error));
        p.data = data;
        trainer = make_trainer(model, &p);
        if (kind == 1) { /* what runs on between examples is a part of the run */
            trainer->core.separator++;
            EXPECT(MISMATCH, bitaxon_trainer_resume(trainer, in_folder(folder, "run1"), &error));
            expect_message("separator");
            trainer->core.separator--;
        }
        OK(bitaxon_trainer_resume(trainer, in_folder(folder, kind == 0 ? "run0" : "run1"), &error));
        steps(trainer, 10);
        check_outcome(trainer, &want);
        outcome_free(&want);
        bitaxon_trainer_free(trainer);
        bitaxon_dataset_free(data);
    }
    bitaxon_model_free(model);
    remove_folder(folder);
}

/* ---- results in use ---------------------------------------------------------------------------------- */

/* What a session with the adapter says of held-out examples is what the trainer said. */
static void test_adapter_in_session(void **state)
{
    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        bitaxon_model *model = open_model(QUANTISED, 2, NULL);
        bitaxon_dataset *data = count_up(model, BITAXON_OBJECTIVE_SFT, 60, 1);
        bitaxon_dataset *held = count_up(model, BITAXON_OBJECTIVE_SFT, 8, 2);
        bitaxon_trainer_params p = run_of(kind, data, 10);
        p.validation = held;
        bitaxon_trainer *trainer = make_trainer(model, &p);
        steps(trainer, 10);
        bitaxon_train_result r = { .struct_size = sizeof r };
        OK(bitaxon_trainer_evaluate(trainer, 0, &r, &error));
        bitaxon_adapter *adapter;
        OK(bitaxon_trainer_adapter(trainer, &adapter, &error));
        bitaxon_session *session;
        bitaxon_cache_params cache = { .struct_size = sizeof cache, .kv_type = BITAXON_KV_F32 };
        bitaxon_session_params sp = { .struct_size = sizeof sp, .cache_params = &cache };
        OK(bitaxon_session_create(model, &sp, &session, &error));
        OK(bitaxon_session_set_adapters(session, &adapter, NULL, 1, &error));
        double sum = 0;
        uint64_t tokens = 0;
        for (uint32_t i = 0; i < 8; i++) { /* as count_up made them */
            uint32_t dice[4];
            int32_t example[24];
            float logp[24];
            bxn_philox(2, i, 0, dice);
            uint32_t length = 6 + dice[0] % 16;
            for (uint32_t t = 0; t < length; t++)
                example[t] = (int32_t)((dice[1] + t) % WORDS);
            OK(bitaxon_session_rewind(session, 0, &error));
            OK(bitaxon_session_score(session, example, length, NULL, logp, &error));
            for (uint32_t t = 2; t < length; t++, tokens++)
                sum -= (double)logp[t];
        }
        assert_int_equal(tokens, r.tokens);
        print_message("trainer %.6f, session %.6f\n", r.loss, sum / (double)tokens);
        assert_true(fabs(sum / (double)tokens - r.loss) < 1e-4 * r.loss);

        /* A trainer that starts from it stands where this one does. */
        bitaxon_trainer_params q = p;
        q.adapter = adapter;
        q.method = q.rank = 0;
        bitaxon_trainer *second = make_trainer(model, &q);
        bitaxon_train_result again = { .struct_size = sizeof again };
        OK(bitaxon_trainer_evaluate(second, 0, &again, &error));
        assert_true(again.loss == r.loss);
        step(second);
        bitaxon_trainer_free(second);
        bitaxon_trainer_free(trainer); /* the adapter is a copy */
        OK(bitaxon_session_rewind(session, 0, &error));
        bitaxon_session_free(session);
        bitaxon_adapter_free(adapter);
        bitaxon_dataset_free(held);
        bitaxon_dataset_free(data);
        bitaxon_model_free(model);
    }
}

static void test_full(void **state)
{
    (void)state;
    char *folder = make_folder();
    bitaxon_model *model = open_model(FLOAT_MODEL, 2, NULL), *quantised = open_model(QUANTISED, 1, NULL);
    bitaxon_dataset *data = count_up(model, BITAXON_OBJECTIVE_SFT, 60, 1);
    bitaxon_dataset *held = count_up(model, BITAXON_OBJECTIVE_SFT, 8, 2);
    bitaxon_trainer_params p = run_of(2, data, 8);
    bitaxon_trainer *trainer;
    EXPECT(UNSUPPORTED, bitaxon_trainer_create(quantised, &p, &trainer, &error));
    p.validation = held;
    trainer = make_trainer(model, &p);
    steps(trainer, 8);
    bitaxon_train_result r = { .struct_size = sizeof r }, again = r;
    OK(bitaxon_trainer_evaluate(trainer, 0, &r, &error));
    bitaxon_adapter *adapter;
    EXPECT(BAD_STATE, bitaxon_trainer_adapter(trainer, &adapter, &error));
    assert_null(adapter);
    OK(bitaxon_trainer_write_model(trainer, in_folder(folder, "trained"), &error));
    bitaxon_trainer_free(trainer);
    bitaxon_model *trained = open_model(in_folder(folder, "trained"), 2, NULL);
    trainer = make_trainer(trained, &p);
    OK(bitaxon_trainer_evaluate(trainer, 0, &again, &error));
    assert_true(fabs(again.loss - r.loss) < 1e-6);
    bitaxon_trainer_free(trainer);
    bitaxon_trainer_params q = run_of(0, data, 1);
    trainer = make_trainer(model, &q);
    EXPECT(BAD_STATE, bitaxon_trainer_write_model(trainer, in_folder(folder, "none"), &error));
    EXPECT(BAD_STATE, bitaxon_trainer_evaluate(trainer, 0, &again, &error));
    bitaxon_trainer_free(trainer);
    bitaxon_model_free(trained);
    bitaxon_model_free(quantised);
    bitaxon_dataset_free(data);
    bitaxon_dataset_free(held);
    bitaxon_model_free(model);
    remove_folder(folder);
}

/* ---- several machines --------------------------------------------------------------------------------- */

enum { MACHINES = 3 };
typedef struct room {
    pthread_mutex_t lock;
    pthread_cond_t turn;
    float *gradients[MACHINES];
    double *sums[MACHINES];
    uint32_t here, left;
    uint64_t round;
    bitaxon_status answer;
} room;

typedef struct machine {
    room *r;
    uint32_t number;
    bitaxon_model *model;
    bitaxon_trainer *trainer;
    bitaxon_status status;
} machine;

/* The last to come adds in the order of machines, and all take the result. */
static bitaxon_status reduce(void *user, float *gradients, uint64_t count, double *sums, uint32_t sum_count)
{
    machine *m = user;
    room *r = m->r;
    pthread_mutex_lock(&r->lock);
    uint64_t round = r->round;
    r->gradients[m->number] = gradients;
    r->sums[m->number] = sums;
    if (++r->here == MACHINES) {
        for (uint64_t i = 0; i < count; i++) {
            float sum = r->gradients[0][i];
            for (int k = 1; k < MACHINES; k++)
                sum += r->gradients[k][i];
            for (int k = 0; k < MACHINES; k++)
                r->gradients[k][i] = sum;
        }
        for (uint32_t i = 0; i < sum_count; i++) {
            double sum = r->sums[0][i];
            for (int k = 1; k < MACHINES; k++)
                sum += r->sums[k][i];
            for (int k = 0; k < MACHINES; k++)
                r->sums[k][i] = sum;
        }
        r->here = 0;
        r->round++;
        pthread_cond_broadcast(&r->turn);
    }
    while (r->round == round)
        pthread_cond_wait(&r->turn, &r->lock);
    pthread_mutex_unlock(&r->lock);
    return r->answer;
}

static void *train_machine(void *user)
{
    machine *m = user;
    bitaxon_error own = BITAXON_ERROR_INIT;
    for (int u = 0; u < 6 && m->status == BITAXON_OK; u++)
        m->status = bitaxon_trainer_step(m->trainer, NULL, &own);
    return NULL;
}

static void check_machines(uint32_t flags, int kind)
{
    room r = { .lock = PTHREAD_MUTEX_INITIALIZER, .turn = PTHREAD_COND_INITIALIZER };
    machine machines[MACHINES];
    pthread_t threads[MACHINES];
    outcome want, first = { 0 };
    bitaxon_model *model = open_model(model_of(kind), 1, NULL);
    bitaxon_dataset *data = count_up(model, objective_of(kind), 40, 1);
    bitaxon_trainer_params p = run_of(kind, data, 6);
    p.flags |= flags;
    p.accumulate = 2 * MACHINES;
    bitaxon_trainer *alone = make_trainer(model, &p);
    steps(alone, 6);
    want = outcome_of(alone);
    bitaxon_trainer_free(alone);
    p.accumulate = 2;
    p.machines = MACHINES;
    EXPECT(INVALID_ARGUMENT, bitaxon_trainer_create(model, &p, &alone, &error));
    expect_message("all_reduce");
    for (uint32_t i = 0; i < MACHINES; i++) {
        machines[i] = (machine){ .r = &r, .number = i, .model = open_model(model_of(kind), 1, NULL) };
        p.machine = i;
        p.all_reduce = reduce;
        p.all_reduce_user = &machines[i];
        machines[i].trainer = make_trainer(machines[i].model, &p);
    }
    for (int i = 0; i < MACHINES; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, train_machine, &machines[i]), 0);
    for (int i = 0; i < MACHINES; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < MACHINES; i++) {
        assert_int_equal(machines[i].status, BITAXON_OK);
        if (i == 0)
            first = outcome_of(machines[i].trainer);
        check_outcome(machines[i].trainer, flags != 0 ? &want : &first);
    }
    double worst = 0;
    for (size_t i = 0; i < want.floats; i++)
        worst = fmax(worst, fabs((double)want.values[i] - (double)first.values[i]));
    print_message("three machines against one, kind %d, flags %u: %.3g\n", kind, flags, worst);
    assert_true(worst < 1e-4);
    assert_true(first.at.cursor.index == want.at.cursor.index && first.at.cursor.epoch == want.at.cursor.epoch);
    for (size_t i = 0; i < 6; i++)
        assert_true(fabs(first.history[i].loss - want.history[i].loss) < 1e-4);
    for (int i = 0; i < MACHINES; i++) {
        bitaxon_trainer_free(machines[i].trainer);
        bitaxon_model_free(machines[i].model);
    }
    outcome_free(&first);
    outcome_free(&want);
    bitaxon_dataset_free(data);
    bitaxon_model_free(model);
}

static void test_machines(void **state)
{
    (void)state;
    check_machines(0, 1);
    for (int kind = 0; kind < RUNS; kind++)
        check_machines(BITAXON_TRAIN_ORDERED, kind);
}

typedef struct unreliable {
    uint64_t calls, fail_at;
    bitaxon_status with;
} unreliable;

static bitaxon_status fail_sometimes(void *user, float *gradients, uint64_t count, double *sums, uint32_t sum_count)
{
    unreliable *u = user;
    assert_true(count != 0 && sum_count != 0 && sums[1] > 0);
    if (++u->calls != u->fail_at)
        return BITAXON_OK;
    gradients[0] = NAN;
    return u->with;
}

/* A lost link ends the step with its status, and nothing has changed. */
static void test_lost_link(void **state)
{
    (void)state;
    bitaxon_model *model = open_model(QUANTISED, 1, NULL);
    bitaxon_dataset *data = count_up(model, BITAXON_OBJECTIVE_SFT, 40, 1);
    bitaxon_trainer_params p = run_of(0, data, 4);
    bitaxon_trainer *trainer = make_trainer(model, &p);
    steps(trainer, 4);
    outcome want = outcome_of(trainer);
    bitaxon_trainer_free(trainer);
    unreliable u = { .fail_at = 3, .with = BITAXON_IO };
    p.all_reduce = fail_sometimes;
    p.all_reduce_user = &u;
    trainer = make_trainer(model, &p);
    steps(trainer, 2);
    EXPECT(IO, bitaxon_trainer_step(trainer, NULL, &error));
    step(trainer);
    u.fail_at = u.calls + 1;
    u.with = 77; /* no status at all */
    EXPECT(SYSTEM, bitaxon_trainer_step(trainer, NULL, &error));
    expect_message("all machines failed (77)");
    step(trainer);
    check_outcome(trainer, &want);
    bitaxon_trainer_free(trainer);
    outcome_free(&want);
    bitaxon_dataset_free(data);
    bitaxon_model_free(model);
}

/* ---- memory --------------------------------------------------------------------------------------------- */

/* What estimate and info tell of a run beforehand is what it takes. */
static void check_estimate(bitaxon_model *model, const bitaxon_trainer_params *p, int kind)
{
    bitaxon_model_params mp = { .struct_size = sizeof mp, .path = model_of(kind), .threads = 1 };
    bitaxon_train_estimate e = { .struct_size = sizeof e };
    OK(bitaxon_trainer_estimate(&mp, p, &e, &error));
    uint64_t before = atomic_load(&model->mem.used);
    bitaxon_trainer *trainer = make_trainer(model, p);
    steps(trainer, 1);
    uint64_t found = atomic_load(&model->mem.used) - before;
    bitaxon_trainer_info info = { .struct_size = sizeof info };
    OK(bitaxon_trainer_get_info(trainer, &info, &error));
    double told = (double)(e.values_bytes + e.pass_bytes);
    print_message("kind %d: told %.0f bytes, %llu taken\n", kind, told, (unsigned long long)found);
    assert_true(fabs(told - (double)found) < 0.03 * (double)found);
    assert_true(fabs((double)info.bytes - (double)found) < 0.03 * (double)found);
    assert_int_equal(e.trainable, info.trainable);
    assert_true(e.total_bytes >= e.model_bytes + e.mapped_bytes + e.values_bytes + e.pass_bytes);
    bitaxon_trainer_free(trainer);
    assert_int_equal(atomic_load(&model->mem.used), before);
}

/* The updates that an epoch is said to take end it, and one less does not. */
static void test_epochs(void **state)
{
    (void)state;
    static const double epochs[] = { 1, 2.5, 0.3 };
    bitaxon_model *model = open_model(QUANTISED, 1, NULL);
    bitaxon_dataset *data = count_up(model, BITAXON_OBJECTIVE_SFT, 23, 5);
    for (uint32_t i = 0; i < 6; i++) {
        bitaxon_trainer_params p = small_run(data, BITAXON_TRAIN_LORA, 0);
        p.accumulate = i < 3 ? 1 : 2; /* two may end with a micro-step of the next epoch */
        OK(bitaxon_trainer_epoch_steps(&p, epochs[i % 3], &p.steps, &error));
        bitaxon_trainer *trainer = make_trainer(model, &p);
        double reached[2] = { 0 };
        for (uint64_t at = 0; at < p.steps; at++) {
            reached[0] = reached[1];
            step(trainer);
            reached[1] = (double)trainer->core.at.cursor.epoch + (double)trainer->core.at.cursor.index / 23;
        }
        /* An update is at most two blocks of 48 tokens, some eight of 23 examples. */
        assert_true(reached[0] < epochs[i % 3] && reached[1] >= epochs[i % 3] - (i % 3 == 0 ? 0 : 0.4));
        bitaxon_trainer_free(trainer);
    }
    /* Beyond the epochs that are counted: by their mean. */
    bitaxon_trainer_params p = small_run(data, BITAXON_TRAIN_LORA, 0);
    uint64_t some, many;
    OK(bitaxon_trainer_epoch_steps(&p, 16, &some, &error));
    OK(bitaxon_trainer_epoch_steps(&p, 16000, &many, &error));
    assert_true(many <= 1000 * some && many + 1000 > 1000 * some);
    bitaxon_dataset_free(data);
    bitaxon_model_free(model);
}

static void test_estimate(void **state)
{
    (void)state;
    for (int kind = 0; kind < RUNS; kind++) {
        bitaxon_model *model = open_model(model_of(kind), 1, NULL);
        bitaxon_dataset *data = count_up(model, objective_of(kind), 60, 1);
        bitaxon_trainer_params p = run_of(kind, data, 2);
        p.block_tokens = 512;
        p.blocks = 2;
        p.flags |= kind % 2 == 0 ? BITAXON_TRAIN_ORDERED : 0;
        check_estimate(model, &p, kind);
        if (kind < 2) { /* going on from an adapter of fewer weights, of which the passes take little */
            bitaxon_adapter *adapter;
            p.rank = 64;
            p.targets = "q_proj,in_proj";
            p.block_tokens = 24;
            p.blocks = 1;
            bitaxon_trainer *first = make_trainer(model, &p);
            OK(bitaxon_trainer_adapter(first, &adapter, &error));
            bitaxon_trainer_free(first);
            p.adapter = adapter;
            p.targets = NULL;
            p.rank = 0;
            check_estimate(model, &p, kind);
            bitaxon_model_params other = { .struct_size = sizeof other, .path = "tests/golden/configs/odd_sizes" };
            bitaxon_train_estimate e = { .struct_size = sizeof e };
            EXPECT(MISMATCH, bitaxon_trainer_estimate(&other, &p, &e, &error));
            bitaxon_adapter_free(adapter);
        }
        bitaxon_dataset_free(data);
        bitaxon_model_free(model);
    }
    bitaxon_model_params mp = { .struct_size = sizeof mp, .path = QUANTISED };
    bitaxon_trainer_params p = run_of(2, NULL, 2);
    bitaxon_train_estimate e = { .struct_size = sizeof e };
    EXPECT(UNSUPPORTED, bitaxon_trainer_estimate(&mp, &p, &e, &error));
}

/* Every allocation refused once: a clear status, nothing leaks, and a step that failed is made again. */
static void test_out_of_memory(void **state)
{
    (void)state;
    outcome want = { 0 };
    for (uint64_t n = 0;; n++) {
        fault_host fault;
        fault_host_init(&fault);
        bitaxon_model *model = open_model(QUANTISED, 1, &fault.host);
        bitaxon_dataset *data = count_up(model, BITAXON_OBJECTIVE_SFT, 20, 1);
        bitaxon_trainer_params p = run_of(1, data, 2);
        p.targets = "q_proj,input_proj";
        p.flags |= BITAXON_TRAIN_ORDERED;
        bitaxon_trainer *trainer;
        fault_host_arm(&fault, n, false);
        bitaxon_status status = bitaxon_trainer_create(model, &p, &trainer, &error);
        while (status == BITAXON_OK && trainer->core.at.step < 2) {
            status = bitaxon_trainer_step(trainer, NULL, &error);
            if (status != BITAXON_OK) { /* the second time there is memory */
                EXPECT(OUT_OF_MEMORY, status);
                status = BITAXON_OK;
            }
        }
        bool fired = atomic_load(&fault.refused) != 0;
        fault_host_disarm(&fault);
        if (status == BITAXON_OK) {
            if (n == 0)
                want = outcome_of(trainer);
            bitaxon_adapter *adapter;
            OK(bitaxon_trainer_adapter(trainer, &adapter, &error));
            bitaxon_adapter_free(adapter);
            check_outcome(trainer, &want);
            bitaxon_trainer_free(trainer);
        } else {
            EXPECT(OUT_OF_MEMORY, status);
        }
        bitaxon_dataset_free(data);
        bitaxon_model_free(model);
        assert_string_equal(fault_host_balance(&fault), "");
        if (n != 0 && !fired)
            break;
    }
    outcome_free(&want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_learns),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_empty_micro_steps),
        cmocka_unit_test(test_from_file),
        cmocka_unit_test(test_adapter_in_session),
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_machines),
        cmocka_unit_test(test_lost_link),
        cmocka_unit_test(test_epochs),
        cmocka_unit_test(test_estimate),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
