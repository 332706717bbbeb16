"""Callers with one item each that come at about the same time share one request."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from reward_client.errors import InvalidArgument
from reward_client.types import Item, ScoreResponse


@dataclass(frozen=True, slots=True)
class Gathering:
    """When a request is sent.

    Attributes:
        max_items: once it has as many items,
        max_wait_ms: or once its first item has waited as long.
    """

    max_items: int = 16
    max_wait_ms: float = 5.0

    def __post_init__(self) -> None:
        if self.max_items < 1 or not 0 <= self.max_wait_ms < float("inf"):
            raise InvalidArgument(
                f"max_items must be at least 1 and max_wait_ms at least 0, got {self.max_items} and"
                f" {self.max_wait_ms}"
            )


@dataclass(slots=True)
class _Batch:
    items: list[Item] = field(default_factory=list)
    full: threading.Event = field(default_factory=threading.Event)
    answer: Future[ScoreResponse] = field(default_factory=Future)


class Coalescer:
    """For threads: the first caller of a request waits for company, then sends it for all."""

    def __init__(self, score: Callable[[list[Item]], ScoreResponse], when: Gathering) -> None:
        self._score = score
        self._when = when
        self._lock = threading.Lock()
        self._batch = _Batch()

    def score(self, item: Item) -> tuple[ScoreResponse, int]:
        """Return the answer to a request and which of its items is the caller's.

        Raises:
            RewardError: the request failed; every caller in it gets the same error.
        """
        with self._lock:
            batch = self._batch
            index = _add(batch.items, item)
            if len(batch.items) == self._when.max_items:
                self._batch = _Batch()
                batch.full.set()
        if index == 0:
            self._send(batch)
        return batch.answer.result(), index

    def _send(self, batch: _Batch) -> None:
        try:
            batch.full.wait(self._when.max_wait_ms / 1e3)
            with self._lock:
                if self._batch is batch:
                    self._batch = _Batch()
            batch.answer.set_result(self._score(batch.items))
        except BaseException as error:
            # Whatever it is, nobody may wait for ever.
            batch.answer.set_exception(error)


@dataclass(slots=True)
class _AsyncBatch:
    items: list[Item] = field(default_factory=list)
    full: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[ScoreResponse] | None = None
    waiters: int = 0


class AsyncCoalescer:
    """For the tasks of one event loop."""

    def __init__(
        self, score: Callable[[list[Item]], Awaitable[ScoreResponse]], when: Gathering
    ) -> None:
        self._score = score
        self._when = when
        self._batch = _AsyncBatch()

    async def score(self, item: Item) -> tuple[ScoreResponse, int]:
        """As `Coalescer.score`; cancelling every caller of a request cancels the request."""
        batch = self._batch
        index = _add(batch.items, item)
        if batch.task is None:
            batch.task = asyncio.create_task(self._send(batch))
        if len(batch.items) == self._when.max_items:
            self._batch = _AsyncBatch()
            batch.full.set()
        batch.waiters += 1
        try:
            return await asyncio.shield(batch.task), index
        finally:
            batch.waiters -= 1
            if batch.waiters == 0:
                self._leave(batch)
                batch.task.cancel()

    async def _send(self, batch: _AsyncBatch) -> ScoreResponse:
        try:
            await asyncio.wait_for(batch.full.wait(), self._when.max_wait_ms / 1e3)
        except (TimeoutError, asyncio.TimeoutError):
            self._leave(batch)
        return await self._score(batch.items)

    def _leave(self, batch: _AsyncBatch) -> None:
        if self._batch is batch:
            self._batch = _AsyncBatch()


def _add(items: list[Item], item: Item) -> int:
    # Callers do not know of each other: ids are unique by position.
    items.append(replace(item, id=f"{len(items)}:{item.id}"))
    return len(items) - 1
