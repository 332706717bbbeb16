"""What both clients do, in one event loop: requests, streams, waiting, over a pool of servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from reward_client import _tracing
from reward_client._addresses import Address, Source, parse_sources
from reward_client._call import Patience
from reward_client._endpoints import Endpoint, EndpointState, Hedge
from reward_client._pool import PREFERENCES, Pool, Preference
from reward_client._tasks import all_of, cancel
from reward_client._tls import TlsFiles
from reward_client._transports import check_transport, open_transport
from reward_client._transports.base import Calls, Transport
from reward_client._validation import check_timeout, unknown_scorer
from reward_client._wire.splitting import Part, Sizes, merge, read_response, shift_items
from reward_client.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ItemError,
    ResourceExhausted,
    RewardError,
    Unavailable,
)
from reward_client.types import ItemScores, ScoreRequest, ScoreResponse, ScorerInfo, ServerLimits

DEFAULT_TIMEOUT_S = 60.0
DEFAULT_MAX_MESSAGE_BYTES = 16 << 20
DEFAULT_MAX_MESSAGE_ITEMS = 256
MESSAGES_IN_FLIGHT = 4
_LIMITS_TIMEOUT_S = 2.0
_READY_POLL_S, _READY_TIMEOUT_S = 0.25, 5.0

Progress: TypeAlias = Callable[[int, int], None]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Settings:
    """The arguments of a client, checked; see `RewardClient`.

    Attributes:
        sources: what `url` names.

    Raises:
        InvalidArgument: a malformed url or limit, or a TLS file that cannot be used.
        ImportError: the url says grpc and grpcio is not installed.
    """

    url: str | Sequence[str]
    api_key: str | None
    tls: TlsFiles | None
    timeout_s: float
    max_message_bytes: int | None
    max_message_items: int | None
    attempts: int | None
    prefer: Preference
    hedge: Hedge | None
    trust_env: bool
    shared_memory: bool
    transport: Transport | Sequence[Transport] | None
    sources: tuple[Source, ...] = field(init=False)

    def __post_init__(self) -> None:
        check_timeout("timeout_s", self.timeout_s)
        for name in ("max_message_bytes", "max_message_items", "attempts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidArgument(f"{name} must be at least 1, got {value}")
        if self.prefer not in PREFERENCES:
            raise InvalidArgument(f"prefer must be one of {list(PREFERENCES)}, got {self.prefer!r}")
        if self.transport is None:
            sources = parse_sources(self.url)
            for source in sources:
                if source.address is not None:
                    check_transport(source.address, self.tls)
        else:
            texts = self.url.split(",") if isinstance(self.url, str) else self.url
            sources = tuple(Source(t.strip(), Address(t.strip(), "fake", t, 0)) for t in texts)
            if len(self._transports()) != len(sources):
                raise InvalidArgument(
                    f"{len(self._transports())} transports for {len(sources)} urls"
                )
        object.__setattr__(self, "sources", sources)

    @property
    def name(self) -> str:
        """The urls, for messages."""
        return ",".join(source.text for source in self.sources)

    def time_s(self, deadline_s: float | None) -> float:
        """How long a call may take."""
        return self.timeout_s if deadline_s is None else check_timeout("deadline_s", deadline_s)

    def connect(self, address: Address) -> Transport:
        """Open a transport in the running event loop."""
        if self.transport is None:
            return open_transport(
                address,
                self.api_key,
                self.tls,
                trust_env=self.trust_env,
                shared_memory=self.shared_memory,
            )
        return self._transports()[[source.address for source in self.sources].index(address)]

    def _transports(self) -> Sequence[Transport]:
        one = self.transport
        return one if isinstance(one, Sequence) else () if one is None else (one,)


class Core:
    """A client inside its event loop."""

    def __init__(self, settings: Settings) -> None:
        """Open the connections; to be called in the loop that uses them."""
        self._settings = settings
        self.has_asked = False
        self.pool = Pool(
            settings.sources,
            settings.connect,
            prefer=settings.prefer,
            hedge=settings.hedge,
            patience=Patience(settings.attempts),
        )

    def sizes(self) -> Sizes:
        """How large a message may be: as the caller says, and as the servers accept it.

        May be called from any thread.
        """
        own, known = self._settings, [e.limits for e in self.pool.endpoints if e.limits is not None]
        served_bytes = min(
            (k.max_message_bytes for k in known if k.max_message_bytes), default=None
        )
        served_items = min((k.max_items for k in known if k.max_items), default=None)
        max_bytes = own.max_message_bytes or DEFAULT_MAX_MESSAGE_BYTES
        max_items = own.max_message_items or DEFAULT_MAX_MESSAGE_ITEMS
        max_bytes = min(max_bytes, served_bytes or max_bytes)
        max_items = min(max_items, served_items or max_items)
        # An item that is larger than a batch should be may still be sent alone.
        alone = max_bytes if own.max_message_bytes else served_bytes or max_bytes
        return Sizes(max_bytes, max_items, alone)

    async def learn_limits(self) -> None:
        """Ask the servers once what they accept, for at most 2 s."""
        self.has_asked = True
        with contextlib.suppress(RewardError):
            await self._first_limits()

    async def limits(self) -> ServerLimits | None:
        """What one server accepts, None if it does not say; raises RewardError."""

        async def attempt(endpoint: Endpoint, left_s: float) -> ServerLimits | None:
            await endpoint.describe(left_s)
            return endpoint.limits

        return await self.pool.call(attempt, self._settings.timeout_s)

    async def score(
        self,
        request: ScoreRequest,
        parts: Sequence[Part],
        timeout_s: float,
        progress: Progress | None,
    ) -> ScoreResponse:
        """Send the parts of a request and join the answers, in order.

        The first part that fails fails the call; what is under way then is cancelled.
        """
        ends_s = asyncio.get_running_loop().time() + timeout_s
        free = asyncio.Semaphore(MESSAGES_IN_FLIGHT)
        done = 0

        async def send(part: Part) -> ScoreResponse:
            nonlocal done
            async with free:
                try:
                    answer = await self._send(request, part, ends_s, _over_unary)
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
        """Ask any server for its scorers."""
        return await self.pool.call(Endpoint.describe, self._settings.timeout_s)

    async def wait_ready(self, names: Sequence[str], timeout_s: float) -> tuple[ScorerInfo, ...]:
        """Wait until one server has the scorers READY; see `RewardClient.wait_ready`."""
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
            f"the reward service at {self._settings.name} was not ready within {timeout_s:g} s"
            f" ({why or self.pool.lookup_error or 'it was not asked yet'}): if it is to run on this"
            " host, start it with `reward-server serve`; correct the url, or wait longer"
        )

    def stream(self, in_flight: int, timeout_s: float) -> Stream:
        """Begin to send messages one by one."""
        return Stream(self, in_flight, timeout_s)

    async def states(self) -> tuple[EndpointState, ...]:
        """What is known of the servers."""
        return self.pool.states()

    async def close(self) -> None:
        """Close the connections; what is under way is cancelled."""
        await self.pool.close()

    async def _first_limits(self) -> None:
        await self.pool.refresh()
        polls = [endpoint.poll(_LIMITS_TIMEOUT_S) for endpoint in self.pool.endpoints]
        for ending in asyncio.as_completed([asyncio.shield(poll) for poll in polls]):
            if not isinstance(await ending, RewardError):
                return

    async def _send(
        self,
        request: ScoreRequest,
        part: Part,
        ends_s: float,
        calls_of: Callable[[Endpoint], Calls],
    ) -> ScoreResponse:
        async def attempt(endpoint: Endpoint, left_s: float) -> ScoreResponse:
            answer = await calls_of(endpoint).score(part.message, left_s)
            return read_response(request, part, answer)

        return await self.pool.call(attempt, ends_s - asyncio.get_running_loop().time())


class Stream:
    """Messages that leave one by one, and their answers in the order in which they come.

    Over one call per server, where there is gRPC.
    """

    def __init__(self, core: Core, in_flight: int, timeout_s: float) -> None:
        """Start without messages.

        Args:
            core: sends them.
            in_flight: messages without an answer, beyond which there is no room.
            timeout_s: of each message, retries included.
        """
        self._core = core
        self._in_flight = in_flight
        self._timeout_s = timeout_s
        self._calls: dict[Endpoint, Calls] = {}
        self._tasks: dict[asyncio.Future[ScoreResponse], tuple[ScoreRequest, Part, int]] = {}

    @property
    def has_room(self) -> bool:
        """Whether one more message may leave at once."""
        return len(self._tasks) < self._in_flight

    @property
    def is_idle(self) -> bool:
        """Whether every message was answered, and every answer taken."""
        return not self._tasks

    async def send(self, request: ScoreRequest, parts: Sequence[Part], first: int) -> None:
        """Send messages; `first` is the index in the stream of the request's first item."""
        ends_s = asyncio.get_running_loop().time() + self._timeout_s
        for part in parts:
            sending = self._core._send(request, part, ends_s, self._calls_of)
            self._tasks[asyncio.ensure_future(sending)] = request, part, first

    async def take(
        self, also: asyncio.Future[Any] | None = None, *, block: bool = True
    ) -> list[ItemScores]:
        """Items whose scores are ready; with `block` waits for some, or for `also`.

        Raises:
            RewardError: something is wrong with the call, not with one message.
        """
        waited = [*self._tasks, *([also] if also is not None else [])]
        if not waited:
            return []
        ended, _ = await asyncio.wait(
            waited, timeout=None if block else 0, return_when=asyncio.FIRST_COMPLETED
        )
        found: list[ItemScores] = []
        for task in ended:
            if task is not also:
                found += _items_of(task, *self._tasks.pop(task))
        return found

    async def close(self) -> None:
        """Cancel what is under way."""
        await cancel(self._tasks)
        for calls in self._calls.values():
            await calls.close()

    def _calls_of(self, endpoint: Endpoint) -> Calls:
        if endpoint not in self._calls:
            self._calls[endpoint] = endpoint.transport.stream()
        return self._calls[endpoint]


