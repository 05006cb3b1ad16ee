/* SPDX-License-Identifier: Apache-2.0 */
/* model.h - an opened model: weights, configuration, tokenizer, thread pool.
 * A model is immutable and may be shared by any number of threads. Sessions and
 * caches hold a reference on it, so that handles may be freed in any order.
 *
 * Caveat: weights are mapped from the file where its layout allows; a file cut
 * short by another process while it is mapped raises SIGBUS in any reader. Open
 * with BITAXON_MODEL_NO_MMAP when the storage is not trusted to stay. */
#ifndef BITAXON_MODEL_H
#define BITAXON_MODEL_H

#include <bitaxon/base.h>
#include <bitaxon/host.h>
#include <bitaxon/source.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bitaxon_model bitaxon_model;

enum {
    BITAXON_MODEL_NO_MMAP = 1,        /* read weights into private memory */
    /* The process may ask the kernel for AMX (process-wide). Where there is AMX, prompts are then read with
     * products and attention in bf16 tiles, in the accuracies near and fast: see there. */
    BITAXON_MODEL_ALLOW_AMX = 2,
    BITAXON_MODEL_TOKENIZER_ONLY = 4, /* config.json is optional, weights are not opened */
    BITAXON_MODEL_NO_TOKENIZER = 8    /* do not read tokenizer.json */
};

/* How products with quantised weights are computed (docs/kernels.md has the definitions). Reading a
 * prompt and decoding are the same arithmetic in each; so are any split of a prompt, any
 * batch and any number of threads, to the bit. Unquantised weights, routing, the scan and
 * attention are computed in f32 in all of them.
 * With AMX (BITAXON_MODEL_ALLOW_AMX) near and fast read prompts (prefill, evaluate, score) in bf16:
 * products with quantised weights, 2.4e-3 each, and both products of attention with any type of
 * cache. They decode as stated here. Each token keeps how it was read: rewind, clones and
 * saved caches give its bits again. Exact is the same with AMX and without.
 * Errors: of one product of 2560 Gaussian inputs, relative to its root mean square. */
enum {
    BITAXON_ACCURACY_DEFAULT = 0, /* NEAR with any instruction set beyond plain C, else EXACT */
    BITAXON_ACCURACY_EXACT = 1,   /* activations in f32; 1.5e-7 */
    BITAXON_ACCURACY_NEAR = 2,    /* activations as integers of 16 bits (at most 32512 in 64 inputs; with
                                   * NF4 4095, and codes of 14 bits), sums exact; 2e-5, NF4 2e-4 */
    BITAXON_ACCURACY_FAST = 3     /* activations as integers of 8 bits; 6e-3, NF4 9e-3 */
};

typedef struct bitaxon_model_params {
    uint32_t struct_size;
    uint32_t flags;           /* BITAXON_MODEL_* */
    const bitaxon_host *host; /* NULL: defaults; copied */
    /* A directory with config.json and *.safetensors, or one .safetensors file
     * beside its config.json. NULL when `files` is given. */
    const char *path;
    const bitaxon_file *files; /* instead of path: the same files by name */
    uint32_t file_count;
    /* Threads that compute, the calling one included. 0: the CPUs this process
     * may use (affinity and cgroup quota). At most 256. Ignored with parallel_for.
     * The calling one needs 256 KiB of stack; the others have it. */
    uint32_t threads;
    /* BITAXON_CPU_* features the model may use; 0: all that are detected. Use
     * BITAXON_CPU_NONE to allow plain C only. */
    uint64_t cpu_mask;
    /* Bytes that the model, its mapped files, and all sessions and caches made
     * from it may hold at once. 0: no ceiling. */
    uint64_t max_bytes;
    bitaxon_progress_fn progress; /* nullable; BITAXON_STAGE_LOAD */
    void *progress_user;
    int32_t accuracy; /* BITAXON_ACCURACY_* */
    uint32_t reserved0;
    const char *tokenizer; /* a directory whose tokenizer files serve instead of the model's own; nullable */
} bitaxon_model_params;

#define BITAXON_CPU_NONE 0x8000000000000000u

