/* SPDX-License-Identifier: Apache-2.0 */
/* fault_host.h - a host for tests: memory that counts and refuses. Every block carries its
 * size and alignment, so that a free with other numbers is found; new blocks are filled with
 * rubbish, freed ones too. Threads may use one host at once. */
#ifndef FAULT_HOST_H
#define FAULT_HOST_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <bitaxon/host.h>

typedef struct fault_host {
    bitaxon_host host; /* give &fault.host */
    _Atomic uint64_t allocations; /* asked for since the last fault_host_arm */
    _Atomic uint64_t refused;     /* of these */
    _Atomic int64_t bytes;        /* alive */
    _Atomic int64_t peak;
    _Atomic int64_t blocks;
    _Atomic uint64_t wrong_frees; /* size or alignment not as allocated */
    _Atomic uint64_t log_lines;
    uint64_t fail_at;  /* the Nth allocation is refused; 0: none */
    bool persistent;   /* and every later one */
    int64_t ceiling;   /* 0: none; otherwise an allocation beyond it is counted */
    _Atomic uint64_t above_ceiling;
} fault_host;

void fault_host_init(fault_host *fault);
/* Count from here; refuse the Nth from now. */
void fault_host_arm(fault_host *fault, uint64_t fail_at, bool persistent);
void fault_host_disarm(fault_host *fault);
/* Nothing is alive and nothing was freed wrongly: "" or what is wrong. */
const char *fault_host_balance(const fault_host *fault);

/* Of this process. */
int count_descriptors(void);
int count_threads(void); /* waits a little for threads on their way out */

#endif
