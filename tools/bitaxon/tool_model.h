/* SPDX-License-Identifier: Apache-2.0 */
/* tool_model.h - options that several commands share: how a model is opened, how tokens are
 * chosen. Each has a macro with its rows of the option table. Functions return TOOL_OK or,
 * after a message, an exit code. */
#ifndef BITAXON_TOOL_MODEL_H
#define BITAXON_TOOL_MODEL_H

#include "tool.h"
#include "tool_options.h"

typedef struct tool_model_args {
    uint32_t threads;
    bool no_mmap;
    uint64_t max_bytes;
    const char *isa;
    const char *accuracy;
    const char *kv;
    const char *tokenizer;
    tool_list adapters; /* PATH or PATH:WEIGHT */
    double adapter_scale;
} tool_model_args;

#define TOOL_MODEL_OPTIONS(args)                                                                   \
    TOOL_U32("threads", 't', &(args)->threads, 1, 256,                                             \
             "threads that compute (default: all CPUs)"),                                          \
        TOOL_TEXT("isa", 0, "NAME", &(args)->isa,                                                  \
                  "c, avx2, avx512, avx512vnni, amx, neon, dotprod\nor i8mm (default: all that this CPU has)"), \
        TOOL_TEXT("accuracy", 0, "NAME", &(args)->accuracy,                                        \
                  "exact, near or fast products of quantised weights\n(default: near; in plain C exact)"), \
        {TOOL_KIND_SIZE,                                                                           \
         "max-bytes",                                                                              \
         0,                                                                                        \
         "SIZE",                                                                                   \
         "never hold more memory than this; K, M, G, T allowed",                                   \
         &(args)->max_bytes,                                                                       \
         0,                                                                                        \
         0,                                                                                        \
         NULL},                                                                                    \
        TOOL_FLAG("no-mmap", 0, &(args)->no_mmap, "read the weights instead of mapping them")

#define TOOL_KV_OPTION(args, default_text)                                                         \
    TOOL_TEXT("kv", 0, "TYPE", &(args)->kv,                                                        \
              "f16, f32, i8 or q4: type of the attention window (default: " default_text ")")

#define TOOL_TOKENIZER_OPTION(args)                                                                \
    TOOL_TEXT("tokenizer", 0, "DIR", &(args)->tokenizer,                                           \
              "tokenizer files to use instead of the model's own")

#define TOOL_ADAPTER_OPTIONS(args)                                                                 \
    TOOL_LIST("adapter", 0, "PATH[:WEIGHT]", &(args)->adapters,                                    \
              "an adapter to put on, with its weight (default: 1);\nup to 4 times"),               \
        {TOOL_KIND_REAL,                                                                           \
         "adapter-scale",                                                                          \
         0,                                                                                        \
         "X",                                                                                      \
         "scale of adapters, instead of what their files tell\n(of files that tell none: 20)",     \
         &(args)->adapter_scale,                                                                   \
         -1e6,                                                                                     \
         1e6,                                                                                      \
         NULL}

/* Check --isa, --accuracy, --kv and --adapter. Command names the one to ask for --help. */
int tool_model_args_check(const char *command, const tool_model_args *args);
/* BITAXON_KV_*; `fallback` when the option is absent. */
int32_t tool_kv_type(const tool_model_args *args, int32_t fallback);

/* Fill the parameters for bitaxon_model_open. `host` is filled and pointed to. */
void tool_model_params(const char *path, const tool_model_args *args, uint32_t flags,
                       tool_progress *progress, bitaxon_host *host, bitaxon_model_params *params);
/* A host whose warnings appear on standard error. */
void tool_host(bitaxon_host *host);
int tool_model_open(const char *path, const tool_model_args *args, uint32_t flags,
                    tool_progress *progress, bitaxon_model **model);

/* Open the adapters that --adapter names and put them on the session, which keeps them. */
int tool_adapters_put(bitaxon_model *model, const tool_model_args *args, bitaxon_session *session);
/* "PATH:0.5" to the path (free it) and 0.5; without a number at its end the weight is 1. */
char *tool_adapter_path(const char *text, float *weight);
int tool_adapters_check(const char *command, const tool_list *adapters);

/* An integer fact that every model has. */
int tool_model_integer(const bitaxon_model *model, const char *key, int64_t *value);

typedef struct tool_sampler_args {
    double temperature;
    uint32_t top_k;
    double top_p;
    double min_p;
    double repetition_penalty;
    uint64_t seed;
    bool greedy;
    bool given; /* any of the settings above */
    bool seed_given;
} tool_sampler_args;

#define TOOL_SAMPLER_DEFAULTS                                                                      \
    {                                                                                              \
        0.6, 50, 0.95, 0.0, 1.0, 0, false, false, false                                            \
    }

#define TOOL_SAMPLER_ROW_(kind, name, argument, value, min, max, given, help)                      \
    {                                                                                              \
        kind, name, 0, argument, help, value, min, max, given                                      \
    }

#define TOOL_SAMPLER_OPTIONS(args)                                                                 \
    TOOL_SAMPLER_ROW_(TOOL_KIND_REAL, "temperature", "X", &(args)->temperature, 0, 1000,           \
                      &(args)->given, "0 takes the likeliest token (default: 0.6)"),               \
        TOOL_SAMPLER_ROW_(TOOL_KIND_U32, "top-k", "N", &(args)->top_k, 0, 4294967295.0,            \
                          &(args)->given, "keep the N likeliest tokens; 0: all (default: 50)"),    \
        TOOL_SAMPLER_ROW_(TOOL_KIND_REAL, "top-p", "X", &(args)->top_p, 0, 1, &(args)->given,      \
                          "keep the likeliest tokens that add up to X; 1: all (default: 0.95)"),   \
        TOOL_SAMPLER_ROW_(TOOL_KIND_REAL, "min-p", "X", &(args)->min_p, 0, 0.9999, &(args)->given, \
                          "drop tokens below X times the likeliest (default: 0, off)"),            \
        TOOL_SAMPLER_ROW_(TOOL_KIND_REAL, "repetition-penalty", "X", &(args)->repetition_penalty,  \
                          1e-3, 1000, &(args)->given, "above 1: repeat less (default: 1, off)"),   \
        TOOL_SAMPLER_ROW_(TOOL_KIND_U64, "seed", "N", &(args)->seed, 0, TOOL_MAX_INTEGER,          \
                          &(args)->seed_given,                                                     \
                          "the same seed gives the same text (default: random)"),                  \
        TOOL_SAMPLER_ROW_(TOOL_KIND_FLAG, "greedy", NULL, &(args)->greedy, 0, 0, &(args)->given,   \
                          "always take the likeliest token")

/* Choose a random seed when none was given, and fill the library's struct. */
int tool_sampler_params(tool_sampler_args *args, bitaxon_sampler_params *params);

/* Tokens of a text. The caller frees *ids. */
int tool_tokenize(const bitaxon_model *model, const char *text, size_t bytes, uint32_t flags,
                  int32_t **ids, size_t *count);

/* "eos", "stop", "length", "context", "cancelled", "callback", "none". */
const char *tool_finish_name(int32_t finish);

#endif
