"""The waiting items of one scorer: state and clock around the pure scheduler in `batching`."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from reward_client._tasks import within
from reward_client.errors import Code
from reward_server.observability.metrics import Metrics
from reward_server.scheduling.batching import BatchLimits, FairShares, Job, Plan, plan
from reward_server.workers.ipc import BatchDone, Failure, ItemMessage, Score

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

MAX_CRASHES = 2


@dataclass(frozen=True, slots=True)
class Worker:
    replica: str
    device: str
    pid: int
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Ran:
    """When and where a batch ran, for traces; times are on the monotonic clock.

    Attributes:
        worker: the process.
        taken_s: when it left the queue.
        begin_s: when the worker began to compute.
        done_s: when its answer had come back.
        items: of all requests together.
        traces: the spans its items belong to, each once.
    """

    worker: Worker
    taken_s: float
    begin_s: float
    done_s: float
    items: int
    traces: tuple[SpanContext, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one item, with the batch it was computed in.

    Attributes:
        outcome: a score, or why there is none.
        batch: number of the batch, unique per queue; 0 if it never ran.
        queue_s: seconds waited for the batch.
        compute_s: seconds the whole batch took.
        fingerprint: of the worker that computed it; empty if none did.
        ran: more about the batch, if any of its items is traced.
    """

    outcome: Score | Failure
    batch: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    fingerprint: str = ""
    ran: Ran | None = None


@dataclass(slots=True, eq=False)
class Work:
    """One item on its way through one scorer; `answer` is resolved exactly once."""

    job: Job
    message: ItemMessage
    images: Sequence[NDArray[np.uint8]]
    details: bool
    answer: asyncio.Future[Answer]
    trace: SpanContext | None = None
    crashes: int = 0
    taken_s: float = field(default=math.nan)

    def resolve(self, answer: Answer) -> bool:
        """Set the answer unless it was cancelled; returns whether it was set."""
        if self.answer.done():
            return False
        self.answer.set_result(answer)
        return True


class Signal:
    """Wakes all that wait for it now."""

    def __init__(self) -> None:
        self.next = asyncio.Event()

    def wake(self) -> None:
        """Set the event that is waited for, and replace it."""
        self.next.set()
        self.next = asyncio.Event()


