/* SPDX-License-Identifier: Apache-2.0 */
/* test_pool.c - the thread pool by itself: every task once whatever the count, ranges of tasks, several callers
 * at once, threads that are slow or too many, cancelling, the caller's floating-point state, sleep
 * when idle, fork, CPUs counted, threads that cannot be started, a host's executor. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "fault_host.h"
#include "ops/ops.h"
#include "runtime/runtime.h"

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer) || __has_feature(memory_sanitizer)
#define SANITIZED 1
#endif
#endif

#if !defined(SANITIZED)
/* Stands in front of the C library's: the Nth call from now fails. */
static atomic_int thread_budget = -1; /* -1: no limit */

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
    int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    void *symbol = dlsym(RTLD_NEXT, "pthread_create");
    memcpy(&real, &symbol, sizeof real);
    int left = atomic_load(&thread_budget);
    if (left == 0)
        return EAGAIN;
    if (left > 0)
        atomic_store(&thread_budget, left - 1);
    return real(thread, attributes, start, argument);
}
#endif

static bitaxon_error error = BITAXON_ERROR_INIT;

typedef struct bench {
    fault_host fault;
    bxn_mem mem;
    bxn_pool *pool;
} bench;

static void bench_open(bench *b, uint32_t threads)
{
    fault_host_init(&b->fault);
    assert_int_equal(bxn_mem_init(&b->mem, &b->fault.host, 0, &error), BITAXON_OK);
    assert_int_equal(bxn_pool_create(&b->mem, threads, &b->pool, &error), BITAXON_OK);
}

static void bench_close(bench *b)
{
    bxn_pool_free(b->pool);
    assert_string_equal(fault_host_balance(&b->fault), "");
    assert_int_equal(atomic_load(&b->mem.used), 0);
}

enum { MOST = 1000 };

typedef struct tally {
    _Atomic uint32_t runs[MOST];
} tally;

static void count_task(void *context, uint32_t index)
{
    tally *t = context;
    atomic_fetch_add(&t->runs[index], 1);
}

static void test_counts(void **state)
{
    (void)state;
    static const uint32_t counts[] = { 0, 1, 2, 3, 7, 64, 1000 }, sizes[] = { 1, 2, 3, 8 };
    bench first;
    bench_open(&first, 2); /* a sanitizer may start a thread of its own with the first one */
    bench_close(&first);
    for (size_t s = 0; s < 4; s++) {
        bench b;
        int before = count_threads();
        bench_open(&b, sizes[s]);
        assert_int_equal(bxn_pool_threads(b.pool), sizes[s]);
        if (before >= 0)
            assert_int_equal(count_threads(), before + (int)sizes[s] - 1);
        else
            print_message("SKIP thread counts: /proc is not mounted\n");
        assert_int_equal(atomic_load(&b.mem.used), bxn_pool_bytes(sizes[s]));
        for (int round = 0; round < 300; round++)
            for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
                tally t;
                if (counts[c] > 100 && round > 20)
                    continue;
                memset(&t, 0, sizeof t);
                assert_int_equal(bxn_pool_run(b.pool, counts[c], count_task, &t, NULL), BITAXON_OK);
                for (uint32_t i = 0; i < MOST; i++)
                    assert_int_equal(atomic_load(&t.runs[i]), i < counts[c]);
            }
        bench_close(&b);
        assert_int_equal(count_threads(), before);
    }
}

/* ---- ranges ------------------------------------------------------------------------------------- */

enum { ITEMS = 3 };

typedef struct region {
    _Atomic uint32_t visits[ITEMS][MOST];
    _Atomic uint32_t ranges, longest;
} region;

static void range_task(void *context, uint32_t item, uint32_t begin, uint32_t end)
{
    region *r = context;
    for (uint32_t g = begin; g < end; g++)
        atomic_fetch_add(&r->visits[item][g], 1);
    atomic_fetch_add(&r->ranges, 1);
    uint32_t longest = atomic_load(&r->longest);
    while (end - begin > longest && !atomic_compare_exchange_weak(&r->longest, &longest, end - begin))
        continue;
}

