"""The endpoints of an upstream scorer: found again and again, opened, closed, chosen from."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Set

import structlog

from reward_client.types import ReplicaInfo, ScorerState
from reward_server.upstream.choice import Identity, choose, served_identity
from reward_server.upstream.link import Link
from reward_server.upstream.metrics import UpstreamMetrics
from reward_server.upstream.settings import UpstreamSettings
from reward_server.upstream.targets import Address, Lookup, addresses

_RESOLVE_INTERVAL_S = 5.0
_RESOLVE_AGAIN_S = 1.0  # while an endpoint is in trouble


class Fleet:
    """All endpoints of one scorer.

    Attributes:
        identity: of the scorer they serve; endpoints that differ get nothing. None until one of
            them was ready.
    """

    def __init__(
        self,
        name: str,
        settings: UpstreamSettings,
        *,
        own_id: str,
        metrics: UpstreamMetrics,
        on_change: Callable[[], None],
        lookup: Lookup,
    ) -> None:
        self.identity: Identity | None = None
        self._name = name
        self._settings = settings
        self._own_id = own_id
        self._metrics = metrics
        self._on_change = on_change
        self._lookup = lookup
        self._links: dict[Address, Link] = {}
        self._lookup_error = ""
        self._changed = asyncio.Event()
        self._resolve_now = asyncio.Event()
        self._turns = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = structlog.get_logger().bind(scorer=name)

    def start(self) -> None:
        """Begin to look for endpoints; returns at once."""
        self._tasks.add(asyncio.create_task(self._keep_resolving()))

    async def stop(self, reason: str) -> None:
        """Close all connections; what is in flight fails."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(link.stop(reason) for link in self._links.values()))
        self._links.clear()

    def look_now(self) -> None:
        """Resolve the names and ask every endpoint how it is, also those that were set aside."""
        self._resolve_now.set()
        for link in self._links.values():
            link.look_now()

    @property
    def state(self) -> ScorerState:
        """READY as soon as one endpoint is usable; FAILED once all say so."""
        if self._usable():
            return "READY"
        states = {link.state for link in self._links.values()}
        return "FAILED" if states == {"FAILED"} else "STARTING"

    @property
    def last_error(self) -> str:
        """What is wrong with which endpoint; empty if nothing is."""
        troubles = [f"{r.name}: {r.last_error}" for r in self.replicas() if r.last_error]
        return "; ".join(filter(None, [self._lookup_error, *troubles]))

    def replicas(self) -> list[ReplicaInfo]:
        """Every endpoint, for whoever watches."""
        found = []
        for link in self._links.values():
            state, reason = link.state, link.last_error
            if link.is_ready and link.identity != self.identity:
                state = "FAILED"
                reason = f"not used, because it differs: {link.identity} (used: {self.identity})"
            found.append(ReplicaInfo(str(link.address), state, last_error=reason))
        return found

    def choose(self, identity: Identity, tried: Set[Address]) -> Link | None:
        """The endpoint for the next items: one of the identity that has not been tried, or None."""
        usable = [
            link
            for link in self._links.values()
            if link.is_ready and link.identity == identity and link.address not in tried
        ]
        return choose(usable, self._settings.policy, next(self._turns))

    async def change(self, until_s: float) -> bool:
        """Wait for news of an endpoint until a monotonic time; returns whether there was any."""
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            return False
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._changed.wait(), left_s)
            return True
        return False

    def _usable(self) -> list[Link]:
        known = self._links.values()
        return [link for link in known if link.is_ready and link.identity == self.identity]

    def _update(self) -> None:
        ready = [link.identity for link in self._links.values() if link.is_ready and link.identity]
        served = served_identity(ready, self.identity)
        if served != self.identity and self.identity is not None:
            self._log.warning("upstream scorer changed", old=str(self.identity), new=str(served))
        self.identity = served
        usable = self._usable()
        for link in self._links.values():
            link.show_usable(link in usable)
        self._changed.set()
        self._changed = asyncio.Event()
        self._on_change()

    async def _keep_resolving(self) -> None:
        while True:
            self._adopt(await self._resolve())
            is_well = self._links and all(link.is_ready for link in self._links.values())
            interval_s = _RESOLVE_INTERVAL_S if is_well else _RESOLVE_AGAIN_S
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._resolve_now.wait(), interval_s)
            self._resolve_now.clear()

    async def _resolve(self) -> dict[Address, None]:
        found: dict[Address, None] = {}
        troubles = []
        for target in self._settings.targets:
            try:
                now = await addresses(target, self._lookup)
            except OSError as error:
                troubles.append(f"{target.host}: cannot be resolved ({error.strerror or error})")
                # What it was before is better than nothing; watching tells which still live.
                now = [known for known in self._links if known.name == target.host]
            found |= dict.fromkeys(now)
        self._lookup_error = "; ".join(troubles)
        return found

    def _adopt(self, wanted: dict[Address, None]) -> None:
        for address in wanted:
            if address not in self._links:
                self._links[address] = self._open(address)
        for address in [known for known in self._links if known not in wanted]:
            self._log.info("upstream endpoint is gone", endpoint=str(address))
            leaving = asyncio.create_task(self._links.pop(address).leave())
            self._tasks.add(leaving)
            leaving.add_done_callback(self._tasks.discard)
            self._update()

    def _open(self, address: Address) -> Link:
        link = Link(
            self._name,
            address,
            self._settings,
            own_id=self._own_id,
            metrics=self._metrics,
            on_change=self._update,
        )
        link.start()
        return link
