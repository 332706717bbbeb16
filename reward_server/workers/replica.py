"""One scorer in one worker slot: its state, when it is tried again, and what it has in hand."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import structlog

from reward_client._tasks import within
from reward_client.errors import Code
from reward_client.types import ReplicaInfo, ScorerState
from reward_server.config import ScorerConfig
from reward_server.observability.metrics import Metrics
from reward_server.scheduling.batching import BatchLimits
from reward_server.scheduling.queue import Work, Worker, WorkQueue
from reward_server.workers.ipc import BatchDone, Failure, Hello, Score
from reward_server.workers.memory_guard import rss_bytes
from reward_server.workers.process import WorkerDied, WorkerProcess, WorkerRefused

MAX_LOSSES = 5
_BACKOFF_FIRST_S = 0.1
_BACKOFF_LAST_S = 30.0


@dataclass(frozen=True, slots=True)
class Described:
    """What a ready worker says about its scorer."""

    hello: Hello
    fingerprint: str


class Replica:
    """A scorer in a slot (`slot.py`), which drives it; other scorers may live in the same worker.

    FAILED is an open circuit: after `cool_down_s` one more worker is tried, and the circuit closes
    again with the first batch that one finishes. What cannot change by itself (a wrong score in the
    self-test, a missing package) is retried only after SIGHUP.

    Attributes:
        name: of the scorer.
        config: its table.
        queue: where its items wait.
        pace: how long its batches take.
        state: STARTING until it has loaded, and again after each loss; FAILED after `MAX_LOSSES`
            losses in a row before it finished a batch.
        is_active: whether it loads or serves in a worker now.
        last_error: why the latest start or batch went wrong; for people.
        described: what the latest ready worker said.
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
        on_retry: Callable[[], None],
        served_fingerprint: Callable[[], str],
    ) -> None:
        self.name = name
        self.config = config
        self.queue = queue
        self.pace = Pace(config.timeout_s)
        self.state: ScorerState = "STARTING"
        self.is_active = False
        self.last_error = ""
        self.described: Described | None = None
        self._index = index
        self._device = config.devices[index]
        self._metrics = metrics
        self._on_change = on_change
        self._on_retry = on_retry
        self._served_fingerprint = served_fingerprint
        self._log = structlog.get_logger().bind(scorer=name, replica=index, device=self._device)
        self._worker: WorkerProcess | None = None
        self._due_at_s = 0.0
        self._starts = 0
        self._ready_at_s = math.inf
        self._past_error = ""
        self._device_memory_bytes: int | None = None
        self._losses = 0
        self._backoff_s = _BACKOFF_FIRST_S
        self._next_test_s = 0.0
        self._held: list[tuple[list[Work], BatchDone]] = []
        self._max_pixels = config.max_batch_pixels

    def info(self) -> ReplicaInfo:
        worker = self._worker
        pid = worker.pid if worker is not None and not worker.exited.done() else None
        return ReplicaInfo(
            name=str(self._index),
            state=self.state,
            device=self._device,
            pid=pid,
            restarts=max(0, self._starts - 1),
            rss_bytes=rss_bytes(pid),
            device_memory_bytes=self._device_memory_bytes if pid else None,
            last_error=self.last_error or self._past_error,
        )

    def limits(self) -> BatchLimits:
        """Of its batches, as far as they are known to fit into the device."""
        wait_s = self.config.max_wait_ms / 1e3
        return BatchLimits(self.config.max_batch_items, self._max_pixels, wait_s)

    @property
    def retry_at_s(self) -> float | None:
        """When it tries again if FAILED (monotonic clock); None if only when asked to."""
        is_known = self.state == "FAILED" and self._due_at_s < math.inf
        return self._due_at_s if is_known else None

    def acts_at_s(self) -> float:
        """When there is something to do for it although nothing arrives; infinity for never."""
        if not self.is_active:
            return self._due_at_s
        return self._next_test_s if self._held else math.inf

    def retry(self) -> None:
        """Try again now if FAILED: the cause may have been fixed."""
        if self.state == "FAILED" and not self.is_active:
            self._due_at_s = 0.0
            self._on_retry()

    def close(self) -> None:
        """It is not needed any more, or its slot has ended."""
        if self.state == "READY":
            self._metrics.ready_workers.labels(self.name).dec()
        self.state, self.is_active, self._due_at_s = "STARTING", False, math.inf

    def begin(self) -> bool:
        """Whether it is time to load it, which then has begun."""
        if self.is_active or self._due_at_s > time.monotonic():
            return False
        if self.state == "FAILED":
            self._log.info("scorer tries again", asked=self._due_at_s == 0.0)
        self.is_active = True
        return True

    async def load(self, worker: WorkerProcess, excess: Callable[[], str]) -> None:
        """Load it: READY afterwards, or lost without harm to its neighbours; raises WorkerDied."""
        begin_s = time.monotonic()
        self._worker = worker
        self._starts += 1
        self._log = self._log.bind(pid=worker.pid)
        loading = worker.load(self.name, self.config, self._device)
        try:
            hello, ready = await within(self.config.start_timeout_s, loading)
            self._check_fingerprint(ready.fingerprint)
            if problem := excess():
                raise WorkerRefused(f"{problem}, before its first batch: raise it", permanent=True)
        except WorkerRefused as error:
            self.lost("load", str(error), permanent=error.permanent)
            return
        except asyncio.TimeoutError as error:
            limit = f"start_timeout_s = {self.config.start_timeout_s:g} s"
            raise WorkerDied(f"{self.name} is not ready within {limit}") from error
        self.described = Described(hello, ready.fingerprint)
        self._device_memory_bytes = ready.device_memory_bytes
        self.pace.tested(ready.self_test_s)
        self._ready_at_s, self._next_test_s = time.monotonic(), 0.0
        self._past_error = self.last_error or self._past_error
        self.last_error = ""
        self._set_state("READY")
        self._log.info("worker ready", seconds=round(time.monotonic() - begin_s, 2))

    def lost(self, cause: str, reason: str, *, permanent: bool = False) -> None:
        """It has no worker any more; `permanent` if a retry cannot help."""
        now_s = time.monotonic()
        if now_s - self._ready_at_s > self.config.cool_down_s:
            self._losses = 0  # whatever has ended this worker, it is no crash loop
        self._ready_at_s, self.is_active = math.inf, False
        self._losses += 1
        self.last_error = reason
        if not permanent and self._losses < MAX_LOSSES:
            self._metrics.worker_restarts.labels(self.name, cause).inc()
            self._log.warning(
                "worker restarts", cause=cause, reason=reason, backoff_s=self._backoff_s
            )
            self._due_at_s = now_s + self._backoff_s
            self._backoff_s = min(2 * self._backoff_s, _BACKOFF_LAST_S)
            self._set_state("STARTING")
            return
        # It is not tried until the cool-down is over or SIGHUP comes.
        cool_down_s = math.inf if permanent else self.config.cool_down_s
        self._due_at_s = now_s + cool_down_s
        retry_s = None if permanent else cool_down_s
        self._log.error("scorer failed", reason=reason, losses=self._losses, retry_s=retry_s)
        self._set_state("FAILED")

    def has_run(self) -> None:
        """Its worker has finished a run: this is no crash loop."""
        self._losses, self._backoff_s = 0, _BACKOFF_FIRST_S

    def finish(self, works: list[Work], done: BatchDone) -> None:
        """Hand out the outcomes of a batch, or hold those that a broken device may have caused."""
        self.pace.ran(len(works), done.compute_s)
        for how, pictures in (("computed", done.embedded), ("reused", done.reused)):
            if pictures:
                self._metrics.backbone_pictures.labels(self.name, how).inc(pictures)
        if _failed_inside(done.outcomes[-1]):
            doubtful = [i for i, outcome in enumerate(done.outcomes) if _failed_inside(outcome)]
            self._held.append(_part(works, done, doubtful))
            sound = [i for i in range(len(works)) if i not in set(doubtful)]
            works, done = _part(works, done, sound)
        else:
            self._answer_held()
        self.queue.finish(works, done, self._runner())
        self._device_memory_bytes = done.device_memory_bytes
        if done.max_pixels and done.max_pixels < self._max_pixels:
            self._max_pixels = done.max_pixels
            self._log.warning("out of device memory", new_max_batch_pixels=done.max_pixels)

    async def problem(self) -> str:
        """Why its worker cannot be trusted any more; empty if it can, or nothing is in doubt.

        After a sticky error of the device everything fails, from one item of a batch on. So what
        failed inside the scorer at the end of a batch is held until it is known whose fault it was:
        a later batch that ends well, or a self-test, answers it; a self-test that fails runs it
        again, once, on another worker. While items wait, self-tests take at most a tenth of the
        time, whatever callers send. Raises WorkerDied or asyncio.TimeoutError.
        """
        now_s = time.monotonic()
        if not self._held or (now_s < self._next_test_s and self.queue.waiting_items):
            return ""
        assert self._worker is not None  # something has failed in it
        testing = self._worker.self_test(self.name)
        problem = await within(self.config.start_timeout_s, testing)
        end_s = time.monotonic()
        self._next_test_s = end_s + 10 * (end_s - now_s)
        if not problem:
            self._answer_held()
        return problem

    def requeue(self, works: Sequence[Work], reason: str) -> None:
        """Let what was running, and what is held, run again elsewhere."""
        works = [*works, *(work for held, _ in self._held for work in held)]
        self._held = []
        if works:
            kept = self.queue.requeue(works, reason)
            self._log.warning("batch lost", items=len(works), requeued=kept, reason=reason)

    def _check_fingerprint(self, fingerprint: str) -> None:
        served = self._served_fingerprint()
        if served and fingerprint != served:
            raise WorkerRefused(
                f"its fingerprint is {fingerprint[:12]}, the replicas that serve have"
                f" {served[:12]}: code or weights have changed; replace all of them by a restart",
                permanent=False,
            )

    def _answer_held(self) -> None:
        for works, done in self._held:
            self.queue.finish(works, done, self._runner())
        self._held = []

    def _runner(self) -> Worker:
        pid = self._worker.pid if self._worker else 0
        fingerprint = self.described.fingerprint if self.described else ""
        return Worker(str(self._index), self._device, pid, fingerprint)

    def _set_state(self, state: ScorerState) -> None:
        if state != self.state:
            delta = (state == "READY") - (self.state == "READY")
            self._metrics.ready_workers.labels(self.name).inc(delta)
            self.state = state
            self._on_change()


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
