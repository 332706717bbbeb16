"""An order becomes items of a queue, and their answers the columns of a result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence

from reward_client import _tracing
from reward_client.errors import Code, ItemError, RewardError, error_for
from reward_client.types import ScorerInfo, ScorerResult
from reward_server.backend import Order
from reward_server.observability.metrics import Metrics
from reward_server.scheduling.batching import Job
from reward_server.scheduling.decoding import DecodedItem, missing_input, spec_for
from reward_server.scheduling.queue import Answer, Work
from reward_server.workers.ipc import Failure, ItemMessage, Score
from reward_server.workers.process import placeholder_refs

# If every item of every scorer met one of these, the request as a whole did.
_WHOLE_REQUEST = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED})
_LATE = Answer(
    Failure(Code.DEADLINE_EXCEEDED.value, "the deadline passed before the item was scored")
)


def works_of(
    order: Order, info: ScorerInfo, keys: Iterator[int]
) -> tuple[dict[int, Work], dict[int, ItemError]]:
    """Sort the items of an order, in the loop that serves the queue; raises RewardError.

    Returns:
        Item index -> what is put into the queue, item index -> why it never gets there; together
        they cover every item.
    """
    errors, works = dict(order.errors), {}
    trace = _tracing.current_context()
    transform = order.selector(info.name).transform or info.default_transform
    for index, found in order.decoded.items():
        if problem := missing_input(found.item, info.name, info.inputs):
            errors[index] = problem
        else:
            works[index] = _work(order, found, info, transform, next(keys))
            works[index].trace = trace
    if not works:
        raise nothing_to_do(errors)
    return works, errors


def result_so_far(
    order: Order, works: Mapping[int, Work], errors: Mapping[int, ItemError], info: ScorerInfo
) -> ScorerResult:
    """The result, as far as answers have come."""
    answers = {
        index: work.answer.result() if work.answer.done() else _LATE
        for index, work in works.items()
    }
    n, decoded = len(order.request.items), order.decoded
    lossy = [index in decoded and decoded[index].is_lossy for index in range(n)]
    return scorer_result(info, answers, errors, lossy, details=order.request.include_details)


def nothing_to_do(errors: Mapping[int, ItemError]) -> RewardError:
    """The error of an order none of whose items can be scored: retryable if any item is."""
    first = next((error for error in errors.values() if error.retryable), None)
    first = first or next(iter(errors.values()))
    is_input = first.code is Code.INVALID_ARGUMENT and len(errors) > 1
    more = f" (and {len(errors) - 1} more items)" if is_input else ""
    return error_for(first.code, first.message + more, retryable=first.retryable, items=errors)


def _work(order: Order, found: DecodedItem, info: ScorerInfo, transform: str, key: int) -> Work:
    answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    answer.add_done_callback(lambda done: None if done.cancelled() else order.answered(info.name))
    return Work(
        job=Job(
            key=key,
            client=order.client,
            priority=order.request.priority,
            pixels=found.pixels,
            arrival_s=time.monotonic(),
            deadline_at_s=order.deadline_at_s,
        ),
        message=ItemMessage(
            prompt=found.item.prompt,
            images=placeholder_refs(found.images),
            references=placeholder_refs(found.references),
            spec=spec_for(found.item, info.inputs),
            transform=transform,
        ),
        images=(*found.images, *found.references),
        details=order.request.include_details,
        answer=answer,
    )


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
        details=tuple(s.details if s else None for s in found) if details else None,
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
