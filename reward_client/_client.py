"""The blocking client.

with RewardClient("grpc://127.0.0.1:50051") as client:
    response = client.score([Item("a", "a red star", (Image.from_array(pixels),))], ["geneval"])
    response["geneval"].scores  # (0.75,), or (None,) with the reason in .errors
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from reward_client import _tracing
from reward_client._endpoints import EndpointState, Hedge, Preference
from reward_client._env import Environment
from reward_client._exchange import Attempt, Exchange
from reward_client._items import make_items
from reward_client._readiness import Readiness
from reward_client._session import (
    DEFAULT_ATTEMPTS,
    DEFAULT_MAX_MESSAGE_BYTES,
    DEFAULT_MAX_MESSAGE_ITEMS,
    DEFAULT_TIMEOUT_S,
    Batch,
    Limits,
    ListMessage,
    Progress,
    ScoreMessage,
    Session,
    now_s,
    start_listing,
    take_listing,
)
from reward_client._streaming import Stream
from reward_client._tls import TlsFiles
from reward_client._transports import Transport, open_transport
from reward_client._transports.base import Calls
from reward_client._validation import make_request
from reward_client.errors import RewardError
from reward_client.images import to_images
from reward_client.types import (
    Item,
    ItemScores,
    Priority,
    ScoreResponse,
    ScorerInfo,
    ScorerSelector,
)


class RewardClient:
    """A connection to one reward server or to several equal ones; threads may share it.

    It belongs to the process that made it: after a fork its methods raise `Cancelled`.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        api_key: str | None = None,
        tls: TlsFiles | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        max_message_items: int = DEFAULT_MAX_MESSAGE_ITEMS,
        attempts: int = DEFAULT_ATTEMPTS,
        prefer: Preference = "least_busy",
        hedge: Hedge | None = None,
        transport: Transport | Sequence[Transport] | None = None,
    ) -> None:
        """Prepare a client; nothing is sent yet.

        Args:
            url: "grpc://host:port" or "http://host:port"; grpcs and https for TLS. Several, as a
                list or with commas between them, are servers with the same scorers: a message goes
                to one of them, and to another one if that fails.
            api_key: sent as `authorization: Bearer <api_key>`.
            tls: for grpcs and https: whom to trust and what to show, if not the system's roots.
            timeout_s: how long a call may take, retries included, unless it says otherwise.
            max_message_bytes: larger batches are split; a server rejects larger messages.
            max_message_items: likewise.
            attempts: how often to try in total what may succeed later; once more per further url.
            prefer: "least_busy" spreads messages over all urls, "first" uses the earliest that is
                up.
            hedge: ask a second server if the first takes long; None never does.
            transport: replaces the network, one per url; then `url` is only a name in messages.

        Raises:
            InvalidArgument: a malformed url or limit, or a TLS file that cannot be used.
            ImportError: the url says grpc and grpcio is not installed.
        """
        self._session: Session[Transport] = Session(
            url,
            Limits(timeout_s, max_message_bytes, max_message_items, attempts),
            prefer,
            hedge,
            transport,
            lambda one: open_transport(one, api_key, max_message_bytes, tls),
        )
        self.url = self._session.url

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> RewardClient:
        """Make a client of what the environment says.

        REWARD_URL (one address, or several with commas), REWARD_API_KEY, REWARD_CA_FILE,
        REWARD_CLIENT_CERT_FILE, REWARD_CLIENT_KEY_FILE, REWARD_TIMEOUT_S.

        Args:
            environ: the variables; by default those of the process.

        Raises:
            InvalidArgument: REWARD_URL is missing, or a variable is malformed; says which.
        """
        env = Environment.read(os.environ if environ is None else environ)
        return cls(env.required_url(), api_key=env.api_key, tls=env.tls, timeout_s=env.timeout_s)

    def score(
        self,
        items: Sequence[Item],
        scorers: Sequence[str | ScorerSelector],
        *,
        priority: Priority = Priority.TRAIN,
        deadline_s: float | None = None,
        include_details: bool = False,
        request_id: str | None = None,
        progress: Progress | None = None,
    ) -> ScoreResponse:
        """Score N items with each of the scorers.

        Args:
            items: at least one, with unique ids.
            scorers: names or selectors, at least one.
            priority: TRAIN goes before EVAL, EVAL before BULK.
            deadline_s: how long this call may take, retries included; the server knows it too.
            include_details: also return explanations for people.
            request_id: made up if None; the server recognises a repeated one while in flight.
            progress: called in this thread with (items done, items in total), message by message.

        Returns:
            One result per scorer with N scores; an item that failed has the score None and an
            entry in `errors`.

        Raises:
            RewardError: the request failed as a whole; the subclass says why. `InvalidArgument`
                before anything is sent where the request is wrong by itself.
        """
        request = make_request(items, scorers, priority, include_details, request_id)
        batch = Batch.start(self._session, request, deadline_s, progress)
        with (
            _tracing.span("reward.score", "CLIENT", _tracing.about(request)),
            _Driver(self._session, batch.exchange, self._begin_score) as driver,
        ):
            while not batch.exchange.is_idle:
                driver.step()
                batch.take()
            return batch.response()

    def score_stream(
        self,
        items: Iterable[Item],
        scorers: Sequence[str | ScorerSelector],
        *,
        priority: Priority = Priority.TRAIN,
        deadline_s: float | None = None,
        include_details: bool = False,
        items_per_message: int = 1,
        in_flight: int = 32,
    ) -> Iterator[ItemScores]:
        """Score items while they are being made, over one ScoreStream call where there is gRPC.

        Results come in the order in which they are ready. `items` is asked for the next item in
        this thread, and only while fewer than `in_flight` messages are unanswered.

        Args:
            items: any number, of any origin; ids are the caller's business.
            scorers: names or selectors, at least one.
            priority: TRAIN goes before EVAL, EVAL before BULK.
            deadline_s: how long each message may take, retries included.
            include_details: also return explanations for people.
            items_per_message: 1 sends every item at once; more costs less per item.
            in_flight: bound on messages without an answer.

        Yields:
            One `ItemScores` per item. A message that failed after all retries fails its items.

        Raises:
            RewardError: something is wrong with the call itself, such as the key or a scorer's
                name, or with an item before it is sent.
        """
        stream = Stream.start(
            self._session,
            scorers,
            priority=priority,
            deadline_s=deadline_s,
            include_details=include_details,
            items_per_message=items_per_message,
            in_flight=in_flight,
        )
        return self._run_stream(stream, items)

    def list_scorers(self) -> tuple[ScorerInfo, ...]:
        """Describe the scorers of one server, ready or not; raises RewardError."""
        exchange = start_listing(self._session)
        with _Driver(self._session, exchange, self._begin_listing) as driver:
            while not exchange.has_results:
                driver.step()
        return take_listing(exchange)

    def wait_ready(
        self, scorers: Sequence[str | ScorerSelector] = (), timeout_s: float = 60.0
    ) -> tuple[ScorerInfo, ...]:
        """Wait until the scorers (none named: all it has) are READY on one server at least.

        Returns:
            Their descriptions by the first server that has all of them.

        Raises:
            Unavailable: not within `timeout_s` seconds, or a scorer has FAILED; says which.
            NotFound: no server has such a scorer; names the nearest.
            RewardError: anything else that waiting does not mend, such as a wrong API key.
        """
        readiness = Readiness.start(self._session, scorers, timeout_s)
        while (limit_s := readiness.look_s()) > 0:
            looks = {self._begin_listing(look): look for look in readiness.looks(limit_s)}
            for future in as_completed(looks):
                infos = readiness.judge(looks[future], future.result)
                if infos is not None:
                    return infos
            readiness.check_hope()
            time.sleep(readiness.pause_s())
        raise readiness.gave_up()

    def endpoints(self) -> tuple[EndpointState, ...]:
        """What this client knows of its servers, in the order of the urls."""
        return self._session.states()

    def close(self) -> None:
        """Release connections and threads; calls in flight are cancelled."""
        for transport in self._session.transports:
            transport.close()

    def __enter__(self) -> RewardClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _begin_score(self, attempt: Attempt[ScoreMessage]) -> Future[Any]:
        transport = self._session.transports[attempt.endpoint]
        return _begun(lambda: transport.score(attempt.payload.part.message, attempt.timeout_s))

    def _begin_listing(self, attempt: Attempt[ListMessage]) -> Future[Any]:
        transport = self._session.transports[attempt.endpoint]
        return _begun(lambda: transport.list_scorers(attempt.timeout_s))

    def _run_stream(self, stream: Stream, items: Iterable[Item]) -> Iterator[ItemScores]:
        exchange = stream.exchange
        with ExitStack() as stack:
            calls: dict[int, Calls] = {}

            def begin(attempt: Attempt[ScoreMessage]) -> Future[Any]:
                index = attempt.endpoint
                if index not in calls:
                    calls[index] = self._session.transports[index].stream()
                    stack.callback(calls[index].close)
                message = attempt.payload.part.message
                return _begun(lambda: calls[index].score(message, attempt.timeout_s))

            driver = stack.enter_context(_Driver(self._session, exchange, begin))
            for item in items:
                stream.add(item)
                driver.step(block=False)
                yield from stream.take()
                while not exchange.has_room:
                    driver.step()
                    yield from stream.take()
            stream.flush()
            while not exchange.is_idle:
                driver.step()
                yield from stream.take()


