#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# mpi.sh BUILD - fine-tuning over MPI with each library that is here: 1, 2 and 4 ranks make the same
# files; a rank that dies, one that hangs and a link that is cut end the run, and other numbers of
# ranks go on from what was saved, with the bits of a run that was never stopped. With root, also
# between two network namespaces over a wire with delay and loss.
. "$(dirname "$0")/abi/gate.sh"
root=$(cd "$(dirname "$0")/.." && pwd)
steps=30
deadline=3
started=

clean()
{
    # shellcheck disable=SC2046,SC2086
    kill -9 $started $(sed -n 's/.* is process //p' "$tmp/err") 2>/dev/null
    for ns in a b; do
        ip netns del "bx$ns$$" 2>/dev/null
    done
    rm -rf "$tmp"
}
: >"$tmp/err"
trap clean EXIT
trap 'exit 1' INT TERM HUP

cat >"$tmp/tiny.json" <<'END'
{"vocab_size": 4096, "hidden_dim": 32, "num_layers": 3, "num_heads": 2, "d_source_model": 32,
 "ssm_d_state": 4, "ssm_d_conv": 4, "ssm_expand": 2, "ssm_scan_step": 8, "swa_window_size": 32,
 "moe_num_experts": 2, "moe_top_k": 1, "moe_intermediate_dim": 32, "moe_shared_expert": true,
 "weight_tying": true, "max_seq_len": 1024, "rms_norm_eps": 1e-6}
END
model=$tmp/model
data=$tmp/chat.jsonl
"$build/bitaxon" new --config "$tmp/tiny.json" --seed 1 --quantize affine4 --group-size 32 \
    --tokenizer "$root/examples/models/tokenizer" "$model" >"$tmp/out" 2>&1 ||
    { fail mpi/model "$(tail -n 1 "$tmp/out")"; finish; }
i=0
while [ $((i += 1)) -le 60 ]; do
    echo '{"messages":[{"role":"user","content":"Say '$i'."},{"role":"assistant","content":"It is '$i'."}]}'
done >"$data"

# ranks N DIRECTORY STEPS OPTION... - a run; its output in $tmp/out and $tmp/err
ranks()
{
    run_ranks=$1
    run_directory=$2
    run_steps=$3
    shift 3
    # shellcheck disable=SC2086
    ${behind:+exec} timeout -k 5 60 $launch mpirun.$library $run_options -n "$run_ranks" "$tmp/finetune.$library" "$model" "$data" \
        "$run_directory" "$run_steps" batch=4 every=5 threads=1 "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
}

