"""How fast a queue empties: the retry time of rejected callers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

_WINDOW_S = 10.0
_BUCKET_S = 0.05


class DrainRate:
    """Units per second that left while there was something to leave."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._busy_since_s: float | None = None
        self._left: deque[tuple[float, int]] = deque()
        self._last_per_s = 0.0

    def busy(self) -> None:
        """Something waits; time counts from here on."""
        if self._busy_since_s is None:
            self._busy_since_s = self._clock()

    def idle(self) -> None:
        """Nothing waits; the rate of now is remembered for the next time."""
        self._last_per_s = self.per_s()
        self._busy_since_s = None
        self._left.clear()

    def add(self, units: int) -> None:
        """So many units left."""
        now_s = self._clock()
        if self._left and now_s - self._left[-1][0] < _BUCKET_S:
            at_s, before = self._left.pop()
            self._left.append((at_s, before + units))
        else:
            self._left.append((now_s, units))

    def per_s(self) -> float:
        """Units per second over the last seconds; 0 if nothing is known."""
        if self._busy_since_s is None:
            return self._last_per_s
        now_s = self._clock()
        begin_s = max(self._busy_since_s, now_s - _WINDOW_S)
        while self._left and self._left[0][0] < begin_s:
            self._left.popleft()
        span_s = max(now_s - begin_s, _BUCKET_S)
        if not self._left:
            # A queue that stands still is not as fast as it was.
            return min(self._last_per_s, 1 / span_s)
        return sum(units for _, units in self._left) / span_s
