#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# imports.sh BUILD - what the library takes from outside is in abi/imports.txt, and nothing
# in that list stops the process, prints, reads the environment or depends on the locale.
. "$(dirname "$0")/gate.sh"

# Names that a library inside somebody else's program has no business with. The formatting
# functions that write to streams are among them; snprintf and vsnprintf are not.
cat >"$tmp/forbidden" <<'END'
abort
exit
_exit
_Exit
quick_exit
atexit
__assert_fail
printf
vprintf
fprintf
vfprintf
dprintf
vdprintf
sprintf
vsprintf
puts
fputs
putchar
putc
fputc
putc_unlocked
perror
psignal
fwrite
stdin
stdout
stderr
getenv
secure_getenv
setenv
putenv
unsetenv
setlocale
localeconv
strerror
strtod
strtof
strtold
atof
scanf
fscanf
rand
srand
random
srandom
drand48
signal
sigaction
sigprocmask
raise
kill
alarm
setitimer
system
popen
fork
vfork
execv
execve
execvp
posix_spawn
posix_spawnp
socket
connect
getaddrinfo
dlopen
chdir
umask
strtok
localtime
gmtime
asctime
ctime
gets
alloca
longjmp
_longjmp
__longjmp_chk
setjmp
_setjmp
END
sort "$tmp/forbidden" >"$tmp/forbidden-sorted"

grep -v '^#' "$root/abi/imports.txt" | sort >"$tmp/allowed"
comm -12 "$tmp/forbidden-sorted" "$tmp/allowed" >"$tmp/bad"
empty imports/list "$tmp/bad" "forbidden names in abi/imports.txt"

# undefined FILE NM-OPTION - names without versions; _FORTIFY_SOURCE twins count as the
# function itself
undefined()
{
    nm $2 --undefined-only "$1" 2>/dev/null | awk 'NF == 2 && $1 ~ /^[UwvV]$/ { print $2 }' |
        sed 's/@.*//; s/^__isoc[0-9]*_//; s/^__\(.*\)_chk$/\1/
            s/^\(f\{0,1\}stat\|lstat\|open\|pread\|pwrite\|mmap\|lseek\|readdir\|ftruncate\)64$/\1/' |
        sort -u
}

for library in "$build/libbitaxon.so" "$build/libbitaxon.a"; do
    kind=shared
    option=-D
    case $library in *.a) kind=static option= ;; esac
    if [ ! -e "$library" ]; then
        skip "imports/$kind" "not built in $build"
        continue
    fi
    undefined "$library" "$option" >"$tmp/undefined"
    comm -12 "$tmp/undefined" "$tmp/forbidden-sorted" >"$tmp/bad"
    empty "imports/$kind-forbidden" "$tmp/bad" "$library calls forbidden functions"
    comm -23 "$tmp/undefined" "$tmp/allowed" >"$tmp/new"
    empty "imports/$kind" "$tmp/new" "$library needs names that abi/imports.txt does not list"
done

finish
