"""Spans of an order's items in queue and worker, recorded afterwards from their times.

The worker needs no OpenTelemetry: it reports when it began and how long it took, on the monotonic
clock that the processes of a host share. A batch serves several requests, each of which gets its
own span of it, so that every trace is whole; links lead to the others that were in the same batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from reward_client import _tracing
from reward_server.scheduling.queue import Answer, Ran, Work

_MAX_LINKS = 32


def record(works: Iterable[Work]) -> None:
    """Record spans under the current one for the batches that some finished items were in."""
    if _tracing.current_context() is None:
        return
    answers = [w.answer.result() for w in works if w.answer.done() and not w.answer.cancelled()]
    first: dict[int, tuple[Answer, Ran]] = {}
    counts: dict[int, int] = {}
    for answer in answers:
        if answer.ran is not None:
            first.setdefault(answer.batch, (answer, answer.ran))
            counts[answer.batch] = counts.get(answer.batch, 0) + 1
    for number, (answer, ran) in first.items():
        _record_batch(answer, ran, counts[number])


def _record_batch(answer: Answer, ran: Ran, own_items: int) -> None:
    trace = _tracing.api()
    tracer = trace.get_tracer(_tracing.INSTRUMENTATION)
    own = _tracing.current_context()
    wall_offset_s = time.time() - time.monotonic()

    def nanoseconds(monotonic_s: float) -> int:
        return int(1e9 * (monotonic_s + wall_offset_s))

    queue = tracer.start_span("queue", start_time=nanoseconds(ran.taken_s - answer.queue_s))
    queue.end(nanoseconds(ran.taken_s))
    batch: Any = tracer.start_span(
        "batch",
        start_time=nanoseconds(ran.taken_s),
        attributes={
            "reward.batch": answer.batch,
            "reward.batch.items": ran.items,
            "reward.batch.own_items": own_items,
        },
        links=[
            trace.Link(other)
            for other in ran.traces[:_MAX_LINKS]
            if own is None or other.span_id != own.span_id
        ],
    )
    compute = tracer.start_span(
        "compute",
        context=trace.set_span_in_context(batch),
        start_time=nanoseconds(ran.begin_s),
        attributes={
            "reward.replica": ran.worker.replica,
            "reward.device": ran.worker.device,
            "process.pid": ran.worker.pid,
        },
    )
    compute.end(nanoseconds(ran.begin_s + answer.compute_s))
    batch.end(nanoseconds(ran.done_s))
