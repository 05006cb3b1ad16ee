/* SPDX-License-Identifier: Apache-2.0 */
/* test_train_step.c - what one micro-step promises besides its numbers: documents do not see each other,
 * threads and cancelled steps leave no trace in the bits, memory is what was told, every refused
 * allocation is survived, wrong input is named; and writing a model that was trained in full. */
#include "fault_files.h"
#include "train_fixture.h"

#include <unistd.h>

#include "convert/bxn_convert.h"

static const char *const all[] = { "full", "lora", "dora_affine4", "dora_exact", "orpo_nf4", "grad_extensions",
                                   "grad_odd_sizes", "grad_one_expert", "grad_window_one", "grad_dora_half" };
enum { ALL = sizeof all / sizeof all[0] };

/* Gradients of the first micro-step, from zero. */
static bitaxon_status first_step(training *t, const atomic_int *cancel, bxn_losses *losses)
{
    memset(losses, 0, sizeof *losses);
    clear_grads(t);
    return run_step(t, &t->steps[0], t->grads, cancel, losses);
}

/* ---- isolation ---------------------------------------------------------------------------- */

static void check_isolation(const char *name)
{
    training t;
    bxn_losses packed = { 0 }, apart = { 0 };
    training_open(&t, name, 2, 0, NULL);
    bool pairs = t.objective.kind == BXN_OBJECTIVE_ORPO;
    for (uint32_t i = 0; i < t.micro; i++) {
        const bxn_micro_step *s = &t.steps[i];
        CHECK(run_step(&t, s, NULL, NULL, &packed));
        uint32_t together = pairs ? 2 : 1;
        for (uint32_t d = 0; d < s->document_count; d += together) {
            const bxn_document *own = &s->documents[d];
            bxn_document alone[2] = { { 0, own->count }, { own->count, pairs ? own[1].count : 0 } };
            bxn_micro_step one = { own->count + alone[1].count, s->tokens + own->first, s->labels + own->first, alone,
                                   together };
            CHECK(run_step(&t, &one, NULL, NULL, &apart));
        }
    }
    double count = pairs ? (double)packed.pairs : (double)packed.tokens;
    print_message("%s: packed %.9f, apart %.9f\n", name, packed.loss / count, apart.loss / count);
    assert_int_equal(packed.tokens, apart.tokens);
    assert_int_equal(packed.pairs, apart.pairs);
    assert_true(fabs(packed.loss - apart.loss) <= 1e-6 * count);
    training_close(&t);
}

static void test_isolation(void **state)
{
    (void)state;
    check_isolation("full");
    check_isolation("grad_extensions");
    check_isolation("dora_affine4");
    check_isolation("orpo_nf4");
}

/* ---- threads ------------------------------------------------------------------------------ */

static void check_threads(const char *name)
{
    training t;
    bxn_losses losses, first = { 0 };
    float *grad = NULL;
    for (uint32_t threads = 1; threads <= 3; threads++) {
        training_open(&t, name, threads, 0, NULL);
        memset(&losses, 0, sizeof losses);
        for (uint32_t i = 0; i < t.micro; i++)
            CHECK(run_step(&t, &t.steps[i], t.grads, NULL, &losses));
        size_t bytes = t.parameters->floats * sizeof(float);
        if (threads == 1) {
            grad = malloc(bytes);
            assert_non_null(grad);
            memcpy(grad, t.parameters->grad, bytes);
            first = losses;
        }
        assert_memory_equal(grad, t.parameters->grad, bytes);
        assert_memory_equal(&first, &losses, sizeof losses);
        training_close(&t);
    }
    free(grad);
}

static void test_threads(void **state)
{
    (void)state;
    check_threads("full");
    check_threads("dora_affine4");
    check_threads("orpo_nf4");
    check_threads("grad_odd_sizes");
}

/* ---- dropout ------------------------------------------------------------------------------ */

static double loss_with(training *t, float dropout, uint64_t key, const bxn_model_grads *grads)
{
    bxn_losses losses = { 0 };
    t->adapters.dropout = dropout;
    t->adapters.dropout_key = key;
    CHECK(run_step(t, &t->steps[0], grads, NULL, &losses));
    return losses.loss;
}

