"""The blocking client.

with RewardClient("grpc://127.0.0.1:50051") as client:
    response = client.score([Item("a", "a red star", (Image.from_array(pixels),))], ["geneval"])
    response.results["geneval"].scores  # (0.75,), or (None,) with the reason in .errors
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import stamina

from reward_client import convert
from reward_client.errors import RewardError
from reward_client.readiness import ATTEMPT_TIMEOUT_S, POLL_INTERVAL_S, ReadinessCheck
from reward_client.requests import check_timeout, make_request, selectors
from reward_client.retries import Backoff, Deadline, RetryPolicy
from reward_client.splitting import Part, merge, read_response, shift_items, split
from reward_client.transports import Transport, open_transport
from reward_client.types import (
    Item,
    Priority,
    ScoreRequest,
    ScoreResponse,
    ScorerInfo,
    ScorerSelector,
)

DEFAULT_TIMEOUT_S = 60.0
DEFAULT_MAX_MESSAGE_BYTES = 16 << 20
DEFAULT_ATTEMPTS = 5
PARTS_IN_FLIGHT = 4

Reply = TypeVar("Reply")


class RewardClient:
    """A connection to a reward server; safe to share between threads."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        attempts: int = DEFAULT_ATTEMPTS,
        transport: Transport | None = None,
    ) -> None:
        """Prepare a client; nothing is sent yet.

        Args:
            url: "grpc://host:port" or "http://host:port"; grpcs and https for TLS.
            api_key: sent as `authorization: Bearer <api_key>`.
            timeout_s: how long a call may take, retries included, unless it says otherwise.
            max_message_bytes: larger batches are split; a server rejects larger messages.
            attempts: how often to try in total what may succeed later.
            transport: replaces the network; then `url` is only a name in messages.

        Raises:
            InvalidArgument: a malformed url or time limit.
            ImportError: the url says grpc and grpcio is not installed.
        """
        self.url = url
        self._timeout_s = check_timeout("timeout_s", timeout_s)
        self._max_message_bytes = max_message_bytes
        self._policy = RetryPolicy(attempts=attempts)
        self._transport = transport or open_transport(url, api_key, max_message_bytes)
        # Threads start only once a batch has to be split.
        self._pool = ThreadPoolExecutor(PARTS_IN_FLIGHT, thread_name_prefix="reward-client")

    def score(
        self,
        items: Sequence[Item],
        scorers: Sequence[str | ScorerSelector],
        *,
        priority: Priority = Priority.TRAIN,
        deadline_s: float | None = None,
        include_details: bool = False,
        request_id: str | None = None,
    ) -> ScoreResponse:
        """Score N items with each of the scorers.

        Args:
            items: at least one, with unique ids.
            scorers: names or selectors, at least one.
            priority: TRAIN goes before EVAL, EVAL before BULK.
            deadline_s: how long this call may take, retries included; the server knows it too.
            include_details: also return explanations for people.
            request_id: made up if None; the server recognises a repeated one while in flight.

        Returns:
            One result per scorer with N scores; an item that failed has the score None and an
            entry in `errors`.

        Raises:
            RewardError: the request failed as a whole; the subclass says why. `InvalidArgument`
                before anything is sent where the request is wrong by itself.
        """
        request = make_request(items, scorers, priority, include_details, request_id)
        limit_s = self._timeout_s if deadline_s is None else check_timeout("deadline_s", deadline_s)
        deadline = Deadline(limit_s)
        parts = split(request, self._max_message_bytes)
        if len(parts) == 1:
            return merge(request, parts, [self._score_part(request, parts[0], deadline)])
        futures = [self._pool.submit(self._score_part, request, part, deadline) for part in parts]
        try:
            return merge(request, parts, [future.result() for future in futures])
        finally:
            for future in futures:
                future.cancel()

    def list_scorers(self) -> tuple[ScorerInfo, ...]:
        """Describe the scorers of the server, ready or not; raises RewardError."""
        return self._with_retries(self._list_once, Deadline(self._timeout_s))

    def wait_ready(
        self, scorers: Sequence[str | ScorerSelector] = (), timeout_s: float = 60.0
    ) -> tuple[ScorerInfo, ...]:
        """Wait until the scorers (none named: all the server has) are READY, and describe them.

        Raises:
            Unavailable: not within `timeout_s` seconds, or a scorer has FAILED; says which.
            NotFound: the server has no such scorer; names the nearest.
            RewardError: anything else that waiting does not mend, such as a wrong API key.
        """
        names = [selector.name for selector in selectors(scorers)]
        deadline = Deadline(check_timeout("timeout_s", timeout_s))
        check = ReadinessCheck(self.url, names, timeout_s)
        while deadline.left_s > 0:
            try:
                ready = check.look(self._list_once(min(ATTEMPT_TIMEOUT_S, deadline.left_s)))
            except RewardError as error:
                check.missed(error)
            else:
                if ready is not None:
                    return ready
            time.sleep(max(0.0, min(POLL_INTERVAL_S, deadline.left_s)))
        raise check.gave_up()

    def close(self) -> None:
        """Release connections and threads; calls in flight may be cancelled."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._transport.close()

    def __enter__(self) -> RewardClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _list_once(self, deadline_s: float) -> tuple[ScorerInfo, ...]:
        message = self._transport.list_scorers(max(deadline_s, 1e-3))
        return tuple(convert.info_from_proto(info) for info in message.scorers)

    def _score_part(self, request: ScoreRequest, part: Part, deadline: Deadline) -> ScoreResponse:
        def once(left_s: float) -> ScoreResponse:
            return read_response(request, part, self._transport.score(part.message, left_s))

        try:
            return self._with_retries(once, deadline)
        except RewardError as error:
            shift_items(error, part)
            raise

    def _with_retries(self, once: Callable[[float], Reply], deadline: Deadline) -> Reply:
        backoff = Backoff(self._policy, deadline)
        for attempt in stamina.retry_context(
            on=backoff, attempts=self._policy.attempts, timeout=None
        ):
            with attempt:
                return once(backoff.time_for_attempt_s())
        raise AssertionError("a retry context ends with a value or an error")
