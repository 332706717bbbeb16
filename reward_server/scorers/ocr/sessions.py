"""Several copies of a network that work at the same time, each on a thread of its own.

On a CPU a larger batch is no faster than the same pictures one by one, and a second thread inside
an operator helps little and only while that core is idle. Independent copies scale with the cores:
ONNX Runtime releases Python's lock while it computes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Generic, TypeVar

MAX_DEFAULT_SESSIONS = 16
BEFORE_LOAD = "the OCR engine was used before load"
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")

Session = TypeVar("Session")
Given = TypeVar("Given")
Found = TypeVar("Found")


class Sessions(Generic[Session]):
    """A pool of interchangeable sessions."""

    def __init__(self, make: Callable[[], Session], count: int) -> None:
        self._free: SimpleQueue[Session] = SimpleQueue()
        self.first = make()
        for session in (self.first, *(make() for _ in range(count - 1))):
            self._free.put(session)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="ocr")

    def map(
        self, function: Callable[[Session, Given], Found], items: Sequence[Given]
    ) -> list[Found]:
        """`function(session, item)` for every item, each with a session to itself; in order."""
        return list(self._threads.map(lambda item: self._run(function, item), items))

    def _run(self, function: Callable[[Session, Given], Found], item: Given) -> Found:
        session = self._free.get()
        try:
            return function(session, item)
        finally:
            self._free.put(session)


def usable_cpus() -> int:
    """CPUs that this process may use: its affinity, and the quota of its container (cgroup v2)."""
    allowed = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = _CGROUP_QUOTA.read_text(encoding="ascii").split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return allowed
