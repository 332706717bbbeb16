"""An order becomes items of a queue, and their answers the result of one scorer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping

from reward_client import _tracing
from reward_client.errors import Code, ItemError, RewardError, error_for
from reward_client.types import ScorerInfo, ScorerResult
from reward_server.backend import Order
from reward_server.scheduling.batching import Job
from reward_server.scheduling.decoding import DecodedItem, missing_input, spec_for
from reward_server.scheduling.queue import Answer, Work
from reward_server.scheduling.results import scorer_result
from reward_server.workers.ipc import Failure, ItemMessage
from reward_server.workers.process import placeholder_refs

_LATE = Answer(
    Failure(Code.DEADLINE_EXCEEDED.value, "the deadline passed before the item was scored")
)


def works_of(
    order: Order, info: ScorerInfo, keys: Iterator[int]
) -> tuple[dict[int, Work], dict[int, ItemError]]:
    """Sort the items of an order; must run in the event loop that serves the queue.

    Args:
        order: with its pixels.
        info: of the scorer.
        keys: for the jobs; unique per queue and increasing.

    Returns:
        Item index -> what is put into the queue, item index -> why it never gets there; together
        they cover every item.

    Raises:
        RewardError: no item can be scored.
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


def gathered(
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
