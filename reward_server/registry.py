"""The scorers this server has now, and how a reload exchanges them without losing a request.

A request leases the scorers it asks for. A reload never takes a leased scorer away: what is removed
or replaced is retired, which means that it finishes the requests that hold it and stops after the
last. A changed scorer loads beside the one it replaces and takes over once it is READY, so that
there is no gap and a new version that cannot start costs nothing; the device needs room for both.
The old one gives way at once only if it has never served or has failed for good. Scorers that share
a worker are replaced together: when the table of one of them changes, or who they are.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import structlog

from reward_client.types import ScorerInfo
from reward_server.backend import Backend
from reward_server.config import ScorerConfig, worker_groups

# Tables of scorers that share workers, and what to call with the name of one that has changed.
Group = Mapping[str, ScorerConfig]
MakeBackends = Callable[[Group, Callable[[str], None]], Mapping[str, Backend]]


@dataclass(frozen=True, slots=True)
class Changes:
    """What a reload does, by scorer name."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    replaced: tuple[str, ...]
    retried: tuple[str, ...]


@dataclass(slots=True, eq=False)
class _Entry:
    """One scorer that runs, who uses it, and what will replace it."""

    group: Group
    backend: Backend
    leases: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)
    successor: _Entry | None = None


class Registry:
    """All scorers by name. Not thread-safe: for one event loop."""

    def __init__(
        self,
        scorers: Mapping[str, ScorerConfig],
        make_backends: MakeBackends,
        on_change: Callable[[], None],
    ) -> None:
        self._make_backends = make_backends
        self._on_change = on_change
        made = self._make_entries(worker_groups(scorers).values())
        self._entries = {name: made[name] for name in scorers}
        self._retiring: dict[asyncio.Task[None], _Entry] = {}
        self._draining = False

    def start(self) -> None:
        for entry in self._entries.values():
            entry.backend.start()

    def get(self, name: str) -> Backend | None:
        """The scorer that answers to a name now; lease it before the next await."""
        entry = self._entries.get(name)
        return entry.backend if entry else None

    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def infos(self) -> tuple[ScorerInfo, ...]:
        """All scorers with their replicas; one whose new version cannot start says so."""
        return tuple(_info(entry) for entry in self._entries.values())

    def is_ready(self) -> bool:
        return any(entry.backend.info().state == "READY" for entry in self._entries.values())

    @contextlib.contextmanager
    def lease(self, backends: Sequence[Backend]) -> Iterator[None]:
        """Keep scorers running for the time of the block, whatever is reloaded meanwhile."""
        entries = [entry for entry in self._entries.values() if entry.backend in backends]
        for entry in entries:
            entry.leases += 1
        try:
            yield
        finally:
            for entry in entries:
                entry.leases -= 1
                if entry.leases == 0:
                    entry.released.set()

    def reload(self, scorers: Mapping[str, ScorerConfig]) -> Changes:
        """Make the registry equal to a config; returns at once, unchanged scorers notice nothing.

        Scorers that have FAILED are tried again, whether or not their config has changed.

        Raises:
            Exception: a scorer cannot be built; then nothing has changed.
        """
        old, groups = self._entries, worker_groups(scorers)
        loading = {name: entry.successor or entry for name, entry in old.items()}
        stay = [name for name in scorers if _are(old, groups[name])]
        come = [name for name in scorers if name not in stay and _are(loading, groups[name])]
        fresh = [name for name in scorers if name not in stay and name not in come]
        made = self._make_entries(groups[name] for name in fresh)
        changes = Changes(
            added=tuple(name for name in fresh if name not in old),
            removed=tuple(name for name in old if name not in scorers),
            replaced=tuple(name for name in fresh if name in old),
            retried=tuple(
                name
                for name in (*stay, *come)
                if (old if name in stay else loading)[name].backend.info().state == "FAILED"
            ),
        )
        for name in changes.removed:
            self._retire(old[name])
        self._entries = {name: old.get(name) or made[name] for name in scorers}
        for name in stay:
            self._succeed(name, None)
        for name in changes.added:
            made[name].backend.start()
        for name in changes.replaced:
            self._succeed(name, made[name])
        for name in changes.retried:
            (old if name in stay else loading)[name].backend.retry()
        self._on_change()
        return changes

    def drain(self) -> None:
        """Show DRAINING everywhere; no successor takes over any more."""
        self._draining = True
        for entry in self._entries.values():
            entry.backend.drain()

    async def stop(self) -> None:
        """Stop every worker, those of retired scorers and of successors included."""
        self._draining = True
        entries = [*self._entries.values(), *self._retiring.values()]
        entries += [entry.successor for entry in self._entries.values() if entry.successor]
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*(entry.backend.stop() for entry in entries))

    def _make_entries(self, groups: Iterable[Group]) -> dict[str, _Entry]:
        made: dict[str, _Entry] = {}
        for group in groups:
            if not group.keys() <= made.keys():
                # By name: when a backend changes, it may be another entry's successor.
                backends = self._make_backends(group, self._changed)
                made |= {name: _Entry(group, backend) for name, backend in backends.items()}
        return made

    def _succeed(self, name: str, wanted: _Entry | None) -> None:
        """Let a new version load beside the present one; None if the present one stays."""
        entry = self._entries[name]
        if entry.successor is not None:
            self._retire(entry.successor)
        entry.successor = wanted
        if wanted is not None:
            wanted.backend.start()
            self._changed(name)

    def _changed(self, name: str) -> None:
        entry = self._entries.get(name)
        successor = entry.successor if entry else None
        if entry is None or successor is None or self._draining:
            self._on_change()
            return
        if successor.backend.info().state == "READY" or _serves_no_more(entry.backend):
            self._entries[name] = successor
            entry.successor = None
            self._retire(entry)
            structlog.get_logger().info("scorer replaced", scorer=name)
        elif successor.backend.info().state == "FAILED":
            structlog.get_logger().error(
                "new version of scorer failed: the old one goes on",
                scorer=name,
                reason=successor.backend.info().last_error,
            )
        self._on_change()

    def _retire(self, entry: _Entry) -> None:
        task = asyncio.get_running_loop().create_task(self._finish_and_stop(entry))
        self._retiring[task] = entry
        task.add_done_callback(lambda done: self._retiring.pop(done, None))
        if entry.successor is not None:
            self._retire(entry.successor)
            entry.successor = None

    async def _finish_and_stop(self, entry: _Entry) -> None:
        while entry.leases:
            entry.released.clear()
            await entry.released.wait()
        await entry.backend.stop()


def _are(entries: Mapping[str, _Entry], group: Group) -> bool:
    """Whether entries are those of a group, made together: only then they share their workers."""
    found = [entries.get(name) for name in group]
    shared = found[0].group if found[0] else None
    return shared == group and all(entry and entry.group is shared for entry in found)


def _serves_no_more(backend: Backend) -> bool:
    """Whether a scorer has never served, or has failed for good; a restart is neither."""
    refusal = backend.refusal()
    return not backend.info().transforms or (refusal is not None and not refusal.retryable)


def _info(entry: _Entry) -> ScorerInfo:
    info = entry.backend.status()
    successor = entry.successor
    if successor is None or successor.backend.info().state != "FAILED":
        return info
    reason = f"the new version failed, the old one goes on: {successor.backend.info().last_error}"
    return replace(info, last_error=reason)
