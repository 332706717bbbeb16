"""What the tests of pulling share: a pull with a report, and a part left by an earlier one."""

from __future__ import annotations

from pathlib import Path

from sets import QUICK, Report

from reward_server.weights.catalog import WeightSet
from reward_server.weights.part import Part
from reward_server.weights.pull import pull
from reward_server.weights.sources import Sources


def run(
    weights: WeightSet, root: Path, sources: Sources | None = None, *, offline: bool = False
) -> Report:
    report = Report()
    pull([weights], root, sources or Sources(), report, offline=offline, policy=QUICK)
    return report


def leave_part(root: Path, url: str, content: bytes, validator: str) -> None:
    part = Part(root / "tiny" / "model.pt", url)
    part.restart(validator)
    part.append(content)
