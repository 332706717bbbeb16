"""What is sent when and to whom: retries, failover and hedging, without I/O and without a clock.

A client sends what `due` returns, reports with `settle` how each attempt ended, cancels what
`abandoned` names and takes results from `finished`. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from reward_client._endpoints import Endpoints
from reward_client._retries import RetryPolicy
from reward_client.errors import DeadlineExceeded, RewardError, Unavailable

Payload = TypeVar("Payload")
Reply = TypeVar("Reply")

# Attempts know the deadline and report it themselves; this is for those that do not.
GRACE_S = 0.25
NEVER = float("inf")


@dataclass(frozen=True, slots=True, eq=False)
class Attempt(Generic[Payload]):
    """One message on its way to one server.

    Attributes:
        call: the message's number, as `add` returned it.
        payload: the message.
        endpoint: index of the server.
        timeout_s: how long it may take.
        started_s: when it was due.
    """

    call: int
    payload: Payload
    endpoint: int
    timeout_s: float
    started_s: float


@dataclass(slots=True)
class _Call(Generic[Payload]):
    number: int
    payload: Payload
    timeout_s: float
    deadline_s: float
    wait_s: float
    not_before_s: float = -NEVER
    hedge_at_s: float = NEVER
    attempts: list[Attempt[Payload]] = field(default_factory=list)
    sent: int = 0
    is_hedged: bool = False
    # Where this message must not go before when, and where it has failed since the last wait.
    blocked: dict[int, float] = field(default_factory=dict)
    tried: set[int] = field(default_factory=set)
    last_failure: str = "no attempt was made"


class Exchange(Generic[Payload, Reply]):
    """Messages that each need exactly one answer from any one of several servers.

    Every message is sent at most `policy.attempts` times, and once more for each further server;
    hedges count. What fails elsewhere than in the request goes to another server at once, then
    waits: doubling, with jitter, no server before its own retry-after, never past the deadline.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        policy: RetryPolicy,
        *,
        in_flight: int,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        """Start without messages.

        Args:
            endpoints: the servers and what is known of them.
            policy: how often and how patiently to retry.
            in_flight: messages under way at once.
            uniform: draws from [0, 1), for jitter.
        """
        self._endpoints = endpoints
        self._policy = policy
        self._in_flight = in_flight
        self._uniform = uniform
        self._limit = policy.attempts + len(endpoints) - 1
        self._calls: dict[int, _Call[Payload]] = {}
        self._added = 0
        self._abandoned: list[Attempt[Payload]] = []
        self._finished: list[tuple[int, Reply | RewardError]] = []

    @property
    def is_idle(self) -> bool:
        """Whether every message has its result and every result was taken."""
        return not self._calls and not self._finished

    @property
    def has_results(self) -> bool:
        """Whether `finished` has something to return."""
        return bool(self._finished)

    @property
    def has_room(self) -> bool:
        """Whether one more message could be sent at once."""
        return len(self._calls) < self._in_flight

    def add(self, payload: Payload, timeout_s: float, now_s: float) -> int:
        """Accept a message that may take `timeout_s` seconds from now on; returns its number."""
        number = self._added
        self._added += 1
        self._calls[number] = _Call(
            number, payload, timeout_s, now_s + timeout_s, self._policy.wait_initial_s
        )
        return number

    def due(self, now_s: float) -> list[Attempt[Payload]]:
        """Attempts to be sent now."""
        attempts: list[Attempt[Payload]] = []
        for call in list(self._calls.values())[: self._in_flight]:
            if now_s >= call.deadline_s + (GRACE_S if call.attempts else 0.0):
                self._finish(call, _too_late(call))
            elif not call.attempts and now_s >= call.not_before_s:
                allowed = self._unblocked(call, now_s) - call.tried
                attempts.append(self._send(call, allowed or self._unblocked(call, now_s), now_s))
            elif call.attempts and call.hedge_at_s <= now_s < call.deadline_s:
                call.hedge_at_s = NEVER
                busy = {attempt.endpoint for attempt in call.attempts}
                spare = (self._unblocked(call, now_s) & self._endpoints.up(now_s)) - busy
                if spare and call.sent < self._limit and self._endpoints.may_hedge():
                    call.is_hedged = True
                    attempts.append(self._send(call, spare, now_s))
        return attempts

    def wake_at_s(self) -> float:
        """When `due` has to be asked again even if nothing ends before."""
        times = [NEVER]
        for call in list(self._calls.values())[: self._in_flight]:
            if call.attempts:
                hedge_s = call.hedge_at_s if call.hedge_at_s < call.deadline_s else NEVER
                times += [hedge_s, call.deadline_s + GRACE_S]
            else:
                times.append(min(call.not_before_s, call.deadline_s))
        return min(times)

    def settle(self, attempt: Attempt[Payload], outcome: Reply | RewardError, now_s: float) -> None:
        """An attempt ended with an answer that was checked, or with an error."""
        call = self._calls.get(attempt.call)
        if call is None or attempt not in call.attempts:
            return  # abandoned in the meantime
        call.attempts.remove(attempt)
        if isinstance(outcome, RewardError):
            self._endpoints.failed(attempt.endpoint, outcome, now_s)
            self._failed(call, attempt.endpoint, outcome, now_s)
        else:
            self._endpoints.answered(attempt.endpoint, now_s - attempt.started_s)
            self._finish(call, outcome)

    def abandoned(self) -> list[Attempt[Payload]]:
        """Attempts whose answers nobody needs any more; each is named once."""
        taken, self._abandoned = self._abandoned, []
        return taken

    def finished(self) -> list[tuple[int, Reply | RewardError]]:
        """Numbers and results of messages that are done; each is returned once."""
        taken, self._finished = self._finished, []
        return taken

    def stop(self) -> None:
        """Give up everything that is under way."""
        for call in self._calls.values():
            self._abandon(call)
        self._calls.clear()

    def _unblocked(self, call: _Call[Payload], now_s: float) -> set[int]:
        return {i for i in range(len(self._endpoints)) if call.blocked.get(i, -NEVER) <= now_s}

    def _send(self, call: _Call[Payload], allowed: set[int], now_s: float) -> Attempt[Payload]:
        endpoint = self._endpoints.take(allowed, now_s)
        left_s = call.deadline_s - now_s
        attempt = Attempt(call.number, call.payload, endpoint, left_s, now_s)
        call.attempts.append(attempt)
        call.sent += 1
        after_s = None if call.is_hedged else self._endpoints.hedge_after_s()
        call.hedge_at_s = NEVER if after_s is None else now_s + after_s
        return attempt

    def _failed(
        self, call: _Call[Payload], endpoint: int, error: RewardError, now_s: float
    ) -> None:
        if not error.retryable and not isinstance(error, Unavailable):
            self._finish(call, error)
            return
        # An Unavailable that is not retryable (a scorer FAILED there) may work elsewhere.
        until_s = now_s + (error.retry_after_s or 0.0) if error.retryable else NEVER
        call.blocked[endpoint] = until_s
        call.tried.add(endpoint)
        call.last_failure = f"the last attempt failed: {error.message}"
        if call.attempts:
            return
        everywhere = range(len(self._endpoints))
        open_at_s = min(call.blocked.get(i, -NEVER) for i in everywhere)
        if call.sent >= self._limit or open_at_s == NEVER:
            self._finish(call, error)
        elif (self._unblocked(call, now_s) & self._endpoints.up(now_s)) - call.tried:
            call.not_before_s = now_s
        else:
            self._wait(call, error, open_at_s, now_s)

    def _wait(
        self, call: _Call[Payload], error: RewardError, open_at_s: float, now_s: float
    ) -> None:
        call.tried.clear()
        wait_s = max(call.wait_s, open_at_s - now_s)
        wait_s *= 1 + self._policy.jitter * self._uniform()
        call.wait_s = min(2 * call.wait_s, self._policy.wait_max_s)
        # A wait that would outlast the deadline is not worth waiting.
        call.not_before_s = max(now_s + wait_s, open_at_s)
        if call.not_before_s >= call.deadline_s:
            self._finish(call, error)

    def _finish(self, call: _Call[Payload], result: Reply | RewardError) -> None:
        self._abandon(call)
        del self._calls[call.number]
        self._finished.append((call.number, result))

    def _abandon(self, call: _Call[Payload]) -> None:
        for attempt in call.attempts:
            self._endpoints.gave_up(attempt.endpoint)
        self._abandoned += call.attempts
        call.attempts.clear()


def _too_late(call: _Call[Payload]) -> RewardError:
    return DeadlineExceeded(
        f"not finished within {call.timeout_s:g} s ({call.last_failure}): allow more with"
        " deadline_s"
    )
