"""Which prompts an epoch trains on, and which process samples them for which update.

Everything is a function of the settings, the seed and the epoch: nothing is drawn ahead and nothing
has to be stored to resume. Each drawn prompt is a group of `images_per_prompt` images (drawn twice,
it makes two groups); the images of an epoch are numbered group by group. Sampling batches are runs
of images, updates are runs of batches: what an update learns from does not depend on the number of
processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from trainer.rollout.noise import NoiseKey, generator

GroupNoise = Literal["independent", "shared_start", "antithetic_pairs"]


@dataclass(frozen=True, slots=True)
class Draw:
    group: int  # number of the group in the epoch
    prompt: int  # index in the training file
    key: NoiseKey


def draw_prompts(
    probabilities: Sequence[float],
    categories: Sequence[str],
    count: int,
    *,
    seed: int,
    epoch: int,
) -> tuple[int, ...]:
    """Indices of the epoch's prompts, by systematic sampling (Madow 1949).

    Prompt i comes count * p_i times on average, and in each epoch that number rounded down or up;
    so does each category as a whole. (Drawing one after another without repetition would take less
    than their share from the likelier prompts.)

    Probabilities p_i and categories are those of the prompts of the training file; `count` indices
    are returned, in random order.
    """
    source = generator("prompts", seed, epoch)
    shuffled: list[int] = torch.randperm(len(probabilities), generator=source).tolist()
    # Prompts lie on a line, each as long as it is likely, category by category; marks at distance 1
    # from a random start choose those that they fall on.
    line = sorted((i for i in shuffled if probabilities[i] > 0), key=lambda i: categories[i])
    ends = torch.tensor([probabilities[i] for i in line], dtype=torch.float64).cumsum(0)
    start = torch.rand((), generator=source, dtype=torch.float64)
    marks = (start + torch.arange(count)) * (ends[-1] / count)
    places = torch.searchsorted(ends, marks, right=True).clamp(max=len(line) - 1).tolist()
    return tuple(line[places[i]] for i in torch.randperm(count, generator=source).tolist())


def draws(
    prompts: Sequence[int],
    images_per_prompt: int,
    *,
    seed: int,
    epoch: int,
    group_noise: GroupNoise = "independent",
) -> list[Draw]:
    """The images of an epoch, group by group; `prompts` are from `draw_prompts`."""
    taken: list[Draw] = []
    for group, prompt in enumerate(prompts):
        # A prompt that is drawn twice must not repeat its noise.
        first = prompts[:group].count(prompt) * images_per_prompt
        for sample in range(first, first + images_per_prompt):
            start = mirrored = None
            if group_noise == "shared_start":
                start = first
            elif group_noise == "antithetic_pairs" and (sample - first) % 2:
                start = mirrored = sample - 1
            key = NoiseKey(seed, epoch, prompt, sample, start, mirrored)
            taken.append(Draw(group, prompt, key))
    return taken


def share_out(batches: int, updates: int, *, rank: int, world_size: int) -> list[range]:
    """The sampling batches of one process, by update.

    Update u learns from the u-th run of `batches / updates` batches; each process takes an equal,
    contiguous part of every run, in the order in which the updates need them.

    Raises:
        ValueError: `batches`, those of the epoch, are no multiple of updates x world_size.
    """
    if batches % (updates * world_size):
        raise ValueError(f"{batches} batches, {updates} updates, {world_size} processes")
    part = batches // (updates * world_size)
    starts = ((update * world_size + rank) * part for update in range(updates))
    return [range(start, start + part) for start in starts]
