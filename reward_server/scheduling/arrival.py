"""One request on its way in: its bytes are admitted before they are held, and parsed in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from reward_server.scheduling.admission import Admission
from reward_server.scheduling.threads import FairThreads
from reward_server.security.access import Caller

T = TypeVar("T")


class Arrival:
    """What a transport holds for a request; a context manager around the whole call."""

    def __init__(self, admission: Admission, threads: FairThreads, caller: Caller) -> None:
        self.caller = caller
        self._ticket = admission.arrive(caller.name)
        self._threads = threads

    @property
    def held_bytes(self) -> int:
        return self._ticket.bytes

    def hold(self, size_bytes: int) -> None:
        """Have `size_bytes` in all admitted, before they are read; raises ResourceExhausted."""
        if size_bytes > self._ticket.bytes:
            self._ticket.grow(size_bytes - self._ticket.bytes)

    async def parse(self, function: Callable[[], T]) -> T:
        """Run a parser of the bytes that are held, in a thread, when the caller's turn comes."""
        return await self._threads.run(function, client=self.caller.name, cost=self._ticket.bytes)

    def __enter__(self) -> Arrival:
        return self

    def __exit__(self, *exc: object) -> None:
        self._ticket.release()
