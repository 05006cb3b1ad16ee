/* SPDX-License-Identifier: Apache-2.0 */
/* test_api_edges_trainer.c - what a host may get wrong with data sets and trainers, function by function, against
 * the status that the headers promise: missing handles and pointers, struct sizes, fields of later
 * versions, flags, and every field of the parameters beyond its range. */
#include "edges_fixture.h"
#include "trainer_fixture.h"

static bitaxon_model *model, *words;
static bitaxon_dataset *data, *pairs;
static bitaxon_trainer *trainer;

static int set_up(void **state)
{
    (void)state;
    model = open_model(QUANTISED, 1, NULL);
    char *folder = make_folder(), *tokenizer = make_folder();
    write_tokenizer(tokenizer);
    bitaxon_model_params params = { .struct_size = sizeof params, .path = tokenizer,
                                    .flags = BITAXON_MODEL_TOKENIZER_ONLY };
    OK(bitaxon_model_open(&params, &words, &error));
    remove_folder(tokenizer);
    remove_folder(folder);
    data = count_up(model, BITAXON_OBJECTIVE_SFT, 10, 1);
    pairs = count_up(model, BITAXON_OBJECTIVE_ORPO, 10, 1);
    bitaxon_trainer_params p = small_run(data, BITAXON_TRAIN_LORA, 2);
    trainer = make_trainer(model, &p);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    bitaxon_trainer_free(trainer);
    bitaxon_dataset_free(data);
    bitaxon_dataset_free(pairs);
    bitaxon_model_free(model);
    bitaxon_model_free(words);
    bitaxon_trainer_free(NULL);
    bitaxon_dataset_free(NULL);
    return 0;
}

