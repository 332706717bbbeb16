"""The pictures of an audit without pictures: drawn scenes and words, some of them wrong.

A group needs good and bad pictures, or it has no spread to measure anything in: of six pictures of
a prompt, four show what was asked for, more or less sharply, and two do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from reward_client.images import UInt8Image
from reward_server.audit.pictures import Picture
from reward_server.scorers.geneval import palette, silhouettes

SIDE_PX = 128
_LIGHT = (228, 232, 224)
_WORDS = ("STOP", "OPEN", "CAFE", "TAXI", "BOOK", "MENU", "SALE", "EXIT")
_INKS = ((30, 30, 60), (150, 30, 30), (20, 90, 50))

Clause = tuple[str, str, int]  # shape, colour, count
_SCENES: tuple[tuple[str, tuple[Clause, ...]], ...] = (
    ("colors", (("star", "red", 1),)),
    ("colors", (("circle", "blue", 1),)),
    ("colors", (("heart", "purple", 1),)),
    ("color_attr", (("square", "green", 1), ("triangle", "red", 1))),
    ("color_attr", (("cross", "blue", 1), ("circle", "yellow", 1))),
    ("counting", (("triangle", "blue", 2),)),
    ("counting", (("square", "red", 3),)),
    ("colors", (("cross", "black", 1),)),
)
# Offsets of the scene in px, blur in px: of the right pictures.
RIGHT_NUMBERS = "0123"
_RIGHT = ((0, 0, 0.0), (7, 4, 0.4), (-6, 6, 0.7), (4, -7, 1.0))


def shapes(prompts: int = len(_SCENES)) -> list[Picture]:
    """Six pictures (128, 128, 3) of each prompt, with a GenEval row."""
    return [picture for group in _shape_groups()[:prompts] for picture in group]


def words(prompts: int = len(_WORDS)) -> list[Picture]:
    """The same of signs with a word, with an OCR target."""
    return [picture for group in _word_groups()[:prompts] for picture in group]


@lru_cache(maxsize=1)
def _shape_groups() -> tuple[tuple[Picture, ...], ...]:
    return tuple(tuple(_shape_group(*scene)) for scene in _SCENES)


def _shape_group(tag: str, clauses: Sequence[Clause]) -> Iterator[Picture]:
    prompt = "a photo of " + " and ".join(_phrase(*clause) for clause in clauses)
    include = [
        {"class": name, "count": count, **({"color": color} if tag != "counting" else {})}
        for name, color, count in clauses
    ]
    spec = {"tag": tag, "include": include, "prompt": prompt}
    things = [(name, color) for name, color, count in clauses for _ in range(count)]
    for index, (right, down, blur_px) in enumerate(_RIGHT):
        yield _picture(prompt, index, _blurred(scene(things, right, down), blur_px), spec)
    names, colors = list(silhouettes.outlines()), list(palette.COLORS)
    other = [(name, colors[(colors.index(color) + 2) % len(colors)]) for name, color in things]
    if tag == "counting":
        other = things[1:]
    yield _picture(prompt, 4, scene(other, 0, 0), spec)
    wrong = [(names[(names.index(name) + 3) % len(names)], color) for name, color in things]
    yield _picture(prompt, 5, scene(wrong, 3, -3), spec)


def _phrase(name: str, color: str, count: int) -> str:
    number = {2: "two", 3: "three"}.get(count)
    return f"{number} {name}s" if number else f"a {color} {name}"


def scene(things: Sequence[tuple[str, str]], right: float, down: float) -> UInt8Image:
    """Shapes (name, colour) on a light background, around a centre moved by so many px."""
    canvas = np.full((SIDE_PX, SIDE_PX, 3), _LIGHT, dtype=np.float64)
    places = {1: ((64, 64),), 2: ((38, 60), (90, 70)), 3: ((36, 42), (92, 46), (64, 92))}
    radius = {1: 24, 2: 20, 3: 18}.get(len(things), 18)
    for (name, color), (x, y) in zip(things, places.get(len(things), ()), strict=True):
        alpha = silhouettes.coverage(name, (SIDE_PX, SIDE_PX), x + right, y + down, radius)
        canvas += alpha[..., None] * (np.array(palette.COLORS[color]) - canvas)
    return (canvas + 0.5).astype(np.uint8)


@lru_cache(maxsize=1)
def _word_groups() -> tuple[tuple[Picture, ...], ...]:
    others = (*_WORDS[3:], *_WORDS[:3])
    pairs = enumerate(zip(_WORDS, others, strict=True))
    return tuple(tuple(_word_group(word, other, index)) for index, (word, other) in pairs)


def _word_group(word: str, other: str, index: int) -> Iterator[Picture]:
    prompt = f'a sign with the word "{word}"'
    spec = {"target": word}
    for number, (right, down, blur_px) in enumerate(_RIGHT):
        drawn = sign(word, right, down, _INKS[(index + number) % len(_INKS)])
        yield _picture(prompt, number, _blurred(drawn, blur_px), spec)
    yield _picture(prompt, 4, sign(word[0] + other[1] + word[2:], 0, 0, _INKS[0]), spec)
    yield _picture(prompt, 5, sign(other, 3, -3, _INKS[1]), spec)


def sign(word: str, right: float, down: float, ink: tuple[int, int, int]) -> UInt8Image:
    """A light picture with a word in Pillow's own face."""
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), _LIGHT)
    font = ImageFont.load_default(size=34)
    middle = (SIDE_PX / 2 + right, SIDE_PX / 2 + down)
    ImageDraw.Draw(image).text(middle, word, ink, font, "mm")
    return np.asarray(image)


def _blurred(pixels: UInt8Image, radius_px: float) -> UInt8Image:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius_px)))


def _picture(prompt: str, index: int, pixels: UInt8Image, spec: dict[str, Any]) -> Picture:
    kind = "geneval" if "include" in spec else "ocr"
    return Picture(f"{re.sub('[^a-zA-Z]+', '_', prompt)}{index}", prompt, pixels, spec, kind)