class WorkQueue:
    """What waits for one scorer; several workers take from it (`next_batches`)."""

    def __init__(self, name: str, metrics: Metrics, changed: Signal | None = None) -> None:
        self.changed = changed or Signal()
        self._name = name
        self._metrics = metrics
        self._waiting: dict[int, Work] = {}
        self._running = 0
        self._shares = FairShares()
        self._batches = itertools.count(1)

    @property
    def waiting_items(self) -> int:
        """Items that no worker has taken."""
        return len(self._waiting)

    def oldest_wait_s(self) -> float:
        """Seconds the item that waits longest has waited; 0 if none waits."""
        arrivals_s = [work.job.arrival_s for work in self._waiting.values()]
        return time.monotonic() - min(arrivals_s) if arrivals_s else 0.0

    def put(self, works: Iterable[Work]) -> None:
        self._waiting.update((work.job.key, work) for work in works)
        self._notify()

    def withdraw(self, works: Iterable[Work]) -> None:
        """Drop cancelled items; those that run already are computed and ignored."""
        for work in works:
            self._waiting.pop(work.job.key, None)
            if not work.answer.done():
                work.answer.cancel()
        self._notify()

    def plan(self, limits: BatchLimits, now_s: float) -> Plan:
        """The next batch, if it is time for one; items whose deadline has passed fail."""
        decision = plan([w.job for w in self._waiting.values()], limits, self._shares, now_s)
        for key in decision.expired:
            self._fail(self._waiting.pop(key), _EXPIRED)
        self._gauge()
        return decision

    def runs_alone(self, decision: Plan) -> bool:
        """Whether a planned batch is an item that must run alone."""
        return any(self._waiting[key].job.alone for key in decision.batch)

    def take(self, decision: Plan, limits: BatchLimits, now_s: float) -> list[Work]:
        """Take a planned batch; if it is not time for one yet, what waits nevertheless."""
        if not decision.batch:
            decision = self.plan(replace(limits, max_wait_s=0.0), now_s)
        self._shares = decision.shares
        works = [self._waiting.pop(key) for key in decision.batch]
        if not works:
            return works
        for work in works:
            work.taken_s = now_s
            self._metrics.queue_seconds.labels(self._name).observe(now_s - work.job.arrival_s)
        self._metrics.batch_items.labels(self._name).observe(len(works))
        fill = limits.fill([work.job for work in works])
        self._metrics.batch_fill.labels(self._name).observe(fill)
        self._running += len(works)
        self._gauge()
        return works

    def finish(self, works: Sequence[Work], done: BatchDone, worker: Worker | None = None) -> None:
        """Hand out the outcomes of a batch that was taken, and that `worker` ran."""
        number = next(self._batches)
        ran = _ran(works, done, worker)
        fingerprint = worker.fingerprint if worker else ""
        self._metrics.compute_seconds.labels(self._name).observe(done.compute_s)
        for work, outcome in zip(works, done.outcomes, strict=True):
            queue_s = work.taken_s - work.job.arrival_s
            work.resolve(Answer(outcome, number, queue_s, done.compute_s, fingerprint, ran))
        self._running -= len(works)
        self._gauge()

    def requeue(self, works: Sequence[Work], reason: str) -> int:
        """Put back what a dead worker held; an item that saw two die fails instead.

        Whatever comes back runs alone, so that an item that kills its worker takes no other with
        it. Returns how many were put back.
        """
        self._running -= len(works)
        kept = 0
        for work in works:
            work.crashes += 1
            if work.answer.done():
                continue
            if work.crashes >= MAX_CRASHES:
                message = f"two workers were lost with this item, the second one alone: {reason}"
                self._fail(work, Failure(Code.UNAVAILABLE.value, message, retryable=True))
                continue
            work.job = replace(work.job, alone=True)
            self._waiting[work.job.key] = work
            kept += 1
        self._notify()
        return kept

    def fail_all(self, reason: str, *, retryable: bool) -> None:
        """Fail everything that waits: there will be no worker, or not soon."""
        failure = Failure(Code.UNAVAILABLE.value, reason, retryable)
        for work in self._waiting.values():
            self._fail(work, failure)
        self._waiting.clear()
        self._notify()

    def _fail(self, work: Work, failure: Failure) -> None:
        work.resolve(Answer(failure, queue_s=time.monotonic() - work.job.arrival_s))

    def _notify(self) -> None:
        self._gauge()
        self.changed.wake()

    def _gauge(self) -> None:
        self._metrics.queue_items.labels(self._name).set(len(self._waiting) + self._running)


async def next_batches(asked: Sequence[tuple[WorkQueue, BatchLimits]]) -> list[list[Work]]:
    """Wait for the next batches of a free worker; in each, items are in order of arrival.

    When a batch of one scorer has to go, what waits for the others goes with it: they may have the
    same pictures. An item that must run alone is the only one.

    Args:
        asked: the queues of the worker's scorers, which share a `Signal`, with their limits.

    Returns:
        A batch per queue; some may be empty, but not all.
    """
    while True:
        changed, now_s = asked[0][0].changed.next, time.monotonic()
        planned = [(queue, limits, queue.plan(limits, now_s)) for queue, limits in asked]
        if any(decision.batch for *_, decision in planned):
            lone = [queue for queue, _, decision in planned if queue.runs_alone(decision)]
            return [
                [] if lone and queue is not lone[0] else queue.take(decision, limits, now_s)
                for queue, limits, decision in planned
            ]
        times_s = [d.wake_at_s for *_, d in planned if d.wake_at_s not in (None, math.inf)]
        timeout_s = min(times_s) - now_s if times_s else None
        with contextlib.suppress(asyncio.TimeoutError):
            await within(timeout_s, changed.wait())


def _ran(works: Sequence[Work], done: BatchDone, worker: Worker | None) -> Ran | None:
    traces = {work.trace.span_id: work.trace for work in works if work.trace is not None}
    if worker is None or not traces:
        return None
    return Ran(
        worker=worker,
        taken_s=works[0].taken_s,
        begin_s=done.begin_s,
        done_s=time.monotonic(),
        items=len(works),
        traces=tuple(traces.values()),
    )


_EXPIRED = Failure(
    Code.DEADLINE_EXCEEDED.value, "the deadline passed while the item waited for a worker"
)
