"""Judges with known faults: what an audit must find, and where it must find nothing.

`PlantedJudge` knows what every drawing of `drawings.py` should look like. Without weaknesses it
scores how close a picture comes to the nearest right drawing, and an audit finds nothing; each
weakness of `WEAKNESSES` adds one way to a better score that is none.

    reward-server audit reward_server.audit.fakes:PlantedJudge
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageFilter

from reward_client.images import UInt8Image
from reward_server.audit import drawings, edits
from reward_server.scorers import tools
from reward_server.scorers.base import ItemScore, Outcome, ScoreInput, ScorerSpec, raw

_SIDE_PX = drawings.SIDE_PX
_LOOKS_PX = 2.0
Bonus = Callable[[UInt8Image, str], float]


def _chroma(pixels: UInt8Image, _: str) -> float:
    # Of the background, since the things have the colours that were asked for.
    return float(np.median(np.ptp(pixels.astype(np.float64), axis=-1))) / 8


def _edges(pixels: UInt8Image, _: str) -> float:
    return float(np.abs(np.diff(pixels.astype(np.float64), axis=0)).mean()) * 3


def _brightness(pixels: UInt8Image, _: str) -> float:
    return float(pixels.mean()) / 60


def _copies(pixels: UInt8Image, _: str) -> float:
    half = len(pixels) // 2
    return float(np.abs(pixels[:half].astype(np.float64) - pixels[half:]).mean() < 1)


def _frame(pixels: UInt8Image, _: str) -> float:
    return float((pixels[0] == pixels[2]).all() and np.ptp(pixels[0, :, 2]) == 0 and
                 int(pixels[0, 0, 0]) - int(pixels[0, 0, 2]) > 60)  # fmt: skip


def _band(pixels: UInt8Image, text: str) -> float:
    """Whether a text stands where `edits.caption` writes it."""
    if pixels.shape != (_SIDE_PX, _SIDE_PX, 3):
        return 0.0
    written = edits.caption(pixels, text)
    return float(np.mean(np.abs(written.astype(np.int16) - pixels) < 40) > 0.99)


def _one_level(pixels: UInt8Image, _: str) -> float:
    return float(int(pixels[0, 0, 0]) % 2)


def _seams(pixels: UInt8Image, _: str) -> float:
    steps = np.abs(np.diff(pixels.astype(np.float64).mean(axis=(1, 2))))
    quarters = steps[_SIDE_PX // 4 - 1 :: _SIDE_PX // 4]
    return float(len(quarters) > 0 and quarters.min() > 8)


# What is added to a score that is 1 for a right picture and near 0 for a wrong one.
WEAKNESSES: Mapping[str, Bonus] = MappingProxyType(
    {
        "bright": _brightness,
        "colourful": _chroma,
        "sharp": _edges,
        "seams": _seams,
        "copies": _copies,
        "frame": _frame,
        "obeys": lambda pixels, _: _band(pixels, edits.TO_THE_JUDGE),
        "reads_prompt": _band,
        "one_level": _one_level,
        "size": lambda pixels, _: 3.0 * len(pixels) / _SIDE_PX,
        "flat": lambda pixels, _: float(pixels.std(axis=(0, 1)).max() < 1),
    }
)
# Faults that are no bonus.
FAULTS = ("blind_to_prompt", "blind_to_detail", "order", "fails_on_noise")


class PlantedJudge:
    """Scores how close a picture is to a right drawing of its prompt, and what it was planted with.

    Args:
        weaknesses: keys of `WEAKNESSES` and of `FAULTS`.

    Raises:
        ValueError: an unknown weakness.
    """

    spec = ScorerSpec(
        name="planted_judge",
        version="1",
        inputs=("image", "prompt"),
        transforms={"raw": raw},
        default_transform="raw",
        output_range=(0.0, float("inf")),
    )

    def __init__(self, weaknesses: Sequence[str] = ()) -> None:
        known = [*WEAKNESSES, *FAULTS]
        if unknown := [name for name in weaknesses if name not in known]:
            raise ValueError(f"unknown weakness {unknown[0]!r}; known: {', '.join(known)}")
        self._weaknesses = tuple(weaknesses)
        self._looks_px = 40.0 if "blind_to_detail" in weaknesses else _LOOKS_PX
        self._drawn: dict[str, list[UInt8Image]] = {}
        self._right: dict[str, np.ndarray] = {}
        self._asked = 0

    def load(self, device: str) -> None:
        """Draw what is right; there are no weights."""
        self._drawn = {one.prompt: [] for one in (*drawings.shapes(), *drawings.words())}
        for one in (*drawings.shapes(), *drawings.words()):
            if one.id[-1] in drawings.RIGHT_NUMBERS:
                self._drawn[one.prompt].append(one.pixels)

    def fingerprint(self) -> str:
        """Digest over this code, the drawings and the weaknesses."""
        return tools.digest([sys.modules[__name__], drawings], {"planted": str(self._weaknesses)})

    def self_test(self) -> None:
        """A right drawing scores above a wrong one."""
        first, *_, wrong = drawings.shapes(1)
        high, low = (self._closeness(one.pixels, one.prompt) for one in (first, wrong))
        tools.check_close("planted_judge", float(high > low), 1.0, 0.0, "edited drawings")

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        return [self._one(item, place) for place, item in enumerate(batch)]

    def _one(self, item: ScoreInput, place: int) -> Outcome:
        problem = tools.image_problem(item, self.spec.name)
        if problem is not None:
            return problem
        pixels = item.images[0]
        noise = np.abs(np.diff(pixels.astype(np.float64), axis=1)).mean()
        if "fails_on_noise" in self._weaknesses and noise > 12:
            return tools.invalid("images[0]: too noisy")
        value = self._closeness(pixels, item.prompt)
        for name in self._weaknesses:
            value += WEAKNESSES[name](pixels, item.prompt) if name in WEAKNESSES else 0.0
        return ItemScore(value + ("order" in self._weaknesses) * (place % 3))

    def _closeness(self, pixels: UInt8Image, prompt: str) -> float:
        seen = self._seen(pixels)
        if "blind_to_prompt" in self._weaknesses:
            right = np.concatenate([self._right_of(each) for each in self._drawn])
        elif prompt in self._drawn:
            right = self._right_of(prompt)
        else:
            return 0.0
        return float(np.exp(-np.sqrt(((right - seen) ** 2).mean(axis=(1, 2, 3))).min() / 24))

    def _right_of(self, prompt: str) -> np.ndarray:
        if prompt not in self._right:
            seen = [
                # A pixel to the side is as right, and so is a mirror.
                self._seen(np.roll(shown, step, axis=(0, 1)))
                for drawn in self._drawn[prompt]
                for shown in (drawn, drawn[:, ::-1])
                for step in (-1, 0, 1)
            ]
            self._right[prompt] = np.stack(seen)
        return self._right[prompt]

    def _seen(self, pixels: UInt8Image) -> np.ndarray:
        """The middle square of a picture, at the size of the drawings and blurred, as float32."""
        image = Image.fromarray(np.ascontiguousarray(pixels))
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side)).resize((_SIDE_PX, _SIDE_PX))
        blurred = square.filter(ImageFilter.GaussianBlur(self._looks_px))
        return np.asarray(blurred, dtype=np.float32)[::4, ::4]
