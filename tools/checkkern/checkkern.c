/* SPDX-License-Identifier: Apache-2.0 */
/* checkkern.c - runs every tier of every entry of the kernel table against plain C, and
 * plain C against double precision. One line per entry and tier; exit status 1 when a check
 * fails or faults, or a tier that the processor has did not run. With --bench it measures.
 *
 * usage: checkkern [--list] [--filter TEXT] [--tier NAME] [--seed N] [--bench | --digest] */
#include "check_tile.h"
#include "checkkern.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <bitaxon/version.h>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

/* Entries by what a tier has to have of its own. */
enum { GROUP_COMMON = 1, GROUP_INTEGER = 2, GROUP_TRANSPOSED = 4, GROUP_TILE = 8, GROUP_STATE = 16 };

#define ENTRY(name, group)                                                                         \
    {                                                                                              \
#name, check_##name, offsetof(bxn_kernels, name), GROUP_##group                            \
    }

const entry entries[] = {
    ENTRY(mm_packed4, COMMON),    ENTRY(mm_packed8, COMMON),    ENTRY(mm_near4, INTEGER),
    ENTRY(mm_near8, INTEGER),     ENTRY(mm_fast4, INTEGER),     ENTRY(mm_fast8, INTEGER),
    ENTRY(quant_x, INTEGER),      ENTRY(mm_f32, COMMON),        ENTRY(mm_f16, COMMON),
    ENTRY(mm_bf16, COMMON),       ENTRY(block_sums, COMMON),    ENTRY(rmsnorm, COMMON),
    ENTRY(add, COMMON),           ENTRY(scale_add, COMMON),     ENTRY(silu_mul, COMMON),
    ENTRY(silu_mul_backward, COMMON), ENTRY(exp_sum, COMMON),
    ENTRY(conv_silu, COMMON),     ENTRY(scan, COMMON),          ENTRY(to_f16, COMMON),
    ENTRY(attention_f16, COMMON), ENTRY(attention_f32, COMMON), ENTRY(attention_i8, COMMON),
    ENTRY(attention_q4, COMMON),  ENTRY(attention_merge, COMMON), ENTRY(quant_i8, COMMON),
    ENTRY(quant_q4, COMMON),      ENTRY(kv_rotate, COMMON),
    ENTRY(mm_t_packed4, TRANSPOSED), ENTRY(mm_t_packed8, TRANSPOSED),
    ENTRY(mm_t_f32, TRANSPOSED),     ENTRY(mm_t_f16, TRANSPOSED),
    ENTRY(mm_t_bf16, TRANSPOSED),    ENTRY(outer_add, TRANSPOSED),
    ENTRY(mm_tile4, TILE),           ENTRY(mm_tile8, TILE),
    ENTRY(quant_bf16, TILE),         ENTRY(attention_tile, TILE),
    ENTRY(attention_train, TRANSPOSED),
    ENTRY(attention_backward, TRANSPOSED),
    ENTRY(scan_backward, STATE),     ENTRY(conv_backward, STATE),
    ENTRY(adamw, TRANSPOSED),            ENTRY(square_sum, TRANSPOSED),
    ENTRY(row_max, TRANSPOSED),          ENTRY(scale, TRANSPOSED),
    ENTRY(rmsnorm_backward, TRANSPOSED), ENTRY(rmsnorm_weight, TRANSPOSED),
};
const size_t entry_count = sizeof entries / sizeof entries[0];
_Static_assert(sizeof entries / sizeof entries[0] * sizeof(void (*)(void)) + sizeof(uint64_t) ==
                   sizeof(bxn_kernels),
               "every entry of the table has a check");

/* The tiers of this architecture in the order in which they fill the table. A tier is a set of
 * features; of the entries in the groups that it owns it must have its own function, and all
 * others are those of a tier below. A tier that owns nothing has no kernels yet. */
typedef struct tier {
    const char *name;
    uint64_t features;
    unsigned owns;
} tier;

