"""Keeps one worker alive: starts it, feeds it, watches it, kills it, starts it again."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import structlog

from reward_client._tasks import within
from reward_server.config import ScorerConfig
from reward_server.scheduling.queue import Work, next_batches
from reward_server.workers.memory_guard import MemoryGuard
from reward_server.workers.process import WorkerDied, WorkerProcess, WorkerRefused, passed_on
from reward_server.workers.replica import Replica

T = TypeVar("T")
_STOP_TIMEOUT_S = 2.0


class WorkerSlot:
    """A place for one worker process and the scorers in it; `run` is its only task.

    A scorer that cannot be loaded leaves the others alone, and is tried again in the worker that
    serves them. A process that is lost takes all of them with it.
    """

    def __init__(
        self,
        index: int,
        config: ScorerConfig,
        replicas: Sequence[Replica],
        asked: asyncio.Event,
    ) -> None:
        self._config = config
        self._device = config.devices[index]
        self._replicas = replicas
        self._asked = asked
        self._running: dict[Replica, list[Work]] = {}
        self._log = structlog.get_logger().bind(
            scorer=replicas[0].name, replica=index, device=self._device
        )

    async def run(self) -> None:
        """Serve until cancelled; never raises anything else than CancelledError."""
        try:
            while True:
                await self._until_due()
                await self._live_once()
        finally:
            for replica in self._replicas:
                replica.close()

    def _begin(self) -> list[Replica]:
        """The scorers that are due to be loaded, which they now are."""
        return [replica for replica in self._replicas if replica.begin()]

    async def _until_due(self) -> None:
        while not self._begin():
            self._asked.clear()
            at_s = min(replica.acts_at_s() for replica in self._replicas)
            asked = asyncio.ensure_future(self._asked.wait())
            try:
                await asyncio.wait({asked}, timeout=_seconds_until(at_s))
            finally:
                asked.cancel()

    async def _live_once(self) -> None:
        worker, cause, permanent = None, "load", False
        reason = "the server stops"
        try:
            variables = [name for r in self._replicas for name in passed_on(r.config)]
            worker = await WorkerProcess.start(self._config, self._device, variables, self._line)
            self._log = self._log.bind(pid=worker.pid)
            self._log.info("worker started")
            await self._serve(worker)
        except asyncio.CancelledError:
            if worker is not None:
                await worker.stop(_STOP_TIMEOUT_S)
            raise
        except _Lost as error:
            cause, reason = error.cause, str(error)
        except WorkerRefused as error:
            reason, permanent = str(error), error.permanent
        except WorkerDied as error:
            reason = str(error)
        except OSError as error:
            reason = f"the host refused to start a worker: {error}"
        except Exception as error:  # this task must outlive any bug, or the scorer never comes back
            self._log.error("bug", exc_info=error)
            reason = f"a bug of the server ({type(error).__name__}): see its log"
        finally:
            # First, so that no second worker can run its items at the same time.
            if worker is not None:
                await worker.kill()
            running, self._running = self._running, {}
            for replica in self._replicas:
                replica.requeue(running.get(replica, ()), reason)
        for replica in self._replicas:
            if replica.is_active:
                replica.lost(cause, reason, permanent=permanent)

    async def _serve(self, worker: WorkerProcess) -> None:
        """Feed a worker until it is lost, which is raised, or has no scorer left."""
        guard = MemoryGuard(worker.pid, self._config.memory_limit_bytes)
        loading = [replica for replica in self._replicas if replica.is_active]
        while True:
            for replica in loading:
                await replica.load(worker, guard.excess)
            if not any(replica.is_active for replica in self._replicas):
                return
            await self._next_run(worker)
            has_run = bool(self._running)
            if has_run:
                await self._run(worker, guard)
            for replica in self._replicas:
                await self._test(replica)
            for replica in self._replicas:
                if has_run and replica.is_active:
                    replica.has_run()
            if excess := guard.excess():
                await worker.stop(_STOP_TIMEOUT_S)
                raise _Lost("memory", excess)
            loading = self._begin()

    async def _next_run(self, worker: WorkerProcess) -> None:
        """Wait for batches, or until a scorer is due to be tested or loaded; then none run."""
        ready = [r for r in self._replicas if r.state == "READY"]
        taking = asyncio.ensure_future(next_batches([(r.queue, r.limits()) for r in ready]))
        self._asked.clear()
        asked = asyncio.ensure_future(self._asked.wait())
        at_s = min(replica.acts_at_s() for replica in self._replicas)
        try:
            await asyncio.wait(
                {taking, asked, worker.exited},
                timeout=_seconds_until(at_s),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            asked.cancel()
            if taking.done() and not taking.cancelled():
                batches = zip(ready, taking.result(), strict=True)
                self._running = {replica: works for replica, works in batches if works}
            taking.cancel()
        if not self._running and worker.exited.done():
            raise _Lost("died", worker.exit_reason())

    async def _run(self, worker: WorkerProcess, guard: MemoryGuard) -> None:
        limit_s, items = self._config.timeout_s, 0
        try:
            batches = {replica.name: works for replica, works in self._running.items()}
            await within(limit_s, worker.send(batches))
            for replica, works in list(self._running.items()):
                items, limit_s = len(works), replica.pace.limit_s(len(works))
                done = await within(limit_s, _guarded(worker.batch_done(items), guard))
                del self._running[replica]
                replica.finish(works, done)
        except asyncio.TimeoutError as error:
            limit = f"{limit_s:.3g} s (timeout_s = {self._config.timeout_s:g})"
            text = f"worker {worker.pid} hung: no answer to {items} items within {limit}"
            raise _Lost("hung", text) from error
        except WorkerDied as error:
            raise _Lost("died", str(error)) from error
        except _Lost:
            raise
        except Exception as error:  # no memory for the arena, or a bug: the items must not get lost
            self._log.error("batch could not be sent", exc_info=error)
            text = f"a batch could not be sent: {type(error).__name__}: {error}"
            raise _Lost("died", text) from error

    async def _test(self, replica: Replica) -> None:
        try:
            problem = await replica.problem()
        except asyncio.TimeoutError as error:
            limit = f"start_timeout_s = {replica.config.start_timeout_s:g} s"
            raise _Lost(
                "hung", f"{replica.name}: no end of its self-test within {limit}"
            ) from error
        except WorkerDied as error:
            raise _Lost("died", str(error)) from error
        if problem:
            raise _Lost("self_test", problem)

    def _line(self, text: str) -> None:
        self._log.info("worker output", text=text)


class _Lost(Exception):
    """A worker that has served is lost; the message says why."""

    def __init__(self, cause: str, reason: str) -> None:
        super().__init__(reason)
        self.cause = cause


def _seconds_until(at_s: float) -> float | None:
    return None if at_s == math.inf else max(0.0, at_s - time.monotonic())


async def _guarded(scoring: Coroutine[Any, Any, T], guard: MemoryGuard) -> T:
    """Await a batch unless its worker grows far beyond its memory limit, which raises _Lost."""
    done = asyncio.ensure_future(scoring)
    watching = asyncio.ensure_future(guard.runaway())
    try:
        await asyncio.wait({done, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise _Lost("memory", f"{watching.result()}, inside a batch")
        return done.result()
    finally:
        done.cancel()
        watching.cancel()
