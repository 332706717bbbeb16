"""Keeps the memory of a worker process within bounds, between batches and inside one."""

from __future__ import annotations

import asyncio

import psutil

_INTERVAL_S = 0.2
# Between batches a worker is replaced as soon as it is over its limit. Inside a batch it gets some
# more, so that a slow leak costs a restart and not a batch; beyond that it is killed.
RUNAWAY_FACTOR = 1.25


class MemoryGuard:
    """Watches one process.

    Resident memory is what counts, not address space: CUDA and PyTorch reserve far more addresses
    than they ever use, so that the kernel's own limits would refuse every GPU worker.
    """

    def __init__(self, pid: int, limit_bytes: int) -> None:
        """Watch process `pid`; a limit of 0 is none."""
        self._pid = pid
        self._limit_bytes = limit_bytes

    def excess(self) -> str:
        """Why the worker has to be replaced, in one line, or empty."""
        return self._over(self._limit_bytes)

    async def runaway(self) -> str:
        """Wait until it has grown far beyond its limit, and say so; without a limit, for ever."""
        while True:
            await asyncio.sleep(_INTERVAL_S if self._limit_bytes else 3600)
            if reason := self._over(int(self._limit_bytes * RUNAWAY_FACTOR)):
                return reason

    def _over(self, bound_bytes: int) -> str:
        used_bytes = rss_bytes(self._pid) or 0
        if not self._limit_bytes or used_bytes <= bound_bytes:
            return ""
        return (
            f"worker {self._pid} uses {_mib(used_bytes)}, memory_limit_bytes is"
            f" {_mib(self._limit_bytes)}"
        )


def rss_bytes(pid: int | None) -> int | None:
    """Resident memory of a process in bytes; None if there is none."""
    try:
        return psutil.Process(pid).memory_info().rss if pid else None
    except psutil.Error:  # it has just gone
        return None


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f} MiB"
