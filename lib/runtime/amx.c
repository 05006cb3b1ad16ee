/* SPDX-License-Identifier: Apache-2.0 */
/* amx.c - the permission to use the tiles of AMX, which Linux gives to a process on request
 * and for its whole life (kernel documentation, "Using XSTATE features in user space
 * applications"). Called when a model is opened whose host allowed it, and by checkkern. */
#include <errno.h>

#include "runtime/runtime.h"

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

static long system_prctl(void *context, int code, unsigned long argument)
{
    (void)context;
    return syscall(SYS_arch_prctl, code, argument) == 0 ? 0 : -(long)errno;
}
#else
static long system_prctl(void *context, int code, unsigned long argument)
{
    (void)context;
    (void)code;
    (void)argument;
    return -ENOSYS;
}
#endif

#define GET_PERMITTED 0x1022 /* ARCH_GET_XCOMP_PERM: argument is the address of a 64-bit mask */
#define REQUEST 0x1023       /* ARCH_REQ_XCOMP_PERM: argument is the number of the state */
#define TILE_DATA 18u        /* of XCR0 */

/* 0 when tile data is among what the process may use, else the error. */
static int permitted(bxn_arch_prctl call, void *context)
{
    uint64_t mask = 0;
    long result = call(context, GET_PERMITTED, (unsigned long)(uintptr_t)&mask);
    if (result != 0)
        return (int)-result;
    return (mask & (uint64_t)1 << TILE_DATA) != 0 ? 0 : EPERM;
}

int bxn_amx_request(bxn_arch_prctl call, void *context)
{
    if (call == NULL)
        call = system_prctl;
    int error = permitted(call, context);
    if (error != EPERM) /* already, or a system that knows nothing of it */
        return error;
    long result = call(context, REQUEST, TILE_DATA);
    return result != 0 ? (int)-result : permitted(call, context);
}
