"""Measures candidate blobs against the six silhouettes, many at a time.

Pure numpy: windows are cut around all candidates of a batch, every silhouette is laid over each
window at the place and size that the blob's moments dictate, and all criteria are computed at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reward_server.scorers.geneval import palette, silhouettes
from reward_server.scorers.geneval.shapes_scene import Array, Scenes

Bool = NDArray[np.bool_]
Int = NDArray[np.intp]

RIM_PX = 3  # how far around a blob still belongs to it: blur and halo count against it
MIN_AREA_PX = 30
_WINDOWS_PX = (24, 32, 40, 56)
_SHARPEN = 1.7
_EPS = np.float32(1e-6)


@dataclass(frozen=True, slots=True)
class Fits:
    """What was measured on K candidates.

    Attributes:
        picture: (K,) index of the picture in the batch.
        label: (K,) index of the best silhouette.
        color: (K,) index of the palette colour most of the core has.
        box: (K, 4) x0, y0, x1, y1 of the fitted silhouette in working pixels.
        measured: criterion name -> (K,) values; see `shapes.CRITERIA`.
    """

    picture: Int
    label: Int
    color: Int
    box: Array
    measured: dict[str, Array]


@dataclass(frozen=True, slots=True)
class _Windows:
    """Equally large square windows around K candidates."""

    picture: Int  # (K,)
    corner: Int  # (K, 2) left and top, may be negative
    at: tuple[Int, Int, Int]  # index into (N, H, W) arrays, broadcasts to (K, P, P)
    own: Bool  # (K, P, P) pixels of the candidate
    on_canvas: Bool  # (K, P, P) False where `at` repeats the picture's border
    core: Bool  # (K, P, P) pixels whose four neighbours are its own too
    core_px: Int  # (K,) at least 1


def by_window(scenes: Scenes) -> dict[int, list[int]]:
    """Component numbers by the side of the window that holds them with a rim.

    Specks below 30 px and walls beyond 50 px are left out.
    """
    groups: dict[int, list[int]] = {}
    if not scenes.places:
        return groups
    areas = np.bincount(scenes.labels.ravel(), minlength=len(scenes.places) + 1)
    for number in np.flatnonzero(areas[1:] >= MIN_AREA_PX) + 1:
        _, rows, columns = scenes.places[number - 1]
        extent = max(rows.stop - rows.start, columns.stop - columns.start) + 2 * RIM_PX
        window = next((w for w in _WINDOWS_PX if w >= extent), None)
        if window is not None:
            groups.setdefault(window, []).append(int(number))
    return groups


def measure(
    scenes: Scenes,
    numbers: list[int],
    window_px: int,
    *,
    pixels: palette.Nearest,
    shapes: silhouettes.Silhouettes,
) -> Fits:
    """Measure candidates that fit into windows of one size."""
    windows = _cut(scenes, numbers, window_px)
    near = pixels.nearest[windows.at]
    color = _most_frequent(near, windows.core, len(pixels.rgb))
    of_color = windows.core & (near == color[:, None, None])
    opacity = _alpha(scenes, windows, pixels.rgb[color])
    own_color, unevenness = _core_color(scenes, windows)
    alpha = _alpha(scenes, windows, own_color)
    measured = {
        "purity": (pixels.purity[windows.at] * of_color).sum(axis=(1, 2)) / windows.core_px,
        "color_distance": (pixels.distance[windows.at] * of_color).sum(axis=(1, 2))
        / np.maximum(of_color.sum(axis=(1, 2)), 1),
        "opacity": (np.minimum(opacity, 1) * windows.core).sum(axis=(1, 2)) / windows.core_px,
        "unevenness": unevenness,
    }
    np.clip(alpha, 0, 1, out=alpha)
    alpha *= dilated(windows.own, RIM_PX) & windows.on_canvas
    label, box, of_shape = _fit(alpha, shapes)
    box = box + np.tile(windows.corner, 2)
    return Fits(windows.picture, label, color, box, of_shape | measured)


def _cut(scenes: Scenes, numbers: list[int], window_px: int) -> _Windows:
    places = [scenes.places[k - 1] for k in numbers]
    picture = np.array([p[0].start for p in places])
    middle = np.array([(p[2].start + p[2].stop, p[1].start + p[1].stop) for p in places])
    corner = (middle - window_px) // 2
    span = np.arange(window_px)
    height, width = scenes.labels.shape[1:]
    columns, rows = corner[:, :1] + span, corner[:, 1:] + span
    on_canvas = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
        :, None, :
    ]
    at = (
        picture[:, None, None],
        rows.clip(0, height - 1)[:, :, None],
        columns.clip(0, width - 1)[:, None, :],
    )
    own = (scenes.labels[at] == np.array(numbers)[:, None, None]) & on_canvas
    core = _eroded(own)
    core_px = np.maximum(core.sum(axis=(1, 2)), 1)
    return _Windows(picture, corner, at, own, on_canvas, core, core_px)


def _alpha(scenes: Scenes, windows: _Windows, color: Array) -> Array:
    """How much of its colour each pixel holds: 0 = background, 1 = full; (K, P, P)."""
    below = scenes.background[windows.at]
    core = windows.core.reshape(len(color), 1, -1).astype(np.float32)
    mean_below = np.matmul(core, below.reshape(len(color), -1, 3))[:, 0]
    towards = color - mean_below / windows.core_px[:, None]
    # A thing of thin strokes has no core, and so no colour of its own: it covers nothing.
    towards /= np.maximum((towards**2).sum(axis=1, keepdims=True), _EPS)
    offset = scenes.rgb[windows.at] - below
    weight = towards.astype(np.float32)[:, None, None, :]
    # Three products of planes; a matrix product with an inner length of three is slower.
    alpha = offset[..., 0] * weight[..., 0]
    alpha += offset[..., 1] * weight[..., 1]
    alpha += offset[..., 2] * weight[..., 2]
    return alpha


def _core_color(scenes: Scenes, windows: _Windows) -> tuple[Array, Array]:
    """Mean RGB (K, 3) of the core, and its pixels' root mean square distance (K,) from it."""
    core = windows.core.reshape(len(windows.core), 1, -1).astype(np.float32)
    rgb = scenes.rgb[windows.at].reshape(len(core), -1, 3)
    mean = np.matmul(core, rgb)[:, 0] / windows.core_px[:, None]
    square = np.matmul(core, (rgb**2).sum(axis=2, keepdims=True))[:, 0, 0] / windows.core_px
    return mean, np.sqrt(np.maximum(square - (mean**2).sum(axis=1), 0))


