"""Which sampling steps are stochastic: a pure function of the settings, the seed, epoch and batch.

A window is a run of consecutive steps that is drawn anew for every batch (Flow-GRPO-Fast).
"""

import torch

from trainer.rollout.noise import generator


def window(
    allowed: tuple[int, int], size: int, *, seed: int, epoch: int, batch: int
) -> tuple[int, ...]:
    """The stochastic steps of one batch.

    Args:
        allowed: First step and end of the range that the window lies in.
        size: Steps of the window, at most those of the range.
        seed: The run's seed.
        epoch: Number of the epoch, from 0.
        batch: Names the batch in the epoch.
    """
    first, end = allowed
    source = generator("window", seed, epoch, batch)
    start = int(torch.randint(first, end - size + 1, (1,), generator=source))
    return tuple(range(start, start + size))
