/* SPDX-License-Identifier: Apache-2.0 */
/* test_cpu.c - the choice of kernels by processor features: what is reported holds by cpuid
 * asked anew, every subset of features gives a table that needs no more than the subset, and
 * the products with integers of one table are all of one tier. Run under qemu with older
 * processors too, where a wrong feature would trap in the last test. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <bitaxon/version.h>

#include "kernels/kernels.h"

#define X86_FEATURES                                                                               \
    (BITAXON_CPU_AVX2 | BITAXON_CPU_AVX512 | BITAXON_CPU_AMX | BITAXON_CPU_AVX512_VNNI |           \
     BITAXON_CPU_AVX_VNNI)
#define EVERY_MASK 2048u /* of the bits that have a name */

/* Features without the one that they stand upon count for nothing. */
static uint64_t closed(uint64_t f)
{
    if ((f & BITAXON_CPU_AVX2) == 0)
        f &= ~(uint64_t)X86_FEATURES;
    if ((f & BITAXON_CPU_AVX512) == 0)
        f &= ~(uint64_t)(BITAXON_CPU_AVX512_VNNI | BITAXON_CPU_AMX);
    return f;
}

static void test_subsets(void **state)
{
    (void)state;
    for (uint64_t mask = 0; mask < EVERY_MASK; mask++) {
        bxn_kernels k, again;
        bxn_kernels_init(&k, mask);
        assert_true((k.features & ~closed(mask)) == 0);
        bxn_kernels_init(&again, k.features); /* what is left out was not needed */
        assert_memory_equal(&k, &again, sizeof k);
        const char *name = bxn_kernels_name(mask);
        assert_string_equal(name, bxn_kernels_name(k.features));
        assert_int_equal(strstr(name, "avx2") != NULL, (k.features & BITAXON_CPU_AVX2) != 0);
        assert_int_equal(strstr(name, "avxvnni") != NULL, (k.features & BITAXON_CPU_AVX_VNNI) != 0);
        assert_int_equal(strstr(name, "avx512vnni") != NULL,
                         (k.features & BITAXON_CPU_AVX512_VNNI) != 0);
    }
}

/* Tiers store integers in orders of their own: five functions of one tier, or results are wrong. */
static void test_integer_products_stand_together(void **state)
{
    (void)state;
    for (uint64_t a = 0; a < EVERY_MASK; a++) {
        bxn_kernels k, plain;
        bxn_kernels_init(&k, a);
        for (uint64_t bit = 1; bit < EVERY_MASK; bit *= 2) {
            bxn_kernels_init(&plain, a & ~bit);
            int same = k.quant_x == plain.quant_x;
            assert_int_equal(k.mm_near4 == plain.mm_near4, same);
            assert_int_equal(k.mm_near8 == plain.mm_near8, same);
            assert_int_equal(k.mm_fast4 == plain.mm_fast4, same);
            assert_int_equal(k.mm_fast8 == plain.mm_fast8, same);
        }
    }
}

#if defined(__x86_64__)
#include <cpuid.h>

static void test_detection(void **state)
{
    uint32_t a = 0, b = 0, c = 0, d = 0, b7 = 0, c7 = 0, d7 = 0, a71 = 0, low = 0, high = 0;
    const uint64_t features = bxn_cpu_detect();
    (void)state;
    assert_true((features & ~(uint64_t)X86_FEATURES) == 0);
    assert_true(__get_cpuid(1, &a, &b, &c, &d));
    if (c & 1u << 27)
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const int avx = c >> 28 & 1, fma = c >> 12 & 1, f16c = c >> 29 & 1;
    if (__get_cpuid_count(7, 0, &a, &b7, &c7, &d7) && a >= 1)
        __get_cpuid_count(7, 1, &a71, &b, &c, &d);
    const int avx2 = avx && fma && f16c && (b7 >> 5 & 1) && (low & 6) == 6;
    const int avx512 = avx2 && (b7 >> 16 & 1) && (b7 >> 17 & 1) && (b7 >> 30 & 1) &&
                       (b7 >> 31 & 1) && (low & 0xE6) == 0xE6;
    assert_int_equal((features & BITAXON_CPU_AVX2) != 0, avx2);
    assert_int_equal((features & BITAXON_CPU_AVX512) != 0, avx512);
    assert_int_equal((features & BITAXON_CPU_AVX_VNNI) != 0, avx2 && (a71 >> 4 & 1));
    assert_int_equal((features & BITAXON_CPU_AVX512_VNNI) != 0,
                     avx512 && (c7 >> 11 & 1) && (c7 >> 1 & 1));
    if (features & BITAXON_CPU_AMX)
        assert_true((low & 0x60000) == 0x60000 && (d7 >> 24 & 1) && (d7 >> 25 & 1));
}
#endif

