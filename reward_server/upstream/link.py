"""One endpoint of an upstream scorer: what it says about itself, and the calls in flight there."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

import structlog

from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._transports.base import Message
from reward_client.errors import (
    Code,
    DeadlineExceeded,
    PermissionDenied,
    RewardError,
    Unauthenticated,
    Unavailable,
)
from reward_client.types import ScorerInfo, ScorerState
from reward_server.upstream.choice import Identity
from reward_server.upstream.hops import hop_headers
from reward_server.upstream.metrics import UpstreamMetrics
from reward_server.upstream.settings import UpstreamSettings
from reward_server.upstream.targets import Address
from reward_server.upstream.wire import Wire

POLL_INTERVAL_S = 1.0
# A server that does not even say how it is hangs; what it holds is sent elsewhere then.
_SILENT_POLLS = 2
_SET_ASIDE_S = 5.0
_LEAVE_INTERVAL_S = 0.1
# It is the endpoint's fault, or its state: another one may do better.
_TRY_ELSEWHERE = frozenset(
    {
        Code.UNAVAILABLE,
        Code.CANCELLED,
        Code.NOT_FOUND,
        Code.UNAUTHENTICATED,
        Code.PERMISSION_DENIED,
        Code.RESOURCE_EXHAUSTED,
    }
)
# It says something about every item it could be sent.
_ENDPOINT_IS_DOWN = frozenset({Code.UNAVAILABLE, Code.CANCELLED, Code.UNAUTHENTICATED})


class Link:
    """A connection to one endpoint, for one scorer; `start` must run in the event loop.

    Attributes:
        address: of the endpoint.
        state: what it said last; STARTING while it cannot be reached.
        identity: of its scorer when it was last READY.
        last_error: why it gets no items; for people.
        outstanding: items sent and not answered.
    """

    def __init__(
        self,
        name: str,
        address: Address,
        settings: UpstreamSettings,
        *,
        own_id: str,
        metrics: UpstreamMetrics,
        on_change: Callable[[], None],
    ) -> None:
        self.address = address
        self.state: ScorerState = "STARTING"
        self.identity: Identity | None = None
        self.last_error = "not reached yet"
        self.outstanding = 0
        self._name = name
        self._settings = settings
        self._own_id = own_id
        self._metrics = metrics
        self._on_change = on_change
        self._aside_until_s = 0.0
        self._is_open = self._is_usable = False
        self._look_now = asyncio.Event()
        self._log = structlog.get_logger().bind(scorer=name, endpoint=str(address))

    def start(self) -> None:
        """Open the channel and begin to watch."""
        self._wire = Wire(self.address, self._settings)
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._is_open = True
        self._publish()
        self._watching = asyncio.create_task(self._watch())

    async def stop(self, reason: str) -> None:
        """Close the channel; what is in flight fails as UNAVAILABLE."""
        self._is_open = False
        self._watching.cancel()
        self._abandon(reason)
        await asyncio.gather(self._watching, return_exceptions=True)
        await self._wire.close()
        self._metrics.forget(self._name, str(self.address))

    async def leave(self) -> None:
        """Close the channel once what is in flight has been answered."""
        try:
            while self.outstanding:
                await asyncio.sleep(_LEAVE_INTERVAL_S)
        finally:
            await self.stop(f"{self.address} is not an endpoint any more")

    @property
    def is_ready(self) -> bool:
        """Whether it says that it can score."""
        return self.state == "READY"

    def show_usable(self, is_usable: bool) -> None:
        """Tell Prometheus whether it gets items."""
        self._is_usable = is_usable
        self._publish()

    async def score(
        self, message: Message, n_items: int, timeout_s: float, headers: Sequence[tuple[str, str]]
    ) -> pb.ScoreResponse:
        """Send a request of N items and wait for the answer.

        Cancelling the call cancels it on the wire.

        Raises:
            RewardError: see `try_elsewhere` for what to do about it.
        """
        code = Code.CANCELLED
        self._hold(n_items)
        lost = self._lost
        calling = asyncio.create_task(self._wire.score(message, timeout_s, headers))
        try:
            await asyncio.wait({calling, lost}, return_when=asyncio.FIRST_COMPLETED)
            # A channel that is closed cancels its calls.
            if not calling.done() or calling.cancelled():
                raise Unavailable(lost.result() if lost.done() else f"{self.address} was closed")
            answer = calling.result()
            code = Code.OK
            return answer
        except RewardError as error:
            code = error.code
            self._judge(error)
            raise
        finally:
            calling.cancel()
            self._hold(-n_items)
            self._metrics.calls.labels(self._name, str(self.address), code.value).inc()

    def look_now(self) -> None:
        """Ask it how it is, also if it was set aside."""
        self._aside_until_s = 0.0
        self._look_now.set()

    def disqualify(self, reason: str) -> None:
        """Give it no more items until it has been looked at again."""
        self._set("STARTING", reason)
        self._look_now.set()

    def _judge(self, error: RewardError) -> None:
        """Learn from a call that failed."""
        if error.items or error.code not in _ENDPOINT_IS_DOWN:
            return
        if not error.retryable and error.code is not Code.CANCELLED:
            self._aside_until_s = time.monotonic() + _SET_ASIDE_S
            self._set("FAILED", self._explained(error))
        else:
            self._set("STARTING", self._explained(error))
        self._look_now.set()

    async def _watch(self) -> None:
        silent, headers = 0, hop_headers("", (), self._own_id)
        while True:
            self._look_now.clear()
            try:
                info = await self._wire.look(headers)
            except RewardError as error:
                silent = silent + 1 if isinstance(error, DeadlineExceeded) else 0
                is_final = not error.retryable and not isinstance(error, DeadlineExceeded)
                self._set("FAILED" if is_final else "STARTING", self._explained(error))
                if silent >= _SILENT_POLLS:
                    self._abandon(f"{self.address} does not answer any more")
            else:
                silent = 0
                self._saw(info)
            self._publish()  # a predecessor that was reloaded may have removed them
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._look_now.wait(), POLL_INTERVAL_S)
                # Many calls may fail at once; the endpoint need not be asked as often.
                await asyncio.sleep(POLL_INTERVAL_S / 5)

    def _saw(self, info: ScorerInfo) -> None:
        if time.monotonic() < self._aside_until_s:
            return
        if info.state == "READY":
            self.identity = Identity.of(info)
            self._set("READY", "")
        else:
            self._set(info.state, info.last_error or f"its scorer is {info.state}")

    def _set(self, state: ScorerState, last_error: str) -> None:
        if (state, last_error) == (self.state, self.last_error):
            return
        if state != self.state:
            log = self._log.info if state == "READY" else self._log.warning
            log("upstream endpoint", state=state, reason=last_error)
        self.state, self.last_error = state, last_error
        self._on_change()

    def _abandon(self, reason: str) -> None:
        lost, self._lost = self._lost, asyncio.get_running_loop().create_future()
        lost.set_result(reason)

    def _hold(self, n_items: int) -> None:
        self.outstanding += n_items
        self._publish()

    def _publish(self) -> None:
        if self._is_open:
            labels = (self._name, str(self.address))
            self._metrics.outstanding.labels(*labels).set(self.outstanding)
            self._metrics.usable.labels(*labels).set(self._is_usable)

    def _explained(self, error: RewardError) -> str:
        if isinstance(error, Unauthenticated | PermissionDenied):
            return f"it refuses this server's API key ({error.message}): see upstream_api_key_env"
        return error.message


def try_elsewhere(error: RewardError) -> bool:
    """Whether another endpoint may do what this one could not.

    Not if the error names items: then it is about them (an item that killed two workers there must
    not be let loose on the next server). Not if the message is too large: it is so everywhere.
    """
    is_too_large = error.code is Code.RESOURCE_EXHAUSTED and not error.retryable
    return error.code in _TRY_ELSEWHERE and not error.items and not is_too_large
