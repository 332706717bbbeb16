"""From pictures, texts and rows of a dataset, in the forms that projects hold them, to items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reward_client.errors import InvalidArgument
from reward_client.images import Image, to_images
from reward_client.types import Item, SpecKind

Row = Mapping[str, Any]
_GENEVAL_KEYS = ("tag", "include", "exclude")


def spec_of(row: Row | None, kind: SpecKind | None = None) -> tuple[Row | None, SpecKind | None]:
    """What a row of a dataset says to a scorer.

    Without `kind`, a row with "include" is a GenEval row, one with "target" says what OCR is to
    read, and any other goes along as metadata. Columns of GenEval's files that are not part of the
    specification are left out.
    """
    if not row:
        return None, None
    if kind is None:
        kind = "geneval" if "include" in row else "ocr" if "target" in row else "metadata"
    if kind == "geneval":
        return {key: row[key] for key in _GENEVAL_KEYS if row.get(key) is not None}, kind
    return ({"target": row["target"]} if kind == "ocr" and "target" in row else row), kind


def make_items(
    images: Any,
    prompts: Sequence[str],
    rows: Sequence[Row | None] | None = None,
    *,
    references: Sequence[Any] | None = None,
    spec_kind: SpecKind | None = None,
) -> list[Item]:
    """Make N items with the ids "0" to "N-1".

    Args:
        images: N pictures: a batch as an array or tensor, or a list of pictures in any form that
            `pixels.to_images` takes; a list entry or a fifth axis with several is a video.
        prompts: N texts.
        rows: N specifications, see `spec_of`; None for none.
        references: N pictures, or lists of them, to compare with.
        spec_kind: how rows are to be read; by default as their keys say.

    Raises:
        InvalidArgument: the numbers do not agree, or a picture cannot be converted.
    """
    pictures = _pictures(images)
    rows = rows or [None] * len(pictures)
    frames: Sequence[tuple[Image, ...]] = [()] * len(pictures)
    if references is not None:
        frames = [tuple(to_images(reference)) for reference in references]
    if not len(pictures) == len(prompts) == len(rows) == len(frames):
        counts = f"{len(pictures)} images, {len(prompts)} prompts, {len(rows)} metadata rows"
        counts += f", {len(frames)} references" if references is not None else ""
        raise InvalidArgument(f"{counts}: the numbers must agree")
    items = []
    for index, picture in enumerate(pictures):
        spec, kind = spec_of(rows[index], spec_kind)
        items.append(Item(str(index), prompts[index], picture, frames[index], spec, kind))
    return items


def _pictures(images: Any) -> list[tuple[Image, ...]]:
    """One tuple per item: a list may hold videos, which are lists or arrays of frames."""
    if isinstance(images, list | tuple):
        return [tuple(to_images(image)) for image in images]
    if getattr(images, "ndim", 4) == 5:
        return [tuple(to_images(frames)) for frames in images]
    return [(image,) for image in to_images(images)]
