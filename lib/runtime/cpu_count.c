/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_count.c - how many CPUs this process may keep busy: those in its affinity mask, or fewer
 * when its control group pays for fewer. Called where a thread count was not given; reads
 * the environment of the process afresh each time. */
#include "runtime/runtime.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST_CPUS 256u

/* The beginning of a small file as text; false when it cannot be read. */
static bool read_small(const char *path, char *buffer, size_t capacity)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, buffer, capacity - 1);
    close(fd);
    if (n < 0)
        return false;
    buffer[n] = '\0';
    return true;
}

/* quota / period in whole CPUs, at least 1. */
static uint32_t whole_cpus(unsigned long long quota, unsigned long long period)
{
    double cpus = (double)quota / (double)period;
    return cpus <= 1 ? 1 : cpus >= MOST_CPUS ? MOST_CPUS : (uint32_t)(cpus + 0.5);
}

/* The second version of control groups: the quota of the group and of every group above it. */
static uint32_t unified_cpus(char *group, const char *mount)
{
    uint32_t least = 0;
    for (;;) {
        char path[4352], text[128];
        unsigned long long quota, period;
        int n = snprintf(path, sizeof path, "%s%s/cpu.max", mount, group);
        if (n > 0 && (size_t)n < sizeof path && read_small(path, text, sizeof text) &&
            sscanf(text, "%llu %llu", &quota, &period) == 2 && quota > 0 && period > 0) {
            uint32_t cpus = whole_cpus(quota, period);
            least = least == 0 || cpus < least ? cpus : least;
        }
        char *slash = strrchr(group, '/');
        if (slash == NULL)
            return least;
        *slash = '\0';
    }
}

uint32_t bxn_quota_cpus(const char *membership, const char *mount)
{
    char groups[4096], path[4352], text[128], other[128];
    uint32_t cpus = 0;
    if (read_small(membership, groups, sizeof groups)) {
        char *line = strstr(groups, "0::/");
        if (line != NULL && (line == groups || line[-1] == '\n')) {
            line += 3;
            line[strcspn(line, "\n")] = '\0';
            if (strcmp(line, "/") == 0)
                *line = '\0';
            cpus = unified_cpus(line, mount);
        }
    }
    unsigned long long quota, period;
    snprintf(path, sizeof path, "%s/cpu/cpu.cfs_quota_us", mount);
    if (cpus == 0 && read_small(path, text, sizeof text) && text[0] != '-' &&
        sscanf(text, "%llu", &quota) == 1) {
        snprintf(path, sizeof path, "%s/cpu/cpu.cfs_period_us", mount);
        if (read_small(path, other, sizeof other) && sscanf(other, "%llu", &period) == 1 &&
            quota > 0 && period > 0)
            cpus = whole_cpus(quota, period);
    }
    return cpus;
}

uint32_t bxn_cpu_count(void)
{
    uint32_t cpus = 0;
#ifdef CPU_COUNT
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        cpus = (uint32_t)CPU_COUNT(&set);
#endif
    if (cpus == 0) {
        long online = sysconf(_SC_NPROCESSORS_ONLN);
        cpus = online > 0 ? (uint32_t)online : 1;
    }
    uint32_t quota = bxn_quota_cpus("/proc/self/cgroup", "/sys/fs/cgroup");
    if (quota != 0 && quota < cpus)
        cpus = quota;
    return cpus > MOST_CPUS ? MOST_CPUS : cpus;
}
