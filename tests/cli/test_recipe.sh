#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# test_recipe.sh BITAXON SOURCE_ROOT - the recipe of the shipped model in its quick form, by the same
# command: it ends with a model that answers, the same bytes on every run, and goes on where it was
# stopped. Also the generator of stories: its answers follow from its stories' last states.

if [ $# -ne 2 ]; then
    echo "usage: test_recipe.sh BITAXON SOURCE_ROOT" >&2
    exit 2
fi
case $1 in
/*) bin=$1 ;;
*) bin=$(pwd)/$1 ;;
esac
recipe=$2/tools/mini/recipe.py
if ! python3 -c 'import regex' 2>/dev/null; then
    echo "SKIP recipe: python3 with the module regex is missing (make deps)"
    exit 77
fi
export PYTHONDONTWRITEBYTECODE=1
GROUP=recipe
. "$(dirname "$0")/checks.sh"

check runs python3 "$recipe" --work "$dir/a" --bitaxon "$bin" --quick
check "again: nothing left to do" python3 "$recipe" --work "$dir/a" --bitaxon "$bin" --quick
check "model is whole" "$bin" verify "$dir/a/mini"
check "model writes" "$bin" run "$dir/a/mini" "Anna had a" --greedy --max-tokens 8
check "figures" python3 -c '
import json, sys
f = json.load(open(sys.argv[1]))
assert f["size"] > 1000 and f["questions"] and f["training"]["tokens"] > 1000, f' "$dir/a/figures.json"
check "card" python3 -c '
import json, sys
sys.path.insert(0, sys.argv[1])
import card, recipe
found = json.load(open(sys.argv[2] + "/figures.json"))
for i, name in enumerate(("novel.txt", "bible.txt")):
    found[name] = {"bits_per_byte": 1.25 + i}
found.update({"xz -9e": 3.5, "7z PPMd after the prose": 4.5, "7z PPMd after all texts": 5.5, "size": 1234567})
card.write(sys.argv[2], sys.argv[3], found, recipe.FULL, 1, ["package_1.2"], [("Q|1", "A", "B")])
text = open(sys.argv[2] + "/README.md").read()
wanted = ("1.250", "2.250", "3.500", "4.500", "5.500", "1.23 MB", "package_1.2", "| Q/1 | A | B |", "seed 1")
assert all(word in text for word in wanted), text' \
    "$2/tools/mini" "$dir/a" "$recipe"
# Stopped between two steps and gone on with, in another folder: the same bytes.
mkdir "$dir/b"
for part in read.jsonl answer.jsonl pair.jsonl ask.jsonl recite.jsonl valid.jsonl questions.jsonl tokenizer; do
    cp -r "$dir/a/$part" "$dir/b/$part"
done
check "goes on" python3 "$recipe" --work "$dir/b" --bitaxon "$bin" --quick
for file in model.safetensors config.json tokenizer.json; do
    [ -e "$dir/a/mini/$file" ] || file=$(cd "$dir/a/mini" && ls *.safetensors | head -n 1)
    check "same bytes of $file" cmp "$dir/a/mini/$file" "$dir/b/mini/$file"
done
check "drills: colors are those that were told" python3 -c '
import re, sys
sys.path.insert(0, sys.argv[1])
import stories
seen = 0
for i in range(300):
    told, *again = stories.pairs("test", i).splitlines()
    for thing, color in re.findall(r"(\w+)(?: is|:)? (%s)\." % "|".join(stories.COLORS), " ".join(again)):
        assert re.search(rf"\b({color} {thing}|{thing} {color})\b", told), (told, again)
        seen += 1
assert seen > 300, seen' "$2/tools/mini"
check "stories: who has what, read by other code" python3 -c '
import re, sys
sys.path.insert(0, sys.argv[1])
import stories
seen = 0
for i in range(300):
    text, asks = stories.story("test", i)
    for question, answer in asks:
        thing = re.fullmatch(r"Who has the (\w+)\?", question)
        if not thing:
            continue
        thing, owner = thing[1], None
        for s in re.split(r"(?<=[.!?])\s+", text):
            m = (re.search(rf"(\w+) (?:had|found) an? (?:\w+ )?{thing}\b", s) or
                 re.search(rf"(\w+) (?:came to the \w+ and took|picked up) the {thing}\b", s))
            to = (re.search(rf"gave the {thing} to (\w+)", s) or
                  re.search(rf"(?:handed|lent) (\w+) the {thing}\b", s))
            if to or m:
                owner = (to or m)[1]
        assert answer == f"{owner} has the {thing}.", (text, question, answer)
        seen += 1
assert seen > 100, seen' "$2/tools/mini"
exit $bad
