"""Mean and spread of the latest scores: a reward that drifts or collapses shows at once.

A histogram alone does not show this: its buckets are the same for scorers of all ranges, and a sum
of scores that may be negative is not a counter.
"""

from __future__ import annotations

import statistics
from collections import deque

WINDOW_SCORES = 1024


class ScoreWindow:
    """The last `WINDOW_SCORES` scores of one scorer."""

    def __init__(self) -> None:
        self._scores: deque[float] = deque(maxlen=WINDOW_SCORES)

    def add(self, score: float) -> None:
        """Take a finite score in; the oldest leaves once the window is full."""
        self._scores.append(score)

    def __len__(self) -> int:
        return len(self._scores)

    def mean(self) -> float:
        """Mean of the scores in the window.

        Raises:
            statistics.StatisticsError: there are none.
        """
        return statistics.fmean(self._scores)

    def std(self) -> float:
        """Standard deviation of the scores in the window, 0 for one score.

        Raises:
            statistics.StatisticsError: there are none.
        """
        mean = self.mean()
        return statistics.fmean((score - mean) ** 2 for score in self._scores) ** 0.5