static const tier tiers[] = {
    {"c", 0, GROUP_COMMON | GROUP_INTEGER | GROUP_TRANSPOSED | GROUP_STATE},
#if defined(__x86_64__)
#define AVX2_TIER BITAXON_CPU_AVX2
#define AVX512_TIER (BITAXON_CPU_AVX2 | BITAXON_CPU_AVX512)
    {"avx2", AVX2_TIER, GROUP_COMMON | GROUP_INTEGER | GROUP_TRANSPOSED | GROUP_STATE},
    {"avxvnni", AVX2_TIER | BITAXON_CPU_AVX_VNNI, GROUP_INTEGER},
    {"avx512", AVX512_TIER, GROUP_COMMON | GROUP_TRANSPOSED | GROUP_STATE},
    {"avx512vnni", AVX512_TIER | BITAXON_CPU_AVX512_VNNI, 0},
    {"amx", AVX512_TIER | BITAXON_CPU_AVX512_VNNI | BITAXON_CPU_AMX, GROUP_TILE},
#elif defined(__aarch64__)
#define DOTPROD_TIER (BITAXON_CPU_NEON | BITAXON_CPU_NEON_DOTPROD)
    {"neon", BITAXON_CPU_NEON, GROUP_COMMON | GROUP_INTEGER | GROUP_TRANSPOSED},
    {"dotprod", DOTPROD_TIER, GROUP_INTEGER},
    {"i8mm", DOTPROD_TIER | BITAXON_CPU_NEON_I8MM, GROUP_INTEGER},
#endif
};
#define TIERS (sizeof tiers / sizeof tiers[0])

/* What the compiler's own detection says, to catch a feature that is wrongly not offered. */
static uint64_t features_of_compiler(void)
{
    uint64_t found = 0;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        found |= BITAXON_CPU_AVX2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        found |= BITAXON_CPU_AVX512;
        if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi"))
            found |= BITAXON_CPU_AVX512_VNNI;
    }
    uint32_t a = 0, b, c, d; /* older compilers do not know its name */
    if ((found & BITAXON_CPU_AVX2) && __get_cpuid_count(7, 0, &a, &b, &c, &d) && a >= 1 &&
        __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4) != 0)
        found |= BITAXON_CPU_AVX_VNNI;
#elif defined(__aarch64__) && defined(__linux__)
    /* The identification registers, which the system reads for a program. */
    if (getauxval(AT_HWCAP) & HWCAP_CPUID) {
        uint64_t isar0, isar1;
        __asm__ volatile("mrs %0, id_aa64isar0_el1" : "=r"(isar0));
        __asm__ volatile("mrs %0, id_aa64isar1_el1" : "=r"(isar1));
        found |= BITAXON_CPU_NEON;
        if ((isar0 >> 44 & 15) != 0) {
            found |= BITAXON_CPU_NEON_DOTPROD;
            if ((isar1 >> 52 & 15) != 0)
                found |= BITAXON_CPU_NEON_I8MM;
        }
    }
#endif
    return found;
}

static bool same_function(const bxn_kernels *a, const bxn_kernels *b, size_t slot)
{
    return memcmp((const char *)a + slot, (const char *)b + slot, sizeof(void (*)(void))) == 0;
}

typedef struct options {
    const char *filter, *tier;
    uint64_t seed;
    bool list, bench, digest;
} options;

