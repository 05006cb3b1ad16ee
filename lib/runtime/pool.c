/* SPDX-License-Identifier: Apache-2.0 */
/* pool.c - the thread pool of a model. Workers sleep between jobs (after a spin of some
 * microseconds, because a token is a hundred short jobs in a row). Which thread
 * runs a task never shows in a result: tasks are cut by the shapes of the model.
 *
 * A job is published in one word: generation, open bit, number of workers inside.
 * Workers enter an open job by compare-and-swap, so that one that wakes late finds
 * it closed and cannot touch the next; the caller closes the job when no task is
 * left to claim and waits only for the workers inside. */
#include "runtime/runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#define JOB_OPEN ((uint64_t)1 << 31)
#define JOB_INSIDE(state) ((uint32_t)(state) & 0x7FFFFFFFu)
#define JOB_GENERATION(state) ((state) >> 32)
#define SPIN_ROUNDS 40 /* of 32 pauses: some 40 microseconds; no clock, a host's may stand still */
#define STACK_BYTES ((size_t)512 << 10)

struct bxn_pool {
    bxn_mem *mem;
    pthread_t *workers;
    uint32_t threads; /* the caller included */
    uint32_t started; /* workers alive */
    pid_t process;
    _Atomic uint64_t state;
    _Atomic uint32_t next; /* task to claim */
    atomic_int busy;
    atomic_int stop;
    atomic_int sleepers;
    atomic_int caller_waits;
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    /* the job; written while closed and empty */
    uint32_t count;
    bxn_task task;
    void *context;
    const atomic_int *cancel;
};

uint64_t bxn_float_enter(void)
{
#if defined(__x86_64__)
    unsigned saved = _mm_getcsr();
    _mm_setcsr(0x1F80u | 0x8040u); /* default, all masked, flush to zero, denormals are zero */
    return saved;
#elif defined(__aarch64__)
    uint64_t saved;
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved));
    uint64_t flush = (uint64_t)1 << 24;
    __asm__ volatile("msr fpcr, %0" : : "r"(flush));
    return saved;
#else
    return 0;
#endif
}

void bxn_float_leave(uint64_t saved)
{
#if defined(__x86_64__)
    _mm_setcsr((unsigned)saved);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(saved));
#else
    (void)saved;
#endif
}

void bxn_relax(void)
{
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* The beginning of a small file as text; false when it cannot be read. */
static bool read_small(const char *path, char *buffer, size_t capacity)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, buffer, capacity - 1);
    close(fd);
    if (n < 0)
        return false;
    buffer[n] = '\0';
    return true;
}

/* Whole CPUs that the control group's quota pays for; 0 when unlimited or unknown. */
static uint32_t quota_cpus(void)
{
    char groups[4096], path[4352], text[128];
    double quota = 0, period = 0;
    if (read_small("/proc/self/cgroup", groups, sizeof groups)) {
        char *line = strstr(groups, "0::/");
        if (line != NULL && (line == groups || line[-1] == '\n')) {
            line += 3;
            line[strcspn(line, "\n")] = '\0';
            int n = snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", line);
            unsigned long long a, b;
            if (n > 0 && (size_t)n < sizeof path && read_small(path, text, sizeof text) &&
                sscanf(text, "%llu %llu", &a, &b) == 2) {
                quota = (double)a;
                period = (double)b;
            }
        }
    }
    if (period <= 0 && read_small("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", text, sizeof text) &&
        text[0] != '-') {
        unsigned long long a, b;
        char other[128];
        if (sscanf(text, "%llu", &a) == 1 &&
            read_small("/sys/fs/cgroup/cpu/cpu.cfs_period_us", other, sizeof other) &&
            sscanf(other, "%llu", &b) == 1) {
            quota = (double)a;
            period = (double)b;
        }
    }
    if (period <= 0 || quota <= 0)
        return 0;
    double cpus = quota / period;
    return cpus <= 1 ? 1 : cpus > 4096 ? 0 : (uint32_t)(cpus + 0.5);
}

uint32_t bxn_cpu_count(void)
{
    uint32_t cpus = 0;
#ifdef CPU_COUNT
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        cpus = (uint32_t)CPU_COUNT(&set);
#endif
    if (cpus == 0) {
        long online = sysconf(_SC_NPROCESSORS_ONLN);
        cpus = online > 0 ? (uint32_t)online : 1;
    }
    uint32_t quota = quota_cpus();
    if (quota != 0 && quota < cpus)
        cpus = quota;
    return cpus > 256 ? 256 : cpus;
}

