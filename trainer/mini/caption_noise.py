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

    Attributes are class, colour and relation of each clause; of a word (`target`), its letters.
    Numbers are never wrong: the train rows hold only two numbers of each class, and saying one for
    the other teaches that any number of that class means those two (held-out counting fell from
    0.67 to 0.25). With train rows alone, no caption comes with the scene of a held-out prompt.

    Args:
        rows: rows of one GenEval category, or OCR rows.

    Returns:
        One list per row; empty where no other row is that close.
    """
    return [[other for other in rows if _is_near(row, other)] for row in rows]


def _is_near(row: Row, other: Row) -> bool:
    pairs = zip(_attributes(row), _attributes(other), strict=True)
    return _numbers(row) == _numbers(other) and sum(a != b for a, b in pairs) == 1


def _numbers(row: Row) -> list[int]:
    return [clause["count"] for clause in row.get("include", [])]


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