/* Every group of every item once; where ranges are best long and a thread's share is short, one share each. */
static void test_ranges(void **state)
{
    (void)state;
    static const uint32_t sizes[] = { 1, 2, 3, 16, 48 }, groups[][ITEMS] = { { 160, 0, 0 }, { 1, 0, 0 }, { 7, 160, 33 },
                                                                            { 3, 640, 8 } };
    static const uint64_t costs[] = { 1, 4194304 };
    enum { LEAST = 8 };
    static region r;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        bench b;
        bench_open(&b, sizes[s]);
        bxn_exec exec = { .pool = b.pool };
        for (size_t c = 0; c < 4 * 2 * 2; c++) {
            const uint32_t *count = groups[c / 4], least = c % 2 * LEAST, all = count[0] + count[1] + count[2];
            bxn_item items[ITEMS];
            for (int i = 0; i < ITEMS; i++)
                items[i] = (bxn_item){ count[i], costs[c / 2 % 2], least };
            memset(&r, 0, sizeof r);
            assert_int_equal(bxn_ranges_run(&exec, items, ITEMS, range_task, &r), BITAXON_OK);
            for (int i = 0; i < ITEMS; i++)
                for (uint32_t g = 0; g < MOST; g++)
                    assert_int_equal(atomic_load(&r.visits[i][g]), g < count[i]);
            if (least != 0 && all / sizes[s] < 4 * LEAST) {
                assert_true(atomic_load(&r.longest) <= all / sizes[s] + 2);
                assert_true(atomic_load(&r.ranges) <= sizes[s] + ITEMS);
            }
        }
        bench_close(&b);
    }
}

/* ---- several callers ---------------------------------------------------------------------------- */

typedef struct caller {
    bxn_pool *pool;
    _Atomic uint32_t wrong;
} caller;

static void *call_often(void *argument)
{
    caller *c = argument;
    for (int round = 0; round < 400; round++) {
        tally t;
        memset(&t, 0, sizeof t);
        uint32_t count = 1 + (uint32_t)round % 50;
        if (bxn_pool_run(c->pool, count, count_task, &t, NULL) != BITAXON_OK)
            atomic_fetch_add(&c->wrong, 1);
        for (uint32_t i = 0; i < MOST; i++)
            if (atomic_load(&t.runs[i]) != (i < count))
                atomic_fetch_add(&c->wrong, 1);
    }
    return NULL;
}

static void test_callers(void **state)
{
    (void)state;
    bench b;
    bench_open(&b, 3);
    caller c = { b.pool, 0 };
    pthread_t threads[5];
    for (int i = 0; i < 5; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, call_often, &c), 0);
    for (int i = 0; i < 5; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&c.wrong), 0);
    bench_close(&b);
}

/* A task that asks the pool again gets its work done in its own thread. */
typedef struct nest {
    bxn_pool *pool;
    tally inner;
} nest;

static void outer_task(void *context, uint32_t index)
{
    nest *n = context;
    (void)index;
    bxn_pool_run(n->pool, 10, count_task, &n->inner, NULL);
}

static void test_nested(void **state)
{
    (void)state;
    bench b;
    bench_open(&b, 3);
    nest n = { .pool = b.pool };
    assert_int_equal(bxn_pool_run(b.pool, 20, outer_task, &n, NULL), BITAXON_OK);
    for (uint32_t i = 0; i < 10; i++)
        assert_int_equal(atomic_load(&n.inner.runs[i]), 20);
    bench_close(&b);
}

/* ---- shares -------------------------------------------------------------------------------------- */

typedef struct waiting {
    _Atomic uint32_t done;
    uint32_t count, slow;
    _Atomic uint32_t late;
} waiting;

