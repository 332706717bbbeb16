"""Scorers that read one pixel: whatever a benchmark measures with them, it is not scoring."""

from __future__ import annotations

import time
from collections.abc import Sequence

from reward_server.scorers.base import ItemScore, Outcome, ScoreInput, ScorerSpec, raw


class NullScorer:
    """The red of the middle pixel, in [0, 1]."""

    spec = ScorerSpec(
        name="null",
        version="1",
        inputs=("image",),
        transforms={"raw": raw},
        default_transform="raw",
        output_range=(0.0, 1.0),
    )

    def load(self, device: str) -> None:
        """There are no weights."""

    def fingerprint(self) -> str:
        """The same for ever."""
        return "null"

    def self_test(self) -> None:
        """There is nothing to test."""

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        """One outcome per item, in order."""
        return [ItemScore(_middle(item)) for item in batch]


class SleepingScorer(NullScorer):
    """The same, after a sleep per batch, as of a GPU that is computing.

    Args:
        seconds: per batch, whatever its size.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        """One outcome per item, in order."""
        time.sleep(self._seconds)
        return super().score(batch, details=details)


def _middle(item: ScoreInput) -> float:
    image = item.images[0]
    return float(image[image.shape[0] // 2, image.shape[1] // 2, 0]) / 255
