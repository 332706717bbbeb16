"""The text side of the OCR score: what was asked for, and how close what was read comes. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from rapidfuzz.distance import Levenshtein

MAX_TARGET_CHARACTERS = 512

# Straight quotes first, as published prompts have them; single ones are mostly apostrophes.
_QUOTED = (
    re.compile(r'"([^"]*)"'),
    re.compile("[\u201c\u201e\u201f]([^\u201c\u201d]*)[\u201c\u201d]"),
)

SEND = (
    'send spec_kind "ocr" with {"target": "STOP"}, or quote the text in the prompt: a sign "STOP"'
)


class TargetError(ValueError):
    """There is nothing to look for; the message names the field."""


def target_of(prompt: str, spec: Mapping[str, Any] | None) -> str:
    """The text a picture should show: `spec["target"]`, else the first quoted part of the prompt.

    Raises:
        TargetError: no target, an empty one, one that is only spaces, or one that is too long.
    """
    if spec is not None:
        if not isinstance(spec, Mapping) or "target" not in spec:
            raise TargetError(f"spec.target: missing; {SEND}")
        target, where = spec["target"], "spec.target"
        if not isinstance(target, str):
            raise TargetError(f"{where}: expected text, got {type(target).__name__}")
    else:
        target, where = _quoted(prompt), "prompt"
    if not fold(target):
        raise TargetError(f"{where}: the text to look for is empty; {SEND}")
    if len(target) > MAX_TARGET_CHARACTERS:
        raise TargetError(
            f"{where}: {len(target)} characters; at most {MAX_TARGET_CHARACTERS} are compared"
        )
    return target


def _quoted(prompt: str) -> str:
    for pattern in _QUOTED:
        found = pattern.search(prompt)
        if found is not None:
            return found.group(1)
    raise TargetError(f"prompt: no text in quotes; {SEND}")


def fold(text: str) -> str:
    """Compatibility form, without any white space, case folded."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text)).casefold()


def flowgrpo_score(target: str, recognised: str) -> float:
    """The published reward, in [0, 1]: a substring is a full hit, otherwise 1 - distance / length.

    Only spaces are removed and case lowered, as there; the distance is capped at the length of the
    target. Any amount of further text is free once the target occurs somewhere.
    """
    wanted, read = _published_form(target), _published_form(recognised)
    return 1.0 if wanted in read else edit_score(target, recognised)


def edit_score(target: str, recognised: str) -> float:
    """The published reward without the rule for substrings, in [0, 1]."""
    wanted, read = _published_form(target), _published_form(recognised)
    return 1.0 - min(Levenshtein.distance(wanted, read), len(wanted)) / len(wanted)


def _published_form(text: str) -> str:
    return text.replace(" ", "").lower()


def soft_score(target: str, recognised: str) -> tuple[float, float]:
    """The graded reward and the similarity behind it, both in [0, 1].

    The similarity is 1 - d / n, with d the edit distance of the target (n characters) to the best
    matching part of what was read. Characters outside that part are not free: the score is the
    similarity times n / (n + surplus). It is 1 exactly when the target and nothing else was read.
    """
    wanted, read = fold(target), fold(recognised)
    distance, length = best_window(wanted, read)
    similarity = 1.0 - distance / len(wanted)
    surplus = len(read) - length
    return similarity * (len(wanted) / (len(wanted) + surplus)), similarity


def best_window(wanted: str, read: str) -> tuple[int, int]:
    """Edit distance to the nearest substring of `read`, and the longest length it can have.

    Sellers' algorithm: the edit distance table with a free start anywhere in `read`.

    Args:
        wanted: the pattern, n characters.
        read: the text, m characters; the cost is n * m steps.
    """
    if wanted in read:
        return 0, len(wanted)
    # Per column: (distance, -length of the window so far); tuples compare distance first.
    column = [(row, 0) for row in range(len(wanted) + 1)]
    best = column[-1]
    for character in read:
        previous, column = column, [(0, 0)]
        for row, expected in enumerate(wanted, start=1):
            diagonal, left, above = previous[row - 1], previous[row], column[row - 1]
            column.append(
                min(
                    (diagonal[0] + (character != expected), diagonal[1] - 1),
                    (left[0] + 1, left[1] - 1),
                    (above[0] + 1, above[1]),
                )
            )
        best = min(best, column[-1])
    return best[0], -best[1]
