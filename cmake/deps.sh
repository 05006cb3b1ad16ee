#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What the build needs from the system. Called by GNUmakefile.
#   deps.sh check [tests]    0 when all is there; else prints what is missing
#   deps.sh ensure [tests]   check; when something is missing, install it as root, or say how
#   deps.sh install [full]   install with apt-get (through sudo when not root)
set -eu

build="build-essential cmake pkg-config libjansson-dev libpcre2-dev libutf8proc-dev
libxxhash-dev libedit-dev"
tests="libcmocka-dev"
gates="abigail-tools python3 python3-regex libopenmpi-dev openmpi-bin mpich libmpich-dev
iproute2" # a check without its tool prints a SKIP line
full="clang valgrind qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross"   # make test-full

# missing [tests]
missing()
{
    for tool in cc cmake pkg-config objcopy ${1:+c++}; do
        command -v "$tool" >/dev/null 2>&1 || echo "$tool"
    done
    command -v pkg-config >/dev/null 2>&1 || return 0
    for module in jansson libpcre2-8 libutf8proc libxxhash ${1:+cmocka}; do
        pkg-config --exists "$module" || echo "$module"
    done
}

install()
{
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "There is no apt-get here. Install the counterparts of these Debian packages:" >&2
        echo $build $tests $gates >&2
        exit 1
    fi
    as_root=
    [ "$(id -u)" = 0 ] || as_root=sudo
    extra=
    [ "${1:-}" != full ] || extra=$full
    $as_root apt-get update
    $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends $build $tests $gates $extra
}

case "${1:-check}" in
check)
    lacking=$(missing "${2:-}")
    [ -z "$lacking" ] || { echo "missing:" $lacking; exit 1; }
    ;;
ensure)
    lacking=$(missing "${2:-}")
    [ -n "$lacking" ] || exit 0
    echo "missing:" $lacking
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        echo "Install what is missing with:   make deps" >&2
        exit 1
    fi
    install
    ;;
install)
    install "${2:-}"
    ;;
*)
    echo "usage: deps.sh check [tests] | ensure [tests] | install [full]" >&2
    exit 2
    ;;
esac
