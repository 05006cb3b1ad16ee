/* SPDX-License-Identifier: Apache-2.0 */
/* test_train_tokenizer.c - data that was read with a tokenizer other than the model's is refused by the trainer, also
 * where both have as many ids; the same tokenizer in other words, and tokens of the host, are not. A tokenizer that
 * the host gives serves instead of the model's. */
#include "trainer_fixture.h"

/* A tokenizer.json that is not quite the one of folder `from`, of the same size. */
static void write_changed(const char *from, const char *folder, int change)
{
    json_t *root = json_load_file(in_folder(from, "tokenizer.json"), 0, NULL), *model = json_object_get(root, "model");
    json_t *vocab = json_object_get(model, "vocab"), *merges = json_object_get(model, "merges");
    json_t *added = json_object_get(root, "added_tokens");
    if (change == 1) { /* two ids change places */
        json_t *the = json_incref(json_object_get(vocab, "the")), *er = json_incref(json_object_get(vocab, "er"));
        json_object_set_new(vocab, "the", er);
        json_object_set_new(vocab, "er", the);
    } else if (change == 2) { /* the last merge comes earlier */
        size_t last = json_array_size(merges) - 1;
        json_array_insert(merges, 3, json_array_get(merges, last));
        json_array_remove(merges, last + 1);
    } else if (change == 3) {
        json_object_set_new(json_array_get(added, 0), "content", json_string("<|endofwords|>"));
    } else if (change == 4) { /* a special token takes the space before it */
        json_object_set_new(json_array_get(added, 2), "lstrip", json_true());
    }
    assert_int_equal(json_dump_file(root, in_folder(folder, "tokenizer.json"), JSON_INDENT(1) | JSON_SORT_KEYS), 0);
    json_decref(root);
}

static bitaxon_model *open_flags(const char *path, uint32_t flags, char fingerprint[33])
{
    bitaxon_model_params params = { .struct_size = sizeof params, .path = path, .threads = 1, .flags = flags };
    bitaxon_model *model;
    OK(bitaxon_model_open(&params, &model, &error));
    OK(bitaxon_model_info_text(model, "tokenizer_fingerprint", fingerprint, 33, NULL, &error));
    return model;
}

/* A tokenizer's files instead of the model's own: what is read, and what a trained model is written with. */
static void test_given_tokenizer(void **state)
{
    (void)state;
    char *folder = make_folder(), *words = make_folder(), its[33], given[33], path[512];
    write_tokenizer(words);
    new_model(in_folder(folder, "with"), small_config("\"vocab_size\": 300"), "f32", words);
    new_model(in_folder(folder, "without"), small_config("\"vocab_size\": 300"), "f32", NULL);
    bitaxon_model *with = open_flags(in_folder(folder, "with"), 0, its), *mute, *model, *written;
    mute = open_flags(in_folder(folder, "without"), 0, given);
    assert_string_equal(given, "none");
    snprintf(path, sizeof path, "%s/without", folder);
    bitaxon_model_params params = { .struct_size = sizeof params, .path = path, .threads = 1, .tokenizer = words };
    OK(bitaxon_model_open(&params, &model, &error));
    OK(bitaxon_model_info_text(model, "tokenizer_fingerprint", given, sizeof given, NULL, &error));
    assert_string_equal(given, its);
    bitaxon_dataset *data = count_up(model, BITAXON_OBJECTIVE_SFT, 3, 1);
    bitaxon_trainer_params run = small_run(data, BITAXON_TRAIN_FULL, 1);
    bitaxon_trainer *trainer;
    OK(bitaxon_trainer_create(model, &run, &trainer, &error));
    OK(bitaxon_trainer_write_model(trainer, in_folder(folder, "written"), &error));
    written = open_flags(in_folder(folder, "written"), 0, given);
    assert_string_equal(given, its);
    bitaxon_trainer_free(trainer);
    bitaxon_dataset_free(data);
    params.path = in_folder(folder, "with"); /* and before one that the model has */
    write_changed(in_folder(folder, "with"), words, 1);
    bitaxon_model *other;
    OK(bitaxon_model_open(&params, &other, &error));
    OK(bitaxon_model_info_text(other, "tokenizer_fingerprint", given, sizeof given, NULL, &error));
    assert_string_not_equal(given, its);
    bitaxon_model *all[] = { with, mute, model, written, other };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        bitaxon_model_free(all[i]);
    remove_folder(folder);
    remove_folder(words);
}

