"""The asyncio client; `RewardClient` with awaits, and cancelling a call cancels it on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import TypeVar

import stamina

from reward_client import convert
from reward_client.client import (
    DEFAULT_ATTEMPTS,
    DEFAULT_MAX_MESSAGE_BYTES,
    DEFAULT_TIMEOUT_S,
    PARTS_IN_FLIGHT,
)
from reward_client.errors import RewardError
from reward_client.readiness import ATTEMPT_TIMEOUT_S, POLL_INTERVAL_S, ReadinessCheck
from reward_client.requests import check_timeout, make_request, selectors
from reward_client.retries import Backoff, Deadline, RetryPolicy
from reward_client.splitting import Part, merge, read_response, shift_items, split
from reward_client.transports import AsyncTransport, open_async_transport
from reward_client.types import (
    Item,
    Priority,
    ScoreRequest,
    ScoreResponse,
    ScorerInfo,
    ScorerSelector,
)

Reply = TypeVar("Reply")


class AsyncRewardClient:
    """A connection to a reward server, for one event loop."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        attempts: int = DEFAULT_ATTEMPTS,
        transport: AsyncTransport | None = None,
    ) -> None:
        """Prepare a client; arguments and errors as of `RewardClient`."""
        self.url = url
        self._timeout_s = check_timeout("timeout_s", timeout_s)
        self._max_message_bytes = max_message_bytes
        self._policy = RetryPolicy(attempts=attempts)
        self._transport = transport or open_async_transport(url, api_key, max_message_bytes)

    async def score(
        self,
        items: Sequence[Item],
        scorers: Sequence[str | ScorerSelector],
        *,
        priority: Priority = Priority.TRAIN,
        deadline_s: float | None = None,
        include_details: bool = False,
        request_id: str | None = None,
    ) -> ScoreResponse:
        """Score N items with each of the scorers; as `RewardClient.score`."""
        request = make_request(items, scorers, priority, include_details, request_id)
        limit_s = self._timeout_s if deadline_s is None else check_timeout("deadline_s", deadline_s)
        deadline = Deadline(limit_s)
        parts = split(request, self._max_message_bytes)
        slots = asyncio.Semaphore(PARTS_IN_FLIGHT)

        async def score_part(part: Part) -> ScoreResponse:
            async with slots:
                return await self._score_part(request, part, deadline)

        tasks = [asyncio.ensure_future(score_part(part)) for part in parts]
        try:
            return merge(request, parts, await asyncio.gather(*tasks))
        except BaseException:
            # Nobody waits for the other parts any more; let the server drop them.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def list_scorers(self) -> tuple[ScorerInfo, ...]:
        """Describe the scorers of the server, ready or not; raises RewardError."""
        return await self._with_retries(self._list_once, Deadline(self._timeout_s))

    async def wait_ready(
        self, scorers: Sequence[str | ScorerSelector] = (), timeout_s: float = 60.0
    ) -> tuple[ScorerInfo, ...]:
        """Wait until the scorers are READY, and describe them; as `RewardClient.wait_ready`."""
        names = [selector.name for selector in selectors(scorers)]
        deadline = Deadline(check_timeout("timeout_s", timeout_s))
        check = ReadinessCheck(self.url, names, timeout_s)
        while deadline.left_s > 0:
            try:
                ready = check.look(await self._list_once(min(ATTEMPT_TIMEOUT_S, deadline.left_s)))
            except RewardError as error:
                check.missed(error)
            else:
                if ready is not None:
                    return ready
            await asyncio.sleep(max(0.0, min(POLL_INTERVAL_S, deadline.left_s)))
        raise check.gave_up()

    async def close(self) -> None:
        """Release connections; calls in flight may be cancelled."""
        await self._transport.close()

    async def __aenter__(self) -> AsyncRewardClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _list_once(self, deadline_s: float) -> tuple[ScorerInfo, ...]:
        message = await self._transport.list_scorers(max(deadline_s, 1e-3))
        return tuple(convert.info_from_proto(info) for info in message.scorers)

    async def _score_part(
        self, request: ScoreRequest, part: Part, deadline: Deadline
    ) -> ScoreResponse:
        async def once(left_s: float) -> ScoreResponse:
            return read_response(request, part, await self._transport.score(part.message, left_s))

        try:
            return await self._with_retries(once, deadline)
        except RewardError as error:
            shift_items(error, part)
            raise

    async def _with_retries(
        self, once: Callable[[float], Awaitable[Reply]], deadline: Deadline
    ) -> Reply:
        backoff = Backoff(self._policy, deadline)
        async for attempt in stamina.retry_context(
            on=backoff, attempts=self._policy.attempts, timeout=None
        ):
            with attempt:
                return await once(backoff.time_for_attempt_s())
        raise AssertionError("a retry context ends with a value or an error")
