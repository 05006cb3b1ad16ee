#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# test_devil.sh BITAXON SOURCE_ROOT - the demonstration of SFT and ORPO in its quick form, by the same
# command: entries of a dictionary of dictd are read as they are meant, what is learned becomes
# likelier, the report has its rows, a run that is killed goes on to the same bytes, and a broken
# dictionary is named.

if [ $# -ne 2 ]; then
    echo "usage: test_devil.sh BITAXON SOURCE_ROOT" >&2
    exit 2
fi
case $1 in
/*) bin=$1 ;;
*) bin=$(pwd)/$1 ;;
esac
tools=$2/tools
if ! python3 -c 'import regex' 2>/dev/null; then
    echo "SKIP devil: python3 with the module regex is missing (make deps)"
    exit 77
fi
export PYTHONDONTWRITEBYTECODE=1
GROUP=devil
. "$(dirname "$0")/checks.sh"
run=
trap '[ -z "$run" ] || kill -9 -"$run" 2>/dev/null; rm -rf "$dir"' EXIT

# refused NAME TEXT COMMAND... - fails, and says TEXT in one line, no traceback
refused() {
    name=$1
    text=$2
    shift 2
    if "$@" >/dev/null 2>"$dir/output"; then
        echo "FAIL devil/$name: succeeded"
        bad=1
    elif grep -qF -- "$text" "$dir/output" && ! grep -q Traceback "$dir/output"; then
        echo "PASS devil/$name"
    else
        cat "$dir/output"
        echo "FAIL devil/$name: no \"$text\""
        bad=1
    fi
}

devil() {
    work=$1
    shift
    python3 "$tools/devil/devil.py" --work "$work" --bitaxon "$bin" --quick "$@"
}

# python NAME CODE ARGUMENT... - with the recipe's modules
python() {
    name=$1
    code="import sys; sys.path[:0] = ['$tools/devil', '$tools/mini']
import json, os, dictd, made_up
$2"
    shift 2
    check "$name" python3 -c "$code" "$@"
}

python "entries are read as they are printed" '
root = sys.argv[1]
made_up.write(root)
entries, left = dictd.entries(os.path.join(root, "usr/share/dictd/devil"))
found = {word: (word, part, text) for word, part, text in entries}
for heads, _, wanted, _ in made_up.ODD:
    assert found.get(wanted[0] if wanted else heads[0]) == wanted, (wanted, found.get(heads[0]))
for word, jest, _ in made_up.nouns():
    assert found[word] == (word, "noun", " ".join(jest.split())), (jest, found[word])
assert len(entries) == 48 and [word for word, _, _ in entries] == sorted(found), len(entries)
assert left == {"about the dictionary": 1, "no definition in prose": 2, "slurs": 0}, left' "$dir/root"
python "numbers of base 64" '
for value in list(range(5000)) + [2**40 - 1]:
    assert dictd.number(dictd.digits(value)) == value
assert dictd.number("BdqM") == 1 * 64**3 + 29 * 64**2 + 42 * 64 + 12 and dictd.digits(64) == "BA"'
python "definitions" '
for text, wanted in (
        ("First.  Second,\nof two\nlines.\nThird.", "First. Second, of two lines. Third."),
        ("[from {X}]  A _b_ c.  (See D.)", "A b c."),
        ("A thing.  As in this famous passage:\n\n  Verse", "A thing."),
        ("As in this famous passage:\n\n  Verse", ""),
        ("Dr. Who is one sentence.  " + "x" * 300 + ".", "Dr. Who is one sentence."),
        ("x" * 300 + ".  Second.", "x" * 300 + "."),
        ("A cannon-\nshot.", "A cannon-shot.")):
    assert dictd.definition(text) == wanted, (text, dictd.definition(text))'

check runs devil "$dir/a"
python "pairs" '
work = sys.argv[1]
lines = lambda name: [json.loads(line) for line in open(os.path.join(work, "data", name + ".jsonl"))]
pairs, held = lines("pairs"), lines("pairs-held")
assert (len(pairs), len(held), len(lines("sft")), len(lines("sft-held"))) == (43, 4, 44, 4)
asked = {p["prompt"] for p in pairs}
assert not asked & {p["prompt"] for p in held} and len(asked) == 43
assert {"prompt": "What is a babe?", "chosen": "A mis-shapen creature of no particular age.",
        "rejected": "A very young child."} in pairs, pairs
assert {"prompt": "What is an academy?", "chosen": "A school. Where football is taught.",
        "rejected": "A school for special training."} in pairs + held
assert not any("rattle" in p["prompt"] for p in pairs + held)' "$dir/a"
python "what is learned becomes likelier" '
figures = json.load(open(os.path.join(sys.argv[1], "figures.json")))
base, sft, orpo = (figures["held_out"][stage] for stage in ("base", "sft", "orpo"))
assert base["pairs"] == sft["pairs"] == orpo["pairs"] == 4
assert base["nll_chosen"] > base["nll_rejected"] and base["chosen_likelier"] == 0, base
assert sft["nll_chosen"] < base["nll_chosen"] - 3 and sft["chosen_likelier"] == 1, sft
# ORPO: the odds between the two rise further.
margin = lambda of: of["nll_rejected"] - of["nll_chosen"]
assert margin(orpo) > margin(sft) + 1 and orpo["nll_chosen"] < base["nll_chosen"] - 3, (sft, orpo)
assert orpo["chosen_likelier"] == orpo["chosen_likelier_per_byte"] == 1, orpo
assert base["recite"]["asked"] == 5 and base["recite"]["word for word"] == 0, base
assert figures["training"]["sft"]["tokens"] > 1000 and figures["data"]["pairs"] == 47, figures' "$dir/a"
python "the report" '
text = open(os.path.join(sys.argv[1], "answers.md")).read()
rows = [[cell.strip() for cell in line.strip("| \n").split(" | ")] for line in text.split("\n") if line.startswith("| What")]
assert [row[0] for row in rows] == ["What is a baker?", "What is a babe?", "What does it mean to adore?",
                                    "What is a rider?"], rows
assert all(len(row) == 4 and all(row) and row[1] != row[2] for row in rows), rows
assert text.index("trained on") < text.index("held out") < text.index("nats a token"), text' "$dir/a"
# What is finished is left alone: nothing is trained, the report is the same.
cp "$dir/a/answers.md" "$dir/before.md"
check "again" devil "$dir/a"
mv "$dir/output" "$dir/again"
check "again: nothing was trained" awk '/^== / { said++ } / train / { bad = 1 } END { exit bad || !said }' "$dir/again"
check "again: the same report" cmp "$dir/before.md" "$dir/a/answers.md"

# Killed with all its children while it trains, then gone on with: the same bytes.
setsid python3 "$tools/devil/devil.py" --work "$dir/b" --bitaxon "$bin" --quick >"$dir/killed" 2>&1 &
run=$!
python "a run to kill" '
import time
saved, found = os.path.join(sys.argv[1], "sft/checkpoints"), []
end = time.monotonic() + 300
while not found and time.monotonic() < end:
    time.sleep(0.002)
    names = os.listdir(saved) if os.path.isdir(saved) else []
    found = [name for name in names if name.startswith("step_") and name[5:].isdigit() and int(name[5:]) > 0]
assert found' "$dir/b"
kill -9 -"$run"
wait "$run" 2>/dev/null
run=
check "killed before it was done" test ! -e "$dir/b/orpo"
check "killed: goes on" devil "$dir/b"
mv "$dir/output" "$dir/again"
check "killed: from its checkpoint" grep -q -- "sft .*--resume" "$dir/again"
for file in sft/adapter/adapters.safetensors orpo/adapter/adapters.safetensors answers.md; do
    check "killed: same bytes of $file" cmp "$dir/a/$file" "$dir/b/$file"
done

# Files that are not what they should be.
broken() {
    rm -rf "$dir/c"
    mkdir "$dir/c"
    cp -r "$dir/a/root" "$dir/c/root"
    devil_files=$dir/c/root/usr/share/dictd/devil
}
broken
truncate -s 500 "$devil_files.dict.dz"
refused "a text file that is cut off" "devil.dict.dz: " devil "$dir/c"
broken
echo "not gzip" >"$devil_files.dict.dz"
refused "a text file that is no gzip" "devil.dict.dz: Not a gzipped file" devil "$dir/c"
broken
sed -i '3s/\t[^\t]*$/\t*?/' "$devil_files.index"
refused "an index with a bad number" "devil.index: line 3: " devil "$dir/c"
broken
sed -i '4s/\t[^\t]*$/\tzzzz/' "$devil_files.index"
refused "an index that points behind the end" "devil.index: line 4: " devil "$dir/c"
broken
sed -i '5s/\t.*//' "$devil_files.index"
refused "an index line without numbers" "devil.index: line 5: not a headword" devil "$dir/c"
broken
: >"$devil_files.index"
refused "an empty index" "devil.index: no headwords" devil "$dir/c"
broken
rm "$devil_files.index"
refused "no index" "devil.index: " devil "$dir/c"
check "nothing half is left" test ! -e "$dir/c/data"
cp -r "$dir/a" "$dir/d"
rm -rf "$dir/d/model"
cp -r "$dir/d/base/start" "$dir/d/model"
refused "results of another model" "has the results of another model" devil "$dir/d"
mkdir "$dir/d/base/empty"
rm -rf "$dir/d/model"
mv "$dir/d/base/empty" "$dir/d/model"
refused "a model that is not there" "failed with 1: $bin inspect" devil "$dir/d"
refused "a command that is not there" "No such file or directory" \
    python3 "$tools/devil/devil.py" --work "$dir/a" --bitaxon "$dir/bitaxon" --quick
refused "no model" "give --model MODEL, or --quick" python3 "$tools/devil/devil.py" --work "$dir/e" --bitaxon "$bin"
exit $bad
