"""The composed service as a person has it: files, `docker compose`, and the published ports."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reward_client import RewardClient

ROOT = Path(__file__).parents[1]
BASE = ("docker/compose.yaml",)
GPU = (*BASE, "docker/compose.gpu.yaml")
# A project and image tag of the tests' own: whatever else runs on this engine stays as it is.
TEST_ENV = {
    "COMPOSE_PROJECT_NAME": "flow-reward-test",
    "TAG": "test",
    "REWARD_HTTP_PORT": "0",
    "REWARD_GRPC_PORT": "0",
    "COMPOSE_ANSI": "never",
}


def docker(*arguments: str, check: bool = True, timeout_s: float = 120.0) -> str:
    """What a docker command prints."""
    done = subprocess.run(
        ["docker", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert not check or done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@dataclass(frozen=True)
class Stack:
    """One compose project: its files, profiles and variables."""

    files: tuple[str, ...] = BASE
    profiles: tuple[str, ...] = ("mini",)
    env: Mapping[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """What `docker compose` runs with."""
        return {
            **os.environ,
            **TEST_ENV,
            "COMPOSE_FILE": ":".join(self.files),
            "COMPOSE_PROFILES": ",".join(self.profiles),
            **self.env,
        }

    def compose(
        self, *arguments: str, timeout_s: float = 300.0
    ) -> subprocess.CompletedProcess[str]:
        """Run `docker compose ARGUMENTS`."""
        return self.run("docker", "compose", *arguments, timeout_s=timeout_s)

    def run(self, *command: str, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Run any command in the environment of this project."""
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def up(self, *arguments: str) -> None:
        """`docker compose up --detach --wait ARGUMENTS`, or fail with what it and the logs say."""
        done = self.compose("up", "--detach", "--wait", *arguments, timeout_s=420)
        assert done.returncode == 0, done.stderr + self.compose("logs", "--tail", "30").stdout

    def down(self) -> None:
        """Remove everything of the project, volumes included."""
        self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "3")

    def containers(self, service: str) -> list[str]:
        """Ids of a service's containers, stopped ones included, in the order of their numbers."""
        listed = self.compose("ps", "--all", "--format", "json", service).stdout
        rows = [json.loads(line) for line in listed.splitlines()]
        return [row["ID"] for row in sorted(rows, key=lambda row: row["Name"])]

    def inspect(self, service: str, number: int = 0) -> dict[str, Any]:
        """What the engine says about one container."""
        return json.loads(docker("inspect", self.containers(service)[number]))[0]

    def port(self, port: int) -> int:
        """Where a port of the gateway is published on this host."""
        address = self.compose("port", "gateway", str(port)).stdout.strip()
        assert address.startswith("127.0.0.1:"), address
        return int(address.rpartition(":")[2])

    @property
    def grpc_url(self) -> str:
        """The gateway's gRPC API, as seen from the host."""
        return f"grpc://127.0.0.1:{self.port(50051)}"

    @property
    def http_url(self) -> str:
        """The gateway's HTTP API, as seen from the host."""
        return f"http://127.0.0.1:{self.port(8000)}"

    def client(self, **options: Any) -> RewardClient:
        """A client over gRPC."""
        return RewardClient(self.grpc_url, **options)


@contextmanager
def composed(stack: Stack, *arguments: str) -> Iterator[Stack]:
    """Bring a project up until it is healthy; take it down in the end."""
    stack.down()
    try:
        stack.up(*arguments)
        yield stack
    finally:
        stack.down()


def eventually(condition: Callable[[], bool], timeout_s: float = 60.0, what: str = "") -> None:
    """Wait until something comes true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"did not come true in {timeout_s:.0f} s: {what}"
        time.sleep(0.2)


def override(folder: Path, services: Mapping[str, Any]) -> str:
    """Write a compose file that changes some services; JSON is YAML."""
    file = folder / "override.yaml"
    file.write_text(json.dumps({"services": services}))
    return str(file)


def one_line(text: str, prefix: str) -> str:
    """The only line of an output that begins with a prefix."""
    found = [line for line in text.splitlines() if line.startswith(prefix)]
    assert len(found) == 1, text
    return found[0]