/* Elements are dropped in training alone, by the key of the micro-step. */
static void test_dropout(void **state)
{
    (void)state;
    training t;
    training_open(&t, "lora", 2, 0, NULL);
    double plain = loss_with(&t, 0, 1, t.grads), dropped = loss_with(&t, 0.5f, 1, t.grads);
    assert_true(loss_with(&t, 0.5f, 1, NULL) == plain);
    assert_true(dropped != plain);
    assert_true(loss_with(&t, 0.5f, 1, t.grads) == dropped);
    assert_true(loss_with(&t, 0.5f, 2, t.grads) != dropped);
    training_close(&t);
}

/* ---- cancelling, a host that fails ---------------------------------------------------------- */

/* Runs tasks in order, and at call number `at` cancels, or fails. */
static struct {
    uint32_t calls, at;
    bool fail;
    atomic_int cancel;
} executor;

static int32_t run_in_order(void *user, uint32_t count, void (*task)(void *, uint32_t), void *context)
{
    (void)user;
    executor.calls++;
    if (executor.calls == executor.at && executor.fail)
        return 1;
    for (uint32_t i = 0; i < count; i++) {
        if (executor.calls == executor.at && i == count / 2)
            atomic_store(&executor.cancel, 1);
        task(context, i);
    }
    return 0;
}

static void check_interrupted(const char *name)
{
    training t;
    bxn_losses losses, whole;
    memset(&executor, 0, sizeof executor);
    training_open(&t, name, 1, 0, run_in_order);
    size_t bytes = t.parameters->floats * sizeof(float);
    float *grad = malloc(bytes);
    assert_non_null(grad);
    executor.calls = 0;
    CHECK(first_step(&t, &executor.cancel, &whole));
    memcpy(grad, t.parameters->grad, bytes);
    uint32_t calls = executor.calls, step = calls / 12 + 1;
    print_message("%s: %u parallel regions\n", name, calls);
    for (int fail = 0; fail < 2; fail++)
        for (uint32_t at = 1; at <= calls; at += at + 3 >= calls ? 1 : step) {
            executor.calls = 0;
            executor.at = at;
            executor.fail = fail != 0;
            bitaxon_status status = first_step(&t, &executor.cancel, &losses);
            assert_int_equal(status, fail != 0 ? BITAXON_SYSTEM : BITAXON_CANCELLED);
            assert_non_null(strstr(error.message, fail != 0 ? "executor" : "cancelled"));
            bxn_losses none = { 0 };
            assert_memory_equal(&losses, &none, sizeof none);
            executor.at = 0;
            atomic_store(&executor.cancel, 0);
        }
    CHECK(first_step(&t, &executor.cancel, &losses));
    assert_memory_equal(grad, t.parameters->grad, bytes);
    assert_memory_equal(&whole, &losses, sizeof losses);
    free(grad);
    training_close(&t);
}

static void test_interrupted(void **state)
{
    (void)state;
    check_interrupted("grad_extensions");
    check_interrupted("dora_affine4");
    check_interrupted("orpo_nf4");
}

static void test_cancelled_before(void **state)
{
    (void)state;
    training t;
    bxn_losses losses;
    atomic_int cancel = 1;
    training_open(&t, "grad_one_expert", 2, 0, NULL);
    assert_int_equal(first_step(&t, &cancel, &losses), BITAXON_CANCELLED);
    for (size_t i = 0; i < t.parameters->floats; i++)
        assert_true(t.parameters->grad[i] == 0);
    training_close(&t);
}

/* ---- memory ------------------------------------------------------------------------------- */

