"""The scorers this server has now, and how a reload exchanges them without losing a request.

A request leases the scorers it asks for. A reload never takes a leased scorer away: what is removed
or replaced is retired, which means that it finishes the requests that hold it and stops after the
last. A changed scorer loads beside the one it replaces and takes over once it is ready, so that
there is no gap and a new version that cannot start costs nothing; the device needs room for both.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import structlog

from reward_client.types import ScorerInfo
from reward_server.backend import Backend
from reward_server.config import ScorerConfig

MakeBackend = Callable[[str, ScorerConfig, Callable[[], None]], Backend]


@dataclass(frozen=True, slots=True)
class Changes:
    """What a reload does, by scorer name."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    replaced: tuple[str, ...]
    retried: tuple[str, ...]


@dataclass(slots=True, eq=False)
class _Seat:
    """One scorer that runs, who uses it, and what will replace it."""

    config: ScorerConfig
    backend: Backend
    leases: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)
    successor: _Seat | None = None


class Roster:
    """All scorers by name. Not thread-safe: for one event loop."""

    def __init__(
        self,
        scorers: Mapping[str, ScorerConfig],
        make_backend: MakeBackend,
        on_change: Callable[[], None],
    ) -> None:
        self._make_backend = make_backend
        self._on_change = on_change
        self._seats = {name: self._seat(name, config) for name, config in scorers.items()}
        self._retiring: dict[asyncio.Task[None], _Seat] = {}
        self._draining = False

    def start(self) -> None:
        """Start all workers; returns at once."""
        for seat in self._seats.values():
            seat.backend.start()

    def get(self, name: str) -> Backend | None:
        """The scorer that answers to a name now; lease it before the next await."""
        seat = self._seats.get(name)
        return seat.backend if seat else None

    def names(self) -> tuple[str, ...]:
        """All names, in the order of the config."""
        return tuple(self._seats)

    def infos(self) -> tuple[ScorerInfo, ...]:
        """All scorers with their replicas; one whose new version cannot start says so."""
        return tuple(_info(seat) for seat in self._seats.values())

    def is_ready(self) -> bool:
        """Whether every scorer is READY."""
        return all(seat.backend.info().state == "READY" for seat in self._seats.values())

    @contextlib.contextmanager
    def lease(self, backends: Sequence[Backend]) -> Iterator[None]:
        """Keep scorers running for the time of the block, whatever is reloaded meanwhile."""
        seats = [seat for seat in self._seats.values() if seat.backend in backends]
        for seat in seats:
            seat.leases += 1
        try:
            yield
        finally:
            for seat in seats:
                seat.leases -= 1
                if seat.leases == 0:
                    seat.released.set()

    def reload(self, scorers: Mapping[str, ScorerConfig]) -> Changes:
        """Make the roster equal to a config; returns at once, unchanged scorers notice nothing.

        Scorers that have FAILED are tried again, whether or not their config has changed.

        Raises:
            Exception: a scorer cannot be built; then nothing has changed.
        """
        old = self._seats
        changes = Changes(
            added=tuple(name for name in scorers if name not in old),
            removed=tuple(name for name in old if name not in scorers),
            replaced=tuple(
                name for name in scorers if name in old and old[name].config != scorers[name]
            ),
            retried=tuple(
                name
                for name in scorers
                if name in old
                and old[name].config == scorers[name]
                and old[name].backend.info().state == "FAILED"
            ),
        )
        fresh = {name: self._seat(name, scorers[name]) for name in changes.added}
        successors = {name: self._seat(name, scorers[name]) for name in changes.replaced}
        for name in changes.removed:
            self._retire(old[name])
        self._seats = {name: old.get(name) or fresh[name] for name in scorers}
        for seat in fresh.values():
            seat.backend.start()
        for name in scorers:
            self._succeed(name, successors.get(name))
        for name in changes.retried:
            old[name].backend.retry()
        self._on_change()
        return changes

    def drain(self) -> None:
        """Show DRAINING everywhere; no successor takes over any more."""
        self._draining = True
        for seat in self._seats.values():
            seat.backend.drain()

    async def stop(self) -> None:
        """Stop every worker, those of retired scorers and of successors included."""
        self._draining = True
        seats = [*self._seats.values(), *self._retiring.values()]
        seats += [seat.successor for seat in self._seats.values() if seat.successor]
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*(seat.backend.stop() for seat in seats))

    def _seat(self, name: str, config: ScorerConfig) -> _Seat:
        # Asked about the name, not the seat: by the time a backend changes, it may sit elsewhere.
        return _Seat(config, self._make_backend(name, config, lambda: self._changed(name)))

    def _succeed(self, name: str, wanted: _Seat | None) -> None:
        """Let a new version load beside the present one; None if the present one stays."""
        seat = self._seats[name]
        loading = seat.successor
        if loading is not None and wanted is not None and loading.config == wanted.config:
            loading.backend.retry()
            return
        if loading is not None:
            seat.successor = None
            self._retire(loading)
        if wanted is not None:
            seat.successor = wanted
            wanted.backend.start()
            self._changed(name)

    def _changed(self, name: str) -> None:
        seat = self._seats.get(name)
        successor = seat.successor if seat else None
        if seat is None or successor is None or self._draining:
            self._on_change()
            return
        # A version that does not serve has nothing to lose by giving way at once.
        if successor.backend.info().state == "READY" or seat.backend.info().state != "READY":
            self._seats[name] = successor
            seat.successor = None
            self._retire(seat)
            structlog.get_logger().info("scorer replaced", scorer=name)
        elif successor.backend.info().state == "FAILED":
            structlog.get_logger().error(
                "new version of scorer failed: the old one goes on",
                scorer=name,
                reason=successor.backend.info().last_error,
            )
        self._on_change()

    def _retire(self, seat: _Seat) -> None:
        task = asyncio.get_running_loop().create_task(self._finish_and_stop(seat))
        self._retiring[task] = seat
        task.add_done_callback(self._retired)
        if seat.successor is not None:
            self._retire(seat.successor)
            seat.successor = None

    def _retired(self, task: asyncio.Task[None]) -> None:
        self._retiring.pop(task, None)

    async def _finish_and_stop(self, seat: _Seat) -> None:
        while seat.leases:
            seat.released.clear()
            await seat.released.wait()
        await seat.backend.stop()


def _info(seat: _Seat) -> ScorerInfo:
    info = seat.backend.status()
    successor = seat.successor
    if successor is None or successor.backend.info().state != "FAILED":
        return info
    reason = f"the new version failed, the old one goes on: {successor.backend.info().last_error}"
    return replace(info, last_error=reason)
