/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_bench_limits.c - the limits of the machine for `bitaxon bench`: reading memory by threads and
 * streams, and arithmetic by kind of instruction. The loops are those of bench/. */
#include "cmd_bench.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Several times a large last-level cache, or a quarter of the memory. */
enum { BUFFER_MIB = 1024 };

unsigned bench_cpus(void)
{
    cpu_set_t set;
    int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return count < 1 ? 1u : count > BENCH_MAX_THREADS ? BENCH_MAX_THREADS : (unsigned)count;
}

void bench_stolen(double *stolen, double *ticks)
{
    double t[8] = {0}; /* user nice system idle iowait irq softirq steal */
    FILE *file = fopen("/proc/stat", "r");
    *stolen = *ticks = 0.0;
    if (file != NULL) {
        if (fscanf(file, "cpu %lf %lf %lf %lf %lf %lf %lf %lf", &t[0], &t[1], &t[2], &t[3], &t[4], &t[5], &t[6],
                   &t[7]) == 8) {
            *stolen = t[7];
            for (int i = 0; i < 8; i++) {
                *ticks += t[i];
            }
        }
        fclose(file);
    }
}

/* Memory of a pass over it, touched, in large pages where the system gives them, or in small ones. */
static char *make_buffer(size_t bytes, bool large_pages)
{
    void *memory =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return NULL;
    }
#if defined(MADV_HUGEPAGE)
    (void)madvise(memory, bytes, large_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#endif
    memset(memory, 1, bytes);
    return memory;
}

bool bench_buffer(bench_run *run)
{
    if (run->buffer != NULL) {
        return true;
    }
    size_t bytes = (size_t)BUFFER_MIB << 20;
    long pages = sysconf(_SC_AVPHYS_PAGES);
    long page = sysconf(_SC_PAGESIZE);
    if (pages > 0 && page > 0 && bytes / (size_t)page > (size_t)pages / 4) {
        bytes = (size_t)pages / 4 * (size_t)page;
    }
    run->buffer = make_buffer(bytes, true); /* a limit is what the machine can do at most */
    run->buffer_bytes = bytes;
    if (run->buffer == NULL) {
        tool_error("no memory to measure reading with (%zu bytes)", bytes);
    }
    return run->buffer != NULL;
}

void bench_buffer_drop(bench_run *run)
{
    if (run->buffer != NULL) {
        munmap(run->buffer, run->buffer_bytes);
        run->buffer = NULL;
    }
}

void bench_read_more(const bench_run *run, bench_reading *reading)
{
    for (unsigned pass = 0; pass < 2; pass++) {
        for (unsigned i = 0; i < BENCH_STREAMS; i++) {
            reading->sum[i] += bench_read(run->buffer, run->buffer_bytes, run->threads, 1u << i, 1);
        }
        reading->passes++;
    }
}

double bench_read_limit(const bench_reading *reading)
{
    double best = 0.0;
    for (unsigned i = 0; i < BENCH_STREAMS; i++) {
        best = reading->sum[i] > best ? reading->sum[i] : best;
    }
    return best / reading->passes;
}

bool bench_has_peak(bench_peak_kind kind)
{
    return bench_peak(kind, 1) > 0.0;
}

double bench_peak_now(const bench_run *run, bench_peak_kind kind, unsigned repeats)
{
    double best = 0.0;
    for (unsigned i = 0; i < repeats; i++) {
        double speed = bench_peak(kind, run->threads);
        best = speed > best ? speed : best;
    }
    return best;
}

bench_peak_kind bench_peak_for(uint64_t features, bool tiles)
{
    if (tiles && (features & BITAXON_CPU_AMX) != 0 && bench_has_peak(BENCH_AMX_BF16_L2)) {
        return BENCH_AMX_BF16_L2;
    }
    if ((features & BITAXON_CPU_AVX512) != 0 && bench_has_peak(BENCH_F32_512)) {
        return BENCH_F32_512;
    }
    if ((features & BITAXON_CPU_AVX2) != 0 && bench_has_peak(BENCH_F32_256)) {
        return BENCH_F32_256;
    }
    return BENCH_F32_128;
}

static bench_limit *add_limit(bench_run *run, const char *name, const char *key, bench_unit unit,
                              unsigned threads)
{
    bench_limit *limit = &run->limits[run->limit_count++];
    snprintf(limit->name, sizeof limit->name, "%s", name);
    snprintf(limit->key, sizeof limit->key, "%s", key);
    limit->unit = unit;
    limit->threads = threads;
    return limit;
}

/* Rounds go over all limits, so that each meets every mood of the machine. */
int bench_measure_limits(bench_run *run, uint32_t rounds)
{
    bool has[BENCH_PEAK_KINDS];
    unsigned crews = run->threads > 1 ? 2 : 1;
    if (!bench_buffer(run)) {
        return TOOL_FAILURE;
    }
    char *small = make_buffer(run->buffer_bytes, false);
    for (int i = 0; i < BENCH_PEAK_KINDS; i++) {
        has[i] = bench_has_peak(i);
    }
    for (unsigned crew = 0; crew < crews; crew++) {
        unsigned threads = crew == 0 ? 1 : run->threads;
        for (unsigned i = 0; i < BENCH_STREAMS; i++) {
            char name[40];
            char key[32];
            snprintf(name, sizeof name, "read, %u stream%s a core", 1u << i, i == 0 ? "" : "s");
            snprintf(key, sizeof key, "read_%u", 1u << i);
            add_limit(run, name, key, BENCH_READ, threads);
        }
        if (small != NULL) { /* as a mapped file is read; no result is compared with it */
            add_limit(run, "read, best, small pages", "read_small_pages", BENCH_READ, threads);
        }
        for (int i = 0; i < BENCH_PEAK_KINDS; i++) {
            if (has[i]) {
                bool is_float = strstr(bench_peak_key(i), "f32") != NULL || strstr(bench_peak_key(i), "bf16") != NULL;
                add_limit(run, bench_peak_name(i), bench_peak_key(i),
                          is_float ? BENCH_FLOPS : BENCH_OPS, threads);
            }
        }
    }
    for (uint32_t round = 0; round < rounds; round++) {
        if (!bench_go_on(run, "the machine's limits", round, rounds, 0.6)) {
            break;
        }
        uint32_t at = 0;
        for (unsigned crew = 0; crew < crews; crew++) {
            unsigned threads = crew == 0 ? 1 : run->threads;
            for (unsigned i = 0; i < BENCH_STREAMS; i++) {
                bench_add(&run->limits[at++].samples,
                          bench_read(run->buffer, run->buffer_bytes, threads, 1u << i, 1));
            }
            if (small != NULL) {
                bench_add(&run->limits[at++].samples,
                          bench_read_best(small, run->buffer_bytes, threads, 1));
            }
            for (int i = 0; i < BENCH_PEAK_KINDS; i++) {
                if (has[i]) {
                    bench_add(&run->limits[at++].samples, bench_peak(i, threads));
                }
            }
        }
    }
    if (small != NULL) {
        munmap(small, run->buffer_bytes);
    }
    return TOOL_OK;
}
