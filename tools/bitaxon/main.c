/* SPDX-License-Identifier: Apache-2.0 */
/* main.c - the command `bitaxon`: picks the command, answers --help and --version. Each
 * command is a file cmd_*.c over the library's public headers; tool_*.c is what they share. */
#include "tool.h"

#include <errno.h>
#include <fcntl.h>
#include <langinfo.h>
#include <locale.h>
#include <string.h>

typedef struct command {
    const char *name;
    const char *summary;
    tool_command_fn run;
} command;

static const command commands[] = {
    {"run", "continue a prompt, streaming", cmd_run},
    {"chat", "talk with a model", cmd_chat},
    {"inspect", "configuration, parameters, tensors, memory", cmd_inspect},
    {"eval", "perplexity and bits per byte of a text", cmd_eval},
    {"logits", "logits after each of given tokens, to a file", cmd_logits},
    {"bench", "speed beside the limits of this machine", cmd_bench},
    {"new", "write a randomly initialised model", cmd_new},
    {"train", "adapters or all parameters, on a data set", cmd_train},
    {"quantize", "float model to 2 to 8 bits", cmd_quantize},
    {"merge", "model and adapters to a model without", cmd_merge},
    {"pack", "model to the layout that opens fastest", cmd_pack},
    {"verify", "check an untrusted model without running it", cmd_verify},
    {"thermal", "sensors, and what the thermal policy would do", cmd_thermal},
};

enum { COMMAND_COUNT = sizeof commands / sizeof commands[0] };

static int print_help(void)
{
    tool_out("Usage: bitaxon COMMAND [OPTION]... [ARGUMENT]...\n"
             "Run, train and quantise hybrid language models on this machine.\n\nCommands:\n");
    for (int i = 0; i < COMMAND_COUNT; i++) {
        tool_out("  %-10s %s\n", commands[i].name, commands[i].summary);
    }
    tool_out("\n  -h, --help     show this text; 'bitaxon COMMAND --help' tells more\n"
             "  -V, --version  show the version\n");
    return TOOL_OK;
}

static int print_version(void)
{
    tool_out("bitaxon %s\n%s\n", bitaxon_version_string(), bitaxon_build_info());
    return TOOL_OK;
}

static int dispatch(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";
    if (bitaxon_abi_version() != BITAXON_ABI_VERSION) {
        return tool_error("the library has ABI version %u, this command needs %u",
                          (unsigned)bitaxon_abi_version(), (unsigned)BITAXON_ABI_VERSION);
    }
    if (strcmp(name, "") == 0) {
        return tool_usage_error("", "no command");
    }
    bool help = strcmp(name, "help") == 0;
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || (help && argc == 2)) {
        return print_help();
    }
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
        return print_version();
    }
    if (help) {
        name = argv[2];
    }
    for (int i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(name, commands[i].name) == 0) {
            char option[] = "--help";
            char *asked[] = {argv[argc > 2 ? 2 : 1], option, NULL};
            return help ? commands[i].run(2, asked) : commands[i].run(argc - 1, argv + 1);
        }
    }
    return tool_usage_error("", "unknown command '%s'", name);
}

/* A standard stream that the caller closed must not become a file that is opened later:
 * its number is taken by something on which every read or write fails. */
static void fill_standard_streams(void)
{
    for (int i = 0; i <= 2; i++) {
        if (fcntl(i, F_GETFD) == -1 && errno == EBADF) {
            int got = open("/dev/null", i == 0 ? O_WRONLY : O_RDONLY);
            (void)got; /* the lowest free number, that is i */
        }
    }
}

int main(int argc, char **argv)
{
    fill_standard_streams();
    /* Text is UTF-8; numbers keep the C locale's form. */
    if (setlocale(LC_CTYPE, "") == NULL || strcmp(nl_langinfo(CODESET), "UTF-8") != 0) {
        setlocale(LC_CTYPE, "C.UTF-8");
    }
    tool_signals_install();
    return tool_out_close(dispatch(argc, argv));
}
