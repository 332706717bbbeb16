"""The same client for asyncio; see `RewardClient`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from functools import cached_property, partial
from types import TracebackType
from typing import Any

from reward_client._base import ClientBase
from reward_client._core import Core, Progress
from reward_client._endpoints import EndpointState
from reward_client._items import Prompts, References, Specs, items_of
from reward_client._stream import Stream, check_counts
from reward_client._tasks import cancel
from reward_client._validation import Scorers, check_timeout, make_request, selectors
from reward_client.types import Item, ItemScores, Priority, ScoreResponse, ScorerInfo, ServerLimits


class AsyncRewardClient(ClientBase):
    """As `RewardClient`. It may be used in any event loop, and in several: each gets connections.

    `close` closes those of the loop it is called in; those of a loop that is gone are gone with it.
    """

    @cached_property
    def _cores(self) -> dict[asyncio.AbstractEventLoop, Core]:
        return {}

    async def score(
        self,
        images: Any,
        /,
        prompts: Prompts | Scorers | None = None,
        scorers: Scorers | None = None,
        *,
        specs: Specs = None,
        references: References = None,
        priority: Priority = Priority.EVAL,
        deadline_s: float | None = None,
        include_details: bool = False,
        request_id: str | None = None,
        progress: Progress | None = None,
    ) -> ScoreResponse:
        """Score N pictures, or items, with each of the scorers; as `RewardClient.score`."""
        items, asked = items_of(images, prompts, scorers, specs, references)
        request = make_request(items, asked, priority, include_details, request_id)
        return await self._core().score(request, self._time_s(deadline_s), progress)

    def score_stream(
        self,
        items: AsyncIterable[Item] | Iterable[Item],
        scorers: Scorers,
        *,
        priority: Priority = Priority.EVAL,
        deadline_s: float | None = None,
        include_details: bool = False,
        items_per_message: int = 1,
        in_flight: int = 32,
    ) -> AsyncIterator[ItemScores]:
        """Score items while they are being made; as `RewardClient.score_stream`.

        An asynchronous source is waited for together with the answers, so neither delays the other.
        """
        check_counts(items_per_message, in_flight)
        timeout_s = self._time_s(deadline_s)
        request_of = partial(
            make_request, scorers=scorers, priority=priority, include_details=include_details
        )

        async def run() -> AsyncIterator[ItemScores]:
            stream = Stream(self._core(), request_of, in_flight, timeout_s)
            source, batch = _Source(items), list[Item]()
            try:
                while not (source.is_exhausted and stream.is_idle):
                    coming = source.next() if stream.has_room else None
                    for scored in await stream.take(coming):
                        yield scored
                    batch += source.take()
                    if len(batch) == items_per_message or (batch and source.is_exhausted):
                        await stream.send(batch)
                        batch = []
            finally:
                await source.close()
                await stream.close()

        return run()

    async def list_scorers(self) -> tuple[ScorerInfo, ...]:
        """Describe the scorers of one server, ready or not; raises RewardError."""
        return await self._core().list_scorers()

    async def limits(self) -> ServerLimits | None:
        """What one server accepts in a request, None if it does not say; raises RewardError."""
        return await self._core().limits()

    async def wait_ready(
        self, scorers: Scorers = (), timeout_s: float = 60.0
    ) -> tuple[ScorerInfo, ...]:
        """Wait until the scorers are READY on one server at least; as `RewardClient.wait_ready`."""
        names = [selector.name for selector in selectors(scorers)]
        limit_s = check_timeout("timeout_s", timeout_s)
        return await self._core().wait_ready(names, limit_s)

    def endpoints(self) -> tuple[EndpointState, ...]:
        """What this client knows of its servers in the running loop, in the order of the urls."""
        return self._core().pool.states()

    async def close(self) -> None:
        """Release connections; calls in flight are cancelled."""
        self._is_closed = True
        core = self._cores.pop(asyncio.get_running_loop(), None)
        if core is not None:
            await core.pool.close()

    async def __aenter__(self) -> AsyncRewardClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _core(self) -> Core:
        self._check_open()
        loop = asyncio.get_running_loop()
        if loop not in self._cores:
            # Connections of a loop that is gone cannot be closed, only dropped.
            for gone in [one for one in self._cores if one.is_closed()]:
                del self._cores[gone]
            self._cores[loop] = self._new_core()
        return self._cores[loop]


class _Source:
    """The items of a stream, one ahead."""

    def __init__(self, items: AsyncIterable[Item] | Iterable[Item]) -> None:
        self._items = aiter(items) if isinstance(items, AsyncIterable) else _walk(items)
        self._next: asyncio.Future[Item] | None = None
        self.is_exhausted = False

    def next(self) -> asyncio.Future[Item] | None:
        """The item under way, or None if there is no more."""
        if self._next is None and not self.is_exhausted:
            self._next = asyncio.ensure_future(anext(self._items))
        return self._next

    def take(self) -> list[Item]:
        """The item that has come, if any; raises what the source raises."""
        if self._next is None or not self._next.done():
            return []
        task, self._next = self._next, None
        try:
            return [task.result()]
        except StopAsyncIteration:
            self.is_exhausted = True
            return []

    async def close(self) -> None:
        if self._next is not None:
            await cancel([self._next])


async def _walk(items: Iterable[Item]) -> AsyncIterator[Item]:
    for item in items:
        yield item
