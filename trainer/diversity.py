"""How different the images of one prompt are: collapse shows here before it shows in a reward."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Features = NDArray[np.floating]
_BINS = 4


def diversity(images: Pixels, prompt_index: Sequence[int]) -> float:
    """Mean RMS distance in [0, 1] between the pixels of two images of the same prompt.

    Args:
        images: (N, H, W, 3) uint8.
        prompt_index: N prompt numbers; prompts count alike, those with one image not at all.

    Raises:
        ValueError: No prompt has two images.
    """
    pixels = images.reshape(len(images), -1).astype(np.float32) / 255
    return _mean_distance(pixels, prompt_index, _rms)


def color_diversity(images: Pixels, prompt_index: Sequence[int]) -> float:
    """Mean distance in [0, 1] between the colours of two images of the same prompt.

    The distance is the total variation between histograms of 4x4x4 RGB bins: it ignores where
    things are, so it sees all pictures drift to one colour, which `diversity` does not.

    Args:
        images: (N, H, W, 3) uint8.
        prompt_index: N prompt numbers; prompts count alike, those with one image not at all.

    Raises:
        ValueError: No prompt has two images.
    """
    histograms = np.stack([_color_histogram(image) for image in images])
    return _mean_distance(histograms, prompt_index, _total_variation)


# What evaluations watch; each asks for two images of one prompt.
DIVERSITIES: dict[str, Callable[[Pixels, Sequence[int]], float]] = {
    "diversity": diversity,
    "colour diversity": color_diversity,
}


def _mean_distance(
    features: Features,
    prompt_index: Sequence[int],
    distance: Callable[[Features, Features], Features],
) -> float:
    """Mean over prompts of the mean distance over pairs; features (N, D)."""
    index = np.asarray(prompt_index)
    means = []
    for prompt in np.unique(index):
        own = features[index == prompt]
        pairs = [distance(own[i], own[i + 1 :]) for i in range(len(own) - 1)]
        if pairs:
            means.append(float(np.concatenate(pairs).mean()))
    if not means:
        raise ValueError("diversity needs two images of one prompt")
    return float(np.mean(means))


def _rms(one: Features, others: Features) -> Features:
    return np.sqrt(np.mean((one - others) ** 2, axis=1))


def _total_variation(one: Features, others: Features) -> Features:
    return np.abs(one - others).sum(axis=1) / 2


def _color_histogram(image: Pixels) -> Features:
    """Shares of the pixels (H, W, 3) in each of 4x4x4 RGB bins."""
    bins = (image // (256 // _BINS)).reshape(-1, 3).astype(np.intp) @ (_BINS**2, _BINS, 1)
    counts = np.bincount(bins, minlength=_BINS**3)
    return (counts / counts.sum()).astype(np.float32)