def score(
    images: Any,
    prompts: str | Sequence[str] = "",
    scorers: Sequence[str | ScorerSelector] = ("geneval",),
    *,
    specs: Sequence[Mapping[str, Any] | None] | None = None,
    references: Sequence[Any] | None = None,
    url: str | None = None,
) -> ScoreResponse:
    """Score pictures: `score(images, prompts, ["pickscore"])["pickscore"].array()`.

    It connects and disconnects every time; a program that scores often keeps a `RewardClient`.

    Args:
        images: Pillow images, arrays or tensors; one, a list of them, or a batch.
        prompts: one text for each picture, or one for all.
        scorers: names or selectors.
        specs: a GenEval row, `{"target": ...}` for OCR, or metadata for each picture.
        references: what each picture is compared with.
        url: the server; by default REWARD_URL of the environment, with its key and certificates.

    Returns:
        One result per scorer with N scores.

    Raises:
        RewardError: the request failed as a whole. A single picture that fails has no score, and
            its reason in `errors`.
    """
    pictures = images if isinstance(images, list | tuple) else to_images(images)
    texts = [prompts] * len(pictures) if isinstance(prompts, str) else list(prompts)
    items = make_items(pictures, texts, specs, references=references)
    environ = {**os.environ, **({"REWARD_URL": url} if url else {})}
    with RewardClient.from_env(environ) as client:
        return client.score(items, scorers)


