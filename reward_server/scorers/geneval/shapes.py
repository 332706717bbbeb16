"""The `shapes` detector: finds the miniature's coloured shapes and is hard to please.

A candidate (a connected blob on a light background) is compared with each of six silhouettes at the
place and size that its own moments dictate. Its score is the weakest of these criteria, each a
ramp from 0 (refused) to 1 (as in a clean drawing):

* `overlap`: soft intersection over union with the best silhouette;
* `sector`: the same in the worst of eight octants around the centre, so that a bite, a missing half
  or a spike is not averaged away;
* `margin`: how much better the best silhouette fits than the second best;
* `unevenness`: how much the core's colour varies: one object has one colour, whichever it is;
* `opacity`: how far the core is from the background towards that colour: no ghosts;
* `sharpness`: how wide its edge is, in the worst direction, compared with a drawn edge;
* `size`: not a speck.

The weakest and not the mean: a policy that is rewarded by this detector cannot buy off a missing
half with a brighter colour.

The colour is the palette colour that most of the core is nearest to, or None when the core is not
clearly of that colour (`purity`): an orange between red and yellow satisfies neither clause. Purity
does not touch the score. Where a prompt names no colour any will do, and a detector that cares all
the same teaches a policy to paint everything in the colour that it is surest of.

Coordinates and sizes are those of the working resolution, in which the shorter side of the picture
has 48 to 96 px.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from reward_server.scorers import tools
from reward_server.scorers.base import SelfTestError, UInt8Image
from reward_server.scorers.geneval import palette, shapes_fit, shapes_scene, silhouettes
from reward_server.scorers.geneval.detector import Detection
from reward_server.scorers.geneval.shapes_scene import Array

VERSION = "2"
# Below this purity a core is between two colours; the middle of blue and purple has 0.53.
CLEAR_COLOR = 0.7
# OKLab distance from which on a colour leans to none; red and yellow are 0.34 apart.
FAR_COLOR = 0.30


@dataclass(frozen=True, slots=True)
class Ramp:
    """0 up to `zero`, 1 from `one` on, linear between; `zero` > `one` makes it fall."""

    zero: float
    one: float


# Set on drawings: every clean one, blurred by 0.7 px and with +-6 grey levels of noise, reaches 1;
# cut to 80 %, smeared over 6 px or blurred by 2 px it stays below 0.3.
CRITERIA: dict[str, Ramp] = {
    "sector": Ramp(0.64, 0.75),
    "margin": Ramp(0.015, 0.06),
    "unevenness": Ramp(45.0, 28.0),
    "opacity": Ramp(0.70, 0.86),
    "sharpness": Ramp(4.7, 3.1),
    "size": Ramp(4.0, 5.5),
}
# Corners suffer from blur and a circle has none: what a light blur leaves differs by shape.
OVERLAP: dict[str, Ramp] = {
    "circle": Ramp(0.88, 0.945),
    "square": Ramp(0.84, 0.925),
    "triangle": Ramp(0.80, 0.885),
    "star": Ramp(0.76, 0.845),
    "cross": Ramp(0.80, 0.89),
    "heart": Ramp(0.82, 0.91),
}


class ShapesDetector:
    """Detects circle, square, triangle, star, cross and heart in six flat colours."""

    classes: tuple[str, ...] = tuple(silhouettes.outlines())
    colors: tuple[str, ...] = tuple(palette.COLORS)

    def __init__(self) -> None:
        self._tables: tuple[silhouettes.Silhouettes, palette.Nearest] | None = None

    def load(self, device: str) -> None:
        """Build the tables; the detector is numpy on one core whatever the device."""
        self._tables = silhouettes.build(), palette.build()

    def fingerprint(self) -> str:
        modules = [sys.modules[__name__], silhouettes, shapes_scene, shapes_fit, palette]
        return tools.digest(modules, {"version": VERSION, "numpy": np.__version__})

    def detect(
        self, images: Sequence[UInt8Image], color_classes: Sequence[Collection[str]] = ()
    ) -> list[list[Detection]]:
        """Find the shapes of each image; colours come for free, where they are clear."""
        found: list[list[Detection]] = [[] for _ in images]
        for members, stack in shapes_scene.stacks(images):
            for picture, detection in self._detect_stack(stack):
                index = members[picture]
                scale = shapes_scene.working_scale(*images[index].shape[:2])
                x0, y0, x1, y1 = (v / scale for v in detection.box)
                found[index].append(replace(detection, box=(x0, y0, x1, y1)))
        return found

    def _detect_stack(self, stack: NDArray[np.uint8]) -> list[tuple[int, Detection]]:
        if self._tables is None:
            raise RuntimeError("ShapesDetector.detect was called before load")
        shapes, colors = self._tables
        scenes = shapes_scene.analyse(stack)
        pixels = palette.classify(stack, colors)
        found = []
        for window_px, numbers in shapes_fit.by_window(scenes).items():
            fits = shapes_fit.measure(scenes, numbers, window_px, pixels=pixels, shapes=shapes)
            found += self._detections(fits)
        return found

    def _detections(self, fits: shapes_fit.Fits) -> list[tuple[int, Detection]]:
        score = score_fits(fits)
        clear = fits.measured["purity"] >= CLEAR_COLOR
        near = np.clip(1 - fits.measured["color_distance"] / FAR_COLOR, 0, 1)
        return [
            (
                int(fits.picture[k]),
                Detection(
                    label=self.classes[fits.label[k]],
                    score=float(score[k]),
                    box=tuple(fits.box[k].tolist()),
                    color=self.colors[fits.color[k]] if clear[k] else None,
                    leaning=None if clear[k] else (self.colors[fits.color[k]], float(near[k])),
                    notes={name: float(values[k]) for name, values in fits.measured.items()},
                ),
            )
            for k in range(len(score))
        ]

    def self_test(self) -> None:
        """Detect every shape and colour in drawings, and no half shape; raises SelfTestError."""
        for index, (name, color) in enumerate(zip(self.classes, self.colors, strict=True)):
            x, y, radius = 30.3 + index, 33.7 - index, 7.5 + index
            whole = drawing(name, color, x, y, radius)
            half = whole.copy()
            half[:, int(x) :] = whole[:1, :1]
            seen, half_seen = self.detect([whole, half])
            what = f"shapes/{color} {name}"
            cause = "another numpy or an edited detector"
            if [(d.label, d.color) for d in seen] != [(name, color)]:
                shown = [(d.label, d.color) for d in seen]
                raise SelfTestError(f"self-test {what}: found {shown}; likely cause: {cause}")
            tools.check_close(f"{what} score", seen[0].score, 1.0, 0.01, cause)
            tools.check_close(f"{what} radius", seen[0].notes["size"], radius, 0.15, cause)
            refused = max((d.score for d in half_seen if d.label == name), default=0.0)
            tools.check_close(f"{what}, half of it", refused, 0.0, 0.3, cause)


def score_fits(fits: shapes_fit.Fits) -> Array:
    """Detection scores (K,) in [0, 1]: the weakest criterion of each candidate."""
    ramps = np.array([(OVERLAP[name].zero, OVERLAP[name].one) for name in ShapesDetector.classes])
    zero, one = ramps[fits.label].T
    score = np.clip((fits.measured["overlap"] - zero) / (one - zero), 0, 1)
    for name, ramp in CRITERIA.items():
        value = (fits.measured[name] - ramp.zero) / (ramp.one - ramp.zero)
        score = np.minimum(score, np.clip(value, 0, 1))
    return score


def drawing(name: str, color: str, x: float, y: float, radius: float) -> UInt8Image:
    """A clean 64 x 64 px picture of one shape on a light background."""
    canvas = np.full((64, 64, 3), (228.0, 232.0, 224.0))
    alpha = silhouettes.coverage(name, (64, 64), x, y, radius)[..., None]
    canvas += alpha * (np.array(palette.COLORS[color]) - canvas)
    return (canvas + 0.5).astype(np.uint8)