static void test_told_beforehand(void **state)
{
    (void)state;
    for (int i = 0; i < ALL; i++) {
        training t;
        bxn_losses losses;
        training_open(&t, all[i], 2, 0, NULL);
        bxn_model bare = { .config = t.core->config, .tied = t.core->tied }; /* what headers alone tell */
        size_t told = bxn_runner_bytes(&bare, most_rows(&t), t.rank, t.adapter.dora, t.rank == 0, BXN_KEEP_BYTES);
        assert_int_equal(told, t.runner.bytes);
        uint64_t before = atomic_load(&t.model->mem.used);
        bxn_runner_free(&t.runner);
        assert_int_equal(before - atomic_load(&t.model->mem.used), bxn_alloc_cost(told));
        make_runner(&t, most_rows(&t), BXN_KEEP_BYTES);
        if (t.rank == 0) {
            uint64_t values = 0, total, active;
            bxn_trainable *other;
            before = atomic_load(&t.model->mem.used);
            CHECK(bxn_trainable_create(&t.model->mem, &t.model->core, true, &other, &error));
            assert_int_equal(atomic_load(&t.model->mem.used) - before, bxn_trainable_bytes(&bare, &values));
            bxn_config_parameters(&bare.config, !bare.tied, &total, &active);
            assert_int_equal(values, total);
            bxn_trainable_free(other);
        }
        before = atomic_load(&t.fault.allocations);
        for (uint32_t j = 0; j < t.micro; j++) {
            memset(&losses, 0, sizeof losses);
            CHECK(run_step(&t, &t.steps[j], t.grads, NULL, &losses));
        }
        assert_int_equal(atomic_load(&t.fault.allocations), before); /* a step allocates nothing */
        print_message("%s: %zu bytes, of the ops' %zu at most %zu taken\n", all[i], t.runner.bytes,
                      t.runner.scratch.bytes, t.runner.scratch.most);
        assert_true(t.runner.scratch.most <= t.runner.scratch.bytes);
        training_close(&t);
    }
}

/* Whether the stream before each layer alone is kept, or that before each sublayer and the mixers' buffers, or all
 * ops', does not show in a bit. */
static void check_room(const char *name)
{
    training t;
    bxn_losses losses, again;
    training_open(&t, name, 2, 0, NULL);
    CHECK(first_step(&t, NULL, &losses));
    assert_true(t.runner.every && t.runner.left.experts != 0);
    size_t bytes = t.parameters->floats * sizeof(float);
    float *grad = malloc(bytes);
    assert_non_null(grad);
    memcpy(grad, t.parameters->grad, bytes);
    uint32_t found = 0;
    for (size_t keep = 1024; found != 7; keep += keep / 16) {
        bxn_runner_free(&t.runner);
        make_runner(&t, most_rows(&t), keep);
        uint32_t level = t.runner.every + (t.runner.left.experts != 0);
        if ((found >> level & 1) != 0)
            continue;
        found |= 1u << level;
        CHECK(first_step(&t, NULL, &again));
        assert_memory_equal(grad, t.parameters->grad, bytes);
        assert_memory_equal(&losses, &again, sizeof losses);
        assert_true(t.runner.scratch.most <= t.runner.scratch.bytes);
    }
    free(grad);
    training_close(&t);
}

static void test_room(void **state)
{
    (void)state;
    check_room("full");
    check_room("dora_exact");
    check_room("grad_extensions");
    check_room("grad_odd_sizes");
}

/* The preset that memory is promised for: 2.8 GB, of which 1.85 are weights and 0.1 the adapter. */
static void test_preset(void **state)
{
    (void)state;
    bxn_model model = { .tied = true };
    CHECK(bxn_preset("bitaxon-3b", &model.config, &error));
    for (int dora = 0; dora < 2; dora++) {
        double buffers = (double)bxn_runner_bytes(&model, 2048, 8, dora != 0, false, BXN_KEEP_BYTES);
        print_message("bitaxon-3b, 2048 tokens, rank 8, %s: %.1f MB of buffers\n", dora != 0 ? "DoRA" : "LoRA",
                      buffers / 1e6);
        assert_true(buffers <= 0.855e9);
    }
}

