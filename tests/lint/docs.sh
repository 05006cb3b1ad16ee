#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# docs.sh - every exported function has a comment directly before it with Thread: and Since:,
# and Returns: where it returns something; every file that README.md and docs/ link to
# exists; README and HACKING name only make targets that there are.
. "$(dirname "$0")/../abi/gate.sh"
cd "$root" || exit 1

for header in include/bitaxon/*.h; do
    awk -v file="$header" '
        /^\/\*/ { comment = ""; inside = 1 }
        inside { comment = comment "\n" $0 }
        inside && /\*\// { inside = 0; fresh = 1; next }
        inside { next }
        /^BITAXON_API/ { declaration = ""; open = 1; first = FNR }
        open { declaration = declaration " " $0 }
        open && /;/ {
            open = 0
            match(declaration, /bitaxon_[a-z0-9_]+ *\(/)
            name = substr(declaration, RSTART, RLENGTH - 1)
            returns = declaration !~ /BITAXON_API void bitaxon_/
            lacks = ""
            if (!fresh) lacks = " a comment of its own"
            else {
                if (comment !~ /Thread: /) lacks = lacks " Thread:"
                if (comment !~ /Since: [0-9]/) lacks = lacks " Since:"
                if (returns && comment !~ /Returns: /) lacks = lacks " Returns:"
            }
            if (lacks != "") print file ":" first ": " name " lacks" lacks
            fresh = 0
            next
        }
        !open && NF { fresh = 0 }' "$header"
done >"$tmp/found"
empty docs/functions "$tmp/found" "exported functions without the fields of their comment"

find . -maxdepth 1 -name '*.md' >"$tmp/pages"
[ ! -d docs ] || find docs -name '*.md' >>"$tmp/pages"
while read -r page; do
    { grep -oE '\]\([^)#]+' "$page" || true; } | sed 's/^](//' | while read -r link; do
        case $link in
        *://* | mailto:*) continue ;;
        esac
        [ -e "$(dirname "$page")/$link" ] || echo "$page: $link"
    done
done <"$tmp/pages" >"$tmp/found"
empty docs/links "$tmp/found" "links to files that are not there"

cat README.md HACKING.md docs/*.md 2>/dev/null | grep -oE '`make [a-z-]+' | sed 's/`make //' |
    sort -u | while read -r target; do
    grep -q "^$target:" GNUmakefile || echo "make $target"
done >"$tmp/found"
empty docs/targets "$tmp/found" "make targets that do not exist"

finish
