#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# objects.sh BUILD - the static archive defines the public names and no others (its internals
# are local), every internal name that crosses files is bxn_*, and no object of the library
# holds writable data, thread-local data, constructors or common symbols.
. "$(dirname "$0")/gate.sh"

if [ -e "$build/libbitaxon.a" ]; then
    nm -g --defined-only "$build/libbitaxon.a" 2>/dev/null | awk 'NF == 3 { print $3 }' |
        sort >"$tmp/archive"
    awk '$1 == "function" { print $2 }' "$root/abi/symbols.txt" | sort >"$tmp/functions"
    same objects/archive "$tmp/archive" "$tmp/functions" "libbitaxon.a (left), abi/symbols.txt (right)"
else
    skip objects/archive "no static library in $build"
fi

internal=$build/libbitaxon_internal.a
if [ -e "$internal" ]; then
    nm -g --defined-only "$internal" 2>/dev/null | awk 'NF == 3 { print $3 }' |
        grep -v '^bitaxon_\|^bxn_' >"$tmp/foreign"
    empty objects/prefixes "$tmp/foreign" "global names that are neither bitaxon_* nor bxn_*"

    objdump -t "$internal" 2>/dev/null | awk '
        / file format / { file = $1 }
        {
            # address flags section size name; flags are seven columns, O marks an object
            flags = substr($0, 18, 7)
            split(substr($0, 26), field, /[ \t]+/)
            section = field[1]
            writable = section ~ /^\.(data|bss|tdata|tbss)/ && section !~ /^\.data\.rel\.ro/
            if (section == "*COM*" || (flags ~ /O/ && writable))
                print file, section, $NF
        }' >"$tmp/writable"
    empty objects/writable "$tmp/writable" "objects in writable sections"

    objdump -h "$internal" 2>/dev/null | awk '
        / file format / { file = $1 }
        $2 ~ /^\.(init_array|fini_array|ctors|dtors|preinit_array|tdata|tbss)/ {
            print file, $2
        }' >"$tmp/constructors"
    empty objects/constructors "$tmp/constructors" "constructors, destructors or thread-local data"
else
    skip objects/internal "libbitaxon_internal.a not built in $build"
fi

finish
