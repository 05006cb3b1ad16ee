#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# arm64.sh DIR [full] - cross-build for Arm64 into DIR and run what was built under emulated
# processors of several kinds: those without the byte dot products, with them, with the byte
# matrix products. checkkern judges every tier against plain C. full: plain C as well, more
# processors, and the unit tests of the whole library where DIR/sysroot has its libraries
# (cmake/arm64_sysroot.sh). Prints PASS, FAIL and SKIP lines. Emulation shows nothing about
# speed and little about memory ordering.
# Called by run.sh. Reads JOBS and HOST_CHECKKERN (checkkern of this machine) from the environment.
set -u
cd "$(dirname "$0")/.."
dir=$1
full=${2:-}
jobs=${JOBS:-2}
unset BITAXON_TEST_FULL

if [ "$(uname -m)" = aarch64 ]; then
    echo "SKIP arm64: this is an Arm64 machine, whose tiers ran without emulation"
    exit 0
fi
for tool in aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu qemu-aarch64:qemu-user; do
    command -v "${tool%:*}" >/dev/null 2>&1 ||
        { echo "SKIP arm64: needs the package ${tool#*:} (make deps-full)"; exit 0; }
done
if [ ! -e /usr/aarch64-linux-gnu/lib/libc.so ]; then
    echo "SKIP arm64: needs the package libc6-dev-arm64-cross (make deps-full)"
    exit 0
fi

# built DIR FLAG... - cross-build, quietly unless it fails
built()
{
    out=$1
    shift
    mkdir -p "$out"
    if cmake -S . -B "$out" -DCMAKE_TOOLCHAIN_FILE="$PWD/cmake/aarch64-linux-gnu.cmake" \
        -DBITAXON_WERROR=ON "$@" >"$out/build.log" 2>&1 &&
        cmake --build "$out" -j "$jobs" >>"$out/build.log" 2>&1; then
        return 0
    fi
    grep -E -A8 'error|Error|undefined reference' "$out/build.log" | head -40 >&2
    echo "FAIL arm64-build: $out does not build, see $out/build.log"
    return 1
}

libraries=$dir/sysroot/usr/lib/aarch64-linux-gnu
# emulated CPU NAME COMMAND... - one line, and the end of the output when it fails
emulated()
{
    cpu=$1
    name=arm64-$cpu/$2
    log=$dir/$cpu-$2.log
    shift 2
    if timeout 1800 qemu-aarch64 -cpu "$cpu" -L /usr/aarch64-linux-gnu \
        -E LD_LIBRARY_PATH="$libraries" "$@" >"$log" 2>&1; then
        echo "PASS $name"
    else
        tail -n 30 "$log" >&2
        echo "FAIL $name: $*"
    fi
}

built "$dir/kernels" -DBITAXON_KERNELS_ONLY=ON || exit 0
checkkern=$dir/kernels/checkkern
# NEON takes as long as the others together, which have only the integer entries of their own.
emulated cortex-a53 checkkern-neon "$checkkern" --tier neon &
emulated cortex-a76 checkkern-dotprod "$checkkern" --tier dotprod
emulated max checkkern-i8mm "$checkkern" --tier i8mm
wait
# What a processor lacks is neither offered nor run.
for pair in cortex-a53:dotprod cortex-a72:dotprod cortex-a76:i8mm neoverse-n1:i8mm; do
    cpu=${pair%:*} tier=${pair#*:}
    if qemu-aarch64 -cpu "$cpu" -L /usr/aarch64-linux-gnu "$checkkern" --list --tier "$tier" |
        awk '/not on this processor/ { lacks++ } END { exit !(NR > 0 && lacks == NR) }'; then
        echo "PASS arm64-$cpu/no-$tier"
    else
        echo "FAIL arm64-$cpu/no-$tier: offered"
    fi
done
# The same bits as on the processor of this machine, where the contract fixes their order.
host=${HOST_CHECKKERN:-}
if [ -n "$host" ] && "$host" --digest --tier avx2 >"$dir/digest-avx2" 2>/dev/null; then
    for pair in cortex-a53:neon cortex-a76:dotprod max:i8mm; do
        cpu=${pair%:*} tier=${pair#*:}
        if qemu-aarch64 -cpu "$cpu" -L /usr/aarch64-linux-gnu "$checkkern" --digest \
            --tier "$tier" >"$dir/digest-$tier" && [ -s "$dir/digest-$tier" ] &&
            diff "$dir/digest-avx2" "$dir/digest-$tier" >&2; then
            echo "PASS arm64-$cpu/same-bits-$tier"
        else
            echo "FAIL arm64-$cpu/same-bits-$tier: not the bits of AVX2"
        fi
    done
else
    echo "SKIP arm64-same-bits: no AVX2 here to compare with"
fi
[ "$full" = full ] || exit 0

emulated max checkkern-all "$checkkern" --seed 2 &
emulated neoverse-n1 checkkern-products "$checkkern" --filter near
emulated cortex-a72 checkkern-neon "$checkkern" --tier neon --seed 3
wait
if [ ! -e "$libraries/libjansson.so" ]; then
    echo "SKIP arm64-library: no libraries for Arm64 (cmake/arm64_sysroot.sh $dir/sysroot)"
    exit 0
fi
built "$dir/library" -DBITAXON_SYSROOT="$dir/sysroot" -DBITAXON_TESTS=ON || exit 0
for test in golden version kernels pool quant session segments generate convert safetensors \
    tokenizer utf8_stream; do
    program=$dir/library/tests/test_$test
    [ -x "$program" ] || { echo "FAIL arm64-library/test_$test: was not built"; continue; }
    for cpu in cortex-a53 cortex-a76 max; do
        emulated "$cpu" "test_$test" "$program"
    done
done
