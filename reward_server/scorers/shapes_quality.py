"""Quality of the miniature's pictures: watched during training, never trained on.

A policy that is rewarded for objects alone may let everything else decay. This scorer sees what the
GenEval detector is blind to; all components are better when higher, except where the name says
otherwise:

* `background_noise`: root mean square, in grey levels, of what is left of the background after a
  smooth (quadratic) surface is removed; pixels within 3 px of a shape are left out, specks too
  small for a shape are left in; each deviation counts at most 40. 0 for a flat background.
* `background`: exp(-background_noise / 8), in (0, 1].
* `sharpness`: mean over shapes of 1 / max(1, edge width), the width in units of a drawn edge.
* `purity`: mean over shapes of how close their core is to one palette colour, everywhere.
* `shapes`: how many blobs of the size of a shape there are.

raw = (background * sharpness * purity) ** (1/3), in [0, 1]. A picture without any shape has
sharpness and purity 0 and therefore raw 0: there is nothing sharp or pure in it. A picture without
a light background also has background 0. Neither is a failure: they are measurements of pictures
that a collapsed model really makes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reward_server.scorers import tools
from reward_server.scorers.base import ItemScore, Outcome, ScoreInput, ScorerSpec, component, raw
from reward_server.scorers.geneval import palette, shapes, shapes_fit, shapes_scene, silhouettes
from reward_server.scorers.geneval.shapes_scene import Array, Scenes

_MIN_SIDE_PX = 16
_CLIP_LEVELS = 40.0
_SCALE_LEVELS = 8.0

Row = dict[str, float]


class ShapesQualityScorer:
    """Background cleanliness, edge sharpness and colour purity of one picture per item."""

    spec = ScorerSpec(
        name="shapes_quality",
        version="1",
        inputs=("image",),
        transforms={
            "raw": raw,
            "background": component("background"),
            "sharpness": component("sharpness"),
            "purity": component("purity"),
        },
        default_transform="raw",
        output_range=(0.0, 1.0),
    )

    def __init__(self) -> None:
        self._tables: tuple[silhouettes.Silhouettes, palette.Nearest] | None = None

    def load(self, device: str) -> None:
        self._tables = silhouettes.build(), palette.build()

    def fingerprint(self) -> str:
        modules = [sys.modules[__name__], silhouettes, shapes_scene, shapes_fit, palette]
        return tools.digest(modules, {"version": self.spec.version, "numpy": np.__version__})

    def self_test(self) -> None:
        """Measure a drawing, clean and with a texture behind it; raises SelfTestError."""
        clean = shapes.drawing("heart", "blue", 31.0, 33.0, 12.0)
        rows, columns = np.indices(clean.shape[:2])
        checker = np.where((rows + columns) % 2, 4, -4)[..., None]
        textured = np.clip(clean + checker, 0, 255).astype(np.uint8)
        first, second = self.measure([clean, textured])
        cause = "another numpy or edited measurements"
        for what, found, expected, tolerance in (
            ("clean noise", first["background_noise"], 0.0, 0.3),
            ("clean sharpness", first["sharpness"], 0.85, 0.15),
            ("clean purity", first["purity"], 1.0, 0.01),
            ("checkered noise", second["background_noise"], 4.0, 0.2),
        ):
            tools.check_close(f"shapes_quality/{what}", found, expected, tolerance, cause)

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        problems = [tools.image_problem(i, self.spec.name, _MIN_SIDE_PX) for i in batch]
        good = [i.images[0] for i, problem in zip(batch, problems, strict=True) if not problem]
        rows = iter(self.measure(good))
        return [problem or _score(next(rows), details=details) for problem in problems]

    def measure(self, images: Sequence[NDArray[np.uint8]]) -> list[Row]:
        """Components by name of every image (H, W, 3); raises RuntimeError."""
        rows: dict[int, Row] = {}
        for members, stack in shapes_scene.stacks(images):
            rows.update(zip(members, self._measure_stack(stack), strict=True))
        return [rows[index] for index in range(len(images))]

    def _measure_stack(self, stack: NDArray[np.uint8]) -> list[Row]:
        if self._tables is None:
            raise RuntimeError("ShapesQualityScorer.measure was called before load")
        silhouette_table, colors = self._tables
        scenes = shapes_scene.analyse(stack)
        pixels = palette.classify(stack, colors)
        count = np.zeros(len(stack))
        purity, sharpness = np.zeros(len(stack)), np.zeros(len(stack))
        for window_px, numbers in shapes_fit.by_window(scenes).items():
            fits = shapes_fit.measure(
                scenes, numbers, window_px, pixels=pixels, shapes=silhouette_table
            )
            np.add.at(count, fits.picture, 1)
            np.add.at(purity, fits.picture, fits.measured["purity"])
            width = np.maximum(fits.measured["sharpness"], 1)
            np.add.at(sharpness, fits.picture, 1 / width)
        noise = background_noise(scenes)
        background = np.where(scenes.lit, np.exp(-noise / _SCALE_LEVELS), 0.0)
        some = np.maximum(count, 1)
        return [
            {
                "background_noise": float(noise[k]),
                "background": float(background[k]),
                "sharpness": float(sharpness[k] / some[k]),
                "purity": float(purity[k] / some[k]),
                "shapes": float(count[k]),
            }
            for k in range(len(stack))
        ]


def background_noise(scenes: Scenes) -> Array:
    """Root mean square deviation (N,) from the smooth background, in grey levels, at most 40."""
    areas = np.bincount(scenes.labels.ravel())
    areas[0] = 0
    near = shapes_fit.dilated((areas >= shapes_fit.MIN_AREA_PX)[scenes.labels], shapes_fit.RIM_PX)
    deviation = np.minimum(np.abs(scenes.rgb - scenes.background), _CLIP_LEVELS)
    squared = (deviation**2).mean(axis=-1) * ~near
    seen = (~near).sum(axis=(1, 2))
    # A picture that is nothing but shapes has no background to be clean.
    mean = np.where(seen > 0, squared.sum(axis=(1, 2)) / np.maximum(seen, 1), _CLIP_LEVELS**2)
    return np.sqrt(mean)


def _score(row: Row, *, details: bool) -> ItemScore:
    value = (row["background"] * row["sharpness"] * row["purity"]) ** (1 / 3)
    return ItemScore(value, row, {k: round(v, 4) for k, v in row.items()} if details else None)