/* Nothing outside the program turns features on or off. */
static void test_environment(void **state)
{
    static const char *const names[] = {"BITAXON_ISA", "BITAXON_CPU", "BITAXON_CPU_MASK",
                                        "BITAXON_FEATURES"};
    static const char *const values[] = {"c", "0", "avx512", "0xffff"};
    const uint64_t features = bxn_cpu_detect();
    bxn_kernels before, after;
    (void)state;
    bxn_kernels_init(&before, features);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        for (size_t v = 0; v < sizeof values / sizeof values[0]; v++) {
            assert_int_equal(setenv(names[i], values[v], 1), 0);
            assert_true(bxn_cpu_detect() == features);
            bxn_kernels_init(&after, features);
            assert_memory_equal(&before, &after, sizeof before);
        }
        unsetenv(names[i]);
    }
}

/* Every integer product of every subset of what this processor has: none may trap, and all
 * tiers agree on a product of whole numbers. */
static void test_products_run(void **state)
{
    enum { COLS = 256, ROWS = 32, TOKENS = 9 };
    static _Alignas(64) uint8_t data[2 * 2 * (64 + 1024)];
    static _Alignas(64) uint8_t xq[TOKENS * 1024];
    static float x[TOKENS * COLS], xscale[TOKENS * 8], y[TOKENS * ROWS], want[TOKENS * ROWS];
    const uint64_t features = bxn_cpu_detect();
    (void)state;
    bxn_packed w = {.data = data, .rows = ROWS, .cols = COLS, .row_groups = 2, .k_units = 2,
                    .code_bits = 4, .source_bits = 4, .blocks = 2, .unit_bytes = 64 + 1024};
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 37 + i / 11);
    for (int u = 0; u < 4; u++) /* scales of 1 */
        for (int i = 0; i < 32; i++)
            memcpy(data + u * (64 + 1024) + 2 * i, &(uint16_t){0x3C00}, 2);
    for (int c = 0; c < 16; c++)
        w.table[c] = (float)(c - 8) / 8;
    for (size_t i = 0; i < TOKENS * COLS; i++)
        x[i] = (float)(i * 7 % 41) - 20;
    assert_true(bxn_xq_bytes(BXN_XQ_NEAR_TABLE, COLS) <= 1024);
    for (uint64_t mask = 0; mask < EVERY_MASK; mask++) {
        if ((mask & ~features) != 0)
            continue;
        bxn_kernels k;
        bxn_kernels_init(&k, mask);
        for (uint32_t m = 0; m < TOKENS; m++)
            k.quant_x(BXN_XQ_NEAR_TABLE, x + m * COLS, COLS, xq + m * 1024, xscale + m * 8);
        for (uint32_t count = 1; count <= TOKENS; count += 4) {
            bxn_mm_args args = {.count = count, .y = y, .ldy = ROWS, .xq = xq, .ldxq = 1024,
                                .xscale = xscale, .ldxscale = 8};
            k.mm_near4(&w, 0, 2, &args);
            for (uint32_t i = 0; i < count * ROWS; i++) {
                if (mask == 0 && count == TOKENS)
                    want[i] = y[i];
                else if (mask != 0)
                    assert_float_equal(y[i], want[i], 0.01);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_subsets),
        cmocka_unit_test(test_integer_products_stand_together),
#if defined(__x86_64__)
        cmocka_unit_test(test_detection),
#endif
        cmocka_unit_test(test_environment),
        cmocka_unit_test(test_products_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
