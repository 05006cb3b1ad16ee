/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_eval.h - what the files of `bitaxon eval` share. */
#ifndef BITAXON_CMD_EVAL_H
#define BITAXON_CMD_EVAL_H

#include "tool.h"

#include "tool_json.h"
#include "tool_model.h"
#include "tool_options.h"
#include "tool_thermal.h"

typedef struct eval_args {
    tool_model_args model;
    uint64_t context;
    uint64_t stride;
    uint64_t max_tokens;
    const char *choices;
    const char *questions;
    bool raw;
    uint64_t limit;
    uint64_t answer_tokens;
    uint64_t show;
    tool_thermal thermal;
    bool json;
} eval_args;

typedef struct eval_state {
    const eval_args *args;
    bitaxon_model *model;
    bitaxon_session *session;
    bitaxon_thermal *thermal;
    tool_progress progress;
    bool items; /* --choices, --questions */
    uint64_t context;
    uint64_t stride;
    uint64_t windows;
    uint64_t work_done; /* tokens read in finished windows */
    uint64_t work_total;
    /* of the scored tokens (Welford) */
    uint64_t scored;
    double mean;
    double squares;
    uint64_t bytes;
    double seconds;
} eval_state;

/* The records of a JSON Lines file, checked. */
typedef struct eval_items {
    const char *path;
    json_t **records;
    size_t *lines;
    size_t count;
} eval_items;

/* Both return TOOL_OK or, after a message, an exit code. */
int eval_items_load(const eval_args *args, eval_items *items);
void eval_items_free(eval_items *items);
int eval_items_run(eval_state *state, const eval_items *items);

#endif