static bool parse(options *o, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--list") == 0) {
            o->list = true;
        } else if (strcmp(argv[i], "--bench") == 0) {
            o->bench = true;
        } else if (strcmp(argv[i], "--digest") == 0) {
            o->digest = true;
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

/* The lower tier whose function of this entry tier t has; t when it has its own. */
static size_t owner(const bxn_kernels *tables, size_t t, const entry *e)
{
    for (size_t lower = 0; lower < t; lower++)
        if (same_function(&tables[t], &tables[lower], e->slot))
            return lower;
    return t;
}

/* Returns the number of failures. */
static uint64_t run_check(run *r, const entry *e)
{
    running_entry = r->entry;
    running_tier = r->tier;
    e->check(r);
    if (r->cases == 0)
        fail(r, "no case ran");
    printf("%-14s %-10s %-4s %6llu cases, largest error %.2f of its bound\n", r->entry, r->tier,
           r->failures == 0 ? "ok" : "FAIL", (unsigned long long)r->cases, r->worst);
    fflush(stdout);
    return r->failures;
}

/* Returns the number of failures. */
static uint64_t check(const options *o, const bxn_kernels *tables, const bool *have, size_t t,
                      const entry *e)
{
    run r = {.entry = e->name,
             .tier = tiers[t].name,
             .kernels = &tables[t],
             .plain = &tables[0],
             .is_plain = t == 0,
             .seed = o->seed};
    size_t from = owner(tables, t, e);
    if (from != t) {
        bool missing = (tiers[t].owns & e->group) != 0;
        printf("%-14s %-10s %s %s\n", r.entry, r.tier,
               missing ? "NOT RUN: the table holds the function of" : "as", tiers[from].name);
        return missing;
    }
    for (size_t lower = 1; lower < t; lower++)
        if (have[lower] && owner(tables, lower, e) == lower)
            r.below = &tables[lower];
    return run_check(&r, e);
}

/* The products of tiles, which no table but that of AMX has: plain C, the kernel of AMX with
 * tile operations in plain C, and AMX itself where this machine has it. */
static uint64_t check_tile_entries(const options *o, uint64_t features, uint64_t *ran)
{
    tile_table tables[4];
    size_t count;
    uint64_t failures = 0, before = *ran;
    bool real = tile_tables(tables, &count, features), wide = false;
    for (size_t t = 0; t < count; t++) {
        wide = wide || strcmp(tables[t].name, "emul.512") == 0;
        for (size_t e = 0; e < entry_count; e++) {
            if (entries[e].group != GROUP_TILE || !wanted(o, entries[e].name, tables[t].name) ||
                !tile_has(&tables[t], entries[e].name))
                continue;
            run r = {.entry = entries[e].name,
                     .tier = tables[t].name,
                     .kernels = &tables[t].kernels,
                     .plain = &tables[0].kernels,
                     .is_plain = t == 0,
                     .seed = o->seed};
            failures += run_check(&r, &entries[e]);
            ++*ran;
        }
    }
    if (*ran != before) {
        printf("amx: %s\n", real ? "on the processor" : "emulated");
        if (!real)
            printf("SKIP amx on the processor: the machine, the compiler or the system lacks it\n");
        if (!wide)
            printf("SKIP emul.512: the machine or the compiler lacks AVX-512 with BF16\n");
    }
    return failures;
}

int main(int argc, char **argv)
{
    options o = {.seed = 1};
    if (!parse(&o, argc, argv)) {
        fprintf(stderr, "usage: checkkern [--list] [--filter TEXT] [--tier NAME] "
                        "[--seed N] [--bench | --digest]\n");
        return 2;
    }
    uint64_t features = bxn_cpu_detect(), failures = 0, ran = 0;
    bxn_kernels tables[TIERS];
    bool have[TIERS];
    uint64_t missed = features_of_compiler() & ~features;
    if (missed != 0) {
        printf("NOT RUN: the processor has features %#llx that bxn_cpu_detect denies\n",
               (unsigned long long)missed);
        failures++;
    }
    for (size_t t = 0; t < TIERS; t++) {
        have[t] = (features & tiers[t].features) == tiers[t].features;
        bxn_kernels_init(&tables[t], tiers[t].features);
        if (have[t] && tables[t].features != tiers[t].features) {
            if (tiers[t].owns != 0) {
                printf("%s: NOT RUN: no kernels for it in this build\n", tiers[t].name);
                failures++;
            }
            have[t] = false;
        }
    }
    if (o.list) {
        for (size_t e = 0; e < entry_count; e++)
            for (size_t t = 0; t < TIERS; t++)
                if (wanted(&o, entries[e].name, tiers[t].name))
                    printf("%-14s %-10s %s\n", entries[e].name, tiers[t].name,
                           have[t] ? "runs here" : "not on this processor");
        return 0;
    }
    if (o.digest) {
        for (size_t t = 0; t < TIERS; t++)
            if (o.tier != NULL && have[t] && strcmp(o.tier, tiers[t].name) == 0) {
                print_digests(&tables[t], &tables[0]);
                return 0;
            }
        fprintf(stderr, "checkkern: --digest wants the --tier of this processor to print\n");
        return 2;
    }
    if (o.bench) {
        bxn_kernels chosen[TIERS];
        const char *names[TIERS];
        size_t count = 0;
        for (size_t t = 0; t < TIERS; t++) {
            if (have[t] && (o.tier == NULL || strcmp(o.tier, tiers[t].name) == 0)) {
                chosen[count] = tables[t];
                names[count++] = tiers[t].name;
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
            printf("%s: %s\n", tiers[t].name,
                   tiers[t].owns == 0 ? "no kernels yet" : "not on this processor");
            if (o.tier != NULL && strcmp(o.tier, tiers[t].name) == 0)
                failures++;
            continue;
        }
        for (size_t e = 0; e < entry_count; e++) {
            if (entries[e].group != GROUP_TILE && wanted(&o, entries[e].name, tiers[t].name)) {
                failures += check(&o, tables, have, t, &entries[e]);
                ran++;
            }
        }
    }
    failures += check_tile_entries(&o, features, &ran);
    if (ran == 0) {
        printf("nothing ran\n");
        failures++;
    }
    printf("%s\n", failures == 0 ? "all checks passed" : "FAILED");
    return failures == 0 ? 0 : 1;
}
