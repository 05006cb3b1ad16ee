/* SPDX-License-Identifier: Apache-2.0 */
/* tool_options.h - a command's options as one table, from which come both getopt_long's
 * input and the text of --help. Numbers are validated completely and in range. */
#ifndef BITAXON_TOOL_OPTIONS_H
#define BITAXON_TOOL_OPTIONS_H

#include "tool.h"

typedef enum tool_kind {
    TOOL_KIND_END = 0,
    TOOL_KIND_FLAG, /* bool */
    TOOL_KIND_TEXT, /* const char * */
    TOOL_KIND_LIST, /* tool_list: may be repeated */
    TOOL_KIND_U32,  /* uint32_t within [min, max] */
    TOOL_KIND_U64,  /* uint64_t within [min, max] */
    TOOL_KIND_SIZE, /* uint64_t bytes; K, M, G, T multiply by powers of 1024 */
    TOOL_KIND_REAL  /* double within [min, max] */
} tool_kind;

typedef struct tool_option {
    tool_kind kind;
    const char *name;
    int letter;           /* 0: none */
    const char *argument; /* its name in --help; NULL for a flag */
    const char *help;     /* lines separated by newlines */
    void *value;
    double min;
    double max;
    bool *given; /* nullable; set when the option is present */
} tool_option;

#define TOOL_FLAG(name, letter, value, help)                                                       \
    {                                                                                              \
        TOOL_KIND_FLAG, name, letter, NULL, help, value, 0, 0, NULL                                \
    }
#define TOOL_TEXT(name, letter, argument, value, help)                                             \
    {                                                                                              \
        TOOL_KIND_TEXT, name, letter, argument, help, value, 0, 0, NULL                            \
    }
#define TOOL_LIST(name, letter, argument, value, help)                                             \
    {                                                                                              \
        TOOL_KIND_LIST, name, letter, argument, help, value, 0, 0, NULL                            \
    }
#define TOOL_U32(name, letter, value, min, max, help)                                              \
    {                                                                                              \
        TOOL_KIND_U32, name, letter, "N", help, value, min, max, NULL                              \
    }
#define TOOL_U64(name, letter, value, min, max, help)                                              \
    {                                                                                              \
        TOOL_KIND_U64, name, letter, "N", help, value, min, max, NULL                              \
    }
#define TOOL_OPTIONS_END                                                                           \
    {                                                                                              \
        TOOL_KIND_END, NULL, 0, NULL, NULL, NULL, 0, 0, NULL                                       \
    }

/* Largest integers that are exact as double and in JSON. */
#define TOOL_MAX_INTEGER 9007199254740992.0

typedef struct tool_list {
    const char **items;
    size_t count;
} tool_list;

void tool_list_free(tool_list *list);

typedef struct tool_usage {
    const char *command;   /* "run" */
    const char *arguments; /* "MODEL [PROMPT]" */
    const char *text;      /* what it does */
    int min_arguments;
    int max_arguments;
} tool_usage;

/* Parse argv; positional arguments are argv[*first] .. argv[argc - 1] afterwards.
 * Returns true to go on; else *code is the exit code (after --help or a mistake). */
bool tool_parse(const tool_usage *usage, const tool_option *options, int argc, char **argv,
                int *first, int *code);

/* A whole text as a number; false when it is anything else. */
bool tool_parse_u64(const char *text, size_t bytes, uint64_t *value);
bool tool_parse_real(const char *text, double *value);

#endif
