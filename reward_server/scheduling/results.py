"""Puts per-item outcomes together into the columns of a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reward_client.errors import Code, ItemError, RewardError, error_for
from reward_client.types import ScorerInfo, ScorerResult
from reward_server.observability.metrics import Metrics
from reward_server.scheduling.queue import Answer
from reward_server.workers.ipc import Score

# If every item of every scorer met one of these, the request as a whole did.
_WHOLE_REQUEST = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED})


def scorer_result(
    info: ScorerInfo,
    answers: Mapping[int, Answer],
    errors: Mapping[int, ItemError],
    lossy: Sequence[bool],
    *,
    details: bool,
) -> ScorerResult:
    """Build the result of one scorer.

    Args:
        info: of the scorer.
        answers: item index -> what its worker said.
        errors: item index -> why it never got to a worker; disjoint from `answers`.
        lossy: per item.
        details: whether the caller asked for details.
    """
    failures = dict(errors)
    scores: dict[int, Score] = {}
    for index, answer in answers.items():
        outcome = answer.outcome
        if isinstance(outcome, Score):
            scores[index] = outcome
        else:
            failures[index] = ItemError(Code(outcome.code), outcome.message, outcome.retryable)
    fingerprint = _fingerprint(info, answers)
    for index, answer in answers.items():
        if index in scores and answer.fingerprint not in ("", fingerprint):
            del scores[index]
            message = "scored while the scorer was replaced, by another build of it: send it again"
            failures[index] = ItemError(Code.UNAVAILABLE, message, retryable=True)
    names = sorted({name for score in scores.values() for name in score.components})
    for index, score in list(scores.items()):
        lacking = [name for name in names if name not in score.components]
        if lacking:
            del scores[index]
            message = f"the scorer left out the component {lacking[0]!r} for this item"
            failures[index] = ItemError(Code.INTERNAL, message)
    n = len(lossy)
    found = [scores.get(index) for index in range(n)]
    batches = {a.batch: a.compute_s for a in answers.values() if a.batch}
    return ScorerResult(
        name=info.name,
        version=info.version,
        fingerprint=fingerprint,
        scores=tuple(score and score.score for score in found),
        raw=tuple(score and score.raw for score in found),
        components={
            name: tuple(score and score.components[name] for score in found) for name in names
        },
        errors=dict(sorted(failures.items())),
        details=_details(found) if details else None,
        lossy_input=tuple(lossy),
        queue_ms=1e3 * max((a.queue_s for a in answers.values()), default=0.0),
        compute_ms=1e3 * sum(batches.values()),
    )


def failed_result(info: ScorerInfo, error: RewardError, n: int) -> ScorerResult:
    """The result of a scorer that did nothing for any of the N items."""
    whole = ItemError(error.code, error.message, error.retryable)
    return ScorerResult(
        name=info.name,
        version=info.version,
        fingerprint=info.fingerprint,
        scores=(None,) * n,
        raw=(None,) * n,
        errors={index: error.items.get(index, whole) for index in range(n)},
        lossy_input=(False,) * n,
    )


def _fingerprint(info: ScorerInfo, answers: Mapping[int, Answer]) -> str:
    """Of the workers that computed the scores; where they differ, of the one that serves now."""
    found = {a.fingerprint for a in answers.values() if a.fingerprint}
    return found.pop() if len(found) == 1 else info.fingerprint


def _details(found: Sequence[Score | None]) -> tuple[Mapping[str, Any] | None, ...]:
    return tuple(score.details if score else None for score in found)


def whole_request_error(results: Mapping[str, ScorerResult]) -> RewardError | None:
    """The error of a request for which nothing at all could be done, or None."""
    errors: dict[int, ItemError] = {}
    for found in results.values():
        if len(found.errors) != len(found.scores):
            return None
        errors = {**found.errors, **errors}
    kinds = {(error.code, error.retryable) for r in results.values() for error in r.errors.values()}
    if len(kinds) != 1:
        return None
    code, retryable = next(iter(kinds))
    if code not in _WHOLE_REQUEST:
        return None
    message = next(iter(errors.values())).message
    return error_for(code, message, retryable=retryable, items=errors)


def record_result(metrics: Metrics, found: ScorerResult) -> None:
    """Count the items of a result and the distribution of its scores."""
    for error in found.errors.values():
        metrics.items.labels(found.name, error.code.value).inc()
    metrics.items.labels(found.name, Code.OK.value).inc(len(found.scores) - len(found.errors))
    for score in found.scores:
        if score is not None:
            metrics.observe_score(found.name, score)
