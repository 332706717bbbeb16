#!/usr/bin/env bash
# with_docker.sh COMMAND...: run COMMAND where a Docker engine with compose answers.
#
# An engine that runs already is used as it is. Otherwise one is started for the time of COMMAND, on
# Debian 12 as root: engine and compose from Debian's packages, data in memory, no registry needed,
# because the Python base image is made from Debian's packages too. Everything is undone afterwards.
# Exit status: COMMAND's own; 77 (with the reason in one line) where no engine can be started.
#
# For COMMAND: DOCKER_HOST, BASE_IMAGE (what the Dockerfile builds on) and WHEELS_DIR (a folder of
# wheels that this machine's pip is configured to look at, if there is one).
set -euo pipefail

[ $# -gt 0 ] || { echo "usage: $0 COMMAND..." >&2; exit 2; }
unavailable() { echo "with_docker.sh: no Docker engine: $*" >&2; exit 77; }

wheels=$(python3 -m pip config list 2>/dev/null | sed -n "s/.*find-links='\([^' ]*\)'.*/\1/p" | head -1)
if [ -z "${WHEELS_DIR:-}" ] && [ -n "$wheels" ] && [ -d "$wheels" ]; then export WHEELS_DIR=$wheels; fi
if docker version >/dev/null 2>&1 && docker compose version >/dev/null 2>&1; then exec "$@"; fi

[ "$(id -u)" = 0 ] || unavailable "none runs, and starting one takes root"
grep -qs 'VERSION_CODENAME=bookworm' /etc/os-release \
  || unavailable "none runs, and this script starts one on Debian 12 only"
# Two engines on one machine fight over the firewall: the second waits for the first.
exec 9>/run/lock/flow-reward-docker.lock
flock -w 1800 9 || unavailable "another run of this script holds the machine"

export DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes COMPOSE_ANSI=never
export BASE_IMAGE=localhost/python-base:3.11
work=$(mktemp -d -t with-docker.XXXXXX)
# In memory: an engine's data are many small files that live for minutes.
mount -t tmpfs -o size="${DOCKER_TMPFS:-14g}",mode=755 with-docker "$work" 2>/dev/null \
  || { rmdir "$work"; unavailable "this machine does not let root mount file systems"; }
cleanup=("umount -l -R '$work'; rmdir '$work'")
undo() { local status=$? step; set +e; for step in "${cleanup[@]}"; do eval "$step"; done; exit $status; }
trap undo EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

debian_mirror() {
  apt-get -qq update
  apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Codename: bookworm' | sed -n 1p
}

# Engine and compose of the next Debian release: bookworm's are too old (no compose v2), and these
# need nothing but its C library.
install_engine() {
  local newer="-qq -o Dir::Etc::sourcelist=$work/newer.list -o Dir::Etc::sourceparts=/dev/null"
  newer+=" -o Dir::State::lists=$work/lists -o APT::Sandbox::User=root"
  mkdir -p "$work/lists/partial"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$work/newer.list"
  # shellcheck disable=SC2086  # several options
  (cd "$work" && apt-get $newer update \
    && apt-get $newer download docker.io docker-cli docker-compose docker-buildx)
  apt-get -qq install -y --no-install-recommends debootstrap iproute2 iptables "$work"/*.deb \
    >"$work/apt.log" 2>&1 || { tail -5 "$work/apt.log" >&2; return 1; }
  rm -rf "$work"/*.deb "$work/lists"
}

# Made once per machine; carries the host's certificate authorities and pip configuration, so that
# builds reach the same package index as the host does. Nothing in the repository names one.
make_base() {
  local root=$work/root
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv \
    bookworm "$root" "$mirror" >"$work/debootstrap.log" || { tail -5 "$work/debootstrap.log" >&2; return 1; }
  ln -s python3 "$root/usr/bin/python"
  rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* \
    "$root"/usr/share/{doc,man,locale,info,lintian}/*
  cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
  [ ! -f /etc/pip.conf ] || cp /etc/pip.conf "$root/etc/"
  tar -C "$root" --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' -cf "$base_tar.new" .
  mv "$base_tar.new" "$base_tar"
  rm -rf "$root"
}

base_tar=${BASE_TAR:-${XDG_CACHE_HOME:-$HOME/.cache}/flow-reward/python-base-bookworm.tar}
mkdir -p "$(dirname "$base_tar")"
if ! command -v dockerd >/dev/null || ! docker compose version >/dev/null 2>&1 || [ ! -s "$base_tar" ]; then
  mirror=$(debian_mirror) && [ -n "$mirror" ] || unavailable "apt has no source for bookworm"
  command -v dockerd >/dev/null && docker compose version >/dev/null 2>&1 && command -v debootstrap >/dev/null \
    || install_engine || unavailable "its Debian packages do not install"
  [ -s "$base_tar" ] || make_base || unavailable "debootstrap made no base image"
fi

# What the engine changes outside its own folder, to put back at the end.
firewall=$work/firewall; iptables-save >"$firewall" 2>/dev/null || :
forwarding=$(cat /proc/sys/net/ipv4/ip_forward)
export DOCKER_HOST=unix://$work/engine.sock
dockerd --data-root "$work/data" --exec-root "$work/exec" --pidfile "$work/pid" -H "$DOCKER_HOST" \
  >"$work/dockerd.log" 2>&1 </dev/null 9>&- &
engine=$!
restore_network() {
  ip link del docker0 2>/dev/null
  iptables -P FORWARD ACCEPT
  # The saved rules alone may lack a table that the engine added: empty both first.
  printf '*filter\nCOMMIT\n*nat\nCOMMIT\n' | iptables-restore
  iptables-restore <"$firewall"
  echo "$forwarding" >/proc/sys/net/ipv4/ip_forward
}
remove_containers() { docker ps -aq | xargs -r docker rm -f; docker network prune -f; }
cleanup=("remove_containers >/dev/null 2>&1" "kill $engine; wait $engine" restore_network "${cleanup[@]}")
answers() { docker version >/dev/null 2>&1; }
for _ in $(seq 300); do answers || ! kill -0 $engine 2>/dev/null || sleep 0.2; done
answers || { tail -3 "$work/dockerd.log" >&2; unavailable "dockerd does not start here"; }
docker import -c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
  -c 'CMD ["python3"]' "$base_tar" "$BASE_IMAGE" >/dev/null

status=0
"$@" 9>&- || status=$?
[ $status = 0 ] || { echo "with_docker.sh: the command failed; the engine's last lines:"; tail -5 "$work/dockerd.log"; } >&2
exit $status
