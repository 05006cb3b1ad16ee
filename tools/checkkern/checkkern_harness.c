/* SPDX-License-Identifier: Apache-2.0 */
/* checkkern_harness.c - guarded memory, random data and comparisons of the kernel checks.
 * One thread; running out of memory ends the program. */
#include "checkkern.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/runtime.h"

#define MAX_BLOCKS 2048
#define CANARY 0xA5

/* SplitMix64 (Steele, Lea & Flood, OOPSLA 2014). */
uint64_t next_random(run *r)
{
    uint64_t z = r->seed += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

uint32_t below(run *r, uint32_t n)
{
    return (uint32_t)(next_random(r) >> 32) % n;
}

float uniform(run *r, float low, float high)
{
    return low + (high - low) * (float)(next_random(r) >> 40) * 0x1p-24f;
}

float normal(run *r)
{
    float sum = 0.0f;
    for (int i = 0; i < 12; i++)
        sum += uniform(r, 0.0f, 1.0f);
    return sum - 6.0f;
}

uint16_t random_f16(run *r, float low, float high)
{
    return bxn_f32_f16(uniform(r, low, high));
}

float f16_value(uint16_t bits)
{
    return bxn_f16_f32(bits);
}

static struct block {
    uint8_t *mapping, *data;
    size_t mapped;
} blocks[MAX_BLOCKS];
static size_t block_count;

void *guarded(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t room = bxn_round_up(bytes + 1, page);
    uint8_t *mapping = mmap(NULL, room + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED || block_count == MAX_BLOCKS ||
        mprotect(mapping + page, room, PROT_READ | PROT_WRITE) != 0) {
        perror("checkkern: guarded memory");
        exit(2);
    }
    struct block *b = &blocks[block_count++];
    b->mapping = mapping;
    b->mapped = room + 2 * page;
    b->data = mapping + page + room - bytes;
    memset(mapping + page, CANARY, room);
    return b->data;
}

float *guarded_floats(size_t count)
{
    return guarded(count * sizeof(float));
}

float *guarded_randoms(run *r, size_t count, float size)
{
    float *x = guarded_floats(count);
    for (size_t i = 0; i < count; i++)
        x[i] = size * normal(r);
    return x;
}

float *guarded_copy(const float *x, size_t count)
{
    float *y = guarded_floats(count);
    if (count > 0)
        memcpy(y, x, count * sizeof *y);
    return y;
}

void release_guarded(run *r, const char *what)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t i = 0; i < block_count; i++) {
        const uint8_t *p = blocks[i].mapping + page;
        while (p < blocks[i].data && *p == CANARY)
            p++;
        if (p != blocks[i].data)
            fail(r, "%s: wrote %zu bytes before a buffer", what, (size_t)(blocks[i].data - p));
        munmap(blocks[i].mapping, blocks[i].mapped);
    }
    block_count = 0;
}

void fail(run *r, const char *format, ...)
{
    if (r->failures++ < 5) {
        va_list list;
        va_start(list, format);
        printf("%s %s: ", r->entry, r->tier);
        vprintf(format, list);
        printf("\n");
        va_end(list);
    }
}

void compare(run *r, const char *what, size_t index, double got, double want, double bound)
{
    if (isnan(want) || isnan(got)) {
        if (!(isnan(want) && isnan(got)))
            fail(r, "%s [%zu]: got %.9g, expected %.9g", what, index, got, want);
        return;
    }
    if (isinf(want) || isinf(got)) {
        if (got != want)
            fail(r, "%s [%zu]: got %.9g, expected %.9g", what, index, got, want);
        return;
    }
    double error = fabs(got - want);
    if (!(error <= bound))
        fail(r, "%s [%zu]: got %.9g, expected %.9g, error %.3g above %.3g", what, index, got, want,
             error, bound);
    else if (error > r->worst * bound)
        r->worst = error / bound;
}

void same_bits(run *r, const char *what, const float *a, const float *b, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (bxn_f32_bits(a[i]) != bxn_f32_bits(b[i])) {
            fail(r, "%s [%zu]: %a and %a should be the same bits", what, i, (double)a[i],
                 (double)b[i]);
            return;
        }
    }
}

#define PATTERN 0x7FA5A5A5u /* a signalling NaN that no kernel makes */

void fill_pattern(float *y, size_t count)
{
    const uint32_t pattern = PATTERN;
    for (size_t i = 0; i < count; i++)
        memcpy(y + i, &pattern, sizeof pattern);
}

bool has_pattern(float y)
{
    uint32_t bits;
    memcpy(&bits, &y, sizeof bits);
    return bits == PATTERN;
}
