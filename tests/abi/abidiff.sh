#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# abidiff.sh BUILD  - compare the ABI of the present sources with abi/libbitaxon.abi
# abidiff.sh refresh - write abi/libbitaxon.abi anew (make abi), after an intended change
# Both build a shared object with debug information for this purpose alone. An addition and a
# break are both red: whoever means it refreshes the baseline in the same change.
. "$(dirname "$0")/gate.sh"
baseline=$root/abi/libbitaxon.abi

for tool in abidw abidiff; do
    command -v $tool >/dev/null 2>&1 || { skip abi/diff "$tool is not installed (abigail-tools)"; finish; }
done
case $(uname -m) in
x86_64) ;;
*) skip abi/diff "the baseline is of x86-64"; finish ;;
esac

# On the internals' debug information nothing depends but the public types: -Og is enough.
cmake -S "$root" -B "$tmp/build" -DCMAKE_BUILD_TYPE=Debug "-DCMAKE_C_FLAGS_DEBUG=-g -Og" \
    -DBITAXON_STATIC=OFF -DBITAXON_TOOLS=OFF -DBITAXON_TESTS=OFF -DBITAXON_GIT_ID=abi \
    >"$tmp/log" 2>&1 &&
    cmake --build "$tmp/build" -j "$(nproc 2>/dev/null || echo 2)" >>"$tmp/log" 2>&1 ||
    { fail abi/build "the library does not build"; tail -n 20 "$tmp/log"; finish; }

library=$(readlink -f "$tmp/build/libbitaxon.so")
describe()
{
    abidw --headers-dir "$root/include" --drop-private-types --exported-interfaces-only \
        --type-id-style hash --no-corpus-path --no-comp-dir-path --no-show-locs --no-elf-needed \
        --no-write-default-sizes --out-file "$2" "$1"
}

if [ "$build" = refresh ]; then
    describe "$library" "$baseline" && echo "wrote abi/libbitaxon.abi"
    exit
fi
if [ ! -e "$baseline" ]; then
    fail abi/diff "abi/libbitaxon.abi is missing (make abi)"
    finish
fi
# Both sides in the same form: given the shared object itself, abidiff's own filter of
# private types hides changes of public ones.
describe "$library" "$tmp/present.abi"
abidiff --no-show-locs "$baseline" "$tmp/present.abi" >"$tmp/report" 2>&1
code=$?
if [ $code = 0 ]; then
    pass abi/diff
else
    fail abi/diff "abidiff says $code (4: changed or added, 8: incompatible); see ABI.md"
    sed -n '1,60s/^/    /p' "$tmp/report"
fi
finish
