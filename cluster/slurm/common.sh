# shellcheck shell=bash
# What lorasweep.sbatch, head.sbatch and workers.sbatch share. They source it, in the batch shell of their job.
#
# Not `ray symmetric-run`: its last act is `ray stop`, which ends every Ray on a shared host, also those of other jobs;
# it refuses to start where a Ray runs; and head and workers would get the same options.
#
# Environment, all optional: LORASWEEP_VENV (default: .venv beside cluster/), LORASWEEP_PORT (of the head; default: from
# the job's number), LORASWEEP_TMP (default: /tmp; it must be short, and local to each host).

name=${script:-lorasweep} # of the script that sources this
folder=$(dirname "${BASH_SOURCE[0]}")
venv=${LORASWEEP_VENV:-$(dirname "$(dirname "$folder")")/.venv}
tmp=${LORASWEEP_TMP:-/tmp}
scratch="" # this job's, on this host: the token, and what each Ray node printed
nodes=()   # process ids of the srun of each Ray node
asked=""   # the signal that came first
child=""
declare -A log_of

say() { printf '%s %s: %s\n' "$(date +%T)" "$name" "$1"; }

fail() { # SENTENCE [STATUS]
    printf '%s: %s\n' "$name" "$1" >&2
    exit "${2:-2}"
}

need_slurm() { # USAGE
    local tool
    [[ -n ${SLURM_JOB_ID:-} ]] || fail "no SLURM: this is a batch script, and SLURM_JOB_ID is not set. Submit it: $1"
    for tool in srun scontrol; do
        command -v "$tool" >/dev/null || fail "no SLURM: \`$tool\` is not on this host's PATH. Ask who runs the cluster."
    done
}

need_lorasweep() {
    local file
    for file in python lorasweep ray; do
        [[ -x $venv/bin/$file ]] || fail \
            "$venv: lorasweep is not installed there (no bin/$file). Install it (make install), or name where it is: LORASWEEP_VENV=DIR sbatch …"
    done
    "$venv/bin/python" -c 'import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, ("sweeps", "ray"))))' ||
        fail "$venv: lorasweep is not installed there (Python does not find its packages). Install it: make install"
}

# The script's arguments are a command of lorasweep's that runs trials.
need_command() { # USAGE ARGUMENT…
    local word
    case ${2:-} in
    run | resume | finalize) ;;
    *) fail "${2:-nothing} is not what this script can do: run, resume or finalize. $1" ;;
    esac
    for word in "${@:3}"; do
        [[ $word != ray.address=* ]] || fail "$word: the job starts a Ray of its own. Leave ray.address out."
    done
}