/* Every allocation of making a run is refused once. */
static void test_out_of_memory(void **state)
{
    (void)state;
    training t;
    training_open(&t, "grad_extensions", 1, 0, NULL);
    int64_t bytes = atomic_load(&t.fault.bytes), blocks = atomic_load(&t.fault.blocks);
    uint64_t used = atomic_load(&t.model->mem.used);
    for (uint64_t at = 1;; at++) {
        bxn_trainable *other = NULL;
        bxn_runner runner;
        memset(&runner, 0, sizeof runner);
        fault_host_arm(&t.fault, at, false);
        bitaxon_status status = bxn_trainable_create(&t.model->mem, &t.model->core, false, &other, &error);
        if (status == BITAXON_OK)
            status = bxn_runner_create(&t.model->mem, t.core, 64, 0, false, true, 0, &runner, &error);
        bool refused = atomic_load(&t.fault.refused) != 0;
        fault_host_disarm(&t.fault);
        assert_int_equal(status, refused ? BITAXON_OUT_OF_MEMORY : BITAXON_OK);
        bxn_runner_free(&runner);
        bxn_trainable_free(other);
        assert_int_equal(atomic_load(&t.fault.bytes), bytes);
        assert_int_equal(atomic_load(&t.fault.blocks), blocks);
        assert_int_equal(atomic_load(&t.model->mem.used), used);
        if (!refused) {
            assert_true(at > 3);
            break;
        }
    }
    training_close(&t);
}

/* ---- wrong input -------------------------------------------------------------------------- */

