/* SPDX-License-Identifier: Apache-2.0 */
/* adapter_fixture.h - adapters for tests: of a plan, with halves and magnitudes that are not those of a
 * new one, so that every part of them shows in what a model gives; as files and as handles. */
#ifndef ADAPTER_FIXTURE_H
#define ADAPTER_FIXTURE_H

#include "api/api.h"
#include "fault_files.h"

#include <string.h>

typedef struct adapter_noise {
    bxn_adapter *adapter;
    uint64_t seed;
    float size;
} adapter_noise;

static inline bitaxon_status adapter_noise_array(void *user, const char *name, uint32_t weight_id, size_t offset,
                                                 uint32_t rows, uint32_t cols, size_t ld)
{
    const adapter_noise *n = user;
    size_t length = strlen(name);
    bool b = strcmp(name + length - 7, ".lora_b") == 0, m = strcmp(name + length - 2, ".m") == 0;
    for (uint32_t r = 0; r < rows && (b || m); r++)
        for (uint32_t k = 0; k < cols; k++) {
            float *value = n->adapter->values + offset + r * ld + k;
            float dice = (float)(2 * bxn_uniform(n->seed, weight_id, (uint64_t)r * cols + k) - 1);
            *value = b ? dice * n->size : *value * (1 + 0.2f * dice);
        }
    return BITAXON_OK;
}

/* B uniform in +-size, magnitudes within a fifth of what they were. */
static inline bitaxon_adapter *adapter_new(bitaxon_model *model, bxn_adapter_plan plan, float size)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_adapter *adapter;
    assert_int_equal(bxn_adapter_handle(model, &adapter, &error), BITAXON_OK);
    if (bxn_adapter_create(&model->mem, &model->core, &plan, &adapter->core, &error) != BITAXON_OK)
        fail_msg("%s", error.message);
    adapter_noise noise = { &adapter->core, plan.seed, size };
    assert_int_equal(bxn_adapter_each(&model->core, &adapter->core, adapter_noise_array, &noise), BITAXON_OK);
    if (bxn_adapter_updated(&model->core, &adapter->core, true, NULL, &error) != BITAXON_OK)
        fail_msg("%s", error.message);
    return adapter;
}

#endif
