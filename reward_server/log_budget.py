"""How many lines of one kind the log gets: a flood is told, not repeated."""

from __future__ import annotations

import time
from collections.abc import Callable

LINES_PER_S = 10.0
BURST_LINES = 50.0


class LogBudget:
    """A token bucket per kind of line; kinds must be few and fixed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lines: dict[str, float] = {}
        self._since_s: dict[str, float] = {}
        self._suppressed: dict[str, int] = {}

    def ask(self, kind: str) -> int | None:
        """Whether to write a line now: None for no, else how many were held back before it."""
        now_s = self._clock()
        earned = LINES_PER_S * (now_s - self._since_s.get(kind, now_s))
        left = min(BURST_LINES, self._lines.get(kind, BURST_LINES) + earned)
        self._since_s[kind] = now_s
        if left < 1:
            self._lines[kind] = left
            self._suppressed[kind] = self._suppressed.get(kind, 0) + 1
            return None
        self._lines[kind] = left - 1
        return self._suppressed.pop(kind, 0)
