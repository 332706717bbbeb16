"""The asyncio client; `RewardClient` with awaits, and cancelling a call cancels it on the wire."""

from __future__ import annotations

import asyncio
import os
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any

from reward_client import _tracing
from reward_client._endpoints import EndpointState, Hedge, Preference
from reward_client._env import Environment
from reward_client._exchange import Attempt, Exchange
from reward_client._readiness import Readiness
from reward_client._session import (
    DEFAULT_ATTEMPTS,
    DEFAULT_MAX_MESSAGE_BYTES,
    DEFAULT_MAX_MESSAGE_ITEMS,
    DEFAULT_TIMEOUT_S,
    Batch,
    Limits,
    ListMessage,
    Progress,
    ScoreMessage,
    Session,
    now_s,
    start_listing,
    take_listing,
)
from reward_client._streaming import Stream
from reward_client._tls import TlsFiles
from reward_client._transports import AsyncTransport, open_async_transport
from reward_client._transports.base import AsyncCalls
from reward_client._validation import make_request
from reward_client.types import (
    Item,
    ItemScores,
    Priority,
    ScoreResponse,
    ScorerInfo,
    ScorerSelector,
)


class AsyncRewardClient:
    """A connection to one reward server or to several equal ones, for one event loop."""

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        api_key: str | None = None,
        tls: TlsFiles | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        max_message_items: int = DEFAULT_MAX_MESSAGE_ITEMS,
        attempts: int = DEFAULT_ATTEMPTS,
        prefer: Preference = "least_busy",
        hedge: Hedge | None = None,
        transport: AsyncTransport | Sequence[AsyncTransport] | None = None,
    ) -> None:
        """Prepare a client; arguments and errors as of `RewardClient`."""
        self._session: Session[AsyncTransport] = Session(
            url,
            Limits(timeout_s, max_message_bytes, max_message_items, attempts),
            prefer,
            hedge,
            transport,
            lambda one: open_async_transport(one, api_key, max_message_bytes, tls),
        )
        self.url = self._session.url

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> AsyncRewardClient:
        """Make a client of what the environment says; as `RewardClient.from_env`."""
        env = Environment.read(os.environ if environ is None else environ)
        return cls(env.required_url(), api_key=env.api_key, tls=env.tls, timeout_s=env.timeout_s)

    async def score(
        self,
        items: Sequence[Item],
        scorers: Sequence[str | ScorerSelector],
        *,
        priority: Priority = Priority.TRAIN,
        deadline_s: float | None = None,
        include_details: bool = False,
        request_id: str | None = None,
        progress: Progress | None = None,
    ) -> ScoreResponse:
        """Score N items with each of the scorers; as `RewardClient.score`."""
        request = make_request(items, scorers, priority, include_details, request_id)
        batch = Batch.start(self._session, request, deadline_s, progress)
        with _tracing.span("reward.score", "CLIENT", _tracing.about(request)):
            async with _Driver(self._session, batch.exchange, self._begin_score) as driver:
                while not batch.exchange.is_idle:
                    await driver.step()
                    batch.take()
            return batch.response()

    def score_stream(
        self,
        items: AsyncIterable[Item] | Iterable[Item],
        scorers: Sequence[str | ScorerSelector],
        *,
        priority: Priority = Priority.TRAIN,
        deadline_s: float | None = None,
        include_details: bool = False,
        items_per_message: int = 1,
        in_flight: int = 32,
    ) -> AsyncIterator[ItemScores]:
        """Score items while they are being made; as `RewardClient.score_stream`.

        An asynchronous source is waited for together with the answers, so neither delays the other.
        """
        stream = Stream.start(
            self._session,
            scorers,
            priority=priority,
            deadline_s=deadline_s,
            include_details=include_details,
            items_per_message=items_per_message,
            in_flight=in_flight,
        )
        return self._run_stream(stream, items)

    async def list_scorers(self) -> tuple[ScorerInfo, ...]:
        """Describe the scorers of one server, ready or not; raises RewardError."""
        exchange = start_listing(self._session)
        async with _Driver(self._session, exchange, self._begin_listing) as driver:
            while not exchange.has_results:
                await driver.step()
        return take_listing(exchange)

    async def wait_ready(
        self, scorers: Sequence[str | ScorerSelector] = (), timeout_s: float = 60.0
    ) -> tuple[ScorerInfo, ...]:
        """Wait until the scorers are READY, and describe them; as `RewardClient.wait_ready`."""
        readiness = Readiness.start(self._session, scorers, timeout_s)
        while (limit_s := readiness.look_s()) > 0:
            looks = {
                asyncio.ensure_future(self._begin_listing(look)): look
                for look in readiness.looks(limit_s)
            }
            try:
                while looks:
                    ended, _ = await asyncio.wait(looks, return_when=asyncio.FIRST_COMPLETED)
                    for task in ended:
                        infos = readiness.judge(looks.pop(task), task.result)
                        if infos is not None:
                            return infos
            finally:
                await _cancel(looks)
            readiness.check_hope()
            await asyncio.sleep(readiness.pause_s())
        raise readiness.gave_up()

    def endpoints(self) -> tuple[EndpointState, ...]:
        """What this client knows of its servers, in the order of the urls."""
        return self._session.states()

    async def close(self) -> None:
        """Release connections; calls in flight are cancelled."""
        for transport in self._session.transports:
            await transport.close()

    async def __aenter__(self) -> AsyncRewardClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _begin_score(self, attempt: Attempt[ScoreMessage]) -> Any:
        transport = self._session.transports[attempt.endpoint]
        return await transport.score(attempt.payload.part.message, attempt.timeout_s)

    async def _begin_listing(self, attempt: Attempt[ListMessage]) -> Any:
        transport = self._session.transports[attempt.endpoint]
        return await transport.list_scorers(attempt.timeout_s)

    async def _run_stream(
        self, stream: Stream, items: AsyncIterable[Item] | Iterable[Item]
    ) -> AsyncIterator[ItemScores]:
        exchange = stream.exchange
        async with AsyncExitStack() as stack:
            calls: dict[int, AsyncCalls] = {}

            async def begin(attempt: Attempt[ScoreMessage]) -> Any:
                index = attempt.endpoint
                if index not in calls:
                    calls[index] = self._session.transports[index].stream()
                    stack.push_async_callback(calls[index].close)
                message = attempt.payload.part.message
                return await calls[index].score(message, attempt.timeout_s)

            driver = await stack.enter_async_context(_Driver(self._session, exchange, begin))
            source = await stack.enter_async_context(_Source(items))
            while not (source.is_exhausted and exchange.is_idle):
                await driver.step(source.next() if exchange.has_room else None)
                for item in source.take():
                    stream.add(item)
                if source.is_exhausted:
                    stream.flush()
                for scored in stream.take():
                    yield scored


