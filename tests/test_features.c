/* SPDX-License-Identifier: Apache-2.0 */
/* test_features.c - the choice of processor features, and the request for AMX tiles, against
 * a system that grants, refuses, knows nothing of it, or does not do what it said. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <bitaxon/version.h>

#include "kernels/features.h"
#include "kernels/kernels.h"

#define ALL (BITAXON_CPU_AVX2 | BITAXON_CPU_AVX512 | BITAXON_CPU_AMX)
#define TILE_DATA ((uint64_t)1 << 18)

typedef struct fake {
    uint64_t permitted;
    uint64_t on_request; /* what a request adds */
    long get_result, request_result;
    unsigned gets, requests;
} fake;

static long fake_prctl(void *context, int code, unsigned long argument)
{
    fake *f = context;
    if (code == 0x1022) {
        f->gets++;
        if (f->get_result == 0)
            memcpy((void *)(uintptr_t)argument, &f->permitted, sizeof f->permitted);
        return f->get_result;
    }
    assert_int_equal(code, 0x1023);
    assert_int_equal(argument, 18);
    f->requests++;
    if (f->request_result == 0)
        f->permitted |= f->on_request;
    return f->request_result;
}

static uint64_t choose(fake *f, uint64_t detected, uint64_t mask, bool allow, int *refused)
{
    return bxn_features_choose(detected, mask, allow, fake_prctl, f, refused);
}

static void test_granted(void **state)
{
    (void)state;
    fake f = {.permitted = 3, .on_request = TILE_DATA};
    int refused = -1;
    assert_int_equal(choose(&f, ALL, UINT64_MAX, true, &refused), ALL);
    assert_int_equal(refused, 0);
    assert_int_equal(f.requests, 1);
    /* The second model of a process asks for nothing. */
    assert_int_equal(choose(&f, ALL, UINT64_MAX, true, &refused), ALL);
    assert_int_equal(f.requests, 1);
}

static void test_not_asked(void **state)
{
    (void)state;
    static const struct {
        uint64_t detected, mask, want;
        bool allow;
    } cases[] = {
        {ALL, UINT64_MAX, ALL & ~BITAXON_CPU_AMX, false}, /* the host did not allow it */
        {ALL & ~BITAXON_CPU_AMX, UINT64_MAX, ALL & ~BITAXON_CPU_AMX, true}, /* not there */
        {ALL, ~(uint64_t)BITAXON_CPU_AMX, ALL & ~BITAXON_CPU_AMX, true},    /* masked */
        {ALL, ~(uint64_t)BITAXON_CPU_AVX512, BITAXON_CPU_AVX2, true},       /* no use without it */
        {ALL, BITAXON_CPU_AMX, 0, true},
        {BITAXON_CPU_AMX | BITAXON_CPU_AVX512, UINT64_MAX, BITAXON_CPU_AVX512, true},
        {0, UINT64_MAX, 0, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fake f = {.permitted = 0, .on_request = TILE_DATA};
        int refused = -1;
        assert_int_equal(choose(&f, cases[i].detected, cases[i].mask, cases[i].allow, &refused),
                         cases[i].want);
        assert_int_equal(refused, 0);
        assert_int_equal(f.gets + f.requests, 0);
    }
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        fake system;
        int refused;
        unsigned requests;
    } cases[] = {
        {{.get_result = -EINVAL, .on_request = TILE_DATA}, EINVAL, 0}, /* Linux before 5.16 */
        {{.get_result = -ENOSYS}, ENOSYS, 0},
        {{.request_result = -ENOSPC}, ENOSPC, 1}, /* a small alternate signal stack */
        {{.request_result = -EPERM}, EPERM, 1},   /* a filter of system calls */
        {{.on_request = 0}, EPERM, 1},            /* says yes, and does nothing */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fake f = cases[i].system;
        int refused = 0;
        assert_int_equal(choose(&f, ALL, UINT64_MAX, true, &refused), ALL & ~BITAXON_CPU_AMX);
        assert_int_equal(refused, cases[i].refused);
        assert_int_equal(f.requests, cases[i].requests);
    }
}

/* What this machine answers is its own affair; an answer of yes is for good. */
static void test_system(void **state)
{
    (void)state;
    int first = bxn_amx_request(NULL, NULL);
    assert_true(first >= 0);
    assert_int_equal(bxn_amx_request(NULL, NULL), first);
    if ((bxn_cpu_detect() & BITAXON_CPU_AMX) == 0)
        return;
    int refused;
    uint64_t features =
        bxn_features_choose(bxn_cpu_detect(), UINT64_MAX, true, NULL, NULL, &refused);
    assert_int_equal((features & BITAXON_CPU_AMX) != 0, first == 0);
    assert_int_equal(refused, first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_granted),
        cmocka_unit_test(test_not_asked),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_system),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
