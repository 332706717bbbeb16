"""From the values of images to a number with an interval: images, prompts, groups, total.

The bootstrap draws units (prompts; of paraphrases, scenes with all their wordings) within strata,
and computes the whole statistic again for each draw, pooled ratios and weights included.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.statistics import estimate
from trainer.suites.reduce import MOST_EDITS, Cell

Floats = NDArray[np.float64]
Row = dict[str, Any]
ORIGINAL = "original"
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Rule:
    """From groups to the total; see `manifest.Measure`."""

    total: str = "prompts"
    weights: Mapping[str, float] | None = None
    scale: float = 1.0
    pooled: bool = False  # numerators and denominators of images add up; else images are averaged


@dataclass(frozen=True, slots=True)
class Tree:
    """Numerators and denominators of P prompts in G groups, and which prompts are drawn together.

    `units` (P,) numbers the unit of each prompt, `strata` (U,) the stratum of each unit.
    """

    groups: tuple[str, ...]
    low: Floats  # (P, G)
    high: Floats
    count: Floats
    units: NDArray[np.intp]
    strata: tuple[str, ...]


def plant(
    images: Sequence[Sequence[Mapping[str, Cell]]],
    units: Sequence[int],
    strata: Mapping[int, str],
    *,
    pooled: bool,
) -> Tree:
    """A tree from the cells of each prompt's images, by group; images without any are left out."""
    groups = tuple(dict.fromkeys(name for prompt in images for image in prompt for name in image))
    shape = (len(images), len(groups))
    low, high, count = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for place, prompt in enumerate(images):
        for column, name in enumerate(groups):
            cells = [image[name] for image in prompt if name in image]
            if not cells:
                continue
            share = 1.0 if pooled else 1.0 / len(cells)
            low[place, column] = sum(cell.low for cell in cells) * share
            high[place, column] = sum(cell.high for cell in cells) * share
            count[place, column] = sum(cell.count for cell in cells) * share
    known = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    numbered = np.array([known[unit] for unit in units], dtype=np.intp)
    return Tree(groups, low, high, count, numbered, tuple(strata[unit] for unit in known))


def summary(tree: Tree, rule: Rule, *, seed: int = 0, resamples: int = RESAMPLES) -> Row:
    """`mean`, `low`, `high` and `n` of the total; `upper`, where bounds differ; and `groups`.

    Means are None where nothing has a value. `n` counts prompts.
    """
    n = int((tree.count.sum(1) > 0).sum())
    if not n:
        return {"mean": None, "low": None, "high": None, "n": 0, "groups": {}}
    drawn = draws(tree, seed, resamples)
    row = _row(tree, rule, drawn, n)
    row["groups"] = {}
    for column, name in enumerate(tree.groups):
        part = _only(tree, column)
        members = int((part.count[:, 0] > 0).sum())
        if members:
            row["groups"][name] = _row(part, Rule(scale=_group_scale(rule)), drawn, members)
    return row


def difference(one: Tree, other: Tree, rule: Rule, *, seed: int = 0) -> Row:
    """How much larger the total of `other` is, with the interval of paired draws.

    Prompts that have no value in one of them are left out of both.

    Raises:
        ValueError: they are not of the same prompts.
    """
    if one.groups != other.groups or not np.array_equal(one.units, other.units):
        raise ValueError("these are not the same prompts")
    shared = (one.count > 0) & (other.count > 0)
    one, other = (
        replace(t, low=t.low * shared, high=t.high * shared, count=t.count * shared)
        for t in (one, other)
    )
    drawn = draws(one, seed, RESAMPLES)
    point = np.ones((1, len(one.strata)))
    changes = [totals(other, rule, w)[0] - totals(one, rule, w)[0] for w in (point, drawn)]
    return _estimate(float(changes[0][0]), changes[1], int(shared.any(1).sum()))


