"""What all prompt files have in common: their formats, errors that name the line, overlap."""

import csv
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.errors import DataError
from trainer.types import Prompt, Request

Numbered = Iterator[tuple[int, Any]]


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) for every row that is not empty; place reads `file:line`.

    The ending of the name, in any case, gives the format: .jsonl, .json (a list, or an object of
    rows), .csv and .tsv
    (with a row of names; cells may hold JSON), .parquet (needs pyarrow), or .txt (a prompt per
    line). Lines of .txt and .jsonl that begin with "# " are comments. None, NaN and empty cells are
    left out.

    Raises:
        DataError: no such file, not UTF-8, an unknown ending, a malformed row, or no row at all.
    """
    read = READERS.get(path.suffix.lower())
    if not path.is_file():
        raise DataError(f"there is no prompt file {path}{_how_to_get(path)}")
    if read is None:
        raise DataError(
            f"{path}: its name does not say what it is; end it with one of {', '.join(READERS)}"
        )
    place = ""
    try:
        for number, row in read(path):
            place = f"{path.name}:{number}"
            if not isinstance(row, dict):
                raise DataError(f"{place}: expected a JSON object, got {type(row).__name__}")
            yield place, {name: value for name, value in row.items() if value is not None}
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read: {error}; save it as UTF-8") from None
    except (OSError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if not place:
        raise DataError(f"{path} holds no prompts")


def _text(path: Path) -> str:
    # Windows puts a byte order mark first.
    return path.read_bytes().decode("utf-8-sig")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that say something; only a line feed ends one, as JSON may hold U+2028 and the like."""
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip() and line.strip() != "#" and not line.startswith("# "):
            yield number, line.strip()


def _texts(path: Path) -> Numbered:
    return ((number, {"prompt": line}) for number, line in _lines(path))


def _json_lines(path: Path) -> Numbered:
    return ((number, _parsed(f"{path.name}:{number}", line)) for number, line in _lines(path))


def _json_list(path: Path) -> Numbered:
    found = _parsed(path.name, _text(path))
    if isinstance(found, dict) and found and all(isinstance(row, dict) for row in found.values()):
        found = list(found.values())  # rows by name, as in ImgEdit's benchmark
    if not isinstance(found, list):
        raise DataError(
            f"{path.name}: expected a list of rows, got {type(found).__name__}; with a row per "
            "line it is a .jsonl"
        )
    for number, row in enumerate(found, start=1):
        yield number, {"prompt": row} if isinstance(row, str) else row


def _parsed(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON: {error.msg} at column {error.colno}") from None


def _table(path: Path) -> Numbered:
    comma = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), delimiter=comma, strict=True)
    if "prompt" not in (reader.fieldnames or ()):
        raise DataError(
            f'{path.name}:1: no column "prompt"; there are {", ".join(reader.fieldnames or ())}'
        )
    for row in reader:
        place = f"{path.name}:{reader.line_num}"
        if None in row or None in row.values():
            raise DataError(f"{place}: the row has another number of cells than the first one")
        yield reader.line_num, {name: _cell(place, name, text) for name, text in row.items()}


def _cell(place: str, name: str, value: Any) -> Any:
    """A value of a table: lists and objects may come as JSON; empty and NaN is None."""
    if not isinstance(value, str):
        return None if isinstance(value, float) and math.isnan(value) else value
    if name in ("prompt", "target") or not value.startswith(("[", "{")):
        return value or None
    return _parsed(f'{place}: "{name}"', value)


def _parquet(path: Path) -> Numbered:
    try:
        from pyarrow import ArrowException, parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(
            f"{path}: reading it needs pyarrow ({error}): pip install pyarrow, or write .jsonl"
        ) from None
    try:
        # A few rows at a time: they may hold pictures.
        batches = parquet.ParquetFile(path).iter_batches(batch_size=64)
        found = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(found, start=1):
            place = f"{path.name}:{number}"
            yield number, {name: _cell(place, name, value) for name, value in row.items()}
    except ArrowException as error:
        raise DataError(f"{path} cannot be read: {error}; write it anew, or as .jsonl") from None


