/* SPDX-License-Identifier: Apache-2.0 */
/* adapter.h - reserved: nothing is declared here until it is implemented. */
#ifndef BITAXON_ADAPTER_H
#define BITAXON_ADAPTER_H

#include <bitaxon/base.h>

#endif
