/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_bench_adapter.c - what `bitaxon bench` measures of adapters: putting one on a session in place of another. Two
 * adapters of the model's first weight are written to a temporary folder and opened from there; a swap does
 * the same work for one weight and for all. */
#include "cmd_bench.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    NARROW = 8,
    WIDE = 64,    /* beyond what a session has room for from the start */
    SWAPS = 200,  /* of a round: one alone is too short for the clock */
    READ = 16     /* tokens, so that buffers are in use before they grow */
};

static int64_t fact(const bitaxon_model *model, const char *key)
{
    int64_t value = 0;
    (void)bitaxon_model_info_int(model, key, &value, NULL);
    return value;
}

/* As the original writes one: input_proj's two halves, small random values. */
static bool write_adapter(const bitaxon_model *model, const char *path, uint64_t rank)
{
    uint64_t in = (uint64_t)fact(model, "d_source_model");
    uint64_t out = (uint64_t)fact(model, "hidden_dim");
    uint64_t a = in * rank * sizeof(float);
    uint64_t b = rank * out * sizeof(float);
    char header[512];
    int length = snprintf(header, sizeof header - 8,
                          "{\"input_proj.lora_a\":{\"dtype\":\"F32\",\"shape\":[%llu,%llu],"
                          "\"data_offsets\":[0,%llu]},"
                          "\"input_proj.lora_b\":{\"dtype\":\"F32\",\"shape\":[%llu,%llu],"
                          "\"data_offsets\":[%llu,%llu]}}",
                          (unsigned long long)in, (unsigned long long)rank, (unsigned long long)a,
                          (unsigned long long)rank, (unsigned long long)out, (unsigned long long)a,
                          (unsigned long long)(a + b));
    FILE *file = fopen(path, "wb");
    if (file == NULL) {
        return false;
    }
    while (length % 8 != 0) {
        header[length++] = ' ';
    }
    unsigned char size[8] = {(unsigned char)(length & 255), (unsigned char)(length >> 8)};
    bool written = fwrite(size, sizeof size, 1, file) == 1 &&
                   fwrite(header, (size_t)length, 1, file) == 1;
    uint32_t seed = 1;
    for (uint64_t i = 0; i < (a + b) / sizeof(float) && written; i++) {
        seed = seed * 1664525u + 1013904223u;
        float value = ((float)(seed >> 16) / 32768.0f - 1.0f) * 0.01f;
        written = fwrite(&value, sizeof value, 1, file) == 1;
    }
    return fclose(file) == 0 && written;
}

/* An adapter by way of a file in a folder of its own, of which nothing stays. */
static int make_adapter(bench_run *run, uint64_t rank, bitaxon_adapter **out)
{
    const char *temporary = getenv("TMPDIR");
    char folder[512];
    char path[544];
    bitaxon_error error = BITAXON_ERROR_INIT;
    snprintf(folder, sizeof folder, "%.480s/bitaxon-bench-XXXXXX",
             temporary != NULL && temporary[0] != '\0' ? temporary : "/tmp");
    if (mkdtemp(folder) == NULL) {
        return tool_error("cannot make the folder %s", folder);
    }
    snprintf(path, sizeof path, "%s/rank.safetensors", folder);
    bitaxon_adapter_params params = {.struct_size = sizeof params, .path = path, .scale = 1};
    bool written = write_adapter(run->model, path, rank);
    bitaxon_status status = BITAXON_OK;
    if (written) {
        status = bitaxon_adapter_open(run->model, &params, out, &error);
    }
    unlink(path);
    rmdir(folder);
    return !written ? tool_error("cannot write %s", path)
                    : status != BITAXON_OK ? tool_fail(status, &error) : TOOL_OK;
}

/* Seconds of the first swap to the wider one by a session that has used the narrower one, and of
 * those after it. */
static bitaxon_status swap(const bench_run *run, bitaxon_adapter *const pair[2], double seconds[2],
                           bitaxon_error *error)
{
    bitaxon_session *session = NULL;
    bitaxon_cache_params cache = {.struct_size = sizeof cache, .max_tokens = READ};
    bitaxon_session_params params = {.struct_size = sizeof params, .cache_params = &cache};
    int32_t tokens[READ];
    for (int32_t i = 0; i < READ; i++) {
        tokens[i] = i % (int32_t)run->facts.vocab;
    }
    cache.kv_type = tool_kv_type(&run->args->model, BITAXON_KV_DEFAULT);
    bitaxon_status status = bitaxon_session_create(run->model, &params, &session, error);
    if (status == BITAXON_OK) {
        status = bitaxon_session_set_adapters(session, &pair[0], NULL, 1, error);
    }
    if (status == BITAXON_OK) {
        status = bitaxon_session_prefill(session, tokens, READ, error);
    }
    if (status == BITAXON_OK) {
        bitaxon_cache_reset(bitaxon_session_cache(session));
        uint64_t start = tool_now_ns();
        status = bitaxon_session_set_adapters(session, &pair[1], NULL, 1, error);
        seconds[0] = (double)(tool_now_ns() - start) * 1e-9;
    }
    uint64_t start = tool_now_ns();
    for (int i = 0; i < SWAPS && status == BITAXON_OK; i++) {
        status = bitaxon_session_set_adapters(session, &pair[i % 2], NULL, 1, error);
    }
    seconds[1] = (double)(tool_now_ns() - start) * 1e-9 / SWAPS;
    bitaxon_session_free(session);
    return status;
}

int bench_measure_adapter(bench_run *run, uint32_t rounds)
{
    bitaxon_adapter *pair[2] = {NULL, NULL};
    bench_row *later = bench_row_add(run, BENCH_SECONDS, "adapter_swap",
                                     "adapter swap, ranks %d and %d", NARROW, WIDE);
    bench_row *first = bench_row_add(run, BENCH_SECONDS, "adapter_first", "  the first to rank %d",
                                     WIDE);
    int code = make_adapter(run, NARROW, &pair[0]);
    if (code == TOOL_OK) {
        code = make_adapter(run, WIDE, &pair[1]);
    }
    for (uint32_t i = 0; i < rounds && code == TOOL_OK; i++) {
        if (!bench_go_on(run, "adapter swap", i, rounds, 0.1)) {
            break;
        }
        bitaxon_error error = BITAXON_ERROR_INIT;
        double seconds[2] = {0, 0};
        bitaxon_status status = swap(run, pair, seconds, &error);
        if (status != BITAXON_OK) {
            code = tool_fail(status, &error);
            break;
        }
        bench_add(&first->value, seconds[0]);
        bench_add(&later->value, seconds[1]);
    }
    bitaxon_adapter_free(pair[0]);
    bitaxon_adapter_free(pair[1]);
    return code;
}
