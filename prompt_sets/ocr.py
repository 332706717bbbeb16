"""Prompts that ask for a text in a scene: templates x texts x details, all from `words/ocr.toml`.

A text belongs to the training or to the test prompts by its own hash, whatever the seed: no text of
a test prompt is ever trained on, in any letter case.
"""

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from prompt_sets.drawing import number, pick, shuffled
from trainer.data.files import folded
from trainer.errors import DataError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

Row = dict[str, str]
Split = Literal["train", "test"]

WORDS = Path(__file__).parent / "words" / "ocr.toml"
TEST_SHARE = 10
"""One text in so many is held out."""
_PATIENCE = 200


@dataclass(frozen=True, slots=True)
class Words:
    """What prompts are made of; see the file.

    Attributes:
        lists: words by list.
        scenes: (group, kinds of texts, templates).
    """

    lists: Mapping[str, tuple[str, ...]]
    scenes: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]


@cache
def words() -> Words:
    """The shipped lists."""
    table = tomllib.loads(WORDS.read_text(encoding="utf-8"))
    scenes = table.pop("scenes")
    return Words(
        {name: tuple(values) for name, values in table.items()},
        tuple((s["group"], tuple(s["kinds"]), tuple(s["templates"])) for s in scenes),
    )


def generate(
    count: int, *, split: Split = "train", seed: int = 0, exclude: Collection[str] = ()
) -> list[Row]:
    """Rows `{"prompt", "target", "group"}`, all different, the scenes equally often.

    Args:
        count: how many.
        split: which texts may be asked for.
        seed: decides everything but the split.
        exclude: prompts that must not come.

    Raises:
        DataError: there are not so many.
    """
    barred = {folded(text) for text in exclude}
    rows: dict[str, Row] = {}
    failures = draw = 0
    while len(rows) < count:
        row = _row(split, seed, draw, words().scenes[len(rows) % len(words().scenes)])
        draw += 1
        key = folded(row["prompt"]) if row else ""
        if row is None or key in rows or key in barred:
            failures += 1
            if failures > _PATIENCE * (len(rows) + 100):
                raise DataError(
                    f"there are hardly more than {len(rows)} {split} prompts; ask for fewer"
                )
            continue
        rows[key] = row
    return shuffled(list(rows.values()), "order", split, seed)


def split_of(target: str) -> Split:
    """Whether a text is for training or for tests."""
    return "test" if number("split", folded(target)) % TEST_SHARE == 0 else "train"


def _row(split: Split, seed: int, draw: int, scene: Any) -> Row | None:
    group, kinds, templates = scene
    key = (split, seed, draw)
    target = _KINDS[pick(kinds, "kind", *key)](*key)
    if split_of(target) != split:
        return None
    prompt = pick(templates, "template", *key).replace("{text}", target)
    detail = pick(words().lists["details"], "detail", *key)
    return {
        "prompt": f"{prompt}, {detail}" if detail else prompt,
        "target": target,
        "group": group,
    }


def _word(*key: object) -> str:
    text = pick(words().lists["words"], "word", *key)
    return pick((text, text.capitalize(), text.upper()), "case", *key)


def _phrase(*key: object) -> str:
    lists = words().lists
    text = pick(lists["phrases"], "phrase", *key)
    text = pick((text, _title(*key)), "fixed", *key)
    return pick((text, text, text.upper()), "case", *key)


def _title(*key: object) -> str:
    lists = words().lists
    text = f"{pick(lists['adjectives'], 'adjective', *key)} {pick(lists['nouns'], 'noun', *key)}"
    return pick((text, f"The {text}"), "article", *key)


def _name(*key: object) -> str:
    lists = words().lists
    return f"{pick(lists['surnames'], 'surname', *key)}'s {pick(lists['trades'], 'trade', *key)}"


def _number(*key: object) -> str:
    value = number("digits", *key)
    letter = "ABCDEFGHJKLMNPRSTUVWXYZ"[value // 10_000 % 23]
    return pick(
        (str(value % 90 + 10), str(value % 9000 + 1000), f"{letter}{value % 900 + 100}"),
        "number",
        *key,
    )


def _price(*key: object) -> str:
    value = number("price", *key)
    return f"${value % 199 + 1}.{pick(('00', '25', '49', '50', '75', '95', '99'), 'cents', *key)}"


def _time(*key: object) -> str:
    value = number("time", *key)
    return f"{value % 24:02d}:{value // 24 % 12 * 5:02d}"


def _date(*key: object) -> str:
    value = number("date", *key)
    day, year = value % 28 + 1, value // 28 % 80 + 1960
    return f"{pick(words().lists['months'], 'month', *key)} {day}, {year}"


_KINDS: Mapping[str, Callable[..., str]] = {
    "word": _word,
    "phrase": _phrase,
    "title": _title,
    "name": _name,
    "number": _number,
    "price": _price,
    "time": _time,
    "date": _date,
}
