"""GenEval metadata rows: `{"tag", "include": [{"class", "count", "color", "position"}], "prompt"}`.

The format is that of the benchmark (github.com/djghosh13/geneval) and of flow_grpo's data set.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.data.files import rows, text_field, unique
from trainer.errors import DataError
from trainer.types import Prompt

CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")


def load(path: Path) -> list[Prompt]:
    """Read a file of GenEval rows; the category is the tag.

    Raises:
        DataError: a malformed row, naming file and line.
    """
    prompts = []
    for place, row in rows(path):
        text = text_field(place, row, "prompt")
        tag = text_field(place, row, "tag")
        include = row.get("include")
        if not isinstance(include, list) or not include:
            raise DataError(f'{place}: "include" must be a non-empty list of clauses')
        for index, clause in enumerate(include):
            _check_clause(f"{place}: include[{index}]", clause, index, len(include))
        for index, clause in enumerate(row.get("exclude") or []):
            _check_clause(f"{place}: exclude[{index}]", clause, index, 0)
        spec = {key: row[key] for key in ("tag", "include", "exclude") if key in row}
        prompts.append((place, Prompt(text=text, spec=spec, spec_kind="geneval", group=tag)))
    return unique(path, prompts)


def _check_clause(where: str, clause: Any, index: int, size: int) -> None:
    if not isinstance(clause, Mapping):
        raise DataError(f"{where} must be an object")
    text_field(where, clause, "class")
    count = clause.get("count")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise DataError(f'{where}: "count" must be a whole number of at least 1, got {count!r}')
    if "color" in clause:
        text_field(where, clause, "color")
    position = clause.get("position")
    if position is None:
        return
    if (
        not isinstance(position, list)
        or len(position) != 2
        or position[0] not in RELATIONS
        or not isinstance(position[1], int)
        or not 0 <= position[1] < size
        or position[1] == index
    ):
        raise DataError(
            f'{where}: "position" must be [relation, index of another clause] with a relation out '
            f"of {', '.join(RELATIONS)}, got {position!r}"
        )
