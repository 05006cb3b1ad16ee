/* SPDX-License-Identifier: Apache-2.0 */
/* sensors.c - counters that wrap, and the systems without sensors of their own. Called by
 * gate.c and the sensors of each system. */
#include "thermal/bxn_thermal.h"

#include <stdio.h>
#include <string.h>

uint64_t bxn_counter_add(bxn_counter *counter, uint64_t value)
{
    if (counter->begun) {
        if (value >= counter->last)
            counter->total += value - counter->last;
        else if (counter->range != 0 && counter->last <= counter->range)
            counter->total += counter->range - counter->last + value;
    }
    counter->last = value;
    counter->begun = true;
    return counter->total;
}

#if !defined(__linux__) && !defined(__APPLE__)
bitaxon_status bxn_sensors_open(bxn_sensors *s, const char *root, const char *wanted, bitaxon_error *error)
{
    (void)root;
    memset(s, 0, sizeof *s);
    if (wanted != NULL)
        return bxn_fail(error, BITAXON_UNSUPPORTED, "there are no built-in sensors for this system");
    snprintf(s->temperature_source, sizeof s->temperature_source, "none");
    snprintf(s->power_source, sizeof s->power_source, "none (taken for mains)");
    snprintf(s->energy_source, sizeof s->energy_source, "none");
    return BITAXON_OK;
}

void bxn_sensors_read(bxn_sensors *s, bitaxon_reading *out)
{
    (void)s;
    memset(out, 0, sizeof *out);
    out->struct_size = sizeof *out;
}

size_t bxn_sensors_list(const bxn_sensors *s, char *buffer, size_t capacity)
{
    (void)s;
    if (buffer != NULL && capacity != 0)
        buffer[0] = '\0';
    return 1;
}
#endif
