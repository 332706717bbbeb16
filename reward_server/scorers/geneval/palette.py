"""The miniature's six colours, and a table from any colour to the nearest of them.

Distances are Euclidean in OKLab (Bjoern Ottosson, 2020), where equal distances look about equally
different; the table has 32 steps per channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 40, 40),
    "yellow": (242, 202, 30),
    "green": (40, 165, 70),
    "blue": (40, 95, 225),
    "purple": (145, 60, 185),
    "black": (30, 30, 34),
}

# OKLab distances; blue and purple, the closest pair, are 0.17 apart, so their mean is impure.
_PURE, _IMPURE = 0.045, 0.105

_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest palette colour, by quantised RGB (32768,) or of the pixels of a batch (N, H, W).

    Attributes:
        rgb: (C, 3) float32 palette in 0..255.
        nearest: index of the nearest palette colour.
        distance: distance from it, in OKLab.
        purity: how surely it is that colour: 1 close to it, 0 far from every colour.
    """

    rgb: NDArray[np.float32]
    nearest: NDArray[np.intp]
    distance: NDArray[np.float32]
    purity: NDArray[np.float32]


def oklab(rgb: NDArray[np.floating]) -> NDArray[np.float64]:
    """OKLab (L in 0..1, a, b) of sRGB values (..., 3) in 0..255."""
    value = np.asarray(rgb, dtype=np.float64) / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _LMS.T) @ _LAB.T


def build() -> Nearest:
    """Compute the table; a few milliseconds."""
    steps = np.arange(32) * 8 + 3.5
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    colors = np.array(list(COLORS.values()), dtype=np.float32)
    distances = np.linalg.norm(oklab(grid)[:, None] - oklab(colors)[None], axis=-1)
    # Near black a step of grey levels is twice as far in OKLab as it looks.
    distances /= np.array([2.0 if name == "black" else 1.0 for name in COLORS])
    shortest = distances.min(axis=1).astype(np.float32)
    purity = np.clip((_IMPURE - shortest) / np.float32(_IMPURE - _PURE), 0, 1)
    return Nearest(colors, distances.argmin(axis=1), shortest, purity)


def classify(rgb: NDArray[np.uint8], table: Nearest) -> Nearest:
    """Look up every uint8 RGB pixel (N, H, W, 3)."""
    step = rgb >> 3
    entry = (step[..., 0].astype(np.intp) << 10) | (step[..., 1].astype(np.intp) << 5)
    entry |= step[..., 2]
    nearest, distance = table.nearest.take(entry), table.distance.take(entry)
    return Nearest(table.rgb, nearest, distance, table.purity.take(entry))
