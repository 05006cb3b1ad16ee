/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_verify.c - `bitaxon verify`: check an untrusted model without running it. */
#include "tool.h"

#include <stdlib.h>
#include <string.h>

#include "tool_json.h"
#include "tool_model.h"
#include "tool_options.h"

static const tool_usage usage = {
    "verify", "MODEL",
    "Check a model completely without running it: structure, shapes, tokenizer, every value\n"
    "finite, checksum when the file has one. Exits with 1 when something is wrong.",
    1, 1};

static int verify(const char *path, bool json)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_convert_params params = {.struct_size = sizeof params};
    bitaxon_host host;
    tool_progress progress;
    tool_progress_init(&progress);
    tool_host(&host);
    params.host = &host;
    params.input = path;
    params.progress = tool_progress_library;
    params.user = &progress;
    bitaxon_status status = bitaxon_model_verify(&params, &error);
    tool_progress_clear(&progress);
    int code = status == BITAXON_OK ? TOOL_OK : tool_fail(status, &error);
    if (json) {
        json_t *object = tool_json_object();
        tool_json_set_string(object, "model", path);
        tool_json_set(object, "ok", json_boolean(status == BITAXON_OK));
        tool_json_set_string(object, "status", bitaxon_status_name(status));
        if (status != BITAXON_OK) {
            tool_json_set_string(object, "message", error.message);
        }
        tool_json_print(object);
    } else if (status == BITAXON_OK) {
        size_t count = 0;
        char *clean = tool_clean_text(path, strlen(path), true, &count);
        tool_out("%s: ok\n", clean);
        free(clean);
    }
    return code;
}

int cmd_verify(int argc, char **argv)
{
    bool json = false;
    const tool_option options[] = {TOOL_FLAG("json", 0, &json, "print one JSON object"),
                                   TOOL_OPTIONS_END};
    int first = 0;
    int code = TOOL_OK;
    if (!tool_parse(&usage, options, argc, argv, &first, &code)) {
        return code;
    }
    return verify(argv[first], json);
}
