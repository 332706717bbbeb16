"""Contact sheets of a run's samples for a page, with labels."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont

from trainer.images import Pixels

CELL_PX, LABEL_PX, CAPTION_PX = 128, 92, 54
CAPTION_CHARS = 19


def labelled(
    rows: Sequence[tuple[str, Sequence[Pixels]]], prompts: Sequence[str]
) -> PilImage.Image:
    """Rows of images, enlarged, for a page: names at the left, prompts on top.

    Args:
        rows: name of each row, and an image (H, W, 3) per prompt.
        prompts: what is drawn, by column.
    """
    size = (LABEL_PX + CELL_PX * len(prompts), CAPTION_PX + CELL_PX * len(rows))
    out = PilImage.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(out), ImageFont.load_default(size=13)
    for column, text in enumerate(prompts):
        pen.text((LABEL_PX + CELL_PX * column + 4, 4), _wrapped(text), "#333", font)
    for number, (name, images) in enumerate(rows):
        top = CAPTION_PX + CELL_PX * number
        pen.text((6, top + CELL_PX // 2 - 8), name, "#333", font)
        for column, image in enumerate(images):
            tile = PilImage.fromarray(image)
            tile = tile.resize((CELL_PX - 4, CELL_PX - 4), PilImage.Resampling.NEAREST)
            out.paste(tile, (LABEL_PX + CELL_PX * column, top))
    return out


def _wrapped(text: str) -> str:
    """A prompt in short lines, without GenEval's opening."""
    words = text.removeprefix("a photo of ")
    return "\n".join(textwrap.wrap(words, CAPTION_CHARS))
