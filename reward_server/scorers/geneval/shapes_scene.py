"""From pixels to candidate objects: background, foreground, connected components.

Works on a batch of equally large pictures at working resolution (see `to_working_size`). The scene
is assumed to be coloured shapes on a light, smooth background; where that does not hold there are
simply no candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from reward_server.scorers.base import UInt8Image

Array = NDArray[np.float32]

WORKING_PX = 64
_KEEP_UP_TO_PX = 96
_KEEP_FROM_PX = 48
_STACK = 16  # pictures analysed together: more of them fall out of the cache

# A background darker than this in any channel hides what is drawn on it.
MIN_BACKGROUND_LEVEL = 150.0
_MIN_BACKGROUND_SHARE = 0.2
_INLIER_LEVELS = 25.0

# Only a picture's neighbours in its own plane connect: one call labels a whole batch.
_IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
_IN_PLANE[1] = True


@dataclass(frozen=True, slots=True)
class Scenes:
    """A batch at working resolution.

    Attributes:
        rgb: (N, H, W, 3) float32 in 0..255.
        background: (N, H, W, 3) float32, the smooth background under every pixel.
        depth: (N, H, W) float32, how far a pixel is below the background in its darkest channel;
            mixing a colour into the background scales it linearly.
        lit: (N,) bool, False where no light background was found.
        labels: (N, H, W) int32, component numbers from 1 over the whole batch, 0 = background.
        places: per component its slices (picture, rows, columns).
    """

    rgb: Array
    background: Array
    depth: Array
    lit: NDArray[np.bool_]
    labels: NDArray[np.int32]
    places: list[tuple[slice, slice, slice]]


def working_scale(height: int, width: int) -> float:
    """Factor from the pixels given to the pixels worked on; 1 for sides of 48 to 96 px."""
    side = min(height, width)
    return 1.0 if _KEEP_FROM_PX <= side <= _KEEP_UP_TO_PX else WORKING_PX / side


def to_working_size(image: UInt8Image) -> UInt8Image:
    """Bring the shorter side to 64 px: box-averaged from above, bicubic from below."""
    height, width = image.shape[:2]
    scale = working_scale(height, width)
    if scale == 1.0:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    kernel = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize(size, kernel))


def stacks(
    images: Sequence[NDArray[np.uint8]],
) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
    """Pictures of any sizes at working size, by shape: their indices, and (N, H, W, 3) of them."""
    groups: dict[tuple[int, ...], list[int]] = {}
    small = [to_working_size(image) for image in images]
    for index, image in enumerate(small):
        groups.setdefault(image.shape, []).append(index)
    for members in groups.values():
        for start in range(0, len(members), _STACK):
            chunk = members[start : start + _STACK]
            yield chunk, np.stack([small[index] for index in chunk])


def analyse(images: NDArray[np.uint8]) -> Scenes:
    """Separate background and objects of uint8 RGB (N, H, W, 3) at working resolution."""
    rgb = images.astype(np.float32)
    background, lit = fit_background(rgb)
    depth = over_channels(np.maximum, background - rgb)
    # Half of what a full palette colour would be: the darkest channel of each is about 35.
    level = 0.5 * (over_channels(np.minimum, background).mean(axis=(1, 2)) - 35.0)
    foreground = (depth > level[:, None, None]) & lit[:, None, None]
    labels = np.empty(foreground.shape, dtype=np.int32)
    ndimage.label(foreground, structure=_IN_PLANE, output=labels)
    return Scenes(rgb, background, depth, lit, labels, ndimage.find_objects(labels))


def fit_background(rgb: Array) -> tuple[Array, NDArray[np.bool_]]:
    """A quadratic surface per channel through the light pixels, fitted twice without outliers.

    Args:
        rgb: (N, H, W, 3) float32.

    Returns:
        The background (N, H, W, 3), and per picture whether there is one (a light one, on at least
        a fifth of the pixels).
    """
    n, height, width, _ = rgb.shape
    sample = _sample(height * width)
    basis = _basis(height, width).reshape(-1, 6)
    thin, basis_thin = rgb.reshape(n, -1, 3).take(sample, axis=1), basis[sample]
    darkest = over_channels(np.minimum, thin)
    # Objects may cover half of the picture, so the third quartile lies in the background.
    place = (3 * darkest.shape[1]) // 4
    typical = np.partition(darkest, place, axis=1)[:, place]
    weight = (darkest > typical[:, None] - 45.0).astype(np.float32)
    coefficients = _solve(basis_thin, thin, weight)
    for _ in range(2):
        residual = over_channels(np.maximum, np.abs(thin - basis_thin @ coefficients))
        weight = (residual < _INLIER_LEVELS).astype(np.float32)
        coefficients = _solve(basis_thin, thin, weight)
    lit = (typical > MIN_BACKGROUND_LEVEL) & (weight.mean(axis=1) > _MIN_BACKGROUND_SHARE)
    return (basis @ coefficients).reshape(n, height, width, 3), lit


def over_channels(extreme: np.ufunc, values: Array) -> Array:
    """Minimum or maximum over the last axis of three; ten times faster than numpy's reduction."""
    return extreme(extreme(values[..., 0], values[..., 1]), values[..., 2])


def _sample(count: int) -> NDArray[np.intp]:
    """A quarter of the pixels, plenty for six coefficients; scattered, so no texture can hide."""
    scattered = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761)) >> np.uint64(13)
    return np.flatnonzero(scattered % np.uint64(4) == 0)


def _basis(height: int, width: int) -> Array:
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    one = np.ones((height, width), dtype=np.float32)
    return np.stack([one, one * x, one * y, one * x * x, x * y, one * y * y], axis=-1)


def _solve(basis: Array, values: Array, weight: Array) -> Array:
    """Weighted least squares per picture: (P, 6), (N, P, 3), (N, P) -> (N, 6, 3)."""
    products = (basis[:, :, None] * basis[:, None, :]).reshape(-1, 36)
    gram = (weight @ products).reshape(-1, 6, 6)
    # The ridge keeps pictures without background solvable; it moves nothing else.
    gram += 1e-2 * np.eye(6, dtype=np.float32)
    right = np.matmul(basis.T, values * weight[..., None])
    return np.linalg.solve(gram, right)
