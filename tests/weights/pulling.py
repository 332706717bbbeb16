"""What the tests of pulling share: a pull with a report, and a part left by an earlier one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sets import QUICK, Report

from reward_server.weights.catalog import WeightSet
from reward_server.weights.pull import pull
from reward_server.weights.sources import Sources


def run(
    weights: WeightSet, root: Path, sources: Sources | None = None, *, offline: bool = False
) -> Report:
    report = Report()
    chosen = replace(sources or QUICK, attempts=QUICK.attempts, wait_s=QUICK.wait_s)
    pull([weights], root, chosen, report, offline=offline)
    return report


def leave_part(root: Path, content: bytes) -> None:
    part = root / "tiny" / "model.pt.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(content)
