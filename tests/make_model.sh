#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# make_model.sh BUILD DIR - the small random model that examples and consumers run on.
set -eu
rm -rf "$2"
mkdir -p "$(dirname "$2")"
"$1/bitaxon" new --preset mini --seed 1 --quantize affine4 \
    --tokenizer "$(dirname "$0")/../examples/models/tokenizer" "$2"