static void test_dataset(void **state)
{
    (void)state;
    bitaxon_dataset *out = data;
    bitaxon_dataset_params p = { .struct_size = sizeof p };
    const int32_t tokens[3] = { 1, 2, 3 };
    EDGE(INVALID_ARGUMENT, bitaxon_dataset_open(model, &p, NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_dataset_open(NULL, &p, &out, e));
    assert_null(out);
    p.struct_size = 7;
    EDGE(INVALID_ARGUMENT, bitaxon_dataset_open(model, &p, &out, e));
    struct {
        bitaxon_dataset_params p;
        uint64_t later;
    } newer = { { .struct_size = sizeof newer }, 1 };
    EDGE(UNSUPPORTED, bitaxon_dataset_open(model, &newer.p, &out, e));
    newer.later = 0;
    OK(bitaxon_dataset_open(model, &newer.p, &out, &error));
    bitaxon_dataset_free(out);
    OK(bitaxon_dataset_open(model, NULL, &out, &error)); /* defaults */
    OK(bitaxon_dataset_add(out, tokens, NULL, 3, &error));
    EDGE(INVALID_ARGUMENT, bitaxon_dataset_add(out, NULL, NULL, 3, e));
    EDGE(INVALID_ARGUMENT, bitaxon_dataset_add(NULL, tokens, NULL, 3, e));
    EDGE(INVALID_ARGUMENT, bitaxon_dataset_add(out, (const int32_t[]){ 1, -1 }, NULL, 2, e));
    EDGE(BAD_STATE, bitaxon_dataset_add(data, tokens, NULL, 3, e)); /* a trainer has it */
    bitaxon_dataset_info info = { .struct_size = sizeof info };
    EDGE(INVALID_ARGUMENT, bitaxon_dataset_get_info(NULL, &info, e));
    EDGE(INVALID_ARGUMENT, bitaxon_dataset_get_info(out, NULL, e));
    info.struct_size = 4;
    EDGE(INVALID_ARGUMENT, bitaxon_dataset_get_info(out, &info, e));
    info.struct_size = sizeof info;
    OK(bitaxon_dataset_get_info(out, &info, &error));
    assert_true(info.examples == 1 && info.vocabulary == 4);
    bitaxon_dataset_free(out);
#define BAD(status, field, value)                                              \
    do {                                                                      \
        p = (bitaxon_dataset_params){ .struct_size = sizeof p };              \
        p.field = (value);                                                    \
        EDGE(status, bitaxon_dataset_open(model, &p, &out, e));               \
        assert_null(out);                                                     \
    } while (0)
    BAD(INVALID_ARGUMENT, objective, 3);
    BAD(INVALID_ARGUMENT, objective, -1);
    BAD(INVALID_ARGUMENT, mask, 4);
    BAD(INVALID_ARGUMENT, mask, -1);
    BAD(INVALID_ARGUMENT, max_tokens, 1);
    BAD(UNSUPPORTED, flags, 2);
    BAD(UNSUPPORTED, reserved0, 1);
    BAD(BAD_STATE, path, "/nowhere.jsonl"); /* no tokenizer */
    p.path = "/nowhere.jsonl";
    EDGE(IO, bitaxon_dataset_open(words, &p, &out, e));
#undef BAD
}

static void test_params(void **state)
{
    (void)state;
    bitaxon_trainer *out = trainer;
    const bitaxon_trainer_params fine = small_run(data, BITAXON_TRAIN_DORA, 2);
    bitaxon_trainer_params p = fine;
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_create(model, &p, NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_create(NULL, &p, &out, e));
    assert_null(out);
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_create(model, NULL, &out, e));
    EDGE(BAD_STATE, bitaxon_trainer_create(words, &p, &out, e));
    p.data = NULL;
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_create(model, &p, &out, e));
#define BAD(status, field, value)                                        \
    do {                                                                \
        p = fine;                                                       \
        p.field = (value);                                              \
        EDGE(status, bitaxon_trainer_create(model, &p, &out, e));       \
        assert_null(out);                                               \
        EXPECT(status, bitaxon_trainer_create(model, &p, &out, &error)); \
        expect_message(#field);                                         \
    } while (0)
    BAD(INVALID_ARGUMENT, struct_size, 4);
    BAD(INVALID_ARGUMENT, method, 4);
    BAD(INVALID_ARGUMENT, method, -1);
    BAD(INVALID_ARGUMENT, objective, 3);
    BAD(MISMATCH, objective, BITAXON_OBJECTIVE_ORPO);
    BAD(MISMATCH, validation, pairs);
    BAD(UNSUPPORTED, flags, 32);
    BAD(INVALID_ARGUMENT, targets, "nothing_of_the_kind");
    BAD(INVALID_ARGUMENT, targets, " , ");
    BAD(INVALID_ARGUMENT, rank, 257);
    BAD(INVALID_ARGUMENT, scale, INFINITY);
    BAD(INVALID_ARGUMENT, alpha, -1);
    BAD(INVALID_ARGUMENT, alpha, NAN);
    BAD(INVALID_ARGUMENT, dropout, 1);
    BAD(INVALID_ARGUMENT, dropout, -0.1f);
    BAD(INVALID_ARGUMENT, dropout, NAN);
    BAD(INVALID_ARGUMENT, blocks, UINT32_MAX);
    BAD(INVALID_ARGUMENT, steps, 0);
    BAD(INVALID_ARGUMENT, learning_rate, -1e-4);
    BAD(INVALID_ARGUMENT, learning_rate, NAN);
    BAD(INVALID_ARGUMENT, min_learning_rate, -1);
    BAD(INVALID_ARGUMENT, other_learning_rate, INFINITY);
    BAD(INVALID_ARGUMENT, weight_decay, 1);
    BAD(INVALID_ARGUMENT, max_norm, NAN);
    BAD(INVALID_ARGUMENT, beta1, 1);
    BAD(INVALID_ARGUMENT, beta2, -0.5);
    BAD(INVALID_ARGUMENT, epsilon, -1);
    BAD(INVALID_ARGUMENT, epsilon, 1e-60); /* nothing in f32 */
    BAD(INVALID_ARGUMENT, momentum, 1.5);
    BAD(INVALID_ARGUMENT, optimizer, 3);
    BAD(INVALID_ARGUMENT, optimizer, BITAXON_OPTIMIZER_MUON); /* not of adapters */
    BAD(INVALID_ARGUMENT, orpo_beta, -1);
    BAD(INVALID_ARGUMENT, orpo_lambda, NAN);
    BAD(INVALID_ARGUMENT, balance, -1);
    BAD(INVALID_ARGUMENT, machine, 1);
    BAD(INVALID_ARGUMENT, machines, 2); /* without all_reduce */
    p = fine;
    p.block_tokens = 8; /* shorter than an example */
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_create(model, &p, &out, e));
    p = fine;
    p.method = BITAXON_TRAIN_LORA;
    p.flags = BITAXON_TRAIN_EXACT_NORM;
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_create(model, &p, &out, e));
    p = small_run(pairs, BITAXON_TRAIN_LORA, 2);
    p.flags = BITAXON_TRAIN_NO_ISOLATION;
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_create(model, &p, &out, e));
    p = fine;
    p.method = BITAXON_TRAIN_FULL;
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_create(model, &p, &out, e)); /* dropout */
    /* An adapter to start from brings its own. */
    bitaxon_adapter *adapter;
    OK(bitaxon_trainer_adapter(trainer, &adapter, &error));
    p = fine;
    p.adapter = adapter; /* of LORA */
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_create(model, &p, &out, e));
    p.method = BITAXON_TRAIN_FULL;
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_create(model, &p, &out, e));
    p.method = 0;
    p.targets = "q_proj";
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_create(model, &p, &out, e));
    bitaxon_model *other = open_model(QUANTISED, 1, NULL);
    p.targets = NULL;
    EDGE(MISMATCH, bitaxon_trainer_create(other, &p, &out, e));
    bitaxon_model_free(other);
    bitaxon_adapter_free(adapter);
