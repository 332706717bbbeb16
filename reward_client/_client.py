"""The blocking client, and scores in one line.

with RewardClient("grpc://127.0.0.1:50051") as client:
    response = client.score([pixels], ["a red star"], scorers=["pickscore"])
    response["pickscore"].scores  # (0.75,), or (None,) with the reason in .errors
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from reward_client._core import DEFAULT_TIMEOUT_S, Core, Progress, Settings
from reward_client._endpoints import EndpointState, Hedge
from reward_client._env import Environment
from reward_client._items import Prompts, References, Specs, items_of
from reward_client._loop_thread import LoopThread
from reward_client._pool import Preference
from reward_client._tls import TlsFiles
from reward_client._transports.base import Transport
from reward_client._validation import check_timeout, make_request, selectors
from reward_client._wire.splitting import split
from reward_client.errors import Cancelled, InvalidArgument
from reward_client.types import (
    Item,
    ItemScores,
    Priority,
    ScoreRequest,
    ScoreResponse,
    ScorerInfo,
    ScorerSelector,
    ServerLimits,
)

if TYPE_CHECKING:
    from typing_extensions import Self

Scorers = Sequence[str | ScorerSelector]
Value = TypeVar("Value")


class ClientBase:
    """What both clients are made of."""

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        api_key: str | None = None,
        tls: TlsFiles | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_message_bytes: int | None = None,
        max_message_items: int | None = None,
        attempts: int | None = None,
        prefer: Preference = "least_busy",
        hedge: Hedge | None = None,
        trust_env: bool = False,
        shared_memory: bool = True,
        transport: Transport | Sequence[Transport] | None = None,
    ) -> None:
        """Prepare a client; nothing is sent yet.

        Args:
            url: "grpc://host:port" or "http://host:port"; grpcs and https for TLS. Several, as a
                list or with commas between them, are servers with the same scorers: a message goes
                to one of them, and to another one if that fails. "grpc+dns://host:port" means every
                address of the name; "file:PATH" a file that holds urls and is read again after a
                failure.
            api_key: sent as `authorization: Bearer <api_key>`.
            tls: for grpcs and https: whom to trust and what to show, if not the system's roots.
            timeout_s: how long a call may take, retries included, unless it says otherwise.
            max_message_bytes: larger batches are split; by default at 16 MiB, and at what the
                server accepts.
            max_message_items: likewise, by default 256.
            attempts: how often to send a message in total, once more per further url; by default
                until the time is up.
            prefer: "least_busy" spreads messages over all urls, "round_robin" in turn, "first" uses
                the earliest that is up.
            hedge: ask a second server if the first takes long; None never does.
            trust_env: use the proxies of the environment (`http_proxy`, ...), for gRPC and HTTP.
            shared_memory: pass raw pixels to a server on this host in memory instead of messages,
                over gRPC; up to 512 MiB of them at once.
            transport: replaces the network, one per url; then `url` is only a name in messages.

        Raises:
            InvalidArgument: a malformed url or limit, or a TLS file that cannot be used.
            ImportError: the url says grpc and grpcio is not installed.
        """
        self._settings = Settings(
            url,
            api_key,
            tls,
            timeout_s,
            max_message_bytes,
            max_message_items,
            attempts,
            prefer,
            hedge,
            trust_env,
            shared_memory,
            transport,
        )
        self.url = self._settings.name
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._is_closed = False

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Make a client of what the environment says.

        REWARD_URL (one address, or several with commas), REWARD_API_KEY, REWARD_CA_FILE,
        REWARD_CLIENT_CERT_FILE, REWARD_CLIENT_KEY_FILE, REWARD_TIMEOUT_S, REWARD_TRUST_ENV.

        Args:
            environ: the variables; by default those of the process.

        Raises:
            InvalidArgument: REWARD_URL is missing, or a variable is malformed; says which.
        """
        env = Environment.read(os.environ if environ is None else environ)
        return cls(
            env.required_url(),
            api_key=env.api_key,
            tls=env.tls,
            timeout_s=env.timeout_s,
            trust_env=env.trust_env,
        )

    def _check_open(self) -> None:
        """Refuse to work on the sockets of another process, which would hang, or on closed ones.

        Raises:
            Cancelled: the process has forked since the client was made, or `close` was called.
        """
        if os.getpid() != self._pid:
            raise Cancelled(
                f"this client belongs to process {self._pid}, this is {os.getpid()}: make a client"
                " in each process, after the fork"
            )
        if self._is_closed:
            raise Cancelled(f"the client for {self.url} is closed")