/* One task ends only when all others have: its thread's share must be done by another. */
static void waiting_task(void *context, uint32_t index)
{
    waiting *w = context;
    for (int i = 0; index == w->slow && atomic_load(&w->done) + 1 < w->count; i++) {
        if (i == 20000) {
            atomic_fetch_add(&w->late, 1);
            break;
        }
        nanosleep(&(struct timespec){ 0, 1000000 }, NULL);
    }
    atomic_fetch_add(&w->done, 1);
}

static void test_slow_thread(void **state)
{
    (void)state;
    if (bxn_cpu_count() < 2) {
        print_message("SKIP slow_thread: one CPU, and one thread\n");
        return;
    }
    for (uint32_t threads = 2; threads <= 8; threads += 3) {
        bench b;
        bench_open(&b, threads);
        for (uint32_t slow = 0; slow < 64; slow += 9) {
            waiting w = { .count = 64, .slow = slow };
            assert_int_equal(bxn_pool_run(b.pool, w.count, waiting_task, &w, NULL), BITAXON_OK);
            assert_int_equal(atomic_load(&w.done), w.count);
            assert_int_equal(atomic_load(&w.late), 0);
        }
        bench_close(&b);
    }
}

typedef struct seen_threads {
    pthread_t who[256];
} seen_threads;

static void who_task(void *context, uint32_t index)
{
    seen_threads *s = context;
    s->who[index] = pthread_self();
    for (volatile int i = 0; i < 3000; i++)
        continue;
}

static uint32_t threads_used(bxn_pool *pool)
{
    seen_threads s;
    uint32_t distinct = 0;
    assert_int_equal(bxn_pool_run(pool, 256, who_task, &s, NULL), BITAXON_OK);
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t j = 0;
        while (j < i && !pthread_equal(s.who[j], s.who[i]))
            j++;
        distinct += j == i;
    }
    return distinct;
}

/* More threads than CPUs: those that would only stand in line stay asleep. */
static void test_crowded(void **state)
{
    (void)state;
    uint32_t cpus = bxn_cpu_count();
    if (cpus > 32) {
        print_message("SKIP crowded: %u CPUs\n", cpus);
        return;
    }
    bench b;
    bench_open(&b, 3 * cpus + 1);
    for (int i = 0; i < 200; i++) { /* until those that were just started sleep */
        nanosleep(&(struct timespec){ 0, 20000000 }, NULL);
        if (threads_used(b.pool) <= cpus)
            break;
    }
    for (int round = 0; round < 100; round++)
        assert_true(threads_used(b.pool) <= cpus);
    bench_close(&b);
}

/* ---- cancelling ---------------------------------------------------------------------------------- */

typedef struct stopping {
    atomic_int cancel;
    _Atomic uint32_t begun;
    uint32_t stop_at;
} stopping;

static void stop_task(void *context, uint32_t index)
{
    stopping *s = context;
    (void)index;
    if (atomic_fetch_add(&s->begun, 1) + 1 == s->stop_at)
        atomic_store(&s->cancel, 1);
}

static void test_cancel(void **state)
{
    (void)state;
    for (uint32_t threads = 1; threads <= 4; threads++) {
        bench b;
        bench_open(&b, threads);
        for (uint32_t at = 1; at < 200; at += 13) {
            stopping s = { .stop_at = at };
            assert_int_equal(bxn_pool_run(b.pool, 100000, stop_task, &s, &s.cancel), BITAXON_CANCELLED);
            assert_true(atomic_load(&s.begun) < 100000);
            uint32_t begun = atomic_load(&s.begun);
            assert_int_equal(bxn_pool_run(b.pool, 10, stop_task, &s, &s.cancel), BITAXON_CANCELLED);
            assert_int_equal(bxn_pool_run(b.pool, 0, stop_task, &s, &s.cancel), BITAXON_CANCELLED);
            assert_int_equal(atomic_load(&s.begun), begun); /* none of these began */
            atomic_store(&s.cancel, 0);
            s.stop_at = 0;
            assert_int_equal(bxn_pool_run(b.pool, 10, stop_task, &s, &s.cancel), BITAXON_OK);
            assert_int_equal(atomic_load(&s.begun), begun + 10);
        }
        bench_close(&b);
    }
}

