"""`make up`: `docker compose up --detach --wait`, and where it fails one line that says what to do.

What the engine says goes through unchanged; the line comes last. Containers that run without
becoming healthy tell the reason themselves: it is the output of their health check.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

# (what the engine says, what to do about it)
ADVICE: tuple[tuple[str, str], ...] = (
    (
        r"(?:address already in use|port is already allocated)",
        "another program holds the port: stop it, or choose other ports in .env"
        " (REWARD_HTTP_PORT, REWARD_GRPC_PORT, PROMETHEUS_PORT, GRAFANA_PORT)",
    ),
    (
        r"required variable (\w+) is missing a value: (.*)",
        r"\2",
    ),
    (
        r'could not select device driver "nvidia"',
        "this engine has no NVIDIA runtime: install the NVIDIA Container Toolkit and restart the"
        " engine, or leave out docker/compose.gpu.yaml",
    ),
    (
        r"nvidia-container-cli: device error: (\S+): unknown device",
        r"there is no GPU \1 on this host: set GENEVAL_GPU, PREFERENCE_GPU and TRAINER_GPU in"
        " .env to numbers that `nvidia-smi -L` lists",
    ),
    (
        r"nvidia-container-cli: initialization error",
        "the NVIDIA driver of this host does not answer: `nvidia-smi` says more",
    ),
    (
        r"no service selected",
        "nothing to start: set COMPOSE_PROFILES in .env to mini or full",
    ),
    (
        r"Cannot connect to the Docker daemon|Is the docker daemon running",
        "no Docker engine answers: start it, or set DOCKER_HOST to one that runs",
    ),
    (
        r"(?:No such file or directory|not found).*docker(?:-| )compose|is not a docker command",
        "this Docker has no compose plugin: install docker-compose-plugin (2.24 or newer)",
    ),
)


def main(arguments: list[str]) -> int:
    """Run compose; its exit status."""
    command = ["docker", "compose", "up", "--detach", "--wait", *arguments]
    try:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError:
        return _fail("there is no `docker` command: install Docker Engine with its compose plugin")
    said = []
    for line in process.stderr or ():
        sys.stderr.write(line)
        said.append(line)
    status = process.wait()
    if status:
        for line in [*_unhealthy(), *advice("".join(said))]:
            _fail(line)
    return status


def advice(said: str) -> list[str]:
    """What to do about an engine's error output; empty if it is none that is known."""
    found = []
    for pattern, text in ADVICE:
        match = re.search(pattern, said)
        if match:
            found.append(match.expand(text))
    return found


def _unhealthy() -> list[str]:
    listed = _output("docker", "compose", "ps", "--all", "--format", "json")
    # One object per line, or in older versions one list.
    rows = [json.loads(line) for line in listed.splitlines() if line]
    rows = rows[0] if rows and isinstance(rows[0], list) else rows
    return [
        f"{row['Service']} is not healthy: {_reason(row['ID'])}"
        for row in rows
        if row.get("Health") in ("unhealthy", "starting")
    ]


def _reason(container: str) -> str:
    state: dict[str, Any] = json.loads(
        _output("docker", "inspect", "--format", "{{json .State}}", container) or "{}"
    )
    checks = state.get("Health", {}).get("Log") or []
    return checks[-1]["Output"].strip() if checks else "its health check has not run yet"


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _fail(line: str) -> int:
    print(f"make up: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
