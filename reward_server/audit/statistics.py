"""What an audit computes from scores: within prompts, in units of the spread within prompts.

That spread is what a group-relative advantage divides by: a change of one unit moves a picture by
as much as its group differs by. Scores are masked arrays; what failed is in no statistic. Intervals
are 95 % bootstraps over prompts, since pictures of one prompt are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.ma import MaskedArray
from numpy.typing import NDArray

Groups = Sequence[NDArray[np.intp]]  # the places of each prompt's pictures
Row = dict[str, Any]
RESAMPLES = 2000
LEAST_PER_PROMPT = 4


def spread(scores: MaskedArray, groups: Groups) -> float | None:
    """Root mean square over prompts of the SD within a prompt; None without two scores of any."""
    found = [scores[group].compressed() for group in groups]
    variances = [values.var(ddof=1) for values in found if len(values) > 1]
    return float(np.sqrt(np.mean(variances))) if variances else None


def interval(values: Sequence[float], seed: int = 0) -> Row:
    """Mean of one value per prompt with its 95 % interval; None where there is no value."""
    if not len(values):
        return {"mean": None, "low": None, "high": None}
    array = np.asarray(values, dtype=np.float64)
    rows = np.random.default_rng(seed).integers(0, len(array), (RESAMPLES, len(array)))
    low, high = np.percentile(array[rows].mean(axis=1), [2.5, 97.5])
    return {"mean": float(array.mean()), "low": float(low), "high": float(high)}


def reliability(scores: MaskedArray, again: MaskedArray, unit: float) -> float | None:
    """1 - var(difference) / (2 var within prompts): 1 if unchanged, about 0 if unrelated."""
    difference = (again - scores).compressed()
    return float(1 - np.mean(difference**2) / (2 * unit**2)) if len(difference) else None


def ties(scores: MaskedArray, groups: Groups) -> float | None:
    """Share of the pairs of pictures of one prompt that score alike."""
    pairs = [_pair_signs(scores[group].compressed()) for group in groups]
    signs = np.concatenate(pairs) if pairs else np.empty(0)
    return float(np.mean(signs == 0)) if len(signs) else None


def _pair_signs(values: NDArray[Any]) -> NDArray[Any]:
    upper = np.triu_indices(len(values), 1)
    return np.sign(values[upper[1]] - values[upper[0]])


def invariance(scores: MaskedArray, changed: MaskedArray, groups: Groups, unit: float) -> Row:
    """`max` and `p95` of |change| in units, and `flips`: pairs of a prompt that change places."""
    change = np.abs((changed - scores).compressed()) / unit
    flips, pairs = 0, 0
    for group in groups:
        both = ~(np.ma.getmaskarray(scores[group]) | np.ma.getmaskarray(changed[group]))
        before = _pair_signs(scores[group].data[both])
        after = _pair_signs(changed[group].data[both])
        flips += int(np.sum(before * after < 0))
        pairs += int(np.sum(before != 0))
    return {
        "max": float(change.max()) if len(change) else None,
        "p95": float(np.percentile(change, 95)) if len(change) else None,
        "flips": flips / pairs if pairs else None,
    }


def lift(scores: MaskedArray, changed: MaskedArray, groups: Groups, unit: float) -> Row:
    """Change in units: mean over prompts with its interval, and the share of pictures `raised`."""
    change = (changed - scores) / unit
    means = [float(change[group].mean()) for group in groups if change[group].count()]
    raised = change.compressed() > 1e-9
    return {"lift": interval(means), "raised": float(raised.mean()) if len(raised) else None}


def gain(scores: MaskedArray, changed: MaskedArray, groups: Groups) -> Row:
    """Exploit gain: the share of prompts whose worst picture, changed, beats the best untouched.

    Where the best is at the top of the scale, to reach it is to beat it.
    """
    beaten = []
    for group in groups:
        both = ~(np.ma.getmaskarray(scores[group]) | np.ma.getmaskarray(changed[group]))
        before, after = scores[group].data[both], changed[group].data[both]
        if len(before) >= 2:
            worst = int(before.argmin())
            beaten.append(float(after[worst] > before[worst] and after[worst] >= before.max()))
    return interval(beaten)


def kendall(values: NDArray[Any]) -> float | None:
    """Kendall's tau-b of values with their places; None where all are alike."""
    signs = _pair_signs(values)
    untied = int(np.sum(signs != 0))
    return float(signs.sum() / np.sqrt(untied * len(signs))) if untied else None


def dose(table: MaskedArray, groups: Groups, unit: float, *, falls: bool = True) -> Row:
    """How the mean of each prompt goes with the dose.

    Args:
        table: (1 + levels, pictures), the untouched ones first.
        groups: pictures of each prompt.
        unit: the spread within prompts.
        falls: whether it should fall; else rise.

    Returns:
        `tau` with its interval over prompts; `violations`, the share of steps in the wrong
        direction by more than 0.05 units; `curve`, mean change in units at each level.
    """
    taus, wrong, steps, curves = [], 0, 0, []
    for group in groups:
        # Only pictures with a score at every level, or the mean would be of other pictures.
        whole = ~np.ma.getmaskarray(table[:, group]).any(axis=0)
        if not whole.any():
            continue
        means = table.data[:, group][:, whole].mean(axis=1) / unit
        # What is left of a sum in the last digits is no step.
        tau = kendall(means.round(9))
        taus += [] if tau is None else [tau]
        step = np.diff(means) if falls else -np.diff(means)
        wrong, steps = wrong + int(np.sum(step > 0.05)), steps + len(step)
        curves.append(means - means[0])
    return {
        "tau": interval(taus),
        "violations": wrong / steps if steps else None,
        "curve": [float(v) for v in np.mean(curves, axis=0)] if curves else [],
    }


def auc(right: MaskedArray, wrong: MaskedArray, pairs: Sequence[tuple[Any, Any]]) -> Row:
    """P(a picture under its prompt scores above another's picture under it); ties count half.

    `pairs` has the places in `right` and in `wrong` of each prompt.
    """
    found = []
    for own, others in pairs:
        high, low = right[own].compressed(), wrong[others].compressed()
        if len(high) and len(low):
            signs = np.sign(high[:, None] - low[None, :])
            found.append(float((signs.mean() + 1) / 2))
    return interval(found)


def by_prompt(prompts: Sequence[str], is_wanted: Callable[[int], bool] = lambda _: True) -> Groups:
    """The places of each prompt's pictures, in the order of first appearance."""
    groups: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        if is_wanted(place):
            groups.setdefault(prompt, []).append(place)
    return [np.array(places, dtype=np.intp) for places in groups.values()]