# checkpoint DIRECTORY STEP - its files, by what they hold
checkpoint() { (cd "$1/step_000000$2" 2>/dev/null && cksum ./*); }

# trained NAME DIRECTORY STEP WANT - the run's last checkpoint has the files of WANT
trained()
{
    checkpoint "$2" "$3" >"$tmp/found"
    if [ -s "$tmp/found" ] && cmp -s "$tmp/found" "$4"; then pass "$1"; else
        fail "$1" "other files than one rank makes: $(tail -n 2 "$tmp/err")"; fi
}

# alive - ranks that run still; one that has ended may wait for its parent to look
alive()
{
    for pid in $(sed -n 's/.* is process //p' "$tmp/err"); do
        grep -q '^State:[[:blank:]]*[RSDTtI]' "/proc/$pid/status" 2>/dev/null && echo "$pid"
    done
}

# ended NAME WHO CODE PATTERN - in the time allowed, with a message, and no rank is left
ended()
{
    end=$(($(date +%s) + deadline + 12))
    while [ -n "$(alive)" ] && [ "$(date +%s)" -lt $end ]; do sleep 0.1; done
    left=$(alive)
    if [ "$3" = none ]; then # mpirun itself may wait for what is behind the link
        sleep 1
        kill "$job" 2>/dev/null
    fi
    while kill -0 "$job" 2>/dev/null && [ "$(date +%s)" -lt $end ]; do sleep 0.1; done
    if kill -0 "$job" 2>/dev/null; then
        fail "$1" "mpirun is still there $((deadline + 12)) s after $2"
        kill -9 "$job"
        return
    fi
    wait "$job"
    code=$?
    if [ "$code" = 0 ] || { [ "$3" -gt 0 ] 2>/dev/null && [ "$code" != "$3" ]; }; then
        fail "$1" "exit code $code after $2"
    elif ! cat "$tmp/err" "$tmp/out" | grep -q "$4"; then
        fail "$1" "no message like \"$4\": $(tail -n 3 "$tmp/err")"
    elif [ -n "$left" ]; then
        fail "$1" "processes are left after $2: $left"
    else
        pass "$1"
    fi
}

# begun N DIRECTORY - start a run behind the shell and wait until it has made some updates
begun()
{
    : >"$tmp/out"
    : >"$tmp/err"
    (behind=1 && ranks "$1" "$2" $steps deadline=$deadline) &
    job=$!
    started="$started $job"
    end=$(($(date +%s) + 20))
    until grep -q '^step 7 ' "$tmp/out" || [ "$(date +%s)" -ge $end ]; do sleep 0.05; done
}

equality()
{
    for n in 1 2 4; do
        ranks $n "$tmp/$library.$n" $steps
        [ $n != 1 ] || [ -s "$tmp/want" ] || checkpoint "$tmp/$library.1" $steps >"$tmp/want"
        trained "mpi/$library-$n-ranks" "$tmp/$library.$n" $steps "$tmp/want"
    done
    grep '^step' "$tmp/out" | tail -n 1 >"$tmp/ordered"
    ranks 4 "$tmp/$library.fast" $steps fast=1
    if grep '^step' "$tmp/out" | tail -n 1 | paste - "$tmp/ordered" |
        awk '{ d = $4 - $8; exit !($2 == '$steps' && $2 == $6 && d < 1e-3 && d > -1e-3) }'
    then pass "mpi/$library-fast"; else fail "mpi/$library-fast" "$(tail -n 2 "$tmp/err" "$tmp/out")"; fi
    ranks 3 "$tmp/$library.3" 4 && fail "mpi/$library-usage" "3 ranks share 4 micro-steps"
}

# lost SIGNAL RANKS CODE PATTERN - rank 2 of 4 gets the signal; RANKS go on
lost()
{
    directory=$tmp/$library.$1
    begun 4 "$directory"
    kill -"$1" "$(sed -n 's/.*rank 2 of 4 is process //p' "$tmp/err")"
    ended "mpi/$library-$1" "SIG$1" "$3" "$4"
    ls "$directory" | grep -q '\.tmp\|\.old' && [ "$1" = STOP ] && # of its own will: nothing half
        fail "mpi/$library-$1-half" "half a checkpoint: $(ls "$directory")"
    ranks "$2" "$directory" $steps resume=1
    grep -q '^step [1-5] ' "$tmp/out" && fail "mpi/$library-$1-resume" "it began anew"
    trained "mpi/$library-$1-resume-$2" "$directory" $steps "$tmp/want"
}

# ---- two network namespaces ------------------------------------------------------------

wire()
{
    [ "$(id -u)" = 0 ] || { echo "not root"; return 1; }
    for tool in ip python3; do command -v $tool >/dev/null || { echo "no $tool"; return 1; }; done
    [ -w /dev/net/tun ] || { echo "no /dev/net/tun"; return 1; }
    for ns in a b; do
        ip netns add "bx$ns$$" 2>/dev/null || { echo "no network namespaces"; return 1; }
    done
    python3 "$root/tests/link_relay.py" "bxa$$" "bxb$$" 2 100 >"$tmp/relay" 2>&1 &
    relay=$!
    started="$started $relay"
    for _ in 1 2 3 4 5 6 7 8 9 10; do grep -q ready "$tmp/relay" && break; sleep 0.2; done
    for at in a1 b2; do
        ns=bx${at%?}$$
        ip link set "$ns" netns "$ns" && ip -n "$ns" addr add "10.91.7.${at#?}/24" dev "$ns" &&
            ip -n "$ns" link set "$ns" up && ip -n "$ns" link set lo up || { echo "no TAP device"; return 1; }
    done
    cat >"$tmp/agent" <<END
#!/bin/sh
# As rsh: agent [-OPTION]... HOST COMMAND...
while :; do case \$1 in -*) shift ;; *) break ;; esac; done
host=\$1
shift
case \$host in 10.91.7.1) ns=bxa$$ ;; *) ns=bxb$$ ;; esac
exec ip netns exec \$ns sh -c "\$*"
END
    chmod +x "$tmp/agent"
}

# packets - that have come to the first namespace
packets() { ip netns exec "bxa$$" sed -n "s/^ *bxa$$: *[0-9]* *\([0-9]*\) .*/\1/p" /proc/net/dev; }

over_the_wire()
{
    directory=$tmp/$library.wire
    launch="ip netns exec bxa$$"
    before=$(packets)
    case $library in
    openmpi)
        run_options="$run_options --mca plm_rsh_agent $tmp/agent --mca btl tcp,self
            --mca btl_tcp_if_include 10.91.7.0/24 --mca oob_tcp_if_include 10.91.7.0/24
            -host 10.91.7.1:1,10.91.7.2:1" ;;
    mpich) # UCX would find that both are one machine, and share memory
        launch="$launch env UCX_TLS=tcp,self FI_PROVIDER=tcp"
        run_options="-launcher ssh -launcher-exec $tmp/agent -iface bxa$$ -hosts 10.91.7.1,10.91.7.2" ;;
    esac
    if ! hello; then
        skip "mpi/$library-wire" "it does not start between two namespaces here: $(grep . "$tmp/why" | tail -n 1)"
        launch=
        return
    fi
    ranks 2 "$directory.12" 12
    if [ $(($(packets) - before)) -lt 200 ]; then
        fail "mpi/$library-wire" "hardly a packet came over the wire: $(tail -n 2 "$tmp/err")"
    else
        trained "mpi/$library-wire" "$directory.12" 12 "$tmp/want12"
    fi
    begun 2 "$directory"
    kill -STOP "$relay"
    ended "mpi/$library-cut" "the link was cut" none 'waits for rank'
    kill -CONT "$relay"
    launch=
    options_of "$library"
    ranks 4 "$directory" $steps resume=1
    trained "mpi/$library-cut-resume-4" "$directory" $steps "$tmp/want"
}

