/* SPDX-License-Identifier: Apache-2.0 */
/* api_version.c - what the loaded library is: numbers, build line, status names, sizes of
 * public structs, features of the machine. Called by hosts and bindings before anything
 * else. Constant data only; nothing here can fail. */
#include <string.h>

#include <bitaxon/bitaxon.h>

#include "kernels/kernels.h"

/* The revision, given by the build; empty for builds from a tarball. */
#ifndef BXN_GIT_ID
#define BXN_GIT_ID ""
#endif

#if defined(__clang__)
#define COMPILER __VERSION__
#else
#define COMPILER "GCC " __VERSION__
#endif

#if defined(__x86_64__) && defined(BXN_HAVE_AMX)
#define TIERS "c avx2 avxvnni avx512 avx512vnni amx"
#elif defined(__x86_64__)
#define TIERS "c avx2 avxvnni avx512 avx512vnni"
#elif defined(__aarch64__)
#define TIERS "c neon dotprod i8mm"
#else
#define TIERS "c"
#endif

uint32_t bitaxon_version(void) { return BITAXON_VERSION_NUMBER; }

const char *bitaxon_version_string(void) { return BITAXON_VERSION_STRING; }

uint32_t bitaxon_abi_version(void) { return BITAXON_ABI_VERSION; }

const char *bitaxon_build_info(void)
{
    return sizeof(BXN_GIT_ID) > 1
               ? "bitaxon " BITAXON_VERSION_STRING " (" BXN_GIT_ID "), " COMPILER ", kernels " TIERS
               : "bitaxon " BITAXON_VERSION_STRING ", " COMPILER ", kernels " TIERS;
}

uint64_t bitaxon_cpu_features(void) { return bxn_cpu_detect(); }

const char *bitaxon_status_name(bitaxon_status status)
{
    switch (status) {
#define STATUS_CASE(name, value, text) \
    case value: \
        return #name;
        BITAXON_STATUS_LIST(STATUS_CASE)
#undef STATUS_CASE
    default:
        return "UNKNOWN";
    }
}

size_t bitaxon_struct_size(const char *name)
{
    static const struct {
        char name[32];
        size_t size;
    } sizes[] = {
#define STRUCT_SIZE(type) {#type, sizeof(type)}
        STRUCT_SIZE(bitaxon_error),
        STRUCT_SIZE(bitaxon_progress),
        STRUCT_SIZE(bitaxon_host),
        STRUCT_SIZE(bitaxon_source),
        STRUCT_SIZE(bitaxon_file),
        STRUCT_SIZE(bitaxon_model_params),
        STRUCT_SIZE(bitaxon_estimate),
        STRUCT_SIZE(bitaxon_tensor_info),
        STRUCT_SIZE(bitaxon_text_stream),
        STRUCT_SIZE(bitaxon_message),
        STRUCT_SIZE(bitaxon_span),
        STRUCT_SIZE(bitaxon_cache_params),
        STRUCT_SIZE(bitaxon_logit_bias),
        STRUCT_SIZE(bitaxon_sampler_params),
        STRUCT_SIZE(bitaxon_session_params),
        STRUCT_SIZE(bitaxon_candidate),
        STRUCT_SIZE(bitaxon_generated),
        STRUCT_SIZE(bitaxon_generate_params),
        STRUCT_SIZE(bitaxon_generate_result),
        STRUCT_SIZE(bitaxon_stats),
        STRUCT_SIZE(bitaxon_tensor_report),
        STRUCT_SIZE(bitaxon_convert_params),
        STRUCT_SIZE(bitaxon_reading),
        STRUCT_SIZE(bitaxon_thermal_params),
        STRUCT_SIZE(bitaxon_thermal_status),
        STRUCT_SIZE(bitaxon_thermal_point),
        STRUCT_SIZE(bitaxon_dataset_params),
        STRUCT_SIZE(bitaxon_dataset_info),
        STRUCT_SIZE(bitaxon_trainer_params),
        STRUCT_SIZE(bitaxon_train_estimate),
        STRUCT_SIZE(bitaxon_train_result),
        STRUCT_SIZE(bitaxon_trainer_info),
        STRUCT_SIZE(bitaxon_train_point),
        STRUCT_SIZE(bitaxon_adapter_params),
        STRUCT_SIZE(bitaxon_adapter_info),
#undef STRUCT_SIZE
    };

    if (name == NULL)
        return 0;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        if (strcmp(name, sizes[i].name) == 0)
            return sizes[i].size;
    }
    return 0;
}
