/* SPDX-License-Identifier: Apache-2.0 */
/* test_oom.c - every allocation of every scenario fails once, alone and with all that follow.
 * After each failure: the status says so, nothing is left behind, what existed before is as it
 * was, and the work then goes on to the same bits as an undisturbed run. */
#include "call_fixture.h"
#include "fault_files.h"
#include "fault_host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { WINDOW = 16, PREFIX = 70, VOCAB_MOST = 300 };

static char *root;
static fault_host fault;

static int make_models(void **state)
{
    (void)state;
    root = make_folder();
    pack_model("tests/golden/tiny-q4", in_folder(root, "packed"));
    quantize_model("tests/golden/tiny-fp32", in_folder(root, "nf4"), "nf4");
    new_model_of_words(in_folder(root, "words"), small_config("\"vocab_size\": 300, \"max_seq_len\": 4096"), NULL);
    return 0;
}

static int remove_models(void **state)
{
    (void)state;
    remove_folder(root);
    return 0;
}

/* ---- the loop ----------------------------------------------------------------------------- */

/* A scenario: `setup` makes what exists before (allocations there never fail), `act` is what is
 * disturbed and returns its status, `after` checks what act left, successful or not, and lets
 * everything go. */
typedef struct world {
    const char *path;
    uint32_t flags;
    bitaxon_model *model;
    bitaxon_session *session;
    bitaxon_cache *cache, *made;
    bitaxon_session *made_session;
    char file[512];
    uint64_t expected; /* position before */
    void *result;
} world;

typedef struct scenario {
    const char *name;
    const char *path;
    uint32_t flags;
    void (*setup)(world *w);
    bitaxon_status (*act)(world *w);
    void (*after)(world *w, bitaxon_status status);
    int least; /* allocations that the act makes at least */
} scenario;

static void open_world(world *w)
{
    bitaxon_model_params params = { .struct_size = sizeof params, .path = w->path, .flags = w->flags, .threads = 2,
                                    .host = &fault.host };
    OK(bitaxon_model_open(&params, &w->model, &error));
}

static int32_t token_at(uint64_t i) { return (int32_t)((i * 37 + i / 7) % 96); }

static void read_more(bitaxon_session *session, uint64_t count)
{
    int32_t tokens[256];
    uint64_t at = bitaxon_session_position(session);
    for (uint64_t i = 0; i < count; i++)
        tokens[i] = token_at(at + i);
    OK(bitaxon_session_prefill(session, tokens, count, &error));
}

static void open_session(world *w)
{
    open_world(w);
    OK(bitaxon_session_create(w->model, NULL, &w->session, &error));
}

static void open_at_prefix(world *w)
{
    open_session(w);
    read_more(w->session, PREFIX);
    w->expected = PREFIX;
}

static void open_with_points(world *w)
{
    open_session(w);
    for (int i = 0; i < 3; i++) {
        read_more(w->session, PREFIX / 3);
        OK(bitaxon_cache_checkpoint(bitaxon_session_cache(w->session), &error));
    }
    w->expected = PREFIX / 3 * 3;
}

static void close_world(world *w)
{
    bitaxon_cache_free(w->made);
    bitaxon_session_free(w->made_session);
    bitaxon_cache_free(w->cache);
    bitaxon_session_free(w->session);
    bitaxon_model_free(w->model);
}

/* The logits after the texts token_at(0), ... of a length: computed once per model and length. */
static const float *undisturbed(const char *path, uint64_t length)
{
    enum { MOST = 64 };
    static struct {
        char path[512];
        uint64_t length;
        float logits[VOCAB_MOST];
    } known[MOST];
    static int count;
    for (int i = 0; i < count; i++)
        if (known[i].length == length && strcmp(known[i].path, path) == 0)
            return known[i].logits;
    bitaxon_model_params params = { .struct_size = sizeof params, .path = path, .threads = 1 };
    bitaxon_model *model;
    bitaxon_session *session;
    const float *logits;
    int64_t vocab;
    assert_true(count < MOST);
    snprintf(known[count].path, sizeof known[count].path, "%s", path);
    known[count].length = length;
    OK(bitaxon_model_open(&params, &model, &error));
    OK(bitaxon_session_create(model, NULL, &session, &error));
    OK(bitaxon_model_info_int(model, "vocab_size", &vocab, &error));
    read_more(session, length);
    OK(bitaxon_session_logits(session, &logits, &error));
    memcpy(known[count].logits, logits, (size_t)vocab * sizeof *logits);
    bitaxon_session_free(session);
    bitaxon_model_free(model);
    return known[count++].logits;
}

