"""Servers behind a gateway, for tests: each on a port of its own that it keeps when restarted."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from server_process import HEADER, Server, eventually, grey, running

from reward_client import Item, RewardClient, ScoreResponse

TIMED = "tests.scorers_bad.timed:Timed"
PLACES = 64  # of a member's queue
_numbers = itertools.count()


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as sock:
        sock.bind((host, 0))
        return sock.getsockname()[1]


@dataclass
class Member:
    """A server with one scorer, `timed`, that can be killed and started again."""

    folder: Path
    fingerprint: str = "f" * 8
    host: str = "127.0.0.1"
    port: int = 0
    server: Server = field(init=False)
    _stack: ExitStack = field(default_factory=ExitStack, init=False)

    def __post_init__(self) -> None:
        self.port = self.port or free_port(self.host)

    @property
    def target(self) -> str:
        return f"{self.host}:{self.port}"

    def start(self) -> Member:
        folder = self.folder / f"run{next(_numbers)}"
        folder.mkdir(parents=True)
        toml = f"""
[server]
http = "127.0.0.1:0"
grpc = "{self.target}"
log_format = "json"
max_queue_items = {PLACES}
[scorers.timed]
scorer = "{TIMED}"
max_batch_items = 4
max_wait_ms = 0
options = {{ log_file = "{self.log_file}", fingerprint = "{self.fingerprint}" }}
"""
        self.server = self._stack.enter_context(running(folder, toml, wait_for=("timed",)))
        return self

    def kill(self) -> None:
        self.server.process.kill()
        self.server.process.wait(10)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.server.process.pid, number)

    def close(self) -> None:
        self.signal_if_running(signal.SIGCONT)
        self._stack.close()

    def signal_if_running(self, number: signal.Signals) -> None:
        if self.server.process.poll() is None:
            self.signal(number)

    @property
    def log_file(self) -> Path:
        return self.folder / "batches"

    def scored(self) -> list[int]:
        """The values of all items it began to score, in order."""
        return [int(v) for v in self.log_file.read_text().split()] if self.log_file.exists() else []

    def forget(self) -> None:
        self.log_file.unlink(missing_ok=True)


@contextmanager
def gateway(
    folder: Path, targets: Sequence[str], more: str = "", address: str = "127.0.0.1:0"
) -> Iterator[Server]:
    folder.mkdir()
    head = HEADER.replace('grpc = "127.0.0.1:0"', f'grpc = "{address}"')
    timed = f"[scorers.timed]\nupstream = {list(targets)}\nmax_batch_items = 4\n"
    with running(folder, head + timed + more) as server:
        yield server


def usable(server: Server, target: str) -> bool:
    return server.metric("reward_upstream_usable", scorer="timed", endpoint=target) == 1


def timed_items(values: Sequence[int], seconds: float) -> list[Item]:
    return [Item(f"i{value}", str(seconds), (grey(value),)) for value in values]


class Asking:
    """A request on its way, in a thread."""

    def __init__(self, client: RewardClient, items: Sequence[Item], scorer: str = "timed") -> None:
        self._scorer = scorer
        self._answer: list[ScoreResponse | Exception] = []
        self._thread = threading.Thread(target=self._run, args=(client, items))
        self._thread.start()

    def _run(self, client: RewardClient, items: Sequence[Item]) -> None:
        try:
            self._answer.append(client.score(items, [self._scorer]))
        except Exception as error:
            self._answer.append(error)

    def scores(self, timeout_s: float = 60.0) -> tuple[float | None, ...]:
        """All scores; raises what the client raised."""
        self._thread.join(timeout_s)
        (answer,) = self._answer
        if isinstance(answer, Exception):
            raise answer
        assert answer.results[self._scorer].errors == {}
        return answer.results[self._scorer].scores


def both_usable(server: Server, members: Sequence[Member]) -> None:
    eventually(lambda: all(usable(server, member.target) for member in members))
