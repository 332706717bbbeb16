"""The load balancer: which server gets a message, when it is sent again, and to whom.

Used by the clients and by gateways. It belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

from reward_client._addresses import Address, Lookup, Source, look_up
from reward_client._call import Call, RetryPolicy
from reward_client._endpoints import SILENT_POLLS, Endpoint, Hedge
from reward_client._servers import Servers
from reward_client._tasks import cancel, until
from reward_client._transports.base import Transport
from reward_client.errors import Cancelled, RewardError, Unavailable

Reply = TypeVar("Reply")
Preference: TypeAlias = Literal["least_busy", "round_robin", "first"]
PREFERENCES = ("least_busy", "round_robin", "first")

# A server that has been silent for so long is polled; a share of the deadline, where that is less.
_SILENCE_S = 2.0
_SILENCE_SHARE = 1 / 8
_DEFAULT_POLICY = RetryPolicy()
# With less time left another attempt is pointless.
_LAST_ATTEMPT_S = 0.1
_HEDGES_AT_ONCE = 10.0
_LATENCIES_KEPT = 256
_LATENCIES_NEEDED = 20


class Pool(Servers):
    """The servers of one client or of one upstream.

    A message gets exactly one answer, from any of them. What fails for another reason than the
    request goes to another server at once, with the same request id. When all have failed it
    waits: doubling, with jitter, for no server less than its own retry-after.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        connect: Callable[[Address], Transport],
        *,
        prefer: Preference = "least_busy",
        hedge: Hedge | None = None,
        policy: RetryPolicy = _DEFAULT_POLICY,
        may_pass_on: Callable[[RewardError], bool] | None = None,
        is_reported: Callable[[RewardError], bool] = lambda _: False,
        lookup: Lookup = look_up,
    ) -> None:
        """Start with the servers whose addresses are known.

        Args:
            sources: what names the servers.
            connect: opens a transport.
            prefer: which server is chosen.
            hedge: when to ask a second one.
            policy: how often to try.
            may_pass_on: whether another server may do what one could not; by default what is
                retryable, and what is unavailable there.
            is_reported: whether an error is raised once no other server is left, instead of
                waiting for one.
            lookup: finds the addresses of a name.
        """
        super().__init__(sources, connect, lookup)
        self._prefer = prefer
        self._hedge = hedge
        self._policy = policy
        self._may_pass_on = may_pass_on or _is_elsewhere
        self._is_reported = is_reported
        self._turns = itertools.count()
        self._latencies_s: deque[float] = deque(maxlen=_LATENCIES_KEPT)
        self._hedges_allowed = 1.0

    async def call(
        self,
        attempt: Callable[[Endpoint, float], Coroutine[Any, Any, Reply]],
        timeout_s: float,
        *,
        weight: int = 1,
        allowed: Callable[[Endpoint], bool] = lambda _: True,
    ) -> Reply:
        """Get one answer by `attempt`, which has a server and some seconds; raises RewardError."""
        now_s = asyncio.get_running_loop().time()
        idle_s = self._policy.idle_s
        call = Call(
            timeout_s,
            now_s + timeout_s,
            self._policy.wait_initial_s,
            weight,
            allowed,
            float("inf") if idle_s is None else now_s + idle_s,
        )
        if self._hedge is None:
            while True:
                endpoint = await self._next(call)
                try:
                    return await self._attempt(endpoint, attempt, call)
                except RewardError as error:
                    self._judge(call, endpoint, error)
        return await self._hedged(attempt, call, self._hedge)

    async def _next(self, call: Call) -> Endpoint:
        """Wait for the server that gets the next attempt; raises what there is to say."""
        clock = asyncio.get_running_loop().time
        while True:
            if not self.endpoints or call.last_error is not None:
                await self.refresh()
            if self._is_closed:
                raise Cancelled("the client is closed")
            now_s = clock()
            if now_s >= call.deadline_at_s:
                raise call.too_late()
            open_ = [e for e in self.endpoints if call.allowed(e)]
            open_ = [e for e in open_ if call.blocked.get(e, now_s) <= now_s]
            self._poll_those_in_trouble(now_s)
            up = [e for e in open_ if e not in call.tried and e.is_up(now_s)]
            # Where all are in trouble a message finds out, after a wait.
            chosen = up or (open_ if not call.tried else [])
            if chosen and (self._policy.attempts is None or call.sent < self._limit()):
                call.sent += 1
                return self._pick(chosen, now_s)
            await self._wait(call, now_s)

    def _limit(self) -> int:
        return (self._policy.attempts or 0) + max(len(self.endpoints), 1) - 1

    def _pick(self, candidates: Sequence[Endpoint], now_s: float) -> Endpoint:
        turn, order = next(self._turns), {e: i for i, e in enumerate(self.endpoints)}

        def rank(endpoint: Endpoint) -> tuple[float, ...]:
            index = order[endpoint]
            if not endpoint.is_up(now_s):
                return (1, endpoint.avoid_until_s, endpoint.outstanding)
            if self._prefer == "first":
                return (0, index)
            busy = endpoint.outstanding if self._prefer == "least_busy" else 0
            return (0, busy, (index - turn) % len(order))

        return min(candidates, key=rank)

    async def _wait(self, call: Call, now_s: float) -> None:
        """Wait until the next attempt makes sense, or there is news; raises if none does."""
        opens = [call.blocked.get(e, now_s) for e in self.endpoints if call.allowed(e)]
        if not opens and call.last_error is None:
            call.last_error = Unavailable(
                f"no server to ask ({self.lookup_error or 'none can take the request now'})"
            )
        if call.reported is not None:
            raise call.reported
        opens_s = min(opens, default=now_s)
        is_exhausted = self._policy.attempts is not None and call.sent >= self._limit()
        is_idle_too_long = not opens and now_s >= call.idle_until_s
        left_s = call.deadline_at_s - now_s
        if (
            (is_exhausted and opens)
            or is_idle_too_long
            or opens_s >= call.deadline_at_s
            or left_s < _LAST_ATTEMPT_S
        ):
            raise call.given_up()
        call.tried.clear()
        wait_s = call.backoff_s(self._policy)
        if not opens:
            wait_s = min(wait_s, call.idle_until_s - now_s)
        if wait_s >= left_s:
            wait_s = left_s / 2  # once more before the deadline
        await until(self._changed, max(wait_s, opens_s - now_s))

    def _poll_those_in_trouble(self, now_s: float) -> None:
        """Find out in the background whether servers are back, rather than by a message."""
        if len(self.endpoints) > 1:
            for endpoint in self.endpoints:
                if endpoint.needs_poll(now_s):
                    endpoint.poll(_SILENCE_S)

    async def _attempt(
        self,
        endpoint: Endpoint,
        attempt: Callable[[Endpoint, float], Coroutine[Any, Any, Reply]],
        call: Call,
    ) -> Reply:
        clock = asyncio.get_running_loop().time
        began_s = clock()
        endpoint.outstanding += call.weight
        try:
            reply = await self._watched(endpoint, attempt, call.deadline_at_s - began_s)
        except RewardError as error:
            endpoint.failed(error, clock())
            raise
        else:
            endpoint.answered(clock())
            self._latencies_s.append(clock() - began_s)
            return reply
        finally:
            endpoint.outstanding -= call.weight
            self._release(endpoint)

    async def _watched(
        self,
        endpoint: Endpoint,
        attempt: Callable[[Endpoint, float], Coroutine[Any, Any, Reply]],
        left_s: float,
    ) -> Reply:
        """Wait for an attempt, and leave a server that does not even answer polls."""
        if self._is_static and len(self.endpoints) == 1:  # there is no other
            return await attempt(endpoint, left_s)
        clock = asyncio.get_running_loop().time
        silence_s = min(_SILENCE_S, left_s * _SILENCE_SHARE)
        task = asyncio.ensure_future(attempt(endpoint, left_s))
        try:
            while True:
                # No further pause before the second poll.
                await asyncio.wait([task], timeout=0.0 if endpoint.silent_polls else silence_s)
                if task.done():
                    break
                if endpoint.was_heard_since(clock() - silence_s):
                    continue
                await asyncio.wait(
                    [task, endpoint.poll(silence_s)], return_when=asyncio.FIRST_COMPLETED
                )
                if endpoint.silent_polls:
                    await self.refresh()
                if endpoint.silent_polls >= SILENT_POLLS:
                    raise Unavailable(f"{endpoint.address.url} does not answer any more")
            return task.result()
        finally:
            await cancel([task])

    async def _hedged(
        self,
        attempt: Callable[[Endpoint, float], Coroutine[Any, Any, Reply]],
        call: Call,
        hedge: Hedge,
    ) -> Reply:
        clock = asyncio.get_running_loop().time
        running: dict[asyncio.Future[Reply], Endpoint] = {}
        hedge_at_s: float | None = None

        def start(endpoint: Endpoint) -> None:
            running[asyncio.ensure_future(self._attempt(endpoint, attempt, call))] = endpoint
            self._hedges_allowed = min(self._hedges_allowed + hedge.max_share, _HEDGES_AT_ONCE)

        try:
            while True:
                if not running:
                    start(await self._next(call))
                    after_s = self._hedge_after_s(hedge)
                    hedge_at_s = None if after_s is None else clock() + after_s
                limit_s = None if hedge_at_s is None else max(0.0, hedge_at_s - clock())
                ended, _ = await asyncio.wait(
                    running, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
                )
                if not ended:
                    hedge_at_s = None
                    spare = self._spare(call, running.values())
                    if spare is not None and self._hedges_allowed >= 1.0:
                        self._hedges_allowed -= 1.0
                        call.sent += 1
                        start(spare)
                for task in ended:
                    endpoint = running.pop(task)
                    try:
                        return task.result()
                    except RewardError as error:
                        self._judge(call, endpoint, error)
        finally:
            await cancel(running)

    def _hedge_after_s(self, hedge: Hedge) -> float | None:
        if hedge.after_s is not None:
            return hedge.after_s
        known = sorted(self._latencies_s)
        return known[int(0.95 * (len(known) - 1))] if len(known) >= _LATENCIES_NEEDED else None

    def _spare(self, call: Call, busy: Collection[Endpoint]) -> Endpoint | None:
        now_s = asyncio.get_running_loop().time()
        if self._policy.attempts is not None and call.sent >= self._limit():
            return None
        spare = [e for e in self.endpoints if call.allowed(e) and e.is_up(now_s) and e not in busy]
        spare = [e for e in spare if call.blocked.get(e, now_s) <= now_s]
        return self._pick(spare, now_s) if spare else None

    def _judge(self, call: Call, endpoint: Endpoint, error: RewardError) -> None:
        """Learn from an attempt that failed; raises what no other attempt can mend."""
        call.last_error = error
        if not self._may_pass_on(error):
            raise error
        now_s = asyncio.get_running_loop().time()
        if self._is_reported(error):
            call.reported = call.reported or error
        if self._policy.idle_s is not None:
            call.idle_until_s = now_s + self._policy.idle_s
        # An Unavailable that is not retryable (a scorer FAILED there) may work elsewhere.
        until_s = now_s + (error.retry_after_s or 0.0) if error.retryable else float("inf")
        call.blocked[endpoint] = until_s
        call.tried.add(endpoint)


def _is_elsewhere(error: RewardError) -> bool:
    return error.retryable or isinstance(error, Unavailable)