static void refused(training *t, const bxn_micro_step *step, bitaxon_status status, const char *text)
{
    bxn_losses losses = { 0 };
    error.message[0] = '\0';
    assert_int_equal(run_step(t, step, t->grads, NULL, &losses), status);
    if (strstr(error.message, text) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", error.message, text);
}

static void test_wrong_steps(void **state)
{
    (void)state;
    training t;
    training_open(&t, "orpo_nf4", 1, 0, NULL);
    int32_t tokens[300] = { 0 }, labels[300] = { 0 };
    bxn_document documents[2] = { { 0, 2 }, { 2, 2 } };
    bxn_micro_step step = { 4, tokens, labels, documents, 2 };
    CHECK(run_step(&t, &step, t.grads, NULL, &(bxn_losses){ 0 }));
    tokens[3] = (int32_t)t.core->config.vocab_size;
    refused(&t, &step, BITAXON_INVALID_ARGUMENT, "row 3: token 50");
    tokens[3] = -1;
    refused(&t, &step, BITAXON_INVALID_ARGUMENT, "row 3: token -1");
    tokens[3] = 0;
    labels[1] = 50;
    refused(&t, &step, BITAXON_INVALID_ARGUMENT, "row 1: token 0, label 50");
    labels[1] = -2;
    refused(&t, &step, BITAXON_INVALID_ARGUMENT, "label -2");
    labels[1] = -1;
    documents[1].count = 3;
    refused(&t, &step, BITAXON_INVALID_ARGUMENT, "document 1");
    documents[1].count = 1;
    refused(&t, &step, BITAXON_INVALID_ARGUMENT, "3 of its 4");
    documents[1] = (bxn_document){ 1, 3 };
    refused(&t, &step, BITAXON_INVALID_ARGUMENT, "document 1");
    documents[0].count = 4;
    step.document_count = 1;
    refused(&t, &step, BITAXON_INVALID_ARGUMENT, "pair");
    step.rows = t.runner.rows + 1;
    refused(&t, &step, BITAXON_LIMIT, "micro-step");
    step = (bxn_micro_step){ 0, tokens, labels, documents, 0 };
    CHECK(run_step(&t, &step, t.grads, NULL, &(bxn_losses){ 0 })); /* nothing to do */
    training_close(&t);
}

static void test_quantised_in_full(void **state)
{
    (void)state;
    training t;
    bxn_trainable *out;
    training_open(&t, "dora_affine4", 1, 0, NULL);
    assert_int_equal(bxn_trainable_create(&t.model->mem, &t.model->core, false, &out, &error), BITAXON_UNSUPPORTED);
    assert_null(out);
    assert_non_null(strstr(error.message, "input_proj has codes of 4 bits"));
    training_close(&t);
}

/* A weight that is not finite shows in the loss or is named by a router; nothing crashes. */
static void test_not_finite(void **state)
{
    (void)state;
    training t;
    bxn_losses losses;
    training_open(&t, "grad_extensions", 2, 0, NULL);
    for (uint32_t i = 0; i < t.parameters->count; i++) {
        float *value = t.parameters->value + t.parameters->items[i].offset, before = *value;
        *value = NAN;
        bitaxon_status status = first_step(&t, NULL, &losses);
        if (status == BITAXON_FORMAT)
            assert_non_null(strstr(error.message, "layer"));
        else
            assert_int_equal(status, BITAXON_OK);
        *value = before;
    }
    CHECK(first_step(&t, NULL, &losses));
    assert_true(isfinite(losses.loss));
    training_close(&t);
}

/* ---- writing ------------------------------------------------------------------------------ */

static bitaxon_status read_values(void *user, const char *name, uint64_t first, size_t count, float *out,
                                  bitaxon_error *e)
{
    return bxn_trainable_read(user, name, first, count, out, e);
}

static bitaxon_status write_model(training *t, const char *directory, bxn_bundle *source)
{
    bitaxon_convert_params params = { .struct_size = sizeof params, .output = directory, .host = &t->fault.host };
    bxn_tensor_values values = { read_values, t->trainable };
    return bxn_convert_write(&params, &t->core->config, source, NULL, &values, &error);
}

/* The loss of all micro-steps of the model in a directory, in f32. */
static double loss_of(const char *directory, const training *like)
{
    bitaxon_model *model;
    bxn_runner runner;
    bxn_losses losses = { 0 };
    bitaxon_model_params params = { .struct_size = sizeof params, .path = directory, .threads = 2,
                                    .accuracy = BITAXON_ACCURACY_EXACT };
    CHECK(bitaxon_model_open(&params, &model, &error));
    CHECK(bxn_runner_create(&model->mem, &model->core, most_rows(like), 0, false, false, 0, &runner, &error));
    for (uint32_t i = 0; i < like->step_count; i++)
        CHECK(bxn_runner_step(&runner, &like->steps[i], &like->objective, NULL, NULL, NULL, &losses, &error));
    bxn_runner_free(&runner);
    bitaxon_model_free(model);
    return losses.loss;
}

static void check_written(const char *name)
{
    training t;
    bxn_losses losses;
    bxn_bundle *source;
    char *folder = make_folder();
    training_open(&t, name, 2, 0, NULL);
    for (size_t i = 0; i < t.parameters->count; i++) { /* all values move, padding does not */
        const bxn_parameter *p = &t.parameters->items[i];
        for (size_t row = 0; row < p->rows; row++)
            for (size_t j = 0; j < p->cols; j++) {
                float *value = &t.parameters->value[p->offset + row * p->ld + j];
                if (*value != 0 || p->cols != 16) /* A_log: 16 lanes, some of them padding */
                    *value = *value * 1.01f + 0.001f;
            }
    }
    values_changed(&t);
    memset(&losses, 0, sizeof losses);
    for (uint32_t i = 0; i < t.step_count; i++)
        CHECK(run_step(&t, &t.steps[i], NULL, NULL, &losses));
    char where[256], first[512], config[600];
    snprintf(where, sizeof where, "tests/golden/%s", json_string_value(json_object_get(t.meta, "model")));
    snprintf(first, sizeof first, "%s", in_folder(folder, "first"));
    CHECK(bxn_bundle_open(&t.model->mem, where, NULL, 0, 0, &source, &error));
    CHECK(write_model(&t, first, source));
    double written = loss_of(first, &t);
    print_message("%s: loss %.9g, of the written model %.9g\n", name, losses.loss, written);
    assert_true(written == losses.loss); /* the same weights, the same kernels */

    /* Never over another model; nothing stays of what failed. */
    assert_int_equal(write_model(&t, first, source), BITAXON_IO);
    assert_int_equal(write_model(&t, where, source), BITAXON_INVALID_ARGUMENT);
    t.parameters->value[t.parameters->items[3].offset] = NAN;
    snprintf(config, sizeof config, "%s", in_folder(folder, "second"));
    assert_int_equal(write_model(&t, config, source), BITAXON_FORMAT);
    assert_non_null(strstr(error.message, t.parameters->items[3].name));
    assert_int_not_equal(access(config, F_OK), 0);
    float value;
    assert_int_equal(bxn_trainable_read(t.trainable, "layer_9.nothing", 0, 1, &value, &error),
                     BITAXON_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "layer_9.nothing"));
    assert_int_equal(bxn_trainable_read(t.trainable, "input_proj.weight", (uint64_t)1 << 40, 1, &value, &error),
                     BITAXON_INVALID_ARGUMENT);
    bxn_bundle_free(source);
    training_close(&t);
    remove_folder(folder);
}

