"""One admitted request: fan its decoded items out to the scorers, wait, gather the results."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reward_client.errors import RewardError, error_for
from reward_client.types import (
    Code,
    ItemError,
    ScoreRequest,
    ScoreResponse,
    ScorerResult,
    ScorerSelector,
)
from reward_server import gathering
from reward_server.batching import Job
from reward_server.decoding import DecodedItem, missing_input, spec_for
from reward_server.ipc import Failure, ItemMessage
from reward_server.metrics import Metrics
from reward_server.pool import ScorerPool
from reward_server.process import placeholder_refs
from reward_server.queueing import Answer, Work

_STARTING_RETRY_AFTER_S = 1.0
_LATE = Answer(
    Failure(Code.DEADLINE_EXCEEDED.value, "the deadline passed before the item was scored")
)


@dataclass(frozen=True, slots=True)
class Call:
    """A request and its circumstances.

    Attributes:
        request: checked as a whole; single items may be broken.
        pools: the scorers asked, in the order of the request's selectors.
        client: who asks, for fairness.
        deadline_at_s: on the monotonic clock.
    """

    request: ScoreRequest
    pools: Sequence[ScorerPool]
    client: str
    deadline_at_s: float


@dataclass(frozen=True, slots=True)
class _Share:
    """What one scorer has to do: items by index, and those that never get to it."""

    pool: ScorerPool
    works: Mapping[int, Work]
    errors: Mapping[int, ItemError]


class Dispatcher:
    """Runs calls; keys of jobs are unique per dispatcher."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._keys = itertools.count()

    async def run(
        self,
        call: Call,
        decoded: Mapping[int, DecodedItem],
        errors: Mapping[int, ItemError],
    ) -> ScoreResponse:
        """Score what can be scored.

        Args:
            call: the request.
            decoded: item index -> pixels.
            errors: item index -> why it has none; with `decoded` it covers every item.

        Raises:
            RewardError: nothing could be done for any item.
        """
        shares = [
            self._share(call, pool, selector, decoded, errors)
            for pool, selector in zip(call.pools, call.request.scorers, strict=True)
        ]
        pending = [work.answer for share in shares for work in share.works.values()]
        if not pending:
            raise _nothing_to_do(shares)
        try:
            for share in shares:
                share.pool.queue.put(share.works.values())
            await asyncio.wait(pending, timeout=call.deadline_at_s - time.monotonic())
            lossy = [i in decoded and decoded[i].is_lossy for i in range(len(call.request.items))]
            details = call.request.include_details
            results = {s.pool.name: _gathered(s, lossy, details=details) for s in shares}
        finally:
            for share in shares:
                share.pool.queue.withdraw(share.works.values())
        for result in results.values():
            gathering.record(self._metrics, result)
        if (error := gathering.whole_request_error(results)) is not None:
            raise error
        return ScoreResponse(call.request.request_id, results)

    def _share(
        self,
        call: Call,
        pool: ScorerPool,
        selector: ScorerSelector,
        decoded: Mapping[int, DecodedItem],
        errors: Mapping[int, ItemError],
    ) -> _Share:
        if (refusal := pool.refusal()) is not None:
            error = ItemError(refusal.code, refusal.message, refusal.retryable)
            return _Share(pool, {}, dict.fromkeys(range(len(call.request.items)), error))
        failed, works = dict(errors), {}
        info = pool.info()
        transform = selector.transform or info.default_transform
        for index, found in decoded.items():
            if problem := missing_input(found.item, pool.name, info.inputs):
                failed[index] = problem
            else:
                works[index] = self._work(call, found, info.inputs, transform)
        return _Share(pool, works, failed)

    def _work(self, call: Call, found: DecodedItem, inputs: Sequence[str], transform: str) -> Work:
        return Work(
            job=Job(
                key=next(self._keys),
                client=call.client,
                priority=call.request.priority,
                pixels=found.pixels,
                arrival_s=time.monotonic(),
                deadline_s=call.deadline_at_s,
            ),
            message=ItemMessage(
                prompt=found.item.prompt,
                images=placeholder_refs(found.images),
                references=placeholder_refs(found.references),
                spec=spec_for(found.item, inputs),
                transform=transform,
            ),
            images=(*found.images, *found.references),
            details=call.request.include_details,
            answer=asyncio.get_running_loop().create_future(),
        )


def _gathered(share: _Share, lossy: Sequence[bool], *, details: bool) -> ScorerResult:
    answers = {
        index: work.answer.result() if work.answer.done() else _LATE
        for index, work in share.works.items()
    }
    return gathering.result(share.pool, answers, share.errors, lossy, details=details)


def _nothing_to_do(shares: Sequence[_Share]) -> RewardError:
    """The error of a request none of whose items got to a worker: retryable if any item is."""
    every = [(index, error) for share in shares for index, error in share.errors.items()]
    first = next((error for _, error in every if error.retryable), every[0][1])
    items = dict(reversed(every))
    is_input = first.code is Code.INVALID_ARGUMENT and len(items) > 1
    return error_for(
        first.code,
        first.message + (f" (and {len(items) - 1} more items)" if is_input else ""),
        retryable=first.retryable,
        retry_after_s=_STARTING_RETRY_AFTER_S if first.retryable else None,
        items=items,
    )
