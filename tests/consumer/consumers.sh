#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# consumers.sh BUILD MODEL - install, move the installed tree, and use it from there in every
# way that is offered: pkg-config (shared and static), C99, C++11, C++20, CMake packages,
# add_subdirectory under a hostile parent, two copies in one process, the README's program.
. "$(dirname "$0")/../abi/gate.sh"
model=$2
hello=$root/tests/consumer/hello.c
jobs=$(nproc 2>/dev/null || echo 2)

if [ ! -e "$build/libbitaxon.so" ] || [ ! -e "$build/libbitaxon.a" ]; then
    skip consumers "shared and static library are needed in $build"
    finish
fi

cmake --install "$build" --prefix "$tmp/first" >"$tmp/install.log" 2>&1 ||
    { fail consumers/install "cmake --install"; cat "$tmp/install.log"; finish; }
mkdir "$tmp/elsewhere"
mv "$tmp/first" "$tmp/elsewhere/moved"
prefix=$tmp/elsewhere/moved
pc=$(find "$prefix" -name bitaxon.pc)
libdir=$(dirname "$(dirname "$pc")")
PKG_CONFIG_PATH=$(dirname "$pc")${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}
export PKG_CONFIG_PATH
grep -rIl "$tmp/first" "$prefix" >"$tmp/found" 2>/dev/null
empty consumers/relocatable "$tmp/found" "installed files name the place they were installed to"
grep -rIl "$build\|$root" "$prefix" | grep -v '\.md$' >"$tmp/found"
empty consumers/no-build-paths "$tmp/found" "installed files name the build or source directory"
strings -a "$libdir/libbitaxon.so" | grep -F "$root/" >"$tmp/found"
empty consumers/reproducible "$tmp/found" "the shared object names the source directory"

DESTDIR=$tmp/staged cmake --install "$build" >"$tmp/install.log" 2>&1
(cd "$tmp/staged" 2>/dev/null && find . -name '*bitaxon*' | grep -c .) >"$tmp/count"
if [ "$(cat "$tmp/count")" -gt 10 ]; then
    pass consumers/destdir
else
    fail consumers/destdir "DESTDIR is not honoured"
fi

# runs NAME COMMAND... - the program must succeed and print what the first one printed
runs()
{
    name=$1
    shift
    if ! "$@" >"$tmp/out" 2>"$tmp/err"; then
        fail "$name" "the program failed"
        sed 's/^/    /' "$tmp/err"
    elif [ -e "$tmp/expected" ] && ! cmp -s "$tmp/out" "$tmp/expected"; then
        fail "$name" "it prints other tokens than the first program"
        cat "$tmp/out" "$tmp/expected"
    else
        [ -e "$tmp/expected" ] || cp "$tmp/out" "$tmp/expected"
        pass "$name"
    fi
}

# builds NAME COMMAND... - the command must succeed without a word
builds()
{
    name=$1
    shift
    if "$@" >"$tmp/log" 2>&1; then
        return 0
    fi
    fail "$name" "it does not build"
    sed -n '1,40s/^/    /p' "$tmp/log"
    return 1
}

strict="-Wall -Wextra -Werror"
if pkg-config --validate bitaxon 2>"$tmp/err"; then pass consumers/pc-valid; else
    fail consumers/pc-valid "$(cat "$tmp/err")"; fi
release=$(sed -n 's/^#define BITAXON_VERSION_STRING "\(.*\)"/\1/p' "$root/include/bitaxon/version.h")
if [ "$(pkg-config --modversion bitaxon)" = "$release" ]; then pass consumers/pc-version; else
    fail consumers/pc-version "$(pkg-config --modversion bitaxon) is not $release"; fi

shared="$(pkg-config --cflags --libs bitaxon)"
# shellcheck disable=SC2086
{
builds consumers/pc-shared-c99 cc -std=c99 -pedantic-errors $strict -o "$tmp/c99" "$hello" $shared &&
    runs consumers/pc-shared-c99 env LD_LIBRARY_PATH="$libdir" "$tmp/c99" "$model"
builds consumers/pc-shared-c++11 c++ -x c++ -std=c++11 -pedantic-errors $strict \
    -o "$tmp/cxx11" "$hello" -x none $shared &&
    runs consumers/pc-shared-c++11 env LD_LIBRARY_PATH="$libdir" "$tmp/cxx11" "$model"
builds consumers/pc-shared-c++20 c++ -x c++ -std=c++20 $strict \
    -o "$tmp/cxx20" "$hello" -x none $shared &&
    runs consumers/pc-shared-c++20 env LD_LIBRARY_PATH="$libdir" "$tmp/cxx20" "$model"
}

# The static library alone, from a copy of the prefix that has no shared one.
cp -R "$prefix" "$tmp/static-only"
find "$tmp/static-only" -name 'libbitaxon.so*' -exec rm -f {} +
static=$(PKG_CONFIG_PATH="$tmp/static-only${libdir#"$prefix"}/pkgconfig" \
    pkg-config --static --cflags --libs bitaxon)
# shellcheck disable=SC2086
builds consumers/pc-static cc -std=c99 $strict -o "$tmp/static" "$hello" $static &&
    runs consumers/pc-static "$tmp/static" "$model"

# shellcheck disable=SC2086
builds consumers/two-copies cc -std=c11 $strict -o "$tmp/two" \
    "$root/tests/consumer/two_copies.c" $static -ldl &&
    if "$tmp/two" "$libdir/libbitaxon.so" "$model" 2>"$tmp/err"; then
        pass consumers/two-copies
    else
        fail consumers/two-copies "exit $?: $(cat "$tmp/err")"
    fi

# The installed command finds its library in the moved tree.
if [ ! -r /proc/self/exe ]; then
    skip consumers/command "the loader needs /proc, which is not mounted, to find \$ORIGIN"
elif [ -x "$prefix/bin/bitaxon" ]; then
    if env -u LD_LIBRARY_PATH "$prefix/bin/bitaxon" --version >"$tmp/out" 2>&1 &&
        grep -q "$release" "$tmp/out"; then
        pass consumers/command
    else
        fail consumers/command "$(head -3 "$tmp/out")"
    fi
fi

cmake_project()
{
    name=$1
    shift
    builds "$name" cmake -S "$root/tests/consumer/$1" -B "$tmp/$1" "$2" &&
        builds "$name" cmake --build "$tmp/$1" -j "$jobs" &&
        for kind in bitaxon static; do
            runs "$name-$kind" env LD_LIBRARY_PATH="$libdir" "$tmp/$1/hello_$kind" "$model"
        done
}
cmake_project consumers/find-package find_package "-DCMAKE_PREFIX_PATH=$prefix"
cmake_project consumers/add-subdirectory hostile "-DBITAXON_SOURCE=$root"

# The program of the README works as it stands.
awk '/^```c$/ { if (!seen) open = 1; seen = 1; next } /^```$/ { open = 0 } open' \
    "$root/README.md" >"$tmp/readme.c"
lines=$(grep -c . "$tmp/readme.c")
if [ "$lines" -lt 10 ] || [ "$lines" -gt 40 ]; then
    fail consumers/readme "README.md has no C program of about 30 lines"
else
    # shellcheck disable=SC2086
    builds consumers/readme cc $strict -o "$tmp/readme" "$tmp/readme.c" $shared &&
        if LD_LIBRARY_PATH=$libdir "$tmp/readme" "$model" "A story about" >"$tmp/out" 2>"$tmp/err" &&
            [ -s "$tmp/out" ]; then
            pass consumers/readme
        else
            fail consumers/readme "exit $?: $(cat "$tmp/err")"
        fi
fi

finish
