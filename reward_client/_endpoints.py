"""One server of a client: what is known of it, and how it is asked whether it lives."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from reward_client._addresses import Address
from reward_client._transports.base import Headers, Transport
from reward_client._wire import convert
from reward_client.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    RewardError,
    Unavailable,
)
from reward_client.types import ScorerInfo, ServerLimits

AVOID_INITIAL_S = 0.5
AVOID_MAX_S = 30.0
FULL_S = 0.1
# Two polls without an answer: one may have met a pause of the server, or of this process.
SILENT_POLLS = 2
_NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Hedge:
    """When to ask a second server for the same answer; the first to answer wins.

    Attributes:
        after_s: seconds without an answer; None waits for the 95th percentile of the latest
            latencies, and does not hedge before 20 of them are known.
        max_share: hedges per message in the long run, so that servers which are slow because they
            are busy do not get twice the work.
    """

    after_s: float | None = None
    max_share: float = 0.1

    def __post_init__(self) -> None:
        if self.after_s is not None and not 0 <= self.after_s < float("inf"):
            raise InvalidArgument(f"Hedge.after_s must be seconds >= 0 or None, got {self.after_s}")
        if not 0 < self.max_share <= 1:
            raise InvalidArgument(f"Hedge.max_share must be in (0, 1], got {self.max_share}")


@dataclass(frozen=True, slots=True)
class EndpointState:
    """What a client knows of one server.

    Attributes:
        url: its address.
        is_up: whether it is chosen before those that are not.
        outstanding: messages that it has not answered.
        failures: in a row; 0 once it has answered.
        last_error: of the latest failure, or "".
    """

    url: str
    is_up: bool
    outstanding: int
    failures: int
    last_error: str


@dataclass(slots=True, eq=False)
class Endpoint:
    """A server and the connection to it; belongs to one event loop.

    A server that could not be reached, is draining or let a deadline pass is avoided for 0.5 s,
    doubling up to 30 s, and then until a poll was answered; one that is full until its retry-after.

    Attributes:
        address: where it is.
        transport: the connection.
        outstanding: what was sent and has not been answered, in units of the caller.
        failures: in a row.
        limits: what it accepts, once it said so.
        silent_polls: without an answer, in a row.
        is_gone: whether no source names it any more.
    """

    address: Address
    transport: Transport
    outstanding: int = 0
    failures: int = 0
    limits: ServerLimits | None = None
    silent_polls: int = 0
    is_gone: bool = False
    last_error: str = ""
    avoid_until_s: float = _NEVER
    _heard_s: float = _NEVER
    _failed_s: float = _NEVER
    _polling: asyncio.Task[tuple[ScorerInfo, ...] | RewardError] | None = field(default=None)

    def state(self, now_s: float) -> EndpointState:
        is_up = self.is_up(now_s)
        return EndpointState(
            self.address.url, is_up, self.outstanding, self.failures, self.last_error
        )

    def is_up(self, now_s: float) -> bool:
        """Whether it may be chosen before servers in trouble."""
        if now_s < self.avoid_until_s:
            return False
        # After a failure one message at a time finds out whether it is back.
        return self.failures == 0 or (self._heard_s > self._failed_s and self.outstanding == 0)

    def needs_poll(self, now_s: float) -> bool:
        """Whether only a poll can show that it is back."""
        return self.failures > 0 and now_s >= self.avoid_until_s and self._heard_s <= self._failed_s

    def was_heard_since(self, then_s: float) -> bool:
        return self._heard_s >= then_s

    def answered(self, now_s: float) -> None:
        self._heard_s = now_s
        self.failures = self.silent_polls = 0
        self.avoid_until_s = _NEVER

    def failed(self, error: RewardError, now_s: float) -> None:
        """A message failed; an error that is about the request says nothing about the server."""
        if isinstance(error, ResourceExhausted):
            wait_s = FULL_S if error.retry_after_s is None else error.retry_after_s
        elif isinstance(error, DeadlineExceeded) or (
            # Not retryable: one scorer has failed there, the others may be fine.
            isinstance(error, Unavailable) and error.retryable
        ):
            self.failures += 1
            self._failed_s = now_s
            doubled_s = AVOID_INITIAL_S * 2.0 ** min(self.failures - 1, 10)
            wait_s = max(min(doubled_s, AVOID_MAX_S), error.retry_after_s or 0.0)
        else:
            return
        self.avoid_until_s = max(self.avoid_until_s, now_s + wait_s)
        self.last_error = error.message

    def poll(
        self, timeout_s: float, headers: Headers = ()
    ) -> asyncio.Task[tuple[ScorerInfo, ...] | RewardError]:
        """Ask for its scorers, or join the poll under way; the task never raises RewardError."""
        if self._polling is None or self._polling.done():
            self._polling = asyncio.ensure_future(self._poll(timeout_s, headers))
        return self._polling

    async def close(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
        await self.transport.close()

    async def describe(self, timeout_s: float, headers: Headers = ()) -> tuple[ScorerInfo, ...]:
        """Ask for its scorers, and what it accepts; raises RewardError."""
        answer = await self.transport.list_scorers(timeout_s, headers)
        if answer.HasField("limits"):
            self.limits = convert.limits_from_proto(answer.limits)
        return tuple(convert.info_from_proto(info) for info in answer.scorers)

    async def _poll(
        self, timeout_s: float, headers: Headers
    ) -> tuple[ScorerInfo, ...] | RewardError:
        clock = asyncio.get_running_loop().time
        try:
            infos = await self.describe(timeout_s, headers)
        except RewardError as error:
            if isinstance(error, DeadlineExceeded):
                self.silent_polls += 1
            self.failed(error, clock())
            return error
        self._heard_s = clock()
        self.silent_polls = 0
        self.avoid_until_s = _NEVER
        return infos