def _fit(alpha: Array, shapes: silhouettes.Silhouettes) -> tuple[Int, Array, dict[str, Array]]:
    """Best silhouette (K,), its box (K, 4) in window pixels, and the criteria that need it."""
    count, window_px, _ = alpha.shape
    alpha = alpha.reshape(count, -1)
    flat = _sharpened(alpha)
    y, x = (g.ravel() for g in np.mgrid[:window_px, :window_px].astype(np.float32) + 0.5)
    mass = flat.sum(axis=1)
    center = np.stack([flat @ x, flat @ y], axis=1) / np.maximum(mass, _EPS)[:, None]
    radius = np.sqrt(mass[:, None] / shapes.area)
    origin = center[:, None, :] - radius[..., None] * shapes.centroid
    model = _sharpened(_draw(shapes, origin, radius, window_px))
    common = np.minimum(flat[:, None], model).sum(axis=2)
    overlap = common / np.maximum(mass[:, None] + model.sum(axis=2) - common, _EPS)
    ranked = np.sort(overlap, axis=1)
    best = overlap.argmax(axis=1)
    each = np.arange(count)
    origin, radius = origin[each, best], radius[each, best]
    edges_px = radius[:, None] * shapes.edges[best]
    sector, edge = _by_direction(
        flat, model[each, best], alpha, (x - origin[:, :1], y - origin[:, 1:]), edges_px
    )
    box = np.tile(origin, 2) + radius[:, None] * shapes.box[best]
    margin = ranked[:, -1] - ranked[:, -2]
    measured = {"overlap": ranked[:, -1], "margin": margin, "sector": sector}
    return best, box, measured | {"sharpness": edge, "size": radius}


