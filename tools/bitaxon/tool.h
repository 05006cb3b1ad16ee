/* SPDX-License-Identifier: Apache-2.0 */
/* tool.h - what every command of `bitaxon` shares: exit codes, messages, memory, signals,
 * terminals, progress. Included first by every file of this folder, because it asks the
 * system headers for POSIX. The commands use the public headers of the library alone. */
#ifndef BITAXON_TOOL_H
#define BITAXON_TOOL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <bitaxon/bitaxon.h>

/* Exit codes; a command stopped by a signal exits with 128 + its number (Ctrl-C: 130). */
enum { TOOL_OK = 0, TOOL_FAILURE = 1, TOOL_USAGE = 2, TOOL_CANCELLED = 130 };

typedef int (*tool_command_fn)(int argc, char **argv);

int cmd_run(int argc, char **argv);
int cmd_chat(int argc, char **argv);
int cmd_merge(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_quantize(int argc, char **argv);
int cmd_pack(int argc, char **argv);
int cmd_verify(int argc, char **argv);
int cmd_new(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_logits(int argc, char **argv);
int cmd_thermal(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_train(int argc, char **argv);

/* ---- tool_message.c ---- */

/* "bitaxon: message" on standard error, one line; returns TOOL_FAILURE. */
int tool_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The same for a mistake on the command line; names `bitaxon COMMAND --help`. */
int tool_usage_error(const char *command, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Report a failed library call; returns the exit code (130 when cancelled). */
int tool_fail(bitaxon_status status, const bitaxon_error *error);

/* Memory for the command itself; a refusal ends the program with a message. */
void *tool_alloc(size_t size);
void *tool_realloc(void *old, size_t size);
char *tool_copy(const char *text, size_t bytes);

/* Standard output. A write that fails is remembered: tool_out_failed() tells, and
 * tool_out_close(), called once at the end of main, reports it. */
void tool_out(const char *format, ...) __attribute__((format(printf, 1, 2)));
void tool_out_bytes(const char *bytes, size_t count);
void tool_out_flush(void);
bool tool_out_failed(void);
int tool_out_close(int code);

/* A valid UTF-8 copy: an ill-formed part becomes U+FFFD, and so does, with `terminal`, every
 * control character but tab and newline (text of a model must not steer a terminal). */
char *tool_clean_text(const char *text, size_t bytes, bool terminal, size_t *count);

/* A name for a table's column, in ASCII: the middle of one that is too long is cut out.
 * buffer [columns + 1]; columns is 8 or more. */
void tool_fit_name(const char *name, size_t columns, char *buffer);

/* "1,234,567" and "1.23 GiB" into a caller's buffer; both return it. */
enum { TOOL_NUMBER_BYTES = 40 };
const char *tool_count_text(uint64_t value, char buffer[TOOL_NUMBER_BYTES]);
const char *tool_bytes_text(uint64_t bytes, char buffer[TOOL_NUMBER_BYTES]);

/* ---- tool_signal.c ---- */

/* Catch SIGINT, SIGTERM and SIGHUP; ignore SIGPIPE, so that writes tell. Another signal,
 * a second or more after one that was not taken note of, ends the program. */
void tool_signals_install(void);
/* The signal caught since the last tool_signal_clear, or 0. */
int tool_signal(void);
void tool_signal_clear(void);
/* The session that a signal cancels; NULL for none. */
void tool_signal_session(bitaxon_session *session);
/* The same for a trainer. */
void tool_signal_trainer(bitaxon_trainer *trainer);

/* ---- tool_progress.c ---- */

uint64_t tool_now_ns(void);

typedef struct tool_progress {
    bool enabled;
    bool shown;
    int32_t stage;
    uint64_t start_ns;
    uint64_t start_done;
    uint64_t shown_ns;
    struct bitaxon_thermal *thermal; /* nullable: its state follows the line when tokens are counted */
} tool_progress;

/* Progress appears on standard error when that is a terminal, and nowhere else. */
void tool_progress_init(tool_progress *progress);
/* One line with rate and time left; `stage` marks a new start of the clock when it changes. */
void tool_progress_show(tool_progress *progress, int32_t stage, const char *verb, const char *unit,
                        uint64_t done, uint64_t total);
void tool_progress_clear(tool_progress *progress);
/* As a bitaxon_progress_fn with a tool_progress as user; a caught signal cancels. */
int32_t tool_progress_library(void *user, const bitaxon_progress *progress);

#endif
