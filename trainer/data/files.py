"""What all prompt files have in common: one prompt per line, errors that name the line."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.errors import DataError
from trainer.types import Prompt


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) for every line that is not empty; place reads `file:line`.

    A line is a JSON object, or in a .txt file the prompt itself.

    Raises:
        DataError: no such file, not UTF-8, a line that is not a JSON object, or no line at all.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"there is no prompt file {path}{_how_to_get(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    empty = True
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        empty = False
        place = f"{path.name}:{number}"
        if path.suffix == ".txt":
            yield place, {"prompt": line.strip()}
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{place}: not JSON: {error.msg} at column {error.colno}") from None
        if not isinstance(row, dict):
            raise DataError(f"{place}: expected a JSON object, got {type(row).__name__}")
        yield place, row
    if empty:
        raise DataError(f"{path} holds no prompts")


def text_field(place: str, row: Mapping[str, Any], name: str) -> str:
    """The non-empty text called `name`.

    Raises:
        DataError: missing, empty or not a text.
    """
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f'{place}: "{name}" must be a non-empty text')
    return value


def unique(path: Path, prompts: Sequence[tuple[str, Prompt]]) -> list[Prompt]:
    """The prompts, each once; rows that repeat a prompt make it be drawn more often.

    The published files repeat rows on purpose: a category with few prompts has to come as often as
    one with many, and evaluations draw each prompt several times. Groups are told apart by prompt.

    Raises:
        DataError: the same prompt with another specification, with both places.
    """
    seen: dict[str, tuple[str, Prompt]] = {}
    for place, prompt in prompts:
        first, known = seen.setdefault(prompt.text, (place, prompt))
        if first == place:
            continue
        if known != replace(prompt, rows=known.rows):
            raise DataError(
                f"{place}: the prompt {prompt.text!r} is already at {first} and asks for something "
                "else there"
            )
        seen[prompt.text] = (first, replace(known, rows=known.rows + 1))
    if not prompts:
        raise DataError(f"{path} holds no prompts")
    return [prompt for _, prompt in seen.values()]


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """SHA-256 (hex) of prompts with everything that belongs to them, in their order."""
    rows = [(p.text, p.spec, p.spec_kind, p.group, p.rows) for p in prompts]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def folded(text: str) -> str:
    """What makes two prompts the same: the text, letter case and spaces aside."""
    return " ".join(text.lower().split())


def check_overlap(train: Sequence[Prompt], test: Sequence[Prompt]) -> list[str]:
    """The test prompts that are also trained on (letter case and spaces aside)."""
    known = {folded(prompt.text) for prompt in train}
    return [prompt.text for prompt in test if folded(prompt.text) in known]


def without(train: Sequence[Prompt], test: Sequence[Prompt]) -> list[Prompt]:
    """The training prompts that are no test prompts (letter case and spaces aside).

    Raises:
        DataError: none is left.
    """
    held_out = {folded(prompt.text) for prompt in test}
    kept = [prompt for prompt in train if folded(prompt.text) not in held_out]
    if not kept:
        raise DataError("every training prompt is a test prompt as well: nothing is left to train")
    return kept


def category_probabilities(prompts: Sequence[Prompt], weights: Mapping[str, float]) -> list[float]:
    """How likely each prompt is to be drawn: the weight of its category, shared out by rows.

    Args:
        prompts: the training prompts.
        weights: weight per category; empty makes all rows equally likely.

    Returns:
        One probability per prompt, summing to 1.

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
