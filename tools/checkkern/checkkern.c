/* SPDX-License-Identifier: Apache-2.0 */
/* checkkern.c - runs every tier of every entry of the kernel table against plain C, and
 * plain C against double precision. One line per entry and tier; exit status 1 when a check
 * fails or faults, or a tier that the processor has did not run. With --bench it measures.
 *
 * usage: checkkern [--list] [--filter TEXT] [--tier c|avx2|avx512] [--seed N] [--bench] */
#include "checkkern.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <bitaxon/version.h>

#define ENTRY(name)                                                                                \
    {                                                                                              \
#name, check_##name, offsetof(bxn_kernels, name)                                           \
    }

const entry entries[] = {
    ENTRY(mm_packed4), ENTRY(mm_packed8), ENTRY(mm_f32), ENTRY(mm_f16),        ENTRY(mm_bf16),
    ENTRY(block_sums), ENTRY(rmsnorm),    ENTRY(add),    ENTRY(scale_add),     ENTRY(silu_mul),
    ENTRY(conv_silu),  ENTRY(scan),       ENTRY(to_f16), ENTRY(attention_f16), ENTRY(attention_f32),
};
const size_t entry_count = sizeof entries / sizeof entries[0];
_Static_assert(sizeof entries / sizeof entries[0] * sizeof(void (*)(void)) + sizeof(uint64_t) <=
                   sizeof(bxn_kernels),
               "every entry of the table has a check");

#define TIERS 3
static const char *const tier_names[TIERS] = {"c", "avx2", "avx512"};
static const uint64_t tier_features[TIERS] = {0, BITAXON_CPU_AVX2,
                                              BITAXON_CPU_AVX2 | BITAXON_CPU_AVX512};

/* What the compiler's own detection says, to catch a tier that is wrongly not offered. */
static bool cpu_has(size_t tier)
{
#if defined(__x86_64__)
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return tier == 0 || (tier == 1 ? avx2 : avx512);
#else
    return tier == 0;
#endif
}

static bool same_function(const bxn_kernels *a, const bxn_kernels *b, size_t slot)
{
    return memcmp((const char *)a + slot, (const char *)b + slot, sizeof(void (*)(void))) == 0;
}

typedef struct options {
    const char *filter, *tier;
    uint64_t seed;
    bool list, bench;
} options;

static bool parse(options *o, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--list") == 0) {
            o->list = true;
        } else if (strcmp(argv[i], "--bench") == 0) {
            o->bench = true;
        } else if (strcmp(argv[i], "--filter") == 0 && value != NULL) {
            o->filter = argv[++i];
        } else if (strcmp(argv[i], "--tier") == 0 && value != NULL) {
            o->tier = argv[++i];
        } else if (strcmp(argv[i], "--seed") == 0 && value != NULL) {
            char *end;
            o->seed = strtoull(argv[++i], &end, 0);
            if (*end != '\0')
                return false;
        } else {
            return false;
        }
    }
    return true;
}

static bool wanted(const options *o, const char *entry_name, const char *tier_name)
{
    return (o->filter == NULL || strstr(entry_name, o->filter) != NULL) &&
           (o->tier == NULL || strcmp(o->tier, tier_name) == 0);
}

static const char *volatile running_entry = "", *volatile running_tier = "";

/* A kernel that leaves its buffers meets a guard page: say which, and fail. */
static void on_fault(int signal_number)
{
    (void)signal_number;
    static const char text[] = ": FAIL: a fault, as of memory outside its buffers\n";
    const char *parts[] = {running_entry, " ", running_tier, text};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (write(STDOUT_FILENO, parts[i], strlen(parts[i])) < 0)
            break;
    _exit(1);
}

/* Returns the number of failures. */
static uint64_t check(const options *o, const bxn_kernels *tables, size_t t, const entry *e)
{
    run r = {.entry = e->name,
             .tier = tier_names[t],
             .kernels = &tables[t],
             .plain = &tables[0],
             .below = t >= 2 ? &tables[t - 1] : NULL,
             .is_plain = t == 0,
             .seed = o->seed};
    for (size_t lower = 0; lower < t; lower++) {
        if (same_function(&tables[t], &tables[lower], e->slot)) {
            printf("%-14s %-7s NOT RUN: the table holds the %s function\n", r.entry, r.tier,
                   tier_names[lower]);
            return 1;
        }
    }
    running_entry = r.entry;
    running_tier = r.tier;
    e->check(&r);
    if (r.cases == 0)
        fail(&r, "no case ran");
    printf("%-14s %-7s %-4s %6llu cases, largest error %.2f of its bound\n", r.entry, r.tier,
           r.failures == 0 ? "ok" : "FAIL", (unsigned long long)r.cases, r.worst);
    fflush(stdout);
    return r.failures;
}

int main(int argc, char **argv)
{
    options o = {.seed = 1};
    if (!parse(&o, argc, argv)) {
        fprintf(stderr, "usage: checkkern [--list] [--filter TEXT] [--tier c|avx2|avx512] "
                        "[--seed N] [--bench]\n");
        return 2;
    }
    uint64_t features = bxn_cpu_detect(), failures = 0, ran = 0;
    bxn_kernels tables[TIERS];
    bool have[TIERS];
    for (size_t t = 0; t < TIERS; t++) {
        have[t] = (features & tier_features[t]) == tier_features[t];
        bxn_kernels_init(&tables[t], tier_features[t]);
        if (cpu_has(t) && !have[t]) {
            printf("%s: NOT RUN: the processor has it, bxn_cpu_detect denies it\n", tier_names[t]);
            failures++;
        }
        if (have[t] && tables[t].features != tier_features[t]) {
            printf("%s: NOT RUN: no kernels for it in this build\n", tier_names[t]);
            failures++;
            have[t] = false;
        }
    }
    if (o.list) {
        for (size_t e = 0; e < entry_count; e++)
            for (size_t t = 0; t < TIERS; t++)
                if (wanted(&o, entries[e].name, tier_names[t]))
                    printf("%-14s %-7s %s\n", entries[e].name, tier_names[t],
                           have[t] ? "runs here" : "not on this processor");
        return 0;
    }
    if (o.bench) {
        bxn_kernels chosen[TIERS];
        const char *names[TIERS];
        size_t count = 0;
        for (size_t t = 0; t < TIERS; t++) {
            if (have[t] && (o.tier == NULL || strcmp(o.tier, tier_names[t]) == 0)) {
                chosen[count] = tables[t];
                names[count++] = tier_names[t];
            }
        }
        return bench_kernels(chosen, names, count, o.filter);
    }
    signal(SIGSEGV, on_fault);
    signal(SIGBUS, on_fault);
    signal(SIGILL, on_fault);
    printf("tiers of this processor: %s; seed %llu\n", bxn_kernels_name(features),
           (unsigned long long)o.seed);
    fflush(stdout);
    for (size_t t = 0; t < TIERS; t++) {
        if (!have[t]) {
            printf("%s: not on this processor\n", tier_names[t]);
            if (o.tier != NULL && strcmp(o.tier, tier_names[t]) == 0)
                failures++;
            continue;
        }
        for (size_t e = 0; e < entry_count; e++) {
            if (wanted(&o, entries[e].name, tier_names[t])) {
                failures += check(&o, tables, t, &entries[e]);
                ran++;
            }
        }
    }
    if (ran == 0) {
        printf("nothing ran\n");
        failures++;
    }
    printf("%s\n", failures == 0 ? "all checks passed" : "FAILED");
    return failures == 0 ? 0 : 1;
}
