"""GenEval prompts over the benchmark's 80 objects and 10 colours, in its wording and its own rows.

The grammar is that of github.com/djghosh13/geneval, wording included: every plural is the name with
an s (es after an s), so that training prompts read like the test prompts ("two benchs"). The
mixture is the paper's, by how hard the categories are for SD3.5-M.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from prompt_sets.drawing import number, shuffled
from reward_client.geneval_spec import RELATIONS
from trainer.data.files import folded
from trainer.errors import DataError

Row = dict[str, Any]

OBJECTS = tuple((Path(__file__).parent / "words" / "coco.txt").read_text("utf-8").splitlines())
COLORS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white",
)  # fmt: skip
# People are never asked for in a colour.
PAINTED = tuple(name for name in OBJECTS if name != "person")
NUMBERS = {2: "two", 3: "three", 4: "four"}

RATIO: Mapping[str, float] = {
    "position": 7,
    "counting": 5,
    "color_attr": 3,
    "colors": 1,
    "two_object": 1,
    "single_object": 0,
}


def generate(
    count: int,
    *,
    seed: int = 0,
    ratio: Mapping[str, float] = RATIO,
    exclude: Collection[Mapping[str, Any]] = (),
) -> list[Row]:
    """Rows of the benchmark's form, shuffled.

    The categories share `count` exactly by `ratio`. A category with fewer prompts than its share
    repeats them equally often, as the published training file does.

    Args:
        count: how many rows.
        seed: decides everything.
        ratio: share of each category, relative to each other.
        exclude: rows that must not come, nor the same scene in other words (the test prompts).

    Raises:
        DataError: an unknown category, no positive share, or a category of which nothing is left.
    """
    unknown = sorted(ratio.keys() - SIZES.keys())
    if unknown:
        raise DataError(f"there is no category {unknown[0]!r}; there are {', '.join(SIZES)}")
    total = sum(ratio.values())
    if total <= 0 or min(ratio.values()) < 0:
        raise DataError("the ratio needs a positive share, and none may be negative")
    barred = {scene(row) for row in exclude}
    texts = {folded(row["prompt"]) for row in exclude}

    def allowed(row: Row) -> bool:
        return folded(row["prompt"]) not in texts and scene(row) not in barred

    rows: list[Row] = []
    for tag, share in apportioned(count, ratio).items():
        rows += _choose(tag, share, seed, allowed)
    return shuffled(rows, "order", seed)


def apportioned(count: int, ratio: Mapping[str, float]) -> dict[str, int]:
    """`count` shared out by `ratio`, to the whole number (largest remainders first)."""
    total = sum(ratio.values())
    exact = {tag: count * share / total for tag, share in ratio.items()}
    shares = {tag: int(value) for tag, value in exact.items()}
    by_remainder = sorted(exact, key=lambda tag: shares[tag] - exact[tag])
    for tag in by_remainder[: count - sum(shares.values())]:
        shares[tag] += 1
    return shares


def scene(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row asks for, whatever the words: order of the objects and direction aside."""
    clauses = row["include"]
    facts = [(c["class"], c["count"], c.get("color", "")) for c in clauses]
    for index, clause in enumerate(clauses):
        if "position" in clause:
            relation, other = clause["position"]
            pair = [facts[index], facts[other]]
            if relation in ("right of", "below"):
                relation = {"right of": "left of", "below": "above"}[relation]
                pair.reverse()
            return (row["tag"], relation, *pair)
    return (row["tag"], *sorted(facts))


def _choose(tag: str, count: int, seed: int, allowed: Callable[[Row], bool]) -> list[Row]:
    """`count` different rows of a category, or all of them as often as it takes."""
    if not count:
        return []
    size = SIZES[tag]
    chosen: dict[int, Row] = {}
    if count * 4 < size:
        # Drawing costs a few rows where enumerating would cost half a million.
        for draw in range(3 * count):
            index = number(tag, seed, draw) % size
            row = row_of(tag, index)
            if allowed(row):
                chosen[index] = row
            if len(chosen) == count:
                return list(chosen.values())
    rows = [row for row in (row_of(tag, index) for index in range(size)) if allowed(row)]
    if not rows:
        raise DataError(f"no prompt of category {tag} is left: all of them are excluded")
    rows = shuffled(rows, tag, seed)
    return [rows[place % len(rows)] for place in range(count)]


def row_of(tag: str, index: int) -> Row:
    """The prompt of a category with this number, below `SIZES[tag]`."""
    return _MAKERS[tag](index)


def _single(index: int) -> Row:
    name = OBJECTS[index]
    return _row("single_object", [_one(name)], _an(name))


def _two(index: int) -> Row:
    first, second = _pair(OBJECTS, index)
    return _row("two_object", [_one(first), _one(second)], f"{_an(first)} and {_an(second)}")


def _counting(index: int) -> Row:
    place, size = divmod(index, len(NUMBERS))
    name, count = OBJECTS[place], list(NUMBERS)[size]
    plural = name + ("es" if name.endswith("s") else "s")
    row = _row("counting", [{"class": name, "count": count}], f"{NUMBERS[count]} {plural}")
    return {
        "tag": row["tag"],
        "include": row["include"],
        "exclude": [{"class": name, "count": count + 1}],
        "prompt": row["prompt"],
    }


def _colors(index: int) -> Row:
    place, shade = divmod(index, len(COLORS))
    name, color = PAINTED[place], COLORS[shade]
    return _row("colors", [_one(name, color)], f"{_an(color)} {name}")


def _position(index: int) -> Row:
    place, direction = divmod(index, len(RELATIONS))
    (moved, fixed), relation = _pair(OBJECTS, place), RELATIONS[direction]
    clauses = [_one(fixed), {**_one(moved), "position": [relation, 0]}]
    return _row("position", clauses, f"{_an(moved)} {relation} {_an(fixed)}")


def _color_attr(index: int) -> Row:
    place, shades = divmod(index, len(COLORS) * (len(COLORS) - 1))
    (first, second), (a, b) = _pair(PAINTED, place), _pair(COLORS, shades)
    text = f"{_an(a)} {first} and {_an(b)} {second}"
    return _row("color_attr", [_one(first, a), _one(second, b)], text)


def _pair(names: tuple[str, ...], index: int) -> tuple[str, str]:
    """The ordered pair of two different names with this number."""
    first, second = divmod(index, len(names) - 1)
    return names[first], names[second + (second >= first)]


def _row(tag: str, include: list[Row], text: str) -> Row:
    return {"tag": tag, "include": include, "prompt": f"a photo of {text}"}


def _one(name: str, color: str = "") -> Row:
    return {"class": name, "count": 1, **({"color": color} if color else {})}


def _an(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


_PAIRS = len(OBJECTS) * (len(OBJECTS) - 1)
SIZES: Mapping[str, int] = {
    "position": _PAIRS * len(RELATIONS),
    "counting": len(OBJECTS) * len(NUMBERS),
    "color_attr": len(PAINTED) * (len(PAINTED) - 1) * len(COLORS) * (len(COLORS) - 1),
    "colors": len(PAINTED) * len(COLORS),
    "two_object": _PAIRS,
    "single_object": len(OBJECTS),
}
_MAKERS: Mapping[str, Callable[[int], Row]] = {
    "position": _position,
    "counting": _counting,
    "color_attr": _color_attr,
    "colors": _colors,
    "two_object": _two,
    "single_object": _single,
}
