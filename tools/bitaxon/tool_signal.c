/* SPDX-License-Identifier: Apache-2.0 */
/* tool_signal.c - Ctrl-C and its relatives. The handler notes the signal and cancels the
 * session or trainer at work; commands look at tool_signal() and clean up as after any failure. A
 * signal that was ignored when the program started stays ignored. */
#include "tool.h"

#include <signal.h>
#include <stdatomic.h>
#include <string.h>

/* A signal may arrive twice at once (sent to the process and to its group), so that only
 * one that comes later than this after the first is taken for impatience. */
enum { IMPATIENCE_NS = 1000000000 };

static volatile sig_atomic_t caught;
static _Atomic uint64_t caught_ns;
static _Atomic(bitaxon_session *) active_session;
static _Atomic(bitaxon_trainer *) active_trainer;

static void on_signal(int number)
{
    uint64_t now = tool_now_ns();
    if (caught != 0) {
        if (now - atomic_load(&caught_ns) > IMPATIENCE_NS) {
            signal(number, SIG_DFL);
            raise(number);
        }
        return;
    }
    atomic_store(&caught_ns, now);
    caught = number;
    bitaxon_session *session = atomic_load(&active_session);
    if (session != NULL) {
        bitaxon_session_cancel(session);
    }
    bitaxon_trainer_cancel(atomic_load(&active_trainer));
}

void tool_signals_install(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action;
    memset(&action, 0, sizeof action);
    sigemptyset(&action.sa_mask);
    action.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &action, NULL);
    action.sa_handler = on_signal; /* without SA_RESTART: a blocked read returns */
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        struct sigaction old;
        if (sigaction(numbers[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN) {
            sigaction(numbers[i], &action, NULL);
        }
    }
}

int tool_signal(void)
{
    return (int)caught;
}

void tool_signal_clear(void)
{
    caught = 0;
}

void tool_signal_session(bitaxon_session *session)
{
    atomic_store(&active_session, session);
    if (session != NULL && caught != 0) {
        bitaxon_session_cancel(session); /* it came just before */
    }
}

void tool_signal_trainer(bitaxon_trainer *trainer)
{
    atomic_store(&active_trainer, trainer);
    if (caught != 0) {
        bitaxon_trainer_cancel(trainer);
    }
}
