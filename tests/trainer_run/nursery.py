"""The test's end of `tests.trainer_run.attempts`."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.server.server_process import is_running

REPOSITORY = Path(__file__).parents[2]
PATIENCE_S = 240.0


def meeting(world_size: int) -> list[dict[str, str]]:
    """The environment of each rank, as torchrun sets it, with a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **common} for rank in range(world_size)]


@dataclass(frozen=True)
class Child:
    """A process that was started; its output is in `log`."""

    nursery: "Nursery"
    pid: int
    log: Path

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """The exit code; negative: the signal that killed it."""
        deadline = time.monotonic() + timeout_s
        while (code := self.nursery.ask({"wait": self.pid})) is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"no end within {timeout_s} s:\n{self.log.read_text()}")
            time.sleep(0.05)
        return code

    def said(self, text: str) -> None:
        """Wait until the process has written a text."""
        self.until(lambda: text in self.log.read_text())

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds, while the process lives."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert is_running(self.pid), f"the process has ended:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"it did not happen:\n{self.log.read_text()}"
            time.sleep(0.05)


class Nursery:
    """Starts children of a process that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.trainer_run.attempts"],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, job: str, *arguments: Any, **environment: str) -> Child:
        self._count += 1
        log = self._folder / f"{self._count}.log"
        log.touch()
        request = {"log": str(log), "job": job, "arguments": arguments, "environment": environment}
        return Child(self, self.ask(request), log)

    def ranks(self, table: dict[str, Any], deaths: list[dict[str, Any] | None]) -> list[Child]:
        """A run of one process per entry, each with its own death or none."""
        return [
            self.start("train", table, death, **rank)
            for death, rank in zip(deaths, meeting(len(deaths)), strict=True)
        ]

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
