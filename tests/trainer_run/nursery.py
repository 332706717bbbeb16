"""Training processes, forked from one that has imported everything; their jobs are `attempts`."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.forking import Forked, fork_server
from tests.server.server_process import is_running

PATIENCE_S = 600.0


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

    process: Forked
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """The exit code; negative: the signal that killed it."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.kill(self.pid, signal.SIGKILL)
            raise AssertionError(f"no end within {timeout_s} s:\n{self.log.read_text()}") from None

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
    """Starts training processes; their output goes to files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0

    def start(self, job: str, *arguments: Any, **environment: str) -> Child:
        self._count += 1
        log = self._folder / f"{self._count}.log"
        log.touch()
        server, env = fork_server("tests.trainer_run.attempts"), {**os.environ, **environment}
        return Child(server.start(job, *arguments, stdout=log, env=env), log)

    def ranks(self, table: dict[str, Any], deaths: list[dict[str, Any] | None]) -> list[Child]:
        """A run of one process per entry, each with its own death or none."""
        return [
            self.start("train", table, death, **rank)
            for death, rank in zip(deaths, meeting(len(deaths)), strict=True)
        ]

    def train_in_two(self, table: dict[str, Any], score: str) -> None:
        """A whole run of two processes; `score` is one of `attempts.SCORES`."""
        ranks = [self.start("train", table, None, score, **rank) for rank in meeting(2)]
        codes = [rank.wait() for rank in ranks]
        assert codes == [0, 0], "\n".join(rank.log.read_text() for rank in ranks)