/* Open a model.
 * Params:    params  see above.  out  the model; NULL on failure.
 * Returns:   OK, INVALID_ARGUMENT, IO, FORMAT (malformed config or weights),
 *            UNSUPPORTED, OUT_OF_MEMORY, LIMIT (max_bytes), CANCELLED, SYSTEM.
 * Ownership: free with bitaxon_model_free.
 * Thread:    any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_model_open(const bitaxon_model_params *params,
                                              bitaxon_model **out, bitaxon_error *error);

/* Drop the caller's reference. NULL is fine. Memory, threads and mappings go
 * with the last session or cache.  Thread: any-thread.  Since: 0.1 */
BITAXON_API void bitaxon_model_free(bitaxon_model *model);

/* What a model and a session would need, told from headers alone. */
typedef struct bitaxon_estimate {
    uint32_t struct_size;
    uint32_t reserved0;
    uint64_t mapped_bytes;     /* weights read in place from the file: shared, evictable */
    uint64_t model_bytes;      /* private bytes of the opened model, tokenizer included */
    uint64_t load_peak_bytes;  /* private bytes at the worst moment of opening */
    uint64_t session_bytes;    /* one session without its cache */
    uint64_t cache_bytes;      /* one cache, full window */
    uint64_t checkpoint_bytes; /* one checkpoint or one diverged clone, at most, KV of its window aside */
    /* Exact number of parameters, tied ones once (a stored float head counts as tied when the
     * configuration says so; opening compares the bytes). */
    uint64_t parameters;
    uint64_t active_parameters; /* of these, used per token */
} bitaxon_estimate;

struct bitaxon_cache_params;

/* Params:    params  as for open.  cache  as for bitaxon_cache_create; NULL: defaults.
 *            out  caller-owned, struct_size set.
 * Returns:   as bitaxon_model_open.  Thread: any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_model_estimate(const bitaxon_model_params *params,
                                                  const struct bitaxon_cache_params *cache,
                                                  bitaxon_estimate *out, bitaxon_error *error);

/* Integer facts of an opened model:
 *   config: vocab_size hidden_dim num_layers num_heads d_source_model ssm_d_state
 *     ssm_d_conv ssm_expand ssm_scan_step swa_window_size moe_num_experts moe_top_k
 *     moe_intermediate_dim moe_shared_expert weight_tying max_seq_len final_norm
 *   counts: parameters active_parameters tensors sublayers threads cpu_features
 *     eos_token_count tokenizer_vocab_size (0: no tokenizer) packed
 *   memory now: bytes_used bytes_peak mapped_bytes max_bytes
 * Params:    key  one of these.  out  the value.
 * Returns:   OK, INVALID_ARGUMENT (unknown key, named in the message).
 * Thread:    any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_model_info_int(const bitaxon_model *model, const char *key,
                                                  int64_t *out, bitaxon_error *error);

/* Facts as text or real numbers, in text: rms_norm_eps rope_theta architecture
 * path fingerprint (32 hex digits) tokenizer_fingerprint (of its vocabulary, merges and special
 * tokens, 32 hex digits; "none" without one) tied ("tied" or "untied") kernels (tier names)
 * accuracy ("exact", "near" or "fast": the one in use).
 * Params:    buffer, capacity  may be NULL, 0.  need  bytes with the terminator; nullable.
 * Returns:   OK; LIMIT when the buffer is too small (need is set); INVALID_ARGUMENT.
 * Thread:    any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_model_info_text(const bitaxon_model *model, const char *key,
                                                   char *buffer, size_t capacity, size_t *need,
                                                   bitaxon_error *error);

/* One tensor of the model's files, as stored. */
typedef struct bitaxon_tensor_info {
    uint32_t struct_size;
    uint32_t rank;
    const char *name;   /* lives as long as the model */
    const char *dtype;  /* "F32", "U32", ...; static */
    const char *format; /* "float", "affine4 g64", "nf4 g64", "packed affine4 g64"; static or as name */
    uint64_t shape[4];  /* logical shape: of the weight, not of its codes */
    uint64_t bytes;     /* in the file, scales and offsets included */
    uint32_t mapped;    /* 1: used in place */
    uint32_t reserved0;
} bitaxon_tensor_info;

/* Params:    index  0 .. tensors - 1 (info key "tensors").  out  caller-owned, struct_size set.
 * Returns:   OK, INVALID_ARGUMENT.  Thread: any-thread.  Since: 0.1 */
BITAXON_API bitaxon_status bitaxon_model_tensor_info(const bitaxon_model *model, uint64_t index,
                                                     bitaxon_tensor_info *out, bitaxon_error *error);

#ifdef __cplusplus
}
#endif
#endif