def _over_unary(endpoint: Endpoint) -> Calls:
    return endpoint.transport


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


# These concern the items of one message; anything else is wrong with the call.
_ONE_MESSAGE = (DeadlineExceeded, Internal, ResourceExhausted, Unavailable)


def _items_of(
    task: asyncio.Future[ScoreResponse], request: ScoreRequest, part: Part, first: int
) -> list[ItemScores]:
    """The scores of a message's items; raises what is wrong with the call."""
    names = [selector.name for selector in request.scorers]
    items = request.items[part.start : part.stop]
    start = first + part.start
    try:
        results = task.result().results
    except _ONE_MESSAGE as error:
        told = dict.fromkeys(names, ItemError(error.code, error.message, error.retryable))
        return [
            ItemScores(start + at, item.id, dict.fromkeys(names), errors=told)
            for at, item in enumerate(items)
        ]
    return [
        ItemScores(
            start + at,
            item.id,
            scores={name: result.scores[at] for name, result in results.items()},
            components={
                name: {key: column[at] for key, column in result.components.items()}
                for name, result in results.items()
            },
            errors={name: r.errors[at] for name, r in results.items() if at in r.errors},
            details={
                name: detail
                for name, r in results.items()
                if r.details and (detail := r.details[at]) is not None
            },
        )
        for at, item in enumerate(items)
    ]
