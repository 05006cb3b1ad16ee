/* SPDX-License-Identifier: Apache-2.0 */
/* convert.h - making model files: new, quantise, pack, merge, verify.
 * Each streams tensor by tensor: memory stays near the largest tensor. Output
 * goes to a temporary name in the output directory and is renamed when complete;
 * a failure or a cancel leaves no partial file. */
#ifndef BITAXON_CONVERT_H
#define BITAXON_CONVERT_H

#include <bitaxon/base.h>
#include <bitaxon/host.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What was done with one tensor. */
typedef struct bitaxon_tensor_report {
    uint32_t struct_size;
    uint32_t changed;       /* 0: copied bit for bit */
    const char *name;       /* valid during the call */
    const char *format;     /* "affine4 g64 F16", "nf4 g64", "F16", ... */
    uint64_t bytes_before;
    uint64_t bytes_after;
    double relative_rms;    /* of the error against the input; 0 when copied */
    double max_error;
} bitaxon_tensor_report;

typedef struct bitaxon_convert_params {
    uint32_t struct_size;
    uint32_t flags;           /* BITAXON_CONVERT_* */
    const bitaxon_host *host; /* nullable */
    const char *input;        /* directory or .safetensors file; for new: a preset's name */
    /* Directory, made when missing; not the input, and without model files of its own (IO):
     * nothing is ever replaced. Ignored by verify. */
    const char *output;
    /* "affine4", "affine8", "affine2|3|5|6", "nf4", "f32", "f16", "bf16". quantize:
     * default "affine4". new: default "f32". merge: of the changed weights; default: each as it
     * was. Ignored by pack and verify. */
    const char *format;
    /* Format of the embedding and a head of its own: as `format`; NULL: "affine8" with
     * affine formats, "f16" with nf4, else as `format`. */
    const char *embedding_format;
    uint32_t group_size; /* 32, 64 or 128; 0: 64 */
    uint32_t reserved0;
    uint64_t seed;       /* new */
    const char *tokenizer; /* new: directory whose tokenizer files are copied; nullable */
    const char *config_json; /* new: a config.json text instead of a preset; nullable */
    bitaxon_progress_fn progress; /* nullable */
    int32_t (*report)(void *user, const bitaxon_tensor_report *tensor); /* nullable; non-zero cancels */
    void *user; /* for progress and report */
    const char *const *adapters;  /* merge [adapter_count]: files or directories (adapter.h) */
    const float *adapter_weights; /* merge [adapter_count]; nullable: 1 each */
    uint32_t adapter_count;       /* 1 .. BITAXON_MERGE_MAX */
    float adapter_scale;          /* 0: by each file; of one that tells none 20, with a warning in the log */
} bitaxon_convert_params;

#define BITAXON_MERGE_MAX 4 /* adapters merged together */

enum {
    /* quantize: also the router, the shared expert's gate and x_proj, which are
     * left in float by default because errors there cost most. */
    BITAXON_CONVERT_ALL_LINEARS = 1
};

/* Write a randomly initialised checkpoint of a preset: small, medium, default,
 * bitaxon-3b, mini. The same seed gives the same bytes.
 * Returns:   OK, INVALID_ARGUMENT, IO, OUT_OF_MEMORY, CANCELLED.
 * Thread:    any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_model_new(const bitaxon_convert_params *params,
                                             bitaxon_error *error);

/* Float checkpoint to a quantised one: projections, experts, bridges, embedding and
 * head; norms, convolution, A_log, D, dt_proj (and see flags) stay as they are.
 * A tensor whose input width the group size does not divide is copied and reported.
 * config.json and tokenizer files are copied.
 * Returns:   as new; UNSUPPORTED when the input is quantised already.
 * Thread:    any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_model_quantize(const bitaxon_convert_params *params,
                                                  bitaxon_error *error);

/* Any checkpoint to the layout that the kernels use, for mapping in place. The
 * model computes the same bits before and after.
 * Returns:   as new.  Thread: any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_model_pack(const bitaxon_convert_params *params,
                                              bitaxon_error *error);

/* A checkpoint and adapters made for it to a new checkpoint that gives what the adapted model gives, without
 * adapters: W becomes W + sum of weights[i] * (W_i - W), where W_i is what adapter i makes of it. Weights
 * that none of them changes, and all other tensors, are copied bit for bit. Changed ones are written in
 * the form they had: float of their type, or quantised anew with their bits and group (packed ones unpacked);
 * or all in `format`. config.json and tokenizer files are copied.
 * Returns:   as new; MISMATCH when an adapter was made for another model; what bitaxon_adapter_open
 *            returns of its file; UNSUPPORTED when a merged value does not fit its float type.
 * Thread:    any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_model_merge(const bitaxon_convert_params *params,
                                               bitaxon_error *error);

/* Check an untrusted model completely without running it: structure, shapes,
 * tokenizer, every value finite, checksum when the file has one.
 * Returns:   OK, or what open would return, or FORMAT naming the first bad value.
 * Thread:    any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_model_verify(const bitaxon_convert_params *params,
                                                bitaxon_error *error);

#ifdef __cplusplus
}
#endif
#endif
