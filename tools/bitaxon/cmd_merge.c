/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_merge.c - `bitaxon merge`: a model and an adapter, or several, to a model that gives the same without
 * them, with what was done to every tensor. */
#include "tool.h"

#include <stdlib.h>

#include "tool_convert.h"
#include "tool_model.h"
#include "tool_options.h"

static const tool_usage usage = {
    "merge", "MODEL ADAPTER[:WEIGHT] OUT",
    "Write the directory OUT: MODEL with the adapter in its weights. Quantised weights that\n"
    "change keep their bits and group; what does not change is copied bit for bit, as are\n"
    "config and tokenizer files.",
    3, 3};

int cmd_merge(int argc, char **argv)
{
    bitaxon_convert_params params = {.struct_size = sizeof params};
    tool_list adapters = {0};
    uint32_t group_size = 64;
    double scale = 0;
    bool json = false;
    const tool_option options[] = {
        TOOL_LIST("adapter", 0, "PATH[:WEIGHT]", &adapters,
                  "a further adapter; up to 3 times"),
        {TOOL_KIND_REAL, "scale", 's', "X",
         "scale of adapters, instead of what their files tell\n(of files that tell none: 20)",
         &scale, -1e6, 1e6, NULL},
        TOOL_TEXT("format", 'f', "NAME", &params.format,
                  "of changed weights: affine2, 3, 4, 5, 6 or 8, nf4, f16, bf16,\n"
                  "f32 (default: each as it was)"),
        TOOL_U32("group-size", 'g', &group_size, 32, 128,
                 "with --format: weights that share a scale: 32, 64 or 128\n(default: 64)"),
        TOOL_FLAG("json", 0, &json, "print one JSON object"),
        TOOL_OPTIONS_END};
    int first = 0;
    int code = TOOL_OK;
    if (!tool_parse(&usage, options, argc, argv, &first, &code)) {
        tool_list_free(&adapters);
        return code;
    }
    tool_list all = {.items = tool_alloc((adapters.count + 1) * sizeof *all.items)};
    all.items[all.count++] = argv[first + 1];
    for (size_t i = 0; i < adapters.count; i++) {
        all.items[all.count++] = adapters.items[i];
    }
    code = tool_adapters_check(usage.command, &all);
    if (code == TOOL_OK) {
        code = tool_format_check(usage.command, "format", params.format);
    }
    if (code == TOOL_OK && group_size != 32 && group_size != 64 && group_size != 128) {
        code = tool_usage_error(usage.command, "--group-size: %u is not 32, 64 or 128",
                                (unsigned)group_size);
    }
    if (code == TOOL_OK) {
        char *paths[BITAXON_MERGE_MAX] = {NULL};
        float weights[BITAXON_MERGE_MAX] = {0};
        for (size_t i = 0; i < all.count; i++) {
            paths[i] = tool_adapter_path(all.items[i], &weights[i]);
        }
        params.input = argv[first];
        params.output = argv[first + 2];
        params.group_size = group_size;
        params.adapters = (const char *const *)paths;
        params.adapter_weights = weights;
        params.adapter_count = (uint32_t)all.count;
        params.adapter_scale = (float)scale;
        code = tool_convert(bitaxon_model_merge, &params, "merged", true, json);
        for (size_t i = 0; i < all.count; i++) {
            free(paths[i]);
        }
    }
    tool_list_free(&all);
    tool_list_free(&adapters);
    return code;
}
