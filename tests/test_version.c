/* SPDX-License-Identifier: Apache-2.0 */
/* test_version.c - what the library says about itself: numbers, names of statuses, sizes,
 * build line, processor features. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <bitaxon/bitaxon.h>

#include "kernels/kernels.h"

static void numbers_agree_with_the_header(void **state)
{
    (void)state;
    assert_int_equal(bitaxon_version(), BITAXON_VERSION_NUMBER);
    assert_string_equal(bitaxon_version_string(), BITAXON_VERSION_STRING);
    assert_int_equal(bitaxon_abi_version(), BITAXON_ABI_VERSION);
}

static void every_status_has_its_name(void **state)
{
    (void)state;
#define CHECK_NAME(name, value, text) assert_string_equal(bitaxon_status_name(value), #name);
    BITAXON_STATUS_LIST(CHECK_NAME)
#undef CHECK_NAME
    assert_string_equal(bitaxon_status_name(2), "UNKNOWN");
    assert_string_equal(bitaxon_status_name(-13), "UNKNOWN");
    assert_string_equal(bitaxon_status_name(INT32_MIN), "UNKNOWN");
    assert_string_equal(bitaxon_status_name(INT32_MAX), "UNKNOWN");
}

/* All sizes are compared with literals by tests/abi/abi_layout.c. */
static void sizes_of_unknown_structs_are_zero(void **state)
{
    (void)state;
    assert_int_equal(bitaxon_struct_size("bitaxon_error"), sizeof(bitaxon_error));
    assert_int_equal(bitaxon_struct_size(NULL), 0);
    assert_int_equal(bitaxon_struct_size(""), 0);
    assert_int_equal(bitaxon_struct_size("bitaxon_erro"), 0);
    assert_int_equal(bitaxon_struct_size("bitaxon_errors"), 0);
    assert_int_equal(bitaxon_struct_size("bitaxon_model"), 0);
}

static void build_line_names_version_and_tiers(void **state)
{
    const char *info = bitaxon_build_info();
    (void)state;
    assert_non_null(strstr(info, "bitaxon " BITAXON_VERSION_STRING));
    assert_non_null(strstr(info, bxn_kernels_name(UINT64_MAX)));
    assert_null(strchr(info, '\n'));
    assert_ptr_equal(info, bitaxon_build_info());
}

static void features_are_known_bits(void **state)
{
    const uint64_t features = bitaxon_cpu_features();
    const uint64_t known =
        BITAXON_CPU_AVX2 | BITAXON_CPU_AVX512 | BITAXON_CPU_AMX | BITAXON_CPU_AVX512_VNNI |
        BITAXON_CPU_AVX_VNNI | BITAXON_CPU_NEON | BITAXON_CPU_NEON_DOTPROD | BITAXON_CPU_NEON_I8MM;
    (void)state;
    assert_int_equal(features & ~known, 0);
    if (features & (BITAXON_CPU_AVX512 | BITAXON_CPU_AVX_VNNI))
        assert_true((features & BITAXON_CPU_AVX2) != 0);
    if (features & BITAXON_CPU_AVX512_VNNI)
        assert_true((features & BITAXON_CPU_AVX512) != 0);
    assert_int_equal(features, bitaxon_cpu_features());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_agree_with_the_header),
        cmocka_unit_test(every_status_has_its_name),
        cmocka_unit_test(sizes_of_unknown_structs_are_zero),
        cmocka_unit_test(build_line_names_version_and_tiers),
        cmocka_unit_test(features_are_known_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