/* ---- floating point -------------------------------------------------------------------------------- */

typedef struct flushed {
    _Atomic uint32_t denormal;
} flushed;

static void denormal_task(void *context, uint32_t index)
{
    volatile float tiny = 1e-38f, half = 0.1f;
    (void)index;
    if (tiny * half != 0)
        atomic_fetch_add(&((flushed *)context)->denormal, 1);
}

static bool denormals_work(void)
{
    volatile float tiny = 1e-38f, half = 0.1f;
    return tiny * half != 0;
}

static int32_t serial_for(void *user, uint32_t count, void (*task)(void *context, uint32_t index), void *context)
{
    (void)user;
    for (uint32_t i = count; i-- > 0;)
        task(context, i);
    return 0;
}

static void test_float_state(void **state)
{
    (void)state;
    for (uint32_t threads = 1; threads <= 4; threads++)
        for (int executor = 0; executor < 2; executor++) {
            bench b;
            fault_host_init(&b.fault);
            if (executor)
                b.fault.host.parallel_for = serial_for;
            assert_int_equal(bxn_mem_init(&b.mem, &b.fault.host, 0, &error), BITAXON_OK);
            assert_int_equal(bxn_pool_create(&b.mem, threads, &b.pool, &error), BITAXON_OK);
            for (uint32_t count = 0; count < 40; count++) {
                flushed f = { 0 };
                atomic_int cancel = 0;
                assert_true(denormals_work());
                bxn_pool_run(b.pool, count, denormal_task, &f, &cancel);
                assert_int_equal(atomic_load(&f.denormal), 0);
                assert_true(denormals_work());
                atomic_store(&cancel, 1);
                bxn_pool_run(b.pool, count, denormal_task, &f, &cancel);
                assert_true(denormals_work());
            }
            bench_close(&b);
        }
}

/* ---- idle ------------------------------------------------------------------------------------------- */

static double cpu_seconds(void)
{
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return (double)use.ru_utime.tv_sec + (double)use.ru_stime.tv_sec +
           1e-6 * ((double)use.ru_utime.tv_usec + (double)use.ru_stime.tv_usec);
}

static void test_idle(void **state)
{
    (void)state;
    bench b;
    bench_open(&b, 8);
    tally t;
    memset(&t, 0, sizeof t);
    bxn_pool_run(b.pool, 500, count_task, &t, NULL);
    nanosleep(&(struct timespec){ 0, 50000000 }, NULL);
    double before = cpu_seconds();
    nanosleep(&(struct timespec){ 1, 0 }, NULL);
    double used = cpu_seconds() - before;
    print_message("8 threads idle for a second: %.4f s of CPU\n", used);
    assert_true(used < 0.01);
    bench_close(&b);
}

/* ---- other processes, other executors ------------------------------------------------------------------ */

static void test_fork(void **state)
{
    (void)state;
    bench b;
    bench_open(&b, 4);
    tally t;
    memset(&t, 0, sizeof t);
    bxn_pool_run(b.pool, 100, count_task, &t, NULL);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) { /* no workers here: the caller does everything, and freeing does not wait */
        tally mine;
        int code = 0;
        alarm(20);
        memset(&mine, 0, sizeof mine);
        if (bxn_pool_run(b.pool, 100, count_task, &mine, NULL) != BITAXON_OK)
            code = 1;
        for (uint32_t i = 0; i < 100; i++)
            if (atomic_load(&mine.runs[i]) != 1)
                code = 2;
        bxn_pool_free(b.pool);
#if !defined(__SANITIZE_THREAD__) /* refuses threads after fork */
        bench own; /* a pool of its own works as anywhere */
        fault_host_init(&own.fault);
        if (bxn_mem_init(&own.mem, &own.fault.host, 0, &error) != BITAXON_OK ||
            bxn_pool_create(&own.mem, 3, &own.pool, &error) != BITAXON_OK) {
            code = 3;
        } else {
            memset(&mine, 0, sizeof mine);
            if (bxn_pool_run(own.pool, 100, count_task, &mine, NULL) != BITAXON_OK)
                code = 4;
            for (uint32_t i = 0; i < 100; i++)
                if (atomic_load(&mine.runs[i]) != 1)
                    code = 5;
            bxn_pool_free(own.pool);
        }
#endif
        _exit(code);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    memset(&t, 0, sizeof t);
    assert_int_equal(bxn_pool_run(b.pool, 100, count_task, &t, NULL), BITAXON_OK); /* the parent's goes on */
    bench_close(&b);
}

