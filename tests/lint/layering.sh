#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# layering.sh - includes go down the floors only (docs/architecture.md, section 4). Checked:
# every #include of lib/, and that tools, examples and consumers see include/bitaxon alone.
. "$(dirname "$0")/../abi/gate.sh"
cd "$root" || exit 1

# Each directory of lib/ and what it may include beside itself and <bitaxon/...>.
cat >"$tmp/floors" <<'END'
runtime
kernels runtime
io runtime
quant kernels io runtime
tokenizer kernels io runtime
thermal kernels io runtime
ops quant kernels io runtime
model ops quant tokenizer thermal kernels io runtime
import model ops quant tokenizer kernels io runtime
session import model ops quant tokenizer thermal kernels io runtime
convert import model ops quant tokenizer kernels io runtime
train import model ops quant tokenizer thermal kernels io runtime
api session convert train import model ops quant tokenizer thermal kernels io runtime
END

find lib -mindepth 1 -maxdepth 1 -type d | sed 's|^lib/||' | sort >"$tmp/directories"
awk '{ print $1 }' "$tmp/floors" | sort >"$tmp/known"
comm -23 "$tmp/directories" "$tmp/known" >"$tmp/unknown"
empty layering/known "$tmp/unknown" "directories of lib/ without a floor (tests/lint/layering.sh)"

# FILE DIRECTORY INCLUDED, of quoted includes; <lib/...> is as wrong as "../".
find lib -name '*.[ch]' -exec grep -H '^ *# *include *[<"]' {} + |
    sed 's/^\([^:]*\):[^<"]*\([<"]\)\([^>"]*\)[>"].*/\1 \2\3/' >"$tmp/includes"
awk -v floors="$tmp/floors" '
    BEGIN {
        while ((getline line < floors) > 0) {
            n = split(line, word, " ")
            level[word[1]] = 1
            for (i = 2; i <= n; i++)
                allowed[word[1], word[i]] = 1
        }
    }
    {
        split($1, path, "/")
        from = path[2]
        name = substr($2, 2)
        if (name ~ /\.\./) { print $1 ": " name " goes through \"..\""; next }
        if ($2 ~ /^</) {
            split(name, part, "/")
            if (part[1] in level && name ~ /\.h$/ && name ~ /\//)
                print $1 ": <" name ">: internal headers are included with quotes"
            next
        }
        parts = split(name, part, "/")
        if (parts == 1)
            next # the same directory, or the compiler complains
        if (!(part[1] in level)) { print $1 ": " name " is in no directory of lib/"; next }
        if (part[1] != from && !((from, part[1]) in allowed))
            print $1 ": lib/" from " may not include " name
    }' "$tmp/includes" >"$tmp/upward"
empty layering/floors "$tmp/upward" "includes that do not go down"

# A quoted include without a directory must lie beside the file.
while read -r file include; do
    case $include in
    \"*/* | \<*) continue ;;
    esac
    [ -e "$(dirname "$file")/${include#?}" ] || echo "$file: ${include#?} is not beside it"
done <"$tmp/includes" >"$tmp/stray"
empty layering/beside "$tmp/stray" "includes that depend on the search path"

# io knows no mathematics, kernels know no system calls.
grep -n '#include <math.h>\|#include <tgmath.h>' lib/io/*.c lib/io/*.h /dev/null >"$tmp/math"
empty layering/io "$tmp/math" "lib/io includes mathematics"
find lib/kernels -name '*.[ch]' ! -name 'cpu*.c' -exec \
    grep -n '#include <\(stdio\|stdlib\|unistd\|fcntl\|pthread\|errno\|time\|sys/[a-z]*\)\.h>' {} + \
    >"$tmp/system"
empty layering/kernels "$tmp/system" "kernels include the operating system"

# Programs use the public headers; checkkern and the tests may look inside.
find tools/bitaxon examples tests/consumer -name '*.[ch]*' -exec \
    grep -Hn '^ *# *include *["<]\(runtime\|kernels\|io\|quant\|tokenizer\|ops\|model\|import\|session\|convert\|train\|api\|thermal\)/' {} + >"$tmp/inside"
find tools/bitaxon examples tests/consumer -name '*.[ch]' -exec \
    grep -Hn '\bbxn_' {} + >>"$tmp/inside"
empty layering/programs "$tmp/inside" "programs that use internals"

finish
