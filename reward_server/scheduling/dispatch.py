"""One admitted request: fan it out to the scorers, wait, put the results together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from reward_client import _tracing
from reward_client._tasks import all_of
from reward_client.errors import ItemError, RewardError, error_for
from reward_client.types import ScoreRequest, ScoreResponse, ScorerResult
from reward_server.backend import Backend, Order
from reward_server.observability.metrics import Metrics
from reward_server.scheduling.decoding import DecodedItem
from reward_server.scheduling.gather import outcomes
from reward_server.scheduling.results import failed_result, record_result, whole_request_error
from reward_server.upstream.scorer import UpstreamScorer, score_together


@dataclass(frozen=True, slots=True)
class Call:
    """A request and its circumstances.

    Attributes:
        request: checked as a whole; single items may be broken.
        backends: the scorers asked, in the order of the request's selectors.
        arrival_s: when it came, on the monotonic clock.
        client: who asks, for fairness.
        deadline_at_s: on the monotonic clock.
        answered: called with the scorer's name for each item that it has answered.
        via: the servers it came through, outermost first.
    """

    request: ScoreRequest
    backends: Sequence[Backend]
    arrival_s: float
    client: str
    deadline_at_s: float
    answered: Callable[[str], None]
    via: tuple[str, ...] = ()


class Dispatcher:
    """Runs calls."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def run(
        self,
        call: Call,
        decoded: Mapping[int, DecodedItem],
        errors: Mapping[int, ItemError],
    ) -> ScoreResponse:
        """Score what can be scored.

        Args:
            call: the request.
            decoded: item index -> pixels, if any of the call's backends needs them.
            errors: item index -> why no scorer can score it.

        Raises:
            RewardError: nothing could be done for any item.
        """
        orders = [
            Order(
                call.request,
                selector,
                decoded,
                errors,
                call.client,
                call.deadline_at_s,
                call.via,
                partial(call.answered, selector.name),
            )
            for selector in call.request.scorers
        ]
        groups = _groups(call.backends)
        answers = await all_of(
            [
                self._score([call.backends[i] for i in group], [orders[i] for i in group], call)
                for group in groups
            ]
        )
        by_index = {
            index: answer
            for group, of_group in zip(groups, answers, strict=True)
            for index, answer in zip(group, of_group, strict=True)
        }
        found = [by_index[index] for index in range(len(orders))]
        refused = [outcome for outcome in found if isinstance(outcome, RewardError)]
        if len(refused) == len(found):
            raise _joined(refused)
        results = {
            backend.name: failed_result(backend.info(), outcome, len(call.request.items))
            if isinstance(outcome, RewardError)
            else outcome
            for backend, outcome in zip(call.backends, found, strict=True)
        }
        for result in results.values():
            record_result(self._metrics, result)
        if (error := whole_request_error(results)) is not None:
            raise error
        return ScoreResponse(call.request.request_id, results)

    async def _score(
        self, backends: Sequence[Backend], orders: Sequence[Order], call: Call
    ) -> list[ScorerResult | RewardError]:
        """Ask a group of backends; those that refuse are left out of it."""
        found: list[ScorerResult | RewardError | None] = [b.refusal() for b in backends]
        asked = [index for index, refusal in enumerate(found) if refusal is None]
        names = [backends[index].name for index in asked]
        if asked:
            with _tracing.span("score", attributes={"reward.scorer": ",".join(names)}):
                answers = await _ask([backends[i] for i in asked], [orders[i] for i in asked])
            seconds = time.monotonic() - call.arrival_s
            for index, answer in zip(asked, answers, strict=True):
                found[index] = answer
                if not isinstance(answer, RewardError):
                    self._metrics.total_seconds.labels(backends[index].name).observe(seconds)
        return [outcome for outcome in found if outcome is not None]


def _groups(backends: Sequence[Backend]) -> list[list[int]]:
    """Positions of backends that are asked with one message, those of the same upstream servers."""
    groups: dict[int, list[int]] = {}
    for index, backend in enumerate(backends):
        owner = backend.servers if isinstance(backend, UpstreamScorer) else backend
        groups.setdefault(id(owner), []).append(index)
    return list(groups.values())


async def _ask(
    backends: Sequence[Backend], orders: Sequence[Order]
) -> list[ScorerResult | RewardError]:
    upstream = [backend for backend in backends if isinstance(backend, UpstreamScorer)]
    if len(upstream) > 1:
        return await score_together(upstream, orders)
    return await outcomes([backends[0].score(orders[0])])


def _joined(errors: Sequence[RewardError]) -> RewardError:
    """One error for a request that every scorer turned away: retryable if any of them is."""
    first = next((error for error in errors if error.retryable), errors[0])
    items = {index: item for error in reversed(errors) for index, item in error.items.items()}
    return error_for(
        first.code,
        first.message,
        retryable=first.retryable,
        retry_after_s=first.retry_after_s,
        items=items,
    )
