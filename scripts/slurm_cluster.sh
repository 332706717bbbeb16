#!/usr/bin/env bash
# A real Slurm cluster of virtual nodes on this host, to try cluster/slurm: munged, slurmctld, slurmds.
#
#   slurm_cluster.sh install           Debian's packages; exit status 77 where it cannot be had
#   slurm_cluster.sh up DIR [NODES]    start; what runs already is left alone, a crashed node comes back
#   slurm_cluster.sh crash DIR NODE    end a node and all that runs on it, as a power failure would
#   slurm_cluster.sh status DIR
#   slurm_cluster.sh down DIR          cancel all jobs, end what `up` started, by the pids it wrote down
#
# As root; systemd is not needed. Everything (key, socket, state, logs, pids) is in DIR, nothing in
# /etc; it listens on 127.0.0.1 alone. A node n1, n2, ... has a host name and a process tree of its own
# (namespaces), and DIR/scratch is a disk of its own. To use it:
#   export SLURM_CONF=DIR/slurm.conf; srun -N2 hostname
set -euo pipefail

usage() { sed -n '2,13p' "$0" | cut -c3-; exit 2; }
unavailable() { echo "slurm_cluster.sh: no Slurm cluster: $*" >&2; exit 77; }

provide() {
    [ "$(id -u)" = 0 ] || unavailable "virtual nodes take root"
    unshare --uts --mount --pid --fork --mount-proc true 2>/dev/null ||
        unavailable "this machine does not let root make namespaces"
    local program missing=
    for program in slurmctld slurmd munged sbatch curl bwrap; do
        command -v "$program" >/dev/null || missing+=" $program"
    done
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null || unavailable "missing:$missing, and their packages are installed on Debian only"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update >/dev/null 2>&1 || true
    apt-get -qq install -y --no-install-recommends slurm-wlm munge curl bubblewrap >/dev/null 2>&1 ||
        unavailable "missing:$missing, and Debian's packages do not install"
}