static void test_written(void **state)
{
    (void)state;
    check_written("full");
    check_written("grad_extensions");
    check_written("grad_odd_sizes");
    check_written("grad_one_expert");
}

/* What did not train is the same to the bit but A_log, which is found from its exponential; tokenizer and
 * configuration come along; every allocation may fail. */
static void test_written_untouched(void **state)
{
    (void)state;
    char *folder = make_folder();
    char source[512], out[512];
    snprintf(source, sizeof source, "%s", in_folder(folder, "source"));
    snprintf(out, sizeof out, "%s", in_folder(folder, "out"));
    new_model_of_words(source, small_config("\"vocab_size\": 300, \"final_norm\": true"), NULL);
    training t;
    memset(&t, 0, sizeof t);
    fault_host_init(&t.fault);
    bitaxon_model_params params = { .struct_size = sizeof params, .path = source, .host = &t.fault.host, .threads = 1,
                                    .accuracy = BITAXON_ACCURACY_EXACT };
    CHECK(bitaxon_model_open(&params, &t.model, &error));
    CHECK(bxn_trainable_create(&t.model->mem, &t.model->core, false, &t.trainable, &error));
    t.core = bxn_trainable_model(t.trainable);
    bxn_bundle *bundle;
    CHECK(bxn_bundle_open(&t.model->mem, source, NULL, 0, 0, &bundle, &error));
    for (uint64_t at = 1;; at++) {
        fault_host_arm(&t.fault, at, false);
        bitaxon_status status = write_model(&t, out, bundle);
        bool refused_one = atomic_load(&t.fault.refused) != 0;
        fault_host_disarm(&t.fault);
        assert_int_equal(status, refused_one ? BITAXON_OUT_OF_MEMORY : BITAXON_OK);
        assert_int_equal(access(out, F_OK), refused_one ? -1 : 0);
        if (!refused_one)
            break;
    }
    fixture was, is;
    fixture_open(&was, in_folder(source, "model.safetensors"));
    fixture_open(&is, in_folder(out, "model.safetensors"));
    assert_int_equal(json_object_size(was.header), json_object_size(is.header));
    const char *name;
    json_t *item;
    json_object_foreach(was.header, name, item)
    {
        if (strcmp(name, "__metadata__") == 0)
            continue;
        size_t n, m;
        float *a = fixture_copy(&was, name, "F32", 4, &n), *b = fixture_copy(&is, name, "F32", 4, &m);
        assert_true(
            json_equal(json_object_get(item, "shape"), json_object_get(json_object_get(is.header, name), "shape")));
        bool decay = strstr(name, "A_log") != NULL;
        for (size_t i = 0; i < n && decay; i++)
            assert_true(fabsf(a[i] - b[i]) <= 3e-7f * fmaxf(1, fabsf(a[i])));
        if (!decay)
            assert_memory_equal(a, b, n * sizeof *a);
        free(a);
        free(b);
    }
    fixture_close(&was);
    fixture_close(&is);
    static const char *const files[] = { "tokenizer.json", "config.json" };
    for (int i = 0; i < 2; i++) {
        size_t n, m;
        unsigned char *a = read_whole(in_folder(source, files[i]), &n), *b = read_whole(in_folder(out, files[i]), &m);
        assert_int_equal(n, m);
        assert_memory_equal(a, b, n);
        free(a);
        free(b);
    }
    bxn_bundle_free(bundle);
    bxn_trainable_free(t.trainable);
    bitaxon_model_free(t.model);
    assert_string_equal(fault_host_balance(&t.fault), "");
    remove_folder(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_isolation),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_dropout),
        cmocka_unit_test(test_interrupted),
        cmocka_unit_test(test_cancelled_before),
        cmocka_unit_test(test_told_beforehand),
        cmocka_unit_test(test_room),
        cmocka_unit_test(test_preset),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_wrong_steps),
        cmocka_unit_test(test_quantised_in_full),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_written),
        cmocka_unit_test(test_written_untouched),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
