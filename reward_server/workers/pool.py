"""Scorers that run on this host: workers that some share; of each a queue, replicas, a state."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import msgspec

from reward_client.errors import RewardError, Unavailable
from reward_client.types import ScorerInfo, ScorerResult, ScorerState
from reward_server.backend import Order
from reward_server.config import ScorerConfig
from reward_server.observability import spans
from reward_server.observability.metrics import Metrics
from reward_server.scheduling.cache import CacheUse, ResultCache
from reward_server.scheduling.queue import Signal, WorkQueue
from reward_server.scheduling.results import result_so_far, works_of
from reward_server.workers.replica import Described, Replica
from reward_server.workers.slot import WorkerSlot

_STARTING_RETRY_AFTER_S = 1.0


class Workers:
    """The worker slots that scorers share; they run as long as any of these needs them."""

    def __init__(self, count: int) -> None:
        self.changed = Signal()
        self.asked = [asyncio.Event() for _ in range(count)]
        self._slots: list[WorkerSlot] = []
        self._users: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def fill(self, config: ScorerConfig, pools: Mapping[str, ScorerPool]) -> None:
        """Say which scorers are in every slot; `config` is of the one whose worker it is."""
        self._users = set(pools)
        self._slots = [
            WorkerSlot(index, config, [pool.replicas[index] for pool in pools.values()], asked)
            for index, asked in enumerate(self.asked)
        ]

    def start(self) -> None:
        if not self._tasks:
            self._tasks = [asyncio.create_task(slot.run()) for slot in self._slots]

    async def leave(self, name: str) -> None:
        """Go on without a scorer, and stop after the last one."""
        self._users.discard(name)
        if not self._users:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)


class ScorerPool:
    """The replicas of one scorer around one queue; a `Backend`. Made by `open_pools`."""

    needs_pixels = True

    def __init__(
        self,
        name: str,
        config: ScorerConfig,
        metrics: Metrics,
        on_change: Callable[[str], None],
        cache: ResultCache,
        workers: Workers,
    ) -> None:
        self.name = name
        self._cache = CacheUse(cache, config.cache, metrics)
        self.queue = WorkQueue(name, metrics, workers.changed)
        self._on_change = on_change
        self._workers = workers
        self._draining = False
        self.replicas = [
            Replica(
                name,
                index,
                config,
                queue=self.queue,
                metrics=metrics,
                on_change=self._changed,
                on_retry=asked.set,
                served_fingerprint=self._served_fingerprint,
            )
            for index, asked in enumerate(workers.asked)
        ]
        self._keys = itertools.count()

    def start(self) -> None:
        self._workers.start()

    def retry(self) -> None:
        for replica in self.replicas:
            replica.retry()

    def drain(self) -> None:
        self._draining = True
        self._changed()

    async def stop(self) -> None:
        for replica in self.replicas:
            replica.close()
        await self._workers.leave(self.name)
        self.queue.fail_all("the server stopped", retryable=True)

    @property
    def state(self) -> ScorerState:
        """READY as soon as one replica is; FAILED once all are."""
        states = {replica.state for replica in self.replicas}
        if states == {"FAILED"}:
            return "FAILED"
        if self._draining:
            return "DRAINING"
        return "READY" if "READY" in states else "STARTING"

    @property
    def described(self) -> Described | None:
        """What a worker said once it was ready, one that still is if possible; else None."""
        ready = (r.described for r in self.replicas if r.state == "READY")
        once = (r.described for r in self.replicas)
        return next((d for d in (*ready, *once) if d), None)

    def _served_fingerprint(self) -> str:
        """Of the replicas that serve; all have the same, or scores of one name would differ."""
        ready = (r.described for r in self.replicas if r.state == "READY")
        return next((d.fingerprint for d in ready if d), "")

    @property
    def last_error(self) -> str:
        """Why it is not ready, for people."""
        return next((r.last_error for r in self.replicas if r.last_error), "")

    def refusal(self) -> RewardError | None:
        """Why it takes no items now, or None.

        Between a crash and the restart items are taken: they wait for the new worker.
        """
        if self.state == "FAILED":
            after_s = self._retry_after_s()
            return Unavailable(
                self._exit_reason(), retryable=after_s is not None, retry_after_s=after_s
            )
        if self.described is None:
            trouble = f" (so far: {self.last_error})" if self.last_error else ""
            return Unavailable(
                f"scorer {self.name!r} is starting{trouble}: try again",
                retry_after_s=_STARTING_RETRY_AFTER_S,
            )
        return None

    async def score(self, order: Order) -> ScorerResult:
        info = self.info()
        by_index, errors = works_of(order, info, self._keys)
        works = by_index.values()
        details = order.request.include_details
        try:
            unknown = await self._cache.answer_known(
                by_index, info, order.request.priority, details=details
            )
            if (refusal := self.refusal()) is not None:
                raise refusal
            self.queue.put(work for work in works if not work.answer.done())
            left_s = order.deadline_at_s - time.monotonic()
            await asyncio.wait([work.answer for work in works], timeout=left_s)
            self._cache.keep(by_index, unknown, info)
            spans.record(works)
            return result_so_far(order, by_index, errors, self.info())
        finally:
            self.queue.withdraw(works)

    def info(self) -> ScorerInfo:
        state = self.state
        # Also while it is tried again: a start that takes minutes has then gone wrong before.
        error = self.last_error if state in ("FAILED", "STARTING") else ""
        described = self.described
        if described is None:
            return ScorerInfo(self.name, "", "", (), (), "", (0.0, 0.0), state, error)
        return ScorerInfo(
            name=self.name,
            fingerprint=described.fingerprint,
            state=state,
            last_error=error,
            **msgspec.structs.asdict(described.hello),
        )

    def status(self) -> ScorerInfo:
        return replace(
            self.info(),
            replicas=tuple(replica.info() for replica in self.replicas),
            waiting_items=self.queue.waiting_items,
            oldest_wait_s=self.queue.oldest_wait_s(),
        )

    def _exit_reason(self) -> str:
        return f"scorer {self.name!r} has failed: {self.last_error}"

    def _retry_after_s(self) -> float | None:
        """Seconds until a FAILED scorer tries again; None if it does so only when asked to."""
        times_s = [r.retry_at_s for r in self.replicas if r.retry_at_s is not None]
        return max(min(times_s) - time.monotonic(), 0.0) if times_s else None

    def _changed(self) -> None:
        if self.state == "FAILED":
            is_retryable = self._retry_after_s() is not None
            self.queue.fail_all(self._exit_reason(), retryable=is_retryable)
        self._on_change(self.name)


def open_pools(
    group: Mapping[str, ScorerConfig],
    metrics: Metrics,
    on_change: Callable[[str], None],
    cache: ResultCache,
) -> dict[str, ScorerPool]:
    """The pools of scorers that share their workers; nothing is started yet."""
    host = next(iter(group.values()))
    workers = Workers(len(host.devices))
    pools = {
        name: ScorerPool(name, config, metrics, on_change, cache, workers)
        for name, config in group.items()
    }
    workers.fill(host, pools)
    return pools
