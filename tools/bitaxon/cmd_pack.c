/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_pack.c - `bitaxon pack`: the same weights in the layout that the kernels use, so that
 * opening maps them in place. */
#include "tool.h"

#include "tool_convert.h"
#include "tool_options.h"

static const tool_usage usage = {
    "pack", "IN OUT",
    "Write the checkpoint IN into the directory OUT in the layout that the kernels use: it\n"
    "opens in milliseconds and computes the same bits. Config and tokenizer are copied.",
    2, 2};

int cmd_pack(int argc, char **argv)
{
    bitaxon_convert_params params = {.struct_size = sizeof params};
    bool json = false;
    const tool_option options[] = {TOOL_FLAG("json", 0, &json, "print one JSON object"),
                                   TOOL_OPTIONS_END};
    int first = 0;
    int code = TOOL_OK;
    if (!tool_parse(&usage, options, argc, argv, &first, &code)) {
        return code;
    }
    params.input = argv[first];
    params.output = argv[first + 1];
    return tool_convert(bitaxon_model_pack, &params, "packed", false, json);
}
