"""A reward service that is a function, for other people's tests: no server, no sockets.

    client = RewardClient("fake://", transport=FakeTransport(lambda scorer, item: 0.5))

Requests and responses go through the real messages, so whatever would not survive the wire does
not survive here either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from reward_client import _validation
from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._tasks import within
from reward_client._transports.base import Headers, Message
from reward_client._wire import convert
from reward_client.codec import is_lossy
from reward_client.errors import DeadlineExceeded, ItemError
from reward_client.types import (
    Item,
    ScoreRequest,
    ScoreResponse,
    ScorerInfo,
    ScorerResult,
    ScorerSelector,
)

Outcome: TypeAlias = "tuple[float, Mapping[str, float], Mapping[str, Any] | None]"
Scored: TypeAlias = "float | ItemError | tuple[float, Mapping[str, float]] | Outcome"
ScoreFn: TypeAlias = Callable[[str, Item], Scored]


class FakeTransport:
    """Answers every item with `score_fn(scorer_name, item)`.

    Attributes:
        requests: every request received, in order.
    """

    def __init__(
        self, score_fn: ScoreFn, scorers: Sequence[str] = ("fake",), *, fingerprint: str = "fake"
    ) -> None:
        """Make a service.

        Args:
            score_fn: returns a finite score, or a score and its components by name (the same for
                every item), or both and an explanation, or an `ItemError`; a `RewardError` that it
                raises fails the request as a whole.
            scorers: the names that exist; any other is NOT_FOUND.
            fingerprint: of all scorers.
        """
        self._score_fn = score_fn
        self._fingerprint = fingerprint
        self._scorers = tuple(scorers)
        self.requests: list[ScoreRequest] = []

    async def score(
        self, message: Message, timeout_s: float, headers: Headers = ()
    ) -> pb.ScoreResponse:
        answering = asyncio.to_thread(self.answer, pb.ScoreRequest.FromString(message.body))
        try:
            return await within(timeout_s, answering)
        except asyncio.TimeoutError as error:
            raise DeadlineExceeded("the function did not answer in time") from error

    def answer(self, message: pb.ScoreRequest) -> pb.ScoreResponse:
        """Score one request; raises what `score_fn` raises."""
        request = convert.request_from_proto(message)
        self.requests.append(request)
        _validation.check_request(request)
        results = {s.name: self._result(s, request) for s in request.scorers}
        return convert.response_to_proto(ScoreResponse(request.request_id, results))

    async def list_scorers(self, timeout_s: float, headers: Headers = ()) -> pb.ListScorersResponse:
        return self.describe()

    def stream(self) -> None:
        """Requests come one by one."""

    def describe(self) -> pb.ListScorersResponse:
        infos = [
            ScorerInfo(
                name=name,
                version="fake",
                fingerprint=self._fingerprint,
                inputs=("image",),
                transforms=("raw",),
                default_transform="raw",
                output_range=(float("-inf"), float("inf")),
                state="READY",
            )
            for name in self._scorers
        ]
        return convert.infos_to_proto(infos, None)

    async def close(self) -> None:
        """Nothing to release."""

    def _result(self, selector: ScorerSelector, request: ScoreRequest) -> ScorerResult:
        items = request.items
        if selector.name not in self._scorers:
            raise _validation.unknown_scorer(selector.name, self._scorers)
        outcomes = [_split(self._score_fn(selector.name, item)) for item in items]
        scores = tuple(None if isinstance(o, ItemError) else o[0] for o in outcomes)
        found = [o[1] for o in outcomes if not isinstance(o, ItemError)]
        components = {
            name: tuple(None if isinstance(o, ItemError) else o[1][name] for o in outcomes)
            for name in (found[0] if found else ())
        }
        details = tuple(None if isinstance(o, ItemError) else o[2] for o in outcomes)
        return ScorerResult(
            name=selector.name,
            version="fake",
            fingerprint=self._fingerprint,
            scores=scores,
            raw=scores,
            components=components,
            errors={i: o for i, o in enumerate(outcomes) if isinstance(o, ItemError)},
            details=details if request.include_details else None,
            lossy_input=tuple(any(is_lossy(image) for image in item.images) for item in items),
        )


def _split(outcome: Scored) -> ItemError | Outcome:
    if isinstance(outcome, ItemError):
        return outcome
    if not isinstance(outcome, tuple):
        return float(outcome), {}, None
    return float(outcome[0]), outcome[1], outcome[2] if len(outcome) == 3 else None