READERS: dict[str, Callable[[Path], Numbered]] = {
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
    ".txt": _texts,
}


def text_field(place: str, row: Mapping[str, Any], name: str) -> str:
    """The text called `name`; DataError if it is missing, empty or not a text."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f'{place}: "{name}" must be a non-empty text')
    return value


def unique(path: Path, prompts: Sequence[tuple[str, Prompt]]) -> list[Prompt]:
    """The prompts, each once; DataError for the same prompt with another specification.

    Rows that repeat a prompt make it be drawn more often. The published files repeat rows on
    purpose: a category with few prompts has to come as often as one with many.
    """
    seen: dict[Request, tuple[str, Prompt]] = {}
    for place, prompt in prompts:
        first, known = seen.setdefault(prompt.request, (place, prompt))
        if first == place:
            continue
        if known != replace(prompt, rows=known.rows):
            raise DataError(
                f"{place}: the prompt {prompt.text!r} is already at {first} and asks for something "
                "else there"
            )
        seen[prompt.request] = (first, replace(known, rows=known.rows + 1))
    if not prompts:
        raise DataError(f"{path} holds no prompts")
    return [prompt for _, prompt in seen.values()]


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """SHA-256 (hex) of prompts with everything that belongs to them, in their order."""
    rows = [(p.text, p.spec, p.spec_kind, p.group, p.rows, *_further(p)) for p in prompts]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _further(prompt: Prompt) -> tuple[Any, ...]:
    """What only prompts about pictures have: the others' fingerprints stay what they were."""
    if not prompt.references and prompt.negative is None:
        return ()
    return [reference.digest for reference in prompt.references], prompt.negative


def folded(text: str) -> str:
    """The text of a prompt, letter case and spaces aside."""
    return " ".join(text.lower().split())


def _same(prompt: Prompt) -> Request:
    """What makes two prompts the same: the folded text, and the pictures."""
    return Request(folded(prompt.text), prompt.references)


def check_overlap(train: Sequence[Prompt], test: Sequence[Prompt]) -> list[str]:
    """The test prompts that are also trained on, those about pictures with their rows."""
    known = {_same(prompt) for prompt in train}
    return [
        ": ".join([*(each.place for each in prompt.references[:1]), prompt.text])
        for prompt in test
        if _same(prompt) in known
    ]


def without(train: Sequence[Prompt], test: Sequence[Prompt]) -> list[Prompt]:
    """The training prompts that are no test prompts; DataError if none is left."""
    held_out = {_same(prompt) for prompt in test}
    kept = [prompt for prompt in train if _same(prompt) not in held_out]
    if not kept:
        raise DataError("every training prompt is a test prompt as well: nothing is left to train")
    return kept


def category_probabilities(prompts: Sequence[Prompt], weights: Mapping[str, float]) -> list[float]:
    """How likely each prompt is to be drawn: the weight of its category, shared out by rows.

    Without weights all rows are equally likely. Probabilities add up to 1.

    Raises:
        DataError: a weight for a category that no prompt has, or no positive weight left.
    """
    sizes: Counter[str] = Counter()
    for prompt in prompts:
        sizes[prompt.group] += prompt.rows
    if not weights:
        return [prompt.rows / sizes.total() for prompt in prompts]
    unknown = sorted(name for name, weight in weights.items() if weight > 0 and name not in sizes)
    if unknown:
        raise DataError(
            f"task.category_weights: no training prompt is of category {unknown[0]!r}; "
            f"there are {', '.join(sorted(sizes))}"
        )
    total = sum(weights.get(name, 0.0) for name in sizes)
    if total <= 0:
        raise DataError("task.category_weights: every weight is 0")
    return [weights.get(p.group, 0.0) / total * p.rows / sizes[p.group] for p in prompts]


def _how_to_get(path: Path) -> str:
    """The command that brings a file, if it is one of the official sets."""
    from prompt_sets.official import names_with

    found = names_with(path)
    return f"; flow-train data pull {found[0]} fetches it" if found else ""
