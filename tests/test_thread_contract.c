/* SPDX-License-Identifier: Apache-2.0 */
/* test_thread_contract.c - each sentence of docs/threads.md: many sessions of one model at
 * once, clones in different threads, handles freed in any order, the host's executor, and
 * cancelling from another thread, with the time it takes measured. Meant for the thread
 * sanitizer too. */
#include "call_fixture.h"
#include "fault_files.h"
#include "fault_host.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SLOW 20 /* instrumented code computes that much slower */
#else
#define SLOW 1
#endif

enum { VOCAB = 96, LENGTH = 90, SESSIONS = 7 }; /* VOCAB: of the golden models; texts keep to it */

static char *root;

static int set_up(void **state)
{
    (void)state;
    root = make_folder();
    new_model(in_folder(root, "large"),
              small_config("\"vocab_size\": 2000, \"hidden_dim\": 512, \"d_source_model\": 256, \"num_layers\": 6, "
                           "\"num_heads\": 8, \"ssm_d_state\": 16, \"swa_window_size\": 128, "
                           "\"moe_intermediate_dim\": 512, \"max_seq_len\": 8192"),
              "affine4", NULL);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    remove_folder(root);
    return 0;
}

static bitaxon_model *open_model(const char *path, uint32_t threads, const bitaxon_host *host)
{
    bitaxon_model_params params = { .struct_size = sizeof params, .path = path, .threads = threads, .host = host };
    bitaxon_model *model;
    OK(bitaxon_model_open(&params, &model, &error));
    return model;
}

static int32_t token_at(uint64_t text, uint64_t i) { return (int32_t)((text * 11 + i * 29 + i / 5) % VOCAB); }

/* Without cmocka's assertions, which belong to the main thread. */
static bitaxon_status read_on(bitaxon_session *session, uint64_t text, uint64_t target, size_t piece)
{
    bitaxon_status status = BITAXON_OK;
    int32_t tokens[1024];
    while (status == BITAXON_OK && bitaxon_session_position(session) < target) {
        uint64_t at = bitaxon_session_position(session);
        size_t n = target - at < piece ? (size_t)(target - at) : piece;
        for (size_t i = 0; i < n; i++)
            tokens[i] = token_at(text, at + i);
        status = bitaxon_session_prefill(session, tokens, n, NULL);
    }
    return status;
}

/* ---- N sessions, N threads -------------------------------------------------------------------------- */

typedef struct worker {
    bitaxon_session *session; /* taken over */
    uint64_t text, target;
    size_t piece;
    float logits[VOCAB];
    int32_t generated[20];
    bitaxon_status status;
    pthread_t thread;
} worker;

static void *work(void *argument)
{
    worker *w = argument;
    const float *logits;
    w->status = read_on(w->session, w->text, w->target, w->piece);
    if (w->status == BITAXON_OK)
        w->status = bitaxon_session_logits(w->session, &logits, NULL);
    if (w->status == BITAXON_OK)
        memcpy(w->logits, logits, sizeof w->logits);
    for (int i = 0; i < 20 && w->status == BITAXON_OK; i++)
        w->status = bitaxon_session_decode(w->session, &w->generated[i], NULL);
    bitaxon_session_free(w->session);
    return NULL;
}

static void start_session(worker *w, bitaxon_model *model, bitaxon_cache *cache, uint64_t text)
{
    bitaxon_sampler_params sampler = { .struct_size = sizeof sampler, .temperature = 1.0f, .seed = text };
    bitaxon_session_params params = { .struct_size = sizeof params, .cache = cache, .sampler = &sampler };
    *w = (worker){ .text = text, .target = LENGTH, .piece = 13 + text };
    OK(bitaxon_session_create(model, &params, &w->session, &error));
}

