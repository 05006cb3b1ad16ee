#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# examples.sh BUILD MODEL - run every example on a small model and look at what it says.
. "$(dirname "$0")/abi/gate.sh"
root=$(cd "$(dirname "$0")/.." && pwd)
model=$2
bin=$build/examples
library=$(ls "$build"/libbitaxon.so.? 2>/dev/null | head -n 1)

# example NAME PATTERN COMMAND... - must succeed, print something, and match PATTERN
example()
{
    name=$1
    pattern=$2
    shift 2
    echo "$name" >>"$tmp/run"
    timeout 120 "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
    code=$?
    if [ "$code" != 0 ]; then
        fail "examples/$name" "exit $code: $(tail -n 3 "$tmp/err")"
    elif [ ! -s "$tmp/out" ]; then
        fail "examples/$name" "it printed nothing"
    elif ! cat "$tmp/out" "$tmp/err" | grep -aqE "$pattern"; then
        fail "examples/$name" "nothing like \"$pattern\" in what it printed"
        cat "$tmp/out" "$tmp/err" | head -n 20
    else
        pass "examples/$name"
    fi
}

example generate 'prompt [1-9][0-9]* tokens in .* generated 24 tokens' \
    "$bin/generate" "$model" "Once upon a time" 24 7
cp "$tmp/out" "$tmp/first"
"$bin/generate" "$model" "Once upon a time" 24 7 >"$tmp/second" 2>/dev/null
if cmp -s "$tmp/first" "$tmp/second"; then pass examples/generate-repeats; else
    fail examples/generate-repeats "the same seed gave another text"; fi

example stream_cancel 'cancelled after [0-9]+ tokens' \
    "$bin/stream_cancel" "$model" "Without an end" 40
grep -aq 'went on for 8 tokens' "$tmp/out" ||
    fail examples/stream_cancel-usable "the session did not go on after the cancel"

printf 'Hello.\nAnd then?\n' >"$tmp/lines"
example chat '[1-9][0-9]* of them read before' sh -c '"$1" "$2" 12 <"$3"' - "$bin/chat" "$model" \
    "$tmp/lines"
example fork_prefix 'continued 3 times' \
    "$bin/fork_prefix" "$model" "The door opened and" " a cat" " a king" " nothing"
example batch_decode '^3 texts of 12 tokens, 12 passes' \
    "$bin/batch_decode" "$model" 12 "A cat" "The door opened and" "Once"
grep -a '^.A cat' "$tmp/out" >"$tmp/first"
"$bin/batch_decode" "$model" 12 "A cat" 2>/dev/null | grep -a '^.A cat' >"$tmp/second"
if cmp -s "$tmp/first" "$tmp/second"; then pass examples/batch-alone; else
    fail examples/batch-alone "a text differs from the one that its prompt gets alone"; fi
example custom_host '^0 allocations for 32 tokens' "$bin/custom_host" "$model" "Count me"
grep -aq ' 0 bytes left' "$tmp/out" || fail examples/custom_host-balance "$(tail -n 1 "$tmp/out")"

cat >"$tmp/chat.jsonl" <<'END'
{"messages":[{"role":"user","content":"Who has the key?"},{"role":"assistant","content":"Anna."}]}
{"messages":[{"role":"user","content":"Where is the cat?"},{"role":"assistant","content":"Outside."}]}
END
example finetune '^after: Who has the key\? -> Anna\.$' \
    "$bin/finetune" "$model" "$tmp/chat.jsonl" "Who has the key?" "$tmp/adapter.safetensors" 40
grep -aq '^before: Who has the key? -> Anna' "$tmp/out" &&
    fail examples/finetune-before "it knew the answer before"
"$build/bitaxon" run "$model" --chat "Who has the key?" --greedy --max-tokens 8 \
    --adapter "$tmp/adapter.safetensors" >"$tmp/out" 2>"$tmp/err" </dev/null
if grep -aq 'Anna\.' "$tmp/out"; then pass examples/finetune-saved; else
    fail examples/finetune-saved "with the saved adapter: $(head -c 200 "$tmp/out")"; fi

if [ -n "$library" ]; then
    example dlopen_host '^bitaxon [0-9]' "$bin/dlopen_host" "$model" "By name" "$library"
    if command -v python3 >/dev/null 2>&1; then
        cp "$tmp/out" "$tmp/first"
        example ctypes_host '^bitaxon [0-9]' python3 "$root/examples/ctypes_host.py" "$model" \
            "By name" "$library"
        if cmp -s "$tmp/first" "$tmp/out"; then pass examples/ctypes-same-text; else
            fail examples/ctypes-same-text "Python and C got different texts"; fi
    else
        skip examples/ctypes_host "python3 is not installed"
        echo ctypes_host >>"$tmp/run"
    fi
else
    skip examples/dlopen_host "no shared library in $build"
fi

# None is left out, none is long.
echo finetune_mpi >>"$tmp/run" # by mpi.sh
ls "$root"/examples/*.c "$root"/examples/*.py | sed 's|.*/||; s|\..*||' | sort >"$tmp/there"
sort -u "$tmp/run" >"$tmp/done"
same examples/all "$tmp/there" "$tmp/done" "examples there (left) and run (right)"
wc -l "$root"/examples/*.c "$root"/examples/*.py | awk '$2 != "total" && $1 >= 120' >"$tmp/long"
empty examples/short "$tmp/long" "examples of 120 lines or more"
if [ "$(wc -l <"$root/examples/finetune.c")" -le 80 ]; then pass examples/finetune-short; else
    fail examples/finetune-short "more than 80 lines"; fi

finish
