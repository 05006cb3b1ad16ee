/* SPDX-License-Identifier: Apache-2.0 */
/* tool_options.c - option tables over getopt_long. Each command declares a table; this file
 * turns it into getopt_long's arrays, checks every value, and prints --help from it. */
#include "tool_options.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_OPTIONS = 64, LONG_BASE = 256, HELP_VALUE = 1000, HELP_COLUMN = 28 };

bool tool_parse_u64(const char *text, size_t bytes, uint64_t *value)
{
    uint64_t sum = 0;
    if (bytes == 0) {
        return false;
    }
    for (size_t i = 0; i < bytes; i++) {
        unsigned digit = (unsigned)(unsigned char)text[i] - '0';
        if (digit > 9 || sum > (UINT64_MAX - digit) / 10) {
            return false;
        }
        sum = sum * 10 + digit;
    }
    *value = sum;
    return true;
}

bool tool_parse_real(const char *text, double *value)
{
    char *end = NULL;
    if (text[0] == '\0' || strspn(text, "+-.0123456789eE") != strlen(text)) {
        return false;
    }
    errno = 0;
    double number = strtod(text, &end);
    if (*end != '\0' || !isfinite(number)) {
        return false;
    }
    *value = number;
    return true;
}

static bool parse_size(const char *text, uint64_t *value)
{
    static const char letters[] = "KMGT";
    size_t digits = strspn(text, "0123456789");
    const char *unit = text + digits;
    unsigned shift = 0;
    if (*unit != '\0') {
        const char *letter = strchr(letters, *unit >= 'a' ? *unit - 'a' + 'A' : *unit);
        if (letter == NULL || !(unit[1] == '\0' || strcmp(unit + 1, "iB") == 0)) {
            return false;
        }
        shift = 10u * (unsigned)(letter - letters + 1);
    }
    uint64_t number;
    if (!tool_parse_u64(text, digits, &number) || number > (UINT64_MAX >> shift)) {
        return false;
    }
    *value = number << shift;
    return true;
}

static void list_add(tool_list *list, const char *item)
{
    list->items = tool_realloc(list->items, (list->count + 1) * sizeof *list->items);
    list->items[list->count++] = item;
}

void tool_list_free(tool_list *list)
{
    free(list->items);
    list->items = NULL;
    list->count = 0;
}

/* Store one value; returns false after a message. */
static bool store(const tool_usage *usage, const tool_option *option, const char *text)
{
    uint64_t integer = 0;
    double real = 0.0;
    switch (option->kind) {
    case TOOL_KIND_FLAG:
        *(bool *)option->value = true;
        return true;
    case TOOL_KIND_TEXT:
        *(const char **)option->value = text;
        return true;
    case TOOL_KIND_LIST:
        list_add(option->value, text);
        return true;
    case TOOL_KIND_SIZE:
        if (!parse_size(text, option->value)) {
            tool_usage_error(usage->command,
                             "--%s: '%s' is not a size (digits, then K, M, G or T or nothing)",
                             option->name, text);
            return false;
        }
        return true;
    case TOOL_KIND_U32:
    case TOOL_KIND_U64:
        if (!tool_parse_u64(text, strlen(text), &integer)) {
            tool_usage_error(usage->command, "--%s: '%s' is not a whole number", option->name,
                             text);
            return false;
        }
        real = (double)integer;
        break;
    default:
        if (!tool_parse_real(text, &real)) {
            tool_usage_error(usage->command, "--%s: '%s' is not a number", option->name, text);
            return false;
        }
        break;
    }
    if (real < option->min || real > option->max) {
        tool_usage_error(usage->command, "--%s: %s is outside %.10g to %.16g", option->name, text,
                         option->min, option->max);
        return false;
    }
    if (option->kind == TOOL_KIND_U32) {
        *(uint32_t *)option->value = (uint32_t)integer;
    } else if (option->kind == TOOL_KIND_U64) {
        *(uint64_t *)option->value = integer;
    } else {
        *(double *)option->value = real;
    }
    return true;
}

