/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_bench_peer.c - `bitaxon bench --compare`: llama.cpp's llama-bench as a child process, once
 * for each thing that was measured of our own model, with the same number of threads. Its JSON
 * comes through a pipe. A signal, or the end of the time, ends the child. */
#include "cmd_bench.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <jansson.h>

enum { MAX_OUTPUT = 4 << 20, POLL_MS = 100, PEER_TOKENS = 32 };

typedef struct peer_test {
    uint64_t prompt, generate, depth;
    uint32_t repeats;
} peer_test;

/* In the child: never returns. */
static void become(const bench_run *run, const peer_test *test, int output)
{
    char number[5][24];
    snprintf(number[0], sizeof number[0], "%u", run->threads);
    snprintf(number[1], sizeof number[1], "%llu", (unsigned long long)test->prompt);
    snprintf(number[2], sizeof number[2], "%llu", (unsigned long long)test->generate);
    snprintf(number[3], sizeof number[3], "%llu", (unsigned long long)test->depth);
    snprintf(number[4], sizeof number[4], "%u", test->repeats);
    int null = open("/dev/null", O_RDWR);
    if (null >= 0) {
        dup2(null, STDIN_FILENO);
        dup2(null, STDERR_FILENO);
    }
    dup2(output, STDOUT_FILENO);
    /* Without a model: the program's own default, or what a wrapper adds. */
    const char *program = run->args->compare;
    const char *model = run->args->compare_model;
    execl(program, program, "-o", "json", "-t", number[0], "-p", number[1], "-n", number[2], "-d",
          number[3], "-r", number[4], model != NULL ? "-m" : (char *)NULL, model, (char *)NULL);
    _exit(127);
}

/* Everything that the child writes; NULL when it was stopped. */
static char *collect(bench_run *run, pid_t child, int input, size_t *size)
{
    char *text = tool_alloc(MAX_OUTPUT);
    *size = 0;
    for (;;) {
        struct pollfd ready = {.fd = input, .events = POLLIN};
        int count = poll(&ready, 1, POLL_MS);
        if (bench_stopped(run) || *size == MAX_OUTPUT) {
            kill(child, SIGKILL);
            free(text);
            return NULL;
        }
        if (count <= 0) {
            continue;
        }
        ssize_t got = read(input, text + *size, MAX_OUTPUT - *size);
        if (got == 0 || (got < 0 && errno != EINTR && errno != EAGAIN)) {
            return text;
        }
        *size += got > 0 ? (size_t)got : 0;
    }
}

static void take_samples(bench_run *run, const json_t *result, bench_peer_row *row)
{
    const json_t *samples = json_object_get(result, "samples_ts");
    const char *commit = json_string_value(json_object_get(result, "build_commit"));
    const char *type = json_string_value(json_object_get(result, "model_type"));
    json_int_t bytes = json_integer_value(json_object_get(result, "model_size"));
    for (size_t i = 0; i < json_array_size(samples); i++) {
        bench_add(&row->value, json_number_value(json_array_get(samples, i)));
    }
    size_t count = 0;
    char text[128];
    snprintf(text, sizeof text, "%.40s, %.60s, %.0f MB", commit != NULL ? commit : "unknown build",
             type != NULL ? type : "unknown model", (double)bytes * 1e-6);
    char *clean = tool_clean_text(text, strlen(text), true, &count);
    snprintf(run->peer_name, sizeof run->peer_name, "%.*s", (int)count, clean);
    free(clean);
}

/* The result of the array that is of this test. */
static const json_t *find_result(const json_t *root, const peer_test *test)
{
    for (size_t i = 0; i < json_array_size(root); i++) {
        const json_t *result = json_array_get(root, i);
        if ((uint64_t)json_integer_value(json_object_get(result, "n_prompt")) == test->prompt &&
            (uint64_t)json_integer_value(json_object_get(result, "n_gen")) == test->generate &&
            (uint64_t)json_integer_value(json_object_get(result, "n_depth")) == test->depth) {
            return result;
        }
    }
    return NULL;
}

static int run_test(bench_run *run, const peer_test *test, const char *key, const char *name)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) {
        return tool_error("--compare: no pipe: %s", strerror(errno));
    }
    pid_t child = fork();
    if (child == 0) {
        become(run, test, ends[1]);
    }
    close(ends[1]);
    if (child < 0) {
        close(ends[0]);
        return tool_error("--compare: no process: %s", strerror(errno));
    }
    size_t size = 0;
    int state = 0;
    char *text = collect(run, child, ends[0], &size);
    close(ends[0]);
    while (waitpid(child, &state, 0) < 0 && errno == EINTR) {
    }
    if (text == NULL) {
        return bench_stopped(run) ? TOOL_OK : tool_error("--compare: %s writes without end", run->args->compare);
    }
    json_t *root = json_loadb(text, size, 0, NULL);
    const json_t *result = find_result(root, test);
    int code = TOOL_OK;
    free(text);
    if (!WIFEXITED(state) || WEXITSTATUS(state) != 0) {
        code = tool_error("--compare: %s failed (%s %d)", run->args->compare,
                          WIFEXITED(state) ? "exit code" : "signal",
                          WIFEXITED(state) ? WEXITSTATUS(state) : WTERMSIG(state));
    } else if (result == NULL) {
        code = tool_error("--compare: %s printed no result in JSON for %s", run->args->compare, name);
    } else {
        bench_peer_row *row = &run->peers[run->peer_count++];
        memset(row, 0, sizeof *row);
        snprintf(row->name, sizeof row->name, "%s", name);
        snprintf(row->key, sizeof row->key, "%s", key);
        take_samples(run, result, row);
    }
    json_decref(root);
    return code;
}

/* The prompts of up to 2048 tokens that were measured, decode of an empty context (against ours of a short
 * one), and decode at the depth of our full window. */
int bench_measure_peer(bench_run *run)
{
    int code = TOOL_OK;
    bench_buffer_drop(run);
    bench_batch_free(run);
    for (uint32_t i = 0; i < run->length_count && code == TOOL_OK; i++) {
        char key[32];
        char name[48];
        peer_test test = {.prompt = run->lengths[i], .repeats = run->lengths[i] <= 512 ? 5 : 3};
        snprintf(key, sizeof key, "prefill_%llu", (unsigned long long)test.prompt);
        snprintf(name, sizeof name, "prefill, %llu tokens", (unsigned long long)test.prompt);
        if (test.prompt <= 2048 && bench_row_find(run, key) != NULL &&
            bench_go_on(run, name, 0, 1, 1.0)) {
            code = run_test(run, &test, key, name);
        }
    }
    peer_test short_test = {.generate = PEER_TOKENS, .repeats = 5};
    if (code == TOOL_OK && bench_row_find(run, "decode_short") != NULL &&
        bench_go_on(run, "decode, short context", 0, 1, 1.0)) {
        code = run_test(run, &short_test, "decode_short", "decode, short context");
    }
    peer_test window_test = {.generate = PEER_TOKENS, .depth = run->facts.window, .repeats = 3};
    if (code == TOOL_OK && bench_row_find(run, "decode_window") != NULL &&
        bench_go_on(run, "decode, full window", 0, 1, 1.0)) {
        char name[48];
        snprintf(name, sizeof name, "decode, %llu tokens before", (unsigned long long)run->facts.window);
        code = run_test(run, &window_test, "decode_window", name);
    }
    return code;
}
