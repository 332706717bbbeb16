"""Callers with one item each that come at about the same time share one request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace

from reward_client._loop_thread import LoopThread
from reward_client._validation import item_problem
from reward_client._wire import convert
from reward_client.errors import Cancelled, InvalidArgument, RewardError, error_for
from reward_client.types import Item, ScoreResponse, ScorerResult


@dataclass(frozen=True, slots=True)
class BatchWindow:
    """When a request is sent: with so many items, or after so long a wait."""

    max_items: int = 16
    max_wait_ms: float = 5.0

    def __post_init__(self) -> None:
        if self.max_items < 1 or not 0 <= self.max_wait_ms < float("inf"):
            raise InvalidArgument(
                f"max_items must be at least 1 and max_wait_ms at least 0, got {self.max_items} and"
                f" {self.max_wait_ms}"
            )


class _Batch:
    """Items that leave together; `full` is set when it has left the queue."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.answers: list[asyncio.Future[ScoreResponse]] = []
        self.full = asyncio.Event()


class Coalescer:
    """For callers in any thread or event loop: it lives in a loop of its own."""

    def __init__(
        self, score: Callable[[list[Item]], Awaitable[ScoreResponse]], when: BatchWindow
    ) -> None:
        self._score = score
        self._when = when
        self._thread = LoopThread("reward-client-coalescer")
        self._batch: _Batch | None = None

    async def awaited(self, item: Item) -> ScoreResponse:
        """The response to this item alone, whatever else was sent with it; raises RewardError."""
        _check(item)
        return await asyncio.wrap_future(self._thread.submit(self._join(item)))

    def blocking(self, item: Item) -> ScoreResponse:
        _check(item)
        running = self._thread.submit(self._join(item))
        try:
            return running.result()
        except CancelledError as error:
            raise Cancelled("the request was cancelled") from error
        finally:
            running.cancel()

    async def _join(self, item: Item) -> ScoreResponse:
        batch = self._batch
        if batch is None:
            batch = self._batch = _Batch()
            self._sending = asyncio.ensure_future(self._send(batch))
        answer: asyncio.Future[ScoreResponse] = asyncio.get_running_loop().create_future()
        # Callers do not know of each other: ids are unique by position.
        batch.items.append(replace(item, id=f"{len(batch.items)}:{item.id}"))
        batch.answers.append(answer)
        if len(batch.items) == self._when.max_items:
            self._leave(batch)
        return await answer

    def _leave(self, batch: _Batch) -> None:
        if self._batch is batch:
            self._batch = None
        batch.full.set()

    async def _send(self, batch: _Batch) -> None:
        full = asyncio.ensure_future(batch.full.wait())
        await asyncio.wait([full], timeout=self._when.max_wait_ms / 1e3)
        full.cancel()
        self._leave(batch)
        waiting = [at for at, answer in enumerate(batch.answers) if not answer.done()]
        while waiting:
            asking = asyncio.ensure_future(self._score([batch.items[at] for at in waiting]))
            left = asyncio.ensure_future(_all_left([batch.answers[at] for at in waiting]))
            await asyncio.wait([asking, left], return_when=asyncio.FIRST_COMPLETED)
            left.cancel()
            if not asking.done():  # no caller is left
                asking.cancel()
                return
            waiting = _settle(asking, batch, waiting)


def _settle(asked: asyncio.Future[ScoreResponse], batch: _Batch, waiting: list[int]) -> list[int]:
    """Give every caller its own answer; returns whose items are to be sent again without others."""
    error = asked.exception()
    again: list[int] = []
    for position, at in enumerate(waiting):
        answer = batch.answers[at]
        if answer.done():
            continue
        if error is None:
            answer.set_result(_only(asked.result(), position))
        elif not isinstance(error, RewardError) or not error.items:
            answer.set_exception(error)
        elif position in error.items:
            own = error.items[position]
            answer.set_exception(error_for(own.code, own.message, own.retryable))
        else:
            again.append(at)
    return again


def _only(response: ScoreResponse, position: int) -> ScoreResponse:
    results: dict[str, ScorerResult] = {n: r.at(position) for n, r in response.results.items()}
    return ScoreResponse(response.request_id, results)


def _check(item: Item) -> None:
    """Raise InvalidArgument for what is wrong with an item by itself, before others join it."""
    if (problem := item_problem(replace(item, id=item.id or "0"))) is not None:
        raise InvalidArgument(problem)
    convert.item_to_proto(replace(item, images=(), references=()))


async def _all_left(answers: list[asyncio.Future[ScoreResponse]]) -> None:
    await asyncio.wait(answers)