def draws(tree: Tree, seed: int, resamples: int) -> Floats:
    """How often each unit was drawn, (resamples, U): as many of each stratum as there are."""
    rng = np.random.default_rng(seed)
    out = np.zeros((resamples, len(tree.strata)))
    for name in dict.fromkeys(tree.strata):
        members = np.flatnonzero([stratum == name for stratum in tree.strata])
        picked = rng.integers(0, len(members), size=(resamples, len(members)))
        picked += np.arange(resamples)[:, None] * len(members)
        counted = np.bincount(picked.ravel(), minlength=resamples * len(members))
        out[:, members] = counted.reshape(resamples, len(members))
    return out


def totals(tree: Tree, rule: Rule, drawn: Floats) -> tuple[Floats, Floats]:
    """The lower and the upper total of each draw, (resamples,); NaN where nothing has a value."""
    weights = drawn[:, tree.units]
    low, high, count = (weights @ values for values in (tree.low, tree.high, tree.count))
    with np.errstate(invalid="ignore", divide="ignore"):
        if rule.total == "prompts":
            pair = (low.sum(1) / count.sum(1), high.sum(1) / count.sum(1))
        else:
            pair = TOTALS[rule.total](tree.groups, low / count, high / count, rule)
    return pair[0] * rule.scale, pair[1] * rule.scale


def _groups(names: Sequence[str], low: Floats, high: Floats, rule: Rule) -> tuple[Floats, Floats]:
    return _average(low), _average(high)


def _weighted(names: Sequence[str], low: Floats, high: Floats, rule: Rule) -> tuple[Floats, Floats]:
    weights = rule.weights or {}
    factors = np.array([weights.get(name, 0.0) for name in names])
    if set(weights) - set(names):
        return _nothing(low)
    return low @ factors, high @ factors


def _gap(names: Sequence[str], low: Floats, high: Floats, rule: Rule) -> tuple[Floats, Floats]:
    if ORIGINAL not in names or len(names) < 2:
        return _nothing(low)
    first = list(names).index(ORIGINAL)
    others = [place for place in range(len(names)) if place != first]
    return (
        low[:, first] - _average(high[:, others]),
        high[:, first] - _average(low[:, others]),
    )


def _oneig(names: Sequence[str], low: Floats, high: Floats, rule: Rule) -> tuple[Floats, Floats]:
    """1 - min(M, edits) (1 - exact) (1 - words) / M (OneIG-Bench, scripts/text/text_score.py)."""
    place = [list(names).index(name) for name in ("edits", "exact", "words")]

    def of(values: Floats) -> Floats:
        edits, exact, words = (values[:, column] for column in place)
        return 1 - np.minimum(MOST_EDITS, edits) * (1 - exact) * (1 - words) / MOST_EDITS

    return of(low), of(high)


TOTALS: Mapping[str, Callable[[Sequence[str], Floats, Floats, Rule], tuple[Floats, Floats]]] = {
    "groups": _groups,
    "weights": _weighted,
    "gap": _gap,
    "oneig_text": _oneig,
}


def _nothing(values: Floats) -> tuple[Floats, Floats]:
    """No total in any draw, where a group that it needs has no value; `_estimate` says None."""
    return np.full(len(values), np.nan), np.full(len(values), np.nan)


def _average(values: Floats) -> Floats:
    """Means of rows over what is there."""
    there = ~np.isnan(values)
    return np.where(there, values, 0).sum(1) / there.sum(1)


def _row(tree: Tree, rule: Rule, drawn: Floats, n: int) -> Row:
    point = np.ones((1, len(tree.strata)))
    ends = zip(totals(tree, rule, point), totals(tree, rule, drawn), strict=True)
    lower, upper = (_estimate(float(value[0]), found, n) for value, found in ends)
    return lower if lower == upper else {**lower, "upper": upper}


def _estimate(value: float, found: Floats, n: int) -> Row:
    found = found[~np.isnan(found)]
    if np.isnan(value) or not len(found):
        return {"mean": None, "low": None, "high": None, "n": n}
    return estimate(value, found, n)


def _only(tree: Tree, column: int) -> Tree:
    at = slice(column, column + 1)
    return Tree(
        tree.groups[at],
        tree.low[:, at],
        tree.high[:, at],
        tree.count[:, at],
        tree.units,
        tree.strata,
    )


def _group_scale(rule: Rule) -> float:
    return 1.0 if rule.total == "oneig_text" else rule.scale
