"""Wrong captions: which scene a caption may show by mistake.

Captions of real image collections are often wrong, so a real generator learns to draw what was
asked only most of the time, however long it trains. Pretraining with wrong captions gives the
miniature a base of that kind: it can draw what is asked, and does so in some of its samples.
"""

from __future__ import annotations

from collections.abc import Sequence

from miniature.prompts import Row

_Key = tuple[tuple[int, ...], tuple[object, ...]]


def near_misses(rows: Sequence[Row]) -> list[list[Row]]:
    """For each row the others that differ from it in exactly one attribute, in the order given.

    Attributes are class, colour and relation of each clause; of a word (`target`), its letters.
    Numbers are never wrong: train rows hold only two numbers of each class, so a wrong one would
    always be the same other. With train rows alone, no caption comes with a held-out scene.

    Args:
        rows: rows of one GenEval category, or OCR rows.

    Returns:
        One list per row; empty where no other row is that close.
    """
    keys = [(_numbers(row), _attributes(row)) for row in rows]
    return [
        [row for row, other in zip(rows, keys, strict=True) if _is_near(mine, other)]
        for mine in keys
    ]


def _is_near(one: _Key, other: _Key) -> bool:
    return one[0] == other[0] and sum(a != b for a, b in zip(one[1], other[1], strict=True)) == 1


def _numbers(row: Row) -> tuple[int, ...]:
    return tuple(clause["count"] for clause in row.get("include", []))


def _attributes(row: Row) -> tuple[object, ...]:
    if "target" in row:
        return tuple(row["target"])
    return tuple(
        value
        for clause in row["include"]
        for value in (
            clause["class"],
            clause.get("color"),
            clause.get("position", [None])[0],
        )
    )
