"""How far two rewards agree about the images of a run: what each would have taught it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.ma import MaskedArray

from trainer.config.settings import Settings
from trainer.evaluation.statistics import Floats, Row, summarise


@dataclass(frozen=True, slots=True)
class Rescored:
    """N recorded images by key, under both rewards."""

    settings: Settings
    rows: Sequence[Mapping[str, Any]]
    reward: Mapping[str, MaskedArray]  # `own` and `other`, (N,) weighted sums
    advantage: Mapping[str, Floats]  # (N,)
    used: Mapping[str, Any]  # (N,) bool, whether the loss would use it
    scores: Mapping[str, MaskedArray]  # (N,) of what the other reward adds up
    found: Mapping[str, Any]  # for JSON: see `compare`


def _ranks(values: Floats) -> Floats:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def rank_correlation(one: Floats, other: Floats) -> float | None:
    """Spearman's, with mean ranks of ties; None where either is constant."""
    a, b = _ranks(one), _ranks(other)
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def compare(it: Rescored) -> dict[str, Any]:
    """How the two rewards agree, as plain numbers with 95 % intervals by bootstrap over prompts.

    Returns:
        What `Rescored.found` has, and: `rank_correlation` (Spearman's within groups, of images that
        both scored), `sign_flips` (share of the images with both advantages whose signs differ),
        `best_agreement` (share of groups with both signals whose best images are the same), all
        with `mean`, `low`, `high` and `n`; `signal` (groups with `both`, `gained`, `lost`,
        `neither`); `by_epoch`; `start`, `best` and `end` (both rewards in the first, the other
        reward's best and the last tenth of the epochs); `parts_at` (see `_parting`).
    """
    size = it.settings.batch.images_per_prompt
    heads = it.rows[::size]
    numbers = {row["prompt_index"]: None for row in heads}
    prompt = {index: place for place, index in enumerate(numbers)}
    signal = {s: (it.advantage[s] != 0) & it.used[s] for s in ("own", "other")}
    both = signal["own"] & signal["other"]
    flips = np.sign(it.advantage["own"]) != np.sign(it.advantage["other"])
    values = it.reward if it.settings.advantage.combine == "sum" else it.advantage
    a, b = (np.ma.getdata(values[side]).reshape(-1, size) for side in ("own", "other"))
    valid = ~(np.ma.getmaskarray(it.reward["own"]) | np.ma.getmaskarray(it.reward["other"]))
    valid = valid.reshape(-1, size)
    teaches = {side: flags.reshape(-1, size).any(axis=1) for side, flags in signal.items()}
    ranks, best = [], []
    for group, ok in enumerate(valid):
        one, other = a[group][ok], b[group][ok]
        ranks.append(rank_correlation(one, other))
        shared = teaches["own"][group] and teaches["other"][group] and ok.any()
        same = shared and bool(((one == one.max()) & (other == other.max())).any())
        best.append(float(same) if shared else None)

    def mean(scores: Sequence[float | None], rows: Sequence[Mapping[str, Any]]) -> Row:
        found = summarise(scores, [prompt[r["prompt_index"]] for r in rows], ["all"] * len(prompt))
        return {name: found[name] for name in ("mean", "low", "high", "n")}

    flipped = [float(flip) if known else None for flip, known in zip(flips, both, strict=True)]
    epochs = np.array([row["epoch"] for row in it.rows])
    group_epochs = epochs[::size]
    by_epoch = [
        {
            "epoch": int(epoch),
            **{side: _mean(it.reward[side][epochs == epoch].tolist()) for side in it.reward},
            "rank_correlation": _mean(
                [r for r, e in zip(ranks, group_epochs, strict=True) if e == epoch]
            ),
            "sign_flips": _mean([f for f, e in zip(flipped, epochs, strict=True) if e == epoch]),
        }
        for epoch in np.unique(epochs)
    ]

    def window(side: str, first: int, last: int) -> Row:
        inside = np.flatnonzero((epochs >= first) & (epochs <= last))
        scores = it.reward[side][inside].tolist()
        return mean(scores, [it.rows[int(index)] for index in inside])

    return {
        **it.found,
        "images": len(it.rows),
        "groups": len(heads),
        "prompts": len(prompt),
        "rank_correlation": mean(ranks, heads),
        "sign_flips": mean(flipped, it.rows),
        "best_agreement": mean(best, heads),
        "signal": {
            "both": int((teaches["own"] & teaches["other"]).sum()),
            "gained": int((teaches["other"] & ~teaches["own"]).sum()),
            "lost": int((teaches["own"] & ~teaches["other"]).sum()),
            "neither": int((~teaches["own"] & ~teaches["other"]).sum()),
        },
        "by_epoch": by_epoch,
        **_parting(by_epoch, window),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    kept = [value for value in values if value is not None]
    return float(np.mean(kept)) if kept else None


def _parting(
    by_epoch: Sequence[Mapping[str, Any]], window: Callable[[str, int, int], Row]
) -> dict[str, Any]:
    """Both rewards at the start and the end, and the epoch where they part.

    They part at the epoch of the other reward's best tenth of the run, if from there to the last
    tenth the other one has fallen and the run's own has risen, each beyond the 95 % intervals.
    """
    at = [row["epoch"] for row in by_epoch]
    width = -(-len(at) // 10)
    spans = [(at[i], at[i + width - 1]) for i in range(len(at) - width + 1)]

    def both(span: tuple[int, int]) -> dict[str, Row]:
        return {side: window(side, *span) for side in ("own", "other")}

    def height(span: tuple[int, int]) -> float:
        inside = [row["other"] for row in by_epoch if span[0] <= row["epoch"] <= span[1]]
        mean = _mean(inside)
        return -np.inf if mean is None else mean

    best = max(spans, key=height)
    start, then, end = both(spans[0]), both(best), both(spans[-1])
    known = all(row["mean"] is not None for found in (then, end) for row in found.values())
    fell = known and end["other"]["high"] < then["other"]["low"]
    parts = fell and end["own"]["low"] > then["own"]["high"]
    return {"start": start, "best": then, "end": end, "parts_at": best[1] if parts else None}


def disagreements(it: Rescored, count: int, sign: int, keys: set[str]) -> list[int]:
    """Images that one reward likes much better than the other; at most two of a group.

    Args:
        it: The comparison.
        count: How many.
        sign: 1: those that the run's reward likes better; -1: the other one.
        keys: Those whose pictures are there.
    """
    difference = sign * (it.advantage["own"] - it.advantage["other"])
    seen: dict[tuple[int, int], int] = {}
    out = []
    for index in np.argsort(-difference, kind="stable"):
        row, ok = it.rows[index], not any(np.ma.getmaskarray(r)[index] for r in it.reward.values())
        group = row["epoch"], row["group"]
        if difference[index] <= 0 or len(out) == count:
            break
        if ok and row["key"] in keys and seen.get(group, 0) < 2:
            seen[group] = seen.get(group, 0) + 1
            out.append(int(index))
    return out
