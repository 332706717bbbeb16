"""From the scores of an evaluation's images to means with intervals, as plain numbers.

Accuracies are means over the images of a category; the headline is the mean of the categories. The
95 % intervals treat prompts as the independent draws, since images of one prompt are alike. An
image without a score is in no mean.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.ma import MaskedArray
from numpy.typing import NDArray

from trainer.errors import TrainerError
from trainer.eval_plan import Job
from trainer.evaluate import Estimate, summarise
from trainer.rewards import Scores
from trainer.types import Prompt


@dataclass(frozen=True, slots=True)
class Part:
    """What one process found; goes to all others.

    Attributes:
        rows: (prompt index, image number) of its N images.
        scores: of these images; None if it had none, or why there are none.
        distances: N distances to the base model, or none at all.
        diversity: prompt index -> value, per entry of `DIVERSITIES`.
        shown: pictures by prompt index.
    """

    rows: tuple[Job, ...]
    scores: Scores | TrainerError | None
    distances: tuple[float, ...]
    diversity: Mapping[str, Mapping[int, float]]
    shown: Mapping[int, NDArray[np.uint8]]


def joined_columns(
    parts: Iterable[Mapping[str, Mapping[int, float]]],
) -> dict[str, dict[int, float]]:
    """The columns of all processes by name; those without a value are left out."""
    out: dict[str, dict[int, float]] = defaultdict(dict)
    for part in parts:
        for name, column in part.items():
            if column:
                out[name].update(column)
    return dict(out)


def distinct(outputs: Mapping[str, MaskedArray]) -> dict[str, MaskedArray]:
    """The outputs without the untransformed scores that no transform has changed."""
    return {
        name: column
        for name, column in outputs.items()
        if not (name.endswith(".raw") and _equal(column, outputs.get(name.removesuffix(".raw"))))
    }


def _equal(one: MaskedArray, other: MaskedArray | None) -> bool:
    return other is not None and one.tolist() == other.tolist()


def column_row(
    values: MaskedArray, index: Sequence[int], prompts: Sequence[Prompt]
) -> dict[str, Any]:
    """`summary_row` of (N,) values that are masked where an image has no score."""
    return summary_row(values.tolist(), index, prompts)


def summary_row(
    scores: Sequence[float | None], index: Sequence[int], prompts: Sequence[Prompt]
) -> dict[str, Any]:
    """Means with 95 % intervals as plain numbers.

    Args:
        scores: one per image; None where scoring failed.
        index: the prompt of each image.
        prompts: all held-out prompts.

    Returns:
        `mean`, `low`, `high` of the mean of the categories, `n` (images with a score), and
        `categories` with the same four each. Means are None where nothing has a score.
    """
    if all(score is None for score in scores):
        return {"mean": None, "low": None, "high": None, "n": 0, "categories": {}}
    found = summarise(scores, index, [prompt.group or "all" for prompt in prompts])
    return {
        **_plain(found.mean_of_groups),
        "categories": {name: _plain(row) for name, row in found.groups.items()},
    }


def _plain(estimate: Estimate) -> dict[str, Any]:
    return {
        "mean": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.count,
    }
