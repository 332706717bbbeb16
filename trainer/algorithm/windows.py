"""Which sampling steps are stochastic: pure functions of the settings, the seed, epoch and batch.

A window is a run of consecutive steps. It is drawn anew for every batch (``random``,
Flow-GRPO-Fast), or moves over the steps as training goes on, the same for all batches of an epoch
(MixGRPO, arXiv:2507.21802). The moving window stays at each position for some epochs, n in all:

    progressive   n
    decay         from n at the first step down to max(1, n // 4) at the end of the range, linearly
                  in the position
    exp_decay     ceil(n exp(-rate max(0, first step of the window - after)))
"""

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

import torch

from trainer.rollout.noise import generator

Strategy = Literal["random", "progressive", "decay", "exp_decay"]


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """How the window moves.

    Attributes:
        strategy: See the module's head.
        stride: Steps from one position to the next.
        epochs: n, the epochs that the window stays at a position.
        roll_back: After the last position begin again; otherwise stay there.
        decay_rate: Of ``exp_decay``.
        decay_after: Of ``exp_decay``: the step at which the decay sets in.
    """

    strategy: Strategy = "random"
    stride: int = 1
    epochs: int = 25
    roll_back: bool = True
    decay_rate: float = 0.1
    decay_after: int = 13

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Strategy):
            raise ValueError(
                f"unknown window strategy {self.strategy!r}; one of {', '.join(get_args(Strategy))}"
            )
        if self.stride < 1 or self.epochs < 1 or self.decay_rate < 0 or self.decay_after < 0:
            raise ValueError(
                "a window's stride and epochs must be positive, its decay not negative"
            )


def positions(plan: WindowPlan, first: int, last: int) -> tuple[int, ...]:
    """First steps of a moving window, in order, from ``first`` to ``last``; the last is included.

    MixGRPO shortens the window at the end of the range; here it stays whole and ends with it.
    """
    return (*range(first, last, plan.stride), last)


def durations(plan: WindowPlan, starts: tuple[int, ...], end: int) -> tuple[int, ...]:
    """Epochs that the window stays at each position; at least 1.

    Args:
        plan: How the window moves.
        starts: Its positions.
        end: The step before which the range ends; ``decay`` has its lowest value there.
    """
    if plan.strategy == "decay":
        least = max(1, plan.epochs // 4)
        shares = ((start - starts[0]) / max(end - starts[0], 1) for start in starts)
        return tuple(max(least, int(plan.epochs * (1 - share) + least * share)) for share in shares)
    if plan.strategy == "exp_decay":
        late = (max(0, start - plan.decay_after) for start in starts)
        return tuple(math.ceil(plan.epochs * math.exp(-plan.decay_rate * steps)) for steps in late)
    return (plan.epochs,) * len(starts)


def moving_start(plan: WindowPlan, first: int, last: int, end: int, epoch: int) -> int:
    """First step of a moving window in an epoch, counted from 0."""
    starts = positions(plan, first, last)
    ends = tuple(accumulate(durations(plan, starts, end)))
    place = epoch % ends[-1] if plan.roll_back else min(epoch, ends[-1] - 1)
    return next(start for start, until in zip(starts, ends, strict=True) if place < until)


def window(
    plan: WindowPlan, allowed: tuple[int, int], size: int, *, seed: int, epoch: int, batch: int
) -> tuple[int, ...]:
    """The stochastic steps of one batch.

    The same on every process that names the same batch: windows per image destroy the comparison
    inside a group, and windows per process train some steps more than others.

    Args:
        plan: How the window moves.
        allowed: First step and end of the range that the window lies in.
        size: Steps of the window, at most those of the range.
        seed: The run's seed.
        epoch: Number of the epoch, from 0.
        batch: Names the batch in the epoch.
    """
    first, end = allowed
    last = end - size
    if plan.strategy == "random":
        source = generator("window", seed, epoch, batch)
        start = int(torch.randint(first, last + 1, (1,), generator=source))
    else:
        start = moving_start(plan, first, last, end, epoch)
    return tuple(range(start, start + size))