static void same_work(const worker *a, const worker *b)
{
    assert_int_equal(a->status, BITAXON_OK);
    assert_int_equal(b->status, BITAXON_OK);
    assert_memory_equal(a->logits, b->logits, sizeof a->logits);
    assert_memory_equal(a->generated, b->generated, sizeof a->generated);
}

static void alone(worker *out, const char *path, uint64_t text)
{
    bitaxon_model *model = open_model(path, 1, NULL);
    start_session(out, model, NULL, text);
    work(out);
    bitaxon_model_free(model);
}

static const char *const paths[] = { "tests/golden/tiny-fp32", "tests/golden/tiny-q4" };

/* "A model may be shared by any number of threads", more of them than the pool has; its handle
 * is given up while they compute. */
static void test_many_sessions(void **state)
{
    (void)state;
    for (int p = 0; p < 2; p++)
        for (uint32_t threads = 1; threads <= 4; threads += 3) {
            static worker expected[SESSIONS], together[SESSIONS];
            for (int i = 0; i < SESSIONS; i++)
                alone(&expected[i], paths[p], (uint64_t)i);
            int before = count_threads();
            fault_host fault;
            fault_host_init(&fault);
            bitaxon_model *model = open_model(paths[p], threads, &fault.host);
            for (int i = 0; i < SESSIONS; i++)
                start_session(&together[i], model, NULL, (uint64_t)i);
            for (int i = 0; i < SESSIONS; i++)
                assert_int_equal(pthread_create(&together[i].thread, NULL, work, &together[i]), 0);
            bitaxon_model_free(model);
            for (int i = 0; i < SESSIONS; i++)
                pthread_join(together[i].thread, NULL);
            for (int i = 0; i < SESSIONS; i++)
                same_work(&expected[i], &together[i]);
            assert_string_equal(fault_host_balance(&fault), "");
            assert_int_equal(count_threads(), before);
        }
}

/* "Clones are independent of each other": in different threads from one shared prefix. */
static void test_clones(void **state)
{
    (void)state;
    for (int p = 0; p < 2; p++)
        for (int round = 0; round < 6; round++) {
            static worker expected[SESSIONS], together[SESSIONS];
            bitaxon_cache *clones[SESSIONS];
            fault_host fault;
            fault_host_init(&fault);
            bitaxon_model *model = open_model(paths[p], 2, &fault.host);
            bitaxon_session *prefix;
            OK(bitaxon_session_create(model, NULL, &prefix, &error));
            OK(read_on(prefix, 3, 50, 50)); /* in the middle of a page */
            if (round % 2)
                OK(bitaxon_cache_checkpoint(bitaxon_session_cache(prefix), &error));
            for (int i = 0; i < SESSIONS; i++)
                OK(bitaxon_cache_clone(bitaxon_session_cache(prefix), &clones[i], &error));
            for (int i = 0; i < SESSIONS; i++) {
                /* the same by itself: the prefix, then the worker's own text */
                bitaxon_model *own = open_model(paths[p], 1, NULL);
                start_session(&expected[i], own, NULL, (uint64_t)i);
                OK(read_on(expected[i].session, 3, 50, 17));
                work(&expected[i]);
                bitaxon_model_free(own);
            }
            for (int i = 0; i < SESSIONS; i++) {
                start_session(&together[i], model, clones[i], (uint64_t)i);
                bitaxon_cache_free(clones[i]);
            }
            if (round % 3 == 0)
                bitaxon_session_free(prefix); /* the origin may go first */
            for (int i = 0; i < SESSIONS; i++)
                assert_int_equal(pthread_create(&together[i].thread, NULL, work, &together[i]), 0);
            if (round % 3 != 0) {
                OK(read_on(prefix, 3, 80, 7)); /* or go on meanwhile */
                bitaxon_session_free(prefix);
            }
            bitaxon_model_free(model);
            for (int i = 0; i < SESSIONS; i++)
                pthread_join(together[i].thread, NULL);
            for (int i = 0; i < SESSIONS; i++)
                same_work(&expected[i], &together[i]);
            assert_string_equal(fault_host_balance(&fault), "");
        }
}

