"""How much GPU memory this worker process holds, where that is known; never a made-up zero.

Runs in the worker's environment, which may have neither torch nor NVML's bindings.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

_INTERVAL_S = 1.0


class DeviceMemory:
    """Asks the driver at most once a second: it takes longer than a small batch."""

    def __init__(self) -> None:
        self._asked_s = -float("inf")
        self._bytes: int | None = None

    def held_bytes(self) -> int | None:
        """GPU memory of this process in bytes; None without a GPU, or where it is unknown."""
        now_s = time.monotonic()
        if now_s - self._asked_s >= _INTERVAL_S:
            self._asked_s = now_s
            self._bytes = _driver_bytes() or _torch_bytes()
        return self._bytes


def _driver_bytes() -> int | None:
    """What the driver says: everything, CUDA's context included."""
    if not os.environ.get("CUDA_VISIBLE_DEVICES"):
        return None
    try:
        import pynvml  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        try:
            return _own_bytes(pynvml)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


def _own_bytes(nvml: Any) -> int | None:
    # In a container the driver may know us by another pid: then torch has to answer.
    for index in range(nvml.nvmlDeviceGetCount()):
        device = nvml.nvmlDeviceGetHandleByIndex(index)
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(device):
            if process.pid == os.getpid():
                return process.usedGpuMemory or None
    return None


def _torch_bytes() -> int | None:
    """What PyTorch's allocator has taken; without the context of some hundred MB."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.memory_reserved()) or None
