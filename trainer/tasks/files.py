"""What all prompt files have in common: one JSON object per line, errors that name the line."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.errors import DataError
from trainer.types import Prompt


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) for every line that is not empty; place reads `file:line`.

    Raises:
        DataError: no such file, not UTF-8, a line that is not a JSON object, or no line at all.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"there is no prompt file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    empty = True
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        empty = False
        place = f"{path.name}:{number}"
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
    """The prompts, after checking that none is there twice (groups are told apart by prompt).

    Raises:
        DataError: a repeated prompt, with both places.
    """
    seen: dict[str, str] = {}
    for place, prompt in prompts:
        if prompt.text in seen:
            raise DataError(
                f"{place}: the prompt {prompt.text!r} is already at {seen[prompt.text]}"
            )
        seen[prompt.text] = place
    if not prompts:
        raise DataError(f"{path} holds no prompts")
    return [prompt for _, prompt in prompts]


def check_overlap(train: Sequence[Prompt], test: Sequence[Prompt]) -> list[str]:
    """The test prompts that are also trained on (letter case and spaces aside)."""

    def key(text: str) -> str:
        return " ".join(text.lower().split())

    known = {key(prompt.text) for prompt in train}
    return [prompt.text for prompt in test if key(prompt.text) in known]


def category_probabilities(prompts: Sequence[Prompt], weights: Mapping[str, float]) -> list[float]:
    """How likely each prompt is to be drawn: the weight of its category over the category's size.

    Args:
        prompts: the training prompts.
        weights: weight per category; empty makes all prompts equally likely.

    Returns:
        One probability per prompt, summing to 1.

    Raises:
        DataError: a weight for a category that no prompt has, or no positive weight left.
    """
    if not weights:
        return [1 / len(prompts)] * len(prompts)
    sizes = Counter(prompt.group for prompt in prompts)
    unknown = sorted(name for name, weight in weights.items() if weight > 0 and name not in sizes)
    if unknown:
        raise DataError(
            f"task.category_weights: no training prompt is of category {unknown[0]!r}; "
            f"there are {', '.join(sorted(sizes))}"
        )
    total = sum(weights.get(name, 0.0) for name in sizes)
    if total <= 0:
        raise DataError("task.category_weights: every weight is 0")
    return [weights.get(p.group, 0.0) / total / sizes[p.group] for p in prompts]
