/* SPDX-License-Identifier: Apache-2.0 */
/* tool_line.c - lines for `chat`. libedit's own reader swallows the first interruption of a
 * read, so that Ctrl-C at the prompt would be lost; read_character below ends the line. */
#include "tool_line.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wchar.h>

#ifdef HAVE_LIBEDIT
#include <histedit.h>
#endif

struct tool_line {
    char *prompt;
    char *buffer;
    size_t capacity;
#ifdef HAVE_LIBEDIT
    EditLine *editor; /* NULL: plain */
    History *history;
#endif
};

#ifdef HAVE_LIBEDIT
static char *get_prompt(EditLine *editor)
{
    void *data = NULL;
    el_get(editor, EL_CLIENTDATA, &data);
    return ((tool_line *)data)->prompt;
}

/* One character from the terminal: 1, or 0 at the end or after a signal. */
static int read_character(EditLine *editor, wchar_t *character)
{
    mbstate_t state;
    memset(&state, 0, sizeof state);
    (void)editor;
    for (;;) {
        char byte;
        ssize_t got = read(STDIN_FILENO, &byte, 1);
        if (got < 0 && errno == EINTR && tool_signal() == 0) {
            continue;
        }
        if (got <= 0) {
            return 0;
        }
        size_t used = mbrtowc(character, &byte, 1, &state);
        if (used == (size_t)-1) {
            *character = L'?';
            return 1;
        }
        if (used != (size_t)-2) {
            return 1;
        }
    }
}

static void open_editor(tool_line *line)
{
    HistEvent event;
    if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO)) {
        return;
    }
    line->editor = el_init("bitaxon", stdin, stdout, stderr);
    line->history = history_init();
    if (line->editor == NULL || line->history == NULL) {
        if (line->editor != NULL) {
            el_end(line->editor);
        }
        if (line->history != NULL) {
            history_end(line->history);
        }
        line->editor = NULL;
        line->history = NULL;
        return;
    }
    history(line->history, &event, H_SETSIZE, 1000);
    history(line->history, &event, H_SETUNIQUE, 1);
    el_set(line->editor, EL_CLIENTDATA, line);
    el_set(line->editor, EL_PROMPT, get_prompt);
    el_set(line->editor, EL_EDITOR, "emacs");
    el_set(line->editor, EL_SIGNAL, 0);
    el_set(line->editor, EL_HIST, history, line->history);
    el_set(line->editor, EL_GETCFN, read_character);
    el_source(line->editor, NULL);
}

static const char *edit_line(tool_line *line, size_t *bytes)
{
    HistEvent event;
    int count = 0;
    const char *text = el_gets(line->editor, &count);
    if (text == NULL || count <= 0 || tool_signal() != 0) {
        return NULL;
    }
    if (text[0] != '\n') {
        history(line->history, &event, H_ENTER, text);
    }
    *bytes = (size_t)count;
    return text;
}
#endif

tool_line *tool_line_open(const char *prompt)
{
    tool_line *line = tool_alloc(sizeof *line);
    line->prompt = tool_copy(prompt, strlen(prompt));
#ifdef HAVE_LIBEDIT
    open_editor(line);
#endif
    return line;
}

static const char *plain_line(tool_line *line, size_t *bytes)
{
    if (isatty(STDIN_FILENO)) {
        tool_out("%s", line->prompt);
        tool_out_flush();
    }
    ssize_t got = getline(&line->buffer, &line->capacity, stdin);
    if (got < 0 || tool_signal() != 0) {
        return NULL;
    }
    *bytes = (size_t)got;
    return line->buffer;
}

const char *tool_line_read(tool_line *line, size_t *bytes)
{
    const char *text = NULL;
#ifdef HAVE_LIBEDIT
    text = line->editor != NULL ? edit_line(line, bytes) : plain_line(line, bytes);
#else
    text = plain_line(line, bytes);
#endif
    while (text != NULL && *bytes > 0 && (text[*bytes - 1] == '\n' || text[*bytes - 1] == '\r')) {
        *bytes -= 1;
    }
    return text;
}

void tool_line_close(tool_line *line)
{
    if (line == NULL) {
        return;
    }
#ifdef HAVE_LIBEDIT
    if (line->editor != NULL) {
        el_end(line->editor);
        history_end(line->history);
    }
#endif
    free(line->buffer);
    free(line->prompt);
    free(line);
}
