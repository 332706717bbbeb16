"""Threads that parse and decode, in the order of priorities and fairly between callers."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from reward_client.types import Priority

T = TypeVar("T")
_STARVATION_S = 10.0


@dataclass(slots=True, eq=False)
class _Task:
    function: Callable[[], Any]
    arrival_s: float
    future: Future[Any] = field(default_factory=Future)
    is_taken: bool = False


def _nothing() -> None:
    pass


class FairQueue(Generic[T]):
    """What waits in one priority class: start-time fair queueing between callers."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._number = itertools.count()
        self._clock = 0.0
        self._finish: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, entry: T, client: str, cost: float) -> None:
        """Add an entry; a client that was idle joins now, idleness earns no credit."""
        start = max(self._finish.get(client, 0.0), self._clock)
        self._finish[client] = start + max(cost, 1.0)
        heapq.heappush(self._heap, (start, next(self._number), entry))

    def pop(self) -> T:
        """Take the entry whose client has had the least; raises IndexError if there is none."""
        self._clock, _, entry = heapq.heappop(self._heap)
        if not self._heap:
            self._finish.clear()
        return entry


class _Class:
    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.queue: FairQueue[_Task] = FairQueue()
        self._arrivals: deque[_Task] = deque()

    def push(self, task: _Task, client: str, cost: float) -> None:
        self.queue.push(task, client, cost)
        self._arrivals.append(task)

    def pop(self) -> _Task:
        task = self.queue.pop()
        task.is_taken = True
        while self._arrivals and self._arrivals[0].is_taken:
            self._arrivals.popleft()
        return task

    def rank_at(self, now_s: float) -> int:
        """The rank, one class higher for every `_STARVATION_S` that the oldest task has waited."""
        return self.rank - int((now_s - self._arrivals[0].arrival_s) / _STARVATION_S)


class FairThreads:
    """A fixed number of threads; `run` awaits a function in one of them."""

    def __init__(
        self, threads: int, name: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._clock = clock
        self._lock = threading.Lock()
        self._classes = {
            priority: _Class(rank)
            for rank, priority in enumerate((Priority.TRAIN, Priority.EVAL, Priority.BULK))
        }

    async def run(
        self,
        function: Callable[[], T],
        *,
        client: str,
        cost: float,
        priority: Priority = Priority.TRAIN,
    ) -> T:
        """Run a function that would hold up the event loop; cancelled calls never start."""
        task = _Task(function, self._clock())
        with self._lock:
            self._classes[priority].push(task, client, cost)
        self._pool.submit(self._run_next)  # whichever is first by then
        return await asyncio.wrap_future(task.future)

    def shutdown(self) -> None:
        """Begin nothing new; what waits is cancelled."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for one in self._classes.values():
                while one.queue:
                    one.pop().future.cancel()

    def _run_next(self) -> None:
        now_s = self._clock()
        with self._lock:
            waiting = [one for one in self._classes.values() if one.queue]
            if not waiting:  # `shutdown` has taken the rest
                return
            task = min(waiting, key=lambda one: (one.rank_at(now_s), one.rank)).pop()
        function, task.function = task.function, _nothing  # what it holds goes with this frame
        if not task.future.set_running_or_notify_cancel():
            return
        try:
            task.future.set_result(function())
        except BaseException as error:  # as an executor does: it is the caller's
            task.future.set_exception(error)
