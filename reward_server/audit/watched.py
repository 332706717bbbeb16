"""The cheap rewards that a training run can watch: which of them notice an exploit?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reward_client.images import UInt8Image
from reward_server.audit.statistics import Row, interval
from reward_server.scorers import load_scorer_class
from reward_server.scorers.base import ItemScore, ScoreInput, Scorer

# Outputs by scorer: their entries in `rewards.watch` of a trainer's config.
OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "jpeg": ("bits_per_px",),
    "shapes_quality": ("background", "sharpness", "purity"),
}
# Below this, these are no pictures that `shapes_quality` was made for.
_LEAST_QUALITY = 0.3

Measured = Mapping[str, NDArray[np.float64]]


class Watched:
    """The rewards to watch, which run in this process and need no weights.

    Args:
        audited: name of the scorer under audit, which cannot watch itself.
    """

    def __init__(self, audited: str) -> None:
        self._scorers: dict[str, Scorer] = {}
        for name in OUTPUTS:
            if name != audited:
                self._scorers[name] = load_scorer_class(name)()
                self._scorers[name].load("cpu")

    def measure(self, images: Sequence[UInt8Image]) -> Measured:
        """Scores of pictures by `scorer.output`; what has none is left out."""
        columns: dict[str, list[float]] = {}
        batch = [ScoreInput("", (image,)) for image in images]
        for name, scorer in self._scorers.items():
            for outcome in scorer.score(batch, details=False):
                if isinstance(outcome, ItemScore):
                    for output in OUTPUTS[name]:
                        columns.setdefault(f"{name}.{output}", []).append(
                            outcome.components[output]
                        )
        return {name: np.array(values) for name, values in columns.items()}

    def compare(self, before: Measured, after: Measured, share: float) -> list[Row]:
        """How each mean changes, relative to the untouched pictures, the largest change first.

        `caught` says whether it changes by more than `share` and beyond chance.
        """
        found: list[dict[str, Any]] = []
        for name, values in before.items():
            mean = float(values.mean())
            unfit = name.startswith("shapes_quality") and mean < _LEAST_QUALITY
            if unfit or mean == 0 or name not in after:
                continue
            change = interval(((after[name] - mean) / abs(mean)).tolist())
            sure = change["low"] > 0 or change["high"] < 0
            caught = sure and abs(change["mean"]) > share
            found.append({"name": name, "change": change["mean"], "caught": bool(caught)})
        return sorted(found, key=lambda row: -abs(row["change"]))
