"""Which GPUs this host shows, without importing a framework; the server itself uses none."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

_DEV = Path("/dev")
# Hosts whose GPUs are not files called nvidiaN: AMD, Windows' Linux, embedded boards.
_OTHER_KINDS = ("kfd", "dxg", "nvmap")


def gpu_count(environment: Mapping[str, str], dev: Path = _DEV) -> int | None:
    """How many GPUs processes started from here can use; None where that is unknown."""
    shown = environment.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        entries = [entry.strip() for entry in shown.split(",")]
        # CUDA reads up to the first entry that is no device.
        ends = [at for at, entry in enumerate(entries) if entry in ("", "-1")]
        return ends[0] if ends else len(entries)
    if not sys.platform.startswith("linux") or any((dev / kind).exists() for kind in _OTHER_KINDS):
        return None
    return sum(1 for file in dev.glob("nvidia*") if re.fullmatch(r"nvidia\d+", file.name))


def device_problem(device: str, environment: Mapping[str, str], dev: Path = _DEV) -> str:
    """Why "cpu", "cuda" or "cuda:N" cannot be used here, in one line; empty if it may be."""
    if not device.startswith("cuda"):
        return ""
    count = gpu_count(environment, dev)
    index = int(device.partition(":")[2] or 0)
    if count is None or index < count:
        return ""
    has = "no GPU" if count == 0 else "one GPU, cuda:0" if count == 1 else f"GPUs 0 to {count - 1}"
    shown = environment.get("CUDA_VISIBLE_DEVICES")
    why = f" (CUDA_VISIBLE_DEVICES is {shown!r})" if shown is not None else ""
    return f"device {device!r} does not exist: this host has {has}{why}; change `device`"