# The least that MPI does, so that a machine on which it does not start is told from a fault of ours.
cat >"$tmp/hello.c" <<'END'
#include <mpi.h>
int main(int argc, char **argv)
{
    int one = 1, sum = 0;
    if (MPI_Init(&argc, &argv) != MPI_SUCCESS)
        return 1;
    MPI_Allreduce(&one, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    MPI_Finalize();
    return sum == 2 ? 0 : 1;
}
END

hello()
{
    # shellcheck disable=SC2086
    mpicc.$library "$tmp/hello.c" -o "$tmp/hello.$library" >"$tmp/why" 2>&1 &&
        timeout -k 5 60 $launch mpirun.$library $run_options -n 2 "$tmp/hello.$library" >"$tmp/why" 2>&1 </dev/null
}

# ---- each library ------------------------------------------------------------------------

options_of() { case $1 in openmpi) run_options="--oversubscribe --allow-run-as-root" ;; *) run_options= ;; esac; }

wired=
for library in openmpi mpich; do
    if ! command -v mpicc.$library >/dev/null || ! command -v mpirun.$library >/dev/null; then
        skip "mpi/$library" "mpicc.$library or mpirun.$library is not installed (make deps)"
        continue
    fi
    if ! mpicc.$library -std=gnu11 -O2 -Wall -Wextra -Werror -I"$root/include" "$root/examples/finetune_mpi.c" \
        -o "$tmp/finetune.$library" -L"$build" -Wl,-rpath,"$build" -lbitaxon >"$tmp/out" 2>&1; then
        fail "mpi/$library-builds" "$(head -n 5 "$tmp/out")"
        continue
    fi
    launch=
    options_of $library
    if ! hello; then
        skip "mpi/$library" "it starts no two ranks here: $(grep . "$tmp/why" | tail -n 1)"
        continue
    fi
    equality
    case $library in # what mpirun says itself when a rank dies
    openmpi) lost KILL 2 any 'exited on signal 9' ;;
    *) lost KILL 2 any 'BAD TERMINATION\|KILLED BY SIGNAL: 9' ;;
    esac
    lost STOP 1 3 'waits for rank 2 .*no answer in time'
    if [ "$wired" = yes ] && [ "${BITAXON_TEST_FULL:-}" != 1 ]; then
        skip "mpi/$library-wire" "it takes long; make test-full runs it"
        continue
    elif [ -z "$wired" ]; then
        if wire >"$tmp/why"; then wired=yes; else
            wired=no
            skip mpi/wire "$(cat "$tmp/why")"
        fi
    fi
    if [ "$wired" = yes ]; then
        [ -s "$tmp/want12" ] || { ranks 1 "$tmp/one12" 12 && checkpoint "$tmp/one12" 12 >"$tmp/want12"; }
        over_the_wire
    fi
done
if [ "$wired" = yes ]; then
    kill "$relay"
    wait "$relay" 2>/dev/null
    tail -n 1 "$tmp/relay"
fi

finish