/* Read on from wherever the session stands; the bits must be those of an undisturbed run. */
static void goes_on(const char *path, bitaxon_session *session)
{
    uint64_t target = 3 * WINDOW + PREFIX + 20;
    const float *logits;
    int64_t vocab = 96;
    assert_true(bitaxon_session_position(session) < target);
    read_more(session, target - bitaxon_session_position(session));
    OK(bitaxon_session_logits(session, &logits, &error));
    if (strstr(path, "words") != NULL)
        vocab = 300;
    if (memcmp(logits, undisturbed(path, target), (size_t)vocab * sizeof *logits) != 0)
        fail_msg("%s: other bits after a failure", path);
}

static void run(const scenario *s)
{
    bool persistent = false;
    uint64_t fired = 0;
    char path[512];
    snprintf(path, sizeof path, "%s", strchr(s->path, '/') != NULL ? s->path : in_folder(root, s->path));
    if (s->setup != NULL)
        undisturbed(path, 3 * WINDOW + PREFIX + 20);
    int descriptors = count_descriptors(), threads = count_threads();
    for (int mode = 0; mode < 2; mode++, persistent = true) {
        for (uint64_t n = 1;; n++) {
            world w = { .path = path, .flags = s->flags };
            fault_host_init(&fault);
            snprintf(w.file, sizeof w.file, "%s", in_folder(root, "cache"));
            if (s->setup != NULL)
                s->setup(&w);
            fault_host_arm(&fault, n, persistent);
            memset(error.message, 0, sizeof error.message);
            bitaxon_status status = s->act(&w);
            uint64_t refused = atomic_load(&fault.refused);
            if (refused == 0 && n <= (uint64_t)s->least)
                fail_msg("%s: only %llu allocations", s->name, (unsigned long long)atomic_load(&fault.allocations));
            fault_host_disarm(&fault);
            if (status != BITAXON_OK && status != BITAXON_OUT_OF_MEMORY)
                fail_msg("%s: allocation %llu: %s: %s", s->name, (unsigned long long)n, bitaxon_status_name(status),
                         error.message);
            if (refused == 0)
                assert_int_equal(status, BITAXON_OK);
            if (status != BITAXON_OK && strlen(error.message) < 15)
                fail_msg("%s: allocation %llu: the message names nothing: '%s'", s->name, (unsigned long long)n,
                         error.message);
            if (status != BITAXON_OK)
                assert_int_equal(error.code, status);
            if (s->after != NULL)
                s->after(&w, status);
            close_world(&w);
            if (fault_host_balance(&fault)[0] != '\0')
                fail_msg("%s: allocation %llu (%s): %s", s->name, (unsigned long long)n,
                         persistent ? "and all after" : "alone", fault_host_balance(&fault));
            fired += refused != 0;
            if (refused == 0)
                break;
        }
        assert_int_equal(count_descriptors(), descriptors);
        assert_int_equal(count_threads(), threads);
    }
    print_message("%s: %llu failures\n", s->name, (unsigned long long)fired);
    assert_true(fired > 0);
}

/* ---- opening -------------------------------------------------------------------------------- */

static bitaxon_status act_open(world *w)
{
    bitaxon_model_params params = { .struct_size = sizeof params, .path = w->path, .flags = w->flags, .threads = 3,
                                    .host = &fault.host };
    w->model = (bitaxon_model *)w;
    return bitaxon_model_open(&params, &w->model, &error);
}

static void after_open(world *w, bitaxon_status status)
{
    if (status != BITAXON_OK)
        assert_null(w->model);
    else
        assert_non_null(w->model);
}

static bitaxon_status act_estimate(world *w)
{
    bitaxon_model_params params = { .struct_size = sizeof params, .path = w->path, .flags = w->flags, .threads = 3,
                                    .host = &fault.host };
    bitaxon_estimate e = { .struct_size = sizeof e };
    return bitaxon_model_estimate(&params, NULL, &e, &error);
}

