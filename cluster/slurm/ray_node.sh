#!/bin/bash
# One node of a job's own Ray: the command of an srun of cluster/slurm/common.sh, which gives it the token on its
# standard input. On USR1, or when that Ray ends, it ends what is left of it, and no other Ray.
#
# usage: ray_node.sh VENV TMP ray start --block OPTION…
set -u
umask 077
venv=$1 tmp=$2
ray=("$venv/bin/$3" "$4" "$5")
shift 5

scratch=$(mktemp -d "$tmp/ls-$SLURM_JOB_ID-XXXX") || exit 7
trap 'rm -rf "$scratch"' EXIT
cat >"$scratch/token"
if [[ ! -s $scratch/token ]]; then
    echo "ray_node.sh: no token on standard input. lorasweep.sbatch and head.sbatch start this, not a user." >&2
    exit 2
fi
host=${SLURMD_NODENAME:-$(hostname)}
cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}

# SLURM sends SIGTERM to every process of a job at once: to the driver, which then has trials write checkpoints, and to
# Ray, which would end before they can. So Ray's processes have it blocked.
block='import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}); os.execv(sys.argv[1], sys.argv[1:])'

# Ports of a node's own are 0: the kernel gives free ones, whatever else runs on this host. What is in "$@" comes last,
# and wins.
env RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$scratch/token" RAY_USAGE_STATS_ENABLED=0 \
    "$venv/bin/python" -c "$block" "${ray[@]}" --temp-dir="$scratch/r" --node-name="$host" --num-cpus="$cpus" \
    --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0 --object-store-memory=500000000 "$@" &
started=$!

below() { # PROCESS: those that descend from it
    local child
    for child in $(ps -o pid= --ppid "$1"); do
        below "$child"
        echo "$child"
    done
}

end() {
    # Ray's workers are no children of `ray start`: they have the path of its token in their environment. Its agents are,
    # but overwrite their environment.
    {
        below "$started"
        echo "$started"
        grep -lzsF "RAY_AUTH_TOKEN_PATH=$scratch/" /proc/[0-9]*/environ | sed 's|/proc/\([0-9]*\)/.*|\1|'
    } | xargs --no-run-if-empty kill -KILL 2>/dev/null
}
asked=""
trap 'asked=yes; end' USR1
trap '' TERM
wait "$started"
status=$?
end
wait "$started"
[[ -z $asked && " $*" != *" --head "* ]] || exit "$status"

# This Ray ended by itself, as where it lost its head. If that head's host is down, nobody is left to act for the job:
# with --no-kill, SLURM lets it go on without its batch script until its time is over. So it is queued again from here.
trap 'exit 143' TERM
trap 'exit 0' USR1
while :; do
    head=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *BatchHost=//p')
    if [[ $head != "$host" ]] && scontrol show node "$head" | grep -qE 'State=(DOWN|FAIL)'; then
        echo "ray_node.sh: $head, on which the sweep ran, is down: job $SLURM_JOB_ID is queued again"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    sleep 5 &
    wait $! # which a signal ends
done
