"""Group-relative advantages (arXiv:2505.05470 eq. 4; DeepSeekMath's GRPO), in float64.

A_i = (r_i - mean of its group) / (std + eps), where std is the group's or that of all rewards.
Items that failed are neither numbers nor zeros: they take no part in any mean or std, get the
advantage 0 and are marked invalid, so that the loss leaves them out. So are, if asked for, the
items of constant groups: they teach nothing, and would only dilute the others.

Some losses want a choice instead of a number. It is made here, from A, because only here whole
groups are seen; a constant group offers none:
    relative     A itself
    best         1 for the best of the group (all that tie), the others are not used
    best_worst   1 for the best and -1 for the worst (the first that ties), the others are not used
    softmax      exp(A / temperature), divided by its mean over the group
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from trainer.types import AdvantageMode

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Codes = NDArray[np.int64]
StdKind = Literal["group", "global"]
CombineKind = Literal["sum", "per_reward", "gdpo"]


@dataclass(frozen=True, slots=True)
class Advantages:
    """Advantages of N samples."""

    values: Floats  # (N,); 0 for failed items and for members of constant groups
    valid: Bools  # (N,) False for failed items
    used: Bools  # (N,) what the loss averages over: valid ones that are not skipped
    groups: Codes  # (N,) number of each item's group, in order of appearance
    stats: Mapping[str, float | None]  # for the log, see ``advantages``


def _codes(groups: Sequence[Hashable]) -> Codes:
    index: dict[Hashable, int] = {}
    return np.array([index.setdefault(key, len(index)) for key in groups], dtype=np.int64)


def _normalise(rewards: Floats, codes: Codes, valid: Bools, std: StdKind, eps: float):
    """Return the advantages (N,) and the standard deviation of every group with valid members."""
    out = np.zeros_like(rewards)
    spreads: list[float] = []
    total = float(np.std(rewards[valid])) if valid.any() else 0.0
    for code in range(int(codes.max()) + 1 if codes.size else 0):
        members = (codes == code) & valid
        if not members.any():
            continue
        values = rewards[members]
        # Rounding in the mean would give equal rewards a tiny, meaningless advantage.
        constant = values.max() == values.min()
        spread = 0.0 if constant else float(np.std(values))
        spreads.append(spread)
        if not constant:
            out[members] = (values - values.mean()) / ((spread if std == "group" else total) + eps)
    return out, np.array(spreads)


def _choose(
    relative: Floats, codes: Codes, valid: Bools, mode: AdvantageMode, temperature: float
) -> tuple[Floats, Bools]:
    """What the losses get, and which items they use; see the module's head."""
    if mode == "relative":
        return relative, valid
    out, used = np.zeros_like(relative), np.zeros_like(valid)
    for code in np.unique(codes[valid]):
        members = np.flatnonzero((codes == code) & valid)
        values = relative[members]
        if values.max() == values.min():
            continue
        if mode == "best_worst":
            chosen = members[[values.argmax(), values.argmin()]]
            out[chosen] = (1.0, -1.0)
        elif mode == "best":
            chosen = members[values == values.max()]
            out[chosen] = 1.0
        else:
            chosen = members
            weights = np.exp((values - values.max()) / temperature)
            out[chosen] = weights / weights.mean()
        used[chosen] = True
    return out, used