static void run_tasks(bxn_pool *pool)
{
    for (;;) {
        if (pool->cancel != NULL && atomic_load_explicit(pool->cancel, memory_order_relaxed) != 0)
            return;
        uint32_t index = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (index >= pool->count)
            return;
        pool->task(pool->context, index);
    }
}

static void *worker_main(void *argument)
{
    bxn_pool *pool = argument;
    uint64_t seen = 0;
    bxn_float_enter();
    for (;;) {
        uint64_t state = atomic_load(&pool->state);
        if (JOB_GENERATION(state) == seen) { /* nothing new: spin a little, then sleep */
            for (int round = 0; round < SPIN_ROUNDS && JOB_GENERATION(state) == seen; round++) {
                for (int i = 0; i < 32; i++)
                    bxn_relax();
                state = atomic_load(&pool->state);
            }
            if (JOB_GENERATION(state) == seen) {
                pthread_mutex_lock(&pool->lock);
                atomic_fetch_add(&pool->sleepers, 1);
                while (JOB_GENERATION(atomic_load(&pool->state)) == seen &&
                       atomic_load(&pool->stop) == 0)
                    pthread_cond_wait(&pool->work, &pool->lock);
                atomic_fetch_sub(&pool->sleepers, 1);
                pthread_mutex_unlock(&pool->lock);
            }
            if (atomic_load(&pool->stop) != 0)
                return NULL;
            continue;
        }
        seen = JOB_GENERATION(state);
        bool inside = false;
        while ((state & JOB_OPEN) != 0 && JOB_GENERATION(state) == seen && !inside)
            inside = atomic_compare_exchange_weak(&pool->state, &state, state + 1);
        if (!inside)
            continue;
        run_tasks(pool);
        state = atomic_fetch_sub(&pool->state, 1) - 1;
        if (JOB_INSIDE(state) == 0 && atomic_load(&pool->caller_waits) != 0) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_signal(&pool->done);
            pthread_mutex_unlock(&pool->lock);
        }
    }
}

uint64_t bxn_pool_bytes(uint32_t threads)
{
    return bxn_alloc_cost(sizeof(bxn_pool)) + bxn_alloc_cost((threads - 1) * sizeof(pthread_t));
}

bitaxon_status bxn_pool_create(bxn_mem *mem, uint32_t threads, bxn_pool **out, bitaxon_error *error)
{
    *out = NULL;
    bxn_pool *pool = NULL;
    void *memory;
    bitaxon_status status = bxn_calloc(mem, sizeof *pool, "thread pool", &memory, error);
    if (status != BITAXON_OK)
        return status;
    pool = memory;
    pool->mem = mem;
    pool->threads = threads;
    pool->process = getpid();
    status = bxn_calloc(mem, (threads - 1) * sizeof *pool->workers, "thread pool", &memory, error);
    if (status != BITAXON_OK) {
        bxn_free(mem, pool, sizeof *pool);
        return status;
    }
    pool->workers = memory;
    int failed = pthread_mutex_init(&pool->lock, NULL);
    if (failed == 0 && (failed = pthread_cond_init(&pool->work, NULL)) != 0)
        pthread_mutex_destroy(&pool->lock);
    if (failed == 0 && (failed = pthread_cond_init(&pool->done, NULL)) != 0) {
        pthread_cond_destroy(&pool->work);
        pthread_mutex_destroy(&pool->lock);
    }
    if (failed != 0) {
        bxn_free(mem, pool->workers, (threads - 1) * sizeof *pool->workers);
        bxn_free(mem, pool, sizeof *pool);
        return bxn_fail(error, BITAXON_SYSTEM, "thread pool: cannot make a lock (error %d)", failed);
    }
    if (mem->host.parallel_for == NULL) {
        /* The host's signals are the host's: workers block them all. */
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        pthread_attr_t attributes;
        bool sized = pthread_attr_init(&attributes) == 0;
        if (sized)
            pthread_attr_setstacksize(&attributes, STACK_BYTES);
        while (pool->started + 1 < threads) {
            failed = pthread_create(&pool->workers[pool->started], sized ? &attributes : NULL,
                                    worker_main, pool);
            if (failed != 0)
                break;
            pool->started++;
        }
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (sized)
            pthread_attr_destroy(&attributes);
        if (failed != 0) {
            uint32_t started = pool->started;
            bxn_pool_free(pool);
            return bxn_fail(error, BITAXON_SYSTEM, "cannot start thread %u of %u (error %d)", started + 1,
                            threads - 1, failed);
        }
    }
    *out = pool;
    return BITAXON_OK;
}

