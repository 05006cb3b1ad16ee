/* SPDX-License-Identifier: Apache-2.0 */
/* bench_decode.c - opening, prefill and decode of a model beside the machine's own limits,
 * all in one run: decode as a share of read bandwidth (best of 1, 2, 4, 8 streams), prefill as
 * a share of the f32 fused multiply-add peak. Public headers only.
 *   bench_decode MODEL [THREADS [CPU_MASK]] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <bitaxon/bitaxon.h>

#include "../bench/bandwidth.h"

enum { PROMPT = 256, ROUNDS = 7, TOKENS = 16 };

static int64_t fact(const bitaxon_model *model, const char *key)
{
    int64_t value = 0;
    (void)bitaxon_model_info_int(model, key, &value, NULL);
    return value;
}

/* Bytes of weights that one token reads: all, but of routed experts top-k of X; of an embedding
 * one row, unless it is the head as well. */
static double bytes_per_token(const bitaxon_model *model)
{
    double sum = 0, share = (double)fact(model, "moe_top_k") / (double)fact(model, "moe_num_experts");
    char tied[16] = "";
    (void)bitaxon_model_info_text(model, "tied", tied, sizeof tied, NULL, NULL);
    for (uint64_t i = 0; i < (uint64_t)fact(model, "tensors"); i++) {
        bitaxon_tensor_info info = { .struct_size = sizeof info };
        if (bitaxon_model_tensor_info(model, i, &info, NULL) != BITAXON_OK)
            continue;
        if (strstr(info.name, ".switch_mlp.") != NULL)
            sum += (double)info.bytes * share;
        else if (strcmp(info.name, "embed_tokens") != 0 || strcmp(tied, "tied") == 0)
            sum += (double)info.bytes;
    }
    return sum;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int fail(const bitaxon_error *error)
{
    fprintf(stderr, "bench_decode: %s\n", error->message);
    return 1;
}

int main(int argc, char **argv)
{
    if (argc < 2 || argc > 4) {
        fprintf(stderr, "usage: bench_decode MODEL [THREADS [CPU_MASK]]\n");
        return 2;
    }
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_model_params params = { .struct_size = sizeof params, .path = argv[1] };
    params.threads = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 0;
    params.cpu_mask = argc > 3 ? strtoull(argv[3], NULL, 0) : 0;
    bitaxon_model *model;
    bitaxon_session *session;
    double began = bench_now();
    if (bitaxon_model_open(&params, &model, &error) != BITAXON_OK)
        return fail(&error);
    double opened = bench_now() - began;
    unsigned threads = (unsigned)fact(model, "threads");
    int32_t vocab = (int32_t)fact(model, "vocab_size"), ids[PROMPT], token;
    for (int i = 0; i < PROMPT; i++)
        ids[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)vocab);
    if (bitaxon_session_create(model, NULL, &session, &error) != BITAXON_OK)
        return fail(&error);

    size_t size = (size_t)1 << 30;
    char *buffer = malloc(size);
    if (buffer == NULL)
        return 1;
    memset(buffer, 1, size);
    double flops = bench_fma(threads), prefill[3], decode[ROUNDS], bandwidth[ROUNDS];
    for (int i = 0; i < 3; i++) {
        bitaxon_cache_reset(bitaxon_session_cache(session));
        began = bench_now();
        if (bitaxon_session_prefill(session, ids, PROMPT, &error) != BITAXON_OK)
            return fail(&error);
        prefill[i] = (bench_now() - began) / PROMPT;
    }
    for (int i = 0; i < ROUNDS; i++) { /* limit and result in turns, so that both see the same machine */
        bandwidth[i] = bench_read_best(buffer, size, threads, 2);
        began = bench_now();
        for (int t = 0; t < TOKENS; t++)
            if (bitaxon_session_decode(session, &token, &error) != BITAXON_OK)
                return fail(&error);
        decode[i] = (bench_now() - began) / TOKENS;
    }
    qsort(prefill, 3, sizeof *prefill, by_value);
    qsort(decode, ROUNDS, sizeof *decode, by_value);
    qsort(bandwidth, ROUNDS, sizeof *bandwidth, by_value);
    double bytes = bytes_per_token(model), rate = bytes / decode[ROUNDS / 2], limit = bandwidth[ROUNDS / 2];
    double work = 2 * (double)fact(model, "active_parameters") / prefill[1];
    printf("%-28s %10.1f ms\n", "open", opened * 1e3);
    printf("%-28s %10.1f tokens/s %8.0f GFLOP/s  %5.1f %% of the f32 peak of %.0f\n", "prefill, 256 tokens",
           1 / prefill[1], work / 1e9, 100 * work / flops, flops / 1e9);
    printf("%-28s %10.1f tokens/s %8.1f GB/s     %5.1f %% of read bandwidth, %.1f\n", "decode, short context",
           1 / decode[ROUNDS / 2], rate / 1e9, 100 * rate / limit, limit / 1e9);
    printf("(medians; %u threads; %.0f MB of weights per token)\n", threads, bytes / 1e6);
    free(buffer);
    bitaxon_session_free(session);
    bitaxon_model_free(model);
    return 0;
}