#undef BAD
    /* alpha divided by the rank, and the defaults. */
    p = (bitaxon_trainer_params){ .struct_size = sizeof p, .data = data, .steps = 1, .alpha = 16 };
    out = make_trainer(model, &p);
    assert_true(out->core.params.scale == 2 && out->core.params.rank == 8 && out->core.adapter.dora);
    assert_true(out->core.params.learning_rate == 1e-4 && out->core.params.accumulate == 4);
    bitaxon_trainer_free(out);
}

static void test_calls(void **state)
{
    (void)state;
    bitaxon_train_result r = { .struct_size = 4 };
    bitaxon_trainer_info info = { .struct_size = sizeof info };
    bitaxon_train_estimate estimate = { .struct_size = sizeof estimate };
    bitaxon_trainer_params p = small_run(data, BITAXON_TRAIN_LORA, 2);
    bitaxon_model_params mp = { .struct_size = sizeof mp, .path = QUANTISED };
    bitaxon_train_point point = { .struct_size = 8 };
    bitaxon_adapter *adapter;
    size_t count;
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_step(NULL, NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_step(trainer, &r, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_evaluate(NULL, 0, NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_evaluate(trainer, 0, &r, e));
    assert_int_equal(trainer->core.at.step, 0);
    EDGE(BAD_STATE, bitaxon_trainer_evaluate(trainer, 0, NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_save(NULL, "x", 0, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_save(trainer, NULL, 0, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_save(trainer, "", 0, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_resume(NULL, "x", e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_resume(trainer, NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_resume(trainer, "", e));
    EDGE(IO, bitaxon_trainer_resume(trainer, "/nowhere/at/all", e));
    EDGE(IO, bitaxon_trainer_resume(trainer, "/nowhere/step_00000001", e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_adapter(NULL, &adapter, e));
    assert_null(adapter);
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_adapter(trainer, NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_write_model(NULL, "x", e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_write_model(trainer, NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_write_model(trainer, "", e));
    EDGE(BAD_STATE, bitaxon_trainer_write_model(trainer, "x", e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_get_info(NULL, &info, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_get_info(trainer, NULL, e));
    info.struct_size = 7;
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_get_info(trainer, &info, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_history(NULL, NULL, 0, &count, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_history(trainer, NULL, 0, NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_history(trainer, NULL, 1, &count, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_history(trainer, &point, 1, &count, e));
    OK(bitaxon_trainer_history(trainer, NULL, 0, &count, &error));
    assert_int_equal(count, 0);
    uint64_t updates;
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_epoch_steps(NULL, 1, &updates, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_epoch_steps(&p, 1, NULL, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_epoch_steps(&p, 0, &updates, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_epoch_steps(&p, -1, &updates, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_epoch_steps(&p, (double)NAN, &updates, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_epoch_steps(&p, (double)INFINITY, &updates, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_epoch_steps(&p, 1e300, &updates, e));
    assert_int_equal(updates, 0);
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_estimate(NULL, &p, &estimate, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_estimate(&mp, NULL, &estimate, e));
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_estimate(&mp, &p, NULL, e));
    mp.flags = BITAXON_MODEL_TOKENIZER_ONLY;
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_estimate(&mp, &p, &estimate, e));
    mp.flags = 0;
    mp.path = "/nowhere";
    EDGE(IO, bitaxon_trainer_estimate(&mp, &p, &estimate, e));
    mp.path = QUANTISED;
    p.data = NULL;
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_epoch_steps(&p, 1, &updates, e));
    p.rank = 400;
    EDGE(INVALID_ARGUMENT, bitaxon_trainer_estimate(&mp, &p, &estimate, e));
    p.rank = 0;
    OK(bitaxon_trainer_estimate(&mp, &p, &estimate, &error)); /* without data: by the parameters */
    assert_true(estimate.pass_bytes != 0 && estimate.trainable != 0);
    /* A result of an older version is filled as far as it goes. */
    struct {
        bitaxon_train_result r;
    } older;
    memset(&older, 0xA5, sizeof older);
    older.r.struct_size = 16;
    OK(bitaxon_trainer_step(trainer, &older.r, &error));
    assert_true(older.r.updated == 1 && older.r.step == 1 && older.r.epoch == UINT64_C(0xA5A5A5A5A5A5A5A5));
    step(trainer);
    EXPECT(END, bitaxon_trainer_step(trainer, NULL, &error));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dataset),
        cmocka_unit_test(test_params),
        cmocka_unit_test(test_calls),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
