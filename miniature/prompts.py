"""GenEval's prompt grammar over the miniature's vocabulary, split into train and test.

Rows have the benchmark's own form (`tag`, `include`, `exclude`, `prompt`). A test prompt is a
composition of known words that is never seen together: neither pretraining nor RL uses it.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from miniature.scenes import CLASSES, COLORS, MAX_COUNT, RELATIONS

Row = dict[str, Any]
TAGS: tuple[str, ...] = (
    "single_object",
    "two_object",
    "counting",
    "colors",
    "position",
    "color_attr",
)
_NUMBER_WORDS = {2: "two", 3: "three", 4: "four"}
_PLURAL = {name: name + ("es" if name.endswith(("s", "x")) else "s") for name in CLASSES}

# How many prompts of each tag are held out. All six classes on their own are test prompts: with one
# word there is no other way to hold a composition out.
TEST_COUNTS: dict[str, int] = {
    "single_object": 6,
    "two_object": 10,
    "counting": 6,
    "colors": 12,
    "position": 50,
    "color_attr": 120,
}

WORDS: tuple[str, ...] = (
    "ace", "act", "arc", "art", "ask", "bat", "box", "bus", "cab", "can", "cap", "car", "cat",
    "cow", "cup", "cut", "day", "den", "dog", "dot", "ear", "eat", "egg", "elf", "end", "fan",
    "fig", "fin", "fit", "fly", "fun", "gas", "gem", "gum", "hat", "hot", "ice", "ink", "jam",
    "jar", "joy", "key", "kit", "lab", "lip", "log", "map", "mix", "mud", "net", "nut", "oak",
    "oil", "one", "owl", "pan", "pen", "pet", "pie", "pig", "pot", "rug", "run", "sea", "sky",
    "sun", "tax", "tea", "ten", "tie", "top", "toy", "van", "vet", "wax", "web", "win", "zip",
    "zoo",
)  # fmt: skip

# Words for RL alone: pretraining draws none of them, so there is something left to learn.
RL_WORDS: tuple[str, ...] = (
    "add", "age", "aid", "aim", "air", "arm", "axe", "bag", "bar", "bay", "big", "bin", "bit",
    "bow", "boy", "bud", "bug", "bun", "buy", "cod", "cog", "cot", "cub", "cue", "dam", "dew",
    "dig", "dip", "dry", "due", "ego", "elm", "era", "far", "few", "fir", "fur", "gap", "ham",
    "hay", "hip", "hit", "hop", "hub", "hug", "hum", "hut", "ivy", "jet", "jig", "job", "jog",
    "jug", "kid", "lad", "lap", "law", "lid", "lot", "man", "mat", "men", "mop", "mug", "nap",
    "new", "nod", "oar", "oat", "odd", "orb", "ore", "pad", "paw", "pea", "peg", "pit", "pod",
    "rag", "ram", "rat", "raw", "ray", "rod", "row", "rye", "sap", "saw", "sip", "sit", "six",
    "spy", "tab", "tag", "tan", "tap", "tin", "tip", "ton", "tow", "tub", "tug", "use", "vat",
    "vow", "way", "wig", "yak", "yam",
)  # fmt: skip


def _row(tag: str, prompt: str, include: list[Row], exclude: list[Row] | None = None) -> Row:
    row: Row = {"tag": tag, "include": include, "prompt": f"a photo of {prompt}"}
    if exclude:
        row["exclude"] = exclude
    return row


def _one(cls: str, color: str | None = None) -> Row:
    return {"class": cls, "count": 1} | ({"color": color} if color else {})


def all_rows(tag: str) -> Iterator[Row]:
    """Every prompt of one GenEval category over the vocabulary, in a fixed order.

    Raises:
        ValueError: `tag` is not a GenEval category.
    """
    pairs = list(itertools.permutations(CLASSES, 2))
    if tag == "single_object":
        yield from (_row(tag, f"a {c}", [_one(c)]) for c in CLASSES)
    elif tag == "two_object":
        yield from (_row(tag, f"a {a} and a {b}", [_one(a), _one(b)]) for a, b in pairs)
    elif tag == "counting":
        for cls, n in itertools.product(CLASSES, range(2, MAX_COUNT + 1)):
            include, exclude = {"class": cls, "count": n}, {"class": cls, "count": n + 1}
            yield _row(tag, f"{_NUMBER_WORDS[n]} {_PLURAL[cls]}", [include], [exclude])
    elif tag == "colors":
        for cls, color in itertools.product(CLASSES, COLORS):
            yield _row(tag, f"a {color} {cls}", [_one(cls, color)])
    elif tag == "position":
        for (a, b), relation in itertools.product(pairs, RELATIONS):
            mover = _one(a) | {"position": [relation, 0]}
            yield _row(tag, f"a {a} {relation} a {b}", [_one(b), mover])
    elif tag == "color_attr":
        for (a, b), (p, q) in itertools.product(pairs, itertools.permutations(COLORS, 2)):
            yield _row(tag, f"a {p} {a} and a {q} {b}", [_one(a, p), _one(b, q)])
    else:
        raise ValueError(f"tag {tag!r} is not a GenEval category: expected one of {TAGS}")


def number_row(classes: Sequence[str]) -> Row:
    """A number without a class, such as `a photo of four`, over objects of these classes."""
    return _row("number", _NUMBER_WORDS[len(classes)], [_one(cls) for cls in classes])


def split() -> tuple[list[Row], list[Row]]:
    """(train, test) rows of all categories: disjoint, the same on every machine.

    Rows are ordered by a hash of their prompt and the first `TEST_COUNTS[tag]` are held out, so the
    choice depends on nothing but the prompt. Counting has so few rows that chance would leave
    hardly any train row with four objects: there every class is held out once, and every number
    equally often.
    """
    train: list[Row] = []
    test: list[Row] = []
    for tag in TAGS:
        rows = sorted(all_rows(tag), key=lambda row: _digest(row["prompt"]))
        if tag == "counting":
            rows = _balanced_first(rows)
        test += rows[: TEST_COUNTS[tag]]
        train += rows[TEST_COUNTS[tag] :]
    return train, test


def _balanced_first(rows: list[Row]) -> list[Row]:
    """Counting rows, those to hold out first: the i-th class by hash with the numbers in turn."""
    numbers = list(_NUMBER_WORDS)
    turn = {cls: numbers[i % len(numbers)] for i, cls in enumerate(sorted(CLASSES, key=_digest))}
    return sorted(rows, key=lambda r: r["include"][0]["count"] != turn[r["include"][0]["class"]])


def split_words() -> tuple[list[Row], list[Row]]:
    """(pretraining, test) OCR rows of `WORDS`: every fifth word, by hash, is held out."""
    rows = word_rows(WORDS)
    return [r for i, r in enumerate(rows) if i % 5], rows[::5]


def word_rows(words: Sequence[str]) -> list[Row]:
    """OCR rows `{"prompt", "target"}`, ordered by a hash of the word."""
    return [
        {"prompt": f'the word "{word.upper()}"', "target": word.upper()}
        for word in sorted(words, key=_digest)
    ]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
