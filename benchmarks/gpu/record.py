"""What the parts of the receipt write: one JSON line per measurement, and a table for people."""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

ROWS = "rows.jsonl"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of some work, and the most memory of the device that PyTorch held meanwhile."""

    seconds: float
    peak_gb: float | None


@dataclass(frozen=True, slots=True)
class Part:
    """What a part of the receipt is given.

    Attributes:
        name: of the part.
        device: "cuda" or "cpu".
        tiny: a few thousand parameters and one repeat: a test that everything still runs.
        folder: where the results go.
        scratch: folder for large files, shared by the parts and removed at the end.
        budget_s: the time it has; beyond it, it is killed.
        begun_s: when it began, by `time.monotonic`.
    """

    name: str
    device: str
    tiny: bool
    folder: Path
    scratch: Path
    budget_s: float
    begun_s: float

    def row(self, what: str, **values: Any) -> None:
        """Write a measurement down at once: whatever happens later, it is there."""
        kept = {name: _plain(value) for name, value in values.items() if value is not None}
        line = {"part": self.name, "what": what, **kept}
        with (self.folder / ROWS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        shown = ", ".join(f"{name} {value}" for name, value in kept.items())
        print(f"[{self.spent_s():5.1f} s] {self.name}: {what}: {shown}", flush=True)

    def spent_s(self) -> float:
        """Seconds since the part began."""
        return time.monotonic() - self.begun_s

    def left_s(self) -> float:
        """Seconds until it is killed."""
        return self.budget_s - self.spent_s()

    def attempt(
        self, what: str, work: Callable[[], Mapping[str, Any] | None], needs_s: float = 0.0
    ) -> None:
        """Do one measurement; an error is a row too, and the next measurement goes on.

        Args:
            what: names the row.
            work: gives the values of the row, or None if it writes its own rows.
            needs_s: it is left out if less time than this is left.
        """
        if self.left_s() < needs_s:
            self.row(what, skipped=f"{self.left_s():.0f} s left, needs {needs_s:.0f} s")
            return
        try:
            values = work()
        except Exception as error:
            traceback.print_exc(limit=-4)
            self.row(what, error=f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        else:
            if values is not None:
                self.row(what, **values)
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def timed(self, work: Callable[[], object], repeats: int = 1) -> Timed:
        """Mean seconds of some repeats, the device idle before and after."""
        cuda = self.device == "cuda"
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        for _ in range(repeats):
            work()
        if cuda:
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - begin) / repeats
        return Timed(seconds, torch.cuda.max_memory_allocated() / 1e9 if cuda else None)

    def timed_result(self, work: Callable[[], T]) -> tuple[Timed, T]:
        """Seconds of some work done once, and what it gives."""
        kept: list[T] = []
        timed = self.timed(lambda: kept.append(work()))
        return timed, kept[0]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    return value


def read(folder: Path) -> list[dict[str, Any]]:
    """All measurements so far."""
    path = folder / ROWS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def render(folder: Path, head: Mapping[str, Any]) -> None:
    """Write `receipt.json` and `receipt.md` from the measurements so far."""
    rows = read(folder)
    text = json.dumps({**head, "rows": rows}, indent=1)
    (folder / "receipt.json").write_text(text, encoding="utf-8")
    parts = dict.fromkeys(row["part"] for row in rows)
    tables = [f"# GPU receipt\n\n{_facts(head)}"]
    tables += [_table(part, [row for row in rows if row["part"] == part]) for part in parts]
    (folder / "receipt.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")


def _facts(head: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in head.items())


def _table(part: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of one part, one table per set of columns in a row."""
    lines, before = [f"## {part}"], None
    for row in rows:
        columns = [name for name in row if name != "part"]
        if columns != before:
            lines += ["", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
            before = columns
        lines.append("| " + " | ".join(str(row[name]) for name in columns) + " |")
    return "\n".join(lines)
