/* SPDX-License-Identifier: Apache-2.0 */
/* bxn_convert.h - making model files: presets, the list of a configuration's tensors, their
 * first values, formats, streams of encoded rows, the output directory. Called by api;
 * files of this directory share it. Memory stays near the largest tensor. */
#ifndef BXN_CONVERT_H
#define BXN_CONVERT_H

#include <bitaxon/convert.h>

#include "import/import.h"

/* ---- entry points (arguments checked by api; params is of the full size) ------------ */

bitaxon_status bxn_convert_new(const bitaxon_convert_params *params, bitaxon_error *error);
bitaxon_status bxn_convert_quantize(const bitaxon_convert_params *params, bitaxon_error *error);
bitaxon_status bxn_convert_pack(const bitaxon_convert_params *params, bitaxon_error *error);
bitaxon_status bxn_convert_merge(const bitaxon_convert_params *params, bitaxon_error *error);
bitaxon_status bxn_convert_verify(const bitaxon_convert_params *params, bitaxon_error *error);

/* Where the values of a checkpoint come from: elements first ... of the named tensor, in the layout of files. */
typedef struct bxn_tensor_values {
    bitaxon_status (*read)(void *user, const char *name, uint64_t first, size_t count, float *out,
                           bitaxon_error *error);
    void *user;
} bxn_tensor_values;

/* A float checkpoint of `config` with these values in the directory params->output (host and progress are
 * taken too). source (nullable): files of the model that it was made from, for its metadata and keys of
 * config.json that are not ours, and its tokenizer unless another's files (nullable) are given. A value that is not
 * finite is FORMAT naming it. */
bitaxon_status bxn_convert_write(const bitaxon_convert_params *params, const bxn_config *config,
                                 bxn_bundle *source, bxn_bundle *tokenizer,
                                 const bxn_tensor_values *values, bitaxon_error *error);

/* ---- presets ---------------------------------------------------------------------- */

/* small, medium, default, bitaxon-3b, mini. INVALID_ARGUMENT listing the names. */
bitaxon_status bxn_preset(const char *name, bxn_config *out, bitaxon_error *error);

/* ---- tensors of a configuration --------------------------------------------------- */

typedef enum bxn_role {
    BXN_ROLE_EMBEDDING,
    BXN_ROLE_HEAD,
    BXN_ROLE_LINEAR,
    BXN_ROLE_EXPERTS,   /* a stack [X, out, in] */
    BXN_ROLE_SENSITIVE, /* router, shared expert's gate, x_proj */
    BXN_ROLE_VECTOR     /* norms, convolution, dt_proj, A_log, D: always float */
} bxn_role;

typedef enum bxn_init {
    BXN_INIT_ZERO,
    BXN_INIT_ONE,
    BXN_INIT_UNIFORM,  /* -bound .. bound */
    BXN_INIT_NORMAL,   /* deviation `bound` */
    BXN_INIT_LOG_RANGE /* ln(1), ln(2), ... along the last dimension */
} bxn_init;

#define BXN_PLAN_NAME 64

typedef struct bxn_plan_item {
    char name[BXN_PLAN_NAME]; /* "layer_0.ssm.in_proj.weight" */
    bxn_role role;
    bxn_init init;
    double bound;
    uint32_t rank;
    uint64_t shape[3];
    uint64_t elements;
} bxn_plan_item;

/* Every tensor of a configuration in the order of computation, spec 2.2; lm_head.weight last,
 * tied or not. */
typedef struct bxn_plan {
    bxn_plan_item *items;
    uint32_t count, capacity;
} bxn_plan;

bitaxon_status bxn_plan_build(bxn_mem *mem, const bxn_config *config, bxn_plan *out,
                              bitaxon_error *error);
void bxn_plan_free(bxn_mem *mem, bxn_plan *plan);
/* "P" of an item named "P.weight". */
void bxn_plan_prefix(const bxn_plan_item *item, char prefix[BXN_PLAN_NAME]);
/* Sum of elements; a tied head once. */
uint64_t bxn_plan_parameters(const bxn_plan *plan, bool untied);

/* ---- first values ----------------------------------------------------------------- */

/* Key of a tensor's values: a hash of its name. */
uint64_t bxn_init_key(const char *name);
/* Elements [first, first + count): a function of seed, key and element alone, computed
 * with +, -, *, / and sqrt only, so that every machine gets the same bits. */
void bxn_init_values(const bxn_plan_item *item, uint64_t seed, uint64_t key, uint64_t first,
                     size_t count, float *out);

/* ---- formats ---------------------------------------------------------------------- */

typedef enum bxn_target_kind {
    BXN_TARGET_COPY,
    BXN_TARGET_FLOAT,
    BXN_TARGET_AFFINE,
    BXN_TARGET_NF4
} bxn_target_kind;

