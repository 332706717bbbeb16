"""A request for scores over HTTP, in any dialect: read, watched, given up with its caller."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from reward_client import _tracing
from reward_client.errors import Cancelled, RewardError
from reward_client.types import ScoreRequest, ScoreResponse
from reward_server.api.bodies import parse_form, read_body
from reward_server.api.errors import as_reward_error, redacted_response
from reward_server.api.http_guard import caller_of
from reward_server.limits import RequestLimits
from reward_server.observability.requests import RequestWatch, Seen
from reward_server.scheduling.arrival import Arrival
from reward_server.service import RewardService

T = TypeVar("T")


class HttpDialect:
    """The way of one HTTP API into the service.

    Args:
        service: where requests go.
        api: what metrics and log call it.
        span: name of its spans.
        failing: words an error.
        deadline_s: less than the time-out of its clients, so that they hear why.
    """

    def __init__(
        self,
        service: RewardService,
        api: str,
        span: str,
        failing: Callable[[RewardError], Response],
        deadline_s: float = math.inf,
    ) -> None:
        self.service = service
        self.deadline_s = deadline_s
        self._watch = RequestWatch(api, service.metrics, service.config.server.slow_request_s)
        self._span = span
        self._failing = failing

    async def answer(
        self, http: Request, handler: Callable[[Exchange], Awaitable[Response]]
    ) -> Response:
        """Let a handler answer a request, or the dialect word why it cannot."""
        caller = caller_of(http)
        with self._watch.request(self._span, caller.name, http.headers) as seen:
            try:
                with self.service.arrival(caller) as arrival:
                    return await handler(Exchange(http, self, arrival, seen))
            except Exception as error:  # the boundary: whatever it is, the caller gets a status
                seen.failure = as_reward_error(error)
                return self._failing(seen.failure)


class Exchange:
    """One request in a dialect: its body, its limits, its score."""

    def __init__(self, http: Request, dialect: HttpDialect, arrival: Arrival, seen: Seen) -> None:
        self.http = http
        self.caller = arrival.caller
        self._dialect = dialect
        self._service = dialect.service
        self._arrival = arrival
        self._seen = seen

    @property
    def limits(self) -> RequestLimits:
        return self._service.limits

    async def read(self, parse: Callable[[bytes], T]) -> T:
        """Read the request's body and parse it in a thread; the body is then dropped.

        Raises:
            RewardError: what `read_body` or the parser raises; Cancelled if the caller hung up.
        """
        with self._receiving():
            body = await read_body(self.http, self.limits.max_message_bytes, self._arrival)
            return await self._arrival.parse(lambda: parse(body))

    async def read_form(self) -> ScoreRequest:
        """Read a form; raises RewardError as `parse_form`, Cancelled if the caller hung up."""
        with self._receiving():
            return await parse_form(self.http, self.limits, self._arrival)

    async def score(self, request: ScoreRequest, deadline_s: float | None = None) -> ScoreResponse:
        """Score a request unless its caller hangs up; raises RewardError."""
        if deadline_s is None:
            default_s = self._service.config.server.default_deadline_s
            deadline_s = min(self._dialect.deadline_s, default_s)
        self._seen.request = request
        response = await self._unless_disconnected(request, deadline_s)
        self._seen.response = response
        if not any(result.errors for result in response.results.values()):
            return response
        return await self.in_thread(lambda: redacted_response(response))

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Run work on the request that would hold up the event loop; only once it is read."""
        assert self._seen.request is not None
        return await self._service.in_thread(function, self._seen.request, self.caller.name)

    async def _unless_disconnected(self, request: ScoreRequest, deadline_s: float) -> ScoreResponse:
        scoring = self._service.score(
            request,
            caller=self.caller,
            arrived_bytes=self._arrival.held_bytes,
            deadline_s=deadline_s,
        )
        working = asyncio.create_task(scoring)
        listening = asyncio.create_task(_disconnected(self.http))
        try:
            await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise Cancelled("the caller hung up")
            return working.result()
        finally:
            working.cancel()
            listening.cancel()

    @contextmanager
    def _receiving(self) -> Iterator[None]:
        try:
            with _tracing.span("receive"):
                yield
        except ClientDisconnect as error:
            raise Cancelled("the caller hung up before the request was complete") from error


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
