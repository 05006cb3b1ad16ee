#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# test_train.sh BITAXON SOURCE_ROOT - `bitaxon train` from outside: every method and objective on a
# tiny model, resuming, signals, files, refusals. Uses a POSIX shell, coreutils, grep and sed;
# python3 where there is one, to read JSON and XML with other code than the project's.

if [ $# -ne 2 ]; then
    echo "usage: test_train.sh BITAXON SOURCE_ROOT" >&2
    exit 2
fi
case $1 in
/*) bin=$1 ;;
*) bin=$(pwd)/$1 ;;
esac
root=$2
tokenizer=$root/examples/models/tokenizer
LC_ALL=C.UTF-8
export LC_ALL

dir=$(mktemp -d) || exit 2
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM HUP
out=$dir/stdout
err=$dir/stderr
passed=0
failed=0
skipped=0
last=

# run ARGUMENT... : runs the command; sets $code, fills $out and $err.
run() {
    last="bitaxon $*"
    "$bin" "$@" >"$out" 2>"$err" </dev/null
    code=$?
}

ok() {
    passed=$((passed + 1))
}

bad() {
    failed=$((failed + 1))
    echo "FAILED: $1"
    echo "  ran: $last (exit code $code)"
    sed 's/^/  stdout: /' "$out" | head -n 5 | cut -c 1-200
    sed 's/^/  stderr: /' "$err" | tail -n 5 | cut -c 1-200
}

# check NAME COMMAND... : passes when the command does.
check() {
    name=$1
    shift
    if "$@" >/dev/null 2>&1; then ok; else bad "$name"; fi
}

exits() { [ "$code" -eq "$1" ]; }

# trains NAME ARGUMENT... : must succeed.
trains() {
    name=$1
    shift
    run train "$@"
    check "$name" exits 0
}

# fails NAME CODE PATTERN ARGUMENT... : that exit code, nothing on standard output, and a line
# "bitaxon: ..." with the pattern on standard error.
fails() {
    name=$1
    want=$2
    pattern=$3
    shift 3
    run train "$@"
    if [ "$code" -eq "$want" ] && [ ! -s "$out" ] && grep '^bitaxon: ' "$err" | grep -q -e "$pattern"
    then ok; else bad "$name"; fi
}

# json KEY : the scalar at "KEY" on its own line of $out.
json() {
    sed -n 's/^ *"'"$1"'": \(.*[^,]\),*$/\1/p' "$out" | head -n 1 | grep . || echo 0
}

# ---- a model, data -----------------------------------------------------------------------

cat >"$dir/tiny.json" <<'END'
{"vocab_size": 4096, "hidden_dim": 32, "num_layers": 3, "num_heads": 2, "d_source_model": 32,
 "ssm_d_state": 4, "ssm_d_conv": 4, "ssm_expand": 2, "ssm_scan_step": 8, "swa_window_size": 32,
 "moe_num_experts": 2, "moe_top_k": 1, "moe_intermediate_dim": 32, "moe_shared_expert": true,
 "weight_tying": true, "max_seq_len": 1024, "rms_norm_eps": 1e-6}
END
model=$dir/model
run new --config "$dir/tiny.json" --seed 1 --tokenizer "$tokenizer" "$model"
check "a model" exits 0
run quantize "$model" "$dir/q4" --group-size 32
check "a quantised model" exits 0
sft=$dir/sft.jsonl
orpo=$dir/orpo.jsonl
for i in 1 2 3 4 5 6 7 8 9 10; do
    echo '{"messages":[{"role":"user","content":"Say '$i'."},{"role":"assistant","content":"It is '$i'."}]}'
done >"$sft"
for i in 1 2 3 4 5 6; do
    echo '{"prompt":"Say '$i'.","chosen":"It is '$i'.","rejected":"No, not '$i' again."}'
done >"$orpo"
echo 'The cat slept. The cat woke up. The cat slept again, all day long.' >"$dir/text.txt"
common="--block 64 --accumulate 2 --threads 2 --no-thermal"

# ---- usage, refusals ---------------------------------------------------------------------

run train --help
check "--help" grep -q '^Usage: bitaxon train' "$out"
check "--help fits 100 columns" awk 'length > 100 { exit 1 }' "$out"
cp "$out" "$dir/help"
run help train
check "help train" cmp "$out" "$dir/help"
run help
check "the list of commands has train" grep -q '^  train ' "$out"
sed -n 's/^ .*--\([a-z-]*\).*/\1/p' "$dir/help" >"$dir/options"
grep -v '^help$' "$dir/options" | while read -r option; do
    grep -q -e "--$option" "$root/docs/command.md" || echo "$option"
done >"$dir/missing"
last="docs/command.md"
cp "$dir/missing" "$out"
check "the manual has every option" test ! -s "$dir/missing"

nowhere=$dir/nowhere
fails "no output" 2 "output DIR is missing" "$model" "$sft"
fails "unknown option" 2 "frobnicate" "$model" "$sft" --frobnicate
fails "no data" 2 "missing" "$model" --output "$nowhere"
fails "unknown method" 2 "'half' is not lora, dora or full" "$model" "$sft" -o "$nowhere" --method half
fails "steps and epochs" 2 "exclude" "$model" "$sft" -o "$nowhere" --steps 3 --epochs 2
fails "rank of full" 2 "rank" "$model" "$sft" -o "$nowhere" --method full --rank 4
fails "muon of an adapter" 2 "muon" "$model" "$sft" -o "$nowhere" --optimizer muon
fails "beta of SFT" 2 "orpo" "$model" "$sft" -o "$nowhere" --beta 1
fails "paper and beta" 2 "stands for" "$model" "$orpo" -o "$nowhere" --objective orpo --paper --beta 2
fails "evaluation without data" 2 "validation" "$model" "$sft" -o "$nowhere" --eval-every 3
fails "no such model" 1 "no-such-model" "$dir/no-such-model" "$sft" -o "$nowhere"
fails "no such data" 1 "no-such-data" "$model" "$dir/no-such-data" -o "$nowhere"
: >"$dir/empty.jsonl"
fails "empty data" 1 "empty.jsonl" "$model" "$dir/empty.jsonl" -o "$nowhere"
{ cat "$sft" && echo '{"messages": 7}'; } >"$dir/bad.jsonl"
fails "a bad line, strict" 1 "bad.jsonl:11\|line 11" "$model" "$dir/bad.jsonl" -o "$nowhere" --strict
fails "data of SFT for ORPO" 1 "sft.jsonl" "$model" "$sft" -o "$nowhere" --objective orpo
fails "full training of a quantised model" 1 "quantised" "$dir/q4" "$sft" -o "$nowhere" --method full
fails "nothing is named so" 1 "targets" "$model" "$sft" -o "$nowhere" --targets no_such_proj
fails "block beyond the context" 1 "max_seq_len" "$model" "$sft" -o "$nowhere" --block 2048
fails "nothing to resume" 1 "no checkpoint" "$model" "$sft" -o "$nowhere" --resume
check "refusals leave nothing" test ! -e "$nowhere"
fails "output is a file" 1 "sft.jsonl" "$model" "$sft" -o "$sft"

# ---- every method and objective ----------------------------------------------------------

# whole DIR : a finished run has these.
whole() {
    [ -s "$1/metrics.jsonl" ] && [ -s "$1/loss.svg" ] && [ -d "$1/checkpoints/step_00000004" ] &&
        [ -z "$(find "$1" -name '*.new' -o -name '*.tmp' -o -name '*.svg.*' -o -name '*.jsonl.*')" ]
}
for method in lora dora full; do
    for objective in sft orpo; do
        d=$dir/$method-$objective
        # shellcheck disable=SC2086
        trains "$method, $objective" "$model" "$dir/$objective.jsonl" -o "$d" $common --method $method \
            --objective $objective --steps 4 --validation "$dir/$objective.jsonl" --eval-every 2 --json
        check "$method, $objective: complete" test "$(json complete)" = true
        check "$method, $objective: steps" test "$(json step)" = 4
        check "$method, $objective: files" whole "$d"
        check "$method, $objective: an update a line" \
            test "$(grep -c '"learning_rate"' "$d/metrics.jsonl")" = 4
        check "$method, $objective: evaluations" \
            test "$(grep -c '"evaluation":true' "$d/metrics.jsonl")" = 3
    done
done
check "SFT tells its perplexity" grep -q '"evaluation":true,.*"perplexity":[0-9]' "$dir/dora-sft/metrics.jsonl"
check "ORPO tells its parts" grep -q '"odds":.*"accuracy":' "$dir/dora-orpo/metrics.jsonl"
run verify "$dir/full-sft/model"
check "full: the model is whole" exits 0
run run "$dir/full-sft/model" Hello --max-tokens 3
check "full: the model runs" exits 0
run run "$model" Hello --max-tokens 3 --greedy --adapter "$dir/dora-sft/adapter"
check "the adapter runs" exits 0
run eval "$model" "$dir/text.txt" --json
without=$(json nll)
run eval "$model" "$dir/text.txt" --adapter "$dir/dora-sft/adapter" --json
check "the adapter is evaluated" exits 0
check "and makes a difference" test "$(json nll)" != "$without"
run merge "$model" "$dir/dora-sft/adapter" "$dir/merged"
check "the adapter merges" exits 0
run verify "$dir/merged"
check "merged: the model is whole" exits 0

# shellcheck disable=SC2086
{
    trains "a quantised model" "$dir/q4" "$sft" -o "$dir/q4-run" $common --steps 2 --exact-norm --dropout 0.1
    check "says what it will do" grep -q '^method .*DoRA of rank 8, scale 20, SFT; .* parameters train' "$err"
    check "says how much memory" grep -q '^memory .*iB: model ' "$err"
    check "says what it did" grep -q '^trained  *2 updates' "$out"
    check "says how far it is" grep -Eq '^2/2  loss [0-9.]+  [0-9]+ tokens/s  rate [0-9.e-]+  0:00 left' "$err"
    trains "from an adapter" "$dir/q4" "$sft" -o "$dir/again" $common --steps 1 \
        --adapter "$dir/q4-run/adapter"
    fails "an adapter of another model" 1 "model" "$model" "$sft" -o "$nowhere" --adapter "$dir/q4-run/adapter"
    trains "Muon" "$model" "$sft" -o "$dir/muon" $common --method full --optimizer muon --steps 2 --quiet
    check "quiet" test ! -s "$out" -a ! -s "$err"
    trains "text, one epoch" "$model" "$dir/text.txt" -o "$dir/text" $common --mask all --no-isolation \
        --no-shuffle --targets q_proj,k_proj --alpha 16 --rank 4
    trains "paper" "$model" "$orpo" -o "$dir/paper" $common --objective orpo --paper --steps 1
    trains "bad lines are left out" "$model" "$dir/bad.jsonl" -o "$dir/lenient" $common --steps 1
    check "and counted" grep -q '^ *1 left out: not understood' "$err"
    trains "bad lines for programs" "$model" "$dir/bad.jsonl" -o "$dir/lenient-json" $common --steps 1 --json
    check "and counted for programs" test "$(json bad_lines)" = 1
}

# ---- going on ----------------------------------------------------------------------------

# bits NAME DIR DIR : the results of two runs are the same bytes, and so is what they measured.
bits() {
    last="two runs: $2 $3"
    check "$1: bits" cmp "$2/adapter/adapters.safetensors" "$3/adapter/adapters.safetensors"
    for d in "$2" "$3"; do
        sed 's/,"seconds".*//' "$d/metrics.jsonl" >"$d.losses"
    done
    check "$1: metrics" cmp "$2.losses" "$3.losses"
}
# Rate and warm-up of all the runs below are those of the whole, which is made of 12 updates.
whole_run="$common --validation $sft --eval-every 5 --save-every 4 --steps 12 --dropout 0.1"
# shellcheck disable=SC2086
{
    trains "in one go" "$model" "$sft" -o "$dir/one" $whole_run
    fails "a directory in use" 1 "has checkpoints of a run.*--resume.*another --output" \
        "$model" "$sft" -o "$dir/one" $whole_run
    mkdir "$dir/used" && cp -r "$dir/one/adapter" "$dir/used"
    fails "a directory with a result" 1 "result of a run" "$model" "$sft" -o "$dir/used" $whole_run
    fails "resumed with another rate" 1 "learning_rate" "$model" "$sft" -o "$dir/one" $whole_run \
        --resume --learning-rate 1
    fails "resumed with other data" 1 "data" "$model" "$dir/text.txt" -o "$dir/one" $whole_run --resume

    # As a kill leaves it: a checkpoint of 8, metrics of 12 and half a line.
    cp -r "$dir/one" "$dir/two"
    rm -r "$dir/two/checkpoints/step_00000012" "$dir/two/adapter" "$dir/two/loss.svg"
    printf '{"step":13,"lo' >>"$dir/two/metrics.jsonl"
    trains "resumed" "$model" "$sft" -o "$dir/two" $whole_run --resume
    check "says where it goes on" grep -q '^resumed at .*update 8' "$err"
    bits "resumed" "$dir/one" "$dir/two"
    check "the picture is back" test -s "$dir/two/loss.svg"
    trains "resumed when all is done" "$model" "$sft" -o "$dir/two" $whole_run --resume
    bits "resumed when all is done" "$dir/one" "$dir/two"
    trains "more steps" "$model" "$sft" -o "$dir/two" $whole_run --resume --steps 14 --warmup 1
    check "more steps: they were made" grep -q '"step":14,' "$dir/two/metrics.jsonl"

    # As several machines sum: a kind of run of its own.
    trains "ordered" "$model" "$sft" -o "$dir/ordered" $whole_run --ordered
    cp -r "$dir/ordered" "$dir/ordered2"
    rm -r "$dir/ordered2/checkpoints/step_00000012" "$dir/ordered2/adapter"
    fails "ordered, resumed without" 1 "ordered" "$model" "$sft" -o "$dir/ordered2" $whole_run --resume
    trains "ordered, resumed" "$model" "$sft" -o "$dir/ordered2" $whole_run --ordered --resume
    bits "ordered, resumed" "$dir/ordered" "$dir/ordered2"
}

if [ -c /dev/full ]; then
    mkdir "$dir/full" && ln -s /dev/full "$dir/full/metrics.jsonl"
    # shellcheck disable=SC2086
    fails "metrics on a full disk" 1 "metrics.jsonl: No space" "$model" "$sft" -o "$dir/full" $whole_run
    check "metrics on a full disk: a checkpoint is kept" test -d "$dir/full/checkpoints/step_00000000"
fi

# A signal in the middle: many updates, stopped as soon as the first are in metrics.jsonl.
long="$common --steps 400 --save-every 1000 --learning-rate 1e-5"
# interrupt SIGNAL DIR ARGUMENT... : sets $code.
interrupt() {
    signal=$1
    d=$2
    shift 2
    last="bitaxon $* (interrupted)"
    "$bin" "$@" >"$out" 2>"$err" </dev/null &
    process=$!
    n=0
    while ! grep -q '"step":3,' "$d/metrics.jsonl" 2>/dev/null && [ $n -lt 300 ]; do
        sleep 0.05
        n=$((n + 1))
    done
    kill -s "$signal" $process
    wait $process
    code=$?
}
# shellcheck disable=SC2086
{
    trains "400 updates" "$model" "$sft" -o "$dir/long" $long
    interrupt TERM "$dir/cut" train "$model" "$sft" -o "$dir/cut" $long
    check "SIGTERM" exits 143
    check "says how to go on" grep -q 'same command with --resume' "$err"
    check "no result yet" test ! -e "$dir/cut/adapter"
    trains "after SIGTERM" "$model" "$sft" -o "$dir/cut" $long --resume
    bits "after SIGTERM" "$dir/long" "$dir/cut"
    # A shell without job control starts what it puts behind with Ctrl-C ignored.
    if env --default-signal=INT true 2>/dev/null; then
        bin_real=$bin
        bin=$dir/interruptible
        printf '#!/bin/sh\nexec env --default-signal=INT "%s" "$@"\n' "$bin_real" >"$bin"
        chmod +x "$bin"
        interrupt INT "$dir/int" train "$model" "$sft" -o "$dir/int" $long
        bin=$bin_real
        check "Ctrl-C" exits 130
        trains "after Ctrl-C" "$model" "$sft" -o "$dir/int" $long --resume
        bits "after Ctrl-C" "$dir/long" "$dir/int"
    else
        echo "SKIP: env cannot let Ctrl-C through"
        skipped=$((skipped + 1))
    fi
}

# ---- heat --------------------------------------------------------------------------------

zone="$dir/sensors/sys/class/thermal/thermal_zone0"
mkdir -p "$zone"
echo x86_pkg_temp >"$zone/type"
echo 61500 >"$zone/temp"
hot="--block 64 --accumulate 2 --threads 2 --sensor-root $dir/sensors"
# shellcheck disable=SC2086
{
    trains "with a sensor" "$model" "$sft" -o "$dir/heat" $hot --steps 3 --json
    check "temperature in the metrics" grep -q '"celsius":61.5,"band":"NORMAL"' "$dir/heat/metrics.jsonl"
    check "temperature in the picture" grep -q 'temperature' "$dir/heat/loss.svg"
    check "no temperature without a sensor" sh -c '! grep -q temperature "$1"' sh "$dir/one/loss.svg"
    check "temperature in the summary" test "$(json band)" = '"NORMAL"'
    echo 96000 >"$zone/temp"
    fails "too hot" 1 "96" "$model" "$sft" -o "$dir/hot" $hot --steps 3
    check "too hot: says how to go on" grep -q 'same command with --resume' "$err"
    echo 50000 >"$zone/temp"
    trains "cool again" "$model" "$sft" -o "$dir/hot" $hot --steps 3 --resume
    check "cool again: bits" cmp "$dir/hot/adapter/adapters.safetensors" "$dir/heat/adapter/adapters.safetensors"
}

# ---- presets, energy ---------------------------------------------------------------------

supply="$dir/sensors/sys/class/power_supply"
power="$dir/sensors/sys/class/powercap/intel-rapl:0"
tree="--threads 2 --sensor-root $dir/sensors"
# share PART WHOLE LEAST MOST : whether PART / WHOLE lies there.
share() { awk -v p="$1" -v w="$2" -v l="$3" -v m="$4" 'BEGIN { exit !(w > 0 && p / w >= l && p / w <= m) }'; }
# rested DIR LEAST : whether updates rested at least that share of their time (a busy machine sleeps too long).
rested() {
    sed 's/.*"seconds":\([0-9.e-]*\),"paused_seconds":\([0-9.e-]*\).*/\1 \2/' "$1/metrics.jsonl" |
        awk -v least="$2" '{ all += $1; rest += $2 } END { exit !(all > 0 && rest >= least * all && rest < all) }'
}
# shellcheck disable=SC2086
{
    sed 's/_dim": 32/_dim": 128/; s/model": 32/model": 128/; s/1024/2048/' "$dir/tiny.json" >"$dir/mid.json"
    run new --config "$dir/mid.json" --seed 1 --tokenizer "$tokenizer" "$dir/mid"
    check "a model that reads 2048 tokens" exits 0
    trains "usual memory" "$dir/mid" "$sft" -o "$dir/usual" $tree --steps 1 --json
    usual=$(json bytes)
    trains "low-memory" "$dir/mid" "$sft" -o "$dir/low" $tree --steps 1 --preset low-memory --json
    check "low-memory needs at most a third" share "$(json bytes)" "$usual" 0.001 0.333
    check "low-memory: what it stands for" grep -q '1 of 8 x 1 blocks of up to 256 tokens' "$err"
    check "low-memory: rank 4" grep -q 'DoRA of rank 4' "$err"
    trains "low-memory, but" "$model" "$sft" -o "$dir/low-but" $tree --steps 1 --preset low-memory --rank 2 \
        --block 64 --accumulate 3
    check "low-memory, but what is given" grep -q '1 of 3 x 1 blocks of up to 64 tokens' "$err"
    check "low-memory, but that rank" grep -q 'DoRA of rank 2' "$err"

    mkdir -p "$supply/BAT0" "$power"
    echo Battery >"$supply/BAT0/type"
    echo Discharging >"$supply/BAT0/status"
    echo 60 >"$supply/BAT0/capacity"
    echo package-0 >"$power/name"
    echo 1000000000 >"$power/max_energy_range_uj"
    echo 0 >"$power/energy_uj"
    n=0
    while n=$((n + 7000)) && [ $n -lt 7000000 ]; do # 7 mJ every 10 ms, for 10 s
        echo $n >"$power/energy_uj.new" && mv "$power/energy_uj.new" "$power/energy_uj"
        sleep 0.01
    done &
    meter=$!
    trains "battery" "$model" "$sft" -o "$dir/battery" $hot --steps 20 --preset battery --json
    check "battery: half of the time" rested "$dir/battery" 0.43
    trains "energy" "$model" "$sft" -o "$dir/energy" $hot --steps 20
    kill $meter
    check "energy of an update" grep -q '"joules":0\.' "$dir/energy/metrics.jsonl"
    check "energy in the summary" grep -q '^energy .* J, .* J/token (RAPL package-0)' "$out"
    check "temperature in the table" grep -q '^temperature .* C, at most .* C (x86_pkg_temp), NORMAL' "$out"
    echo 20 >"$supply/BAT0/capacity"
    fails "battery: low" 1 "on battery at 20 percent, the floor is 20" "$model" "$sft" -o "$dir/empty" $hot \
        --steps 3 --preset battery
    trains "battery: another floor" "$model" "$sft" -o "$dir/empty" $hot --steps 3 --resume --preset battery \
        --battery-floor 10 --power 100
    fails "battery and mains only" 2 "exclude" "$model" "$sft" -o "$nowhere" --preset battery --mains-only
    fails "battery without a policy" 2 "exclude" "$model" "$sft" -o "$nowhere" --preset battery --no-thermal
    fails "unknown preset" 2 "'fast' is not low-memory, battery" "$model" "$sft" -o "$nowhere" --preset fast
    rm -r "$supply" "$power"
    echo 82600 >"$zone/temp"
    trains "warm: graded" "$model" "$sft" -o "$dir/graded" $hot --steps 20 --json
    check "warm: rests as its temperature asks" rested "$dir/graded" 0.36
    echo 50000 >"$zone/temp"
    run run "$dir/full-sft/model" Hello --max-tokens 3 --sensor-root "$dir/sensors" --battery --stats
    check "run --battery" grep -q 'rested' "$err"
    run run "$model" Hello --battery --no-thermal
    check "run --battery --no-thermal" exits 2
}

# ---- files, read by others ---------------------------------------------------------------

if command -v python3 >/dev/null 2>&1; then
    last="python3"
    for d in one two cut heat full-orpo; do
        check "well-formed files: $d" python3 - "$dir/$d" <<'END'
import json, re, sys, xml.dom.minidom
for line in open(sys.argv[1] + "/metrics.jsonl"):
    assert isinstance(json.loads(line)["loss"], float)
svg = open(sys.argv[1] + "/loss.svg").read()
assert xml.dom.minidom.parseString(svg).documentElement.tagName == "svg"
assert "nan" not in svg and "inf" not in svg and "<script" not in svg and len(svg) < 200000
points = lambda kind: len(re.findall('<path class="%s" clip-path[^>]* d="M[^"]+"' % kind, svg))
assert points("l") and points("r") and points("s"), "curves of loss, rate and smoothed loss"
evaluations = sum(bool(json.loads(line).get("evaluation")) for line in open(sys.argv[1] + "/metrics.jsonl"))
assert svg.count('<circle class="v"') == (evaluations + 1 if evaluations else 0), "a dot each, and one in the legend"
END
    done
else
    echo "SKIP: python3 is not there to read metrics.jsonl and loss.svg"
    skipped=$((skipped + 1))
fi

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
