"""What both clients do, in one event loop: requests, streams, waiting, over a pool of servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from reward_client import _tracing
from reward_client._endpoints import Endpoint, EndpointState
from reward_client._pool import Pool
from reward_client._tasks import all_of
from reward_client._transports.base import Calls
from reward_client._validation import unknown_scorer
from reward_client._wire.splitting import Part, Sizes, merge, read_response, shift_items, split
from reward_client.errors import DeadlineExceeded, RewardError, Unavailable
from reward_client.types import ScoreRequest, ScoreResponse, ScorerInfo, ServerLimits

DEFAULT_TIMEOUT_S = 60.0
DEFAULT_MAX_MESSAGE_BYTES = 16 << 20
DEFAULT_MAX_MESSAGE_ITEMS = 256
MESSAGES_IN_FLIGHT = 4
_LIMITS_TIMEOUT_S = 2.0
_READY_POLL_S, _READY_TIMEOUT_S = 0.25, 5.0

Progress: TypeAlias = Callable[[int, int], None]


class Core:
    """A client inside its event loop."""

    def __init__(
        self,
        pool: Pool,
        name: str,
        timeout_s: float,
        max_message_bytes: int | None,
        max_message_items: int | None,
    ) -> None:
        self.pool = pool
        self._name = name
        self._timeout_s = timeout_s
        self._max_bytes = max_message_bytes
        self._max_items = max_message_items
        self._has_asked = False

    async def limits(self) -> ServerLimits | None:
        async def attempt(endpoint: Endpoint, left_s: float) -> ServerLimits | None:
            await endpoint.describe(left_s)
            return endpoint.limits

        return await self.pool.call(attempt, self._timeout_s)

    async def split(self, request: ScoreRequest) -> list[Part]:
        """Cut a request into messages as large as the servers accept, which are asked once."""
        if not self._has_asked:
            self._has_asked = True
            with contextlib.suppress(RewardError):
                await self._first_limits()
        return split(request, self._sizes())

    async def score(
        self, request: ScoreRequest, timeout_s: float, progress: Progress | None
    ) -> ScoreResponse:
        """Send a request in parts and join the answers, in order.

        The first part that fails fails the call; what is under way then is cancelled.
        """
        parts = await self.split(request)
        ends_s = asyncio.get_running_loop().time() + timeout_s
        free = asyncio.Semaphore(MESSAGES_IN_FLIGHT)
        done = 0

        async def send(part: Part) -> ScoreResponse:
            nonlocal done
            async with free:
                try:
                    answer = await self.send(
                        request, part, ends_s, lambda endpoint: endpoint.transport
                    )
                except RewardError as error:
                    shift_items(error, part)
                    raise
            done += part.stop - part.start
            if progress is not None:
                progress(done, len(request.items))
            return answer

        with _tracing.span("reward.score", "CLIENT", _tracing.about(request)):
            return merge(request, parts, await all_of([send(part) for part in parts]))

    async def list_scorers(self) -> tuple[ScorerInfo, ...]:
        return await self.pool.call(Endpoint.describe, self._timeout_s)

    async def wait_ready(self, names: Sequence[str], timeout_s: float) -> tuple[ScorerInfo, ...]:
        clock = asyncio.get_running_loop().time
        ends_s = clock() + timeout_s
        reasons: dict[str, str] = {}
        while (left_s := ends_s - clock()) > 0:
            await self.pool.refresh()
            endpoints = self.pool.endpoints
            hopeless: dict[str, RewardError] = {}

            async def look(endpoint: Endpoint, limit_s: float) -> tuple[str, Any]:
                outcome = await endpoint.poll(limit_s)
                if isinstance(outcome, RewardError):
                    return endpoint.address.url, outcome
                return endpoint.address.url, _wanted(outcome, names, endpoint.address.url)

            looks = [look(e, min(_READY_TIMEOUT_S, left_s)) for e in endpoints]
            for ending in asyncio.as_completed(looks):
                url, outcome = await ending
                if not isinstance(outcome, RewardError):
                    return outcome
                if url not in reasons or left_s >= _READY_TIMEOUT_S or outcome.retryable:
                    reasons[url] = outcome.message  # not: too little time for an answer
                if not outcome.retryable and not isinstance(outcome, DeadlineExceeded):
                    hopeless[url] = outcome
            if endpoints and len(hopeless) == len(endpoints):
                raise hopeless[endpoints[0].address.url]
            await asyncio.sleep(min(_READY_POLL_S, max(0.0, ends_s - clock())))
        known = {e.address.url: reasons.get(e.address.url, "") for e in self.pool.endpoints}
        why = "; ".join(f"{url}: {text}" if len(known) > 1 else text for url, text in known.items())
        raise Unavailable(
            f"the reward service at {self._name} was not ready within {timeout_s:g} s"
            f" ({why or self.pool.lookup_error or 'it was not asked yet'}): start it with"
            " `reward-server serve`, correct the url, or wait longer"
        )

    async def states(self) -> tuple[EndpointState, ...]:
        return self.pool.states()

    async def send(
        self,
        request: ScoreRequest,
        part: Part,
        ends_s: float,
        calls_of: Callable[[Endpoint], Calls],
    ) -> ScoreResponse:
        """Get one part answered until a moment of the loop's clock."""

        async def attempt(endpoint: Endpoint, left_s: float) -> ScoreResponse:
            answer = await calls_of(endpoint).score(part.message, left_s)
            return read_response(request, part, answer)

        return await self.pool.call(attempt, ends_s - asyncio.get_running_loop().time())

    async def _first_limits(self) -> None:
        await self.pool.refresh()
        polls = [endpoint.poll(_LIMITS_TIMEOUT_S) for endpoint in self.pool.endpoints]
        for ending in asyncio.as_completed([asyncio.shield(poll) for poll in polls]):
            if not isinstance(await ending, RewardError):
                return

    def _sizes(self) -> Sizes:
        """How large a message may be: as the caller says, and as the servers accept it."""
        known = [e.limits for e in self.pool.endpoints if e.limits is not None]
        served_bytes = [one.max_message_bytes for one in known if one.max_message_bytes]
        served_items = [one.max_items for one in known if one.max_items]
        max_bytes = min([self._max_bytes or DEFAULT_MAX_MESSAGE_BYTES, *served_bytes])
        max_items = min([self._max_items or DEFAULT_MAX_MESSAGE_ITEMS, *served_items])
        # An item that is larger than a batch should be may still be sent alone.
        alone = max_bytes if self._max_bytes else min(served_bytes, default=max_bytes)
        return Sizes(max_bytes, max_items, alone)


def _wanted(
    infos: Sequence[ScorerInfo], names: Sequence[str], url: str
) -> tuple[ScorerInfo, ...] | RewardError:
    by_name = {info.name: info for info in infos}
    for name in names:
        if name not in by_name:
            return unknown_scorer(name, sorted(by_name))
    wanted = tuple(by_name[name] for name in names or by_name)
    for info in wanted:
        if info.state == "FAILED":
            return Unavailable(
                f"scorer {info.name!r} at {url} has failed and will not become ready:"
                f" {info.last_error or 'see the log of the server'}",
                retryable=False,
            )
    waiting = [f"{info.name} is {info.state}" for info in wanted if info.state != "READY"]
    if waiting or not wanted:
        return Unavailable(", ".join(waiting) or "it has no scorers")
    return wanted
