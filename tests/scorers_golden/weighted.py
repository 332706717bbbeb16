"""The weighted mean of the channels, and scorers broken in ways that a self-test must notice."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import numpy as np

from reward_server.scorers import golden, tools
from reward_server.scorers.base import (
    ItemFailure,
    ItemScore,
    Outcome,
    ScoreInput,
    ScorerSpec,
    raw,
)
from reward_server.weights import store

WEIGHTS_FILE = "channels.npy"


class Weighted:
    """Weights (3,) times the mean colour; `gain` stands for whatever changes scores by accident."""

    spec = ScorerSpec(
        name="weighted",
        version="1",
        inputs=("image",),
        transforms={"raw": raw},
        default_transform="raw",
        output_range=(0.0, 1.0),
    )
    golden_tolerance = 1e-3

    def __init__(self, weights: str, gain: float = 1.0) -> None:
        self._folder = weights
        self._gain = gain

    def load(self, device: str) -> None:
        folder = store.require("weighted", self._folder, [WEIGHTS_FILE])
        self._path = folder / WEIGHTS_FILE
        self._weights = np.load(self._path)

    def weights_digest(self) -> str:
        return store.digest_of([self._path])

    def fingerprint(self) -> str:
        facts = {"weights": self.weights_digest(), "gain": str(self._gain)}
        return tools.digest([sys.modules[__name__]], facts)

    def golden_items(self) -> list[ScoreInput]:
        return [ScoreInput("", (picture,)) for picture in golden.pictures(32)]

    def self_test(self) -> None:
        golden.self_test(self)

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        return [self.one(item) for item in batch]

    def one(self, item: ScoreInput) -> Outcome:
        colour = item.images[0].reshape(-1, 3).mean(axis=0) / 255
        value = float(self._gain * (self._weights @ colour))
        return ItemScore(value, {"red": float(colour[0])})


class AllEqual(Weighted):
    """A kernel that did not run: whatever goes in, rounding comes out."""

    def one(self, item: ScoreInput) -> Outcome:
        return ItemScore(0.5 + 1e-9 * float(item.images[0][0, 0, 0]), {"red": 0.0})


class NotFinite(Weighted):
    def one(self, item: ScoreInput) -> Outcome:
        return ItemScore(float(item.images[0].mean()) / 255, {"red": float("nan")})


class OutOfRange(Weighted):
    def one(self, item: ScoreInput) -> Outcome:
        return ItemScore(float(item.images[0].mean()), {"red": 0.0})


class BatchDependent(Weighted):
    """Normalises over the batch."""

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        means = np.array([item.images[0].mean() / 255 for item in batch])
        return [ItemScore(float(v - means.mean()) / 2 + 0.5, {}) for v in means]


class Swapped(Weighted):
    """Returns the right scores in another order."""

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        return super().score(batch, details=details)[::-1]


class Short(Weighted):
    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        return super().score(batch, details=details)[:-1]


class FailsOne(Weighted):
    """Cannot score noise."""

    def one(self, item: ScoreInput) -> Outcome:
        if item.images[0].std() > 70 and item.images[0][0, 0, 0] == 0:
            return tools.invalid("images[0]: too noisy")
        return super().one(item)


class FailsAlone(Weighted):
    """Works on batches only."""

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        if len(batch) == 1:
            return [ItemFailure(tools.invalid("").code, "cannot squeeze a batch of one")]
        return super().score(batch, details=details)


class Ragged(Weighted):
    """Components that depend on the item."""

    def one(self, item: ScoreInput) -> Outcome:
        outcome = super().one(item)
        assert isinstance(outcome, ItemScore)
        return ItemScore(outcome.raw, outcome.components if outcome.raw > 0.5 else {})


class FewItems(Weighted):
    def golden_items(self) -> list[ScoreInput]:
        return super().golden_items()[:2]


class Unsteady(Weighted):
    """Other scores in every process."""

    def one(self, item: ScoreInput) -> Outcome:
        colour = float(item.images[0].mean()) / 255
        return ItemScore((colour + os.getpid() * 0.618) % 1.0, {})