static bitaxon_status act_create(world *w)
{
    bitaxon_logit_bias bias = { 5, 1.0f };
    bitaxon_sampler_params sampler = { .struct_size = sizeof sampler, .bias_count = 1, .bias = &bias };
    bitaxon_session_params params = { .struct_size = sizeof params, .sampler = &sampler };
    w->session = (bitaxon_session *)w;
    return bitaxon_session_create(w->model, &params, &w->session, &error);
}

static void after_create(world *w, bitaxon_status status)
{
    if (status != BITAXON_OK) {
        assert_null(w->session);
        OK(bitaxon_session_create(w->model, NULL, &w->session, &error));
    }
    goes_on(w->path, w->session);
}

static bitaxon_status act_cache(world *w)
{
    w->cache = (bitaxon_cache *)w;
    return bitaxon_cache_create(w->model, NULL, &w->cache, &error);
}

static void after_cache(world *w, bitaxon_status status)
{
    if (status != BITAXON_OK)
        assert_null(w->cache);
}

/* ---- a session at work -------------------------------------------------------------------------- */

static void after_session(world *w, bitaxon_status status)
{
    if (status != BITAXON_OK)
        assert_true(bitaxon_session_position(w->session) <= 3 * WINDOW + PREFIX + 20);
    goes_on(w->path, w->session);
}

/* Reading takes nothing by itself; after a checkpoint it may, when the window's pages are kept. */
static bitaxon_status act_read(world *w)
{
    int32_t tokens[3 * WINDOW + 4];
    bitaxon_cache *cache = bitaxon_session_cache(w->session);
    bitaxon_status status = bitaxon_cache_checkpoint(cache, &error);
    for (int step = 0; step < 3 && status == BITAXON_OK; step++) {
        uint64_t at = bitaxon_session_position(w->session);
        for (int i = 0; i < WINDOW; i++)
            tokens[i] = token_at(at + (uint64_t)i);
        status = bitaxon_session_prefill(w->session, tokens, WINDOW, &error);
        if (status == BITAXON_OK)
            status = bitaxon_cache_checkpoint(cache, &error);
    }
    return status;
}

static bitaxon_status act_rewind(world *w)
{
    bitaxon_status status = bitaxon_session_rewind(w->session, PREFIX / 3 + 5, &error);
    if (status == BITAXON_OK) /* the way back itself takes nothing; keeping it does */
        status = bitaxon_cache_checkpoint(bitaxon_session_cache(w->session), &error);
    return status == BITAXON_OK ? bitaxon_session_rewind(w->session, 4, &error) : status;
}

static bitaxon_status act_clone(world *w)
{
    w->made = (bitaxon_cache *)w;
    return bitaxon_cache_clone(bitaxon_session_cache(w->session), &w->made, &error);
}

static void after_clone(world *w, bitaxon_status status)
{
    assert_int_equal(bitaxon_session_position(w->session), w->expected);
    if (status != BITAXON_OK) {
        assert_null(w->made);
    } else {
        bitaxon_session_params params = { .struct_size = sizeof params, .cache = w->made };
        OK(bitaxon_session_create(w->model, &params, &w->made_session, &error));
        goes_on(w->path, w->made_session);
    }
    goes_on(w->path, w->session);
}

/* Clones that go on while they share. */
static bitaxon_status act_clone_on(world *w)
{
    bitaxon_status status = bitaxon_cache_clone(bitaxon_session_cache(w->session), &w->made, &error);
    if (status != BITAXON_OK)
        return status;
    bitaxon_session_params params = { .struct_size = sizeof params, .cache = w->made };
    status = bitaxon_session_create(w->model, &params, &w->made_session, &error);
    int32_t token = token_at(w->expected);
    if (status == BITAXON_OK)
        status = bitaxon_session_prefill(w->made_session, &token, 1, &error);
    if (status == BITAXON_OK)
        status = bitaxon_session_prefill(w->session, &token, 1, &error);
    return status;
}

static void after_clone_on(world *w, bitaxon_status status)
{
    (void)status;
    if (w->made_session != NULL)
        goes_on(w->path, w->made_session);
    goes_on(w->path, w->session);
}

static bitaxon_status act_set_cache(world *w)
{
    bitaxon_status status = bitaxon_session_set_cache(w->session, w->cache, &error);
    if (status != BITAXON_OK)
        return status;
    return BITAXON_OK;
}

