/* SPDX-License-Identifier: Apache-2.0 */
/* convert_format.c - names of formats, and which tensor gets which. Called by the
 * conversions that write formats. */
#include "convert/bxn_convert.h"

#include <stdio.h>
#include <string.h>

bitaxon_status bxn_target_parse(const char *name, const char *what, uint32_t group, bxn_target *out,
                                bitaxon_error *error)
{
    static const struct {
        const char *name;
        bxn_target target;
    } known[] = {
        {"affine2", {BXN_TARGET_AFFINE, BXN_F16, 2, 0}},
        {"affine3", {BXN_TARGET_AFFINE, BXN_F16, 3, 0}},
        {"affine4", {BXN_TARGET_AFFINE, BXN_F16, 4, 0}},
        {"affine5", {BXN_TARGET_AFFINE, BXN_F16, 5, 0}},
        {"affine6", {BXN_TARGET_AFFINE, BXN_F16, 6, 0}},
        {"affine8", {BXN_TARGET_AFFINE, BXN_F16, 8, 0}},
        {"nf4", {BXN_TARGET_NF4, BXN_F32, 4, 0}},
        {"f32", {BXN_TARGET_FLOAT, BXN_F32, 0, 0}},
        {"f16", {BXN_TARGET_FLOAT, BXN_F16, 0, 0}},
        {"bf16", {BXN_TARGET_FLOAT, BXN_BF16, 0, 0}},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(name, known[i].name) == 0) {
            *out = known[i].target;
            out->group = group;
            return BITAXON_OK;
        }
    return bxn_fail(error, BITAXON_INVALID_ARGUMENT,
                    "%s '%.32s' is none of affine2, 3, 4, 5, 6, 8, nf4, f32, f16, bf16", what,
                    name);
}

bxn_target bxn_target_of(const bxn_plan_item *item, const bxn_target *format,
                         const bxn_target *embedding, uint32_t flags)
{
    bxn_target copy = {BXN_TARGET_COPY, BXN_F32, 0, 0}, target = *format;
    if (item->role == BXN_ROLE_VECTOR)
        return copy;
    if (item->role == BXN_ROLE_EMBEDDING || item->role == BXN_ROLE_HEAD)
        target = *embedding;
    if (target.kind == BXN_TARGET_FLOAT)
        return target;
    if (item->role == BXN_ROLE_SENSITIVE && (flags & BITAXON_CONVERT_ALL_LINEARS) == 0)
        return copy;
    return item->shape[item->rank - 1] % target.group == 0 ? target : copy;
}

void bxn_target_text(const bxn_target *target, char text[32])
{
    if (target->kind == BXN_TARGET_AFFINE)
        snprintf(text, 32, "affine%u g%u %s", (unsigned)target->bits, (unsigned)target->group,
                 bxn_dtype_name(target->dtype));
    else if (target->kind == BXN_TARGET_NF4)
        snprintf(text, 32, "nf4 g%u", (unsigned)target->group);
    else
        snprintf(text, 32, "%s", bxn_dtype_name(target->dtype));
}
