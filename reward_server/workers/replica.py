"""Keeps one worker alive: starts it, feeds it, watches it, kills it, starts it again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec
import structlog

from reward_client.errors import Code
from reward_client.types import ReplicaInfo
from reward_server.config import ScorerConfig
from reward_server.observability.metrics import Metrics
from reward_server.scheduling.batching import BatchLimits
from reward_server.scheduling.gather import within
from reward_server.scheduling.queue import Work, Worker, WorkQueue
from reward_server.workers.ipc import BatchDone, Failure, Hello, Ready, Score
from reward_server.workers.memory_guard import MemoryGuard, rss_bytes
from reward_server.workers.process import WorkerDied, WorkerProcess, WorkerRefused

MAX_LOSSES = 5
_BACKOFF_FIRST_S = 0.1
_BACKOFF_LAST_S = 30.0
_STOP_TIMEOUT_S = 2.0


class ReplicaState(Enum):
    """Where a replica is in its life; a value is a `ScorerState`.

    FAILED is an open circuit: after `cool_down_s` one more worker is tried, and the circuit closes
    again with the first batch that one finishes. What cannot change by itself (a wrong score in the
    self-test, a missing package) is retried only after SIGHUP.
    """

    STARTING = "STARTING"
    READY = "READY"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Described:
    """What a ready worker says about its scorer."""

    hello: Hello
    fingerprint: str


class Replica:
    """One worker slot of a scorer; `run` is its only task.

    Attributes:
        state: STARTING until a worker is ready, and again after each crash; FAILED after
            `MAX_LOSSES` workers in a row were lost before they finished a batch.
        last_error: why the latest start or batch went wrong; for people.
        described: what the latest ready worker said.
        retry_at_s: on the monotonic clock, when a FAILED replica tries again; None if it does so
            only when asked to.
    """

    def __init__(
        self,
        name: str,
        index: int,
        config: ScorerConfig,
        *,
        queue: WorkQueue,
        metrics: Metrics,
        on_change: Callable[[], None],
        served_fingerprint: Callable[[], str],
    ) -> None:
        self.state = ReplicaState.STARTING
        self.last_error = ""
        self.described: Described | None = None
        self.retry_at_s: float | None = None
        self._name = name
        self._config = config
        self._device = config.devices[index]
        self._queue = queue
        self._metrics = metrics
        self._on_change = on_change
        self._served_fingerprint = served_fingerprint
        self._log = structlog.get_logger().bind(scorer=name, replica=index, device=self._device)
        self._index = index
        self._worker: WorkerProcess | None = None
        self._starts = 0
        self._past_error = ""
        self._device_memory_bytes: int | None = None
        self._losses = 0
        self._asked_to_retry = asyncio.Event()
        self._backoff_s = _BACKOFF_FIRST_S
        self._next_test_s = 0.0
        self._held: list[tuple[list[Work], BatchDone]] = []
        self._max_pixels = config.max_batch_pixels
        self._pace = Pace(config.timeout_s)

    def info(self) -> ReplicaInfo:
        """How it is now."""
        worker = self._worker
        pid = worker.pid if worker is not None and not worker.exited.done() else None
        return ReplicaInfo(
            name=str(self._index),
            state=self.state.value,
            device=self._device,
            pid=pid,
            restarts=max(0, self._starts - 1),
            rss_bytes=rss_bytes(pid),
            device_memory_bytes=self._device_memory_bytes if pid else None,
            last_error=self.last_error or self._past_error,
        )

    def retry(self) -> None:
        """Try again now if FAILED: the cause may have been fixed."""
        self._asked_to_retry.set()

    async def run(self) -> None:
        """Serve until cancelled; never raises anything else than CancelledError."""
        try:
            while True:
                await self._live_once()
                await self._until_next_start()
        finally:
            if self.state is ReplicaState.READY:
                self._metrics.ready_workers.labels(self._name).dec()
            self.state = ReplicaState.STARTING

    async def _live_once(self) -> None:
        try:
            worker = await self._start()
            cause = await self._serve(worker)
            self._lost(cause, self.last_error)
        except WorkerRefused as error:
            self._lost("load", str(error), permanent=error.permanent)
        except WorkerDied as error:
            self._lost("load", str(error))
        except OSError as error:
            self._lost("load", f"the host refused to start a worker: {error}")
        except Exception as error:  # this task must outlive any bug, or the scorer never comes back
            self._log.error("bug", exc_info=error)
            self._lost("load", f"a bug of the server ({type(error).__name__}): see its log")

    async def _start(self) -> WorkerProcess:
        begin_s = time.monotonic()
        worker = await WorkerProcess.start(self._name, self._config, self._device, self._line)
        self._worker = worker
        self._starts += 1
        self._log = self._log.bind(pid=worker.pid)
        self._log.info("worker started")
        async with contextlib.AsyncExitStack() as on_failure:
            on_failure.push_async_callback(worker.kill)
            try:
                hello, ready = await within(self._config.start_timeout_s, _introduction(worker))
            except asyncio.TimeoutError as error:
                limit = f"{self._config.start_timeout_s:g} s"
                raise WorkerDied(f"not ready within start_timeout_s = {limit}") from error
            self._check_fingerprint(ready.fingerprint)
            guard = MemoryGuard(worker.pid, self._config.memory_limit_bytes)
            if excess := guard.excess():
                raise WorkerRefused(f"{excess}, before its first batch: raise it", permanent=True)
            on_failure.pop_all()
        self.described = Described(hello, ready.fingerprint)
        self._device_memory_bytes = ready.device_memory_bytes
        self._pace.tested(ready.self_test_s)
        self._next_test_s = 0.0
        self._past_error = self.last_error or self._past_error
        self.last_error = ""
        self._set_state(ReplicaState.READY)
        self._log.info("worker ready", seconds=round(time.monotonic() - begin_s, 2))
        return worker

    def _check_fingerprint(self, fingerprint: str) -> None:
        served = self._served_fingerprint()
        if served and fingerprint != served:
            raise WorkerRefused(
                f"its fingerprint is {fingerprint[:12]}, the replicas that serve have"
                f" {served[:12]}: code or weights have changed; replace all of them by a restart",
                permanent=False,
            )

    async def _serve(self, worker: WorkerProcess) -> str:
        """Feed a worker until it is lost; returns why: "died", "hung", "memory" or "self_test"."""
        ready_s = time.monotonic()
        guard = MemoryGuard(worker.pid, self._config.memory_limit_bytes)
        try:
            while True:
                works = await self._next_batch(worker)
                if time.monotonic() - ready_s > self._config.cool_down_s:
                    self._losses = 0  # whatever ends this worker, it is no crash loop
                if works is None:
                    self.last_error = worker.exit_reason()
                    return "died"
                cause = await self._run_batch(worker, works, guard)
                if cause:
                    return cause
                self._losses, self._backoff_s = 0, _BACKOFF_FIRST_S
                if excess := guard.excess():
                    self.last_error = excess
                    await worker.stop(_STOP_TIMEOUT_S)
                    return "memory"
        except asyncio.CancelledError:
            await worker.stop(_STOP_TIMEOUT_S)
            raise
        finally:
            await worker.kill()
            self._queue.requeue(self._take_held(), self.last_error)

    async def _next_batch(self, worker: WorkerProcess) -> list[Work] | None:
        """The next batch; empty once a self-test is due, None if the worker is gone."""
        limits = BatchLimits(
            self._config.max_batch_items, self._max_pixels, self._config.max_wait_ms / 1e3
        )
        taking = asyncio.create_task(self._queue.take(limits))
        test_in_s = max(self._next_test_s - time.monotonic(), 0.0) if self._held else None
        try:
            await asyncio.wait(
                {taking, worker.exited}, timeout=test_in_s, return_when=asyncio.FIRST_COMPLETED
            )
        except asyncio.CancelledError:
            if taking.done() and not taking.cancelled():
                self._queue.requeue(taking.result(), "the server stops")
            raise
        finally:
            taking.cancel()
        if taking.done():
            return taking.result()
        return None if worker.exited.done() else []

    async def _run_batch(self, worker: WorkerProcess, works: list[Work], guard: MemoryGuard) -> str:
        limit_s = self._pace.limit_s(len(works))
        try:
            if works:
                done = await within(limit_s, _guarded_score(worker, works, guard))
                self._pace.ran(len(works), done.compute_s)
                self._finish(worker, works, done)
                works = []
            problem = await self._problem_of(worker)
        except _Runaway as error:
            self.last_error = f"{error}, inside a batch"
            cause = "memory"
        except asyncio.TimeoutError:
            self.last_error = (
                f"worker {worker.pid} hung: no answer to {len(works)} items within {limit_s:.3g} s"
                f" (timeout_s = {self._config.timeout_s:g})"
            )
            cause = "hung"
        except WorkerDied as error:
            self.last_error = str(error)
            cause = "died"
        except Exception as error:  # no memory for the arena, or a bug: the items must not get lost
            self._log.error("batch could not be sent", exc_info=error)
            self.last_error = f"a batch could not be sent: {type(error).__name__}: {error}"
            cause = "died"
        except asyncio.CancelledError:
            self._queue.requeue(works, "the server stops")
            raise
        else:
            if not problem:
                return ""
            self.last_error = problem
            cause = "self_test"
        # Before the requeue, so that no second worker can run the items at the same time.
        await worker.kill()
        works = [*works, *self._take_held()]
        kept = self._queue.requeue(works, self.last_error)
        self._log.warning("batch lost", items=len(works), requeued=kept, reason=self.last_error)
        return cause

    async def _problem_of(self, worker: WorkerProcess) -> str:
        """Why the worker cannot be trusted any more; empty if it can, or nothing is in doubt.

        After a sticky error of the device everything fails, from one item of a batch on. So what
        failed inside the scorer at the end of a batch is held until it is known whose fault it was:
        a later batch that ends well, or a self-test, answers it; a self-test that fails runs it
        again, once, on another worker. While items wait, self-tests take at most a tenth of the
        time, whatever callers send.
        """
        now_s = time.monotonic()
        if not self._held or (now_s < self._next_test_s and self._queue.waiting_items):
            return ""
        problem = await within(self._config.start_timeout_s, worker.self_test())
        end_s = time.monotonic()
        self._next_test_s = end_s + 10 * (end_s - now_s)
        if not problem:
            self._answer_held(worker)
        return problem

    def _finish(self, worker: WorkerProcess, works: list[Work], done: BatchDone) -> None:
        """Hand out the outcomes of a batch, or hold those that a broken device may have caused."""
        if _failed_inside(done.outcomes[-1]):
            doubtful = [i for i, outcome in enumerate(done.outcomes) if _failed_inside(outcome)]
            self._held.append(_part(works, done, doubtful))
            sound = [i for i in range(len(works)) if i not in set(doubtful)]
            works, done = _part(works, done, sound)
        else:
            self._answer_held(worker)
        self._queue.finish(works, done, self._runner(worker))
        self._device_memory_bytes = done.device_memory_bytes
        if done.max_pixels and done.max_pixels < self._max_pixels:
            self._max_pixels = done.max_pixels
            self._log.warning("out of device memory", new_max_batch_pixels=done.max_pixels)

    def _answer_held(self, worker: WorkerProcess) -> None:
        for works, done in self._held:
            self._queue.finish(works, done, self._runner(worker))
        self._held = []

    def _take_held(self) -> list[Work]:
        held, self._held = self._held, []
        return [work for works, _ in held for work in works]

    def _runner(self, worker: WorkerProcess) -> Worker:
        fingerprint = self.described.fingerprint if self.described else ""
        return Worker(str(self._index), self._device, worker.pid, fingerprint)

    def _lost(self, cause: str, reason: str, *, permanent: bool = False) -> None:
        self._losses += 1
        self.last_error = reason
        if not permanent and self._losses < MAX_LOSSES:
            self._metrics.worker_restarts.labels(self._name, cause).inc()
            self._log.warning(
                "worker restarts", cause=cause, reason=reason, backoff_s=self._backoff_s
            )
            self._set_state(ReplicaState.STARTING)
            return
        # No worker runs until the cool-down is over or SIGHUP comes.
        cool_down_s = None if permanent else self._config.cool_down_s
        self.retry_at_s = None if cool_down_s is None else time.monotonic() + cool_down_s
        self._asked_to_retry.clear()
        self._log.error("scorer failed", reason=reason, losses=self._losses, retry_s=cool_down_s)
        self._set_state(ReplicaState.FAILED)

    async def _until_next_start(self) -> None:
        if self.state is not ReplicaState.FAILED:
            await asyncio.sleep(self._backoff_s)
            self._backoff_s = min(2 * self._backoff_s, _BACKOFF_LAST_S)
            return
        cool_down_s = self.retry_at_s and self.retry_at_s - time.monotonic()
        with contextlib.suppress(asyncio.TimeoutError):
            await within(cool_down_s, self._asked_to_retry.wait())
        self._log.info("scorer tries again", asked=self._asked_to_retry.is_set())

    def _set_state(self, state: ReplicaState) -> None:
        if state is not self.state:
            delta = (state is ReplicaState.READY) - (self.state is ReplicaState.READY)
            self._metrics.ready_workers.labels(self._name).inc(delta)
            self.state = state
            self._on_change()

    def _line(self, text: str) -> None:
        self._log.info("worker output", text=text)


class Pace:
    """How long a batch may take before its worker counts as hung.

    A fixed limit kills healthy workers whose items take seconds each (on CPUs, 16 items of HPSv2
    take longer than a minute), and one that is right for them finds hangs of fast scorers late. So
    the limit is `timeout_s`, plus `MARGIN` times what the items have been seen to take.
    """

    MARGIN = 3.0
    _MEMORY = 0.8  # how much of a slow batch is still remembered after the next one

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._item_s = 0.0
        self._has_run = False

    def tested(self, self_test_s: float) -> None:
        """Note how long a self-test took: the bound until the first batch, as it warms up too."""
        if not self._has_run:
            self._item_s = self_test_s

    def ran(self, items: int, compute_s: float) -> None:
        """Note how long a batch took."""
        remembered_s = self._MEMORY * self._item_s if self._has_run else 0.0
        self._item_s = max(remembered_s, compute_s / items)
        self._has_run = True

    def limit_s(self, items: int) -> float:
        """Seconds for a batch of that many items."""
        return self._timeout_s + self.MARGIN * items * self._item_s


def _failed_inside(outcome: Score | Failure) -> bool:
    return isinstance(outcome, Failure) and outcome.code == Code.INTERNAL.value


def _part(
    works: Sequence[Work], done: BatchDone, indices: Sequence[int]
) -> tuple[list[Work], BatchDone]:
    outcomes = [done.outcomes[i] for i in indices]
    return [works[i] for i in indices], msgspec.structs.replace(done, outcomes=outcomes)


async def _introduction(worker: WorkerProcess) -> tuple[Hello, Ready]:
    return await worker.hello(), await worker.ready()


class _Runaway(Exception):
    """A worker grew far beyond its memory limit while it computed a batch."""


async def _guarded_score(
    worker: WorkerProcess, works: Sequence[Work], guard: MemoryGuard
) -> BatchDone:
    payload = [(work.message, work.images) for work in works]
    details = any(work.details for work in works)
    scoring = asyncio.create_task(worker.score(payload, details=details))
    watching = asyncio.create_task(guard.runaway())
    try:
        await asyncio.wait({scoring, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not scoring.done():
            raise _Runaway(watching.result())
        return scoring.result()
    finally:
        scoring.cancel()
        watching.cancel()
