#!/usr/bin/env bash
# One command of motion-tokens on all nodes of a Slurm allocation, with one Ray over them:
#
#   sbatch --nodes=4 --gpus-per-node=8 --time=08:00:00 tokenize.sh \
#       tokenize s3://bucket/motion s3://bucket/tokens --checkpoint s3://bucket/codec.safetensors --config run.yaml
#
# motion-tokens, ray and python are taken from the PATH of who submits; input, output and checkpoint have to be
# places that every node sees. The job is queued again when its time is over, when it is preempted, and when it ends
# incomplete (exit code 75) or without a word (1, or killed), up to MOTION_TOKENS_REQUEUES times (default 20); each run
# goes on where the last one ended. With run.deadline set, say MOTION_TOKENS_REQUEUES=0: its exit code is 75 too.
#SBATCH --job-name=motion-tokens
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@180
set -uo pipefail

REFUSED=2
INCOMPLETE=75
STOPPED=143
NODES_LIMIT_S=300

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(getent ahostsv4 "$first" | awk 'NR == 1 { print $1 }')
if [[ -z $address || ($SLURM_JOB_NUM_NODES -gt 1 && $address == 127.*) ]]; then
    address=$(hostname -I | awk '{ print $1 }') # this script runs on the first node, of which its name says too little
fi
# below the ports that systems hand out by themselves
port=${MOTION_TOKENS_RAY_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
export RAY_HEAD_ADDRESS=$address RAY_HEAD_PORT=$port

# others may have accounts on these machines, and whoever reaches an open Ray can run code in it
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
export RAY_AUTH_TOKEN
export RAY_TMPDIR=${MOTION_TOKENS_RAY_FOLDER:-/tmp/motion-tokens-$SLURM_JOB_ID} # local, and short: it holds sockets
settings=$(python -m jobs.session.ray_environment) || exit "$REFUSED" # Python has said what is missing
eval "$settings"

answers() {
    (: >"/dev/tcp/$RAY_HEAD_ADDRESS/$RAY_HEAD_PORT") 2>/dev/null
}

# The same on every node: the first is the head, the others join it once it answers.
# shellcheck disable=SC2329 # srun calls it
run_node() {
    mkdir -p "$RAY_TMPDIR"
    local common=(--block --disable-usage-stats --num-cpus="$SLURM_CPUS_ON_NODE")
    if [[ $SLURM_PROCID == 0 ]]; then
        # the driver runs here, and what it counts is told by its own node
        [[ -n ${MOTION_TOKENS_METRICS_PORT:-} ]] && common+=(--metrics-export-port="$MOTION_TOKENS_METRICS_PORT")
        exec ray start --head --node-ip-address="$RAY_HEAD_ADDRESS" --port="$RAY_HEAD_PORT" \
            --include-dashboard=false "${common[@]}"
    fi
    until answers; do sleep 1; done
    exec ray start --address="$RAY_HEAD_ADDRESS:$RAY_HEAD_PORT" "${common[@]}"
}
export -f run_node answers

stands() {
    answers && timeout 60 python - "$SLURM_JOB_NUM_NODES" <<'PYTHON'
import logging
import sys

import ray

ray.init(logging_level=logging.CRITICAL, log_to_driver=False)
sys.exit(sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[1]))
PYTHON
}

# Ends with 75 where the nodes do not come together: nothing has begun, and another try may help.
wait_for_nodes() {
    local limit=$((SECONDS + NODES_LIMIT_S))
    until stands; do
        if ! kill -0 "$nodes" 2>/dev/null || ((SECONDS > limit)) || [[ -n $is_asked_to_stop ]]; then
            echo "error: Ray does not stand on $SLURM_JOB_NUM_NODES nodes after $SECONDS s: see $log" >&2
            return "$INCOMPLETE"
        fi
        sleep 1
    done
}

# Slurm's own word: a job that is cancelled or queued again already is not in this state.
is_running() {
    [[ $(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T) == RUNNING ]]
}

log=$PWD/ray-$SLURM_JOB_ID.log
echo "run $((${SLURM_RESTART_COUNT:-0} + 1)) of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST"
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" bash -c run_node >>"$log" 2>&1 &
nodes=$!

export RAY_ADDRESS=$address:$port
driver=
code=$STOPPED
is_asked_to_stop=
# to the driver alone: Ray's processes live until it has drained
trap 'is_asked_to_stop=yes; [[ -n $driver ]] && kill -TERM "$driver"' TERM
wait_for_nodes
ready=$?
if [[ -n $is_asked_to_stop ]]; then
    code=$STOPPED
elif [[ $ready -ne 0 ]]; then
    code=$ready
else
    motion-tokens "$@" &
    driver=$!
    [[ -n $is_asked_to_stop ]] && kill -TERM "$driver" # asked before there was anybody to tell
    while true; do
        wait "$driver"
        code=$?
        kill -0 "$driver" 2>/dev/null || break # else a signal ended the waiting, not the driver
    done
fi
echo "motion-tokens ended with $code"

may_go_on() {
    case $code in
    1) [[ ! $1 =~ ^(verify|diff|certify)$ ]] ;; # of these it says that something was found
    "$INCOMPLETE") true ;;
    *) ((code > 128)) ;; # a signal
    esac
}

is_to_requeue=
if may_go_on "${1:-}" && is_running; then
    [[ ${SLURM_RESTART_COUNT:-0} -lt ${MOTION_TOKENS_REQUEUES:-20} ]] && is_to_requeue=yes
fi
kill -TERM "$nodes" 2>/dev/null
wait "$nodes"
srun --ntasks="$SLURM_JOB_NUM_NODES" rm -rf "$RAY_TMPDIR"
if [[ -n $is_to_requeue ]]; then
    echo "queued again: the next run goes on where this one ended"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
