/* SPDX-License-Identifier: Apache-2.0 */
/* test_train_room.c - the block that training's buffers come from is large enough for every op: models in
 * which state space, attention or experts need the most, float and quantised, with every kind of adapter
 * and dropout. What was taken at most is compared with what there is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "trainer_fixture.h"

#include <stdlib.h>
#include <unistd.h>

typedef struct shape {
    const char *name;
    uint32_t dim, layers, expand, experts, top_k, inner, shared, rows;
} shape;

static char folder[64];

static void make(const shape *s, const char *format, char *path, size_t bytes)
{
    char config[768];
    snprintf(
        config, sizeof config,
        "{\"vocab_size\": 128, \"hidden_dim\": %u, \"num_layers\": %u, \"num_heads\": 2, \"d_source_model\": 64, "
        "\"ssm_d_state\": 4, \"ssm_d_conv\": 4, \"ssm_expand\": %u, \"ssm_scan_step\": 8, \"swa_window_size\": 32, "
        "\"moe_num_experts\": %u, \"moe_top_k\": %u, \"moe_intermediate_dim\": %u, \"moe_shared_expert\": %s, "
        "\"weight_tying\": true, \"max_seq_len\": 1024, \"rms_norm_eps\": 1e-6}",
        s->dim, s->layers, s->expand, s->experts, s->top_k, s->inner, s->shared != 0 ? "true" : "false");
    snprintf(path, bytes, "%s/%s-%s", folder, s->name, format);
    bitaxon_convert_params params = { .struct_size = sizeof params, .config_json = config, .output = path,
                                      .format = format, .seed = 1 };
    OK(bitaxon_model_new(&params, &error));
}

static void check(const shape *s, const char *path, const char *format, int32_t method, float dropout)
{
    bitaxon_model_params open = { .struct_size = sizeof open, .path = path, .threads = 2 };
    bitaxon_model *model;
    OK(bitaxon_model_open(&open, &model, &error));
    bitaxon_dataset_params of = { .struct_size = sizeof of, .max_tokens = s->rows };
    bitaxon_dataset *data;
    OK(bitaxon_dataset_open(model, &of, &data, &error));
    int32_t tokens[512];
    uint8_t mask[512];
    for (uint32_t t = 0; t < s->rows; t++) {
        tokens[t] = (int32_t)(t * 37 % 128);
        mask[t] = 1;
    }
    OK(bitaxon_dataset_add(data, tokens, mask, s->rows, &error));
    bitaxon_trainer_params params = { .struct_size = sizeof params, .data = data, .steps = 4, .accumulate = 1,
                                      .method = method, .dropout = dropout };
    bitaxon_trainer *trainer;
    bitaxon_train_result result = { .struct_size = sizeof result };
    OK(bitaxon_trainer_create(model, &params, &trainer, &error));
    /* All ops' buffers are kept, those of mixers, none. */
    bxn_trainer *core = &trainer->core;
    bxn_runner *runner = &core->runner;
    const bool full = method == BITAXON_TRAIN_FULL;
    const uint32_t rank = full ? 0 : core->adapter.rank;
    size_t keep = BXN_KEEP_BYTES;
    for (uint32_t level = 3; level-- > 0;) {
        while (runner->every + (runner->left.experts != 0) != (int)level) {
            keep -= keep / 32 + 1;
            bxn_runner_free(runner);
            OK(bxn_runner_create(core->mem, core->model, s->rows, rank, method == BITAXON_TRAIN_DORA, full, keep,
                                 runner, &error));
        }
        OK(bitaxon_trainer_step(trainer, &result, &error));
        if (runner->scratch.most > runner->scratch.bytes)
            fail_msg("%s, %s, method %d, dropout %g, level %u: %zu bytes of %zu", s->name, format, method,
                     (double)dropout, level, runner->scratch.most, runner->scratch.bytes);
        assert_int_equal(result.updated, 1);
    }
    bitaxon_trainer_free(trainer);
    bitaxon_dataset_free(data);
    bitaxon_model_free(model);
}

static void test_room(void **state)
{
    (void)state;
    static const shape shapes[] = {
        { "wide experts", 64, 3, 1, 2, 1, 1024, 1, 128 },
        { "many experts", 64, 3, 1, 32, 4, 256, 0, 200 },
        { "wide states", 128, 1, 4, 2, 1, 64, 1, 100 },
        { "small", 256, 3, 2, 4, 2, 512, 1, 256 },
        { "few rows", 128, 3, 2, 4, 2, 256, 1, 9 },
    };
    static const char *const formats[] = { "f32", "affine4", "nf4" };
    strcpy(folder, "/tmp/bitaxon-room-XXXXXX");
    assert_non_null(mkdtemp(folder));
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++) {
            char path[160], command[200];
            make(&shapes[i], formats[f], path, sizeof path);
            for (int32_t method = BITAXON_TRAIN_LORA; method <= BITAXON_TRAIN_DORA; method++)
                for (int drop = 0; drop < 2; drop++)
                    check(&shapes[i], path, formats[f], method, drop != 0 ? 0.1f : 0);
            if (f == 0)
                check(&shapes[i], path, formats[f], BITAXON_TRAIN_FULL, 0);
            snprintf(command, sizeof command, "rm -rf '%s'", path);
            assert_int_equal(system(command), 0);
        }
    assert_int_equal(rmdir(folder), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_room) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
