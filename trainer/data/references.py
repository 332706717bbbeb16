"""The pictures that prompts are about: found, read and checked before anything is loaded."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL.Image import DecompressionBombError

from trainer.errors import DataError
from trainer.images import load_reference
from trainer.types import Prompt, Reference

# Shares of a picture that are left in the shape of the images: no less than the first; from the
# second on, it is the same shape but for rounding.
LEAST_LEFT, SAME_SHAPE = 0.5, 0.98


def locate(found: Any, table: Path, place: str) -> Path:
    """The file of a picture that a row of `table` names, or holds.

    Names are relative to the folder of `table`, or to `images` in it, as other projects write them.
    Content, alone or as the `{"bytes", "path"}` of datasets, is put beside the table.

    Raises:
        DataError: neither a name nor content, an address, or content that cannot be put there.
    """
    held = found if isinstance(found, Mapping) else {"bytes": found, "path": found}
    if isinstance(content := held.get("bytes"), bytes):
        return _put(content, held_beside(table), place)
    name = held.get("path")
    if not isinstance(name, str) or not name:
        raise DataError(
            f'{place} must be a picture file, e.g. "images/0001.png", or its content as bytes, not '
            f"{found!r:.80}"
        )
    if "://" in name:
        raise DataError(f"{place}: {name} is an address: download it, and name the file")
    path, other = table.parent / name, table.parent / "images" / name
    return other if other.is_file() and not path.is_file() else path


def held_beside(table: Path) -> Path:
    """The folder for the pictures that the rows of a table hold."""
    return table.with_name(f"{table.name}.pictures")


def _put(content: bytes, folder: Path, place: str) -> Path:
    """Write content into a file that is named by it, unless it is there."""
    path = folder / hashlib.sha256(content).hexdigest()
    part = path.with_suffix(f".{os.getpid()}")
    try:
        if not path.is_file():
            folder.mkdir(exist_ok=True)
            part.write_bytes(content)
            part.replace(path)  # whole or not at all: other processes read it too
    except OSError as error:
        raise DataError(
            f"{place}: its content is put into {folder}, which fails ({error}); copy the table to "
            "where there is room and you may write"
        ) from None
    return path


def read_references(named: Sequence[tuple[Path, str]]) -> dict[Path, Reference]:
    """Read every file once, whole; each comes with the place that names it.

    Raises:
        DataError: the first one that is not there, or is no picture.
    """
    places: dict[Path, str] = {}
    for path, place in named:
        places.setdefault(path, place)
    with ThreadPoolExecutor() as pool:
        return dict(zip(places, pool.map(_read, places, places.values()), strict=True))


def _read(path: Path, place: str) -> Reference:
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        size = load_reference(path).size
    except FileNotFoundError:
        raise DataError(
            f"{place}: there is no picture {path}: put it there, or leave it out"
        ) from None
    # Pillow has no error of its own for what is damaged.
    except (OSError, ValueError, SyntaxError, DecompressionBombError) as error:
        raise DataError(
            f"{place}: {path} is no picture that can be read ({error}); replace it, or leave the "
            "row out"
        ) from None
    return Reference(digest, path, size, place)


def check_references(
    prompts: Sequence[Prompt], family: str, allowed: tuple[int, int], size: tuple[int, int]
) -> str:
    """Check the pictures of a file's prompts; return a warning if some are cut, or an empty text.

    All prompts have as many references (`trainer.data.tasks.load_edit`); `allowed` is how many the
    family takes, at least and at most, `size` width and height of the run's images in pixels.

    Raises:
        DataError: another number of them, or one that hardly anything would be left of.
    """
    _check_count(prompts[0], family, *allowed)
    wanted, cut = size[0] / size[1], {}
    for reference in (each for prompt in prompts for each in prompt.references):
        shape = reference.size[0] / reference.size[1]
        left = min(shape / wanted, wanted / shape)
        shown = "{} of {}x{} px".format(reference.path, *reference.size)
        if left < LEAST_LEFT:
            raise DataError(
                f"{reference.place}: {left:.0%} of {shown} would be left in the shape of "
                f"{size[0]}x{size[1]} px: crop it, or set sampling.height_px and sampling.width_px"
            )
        if left < SAME_SHAPE:
            cut[reference] = f"{reference.place}: {shown}"
    if not cut:
        return ""
    return (
        f"warning: {len(cut)} references have another shape than {size[0]}x{size[1]} px: their "
        f"edges are cut off, e.g. {next(iter(cut.values()))}"
    )


def check_alike(train: Prompt, test: Prompt) -> None:
    """Raise DataError unless both files' prompts have as many references."""
    counts = len(train.references), len(test.references)
    if counts[0] == counts[1]:
        return
    raise DataError(
        f"{_place(test)}: {counts[1]} references, but {counts[0]} at {_place(train)}: a run has "
        "one number of them, in task.train and in task.test"
    )


def _place(prompt: Prompt) -> str:
    return prompt.references[0].place if prompt.references else repr(prompt.text)


def _check_count(prompt: Prompt, family: str, least: int, most: int) -> None:
    count = len(prompt.references)
    if least <= count <= most:
        return
    if not most:
        text = "draws from text alone: take one that edits, e.g. flux_kontext, or task.name=jsonl"
    elif not count:
        text = 'edits pictures: name them in "references" of every row, and set task.name=edit'
    else:
        text = f"takes {least}" if least == most else f"takes {least} to {most}"
    raise DataError(f"{_place(prompt)}: {count} references, but model.family={family} {text}")
