# SPDX-License-Identifier: Apache-2.0
# gate.sh - read by every gate script: `. "$(dirname "$0")/../abi/gate.sh"`. Gives $root
# (sources), $build (first argument, the build directory), $tmp (removed at exit), one
# line per check, and lists made from the public headers.
# A gate ends with `finish`.
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
build=${1:-$root/build}
tmp=$(mktemp -d "${TMPDIR:-/tmp}/bitaxon-gate.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
LC_ALL=C
export LC_ALL
failures=0
checks=0

pass() { echo "PASS $1"; checks=$((checks + 1)); }
fail() { echo "FAIL $1: $2"; failures=$((failures + 1)); checks=$((checks + 1)); }
skip() { echo "SKIP $1: $2"; }

# empty NAME FILE WHAT - pass when FILE is empty, else fail and show its first lines
empty()
{
    if [ -s "$2" ]; then
        fail "$1" "$3"
        sed -n '1,20s/^/    /p' "$2"
    else
        pass "$1"
    fi
}

# same NAME A B WHAT - pass when two sorted lists are equal
same()
{
    comm -3 "$2" "$3" >"$tmp/difference"
    empty "$1" "$tmp/difference" "$4"
}

finish()
{
    [ "$failures" = 0 ] || exit 1
    [ "$checks" != 0 ] || exit 77
    exit 0
}

# Header text without comments and preprocessor lines, one declaration part per line.
plain_headers()
{
    cat "$root"/include/bitaxon/*.h | awk '
        { text = text $0 "\n" }
        END {
            while ((i = index(text, "/*")) > 0) {
                rest = substr(text, i + 2)
                j = index(rest, "*/")
                text = substr(text, 1, i - 1) " " substr(rest, j + 2)
            }
            printf "%s", text
        }'
}

# Names of the exported functions, sorted.
header_functions()
{
    plain_headers | awk '
        /^BITAXON_API/ { text = ""; open = 1 }
        open { text = text " " $0 }
        open && /;/ {
            open = 0
            if (match(text, /bitaxon_[a-z0-9_]+ *\(/)) {
                name = substr(text, RSTART, RLENGTH)
                sub(/ *\($/, "", name)
                print name
            }
        }' | sort
}

# Names of the public structs that have a body, sorted.
header_structs()
{
    plain_headers | sed -n 's/^typedef struct \(bitaxon_[a-z0-9_]*\) {.*/\1/p' | sort
}

# Names of the public constants (enumerators and numeric macros), sorted.
header_constants()
{
    {
        plain_headers | awk '
            /^enum/ { open = 1 }
            open { text = text " " $0 }
            open && /;/ { open = 0 }
            END { print text }' | grep -o 'BITAXON_[A-Z0-9_]* =' | sed 's/ =$//'
        plain_headers | sed -n 's/^#define \(BITAXON_[A-Z0-9_]*\) [0-9"].*/\1/p'
        plain_headers | sed -n 's/^ *X(\([A-Z_]*\), -*[0-9]*, .*/BITAXON_\1/p'
    } | grep -v '_$' | sort
}
