"""Pictures whose scores are worth comparing: right and wrong ones, in several sizes."""

from __future__ import annotations

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from miniature.prompts import split, split_words
from miniature.render import render
from miniature.scenes import scene_for, word_scene
from reward_client import Image, Item

WORDS = ("STOP", "OPEN 24", "Room 101", "Exit", "Coffee", "No entry")


def drawings(count: int = 24) -> list[Item]:
    """GenEval items over the categories; every third shows the next row's scene instead."""
    rows = split()[1]
    rows = rows[:: len(rows) // count][:count]
    shown = [rows[(i + (i % 3 == 2)) % count] for i in range(count)]
    rng = np.random.default_rng(6)
    return [
        Item(
            f"drawing{i}",
            row["prompt"],
            (Image.from_array(render(scene_for(scene, rng))),),
            (),
            {key: row[key] for key in ("tag", "include", "exclude") if key in row},
            "geneval",
        )
        for i, (row, scene) in enumerate(zip(rows, shown, strict=True))
    ]


def signs(count: int = 12) -> list[Item]:
    """OCR items: words of the miniature, and signs of 256 px; every third shows another text."""
    rng = np.random.default_rng(7)
    small = [row["target"] for row in split_words()[1][: count // 2]]
    texts = [*small, *(WORDS[i % len(WORDS)] for i in range(count - len(small)))]
    found = []
    for i, target in enumerate(texts):
        text = "WRONG" if i % 3 == 2 else target
        pixels = render(word_scene(text, rng)) if i < len(small) else _sign(text, rng)
        picture = (Image.from_array(pixels),)
        found.append(Item(f"sign{i}", f'a sign "{target}"', picture, (), {"target": target}, "ocr"))
    return found


def _sign(text: str, rng: np.random.Generator) -> np.ndarray:
    image = Pillow.new("RGB", (256, 128), tuple(int(v) for v in rng.integers(190, 255, 3)))
    ImageDraw.Draw(image).text((20, 45), text, "black", ImageFont.load_default(36))
    return np.asarray(image)