static void print_help_option(const char *name, int letter, const char *argument, const char *help)
{
    char left[64];
    char start[8] = "    ";
    if (letter != 0) {
        snprintf(start, sizeof start, "-%c, ", letter);
    }
    snprintf(left, sizeof left, "  %s--%s%s%s", start, name, argument != NULL ? " " : "",
             argument != NULL ? argument : "");
    int width = (int)strlen(left);
    if (width >= HELP_COLUMN) {
        tool_out("%s\n%*s", left, HELP_COLUMN, "");
    } else {
        tool_out("%-*s", HELP_COLUMN, left);
    }
    for (const char *line = help; line != NULL;) {
        const char *end = strchr(line, '\n');
        tool_out("%.*s\n", end != NULL ? (int)(end - line) : (int)strlen(line), line);
        if (end != NULL) {
            tool_out("%*s", HELP_COLUMN, "");
        }
        line = end != NULL ? end + 1 : NULL;
    }
}

static void print_help(const tool_usage *usage, const tool_option *options)
{
    tool_out("Usage: bitaxon %s [OPTION]... %s\n\n%s\n\nOptions:\n", usage->command,
             usage->arguments, usage->text);
    for (const tool_option *option = options; option->kind != TOOL_KIND_END; option++) {
        print_help_option(option->name, option->letter, option->argument, option->help);
    }
    print_help_option("help", 'h', NULL, "show this text");
    tool_out("\nExit codes: 0 done, 1 failed, 2 wrong usage, 130 cancelled with Ctrl-C.\n");
}

/* What getopt_long could not take. */
static void report_bad_option(const tool_usage *usage, const tool_option *options, int result,
                              char **argv)
{
    const tool_option *known = NULL;
    for (int i = 0; options[i].kind != TOOL_KIND_END; i++) {
        if (optopt != 0 && (optopt == options[i].letter || optopt == LONG_BASE + i)) {
            known = &options[i];
        }
    }
    if (known != NULL) {
        tool_usage_error(usage->command,
                         result == ':' ? "--%s needs a value: %s" : "--%s takes no value%s",
                         known->name, result == ':' ? known->argument : "");
    } else if (optopt > 0 && optopt < LONG_BASE) {
        tool_usage_error(usage->command, "unknown option '-%c'", optopt);
    } else {
        tool_usage_error(usage->command, "unknown or ambiguous option '%s'", argv[optind - 1]);
    }
}

bool tool_parse(const tool_usage *usage, const tool_option *options, int argc, char **argv,
                int *first, int *code)
{
    struct option longs[MAX_OPTIONS + 2];
    char letters[2 * MAX_OPTIONS + 4];
    int count = 0;
    size_t letter_count = 0;
    letters[letter_count++] = ':';
    letters[letter_count++] = 'h';
    for (; options[count].kind != TOOL_KIND_END; count++) {
        if (count == MAX_OPTIONS) {
            *code = tool_error("more than %d options in one table", MAX_OPTIONS);
            return false;
        }
        const tool_option *option = &options[count];
        bool flag = option->kind == TOOL_KIND_FLAG;
        longs[count] = (struct option){option->name, flag ? no_argument : required_argument, NULL,
                                       LONG_BASE + count};
        if (option->letter != 0) {
            letters[letter_count++] = (char)option->letter;
            if (!flag) {
                letters[letter_count++] = ':';
            }
        }
    }
    letters[letter_count] = '\0';
    longs[count] = (struct option){"help", no_argument, NULL, HELP_VALUE};
    longs[count + 1] = (struct option){NULL, 0, NULL, 0};

    *code = TOOL_USAGE;
    opterr = 0;
    for (;;) {
        int result = getopt_long(argc, argv, letters, longs, NULL);
        if (result == -1) {
            break;
        }
        if (result == HELP_VALUE || result == 'h') {
            print_help(usage, options);
            *code = TOOL_OK;
            return false;
        }
        const tool_option *option = NULL;
        for (int i = 0; i < count; i++) {
            if (result == LONG_BASE + i || (result > 0 && result == options[i].letter)) {
                option = &options[i];
            }
        }
        if (option == NULL) {
            report_bad_option(usage, options, result, argv);
            return false;
        }
        if (!store(usage, option, optarg)) {
            return false;
        }
        if (option->given != NULL) {
            *option->given = true;
        }
    }
    int arguments = argc - optind;
    if (arguments < usage->min_arguments) {
        tool_usage_error(usage->command, "%s: arguments are missing: %s", usage->command,
                         usage->arguments);
        return false;
    }
    if (arguments > usage->max_arguments) {
        tool_usage_error(usage->command, "%s: surplus argument '%s'", usage->command,
                         argv[optind + usage->max_arguments]);
        return false;
    }
    *first = optind;
    return true;
}
