/* SPDX-License-Identifier: Apache-2.0 */
/* pool.c - the thread pool of a model. Workers sleep between jobs, after a spin of some
 * tenths of a millisecond: a token or an update is hundreds of short jobs in a row, and to wake a
 * thread takes as long as some of them, most of all in a virtual machine. Which thread
 * runs a task never shows in a result: tasks are cut by the shapes of the model.
 *
 * Each thread has a contiguous share of the tasks, the same one for jobs of the same size, so
 * that it reads long streams and finds in its cache what it wrote in the job before. Who has
 * done his share takes from the others', one task at a time: nobody waits for a thread
 * that is slow, or asleep.
 *
 * A job is published in one word: generation, open bit, number of workers inside.
 * Workers enter an open job by compare-and-swap, so that one that wakes late finds
 * it closed and cannot touch the next; the caller closes the job when no task is
 * left to claim and waits only for the workers inside. */
#include "runtime/runtime.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#define JOB_OPEN ((uint64_t)1 << 31)
#define JOB_INSIDE(state) ((uint32_t)(state) & 0x7FFFFFFFu)
#define JOB_GENERATION(state) ((state) >> 32)
#define SPINS 8192 /* pauses: 0.15 to 0.4 ms by the processor; not by a clock, a host's may stand still */
#define STACK_BYTES ((size_t)512 << 10)

/* The tasks of one thread, in a cache line of its own. */
typedef struct share {
    _Atomic uint32_t next; /* to claim; may pass the end */
    uint32_t end;
    char padding[BXN_ALIGN - 2 * sizeof(uint32_t)];
} share;

/* A worker and the number of its share. */
typedef struct worker {
    struct bxn_pool *pool;
    pthread_t thread;
    uint32_t number;
} worker;

struct bxn_pool {
    bxn_mem *mem;
    worker *workers;
    share *shares;    /* [threads]; the caller's first */
    uint32_t threads; /* the caller included */
    uint32_t started; /* workers alive */
    uint32_t useful;  /* workers that CPUs are there for; the others stay asleep */
    _Atomic uint32_t limit; /* of threads, by bxn_pool_limit */
    pid_t process;
    _Atomic uint64_t state;
    atomic_int busy;
    atomic_int stop;
    /* Workers on their way into sleep or out of it are either sleepers or tokens: who wakes
     * one turns the former into the latter. Written under the lock. */
    _Atomic uint32_t sleepers;
    uint32_t tokens;
    atomic_int caller_waits;
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    /* the job, and the shares; written while closed and empty */
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

static bool cancelled(const atomic_int *cancel)
{
    return cancel != NULL && atomic_load_explicit(cancel, memory_order_relaxed) != 0;
}

static bool claim(share *s, uint32_t *index)
{
    if (atomic_load_explicit(&s->next, memory_order_relaxed) >= s->end) /* do not take the line */
        return false;
    *index = atomic_fetch_add_explicit(&s->next, 1, memory_order_relaxed);
    return *index < s->end;
}

/* The tasks of share `own`, then what is left of the shares after it. */
static void run_tasks(bxn_pool *pool, uint32_t own)
{
    for (uint32_t i = 0, number = own; i < pool->threads; i++) {
        uint32_t index;
        while (!cancelled(pool->cancel) && claim(&pool->shares[number], &index))
            pool->task(pool->context, index);
        number = number + 1 < pool->threads ? number + 1 : 0;
    }
}

/* A worker counts itself a sleeper before it looks for a new job once more; the caller
 * publishes a job before it looks for sleepers: one of the two sees the other. */
static void sleep_until_called(bxn_pool *pool, uint64_t seen)
{
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->sleepers, 1);
    while (pool->tokens == 0 && JOB_GENERATION(atomic_load(&pool->state)) == seen &&
           atomic_load(&pool->stop) == 0)
        pthread_cond_wait(&pool->work, &pool->lock);
    if (pool->tokens > 0)
        pool->tokens--;
    else
        atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->lock);
}

/* Wake sleepers until `wanted` workers are awake. */
static void call_workers(bxn_pool *pool, uint32_t wanted)
{
    if (pool->started - atomic_load(&pool->sleepers) >= wanted)
        return;
    pthread_mutex_lock(&pool->lock);
    uint32_t awake = pool->started - atomic_load(&pool->sleepers);
    for (; awake < wanted; awake++) {
        atomic_fetch_sub(&pool->sleepers, 1);
        pool->tokens++;
        pthread_cond_signal(&pool->work);
    }
    pthread_mutex_unlock(&pool->lock);
}