class _Driver:
    """Does what an exchange asks for, with tasks."""

    def __init__(
        self,
        session: Session[Any],
        exchange: Exchange[Any, Any],
        begin: Callable[[Attempt[Any]], Coroutine[Any, Any, Any]],
    ) -> None:
        self._session = session
        self._exchange = exchange
        self._begin = begin
        self._pending: dict[asyncio.Future[Any], Attempt[Any]] = {}

    async def step(self, also: asyncio.Future[Any] | None = None) -> None:
        """Send what is due, wait for something to end, or for `also`, and settle what has."""
        for attempt in self._exchange.due(now_s()):
            self._pending[asyncio.ensure_future(self._begin(attempt))] = attempt
        await self._drop_abandoned()
        if self._exchange.has_results:
            return
        wait_s = max(0.0, self._exchange.wake_at_s() - now_s())
        waited = [*self._pending, *([also] if also is not None else [])]
        if not waited:
            await asyncio.sleep(wait_s)
            return
        limit_s = None if wait_s == float("inf") else wait_s
        ended, _ = await asyncio.wait(waited, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            if task is not also:
                attempt = self._pending.pop(task)
                outcome = self._session.outcome(task.result, attempt)
                self._exchange.settle(attempt, outcome, now_s())
        await self._drop_abandoned()

    async def _drop_abandoned(self) -> None:
        abandoned = {id(attempt) for attempt in self._exchange.abandoned()}
        dropped = [task for task, attempt in self._pending.items() if id(attempt) in abandoned]
        for task in dropped:
            del self._pending[task]
        await _cancel(dropped)

    async def __aenter__(self) -> _Driver:
        return self

    async def __aexit__(self, *_: object) -> None:
        # Nobody waits for what is left; let the servers drop it.
        self._exchange.stop()
        await self._drop_abandoned()


class _Source:
    """The items of a stream, one ahead."""

    def __init__(self, items: AsyncIterable[Item] | Iterable[Item]) -> None:
        self._items = aiter(items) if isinstance(items, AsyncIterable) else _walk(items)
        self._next: asyncio.Future[Item] | None = None
        self.is_exhausted = False

    def next(self) -> asyncio.Future[Item] | None:
        """The item under way, or None if there is no more."""
        if self._next is None and not self.is_exhausted:
            self._next = asyncio.ensure_future(_anext(self._items))
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

    async def __aenter__(self) -> _Source:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._next is not None:
            await _cancel([self._next])


async def _anext(items: AsyncIterator[Item]) -> Item:
    return await anext(items)


async def _walk(items: Iterable[Item]) -> AsyncIterator[Item]:
    for item in items:
        yield item


async def _cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    left = list(tasks)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