/* "Handles may be freed in any order." */
static void test_any_order(void **state)
{
    (void)state;
    static const char orders[][5] = { "mcsd", "mdsc", "smcd", "csmd", "dcms", "sdcm", "cmds", "dmsc" };
    for (size_t o = 0; o < sizeof orders / sizeof orders[0]; o++) {
        fault_host fault;
        fault_host_init(&fault);
        int threads = count_threads(), descriptors = count_descriptors();
        bitaxon_model *model = open_model(paths[o % 2], 3, &fault.host);
        bitaxon_cache *cache, *clone;
        bitaxon_session *session;
        OK(bitaxon_cache_create(model, NULL, &cache, &error));
        bitaxon_session_params params = { .struct_size = sizeof params, .cache = cache };
        OK(bitaxon_session_create(model, &params, &session, &error));
        OK(read_on(session, 1, 40, 40));
        OK(bitaxon_cache_clone(cache, &clone, &error));
        bool session_alive = true;
        for (int i = 0; i < 4; i++) {
            if (orders[o][i] == 'm')
                bitaxon_model_free(model);
            if (orders[o][i] == 'c')
                bitaxon_cache_free(cache);
            if (orders[o][i] == 'd')
                bitaxon_cache_free(clone);
            if (orders[o][i] == 's') {
                bitaxon_session_free(session);
                session_alive = false;
            }
            if (session_alive) /* what is left works */
                OK(read_on(session, 1, 50 + 10 * (uint64_t)i, 3));
        }
        assert_string_equal(fault_host_balance(&fault), "");
        assert_int_equal(count_threads(), threads);
        assert_int_equal(count_descriptors(), descriptors);
    }
}

/* "Serves at most one session at a time." */
static void test_one_session_per_cache(void **state)
{
    (void)state;
    bitaxon_model *model = open_model(paths[1], 1, NULL);
    bitaxon_cache *cache;
    bitaxon_session *first, *second = (bitaxon_session *)&error;
    OK(bitaxon_cache_create(model, NULL, &cache, &error));
    bitaxon_session_params params = { .struct_size = sizeof params, .cache = cache };
    OK(bitaxon_session_create(model, &params, &first, &error));
    assert_int_equal(bitaxon_session_create(model, &params, &second, &error), BITAXON_BAD_STATE);
    assert_null(second);
    OK(bitaxon_session_create(model, NULL, &second, &error));
    assert_int_equal(bitaxon_session_set_cache(second, cache, &error), BITAXON_BAD_STATE);
    bitaxon_session_free(first);
    OK(bitaxon_session_set_cache(second, cache, &error));
    OK(bitaxon_session_set_cache(second, cache, &error));
    bitaxon_session_free(second);
    bitaxon_cache_free(cache);
    bitaxon_model_free(model);
}

/* ---- the host's executor -------------------------------------------------------------------------------- */

typedef struct slice {
    void (*task)(void *context, uint32_t index);
    void *context;
    uint32_t first, step, count;
} slice;

static void *run_slice(void *argument)
{
    const slice *s = argument;
    for (uint32_t i = s->first; i < s->count; i += s->step)
        s->task(s->context, i);
    return NULL;
}

/* Two threads per job, in an order of its own. */
static int32_t host_parallel_for(void *user, uint32_t count, void (*task)(void *context, uint32_t index), void *context)
{
    (void)user;
    slice odd = { task, context, 1, 2, count }, even = { task, context, 0, 2, count };
    pthread_t thread;
    if (pthread_create(&thread, NULL, run_slice, &odd) != 0)
        return 1;
    run_slice(&even);
    pthread_join(thread, NULL);
    return 0;
}

