"""From the answers about one image to its value: pure functions, with the bounds of what is known.

An answer lies between `low` and `high`; both are carried through, the lower bounds of parents with
the lower bounds of what hangs on them. An answer that is missing lies between 0 and 1, so the same
functions give the worst and the best case. Every value comes with a denominator, because ratios
that are pooled over images cannot be had from their means.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from rapidfuzz.distance import Levenshtein

# As OneIG-Bench (scripts/text, English): edits beyond so many do not count.
MOST_EDITS = 100
_NO_WORD = re.compile(r"[^\u4e00-\u9fa5a-zA-Z0-9\sàâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ]")


@dataclass(frozen=True, slots=True)
class Answer:
    """One question about one image, and what the answer is worth."""

    id: str
    low: float = 0.0
    high: float = 1.0
    parents: tuple[str, ...] = ()
    weight: float = 1.0
    group: str = ""
    target: str = ""
    said: str | None = None  # None: not answered


@dataclass(frozen=True, slots=True)
class Cell:
    """A value between `low` and `high`, as a numerator over `count`."""

    low: float
    high: float
    count: float = 1.0


def mean(answers: Sequence[Answer]) -> Cell:
    return Cell(_mean([a.low for a in answers]), _mean([a.high for a in answers]))


def gmean(answers: Sequence[Answer], floor: float = 0.0) -> Cell:
    """The geometric mean; no answer counts as less than `floor`."""

    def of(values: Sequence[float]) -> float:
        values = [max(value, floor) for value in values]
        return math.exp(_mean([math.log(v) for v in values])) if min(values) > 0 else 0.0

    return Cell(of([a.low for a in answers]), of([a.high for a in answers]))


def product(answers: Sequence[Answer]) -> Cell:
    return Cell(math.prod(a.low for a in answers), math.prod(a.high for a in answers))


def deps_once(answers: Sequence[Answer]) -> Cell:
    """The mean, where a question counts 0 if a parent was answered No, as answered (OneIG)."""
    low, high = ({a.id: value(a) for a in answers} for value in (_low, _high))
    return mean([_under(answer, low, high) for answer in answers])


def deps_ordered(answers: Sequence[Answer]) -> Cell:
    """The same in the order of the questions, so that a parent that became 0 is one (DPG)."""
    low, high = ({a.id: value(a) for a in answers} for value in (_low, _high))
    found: list[Answer] = []
    for answer in answers:
        one = _under(answer, low, high)
        low[one.id], high[one.id] = one.low, one.high
        found.append(one)
    return mean(found)


def weights(answers: Sequence[Answer]) -> Cell:
    """The weighted mean."""
    whole = sum(a.weight for a in answers)
    return Cell(
        sum(a.weight * a.low for a in answers) / whole,
        sum(a.weight * a.high for a in answers) / whole,
    )


def min_sqrt(answers: Sequence[Answer]) -> Cell:
    """The geometric mean of the groups' minima (VIEScore: the root of min SC times min PQ)."""
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.group, []).append(answer)
    least = [
        Answer(name, min(a.low for a in members), min(a.high for a in members))
        for name, members in groups.items()
    ]
    return gmean(least)


def ratio(answers: Sequence[Answer]) -> Cell:
    """The weighted sum over the sum of the weights, which are pooled apart."""
    return Cell(
        sum(a.weight * a.low for a in answers),
        sum(a.weight * a.high for a in answers),
        sum(a.weight for a in answers),
    )


REDUCERS: Mapping[str, Callable[[Sequence[Answer]], Cell]] = {
    "mean": mean,
    "product": product,
    "deps_once": deps_once,
    "deps_ordered": deps_ordered,
    "weights": weights,
    "min_sqrt": min_sqrt,
    "ratio": ratio,
}


def edits(answers: Sequence[Answer]) -> dict[str, Cell]:
    """OneIG's three statistics of transcripts: edits, exact texts, and words that are there."""
    found: dict[str, Cell] = {
        "edits": Cell(0, 0, 0),
        "exact": Cell(0, 0, 0),
        "words": Cell(0, 0, 0),
    }
    for one in answers:
        target = normalised(one.target)
        words = len(target.split())
        if one.said is None:
            cells = (Cell(MOST_EDITS, 0), Cell(0, 1), Cell(0, words, words))
        else:
            said = normalised(one.said)
            distance, there = Levenshtein.distance(said, target), _matched(target, said)
            exact = float(distance == 0)
            cells = (Cell(distance, distance), Cell(exact, exact), Cell(there, there, words))
        for name, cell in zip(found, cells, strict=True):
            before = found[name]
            found[name] = Cell(
                before.low + cell.low, before.high + cell.high, before.count + cell.count
            )
    return found


def normalised(text: str) -> str:
    """Text without what is neither letter, digit nor space, and with single spaces."""
    return " ".join(_NO_WORD.sub("", text.replace("No text recognized", "")).split())


def _matched(target: str, said: str) -> int:
    left = said.split()
    found = 0
    for word in target.split():
        if word in left:
            left.remove(word)
            found += 1
    return found


def _under(answer: Answer, low: Mapping[str, float], high: Mapping[str, float]) -> Answer:
    """An answer that is 0 where a parent's is No: less than a half."""
    return replace(
        answer,
        low=answer.low if all(low[parent] >= 0.5 for parent in answer.parents) else 0.0,
        high=answer.high if all(high[parent] >= 0.5 for parent in answer.parents) else 0.0,
    )


def _low(answer: Answer) -> float:
    return answer.low


def _high(answer: Answer) -> float:
    return answer.high


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
