"""Which prompts an epoch trains on, and which process samples them for which update.

Everything is a function of the settings, the seed and the epoch: nothing is drawn ahead and nothing
has to be stored to resume. Each drawn prompt is a group of `images_per_prompt` images; the images
of an epoch are numbered group by group. A prompt is drawn at most once per epoch while there are
enough of them, so that groups never merge. Sampling batches are runs of images, updates are runs of
batches: what an update learns from does not depend on the number of processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from trainer.rollout.noise import NoiseKey, generator

GroupNoise = Literal["independent", "shared_start", "antithetic_pairs"]


@dataclass(frozen=True, slots=True)
class Draw:
    """One image to be sampled.

    Attributes:
        group: number of the group in the epoch.
        prompt: index of the prompt in the training file.
        key: names the random numbers of the image.
    """

    group: int
    prompt: int
    key: NoiseKey


def draw_prompts(
    probabilities: Sequence[float], count: int, *, seed: int, epoch: int
) -> tuple[int, ...]:
    """Indices of the epoch's prompts, drawn by weight and without repetition where possible.

    With more draws than prompts of positive weight, everything is drawn once per round. The order
    is shuffled: drawing without repetition puts the likelier prompts, and so the easier update,
    first.
    """
    weights = torch.tensor(probabilities, dtype=torch.float64)
    source = generator("prompts", seed, epoch)
    available = int((weights > 0).sum())
    chosen: list[int] = []
    while len(chosen) < count:
        size = min(count - len(chosen), available)
        chosen += torch.multinomial(weights, size, generator=source).tolist()
    order = torch.randperm(len(chosen), generator=source).tolist()
    return tuple(chosen[place] for place in order)


def draws(
    prompts: Sequence[int],
    images_per_prompt: int,
    *,
    seed: int,
    epoch: int,
    group_noise: GroupNoise = "independent",
) -> list[Draw]:
    """The images of an epoch, group by group.

    Args:
        prompts: the epoch's prompts, from `draw_prompts`.
        images_per_prompt: group size.
        seed: the run's seed.
        epoch: number of the epoch.
        group_noise: what noise the images of a group have in common, see the settings.
    """
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

    Args:
        batches: sampling batches of the epoch; a multiple of updates x world_size.
        updates: optimiser updates of the epoch.
        rank: number of the process.
        world_size: number of processes.

    Raises:
        ValueError: the batches do not divide.
    """
    if batches % (updates * world_size):
        raise ValueError(f"{batches} batches, {updates} updates, {world_size} processes")
    part = batches // (updates * world_size)
    starts = ((update * world_size + rank) * part for update in range(updates))
    return [range(start, start + part) for start in starts]
