/* SPDX-License-Identifier: Apache-2.0 */
/* fingerprint.c - 128 bits (XXH3) that bind saved sessions to a model: its configuration and a
 * digest of its tensors. Reading gigabytes to open a file would cost its milliseconds, so
 * bytes are sampled: 64 at each of 16 even places of every tensor. A packed file records
 * the digest of its source, so that both have one fingerprint. It tells models apart; it
 * is no defence against forgery. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "import/import.h"

#include <string.h>

#define SAMPLES 16
#define SAMPLE_BYTES 64

static bool parse_hex(const char *text, uint8_t out[16])
{
    for (int i = 0; i < 32; i++) {
        char c = text[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (digit < 0)
            return false;
        out[i / 2] = (uint8_t)(i % 2 == 0 ? digit << 4 : out[i / 2] | digit);
    }
    return text[32] == '\0';
}

static void store_digest(const XXH3_state_t *state, uint8_t out[16])
{
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state));
    memcpy(out, canonical.digest, 16);
}

bitaxon_status bxn_import_digest(const bxn_tensors *tensors, bxn_progress *progress, uint8_t out[16],
                                 bitaxon_error *error)
{
    const char *recorded = bxn_tensors_meta(tensors, "bitaxon.tensors");
    if (recorded != NULL) {
        if (!parse_hex(recorded, out))
            return bxn_fail(error, BITAXON_FORMAT, "%s: metadata bitaxon.tensors is not 32 hex digits",
                            tensors->bundle->where);
        return BITAXON_OK;
    }
    XXH3_state_t state;
    XXH3_128bits_reset(&state);
    for (uint64_t i = 0; i < tensors->count; i++) {
        const bxn_tensor *tensor = &tensors->items[i];
        const uint64_t header[] = { (uint64_t)tensor->dtype, tensor->rank, tensor->bytes };
        XXH3_128bits_update(&state, tensor->name, strlen(tensor->name) + 1);
        XXH3_128bits_update(&state, header, sizeof header);
        XXH3_128bits_update(&state, tensor->shape, tensor->rank * sizeof tensor->shape[0]);
        uint8_t sample[SAMPLE_BYTES];
        for (uint64_t j = 0; j < SAMPLES && tensor->bytes != 0; j++) {
            uint64_t n = tensor->bytes < SAMPLE_BYTES ? tensor->bytes : SAMPLE_BYTES;
            uint64_t at = (tensor->bytes - n) / (SAMPLES - 1) * j;
            bitaxon_status status = bxn_tensor_read(tensors, tensor, at, sample, (size_t)n, error);
            if (status != BITAXON_OK)
                return status;
            XXH3_128bits_update(&state, sample, (size_t)n);
        }
        if (progress != NULL) {
            bitaxon_status status = bxn_progress_step(progress, progress->done, tensor->name, error);
            if (status != BITAXON_OK)
                return status;
        }
    }
    store_digest(&state, out);
    return BITAXON_OK;
}

bitaxon_status bxn_import_fingerprint(const bxn_config *config, const bxn_tensors *tensors,
                                      bxn_progress *progress, uint8_t out[16], bitaxon_error *error)
{
    uint8_t digest[16];
    bitaxon_status status = bxn_import_digest(tensors, progress, digest, error);
    if (status != BITAXON_OK)
        return status;
    XXH3_state_t state;
    XXH3_128bits_reset(&state);
    const uint64_t facts[] = {
        config->vocab_size, config->hidden_dim, config->num_layers, config->num_heads, config->d_source_model,
        config->ssm_d_state, config->ssm_d_conv, config->ssm_expand, config->swa_window_size,
        config->moe_num_experts, config->moe_top_k, config->moe_intermediate_dim, config->moe_shared_expert,
        config->weight_tying, config->final_norm,
    };
    XXH3_128bits_update(&state, facts, sizeof facts);
    const double reals[] = { config->rms_norm_eps, config->rope_theta };
    XXH3_128bits_update(&state, reals, sizeof reals);
    XXH3_128bits_update(&state, digest, sizeof digest);
    store_digest(&state, out);
    return BITAXON_OK;
}
