#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# run.sh [full] - build, run the tests and gates, build with ASan and UBSan and run the unit
# tests again; print one summary. Called by make test and make test-full.
# Reads BUILD, JOBS, WERROR, CMAKE_FLAGS and TIERS (names of the kernel tiers that have to run, a
# failure where the processor lacks one) from the environment.
set -u
cd "$(dirname "$0")/.."
build=${BUILD:-build}
case $build in /*) ;; *) build=$PWD/$build ;; esac
jobs=${JOBS:-2}
flags="-DBITAXON_TESTS=ON -DBITAXON_WERROR=${WERROR:-0} ${CMAKE_FLAGS:-}"
full=${1:-}
logs=
bad=0

# make_build DIR FLAG... - configure and build, quietly unless it fails
make_build()
{
    dir=$1
    shift
    mkdir -p "$dir"
    # shellcheck disable=SC2086
    if cmake -S . -B "$dir" $flags "$@" >"$dir/build.log" 2>&1 &&
        cmake --build "$dir" -j "$jobs" >>"$dir/build.log" 2>&1; then
        grep -A8 'warning:' "$dir/build.log"
        return 0
    fi
    grep -E -A8 'error|Error|undefined reference' "$dir/build.log" | head -60
    echo "FAIL build: $dir does not build, see $dir/build.log" | tee "$dir/build.testlog"
    logs="$logs $dir/build.testlog"
    return 1
}

# run_tests NAME DIR CTEST-ARGUMENT... - run and keep the log for the summary
run_tests()
{
    name=$1
    dir=$2
    shift 2
    (cd "$dir" && ctest --output-on-failure --no-tests=error "$@") || bad=1
    cp "$dir/Testing/Temporary/LastTest.log" "$dir/$name.testlog"
    logs="$logs $dir/$name.testlog"
}

[ "$full" != full ] || export BITAXON_TEST_FULL=1

echo "== build"
make_build "$build" || { echo "0 passed, 1 failed, 0 skipped"; exit 1; }
echo "== unit tests, fuzz corpora, kernels, command, examples"
run_tests main "$build" -LE 'gate|consumer'
echo "== tiers of kernels (must run: ${TIERS:-c})"
"$build/checkkern" --list | awk -v must=" ${TIERS:-c} " '
    !($2 in seen) { seen[$2] = 1; order[++n] = $2; here[$2] = $0 ~ /runs here$/ }
    END {
        for (i = 1; i <= n; i++) {
            t = order[i]
            if (here[t]) print "PASS tier/" t
            else if (index(must, " " t " ")) print "FAIL tier/" t ": it has to run, this processor lacks it"
            else print "SKIP tier/" t ": this processor lacks it"
        }
        split(must, names, " ")
        for (i in names) if (!(names[i] in seen)) print "FAIL tier/" names[i] ": there is no such tier"
    }' | tee "$build/tiers.testlog"
logs="$logs $build/tiers.testlog"
echo "== gates and consumers"
run_tests gates "$build" -L 'gate|consumer' -j "$jobs"

echo "== address and undefined behaviour sanitizers: unit tests, fuzz corpora, kernels"
if [ ! -r /proc/self/maps ]; then
    echo "SKIP sanitizers: they need /proc, which is not mounted" | tee "$build/proc.testlog"
    logs="$logs $build/proc.testlog"
elif make_build "$build-asan" -DCMAKE_BUILD_TYPE=Debug "-DCMAKE_C_FLAGS_DEBUG=-O1 -g" \
    -DBITAXON_SANITIZE=address,undefined -DBITAXON_TOOLS=OFF -DBITAXON_SHARED=OFF \
    -DBITAXON_WERROR=OFF; then
    # Kernels meet guard pages and canaries in the plain build; here they would take many minutes.
    for name in checkkern test_tiles; do
        echo "SKIP $name under sanitizers: it takes long; the plain build runs it"
    done | tee "$build/asan-skip.testlog"
    logs="$logs $build/asan-skip.testlog"
    run_tests asan "$build-asan" -L 'unit|fuzz' -E '^test_tiles$'
fi

echo "== Arm64, emulated"
JOBS=$jobs HOST_CHECKKERN=$build/checkkern tests/arm64.sh "$build-arm64" $full | tee "$build/arm64.testlog"
logs="$logs $build/arm64.testlog"

if [ "$full" = full ]; then
    echo "== thread sanitizer, unit tests"
    if make_build "$build-tsan" -DCMAKE_BUILD_TYPE=Debug "-DCMAKE_C_FLAGS_DEBUG=-O1 -g" \
        -DBITAXON_SANITIZE=thread -DBITAXON_TOOLS=OFF -DBITAXON_SHARED=OFF \
        -DBITAXON_WERROR=OFF; then
        run_tests tsan "$build-tsan" -L unit
    fi
    echo "== valgrind, unit tests"
    : >"$build/full.testlog"
    logs="$logs $build/full.testlog"
    mkdir -p "$build/full"
    # checked NAME COMMAND... - one line, and the end of its output when it fails
    checked()
    {
        name=$1
        shift
        if timeout 3600 "$@" >"$build/full/output" 2>&1; then
            echo "PASS $name"
        else
            tail -n 30 "$build/full/output" >&2
            echo "FAIL $name: $*"
        fi | tee -a "$build/full.testlog"
    }
    if command -v valgrind >/dev/null 2>&1; then
        for program in "$build"/tests/test_*; do
            [ -x "$program" ] && [ -f "$program" ] || continue
            checked "valgrind/$(basename "$program")" env -u BITAXON_TEST_FULL valgrind -q \
                --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=all "$program"
        done
    else
        echo "SKIP valgrind: not installed (make deps-full)" | tee -a "$build/full.testlog"
    fi
    echo "== processors without AVX-512 and without AVX; what of AVX-512 qemu does not have is not offered"
    if command -v qemu-x86_64 >/dev/null 2>&1 && [ "$(uname -m)" = x86_64 ]; then
        for cpu in Nehalem Haswell Skylake-Server Icelake-Server; do
            for name in test_version test_cpu test_golden; do
                checked "qemu-$cpu/$name" qemu-x86_64 -cpu $cpu "$build/tests/$name"
            done
            checked "qemu-$cpu/checkkern" qemu-x86_64 -cpu $cpu "$build/checkkern" --filter near4
        done
    else
        echo "SKIP qemu: needs qemu-user and an x86-64 machine" | tee -a "$build/full.testlog"
    fi
fi

echo "== summary"
# shellcheck disable=SC2086
awk -v bad="$bad" -f tests/summary.awk $logs
