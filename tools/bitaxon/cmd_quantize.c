/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_quantize.c - `bitaxon quantize`: a float checkpoint to a quantised one, with the size
 * and the error of every tensor. */
#include "tool.h"

#include "tool_convert.h"
#include "tool_options.h"

static const tool_usage usage = {
    "quantize", "IN OUT",
    "Quantise a float checkpoint IN into the directory OUT: projections, experts, bridges,\n"
    "embedding and head; the rest is copied bit for bit, as are config and tokenizer files.",
    2, 2};

int cmd_quantize(int argc, char **argv)
{
    bitaxon_convert_params params = {.struct_size = sizeof params};
    uint32_t group_size = 64;
    bool all_linears = false;
    bool json = false;
    const tool_option options[] = {
        TOOL_TEXT("format", 'f', "NAME", &params.format,
                  "affine2, 3, 4, 5, 6 or 8, nf4, f16, bf16, f32 (default: affine4)"),
        TOOL_U32("group-size", 'g', &group_size, 32, 128,
                 "weights that share a scale: 32, 64 or 128 (default: 64)"),
        TOOL_TEXT("embedding-format", 0, "NAME", &params.embedding_format,
                  "format of embedding and head (default: affine8 with affine\n"
                  "formats, f16 with nf4)"),
        TOOL_FLAG("all-linears", 0, &all_linears,
                  "also the router, the shared expert's gate and x_proj, where\n"
                  "errors cost most"),
        TOOL_FLAG("json", 0, &json, "print one JSON object"),
        TOOL_OPTIONS_END};
    int first = 0;
    int code = TOOL_OK;
    if (!tool_parse(&usage, options, argc, argv, &first, &code)) {
        return code;
    }
    code = tool_format_check(usage.command, "format", params.format);
    if (code == TOOL_OK) {
        code = tool_format_check(usage.command, "embedding-format", params.embedding_format);
    }
    if (code == TOOL_OK && group_size != 32 && group_size != 64 && group_size != 128) {
        code = tool_usage_error(usage.command, "--group-size: %u is not 32, 64 or 128",
                                (unsigned)group_size);
    }
    if (code != TOOL_OK) {
        return code;
    }
    params.input = argv[first];
    params.output = argv[first + 1];
    params.group_size = group_size;
    params.flags = all_linears ? BITAXON_CONVERT_ALL_LINEARS : 0;
    return tool_convert(bitaxon_model_quantize, &params, "quantized", true, json);
}
