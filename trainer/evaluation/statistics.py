"""From the scores of an evaluation's images to means with intervals, as plain numbers.

Accuracies are means over the images of a category; the headline is the mean of the categories. The
95 % intervals are bootstraps over prompts, since images of one prompt are alike. An image without a
score is in no mean. Diversity measures how different the images of one prompt are: collapse shows
there before it shows in a reward.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.ma import MaskedArray
from numpy.typing import NDArray

from trainer.images import Pixels

Row = dict[str, Any]
Floats = NDArray[np.float64]
NOTHING: Row = {"mean": None, "low": None, "high": None, "n": 0}


def _resampled_means(totals: Floats, counts: Floats, seed: int, resamples: int) -> Floats:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(totals), size=(resamples, len(totals)))
    return totals[rows].sum(1) / counts[rows].sum(1)


def estimate(mean: float, means: Floats, count: float) -> Row:
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(mean), "low": float(low), "high": float(high), "n": int(count)}


def summarise(
    scores: Sequence[float | None],
    prompt_index: Sequence[int],
    groups: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Row:
    """Means with 95 % intervals by bootstrap over prompts, as plain numbers.

    Images of one prompt are not independent, so prompts are drawn, with all their images.

    Args:
        scores: One per image; None where scoring failed.
        prompt_index: The prompt of each image.
        groups: The group of each prompt.
        resamples: Bootstrap draws.
        seed: Seeds them.

    Returns:
        `mean`, `low`, `high` of the mean of the groups' means (GenEval's headline number), `n`
        (images with a score), and `categories`: the same four of each group. Means are None where
        nothing has a score.
    """
    if len(scores) != len(prompt_index):
        raise ValueError(f"{len(scores)} scores for {len(prompt_index)} images")
    totals, counts = np.zeros(len(groups)), np.zeros(len(groups))
    for score, prompt in zip(scores, prompt_index, strict=True):
        if score is not None:
            totals[prompt] += score
            counts[prompt] += 1
    scored = counts > 0
    if not scored.any():
        return {**NOTHING, "categories": {}}
    found: dict[str, Row] = {}
    draws: list[Floats] = []
    for place, name in enumerate(sorted(set(groups))):
        rows = scored & np.array([group == name for group in groups])
        if rows.any():
            means = _resampled_means(totals[rows], counts[rows], seed + 1 + place, resamples)
            draws.append(means)
            count = counts[rows].sum()
            found[name] = estimate(totals[rows].sum() / count, means, count)
    middle = float(np.mean([row["mean"] for row in found.values()]))
    return {**estimate(middle, np.mean(draws, axis=0), counts.sum()), "categories": found}


def by_prompt(
    scores: Sequence[float | None], prompt_index: Sequence[int], groups: Sequence[str]
) -> dict[str, list[float | None]]:
    """The mean of each prompt's images by group, in the order of prompts; None without a score.

    Two evaluations of the same prompts from the same noise are compared by it, prompt by prompt.
    """
    found: dict[int, list[float]] = {prompt: [] for prompt in sorted(set(prompt_index))}
    for score, prompt in zip(scores, prompt_index, strict=True):
        if score is not None:
            found[prompt].append(score)
    out: dict[str, list[float | None]] = defaultdict(list)
    for prompt, values in found.items():
        out[groups[prompt]].append(round(fmean(values), 6) if values else None)
    return dict(out)


def paired(
    before: Mapping[str, Sequence[float | None]], after: Mapping[str, Sequence[float | None]]
) -> Row:
    """The mean difference of two evaluations of the same prompts, as `summarise` has it.

    Args:
        before: of `by_prompt`.
        after: the same, of as many prompts.

    Raises:
        ValueError: Groups or numbers of prompts that differ.
    """
    if {k: len(v) for k, v in before.items()} != {k: len(v) for k, v in after.items()}:
        raise ValueError("these are not the same prompts")
    groups = [name for name, values in before.items() for _ in values]
    pairs = [p for name in before for p in zip(before[name], after[name], strict=True)]
    changes = [None if a is None or b is None else b - a for a, b in pairs]
    return summarise(changes, range(len(changes)), groups)


Features = NDArray[np.floating]
_BINS = 4


def diversity(images: Pixels) -> float:
    """Mean RMS distance in [0, 1] between the pixels of two images of a prompt.

    Images are (N, H, W, 3) uint8, N at least 2.
    """
    pixels = images.reshape(len(images), -1).astype(np.float32) / 255
    return _mean_distance(pixels, lambda d: np.sqrt(np.mean(d**2, axis=1)))


def color_diversity(images: Pixels) -> float:
    """Mean distance in [0, 1] between the colours of two images of a prompt.

    The distance is the total variation between histograms of 4x4x4 RGB bins: it ignores where
    things are, so it sees all pictures drift to one colour, which `diversity` does not.
    """
    histograms = np.stack([_color_histogram(image) for image in images])
    return _mean_distance(histograms, lambda d: np.abs(d).sum(axis=1) / 2)


# What evaluations watch; each asks for two images of one prompt.
DIVERSITIES: dict[str, Callable[[Pixels], float]] = {
    "diversity": diversity,
    "colour diversity": color_diversity,
}


def _mean_distance(features: Features, size: Callable[[Features], Features]) -> float:
    """Mean size of the difference of a pair; features (N, D)."""
    pairs = [size(features[i] - features[i + 1 :]) for i in range(len(features) - 1)]
    return float(np.concatenate(pairs).mean())


def _color_histogram(image: Pixels) -> Features:
    """Shares of the pixels (H, W, 3) in each of 4x4x4 RGB bins."""
    bins = (image // (256 // _BINS)).reshape(-1, 3).astype(np.intp) @ (_BINS**2, _BINS, 1)
    counts = np.bincount(bins, minlength=_BINS**3)
    return (counts / counts.sum()).astype(np.float32)


def distinct(outputs: Mapping[str, MaskedArray]) -> dict[str, MaskedArray]:
    """The outputs without the untransformed scores that no transform has changed."""
    rows = {name: column.tolist() for name, column in outputs.items()}
    return {
        name: column
        for name, column in outputs.items()
        if not (name.endswith(".raw") and rows[name] == rows.get(name.removesuffix(".raw")))
    }
