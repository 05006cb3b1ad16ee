# SPDX-License-Identifier: Apache-2.0
# checks.sh - read by the scripts beside it, which set GROUP before: $dir, a folder that goes when the script ends,
# $bad, which it exits with, and `check NAME COMMAND...`, which prints PASS GROUP/NAME or what went wrong.

dir=$(mktemp -d) || exit 2
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM HUP
bad=0

check() {
    name=$1
    shift
    if "$@" >"$dir/output" 2>&1; then
        echo "PASS $GROUP/$name"
    else
        tail -n 20 "$dir/output"
        echo "FAIL $GROUP/$name: $*"
        bad=1
    fi
}