class _Driver:
    """Does what an exchange asks for, with futures."""

    def __init__(
        self,
        session: Session[Any],
        exchange: Exchange[Any, Any],
        begin: Callable[[Attempt[Any]], Future[Any]],
    ) -> None:
        self._session = session
        self._exchange = exchange
        self._begin = begin
        self._pending: dict[Future[Any], Attempt[Any]] = {}

    def step(self, *, block: bool = True) -> None:
        """Send what is due, and settle what has ended; `block` waits for something to end."""
        for attempt in self._exchange.due(now_s()):
            self._pending[self._begin(attempt)] = attempt
        self._drop_abandoned()
        if self._exchange.has_results:
            block = False
        wait_s = max(0.0, self._exchange.wake_at_s() - now_s()) if block else 0.0
        if self._pending:
            ended, _ = wait(self._pending, wait_s, FIRST_COMPLETED)
            for future in ended:
                attempt = self._pending.pop(future)
                outcome = self._session.outcome(future.result, attempt)
                self._exchange.settle(attempt, outcome, now_s())
            self._drop_abandoned()
        elif block:
            time.sleep(wait_s)

    def _drop_abandoned(self) -> None:
        abandoned = {id(attempt) for attempt in self._exchange.abandoned()}
        for future in [f for f, attempt in self._pending.items() if id(attempt) in abandoned]:
            del self._pending[future]
            future.cancel()

    def __enter__(self) -> _Driver:
        return self

    def __exit__(self, *_: object) -> None:
        # Nobody waits for what is left; let the servers drop it.
        self._exchange.stop()
        self._drop_abandoned()


def _begun(begin: Callable[[], Future[Any]]) -> Future[Any]:
    try:
        return begin()
    except RewardError as error:
        future: Future[Any] = Future()
        future.set_exception(error)
        return future