[ "${1:-}" != install ] || { provide; exit; }
[ $# -ge 2 ] || usage
verb=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
cpus=${SLURM_CLUSTER_CPUS:-4}       # of each node, whatever the host has
gpus=${SLURM_CLUSTER_GPUS:-1}       # of each node; counted like GPUs, with no device behind them
base=${SLURM_CLUSTER_PORT:-26817}   # of the controller; the nodes have the next ones
export SLURM_CONF=$dir/slurm.conf

running() { # FILE PROGRAM: the pid in FILE, if it is still that program
    local pid
    pid=$(cat "$1" 2>/dev/null) || return 1
    # Not one that has ended and that nobody has waited for yet.
    [ -n "$pid" ] && [ "$(ps -o comm= -p "$pid")" = "$2" ] && echo "$pid"
}

inside() { cat "/proc/$1/task/$1/children"; } # the node's process 1, as this side counts

write_conf() { # NODES
    local i
    {
        echo "127.0.0.1 localhost $(hostname)"
        for i in $(seq "$1"); do echo "127.0.0.1 n$i"; done
    } >"$dir/hosts"
    # Any device does: nobody opens it where there are no cgroups.
    echo "AutoDetect=off" >"$dir/gres.conf"
    for i in $(seq "$gpus"); do
        [ -c "$dir/gpu$i" ] || mknod "$dir/gpu$i" c 1 3
        echo "Name=gpu File=$dir/gpu$i" >>"$dir/gres.conf"
    done
    {
        cat <<CONF
ClusterName=flow
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$base
FirstJobId=$base
SlurmUser=root
SlurmdUser=root
# Listen on what the names resolve to, not on 0.0.0.0. (One address per node does not go with it: the
# source of a connection to 127.0.0.2 is 127.0.0.1, where an srun on that node does not listen.)
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also what a requeued job waits before it starts again (by default 120 s).
AuthInfo=socket=$dir/munge/socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool.%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/spool.%n/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
KillWait=30
# A node that does not answer is down after this, and its jobs are requeued (by default 300 s).
SlurmdTimeout=10
ReturnToService=2
MinJobAge=3600
# Nodes may claim more than the host has.
SlurmdParameters=config_overrides
PartitionName=all Nodes=ALL Default=YES State=UP MaxTime=INFINITE
CONF
        # The lower the weight, the earlier a node is taken.
        for i in $(seq "$1"); do
            echo "NodeName=n$i NodeAddr=127.0.0.1 Port=$((base + i)) CPUs=$cpus RealMemory=4096 Gres=gpu:$gpus Weight=$i"
        done
    } >"$SLURM_CONF"
}

start_node() { # NAME
    mkdir -p "$dir/spool.$1/scratch" "$dir/scratch"
    # shellcheck disable=SC2016  # expanded inside
    setsid unshare --uts --mount --pid --fork --kill-child --mount-proc bash -c '
        hostname "$1"
        mount --bind "$2/hosts" /etc/hosts
        mount --bind "$2/spool.$1/scratch" "$2/scratch"
        slurmd -D -f "$2/slurm.conf" -N "$1" &
        trap "kill -TERM $!" TERM
        until wait; do :; done' node "$1" "$dir" >"$dir/node.$1.log" 2>&1 </dev/null &
    echo $! >"$dir/node.$1.pid"
}

up() {
    local nodes=${1:-2} i
    mkdir -p "$dir/state"
    install -d -m 0755 "$dir/munge"
    [ -s "$dir/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom >"$dir/munge/key")
    running "$dir/munge/pid" munged >/dev/null ||
        munged --key-file "$dir/munge/key" --socket "$dir/munge/socket" --num-threads 2 \
            --pid-file "$dir/munge/pid" --log-file "$dir/munge/log" --seed-file "$dir/munge/seed"
    if ! running "$dir/slurmctld.pid" slurmctld >/dev/null; then
        write_conf "$nodes"
        slurmctld -f "$SLURM_CONF"
    fi
    for i in $(seq "$nodes"); do
        running "$dir/node.n$i.pid" unshare >/dev/null || start_node "n$i"
    done
    for _ in $(seq 150); do
        [ "$(sinfo -h -N -r -t idle,alloc,mix -o %N 2>/dev/null | sort -u | wc -l)" = "$nodes" ] && break
        sleep 0.2
    done
    sinfo -N -l
}

crash() {
    kill -9 "$(running "$dir/node.$1.pid" unshare)"
    while running "$dir/node.$1.pid" unshare >/dev/null; do sleep 0.1; done
}

status() {
    local file
    for file in "$dir"/munge/pid "$dir"/slurmctld.pid "$dir"/node.*.pid; do
        [ ! -e "$file" ] || echo "${file#"$dir"/} $(cat "$file")"
    done
    sinfo -N -l && squeue
}

down() {
    local file pid pids=
    if running "$dir/slurmctld.pid" slurmctld >/dev/null; then
        squeue -h -o %A | sort -u | xargs -r scancel || true
        for _ in $(seq 200); do [ -z "$(squeue -h 2>/dev/null)" ] && break; sleep 0.2; done
    fi
    for file in "$dir"/node.*.pid; do
        pid=$(running "$file" unshare) && pids+=" $(inside "$pid") $pid"
    done
    pid=$(running "$dir/slurmctld.pid" slurmctld) && pids+=" $pid"
    pid=$(running "$dir/munge/pid" munged) && pids+=" $pid"
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    for pid in $pids; do
        for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        if kill -9 "$pid" 2>/dev/null; then echo "had to be killed: $pid" >&2; fi
    done
    rm -f "$dir"/node.*.pid
}

case $verb in
    up | status | down) "$verb" "${@:3}" ;;
    crash) crash "${3:?which node}" ;;
    *) usage ;;
esac