void bxn_pool_free(bxn_pool *pool)
{
    if (pool == NULL)
        return;
    if (pool->process == getpid()) { /* after fork the child has no workers and no say over locks */
        pthread_mutex_lock(&pool->lock);
        atomic_store(&pool->stop, 1);
        pthread_cond_broadcast(&pool->work);
        pthread_mutex_unlock(&pool->lock);
        for (uint32_t i = 0; i < pool->started; i++)
            pthread_join(pool->workers[i], NULL);
        pthread_cond_destroy(&pool->done);
        pthread_cond_destroy(&pool->work);
        pthread_mutex_destroy(&pool->lock);
    }
    bxn_mem *mem = pool->mem;
    bxn_free(mem, pool->workers, (pool->threads - 1) * sizeof *pool->workers);
    bxn_free(mem, pool, sizeof *pool);
}

uint32_t bxn_pool_threads(const bxn_pool *pool) { return pool->threads; }

bool bxn_pool_in_order(const bxn_pool *pool) { return pool->mem->host.parallel_for == NULL; }

static bool cancelled(const atomic_int *cancel)
{
    return cancel != NULL && atomic_load_explicit(cancel, memory_order_relaxed) != 0;
}

static bitaxon_status run_here(uint32_t count, bxn_task task, void *context, const atomic_int *cancel)
{
    uint64_t saved = bxn_float_enter();
    for (uint32_t i = 0; i < count && !cancelled(cancel); i++)
        task(context, i);
    bxn_float_leave(saved);
    return cancelled(cancel) ? BITAXON_CANCELLED : BITAXON_OK;
}

/* A task for the host's executor: its threads get the float mode and lose it again. */
typedef struct host_job {
    bxn_task task;
    void *context;
    const atomic_int *cancel;
} host_job;

static void host_task(void *argument, uint32_t index)
{
    const host_job *job = argument;
    if (cancelled(job->cancel))
        return;
    uint64_t saved = bxn_float_enter();
    job->task(job->context, index);
    bxn_float_leave(saved);
}

bitaxon_status bxn_pool_run(bxn_pool *pool, uint32_t count, bxn_task task, void *context,
                            const atomic_int *cancel)
{
    if (cancelled(cancel))
        return BITAXON_CANCELLED;
    if (count <= 1)
        return run_here(count, task, context, cancel);
    if (pool->mem->host.parallel_for != NULL) {
        host_job job = { task, context, cancel };
        if (pool->mem->host.parallel_for(pool->mem->host.user, count, host_task, &job) != 0)
            return BITAXON_SYSTEM;
        return cancelled(cancel) ? BITAXON_CANCELLED : BITAXON_OK;
    }
    int idle = 0;
    if (pool->started == 0 || pool->process != getpid() ||
        !atomic_compare_exchange_strong(&pool->busy, &idle, 1))
        return run_here(count, task, context, cancel);

    pool->count = count;
    pool->task = task;
    pool->context = context;
    pool->cancel = cancel;
    atomic_store(&pool->next, 0);
    uint64_t generation = JOB_GENERATION(atomic_load(&pool->state)) + 1;
    atomic_store(&pool->state, generation << 32 | JOB_OPEN);
    if (atomic_load(&pool->sleepers) != 0) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->work);
        pthread_mutex_unlock(&pool->lock);
    }
    uint64_t saved = bxn_float_enter();
    run_tasks(pool);
    bxn_float_leave(saved);
    uint64_t state = atomic_fetch_and(&pool->state, ~JOB_OPEN);
    if (JOB_INSIDE(state) != 0) {
        for (int i = 0; i < 32 * SPIN_ROUNDS && JOB_INSIDE(atomic_load(&pool->state)) != 0; i++)
            bxn_relax();
        if (JOB_INSIDE(atomic_load(&pool->state)) != 0) {
            pthread_mutex_lock(&pool->lock);
            atomic_store(&pool->caller_waits, 1);
            while (JOB_INSIDE(atomic_load(&pool->state)) != 0)
                pthread_cond_wait(&pool->done, &pool->lock);
            atomic_store(&pool->caller_waits, 0);
            pthread_mutex_unlock(&pool->lock);
        }
    }
    atomic_store(&pool->busy, 0);
    return cancelled(cancel) ? BITAXON_CANCELLED : BITAXON_OK;
}