static void setup_set_cache(world *w)
{
    open_world(w);
    bitaxon_cache_params small = { .struct_size = sizeof small, .max_tokens = 8 };
    bitaxon_session_params params = { .struct_size = sizeof params, .cache_params = &small };
    OK(bitaxon_session_create(w->model, &params, &w->session, &error));
    OK(bitaxon_cache_create(w->model, NULL, &w->cache, &error)); /* longer: the workspace may grow */
}

static void after_set_cache(world *w, bitaxon_status status)
{
    if (status == BITAXON_OK) {
        goes_on(w->path, w->session);
    } else {
        read_more(w->session, 8);
        OK(bitaxon_session_set_cache(w->session, w->cache, &error));
        goes_on(w->path, w->session);
    }
}

static bitaxon_status act_sampler(world *w)
{
    bitaxon_logit_bias bias[3] = { { 5, 1.0f }, { 6, -1.0f }, { 7, 2.0f } };
    bitaxon_sampler_params sampler = { .struct_size = sizeof sampler, .bias_count = 3, .bias = bias, .temperature = 1 };
    return bitaxon_session_set_sampler(w->session, &sampler, &error);
}

/* ---- files ------------------------------------------------------------------------------------ */

static bitaxon_status act_save(world *w)
{
    return bitaxon_cache_save(bitaxon_session_cache(w->session), w->file, &error);
}

static void after_save(world *w, bitaxon_status status)
{
    if (status != BITAXON_OK)
        assert_int_equal(access(w->file, F_OK), -1);
    else
        assert_int_equal(unlink(w->file), 0);
    int left = 0; /* no temporary file stays */
    size_t n = strlen(w->file);
    char other[640];
    for (int i = 0; i < 4; i++) {
        snprintf(other, sizeof other, "%.*s.tmp-%d-%d", (int)n, w->file, (int)getpid(), i);
        left += access(other, F_OK) == 0;
    }
    assert_int_equal(left, 0);
    goes_on(w->path, w->session);
}

static void setup_load(world *w)
{
    open_at_prefix(w);
    OK(bitaxon_cache_save(bitaxon_session_cache(w->session), w->file, &error));
    read_more(w->session, 7);
    OK(bitaxon_cache_checkpoint(bitaxon_session_cache(w->session), &error));
}

static bitaxon_status act_load(world *w)
{
    return bitaxon_cache_load(bitaxon_session_cache(w->session), w->file, &error);
}

static void after_load(world *w, bitaxon_status status)
{
    assert_int_equal(bitaxon_session_position(w->session), status == BITAXON_OK ? PREFIX : PREFIX + 7);
    goes_on(w->path, w->session);
    unlink(w->file);
}

/* ---- text --------------------------------------------------------------------------------------- */

static bitaxon_status act_generate(world *w)
{
    const char *stop[] = { "quite unlikely", "zzzz" };
    bitaxon_generate_params params = { .struct_size = sizeof params, .max_tokens = 12, .stop = stop, .stop_count = 2,
                                       .flags = BITAXON_GENERATE_IGNORE_EOS | BITAXON_GENERATE_SPECIAL };
    bitaxon_generate_result result = { .struct_size = sizeof result };
    return bitaxon_session_generate(w->session, &params, &result, &error);
}

static void after_generate(world *w, bitaxon_status status)
{
    (void)status; /* what was generated is another text: only that the session goes on */
    OK(bitaxon_session_rewind(w->session, w->expected, &error));
    goes_on(w->path, w->session);
}

static bitaxon_status act_score(world *w)
{
    int32_t tokens[40];
    double sum;
    for (int i = 0; i < 40; i++)
        tokens[i] = token_at(w->expected + (uint64_t)i);
    bitaxon_status status = bitaxon_cache_checkpoint(bitaxon_session_cache(w->session), &error);
    return status == BITAXON_OK ? bitaxon_session_score(w->session, tokens, 40, &sum, NULL, &error) : status;
}

/* ---- conversions ---------------------------------------------------------------------------------- */

static bitaxon_status convert(world *w, bitaxon_status (*what)(const bitaxon_convert_params *, bitaxon_error *))
{
    bitaxon_convert_params params = {
        .struct_size = sizeof params, .host = &fault.host, .input = w->path, .output = w->file
    };
    return what(&params, &error);
}