# A private folder of this job on this host, and the token that its Ray asks for: in a file that only this user can read.
# It reaches the other hosts by srun's standard input, so it stands in no command line, environment or log.
make_scratch() {
    # Ray's sockets lie 67 bytes below it, and the path of one may have 107 bytes.
    ((${#tmp} <= 20)) || fail "LORASWEEP_TMP=$tmp: too long for the sockets of Ray, which take 20 bytes at most. Give a shorter one, such as /tmp."
    scratch=$(umask 077 && mktemp -d "$tmp/ls-$SLURM_JOB_ID-XXXX") ||
        fail "$tmp: no folder can be made there on $(hostname). Give another one that is local to each host: LORASWEEP_TMP=DIR"
    trap 'end_nodes; rm -rf "$scratch"' EXIT
    (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$scratch/token")
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$scratch/token
    unset RAY_AUTH_TOKEN RAY_ADDRESS
}

# The first two free ports side by side from a place that the job's number gives, so that jobs that share a host do not
# even try the same ones; below the range from which systems give ports by themselves. The second is for Ray's clients.
free_ports() { # TRY
    "$venv/bin/python" - "${LORASWEEP_PORT:-}" "$SLURM_JOB_ID" "$1" <<'PYTHON'
import socket
import sys

given, job, attempt = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just left is free
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


first = int(given) if given else 20000 + (job * 8 + attempt * 2) % 12000
for port in [first] if given else range(first, first + 200, 2):
    if is_free(port) and is_free(port + 1):
        print(port)
        sys.exit()
sys.exit(1)
PYTHON
}

# This host's address as SLURM knows it: Ray's own guess takes a default route for granted.
own_address() {
    local known
    known=$(scontrol show node "${SLURMD_NODENAME:-$(hostname)}" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
    getent ahostsv4 "${known:-$(hostname)}" | awk 'NR == 1 { print $1 }'
}

# One srun for each node, so that a node that dies takes no other with it; --overlap, so that it waits for no other step.
start_node() { # NODE OPTION-OF-RAY-START…
    local node=$1 log=$scratch/$1.log
    shift
    srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --nodelist="$node" --overlap --no-kill \
        ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
        bash "$folder/ray_node.sh" "$venv" "$tmp" ray start --block "$@" <"$scratch/token" >"$log" 2>&1 &
    nodes+=($!)
    log_of[$!]=$log
}

end_nodes() {
    local gives_up=$((SECONDS + 10)) node
    for node in "${nodes[@]}"; do
        grep -qs 'Ray runtime started' "${log_of[$node]}" || say "$(basename "${log_of[$node]}" .log): no Ray ran there. $(tail -n 5 "${log_of[$node]}")"
    done
    for node in "${nodes[@]}"; do kill -USR1 "$node" 2>/dev/null; done # srun passes it on; ray_node.sh ends its Ray
    for node in "${nodes[@]}"; do
        while kill -0 "$node" 2>/dev/null && ((SECONDS < gives_up)); do sleep 0.1; done
        kill -KILL "$node" 2>/dev/null # a host that is gone does not answer; SLURM ends what is left with the job
    done
    nodes=()
}

# Start the head on this host, and set `address`.
start_head() { # OPTION-OF-RAY-START…
    local attempt port ip gives_up
    ip=$(own_address)
    [[ -n $ip ]] || fail "the address of ${SLURMD_NODENAME:-$(hostname)} is not known: neither SLURM nor this host's resolver has one." 7
    for attempt in 0 1 2; do
        port=$(free_ports "$attempt") || fail \
            "port ${LORASWEEP_PORT:+$LORASWEEP_PORT or $((LORASWEEP_PORT + 1)) }in use on $(hostname). Leave LORASWEEP_PORT out: then the job takes free ones of its own." 7
        # shellcheck disable=SC2034 # for the script that sources this
        address=$ip:$port
        start_node "$SLURMD_NODENAME" --head --node-ip-address="$ip" --port="$port" \
            --ray-client-server-port=$((port + 1)) --include-dashboard=false "$@"
        gives_up=$((SECONDS + 120))
        while kill -0 "${nodes[-1]}" 2>/dev/null && ((SECONDS < gives_up)); do
            grep -qs 'Ray runtime started' "${log_of[${nodes[-1]}]}" && return
            [[ -z $asked ]] || return
            sleep 0.2
        done
        say "Ray's head did not start (try $((attempt + 1)) of 3)"
        end_nodes
    done
    fail "Ray's head did not start on $(hostname), 3 times; what it printed is above." 7
}

# Run a command as a child and pass signals on to it. Sets `status`, and `asked` where a signal came.
supervise() { # SIGNAL-FOR-USR1 COMMAND…
    local usr1=$1
    shift
    trap 'asked=${asked:-USR1}; [[ -z $child ]] || kill -'"$usr1"' "$child" 2>/dev/null' USR1
    trap 'asked=${asked:-TERM}; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null' TERM INT
    if [[ -n $asked ]]; then
        status=130
        return
    fi
    "$@" &
    child=$!
    wait "$child"
    while kill -0 "$child" 2>/dev/null; do wait "$child"; done # a signal ends `wait`, not the child
    wait "$child"
    status=$?
}

note_signals() { # before there is a child
    trap 'asked=${asked:-USR1}' USR1
    trap 'asked=${asked:-TERM}' TERM INT
}

# Whether the command was stopped by USR1, SLURM's notice before the time limit: 130 is its own status for that; by a
# signal that comes while Python starts it ends with 128 and the signal's number.
is_interrupted() { [[ $asked == USR1 && ($status == 130 || $status == 143 || $status == 138) ]]; }

# Before the time limit: the same job again, by the same command, which goes on.
requeue_or_exit() { # JOB GO-ON
    if is_interrupted; then
        end_nodes
        rm -rf "$scratch"
        trap 'exit 130' TERM
        if scontrol requeue "$1"; then
            say "the time limit is near: job $1 is queued again, and goes on from here"
            sleep 60 >/dev/null 2>&1 & # until SLURM ends this run of the job
            wait $!
            exit 130
        fi
        fail "the time limit is near, and SLURM does not queue job $1 again (see above). Go on: $2" 130
    fi
    exit "$status"
}
