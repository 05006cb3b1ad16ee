/* SPDX-License-Identifier: Apache-2.0 */
/* thermal.h - reserved: nothing is declared here until it is implemented. */
#ifndef BITAXON_THERMAL_H
#define BITAXON_THERMAL_H

#include <bitaxon/base.h>

#endif
