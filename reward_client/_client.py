"""The blocking client, and scores in one line.

with RewardClient("grpc://127.0.0.1:50051") as client:
    response = client.score([pixels], ["a red star"], scorers=["pickscore"])
    response["pickscore"].scores  # (0.75,), or (None,) with the reason in .errors
"""

from __future__ import annotations

import os
import queue
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import islice
from types import TracebackType
from typing import Any, TypeVar

from reward_client._base import ClientBase
from reward_client._core import Core, Progress
from reward_client._endpoints import EndpointState
from reward_client._items import Prompts, References, Specs, items_of
from reward_client._loop_thread import LoopThread
from reward_client._stream import Stream, check_counts
from reward_client._validation import Scorers, check_timeout, make_request, selectors
from reward_client.types import Item, ItemScores, Priority, ScoreResponse, ScorerInfo, ServerLimits

Value = TypeVar("Value")


class RewardClient(ClientBase):
    """A connection to one reward server or to several equal ones; threads may share it.

    It belongs to the process that made it: after a fork its methods raise `Cancelled`.
    """

    _core: Core | None = None

    @cached_property
    def _thread(self) -> LoopThread:
        return LoopThread("reward-client")

    def score(
        self,
        images: Any,
        /,
        prompts: Prompts | Scorers | None = None,
        scorers: Scorers | None = None,
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
        core, timeout_s = self._opened(), self._time_s(deadline_s)
        if progress is None:
            return self._run(core.score(request, timeout_s, None))
        steps: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        scoring = core.score(request, timeout_s, lambda *step: steps.put(step))
        with self._running(scoring) as running:
            running.add_done_callback(lambda _: steps.put(None))
            while (step := steps.get()) is not None:
                progress(*step)
            return running.result()

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
        timeout_s = self._time_s(deadline_s)
        request_of = partial(
            make_request, scorers=scorers, priority=priority, include_details=include_details
        )

        def run() -> Iterator[ItemScores]:
            stream, source = Stream(self._opened(), request_of, in_flight, timeout_s), iter(items)
            try:
                while batch := list(islice(source, items_per_message)):
                    self._run(stream.send(batch))
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
        return self._run(self._opened().states())

    def close(self) -> None:
        """Release connections and the thread; calls in flight are cancelled."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        if self._core is not None and os.getpid() == self._pid:
            self._thread.close(self._core.pool.close())

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
                self._core = self._thread.submit(self._open()).result()
            return self._core

    async def _open(self) -> Core:
        return self._new_core()

    def _run(self, coroutine: Coroutine[Any, Any, Value]) -> Value:
        with self._running(coroutine) as running:
            return running.result()

    @contextmanager
    def _running(self, coroutine: Coroutine[Any, Any, Value]) -> Iterator[Future[Value]]:
        """Run a coroutine in the client's thread for the length of a block that waits for it."""
        try:
            running = self._thread.submit(coroutine)
        except RuntimeError as error:  # its loop has ended
            coroutine.close()
            raise self._closed() from error
        try:
            yield running
        except CancelledError as error:
            raise self._closed() from error
        finally:
            running.cancel()


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
    with RewardClient.from_env(url=url) as client:
        return client.score(images, prompts, scorers, specs=specs, references=references)