class RewardClient(ClientBase):
    """A connection to one reward server or to several equal ones; threads may share it.

    It belongs to the process that made it: after a fork its methods raise `Cancelled`.
    """

    _core: Core | None = None

    @cached_property
    def _thread(self) -> LoopThread:
        return LoopThread("reward-client")

    @overload
    def score(
        self,
        items: Sequence[Item],
        scorers: Scorers,
        /,
        *,
        priority: Priority = ...,
        deadline_s: float | None = ...,
        include_details: bool = ...,
        request_id: str | None = ...,
        progress: Progress | None = ...,
    ) -> ScoreResponse: ...

    @overload
    def score(
        self,
        images: Any,
        /,
        prompts: Prompts = ...,
        scorers: Scorers = ...,
        *,
        specs: Specs = ...,
        references: References = ...,
        priority: Priority = ...,
        deadline_s: float | None = ...,
        include_details: bool = ...,
        request_id: str | None = ...,
        progress: Progress | None = ...,
    ) -> ScoreResponse: ...

    def score(
        self,
        images: Any,
        /,
        prompts: Any = None,
        scorers: Any = None,
        *,
        specs: Specs = None,
        references: References = None,
        priority: Priority = Priority.EVAL,
        deadline_s: float | None = None,
        include_details: bool = False,
        request_id: str | None = None,
        progress: Progress | None = None,
    ) -> ScoreResponse:
        """Score N pictures, or items, with each of the scorers.

        `score(images, prompts, scorers=[...], specs=[...])`, or `score(items, scorers)`.

        Args:
            images: N pictures: Pillow images, arrays or tensors (`images.to_images`), a list of
                them or a batch; an entry with several is a video. Or N `Item` with unique ids.
            prompts: N texts, or one for all. After items the scorers may stand here.
            scorers: names or selectors, at least one.
            specs: of pictures, N of `GenEvalSpec`, `OcrTarget`, a GenEval row, `{"target": ...}`,
                or metadata; None for none.
            references: of pictures, N pictures or lists of them to compare with.
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
        items, asked = items_of(images, prompts, scorers, specs, references)
        request = make_request(items, asked, priority, include_details, request_id)
        core, timeout_s = self._opened(), self._settings.time_s(deadline_s)
        self._learn_limits(core)
        parts = split(request, core.sizes())
        if progress is None:
            return self._run(core.score(request, parts, timeout_s, None))
        steps: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        running = self._thread.submit(
            core.score(request, parts, timeout_s, lambda *step: steps.put(step))
        )
        running.add_done_callback(lambda _: steps.put(None))
        try:
            while (step := steps.get()) is not None:
                progress(*step)
            return running.result()
        except CancelledError as error:
            raise self._closed() from error
        finally:
            running.cancel()

    def score_stream(
        self,
        items: Iterable[Item],
        scorers: Scorers,
        *,
        priority: Priority = Priority.EVAL,
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
            deadline_s: how long each message may take, retries included; the server knows it too.
            include_details: also return explanations for people.
            items_per_message: 1 sends every item at once; more costs less per item.
            in_flight: bound on messages without an answer.

        Yields:
            One `ItemScores` per item. A message that failed after all retries fails its items.

        Raises:
            RewardError: something is wrong with the call itself, such as the key or a scorer's
                name, or with an item before it is sent.
        """
        check_counts(items_per_message, in_flight)
        timeout_s = self._settings.time_s(deadline_s)

        def request_of(batch: list[Item]) -> ScoreRequest:
            return make_request(batch, scorers, priority, include_details, None)

        def run() -> Iterator[ItemScores]:
            core = self._opened()
            self._learn_limits(core)
            stream = core.stream(in_flight, timeout_s)
            try:
                for first, batch in batches(items, items_per_message):
                    request = request_of(batch)
                    self._run(stream.send(request, split(request, core.sizes()), first))
                    yield from self._run(stream.take(block=False))
                    while not stream.has_room:
                        yield from self._run(stream.take())
                while not stream.is_idle:
                    yield from self._run(stream.take())
            finally:
                if not self._is_closed:
                    self._run(stream.close())

        return run()

    def list_scorers(self) -> tuple[ScorerInfo, ...]:
        """Describe the scorers of one server, ready or not; raises RewardError."""
        return self._run(self._opened().list_scorers())

    def limits(self) -> ServerLimits | None:
        """What one server accepts in a request, None if it does not say; raises RewardError."""
        return self._run(self._opened().limits())

    def wait_ready(self, scorers: Scorers = (), timeout_s: float = 60.0) -> tuple[ScorerInfo, ...]:
        """Wait until the scorers (none named: all it has) are READY on one server at least.

        Returns:
            Their descriptions by the first server that has all of them.

        Raises:
            Unavailable: not within `timeout_s` seconds, or a scorer has FAILED; says which.
            NotFound: no server has such a scorer; names the nearest.
            RewardError: anything else that waiting does not mend, such as a wrong API key.
        """
        names = [selector.name for selector in selectors(scorers)]
        limit_s = check_timeout("timeout_s", timeout_s)
        return self._run(self._opened().wait_ready(names, limit_s))

    def endpoints(self) -> tuple[EndpointState, ...]:
        """What this client knows of its servers, in the order of the urls."""
        core = self._opened()
        return self._run(core.states())

    def close(self) -> None:
        """Release connections and the thread; calls in flight are cancelled."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        if self._core is not None and os.getpid() == self._pid:
            self._thread.close(self._core.close())

    def __enter__(self) -> RewardClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _opened(self) -> Core:
        with self._lock:
            self._check_open()
            if self._core is None:
                self._core = self._thread.submit(_open(self._settings)).result()
            return self._core

    def _learn_limits(self, core: Core) -> None:
        if not core.has_asked:
            self._run(core.learn_limits())

    def _run(self, coroutine: Coroutine[Any, Any, Value]) -> Value:
        try:
            running = self._thread.submit(coroutine)
        except RuntimeError as error:  # its loop has ended
            coroutine.close()
            raise self._closed() from error
        try:
            return running.result()
        except CancelledError as error:
            raise self._closed() from error
        finally:
            running.cancel()

    def _closed(self) -> Cancelled:
        return Cancelled(f"the client for {self.url} is closed")


def score(
    images: Any,
    prompts: str | Sequence[str] = "",
    scorers: Scorers = (),
    *,
    specs: Specs = None,
    references: References = None,
    url: str | None = None,
) -> ScoreResponse:
    """Score pictures: `score(images, prompts, ["pickscore"])["pickscore"].array()`.

    It connects and disconnects every time; a program that scores often keeps a `RewardClient`.

    Args:
        images: Pillow images, arrays or tensors; one, a list of them, or a batch.
        prompts: one text for each picture, or one for all.
        scorers: names or selectors, at least one.
        specs: for each picture a `GenEvalSpec` or GenEval row, an `OcrTarget`, or metadata.
        references: what each picture is compared with.
        url: the server; by default REWARD_URL of the environment, with its key and certificates.

    Returns:
        One result per scorer with N scores.

    Raises:
        RewardError: the request failed as a whole. A single picture that fails has no score, and
            its reason in `errors`.
    """
    environ = {**os.environ, **({"REWARD_URL": url} if url else {})}
    with RewardClient.from_env(environ) as client:
        return client.score(images, prompts, scorers, specs=specs, references=references)


def check_counts(items_per_message: int, in_flight: int) -> None:
    """Raise InvalidArgument for a number below 1."""
    for name, value in (("items_per_message", items_per_message), ("in_flight", in_flight)):
        if value < 1:
            raise InvalidArgument(f"{name} must be at least 1, got {value}")


def batches(items: Iterable[Item], size: int) -> Iterator[tuple[int, list[Item]]]:
    """Lists of `size` items, the last one shorter, each with the index of its first."""
    batch: list[Item] = []
    count = 0
    for item in items:
        batch.append(item)
        count += 1
        if len(batch) == size:
            yield count - size, batch
            batch = []
    if batch:
        yield count - len(batch), batch


async def _open(settings: Settings) -> Core:
    return Core(settings)