static bitaxon_dataset *open_data(bitaxon_model *model, const char *path)
{
    bitaxon_dataset_params params = { .struct_size = sizeof params, .path = path, .max_tokens = 48 };
    bitaxon_dataset *data;
    OK(bitaxon_dataset_open(model, &params, &data, &error));
    return data;
}

static void create(bitaxon_model *model, bitaxon_dataset *data, bitaxon_dataset *validation, bitaxon_status want)
{
    bitaxon_trainer_params p = small_run(data, BITAXON_TRAIN_LORA, 2);
    bitaxon_trainer *trainer;
    p.validation = validation;
    expect(want, bitaxon_trainer_create(model, &p, &trainer, &error), "bitaxon_trainer_create");
    bitaxon_trainer_free(trainer);
}

static void test_other_tokenizer(void **state)
{
    (void)state;
    static const char line[] = "{\"prompt\": \"the other\", \"completion\": \" and the answering\"}\n";
    static const char *const names[] = { "c0", "c1", "c2", "c3", "c4" };
    char *folder = make_folder(), *words = make_folder(), own[33], its[33], path[512];
    write_tokenizer(words);
    new_model(in_folder(folder, "m"), small_config("\"vocab_size\": 300"), "affine4", words);
    snprintf(path, sizeof path, "%s/data.jsonl", folder);
    write_whole(path, line, sizeof line - 1);
    bitaxon_model *mute = open_flags(in_folder(folder, "m"), BITAXON_MODEL_NO_TOKENIZER, own);
    assert_string_equal(own, "none");
    bitaxon_model *model = open_flags(in_folder(folder, "m"), 0, own);
    own[8] = '\0';
    bitaxon_dataset *mine = open_data(model, path);
    for (int change = 0; change < 5; change++) {
        const char *name = in_folder(folder, names[change]);
        write_changed(in_folder(folder, "m"), words, change);
        new_model(name, small_config("\"vocab_size\": 300"), "affine4", words);
        bitaxon_model *other = open_flags(name, BITAXON_MODEL_TOKENIZER_ONLY, its);
        its[8] = '\0';
        assert_int_equal(strcmp(own, its) == 0, change == 0); /* 0: the same in other words */
        bitaxon_dataset *theirs = open_data(other, path), *added = count_up(other, BITAXON_OBJECTIVE_SFT, 3, 1);
        create(model, theirs, NULL, change == 0 ? BITAXON_OK : BITAXON_MISMATCH);
        if (change != 0) { /* both are named */
            expect_message("the data was read with");
            expect_message(own);
            expect_message(its);
            expect_message(name);
        }
        create(model, mine, theirs, change == 0 ? BITAXON_OK : BITAXON_MISMATCH);
        if (change != 0)
            expect_message("the validation data was read with");
        create(mute, theirs, theirs, BITAXON_OK); /* it cannot tell */
        create(model, added, added, BITAXON_OK);  /* the host's tokens are its own matter */
        bitaxon_dataset_free(theirs);
        bitaxon_dataset_free(added);
        bitaxon_model_free(other);
    }
    bitaxon_dataset_free(mine);
    bitaxon_model_free(mute);
    bitaxon_model_free(model);
    remove_folder(folder);
    remove_folder(words);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_other_tokenizer),
        cmocka_unit_test(test_given_tokenizer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
