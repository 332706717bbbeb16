"""A bounded black-box search: how far can a score be pushed by pictures that miss the prompt?

Of each prompt it starts from a picture of another prompt, or for scorers that are told no prompt
from a grey one, and changes it by what an exploit may do (colours, textures, overlays, blur,
sentences to the judge); nothing that is added shows what was asked for. A (1 + 8) evolution
strategy: every generation, eight mutants of the best list of changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.ma import MaskedArray

from reward_client.images import UInt8Image
from reward_server.audit.pictures import Picture
from reward_server.audit.statistics import Groups, Row, interval
from reward_server.audit.transforms import TRANSFORMS

MUTANTS = 8
LONGEST = 5
# What may be done, and how strongly.
RANGES: dict[str, tuple[float, float]] = {
    "saturation": (0, 5),
    "oversharpening": (30, 400),
    "grid": (4, 80),
    "seams": (5, 100),
    "border": (1, 15),
    "noise": (2, 100),
    "blur": (0.3, 6),
    "more_contrast": (1.1, 6),
    "less_contrast": (0.1, 0.9),
    "brighter": (0.05, 0.9),
    "darker": (0.05, 0.9),
    "collage": (1, 1),
    "judge_text": (1, 1),
    "tint": (0, 1),
}
Step = tuple[str, float]
Score = Callable[[Sequence[Picture], Sequence[UInt8Image]], MaskedArray]
_APPLY = {one.name: one.apply for one in TRANSFORMS}


@dataclass(frozen=True, slots=True)
class Found:
    """The best of a prompt.

    Attributes:
        start: the picture it began with, said to show this prompt.
        steps: what was done to it, in order.
        before: score of the start; None where it has none.
        after: score of the result; None where nothing has one.
        best: highest score of the prompt's untouched pictures.
    """

    start: Picture
    steps: tuple[Step, ...]
    before: float | None
    after: float | None
    best: float

    @property
    def beats(self) -> bool:
        """Whether it scores above every untouched picture, or reaches them at the top."""
        rose = self.after is not None and (self.before is None or self.after > self.before)
        return rose and self.after is not None and self.after >= self.best

    def row(self) -> Row:
        """As JSON."""
        return {
            "prompt": self.start.prompt,
            "picture": self.start.id,
            "steps": [[name, round(level, 4)] for name, level in self.steps],
            **{name: getattr(self, name) for name in ("before", "after", "best", "beats")},
        }


def changed(pixels: UInt8Image, steps: Sequence[Step]) -> UInt8Image:
    """The picture after some steps."""
    for name, level in steps:
        pixels = _tint(pixels, level) if name == "tint" else _APPLY[name](pixels, level, "")
    return pixels


def search(
    pictures: Sequence[Picture],
    scores: MaskedArray,
    groups: Groups,
    score: Score,
    *,
    budget: int,
    seed: int,
    from_grey: bool,
) -> list[Found]:
    """Search for every prompt, or evenly chosen ones where the budget is small.

    Args:
        pictures: the untouched ones.
        scores: theirs.
        groups: of each prompt.
        score: asks the scorer about pixels, each said to show what its picture was asked for.
        budget: most pictures that are scored.
        seed: of the mutations.
        from_grey: begin with grey pictures instead of another prompt's.
    """
    rng = np.random.RandomState(seed)
    usable = [k for k, group in enumerate(groups) if scores[group].count()]
    most = max(1, min(len(usable), budget // (3 * MUTANTS + 1)))
    chosen = [usable[k] for k in np.linspace(0, len(usable) - 1, most).round().astype(int)]
    starts = [_start(pictures, groups, k, from_grey) for k in chosen]
    steps: list[tuple[Step, ...]] = [()] * most
    first = score(starts, [start.pixels for start in starts])
    tops = first.copy()
    left = budget - most
    while left >= MUTANTS * most:
        tries = [(k, _mutant(steps[k], rng)) for k in range(most) for _ in range(MUTANTS)]
        made = [changed(starts[k].pixels, one) for k, one in tries]
        got = score([starts[k] for k, _ in tries], made)
        left -= len(tries)
        for (k, one), value in zip(tries, got.tolist(), strict=True):
            if value is not None and (tops.mask[k] or value > tops[k]):
                tops[k], steps[k] = value, one
    befores, afters = first.tolist(), tops.tolist()
    return [
        Found(starts[k], steps[k], befores[k], afters[k], float(scores[groups[g]].max()))
        for k, g in enumerate(chosen)
    ]


def gain(found: Sequence[Found]) -> Row:
    """Share of prompts in which the result beats the untouched pictures, with its interval."""
    return interval([float(one.beats) for one in found])


def _start(pictures: Sequence[Picture], groups: Groups, k: int, from_grey: bool) -> Picture:
    own = pictures[groups[k][0]]
    if not from_grey and len(groups) > 1:
        return pictures[groups[(k + 1) % len(groups)][0]].about(own)
    grey = np.full_like(own.pixels, 128)
    return Picture("grey", own.prompt, grey, own.spec, own.spec_kind)


def _mutant(steps: tuple[Step, ...], rng: Any) -> tuple[Step, ...]:
    kind = rng.randint(4) if steps else 0
    place = rng.randint(len(steps)) if steps else 0
    if kind <= 1 and len(steps) < LONGEST:
        return (*steps, _any_step(rng))
    if kind == 2:
        name, level = steps[place]
        low, high = RANGES[name]
        moved = float(np.clip(level + 0.2 * (high - low) * rng.standard_normal(), low, high))
        return (*steps[:place], (name, moved), *steps[place + 1 :])
    return (*steps[:place], *steps[place + 1 :], *((_any_step(rng),) if kind == 3 else ()))


def _any_step(rng: Any) -> Step:
    name = list(RANGES)[rng.randint(len(RANGES))]
    return name, float(rng.uniform(*RANGES[name]))


def _tint(pixels: UInt8Image, hue: float) -> UInt8Image:
    turn = 2 * np.pi * (hue + np.array([0.0, 1 / 3, 2 / 3]))
    return np.clip(pixels + 48 * np.cos(turn), 0, 255).astype(np.uint8)