static void *worker_main(void *argument)
{
    const worker *self = argument;
    bxn_pool *pool = self->pool;
    uint64_t seen = 0;
    bxn_float_enter();
    for (;;) {
        uint64_t state = atomic_load(&pool->state);
        if (JOB_GENERATION(state) == seen) { /* nothing new: spin a little, then sleep */
            for (int i = 0; i < SPINS && JOB_GENERATION(state) == seen; i++) {
                bxn_relax();
                state = atomic_load(&pool->state);
            }
            if (JOB_GENERATION(state) == seen)
                sleep_until_called(pool, seen);
            if (atomic_load(&pool->stop) != 0)
                return NULL;
            continue;
        }
        seen = JOB_GENERATION(state);
        bool inside = false;
        const uint32_t limit = atomic_load_explicit(&pool->limit, memory_order_relaxed) - 1;
        while ((state & JOB_OPEN) != 0 && JOB_GENERATION(state) == seen && !inside && JOB_INSIDE(state) < limit)
            inside = atomic_compare_exchange_weak(&pool->state, &state, state + 1);
        if (!inside) {
            if (limit < pool->useful) /* awake, but one too many now */
                sleep_until_called(pool, seen);
            continue;
        }
        run_tasks(pool, self->number);
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
    return bxn_alloc_cost(sizeof(bxn_pool)) + bxn_alloc_cost((threads - 1) * sizeof(worker)) +
           bxn_alloc_cost(threads * sizeof(share));
}

static void free_memory(bxn_pool *pool)
{
    bxn_mem *mem = pool->mem;
    bxn_free(mem, pool->shares, pool->threads * sizeof *pool->shares);
    bxn_free(mem, pool->workers, (pool->threads - 1) * sizeof *pool->workers);
    bxn_free(mem, pool, sizeof *pool);
}

static int make_locks(bxn_pool *pool)
{
    int failed = pthread_mutex_init(&pool->lock, NULL);
    if (failed == 0 && (failed = pthread_cond_init(&pool->work, NULL)) != 0)
        pthread_mutex_destroy(&pool->lock);
    if (failed == 0 && (failed = pthread_cond_init(&pool->done, NULL)) != 0) {
        pthread_cond_destroy(&pool->work);
        pthread_mutex_destroy(&pool->lock);
    }
    return failed;
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
    uint32_t cpus = bxn_cpu_count();
    pool->useful = (threads < cpus ? threads : cpus) - 1;
    atomic_init(&pool->limit, threads);
    pool->process = getpid();
    status = bxn_calloc(mem, (threads - 1) * sizeof *pool->workers, "thread pool", &memory, error);
    if (status == BITAXON_OK) {
        pool->workers = memory;
        status = bxn_calloc(mem, threads * sizeof *pool->shares, "thread pool", &memory, error);
    }
    if (status != BITAXON_OK) {
        free_memory(pool);
        return status;
    }
    pool->shares = memory;
    int failed = make_locks(pool);
    if (failed != 0) {
        free_memory(pool);
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
            worker *w = &pool->workers[pool->started];
            w->pool = pool;
            w->number = pool->started + 1;
            failed = pthread_create(&w->thread, sized ? &attributes : NULL, worker_main, w);
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
            pthread_join(pool->workers[i].thread, NULL);
        pthread_cond_destroy(&pool->done);
        pthread_cond_destroy(&pool->work);
        pthread_mutex_destroy(&pool->lock);
    }
    free_memory(pool);
}

uint32_t bxn_pool_threads(const bxn_pool *pool) { return pool->threads; }

void bxn_pool_limit(bxn_pool *pool, uint32_t threads)
{
    atomic_store_explicit(&pool->limit, threads == 0 ? 1 : threads, memory_order_relaxed);
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

    pool->task = task;
    pool->context = context;
    pool->cancel = cancel;
    for (uint32_t i = 0, begin = 0; i < pool->threads; i++) {
        uint32_t end = (uint32_t)((uint64_t)count * (i + 1) / pool->threads);
        atomic_store_explicit(&pool->shares[i].next, begin, memory_order_relaxed);
        pool->shares[i].end = end;
        begin = end;
    }
    uint64_t generation = JOB_GENERATION(atomic_load(&pool->state)) + 1;
    atomic_store(&pool->state, generation << 32 | JOB_OPEN);
    uint32_t workers = atomic_load_explicit(&pool->limit, memory_order_relaxed) - 1;
    workers = workers < pool->useful ? workers : pool->useful;
    call_workers(pool, count - 1 < workers ? count - 1 : workers);
    uint64_t saved = bxn_float_enter();
    run_tasks(pool, 0);
    bxn_float_leave(saved);
    uint64_t state = atomic_fetch_and(&pool->state, ~JOB_OPEN);
    if (JOB_INSIDE(state) != 0) {
        for (int i = 0; i < SPINS && JOB_INSIDE(atomic_load(&pool->state)) != 0; i++)
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
