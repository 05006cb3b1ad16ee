# SPDX-License-Identifier: Apache-2.0
# aarch64-linux-gnu.cmake - toolchain file for Arm64 Linux with Debian's gcc-aarch64-linux-gnu.
#   cmake -S . -B build-arm64 -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake \
#         -DBITAXON_KERNELS_ONLY=ON
# The whole library needs its libraries for Arm64: -DBITAXON_SYSROOT=DIR names a folder with
# usr/include and usr/lib/aarch64-linux-gnu (cmake/arm64_sysroot.sh makes one).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES BITAXON_SYSROOT)

set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
if(BITAXON_SYSROOT)
  list(APPEND CMAKE_FIND_ROOT_PATH ${BITAXON_SYSROOT})
  set(ENV{PKG_CONFIG_SYSROOT_DIR} ${BITAXON_SYSROOT})
  set(ENV{PKG_CONFIG_LIBDIR} ${BITAXON_SYSROOT}/usr/lib/aarch64-linux-gnu/pkgconfig)
  set(CMAKE_EXE_LINKER_FLAGS_INIT -Wl,-rpath-link,${BITAXON_SYSROOT}/usr/lib/aarch64-linux-gnu)
endif()
