/* SPDX-License-Identifier: Apache-2.0 */
/* sensors_macos.c - the system's thermal pressure level on macOS, which needs no privilege: a
 * notification whose state is 0 nominal, 1 moderate, 2 heavy, 3 trapping, 4 sleeping
 * (OSThermalNotification.h). Degrees, power and energy are left to a host's `read`. */
#include "thermal/bxn_thermal.h"

#if defined(__APPLE__)

#include <notify.h>
#include <stdio.h>
#include <string.h>

#define LEVEL "com.apple.system.thermalpressurelevel"

bitaxon_status bxn_sensors_open(bxn_sensors *s, const char *root, const char *wanted, bitaxon_error *error)
{
    (void)root;
    memset(s, 0, sizeof *s);
    if (wanted != NULL && strstr(LEVEL, wanted) == NULL)
        return bxn_fail(error, BITAXON_UNSUPPORTED, "the only sensor of this system is %s", LEVEL);
    snprintf(s->temperature_source, sizeof s->temperature_source, "thermal pressure level of the system");
    snprintf(s->power_source, sizeof s->power_source, "none (taken for mains)");
    snprintf(s->energy_source, sizeof s->energy_source, "none");
    return BITAXON_OK;
}

void bxn_sensors_read(bxn_sensors *s, bitaxon_reading *out)
{
    (void)s;
    memset(out, 0, sizeof *out);
    out->struct_size = sizeof *out;
    int token;
    uint64_t level = 0;
    if (notify_register_check(LEVEL, &token) != NOTIFY_STATUS_OK)
        return;
    if (notify_get_state(token, &level) == NOTIFY_STATUS_OK) {
        out->known = BITAXON_READ_PRESSURE;
        out->pressure = level >= 3 ? BITAXON_BAND_CRITICAL : (int32_t)level;
    }
    notify_cancel(token);
}

size_t bxn_sensors_list(const bxn_sensors *s, char *buffer, size_t capacity)
{
    (void)s;
    int n = snprintf(buffer, buffer != NULL ? capacity : 0, "thermal pressure\t?\t%s\n", LEVEL);
    return n < 0 ? 1 : (size_t)n + 1;
}
#endif
