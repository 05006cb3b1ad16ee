#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# arm64_sysroot.sh DIR - fetch the Debian packages for Arm64 that the library and its tests
# need (1.3 MB) and unpack them into DIR, for cross builds. Called by deps.sh install full.
# Neither the machine's packages nor its list of architectures change: apt works in DIR, with
# the machine's own sources and keys.
set -eu
[ $# = 1 ] || { echo "usage: arm64_sysroot.sh DIR" >&2; exit 2; }
packages="libjansson-dev libjansson4 libpcre2-dev libpcre2-8-0 libutf8proc-dev libutf8proc2
libxxhash-dev libcmocka-dev libcmocka0"
mkdir -p "$1/apt/lists/partial" "$1/apt/cache/archives/partial" "$1/apt/debs"
dir=$(cd "$1" && pwd)
: >"$dir/apt/status"
cat >"$dir/apt/apt.conf" <<END
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Sandbox::User "$(id -un)";
Dir::State::lists "$dir/apt/lists";
Dir::State::status "$dir/apt/status";
Dir::Cache "$dir/apt/cache";
END
export APT_CONFIG="$dir/apt/apt.conf"
apt-get -q update
# shellcheck disable=SC2086
(cd "$dir/apt/debs" && apt-get -q download $packages)
for package in "$dir"/apt/debs/*.deb; do
    dpkg-deb -x "$package" "$dir"
done
rm -rf "$dir/apt"
