#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# test_shipped.sh BITAXON SOURCE_ROOT - the model in examples/models/mini: whole, small, with its card and notices;
# it answers questions about stories that no training saw, reads a held-out novel better than xz packs it,
# and says the same whatever instructions and accuracy compute it.

if [ $# -ne 2 ]; then
    echo "usage: test_shipped.sh BITAXON SOURCE_ROOT" >&2
    exit 2
fi
case $1 in
/*) bin=$1 ;;
*) bin=$(pwd)/$1 ;;
esac
root=$2
mini=$root/examples/models/mini
GROUP=shipped
. "$(dirname "$0")/checks.sh"

# between FILE KEY LEAST MOST: a number of a JSON file of `bitaxon eval --json`
between() {
    awk -F'[:,]' -v key="\"$2\"" -v least="$3" -v most="$4" \
        '$1 ~ key "$" { found = 1; if (!($2 + 0 >= least && $2 + 0 <= most)) { print; exit 1 } } END { exit !found }' "$1"
}

check "is whole" "$bin" verify "$mini"
check "at most 6 MB with everything" test "$(cat "$mini"/* | wc -c)" -le 6000000
check "card" grep -q '^## Thirty definitions' "$mini/README.md"
check "card: thirty definitions" test "$(sed -n '/^## Thirty/,$p' "$mini/README.md" | grep -c '^| .* | .* | .* |$')" = 31
check "notice of WordNet" grep -q 'Princeton University' "$mini/NOTICE"
check "reads a held-out novel" "$bin" eval "$mini" "$root/tests/golden/persuasion.txt" --json
cp "$dir/output" "$dir/novel"
check "in 1.70 bits a byte of its 9 kB, where xz needs 3.62 and for the whole novel 2.37" \
    between "$dir/novel" bits_per_byte 0.5 1.8
ask() {
    "$bin" run "$mini" --chat --greedy --max-tokens 40 "$@"
}
story='One morning, Tom had a red ball. Anna went to the garden. Tom gave the ball to Anna.'
check "answers" test "$(ask "$story

Who has the ball?")" = "Anna has the ball."
for flags in "--isa c" "--isa avx2" "--accuracy exact" "--accuracy fast" "--kv i8" "--kv q4" "--threads 1"; do
    case $flags in
    "--isa avx2")
        if ! grep -q ' avx2' /proc/cpuinfo 2>/dev/null; then
            echo "SKIP shipped/the same with --isa avx2: this processor lacks it"
            continue
        fi
        ;;
    esac
    # shellcheck disable=SC2086 # two words
    check "the same with $flags" test "$(ask $flags "$story

What color is the ball?")" = "The ball is red."
done
if python3 -c '' 2>/dev/null; then
    PYTHONDONTWRITEBYTECODE=1 python3 -c '
import json, sys
sys.path.insert(0, sys.argv[1])
import stories
for question in stories.held_out("shipped", 200):
    print(json.dumps(question))' "$root/tools/mini" >"$dir/questions.jsonl"
    check "answers 200 new questions" "$bin" eval "$mini" --questions "$dir/questions.jsonl" --json
    cp "$dir/output" "$dir/answers"
    check "as many rightly as its card says, less three standard errors" between "$dir/answers" accuracy 0.74 1
else
    echo "SKIP shipped/questions: python3 is missing (make deps)"
fi
exit $bad