def advantages(
    rewards: Mapping[str, Sequence[float] | Floats],
    groups: Sequence[Hashable],
    *,
    weights: Mapping[str, float] | None = None,
    valid: Sequence[bool] | Bools | None = None,
    std: StdKind = "global",
    combine: CombineKind = "sum",
    eps: float = 1e-4,
    clip: float | None = 5.0,
    mode: AdvantageMode = "relative",
    temperature: float = 1.0,
    skip_constant_groups: bool = False,
) -> Advantages:
    """Turn the rewards of one epoch into advantages.

    Args:
        rewards: Per reward name, N raw values; those of invalid items are not read.
        groups: N group keys; samples of one prompt share a key.
        weights: Weight per reward name; None weighs every reward 1.
        valid: N flags, False where any reward of the item failed; None when nothing failed.
        std: Divide by the deviation (ddof 0) of the group, or of all valid rewards of the call.
        combine: ``sum`` adds the weighted raw rewards, then normalises (official); ``per_reward``
            normalises each reward by itself, then adds them weighted (for unlike scales); ``gdpo``
            does so with the group's deviation whatever ``std`` is, and divides the sum by its
            deviation over all valid items (arXiv:2601.05242).
        eps: Added to the deviation.
        clip: Bound of the absolute advantage, or None.
        mode: See the module's head; the choice is made before clipping, ``softmax`` after it.
        temperature: Of ``softmax``, > 0.
        skip_constant_groups: Leave constant groups out of the loss, as choosing modes always do.

    Returns:
        Values, masks, groups and stats: ``reward_mean``, ``reward_std`` (of valid items, weighted
        sum), ``group_std_mean``, ``clipped`` (fraction of valid items), ``zero_std_groups``
        (fraction of groups), and as fractions of all items ``failed_items`` and ``informative``
        (used, with an advantage other than 0).

    Raises:
        ValueError: No rewards, lengths that differ, a weight missing or unknown, or a valid item
            whose reward is not finite.
    """
    if not rewards:
        raise ValueError("no rewards were given")
    names = list(rewards)
    weight = dict.fromkeys(names, 1.0) if weights is None else dict(weights)
    if set(weight) != set(names):
        raise ValueError(f"weights are for {sorted(weight)}, rewards for {sorted(names)}")
    for value, kind in ((std, StdKind), (combine, CombineKind), (mode, AdvantageMode)):
        if value not in get_args(kind):
            raise ValueError(f"unknown {value!r}; one of {', '.join(get_args(kind))}")
    codes, count = _codes(groups), len(groups)
    ok = np.ones(count, dtype=bool) if valid is None else np.asarray(valid, dtype=bool)
    raw = {name: np.asarray(values, dtype=np.float64) for name, values in rewards.items()}
    for name, values in raw.items():
        if values.shape != (count,) or ok.shape != (count,):
            raise ValueError(f"{name}: expected {count} rewards and flags, got {values.shape}")
        if not np.isfinite(values[ok]).all():
            raise ValueError(f"{name}: a reward is not finite; mark the item as failed instead")
    clean = {name: np.where(ok, values, 0.0) for name, values in raw.items()}
    total: Floats = sum((weight[n] * clean[n] for n in names), start=np.zeros(count))
    out, spreads = _normalise(total, codes, ok, std, eps)
    if combine != "sum":
        kind = "group" if combine == "gdpo" else std
        parts = (weight[n] * _normalise(clean[n], codes, ok, kind, eps)[0] for n in names)
        out = sum(parts, start=np.zeros(count))
    if combine == "gdpo" and ok.any():
        # Its mean is 0 already, group by group; subtracting it would move constant groups.
        out = out / (np.std(out[ok]) + eps)
    bounded, clipped = out, 0.0
    if clip is not None:
        clipped = float((np.abs(out) > clip).sum() / max(ok.sum(), 1))
        bounded = np.clip(out, -clip, clip)
    # Clipping makes ties: best and worst are looked for without it.
    ranked = out if mode in ("best", "best_worst") else bounded
    final, used = _choose(ranked, codes, ok, mode, temperature)
    if skip_constant_groups:
        used = used & (np.bincount(codes, weights=(out != 0) & ok)[codes] > 0)
    good = total[ok]
    stats = {
        "reward_mean": float(good.mean()) if good.size else None,
        "reward_std": float(good.std()) if good.size else None,
        "group_std_mean": float(spreads.mean()) if spreads.size else None,
        "zero_std_groups": float((spreads == 0).mean()) if spreads.size else None,
        "failed_items": float(1 - ok.mean()) if count else 0.0,
        "clipped": clipped,
        "informative": float(((final != 0) & used).mean()) if count else 0.0,
    }
    return Advantages(final, ok, used, codes, stats)
