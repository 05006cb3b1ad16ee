/* SPDX-License-Identifier: Apache-2.0 */
/* features.h - the choice of the processor's features that a model uses. */
#ifndef BXN_FEATURES_H
#define BXN_FEATURES_H

#include "runtime/runtime.h"

/* What of `detected` a model uses: within mask; AMX only when allow_amx and when the system,
 * asked through `call` (NULL: itself), grants it. *refused: the error number of a request that
 * failed, or 0. */
uint64_t bxn_features_choose(uint64_t detected, uint64_t mask, bool allow_amx, bxn_arch_prctl call,
                             void *context, int *refused);

#endif
