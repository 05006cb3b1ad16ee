/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_cache.c - loading a saved cache from bytes, as they are and once more with the checksums
 * of its first sections made right, so that what is behind them is reached. The cache must
 * stand where it stood when the load fails. Runs from the root of the repository. */
#include "fuzz.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

static void sum_again(uint8_t *data, size_t size, size_t at, uint64_t bytes)
{
    if (at > size || bytes > size - at || size - at - bytes < 8)
        return;
    uint64_t sum = XXH3_64bits(data + at, (size_t)bytes);
    memcpy(data + at + bytes, &sum, 8);
}

static void load(bitaxon_session *session, const uint8_t *data, size_t size)
{
    char path[64];
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_cache *cache = bitaxon_session_cache(session);
    int fd = memfd_create("cache", MFD_CLOEXEC);
    FUZZ_CHECK(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    bitaxon_status status = bitaxon_cache_load(cache, path, &error);
    FUZZ_STATUS(status, &error);
    close(fd);
    if (status != BITAXON_OK) {
        FUZZ_CHECK(bitaxon_cache_length(cache) == 5);
        return;
    }
    int32_t token = 1;
    uint64_t length = bitaxon_cache_length(cache);
    FUZZ_CHECK(length <= 128);
    if (length < 128) {
        status = length == 0 ? bitaxon_session_prefill(session, &token, 1, &error)
                             : bitaxon_session_decode(session, &token, &error);
        FUZZ_STATUS(status, &error);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bitaxon_model *model;
    static fault_host fault;
    bitaxon_error error = BITAXON_ERROR_INIT;
    if (model == NULL) {
        fault_host_init(&fault);
        bitaxon_model_params params = { .struct_size = sizeof params, .path = "tests/golden/tiny-q4", .threads = 1,
                                        .host = &fault.host, .accuracy = BITAXON_ACCURACY_EXACT };
        FUZZ_CHECK(bitaxon_model_open(&params, &model, &error) == BITAXON_OK);
    }
    int64_t before = fault.bytes;
    uint8_t *copy = malloc(size + (size == 0));
    FUZZ_CHECK(copy != NULL);
    memcpy(copy, data, size);
    for (int fixed = 0; fixed < 2; fixed++) {
        if (fixed == 1 && size >= 128) {
            uint64_t length;
            uint32_t biases;
            memcpy(&length, copy + 56, 8);
            memcpy(&biases, copy + 76, 4);
            size_t header = copy[8] == 2 ? 120 : 208; /* by the version */
            sum_again(copy, size, 0, header);
            if (length < size) {
                sum_again(copy, size, header + 8, length * 4);
                uint64_t phases = header + 8 + length * 4 + 8, phase_bytes = (length + 63) / 64 * 8;
                sum_again(copy, size, (size_t)phases, phase_bytes);
                sum_again(copy, size, (size_t)(phases + phase_bytes + 8), (uint64_t)biases * 8);
            }
        }
        bitaxon_cache_params cache = { .struct_size = sizeof cache, .max_tokens = 128 };
        bitaxon_session_params params = { .struct_size = sizeof params, .cache_params = &cache };
        bitaxon_session *session;
        const int32_t tokens[5] = { 1, 2, 3, 4, 5 };
        FUZZ_CHECK(bitaxon_session_create(model, &params, &session, &error) == BITAXON_OK);
        FUZZ_CHECK(bitaxon_session_prefill(session, tokens, 5, &error) == BITAXON_OK);
        load(session, copy, size);
        bitaxon_session_free(session);
    }
    free(copy);
    FUZZ_CHECK(fault.bytes == before && fault.wrong_frees == 0);
    return 0;
}
