"""From pictures, texts and rows of a dataset, in the forms that projects hold them, to items."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from reward_client.errors import InvalidArgument
from reward_client.images import Image, to_images
from reward_client.types import Item, SpecKind, TypedSpec

Row: TypeAlias = Mapping[str, Any]
Prompts: TypeAlias = str | Sequence[str]
Specs: TypeAlias = Sequence[Row | None] | None
References: TypeAlias = Sequence[Any] | None
_GENEVAL_KEYS = ("tag", "include", "exclude")
SPEC_KEYS = (*_GENEVAL_KEYS, "target")


def spec_of(row: Row | None, kind: SpecKind | None = None) -> tuple[Row | None, SpecKind | None]:
    """What a row of a dataset says to a scorer; raises InvalidArgument.

    A value of None or NaN is not there: data sets fill the columns that a row does not have with
    it. Values of numpy, pandas and torch become numbers, texts and lists.
    Without `kind`, a row with "include" is a GenEval row, one with "target" says what OCR is to
    read, and any other goes along as metadata. Columns of GenEval's files that are not part of the
    specification are left out.
    """
    if isinstance(row, TypedSpec):
        return row.row(), row.kind
    there = {key: value for key, value in _plain(row or {}).items() if value is not None}
    if not there:
        return None, None
    if kind is None and "include" in there and "target" in there:
        raise InvalidArgument(
            'a row has "include" (GenEval) and "target" (OCR): say which with spec_kind, or pass a'
            " GenEvalSpec or OcrTarget"
        )
    if kind is None:
        kind = "geneval" if "include" in there else "ocr" if "target" in there else "metadata"
    if kind == "geneval":
        return {key: there[key] for key in _GENEVAL_KEYS if key in there}, kind
    return ({"target": there["target"]} if kind == "ocr" and "target" in there else there), kind


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if hasattr(value, "tolist"):  # scalars and arrays of numpy, tensors
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def items_of(
    images: Any, prompts: Any, scorers: Any, specs: Specs, references: References
) -> tuple[Sequence[Item], Any]:
    """Read the arguments of `score`, which takes pictures or items; raises InvalidArgument."""
    if isinstance(images, Item):
        images = (images,)
    is_items = isinstance(images, list | tuple) and (not images or isinstance(images[0], Item))
    if is_items:
        if specs is not None or references is not None:
            raise InvalidArgument("items carry their own specs and references: leave these out")
        if scorers is not None and prompts is not None:
            raise InvalidArgument("items carry their own prompts: leave `prompts` out")
        return images, scorers if scorers is not None else prompts or ()
    if scorers is None:
        raise InvalidArgument(
            'no scorer named: write score(images, prompts, scorers=["pickscore"]), or pass items'
        )
    # Without a copy: nothing changes them while the caller waits for the answer.
    pictures = _pictures(images, copy=False)
    prompts = "" if prompts is None else prompts
    texts = [prompts] * len(pictures) if isinstance(prompts, str) else list(prompts)
    return _items(pictures, texts, specs, references, None), scorers


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
            `images.to_images` takes; a list entry or a fifth axis with several is a video.
        prompts: N texts.
        rows: N specifications, typed or as rows of a data set, see `spec_of`; None for none.
        references: N pictures, or lists of them, to compare with.
        spec_kind: how rows are to be read; by default as their keys say.

    Raises:
        InvalidArgument: the numbers do not agree, or a picture cannot be converted.
    """
    return _items(_pictures(images), prompts, rows, references, spec_kind)


def _items(
    pictures: Sequence[tuple[Image, ...]],
    prompts: Sequence[str],
    rows: Specs,
    references: References,
    spec_kind: SpecKind | None,
) -> list[Item]:
    rows = rows or [None] * len(pictures)
    frames: Sequence[tuple[Image, ...]] = [()] * len(pictures)
    if references is not None:
        frames = [tuple(to_images(one)) if one is not None else () for one in references]
    if not len(pictures) == len(prompts) == len(rows) == len(frames):
        counts = f"{len(pictures)} images, {len(prompts)} prompts, {len(rows)} metadata rows"
        counts += f", {len(frames)} references" if references is not None else ""
        raise InvalidArgument(f"{counts}: the numbers must agree")
    items = []
    for index, picture in enumerate(pictures):
        spec, kind = spec_of(rows[index], spec_kind)
        items.append(Item(str(index), prompts[index], picture, frames[index], spec, kind))
    return items


def _pictures(images: Any, *, copy: bool = True) -> list[tuple[Image, ...]]:
    """One tuple per item: a list may hold videos, which are lists or arrays of frames."""
    if isinstance(images, list | tuple):
        return [tuple(to_images(image, copy=copy)) for image in images]
    if getattr(images, "ndim", 4) == 5:
        return [tuple(to_images(frames, copy=copy)) for frames in images]
    return [(image,) for image in to_images(images, copy=copy)]
