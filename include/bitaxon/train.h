/* SPDX-License-Identifier: Apache-2.0 */
/* train.h - reserved: nothing is declared here until it is implemented. */
#ifndef BITAXON_TRAIN_H
#define BITAXON_TRAIN_H

#include <bitaxon/base.h>

#endif
