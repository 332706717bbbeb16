"""What the golden self-test of a COCO detector looks at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from reward_server.scorers import golden
from reward_server.scorers.base import ItemScore, Outcome, ScoreInput, ScorerSpec, raw
from reward_server.scorers.geneval import coco, crops
from reward_server.scorers.geneval.segmenter import Instances, Segmenter
from reward_server.scorers.torch_tools import Tolerance

if TYPE_CHECKING:
    from reward_server.scorers.geneval.clip_colors import ColorClassifier, ColorGuess

_LABEL = "apple"
# A rounding may flip a pixel of a mask inside the network, which moves a query by more than itself.
FLOAT32 = Tolerance(recorded=1e-2, company=1e-3)


class DetectorProbe:
    """A detector whose scores are continuous numbers instead of decisions.

    GenEval's own scores are decisions, equal for most pictures and blind to small errors. Measured
    are the instances' scores and masks, and the cosines of colours in a fixed part of the picture,
    which does not depend on the instances.

    Args:
        segmenter: loaded.
        colors: loaded.
        digest: of the weights.
        fingerprint: of the detector.
        tolerance: of the type that the networks run in.
    """

    spec = ScorerSpec("geneval", "1", ("image",), {"raw": raw}, "raw", (0.0, 1.0))

    def __init__(
        self,
        segmenter: Segmenter,
        colors: ColorClassifier,
        *,
        digest: str,
        fingerprint: str,
        tolerance: Tolerance,
    ) -> None:
        self._segmenter = segmenter
        self._colors = colors
        self._digest = digest
        self._fingerprint = fingerprint
        self.golden_tolerance, self.company_tolerance = tolerance.recorded, tolerance.company

    def weights_digest(self) -> str:
        """Digest over the weights of both networks."""
        return self._digest

    def fingerprint(self) -> str:
        """The detector's."""
        return self._fingerprint

    def golden_items(self) -> list[ScoreInput]:
        """Four drawings."""
        return [ScoreInput("", (picture,)) for picture in golden.pictures()]

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        """Mean score of the instances, the share they cover, and the colours of a central disc."""
        images = [item.images[0] for item in batch]
        found = self._segmenter.segment(images, 0.0)
        discs = [crops.cut_out(image, *_disc(*image.shape[:2])) for image in images]
        guesses = self._colors.classify(discs, [_LABEL] * len(discs))
        return [_score(*pair) for pair in zip(found, guesses, strict=True)]


def _score(instances: Instances, guess: ColorGuess) -> ItemScore:
    weight = instances.scores / max(float(instances.scores.sum()), 1e-9)
    covered = float((instances.masks.mean(axis=(1, 2)) * weight).sum())
    colors = {name: float(c) for name, c in zip(coco.COLORS, guess.cosines, strict=True)}
    return ItemScore(float(instances.scores.mean()), {"covered": covered, **colors})


def _disc(height: int, width: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    y, x = np.mgrid[0:height, 0:width]
    squared = ((x + 0.5) / width - 0.5) ** 2 + ((y + 0.5) / height - 0.5) ** 2
    return squared < 0.16, np.array([0, 0, width, height], dtype=np.float64)
