#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# headers.sh - each public header compiles alone, twice in a row, in every language that a
# host may speak, without a warning; it takes nothing but <stddef.h> and <stdint.h>.
. "$(dirname "$0")/gate.sh"

c="-Wall -Wextra -Werror -Wconversion -Wundef -Wshadow -Wpadded -Wstrict-prototypes
   -Wmissing-prototypes -Wwrite-strings"
cxx="-Wall -Wextra -Werror -Wconversion -Wundef -Wshadow -Wold-style-cast
     -Wzero-as-null-pointer-constant"
for compiler in cc clang; do
    command -v $compiler >/dev/null 2>&1 || { skip headers/$compiler "not installed"; continue; }
    for mode in "-std=c99 -pedantic-errors" -std=c11 -std=gnu17; do
        : >"$tmp/log"
        for header in "$root"/include/bitaxon/*.h; do
            name=bitaxon/$(basename "$header")
            printf '#include <%s>\n#include <%s>\nextern int one;\n' "$name" "$name" >"$tmp/h.c"
            $compiler $mode $c -fsyntax-only -I"$root/include" "$tmp/h.c" >>"$tmp/log" 2>&1 ||
                echo "$name" >>"$tmp/log"
        done
        empty "headers/$compiler${mode%% *}" "$tmp/log" "does not compile cleanly alone"
    done
done
for compiler in c++ clang++; do
    command -v $compiler >/dev/null 2>&1 || { skip headers/$compiler "not installed"; continue; }
    for mode in "-std=c++11 -pedantic-errors" -std=c++20; do
        : >"$tmp/log"
        for header in "$root"/include/bitaxon/*.h; do
            name=bitaxon/$(basename "$header")
            printf '#include <%s>\n#include <%s>\nextern int one;\n' "$name" "$name" >"$tmp/h.cc"
            $compiler $mode $cxx -fsyntax-only -I"$root/include" "$tmp/h.cc" >>"$tmp/log" 2>&1 ||
                echo "$name" >>"$tmp/log"
        done
        empty "headers/$compiler${mode%% *}" "$tmp/log" "does not compile cleanly alone"
    done
done

grep -n '^ *# *include' "$root"/include/bitaxon/*.h |
    grep -v '<stddef\.h>\|<stdint\.h>\|<bitaxon/[a-z]*\.h>' >"$tmp/includes"
empty headers/includes "$tmp/includes" "includes other than stddef, stdint and our own"

# Macros are ours; struct members have fixed widths; nothing varies with the build.
plain_headers | sed -n 's/^ *# *define *\([A-Za-z0-9_]*\).*/\1/p' | grep -v '^BITAXON_' >"$tmp/macros"
empty headers/macros "$tmp/macros" "macros that do not begin with BITAXON_"
plain_headers | grep -nwE 'long|short|unsigned|bool|_Bool|va_list|int|enum +[a-z_]+|\.\.\.' \
    >"$tmp/types"
empty headers/types "$tmp/types" "types that differ between ABIs, or variable arguments"

# Lines and umbrella: every header with declarations is in bitaxon.h.
for header in "$root"/include/bitaxon/*.h; do
    name=$(basename "$header")
    [ "$name" != bitaxon.h ] || continue
    grep -q 'BITAXON_API ' "$header" || grep -q 'typedef' "$header" || continue
    grep -q "<bitaxon/$name>" "$root/include/bitaxon/bitaxon.h" || echo "$name"
done >"$tmp/umbrella"
empty headers/umbrella "$tmp/umbrella" "missing from bitaxon.h"

finish
