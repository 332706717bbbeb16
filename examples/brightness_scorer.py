"""A scorer of one's own: how bright a picture is, between two grey levels."""

import sys
from collections.abc import Sequence

import numpy as np

from reward_server.scorers import tools
from reward_server.scorers.base import ItemScore, Outcome, ScoreInput, ScorerSpec, raw


def darkness(score: ItemScore) -> float:
    """1 for black: the same measurement, for those who want the opposite."""
    return 1.0 - score.raw


class BrightnessScorer:
    """0 at grey level `black` and below, 1 at `white` and above, linear between them."""

    spec = ScorerSpec(
        name="brightness",
        version="1",
        inputs=("image",),
        transforms={"raw": raw, "darkness": darkness},
        default_transform="raw",
        output_range=(0.0, 1.0),
    )

    def __init__(self, black: float = 0.0, white: float = 255.0) -> None:
        if not 0 <= black < white <= 255:
            raise ValueError(f"need 0 <= black < white <= 255, got {black} and {white}")
        self._black, self._white = black, white

    def load(self, device: str) -> None:
        """There are no weights."""

    def fingerprint(self) -> str:
        """Changes with the source of this file and with the options."""
        levels = {"black": str(self._black), "white": str(self._white)}
        return tools.digest([sys.modules[__name__]], levels)

    def self_test(self) -> None:
        """Half way between the levels is one half."""
        middle = np.full((8, 8, 3), (self._black + self._white) / 2)
        tools.check_close("brightness", self.measure(middle), 0.5, 1e-6, "a bug in measure()")

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        """One outcome per item, in order; what is wrong with one item costs no other."""
        return [self.one(item, details) for item in batch]

    def one(self, item: ScoreInput, details: bool) -> Outcome:
        """Score one item."""
        problem = tools.image_problem(item, self.spec.name)
        if problem is not None:
            return problem
        image = item.images[0]  # (height, width, 3) uint8 RGB, read-only
        shown = {"mean_level": float(image.mean())} if details else None
        return ItemScore(self.measure(image), {"contrast": float(image.std()) / 127.5}, shown)

    def measure(self, image: np.ndarray) -> float:
        """Brightness of a picture (height, width, 3) in [0, 1]."""
        level = (image.mean() - self._black) / (self._white - self._black)
        return float(np.clip(level, 0.0, 1.0))
