/* SPDX-License-Identifier: Apache-2.0 */
/* api_thermal.c - the public functions of thermal.h: argument checks, references, text. */
#include "api/api.h"

#include <stdio.h>
#include <string.h>

bitaxon_status bitaxon_thermal_create(const bitaxon_thermal_params *params, bitaxon_thermal **out,
                                      bitaxon_error *error)
{
    bitaxon_thermal_params own;
    if (out == NULL)
        return bxn_null(error, "out");
    *out = NULL;
    bitaxon_status status = bxn_copy_params(params, &own, sizeof own, sizeof own, "bitaxon_thermal_params", error);
    if (status != BITAXON_OK)
        return status;
    bxn_mem mem;
    void *memory;
    status = bxn_mem_init(&mem, own.host, 0, error);
    if (status == BITAXON_OK)
        status = bxn_alloc(&mem, sizeof(bitaxon_thermal), "thermal policy", &memory, error);
    if (status != BITAXON_OK)
        return status;
    bitaxon_thermal *thermal = memory;
    status = bxn_thermal_init(&thermal->core, &own, error);
    if (status != BITAXON_OK) {
        bxn_free(&mem, thermal, sizeof *thermal);
        return status;
    }
    atomic_init(&thermal->refs, 1);
    *out = thermal;
    return BITAXON_OK;
}

void bxn_thermal_ref(bitaxon_thermal *thermal)
{
    atomic_fetch_add_explicit(&thermal->refs, 1, memory_order_relaxed);
}

void bitaxon_thermal_free(bitaxon_thermal *thermal)
{
    if (thermal == NULL || atomic_fetch_sub_explicit(&thermal->refs, 1, memory_order_acq_rel) != 1)
        return;
    bxn_mem mem = thermal->core.mem; /* the account goes with the object: its callbacks are needed to free it */
    bxn_thermal_release(&thermal->core);
    bxn_free(&mem, thermal, sizeof *thermal);
}

bitaxon_status bitaxon_thermal_sample(bitaxon_thermal *thermal, bitaxon_thermal_status *out, bitaxon_error *error)
{
    if (thermal == NULL)
        return bxn_null(error, "thermal");
    if (out == NULL)
        return bxn_null(error, "out");
    bitaxon_thermal_status own;
    bxn_thermal_status(&thermal->core, true, &own);
    return bxn_copy_result(&own, out, sizeof own, sizeof own, "bitaxon_thermal_status", error);
}

bitaxon_status bitaxon_thermal_info(bitaxon_thermal *thermal, const char *key, char *buffer, size_t capacity,
                                    size_t *need, bitaxon_error *error)
{
    if (thermal == NULL)
        return bxn_null(error, "thermal");
    if (key == NULL)
        return bxn_null(error, "key");
    if (buffer == NULL && capacity != 0)
        return bxn_null(error, "buffer");
    const bxn_thermal *core = &thermal->core;
    const bool host = core->read != NULL;
    const char *text = NULL;
    size_t bytes;
    if (strcmp(key, "temperature_source") == 0)
        text = host ? "host" : core->sensors.temperature_source;
    else if (strcmp(key, "power_source") == 0)
        text = host ? "host" : core->sensors.power_source;
    else if (strcmp(key, "energy_source") == 0)
        text = host ? "host" : core->sensors.energy_source;
    else if (strcmp(key, "sensors") != 0)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "there is no key \"%.40s\"", key);
    if (text != NULL) {
        bytes = strlen(text) + 1;
        if (bytes <= capacity)
            memcpy(buffer, text, bytes);
    } else if (host) {
        bytes = 1;
        if (capacity != 0)
            buffer[0] = '\0';
    } else {
        bytes = bxn_sensors_list(&core->sensors, buffer, capacity);
    }
    if (need != NULL)
        *need = bytes;
    if (bytes > capacity)
        return bxn_fail(error, BITAXON_LIMIT, "%zu bytes are needed, the buffer has %zu", bytes, capacity);
    return BITAXON_OK;
}

bitaxon_status bitaxon_thermal_history(bitaxon_thermal *thermal, bitaxon_thermal_point *out, size_t capacity,
                                       size_t *count, bitaxon_error *error)
{
    if (thermal == NULL)
        return bxn_null(error, "thermal");
    if (count == NULL)
        return bxn_null(error, "count");
    if (out == NULL && capacity != 0)
        return bxn_null(error, "out");
    if (out != NULL && capacity != 0 && out->struct_size != sizeof *out)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT,
                        "bitaxon_thermal_point: struct_size is %u, this library has %zu", out->struct_size,
                        sizeof *out);
    bxn_thermal *core = &thermal->core;
    pthread_mutex_lock(&core->lock);
    size_t n = core->history_count;
    if (capacity != 0)
        memcpy(out, core->history, (n < capacity ? n : capacity) * sizeof *out);
    pthread_mutex_unlock(&core->lock);
    *count = n;
    if (n > capacity)
        return bxn_fail(error, BITAXON_LIMIT, "there are %zu points, room is for %zu", n, capacity);
    return BITAXON_OK;
}
