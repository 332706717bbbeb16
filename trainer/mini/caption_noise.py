"""Wrong captions: which scene a caption may show by mistake.

Captions of real image collections are often wrong, so a real generator learns to draw what was
asked only most of the time, however long it trains. Pretraining with wrong captions gives the
miniature a base of that kind: it can draw what is asked, and does so in some of its samples.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer.mini.prompts import Row


def near_misses(rows: Sequence[Row]) -> list[list[Row]]:
    """For each row the others that differ from it in exactly one attribute, in the order given.

    Attributes are class, number, colour and relation of each clause; of a word (`target`), its
    letters. With train rows alone, no caption ever comes with the scene of a held-out prompt.

    Args:
        rows: rows of one GenEval category, or OCR rows.

    Returns:
        One list per row; empty where no other row is that close.
    """
    attributes = [_attributes(row) for row in rows]
    return [
        [row for row, other in zip(rows, attributes, strict=True) if _distance(mine, other) == 1]
        for mine in attributes
    ]


def _attributes(row: Row) -> tuple[object, ...]:
    if "target" in row:
        return tuple(row["target"])
    return tuple(
        value
        for clause in row["include"]
        for value in (
            clause["class"],
            clause["count"],
            clause.get("color"),
            clause.get("position", [None])[0],
        )
    )


def _distance(one: tuple[object, ...], other: tuple[object, ...]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))
