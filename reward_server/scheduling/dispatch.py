"""One admitted request: fan it out to the scorers, wait, put the results together."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from reward_client import _tracing
from reward_client._tasks import all_of, outcomes
from reward_client.errors import RewardError, error_for
from reward_client.types import ScoreResponse, ScorerResult
from reward_server.backend import Backend, Order
from reward_server.observability.metrics import Metrics
from reward_server.scheduling.results import failed_result, record_result, whole_request_error
from reward_server.upstream.scorer import UpstreamScorer, score_together


async def dispatch(order: Order, backends: Sequence[Backend], metrics: Metrics) -> ScoreResponse:
    """Score what can be scored; raises RewardError."""
    groups = await all_of([_score(group, order, metrics) for group in _groups(backends)])
    by_name = {name: outcome for group in groups for name, outcome in group.items()}
    found = {backend.name: by_name[backend.name] for backend in backends}
    refused = [outcome for outcome in found.values() if isinstance(outcome, RewardError)]
    if len(refused) == len(found):
        raise _joined(refused)
    results = {
        backend.name: failed_result(backend.info(), outcome, len(order.request.items))
        if isinstance(outcome := found[backend.name], RewardError)
        else outcome
        for backend in backends
    }
    for result in results.values():
        record_result(metrics, result)
    if (error := whole_request_error(results)) is not None:
        raise error
    return ScoreResponse(order.request.request_id, results)


def _groups(backends: Sequence[Backend]) -> Collection[Sequence[Backend]]:
    """Those that are asked with one message, of the same upstream servers, and all others alone."""
    groups: dict[int, list[Backend]] = {}
    for backend in backends:
        owner = backend.servers if isinstance(backend, UpstreamScorer) else backend
        groups.setdefault(id(owner), []).append(backend)
    return groups.values()


async def _score(
    backends: Sequence[Backend], order: Order, metrics: Metrics
) -> dict[str, ScorerResult | RewardError]:
    """Ask a group of backends; those that refuse are left out of it."""
    refusals = {backend.name: backend.refusal() for backend in backends}
    found: dict[str, ScorerResult | RewardError] = {n: r for n, r in refusals.items() if r}
    asked = [backend for backend in backends if backend.name not in found]
    if not asked:
        return found
    names = ",".join(backend.name for backend in asked)
    with _tracing.span("score", attributes={"reward.scorer": names}):
        upstream = [backend for backend in asked if isinstance(backend, UpstreamScorer)]
        if len(upstream) > 1:
            answers = await score_together(upstream, order)
        else:
            answers = await outcomes([asked[0].score(order)])
    seconds = time.monotonic() - order.arrival_s
    for backend, answer in zip(asked, answers, strict=True):
        found[backend.name] = answer
        if not isinstance(answer, RewardError):
            metrics.total_seconds.labels(backend.name).observe(seconds)
    return found


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
