"""The reward service itself, without any transport: validate, admit, fan out, gather, drain."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from reward_client.codec import DecodeLimits
from reward_client.errors import (
    InvalidArgument,
    NotFound,
    RewardError,
    Unavailable,
    error_for,
)
from reward_client.types import (
    Code,
    ItemError,
    ScoreRequest,
    ScoreResponse,
    ScorerInfo,
    ScorerSelector,
)
from reward_client.validation import check_request, unknown_scorer
from reward_server import gathering
from reward_server.admission import Admission, Ticket
from reward_server.batching import Job
from reward_server.config import Config
from reward_server.decoding import (
    DecodedItem,
    decode_item,
    missing_input,
    spec_for,
    wire_bytes,
)
from reward_server.ipc import Failure, ItemMessage
from reward_server.metrics import Metrics
from reward_server.pool import ScorerPool
from reward_server.process import placeholder_refs
from reward_server.queueing import Answer, Work

T = TypeVar("T")
_DRAINING_RETRY_AFTER_S = 1.0


@dataclass(slots=True)
class _Flight:
    """A request in flight and how many callers wait for it."""

    request: ScoreRequest
    task: asyncio.Task[ScoreResponse]
    waiters: int = 0


class RewardService:
    """Every transport is a thin layer over `score`, `infos` and `state`."""

    def __init__(self, config: Config, metrics: Metrics) -> None:
        server = config.server
        self.config = config
        self.metrics = metrics
        self._listeners: list[Callable[[], None]] = []
        self._pools = {
            name: ScorerPool(name, section, metrics, self._notify)
            for name, section in config.scorers.items()
        }
        self._admission = Admission(server.max_queue_items, server.max_queue_bytes)
        self._limits = DecodeLimits(
            max_bytes=server.max_image_bytes, max_pixels=server.max_image_pixels
        )
        self._threads = ThreadPoolExecutor(server.decode_threads, thread_name_prefix="decode")
        self._flights: dict[str, _Flight] = {}
        self._keys = itertools.count()
        self._draining = False

    def start(self) -> None:
        """Start all workers; returns at once, `infos` tells how they are doing."""
        for pool in self._pools.values():
            pool.start()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever the state of a scorer changes."""
        self._listeners.append(listener)

    def infos(self) -> tuple[ScorerInfo, ...]:
        """All scorers, ready or not."""
        return tuple(pool.info() for pool in self._pools.values())

    def is_ready(self) -> bool:
        """Whether every scorer is READY."""
        return all(pool.state == "READY" for pool in self._pools.values())

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Run what would hold up the event loop (parsing, decoding) in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait for those in flight; returns whether all finished."""
        self._draining = True
        for pool in self._pools.values():
            pool.drain()
        tasks = [flight.task for flight in self._flights.values()]
        if not tasks:
            return True
        _, pending = await asyncio.wait(tasks, timeout=timeout_s)
        return not pending

    async def stop(self) -> None:
        """Stop the workers; requests still in flight fail."""
        self._draining = True
        await asyncio.gather(*(pool.stop() for pool in self._pools.values()))
        for flight in list(self._flights.values()):
            flight.task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def score(
        self, request: ScoreRequest, *, client: str, deadline_s: float | None = None
    ) -> ScoreResponse:
        """Score a request, or join the same request if it is in flight already.

        Cancelling the last caller cancels the work.

        Args:
            request: as it arrived; nothing about it has been checked.
            client: who asks, for fairness.
            deadline_s: seconds from now after which nobody wants the answer.

        Raises:
            RewardError: nothing could be done for any item.
        """
        if self._draining:
            raise Unavailable(
                "the server is shutting down: try again, or another replica",
                retry_after_s=_DRAINING_RETRY_AFTER_S,
            )
        if not request.request_id:
            request = replace(request, request_id=uuid.uuid4().hex)
        flight = self._flights.get(request.request_id)
        if flight is None:
            flight = self._take_off(request, client, deadline_s)
        elif flight.request != request:
            raise InvalidArgument(
                f"request_id {request.request_id!r} is in flight with other content:"
                " choose a new id for every new request"
            )
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if flight.waiters == 0:
                # A retry must not join what is about to be cancelled.
                self._forget(flight)
                flight.task.cancel()

    def _take_off(self, request: ScoreRequest, client: str, deadline_s: float | None) -> _Flight:
        allowed_s = self.config.server.default_deadline_s if deadline_s is None else deadline_s
        deadline_at_s = time.monotonic() + allowed_s
        task = asyncio.create_task(self._run(request, client, deadline_at_s))
        flight = _Flight(request, task)
        self._flights[request.request_id] = flight

        task.add_done_callback(lambda _: self._forget(flight))
        return flight

    def _forget(self, flight: _Flight) -> None:
        if self._flights.get(flight.request.request_id) is flight:
            del self._flights[flight.request.request_id]

    async def _run(self, request: ScoreRequest, client: str, deadline_at_s: float) -> ScoreResponse:
        broken = self._check(request)
        pools = [self._select(selector) for selector in request.scorers]
        places = len(request.items) * len(pools)
        with self._admission.admit(places, wire_bytes(request.items)) as ticket:
            self._gauge()
            try:
                return await self._run_admitted(
                    request, pools, broken, ticket, client, deadline_at_s
                )
            finally:
                asyncio.get_running_loop().call_soon(self._gauge)

    async def _run_admitted(
        self,
        request: ScoreRequest,
        pools: Sequence[ScorerPool],
        broken: Mapping[int, ItemError],
        ticket: Ticket,
        client: str,
        deadline_at_s: float,
    ) -> ScoreResponse:
        decoded, errors = await self._decode(request, broken)
        ticket.grow(sum(3 * found.pixels for found in decoded.values()))
        errors_by_pool: dict[str, dict[int, ItemError]] = {}
        works_by_pool: dict[str, dict[int, Work]] = {}
        for pool, selector in zip(pools, request.scorers, strict=True):
            errors_by_pool[pool.name], works_by_pool[pool.name] = self._works(
                request, pool, selector, decoded, errors, client, deadline_at_s
            )
        works = [work for group in works_by_pool.values() for work in group.values()]
        if not works:
            raise _nothing_to_do(errors_by_pool)
        try:
            for pool in pools:
                pool.queue.put(works_by_pool[pool.name].values())
            await asyncio.wait(
                [work.answer for work in works], timeout=deadline_at_s - time.monotonic()
            )
            lossy = [i in decoded and decoded[i].is_lossy for i in range(len(request.items))]
            results = {}
            for pool in pools:
                group = works_by_pool[pool.name].items()
                answers = {i: w.answer.result() if w.answer.done() else _LATE for i, w in group}
                failed = errors_by_pool[pool.name]
                results[pool.name] = gathering.result(
                    pool, answers, failed, lossy, details=request.include_details
                )
                gathering.record(self.metrics, results[pool.name])
        finally:
            for pool in pools:
                pool.queue.withdraw(works_by_pool[pool.name].values())
        if (error := gathering.whole_request_error(results)) is not None:
            raise error
        return ScoreResponse(request.request_id, results)

    def _check(self, request: ScoreRequest) -> Mapping[int, ItemError]:
        """Raise if the whole request is wrong, else return the items that are."""
        limit = self.config.server.max_items
        if len(request.items) > limit:
            raise InvalidArgument(
                f"the request has {len(request.items)} items, the limit is {limit}: split it"
            )
        try:
            check_request(request)
        except InvalidArgument as error:
            if not error.items or len(error.items) == len(request.items):
                raise
            return error.items
        return {}

    def _select(self, selector: ScorerSelector) -> ScorerPool:
        pool = self._pools.get(selector.name)
        if pool is None:
            raise unknown_scorer(selector.name, sorted(self._pools))
        if pool.described is None:
            return pool
        info = pool.info()
        if selector.version not in ("", info.version):
            raise NotFound(
                f"scorer {selector.name!r} is served in version {info.version!r},"
                f" not {selector.version!r}"
            )
        if selector.transform and selector.transform not in info.transforms:
            raise NotFound(
                f"scorer {selector.name!r} has no transform {selector.transform!r}:"
                f" available are {', '.join(info.transforms)}"
            )
        return pool

    async def _decode(
        self, request: ScoreRequest, broken: Mapping[int, ItemError]
    ) -> tuple[dict[int, DecodedItem], dict[int, ItemError]]:
        good = [i for i in range(len(request.items)) if i not in broken]
        found = await asyncio.gather(
            *(
                self.in_thread(lambda item=request.items[i]: decode_item(item, self._limits))
                for i in good
            )
        )
        decoded, errors = {}, dict(broken)
        for index, outcome in zip(good, found, strict=True):
            if isinstance(outcome, ItemError):
                errors[index] = outcome
            else:
                decoded[index] = outcome
        return decoded, errors

    def _works(
        self,
        request: ScoreRequest,
        pool: ScorerPool,
        selector: ScorerSelector,
        decoded: Mapping[int, DecodedItem],
        errors: Mapping[int, ItemError],
        client: str,
        deadline_at_s: float,
    ) -> tuple[dict[int, ItemError], dict[int, Work]]:
        refusal = pool.refusal()
        if refusal is not None:
            error = ItemError(refusal.code, refusal.message, refusal.retryable)
            return dict.fromkeys(range(len(request.items)), error), {}
        failed, works = dict(errors), {}
        info, loop, now_s = pool.info(), asyncio.get_running_loop(), time.monotonic()
        for index, found in decoded.items():
            if problem := missing_input(found.item, pool.name, info.inputs):
                failed[index] = problem
                continue
            works[index] = Work(
                job=Job(
                    key=next(self._keys),
                    client=client,
                    priority=request.priority,
                    pixels=found.pixels,
                    arrival_s=now_s,
                    deadline_s=deadline_at_s,
                ),
                message=ItemMessage(
                    prompt=found.item.prompt,
                    images=placeholder_refs(found.images),
                    references=placeholder_refs(found.references),
                    spec=spec_for(found.item, info.inputs),
                    transform=selector.transform or info.default_transform,
                ),
                images=(*found.images, *found.references),
                details=request.include_details,
                answer=loop.create_future(),
            )
        return failed, works

    def _gauge(self) -> None:
        self.metrics.admitted_bytes.set(self._admission.bytes)

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()


_LATE = Answer(
    Failure(Code.DEADLINE_EXCEEDED.value, "the deadline passed before the item was scored")
)


def _nothing_to_do(errors_by_pool: Mapping[str, Mapping[int, ItemError]]) -> RewardError:
    """The error of a request none of whose items got to a worker: retryable if any item is."""
    every = [(i, error) for errors in errors_by_pool.values() for i, error in errors.items()]
    first = next((error for _, error in every if error.retryable), every[0][1])
    items = dict(reversed(every))
    others = len({i for i, _ in every}) - 1
    more = f" (and {others} more items)" if others and first.code is Code.INVALID_ARGUMENT else ""
    retry_after_s = 1.0 if first.retryable else None
    return error_for(
        first.code,
        first.message + more,
        retryable=first.retryable,
        retry_after_s=retry_after_s,
        items=items,
    )
