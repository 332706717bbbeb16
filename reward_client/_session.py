"""What the blocking and the asyncio client share: everything but waiting."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from reward_client._endpoints import Endpoints, EndpointState, Hedge, Preference, split_urls
from reward_client._exchange import Attempt, Exchange
from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._retries import RetryPolicy
from reward_client._validation import check_timeout
from reward_client._wire import convert
from reward_client._wire.splitting import Part, merge, read_response, shift_items, split
from reward_client.errors import Cancelled, InvalidArgument, RewardError
from reward_client.types import ScoreRequest, ScoreResponse, ScorerInfo

DEFAULT_TIMEOUT_S = 60.0
DEFAULT_MAX_MESSAGE_BYTES = 16 << 20
DEFAULT_MAX_MESSAGE_ITEMS = 256
DEFAULT_ATTEMPTS = 5
MESSAGES_IN_FLIGHT = 4

Progress: TypeAlias = Callable[[int, int], None]
Infos: TypeAlias = tuple[ScorerInfo, ...]
OneTransport = TypeVar("OneTransport")


def now_s() -> float:
    """Seconds of the clock that all deadlines use."""
    return time.monotonic()


@dataclass(frozen=True, slots=True)
class Limits:
    """How large and how patient a client is; see `RewardClient`."""

    timeout_s: float
    max_message_bytes: int
    max_message_items: int
    attempts: int

    def __post_init__(self) -> None:
        check_timeout("timeout_s", self.timeout_s)
        for name in ("max_message_bytes", "max_message_items", "attempts"):
            if getattr(self, name) < 1:
                raise InvalidArgument(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def policy(self) -> RetryPolicy:
        """How often to try."""
        return RetryPolicy(attempts=self.attempts)

    def time_s(self, deadline_s: float | None) -> float:
        """How long a call may take."""
        return self.timeout_s if deadline_s is None else check_timeout("deadline_s", deadline_s)


class Session(Generic[OneTransport]):
    """The servers of a client, its limits, and the process that it belongs to."""

    def __init__(
        self,
        url: str | Sequence[str],
        limits: Limits,
        prefer: Preference,
        hedge: Hedge | None,
        transports: OneTransport | Sequence[OneTransport] | None,
        open_one: Callable[[str], OneTransport],
    ) -> None:
        urls = split_urls(url)
        self.url = ",".join(urls)
        self.urls = urls
        self.limits = limits
        self.endpoints = Endpoints(urls, prefer, hedge)
        if transports is None:
            self.transports: Sequence[OneTransport] = [open_one(one) for one in urls]
        else:
            self.transports = transports if isinstance(transports, Sequence) else [transports]
        if len(self.transports) != len(urls):
            raise InvalidArgument(f"{len(self.transports)} transports for {len(urls)} urls")
        self._pid = os.getpid()

    def states(self) -> tuple[EndpointState, ...]:
        """What is known of the servers."""
        return self.endpoints.states(now_s())

    def check_process(self) -> None:
        """Refuse to work on the sockets of another process, which would hang.

        Raises:
            Cancelled: the process has forked since the client was made.
        """
        if os.getpid() != self._pid:
            raise Cancelled(
                f"this client belongs to process {self._pid}, this is {os.getpid()}: make a client"
                " in each process, after the fork"
            )

    def exchange(self, in_flight: int) -> Exchange[Any, Any]:
        """Start an exchange of messages with the servers."""
        return Exchange(self.endpoints, self.limits.policy, in_flight=in_flight)

    def outcome(self, ended: Callable[[], Any], attempt: Attempt[Any]) -> Any:
        """The checked answer to an attempt that ended, or its error."""
        try:
            return attempt.payload.read(ended())
        except RewardError as error:
            return error
        except (CancelledError, asyncio.CancelledError):
            return Cancelled(f"the client for {self.urls[attempt.endpoint]} is closed")


@dataclass(frozen=True, slots=True)
class ScoreMessage:
    """One part of a request, and how its answer is read."""

    request: ScoreRequest
    part: Part

    def read(self, message: pb.ScoreResponse) -> ScoreResponse:
        """Check an answer; raises Internal if it is not one to this message."""
        return read_response(self.request, self.part, message)


@dataclass(frozen=True, slots=True)
class ListMessage:
    """A look at the scorers of a server."""

    def read(self, message: pb.ListScorersResponse) -> Infos:
        """Convert an answer."""
        return tuple(convert.info_from_proto(info) for info in message.scorers)


@dataclass(slots=True)
class Batch:
    """One call of `score`: its parts under way, and their answers.

    Attributes:
        exchange: sends the parts.
    """

    request: ScoreRequest
    parts: Sequence[Part]
    exchange: Exchange[ScoreMessage, ScoreResponse]
    progress: Progress | None
    _answers: dict[int, ScoreResponse] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        session: Session[Any],
        request: ScoreRequest,
        deadline_s: float | None,
        progress: Progress | None,
    ) -> Batch:
        """Cut a request; raises InvalidArgument if it cannot be."""
        session.check_process()
        limits = session.limits
        parts = split(request, limits.max_message_bytes, limits.max_message_items)
        batch = cls(request, parts, session.exchange(MESSAGES_IN_FLIGHT), progress)
        timeout_s, begin_s = limits.time_s(deadline_s), now_s()
        for part in parts:
            batch.exchange.add(ScoreMessage(request, part), timeout_s, begin_s)
        return batch

    def take(self) -> None:
        """Take what is finished; raises the first failure, which fails the whole call."""
        for number, outcome in self.exchange.finished():
            if isinstance(outcome, RewardError):
                shift_items(outcome, self.parts[number])
                raise outcome
            self._answers[number] = outcome
            if self.progress is not None:
                done = sum(self.parts[n].stop - self.parts[n].start for n in self._answers)
                self.progress(done, len(self.request.items))

    def response(self) -> ScoreResponse:
        """Join the answers, in order; raises Unavailable if they do not fit together."""
        answers = [self._answers[number] for number in range(len(self.parts))]
        return merge(self.request, self.parts, answers)


def start_listing(session: Session[Any]) -> Exchange[ListMessage, Infos]:
    """One look at the scorers of any server."""
    session.check_process()
    exchange = session.exchange(1)
    exchange.add(ListMessage(), session.limits.timeout_s, now_s())
    return exchange


def take_listing(exchange: Exchange[ListMessage, Infos]) -> Infos:
    """The answer; raises RewardError."""
    ((_, outcome),) = exchange.finished()
    if isinstance(outcome, RewardError):
        raise outcome
    return outcome