/* ---- how many CPUs ------------------------------------------------------------------------------------- */

static void *one_cpu(void *argument)
{
    cpu_set_t all, one;
    CPU_ZERO(&one);
    if (sched_getaffinity(0, sizeof all, &all) != 0)
        return NULL;
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &all)) {
            CPU_SET(i, &one);
            break;
        }
    if (sched_setaffinity(0, sizeof one, &one) == 0)
        *(uint32_t *)argument = bxn_cpu_count();
    return NULL;
}

static void write_text(const char *folder, const char *name, const char *text)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void test_cpus(void **state)
{
    (void)state;
    uint32_t count = bxn_cpu_count(), pinned = 0;
    assert_true(count >= 1 && count <= 256);
    pthread_t thread; /* a mask is a thread's own */
    assert_int_equal(pthread_create(&thread, NULL, one_cpu, &pinned), 0);
    pthread_join(thread, NULL);
    assert_int_equal(pinned, 1);
    assert_int_equal(bxn_cpu_count(), count);

    char root[] = "/tmp/bitaxon-cgroup-XXXXXX", path[512], member[64];
    assert_non_null(mkdtemp(root));
    static const char *const folders[] = { "a", "a/b", "cpu" };
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", root, folders[i]);
        assert_int_equal(mkdir(path, 0700), 0);
    }
    snprintf(member, sizeof member, "%s/membership", root);
    assert_int_equal(bxn_quota_cpus(member, root), 0); /* no such file */
    static const struct {
        const char *membership, *inner, *outer, *v1_quota;
        uint32_t cpus;
    } cases[] = {
        { "0::/a/b\n", "200000 100000\n", "max 100000\n", "-1\n", 2 },
        { "0::/a/b\n", "max 100000\n", "300000 100000\n", "-1\n", 3 },
        { "0::/a/b\n", "800000 100000\n", "300000 100000\n", "-1\n", 3 }, /* the group above has less */
        { "0::/a/b\n", "50000 100000\n", "max 100000\n", "-1\n", 1 },     /* half a CPU is one */
        { "0::/a/b\n", "250000 100000\n", "max 100000\n", "-1\n", 3 },
        { "0::/a\n", "100000 100000\n", "max 100000\n", "-1\n", 0 },
        { "0::/\n", "100000 100000\n", "200000 100000\n", "-1\n", 0 },
        { "3:cpu:/a\n0::/a/b\n", "100000 100000\n", "max 100000\n", "-1\n", 1 },
        { "3:cpu:/a\n", "100000 100000\n", "max 100000\n", "400000\n", 4 },
        { "0::/a/b\n", "99999999999999 1\n", "nonsense\n", "-1\n", 256 },
        { "0::/a/b\n", "0 100000\n", "100000 0\n", "0\n", 0 },
        { "0::/a/b", "", "", "", 0 },
        { "", "100000 100000\n", "100000 100000\n", "-1\n", 0 },
        { "0::/../../../a/c\n", "100000 100000\n", "max\n", "x\n", 0 },
    };
    write_text(root, "cpu/cpu.cfs_period_us", "100000\n");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        write_text(root, "membership", cases[i].membership);
        write_text(root, "a/b/cpu.max", cases[i].inner);
        write_text(root, "a/cpu.max", cases[i].outer);
        write_text(root, "cpu/cpu.cfs_quota_us", cases[i].v1_quota);
        assert_int_equal(bxn_quota_cpus(member, root), cases[i].cpus);
    }
    static const char *const gone[] = { "membership", "a/b/cpu.max", "a/cpu.max", "cpu/cpu.cfs_quota_us",
                                        "cpu/cpu.cfs_period_us", "a/b", "a", "cpu", "" };
    for (size_t i = 0; i < sizeof gone / sizeof gone[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", root, gone[i]);
        assert_int_equal(remove(path), 0);
    }
}