typedef struct bxn_target {
    bxn_target_kind kind;
    bxn_dtype dtype; /* FLOAT: of the values; AFFINE: of scales and offsets */
    uint32_t bits, group;
} bxn_target;

/* A format's name to a target; INVALID_ARGUMENT naming `what` and the known ones. */
bitaxon_status bxn_target_parse(const char *name, const char *what, uint32_t group, bxn_target *out,
                                bitaxon_error *error);
/* What becomes of a tensor: by role, width and flags. */
bxn_target bxn_target_of(const bxn_plan_item *item, const bxn_target *format,
                         const bxn_target *embedding, uint32_t flags);
/* "affine4 g64 F16", "nf4 g64", "F16". */
void bxn_target_text(const bxn_target *target, char text[32]);

/* ---- one conversion --------------------------------------------------------------- */

typedef struct bxn_conversion {
    bxn_mem mem;
    const bitaxon_convert_params *params;
    bxn_target format, embedding;
    bxn_progress progress;
    uint64_t done;
    bxn_pool *pool;
    bitaxon_error *error;
    /* input */
    bxn_bundle *bundle;
    bxn_tensors *tensors;
    bxn_config config;
    bxn_plan plan;
} bxn_conversion;

/* Memory, formats, pool. Always followed by _free. */
bitaxon_status bxn_conversion_init(bxn_conversion *c, const bitaxon_convert_params *params,
                                   int32_t stage, const char *default_format, bitaxon_error *error);
void bxn_conversion_free(bxn_conversion *c);
/* The input: files, headers, configuration, plan, structure checked as opening would. */
bitaxon_status bxn_conversion_open(bxn_conversion *c);
bitaxon_status bxn_conversion_step(bxn_conversion *c, uint64_t bytes, const char *item);
bitaxon_status bxn_conversion_report(bxn_conversion *c, const bitaxon_tensor_report *report);
/* The head is the embedding: absent, or stored with the same bytes, and the configuration
 * ties them. */
bitaxon_status bxn_conversion_tied(bxn_conversion *c, bool *tied);

/* ---- the output directory --------------------------------------------------------- */

/* model.safetensors, config.json and tokenizer files of a directory that held none before.
 * config.json comes last; a failure removes whatever was made. The weights' metadata get
 * "bitaxon.checksum": XXH3-128 of the bytes put, in their order. */
typedef struct bxn_output bxn_output;

/* input: a directory that must not be the output; nullable. */
bitaxon_status bxn_output_open(bxn_conversion *c, const char *input, size_t align,
                               bxn_output **out);
bxn_st_writer *bxn_output_writer(bxn_output *out); /* for declarations */
/* Metadata of the input that describe the model, "format", the checksum's place; begins. */
bitaxon_status bxn_output_begin(bxn_output *out);
bitaxon_status bxn_output_put(bxn_output *out, const void *data, size_t bytes);
/* Commit everything. tokenizer: bundle whose tokenizer files are copied; nullable.
 * quantization: goes to config.json. Frees `out`, whatever the status. */
bitaxon_status bxn_output_commit(bxn_output *out, bxn_bundle *tokenizer,
                                 const bxn_target *quantization);
void bxn_output_abort(bxn_output *out); /* NULL is fine */

/* ---- streams ---------------------------------------------------------------------- */

/* One tensor on its way: where its values come from and what they become. */
typedef struct bxn_stream {
    const bxn_plan_item *item;
    const bxn_tensor *source; /* NULL: `row`, or first values */
    bxn_target target;
    /* Nullable: gives row `row` of the last dimension, on any thread; same values each time. */
    void (*row)(void *user, uint64_t row, float *out);
    void *user;
    uint64_t bytes_before; /* with `row`, for the report */
} bxn_stream;

/* Look through a source that is to be quantised: values finite, else FORMAT; affine scales
 * get F32 when f16 would lose them (stream->target.dtype). */
bitaxon_status bxn_stream_scan(bxn_conversion *c, bxn_stream *stream);
/* Declare its tensors, then (all declared, in the same order) put their bytes and report. */
bitaxon_status bxn_stream_declare(bxn_conversion *c, const bxn_stream *stream, bxn_output *out);
bitaxon_status bxn_stream_put(bxn_conversion *c, const bxn_stream *stream, bxn_output *out);
/* A tensor bit for bit, without a report. */
bitaxon_status bxn_stream_copy(bxn_conversion *c, const bxn_tensor *tensor, bxn_output *out);
/* Bytes that bxn_conversion_step will be told of. */
uint64_t bxn_stream_work(const bxn_stream *stream, bool scanned);

#endif
