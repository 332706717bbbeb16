"""What every dialect over HTTP shares: bodies, callers, watching, giving up with the caller."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from reward_client import _tracing
from reward_client.errors import Cancelled, RewardError
from reward_client.types import ScoreRequest, ScoreResponse
from reward_server.api.bodies import read_body
from reward_server.api.callers import unless_disconnected
from reward_server.api.errors import as_reward_error, redacted_response
from reward_server.api.http_guard import caller_of
from reward_server.limits import RequestLimits
from reward_server.observability.requests import RequestWatch, Seen
from reward_server.scheduling.arrival import Arrival
from reward_server.service import RewardService

T = TypeVar("T")


class Dialect:
    """The way of one dialect into the service.

    Args:
        service: where requests go.
        api: what metrics and log call the dialect.
        deadline_s: less than the time-out of the dialect's clients, so that they hear why.
    """

    def __init__(self, service: RewardService, api: str, deadline_s: float) -> None:
        self.service = service
        self._watch = RequestWatch(api, service.metrics, service.config.server.slow_request_s)
        self._name = f"POST {api}"
        self._deadline_s = deadline_s

    async def answer(
        self,
        http: Request,
        handler: Callable[[Context], Awaitable[Response]],
        failing: Callable[[RewardError], Response],
    ) -> Response:
        """Let a handler answer a request, or the dialect word why it cannot."""
        with self._watch.request(self._name, caller_of(http).name, http.headers) as seen:
            try:
                with self.service.arrival(caller_of(http)) as arrival:
                    context = Context(http, seen, self.service, arrival, self._deadline_s)
                    return await handler(context)
            except Exception as error:  # the boundary: whatever it is, the caller gets a status
                seen.failure = as_reward_error(error)
                return failing(seen.failure)


class Context:
    """One request in a dialect: its body, its limits, its score."""

    def __init__(
        self,
        http: Request,
        seen: Seen,
        service: RewardService,
        arrival: Arrival,
        deadline_s: float,
    ) -> None:
        self.http = http
        self._seen = seen
        self._arrival = arrival
        self._service = service
        self._deadline_s = min(deadline_s, service.config.server.default_deadline_s)

    @property
    def limits(self) -> RequestLimits:
        """What a body may hold."""
        return RequestLimits.of(self._service.config.server)

    async def read(self, parse: Callable[[bytes], T]) -> T:
        """Read the request's body and parse it in a thread; the body is then dropped.

        Raises:
            RewardError: what `read_body` or the parser raises; Cancelled if the caller hung up.
        """
        try:
            with _tracing.span("receive"):
                limit_bytes = self._service.config.server.max_message_bytes
                body = await read_body(self.http, limit_bytes, self._arrival)
                return await self._arrival.parse(lambda: parse(body))
        except ClientDisconnect as error:
            raise Cancelled("the caller hung up before the request was complete") from error

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Score a request unless its caller hangs up; raises RewardError."""
        self._seen.request = request
        self._seen.response = await unless_disconnected(
            self.http,
            self._service.score(
                request,
                caller=caller_of(self.http),
                arrived_bytes=self._arrival.held_bytes,
                deadline_s=self._deadline_s,
            ),
        )
        return redacted_response(self._seen.response)