static void test_no_threads(void **state)
{
    (void)state;
#if defined(SANITIZED)
    print_message("SKIP no_threads: a sanitizer stands before pthread_create\n");
#else
    int threads = count_threads();
    for (int budget = 0; budget < 7; budget++) {
        bench b;
        fault_host_init(&b.fault);
        assert_int_equal(bxn_mem_init(&b.mem, &b.fault.host, 0, &error), BITAXON_OK);
        atomic_store(&thread_budget, budget);
        b.pool = (bxn_pool *)&b;
        bitaxon_status status = bxn_pool_create(&b.mem, 8, &b.pool, &error);
        atomic_store(&thread_budget, -1);
        assert_int_equal(status, BITAXON_SYSTEM);
        assert_null(b.pool);
        char number[16];
        snprintf(number, sizeof number, "thread %d", budget + 1);
        assert_non_null(strstr(error.message, number));
        assert_string_equal(fault_host_balance(&b.fault), "");
        assert_int_equal(count_threads(), threads);
    }
#endif
}

static void test_no_memory(void **state)
{
    (void)state;
    for (uint64_t n = 1; n <= 3; n++) {
        bench b;
        fault_host_init(&b.fault);
        assert_int_equal(bxn_mem_init(&b.mem, &b.fault.host, 0, &error), BITAXON_OK);
        fault_host_arm(&b.fault, n, false);
        assert_int_equal(bxn_pool_create(&b.mem, 4, &b.pool, &error), BITAXON_OUT_OF_MEMORY);
        assert_null(b.pool);
        assert_string_equal(fault_host_balance(&b.fault), "");
    }
}

static int32_t failing_for(void *user, uint32_t count, void (*task)(void *context, uint32_t index), void *context)
{
    (void)user;
    for (uint32_t i = 0; i < count / 2; i++)
        task(context, i);
    return 7;
}

static void test_executor(void **state)
{
    (void)state;
    bench b;
    int threads = count_threads();
    fault_host_init(&b.fault);
    b.fault.host.parallel_for = serial_for;
    assert_int_equal(bxn_mem_init(&b.mem, &b.fault.host, 0, &error), BITAXON_OK);
    assert_int_equal(bxn_pool_create(&b.mem, 8, &b.pool, &error), BITAXON_OK);
    assert_int_equal(count_threads(), threads); /* none of its own */
    tally t;
    memset(&t, 0, sizeof t);
    assert_int_equal(bxn_pool_run(b.pool, 33, count_task, &t, NULL), BITAXON_OK);
    for (uint32_t i = 0; i < 33; i++)
        assert_int_equal(atomic_load(&t.runs[i]), 1);
    stopping s = { .stop_at = 5 };
    assert_int_equal(bxn_pool_run(b.pool, 33, stop_task, &s, &s.cancel), BITAXON_CANCELLED);
    assert_int_equal(atomic_load(&s.begun), 5);
    b.mem.host.parallel_for = failing_for;
    assert_int_equal(bxn_pool_run(b.pool, 33, count_task, &t, NULL), BITAXON_SYSTEM);
    bench_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts), cmocka_unit_test(test_ranges), cmocka_unit_test(test_callers),
        cmocka_unit_test(test_nested),
        cmocka_unit_test(test_slow_thread), cmocka_unit_test(test_crowded), cmocka_unit_test(test_cpus),
        cmocka_unit_test(test_cancel), cmocka_unit_test(test_float_state), cmocka_unit_test(test_idle),
        cmocka_unit_test(test_fork), cmocka_unit_test(test_no_threads), cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_executor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
