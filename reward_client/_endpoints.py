"""Several servers behind one client: which is well, which is busy, which comes next."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from reward_client.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    RewardError,
    Unavailable,
)

Preference: TypeAlias = Literal["least_busy", "first"]

AVOID_INITIAL_S = 0.5
AVOID_MAX_S = 30.0
FULL_S = 0.1
HEDGES_AT_ONCE = 10.0
LATENCIES_KEPT = 256
LATENCIES_NEEDED = 20


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


@dataclass(slots=True)
class _Endpoint:
    url: str
    outstanding: int = 0
    failures: int = 0
    avoid_until_s: float = float("-inf")
    last_error: str = ""

    def is_up(self, now_s: float) -> bool:
        if now_s < self.avoid_until_s:
            return False
        # After a failure one message at a time finds out whether it is back.
        return self.failures == 0 or self.outstanding == 0


@dataclass(slots=True)
class Endpoints:
    """The servers of one client, shared by its calls and threads. It does no I/O.

    A server that could not be reached, is draining or let a deadline pass is avoided for 0.5 s,
    doubling up to 30 s; one that is full until its retry-after. Where all are avoided, the one
    whose time ends first is used.

    Attributes:
        urls: their addresses.
        prefer: "least_busy" spreads messages over all, "first" keeps to the earliest that is up.
        hedge: when to hedge, None for never.
    """

    urls: Sequence[str]
    prefer: Preference = "least_busy"
    hedge: Hedge | None = None
    _known: list[_Endpoint] = field(init=False)
    _turn: itertools.count[int] = field(init=False, default_factory=itertools.count)
    _latencies_s: deque[float] = field(
        init=False, default_factory=lambda: deque(maxlen=LATENCIES_KEPT)
    )
    _hedges_allowed: float = field(init=False, default=1.0)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if self.prefer not in ("least_busy", "first"):
            raise InvalidArgument(f"prefer must be 'least_busy' or 'first', got {self.prefer!r}")
        self._known = [_Endpoint(url) for url in self.urls]

    def __len__(self) -> int:
        return len(self._known)

    def states(self, now_s: float) -> tuple[EndpointState, ...]:
        """Describe all of them."""
        with self._lock:
            return tuple(
                EndpointState(e.url, e.is_up(now_s), e.outstanding, e.failures, e.last_error)
                for e in self._known
            )

    def up(self, now_s: float) -> set[int]:
        """Which ones are not avoided."""
        with self._lock:
            return {i for i, endpoint in enumerate(self._known) if endpoint.is_up(now_s)}

    def take(self, allowed: Collection[int], now_s: float) -> int:
        """Choose one of `allowed` (not empty) and count a message as sent to it."""
        with self._lock:
            turn = next(self._turn)

            def rank(index: int) -> tuple[float, ...]:
                endpoint = self._known[index]
                if not endpoint.is_up(now_s):
                    return (1, endpoint.avoid_until_s, endpoint.outstanding)
                if self.prefer == "first":
                    return (0, index)
                return (0, endpoint.outstanding, (index - turn) % len(self._known))

            index = min(allowed, key=rank)
            self._known[index].outstanding += 1
            if self.hedge is not None:
                earned = self._hedges_allowed + self.hedge.max_share
                self._hedges_allowed = min(earned, HEDGES_AT_ONCE)
            return index

    def may_hedge(self) -> bool:
        """Whether another hedge keeps to the share; counts it if so."""
        with self._lock:
            if self._hedges_allowed < 1.0:
                return False
            self._hedges_allowed -= 1.0
            return True

    def hedge_after_s(self) -> float | None:
        """Seconds after which a message is to be hedged now, or None."""
        if self.hedge is None or len(self._known) == 1:
            return None
        if self.hedge.after_s is not None:
            return self.hedge.after_s
        with self._lock:
            known = sorted(self._latencies_s)
        return known[int(0.95 * (len(known) - 1))] if len(known) >= LATENCIES_NEEDED else None

    def answered(self, index: int, latency_s: float) -> None:
        """A message got its answer."""
        with self._lock:
            endpoint = self._known[index]
            endpoint.outstanding -= 1
            endpoint.failures = 0
            endpoint.avoid_until_s = float("-inf")
            self._latencies_s.append(latency_s)

    def gave_up(self, index: int) -> None:
        """Nobody waits for a message's answer any more."""
        with self._lock:
            self._known[index].outstanding -= 1

    def failed(self, index: int, error: RewardError, now_s: float) -> None:
        """A message failed; an error that is about the request says nothing about the server."""
        with self._lock:
            endpoint = self._known[index]
            endpoint.outstanding -= 1
            if isinstance(error, ResourceExhausted):
                wait_s = FULL_S if error.retry_after_s is None else error.retry_after_s
            elif isinstance(error, DeadlineExceeded) or (
                # Not retryable: one scorer has failed there, the others may be fine.
                isinstance(error, Unavailable) and error.retryable
            ):
                endpoint.failures += 1
                doubled_s = AVOID_INITIAL_S * 2.0 ** min(endpoint.failures - 1, 10)
                wait_s = max(min(doubled_s, AVOID_MAX_S), error.retry_after_s or 0.0)
            else:
                return
            endpoint.avoid_until_s = max(endpoint.avoid_until_s, now_s + wait_s)
            endpoint.last_error = error.message


def split_urls(url: str | Sequence[str]) -> tuple[str, ...]:
    """Read one address, several with commas between them, or a list of them.

    Raises:
        InvalidArgument: none, or the same one twice.
    """
    given = url.split(",") if isinstance(url, str) else list(url)
    urls = tuple(part.strip() for part in given)
    if not urls:
        raise InvalidArgument("no url given: expected grpc://host:port or http://host:port")
    for one in urls:
        if urls.count(one) > 1:
            raise InvalidArgument(f"url {one!r} is given twice: name every server once")
    return urls
