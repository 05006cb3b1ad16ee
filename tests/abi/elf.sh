#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# elf.sh BUILD - the shared object as the loader sees it: SONAME, full RELRO, no executable
# stack, no text relocations, no run path, only the libraries that are written here.
. "$(dirname "$0")/gate.sh"

library=$build/libbitaxon.so
if [ ! -e "$library" ]; then
    skip elf "no shared library in $build"
    finish
fi
readelf -dW "$library" >"$tmp/dynamic"
readelf -lW "$library" >"$tmp/segments"
abi=$(sed -n 's/^#define BITAXON_ABI_VERSION \([0-9]*\)/\1/p' "$root/include/bitaxon/version.h")

# has NAME FILE PATTERN / hasnt NAME FILE PATTERN
has() { if grep -qE "$3" "$2"; then pass "$1"; else fail "$1" "no \"$3\""; fi; }
hasnt() { grep -E "$3" "$2" >"$tmp/found"; empty "$1" "$tmp/found" "present"; }

has elf/soname "$tmp/dynamic" "SONAME.*\[libbitaxon\.so\.$abi\]"
has elf/relro "$tmp/segments" '^ *GNU_RELRO'
has elf/bind-now "$tmp/dynamic" 'BIND_NOW|FLAGS.*NOW'
has elf/stack "$tmp/segments" '^ *GNU_STACK.* RW  *0x'
hasnt elf/text-relocations "$tmp/dynamic" 'TEXTREL'
hasnt elf/run-path "$tmp/dynamic" 'R(UN)?PATH'
hasnt elf/writable-code "$tmp/segments" '^ *LOAD.* RWE '

sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' "$tmp/dynamic" |
    grep -vE '^(libjansson|libpcre2-8|libutf8proc|libm|libc|libpthread|ld-linux.*|libgcc_s)\.so' \
        >"$tmp/needed"
empty elf/needed "$tmp/needed" "needs libraries that are not in the list"

finish
