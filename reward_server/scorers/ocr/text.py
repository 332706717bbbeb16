"""The text side of the OCR score: how close what was read comes to what was asked for. Pure."""

from __future__ import annotations

from rapidfuzz.distance import Levenshtein

from reward_client.ocr_target import fold


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
