"""One admitted request: fan it out to the scorers, wait, put the results together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from reward_client import _tracing
from reward_client.errors import ItemError, RewardError, error_for
from reward_client.types import ScoreRequest, ScoreResponse, ScorerResult
from reward_server.backend import Backend, Order
from reward_server.observability.metrics import Metrics
from reward_server.scheduling.decoding import DecodedItem
from reward_server.scheduling.gather import outcomes
from reward_server.scheduling.results import failed_result, record_result, whole_request_error


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
        found = await outcomes(
            [
                self._score(backend, order, call.arrival_s)
                for backend, order in zip(call.backends, orders, strict=True)
            ]
        )
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

    async def _score(self, backend: Backend, order: Order, arrival_s: float) -> ScorerResult:
        if (refusal := backend.refusal()) is not None:
            raise refusal
        with _tracing.span("score", attributes={"reward.scorer": backend.name}):
            result = await backend.score(order)
        seconds = time.monotonic() - arrival_s
        self._metrics.total_seconds.labels(backend.name).observe(seconds)
        return result


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
