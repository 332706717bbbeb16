#!/usr/bin/env bash
# A real Ray cluster on this one host: a head and further raylets, all on loopback.
#
#   ray_cluster.sh up DIR [NODES]     start (a cluster that DIR knows and that runs is left alone)
#   ray_cluster.sh crash DIR NODE     end raylet number NODE (2, 3, ...) with its workers, as a power failure would
#   ray_cluster.sh status DIR
#   ray_cluster.sh down DIR           end what `up` started, by the pids it wrote down
#
# No root needed. `ray` is $RAY (default: ray on the PATH). To use it:
#   export RAY_ADDRESS=$(cat DIR/address) RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=DIR/token
# Ray's own folder (sockets, logs) is DIR/s: sockets have at most 107 characters, so keep DIR short.
set -euo pipefail

usage() { sed -n '2,12p' "$0" | cut -c3-; exit 2; }
[ $# -ge 2 ] || usage
verb=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
ray=${RAY:-ray}
port=${RAY_CLUSTER_PORT:-26379}
cpus=${RAY_CLUSTER_CPUS:-2}
# Not 127.0.0.1: Ray takes that for "find this host's address", which is that of its network card.
address=127.0.0.2:$port
unset RAY_ADDRESS
# Ray listens on all of the host's addresses, and whoever reaches it may run code: so a token.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$dir/token
[ -s "$dir/token" ] || (umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$dir/token")
export RAY_USAGE_STATS_ENABLED=0
# A lost node is noticed after about 3 x 1 s rather than after half a minute.
export RAY_health_check_initial_delay_ms=1000 RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=1000
export RAY_health_check_failure_threshold=3 RAY_gcs_server_request_timeout_seconds=10

# A process that has ended and that nobody has waited for yet does not count.
alive() { [ -n "$1" ] && case "$(ps -o stat= -p "$1")" in '' | Z*) false ;; esac; }
pid_of() { cat "$dir/node.$1.pid" 2>/dev/null || true; }

start() { # NUMBER
    local n=$1 first=(--address "$address")
    [ "$n" != 1 ] || first=(--head --port "$port" --include-dashboard "${RAY_CLUSTER_DASHBOARD:-false}" --dashboard-host 127.0.0.2
        --dashboard-port $((port + 1)) --ray-client-server-port $((port + 2)) --temp-dir "$dir/s")
    # --block makes one process the parent of all of the node's; setsid a group of its own.
    setsid "$ray" start "${first[@]}" --block --node-ip-address "127.0.0.$((n + 1))" --num-cpus "$cpus" \
        --resources "{\"node$n\": 1}" --object-store-memory 100000000 --disable-usage-stats \
        --min-worker-port $((port + 100 * n)) --max-worker-port $((port + 100 * n + 99)) \
        >"$dir/node.$n.log" 2>&1 </dev/null &
    echo $! >"$dir/node.$n.pid"
}

# From the log: a call of `ray` costs seconds of CPU.
started() {
    for _ in $(seq 900); do
        ! grep -q 'Ray runtime started' "$dir/node.$1.log" || return 0
        alive "$(pid_of "$1")" || break
        sleep 0.1
    done
    return 1
}

# On a busy machine a raylet may miss the half minute that Ray gives it: once more then.
bring_up() { # NUMBER
    local _
    for _ in 1 2 3; do
        alive "$(pid_of "$1")" || start "$1"
        ! started "$1" || return 0
        members "$(pid_of "$1")" | xargs -r kill -9
    done
    cat "$dir/node.$1.log" >&2
    return 1
}

up() {
    local nodes=${1:-2} n
    # The others ask the head for its session.
    for n in $(seq "$nodes"); do alive "$(pid_of "$n")" || bring_up "$n"; done
    echo "$address" >"$dir/address"
}

# All processes of a node: its session, which setsid made.
members() { { ps -o pid=,stat= --sid "$1" 2>/dev/null || true; } | awk '$2 !~ /^Z/ {print $1}'; }

crash() { members "$(pid_of "$1")" | xargs -r kill -9; }

status() { "$ray" status --address "$address"; }

down() {
    local file pid
    for file in $(printf '%s\n' "$dir"/node.*.pid | sort -r); do
        [ -e "$file" ] || continue
        pid=$(cat "$file")
        # Only the first process: it drains the node and ends the others.
        alive "$pid" && kill "$pid"
        for _ in $(seq 200); do [ -n "$(members "$pid")" ] || break; sleep 0.2; done
        [ -z "$(members "$pid")" ] || { echo "had to be killed: $pid" >&2; crash "$(basename "$file" | cut -d. -f2)"; }
        rm -f "$file"
    done
    rm -f "$dir/address"
}

case $verb in
    up | status | down) "$verb" "${@:3}" ;;
    crash) crash "${3:?which node}" ;;
    *) usage ;;
esac
