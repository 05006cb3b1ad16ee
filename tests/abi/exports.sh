#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# exports.sh BUILD - headers, lib/bitaxon.map, abi/symbols.txt and the shared object name the
# same functions with the same first releases; headers and abi/symbols.txt name the same
# structs and constants, and the constants have the values pinned there.
. "$(dirname "$0")/gate.sh"

grep -v '^#' "$root/abi/symbols.txt" >"$tmp/symbols"
awk 'NF != 6 || $1 !~ /^(function|struct|constant)$/ || $3 !~ /^[0-9]+\.[0-9]+$/' \
    "$tmp/symbols" >"$tmp/malformed"
empty exports/symbols-form "$tmp/malformed" "lines of abi/symbols.txt without the six columns"

awk '$1 == "function" { print $2 }' "$tmp/symbols" | sort >"$tmp/listed"
header_functions >"$tmp/headers"
same exports/headers "$tmp/headers" "$tmp/listed" "headers (left) and abi/symbols.txt (right)"

# name and the node it stands in
awk '/^BITAXON_[0-9.]+ \{/ { node = $1 }
     /^ *bitaxon_[a-z0-9_]+;/ { gsub(/[ ;]/, ""); print $0, substr(node, 9) }' \
    "$root/lib/bitaxon.map" | sort >"$tmp/map"
awk '$1 == "function" { print $2, $3 }' "$tmp/symbols" | sort >"$tmp/since"
same exports/map "$tmp/map" "$tmp/since" "lib/bitaxon.map (left) and abi/symbols.txt (right)"
grep -n '\*' "$root/lib/bitaxon.map" | grep -v '^[0-9]*: *\*;$' |
    grep -v '/\*\|\*/\|^[0-9]*: \*' >"$tmp/wild"
empty exports/no-wildcards "$tmp/wild" "wildcards in lib/bitaxon.map"

# The header says the same release as the list.
awk '{ text = text $0 "\n" } END {
    while ((i = index(text, "\nBITAXON_API ")) > 0) {
        comment = substr(text, 1, i - 1)
        text = substr(text, i + 13)
        since = ""
        while (match(comment, /Since: +[0-9]+\.[0-9]+/)) {
            since = substr(comment, RSTART, RLENGTH)
            sub(/Since: +/, "", since)
            comment = substr(comment, RSTART + RLENGTH)
        }
        if (since != "") last = since
        if (match(text, /bitaxon_[a-z0-9_]+ *\(/)) {
            name = substr(text, RSTART, RLENGTH)
            sub(/ *\($/, "", name)
            print name, last
        }
    } }' "$root"/include/bitaxon/*.h | sort >"$tmp/header-since"
same exports/since "$tmp/header-since" "$tmp/since" "Since: in headers (left), abi/symbols.txt (right)"

library=$build/libbitaxon.so
if [ -e "$library" ]; then
    nm -D --defined-only "$library" | awk '$2 != "A" { print $3 }' |
        sed 's/@@*BITAXON_/ /' | sort >"$tmp/exported"
    same exports/shared "$tmp/exported" "$tmp/since" "shared object (left), abi/symbols.txt (right)"
else
    skip exports/shared "no shared library in $build"
fi

awk '$1 == "struct" { print $2 }' "$tmp/symbols" | sort >"$tmp/listed-structs"
header_structs >"$tmp/structs"
same exports/structs "$tmp/structs" "$tmp/listed-structs" "headers (left), abi/symbols.txt (right)"

sed -n 's/^ *STRUCT(\([a-z0-9_]*\),.*/\1/p' "$root/tests/abi/abi_layout.c" | sort >"$tmp/laid-out"
same exports/layout "$tmp/structs" "$tmp/laid-out" "headers (left), tests/abi/abi_layout.c (right)"

# Version numbers change with releases; all other constants are pinned.
awk '$1 == "constant" { print $2 }' "$tmp/symbols" | sort >"$tmp/listed-constants"
header_constants | grep -v '^BITAXON_VERSION_\|^BITAXON_ABI_VERSION' >"$tmp/constants"
same exports/constants "$tmp/constants" "$tmp/listed-constants" \
    "headers (left), abi/symbols.txt (right)"
{
    echo '#include <bitaxon/bitaxon.h>'
    awk '$1 == "constant" {
        printf "_Static_assert(%s == %s, \"%s is %s for ever\");\n", $2, $6, $2, $6 }' \
        "$tmp/symbols"
} >"$tmp/values.c"
"${CC:-cc}" -std=c11 -fsyntax-only -I"$root/include" "$tmp/values.c" 2>"$tmp/values"
empty exports/values "$tmp/values" "constants with other values than abi/symbols.txt"

# The numbers of the release agree with one another.
cat >"$tmp/version.c" <<'END'
#include <bitaxon/version.h>
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
_Static_assert(BITAXON_VERSION_NUMBER == BITAXON_VERSION_MAJOR * 1000000 +
               BITAXON_VERSION_MINOR * 1000 + BITAXON_VERSION_PATCH, "BITAXON_VERSION_NUMBER");
_Static_assert(sizeof(BITAXON_VERSION_STRING) == sizeof(TEXT(BITAXON_VERSION_MAJOR) "."
               TEXT(BITAXON_VERSION_MINOR) "." TEXT(BITAXON_VERSION_PATCH)), "length");
const char *v = BITAXON_VERSION_STRING;
END
"${CC:-cc}" -std=c11 -fsyntax-only -I"$root/include" "$tmp/version.c" 2>"$tmp/version"
release=$(sed -n 's/^#define BITAXON_VERSION_STRING "\(.*\)"/\1/p' "$root/include/bitaxon/version.h")
grep -q "^## $release" "$root/CHANGELOG.md" ||
    echo "CHANGELOG.md has no section for $release" >>"$tmp/version"
empty exports/version "$tmp/version" "version numbers disagree"

finish
