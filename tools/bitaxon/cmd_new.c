/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_new.c - `bitaxon new`: a randomly initialised checkpoint of a preset or of a given
 * configuration. */
#include "tool.h"

#include <stdlib.h>
#include <string.h>

#include "tool_convert.h"
#include "tool_file.h"
#include "tool_options.h"

static const tool_usage usage = {
    "new", "--preset NAME|--config FILE DIR",
    "Write a randomly initialised checkpoint into the directory DIR. The same seed gives the\n"
    "same bytes. Memory stays near the largest tensor, whatever the size of the model.",
    1, 1};

typedef struct new_args {
    const char *preset;
    const char *config;
    const char *tokenizer;
    const char *format;
    const char *quantize;
    const char *embedding_format;
    uint64_t seed;
    uint32_t group_size;
    bool json;
} new_args;

static int check_args(const new_args *args)
{
    static const char *const presets[] = {"small", "medium", "default", "bitaxon-3b", "mini"};
    if ((args->preset == NULL) == (args->config == NULL)) {
        return tool_usage_error(usage.command, "give one of --preset and --config");
    }
    bool known = args->preset == NULL;
    for (size_t i = 0; i < sizeof presets / sizeof presets[0] && !known; i++) {
        known = strcmp(args->preset, presets[i]) == 0;
    }
    if (!known) {
        return tool_usage_error(usage.command,
                                "--preset: '%s' is not small, medium, default, bitaxon-3b or mini",
                                args->preset);
    }
    if (args->format != NULL && args->quantize != NULL) {
        return tool_usage_error(usage.command, "--format and --quantize are one option");
    }
    if (args->group_size != 32 && args->group_size != 64 && args->group_size != 128) {
        return tool_usage_error(usage.command, "--group-size: %u is not 32, 64 or 128",
                                (unsigned)args->group_size);
    }
    int code = tool_format_check(usage.command, "format", args->format);
    if (code == TOOL_OK) {
        code = tool_format_check(usage.command, "quantize", args->quantize);
    }
    if (code == TOOL_OK) {
        code = tool_format_check(usage.command, "embedding-format", args->embedding_format);
    }
    return code;
}

int cmd_new(int argc, char **argv)
{
    new_args args = {.group_size = 64};
    const tool_option options[] = {
        TOOL_TEXT("preset", 'p', "NAME", &args.preset,
                  "small, medium, default, bitaxon-3b or mini"),
        TOOL_TEXT("config", 0, "FILE", &args.config, "a config.json instead of a preset"),
        {TOOL_KIND_U64, "seed", 's', "N", "number the random weights come from (default: 0)",
         &args.seed, 0, TOOL_MAX_INTEGER, NULL},
        TOOL_TEXT("format", 'f', "NAME", &args.format,
                  "f32, f16, bf16, affine2, 3, 4, 5, 6 or 8, nf4 (default: f32)"),
        TOOL_TEXT("quantize", 0, "NAME", &args.quantize, "the same as --format"),
        TOOL_U32("group-size", 'g', &args.group_size, 32, 128,
                 "weights that share a scale: 32, 64 or 128 (default: 64)"),
        TOOL_TEXT("embedding-format", 0, "NAME", &args.embedding_format,
                  "format of embedding and head (default: affine8 with affine\n"
                  "formats, f16 with nf4, else the same)"),
        TOOL_TEXT("tokenizer", 0, "DIR", &args.tokenizer, "copy the tokenizer files of DIR"),
        TOOL_FLAG("json", 0, &args.json, "print one JSON object"),
        TOOL_OPTIONS_END};
    bitaxon_convert_params params = {.struct_size = sizeof params};
    char *config = NULL;
    size_t config_bytes = 0;
    int first = 0;
    int code = TOOL_OK;
    if (!tool_parse(&usage, options, argc, argv, &first, &code)) {
        return code;
    }
    code = check_args(&args);
    if (code == TOOL_OK && args.config != NULL) {
        code = tool_read_file(args.config, &config, &config_bytes);
        if (code == TOOL_OK && strlen(config) != config_bytes) {
            code = tool_error("%s: a zero byte at offset %zu is not JSON", args.config,
                              strlen(config));
        }
    }
    if (code == TOOL_OK) {
        params.input = args.preset;
        params.config_json = config;
        params.output = argv[first];
        params.format = args.format != NULL ? args.format : args.quantize;
        params.embedding_format = args.embedding_format;
        params.group_size = args.group_size;
        params.seed = args.seed;
        params.tokenizer = args.tokenizer;
        code = tool_convert(bitaxon_model_new, &params, "made", false, args.json);
    }
    free(config);
    return code;
}
