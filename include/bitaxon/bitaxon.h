/* SPDX-License-Identifier: Apache-2.0 */
/* bitaxon.h - all public headers of libbitaxon. */
#ifndef BITAXON_BITAXON_H
#define BITAXON_BITAXON_H

#include <bitaxon/adapter.h>
#include <bitaxon/base.h>
#include <bitaxon/batch.h>
#include <bitaxon/cache.h>
#include <bitaxon/convert.h>
#include <bitaxon/dataset.h>
#include <bitaxon/host.h>
#include <bitaxon/model.h>
#include <bitaxon/session.h>
#include <bitaxon/source.h>
#include <bitaxon/thermal.h>
#include <bitaxon/tokenizer.h>
#include <bitaxon/train.h>
#include <bitaxon/version.h>

#endif