static bitaxon_status act_pack(world *w) { return convert(w, bitaxon_model_pack); }
static bitaxon_status act_quantize(world *w) { return convert(w, bitaxon_model_quantize); }
static bitaxon_status act_verify(world *w) { return convert(w, bitaxon_model_verify); }

static bitaxon_status act_new(world *w)
{
    bitaxon_convert_params params = { .struct_size = sizeof params, .host = &fault.host, .output = w->file, .seed = 5,
                                      .config_json = small_config(""), .format = "affine4" };
    return bitaxon_model_new(&params, &error);
}

/* No partial file: a folder of a failed conversion holds nothing that could be opened. */
static void after_convert(world *w, bitaxon_status status)
{
    bitaxon_model_params params = { .struct_size = sizeof params, .path = w->file, .threads = 1 };
    bitaxon_status opened = bitaxon_model_open(&params, &w->model, &error);
    if (status == BITAXON_OK)
        OK(opened);
    else
        assert_int_equal(opened, BITAXON_IO);
    bitaxon_model_free(w->model);
    w->model = NULL;
    remove_folder(strdup(w->file));
}

static const scenario scenarios[] = {
    { "open float", "tests/golden/tiny-fp32", 0, NULL, act_open, after_open, 30 },
    { "open affine", "tests/golden/tiny-q4", 0, NULL, act_open, after_open, 30 },
    { "open affine, no mapping", "tests/golden/tiny-q4", BITAXON_MODEL_NO_MMAP, NULL, act_open, after_open, 30 },
    { "open packed", "packed", 0, NULL, act_open, after_open, 30 },
    { "open nf4", "nf4", 0, NULL, act_open, after_open, 30 },
    { "open with tokenizer", "words", 0, NULL, act_open, after_open, 30 },
    { "open tokenizer only", "words", BITAXON_MODEL_TOKENIZER_ONLY, NULL, act_open, after_open, 10 },
    { "estimate", "words", 0, NULL, act_estimate, NULL, 10 },
    { "create a session", "tests/golden/tiny-q4", 0, open_world, act_create, after_create, 8 },
    { "create a cache", "tests/golden/tiny-q4", 0, open_world, act_cache, after_cache, 5 },
    { "checkpoint and read", "tests/golden/tiny-q4", 0, open_at_prefix, act_read, after_session, 3 },
    { "rewind", "tests/golden/tiny-q4", 0, open_with_points, act_rewind, after_session, 1 },
    { "clone", "tests/golden/tiny-q4", 0, open_with_points, act_clone, after_clone, 5 },
    { "clone and go on", "tests/golden/tiny-fp32", 0, open_with_points, act_clone_on, after_clone_on, 5 },
    { "set the cache", "tests/golden/tiny-q4", 0, setup_set_cache, act_set_cache, after_set_cache, 1 },
    { "set the sampler", "tests/golden/tiny-q4", 0, open_at_prefix, act_sampler, after_session, 1 },
    { "save", "tests/golden/tiny-q4", 0, open_at_prefix, act_save, after_save, 2 },
    { "load", "tests/golden/tiny-q4", 0, setup_load, act_load, after_load, 5 },
    { "generate", "words", 0, open_at_prefix, act_generate, after_generate, 2 },
    { "score", "tests/golden/tiny-q4", 0, open_at_prefix, act_score, after_session, 1 },
    { "pack", "tests/golden/tiny-q4", 0, NULL, act_pack, after_convert, 10 },
    { "quantise", "tests/golden/tiny-fp32", 0, NULL, act_quantize, after_convert, 10 },
    { "verify", "words", 0, NULL, act_verify, NULL, 10 },
    { "new", "tests/golden/tiny-fp32", 0, NULL, act_new, after_convert, 10 },
};

static void test_scenario(void **state) { run(*state); }

int main(void)
{
    enum { COUNT = sizeof scenarios / sizeof scenarios[0] };
    struct CMUnitTest tests[COUNT];
    memset(tests, 0, sizeof tests);
    for (int i = 0; i < COUNT; i++)
        tests[i] =
            (struct CMUnitTest){ scenarios[i].name, test_scenario, NULL, NULL, (void *)(uintptr_t)&scenarios[i] };
    return cmocka_run_group_tests(tests, make_models, remove_models);
}
