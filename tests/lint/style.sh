#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# style.sh - what a reader may count on in every source file: licence line, opening
# paragraph, no tabs, no trailing blanks, no invisible characters, at most 800 lines and in C
# 120 columns, a name that stands once in the tree; no words of unfinished work in the library.
. "$(dirname "$0")/../abi/gate.sh"
cd "$root" || exit 1

# All text files of the project, of whatever kind; fixtures are data.
find . \( -name .git -o -name 'build*' -o -path ./tests/golden -o -path './examples/models' \
    -o -name __pycache__ -o -name .cache -o -name 'corpus*' \) -prune -o -type f \
    \( -name '*.c' -o -name '*.h' -o -name '*.sh' -o -name '*.py' -o -name '*.awk' \
    -o -name '*.cmake' -o -name '*.in' -o -name '*.md' -o -name '*.map' -o -name '*.cc' \
    -o -name CMakeLists.txt -o -name GNUmakefile -o -path ./.ci/run \) -print |
    sed 's|^\./||' | sort >"$tmp/files"
grep -v '\.md$\|\.in$' "$tmp/files" >"$tmp/code"

while read -r file; do
    head -n 2 "$file" | grep -q 'SPDX-License-Identifier: Apache-2\.0' || echo "$file"
done <"$tmp/code" >"$tmp/found"
empty style/licence "$tmp/found" "no SPDX line at the top"

grep '\.[ch]$' "$tmp/code" >"$tmp/sources"
while read -r file; do
    head -n 1 "$file" | grep -q '^/\* SPDX-License-Identifier: Apache-2\.0 \*/$' || echo "$file:1"
    sed -n 2p "$file" | grep -q '^/\* ' || echo "$file:2"
done <"$tmp/sources" >"$tmp/found"
empty style/opening "$tmp/found" "C files begin with the licence and a paragraph about themselves"

grep -v '^GNUmakefile$' "$tmp/files" | xargs -r grep -nP '\t' /dev/null >"$tmp/found"
empty style/tabs "$tmp/found" "tabs"
xargs -r grep -nE '[[:blank:]]+$' /dev/null <"$tmp/files" >"$tmp/found"
empty style/trailing "$tmp/found" "blanks at the end of a line"
xargs -r grep -lP '\r' /dev/null <"$tmp/files" >"$tmp/found"
empty style/carriage-returns "$tmp/found" "carriage returns"
xargs -r grep -nP '\xC2[\x80-\x9F\xA0\xAD]|\xE2\x80[\x8B-\x8F\xA8-\xAE]|\xE2\x81[\xA0-\xAF]|\xEF\xBB\xBF|\xE3\x85\xA4|[\x00-\x08\x0B\x0C\x0E-\x1F\x7F]' \
    /dev/null <"$tmp/files" >"$tmp/found"
empty style/invisible "$tmp/found" "invisible or control characters"

xargs -r wc -l <"$tmp/code" | awk '$2 != "total" && $1 > 800' >"$tmp/found"
empty style/length "$tmp/found" "files over 800 lines"
xargs -r awk 'length($0) > 120 { print FILENAME ":" FNR }' <"$tmp/sources" >"$tmp/found"
empty style/columns "$tmp/found" "lines over 120 columns"
xargs -r wc -l <"$tmp/files" | awk '$2 ~ /^include\// && $1 > 240' >"$tmp/found"
empty style/headers "$tmp/found" "public headers over 240 lines"

grep -v 'CMakeLists\.txt$\|README\.md$' "$tmp/files" | sed 's|.*/||' | sort | uniq -d >"$tmp/found"
empty style/names "$tmp/found" "file names that stand twice in the tree"

grep -E '^(lib|include|tools|examples|bench)/' "$tmp/code" |
    xargs -r grep -nE '\b(TODO|FIXME|XXX|HACK)\b' /dev/null >"$tmp/found"
empty style/unfinished "$tmp/found" "marks of unfinished work"

grep '^lib/' "$tmp/code" | xargs -r grep -nE '__DATE__|__TIME__|__TIMESTAMP__' /dev/null >"$tmp/found"
empty style/reproducible "$tmp/found" "the time of the build in the library"

finish