static void test_host_executor(void **state)
{
    (void)state;
    for (int p = 0; p < 2; p++) {
        static worker expected, found;
        fault_host fault;
        fault_host_init(&fault);
        fault.host.parallel_for = host_parallel_for;
        alone(&expected, paths[p], 2);
        bitaxon_model *model = open_model(paths[p], 8, &fault.host);
        start_session(&found, model, NULL, 2);
        work(&found);
        same_work(&expected, &found);
        bitaxon_model_free(model);
        assert_string_equal(fault_host_balance(&fault), "");
    }
}

/* ---- cancel ---------------------------------------------------------------------------------------------- */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

typedef enum long_call {
    CALL_PREFILL,
    CALL_SCORE,
    CALL_EVALUATE,
    CALL_DECODE,
    CALL_GENERATE,
    CALL_REWIND,
    CALLS
} long_call;
static const char *const call_names[] = { "prefill", "score", "evaluate", "decode", "generate", "rewind" };
enum { BIG_VOCAB = 2000, START = 300, MOST = 1024 };

typedef struct caller {
    bitaxon_session *session;
    long_call call;
    float *rows;
    bitaxon_status status;
    double ended;
} caller;

static void *call_long(void *argument)
{
    caller *c = argument;
    static int32_t tokens[MOST];
    uint64_t at = bitaxon_session_position(c->session);
    double sum;
    int32_t token;
    for (int i = 0; i < MOST; i++)
        tokens[i] = token_at(9, at + (uint64_t)i);
    bitaxon_generate_params g = { .struct_size = sizeof g };
    switch (c->call) {
    case CALL_PREFILL: c->status = bitaxon_session_prefill(c->session, tokens, MOST, NULL); break;
    case CALL_SCORE: c->status = bitaxon_session_score(c->session, tokens, MOST, &sum, NULL, NULL); break;
    case CALL_EVALUATE: c->status = bitaxon_session_evaluate(c->session, tokens, MOST, c->rows, NULL); break;
    case CALL_DECODE:
        do
            c->status = bitaxon_session_decode(c->session, &token, NULL);
        while (c->status == BITAXON_OK);
        break;
    case CALL_GENERATE: c->status = bitaxon_session_generate(c->session, &g, NULL, NULL); break;
    default: c->status = bitaxon_session_rewind(c->session, START - 1, NULL); break;
    }
    c->ended = now();
    return NULL;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Makes the call in a thread of its own, cancels it `wait` ns later, and gives the seconds from there to its
 * end. A fast machine may be done before: then it starts over with half the wait. */
static double cancel_later(caller *c, long_call call, long wait)
{
    bitaxon_session *session = c->session;
    for (;;) {
        pthread_t thread;
        OK(bitaxon_session_rewind(session, START, &error));
        if (call == CALL_REWIND) /* without checkpoints: all is read again */
            OK(bitaxon_cache_checkpoint_drop(bitaxon_session_cache(session), START, &error));
        c->call = call;
        assert_int_equal(pthread_create(&thread, NULL, call_long, c), 0);
        nanosleep(&(struct timespec){ 0, wait }, NULL);
        double began = now();
        bitaxon_session_cancel(session);
        pthread_join(thread, NULL);
        if (c->status != BITAXON_OK || wait < 100000)
            return c->ended - began;
        wait /= 2;
        /* The cancel still waits for a call. */
        bitaxon_session_cancel(session);
        int32_t token = token_at(9, bitaxon_session_position(session));
        assert_int_equal(bitaxon_session_prefill(session, &token, 1, NULL), BITAXON_CANCELLED);
        OK(bitaxon_session_rewind(session, 0, &error));
        OK(read_on(session, 9, START, MOST));
        OK(bitaxon_cache_checkpoint(bitaxon_session_cache(session), &error));
    }
}

static void test_cancel(void **state)
{
    (void)state;
    enum { TRIALS = SLOW > 1 ? 3 : 5 };
    static float expected[BIG_VOCAB];
    const float *logits;
    for (uint32_t threads = 1; threads <= 2; threads++) {
        bitaxon_model *model = open_model(in_folder(root, "large"), threads, NULL);
        bitaxon_session *session;
        OK(bitaxon_session_create(model, NULL, &session, &error));
        OK(read_on(session, 9, START, START));
        OK(bitaxon_cache_checkpoint(bitaxon_session_cache(session), &error));
        OK(read_on(session, 9, START + 10, 3));
        OK(bitaxon_session_logits(session, &logits, &error));
        memcpy(expected, logits, sizeof expected);
        caller c = { .session = session, .rows = malloc(sizeof(float) * BIG_VOCAB * MOST) };
        assert_non_null(c.rows);
        for (int call = 0; call < CALLS; call++) {
            double took[TRIALS];
            if (SLOW > 1 && call == CALL_REWIND)
                continue; /* its second way back would take minutes */
            for (int trial = 0; trial < TRIALS; trial++) {
                took[trial] = cancel_later(&c, (long_call)call, 7000000 + 9000000 * trial);
                uint64_t at = bitaxon_session_position(session);
                if (c.status != BITAXON_CANCELLED)
                    fail_msg("%s: %s at %llu", call_names[call], bitaxon_status_name(c.status), (unsigned long long)at);
                if (call == CALL_REWIND)
                    assert_true(at < START);
                else
                    assert_true(at >= START && (call > CALL_EVALUATE || at < START + MOST));
                if (call <= CALL_EVALUATE) { /* what was read is a beginning of what was given */
                    int32_t tokens[MOST];
                    OK(bitaxon_cache_tokens(bitaxon_session_cache(session), START, at - START, tokens, &error));
                    for (uint64_t i = 0; i < at - START; i++)
                        assert_int_equal(tokens[i], token_at(9, START + i));
                }
                if (call == CALL_REWIND) { /* stand at START again, with a checkpoint */
                    OK(read_on(session, 9, START, MOST));
                    OK(bitaxon_cache_checkpoint(bitaxon_session_cache(session), &error));
                } else {
                    OK(bitaxon_session_rewind(session, START, &error));
                }
                OK(read_on(session, 9, START + 10, 10));
                OK(bitaxon_session_logits(session, &logits, &error));
                assert_memory_equal(logits, expected, sizeof expected);
            }
            qsort(took, TRIALS, sizeof *took, by_value);
            print_message("%s, %u threads: stopped within %.1f ms (median), %.1f ms (most)\n", call_names[call],
                          threads, took[TRIALS / 2] * 1e3, took[TRIALS - 1] * 1e3);
            assert_true(took[TRIALS / 2] < 0.05 * SLOW);
        }
        free(c.rows);
        bitaxon_session_free(session);
        bitaxon_model_free(model);
    }
}

/* With no call in progress the next one stops, and only that. */
static void test_cancel_ahead(void **state)
{
    (void)state;
    bitaxon_model *model = open_model(paths[1], 2, NULL);
    bitaxon_session *session;
    int32_t token;
    OK(bitaxon_session_create(model, NULL, &session, &error));
    OK(read_on(session, 1, 20, 20));
    bitaxon_session_cancel(session);
    bitaxon_session_cancel(session);
    assert_int_equal(bitaxon_session_decode(session, &token, &error), BITAXON_CANCELLED);
    assert_non_null(strstr(error.message, "20"));
    assert_int_equal(bitaxon_session_position(session), 20);
    OK(bitaxon_session_decode(session, &token, &error));
    bitaxon_session_cancel(session);
    bitaxon_generate_params g = { .struct_size = sizeof g, .max_tokens = 5 };
    bitaxon_generate_result r = { .struct_size = sizeof r };
    assert_int_equal(bitaxon_session_generate(session, &g, &r, &error), BITAXON_CANCELLED);
    assert_int_equal(r.finish, BITAXON_FINISH_CANCELLED);
    assert_int_equal(r.tokens, 0);
    OK(bitaxon_session_generate(session, &g, &r, &error));
    assert_int_equal(r.tokens, 5);
    bitaxon_session_cancel(NULL);
    bitaxon_session_free(session);
    bitaxon_model_free(model);
}

/* "May be called from a signal handler." */
static bitaxon_session *signalled;

static void on_alarm(int number)
{
    (void)number;
    bitaxon_session_cancel(signalled);
}

static void test_cancel_from_signal(void **state)
{
    (void)state;
    bitaxon_model *model = open_model(in_folder(root, "large"), 2, NULL);
    int32_t *tokens = calloc(4096, sizeof *tokens);
    assert_non_null(tokens);
    OK(bitaxon_session_create(model, NULL, &signalled, &error));
    struct sigaction action = { .sa_handler = on_alarm }, before;
    assert_int_equal(sigaction(SIGALRM, &action, &before), 0);
    struct itimerval timer = { { 0, 0 }, { 0, 30000 } };
    assert_int_equal(setitimer(ITIMER_REAL, &timer, NULL), 0);
    assert_int_equal(bitaxon_session_prefill(signalled, tokens, 4096, &error), BITAXON_CANCELLED);
    assert_int_equal(sigaction(SIGALRM, &before, NULL), 0);
    assert_true(bitaxon_session_position(signalled) < 4096);
    bitaxon_session_free(signalled);
    bitaxon_model_free(model);
    free(tokens);
}

/* "A progress callback that returns non-zero does the same", from the thread that called, and
 * while loading too. */
typedef struct watch {
    pthread_t thread;
    int calls, stop_at, wrong;
} watch;

static int32_t on_progress(void *user, const bitaxon_progress *progress)
{
    watch *w = user;
    w->wrong += !pthread_equal(w->thread, pthread_self()) || progress->total == 0 || progress->done > progress->total;
    return ++w->calls == w->stop_at;
}

static void test_progress(void **state)
{
    (void)state;
    fault_host fault;
    fault_host_init(&fault);
    watch w = { .thread = pthread_self() };
    bitaxon_model_params params = { .struct_size = sizeof params, .path = in_folder(root, "large"), .threads = 2,
                                    .host = &fault.host, .progress = on_progress, .progress_user = &w };
    bitaxon_model *model;
    OK(bitaxon_model_open(&params, &model, &error));
    bitaxon_model_free(model);
    int calls = w.calls;
    assert_true(calls > 5);
    for (int stop = 1; stop <= calls; stop += 1 + calls / 20) {
        w.calls = 0;
        w.stop_at = stop;
        assert_int_equal(bitaxon_model_open(&params, &model, &error), BITAXON_CANCELLED);
        assert_null(model);
        assert_string_equal(fault_host_balance(&fault), "");
    }
    w.stop_at = 0;
    OK(bitaxon_model_open(&params, &model, &error));
    bitaxon_session_params sp = { .struct_size = sizeof sp, .progress = on_progress, .progress_user = &w };
    bitaxon_session *session;
    OK(bitaxon_session_create(model, &sp, &session, &error));
    w.calls = 0;
    w.stop_at = 3;
    assert_int_equal(read_on(session, 9, START, START), BITAXON_CANCELLED);
    assert_true(bitaxon_session_position(session) < START);
    w.stop_at = 0;
    OK(read_on(session, 9, START, MOST));
    assert_int_equal(w.wrong, 0);
    bitaxon_session_free(session);
    bitaxon_model_free(model);
    assert_string_equal(fault_host_balance(&fault), "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_many_sessions), cmocka_unit_test(test_clones),
        cmocka_unit_test(test_any_order),     cmocka_unit_test(test_one_session_per_cache),
        cmocka_unit_test(test_host_executor), cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_cancel_ahead),  cmocka_unit_test(test_cancel_from_signal),
        cmocka_unit_test(test_progress),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
