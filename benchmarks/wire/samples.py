"""What benchmarks of the service keep: samples, their ratios, and a file to repeat them from."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Sample:
    """One way in one round."""

    images_per_s: float
    client_ms: float
    server_ms: float
    mean_batch: float | None
    p99_over_wait_ms: float | None

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds per picture, of client and servers together."""
        return self.client_ms + self.server_ms


def ratios(samples: Sequence[Sample], bases: Sequence[Sample], *, cpu: bool) -> list[float]:
    """How many times better than the base, round by round."""
    if cpu:
        return [base.cpu_ms / one.cpu_ms for one, base in zip(samples, bases, strict=True)]
    return [o.images_per_s / b.images_per_s for o, b in zip(samples, bases, strict=True)]


def noise(values: Sequence[float]) -> float:
    """Half of the largest distance between neighbouring values once the extremes are left out."""
    ordered = sorted(values)
    return (ordered[-2] - ordered[1]) / 2 if len(ordered) > 3 else (ordered[-1] - ordered[0]) / 2


def save(file: Path, found: Mapping[str, Any]) -> None:
    """Write results with what is needed to repeat them: command, commit, machine, load."""
    commit, dirty = (_git("rev-parse", "--short", "HEAD"), _git("status", "--porcelain"))
    words = " ".join(a for a in sys.argv[1:] if a != str(file)).replace("--json", "").strip()
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    head = {
        "command": f"python -m benchmarks.{Path(sys.argv[0]).stem} {words}".strip(),
        "commit": commit + ("+" if dirty else ""),
        "machine": f"{psutil.cpu_count()} cores, {model[1] if model else 'unknown CPU'}",
        "load": round(os.getloadavg()[0], 1),
    }
    file.write_text(json.dumps({"head": head, "found": found}, indent=1) + "\n", encoding="utf-8")


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
