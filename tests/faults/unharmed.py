"""What must hold after every fault: nothing lost, nothing twice, nothing made up, nothing left."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from server_process import Server, eventually

from reward_client import Item, ScoreResponse

RSS_SLACK_BYTES = 40 << 20  # arenas of allocators, threads started on demand
_SETTLE_S = 30.0
# One client may still be there: two connections, a link and the memory that it shares.
_OF_A_CLIENT = 4


@dataclass
class Watched:
    """A server under test: everything that its clients were told is checked at the end."""

    server: Server
    answers: list[tuple[Sequence[Item], ScoreResponse]] = field(default_factory=list)

    def answered(self, items: Sequence[Item], response: ScoreResponse) -> ScoreResponse:
        """Check one answer of a scorer that returns the mean of the image, and count it."""
        check_answer(items, response)
        self.answers.append((items, response))
        return response


@contextmanager
def unharmed(
    server: Server, *, scorers: Sequence[str] = (), new_workers: int = 0
) -> Iterator[Watched]:
    """Inject a fault inside; afterwards the server is as it was before.

    Args:
        server: must be idle.
        scorers: those that must be READY again at the end.
        new_workers: how many more workers there are at the end, each with its socket and files.
    """
    settled(server)
    watched = Watched(server)
    ok_before = server.metric("reward_items_total", code="OK")
    rss_before, files_before = rss_bytes(server), open_files(server)
    yield watched
    settled(server)
    if scorers:
        with server.client() as client:
            client.wait_ready(scorers, _SETTLE_S)
    # Every score that a client saw was computed; those who joined one request saw the same.
    distinct = {response.request_id: response for _, response in watched.answers}
    told = sum(
        len(result.scores) - len(result.errors)
        for response in distinct.values()
        for result in response.results.values()
    )
    assert server.metric("reward_items_total", code="OK") - ok_before >= told
    eventually(lambda: rss_bytes(server) <= rss_before + RSS_SLACK_BYTES, _SETTLE_S)
    spare = _OF_A_CLIENT + 4 * new_workers
    eventually(lambda: open_files(server) <= files_before + spare, _SETTLE_S)


def settled(server: Server) -> None:
    """Wait until nothing is queued, running or held; within `_SETTLE_S` or the test fails."""
    eventually(lambda: server.metric("reward_queue_items") == 0, _SETTLE_S)
    eventually(lambda: server.metric("reward_admitted_bytes") == 0, _SETTLE_S)


def check_answer(items: Sequence[Item], response: ScoreResponse) -> None:
    """Every item has either its own score (the mean of its grey image) or a reason, never both."""
    for result in response.results.values():
        assert len(result.scores) == len(result.raw) == len(items)
        for index, item in enumerate(items):
            has_failed = index in result.errors
            assert (result.scores[index] is None) == has_failed
            assert (result.raw[index] is None) == has_failed
            if not has_failed:
                assert result.raw[index] == item.images[0].data[0], (item.id, result.raw[index])
            else:
                assert result.errors[index].message


def rss_bytes(server: Server) -> int:
    """Resident memory of the server process; its workers have their own."""
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_files(server: Server) -> int:
    """Open descriptors of the server process: sockets, arenas, pipes."""
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def children(pid: int) -> set[int]:
    """Process ids of the children of a process."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(stat.rpartition(")")[2].split()[1]) == pid:
                found.add(int(entry.name))
    return found


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """The bound of a fault: the block must not take longer."""
    begin_s = time.monotonic()
    yield
    took_s = time.monotonic() - begin_s
    assert took_s <= seconds, f"took {took_s:.1f} s, the bound is {seconds} s"