def _draw(shapes: silhouettes.Silhouettes, origin: Array, radius: Array, window_px: int) -> Array:
    """Every silhouette at its place and size: (K, S, P * P) coverage in [0, 1]."""
    half = silhouettes.CELLS / 2
    axis = np.arange(window_px, dtype=np.float32) + np.float32(0.5)
    per_px = (half / silhouettes.REACH / np.maximum(radius, 1e-3)).astype(np.float32)
    # Rows and columns are looked up apart: two short axes instead of one long window.
    offset = (axis - origin[..., None]) * per_px[..., None, None] + np.float32(half)
    cell = offset.clip(0, silhouettes.CELLS - 1).astype(np.int32)
    column, row = cell[:, :, 0], cell[:, :, 1]
    row = row * silhouettes.CELLS
    row += (np.arange(len(shapes.names), dtype=np.int32) * silhouettes.CELLS**2)[:, None]
    distance = shapes.distance.ravel().take(row[..., :, None] + column[..., None, :])
    distance *= -radius[..., None, None]
    distance += np.float32(0.5)
    np.clip(distance, 0, 1, out=distance)
    return distance.reshape(*radius.shape, -1)


def _by_direction(
    flat: Array, model: Array, alpha: Array, offset: tuple[Array, Array], edges_px: Array
) -> tuple[Array, Array]:
    """Lowest overlap among octants, and the widest edge among opposite pairs of octants.

    The width is relative to an edge drawn with area coverage at a random place, across which
    a (1 - a) integrates to 1/6 px.
    """
    count = len(flat)
    bins = (silhouettes.octant(*offset) + 8 * np.arange(count)[:, None]).ravel()

    def per_octant(values: Array) -> Array:
        sums = np.bincount(bins, values.ravel(), minlength=8 * count)
        return sums.reshape(count, 8).astype(np.float32)

    union = per_octant(np.maximum(flat, model))
    overlap = per_octant(np.minimum(flat, model)) / np.maximum(union, _EPS)
    fuzz = per_octant(alpha * (1 - alpha))
    width = 6 * (fuzz[:, :4] + fuzz[:, 4:]) / np.maximum(edges_px, _EPS)
    return overlap.min(axis=1), width.max(axis=1)


def _sharpened(alpha: Array) -> Array:
    """Steeper edges: light blur and noise then move hardly any weight."""
    steep = (alpha - np.float32(0.5)) * np.float32(_SHARPEN)
    steep += np.float32(0.5)
    return np.clip(steep, 0, 1, out=steep)


def _most_frequent(values: Int, where: Bool, kinds: int) -> Int:
    count = len(values)
    bins = values + kinds * np.arange(count)[:, None, None]
    return np.bincount(bins[where], minlength=kinds * count).reshape(count, kinds).argmax(axis=1)


def _eroded(mask: Bool) -> Bool:
    inner = np.zeros_like(mask)
    inner[:, 1:-1, 1:-1] = (
        mask[:, 1:-1, 1:-1]
        & mask[:, :-2, 1:-1]
        & mask[:, 2:, 1:-1]
        & mask[:, 1:-1, :-2]
        & mask[:, 1:-1, 2:]
    )
    return inner


def dilated(mask: Bool, steps: int) -> Bool:
    """Grown by `steps` pixels in all directions (a square), one axis after the other."""
    wide = mask
    for axis in (1, 2):
        source = np.moveaxis(wide, axis, 0)
        grown = source.copy()
        for step in range(1, steps + 1):
            grown[step:] |= source[:-step]
            grown[:-step] |= source[step:]
        wide = np.moveaxis(grown, 0, axis)
    return wide
